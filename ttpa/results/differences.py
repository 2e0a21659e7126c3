"""Paired differences of a table's rows: by samples where both rows' are in the store, else by the seeds' numbers.

Samples say how far the questions decide a difference with the training seeds fixed. So "better" without a word on seeds
needs both: Holm's p below 0.05 and a t interval over the seeds that excludes 0. Where a sweep has added seeds until
the intervals were narrow enough, that interval is Stein's. The statistics are in `stats`.
"""

import functools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.results.records import Number, Record, number_at
from ttpa.results.spec import Column, RowSpec
from ttpa.results.stats import Estimate, PairedTest, holm, paired_means, paired_samples, seeds_for_power

GONE = "no samples of both in the store"
NO_MEAN = "this column is no mean over samples"
OTHERS = "the samples of the two are not the same"
ALPHA = 0.05
POINTS = 2
"""The difference, in hundredths of what is measured, for which the seeds are counted."""


class Difference(NamedTuple):
    """Row `ours` minus row `against` in the first column, in the unit shown.

    `p` is Holm's over the table; `reason` says why the difference is not by samples, "" where it is. Nothing but
    `verdict` is known where `mean` is None. `needed` is `stats.seeds_for_power` for a true difference of `POINTS`.
    """

    ours: str
    against: str
    mean: Estimate | None
    seeds: Estimate | None
    p: float | None
    reason: str
    verdict: str
    needed: int | None = None


class Sample(BaseModel, strict=True):
    """What is needed of a judged answer in the store."""

    id: str
    cluster: str
    exact: bool | Number
    tags: list[str]


RowRecords = tuple[RowSpec, Mapping[int, Record]]
"""A row and its records by seed."""
Measured = dict[int, tuple[float, list[Sample], str]]
"""Of a row by seed: the number, the samples that it is the mean of, and why there are none ("" where there are)."""


def differences_of(
    pairs: Sequence[Sequence[str]],
    column: Column,
    preset: str,
    rows: Mapping[str, RowRecords],
    store: Path,
    added: Collection[int] = (),
) -> tuple[Difference, ...]:
    """The differences that can be taken of pairs of keys of rows (ours, the one it is compared with). `added` are the
    seeds whose number followed from the spread of the others.
    """
    path = column.path(preset)
    known = [(ours, against) for ours, against in pairs if ours in rows and against in rows and path]
    measured = functools.cache(lambda key: _measured(path or "", *rows[key], store))
    tests = [_test(measured(ours), measured(against), added) for ours, against in known]
    adjusted = holm([test.p if test else None for _, test in tests])
    found = []
    for pair, (reason, test), p in zip(known, tests, adjusted, strict=True):
        mean, seeds = (one.scaled(column.scale) for one in (test.mean, test.seeds)) if test else (None, None)
        needed = seeds_for_power(seeds, POINTS / 100 * abs(column.scale)) if seeds else None
        found.append(Difference(*pair, mean, seeds, p, reason, _verdict(test, p, reason, column), needed))
    return tuple(found)


def _measured(path: str, row: RowSpec, records: Mapping[int, Record], store: Path) -> Measured:
    found = {}
    for seed, record in records.items():
        with suppress(KeyError):
            if value := number_at(record.measured(row.warmup_only), path):
                file = store / record.evaluation(row.warmup_only) / "rows.jsonl"
                found[seed] = (value.value, *_samples(file, value.value))
    return found


def _samples(file: Path, value: float) -> tuple[list[Sample], str]:
    """The samples whose share of right answers is the column's number: those with seen tools, all, or the others."""
    try:
        samples = [Sample.model_validate(row) for row in read_jsonl(file)]
    except (OSError, ValueError, DataError):
        return [], GONE
    if len({one.id for one in samples}) < len(samples):
        return [], GONE
    for unseen in (False, None, True):
        kept = [one for one in samples if unseen is None or ("unseen_tool" in one.tags) == unseen]
        if kept and math.isclose(statistics.fmean(float(one.exact) for one in kept), value, abs_tol=1e-9):
            return kept, ""
    return [], NO_MEAN


def _test(ours: Measured, against: Measured, added: Collection[int]) -> tuple[str, PairedTest | None]:
    """Why the difference is not by samples ("" where it is), and the difference over the seeds of both."""
    shared = sorted((seed for seed in ours if seed in against), key=lambda seed: seed in added)
    sides = [[(seed, *one[seed]) for seed in shared] for one in (ours, against)]
    if not shared:
        return GONE, None
    first = sum(seed not in added for seed in shared)
    reason = next((why for pair in zip(*sides, strict=True) for *_, why in pair if why), "")
    a, b = ({(seed, one.id): one for seed, _, samples, _ in side for one in samples} for side in sides)
    if reason or a.keys() != b.keys():
        values, others = ([value for _, value, *_ in side] for side in sides)
        return reason or OTHERS, paired_means(values, others, first)
    ours_exact, exact = ({at: float(one.exact) for at, one in side.items()} for side in (a, b))
    return "", paired_samples(ours_exact, exact, {at: one.cluster for at, one in b.items()}, first)


def _verdict(test: PairedTest | None, p: float | None, reason: str, column: Column) -> str:
    if test is None:
        return "not measured"
    if p is None:
        if test.seeds.has_no_width:
            return "no p: the same difference in all seeds"
        return f"no interval: one seed, and {reason}" if reason else "no interval: one dialogue"
    alone = " on one seed" if test.seeds.n < 2 else ""
    if p >= ALPHA:
        return f"no clear difference{alone}"
    word = "better" if (test.mean.value * column.scale > 0) == (column.better == "high") else "worse"
    low, high = test.seeds.low or 0, test.seeds.high or 0
    agrees = not test.seeds.has_no_width and low * high > 0 and low * test.mean.value > 0
    return word if agrees else f"{word}{alone or ' on these seeds'}"
