"""Writes JSON values as text. Iterative, so that no depth of nesting can exhaust the stack.

`json.dumps` is not enough: it raises for deep values and for integers of more digits than the interpreter converts, and
it cannot write Python's True, False and None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Style:
    """How values look: what follows an element, what follows a key, and the words for true, false and null."""

    comma: str = ", "
    colon: str = ": "
    true: str = "true"
    false: str = "false"
    null: str = "null"


JSON_STYLE = Style()


def write_value(value: Any, style: Style = JSON_STYLE) -> str:
    """A JSON value as text: key order kept, non-ASCII characters as they are, tuples as lists.

    Args:
        value: None, bool, int, float, str, and lists, tuples and mappings of such. A float that is not finite is
            written as null and an object of another type as the string of its `str`: neither is a JSON value.
        style: separators and words.

    Returns:
        One line of text.

    Example:
        >>> write_value({"a": [1, True], "b": None}, Style(",", ":"))
        '{"a":[1,true],"b":null}'
    """
    out: list[str] = []
    todo: list[tuple[bool, Any]] = [(False, value)]  # (finished text?, text or value), next one last
    while todo:
        is_text, item = todo.pop()
        if is_text:
            out.append(item)
        elif isinstance(item, Mapping):
            parts: list[tuple[bool, Any]] = [(True, "{")]
            for number, (key, part) in enumerate(item.items()):
                parts.append((True, (style.comma if number else "") + quote(key_text(key)) + style.colon))
                parts.append((False, part))
            todo.append((True, "}"))
            todo.extend(reversed(parts))
        elif isinstance(item, list | tuple):
            parts = [(True, "[")]
            for number, part in enumerate(item):
                if number:
                    parts.append((True, style.comma))
                parts.append((False, part))
            todo.append((True, "]"))
            todo.extend(reversed(parts))
        else:
            out.append(_scalar(item, style))
    return "".join(out)


def quote(text: str) -> str:
    """A string literal that JSON and Python read alike.

    Example:
        >>> quote('say "hi"')
        '"say \\\\"hi\\\\""'
    """
    return json.dumps(text, ensure_ascii=False)


def key_text(key: Any) -> str:
    """The JSON object key for a dict key: text as it is, numbers and words as JSON writes them.

    Example:
        >>> key_text("a"), key_text(1), key_text(None)
        ('a', '1', 'null')
    """
    return key if isinstance(key, str) else _scalar(key, JSON_STYLE) if _is_plain(key) else str(key)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _scalar(value: Any, style: Style) -> str:
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return style.null
    if isinstance(value, bool):
        return style.true if value else style.false
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:  # more digits than the interpreter converts; Decimal has no such limit
            return format(Decimal(value), "f")
    if isinstance(value, float):
        return float.__repr__(value) if math.isfinite(value) else style.null
    return quote(str(value))
