"""ESM, the error-oriented scoring mechanism of TTPA (arXiv 2505.20016): a weighted sum of five parts of a call.

    S = (3 name + 3 required + 1 key + 2 type + 2 value) / 11            D = max(#target arguments, #arguments)
    name      the tool is the target's
    required  share of the called tool's required parameters that are given (1 when it requires none)
    key       parameters that the called tool has, / D
    type      those of them whose value has the declared JSON type, / D
    value     sum over parameters the target has too, / D: 1 if equal; for two strings that differ, 1/2 if equal but
              for case, plus 1/2 if one contains the other

Score 0: no parsable call; a tool outside the list; no argument where the target has some; no argument and another tool.
The printed equation is not public: formula and weights are those of `compute_score` in the released
`TTPA/Components/sampling.py`, with its slips mended: required parameters are looked for in the call and not in the
target; a boolean is no integer and no number, and true is not equal to 1; an unknown tool scores 0 instead of raising;
every call counts and not only the first (mean over the best one-to-one matching, unmatched calls 0); and a call equal
to the target scores 1 even where the target breaks its own schema. `as_released` brings the slips back, but for the
crashes, for tables that reproduce the release.
"""

import math
from collections.abc import Mapping
from typing import Any

from ttpa.calls.schema import PYTHON_TYPES, released_equal, type_ok, values_equal
from ttpa.calls.six_errors import explain, is_exact, matched, read_call
from ttpa.errors import ConfigError
from ttpa.options import NonNegative, option
from ttpa.records import Candidate, Sample, Score, ToolCall

PARTS = ("name", "required", "key", "type", "value")
_ZERO, _ONE = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 1.0)


@option
class ESM:
    """The scorer; see the module header for the equation."""

    weights: dict[str, NonNegative]
    as_released: bool

    def __post_init__(self) -> None:
        if set(self.weights) != set(PARTS):
            problem, remedy = f"must name exactly {', '.join(PARTS)}", "The release uses 3, 3, 1, 2, 2"
            raise ConfigError.at("weights", self.weights, problem, remedy)
        if not any(self.weights.values()):
            raise ConfigError.at("weights", self.weights, "are all 0", "Give one part a weight above 0")

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """`detail` holds the five parts, each in [0, 1]: means over max(#target calls, #calls)."""
        target, calls, exact = sample.target, candidate.calls or (), is_exact(sample, candidate.calls)
        if exact and not (self.as_released and target):
            parts = _ONE
        elif not (target and calls):
            parts = _ZERO
        elif self.as_released:  # arguments that the release cannot read are an empty object
            parts = _compare(sample, target[0], read_call(calls[0]) or ToolCall(name=calls[0].name), released=True)
        else:
            made = [read_call(call) for call in calls]
            found = matched(target, made, lambda gold, call: _compare(sample, gold, call), self._total)
            slots = max(len(target), len(calls))
            parts = {part: math.fsum(one[part] for one in found) / slots for part in PARTS}
        said = explain(sample, candidate)
        return Score(value=self._total(parts), exact=exact, detail=dict(parts), explanation=said)

    def _total(self, parts: Mapping[str, float]) -> float:
        total = scale = 0.0
        for part in PARTS:  # in the release's order and without a compensated sum: parity is to the bit
            total += self.weights[part] * parts[part]
            scale += self.weights[part]
        return total / scale


def _compare(sample: Sample, gold: ToolCall, call: ToolCall | None, released: bool = False) -> dict[str, float]:
    """The five parts of one call (None: unreadable) against one target call."""
    tool = sample.tool(call.name) if call else None
    if call is None or tool is None:
        return _ZERO
    given, wanted = call.arguments, gold.arguments
    if not given:
        return _ONE if call.name == gold.name and not wanted else _ZERO
    fits, equal = (_released_type, released_equal) if released else (type_ok, values_equal)
    size = max(len(given), len(wanted))
    defined = [key for key in given if key in tool.properties]
    required, searched = tool.required, wanted if released else given
    shared = [(given[key], wanted[key]) for key in given if key in wanted]
    return {
        "name": float(call.name == gold.name),
        "required": sum(key in searched for key in required) / len(required) if required else 1.0,
        "key": len(defined) / size,
        "type": sum(fits(given[key], tool.properties[key], tool.parameters) for key in defined) / size,
        "value": sum(1.0 if equal(*values) else _likeness(*values) for values in shared) / size,
    }


def _likeness(value: Any, wanted: Any) -> float:
    """Half a point for equal but for case, half a point for one containing the other; strings that differ only."""
    if not (isinstance(value, str) and isinstance(wanted, str)):
        return 0.0
    return 0.5 * (value.lower() == wanted.lower()) + 0.5 * (value in wanted or wanted in value)


def _released_type(value: Any, schema: Any, _root: Any) -> bool:
    declared = schema.get("type") if isinstance(schema, Mapping) else None
    return isinstance(declared, str) and isinstance(value, PYTHON_TYPES.get(declared, ()))
