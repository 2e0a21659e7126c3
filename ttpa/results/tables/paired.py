"""Paired differences of a table's rows: by samples where both rows' are in the store, else by the seeds' numbers.

Samples say how far the questions decide a difference; the training seeds are fixed in that. So a verdict without a word
on seeds needs both: Holm's p below 0.05 and a t interval over the seeds that excludes 0. This module reads one kind of
file, the `rows.jsonl` of evaluation stages. What it does not do: statistics (`ttpa.results.tables.numbers`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.results.tables.numbers import Estimate, Paired, holm, no_width, paired_means, paired_samples
from ttpa.results.tables.records import Record, is_number, number_at
from ttpa.results.tables.spec import Column, Preset, Row, Spec

GONE = "no samples of both in the store"
NO_MEAN = "this column is no mean over samples"
OTHERS = "the samples of the two are not the same"
ALPHA = 0.05

Samples = dict[str, tuple[float, str, bool]]
"""Sample id -> right or not, dialogue, whether its tool is unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A paired difference of two rows in the first column, in the record's unit.

    `method`: samples or seeds; `reason`: why not samples, "" by samples. `same`: all seeds differ by the same amount.
    """

    ours: str
    against: str
    method: str
    reason: str
    paired: Paired | None
    p_adjusted: float | None
    verdict: str

    @property
    def same(self) -> bool:
        """Whether the interval over the seeds has no width."""
        return self.paired is not None and no_width(self.paired.seeds)


@dataclass(frozen=True, slots=True)
class _Pair:
    rows: tuple[Row, Row]
    seeds: tuple[int, ...]


def differences_of(
    spec: Spec,
    preset: Preset,
    rows: Mapping[str, tuple[Row, Sequence[int]]],
    found: Mapping[tuple[str, int], Record],
    store: Path,
) -> tuple[Difference, ...]:
    """The differences of a table that a preset measures.

    Args:
        spec: The table.
        preset: One of its presets.
        rows: Row key -> the row, and the seeds that have a record.
        found: (row key, seed) -> record.
        store: Folder of the stages.
    """
    path = spec.columns[0].path(preset.name)
    if path is None:
        return ()
    reader = _Reader(store)
    made = []
    for ours, against in spec.differences:
        if ours in rows and against in rows:
            seeds = tuple(seed for seed in rows[ours][1] if seed in rows[against][1])
            pair = _Pair((rows[ours][0], rows[against][0]), seeds)
            made.append((ours, against, *_paired(path, pair, found, reader)))
    adjusted = holm([None if paired is None else paired.p for *_, paired in made])
    return tuple(
        Difference(
            ours=ours,
            against=against,
            method="seeds" if reason else "samples",
            reason=reason,
            paired=paired,
            p_adjusted=p,
            verdict=_verdict(paired, p, reason, spec.columns[0]),
        )
        for (ours, against, reason, paired), p in zip(made, adjusted, strict=True)
    )


def _verdict(paired: Paired | None, p: float | None, reason: str, column: Column) -> str:
    if paired is None:
        return "not measured"
    seeds = paired.seeds
    if p is None:
        if no_width(seeds):
            return "no p: the same difference in all seeds"
        return f"no interval: one seed, and {reason}" if reason else "no interval: one dialogue"
    one = " on one seed" if seeds.n < 2 else ""
    if p >= ALPHA:
        return f"no clear difference{one}"
    word = "better" if (paired.value * column.scale > 0) == (column.better == "high") else "worse"
    return word if _agrees(paired.value, seeds) else f"{word}{one or ' on these seeds'}"


def _agrees(value: float, seeds: Estimate) -> bool:
    """Whether the interval over the seeds lies on the same side of 0."""
    if seeds.low is None or seeds.high is None or no_width(seeds):
        return False
    return seeds.low > 0 if value > 0 else seeds.high < 0


def _paired(
    path: str, pair: _Pair, found: Mapping[tuple[str, int], Record], reader: _Reader
) -> tuple[str, Paired | None]:
    """Why it is not by samples ("" where it is), and the difference."""
    means: tuple[list[float], list[float]] = ([], [])
    samples: tuple[dict[tuple[int, str], float], dict[tuple[int, str], float]] = ({}, {})
    clusters: dict[tuple[int, str], str] = {}
    reason = ""
    for seed in pair.seeds:
        records = [found[row.key, seed] for row in pair.rows]
        try:
            values = [
                number_at(record.metrics(row.warmup_only), path) for row, record in zip(pair.rows, records, strict=True)
            ]
        except KeyError:
            continue
        if values[0] is None or values[1] is None:
            continue
        for side, (row, record, value) in enumerate(zip(pair.rows, records, values, strict=True)):
            assert value is not None
            means[side].append(value.value)
            if reason:
                continue
            rows = reader.samples(record.row["stages"]["baseline" if row.warmup_only else "evaluation"])
            kept = None if rows is None else _of_the_column(rows, value.value)
            reason = GONE if rows is None else NO_MEAN if kept is None else ""
            for name, (exact, cluster, _) in (kept or {}).items():
                samples[side][seed, name] = exact
                clusters[seed, name] = cluster
    if not means[0]:
        return GONE, None
    if not reason and samples[0].keys() != samples[1].keys():
        reason = OTHERS
    return reason, paired_means(*means) if reason else paired_samples(samples[0], samples[1], clusters)


def _of_the_column(rows: Samples, value: float) -> Samples | None:
    """Those samples whose share of right answers is the column's number: all, or those with unseen tools or without."""
    for unseen in (False, None, True):
        kept = {name: one for name, one in rows.items() if unseen is None or one[2] == unseen}
        if kept and math.isclose(statistics.fmean(one[0] for one in kept.values()), value, abs_tol=1e-9):
            return kept
    return None


class _Reader:
    """Reads each evaluation once."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._read: dict[str, Samples | None] = {}

    def samples(self, stage: str) -> Samples | None:
        """The samples of an evaluation; None where they are gone or cannot be read."""
        if stage not in self._read:
            self._read[stage] = _read(self._store / stage / "rows.jsonl")
        return self._read[stage]


def _read(file: Path) -> Samples | None:
    found: Samples = {}
    number = 0
    try:
        for number, one in enumerate(read_jsonl(file), 1):  # noqa: B007
            name, cluster, exact = one["id"], one["cluster"], one["exact"]
            if not (
                isinstance(name, str) and isinstance(cluster, str) and (isinstance(exact, bool) or is_number(exact))
            ):
                return None
            found[name] = float(exact), cluster, "unseen_tool" in one["tags"]
    except (DataError, KeyError, TypeError, ValueError, OSError):
        return None
    return found if len(found) == number else None
