"""A weighted sum of scorers that keeps its parts, so that GRPO can normalise each apart (GDPO, 2601.05242)."""

import math
from typing import Literal

from ttpa.errors import ConfigError
from ttpa.explore.scorers.score import Scorer, apply, bounds_of
from ttpa.options import Finite, option
from ttpa.records import Candidate, Sample, Score


@option
class Weighted:
    """value = sum over parts of weight * value of the part."""

    parts: dict[str, Scorer]
    weights: dict[str, Finite]
    normalise: Literal["sum_then_normalise", "normalise_then_sum"]

    def __post_init__(self) -> None:
        if not self.parts or any(not name or "/" in name for name in self.parts):
            problem = "must map names, without a slash, to scorers"
            raise ConfigError.at("parts", self.parts, problem, "See conf/scorer/weighted.yaml")
        if set(self.weights) != set(self.parts):
            problem, remedy = "must give each part a weight", f"The parts are {', '.join(self.parts)}"
            raise ConfigError.at("weights", self.weights, problem, remedy)
        if not any(self.weights.values()):
            raise ConfigError.at("weights", self.weights, "are all 0", "Give one part another weight")

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest sum, each part at its own end."""
        # A negative weight swaps the ends.
        ends = [sorted(self.weights[name] * end for end in bounds_of(part)) for name, part in self.parts.items()]
        return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
        """`detail` holds each part's value under the part's name, and its details under `name/key`. `exact` and the
        explanation are the first part's: scorers agree on what is exact.
        """
        scores = {name: apply(part, sample, candidate, step) for name, part in self.parts.items()}
        detail: dict[str, float] = {}
        for name, score in scores.items():
            detail |= {name: score.value} | {f"{name}/{key}": value for key, value in score.detail.items()}
        first = next(iter(scores.values()))
        value = math.fsum(self.weights[name] * score.value for name, score in scores.items())
        return Score(value=value, exact=first.exact, detail=detail, explanation=first.explanation)
