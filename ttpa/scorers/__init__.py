"""Scorers: what one candidate answer to one sample is worth, in [0, 1].

A scorer is any object with the call below; the Hydra option names the class and there is no registry. Scorers know
nothing of policies, samplers or prompts. The classification into the six errors lives in `ttpa.scorers.six_errors`
(module and function share a name, so the function is imported from there and not re-exported here).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ttpa.records import Candidate, Sample, Score
from ttpa.scorers.ast_match import ASTMatch
from ttpa.scorers.esm import ESM
from ttpa.scorers.six_errors import LABELS, SIX, explain, find_errors, primary_error

__all__ = ["ESM", "LABELS", "SIX", "ASTMatch", "Scorer", "explain", "find_errors", "primary_error"]


@runtime_checkable
class Scorer(Protocol):
    """A pure function from (sample, candidate) to a score; never raises on what a model wrote."""

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """Scores one candidate.

        Args:
            sample: the prompt with its tools and its target.
            candidate: the answer; `calls` is None when the text does not parse.

        Returns:
            A score whose `value` lies in [0, 1] and whose `exact` says whether the calls equal the target's.
        """
        ...
