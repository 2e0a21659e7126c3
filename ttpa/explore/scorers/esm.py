"""ESM, the error-oriented scoring mechanism of TTPA (arXiv 2505.20016): a weighted sum of five parts of a call.

    S = (3 name + 3 required + 1 key + 2 type + 2 value) / 11            D = max(#target arguments, #arguments)
    name      the tool is the target's
    required  share of the called tool's required parameters that are given (1 when it requires none)
    key       parameters that the called tool has, / D
    type      those of them whose value has the declared JSON type, / D
    value     sum over parameters the target has too, / D: 1 if equal; for two strings that differ, 1/2 if equal but
              for case, plus 1/2 if one contains the other

Gates, score 0: no parsable call; a tool outside the list; no argument where the target has some; no argument and
another tool.
The paper's printed equation is not public. Formula and weights are those of `compute_score` in the released
`TTPA/Components/sampling.py`, with its slips mended: required parameters are looked for in the call and not in the
target; a boolean is no integer and no number, and true is not equal to 1; an unknown tool scores 0 instead of raising;
every call counts and not only the first (mean over the best one-to-one matching, unmatched calls 0); and a call equal
to the target scores 1 even where the target breaks its own schema. `as_released=True` brings the slips back, but for
the crashes, for tables that reproduce the release.

What it does not do: decide which candidates become pairs (`ttpa.explore.pairs`) or name the errors (`six_errors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ttpa.calls.schema import type_ok, values_equal
from ttpa.calls.six_errors import best_matching, explain, is_exact, read_call
from ttpa.errors import ConfigError
from ttpa.records import Candidate, Sample, Score, ToolCall, ToolSpec

PARTS = ("name", "required", "key", "type", "value")
WEIGHTS: Mapping[str, float] = {"name": 3.0, "required": 3.0, "key": 1.0, "type": 2.0, "value": 2.0}

_ZERO = dict.fromkeys(PARTS, 0.0)
_ONE = dict.fromkeys(PARTS, 1.0)
_RELEASED_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True, kw_only=True)
class ESM:
    """The scorer; see the module header for the equation.

    Args:
        weights: non-negative weight of each of the five parts; the score is divided by their sum.
        required_against: whether required parameters are looked for in the "prediction" or, as released, in the "gold"
            call. Ignored when `as_released`.
        as_released: parity with the released function, slips included: first call only, required parameters against the
            target, Python's `isinstance` and `==` for types and values. Where the release raises (unknown tool, a
            declared type outside the seven of JSON) the tool scores 0 and the type does not count.

    Raises:
        ConfigError: weights that are not the five, negative, infinite or all 0; another `required_against`; an
            `as_released` that is no boolean.

    Example:
        >>> from ttpa.records import ToolSpec
        >>> schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
        >>> tool = ToolSpec(name="f", parameters=schema)
        >>> gold = ToolCall(name="f", arguments={"a": "Rome"})
        >>> sample = Sample(id="s", tools=(tool,), messages=(), target=(gold,), source="toy")
        >>> call = ToolCall(name="f", arguments={"a": "Rom"})
        >>> score = ESM()(sample, Candidate(sample_id="s", index=0, text="", calls=(call,)))
        >>> round(score.value, 4), score.explanation  # (3 + 3 + 1 + 2 + 2 * 1/2) / 11
        (0.9091, "value of 'a' is 'Rom', expected 'Rome'")
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    required_against: Literal["prediction", "gold"] = "prediction"
    as_released: bool = False

    def __post_init__(self) -> None:
        if set(self.weights) != set(PARTS):
            problem, remedy = f"must name exactly {', '.join(PARTS)}", "The release uses 3, 3, 1, 2, 2"
            raise ConfigError.at("scorer.weights", dict(self.weights), problem, remedy)
        for part, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                remedy = f"The release uses {WEIGHTS[part]:g}"
                raise ConfigError.at(f"scorer.weights.{part}", weight, "must be a finite number >= 0", remedy)
        if not sum(self.weights.values()) > 0:
            raise ConfigError.at("scorer.weights", dict(self.weights), "are all 0", "Give one part a weight above 0")
        if self.required_against not in ("prediction", "gold"):
            problem, remedy = "must be prediction or gold", "Use prediction; gold is the release's slip"
            raise ConfigError.at("scorer.required_against", self.required_against, problem, remedy)
        if not isinstance(self.as_released, bool):
            remedy = "Use true only to reproduce the release"
            raise ConfigError.at("scorer.as_released", self.as_released, "must be true or false", remedy)
        # A plain dictionary in a fixed order: the sum does not depend on the order of a configuration file.
        object.__setattr__(self, "weights", {part: float(self.weights[part]) for part in PARTS})

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """Scores one candidate; `detail` holds the five parts (means over calls), each in [0, 1]."""
        calls = candidate.calls
        exact = is_exact(sample, calls)
        if not sample.target:
            parts = _ONE if exact else _ZERO
        elif not calls:
            parts = _ZERO
        elif self.as_released:
            parts = _released_parts(sample, sample.target[0], calls[0])
        else:
            parts = _ONE if exact else self._mean_parts(sample, calls)
        value = self._total(parts)
        return Score(value=value, exact=exact, detail=dict(parts), explanation=explain(sample, candidate))

    def _total(self, parts: Mapping[str, float]) -> float:
        # Spelled out: the order of the release, and no compensated sum, so that parity is to the bit.
        weight = self.weights
        total = (
            weight["name"] * parts["name"]
            + weight["required"] * parts["required"]
            + weight["key"] * parts["key"]
            + weight["type"] * parts["type"]
            + weight["value"] * parts["value"]
        )
        return total / sum(weight.values())

    def _mean_parts(self, sample: Sample, calls: tuple[ToolCall, ...]) -> dict[str, float]:
        """The five parts, averaged over max(#target calls, #calls); a call without a partner is 0 in each."""
        against_gold = self.required_against == "gold"
        table = [[_parts(sample, gold, call, against_gold) for call in calls] for gold in sample.target]
        matching = best_matching([[self._total(parts) for parts in line] for line in table])
        slots = max(len(sample.target), len(calls))
        return {part: math.fsum(table[row][column][part] for row, column in matching) / slots for part in PARTS}


def _parts(sample: Sample, gold: ToolCall, raw: ToolCall, against_gold: bool) -> dict[str, float]:
    """The five parts of one call against one target call, slips mended."""
    call = read_call(raw)
    return _ZERO if call is None else _compared(sample, gold, call, against_gold, type_ok, values_equal)


def _released_parts(sample: Sample, gold: ToolCall, raw: ToolCall) -> dict[str, float]:
    """The five parts as the released function counts them; arguments it cannot read are an empty object."""
    call = read_call(raw) or ToolCall(name=raw.name)
    return _compared(sample, gold, call, True, _released_type, _python_equal)


def _compared(
    sample: Sample,
    gold: ToolCall,
    call: ToolCall,
    against_gold: bool,
    fits: Callable[[Any, Any], bool],
    equal: Callable[[Any, Any], bool],
) -> dict[str, float]:
    tool = sample.tool(call.name)
    if tool is None:
        return _ZERO
    if not call.arguments:
        return _ONE if call.name == gold.name and not gold.arguments else _ZERO
    given, wanted = call.arguments, gold.arguments
    size = max(len(given), len(wanted))
    known = [key for key in given if key in tool.properties]
    return {
        "name": float(call.name == gold.name),
        "required": _share(tool, wanted if against_gold else given),
        "key": len(known) / size,
        "type": sum(fits(given[key], tool.properties[key]) for key in known) / size,
        "value": sum(
            1.0 if equal(given[key], wanted[key]) else _likeness(given[key], wanted[key])
            for key in given
            if key in wanted
        )
        / size,
    }


def _share(tool: ToolSpec, arguments: Mapping[str, Any]) -> float:
    required = tool.required
    return sum(key in arguments for key in required) / len(required) if required else 1.0


def _likeness(value: Any, wanted: Any) -> float:
    """Half a point for equal but for case, half a point for one containing the other; strings that differ only.

    Both halves together do not happen: strings equal but for case are as long, unless lower-casing changes the length.
    """
    if not (isinstance(value, str) and isinstance(wanted, str)):
        return 0.0
    return 0.5 * (value.lower() == wanted.lower()) + 0.5 * (value in wanted or wanted in value)


def _python_equal(value: Any, wanted: Any) -> bool:
    try:
        return bool(value == wanted)
    except RecursionError:  # both nested deeper than Python's `==` goes
        return values_equal(value, wanted)


def _released_type(value: Any, schema: Any) -> bool:
    declared = schema.get("type") if isinstance(schema, Mapping) else None
    return isinstance(declared, str) and isinstance(value, _RELEASED_TYPES.get(declared, ()))
