"""From scored candidates to preference pairs: pure functions and the rule they follow.

The rule of the TTPA release (`TTPA/Components/sampling.py`; arXiv 2505.20016), over distinct candidates with scores S:

* max S < gold_below:  chosen = the target, rejected = every candidate;
* else:                chosen = the candidate with S == max met last, rejected = every candidate with S < max;
* a reply without a call is rejected always, when the target has calls; nothing is made when either side is empty.

conf/pairs/released.yaml is that rule.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

from ttpa.calls.schema import calls_equal
from ttpa.explore.sampler import SiblingPair
from ttpa.options import Count, Fraction, option
from ttpa.records import Candidate, Pair, Sample, Score

Scored = tuple[Candidate, Score]

GOLD_SCORE = Score(value=1.0, exact=True, explanation="the target")


@option
class PairRule:
    """Which candidates become pairs."""

    given: ClassVar[bool] = False
    gold_below: Fraction
    require_exact_chosen: bool
    min_margin: Fraction
    rejected: Literal["all", "nearest", "random"]
    max_pairs_per_sample: Count | None
    between: Literal["answers", "siblings"]
    seed: int


@option
class GivenPairs:
    """The pairs that the data holds (`ttpa.data.pairs`), in place of a rule for answers that are drawn."""

    given: ClassVar[bool] = True
    gold_below: ClassVar[float] = 1.0  # the chosen answer is the target
    between: ClassVar[str] = "answers"


def make_pairs(sample: Sample, scored: Sequence[Scored], gold: Candidate, rule: PairRule) -> list[Pair]:
    """The pairs of one sample, a pair for each rejected answer, in the order in which candidates were drawn.

    `gold` is the target, rendered and tokenised like the others; an answer that says the same is never rejected.
    """
    distinct: list[Scored] = []
    for one in scored:
        if not any(_identical(one[0], other) for other, _ in distinct):
            distinct.append(one)
    strict = rule.require_exact_chosen
    able = [one for one in distinct if _may_win(sample, one[0]) and (one[1].exact or not strict)]
    top = max((score.value for _, score in distinct), default=math.nan)
    # An exact answer of the policy's own is preferred to the target: it says the same in the policy's words.
    if top < rule.gold_below and not (strict and able):
        chosen, below = (gold, GOLD_SCORE), math.inf
    else:
        below = max((score.value for _, score in able), default=top) if strict else top
        best = [one for one in able if one[1].value == below]
        if not best:
            return []
        chosen = best[-1]
    losers = [
        one
        for one in distinct
        if (one[1].value < below or not _may_win(sample, one[0]))
        and not _identical(one[0], gold)
        and _beats(chosen, one, rule)
    ]
    if losers and rule.rejected == "nearest":
        losers = [max(losers, key=lambda one: one[1].value)]  # max returns the first of equals
    elif losers and rule.rejected == "random":
        losers = [random.Random(f"{rule.seed}/{sample.id}").choice(losers)]
    known = {"chosen": "gold" if chosen[0] is gold else "candidate", "max_score": top, "distinct": len(distinct)}
    return [_pair(chosen, loser, rule, known) for loser in losers[: rule.max_pairs_per_sample]]


def pair_siblings(
    sample: Sample, scored: Sequence[Scored], siblings: Sequence[SiblingPair], rule: PairRule
) -> list[Pair]:
    """Pairs of answers that part at a node of a search tree, in the search's order. Of the rule,
    `require_exact_chosen`, `min_margin` and `max_pairs_per_sample` apply; a chosen answer that may not win gives none.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    for found in siblings:
        good, bad = scored[found.chosen], scored[found.rejected]
        if _may_win(sample, good[0]) and _beats(good, bad, rule):
            pair = _pair(good, bad, rule, {"chosen": "candidate", **found.provenance})
            pairs.setdefault((found.chosen, found.rejected), pair)
    return list(pairs.values())[: rule.max_pairs_per_sample]


def _beats(good: Scored, bad: Scored, rule: PairRule) -> bool:
    """Whether two answers differ in what they say and by enough."""
    exact = good[1].exact and not bad[1].exact
    far = good[1].value - bad[1].value >= rule.min_margin
    return far and (exact or not rule.require_exact_chosen) and not _identical(good[0], bad[0])


def _may_win(sample: Sample, candidate: Candidate) -> bool:
    """Whether the answer may be chosen: it parses, and has a call if the target has."""
    return candidate.calls is not None and (bool(candidate.calls) or not sample.target)


def _identical(left: Candidate, right: Candidate) -> bool:
    """Equal calls in any order; answers without a parsed call are identical when their texts are."""
    if left.calls and right.calls:
        return calls_equal(left.calls, right.calls)
    return not left.calls and not right.calls and left.text == right.text


def _pair(chosen: Scored, rejected: Scored, rule: PairRule, known: dict[str, Any]) -> Pair:
    return Pair(
        sample_id=chosen[0].sample_id,
        chosen=chosen[0],
        rejected=rejected[0],
        chosen_score=chosen[1],
        rejected_score=rejected[1],
        provenance={"rule": asdict(rule), **known},
    )


def with_parting(pair: Pair) -> Pair:
    """The pair with `parting` in its provenance: the position at which its answers part and, for each side, the token
    there, its probability, and the mean log-prob of the span that begins there. A side that ends before has None; a
    side without log-probs has the token alone.
    """
    sides = {name: _parting(pair, name, side) for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected))}
    return replace(pair, provenance={**pair.provenance, "parting": {"position": pair.branch, **sides}})


def _parting(pair: Pair, name: str, side: Candidate) -> dict[str, Any] | None:
    at, size = pair.branch, len(side.token_ids)
    if at >= size:
        return None
    token = {"token": side.token_ids[at]}
    if not side.logps:
        return token
    span = side.logps[at : pair.provenance.get("spans", {}).get(name, size)]
    mean = round(math.fsum(span) / len(span), 6)
    return token | {"probability": round(math.exp(side.logps[at]), 6), "mean_span_logp": mean}
