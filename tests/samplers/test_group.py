"""Independent samples by temperature and nucleus, on scripted probabilities."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.samplers.group import GroupSampler

SCRIPT = (0.1, 0.4, 0.05, 0.25, 0.15, 0.05)
"""Probabilities of tokens 0 to 5; in order: token 1 (0.4), 3 (0.25), 4 (0.15), 0 (0.1), then 2 and 5 (0.05 each)."""


def group(**fields: Any) -> GroupSampler:
    return GroupSampler(**{"n": 5, "max_new_tokens": 8, **fields})


def logps(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().float()


def choose(sampler: GroupSampler, rows: Tensor, uniform: list[float]) -> list[int]:
    picked, options = sampler.chooser()(rows, torch.tensor(uniform, dtype=torch.float64))
    assert options is None
    return picked.tolist()


def grid(count: int) -> list[float]:
    """The middles of `count` equal parts of [0, 1)."""
    return [(at + 0.5) / count for at in range(count)]


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


CASES = [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.0, 0.39), (0.5, 0.9), (2.0, 0.5), (1.0, 0.96)]


@pytest.mark.parametrize(("temperature", "top_p"), CASES)
def test_draws_follow_the_distribution_that_is_stated(temperature: float, top_p: float) -> None:
    """4000 draws, at most 5 degrees of freedom: chi-square is over 20.5 for one seed in a thousand; this is fixed."""
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    counts = Counter(choose(group(temperature=temperature, top_p=top_p), logps(*[SCRIPT] * 4000), uniform))
    expected = shares(temperature, top_p)
    assert counts.keys() <= expected.keys()
    assert sum((counts[t] - 4000 * share) ** 2 / (4000 * share) for t, share in expected.items()) < 20.5


@pytest.mark.parametrize(("temperature", "top_p"), CASES)
def test_shares_are_met_to_one_draw_on_an_even_grid(temperature: float, top_p: float) -> None:
    counts = Counter(choose(group(temperature=temperature, top_p=top_p), logps(*[SCRIPT] * 1000), grid(1000)))
    expected = shares(temperature, top_p)
    assert counts.keys() == expected.keys()
    for token, share in expected.items():
        assert abs(counts[token] - 1000 * share) <= 1.01


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.64, {1, 3}), (0.66, {1, 3, 4}), (0.81, {0, 1, 3, 4})],
)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, nucleus: set[int]) -> None:
    """Masses in order: 0.4, 0.65, 0.8, 0.9, 0.95, 1."""
    uniform = [0.0, *grid(500), math.nextafter(1, 0)]
    assert set(choose(group(top_p=top_p), logps(*[SCRIPT] * 502), uniform)) == nucleus


def test_a_mass_equal_to_top_p_reaches_it() -> None:
    """top_p set to the mass of the best two tokens, to the bit: the third is not needed; to the next number: it is."""
    rows = torch.tensor([[0.0, -1.0, -2.0, -2.0]]).repeat(100, 1)
    masses = torch.softmax(rows[0].double(), -1).cumsum(-1).tolist()
    assert set(choose(group(top_p=masses[1]), rows, grid(100))) == {0, 1}
    assert set(choose(group(top_p=math.nextafter(masses[1], 1)), rows, grid(100))) == {0, 1, 2}


def test_top_p_of_1_keeps_every_token_that_has_probability() -> None:
    """Also the one of a millionth, and never the one of none, at the ends of the unit interval either."""
    probs = (0.5, 1e-6, 0.0, 0.499999)
    uniform = [0.0, *grid(100), 1 - 5e-7, math.nextafter(1, 0)]
    picked = choose(group(), logps(*[probs] * 103), uniform)
    assert set(picked) == {0, 1, 3} and picked[-1] == picked[-2] == 1


def test_a_number_on_a_border_belongs_to_the_later_token() -> None:
    """Shares are half-open intervals: of two tokens of 1/2 the first has [0, 1/2)."""
    assert choose(group(), torch.zeros(2, 2), [math.nextafter(0.5, 0), 0.5]) == [0, 1]


def test_never_outside_the_nucleus_on_a_large_vocabulary() -> None:
    """Random distributions, draws up to the end of the unit interval: before a pick lies less mass than top_p."""
    rows = torch.log_softmax(4 * torch.randn(300, 2000, generator=torch.Generator().manual_seed(1)), -1)
    uniform = [math.nextafter(1, 0)] * 150 + grid(150)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        probs = rows.double().exp()
        for row, token in enumerate(choose(group(top_p=top_p), rows, uniform)):
            before = probs[row][probs[row] > probs[row, token]].sum()
            assert float(before) < top_p + 1e-6


def test_low_temperature_is_greedy() -> None:
    rows = torch.log_softmax(torch.randn(50, 30, generator=torch.Generator().manual_seed(2)), -1)
    assert choose(group(temperature=1e-4), rows, grid(50)) == rows.argmax(-1).tolist()


def test_rows_do_not_see_each_other() -> None:
    rows = torch.log_softmax(torch.randn(20, 12, generator=torch.Generator().manual_seed(3)), -1)
    sampler = group(temperature=0.8, top_p=0.9)
    together = choose(sampler, rows, grid(20))
    assert together == [choose(sampler, rows[at : at + 1], [grid(20)[at]])[0] for at in range(20)]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sampler\.{key}={fields[key]}: "):
        group(**fields)
