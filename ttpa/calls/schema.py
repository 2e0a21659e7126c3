"""The JSON-Schema side of tool calls: types normalised and tested, JSON equality, and what is wrong with a call.

This is no full JSON-Schema validator: formats, ranges, patterns and lengths are not looked at. Values and schemas may
come from outside, so nesting is bounded everywhere: what lies deeper than `MAX_DEPTH` is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ttpa.calls.literals import MAX_DEPTH, write_value
from ttpa.records import ToolCall, ToolSpec

# --- types as published tool lists write them ------------------------------------------------------------------------

_NAMES: dict[str, dict[str, Any]] = {
    alias: {"type": json_type}
    for json_type, aliases in {
        "string": "string str text char character date datetime time timestamp uuid url callable function",
        "integer": "integer int long short byte bigint int32 int64",
        "number": "number float double decimal numeric",
        "boolean": "boolean bool",
        "object": "object dict dictionary map mapping hashmap",
        "array": "array list tuple sequence iterable arraylist",
        "null": "null none nonetype",
    }.items()
    for alias in aliases.split()
} | {name: {"type": "array", "uniqueItems": True} for name in ("set", "frozenset")}


@lru_cache(maxsize=1024)
def _type_of(text: str) -> dict[str, Any]:
    return normalise_type(text)


def normalise_type(text: str, _depth: int = 0) -> dict[str, Any]:
    """JSON Schema for a type as Python, BFCL, Java or JSON Schema names it.

    Case and white space do not matter. What follows a comma outside brackets is a remark (`str, optional`). Unknown
    types and `any` give `{}`, which allows anything. `set` is an array of unique items; a tuple is an array, of fixed
    length when its element types are given; functions, dates and times are strings, since that is how JSON carries
    them.

    Example:
        >>> normalise_type("List[Union[int, float]]")
        {'type': 'array', 'items': {'type': ['integer', 'number']}}
        >>> normalise_type("str, optional"), normalise_type("Dict[str, int]"), normalise_type("Matrix")
        ({'type': 'string'}, {'type': 'object', 'additionalProperties': {'type': 'integer'}}, {})
    """
    if _depth > MAX_DEPTH:
        return {}
    text = _split(text, ",")[0]
    alternatives = _split(text, "|")
    if len(alternatives) > 1:
        return _union([normalise_type(part, _depth + 1) for part in alternatives])
    name, bracket, inner = text.strip().partition("[")
    if not bracket:
        name, bracket, inner = text.strip().partition("(")  # list(str)
    base = name.strip().rpartition(".")[2].lower()
    elements = [part for part in _split(inner[:-1], ",") if part.strip()] if inner[-1:] in ("]", ")") else []
    types = [normalise_type(part, _depth + 1) for part in elements]
    if base in ("optional", "union") and types:
        return _union([*types, {"type": "null"}] if base == "optional" else types)
    schema = dict(_NAMES.get(base, {}))
    if schema.get("type") == "array" and types:
        if base == "tuple" and [part.strip() for part in elements[1:]] != ["..."]:
            return schema | {"prefixItems": types, "minItems": len(types), "maxItems": len(types)}
        return schema | ({"items": types[0]} if types[0] else {})
    if schema.get("type") == "object" and len(types) == 2 and types[1]:
        schema["additionalProperties"] = types[1]
    return schema


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(members):
        return {}  # one alternative allows anything
    unique = [member for number, member in enumerate(members) if member not in members[:number]]
    if len(unique) == 1:
        return unique[0]
    if all(list(member) == ["type"] and isinstance(member["type"], str) for member in unique):
        return {"type": [member["type"] for member in unique]}
    return {"anyOf": unique}


def _split(text: str, mark: str) -> list[str]:
    """Splits at `mark` where no bracket is open."""
    parts, start, depth = [], 0, 0
    for hit in re.finditer(rf"[\[\]()]|{re.escape(mark)}", text):
        if hit[0] in "[(":
            depth += 1
        elif hit[0] in "])":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : hit.start()])
            start = hit.end()
    return [*parts, text[start:]]


_SCHEMA_KEYS = ("items", "additionalProperties", "not")
_LIST_KEYS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions")


def normalise_schema(schema: Any, _depth: int = 0) -> dict[str, Any]:
    """A BFCL or ToolACE schema as JSON Schema: only types change, every other key and the key order stay.

    Keywords that a type implies (`items` of `List[int]`) are added unless the schema has them. A type that says nothing
    (`any`, unknown) is left out, and what is not an object gives `{}`. Idempotent. The argument is not changed.
    """
    if not isinstance(schema, Mapping) or _depth > MAX_DEPTH:
        return {}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            kinds = value if isinstance(value, list | tuple) else [value]
            implied = _union([normalise_type(kind) if isinstance(kind, str) else {} for kind in kinds] or [{}])
            result |= {name: part for name, part in implied.items() if name == "type" or name not in schema}
        elif key in _MAP_KEYS and isinstance(value, Mapping):
            result[key] = {name: normalise_schema(part, _depth + 1) for name, part in value.items()}
        elif key in _LIST_KEYS and isinstance(value, list | tuple):
            result[key] = [normalise_schema(part, _depth + 1) for part in value]
        elif key in _SCHEMA_KEYS and isinstance(value, Mapping):
            result[key] = normalise_schema(value, _depth + 1)
        else:
            result[key] = value
    return result


# --- values and schemas ----------------------------------------------------------------------------------------------

_PYTHON_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": Mapping,
    "array": list | tuple,
    "null": type(None),
}


def type_ok(value: Any, schema: Any, _depth: int = 0) -> bool:
    """Whether a JSON value has the type a schema asks for, inside lists and objects too.

    Strict: a bool is neither integer nor number, an int is a number, a float is never an integer (5.0 is not 5), null
    only where the schema says so (type null, or `nullable`). No type, or an unknown one, allows anything. Elements are
    held against `items` and `prefixItems`, members against `properties` and `additionalProperties`, and alternatives
    against `anyOf`, `oneOf` (one match is enough) and `allOf`. Missing members, enums and lengths are not questions of
    type. Types may also be written as `normalise_type` reads them.
    """
    if not isinstance(schema, Mapping) or _depth > MAX_DEPTH or (value is None and schema.get("nullable") is True):
        return True
    if not _is_of(value, schema.get("type"), _depth):
        return False
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and options and not any(type_ok(value, option, _depth + 1) for option in options):
            return False
    needed = schema.get("allOf")
    if isinstance(needed, list) and not all(type_ok(value, option, _depth + 1) for option in needed):
        return False
    return all(type_ok(part, inner, _depth + 1) for part, inner in _parts(value, schema))


def _is_of(value: Any, wanted: Any, depth: int) -> bool:
    """Whether the value is of a type keyword's type."""
    if isinstance(wanted, list | tuple) and depth <= MAX_DEPTH:
        return not wanted or any(_is_of(value, option, depth + 1) for option in wanted)
    if not isinstance(wanted, str):
        return True
    if wanted not in _PYTHON_TYPES:
        return type_ok(value, _type_of(wanted), depth + 1)
    if isinstance(value, bool):
        return wanted == "boolean"
    return isinstance(value, _PYTHON_TYPES[wanted])


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


def enum_ok(value: Any, schema: Any, _depth: int = 0) -> bool:
    """Whether a value is among the schema's `enum`, if there is one; elements of a list against `items` too."""
    if not isinstance(schema, Mapping) or _depth > MAX_DEPTH:
        return True
    options = schema.get("enum")
    if isinstance(options, list | tuple) and not any(values_equal(value, option) for option in options):
        return False
    return all(enum_ok(part, inner, _depth + 1) for part, inner in _parts(value, schema))


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
    """Whether two call lists hold the same calls, in any order, each as often."""
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
    """One thing wrong with a call; `key` is the parameter it is about ("" for an unknown tool)."""

    kind: Literal["unknown_tool", "missing_required", "unknown_parameter", "wrong_type", "not_in_enum"]
    key: str
    explanation: str


def check_call(call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[Problem, ...]:
    """What is wrong with a call: missing parameters in the tool's order, then wrong ones in the call's.

    A valid call has no problem; an unknown tool is the only problem of its call. Parameters outside the tool's
    `properties` are unknown unless its `additionalProperties` allow them.

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
    try:
        text = write_value(value)
    except (ValueError, RecursionError):  # arguments that did not come through a syntax have no bound
        text = f"a {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."
