"""How long `ttpa table` takes on 10,000 run records: a table of 96 rows and 5 seeds among records of other runs.

python experiments/speed/table.py [records] [folder]

Makes the records once (a small run's record with other configurations and numbers), then measures the command with a
cold process three times, and prints where the time goes. Nothing is trained.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ttpa.results.cells import Records, TableCell, read_cells
from ttpa.run import config
from ttpa.run.parts import VERSIONS

TABLE = """\
title: "Sampler x scorer x objective x selection"
claim: measures ttpa table and nothing else.
columns:
  - {key: all, label: all, metric: accuracy, scale: 100, digits: 1}
  - {key: hard, label: hard, metric: bands.hard, scale: 100, digits: 1}
  - {key: value, label: value errors, metric: errors.parameter_value, better: low}
rows:
  - {key: warm, label: warm-up, policy: warm-up}
  - product:
      sampler: [group, tps, mcts]
      scorer: [esm, ast, ast_partial, toolrl]
      objective: [dpo, simpo, ipo, rft]
      select: [all, perplexity]
differences: [[tps+esm+dpo+all, group+esm+dpo+all], [tps+esm+dpo+all, warm]]
presets:
  embedded: {overrides: [], seeds: [0, 1, 2, 3, 4]}
"""


def share(rng: random.Random) -> dict[str, float]:
    value = rng.random()
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 1200}


def metrics(rng: random.Random) -> dict[str, object]:
    labels = ("format", "tool_name", "missing_required", "parameter_name", "parameter_type", "parameter_value")
    return {
        "accuracy": share(rng),
        "bands": {band: share(rng) for band in ("easy", "medium", "hard")},
        "unseen_tool": share(rng),
        "errors": {label: share(rng) for label in (*labels, "call_count")},
        "split": "test",
    }


def cells(folder: Path) -> list[TableCell]:
    return read_cells(folder)[2]


def write(folder: Path, number: int) -> None:
    """`number` records: those of the table, and others with another number of samples."""
    (folder / "table.yaml").write_text(TABLE)
    results = folder / "results"
    results.mkdir()
    every = [cell for cell in cells(folder) if not cell.row.warmup_only]
    built = {"data": "data", "warmup": "warmup", "baseline": "evaluate", "explore1": "explore", "align1": "align"}
    stages = {role: f"{name}-0123456789ab" for role, name in built.items()}
    for at in range(number):
        cell, rng = every[at % len(every)], random.Random(at)
        groups = config.identity(cell.cfg, *config.IDENTITY)
        groups["data"]["explore_samples"] += at // len(every)
        row = {"run": f"{at:012x}", "row_version": 1, "name": "speed", "seed": cell.seed, "rounds": 1, "choices": {},
               "config": groups, "stages": stages | {"evaluation": f"evaluate-{at:012x}"},
               "versions": dict(VERSIONS), "baseline": metrics(random.Random(cell.seed)),
               "metrics": metrics(rng), "explored": {},
               "cost": {role: {"seconds": 1.5, "tokens": 1000} for role in stages}}  # fmt: skip
        (results / f"speed-{at:012x}.jsonl").write_text(json.dumps(row, separators=(",", ":")) + "\n")


def main(number: int, folder: Path) -> None:
    if not (folder / "results").exists():
        write(folder, number)
    command = [sys.executable, "-m", "ttpa.cli", "table", str(folder), f"results={folder / 'results'}"]
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"ttpa table: {time.perf_counter() - start:.2f} s, {len(done.stdout.splitlines())} lines")
    start = time.perf_counter()
    every = cells(folder)
    middle = time.perf_counter()
    Records(every, folder / "results")
    end = time.perf_counter()
    print(f"{len(every)} cells of {len({cell.row for cell in every})} rows: {middle - start:.2f} s")
    print(f"{number} records: {end - middle:.2f} s")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    if len(sys.argv) > 2:
        main(count, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(count, Path(made))
