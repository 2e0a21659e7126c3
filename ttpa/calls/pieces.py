"""Parts of a call that arrive in pieces: `PartialLiteral` finds the end of a value, `PythonHead` what stands before it.

Both are fed slices of a text and go over it once. Whether a literal is well formed is left to `Scanner`, which reads it
when it is complete. Neither knows where in a call it stands. Used by `ttpa.calls.stream` alone.
"""

from __future__ import annotations

import re
from typing import Literal

from ttpa.calls.base import Malformed
from ttpa.calls.python_syntax import MAX_NAME_CHARS
from ttpa.calls.scanning import MAX_DEPTH, Key, Scanner
from ttpa.calls.writing import key_text

_SCALAR = re.compile(r"[\w.+-]*")  # all that numbers and words are made of
_BRACKETS = {"{": "}", "[": "]", "(": ")"}
_JSON_SPECIAL = re.compile(r'["\[\]{}]')
_PYTHON_SPECIAL = re.compile(r"""["'()\[\]{}]""")
_STOP = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_KEY = re.compile(r"""[^()\[\]{}=,"']*""")  # all that may stand between `(` or a comma and the `=` of an argument
_STARS = re.compile(r"\s*\*\*\s*")


def run_end(pattern: re.Pattern[str], text: str, pos: int) -> int:
    """Where the characters that a pattern matches at `pos` end; `pos` if there are none."""
    hit = pattern.match(text, pos)
    return pos if hit is None else hit.end()


class PartialLiteral:
    """A number, a word, a string, or a value in brackets, of JSON or of python; its text is kept.

    Example:
        >>> literal = PartialLiteral(python=False)
        >>> literal.read('["a]', 0), literal.read('", 1], 2', 0)
        ((4, False), (5, True))
        >>> literal.text, literal.value_size(depth=1)
        ('["a]", 1]', 9)

    Args:
        python: whether single and triple quotes, the prefixes r and u, and parentheses count.

    Attributes:
        size: how many characters have been read.
    """

    __slots__ = (
        "_closers", "_escaped", "_fence", "_first", "_pieces", "_python", "_quote", "_run", "_special", "size"
    )  # fmt: skip

    def __init__(self, *, python: bool) -> None:
        self._python = python
        self._special = _PYTHON_SPECIAL if python else _JSON_SPECIAL
        self._pieces: list[str] = []
        self._first, self.size = "", 0
        self._closers: list[str] = []  # of the brackets that are open, the innermost last
        self._quote = ""  # of the string that is being read, or nothing
        self._fence = 1  # how many quotes end that string; 0 while its opening ones are counted
        self._run = 0  # how many quotes just stood there
        self._escaped = False

    @property
    def text(self) -> str:
        """What has been read."""
        return "".join(self._pieces)

    def read(self, text: str, pos: int) -> tuple[int, bool]:
        """Reads on at `pos`; returns where it stopped and whether the literal ends there.

        Of malformed text, the end is where the fault was noticed, and the text is not a value to `Scanner` either.
        """
        start, ended = pos, False
        while pos < len(text) and not ended:
            step = self._in_string if self._quote else self._in_brackets if self._closers else self._outside
            before = pos
            pos, ended = step(text, pos)
            self._first = self._first or text[before:pos][:1]
            self.size += pos - before
        self._pieces.append(text[start:pos])
        return pos, ended

    def value_size(self, depth: int) -> int | None:
        """Reads what was found as a value.

        Args:
            depth: how many containers it stands in, plus one; see `Scanner.value`.

        Returns:
            How many characters the value has: fewer than there are for `1x`; None if it is malformed.
        """
        scan = Scanner(self.text, python=self._python)
        try:
            scan.value(depth)
        except Malformed:
            return None
        return scan.pos

    def key(self) -> Key | None:
        """What was found as a key, quotes left out; None unless it is a string, or in python a number or a word."""
        scan = Scanner(self.text, python=self._python)
        try:
            key = scan.string() if self._first in _STOP else Key(key_text(scan.value()), 0, self.size)
        except Malformed:
            return None
        return key if scan.at_end() else None

    def _outside(self, text: str, pos: int) -> tuple[int, bool]:
        char = text[pos]
        prefixed = self._python and self.size == 1 and self._first in "rRuU"
        if (self.size == 0 or prefixed) and (char == '"' or (char == "'" and self._python)):
            return self._begin_string(char, pos)
        if self.size == 0 and self._special.match(char) and char in _BRACKETS:
            self._closers.append(_BRACKETS[char])
            return pos + 1, False
        end = run_end(_SCALAR, text, pos)
        return end, end == pos

    def _in_brackets(self, text: str, pos: int) -> tuple[int, bool]:
        hit = self._special.search(text, pos)
        if hit is None:
            return len(text), False
        char = hit.group()
        if char in _STOP:
            return self._begin_string(char, hit.start())
        if char in _BRACKETS:
            self._closers.append(_BRACKETS[char])
            return hit.end(), len(self._closers) > MAX_DEPTH
        return hit.end(), self._closers.pop() != char or not self._closers

    def _begin_string(self, quote: str, pos: int) -> tuple[int, bool]:
        self._quote, self._fence, self._run = (quote, 0, 1) if self._python else (quote, 1, 0)
        return pos + 1, False

    def _in_string(self, text: str, pos: int) -> tuple[int, bool]:
        if self._escaped:
            self._escaped = False
            return pos + 1, False
        if self._fence == 0:  # python: one quote more is the end of an empty string, two more open a triple-quoted one
            if text[pos] == self._quote:
                self._run += 1
                if self._run == 3:
                    self._fence, self._run = 3, 0
                return pos + 1, False
            if self._run == 2:
                return pos, self._end_string()
            self._fence, self._run = 1, 0
        hit = _STOP[self._quote].search(text, pos)
        if hit is None or hit.start() > pos:
            self._run = 0
        if hit is None:
            return len(text), False
        self._escaped = hit.group() == "\\"
        self._run = 0 if self._escaped else self._run + 1
        return hit.end(), self._run == self._fence and self._end_string()

    def _end_string(self) -> bool:
        self._quote = ""
        return not self._closers


class PythonHead:
    """What stands before a value in a python call: `name(key=` at its beginning, `key=` after a comma.

    The name ends at the first `(` that opens an argument list, which what follows the parenthesis decides: until then
    the text behind it may be arguments or more of the name. `PythonSyntax` has the rules.

    Example:
        >>> head = PythonHead(named=True)
        >>> head.read("Get (v2) (city =", 0), head.found
        ((16, False), '')
        >>> head.read("'Rome')", 0), head.found, head.name_end, head.key, head.key_end
        ((0, True), 'key', 8, 'city', 14)

    Args:
        named: whether a name comes first.

    Attributes:
        found: "" until it is decided; then "key" (one character after `=` was looked at, not read), "spread" (`**{`
            was read), "end" (the `)` of an argument list without more arguments was read) or "fault".
        name_end: how many characters the name has.
        key: the key, without white space around it.
        key_end: how many characters there are up to the end of the key.
        only_bracket: whether nothing but `]` was read, and white space: it ends the list if the text ends here.
    """

    __slots__ = (
        "_at", "_line", "_mode", "_named", "_opening", "_pieces", "_shut", "_tried", "found", "key", "key_end",
        "name_end", "only_bracket",
    )  # fmt: skip

    def __init__(self, *, named: bool) -> None:
        self.found: Literal["", "key", "spread", "end", "fault"] = ""
        self.name_end = self.key_end = 0
        self.key = ""
        self.only_bracket = False
        self._named = named
        self._mode: Literal["name", "argument", "equals"] = "name" if named else "argument"
        self._at = 0  # characters read
        self._line = False  # whether there is a line break behind the bracket
        self._opening = 0  # where the last `(` stands
        self._tried = False  # whether an earlier `(` turned out to be part of the name
        self._shut = False  # whether the last character but white space was a `)` behind such a `(`
        self._pieces: list[str] = []  # what follows the last `(` or the comma

    def read(self, text: str, pos: int) -> tuple[int, bool]:
        """Reads on at `pos`; returns where it stopped and whether it is decided what was found."""
        while pos < len(text) and not self.found:
            before = pos
            if self._mode == "name":
                pos = self._in_name(text[pos], pos)
            elif self._mode == "argument":
                pos = self._in_argument(text, pos)
            elif text[pos] == "=":  # `==` gives no key
                self._pieces.append("=")
                self._no_argument()
            else:
                self._find("key")
            self._at += pos - before
        return pos, self.found != ""

    def finish(self) -> bool:
        """Says that the text has ended; returns whether that decides something: a `=` at its very end makes a key."""
        if self._mode == "equals":
            self._find("key")
        return self.found != ""

    def _find(self, what: Literal["key", "spread", "end"]) -> None:
        self.found = what if self.name_end or not self._named else "fault"

    def _in_name(self, char: str, pos: int) -> int:
        line = char in "\r\n"
        refused = char in ",]" if self._shut else char == "," and self._at == 0  # arguments without keys; a lone comma
        if refused or self._at > MAX_NAME_CHARS or (line and not self.only_bracket) or (self._line and char.strip()):
            self.found = "fault"
            return pos
        if char.isspace():
            self._line = self._line or line
            return pos + 1
        self.only_bracket = char == "]" and self._at == 0
        self._shut = char == ")" and self._tried
        if char == "(":
            self._mode, self._opening, self._pieces = "argument", self._at, []
        else:
            self.name_end = self._at + 1
        return pos + 1

    def _in_argument(self, text: str, pos: int) -> int:
        end = run_end(_KEY, text, pos)
        if end > pos:
            self._pieces.append(text[pos:end])
            return end
        before, char = "".join(self._pieces), text[pos]
        key = before.strip()
        if char == "=" and key and not key.startswith("*") and "\n" not in key:
            self._mode, self.key = "equals", key
            self.key_end = self._at - (len(before) - len(before.rstrip()))
            return pos + 1
        if (char == ")" and not key) or (char == "{" and _STARS.fullmatch(before)):
            self._find("end" if char == ")" else "spread")
            return pos + 1
        self._no_argument()
        return pos

    def _no_argument(self) -> None:
        """What followed the `(` is part of the name, if it may be."""
        text = "".join(self._pieces)
        if not self._named or "\n" in text or "\r" in text:
            self.found = "fault"
            return
        self._mode, self._tried = "name", True
        self.name_end = self._opening + 1 + len(text.rstrip())
