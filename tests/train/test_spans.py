"""`objective.over`: a preference over whole answers, or over the spans in which two answers part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.train import plain
from ttpa.policy.tree import TokenRow
from ttpa.records import Candidate, Pair, Score
from ttpa.run.stages import aligning
from ttpa.run.stages.aligning import pair_row
from ttpa.train.losses import DPO, SimPO

PROMPT = (100, 101, 102)


def pair(chosen: tuple[int, ...], rejected: tuple[int, ...], ends: tuple[int, int] | None = None) -> Pair:
    sides = [Candidate(sample_id="s", index=i, text="", token_ids=ids) for i, ids in enumerate((chosen, rejected))]
    return Pair(
        sample_id="s",
        chosen=sides[0],
        rejected=sides[1],
        chosen_score=Score(value=1.0, exact=True),
        rejected_score=Score(value=0.0, exact=False),
        provenance={} if ends is None else {"spans": {"chosen": ends[0], "rejected": ends[1]}},
    )


def sides(one: Pair, over: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, answer) of each side."""
    rows = [pair_row(PROMPT, one, side, over) for side in ("chosen", "rejected")]
    return [(tuple(row.prompt), tuple(row.answer)) for row in rows]


def test_whole_answers_are_taken_as_they_are() -> None:
    one = pair((1, 2, 3, 9), (1, 2, 4, 5, 9), (3, 4))
    assert sides(one, "answer") == [(PROMPT, (1, 2, 3, 9)), (PROMPT, (1, 2, 4, 5, 9))]


def test_a_span_begins_where_the_answers_part_and_ends_with_them() -> None:
    """What they share belongs to the prompt then."""
    one = pair((1, 2, 3, 9), (1, 2, 4, 5, 9))
    assert sides(one, "span") == [((*PROMPT, 1, 2), (3, 9)), ((*PROMPT, 1, 2), (4, 5, 9))]
    apart = pair((1, 9), (2, 9))
    assert sides(apart, "span") == [(PROMPT, (1, 9)), (PROMPT, (2, 9))]


def test_a_span_of_a_search_ends_where_the_search_says() -> None:
    """Each side for itself, in tokens of the whole answer."""
    one = pair((1, 2, 3, 4, 5, 9), (1, 2, 6, 7, 9), (4, 3))
    assert sides(one, "span") == [((*PROMPT, 1, 2), (3, 4)), ((*PROMPT, 1, 2), (6,))]
    # A span that ends before the answers part (copies of a child are siblings too) has the token at which they do.
    early = pair((1, 2, 3, 9), (1, 2, 4, 9), (1, 2))
    assert sides(early, "span") == [((*PROMPT, 1, 2), (3,)), ((*PROMPT, 1, 2), (4,))]


def test_an_answer_that_is_the_beginning_of_the_other_keeps_its_last_token() -> None:
    """It was cut off there: the other one goes on."""
    one = pair((1, 2), (1, 2, 3, 9))
    assert sides(one, "span") == [((*PROMPT, 1), (2,)), ((*PROMPT, 1, 2), (3, 9))]


@given(
    chosen=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple),
    rejected=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple),
    ends=st.none() | st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_a_span_is_a_part_of_its_answer_that_is_never_empty(
    chosen: tuple[int, ...], rejected: tuple[int, ...], ends: tuple[int, int] | None
) -> None:
    one = pair(chosen, rejected, ends)
    for (prompt, answer), ids in zip(sides(one, "span"), (chosen, rejected), strict=True):
        assert answer and (*prompt, *answer) == (*PROMPT, *ids)[: len(prompt) + len(answer)]
        assert len(prompt) - len(PROMPT) <= one.branch
    if one.branch < min(len(chosen), len(rejected)):
        (left, one_answer), (right, other_answer) = sides(one, "span")
        assert left == right and one_answer[0] != other_answer[0]


@pytest.mark.parametrize("kind", [SimPO, DPO])
def test_the_stage_trains_on_the_rows_of_the_setting(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What reaches the module, the reference and the plan's lengths."""
    pairs = [pair((5, 6, 7, 1), (5, 6, 8, 9, 1)), pair((5, 1), (6, 7, 1), (1, 2))]
    seen: dict[str, Any] = {}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=8, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    ).to(torch.float32)  # fmt: skip

    def fit(parts: Any, module: Any, data: Any, workdir: Any, progress: Any) -> dict[str, Any]:
        examples = sorted(data.steps[0], key=lambda example: example.unit)
        for side, name in enumerate(("chosen", "rejected")):
            seen[name] = [example.rows[side] for example in examples]
        return {}

    monkeypatch.setattr(aligning, "fit", fit)
    for over in ("answer", "span"):
        policy = SimpleNamespace(model=model, renderer=SimpleNamespace(pad_id=0), start_training=lambda seed: None)
        loss = plain.loss(kind, over=over)
        recipe = SimpleNamespace(align=plain.align_recipe(batch_size=2))
        parts: Any = SimpleNamespace(objective=loss, recipe=recipe, trainer=plain.trainer(micro_tokens=1000), seed=0)
        folder = tmp_path / f"{over}"
        folder.mkdir()
        made = aligning._align_pairs(parts, policy, loss, pairs, {"s": [3, 4]}, folder, lambda *news: None)  # type: ignore[arg-type]
        assert made == {"pairs": 2}
        expected = [[pair_row([3, 4], one, side, over) for one in pairs] for side in ("chosen", "rejected")]
        assert as_tuples(seen["chosen"]) == as_tuples(expected[0])
        assert as_tuples(seen["rejected"]) == as_tuples(expected[1])
        assert (folder / "reference_logps.jsonl").exists() == loss.needs_reference
    assert as_tuples(seen["chosen"]) == [((3, 4, 5, 6), (7, 1)), ((3, 4), (5,))]


def as_tuples(rows: list[TokenRow]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tuple(row.prompt), tuple(row.answer)) for row in rows]
