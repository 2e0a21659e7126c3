"""`data=xlam`: xLAM function calling (APIGen; Salesforce/xlam-function-calling-60k, CC-BY-4.0), docs/own_data.md."""

from collections.abc import Mapping
from typing import Any

from ttpa.data.published import Converted, FileSource, content_key, unique_tools
from ttpa.data.rows import BadRow, decode, need, need_object
from ttpa.data.tools import name_of, read_tools
from ttpa.options import option
from ttpa.records import Message, ToolCall, ToolSpec


def _rows_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list in a field: a JSON string, in some copies of the set the list itself."""
    value: Any = row.get(key)
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError as error:
            raise BadRow("field not JSON", f"{key!r} is not JSON ({error})") from None
    kind = "missing key" if value is None else "field not a list"
    need(isinstance(value, list), kind, f"{key!r} must hold a list")
    return list(value)


def _call(item: Any, tools: Mapping[str, ToolSpec]) -> ToolCall:
    name = name_of(item, "answers")
    arguments = need_object(item.get("arguments"), "arguments", f"the call of {name!r} has")
    if name not in tools:
        listed = ", ".join(map(repr, tools)) or "no tool"
        raise BadRow("tool not in list", f"calls {name!r}; the row lists {listed}")
    # Null for a parameter of other tools is left behind by a columnar reader.
    known = tools[name].properties
    return ToolCall(
        name=name, arguments={key: one for key, one in arguments.items() if one is not None or key in known}
    )


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
        tools = unique_tools(read_tools(listed))
        target = tuple(_call(item, tools) for item in answers)
        key, query = content_key(query, answers, listed), str(query)
        made = self.sample(f"xlam-{key}", tools, [Message(role="user", content=query)], target, "")
        return Converted(key, query, (made,) if target or self.text_turns else ())
