"""Selection: order by perplexity, shares, ties, kinds, and what cannot be ranked."""

import math
from typing import Any

import pytest

from tests.options import made
from ttpa.errors import DataError
from ttpa.explore.select import SelectPerplexity
from ttpa.records import Sample, ToolCall


def samples(*ids: str, text: str = "") -> list[Sample]:
    """Samples of the given ids; those in `text` want a reply without a call."""
    return [
        Sample(id=i, tools=(), messages=(), target=() if i in text else (ToolCall(name="f"),), source="t") for i in ids
    ]


def names(kept: list[Sample]) -> str:
    return "".join(sample.id for sample in kept)


def select(**values: Any) -> SelectPerplexity:
    return made("select", "perplexity", **values)


def test_select_all() -> None:
    assert made("select", "all").select(samples(*"abc"), None) == samples(*"abc")
    assert names(made("select", "all", limit=2).select(samples(*"abc"))) == "ab"
    assert not made("select", "all").needs_policy and select().needs_policy


def test_the_most_surprising_share_in_original_order() -> None:
    """Means: a 1, b 3, c 2, d 0.5, e 3. Two fifths of five are the two of mean 3."""
    nlls = {"a": (5.0, 5), "b": (3.0, 1), "c": (8.0, 4), "d": (10.0, 20), "e": (9.0, 3)}

    def kept(given: list[Sample], **values: Any) -> str:
        return names(select(**values).select(given, nlls))

    assert kept(samples(*"abcde"), keep_fraction=0.4) == "be"
    assert kept(samples(*"abcde"), keep_fraction=0.41) == "bce"
    assert kept(samples(*"edcba"), keep_fraction=0.2) == "b"  # tie by id
    assert kept(samples(*"abcde"), keep_fraction=0.01) == "b"
    assert kept(samples(*"abcde"), keep_fraction=1, limit=3) == "bce"


def test_per_kind_keeps_a_share_of_either() -> None:
    nlls = {"a": (9.0, 1), "b": (8.0, 1), "c": (2.0, 1), "d": (1.0, 1)}
    given = samples(*"abcd", text="cd")
    assert names(select(keep_fraction=0.5, per_kind=True).select(given, nlls)) == "ac"
    assert names(select(keep_fraction=0.5, per_kind=False).select(given, nlls)) == "ab"
    assert names(select(keep_fraction=0.5, per_kind=True, limit=1).select(given, nlls)) == "a"


def test_means_too_large_for_their_exponential_keep_their_order() -> None:
    nlls = {"a": (2000.0, 1), "b": (1000.0, 1), "c": (math.inf, 1)}
    assert names(select(keep_fraction=0.5).select(samples(*"bac"), nlls)) == "ac"


def test_seven_hundredths_of_a_hundred_are_seven() -> None:
    given = samples(*(f"{at:02d}" for at in range(100)))
    nlls = {sample.id: (float(at), 1) for at, sample in enumerate(given)}
    assert names(select(keep_fraction=0.07).select(given, nlls)) == "93949596979899"


@pytest.mark.parametrize("nlls", [None, {}, {"a": (1.0, 0)}, {"a": (math.nan, 1)}])
def test_what_cannot_be_ranked_is_named(nlls: Any) -> None:
    with pytest.raises(DataError, match="^sample a: "):
        select().select(samples("a"), nlls)
