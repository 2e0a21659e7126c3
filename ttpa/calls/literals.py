"""JSON values and Python literals as text: a scanner that reads both, and a writer. Nothing is ever evaluated.

Reading is linear in the text and bounds the nesting, so that code behind it may walk a value recursively. A fault
raises `Malformed`, which the syntaxes turn into a `ParseError`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_DEPTH = 64  # values nested deeper are malformed; schemas are not read deeper
# Two patterns each: for JSON (False) and for Python (True).
_SPACE = {False: re.compile(r"[ \t\n\r]*"), True: re.compile(r"\s*")}
_NUMBER = {
    False: re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"),
    True: re.compile(r"[+-]?(?:0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)"),
}
_WORD = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None} | _WORDS
_STRING = {  # opening quotes -> the rest of the string, closing quotes included
    fence: re.compile(rf"((?:[^{fence[0]}\\]|\\.|{fence[0]}(?!{fence[1:]}))*+){fence}", re.DOTALL)
    for fence in ("'''", '"""', "'", '"')
}
_HEX = "[0-9a-fA-F]"
_PAIR = r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
_ESCAPE = {
    False: re.compile(rf"{_PAIR}|\\u({_HEX}{{4}})|((?!))|\\(.)", re.DOTALL),
    True: re.compile(
        rf"{_PAIR}|\\[uxU]((?<=u){_HEX}{{4}}|(?<=x){_HEX}{{2}}|(?<=U){_HEX}{{8}})|\\([0-7]{{1,3}})|\\(.)",
        re.DOTALL,
    ),
}
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PYTHON_SIMPLE = _SIMPLE | {"'": "'", "a": "\a", "v": "\v", "\n": "", "/": "\\/"}


class Malformed(Exception):
    """The text is not well formed; `args` are the reason and the position."""


class Key(NamedTuple):
    """A string or an object key, and the characters it covers, quotes left out."""

    text: str
    start: int
    end: int


@dataclass(slots=True)
class Scanner:
    """A cursor (`pos`) over `text`, which is strict JSON, except that strings may hold raw control characters.

    `python=True` also reads strings in single or triple quotes, with Python's escapes and the prefixes r and u, its
    numbers, tuples (as lists), trailing commas, True, False, None, and bare (dotted) identifiers as text.
    """

    text: str
    pos: int = 0
    python: bool = False

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Moves over the pattern (`take`: the text) if it is next; says whether it was."""
        hit = pattern.match(self.text, self.pos)
        self.pos = hit.end() if hit else self.pos
        return hit is not None

    def take(self, token: str) -> bool:
        found = self.text.startswith(token, self.pos)
        self.pos += len(token) if found else 0
        return found

    def space(self) -> None:
        self.skip(_SPACE[self.python])

    def expect(self, *tokens: str) -> str:
        """Moves over the one of `tokens` that is next, and returns it."""
        for token in tokens:
            if self.take(token):
                return token
        raise self._missing(" or ".join(map(repr, tokens)))

    def _missing(self, wanted: str) -> Malformed:
        return Malformed(f"expected {wanted}" + ", found the end" * self.at_end(), self.pos)

    def at_end(self) -> bool:
        return self.pos >= len(self.text)

    def finish(self, problem: str = "text after the calls") -> None:
        """Only white space may follow."""
        self.space()
        if not self.at_end():
            raise Malformed(problem, self.pos)

    def items(self, brackets: str, last: re.Pattern[str] | None = None) -> Iterator[None]:
        """Stops before each item in the brackets, for the caller to read; `last`: how the closing bracket must look."""
        opening, close = tuple(brackets)
        self.expect(opening)
        self.space()
        first = True
        while not ((self.python or first) and (self.skip(last) if last else self.take(close))):
            yield
            first = False
            self.space()
            if self.expect(",", close) == close:
                return
            self.space()

    def value(self, depth: int = 1) -> Any:
        """Reads the value at the cursor, which stands in `depth - 1` containers."""
        start, char = self.pos, self.text[self.pos : self.pos + 1]
        if char == '"' or (char == "'" and self.python):
            return self.string().text
        if not char or char not in ("{[(" if self.python else "{["):
            return self._number_or_word()
        if depth > MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH}", start)
        if char == "{":
            return {key.text: self.value(depth + 1) for key in self.members()}
        items = [self.value(depth + 1) for _ in self.items("[]" if char == "[" else "()")]
        in_parentheses = char == "(" and len(items) == 1 and self.text[start : self.pos - 1].rstrip()[-1] != ","
        return items[0] if in_parentheses else items

    def members(self) -> Iterator[Key]:
        """Walks over the object at the cursor: yields each key with the cursor on its value, which the caller reads."""
        seen: set[str] = set()
        for _ in self.items("{}"):
            start, char = self.pos, self.text[self.pos : self.pos + 1]
            if not self.python or char in ('"', "'"):
                key = self.string()
            elif char in ("{", "[", "("):
                raise Malformed("an object key must be a string", start)
            else:  # Python's keys may be numbers and words
                key = Key(key_text(self._number_or_word()), start, self.pos)
            if key.text in seen:
                raise Malformed("duplicate key", start)
            seen.add(key.text)
            self.space()
            self.expect(":")
            self.space()
            yield key

    def string(self, *, raw: bool = False) -> Key:
        """Reads the string literal at the cursor; `raw` leaves backslashes alone."""
        start, quote = self.pos, self.text[self.pos : self.pos + 1]
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
            high, low, code, octal, last = hit.groups()
            if high:  # a pair of surrogates is how JSON writes one character beyond the first plane
                return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
            if last in simple:
                return simple[last]
            if last is None:
                number = int(octal, 8) if octal else int(code, 16)
                if number <= 0x10FFFF:
                    return chr(number)
            elif self.python and last not in "xuUN":  # Python keeps unknown escapes as they are written
                return "\\" + last
            raise Malformed("bad escape in a string", offset + hit.start())

        return _ESCAPE[self.python].sub(plain, body)

    def _number_or_word(self) -> Any:
        start = self.pos
        if self.skip(_NUMBER[self.python]):
            return _number(self.text[start : self.pos], start)
        hit = _WORD.match(self.text, start)
        if hit is None:
            raise self._missing("a value")
        word, words = hit[0], _PYTHON_WORDS if self.python else _WORDS
        if word not in words and (not self.python or word in ("NaN", "Infinity")):
            raise Malformed("not a JSON value", start)
        self.pos = hit.end()
        if word in ("r", "R", "u", "U") and self.text[self.pos : self.pos + 1] in ("'", '"'):
            return self.string(raw=word in "rR").text
        return words.get(word, word)


def _number(text: str, position: int) -> int | float:
    try:
        number = float(text) if re.search(r"[.eE]", text) and "x" not in text.lower() else int(text, 0)
    except ValueError:  # also for more digits than the interpreter converts
        raise Malformed("not a number", position) from None
    if isinstance(number, float) and not math.isfinite(number):
        raise Malformed("number out of range", position)
    return number


def write_value(value: Any, *, python: bool = False, compact: bool = False) -> str:
    """A JSON value on one line, as JSON or as a Python literal; `compact` leaves out the spaces."""
    comma, colon = (",", ":") if compact else (", ", ": ")

    def text(part: Any) -> str:
        return write_value(part, python=True, compact=compact)

    if python and isinstance(value, Mapping):
        parts = (f"{write_value(key_text(key))}{colon}{text(part)}" for key, part in value.items())
        return f"{{{comma.join(parts)}}}"
    if python and isinstance(value, list | tuple):
        return f"[{comma.join(map(text, value))}]"
    if python and (value is None or isinstance(value, bool)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(comma, colon), default=str)


def key_text(key: Any) -> str:
    """The JSON object key for a dict key: text as it is, numbers and words as JSON writes them."""
    return key if isinstance(key, str) else json.dumps(key)
