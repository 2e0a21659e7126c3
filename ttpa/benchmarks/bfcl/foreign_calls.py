"""The call that a Java or JavaScript answer holds.

`[Class.method(a="x", n=5)]` in these categories is one call in the question's language whose arguments look like
assignments. Each becomes name -> text: quotes around a string are cut, everything else stays source text; Java's
without the white space between tokens, and `new T(...) { ... }` without its body, as the official decoder has it.

What this module does not do: turn the texts into values (`java_js`), or parse (`foreign_syntax`).
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.foreign_syntax import MENDED_BYTES, Node, Parser
from ttpa.benchmarks.bfcl.foreign_tokens import LITERALS, WORDS
from ttpa.benchmarks.bfcl.python_calls import MAX_CHARS, Call, Undecodable

_NAME = r"[A-Za-z_]\w*"
_HEAD = re.compile(rf"({_NAME}(?:\.{_NAME})*)\(", re.ASCII)
_WRAPPED = re.compile(r"\s*\[(.*[^;\s])\s*\]\s*(;?)\s*", re.DOTALL)
_ARGUMENT = re.compile(
    rf"""\s*({_NAME})\s*=\s*(?:"([^"\\\n]*)"|'([^'\\\n]*)'|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|{_NAME}))\s*([,)])""",
    re.ASCII,
)


def read_foreign_call(text: str, language: Language) -> Call | None:
    """Reads one call; its outer brackets may be missing.

    Args:
        text: as the model wrote it.
        language: java or javascript.

    Returns:
        Name and arguments; None where the text is an expression that is no call.

    Raises:
        Undecodable: the text is not of the language, or gives a parameter twice, and nothing else whatever the text.

    Example:
        >>> read_foreign_call("[a.f(x=5, y=[1, 'b'], z='c')]", "javascript")
        ('a.f', {'x': '5', 'y': "[1, 'b']", 'z': 'c'})
    """
    text = text.strip("`\n ")
    if not text.startswith("["):
        text = "[" + text
    if not text.endswith("]"):
        text += "]"
    text = text[1:-1]
    if len(text) > MAX_CHARS:
        raise Undecodable(f"longer than {MAX_CHARS} characters")
    if language == "java":
        text = _unwrapped(text)
    quick = _quick(text, language)
    if quick is not None:
        return quick
    try:
        text.encode()
        found = Parser(text, language).statements()
        if language == "javascript":
            call = next((node for node in found if node.kind == "call"), None)
            return None if call is None else _js_call(text, call)
        call = next((node for top in found for node in _preorder(top) if node.kind == "call"), None)
        return None if call is None else _JavaSource(text).call(call)
    except UnicodeEncodeError:
        raise Undecodable("a surrogate without its partner") from None
    except RecursionError:
        raise Undecodable("nested too deeply") from None


def _unwrapped(text: str) -> str:
    """Java without a second pair of brackets, which the official parser reads over but in short texts."""
    found = _WRAPPED.fullmatch(text)
    if found is None or not (found[2] or len(text.encode(errors="surrogatepass")) >= MENDED_BYTES):
        return text
    return found[1] + ";"  # as a statement: how short it is without the brackets plays no part


def _quick(text: str, language: Language) -> Call | None:
    """The call of a text that holds nothing unusual, None for any other."""
    head = _HEAD.match(text)
    if head is None or not text.isascii() or len(text) < MENDED_BYTES or not WORDS.isdisjoint(head[1].split(".")):
        return None
    arguments: dict[Any, Any] = {}
    at = head.end()
    while (hit := _ARGUMENT.match(text, at)) is not None:
        name, double, single, other, end = hit.groups()
        value = other if other is not None else double if double is not None else single
        if (
            name in arguments
            or name in WORDS
            or name in LITERALS
            or value in WORDS
            or (single == "" and language == "java")
        ):
            return None
        arguments[name] = value
        at = hit.end()
        if end == ")":
            return (head[1], arguments) if at == len(text) else None
    return None


def _preorder(top: Node) -> list[Node]:
    found, todo = [], [top]
    while todo:
        node = todo.pop()
        found.append(node)
        todo += reversed(node.parts)
    return found


def _add(arguments: dict[Any, Any], name: str | None, value: str) -> None:
    if name in arguments:
        raise Undecodable("an argument is given twice")
    arguments[name] = value


def _js_call(text: str, call: Node) -> Call:
    callee, given = call.parts
    arguments: dict[Any, Any] = {}
    for node in given.parts:
        if node.kind == "assignment":
            name, _, value = node.parts
            source = text[value.start : value.end]
            quoted = any(source.startswith(quote) and source.endswith(quote) for quote in "\"'")
            _add(arguments, text[name.start : name.end], source[1:-1] if quoted else source)
        elif node.kind in ("identifier", "true"):
            _add(arguments, None, text[node.start : node.end])
    return text[callee.start : callee.end], arguments


class _JavaSource:
    """Texts of Java nodes.

    The official decoder counts bytes and cuts characters: behind a character of several bytes its texts are shifted,
    and so are these.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.bytes = None if text.isascii() else [0, *accumulate(len(char.encode()) for char in text)]

    def raw(self, node: Node) -> str:
        if self.bytes is None:
            return self.text[node.start : node.end]
        return self.text[self.bytes[node.start] : self.bytes[node.end]]

    def call(self, call: Node) -> Call:
        callee, given = call.parts
        name = self.raw(callee)
        if callee.kind == "field":
            name = f"{self.raw(callee.parts[0])}.{self.raw(callee.parts[2])}"
        arguments: dict[Any, Any] = {}
        for node in given.parts:
            if node.kind == "assignment":
                left, _, value = node.parts
                _add(arguments, self.raw(left), self.value(value, nested=False))
            elif node.kind in ("identifier", "class_literal"):
                _add(arguments, None, self.value(node, nested=False))
        return name, arguments

    def value(self, node: Node, *, nested: bool = True) -> str:
        """The text of an expression: tokens without the spaces between them, but for whole calls."""
        if node.kind in ("string", "char"):
            return self.raw(node) if nested else self.raw(node)[1:-1]
        if node.kind in ("identifier", "class_literal", "type", "call"):
            return self.raw(node)
        if node.kind == "array_creation":
            if len(node.parts) < 2:
                raise Undecodable("an array without values")
            return f"new {self.value(node.parts[0])}[]{self.value(node.parts[1])}"
        if node.kind == "creation":
            _, made, given = node.parts
            return f"new {self.value(made)}({', '.join(self.value(part) for part in given.parts)})"
        return "".join(self.value(part) for part in node.parts) if node.parts else self.raw(node)
