"""From scored candidates to preference pairs: one pure function and the rule it follows.

The rule of the TTPA release (`TTPA/Components/sampling.py`; arXiv 2505.20016), over distinct candidates with scores S:

* max S < gold_below:  chosen = the target, rejected = every candidate;
* else:                chosen = the candidate with S == max met last, rejected = every candidate with S < max;
* a reply without a call is rejected always, when the target has calls; nothing is made when either side is empty.

`PairRule(gold_below=0.8, require_exact_chosen=False, min_margin=0.0, rejected="all", max_pairs_per_sample=None)` is the
release. It does not score, draw or tokenise, and it knows no policy: reference log-probs are added later.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ttpa.calls.schema import calls_equal
from ttpa.errors import ConfigError
from ttpa.records import Candidate, Pair, Sample, Score

Scored = tuple[Candidate, Score]

_GOLD_SCORE = Score(value=1.0, exact=True, explanation="the target")


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Which candidates become pairs.

    Args:
        gold_below: the target is the chosen answer when no candidate scores this much; in [0, 1]. The release has 0.8;
            0 never uses the target.
        require_exact_chosen: a candidate may be chosen only if its score says `exact`; without one, the target if the
            gate above allows it, else there is no pair. The release chooses an imperfect best.
        min_margin: pairs with a smaller margin (score of the chosen minus score of the rejected answer) are dropped.
        rejected: "all"; "nearest", the best of the rejected ones (the first met, when several are); or "random", one of
            them drawn by `seed` and the sample's id.
        max_pairs_per_sample: keep at most this many, in candidate order; None keeps all.
        between: "answers": any two candidates of a sample; "siblings": the pairs a tree search found at its nodes, as
            they are (`gold_below` and `rejected` then have no say).
        seed: used by "random" only.

    Raises:
        ConfigError: a value outside its range; the message names the key.
    """

    gold_below: float
    require_exact_chosen: bool
    min_margin: float
    rejected: Literal["all", "nearest", "random"]
    max_pairs_per_sample: int | None
    between: Literal["answers", "siblings"] = "answers"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("gold_below", "min_margin"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                remedy = "Use 0.8 for the release's rule, 0 for never" if key == "gold_below" else "Use 0 to keep all"
                raise ConfigError.at(f"pairs.{key}", value, "must be a number in [0, 1]", remedy)
        exact = self.require_exact_chosen
        if not isinstance(exact, bool):
            remedy = "Use false for the release's rule"
            raise ConfigError.at("pairs.require_exact_chosen", exact, "must be true or false", remedy)
        if self.rejected not in ("all", "nearest", "random"):
            remedy = "Use all for the release's rule"
            raise ConfigError.at("pairs.rejected", self.rejected, "must be all, nearest or random", remedy)
        if self.between not in ("answers", "siblings"):
            remedy = "siblings needs sampler=mcts"
            raise ConfigError.at("pairs.between", self.between, "must be answers or siblings", remedy)
        cap = self.max_pairs_per_sample
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            remedy = "Use null for no limit"
            raise ConfigError.at("pairs.max_pairs_per_sample", cap, "must be a whole number >= 1", remedy)


def make_pairs(sample: Sample, scored: Sequence[Scored], gold: Candidate, rule: PairRule) -> list[Pair]:
    """Makes the pairs of one sample; equal inputs give equal pairs.

    Args:
        sample: the sample all candidates answer.
        scored: candidates with their scores, in the order in which they were drawn.
        gold: the target as a candidate, rendered and tokenised like the others.
        rule: see `PairRule`.

    Returns:
        One pair per rejected answer, in candidate order; empty when either side is. The target is never paired with an
        answer identical to it.
    """
    distinct = _distinct(scored)
    if not distinct:
        return []
    top = max(score.value for _, score in distinct)
    chosen, below = _choose(sample, distinct, gold, rule, top)
    if chosen is None:
        return []
    good, good_score = chosen
    losers = [
        (candidate, score)
        for candidate, score in distinct
        if not _identical(candidate, gold)
        and (score.value < below or not _may_win(sample, candidate))
        and not (rule.require_exact_chosen and score.exact)
        and good_score.value - score.value >= rule.min_margin
    ]
    origin = "gold" if good is gold else "candidate"
    provenance = {"rule": asdict(rule), "chosen": origin, "max_score": top, "distinct": len(distinct)}
    return [
        Pair(
            sample_id=sample.id,
            chosen=good,
            rejected=candidate,
            chosen_score=good_score,
            rejected_score=score,
            provenance=provenance,
        )
        for candidate, score in _thin(losers, rule, sample.id)
    ]


def pair_siblings(
    sample: Sample,
    scored: Sequence[Scored],
    siblings: Sequence[tuple[int, int, Mapping[str, Any]]],
    rule: PairRule,
) -> list[Pair]:
    """Pairs of answers that part at a node of a search tree.

    Args:
        sample: the sample.
        scored: its answers with their scores.
        siblings: (number of the chosen answer, of the rejected one, what the search knows about them).
        rule: `require_exact_chosen`, `min_margin` and `max_pairs_per_sample` apply.

    Returns:
        The pairs in the search's order; a chosen answer that does not parse, and answers that say the same, give none.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    for left, right, info in siblings:
        (good, good_score), (bad, bad_score) = scored[left], scored[right]
        if (
            not _may_win(sample, good)
            or _identical(good, bad)
            or (rule.require_exact_chosen and (not good_score.exact or bad_score.exact))
            or good_score.value - bad_score.value < rule.min_margin
        ):
            continue
        pairs.setdefault(
            (left, right),
            Pair(
                sample_id=sample.id,
                chosen=good,
                rejected=bad,
                chosen_score=good_score,
                rejected_score=bad_score,
                provenance={"rule": asdict(rule), "chosen": "candidate", **info},
            ),
        )
    return list(pairs.values())[: rule.max_pairs_per_sample]


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
            return next(pair for pair in reversed(able) if pair[1].value == best), best
    if top < rule.gold_below:
        return (gold, _GOLD_SCORE), math.inf
    winners = [(candidate, score) for candidate, score in able if score.value == top]
    return (winners[-1] if winners else None), top


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


def _thin(losers: Sequence[Scored], rule: PairRule, sample_id: str) -> list[Scored]:
    if not losers:
        return []
    if rule.rejected == "nearest":
        return [max(losers, key=lambda pair: pair[1].value)]  # max returns the first of equals
    if rule.rejected == "random":
        return [random.Random(f"{rule.seed}/{sample_id}").choice(losers)]
    return list(losers[: rule.max_pairs_per_sample])
