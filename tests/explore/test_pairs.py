"""Pairs: the released rule on worked cases, a second reading of it as an oracle, and what must never be a pair."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.options import made
from ttpa.explore.pairs import PairRule, make_pairs, pair_siblings, with_parting
from ttpa.explore.sampler import SiblingPair
from ttpa.records import Candidate, Pair, Sample, Score, ToolCall

RELEASED: PairRule = made("pairs", "released")
TARGET = ToolCall(name="f", arguments={"a": 0})
SAMPLE = Sample(id="s", tools=(), messages=(), target=(TARGET,), source="test")
GOLD = Candidate(sample_id="s", index=-1, text="gold", calls=(TARGET,))


def call(index: int, a: Any, value: float, exact: bool = False) -> tuple[Candidate, Score]:
    """A candidate calling f(a=...), with a given score."""
    call = ToolCall(name="f", arguments={"a": a})
    branches = ((0, ((7, 0.5), (8, 0.25))),)
    made = Candidate(sample_id="s", index=index, text=f"f({a})", calls=(call,), branches=branches)
    return made, Score(value=value, exact=exact)


def said(index: int, text: str, value: float = 0.0, parsed: bool = True) -> tuple[Candidate, Score]:
    """A candidate without a call: a reply in words, or a text that does not parse."""
    candidate = Candidate(sample_id="s", index=index, text=text, calls=() if parsed else None)
    return candidate, Score(value=value, exact=False)


def indices(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [(pair.chosen.index, pair.rejected.index) for pair in pairs]


def rule(**changes: Any) -> PairRule:
    return replace(RELEASED, **changes)


def test_below_the_gate_the_target_beats_every_candidate() -> None:
    pairs = make_pairs(SAMPLE, [call(0, 1, 0.7), said(1, "no"), call(2, 2, 0.7)], GOLD, RELEASED)
    assert indices(pairs) == [(-1, 0), (-1, 1), (-1, 2)]
    assert [pair.margin for pair in pairs] == pytest.approx([0.3, 1, 0.3])
    assert pairs[0].chosen_score.exact
    assert pairs[0].provenance["chosen"] == "gold" and pairs[0].provenance["max_score"] == 0.7


def test_above_the_gate_the_last_best_candidate_beats_the_worse() -> None:
    scored = [call(0, 1, 0.9), call(1, 2, 0.5), call(2, 3, 0.9), said(3, "no"), said(4, "{", parsed=False)]
    pairs = make_pairs(SAMPLE, scored, GOLD, RELEASED)
    assert indices(pairs) == [(2, 1), (2, 3), (2, 4)]
    assert pairs[0].provenance["chosen"] == "candidate"
    assert pairs[0].provenance["rule"]["gold_below"] == 0.8
    assert Pair.from_json(json.loads(json.dumps(pairs[0].to_json()))) == pairs[0]


def test_identical_answers_count_once() -> None:
    """Calls by value, with 1 and 1.0 equal and True apart; answers without a call by text."""
    scored = [call(0, 1, 0.2), call(1, 1.0, 0.2), call(2, True, 0.2), said(3, "x"), said(4, "x"), said(5, "y")]
    scored.append(said(6, "x", parsed=False))
    assert indices(make_pairs(SAMPLE, scored, GOLD, RELEASED)) == [(-1, 0), (-1, 2), (-1, 3), (-1, 5)]


def test_a_reply_without_a_call_is_rejected_even_when_it_scores_best() -> None:
    pairs = make_pairs(SAMPLE, [said(0, "no", 0.9), call(1, 0, 0.9, True)], GOLD, RELEASED)
    assert indices(pairs) == [(1, 0)]
    assert make_pairs(SAMPLE, [said(0, "no", 0.9), said(1, "?", 0.9)], GOLD, RELEASED) == []


def test_a_sample_that_wants_text_prefers_the_reply_without_a_call() -> None:
    text = replace(SAMPLE, target=(), target_text="hello")
    gold = Candidate(sample_id="s", index=-1, text="hello", calls=())
    scored = [said(0, "hi", 1.0), call(1, 1, 0.0), said(2, "hey", 1.0)]
    assert indices(make_pairs(text, scored, gold, RELEASED)) == [(2, 1)]
    assert indices(make_pairs(text, scored[1:2], gold, RELEASED)) == [(-1, 1)]
    assert indices(make_pairs(text, [said(0, "hello", 0.0), said(1, "bye", 0.0)], gold, RELEASED)) == [(-1, 1)]


def test_require_exact_chosen() -> None:
    strict = rule(require_exact_chosen=True)
    near, far, right = call(0, 1, 0.9), call(1, 2, 0.1), call(2, 0, 1.0, True)
    assert make_pairs(SAMPLE, [near, far], GOLD, strict) == []
    assert indices(make_pairs(SAMPLE, [near, far], GOLD, replace(strict, gold_below=1.0))) == [(-1, 0), (-1, 1)]
    assert indices(make_pairs(SAMPLE, [near, right, far], GOLD, strict)) == [(2, 0), (2, 1)]


def test_require_exact_chosen_never_rejects_an_exact_answer() -> None:
    """Replies in words that a judge tells apart: all are exact, since none has a call."""
    text = replace(SAMPLE, target=(), target_text="hello")
    gold = Candidate(sample_id="s", index=-1, text="hello", calls=())
    scored = [said(0, "hi", 0.9), said(1, "hey", 0.5), said(2, "ho", 0.9), call(3, 1, 0.2)]
    scored = [(item, replace(score, exact=not item.calls)) for item, score in scored]
    assert indices(make_pairs(text, scored, gold, rule(require_exact_chosen=True))) == [(2, 3)]
    assert indices(make_pairs(text, scored, gold, RELEASED)) == [(2, 1), (2, 3)]


def test_margin_and_thinning() -> None:
    scored = [call(0, 1, 0.2), call(1, 2, 0.7), call(2, 3, 0.7), call(3, 4, 0.5), call(4, 0, 1.0, True)]

    def chosen(**changes: Any) -> list[int]:
        return [index for _, index in indices(make_pairs(SAMPLE, scored, GOLD, rule(**changes)))]

    assert chosen() == [0, 1, 2, 3]
    assert chosen(min_margin=0.5) == [0, 3]
    assert chosen(max_pairs_per_sample=2) == [0, 1]
    assert chosen(rejected="nearest") == [1]
    assert chosen(rejected="nearest", min_margin=0.4) == [3]
    assert {index for seed in range(40) for index in chosen(rejected="random", seed=seed)} == {0, 1, 2, 3}


def released_rule(scored: list[tuple[Candidate, Score]]) -> list[tuple[int, int]]:
    """The rule of the release as its loop does it: scores by candidate, then one pass that fills both sides."""
    kept: dict[str, tuple[Candidate, float]] = {}
    for candidate, score in scored:
        kept.setdefault(repr(candidate.calls) if candidate.calls else candidate.text, (candidate, score.value))
    if not kept:
        return []
    top = max(value for _, value in kept.values())
    chosen, rejected = (-1, [item.index for item, _ in kept.values()]) if top < 0.8 else (None, [])
    if chosen is None:
        for candidate, value in kept.values():
            if candidate.calls and value == top:
                chosen = candidate.index
            elif value < top or not candidate.calls:
                rejected.append(candidate.index)
    return [] if chosen is None else [(chosen, index) for index in rejected]


SHAPES = st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.25, 0.5, 0.8, 0.9, 1.0]))


@st.composite
def candidates(draw: st.DrawFn) -> list[tuple[Candidate, Score]]:
    """Up to seven candidates; equal answers have equal scores, as from a scorer."""
    worth = draw(st.lists(SHAPES, max_size=7))
    value = dict(worth)
    return [
        said(at, f"t{kind}", value[kind] * 0) if kind > 4 else call(at, kind + 1, value[kind])
        for at, (kind, _) in enumerate(worth)
    ]


@given(scored=candidates())
@settings(max_examples=300, deadline=None)
def test_the_released_rule(scored: list[tuple[Candidate, Score]]) -> None:
    assert indices(make_pairs(SAMPLE, scored, GOLD, RELEASED)) == released_rule(scored)


RULES = st.fixed_dictionaries({
    "gold_below": st.sampled_from([0.0, 0.8, 1.0]),
    "require_exact_chosen": st.booleans(),
    "min_margin": st.sampled_from([0.0, 0.3]),
    "rejected": st.sampled_from(["all", "nearest", "random"]),
    "max_pairs_per_sample": st.none() | st.integers(1, 3),
})  # fmt: skip


@given(scored=candidates(), changes=RULES, gold_at=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_what_holds_for_every_rule(
    scored: list[tuple[Candidate, Score]], changes: dict[str, Any], gold_at: int
) -> None:
    target, options = ToolCall(name="f", arguments={"a": gold_at}), rule(**changes)
    sample, gold = replace(SAMPLE, target=(target,)), replace(GOLD, calls=(target,))
    scored = [(item, replace(score, exact=item.calls == (target,))) for item, score in scored]
    pairs = make_pairs(sample, scored, gold, options)
    assert pairs == make_pairs(sample, scored, gold, options)
    assert len(pairs) <= (1 if options.rejected != "all" else options.max_pairs_per_sample or len(scored))
    for pair in pairs:
        assert pair.rejected.calls != gold.calls and pair.rejected.calls != pair.chosen.calls
        assert pair.chosen.calls and pair.margin >= options.min_margin
        assert not options.require_exact_chosen or pair.chosen_score.exact
        assert options.gold_below > 0 or pair.provenance["chosen"] == "candidate"


# --- pairs of a search tree ------------------------------------------------------------------------------------------

SIBLINGS: PairRule = made("pairs", "siblings")


def pair(chosen: int, rejected: int, **provenance: Any) -> SiblingPair:
    return SiblingPair(chosen=chosen, rejected=rejected, provenance=provenance)


def of_tree(
    scored: list[tuple[Candidate, Score]], *siblings: tuple[int, int], options: PairRule = SIBLINGS
) -> list[tuple[int, int]]:
    return indices(pair_siblings(SAMPLE, scored, [pair(left, right) for left, right in siblings], options))


def test_siblings_are_paired_as_the_search_found_them() -> None:
    """In its order; `gold_below` and `rejected` have no say. The last has a margin below 0: the search's values are of
    more than these two answers.
    """
    scored = [call(0, 1, 0.2), call(1, 2, 0.9), call(2, 0, 1.0, True), said(3, "no")]
    for options in (SIBLINGS, rule(between="siblings", rejected="nearest", gold_below=1.0)):
        assert of_tree(scored, (1, 0), (2, 1), (0, 3), (0, 1), options=options) == [(1, 0), (2, 1), (0, 3)]


def test_a_pair_of_siblings_keeps_its_scores_and_what_the_search_knows() -> None:
    scored = [call(0, 1, 0.25), call(1, 0, 1.0, True)]
    known = {"search": {"visits": [3, 1]}, "spans": {"chosen": 4, "rejected": 5}}
    (made,) = pair_siblings(SAMPLE, scored, [pair(1, 0, **known)], SIBLINGS)
    assert (made.sample_id, made.chosen, made.chosen_score) == ("s", *scored[1])
    assert (made.rejected, made.rejected_score, made.margin) == (*scored[0], 0.75)
    assert made.provenance == {**known, "chosen": "candidate", "rule": asdict(SIBLINGS)}
    assert Pair.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_siblings_that_say_the_same_or_whose_chosen_answer_cannot_win_give_no_pair() -> None:
    brace = said(2, "{", 0.2, parsed=False)
    scored = [call(0, 1, 0.5), call(1, 1.0, 0.5), brace, said(3, "no", 0.2), said(4, "no", 0.2), call(5, 2, 0.1)]
    assert of_tree(scored, (0, 1), (2, 5), (3, 5), (3, 4)) == []
    assert of_tree(scored, (0, 2), (0, 3), (0, 5)) == [(0, 2), (0, 3), (0, 5)]
    text = replace(SAMPLE, target=(), target_text="hello")
    assert indices(pair_siblings(text, scored, [pair(3, 5), pair(3, 4), pair(2, 3)], SIBLINGS)) == [(3, 5)]


def test_what_else_applies_to_siblings() -> None:
    scored = [call(0, 0, 1.0, True), call(1, 1, 0.6), call(2, 2, 0.3), call(3, 0, 0.9, True), call(4, 3, 0.6)]
    found = [(0, 1), (0, 2), (1, 2), (1, 4), (0, 4)]

    def of(**changes: Any) -> list[tuple[int, int]]:
        return of_tree(scored, *found, options=replace(SIBLINGS, **changes))

    assert of() == found
    assert of(min_margin=0.5) == [(0, 2)]
    assert of(max_pairs_per_sample=2, min_margin=0.35) == [(0, 1), (0, 2)]
    assert of(require_exact_chosen=True) == [(0, 1), (0, 2), (0, 4)]
    assert of_tree(scored, (0, 3), (3, 1), options=replace(SIBLINGS, require_exact_chosen=True)) == [(3, 1)]


# --- where a pair parts ----------------------------------------------------------------------------------------------


def test_where_a_pair_parts_and_how_probable_its_tokens_are() -> None:
    """Tokens 5 6 7 8 against 5 6 9: they part at 2; spans end at 3 and at the end of the answer."""
    score = Score(value=0.0, exact=False)
    logps = tuple(map(math.log, (0.5, 0.5, 0.25, 0.125)))
    left = Candidate(sample_id="s", index=0, text="", token_ids=(5, 6, 7, 8), logps=logps)
    right = Candidate(sample_id="s", index=1, text="", token_ids=(5, 6, 9), logps=logps[:3])
    made = Pair(sample_id="s", chosen=left, rejected=right, chosen_score=score, rejected_score=score)
    found = with_parting(made).provenance["parting"]
    assert found["position"] == 2
    assert found["chosen"] == {"token": 7, "probability": 0.25, "mean_span_logp": round(math.log(0.25 * 0.125) / 2, 6)}
    assert found["rejected"] == {"token": 9, "probability": 0.25, "mean_span_logp": round(math.log(0.25), 6)}
    spans = with_parting(replace(made, provenance={"spans": {"chosen": 3, "rejected": 3}})).provenance
    assert spans["parting"]["chosen"]["mean_span_logp"] == round(math.log(0.25), 6) and "spans" in spans
    # An answer that is the beginning of the other has no token there; unknown log-probs leave the token.
    short = replace(made, rejected=replace(right, token_ids=(5, 6), logps=logps[:2]), chosen=replace(left, logps=()))
    assert with_parting(short).provenance["parting"] == {"position": 2, "chosen": {"token": 7}, "rejected": None}
