"""The parts of a page and how they become HTML. Every value is escaped by the template; markup comes only from the
templates, and the page's script sets text as text. A content security policy allows that script and no request.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

from ttpa import __version__

TEMPLATES = resources.files("ttpa.results.report") / "templates"
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]"
)

Block = dict[str, Any]
"""A part of a section; its `kind` names the macro of page.html that shows it."""


class Cell(NamedTuple):
    """A cell of a table: `hint` is a tooltip; the mark of policy `arm` stands before the text. `tone` colours it: from
    -3 (worse) to 3 (better), 0 for no clear difference, None for no colour.
    """

    text: str
    hint: str = ""
    tone: int | None = None
    arm: int | None = None
    best: bool = False


def text(said: str, warning: bool = False) -> Block:
    """A paragraph; `warning` where something could not be shown."""
    return {"kind": "text", "text": said, "warning": warning}


def folded(title: str, blocks: Sequence[Block], arm: int | None = None) -> Block:
    """Blocks that are shown on demand, with the mark of a policy."""
    return {"kind": "folded", "title": title, "blocks": blocks, "arm": arm}


def grid(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell | str | float | None]]) -> Block:
    """A table; the first cell of a row names it and stays in sight when the table is scrolled. None is a dash."""
    return {"kind": "grid", "caption": caption, "columns": columns, "rows": [list(map(_cell, row)) for row in rows]}


def _cell(value: Cell | str | float | None) -> Cell:
    if isinstance(value, int | float):
        return Cell(f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}")
    return value if isinstance(value, Cell) else Cell("-" if value is None else value)


def pictures(charts: Sequence[Block]) -> list[Block]:
    """Charts beside each other, drawn by the page's script: each has a title and `rows` (intervals) or `lines`."""
    return [{"kind": "pictures", "charts": charts}] if charts else []


def short(said: str, limit: int = 2000) -> str:
    """The beginning of a text that is too long."""
    return said if len(said) <= limit else said[: limit - 1] + "\u2026"


def as_text(value: Any) -> str:
    """A value of a configuration as it is typed."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plural(number: int, word: str) -> str:
    """A count with its noun. Example: 2, "policy" -> "2 policies"."""
    many = word[:-1] + "ies" if word.endswith("cy") else word + "s"
    return f"{number:,} {word if number == 1 else many}"


def some(names: Sequence[str], most: int = 6) -> str:
    """The first of many names."""
    return "; ".join([*names[:most], *["..."] * (len(names) > most)])


def render(**values: Any) -> str:
    """page.html with its values: title, subtitle, head, and sections, of which those without blocks are left out."""
    import jinja2

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or hasattr(value, "__html__"):
            return value
        # What cannot be seen or written, or turns the line around, stands as its code.
        return short(HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), value))

    environment = jinja2.Environment(
        autoescape=True, finalize=finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    html, style, script = (
        (TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("page.html", "style.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(html).render(
        **values, style=style, script=script, script_hash=f"sha256-{digest}", version=__version__
    )
