"""AST match: whether the calls are the target's; the order of calls is free.

The strict reward of RFT and GRPO baselines (1 or 0). With `partial` a wrong call is worth something. It does not read
the schema, so it cannot tell a wrong type from a wrong value (`ttpa.explore.scorers.esm` can). It is not BFCL's
checker.
"""

import math

from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import best_matching, explain, is_exact, read_call
from ttpa.options import option
from ttpa.records import Candidate, Sample, Score, ToolCall

NAME_SHARE = 0.3
NOT_EXACT_CAP = 0.99


@option
class ASTMatch:
    """1 if the calls equal the target's in any order, else 0, or a share of it."""

    partial: bool

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """Scores one candidate; `detail` holds `exact`, and `name` and `arguments` (means over calls) when partial."""
        exact = is_exact(sample, candidate.calls)
        detail = {"exact": float(exact)}
        value = float(exact)
        if self.partial:
            name, arguments = (1.0, 1.0) if exact else _shares(sample, candidate)
            detail |= {"name": name, "arguments": arguments}
            if not exact:
                value = min(NAME_SHARE * name + (1 - NAME_SHARE) * arguments, NOT_EXACT_CAP)
        return Score(value=value, exact=exact, detail=detail, explanation=explain(sample, candidate))


def _shares(sample: Sample, candidate: Candidate) -> tuple[float, float]:
    """Mean of the name part and mean of the share of equal arguments; a call without a partner is 0 in both."""
    calls = candidate.calls or ()
    table = [[_likeness(gold, call) for call in calls] for gold in sample.target]
    matching = best_matching([[NAME_SHARE * name + (1 - NAME_SHARE) * share for name, share in row] for row in table])
    matched = [table[row][column] for row, column in matching]
    slots = max(len(sample.target), len(calls), 1)
    return math.fsum(name for name, _ in matched) / slots, math.fsum(share for _, share in matched) / slots


def _likeness(gold: ToolCall, raw: ToolCall) -> tuple[float, float]:
    call = read_call(raw)
    if call is None:
        return 0.0, 0.0
    name = float(call.name == gold.name)
    keys = set(gold.arguments) | set(call.arguments)
    if not keys:
        return name, name
    shared = [key for key in call.arguments if key in gold.arguments]
    return name, sum(values_equal(call.arguments[key], gold.arguments[key]) for key in shared) / len(keys)
