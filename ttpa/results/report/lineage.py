"""Where the numbers come from: the stage graph with times and cache hits, settings side by side, provenance.

A stage counts as built for a row when the process that finished the row's evaluation finished it too, else as found.
The picture merges seeds: a box is a stage of one or several arms, over all seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttpa.results.report.blocks import Block, Box, Cell, Folded, Graph, Grid, Text, clock, count, middle, plural, short
from ttpa.results.report.gather import Arm, Gathered, differing
from ttpa.results.report.rows import WARMUP_ROLES, Record, Stage

WIDTH, HEIGHT, GAP = 194, 52, (34, 14)
FEW, MOST_BOXES = 12, 120
LONGEST = 42
NARROW = " .,:;'|!iljI()[]-/"
"""Characters of a title in the picture; the tooltip has all."""
MOST_ARMS = 24
"""Columns of the comparison of settings."""
PARTS = ("commit", "packages", "python", "platform", "host", "cpu", "cpu_count", "gpu")


# --- the graph -------------------------------------------------------------------------------------------------------


def parents(record: Record) -> dict[str, str]:
    """Role -> the role whose result it works on. Every stage also reads the data; those arrows would cross all others.

    Example: explore1 -> warmup, align1 -> explore1, evaluation -> align1.
    """
    found, policy, work = {"warmup": "data", "baseline": "warmup"}, "warmup", "warmup"
    numbers = {role[-1:] for role in record.stages}
    for number in sorted((n for n in numbers if n.isdigit()), key=int):
        work = policy
        for name in ("select", "explore", "align"):
            if f"{name}{number}" in record.stages:
                found[f"{name}{number}"] = work
                work = f"{name}{number}"
        policy = work
    found["evaluation"] = policy
    return {role: parent for role, parent in found.items() if role in record.stages}


@dataclass(slots=True)
class _Node:
    """A box: the stages of a role that linked arms use, over all seeds. `parent` is the number of another box."""

    role: str
    arms: list[Arm]
    ids: list[str]
    depth: int
    parent: int | None = None


def _linked(found: Gathered, role: str) -> list[list[Arm]]:
    """Arms with this role, parted into those that share its stage in any seed, or begin with the same policy."""
    groups: list[tuple[list[Arm], set[str]]] = []
    # The warm-ups come last: of a table they may hold seeds that no other row has.
    for arm in (*found.arms, *(found.starts if role in WARMUP_ROLES else ())):
        names = {record.stages[role] for record in arm.records.values() if role in record.stages}
        if not names:
            continue
        if role in WARMUP_ROLES and (start := found.start_of(arm)) is not None:
            names.add(start.label)
        joined = [group for group in groups if group[1] & names]
        groups = [group for group in groups if not group[1] & names]
        groups.append(([*(one for arms, _ in joined for one in arms), arm], names.union(*(seen for _, seen in joined))))
    return sorted((arms for arms, _ in groups), key=lambda arms: min(map(found.policies.index, arms)))


def _nodes(found: Gathered) -> list[_Node]:
    """The boxes, parents first."""
    depth = {role: 0 for record in found.records for role in record.stages}
    for record in found.records:  # a row without exploration has fewer steps than one with it
        above = parents(record)
        for role in record.stages:
            steps, step = 0, role
            while step in above:
                steps, step = steps + 1, above[step]
            depth[role] = max(depth[role], steps)
    nodes: list[_Node] = []
    for role in sorted(depth, key=lambda one: (depth[one], one != "baseline", one)):
        for arms in _linked(found, role):
            records = [record for arm in arms for record in arm.records.values() if role in record.stages]
            up = next((parents(record)[role] for record in records if role in parents(record)), None)
            parent = next((k for k, node in enumerate(nodes) if node.role == up and arms[0] in node.arms), None)
            ids = list(dict.fromkeys(record.stages[role] for record in records))
            nodes.append(_Node(role, arms, ids, depth[role], parent))
    return nodes


def _label(node: _Node, found: Gathered) -> str:
    """What a box is: its role, and what its arms have in common that others have not."""
    role = "evaluate warm-up" if node.role == "baseline" else node.role.replace("evaluation", "evaluate")
    rounds = max(record.rounds for record in found.records)
    role = role if rounds > 1 else role.rstrip("0123456789")
    arms = [arm for arm in node.arms if not arm.warmup] or node.arms
    if len(arms) == len(found.arms or found.starts):
        return role
    name = found.common(arms)
    if not name and found.named:
        name = f"{arms[0].label} and {len(arms) - 1} more"
    return f"{role} {name}".strip()


def graph(found: Gathered) -> list[Block]:
    """The picture and what sharing saved."""
    nodes = _nodes(found)
    once = sum(stage.seconds or 0.0 for stage in found.stages.values())
    uses = [(role, name) for record in found.records for role, name in record.stages.items()]
    every = sum(found.stages[name].seconds or 0.0 for _, name in uses)
    said = (
        f"{plural(len(found.stages), 'stage')} behind {plural(len(found.records), 'result row')}, {clock(once)} in all"
        + (f"; without sharing, {len(uses)} stages and {clock(every)}." if len(uses) > len(found.stages) else ".")
    )
    if len(nodes) > MOST_BOXES:
        return [Text(said), Text(f"{len(nodes)} boxes are too many for a picture; the table has all stages.")]
    place = _places(nodes)
    widths = [
        max(WIDTH, *(24 + _wide(_title(node, found)) for node in nodes if node.depth == depth))
        for depth in range(max(node.depth for node in nodes) + 1)
    ]
    left = [1 + sum(widths[:depth]) + depth * GAP[0] for depth in range(len(widths))]
    boxes = [_box(node, left[node.depth], place[k], widths[node.depth], found) for k, node in enumerate(nodes)]
    arrows = [
        (up.x + up.width, up.y + HEIGHT // 2, boxes[k].x, boxes[k].y + HEIGHT // 2)
        for k, node in enumerate(nodes)
        if node.parent is not None and (up := boxes[node.parent])
    ]
    words = "; ".join(
        f"{box.title}" + (f" works on {boxes[node.parent].title}" if node.parent is not None else "")
        for box, node in zip(boxes, nodes, strict=True)
    )
    picture = Graph(
        title="Stage graph",
        description=f"Each box is a stage, with its time over all seeds. {short(words, 1500)}. All read the data.",
        width=max(box.x + box.width for box in boxes) + 2,
        height=max(box.y for box in boxes) + HEIGHT + 2,
        box_height=HEIGHT,
        boxes=boxes,
        arrows=arrows,
    )
    return [Text(said), picture]


def _places(nodes: Sequence[_Node]) -> list[int]:
    """The row of each box: that of its first child, so that what belongs together stands together and no arrow crosses
    a box; rows are counted by the boxes that nothing follows.
    """
    rows = [0] * len(nodes)
    below: dict[int | None, list[int]] = {}
    for number, node in enumerate(nodes):
        below.setdefault(node.parent, []).append(number)
    next_row = 0
    waiting = below.get(None, [])[::-1]
    while waiting:
        number = waiting.pop()
        rows[number] = next_row
        waiting += below.get(number, [])[::-1]
        next_row += number not in below
    return rows


def _wide(text: str) -> int:
    """Pixels that a title takes at most: bold, 13 pixels high, in the widest of the page's fonts."""
    em = sum(0.46 if c in NARROW else 1.1 if c in "mwMW@%" or ord(c) > 0x2FF else 0.76 for c in text)
    return round(13 * em)


def _title(node: _Node, found: Gathered) -> str:
    return middle(_label(node, found), LONGEST) + (f" \u00d7{len(set(node.ids))}" if len(set(node.ids)) > 1 else "")


def _box(node: _Node, left: int, row: int, width: int, found: Gathered) -> Box:
    stages = [found.stages[name] for name in dict.fromkeys(node.ids)]
    states = {state(stage, found)[0] for stage in stages}
    tokens = [stage.tokens for stage in stages if stage.tokens is not None]
    times = [stage.seconds for stage in stages if stage.seconds is not None]
    parts = [
        clock(sum(times)) if times else "",
        f"{count(sum(tokens))} tokens" if tokens else "",
    ]
    return Box(
        x=left,
        y=1 + row * (HEIGHT + GAP[1]),
        width=width,
        title=_title(node, found),
        line=" \u00b7 ".join(part for part in parts if part),
        hint=f"{_label(node, found)}: {', '.join(stage.id for stage in stages)}",
        state=states.pop() if len(states) == 1 else "mixed",
    )


def state(stage: Stage, found: Gathered) -> tuple[str, int]:
    """Whether a stage was built by the process that finished a row (built), or by another before (found), or nobody
    knows (unknown), and how many rows of other processes found it.
    """
    users = found.users[stage.id]
    if stage.maker is None:
        return "unknown", 0
    others = sum(found.stages[record.last_stage].maker != stage.maker for record in users)
    return ("found" if others == len(users) else "built"), others


def stage_table(found: Gathered) -> Block:
    """Every stage: who uses it, whether it was built or found, time and tokens; folded where there are many."""
    rows = []
    for stage in found.stages.values():
        users = found.users[stage.id]
        roles = dict.fromkeys(role for record in users for role, name in record.stages.items() if name == stage.id)
        speed = stage.tokens / stage.seconds if stage.tokens and stage.seconds else None
        how, others = state(stage, found)
        words = "not in the store" if how == "unknown" else how
        words += f", found by {others}" if how == "built" and others else ""
        rows.append(
            [
                Cell(stage.id),
                Cell(", ".join(roles)),
                Cell(words),
                Cell(str(len(users)), len(users)),
                Cell(clock(stage.seconds), stage.seconds),
                Cell(count(stage.tokens), stage.tokens),
                Cell(count(speed), speed),
                Cell(when(stage.provenance.get("started"))),
            ]
        )
    columns = ["stage", "role", "state", "rows", "time", "tokens", "tokens/s", "started"]
    caption = "Stages: built by the process that evaluated, or found in the store"
    table = Grid(caption=caption, columns=columns, rows=rows)
    return table if len(rows) <= FEW else Folded(f"All {len(rows)} stages", [table])


# --- settings and provenance -----------------------------------------------------------------------------------------


def chosen(found: Gathered) -> Grid:
    """The options of each group, once where they are the same."""
    arms = found.arms or found.starts
    groups = list(dict.fromkeys(group for arm in arms for group in arm.first.choices))
    rows = [
        [Cell(group), Cell(", ".join(dict.fromkeys(str(arm.first.choices.get(group) or "-") for arm in arms)))]
        for group in groups
    ]
    more = [[Cell("seed"), Cell(", ".join(map(str, found.seeds)))]]
    rounds = sorted({record.rounds for arm in arms for record in arm.records.values()})
    more.append([Cell("rounds"), Cell(", ".join(map(str, rounds)))])
    return Grid(caption="Options by group", columns=["group", "option"], rows=rows + more)


def configs(found: Gathered) -> list[Block]:
    """Settings that differ between arms, and all of them on demand."""
    arms = (found.arms or found.starts)[:MOST_ARMS]
    wholes = [{**arm.first.config, "rounds": arm.first.rounds} for arm in arms]
    labels = [arm.label for arm in arms]
    keys = list(dict.fromkeys(key for whole in wholes for key in whole))
    blocks: list[Block] = []
    if len(arms) > 1:
        split = [k for k in differing(wholes) if k.rpartition(".")[2] != "seed"]
        blocks.append(_settings(f"Settings that differ ({len(split)} of {len(keys)})", split, wholes, labels))
    if len(found.arms) > len(arms):
        blocks.append(Text(f"The first {len(arms)} of {len(found.arms)} cells."))
    every = _settings("All settings of the least seed of each cell", sorted(keys), wholes, labels)
    return [*blocks, Folded(f"All {len(keys)} settings", [every])]


def _settings(caption: str, keys: Sequence[str], wholes: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Grid:
    def shown(whole: Mapping[str, Any], key: str) -> Cell:
        if key not in whole:
            return Cell("")
        value = whole[key]
        return Cell(short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 300))

    rows = [[Cell(key), *(shown(whole, key) for whole in wholes)] for key in keys]
    return Grid(caption=caption, columns=["setting", *labels], rows=rows)


def environments(found: Gathered) -> list[tuple[dict[str, Any], list[Stage]]]:
    """What stages were made with, and those that were."""
    known: dict[str, tuple[dict[str, Any], list[Stage]]] = {}
    for stage in found.stages.values():
        if stage.provenance:
            made = {part: stage.provenance.get(part) for part in PARTS}
            known.setdefault(json.dumps(made, sort_keys=True), (made, []))[1].append(stage)
    return list(known.values())


def hardware(found: Gathered) -> str:
    """Processors and cards, in words."""
    words = dict.fromkeys(
        f"{made['gpu']}, " * bool(made["gpu"]) + f"{made['cpu']}, {made['cpu_count']} CPUs"
        for made, _ in environments(found)
    )
    return "; ".join(words) or "unknown: the stages are not in the store"


def when(time: Any) -> str:
    """A time in UTC as it is read.

    Example:
        >>> when("2026-11-21T15:06:40+00:00")
        '2026-11-21 15:06:40 UTC'
    """
    return str(time).replace("T", " ").replace("+00:00", " UTC") if time else "-"


def span(found: Gathered) -> str:
    """When the stages were built."""
    times = [stage.provenance.get(key) for stage in found.stages.values() for key in ("started", "ended")]
    known = sorted(when(time) for time in times if time)
    return f"{known[0]} to {known[-1]}" if known else "unknown: the stages are not in the store"


def provenance(found: Gathered) -> list[Block]:
    """Rows, code, packages, machines."""
    made = environments(found)
    rows = []
    for number, (parts, stages) in enumerate(made, 1):
        packages = parts["packages"] if isinstance(parts["packages"], Mapping) else {}
        dirty = any(stage.provenance.get("dirty") for stage in stages)
        rows.append(
            [
                Cell(f"{number}", number),
                Cell(str(len(stages)), len(stages), ", ".join(stage.id for stage in stages)),
                Cell(str(parts["commit"] or "unknown") + (" (changed)" if dirty else "")),
                Cell(f"python {parts['python']}, " + ", ".join(f"{k} {v}" for k, v in packages.items() if v)),
                Cell(f"{parts['host']}: {parts['gpu'] or 'no GPU'}, {parts['cpu']}, {parts['cpu_count']} CPUs"),
                Cell(str(parts["platform"])),
            ]
        )
    blocks: list[Block] = []
    if rows:
        columns = ["environment", "stages", "commit", "packages", "machine", "platform"]
        blocks.append(Grid(caption="What the stages were made with", columns=columns, rows=rows))
    gone = [stage.id for stage in found.stages.values() if not stage.there]
    if gone:
        names = f"{', '.join(gone[:6])}{', ...' if len(gone) > 6 else ''}"
        said = f"{len(gone)} of {len(found.stages)} stages are not in the store (cleaned up?): {names}."
        blocks.append(Text(said, True))
    versions = {json.dumps(dict(record.versions), sort_keys=True) for record in found.records}
    if len(versions) > 1:
        blocks.append(Text("The rows were made by different versions of the stages' code.", True))
    roles = ("baseline", "evaluation")
    files = [
        [Cell(one.file.name), Cell(str(one.seed), one.seed), *(Cell(one.stages.get(role, "-")) for role in roles)]
        for one in found.records
    ]
    listing = Grid(caption="Result rows", columns=["file", "seed", "warm-up evaluation", "evaluation"], rows=files)
    return [*blocks, Folded(plural(len(files), "result row"), [listing])]
