"""One call against one expected call, by the rules of BFCL's checker (see docs/evaluation.md), and the verdict."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.decode_java_js import KINDS, convert
from ttpa.benchmarks.bfcl.decode_python import Call
from ttpa.calls.six_errors import show

_TYPES: Mapping[Language, Mapping[str, type]] = {
    "python": {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
               "dict": dict, "any": str},
    **{language: {name: of for name, (of, _) in kinds.items()} for language, kinds in KINDS.items()},
}  # fmt: skip
_IGNORED = str.maketrans({**dict.fromkeys(" ,./-_*^", None), "'": '"'})
_SIX = {  # of the part behind the colon, else of the part before it; the rest are values
    "wrong_func_name": "tool_name", "missing_required": "missing_required", "unexpected_param": "parameter_name",
    "inference_error": "format", "ast_decoder": "format", "type_error": "parameter_type",
    **dict.fromkeys(("wrong_count", "force_terminated", "empty_turn_model_response", "irrelevance_error",
                     "relevance_error"), "call_count"),
}  # fmt: skip


class Verdict(NamedTuple):
    error_type: str | None  # official name of the first error; None when the answer is valid
    explanation: str
    six_error: str = ""  # one of `six_errors.LABELS`; "" when the answer is valid

    @property
    def valid(self) -> bool:
        return self.error_type is None


def refused(error_type: str, explanation: str) -> Verdict:
    """The verdict of an official error type."""
    family, _, kind = error_type.partition(":")
    return Verdict(error_type, explanation, _SIX.get(kind) or _SIX.get(family, "parameter_value"))


def standard(value: Any) -> Any:
    """A string as it is compared; any other value as it is."""
    return value.translate(_IGNORED).lower() if type(value) is str else value


def check_call(
    call: Call,
    function: Mapping[str, Any],
    answer: Mapping[str, Sequence[Any]],
    language: Language = "python",
    *,
    dots_as_underscores: bool = False,
) -> Verdict | None:
    """What is wrong with a call; None when it is accepted. The `answer` gives the accepted values of each parameter; ""
    among them: it may be left out. With `dots_as_underscores` the model had to write `_` for every dot of a name.
    """
    name, given = call
    wanted = function["name"].replace(".", "_") if dots_as_underscores else function["name"]
    schema = function.get("parameters") or {}
    documented = schema.get("properties") or {}
    if name != wanted:
        return refused("simple_function_checker:wrong_func_name", f"tool is {show(name)}, expected {show(wanted)}")
    for key in schema.get("required") or ():
        if key not in given:
            return refused("simple_function_checker:missing_required", f"required parameter {show(key)} is missing")
    for key, value in given.items():
        if key not in documented or key not in answer:
            sentence = f"parameter {show(key)} is not documented, or no answer gives it"
            return refused("simple_function_checker:unexpected_param", sentence)
        kind, accepted = documented[key].get("type"), _values(answer[key])
        if error := _value_error(value, documented[key], accepted, language):
            sentence = f"value of {show(key)} is {show(value)}, expected one of {show(accepted)}"
            if error.startswith("type_error"):
                sentence = f"type of {show(key)} is not {kind}, or that of an element: {show(value)}"
            return refused(error, sentence)
    for key, values in answer.items():
        if key not in given and "" not in _values(values):
            return refused("simple_function_checker:missing_optional", f"parameter {show(key)} is left out")
    return None


def _values(accepted: Any) -> Sequence[Any]:
    """The accepted values of a key. Where a text stands instead of a list, its characters are accepted, officially."""
    return accepted if isinstance(accepted, list | str) else [accepted]


def _first_type(values: Sequence[Any]) -> type | None:
    return next((type(value) for value in values if value != ""), None)


def _value_error(value: Any, document: Mapping[str, Any], accepted: Sequence[Any], language: Language) -> str | None:
    """The official error type of an argument; None when it is accepted."""
    kind = str(document.get("type"))
    inner = (document.get("items") or {}).get("type") if kind in ("array", "tuple", "Array", "ArrayList") else None
    if language != "python":
        if type(value) is not str:
            return "type_error:java" if language == "java" else "type_error:js"
        value = convert(value, kind, inner, language)
    elif kind == "float" and type(value) is int:
        value = float(value) if value.bit_length() < 1024 else float("inf")
    elif kind == "tuple" and type(value) is tuple:
        value = list(value)
    answered = _first_type(accepted)
    wanted: type = _TYPES[language].get(kind) or answered or str  # an unknown type is that of the answers
    wanted_inner = _TYPES[language].get(str(inner))
    if type(value) not in (wanted, answered):
        return "type_error:simple"
    if type(value) is wanted and wanted_inner and not any(_fits(value, one, wanted_inner) for one in accepted):
        return "type_error:nested" if wanted is answered else "type_error:simple"
    if answered not in (None, wanted) or wanted not in (str, dict, list):  # a variable, or a number
        return None if value in accepted else "value_error:others"
    if wanted is str:
        return None if standard(value) in map(standard, accepted) else "value_error:string"
    if wanted is dict:
        return _dict_error(value, accepted)
    lists = [one for one in accepted if isinstance(one, list | str)]
    if wanted_inner is dict:
        return _last("list_dict_checker:unclear", (_dicts_error(value, one) for one in lists))
    fits = any([*map(standard, value)] == [*map(standard, one)] for one in lists)
    return None if fits else "value_error:list/tuple"


def _fits(value: Any, answer: Any, wanted: type) -> bool:
    """Whether the elements have the documented type, or that of an accepted list; what is no list allows every type."""
    return type(answer) is not list or all(type(item) in (wanted, _first_type(answer)) for item in value)


def _last(unclear: str, errors: Iterable[str | None]) -> str | None:
    """None where one of several answers is met; else the error against the last, or `unclear` without any."""
    found = [unclear, *errors]
    return None if None in found else found[-1]


def _dict_error(value: Any, answers: Sequence[Any]) -> str | None:
    """Error of a dict against dicts of accepted values."""

    def against(answer: Any) -> str | None:
        if not isinstance(value, dict) or not isinstance(answer, dict):
            return "value_error:dict_value"
        if any(key not in value and "" not in _values(accepted) for key, accepted in answer.items()):
            return "value_error:dict_key"
        wrong = [key for key in value if standard(value[key]) not in map(standard, _values(answer.get(key, [])))]
        return ("value_error:dict_value" if wrong[0] in answer else "value_error:dict_key") if wrong else None

    return _last("dict_checker:unclear", (against(answer) for answer in answers if answer != ""))


def _dicts_error(value: Any, answer: Any) -> str | None:
    """Error of a list of dicts: as many, in the same order, each as a dict."""
    if len(value) != len(answer):
        return "value_error:list_dict_count"
    return next(filter(None, (_dict_error(one, [wanted]) for one, wanted in zip(value, answer, strict=True))), None)
