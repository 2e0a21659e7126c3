"""A tool as data sets write it, as a `ToolSpec` whose parameters are a JSON Schema.

Where nothing says which flat parameters are required, those without a default whose type does not say "optional" are:
in 730 published xLAM rows, 5 calls omit one of them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ttpa.calls.schema import DEFINITIONS, named, normalise_schema, resolved
from ttpa.data.rows import decode, need, need_object
from ttpa.io import dumps
from ttpa.records import ToolSpec

PLACES = ("parameters", "inputSchema", "input_schema", "arguments", "args", "params", "input_parameters")
_OUTPUT = re.compile("out|return|resp|result", re.IGNORECASE)
_OPTIONAL = re.compile(r"\boptional\b", re.IGNORECASE)


def name_of(item: Any, key: str) -> str:
    """The name of an element of the list `key`, a tool or a call; BadRow where it has none."""
    name = item.get("name") if isinstance(item, dict) else None
    need(name and isinstance(name, str), "missing name", f"an element of {key!r} has no name")
    return str(name)


def unwrapped(item: Any) -> Any:
    """The function of a tool that is written as `{"type": "function", "function": {...}}`."""
    inner = item.get("function") if isinstance(item, dict) else None
    return inner if isinstance(inner, dict) and "name" not in item else item


def read_tool(item: Any) -> ToolSpec:
    """The tool of an element of a list of tools; BadRow where it has no name, or its parameters are no objects."""
    item = unwrapped(item)
    name = name_of(item, "tools")
    other = (
        key for key, one in item.items() if isinstance(one, dict) and "properties" in one and not _OUTPUT.match(key)
    )
    given: Any = next((item[place] for place in (*PLACES, *other) if item.get(place)), {})
    if isinstance(given, str):
        with suppress(ValueError):
            given = decode(given)
    parameters = need_object(named(given), "parameters", f"tool {name!r} has")
    listed = item.get("required")  # published ToolACE rows carry null here; a list is the parameters' own
    if not _is_schema(parameters):  # null: a column of other tools; the type first, as in all schemas written here
        given = {key: one for key, one in parameters.items() if one is not None}
        specs = {key: need_object(one, "parameter", f"parameter {key!r} is") for key, one in given.items()}
        if not isinstance(listed, list):
            free = [key for key, one in specs.items() if "default" in one or _OPTIONAL.search(str(one.get("type")))]
            listed = [key for key in specs if key not in set(free)]
        typed = {key: ({"type": one["type"]} if "type" in one else {}) | one for key, one in specs.items()}
        parameters = {"type": "object", "properties": typed}
    parameters |= {key: item[key] for key in DEFINITIONS if key in item}
    found = resolved(str(parameters.get("$ref")), [parameters])
    if "properties" not in parameters and isinstance(found, dict):  # as pydantic writes a class that holds itself
        parameters = found | {key: one for key, one in parameters.items() if key != "$ref"}
    schema = normalise_schema(parameters)
    schema.setdefault("type", "object")
    schema["properties"] = need_object(schema.get("properties") or {}, "properties", f"tool {name!r} has as properties")
    if not isinstance(schema.get("required"), list):
        schema["required"] = listed if isinstance(listed, list) else []
    schema["required"] = [key for key in schema["required"] if isinstance(key, str)]
    return ToolSpec(name=name, description=str(item.get("description") or ""), parameters=schema)


@lru_cache(maxsize=1 << 14)
def _read_text(text: str) -> ToolSpec:
    return read_tool(json.loads(text))


def read_tools(items: Iterable[Any]) -> list[ToolSpec]:
    """The tools of a list. Equal texts give the same (shared) object, since rows of a set share tools."""
    return [_read_text(dumps(item)) for item in items]


def _is_schema(parameters: Mapping[str, Any]) -> bool:
    """Whether keywords of JSON Schema have the values of keywords: parameters may have the same names."""
    properties = parameters.get("properties")
    if isinstance(properties, dict):
        return all(isinstance(one, dict) for one in properties.values()) or isinstance(parameters.get("type"), str)
    kinds = {"type": str | list, "properties": list, "required": list, "$ref": str, "description": str, "title": str}
    return not parameters or any(isinstance(parameters.get(key), kind) for key, kind in kinds.items())
