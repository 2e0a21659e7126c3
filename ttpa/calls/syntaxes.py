"""Seven ways to write tool calls: parse a text, print calls, mark the parts of a call, say whether a call is open.

A text that a model wrote is data: it parses, or it gives a `ParseError` value; nothing here raises for it. A thought,
`<think>...</think>`, counts as white space in every syntax. It ends with the text where it is not closed, and begins
with the text where it is not opened, as after a prompt that opens it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from ttpa.calls.literals import Key, Malformed, Scanner, write_value
from ttpa.errors import ConfigError
from ttpa.records import ToolCall

SpanKind = Literal["name", "key", "value", "call"]
_THOUGHT = r"(?is:<think>.*?(?:</think>|\Z))"
THOUGHT = re.compile(_THOUGHT)
_THOUGHT_END = re.compile("</think>", re.IGNORECASE)
_THOUGHT_OR_END = re.compile(f"{_THOUGHT}|(?i:(</think>))")


@dataclass(frozen=True, slots=True)
class ParseError:
    """Why a text that begins a call is malformed, and the character index at which that was noticed."""

    reason: str
    position: int

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}"


class Span(NamedTuple):
    """A part of a call: a name or key without quotes, a whole value, or the call without brackets, separators, tags."""

    kind: SpanKind
    start: int
    end: int


@dataclass(slots=True)
class Reader(Scanner):
    """A scanner that gathers the calls it has read and the parts of calls it has seen."""

    calls: list[ToolCall] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    error: ParseError | None = None

    def gap(self) -> None:
        """Moves over white space and thoughts."""
        self.space()
        while self.skip(THOUGHT):
            self.space()

    def said(self) -> str:
        """The text with blanks for thoughts."""
        return THOUGHT.sub(lambda hit: " " * len(hit[0]), self.text)

    def argument(self, arguments: dict[str, Any], key: Key) -> None:
        if key.text in arguments:
            raise Malformed("duplicate key", key.start)
        self.spans.append(Span("key", key.start, key.end))
        start = self.pos
        arguments[key.text] = self.value()
        self.spans.append(Span("value", start, self.pos))

    def positional(self, arguments: dict[str, Any]) -> None:
        """Meets something other than `key=value`; a reader of damaged text may mend it."""
        raise Malformed("arguments must be key=value", self.pos)

    def call(self, start: int, name: str, arguments: dict[str, Any]) -> None:
        self.spans.append(Span("call", start, self.pos))
        self.calls.append(ToolCall(name=name, arguments=arguments))


@dataclass(frozen=True, eq=False)
class Syntax:
    """A way to write tool calls as text.

    `print` writes what `parse` reads back; `read` raises `Malformed` at the first fault. `markers` open calls and close
    them, a closing bracket where the brackets match; with `prose`, calls may stand within other text.
    """

    name: str
    print: Callable[[Sequence[ToolCall]], str]
    read: Callable[[Reader], None]
    markers: Mapping[str, str]
    prose: bool = False

    def _read(self, text: str) -> Reader:
        reader = self._read_as_it_is(text)
        begun = max((hit.end() for hit in _THOUGHT_OR_END.finditer(text) if hit[1]), default=0)
        before = [span for span in reader.spans if span.start < begun]
        in_call = before and (before[-1].kind != "call" or before[-1].end > begun)  # in a string, that is
        return self._read_as_it_is(" " * begun + text[begun:]) if begun and not in_call else reader

    def _read_as_it_is(self, text: str) -> Reader:
        reader = Reader(text, python=self.name.startswith("python"))
        try:
            self.read(reader)
        except Malformed as fault:
            reader.error = ParseError(*fault.args)
        return reader

    def parse(self, text: str) -> tuple[ToolCall, ...] | ParseError:
        """The calls of an assistant turn, which may have none; a `ParseError` when one is begun and malformed."""
        reader = self._read(text)
        return reader.error or tuple(reader.calls)

    def spans(self, text: str) -> tuple[Span, ...]:
        """The parts of the calls, sorted by start, longer ones first. Malformed text is marked up to the fault."""
        return tuple(sorted(self._read(text).spans, key=lambda span: (span.start, -span.end)))


_KEYS = re.compile(r"""[{}]|["'](?:(name)|arguments|parameters)["']\s*:""")
_TAG = re.compile(f"{_THOUGHT}|<(/?)tool_call>")


def _read_object(scan: Reader) -> None:
    """Reads "name" (text) and "arguments" or "parameters" (an object, or JSON text of one, which gets no spans)."""
    scan.gap()
    start, name, arguments = scan.pos, None, None
    for key in scan.members():
        if key.text == "name":
            name, *place = scan.string()
            scan.spans.append(Span("name", *place))
        elif key.text not in ("arguments", "parameters"):
            scan.value(2)
        elif arguments is not None:
            raise Malformed("both arguments and parameters", key.start)
        elif scan.text.startswith('"', scan.pos):
            arguments = _arguments_text(scan)
        else:
            arguments = dict[str, Any]()
            for argument in scan.members():
                scan.argument(arguments, argument)
    if name is None or arguments is None:
        raise Malformed('a call needs "name"' if name is None else 'a call needs "arguments"', start)
    scan.call(start, name, arguments)
    scan.gap()


def _arguments_text(scan: Reader) -> dict[str, Any]:
    start = scan.pos
    inner = Scanner(scan.string().text)
    try:
        inner.space()
        arguments = {key.text: inner.value() for key in inner.members()}
        inner.finish("text after the object")
    except Malformed as fault:
        raise Malformed(f"arguments text: {fault.args[0]}", start) from None
    return arguments


def _refuse_object(text: str) -> None:
    """Text that does not begin as a call must hold none further on, after an introduction or in a code fence. What
    makes an object a call is a name beside arguments or parameters.
    """
    opened: list[tuple[int, set[str | None]]] = []  # of each open brace the place, and which of the two keys it has
    for hit in _KEYS.finditer(text):
        if hit[0] == "{":
            opened.append((hit.start(), set()))
        elif opened and hit[0] == "}":
            opened.pop()
        elif opened:
            start, keys = opened[-1]
            keys.add(hit[1])
            if len(keys) == 2:
                raise Malformed("text before the calls", start)


def _print_objects(
    calls: Sequence[ToolCall], *, item: str = "%s", comma: str = ", ", around: str = "%s", key: str = "arguments"
) -> str:
    texts = (write_value({"name": call.name, key: call.arguments}) for call in calls)
    return around % comma.join(item % text for text in texts) if calls or around == "[%s]" else ""


def _read_hermes(scan: Reader, lists: bool = False) -> None:
    """`<tool_call>`, a JSON object or with `lists` a list of them, `</tool_call>`, any number of times in any text."""
    while hit := _TAG.search(scan.text, scan.pos):
        if hit[1]:
            raise Malformed("</tool_call> without <tool_call>", hit.start())
        scan.pos = hit.end()
        if hit[1] is not None:
            scan.gap()
            if lists and scan.text.startswith("[", scan.pos):
                for _ in scan.items("[]"):
                    _read_object(scan)
                scan.gap()
            else:
                _read_object(scan)
            scan.expect("</tool_call>")


def _read_json(scan: Reader) -> None:
    """A JSON list of call objects, or one object, and nothing around it."""
    scan.gap()
    if scan.text.startswith("{", scan.pos):
        _read_object(scan)
    elif scan.text.startswith("[", scan.pos):
        for _ in scan.items("[]"):
            _read_object(scan)
    else:
        return _refuse_object(scan.said())
    scan.gap()
    scan.finish()


def _read_mistral(scan: Reader) -> None:
    """`[TOOL_CALLS]` and a JSON list of call objects."""
    scan.gap()
    if scan.take("[TOOL_CALLS]"):
        return _read_json(scan)
    if (late := scan.said().find("[TOOL_CALLS]")) >= 0:
        raise Malformed("text before the calls", late)
    _refuse_object(scan.said())


def _read_llama3(scan: Reader) -> None:
    """`{"name": ..., "parameters": {...}}`, several separated by `;` or a line break; `<|python_tag|>` may precede."""
    scan.gap()
    if not scan.take("<|python_tag|>") and not scan.text.startswith("{", scan.pos):
        return _refuse_object(scan.said())
    _read_object(scan)
    while not scan.at_end():
        if not scan.take(";") and "\n" not in scan.text[scan.spans[-1].end : scan.pos]:
            raise Malformed("expected ';' or a line break", scan.pos)
        _read_object(scan)


_KEY = re.compile(r"""[^()\[\]{}=,"']*=(?!=)""")
_ARGUMENTS = rf"\((?:\s*\)|{_KEY.pattern})"
_LIST = re.compile(rf"\[[^()\[\]\n]*{_ARGUMENTS}")
_BARE_CALL = re.compile(rf"[\s`]*(?:\w+[ \t\r]*\n\s*)?[\w./-][\w./ -]*{_ARGUMENTS}")
_SPREAD = re.compile(r"\*\*\s*(?=\{)")
_LAST_CLOSE = re.compile(rf"\](?:\s|{_THOUGHT})*+\Z")  # a bracket with text behind it may be part of a name
_NAME_STOP = re.compile(r"[()\r\n]")
_AFTER_CLOSE = re.compile(r"\s*[,\]]")
_OPENED = re.compile(r"\s*(?:\)|\*\*\s*\{)")


def _print_python(calls: Sequence[ToolCall], compact: bool = False) -> str:
    comma = "," if compact else ", "

    def argument(key: str, value: Any) -> str:
        if _is_plain(key):
            return f"{key}={write_value(value, python=True, compact=compact)}"
        return "**" + write_value({key: value}, python=True, compact=compact)

    texts = (f"{call.name}({comma.join(argument(*pair) for pair in call.arguments.items())})" for call in calls)
    return f"[{comma.join(texts)}]"


def _read_python(scan: Reader) -> None:
    """`[name(key=value, ...), ...]` and nothing around it: a list after an introduction or in a code fence, and a call
    without its brackets, are malformed; so are arithmetic, nested calls and positional arguments. A bare identifier is
    text, as in BFCL's decoder. Odd keys are written as `**{"odd (key)": 1}`.

    Names end at the first `(` before `)`, `key=` or `**{`. These do not round trip: an empty name; white space at an
    end, or a line break; a comma at the beginning; `()`, `(key=` or `(**{` inside, or a `(` and later a `)` before `,`
    or `]`.
    """
    scan.gap()
    if scan.text.startswith("[", scan.pos):
        for _ in scan.items("[]", _LAST_CLOSE):
            _read_python_call(scan)
        scan.gap()
        scan.finish()
    elif hit := _BARE_CALL.match(said := scan.said()) or _LIST.search(said):
        raise Malformed("calls must stand in one list with nothing before it", hit.start())


def _read_python_call(scan: Reader) -> None:
    start, opening = scan.pos, _find_opening(scan.text, scan.pos)
    name = scan.text[start:opening].rstrip()
    if not name or name.startswith(","):
        raise Malformed("expected a name", start)
    scan.spans.append(Span("name", start, start + len(name)))
    scan.pos = opening
    arguments: dict[str, Any] = {}
    for _ in scan.items("()"):
        if scan.skip(_SPREAD):  # **{...}, with any number of keys
            for member in scan.members():
                scan.argument(arguments, member)
        elif hit := _key_at(scan.text, scan.pos):
            key = hit[0][:-1].rstrip()
            scan.pos = hit.end()
            scan.space()
            scan.argument(arguments, Key(key, hit.start(), hit.start() + len(key)))
        else:
            scan.positional(arguments)
    scan.call(start, name, arguments)


def _find_opening(text: str, start: int) -> int:
    """The parenthesis that opens the argument list of the call that begins at `start`."""
    opened = False
    for hit in _NAME_STOP.finditer(text, start):
        if hit[0] == "(":
            if _OPENED.match(text, hit.end()) or _key_at(text, hit.end()):
                return hit.start()
            opened = True
        elif hit[0] != ")":
            raise Malformed("line break in a name", hit.start())
        elif opened and _AFTER_CLOSE.match(text, hit.end()):
            raise Malformed("arguments must be key=value", hit.start())
    raise Malformed("expected an argument list, found the end", len(text))


def _key_at(text: str, pos: int) -> re.Match[str] | None:
    hit = _KEY.match(text, pos)
    return hit if hit and _is_plain(hit[0][:-1].strip()) else None


def _is_plain(key: str) -> bool:
    """Whether a key can stand before `=` and be read back."""
    return key == key.strip() != "" and key[0] != "*" and "\n" not in key and _KEY.fullmatch(key + "=") is not None


_hermes = partial(_print_objects, item="<tool_call>\n%s\n</tool_call>", comma="\n")
_hermes_list = partial(_print_objects, around="<tool_call>[%s]</tool_call>")
_mistral = partial(_print_objects, around="[TOOL_CALLS] [%s]")
_llama3 = partial(_print_objects, comma="; ", key="parameters")
_ALL = (
    Syntax("hermes", _hermes, _read_hermes, {"<tool_call>": "</tool_call>"}, prose=True),
    Syntax("hermes_list", _hermes_list, partial(_read_hermes, lists=True), {"<tool_call>": "</tool_call>"}, prose=True),
    Syntax("mistral", _mistral, _read_mistral, {"[TOOL_CALLS]": "]"}),
    Syntax("json", partial(_print_objects, around="[%s]"), _read_json, {"[": "]", "{": "}"}),
    Syntax("python", _print_python, _read_python, {"[": "]"}),
    Syntax("python_compact", partial(_print_python, compact=True), _read_python, {"[": "]"}),
    Syntax("llama3_json", _llama3, _read_llama3, {"{": "}", "<|python_tag|>": "}"}),
)
SYNTAXES = {syntax.name: syntax for syntax in _ALL}


def get_syntax(name: str) -> Syntax:
    """The syntax of that name; ConfigError where there is none."""
    if name not in SYNTAXES:
        raise ConfigError.at("syntax", name, "no such call syntax", f"Use one of {', '.join(SYNTAXES)}")
    return SYNTAXES[name]


def token_cuts(
    pieces: Sequence[str], syntax: Syntax, kinds: Collection[SpanKind] = ("name", "value", "call")
) -> list[int]:
    """Where an answer, given as the texts of its tokens, can be cut right behind a part of a call of these kinds."""
    return cuts_behind(pieces, [span.end for span in syntax.spans("".join(pieces)) if span.kind in kinds])


def cuts_behind(pieces: Sequence[str], positions: Iterable[int]) -> list[int]:
    """Ascending counts of tokens: the fewest that hold the text up to a position, the count of all tokens left out."""
    ends = list(accumulate(map(len, pieces)))
    cuts = {bisect_left(ends, position) + 1 for position in positions}
    return sorted(cut for cut in cuts if cut < len(pieces))


_PART = re.compile(
    r"""("(?:[^"\\]|\\.)*+"|(?<![^\W_])'(?:[^'\\]|\\.)*+')|</tool_call>|[]{}[]|"|(?<![^\W_])'""", re.DOTALL
)
_OPENING = {"]": "[", "}": "{"}


class OpenCall:
    """Whether a call is open in a text that grows: from an opening marker of the syntax to its closing marker.

    It does not parse: brackets and tags in strings do not count, and a quote behind a letter (`Strong's`) opens no
    string. Nor do thoughts. Without prose, text before the first opening marker means that no call opens later.
    """

    def __init__(self, syntax: Syntax) -> None:
        self.inside, self._thinking, self._markers = False, False, syntax.markers
        before = ".*?" if syntax.prose else r"[ \t\r\n;]*"
        self._begin = re.compile(f"(?s:{before})(?:(?i:<think>)|({'|'.join(map(re.escape, syntax.markers))}))")
        self._text, self._pos = "", 0  # all text, and how far it is settled
        self._closing, self._depth = "", 0

    def push(self, text: str) -> None:
        self._text += text
        while hit := self._next():
            if not self.inside:
                self._thinking = hit.re is self._begin and not hit[1]
                if hit.lastindex:
                    self.inside, self._closing, self._depth = True, self._markers[hit[1]], int(len(hit[1]) == 1)
            elif (part := hit[0]) in ('"', "'"):  # a string that has not ended
                return
            elif len(self._closing) > 1:
                self.inside = part != self._closing
            elif part in "[]{}":
                self._depth += (part == _OPENING[self._closing]) - (part == self._closing)
                self.inside = self._depth > 0
            self._pos = hit.end()

    def _next(self) -> re.Match[str] | None:
        """What opens a call or ends a thought; in a call its next part."""
        if self.inside:
            return _PART.search(self._text, self._pos)
        begun = None if self._thinking else self._begin.match(self._text, self._pos)
        return begun or _THOUGHT_END.search(self._text, self._pos)
