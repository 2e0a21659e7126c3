"""Tool calls as text and as data: five syntaxes (parse, print, spans) and the JSON-Schema side of a call.

Nothing here evaluates a text, imports a model or renders a prompt. A text a model wrote is data: it parses, or it
yields a `ParseError` value. Used by prompts, samplers, scorers, data sources and evaluations.

Example:
    >>> syntax = get_syntax("python")
    >>> syntax.parse('[Get Weather(city="Paris", days=2)]')
    (ToolCall(name='Get Weather', arguments={'city': 'Paris', 'days': 2}),)
    >>> syntax.parse("It rains in Paris."), syntax.parse('[Get Weather("Paris")]')
    ((), ParseError(reason='arguments must be key=value', position=20))
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ttpa.calls.base import ParseError, Span, Syntax
from ttpa.calls.json_syntaxes import HermesSyntax, JsonSyntax, Llama3JsonSyntax
from ttpa.calls.python_syntax import PythonSyntax
from ttpa.calls.schema import (
    Problem,
    calls_equal,
    check_call,
    enum_ok,
    normalise_schema,
    normalise_type,
    type_ok,
    values_equal,
)
from ttpa.errors import ConfigError

_ALL: tuple[Syntax, ...] = (
    HermesSyntax(), JsonSyntax(), PythonSyntax(), PythonSyntax(separator=","), Llama3JsonSyntax()
)  # fmt: skip
SYNTAXES: Mapping[str, Syntax] = MappingProxyType({syntax.name: syntax for syntax in _ALL})
"""Every syntax by name. They hold no state and may be shared."""


def get_syntax(name: str) -> Syntax:
    """The syntax of that name.

    Args:
        name: one of `SYNTAXES`: hermes, json, python, python_compact, llama3_json.

    Raises:
        ConfigError: there is no such syntax; the message lists the names.

    Example:
        >>> get_syntax("hermes").name
        'hermes'
    """
    if name not in SYNTAXES:
        raise ConfigError.at("syntax", name, "no such call syntax", f"Use one of {', '.join(SYNTAXES)}")
    return SYNTAXES[name]


__all__ = [
    "SYNTAXES",
    "HermesSyntax",
    "JsonSyntax",
    "Llama3JsonSyntax",
    "ParseError",
    "Problem",
    "PythonSyntax",
    "Span",
    "Syntax",
    "calls_equal",
    "check_call",
    "enum_ok",
    "get_syntax",
    "normalise_schema",
    "normalise_type",
    "type_ok",
    "values_equal",
]
