"""The parts of a page and how they become HTML. The template escapes every value and the page's script sets text as
text; a content security policy allows that script and no request.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from ttpa import __version__

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]"
)

Block = tuple[str, Any]
"""A part of a section: its kind and its content. Kinds are `said` and `warning` (paragraphs), `heading`, and the macros
of page.html. A block without content is left out.
"""


def folded(title: str, blocks: Sequence[Block], arm: int | None = None) -> Block:
    """Blocks that are shown on demand, with the mark of a policy."""
    return "folded", {"title": title, "blocks": blocks, "arm": arm}


def grid(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Block:
    """A table of texts, numbers and None (a dash); the first cell of a row names it. A cell may also be a mapping: its
    `text`, a tooltip `hint`, whether it is `best`, the policy `arm` whose mark it has, and a colour `tone` from -3
    (worse) to 3 (better), 0 for no clear difference.
    """
    return "grid", {"caption": caption, "columns": columns, "rows": rows}


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


def render(sections: Mapping[str, Sequence[Block]], **values: Any) -> str:
    """page.html with its sections and other values: title, subtitle, head."""
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
    folder, names = resources.files("ttpa.results.report") / "templates", ("page.html", "style.css", "page.js")
    html, style, script = ((folder / name).read_text(encoding="utf-8").strip() for name in names)
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {name: [block for block in blocks if block[1]] for name, blocks in sections.items()}
    values |= {"sections": shown, "style": style, "script": script, "script_hash": digest, "version": __version__}
    return environment.from_string(html).render(**values)
