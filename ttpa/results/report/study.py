"""What a page is about: result rows, grouped into policies over seeds, and the folders of the stages behind them, which
may be gone or damaged. Nothing is computed or written here.
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
from ttpa.results.table import TableRow, settings

STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*-[0-9a-f]{12}")
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)  # reading a damaged file


def lines_of(file: Path) -> list[str]:
    """The lines of a text file of a stage; none where it is gone or no UTF-8."""
    try:
        return file.read_text(encoding="utf-8").rstrip("\n").split("\n") if file.is_file() else []
    except (OSError, UnicodeDecodeError):
        return []


def parsed(text: str) -> Any:
    """What JSON text says; None where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of some lines. Damaged lines are skipped: a page shows what there is."""
    return (row for row in map(parsed, lines) if isinstance(row, dict))


def read_json(file: Path) -> Any:
    """What a JSON file of a stage says; None where there is none."""
    return parsed("\n".join(lines_of(file)))


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


class StageFolder:
    """A stage of some rows. Whatever its folder does not say, because it is gone or damaged, is empty or None."""

    def __init__(self, path: Path, seconds: float | None = None, tokens: float | None = None) -> None:
        self.path, self.id, self.seconds, self.tokens = path, path.name, seconds, tokens
        self.part = path.with_name(f"{path.name}.part")  # where a build that is not finished works
        self.exists = (path / "done.json").is_file()
        self.provenance = as_mapping(read_json(path / "provenance.json"))
        self.metrics = as_mapping(read_json(path / "metrics.json"))
        self.started = str(self.provenance.get("started") or "").replace("T", " ")  # UTC
        self.error = (lines_of(self.part / "error.txt") or [""])[-1].strip()  # of a build that failed
        attempts = read_json(path / "attempts.json")
        last = as_mapping(attempts[-1]) if isinstance(attempts, list) and attempts else {}
        self.maker = (last.get("host"), last.get("pid"))  # the process that finished it

    def input(self, role: str) -> StageFolder | None:
        """The stage that it read in a role, if that is in the store."""
        name = f"*-{as_mapping(self.provenance.get('inputs')).get(role)}"
        return next((StageFolder(one) for one in self.path.parent.glob(name) if STAGE_NAME.fullmatch(one.name)), None)


@dataclass(frozen=True)
class Arm:
    """A policy over seeds: the records of a row of the table (`key`), or a warm-up, which may have no row (key "")."""

    key: str
    label: str
    records: Mapping[int, Record]
    warmup: bool = False

    @property
    def first(self) -> Record:
        """The record of the least seed."""
        return self.records[min(self.records)]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The dotted settings of its configuration, without seeds."""
        return {**settings(self.first.config), "rounds": self.first.rounds}

    def stages(self, kind: str, seed: int) -> list[str]:
        """Folders of a kind of stage (such as align) in the order of the rounds."""
        stages = self.records[seed].stages
        roles = [role for role in stages if re.fullmatch(rf"{kind}\d*", role)]
        return [stages[role] for role in sorted(roles, key=lambda role: (len(role), role))]


@dataclass(frozen=True)
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
    def stages(self) -> dict[str, StageFolder]:
        """Name -> folder of every stage that a record names."""
        found: dict[str, StageFolder] = {}
        for record in self.records:
            for role, name in record.stages.items():
                cost = record.cost.get(role)
                found.setdefault(name, StageFolder(self.store / name, *((cost.seconds, cost.tokens) if cost else ())))
        return found

    @cached_property
    def varying(self) -> list[str]:
        """Option groups whose choice differs between the aligned policies."""
        firsts = [arm.first.choices for arm in self.aligned]
        groups = dict.fromkeys(group for first in firsts for group in first)
        return [group for group in groups if len({first.get(group) for first in firsts}) > 1]


def records_of(target: str, results: Path) -> tuple[list[Record], list[str]]:
    """The records of a result file or of run names joined by commas, and a sentence for each line that is left out.

    Raises:
        ConfigError: nothing of that name; lists the names there are.
        DataError: there is no record.
    """
    named: dict[str, list[Path]] = {target: [Path(target)]} if Path(target).is_file() else {}
    for file in [] if named else sorted(results.glob(f"*-{12 * '[0-9a-f]'}.jsonl")):
        named.setdefault(file.stem[:-13], []).append(file)
    names = [target] if target in named else list(dict.fromkeys(target.split(",")))
    if unknown := [name for name in names if name not in named]:
        known = f"there are {', '.join(sorted(named)[:20])}" if named else "it holds no results"
        remedy = "Give a result file, a run name or a table's folder, and results=DIR"
        raise ConfigError.at("TARGET", unknown[0] or "''", f"nothing of that name in {results} ({known})", remedy)
    warnings, records = list[str](), list[Record]()
    for record in read_records([file for name in names for file in named[name]], warnings):
        # The name is a folder of the store and may lead nowhere else.
        strange = [name for name in record.stages.values() if not STAGE_NAME.fullmatch(name)]
        warnings += [f"{record.path}: {name!r} names no stage, left out." for name in strange]
        records += [] if strange else [record]
    if not records:
        raise DataError(warnings[0] if warnings else f"{target}: no result rows. Run the experiment first.")
    return records, warnings


def warmup_key(record: Record) -> str:
    """Equal for records that began with the same policy, whatever their seeds."""
    groups = [[record.choices.get(group), settings(as_mapping(record.config.get(group)))] for group in WARMUP_GROUPS]
    return json.dumps(groups, sort_keys=True)


def study_of(rows: Sequence[TableRow], store: Path) -> Study:
    """The rows of a table that have records, after the warm-ups. A warm-up that no row shows is added."""
    arms = [Arm(row.spec.key, row.spec.label, row.records, row.spec.warmup_only) for row in rows if row.records]
    aligned = [arm for arm in arms if not arm.warmup]
    starts = [replace(arm, records=warmup_parts(arm.records)) for arm in arms if arm.warmup]
    shown = {warmup_key(arm.first) for arm in starts}
    added: dict[str, dict[int, Record]] = {}
    for record in (one for arm in aligned for one in arm.records.values() if one.baseline):
        if (key := warmup_key(record)) not in shown:
            added.setdefault(key, {})[record.seed] = record
    for number, records in enumerate(added.values(), 1):
        label = "warm-up" if len(added) + len(shown) == 1 else f"warm-up {number}"
        starts.append(Arm("", label, warmup_parts(records), warmup=True))
    return Study(store, [*starts, *aligned])


def warmup_parts(records: Mapping[int, Record]) -> dict[int, Record]:
    """What records say of the policy that they began with; the rest may belong to another experiment."""
    parts = {"choices": WARMUP_GROUPS, "config": WARMUP_GROUPS, "stages": WARMUP_ROLES, "cost": WARMUP_ROLES}
    found = {}
    for seed, one in records.items():
        kept = {key: {k: v for k, v in getattr(one, key).items() if k in names} for key, names in parts.items()}
        found[seed] = one.model_copy(update={**kept, "rounds": 0, "metrics": {}})
    return found
