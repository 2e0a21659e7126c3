"""The nouns of the project: frozen dataclasses with a JSON round trip. Standard library only.

Tools and calls travel as JSON *text* inside a row, so that a columnar reader sees a string and never pads one tool's
schema with another tool's keys. Records do not validate calls (`ttpa.calls.schema`) and do not score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Any

from ttpa.io import dumps


def _values(record: Any) -> dict[str, Any]:
    """Field name -> value, in the order of the fields, which is the order of the JSON keys."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _fields(kind: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON row that are fields of the record; a missing one is a KeyError."""
    return {name: row[name] for name in kind.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
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

    def to_json(self) -> dict[str, Any]:
        return _values(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ToolSpec:
        return cls(name=row["name"], description=row.get("description") or "", parameters=row["parameters"])


def tools_to_text(tools: Iterable[ToolSpec]) -> str:
    """The tool list as one JSON text: an array of the specs in order."""
    return dumps([tool.to_json() for tool in tools])


@lru_cache(maxsize=4096)
def _tool_from_text(text: str) -> ToolSpec:
    return ToolSpec.from_json(json.loads(text))


@lru_cache(maxsize=4096)
def tools_from_text(text: str) -> tuple[ToolSpec, ...]:
    """Inverse of `tools_to_text`. Equal texts give the same (shared) objects."""
    return tuple(_tool_from_text(dumps(row)) for row in json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of one tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _values(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ToolCall:
        return cls(**_fields(cls, row))


def _calls_to_text(calls: Iterable[ToolCall]) -> str:
    return dumps([call.to_json() for call in calls])


def _calls(rows: Iterable[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall.from_json(row) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a dialogue. `role` is system, user, assistant or tool; an assistant turn holds text or calls."""

    role: str
    content: str = ""
    calls: tuple[ToolCall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            row["calls"] = [call.to_json() for call in self.calls]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Message:
        return cls(role=row["role"], content=row["content"], calls=_calls(row.get("calls", ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and what should follow: tools, messages so far, and the target (calls, or text when no call is wanted).

    `dialogue_id` is shared by the samples cut from one dialogue: statistics cluster on it, splits keep it together.
    `band` is easy, medium or hard; `tags` are free labels such as "unseen_tool".

    Example:
        >>> messages = (Message(role="user", content="hi"),)
        >>> Sample(id="a", tools=(), messages=messages, target=(), target_text="Hello", source="toy").kind
        'text'
    """

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

    def to_json(self) -> dict[str, Any]:
        return {
            **_values(self),
            "tags": list(self.tags),
            "tools": tools_to_text(self.tools),
            "messages": [message.to_json() for message in self.messages],
            "target": _calls_to_text(self.target),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        values = _fields(cls, row)
        values["tags"] = tuple(row["tags"])
        values["tools"] = tools_from_text(row["tools"])
        values["messages"] = tuple(Message.from_json(message) for message in row["messages"])
        values["target"] = _calls(json.loads(row["target"]))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer of a policy to one sample.

    Attributes:
        index: Number of the candidate, or -1 for the target itself.
        token_ids: The sampled tokens, with the end-of-turn token of a finished answer.
        logps: Natural-log probabilities of the tokens under the sampling policy.
        calls: None when the text does not parse; `error` then says why.
        branches: (position, [(token id, probability), ...]) for each token at which the sampler had a choice.
    """

    sample_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    calls: tuple[ToolCall, ...] | None = None
    error: str | None = None
    finish: str = "stop"
    branches: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **_values(self),
            "token_ids": list(self.token_ids),
            "logps": list(self.logps),
            "calls": None if self.calls is None else _calls_to_text(self.calls),
            "branches": [[at, [list(option) for option in options]] for at, options in self.branches],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidate:
        values = _fields(cls, row)
        values["token_ids"], values["logps"] = tuple(row["token_ids"]), tuple(row["logps"])
        values["calls"] = None if row["calls"] is None else _calls(json.loads(row["calls"]))
        values["branches"] = tuple(
            (at, tuple((int(t), float(p)) for t, p in options)) for at, options in row["branches"]
        )
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a candidate is worth: `value` in [0, 1], the parts it is made of, and one sentence for a person.

    `exact` says whether the calls equal the target's; scorers set it independently of `value`.
    """

    value: float
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**_values(self), "detail": dict(self.detail)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Score:
        return cls(**_fields(cls, row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A preferred and a rejected answer to one sample; `provenance` says which rule made the pair.

    Example:
        >>> good = Candidate(sample_id="a", index=0, text="[f()]", token_ids=(5, 6))
        >>> bad = Candidate(sample_id="a", index=1, text="[g()]", token_ids=(5, 7))
        >>> right, wrong = Score(value=1.0, exact=True), Score(value=0.25, exact=False)
        >>> pair = Pair(sample_id="a", chosen=good, rejected=bad, chosen_score=right, rejected_score=wrong)
        >>> pair.margin, pair.branch
        (0.75, 1)
    """

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
        return {
            "sample_id": self.sample_id,
            "margin": self.margin,
            "branch": self.branch,
            "chosen": self.chosen.to_json(),
            "rejected": self.rejected.to_json(),
            "chosen_score": self.chosen_score.to_json(),
            "rejected_score": self.rejected_score.to_json(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Pair:
        answers = {key: Candidate.from_json(row[key]) for key in ("chosen", "rejected")}
        scores = {key: Score.from_json(row[key]) for key in ("chosen_score", "rejected_score")}
        return cls(**_fields(cls, row) | answers | scores)
