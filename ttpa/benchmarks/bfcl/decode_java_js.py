r"""Java and JavaScript answers: the call in a text, by tree-sitter, and its arguments as Python values.

`[Class.method(a="x", n=5)]` is one call in the question's language; each assignment becomes name -> source text, with the
quotes around a string cut. The checker then converts the texts by the type the function document gives: a text that does
not have the form of its type stays a text. The forms are narrow and have quirks, which are kept: elements are cut at
every comma, strings in a Java array keep their quotes, an object ends at its first brace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.decode_python import Call, Undecodable, as_list, wrong_format
from ttpa.errors import ConfigError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

MAX_SOURCE = 20_000
"""Longer texts are not parsed."""
MAX_VALUE = 10_000
"""Longer values stay texts."""

PINNED = {"tree-sitter": "0.21.3", "tree-sitter-java": "0.21.0", "tree-sitter-javascript": "0.21.4"}
"""Another grammar reads malformed answers in another way, so its verdicts are not the official ones."""


@cache
def parser(language: Language) -> Parser:
    """The parser of a language.

    Raises:
        ConfigError: a package is missing or of another release; says what to install.
    """
    for name, wanted in PINNED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            install = "pip install " + " ".join(f"{one}=={number}" for one, number in PINNED.items())
            raise ConfigError.at(
                name, found, "Java and JavaScript answers of BFCL need the extra bfcl-java-js", install
            )
    import tree_sitter

    made = tree_sitter.Parser()
    made.set_language(tree_sitter.Language(import_module(f"tree_sitter_{language}").language(), language))
    return made


def read_java_js(result: Any, language: Language) -> list[Call]:
    """Reads one call; its outer brackets may be missing.

    Raises:
        Undecodable: the text is not of the language, holds no call, or gives a parameter twice.
        ConfigError: see `parser`.

    Example:
        >>> read_java_js("[a.f(x=5, y=[1, 'b'], z='c')]", "javascript")
        [('a.f', {'x': '5', 'y': "[1, 'b']", 'z': 'c'})]
    """
    source = as_list(result)[1:-1]
    if len(source) > MAX_SOURCE:
        raise Undecodable(f"longer than {MAX_SOURCE} characters")
    root = parser(language).parse(source.encode()).root_node
    try:
        if "ERROR" in root.sexp():  # but a token that is only missing does no harm
            raise Undecodable(f"not {language}")
        call = _java_call(source, root) if language == "java" else _js_call(root)
    except (RecursionError, IndexError, AttributeError) as error:  # malformed in a way the parser has mended
        raise Undecodable(f"not readable as {language} ({type(error).__name__})") from None
    if call is None:
        raise wrong_format("an expression that is no call")
    return [call]


def _arguments(pairs: Iterable[tuple[str | None, str]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Undecodable("an argument is given twice")
        found[name] = value
    return found


def _js_call(root: Node) -> Call | None:
    """The first call that is a statement of its own."""

    def text(node: Node) -> str:
        source: bytes = node.text
        return source.decode()

    def pairs(given: Node) -> Iterable[tuple[str | None, str]]:
        for node in given.children:
            if node.type == "assignment_expression":
                value = text(node.children[2])
                yield text(node.children[0]), value[1:-1] if _quoted(value, "\"'") else value
            elif node.type in ("identifier", "true"):
                yield None, text(node)

    for statement in root.children:
        for node in statement.children if statement.type == "expression_statement" else ():
            if node.type == "call_expression":
                return text(node.children[0]), _arguments(pairs(node.children[1]))
    return None


def _java_call(source: str, node: Node) -> Call | None:
    """The first call in the tree.

    Texts are cut as in the official decoder, which takes the parser's counts of bytes for counts of characters: behind
    a character of several bytes they are shifted.
    """

    def text(part: Node) -> str:
        return source[part.start_byte : part.end_byte]

    def value(part: Node, nested: bool = True) -> str:
        """The tokens of an expression without the spaces between them."""
        if part.type in ("string_literal", "character_literal"):
            return text(part) if nested else text(part)[1:-1]
        if part.type in ("identifier", "class_literal", "type_identifier", "method_invocation"):
            return text(part)
        if part.type == "array_creation_expression":
            return f"new {value(_part(part, 'type'))}[]{value(_part(part, 'value'))}"
        if part.type == "object_creation_expression":  # the body of an anonymous class is left out
            given = part.child_by_field_name("arguments")
            inner = ", ".join(
                value(one) for one in (given.children if given else ()) if one.type not in ("(", ",", ")")
            )
            return f"new {value(_part(part, 'type'))}({inner})"
        return "".join(value(one) for one in part.children) if part.children else text(part)

    def pairs(given: Node) -> Iterable[tuple[str | None, str]]:
        for one in given.children:
            if one.type == "assignment_expression":
                yield text(one.children[0]), value(one.children[2], nested=False)
            elif one.type in ("identifier", "class_literal"):
                yield None, value(one, nested=False)

    if node.type != "method_invocation":
        return next((call for child in node.children if (call := _java_call(source, child))), None)
    owner, name = node.child_by_field_name("object"), text(_part(node, "name"))
    return f"{text(owner)}.{name}" if owner else name, _arguments(pairs(_part(node, "arguments")))


def _part(node: Node, field: str) -> Node:
    part = node.child_by_field_name(field)
    if part is None:
        raise Undecodable(f"a {node.type} without {field}")
    return part


# --- values ----------------------------------------------------------------------------------------------------------

JAVA_TYPES: Mapping[str, type] = {
    "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
    "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "Queue": list, "Stack": list,
    "Set": set, "HashMap": dict, "Hashtable": dict,
}  # fmt: skip
JS_TYPES: Mapping[str, type] = {
    "String": str, "any": str, "integer": int, "Bigint": int, "float": float, "Boolean": bool, "array": list,
    "dict": dict,
}  # fmt: skip

_WHOLE = r"-?\d+"
_REAL = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
_NUMBERS: Mapping[str, tuple[re.Pattern[str], type[int] | type[float]]] = {
    **dict.fromkeys(("byte", "short", "integer"), (re.compile(f"{_WHOLE}$"), int)),
    "long": (re.compile(f"{_WHOLE}[lL]$"), int),
    "Bigint": (re.compile(f"{_WHOLE}n$"), int),
    "float": (re.compile(f"{_REAL}[fF]$"), float),
    "double": (re.compile(f"{_REAL}$"), float),
    "js float": (re.compile(rf"{_WHOLE}(\.\d+)?$"), float),
}
_AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\(([^\n]+?)\)\)")
_WITH_ADD = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.+?)\}\}", re.DOTALL)
_NEW_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ADD = re.compile(r"add\(([^\n]+?)\)")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{([^}\n]*)\}")
_WITH_PUT = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{([^}]*)\}", re.DOTALL)
_NEW_MAP = re.compile(r"new\s+HashMap<[^\n]*?>\s*\(\)")
_PUT = re.compile(r'([^\n]*?)",\s*([^\n]*?)\)')
_NEW_ARRAY = re.compile(r"new\s+Array\(")
_FIRST_ROW = re.compile(r"\s*\[")
_ROW_END = re.compile(r"\](?:\s*(,\s*\[|[\])]))?")
_ROW = re.compile(r"\[([^\]\n]*)\]")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def convert_java(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a Java text by `kind`, a key of `JAVA_TYPES`; `inner` is the type of elements of Array and ArrayList.

    Texts of Set, Queue, Stack and Hashtable stay texts; no question has them.

    Example:
        >>> convert_java("new int[]{1, 2}", "Array", "integer"), convert_java("5L", "long"), convert_java("5", "long")
        ([1, 2], 5, '5')
    """
    if len(text) > MAX_VALUE:
        return text
    if kind in _NUMBERS:
        return _number(text, kind)
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "ArrayList":
        return _array_list(text, inner)
    if kind == "Array":
        found = _ARRAY.search(text)
        return text if found is None else [_java_element(part, inner) for part in _split(found[1]) if part]
    if kind != "HashMap":
        return text
    if found := _WITH_PUT.search(text):
        puts = [put for part in found[1].split('put("')[1:] if (put := _PUT.match(part))]
        return {put[1]: _java_element(put[2].strip(), None) for put in puts}
    return {} if _NEW_MAP.search(text) else text


def _array_list(text: str, inner: str | None) -> Any:
    if found := _AS_LIST.search(text):
        parts = _split(found[1])
    elif found := _WITH_ADD.search(text):
        parts = [part.strip() for part in _ADD.findall(found[1])]
    else:
        return [] if _NEW_LIST.search(text) else text
    # Quotes are cut off unseen where the type says that there are some.
    return [part[1:-1] if inner in ("char", "String") else _java_element(part, inner) for part in parts]


def _java_element(text: str, inner: str | None) -> Any:
    if inner:
        return convert_java(text, inner)
    if not _quoted(text, '"'):
        for kind in ("long", "float"):
            if (value := _number(text, kind)) is not text:
                return value
    return _guess(text, '"')


def convert_js(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a JavaScript text by `kind`, a key of `JS_TYPES`; `inner` is the type of an array's elements.

    Example:
        >>> convert_js("{a: [1, 'b'], c: true}", "dict"), convert_js("[[1, 2], [3]]", "array", "array")
        ({'a': [1, 'b'], 'c': True}, [[1, 2], [3]])
    """
    if len(text) > MAX_VALUE:
        return text
    if kind == "String":
        return text[1:-1] if _quoted(text, "\"'") else text
    if kind in ("integer", "Bigint", "float"):
        return _number(text, "js float" if kind == "float" else kind)
    if kind == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "array":
        return _js_array(text.strip(), inner)
    return _js_object(text.strip()) if kind == "dict" else text


def _js_array(text: str, inner: str | None) -> Any:
    made = _NEW_ARRAY.match(text)
    if not made and not text.startswith("["):
        return text
    start, close = (made.end(), ")") if made else (1, "]")
    end = _end_of_rows(text, start, close)
    if end is not None:
        rows = _ROW.findall(text[:end])
        rows[0] = rows[0].strip().removeprefix("[")  # the first row begins with the bracket of the whole list
        return [[_guess(part.strip(), "\"'") for part in row.strip().split(",")] for row in rows]
    end = text.find(close, start)
    if end < 0 or "\n" in text[start:end]:
        return text
    parts = _split(text[start:end]) if text[start:end].strip() else []
    if inner is None or not parts:
        return [_guess(part, "\"'") for part in parts]
    return [convert_js(part, inner) for part in parts] if inner in JS_TYPES else text


def _end_of_rows(text: str, at: int, close: str) -> int | None:
    """Where a list of lists ends: behind the first `]` that the list's own closing bracket follows."""
    opened = _FIRST_ROW.match(text, at)
    start = at = opened.end() if opened else len(text)
    while (end := _ROW_END.search(text, at)) and "\n" not in text[start : end.start()]:
        if end[1] == close:
            return end.end()
        if end[1] and end[1].startswith(","):
            start = at = end.end()
        else:
            at = end.start() + 1
    return None


def _js_object(text: str) -> Any:
    end = text.find("}")
    if not text.startswith("{") or end < 0 or "\n" in text[:end]:
        return text
    pairs: dict[str, Any] = {}
    for key, value in _PAIR.findall(text[1:end]):
        value = value.strip()
        is_list = value.startswith("[") and value.endswith("]")
        pairs[key.strip().strip("'\"")] = (
            _js_array(value, None) if is_list else _guess(value.strip("'\"").strip(), "\"'")
        )
    return pairs


def _number(text: str, kind: str) -> Any:
    """A text in the form of a kind of number, as that number; the text itself where it is none or has too many digits."""
    form, make = _NUMBERS[kind]
    try:
        return make(text.rstrip("\n").rstrip("lLfFn")) if form.match(text) else text
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
