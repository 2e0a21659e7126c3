"""What a page is about: result rows, grouped into policies over seeds, and the folders of the stages behind them, which
may be gone or damaged.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ttpa.errors import ConfigError, DataError
from ttpa.results.records import WARMUP_GROUPS, WARMUP_ROLES, Record, StageCost, number_at, read_records
from ttpa.results.stats import Estimate, share_over_seeds
from ttpa.results.table import TableRow, settings

STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*-[0-9a-f]{12}")
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)  # reading a damaged file


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def folders(record: Record, kind: str) -> list[str]:
    """A record's stages of a kind (such as align), which it names in the order of the rounds."""
    return [name for role, name in record.stages.items() if role.startswith(kind)]


class StageFolder:
    """A stage of some rows. Whatever its folder does not say, because it is gone or damaged, is empty or None."""

    def __init__(self, path: Path, cost: StageCost | None = None) -> None:
        self.path, self.id = path.absolute(), path.name
        self.seconds, self.tokens = cost and cost.seconds, cost and cost.tokens
        self.part = self.path.with_name(f"{self.id}.part")  # where a build that is not finished works
        self.exists = (path / "done.json").is_file()
        self.provenance = as_mapping(self.json("provenance.json"))
        self.started = str(self.provenance.get("started") or "").replace("T", " ")  # UTC
        self.error = (self.lines(self.part / "error.txt") or [""])[-1].strip()  # of a build that failed
        attempts = self.json("attempts.json")
        last = as_mapping(attempts[-1]) if isinstance(attempts, list) and attempts else {}
        self.maker = (last.get("host"), last.get("pid"))  # the process that finished it

    def lines(self, file: str | Path) -> list[str]:
        """The lines of a text file; none where it is gone or no UTF-8."""
        with suppress(OSError, ValueError):
            return (self.path / file).read_text(encoding="utf-8").rstrip("\n").split("\n")
        return []

    def json(self, file: str) -> Any:
        """What a JSON file says."""
        with suppress(*DAMAGED):
            return json.loads("\n".join(self.lines(file)))

    def rows(self, file: str, limit: int | None = None) -> list[dict[str, Any]]:
        """The JSON objects of a file's lines, or of so many lines drawn at random; damaged ones are left out."""
        lines, found = self.lines(file), list[dict[str, Any]]()
        if limit is not None:
            drawn = sorted(random.Random(self.id).sample(range(len(lines)), min(limit, len(lines))))
            lines = [lines[at] for at in drawn]
        for line in lines:
            with suppress(*DAMAGED):
                found += [row] if isinstance(row := json.loads(line), dict) else []
        return found

    def input(self, role: str) -> Self | None:
        """The stage that it read in a role, if that is in the store."""
        name = f"*-{as_mapping(self.provenance.get('inputs')).get(role)}"
        return next((type(self)(one) for one in self.path.parent.glob(name) if STAGE_NAME.fullmatch(one.name)), None)


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

    def by_seed(self, path: str) -> list[Estimate]:
        """A number of each seed that has it, by its dotted path in the metrics."""
        found = list[Estimate]()
        for record in self.records.values():
            with suppress(KeyError):
                found += filter(None, [number_at(record.measured(self.warmup), path)])
        return found

    def share(self, path: str = "accuracy") -> Estimate | None:
        """A share in per cent with its interval; None where it was not measured."""
        known = self.by_seed(path)
        return share_over_seeds(known).scaled(100) if known else None


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
        """Every record once; a whole record replaces its warm-up part."""
        return list({(one.path, one.run, one.seed): one for arm in self.arms for one in arm.records.values()}.values())

    @cached_property
    def stages(self) -> dict[str, StageFolder]:
        """Name -> folder of every stage that a record names."""
        uses = [(name, record.cost.get(role)) for record in self.records for role, name in record.stages.items()]
        costs = dict.fromkeys(name for name, _ in uses) | dict(reversed(uses))
        return {name: StageFolder(self.store / name, cost) for name, cost in costs.items()}

    @cached_property
    def options(self) -> dict[str, list[str]]:
        """Option group -> what the aligned policies chose."""
        firsts = [arm.first.choices for arm in self.aligned or self.arms]
        return {group: list(dict.fromkeys(str(one.get(group)) for one in firsts)) for one in firsts for group in one}

    @property
    def varying(self) -> list[str]:
        """Option groups whose choice differs."""
        return [group for group, chosen in self.options.items() if len(chosen) > 1]


def records_of(target: str, results: Path) -> tuple[list[Record], list[str]]:
    """The records of a result file or of run names joined by commas, and a sentence for each line that is left out.
    A ConfigError lists the names there are; no record is a DataError.
    """
    named: dict[str, list[Path]] = {target: [Path(target)]} if Path(target).is_file() else {}
    for file in [] if named else sorted(results.glob(f"*-{12 * '[0-9a-f]'}.jsonl")):
        named.setdefault(file.stem[:-13], []).append(file)
    names = [target] if target in named else dict.fromkeys(target.split(","))
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
    aligned, starts = [arm for arm in arms if not arm.warmup], [arm for arm in arms if arm.warmup]
    shown, added = {warmup_key(arm.first) for arm in starts}, defaultdict[str, dict[int, Record]](dict)
    for record in (one for arm in aligned for one in arm.records.values() if one.baseline):
        if (key := warmup_key(record)) not in shown:
            added[key][record.seed] = record
    name = "warm-up" if len(added) + len(shown) == 1 else "warm-up {}"
    starts += [Arm("", name.format(at), records, True) for at, records in enumerate(added.values(), 1)]
    begun = [replace(arm, records={seed: _warmup_part(one) for seed, one in arm.records.items()}) for arm in starts]
    return Study(store, [*begun, *aligned])


def _warmup_part(record: Record) -> Record:
    """What a record says of the policy that it began with; the rest may belong to another experiment."""
    parts = {"choices": WARMUP_GROUPS, "config": WARMUP_GROUPS, "stages": WARMUP_ROLES, "cost": WARMUP_ROLES}
    kept = {key: {k: v for k, v in getattr(record, key).items() if k in names} for key, names in parts.items()}
    return record.model_copy(update={**kept, "rounds": 0})
