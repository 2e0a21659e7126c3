"""From gathered rows to tables of what was measured: accuracy, paired differences, errors. `trends` has the curves.

It computes means, standard deviations over seeds and the paired intervals of `ttpa.results.stats`; all other numbers
stand in result rows as they are. Where a file is gone the number is left out and a sentence says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.errors import DataError
from ttpa.results.report import charts
from ttpa.results.report.blocks import Block, Cell, Grid, Text, count
from ttpa.results.report.charts import Bars
from ttpa.results.report.gather import Arm, Gathered

SHOWN_ARMS = 8
"""Policies in one chart; the tables hold all."""
MOST_COLUMNS = 24
MOST_DIFFERENCES = 120
"""Paired intervals on a page: each resamples a benchmark 2,000 times."""


# --- accuracy --------------------------------------------------------------------------------------------------------


def shares(metrics: Mapping[str, Any], prefix: str = "", depth: int = 3) -> dict[str, Mapping[str, Any]]:
    """Every `{value, n}` of a benchmark's numbers by its dotted name, errors left out.

    Example:
        >>> shares({"accuracy": {"value": 0.5, "n": 2}, "bands": {"easy": {"value": 1.0, "n": 1}}, "split": "test"})
        {'accuracy': {'value': 0.5, 'n': 2}, 'bands.easy': {'value': 1.0, 'n': 1}}
    """
    found: dict[str, Mapping[str, Any]] = {}
    for key, item in metrics.items():
        if not isinstance(item, Mapping) or (not prefix and key == "errors"):
            continue
        if "value" in item and "n" in item:
            found[f"{prefix}{key}"] = item
        elif depth > 1:
            found.update(shares(item, f"{prefix}{key}.", depth - 1))
    return found


def value_of(arm: Arm, seed: int, name: str = "accuracy") -> float | None:
    """A share of an arm, None where it was not measured."""
    return plain(shares(arm.metrics(seed)).get(name, {}).get("value"))


def plain(value: Any) -> float | None:
    """A number as such; a row may hold anything there."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def over_seeds(values: Sequence[float | None], digits: int = 3, sign: str = "") -> Cell:
    """Mean and standard deviation as a cell."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell("-")
    mean = statistics.mean(known)
    spread = f" \u00b1 {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return Cell(f"{mean:{sign}.{digits}f}{spread}", mean)


def drawn(found: Gathered, arms: Sequence[Arm]) -> tuple[list[Arm], str]:
    """Which policies a chart holds, and what is said of them. Of many in a table the first; in a sweep the warm-ups and
    of each objective some, spread over its arms.
    """
    if len(arms) <= SHOWN_ARMS:
        return list(arms), ""
    if found.named:
        said = f"The picture holds the first {SHOWN_ARMS} of {len(arms)} policies in the table's order"
        return list(arms[:SHOWN_ARMS]), f" {said}, the numbers hold all."
    kept = [arm for arm in arms if arm.warmup][: SHOWN_ARMS // 4]
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        if not arm.warmup:
            groups.setdefault(str(arm.first.choices.get("objective")), []).append(arm)
    quota = dict.fromkeys(groups, 0)
    while sum(quota.values()) < SHOWN_ARMS - len(kept) and any(quota[name] < len(groups[name]) for name in groups):
        name = min((name for name in groups if quota[name] < len(groups[name])), key=quota.__getitem__)
        quota[name] += 1
    kept += [group[k * len(group) // quota[name]] for name, group in groups.items() for k in range(quota[name])]
    said = f"The picture holds {len(kept)} of {len(arms)} policies, of each objective some; the numbers hold all."
    return [arm for arm in arms if any(arm is one for one in kept)], f" {said}"


def mean_of(arm: Arm, name: str = "accuracy") -> float | None:
    """Mean over an arm's seeds."""
    return over_seeds([value_of(arm, seed, name) for seed in arm.records]).value


def accuracy(found: Gathered) -> list[Block]:
    """Accuracy of every policy with what it cost: interval of a single seed, mean and deviation of several."""
    names = list(dict.fromkeys(name for arm in found.policies for s in arm.records for name in shares(arm.metrics(s))))
    kept = names[:MOST_COLUMNS]
    rows = []
    for arm in found.policies:
        cells = [Cell(arm.label), Cell(str(len(arm.records)), len(arm.records))]
        for name in kept:
            seen = [shares(arm.metrics(seed)).get(name) for seed in arm.records]
            cells.append(_interval(seen[0]) if len(seen) == 1 else over_seeds([_value(one) for one in seen]))
        rows.append([*cells, *_costs(arm)])
    words = [name.removeprefix("bands.").replace("_", " ") for name in kept]
    sample = found.policies[0].metrics(min(found.policies[0].records))
    where = f", {sample['split']} split" if sample.get("split") else ""
    caption = f"Accuracy{where}: 95 % interval of a single seed, mean \u00b1 standard deviation of several"
    columns = ["policy", "seeds", *words, "exploration, s", "training, s", "tokens"]
    blocks: list[Block] = [Grid(caption=caption, columns=columns, rows=rows)]
    if len(names) > len(kept):
        blocks.append(Text(f"{len(names) - len(kept)} more numbers are in the result rows."))
    return blocks


def _value(entry: Mapping[str, Any] | None) -> float | None:
    return plain(entry.get("value")) if entry else None


def _interval(entry: Mapping[str, Any] | None) -> Cell:
    value = _value(entry)
    if entry is None or value is None:
        return Cell("-")
    low, high = plain(entry.get("low")), plain(entry.get("high"))
    around = f" [{abs(low):.3f}, {high:.3f}]" if low is not None and high is not None and abs(low) < 1e-9 else ""
    if not around and low is not None and high is not None:
        around = f" [{low:.3f}, {high:.3f}]"
    return Cell(f"{value:.3f}{around}", value, f"{entry['n']} samples")


def _costs(arm: Arm) -> list[Cell]:
    """Mean seconds of exploration and training, and tokens of both."""
    roles: dict[int, tuple[list[str], list[str]]]
    if arm.warmup:
        roles = {seed: (["warmup"], []) for seed in arm.records}
    else:
        roles = {
            seed: (
                [role for role in record.stages if role.startswith("align")],
                [role for role in record.stages if role.startswith(("explore", "select"))],
            )
            for seed, record in arm.records.items()
        }

    def total(seed: int, wanted: Sequence[str], key: str) -> float | None:
        known = [plain((arm.records[seed].cost.get(role) or {}).get(key)) for role in wanted]
        return sum(one for one in known if one is not None) if any(one is not None for one in known) else None

    explored = [total(seed, more, "seconds") for seed, (_, more) in roles.items()]
    trained = [total(seed, made, "seconds") for seed, (made, _) in roles.items()]
    tokens = [total(seed, [*made, *more], "tokens") for seed, (made, more) in roles.items()]
    mean = over_seeds(tokens).value
    return [over_seeds(explored, 1), over_seeds(trained, 1), Cell(count(mean), mean)]


# --- paired differences ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _answers(folder: Path) -> tuple[dict[str, float], dict[str, str]] | None:
    """Whether each sample was answered right, and its cluster; None where the file is gone or damaged."""
    from ttpa.results.stats import exact_by_id

    try:
        return exact_by_id(folder)
    except (OSError, UnicodeDecodeError, DataError, KeyError, TypeError):
        return None


@lru_cache(maxsize=512)
def _difference(left: Path, right: Path) -> tuple[float, float, float] | None:
    from ttpa.results.stats import paired_difference

    a, b = _answers(left), _answers(right)
    if a is None or b is None:
        return None
    try:
        return paired_difference(a[0], b[0], a[1])
    except DataError:  # other benchmarks, or parts of one
        return None


def differences(found: Gathered) -> list[Block]:
    """Each arm against its warm-up and its controls, paired by sample within each seed."""
    pairs = [(arm, other) for arm in found.arms for other in (found.start_of(arm), *found.controls_of(arm)) if other]
    kept = pairs[: max(1, MOST_DIFFERENCES // max(1, len(found.seeds)))]
    rows, lost = [], 0
    for arm, other in kept:
        by_seed: list[tuple[float, float, float] | None] = []
        for seed in found.seeds:
            folders = [found.stages[one.evaluation(seed)].folder for one in (arm, other) if seed in one.records]
            seen = _difference(*folders) if len(folders) == 2 else None
            lost += len(folders) == 2 and seen is None
            by_seed.append(seen)
        if any(by_seed):
            rows.append(_difference_row(arm, other, by_seed))
    if not pairs:
        said = (
            "No row holds an evaluation of the warm-up, and none is a control: no differences. baseline=true adds one."
        )
        return [Text(said)]
    if not rows:
        return [Text("Paired differences need the rows of two evaluations, which are not in the store.", True)]
    seeds = [f"seed {seed}" for seed in found.seeds]
    caption = "Paired differences of accuracy over the same samples, 95 % bootstrap interval over dialogues"
    blocks: list[Block] = [Grid(caption=caption, columns=["policy", "against", "mean", *seeds, "reading"], rows=rows)]
    if lost:
        said = f"{lost} differences are missing: rows not in the store, or not over the same samples."
        blocks.append(Text(said, True))
    if len(kept) < len(pairs):
        blocks.append(Text(f"The first {len(kept)} of {len(pairs)} comparisons."))
    return blocks


def _difference_row(arm: Arm, other: Arm, by_seed: Sequence[tuple[float, float, float] | None]) -> list[Cell]:
    seen = [one for one in by_seed if one is not None]
    better, worse = sum(low > 0 for _, low, _ in seen), sum(high < 0 for _, _, high in seen)
    if len(seen) == 1:
        reading = "better" if better else "worse" if worse else "no clear difference"
    else:
        parts = ((better, "better"), (worse, "worse"), (len(seen) - better - worse, "unclear"))
        reading = ", ".join(f"{word} in {number}" for number, word in parts if number) + f" of {len(seen)} seeds"
    cells = [
        Cell("-") if one is None else Cell(f"{one[0]:+.3f} [{one[1]:+.3f}, {one[2]:+.3f}]", one[0]) for one in by_seed
    ]
    return [Cell(arm.label), Cell(other.label), over_seeds([one[0] for one in seen], sign="+"), *cells, Cell(reading)]


# --- errors ----------------------------------------------------------------------------------------------------------


def errors(found: Gathered) -> list[Block]:
    """Share of answers with each of the six errors, by policy."""
    kinds = [label for label in LABELS if any(label in _errors(arm, s) for arm in found.policies for s in arm.records)]
    if not kinds:
        return []
    bars, rows = [], []
    for arm in found.policies:
        seen = {kind: [_errors(arm, seed).get(kind) for seed in arm.records] for kind in kinds}
        cells = {kind: over_seeds([_value(one) for one in entries]) for kind, entries in seen.items()}
        rows.append([Cell(arm.label), *cells.values()])
        ends = [whisker(entries) for entries in seen.values()]
        values = [cell.value for cell in cells.values()]
        bars.append(Bars(label=arm.label, values=values, low=[e[0] for e in ends], high=[e[1] for e in ends]))
    words = [kind.replace("_", " ") for kind in kinds]
    some, said = drawn(found, found.policies)
    shown = [one for one, arm in zip(bars, found.policies, strict=True) if any(arm is other for other in some)]
    about = "Share of answers that show each of the six errors, and calls too many or too few."
    note = f"Whiskers: 95 % interval of a single seed, standard deviation of several.{said}"
    title = "Errors of each policy"
    chart = charts.bars("errors", title, f"{about} {note}", words, shown, x="share of answers", note=note, every=bars)
    caption = "Share of answers with each error; an answer may have several"
    return [chart, Grid(caption=caption, columns=["policy", *words], rows=rows)]


def _errors(arm: Arm, seed: int) -> Mapping[str, Any]:
    found = arm.metrics(seed).get("errors")
    return {k: v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}


def whisker(entries: Sequence[Mapping[str, Any] | None]) -> tuple[float | None, float | None]:
    """Ends of a whisker."""
    if len(entries) == 1 and entries[0]:
        return plain(entries[0].get("low")), plain(entries[0].get("high"))
    known = [value for one in entries if (value := _value(one)) is not None]
    if len(known) < 2:
        return None, None
    mean, spread = statistics.mean(known), statistics.stdev(known)
    return mean - spread, mean + spread
