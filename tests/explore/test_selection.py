"""Selection: perplexity against the product formula, shares, ties, kinds and order."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttpa.errors import ConfigError, DataError
from ttpa.explore.select import SelectAll, SelectPerplexity, perplexity
from ttpa.records import Sample, ToolCall


def make(*ids: str, text: str = "") -> list[Sample]:
    """Samples of the given ids; those in `text` want a reply without a call."""
    return [
        Sample(id=i, tools=(), messages=(), target=() if i in text else (ToolCall(name="f"),), source="t") for i in ids
    ]


def names(samples: list[Sample]) -> str:
    return "".join(sample.id for sample in samples)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30))
@settings(deadline=None)
def test_perplexity_is_the_papers_product(probabilities: list[float]) -> None:
    """(prod 1 / p) ** (1 / n), with the logarithms nowhere."""
    product = math.prod(1 / p for p in probabilities) ** (1 / len(probabilities))
    nll = sum(-math.log(p) for p in probabilities)
    assert perplexity(nll, len(probabilities)) == pytest.approx(product, rel=1e-9)


def test_perplexity_at_the_edges() -> None:
    assert perplexity(0.0, 3) == 1
    assert perplexity(1e9, 1) == perplexity(math.inf, 1) == math.inf
    for nll, tokens in ((1.0, 0), (math.nan, 2)):
        with pytest.raises(DataError, match="not defined"):
            perplexity(nll, tokens)


def test_select_all() -> None:
    samples = make(*"abc")
    assert not SelectAll.needs_policy and SelectPerplexity.needs_policy
    assert SelectAll().select(samples, None) == samples
    assert names(SelectAll(limit=2).select(samples)) == "ab"
    assert SelectAll(limit=9).select([], None) == []


def test_the_most_surprising_share_in_original_order() -> None:
    """Means: a 1, b 3, c 2, d 0.5, e 3. Two fifths of five are the two of mean 3."""
    samples = make(*"abcde")
    nlls = {"a": (5.0, 5), "b": (3.0, 1), "c": (8.0, 4), "d": (10.0, 20), "e": (9.0, 3)}
    assert names(SelectPerplexity(keep_fraction=0.4, per_kind=False).select(samples, nlls)) == "be"
    assert names(SelectPerplexity(keep_fraction=0.41, per_kind=False).select(samples, nlls)) == "bce"
    assert names(SelectPerplexity(keep_fraction=0.2, per_kind=False).select(samples[::-1], nlls)) == "b"  # tie by id
    assert names(SelectPerplexity(keep_fraction=0.01, per_kind=False).select(samples, nlls)) == "b"
    assert names(SelectPerplexity(keep_fraction=1, per_kind=False, limit=3).select(samples, nlls)) == "bce"


def test_per_kind_keeps_a_share_of_either() -> None:
    samples = make(*"abcd", text="cd")
    nlls = {"a": (9.0, 1), "b": (8.0, 1), "c": (2.0, 1), "d": (1.0, 1)}
    assert names(SelectPerplexity(keep_fraction=0.5, per_kind=True).select(samples, nlls)) == "ac"
    assert names(SelectPerplexity(keep_fraction=0.5, per_kind=False).select(samples, nlls)) == "ab"
    assert names(SelectPerplexity(keep_fraction=0.5, per_kind=True, limit=1).select(samples, nlls)) == "a"


def test_means_too_large_for_a_float_keep_their_order() -> None:
    nlls = {"a": (2000.0, 1), "b": (1000.0, 1), "c": (math.inf, 1)}
    assert names(SelectPerplexity(keep_fraction=0.5, per_kind=False).select(make(*"bac"), nlls)) == "ac"


def test_seven_hundredths_of_a_hundred_are_seven() -> None:
    samples = [sample for at in range(100) for sample in make(f"{at:02d}")]
    nlls = {sample.id: (float(at), 1) for at, sample in enumerate(samples)}
    kept = SelectPerplexity(keep_fraction=0.07, per_kind=False).select(samples, nlls)
    assert [sample.id for sample in kept] == ["93", "94", "95", "96", "97", "98", "99"]


def test_what_cannot_be_ranked_is_named() -> None:
    select = SelectPerplexity(keep_fraction=0.1, per_kind=False).select
    cases: list[Any] = [None, {}, {"a": (1.0, 0)}, {"a": (math.nan, 1)}]
    for nlls in cases:
        with pytest.raises(DataError, match="^sample a: "):
            select(make("a"), nlls)
    assert select([], {}) == []


@pytest.mark.parametrize("share", [0, -1, 1.01, math.nan, True, "0.1"])
def test_bad_share(share: Any) -> None:
    with pytest.raises(ConfigError, match="^select.keep_fraction="):
        SelectPerplexity(keep_fraction=share, per_kind=True)


def test_bad_limit_and_kind() -> None:
    for build in (lambda: SelectAll(limit=0), lambda: SelectPerplexity(keep_fraction=0.1, per_kind=True, limit=-1)):
        with pytest.raises(ConfigError, match="^select.limit="):
            build()
    with pytest.raises(ConfigError, match="^select.per_kind="):
        SelectPerplexity(keep_fraction=0.1, per_kind="yes")  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.floats(0.01, 1), st.booleans())
@settings(max_examples=100, deadline=None)
def test_kept_are_never_less_surprising_than_dropped(nll: list[float], share: float, per_kind: bool) -> None:
    samples = [sample for at in range(len(nll)) for sample in make(f"{at:03d}", text="002 005 006 011")]
    nlls = {sample.id: (value, 1) for sample, value in zip(samples, nll, strict=True)}
    kept = SelectPerplexity(keep_fraction=share, per_kind=per_kind).select(samples, nlls)
    assert [s for s in samples if s in kept] == kept
    for kind in ("call", "text") if per_kind else (None,):
        group = [s for s in samples if kind in (None, s.kind)]
        inside = [perplexity(*nlls[s.id]) for s in group if s in kept]
        outside = [perplexity(*nlls[s.id]) for s in group if s not in kept]
        assert bool(inside) == bool(group)
        assert share * len(group) - 1e-9 <= len(inside) < share * len(group) + 1
        assert not outside or min(inside) >= max(outside)
