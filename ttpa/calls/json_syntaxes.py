"""The three syntaxes that write a call as a JSON object: `hermes`, `json` and `llama3_json`.

Common to them: an object needs "name" (text) and "arguments" (an object, or JSON text of one, which is read once more);
"parameters" is read as "arguments"; other members are skipped; duplicate keys are malformed. Every name and every
argument key and value round trips. The `call` span is the object itself, without tags. Arguments given as JSON text get
no key and value spans, since their characters are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ttpa.calls.base import Malformed, OnePassSyntax, Reading
from ttpa.calls.scanning import Scanner
from ttpa.calls.writing import write_value
from ttpa.records import ToolCall

_MARKER = re.compile(r"""\{\s*["'](?:name|arguments|parameters)["']\s*:""")


def _read_call(scan: Scanner, found: Reading) -> None:
    """Reads the call object at the cursor into `found`."""
    start = scan.pos
    name: str | None = None
    arguments: dict[str, Any] | None = None
    for key in scan.members():
        if key.text == "name":
            text = scan.string()
            found.mark("name", text.start, text.end)
            name = text.text
        elif key.text in ("arguments", "parameters"):
            if arguments is not None:
                raise Malformed("both arguments and parameters", key.start)
            arguments = _read_arguments(scan, found)
        else:
            scan.value(2)
    if name is None or arguments is None:
        raise Malformed('a call needs "name"' if name is None else 'a call needs "arguments"', start)
    found.finish(ToolCall(name=name, arguments=arguments), start, scan.pos)


def _read_arguments(scan: Scanner, found: Reading) -> dict[str, Any]:
    if scan.text.startswith('"', scan.pos):
        return _arguments_text(scan)
    arguments: dict[str, Any] = {}
    for key in scan.members():
        found.mark("key", key.start, key.end)
        start = scan.pos
        arguments[key.text] = scan.value()
        found.mark("value", start, scan.pos)
    return arguments


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


def _call_text(call: ToolCall, arguments_key: str = "arguments") -> str:
    return write_value({"name": call.name, arguments_key: call.arguments})


def _refuse_marker(text: str) -> None:
    """Text that does not begin as a call must not hold one further on."""
    hit = _MARKER.search(text)
    if hit is not None:
        raise Malformed("text before the calls", hit.start())


@dataclass(frozen=True, slots=True)
class HermesSyntax(OnePassSyntax):
    r"""`<tool_call>`, a JSON object, `</tool_call>`; any number of blocks, any text around them.

    Marker: `<tool_call>` or `</tool_call>`. A text without either holds no call. A block that is not closed, holds
    anything but one call object, or a closing tag without a block, is malformed. Tags inside argument strings are text.

    Example:
        >>> HermesSyntax().print([ToolCall(name="f", arguments={"a": 1})])
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    """

    name: ClassVar[str] = "hermes"
    _open: ClassVar[str] = "<tool_call>"
    _close: ClassVar[str] = "</tool_call>"

    def print(self, calls: Sequence[ToolCall]) -> str:
        """See `Syntax.print`. No calls give the empty text."""
        return "\n".join(f"{self._open}\n{_call_text(call)}\n{self._close}" for call in calls)

    def _read(self, text: str, found: Reading) -> None:
        scan = Scanner(text)
        while True:
            start = text.find(self._open, scan.pos)
            stray = text.find(self._close, scan.pos, len(text) if start < 0 else start)
            if stray >= 0:
                raise Malformed(f"{self._close} without {self._open}", stray)
            if start < 0:
                return
            scan.pos = start + len(self._open)
            scan.space()
            _read_call(scan, found)
            scan.space()
            scan.expect(self._close)


@dataclass(frozen=True, slots=True)
class JsonSyntax(OnePassSyntax):
    """A JSON list of call objects, and nothing around it; a single object is read as a list of one.

    Marker: a text that begins with `[` or `{`, or that holds `{"name":`, `{"arguments":` or `{"parameters":` anywhere
    (calls after an introduction or in a code fence are malformed, not plain text). Other text holds no call.

    Example:
        >>> JsonSyntax().parse('{"name": "f", "parameters": {"a": 1}}')
        (ToolCall(name='f', arguments={'a': 1}),)
    """

    name: ClassVar[str] = "json"

    def print(self, calls: Sequence[ToolCall]) -> str:
        """See `Syntax.print`. No calls give `[]`."""
        return _joined("[", (_call_text(call) for call in calls), ", ", "]")

    def _read(self, text: str, found: Reading) -> None:
        scan = Scanner(text)
        scan.space()
        if text.startswith("{", scan.pos):
            _read_call(scan, found)
        elif scan.take("["):
            scan.space()
            more = not scan.take("]")
            while more:
                _read_call(scan, found)
                scan.space()
                more = scan.expect(",", "]") == ","
                scan.space()
        else:
            _refuse_marker(text)
            return
        scan.space()
        if not scan.at_end():
            raise Malformed("text after the calls", scan.pos)


@dataclass(frozen=True, slots=True)
class Llama3JsonSyntax(OnePassSyntax):
    """`{"name": ..., "parameters": {...}}`, several separated by `;` or a line break; `<|python_tag|>` may come first.

    Marker: a text that begins with `{` or `<|python_tag|>`, or that holds `{"name":`, `{"arguments":` or
    `{"parameters":` anywhere. Other text holds no call; `[]` holds none either.

    Example:
        >>> Llama3JsonSyntax().print([ToolCall(name="f", arguments={"a": 1}), ToolCall(name="g")])
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'
    """

    name: ClassVar[str] = "llama3_json"
    _tag: ClassVar[str] = "<|python_tag|>"

    def print(self, calls: Sequence[ToolCall]) -> str:
        """See `Syntax.print`. No calls give the empty text."""
        return _joined("", (_call_text(call, "parameters") for call in calls), "; ", "")

    def _read(self, text: str, found: Reading) -> None:
        scan = Scanner(text)
        scan.space()
        if not scan.take(self._tag) and not text.startswith("{", scan.pos):
            _refuse_marker(text)
            return
        while True:
            scan.space()
            _read_call(scan, found)
            end = scan.pos
            scan.space()
            if scan.at_end():
                return
            if not scan.take(";") and "\n" not in text[end : scan.pos]:
                raise Malformed("expected ';' or a line break", scan.pos)


def _joined(before: str, texts: Iterable[str], between: str, after: str) -> str:
    return before + between.join(texts) + after
