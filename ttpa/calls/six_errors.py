"""The six error types of TTPA (arXiv 2505.20016) as a classification that needs no scorer; labels: docs/evaluation.md.

Calls are matched one-to-one with the target calls, optimally: equal names, then equal arguments, shared parameter
names, few surplus parameters. Arguments are judged by the schema of the tool the target calls; with another listed
tool, by that tool's own schema. What the target itself does is never an error; a candidate that is not exact has at
least one label.
"""

import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ttpa.calls.schema import calls_equal, parameter_schema, type_ok, values_equal
from ttpa.records import Candidate, Sample, ToolCall

SIX = ("format", "tool_name", "missing_required", "parameter_name", "parameter_type", "parameter_value")
LABELS = (*SIX, "call_count")
T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def six_errors(sample: Sample, calls: Sequence[ToolCall] | None) -> tuple[str, ...]:
    """Labels of the parsed calls of a candidate (None: the text did not parse), in the order of `LABELS`."""
    return tuple(dict.fromkeys(label for label, _ in find_errors(sample, calls)))


def primary_error(labels: Iterable[str]) -> str:
    """The first of the labels in the order of `LABELS`, "" when there is none. A misspelt required parameter counts as
    missing, as in BFCL's checker.
    """
    return min(labels, key=LABELS.index, default="")


def find_errors(sample: Sample, calls: Sequence[ToolCall] | None) -> list[tuple[str, str]]:
    """(label, a sentence for a person) for everything wrong, sorted by `LABELS`; empty if and only if `is_exact`."""
    if calls is None:
        return [("format", "the reply does not parse as tool calls")]
    made = read_calls(calls)
    if made is None:
        number, call = next((number, call) for number, call in enumerate(calls, 1) if read_call(call) is None)
        return [("format", f"arguments of call {number}, {show(call.name)}, are no object")]
    if calls_equal(made, sample.target):
        return []
    found = []
    if len(made) != len(sample.target):
        found.append(("call_count", f"{len(made)} calls made, {len(sample.target)} expected"))
    for gold, call in match_calls(sample.target, made):
        found += _compare(sample, gold, call)
    return sorted(found, key=lambda error: LABELS.index(error[0]))


def explain(sample: Sample, candidate: Candidate) -> str:
    """One sentence for a person: the first error, and how many more there are."""
    found = find_errors(sample, candidate.calls)
    if not found:
        return "calls equal the target" if sample.target else "no call is made, as expected"
    text = found[0][1]
    if candidate.calls is None and candidate.error:
        text += f": {candidate.error[:200]}"
    return text if len(found) == 1 else f"{text} (and {len(found) - 1} more)"


def is_exact(sample: Sample, calls: Sequence[ToolCall] | None) -> bool:
    """Whether the calls equal the target's in any order; with a text target, whether no call is made."""
    made = read_calls(calls)
    return made is not None and calls_equal(made, sample.target)


def read_call(call: ToolCall) -> ToolCall | None:
    """The call with its arguments as an object, which may be JSON text, as in the release; None where they are none."""
    arguments: Any = call.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return replace(call, arguments=arguments) if isinstance(arguments, Mapping) else None


def read_calls(calls: Sequence[ToolCall] | None) -> list[ToolCall] | None:
    """All calls as `read_call` reads them; None where there are none to read (None), or one cannot be read."""
    made = [read for call in calls or () if (read := read_call(call))]
    return None if calls is None or len(made) < len(calls) else made


def show(value: Any) -> str:
    """A short repr that exists for every value (a number of 5,000 digits has no repr in Python)."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


def match_calls(gold: Sequence[ToolCall], calls: Sequence[ToolCall]) -> list[tuple[ToolCall, ToolCall]]:
    """Pairs (target call, call): a one-to-one matching as the module header says."""
    base = 1 + sum(len(call.arguments) for call in (*gold, *calls))

    def worth(pair: tuple[ToolCall, ToolCall]) -> int:
        left, right = pair
        shared = [key for key in left.arguments if key in right.arguments]
        equal = sum(values_equal(left.arguments[key], right.arguments[key]) for key in shared)
        surplus = len(right.arguments) - len(shared)
        # Digits of one number to the base `base`: no sum of a lower digit reaches the next, so a sum is lexicographic.
        return (((left.name == right.name) * base + equal) * base + len(shared)) * base - surplus

    return matched(gold, calls, lambda left, right: (left, right), worth)


def best_matching(worth: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """One-to-one matching of the rows and columns of a table with the largest sum, as pairs (row, column) by row."""
    if not worth or not worth[0]:
        return []
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def matched(
    gold: Sequence[Any],
    calls: Sequence[Any],
    compare: Callable[[Any, Any], T],
    worth: Callable[[T], float],
    matching: Callable[[list[list[float]]], list[tuple[int, int]]] = best_matching,
) -> list[T]:
    """`compare` of each target call with the call that it is matched with, so that the sum of `worth` is greatest."""
    table = [[compare(left, right) for right in calls] for left in gold]
    return [table[row][column] for row, column in matching([[worth(found) for found in row] for row in table])]


def _compare(sample: Sample, gold: ToolCall, call: ToolCall) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with one call that was matched with the target call `gold`."""
    called, wanted, name = sample.tool(call.name), gold.arguments, show(call.name)
    if call.name != gold.name:
        yield "tool_name", f"tool is {name}, expected {show(gold.name)}"
    # A tool that does not exist has no schema: such a call is judged as a misspelt call of the wanted tool.
    foreign = call.name != gold.name and called is not None
    spec = called or sample.tool(gold.name)
    required = spec.required if spec else ()
    for key in required:
        if key not in call.arguments and (foreign or key in wanted):
            yield "missing_required", f"required parameter {show(key)} of {name} is missing"
    for key, value in wanted.items():
        if not foreign and key not in call.arguments and key not in required:
            yield "parameter_value", f"value of {show(key)} is left out, expected {show(value)}"
    for key, value in call.arguments.items():
        given = key in wanted
        equal = given and values_equal(value, wanted[key])
        if equal and not foreign:
            continue
        schema = parameter_schema(spec, key) if spec else None
        if schema is None and (foreign or not given):
            yield "parameter_name", f"{name} has no parameter {show(key)}"
        elif spec and schema is not None and not type_ok(value, schema, spec.parameters):
            kind = schema.get("type", "as declared")
            yield "parameter_type", f"type of {show(key)} is not {kind}: {show(value)}"
        elif not equal and (given or not foreign):
            expected = show(wanted[key]) if given else "none"
            yield "parameter_value", f"value of {show(key)} is {show(value)}, expected {expected}"
