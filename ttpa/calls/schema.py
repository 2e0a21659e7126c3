"""The JSON-Schema side of tool calls: types normalised and tested, JSON equality, and what is wrong with a call.

Formats, ranges, patterns and lengths are not looked at, nor what lies deeper than `MAX_DEPTH`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ttpa.calls.literals import MAX_DEPTH, write_value
from ttpa.records import ToolCall, ToolSpec

_NAMES: dict[str, dict[str, Any]] = {
    alias: {"type": aliases.split()[0]}
    for aliases in (
        "string str text char character date datetime time timestamp uuid url callable function",
        "integer int long short byte bigint int32 int64",
        "number float double decimal numeric",
        "boolean bool",
        "object dict dictionary map mapping hashmap",
        "array list tuple sequence iterable arraylist",
        "null none nonetype",
    )
    for alias in aliases.split()
} | {name: {"type": "array", "uniqueItems": True} for name in ("set", "frozenset")}


def normalise_type(text: str, _depth: int = 0) -> dict[str, Any]:
    """JSON Schema for a type as Python, BFCL, Java or JSON Schema names it; case and white space do not matter.

    What follows a comma outside brackets is a remark (`str, optional`). Unknown types and `any` give `{}`, which allows
    anything. A tuple is an array, of fixed length when its element types are given; functions and dates are strings.
    """
    if _depth > MAX_DEPTH:
        return {}
    text = _split(text, ",")[0].strip()
    alternatives = _split(text, "|")
    if len(alternatives) > 1:
        return _union([normalise_type(part, _depth + 1) for part in alternatives])
    name, _, inner = text.partition("[" if "[" in text else "(")  # list(str)
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
    if not all(members):  # one alternative allows anything
        return {}
    unique = [member for number, member in enumerate(members) if member not in members[:number]]
    if len(unique) == 1:
        return unique[0]
    if all(list(member) == ["type"] and isinstance(member["type"], str) for member in unique):
        return {"type": [member["type"] for member in unique]}
    return {"anyOf": unique}


def _split(text: str, mark: str) -> list[str]:
    """Splits at the character `mark` where no bracket is open."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[(") - (char in "])")
        if char == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


_LIST_KEYS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_INNER_KEYS = ("items", "additionalProperties", "not")
_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions")


def normalise_schema(schema: Any, _depth: int = 0) -> dict[str, Any]:
    """A BFCL or ToolACE schema as JSON Schema: only types change. Keywords that a type implies (`items` of `List[int]`)
    are added unless the schema has them; a type that says nothing is left out; what is not an object gives `{}`.
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
        else:
            inner = key in _INNER_KEYS and isinstance(value, Mapping)
            result[key] = normalise_schema(value, _depth + 1) if inner else value
    return result


PYTHON_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool}
PYTHON_TYPES |= {"object": Mapping, "array": list | tuple, "null": type(None)}


def type_ok(value: Any, schema: Any, _depth: int = 0) -> bool:
    """Whether a JSON value has the type a schema asks for, inside lists and objects too.

    A bool is no number, an int is a number, a float is never an integer (5.0 is not 5), null only where the schema says
    so (type null, or `nullable`). No type, or an unknown one, allows anything; one match in `oneOf` is enough.
    """
    if not isinstance(schema, Mapping) or _depth > MAX_DEPTH or (value is None and schema.get("nullable") is True):
        return True

    for key, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        options = schema.get(key)
        if isinstance(options, list) and options and not enough(type_ok(value, one, _depth + 1) for one in options):
            return False
    of_type = _is_of(value, schema.get("type"), _depth)
    return of_type and all(type_ok(part, inner, _depth + 1) for part, inner in _parts(value, schema))


def _is_of(value: Any, wanted: Any, depth: int) -> bool:
    if isinstance(wanted, list | tuple) and depth <= MAX_DEPTH:
        return not wanted or any(_is_of(value, option, depth + 1) for option in wanted)
    if not isinstance(wanted, str):
        return True
    if wanted not in PYTHON_TYPES:
        return type_ok(value, normalise_type(wanted), depth + 1)
    return wanted == "boolean" if isinstance(value, bool) else isinstance(value, PYTHON_TYPES[wanted])


def _parts(value: Any, schema: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The parts of a list or object, each with its schema."""
    if isinstance(value, list | tuple):
        first, rest = schema.get("prefixItems"), schema.get("items")
        schemas = first[: len(value)] if isinstance(first, list) else []
        return list(zip(value, [*schemas, *[rest] * (len(value) - len(schemas))], strict=True))
    if isinstance(value, Mapping):
        known, other = schema.get("properties"), schema.get("additionalProperties")
        return [(part, known.get(key, other) if isinstance(known, Mapping) else other) for key, part in value.items()]
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
    """Whether two JSON values are equal, of any depth: 1 == 1.0, but True != 1 and "1" != 1."""
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


def released_equal(left: Any, right: Any) -> bool:
    """Python's `==`, by which True equals 1, as released code compares JSON values."""
    try:
        return bool(left == right)
    except RecursionError:  # both nested deeper than `==` goes
        return values_equal(left, right)


def calls_equal(left: Sequence[ToolCall], right: Sequence[ToolCall]) -> bool:
    """Whether two call lists hold the same calls, in any order, each as often."""
    unused = list(right)
    for call in left:  # equality is transitive, so the first match is as good as any
        for at, other in enumerate(unused):
            if call.name == other.name and values_equal(call.arguments, other.arguments):
                del unused[at]
                break
        else:
            return False
    return not unused


def parameter_schema(tool: ToolSpec, key: str) -> Any:
    """The schema of a parameter; None when neither `properties` nor `additionalProperties` of the tool allow it."""
    if key in tool.properties:
        return tool.properties[key] or {}
    other = tool.parameters.get("additionalProperties", False)
    return None if other is False else other


class Problem(NamedTuple):
    """One thing wrong with a call; `key` is the parameter it is about ("" for an unknown tool)."""

    kind: Literal["unknown_tool", "missing_required", "unknown_parameter", "wrong_type", "not_in_enum"]
    key: str
    explanation: str


def check_call(call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[Problem, ...]:
    """What is wrong with a call: an unknown tool and nothing else, or missing parameters and then wrong ones.

    Parameters outside the tool's `properties` are unknown unless its `additionalProperties` allow them.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return (Problem("unknown_tool", "", f"There is no tool {_short(call.name)}."),)
    missing = (key for key in tool.required if key not in call.arguments)
    problems = [Problem("missing_required", key, f"{call.name} needs {key}.") for key in missing]
    for key, value in call.arguments.items():
        schema = parameter_schema(tool, key)
        if schema is None:
            problems.append(Problem("unknown_parameter", key, f"{call.name} has no parameter {_short(key)}."))
        elif not type_ok(value, schema):
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
