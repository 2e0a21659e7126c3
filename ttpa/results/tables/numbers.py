"""The statistics of a table: mean and interval over seeds, paired differences, correction for many comparisons.

Over seeds: mean and Student-t interval, t quantiles from the closed form for whole degrees of freedom (Abramowitz and
Stegun 1972, 26.7.3 and 26.7.4). Between rows: the same samples under the same seeds, differences summed by dialogue,
interval by bootstrap and p by random sign flips of whole dialogues (Edgington 1969), Holm's correction (1979) over the
differences of the table. That says how far the questions asked decide the difference, and nothing about seeds that
were not run; the t interval over the seeds' own differences stands beside it. The bootstrap is that of
`ttpa.results.stats` with the draws of one table made once. Nothing here reads a file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ttpa.errors import DataError

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval. `kind`: "t" over seeds, "bootstrap" of one evaluation, "" without an interval. `cut`:
    the interval is shortened to the range that the number can have.
    """

    value: float
    low: float | None = None
    high: float | None = None
    kind: str = ""
    n: int = 1
    cut: bool = False

    def within(self, least: float, most: float) -> Estimate:
        """The same with its interval shortened to a range.

        Example:
            >>> found = Estimate(value=0.9, low=0.7, high=1.1).within(0, 1)
            >>> found.low, found.high, found.cut
            (0.7, 1, True)
        """
        if self.low is None or self.high is None or (self.low >= least and self.high <= most):
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most), cut=True)

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit; bounds keep their order under a negative factor."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        if factor < 0:
            low, high = high, low
        return replace(self, value=self.value * factor, low=low, high=high)


def t_probability(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution with a whole number of degrees of freedom.

    Example:
        >>> round(t_probability(1.0, 1), 12)  # Cauchy: 2/pi arctan(1)
        0.5
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (power - 1) / power
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, by bisection to the last bit.

    Example:
        >>> round(t_quantile(0.95, 2), 4)
        4.3027
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return high


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95 % Student-t interval.

    Example:
        >>> found = over_seeds([1.0, 2.0, 3.0])  # 2 +- 4.3027 * 1 / sqrt(3)
        >>> round(found.low, 3), found.value, round(found.high, 3)
        (-0.484, 2.0, 4.484)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value=mean, n=len(values))
    half = t_quantile(LEVEL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half, kind="t", n=len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A paired difference. `seeds` is the Student-t interval of the seeds' own differences."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    samples: int
    seeds: Estimate


def paired_samples(
    a: Mapping[tuple[int, str], float],
    b: Mapping[tuple[int, str], float],
    clusters: Mapping[tuple[int, str], Hashable],
) -> Paired:
    """Difference a - b over the same (seed, sample id), dialogues as clusters.

    Raises:
        DataError: the two do not hold the same samples.
    """
    if a.keys() != b.keys():
        raise DataError(f"{len(a.keys() ^ b.keys())} samples are in one run only. Compare runs over the same samples.")
    numbers: dict[Hashable, int] = {}
    ids = sorted(a)
    index = np.array([numbers.setdefault(clusters[at], len(numbers)) for at in ids])
    gaps = np.array([a[at] - b[at] for at in ids])
    by_cluster: dict[Hashable, float] = {}
    by_seed: dict[int, list[float]] = {}
    for at in a:
        by_cluster[clusters[at]] = by_cluster.get(clusters[at], 0.0) + a[at] - b[at]
        by_seed.setdefault(at[0], []).append(a[at] - b[at])
    value = float(gaps.mean())
    low = high = p = None
    if len(numbers) > 1:
        # The mean is taken off first: what is left is small, so equal values give an interval of no width to the bit.
        sums = np.bincount(index, weights=gaps - value)
        drawn = draws(len(numbers))
        means = value + (drawn @ sums) / (drawn @ np.bincount(index))
        low, high = map(float, np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        p = sign_flips(list(by_cluster.values()))
    seeds = over_seeds([statistics.fmean(part) for part in by_seed.values()])
    return Paired(value=value, low=low, high=high, p=p, samples=len(a), seeds=seeds)


@lru_cache(maxsize=4)
def draws(size: int) -> NDArray[np.float64]:
    """How often each bootstrap draw takes each of `size` clusters, shape [resamples, size]."""
    drawn = np.random.default_rng(0).integers(0, size, size=(RESAMPLES, size))
    drawn += np.arange(RESAMPLES)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * size).reshape(RESAMPLES, size).astype(np.float64)


def paired_means(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Difference a - b of the same seeds: paired t interval and test; neither with one seed.

    Without p, too, where the seeds differ by the same amount: a spread of 0 over two or three seeds is no measurement.
    """
    found = over_seeds([x - y for x, y in zip(a, b, strict=True)])
    p = None
    if found.low is not None and found.high is not None:
        half = (found.high - found.low) / 2
        if not no_width(found):
            # t = mean / standard error, and the interval's half width is quantile times standard error.
            t = abs(found.value) / half * t_quantile(LEVEL, found.n - 1)
            p = 1 - t_probability(t, found.n - 1)
    return Paired(value=found.value, low=found.low, high=found.high, p=p, samples=0, seeds=found)


def no_width(found: Estimate) -> bool:
    """Whether all values of an estimate over seeds are the same but for rounding."""
    return (
        found.low is not None and found.high is not None and found.high - found.low <= 1e-9 * max(1, abs(found.value))
    )


def sign_flips(sums: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the hypothesis that each cluster's difference is as likely as its negative.

    Never 0: the data themselves are one of the arrangements counted.
    """
    array = np.asarray([value for value in sums if value], dtype=np.float64)
    if not len(array):
        return 1.0
    rng = np.random.default_rng(seed)
    hits, block = 0, max(1, (1 << 20) // len(array))
    bound = abs(array.sum()) * (1 - 1e-12)  # sums of the same numbers in another order
    for start in range(0, FLIPS, block):
        signs = rng.integers(0, 2, size=(min(block, FLIPS - start), len(array)), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ array) >= bound).sum())
    return (1 + hits) / (1 + FLIPS)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p values, in the given order; None stays None.

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    worst = 0.0
    for rank, (p, at) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[at] = worst
    return adjusted
