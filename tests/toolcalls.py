"""Calls, tools, samples and answers in few words."""

from typing import Any

from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.records import Candidate, Sample, ToolCall, ToolSpec


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def spec(name: str, required: tuple[str, ...], **types: str) -> ToolSpec:
    properties = {key: {"type": kind} for key, kind in types.items()}
    return ToolSpec(name=name, parameters={"type": "object", "properties": properties, "required": list(required)})


def sample(*target: ToolCall, text: str | None = None, tools: tuple[ToolSpec, ...] = ()) -> Sample:
    return Sample(id="s", tools=tools, messages=(), target=target, target_text=text, source="test")


def answer(*calls: Any, parsed: bool = True) -> Candidate:
    return Candidate(sample_id="s", index=0, text="", calls=calls if parsed else None)


def parsed(text: str, syntax: str = "json") -> Candidate:
    """The answer of this text, with the calls that the syntax reads in it."""
    calls = get_syntax(syntax).parse(text)
    if isinstance(calls, ParseError):
        return Candidate(sample_id="s", index=0, text=text, error=calls.reason)
    return Candidate(sample_id="s", index=0, text=text, calls=calls)
