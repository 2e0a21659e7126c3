"""The checker: every rule by hand, and the official verdicts on outputs of models and on answers changed by hand, one
kind of slip each, and at random.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.bfcl.cases import Case, read_cases
from ttpa.benchmarks.bfcl.categories import CATEGORIES, category_of_id
from ttpa.benchmarks.bfcl.check import check_call, standard
from ttpa.calls.six_errors import LABELS
from ttpa.errors import DataError

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"


@cache
def published() -> dict[str, Case]:
    return read_cases(DATA)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def case(schema: dict[str, Any], accepted: Any, category: str = "simple_python", **more: Any) -> Case:
    """A question for f(a) with one schema and its accepted values; `more` are further answered parameters."""
    properties = {"a": schema, **{key: {"type": "string"} for key in more}}
    function = {"name": "f", "parameters": {"type": "dict", "properties": properties, "required": ["a"]}}
    return Case("x_0", CATEGORIES[category], [function], [{"f": {"a": accepted, **more}}])


INTEGER, FLOAT, STRING, BOOLEAN = ({"type": kind} for kind in ("integer", "float", "string", "boolean"))
FLOATS, ANYTHING, PAIR = ({"type": kind, "items": {"type": "float"}} for kind in ("array", "array", "tuple"))
INTEGERS = {"type": "array", "items": {"type": "integer"}}
STRINGS = {"type": "array", "items": {"type": "string"}}
DICTS = {"type": "array", "items": {"type": "dict"}}
DICT = {"type": "dict"}


@pytest.mark.parametrize(
    ("schema", "accepted", "text", "error"),
    [
        (INTEGER, [5], "f(a=5)", None),
        (INTEGER, [5], "f(a=5.0)", "type_error:simple"),
        (INTEGER, [1], "f(a=True)", "type_error:simple"),
        (INTEGER, [6], "f(a=2*3)", None),
        (INTEGER, ["n"], 'f(a="n")', None),  # a variable: compared literally
        (INTEGER, ["n"], 'f(a="N")', "value_error:others"),
        (FLOAT, [5.0], "f(a=5)", None),
        (FLOAT, [5.0], "f(a='5')", "type_error:simple"),
        (FLOAT, [5.0], f"f(a={10**400})", "value_error:others"),
        (FLOATS, [[1.0, 3.0]], "f(a=[1, 3])", "type_error:nested"),
        (FLOATS, [[1, 3]], "f(a=[1.0, 3.0])", None),
        (FLOATS, [[]], "f(a=['x'])", "type_error:nested"),
        (FLOATS, [[1.0], ""], "f(a=['x'])", "value_error:list/tuple"),  # what is no list among the answers allows all
        (INTEGERS, [[1, 2]], "f(a=(1, 2))", "type_error:simple"),
        (INTEGERS, [[1, 2]], "f(a=[2, 1])", "value_error:list/tuple"),
        (INTEGERS, [[1, 2], [2, 1]], "f(a=[2, 1])", None),
        (INTEGERS, [[1], ""], "f(a=[])", None),  # "" is read as an empty list
        (PAIR, [[1.0, 2.0]], "f(a=(1.0, 2.0))", None),
        (STRINGS, [["New York", "b-c"]], "f(a=['new york', 'bc'])", None),
        (STRINGS, [["x"]], "f(a=[x])", None),
        ({"type": "array", "items": {"type": "array"}}, [[[1, "A"]]], "f(a=[[1, 'A']])", None),
        ({"type": "array", "items": {"type": "array"}}, [[[1, "A"]]], "f(a=[[1, 'a']])", "value_error:list/tuple"),
        (STRING, ["New York, NY"], 'f(a="new york ny")', None),
        (STRING, ["it's"], """f(a='it"s')""", None),
        (STRING, ["10:00"], 'f(a="1000")', "value_error:string"),
        (STRING, ["5"], "f(a=5)", "type_error:simple"),
        (STRING, [5], "f(a=5)", None),
        ({"type": "any"}, ["x"], "f(a='X')", None),
        (BOOLEAN, [True], "f(a=true)", "type_error:simple"),
        (INTEGER, [True], "f(a=1)", None),  # 1 is True where values are compared literally
        (DICT, [{"x": [1.0]}], 'f(a={"x": 1})', None),
        (DICT, [{"x": ["A B"], "y": [2, ""]}], "f(a={'x': 'ab'})", None),
        (DICT, [{"x": [1], "y": [2]}], "f(a={'y': 2, 'x': 1})", None),
        (DICT, [{"x": [1], "y": [2]}], "f(a={'x': 1})", "value_error:dict_key"),
        (DICT, [{"x": [1]}], "f(a={'x': 1, 'z': 2})", "value_error:dict_key"),
        (DICT, [{"x": [1]}], "f(a={'x': 2})", "value_error:dict_value"),
        (DICT, [{"x": ["abc"]}], "f(a={'x': ['abc']})", "value_error:dict_value"),
        (DICT, [{"x": "abc"}], "f(a={'x': 'b'})", None),  # a text where a list belongs: its characters
        (DICT, [""], "f(a={})", "dict_checker:unclear"),
        (DICTS, [[{"x": [1]}, {"x": [2]}]], "f(a=[{'x': 1}, {'x': 2}])", None),
        (DICTS, [[{"x": [1]}, {"x": [2]}]], "f(a=[{'x': 2}, {'x': 1}])", "value_error:dict_value"),
        (DICTS, [[{"x": [1]}]], "f(a=[{'x': 1}, {'x': 1}])", "value_error:list_dict_count"),
        (DICTS, [[{"x": [1]}], [{"x": [2]}, {}]], "f(a=[{'x': 2}])", "value_error:list_dict_count"),
        (INTEGER, [5], "f(5)", "simple_function_checker:missing_required"),
        (INTEGER, [5], "f(b=5)", "simple_function_checker:missing_required"),
        (INTEGER, [5], "f(a=5, b=1)", "simple_function_checker:unexpected_param"),
        (INTEGER, [5], "f(a=6, b=1)", "value_error:others"),  # parameters in the order in which they are given
        (INTEGER, [5], "f(b=1, a=6)", "simple_function_checker:unexpected_param"),
        (INTEGER, [5], "[f(a=5), f(a=5)]", "simple_function_checker:wrong_count"),
        (INTEGER, [5], "f(a=5, **{'b': 1})", "simple_function_checker:unexpected_param"),
    ],
)  # fmt: skip
def test_rules(schema: dict[str, Any], accepted: list[Any], text: str, error: str | None) -> None:
    verdict = case(schema, accepted).judge(text)
    assert verdict.error_type == error
    assert verdict.valid == (error is None)
    assert (verdict.six_error == "") == verdict.valid
    assert verdict.explanation


def test_parameters_that_may_be_left_out() -> None:
    free, kept = case(INTEGER, [5], b=["", "x"]), case(INTEGER, [5], b=["x"])
    assert free.judge("f(a=5)").valid and free.judge("f(a=5, b='')").valid and free.judge("f(a=5, b='X')").valid
    assert kept.judge("f(a=5)").error_type == "simple_function_checker:missing_optional"
    assert kept.judge("f(a=5)").six_error == "parameter_value"


def functions(*names: str) -> list[dict[str, Any]]:
    schema = {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    return [{"name": name, "parameters": schema} for name in names]


def test_one_of_several_functions() -> None:
    choice = Case("x", CATEGORIES["multiple"], functions("g", "f.x"), [{"f.x": {"a": [1]}}])
    assert choice.judge("f.x(a=1)").valid
    assert choice.judge("g(a=1)").error_type == "simple_function_checker:wrong_func_name"
    assert choice.judge("f_x(a=1)").error_type == "simple_function_checker:wrong_func_name"
    assert choice.judge("f_x(a=1)", dots_as_underscores=True).valid
    assert not choice.judge("f.x(a=1)", dots_as_underscores=True).valid
    assert choice.judge("[f.x(a=1), g(a=1)]").error_type == "multiple_function_checker:wrong_count"


def test_any_order_and_greedy() -> None:
    both = Case("x", CATEGORIES["parallel"], functions("f"), [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}])
    assert both.judge("[f(a=2), f(a=1)]").valid
    greedy = both.judge("[f(a=1), f(a=2)]")
    assert greedy.error_type == "parallel_function_checker_no_order:cannot_find_match"
    assert both.judge("[f(a=1)]").error_type == "parallel_function_checker_no_order:wrong_count"
    mixed = Case("x", CATEGORIES["parallel_multiple"], functions("f", "g"), [{"f": {"a": [1]}}, {"g": {"a": [2]}}])
    assert mixed.judge("[g(a=2), f(a=1)]").valid


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[f(a=1), h(a=2)]", "tool_name"),
        ("[f(a=1), g()]", "missing_required"),
        ("[f(a=1), g(a=2, b=1)]", "parameter_name"),
        ("[f(a=1), g(a='2')]", "parameter_type"),
        ("[f(a=1), g(a=3)]", "parameter_value"),
        ("[h(a=1), g(a=2)]", "tool_name"),
        ("[g(a=2), f(b=1)]", "missing_required"),
        ("[f(a=1)]", "call_count"),
        ("[f(a=1), g(a=2]", "format"),
    ],
)
def test_six_errors_of_several_calls(text: str, label: str) -> None:
    """An expected call without a match counts as the error of the call that comes nearest, and fits no other."""
    mixed = Case("x", CATEGORIES["parallel_multiple"], functions("f", "g"), [{"f": {"a": [1]}}, {"g": {"a": [2]}}])
    verdict = mixed.judge(text)
    assert verdict.six_error == label
    assert verdict.explanation


def test_call_or_none() -> None:
    silent = Case("x", CATEGORIES["irrelevance"], functions("f"))
    for text in ("I cannot do that.", "", "[]", "f(a=1) and more", "[5]"):
        assert silent.judge(text).valid, text
    assert silent.judge("h(b=1)").error_type == "irrelevance_error:decoder_success"
    assert silent.judge([{"f": "[]"}]).valid and silent.judge([]).valid and silent.judge([{}]).valid
    assert silent.judge([{"f": "{}"}]).six_error == "call_count"
    wanted = Case("x", CATEGORIES["live_relevance"], functions("f"))
    assert wanted.judge("h(b=1)").valid
    assert wanted.judge("I cannot do that.").error_type == "relevance_error:decoder_failed"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "0 answers to 1 functions"),
        ([{"f": {}}, {"f": {}}], "2 answers"),
        ([{"g": {}}], "calls 'g', which has no document"),
        ([{"f": {}, "g": {}}], "ground_truth.0"),
        ([{"f": [1]}], "ground_truth.0.f"),
        (["f"], "ground_truth.0"),
    ],
)
def test_answers_that_do_not_belong_to_the_question(answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Case("x_7", CATEGORIES["multiple"], functions("f"), answers)


def test_documents_that_are_no_schema() -> None:
    of_type = [{"type": 5}, {"type": ["string"]}, {"type": "array", "items": {"type": ["string"]}}]
    for parameters in (
        [1], {"properties": [1]}, {"required": 5}, {"required": "a"}, {"required": [["a"]]},
        *({"properties": {"a": schema}} for schema in of_type),
    ):  # fmt: skip
        with pytest.raises(DataError, match="x_7: function.0.parameters"):
            Case("x_7", CATEGORIES["multiple"], [{"name": "f", "parameters": parameters}], [{"f": {}}])


def test_standard_strings() -> None:
    assert standard("A.B, c/d-e_f*g^h") == "abcdefgh"
    assert standard("'x'") == standard('"X"')
    assert standard("é(1):") == "é(1):"


# --- official verdicts -----------------------------------------------------------------------------------------------


def judged(case: Case, row: dict[str, Any], result: Any, calling: bool | None) -> tuple[bool, str | None]:
    verdict = case.judge(result, function_calling=calling, dots_as_underscores=bool(row.get("dots_as_underscores")))
    assert verdict.explanation and verdict.six_error in (("",) if verdict.valid else LABELS)
    return verdict.valid, verdict.error_type


def test_outputs_of_models() -> None:
    """Verdict and error type of every published output, as the official checker has them; all within seconds."""
    began, count, wrong = time.perf_counter(), 0, []
    for row in (row for path in sorted((DATA / "outputs").iterdir()) for row in rows(path)):
        count += 1
        if judged(published()[row["id"]], row, row["result"], row["mode"] == "fc") != (row["valid"], row["error_type"]):
            wrong.append((row["model"], row["id"]))
        assert row["published_valid"] in (None, row["valid"])
    assert count == 5082 and not wrong
    assert time.perf_counter() - began < 10


def test_perturbed_answers() -> None:
    """The same for answers with one thing changed; most changes show as the error that they were meant to be."""
    wrong, meant, told = [], Counter[str](), Counter[str]()
    labels = {"tool_name": "tool_name", "missing_required": "missing_required",
              "wrong_type": "parameter_type", "wrong_value": "parameter_value"}  # fmt: skip
    for row in rows(DATA / "verdicts.jsonl.gz"):
        verdict = published()[row["case_id"]].judge(row["output"])
        if (verdict.valid, verdict.error_type) != (row["valid"], row["error_type"]):
            wrong.append((row["id"], verdict))
        if row["perturbation"] in labels and not verdict.valid:
            meant[row["perturbation"]] += 1
            told[row["perturbation"]] += verdict.six_error == labels[row["perturbation"]]
    assert not wrong
    assert all(told[kind] > 0.9 * meant[kind] > 0 for kind in labels), (told, meant)


def test_unusual_answers() -> None:
    """One answer of each kind: statements around a call, operators, literals of all sorts, mostly Java and JavaScript."""
    wrong, count = [], 0
    for row in rows(DATA / "unusual.jsonl.gz"):
        category = category_of_id(row["id"])
        assert category is not None
        found = judged(Case(row["id"], category, row["function"], row["ground_truth"]), row, row["result"], False)
        count += 1
        if found != (row["valid"], row["error_type"]):
            wrong.append((row["kind"], row["result"], row["error_type"], found))
    assert count == 224 and not wrong


def test_answers_mutated_at_random() -> None:
    wrong = []
    for row in rows(DATA / "mutated.jsonl.gz"):
        verdict = published()[row["id"]].judge(
            row["result"], function_calling=row["fc"], dots_as_underscores=row["dots"]
        )
        if (verdict.valid, verdict.error_type) != (row["valid"], row["error_type"]):
            wrong.append((row["id"], row["result"], row["error_type"], verdict))
    assert not wrong


def test_python_values_of_any_kind_are_judged() -> None:
    """Values that only a Python literal can be, also where the official checker crashes: a value error, never a raise."""
    for schema in (INTEGER, FLOAT, STRING, FLOATS, DICT, DICTS):
        function = {"name": "f", "parameters": {"properties": {"a": schema}, "required": ["a"]}}
        for value in (b"x", 5j, (1, (2,)), {1: 2}, {None: [{}]}, [[[]]], 10**5000, float("nan"), "\ud800", True, None):
            for accepted in ([[1]], [{"x": 5}], ["", {"x": {"y": 1}}], [[{"x": [1]}], ""], 5):
                fault = check_call(("f", {"a": value}), function, {"a": accepted})
                assert fault is None or fault.explanation
