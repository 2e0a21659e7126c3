"""What a scorer is, what a reward is beyond that, and how either is applied.

Both are pure functions with typed options. Policy-gradient training takes either; pair rules and searches assume
[0, 1], and `unit_score` moves a reward there.
"""

import inspect
import math
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

from ttpa.errors import DataError
from ttpa.records import Candidate, Sample, Score

TOLERANCE = 1e-9


@runtime_checkable
class Scorer(Protocol):
    """A pure function to a score in [0, 1] (or in a `Reward`'s bounds); never raises on what a model wrote."""

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """Scores one candidate; its `calls` is None when the text does not parse."""
        ...


@runtime_checkable
class Reward(Scorer, Protocol):
    """A scorer with a range of its own, which may depend on the training step."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value at any step."""
        ...

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
        """Scores one candidate. `step` counts the optimiser steps done so far."""
        ...


def bounds_of(scorer: Scorer) -> tuple[float, float]:
    """The least and the greatest value of a scorer: its `bounds`, or (0, 1) when it states none."""
    low, high = getattr(scorer, "bounds", (0.0, 1.0))
    return float(low), float(high)


def takes_step(scorer: Scorer) -> bool:
    """Whether a scorer wants to know the training step."""
    return "step" in inspect.signature(scorer).parameters


def apply(scorer: Scorer, sample: Sample, candidate: Candidate, step: int) -> Score:
    """A scorer's score; only a scorer that takes a step is told it."""
    return cast(Reward, scorer)(sample, candidate, step=step) if takes_step(scorer) else scorer(sample, candidate)


def score_answer(scorer: Scorer, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
    """Scores one answer. A value outside the scorer's bounds is a `DataError`: a scorer is code, no model output."""
    score = apply(scorer, sample, candidate, step)
    low, high = bounds_of(scorer)
    if math.isfinite(score.value) and low - TOLERANCE <= score.value <= high + TOLERANCE:
        return score
    problem = f"outside its bounds [{low:g}, {high:g}]" if math.isfinite(score.value) else "which is no finite number"
    raise DataError(
        f"sample {sample.id}: {type(scorer).__name__} gives {score.value} at step {step}, {problem}. "
        "Mend the scorer, or its bounds."
    )


def unit_score(scorer: Scorer, sample: Sample, candidate: Candidate) -> Score:
    """Like `score_answer` at step 0, with the value moved from the scorer's bounds to [0, 1]; order and parts stay."""
    score = score_answer(scorer, sample, candidate)
    low, high = bounds_of(scorer)
    if (low, high) == (0.0, 1.0):
        return score
    return replace(score, value=min(1.0, max(0.0, (score.value - low) / (high - low))))
