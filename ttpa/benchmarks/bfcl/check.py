"""One call against one expected call, by the rules of BFCL's checker, without a dependency.

In this order, and the first failure is the verdict: name; required parameters; then every given parameter in turn, that
it is documented and among the answers, its type, its value; at last the parameters that were not given but had to be.

Types are exact (True is no integer, 5.0 is none) with three ways out: a whole number where a float is asked for; a
tuple where the document says so; and a value of the type of the accepted answers rather than of the document, which is
taken for a variable and compared literally. Strings are equal when they are so without case, spaces and the characters
`,./-_*^`, quotes being of one kind. Only the first level of a list or dict is looked at in this way.

An `Expected` is prepared once, so that checking an answer is a few look-ups. What the official checker cannot do, where
it stops with an exception, has no verdict to agree with; here such a value is an error of value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.java_js import JAVA_TYPES, JS_TYPES, convert_java, convert_js
from ttpa.benchmarks.bfcl.verdict import Fault

PYTHON_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
_TYPES: Mapping[Language, Mapping[str, type]] = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JS_TYPES}
_CONVERT: Mapping[Language, Callable[[str, str, str | None], Any]] = {"java": convert_java, "javascript": convert_js}
_WITH_ITEMS = {"python": ("array", "tuple"), "java": ("Array", "ArrayList"), "javascript": ("array",)}
_UNEXPECTED = "parameter {} is not documented, or no answer gives it"
_IGNORED = str.maketrans({**dict.fromkeys(" ,./-_*^", None), "'": '"'})


def standard(text: str) -> str:
    """A string as it is compared.

    Example:
        >>> standard("New York, NY") == standard("new_york ny"), standard("10:00") == standard("1000")
        (True, False)
    """
    return text.translate(_IGNORED).lower()


def _standard(value: Any) -> Any:
    return standard(value) if type(value) is str else value


class Expected:
    """A call that is expected, prepared for comparison.

    Args:
        function: its document: `name` and `parameters` with `properties` and `required`.
        answer: parameter -> accepted values; "" among them means that it may be left out.
        language: whose type names the document uses.

    Example:
        >>> schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
        >>> expected = Expected({"name": "f", "parameters": schema}, {"a": [6]})
        >>> expected.fault("f", {"a": 6}) is None, expected.fault("f", {"a": 6.0}).error_type
        (True, 'type_error:simple')
    """

    __slots__ = ("_answer", "_language", "_needed", "_parameters", "_properties", "flat_name", "name", "required")

    def __init__(
        self, function: Mapping[str, Any], answer: Mapping[str, Sequence[Any]], language: Language = "python"
    ) -> None:
        self.name = str(function["name"])
        self.flat_name = self.name.replace(".", "_")
        schema = function.get("parameters") or {}
        properties = schema.get("properties") or {}
        self.required = tuple(schema.get("required") or ())
        self._needed: tuple[str, ...] | None = None
        self._answer = answer
        self._properties = properties
        self._language = language
        self._parameters: dict[Any, _Parameter] = {}

    def _parameter(self, key: Any) -> _Parameter | None:
        """The parameter of that name, prepared at the first use; None where document or answer does not have it."""
        if key not in self._answer or key not in self._properties:
            return None
        made = self._parameters[key] = _Parameter(key, self._properties[key], self._answer[key], self._language)
        return made

    def fault(self, name: str, arguments: Mapping[Any, Any], *, dots_as_underscores: bool = False) -> Fault | None:
        """What is wrong with a call, first things first; None when it is accepted.

        Args:
            name: the tool that is called.
            arguments: parameter -> value.
            dots_as_underscores: the model had to write `_` for every dot of a name.
        """
        wanted = self.flat_name if dots_as_underscores else self.name
        if name != wanted:
            return Fault("simple_function_checker:wrong_func_name", "tool is {}, expected {}", (name, wanted))
        for key in self.required:
            if key not in arguments:
                return Fault("simple_function_checker:missing_required", "required parameter {} is missing", (key,))
        for key, value in arguments.items():
            parameter = self._parameters.get(key)
            if parameter is None:
                parameter = self._parameter(key)
            if parameter is None:
                return Fault("simple_function_checker:unexpected_param", _UNEXPECTED, (key,))
            error = parameter.error(value)
            if error is not None:
                return parameter.fault(error, value)
        if self._needed is None:
            self._needed = tuple(key for key, values in self._answer.items() if "" not in _values(values))
        for key in self._needed:
            if key not in arguments:
                return Fault("simple_function_checker:missing_optional", "parameter {} is left out", (key,))
        return None


class _Parameter:
    """One parameter of an expected call: its type and its accepted values, prepared."""

    __slots__ = (
        "_equal", "_inner_types", "accepted", "answer_type", "convert", "inner", "kind", "language", "name", "plain",
        "variable", "wanted", "wanted_inner",
    )  # fmt: skip

    def __init__(self, name: str, schema: Any, accepted: Any, language: Language) -> None:
        self.name = name
        self.language = language
        self.accepted: list[Any] = accepted if type(accepted) is list else [accepted]
        self.kind = str(schema.get("type")) if isinstance(schema, Mapping) else "None"
        self.answer_type: type | None = None
        for value in self.accepted:
            if value != "":
                self.answer_type = type(value)
                break
        # A type that the checker does not know is that of the answers: they are then compared literally.
        self.wanted = _TYPES[language].get(self.kind) or self.answer_type or str
        self.variable = self.answer_type is not None and self.answer_type is not self.wanted
        self._equal: Any = None
        self.plain: type | None = None
        if language == "python" and not self.variable and self.wanted in (str, int, bool):
            self.plain = self.wanted
        self.convert = _CONVERT.get(language)
        self.inner: Any = None
        self.wanted_inner: type | None = None
        self._inner_types: list[frozenset[type] | None] | None = None
        items = schema.get("items") if self.kind in _WITH_ITEMS[language] else None
        if isinstance(items, Mapping):
            self.inner = items.get("type")
            self.wanted_inner = _TYPES[language].get(self.inner) if isinstance(self.inner, str) else None

    def _types_within(self, value: Any) -> frozenset[type] | None:
        """Types that elements may have beside an accepted list; None allows all."""
        if type(value) is not list:
            return None
        answered = next((type(element) for element in value if element != ""), None)
        return frozenset(kind for kind in (self.wanted_inner, answered) if kind is not None)

    def error(self, value: Any) -> str | None:
        """The official error type of a value, None when it is accepted."""
        if type(value) is self.plain:  # the usual case: of the type asked for, and that is a simple one
            if value in self.accepted:
                return None
            return self._text_error(value) if type(value) is str else "value_error:others"
        if self.convert is not None:
            if type(value) is not str:
                return "type_error:java" if self.language == "java" else "type_error:js"
            value = self.convert(value, self.kind, self.inner)
        elif self.kind == "float" and type(value) is int:
            value = _to_float(value)
        elif self.kind == "tuple" and type(value) is tuple:
            value = list(value)
        given = type(value)
        variable = self.variable
        if given is self.wanted:
            if self.wanted_inner is not None and not self._fits_within(value):
                return "type_error:nested" if given is self.answer_type else "type_error:simple"
        elif given is self.answer_type:
            variable = True
        else:
            return "type_error:simple"
        return self._literal_error(value) if variable else self._value_error(value)

    def _fits_within(self, value: list[Any]) -> bool:
        if self._inner_types is None:
            self._inner_types = [self._types_within(answer) for answer in self.accepted]
        return any(types is None or all(type(v) in types for v in value) for types in self._inner_types)

    def _literal_error(self, value: Any) -> str | None:
        return None if _among(value, self.accepted) else "value_error:others"

    def _value_error(self, value: Any) -> str | None:
        if self.wanted is str:
            return self._text_error(value)
        if self.wanted is dict:
            return _dict_error(value, self.accepted)
        if self.wanted is not list:
            return self._literal_error(value)
        if self.wanted_inner is dict:
            return _dicts_error(value, self.accepted)
        if self._equal is None:
            self._equal = [[_standard(v) for v in one] for one in self.accepted if isinstance(one, list | str)]
        return None if _among([_standard(v) for v in value], self._equal) else "value_error:list/tuple"

    def _text_error(self, value: str) -> str | None:
        if self._equal is None:
            self._equal = frozenset(standard(answer) for answer in self.accepted if type(answer) is str)
        return None if standard(value) in self._equal else "value_error:string"

    def fault(self, error: str, value: Any) -> Fault:
        """The fault for an error of `value`."""
        if error == "type_error:nested":
            return Fault(error, "an element of {} is of the wrong type: {}", (self.name, value))
        if error == "type_error:simple":
            return Fault(error, "type of {} is not {}: {}", (self.name, self.kind, value))
        if error.startswith("type_error"):
            return Fault(error, "value of {} is not written as text: {}", (self.name, value))
        return Fault(error, "value of {} is {}, expected one of {}", (self.name, value, self.accepted))


def _to_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _among(value: Any, accepted: list[Any]) -> bool:
    """Python's `in`: 1 is 1.0 is True. Values that nest too deeply to be compared are not among any."""
    try:
        return value in accepted
    except RecursionError:
        return False


def _dict_error(value: Any, answers: list[Any]) -> str | None:
    """Error of a dict against dicts of accepted values; of several answers, the last one's error counts."""
    error = "dict_checker:unclear"
    for answer in answers:
        if answer == "":
            continue
        if not isinstance(value, dict) or not isinstance(answer, dict):
            error = "value_error:dict_value"
            continue
        found = _entries_error(value, answer)
        if any(key not in value and "" not in _values(accepted) for key, accepted in answer.items()):
            found = "value_error:dict_key"
        if found is None:
            return None
        error = found
    return error


def _values(accepted: Any) -> Sequence[Any]:
    """The accepted values of a key. Where a text stands instead of a list, its characters are accepted, officially."""
    return accepted if isinstance(accepted, list | str) else [accepted]


def _entries_error(value: dict[Any, Any], answer: dict[str, Any]) -> str | None:
    for key, entry in value.items():
        if key not in answer:
            return "value_error:dict_key"
        if not _among(_standard(entry), [_standard(option) for option in _values(answer[key])]):
            return "value_error:dict_value"
    return None


def _dicts_error(value: list[Any], answers: list[Any]) -> str | None:
    """Error of a list of dicts: as many, in the same order, each as a dict."""
    error = "list_dict_checker:unclear"
    for answer in answers:
        if not isinstance(answer, list | str):
            continue
        if len(value) != len(answer):
            error = "value_error:list_dict_count"
            continue
        errors = (_dict_error(one, [other]) for one, other in zip(value, answer, strict=True))
        found = next((kind for kind in errors if kind is not None), None)
        if found is None:
            return None
        error = found
    return error
