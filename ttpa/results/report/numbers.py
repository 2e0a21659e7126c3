"""What was measured: accuracy by policy, paired differences, the six errors, the heat map, accuracy against data.

Numbers come from result rows, `ttpa.results.stats` and `ttpa.results.table`, in per cent; nothing is fitted here.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ttpa.errors import ConfigError
from ttpa.results import render, table
from ttpa.results.records import number_at
from ttpa.results.report import charts
from ttpa.results.report.page import Grid, GridCell, Text, finite, plural
from ttpa.results.report.study import Arm, Study, as_mapping, as_text
from ttpa.results.stats import Estimate, over_seeds

ERRORS = {
    "format": "the text does not parse as calls",
    "tool_name": "a call names another tool than the target",
    "missing_required": "a required parameter is absent",
    "parameter_name": "a parameter that the tool does not have",
    "parameter_type": "a value of another JSON type than the tool declares",
    "parameter_value": "a value of the right type that differs from the target's",
    "call_count": "a call is missing or is one too many; this is not one of the paper's six",
}
AMOUNT = re.compile(r"(data|select)\.(?!validation|test)(\w+_samples|max_rows|\w*fraction|\w*share|limit)")
"""Settings that say how much of the data a policy saw."""
INTERVALS = (
    "Bars are 95 % intervals: over seeds (Student's t) where there are several, else over dialogues (bootstrap)."
)


def estimate_of(arm: Arm, path: str) -> Estimate | None:
    """A share of a policy in per cent with its interval; None where it was not measured."""
    known = list(_by_seed(arm, path).values())
    if not known:
        return None
    return (known[0] if len(known) == 1 else over_seeds([one.value for one in known]).within(0, 1)).scaled(100)


def _by_seed(arm: Arm, path: str) -> dict[int, Estimate]:
    found = {}
    for seed in arm.records:
        with suppress(KeyError):
            found[seed] = number_at(arm.metrics(seed), path)
    return {seed: one for seed, one in found.items() if one is not None}


def _shares(study: Study) -> list[str]:
    """Paths of the shares of right answers: of all samples and, where there are several, of each band."""
    bands = [as_mapping(arm.metrics(seed).get("bands")) for arm in study.arms for seed in arm.records]
    paths = dict.fromkeys([*(f"bands.{band}" for each in bands for band in each), "unseen_tool"])
    parts = [path for path in paths if any(estimate_of(arm, path) for arm in study.arms)]
    return ["accuracy", *(parts if len(parts) > 1 else [])]


def accuracy(made: table.Table, study: Study) -> list[Any]:
    """Pictures of accuracy, of all samples and by band, and the table of all numbers."""
    blocks: list[Any] = []
    for number, path in enumerate(_shares(study)):
        rows = []
        for at, arm in enumerate(study.arms):
            if (found := estimate_of(arm, path)) is not None:
                seeds = [100 * one.value for one in _by_seed(arm, path).values()]
                rows.append(charts.Interval(arm.label, at, found.value, found.low, found.high, seeds))
        title = "Accuracy" + f", {path.removeprefix('bands.').replace('_', ' ')}" * (path != "accuracy")
        blocks += [charts.intervals(f"accuracy-{number}", title, rows)] if rows else []
    blocks += [Text(INTERVALS)] if blocks else []
    kept = [at for at, column in enumerate(made.columns) if not column.key.startswith("errors.")]
    columns = tuple(made.columns[at] for at in kept)
    rows = tuple(replace(row, values=tuple(row.values[at] for at in kept)) for row in made.rows)
    tones: dict[str, list[int | None]] = {}
    for at, column in enumerate(columns):
        found = [row.values[at].estimate for row in rows]
        mean = statistics.fmean([one.value for one in found if one] or [0])
        # A table of mostly grey cells would say nothing: here what is not clear has no colour.
        tones[column.label] = [tone or None for tone in _tones([_minus(one, mean) for one in found], column.better)]
    grid = render.main_grid(replace(made, columns=columns, rows=rows))
    blocks.append(_grid("All numbers", grid, [_number_of(study, row.spec.key) for row in rows], tones))
    if any(tone for column in tones.values() for tone in column):
        blocks.append(Text("Coloured: the interval excludes the mean of the column. Blue is better, orange is worse."))
    return blocks


def _number_of(study: Study, key: str) -> int | None:
    return next((number for number, arm in enumerate(study.arms) if arm.key == key), None)


def _grid(caption: str, grid: render.Grid, arms: Sequence[int | None], tones: Mapping[str, list[int | None]]) -> Grid:
    """A table of texts with the numbers that it sorts by, the marks of its policies and the tones of its cells."""
    rows = []
    for line, (texts, arm) in enumerate(zip(grid.rows, arms, strict=True)):
        cells = [GridCell(f"{texts[0].text} {texts[0].mark}".strip(), arm=arm)]
        for head, one in zip(grid.head[1:], texts[1:], strict=True):
            first = re.match(r"<?([-+]?\d[\d.]*)", one.text)
            shown, value = f"{one.text} {one.mark}".strip(), float(first[1]) if first else None
            cells.append(GridCell(shown, value, tone=tones[head][line] if head in tones else None, strong=one.best))
        rows.append(cells)
    return Grid(caption=caption, columns=[grid.head[0] or "policy", *grid.head[1:]], rows=rows)


def _tones(gaps: Sequence[Estimate | None], better: str = "high") -> list[int | None]:
    """Tones of differences: 0 where the interval holds 0, so that only what is clearly better (up to 3) or worse (down
    to -3) has a colour; None without a difference or an interval.
    """
    # An end may miss 0 by rounding alone.
    clear = [gap and gap.low is not None and gap.high is not None and max(gap.low, -gap.high) > 1e-9 for gap in gaps]
    most = max((abs(gap.value) for gap, sure in zip(gaps, clear, strict=True) if gap and sure), default=1.0)
    tones: list[int | None] = []
    for gap, sure in zip(gaps, clear, strict=True):
        if gap is None or gap.low is None or gap.high is None:
            tones.append(None)
        else:
            size = math.ceil(3 * abs(gap.value) / most) if sure else 0
            tones.append(size if (gap.value > 0) == (better == "high") else -size)
    return tones


def _minus(found: Estimate | None, reference: float) -> Estimate | None:
    if found is None:
        return None
    low, high = (None if end is None else end - reference for end in (found.low, found.high))
    return replace(found, value=found.value - reference, low=low, high=high)


def differences(made: table.Table, study: Study) -> list[Any]:
    """One set of paired differences, as the table takes them."""
    if not made.differences:
        missing = "No paired differences: no warm-up was evaluated (baseline=true adds one) and no run is a control."
        return [] if made.spec.claim else [Text(missing)]
    grid = render.difference_grid(made)
    tones = [tone or None for tone in _tones([one.mean for one in made.differences], made.columns[0].better)]
    arms = [_number_of(study, one.ours) for one in made.differences]
    return [_grid("Paired differences", grid, arms, {grid.head[1]: tones})]


def errors(study: Study) -> list[Any]:
    """Share of answers with each error; each number leads to its answers in the browser."""
    kinds = [kind for kind in ERRORS if any(estimate_of(arm, f"errors.{kind}") for arm in study.arms)]
    rows = []
    for number, arm in enumerate(study.arms):
        cells = [GridCell(arm.label, arm=number, href=f"#answers:{number}:wrong")]
        for kind in kinds:
            found = estimate_of(arm, f"errors.{kind}")
            if found is None:
                cells.append(GridCell("-"))
            else:
                ends = found.low is not None and f"95 % interval {found.low:.1f} to {found.high:.1f}"
                shown, href = f"{found.value:.1f}", f"#answers:{number}:{kind}"
                cells.append(GridCell(shown, found.value, ends or "", href, share=found.value / 100))
        rows.append(cells)
    words = [kind.replace("_", " ") for kind in kinds]
    meaning = "; ".join(f"{word}: {ERRORS[kind]}" for word, kind in zip(words, kinds, strict=True))
    said = "An answer may have several errors. A number leads to its answers, a policy's name to all its wrong answers."
    grid = Grid(caption="Answers with each error, %", columns=["policy", *words], rows=rows)
    return [grid, Text(said), Text(f"What the errors mean: {meaning}.")] if kinds else []


# --- across policies -------------------------------------------------------------------------------------------------


def _at(arm: Arm, axis: str) -> str | None:
    """What a policy has on an axis, an option group or a dotted setting; None where it has no such thing."""
    whole = {**table.settings(arm.first.config), "rounds": arm.first.rounds, **arm.first.choices}
    return as_text(whole[axis]) if axis in whole else None


def heat_map(made: table.Table, study: Study, axes: Sequence[str]) -> list[Any]:
    """Accuracy over two axes. A cell has a colour where its interval says that it differs: by the paired difference to
    the warm-up where every cell has one, else by the difference to the mean of all cells.

    Raises:
        ConfigError: an axis that no policy has.
    """
    for axis in axes:
        if any(_at(arm, axis) is None for arm in study.aligned):
            known = ", ".join(study.varying) or "none"
            raise ConfigError.at(
                "axes", axis, "no option group or setting of these runs", f"Groups that differ: {known}"
            )
    values = {a: list(dict.fromkeys(str(_at(arm, a)) for arm in study.aligned)) for a in axes or study.varying}
    first, second = (*axes, *sorted(values, key=lambda axis: -len(values[axis])), "", "")[:2]
    if not second or not study.aligned:
        return []
    cells: dict[tuple[str, str], list[Arm]] = {(row, column): [] for row in values[first] for column in values[second]}
    for arm in study.aligned:
        cells[str(_at(arm, first)), str(_at(arm, second))].append(arm)
    found = {at: _mean_of([estimate_of(arm, "accuracy") for arm in mine]) for at, mine in cells.items()}
    starts = {arm.key for arm in study.arms if arm.warmup}
    paired = {one.ours: one.mean for one in made.differences if one.against in starts}
    if all(len(mine) < 2 and all(paired.get(arm.key) for arm in mine) for mine in cells.values()):
        gaps = [paired.get(mine[0].key) if mine else None for mine in cells.values()]
        reference = "the paired difference to the warm-up"
    else:
        mean = statistics.fmean([one.value for one in found.values() if one] or [0])
        gaps, reference = [_minus(one, mean) for one in found.values()], "the difference to the mean of all cells"
    tones = dict(zip(cells, _tones(gaps), strict=True))
    seeds = {at: min(len(arm.records) for arm in mine) for at, mine in cells.items() if mine}

    def shown(at: tuple[str, str]) -> GridCell:
        if (one := found[at]) is None:
            return GridCell("-")
        ends = "" if one.low is None or one.high is None else f" [{one.low:.1f}, {one.high:.1f}]"
        star = "*" * (seeds[at] < max(seeds.values()))
        return GridCell(
            f"{one.value:.1f}{ends}{star}", one.value, "; ".join(a.label for a in cells[at]), tone=tones[at]
        )

    rows = [[GridCell(row), *(shown((row, column)) for column in values[second])] for row in values[first]]
    caption = f"Accuracy in %, {first} (rows) by {second} (columns)"
    said = f"Colour is {reference}: blue is better, orange is worse, grey is a difference within its interval."
    if any(one and tones[at] is None for at, one in found.items()):
        said += " No colour: the interval is not known."
    if (most := max(map(len, cells.values()))) > 1:
        said += f" A cell is a mean over up to {most} policies that differ in other settings."
    if len(set(seeds.values())) > 1:
        said += f" * fewer than the {max(seeds.values())} seeds of other cells."
    return [Grid(caption=caption, columns=[f"{first} \\ {second}", *values[second]], rows=rows), Text(said)]


def _mean_of(found: Sequence[Estimate | None]) -> Estimate | None:
    """One estimate as it is; of several policies the mean, whose interval is not known."""
    known = [one for one in found if one is not None]
    return Estimate(value=statistics.fmean([one.value for one in known])) if known[1:] else next(iter(known), None)


def gain_decay(study: Study) -> list[Any]:
    """Accuracy against the amount of data, a line for policies that differ in nothing else. Where the amount is that of
    exploration, a line begins with the warm-up, which saw none.
    """
    wholes = [table.settings(arm.first.config) for arm in study.aligned]
    blocks: list[Any] = []
    for key in dict.fromkeys(key for whole in wholes for key in whole if AMOUNT.fullmatch(key)):
        if len({as_text(whole.get(key)) for whole in wholes}) < 2:
            continue
        groups: dict[str, list[tuple[float, Arm]]] = {}
        for arm, whole in zip(study.aligned, wholes, strict=True):
            rest = [{**whole, key: None}, arm.first.choices, arm.first.rounds]
            if (amount := _amount(study, arm, key)) is not None:
                groups.setdefault(json.dumps(rest, sort_keys=True), []).append((amount, arm))
        if len({amount for points in groups.values() for amount, _ in points}) > 1:
            series = [_data_line(study, points, key) for points in groups.values()]
            blocks.append(charts.lines(f"decay-{len(blocks)}", f"Accuracy by {key}", series, key, "right answers, %"))
        if lost := len(wholes) - sum(map(len, groups.values())):
            blocks.append(Text(f"{plural(lost, 'policy')} without a number for {key} left out."))
    return [*blocks, Text(INTERVALS)] if blocks else []


def _data_line(study: Study, points: Sequence[tuple[float, Arm]], key: str) -> charts.Line:
    start = None if key.startswith(("data.warmup", "data.max_rows")) else study.start_of(points[0][1])
    every = sorted([(0.0, start)] * bool(start) + [*points], key=lambda one: one[0])
    known = [(x, arm, found) for x, arm in every if arm and (found := estimate_of(arm, "accuracy"))]
    return charts.Line(
        label=" + ".join(str(points[0][1].first.choices.get(group)) for group in study.varying or ["objective"]),
        arms=[study.arms.index(arm) for _, arm, _ in known],
        x=[x for x, _, _ in known],
        y=[one.value for *_, one in known],
        ends=[
            (one.value if one.low is None else one.low, one.value if one.high is None else one.high)
            for *_, one in known
        ],
    )


def _amount(study: Study, arm: Arm, key: str) -> float | None:
    """How much data a policy saw; without a limit, what there was."""
    value = table.settings(arm.first.config).get(key)
    if value is None and key.startswith("select.") and "data" in arm.first.stages:
        samples = as_mapping(study.stages[arm.first.stages["data"]].metrics.get("samples"))
        value = samples.get("explore", as_mapping(arm.first.config.get("data")).get("explore_samples"))
    return finite(value)
