"""Arguments of API-Bank: from published text ("2", "['John', 'Jane']") to typed values, and how two are compared.

The documents have no field for required parameters. Here a parameter is required unless its description begins with
"[Optional]" or says "Only needed for": seven parameters of Translate and ForgotPassword, as the recorded calls confirm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.io import dumps

TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}
"""Documented type -> JSON Schema's. There is "list(str)" too."""
CASE_KEPT = frozenset({"username", "password", "old_password", "new_password", "token"})
"""Parameters that name a record of the database, where another case is another record."""

_OPTIONAL = re.compile(r"\[optional\]|only needed for", re.IGNORECASE)
_FORMAT = re.compile(r"%[YmdHMS](?:[-/: ]%[YmdHMS])*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?")


def parameters_schema(documented: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON Schema of documented parameters. KeyError or AttributeError: they are not of the published form."""
    properties: dict[str, Any] = {}
    for name, spec in documented.items():
        kind, _, inner = spec["type"].partition("(")
        items = {"items": {"type": TYPES[inner.removesuffix(")")]}} if inner else {}
        properties[name] = {"type": TYPES[kind], **items, "description": str(spec.get("description", ""))}
    required = [name for name, schema in properties.items() if not _OPTIONAL.search(schema["description"])]
    return {"type": "object", "properties": properties, "required": required}


def literal(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text writes in JSON or Python; None where it writes neither."""
    text = text.strip()
    if text[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        calls = get_syntax("python").parse(f"[f(a={text})]")
        if isinstance(calls, ParseError) or len(calls) != 1 or calls[0].arguments.keys() != {"a"}:
            return None
        value = calls[0].arguments["a"]
    return value if isinstance(value, list | dict) else None


def typed(value: Any, schema: Any) -> Any:
    """The value that a text stands for in a parameter of this schema; whatever does not fit comes back unchanged.

    Example:
        >>> typed("2", {"type": "integer"}), typed("two", {"type": "integer"}), typed("True", {"type": "boolean"})
        (2, 'two', True)
    """
    if not isinstance(value, str):
        return value
    kind, text = _kind(schema), value.strip()
    if kind in ("integer", "number") and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _FLOAT.fullmatch(text):
        return float(text)
    if kind == "boolean" and text in ("True", "False"):
        return text == "True"
    if kind in ("array", "object"):
        read = literal(text)
        return read if isinstance(read, list if kind == "array" else dict) else value
    return value


def schema_of(value: Any) -> dict[str, str]:
    """The schema of a recorded value, for calls of a tool that is not listed."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    names = ((int, "integer"), (float, "number"), (list, "array"), (dict, "object"))
    return {"type": next((name for kind, name in names if isinstance(value, kind)), "string")}


def fits(value: Any, schema: Any) -> bool:
    """Whether a parameter of this type takes the value: digits for numbers, a list for lists, anything for text."""
    kind, value = _kind(schema), typed(value, schema)
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and (kind == "number" or value.is_integer()))
        return whole and not isinstance(value, bool)
    if kind in ("array", "object"):
        return isinstance(value, list | tuple if kind == "array" else Mapping)
    return True


def moment(value: Any, schema: Any) -> datetime | None:
    """The moment a text gives in the date format that its parameter's description names; None where it gives none. A
    format of month and day also takes a year, which is dropped.

    Example:
        >>> moment("2023-3-5", {"description": "The date. Format: %Y-%m-%d"})
        datetime.datetime(2023, 3, 5, 0, 0)
    """
    named = _FORMAT.search(str(schema.get("description", ""))) if isinstance(schema, Mapping) else None
    if named is None or not isinstance(value, str):
        return None
    text, pattern = value.strip(), named[0]
    try:
        if pattern != "%m-%d":
            return datetime.strptime(text, pattern)
        return datetime.strptime(text if text.count("-") == 2 else f"1904-{text}", "%Y-%m-%d").replace(year=1904)
    except (ValueError, OverflowError):
        return None


def compared(key: str, value: Any, schema: Any) -> Any:
    """The form in which two values of a parameter are compared: text trimmed and lower-cased (except `CASE_KEPT`),
    dates in one format. A boolean is true only where it is written "True"; blanks in a formula and the order of health
    data do not matter.

    Example:
        >>> compared("location", " Room 1", {"type": "string"}), compared("token", "A1", {"type": "string"})
        ('room 1', 'A1')
    """
    kind = _kind(schema)
    if kind == "boolean":
        return as_text(value) == "True"
    if kind in ("integer", "number", "array", "object") and fits(value, schema):
        folded = _folded(typed(value, schema), levels=2)
        return sorted(folded, key=as_text) if key == "health_data" and isinstance(folded, list) else folded
    text = as_text(value).strip()
    if key == "formula":
        text = text.replace(" ", "")
    if (when := moment(text, schema)) is not None:
        return str(when)
    return text if key in CASE_KEPT else text.lower()


def similarity(left: Any, right: Any) -> float:
    """Jaccard index of the lower-cased words of two texts: shared words over all words, 1 where there are none."""
    a, b = (set(as_text(text).lower().split()) for text in (left, right))
    return len(a & b) / len(a | b) if a | b else 1.0


def as_text(value: Any) -> str:
    """A value as it would stand in the text of a call."""
    if isinstance(value, str):
        return value
    try:
        return str(value) if isinstance(value, bool | int | float) or value is None else dumps(value)
    except (ValueError, TypeError, RecursionError):  # a number of 5,000 digits, a list of 5,000 lists
        return f"a {type(value).__name__}"


def _kind(schema: Any) -> Any:
    return schema.get("type") if isinstance(schema, Mapping) else None


def _folded(value: Any, levels: int) -> Any:
    """The value with its text trimmed and lower-cased; lists and objects only as deep as the documented ones."""
    if isinstance(value, str):
        return value.strip().lower()
    if levels == 2 and isinstance(value, list | tuple):
        return [_folded(item, 1) for item in value]
    if levels and isinstance(value, Mapping):
        return {key: _folded(item, 0) for key, item in value.items()}
    return value
