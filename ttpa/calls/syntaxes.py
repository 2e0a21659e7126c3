"""Five ways to write tool calls: parse a text, print calls, mark the parts of a call, say whether a call is open.

A text that a model wrote is data: it parses, or it gives a `ParseError` value; nothing here raises for it. This module
does not hold calls against schemas (`ttpa.calls.schema`) and knows nothing of tokens (`ttpa.prompts`).

Example:
    >>> syntax = get_syntax("python")
    >>> syntax.parse('[Get Weather(city="Paris", days=2)]')
    (ToolCall(name='Get Weather', arguments={'city': 'Paris', 'days': 2}),)
    >>> syntax.parse("It rains in Paris."), syntax.parse('[Get Weather("Paris")]')
    ((), ParseError(reason='arguments must be key=value', position=20))
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ttpa.calls.literals import Key, Malformed, Scanner, write_value
from ttpa.errors import ConfigError
from ttpa.records import ToolCall

SpanKind = Literal["name", "key", "value", "call"]


@dataclass(frozen=True, slots=True)
class ParseError:
    """Why a text that begins a call is malformed, and the character index at which that was noticed."""

    reason: str
    position: int

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}"


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` (excluded) of a text are this part of a call.

    "name" and "key" leave quotes out; "value" is the whole literal, quotes included; "call" is the call from its first
    to its last character, without list brackets, separators or tags.
    """

    kind: SpanKind
    start: int
    end: int


class Reading:
    """What has been understood of a text so far."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.spans: list[Span] = []
        self.error: ParseError | None = None

    def mark(self, kind: SpanKind, start: int, end: int) -> None:
        self.spans.append(Span(kind, start, end))

    def add(self, name: str, arguments: Mapping[str, Any], start: int, end: int) -> None:
        """Adds a complete call."""
        self.mark("call", start, end)
        self.calls.append(ToolCall(name=name, arguments=arguments))


class Syntax(ABC):
    """A way to write tool calls as text. Syntaxes hold no state; `get_syntax` finds them by name.

    Attributes:
        markers: What opens calls, and what closes them; a closing bracket closes where the brackets match.
        prose: Whether calls may stand within other text.
    """

    name: str
    markers: ClassVar[Mapping[str, str]]
    prose: ClassVar[bool] = False

    @abstractmethod
    def print(self, calls: Sequence[ToolCall]) -> str:
        """Writes calls as text that `parse` reads back, except for the names that a class excludes.

        No calls give `[]` where a list stands around the calls, else the empty text.
        """

    @abstractmethod
    def _read(self, text: str, reading: Reading) -> None:
        """Reads a text; raises `Malformed` at the first fault."""

    def _reading(self, text: str) -> Reading:
        reading = Reading()
        try:
            self._read(text, reading)
        except Malformed as fault:
            reading.error = ParseError(fault.reason, fault.position)
        return reading

    def parse(self, text: str) -> tuple[ToolCall, ...] | ParseError:
        """The calls of an assistant turn; never raises.

        Returns:
            `()` when the text is an empty call list or holds no call at all (each class says how that is recognised); a
            `ParseError` when a call is begun and malformed.
        """
        reading = self._reading(text)
        return reading.error or tuple(reading.calls)

    def spans(self, text: str) -> tuple[Span, ...]:
        """The parts of the calls, sorted by start, longer ones first. Malformed text is marked up to the fault."""
        return tuple(sorted(self._reading(text).spans, key=lambda span: (span.start, -span.end)))


# --- calls as JSON objects -------------------------------------------------------------------------------------------

_OBJECT = re.compile(r"""\{\s*["'](?:name|arguments|parameters)["']\s*:""")


def _read_object(scan: Scanner, reading: Reading) -> None:
    """Reads a call object: "name" (text) and "arguments" or "parameters" (an object, or JSON text of one).

    Other members are skipped; duplicate keys are malformed. Arguments that are JSON text get no key and value spans,
    since their characters are escaped.
    """
    start = scan.pos
    name: str | None = None
    arguments: dict[str, Any] | None = None
    for key in scan.members():
        if key.text == "name":
            text = scan.string()
            reading.mark("name", text.start, text.end)
            name = text.text
        elif key.text not in ("arguments", "parameters"):
            scan.value(2)
        elif arguments is not None:
            raise Malformed("both arguments and parameters", key.start)
        elif scan.text.startswith('"', scan.pos):
            arguments = _arguments_text(scan)
        else:
            arguments = {}
            for argument in scan.members():
                _read_value(scan, reading, arguments, argument)
    if name is None or arguments is None:
        raise Malformed('a call needs "name"' if name is None else 'a call needs "arguments"', start)
    reading.add(name, arguments, start, scan.pos)


def _read_value(scan: Scanner, reading: Reading, arguments: dict[str, Any], key: Key) -> None:
    """Reads the value of an argument whose key has been read."""
    if key.text in arguments:
        raise Malformed("duplicate key", key.start)
    reading.mark("key", key.start, key.end)
    start = scan.pos
    arguments[key.text] = scan.value()
    reading.mark("value", start, scan.pos)


def _arguments_text(scan: Scanner) -> dict[str, Any]:
    start = scan.pos
    inner = Scanner(scan.string().text)
    try:
        inner.space()
        arguments = {key.text: inner.value() for key in inner.members()}
        inner.space()
    except Malformed as fault:
        raise Malformed(f"arguments text: {fault.reason}", start) from None
    if not inner.at_end():
        raise Malformed("arguments text: text after the object", start)
    return arguments


def _refuse_object(text: str) -> None:
    """Text that does not begin as a call must not hold one further on."""
    hit = _OBJECT.search(text)
    if hit is not None:
        raise Malformed("text before the calls", hit.start())


def _object_texts(calls: Sequence[ToolCall], key: str = "arguments") -> Iterator[str]:
    return (write_value({"name": call.name, key: call.arguments}) for call in calls)


class HermesSyntax(Syntax):
    r"""`<tool_call>`, a JSON object, `</tool_call>`; any number of blocks, any text around them.

    A text without either tag holds no call. A block that is not closed, holds anything but one call object, or a
    closing tag without a block, is malformed. Tags inside argument strings are text. Every name round trips.
    """

    name = "hermes"
    markers: ClassVar[Mapping[str, str]] = {"<tool_call>": "</tool_call>"}
    prose = True

    def print(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in _object_texts(calls))

    def _read(self, text: str, reading: Reading) -> None:
        scan = Scanner(text)
        while True:
            start = text.find("<tool_call>", scan.pos)
            stray = text.find("</tool_call>", scan.pos, len(text) if start < 0 else start)
            if stray >= 0:
                raise Malformed("</tool_call> without <tool_call>", stray)
            if start < 0:
                return
            scan.pos = start + len("<tool_call>")
            scan.space()
            _read_object(scan, reading)
            scan.space()
            scan.expect("</tool_call>")


class JsonSyntax(Syntax):
    """A JSON list of call objects, and nothing around it; a single object is read as a list of one.

    A text holds no call if it neither begins with `[` or `{` nor holds `{"name":`, `{"arguments":` or `{"parameters":`
    anywhere: calls after an introduction or in a code fence are malformed, not plain text. Every name round trips.
    """

    name = "json"
    markers: ClassVar[Mapping[str, str]] = {"[": "]", "{": "}"}

    def print(self, calls: Sequence[ToolCall]) -> str:
        return f"[{', '.join(_object_texts(calls))}]"

    def _read(self, text: str, reading: Reading) -> None:
        scan = Scanner(text)
        scan.space()
        if text.startswith("{", scan.pos):
            _read_object(scan, reading)
        elif scan.take("["):
            scan.space()
            more = not scan.take("]")
            while more:
                _read_object(scan, reading)
                scan.space()
                more = scan.expect(",", "]") == ","
                scan.space()
        else:
            return _refuse_object(text)
        scan.space()
        if not scan.at_end():
            raise Malformed("text after the calls", scan.pos)
        return None


class Llama3JsonSyntax(Syntax):
    """`{"name": ..., "parameters": {...}}`, several separated by `;` or a line break; `<|python_tag|>` may come first.

    A text holds no call if it neither begins with `{` or `<|python_tag|>` nor holds `{"name":`, `{"arguments":` or
    `{"parameters":` anywhere. `[]` holds none either. Every name round trips.
    """

    name = "llama3_json"
    markers: ClassVar[Mapping[str, str]] = {"{": "}", "<|python_tag|>": "}"}

    def print(self, calls: Sequence[ToolCall]) -> str:
        return "; ".join(_object_texts(calls, "parameters"))

    def _read(self, text: str, reading: Reading) -> None:
        scan = Scanner(text)
        scan.space()
        if not scan.take("<|python_tag|>") and not text.startswith("{", scan.pos):
            return _refuse_object(text)
        while True:
            scan.space()
            _read_object(scan, reading)
            end = scan.pos
            scan.space()
            if scan.at_end():
                return None
            if not scan.take(";") and "\n" not in text[end : scan.pos]:
                raise Malformed("expected ';' or a line break", scan.pos)


# --- calls as Python -------------------------------------------------------------------------------------------------

_KEY = re.compile(r"""[^()\[\]{}=,"']*=(?!=)""")
_ARGUMENTS = rf"\((?:\s*\)|{_KEY.pattern})"
_LIST = re.compile(rf"\[[^()\[\]\n]*{_ARGUMENTS}")
_BARE_CALL = re.compile(rf"[\s`]*(?:\w+[ \t\r]*\n\s*)?[\w./-][\w./ -]*{_ARGUMENTS}")
_SPREAD = re.compile(r"\s*\*\*\s*\{")
_LAST_CLOSE = re.compile(r"\]\s*\Z")
_NAME_STOP = re.compile(r"[()\r\n]")
_AFTER_CLOSE = re.compile(r"\s*[,\]]")
_EMPTY = re.compile(r"\s*\)")


@dataclass(frozen=True, slots=True)
class PythonSyntax(Syntax):
    r"""`[Tool Name(a="x", b=1), pkg.other()]`, as in ToolACE and BFCL; `compact` prints no spaces behind commas.

    `ast` cannot read it: tool names hold spaces, slashes and parentheses (`1 Hour / Minutely Forecast (Nowcast)`).
    Well formed is one bracketed list and nothing around it. A list after an introduction or in a code fence, and a call
    that lacks its brackets, are malformed; other text holds no call.

    Names end at the first `(` that opens an argument list, that is, before `)`, `key=` or `**{`. These do not round
    trip: an empty name; white space at an end, or a line break; a comma at the beginning; `()`, `(key=` or `(**{`
    inside, or a `(` and later a `)` that is followed by `,` or `]` (read as a positional argument).

    Values are Python and JSON literals mixed (see `Scanner`). A bare identifier is text, as in the official BFCL
    decoder; arithmetic, which that decoder computes, is malformed, like nested calls and positional arguments. Keys
    that cannot stand before `=` are written, and read, as `**{"odd (key)": 1}`.
    """

    compact: bool = False
    markers: ClassVar[Mapping[str, str]] = {"[": "]"}

    @property
    def name(self) -> str:  # type: ignore[override]
        return "python_compact" if self.compact else "python"

    def print(self, calls: Sequence[ToolCall]) -> str:
        return f"[{self._comma.join(map(self._call_text, calls))}]"

    @property
    def _comma(self) -> str:
        return "," if self.compact else ", "

    def _call_text(self, call: ToolCall) -> str:
        parts = []
        for key, value in call.arguments.items():
            plain = _is_plain(key)
            text = write_value(value if plain else {key: value}, python=True, compact=self.compact)
            parts.append(f"{key}={text}" if plain else f"**{text}")
        return f"{call.name}({self._comma.join(parts)})"

    def _read(self, text: str, reading: Reading) -> None:
        scan = Scanner(text, python=True)
        scan.space()
        if not scan.take("["):
            hit = _BARE_CALL.match(text) or _LIST.search(text)
            if hit is not None:
                raise Malformed("calls must stand in one list with nothing before it", hit.start())
            return
        scan.space()
        more = not _take_last_bracket(scan)
        while more:
            _read_python_call(scan, reading)
            scan.space()
            more = scan.expect(",", "]") == ","
            scan.space()
            more = more and not _take_last_bracket(scan)  # a trailing comma
        if not scan.at_end():
            raise Malformed("text after the calls", scan.pos)


def _take_last_bracket(scan: Scanner) -> bool:
    """Moves over `]` if it ends the text: a bracket with text behind it may be part of a name."""
    hit = _LAST_CLOSE.match(scan.text, scan.pos)
    if hit is not None:
        scan.pos = hit.end()
    return hit is not None


def _read_python_call(scan: Scanner, reading: Reading) -> None:
    start = scan.pos
    opening = _find_opening(scan.text, start)
    name = scan.text[start:opening].rstrip()
    if not name or name.startswith(","):
        raise Malformed("expected a name", start)
    reading.mark("name", start, start + len(name))
    scan.pos = opening + 1
    arguments: dict[str, Any] = {}
    scan.space()
    while not scan.take(")"):
        _read_argument(scan, reading, arguments)
        scan.space()
        if scan.expect(",", ")") == ")":
            break
        scan.space()
    reading.add(name, arguments, start, scan.pos)


def _find_opening(text: str, start: int) -> int:
    """The parenthesis that opens the argument list of the call that begins at `start`."""
    pos, opened = start, False
    while (hit := _NAME_STOP.search(text, pos)) is not None:
        pos = hit.end()
        if hit[0] == "(":
            if _EMPTY.match(text, pos) or _key_at(text, pos) is not None or _SPREAD.match(text, pos):
                return hit.start()
            opened = True
        elif hit[0] != ")":
            raise Malformed("line break in a name", hit.start())
        elif opened and _AFTER_CLOSE.match(text, pos):
            raise Malformed("arguments must be key=value", pos - 1)
    raise Malformed("expected an argument list, found the end", len(text))


def _key_at(text: str, pos: int) -> re.Match[str] | None:
    """The `key=` at `pos`, if there is one."""
    hit = _KEY.match(text, pos)
    return hit if hit is not None and _is_plain(hit[0][:-1].strip()) else None


def _is_plain(key: str) -> bool:
    """Whether a key can stand before `=` and be read back."""
    unchanged = bool(key) and key == key.strip() and not key.startswith("*") and "\n" not in key
    return unchanged and _KEY.fullmatch(key + "=") is not None


def _read_argument(scan: Scanner, reading: Reading, arguments: dict[str, Any]) -> None:
    """Reads `key=value`, or `**{...}` with any number of keys."""
    if _SPREAD.match(scan.text, scan.pos):
        scan.pos += 2
        scan.space()
        for key in scan.members():
            _read_value(scan, reading, arguments, key)
        return
    hit = _key_at(scan.text, scan.pos)
    if hit is None:
        raise Malformed("arguments must be key=value", scan.pos)
    text = hit[0][:-1].rstrip()
    scan.pos = hit.end()
    scan.space()
    _read_value(scan, reading, arguments, Key(text, hit.start(), hit.start() + len(text)))


# --- by name; calls that are being written ---------------------------------------------------------------------------

SYNTAXES: Mapping[str, Syntax] = MappingProxyType(
    {
        syntax.name: syntax
        for syntax in (HermesSyntax(), JsonSyntax(), PythonSyntax(), PythonSyntax(compact=True), Llama3JsonSyntax())
    }
)
"""Every syntax by name."""


def get_syntax(name: str) -> Syntax:
    """The syntax of that name: hermes, json, python, python_compact or llama3_json.

    Raises:
        ConfigError: there is no such syntax.
    """
    if name not in SYNTAXES:
        raise ConfigError.at("syntax", name, "no such call syntax", f"Use one of {', '.join(SYNTAXES)}")
    return SYNTAXES[name]


def token_cuts(
    pieces: Sequence[str], syntax: Syntax, kinds: Collection[SpanKind] = ("name", "value", "call")
) -> list[int]:
    """Where an answer can be cut between tokens so that a part of a call has just ended.

    An unfinished answer is cut where it has ended parts so far, a malformed one where it had before the fault.

    Args:
        pieces: The texts of its tokens, some perhaps empty.
        syntax: How its calls are written.
        kinds: The parts to cut behind.

    Returns:
        Counts of tokens, ascending, each once: for each part, the fewest tokens that hold it to its end. The count of
        all tokens is left out.

    Example:
        >>> token_cuts(["[", "f", "(a", "=1", ", b", "=2", ")", "]"], PythonSyntax())
        [2, 4, 6, 7]
    """
    ends = list(accumulate(map(len, pieces)))
    spans = syntax.spans("".join(pieces))
    cuts = {bisect_left(ends, span.end) + 1 for span in spans if span.kind in kinds}
    return sorted(cut for cut in cuts if cut < len(pieces))


class OpenCall:
    """Whether a call is open in a text that grows: from an opening marker of the syntax to its closing marker.

    It looks for markers and does not parse, so a malformed call stays open until its brackets match. Brackets and tags
    in strings do not count; a quote behind a letter or digit, as in `Strong's`, opens no string. An answer that begins
    with anything but an opening marker opens no call later, unless the syntax allows prose.

    Example:
        >>> call = OpenCall(PythonSyntax())
        >>> [call.push(piece) or call.inside for piece in ("[f(ci", "ty=']'", ")", "]", " so")]
        [True, True, True, False, False]
    """

    def __init__(self, syntax: Syntax) -> None:
        self.inside = False
        self._syntax = syntax
        self._over = False  # whether no call can be opened any more
        self._tail = ""  # the last characters, as far as they may be part of a marker
        self._closing = ""
        self._depth = 0
        self._quote = ""

    def push(self, text: str) -> None:
        """Takes the next characters."""
        for char in text:
            if self.inside:
                self._within(char)
            elif not self._over:
                self._before(char)

    def _before(self, char: str) -> None:
        tail, prose = self._tail + char, self._syntax.prose
        self._tail = tail[-16:] if prose else tail.lstrip(" \t\r\n;")
        for opening, closing in self._syntax.markers.items():
            if self._tail.endswith(opening) if prose else self._tail == opening:
                self.inside, self._tail, self._closing = True, "", closing
                self._depth, self._quote = int(len(opening) == 1), ""
        self._over = not prose and not any(opening.startswith(self._tail) for opening in self._syntax.markers)

    def _within(self, char: str) -> None:
        before, self._tail = self._tail, (self._tail + char)[-16:]
        if self._quote:
            if before[-1:] == "\\":
                self._tail = ""  # the character is escaped, and is no backslash that escapes the next one
            elif char == self._quote:
                self._quote = ""
        elif char == '"' or (char == "'" and not before[-1:].isalnum()):
            self._quote = char
        elif len(self._closing) > 1:
            self.inside = not self._tail.endswith(self._closing)
        elif char in "[]{}":
            same = {"]": "[]", "}": "{}"}[self._closing]
            self._depth += (char == same[0]) - (char == same[1])
            self.inside = self._depth > 0
        if not self.inside:
            self._tail = ""
