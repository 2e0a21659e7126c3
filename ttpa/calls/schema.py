"""The JSON-Schema side of tool calls: types normalised and tested, JSON equality, and what is wrong with a call.

Formats, ranges, patterns and lengths are not looked at, nor what lies deeper than `MAX_DEPTH`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

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
_TYPE_TOKEN = re.compile(r"[\[\](),|]|[^\[\](),|]+")
MAX_UNION = 64  # a type with more alternatives allows anything


def normalise_type(text: str) -> dict[str, Any]:
    """JSON Schema for a type as Python, BFCL, Java or JSON Schema names it; case and white space do not matter.

    What follows a comma outside brackets is a remark (`str, optional`). Unknown types and `any` give `{}`, which allows
    anything. A tuple is an array, of fixed length when its element types are given; functions and dates are strings.
    """
    outer: list[tuple[list[Any], list[Any], str]] = []  # what was read before each open bracket
    # Types between two commas are alternatives of one element; `inner` are the elements in the brackets behind `name`.
    elements, alternatives, name, inner = list[Any](), list[Any](), "", list[Any]()
    for token in _TYPE_TOKEN.findall(text):
        if token in ("[", "("):
            outer.append((elements, alternatives, name))
            elements, alternatives, name, inner = [], [], "", []
        elif token not in (",", "|", "]", ")"):
            name, inner = (name or token.strip(), []) if token.strip() else (name, inner)  # text behind brackets
        elif outer or token == "|":
            if name or inner:
                alternatives.append(_named_type(name, inner))
            if token != "|" and alternatives:
                elements.append((name, _union(alternatives)))
                alternatives = []
            if token in ("]", ")"):
                read, (elements, alternatives, name) = elements, outer.pop()
                inner = read if len(outer) < MAX_DEPTH else []
            else:
                name, inner = "", []
        elif token == ",":
            break
    if outer:  # brackets that nothing closes
        _, alternatives, name, inner = *outer[0], []
    return _union([*alternatives, _named_type(name, inner)])


def _named_type(name: str, elements: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The type of a name and of the (text, type) of each element in the brackets behind it."""
    base, types = name.rpartition(".")[2].strip().lower(), [schema for _, schema in elements]
    if base in ("optional", "union") and types:
        return _union([*types, {"type": "null"}] if base == "optional" else types)
    schema = dict(_NAMES.get(base, {}))
    if schema.get("type") == "array" and types:
        if base == "tuple" and [text for text, _ in elements[1:]] != ["..."]:
            return schema | {"prefixItems": types, "minItems": len(types), "maxItems": len(types)}
        return schema | ({"items": types[0]} if types[0] else {})
    if schema.get("type") == "object" and len(types) == 2 and types[1]:
        schema["additionalProperties"] = types[1]
    return schema


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(members) or len(members) > MAX_UNION:  # one alternative allows anything
        return {}
    unique = [member for number, member in enumerate(members) if member not in members[:number]]
    if len(unique) == 1:
        return unique[0]
    if all(list(member) == ["type"] and isinstance(member["type"], str) for member in unique):
        return {"type": [member["type"] for member in unique]}
    return {"anyOf": unique}


_LIST_KEYS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_INNER_KEYS = ("items", "additionalProperties", "not")
DEFINITIONS = ("$defs", "definitions")
_MAP_KEYS = ("properties", "patternProperties", *DEFINITIONS)


def named(listed: Any) -> Any:
    """Parameters given as a list of objects with a name, by name; anything else as it is."""
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in listed
    ):
        return listed
    return {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in listed}


def normalise_schema(schema: Any, _depth: int = 0) -> dict[str, Any]:
    """A BFCL, ToolACE or xLAM schema as JSON Schema: types are normalised, properties are no list, and a flag
    `required` of a property moves into the list beside them. Every other key and the key order stay.

    Keywords that a type implies (`items` of `List[int]`) are added unless the schema has them; a type that says nothing
    (`any`, unknown) is left out; what is not an object gives `{}`.
    """
    if not isinstance(schema, Mapping) or _depth > MAX_DEPTH:
        return {}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        value = named(value) if key == "properties" else value
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
    properties = result["properties"] if isinstance(result.get("properties"), dict) else {}
    said = {name: str(part.get("required")).lower() for name, part in properties.items()}
    if flags := {name: said[name] == "true" for name in said if said[name] in ("true", "false")}:
        listed = result["required"] if isinstance(result.get("required"), list) else []
        needed = [name for name in listed if isinstance(name, str)] + [name for name in flags if flags[name]]
        result["required"] = list(dict.fromkeys(needed))
        for name in flags:
            del properties[name]["required"]
    return result


_TYPE_KEYS = ("type", "items", "$ref", "allOf", "anyOf", "oneOf")
PYTHON_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool}
PYTHON_TYPES |= {"object": Mapping, "array": list | tuple, "null": type(None)}
MAX_STEPS = 20_000


class _Spent(Exception):
    """No step is left."""


@dataclass(slots=True)
class Steps:
    """How many comparisons may still be made; when none is left, everything fits. So no schema takes long to check, as
    one whose alternatives refer to each other would.
    """

    left: int = MAX_STEPS

    def take(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise _Spent


def type_ok(value: Any, schema: Any, root: Any = None, steps: Steps | None = None, allowed: bool = False) -> bool:
    """Whether a JSON value has the type a schema asks for, inside lists and objects too; with `allowed`, is also among
    the values that `enum` and `const` list. References are looked up in `root`, the tool's parameters (or the schema).

    A bool is no number, an int is a number, a float is never an integer (5.0 is not 5), null only where the schema says
    so (type null, or `nullable`). No type, or an unknown one, allows anything, as does a reference that leads nowhere;
    one match in `oneOf` is enough.
    """
    try:
        return _fits(value, schema, allowed, steps or Steps(), (root,) if root else (), 0)
    except _Spent:
        return True


def _fits(value: Any, schema: Any, allowed: bool, steps: Steps, scopes: tuple[Any, ...], depth: int) -> bool:
    """`scopes` are the schemas around this one in which its references may lie, the outermost first."""
    steps.take()
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH or (value is None and schema.get("nullable") is True):
        return True
    if not scopes or not schema.keys().isdisjoint(DEFINITIONS):
        scopes = (*scopes, schema)

    def fits(part: Any, inner: Any) -> bool:
        return _fits(part, inner, allowed, steps, scopes, depth + 1)

    reference, options = schema.get("$ref"), schema.get("enum")
    if isinstance(reference, str):
        steps.take(len(reference) // 8)
        if not fits(value, resolved(reference, scopes)):
            return False
    for key, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        inner = schema.get(key)
        if isinstance(inner, list) and inner and not enough(fits(value, one) for one in inner):
            return False
    if not _is_of(value, schema.get("type"), fits):
        return False
    if allowed and "const" in schema and not values_equal(value, schema["const"], steps):
        return False
    if allowed and isinstance(options, list | tuple) and not any(values_equal(value, one, steps) for one in options):
        return False
    return all(fits(part, inner) for part, inner in _parts(value, schema))


def _is_of(value: Any, wanted: Any, fits: Callable[[Any, Any], bool]) -> bool:
    if isinstance(wanted, list | tuple):
        return not wanted or any(not isinstance(one, str) or _is_of(value, one, fits) for one in wanted)
    if not isinstance(wanted, str):
        return True
    if wanted not in PYTHON_TYPES:
        return fits(value, normalise_type(wanted))
    return wanted == "boolean" if isinstance(value, bool) else isinstance(value, PYTHON_TYPES[wanted])


def _parts(value: Any, schema: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    """The parts of a list or object, each with its schema."""
    if isinstance(value, list | tuple):
        first, rest = schema.get("prefixItems"), schema.get("items")
        return zip(value, chain(first if isinstance(first, list) else (), repeat(rest)), strict=False)
    if isinstance(value, Mapping):
        known, other = schema.get("properties"), schema.get("additionalProperties")
        return ((part, known.get(key, other) if isinstance(known, Mapping) else other) for key, part in value.items())
    return ()


def resolved(reference: str, scopes: Sequence[Any]) -> Any:
    """What a local reference such as `#/$defs/Item` leads to, in the first scope where it leads anywhere, or None."""
    keys = [unquote(key).replace("~1", "/").replace("~0", "~") for key in reference.split("/")[1:]]
    for scope in scopes if reference.split("/")[0] == "#" else ():
        with suppress(KeyError, IndexError, ValueError, TypeError):
            return reduce(lambda found, key: found[int(key) if isinstance(found, list) else key], keys, scope)
    return None


def values_equal(left: Any, right: Any, steps: Steps | None = None) -> bool:
    """Whether two JSON values are equal, of any depth: 1 == 1.0, but True != 1 and "1" != 1."""
    todo = [(left, right)]
    while todo:
        if steps:
            steps.take()
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


def check_call(call: ToolCall, tools: Sequence[ToolSpec], steps: Steps | None = None) -> tuple[Problem, ...]:
    """What is wrong with a call: an unknown tool and nothing else, or missing parameters and then wrong ones.

    Parameters outside the tool's `properties` are unknown unless its `additionalProperties` allow them.
    """
    return tuple(call_problems(call, next((tool for tool in tools if tool.name == call.name), None), steps))


def call_problems(call: ToolCall, tool: ToolSpec | None, steps: Steps | None = None) -> Iterator[Problem]:
    """`check_call` with the tool that is called, problem by problem."""
    if tool is None:
        yield Problem("unknown_tool", "", f"There is no tool {_short(call.name)}.")
        return
    for key in tool.required:
        if key not in call.arguments:
            yield Problem("missing_required", key, f"{call.name} needs {key}.")
    for key, value in call.arguments.items():
        schema, root = parameter_schema(tool, key), tool.parameters
        if schema is None:
            yield Problem("unknown_parameter", key, f"{call.name} has no parameter {_short(key)}.")
        elif not type_ok(value, schema, root, steps):
            wanted = _short({name: schema[name] for name in _TYPE_KEYS if name in schema})
            yield Problem("wrong_type", key, f"{key}={_short(value)} is not of the type {wanted}.")
        elif not type_ok(value, schema, root, steps, allowed=True):
            listed = "".join(f": {_short(schema[name])}" for name in ("enum", "const") if name in schema)
            yield Problem("not_in_enum", key, f"{key}={_short(value)} is not an allowed value{listed}.")


def _short(value: Any, width: int = 80) -> str:
    try:
        text = write_value(value)
    except (ValueError, RecursionError):  # arguments that did not come through a syntax have no bound
        text = f"a {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."
