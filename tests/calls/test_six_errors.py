"""The six errors: one candidate per label, total over random calls, and the matching against brute force."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toolcalls
from tests.toolcalls import answer, call, spec
from ttpa.calls.six_errors import LABELS, SIX, best_matching, explain, is_exact, match_calls, primary_error, six_errors
from ttpa.records import Candidate, Sample, ToolCall, ToolSpec

TOOLS = (spec("f", ("city",), city="string", days="integer", unit="string"), spec("g", ("key",), key="string"))
GOLD = call("f", city="Rome", days=3)


def sample(*target: ToolCall) -> Sample:
    return toolcalls.sample(*target, tools=TOOLS)


@pytest.mark.parametrize(("made", "labels"), [
    (GOLD, ()), (call("f", city="Rome", days=3.0), ()), (call("f", city="Rom", days=3), ("parameter_value",)),
    (call("f", city="Rome", days="3"), ("parameter_type",)), (call("f", city="Rome", days=True), ("parameter_type",)),
    (call("f", city="Rome", days=3, zip=1), ("parameter_name",)), (call("f", days=3), ("missing_required",)),
    (call("f", town="Rome", days=3), ("missing_required", "parameter_name")),
    (call("f", city="Rome"), ("parameter_value",)),  # an optional one left to its default
    (call("f", city="Rome", days=3, unit="C"), ("parameter_value",)),  # an optional one the target leaves out
    (call("F", city="Rome", days=3), ("tool_name",)),  # no such tool: judged as a misspelt f
    (call("F", days=4), ("tool_name", "missing_required", "parameter_value")),
    (call("g", key="x"), ("tool_name",)),  # another tool, rightly called
    (call("g", city="Rome"), ("tool_name", "missing_required", "parameter_name")),
])  # fmt: skip
def test_hand_worked(made: ToolCall, labels: tuple[str, ...]) -> None:
    assert six_errors(sample(GOLD), [made]) == labels


def test_format() -> None:
    assert six_errors(sample(GOLD), None) == six_errors(sample(), None) == ("format",)
    junk: Any = "{"
    assert six_errors(sample(GOLD), [ToolCall(name="f", arguments=junk)]) == ("format",)
    text: Any = '{"city": "Rome", "days": 3}'
    assert six_errors(sample(GOLD), [ToolCall(name="f", arguments=text)]) == ()


def test_call_count_is_a_seventh_bucket() -> None:
    assert list(LABELS) == [*SIX, "call_count"]
    assert six_errors(sample(GOLD), []) == ("call_count",)
    assert six_errors(sample(GOLD), [GOLD, GOLD]) == ("call_count",)
    assert six_errors(sample(call("f")), [call("f", zip=1), call("f")]) == ("call_count",)
    assert six_errors(sample(), [GOLD, call("nonsense")]) == ("call_count",)
    assert six_errors(sample(), []) == ()
    assert six_errors(sample(GOLD, call("g", key="k")), [call("g", key="?")]) == ("parameter_value", "call_count")


def test_a_target_that_breaks_its_schema_is_no_error() -> None:
    odd = call("f", days="three", zip=1)
    assert six_errors(sample(odd), [odd]) == ()
    assert six_errors(sample(odd), [call("f", days="three")]) == ("parameter_value",)
    lost = call("not_listed", a=1)
    assert six_errors(sample(lost), [call("not_listed", a=2, b=1)]) == ("parameter_name", "parameter_value")


def test_a_tool_that_allows_any_parameter_has_no_wrong_name() -> None:
    free = ToolSpec(name="f", parameters={"type": "object", "additionalProperties": {"type": "string"}})
    wanted = toolcalls.sample(call("f", x="1"), tools=(free,))
    assert six_errors(wanted, [call("f", x="1", y="2")]) == ("parameter_value",)
    assert six_errors(wanted, [call("f", x="1", y=2)]) == ("parameter_type",)


def test_primary_error_follows_the_fixed_order() -> None:
    assert primary_error(reversed(LABELS)) == "format"
    assert [primary_error(LABELS[at:]) for at in range(7)] == list(LABELS)
    assert primary_error(()) == ""


def test_matching_prefers_names_then_equal_arguments() -> None:
    one, two = call("f", city="Rome", days=1), call("f", city="Oslo", days=2)
    wrong, other = call("f", city="Oslo", days=9), call("g", city="Rome", days=1)
    assert match_calls([one, two], [wrong, other]) == [(one, other), (two, wrong)]
    assert six_errors(sample(one, two), [wrong, one]) == ("parameter_value",)
    pairs = match_calls([one, call("g", key="k")], [call("g", key="?"), call("f", city="?", days=0)])
    assert [(gold.name, made.name) for gold, made in pairs] == [("f", "f"), ("g", "g")]


def test_sentences() -> None:
    def of(*calls: ToolCall) -> str:
        return explain(sample(GOLD), answer(*calls))

    assert of(GOLD) == "calls equal the target"
    assert of(call("f", city="Rom", days=3)) == "value of 'city' is 'Rom', expected 'Rome'"
    assert of(call("f", town="Rome", days=3)) == "required parameter 'city' of 'f' is missing (and 1 more)"
    assert of(call("f", city="Rome", days="3")) == "type of 'days' is not integer: '3'"
    broken = Candidate(sample_id="s", index=0, text="", error="unclosed bracket at character 4")
    assert explain(sample(GOLD), broken) == "the reply does not parse as tool calls: unclosed bracket at character 4"


def any_calls() -> st.SearchStrategy[ToolCall]:
    values = st.sampled_from(["Rome", "Rom", True, False, None, [1]]) | st.integers(0, 3) | st.floats()
    arguments = st.dictionaries(st.sampled_from(["city", "days", "unit", "key", "zz"]), values, max_size=4)
    return st.builds(lambda name, given: call(name, **given), st.sampled_from(["f", "g", "h"]), arguments)


@given(gold=st.lists(any_calls(), max_size=3), made=st.none() | st.lists(any_calls(), max_size=3))
@settings(max_examples=300, deadline=None)
def test_exact_has_no_label_and_everything_else_has_one(gold: list[ToolCall], made: list[ToolCall] | None) -> None:
    labels = six_errors(sample(*gold), made)
    assert bool(labels) != is_exact(sample(*gold), made)
    assert set(labels) <= set(LABELS) and list(labels) == sorted(labels, key=LABELS.index)


@given(data=st.data(), rows=st.integers(0, 4), columns=st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_best_matching_is_optimal(data: st.DataObject, rows: int, columns: int) -> None:
    line = st.lists(st.integers(-5, 5), min_size=columns, max_size=columns)
    table = data.draw(st.lists(line, min_size=rows, max_size=rows))
    found = best_matching(table)
    assert len(found) == min(rows, columns)
    assert len({row for row, _ in found}) == len({column for _, column in found}) == len(found)
    tall = [list(line) for line in zip(*table, strict=True)] if rows > columns else table
    short, long = min(rows, columns), max(rows, columns)
    best = max(sum(tall[at][to] for at, to in enumerate(order)) for order in permutations(range(long), short))
    assert sum(table[row][column] for row, column in found) == best
