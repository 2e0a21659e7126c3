"""Draws what a run of GRPO got while it trained: mean reward and share of right answers, by optimiser step, over seeds.

python experiments/curves.py slm_grpo [results folder] [store] --out experiments/slm_grpo/reward.svg

Reads result rows and the `rollouts.jsonl` of their align stages; needs matplotlib (extra `report`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

SHOWN = (("reward", "mean reward of drawn answers", "#0072b2"), ("exact", "share of them that are right", "#d55e00"))


def curves(name: str, results: Path, store: Path) -> dict[int, dict[str, list[float]]]:
    """Seed -> metric -> its value in each round."""
    found: dict[int, dict[str, list[float]]] = {}
    for path in sorted(results.glob(f"{name}-*.jsonl")):
        row = json.loads(path.read_text(encoding="utf-8"))
        file = store / row["stages"].get("align1", "") / "rollouts.jsonl"
        if file.is_file():
            with file.open(encoding="utf-8") as lines:
                rounds = [json.loads(line)["metrics"] for line in lines]
            found[row["seed"]] = {key: [one[key] for one in rounds] for key, _, _ in SHOWN}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    parser.add_argument("store", nargs="?", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = curves(args.name, args.results, args.store)
    if not found:
        raise SystemExit(f"no rollouts.jsonl of runs named {args.name} in {args.store}")
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for key, label, colour in SHOWN:
        length = min(len(one[key]) for one in found.values())
        values = np.array([one[key][:length] for one in found.values()])
        steps = np.arange(1, length + 1)
        for line in values:
            axes.plot(steps, line, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, values.mean(0), color=colour, linewidth=2, label=label)
    axes.set(xlabel="round", ylim=(0, 1), title=f"{args.name}: {len(found)} seeds, thick lines are means")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
