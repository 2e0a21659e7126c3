"""The nouns of the project: frozen dataclasses with a JSON round trip. Standard library only.

What these records do not do: validate a call against a schema (`ttpa.calls.schema`), render a prompt
(`ttpa.prompts`) or score (`ttpa.explore.scorers`). Tools travel as JSON *text* inside a row, so a columnar reader sees a
string and can never pad one tool's schema with another tool's keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ttpa.io import dumps


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool a model may call.

    `parameters` is a JSON Schema of type object; read-only by convention (specs are shared between samples).

    Example:
        >>> schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        >>> ToolSpec(name="get_weather", parameters=schema).required
        ('city',)
    """

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
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ToolSpec:
        return cls(name=row["name"], description=row.get("description") or "", parameters=row["parameters"])


@lru_cache(maxsize=4096)
def _tool_from_text(text: str) -> ToolSpec:
    return ToolSpec.from_json(json.loads(text))


def tools_to_text(tools: Iterable[ToolSpec]) -> str:
    """The tool list as one JSON text: an array whose elements are the specs in order."""
    return "[" + ",".join(dumps(tool.to_json()) for tool in tools) + "]"


@lru_cache(maxsize=4096)
def tools_from_text(text: str) -> tuple[ToolSpec, ...]:
    """Inverse of `tools_to_text`. Equal texts give the same (shared) objects."""
    return tuple(_tool_from_text(dumps(row)) for row in json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of one tool.

    Example:
        >>> ToolCall(name="get_weather", arguments={"city": "Paris"}).to_json()
        {'name': 'get_weather', 'arguments': {'city': 'Paris'}}
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ToolCall:
        return cls(name=row["name"], arguments=row["arguments"])


def _calls(rows: Iterable[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall.from_json(row) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a dialogue. `role` is system, user, assistant or tool; an assistant turn holds text or calls.

    Example:
        >>> Message(role="user", content="Weather in Paris?").to_json()
        {'role': 'user', 'content': 'Weather in Paris?'}
    """

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
    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    target: tuple[ToolCall, ...]
    source: str
    target_text: str | None = None
    dialogue_id: str = ""
    band: str = ""
    tags: tuple[str, ...] = ()

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
            "id": self.id,
            "dialogue_id": self.dialogue_id,
            "source": self.source,
            "band": self.band,
            "tags": list(self.tags),
            "tools": tools_to_text(self.tools),
            "messages": [message.to_json() for message in self.messages],
            "target": dumps([call.to_json() for call in self.target]),
            "target_text": self.target_text,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        return cls(
            id=row["id"],
            dialogue_id=row["dialogue_id"],
            source=row["source"],
            band=row["band"],
            tags=tuple(row["tags"]),
            tools=tools_from_text(row["tools"]),
            messages=tuple(Message.from_json(message) for message in row["messages"]),
            target=_calls(json.loads(row["target"])),
            target_text=row["target_text"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer of a policy to one sample.

    `token_ids` are the sampled tokens, end-of-turn included when the answer was finished; `logps` their natural-log
    probabilities under the sampling policy. `calls` is None when the text does not parse, and `error` then says why.
    `index` is the number of the candidate, or -1 for the target itself. `branches` lists the token positions at which
    a sampler had more than one choice, as (position, [(token id, probability), ...]).

    Example:
        >>> Candidate(sample_id="a", index=0, text="[f()]", calls=(ToolCall(name="f"),)).error is None
        True
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
            "sample_id": self.sample_id,
            "index": self.index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "logps": list(self.logps),
            "calls": None if self.calls is None else dumps([call.to_json() for call in self.calls]),
            "error": self.error,
            "finish": self.finish,
            "branches": [[at, [list(option) for option in options]] for at, options in self.branches],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidate:
        return cls(
            sample_id=row["sample_id"],
            index=row["index"],
            text=row["text"],
            token_ids=tuple(row["token_ids"]),
            logps=tuple(row["logps"]),
            calls=None if row["calls"] is None else _calls(json.loads(row["calls"])),
            error=row["error"],
            finish=row["finish"],
            branches=tuple((at, tuple((int(t), float(p)) for t, p in options)) for at, options in row["branches"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a candidate is worth: `value` in [0, 1], the parts it is made of, and one sentence for a person.

    `exact` says whether the calls equal the target's; scorers set it independently of `value`.

    Example:
        >>> Score(value=0.9, exact=False, detail={"name": 1.0, "value": 0.5}, explanation="1 of 2 values differ").value
        0.9
    """

    value: float
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "exact": self.exact, "detail": dict(self.detail), "explanation": self.explanation}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Score:
        return cls(value=row["value"], exact=row["exact"], detail=row["detail"], explanation=row["explanation"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A preferred and a rejected answer to one sample.

    `ref_logps` are the summed log-probs (chosen, rejected) under the reference policy, None until they are computed
    with the training forward. `provenance` says which rule made the pair.

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
    ref_logps: tuple[float, float] | None = None

    @property
    def margin(self) -> float:
        """Score of the chosen minus score of the rejected answer."""
        return self.chosen_score.value - self.rejected_score.value

    @property
    def branch(self) -> int:
        """Number of leading tokens the two answers share."""
        ids = zip(self.chosen.token_ids, self.rejected.token_ids, strict=False)
        shared = 0
        for left, right in ids:
            if left != right:
                break
            shared += 1
        return shared

    def with_reference(self, chosen: float, rejected: float) -> Pair:
        """The same pair with the reference policy's summed log-probs."""
        return replace(self, ref_logps=(chosen, rejected))

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
            "ref_logps": None if self.ref_logps is None else list(self.ref_logps),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Pair:
        return cls(
            sample_id=row["sample_id"],
            chosen=Candidate.from_json(row["chosen"]),
            rejected=Candidate.from_json(row["rejected"]),
            chosen_score=Score.from_json(row["chosen_score"]),
            rejected_score=Score.from_json(row["rejected_score"]),
            provenance=row["provenance"],
            ref_logps=None if row["ref_logps"] is None else (row["ref_logps"][0], row["ref_logps"][1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All candidates of one sample with their scores, in candidate order.

    Example:
        >>> answer, score = Candidate(sample_id="a", index=0, text=""), Score(value=0.0, exact=False)
        >>> Group(sample_id="a", candidates=(answer,), scores=(score,)).rewards
        (0.0,)
    """

    sample_id: str
    candidates: tuple[Candidate, ...]
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Score values, in candidate order."""
        return tuple(score.value for score in self.scores)

    def to_json(self) -> dict[str, Any]:
        return {
            "sample_id": self.sample_id,
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "scores": [score.to_json() for score in self.scores],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Group:
        return cls(
            sample_id=row["sample_id"],
            candidates=tuple(Candidate.from_json(candidate) for candidate in row["candidates"]),
            scores=tuple(Score.from_json(score) for score in row["scores"]),
        )
