"""`data=xlam`: xLAM function calling (APIGen; Salesforce/xlam-function-calling-60k, CC-BY-4.0), docs/own_data.md.

Nothing in a row says what is required: here what has no default and whose type does not say "optional". In 730
published rows, 5 calls omit a parameter that is required by this rule.
"""

import re
from collections.abc import Mapping
from typing import Any

from ttpa.calls.schema import normalise_type
from ttpa.data.published import Converted, FileSource, content_key, unique_tools
from ttpa.data.rows import DECODER, BadRow, need, need_object
from ttpa.options import option
from ttpa.records import Message, ToolCall, ToolSpec

_OPTIONAL = re.compile(r"\boptional\b", re.IGNORECASE)


def _rows_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list in a field: a JSON string, in some copies of the set the list itself."""
    value: Any = row.get(key)
    if isinstance(value, str):
        try:
            value = DECODER.decode(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("field not JSON", f"{key!r} is not JSON ({error})") from None
    kind = "missing key" if value is None else "field not a list"
    need(isinstance(value, list), kind, f"{key!r} must hold a list")
    return list(value)


def _name_of(item: Any, key: str) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    need(name and isinstance(name, str), "missing name", f"an element of {key!r} has no name")
    return str(name)


def parameters_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of a tool's flat parameters; see the module header for what is required."""
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
    for name, given in parameters.items():
        spec = need_object(given, "parameter", f"parameter {name!r} is")
        annotation = str(spec.get("type") or "")
        kept = {key: spec[key] for key in ("description", "default") if key in spec}
        schema["properties"][name] = (normalise_type(annotation) if annotation else {}) | kept
        if "default" not in spec and not _OPTIONAL.search(annotation):
            schema["required"].append(name)
    return schema


def _tool(item: Any) -> ToolSpec:
    name = _name_of(item, "tools")
    parameters = need_object(item.get("parameters") or {}, "parameters", f"tool {name!r} has")
    return ToolSpec(name=name, description=str(item.get("description") or ""), parameters=parameters_schema(parameters))


def _call(item: Any, tools: Mapping[str, ToolSpec]) -> ToolCall:
    name = _name_of(item, "answers")
    arguments = need_object(item.get("arguments"), "arguments", f"the call of {name!r} has")
    listed = ", ".join(map(repr, tools)) or "no tool"
    need(name in tools, "tool not in list", f"calls {name!r}; the row lists {listed}")
    return ToolCall(name=name, arguments=arguments)


@option
class XLAM(FileSource):
    """The xLAM set: one query, one answer of one or more calls. With `text_turns`, rows with an empty answer become
    samples whose `target_text` is empty: no call is right.
    """

    def convert(self, row: Mapping[str, Any]) -> Converted:
        """Rows that differ only in `id` (null in part of the copies) or the spacing of their JSON are duplicates."""
        query = row.get("query")
        need(isinstance(query, str) and query.strip(), "missing key", "'query' must hold the question")
        listed, answers = _rows_of(row, "tools"), _rows_of(row, "answers")
        tools = unique_tools(map(_tool, listed))
        target = tuple(_call(item, tools) for item in answers)
        key, query = content_key(query, answers, listed), str(query)
        made = self.sample(f"xlam-{key}", tools, [Message(role="user", content=query)], target, "")
        return Converted(key, query, (made,) if target or self.text_turns else ())
