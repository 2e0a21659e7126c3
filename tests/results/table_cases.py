"""A table, and records of its cells that no run had to make."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ttpa.results.cells import TableCell, read_cells
from ttpa.run import config
from ttpa.run.parts import VERSIONS

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
        {
            "row": "ours",
            "column": "all",
            "value": 581,
            "unit_scale": 0.1,
            "source": "v5, Table 2",
            "trust": "printed",
            "note": "7B",
        }
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


def changed(*path: Any, value: Any) -> dict[str, Any]:
    """`TABLE` with another value at a path."""
    content: Any = copy.deepcopy(TABLE)
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return content  # type: ignore[no-any-return]


def write_table(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / "table.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def found(folder: Path, *extra: str, preset: str = "embedded") -> list[TableCell]:
    """The cells of a folder's table."""
    return read_cells(folder, preset, extra)[2]


def row_of(cell: TableCell, **changes: Any) -> dict[str, Any]:
    """A record as `pipeline.record` writes it."""
    roles = {"data": "data", "warmup": "warmup", "baseline": "evaluate", "explore1": "explore", "align1": "align"}
    stages = {role: f"{name}-000000000000" for role, name in roles.items()}
    stages |= {"baseline": f"evaluate-warm{cell.seed}", "evaluation": f"evaluate-{cell.row.key}{cell.seed}"}
    row = {
        "run": f"{cell.row.key}{cell.seed}", "row_version": 1, "name": "another name", "seed": cell.seed,
        "rounds": cell.cfg.rounds, "choices": {}, "config": config.identity(cell.cfg, *config.IDENTITY),
        "stages": stages, "versions": dict(VERSIONS), "baseline": metrics(0.2), "metrics": metrics(0.5), "explored": {},
        "cost": {role: {"seconds": 2.0, "tokens": None if role == "data" else 10} for role in stages},
    }  # fmt: skip
    return {**row, **changes}


def write(cell: TableCell, name: str = "", **changes: Any) -> Path:
    """Writes the record of a cell, with changes, to results/ of the working directory."""
    results = Path("results")
    results.mkdir(exist_ok=True)
    path = results / f"{name or f'x-{cell.row.key}-{cell.seed}'}.jsonl"
    path.write_text(json.dumps(row_of(cell, **changes)) + "\n")
    return path
