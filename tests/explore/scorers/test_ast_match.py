"""AST match: 1 or 0, and the partial credit worked by hand."""

import pytest

from tests.options import made
from tests.toolcalls import answer, call, sample
from ttpa.records import Candidate, ToolCall

STRICT, PARTIAL = made("scorer", "ast"), made("scorer", "ast_partial")
ONE, TWO = call("f", a=1, b="x"), call("g", c=[1, 2])


@pytest.mark.parametrize(("target", "candidate", "strict", "share"), [
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
])  # fmt: skip
def test_hand_worked(target: tuple[ToolCall, ...], candidate: Candidate, strict: float, share: float) -> None:
    assert STRICT(sample(*target), candidate).value == strict
    score = PARTIAL(sample(*target), candidate)
    assert score.value == pytest.approx(share) and score.exact == bool(strict)


def test_the_cap_keeps_an_almost_right_answer_below_an_exact_one() -> None:
    """One surplus argument in a thousand: 1 - 0.7 / 1001 would round to the exact answer's 1."""
    gold = call("f", **{f"k{at}": at for at in range(1000)})
    assert PARTIAL(sample(gold), answer(call("f", **gold.arguments, extra=1))).value == 0.99
