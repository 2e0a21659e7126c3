"""What a page is about: result rows, grouped into policies over seeds, and the folders of the stages behind them.

A stage's folder may be gone or damaged: then the row's own numbers are all there is. Nothing is computed or written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError
from ttpa.results.records import WARMUP_GROUPS, WARMUP_ROLES, Record, read_records
from ttpa.results.table import settings

STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*-[0-9a-f]{12}")


class StageFolder:
    """A stage of some rows. Whatever its folder does not say, because it is gone or damaged, is empty or None."""

    def __init__(self, path: Path, seconds: float | None = None, tokens: float | None = None) -> None:
        self.path, self.id, self.seconds, self.tokens = path, path.name, seconds, tokens
        self.part = path.with_name(f"{path.name}.part")  # where a build that is not finished works
        self.exists = (path / "done.json").is_file()
        self.provenance = as_mapping(read_json(path / "provenance.json"))
        self.metrics = as_mapping(read_json(path / "metrics.json"))

    @cached_property
    def maker(self) -> tuple[Any, Any] | None:
        """The process that finished it, as (host, process id)."""
        attempts = read_json(self.path / "attempts.json")
        last = as_mapping(attempts[-1]) if isinstance(attempts, list) and attempts else {}
        return (last.get("host"), last.get("pid")) if self.exists and last else None

    @property
    def error(self) -> str:
        """The last line of the traceback of a build that failed; "" where none failed."""
        return ((read_text(self.part / "error.txt") or "").strip().splitlines() or [""])[-1]

    @property
    def bytes(self) -> int:
        """Size on disk, with that of an unfinished build."""
        files = [file for folder in (self.path, self.part) for file in folder.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def input(self, role: str) -> StageFolder | None:
        """The stage that it read in a role, if that is in the store."""
        fingerprint = as_mapping(self.provenance.get("inputs")).get(role)
        if not re.fullmatch("[0-9a-f]{12}", str(fingerprint)):
            return None
        found = [path for path in self.path.parent.glob(f"*-{fingerprint}") if STAGE_NAME.fullmatch(path.name)]
        return StageFolder(found[0]) if found else None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A policy over seeds: the records of one cell, or the warm-up that several cells start from.

    Args:
        key: Of its row in the table; "" for a warm-up that no row shows.
        label: What tells it apart.
        records: Seed -> record.
        warmup: Whether the numbers are those of the policy before alignment.
    """

    key: str
    label: str
    records: Mapping[int, Record]
    warmup: bool = False

    @property
    def first(self) -> Record:
        """The record of the least seed."""
        return self.records[min(self.records)]

    def metrics(self, seed: int) -> Mapping[str, Any]:
        """What was measured."""
        return self.records[seed].measured(self.warmup)

    def stages(self, kind: str, seed: int) -> list[str]:
        """Folders of a kind of stage (such as align) in the order of the rounds."""
        roles = [role for role in self.records[seed].stages if re.fullmatch(rf"{kind}\d*", role)]
        return [self.records[seed].stages[role] for role in sorted(roles, key=lambda role: (len(role), role))]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a page is about. `arms` holds the warm-ups first; an arm's number in it decides its colour."""

    store: Path
    arms: Sequence[Arm]

    @cached_property
    def aligned(self) -> list[Arm]:
        """The policies that are no warm-ups."""
        return [arm for arm in self.arms if not arm.warmup]

    @cached_property
    def records(self) -> list[Record]:
        """Every record once."""
        arms = sorted(self.arms, key=lambda arm: not arm.warmup)  # a whole record replaces its warm-up part
        return list({(one.path, one.run, one.seed): one for arm in arms for one in arm.records.values()}.values())

    @cached_property
    def seeds(self) -> list[int]:
        """Every seed."""
        return sorted({record.seed for record in self.records})

    @cached_property
    def stages(self) -> dict[str, StageFolder]:
        """Name -> folder of every stage that a record names."""
        found: dict[str, StageFolder] = {}
        for record in self.records:
            for role, name in record.stages.items():
                cost = record.cost.get(role)
                seconds, tokens = (cost.seconds, cost.tokens) if cost else (None, None)
                found.setdefault(name, StageFolder(self.store / name, seconds, tokens))
        return found

    @cached_property
    def varying(self) -> list[str]:
        """Option groups whose choice differs between the aligned policies."""
        firsts = [arm.first for arm in self.aligned]
        groups = dict.fromkeys(group for first in firsts for group in first.choices)
        return [group for group in groups if len({first.choices.get(group) for first in firsts}) > 1]

    def start_of(self, arm: Arm) -> Arm | None:
        """The warm-up that a policy began with."""
        key = warmup_key(arm.first)
        return next((one for one in self.arms if one.warmup and warmup_key(one.first) == key), None)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str | None:
    """A text file of a stage; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def read_json(path: Path) -> Any:
    """What a JSON file of a stage holds; None where there is none."""
    try:
        return json.loads(read_text(path) or "null")
    except (ValueError, RecursionError):
        return None


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def json_objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of some lines of a stage's file. Damaged lines are skipped: a page shows what there is."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """See `json_objects`."""
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            yield from json_objects(lines)
    except (OSError, UnicodeDecodeError):
        return


def find_files(target: str, results: Path) -> list[Path]:
    """The result files that a target names: one file, or all of a run name; several names are joined by commas.

    Raises:
        ConfigError: nothing of that name; lists the names there are.
    """
    if Path(target).is_file():
        return [Path(target)]
    named: dict[str, list[Path]] = {}
    for file in sorted(results.glob("*.jsonl")):
        if match := re.fullmatch(r"(.+)-[0-9a-f]{12}\.jsonl", file.name):
            named.setdefault(match[1], []).append(file)
    for name in target.split(","):
        if name not in named:
            known = f"there are {', '.join(sorted(named)[:20])}" if named else "it holds no results"
            remedy = "Give a result file, a run name or a table's folder, and results=DIR"
            raise ConfigError.at("TARGET", name or "''", f"nothing of that name in {results} ({known})", remedy)
    return [file for name in dict.fromkeys(target.split(",")) for file in named[name]]


def records_of(files: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The records of result files, and a sentence for each line that is left out.

    Raises:
        DataError: there is no record.
    """
    warnings: list[str] = []
    records = [record for record in read_records(files, warnings) if no_stranger(record, warnings)]
    if not records:
        names = ", ".join(map(str, files))
        raise DataError(warnings[0] if warnings else f"{names}: no result rows. Run the experiment first.")
    return records, warnings


def no_stranger(record: Record, warnings: list[str]) -> bool:
    """Whether every stage of a record is named as stages are: a name is a folder, and may lead nowhere else."""
    strange = [name for name in record.stages.values() if not STAGE_NAME.fullmatch(name)]
    warnings += [f"{record.path}: {name!r} names no stage, left out." for name in strange]
    return not strange


# --- grouping --------------------------------------------------------------------------------------------------------


def warmup_key(record: Record) -> str:
    """Equal for records that began with the same policy, whatever their seeds."""
    groups = [[record.choices.get(group), settings(as_mapping(record.config.get(group)))] for group in WARMUP_GROUPS]
    return json.dumps(groups, sort_keys=True)


def study_of(arms: Sequence[Arm], store: Path) -> Study:
    """The rows of a table that have records, with its labels and in its order, after the warm-ups.

    A warm-up that no row shows is added. A record behind a warm-up row may be of any experiment that began with it: the
    table's own are taken, and only where there is none what the other one says of the warm-up.
    """
    aligned, warmups = ([arm for arm in arms if arm.records and arm.warmup == kind] for kind in (False, True))
    own = {(warmup_key(one), one.seed): one for arm in aligned for one in arm.records.values() if one.baseline}
    found = [
        replace(arm, records={s: warmup_part(own.get((warmup_key(one), s), one)) for s, one in arm.records.items()})
        for arm in warmups
    ]
    added: dict[str, dict[int, Record]] = {}
    for (key, seed), record in own.items():
        if all(key != warmup_key(arm.first) for arm in found):
            added.setdefault(key, {})[seed] = warmup_part(record)
    for number, records in enumerate(added.values(), 1):
        label = "warm-up" if len(found) + len(added) == 1 else f"warm-up {number}"
        found.append(Arm(key="", label=label, records=records, warmup=True))
    return Study(store=store, arms=[*found, *aligned])


def warmup_part(record: Record) -> Record:
    """What a record says of the policy that it began with; the rest may belong to another experiment."""

    def kept(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in names}

    parts = {"choices": WARMUP_GROUPS, "config": WARMUP_GROUPS, "stages": WARMUP_ROLES, "cost": WARMUP_ROLES}
    update = {key: kept(getattr(record, key), names) for key, names in parts.items()}
    return record.model_copy(update={**update, "rounds": 0, "metrics": {}})


def as_text(value: Any) -> str:
    """A value of a configuration as it is typed."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
