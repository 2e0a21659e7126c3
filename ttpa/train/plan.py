"""Which rows make up which optimiser step: pure, decided before training, so that a resumed run sees the same steps.

A plan is a list of steps, a step a list of row numbers. Rows of similar length share a step (length buckets), because
padding costs as much as tokens do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ttpa.policy.tree import bucket_by_tokens, bundle
from ttpa.train.settings import AlignRecipe, Warmup, WarmupRecipe

BAND_ORDER = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order; `boundaries` are the step numbers at which a learning-rate schedule ends."""

    steps: tuple[tuple[int, ...], ...]
    boundaries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """What a plan needs to know of each demonstration: tokens of the whole row, tokens of its answer, band, unit.

    Rows of one unit (the turns of a dialogue) share prefixes and stay in one step, so that a token tree can share them.
    """

    lengths: Sequence[int]
    answers: Sequence[int]
    bands: Sequence[str]
    units: Sequence[int]


def _bucketed_epoch(
    rows: Sequence[int], data: Demonstrations, budget: int, rng: random.Random
) -> list[tuple[int, ...]]:
    """One pass over `rows` in batches of at most `budget` padded tokens, in random order of batches."""
    mixed = list(rows)
    rng.shuffle(mixed)
    bundles, costs = bundle(mixed, data.units, data.lengths, data.answers)
    batches = bucket_by_tokens(range(len(bundles)), costs, budget)
    rng.shuffle(batches)
    return [tuple(row for number in batch for row in bundles[number]) for batch in batches]


def _passes(
    rows: Sequence[int],
    data: Demonstrations,
    budget: int,
    steps: int | None,
    epochs: float | None,
    rng: random.Random,
) -> list[tuple[int, ...]]:
    plan = _bucketed_epoch(rows, data, budget, rng)
    wanted = steps if steps is not None else max(1, math.ceil(len(plan) * (epochs or 0)))
    while len(plan) < wanted:
        plan += _bucketed_epoch(rows, data, budget, rng)
    return plan[:wanted]


def plan_warmup(data: Demonstrations, settings: Warmup, recipe: WarmupRecipe, seed: int) -> Plan:
    """The steps of the warm-up.

    Args:
        data: The demonstrations; one without a known band is put with the hard ones.
        settings, recipe: See `Warmup`, `WarmupRecipe`.
        seed: Order of rows and batches.
    """
    rng = random.Random(f"warmup:{seed}")
    lengths, bands = data.lengths, data.bands
    everything = list(range(len(lengths)))
    if settings.order == "shuffled":
        steps = _passes(everything, data, recipe.batch_tokens, recipe.steps, recipe.epochs, rng)
        return Plan(tuple(steps), (len(steps),))
    groups = {
        band: [i for i in everything if (bands[i] if bands[i] in BAND_ORDER else "hard") == band] for band in BAND_ORDER
    }
    total, seen = sum(lengths), 0
    plan: list[tuple[int, ...]] = []
    boundaries: list[int] = []
    earlier: list[int] = []
    for band in BAND_ORDER:
        rows = groups[band]
        if not rows:
            continue
        replayed = rng.sample(earlier, min(len(earlier), round(settings.replay * len(rows))))
        seen += sum(lengths[i] for i in rows)
        steps_here = None if recipe.steps is None else max(1, round(recipe.steps * seen / total) - len(plan))
        plan += _passes([*rows, *replayed], data, recipe.batch_tokens, steps_here, recipe.epochs, rng)
        boundaries.append(len(plan))
        earlier += rows
    return Plan(tuple(plan), tuple(boundaries))


def plan_alignment(count: int, settings: AlignRecipe, seed: int) -> Plan:
    """The steps of the align stage: shuffled passes over `count` pairs or answers, `batch_size` a step."""
    rng = random.Random(f"align:{seed}")
    size = min(settings.batch_size, count)
    wanted = settings.steps if settings.steps is not None else max(1, math.ceil(count * (settings.epochs or 0) / size))
    queue: list[int] = []
    steps: list[tuple[int, ...]] = []
    while len(steps) < wanted:
        if len(queue) < size:
            fresh = list(range(count))
            rng.shuffle(fresh)
            # A row is not drawn twice into one step: what fills the step leaves out those that already wait in it.
            waiting = set(queue)
            first = [row for row in fresh if row not in waiting][: size - len(queue)]
            used = set(first)
            queue += first + [row for row in fresh if row not in used]
        steps.append(tuple(queue[:size]))
        queue = queue[size:]
    return Plan(tuple(steps), (len(steps),))
