"""README and docs: links lead somewhere, commands name what exists, terms are defined where they are first used."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from ttpa.cli import COMMANDS
from ttpa.results.cells import compose_run, open_hydra
from ttpa.results.spec import load

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
PAGES = [README, *(ROOT / link for link in LINK.findall(README.read_text("utf-8")) if link.startswith("docs/"))]
TERMS = ("cell", "wave", "band", "sibling", "gold", "token tree")
FLAGS = ("-m", "--help", "--cfg", "job")


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each `ttpa` line of a bash block that needs no option file of the reader's own."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        files = re.findall(r"conf/\w+/(\w+)\.yaml", text)
        own = [f"={name}" for name in files if not list((ROOT / "conf").glob(f"*/{name}.yaml"))]
        for line in "\n".join(block for kind, block in BLOCK.findall(text) if kind == "bash").splitlines():
            words = shlex.split(line, comments=True)
            if "ttpa.cli" in words:
                words = words[words.index("ttpa.cli") :]
            mine = "--config-dir" in words or any(word.endswith(tuple(own)) for word in words if own)
            if words and words[0].endswith(("ttpa", "ttpa.cli")) and not mine:
                found.append((page.name, words[1:]))
    return found


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("experiments/**/*.md")), ROOT / "CHANGELOG.md"], ids=str)
def test_links_exist(page: Path) -> None:
    links = [link for link in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_compose() -> None:
    shown = commands()
    assert len(shown) > 30
    with open_hydra():
        for page, words in shown:
            if words and words[0] in COMMANDS:
                help_text = import_module(COMMANDS[words.pop(0)]).HELP
                known = set(re.findall(r"[a-z_]+", help_text))
                if words and words[0].startswith("experiments/"):
                    load(ROOT / words[0])
                words = [word for word in words if "=" in word and word.partition("=")[0] not in known]
            overrides = [word if "[" in word else word.split(",")[0] for word in words if word not in FLAGS]
            assert compose_run(overrides), page  # an unknown group, option or key raises
            for word in words:  # the other options of a sweep
                for value in word.partition("=")[2].split(",")[1:] if "[" not in word else ():
                    compose_run([f"{word.partition('=')[0]}={value}"])


@pytest.mark.parametrize("term", TERMS)
def test_terms_are_defined_at_first_use(term: str) -> None:
    text = "\n".join(re.sub(r"`[^`]*`|\]\([^)]*\)", "", BLOCK.sub("", page.read_text("utf-8"))) for page in PAGES)
    first = re.search(rf"\b{term.replace(' ', '[- ]')}s?\b", text, re.I)
    assert first, f"{term} is used nowhere"
    assert re.match(rf"\*{term}\*[^.]*?:\s", text[first.start() - 1 :]), text[first.start() - 60 : first.end() + 60]
