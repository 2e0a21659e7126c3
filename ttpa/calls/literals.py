"""JSON values and Python literals as text: a scanner that reads both, and a writer. Nothing is ever evaluated.

Reading is linear in the text and bounds the nesting, so that code behind it may walk a value recursively. A fault
raises `Malformed`, which the syntaxes turn into a `ParseError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_DEPTH = 64
"""Values nested deeper are malformed; schemas are not read deeper."""

_SPACE = {False: re.compile(r"[ \t\n\r]*"), True: re.compile(r"\s*")}  # not Python, Python
_NUMBER = {
    False: re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"),
    True: re.compile(r"[+-]?(?:0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)"),
}
_WORD = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None} | _WORDS
_STRING = (
    {  # opening quotes -> the rest of the string, closing quotes included
        fence: re.compile(rf"((?:[^{fence[0]}\\]|\\.|{fence[0]}(?!{fence[1:]}))*+){fence}", re.DOTALL)
        for fence in ("'''", '"""')
    }
    | {quote: re.compile(rf"((?:[^{quote}\\]|\\.)*+){quote}", re.DOTALL) for quote in "'\""}
)
_PAIR = r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
_ESCAPE = {
    False: re.compile(rf"{_PAIR}|\\u([0-9a-fA-F]{{4}})|\\(.)", re.DOTALL),
    True: re.compile(
        rf"{_PAIR}|\\(?:u([0-9a-fA-F]{{4}})|x([0-9a-fA-F]{{2}})|U([0-9a-fA-F]{{8}})|([0-7]{{1,3}}))|\\(.)", re.DOTALL
    ),
}
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PYTHON_SIMPLE = _SIMPLE | {"'": "'", "a": "\a", "v": "\v", "\n": "", "/": "\\/"}


class Malformed(Exception):
    """The text is not well formed at `position`."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason, position)
        self.reason, self.position = reason, position


class Key(NamedTuple):
    """A string or an object key, and the characters it covers, quotes left out."""

    text: str
    start: int
    end: int


@dataclass(slots=True)
class Scanner:
    """A cursor (`pos`) over `text`.

    `python=False` reads strict JSON, except that strings may hold raw control characters. `python=True` also reads
    strings in single, double or triple quotes with Python's escapes and the prefixes r and u, Python's numbers, tuples
    (as lists), trailing commas, True, False, None, and bare (dotted) identifiers as text.
    """

    text: str
    pos: int = 0
    python: bool = False

    def space(self) -> None:
        """Moves over white space."""
        self.pos = _SPACE[self.python].match(self.text, self.pos).end()  # type: ignore[union-attr]  # always matches

    def at_end(self) -> bool:
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
        wanted = " or ".join(map(repr, tokens))
        raise Malformed(f"expected {wanted}" + (", found the end" if self.at_end() else ""), self.pos)

    def value(self, depth: int = 1) -> Any:
        """Reads the value at the cursor, which stands in `depth - 1` containers."""
        char = self.text[self.pos : self.pos + 1]
        if char == '"' or (char == "'" and self.python):
            return self.string().text
        if not char or char not in ("{[(" if self.python else "{["):
            return self._number_or_word()
        if depth > MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH}", self.pos)
        if char == "{":
            return {key.text: self.value(depth + 1) for key in self.members()}
        items: list[Any] = []
        close = "]" if char == "[" else ")"
        self.pos += 1
        self.space()
        while not ((self.python or not items) and self.take(close)):
            items.append(self.value(depth + 1))
            self.space()
            if self.expect(",", close) == close:
                return items[0] if close == ")" and len(items) == 1 else items
            self.space()
        return items

    def members(self) -> Iterator[Key]:
        """Walks over the object at the cursor: yields each key with the cursor on its value, which the caller reads."""
        self.expect("{")
        self.space()
        seen: set[str] = set()
        while not ((self.python or not seen) and self.take("}")):
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

    def _key(self) -> Key:
        """An object key. Python's may be numbers and words; they become text as in `json.dumps`."""
        start = self.pos
        char = self.text[start : start + 1]
        if not self.python or char in ('"', "'"):
            return self.string()
        if char in ("{", "[", "("):
            raise Malformed("an object key must be a string", start)
        return Key(key_text(self._number_or_word()), start, self.pos)

    def string(self, *, raw: bool = False) -> Key:
        """Reads the string literal at the cursor; `raw` leaves backslashes alone."""
        start = self.pos
        quote = self.text[start : start + 1]
        if not quote or quote not in ("\"'" if self.python else '"'):
            raise Malformed("expected a string", start)
        fence = quote * 3 if self.python and self.text.startswith(quote * 3, start) else quote
        hit = _STRING[fence].match(self.text, start + len(fence))
        if hit is None:
            raise Malformed("unterminated string", len(self.text))
        self.pos = hit.end()
        body = hit[1] if raw or "\\" not in hit[1] else self._unescape(hit[1], hit.start())
        return Key(body, hit.start(), hit.end(1))

    def _unescape(self, body: str, offset: int) -> str:
        simple = _PYTHON_SIMPLE if self.python else _SIMPLE

        def plain(hit: re.Match[str]) -> str:
            high, low, *codes, last = hit.groups()
            if high:  # a pair of surrogates is how JSON writes one character beyond the first plane
                return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
            if last in simple:
                return simple[last]
            if last is None:
                octal = len(codes) == 4 and codes[3]
                code = int(codes[3], 8) if octal else int(next(filter(None, codes)), 16)
                if code <= 0x10FFFF:
                    return chr(code)
            elif self.python and last not in "xuUN":  # Python keeps unknown escapes as they are written
                return "\\" + last
            raise Malformed("bad escape in a string", offset + hit.start())

        return _ESCAPE[self.python].sub(plain, body)

    def _number_or_word(self) -> Any:
        start = self.pos
        hit = _NUMBER[self.python].match(self.text, start)
        if hit is not None:
            self.pos = hit.end()
            return _number(hit[0], start)
        hit = _WORD.match(self.text, start)
        if hit is None:
            raise Malformed("expected a value" + (", found the end" if self.at_end() else ""), start)
        word, words = hit[0], _PYTHON_WORDS if self.python else _WORDS
        if word not in words and (not self.python or word in ("NaN", "Infinity")):
            raise Malformed("not a JSON value", start)
        self.pos = hit.end()
        if word in ("r", "R", "u", "U") and self.text[self.pos : self.pos + 1] in ("'", '"'):
            return self.string(raw=word in "rR").text
        return words.get(word, word)


def _number(text: str, position: int) -> int | float:
    try:
        if "x" in text or "X" in text or not re.search(r"[.eE]", text):
            return int(text, 0)
        number = float(text)
    except ValueError:  # also for more digits than the interpreter converts
        raise Malformed("not a number", position) from None
    if not math.isfinite(number):
        raise Malformed("number out of range", position)
    return number


def write_value(value: Any, *, python: bool = False, compact: bool = False) -> str:
    """A JSON value on one line, as JSON or as a Python literal; `compact` leaves out the spaces.

    Example:
        >>> write_value({"a": [1, True]}), write_value({"a": [1, True]}, python=True, compact=True)
        ('{"a": [1, true]}', '{"a":[1,True]}')
    """
    comma, colon = (",", ":") if compact else (", ", ": ")
    if python and isinstance(value, Mapping):
        parts = (
            f"{write_value(key_text(k))}{colon}{write_value(v, python=True, compact=compact)}" for k, v in value.items()
        )
        return f"{{{comma.join(parts)}}}"
    if python and isinstance(value, list | tuple):
        return f"[{comma.join(write_value(item, python=True, compact=compact) for item in value)}]"
    if python and (value is None or isinstance(value, bool)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(comma, colon), default=str)


def key_text(key: Any) -> str:
    """The JSON object key for a dict key: text as it is, numbers and words as JSON writes them."""
    return key if isinstance(key, str) else json.dumps(key)
