"""Statistics against a plain loop, values worked by hand, printed tables and properties; and the cases without any."""

import math
import statistics

import numpy as np
import pytest

from ttpa.errors import DataError
from ttpa.results.stats import (
    Estimate,
    bootstrap_interval,
    holm,
    over_seeds,
    paired_difference,
    paired_means,
    paired_samples,
    seeds_for_power,
    seeds_for_width,
    share,
    share_over_seeds,
    sign_flips,
)


def test_against_a_plain_loop() -> None:
    """Draw whole clusters one by one from another generator, pool their values, take the percentiles."""
    rng = np.random.default_rng(7)
    groups = [rng.random(size) + shift for size, shift in zip(range(1, 31), rng.normal(size=30), strict=True)]
    values = [float(value) for group in groups for value in group]
    clusters = [at for at, group in enumerate(groups) for _ in group]
    draws = [np.concatenate([groups[at] for at in rng.integers(0, 30, 30)]).mean() for _ in range(4000)]
    mean, low, high = bootstrap_interval(values, clusters)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.03)


def test_a_long_cluster_weighs_by_its_samples() -> None:
    """Clusters (0) and (1, 1, 1): a draw of two has mean 0, 3/4 or 1, with probabilities 1/4, 1/2 and 1/4."""
    values, clusters = [0.0, 1.0, 1.0, 1.0], list("abbb")
    assert bootstrap_interval(values, clusters) == pytest.approx((0.75, 0, 1))


def test_odd_cases_have_no_interval() -> None:
    assert bootstrap_interval([0.1] * 9, list(range(9))) == (0.1, 0.1, 0.1)
    assert str(bootstrap_interval([0.0, 1.0], ["d", "d"])) == "(0.5, nan, nan)"
    assert str(bootstrap_interval([], [])) == str(paired_difference({}, {}, {})) == "(nan, nan, nan)"


@pytest.mark.parametrize(
    ("right", "answers", "a_dialogue", "interval"),
    [
        (0, 200, 1, [0, 0.0188]),
        (200, 200, 1, [0.9812, 1]),
        (0, 200, 4, [0, 0.0713]),  # 50 dialogues
        (1, 2, 1, [0, 1]),  # the bootstrap's own
        (3, 3, 1, [0.4385, 1]),
        (0, 3, 3, [None, None]),  # one dialogue
        (0, 0, 1, [None, None]),
    ],
)
def test_shares_of_none_and_all_have_an_interval(
    right: int, answers: int, a_dialogue: int, interval: list[float | None]
) -> None:
    """Wilson at 0: z^2 / (n + z^2), with z^2 = 3.8415 and n dialogues."""
    rows = [{"exact": at < right, "cluster": at // a_dialogue} for at in range(answers)]
    found = share(rows, lambda row: row["exact"])
    assert [found["low"], found["high"]] == pytest.approx(interval, abs=5e-5)
    assert (found["value"], found["n"]) == (right / answers if answers else None, answers)


def test_seeds_with_the_same_share_keep_the_interval_of_one() -> None:
    none, some = (Estimate(value=value, low=0, high=0.0188, kind="wilson") for value in (0.0, 0.01))
    alike = share_over_seeds([none, none])
    assert (alike.low, alike.high, alike.kind, alike.n) == (0, 0.0188, "wilson", 2)
    assert share_over_seeds([none]) == none and share_over_seeds([none, some]).kind == "t"
    assert share_over_seeds([Estimate(value=0.0)] * 2) == Estimate(value=0.0, n=2)  # a total has none


def test_bad_data_are_named() -> None:
    with pytest.raises(DataError, match="1 samples are in one run only, first x"):
        paired_difference({"x": 1.0, "y": 0.0}, {"y": 0.0}, {"x": 0, "y": 0})
    with pytest.raises(DataError, match="value 0 is nan"):
        bootstrap_interval([math.nan], ["a"])


def test_paired_difference() -> None:
    """b is a minus 0.1 everywhere: the difference is sure, whatever the spread of either; order is of no account."""
    a = {f"s{at}": float(at % 2) for at in range(40)}
    b = {sample_id: value - 0.1 for sample_id, value in reversed(a.items())}
    clusters = {sample_id: sample_id for sample_id in a}
    assert paired_difference(a, b, clusters) == pytest.approx((0.1, 0.1, 0.1))
    noisy = {sample_id: value * (at % 3) for at, (sample_id, value) in enumerate(a.items())}
    assert paired_difference(a, noisy, clusters) == paired_difference(dict(reversed(a.items())), noisy, clusters)


# Two-sided 95 % points as every textbook prints them.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}


def test_intervals_over_seeds_have_the_printed_quantiles() -> None:
    for freedom, quantile in PRINTED.items():
        values = [float(at % 7) for at in range(freedom + 1)]
        found = over_seeds(values)
        assert found.low is not None and found.high is not None and (found.kind, found.n) == ("t", freedom + 1)
        error = statistics.stdev(values) / math.sqrt(freedom + 1)
        assert (found.high - found.value) / error == pytest.approx(quantile, abs=5e-4)
        assert found.high - found.value == pytest.approx(found.value - found.low)


def test_equal_seeds_have_no_width_and_one_seed_no_interval() -> None:
    same, one = over_seeds([0.4, 0.4]), over_seeds([0.4])
    assert (same.low, same.high) == (0.4, 0.4) and same.has_no_width
    assert (one.low, one.high, one.kind, one.has_no_width) == (None, None, "", False)


def test_units_and_ranges_of_an_estimate() -> None:
    assert Estimate(value=1, low=0, high=3).scaled(-2) == Estimate(value=-2, low=-6, high=0)
    whole = over_seeds([0.9, 0.95, 1.0])
    found = whole.of_share()
    assert found.high == 1.0 and found.cut and found.scaled(100).cut and found.low == whole.low
    assert not over_seeds([0.5, 0.51]).of_share().cut and over_seeds([0.5]).of_share().low is None


def test_paired_means_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.4641 at 2 degrees: p = 0.0742."""
    found = paired_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.mean.value == 2 and found.p == pytest.approx(0.0742, abs=5e-5) and found.seeds == found.mean
    assert found.mean.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert paired_means([1.0], [0.5]).p is None
    rounded = paired_means([0.8, 0.7], [0.7, 0.6])  # differ in the last bit: no spread
    assert rounded.p is None and rounded.seeds.has_no_width


def test_seeds_for_power_are_those_of_printed_tables() -> None:
    """Paired t test, two-sided 5 %, power 0.8, by the difference in standard deviations (Cohen 1988, as G*Power)."""
    unit = over_seeds([1.0, 2.0, 3.0])
    sizes = {0.2: 199, 0.5: 34, 0.8: 15, 1.0: 10, 2.0: 5}
    assert {effect: seeds_for_power(unit, effect) for effect in sizes} == sizes
    assert {effect: seeds_for_power(unit.scaled(-50), 50 * effect) for effect in sizes} == sizes
    assert seeds_for_power(over_seeds([1.0, 2.0]), 1) is None and seeds_for_power(over_seeds([1.0] * 9), 1) is None
    assert seeds_for_power(unit, 0.001) == pytest.approx(7.849e6, rel=1e-3)  # (1.960 + 0.8416)^2 / effect^2


@pytest.mark.parametrize("effect", [0.6, 1.1])
def test_seeds_for_power_by_simulation(effect: float) -> None:
    """So many seeds find the difference in 80 % of the studies, and one seed fewer in less."""
    n, rng, studies = seeds_for_power(over_seeds([1.0, 2.0, 3.0]), effect), np.random.default_rng(0), 20_000
    assert n
    power = []
    for size in (n - 1, n):
        drawn = rng.normal(effect, 1, (studies, size))
        t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(size))
        bound = over_seeds([float(at) for at in range(size)])
        assert bound.high and bound.deviation
        power.append(float((abs(t) > (bound.high - bound.value) / bound.deviation * math.sqrt(size)).mean()))
    assert power[0] < 0.8 + 0.006 and power[1] > 0.8 - 0.006 and power[0] < power[1]


def test_seeds_for_width_by_hand() -> None:
    """Deviation 1 of three seeds: 4.302653 / sqrt(n) on each side; 2 wide needs 18.51, so 19; 9 wide needs no more."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.deviation, found.freedom) == (1.0, 2)
    assert [seeds_for_width(found, width) for width in (2.0, 9.0, 2 * 4.30265273 / 6)] == [19, 3, 36]
    whole = over_seeds([1.0, 2.0, 3.0, *[2.0] * 16], first=3)
    assert whole.low and whole.high and 1.9 < whole.high - whole.low <= 2 and (whole.n, whole.freedom) == (19, 2)
    assert seeds_for_width(whole, 2.0) == 19


@pytest.mark.parametrize("limit", [10**6, 12])
def test_added_seeds_keep_the_level_of_intervals_and_tests(limit: int) -> None:
    """Two stages with several correlated pairs, whose widest decides: each interval covers its difference in 95 %, each
    test rejects a true null in 5 %, also where a limit stops the addition; the intervals are as wide as asked for.
    """
    rng, studies, listed, width = np.random.default_rng(3), 2500, 4, 2.5
    mix = np.array([[1.0, 0.3, 0.0], [0.9, -0.8, 0.4], [0.0, 0.0, 1.4]])  # pairs share rows
    true = np.array([0.0, 1.0, 0.0])
    covered, wrong = np.zeros(3), np.zeros(3)
    for _ in range(studies):
        first = rng.normal(size=(listed, 3)) @ mix.T + true
        need = max(seeds_for_width(over_seeds(list(one)), width) for one in first.T)
        added = rng.normal(size=(min(need, limit) - listed, 3)) @ mix.T + true
        for at, values in enumerate(np.concatenate([first, added]).T):
            test = paired_means(list(values), [0.0] * len(values), first=listed)
            low, high = test.mean.low, test.mean.high
            assert low is not None and high is not None and test.p is not None
            assert high - low <= width + 1e-9 or need > limit
            covered[at] += low <= true[at] <= high
            wrong[at] += test.p < 0.05
    error = 3.3 * math.sqrt(0.05 * 0.95 / studies)
    assert np.abs(covered / studies - 0.95).max() < error
    assert np.abs(wrong[[0, 2]] / studies - 0.05).max() < error


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
    assert (found.mean.value, found.mean.n, found.p) == (0.0, 20, 1.0)
    assert (found.mean.low, found.mean.high) == (-1.0, 1.0)
    alone = paired_samples(a, b, dict.fromkeys(clusters, "one dialogue"))
    assert (alone.p, alone.mean.low) == (None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
