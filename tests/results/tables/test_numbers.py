"""Statistics against values worked by hand, printed tables, and plain properties."""

from __future__ import annotations

import math
import random

import pytest

from ttpa.results.stats import paired_difference
from ttpa.results.tables.numbers import (
    Estimate,
    holm,
    no_width,
    over_seeds,
    paired_means,
    paired_samples,
    sign_flips,
    t_probability,
    t_quantile,
)

# Two-sided 95 % and 99 % points as every textbook prints them.
PRINTED = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 9: (2.262, 3.250),
           10: (2.228, 3.169), 30: (2.042, 2.750), 120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("freedom", PRINTED)
def test_t_quantiles_are_those_of_the_tables(freedom: int) -> None:
    for level, printed in zip((0.95, 0.99), PRINTED[freedom], strict=True):
        assert t_quantile(level, freedom) == pytest.approx(printed, abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8])
def test_the_closed_form_is_the_integral_of_the_density(freedom: int) -> None:
    """Density c (1 + t^2 / v)^(-(v + 1) / 2), c = gamma((v + 1) / 2) / (sqrt(v pi) gamma(v / 2)); Simpson's rule."""
    c = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    steps, end = 2000, 1.7
    ys = [c * (1 + (end * i / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)]
    simpson = end / steps / 3 * (ys[0] + ys[-1] + 4 * sum(ys[1:-1:2]) + 2 * sum(ys[2:-1:2]))
    assert t_probability(end, freedom) == pytest.approx(2 * simpson, abs=1e-10)


def test_three_seeds_by_hand() -> None:
    """0.50, 0.53, 0.56: mean 0.53, s = 0.03, half width 4.30265 * 0.03 / sqrt(3) = 0.074524."""
    found = over_seeds([0.50, 0.53, 0.56])
    assert (found.value, found.kind, found.n) == (pytest.approx(0.53), "t", 3)
    assert found.high - found.value == pytest.approx(0.074524, abs=1e-6)
    assert found.value - found.low == pytest.approx(0.074524, abs=1e-6)


def test_equal_seeds_have_no_width_and_one_seed_no_interval() -> None:
    same, one = over_seeds([0.4, 0.4]), over_seeds([0.4])
    assert (same.low, same.high) == (0.4, 0.4)
    assert (one.low, one.high, one.kind) == (None, None, "")


def test_a_negative_unit_keeps_the_bounds_in_order() -> None:
    assert Estimate(value=1, low=0, high=3).scaled(-2) == Estimate(value=-2, low=-6, high=0)


def test_paired_means_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.4641 at 2 degrees: p = 0.0742."""
    found = paired_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.value == 2 and found.p == pytest.approx(0.0742, abs=5e-5)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert paired_means([1.0], [0.5]).p is None


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2]), ([2, 3], [1, 2]), ([0.8, 0.7], [0.7, 0.6])])
def test_equal_differences_of_the_seeds_have_no_p(a: list[float], b: list[float]) -> None:
    """0.8 - 0.7 and 0.7 - 0.6 differ in the last bit: a spread of rounding is no spread."""
    found = paired_means(a, b)
    assert found.p is None and no_width(found.seeds)


def test_the_bootstrap_is_that_of_the_evaluations() -> None:
    """The same draws, so the same interval to rounding, dialogues of unequal length included."""
    rng = random.Random(1)
    clusters = {(seed, str(i)): f"d{i // (1 + i % 3)}" for seed in (0, 1) for i in range(120)}
    a, b = ({at: float(rng.random() < share) for at in clusters} for share in (0.6, 0.5))
    found = paired_samples(a, b, clusters)
    assert (found.value, found.low, found.high) == pytest.approx(paired_difference(a, b, clusters), abs=1e-12)


def test_an_interval_is_shortened_to_a_range() -> None:
    found = over_seeds([0.9, 0.95, 1.0]).within(0.0, 1.0)
    assert found.high == 1.0 and found.cut and found.scaled(100).cut and found.low == over_seeds([0.9, 0.95, 1.0]).low
    assert not over_seeds([0.5, 0.51]).within(0.0, 1.0).cut and over_seeds([0.5]).within(0.0, 1.0).low is None


def test_sign_flips_by_hand() -> None:
    """Four dialogues, all better: of 16 arrangements two are as far from 0, so p is 1/8."""
    assert sign_flips([1.0, 1.0, 1.0, 1.0]) == pytest.approx(0.125, abs=0.01)
    assert sign_flips([1.0, -1.0]) == 1.0
    assert sign_flips([0.0, 0.0]) == 1.0
    assert sign_flips([1.0] * 200) == pytest.approx(1 / 10_001)


def test_paired_samples_cluster_on_dialogues() -> None:
    """Two dialogues of ten samples each, one all better and one all worse: nothing is known, whatever the samples."""
    clusters = {(0, f"{d}-{i}"): d for d in "ab" for i in range(10)}
    a = {at: float(d == "a") for at, d in clusters.items()}
    b = {at: float(d == "b") for at, d in clusters.items()}
    found = paired_samples(a, b, clusters)
    assert (found.value, found.samples, found.p) == (0.0, 20, 1.0)
    assert (found.low, found.high) == (-1.0, 1.0)


def test_paired_samples_of_two_seeds_stand_beside_the_seeds() -> None:
    clusters = {(seed, str(i)): str(i) for seed in (0, 1) for i in range(50)}
    a = {(seed, i): float(int(i) % 2 == 0 or seed == 1) for seed, i in clusters}
    b = dict.fromkeys(clusters, 0.0)
    found = paired_samples(a, b, clusters)
    assert found.value == pytest.approx(0.75)
    assert (found.seeds.value, found.seeds.n) == (pytest.approx(0.75), 2)
    assert found.low > 0 and found.p < 0.001
    assert found.seeds.low < 0  # two seeds, 0.5 and 1.0, tell little


def test_holm_by_hand_and_in_any_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
    rng = random.Random(0)
    ps = [rng.random() ** 3 for _ in range(20)]
    order = rng.sample(range(20), 20)
    assert holm([ps[i] for i in order]) == [holm(ps)[i] for i in order]
    assert all(adjusted >= p for adjusted, p in zip(holm(ps), ps, strict=True))
