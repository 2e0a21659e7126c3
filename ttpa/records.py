"""The nouns of the project: frozen dataclasses with a JSON round trip, which check nothing. Standard library only.

Tools and calls are JSON *text* in a row, so that a columnar reader never pads one tool's schema with another's keys.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Self

from ttpa.io import dumps


class Record:
    """The JSON round trip: keys are the fields in order, tuples are lists, inner records are objects."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    AS_TEXT: ClassVar[tuple[str, ...]] = ()  # fields that are JSON text in a row
    READ: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}  # how a field of records is read

    def to_json(self) -> dict[str, Any]:
        row = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return row | {name: dumps(row[name]) for name in self.AS_TEXT if row[name] is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Keys that are no field are left out; a missing field is a KeyError."""
        return cls(**{name: cls.READ.get(name, _tuples)(row[name]) for name in cls.__dataclass_fields__})

    @classmethod
    def many(cls, rows: str | Iterable[Mapping[str, Any]]) -> tuple[Self, ...]:
        """The records of a list, or of the JSON text of one."""
        return tuple(map(cls.from_json, json.loads(rows) if isinstance(rows, str) else rows))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.to_json() if isinstance(value, Record) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec(Record):
    """One tool a model may call; `parameters` is a JSON Schema of type object. Specs are shared: never change one."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}, "required": []})

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.parameters.get("properties") or {}

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required") or ())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(name=row["name"], description=row.get("description") or "", parameters=row["parameters"])


def tools_to_text(tools: Iterable[ToolSpec]) -> str:
    return dumps(_plain(tuple(tools)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Record):
    """One call of one tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Record):
    """One turn of a dialogue. `role` is system, user, assistant or tool; an assistant turn holds a thought, then text,
    then calls, or some of these. The results of several calls are as many tool turns, in the order of the calls.
    """

    role: str
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    thought: str = ""

    def to_json(self) -> dict[str, Any]:
        more = {"calls": _plain(self.calls), "thought": self.thought}
        return {"role": self.role, "content": self.content} | {key: one for key, one in more.items() if one}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        calls = ToolCall.many(row.get("calls", ()))
        return cls(role=row["role"], content=row["content"], calls=calls, thought=row.get("thought", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Record):
    """A prompt and what should follow: tools, messages so far, and the target: a thought, a text, calls. `target_text`
    is None where the target is calls alone, the text before the calls where it has both, else the reply in words.

    `dialogue_id` is shared by the samples cut from one dialogue: statistics cluster on it, splits keep it together.
    `band` is easy, medium or hard; `tags` are free labels such as "unseen_tool".
    """

    AS_TEXT = ("tools", "target")
    # Equal texts of tools give the same (shared) objects.
    READ = {"tools": lru_cache(maxsize=4096)(ToolSpec.many), "messages": Message.many, "target": ToolCall.many}
    id: str
    dialogue_id: str = ""
    source: str
    band: str = ""
    tags: tuple[str, ...] = ()
    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    target: tuple[ToolCall, ...]
    target_text: str | None = None
    target_thought: str = ""

    def to_json(self) -> dict[str, Any]:
        row = Record.to_json(self)
        return row if self.target_thought else {key: row[key] for key in row if key != "target_thought"}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return super(Sample, cls).from_json({"target_thought": "", **row})

    @property
    def kind(self) -> str:
        return "call" if self.target else "text"

    @property
    def cluster(self) -> str:
        return self.dialogue_id or self.id

    def tool(self, name: str) -> ToolSpec | None:
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Record):
    """One answer of a policy to one sample (`index` -1: the target itself).

    `token_ids` include the end-of-turn token of a finished answer; `logps` are natural logarithms under the sampling
    policy. `calls` is None when the text does not parse; `error` then says why. `branches` are (position, ((token id,
    probability), ...)) for each token at which the sampler had a choice.
    """

    AS_TEXT = ("calls",)
    READ = {"calls": lambda text: None if text is None else ToolCall.many(text)}
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
    """What a candidate is worth in [0, 1], the parts of that, and a sentence; `exact`: the calls equal the target's."""

    value: float
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""


def shared_tokens(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that two answers share."""
    both = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in both if one != other), min(len(left), len(right)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    """A preferred and a rejected answer to one sample; `provenance` says which rule made the pair."""

    READ = {"chosen": Candidate.from_json, "rejected": Candidate.from_json}
    READ |= {"chosen_score": Score.from_json, "rejected_score": Score.from_json}
    sample_id: str
    chosen: Candidate
    rejected: Candidate
    chosen_score: Score
    rejected_score: Score
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        return self.chosen_score.value - self.rejected_score.value

    @property
    def branch(self) -> int:
        return shared_tokens(self.chosen.token_ids, self.rejected.token_ids)

    def to_json(self) -> dict[str, Any]:
        return {"sample_id": self.sample_id, "margin": self.margin, "branch": self.branch, **Record.to_json(self)}
