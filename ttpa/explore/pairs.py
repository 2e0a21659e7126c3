"""From scored candidates to preference pairs: pure functions and the rule they follow.

The rule of the TTPA release (`TTPA/Components/sampling.py`; arXiv 2505.20016), over distinct candidates with scores S:

* max S < gold_below:  chosen = the target, rejected = every candidate;
* else:                chosen = the candidate with S == max met last, rejected = every candidate with S < max;
* a reply without a call is rejected always, when the target has calls; nothing is made when either side is empty.

conf/pairs/released.yaml is that rule. Nothing here scores, draws or tokenises.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from ttpa.calls.schema import calls_equal
from ttpa.explore.sampler import SiblingPair
from ttpa.options import Count, Fraction, option
from ttpa.records import Candidate, Pair, Sample, Score

Scored = tuple[Candidate, Score]

_GOLD_SCORE = Score(value=1.0, exact=True, explanation="the target")


@option
class PairRule:
    """Which candidates become pairs."""

    gold_below: Fraction
    require_exact_chosen: bool
    min_margin: Fraction
    rejected: Literal["all", "nearest", "random"]
    max_pairs_per_sample: Count | None
    between: Literal["answers", "siblings"]
    seed: int


def make_pairs(sample: Sample, scored: Sequence[Scored], gold: Candidate, rule: PairRule) -> list[Pair]:
    """Makes the pairs of one sample; equal inputs give equal pairs.

    Args:
        sample: The sample all candidates answer.
        scored: Candidates with their scores, in the order in which they were drawn.
        gold: The target as a candidate, rendered and tokenised like the others.
        rule: See `PairRule`.

    Returns:
        One pair per rejected answer, in candidate order. The target is never paired with an answer identical to it.
    """
    distinct = _distinct(scored)
    if not distinct:
        return []
    top = max(score.value for _, score in distinct)
    chosen, below = _choose(sample, distinct, gold, rule, top)
    if chosen is None:
        return []
    losers = [
        (candidate, score)
        for candidate, score in distinct
        if not _identical(candidate, gold)
        and (score.value < below or not _may_win(sample, candidate))
        and not (rule.require_exact_chosen and score.exact)
        and chosen[1].value - score.value >= rule.min_margin
    ]
    provenance = {
        "rule": asdict(rule),
        "chosen": "gold" if chosen[0] is gold else "candidate",
        "max_score": top,
        "distinct": len(distinct),
    }
    return [_pair(chosen, loser, provenance) for loser in _thin(losers, rule, sample.id)]


def pair_siblings(
    sample: Sample, scored: Sequence[Scored], siblings: Sequence[SiblingPair], rule: PairRule
) -> list[Pair]:
    """Pairs of answers that part at a node of a search tree.

    Args:
        sample: The sample.
        scored: Its answers with their scores.
        siblings: What the search found.
        rule: `require_exact_chosen`, `min_margin` and `max_pairs_per_sample` apply.

    Returns:
        The pairs in the search's order; a chosen answer that does not parse, and answers that say the same, give none.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    for found in siblings:
        (good, good_score), (bad, bad_score) = scored[found.chosen], scored[found.rejected]
        if (
            _may_win(sample, good)
            and not _identical(good, bad)
            and not (rule.require_exact_chosen and (not good_score.exact or bad_score.exact))
            and good_score.value - bad_score.value >= rule.min_margin
        ):
            provenance = {"rule": asdict(rule), "chosen": "candidate", **found.provenance}
            pair = _pair((good, good_score), (bad, bad_score), provenance)
            pairs.setdefault((found.chosen, found.rejected), pair)
    return list(pairs.values())[: rule.max_pairs_per_sample]


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
    if not side.logps:
        return {"token": side.token_ids[at]}
    span = side.logps[at : pair.provenance.get("spans", {}).get(name, size)]
    return {
        "token": side.token_ids[at],
        "probability": round(math.exp(side.logps[at]), 6),
        "mean_span_logp": round(math.fsum(span) / len(span), 6),
    }


def _pair(chosen: Scored, rejected: Scored, provenance: dict[str, Any]) -> Pair:
    return Pair(
        sample_id=chosen[0].sample_id,
        chosen=chosen[0],
        rejected=rejected[0],
        chosen_score=chosen[1],
        rejected_score=rejected[1],
        provenance=provenance,
    )


def _choose(
    sample: Sample, distinct: Sequence[Scored], gold: Candidate, rule: PairRule, top: float
) -> tuple[Scored | None, float]:
    """The chosen answer with its score (None: no pair), and the score below which the others are rejected."""
    able = [(candidate, score) for candidate, score in distinct if _may_win(sample, candidate)]
    if rule.require_exact_chosen:
        # An exact answer of the policy's own is preferred to the target: it says the same in the policy's words.
        able = [(candidate, score) for candidate, score in able if score.exact]
        if able:
            best = max(score.value for _, score in able)
            return next(scored for scored in reversed(able) if scored[1].value == best), best
    if top < rule.gold_below:
        return (gold, _GOLD_SCORE), math.inf
    return next((scored for scored in reversed(able) if scored[1].value == top), None), top


def _may_win(sample: Sample, candidate: Candidate) -> bool:
    """Whether the answer may be chosen: it parses, and has a call if the target has."""
    return candidate.calls is not None and (bool(candidate.calls) or not sample.target)


def _distinct(scored: Sequence[Scored]) -> list[Scored]:
    """The first of each set of identical answers."""
    kept: list[Scored] = []
    for candidate, score in scored:
        if not any(_identical(candidate, other) for other, _ in kept):
            kept.append((candidate, score))
    return kept


def _identical(left: Candidate, right: Candidate) -> bool:
    """Equal calls in any order; answers without a parsed call are identical when their texts are."""
    if left.calls and right.calls:
        return calls_equal(left.calls, right.calls)
    return not left.calls and not right.calls and left.text == right.text


def _thin(losers: Sequence[Scored], rule: PairRule, sample_id: str) -> Sequence[Scored]:
    if losers and rule.rejected == "nearest":
        return [max(losers, key=lambda scored: scored[1].value)]  # max returns the first of equals
    if losers and rule.rejected == "random":
        return [random.Random(f"{rule.seed}/{sample_id}").choice(losers)]
    return losers[: rule.max_pairs_per_sample]
