"""A language model as judge, behind any OpenAI-style chat endpoint, with every verdict on disk.

A verdict is appended to a file under the hash of all that decides it (`Judge.key`) as soon as it is there: who runs
again asks only for what is missing. An endpoint that gives no chat completion stops the run.
"""

import hashlib
import json
import re
import threading
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from ttpa.benchmarks.toolbench.answers import ToolBenchAnswer
from ttpa.endpoint import Endpoint, EndpointError
from ttpa.errors import ConfigError, DataError
from ttpa.io import Shard, dumps
from ttpa.options import Count, Index, NonNegative, Positive

MAX_CHARS = {"query": 6000, "final": 6000, "step": 800, "tools": 12_000}  # a model wrote most of it
MAX_STEPS = 30
BRACES_TRIED = 32  # of a reply, from its end
CHOICES = {
    "status": ("solved", "unsure", "unsolved"),
    "task": ("solvable", "unsure", "unsolvable"),
    "better": ("a", "b", "tie"),
}
_MARKER = re.compile(r"<\s*(/?)\s*data\s*>", re.IGNORECASE)


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
        self.keys = keys
        self._shard = Shard(Path(keys.cache).expanduser(), key="key")
        try:
            self._known: dict[str, str | None] = {row["key"]: row["choice"] for row in self._shard.rows()}
        except (KeyError, DataError) as error:
            problem, remedy = f"holds what is no verdict ({error})", "Give a file of its own, or one that is not there"
            raise ConfigError.at("cache", keys.cache, problem, remedy) from None
        self._lock, self.stopped = threading.Lock(), False
        self._endpoint = Endpoint(keys.base_url, keys.api_key_env, keys.timeout_s, keys.retries, extra="judge")

    @property
    def requests(self) -> int:
        return self._endpoint.requests

    def key(self, question: Question, vote: int) -> str:
        """What a verdict is remembered under."""
        one = self.keys
        parts = [self._endpoint.address + "/chat/completions", one.model, one.temperature, one.max_tokens, vote]
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
            return self._endpoint.chat(
                model=self.keys.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=self.keys.temperature,
                max_tokens=self.keys.max_tokens,
                seed=vote,  # endpoints that take seeds give each vote its own
            )[0]
        except EndpointError as error:
            kept = f"Verdicts so far are in {self._shard.path}; run the same command to go on."
            where = f"base_url={self._endpoint.address}"
            raise DataError(f"{where}: the judge cannot be asked ({error}). {kept}") from None
