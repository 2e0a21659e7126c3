"""Single samples to look at: preference pairs, search trees, token paths, answers drawn while training.

Which ones is drawn at random with a fixed seed, the stage's name, so that a page is made again as it was. Files are
read line by line and only the lines that are shown are parsed. What is damaged or gone gives a sentence instead.
"""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ttpa.prompts import TextStream
from ttpa.records import Candidate, Pair, Score
from ttpa.results.report.blocks import Block, Cell, Folded, Grid, PairView, Side, Text, Tree, dash, plural, short
from ttpa.results.report.gather import Gathered
from ttpa.results.report.rows import Stage
from ttpa.results.report.trees import search_tree, token_tree

STAGES = 4
"""Explorations of a page, and policies that drew answers while they trained."""
TREES = 6
"""Trees of an exploration."""
LONGEST = 2000
"""Characters of an answer, a message or a tool list."""
MESSAGES = 3
COLUMNS = ("answer", "text", "reward", "score", "advantage", "exact", "errors", "finish")
"""Of the answers drawn while training, in the order in which they are read."""
_ID = re.compile(r'\{"(?:id|sample_id)":"((?:[^"\\]|\\.)*)"')


class Tokens:
    """Token ids as text, piece by piece, with the tokenizer that a policy was saved with."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; special tokens stand as they are."""
        stream = TextStream(self.tokenizer)
        return [stream.push(token) for token in ids]

    @classmethod
    def of(cls, policy: Stage | None) -> Tokens | None:
        """The tokenizer of a policy's stage; None where it is gone or cannot be read."""
        file = policy.folder / "policy" / "tokenizer" / "tokenizer.json" if policy else None
        if file is None or not file.is_file():
            return None
        try:
            from tokenizers import Tokenizer

            return cls(Tokenizer.from_file(str(file)))
        except Exception:  # the library raises bare Exception for a damaged file
            return None


# --- reading ---------------------------------------------------------------------------------------------------------


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", newline="\n") as rows:
            yield from rows
    except (OSError, UnicodeDecodeError):
        return


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def drawn_lines(file: Path, count: int, seed: str) -> tuple[list[str], int]:
    """Lines drawn at random, in the file's order, and how many there are; one pass, only those kept are held."""
    source, kept, total = random.Random(seed), dict[int, str](), 0
    slots: list[int] = []
    for number, line in enumerate(_lines(file)):
        total += 1
        if len(slots) < count:
            slots.append(number)
            kept[number] = line
        elif (at := source.randrange(total)) < count:
            del kept[slots[at]]
            slots[at] = number
            kept[number] = line
    return [kept[number] for number in sorted(kept)], total


def lines_of(file: Path, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The rows of some ids; others are not parsed."""
    wanted, found = set(ids), dict[str, dict[str, Any]]()
    for line in _lines(file) if wanted else ():
        head = _ID.match(line)
        if head and _text(head[1]) in wanted:
            found.update({str(row.get("id", row.get("sample_id"))): row for row in _parsed([line])})
        if len(found) == len(wanted):
            break
    return found


def _text(inner: str) -> str:
    try:
        return str(json.loads(f'"{inner}"'))
    except ValueError:
        return inner


def samples_of(data: Stage | None, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Questions that were explored, by id."""
    if data is None:
        return {}
    splits = next(_parsed(_lines(data.folder / "splits.json")), {})
    return lines_of(data.folder / str(splits.get("explore", "explore.jsonl")), ids)


def prompt_tail(sample: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The last messages of a prompt as (role, text)."""
    messages = (sample or {}).get("messages")
    found = []
    for message in (messages if isinstance(messages, list) else [])[-MESSAGES:]:
        if isinstance(message, Mapping):
            said = str(message.get("content") or "") or json.dumps(message.get("calls", ""), ensure_ascii=False)
            # The end of a message is what the answer follows.
            found.append((str(message.get("role")), said if len(said) <= LONGEST else "\u2026" + said[-LONGEST:]))
    return found


def _tools(sample: Mapping[str, Any] | None) -> str:
    try:
        return short(", ".join(str(tool["name"]) for tool in json.loads((sample or {})["tools"])), LONGEST)
    except (ValueError, KeyError, TypeError):
        return ""


# --- pairs -----------------------------------------------------------------------------------------------------------


def explorations(found: Gathered) -> list[tuple[Stage, str]]:
    """Explorations to look into, each with the arms that use it: the least seed of each arm, the last round."""
    used: dict[str, list[str]] = {}
    for arm in found.arms:
        for role, name in arm.first.stages.items():
            if role.startswith("explore"):
                used.setdefault(name, []).append(arm.label)
    return [(found.stages[name], "; ".join(labels)) for name, labels in used.items()]


def pairs(found: Gathered, count: int) -> list[Block]:
    """Preference pairs of each exploration."""
    return _each(found, count, _pairs_of)


def trees(found: Gathered, count: int) -> list[Block]:
    """Search trees and token paths of samples of each exploration."""
    return _each(found, count, _trees_of)


def _each(
    found: Gathered, count: int, show: Callable[[Stage, Gathered, int, Tokens | None], list[Block]]
) -> list[Block]:
    known = explorations(found)
    blocks: list[Block] = []
    for stage, labels in known[:STAGES] if count else ():
        if not stage.there:
            blocks.append(Text(f"{stage.id} ({labels}) is not in the store (cleaned up?).", True))
            continue
        shown = show(stage, found, count, Tokens.of(stage.input("policy", found.stages)))
        if shown and len(known) > 1:
            blocks.append(Folded(f"{stage.id}: {short(labels, 120)}", shown))
        else:
            blocks += shown
    if len(known) > STAGES and blocks:
        blocks.append(Text(f"The first {STAGES} of {len(known)} explorations."))
    return blocks


def _pairs_of(stage: Stage, found: Gathered, count: int, tokens: Tokens | None) -> list[Block]:
    lines, total = drawn_lines(stage.folder / "pairs.jsonl", count, stage.id)
    made = []
    for row in _parsed(lines):
        try:
            made.append(Pair.from_json(row))
        except (KeyError, TypeError, ValueError, IndexError):
            continue
    if not total:
        return [Text(f"{stage.id} gave no pairs.")]
    samples = samples_of(stage.input("data", found.stages), (pair.sample_id for pair in made))
    said = f"{len(made)} of {plural(total, 'pair')}, drawn at random with the seed \u201c{stage.id}\u201d."
    more = "" if tokens else " The tokenizer is not in the store: answers are parted by characters."
    return [Text(said + more), *(pair_view(pair, samples.get(pair.sample_id), tokens) for pair in made)]


def pair_view(pair: Pair, sample: Mapping[str, Any] | None, tokens: Tokens | None) -> PairView:
    """A pair as it is shown."""
    sides = [
        _side("chosen", pair.chosen, pair.chosen_score, pair, tokens),
        _side("rejected", pair.rejected, pair.rejected_score, pair, tokens),
    ]
    names = list(dict.fromkeys([*pair.chosen_score.detail, *pair.rejected_score.detail]))
    rows = [
        [Cell(name), dash(pair.chosen_score.detail.get(name)), dash(pair.rejected_score.detail.get(name))]
        for name in names
    ]
    parts = Grid(caption="Parts of the score", columns=["part", "chosen", "rejected"], rows=rows) if rows else None
    origin = "the target" if pair.chosen.index < 0 else f"candidate {pair.chosen.index}"
    facts = [
        f"margin {pair.margin:.3f}",
        f"{pair.branch} tokens shared",
        f"chosen is {origin}, rejected is candidate {pair.rejected.index}",
    ]
    search = pair.provenance.get("search")
    if isinstance(search, Mapping):
        facts += [f"{key} in the search: {', '.join(map(str, _list(value)))}" for key, value in search.items()]
    target = (sample or {}).get("target_text") or (sample or {}).get("target") or ""
    return PairView(
        sample=pair.sample_id,
        tools=_tools(sample),
        prompt=prompt_tail(sample),
        target=short(str(target), LONGEST),
        sides=sides,
        parts=parts,
        facts=facts,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _side(name: str, answer: Candidate, score: Score, pair: Pair, tokens: Tokens | None) -> Side:
    # A search says where its span ends.
    at, end = pair.branch, (pair.provenance.get("spans") or {}).get(name, 0)
    if tokens is not None and answer.token_ids:
        pieces = tokens(answer.token_ids)
        before, token = "".join(pieces[:at]), "".join(pieces[at : at + 1])
        span, rest = "".join(pieces[at + 1 : end]), "".join(pieces[max(end, at + 1) :])
        token = token if at < len(pieces) else ""
    else:
        both = zip(pair.chosen.text, pair.rejected.text, strict=False)
        same = len(list(takewhile(lambda two: two[0] == two[1], both)))
        before, token, span, rest = answer.text[:same], answer.text[same : same + 1], "", answer.text[same + 1 :]
    parting = (pair.provenance.get("parting") or {}).get(name)
    chance = parting.get("probability") if isinstance(parting, Mapping) else None
    if chance is None and at < len(answer.logps):
        chance = math.exp(answer.logps[at])
    return Side(
        name=name,
        before=before if len(before) <= LONGEST else "\u2026" + before[-LONGEST:],
        token=token,
        span=short(span, LONGEST),
        rest=short(rest, LONGEST),
        probability="" if chance is None else f"{chance:.3f}" if chance >= 0.001 else f"{chance:.1e}",
        score=f"{score.value:.3f}" + (", exact" if score.exact else ""),
        explanation=short(score.explanation, 400),
    )


# --- trees -----------------------------------------------------------------------------------------------------------


def _trees_of(stage: Stage, found: Gathered, count: int, tokens: Tokens | None) -> list[Block]:
    paired, _ = drawn_lines(stage.folder / "pairs.jsonl", count, stage.id)
    ids = list(dict.fromkeys(str(row.get("sample_id")) for row in _parsed(paired)))
    few = min(TREES, count)
    ids = sorted(random.Random(stage.id).sample(ids, min(few, len(ids))))
    rows = lines_of(stage.folder / "candidates.jsonl", ids)
    if not rows:
        lines, _ = drawn_lines(stage.folder / "candidates.jsonl", few, stage.id)
        rows = {str(row.get("id")): row for row in _parsed(lines)}
    samples = samples_of(stage.input("data", found.stages), rows)
    blocks: list[Block] = []
    for name, row in sorted(rows.items(), key=lambda one: (-_size(one[1]), one[0])):
        try:
            tree = _tree(name, row, samples.get(name), tokens)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
            blocks.append(Text(f"The row of sample {name} is damaged.", True))
            continue
        if tree:
            blocks.append(tree)
    if blocks:
        kind = "search trees" if any(isinstance(row.get("tree"), list) for row in rows.values()) else "token paths"
        said = f"{len(blocks)} {kind}, of samples drawn at random with the seed \u201c{stage.id}\u201d."
        blocks.insert(0, Text(said))
    return blocks


def _size(row: Mapping[str, Any]) -> int:
    """Nodes of a tree, or answers where there is none."""
    found = row.get("tree") or row.get("candidates")
    return len(found) if isinstance(found, list) else 0


def _tree(name: str, row: Mapping[str, Any], sample: Mapping[str, Any] | None, tokens: Tokens | None) -> Tree | None:
    answers = [Candidate.from_json(one) for one in row["candidates"]]
    scores = [Score.from_json(one) for one in row["scores"]]
    if isinstance(row.get("tree"), list) and row["tree"]:
        root = search_tree(row["tree"], answers, scores)
    elif tokens is not None and any(one.token_ids for one in answers):
        root = token_tree(answers, scores, tokens)
    else:
        return None
    counts = row.get("counts") or {}
    words = {"generated": "tokens generated"}
    facts = [f"{len(answers)} answers", *(f"{value} {words.get(key, key)}" for key, value in counts.items())]
    return Tree(sample=name, facts=", ".join(facts), prompt=prompt_tail(sample), root=root)


# --- answers drawn while training ------------------------------------------------------------------------------------


def answers(found: Gathered, count: int) -> list[Block]:
    """Answers that online objectives drew while they trained, with rewards: whole groups, drawn at random."""
    blocks: list[Block] = []
    told = 0
    for arm in found.arms:
        stage = found.stages[arm.first.stages[arm.first.last_policy]]
        file = stage.folder / "answers.csv"
        if not count or not file.is_file():
            continue
        told += 1
        if told > STAGES:
            return [*blocks, Text(f"The first {STAGES} policies that drew answers while they trained.")]
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error):
            blocks.append(Text(f"{file.name} of {stage.id} is damaged.", True))
            continue
        groups: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in rows:
            groups.setdefault((str(row.get("step")), str(row.get("sample_id"))), []).append(row)
        kept = set(random.Random(stage.id).sample(list(groups), min(count, len(groups))))
        said = f"{len(kept)} of {plural(len(groups), 'group')}, drawn at random with the seed \u201c{stage.id}\u201d."
        blocks.append(Text(f"{arm.label}: {said}"))
        blocks += [_group(step, sample, groups[step, sample]) for step, sample in groups if (step, sample) in kept]
    return blocks


def _group(step: str, sample: str, rows: Sequence[Mapping[str, str]]) -> Block:
    """The answers to one prompt, with their rewards."""
    columns = [key for key in COLUMNS if key in rows[0]]
    cells = [[_csv_cell(row.get(key)) for key in columns] for row in rows]
    rewards = [cell.value for row in rows if (cell := _csv_cell(row.get("reward"))).value is not None]
    between = f": rewards {min(rewards):.3g} to {max(rewards):.3g}" if rewards else ""
    title = f"step {step}, {sample}"
    return Folded(title + between, [Grid(caption=f"Answers of {title}", columns=columns, rows=cells)])


def _csv_cell(text: str | None) -> Cell:
    try:
        value = float(text or "")
    except ValueError:
        return Cell(short(text or "", LONGEST))
    return Cell(text or "", value) if value == int(value) else Cell(f"{value:.4g}", value)
