"""Reads what a report shows: result rows, and the folders of the stages they name. Plain dataclasses come out.

A row without what every row has is the user's error: alone it raises, among others it is left out and named. A stage's
folder may be gone, half there or damaged: then the row's own numbers are all there is, and `Stage.there` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError

ROW_VERSION = 1
STAGE = re.compile(r"([A-Za-z][A-Za-z0-9_]*)-[0-9a-f]{12}")
START = ("data", "model", "warmup", "eval")
"""Groups that decide the numbers of the warm-up policy."""
WARMUP_ROLES = ("data", "warmup", "baseline")
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

    @property
    def last_stage(self) -> str:
        """Folder name of the evaluation that finished the row."""
        return self.stages.get("evaluation") or self.stages["baseline"]

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


def read_rows(files: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Reads result rows; gives them, and what is said of those that are left out.

    Raises:
        DataError: no row can be read; names file, line and key.
    """
    found: list[Record] = []
    left_out: list[str] = []
    for file in files:
        try:
            lines = file.read_bytes().decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            left_out.append(f"{file}: cannot be read ({error}). Run the same command again to write it.")
            continue
        for number, line in enumerate(lines, 1):
            place = f"{file}:{number}"
            try:
                found += [record_of(file, _parsed(place, line), place)] if line.strip() else []
            except DataError as error:
                left_out.append(str(error))
    if not found:
        names = ", ".join(map(str, files))
        raise DataError(left_out[0] if left_out else f"{names}: no result rows. Run the experiment first.")
    return found, left_out


def _parsed(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not a JSON line ({error}). Run the same command again to write it.") from None


def record_of(file: Path, row: Any, place: str = "") -> Record:
    """A result row that was read from a file.

    Raises:
        DataError: it is none; names the place and the key.
    """
    place = place or str(file)
    wrong = [key for key, kind in NEEDED.items() if not isinstance(row, dict) or not isinstance(row.get(key), kind)]
    if wrong:
        raise DataError(f"{place}: no result row, {', '.join(wrong)} missing or of another type. Give a results file.")
    if row.get("row_version", ROW_VERSION) != ROW_VERSION:
        raise DataError(f"{place}: row_version={row['row_version']}, this program reads {ROW_VERSION}. Update it.")
    for role, name in row["stages"].items():
        if not isinstance(name, str) or not STAGE.fullmatch(name):
            raise DataError(f"{place}: stages.{role}={name!r} names no stage. Run the same command again to write it.")
    for role in ("evaluation", "baseline") if row["baseline"] else ("evaluation",):
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
