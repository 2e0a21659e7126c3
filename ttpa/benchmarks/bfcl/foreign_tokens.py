"""Java and JavaScript source as tokens, and which of them are operators and keywords."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.python_calls import Undecodable

MAX_TOKENS = 5_000

_SPACE = r"(?P<space>\s+|//[^\n]*|(?s:/\*.*?\*/))"
# Python's \w lacks a few characters that identifiers may go on with.
_NAME = r"(?P<name>(?:[^\W\d]|\$)[\w$\u00b7\u0387\u1369-\u1371\u19da]*)"
_RADIX = r"0[xX][0-9a-fA-F](?:_?[0-9a-fA-F])*|0[bB][01](?:_?[01])*|0[oO][0-7](?:_?[0-7])*"
_FLOAT = r"(?:[0-9](?:_?[0-9])*\.(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?"
_POWER = r"[0-9](?:_?[0-9])*[eE][+-]?[0-9](?:_?[0-9])*"
_ESCAPE = r"\\(?:[^xu0-7]|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]+\})"
_DOUBLE = rf'"(?:[^"\\\n]|{_ESCAPE})*"'
_SIGN = r"\+\+|--|&&|\|\||==|!=|<=|>=|<<|>>|[-+*/%&|^]=|[-+*/%&|^!~<>=?:.,;()\[\]{}]"
_TOKENS: dict[Language, re.Pattern[str]] = {
    "java": re.compile(
        rf"{_SPACE}|(?P<number>(?:{_RADIX}|{_FLOAT}|{_POWER}|0[0-7]*|[1-9](?:_?[0-9])*)[lLfFdD]?)|{_NAME}"
        rf'|(?P<string>"""(?s:(?:[^\\]|\\.)*?)"""|{_DOUBLE})'
        r"|(?P<char>'(?:[^'\\\n]|\\[^\n])+')"
        rf"|(?P<sign>>>>=|<<=|>>=|>>>|->|::|{_SIGN})"
    ),
    "javascript": re.compile(
        rf"{_SPACE}|(?P<number>(?:{_RADIX}|{_FLOAT}|{_POWER}|[0-9](?:_?[0-9])*)n?)|{_NAME}"
        rf"|(?P<string>{_DOUBLE}|'(?:[^'\\\n]|{_ESCAPE})*')"
        r"|(?P<template>(?s:`(?:[^`\\]|\\.)*`))"
        r"|(?P<sign>>>>=|\*\*=|===|!==|>>>|<<=|>>=|&&=|\|\|=|\?\?=|\.\.\.|=>|\?\.(?![0-9])|\*\*|\?\?"
        rf"|{_SIGN})"
    ),
}


UNARY = {"+", "-", "!", "~", "++", "--"}
BINARY = {"+", "-", "*", "/", "%", "&", "|", "^", "&&", "||", "==", "!=", "<", ">", "<=", ">=", "<<", ">>", ">>>"}
BINARY |= {"instanceof"}
ASSIGN = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=", ">>>="}
JS_BINARY = BINARY | {"===", "!==", "**", "??", "in"}
JS_ASSIGN = ASSIGN | {"**=", "&&=", "||=", "??="}
JS_UNARY = UNARY | {"typeof", "void", "delete", "await", "yield"}
PRIMITIVES = {"byte", "short", "int", "long", "float", "double", "char", "boolean", "void"}
LITERALS = {"true", "false", "null", "this", "super"}
# Keywords that begin an expression, which a name therefore cannot be; others are taken for names inside of one.
JAVA_WORDS = PRIMITIVES | {"new", "switch"}
JS_WORDS = {"new", "class", "function", "import"}
# At the beginning these begin a statement.
STATEMENTS = {
    "abstract", "assert", "break", "case", "catch", "class", "const", "continue", "debugger", "default", "do", "else",
    "enum", "export", "final", "finally", "for", "if", "import", "interface", "native", "package", "private",
    "protected", "public", "return", "static", "strictfp", "switch", "synchronized", "throw", "transient", "try", "var",
    "volatile", "while", "with",
}  # fmt: skip
WORDS = frozenset(JAVA_WORDS | JS_WORDS | STATEMENTS | JS_UNARY | {"this", "super", "instanceof", "in", "async"})
"""Every word that may be more than a name somewhere."""
PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind (name, number, string, char, template, sign, end), its text and where it stands."""

    kind: str
    text: str
    start: int
    end: int
    new_line: bool
    """Whether a line ended before it."""


def tokens(text: str, language: Language) -> Iterator[Token]:
    """The tokens of a text, and one of kind `end`.

    Raises:
        Undecodable: a character that begins no token, or too many of them.

    Example:
        >>> [token.text for token in tokens("f(a = 'x') // c", "javascript")]
        ['f', '(', 'a', '=', "'x'", ')', '']
    """
    pattern, at, new_line = _TOKENS[language], 0, False
    count = 0
    while at < len(text):
        hit = pattern.match(text, at)
        if hit is None or count > MAX_TOKENS:
            raise Undecodable(f"not {language}: character {at}")
        at = hit.end()
        if hit.lastgroup == "space":
            new_line = new_line or "\n" in hit.group()
            continue
        count += 1
        yield Token(str(hit.lastgroup), hit.group(), hit.start(), at, new_line)
        new_line = False
    yield Token("end", "", len(text), len(text), new_line)
