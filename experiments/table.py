"""Prints the Markdown table of a run name from its result rows: mean and standard deviation over seeds.

python experiments/table.py demo [results folder]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

COLUMNS = {"all": ("accuracy",), "easy": ("bands", "easy"), "medium": ("bands", "medium"), "hard": ("bands", "hard"),
           "unseen tool": ("unseen_tool",)}  # fmt: skip


def value(metrics: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        metrics = metrics.get(key) or {}
    return metrics.get("value")


def cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(name: str, folder: Path) -> None:
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found["warm-up"][row["seed"]] = row["baseline"]
        found[row["choices"]["objective"]][row["seed"]] = row["metrics"]
    print("| policy | seeds | " + " | ".join(COLUMNS) + " | against warm-up | against rft |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for policy, seeds in found.items():
        shares = [[v for m in seeds.values() if (v := value(m, path)) is not None] for path in COLUMNS.values()]
        paired = []
        for other in ("warm-up", "rft"):
            same = sorted(set(seeds) & set(found[other])) if policy != other else []
            paired.append(cell([value(seeds[s], ("accuracy",)) - value(found[other][s], ("accuracy",)) for s in same]))
        print(f"| {policy} | {len(seeds)} | " + " | ".join([*map(cell, shares), *paired]) + " |")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "results"))
