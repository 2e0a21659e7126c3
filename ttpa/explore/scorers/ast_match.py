"""AST match: whether the calls are the target's; the order of calls is free. Not BFCL's checker.

The strict reward of RFT and GRPO baselines. It does not read the schema, so it cannot tell a wrong type from a wrong
value (`ttpa.explore.scorers.esm` can).
"""

import math

from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import explain, is_exact, matched, read_call
from ttpa.options import option
from ttpa.records import Candidate, Sample, Score, ToolCall

NAME_SHARE = 0.3
NOT_EXACT_CAP = 0.99


@option
class ASTMatch:
    """1 if the calls equal the target's in any order, else 0, or a share of it."""

    partial: bool

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """`detail` holds `exact`, and `name` and `arguments` (means over calls) when partial."""
        exact = is_exact(sample, candidate.calls)
        detail, value = {"exact": float(exact)}, float(exact)
        if self.partial:
            calls = candidate.calls or ()
            found = matched(sample.target, calls, _likeness, lambda parts: _value(*parts))
            slots = max(len(sample.target), len(calls), 1)
            # A call without a partner is 0 in both.
            name, arguments = (1.0 if exact else math.fsum(parts[at] for parts in found) / slots for at in (0, 1))
            detail |= {"name": name, "arguments": arguments}
            value = 1.0 if exact else min(_value(name, arguments), NOT_EXACT_CAP)
        return Score(value=value, exact=exact, detail=detail, explanation=explain(sample, candidate))


def _value(name: float, arguments: float) -> float:
    return NAME_SHARE * name + (1 - NAME_SHARE) * arguments


def _likeness(gold: ToolCall, raw: ToolCall) -> tuple[float, float]:
    """Whether the names are equal, and the share of arguments that are."""
    call = read_call(raw)
    if call is None:
        return 0.0, 0.0
    name, keys = float(call.name == gold.name), gold.arguments.keys() | call.arguments.keys()
    shared = gold.arguments.keys() & call.arguments.keys()
    equal = sum(values_equal(call.arguments[key], gold.arguments[key]) for key in shared)
    return name, equal / len(keys) if keys else name
