"""What a page is made of: plain dataclasses, with text as it was found. Escaping is the template's business.

No file is read here and nothing is drawn; `ttpa.results.report.page` renders these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell. `value` is what it sorts by (None: by its text, or last among numbers); `hint` a tooltip; `strong`
    the best of its column.
    """

    text: str
    value: float | None = None
    hint: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table; the first cell of a row names it."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "grid"

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers only (dashes aside), and is set to the right."""
        cells = [row[column] for row in self.rows if row[column].text not in ("", "-")]
        return bool(cells) and all(cell.value is not None for cell in cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture with its numbers. `width` in CSS pixels below which its words could not be read; `note` is what must be
    known to read it and stands below it.
    """

    title: str
    description: str
    svg: str
    width: int
    data: Grid
    note: str = ""
    kind: str = "chart"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `warning` where something could not be shown."""

    text: str
    warning: bool = False
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are shown on demand."""

    title: str
    blocks: Sequence[Block]
    kind: str = "folded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A node of the stage graph, placed in CSS pixels. `state` is built, found, mixed or unknown."""

    x: int
    y: int
    width: int
    title: str
    line: str
    hint: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The stage graph. `arrows` hold x1, y1, x2, y2."""

    title: str
    description: str
    width: int
    height: int
    box_height: int
    boxes: Sequence[Box]
    arrows: Sequence[tuple[int, int, int, int]]
    kind: str = "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One answer of a pair: the text both share, the token where it parts, the rest of its span, what follows."""

    name: str
    before: str
    token: str
    span: str
    rest: str
    probability: str
    score: str
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """A preference pair. `prompt` holds (role, text) of its last messages; `facts` are short sentences."""

    sample: str
    tools: str
    prompt: Sequence[tuple[str, str]]
    target: str
    sides: Sequence[Side]
    parts: Grid | None
    facts: Sequence[str]
    kind: str = "pair"


@dataclass(slots=True, kw_only=True)
class Span:
    """Tokens of an answer and what is known of them; `chain` follows without a choice, `children` part behind it.

    `good` is a value in [0, 1] for the bar beside it, None where there is none.
    """

    text: str
    facts: str
    good: float | None = None
    note: str = ""
    chain: list[Span] = field(default_factory=list)
    children: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The search tree, or the merged answers, of a sample."""

    sample: str
    facts: str
    prompt: Sequence[tuple[str, str]]
    root: Span
    kind: str = "tree"


Block = Grid | Chart | Text | Folded | Graph | PairView | Tree


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; one without blocks is left out."""

    name: str
    title: str
    blocks: Sequence[Block]


def dash(value: float | None, digits: int = 3) -> Cell:
    """A number as a cell, a dash for none."""
    return Cell("-") if value is None else Cell(f"{value:.{digits}f}", value)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds for people.

    Example:
        >>> clock(75), clock(3.25), clock(7300)
        ('1 min 15 s', '3.2 s', '2 h 01 min')
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def count(value: float | None) -> str:
    """A count in few characters.

    Example:
        >>> count(950), count(26040), count(3939160)
        ('950', '26.0k', '3.9M')
    """
    if value is None:
        return "-"
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.1f}{letter}"
    return f"{value:,.0f}"


def plural(number: int, word: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "row"), plural(2, "row")
        ('1 row', '2 rows')
    """
    return f"{number:,} {word}" + ("" if number == 1 else "s")


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Text in which characters that cannot be seen or written, or that turn the line around, stand as their codes.

    Example:
        >>> print(visible("a\x00b" + chr(0x202E) + "c" + chr(0xD800)))
        a\x00b\u202ec\ud800
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def middle(text: str, limit: int) -> str:
    """Both ends of a text that is too long: what tells labels apart often stands at their end.

    Example:
        >>> middle("abcdefgh", 5), middle("abcd", 4)
        ('ab\u2026gh', 'abcd')
    """
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "\u2026" + text[len(text) - tail :]


def short(text: str, limit: int) -> str:
    """The beginning of a text that is too long.

    Example:
        >>> len(short("abcdef", 4)), short("abcd", 4)
        (4, 'abcd')
    """
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"
