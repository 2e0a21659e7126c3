"""From what a model answered to calls, by the two forms of BFCL result files; never raises on an answer.

* A text, as prompted models give it: `[f(a=1), g(b="x")]` in Python, or one call in Java or JavaScript.
* Function calling: a list of `{name: "<arguments as JSON text>"}`, as the tool-calling interfaces of servers give it.

What does not decode is an `Undecoded` value with the official error type. What this module does not do: compare.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.foreign_calls import read_foreign_call
from ttpa.benchmarks.bfcl.python_calls import MAX_CHARS, Call, Undecodable, read_calls

FAILED = "ast_decoder:decoder_failed"
WRONG_FORM = "ast_decoder:decoder_wrong_output_format"


class Undecoded(NamedTuple):
    """An answer that is no list of calls. A value, not an exception.

    Attributes:
        error_type: the official name: the decoder failed, or what it made is not a list of calls.
        reason: a short phrase.
    """

    error_type: str
    reason: str


def decode(
    result: Any, *, language: Language = "python", function_calling: bool | None = None
) -> list[Call] | Undecoded:
    """The calls of one answer.

    Args:
        result: the `result` of a row: a text, or a list of `{name: json}`.
        language: of the calls in a text.
        function_calling: whether the answer came through a function-calling interface, where a text is a reply in words
            and never calls; None decides by the type of the result.

    Returns:
        (name, arguments) of every call, in order; `Undecoded` when there is none to be had.

    Example:
        >>> decode("f(a=[1, 2])"), decode([{"f": '{"a": 1}'}])
        ([('f', {'a': [1, 2]})], [('f', {'a': 1})])
        >>> decode("It rains in Paris.").error_type
        'ast_decoder:decoder_failed'
    """
    try:
        if function_calling or (function_calling is None and type(result) is not str):
            return _from_interface(result)
        if type(result) is not str:
            raise Undecodable("neither a text nor a list")
        if language == "python":
            return read_calls(result)
        call = read_foreign_call(result, language)
    except Undecodable as error:
        return Undecoded(FAILED, str(error))
    return [call] if call is not None else Undecoded(WRONG_FORM, "an expression that is no call")


def _from_interface(result: Any) -> list[Call] | Undecoded:
    if not isinstance(result, list | str | dict) or (result and not isinstance(result, list)):
        raise Undecodable("a reply in words" if isinstance(result, str) else "not a list of calls")
    calls: list[Call] = []
    wrong = False
    for item in result:
        if not isinstance(item, dict) or not item:
            raise Undecodable("an element of the list is no {name: arguments}")
        name, text = next(iter(item.items()))
        if not isinstance(text, str):
            raise Undecodable("arguments are not JSON text")
        if len(text) > MAX_CHARS:
            raise Undecodable(f"arguments longer than {MAX_CHARS} characters")
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            raise Undecodable("arguments are not JSON") from None
        wrong = wrong or not isinstance(arguments, dict)
        calls.append((name, arguments))
    return Undecoded(WRONG_FORM, "arguments are not an object") if wrong else calls
