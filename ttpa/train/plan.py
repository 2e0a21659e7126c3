"""Which examples make up which optimiser step, and how a step is cut into micro-batches. Pure; imports no torch.

A plan follows from the seed alone and is made before training, so that a resumed run sees the same steps. Examples of
similar length share a step, because padding costs as much as tokens do. This module does not know what a loss is.
"""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ttpa.policy.tree import TokenRow, bucket_by_tokens, pack
from ttpa.train.settings import AlignRecipe, Warmup, WarmupRecipe

BAND_ORDER = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Example:
    """What is learned from at once: one sequence, or the two of a pair.

    `weight` is what it adds to the weight of its step (tokens, for NLL losses). Examples of one `unit` (the turns of a
    dialogue, the answers of a group) share prefixes and stay together.
    """

    rows: tuple[TokenRow, ...]
    weight: float
    unit: Hashable


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step on one rank, in micro-batches, and this rank's real tokens.

    `weight` and `examples` count over the whole step and all ranks: sums are divided by them.
    """

    micros: tuple[tuple[Example, ...], ...]
    weight: float
    examples: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The examples of each step, in order; `boundaries` are the step numbers at which a learning-rate schedule ends."""

    steps: tuple[tuple[Example, ...], ...]
    boundaries: tuple[int, ...]


def by_unit(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples in bundles of one unit each, in the order of their first members."""
    found: dict[Hashable, list[Example]] = {}
    for example in examples:
        found.setdefault(example.unit, []).append(example)
    return list(found.values())


def shared_tokens(bundle: Sequence[Example]) -> int:
    """Tokens when shared prefixes count once: the longest row and the answers of the others, an upper bound."""
    rows = [row for example in bundle for row in example.rows]
    return len(max(rows, key=len).prompt) + sum(len(row.answer) for row in rows)


def cut_step(examples: Sequence[Example], budget: int, trees: bool, rank: int = 0, world: int = 1) -> Step:
    """The share of a step that belongs to one rank, in micro-batches. Every rank gets the same number of them.

    A micro-batch has at most `budget` tokens where it can. With `trees` prefixes are computed once: units stay whole
    and are packed, best fit first. Else rows are padded side by side.
    """
    bundles = by_unit(examples) if trees else [[example] for example in examples]
    costs = [
        shared_tokens(bundle) if trees else len(bundle[0].rows) * max(map(len, bundle[0].rows)) for bundle in bundles
    ]
    cuts = []
    for start in range(world):
        share = range(start, len(bundles), world)
        if trees:
            cuts.append([[share[k] for k in batch] for batch in pack([costs[k] for k in share], budget)])
        else:
            cuts.append(bucket_by_tokens(share, costs, budget))
    micros = [tuple(example for k in batch for example in bundles[k]) for batch in cuts[rank]]
    micros += [()] * (max(map(len, cuts)) - len(micros))
    tokens = sum(len(row) for micro in micros for example in micro for row in example.rows)
    return Step(tuple(micros), sum(example.weight for example in examples), len(examples), tokens)


def _epoch(examples: Sequence[Example], budget: int, rng: random.Random) -> list[tuple[Example, ...]]:
    """One pass in batches of at most `budget` padded tokens, in random order of batches."""
    mixed = list(examples)
    rng.shuffle(mixed)
    bundles = by_unit(mixed)
    batches = bucket_by_tokens(range(len(bundles)), [shared_tokens(bundle) for bundle in bundles], budget)
    rng.shuffle(batches)
    return [tuple(example for k in batch for example in bundles[k]) for batch in batches]


def _passes(examples: Sequence[Example], recipe: WarmupRecipe, steps: int | None, rng: random.Random) -> Any:
    plan = _epoch(examples, recipe.batch_tokens, rng)
    wanted = steps if steps is not None else max(1, math.ceil(len(plan) * (recipe.epochs or 0)))
    while len(plan) < wanted:
        plan += _epoch(examples, recipe.batch_tokens, rng)
    return plan[:wanted]


def plan_warmup(
    examples: Sequence[Example], bands: Sequence[str], settings: Warmup, recipe: WarmupRecipe, seed: int
) -> Plan:
    """The steps of the warm-up on demonstrations of one row each; a band that is not known counts as hard."""
    rng = random.Random(f"warmup:{seed}")
    if settings.order == "shuffled":
        steps = _passes(examples, recipe, recipe.steps, rng)
        return Plan(tuple(steps), (len(steps),))
    groups: dict[str, list[Example]] = {band: [] for band in BAND_ORDER}
    for example, band in zip(examples, bands, strict=True):
        groups[band if band in BAND_ORDER else "hard"].append(example)
    total, seen = sum(len(example.rows[0]) for example in examples), 0
    plan, boundaries, earlier = list[tuple[Example, ...]](), list[int](), list[Example]()
    for group in filter(None, groups.values()):
        replayed = rng.sample(earlier, min(len(earlier), round(settings.replay * len(group))))
        seen += sum(len(example.rows[0]) for example in group)
        steps_here = None if recipe.steps is None else max(1, round(recipe.steps * seen / total) - len(plan))
        plan += _passes([*group, *replayed], recipe, steps_here, rng)
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
