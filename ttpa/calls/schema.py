"""The JSON-Schema side of tool calls: normalised types, type tests, JSON equality, and what is wrong with a call.

This is no full JSON-Schema validator: formats, ranges, patterns and lengths are not looked at. Nesting is bounded
everywhere, since both values and schemas may come from outside. Turning published types into JSON Schema:
`ttpa.calls.normalise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ttpa.calls.normalise import MAX_DEPTH, normalise_schema, normalise_type
from ttpa.calls.writing import write_value
from ttpa.records import ToolCall, ToolSpec

JSON_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")


@lru_cache(maxsize=1024)
def _cached_type(text: str) -> dict[str, Any]:
    return normalise_type(text)


def type_ok(value: Any, schema: Any) -> bool:
    """Whether a JSON value has the type a schema asks for, inside lists and objects too.

    Strict: a bool is neither integer nor number, an int is a number, a float is never an integer (5.0 is not 5), null
    only where the schema says so (type null, or `nullable`). No type, or an unknown one, allows anything. Elements are
    held against `items` and `prefixItems`, members against `properties` and `additionalProperties`, and alternatives
    against `anyOf`, `oneOf` (one match is enough) and `allOf`. Missing members, enums and lengths are not questions of
    type.

    Args:
        value: a JSON value.
        schema: a JSON Schema; types may also be written as `normalise_type` reads them.

    Example:
        >>> type_ok([1, 2.5], {"type": "array", "items": {"type": "number"}}), type_ok(True, {"type": "integer"})
        (True, False)
    """
    return _fits(value, schema, 0)


def _fits(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH or (value is None and schema.get("nullable") is True):
        return True
    if not _is_of(value, schema.get("type"), depth):
        return False
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and options and not any(_fits(value, option, depth + 1) for option in options):
            return False
    needed = schema.get("allOf")
    if isinstance(needed, list) and not all(_fits(value, option, depth + 1) for option in needed):
        return False
    return all(_fits(part, inner, depth + 1) for part, inner in _parts(value, schema))


def _is_of(value: Any, wanted: Any, depth: int) -> bool:
    """Whether the value is of a type keyword's type."""
    if isinstance(wanted, list | tuple) and depth <= MAX_DEPTH:
        return not wanted or any(_is_of(value, option, depth + 1) for option in wanted)
    if not isinstance(wanted, str) or depth > MAX_DEPTH:
        return True
    if wanted not in JSON_TYPES:
        return _fits(value, _cached_type(wanted), depth + 1)
    if wanted == "null":
        return value is None
    if wanted == "boolean":
        return isinstance(value, bool)
    if wanted in ("integer", "number"):
        return isinstance(value, int if wanted == "integer" else (int, float)) and not isinstance(value, bool)
    if wanted == "object":
        return isinstance(value, Mapping)
    return isinstance(value, str if wanted == "string" else (list, tuple))


def _parts(value: Any, schema: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The parts of a list or object, each with the schema it must fit."""
    if isinstance(value, list | tuple):
        first, rest = schema.get("prefixItems"), schema.get("items")
        first = first if isinstance(first, list) else []
        return [(part, first[i] if i < len(first) else rest) for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        known, other = schema.get("properties"), schema.get("additionalProperties")
        known = known if isinstance(known, Mapping) else {}
        return [(part, known.get(key, other)) for key, part in value.items()]
    return []


def enum_ok(value: Any, schema: Any) -> bool:
    """Whether a value is among the schema's `enum`, if there is one; elements of a list against `items` too.

    Example:
        >>> enum_ok("b", {"enum": ["a"]}), enum_ok(["a"], {"items": {"enum": ["a"]}}), enum_ok(1, {})
        (False, True, True)
    """
    return _in_enum(value, schema, 0)


def _in_enum(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return True
    options = schema.get("enum")
    if isinstance(options, list | tuple) and not any(values_equal(value, option) for option in options):
        return False
    return all(_in_enum(part, inner, depth + 1) for part, inner in _parts(value, schema))


def values_equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 1 == 1.0, but True != 1 and "1" != 1.

    Lists are compared in order, objects by key; nothing else is forgiven. Iterative: no depth of nesting is too much.

    Example:
        >>> values_equal({"a": [1, 2]}, {"a": [1.0, 2]}), values_equal(True, 1), values_equal("1", 1)
        (True, False, False)
    """
    todo = [(left, right)]
    while todo:
        a, b = todo.pop()
        if isinstance(a, Mapping):
            if not isinstance(b, Mapping) or a.keys() != b.keys():
                return False
            todo.extend((a[key], b[key]) for key in a)
        elif isinstance(a, list | tuple):
            if not isinstance(b, list | tuple) or len(a) != len(b):
                return False
            todo.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) != isinstance(b, bool) or isinstance(b, Mapping | list | tuple) or a != b:
            return False
    return True


def calls_equal(left: Sequence[ToolCall], right: Sequence[ToolCall]) -> bool:
    """Whether two call lists hold the same calls, in any order, each as often.

    Example:
        >>> calls_equal([ToolCall(name="f"), ToolCall(name="g")], [ToolCall(name="g"), ToolCall(name="f")])
        True
    """
    if len(left) != len(right):
        return False
    unused = list(right)
    for call in left:  # equality is transitive, so the first match is as good as any
        for index, other in enumerate(unused):
            if call.name == other.name and values_equal(call.arguments, other.arguments):
                del unused[index]
                break
        else:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a call.

    Attributes:
        kind: the class of the error.
        key: the parameter it is about; "" for an unknown tool.
        explanation: one sentence for a person.
    """

    kind: Literal["unknown_tool", "missing_required", "unknown_parameter", "wrong_type", "not_in_enum"]
    key: str
    explanation: str


def check_call(call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[Problem, ...]:
    """What is wrong with a call, given the tools: missing parameters in the tool's order, then the given ones in the
    call's.

    Args:
        call: the call.
        tools: the tools it may call. Parameters outside a tool's `properties` are unknown unless the schema has an
            `additionalProperties` that allows them.

    Returns:
        The problems; none when the call is valid. An unknown tool is the only problem of its call.

    Example:
        >>> tool = ToolSpec(name="f", parameters={"properties": {"a": {"type": "integer"}}, "required": ["a"]})
        >>> [(problem.kind, problem.key) for problem in check_call(ToolCall(name="f", arguments={"b": 1}), [tool])]
        [('missing_required', 'a'), ('unknown_parameter', 'b')]
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return (Problem("unknown_tool", "", f"There is no tool {_short(call.name)}."),)
    missing = (key for key in tool.required if key not in call.arguments)
    problems = [Problem("missing_required", key, f"{call.name} needs {key}.") for key in missing]
    other = tool.parameters.get("additionalProperties", False)
    for key, value in call.arguments.items():
        if key not in tool.properties and other is False:
            problems.append(Problem("unknown_parameter", key, f"{call.name} has no parameter {_short(key)}."))
            continue
        schema = tool.properties.get(key, other)
        if not type_ok(value, schema):
            wanted = _short({name: schema[name] for name in ("type", "items", "anyOf", "oneOf") if name in schema})
            problems.append(Problem("wrong_type", key, f"{key}={_short(value)} is not of the type {wanted}."))
        elif not enum_ok(value, schema):
            listed = f": {_short(schema['enum'])}" if "enum" in schema else ""
            problems.append(Problem("not_in_enum", key, f"{key}={_short(value)} is not an allowed value{listed}."))
    return tuple(problems)


def _short(value: Any, width: int = 80) -> str:
    text = write_value(value)
    return text if len(text) <= width else text[: width - 3] + "..."


__all__ = [
    "JSON_TYPES",
    "Problem",
    "calls_equal",
    "check_call",
    "enum_ok",
    "normalise_schema",
    "normalise_type",
    "type_ok",
    "values_equal",
]
