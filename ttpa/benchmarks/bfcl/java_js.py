r"""Java and JavaScript values in text, `new ArrayList<>(Arrays.asList(1, 2))` or `[1, 'a']`, turned into Python values.

In the Java and JavaScript categories every argument is a text. It is converted by the type the function document
gives. A text that does not have the form of its type stays a text, which then fails the type test (or is meant: a
variable). The forms are narrow, and quirks belong to them: elements are cut at every comma, strings in a Java array
keep their quotes, an object ends at its first brace. No text takes long; longer ones than `MAX_CHARS` stay texts.

Types the leaderboard does not convert (Set, Queue, Stack, Hashtable; no question has them) stay texts as well. What
this module does not do: compare (`check`), or find the arguments of a call (`foreign_calls`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_CHARS = 20_000

JAVA_TYPES: Mapping[str, type] = {
    "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
    "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "Queue": list, "Stack": list,
    "Set": set, "HashMap": dict, "Hashtable": dict,
}  # fmt: skip
JS_TYPES: Mapping[str, type] = {
    "String": str, "any": str, "integer": int, "Bigint": int, "float": float, "Boolean": bool, "array": list,
    "dict": dict,
}  # fmt: skip

_WHOLE = re.compile(r"-?\d+$")
_WHOLE_L = re.compile(r"-?\d+[lL]$")
_WHOLE_N = re.compile(r"-?\d+n$")
_DOUBLE = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$")
_FIXED = re.compile(r"-?\d+(\.\d+)?$")
_LIST = re.compile(r"new\s+ArrayList<\w*>\(")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{([^}\n]*)\}")
_MAP = re.compile(r"new\s+HashMap<")
_MAP_CALL = re.compile(r">\s*\(\)")
_BRACES = re.compile(r"\s*\{\s*\{?\s*")
_TWO_BRACES = re.compile(r"\)\s*\{\{")
_ADD = re.compile(r"add\(([^\n][^)\n]*)\)")
_SPACES = re.compile(r"\s*")
_NEW_ARRAY = re.compile(r"new\s+Array\(")
_INNER = re.compile(r"\[([^\]\n]*)\]")
_NEXT_ROW = re.compile(r"\s*,\s*\[")


def convert_java(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a Java text.

    Args:
        text: as the model wrote it.
        kind: a key of `JAVA_TYPES`.
        inner: type of the elements of an Array or ArrayList.

    Example:
        >>> convert_java("new int[]{1, 2}", "Array", "integer"), convert_java("5L", "long"), convert_java("5", "long")
        ([1, 2], 5, '5')
    """
    if len(text) > MAX_CHARS:
        return text
    if kind in ("byte", "short", "integer"):
        return _number(int, text) if _WHOLE.match(text) else text
    if kind == "long":
        return _number(int, text, "lL") if _WHOLE_L.match(text) else text
    if kind == "float":
        return _number(float, text, "fF") if _FLOAT.match(text) else text
    if kind == "double":
        return _number(float, text) if _DOUBLE.match(text) else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "ArrayList":
        return _array_list(text, inner)
    if kind == "Array":
        found = _ARRAY.search(text)
        return text if found is None else [_element(part, inner) for part in _split(found[1]) if part]
    return _hash_map(text) if kind == "HashMap" else text


def convert_js(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a JavaScript text.

    Args:
        text: as the model wrote it.
        kind: a key of `JS_TYPES`.
        inner: type of the elements of an array.

    Example:
        >>> convert_js("{a: [1, 'b'], c: true}", "dict"), convert_js("[[1, 2], [3]]", "array", "array")
        ({'a': [1, 'b'], 'c': True}, [[1, 2], [3]])
    """
    if len(text) > MAX_CHARS:
        return text
    if kind == "String":
        return text[1:-1] if _quoted(text, "\"'") else text
    if kind == "integer":
        return _number(int, text) if _WHOLE.match(text) else text
    if kind == "Bigint":
        return _number(int, text, "n") if _WHOLE_N.match(text) else text
    if kind == "float":
        return _number(float, text) if _FIXED.match(text) else text
    if kind == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "array":
        return _js_array(text.strip(), inner)
    return _js_object(text.strip()) if kind == "dict" else text


def _number(make: type[int] | type[float], text: str, suffix: str = "") -> int | float | str:
    """A text that has the form of a number, as that number; a text where it has more digits than Python reads."""
    try:
        return make(text.rstrip("\n")[:-1] if suffix else text)
    except ValueError:
        return text


def _quoted(text: str, quotes: str) -> bool:
    return any(text.startswith(quote) and text.endswith(quote) for quote in quotes)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _guess(text: str, quotes: str) -> Any:
    """A value whose type is not known: truth value, quoted text, number, or the text as it is."""
    if text in ("true", "false"):
        return text == "true"
    if _quoted(text, quotes):
        return text[1:-1]
    for make in (int, float):
        try:
            return make(text)
        except ValueError:
            continue
    return text


# --- Java ------------------------------------------------------------------------------------------------------------


def _java_guess(text: str) -> Any:
    if not _quoted(text, '"'):
        if _WHOLE_L.match(text):
            return _number(int, text, "lL")
        if _FLOAT.match(text):
            return _number(float, text, "fF")
    return _guess(text, '"')


def _element(text: str, inner: str | None) -> Any:
    return convert_java(text, inner) if inner else _java_guess(text)


def _array_list(text: str, inner: str | None) -> Any:
    """`new ArrayList<T>(Arrays.asList(...))`, `new ArrayList<T>() {{ add(...); }}` or `new ArrayList<T>()`."""

    def values(parts: list[str]) -> list[Any]:
        # Quotes are cut off unseen where the type says that there are some.
        return [part[1:-1] if inner in ("char", "String") else _element(part, inner) for part in parts]

    starts = [found.end() for found in _LIST.finditer(text)]
    for start in starts:
        if text.startswith("Arrays.asList(", start):
            first = start + len("Arrays.asList(")
            end = text.find("))", first + 1)
            if end > 0 and "\n" not in text[first:end]:
                return values(_split(text[first:end]))
    for start in starts:
        opened = _TWO_BRACES.match(text, start)
        if opened is not None:
            first = _skip(text, opened.end())
            if first > opened.end() and text.startswith("}}", first):
                return []
            end = text.find("}}", first + 1)
            if end > 0:
                return values([part.strip() for part in _ADD.findall(text[first:end])])
    return [] if any(text.startswith(")", start) for start in starts) else text


def _hash_map(text: str) -> Any:
    """`new HashMap<K, V>() {{ put("key", value); }}`, or without the braces."""
    opened = _MAP.search(text)
    if opened is None:
        return text
    last = text.rfind("}")
    for call in _MAP_CALL.finditer(text, opened.end()):
        braces = _BRACES.match(text, call.end())
        if braces is not None and braces.end() <= last:
            return _puts(text[braces.end() : text.find("}", braces.end())].rstrip())
    for opened in _MAP.finditer(text):
        ended = _MAP_CALL.search(text, opened.end())
        if ended is None:
            break
        if "\n" not in text[opened.end() : ended.start()]:
            return {}
    return text


def _puts(text: str) -> dict[str, Any]:
    pairs = {}
    at = text.find('put("')
    while at >= 0:
        first = at + len('put("')
        middle = text.find('",', first)
        start = _skip(text, middle + 2)
        end = text.find(")", start)
        if middle < 0 or end < 0:
            break
        if "\n" not in text[first:middle] and "\n" not in text[start:end]:
            pairs[text[first:middle]] = _java_guess(text[start:end].strip())
            first = end + 1
        at = text.find('put("', first)
    return pairs


def _skip(text: str, at: int) -> int:
    """The first place from `at` on that is no white space."""
    found = _SPACES.match(text, at)
    return at if found is None else found.end()


# --- JavaScript ------------------------------------------------------------------------------------------------------


def _js_guess(text: str) -> Any:
    return _guess(text.strip(), "\"'")


def _js_array(text: str, inner: str | None) -> Any:
    made = _NEW_ARRAY.match(text)
    rows = _rows(text, 0 if made is None else made.end(), made is not None)
    if rows is not None:
        parts = _INNER.findall(text[:rows])
        # The first row begins with the bracket of the whole list.
        parts[0] = parts[0].strip().removeprefix("[")
        return [[_js_guess(part) for part in row.strip().split(",")] for row in parts]
    if made is not None:
        end = text.find(")", made.end())
        body = text[made.end() : end]
    else:
        end = text.find("]")
        body = text[1:end]
        if not text.startswith("["):
            return text
    if end < 0 or "\n" in body:
        return text
    values = _split(body) if body.strip() else []
    if not values or inner is None:
        return [_js_guess(value) for value in values]
    return [convert_js(value, inner) for value in values] if inner in JS_TYPES else text


def _rows(text: str, at: int, made: bool) -> int | None:
    """Where a list of lists ends: behind the first `]` that the list's own closing bracket follows."""
    if not made:
        if not text.startswith("["):
            return None
        at = 1
    at = _skip(text, at)
    if not text.startswith("[", at):
        return None
    row = end = at + 1
    while (end := text.find("]", end)) >= 0:
        if "\n" in text[row:end]:
            return None
        after = _skip(text, end + 1)
        if text.startswith(")" if made else "]", after):
            return after + 1
        following = _NEXT_ROW.match(text, end + 1)
        row = row if following is None else following.end()
        end = end + 1 if following is None else following.end()
    return None


def _js_object(text: str) -> Any:
    if text == "{}":
        return {}
    end = text.find("}")
    if not text.startswith("{") or end < 0 or "\n" in text[:end]:
        return text
    pairs = {}
    for key, value in _pairs(text[1:end]):
        if value.startswith("[") and value.endswith("]"):
            made = _js_array(value, None)
        else:
            made = _js_guess(value.strip("'\""))
        pairs[key.strip().strip("'\"")] = made
    return pairs


def _pairs(text: str) -> list[tuple[str, str]]:
    """Keys and values: a value ends before a comma behind which another key follows, one with a colon."""
    found = []
    at = 0
    while (colon := text.find(":", at)) >= 0:
        if colon == at:  # a key has at least one character
            at += 1
            continue
        start = _skip(text, colon + 1)
        end, following = len(text), len(text)
        comma = text.find(",", start)
        while comma >= 0:
            behind = text.find(",", comma + 1)
            stop = len(text) if behind < 0 else behind
            key = next((q for q in (_skip(text, comma + 1), comma + 1) if text.find(":", q + 1, stop) >= 0), None)
            if key is not None:
                end, following = comma, key
                break
            comma = behind
        found.append((text[at:colon], text[start:end].strip()))
        at = following
    return found
