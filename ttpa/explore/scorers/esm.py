"""ESM, the error-oriented scoring mechanism of TTPA (arXiv 2505.20016): a weighted sum of five parts of a call.

    S = (3 name + 3 required + 1 key + 2 type + 2 value) / 11            D = max(#target arguments, #arguments)
    name      the tool is the target's
    required  share of the called tool's required parameters that are given (1 when it requires none)
    key       parameters that the called tool has, / D
    type      those of them whose value has the declared JSON type, / D
    value     sum over parameters the target has too, / D: 1 if equal; for two strings that differ, 1/2 if equal but
              for case, plus 1/2 if one contains the other

Score 0: no parsable call; a tool outside the list; no argument where the target has some; no argument and another tool.
The printed equation is not public. Formula and weights are those of `compute_score` in the released
`TTPA/Components/sampling.py`, with its slips mended: required parameters are looked for in the call and not in the
target; a boolean is no integer and no number, and true is not equal to 1; an unknown tool scores 0 instead of raising;
every call counts and not only the first (mean over the best one-to-one matching, unmatched calls 0); and a call equal
to the target scores 1 even where the target breaks its own schema. `as_released` brings the slips back, but for the
crashes, for tables that reproduce the release.
"""

import math
from collections.abc import Mapping
from typing import Any

from ttpa.calls.schema import type_ok, values_equal
from ttpa.calls.six_errors import best_matching, explain, is_exact, read_call
from ttpa.errors import ConfigError
from ttpa.options import NonNegative, option
from ttpa.records import Candidate, Sample, Score, ToolCall

PARTS = ("name", "required", "key", "type", "value")

_ZERO = dict.fromkeys(PARTS, 0.0)
_ONE = dict.fromkeys(PARTS, 1.0)
_RELEASED_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


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
        """Scores one candidate; `detail` holds the five parts (means over calls), each in [0, 1]."""
        calls = candidate.calls
        exact = is_exact(sample, calls)
        if not sample.target:
            parts = _ONE if exact else _ZERO
        elif not calls:
            parts = _ZERO
        elif self.as_released:
            # Arguments that the release cannot read are an empty object.
            first = read_call(calls[0]) or ToolCall(name=calls[0].name)
            parts = _compare(sample, sample.target[0], first, released=True)
        else:
            parts = _ONE if exact else self._mean_parts(sample, calls)
        detail = dict(parts)
        return Score(value=self._total(parts), exact=exact, detail=detail, explanation=explain(sample, candidate))

    def _total(self, parts: Mapping[str, float]) -> float:
        total = scale = 0.0
        for part in PARTS:  # in the release's order and without a compensated sum: parity is to the bit
            total += self.weights[part] * parts[part]
            scale += self.weights[part]
        return total / scale

    def _mean_parts(self, sample: Sample, calls: tuple[ToolCall, ...]) -> dict[str, float]:
        """The five parts, averaged over max(#target calls, #calls); a call without a partner is 0 in each."""
        made = [read_call(call) for call in calls]
        table = [
            [_ZERO if call is None else _compare(sample, gold, call, released=False) for call in made]
            for gold in sample.target
        ]
        matching = best_matching([[self._total(parts) for parts in row] for row in table])
        slots = max(len(sample.target), len(calls))
        return {part: math.fsum(table[row][column][part] for row, column in matching) / slots for part in PARTS}


def _compare(sample: Sample, gold: ToolCall, call: ToolCall, released: bool) -> dict[str, float]:
    """The five parts of one call against one target call."""
    tool = sample.tool(call.name)
    if tool is None:
        return _ZERO
    if not call.arguments:
        return _ONE if call.name == gold.name and not gold.arguments else _ZERO
    fits, equal = (_released_type, _released_equal) if released else (type_ok, values_equal)
    given, wanted = call.arguments, gold.arguments
    size = max(len(given), len(wanted))
    defined = [key for key in given if key in tool.properties]
    required, searched = tool.required, wanted if released else given
    values = [
        1.0 if equal(given[key], wanted[key]) else _likeness(given[key], wanted[key]) for key in given if key in wanted
    ]
    return {
        "name": float(call.name == gold.name),
        "required": sum(key in searched for key in required) / len(required) if required else 1.0,
        "key": len(defined) / size,
        "type": sum(fits(given[key], tool.properties[key]) for key in defined) / size,
        "value": sum(values) / size,
    }


def _likeness(value: Any, wanted: Any) -> float:
    """Half a point for equal but for case, half a point for one containing the other; strings that differ only."""
    if not (isinstance(value, str) and isinstance(wanted, str)):
        return 0.0
    return 0.5 * (value.lower() == wanted.lower()) + 0.5 * (value in wanted or wanted in value)


def _released_equal(value: Any, wanted: Any) -> bool:
    try:
        return bool(value == wanted)
    except RecursionError:  # both nested deeper than Python's `==` goes
        return values_equal(value, wanted)


def _released_type(value: Any, schema: Any) -> bool:
    declared = schema.get("type") if isinstance(schema, Mapping) else None
    return isinstance(declared, str) and isinstance(value, _RELEASED_TYPES.get(declared, ()))
