"""Types as published tool lists write them, turned into JSON Schema.

Python text (`List[int]`, `str, optional`), BFCL names (`dict`, `float`, `tuple`) and Java names (`HashMap`) all occur
in real data. `ttpa.calls.schema` hands both functions on, beside the tests that use their results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 64
"""Types, schemas and values are read to this depth; what lies deeper is not looked at (it allows anything)."""
MAX_TYPE_CHARS = 1000
"""A longer text is no type."""

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
} | {"set": {"type": "array", "uniqueItems": True}, "frozenset": {"type": "array", "uniqueItems": True}}
_NESTED = ("items", "additionalProperties", "not")
_NESTED_LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_NESTED_MAPS = ("properties", "patternProperties", "$defs", "definitions")


def normalise_type(text: str) -> dict[str, Any]:
    """JSON Schema for a type written as text.

    Case and white space do not matter. Anything after a comma outside brackets is a remark (`str, optional`). Unknown
    types and `any` give `{}`, which allows anything. `set` is an array of unique items; a tuple is an array, of fixed
    length when its element types are given; functions, dates and times are strings, since that is how JSON carries
    them.

    Args:
        text: a type as Python, BFCL, Java or JSON Schema names it.

    Example:
        >>> normalise_type("List[Union[int, float]]")
        {'type': 'array', 'items': {'type': ['integer', 'number']}}
        >>> normalise_type("str, optional"), normalise_type("Dict[str, int]"), normalise_type("Matrix")
        ({'type': 'string'}, {'type': 'object', 'additionalProperties': {'type': 'integer'}}, {})
    """
    return _type(text, 0) if len(text) <= MAX_TYPE_CHARS else {}


def _type(text: str, depth: int) -> dict[str, Any]:
    parts = _split(text, ",")
    alternatives = _split(parts[0], "|")
    if depth > MAX_DEPTH:
        return {}
    if len(alternatives) > 1:
        return _union([_type(part, depth + 1) for part in alternatives])
    name, bracket, inner = parts[0].strip().partition("[")
    if not bracket:
        name, bracket, inner = parts[0].strip().partition("(")  # list(str)
    base = name.strip().rpartition(".")[2].lower()
    inside = inner.rstrip()[:-1] if bracket and inner.rstrip()[-1:] in ("]", ")") else ""
    elements = [part for part in _split(inside, ",") if part.strip()]
    if base in ("optional", "union") and elements:
        members = [_type(part, depth + 1) for part in elements]
        return _union([*members, {"type": "null"}] if base == "optional" else members)
    found = dict(_NAMES.get(base, {}))
    if found.get("type") == "array" and elements:
        return found | _elements(base, elements, depth)
    if found.get("type") == "object" and len(elements) == 2 and (values := _type(elements[1], depth + 1)):
        found["additionalProperties"] = values
    return found


def _elements(base: str, elements: list[str], depth: int) -> dict[str, Any]:
    """The keywords for the element types of an array."""
    if base != "tuple" or [part.strip() for part in elements[1:]] == ["..."]:
        first = _type(elements[0], depth + 1)
        return {"items": first} if first else {}
    members = [_type(part, depth + 1) for part in elements]
    return {"prefixItems": members, "minItems": len(members), "maxItems": len(members)}


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(members):
        return {}  # one alternative allows anything
    unique: list[dict[str, Any]] = []
    for member in members:
        if member not in unique:
            unique.append(member)
    if len(unique) == 1:
        return unique[0]
    if all(list(member) == ["type"] and isinstance(member["type"], str) for member in unique):
        return {"type": [member["type"] for member in unique]}
    return {"anyOf": unique}


def _split(text: str, mark: str) -> list[str]:
    """Splits at `mark` where no bracket is open."""
    parts, start, depth = [], 0, 0
    for hit in re.finditer(rf"[\[\]()]|{re.escape(mark)}", text):
        char = hit.group()
        if char in "[(":
            depth += 1
        elif char in "])":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : hit.start()])
            start = hit.end()
    return [*parts, text[start:]]


def normalise_schema(schema: Any) -> dict[str, Any]:
    """A BFCL or ToolACE schema as JSON Schema: only types change, every other key and the key order stay.

    Keywords that a type implies (`items` of `List[int]`) are added unless the schema has them. A type that says nothing
    (`any`, unknown) is left out. Idempotent. The argument is not changed.

    Args:
        schema: a schema of any form; what is not an object gives `{}`.

    Example:
        >>> normalise_schema({"type": "dict", "properties": {"x": {"type": "float", "default": 1}}})
        {'type': 'object', 'properties': {'x': {'type': 'number', 'default': 1}}}
    """
    return _schema(schema, 0)


def _schema(schema: Any, depth: int) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return {}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            for name, implied in _type_keyword(value).items():
                if name == "type" or name not in schema:
                    result[name] = implied
        elif key in _NESTED_MAPS and isinstance(value, Mapping):
            result[key] = {name: _schema(part, depth + 1) for name, part in value.items()}
        elif key in _NESTED_LISTS and isinstance(value, list | tuple):
            result[key] = [_schema(part, depth + 1) for part in value]
        elif key in _NESTED and isinstance(value, Mapping):
            result[key] = _schema(value, depth + 1)
        else:
            result[key] = value
    return result


def _type_keyword(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return normalise_type(value)
    if isinstance(value, list | tuple):
        return _union([normalise_type(part) if isinstance(part, str) else {} for part in value]) if value else {}
    return {}
