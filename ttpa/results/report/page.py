"""Puts blocks into the page and the page on disk. One file: style, script and pictures are inside, nothing is fetched.

Every value is escaped by the template engine, and what cannot be seen or encoded stands as its code. Markup comes only
from the template and from `ttpa.results.report.charts`. A content security policy allows this page's own script and no other,
and no request of any kind.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ttpa import __version__
from ttpa.errors import ConfigError
from ttpa.results.report.blocks import Section, short, visible
from ttpa.results.report.palette import DARK, LIGHT

LONGEST = 2500
"""Characters of one value."""
SHORT_NAME = 17
FOLDER = resources.files("ttpa.results.report") / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says. `head` are names and texts below the title; `warnings` are told whoever makes it."""

    title: str
    subtitle: str
    head: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()


def _finalize(value: Any) -> Any:
    """What is shown of a value: text with nothing hidden in it, cut where it is very long. Markup stays as it is."""
    return short(visible(value), LONGEST) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _breaks(text: str) -> Any:
    """A long name without a space, such as a setting's, with places to break it: behind its dots and underscores."""
    shown = markupsafe.escape(_finalize(text))
    if " " in text or len(text) < SHORT_NAME:
        return shown
    return markupsafe.Markup(re.sub(r"([._])(?=[a-z])", r"\1<wbr>", str(shown)))


def render(page: Page) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, finalize=_finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breaks"] = _breaks
    style, script = ((FOLDER / name).read_text(encoding="utf-8").strip() for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string((FOLDER / "page.html").read_text(encoding="utf-8")).render(
        title=page.title,
        subtitle=page.subtitle,
        head=page.head,
        sections=[section for section in page.sections if section.blocks],
        light=LIGHT,
        dark=DARK,
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def write(html: str, out: Path) -> int:
    """Writes the page whole or not at all; gives its size in bytes.

    Raises:
        ConfigError: it cannot be written there.
    """
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(html, encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError.at("out", out, f"cannot be written ({error.strerror})", "Give a file") from None
    return out.stat().st_size
