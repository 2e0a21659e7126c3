"""`experiments/NAME/table.yaml`: what a table holds, read and checked before anything else happens.

A file has columns (paths into a record's metrics), rows (Hydra overrides), published numbers, and presets: the same
table on the embedded world and on real models. Every mistake is one line that names file, key, value and remedy.
What this module does not do: compose a configuration (`ttpa.results.tables.cells`), or know which metrics exist.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttpa.errors import ConfigError
from ttpa.results.tables.nodes import Node, read

TRUST = {"printed": "p", "secondary": "s", "unclear": "?"}
"""How far a published number can be trusted -> its mark: read in the paper, from another source, not clear."""
WAVES = ("warmup", "explore", "align", None)
MOST_DIGITS = 17
"""After the point; a number has no more."""
SET_BY_THE_TABLE = ("seed", "name", "until", "baseline")
SHARED_BY_ROWS = {"paths": "folders", "cluster": "launcher", "hydra": "launcher"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measured number. `metric` maps a preset to a dotted path; the key "" serves every preset."""

    key: str
    label: str
    metric: Mapping[str, str]
    scale: float
    digits: int
    better: str

    def path(self, preset: str) -> str | None:
        """Where a record holds the number; None where this preset does not measure it."""
        return self.metric.get(preset, self.metric.get(""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: overrides by preset ("" serves every preset), and which policy of the run it shows."""

    key: str
    label: str
    overrides: Mapping[str, tuple[str, ...]]
    warmup_only: bool
    presets: tuple[str, ...]

    def of(self, preset: str) -> tuple[str, ...]:
        """The overrides of the row in a preset."""
        return self.overrides[preset] if preset in self.overrides else self.overrides[""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A number of the paper, in the unit that the column shows."""

    row: str
    column: str
    value: float
    source: str
    trust: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One way to run the table. `comparable`: whether published numbers were measured on the same thing."""

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    waves: tuple[str | None, ...]
    cost: str
    comparable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A whole table.yaml. `name` is the folder's."""

    name: str
    file: Path
    title: str
    claim: str
    paper: Mapping[str, str] | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    differences: tuple[tuple[str, str], ...]
    published: tuple[Published, ...]
    presets: Mapping[str, Preset]

    def preset(self, name: str | None) -> Preset:
        """The preset of that name; without a name, the first of the file.

        Raises:
            ConfigError: there is none of that name; lists those there are.
        """
        found = next(iter(self.presets)) if name is None else name
        if found not in self.presets:
            raise ConfigError.at("preset", found, f"not in {self.file}", f"Use one of {', '.join(self.presets)}")
        return self.presets[found]

    def rows_of(self, preset: str) -> tuple[Row, ...]:
        """The rows that a preset shows."""
        return tuple(row for row in self.rows if preset in row.presets)


def load(folder: Path) -> Spec:
    """Reads and checks `folder/table.yaml`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or the first thing in it that cannot work.
    """
    file = folder / "table.yaml" if folder.suffix != ".yaml" else folder
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Give a folder of experiments/ that holds a table.yaml.")
    return _spec(read(file), file)


# --- checking --------------------------------------------------------------------------------------------------------

TOP = ("title", "claim", "columns", "rows", "presets")
OPTIONAL = ("paper", "differences", "published")


def _spec(node: Node, file: Path) -> Spec:
    name = file.parent.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # as `name=` of its runs
        raise ConfigError.at(
            f"{file}: the folder", repr(name), "names runs and files", "Name it with letters, digits, '.', '_' and '-'"
        )
    top = node.mapping(TOP, OPTIONAL)
    presets = {name: _preset(name, entry) for name, entry in top["presets"].mapping(free=True).items()}
    if not presets:
        raise top["presets"].wrong("holds no preset", "Add embedded, with overrides and seeds")
    columns = tuple(_column(entry, presets) for entry in top["columns"].items("columns"))
    _unique(top["columns"], [column.key for column in columns])
    rows = tuple(row for entry in top["rows"].items("rows") for row in _rows(entry, presets))
    _unique(top["rows"], [row.key for row in rows])
    names = [row.key for row in rows]
    keys = [column.key for column in columns]
    published: dict[tuple[str, str], Published] = {}
    for entry in top["published"].items("published numbers", empty=True) if "published" in top else ():
        one = _published(entry, names, keys)
        if published.setdefault((one.row, one.column), one) is not one:
            raise entry.wrong(f"row {one.row} has a number in column {one.column} already", "Keep one of the two")
    return Spec(
        name=name,
        file=file,
        title=top["title"].text(),
        claim=" ".join(top["claim"].text(lines=True).split()),
        paper=_paper(top["paper"]) if "paper" in top and top["paper"].value is not None else None,
        columns=columns,
        rows=rows,
        differences=_differences(top["differences"], names) if "differences" in top else (),
        published=tuple(published.values()),
        presets=presets,
    )


def _differences(node: Node, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for entry in node.items("pairs of rows", empty=True):
        pair = entry.items("two row keys")
        if len(pair) != 2:
            raise entry.wrong("must name two rows", "Write [ours, baseline]")
        ours, against = pair[0].one_of(names), pair[1].one_of(names)
        if ours == against:
            raise entry.wrong("compares a row with itself", "Name two rows")
        if {ours, against} in map(set, found):
            raise entry.wrong("these two rows are compared already", "List each pair once")
        found.append((ours, against))
    return tuple(found)


def _unique(node: Node, keys: Sequence[str]) -> None:
    for at, key in enumerate(keys):
        if key in keys[:at]:
            raise ConfigError(f"{node.file}: {node.key}: the key {key!r} is there twice. Give each its own key.")


def _paper(node: Node) -> dict[str, str]:
    return {key: entry.text() for key, entry in node.mapping(("name",), ("arxiv", "where")).items()}


def _preset(name: str, node: Node) -> Preset:
    entry = node.mapping(("overrides", "seeds"), ("waves", "cost", "comparable"))
    seeds = tuple(seed.whole() for seed in entry["seeds"].items("seeds"))
    if len(set(seeds)) < len(seeds):
        raise entry["seeds"].wrong("a seed is there twice", "Give each once")
    waves: tuple[str | None, ...] = (None,)
    if "waves" in entry:
        waves = tuple(wave.one_of(WAVES) for wave in entry["waves"].items("values of until="))
        if waves[-1] is not None or len(set(waves)) < len(waves):
            raise entry["waves"].wrong("the last wave must be the whole run", "End with null, each wave once")
        if list(waves) != sorted(waves, key=WAVES.index):
            raise entry["waves"].wrong("not in the order of a run", "Order: warmup, explore, align, null")
    comparable = name != "embedded"
    if "comparable" in entry:
        comparable = entry["comparable"].value
        if not isinstance(comparable, bool):
            raise entry["comparable"].wrong("must be true or false", "true: same data and model as the paper")
    cost = entry["cost"].text() if "cost" in entry else ""
    overrides = _overrides(entry["overrides"])
    return Preset(name=name, overrides=overrides, seeds=seeds, waves=waves, cost=cost, comparable=comparable)


def _column(node: Node, presets: Mapping[str, Preset]) -> Column:
    entry = node.mapping(("key", "label", "metric"), ("scale", "digits", "better"))
    metric = entry["metric"]
    if isinstance(metric.value, str):
        paths = {"": metric.text()}
    else:
        given = metric.mapping(free=True)
        for name in given:
            if name not in presets:
                raise given[name].wrong(f"no preset {name}", f"Known are {', '.join(presets)}")
        paths = {name: path.text() for name, path in given.items()}
    return Column(
        key=entry["key"].text(),
        label=entry["label"].text(),
        metric=paths,
        scale=entry["scale"].scale() if "scale" in entry else 1.0,
        digits=entry["digits"].whole(most=MOST_DIGITS) if "digits" in entry else 3,
        better=entry["better"].one_of(("high", "low")) if "better" in entry else "high",
    )


def _rows(node: Node, presets: Mapping[str, Preset]) -> list[Row]:
    shared = ("overrides", "policy", "presets")
    if isinstance(node.value, dict) and "product" in node.value:
        entry = node.mapping(("product",), ("skip", *shared))
        made = [
            ("+".join(chosen.values()), " + ".join(chosen.values()), tuple(f"{k}={v}" for k, v in chosen.items()))
            for chosen in _product(entry)
        ]
    else:
        entry = node.mapping(("key", "label"), shared)
        made = [(entry["key"].text(), entry["label"].text(), ())]
    shown = tuple(presets)
    if "presets" in entry:
        shown = tuple(name.one_of(presets) for name in entry["presets"].items("presets"))
    overrides = {"": ()} if "overrides" not in entry else _by_preset(entry["overrides"], shown, presets)
    warmup_only = "policy" in entry and entry["policy"].one_of(("aligned", "warm-up")) == "warm-up"
    return [
        Row(
            key=key,
            label=label,
            overrides={preset: (*chosen, *words) for preset, words in overrides.items()},
            warmup_only=warmup_only,
            presets=shown,
        )
        for key, label, chosen in made
    ]


def _overrides(node: Node, of_row: bool = False) -> tuple[str, ...]:
    """A list of Hydra overrides, without those that the table sets itself."""
    for item in node.items("Hydra overrides", empty=True):
        head, sign, _ = item.text().partition("=")
        if not sign and not head.startswith("~"):
            raise item.wrong("not a Hydra override", "Write key=value")
        _settable(item, head, of_row)
    return tuple(str(item).strip() for item in node.value)


def _settable(node: Node, head: str, of_row: bool) -> None:
    """Refuses what the table sets itself, and what cannot be of one row alone."""
    key = head.lstrip("+~")
    if key in SET_BY_THE_TABLE:
        raise node.wrong(
            f"{key} is set by the table itself", "Use the keys seeds and waves of the preset, policy of a row"
        )
    group = re.split("[./@]", key)[0]
    if of_row and group in SHARED_BY_ROWS:
        raise node.wrong(
            f"all rows share the {SHARED_BY_ROWS[group]}", f"Give {key}= to the preset or on the command line"
        )


def _by_preset(node: Node, shown: Sequence[str], presets: Mapping[str, Preset]) -> dict[str, tuple[str, ...]]:
    if isinstance(node.value, list):
        return {"": _overrides(node, of_row=True)}
    entry = node.mapping(free=True)
    for name in entry:
        if name not in presets:
            raise entry[name].wrong(f"no preset {name}", f"Known are {', '.join(presets)}")
    for name in shown:
        if name not in entry:
            raise node.wrong(f"no overrides for preset {name}", f"Add {name}: [], or presets: [...] without it")
    return {name: _overrides(given, of_row=True) for name, given in entry.items()}


def _product(entry: Mapping[str, Node]) -> list[dict[str, str]]:
    """Key -> option, for every combination that is not skipped."""
    axes = {key: [_plain(option) for option in axis.items("options")] for key, axis in _axes(entry["product"]).items()}
    skips = []
    for skip in entry["skip"].items("combinations", empty=True) if "skip" in entry else ():
        chosen = {key: _plain(option) for key, option in skip.mapping(free=True).items()}
        for key, option in chosen.items():
            if option not in axes.get(key, ()):
                raise skip.wrong(f"{key}={option} is not in the product", f"Use options of {', '.join(axes)}")
        skips.append(chosen)
    every = [dict(zip(axes, options, strict=True)) for options in itertools.product(*axes.values())]
    kept = [chosen for chosen in every if not any(skip.items() <= chosen.items() for skip in skips)]
    if not kept:
        raise entry["skip"].wrong("leaves nothing of the product", "Skip less, or take the product out")
    return kept


def _axes(node: Node) -> dict[str, Node]:
    axes = node.mapping(free=True)
    if not axes:
        raise node.wrong("holds no group", "Write sampler: [group, tps]")
    for key, axis in axes.items():
        _settable(axis, key, of_row=True)
    return axes


def _plain(node: Node) -> str:
    """An option as an override writes it."""
    if node.value is None or isinstance(node.value, bool):
        return {None: "null", True: "true", False: "false"}[node.value]
    return str(node.number()) if isinstance(node.value, int | float) else node.text()


def _published(node: Node, rows: Sequence[str], columns: Sequence[str]) -> Published:
    entry = node.mapping(("row", "column", "value", "source", "trust"), ("unit_scale", "note"))
    note = entry["note"].value if "note" in entry else ""
    if not isinstance(note, str | None):
        raise entry["note"].wrong("must be text", "Quote it")
    return Published(
        row=entry["row"].one_of(rows),
        column=entry["column"].one_of(columns),
        value=entry["value"].number() * (entry["unit_scale"].scale() if "unit_scale" in entry else 1),
        source=entry["source"].text(),
        trust=entry["trust"].one_of(TRUST),
        note=" ".join((note or "").split()),
    )
