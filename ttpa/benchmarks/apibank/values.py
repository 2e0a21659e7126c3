"""Arguments of API-Bank: from published text ("2", "['John', 'Jane']") to typed values, and how two are compared."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.io import dumps

TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}
CASE_KEPT = {"username", "password", "old_password", "new_password", "token"}  # name a record of the database

_OPTIONAL = re.compile(r"\[optional\]|only needed for", re.IGNORECASE)
_FORMAT = re.compile(r"%[YmdHMS](?:[-/: ]%[YmdHMS])*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?")


def parameters_schema(documented: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON Schema of documented parameters. They do not say what is required: all is, unless the description says
    "[Optional]" or "Only needed for", as the recorded calls confirm.
    """
    properties: dict[str, Any] = {}
    for name, spec in documented.items():
        kind, _, inner = spec["type"].partition("(")
        items = {"items": {"type": TYPES[inner.removesuffix(")")]}} if inner else {}
        properties[name] = {"type": TYPES[kind], **items, "description": str(spec.get("description", ""))}
    required = [name for name, schema in properties.items() if not _OPTIONAL.search(schema["description"])]
    return {"type": "object", "properties": properties, "required": required}


def schema_of(value: Any) -> dict[str, str]:
    """The schema of a recorded value, for calls of a tool that is not listed."""
    return {"type": TYPES.get(type(value).__name__, "string")}


def literal(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text writes in JSON or Python; None where it writes neither."""
    if text.strip()[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        calls = get_syntax("python").parse(f"[f(a={text.strip()})]")
        if isinstance(calls, ParseError) or len(calls) != 1 or calls[0].arguments.keys() != {"a"}:
            return None
        value = calls[0].arguments["a"]
    return value if isinstance(value, list | dict) else None


def typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value that a text stands for in a parameter of this schema: 2 for "2". What does not fit comes back
    unchanged.
    """
    if not isinstance(value, str):
        return value
    kind, text = schema.get("type"), value.strip()
    if kind in ("integer", "number") and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _FLOAT.fullmatch(text):
        return float(text)
    if kind == "boolean" and text in ("True", "False"):
        return text == "True"
    read = literal(text) if kind in ("array", "object") else None
    return read if isinstance(read, list if kind == "array" else dict) else value


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a parameter of this type takes the value: digits for numbers, a list for lists, anything for text."""
    kind, value = schema.get("type"), typed(value, schema)
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and (kind == "number" or value.is_integer()))
        return whole and not isinstance(value, bool)
    return kind not in ("array", "object") or isinstance(value, list | tuple if kind == "array" else Mapping)


def moment(value: Any, schema: Mapping[str, Any]) -> datetime | None:
    """The moment that a text gives in the date format of its parameter's description; None where it gives none."""
    named = _FORMAT.search(str(schema.get("description", "")))
    if named is None or not isinstance(value, str):
        return None
    text, pattern = value.strip(), named[0]
    try:
        if pattern != "%m-%d":
            return datetime.strptime(text, pattern)
        # A year before month and day is dropped.
        return datetime.strptime(text if text.count("-") == 2 else f"1904-{text}", "%Y-%m-%d").replace(year=1904)
    except (ValueError, OverflowError):
        return None


def compared(key: str, value: Any, schema: Mapping[str, Any]) -> Any:
    """The form in which two values of a parameter are compared, as the official APIs do: text trimmed and lower-cased
    (except `CASE_KEPT`), dates in one format.
    """
    kind = schema.get("type")
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


def as_text(value: Any) -> str:
    """A value as it would stand in the text of a call."""
    if isinstance(value, str):
        return value
    try:
        return str(value) if isinstance(value, bool | int | float) or value is None else dumps(value)
    except (ValueError, TypeError, RecursionError):  # a number of 5,000 digits, a list of 5,000 lists
        return f"a {type(value).__name__}"


def _folded(value: Any, levels: int) -> Any:
    """The value with its text trimmed and lower-cased; lists and objects only as deep as the documented ones."""
    if isinstance(value, str):
        return value.strip().lower()
    if levels == 2 and isinstance(value, list | tuple):
        return [_folded(item, 1) for item in value]
    if levels and isinstance(value, Mapping):
        return {key: _folded(item, 0) for key, item in value.items()}
    return value
