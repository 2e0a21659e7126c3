"""What every call syntax has in common: the protocol, its result types and its limits.

A syntax reads text a model wrote, so nothing here raises for bad text: `parse` answers with a `ParseError` *value*, and
`spans` marks as much of the text as was understood. Reading is one pass for both; `Malformed` ends it early and never
leaves the package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from ttpa.records import ToolCall

MAX_CHARS = 1_000_000
"""Longer texts are answered with a `ParseError` without being read."""

SpanKind = Literal["name", "key", "value", "call"]


@dataclass(frozen=True, slots=True)
class ParseError:
    """Why a text that begins a call is not a well-formed one. A value, not an exception.

    Attributes:
        reason: what is wrong, a short phrase.
        position: the character index at which it was noticed.
    """

    reason: str
    position: int

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}"


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` (included) to `end` (excluded) of a text and the part of a call they are.

    Attributes:
        kind: "name" and "key" leave quotes out; "value" is the whole literal, quotes included; "call" is the call from
            its first to its last character, without list brackets, separators or tags.
        start: index of the first character.
        end: index after the last character.
        call_index: number of the call the span belongs to, from 0 in reading order.
    """

    kind: SpanKind
    start: int
    end: int
    call_index: int


@runtime_checkable
class Syntax(Protocol):
    """A way to write tool calls as text."""

    @property
    def name(self) -> str:
        """The name under which `get_syntax` finds it."""

    def parse(self, text: str) -> tuple[ToolCall, ...] | ParseError:
        """Reads the calls of a text; never raises.

        Args:
            text: an assistant turn, of any content and length.

        Returns:
            The calls in order; `()` when the text is an empty call list or clearly holds no call (each syntax documents
            its marker); a `ParseError` when a call was begun and is malformed.
        """

    def print(self, calls: Sequence[ToolCall]) -> str:
        """Writes calls as text; raises nothing for arguments made of JSON values, whatever their depth.

        Args:
            calls: the calls, in order.

        Returns:
            Text whose `parse` is `calls`, as far as the class says that names can round trip.
        """

    def spans(self, text: str) -> tuple[Span, ...]:
        """Marks the calls of a text and their parts; never raises.

        Args:
            text: an assistant turn. Of malformed text, the parts before the fault are marked.

        Returns:
            Spans by start; where two start together, the longer one first.
        """


class Malformed(Exception):
    """Ends a reading: the text is not a well-formed call. Internal."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position


@dataclass(slots=True)
class Reading:
    """What one pass over a text has found so far."""

    calls: list[ToolCall] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    error: ParseError | None = None

    def mark(self, kind: SpanKind, start: int, end: int) -> None:
        """Records a part of the call that is being read."""
        self.spans.append(Span(kind, start, end, len(self.calls)))

    def finish(self, call: ToolCall, start: int, end: int) -> None:
        """Records that the call being read is complete."""
        self.mark("call", start, end)
        self.calls.append(call)


class OnePassSyntax(ABC):
    """`parse` and `spans` on top of a single reader."""

    __slots__ = ()
    max_chars: ClassVar[int] = MAX_CHARS

    @abstractmethod
    def _read(self, text: str, found: Reading) -> None:
        """Reads a text into `found`; raises `Malformed` at the first fault."""

    def _reading(self, text: str) -> Reading:
        found = Reading()
        if len(text) > self.max_chars:
            found.error = ParseError(f"text longer than {self.max_chars} characters", self.max_chars)
            return found
        try:
            self._read(text, found)
        except Malformed as fault:
            found.error = ParseError(fault.reason, fault.position)
        return found

    def parse(self, text: str) -> tuple[ToolCall, ...] | ParseError:
        """See `Syntax.parse`."""
        found = self._reading(text)
        return tuple(found.calls) if found.error is None else found.error

    def spans(self, text: str) -> tuple[Span, ...]:
        """See `Syntax.spans`."""
        return tuple(sorted(self._reading(text).spans, key=lambda span: (span.start, -span.end)))
