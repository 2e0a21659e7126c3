"""The run records of a folder that a table can use, and the numbers in them.

A record counts when everything that a table reads of it has the form a run writes. A line of any other form is named
in a warning and left out: one odd file stops no command. Contents of files are no part of a record's key
(`ttpa.results.status` compares fingerprints, which hold them). What this module does not do: compose a configuration
(`ttpa.results.tables.cells`), or compute a number (`ttpa.results.tables.numbers`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ttpa.results.tables.numbers import Estimate
from ttpa.run import config
from ttpa.run.pipeline import ROW_VERSION
from ttpa.run.stages import VERSIONS

if TYPE_CHECKING:
    from ttpa.results.tables.cells import Cell

WARMUP_GROUPS = ("data", "model", "warmup", "eval")
"""What decides the evaluation of the warm-up policy, beside the seed."""
SHARES = ("accuracy", "apis", "bands", "categories", "errors", "levels", "totals", "unseen_tool")
"""Where a record's metrics hold shares, which lie between 0 and 1 by construction."""
LARGEST = 1e300
"""No number of a record is as large as this."""

text = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Key(NamedTuple):
    """What a record and a cell are compared by: canonical JSON of each identity group, seed, rounds."""

    groups: tuple[str, ...]
    seed: int
    rounds: int

    def warmup(self) -> tuple[Any, ...]:
        """What the evaluation of the warm-up policy depends on."""
        return (*(self.groups[config.IDENTITY.index(group)] for group in WARMUP_GROUPS), self.seed)


@dataclass(frozen=True, slots=True)
class Record:
    """One line that a run left behind."""

    path: Path
    row: Mapping[str, Any]

    def metrics(self, warmup_only: bool) -> Mapping[str, Any]:
        """What was measured of the last policy, or of the warm-up policy."""
        found: Mapping[str, Any] = self.row["baseline" if warmup_only else "metrics"]
        return found

    def outdated(self, roles: Iterable[str] | None = None) -> dict[str, int | None]:
        """Stage -> the version that built it (None: not said), for stages that have other code or no code by now."""
        names = {
            stage.rsplit("-", 1)[0] for role, stage in self.row["stages"].items() if roles is None or role in roles
        }
        built = self.row["versions"]
        return {
            name: built.get(name)
            for name in sorted(names)
            if name not in VERSIONS or (name in built and built[name] != VERSIONS[name])
        }


@dataclass(slots=True)
class Records:
    """The records of a folder that a table can use."""

    by_key: dict[Key, list[Record]] = field(default_factory=dict)
    by_warmup: dict[tuple[Any, ...], list[Record]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of(self, cell: Cell) -> Record | None:
        """The record of a cell: built by today's stages if there is one, else any.

        Records of equal configuration are equal by construction, so which is taken plays no part; where two of them
        differ in what the cell shows, something outside the configuration has changed, and that is said.
        """
        role = "baseline" if cell.row.warmup_only else "metrics"
        found = self.by_warmup.get(cell.key.warmup(), []) if cell.row.warmup_only else self.by_key.get(cell.key, [])
        if not found:
            return None
        fresh = [record for record in found if not record.outdated()] or found
        first = fresh[0]
        other = next((record for record in fresh if record.row[role] != first.row[role]), None)
        if other is not None:
            self.warnings.append(
                f"{cell.label}: {first.path} and {other.path} have the same configuration and other {role}; the first "
                "is used. A file that they read may have changed in between: remove the record that is not meant."
            )
        return first


def read_records(folder: Path, cells: Sequence[Cell]) -> Records:
    """Reads every record of a folder that belongs to one of the cells. A file that holds none is named, not fatal."""
    wanted = _Wanted(cells)
    found = Records()
    for path in sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith(".")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            found.warnings.append(f"{path}: cannot be read ({error.strerror}), left out.")
            continue
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key = wanted.key(row)
                if key is not None:
                    _check(row)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                found.warnings.append(f"{path}:{number}: no run record ({why}), left out.")
                continue
            if key is None:
                continue
            if key in wanted.keys:
                found.by_key.setdefault(key, []).append(Record(path, row))
            if key.warmup() in wanted.warmups and row["baseline"]:
                found.by_warmup.setdefault(key.warmup(), []).append(Record(path, row))
    return found


class _Wanted:
    """The keys of a table's cells, and which values of a record can belong to one at all."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.keys = {cell.key for cell in cells if not cell.row.warmup_only}
        self.warmups = {cell.key.warmup() for cell in cells if cell.row.warmup_only}
        self._seeds = {cell.key.seed for cell in cells}
        texts = {(group, one) for cell in cells for group, one in zip(config.IDENTITY, cell.key.groups, strict=True)}
        # Values whose canonical JSON is equal are equal, all but not-a-number: with one, nothing is left out early.
        self._values: dict[str, list[Any]] = {}
        if not any("NaN" in one for _, one in texts):
            for group, one in texts:
                self._values.setdefault(group, []).append(json.loads(one))

    def key(self, row: Any) -> Key | None:
        """The key of a record, None where no cell can have it.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is no record; the message says why.
        """
        if row["row_version"] != ROW_VERSION:
            raise ValueError(f"row_version {row['row_version']}, not {ROW_VERSION}")
        for part in ("config", "metrics", "baseline", "stages", "versions", "cost"):
            if not isinstance(row[part], dict):
                raise TypeError(f"{part} is no mapping")
        for part in ("seed", "rounds"):
            if type(row[part]) is not int:
                raise TypeError(f"{part} is no whole number")
        whole = row["config"]
        groups = [whole[group] for group in config.IDENTITY]
        if row["seed"] not in self._seeds:
            return None
        # A row that shows the warm-up policy asks for these groups only.
        if any(whole[group] not in values for group, values in self._values.items() if group in WARMUP_GROUPS):
            return None
        if not self.warmups and any(whole[group] not in values for group, values in self._values.items()):
            return None
        key = Key(tuple(text(value) for value in groups), row["seed"], row["rounds"])
        return key if key in self.keys or key.warmup() in self.warmups else None


def _check(row: Mapping[str, Any]) -> None:
    """Looks at what a table reads of a record beside its key.

    Raises:
        KeyError, TypeError, ValueError: something has another form than a run writes; the message says what.
    """
    for role, stage in row["stages"].items():
        if not isinstance(stage, str):
            raise TypeError(f"stages.{role} is no text")
    # A record of a sweep may say nothing of the warm-up; one that does names the evaluation.
    for role in ("evaluation", "baseline") if row["baseline"] else ("evaluation",):
        if role not in row["stages"]:
            raise KeyError(f"stages.{role}")
    for name, version in row["versions"].items():
        if type(version) is not int:
            raise TypeError(f"versions.{name} is no whole number")
    for role, part in row["cost"].items():
        if not isinstance(part, dict) or not is_number(part.get("seconds")):
            raise TypeError(f"cost.{role}.seconds is no number")
        if part.get("tokens") is not None and not is_number(part["tokens"]):
            raise TypeError(f"cost.{role}.tokens is no number")
    for part in ("metrics", "baseline"):
        _check_numbers(row[part], part)


def _check_numbers(node: Mapping[str, Any], path: str) -> None:
    """Every `{value, low, high}` below a mapping holds numbers or null."""
    for key, value in node.items():
        if isinstance(value, dict):
            _check_numbers(value, f"{path}.{key}")
        elif key == "value" and value is not None and not is_number(value):
            raise TypeError(f"{path}.value is no number")
        elif key in ("low", "high") and "value" in node and value is not None and not is_number(value):
            raise TypeError(f"{path}.{key} is no number")


def is_number(value: Any) -> bool:
    """Whether a table can compute with it: no truth value, finite, and not so large that a sum overflows.

    Example:
        >>> is_number(0.5), is_number(True), is_number(float("nan")), is_number("1")
        (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def number_at(metrics: Mapping[str, Any], path: str) -> Estimate | None:
    """The number at a dotted path; None where it was measured and is nothing (no sample of that kind).

    Raises:
        KeyError: there is no such path, or no number there.
    """
    value: Any = metrics
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(path)
        value = value[key]
    low = high = None
    if isinstance(value, Mapping):
        if "value" not in value:
            raise KeyError(path)
        low, high, value = value.get("low"), value.get("high"), value["value"]
    if value is None:
        return None
    if not is_number(value):
        raise KeyError(path)
    if low is None or high is None:
        return Estimate(value=value)
    return Estimate(value=value, low=low, high=high, kind="bootstrap")
