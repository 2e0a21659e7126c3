"""Nested spans of answers: the tree that a search grew, or the answers of a sample merged by the tokens they share.

A span without a sibling stands in its parent's chain, so that the page is nested only where there was a choice. In
merged answers a span also ends where the sampler's rule had a choice; what it was offered stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttpa.records import Candidate, Score
from ttpa.results.report.blocks import Span, short

DEEPEST = 40
"""Levels of nesting and cuts on a way; what lies below is one span, or is counted."""
LONGEST = 600
SHOWN = 3
"""Answers named at a leaf."""


def search_tree(rows: Sequence[Mapping[str, Any]], answers: Sequence[Candidate], scores: Sequence[Score]) -> Span:
    """The tree of a search from its rows, parents before children."""
    spans: dict[int, Span] = {}
    depth: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for row in rows:
        number, parent = int(row["id"]), row["parent"]
        spans[number] = Span(
            text=short(str(row["text"]), LONGEST) if parent is not None else "(start of the answer)",
            facts=f"visits {row['visits']} \u00b7 value {row['value']:.3f} \u00b7 prior {row['prior']:.3f}"
            + (" \u00b7 end" if row["terminal"] else ""),
            good=_unit(row["value"]),
        )
        depth[number] = 0 if parent is None else depth[int(parent)] + 1
        if parent is not None:
            children.setdefault(int(parent), []).append(number)
    for row in rows:
        if int(row["id"]) not in children:
            spans[int(row["id"])].note = _named([int(n) for n in row["answers"]], answers, scores)
    for number in sorted(spans, key=lambda one: -depth[one]):
        below = children.get(number, [])
        if depth[number] >= DEEPEST and below:
            spans[number].note = f"{len(below)} spans below are not shown"
        else:
            _attach(spans[number], [spans[child] for child in below])
    return spans[int(rows[0]["id"])]


def token_tree(
    answers: Sequence[Candidate], scores: Sequence[Score], pieces: Callable[[Sequence[int]], list[str]]
) -> Span:
    """Answers merged by the tokens they share, cut where they part and where the sampler had a choice."""
    texts = {one.token_ids: pieces(one.token_ids) for one in answers}
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(answers):
        numbers.setdefault(one.token_ids, []).append(number)
    offered = {
        (one.token_ids[:at], at): options for one in answers for at, options in one.branches if at < len(one.token_ids)
    }

    def grow(group: list[tuple[int, ...]], start: int, level: int) -> Span:
        end = start + 1 if start < min(map(len, group)) else start
        while end < min(map(len, group)) and len({ids[end] for ids in group}) == 1:
            if level < DEEPEST and (group[0][:end], end) in offered:
                break
            end += 1
        first = group[0]
        text = short("".join(texts[first][start:end]), LONGEST)
        span = Span(text=text, facts=_met(group, start, end, numbers, answers, scores))
        done = [ids for ids in group if len(ids) == end]
        rest: dict[int, list[tuple[int, ...]]] = {}
        for ids in group:
            if len(ids) > end:
                rest.setdefault(ids[end], []).append(ids)
        if done:
            span.note = _same([n for ids in done for n in numbers[ids]], scores)
        span.good = _mean([scores[n].value for ids in group for n in numbers[ids]])
        if options := offered.get((first[:end], end)):
            listed = ", ".join(f"{_quoted(pieces([token]))} {chance:.3f}" for token, chance in options)
            span.note = " \u00b7 ".join(filter(None, [span.note, f"choice here: {listed}"]))
        _attach(span, [grow(below, end, level + 1) for below in rest.values()])
        return span

    whole = list(numbers)
    return grow(whole, 0, 0) if len({ids[:1] for ids in whole}) == 1 and whole[0] else _rooted(whole, grow)


def _rooted(whole: list[tuple[int, ...]], grow: Callable[[list[tuple[int, ...]], int, int], Span]) -> Span:
    """Answers that part at once, or are empty, below an empty span."""
    root = Span(text="(start of the answer)", facts=f"{len(whole)} different answers")
    first: dict[int, list[tuple[int, ...]]] = {}
    for ids in whole:
        if ids:
            first.setdefault(ids[0], []).append(ids)
    root.children = [grow(group, 0, 1) for group in first.values()]
    if any(not ids for ids in whole):
        root.note = "an answer is empty"
    return root


def _attach(span: Span, below: list[Span]) -> None:
    """Hangs spans below another: one alone goes on in its chain."""
    if len(below) == 1:
        (only,) = below
        span.chain = [only, *only.chain]
        span.children, only.chain, only.children = only.children, [], []
    else:
        span.children = below


def _met(
    group: Sequence[tuple[int, ...]],
    start: int,
    end: int,
    numbers: Mapping[tuple[int, ...], Sequence[int]],
    answers: Sequence[Candidate],
    scores: Sequence[Score],
) -> str:
    """How many answers go through a span, how probable it is, what they are worth."""
    through = [n for ids in group for n in numbers[ids]]
    logps = answers[through[0]].logps[start:end]
    parts = [f"{len(through)} of {len(answers)} answers"]
    if logps:
        parts.append(f"first token {math.exp(min(0.0, logps[0])):.3f}")
        parts.append(f"span {math.exp(min(0.0, math.fsum(logps))):.3f}")
    mean = _mean([scores[n].value for n in through])
    return " \u00b7 ".join([*parts, f"mean score {mean:.3f}"] if mean is not None else parts)


def _named(numbers: Sequence[int], answers: Sequence[Candidate], scores: Sequence[Score]) -> str:
    """Answers with their scores, in words."""
    known = [number for number in numbers if 0 <= number < min(len(answers), len(scores))]
    words = [
        f"answer {n}, score {scores[n].value:.3f}{' (exact)' if scores[n].exact else ''}: {short(answers[n].text, 240)}"
        for n in known[:SHOWN]
    ]
    return "; ".join(words) + (f"; and {len(known) - SHOWN} more" if len(known) > SHOWN else "")


def _same(numbers: Sequence[int], scores: Sequence[Score]) -> str:
    """Answers of equal tokens, whose text is the way to them."""
    score = scores[numbers[0]]
    listed = ", ".join(map(str, numbers))
    exact = " (exact)" if score.exact else ""
    return f"answer{'s' if len(numbers) > 1 else ''} {listed}: score {score.value:.3f}{exact}"


def _quoted(pieces: Sequence[str]) -> str:
    return f"\u201c{''.join(pieces)}\u201d"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _unit(value: Any) -> float | None:
    return min(1.0, max(0.0, float(value))) if isinstance(value, int | float) else None
