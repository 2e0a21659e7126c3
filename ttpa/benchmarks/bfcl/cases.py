"""One question of BFCL with its accepted answers, and the judgement of an answer to it.

What is looked at depends on the category: a call or none (irrelevance, relevance); exactly one call; one call, whose
function is among several; or several calls in any order. For the last, each expected call takes the first unused call
that fits, and no choice is taken back, as officially: `[f(a=1), f(a=2)]` does not match "1 or 2" and then "1".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from ttpa.benchmarks.bfcl.categories import Category, Language
from ttpa.benchmarks.bfcl.check import Expected
from ttpa.benchmarks.bfcl.decode import Undecoded, decode
from ttpa.benchmarks.bfcl.python_calls import Call
from ttpa.benchmarks.bfcl.verdict import Fault, Verdict, accepted, nearest_miss, refused
from ttpa.calls.six_errors import show
from ttpa.errors import DataError

REMEMBERED = 8
"""Verdicts kept for a question: sampled answers repeat, and judging one again is then a look-up."""
REMEMBERED_CHARS = 1_000

_COUNT = {
    "one": "simple_function_checker:wrong_count",
    "multiple": "multiple_function_checker:wrong_count",
    "parallel": "parallel_function_checker_no_order:wrong_count",
}
_CANNOT_FIND = "parallel_function_checker_no_order:cannot_find_match"
_NO_MATCH = "no unused call fits expected call {}, {}; the nearest: "
_FITS = accepted("the calls are accepted")
_SILENT = accepted("no call is made, as expected")
_CALLS = accepted("a call is made, as expected")


class Case:
    """A question and its answers.

    Args:
        case_id: as in the files.
        category: decides the rule.
        functions: the function documents of the question.
        answers: the expected calls, `{name: {parameter: [accepted values]}}` each; none where no answers are published.

    Raises:
        DataError: answers and documents do not belong together; names the id.

    Example:
        >>> from ttpa.benchmarks.bfcl.categories import CATEGORIES
        >>> schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
        >>> case = Case("x_0", CATEGORIES["multiple"], [{"name": "f", "parameters": schema}], [{"f": {"a": [6]}}])
        >>> case.judge("f(a=2*3)").valid, case.judge("[]").error_type
        (True, 'multiple_function_checker:wrong_count')
    """

    __slots__ = (
        "_answers", "_expected", "_functions", "_has_answers", "_language", "_seen", "case_id", "category",
    )  # fmt: skip

    def __init__(
        self,
        case_id: str,
        category: Category,
        functions: Sequence[Mapping[str, Any]],
        answers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.case_id = case_id
        self.category = category
        self._functions = functions
        self._answers = answers
        self._expected: list[Expected] = []
        self._has_answers = category.has_answers
        self._language: Language = category.language if self._has_answers else "python"
        self._seen: dict[Hashable, Verdict] = {}
        if not self._has_answers:
            return
        names = [function["name"] for function in functions]
        for function in functions:
            if not _is_schema(function.get("parameters") or {}):
                problem = "are no schema: properties is an object, required a list of names, type a text"
                raise DataError(f"{case_id}: parameters of {show(function['name'])} {problem}.")
        for answer in answers:
            one = isinstance(answer, Mapping) and len(answer) == 1
            if not one or not isinstance(next(iter(answer.values())), Mapping):
                raise DataError(f"{case_id}: an answer is not one {{name: {{parameter: values}}}}.")
            if next(iter(answer)) not in names:
                raise DataError(f"{case_id}: the answer calls {show(next(iter(answer)))}, which has no document.")
        if not answers or not names or (category.rule != "parallel" and len(answers) != 1):
            raise DataError(f"{case_id}: {len(answers)} answers to {len(names)} functions, too few or too many.")

    def _prepared(self) -> list[Expected]:
        """The expected calls, prepared when the first answer comes."""
        for answer in self._answers:
            name, values = next(iter(answer.items()))
            found = (function for function in self._functions if function["name"] == name)
            function = self._functions[0] if self.category.rule == "one" else next(found)
            self._expected.append(Expected(function, values, self.category.language))
        return self._expected

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """The verdict on one answer; never raises, whatever the answer is.

        Args:
            result: the text of a prompted model, or a list of `{name: json}` from a function-calling interface.
            function_calling: which of the two it is; None decides by type.
            dots_as_underscores: the model had to write `_` for every dot of a name.
        """
        key: Hashable = None
        if type(result) is not str:
            key = _key(result, function_calling, dots_as_underscores)
        elif len(result) < REMEMBERED_CHARS:
            key = (result, function_calling, dots_as_underscores)
        if key is None:
            return self._judge(result, function_calling, dots_as_underscores)
        verdict = self._seen.get(key)
        if verdict is None:
            verdict = self._judge(result, function_calling, dots_as_underscores)
            if len(self._seen) < REMEMBERED:
                self._seen[key] = verdict
        return verdict

    def _judge(self, result: Any, function_calling: bool | None, dots: bool) -> Verdict:
        calls = decode(result, language=self._language, function_calling=function_calling)
        if not self._has_answers:
            return _made_a_call(calls, wanted=self.category.rule == "relevance")
        if isinstance(calls, Undecoded):
            return refused(Fault(calls.error_type, f"not readable as calls: {_escaped(calls.reason)}"))
        expected = self._expected or self._prepared()
        if len(calls) != len(expected):
            error = _COUNT[self.category.rule]
            return refused(Fault(error, "{} calls made, {} expected", (len(calls), len(expected))))
        if len(calls) == 1:
            name, arguments = calls[0]
            fault = expected[0].fault(name, arguments, dots_as_underscores=dots)
            if fault is None:
                return _FITS
            if self.category.rule != "parallel":
                return refused(fault)
        return _any_order(calls, expected, dots)


def _is_schema(schema: Any) -> bool:
    """Whether what the checker looks at is of the published form."""
    properties = schema.get("properties") or {} if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or not isinstance(schema.get("required"), list | None):
        return False
    outer = [one for one in properties.values() if isinstance(one, Mapping)]
    inner = [one["items"] for one in outer if isinstance(one.get("items"), Mapping)]
    names = all(isinstance(name, str) for name in schema.get("required") or ())
    return names and all(isinstance(one.get("type"), str | None) for one in (*outer, *inner))


def _key(result: Any, function_calling: bool | None, dots: bool) -> Hashable:
    """What the verdict on a list of `{name: json}` is remembered under; None for long ones and anything else."""
    pairs = []
    for item in result if type(result) is list else (None,):
        if type(item) is not dict or len(item) != 1:
            return None
        pair = next(iter(item.items()))
        if type(pair[1]) is not str or len(pair[1]) >= REMEMBERED_CHARS:
            return None
        pairs.append(pair)
    return (tuple(pairs), function_calling, dots) if len(pairs) < REMEMBERED else None


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _made_a_call(calls: list[Call] | Undecoded, *, wanted: bool) -> Verdict:
    made = bool(calls) and not isinstance(calls, Undecoded)
    if made == wanted:
        return _CALLS if made else _SILENT
    if wanted:
        return refused(Fault("relevance_error:decoder_failed", "no call is made, expected one"))
    return refused(Fault("irrelevance_error:decoder_success", "a call is made, expected none"))


def _any_order(calls: list[Call], expected: list[Expected], dots: bool) -> Verdict:
    unused = list(range(len(calls)))
    for number, wanted in enumerate(expected, 1):
        for at in unused:
            if wanted.fault(*calls[at], dots_as_underscores=dots) is None:
                unused.remove(at)
                break
        else:
            find = partial(_nearest, [calls[at] for at in unused], expected, number - 1, dots)
            return refused(Fault(_CANNOT_FIND, _NO_MATCH, (number, wanted.name), find))
    return _FITS


def _nearest(calls: list[Call], expected: list[Expected], number: int, dots: bool) -> Fault:
    """What is wrong with the call that comes nearest to an expected one; calls that fit another one are not it."""
    faults = [expected[number].fault(*call, dots_as_underscores=dots) for call in calls]
    free = [all(other.fault(*call, dots_as_underscores=dots) for other in expected) for call in calls]
    found = [fault for fault, alone in zip(faults, free, strict=True) if fault is not None and (alone or not any(free))]
    return nearest_miss(found)
