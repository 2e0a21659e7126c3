"""The parts of a page and how they become HTML. Every value is escaped by the template; markup comes only from the
templates and from `ttpa.results.report.charts`. A content security policy allows the page's own script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from ttpa import __version__
from ttpa.errors import ConfigError
from ttpa.io import write_text

LONGEST = 2000
"""Characters of one value; longer ones are cut."""
TEMPLATES = resources.files("ttpa.results.report") / "templates"


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell of a grid. It sorts by `value`, or by its text where that is None; `hint` is a tooltip; the mark of policy
    `arm` stands before it; a bar of `share` (in [0, 1]) lies below it. `tone` colours it: from -3 (worse) to 3 (better),
    0 for no clear difference, None for no colour. `strong`: the best of its column.
    """

    text: str
    value: float | None = None
    hint: str = ""
    href: str = ""
    tone: int | None = None
    share: float | None = None
    arm: int | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table; the first cell of a row names it and stays in sight when the table is scrolled."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[GridCell]]
    kind: str = "grid"

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers only (dashes aside) and is set to the right."""
        cells = [row[column] for row in self.rows if row[column].text not in ("", "-")]
        return bool(cells) and all(cell.value is not None for cell in cells)


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `warning` where something could not be shown."""

    text: str
    warning: bool = False
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading with the mark of a policy."""

    text: str
    arm: int
    kind: str = "heading"


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are shown on demand."""

    title: str
    blocks: Sequence[Any]
    arm: int | None = None
    kind: str = "folded"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A block with a template of its own: `kind` is pair, tree or browser, `data` what the template shows."""

    kind: str
    data: Any


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; one without blocks is left out."""

    name: str
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says. `head` holds names and texts below the title."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    head: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = field(default_factory=tuple)


# --- text ------------------------------------------------------------------------------------------------------------

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


def short(text: str, limit: int = LONGEST) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def middle(text: str, limit: int) -> str:
    """Both ends of a text that is too long: what tells labels apart often stands at their end.

    Example:
        >>> middle("abcdefgh", 5), middle("abcd", 4)
        ('ab\u2026gh', 'abcd')
    """
    tail = (limit - 1) // 2
    return text if len(text) <= limit else text[: limit - 1 - tail] + "\u2026" + text[len(text) - tail :]


def finite(value: Any) -> float | None:
    """The value if it is a finite number, else None: a file may hold anything there."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return float(value) if plain else None


def decimal(value: float | None, digits: int = 3) -> GridCell:
    """A number as a cell, a dash for none."""
    return GridCell("-") if value is None else GridCell(f"{value:,.{digits}f}", value)


def plural(number: int, word: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "row"), plural(2, "row"), plural(2, "policy")
        ('1 row', '2 rows', '2 policies')
    """
    many = word[:-1] + "ies" if word.endswith("cy") else word + "s"
    return f"{number:,} {word if number == 1 else many}"


# --- HTML ------------------------------------------------------------------------------------------------------------


def embedded(value: Any) -> str:
    r"""JSON that can stand inside a script element: no character of it can end the element or start a comment.

    Example:
        >>> print(embedded(["</script>", 1]))
        ["\u003c/script>",1]
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _finalize(value: Any) -> Any:
    return short(visible(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value


def render(page: Page) -> str:
    """The page as HTML."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, finalize=_finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["groups"] = lambda blocks: [list(g) for _, g in groupby(blocks, lambda b: b.kind == "chart")]
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string((TEMPLATES / "page.html").read_text(encoding="utf-8")).render(
        page=page,
        sections=[section for section in page.sections if section.blocks],
        embedded=lambda value: markupsafe.Markup(embedded(value)),
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def write(html: str, out: Path) -> int:
    """Writes the page whole or not at all; returns its size in bytes.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        write_text(out, html)
    except OSError as error:
        raise ConfigError.at("out", out, f"cannot be written ({error.strerror})", "Give a file") from None
    return out.stat().st_size
