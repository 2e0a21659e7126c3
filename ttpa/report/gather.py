"""Reads what a report shows: result rows, and the folders of the stages they name. Plain dataclasses come out.

A row without what every row has is the user's error and raises. A stage's folder may be gone, half there or damaged:
then the row's own numbers are all there is, and `Stage.there` says so. Nothing is computed here but who belongs to
whom: rows of equal choices and settings are one `Arm`, over seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError

ROW_VERSION = 1
STAGE = re.compile(r"([A-Za-z][A-Za-z0-9_]*)-[0-9a-f]{12}")
START = ("data", "model", "warmup", "eval")
"""Groups that decide the numbers of the warm-up policy."""
CONTROLS = ("rft", "gold")
NEEDED = {
    "run": str,
    "name": str,
    "seed": int,
    "rounds": int,
    "choices": dict,
    "config": dict,
    "stages": dict,
    "baseline": dict,
    "metrics": dict,
    "cost": dict,
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A result row. `config` is flat: dotted key -> value; `stages` role -> folder name."""

    file: Path
    run: str
    name: str
    seed: int
    rounds: int
    choices: Mapping[str, str]
    config: Mapping[str, Any]
    stages: Mapping[str, str]
    versions: Mapping[str, int]
    baseline: Mapping[str, Any]
    metrics: Mapping[str, Any]
    cost: Mapping[str, Mapping[str, float | None]]

    @property
    def last_policy(self) -> str:
        """Role of the stage that made the policy that was evaluated."""
        return _last(self.stages, "align") or "warmup"

    @cached_property
    def cell_key(self) -> str:
        """The same for rows that differ in nothing but the seed."""
        return self._key(lambda group: True)

    @cached_property
    def start_key(self) -> str:
        """The same for rows that begin with the same policy, over seeds."""
        return self._key(lambda group: group in START)

    @cached_property
    def control_key(self) -> str:
        """The same for rows that differ in nothing but the objective and the seed."""
        return self._key(lambda group: group != "objective")

    def _key(self, counts: Callable[[str], bool]) -> str:
        """Settings and choices of the groups that count, as text."""
        kept = {key: value for key, value in settings(self).items() if counts(key.split(".")[0])}
        return json.dumps([kept, {g: choice for g, choice in self.choices.items() if counts(g)}], sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of some records: what its folder says, empty where that is gone."""

    id: str
    folder: Path
    seconds: float | None = None
    tokens: float | None = None

    @cached_property
    def there(self) -> bool:
        """Whether the finished stage is in the store."""
        return (self.folder / "done.json").is_file()

    @property
    def name(self) -> str:
        """Which kind of stage."""
        return self.id.rpartition("-")[0]

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Time, code, packages and hardware of its build."""
        return _mapping(self.folder / "provenance.json")

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """Its numbers."""
        return _mapping(self.folder / "metrics.json")

    @cached_property
    def maker(self) -> tuple[str, int] | None:
        """Host and process that finished it."""
        attempts = _read(self.folder / "attempts.json")
        if not isinstance(attempts, list) or not attempts or not isinstance(attempts[-1], dict):
            return None
        return str(attempts[-1].get("host")), int(attempts[-1].get("pid") or 0)

    def input(self, role: str, among: Mapping[str, Stage]) -> Stage | None:
        """The stage that fills a role of this one."""
        fingerprint = str((self.provenance.get("inputs") or {}).get(role))
        return next((stage for stage in among.values() if stage.id.endswith(f"-{fingerprint}")), None)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Rows of one cell over seeds, or the warm-up policies that several cells start from.

    Args:
        label: What tells it apart from the other arms.
        records: By seed.
        warmup: Whether the numbers are those of the policy before alignment.
    """

    label: str
    records: Mapping[int, Record]
    warmup: bool = False

    def metrics(self, seed: int) -> Mapping[str, Any]:
        """What was measured."""
        record = self.records[seed]
        return record.baseline if self.warmup else record.metrics

    def evaluation(self, seed: int) -> str:
        """Folder name of the evaluation."""
        return self.records[seed].stages["baseline" if self.warmup else "evaluation"]

    @property
    def first(self) -> Record:
        """The row of the least seed."""
        return self.records[min(self.records)]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """All that a page is about. `varying` names the choices that differ between the arms."""

    title: str
    records: Sequence[Record]
    arms: Sequence[Arm]
    starts: Sequence[Arm]
    stages: Mapping[str, Stage]
    varying: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def policies(self) -> list[Arm]:
        """Every policy that was measured, the starting ones first."""
        return [*self.starts, *self.arms]

    @property
    def seeds(self) -> list[int]:
        """Every seed."""
        return sorted({record.seed for record in self.records})

    @cached_property
    def users(self) -> Mapping[str, list[Record]]:
        """Stage -> the rows that it stands behind."""
        found: dict[str, list[Record]] = {name: [] for name in self.stages}
        for record in self.records:
            for name in set(record.stages.values()):
                found[name].append(record)
        return found

    def start_of(self, arm: Arm) -> Arm | None:
        """The warm-up that an arm began with."""
        return next((start for start in self.starts if start.first.start_key == arm.first.start_key), None)

    def controls_of(self, arm: Arm) -> list[Arm]:
        """Arms that differ from it in nothing but a control objective."""
        controls = [one for one in self.arms if one.first.choices.get("objective") in CONTROLS and one is not arm]
        return [one for one in controls if one.first.control_key == arm.first.control_key]


# --- finding ---------------------------------------------------------------------------------------------------------


def find_rows(target: str, results: Path) -> list[Path]:
    """The result files that a target names: one file, or all of a run name; several names are joined by commas.

    Raises:
        ConfigError: nothing of that name; lists the names there are.
    """
    if Path(target).is_file():
        return [Path(target)]
    found: list[Path] = []
    for name in target.split(","):
        pattern = re.compile(re.escape(name) + r"-[0-9a-f]{12}\.jsonl")
        files = sorted(file for file in results.glob("*.jsonl") if pattern.fullmatch(file.name)) if name else []
        if not files:
            names = sorted({m[1] for f in results.glob("*.jsonl") if (m := re.match(r"(.+)-[0-9a-f]{12}\.", f.name))})
            known = f"there are {', '.join(names[:20])}" if names else "it holds no results"
            remedy = "Give a result file, a run name or a table's folder, and results=DIR"
            raise ConfigError.at("TARGET", name or repr(target), f"nothing of that name in {results} ({known})", remedy)
        found += files
    return list(dict.fromkeys(found))


def read_rows(files: Iterable[Path]) -> list[Record]:
    """Reads result rows.

    Raises:
        DataError: a file that is no result; names file, line and key.
    """
    found = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({error}). Run the same command again to write it.") from None
        found += [_record(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: no result rows. Run the experiment first.")
    return found


def _record(file: Path, number: int, line: str) -> Record:
    place = f"{file}:{number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not a JSON line ({error}). Run the same command again to write it.") from None
    wrong = [key for key, kind in NEEDED.items() if not isinstance(row, dict) or not isinstance(row.get(key), kind)]
    if wrong:
        raise DataError(f"{place}: no result row, {', '.join(wrong)} missing or of another type. Give a results file.")
    if row.get("row_version", ROW_VERSION) != ROW_VERSION:
        raise DataError(f"{place}: row_version={row['row_version']}, this program reads {ROW_VERSION}. Update it.")
    for role, name in row["stages"].items():
        if not isinstance(name, str) or not STAGE.fullmatch(name):
            raise DataError(f"{place}: stages.{role}={name!r} names no stage. Run the same command again to write it.")
    for role in ("baseline", "evaluation"):
        if role not in row["stages"]:
            raise DataError(f"{place}: stages has no {role}. Run the same command again to write it.")
    kept = {key: row[key] for key in NEEDED if key != "config"}
    return Record(file=file, config=flatten(row["config"]), versions=row.get("versions") or {}, **kept)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; lists stay whole.

    Example:
        >>> flatten({"a": {"b": 1, "c": [2]}, "d": None})
        {'a.b': 1, 'a.c': [2], 'd': None}
    """
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            found.update(flatten(item, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = item
    return found


def settings(record: Record) -> dict[str, Any]:
    """What tells cells apart: the settings without seeds, and the rounds."""
    plain = {key: value for key, value in record.config.items() if key.rpartition(".")[2] != "seed"}
    return {**plain, "rounds": record.rounds}


# --- who belongs to whom ---------------------------------------------------------------------------------------------


def gather(records: Sequence[Record], store: Path, title: str) -> Gathered:
    """Sorts rows into arms and finds their stages."""
    cells: dict[str, dict[int, Record]] = {}
    starts: dict[str, dict[int, Record]] = {}
    notes = []
    for record in sorted(records, key=lambda one: (sorted(one.choices.items()), one.seed, one.name, one.run)):
        cell = cells.setdefault(record.cell_key, {})
        if record.seed in cell:
            twin = cell[record.seed]
            if record.stages.get("evaluation") != twin.stages.get("evaluation"):
                notes.append(f"{record.file.name} has the settings and seed of {twin.file.name}; the latter is shown.")
            continue
        cell[record.seed] = record
        starts.setdefault(record.start_key, {}).setdefault(record.seed, record)
    firsts = [found[min(found)] for found in cells.values()]
    varying = [group for group in firsts[0].choices if len({one.choices.get(group) for one in firsts}) > 1]
    labels = _labels(firsts, varying)
    arms = [Arm(label=label, records=found) for label, found in zip(labels, cells.values(), strict=True)]
    before = [found[min(found)] for found in starts.values()]
    names = _labels(before, [group for group in varying if group in START], START) if len(before) > 1 else [""]
    begun = [
        Arm(label="warm-up" + (f" ({name})" if name else ""), records=found, warmup=True)
        for name, found in zip(names, starts.values(), strict=True)
    ]
    stages: dict[str, Stage] = {}
    for record in records:
        for role, name in record.stages.items():
            if name not in stages:
                cost = record.cost.get(role) or {}
                stages[name] = Stage(
                    id=name, folder=store / name, seconds=cost.get("seconds"), tokens=cost.get("tokens")
                )
    return Gathered(title=title, records=records, arms=arms, starts=begun, stages=stages, varying=varying, notes=notes)


def _labels(records: Sequence[Record], varying: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    """Names that tell records apart: the choices that vary, then the settings that choices do not explain."""
    names = [[str(record.choices.get(group)) for group in varying] for record in records]
    if not varying:
        names = [[str(record.choices.get("objective", record.name))] if not groups else [] for record in records]
    for name in {tuple(name) for name in names}:
        alike = [number for number, other in enumerate(names) if tuple(other) == name]
        keys = differing([settings(records[number]) for number in alike])
        kept = [k for k in keys if not k.endswith("_target_") and (not groups or k.split(".")[0] in groups)]
        for number in alike:
            here = settings(records[number])
            # Many settings make no name; the first few tell most arms apart, the comparison of settings has them all.
            names[number] = [*names[number], *(f"{k.rpartition('.')[2]}={here.get(k)}" for k in kept[:3])]
    joined = [" + ".join(name) for name in names]
    return [label if joined.count(label) == 1 else f"{label} #{number}" for number, label in enumerate(joined, 1)]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same everywhere, in order of appearance."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    return [k for k in keys if len({json.dumps(c[k], sort_keys=True) if k in c else "" for c in configs}) > 1]


def _last(roles: Iterable[str], prefix: str) -> str | None:
    numbered = [role for role in roles if role.startswith(prefix) and role[len(prefix) :].isdigit()]
    return max(numbered, key=lambda role: int(role[len(prefix) :]), default=None)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _mapping(path: Path) -> Mapping[str, Any]:
    found = _read(path)
    return found if isinstance(found, dict) else {}
