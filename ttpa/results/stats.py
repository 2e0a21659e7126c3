"""The statistics of every table and screen. Samples of one dialogue are not independent: dialogues are resampled whole
(Efron and Tibshirani 1993, chapter 13, percentile method) and their signs are flipped together (Edgington 1969).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ttpa.errors import DataError
from ttpa.io import read_jsonl

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
FLIPS = 10_000
K = TypeVar("K", str, tuple[int, str])
_BLOCK = 1 << 20  # random numbers held in memory at a time


def bootstrap_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float, float]:
    """(mean, low, high) of the values, one a sample, with a percentile interval from a bootstrap over their clusters:
    NaN without values; low and high NaN with a single cluster. A value that is not finite is a DataError.
    """
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(f"value {bad[0]} is {array[bad[0]]}. Leave samples without a result out, or score them 0.")
    if not len(array):
        return np.nan, np.nan, np.nan
    mean = float(array.mean())
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    if len(numbers) == 1:
        return mean, np.nan, np.nan
    # The mean is taken off first: equal values then give an interval of exactly no width.
    sums, counts = np.bincount(index, weights=array - mean), np.bincount(index)
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(sums), size=len(sums)) for _ in range(RESAMPLES))
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in draws]
    low, high = np.quantile(mean + np.array(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, float(low), float(high)


def paired_difference(
    a: Mapping[K, float], b: Mapping[K, float], clusters: Mapping[K, Hashable]
) -> tuple[float, float, float]:
    """`bootstrap_interval` of a - b over the same samples (key -> value; keys can be sorted). Samples that only one of
    the two has are a DataError.
    """
    odd = sorted(a.keys() ^ b.keys())
    if odd:
        raise DataError(f"{len(odd)} samples are in one run only, first {odd[0]}. Compare runs over the same samples.")
    ids = sorted(a)
    return bootstrap_interval([a[one] - b[one] for one in ids], [clusters[one] for one in ids])


def exact_by_id(evaluation: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Of an evaluation's folder: sample id -> 1.0 if the answer was right, and -> its cluster; seen tools only."""
    rows = [row for row in read_jsonl(evaluation / "rows.jsonl") if "unseen_tool" not in row["tags"]]
    return {row["id"]: float(row["exact"]) for row in rows}, {row["id"]: row["cluster"] for row in rows}


def share(rows: Sequence[Mapping[str, Any]], holds: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Share of judged answers for which something holds: `{value, low, high, n}`, None where a number is unknown. Where
    the bootstrap has no width (all are right, all wrong), the interval is Wilson's over dialogues.
    """
    clusters = [row["cluster"] for row in rows]
    value, low, high = bootstrap_interval([float(holds(row)) for row in rows], clusters)
    if low == high:
        low, high = wilson_interval(value, len(set(clusters)))
    known = (None if math.isnan(one) else one for one in (value, low, high))
    return {**dict(zip(("value", "low", "high"), known, strict=True)), "n": len(rows)}


def wilson_interval(value: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of n independent answers. 0 of 200 gives 0 to 0.0188."""
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle, half = value + z * z / (2 * n), z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return max(0.0, min(value, low)), min(1.0, max(value, high))  # a rounding error must not leave the value out


def share_text(entry: Mapping[str, Any] | None, digits: int, *, interval: bool = True) -> str:
    """A `share` as text, a dash where there was nothing to measure."""
    if not entry or entry["value"] is None:
        return "-"
    low, high = entry.get("low"), entry.get("high")  # a total of several parts has no interval
    spread = f" [{low:.{digits}f}, {high:.{digits}f}]" if interval and low is not None else ""
    return f"{entry['value']:.{digits}f}{spread}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval. `kind` is "t" for one over seeds, "bootstrap" or "wilson" for one over
    dialogues, "" without one; `n` counts seeds or samples; `cut`: see `of_share`. `deviation` is the standard deviation
    over seeds that a t interval comes from, and `freedom` its degrees of freedom.
    """

    value: float
    low: float | None = None
    high: float | None = None
    kind: str = ""
    n: int = 1
    cut: bool = False
    deviation: float | None = None
    freedom: int = 0

    def of_share(self) -> Estimate:
        """The same with its interval cut to that of a share, from 0 to 1."""
        if self.low is None or self.high is None or (self.low >= 0 and self.high <= 1):
            return self
        return replace(self, low=max(self.low, 0.0), high=min(self.high, 1.0), cut=True)

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, high = sorted(end * factor for end in (self.low, self.high) if end is not None) or (None, None)
        deviation = None if self.deviation is None else abs(factor) * self.deviation
        return replace(self, value=self.value * factor, low=low, high=high, deviation=deviation)

    @property
    def has_no_width(self) -> bool:
        """Whether the values behind the interval are all the same but for rounding."""
        return self.low is not None and self.high is not None and self.high - self.low <= 1e-9 * max(1, abs(self.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A mean difference, its two-sided p (None where there is none), and the t interval of the seeds' differences."""

    mean: Estimate
    p: float | None
    seeds: Estimate


def over_seeds(values: Sequence[float], first: int | None = None) -> Estimate:
    """Mean and 95 % Student-t interval. Where the spread of the `first` values decided how many more there are, the
    interval is Stein's (1945): mean of all, deviation and degrees of freedom of the first. It is exact for normal
    values, because the mean of all does not depend on that deviation.
    """
    mean, n, freedom = statistics.fmean(values), len(values), (len(values) if first is None else first) - 1
    if freedom < 1:
        return Estimate(value=mean, n=n)
    deviation = statistics.stdev(values[: freedom + 1])
    half = _quantile(freedom) * deviation / math.sqrt(n)
    return Estimate(value=mean, low=mean - half, high=mean + half, kind="t", n=n, deviation=deviation, freedom=freedom)


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def seeds_for_width(found: Estimate, width: float) -> int:
    """How many values Stein's interval (see `over_seeds`) needs to be no wider than `width` from end to end, given the
    t interval of the first ones; never fewer than those.
    """
    half = _quantile(found.freedom) * (found.deviation or 0)
    return max(found.freedom + 1, math.ceil((2 * half / width) ** 2 * (1 - 1e-12)))


def seeds_for_power(found: Estimate, difference: float) -> int | None:
    """The smallest number of seeds with which a two-sided paired t test at 5 % finds a true difference of that size
    with probability 0.8, if the seeds' differences have the deviation found. None with fewer than three seeds, or
    where all differ by the same amount: then nothing is known of the spread.
    """
    from scipy.special import nctdtr

    if found.freedom < 2 or found.has_no_width or not found.deviation:
        return None
    effect = difference / found.deviation

    def power(n: int) -> float:
        bound, shift = _quantile(n - 1), effect * math.sqrt(n)
        return float(1 - nctdtr(n - 1, shift, bound) + nctdtr(n - 1, shift, -bound))

    low, high = 1, 2  # low is too few
    while power(high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def share_over_seeds(found: Sequence[Estimate], first: int | None = None) -> Estimate:
    """A share of one seed as it is; of several the mean and its t interval within 0 and 1. Where all seeds have the
    same share, that interval has no width, and the first seed's own is given.
    """
    if len(found) == 1:
        return found[0]
    mean = over_seeds([one.value for one in found], first)
    if mean.has_no_width:
        return replace(found[0], n=mean.n)
    return mean.of_share()


def paired_samples(
    a: Mapping[tuple[int, str], float],
    b: Mapping[tuple[int, str], float],
    clusters: Mapping[tuple[int, str], Hashable],
    first: int | None = None,
) -> PairedTest:
    """Difference a - b over the same (seed, sample id), with dialogues as clusters, by `paired_difference`. `first`:
    see `over_seeds`; seeds count in the order in which they come.
    """
    value, low, high = paired_difference(a, b, clusters)
    by_cluster: defaultdict[Hashable, float] = defaultdict(float)
    by_seed: defaultdict[int, list[float]] = defaultdict(list)
    for at in a:
        by_cluster[clusters[at]] += a[at] - b[at]
        by_seed[at[0]].append(a[at] - b[at])
    seeds = over_seeds([statistics.fmean(part) for part in by_seed.values()], first)
    if math.isnan(low):
        return PairedTest(mean=Estimate(value=value, n=len(a)), p=None, seeds=seeds)
    mean = Estimate(value=value, low=low, high=high, kind="bootstrap", n=len(a))
    return PairedTest(mean=mean, p=sign_flips(list(by_cluster.values())), seeds=seeds)


def paired_means(a: Sequence[float], b: Sequence[float], first: int | None = None) -> PairedTest:
    """Difference a - b of the same seeds with its t interval and test (`first`: see `over_seeds`). There is no p with
    one seed, and none where all seeds differ by the same amount: that is no measure of a spread.
    """
    from scipy.special import stdtr

    gaps = [x - y for x, y in zip(a, b, strict=True)]
    mean, p = over_seeds(gaps, first), None
    if mean.deviation and not mean.has_no_width:
        p = 2 * float(stdtr(mean.freedom, -abs(mean.value / (mean.deviation / math.sqrt(mean.n)))))
    return PairedTest(mean=mean, p=p, seeds=mean)


def sign_flips(sums: Sequence[float]) -> float:
    """Two-sided p of the hypothesis that each cluster's difference is as likely as its negative, from random flips. It
    is never 0: the data themselves are one of the arrangements counted.
    """
    array = np.asarray([value for value in sums if value], dtype=np.float64)
    if not len(array):
        return 1.0
    rng, hits, rows = np.random.default_rng(0), 0, max(1, _BLOCK // len(array))
    bound = abs(array.sum()) * (1 - 1e-12)  # the same numbers in another order have another rounding
    for start in range(0, FLIPS, rows):
        signs = rng.integers(0, 2, size=(min(rows, FLIPS - start), len(array)), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ array) >= bound).sum())
    return (1 + hits) / (1 + FLIPS)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p values (1979), in the given order; None stays None."""
    known = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    worst = 0.0
    for rank, (p, at) in enumerate(known):
        worst = adjusted[at] = max(worst, min(1.0, (len(known) - rank) * p))
    return adjusted
