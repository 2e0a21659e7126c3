"""A language model as judge, behind any OpenAI-style chat endpoint, with every verdict on disk.

A verdict is appended to a file under the hash of all that decides it (`Judge.key`) as soon as it is there: who runs
again asks only for what is missing. An endpoint that gives no chat completion stops the run.
"""

import hashlib
import json
import os
import re
import threading
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic.dataclasses import dataclass

from ttpa.benchmarks.toolbench.answers import ToolBenchAnswer
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.options import Count, Index, NonNegative, Positive
from ttpa.run.waves import Shard

MAX_CHARS = {"query": 6000, "final": 6000, "step": 800, "tools": 12_000}  # a model wrote most of it
MAX_STEPS = 30
BRACES_TRIED = 32  # of a reply, from its end
CHOICES = {
    "status": ("solved", "unsure", "unsolved"),
    "task": ("solvable", "unsure", "unsolvable"),
    "better": ("a", "b", "tie"),
}
_MARKER = re.compile(r"<\s*(/?)\s*data\s*>", re.IGNORECASE)


def address(base_url: str) -> SplitResult:
    """The parts of an http address without a query, whose keys would stand in logs; a ConfigError for any other."""
    with suppress(ValueError):
        parts = urlsplit(base_url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query:
            return parts
    shown = re.sub("^(.*//)?.*@", r"\1***@", base_url).partition("?")[0]
    raise ConfigError.at("base_url", shown, "is no address for a judge", "Give http://HOST:PORT/v1, without a query")


class Question(NamedTuple):
    """What the judge is asked: a prompt, the field of its JSON reply that counts, and the values it may have."""

    prompt: str
    field: str
    choices: tuple[str, ...]


def question(field: str, *answers: ToolBenchAnswer) -> Question:
    """The question for the `status` of an answer, for whether its `task` can be solved, or for the `better` of two."""
    template = (resources.files("ttpa.benchmarks.toolbench") / "templates" / f"{field}.txt").read_text("utf-8")
    tools = "\n".join(_json(tool.to_json()) for tool in answers[0].tools) or "none listed"
    parts = {"query": quoted(answers[0].query, "query"), "tools": quoted(tools, "tools")}
    for name, answer in zip("ab", answers, strict=False):
        parts |= {f"steps_{name}": _steps(answer), f"final_{name}": quoted(answer.final_answer, "final")}
    return Question(template.removesuffix("\n").format(**parts), field, CHOICES[field])


def quoted(text: str, kind: str) -> str:
    """The text as it may stand between the markers <data> and </data>: without any of its own, cut at `MAX_CHARS`."""
    # UTF-8 has no half of a surrogate pair, which a model may write.
    text = _MARKER.sub(r"<\1data_>", text).encode("utf-8", "replace").decode()
    longest = MAX_CHARS[kind]
    return text if len(text) <= longest else f"{text[:longest]} [{len(text) - longest} characters cut]"


def _steps(answer: ToolBenchAnswer) -> str:
    shown = enumerate(answer.steps[:MAX_STEPS], 1)
    lines = [
        quoted(f"{at}. {call.name}({_json(call.arguments)}) -> {response}", "step") for at, (call, response) in shown
    ]
    lines += [f"[{len(answer.steps) - MAX_STEPS} more calls]"] * (len(answer.steps) > MAX_STEPS)
    return "\n".join(lines) or "none"


def _json(value: Any) -> str:
    try:
        return value if isinstance(value, str) else dumps(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


@dataclass(frozen=True, kw_only=True)
class JudgeKeys:
    """Who judges, and how patiently it is asked. The texts of these keys are in `ttpa score --help`."""

    base_url: str
    model: str
    api_key_env: str = ""
    temperature: NonNegative = 0.2
    max_tokens: Count = 512
    timeout_s: Positive = 60.0
    retries: Index = 4
    reasks: Index = 2
    cache: str = "toolbench_verdicts.jsonl"


def read_verdict(text: str, question: Question) -> str | None:
    """The choice in the judge's words, in any case, or None: a bare choice, or the last JSON object with the field,
    since a model may quote what it judges before it decides.
    """
    if (bare := text.strip().strip(".").lower()) in question.choices:
        return bare
    starts = [match.start() for match in re.finditer("{", text)][-BRACES_TRIED:]
    for at in reversed(starts):
        with suppress(ValueError, RecursionError):
            said = json.JSONDecoder().raw_decode(text, at)[0].get(question.field)
            if isinstance(said, str) and said.strip().lower() in question.choices:
                return said.strip().lower()
    return None


class Judge:
    """Asks an endpoint and remembers. Safe to use from several threads, by one process a cache. `requests` counts what
    was sent, retries included.
    """

    def __init__(self, keys: JudgeKeys) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(f"Judges need the package openai ({error}): pip install 'ttpa[judge]'.") from None
        self.keys, self.requests, self._openai = keys, 0, openai
        self._shard = Shard(Path(keys.cache).expanduser(), key="key")
        try:
            self._known: dict[str, str | None] = {row["key"]: row["choice"] for row in self._shard.rows()}
        except (KeyError, DataError) as error:
            problem, remedy = f"holds what is no verdict ({error})", "Give a file of its own, or one that is not there"
            raise ConfigError.at("cache", keys.cache, problem, remedy) from None
        self._lock, self.stopped = threading.Lock(), False
        name = keys.api_key_env
        self._api_key = os.environ.get(name, "").strip() if name else "none"  # openai always sends one
        if not self._api_key:
            raise ConfigError.at("api_key_env", name, "there is no such environment variable", "Set or omit it")
        parts = address(keys.base_url)
        self._address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        word = parts.password or parts.username or ""  # a token may stand in the place of the user
        self._secrets = [*filter(None, (word, unquote(word), self._api_key if name else ""))]
        # What is secret goes to this host alone: no redirect is followed, which is an error then, no proxy reads along,
        # and headers that the environment has for OpenAI stay at home.
        transport = openai.DefaultHttpxClient(
            follow_redirects=False, event_hooks={"request": [self._count]}, auth=login,
            mounts={"http://": None} if self._secrets else None,
        )  # fmt: skip
        with patch.dict(os.environ, OPENAI_CUSTOM_HEADERS=""):
            self._client = openai.OpenAI(
                base_url=self._address, api_key=self._api_key, timeout=keys.timeout_s, max_retries=keys.retries,
                http_client=transport,
            )  # fmt: skip

    def _count(self, _: object) -> None:
        with self._lock:
            self.requests += 1

    def key(self, question: Question, vote: int) -> str:
        """What a verdict is remembered under."""
        one = self.keys
        parts = [self._address + "/chat/completions", one.model, one.temperature, one.max_tokens, vote]
        return hashlib.sha256(dumps([*parts, *question]).encode()).hexdigest()

    def ask(self, question: Question, vote: int) -> str | None:
        """The verdict of one vote: a choice of the question, or None where no reply could be read. A DataError says why
        the endpoint gives none; what was judged so far is kept.
        """
        key = self.key(question, vote)
        choice = self._known.get(key)
        if choice is not None and choice not in question.choices:
            problem = f"holds {choice!r:.60} where one of {', '.join(question.choices)} belongs"
            raise ConfigError.at("cache", self._shard.path, problem, f"Remove the line of key {key}")
        if key in self._known:
            return choice
        asked = 0
        while choice is None and asked <= self.keys.reasks:
            choice, asked = read_verdict(self._reply(question.prompt, vote), question), asked + 1
        row = {"key": key, "model": self.keys.model, "vote": vote, "field": question.field}
        with self._lock:  # of two threads that ask the same, the first one's verdict stays
            self._shard.append([{**row, "choice": choice, "asked": asked}])
            return self._known.setdefault(key, choice)

    def _reply(self, prompt: str, vote: int) -> str:
        if self.stopped:
            raise DataError("the judge was stopped. Verdicts so far are kept; run the same command to go on.")
        try:
            completion = self._client.chat.completions.create(
                model=self.keys.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=self.keys.temperature,
                max_tokens=self.keys.max_tokens,
                seed=vote,  # endpoints that take seeds give each vote its own
            )
            text = completion.choices[0].message.content
        except self._openai.APIStatusError as error:
            raise self._failed(f"HTTP {error.status_code}: {error.response.text}") from None
        except self._openai.OpenAIError as error:
            raise self._failed(f"{error} {type(error.__cause__).__name__}") from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self._failed(f"no chat completion came back: {type(error).__name__}") from None
        return text if isinstance(text, str) else ""

    def _failed(self, reason: str) -> DataError:
        """The error for an endpoint that gives no reply; shows neither the key nor the password."""
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        reason = " ".join(reason.split())[:200]
        kept = f"Verdicts so far are in {self._shard.path}; run the same command to go on."
        return DataError(f"base_url={self._address}: the judge cannot be asked ({reason}). {kept}")
