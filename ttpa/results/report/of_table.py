"""What a page says of a table's folder: the rows of `ttpa.results.tables` as blocks, and which result rows stand behind them.

The only module that knows `ttpa.results.tables`. What a cell is, which rows it takes and what is said of them is decided there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttpa.errors import DataError
from ttpa.results.report import charts
from ttpa.results.report.blocks import Block, Cell, Grid, Text
from ttpa.results.report.gather import Arm, warmup_part
from ttpa.results.report.rows import Record, record_of

if TYPE_CHECKING:
    from ttpa.results.tables import build, cells, render

MOST_COLUMNS = 10
"""Columns of the heat map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A table. `rows` are those that have results, in order; `warnings` say what was left out; `results` and `store`
    are the folders that were read.
    """

    title: str
    subtitle: str
    preset: str
    blocks: list[Block]
    heat: list[Block]
    rows: list[Arm]
    warnings: list[str]
    results: Path
    store: Path


def read(folder: Path, preset: str, results: Path | None, store: Path | None, extra: Sequence[str] = ()) -> Found:
    """Makes the table of a folder; see `build.from_folder`.

    Raises:
        ConfigError: no table.yaml, or one that cannot work; no such preset.
    """
    from ttpa.results.tables import build, render

    whole = build.from_folder(folder, preset or None, extra, results=results, store=store)
    made, every, records = whole.table, whole.cells, whole.records
    wanted, chosen = made.spec, made.preset
    rows = _rows(every, records)
    filled = sum(records.of(cell) is not None for cell in every)
    warnings = list(dict.fromkeys(records.warnings))
    grid = render.main_grid(made)
    values = [[entry.estimate.value if entry.estimate else None for entry in line.entries] for line in made.lines]
    blocks: list[Block] = [Text(f"Claim: {wanted.claim}"), _grid(f"Preset {chosen.name}", grid)]
    if made.differences:
        blocks.append(_grid("Paired differences", render.difference_grid(made)))
    notes = [f"{at}. {source}{f' ({note})' if note else ''}." for (source, note), at in render.sources(made).items()]
    blocks += [Text(note) for note in (*made.notes, *notes)]
    blocks += [Text(warning, True) for warning in warnings]
    return Found(
        title=wanted.title,
        subtitle=f"Table {wanted.name}, preset {chosen.name}: {filled} of {len(every)} cells have a result.",
        preset=chosen.name,
        blocks=blocks,
        heat=_heat(made, values),
        rows=rows,
        warnings=warnings,
        results=whole.results,
        store=whole.store,
    )


def _rows(every: Sequence[cells.Cell], records: cells.Records) -> list[Arm]:
    """The rows with a result, over seeds. A record behind a warm-up row may be of any experiment with that warm-up:
    the table's own are taken, and only where there is none what the other says of the warm-up.
    """
    read: dict[tuple[str, int], Record] = {}
    for cell in every:
        if (one := records.of(cell)) is not None:
            try:
                read[cell.row.key, cell.seed] = record_of(one.path, one.row)
            except DataError as error:
                records.warnings.append(f"Left out below the table: {error}")
    own = {
        cell.key.warmup(): read[cell.row.key, cell.seed]
        for cell in reversed(every)
        if not cell.row.warmup_only and (own_record := read.get((cell.row.key, cell.seed))) and own_record.baseline
    }
    found: dict[str, tuple[cells.Cell, dict[int, Record]]] = {}
    for cell in every:
        record = read.get((cell.row.key, cell.seed))
        if record is not None and cell.row.warmup_only:
            record = own.get(cell.key.warmup()) or warmup_part(record)
        if record is not None:
            found.setdefault(cell.row.key, (cell, {}))[1][cell.seed] = record
    return [Arm(label=cell.row.label, records=mine, warmup=cell.row.warmup_only) for cell, mine in found.values()]


def _grid(caption: str, grid: render.Grid) -> Grid:
    """A table of texts with the numbers that it sorts by."""
    rows = []
    for row in grid.rows:
        cells = []
        for at, one in enumerate(row):
            text = f"{one.text} {one.mark}".strip() if one.mark else one.text
            cells.append(Cell(text.replace("\u2013", "-"), _number(one.text) if at else None, strong=one.best))
        rows.append(cells)
    return Grid(caption=caption, columns=list(grid.head), rows=rows)


def _number(text: str) -> float | None:
    """The number a cell begins with."""
    try:
        return float(text.split()[0].lstrip("<"))
    except (ValueError, IndexError):
        return None


def _heat(made: build.Table, values: list[list[float | None]]) -> list[Block]:
    """Rows by columns, each column on a scale of its own: shares and counts have nothing in common."""
    columns = [k for k in range(len(made.columns)) if any(row[k] is not None for row in values)][:MOST_COLUMNS]
    rows = [k for k, row in enumerate(values) if any(value is not None for value in row)]
    if len(rows) < 2 or not columns:
        return []
    labels = [made.lines[k].row.label for k in rows]
    title = "Rows by columns"
    about = "Each column has a scale of its own, from the least of its numbers (light) to the greatest (dark)."
    shown = [[values[i][k] for k in columns] for i in rows]
    entries = [[made.lines[i].entries[k].estimate for k in columns] for i in rows]
    seeds = [[one.n if one is not None else None for one in row] for row in entries]
    fewer, said = charts.fewer(seeds)
    note = f"{about}{said}"
    digits = [made.columns[k].digits for k in columns]
    names = [made.columns[k].label for k in columns]
    return [charts.heat("heat-table", title, about, labels, names, shown, digits=digits, marked=fewer, note=note)]
