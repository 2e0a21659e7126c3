"""Paired differences of a table's rows: by samples where both rows' are in the store, else by the seeds' numbers.

Samples say how far the questions decide a difference with the training seeds fixed. So "better" without a word on seeds
needs both: Holm's p below 0.05 and a t interval over the seeds that excludes 0. The statistics are in `stats`.
"""

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.results.records import Number, Record, number_at
from ttpa.results.spec import Column, RowSpec
from ttpa.results.stats import Estimate, PairedTest, holm, paired_means, paired_samples

GONE = "no samples of both in the store"
NO_MEAN = "this column is no mean over samples"
OTHERS = "the samples of the two are not the same"
ALPHA = 0.05

RowRecords = tuple[RowSpec, Mapping[int, Record]]
"""A row and its records by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Row `ours` minus row `against` in the first column, in the unit shown.

    `p` is Holm's over the table; `reason` says why the difference is not by samples, "" where it is. Nothing but
    `verdict` is known where `mean` is None.
    """

    ours: str
    against: str
    mean: Estimate | None
    seeds: Estimate | None
    p: float | None
    reason: str
    verdict: str


class Sample(BaseModel):
    """What is needed of a judged answer in the store."""

    model_config = ConfigDict(strict=True)

    id: str
    cluster: str
    exact: bool | Number
    tags: list[str]


def differences_of(
    pairs: Sequence[Sequence[str]], column: Column, preset: str, rows: Mapping[str, RowRecords], store: Path
) -> tuple[Difference, ...]:
    """The differences that can be taken of pairs of row keys (ours, the one it is compared with)."""
    path = column.path(preset)
    if path is None:
        return ()
    known = [(ours, against) for ours, against in pairs if ours in rows and against in rows]
    read = functools.cache(lambda stage: _samples(store / stage / "rows.jsonl"))
    tests = [_test(path, (rows[ours], rows[against]), read) for ours, against in known]
    adjusted = holm([test.p if test else None for _, test in tests])
    return tuple(
        Difference(
            ours=ours,
            against=against,
            mean=test.mean.scaled(column.scale) if test else None,
            seeds=test.seeds.scaled(column.scale) if test else None,
            p=p,
            reason=reason,
            verdict=_verdict(test, p, reason, column),
        )
        for (ours, against), (reason, test), p in zip(known, tests, adjusted, strict=True)
    )


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


def _test(
    path: str, sides: tuple[RowRecords, RowRecords], read: Callable[[str], list[Sample] | None]
) -> tuple[str, PairedTest | None]:
    """Why the difference is not by samples ("" where it is), and the difference."""
    means: tuple[list[float], list[float]] = ([], [])
    right: tuple[dict[tuple[int, str], float], dict[tuple[int, str], float]] = ({}, {})
    clusters: dict[tuple[int, str], str] = {}
    reason = ""
    for seed in [seed for seed in sides[0][1] if seed in sides[1][1]]:
        both = [(records[seed], row.warmup_only) for row, records in sides]
        try:
            values = [number_at(record.measured(warmup_only), path) for record, warmup_only in both]
        except KeyError:
            continue
        for at, ((record, warmup_only), value) in enumerate(zip(both, values, strict=True)):
            if value is None or None in values:
                continue
            means[at].append(value.value)
            samples = read(record.evaluation(warmup_only))
            kept = _of_the_column(samples or [], value.value)
            reason = reason or (GONE if samples is None else NO_MEAN if kept is None else "")
            for one in kept or ():
                right[at][seed, one.id] = float(one.exact)
                clusters[seed, one.id] = one.cluster
    if not means[0]:
        return GONE, None
    if not reason and right[0].keys() != right[1].keys():
        reason = OTHERS
    return reason, paired_means(*means) if reason else paired_samples(*right, clusters)


def _of_the_column(samples: Sequence[Sample], value: float) -> list[Sample] | None:
    """The samples whose share of right answers is the column's number: those with seen tools, all, or the others."""
    for unseen in (False, None, True):
        kept = [one for one in samples if unseen is None or ("unseen_tool" in one.tags) == unseen]
        if kept and math.isclose(statistics.fmean(float(one.exact) for one in kept), value, abs_tol=1e-9):
            return kept
    return None


def _samples(file: Path) -> list[Sample] | None:
    """The samples of an evaluation; None where they are gone or have another form."""
    try:
        found = [Sample.model_validate(row) for row in read_jsonl(file)]
    except (OSError, ValueError, DataError):
        return None
    return found if len({one.id for one in found}) == len(found) else None
