"""Sections of numbers, in per cent where they are shares: what was measured, how training went, and of what stages and
configurations the policies were made. Numbers come from `ttpa.results.table` and `ttpa.results.stats`.
"""

import csv
import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError
from ttpa.results import render
from ttpa.results.records import is_number
from ttpa.results.report.page import Block, as_text, folded, grid, plural, short
from ttpa.results.report.study import Arm, StageFolder, Study, as_mapping, folders, warmup_key
from ttpa.results.stats import Estimate
from ttpa.results.table import Table

AMOUNT = re.compile(r"(data|select)\.(?!validation|test)(\w+_samples|max_rows|\w*fraction|\w*share|limit)")
"""Settings that say how much of the data a policy saw."""
FEW, MOST_ARMS, MOST_CURVES, POINTS = 30, 24, 12, 160
"""Rows of a table that is not folded; columns of configurations; training stages with curves; points of a curve."""
CURVES = (
    "loss", "reward", "exact", "nll_loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "kl", "entropy", "completions/mean_length", "grad_norm",
)  # fmt: skip
"""Metrics that are drawn, in this order; page.html has their names."""
MADE_WITH = ("commit", "dirty", "packages", "python", "platform", "host", "cpu", "cpu_count", "gpu")
NO_CURVE = {
    "logs/**/events.out.tfevents.*": "TensorBoard has it (tensorboard --logdir)",
    "logs/**/metrics.csv": "fewer than two logged points (trainer.log_every_n_steps)",
    "*": "logger=csv writes one for this page; with logger=wandb see the stage's W&B run",
}
"""Why there is no curve, by files that the stage holds; which logger a run had is written nowhere."""
Curve = dict[float, float]  # optimiser step (or round) -> value


def accuracy(made: Table, study: Study) -> list[Block]:
    """Pictures of accuracy, of all samples and by band, and the table of all numbers."""
    measured = [one.measured(arm.warmup) for arm in study.arms for one in arm.records.values()]
    bands = dict.fromkeys(f"bands.{band}" for one in measured for band in as_mapping(one.get("bands")))
    parts = [path for path in (*bands, "unseen_tool") if any(arm.share(path) for arm in study.arms)]
    charts = []
    for path in ["accuracy", *(parts if len(parts) > 1 else [])]:
        rows = []
        for at, arm in enumerate(study.arms):
            if one := arm.share(path):
                seeds = [100 * seed.value for seed in arm.by_seed(path)]
                rows.append({**asdict(one), "label": arm.label, "arm": at, "seeds": seeds})
        title = "Accuracy" + f", {path.removeprefix('bands.').replace('_', ' ')}" * (path != "accuracy")
        charts += [{"title": title, "rows": rows, "x": "right answers, %"}] if rows else []
    kept = [at for at, column in enumerate(made.columns) if not column.key.startswith("errors.")]
    lines = tuple(replace(row, values=tuple(row.values[at] for at in kept)) for row in made.rows)
    shown = render.main_grid(replace(made, columns=tuple(made.columns[at] for at in kept), rows=lines))
    tones = {}
    for at, column in enumerate(kept):
        found = [row.values[at].estimate for row in lines]
        tones[made.columns[column].label] = _tones(found, made.columns[column].better, around_mean=True)
    table = _grid(replace(shown, caption="All numbers"), study, [row.spec.key for row in lines], tones)
    said = "Coloured: the interval excludes the mean of the column. Blue is better, orange is worse."
    return [("pictures", charts), table, ("said", said * any(map(any, tones.values())))]


def _grid(made: render.Grid, study: Study, keys: Sequence[str], tones: dict[str, list[int | None]]) -> Block:
    """A table of texts with the marks of its policies, and tones by column: only what is clear has a colour, as a table
    of mostly grey cells would say nothing.
    """
    arms, rows = {arm.key: number for number, arm in enumerate(study.arms)}, []
    for line, (cells, key) in enumerate(zip(made.rows, keys, strict=True)):
        row = [{"text": f"{one.text} {one.mark}".strip(), "best": one.best} for one in cells]
        for cell, head in zip(row, made.head, strict=True):
            cell["tone"] = tones[head][line] or None if head in tones else None
        rows.append([{**row[0], "arm": arms.get(key)}, *row[1:]])
    return grid(made.caption, [made.head[0] or "policy", *made.head[1:]], rows)


def _tones(found: Sequence[Estimate | None], better: str = "high", around_mean: bool = False) -> list[int | None]:
    """Tones of differences to 0 or the mean: 0 where the interval holds it, so that only what is clearly better (up to
    3) or worse (down to -3) has a colour; None without an interval.
    """
    known = [one.value for one in found if one]
    reference, gaps = statistics.fmean(known) if known and around_mean else 0.0, list[float | None]()
    for one in found:
        if one is None or one.low is None or one.high is None:
            gaps.append(None)
        else:  # an end may miss the number by rounding alone
            holds = one.low - 1e-9 <= reference <= one.high + 1e-9
            gaps.append(0.0 if holds else one.value - reference if better == "high" else reference - one.value)
    most = max((abs(gap) for gap in gaps if gap), default=1.0)
    return [gap if gap is None else int(math.copysign(math.ceil(3 * abs(gap) / most), gap)) for gap in gaps]


def differences(made: Table, study: Study) -> list[Block]:
    """One set of paired differences, as the table takes them."""
    if not made.differences:
        missing = "No paired differences: no warm-up was evaluated (baseline=true adds one) and no run is a control."
        return [("said", missing * (not made.spec.claim))]
    shown, found = render.difference_grid(made), [one.mean for one in made.differences]
    tones = {shown.head[1]: _tones(found, made.columns[0].better)}
    return [_grid(shown, study, [one.ours for one in made.differences], tones)]


def errors(study: Study) -> list[Block]:
    """Share of answers with each error; the template links each number to its answers in the browser."""
    found = {arm.label: {kind: arm.share(f"errors.{kind}") for kind in LABELS} for arm in study.arms}
    kinds = [kind for kind in LABELS if any(one[kind] for one in found.values())]
    return [("errors", kinds and {"kinds": kinds, "policies": found})]


def heat_map(made: Table, study: Study, axes: Sequence[str]) -> list[Block]:
    """Accuracy over two axes, option groups or dotted settings (a ConfigError where no policy has one), coloured by the
    paired difference to the warm-up where every cell has one, else by that to the mean of all cells.
    """
    wholes = [{**arm.settings, **arm.first.choices} for arm in study.aligned]
    if lost := [axis for axis in axes if any(axis not in whole for whole in wholes)]:
        remedy = f"Groups that differ: {', '.join(study.varying) or 'none'}"
        raise ConfigError.at("axes", lost[0], "no option group or setting of these runs", remedy)
    values = {axis: [as_text(one.get(axis, "-")) for one in wholes] for axis in axes or study.varying}
    if not wholes or len(values) < 2:
        return []
    first, second = axes or sorted(values, key=lambda axis: -len(set(values[axis])))[:2]
    cells = {(row, column): list[Arm]() for row in values[first] for column in values[second]}
    for arm, row, column in zip(study.aligned, values[first], values[second], strict=True):
        cells[row, column].append(arm)
    found = list[Estimate | None]()
    for mine in cells.values():
        known = [one for one in (arm.share() for arm in mine) if one]
        # The interval of a mean over several policies is not known.
        found.append(
            Estimate(value=statistics.fmean(one.value for one in known)) if len(known) > 1 else next(iter(known), None)
        )
    starts = {arm.key for arm in study.arms if arm.warmup}
    paired = {one.ours: one.mean for one in made.differences if one.against in starts}
    by_pairs = all(len(mine) < 2 and all(paired.get(arm.key) for arm in mine) for mine in cells.values())
    gaps = [paired.get(mine[0].key) if mine else None for mine in cells.values()] if by_pairs else found
    tones = _tones(gaps, around_mean=not by_pairs)
    seeds = [min((len(arm.records) for arm in mine), default=math.inf) for mine in cells.values()]
    most = max(count for count in seeds if count < math.inf)
    rows: dict[str, list[Any]] = {row: [row] for row in values[first]}
    for at, one, count, tone in zip(cells, found, seeds, tones, strict=True):
        said = render.interval(one, 1) + "*" * (count < most) if one else "-"
        rows[at[0]].append({"text": said, "hint": "; ".join(arm.label for arm in cells[at]), "tone": tone})
    caption = f"Accuracy in %, {first} (rows) by {second} (columns)"
    shown = grid(caption, [f"{first} \\ {second}", *dict.fromkeys(values[second])], rows.values())
    facts = {"by_pairs": by_pairs, "unknown": any(one and tone is None for one, tone in zip(found, tones, strict=True))}
    return [shown, ("heat", {**facts, "most": max(map(len, cells.values())), "fewer": most * (min(seeds) < most)})]


def gain_decay(study: Study) -> list[Block]:
    """Accuracy against the amount of data, a line for policies that differ in nothing else. Where the amount is that of
    exploration, a line begins with the warm-up, which saw none.
    """
    charts, blocks = [], list[Block]()
    for key in dict.fromkeys(key for arm in study.aligned for key in arm.settings if AMOUNT.fullmatch(key)):
        if len({as_text(arm.settings.get(key)) for arm in study.aligned}) < 2:
            continue
        groups = defaultdict[str, list[tuple[Any, Arm, Estimate]]](list)
        for arm in study.aligned:
            amount, found = arm.settings.get(key), arm.share()
            if (
                amount is None
                and key.startswith("select.")
                and (data := study.stages.get(arm.first.stages.get("data", "")))
            ):
                samples = as_mapping(as_mapping(data.json("metrics.json")).get("samples"))  # no limit: what there was
                amount = samples.get("explore", arm.settings.get("data.explore_samples"))
            if is_number(amount) and found:
                rest = json.dumps([{**arm.settings, key: None}, arm.first.choices], sort_keys=True)
                groups[rest].append((amount, arm, found))
        lost = len(study.aligned) - sum(map(len, groups.values()))
        blocks.append(("said", f"{plural(lost, 'policy')} without a number for {key} left out." * (lost > 0)))
        if len({amount for points in groups.values() for amount, *_ in points}) < 2:
            continue
        lines = []
        for points in groups.values():
            first = points[0][1].first
            if not key.startswith(("data.warmup", "data.max_rows")):
                starts = [arm for arm in study.arms if arm.warmup and warmup_key(arm.first) == warmup_key(first)]
                points += [(0.0, arm, found) for arm in starts[:1] if (found := arm.share())]
            points.sort(key=lambda point: point[0])
            label = " + ".join(str(first.choices.get(group)) for group in study.varying or ["objective"])
            lines.append({
                "label": label, "arms": [study.arms.index(arm) for _, arm, _ in points], "thin": [],
                "points": [(x, one.value) for x, _, one in points], "ends": [(one.low, one.high) for *_, one in points],
            })  # fmt: skip
        charts.append({"title": f"Accuracy by {key}, %", "lines": lines, "x": key})
    return [("pictures", charts), *blocks]


def logged(stage: StageFolder) -> dict[str, Curve]:
    """What a training stage logged, by metric; the last value of a step that was logged again after a restart."""
    files = sorted(stage.path.glob("logs/version_*/metrics.csv"), key=lambda one: (len(one.parent.name), one))
    rows: list[Any] = [(row.get("step"), row) for file in files for row in csv.DictReader(stage.lines(file))]
    if sum(bool(row.get("reward")) for _, row in rows) < 3:  # rounds of drawn answers hold rewards in full
        rows += [(row.get("number"), as_mapping(row.get("metrics"))) for row in stage.rows("rollouts.jsonl")]
    found = defaultdict[str, Curve](dict)
    for step, values in rows:
        for key in CURVES:
            with suppress(KeyError, TypeError, ValueError):
                if is_number(float(values[key])) and is_number(float(step)):
                    found[key][float(step) + 1] = float(values[key])
    return {key: found[key] for key in CURVES if len(found[key]) > 1}


def curves(study: Study) -> list[Block]:
    """What each training stage logged, each metric on its own axis, in the colour of its policy."""
    trained: dict[tuple[str, ...], tuple[int, str]] = {}
    for at, arm in enumerate(study.arms):
        by_seed = [folders(one, "warmup" if arm.warmup else "align") for one in arm.records.values()]
        rounds = max(map(len, by_seed))
        for turn in range(rounds):
            names = tuple(mine[turn] for mine in by_seed if turn < len(mine))
            trained.setdefault(names, (at, f"{arm.label}, round {turn + 1}" if rounds > 1 else arm.label))
    blocks, without = list[Block](), defaultdict[str, list[str]](list)
    for names, (at, label) in list(trained.items())[:MOST_CURVES]:
        stages, charts = [study.stages[name] for name in names], []
        logs = [logged(stage) for stage in stages]
        for metric in CURVES:
            if runs := [log[metric] for log in logs if metric in log]:
                steps = sorted(set(runs[0]).intersection(*runs[1:]))
                if len(steps) < 2:  # nothing in common: the first alone
                    steps, runs = sorted(runs[0]), runs[:1]
                mean = [(step, statistics.fmean([run[step] for run in runs])) for step in steps]
                lines = [mean, *(sorted(run.items()) for run in runs if len(runs) > 1)]
                few, *thin = ([*points[: -1 : -(-len(points) // POINTS)], points[-1]] for points in lines)
                line = {"label": label, "arms": [at], "points": few, "thin": thin}
                charts.append({"title": metric, "lines": [line], "x": "optimiser step"})
        if charts:
            about = ": the mean over seeds, thin lines are single seeds" * (len(logs) > 1)
            more = f"{plural(len(charts) - 3, 'more curve')} of {label}"
            blocks += [("heading", {"text": label + about, "arm": at}), ("pictures", charts[:3])]
            blocks += [folded(more, [("pictures", charts[3:])])] if charts[3:] else []
        else:
            known = [why for files, why in NO_CURVE.items() if any(any(one.path.glob(files)) for one in stages)]
            without[[*known, "the stage is not in the store"][0]].append(label)
    blocks += [("said", f"No curve of {'; '.join(labels)}: {reason}.") for reason, labels in without.items()]
    more = f"The first {MOST_CURVES} of {len(trained)} training stages."
    return [*blocks, ("said", more * (len(trained) > MOST_CURVES))]


def stage_table(study: Study) -> list[Block]:
    """Every stage behind the rows, and what failed in the same store."""
    failed = [path.with_suffix("") for path in sorted(study.store.glob("*.part")) if (path / "error.txt").is_file()]
    strangers = [StageFolder(path) for path in failed if path.name not in study.stages][:FEW]
    rows, spent, alone = list[dict[str, Any]](), 0.0, 0.0
    for stage in [*sorted(study.stages.values(), key=lambda one: one.started), *strangers]:
        users = [one for one in study.records if stage.id in one.stages.values()]
        roles = dict.fromkeys(role for one in users for role, used in one.stages.items() if used == stage.id)
        arms = [arm.label for arm in study.arms if any(stage.id in one.stages.values() for one in arm.records.values())]
        makers = [study.stages[one.evaluation("evaluation" not in one.stages)].maker for one in users]
        reused = sum(maker != stage.maker for maker in makers)
        state = "cached" if reused == len(users) else f"built, reused by {plural(reused, 'row')}" if reused else "built"
        if not stage.exists:
            state = "failed" if stage.error else "not in the store"
        files = [file for folder in (stage.path, stage.part) for file in folder.rglob("*") if file.is_file()]
        size = round(sum(file.stat().st_size for file in files) / 1e6, 2) or None
        seconds, tokens, names = stage.seconds, stage.tokens, "; ".join(arms)
        spent, alone = spent + (seconds or 0), alone + (seconds or 0) * len(users)
        told = as_mapping(stage.json("metrics.json")).get("fallbacks")
        said = "all policies" if len(arms) == len(study.arms) > 1 else short(names, 60) or "-"
        rows.append({
            "stage": stage.id, "role": ", ".join(roles) or "-", "policies": {"text": said, "hint": names},
            "state": state, "seconds": seconds and round(seconds, 1), "size, MB": size, "tokens": tokens,
            "tokens/s": tokens / seconds if tokens and seconds else None, "started, UTC": stage.started[:16] or "-",
            "error": short(stage.error, 300),
            "fallback": short("; ".join(map(as_text, told if isinstance(told, list) else [])), 300),
        })  # fmt: skip
    heads = [head for head in rows[0] if head not in ("error", "fallback") or any(row[head] for row in rows)]
    shown = grid("Stages", heads, [[row[head] for head in heads] for row in rows])
    counts = [plural(len(study.stages), "stage"), plural(len(study.records), "result row")]
    spans = [str(timedelta(seconds=round(seconds))) for seconds in (spent, alone)]
    about = {"counts": counts, "spans": spans, "strangers": bool(strangers)}
    return [("stages", about), folded(f"All {len(rows)} stages", [shown]) if len(rows) > FEW else shown]


def configurations(study: Study) -> list[Block]:
    """Settings of the policies side by side: those that differ, and all of them on demand."""
    arms = study.aligned or study.arms
    wholes = {arm.label: arm.settings for arm in arms[:MOST_ARMS]}
    keys = sorted({key for whole in wholes.values() for key in whole})
    rows = [[key, *(short(as_text(one[key]), 300) if key in one else "" for one in wholes.values())] for key in keys]
    split = [row for row in rows if len(set(row[1:])) > 1]
    differ = grid(f"Settings that differ ({len(split)} of {len(keys)})", ["setting", *wholes], split)
    more = f"The first {MOST_ARMS} of {len(arms)} policies." * (len(arms) > MOST_ARMS)
    every = grid("All settings, of the least seed of each policy", ["setting", *wholes], rows)
    return [*[differ] * (len(wholes) > 1), ("said", more), folded(f"All {len(keys)} settings", [every])]


def provenance(study: Study) -> list[Block]:
    """With what the stages were made, what is gone, and which result rows were read."""
    made = Counter[tuple[str, ...]]()
    for found in [stage.provenance for stage in study.stages.values() if stage.provenance]:
        packages = ", ".join(f"{name} {version}" for name, version in as_mapping(found.get("packages")).items())
        made[tuple(short(as_text({**found, "packages": packages}.get(part)), 300) for part in MADE_WITH)] += 1
    rows = zip(("stages", *MADE_WITH), *((str(count), *parts) for parts, count in made.items()), strict=True)
    heads = ["part", *(f"environment {number}" for number in range(1, len(made) + 1))]
    blocks = [grid("What the stages were made with", heads, rows)] if made else []
    if gone := [stage.id for stage in study.stages.values() if not stage.exists]:
        said = (
            f"{len(gone)} of {plural(len(study.stages), 'stage')} are not in the store: {short('; '.join(gone), 200)}."
        )
        blocks.append(("warning", said))
    if len({json.dumps(one.versions, sort_keys=True) for one in study.records}) > 1:
        blocks.append(("warning", "The rows were made by different versions of the stages' code."))
    files = [
        [f"{one.path.name}, seed {one.seed}", one.stages.get("baseline"), one.stages.get("evaluation")]
        for one in study.records
    ]
    shown = grid("Result rows", ["file", "evaluation of the warm-up", "evaluation"], files)
    return [*blocks, folded(plural(len(files), "result row"), [shown])]
