"""The checker: every rule by hand, all published verdicts, values of Java and JavaScript, and mutated answers."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.bfcl.cases import Case
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.benchmarks.bfcl.check import Expected, standard
from ttpa.benchmarks.bfcl.files import read_cases
from ttpa.benchmarks.bfcl.java_js import convert_java, convert_js
from ttpa.benchmarks.bfcl.verdict import six_error
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
        (INTEGER, [1], "f(a=None)", "type_error:simple"),
        (INTEGER, [6], "f(a=2*3)", None),
        (INTEGER, [6], "f(a=7)", "value_error:others"),
        (INTEGER, ["n"], 'f(a="n")', None),  # a variable: compared literally
        (INTEGER, ["n"], 'f(a="N")', "value_error:others"),
        (INTEGER, ["n"], "f(a=5)", "value_error:others"),
        (FLOAT, [5.0], "f(a=5)", None),
        (FLOAT, [5], "f(a=5)", None),
        (FLOAT, [5.0], "f(a='5')", "type_error:simple"),
        (FLOAT, [5.0], f"f(a={10**400})", "value_error:others"),
        (FLOATS, [[1.0, 3.0]], "f(a=[1, 3])", "type_error:nested"),
        (FLOATS, [[1, 3]], "f(a=[1, 3])", None),
        (FLOATS, [[1, 3]], "f(a=[1.0, 3.0])", None),
        (FLOATS, [[1.0]], "f(a=1.0)", "type_error:simple"),
        (FLOATS, [[]], "f(a=['x'])", "type_error:nested"),
        (FLOATS, [[1.0], ""], "f(a=['x'])", "value_error:list/tuple"),  # what is no list among the answers allows all
        (FLOATS, ["v"], "f(a='v')", None),
        (INTEGERS, [[1, 2]], "f(a=[1, 2])", None),
        (INTEGERS, [[1, 2]], "f(a=(1, 2))", "type_error:simple"),
        (INTEGERS, [[1, 2]], "f(a=[2, 1])", "value_error:list/tuple"),
        (INTEGERS, [[1, 2], [2, 1]], "f(a=[2, 1])", None),
        (INTEGERS, [[1, 2]], "f(a=[1, 2, 3])", "value_error:list/tuple"),
        (INTEGERS, [[1], ""], "f(a=[])", None),  # "" is read as an empty list
        (PAIR, [[1.0, 2.0]], "f(a=(1.0, 2.0))", None),
        (PAIR, [[1.0, 2.0]], "f(a=[1.0, 2.0])", None),
        (STRINGS, [["New York", "b-c"]], "f(a=['new york', 'bc'])", None),
        (STRINGS, [["x"]], "f(a=[x])", None),
        ({"type": "array", "items": {"type": "array"}}, [[[1, "A"]]], "f(a=[[1, 'A']])", None),
        ({"type": "array", "items": {"type": "array"}}, [[[1, "A"]]], "f(a=[[1, 'a']])", "value_error:list/tuple"),
        (STRING, ["New York, NY"], 'f(a="new york ny")', None),
        (STRING, ["it's"], """f(a='it"s')""", None),
        (STRING, ["10:00"], 'f(a="1000")', "value_error:string"),
        (STRING, ["hello"], "f(a=hello)", None),
        (STRING, ["5"], "f(a=5)", "type_error:simple"),
        (STRING, [5], "f(a=5)", None),
        ({"type": "any"}, ["x"], "f(a='X')", None),
        (BOOLEAN, [True], "f(a=True)", None),
        (BOOLEAN, [True], "f(a=true)", "type_error:simple"),
        (BOOLEAN, [True], "f(a=1)", "type_error:simple"),
        (INTEGER, [True], "f(a=1)", None),  # 1 is True where values are compared literally
        (DICT, [{"x": [1.0]}], 'f(a={"x": 1})', None),
        (DICT, [{"x": ["A B"], "y": [2, ""]}], "f(a={'x': 'ab'})", None),
        (DICT, [{"x": [1], "y": [2]}], "f(a={'y': 2, 'x': 1})", None),
        (DICT, [{"x": [1], "y": [2]}], "f(a={'x': 1})", "value_error:dict_key"),
        (DICT, [{"x": [1]}], "f(a={'x': 1, 'z': 2})", "value_error:dict_key"),
        (DICT, [{"x": [1]}], "f(a={'x': 2})", "value_error:dict_value"),
        (DICT, [{"x": [1]}, {"x": [2]}], "f(a={'x': 2})", None),
        (DICT, [{"x": ["abc"]}], "f(a={'x': ['abc']})", "value_error:dict_value"),
        (DICT, [{"x": "abc"}], "f(a={'x': 'b'})", None),  # a text where a list belongs: its characters
        (DICT, [""], "f(a={})", "dict_checker:unclear"),
        (DICT, [{"x": [1]}], "f(a='x')", "type_error:simple"),
        (DICTS, [[{"x": [1]}, {"x": [2]}]], "f(a=[{'x': 1}, {'x': 2}])", None),
        (DICTS, [[{"x": [1]}, {"x": [2]}]], "f(a=[{'x': 2}, {'x': 1}])", "value_error:dict_value"),
        (DICTS, [[{"x": [1]}]], "f(a=[{'x': 1}, {'x': 1}])", "value_error:list_dict_count"),
        (DICTS, [[{"x": [1]}], [{"x": [2]}, {}]], "f(a=[{'x': 2}])", "value_error:list_dict_count"),
        (INTEGER, [5], "f(5)", "simple_function_checker:missing_required"),
        (INTEGER, [5], "F(a=5)", "simple_function_checker:wrong_func_name"),
        (INTEGER, [5], "f(b=5)", "simple_function_checker:missing_required"),
        (INTEGER, [5], "f(a=5, b=1)", "simple_function_checker:unexpected_param"),
        (INTEGER, [5], "f(a=6, b=1)", "value_error:others"),  # parameters in the order in which they are given
        (INTEGER, [5], "f(b=1, a=6)", "simple_function_checker:unexpected_param"),
        (INTEGER, [5], "[]", "simple_function_checker:wrong_count"),
        (INTEGER, [5], "[f(a=5), f(a=5)]", "simple_function_checker:wrong_count"),
        (INTEGER, [5], "[f(a=5), 5]", "ast_decoder:decoder_failed"),
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
        ([{"f": {}, "g": {}}], "not one"),
        ([{"f": [1]}], "not one"),
        (["f"], "not one"),
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
        with pytest.raises(DataError, match="x_7: parameters of 'f'"):
            Case("x_7", CATEGORIES["multiple"], [{"name": "f", "parameters": parameters}], [{"f": {}}])


def test_all_error_types_have_a_label() -> None:
    seen = {row["error_type"] for row in [*outputs(), *verdicts()] if row["error_type"]}
    assert {six_error(error) for error in seen} <= set(LABELS)


def test_standard_strings() -> None:
    assert standard("A.B, c/d-e_f*g^h") == "abcdefgh"
    assert standard("'x'") == standard('"X"')
    assert standard("é(1):") == "é(1):"


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ("5", "integer", None, 5),
        ("5.0", "integer", None, "5.0"),
        ("5L", "long", None, 5),
        ("5", "long", None, "5"),
        ("5.5f", "float", None, 5.5),
        ("5.5", "float", None, "5.5"),
        ("-1e3", "double", None, -1000.0),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("x", "String", None, "x"),
        ("7", "any", None, "7"),
        ("'c'", "char", None, "'c'"),
        ("new int[]{1, 2,3 }", "Array", "integer", [1, 2, 3]),
        ("new int[] {}", "Array", "integer", []),
        ('new String[]{"a", "b"}', "Array", "String", ['"a"', '"b"']),
        ("new long[]{1L, 2}", "Array", "long", [1, "2"]),
        ("{1, 2}", "Array", "integer", "{1, 2}"),
        ("new ArrayList<Integer>(Arrays.asList(1, 2))", "ArrayList", "integer", [1, 2]),
        ('new ArrayList<>(Arrays.asList("a", "b"))', "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<>(Arrays.asList(1L, 2.5f, true, \"x\", y))", "ArrayList", None, [1, 2.5, True, "x", "y"]),
        ("new ArrayList<Integer>() {{ add(1); add(2); }}", "ArrayList", "integer", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "integer", []),
        ("new ArrayList<>() {{ }}", "ArrayList", "integer", []),
        ("Arrays.asList(1, 2)", "ArrayList", "integer", "Arrays.asList(1, 2)"),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "x"); }}', "HashMap", None, {"a": 1, "b": "x"}),
        ('new HashMap<String, List<String>>() { { put("a", true); } }', "HashMap", None, {"a": True}),
        ("new HashMap<>()", "HashMap", None, {}),
        ("new HashMap<>() {{ }}", "HashMap", None, {}),
        ('{"a": 1}', "HashMap", None, '{"a": 1}'),
        ("9" * 5000, "integer", None, "9" * 5000),
    ],
)  # fmt: skip
def test_java_values(text: str, kind: str, inner: str | None, value: Any) -> None:
    found = convert_java(text, kind, inner)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ('"x"', "String", None, "x"),
        ("x", "String", None, "x"),
        ("5", "integer", None, 5),
        ("5.0", "integer", None, "5.0"),
        ("5", "float", None, 5.0),
        ("5n", "Bigint", None, 5),
        ("true", "Boolean", None, True),
        ("null", "any", None, "null"),
        ("[1, 2]", "array", "integer", [1, 2]),
        ("['a', \"b\"]", "array", "String", ["a", "b"]),
        ("[1, 'a', true, x]", "array", None, [1, "a", True, "x"]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[]", "array", "integer", []),
        ("[[1, 2], [3]]", "array", "array", [[1, 2], [3]]),
        (" [ [ 1, 2 ],\n [3 ] ]", "array", "array", [[1, 2], [3]]),
        ("new Array([1], [2])", "array", "array", [[1], [2]]),
        ("[[1, 2], 3]", "array", None, ["[1", 2]),
        ("[{'a': 1}]", "array", "dict", [{"a": 1}]),
        ("myList", "array", "integer", "myList"),
        ("{}", "dict", None, {}),
        ("{a: 1, 'b': 'x, y', \"c\": [1, 2]}", "dict", None, {"a": 1, "b": "x, y", "c": [1, 2]}),
        ("{a: {b: 1}}", "dict", None, {"a": "{b: 1"}),
        ("config", "dict", None, "config"),
    ],
)  # fmt: skip
def test_javascript_values(text: str, kind: str, inner: str | None, value: Any) -> None:
    found = convert_js(text, kind, inner)
    assert found == value and type(found) is type(value)


HOSTILE_VALUES = (
    "[" * 20_000,
    "[[1]," * 4_000,
    "{a:" * 6_000,
    "new ArrayList<>(" * 1_200,
    "add(" * 5_000,
    "new HashMap<" * 1_600,
    "new HashMap<>()" * 1_300,
    'new HashMap<>() {{ put("' + 'put("' * 3_000 + "}}",
    "new ArrayList<>() {{" + "add(" * 4_000 + "}}",
    "new a[]{" * 2_000,
    ",:" * 9_000,
    "[[\n" * 6_000,
)


@pytest.mark.parametrize("text", HOSTILE_VALUES, ids=range(len(HOSTILE_VALUES)))
def test_hostile_values_take_no_time(text: str) -> None:
    started = time.perf_counter()
    for kind in ("ArrayList", "Array", "HashMap"):
        convert_java(text, kind)
    for kind in ("array", "dict"):
        convert_js(text, kind)
        convert_js("{" + text + "}", kind)
    assert time.perf_counter() - started < 5


# --- published verdicts ----------------------------------------------------------------------------------------------


@cache
def outputs() -> list[dict[str, Any]]:
    return [row for path in sorted((DATA / "outputs").iterdir()) for row in rows(path)]


@cache
def verdicts() -> list[dict[str, Any]]:
    return list(rows(DATA / "verdicts.jsonl.gz"))


def test_outputs_of_models() -> None:
    """Verdict and error type of every published output, as the official checker has them."""
    wrong = []
    for row in outputs():
        dots = bool(row.get("dots_as_underscores"))
        verdict = published()[row["id"]].judge(
            row["result"], function_calling=row["mode"] == "fc", dots_as_underscores=dots
        )
        if (verdict.valid, verdict.error_type) != (row["valid"], row["error_type"]):
            wrong.append((row["model"], row["id"], verdict))
        assert row["published_valid"] in (None, row["valid"])
    assert len(outputs()) == 5082 and not wrong


def test_perturbed_answers() -> None:
    """The same for answers with one thing changed; most changes show as the error that they were meant to be."""
    wrong, meant, told = [], Counter[str](), Counter[str]()
    labels = {"tool_name": "tool_name", "missing_required": "missing_required",
              "wrong_type": "parameter_type", "wrong_value": "parameter_value"}  # fmt: skip
    for row in verdicts():
        verdict = published()[row["case_id"]].judge(row["output"])
        if (verdict.valid, verdict.error_type) != (row["valid"], row["error_type"]):
            wrong.append((row["id"], verdict))
        if row["perturbation"] in labels and not verdict.valid:
            meant[row["perturbation"]] += 1
            told[row["perturbation"]] += verdict.six_error == labels[row["perturbation"]]
    assert len(verdicts()) == 3054 and not wrong
    assert all(told[kind] > 0.9 * meant[kind] for kind in labels), (told, meant)


def test_judging_again_gives_the_same() -> None:
    """Verdicts that are remembered are those of the first time, whatever else was judged between."""
    sample = random.Random(3).sample(verdicts(), 200)
    first = [published()[row["case_id"]].judge(row["output"]) for row in sample]
    fresh = read_cases(DATA)
    again = [fresh[row["case_id"]].judge(row["output"]) for row in reversed(sample)]
    assert [verdict[:2] for verdict in first] == [verdict[:2] for verdict in again[::-1]]
    assert [verdict.explanation for verdict in first] == [verdict.explanation for verdict in again[::-1]]


# --- mutated answers -------------------------------------------------------------------------------------------------

PIECES = (
    *"()[]{},=:.'\"\\\n #-+*/%~@!\0\x07\r\t\u00a0\u2028\ud800\U0001f600é", "``` ", "True", "None", "true",
    "lambda x: x", "f(a=1)", "007", "1.5", "1e5", "'a' 'b'", "f'{x}'", "b'x'", "1/0", "9**9**9", "x[0]", "...",
    "(1, 2)", "**{'a': 1}", "[" * 300, "(" * 120, "__import__('os').abort()", "exit()", "5L", "x -> x", "=>", "new ",
    "new int[]{1}", "{{ put(\"a\", 1); }}", "//", "/*", "`", "::", "\\ud83d", "-" * 500, "'" * 7, "None=", "a.b.c.d",
    "if ", "for x in y",
)  # fmt: skip


def mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.randrange(8))
        kind = rng.randrange(5)
        middle = {0: "", 1: rng.choice(PIECES), 2: text[start:end] * 3, 3: rng.choice(PIECES) + text[start:end]}.get(
            kind
        )
        text = text[:start] if middle is None else text[:start] + middle + text[end:]
    return text


def judge_mutated(count: int, seed: int) -> float:
    """Judges mutated outputs; returns the longest time one took."""
    rng = random.Random(seed)
    texts = [(row["id"], row["result"]) for row in outputs() if isinstance(row["result"], str)]
    texts += [(row["case_id"], row["output"]) for row in verdicts()]
    java = [(case_id, text) for case_id, text in texts if "java" in case_id]
    lists = [(row["id"], row["result"]) for row in outputs() if isinstance(row["result"], list) and row["result"]]
    longest = 0.0
    for number in range(count):
        started = time.perf_counter()
        if number % 4 == 3:
            case_id, result = rng.choice(lists)
            name, text = next(iter(result[0].items()))
            verdict = published()[case_id].judge([{name: mutated(rng, text)}, *result[1:]])
        else:
            case_id, text = rng.choice(java if number % 4 == 2 else texts)
            verdict = published()[case_id].judge(mutated(rng, text), dots_as_underscores=bool(number % 2))
        assert verdict.valid == (verdict.error_type is None) == (verdict.six_error == "")
        assert verdict.explanation.isprintable() or verdict.explanation
        longest = max(longest, time.perf_counter() - started)
    return longest


def test_mutated_outputs() -> None:
    judge_mutated(1500, seed=11)


@pytest.mark.slow
def test_many_mutated_outputs() -> None:
    assert judge_mutated(20_000, seed=12) < 2


def test_python_values_of_any_kind_are_judged() -> None:
    """Values that only a Python literal can be: bytes, complex numbers, tuples, keys that are no text."""
    for schema in (INTEGER, FLOAT, STRING, FLOATS, DICT, DICTS):
        expected = Expected({"name": "f", "parameters": {"properties": {"a": schema}, "required": ["a"]}}, {"a": [[1]]})
        for value in (b"x", 5j, (1, (2,)), {1: 2}, {None: [{}]}, [[[]]], 10**5000, float("nan"), "\ud800", True, None):
            fault = expected.fault("f", {"a": value})
            assert fault is None or fault.text
