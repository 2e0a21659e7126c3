"""A cursor over text that reads values: JSON, or Python literals with JSON's words mixed in. It never evaluates
anything.

Every step moves forward and nesting is bounded, so reading is linear in the text. Faults raise `Malformed`, which the
syntaxes turn into a `ParseError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ttpa.calls.base import Malformed
from ttpa.calls.writing import key_text

MAX_DEPTH = 64
"""Values nested deeper than this are malformed."""
MAX_DIGITS = 4300
"""Numbers of more characters than this are malformed (the interpreter's own limit for text to int)."""

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_PYTHON_SPACE = re.compile(r"\s*")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PYTHON_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)"
)
_WORD = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_STOP = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_PAIR = r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
_JSON_ESCAPE = re.compile(rf"{_PAIR}|\\u([0-9a-fA-F]{{4}})|\\(.|\Z)", re.DOTALL)
_PYTHON_ESCAPE = re.compile(
    rf"{_PAIR}|\\(?:u([0-9a-fA-F]{{4}})|x([0-9a-fA-F]{{2}})|U([0-9a-fA-F]{{8}}))|\\([0-7]{{1,3}})|\\(.|\Z)", re.DOTALL
)
_JSON_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PYTHON_SIMPLE = {**_JSON_SIMPLE, "'": "'", "a": "\a", "v": "\v", "\n": "", "/": "\\/"}
_JSON_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_PYTHON_WORDS: dict[str, Any] = {**_JSON_WORDS, "True": True, "False": False, "None": None}


class Key(NamedTuple):
    """A key and the characters it covers, quotes left out."""

    text: str
    start: int
    end: int


class Scanner:
    """A cursor (`pos`) over `text`.

    `python=False` reads strict JSON, except that strings may hold raw control characters. `python=True` also reads
    strings in single, double or triple quotes with Python's escapes and the prefixes r and u, Python's numbers, tuples
    (as lists), trailing commas, True, False, None, and bare (dotted) identifiers as text.
    """

    __slots__ = ("pos", "python", "text")

    def __init__(self, text: str, pos: int = 0, *, python: bool = False) -> None:
        self.text = text
        self.pos = pos
        self.python = python

    def space(self) -> None:
        """Moves over white space."""
        hit = (_PYTHON_SPACE if self.python else _JSON_SPACE).match(self.text, self.pos)
        self.pos = self.pos if hit is None else hit.end()

    def at_end(self) -> bool:
        """Whether no character is left."""
        return self.pos >= len(self.text)

    def take(self, token: str) -> bool:
        """Moves over `token` if it is next; says whether it was."""
        if self.text.startswith(token, self.pos):
            self.pos += len(token)
            return True
        return False

    def expect(self, *tokens: str) -> str:
        """Moves over the one of `tokens` that is next, and returns it."""
        for token in tokens:
            if self.take(token):
                return token
        wanted = " or ".join(repr(token) for token in tokens)
        raise Malformed(f"expected {wanted}" + (", found the end" if self.at_end() else ""), self.pos)

    def value(self, depth: int = 1) -> Any:
        """Reads the value at the cursor.

        Args:
            depth: how many containers the value stands in, plus one.
        """
        char = self.text[self.pos : self.pos + 1]
        if char == '"' or (char == "'" and self.python):
            return self.string().text
        if char and char in ("{[(" if self.python else "{["):
            if depth > MAX_DEPTH:
                raise Malformed(f"nested deeper than {MAX_DEPTH}", self.pos)
            if char == "{":
                return {key.text: self.value(depth + 1) for key in self.members()}
            return self._items(depth)
        return self._number_or_word()

    def members(self) -> Iterator[Key]:
        """Walks over the object at the cursor: yields each key with the cursor on its value, which the caller reads."""
        self.expect("{")
        self.space()
        seen: set[str] = set()
        if self.take("}"):
            return
        while True:
            start = self.pos
            key = self._key()
            if key.text in seen:
                raise Malformed("duplicate key", start)
            seen.add(key.text)
            self.space()
            self.expect(":")
            self.space()
            yield key
            self.space()
            if self.expect(",", "}") == "}":
                return
            self.space()
            if self.python and self.take("}"):
                return

    def string(self, *, raw: bool = False) -> Key:
        """Reads the string literal at the cursor; `raw` leaves backslashes alone."""
        start = self.pos
        quote = self.text[start : start + 1]
        if not quote or quote not in ("\"'" if self.python else '"'):
            raise Malformed("expected a string", start)
        fence = quote * 3 if self.python and self.text.startswith(quote * 3, start) else quote
        first = start + len(fence)
        end, escaped = self._string_end(first, fence)
        self.pos = end + len(fence)
        body = self.text[first:end]
        return Key(self._unescape(body, first) if escaped and not raw else body, first, end)

    def _string_end(self, pos: int, fence: str) -> tuple[int, bool]:
        """Where the closing quotes begin, and whether a backslash was seen."""
        stop, escaped = _STOP[fence[0]], False
        while (hit := stop.search(self.text, pos)) is not None:
            pos = hit.start()
            if hit.group() == "\\":
                escaped = True
                pos += 2
            elif self.text.startswith(fence, pos):
                return pos, escaped
            else:  # one or two quotes inside a triple-quoted string
                pos += 1
        raise Malformed("unterminated string", len(self.text))

    def _unescape(self, body: str, offset: int) -> str:
        def plain(hit: re.Match[str]) -> str:
            high, low = hit.group(1), hit.group(2)
            if high:  # a pair of surrogates is how JSON writes one character beyond the first plane
                return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
            digits, last = next((text for text in hit.groups()[2:-1] if text), None), hit.group(hit.re.groups)
            if digits is not None:
                code = int(digits, 8 if hit.lastindex == 6 and self.python else 16)
                if code <= 0x10FFFF:
                    return chr(code)
            elif last in simple:
                return simple[last]
            elif self.python and last not in ("", "x", "u", "U", "N"):  # unknown escapes stay as written, as in Python
                return "\\" + last
            raise Malformed("bad escape in a string", offset + hit.start())

        simple = _PYTHON_SIMPLE if self.python else _JSON_SIMPLE
        return (_PYTHON_ESCAPE if self.python else _JSON_ESCAPE).sub(plain, body)

    def _key(self) -> Key:
        """A key of an object. Python literals may have other keys than text; they become text as in `json.dumps`."""
        start = self.pos
        char = self.text[start : start + 1]
        if not self.python or char in ('"', "'"):
            return self.string()
        if char in ("{", "[", "("):
            raise Malformed("an object key must be a string", start)
        return Key(key_text(self._number_or_word()), start, self.pos)

    def _items(self, depth: int) -> Any:
        """A list; in Python also a tuple, which becomes a list, or a value in parentheses, which is that value."""
        close = {"[": "]", "(": ")"}[self.text[self.pos]]
        self.pos += 1
        self.space()
        items: list[Any] = []
        if self.take(close):
            return items
        while True:
            items.append(self.value(depth + 1))
            self.space()
            if self.expect(",", close) == close:
                return items[0] if close == ")" and len(items) == 1 else items
            self.space()
            if self.python and self.take(close):
                return items

    def _number_or_word(self) -> Any:
        start = self.pos
        hit = (_PYTHON_NUMBER if self.python else _JSON_NUMBER).match(self.text, start)
        if hit is not None:
            self.pos = hit.end()
            return _number(hit.group(), start)
        hit = _WORD.match(self.text, start)
        words = _PYTHON_WORDS if self.python else _JSON_WORDS
        if hit is None:
            raise Malformed("expected a value" + (", found the end" if self.at_end() else ""), start)
        word = hit.group()
        if word in words:
            self.pos = hit.end()
            return words[word]
        if not self.python or word in ("NaN", "Infinity"):
            raise Malformed("not a JSON value", start)
        self.pos = hit.end()
        if self.text[self.pos : self.pos + 1] in ("'", '"') and word in ("r", "R", "u", "U"):
            return self.string(raw=word in "rR").text
        return word


def _number(text: str, position: int) -> int | float:
    if len(text) > MAX_DIGITS:
        raise Malformed(f"number of more than {MAX_DIGITS} characters", position)
    try:
        if "x" in text or "X" in text or not re.search(r"[.eE]", text):
            return int(text, 0)
        number = float(text)
    except ValueError:
        raise Malformed("not a number", position) from None
    if not math.isfinite(number):
        raise Malformed("number out of range", position)
    return number
