"""AST match: 1 or 0, and the partial credit worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttpa.errors import ConfigError
from ttpa.explore.scorers import ASTMatch, Scorer
from ttpa.records import Candidate, Sample, ToolCall


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def sample(*target: ToolCall) -> Sample:
    return Sample(id="s", tools=(), messages=(), target=target, source="test")


def answer(*calls: ToolCall, parsed: bool = True) -> Candidate:
    return Candidate(sample_id="s", index=0, text="", calls=calls if parsed else None)


ONE, TWO = call("f", a=1, b="x"), call("g", c=[1, 2])


def test_it_is_a_scorer() -> None:
    assert isinstance(ASTMatch(), Scorer)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("target", "candidate", "strict", "share"),
    [
        ((ONE,), answer(ONE), 1, 1),
        ((ONE, TWO), answer(TWO, ONE), 1, 1),
        ((ONE,), answer(call("f", a=1.0, b="x")), 1, 1),
        ((ONE,), answer(call("f", a=True, b="x")), 0, 0.3 + 0.7 / 2),
        ((ONE,), answer(call("f", a=1)), 0, 0.3 + 0.7 / 2),
        ((ONE,), answer(call("f", a=1, b="x", c=0)), 0, 0.3 + 0.7 * 2 / 3),
        ((ONE,), answer(call("h", a=1, b="x")), 0, 0.7),
        ((ONE, TWO), answer(TWO), 0, 0.5),
        ((ONE,), answer(TWO, ONE), 0, 0.5),
        ((ONE,), answer(), 0, 0),
        ((ONE,), answer(parsed=False), 0, 0),
        ((call("f"),), answer(call("h")), 0, 0),
        ((), answer(), 1, 1),
        ((), answer(ONE), 0, 0),
        ((), answer(parsed=False), 0, 0),
    ],
)
def test_hand_worked(
    target: tuple[ToolCall, ...], candidate: Candidate, strict: float, share: float, partial: bool
) -> None:
    score = ASTMatch(partial=partial)(sample(*target), candidate)
    assert score.value == pytest.approx(share if partial else strict)
    assert score.exact == bool(strict)


def test_the_cap_keeps_an_almost_right_answer_below_an_exact_one() -> None:
    """99 of 100 calls and one surplus argument in a thousand: 1 - 0.7 / 1001 would round to the exact answer's 1."""
    gold = ToolCall(name="f", arguments={f"k{at}": at for at in range(1000)})
    made = ToolCall(name="f", arguments={**gold.arguments, "extra": 1})
    assert ASTMatch(partial=True)(sample(gold), answer(made)).value == 0.99


def test_bad_configuration() -> None:
    with pytest.raises(ConfigError, match="^scorer.partial=0.5"):
        ASTMatch(partial=0.5)  # type: ignore[arg-type]


CALLS = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=arguments),
    st.sampled_from(["f", "g"]),
    st.dictionaries(
        st.sampled_from(["a", "b"]), st.one_of(st.integers(0, 1), st.booleans(), st.text(max_size=1)), max_size=2
    ),
)


@given(gold=st.lists(CALLS, max_size=3), made=st.none() | st.lists(CALLS, max_size=3))
@settings(max_examples=200, deadline=None)
def test_one_if_and_only_if_exact(gold: list[ToolCall], made: list[ToolCall] | None) -> None:
    candidate = answer(parsed=False) if made is None else answer(*made)
    strict, partial = (ASTMatch(partial=flag)(sample(*gold), candidate) for flag in (False, True))
    assert (strict.value == 1) == strict.exact == partial.exact == (partial.value == 1)
    assert 0 <= partial.value <= 1 and strict.value in (0, 1)
