"""Single samples to look at: preference pairs and where they part, search trees, token paths, and the answers that an
online objective drew while it trained.

Which ones is drawn at random with the stage's name as seed, so the same store gives the same page. What is damaged or
gone gives a sentence instead.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ttpa.records import Candidate, Pair, Score
from ttpa.results.report.answers import messages, split_rows, target, tool_names
from ttpa.results.report.page import Folded, Grid, GridCell, Text, View, plural, short
from ttpa.results.report.study import StageFolder, Study, as_mapping, json_lines, json_objects, read_text

STAGES = 4
"""Explorations of a page, and policies that drew answers while they trained."""
TREES = 6
"""Trees of an exploration."""
DEEPEST = 40
"""Levels of a tree; what lies below is one span, or is counted."""
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)

Pieces = Callable[[Sequence[int]], list[str]]
"""Token ids -> what each token adds to the text."""


def pieces_of(policy: StageFolder | None) -> Pieces | None:
    """The tokenizer that a policy was saved with, as a function; None where it is gone or cannot be read."""
    file = policy.path / "policy" / "tokenizer" / "tokenizer.json" if policy else None
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exception for a damaged file
        return None

    def pieces(ids: Sequence[int]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer, token) or "" for token in ids]

    return pieces


def explorations(study: Study, limit: int, show: Callable[[StageFolder, int, Pieces | None], list[Any]]) -> list[Any]:
    """What `show` makes of each exploration: of the least seed of each policy, of every round."""
    used: dict[str, list[str]] = {}
    for arm in study.aligned:
        for name in arm.stages("explore", min(arm.records)):
            used.setdefault(name, []).append(arm.label)
    blocks: list[Any] = []
    for name, labels in list(used.items())[:STAGES] if limit else ():
        stage = study.stages[name]
        if not stage.exists:
            blocks.append(Text(f"{name} ({'; '.join(labels)}) is not in the store (cleaned up?).", True))
        elif shown := show(stage, limit, pieces_of(stage.input("policy"))):
            title = f"Exploration {name}, used by {short('; '.join(labels), 120)}"
            blocks += [Folded(title, shown)] if len(used) > 1 else shown
    if len(used) > STAGES and blocks:
        blocks.append(Text(f"The first {STAGES} of {len(used)} explorations."))
    return blocks


def _drawn(stage: StageFolder, file: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Rows of a stage's file drawn at random, in the file's order, and how many lines it has."""
    lines = (read_text(stage.path / file) or "").splitlines()
    kept = sorted(random.Random(stage.id).sample(range(len(lines)), min(limit, len(lines))))
    return list(json_objects(lines[at] for at in kept)), len(lines)


def _samples(stage: StageFolder, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The samples that were explored, by id."""
    data, wanted = stage.input("data"), set(ids)
    rows = split_rows(data.path, "explore") if data else ()
    return {str(row.get("id")): row for row in rows if str(row.get("id")) in wanted}


def pairs_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Any]:
    """Preference pairs of an exploration."""
    rows, total = _drawn(stage, "pairs.jsonl", limit)
    if not total:
        return [Text(f"{stage.id} gave no pairs.")]
    samples, views = _samples(stage, (str(row.get("sample_id")) for row in rows)), []
    for row in rows:
        try:
            views.append(View(kind="pair", data=pair_view(Pair.from_json(row), samples, pieces)))
        except DAMAGED:
            continue
    said = f"{len(views)} of {plural(total, 'pair')}, drawn at random with a fixed seed."
    more = "" if pieces else " The tokenizer is not in the store: answers are parted by characters."
    return [Text(said + more), *views]


def pair_view(pair: Pair, samples: Mapping[str, Mapping[str, Any]], pieces: Pieces | None) -> dict[str, Any]:
    """A pair as the template shows it. Each side is parted into the text that both share, the token where they part, the
    rest of its span, and what follows.
    """
    sample = samples.get(pair.sample_id)
    shared = takewhile(lambda two: two[0] == two[1], zip(pair.chosen.text, pair.rejected.text, strict=False))
    characters, sides = len(list(shared)), []
    scored = ("chosen", pair.chosen, pair.chosen_score), ("rejected", pair.rejected, pair.rejected_score)
    for name, answer, score in scored:
        if pieces is not None and answer.token_ids:
            cut, at = pieces(answer.token_ids), pair.branch
            end = max(at + 1, int(as_mapping(pair.provenance.get("spans")).get(name, 0)))  # of a search
        else:
            cut, at, end = list(answer.text), characters, 0
        parts = ["".join(part) for part in (cut[:at], cut[at : at + 1], cut[at + 1 : end], cut[max(end, at + 1) :])]
        parting = as_mapping(as_mapping(pair.provenance.get("parting")).get(name))
        logp = answer.logps[pair.branch] if pair.branch < len(answer.logps) else None
        chance = parting.get("probability", None if logp is None else math.exp(logp))
        said = "" if chance is None else f"{chance:.3f}" if chance >= 0.001 else f"{chance:.1e}"
        sides.append({"name": name, "parts": parts, "probability": said, "score": score})
    search = {key: as_text_list(value) for key, value in as_mapping(pair.provenance.get("search")).items()}
    shown = {"prompt": messages(sample)[-3:], "tools": ", ".join(tool_names(sample)), "target": target(sample)}
    return {"pair": pair, "sides": sides, "search": search, **shown}


def as_text_list(value: Any) -> str:
    """A value, or the values of a list, as text."""
    return ", ".join(map(str, value if isinstance(value, list) else [value]))


# --- trees -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Span:
    """Tokens of an answer and what is known of them; `chain` follows without a choice, `children` part behind it.

    `good` is a value in [0, 1] for the bar beside it, None where there is none.
    """

    text: str
    facts: Sequence[str]
    good: float | None = None
    note: str = ""
    chain: list[Span] = field(default_factory=list)
    children: list[Span] = field(default_factory=list)

    def hang(self, below: list[Span]) -> None:
        """Hangs spans below this one: a single one goes on in its chain, so nesting shows choices only."""
        if len(below) == 1:
            (only,) = below
            self.chain = [only, *only.chain]
            self.children, only.chain, only.children = only.children, [], []
        else:
            self.children = below


def trees_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Any]:
    """Search trees, or answers merged by their tokens, of samples of an exploration: with pairs if there are any."""
    ids = {str(row.get("sample_id")) for row in _drawn(stage, "pairs.jsonl", min(TREES, limit))[0]}
    rows = [row for row in json_lines(stage.path / "candidates.jsonl") if str(row.get("id")) in ids]
    rows = rows or _drawn(stage, "candidates.jsonl", min(TREES, limit))[0]
    samples, views = _samples(stage, (str(row.get("id")) for row in rows)), list[Any]()
    for row in rows:
        name = str(row.get("id"))
        try:
            answers, scores = map(Candidate.from_json, row["candidates"]), map(Score.from_json, row["scores"])
            scored = list(zip(answers, scores, strict=True))
            if row.get("tree"):
                root = search_tree(row["tree"], scored)
            elif pieces is not None and any(answer.token_ids for answer, _ in scored):
                root = token_tree(scored, pieces)
            else:
                continue
            counts = [f"{key}: {value}" for key, value in as_mapping(row.get("counts")).items()]
            facts = ", ".join([plural(len(scored), "answer"), *counts])
            shown = {"sample": name, "facts": facts, "prompt": messages(samples.get(name))[-3:], "root": root}
            views.append(View(kind="tree", data=shown))
        except DAMAGED:
            views.append(Text(f"The row of sample {name} is damaged.", True))
    kind = "search trees" if any(row.get("tree") for row in rows) else "token paths"
    return [Text(f"{len(views)} {kind}, drawn at random with a fixed seed."), *views] if views else []


Scored = Sequence[tuple[Candidate, Score]]


def search_tree(nodes: Sequence[Mapping[str, Any]], scored: Scored) -> Span:
    """The tree of a search from its nodes, parents before children."""
    spans: dict[int, Span] = {}
    depth: dict[int | None, int] = {None: -1}
    children: dict[int | None, list[int]] = {}
    for node in nodes:
        at, parent, value = int(node["id"]), node["parent"], float(node["value"])
        facts = [f"visits {node['visits']}", f"value {value:.3f}", f"prior {node['prior']:.3f}"]
        said = "(start of the answer)" if parent is None else short(str(node["text"]), 600)
        spans[at] = Span(text=said, facts=facts + ["end"] * bool(node["terminal"]), good=min(1.0, max(0.0, value)))
        depth[at] = depth[parent] + 1
        children.setdefault(parent, []).append(at)
    for node in reversed(nodes):
        at = int(node["id"])
        below = [spans[child] for child in children.get(at, [])]
        if depth[at] >= DEEPEST and below:
            spans[at].note = f"{plural(len(below), 'span')} below not shown"
            continue
        spans[at].hang(below)
        known = [int(number) for number in node["answers"] if 0 <= int(number) < len(scored)] if not below else []
        words = [f"answer {n}, {_score(scored[n][1])}: {short(scored[n][0].text, 240)}" for n in known[:3]]
        spans[at].note = "; ".join([*words, f"and {len(known) - 3} more"] if known[3:] else words)
    return spans[int(nodes[0]["id"])]


def _score(score: Score) -> str:
    return f"score {score.value:.3f}" + (" (exact)" if score.exact else "")


def token_tree(scored: Scored, pieces: Pieces) -> Span:
    """Answers merged by the tokens they share, cut where they part and where the sampler had a choice."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, (answer, _) in enumerate(scored):
        numbers.setdefault(answer.token_ids, []).append(number)
    texts = {ids: pieces(ids) for ids in numbers}
    offered = {(one.token_ids[:at], at): options for one, _ in scored for at, options in one.branches}

    def grow(group: list[tuple[int, ...]], start: int, level: int) -> Span:
        first, shortest = group[0], min(map(len, group))
        end = min(start + 1, shortest)
        while end < shortest and len({ids[end] for ids in group}) == 1:
            if level < DEEPEST and (first[:end], end) in offered:
                break
            end += 1
        through = [number for ids in group for number in numbers[ids]]
        mean = sum(scored[number][1].value for number in through) / len(through)
        facts = [f"{len(through)} of {len(scored)} answers", f"mean score {mean:.3f}"]
        if logps := scored[through[0]][0].logps[start:end]:
            chances = math.exp(min(0.0, logps[0])), math.exp(min(0.0, math.fsum(logps)))
            facts[1:1] = [f"first token {chances[0]:.3f}", f"span {chances[1]:.3f}"]
        notes = []
        if done := [number for ids in group if len(ids) == end for number in numbers[ids]]:
            notes.append(f"{plural(len(done), 'answer')} ends here: {_score(scored[done[0]][1])}")
        if options := offered.get((first[:end], end), ()):
            listed = [f"\u201c{''.join(pieces([token]))}\u201d {chance:.3f}" for token, chance in options]
            notes.append(f"choice here: {', '.join(listed)}")
        said = short("".join(texts[first][start:end]), 600)
        span = Span(text=said, facts=facts, good=mean, note=" \u00b7 ".join(notes))
        span.hang([grow(part, end, level + 1) for part in parted(group, end)])
        return span

    def parted(group: Iterable[tuple[int, ...]], at: int) -> list[list[tuple[int, ...]]]:
        parts: dict[int, list[tuple[int, ...]]] = {}
        for ids in group:
            if len(ids) > at:
                parts.setdefault(ids[at], []).append(ids)
        return list(parts.values())

    roots = [grow(part, 0, 0) for part in parted(numbers, 0)]
    if len(roots) == 1 and () not in numbers:
        return roots[0]
    note = "an answer is empty" if () in numbers else ""
    return Span(text="(start of the answer)", facts=[f"{len(numbers)} different answers"], note=note, children=roots)


# --- answers drawn while training ------------------------------------------------------------------------------------


def groups_of(study: Study, limit: int) -> list[Any]:
    """Answers that online objectives drew while they trained, with rewards: whole groups, drawn at random."""
    blocks: list[Any] = []
    for number, arm in enumerate(study.arms):
        for name in arm.stages("align", min(arm.records))[-1:] if limit and not arm.warmup else ():
            groups: dict[tuple[str, str], list[dict[str, str]]] = {}
            for row in csv.DictReader(io.StringIO(read_text(study.stages[name].path / "answers.csv") or "")):
                groups.setdefault((str(row.get("step")), str(row.get("sample_id"))), []).append(row)
            if groups:
                kept = set(random.Random(name).sample(list(groups), min(limit, len(groups))))
                parts = [_group(*key, rows) for key, rows in groups.items() if key in kept]
                said = f"{len(kept)} of {plural(len(groups), 'group')}, drawn at random with a fixed seed."
                blocks.append(Folded(f"{arm.label}: {said}", parts, arm=number))
    more = [Text(f"The first {STAGES} policies that drew answers while they trained.")] if blocks[STAGES:] else []
    return blocks[:STAGES] + more


def _group(step: str, sample: str, rows: Sequence[Mapping[str, str]]) -> Folded:
    """The answers to one prompt, with their rewards."""
    columns = [key for key in rows[0] if key not in ("step", "sample_id", None)]
    cells = [[_csv_cell(row.get(key)) for key in columns] for row in rows]
    grid = Grid(caption=f"Answers to {sample} at step {step}", columns=columns, rows=cells)
    return Folded(f"step {step}, {sample}", [grid])


def _csv_cell(text: str | None) -> GridCell:
    try:
        value = float(text or "")
    except ValueError:
        return GridCell(text or "")
    return GridCell(f"{value:.4g}", value) if math.isfinite(value) else GridCell(text or "")
