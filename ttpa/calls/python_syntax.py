"""The `python` syntax: `[Tool Name(a="x", b=1), pkg.other()]`, as in ToolACE and BFCL, read by a scanner of its own.

`ast.parse` is of no use here: real tool names hold spaces, slashes, commas, quotes and parentheses (`Search Strong's
Number API`, `1 Hour / Minutely Forecast (Nowcast)`), and text of a model must never reach an evaluator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttpa.calls.base import Malformed, OnePassSyntax, Reading
from ttpa.calls.scanning import Scanner
from ttpa.calls.writing import Style, write_value
from ttpa.errors import ConfigError
from ttpa.records import ToolCall

MAX_NAME_CHARS = 512
"""Longer tool names are malformed."""

_KEY = re.compile(r"""[^()\[\]{}=,"']*=(?!=)""")
_MARKER = re.compile(r"""\[[^()\[\]\n]*\((?:\s*\)|[^()\[\]{}=,"']*=(?!=))""")
_BARE_MARKER = re.compile(r"""[\s`]*(?:\w+[ \t\r]*\n\s*)?[\w./-][\w./ -]*\((?:\s*\)|[^()\[\]{}=,"']*=(?!=))""")
_SPREAD = re.compile(r"\s*\*\*\s*\{")
_LAST_CLOSE = re.compile(r"\]\s*\Z")
_NAME_STOP = re.compile(r"[()\r\n]")
_AFTER_CLOSE = re.compile(r"\s*[,\]]")
_EMPTY = re.compile(r"\s*\)")


@dataclass(frozen=True, slots=True)
class PythonSyntax(OnePassSyntax):
    r"""A list of calls with keyword arguments; `separator` is what is printed between arguments.

    Marker: a text that begins with `[`; or that holds, anywhere, `[`, a name, and an argument list that opens as one
    (`()` or `(key=`); or that begins with a name of word characters, spaces, `.`, `/`, `-` (after a code fence or not)
    and such an argument list. Of these only the bracketed list with nothing around it is well formed: a missing
    bracket, an introduction or a code fence make a `ParseError`. Other text holds no call, and neither does `[]`.

    Names: a name ends at the first `(` that opens an argument list, that is, before `)`, `key=` or `**{`. So names may
    hold spaces, dots, commas, quotes, brackets, and parentheses around anything else. These do not round trip: the
    empty name; one with white space at an end or a line break inside; one that begins with a comma, or is longer than
    512 characters; one that holds `()`, `(key=` or `(**{`, or a `(` and later a `)` that is followed by `,` or `]`
    (read as a positional argument).

    Values: Python and JSON literals mixed: strings in single, double or triple quotes (Python's escapes, JSON's
    surrogate pairs, raw control characters, the prefixes r and u), finite numbers, `true`/`True`, `false`/`False`,
    `null`/`None`, lists, tuples (read as lists), dicts (keys that are not text become text as in JSON). A bare
    identifier is text, as in the official BFCL decoder; arithmetic, which that decoder computes, is malformed here,
    like nested calls and positional arguments. Keys that cannot stand before `=` are written, and read, as
    `**{"odd (key)": 1}`.

    Example:
        >>> PythonSyntax().print([ToolCall(name="Get Data (v2)", arguments={"a": [1, True], "b": "x"})])
        '[Get Data (v2)(a=[1, True], b="x")]'
        >>> PythonSyntax(separator=",").print([ToolCall(name="f", arguments={"a": {"k": 1}, "b": 2})])
        '[f(a={"k":1},b=2)]'

    Raises:
        ConfigError: `separator` is neither ", " nor ",".
    """

    separator: str = ", "

    def __post_init__(self) -> None:
        if self.separator not in (", ", ","):
            problem, remedy = 'must be ", " or ","', 'Use "," for the compact form'
            raise ConfigError.at("separator", repr(self.separator), problem, remedy)

    @property
    def name(self) -> str:
        """`python`, or `python_compact` when nothing follows the commas."""
        return "python" if self.separator == ", " else "python_compact"

    def print(self, calls: Sequence[ToolCall]) -> str:
        """See `Syntax.print`. No calls give `[]`."""
        style = Style(self.separator, ":" + self.separator[1:], "True", "False", "None")
        return f"[{self.separator.join(self._call_text(call, style) for call in calls)}]"

    def _call_text(self, call: ToolCall, style: Style) -> str:
        parts = []
        for key, value in call.arguments.items():
            text = write_value(value, style)
            parts.append(f"{key}={text}" if _is_plain(key) else f"**{write_value({key: value}, style)}")
        return f"{call.name}({self.separator.join(parts)})"

    def _read(self, text: str, found: Reading) -> None:
        scan = Scanner(text, python=True)
        scan.space()
        if not scan.take("["):
            hit = _BARE_MARKER.match(text) or _MARKER.search(text)
            if hit is not None:
                raise Malformed("calls must stand in one list with nothing before it", hit.start())
            return
        scan.space()
        more = not _closes(scan)
        while more:
            self._read_call(scan, found)
            scan.space()
            more = scan.expect(",", "]") == ","
            scan.space()
            if more and _closes(scan):  # a trailing comma
                more = False
        scan.space()
        if not scan.at_end():
            raise Malformed("text after the calls", scan.pos)

    def _read_call(self, scan: Scanner, found: Reading) -> None:
        start = scan.pos
        opening = _find_opening(scan.text, start)
        name = scan.text[start:opening].rstrip()
        if not name or name.startswith(","):
            raise Malformed("expected a name", start)
        found.mark("name", start, start + len(name))
        scan.pos = opening + 1
        arguments: dict[str, Any] = {}
        scan.space()
        more = not scan.take(")")
        while more:
            _read_argument(scan, found, arguments)
            scan.space()
            more = scan.expect(",", ")") == ","
            if more:
                scan.space()
                more = not scan.take(")")  # a trailing comma
        found.finish(ToolCall(name=name, arguments=arguments), start, scan.pos)


def _closes(scan: Scanner) -> bool:
    """Moves over `]` if it ends the list: a bracket with text behind it may be part of a name."""
    return _LAST_CLOSE.match(scan.text, scan.pos) is not None and scan.take("]")


def _find_opening(text: str, start: int) -> int:
    """The parenthesis that opens the argument list of the call that begins at `start`.

    Linear: what is looked at behind a parenthesis ends at the next one.
    """
    limit = min(len(text), start + MAX_NAME_CHARS + 1)
    pos, opened = start, False
    while (hit := _NAME_STOP.search(text, pos, limit)) is not None:
        pos = hit.end()
        if hit.group() == "(":
            if _EMPTY.match(text, pos) or _key_at(text, pos) is not None or _SPREAD.match(text, pos):
                return hit.start()
            opened = True
        elif hit.group() == ")":
            if opened and _AFTER_CLOSE.match(text, pos):
                raise Malformed("arguments must be key=value", pos - 1)
        else:
            raise Malformed("line break in a name", hit.start())
    if limit < len(text):
        raise Malformed(f"name of more than {MAX_NAME_CHARS} characters", start)
    raise Malformed("expected an argument list, found the end", len(text))


def _key_at(text: str, pos: int) -> re.Match[str] | None:
    """The `key=` at `pos`, if there is one."""
    hit = _KEY.match(text, pos)
    return hit if hit is not None and _is_plain(hit.group()[:-1].strip()) else None


def _is_plain(key: str) -> bool:
    """Whether a key can stand before `=` and be read back."""
    return (
        bool(key)
        and key == key.strip()
        and not key.startswith("*")
        and "\n" not in key
        and _KEY.fullmatch(key + "=") is not None
    )


def _read_argument(scan: Scanner, found: Reading, arguments: dict[str, Any]) -> None:
    """Reads `key=value`, or `**{...}` with any number of keys."""
    if _SPREAD.match(scan.text, scan.pos):
        scan.pos += 2
        scan.space()
        for key in scan.members():
            _read_pair(scan, found, arguments, key.text, key.start, key.end)
        return
    hit = _key_at(scan.text, scan.pos)
    if hit is None:
        raise Malformed("arguments must be key=value", scan.pos)
    start = scan.pos
    text = hit.group()[:-1].rstrip()
    scan.pos = hit.end()
    scan.space()
    _read_pair(scan, found, arguments, text, start, start + len(text))


def _read_pair(scan: Scanner, found: Reading, arguments: dict[str, Any], key: str, start: int, end: int) -> None:
    if key in arguments:
        raise Malformed("duplicate key", start)
    found.mark("key", start, end)
    first = scan.pos
    arguments[key] = scan.value()
    found.mark("value", first, scan.pos)
