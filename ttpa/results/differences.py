"""Paired differences of a table's rows: by samples where both rows' are in the store, else by the seeds' numbers.

Samples say how far the questions decide a difference with the training seeds fixed. So "better" without a word on seeds
needs both: Holm's p below 0.05 and a t interval over the seeds that excludes 0. The statistics are in `stats`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.results.records import Record, is_number, number_at
from ttpa.results.spec import Column, RowSpec
from ttpa.results.stats import Estimate, PairedTest, holm, paired_means, paired_samples

GONE = "no samples of both in the store"
NO_MEAN = "this column is no mean over samples"
OTHERS = "the samples of the two are not the same"
ALPHA = 0.05

Samples = dict[str, tuple[float, str, bool]]
"""Sample id -> right or not, dialogue, whether its tool is unseen."""


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


def differences_of(
    pairs: Sequence[Sequence[str]],
    column: Column,
    preset: str,
    rows: Mapping[str, tuple[RowSpec, Mapping[int, Record]]],
    store: Path,
) -> tuple[Difference, ...]:
    """The differences that can be taken.

    Args:
        pairs: Row keys, ours and the one it is compared with.
        column: What is compared.
        preset: Says where records hold the column.
        rows: Row key -> the row and its records by seed.
        store: Folder of the stages.
    """
    path = column.path(preset)
    if path is None:
        return ()
    reader = _Reader(store)
    made = [
        (ours, against, *_test(path, rows[ours], rows[against], reader))
        for ours, against in pairs
        if ours in rows and against in rows
    ]
    adjusted = holm([test.p if test else None for _, _, _, test in made])
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
        for (ours, against, reason, test), p in zip(made, adjusted, strict=True)
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
    low, high = test.seeds.low, test.seeds.high
    agrees = low is not None and high is not None and not test.seeds.has_no_width and low * high > 0
    return word if agrees and (low or 0) * test.mean.value > 0 else f"{word}{alone or ' on these seeds'}"


def _test(
    path: str,
    ours: tuple[RowSpec, Mapping[int, Record]],
    against: tuple[RowSpec, Mapping[int, Record]],
    reader: _Reader,
) -> tuple[str, PairedTest | None]:
    """Why it is not by samples ("" where it is), and the difference."""
    means: tuple[list[float], list[float]] = ([], [])
    samples: tuple[dict[tuple[int, str], float], dict[tuple[int, str], float]] = ({}, {})
    clusters: dict[tuple[int, str], str] = {}
    reason = ""
    for seed in [seed for seed in ours[1] if seed in against[1]]:
        sides = [(records[seed], row.warmup_only) for row, records in (ours, against)]
        try:
            values = [number_at(record.measured(warmup_only), path) for record, warmup_only in sides]
        except KeyError:
            continue
        if None in values:
            continue
        for at, ((record, warmup_only), value) in enumerate(zip(sides, values, strict=True)):
            assert value is not None
            means[at].append(value.value)
            rows = reader.samples(record.evaluation(warmup_only))
            kept = None if rows is None else _of_the_column(rows, value.value)
            reason = reason or (GONE if rows is None else NO_MEAN if kept is None else "")
            for name, (exact, cluster, _) in (kept or {}).items():
                samples[at][seed, name] = exact
                clusters[seed, name] = cluster
    if not means[0]:
        return GONE, None
    if not reason and samples[0].keys() != samples[1].keys():
        reason = OTHERS
    return reason, paired_means(*means) if reason else paired_samples(*samples, clusters)


def _of_the_column(rows: Samples, value: float) -> Samples | None:
    """The samples whose share of right answers is the column's number: all, those with unseen tools, or without."""
    for unseen in (False, None, True):
        kept = {name: one for name, one in rows.items() if unseen is None or one[2] == unseen}
        if kept and math.isclose(statistics.fmean(one[0] for one in kept.values()), value, abs_tol=1e-9):
            return kept
    return None


class _Reader:
    """Reads the samples of each evaluation once."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._read: dict[str, Samples | None] = {}

    def samples(self, stage: str) -> Samples | None:
        """The samples of an evaluation; None where they are gone or have another form."""
        if stage not in self._read:
            self._read[stage] = _read(self._store / stage / "rows.jsonl")
        return self._read[stage]


def _read(file: Path) -> Samples | None:
    found: Samples = {}
    try:
        for one in read_jsonl(file):
            name, cluster, exact = one["id"], one["cluster"], one["exact"]
            if not (isinstance(name, str) and isinstance(cluster, str) and name not in found):
                return None
            if not (isinstance(exact, bool) or is_number(exact)):
                return None
            found[name] = float(exact), cluster, "unseen_tool" in one["tags"]
    except (DataError, KeyError, TypeError, ValueError, OSError):
        return None
    return found
