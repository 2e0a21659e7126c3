"""A weighted sum of scorers, which remembers its parts so that they can also be normalised apart (GDPO, 2601.05242).

    value = sum over parts of weight * value of the part

GRPO normalises that sum over a group of answers. GDPO normalises each part over the group first and adds up the
normalised ones: two answers whose sums agree but whose parts do not are then told apart. This can only be done with the
whole group at hand, so here it is a wish and no deed: `normalise` says what is wanted, `Score.detail` holds every
part's raw value under the part's name, and whoever has the group gives both to
`ttpa.train.policy_gradient.decoupled_advantages`.

What this module does not do: normalise anything, or give the trainer its groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from ttpa.errors import ConfigError
from ttpa.explore.scorers.rewards import Reward, Scorer, bounds_of, takes_step
from ttpa.records import Candidate, Sample, Score


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """The sum; see the module header.

    Args:
        parts: name -> scorer or reward.
        weights: name -> weight of that part; negative for what is to be avoided.
        normalise: "sum_then_normalise", or "normalise_then_sum" (GDPO). `value` is the plain sum either way; with the
            second a trainer takes the parts from `detail` and normalises each over its group.

    Raises:
        ConfigError: no parts; a part that is no scorer, or with a name that is empty or holds a slash; weights for
            other names; a weight that is no finite number; weights that are all 0; another `normalise`.

    Example:
        >>> from ttpa.records import ToolCall
        >>> from ttpa.explore.scorers.ast_match import ASTMatch
        >>> parts = {"exact": ASTMatch(), "part": ASTMatch(partial=True)}
        >>> scorer = Weighted(parts=parts, weights={"exact": 1.0, "part": 0.5})
        >>> sample = Sample(id="s", tools=(), messages=(), target=(ToolCall(name="f", arguments={"a": 1}),), source="t")
        >>> call = ToolCall(name="f", arguments={"a": 2})
        >>> score = scorer(sample, Candidate(sample_id="s", index=0, text="", calls=(call,)))
        >>> scorer.bounds, score.value, score.detail["part"], score.detail["part/name"]
        ((0.0, 1.5), 0.15, 0.3, 1.0)
    """

    parts: Mapping[str, Scorer]
    weights: Mapping[str, float]
    normalise: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    _stepped: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping) or not self.parts:
            remedy = "See conf/scorer/weighted.yaml"
            raise ConfigError.at("scorer.parts", self.parts, "must map names to scorers", remedy)
        for name, part in self.parts.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise ConfigError.at("scorer.parts", name, "names a part, in text without a slash", "Use another name")
            if not callable(part):
                raise ConfigError.at(f"scorer.parts.{name}", part, "is no scorer", "Give it a _target_")
        if not isinstance(self.weights, Mapping) or set(self.weights) != set(self.parts):
            problem, remedy = "must give each part a weight", f"The parts are {', '.join(self.parts)}"
            raise ConfigError.at("scorer.weights", self.weights, problem, remedy)
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                remedy = "Use 1 for a plain sum"
                raise ConfigError.at(f"scorer.weights.{name}", weight, "must be a finite number", remedy)
        if not any(self.weights.values()):
            remedy = "Give one part another weight"
            raise ConfigError.at("scorer.weights", dict(self.weights), "are all 0", remedy)
        if self.normalise not in ("sum_then_normalise", "normalise_then_sum"):
            problem = "must be sum_then_normalise or normalise_then_sum"
            raise ConfigError.at("scorer.normalise", self.normalise, problem, "normalise_then_sum is GDPO's")
        # Plain dictionaries in the order of the parts: the sum does not depend on the order of the weights.
        object.__setattr__(self, "parts", dict(self.parts))
        object.__setattr__(self, "weights", {name: float(self.weights[name]) for name in self.parts})
        object.__setattr__(self, "_stepped", frozenset(name for name, part in self.parts.items() if takes_step(part)))

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest sum, each part at its own end."""
        ends = [
            sorted(self.weights[name] * end for end in bounds_of(part))  # a negative weight swaps them
            for name, part in self.parts.items()
        ]
        return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
        """Scores one candidate.

        `detail` holds each part's value under the part's name, and its details under `name/key`. `exact` and the
        explanation are the first part's: scorers agree on what is exact.
        """
        scores = {
            name: cast(Reward, part)(sample, candidate, step=step) if name in self._stepped else part(sample, candidate)
            for name, part in self.parts.items()
        }
        detail: dict[str, float] = {}
        for name, score in scores.items():
            detail[name] = score.value
            detail |= {f"{name}/{key}": value for key, value in score.detail.items()}
        first = next(iter(scores.values()))
        return Score(
            value=math.fsum(self.weights[name] * score.value for name, score in scores.items()),
            exact=first.exact,
            detail=detail,
            explanation=first.explanation,
        )
