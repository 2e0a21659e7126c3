"""Token ids to text as they come, and whether that text is inside a call. Used while tokens are drawn."""

from __future__ import annotations

from typing import Any

from ttpa.calls import Syntax
from ttpa.calls.stream import stream_of

LOST = "\ufffd"
"""What a tokenizer decodes bytes to that are no character, or none yet."""


class TextStream:
    """Decodes one answer incrementally.

    A token's text can depend on the tokens before it (spaces, characters of several bytes). So a window is decoded that
    begins with the last token whose text was given out, and grows while its end may still become a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.window: list[int] = []
        self.given = 0
        """Characters of the window that have been given out."""

    def push(self, token: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        self.window.append(token)
        now = str(self.tokenizer.decode(self.window, skip_special_tokens=False))
        whole = now.rstrip(LOST)
        added = whole[self.given :]
        self.given = max(self.given, len(whole))
        if added and whole == now:
            self.window = [token]
            self.given = len(str(self.tokenizer.decode(self.window, skip_special_tokens=False)))
        return added


class CallWatch:
    """Whether the next token of an answer lies inside a call, from its token ids as they come."""

    def __init__(self, tokenizer: Any, syntax: Syntax) -> None:
        self._text, self._stream = TextStream(tokenizer), stream_of(syntax)

    def push(self, token: int) -> None:
        """Takes the next token."""
        self._stream.feed(self._text.push(token))

    @property
    def inside(self) -> bool:
        return self._stream.inside
