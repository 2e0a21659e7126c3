"""What a page says of a table's folder: the rows of `ttpa.results.table` as blocks, and which result rows stand behind them.

The only module that knows `ttpa.results.table`. What a cell is, which rows it takes and what is said of them is decided there.
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
    from ttpa.results import render
    from ttpa.results.table import Table

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
    from ttpa.results import render
    from ttpa.results.table import from_folder

    made = from_folder(folder, preset or None, extra, results=results, store=store)
    warnings = list(made.warnings)
    rows = _rows(made, warnings)
    filled = sum(len(row.records) for row in made.rows)
    cells = filled + sum(len(row.missing) for row in made.rows)
    values = [[value.estimate.value if value.estimate else None for value in row.values] for row in made.rows]
    blocks: list[Block] = [Text(f"Claim: {' '.join(made.spec.claim.split())}")]
    blocks.append(_grid(f"Preset {made.preset.name}", render.main_grid(made)))
    if made.differences:
        blocks.append(_grid("Paired differences", render.difference_grid(made)))
    notes = [f"{at}. {footnote}" for footnote, at in render.sources(made).items()]
    blocks += [Text(note) for note in (*made.notes, *notes)]
    blocks += [Text(warning, True) for warning in warnings]
    return Found(
        title=made.spec.title,
        subtitle=f"Table {made.spec.name}, preset {made.preset.name}: {filled} of {cells} cells have a result.",
        preset=made.preset.name,
        blocks=blocks,
        heat=_heat(made, values),
        rows=rows,
        warnings=warnings,
        results=made.results,
        store=made.store,
    )


def _rows(made: Table, warnings: list[str]) -> list[Arm]:
    """The rows with a result, over seeds. A record behind a warm-up row may be of any experiment with that warm-up:
    the table's own are taken, and only where there is none what the other says of the warm-up.
    """
    read: dict[str, dict[int, Record]] = {}
    own: dict[str, Record] = {}
    for row in made.rows:
        for seed, one in row.records.items():
            try:
                record = record_of(one.path, {**one.model_dump(exclude={"path"}), "row_version": one.row_version})
            except DataError as error:
                warnings.append(f"Left out below the table: {error}")
                continue
            read.setdefault(row.spec.key, {})[seed] = record
            if not row.spec.warmup_only and record.baseline:
                own.setdefault(one.key.warmup, record)
    arms = []
    for row in made.rows:
        mine = read.get(row.spec.key, {})
        if row.spec.warmup_only:
            mine = {seed: own.get(row.records[seed].key.warmup) or warmup_part(one) for seed, one in mine.items()}
        if mine:
            arms.append(Arm(label=row.spec.label, records=mine, warmup=row.spec.warmup_only))
    return arms


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


def _heat(made: Table, values: list[list[float | None]]) -> list[Block]:
    """Rows by columns, each column on a scale of its own: shares and counts have nothing in common."""
    columns = [k for k in range(len(made.columns)) if any(row[k] is not None for row in values)][:MOST_COLUMNS]
    rows = [k for k, row in enumerate(values) if any(value is not None for value in row)]
    if len(rows) < 2 or not columns:
        return []
    labels = [made.rows[k].spec.label for k in rows]
    title = "Rows by columns"
    about = "Each column has a scale of its own, from the least of its numbers (light) to the greatest (dark)."
    shown = [[values[i][k] for k in columns] for i in rows]
    entries = [[made.rows[i].values[k].estimate for k in columns] for i in rows]
    seeds = [[one.n if one is not None else None for one in row] for row in entries]
    fewer, said = charts.fewer(seeds)
    note = f"{about}{said}"
    digits = [made.columns[k].digits for k in columns]
    names = [made.columns[k].label for k in columns]
    return [charts.heat("heat-table", title, about, labels, names, shown, digits=digits, marked=fewer, note=note)]
