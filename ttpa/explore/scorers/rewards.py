"""What a scorer is, what a reward is beyond that, and how either is applied to a batch of answers.

A scorer maps an answer to [0, 1] and knows no training step. A reward may leave that range, and may change as training
goes on: it states its `bounds` and takes the step. Both are pure functions with typed options that return the value and
the parts it is made of (`Score.detail`). Policy-gradient training takes either; for what assumes [0, 1] (pair
rules with gates, tree search) `in_unit` moves a reward there.

What this module does not do: advantages and their normalisation (`ttpa.train.policy_gradient`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, cast, runtime_checkable

from ttpa.errors import DataError
from ttpa.records import Candidate, Sample, Score

UNIT = (0.0, 1.0)
TOLERANCE = 1e-9


@runtime_checkable
class Scorer(Protocol):
    """A pure function from (sample, candidate) to a score; never raises on what a model wrote."""

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """Scores one candidate.

        Args:
            sample: the prompt with its tools and its target.
            candidate: the answer; `calls` is None when the text does not parse.

        Returns:
            A score whose `value` lies in [0, 1], or within the `bounds` of a `Reward`, and whose `exact` says whether
            the calls equal the target's.
        """
        ...


@runtime_checkable
class Reward(Scorer, Protocol):
    """A scorer with a range of its own, which may depend on the training step."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value at any step."""
        ...

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
        """Scores one candidate.

        Args:
            sample: as for `Scorer`.
            candidate: as for `Scorer`.
            step: optimiser steps done so far, for schedules.
        """
        ...


def bounds_of(scorer: Scorer) -> tuple[float, float]:
    """The least and the greatest value of a scorer: its `bounds`, or (0, 1) when it states none."""
    low, high = getattr(scorer, "bounds", UNIT)
    return float(low), float(high)


def in_unit(scorer: Scorer, score: Score) -> Score:
    """A score moved from its scorer's bounds to [0, 1], for pair rules and searches; order and parts stay as they are.

    Example:
        >>> from ttpa.explore.scorers import ToolRL
        >>> in_unit(ToolRL(), Score(value=0.5, exact=False)).value  # bounds -3 and 4
        0.5
    """
    low, high = bounds_of(scorer)
    if (low, high) == UNIT:
        return score
    return replace(score, value=min(1.0, max(0.0, (score.value - low) / (high - low))))


def takes_step(scorer: Scorer) -> bool:
    """Whether a scorer wants to know the training step."""
    return "step" in inspect.signature(scorer).parameters


def score_batch(
    scorer: Scorer, samples: Sequence[Sample], candidates: Sequence[Candidate], *, step: int = 0
) -> list[Score]:
    """Scores answers in order and checks what came out.

    Args:
        scorer: any scorer or reward; only those that take a step are told it.
        samples: one for each answer; the answers of a group repeat theirs.
        candidates: the answers.
        step: optimiser steps done so far.

    Returns:
        One score for each answer.

    Raises:
        DataError: unequal lengths; a value that is no finite number or lies outside the scorer's bounds. The scorer is
            code and not model output, so that is a mistake to be mended and not an answer to be passed over.

    Example:
        >>> from ttpa.records import ToolCall
        >>> from ttpa.explore.scorers.ast_match import ASTMatch
        >>> sample = Sample(id="s", tools=(), messages=(), target=(ToolCall(name="f"),), source="toy")
        >>> answers = [Candidate(sample_id="s", index=at, text="", calls=calls) for at, calls in enumerate([(), None])]
        >>> [score.value for score in score_batch(ASTMatch(), [sample, sample], answers)]
        [0.0, 0.0]
    """
    if len(samples) != len(candidates):
        raise DataError(f"{len(samples)} samples for {len(candidates)} answers. Give every answer its sample.")
    low, high = bounds_of(scorer)
    scored = partial(cast(Reward, scorer), step=step) if takes_step(scorer) else scorer
    scores = []
    for sample, candidate in zip(samples, candidates, strict=True):
        score = scored(sample, candidate)
        if not math.isfinite(score.value):
            problem = "which is no finite number"
        elif not low - TOLERANCE <= score.value <= high + TOLERANCE:
            problem = f"outside its bounds [{low:g}, {high:g}]"
        else:
            scores.append(score)
            continue
        raise DataError(
            f"sample {sample.id}: {type(scorer).__name__} gives {score.value} at step {step}, {problem}. "
            "Mend the scorer, or its bounds."
        )
    return scores
