"""What a page says of a table's folder: the rows of `ttpa.tables` as blocks, and which result rows stand behind them.

The only module that knows `ttpa.tables`. What a cell is, which rows it takes and what is said of them is decided there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttpa.errors import ConfigError
from ttpa.report import charts
from ttpa.report.blocks import Block, Cell, Grid, Text

if TYPE_CHECKING:
    from ttpa.tables import build, render

MOST_COLUMNS = 10
"""Columns of the heat map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A table. `files` are the result rows that it shows."""

    title: str
    subtitle: str
    preset: str
    blocks: list[Block]
    heat: list[Block]
    files: list[Path]


def read(folder: Path, preset: str, results: Path, store: Path) -> Found:
    """Makes the table of a folder.

    Raises:
        ConfigError: no table.yaml, or one that cannot work; no such preset.
    """
    from ttpa.tables import build, cells, render, spec

    wanted = spec.load(folder)
    chosen = wanted.preset(preset or None)
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, chosen)
    if not every:
        raise ConfigError.at("preset", chosen.name, f"no row of {wanted.file} is shown in it", "See the rows' presets")
    records = cells.read_records(results, every)
    made = build.make(wanted, chosen, every, records, store)
    files = [record.path for cell in every if (record := records.of(cell)) is not None]
    grid = render.main_grid(made)
    values = [[entry.estimate.value if entry.estimate else None for entry in line.entries] for line in made.lines]
    blocks: list[Block] = [Text(f"Claim: {wanted.claim}"), _grid(f"Preset {chosen.name}", grid)]
    if made.differences:
        blocks.append(_grid("Paired differences", render.difference_grid(made)))
    notes = [f"{at}. {source}{f' ({note})' if note else ''}." for (source, note), at in render.sources(made).items()]
    blocks += [Text(note) for note in (*made.notes, *notes)]
    blocks += [Text(warning, True) for warning in dict.fromkeys(records.warnings)]
    return Found(
        title=wanted.title,
        subtitle=f"Table {wanted.name}, preset {chosen.name}: {len(files)} of {len(every)} cells have a result.",
        preset=chosen.name,
        blocks=blocks,
        heat=_heat(made, values),
        files=list(dict.fromkeys(files)),
    )


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
    digits = [made.columns[k].digits for k in columns]
    names = [made.columns[k].label for k in columns]
    return [Text(about), charts.heat("heat-table", title, about, labels, names, shown, digits=digits)]
