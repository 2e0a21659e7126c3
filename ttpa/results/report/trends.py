"""What changes along something: training curves, the heat map over two settings, accuracy against the amount of data.

Curves are read from the stages' log files, all else from result rows. Numbers are means over seeds; nothing is fitted.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError
from ttpa.results.report import charts
from ttpa.results.report.blocks import Block, Text, plural
from ttpa.results.report.charts import Line
from ttpa.results.report.gather import Arm, Gathered
from ttpa.results.report.numbers import SHOWN_ARMS, drawn, mean_of, over_seeds, plain, shares, whisker
from ttpa.results.report.rows import Stage, settings

AMOUNT = re.compile(r"(data|select)\.(?!validation|test)(\w+_samples|max_rows|\w*fraction|\w*share|limit)")
"""Settings that say how much of the data a policy saw."""
CURVES = {
    "loss": "loss",
    "nll_loss": "negative log-likelihood of the chosen answer",
    "reward": "mean reward of drawn answers",
    "exact": "share of drawn answers that are right",
    "kl": "KL to the reference",
    "entropy": "entropy of drawn tokens",
    "completions/mean_length": "mean length of drawn answers, tokens",
    "rewards/margins": "margin of implicit rewards",
    "rewards/accuracies": "share of pairs ranked right",
    "logps/chosen": "log-prob of the chosen answer",
    "logps/rejected": "log-prob of the rejected answer",
    "grad_norm": "gradient norm",
}

Curve = tuple[list[float], list[float]]
"""Optimiser steps (or rounds) and values."""


# --- curves ----------------------------------------------------------------------------------------------------------


def logged(stage: Stage) -> dict[str, Curve]:
    """What a training stage logged: metric -> curve. Rounds of drawn answers, where kept, say rewards in full. An
    attempt that goes on from a checkpoint logs some steps again: the last attempt counts.
    """
    points: dict[str, dict[float, float]] = {}
    for file in sorted(stage.folder.glob("logs/version_*/metrics.csv"), key=lambda one: (len(one.parent.name), one)):
        for row in _csv(file):
            step = _float(row.get("step"))
            for key, text in row.items():
                value = _float(text)
                if key in CURVES and step is not None and value is not None:
                    points.setdefault(key, {})[step + 1] = value
    found: dict[str, Curve] = {key: (sorted(one), [one[k] for k in sorted(one)]) for key, one in points.items()}
    if not found.get("reward") or len(found["reward"][0]) < 3:
        for number, metrics in _rounds(stage.folder / "rollouts.jsonl"):
            for key, item in metrics.items():
                value = plain(item)
                if key in CURVES and value is not None:
                    if number == 0:
                        found[key] = ([], [])
                    found.setdefault(key, ([], []))
                    found[key][0].append(number + 1)
                    found[key][1].append(value)
    return found


def _csv(file: Path) -> Iterator[Mapping[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines)
    except (OSError, UnicodeDecodeError, csv.Error):
        return


def _rounds(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and metrics of each round. What was drawn comes last in a line and is left unread: it is long."""
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                head, sign, _ = line.partition(',"groups":[')
                row = json.loads(head + "}" if sign else line)
                yield int(row["number"]), row["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if value == value and abs(value) != float("inf") else None


def curves(found: Gathered) -> list[Block]:
    """What the stages that train logged; thin lines are seeds, thick ones their means."""
    by_metric: dict[str, list[tuple[Arm, Line]]] = {}
    without: list[tuple[Arm, Stage]] = []
    for arm in found.policies:
        stages = [found.stages[r.stages["warmup" if arm.warmup else r.last_policy]] for r in arm.records.values()]
        logs = [logged(stage) for stage in stages]
        for metric in CURVES:
            runs = [log[metric] for log in logs if metric in log and len(log[metric][0]) > 1]
            if runs:
                by_metric.setdefault(metric, []).extend((arm, line) for line in _mean_lines(arm.label, runs))
        if not any(len(x) > 1 for log in logs for x, _ in log.values()):
            without += [(arm, stage) for stage in stages]
    blocks: list[Block] = []
    for number, (metric, known) in enumerate(sorted(by_metric.items(), key=lambda one: list(CURVES).index(one[0]))):
        title = CURVES[metric].capitalize() if metric != "kl" else CURVES[metric]
        some, said = drawn(found, list({arm.label: arm for arm, _ in known}.values()))
        series = [line for arm, line in known if any(arm is one for one in some)]
        thin = "Thin lines are seeds, thick ones their means." if any(line.thin for line in series) else ""
        ends = ", ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in series)
        note = f"{thin}{said}".strip()
        about = f"{title} by optimiser step: {ends}. {note}".strip()
        every = [line for _, line in known]
        blocks.append(charts.lines(f"curve-{number}", title, about, series, x="step", y=metric, note=note, every=every))
    return [*blocks, *_no_curves(without)]


def _no_curves(without: Sequence[tuple[Arm, Stage]]) -> list[Block]:
    """Why training stages have no curve, by what is in their folders; which logger a run had is written nowhere."""
    reasons: dict[str, tuple[set[str], dict[str, None]]] = {}
    for arm, stage in without:
        logs = stage.folder / "logs"
        if not stage.there:
            why = "not in the store"
        elif any(logs.rglob("events.out.tfevents.*")):
            why = "no curves for this page: there are TensorBoard's files, see them with tensorboard --logdir"
        elif any(logs.glob("version_*")):
            why = "fewer than two logged points, too few for a curve (trainer.log_every_n_steps)"
        else:
            why = "no curves for this page: logger=csv writes them; with logger=wandb see the stage's W&B run"
        ids, labels = reasons.setdefault(why, (set(), {}))
        ids.add(stage.id)
        labels[arm.label] = None
    return [
        Text(f"{plural(len(ids), 'training stage')} ({_listed(list(labels))}): {why}.", why == "not in the store")
        for why, (ids, labels) in reasons.items()
    ]


def _listed(labels: Sequence[str], most: int = 4) -> str:
    return "; ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _mean_lines(label: str, runs: Sequence[Curve]) -> list[Line]:
    """The mean over runs at the steps that all of them logged; a line a run where there are no two such steps."""
    if len(runs) == 1:
        return [Line(label=label, x=runs[0][0], y=runs[0][1])]
    known = [dict(zip(x, y, strict=True)) for x, y in runs]
    steps = sorted(set(known[0]).intersection(*known[1:]))
    if len(steps) < 2:
        return [Line(label=f"{label} ({number})", x=x, y=y) for number, (x, y) in enumerate(runs, 1)]
    return [Line(label=label, x=steps, y=[statistics.mean(one[k] for one in known) for k in steps], thin=runs)]


# --- across arms -----------------------------------------------------------------------------------------------------


def axis_values(found: Gathered, axis: str) -> list[str]:
    """What an axis of the heat map takes: an option group, or a dotted setting; in order of appearance.

    Raises:
        ConfigError: nothing of that name.
    """
    values = [_at(arm, axis) for arm in found.arms]
    if any(value is None for value in values):
        known = ", ".join(found.varying) or "none"
        raise ConfigError.at("axes", axis, "no option group or setting of these runs", f"Groups that differ: {known}")
    return list(dict.fromkeys(value for value in values if value is not None))


def _at(arm: Arm, axis: str) -> str | None:
    if axis in arm.first.choices:
        return str(arm.first.choices[axis])
    whole = settings(arm.first)
    if axis not in whole:
        return None
    return whole[axis] if isinstance(whole[axis], str) else json.dumps(whole[axis], ensure_ascii=False)


def heat_map(found: Gathered, axes: Sequence[str]) -> list[Block]:
    """Mean accuracy over two axes; without a choice, the two groups that differ most."""
    if not axes:
        ranked = sorted(found.varying, key=lambda group: -len(axis_values(found, group)))[:2]
        axes = [group for group in found.varying if group in ranked]
    if len(axes) < 2 or not found.arms:
        return []
    rows, columns = (axis_values(found, axis) for axis in axes)
    places = [(_at(arm, axes[0]), _at(arm, axes[1])) for arm in found.arms]
    cells = [
        [[arm for arm, at in zip(found.arms, places, strict=True) if at == (row, column)] for column in columns]
        for row in rows
    ]
    values = [[over_seeds([mean_of(arm) for arm in cell]).value for cell in line] for line in cells]
    seeds = [[min((len(arm.records) for arm in cell), default=None) for cell in line] for line in cells]
    marked, few = charts.fewer(seeds)
    most = max((len(cell) for line in cells for cell in line), default=0)
    mixed = f" A cell is a mean over up to {most} policies that differ in other settings." if most > 1 else ""
    title = f"Accuracy by {axes[0]} and {axes[1]}"
    note = f"Rows are {axes[0]}, columns are {axes[1]}; each cell is the mean accuracy over seeds.{mixed}{few}"
    return [charts.heat("heat", title, note, rows, columns, values, marked=marked, note=note)]


def gain_decay(found: Gathered) -> list[Block]:
    """Accuracy against the amount of data, a line a policy, where runs differ in how much they saw. Where the amount is
    of exploration, a line begins with the policy before it, which saw none.
    """
    whole = [settings(arm.first) for arm in found.arms]
    keys = [
        k for k in (whole[0] if whole else {}) if AMOUNT.fullmatch(k) and len({str(one.get(k)) for one in whole}) > 1
    ]
    return [chart for number, key in enumerate(keys) if (chart := _decay(found, key, f"decay-{number}")) is not None]


def _decay(found: Gathered, key: str, name: str) -> Block | None:
    lines: dict[str, list[tuple[float, Arm]]] = {}
    lost = 0
    for arm in found.arms:
        rest = {k: v for k, v in settings(arm.first).items() if k != key}
        amount = _amount(found, arm, key)
        if amount is None:
            lost += 1
            continue
        lines.setdefault(json.dumps([rest, dict(arm.first.choices)], sort_keys=True), []).append((amount, arm))
    most = max((amount for points in lines.values() for amount, _ in points), default=0.0)
    if len({amount for points in lines.values() for amount, _ in points}) < 2:
        return Text(f"{lost} cells do not say their {key} as a number, so there is no curve.") if lost else None
    scale = most if most > 1 else 1.0
    series = []
    for points in lines.values():
        first = points[0][1]
        begun = found.start_of(first)
        if begun and not key.startswith("data.warmup") and key != "data.max_rows":
            points.append((0.0, begun))
        points.sort(key=lambda one: one[0])
        known = [(x / scale, arm, y) for x, arm in points if (y := mean_of(arm)) is not None]
        ends = [whisker([shares(arm.metrics(seed)).get("accuracy") for seed in arm.records]) for _, arm, _ in known]
        own = [arm for _, arm in points if not arm.warmup]
        name = re.escape(key.rpartition(".")[2])
        label = re.sub(rf"( \+ )?({name}=\S+|no {name}\b)", "", found.common(own))
        series.append(
            Line(
                label=label or str(first.first.choices.get("objective") or first.label),
                x=[x for x, _, _ in known],
                y=[y for _, _, y in known],
                low=[low for low, _ in ends],
                high=[high for _, high in ends],
            )
        )
    unit = f"share of the most data ({key} up to {most:g})" if scale > 1 else f"share of the data ({key})"
    note = (
        "Bars: 95 % interval of a single seed, standard deviation of several."
        + (f" {lost} cells are left out: they do not say their amount." if lost else "")
        + (f" The picture holds the first {SHOWN_ARMS} of {len(series)} lines." if len(series) > SHOWN_ARMS else "")
    )
    about, shown = f"Mean accuracy against {key}. {note}", series[:SHOWN_ARMS]
    look: dict[str, Any] = {"x": unit, "y": "accuracy", "marks": True, "note": note, "every": series}
    return charts.lines(name, "Gain against data", about, shown, **look)


def _amount(found: Gathered, arm: Arm, key: str) -> float | None:
    """How much data an arm saw; without a limit, what there was."""
    value = settings(arm.first).get(key)
    if value is None and key.startswith("select."):
        there = found.stages[arm.first.stages["data"]].metrics.get("samples") if "data" in arm.first.stages else None
        whole = there.get("explore") if isinstance(there, Mapping) else None
        return plain(whole if whole is not None else arm.first.config.get("data.explore_samples"))
    return plain(value)
