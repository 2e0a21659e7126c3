"""Calls written in Python, `[f(a=1), pkg.g(b="x")]`, read by the official rule and without evaluating anything.

The rule is that of the leaderboard's plain-prompt decoder: what Python's grammar accepts as a list of calls. Positional
arguments are dropped; a bare name becomes its text, a tuple stays a tuple, arithmetic on constants is computed, a call
among the arguments becomes `{name: arguments}` (its source text, when it has no keyword arguments).

Two readers give the same result. The quick one knows plain values and gives up at anything else; the careful one asks
Python's parser and takes everything else. Nothing is run: arithmetic is folded here, under limits of size, and where it
holds names or calls (the official decoder evaluates these) the text counts as undecodable. So do texts longer or more
deeply nested than any answer. Surrogates without a partner and null characters are what Python's parser refuses, too.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
import warnings
from functools import lru_cache
from typing import Any

from ttpa.benchmarks.bfcl.fold import NotConstant, fold

MAX_CHARS = 200_000
"""Longer answers are not decoded: at that length Python's parser takes a quarter of a second and 100 MB."""

MAX_DEPTH = 90
"""Brackets nested deeper are not decoded (Python's own limit is 200)."""

Call = tuple[str, dict[Any, Any]]
"""Name and arguments. Keys are text, but for `None` where `**` was used."""

_S = r"[ \t\n\r\f]*"  # white space between tokens inside brackets
_NAME = rf"(?!(?:{'|'.join(keyword.kwlist)})\b)[A-Za-z_]\w*"
_PLAIN = (
    r"""(?:"([^"\\\n\r\0]*)"|'([^'\\\n\r\0]*)\'"""
    r"|(-?(?:0|[1-9][0-9]{0,17})(\.[0-9]+(?:[eE][-+]?[0-9]{1,4})?)?)"
    rf"|((?:True|False|None)\b|{_NAME}))"
)
_HEAD = re.compile(rf"{_S}({_NAME}(?:\.{_NAME})*){_S}\({_S}", re.ASCII)
_ARGUMENT = re.compile(rf"({_NAME}){_S}={_S}(?:{_PLAIN}{_S}([,)]){_S}|(?=[\[{{]))", re.ASCII)
_ITEM = re.compile(rf"{_S}(?:{_PLAIN}{_S}([,:\]}}]){_S}|(?=[\[{{]))", re.ASCII)
_STOP = re.compile(rf"{_S}([,)\]}}]){_S}")
_OPEN = re.compile(rf"[\[{{]{_S}")
_NOTHING = re.compile(rf"\[{_S}\]")
_WORDS = {"True": True, "False": False, "None": None}
_JSON = json.JSONDecoder()

# A first element that is a call begins with a dotted name and goes on with one of these (or is something rarer).
_FIRST = re.compile(rf"\[{_S}([^\W\d]\w*(?:\.[^\W\d]\w*)*){_S}")
_GOES_ON = "([.#\\"
_PREFIXES = {"r", "b", "u", "f", "rb", "br", "fr", "rf", "t", "tr", "rt"}

_LITERAL = re.compile(r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*\'""", re.DOTALL)
_BRACKET = re.compile(r"[()\[\]{}]")


class Undecodable(Exception):
    """The text is no list of calls; says why. Internal to this package."""


def read_calls(text: str) -> list[Call]:
    """Reads a list of calls; its outer brackets may be missing, and backticks, line ends and spaces around it are cut.

    Raises:
        Undecodable: it is no such list, and nothing else whatever the text.

    Example:
        >>> read_calls("f(a=-1, b=[true, 2 * 3]), g('dropped')")
        [('f', {'a': -1, 'b': ['true', 6]}), ('g', {})]
    """
    text = text.strip("`\n ")
    if not text.startswith("["):
        text = "[" + text
    if not text.endswith("]"):
        text += "]"
    if len(text) > MAX_CHARS:
        raise Undecodable(f"longer than {MAX_CHARS} characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Undecodable("a surrogate without its partner") from None
    calls = _quick(text)
    return _careful(text) if calls is None else calls


# --- the quick reader ------------------------------------------------------------------------------------------------


def _quick(text: str) -> list[Call] | None:
    """The calls of a text without anything unusual, None for any other."""
    calls: list[Call] = []
    at = 1
    while True:
        head = _HEAD.match(text, at)
        if head is None:
            return None
        read = _arguments(text, head.end())
        if read is None:
            return None
        arguments, at = read
        calls.append((head[1], arguments))
        stop = _STOP.match(text, at)
        if stop is None:
            return None
        at = stop.end()
        if stop[1] == "]" or (stop[1] == "," and text.startswith("]", at)):
            return calls if at + (stop[1] == ",") == len(text) else None
        if stop[1] != ",":
            return None


def _arguments(text: str, at: int) -> tuple[dict[Any, Any], int] | None:
    """The keyword arguments that begin at `at`, and where their closing parenthesis ends."""
    arguments: dict[Any, Any] = {}
    while True:
        hit = _ARGUMENT.match(text, at)
        if hit is None:
            return (arguments, at + 1) if text.startswith(")", at) else None
        key, double, single, number, fraction, word, end = hit.groups()
        at = hit.end()
        if end is not None:
            text_of = double if double is not None else single
            arguments[key] = text_of if text_of is not None else _plain(double, single, number, fraction, word)
        else:
            read = _container(text, at, 0)
            stop = None if read is None else _STOP.match(text, read[1])
            if read is None or stop is None:
                return None
            arguments[key], end, at = read[0], stop[1], stop.end()
        if end == ")":
            return arguments, at
        if end != ",":
            return None


def _plain(double: str | None, single: str | None, number: str | None, fraction: str | None, word: str | None) -> Any:
    if double is not None:
        return double
    if single is not None:
        return single
    if number is not None:
        return int(number) if fraction is None else float(number)
    return _WORDS.get(word, word) if word is not None else None


@lru_cache(maxsize=1)  # looks at the whole text, and is asked by each of its lists and dicts
def _as_json(text: str) -> str | None:
    """The text as JSON can read its lists and dicts, if it can, only as Python does; None where it might not."""
    if "\\" in text or ("'" in text and '"' in text):
        return None
    if "true" in text or "false" in text or "null" in text or "NaN" in text or "Infinity" in text or _too_deep(text):
        return None
    return text.replace("'", '"')  # where only one kind of quotes is used, which one makes no difference


def _container(text: str, at: int, depth: int) -> tuple[Any, int] | None:
    """The list or dict that begins at `at`, and where it ends."""
    as_json = _as_json(text) if depth == 0 else None
    if as_json is not None:
        try:
            return _JSON.raw_decode(as_json, at)
        except (ValueError, RecursionError):
            pass  # not JSON: names, trailing commas
    if depth >= MAX_DEPTH - 2:  # the brackets of the list and of the call count, too
        return None
    close = "]" if text[at] == "[" else "}"
    opened = _OPEN.match(text, at)
    assert opened is not None
    at = opened.end()
    items: list[Any] = []
    pairs: dict[Any, Any] = {}
    key: Any = _WORDS  # stands for: no key read
    while not text.startswith(close, at):
        hit = _ITEM.match(text, at)
        if hit is None:
            return None
        *plain, end = hit.groups()
        at = hit.end()
        if end is None:
            read = _container(text, at, depth + 1)
            stop = None if read is None else _STOP.match(text, read[1])
            if read is None or stop is None:
                return None
            value, end, at = read[0], stop[1], stop.end()
        else:
            value = _plain(*plain)
        if close == "}" and key is _WORDS:
            if end != ":":
                return None
            key = value
            continue
        if close == "}":
            pairs[key], key = value, _WORDS
        else:
            items.append(value)
        if end == close:
            at = text.rindex(close, 0, at)
            break
        if end != ",":
            return None
    return (items if close == "]" else pairs, at + 1) if key is _WORDS else None


# --- the careful reader ----------------------------------------------------------------------------------------------


def _careful(text: str) -> list[Call]:
    if _NOTHING.fullmatch(text):
        return []
    if _no_call_first(text):
        raise Undecodable("does not begin with a call")
    if _too_deep(text):
        raise Undecodable(f"brackets nested more than {MAX_DEPTH} deep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and the like, which are the model's
            body = ast.parse(text, mode="eval").body
        if not isinstance(body, ast.List):
            raise Undecodable("not a list of calls")
        return [_call(element) for element in body.elts]
    except SyntaxError as error:
        raise Undecodable(f"not Python: {error.msg}") from None
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Undecodable(f"not readable as Python ({type(error).__name__})") from None


def _no_call_first(text: str) -> bool:
    """Whether the first element cannot be a call, judged by what follows its first name; most prose ends here."""
    first = _FIRST.match(text)
    if first is None:
        return False
    after = text[first.end() : first.end() + 1]
    if after in "\"'" and first[1].lower() in _PREFIXES:
        return False
    return after.isascii() and after not in _GOES_ON


def _too_deep(text: str) -> bool:
    """Whether brackets outside of strings nest too deeply. Strings are told from the rest roughly: one line each."""
    if text.count("(") + text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_LITERAL.sub("", text)):
        depth += 1 if bracket in "([{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise Undecodable("an element of the list is not a call")
    names = []
    function = node.func
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        names.append(function.id)
    return ".".join(reversed(names)), {argument.arg: _value(argument.value) for argument in node.keywords}


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(operand=ast.Constant(value=bool() | int() | float() | complex() as number)):
            return -number  # whatever the operator: the official decoder takes every one for a minus
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.BinOp():
            try:
                return fold(node)
            except NotConstant as error:
                raise Undecodable(str(error)) from None
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            name, arguments = _call(node)
            return {name: arguments}
        case ast.Subscript(value=value, slice=index):
            return f"{ast.unparse(value)}[{ast.unparse(index)}]"
        case _:
            raise Undecodable("a value is neither a literal nor a name nor a call")
