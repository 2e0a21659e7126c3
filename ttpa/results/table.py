"""A table as plain values, from a folder of experiments/ or from any result rows.

    table = from_folder(Path("experiments/demo"))    # rows, columns and presets of its table.yaml
    table = from_records(records, store)             # rows: the choices that differ; see `records.read_records`
    table.rows[0].values[0].estimate                 # Estimate in the unit shown; None is a hole

`render.main_grid(table)` and `render.difference_grid(table)` are the same as texts. Nothing is hidden: a seed without a
record is named, and a difference to a published number is only taken where both measure the same thing.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttpa.results.cells import Records, cells_of, open_hydra, select_seeds
from ttpa.results.differences import Difference, differences_of
from ttpa.results.records import WARMUP_GROUPS, Record, number_at, warmup_settings
from ttpa.results.spec import Column, Preset, Published, RowEntry, RowSpec, TableSpec, load
from ttpa.results.stats import Estimate, over_seeds
from ttpa.run.parts import VERSIONS

SHARES = ("accuracy", "apis", "bands", "categories", "errors", "levels", "totals", "unseen_tool")
"""Where metrics hold shares, which lie between 0 and 1 by construction."""
CONTROLS = ("rft", "gold")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableValue:
    """A row in a column, in the unit shown. `gap` is ours minus published, None where there is nothing to compare."""

    estimate: Estimate | None
    published: Published | None
    gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row: its records by seed, the seeds without one, its values, and what it cost, as if it had run alone.

    `outdated` says which stages have another version by now, "" if none has.
    """

    spec: RowSpec
    records: Mapping[int, Record]
    missing: tuple[int, ...]
    outdated: str
    values: tuple[TableValue, ...]
    seconds: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything that is shown. `preset` holds the seeds; `results` and `store` are the folders that were read."""

    spec: TableSpec
    preset: Preset
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    results: Path
    store: Path


def from_folder(
    folder: Path,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    *,
    results: Path | None = None,
    store: Path | None = None,
) -> Table:
    """The table of a folder of experiments/ that holds a table.yaml. None takes its first preset, the cells' folders.

    Raises:
        ConfigError: a table.yaml, a preset or overrides that cannot work.
    """
    spec = load(folder)
    chosen, words = select_seeds(spec.preset(preset), overrides)
    with open_hydra():
        cells = cells_of(spec, chosen, words)
    records = Records(cells, results)
    rows: dict[RowSpec, dict[int, Record]] = {}
    for cell in cells:
        found, mine = records.find(cell), rows.setdefault(cell.row, {})
        if found is not None:
            mine[cell.seed] = found
    store = store or Path(cells[0].composed.paths.store)
    return build(spec, chosen, rows, records.folder, store, records.warnings)


def build(
    spec: TableSpec,
    preset: Preset,
    records: Mapping[RowSpec, Mapping[int, Record]],
    results: Path,
    store: Path,
    warnings: Sequence[str] = (),
) -> Table:
    """The table of some rows and their records by seed; see `Table`."""
    said = list(warnings)
    rows = [_row(spec, preset, row, mine, said) for row, mine in records.items()]
    by_key = {row.key: (row, mine) for row, mine in records.items()}
    differences = differences_of(spec.differences, spec.columns[0], preset.name, by_key, store)
    return Table(
        spec=spec,
        preset=preset,
        columns=tuple(spec.columns),
        rows=tuple(rows),
        differences=differences,
        notes=tuple([*_notes(spec, preset, rows), *_notes_on_differences(spec, differences)]),
        warnings=tuple(dict.fromkeys(said)),
        results=results,
        store=store,
    )


def _row(spec: TableSpec, preset: Preset, row: RowSpec, records: Mapping[int, Record], warnings: list[str]) -> TableRow:
    costs = [record.costs(row.warmup_only) for record in records.values()]
    seconds, tokens = (statistics.fmean(part) for part in zip(*costs, strict=True)) if costs else (None, None)
    built: dict[str, set[str]] = {}
    for record in records.values():
        for name, version in record.outdated(row.warmup_only).items():
            built.setdefault(name, set()).add("of no version" if version is None else str(version))
    return TableRow(
        spec=row,
        records=records,
        missing=tuple(seed for seed in preset.seeds if seed not in records),
        outdated=", ".join(
            f"{name} {'/'.join(sorted(old))} (now {VERSIONS.get(name, 'no stage')})" for name, old in built.items()
        ),
        values=tuple(_value(spec, preset, row, column, records.values(), warnings) for column in spec.columns),
        seconds=seconds,
        tokens=tokens,
    )


def _value(
    spec: TableSpec, preset: Preset, row: RowSpec, column: Column, records: Iterable[Record], warnings: list[str]
) -> TableValue:
    path, values = column.path(preset.name), list[Estimate]()
    for record in records if path else ():
        try:
            value = number_at(record.measured(row.warmup_only), path or "")
            values += [] if value is None else [value]
        except KeyError:
            where = f"column {column.key}, row {row.key}"
            warnings.append(f"{record.path}: no number at {path} ({where}). Correct the column's metric.")
    published = next((one for one in spec.published if (one.row, one.column) == (row.key, column.key)), None)
    if not values:
        return TableValue(estimate=None, published=published, gap=None)
    estimate = values[0] if len(values) == 1 else over_seeds([value.value for value in values])
    if (path or "").split(".")[0] in SHARES and all(0 <= value.value <= 1 for value in values):
        estimate = estimate.within(0.0, 1.0)
    estimate = estimate.scaled(column.scale)
    comparable = published is not None and preset.comparable and published.trust != "unclear"
    gap = estimate.value - published.shown if published is not None and comparable else None
    return TableValue(estimate=estimate, published=published, gap=gap)


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(spec: TableSpec, preset: Preset, rows: Sequence[TableRow]) -> Iterator[str]:
    values = [value for row in rows for value in row.values]
    estimates = [(row, value.estimate) for row in rows for value in row.values if value.estimate is not None]
    kinds = {estimate.kind for _, estimate in estimates}
    if "t" in kinds:
        cut = any(estimate.cut for _, estimate in estimates)
        end = ", cut off where a share ends (0 and 100 %)." if cut else "."
        yield f"Mean over seeds, in brackets its 95 % Student-t interval{end}"
    if any(estimate.n < len(row.records) for row, estimate in estimates):
        yield "n=: of the row's seeds so many measured this number; the others have a record without it."
    if "bootstrap" in kinds:
        yield "* one seed: the evaluation's own 95 % bootstrap interval over dialogues, blind to seeds."
    if "" in kinds:
        yield "Without brackets: one seed, and nothing is known of its spread."
    if any(value.estimate is None for value in values):
        yield "A dash is a hole: no record, or nothing to measure."
    unmeasured = [column.label for column in spec.columns if column.path(preset.name) is None]
    if unmeasured:
        yield f"Columns that preset {preset.name} does not measure: {', '.join(unmeasured)}."
    printed = {value.published.trust for value in values if value.published is not None}
    if printed:
        marks = {"printed": "p printed in the paper", "secondary": "s from another source", "unclear": "? unclear"}
        marked = ", ".join(text for trust, text in marks.items() if trust in printed)
        against = "" if preset.comparable else f" No difference is taken: preset {preset.name} runs something else."
        yield f"Published numbers (mark and number of the source): {marked}.{against}"
    yield from (f"† {row.spec.label}: built by other stage versions: {row.outdated}." for row in rows if row.outdated)


def _notes_on_differences(spec: TableSpec, differences: Sequence[Difference]) -> Iterator[str]:
    if not differences:
        return
    measured = [one for one in differences if one.mean is not None]
    by_samples = any(not one.reason for one in measured)
    count = sum(one.p is not None for one in differences)
    said = f"Paired differences in {spec.columns[0].label}"
    said += f"; p with Holm's correction over the {count} that have one." if count > 1 else "."
    if by_samples:
        said += " By samples: same questions, same seeds; bootstrap and sign flips over dialogues."
    reasons = list(dict.fromkeys(one.reason for one in measured if one.reason))
    if reasons:
        said += f" By seeds: the seeds' own numbers, t interval and test ({'; '.join(reasons)})."
    yield said
    if by_samples:
        yield (
            "p by samples is over questions with the seeds fixed; the t interval over the seeds stands beside it. "
            "Better or worse without a word on seeds: p < 0.05, and that interval excludes 0."
        )
    if any(one.seeds is not None and one.seeds.has_no_width for one in measured):
        yield "Where all seeds differ by the same amount, their interval has no width: nothing follows from it."


# --- result rows without a table.yaml --------------------------------------------------------------------------------


def from_records(records: Sequence[Record], store: Path, title: str = "Results") -> Table:
    """The table of result rows of any runs, such as one sweep.

    Rows are the configurations that differ in more than the seed, named by the choices and settings that tell them
    apart, after the warm-up policies that they started from. Columns are all shares that were measured. Differences are
    taken to a row's warm-up, and to the controls that differ from it in nothing but the objective.
    """
    aligned, starts = dict[str, dict[int, Record]](), dict[str, dict[int, Record]]()
    for record in sorted(records, key=lambda one: (sorted(one.choices.items()), one.seed, one.name, one.run)):
        aligned.setdefault(_same(record), {}).setdefault(record.seed, record)
        if record.baseline:
            starts.setdefault(_same(record, WARMUP_GROUPS), {}).setdefault(record.seed, record)
    firsts = [next(iter(one.values())) for one in aligned.values()]
    names = _names([next(iter(one.values())) for one in starts.values()], WARMUP_GROUPS)
    labels = [f"warm-up ({name})" if name else "warm-up" for name in names] + _names(firsts)
    groups = [*starts.values(), *aligned.values()]
    rows = {
        RowSpec(key=label, label=label, warmup_only=at < len(starts)): mine
        for at, (label, mine) in enumerate(zip(labels, groups, strict=True))
    }
    keys = dict(zip([*starts, *aligned], labels, strict=True))
    pairs = []
    for same, first in zip(aligned, firsts, strict=True):
        start = keys.get(_same(first, WARMUP_GROUPS))
        rest = [group for group in first.config if group != "objective"]
        controls = [
            keys[key]
            for key, other in zip(aligned, firsts, strict=True)
            if other.choices.get("objective") in CONTROLS and key != same and _same(other, rest) == _same(first, rest)
        ]
        pairs += [[keys[same], other] for other in [start, *controls] if other is not None]
    paths = dict.fromkeys(
        path for row, mine in rows.items() for one in mine.values() for path in _shares(one.measured(row.warmup_only))
    )
    preset = Preset(overrides=[], seeds=sorted({seed for mine in groups for seed in mine}), comparable=False)
    spec = TableSpec(
        title=title,
        claim="",
        columns=[_column(path) for path in paths],
        rows=[RowEntry(key=label, label=label) for label in labels],
        differences=pairs,
        presets={"runs": preset},
    ).model_copy(update={"name": "runs"})
    return build(spec, spec.preset("runs"), rows, records[0].path.parent, store)


def _column(path: str) -> Column:
    label = path.removeprefix("bands.").removeprefix("errors.").replace("_", " ")
    better: Literal["low", "high"] = "low" if path.startswith("errors.") else "high"
    return Column(key=path, label=label, metric={"": path}, scale=100, digits=1, better=better)


def _shares(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every `{value, n}`."""
    for key, item in metrics.items():
        if isinstance(item, Mapping):
            if "value" in item and "n" in item:
                yield f"{prefix}{key}"
            else:
                yield from _shares(item, f"{prefix}{key}.")


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted keys and without seeds: `{"a": {"b": 1, "seed": 2}}` becomes `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, item in config.items():
        if isinstance(item, Mapping) and item:
            found |= settings(item, f"{prefix}{key}.")
        elif key != "seed":
            found[f"{prefix}{key}"] = item
    return found


def _same(record: Record, groups: Iterable[str] | None = None) -> str:
    """Text that is the same for records that differ in nothing but the seed, or in these groups in nothing."""
    if groups is None:
        return json.dumps([settings(record.config), record.choices, record.rounds], sort_keys=True)
    choices = {group: record.choices.get(group) for group in groups}
    config = {group: record.config.get(group) for group in groups}
    if groups is WARMUP_GROUPS:
        config = warmup_settings(record.config)
    return json.dumps([settings(config), choices], sort_keys=True)


def _names(records: Sequence[Record], groups: Sequence[str] = ()) -> list[str]:
    """Names that tell records apart: the choices that vary, then the first settings that choices do not explain."""
    choices = [{group: record.choices.get(group) for group in groups or record.choices} for record in records]
    varying = [group for group in (choices[0] if choices else {}) if len({one.get(group) for one in choices}) > 1]
    parts = [[str(one.get(group) or f"no {group}") for group in varying] for one in choices]
    if not varying and not groups:
        parts = [[str(one.get("objective", "run"))] for one in choices]
    for name in {tuple(one) for one in parts}:
        alike = [at for at, one in enumerate(parts) if tuple(one) == name]
        plain = [settings({g: records[at].config.get(g) for g in groups or records[at].config}) for at in alike]
        plain = [one | ({} if groups else {"rounds": records[at].rounds}) for one, at in zip(plain, alike, strict=True)]
        keys = [
            key
            for key in dict.fromkeys(key for one in plain for key in one)
            if len({json.dumps(one.get(key), sort_keys=True) for one in plain}) > 1 and not key.endswith("_target_")
        ]
        for at, one in zip(alike, plain, strict=True):
            parts[at] = [*parts[at], *(_setting(key, one[key]) for key in keys[:3] if key in one)]
    joined = [" ".join(" + ".join(one).split()) for one in parts]
    return [name if joined.count(name) == 1 else f"{name} #{at}".strip() for at, name in enumerate(joined, 1)]


def _setting(key: str, value: Any) -> str:
    name = key.rpartition(".")[2]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"no {name}" if value is None else f"{name}={shown}"
