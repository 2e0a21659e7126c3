"""Who belongs to whom: rows of equal choices and settings are one `Arm` over seeds, or the rows of a table are. Names
them, and finds their warm-ups, controls and stages. Nothing else is computed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ttpa.results.report.rows import START, WARMUP_ROLES, Record, Stage, settings

CONTROLS = ("rft", "gold")
ENDS = ",:;"


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
    """All that a page is about. `varying` names the choices that differ between the arms; `named` says whether the arms
    are rows of a table, with its words and in its order.
    """

    title: str
    records: Sequence[Record]
    arms: Sequence[Arm]
    starts: Sequence[Arm]
    stages: Mapping[str, Stage]
    varying: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)
    named: bool = False

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

    def common(self, arms: Sequence[Arm]) -> str:
        """What the names of some arms share: choices and settings, or the beginning of a table's words."""
        if len(arms) == 1:
            return arms[0].label
        if not self.named:
            parts = [arm.label.split(" + ") for arm in arms]
            return " + ".join(part for part in parts[0] if all(part in other for other in parts))
        words = [arm.label.split() for arm in arms]
        end = 0
        while all(len(one) > end and one[end].strip(ENDS) == words[0][end].strip(ENDS) for one in words):
            end += 1
        # A word alone may mean nothing ("without"); what stops at a comma or a colon is a name.
        closed = end == len(words[0]) or any(one[end - 1][-1:] in ENDS for one in words) if end else False
        return " ".join(words[0][:end]).strip(ENDS) if closed else ""

    def controls_of(self, arm: Arm) -> list[Arm]:
        """Arms that differ from it in nothing but a control objective."""
        controls = [one for one in self.arms if one.first.choices.get("objective") in CONTROLS and one is not arm]
        return [one for one in controls if one.first.control_key == arm.first.control_key]


def gather(records: Sequence[Record], store: Path, title: str, left_out: Sequence[str] = ()) -> Gathered:
    """Sorts rows into arms and finds their stages."""
    notes = [f"Left out: {why}" for why in left_out]
    cells: dict[str, dict[int, Record]] = {}
    starts: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=lambda one: (sorted(one.choices.items()), one.seed, one.name, one.run)):
        cell = cells.setdefault(record.cell_key, {})
        if record.seed in cell:
            twin = cell[record.seed]
            if record.stages.get("evaluation") != twin.stages.get("evaluation"):
                notes.append(f"{record.file.name} has the settings and seed of {twin.file.name}; the latter is shown.")
            continue
        cell[record.seed] = record
        if record.baseline:  # a sweep leaves the warm-up out
            starts.setdefault(record.start_key, {}).setdefault(record.seed, record)
    firsts = [found[min(found)] for found in cells.values()]
    varying = [group for group in firsts[0].choices if len({one.choices.get(group) for one in firsts}) > 1]
    labels = _labels(firsts, varying)
    arms = [Arm(label=label, records=found) for label, found in zip(labels, cells.values(), strict=True)]
    before = [found[min(found)] for found in starts.values()]
    names = [""] if len(before) == 1 else _labels(before, [group for group in varying if group in START], START)
    begun = [
        Arm(label="warm-up" + (f" ({name})" if name else ""), records=found, warmup=True)
        for name, found in zip(names, starts.values(), strict=True)
    ]
    stages = _stages(records, store)
    return Gathered(title=title, records=records, arms=arms, starts=begun, stages=stages, varying=varying, notes=notes)


def gather_rows(rows: Sequence[Arm], store: Path, title: str) -> Gathered:
    """The rows of a table as arms, with its words and in its order. A warm-up that no row shows is added."""
    arms = [row for row in rows if not row.warmup]
    starts = [row for row in rows if row.warmup]
    shown = {record.start_key for start in starts for record in start.records.values()}
    more: dict[str, tuple[Arm, dict[int, Record]]] = {}
    for arm in arms:
        for seed, record in arm.records.items():
            if record.baseline and record.start_key not in shown:
                more.setdefault(record.start_key, (arm, {}))[1].setdefault(seed, record)
    alone = len(starts) + len(more) == 1
    for arm, found in more.values():
        starts.append(Arm(label="warm-up" if alone else f"warm-up of {arm.label}", records=found, warmup=True))
    behind = [record for row in (*arms, *starts) for record in row.records.values()]
    records = list({(record.file, record.run, record.seed): record for record in reversed(behind)}.values())[::-1]
    firsts = [arm.first for arm in arms]
    groups = dict.fromkeys(group for first in firsts for group in first.choices)
    varying = [group for group in groups if len({first.choices.get(group) for first in firsts}) > 1]
    return Gathered(
        title=title,
        records=records,
        arms=arms,
        starts=starts,
        stages=_stages(records, store),
        varying=varying,
        named=True,
    )


def warmup_part(record: Record) -> Record:
    """What a row says of the policy it began with; the rest may belong to another experiment."""
    return replace(
        record,
        rounds=0,
        choices={group: choice for group, choice in record.choices.items() if group in START},
        config={key: value for key, value in record.config.items() if key.split(".")[0] in START},
        stages={role: name for role, name in record.stages.items() if role in WARMUP_ROLES},
        cost={role: cost for role, cost in record.cost.items() if role in WARMUP_ROLES},
        metrics={},
    )


def _stages(records: Iterable[Record], store: Path) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for record in records:
        for role, name in record.stages.items():
            if name not in stages:
                cost = record.cost.get(role) or {}
                stages[name] = Stage(
                    id=name, folder=store / name, seconds=cost.get("seconds"), tokens=cost.get("tokens")
                )
    return stages


def _labels(records: Sequence[Record], varying: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    """Names that tell records apart: the choices that vary, then the settings that choices do not explain."""
    names = [[str(record.choices.get(group) or f"no {group}") for group in varying] for record in records]
    if not varying:
        names = [[str(record.choices.get("objective", record.name))] if not groups else [] for record in records]
    for name in {tuple(name) for name in names}:
        alike = [number for number, other in enumerate(names) if tuple(other) == name]
        keys = differing([settings(records[number]) for number in alike])
        kept = [k for k in keys if not k.endswith("_target_") and (not groups or k.split(".")[0] in groups)]
        for number in alike:
            here = settings(records[number])
            # Many settings make no name; the first few tell most arms apart, the comparison of settings has them all.
            names[number] = [*names[number], *(_setting(k, here[k]) for k in kept[:3] if k in here)]
    joined = [" + ".join(name) for name in names]
    return [label if joined.count(label) == 1 else f"{label} #{number}" for number, label in enumerate(joined, 1)]


def _setting(key: str, value: Any) -> str:
    """A setting in a label.

    Example:
        >>> _setting("select.limit", 90), _setting("select.limit", None), _setting("x.split", True)
        ('limit=90', 'no limit', 'split=true')
    """
    name = key.rpartition(".")[2]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"no {name}" if value is None else f"{name}={shown}"


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same everywhere, in order of appearance."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    return [k for k in keys if len({json.dumps(c[k], sort_keys=True) if k in c else "" for c in configs}) > 1]
