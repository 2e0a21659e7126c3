"""Which examples make up which optimiser step, and how a step is cut into micro-batches. Pure; imports no torch.

A plan follows from the seed alone and is made before training, so that a resumed run sees the same steps.
"""

import math
import random
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ttpa.policy.tree import TokenRow, bucket_by_tokens, pack
from ttpa.train.settings import AlignRecipe, Warmup, WarmupRecipe


@dataclass(frozen=True, slots=True)
class Example:
    """What is learned from at once: one sequence (in rows that share their beginning, where parts of it are masked), or
    the two of a pair.
    """

    rows: tuple[TokenRow, ...]
    weight: float  # in its step: tokens, for NLL losses
    unit: Hashable  # a dialogue or a group of answers: they share prefixes and stay together


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step on one rank, in micro-batches; sums over the step are divided by its weight or examples."""

    micros: tuple[tuple[Example, ...], ...]
    weight: float  # of all ranks
    examples: int  # of all ranks
    tokens: int  # of this rank


@dataclass(frozen=True, slots=True)
class Plan:
    """The examples of each step, in order."""

    steps: tuple[tuple[Example, ...], ...]
    boundaries: tuple[int, ...]  # step numbers at which a learning-rate schedule ends


def trained_rows(
    row: TokenRow, parts: Sequence[tuple[str, Sequence[int]]], train_on: Collection[str], with_prompt: bool
) -> tuple[TokenRow, ...]:
    """A row for each run of parts of the answer that are trained, behind all that stands before the run; none where no
    part is. `with_prompt`: the prompt is trained, too, so it has a row of its own where the answer begins without loss.
    """
    found, start = list[TokenRow](), 0
    for trained, run in groupby(parts, lambda part: part[0] in train_on):
        stop = start + sum(len(ids) for _, ids in run)
        if trained:
            found.append(TokenRow((*row.prompt, *row.answer[:start]), row.answer[start:stop]))
        start = stop
    lead = [TokenRow(row.prompt, ())] if with_prompt and found and len(found[0].prompt) > len(row.prompt) else []
    return (*lead, *found)


def _by_unit(examples: Sequence[Example]) -> list[list[Example]]:
    found: dict[Hashable, list[Example]] = {}
    for example in examples:
        found.setdefault(example.unit, []).append(example)
    return list(found.values())


def _shared_tokens(bundle: Sequence[Example]) -> int:
    """Tokens when shared prefixes count once: the longest row and the answers of the others, an upper bound."""
    rows = [row for example in bundle for row in example.rows]
    return len(max(rows, key=len).prompt) + sum(len(row.answer) for row in rows)


def cut_step(examples: Sequence[Example], budget: int, trees: bool, rank: int = 0, world: int = 1) -> Step:
    """The share of a step that belongs to one rank, in micro-batches of at most `budget` tokens where units allow it.

    With `trees` prefixes are computed once: units stay whole and are packed. Else rows are padded side by side. Every
    rank gets as many micro-batches.
    """
    if trees:
        bundles = _by_unit(examples)
        costs = list(map(_shared_tokens, bundles))
    else:
        bundles = [[example] for example in examples]
        costs = [len(example.rows) * max(map(len, example.rows)) for example in examples]
    shares = [range(start, len(bundles), world) for start in range(world)]
    if trees:
        cuts = [[[share[k] for k in batch] for batch in pack([costs[k] for k in share], budget)] for share in shares]
    else:
        cuts = [bucket_by_tokens(share, costs, budget) for share in shares]
    micros = [tuple(example for k in batch for example in bundles[k]) for batch in cuts[rank]]
    micros += [()] * (max(map(len, cuts)) - len(micros))
    tokens = sum(len(row) for micro in micros for example in micro for row in example.rows)
    return Step(tuple(micros), sum(example.weight for example in examples), len(examples), tokens)


def _passes(examples: Sequence[Example], recipe: WarmupRecipe, steps: int | None, rng: random.Random) -> Any:
    """Passes in steps of at most `batch_tokens` padded tokens, of examples of similar length, in random order."""
    plan, wanted = list[tuple[Example, ...]](), steps
    while wanted is None or len(plan) < wanted:
        mixed = list(examples)
        rng.shuffle(mixed)
        bundles = _by_unit(mixed)
        batches = bucket_by_tokens(range(len(bundles)), list(map(_shared_tokens, bundles)), recipe.batch_tokens)
        rng.shuffle(batches)
        plan += [tuple(example for k in batch for example in bundles[k]) for batch in batches]
        wanted = wanted or max(1, math.ceil(len(plan) * (recipe.epochs or 0)))
    return plan[:wanted]


def plan_warmup(
    examples: Sequence[Example], bands: Sequence[str], settings: Warmup, recipe: WarmupRecipe, seed: int
) -> Plan:
    """The steps of the warm-up on demonstrations. Shuffled is a single band; unknown bands are hard."""
    rng = random.Random(f"warmup:{seed}")
    groups: dict[str, list[Example]] = {"easy": [], "medium": [], "hard": []}
    for example, band in zip(examples, bands, strict=True):
        groups[band if settings.order == "bands" and band in groups else "hard"].append(example)
    total, seen = sum(len(example.rows[-1]) for example in examples), 0
    plan, boundaries, earlier = list[tuple[Example, ...]](), list[int](), list[Example]()
    for group in filter(None, groups.values()):
        replayed = rng.sample(earlier, min(len(earlier), round(settings.replay * len(group))))
        seen += sum(len(example.rows[-1]) for example in group)
        steps = None if recipe.steps is None else max(1, round(recipe.steps * seen / total) - len(plan))
        plan += _passes([*group, *replayed], recipe, steps, rng)
        boundaries.append(len(plan))
        earlier += group
    return Plan(tuple(plan), tuple(boundaries))


def plan_alignment(examples: Sequence[Example], recipe: AlignRecipe, seed: int) -> Plan:
    """The steps of the align stage: shuffled passes over pairs or answers, `batch_size` a step."""
    rng, count = random.Random(f"align:{seed}"), len(examples)
    size = min(recipe.batch_size, count)
    wanted = recipe.steps if recipe.steps is not None else max(1, math.ceil(count * (recipe.epochs or 0) / size))
    queue, steps = list[int](), list[tuple[Example, ...]]()
    while len(steps) < wanted:
        if len(queue) < size:
            fresh = list(range(count))
            rng.shuffle(fresh)
            # An example is not drawn twice into one step: what fills the step leaves out those that wait in it.
            first = [number for number in fresh if number not in queue][: size - len(queue)]
            queue += first + [number for number in fresh if number not in first]
        steps.append(tuple(examples[number] for number in queue[:size]))
        queue = queue[size:]
    return Plan(tuple(steps), (len(steps),))
