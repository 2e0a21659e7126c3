"""Intervals for tables: percentile bootstrap over clusters.

Samples cut from one dialogue are not independent, so whole dialogues are drawn (Efron and Tibshirani 1993, chapter 13,
percentile method; clusters with replacement, ratio of sums, so that a long dialogue weighs by its samples). It holds no
significance test and no correction for many comparisons: a table shows the interval of a difference and no star.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl

_BLOCK = 1 << 20  # draws held in memory at a time: 8 MiB of indices


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of the values with a percentile interval from a bootstrap over clusters.

    Args:
        values: one number per sample.
        clusters: the cluster of each sample, in the same order.
        level: probability the interval is meant to cover, in (0, 1).
        resamples: number of bootstrap draws.
        seed: the interval is a function of (values, clusters, level, resamples, seed).

    Returns:
        (mean, low, high). Without values all three are NaN. With a single cluster nothing is known of the spread
        between clusters, and low and high are NaN rather than a width of 0.

    Raises:
        ConfigError: `level` or `resamples` out of range.
        DataError: as many clusters as values are not given, or a value is not finite.

    Example:
        >>> bootstrap_interval([1.0, 1.0, 1.0], ["a", "b", "c"])
        (1.0, 1.0, 1.0)
    """
    _check(level, resamples)
    array = np.asarray(values, dtype=np.float64)
    if len(array) != len(clusters):
        raise DataError(f"{len(array)} values but {len(clusters)} clusters. Give one cluster per value.")
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
    # The mean is taken off first: what is left is small, so equal values give an interval of no width to the bit.
    sums: NDArray[np.float64] = np.bincount(index, weights=array - mean).astype(np.float64)
    means = mean + _resampled(sums, np.bincount(index).astype(np.int64), resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


def exact_by_id(evaluation: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Of a stage's folder: sample id -> 1.0 if the answer was right, and -> its cluster; seen tools only."""
    rows = [row for row in read_jsonl(evaluation / "rows.jsonl") if "unseen_tool" not in row["tags"]]
    return {row["id"]: float(row["exact"]) for row in rows}, {row["id"]: row["cluster"] for row in rows}


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of a - b over the same samples, with an interval; far narrower than two intervals side by side.

    Args:
        a: sample id -> value of the first run.
        b: sample id -> value of the second run; the same ids.
        clusters: sample id -> cluster.
        level: as in `bootstrap_interval`.
        resamples: as in `bootstrap_interval`.
        seed: as in `bootstrap_interval`.

    Returns:
        (mean difference, low, high), with the NaN of `bootstrap_interval`. Independent of the order of the mappings.

    Raises:
        ConfigError: `level` or `resamples` out of range.
        DataError: the runs do not hold the same samples, a sample has no cluster, or a value is not finite.
    """
    odd = sorted(a.keys() ^ b.keys())
    if odd:
        problem = f"{len(odd)} samples are in one run only, first {odd[0]}"
        raise DataError(f"{problem}. Compare runs over the same samples.")
    ids = sorted(a)
    lost = next((sample_id for sample_id in ids if sample_id not in clusters), None)
    if lost is not None:
        raise DataError(f"sample {lost}: no cluster. Give every sample's dialogue id, or its own id.")
    differences = [a[sample_id] - b[sample_id] for sample_id in ids]
    groups = [clusters[sample_id] for sample_id in ids]
    return bootstrap_interval(differences, groups, level=level, resamples=resamples, seed=seed)


def _resampled(sums: NDArray[np.float64], counts: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap means, shape [resamples]: sums and counts are per cluster, shape [clusters]."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    block = max(1, _BLOCK // size)
    means = []
    for start in range(0, resamples, block):
        drawn = rng.integers(0, size, size=(min(block, resamples - start), size))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def share(rows: Sequence[Mapping[str, Any]], holds: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Share of judged answers for which something holds, as plain JSON: `{value, low, high, n}`, clusters resampled;
    None where there is nothing to tell a number from.
    """
    mean, low, high = bootstrap_interval([float(holds(row)) for row in rows], [row["cluster"] for row in rows])
    plain = [None if math.isnan(x) else x for x in (mean, low, high)]
    return {"value": plain[0], "low": plain[1], "high": plain[2], "n": len(rows)}


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ConfigError.at("level", level, "must lie between 0 and 1", "Use 0.95")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise ConfigError.at("resamples", resamples, "must be a whole number >= 1", "Use 2000")
