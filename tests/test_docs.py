"""README and docs: links lead somewhere, commands name what exists, terms are defined where they are first used."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from ttpa.cli import COMMANDS
from ttpa.results.cells import compose_run, open_hydra
from ttpa.results.spec import load

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
PAGES = [ROOT / "README.md"]
PAGES += [ROOT / link for link in LINK.findall(PAGES[0].read_text("utf-8")) if link.startswith("docs/")]
OWN = ("my_pkg", "experiments/mine")  # files that a page has its reader write


def commands() -> list[list[str]]:
    """The words behind `ttpa` of every command in a bash block."""
    blocks = [block for page in PAGES for kind, block in BLOCK.findall(page.read_text("utf-8")) if kind == "bash"]
    text = re.sub(r"^torchrun .* -m ttpa\.cli", "ttpa", "\n".join(blocks), flags=re.M)
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    found = [words[1:] for words in lines if words and words[0].endswith("ttpa")]
    return [words for words in found if "--config-dir" not in words and not any(o in w for o in OWN for w in words)]


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("experiments/**/*.md"), ROOT / "CHANGELOG.md"], ids=str)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [page.parent / link for link in LINK.findall(BLOCK.sub("", text)) if "://" not in link]
    files = [ROOT / name for name in re.findall(r"`((?:ttpa|conf|tests)/[\w/.-]+)`", text) if page in PAGES]
    assert [str(path) for path in links + files if not path.exists() and not any(o in str(path) for o in OWN)] == []


def test_commands_name_what_exists() -> None:
    assert len(commands()) > 30
    with open_hydra():
        for words in commands():
            known: set[str] = set()
            if words and words[0] in COMMANDS:
                known = set(re.findall(r"[a-z_]+", import_module(COMMANDS[words[0]]).HELP))
                _ = [load(ROOT / word) for word in words if word.startswith("experiments/")]
            if words and words[0] == "data":  # its keys are those of a run, whose data= it recognises
                known, words = set(), ["data=messages", *words]
            keyed = [word.split("=", 1) for word in words if "=" in word and word.partition("=")[0] not in known]
            swept = {key: [value] if "[" in value else value.split(",") for key, value in keyed}
            for at in range(max(map(len, swept.values()), default=0)):
                compose_run([f"{key}={values[at % len(values)]}" for key, values in swept.items()])


@pytest.mark.parametrize("term", ["cell", "wave", "band", "sibling", "gold", "token tree"])
def test_terms_are_defined_at_first_use(term: str) -> None:
    text = "\n".join(re.sub(r"`[^`]*`|\]\([^)]*\)", "", BLOCK.sub("", page.read_text("utf-8"))) for page in PAGES)
    first = re.search(rf"\b{term.replace(' ', '[- ]')}s?\b", text, re.I)
    assert first and re.match(rf"\*{term}\*[^.]*?:\s", text[first.start() - 1 :]), (
        first and text[first.start() - 60 :][:99]
    )
