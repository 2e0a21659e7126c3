"""Bootstrap intervals: a plain loop as oracle, textbook widths, coverage, and the cases without an interval."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from ttpa.errors import ConfigError, DataError
from ttpa.results.stats import bootstrap_interval, paired_difference


def test_deterministic_and_seeded() -> None:
    values, clusters = [0.0, 1.1, 1.7, 0.3, 0.2, 0.5, 0.9, 2.0], list("aabbcdef")
    first = bootstrap_interval(values, clusters)
    assert first == bootstrap_interval(values, clusters)
    assert first != bootstrap_interval(values, clusters, seed=1)
    assert first[0] == pytest.approx(6.7 / 8) and first[1] < first[0] < first[2]


def test_against_a_plain_loop() -> None:
    """Draw whole clusters one by one from another generator, pool their values, take the percentiles."""
    rng = np.random.default_rng(7)
    groups = [rng.random(size) + shift for size, shift in zip(range(1, 31), rng.normal(size=30), strict=True)]
    values = [float(value) for group in groups for value in group]
    clusters = [at for at, group in enumerate(groups) for _ in group]
    draws = [np.concatenate([groups[at] for at in rng.integers(0, 30, 30)]).mean() for _ in range(4000)]
    mean, low, high = bootstrap_interval(values, clusters, resamples=4000)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.03)


def test_a_long_cluster_weighs_by_its_samples() -> None:
    """Clusters (0) and (1, 1, 1): a draw of two has mean 0, 3/4 or 1, with probabilities 1/4, 1/2 and 1/4."""
    values, clusters = [0.0, 1.0, 1.0, 1.0], list("abbb")
    assert bootstrap_interval(values, clusters) == pytest.approx((0.75, 0, 1))
    assert bootstrap_interval(values, clusters, level=0.3) == pytest.approx((0.75, 0.75, 0.75))


def test_width_of_a_proportion() -> None:
    """Half of 10,000 independent samples: 0.5 +- 1.96 * sqrt(0.25 / 10,000) = 0.5 +- 0.0098, in a moment."""
    values = [float(at % 2) for at in range(10_000)]
    start = time.perf_counter()
    mean, low, high = bootstrap_interval(values, list(range(10_000)))
    assert time.perf_counter() - start < 5
    assert (mean, low, high) == pytest.approx((0.5, 0.4902, 0.5098), abs=0.0008)


def test_clusters_widen_the_interval_as_copies_do() -> None:
    """Every value four times in one cluster is no new information: the interval is that of the single values."""
    values = [float(value) for value in np.random.default_rng(0).random(50)]
    single = bootstrap_interval(values, list(range(50)))
    copied = bootstrap_interval(values * 4, list(range(50)) * 4)
    assert copied == pytest.approx(single, abs=1e-12)
    pretended = bootstrap_interval(values * 4, list(range(200)))
    assert pretended[2] - pretended[1] < 0.7 * (single[2] - single[1])


def test_coverage_is_near_its_level() -> None:
    """A tenth of 90 % intervals miss the true mean: 200 draws of 40 normal clusters, within 4 standard errors."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        offsets = np.repeat(rng.normal(size=40), 3)
        values = offsets + 0.1 * rng.normal(size=120)
        _, low, high = bootstrap_interval(values.tolist(), list(np.arange(120) // 3), level=0.9, resamples=300)
        hits += low <= 0 <= high
    assert 0.9 - 4 * math.sqrt(0.09 / 200) < hits / 200 < 0.9 + 4 * math.sqrt(0.09 / 200)


def test_a_lower_level_is_narrower() -> None:
    values, clusters = [float(at % 3) for at in range(60)], list(range(60))
    wide, narrow = (bootstrap_interval(values, clusters, level=level) for level in (0.95, 0.5))
    assert wide[1] < narrow[1] < narrow[2] < wide[2]


def test_constant_values_have_no_width() -> None:
    assert bootstrap_interval([0.1] * 9, list(range(9))) == (0.1, 0.1, 0.1)


def test_without_values_or_with_one_cluster() -> None:
    assert all(math.isnan(part) for part in bootstrap_interval([], []))
    mean, low, high = bootstrap_interval([0.0, 1.0], ["d", "d"])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(part) for part in paired_difference({}, {}, {}))


def test_paired_difference() -> None:
    """b is a minus 0.1 everywhere: the difference is sure, whatever the spread of either; order is of no account."""
    a = {f"s{at}": float(at % 2) for at in range(40)}
    b = {sample_id: value - 0.1 for sample_id, value in reversed(a.items())}
    clusters = {sample_id: sample_id for sample_id in a}
    assert paired_difference(a, b, clusters) == pytest.approx((0.1, 0.1, 0.1))
    noisy = {sample_id: value * (at % 3) for at, (sample_id, value) in enumerate(a.items())}
    forth, back = paired_difference(a, noisy, clusters), paired_difference(noisy, a, clusters)
    assert forth == pytest.approx((-back[0], -back[2], -back[1]))
    assert forth == paired_difference(dict(reversed(a.items())), noisy, clusters)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        ({"x": 1.0, "y": 0.0}, {"y": 0.0}, {"x": 0, "y": 0}, "in one run only, first x"),
        ({"x": 1.0}, {"x": 1.0}, {}, "sample x: no cluster"),
        ({"x": math.nan}, {"x": 1.0}, {"x": 0}, "value 0 is nan"),
    ],
)
def test_bad_data(a: Any, b: Any, clusters: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(a, b, clusters)


def test_bad_arguments() -> None:
    with pytest.raises(DataError, match="2 values but 1 clusters"):
        bootstrap_interval([1.0, 2.0], ["a"])
    for options in ({"level": 1.0}, {"level": 95}, {"resamples": 0}):
        with pytest.raises(ConfigError):
            bootstrap_interval([1.0], ["a"], **options)
