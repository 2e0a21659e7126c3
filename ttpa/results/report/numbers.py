"""What was measured, in per cent: accuracy by policy, paired differences, the six errors, the heat map, accuracy
against data. Numbers come from `ttpa.results.table` and `ttpa.results.stats`; nothing is fitted here.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError
from ttpa.results import render
from ttpa.results.records import is_number, number_at
from ttpa.results.report.page import Block, Cell, as_text, grid, pictures, plural, text
from ttpa.results.report.study import Arm, Study, as_mapping, warmup_key
from ttpa.results.stats import Estimate, over_seeds
from ttpa.results.table import Table

AMOUNT = re.compile(r"(data|select)\.(?!validation|test)(\w+_samples|max_rows|\w*fraction|\w*share|limit)")
"""Settings that say how much of the data a policy saw."""


def _by_seed(arm: Arm, path: str) -> list[Estimate]:
    found = list[Estimate | None]()
    for record in arm.records.values():
        with suppress(KeyError):
            found.append(number_at(record.measured(arm.warmup), path))
    return [one for one in found if one]


def estimate_of(arm: Arm, path: str) -> Estimate | None:
    """A share of a policy in per cent with its interval; None where it was not measured."""
    known = _by_seed(arm, path)
    if len(known) > 1:
        known = [over_seeds([one.value for one in known]).within(0, 1)]
    return known[0].scaled(100) if known else None


def accuracy(made: Table, study: Study) -> list[Block]:
    """Pictures of accuracy, of all samples and by band, and the table of all numbers."""
    bands = [as_mapping(one.measured(arm.warmup).get("bands")) for arm in study.arms for one in arm.records.values()]
    paths = dict.fromkeys([*(f"bands.{band}" for each in bands for band in each), "unseen_tool"])
    parts = [path for path in paths if any(estimate_of(arm, path) for arm in study.arms)]
    charts = []
    for path in ["accuracy", *(parts if len(parts) > 1 else [])]:
        rows = [
            {**asdict(one), "label": arm.label, "arm": at, "seeds": [100 * seed.value for seed in _by_seed(arm, path)]}
            for at, arm in enumerate(study.arms)
            if (one := estimate_of(arm, path))
        ]
        title = "Accuracy" + f", {path.removeprefix('bands.').replace('_', ' ')}" * (path != "accuracy")
        charts += [{"title": title, "rows": rows, "x": "right answers, %"}] if rows else []
    kept = [at for at, column in enumerate(made.columns) if not column.key.startswith("errors.")]
    columns = tuple(made.columns[at] for at in kept)
    shown = tuple(replace(row, values=tuple(row.values[at] for at in kept)) for row in made.rows)
    tones: dict[tuple[str, int], int] = {}
    for at, column in enumerate(columns):
        estimates = [row.values[at].estimate for row in shown]
        found = _tones(estimates, column.better, _mean(estimates))
        # A table of mostly grey cells would say nothing: here what is not clear has no colour.
        tones |= {(column.label, line): tone for line, tone in enumerate(found) if tone}
    main = replace(render.main_grid(replace(made, columns=columns, rows=shown)), caption="All numbers")
    said = text("Coloured: the interval excludes the mean of the column. Blue is better, orange is worse.")
    table = _grid(main, study, [row.spec.key for row in shown], tones)
    return [*pictures(charts), table, *[said] * bool(tones)]


def _grid(made: render.Grid, study: Study, keys: Sequence[str], tones: Mapping[tuple[str, int], int]) -> Block:
    """A table of texts with the marks of its policies and the tones of its cells by head and line."""
    arms = {arm.key: number for number, arm in enumerate(study.arms)}
    rows = []
    for line, (texts, key) in enumerate(zip(made.rows, keys, strict=True)):
        pairs = [(one, tones.get((head, line))) for head, one in zip(made.head, texts, strict=True)]
        cells = [Cell(f"{one.text} {one.mark}".strip(), tone=tone, best=one.best) for one, tone in pairs]
        rows.append([cells[0]._replace(arm=arms.get(key)), *cells[1:]])
    return grid(made.caption, [made.head[0] or "policy", *made.head[1:]], rows)


def _tones(found: Sequence[Estimate | None], better: str = "high", reference: float = 0.0) -> list[int | None]:
    """Tones of differences to a number: 0 where the interval holds it, so that only what is clearly better (up to 3) or
    worse (down to -3) has a colour; None without an interval.
    """
    known = [one if one and one.low is not None and one.high is not None else None for one in found]
    # An end may miss the number by rounding alone.
    clear = [one and not (one.low or 0) - 1e-9 <= reference <= (one.high or 0) + 1e-9 for one in known]
    gaps = [one.value - reference if one else 0 for one in known]
    most = max((abs(gap) for gap, sure in zip(gaps, clear, strict=True) if sure), default=1.0)
    sizes = [math.copysign(math.ceil(3 * abs(gap) / most), gap if better == "high" else -gap) for gap in gaps]
    return [None if sure is None else int(size * bool(sure)) for size, sure in zip(sizes, clear, strict=True)]


def _mean(found: Iterable[Estimate | None]) -> float:
    return statistics.fmean([one.value for one in found if one] or [0.0])


def differences(made: Table, study: Study) -> list[Block]:
    """One set of paired differences, as the table takes them."""
    if not made.differences:
        missing = "No paired differences: no warm-up was evaluated (baseline=true adds one) and no run is a control."
        return [] if made.spec.claim else [text(missing)]
    shown = render.difference_grid(made)
    found = _tones([one.mean for one in made.differences], made.columns[0].better)
    tones = {(shown.head[1], line): tone for line, tone in enumerate(found) if tone}
    return [_grid(shown, study, [one.ours for one in made.differences], tones)]


def errors(study: Study) -> list[Block]:
    """Share of answers with each error; the template links each number to its answers in the browser."""
    found = {arm.label: {kind: estimate_of(arm, f"errors.{kind}") for kind in LABELS} for arm in study.arms}
    kinds = [kind for kind in LABELS if any(one[kind] for one in found.values())]
    return [{"kind": "errors", "kinds": kinds, "policies": found}] if kinds else []


def heat_map(made: Table, study: Study, axes: Sequence[str]) -> list[Block]:
    """Accuracy over two axes, option groups or dotted settings (a ConfigError where no policy has one), coloured by the
    paired difference to the warm-up where every cell has one, else by that to the mean of all cells.
    """
    wholes = [{**arm.settings, **arm.first.choices} for arm in study.aligned]
    for axis in axes:
        if any(axis not in whole for whole in wholes):
            remedy = f"Groups that differ: {', '.join(study.varying) or 'none'}"
            raise ConfigError.at("axes", axis, "no option group or setting of these runs", remedy)
    values = {axis: [as_text(one.get(axis, "-")) for one in wholes] for axis in axes or study.varying}
    first, second = (*axes, *sorted(values, key=lambda axis: -len(set(values[axis]))), "", "")[:2]
    if not second:
        return []
    cells = {at: list[Arm]() for at in product(dict.fromkeys(values[first]), dict.fromkeys(values[second]))}
    for arm, row, column in zip(study.aligned, values[first], values[second], strict=True):
        cells[row, column].append(arm)
    found: dict[tuple[str, str], Estimate | None] = {}
    for at, mine in cells.items():
        known = [one for one in (estimate_of(arm, "accuracy") for arm in mine) if one]
        # The interval of a mean over several policies is not known.
        found[at] = Estimate(value=_mean(known)) if len(known) > 1 else next(iter(known), None)
    starts = {arm.key for arm in study.arms if arm.warmup}
    paired = {one.ours: one.mean for one in made.differences if one.against in starts}
    by_pairs = all(len(mine) < 2 and all(paired.get(arm.key) for arm in mine) for mine in cells.values())
    gaps = [paired.get(mine[0].key) if mine else None for mine in cells.values()] if by_pairs else list(found.values())
    tones = dict(zip(cells, _tones(gaps, reference=0.0 if by_pairs else _mean(found.values())), strict=True))
    seeds = {at: min(len(arm.records) for arm in mine) for at, mine in cells.items() if mine}
    fewer = {at for at, count in seeds.items() if count < max(seeds.values())}

    rows: dict[str, list[Cell | str]] = {row: [row] for row in values[first]}
    for at, one in found.items():
        hint = "; ".join(arm.label for arm in cells[at])
        said = render.interval(one, 1) + "*" * (at in fewer) if one else "-"
        rows[at[0]].append(Cell(said, hint, tone=tones[at]))
    shown = grid(
        f"Accuracy in %, {first} (rows) by {second} (columns)",
        [f"{first} \\ {second}", *dict.fromkeys(values[second])],
        list(rows.values()),
    )
    unknown = any(one and tones[at] is None for at, one in found.items())
    facts = {"unknown": unknown, "most": max(map(len, cells.values())), "fewer": max(seeds.values()) if fewer else 0}
    return [shown, {"kind": "heat", "by_pairs": by_pairs, **facts}]


def gain_decay(study: Study) -> list[Block]:
    """Accuracy against the amount of data, a line for policies that differ in nothing else. Where the amount is that of
    exploration, a line begins with the warm-up, which saw none.
    """
    charts, blocks = [], []
    for key in dict.fromkeys(key for arm in study.aligned for key in arm.settings if AMOUNT.fullmatch(key)):
        if len({as_text(arm.settings.get(key)) for arm in study.aligned}) < 2:
            continue
        groups: dict[str, list[tuple[float, Arm, Estimate]]] = {}
        for arm in study.aligned:
            amount, found = _amount(study, arm, key), estimate_of(arm, "accuracy")
            if is_number(amount) and found:
                rest = json.dumps([{**arm.settings, key: None}, arm.first.choices], sort_keys=True)
                groups.setdefault(rest, []).append((amount, arm, found))
        lost = len(study.aligned) - sum(map(len, groups.values()))
        blocks += [text(f"{plural(lost, 'policy')} without a number for {key} left out.")] if lost else []
        if len({amount for points in groups.values() for amount, *_ in points}) < 2:
            continue
        lines = []
        for points in groups.values():
            first = points[0][1].first
            if not key.startswith(("data.warmup", "data.max_rows")):
                starts = [arm for arm in study.arms if arm.warmup and warmup_key(arm.first) == warmup_key(first)]
                points += [(0.0, arm, found) for arm in starts[:1] if (found := estimate_of(arm, "accuracy"))]
            points.sort(key=lambda point: point[0])
            label = " + ".join(str(first.choices.get(group)) for group in study.varying or ["objective"])
            line = {"label": label, "arms": [study.arms.index(arm) for _, arm, _ in points], "thin": []}
            line["points"] = [(x, one.value) for x, _, one in points]
            lines.append({**line, "ends": [(one.low, one.high) for *_, one in points]})
        charts.append({"title": f"Accuracy by {key}, %", "lines": lines, "x": key})
    return [*pictures(charts), *blocks]


def _amount(study: Study, arm: Arm, key: str) -> Any:
    """How much data a policy saw; without a limit, what there was."""
    value = arm.settings.get(key)
    if value is None and key.startswith("select.") and "data" in arm.first.stages:
        samples = as_mapping(study.stages[arm.first.stages["data"]].metrics.get("samples"))
        value = samples.get("explore", arm.settings.get("data.explore_samples"))
    return value
