"""Arithmetic on literals, computed from its syntax tree under limits: no names, no calls, nothing is evaluated.

For answers such as `f(area=3 * 4.5)`, which the leaderboard's decoder computes with Python. What this module does not
do: read a text (`python_calls`).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_BITS = 20_000
"""Whole numbers of more bits are not computed; a power of a power would not fit into any memory."""

MAX_ITEMS = 10_000
"""Strings and lists are not repeated into longer ones."""

MAX_DEPTH = 200
"""Terms nested deeper are not computed; a sum of n numbers nests n deep."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}


class NotConstant(Exception):
    """The term is no arithmetic on literals, or too large."""


def fold(node: ast.expr) -> Any:
    """The value of a term of literals.

    Raises:
        NotConstant: there is something else in it, it has no value (1 / 0), or the value is too large.

    Example:
        >>> fold(ast.parse("2 ** 3 * (1 + 0.5)", mode="eval").body)
        12.0
    """
    return _fold(node, 0)


def _fold(node: ast.expr | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotConstant("arithmetic nested too deeply")
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [_fold(element, depth + 1) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_fold(element, depth + 1) for element in elements)
        case ast.UnaryOp(op=sign, operand=operand):
            return _computed(_UNARY[type(sign)], _fold(operand, depth + 1))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            first, second = _fold(left, depth + 1), _fold(right, depth + 1)
            _check_size(type(sign), first, second)
            return _computed(_BINARY[type(sign)], first, second)
        case _:
            raise NotConstant("arithmetic on something that is no literal")


def _computed(function: Callable[..., Any], *operands: Any) -> Any:
    try:
        return function(*operands)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise NotConstant(f"arithmetic without a value ({type(error).__name__})") from None


def _check_size(sign: type[ast.operator], first: Any, second: Any) -> None:
    """Refuses what could take long or much memory, before it is computed."""
    bits = 0
    if isinstance(first, int) and isinstance(second, int):
        if sign is ast.Mult:
            bits = first.bit_length() + second.bit_length()
        elif sign is ast.Pow:
            bits = first.bit_length() * max(second, 0)
        elif sign is ast.LShift:
            bits = first.bit_length() + max(second, 0)
    elif sign is ast.Mult:
        many, times = (second, first) if isinstance(first, int) else (first, second)
        if isinstance(many, str | bytes | list | tuple) and isinstance(times, int) and len(many) * times > MAX_ITEMS:
            raise NotConstant("a repetition of too many items")
    elif sign is ast.Mod and isinstance(first, str | bytes) and re.search(r"[\d*]", str(first)):
        raise NotConstant("a format with a width")  # "%999999999d" % 1 is a string of a gigabyte
    if bits > MAX_BITS:
        raise NotConstant("a whole number of too many digits")
