"""The parts of a page and how they become HTML. The template escapes every value and the page's script sets text as
text; a content security policy allows that script and no request.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from ttpa import __version__
from ttpa.errors import visible

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
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if not isinstance(value, str) or hasattr(value, "__html__") else short(visible(value))

    def encode(value: Any, **form: Any) -> str:
        try:
            return json.dumps(value, allow_nan=False, **form)
        except ValueError:  # NaN and infinity are no JSON: the page's script would end there
            return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), **form)

    def tried(macro: Any, *given: Any) -> Any:
        try:
            return macro(*given)
        except (ValueError, TypeError, RecursionError, jinja2.UndefinedError):  # a value of a damaged row
            return Markup('<p class="warning">A damaged row is left out.</p>')

    environment = jinja2.Environment(
        autoescape=True, finalize=finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["tried"] = tried
    environment.policies |= {"json.dumps_function": encode, "json.dumps_kwargs": {"separators": (",", ":")}}
    folder, names = resources.files("ttpa.results.report") / "templates", ("page.html", "style.css", "page.js")
    html, style, script = ((folder / name).read_text(encoding="utf-8").strip() for name in names)
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {name: [block for block in blocks if block[1]] for name, blocks in sections.items()}
    values |= {"sections": shown, "style": style, "script": script, "script_hash": digest, "version": __version__}
    return environment.from_string(html).render(**values)
