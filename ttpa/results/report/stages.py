"""How the policies came about: training curves, the table of stages, configurations side by side, provenance."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from ttpa.results import table
from ttpa.results.report import charts
from ttpa.results.report.page import Folded, Grid, GridCell, Heading, Text, decimal, finite, plural, short
from ttpa.results.report.study import StageFolder, Study, as_mapping, as_text, json_objects, read_text

FEW = 30
"""Rows of a table that is shown at once; a longer one is folded."""
MOST_ARMS = 24
"""Columns of the comparison of configurations."""
MOST_CURVES = 12
"""Training stages whose curves are drawn."""
CURVES = {
    "loss": "loss",
    "reward": "mean reward of drawn answers",
    "exact": "share of drawn answers that are right",
    "nll_loss": "negative log-likelihood of the chosen answer",
    "rewards/margins": "margin of implicit rewards",
    "rewards/accuracies": "share of pairs ranked right",
    "logps/chosen": "log-probability of the chosen answer",
    "logps/rejected": "log-probability of the rejected answer",
    "kl": "KL divergence to the reference policy",
    "entropy": "entropy of drawn tokens",
    "completions/mean_length": "mean length of drawn answers, tokens",
    "grad_norm": "gradient norm",
}
MADE_WITH = ("commit", "dirty", "packages", "python", "platform", "host", "cpu", "cpu_count", "gpu")
"""What a stage's provenance says of the code and the machine that built it."""

Curve = dict[float, float]
"""Optimiser step (or round) -> value."""


def logged(stage: StageFolder) -> dict[str, Curve]:
    """What a training stage logged, by metric. An attempt that goes on from a checkpoint logs some steps again: the last
    one counts. Rounds of drawn answers hold rewards in full.
    """
    found: dict[str, Curve] = {}
    for file in sorted(stage.path.glob("logs/version_*/metrics.csv"), key=lambda one: (len(one.parent.name), one)):
        for row in csv.DictReader((read_text(file) or "").splitlines()):
            values = {key: _float(value) for key, value in row.items() if key in CURVES or key == "step"}
            if (step := values.pop("step", None)) is not None:
                for key, value in values.items():
                    if value is not None:
                        found.setdefault(key, {})[step + 1] = value
    if len(found.get("reward", {})) < 3:
        for line in (read_text(stage.path / "rollouts.jsonl") or "").splitlines():
            head, sign, _ = line.partition(',"groups":[')  # what was drawn comes last and is long
            for row in json_objects([head + "}" if sign else line]):
                for key, value in as_mapping(row.get("metrics")).items():
                    if key in CURVES and (shown := finite(value)) is not None and finite(row.get("number")) is not None:
                        found.setdefault(key, {})[row["number"] + 1] = shown
    return {key: curve for key, curve in found.items() if len(curve) > 1}


def _float(text: Any) -> float | None:
    try:
        return finite(float(text))
    except (TypeError, ValueError):
        return None


def curves(study: Study) -> list[Any]:
    """What each training stage logged, each metric on its own axis, in the colour of its policy."""
    drawn: dict[tuple[str, ...], tuple[int, str]] = {}
    for at, arm in enumerate(study.arms):
        by_seed = [arm.stages("warmup" if arm.warmup else "align", seed) for seed in arm.records]
        rounds = max(map(len, by_seed), default=0)
        for turn in range(rounds):
            names = tuple(mine[turn] for mine in by_seed if turn < len(mine))
            drawn.setdefault(names, (at, f"{arm.label}, round {turn + 1}" if rounds > 1 else arm.label))
    blocks: list[Any] = []
    without: dict[str, list[str]] = {}
    for number, (names, (at, label)) in enumerate(list(drawn.items())[:MOST_CURVES]):
        logs = [logged(study.stages[name]) for name in names]
        pictures = [
            _curve(f"curve-{number}-{place}", metric, at, label, [log[metric] for log in logs if metric in log])
            for place, metric in enumerate(CURVES)
            if any(metric in log for log in logs)
        ]
        if pictures:
            about = "" if len(logs) < 2 else ": the mean over seeds, thin lines are single seeds"
            more = (
                [Folded(f"{plural(len(pictures) - 3, 'more curve')} of {label}", pictures[3:])] if pictures[3:] else []
            )
            blocks += [Heading(f"{label}{about}", at), *pictures[:3], *more]
        else:
            without.setdefault(_no_curve([study.stages[name] for name in names]), []).append(label)
    blocks += [Text(f"No curve of {'; '.join(labels)}: {reason}.") for reason, labels in without.items()]
    more = f"The first {MOST_CURVES} of {len(drawn)} training stages."
    return [*blocks, Text(more)] if len(drawn) > MOST_CURVES else blocks


def _curve(name: str, metric: str, arm: int, label: str, runs: Sequence[Curve]) -> charts.Chart:
    """The mean over runs at the steps that all of them logged, with the single runs; one run where they share none."""
    steps = sorted(set(runs[0]).intersection(*runs[1:]))
    if len(steps) < 2:
        steps, runs = sorted(runs[0]), runs[:1]
    means = [statistics.fmean([run[step] for run in runs]) for step in steps]
    thin = [(sorted(run), [run[step] for step in sorted(run)]) for run in runs[: len(runs) * (len(runs) > 1)]]
    title = CURVES[metric][0].upper() + CURVES[metric][1:]
    return charts.lines(name, title, [charts.Line(label=label, arms=[arm], x=steps, y=means, thin=thin)])


def _no_curve(stages: Sequence[StageFolder]) -> str:
    """Why stages have no curve, by what is in their folders; which logger a run had is written nowhere."""
    files = [file.name for stage in stages for file in stage.path.glob("logs/**/*")]
    if not all(stage.exists for stage in stages):
        return "the stage is not in the store"
    if any(name.startswith("events.out.tfevents.") for name in files):
        return "TensorBoard has it (tensorboard --logdir)"
    if "metrics.csv" in files:
        return "fewer than two logged points (trainer.lightning.log_every_n_steps)"
    return "logger=csv writes one for this page; with logger=wandb see the stage's W&B run"


# --- stages, settings, provenance ------------------------------------------------------------------------------------


def stage_table(study: Study) -> list[Any]:
    """Every stage behind the rows, and what failed in the same store."""
    rows, spent, alone = [], 0.0, 0.0
    for stage in sorted(study.stages.values(), key=lambda one: str(one.provenance.get("started"))):
        name = stage.id
        users = [one for one in study.records if name in one.stages.values()]
        roles = dict.fromkeys(role for one in users for role, used in one.stages.items() if used == name)
        policies = [arm.label for arm in study.arms if any(name in one.stages.values() for one in arm.records.values())]
        makers = [study.stages[one.evaluation("evaluation" not in one.stages)].maker for one in users]
        reused = sum(maker != stage.maker for maker in makers)
        state = "built" if reused < len(users) else "cached"
        state += f", reused by {plural(reused, 'row')}" if 0 < reused < len(users) else ""
        if not stage.exists:
            state = "failed" if stage.error else "not in the store"
        spent, alone = spent + (stage.seconds or 0), alone + (stage.seconds or 0) * len(users)
        said = "all policies" if len(policies) == len(study.arms) > 1 else short("; ".join(policies), 60)
        rows.append(_stage_row(stage, ", ".join(roles), GridCell(said, hint="; ".join(policies)), state))
    failed = [path.with_suffix("") for path in sorted(study.store.glob("*.part")) if (path / "error.txt").is_file()]
    strangers = [StageFolder(path) for path in failed if path.name not in study.stages][:FEW]
    rows += [_stage_row(one, "-", GridCell("-"), "failed") for one in strangers]
    said = f"{plural(len(study.stages), 'stage')} behind {plural(len(study.records), 'result row')}, {_clock(spent)} h in all"
    said += f"; without sharing {_clock(alone)} h." if alone > spent else "."
    said += " Built: by the process that finished the row's evaluation. Cached: that process found it in the store."
    said += " Rows without a role are failed builds in this store, which may belong to other runs." if strangers else ""
    heads = ["stage", "role", "policies", "state", "seconds", "size, MB", "tokens", "tokens/s", "started, UTC", "error"]
    kept = [at for at, head in enumerate(heads) if head != "error" or any(row[at].text for row in rows)]
    grid = Grid(caption="Stages", columns=[heads[at] for at in kept], rows=[[row[at] for at in kept] for row in rows])
    return [Text(said), Folded(f"All {len(rows)} stages", [grid]) if len(rows) > FEW else grid]


def _stage_row(stage: StageFolder, role: str, policies: GridCell, state: str) -> list[GridCell]:
    speed = stage.tokens / stage.seconds if stage.tokens and stage.seconds else None
    counts = [
        decimal(stage.seconds, 1),
        decimal(stage.bytes / 1e6 or None, 2),
        decimal(stage.tokens, 0),
        decimal(speed, 0),
    ]
    started, error = (
        GridCell(str(stage.provenance.get("started") or "-")[:16].replace("T", " ")),
        short(stage.error, 300),
    )
    return [GridCell(stage.id), GridCell(role), policies, GridCell(state), *counts, started, GridCell(error)]


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def side_by_side(caption: str, columns: Mapping[str, Mapping[str, Any]], keys: Sequence[str], corner: str) -> Grid:
    """Values of some keys, a column a label."""
    rows = [
        [GridCell(key), *(GridCell(short(as_text(one[key]), 300) if key in one else "") for one in columns.values())]
        for key in keys
    ]
    return Grid(caption=caption, columns=[corner, *columns], rows=rows)


def configurations(study: Study) -> list[Any]:
    """Settings that differ between policies, and all of them on demand."""
    arms = (study.aligned or study.arms)[:MOST_ARMS]
    wholes = {arm.label: {**table.settings(arm.first.config), "rounds": arm.first.rounds} for arm in arms}
    keys = sorted({key for whole in wholes.values() for key in whole})
    split = [key for key in keys if len({json.dumps(one[key]) if key in one else "" for one in wholes.values()}) > 1]
    blocks: list[Any] = []
    if len(arms) > 1:
        caption = f"Settings that differ ({len(split)} of {len(keys)})"
        blocks.append(side_by_side(caption, wholes, split, "setting"))
    if len(study.aligned) > len(arms):
        blocks.append(Text(f"The first {len(arms)} of {len(study.aligned)} policies."))
    every = side_by_side("All settings, of the least seed of each policy", wholes, keys, "setting")
    return [*blocks, Folded(f"All {len(keys)} settings", [every])]


def provenance(study: Study) -> list[Any]:
    """With what the stages were made, what is gone, and which result rows were read."""
    made: dict[str, dict[str, Any]] = {}
    for stage in study.stages.values():
        one = {part: stage.provenance.get(part) for part in MADE_WITH}
        one["packages"] = ", ".join(f"{name} {version}" for name, version in as_mapping(one["packages"]).items())
        if stage.provenance:
            made.setdefault(json.dumps(one, sort_keys=True), {**one, "stages": 0})["stages"] += 1
    found = {f"environment {number}": one for number, one in enumerate(made.values(), 1)}
    blocks: list[Any] = []
    if found:
        blocks.append(side_by_side("What the stages were made with", found, ["stages", *MADE_WITH], "part"))
    if gone := [stage.id for stage in study.stages.values() if not stage.exists]:
        names = f"{', '.join(gone[:6])}{', ...' * (len(gone) > 6)}"
        blocks.append(Text(f"{len(gone)} of {plural(len(study.stages), 'stage')} are not in the store: {names}.", True))
    if len({json.dumps(one.versions, sort_keys=True) for one in study.records}) > 1:
        blocks.append(Text("The rows were made by different versions of the stages' code.", True))
    rows = {
        f"{one.path.name}, seed {one.seed}": {role: one.stages.get(role) or "-" for role in ("baseline", "evaluation")}
        for one in study.records
    }
    listing = [[GridCell(name), *(GridCell(stage) for stage in own.values())] for name, own in rows.items()]
    grid = Grid(caption="Result rows", columns=["file", "evaluation of the warm-up", "evaluation"], rows=listing)
    return [*blocks, Folded(plural(len(rows), "result row"), [grid])]
