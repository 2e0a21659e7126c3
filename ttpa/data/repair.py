r"""Calls whose nested arguments a conversion of the published text split at commas.

An argument that is a JSON container was cut at its first comma, and what stood before the cut was quoted like text:

    published  [plan(details={"id": "P1", "drugs": ["A", "B"]}, season="Winter")]
    damaged    [plan(details="{\"id\": \"P1\"", "drugs": ["A", "B"]}, season="Winter")]

The quoted text and the rest, up to the bracket that ends the container, must read as one JSON value, which replaces
both. Nothing is guessed: no bracket, quote or comma is added. The last argument of a call cannot be mended
(`[f(x="[\"a\"")]`): there the conversion lost the rest.
"""

import re

from ttpa.calls.literals import Malformed, Scanner, write_value
from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.records import ToolCall

MAX_REPAIRS = 32  # arguments mended in one turn at most: each costs two more readings of it
MAX_CHARS = 50_000  # longer turns are not mended
_SYNTAX = get_syntax("python")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|([\[{])|([\]}])', re.DOTALL)  # whole strings, so that theirs do not count


def parse_split(text: str) -> tuple[ToolCall, ...] | None:
    """The calls of a turn, after mending the split arguments at which the ordinary parser stops.
    None when something else is wrong with the turn too.
    """
    mended: str | None = text if len(text) <= MAX_CHARS else None
    for _ in range(MAX_REPAIRS + 1):
        parsed = _SYNTAX.parse(mended) if mended is not None else None
        if not isinstance(parsed, ParseError):
            return parsed
        mended = _mend(mended or "", parsed)
    return None


def _mend(text: str, fault: ParseError) -> str | None:
    """The text with the argument joined at which the parser stopped; None if that is no split argument."""
    values = [span for span in _SYNTAX.spans(text) if span.kind == "value"]
    start, end = (values[-1].start, values[-1].end) if values else (0, 0)
    if not text.startswith(('"{', '"['), start) or not text.startswith(", ", end) or fault.position != end + 2:
        return None
    try:
        head = Scanner(text[start:end]).string().text
        owed, _ = _walk(head, 0, 0)
        if not owed:
            return None
        left, stop = _walk(text, end, owed)
        whole = Scanner(head + text[end:stop])
        value = whole.value()
    except Malformed:
        return None
    return None if left or not whole.at_end() else text[:start] + write_value(value) + text[stop:]


def _walk(text: str, pos: int, depth: int) -> tuple[int, int]:
    """Counts brackets up to where none is open: how many are open there (or at the end), and the position behind."""
    for hit in _TOKEN.finditer(text, pos):
        if hit.group(1):
            depth += 1
        elif hit.group(2):
            depth -= 1
            if not depth:
                return 0, hit.end()
    return depth, len(text)
