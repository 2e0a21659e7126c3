"""Which sections a page has: of runs and sweeps, and of a table's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ttpa.results.report import browse, lineage, numbers, of_table, trends
from ttpa.results.report.blocks import Block, Section, Text, plural
from ttpa.results.report.gather import Gathered, gather, gather_rows
from ttpa.results.report.page import Page
from ttpa.results.report.rows import find_rows, read_rows

if TYPE_CHECKING:
    from ttpa.results.report.cli import Options


def runs(options: Options) -> Page:
    """The page of a result file or of all rows of a name."""
    files = find_rows(options.target, options.results or Path("results"))
    single = Path(options.target).is_file()
    records, left_out = read_rows(files)
    title = f"{records[0].name} {records[0].run}" if single else options.target
    found = gather(records, options.store or Path("store"), title, left_out)
    size = f"{plural(len(found.arms), 'cell')} over {plural(len(found.seeds), 'seed')}"
    kind = "A run" if len(records) == 1 else f"A sweep of {size}"
    names = ", ".join(dict.fromkeys(record.name for record in records))
    return Page(
        title=title,
        subtitle=f"{kind}: {plural(len(records), 'result row')} of {names}.",
        head=_head(found),
        sections=sections(found, options),
        warnings=found.notes,
    )


def _head(found: Gathered) -> list[tuple[str, str]]:
    """What stands below the title."""
    names = "; ".join(arm.label for arm in found.policies[:12])
    more = f" and {len(found.policies) - 12} more" if len(found.policies) > 12 else ""
    return [
        ("policies", names + more),
        ("stages built", lineage.span(found)),
        ("hardware", lineage.hardware(found)),
    ]


def sections(found: Gathered, options: Options) -> list[Section]:
    """Every section, empty where there is nothing."""
    online = browse.answers(found, options.samples)
    notes: list[Block] = [Text(note, True) for note in found.notes]
    return [
        Section("what", "What was run", [*notes, lineage.chosen(found)]),
        Section("graph", "Stage graph", [*lineage.graph(found), lineage.stage_table(found)]),
        Section("accuracy", "Accuracy", [*numbers.accuracy(found), *numbers.differences(found)]),
        Section("errors", "Six errors", numbers.errors(found)),
        Section("heat", "Ablation", trends.heat_map(found, options.axes)),
        Section("decay", "Gain against data", trends.gain_decay(found)),
        Section("curves", "Training curves", trends.curves(found)),
        Section("pairs", "Preference pairs", browse.pairs(found, options.samples)),
        Section("trees", "Search trees and token paths", browse.trees(found, options.samples)),
        Section("answers", "Answers drawn while training", online),
        Section("settings", "Settings", lineage.configs(found)),
        Section("provenance", "Provenance", lineage.provenance(found)),
    ]


def table(options: Options) -> Page:
    """The page of a table's folder: its rows and columns, and the sections of the runs behind it, where there are any.

    Raises:
        ConfigError: no table there, or one that cannot work.
    """
    made = of_table.read(Path(options.target), options.preset, options.results, options.store, options.overrides)
    own = [Section("table", "Table", made.blocks), Section("table-heat", "Rows by columns", made.heat)]
    if not made.rows:
        nothing = Text(f"No result of these cells is in {made.results}, so there are no runs to show.", True)
        last = Section("runs", "Runs", [nothing])
        return Page(title=made.title, subtitle=made.subtitle, head=[], sections=[*own, last], warnings=made.warnings)
    found = gather_rows(made.rows, made.store, made.title)
    return Page(
        title=made.title,
        subtitle=made.subtitle,
        head=_head(found),
        sections=[*own, *sections(found, options)],
        warnings=made.warnings,
    )
