"""The shape of the library: no circle of imports, one direction between packages, heavy packages behind fences.

Every import statement counts, also inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Low to high; a package imports from itself or a lower one. A name is a file or a folder directly below ttpa/.
ORDER = ("errors", "io", "options", "endpoint", "records", "calls", "prompts", "policy", "data", "explore", "train",
         "run", "results", "benchmarks", "cli")  # fmt: skip

# Package -> the files or folders below ttpa/ that may import it. Empty: nobody.
FENCES = {
    "wandb": ("results.wandb",),
    "wandb_workspaces": ("results.dashboard",),
    "lightning": (),  # the other namespace of pytorch_lightning: their classes fail each other's isinstance
    "pytorch_lightning": ("train", "run", "results"),
    "transformers": ("policy", "prompts"),
    "peft": ("policy", "prompts"),
    "matplotlib": (),
    "jinja2": ("results.report", "results.render", "prompts"),
    "ray": ("run",),
    "vllm": ("policy",),
    "pydantic": tuple(package for package in ORDER if package not in ("io", "records", "calls", "prompts")),
    "openai": ("endpoint",),
}


def library(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name ("ttpa" for the package itself) -> file."""
    found = {}
    for path in sorted((root / "ttpa").rglob("*.py")):
        if "conf" not in path.relative_to(root).parts:
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """File -> the files it imports. A package's `__init__` that stands above a file is not its import."""
    found = {name: set(imported(path)) & files.keys() - {name} for name, path in files.items()}
    return {name: {x for x in others if not name.startswith(f"{x}.")} for name, others in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import each other, if there are some."""
    try:
        return list(TopologicalSorter(edges).static_order())[:0]
    except CycleError as error:
        return list(error.args[1])


def test_no_circle_between_files() -> None:
    assert not circle(graph(library()))
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("name", [name for name in library() if name != "ttpa"])
def test_file(name: str) -> None:
    path, place = library()[name], name.removeprefix("ttpa.")
    unit = place.split(".")[0]
    assert unit in ORDER, f"{name}: add {unit} to ORDER"
    for target in imported(path):
        top, _, rest = target.partition(".")
        if top == "ttpa" and rest and rest.split(".")[0] in ORDER:
            assert ORDER.index(rest.split(".")[0]) <= ORDER.index(unit), f"{name} imports {target}, which is above it"
        elif top in FENCES:
            inside = any(place == x or place.startswith(f"{x}.") for x in FENCES[top])
            assert inside, f"{name} imports {top}: only {FENCES[top]} may"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called.removeprefix("builtins.") not in ("eval", "exec"), f"{name}: calls {called}"


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_option_file_says_what_it_is_and_evaluates_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#")
    assert not re.search(r"\$\{[\w.]*\beval:", text)
