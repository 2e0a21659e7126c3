"""The checker: every rule by hand, and official verdicts on outputs of models and on answers that were changed."""

import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.bfcl.cases import Case, read_cases
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.benchmarks.bfcl.check import Verdict, check_call
from ttpa.calls.six_errors import LABELS
from ttpa.errors import DataError
from ttpa.io import read_jsonl

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"
published = cache(lambda: read_cases(DATA))


INTEGER, FLOAT, STRING, BOOLEAN = ({"type": kind} for kind in ("integer", "float", "string", "boolean"))
FLOATS, PAIR = ({"type": kind, "items": {"type": "float"}} for kind in ("array", "tuple"))
INTEGERS = {"type": "array", "items": {"type": "integer"}}
STRINGS = {"type": "array", "items": {"type": "string"}}
DICTS = {"type": "array", "items": {"type": "dict"}}
DICT = {"type": "dict"}


def case(category: str, functions: list[dict[str, Any]], *answers: Any) -> Case:
    return Case("x_7", CATEGORIES[category], functions, answers)


def functions(*names: str, schema: Any = None, **more: Any) -> list[dict[str, Any]]:
    """Functions of a required parameter `a` and further ones."""
    parameters = {"type": "dict", "properties": {"a": schema or INTEGER, **more}, "required": ["a"]}
    return [{"name": name, "parameters": parameters} for name in names]


@pytest.mark.parametrize(
    ("schema", "accepted", "text", "error"),
    [
        (INTEGER, [5], "f(a=5.0)", "type_error:simple"),
        (INTEGER, [1], "f(a=True)", "type_error:simple"),
        (INTEGER, ["n"], 'f(a="n")', None),  # a variable: compared literally
        (INTEGER, ["n"], 'f(a="N")', "value_error:others"),
        (FLOAT, [5.0], "f(a=5)", None),
        (FLOAT, [5.0], f"f(a={10**400})", "value_error:others"),
        (FLOATS, [[1.0, 3.0]], "f(a=[1, 3])", "type_error:nested"),
        (FLOATS, [[]], "f(a=['x'])", "type_error:nested"),
        (FLOATS, [[1.0], ""], "f(a=['x'])", "value_error:list/tuple"),  # what is no list among the answers allows all
        (INTEGERS, [[1, 2]], "f(a=[2, 1])", "value_error:list/tuple"),
        (INTEGERS, [[1], ""], "f(a=[])", None),  # "" is read as an empty list
        (PAIR, [[1.0, 2.0]], "f(a=(1.0, 2.0))", None),
        (STRINGS, [["New York", "b-c"]], "f(a=['new york', 'bc'])", None),
        ({"type": "array", "items": {"type": "array"}}, [[[1, "A"]]], "f(a=[[1, 'a']])", "value_error:list/tuple"),
        (STRING, ["New York, NY"], 'f(a="new york ny")', None),
        (STRING, ["it's"], """f(a='it"s')""", None),
        (STRING, ["10:00"], 'f(a="1000")', "value_error:string"),
        ({"type": "any"}, ["x"], "f(a='X')", None),
        (INTEGER, [True], "f(a=1)", None),  # 1 is True where values are compared literally
        (DICT, [{"x": ["A B"], "y": [2, ""]}], "f(a={'x': 'ab'})", None),
        (DICT, [{"x": [1], "y": [2]}], "f(a={'x': 1})", "value_error:dict_key"),
        (DICT, [{"x": [1]}], "f(a={'x': 1, 'z': 2})", "value_error:dict_key"),
        (DICT, [{"x": ["abc"]}], "f(a={'x': ['abc']})", "value_error:dict_value"),
        (DICT, [{"x": "abc"}], "f(a={'x': 'b'})", None),  # a text where a list belongs: its characters
        (DICT, [""], "f(a={})", "dict_checker:unclear"),
        (DICTS, [[{"x": [1]}, {"x": [2]}]], "f(a=[{'x': 2}, {'x': 1}])", "value_error:dict_value"),
        (DICTS, [[{"x": [1]}]], "f(a=[{'x': 1}, {'x': 1}])", "value_error:list_dict_count"),
        (DICTS, [[{"x": [1]}], [{"x": [2]}, {}]], "f(a=[{'x': 2}])", "value_error:list_dict_count"),
        (INTEGER, [5], "f(5)", "simple_function_checker:missing_required"),
        (INTEGER, [5], "f(a=6, b=1)", "value_error:others"),  # parameters in the order in which they are given
        (INTEGER, [5], "f(b=1, a=6)", "simple_function_checker:unexpected_param"),
        (INTEGER, [5], "[f(a=5), f(a=5)]", "simple_function_checker:wrong_count"),
        (INTEGER, [5], "f(a=5, **{'b': 1})", "simple_function_checker:unexpected_param"),
    ],
)  # fmt: skip
def test_rules(schema: dict[str, Any], accepted: list[Any], text: str, error: str | None) -> None:
    verdict = case("simple_python", functions("f", schema=schema), {"f": {"a": accepted}}).judge(text)
    assert (verdict.error_type, verdict.six_error == "") == (error, error is None)


def test_parameters_that_may_be_left_out() -> None:
    document = functions("f", b=STRING)
    free = case("simple_python", document, {"f": {"a": [5], "b": ["", "x"]}})
    assert free.judge("f(a=5)").valid and free.judge("f(a=5, b='')").valid and free.judge("f(a=5, b='X')").valid
    kept = case("simple_python", document, {"f": {"a": [5], "b": ["x"]}}).judge("f(a=5)")
    assert (kept.error_type, kept.six_error) == ("simple_function_checker:missing_optional", "parameter_value")


def test_one_of_several_functions() -> None:
    choice = case("multiple", functions("g", "f.x"), {"f.x": {"a": [1]}})
    assert choice.judge("f.x(a=1)").valid
    assert choice.judge("f_x(a=1)").error_type == "simple_function_checker:wrong_func_name"
    assert choice.judge("f_x(a=1)", dots_as_underscores=True).valid
    assert not choice.judge("f.x(a=1)", dots_as_underscores=True).valid
    assert choice.judge("[f.x(a=1), g(a=1)]").error_type == "multiple_function_checker:wrong_count"


def test_any_order_and_greedy() -> None:
    both = case("parallel", functions("f"), {"f": {"a": [1, 2]}}, {"f": {"a": [1]}})
    assert both.judge("[f(a=2), f(a=1)]").valid
    assert both.judge("[f(a=1), f(a=2)]").error_type == "parallel_function_checker_no_order:cannot_find_match"
    assert both.judge("[f(a=1)]").error_type == "parallel_function_checker_no_order:wrong_count"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[g(a=2), f(a=1)]", ""),
        ("[f(a=1), h(a=2)]", "tool_name"),
        ("[f(a=1), g()]", "missing_required"),
        ("[f(a=1), g(a=2, b=1)]", "parameter_name"),
        ("[f(a=1), g(a='2')]", "parameter_type"),
        ("[f(a=1), g(a=3)]", "parameter_value"),
        ("[g(a=2), f(b=1)]", "missing_required"),
        ("[f(a=1)]", "call_count"),
        ("[f(a=1), g(a=2]", "format"),
    ],
)
def test_six_errors_of_several_calls(text: str, label: str) -> None:
    """An expected call without a match counts as the error of the call that comes nearest, and fits no other."""
    mixed = case("parallel_multiple", functions("f", "g"), {"f": {"a": [1]}}, {"g": {"a": [2]}})
    assert mixed.judge(text).six_error == label


def test_call_or_none() -> None:
    silent = case("irrelevance", functions("f"))
    for text in ("I cannot do that.", "", "[]", "f(a=1) and more", "[5]", [{"f": "[]"}], [], [{}]):
        assert silent.judge(text).valid, text
    assert silent.judge("h(b=1)").error_type == "irrelevance_error:decoder_success"
    assert silent.judge([{"f": "{}"}]).six_error == "call_count"
    wanted = case("live_relevance", functions("f"))
    assert wanted.judge("h(b=1)").valid
    assert wanted.judge("I cannot do that.").error_type == "relevance_error:decoder_failed"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"f": {}}, {"f": {}}], "2 answers"),
        ([{"g": {}}], "calls 'g', which has no document"),
        ([{"f": {}, "g": {}}], "ground_truth.0"),
        ([{"f": [1]}], "ground_truth.0.f"),
    ],
)
def test_answers_that_do_not_belong_to_the_question(answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"x_7: .*{message}"):
        case("multiple", functions("f"), *answers)


@pytest.mark.parametrize(
    "parameters",
    [[1], {"properties": [1]}, {"required": [["a"]]}, {"properties": {"a": {"type": "array", "items": {"type": 5}}}}],
)
def test_documents_that_are_no_schema(parameters: Any) -> None:
    with pytest.raises(DataError, match="x_7: function.0.parameters"):
        case("multiple", [{"name": "f", "parameters": parameters}], {"f": {}})


# --- official verdicts -----------------------------------------------------------------------------------------------


def answers() -> Iterator[tuple[str, Case, dict[str, Any], Any, bool | None]]:
    """Every answer with an official verdict: origin, case, row, result, and whether it is a function-calling one."""
    for path in sorted((DATA / "outputs").iterdir()):
        for row in read_jsonl(path):
            yield "outputs", published()[row["id"]], row, row["result"], row["mode"] == "fc"
    for row in read_jsonl(DATA / "verdicts.jsonl.gz"):
        yield "changed", published()[row["case_id"]], row, row["output"], None
    for row in read_jsonl(DATA / "unusual.jsonl.gz"):
        category = CATEGORIES[row["id"].rsplit("_", 1)[0]]
        yield "unusual", Case(row["id"], category, row["function"], row["ground_truth"]), row, row["result"], False
    for row in read_jsonl(DATA / "mutated.jsonl.gz"):
        yield "at random", published()[row["id"]], row, row["result"], row["fc"]


def test_verdicts_are_the_official_ones() -> None:
    """And most changes show as the error that they were meant to be, and all is done within seconds."""
    began, wrong, count = time.perf_counter(), [], Counter[str]()
    meant, told = Counter[str](), Counter[str]()
    labels = {"tool_name": "tool_name", "missing_required": "missing_required",
              "wrong_type": "parameter_type", "wrong_value": "parameter_value"}  # fmt: skip
    for origin, asked, row, result, calling in answers():
        dots = bool(row.get("dots_as_underscores") or row.get("dots"))
        verdict = asked.judge(result, function_calling=calling, dots_as_underscores=dots)
        if (verdict.valid, verdict.error_type) != (row["valid"], row["error_type"]):
            wrong.append((origin, asked.case_id, result, row["error_type"], verdict))
        assert verdict.explanation and verdict.six_error in (("",) if verdict.valid else LABELS)
        count[origin] += 1
        if not verdict.valid and (kind := row.get("perturbation")) in labels:
            meant[kind] += 1
            told[kind] += verdict.six_error == labels[kind]
    assert not wrong
    assert count["outputs"] == 5082 and count["unusual"] == 224 and min(count.values()) > 200
    assert all(told[kind] > 0.9 * meant[kind] > 0 for kind in labels), (told, meant)
    assert time.perf_counter() - began < 15


def test_python_values_of_any_kind_are_judged() -> None:
    """Values that only a Python literal can be, also where the official checker crashes: never a raise."""
    for schema in (INTEGER, FLOAT, STRING, FLOATS, DICT, DICTS):
        (document,) = functions("f", schema=schema)
        for value in (b"x", 5j, (1, (2,)), {1: 2}, {None: [{}]}, [[[]]], 10**5000, float("nan"), "\ud800", True, None):
            for accepted in ([[1]], [{"x": 5}], ["", {"x": {"y": 1}}], [[{"x": [1]}], ""], 5):
                assert isinstance(check_call(("f", {"a": value}), document, {"a": accepted}), Verdict | None)
