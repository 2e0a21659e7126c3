"""How the policies came about: training curves, the table of stages, configurations side by side, provenance."""

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from ttpa.results.records import is_number
from ttpa.results.report.page import Block, Cell, as_text, folded, grid, pictures, plural, short, some, text
from ttpa.results.report.study import StageFolder, Study, as_mapping, lines_of, objects

FEW, MOST_ARMS, MOST_CURVES, POINTS = 30, 24, 12, 160
"""Rows of a table that is not folded; columns of configurations; training stages with curves; points of a curve."""
CURVES = (
    "loss", "reward", "exact", "nll_loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "kl", "entropy", "completions/mean_length", "grad_norm",
)  # fmt: skip
"""Metrics that are drawn, in this order; page.html has their names."""
MADE_WITH = ("commit", "dirty", "packages", "python", "platform", "host", "cpu", "cpu_count", "gpu")
Curve = dict[float, float]  # optimiser step (or round) -> value


def logged(stage: StageFolder) -> dict[str, Curve]:
    """What a training stage logged, by metric. Of a step that was logged again after a restart the last value
    counts.
    """
    found: dict[str, Curve] = {}

    def add(step: Any, values: Mapping[str, Any]) -> None:
        for key in set(CURVES) & set(values):
            with suppress(TypeError, ValueError):
                if is_number(float(values[key])) and is_number(float(step)):
                    found.setdefault(key, {})[float(step) + 1] = float(values[key])

    for file in sorted(stage.path.glob("logs/version_*/metrics.csv"), key=lambda one: (len(one.parent.name), one)):
        for row in csv.DictReader(lines_of(file)):
            add(row.get("step"), row)
    if len(found.get("reward", {})) < 3:  # rounds of drawn answers hold rewards in full
        for drawn in objects(lines_of(stage.path / "rollouts.jsonl")):
            add(drawn.get("number"), as_mapping(drawn.get("metrics")))
    return {key: found[key] for key in CURVES if len(found.get(key, {})) > 1}


def curves(study: Study) -> list[Block]:
    """What each training stage logged, each metric on its own axis, in the colour of its policy."""
    trained: dict[tuple[str, ...], tuple[int, str]] = {}
    for at, arm in enumerate(study.arms):
        by_seed = [arm.stages("warmup" if arm.warmup else "align", seed) for seed in arm.records]
        rounds = max(map(len, by_seed), default=0)
        for turn in range(rounds):
            names = tuple(mine[turn] for mine in by_seed if turn < len(mine))
            trained.setdefault(names, (at, f"{arm.label}, round {turn + 1}" if rounds > 1 else arm.label))
    blocks: list[Block] = []
    without: dict[str, list[str]] = {}
    for names, (at, label) in list(trained.items())[:MOST_CURVES]:
        logs = [logged(study.stages[name]) for name in names]
        runs = {metric: [log[metric] for log in logs if metric in log] for metric in CURVES}
        drawn = [_curve(metric, at, label, curves) for metric, curves in runs.items() if curves]
        if not drawn:
            without.setdefault(_no_curve([study.stages[name] for name in names]), []).append(label)
            continue
        about = ": the mean over seeds, thin lines are single seeds" * (len(logs) > 1)
        blocks += [{"kind": "heading", "text": label + about, "arm": at}, *pictures(drawn[:3])]
        if drawn[3:]:
            blocks.append(folded(f"{plural(len(drawn) - 3, 'more curve')} of {label}", pictures(drawn[3:])))
    blocks += [text(f"No curve of {'; '.join(labels)}: {reason}.") for reason, labels in without.items()]
    more = text(f"The first {MOST_CURVES} of {len(trained)} training stages.")
    return [*blocks, *[more] * (len(trained) > MOST_CURVES)]


def _curve(metric: str, arm: int, label: str, runs: Sequence[Curve]) -> Block:
    """The mean over runs at the steps that all of them logged, with the single runs; one run where they share none."""
    steps = sorted(set(runs[0]).intersection(*runs[1:]))
    if len(steps) < 2:
        steps, runs = sorted(runs[0]), runs[:1]
    mean = [(step, statistics.fmean([run[step] for run in runs])) for step in steps]
    curves = [mean, *(sorted(run.items()) for run in runs if len(runs) > 1)]
    few, *thin = ([*points[: -1 : -(-len(points) // POINTS)], points[-1]] for points in curves)
    line = {"label": label, "arms": [arm], "points": few, "thin": thin}
    return {"title": metric, "lines": [line], "x": "optimiser step"}


def _no_curve(stages: Sequence[StageFolder]) -> str:
    """Why stages have no curve, by what is in their folders; which logger a run had is written nowhere."""
    if not all(stage.exists for stage in stages):
        return "the stage is not in the store"
    if any(any(stage.path.glob("logs/**/events.out.tfevents.*")) for stage in stages):
        return "TensorBoard has it (tensorboard --logdir)"
    if any(any(stage.path.glob("logs/**/metrics.csv")) for stage in stages):
        return "fewer than two logged points (trainer.log_every_n_steps)"
    return "logger=csv writes one for this page; with logger=wandb see the stage's W&B run"


def stage_table(study: Study) -> list[Block]:
    """Every stage behind the rows, and what failed in the same store."""
    failed = [path.with_suffix("") for path in sorted(study.store.glob("*.part")) if (path / "error.txt").is_file()]
    strangers = [StageFolder(path) for path in failed if path.name not in study.stages][:FEW]
    heads = ["stage", "role", "policies", "state", "seconds", "size, MB", "tokens", "tokens/s", "started, UTC", "error"]
    rows, spent, alone = list[list[Any]](), 0.0, 0.0
    for stage in [*sorted(study.stages.values(), key=lambda one: one.started), *strangers]:
        users = [one for one in study.records if stage.id in one.stages.values()]
        roles = dict.fromkeys(role for one in users for role, used in one.stages.items() if used == stage.id)
        arms = [arm for arm in study.arms if any(stage.id in one.stages.values() for one in arm.records.values())]
        makers = [study.stages[one.evaluation("evaluation" not in one.stages)].maker for one in users]
        reused = sum(maker != stage.maker for maker in makers)
        state = "cached" if reused == len(users) else f"built, reused by {plural(reused, 'row')}" if reused else "built"
        if not stage.exists:
            state = "failed" if stage.error else "not in the store"
        files = [file for folder in (stage.path, stage.part) for file in folder.rglob("*")]
        size = round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)
        seconds, tokens, names = stage.seconds, stage.tokens, "; ".join(arm.label for arm in arms)
        spent, alone = spent + (seconds or 0), alone + (seconds or 0) * len(users)
        said = "all policies" if len(arms) == len(study.arms) > 1 else short(names, 60) or "-"
        speed = tokens / seconds if tokens and seconds else None
        rows.append([stage.id, ", ".join(roles) or "-", Cell(said, hint=names), state, seconds and round(seconds, 1)])
        rows[-1] += [size or None, tokens, speed, stage.started[:16] or "-", short(stage.error, 300)]
    last = len(heads) if any(row[-1] for row in rows) else -1
    shown = grid("Stages", heads[:last], [row[:last] for row in rows])
    spans = [str(timedelta(seconds=round(seconds))) for seconds in (spent, alone)]
    counts = [plural(len(study.stages), "stage"), plural(len(study.records), "result row")]
    about = {"kind": "stages", "counts": counts, "spans": spans, "strangers": bool(strangers)}
    return [about, folded(f"All {len(rows)} stages", [shown]) if len(rows) > FEW else shown]


def configurations(study: Study) -> list[Block]:
    """Settings of the policies side by side: those that differ, and all of them on demand."""
    arms = study.aligned or study.arms
    wholes = {arm.label: arm.settings for arm in arms[:MOST_ARMS]}
    keys = sorted({key for whole in wholes.values() for key in whole})
    rows = [[key, *(short(as_text(one[key]), 300) if key in one else "" for one in wholes.values())] for key in keys]
    split = [row for row in rows if len(set(row[1:])) > 1]
    differ = grid(f"Settings that differ ({len(split)} of {len(keys)})", ["setting", *wholes], split)
    more = [text(f"The first {MOST_ARMS} of {len(arms)} policies.")] if len(arms) > MOST_ARMS else []
    every = grid("All settings, of the least seed of each policy", ["setting", *wholes], rows)
    return [*[differ] * (len(wholes) > 1), *more, folded(f"All {len(keys)} settings", [every])]


def provenance(study: Study) -> list[Block]:
    """With what the stages were made, what is gone, and which result rows were read."""
    made = Counter[str]()
    for stage in filter(lambda one: one.provenance, study.stages.values()):
        one = {part: stage.provenance.get(part) for part in MADE_WITH}
        one["packages"] = ", ".join(f"{name} {version}" for name, version in as_mapping(one["packages"]).items())
        made[json.dumps(one)] += 1
    found = {f"environment {n}": {"stages": made[one], **json.loads(one)} for n, one in enumerate(made, 1)}
    rows = [[part, *(short(as_text(one[part]), 300) for one in found.values())] for part in ("stages", *MADE_WITH)]
    blocks = [grid("What the stages were made with", ["part", *found], rows)] if found else []
    if gone := [stage.id for stage in study.stages.values() if not stage.exists]:
        said = f"{len(gone)} of {plural(len(study.stages), 'stage')} are not in the store: {some(gone)}."
        blocks.append(text(said, warning=True))
    if len({json.dumps(one.versions, sort_keys=True) for one in study.records}) > 1:
        blocks.append(text("The rows were made by different versions of the stages' code.", warning=True))
    files = [
        [f"{one.path.name}, seed {one.seed}", one.stages.get("baseline"), one.stages.get("evaluation")]
        for one in study.records
    ]
    shown = grid("Result rows", ["file", "evaluation of the warm-up", "evaluation"], files)
    return [*blocks, folded(plural(len(files), "result row"), [shown])]
