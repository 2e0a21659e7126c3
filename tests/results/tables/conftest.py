"""A table, and records of its cells that no run had to make."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ttpa.results.tables import cells, spec
from ttpa.run import config
from ttpa.run.stages import VERSIONS

TABLE: dict[str, Any] = {
    "title": "SimPO & friends: 100 % of #1_a",
    "claim": "the claim.",
    "paper": {"name": "Paper", "arxiv": "2501.00001", "where": "Table 2"},
    "columns": [
        {"key": "all", "label": "all", "metric": "accuracy", "scale": 100, "digits": 1},
        {"key": "value", "label": "value errors", "metric": {"embedded": "errors.parameter_value"}, "better": "low"},
    ],
    "rows": [
        {"key": "warm", "label": "warm-up", "policy": "warm-up"},
        {"key": "sft", "label": "SFT", "overrides": ["objective=gold"]},
        {"key": "ours", "label": "ours", "overrides": ["objective=simpo", "sampler=tps"]},
    ],
    "differences": [["ours", "sft"]],
    "published": [
        {"row": "ours", "column": "all", "value": 58.1, "source": "v5, Table 2", "trust": "printed", "note": "7B"}
    ],
    "presets": {
        "embedded": {"overrides": [], "seeds": [0, 1, 2], "waves": ["warmup", "explore", None]},
        "cluster": {"overrides": ["data.explore_samples=5"], "seeds": [0]},
    },
}


def share(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": None if value is None else value - 0.1, "high": 1.0, "n": 100}


def metrics(accuracy: float, errors: float | None = 0.25) -> dict[str, Any]:
    return {"accuracy": share(accuracy), "errors": {"parameter_value": share(errors)}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `TABLE`, below an empty working directory."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "experiments" / "demo"
    made.mkdir(parents=True)
    write_table(made, TABLE)
    return made


def write_table(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / "table.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def found(folder: Path, *extra: str, preset: str = "embedded") -> list[cells.Cell]:
    wanted = spec.load(folder)
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, wanted.preset(preset), extra)
        for cell in every:
            cell.compose()  # while Hydra is there
    return every


def row_of(cell: cells.Cell, **changes: Any) -> dict[str, Any]:
    """A record as `pipeline.record` writes it."""
    groups = {group: json.loads(text) for group, text in zip(config.IDENTITY, cell.key.groups, strict=True)}
    roles = {"data": "data", "warmup": "warmup", "baseline": "evaluate", "explore1": "explore", "align1": "align"}
    stages = {role: f"{name}-000000000000" for role, name in roles.items()}
    stages |= {"baseline": f"evaluate-warm{cell.seed}", "evaluation": f"evaluate-{cell.row.key}{cell.seed}"}
    row = {
        "run": f"{cell.row.key}{cell.seed}", "row_version": 1, "name": "another name", "seed": cell.seed,
        "rounds": cell.key.rounds, "choices": {}, "config": groups, "stages": stages, "versions": dict(VERSIONS),
        "baseline": metrics(0.2), "metrics": metrics(0.5), "explored": {},
        "cost": {role: {"seconds": 2.0, "tokens": None if role == "data" else 10} for role in stages},
    }  # fmt: skip
    return {**row, **changes}


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Writes the record of a cell, with changes."""

    def written(cell: cells.Cell, name: str = "", **changes: Any) -> Path:
        results = folder.parents[1] / "results"
        results.mkdir(exist_ok=True)
        path = results / f"{name or f'x-{cell.row.key}-{cell.seed}'}.jsonl"
        path.write_text(json.dumps(row_of(cell, **changes)) + "\n")
        return path

    return written
