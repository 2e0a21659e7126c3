"""One token from logits: who may be drawn, and how often each is."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttpa.policy.draw import ROUNDING, Drawn, by_rule, draw, random_bits
from ttpa.policy.engine import Sampling, TokenRule, key_of

SCRIPT = (0.1, 0.4, 0.05, 0.25, 0.15, 0.05)
"""Probabilities of tokens 0 to 5; in order: token 1 (0.4), 3 (0.25), 4 (0.15), 0 (0.1), then 2 and 5 (0.05 each)."""


def ordinary(**fields: Any) -> Sampling:
    return Sampling(max_new_tokens=8, **fields)


def ruled(k: int = 5, delta: float = 0.2, draw: str = "uniform") -> Sampling:
    return Sampling(max_new_tokens=8, rule=TokenRule(k=k, delta=delta, draw=draw, span="everywhere"))


def logits(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().float()


def scripts(count: int) -> Tensor:
    return logits(SCRIPT).repeat(count, 1)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keys(count: int, seed: str = "keys") -> Tensor:
    return torch.tensor([key_of(seed, number) for number in range(count)])


def drawn(sampling: Sampling, rows: Tensor, key_R: Tensor | None = None, position: int = 0, **given: Any) -> Drawn:
    given = {"inside_R": None, "seen_RV": None, **given}
    return draw(rows, keys(len(rows)) if key_R is None else key_R, position, sampling, **given)


def tokens(sampling: Sampling, rows: Tensor, **given: Any) -> list[int]:
    return drawn(sampling, rows, **given).token_R.tolist()


def options(found: Drawn) -> list[dict[int, float]]:
    """The candidates of each row with their probabilities."""
    assert found.options is not None
    rows = zip(*(part.tolist() for part in found.options), strict=True)
    return [{token: p for token, p, kept in zip(*row, strict=True) if kept} for row in rows]


def chi_square(counts: Counter[int], shares: dict[int, float]) -> float:
    assert counts.keys() <= shares.keys()
    total = counts.total()
    return sum((counts[token] - total * share) ** 2 / (total * share) for token, share in shares.items())


WORD, GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15


def splitmix(x: int) -> int:
    """The finaliser of splitmix64, as published."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def bits(key: int, position: int, token: int) -> int:
    """The random number of a token at a position of an answer."""
    at = splitmix((key + ((position + 1) * GOLDEN) % (1 << 63)) & WORD)
    return splitmix(at ^ ((token + 1) * GOLDEN & WORD)) >> 32


def test_random_bits_are_those_of_splitmix64() -> None:
    rng = random.Random(0)
    for key in [0, 1, 2**63 - 1, *(rng.randrange(2**63) for _ in range(10))]:
        for position in (0, 17, 511):
            found = random_bits(torch.tensor([key]), position, 40)
            assert found.tolist() == [[bits(key, position, t) for t in range(40)]]


def race(weights: dict[int, float], key: int, position: int) -> int:
    """Who arrives first: token v after an exponential time of rate weights[v]."""
    wait = {t: -math.log1p(-(bits(key, position, t) + 0.5) / 2**32) / w for t, w in weights.items() if w > 0}
    return min(wait, key=wait.__getitem__)


def shares(temperature: float, top_p: float) -> dict[int, float]:
    """Written out: p^(1/T) renormalised, the fewest most probable tokens whose mass reaches top_p, renormalised."""
    powers = {token: p ** (1 / temperature) for token, p in enumerate(SCRIPT)}
    total = sum(powers.values())
    kept: dict[int, float] = {}
    for token, power in sorted(powers.items(), key=lambda item: -item[1]):
        if sum(kept.values()) >= top_p:
            break
        kept[token] = power / total
    return {token: share / sum(kept.values()) for token, share in kept.items()}


SETTINGS = [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.0, 0.39), (0.5, 0.9), (2.0, 0.5), (1.0, 0.96)]
DISTRIBUTIONS = [
    *((ordinary(temperature=t, top_p=p), shares(t, p)) for t, p in SETTINGS),
    (ruled(5, 0.26), {1: 1 / 3, 3: 1 / 3, 4: 1 / 3}),
    (ruled(5, 0.26, "renormalised"), {1: 0.5, 3: 0.3125, 4: 0.1875}),  # 0.4, 0.25 and 0.15 of 0.8
]


@pytest.mark.parametrize(("sampling", "weights"), DISTRIBUTIONS)
def test_draws_follow_the_distribution_that_is_stated(sampling: Sampling, weights: dict[int, float]) -> None:
    """4000 draws, at most 5 degrees of freedom: chi-square is over 20.5 for one seed in a thousand; this is fixed."""
    key_R = keys(4000)
    found = drawn(sampling, scripts(4000), key_R, 5).token_R.tolist()
    assert chi_square(Counter(found), weights) < 20.5
    assert found[:300] == [race(weights, key, 5) for key in key_R[:300].tolist()]


def test_a_mass_equal_to_top_p_reaches_it() -> None:
    """Three of four equal tokens have 3/4, to the bit: the fourth is not needed; for the next number it is."""
    rows = torch.zeros(200, 4)
    assert set(tokens(ordinary(top_p=0.75), rows)) == {0, 1, 2}
    assert set(tokens(ordinary(top_p=math.nextafter(0.75, 1)), rows)) == {0, 1, 2, 3}


def test_log_probs_are_the_models_own_whatever_the_settings() -> None:
    rows, seen = noise(3, 40, 12), torch.ones(40, 12, dtype=torch.bool)
    hot = ordinary(temperature=0.3, top_p=0.6, repetition_penalty=1.7)
    for sampling in (ordinary(), ordinary(temperature=0.0), hot, ruled(), ruled(draw="renormalised", delta=1.0)):
        found = drawn(sampling, rows, seen_RV=seen)
        expected = torch.log_softmax(rows, -1).gather(-1, found.token_R[:, None])[:, 0]
        assert torch.allclose(found.logp_R, expected, atol=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    """By hand: logits 2, 1, -1, -3 with the first and third seen become 1, 1, -2, -3 at penalty 2."""
    row, seen = torch.tensor([[2.0, 1.0, -1.0, -3.0]]), torch.tensor([[True, False, True, False]])
    weights = {token: math.exp(x) for token, x in enumerate((1.0, 1.0, -2.0, -3.0))}
    found = tokens(ordinary(repetition_penalty=2.0), row.repeat(400, 1), seen_RV=seen.repeat(400, 1))
    assert found == [race(weights, key, 0) for key in keys(400).tolist()]
    greedy = ordinary(temperature=0.0, repetition_penalty=4.0)
    assert tokens(greedy, row, seen_RV=seen) == [1] and tokens(greedy, -row, seen_RV=~seen) == [2]


def test_repetition_penalty_comes_before_temperature_and_nucleus() -> None:
    """By log p alone the seen tokens 1 and 3 have 0.4 ** 2 = 0.16 and 0.25 ** 2 = 0.0625 against 0.15 and 0.1."""
    seen = torch.tensor([[False, True, False, True, False, False]]).repeat(400, 1)
    sampling = ordinary(temperature=0.5, top_p=0.6, repetition_penalty=2.0)
    assert set(tokens(sampling, scripts(400), seen_RV=seen)) == {1, 4}


@pytest.mark.parametrize(
    ("k", "delta", "expected"),
    [
        (5, 0.0, {1}),
        (5, 0.14, {1}),
        (5, 0.16, {1, 3}),  # gap 0.15
        (5, 0.26, {1, 3, 4}),  # gap 0.25
        (6, 0.36, {0, 1, 2, 3, 4, 5}),  # gap 0.35, twice
        (3, 1.0, {1, 3, 4}),  # k ends the set before delta does
        (1, 1.0, {1}),
        (50, 1.0, {0, 1, 2, 3, 4, 5}),  # k larger than the vocabulary
    ],
)
@pytest.mark.parametrize("how", ["uniform", "renormalised"])
def test_candidates_are_the_top_k_within_delta_of_the_best(k: int, delta: float, expected: set[int], how: str) -> None:
    found = drawn(ruled(k, delta, how), scripts(300))
    assert set(found.token_R.tolist()) == expected
    for row in options(found):
        assert row == pytest.approx({token: SCRIPT[token] for token in expected}, abs=1e-6)


@pytest.mark.parametrize(
    ("probs", "delta", "candidates"),
    [
        ((0.5, 0.3, 0.2), 0.2, 2),
        ((0.55, 0.45), 0.1, 2),
        ((0.35, 0.25, 0.25, 0.15), 0.1, 3),
        ((0.4, 0.4, 0.2), 0.0, 2),
        ((0.5, 0.3, 0.2), 0.2 - 2 * ROUNDING, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gap_equal_to_delta_is_within_it(
    probs: tuple[float, ...], delta: float, candidates: int, dtype: torch.dtype
) -> None:
    logps = torch.tensor([probs], dtype=dtype).log()
    weights, options = by_rule(logps, TokenRule(k=3, delta=delta, draw="uniform", span="everywhere"))
    assert options[2].sum() == weights.isfinite().sum() == candidates


def test_outside_of_calls_a_rule_is_greedy() -> None:
    rows = noise(6, 60, 12)
    inside = torch.arange(60) % 3 == 0
    free, found = drawn(ruled(delta=0.3), rows), drawn(ruled(delta=0.3), rows, inside_R=inside)
    assert torch.equal(found.token_R, torch.where(inside, free.token_R, rows.argmax(-1)))
    assert (free.token_R != rows.argmax(-1))[~inside].any()
    for row, (here, all_of_it) in enumerate(zip(options(found), options(free), strict=True)):
        assert here == all_of_it if inside[row] else list(here) == [int(rows[row].argmax())]


def test_ties_go_to_the_lowest_id_in_greedy_decoding_and_outside_of_calls() -> None:
    flat = torch.zeros(1, 30)
    flat[0, :3] = -5
    assert tokens(ordinary(temperature=0.0), flat) == tokens(ruled(), flat, inside_R=torch.tensor([False])) == [3]


@pytest.mark.parametrize(("numbers", "winner"), [([2**32 - 1] * 6, 1), ([2**31] * 5 + [0], 5)])
def test_the_largest_random_number_keeps_nobody_from_arriving_and_the_smallest_wins(
    monkeypatch: pytest.MonkeyPatch, numbers: list[int], winner: int
) -> None:
    monkeypatch.setattr("ttpa.policy.draw.random_bits", lambda key_R, *_: torch.tensor([numbers] * len(key_R)))
    assert tokens(ordinary(), scripts(1)) == [winner] and tokens(ruled(1, 0.0), scripts(1)) == [1]


@given(
    row=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    key=st.integers(0, 2**63 - 1),
    position=st.integers(0, 5000),
    temperature=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.999, 1.0]),
    closed=st.sets(st.integers(1, 8)),
)
@settings(max_examples=150, deadline=None)
def test_any_row_gives_a_token_that_may_be_drawn(
    row: list[float], key: int, position: int, temperature: float, top_p: float, closed: set[int]
) -> None:
    rows = torch.tensor([[-math.inf if at in closed else x for at, x in enumerate(row)]])
    for sampling in (ordinary(temperature=temperature, top_p=top_p), ruled(3, top_p, "renormalised")):
        found = drawn(sampling, rows, torch.tensor([key]), position)
        assert math.isfinite(rows[0, found.token_R]) and math.isfinite(found.logp_R)
        if found.options is not None:
            assert int(found.token_R) in options(found)[0]
