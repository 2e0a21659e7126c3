"""Which samples a round explores: all of them, or those whose target surprises the policy most.

iTool (arXiv 2501.09766) ranks samples by the perplexity of the target, exp(mean negative log-likelihood of a token).
The paper keeps the top 10 %; its code keeps the top 30 % of the samples with and of those without a call, apart.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import ClassVar

from ttpa.errors import DataError
from ttpa.options import Count, Share, option
from ttpa.records import Sample

Likelihoods = Mapping[str, tuple[float, int]]
"""Sample id -> (summed negative log-likelihood of the target, number of its tokens)."""


@option
class SelectAll:
    """Every sample, or the first `limit` of them."""

    needs_policy: ClassVar[bool] = False

    limit: Count | None

    def select(self, samples: Sequence[Sample], nlls: Likelihoods | None = None) -> list[Sample]:
        return list(samples[: self.limit])


@option
class SelectPerplexity:
    """The samples of highest perplexity."""

    needs_policy: ClassVar[bool] = True

    keep_fraction: Share
    per_kind: bool
    limit: Count | None

    def select(self, samples: Sequence[Sample], nlls: Likelihoods | None) -> list[Sample]:
        """The kept samples, in their original order; equal perplexities are ranked by id."""
        # The mean orders samples as its exponential does, and cannot overflow.
        means = [_mean_nll(sample, nlls or {}) for sample in samples]
        order = sorted(range(len(samples)), key=lambda at: (-means[at], samples[at].id))
        kept: list[int] = []
        for kind in ("call", "text") if self.per_kind else (None,):
            group = [at for at in order if kind in (None, samples[at].kind)]
            # Exact decimals: 0.07 * 100 is above 7 in floats and would round up to 8.
            kept += group[: math.ceil(Fraction(str(self.keep_fraction)) * len(group))]
        kept = sorted(kept, key=lambda at: (-means[at], samples[at].id))[: self.limit]
        return [samples[at] for at in sorted(kept)]


def _mean_nll(sample: Sample, nlls: Likelihoods) -> float:
    nll_sum, tokens = nlls.get(sample.id, (math.nan, 0))
    if tokens < 1 or math.isnan(nll_sum):
        raise DataError(
            f"sample {sample.id}: a target of {tokens} tokens with summed negative log-likelihood {nll_sum} has no "
            "perplexity. Check that the target is not empty and was given to the policy."
        )
    return nll_sum / tokens
