"""`objective.over`: a preference over whole answers, or over the spans in which two answers part."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train import plain
from ttpa.policy.logprobs import token_logps
from ttpa.records import Candidate, Pair, Score
from ttpa.run.stages.training import pair_examples, pair_row
from ttpa.train.losses import DPO, SimPO

PROMPT = (100, 101, 102)
Ids = tuple[int, ...]


def pair(chosen: Ids, rejected: Ids, ends: tuple[int, int] | None = None) -> Pair:
    sides = [Candidate(sample_id="s", index=i, text="", token_ids=ids) for i, ids in enumerate((chosen, rejected))]
    scores = {"chosen_score": Score(value=1.0, exact=True), "rejected_score": Score(value=0.0, exact=False)}
    spans = {} if ends is None else {"spans": {"chosen": ends[0], "rejected": ends[1]}}
    return Pair(sample_id="s", chosen=sides[0], rejected=sides[1], **scores, provenance=spans)


def sides(one: Pair, over: str, prompt: Ids = PROMPT) -> list[tuple[Ids, Ids]]:
    """(prompt, answer) of each side."""
    rows = [pair_row(prompt, one, side, over) for side in ("chosen", "rejected")]
    return [(tuple(row.prompt), tuple(row.answer)) for row in rows]


@pytest.mark.parametrize(
    ("one", "shared", "chosen", "rejected"),
    [
        # A span begins where the answers part; what they share belongs to the prompt then.
        (pair((1, 2, 3, 9), (1, 2, 4, 5, 9)), (1, 2), (3, 9), (4, 5, 9)),
        (pair((1, 9), (2, 9)), (), (1, 9), (2, 9)),
        # It ends where the search says, each side for itself, in tokens of the whole answer.
        (pair((1, 2, 3, 4, 5, 9), (1, 2, 6, 7, 9), (4, 3)), (1, 2), (3, 4), (6,)),
        # A span that ends before the answers part (copies of a child are siblings too) has the token at which they do.
        (pair((1, 2, 3, 9), (1, 2, 4, 9), (1, 2)), (1, 2), (3,), (4,)),
    ],
)
def test_spans_worked_by_hand(one: Pair, shared: Ids, chosen: Ids, rejected: Ids) -> None:
    assert sides(one, "span") == [((*PROMPT, *shared), chosen), ((*PROMPT, *shared), rejected)]
    assert sides(one, "answer") == [(PROMPT, one.chosen.token_ids), (PROMPT, one.rejected.token_ids)]


ANSWERS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(chosen=ANSWERS, rejected=ANSWERS, ends=st.none() | st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_a_span_is_a_part_of_its_answer_that_is_never_empty(
    chosen: Ids, rejected: Ids, ends: tuple[int, int] | None
) -> None:
    one = pair(chosen, rejected, ends)
    for (prompt, answer), ids in zip(sides(one, "span"), (chosen, rejected), strict=True):
        assert answer and (*prompt, *answer) == (*PROMPT, *ids)[: len(prompt) + len(answer)]
        assert len(prompt) - len(PROMPT) <= one.branch
    if one.branch < min(len(chosen), len(rejected)):
        (left, one_answer), (right, other_answer) = sides(one, "span")
        assert left == right and one_answer[0] != other_answer[0]


@pytest.mark.parametrize("over", ["answer", "span"])
@pytest.mark.parametrize("kind", [SimPO, DPO])
def test_the_stage_trains_on_the_rows_of_the_setting(kind: Any, over: str, tmp_path: Any) -> None:
    """So do the reference's log-probs, which are kept on disk, and the lengths."""
    pairs = [pair((5, 6, 7, 1), (5, 6, 8, 9, 1)), pair((5, 1), (6, 7, 1), (1, 2))]
    policy: Any = plain.small_policy()
    parts: Any = SimpleNamespace(trainer=plain.trainer(micro_tokens=1000))
    loss = plain.loss(kind, over=over)
    examples = pair_examples(parts, policy, loss, pairs, {"s": (3, 4)}, token_logps, tmp_path)
    for example, one in zip(examples, pairs, strict=True):
        assert [(tuple(row.prompt), tuple(row.answer)) for row in example.rows] == sides(one, over, (3, 4))
        assert example.weight == len(example.rows[0].answer)
        sums = token_logps(policy.model, example.rows, pad_id=0).sums().tolist()
        assert example.reference == (pytest.approx(tuple(sums), abs=1e-5) if loss.needs_reference else None)
    again = pair_examples(parts, None, loss, pairs, {"s": (3, 4)}, token_logps, tmp_path)  # type: ignore[arg-type]
    assert [one.reference for one in again] == [one.reference for one in examples]
