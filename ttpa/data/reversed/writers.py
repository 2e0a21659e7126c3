"""Who writes dialogues: an endpoint that is paid, a local model, or a script. Each drafts the jobs of a wave.

An endpoint's replies are appended to a file before they are used, under a hash of all that decides them: a restart, or
other gates, ask again for nothing that is there.
"""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ttpa.data.reversed.sandbox import Sandbox
from ttpa.data.reversed.scenario import Ask, Refused
from ttpa.endpoint import Endpoint, EndpointError
from ttpa.errors import ConfigError, DataError
from ttpa.io import Shard, dumps
from ttpa.policy.engine import Sampling
from ttpa.records import Sample

Drafting = Generator[Ask, str, dict[str, Any]]
Start = Callable[[Any, Sandbox], Drafting]
"""Begins the draft of a job."""
REFUSALS = (400, 413, 422)  # of one request; other 4xx mean all of them
LONGEST_WAIT = 3600.0


def drive(draft: Drafting, reply: Callable[[Ask], str]) -> dict[str, Any]:
    """Answers all that a draft asks and gives its row."""
    try:
        ask = next(draft)
        while True:
            try:
                answer = reply(ask)
            except Refused as refused:
                ask = draft.throw(refused)
            else:
                ask = draft.send(answer)
    except StopIteration as stop:
        row: dict[str, Any] = stop.value
        return row


class Stopped(ConfigError):
    """The endpoint gives no reply to anybody."""


class Bought:
    """Replies of an endpoint, each bought once. `keys` is the option class of the generator."""

    def __init__(self, keys: Any, file: Path) -> None:
        self.keys, self._shard, self._lock = keys, Shard(file, key="key"), threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileLock(f"{file}.lock")
        try:
            self._file.acquire(timeout=0)
        except Timeout:
            problem, remedy = "another run buys replies of this model for the same store", "Wait for it to end"
            raise ConfigError.at("data.model", keys.model, problem, remedy) from None
        try:
            self._endpoint = Endpoint(keys.address, keys.api_key_env or "", keys.timeout_s, retries=0, extra="generate")
        except ConfigError as error:
            raise error.within("data") from None
        self._known = {row["key"]: row for row in self._shard.rows()}
        self._next, self._stopped, self._reason = 0.0, threading.Event(), ""
        self._pool = ThreadPoolExecutor(keys.concurrency)
        self.counts = {"bought": 0, "retries": 0}

    @property
    def requests(self) -> int:
        return self._endpoint.requests

    def reply(self, ask: Ask) -> str:
        """The reply to one ask; Refused where the endpoint refuses this request, Stopped where it refuses all."""
        row = self._known.get(key := self._key(ask))
        if row is None:
            text, usage = self._buy(self._body(ask))
            row = {"key": key, "role": ask.role, "draft": ask.seed, "model": self.keys.model_of(ask.role), "text": text}
            row["usage"] = [int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens")]
            with self._lock:
                self._shard.append([row])
                self._known[key] = row
                self.counts["bought"] += 1
        ask.known["used"].append([row["model"], *row["usage"]])
        return str(row["text"])

    def _body(self, ask: Ask) -> dict[str, Any]:
        form = (
            {"json_schema": {"name": ask.role, "schema": ask.schema}} if self.keys.structured == "json_schema" else {}
        )
        body: dict[str, Any] = {
            "model": self.keys.model_of(ask.role),
            "messages": [{"role": one.role, "content": one.content} for one in ask.messages],
            "temperature": self.keys.temperature,
            "max_tokens": self.keys.max_tokens,
            "seed": int(hashlib.sha256(ask.seed.encode()).hexdigest()[:7], 16),
        }
        return body | ({"response_format": {"type": self.keys.structured, **form}} if self.keys.structured else {})

    def _key(self, ask: Ask) -> str:
        return hashlib.sha256(dumps(self._body(ask)).encode()).hexdigest()

    def _buy(self, body: Mapping[str, Any]) -> tuple[str, Any]:
        for attempt in range(self.keys.retries + 1):
            self._wait_turn()
            try:
                return self._endpoint.chat(**body)
            except EndpointError as error:
                if error.status in REFUSALS and (self._known or self.counts["bought"]):
                    raise Refused("endpoint", str(error)) from None
                if not error.again or attempt == self.keys.retries:
                    raise self._stop(str(error)) from None
                asked = _seconds(error.retry_after)
                with self._lock:
                    self.counts["retries"] += 1
                    self._next = max(self._next, time.monotonic() + asked)  # it speaks to all threads
                self._stopped.wait(max(asked, min(30.0, 0.5 * 2**attempt) * random.uniform(0.75, 1)))
        raise AssertionError

    def _wait_turn(self) -> None:
        gap = 60.0 / self.keys.requests_per_minute if self.keys.requests_per_minute else 0.0
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + gap if gap or turn > time.monotonic() else self._next
        self._stopped.wait(max(0.0, turn - time.monotonic()))
        if self._stopped.is_set():
            raise Stopped(self._reason or "stopped")

    def _stop(self, reason: str = "stopped") -> Stopped:
        remedy = "Replies so far are kept, and the same command goes on from there"
        made = Stopped.at("data.base_url", self._endpoint.address, f"no reply can be had ({reason})", remedy)
        with self._lock:
            self._reason = self._reason or str(made)
        self._stopped.set()
        return made

    def draft(self, jobs: Sequence[Any], start: Start, sandboxes: "Sandboxes") -> list[dict[str, Any]]:
        """The rows of jobs, `concurrency` at a time. A request that is under way is waited for, since it is paid."""
        try:
            return list(self._pool.map(lambda job: drive(start(job, sandboxes.mine()), self.reply), jobs))
        except Exception as error:
            raise (Stopped(self._reason) if isinstance(error, Stopped) else error) from None
        except BaseException:  # a signal
            self._stop()
            raise

    def close(self) -> None:
        self._stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._file.release()


def _seconds(retry_after: str) -> float:
    """What a header Retry-After asks for, seconds or a date; 0 where it cannot be read."""
    with suppress(ValueError, TypeError, OverflowError):
        return min(LONGEST_WAIT, max(0.0, float(retry_after)))
    with suppress(ValueError, TypeError, OverflowError):
        return min(LONGEST_WAIT, max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time()))
    return 0.0


class Sandboxes:
    """A sandbox for each thread."""

    def __init__(self, hidden: Iterable[str]) -> None:
        self._hidden, self._local, self._every = tuple(hidden), threading.local(), list[Sandbox]()

    def mine(self) -> Sandbox:
        if not hasattr(self._local, "sandbox"):
            self._local.sandbox = Sandbox(self._hidden)
            self._every.append(self._local.sandbox)
        made: Sandbox = self._local.sandbox
        return made

    def close(self) -> None:
        for sandbox in self._every:
            sandbox.close()


class LocalModel:
    """A local model through an engine; all drafts of a wave go side by side."""

    def __init__(self, keys: Any) -> None:
        from ttpa.policy.policy import create_policy

        self._keys, self._policy = keys, create_policy(keys.spec, (), keys.seed)
        self._engine = keys.engine(policy=self._policy)
        self._sampling = Sampling(max_new_tokens=keys.max_tokens, temperature=keys.temperature)

    def draft(self, jobs: Sequence[Any], start: Start, sandboxes: Sandboxes) -> list[dict[str, Any]]:
        drafts = [start(job, sandboxes.mine()) for job in jobs]
        rows: list[dict[str, Any]] = [{}] * len(drafts)
        waiting: dict[int, Ask] = {}

        def go_on(at: int, step: Callable[[], Ask]) -> None:
            try:
                waiting[at] = step()
            except StopIteration as stop:
                waiting.pop(at, None)
                rows[at] = stop.value

        for at, draft in enumerate(drafts):
            go_on(at, lambda draft=draft: next(draft))  # type: ignore[misc]
        while waiting:
            asked = dict(waiting)
            for at, text in zip(asked, self._replies([*asked.values()]), strict=True):
                draft = drafts[at]
                if isinstance(text, Refused):
                    go_on(at, lambda draft=draft, text=text: draft.throw(text))  # type: ignore[misc]
                else:
                    go_on(at, lambda draft=draft, text=text: draft.send(text))  # type: ignore[misc]
        return rows

    def _replies(self, asks: Sequence[Ask]) -> list[str | Refused]:
        """A text for each ask, Refused where its prompt does not fit the model."""
        samples = [Sample(id=one.seed, source="", tools=(), messages=one.messages, target=()) for one in asks]
        room = self._policy.spec.max_tokens - self._keys.max_tokens
        found, prompts = dict[int, str | Refused](), dict[int, Sequence[int]]()
        for at, ids in enumerate(self._policy.renderer.try_prompts(samples)):
            if isinstance(ids, DataError):
                found[at] = Refused("endpoint", str(ids))
            elif len(ids) > room:
                found[at] = Refused("endpoint", f"the prompt has {len(ids)} tokens, and data.max_tokens leaves {room}")
            else:
                prompts[at] = ids
        self._engine.reset()
        seeds = [asks[at].seed for at in prompts]
        drawn = self._engine.generate([*prompts.values()], 1, self._sampling, seeds) if prompts else []
        for (at, given), (one,) in zip(prompts.items(), drawn, strict=True):
            found[at] = self._policy.renderer.text(one.token_ids)
            asks[at].known["used"].append([self._keys.model, len(given), len(one.token_ids)])
        return [found[at] for at in range(len(asks))]

    def close(self) -> None:
        self._engine.close()
