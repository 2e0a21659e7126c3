"""Which samples a round explores: all of them, or those whose reference reply surprises the policy most.

Perplexity of the reference reply, iTool (arXiv 2501.09766, section on complex samples):

    PPL(y | q, T) = (prod_i 1 / P(y_i | q, T, y_<i)) ** (1 / n) = exp(mean negative log-likelihood of a reply token)

The paper keeps the top 10 %; its release keeps the top 30 % of the samples with and of those without a call, apart.
Selection never runs a model: who calls it computes the log-likelihoods if `needs_policy` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from ttpa.errors import ConfigError, DataError
from ttpa.records import Sample

Likelihoods = Mapping[str, tuple[float, int]]


def perplexity(nll_sum: float, tokens: int) -> float:
    """exp(nll_sum / tokens); infinite where that is larger than a float.

    Args:
        nll_sum: summed negative natural-log-likelihood of the reply's tokens, end-of-turn included.
        tokens: number of those tokens.

    Raises:
        DataError: no token, or a sum that is not a number.

    Example:
        >>> round(perplexity(math.log(2) + math.log(8), 2), 9)  # sqrt(2 * 8)
        4.0
    """
    try:
        return math.exp(_mean_nll(nll_sum, tokens))
    except OverflowError:
        return math.inf


@dataclass(frozen=True, kw_only=True)
class SelectAll:
    """Every sample, or the first `limit` of them.

    Raises:
        ConfigError: `limit` below 1.
    """

    needs_policy: ClassVar[bool] = False

    limit: int | None = None

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def select(self, samples: Sequence[Sample], nlls: Likelihoods | None = None) -> list[Sample]:
        """The first `limit` samples; `nlls` is not looked at."""
        return list(samples[: self.limit])


@dataclass(frozen=True, kw_only=True)
class SelectPerplexity:
    """The samples of highest perplexity.

    Args:
        keep_fraction: share of the samples that is kept, in (0, 1], rounded up. 0.1 in the paper, 0.3 in the release.
        per_kind: ranks the samples that want a call and those that want text apart and keeps that share of either, as
            the release does.
        limit: keep at most this many, the highest of those kept; None sets no limit.

    Raises:
        ConfigError: a value outside its range.
    """

    needs_policy: ClassVar[bool] = True

    keep_fraction: float
    per_kind: bool
    limit: int | None = None

    def __post_init__(self) -> None:
        share = self.keep_fraction
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            remedy = "Use 0.1 for the paper's top 10 %"
            raise ConfigError.at("select.keep_fraction", share, "must be in (0, 1]", remedy)
        if not isinstance(self.per_kind, bool):
            raise ConfigError.at("select.per_kind", self.per_kind, "must be true or false", "The release uses true")
        _check_limit(self.limit)

    def select(self, samples: Sequence[Sample], nlls: Likelihoods | None) -> list[Sample]:
        """The kept samples, in their original order; equal perplexities are ranked by id.

        Args:
            samples: the candidates for selection.
            nlls: sample id -> (summed negative log-likelihood of the reference reply, number of its tokens).

        Raises:
            DataError: a sample without log-likelihoods, without a token, or with a sum that is not a number.
        """
        # The mean orders samples as its exponential does, and stays apart where that overflows.
        means = [_of(sample, nlls) for sample in samples]
        order = sorted(range(len(samples)), key=lambda at: (-means[at], samples[at].id))
        groups: dict[str, list[int]] = {}
        for at in order:
            groups.setdefault(samples[at].kind if self.per_kind else "", []).append(at)
        # As the decimal that was written: 0.07 * 100 is above 7 in floats and would round up to 8.
        share = Fraction(str(self.keep_fraction))
        kept = {at for group in groups.values() for at in group[: math.ceil(share * len(group))]}
        if self.limit is not None:
            kept = set([at for at in order if at in kept][: self.limit])
        return [sample for at, sample in enumerate(samples) if at in kept]


def _of(sample: Sample, nlls: Likelihoods | None) -> float:
    if nlls is None or sample.id not in nlls:
        raise DataError(f"sample {sample.id}: no log-likelihood given. Compute it for every sample before selecting.")
    try:
        return _mean_nll(*nlls[sample.id])
    except DataError as error:
        raise DataError(f"sample {sample.id}: {error}") from None


def _mean_nll(nll_sum: float, tokens: int) -> float:
    if tokens < 1 or math.isnan(nll_sum):
        problem = f"perplexity of {tokens} tokens with summed negative log-likelihood {nll_sum} is not defined"
        raise DataError(f"{problem}. Check that the reference reply is not empty and its log-likelihoods are finite.")
    return nll_sum / tokens


def _check_limit(limit: int | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError.at("select.limit", limit, "must be a whole number >= 1", "Use null for no limit")
