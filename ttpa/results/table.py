"""A table as plain values: `from_folder(Path("experiments/demo"))`, or `from_records(records, store)` of any runs.

A seed without a record is named, and a published number is only compared where both measure the same thing.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ttpa.results.cells import recorded_cells
from ttpa.results.differences import Difference, differences_of
from ttpa.results.records import WARMUP_GROUPS, Record, number_at, warmup_settings
from ttpa.results.spec import Column, Preset, Published, RowSpec, TableSpec
from ttpa.results.stats import Estimate, over_seeds, share_over_seeds
from ttpa.run import config
from ttpa.run.parts import VERSIONS

_text = partial(json.dumps, sort_keys=True)

SHARES = ("accuracy", "apis", "bands", "calls", "categories", "errors", "levels", "non_calls", "totals", "unseen_tool")
"""Where metrics hold shares, which lie between 0 and 1 by construction."""
CONTROLS = ("rft", "gold")


class TableValue(NamedTuple):
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


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that is shown. `preset` holds the seeds; `store` is the folder where samples were looked for."""

    spec: TableSpec
    preset: Preset
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    store: Path


def from_folder(
    folder: Path,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    *,
    results: Path | None = None,
    store: Path | None = None,
) -> Table:
    """The table of a folder that holds a table.yaml. None takes its first preset, and the folders of its cells."""
    spec, chosen, cells, records = recorded_cells(folder, preset, overrides, results=results)
    rows: dict[RowSpec, dict[int, Record]] = {cell.row: {} for cell in cells}
    for cell in cells:
        if found := records.find(cell):
            rows[cell.row][cell.seed] = found
    return build(spec, chosen, rows, store or Path(cells[0].composed.paths.store), records.warnings)


def build(
    spec: TableSpec,
    preset: Preset,
    records: Mapping[RowSpec, Mapping[int, Record]],
    store: Path,
    warnings: Sequence[str] = (),
) -> Table:
    """The table of some rows and their records by seed."""
    said = list(warnings)
    rows = tuple(_row(spec, preset, row, mine, said) for row, mine in records.items())
    by_key = {row.key: (row, mine) for row, mine in records.items()}
    differences = differences_of(spec.differences, spec.columns[0], preset.name, by_key, store, preset.added)
    return Table(spec, preset, tuple(spec.columns), rows, differences, tuple(dict.fromkeys(said)), store)


def _row(spec: TableSpec, preset: Preset, row: RowSpec, records: Mapping[int, Record], warnings: list[str]) -> TableRow:
    costs = [record.costs(row.warmup_only) for record in records.values()]
    seconds, tokens = (statistics.fmean(part) for part in zip(*costs, strict=True)) if costs else (None, None)
    built: dict[str, set[str]] = {}
    for record in records.values():
        for name, version in record.outdated(row.warmup_only).items():
            built.setdefault(name, set()).add("of no version" if version is None else str(version))
    old = [f"{name} {'/'.join(sorted(one))} (now {VERSIONS.get(name, 'no stage')})" for name, one in built.items()]
    return TableRow(
        spec=row,
        records=records,
        missing=tuple(seed for seed in preset.seeds if seed not in records),
        outdated=", ".join(old),
        values=tuple(_value(spec, preset, row, column, records, warnings) for column in spec.columns),
        seconds=seconds,
        tokens=tokens,
    )


def _value(
    spec: TableSpec, preset: Preset, row: RowSpec, column: Column, records: Mapping[int, Record], warnings: list[str]
) -> TableValue:
    path, values, first = column.path(preset.name), list[Estimate](), 0
    for record in records.values() if path else ():
        try:
            value = number_at(record.measured(row.warmup_only), path or "")
            values += [value] if value else []
            first += bool(value) and record.seed not in preset.added
        except KeyError:
            where = f"column {column.key}, row {row.key}"
            warnings.append(f"{record.path}: no number at {path} ({where}). Correct the column's metric.")
    published = next((one for one in spec.published if (one.row, one.column) == (row.key, column.key)), None)
    if not values:
        return TableValue(None, published, None)
    if (path or "").split(".")[0] in SHARES and all(0 <= value.value <= 1 for value in values):
        estimate = share_over_seeds(values, first).scaled(column.scale)
    else:
        mean = values[0] if len(values) == 1 else over_seeds([one.value for one in values], first)
        estimate = mean.scaled(column.scale)
    comparable = published and preset.comparable and published.trust != "unclear"
    return TableValue(estimate, published, estimate.value - published.shown if published and comparable else None)


# --- result rows without a table.yaml --------------------------------------------------------------------------------


def from_records(records: Sequence[Record], store: Path, title: str = "Results") -> Table:
    """The table of result rows of any runs: the warm-up policies, then those that differ in more than the seed, named
    by what tells them apart, with all shares measured. Differences are taken to the warm-up of a row and to the
    controls that differ from it in nothing but the objective.
    """
    starts, aligned = dict[str, dict[int, Record]](), dict[str, dict[int, Record]]()
    for record in sorted(records, key=lambda one: (sorted(one.choices.items()), one.seed, one.name, one.run)):
        aligned.setdefault(_text(_policy(record)), {}).setdefault(record.seed, record)
        if record.baseline:
            starts.setdefault(_text(_policy(record, warmup=True)), {}).setdefault(record.seed, record)
    firsts = {key: next(iter(mine.values())) for key, mine in aligned.items()}
    policies = {key: _policy(first) for key, first in firsts.items()}
    names = _names([_policy(next(iter(mine.values())), warmup=True) for mine in starts.values()])
    labels = dict(zip(starts, (f"warm-up ({name})" if name else "warm-up" for name in names), strict=True))
    labels |= dict(zip(aligned, _names(list(policies.values()), "run"), strict=True))
    rows = {
        RowSpec(key=labels[key], label=labels[key], warmup_only=key in starts): mine
        for key, mine in (starts | aligned).items()
    }
    rest = {
        key: {name: value for name, value in one.items() if not name.startswith(("objective", "rounds"))}
        for key, one in policies.items()
    }
    pairs = []
    for key, first in firsts.items():
        start = _text(_policy(first, warmup=True))
        controls = [one for one in policies if policies[one].get("objective") in CONTROLS and rest[one] == rest[key]]
        others = [start, *controls]
        pairs += [[labels[key], labels[other]] for other in others if other in labels and other != key]
    paths = dict.fromkeys(
        path for row, mine in rows.items() for one in mine.values() for path in _shares(one.measured(row.warmup_only))
    )
    seeds = sorted({record.seed for record in records})
    preset = Preset.model_construct(name="runs", overrides=[], seeds=seeds, comparable=False)
    columns = []
    for path in paths:
        label = path.removeprefix("bands.").removeprefix("errors.").replace("_", " ")
        better: Any = "low" if path.startswith("errors.") else "high"
        columns.append(
            Column.model_construct(key=path, label=label, metric={"": path}, scale=100, digits=1, better=better)
        )
    spec = TableSpec.model_construct(
        name="runs", title=title, claim="", columns=columns, rows=[], differences=pairs, presets={"runs": preset}
    )
    return build(spec, preset, rows, store)


def _shares(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every `{value, n}`."""
    for key, item in metrics.items():
        if isinstance(item, Mapping) and (key != "calls" or metrics.get("non_calls")):  # else it is the accuracy
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


def _policy(record: Record, warmup: bool = False) -> dict[str, Any]:
    """What a policy, or the warm-up policy, follows from but for the seed: group -> choice, dotted key -> setting."""
    choices = {group: record.choices.get(group) for group in (WARMUP_GROUPS if warmup else record.choices)}
    values = settings(warmup_settings(record.config) if warmup else {**record.config, "rounds": record.rounds})
    return choices | {key: value for key, value in values.items() if key not in config.IDENTITY}  # no empty groups


def _names(policies: Sequence[Mapping[str, Any]], default: str = "") -> list[str]:
    """Names that tell policies apart: the choices that vary, then the first settings that choices do not explain."""
    groups = [group for group in (policies[0] if policies else {}) if group in config.IDENTITY]
    varying = [group for group in groups if len({one.get(group) for one in policies}) > 1]
    parts = [[str(one.get(group) or f"no {group}") for group in varying] for one in policies]
    parts = parts if varying else [[str(one.get("objective", default))] for one in policies]
    for name in {tuple(one) for one in parts}:
        alike = [at for at, one in enumerate(parts) if tuple(one) == name]
        keys = dict.fromkeys(key for at in alike for key in policies[at] if not key.endswith("_target_"))
        apart = [key for key in keys if len({_text(policies[at].get(key)) for at in alike}) > 1]
        for at in alike:
            parts[at] += [_setting(key, policies[at][key]) for key in apart[:3] if key in policies[at]]
    joined = [" ".join(" + ".join(filter(None, one)).split()) for one in parts]
    return [name if joined.count(name) == 1 else f"{name} #{at}".strip() for at, name in enumerate(joined, 1)]


def _setting(key: str, value: Any) -> str:
    name = key.rpartition(".")[2]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"no {name}" if value is None else f"{name}={shown}"
