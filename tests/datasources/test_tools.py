"""Tools as data sets write them: where the parameters stand, and what they become."""

import json
from typing import Any

import pytest

from tests.options import made
from tests.toolcalls import call
from ttpa.calls.six_errors import six_errors
from ttpa.data.rows import BadRow
from ttpa.data.tools import PLACES, read_tool
from ttpa.records import Candidate, Sample, ToolCall

CITY = {"type": "string", "description": "d"}
SCHEMA = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}


def parameters_of(given: Any, place: str = "parameters", **more: Any) -> dict[str, Any]:
    return dict(read_tool({"name": "f", place: given, **more}).parameters)


@pytest.mark.parametrize("place", PLACES)
def test_places_of_a_schema(place: str) -> None:
    written = {**SCHEMA, "type": "dict", "properties": {"city": {**CITY, "type": "str"}}}
    assert parameters_of(written, place) == parameters_of(json.dumps(written), place) == SCHEMA
    assert read_tool({"type": "function", "function": {"name": "f", place: written}}).parameters == SCHEMA
    assert parameters_of(written, f"the_{place}", returns={"type": "object", "properties": {"x": {}}}) == SCHEMA
    if place != "parameters":
        assert parameters_of(written, place, parameters=None) == SCHEMA


FLAGGED = {"a": {"type": "str", "required": True}, "b": {"type": "str", "required": False}, "c": {"type": "str"}}
READ: dict[str, tuple[Any, list[str], dict[str, Any]]] = {  # what is written, what is required, the properties
    "flags of flat parameters": (FLAGGED, ["a"], {key: {"type": "string"} for key in "abc"}),
    "flags as text, none is set": ({"a": {"required": "False"}, "b": {}}, [], {"a": {}, "b": {}}),
    "flags of a schema": ({"type": "dict", "properties": {"a": {"required": True}, "b": {}}, "required": ["b"]},
                          ["b", "a"], {"a": {}, "b": {}}),
    "flags inside an object": ({"type": "object", "properties": {"o": {"type": "dict", "properties": FLAGGED}}}, [], {
        "o": {"type": "object", "properties": {key: {"type": "string"} for key in "abc"}, "required": ["a"]}}),
    "properties as a list": ({"type": "object", "properties": [{"name": "a", "type": "int", "required": True},
                              {"name": "b"}]}, ["a"], {"a": {"type": "integer"}, "b": {}}),
    "parameters as a list": ([{"name": "a", "type": "int"}, {"name": "b", "default": 1}], ["a"],
                             {"a": {"type": "integer"}, "b": {"default": 1}}),
    "enum and items of flat parameters": (
        {"u": {"type": "str", "enum": ["c", "f"]}, "d": {"type": "list", "items": {"type": "str", "enum": ["mon"]}}},
        ["u", "d"], {"u": {"type": "string", "enum": ["c", "f"]},
                     "d": {"type": "array", "items": {"type": "string", "enum": ["mon"]}}}),
    "const and bounds of flat parameters": (
        {"x": {"description": "d", "type": "int, optional", "minimum": 1, "const": 2}}, [],
        {"x": {"type": "integer", "description": "d", "minimum": 1, "const": 2}}),
    "parameters named like keywords": ({"type": {"type": "str"}, "properties": {"type": "int"}, "required": {}},
        ["type", "properties", "required"], {"type": {"type": "string"}, "properties": {"type": "integer"},
                                             "required": {}}),
    "null for the parameters of other tools": ({"a": {"type": "int"}, "b": None}, ["a"], {"a": {"type": "integer"}}),
    "a reference to itself": ({"$ref": "#/$defs/Node", "$defs": {"Node": NODE}}, [], NODE["properties"]),
    "a reference in a circle": ({"$ref": "#"}, [], {}), "nothing": ({}, [], {}),
    "names that are none": ({"type": "object", "properties": None, "required": [1, {}, ["a"], "a"]}, ["a"], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_parameters_become_a_schema(case: str) -> None:
    written, required, properties = READ[case]
    found = parameters_of(written)
    assert (found["type"], found["required"], found["properties"]) == ("object", required, properties)
    assert list(map(list, found["properties"].values())) == list(map(list, properties.values()))  # as prompts show them


@pytest.mark.parametrize(
    "bad", ["no", "[1]", [1], [{"type": "int"}], {"a": "str"}, {"type": "object", "properties": "a"}]
)
def test_other_parameters_are_a_bad_row(bad: Any) -> None:
    with pytest.raises(BadRow, match="not an object"):
        parameters_of(bad)


DEFS = {
    "Item": {"type": "object", "properties": {"id": {"type": "integer"}}},
    "Speed": {"type": "str", "enum": ["slow"]},
}
ORDER = {"item": {"$ref": "#/$defs/Item"}, "speed": {"$ref": "#/$defs/Speed"}}
RIGHT, WRONG = call("f", item={"id": 0}, speed="slow"), call("f", item="7", speed=3)
SCORED: list[tuple[Any, ToolCall, ToolCall, float, str]] = [  # parameters, target, answer, ESM, label
    ({"type": "dict", "properties": ORDER, "$defs": DEFS, "required": ["item"]}, RIGHT, WRONG, 7 / 11,
     "parameter_type"),
    ({"properties": {"items": {"type": "list", "items": ORDER["item"]}}, "definitions": {}, "$defs": DEFS},
     call("f", items=[]), call("f", items=[{"id": "x"}]), 7 / 11, "parameter_type"),
    (FLAGGED, call("f", a="C0"), call("f", a="zz"), 9 / 11, "parameter_value"),
    ({"a": {"required": "true"}, "b": {"type": "int"}}, call("f", a=1), call("f", b="x"), 4 / 11, "missing_required"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "target", "answer", "worth", "label"), SCORED)
def test_scores_read_the_schema(parameters: Any, target: ToolCall, answer: ToolCall, worth: float, label: str) -> None:
    tool = read_tool({"name": "f", "parameters": parameters})
    sample = Sample(id="s", source="", tools=(tool,), messages=(), target=(target,))
    candidate = Candidate(sample_id="s", index=0, text="", calls=(answer,))
    assert made("scorer", "esm")(sample, candidate).value == pytest.approx(worth)
    assert six_errors(sample, [answer])[0] == label and six_errors(sample, [target]) == ()
