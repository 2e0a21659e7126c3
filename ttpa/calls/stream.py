"""Tool calls while they are being written: whether a call is open, and where names, keys, values and calls end.

`CallStream` is fed a text in pieces and reports the ends that `Syntax.spans` would mark, of well-formed text and of
malformed text up to the fault, in time linear in the text. It keeps the part that is being read and the keys of the
call, nothing else. It builds no calls and does not say what is wrong with a text: `Syntax.parse` does. One thing it
does that `spans` does not: after a fault it goes on with the next `<tool_call>` of `hermes`.

Called by samplers, through `ttpa.policy.decode`, to act inside calls only, and by MCTS, which cuts answers into nodes
at `token_cuts`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from ttpa.calls.base import MAX_CHARS, Syntax
from ttpa.calls.json_syntaxes import HermesSyntax, JsonSyntax, Llama3JsonSyntax
from ttpa.calls.pieces import PartialLiteral, PythonHead, run_end
from ttpa.calls.python_syntax import PythonSyntax

EventKind = Literal["open", "name", "key", "value", "call", "close"]
_Container = Literal["calls", "call", "arguments"]
_Role = Literal["key", "name", "text", "value"]  # "text": arguments written as JSON text

_OPEN_TAG, _CLOSE_TAG, _PYTHON_TAG = "<tool_call>", "</tool_call>", "<|python_tag|>"
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_PYTHON_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Event:
    """A part of the calls has ended.

    Attributes:
        kind: "name", "key", "value" and "call" are spans (see `Span`); "open" and "close" are the marker after which
            calls are being written, and the one that ends them.
        end: characters of the whole text up to and including the part that ended.
    """

    kind: EventKind
    end: int


class CallStream:
    """Reads one text in pieces of any length. Deep copies go on separately, as branches of an answer do.

    A part is reported as soon as it is sure, which may be some characters later: numbers and words end with the next
    character, a key of an object with its colon; a name of the python syntax, which may hold parentheses, with what
    shows that its argument list has begun: `()`, or `(key=` and one character more.

    What opens and closes the calls: `[` and `]`, or the `{` and `}` of a single object (`json`); `[` and `]` (python);
    `<tool_call>` and `</tool_call>` of each block (`hermes`); `{` and `}` of each object, since any may be the last,
    or `<|python_tag|>` in place of the first `{` (`llama3_json`). In python, a `]` where a name may begin (`[]`,
    `[f(), ]`) closes only with the end of the text, since it may also begin a name. A fault closes without an event.

    Example:
        >>> stream = CallStream(PythonSyntax())
        >>> stream.feed("[f(ci")
        [Event(kind='open', end=1)]
        >>> stream.inside
        True
        >>> [(event.kind, event.end) for event in stream.feed("ty='Rome', days=3")]
        [('name', 2), ('key', 7), ('value', 14), ('key', 20)]
        >>> [(event.kind, event.end) for event in stream.feed(")]")]
        [('value', 22), ('call', 23), ('close', 24)]
        >>> stream.inside, stream.possible
        (False, False)

    Args:
        syntax: how the calls are written.

    Raises:
        TypeError: `syntax` is none of those in `ttpa.calls.SYNTAXES`.
    """

    def __init__(self, syntax: Syntax) -> None:
        if not isinstance(syntax, HermesSyntax | JsonSyntax | Llama3JsonSyntax | PythonSyntax):
            raise TypeError(f"no stream reads {type(syntax).__name__}: use one of ttpa.calls.SYNTAXES")
        self._python = isinstance(syntax, PythonSyntax)
        self._hermes = isinstance(syntax, HermesSyntax)
        self._llama = isinstance(syntax, Llama3JsonSyntax)
        self._space = _PYTHON_SPACE if self._python else _JSON_SPACE
        self._read: _State = CallStream._tag if self._hermes else CallStream._begin
        self._offset = 0  # characters in earlier pieces
        self._events: list[Event] = []
        self._inside = False
        self._open: list[_Container] = []  # what is open, the innermost last
        self._closers = {"calls": "]", "call": ")" if self._python else "}", "arguments": "}"}
        self._may_close = False  # whether the innermost may end where its next member may begin
        self._wanted, self._matched = _OPEN_TAG, 0  # the tag that is looked for, and how much of it has been read
        self._line = False  # whether a line break came after the last call
        self._role: _Role = "value"  # of the literal
        self._literal = PartialLiteral(python=self._python)
        self._head = PythonHead(named=True)
        self._start = 0  # where the head begins
        self._key, self._key_end = "", 0  # of an object: its text, and where it ends
        self._members: set[str] = set()  # keys of the call object
        self._arguments: set[str] = set()  # keys of its arguments
        self._filled = False  # whether its arguments have been read, or begun

    @property
    def inside(self) -> bool:
        """Whether the next character would be written inside a call: from the opening marker to the closing one."""
        return self._inside

    @property
    def possible(self) -> bool:
        """Whether the next characters may still begin a call, or are inside one."""
        return self._read is not CallStream._stop

    def feed(self, piece: str) -> list[Event]:
        """Reads the next characters; never raises.

        Args:
            piece: what was written since the last call, of any length. Behind `MAX_CHARS` characters nothing is read.

        Returns:
            What is now known to have ended, by `end`. However a text is cut, its events are the same in all.
        """
        self._events = []
        room = MAX_CHARS - self._offset
        piece, full = piece[:room], len(piece) > room
        pos = 0
        while pos < len(piece):
            state = self._read
            if state in _AFTER_SPACE:
                pos = run_end(self._space, piece, pos)
                if pos == len(piece):
                    break
            pos = state(self, piece, pos)
        self._offset += len(piece)
        if full:
            self._end_reading()
        return self._events

    def close(self) -> list[Event]:
        """Says that the text has ended. Nothing is read afterwards.

        Returns:
            What only the end could confirm: a number, a word, two quotes or `key=` at the very end, or the "close" of
            a python list that ends where a call might have begun.
        """
        self._events = []
        if self._read is CallStream._in_literal:
            self._literal_ends(self._offset)
        elif self._read is CallStream._in_head and self._head.finish():
            self._head_ends(self._offset)
        elif self._read is CallStream._in_head and self._head.only_bracket:
            self._mark("close", self._start + 1)
        self._end_reading()
        return self._events

    # What follows are the states. A state is given a piece and a position in it, reads on from there or changes the
    # state, and returns the position it has come to. Those in `_AFTER_SPACE` are not shown white space.

    def _mark(self, kind: EventKind, end: int) -> None:
        self._events.append(Event(kind, end))
        if kind in ("open", "close"):
            self._inside = kind == "open"

    def _end_reading(self) -> None:
        self._inside = False
        self._open.clear()
        self._read = CallStream._stop

    def _stop(self, text: str, pos: int) -> int:
        return len(text)

    def _fail(self, pos: int = 0) -> int:
        """The text is malformed. What stands at `pos` may begin a block of `hermes`."""
        matched = int(self._matched == 1)  # of the closing tag: its "<" may be that of the next block
        self._end_reading()
        if self._hermes:
            self._read, self._wanted, self._matched = CallStream._tag, _OPEN_TAG, matched
        return pos

    def _begin(self, text: str, pos: int) -> int:
        """The first character of a text, except in `hermes`."""
        if text[pos] == "<" and self._llama:
            self._read, self._wanted = CallStream._tag, _PYTHON_TAG
        elif text[pos] == "[" and not self._llama:
            self._mark("open", self._offset + pos + 1)
            return self._enter("calls", pos + 1)
        else:
            self._read = CallStream._stop if self._python else CallStream._object
        return pos

    def _tag(self, text: str, pos: int) -> int:
        """Reads a tag; looks for it if it is `<tool_call>`. Only the first character of a tag is "<"."""
        if text[pos] == self._wanted[self._matched]:
            self._matched += 1
            if self._matched == len(self._wanted):
                closes = self._wanted == _CLOSE_TAG
                self._mark("close" if closes else "open", self._offset + pos + 1)
                self._read = CallStream._tag if closes else CallStream._object
                self._wanted, self._matched = _OPEN_TAG, 0
            return pos + 1
        if self._matched == 0 and text[pos] in " \t\n\r":
            return pos + 1
        if self._wanted != _OPEN_TAG:
            return self._fail(pos)
        self._matched = 0
        found = text.find("<", pos)
        return len(text) if found < 0 else found

    def _separator(self, text: str, pos: int) -> int:
        """After a call of `llama3_json`."""
        if text[pos] in " \t\n\r":
            self._line = self._line or text[pos] == "\n"
            return pos + 1
        if text[pos] != ";" and not self._line:
            return self._fail(pos)
        self._read = CallStream._object
        return pos + (text[pos] == ";")

    def _object(self, text: str, pos: int) -> int:
        """The first character of a call that is an object."""
        if text[pos] != "{":
            return self._fail(pos)
        if not self._inside:
            self._mark("open", self._offset + pos + 1)
        self._members, self._arguments, self._filled = set(), set(), False
        return self._enter("call", pos + 1)

    def _enter(self, what: _Container, pos: int) -> int:
        self._open.append(what)
        self._read, self._may_close = CallStream._item, True
        return pos

    def _item(self, text: str, pos: int) -> int:
        """The next call of a list or the next key of an object; or the end, where it may come."""
        listed = self._open[-1] == "calls"
        if listed and self._python:
            return self._begin_head(pos)
        if self._may_close and text[pos] == self._closers[self._open[-1]]:
            return self._leave(pos + 1)
        if listed:
            return self._object(text, pos)
        if text[pos] in "{[(" or (text[pos] != '"' and not self._python):
            return self._fail(pos)
        return self._begin_literal("key", pos)

    def _colon(self, text: str, pos: int) -> int:
        if text[pos] != ":":
            return self._fail(pos)
        return self._new_key(self._key, self._key_end, pos + 1)

    def _new_key(self, key: str, end: int, pos: int) -> int:
        argument = self._python or self._open[-1] == "arguments"
        keys = self._arguments if argument else self._members
        if key in keys:
            return self._fail(pos)
        keys.add(key)
        if argument:
            self._mark("key", end)
        self._read = CallStream._value
        return pos

    def _value(self, text: str, pos: int) -> int:
        """The first character of a value."""
        if self._python or self._open[-1] == "arguments" or self._key not in ("name", "arguments", "parameters"):
            return self._begin_literal("value", pos)
        if self._key == "name":
            return self._begin_literal("name", pos) if text[pos] == '"' else self._fail(pos)
        if text[pos] not in '"{' or self._filled:
            return self._fail(pos)
        self._filled = True
        return self._enter("arguments", pos + 1) if text[pos] == "{" else self._begin_literal("text", pos)

    def _after(self, text: str, pos: int) -> int:
        """After a call or a value: a comma, or the end of what it stands in."""
        if text[pos] == self._closers[self._open[-1]]:
            return self._leave(pos + 1)
        if text[pos] != ",":
            return self._fail(pos)
        if self._python and self._open[-1] == "call":
            return self._begin_head(pos + 1)
        self._read, self._may_close = CallStream._item, self._python
        return pos + 1

    def _leave(self, pos: int) -> int:
        """The innermost of what is open ends before `pos`."""
        end, what = self._offset + pos, self._open.pop()
        self._read = CallStream._after
        if what == "calls":
            self._mark("close", end)
            self._read = CallStream._stop
        elif what == "call" and not (self._python or (self._filled and "name" in self._members)):
            self._fail()
        elif what == "call":
            self._mark("call", end)
            if self._hermes:
                self._read, self._wanted = CallStream._tag, _CLOSE_TAG
            elif not self._open:
                self._mark("close", end)
                self._read, self._line = (CallStream._separator if self._llama else CallStream._stop), False
        return pos

    def _begin_literal(self, role: _Role, pos: int) -> int:
        self._read, self._role, self._literal = CallStream._in_literal, role, PartialLiteral(python=self._python)
        return pos

    def _in_literal(self, text: str, pos: int) -> int:
        pos, ended = self._literal.read(text, pos)
        if ended:
            self._literal_ends(self._offset + pos)
        return pos

    def _literal_ends(self, end: int) -> None:
        literal, start = self._literal, end - self._literal.size
        self._read = CallStream._after
        if self._role == "value":
            argument = self._python or self._open[-1] == "arguments"
            size = literal.value_size(depth=1 if argument else 2)
            if size and argument:
                self._mark("value", start + size)
            if size != literal.size:  # as in `1x`: a number, and characters that no number is made of
                self._fail()
            return
        key = literal.key()
        if key is None:
            self._fail()
        elif self._role == "key":
            self._key, self._key_end, self._read = key.text, start + key.end, CallStream._colon
        elif self._role == "name":
            self._mark("name", start + key.end)
        elif not isinstance(JsonSyntax().parse(f'{{"name":"","arguments":{literal.text}}}'), tuple):
            self._fail()

    def _begin_head(self, pos: int) -> int:
        self._read, self._head = CallStream._in_head, PythonHead(named=self._open[-1] == "calls")
        self._start = self._offset + pos
        return pos

    def _in_head(self, text: str, pos: int) -> int:
        pos, ended = self._head.read(text, pos)
        if ended:
            self._head_ends(self._offset + pos)
        return pos

    def _head_ends(self, end: int) -> None:
        head = self._head
        if head.found == "fault":
            self._fail()
            return
        if self._open[-1] == "calls":
            self._mark("name", self._start + head.name_end)
            self._open.append("call")
            self._arguments = set()
        if head.found == "key":
            self._new_key(head.key, self._start + head.key_end, 0)
        elif head.found == "spread":
            self._enter("arguments", 0)
        else:
            self._leave(end - self._offset)


_State = Callable[[CallStream, str, int], int]
_AFTER_SPACE: frozenset[_State] = frozenset(
    (CallStream._begin, CallStream._object, CallStream._item, CallStream._colon, CallStream._value, CallStream._after)
)


def stream_of(syntax: Syntax) -> CallStream:
    """A `CallStream` at the beginning of a text."""
    return CallStream(syntax)


def token_cuts(
    pieces: Sequence[str], syntax: Syntax, kinds: Collection[EventKind] = ("name", "value", "call")
) -> list[int]:
    """Where an answer can be cut between tokens so that a part has just ended.

    Args:
        pieces: the texts of its tokens, some perhaps empty.
        syntax: how its calls are written.
        kinds: the parts to cut behind.

    Returns:
        Counts of tokens, ascending, each once: for each part, the fewest tokens that hold it to its end. The count of
        all tokens is left out.

    Example:
        >>> token_cuts(["[", "f", "(a", "=1", ", b", "=2", ")", "]"], PythonSyntax())
        [2, 4, 6, 7]
    """
    stream = stream_of(syntax)
    events = stream.feed("".join(pieces)) + stream.close()
    ends = list(accumulate(map(len, pieces)))
    cuts = {bisect_left(ends, event.end) + 1 for event in events if event.kind in kinds}
    return sorted(cut for cut in cuts if cut < len(pieces))
