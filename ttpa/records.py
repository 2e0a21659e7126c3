"""The nouns of the project: frozen dataclasses with a JSON round trip. Standard library only.

Tools and calls travel as JSON *text* inside a row, so that a columnar reader sees a string and never pads one tool's
schema with another tool's keys. Records do not validate calls (`ttpa.calls.schema`) and do not score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Any, ClassVar, Self

from ttpa.io import dumps


class Record:
    """The JSON round trip: keys are the fields in order, tuples are lists, inner records are objects."""

    __slots__ = ()
    AS_TEXT: ClassVar[tuple[str, ...]] = ()  # fields that are JSON text in a row
    READ: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}  # how a field is read, where it is not taken as it is

    def to_json(self) -> dict[str, Any]:
        fields: Any = self.__dataclass_fields__  # type: ignore[attr-defined]
        row = {name: _plain(getattr(self, name)) for name in fields}
        return row | {name: dumps(row[name]) for name in self.AS_TEXT if row[name] is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Keys that are no field are left out; a missing field is a KeyError."""
        names: Any = cls.__dataclass_fields__  # type: ignore[attr-defined]
        return cls(**{name: cls.READ[name](row[name]) if name in cls.READ else row[name] for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.to_json() if isinstance(value, Record) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec(Record):
    """One tool a model may call; `parameters` is a JSON Schema of type object. Specs are shared: never change one."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}, "required": []})

    @property
    def properties(self) -> Mapping[str, Any]:
        """Parameter name -> JSON Schema of that parameter."""
        return self.parameters.get("properties") or {}

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the parameters that must be given."""
        return tuple(self.parameters.get("required") or ())

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ToolSpec:
        return cls(name=row["name"], description=row.get("description") or "", parameters=row["parameters"])


def tools_to_text(tools: Iterable[ToolSpec]) -> str:
    """The tool list as one JSON text: an array of the specs in order."""
    return dumps(_plain(tuple(tools)))


@lru_cache(maxsize=4096)
def _tool_from_text(text: str) -> ToolSpec:
    return ToolSpec.from_json(json.loads(text))


@lru_cache(maxsize=4096)
def tools_from_text(text: str) -> tuple[ToolSpec, ...]:
    """Inverse of `tools_to_text`. Equal texts give the same (shared) objects."""
    return tuple(_tool_from_text(dumps(row)) for row in json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Record):
    """One call of one tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _calls(rows: Iterable[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(map(ToolCall.from_json, rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Record):
    """One turn of a dialogue. `role` is system, user, assistant or tool; an assistant turn holds text or calls."""

    role: str
    content: str = ""
    calls: tuple[ToolCall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content} | ({"calls": _plain(self.calls)} if self.calls else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Message:
        return cls(role=row["role"], content=row["content"], calls=_calls(row.get("calls", ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Record):
    """A prompt and what should follow: tools, messages so far, and the target (calls, or text when no call is wanted).

    `dialogue_id` is shared by the samples cut from one dialogue: statistics cluster on it, splits keep it together.
    `band` is easy, medium or hard; `tags` are free labels such as "unseen_tool".
    """

    AS_TEXT = ("tools", "target")
    READ = {
        "tags": tuple,
        "tools": tools_from_text,
        "messages": lambda rows: tuple(map(Message.from_json, rows)),
        "target": lambda text: _calls(json.loads(text)),
    }
    id: str
    dialogue_id: str = ""
    source: str
    band: str = ""
    tags: tuple[str, ...] = ()
    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    target: tuple[ToolCall, ...]
    target_text: str | None = None

    @property
    def kind(self) -> str:
        """ "call" when the target is a list of calls, "text" when it is a reply without a call."""
        return "call" if self.target else "text"

    @property
    def cluster(self) -> str:
        """The id that statistics cluster on."""
        return self.dialogue_id or self.id

    def tool(self, name: str) -> ToolSpec | None:
        """The tool of that exact name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Record):
    """One answer of a policy to one sample (`index` -1: the target itself).

    `token_ids` include the end-of-turn token of a finished answer; `logps` are natural logarithms under the sampling
    policy. `calls` is None when the text does not parse; `error` then says why. `branches` are (position, [(token id,
    probability), ...]) for each token at which the sampler had a choice.
    """

    AS_TEXT = ("calls",)
    READ = {
        "token_ids": tuple,
        "logps": tuple,
        "calls": lambda text: None if text is None else _calls(json.loads(text)),
        "branches": lambda rows: tuple((at, tuple((int(t), float(p)) for t, p in options)) for at, options in rows),
    }
    sample_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    calls: tuple[ToolCall, ...] | None = None
    error: str | None = None
    finish: str = "stop"
    branches: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Record):
    """What a candidate is worth: `value` in [0, 1], the parts it is made of, and one sentence for a person.

    `exact` says whether the calls equal the target's; scorers set it independently of `value`.
    """

    value: float
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    """A preferred and a rejected answer to one sample; `provenance` says which rule made the pair."""

    READ = {key: Candidate.from_json for key in ("chosen", "rejected")} | {
        key: Score.from_json for key in ("chosen_score", "rejected_score")
    }
    sample_id: str
    chosen: Candidate
    rejected: Candidate
    chosen_score: Score
    rejected_score: Score
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """Score of the chosen minus score of the rejected answer."""
        return self.chosen_score.value - self.rejected_score.value

    @property
    def branch(self) -> int:
        """Number of leading tokens the two answers share."""
        same = (a == b for a, b in zip(self.chosen.token_ids, self.rejected.token_ids, strict=False))
        return sum(takewhile(bool, same))

    def to_json(self) -> dict[str, Any]:
        return {"sample_id": self.sample_id, "margin": self.margin, "branch": self.branch, **Record.to_json(self)}
