"""JSON values and Python literals as text: a scanner that reads both, and a writer. Nothing is ever evaluated.

Reading is linear in the text and bounds the nesting, so that code behind it may walk a value recursively.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_DEPTH = 64  # values nested deeper are malformed; schemas are not read deeper
# Two of each: for JSON (False) and for Python (True).
_SPACE = {False: re.compile(r"[ \t\n\r]*"), True: re.compile(r"\s*")}
_NUMBER = {
    False: re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"),
    True: re.compile(r"[+-]?(?:0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)"),
}
_JSON_WORDS = {"true": True, "false": False, "null": None}
_WORDS: dict[bool, dict[str, Any]] = {
    False: _JSON_WORDS,
    True: {"True": True, "False": False, "None": None} | _JSON_WORDS,
}
_ESCAPES = dict(zip('"\\bfnrt', '"\\\b\f\n\r\t', strict=True))
_SIMPLE = {False: _ESCAPES | {"/": "/"}, True: _ESCAPES | {"'": "'", "a": "\a", "v": "\v", "\n": ""}}
_WORD = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_STRING = {  # opening quotes -> the rest of the string, closing quotes included
    fence: re.compile(rf"((?:[^{fence[0]}\\]|\\.|{fence[0]}(?!{fence[1:]}))*+){fence}", re.DOTALL)
    for fence in ("'''", '"""', "'", '"')
}
_ESCAPE = re.compile(  # a pair of surrogates | a code in hexadecimal digits | in octal ones | any other character
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\[uxU]((?<=u)[0-9a-fA-F]{4}|(?<=x)[0-9a-fA-F]{2}|(?<=U)[0-9a-fA-F]{8})|\\([0-7]{1,3})|\\(.)",
    re.DOTALL,
)


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
        """Yields each key of the object at the cursor, with the cursor on its value, which the caller reads."""
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
        return Key(hit[1] if raw else self._unescape(hit[1], hit.start()), hit.start(), hit.end(1))

    def _unescape(self, body: str, offset: int) -> str:
        def plain(hit: re.Match[str]) -> str:
            high, low, code, octal, last = hit.groups()
            if high:  # how JSON writes one character beyond the first plane
                return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
            if last in _SIMPLE[self.python]:
                return _SIMPLE[self.python][last]
            if last and self.python and last not in "xuUN":  # Python keeps unknown escapes as they are written
                return "\\" + last
            number = int(octal, 8) if octal else int(code or "110000", 16)  # 110000 is no character
            if number > 0x10FFFF or not (self.python or hit[0][1] == "u"):
                raise Malformed("bad escape in a string", offset + hit.start())
            return chr(number)

        return _ESCAPE.sub(plain, body)

    def _number_or_word(self) -> Any:
        start = self.pos
        if self.skip(_NUMBER[self.python]):
            text = self.text[start : self.pos]
            try:
                number = float(text) if re.match(r"[^xX]*[.eE]", text) else int(text, 0)
            except ValueError:  # also for more digits than the interpreter converts
                raise Malformed("not a number", start) from None
            # Python writes no integer of more than 4,300 digits, which hexadecimal ones can have.
            if math.isinf(number) if isinstance(number, float) else number.bit_length() > 14_284:
                raise Malformed("number out of range", start)
            return number
        hit, words = _WORD.match(self.text, start), _WORDS[self.python]
        if hit is None:
            raise self._missing("a value")
        if hit[0] not in words and (not self.python or hit[0] in ("NaN", "Infinity")):
            raise Malformed("not a JSON value", start)
        self.pos = hit.end()
        if hit[0] in ("r", "R", "u", "U") and self.text[self.pos : self.pos + 1] in ("'", '"'):
            return self.string(raw=hit[0] in "rR").text
        return words.get(hit[0], hit[0])


def write_value(value: Any, *, python: bool = False, compact: bool = False) -> str:
    """A JSON value on one line, as JSON or as a Python literal; `compact` leaves out the spaces."""
    comma, colon = (",", ":") if compact else (", ", ": ")

    def text(part: Any) -> str:
        return write_value(part, python=True, compact=compact)

    if python and isinstance(value, Mapping):
        return f"{{{comma.join(write_value(key_text(key)) + colon + text(part) for key, part in value.items())}}}"
    if python and isinstance(value, list | tuple):
        return f"[{comma.join(map(text, value))}]"
    if python and (value is None or isinstance(value, bool)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(comma, colon), default=str)


def key_text(key: Any) -> str:
    """The JSON object key for a dict key: text as it is, numbers and words as JSON writes them."""
    return key if isinstance(key, str) else json.dumps(key)
