"""Token-level preference sampling on scripted probabilities: who is a candidate, and how one of them is drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.samplers.tps import TPS, candidate_mask

SCRIPT = (0.1, 0.4, 0.05, 0.25, 0.15, 0.05)
"""Probabilities of tokens 0 to 5; in order: token 1 (0.4), 3 (0.25), 4 (0.15), 0 (0.1), then 2 and 5 (0.05 each)."""


def tps(**fields: Any) -> TPS:
    return TPS(**{"n": 5, "max_new_tokens": 8, "k": 5, "delta": 0.2, **fields})


def logps(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().float()


def choose(sampler: TPS, rows: Tensor, uniform: list[float]) -> tuple[list[int], list[Any]]:
    picked, options = sampler.chooser()(rows, torch.tensor(uniform, dtype=torch.float64))
    assert options is not None
    return picked.tolist(), options


def grid(count: int) -> list[float]:
    """The middles of `count` equal parts of [0, 1)."""
    return [(at + 0.5) / count for at in range(count)]


def reached(sampler: TPS, probs: tuple[float, ...], parts: int = 200) -> set[int]:
    """Every token that some uniform number leads to."""
    picked, _ = choose(sampler, logps(*[probs] * parts), grid(parts))
    return set(picked)


def chi_square(counts: dict[int, int], expected: dict[int, float]) -> float:
    return sum((counts.get(token, 0) - mean) ** 2 / mean for token, mean in expected.items())


@pytest.mark.parametrize(
    ("k", "delta", "tokens"),
    [
        (5, 0.0, {1}),
        (5, 0.14, {1}),
        (5, 0.16, {1, 3}),  # gap 0.15
        (5, 0.26, {1, 3, 4}),  # gap 0.25
        (5, 0.31, {1, 3, 4, 0}),  # gap 0.3
        (6, 0.36, {0, 1, 2, 3, 4, 5}),  # gap 0.35, twice
        (6, 1.0, {0, 1, 2, 3, 4, 5}),
        (3, 1.0, {1, 3, 4}),  # k ends the set before delta does
        (2, 0.26, {1, 3}),
        (1, 1.0, {1}),
        (50, 1.0, {0, 1, 2, 3, 4, 5}),  # k larger than the vocabulary
    ],
)
@pytest.mark.parametrize("draw", ["uniform", "renormalised"])
def test_candidates_are_the_top_k_within_delta_of_the_best(k: int, delta: float, tokens: set[int], draw: str) -> None:
    sampler = tps(k=k, delta=delta, draw=draw)
    assert reached(sampler, SCRIPT) == tokens
    _, (options,) = choose(sampler, logps(SCRIPT), [0.5])
    assert (options is None) == (len(tokens) == 1)
    assert options is None or {token for token, _ in options} == tokens


def test_a_gap_equal_to_delta_is_within_it() -> None:
    """Binary fractions, so gaps are exact: 1/2 - 1/4 = 1/4, 1/2 - 1/8 = 3/8; the next number below is too little."""
    probs = torch.tensor([[0.5, 0.25, 0.125]], dtype=torch.float64)
    assert candidate_mask(probs, 0.25).tolist() == [[True, True, False]]
    assert candidate_mask(probs, math.nextafter(0.25, 0)).tolist() == [[True, False, False]]
    assert candidate_mask(probs, 0.375).tolist() == [[True, True, True]]


def test_each_row_is_measured_from_its_own_best_token() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    assert candidate_mask(probs, 0.0).tolist() == [[True, False], [True, True], [True, False]]
    assert candidate_mask(probs, 0.5).tolist() == [[True, True], [True, True], [True, False]]


def test_equal_tokens_are_candidates_even_at_delta_0() -> None:
    assert reached(tps(delta=0.0), (0.3, 0.1, 0.3, 0.3)) == {0, 2, 3}


def test_k_cuts_ties() -> None:
    """Three tokens of 0.3: k = 2 keeps two of them, and the same two whatever the number drawn."""
    kept = reached(tps(k=2, delta=0.0), (0.3, 0.1, 0.3, 0.3))
    assert len(kept) == 2 and kept < {0, 2, 3}


def test_rule_is_inert_where_the_policy_is_sure() -> None:
    """0.9 against 0.06: a gap of 0.84 is over delta, so the best token whatever is drawn, and no choice to report."""
    picked, options = choose(tps(delta=0.8), logps(*[(0.04, 0.9, 0.06)] * 50), grid(50))
    assert picked == [1] * 50 and options == [None] * 50


@pytest.mark.parametrize("draw", ["uniform", "renormalised"])
def test_k_of_1_is_greedy(draw: str) -> None:
    rows = torch.log_softmax(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), -1)
    picked, options = choose(tps(k=1, delta=1.0, draw=draw), rows, grid(40))
    assert picked == rows.argmax(-1).tolist() and options == [None] * 40


@pytest.mark.parametrize(
    ("draw", "shares"),
    [
        ("uniform", {1: 1 / 3, 3: 1 / 3, 4: 1 / 3}),
        ("renormalised", {1: 0.5, 3: 0.3125, 4: 0.1875}),
    ],
)
def test_draws_follow_the_distribution_that_is_stated(draw: str, shares: dict[int, float]) -> None:
    """Candidates 0.4, 0.25 and 0.15 of mass 0.8: a third each, or 1/2, 5/16 and 3/16.

    4000 draws, 2 degrees of freedom: chi-square is over 13.8 for one seed in a thousand; this one is fixed. The
    shares of the other rule would give more than 100.
    """
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(11), dtype=torch.float64).tolist()
    picked, _ = choose(tps(delta=0.26, draw=draw), logps(*[SCRIPT] * 4000), uniform)
    counts = {token: picked.count(token) for token in set(picked)}
    assert counts.keys() == shares.keys()
    assert chi_square(counts, {token: 4000 * share for token, share in shares.items()}) < 13.8
    other = {1: 0.5, 3: 0.3125, 4: 0.1875} if draw == "uniform" else dict.fromkeys(shares, 1 / 3)
    assert chi_square(counts, {token: 4000 * share for token, share in other.items()}) > 100


def test_shares_are_exact_on_an_even_grid() -> None:
    """16 numbers over 1/2, 5/16 and 3/16: 8, 5 and 3 of them, the most probable token first."""
    picked, _ = choose(tps(delta=0.26, draw="renormalised"), logps(*[SCRIPT] * 16), grid(16))
    assert picked == [1] * 8 + [3] * 5 + [4] * 3


def test_ends_of_the_unit_interval_stay_among_the_candidates() -> None:
    below_one = math.nextafter(1, 0)
    for draw in ("uniform", "renormalised"):
        picked, _ = choose(tps(delta=0.26, draw=draw), logps(SCRIPT, SCRIPT), [0.0, below_one])
        assert picked == [1, 4]


def test_a_number_on_a_border_belongs_to_the_later_candidate() -> None:
    """Shares are half-open intervals: of two equal candidates the first has [0, 1/2)."""
    picked, _ = choose(tps(k=2, delta=0.2), logps(*[SCRIPT] * 2), [math.nextafter(0.5, 0), 0.5])
    assert picked == [1, 3]


def test_options_report_tokens_and_the_policys_own_probabilities() -> None:
    """Best first, rounded to six digits, not renormalised; None where there was one candidate only."""
    for draw in ("uniform", "renormalised"):
        sampler = tps(delta=0.26, draw=draw)
        _, options = choose(sampler, logps(SCRIPT, (0.96, 0.01, 0.01, 0.01, 0.005, 0.005)), [0.1, 0.9])
        assert options == [[(1, 0.4), (3, 0.25), (4, 0.15)], None]


def test_rows_do_not_see_each_other() -> None:
    rows = torch.log_softmax(torch.randn(20, 12, generator=torch.Generator().manual_seed(3)), -1)
    together = choose(tps(delta=0.3), rows, grid(20))
    alone = [choose(tps(delta=0.3), rows[at : at + 1], [grid(20)[at]]) for at in range(20)]
    assert together == ([picked[0] for picked, _ in alone], [options[0] for _, options in alone])


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"k": 0}, "k"),
        ({"delta": -0.1}, "delta"),
        ({"delta": 1.1}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"draw": "normal"}, "draw"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sampler\.{key}={fields[key]}: "):
        tps(**fields)
