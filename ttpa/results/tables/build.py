"""One table as plain values: what every cell shows, what is missing, what the paper printed, which rows differ.

`from_folder` reads a table.yaml and the records of its cells, `make` puts them together. Nothing is hidden: a seed
without a record is named, a record of other stage versions is flagged, a published number stands beside ours with its
source, and a difference is only taken where both were measured on the same thing. What this module does not do: format
(`ttpa.results.tables.render`), take differences (`ttpa.results.tables.paired`) or compute statistics (`ttpa.results.tables.numbers`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.results.tables.cells import Cell, Composer, Record, Records, cells_of, paths, read_records
from ttpa.results.tables.numbers import Estimate, over_seeds
from ttpa.results.tables.paired import Difference, differences_of
from ttpa.results.tables.records import SHARES, number_at
from ttpa.results.tables.spec import Column, Preset, Published, Row, Spec, load
from ttpa.run.stages import VERSIONS


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
class Table:
    """Everything that is shown."""

    spec: Spec
    preset: Preset
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    with_cost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A table with what it was made of. `results` and `store` are the folders that were read."""

    table: Table
    cells: Sequence[Cell]
    records: Records
    results: Path
    store: Path


def from_folder(
    folder: Path,
    preset: str | None,
    extra: Sequence[str] = (),
    *,
    results: Path | None = None,
    store: Path | None = None,
    with_cost: bool = False,
) -> Made:
    """The table of a folder of experiments/. What is wrong with records is in their `warnings`.

    Args:
        folder: Holds the table.yaml.
        preset: One of its presets; None: the first.
        extra: Overrides of every cell, and `seed=`; see `cells_of`.
        results, store: Folders; None: those of the cells.
        with_cost: See `make`.

    Raises:
        ConfigError: a table.yaml, a preset or overrides that cannot work.
    """
    wanted = load(folder)
    chosen = wanted.preset(preset)
    with Composer() as composer:
        cells = cells_of(composer, wanted, chosen, extra)
        folders = paths(cells, wanted, chosen)
    results, store = results or Path(folders["results"]), store or Path(folders["store"])
    records = read_records(results, cells)
    if not results.is_dir():
        records.warnings.append(f"{results}: no such folder, so every cell is a hole. Set results=DIR.")
    table = make(wanted, chosen, cells, records, store, with_cost=with_cost)
    return Made(table=table, cells=cells, records=records, results=results, store=store)


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
    rows = {line.row.key: (line.row, line.found) for line in lines}
    differences = differences_of(spec, preset, rows, found, store)
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


def _values(row: Row, column: Column, preset: str, mine: Mapping[int, Record], warnings: list[str]) -> list[Estimate]:
    path = column.path(preset)
    values = []
    for record in mine.values() if path is not None else ():
        assert path is not None
        try:
            value = number_at(record.metrics(row.warmup_only), path)
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
    if (column.path(preset.name) or "").split(".")[0] in SHARES and all(0 <= value.value <= 1 for value in values):
        estimate = estimate.within(0.0, 1.0)
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
    stages: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.outdated(_WARMUP_ROLES if row.warmup_only else None).items():
            stages.setdefault(name, set()).add("of no version" if version is None else str(version))
    return ", ".join(
        f"{name} {'/'.join(sorted(versions))} (now {VERSIONS.get(name, 'no stage')})"
        for name, versions in stages.items()
    )


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(spec: Spec, preset: Preset, lines: Sequence[Line], differences: Sequence[Difference]) -> list[str]:
    notes = []
    kinds = {entry.estimate.kind for line in lines for entry in line.entries if entry.estimate is not None}
    shown = [(line, entry.estimate) for line in lines for entry in line.entries if entry.estimate is not None]
    if "t" in kinds:
        cut = any(estimate.cut for _, estimate in shown)
        end = ", cut off where a share ends (0 and 100 %)." if cut else "."
        notes.append(f"Mean over seeds, in brackets its 95 % Student-t interval{end}")
    if any(estimate.n < len(line.found) for line, estimate in shown):
        notes.append("n=: of the row's seeds so many measured this number; the others have a record without it.")
    if "bootstrap" in kinds:
        notes.append("* one seed: the evaluation's own 95 % bootstrap interval over dialogues, blind to seeds.")
    if "" in kinds:
        notes.append("Without brackets: one seed, and nothing is known of its spread.")
    if any(entry.estimate is None for line in lines for entry in line.entries):
        notes.append("A dash is a hole: no record, or nothing to measure.")
    unmeasured = [column.label for column in spec.columns if column.path(preset.name) is None]
    if unmeasured:
        notes.append(f"Columns that preset {preset.name} does not measure: {', '.join(unmeasured)}.")
    printed = [entry.published for line in lines for entry in line.entries if entry.published is not None]
    if printed:
        marks = {"printed": "p printed in the paper", "secondary": "s from another source", "unclear": "? unclear"}
        marked = [text for trust, text in marks.items() if any(one.trust == trust for one in printed)]
        against = "" if preset.comparable else f" No difference is taken: preset {preset.name} runs something else."
        notes.append(f"Published numbers (mark and number of the source): {', '.join(marked)}.{against}")
    notes += [f"† {line.row.label}: built by other stage versions: {line.outdated}." for line in lines if line.outdated]
    return notes + _on_differences(spec, differences)


def _on_differences(spec: Spec, differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    measured = [one for one in differences if one.paired is not None]
    count = sum(one.p_adjusted is not None for one in differences)
    said = f"Paired differences in {spec.columns[0].label}"
    said += f"; p with Holm's correction over the {count} that have one." if count > 1 else "."
    if any(one.method == "samples" for one in measured):
        said += " By samples: same questions, same seeds; bootstrap and sign flips over dialogues."
    reasons = list(dict.fromkeys(one.reason for one in measured if one.method == "seeds"))
    if reasons:
        said += f" By seeds: the seeds' own numbers, t interval and test ({'; '.join(reasons)})."
    notes = [said]
    if any(one.method == "samples" for one in measured):
        notes.append(
            "p by samples is over questions with the seeds fixed; the t interval over the seeds stands beside it. "
            "Better or worse without a word on seeds: p < 0.05, and that interval excludes 0."
        )
    if any(one.same for one in measured):
        notes.append("Where all seeds differ by the same amount, their interval has no width: nothing follows from it.")
    return notes
