"""One table as plain values: what every cell shows, what is missing, what the paper printed, which rows differ.

`make` takes a read table.yaml, its cells and the records found for them. Nothing is hidden: a seed without a record is
named, a record of other stage versions is flagged, a published number stands beside ours with its source, and a
difference is only taken where both were measured on the same thing. What this module does not do: format
(`ttpa.tables.render`), or compute statistics (`ttpa.tables.numbers`). It reads one kind of file: the `rows.jsonl` of
evaluation stages that are still in the store.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.errors import DataError
from ttpa.records import read_jsonl
from ttpa.stages import VERSIONS
from ttpa.tables.cells import Cell, Record, Records
from ttpa.tables.numbers import Estimate, Paired, holm, over_seeds, paired_means, paired_samples
from ttpa.tables.spec import Column, Preset, Published, Row, Spec

Sampled = dict[tuple[int, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row in a column, in the unit shown. `estimate` is None in a hole."""

    estimate: Estimate | None
    published: Published | None
    difference: float | None
    """Ours minus published; None where there is nothing to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row. `found` and `missing` are seeds; `outdated` says which stages have other code by now, "" if none."""

    row: Row
    found: tuple[int, ...]
    missing: tuple[int, ...]
    outdated: str
    entries: tuple[Entry, ...]
    seconds: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A paired difference of two rows in the first column, in the unit shown. `method`: samples or seeds."""

    ours: str
    against: str
    method: str
    paired: Paired | None
    p_adjusted: float | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything that is shown."""

    spec: Spec
    preset: Preset
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    with_cost: bool


def make(
    spec: Spec, preset: Preset, cells: Sequence[Cell], records: Records, store: Path, *, with_cost: bool = False
) -> Table:
    """The table of a preset. What cannot be used of a record is added to `records.warnings`."""
    found = {(cell.row.key, cell.seed): record for cell in cells if (record := records.of(cell)) is not None}
    lines = []
    for row in {cell.row.key: cell.row for cell in cells}.values():
        seeds = [cell.seed for cell in cells if cell.row is row]
        mine = {seed: found[row.key, seed] for seed in seeds if (row.key, seed) in found}
        entries = tuple(_entry(spec, preset, row, column, mine, records.warnings) for column in spec.columns)
        costs = [_cost(row, record) for record in mine.values()]
        lines.append(
            Line(
                row=row,
                found=tuple(mine),
                missing=tuple(seed for seed in seeds if seed not in mine),
                outdated=_outdated(row, mine.values()),
                entries=entries,
                seconds=statistics.fmean(seconds for seconds, _ in costs) if costs else None,
                tokens=statistics.fmean(tokens for _, tokens in costs) if costs else None,
            )
        )
    differences = _differences(spec, preset, lines, found, store)
    notes = tuple(_notes(spec, preset, lines, differences))
    return Table(
        spec=spec,
        preset=preset,
        columns=spec.columns,
        lines=tuple(lines),
        differences=differences,
        notes=notes,
        with_cost=with_cost,
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def _metrics(row: Row, record: Record) -> Mapping[str, Any]:
    metrics: Mapping[str, Any] = record.row["baseline" if row.warmup_only else "metrics"]
    return metrics


def _at(metrics: Mapping[str, Any], path: str) -> Estimate | None:
    """The number at a dotted path; None where it was measured and is nothing (no sample of that kind).

    Raises:
        KeyError: there is no such path, or no number there.
    """
    value: Any = metrics
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(path)
        value = value[key]
    if isinstance(value, Mapping):
        if "value" not in value:
            raise KeyError(path)
        low, high, value = value.get("low"), value.get("high"), value["value"]
        if value is not None and low is not None and high is not None:
            return Estimate(value=value, low=low, high=high, kind="bootstrap")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise KeyError(path)
    return Estimate(value=value)


def _values(row: Row, column: Column, preset: str, mine: Mapping[int, Record], warnings: list[str]) -> list[Estimate]:
    path = column.path(preset)
    values = []
    for record in mine.values() if path is not None else ():
        assert path is not None
        try:
            value = _at(_metrics(row, record), path)
        except KeyError:
            warnings.append(
                f"{record.path}: no number at {path} (column {column.key}, row {row.key}). Correct the column's metric."
            )
            continue
        if value is not None:
            values.append(value)
    return values


def _entry(
    spec: Spec, preset: Preset, row: Row, column: Column, mine: Mapping[int, Record], warnings: list[str]
) -> Entry:
    values = _values(row, column, preset.name, mine, warnings)
    published = next((one for one in spec.published if (one.row, one.column) == (row.key, column.key)), None)
    if not values:
        return Entry(estimate=None, published=published, difference=None)
    estimate = values[0] if len(values) == 1 else over_seeds([value.value for value in values])
    shown = estimate.scaled(column.scale)
    comparable = published is not None and preset.comparable and published.trust != "unclear"
    difference = shown.value - published.value if published is not None and comparable else None
    return Entry(estimate=shown, published=published, difference=difference)


def _cost(row: Row, record: Record) -> tuple[float, float]:
    """Seconds and tokens of everything the row needed, as if it had run alone."""
    roles = [role for role in record.row["cost"] if (role in _WARMUP_ROLES if row.warmup_only else role != "baseline")]
    parts = [record.row["cost"][role] for role in roles]
    return sum(part["seconds"] for part in parts), sum(part["tokens"] or 0 for part in parts)


_WARMUP_ROLES = ("data", "warmup", "baseline")


def _outdated(row: Row, records: Any) -> str:
    stages: dict[str, set[int]] = {}
    for record in records:
        for name, version in record.outdated(_WARMUP_ROLES if row.warmup_only else None).items():
            stages.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {'/'.join(map(str, sorted(v)))} (now {VERSIONS[name]})" for name, v in stages.items())


# --- differences -----------------------------------------------------------------------------------------------------


def _differences(
    spec: Spec, preset: Preset, lines: Sequence[Line], found: Mapping[tuple[str, int], Record], store: Path
) -> tuple[Difference, ...]:
    by_key = {line.row.key: line for line in lines}
    column = spec.columns[0]
    made = []
    for ours, against in spec.differences:
        if ours not in by_key or against not in by_key or column.path(preset.name) is None:
            continue
        pair = by_key[ours].row, by_key[against].row
        seeds = [seed for seed in by_key[ours].found if seed in by_key[against].found]
        made.append((ours, against, *_paired(column, preset.name, pair, seeds, found, store)))
    adjusted = holm([None if paired is None else paired.p for _, _, _, paired in made])
    return tuple(
        Difference(
            ours=ours,
            against=against,
            method=method,
            paired=paired,
            p_adjusted=p,
            verdict=_verdict(paired, p, column),
        )
        for (ours, against, method, paired), p in zip(made, adjusted, strict=True)
    )


def _verdict(paired: Paired | None, p: float | None, column: Column) -> str:
    if paired is None:
        return "not measured"
    if p is None:
        return "no interval: one seed, and its samples are gone"
    if p >= 0.05:
        return "no clear difference"
    return "better" if (paired.value * column.scale > 0) == (column.better == "high") else "worse"


def _paired(
    column: Column,
    preset: str,
    pair: tuple[Row, Row],
    seeds: Sequence[int],
    found: Mapping[tuple[str, int], Record],
    store: Path,
) -> tuple[str, Paired | None]:
    """By samples where both rows' are still in the store and give the column's number, else by the seeds' numbers."""
    path = column.path(preset)
    assert path is not None
    means: tuple[list[float], list[float]] = ([], [])
    samples: tuple[Sampled, Sampled] = ({}, {})
    clusters: dict[tuple[int, str], str] = {}
    whole = True
    for seed in seeds:
        records = [found[row.key, seed] for row in pair]
        try:
            values = [_at(_metrics(row, record), path) for row, record in zip(pair, records, strict=True)]
        except KeyError:
            continue
        if values[0] is None or values[1] is None:
            continue
        for side, (row, record, value) in enumerate(zip(pair, records, values, strict=True)):
            assert value is not None
            means[side].append(value.value)
            rows = _samples(row, record, store, value.value) if whole else None
            whole = rows is not None
            for name, (exact, cluster) in (rows or {}).items():
                samples[side][seed, name] = exact
                clusters[seed, name] = cluster
    if not means[0]:
        return "seeds", None
    if whole and samples[0].keys() == samples[1].keys():
        return "samples", paired_samples(samples[0], samples[1], clusters)
    return "seeds", paired_means(*means)


def _samples(row: Row, record: Record, store: Path, value: float) -> dict[str, tuple[float, str]] | None:
    """Sample id -> (right or not, dialogue) of an evaluation; None where it is gone or is not what the column shows.

    The column shows these samples when their share of right answers is its number.
    """
    stage = record.row["stages"]["baseline" if row.warmup_only else "evaluation"]
    file = store / stage / "rows.jsonl"
    if not file.is_file():
        return None
    try:
        rows = list(read_jsonl(file))
        every = {one["id"]: (float(one["exact"]), one["cluster"], "unseen_tool" in one["tags"]) for one in rows}
    except (DataError, KeyError, TypeError, OSError):
        return None
    if len(every) < len(rows):
        return None
    for tagged in (False, None, True):
        kept = {name: one[:2] for name, one in every.items() if tagged is None or one[2] == tagged}
        if kept and math.isclose(statistics.fmean(exact for exact, _ in kept.values()), value, abs_tol=1e-9):
            return kept
    return None


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(spec: Spec, preset: Preset, lines: Sequence[Line], differences: Sequence[Difference]) -> list[str]:
    notes = []
    kinds = {entry.estimate.kind for line in lines for entry in line.entries if entry.estimate is not None}
    if "t" in kinds:
        notes.append("Mean over seeds, in brackets its 95 % Student-t interval.")
    if "bootstrap" in kinds:
        notes.append("* one seed: the evaluation's own 95 % bootstrap interval over dialogues, blind to seeds.")
    if "" in kinds:
        notes.append("Without brackets: one seed, and nothing is known of its spread.")
    if any(entry.estimate is None for line in lines for entry in line.entries):
        notes.append("A dash is a hole: no record, or nothing to measure.")
    unmeasured = [column.label for column in spec.columns if column.path(preset.name) is None]
    if unmeasured:
        notes.append(f"Columns that preset {preset.name} does not measure: {', '.join(unmeasured)}.")
    shown = [entry.published for line in lines for entry in line.entries if entry.published is not None]
    if shown:
        marks = {"printed": "p printed in the paper", "secondary": "s from another source", "unclear": "? unclear"}
        marked = [text for trust, text in marks.items() if any(one.trust == trust for one in shown)]
        against = "" if preset.comparable else f" No difference is taken: preset {preset.name} runs something else."
        notes.append(f"Published numbers (mark and number of the source): {', '.join(marked)}.{against}")
    notes += [f"† {line.row.label}: built by other stage versions: {line.outdated}." for line in lines if line.outdated]
    if differences:
        methods = {one.method for one in differences if one.paired is not None}
        said = f"Paired differences in {spec.columns[0].label}; p with Holm's correction over {len(differences)}."
        if "samples" in methods:
            said += " By samples: same questions, same seeds; bootstrap and sign flips over dialogues."
        if "seeds" in methods:
            said += " By seeds: the seeds' own numbers, t interval and test (no samples of both in the store)."
        notes.append(said)
    return notes
