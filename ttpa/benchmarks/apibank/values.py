"""Arguments of API-Bank: from text to typed values, and to the form in which the official rule compares them.

The published calls hold every argument as text ("2", "['John', 'Jane']", "True"); the API documents give the types.
Samples hold typed values, so that what a model reads in the history agrees with the schemas of its tools.

Which parameters are required: the documents do not say it in a field. Here a parameter is required unless its
description begins with "[Optional]" or says that it is needed for one of two calls only ("Only needed for"): seven
parameters of Translate and ForgotPassword are optional by this reading, and the recorded calls agree with it.

Comparison: text is trimmed and lower-cased, dates are reformatted where the description gives a format (a year that
the format does not ask for is dropped), integers and floats are read from digits, a boolean is true only where it is
written "True", spaces in a formula and the order of health data do not matter. User names, passwords and tokens keep
their case: they name a record of the database, where another case is another record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.io import dumps

TYPES: Mapping[str, Mapping[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array"},
    "list(str)": {"type": "array", "items": {"type": "string"}},
    "dict": {"type": "object"},
}
CASE_KEPT = frozenset({"username", "password", "old_password", "new_password", "token"})
MAX_TEXT = 10_000
"""Longer text is not read as a list or an object."""

_OPTIONAL = re.compile(r"\[optional\]|only needed for", re.IGNORECASE)
_FORMAT = re.compile(r"%[YmdHMS](?:[-/: ]%[YmdHMS])*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?")


def parameters_schema(documented: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON Schema of documented parameters; see the module header for what is required.

    Raises:
        KeyError, AttributeError: a parameter has no known type or description.

    Example:
        >>> parameters_schema({"n": {"type": "int", "description": "[Optional] How many."}})["required"]
        []
    """
    properties = {
        name: {**TYPES[spec["type"]], "description": str(spec.get("description", ""))}
        for name, spec in documented.items()
    }
    required = [name for name, schema in properties.items() if not _OPTIONAL.search(schema["description"])]
    return {"type": "object", "properties": properties, "required": required}


def literal(text: str) -> Any:
    """A list or object written as JSON or as a Python literal; None where it is neither.

    Example:
        >>> literal("['John', 'Jane']"), literal("John")
        (['John', 'Jane'], None)
    """
    text = text.strip()
    if text[:1] not in ("[", "{") or len(text) > MAX_TEXT:
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
    """The value that a text stands for in a parameter of this schema; anything else, and text of none, unchanged.

    Example:
        >>> typed("2", {"type": "integer"}), typed("two", {"type": "integer"}), typed("True", {"type": "boolean"})
        (2, 'two', True)
    """
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if not isinstance(value, str):
        return value
    text = value.strip()
    if kind in ("integer", "number") and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _FLOAT.fullmatch(text):
        return float(text)
    if kind == "boolean" and text in ("True", "False"):
        return text == "True"
    if kind in ("array", "object"):
        found = literal(text)
        return found if isinstance(found, list if kind == "array" else dict) else value
    return value


def kind_of(value: Any) -> dict[str, str]:
    """The schema that a recorded value stands in for, where the tool is not among the listed ones."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int | float):
        return {"type": "integer" if isinstance(value, int) else "number"}
    return {"type": "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "string"}


def readable(value: Any, schema: Any) -> bool:
    """Whether the value can be given to a parameter of this type: digits for numbers, a list for lists."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    found = typed(value, schema)
    if kind == "integer":
        whole = isinstance(found, float) and found.is_integer()
        return (isinstance(found, int) or whole) and not isinstance(found, bool)
    if kind == "number":
        return isinstance(found, int | float) and not isinstance(found, bool)
    if kind in ("array", "object"):
        return isinstance(found, list | tuple if kind == "array" else Mapping)
    return True  # text takes anything, and what is not "True" is false


def date_format(schema: Any) -> str:
    """The date format in the description of a parameter, "" without one.

    Example:
        >>> date_format({"description": "The date. Format: %Y-%m-%d"})
        '%Y-%m-%d'
    """
    found = _FORMAT.search(str(schema.get("description", ""))) if isinstance(schema, Mapping) else None
    return found[0] if found else ""


def date(value: Any, pattern: str) -> datetime | None:
    """The moment a text means in a format; None where it does not follow it. A month and day may carry a year."""
    try:
        text = value.strip()
        if pattern != "%m-%d":
            return datetime.strptime(text, pattern)
        return datetime.strptime(text if text.count("-") == 2 else f"1904-{text}", "%Y-%m-%d").replace(year=1904)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


def compared(key: str, value: Any, schema: Any) -> Any:
    """The form in which two values of a parameter are compared.

    Example:
        >>> compared("time", "2023-3-5", {"type": "string", "description": "Format: %Y-%m-%d"})
        '2023-03-05 00:00:00'
        >>> compared("location", " Room 1", {"type": "string"}), compared("token", "A1", {"type": "string"})
        ('room 1', 'A1')
    """
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "boolean":
        return _text(value) == "True"
    if kind in ("integer", "number", "array", "object") and readable(value, schema):
        folded = _folded(typed(value, schema))
        return sorted(folded, key=_text) if key == "health_data" and isinstance(folded, list) else folded
    text = _text(value).strip()
    if key == "formula":
        text = text.replace(" ", "")
    moment = date(text, pattern) if (pattern := date_format(schema)) else None
    if moment is not None:
        return str(moment)
    return text if key in CASE_KEPT else text.lower()


def words(text: Any) -> set[str]:
    """The lower-cased words of a free text."""
    return set(_text(text).lower().split())


def jaccard(left: set[str], right: set[str]) -> float:
    """Shared words over all words; 1 where there are none.

    Example:
        >>> jaccard({"team", "meeting"}, {"meeting"})
        0.5
    """
    return len(left & right) / len(left | right) if left | right else 1.0


def _text(value: Any) -> str:
    """A value as it would stand in the text of a call."""
    if isinstance(value, str):
        return value
    try:
        return str(value) if isinstance(value, bool | int | float) or value is None else dumps(value)
    except (ValueError, TypeError, RecursionError):  # a number of 5,000 digits, a list of 5,000 lists
        return f"a {type(value).__name__}"


def _folded(value: Any) -> Any:
    """The value with all text in it trimmed and lower-cased, two levels deep as the documented lists are."""
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, list | tuple):
        return [_folded_item(item) for item in value]
    return _folded_item(value)


def _folded_item(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, Mapping):
        return {key: item.strip().lower() if isinstance(item, str) else item for key, item in value.items()}
    return value
