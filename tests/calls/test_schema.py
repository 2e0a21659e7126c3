"""Types and schemas: what they become, what fits them, when values and calls are equal, what is wrong with a call."""

import copy
from typing import Any

import pytest

from tests.toolcalls import call
from ttpa.calls.schema import calls_equal, check_call, normalise_schema, normalise_type, type_ok, values_equal
from ttpa.calls.six_errors import six_errors
from ttpa.records import Sample, ToolCall, ToolSpec

STR, INT, NUM, BOOL, OBJ, ARR = ({"type": t} for t in ("string", "integer", "number", "boolean", "object", "array"))

TYPES: list[tuple[str, dict[str, Any]]] = [
    (" String ", STR), ("long", INT), ("double", NUM), ("Boolean", BOOL), ("HashMap", OBJ), ("typing.List", ARR),
    ("tuple", ARR), ("set", {"type": "array", "uniqueItems": True}), ("None", {"type": "null"}),
    ("datetime.date", STR), ("Callable[[float], float]", STR), ("Any", {}), ("", {}), ("list of things", {}),
    ("str, optional, default 'London'", STR),
    ("List[int]", {"type": "array", "items": INT}), ("list( str )", {"type": "array", "items": STR}),
    ("List[int], optional", {"type": "array", "items": INT}), ("List[any]", ARR), ("List[]", ARR),
    ("List[Union[int, float]]", {"type": "array", "items": {"type": ["integer", "number"]}}),
    ("Set[str]", {"type": "array", "uniqueItems": True, "items": STR}),
    ("Tuple[int, str]", {"type": "array", "prefixItems": [INT, STR], "minItems": 2, "maxItems": 2}),
    ("Tuple[int, ...]", {"type": "array", "items": INT}),
    ("Dict[str, int]", {"type": "object", "additionalProperties": INT}), ("Dict[str, Any]", OBJ),
    ("Optional[str]", {"type": ["string", "null"]}), ("Union[str, int]", {"type": ["string", "integer"]}),
    ("str | None", {"type": ["string", "null"]}), ("Union[str, str]", STR), ("Optional[Any]", {}),
    ("Optional[List[int]]", {"anyOf": [{"type": "array", "items": INT}, {"type": "null"}]}),
    ("List[" * 30 + "int" + "]" * 30, None), ("[[((", {}), ("List[int", None), ("]", {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TYPES)
def test_type_texts(text: str, expected: dict[str, Any] | None) -> None:
    found = normalise_type(text)
    assert found["type"] == "array" if expected is None else found == expected


BFCL = {
    "type": "dict",
    "properties": {
        "type": {"type": "float", "description": "a parameter called type", "default": 1.0},
        "point": {"type": "tuple", "items": {"type": "float"}},
        "free": {"description": "d", "type": "any"},
        "both": {"type": ["string", "int"], "enum": ["a", 1]},
        "inner": {"type": "dict", "properties": {"items": {"type": "array", "items": {"type": "String"}}}},
    },
    "required": ["type"],
}
NORMAL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": NUM | {"description": "a parameter called type", "default": 1.0},
        "point": {"type": "array", "items": NUM},
        "free": {"description": "d"},
        "both": {"type": ["string", "integer"], "enum": ["a", 1]},
        "inner": {"type": "object", "properties": {"items": {"type": "array", "items": STR}}},
    },
    "required": ["type"],
}


def test_schema_keeps_all_but_types() -> None:
    before = copy.deepcopy(BFCL)
    found = normalise_schema(BFCL)
    assert found == NORMAL and before == BFCL
    assert [list(p) for p in found["properties"].values()] == [list(p) for p in NORMAL["properties"].values()]
    assert normalise_schema({"items": {"type": "str"}, "type": "List[int]"}) == {"items": STR, "type": "array"}
    assert normalise_schema({"anyOf": [{"type": "dict"}, {"type": "float"}]}) == {"anyOf": [OBJ, NUM]}
    assert normalise_schema(None) == normalise_schema("x") == {}
    assert normalise_schema(found) == found


FITS: list[tuple[Any, Any, bool]] = [
    (1, INT, True), (True, INT, False), (5.0, INT, False), (1, NUM, True), (True, NUM, False), (True, BOOL, True),
    (1, BOOL, False), ("x", STR, True), (None, STR, False), (None, {"type": "null"}, True),
    (None, {"type": ["string", "null"]}, True), (None, {"type": "string", "nullable": True}, True), (None, {}, True),
    ("x", {"type": "wat"}, True), ("x", None, True), ("x", {"type": "dict"}, False), (1, {"type": "float"}, True),
    ([1, "a"], {"type": "array", "items": INT}, False), ([1, 2], {"type": "array", "items": INT}, True),
    ([1, "a", 2], {"type": "array", "prefixItems": [INT, STR], "items": INT}, True),
    ([1, 2], {"type": "array", "prefixItems": [INT, STR]}, False),
    ({"a": 1}, {"type": "object", "properties": {"a": STR}}, False),
    ({"b": 1}, {"type": "object", "properties": {"a": STR}}, True),
    ({"b": 1}, {"type": "object", "additionalProperties": STR}, False), ([], OBJ, False), ({}, ARR, False),
    (1, {"anyOf": [STR, INT]}, True), (1.5, {"oneOf": [STR, INT]}, False), (1, {"allOf": [NUM, INT]}, True),
    (1.5, {"allOf": [NUM, INT]}, False),
    (3, {"type": "integer", "enum": [1]}, True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "schema", "expected"), FITS)
def test_type_ok(value: Any, schema: Any, expected: bool) -> None:
    assert type_ok(value, schema) is expected


@pytest.mark.parametrize(("value", "schema", "expected"), [
    ("a", {"enum": ["a", 1]}, True), (1.0, {"enum": ["a", 1]}, True), (True, {"enum": [1]}, False),
    ("b", {"enum": ["a"]}, False),
    (["a", "b"], {"items": {"enum": ["a"]}}, False), ({"k": "b"}, {"properties": {"k": {"enum": ["a"]}}}, False),
    ("b", {}, True),
])  # fmt: skip
def test_enum_ok(value: Any, schema: Any, expected: bool) -> None:
    assert type_ok(value, schema, allowed=True) is expected


DEFS: dict[str, Any] = {
    "Item": {"type": "object", "properties": {"id": INT, "parts": ARR | {"items": {"$ref": "#/$defs/Item"}}}},
    "Speed": {"type": "string", "enum": ["slow", "fast"]}, "a/b": NUM, "Loop": {"$ref": "#/$defs/Loop"},
    "Twice": {"anyOf": [{"$ref": "#/$defs/Twice"}, {"$ref": "#/$defs/Twice"}, {"$ref": "#/$defs/Twice"}]},
}  # fmt: skip
ITEM, SPEED = {"$ref": "#/$defs/Item"}, {"$ref": "#/$defs/Speed"}
REFERRED: list[tuple[Any, Any, str | None]] = [  # a value, the schema of the parameter, what is wrong
    ({"id": 7}, ITEM, None), ("7", ITEM, "wrong_type"), ({"id": "7"}, ITEM, "wrong_type"),
    ({"id": 1, "parts": [{"id": 2, "parts": [{"id": "3"}]}]}, ITEM, "wrong_type"),
    ("slow", SPEED, None), (3, SPEED, "wrong_type"), ("quick", SPEED, "not_in_enum"),
    (["slow", "quick"], {"type": "array", "items": SPEED}, "not_in_enum"),
    (None, {"anyOf": [SPEED, {"type": "null"}]}, None), ("quick", {"anyOf": [SPEED, {"type": "null"}]}, "not_in_enum"),
    ("x", {"$ref": "#/$defs/a~1b"}, "wrong_type"), ("x", {"allOf": [ITEM], "description": "d"}, "wrong_type"),
    ("x", {"$ref": "#/properties/b"}, "wrong_type"), (1, {"$ref": "#/properties/b"}, None),
    (1, {"$ref": "#/$defs/gone"}, None), (1, {"$ref": "http://x/y"}, None), (1, {"$ref": 1}, None),
    (1, {"$ref": "#/$defs/Loop"}, None), (1, {"$ref": "#/$defs/Twice"}, None),
    ("x", {"$ref": "#/$defs/Own", "$defs": {"Own": INT}}, "wrong_type"),
    ("a", {"const": "a"}, None), ("b", {"const": "a"}, "not_in_enum"), (True, {"const": 1}, "not_in_enum"),
    ("b", {"oneOf": [{"const": "a"}, {"const": "b", "title": "B"}]}, None),
    ("c", {"oneOf": [{"const": "a"}, {"const": "b"}]}, "not_in_enum"),
    (1, {"anyOf": [{"type": "string", "enum": ["x"]}, INT]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "schema", "kind"), REFERRED)
def test_references_constants_and_alternatives(value: Any, schema: Any, kind: str | None) -> None:
    properties = {"a": schema, "b": {"anyOf": [INT, BOOL]}}
    tool = ToolSpec(name="f", parameters={"type": "object", "properties": properties, "$defs": DEFS})
    assert [problem.kind for problem in check_call(call("f", a=value), [tool])] == [kind] * (kind is not None)
    right = Sample(id="s", source="", tools=(tool,), messages=(), target=(call("f", a=[[]]),))
    assert ("parameter_type" in six_errors(right, [call("f", a=value)])) is (kind == "wrong_type")


EQUAL: list[tuple[Any, Any, bool]] = [
    (1, 1.0, True), (True, 1, False), (False, 0, False), ("1", 1, False), (None, None, True), (None, False, False),
    ("a", "A", False), ([1, 2], [2, 1], False), ([1, [2.0]], [1.0, [2]], True), ([1], [1, 1], False), ([], {}, False),
    ({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}, True), ({"a": 1}, {"b": 1}, False), ([True], [1], False),
    (1, [1], False), (10**400, 1e308, False), ((1, 2), [1, 2], True),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right", "expected"), EQUAL)
def test_values_equal(left: Any, right: Any, expected: bool) -> None:
    assert values_equal(left, right) is expected
    assert values_equal(right, left) is expected


def test_calls_equal() -> None:
    assert calls_equal([call("f", a=1), call("g")], [call("g"), call("f", a=1.0)])
    assert not calls_equal([call("f"), call("f"), call("g")], [call("f"), call("g"), call("g")])
    assert not calls_equal([call("f")], [call("f"), call("f")])
    assert not calls_equal([call("f", a=1)], [call("g", a=1)])


TOOL = ToolSpec(name="f", parameters={
    "type": "object", "required": ["a", "b"],
    "properties": {"a": INT, "b": {"type": "string", "enum": ["x", "y"]}, "c": {"type": "array", "items": NUM}},
})  # fmt: skip
OPEN = ToolSpec(name="open", parameters={"type": "object", "additionalProperties": INT})


@pytest.mark.parametrize(("made", "expected"), [
    (call("f", a=1, b="x", c=[1, 2.5]), []),
    (call("h", a=1), [("unknown_tool", "")]),
    (call("f"), [("missing_required", "a"), ("missing_required", "b")]),
    (call("f", b="z", d=1, a="1", c=[True]),
     [("not_in_enum", "b"), ("unknown_parameter", "d"), ("wrong_type", "a"), ("wrong_type", "c")]),
    (call("open", z=1), []),
    (call("open", z="1"), [("wrong_type", "z")]),
])  # fmt: skip
def test_check_call(made: ToolCall, expected: list[tuple[str, str]]) -> None:
    problems = check_call(made, [TOOL, OPEN])
    assert [(p.kind, p.key) for p in problems] == expected
    assert all(p.explanation.endswith(".") and p.key in p.explanation for p in problems)


def test_deep_values_and_schemas_do_not_raise() -> None:
    deep, other, schema = (copy.deepcopy([]) for _ in range(3))
    items: dict[str, Any] = {"type": "array"}
    for _ in range(50_000):
        deep, other, schema, items = [deep], [other], [schema], {"type": "array", "items": items}
    assert values_equal(deep, other) and not values_equal(deep, [other])
    assert type_ok(deep, items) and type_ok(deep, items, allowed=True) and not type_ok(deep, STR)
    assert normalise_schema(items)["type"] == "array"
    found, depth = normalise_type("List[" * 150 + "int" + "]" * 150), 0
    while found:
        found, depth = found.get("items", {}), depth + 1
    assert 60 <= depth <= 70
    tool = ToolSpec(name="f", parameters={"type": "object", "properties": {"a": INT}})
    (problem,) = check_call(call("f", a=deep), [tool])
    assert problem.kind == "wrong_type" and len(problem.explanation) < 300
    assert calls_equal([call("f", a=deep)], [call("f", a=other)])
