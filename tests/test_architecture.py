"""Holds the shape of the library: which way imports point, who may use which package, how long files and functions get.

Every import statement counts, also inside functions and under TYPE_CHECKING. Each rule is shown to fire on a sample of
source, then applied to every module of ttpa/. Option files have two rules here; their contents are tested elsewhere.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Low to high; a module imports from its own layer or a lower one. A name is a file or a folder directly below ttpa/.
LAYERS = (
    ("records", "errors"),
    ("toolcall", "text_stream", "prompts", "tree"),
    ("policy", "objectives"),
    (
        "data",
        "samplers",
        "scorers",
        "selection",
        "pairs",
        "store",
        "locks",
        "provenance",
        "executor",
        "shards",
        "trackers",
        "ranks",
        "modules",
        "evals",
    ),
    ("config", "stages", "pipeline", "cluster"),
    ("view", "cli", "dashboard", "score", "tables", "status", "sweep"),
    ("report",),
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

# Inside a layer: who must not know whom. A sampler receives a score function, never a scorer.
STRANGERS = {("samplers", "scorers"), ("scorers", "samplers")}

# Units that import nothing of ttpa but these, and units that import nothing but ttpa and the standard library.
ONLY = {"objectives": {"objectives", "records", "errors"}}
STANDARD_LIBRARY_ONLY = {"records", "errors"}

# Package -> the modules below ttpa/ that may import it, with all below them. Empty: nobody.
FENCES = {
    "wandb": ("trackers.wandb",),  # reached through the Lightning logger that conf/logger names
    "wandb_workspaces": ("dashboard",),
    "lightning": (),  # the other namespace of pytorch_lightning: their classes fail each other's isinstance
    "hydra": ("cli", "config", "score", "sweep", "tables.cells"),
    "omegaconf": ("cli", "config", "pipeline", "status", "store", "sweep", "tables.cells"),
    "pytorch_lightning": ("modules", "data.datamodules", "stages", "pipeline", "trackers"),
    "transformers": ("policy", "prompts"),
    "peft": ("policy", "prompts"),
    "matplotlib": ("report.charts",),
    "jinja2": ("report.page", "prompts"),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70


def library() -> dict[str, Path]:
    """Dotted name below ttpa ("" for the package itself) -> file."""
    found = {}
    for path in sorted((ROOT / "ttpa").rglob("*.py")):
        parts = path.relative_to(ROOT / "ttpa").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(module: str, tree: ast.AST, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute dotted name) for each import; `from a import b` gives `a.b`, which may be a module."""
    package = ["ttpa", *module.split(".")] if module else ["ttpa"]
    if not is_package:
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def inside(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def layer_problem(unit: str, target: str) -> str | None:
    """Why the unit may not import the target, both names directly below ttpa ("" for the package itself)."""
    if target in ("", unit):
        return None
    if target not in RANK:
        return f"imports ttpa.{target}, which has no layer: add it to LAYERS in {Path(__file__).name}"
    if unit in ONLY and target not in ONLY[unit]:
        return f"{unit} may import only {sorted(ONLY[unit])} of ttpa, not {target}"
    if (unit, target) in STRANGERS:
        return f"{unit} must not import {target}"
    if RANK.get(unit, -1) < RANK[target]:
        return f"{unit or 'ttpa/__init__.py'} must not import {target}, which lies in a higher layer"
    return None


def import_problems(module: str, tree: ast.AST, is_package: bool) -> Iterator[tuple[int, str]]:
    unit = module.split(".")[0]
    if unit and unit not in RANK:
        yield 1, f"ttpa.{unit} has no layer: add it to LAYERS in {Path(__file__).name}"
        return
    for line, name in imports(module, tree, is_package):
        top, _, rest = name.partition(".")
        if top == "ttpa":
            target = rest.split(".")[0]
            known = target in RANK or (ROOT / "ttpa" / target).exists() or (ROOT / "ttpa" / f"{target}.py").exists()
            if problem := layer_problem(unit, target if known else ""):
                yield line, problem
        elif top in FENCES and not inside(module, FENCES[top]):
            yield line, f"{top} may be imported only in {list(FENCES[top]) or 'no module'}"
        elif unit in STANDARD_LIBRARY_ONLY and top not in sys.stdlib_module_names:
            yield line, f"{unit} uses the standard library only, not {top}"


def names_of(node: ast.expr) -> set[str]:
    """The names along a dotted expression: `self.cfg.model` gives self, cfg, model."""
    names = set()
    while isinstance(node, ast.Attribute):
        names.add(node.attr)
        node = node.value
    return names | {node.id} if isinstance(node, ast.Name) else names


def call_problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if ast.unparse(called).removeprefix("builtins.") in ("eval", "exec"):
            yield node.lineno, f"calls {ast.unparse(called)}()"
        if isinstance(called, ast.Attribute) and called.attr == "get" and "cfg" in names_of(called.value):
            yield node.lineno, "cfg.get hides a missing key: state the default in the option file"


def length_problems(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        yield 1, f"{lines} lines, over {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.lineno, f"function {node.name} has {lines} lines, over {MAX_FUNCTION_LINES}"


def problems(module: str, source: str, is_package: bool = False) -> list[str]:
    """All that is wrong with one module, as `line N: reason`."""
    tree = ast.parse(source)
    found = [
        *import_problems(module, tree, is_package),
        *call_problems(tree),
        *length_problems(source, tree),
    ]
    return [f"line {line}: {reason}" for line, reason in sorted(found)]


@pytest.mark.parametrize("module", library())
def test_module(module: str) -> None:
    path = library()[module]
    found = problems(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    assert not found, "\n".join([f"{path.relative_to(ROOT)}", *found])


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("records", "import ttpa.toolcall", "higher layer"),
        ("policy.load", "def f():\n    from ttpa.store import stage", "line 2: policy must not import store"),
        ("toolcall.parse", "from .. import pipeline", "higher layer"),
        ("toolcall.parse", "from ..data.collate import f", "higher layer"),
        ("", "from ttpa.records import Sample", "ttpa/__init__.py must not import records"),
        ("samplers.tps", "from ttpa.scorers import esm", "samplers must not import scorers"),
        ("scorers.esm", "from ttpa import samplers", "scorers must not import samplers"),
        ("objectives.dpo", "from ttpa.tree import TokenTree", "may import only ['errors', 'objectives', 'records']"),
        ("records", "import numpy", "standard library only"),
        ("modules.callbacks", "import wandb", "wandb may be imported only in ['trackers.wandb']"),
        ("modules.base", "from lightning.pytorch import Trainer", "in no module"),
        ("pipeline", "from hydra.utils import instantiate", "['cli', 'config', 'score', 'sweep', "),
        ("samplers.mcts", "import omegaconf", "omegaconf may be imported only in"),
        ("data.collate", "import pytorch_lightning as pl", "pytorch_lightning may be imported only in"),
        ("modules.sft", "from transformers import AutoTokenizer", "transformers may be imported only in"),
        ("store", "if TYPE_CHECKING:\n    from peft import PeftModel", "peft may be imported only in"),
        ("report.numbers", "import matplotlib.pyplot as plt", "matplotlib may be imported only in ['report.charts']"),
        ("tables.render", "from ttpa.report import page", "tables must not import report, which lies in a higher"),
        ("unheard_of", "", "ttpa.unheard_of has no layer: add it to LAYERS in test_architecture.py"),
        ("evals.bfcl", "answer = eval(text)", "calls eval()"),
        ("evals.bfcl", "import builtins\nbuiltins.exec(text)", "calls builtins.exec()"),
        ("pipeline", "x = cfg.get('lr', 1)", "cfg.get"),
        ("pipeline", "x = self.cfg.model.get('lr')", "cfg.get"),
        ("tree", "\n" * (MAX_FILE_LINES + 1), "401 lines, over 400"),
        ("tree", LONG_FUNCTION, "function f has 71 lines, over 70"),
    ],
)
def test_rule_fires(module: str, source: str, reason: str) -> None:
    (found,) = problems(module, source)
    assert reason in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("toolcall.parse", "import json\nfrom ttpa.records import ToolCall\nfrom .schema import validate"),
        ("scorers.esm", "from . import shared\nfrom ttpa.toolcall import parse"),
        ("cli", "import hydra\nfrom ttpa import __version__, pipeline"),
        ("config", "from hydra.utils import instantiate\nfrom omegaconf import OmegaConf"),
        ("data.datamodules", "import pytorch_lightning as pl"),
        ("policy.load", "import transformers, peft\nmodel.eval()"),
        ("store", "row.get('key')"),
        ("tree", "\n" * MAX_FILE_LINES),
        ("tree", LONG_FUNCTION.removesuffix("    x = 1\n")),
    ],
)
def test_rules_leave_the_rest_alone(module: str, source: str) -> None:
    assert problems(module, source) == []


def option_files() -> list[str]:
    """Every option file but those of local/, which belong to one machine."""
    found = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")]
    return sorted(path.as_posix() for path in found if path.parts[0] != "local")


@pytest.mark.parametrize("name", option_files())
def test_option_file(name: str) -> None:
    text = (ROOT / "conf" / name).read_text(encoding="utf-8")
    assert text.startswith("#"), f"conf/{name} does not start with a comment that says what it is"
    # The group `eval` is a key; what is banned is code in a value, by any resolver of that name.
    assert not re.search(r"\$\{[\w.]*\beval:", text), f"conf/{name} evaluates code"
