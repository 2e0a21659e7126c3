"""Calls in an answer: `[f(a=1), pkg.g(b="x")]` as Python, or the list of a function-calling interface.

By the rules of the leaderboard's decoder, positional arguments are dropped and a bare name becomes its text. Nothing is
run: arithmetic on literals is computed here, within limits of size, where the official decoder calls `eval`.
"""

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARS = 200_000  # longer answers are not decoded: Python's parser would need too much time and memory
MAX_SIZE = 100_000  # bits of a number, and characters of a repetition, that arithmetic may reach

# Name and arguments, whose keys are text, but `None` for `**` in Python and for unnamed ones in Java and JavaScript.
Call = tuple[str, dict[Any, Any]]


class Undecodable(Exception):
    """The answer holds no list of calls; `error_type` is the official name of the error."""

    def __init__(self, reason: str, error: str = "decoder_failed") -> None:
        super().__init__(reason)
        self.error_type = f"ast_decoder:{error}"


WRONG_FORMAT = "decoder_wrong_output_format"  # of an answer that can be read but is no list of calls


def as_list(result: Any) -> str:
    """The text of an answer in brackets: backticks, line ends and spaces around it are cut, missing brackets added."""
    if not isinstance(result, str):
        raise Undecodable("neither a text nor a list")
    text = result.strip("`\n ")
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    if len(text) > MAX_CHARS:
        raise Undecodable(f"longer than {MAX_CHARS} characters")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise Undecodable("a surrogate without its partner")
    return text


def read_python(result: Any) -> list[Call]:
    """Reads a list of calls in Python; raises Undecodable where it is none."""
    text = as_list(result)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's odd escapes
            body = ast.parse(text, mode="eval").body
        # A single call: "[f](a=1) #]"
        return [_call(node) for node in (body.elts if isinstance(body, ast.List | ast.Tuple) else [body])]
    except SyntaxError as error:
        raise Undecodable(f"not Python: {error.msg}") from None
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise Undecodable(f"not readable as Python ({type(error).__name__})") from None


def read_interface(result: Any) -> list[Call]:
    """Reads a list of `{name: "<arguments as JSON>"}`, which an empty text counts as, or raises Undecodable."""
    if not isinstance(result, list) and (result or not isinstance(result, str | dict)):
        raise Undecodable("a reply in words" if isinstance(result, str) else "not a list of calls")
    try:
        items: list[Any] = [next(iter(entry.items())) for entry in list[Any](result)]
        calls = [(name, json.loads(text)) for name, text in items]
    except (AttributeError, StopIteration, TypeError, ValueError, RecursionError):
        raise Undecodable("an element of the list is no {name: arguments as JSON}") from None
    if not all(isinstance(arguments, dict) for _, arguments in calls):
        raise Undecodable("arguments are not an object", WRONG_FORMAT)
    return calls


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise Undecodable("an element of the list is not a call")
    names, function = [], node.func
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
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return _OPERATORS[type(node)](map(_value, elements))
        case ast.Dict(keys=keys, values=values):
            return dict(zip(map(_value, keys), map(_value, values), strict=True))
        case ast.BinOp():
            return _compute(node)
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            return dict([_call(node)])
        case ast.Subscript(value=value, slice=index):
            return f"{ast.unparse(value)}[{ast.unparse(index)}]"
    raise Undecodable("a value is neither a literal nor a name nor a call")


_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.BitAnd: operator.and_,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many, ast.List: list, ast.Tuple: tuple, ast.Set: set,
}  # fmt: skip
_FUNCTIONS = {function.__name__: function for function in (abs, bool, float, int, len, max, min, round, str, sum)}
# A place of a format that asks for a wide field: "%999999999d" % 1 would be a string of a gigabyte.
_WIDTH = re.compile(r"%(?:\(.*?\))?[-#0 +]*(?:\*|\d{4}|\d*\.(?:\*|\d{4}))", re.DOTALL)


def _compute(node: ast.expr | None) -> Any:
    """The value of an expression on literals, with operators, comparisons, indices and a few pure functions."""
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return _OPERATORS[type(node)](map(_compute, elements))
        case ast.Dict(keys=keys, values=values):
            return dict(zip(map(_compute, keys), map(_compute, values), strict=True))
        case ast.UnaryOp(op=sign, operand=operand):
            return _OPERATORS[type(sign)](_compute(operand))
        case ast.BinOp(left=left, op=sign, right=right) | ast.Compare(left=left, ops=[sign], comparators=[right]):
            first, second = _compute(left), _compute(right)
            if _too_large(type(sign), first, second):
                raise Undecodable("an expression whose value would be too large")
            return _OPERATORS[type(sign)](first, second)
        case ast.BoolOp(op=sign, values=values):
            found = list(map(_compute, values))
            return next((one for one in found if bool(one) is isinstance(sign, ast.Or)), found[-1])
        case ast.IfExp(test=test, body=body, orelse=other):
            return _compute(body if _compute(test) else other)
        case ast.Slice(lower=lower, upper=upper, step=step):
            return slice(*(part and _compute(part) for part in (lower, upper, step)))
        case ast.Subscript(value=outer, slice=index):
            return _compute(outer)[_compute(index)]
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_compute, given))
    raise Undecodable("an expression on something that is no literal")


def _too_large(sign: type[ast.AST], first: Any, second: Any) -> bool:
    """Whether a result could take long or much memory; told before it is computed."""
    if isinstance(first, int) and isinstance(second, int):
        bits, times = first.bit_length(), max(second, 0)
        sizes: dict[Any, int] = {ast.Mult: bits + second.bit_length(), ast.Pow: bits * times, ast.LShift: bits + times}
        return sizes.get(sign, 0) > MAX_SIZE
    if sign is ast.Mult:
        many, times = (second, first) if isinstance(first, int) else (first, second)
        repeated = isinstance(many, str | bytes | list | tuple) and isinstance(times, int)
        return repeated and len(repr(many)) * times > MAX_SIZE
    return sign is ast.Mod and isinstance(first, str | bytes) and _WIDTH.search(str(first)) is not None
