"""One question of BFCL with its accepted answers, and the judgement of an answer to it.

The category says what is looked at: a call or none (irrelevance, relevance); exactly one call; one call, whose function
is among several; or several calls in any order. For the last, each expected call takes the first unused call that fits
and no choice is taken back, as officially: `[f(a=1), f(a=2)]` does not match "1 or 2" and then "1".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttpa.benchmarks.bfcl.categories import Category, Language
from ttpa.benchmarks.bfcl.check import Verdict, check_call, refused
from ttpa.benchmarks.bfcl.decode_java_js import read_java_js
from ttpa.benchmarks.bfcl.decode_python import Call, Undecodable, read_interface, read_python
from ttpa.calls.schema import normalise_schema
from ttpa.calls.six_errors import show
from ttpa.errors import DataError
from ttpa.records import Candidate, Sample, ToolSpec

_COUNT = {
    "one": "simple_function_checker:wrong_count",
    "multiple": "multiple_function_checker:wrong_count",
    "parallel": "parallel_function_checker_no_order:wrong_count",
}
_CANNOT_FIND = "parallel_function_checker_no_order:cannot_find_match"
_ORDER = ("tool_name", "missing_required", "parameter_name", "parameter_type", "parameter_value")


def decode(result: Any, *, language: Language = "python", function_calling: bool | None = None) -> list[Call]:
    """The calls of one answer.

    Args:
        result: The `result` of a row: a text, or a list of `{name: json}`.
        language: Of the calls in a text.
        function_calling: Whether the answer came through a function-calling interface, where a text is a reply in words
            and never calls; None decides by the type of the result.

    Raises:
        Undecodable: there are no calls to be had, with the official error type.
        ConfigError: the grammar of Java or JavaScript is needed and not installed.
    """
    if function_calling or (function_calling is None and not isinstance(result, str)):
        return read_interface(result)
    return read_python(result) if language == "python" else read_java_js(result, language)


class Case:
    """A question and its answers.

    Args:
        case_id: As in the files.
        category: Decides the rule.
        functions: The function documents of the question.
        answers: The expected calls, `{name: {parameter: [accepted values]}}` each; none where none are published.
        question: Turns of messages, which only a policy reads.

    Raises:
        DataError: answers and documents do not belong together; names the id.

    Example:
        >>> from ttpa.benchmarks.bfcl.categories import CATEGORIES
        >>> schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
        >>> case = Case("x_0", CATEGORIES["multiple"], [{"name": "f", "parameters": schema}], [{"f": {"a": [6]}}])
        >>> case.judge("f(a=2*3)").valid, case.judge("[]").error_type
        (True, 'multiple_function_checker:wrong_count')
    """

    def __init__(
        self,
        case_id: str,
        category: Category,
        functions: Sequence[Mapping[str, Any]],
        answers: Sequence[Mapping[str, Any]] = (),
        question: Any = (),
    ) -> None:
        self.case_id = case_id
        self.category = category
        self.functions = functions
        self.question = question
        self._expected: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        """Function document and accepted values of each expected call."""
        if not category.has_answers:
            return
        documents = {function["name"]: function for function in reversed(functions)}  # of equal names, the first
        for function in functions:
            if not _is_schema(function.get("parameters") or {}):
                problem = "are no schema: properties is an object, required a list of names, type a text"
                raise DataError(f"{case_id}: parameters of {show(function['name'])} {problem}.")
        if not answers or not documents or (category.rule != "parallel" and len(answers) != 1):
            raise DataError(f"{case_id}: {len(answers)} answers to {len(functions)} functions, too few or too many.")
        for answer in answers:
            one = isinstance(answer, Mapping) and len(answer) == 1
            name, values = next(iter(answer.items())) if one else (None, None)
            if not isinstance(values, Mapping):
                raise DataError(f"{case_id}: an answer is not one {{name: {{parameter: values}}}}.")
            if name not in documents:
                raise DataError(f"{case_id}: the answer calls {show(name)}, which has no document.")
            self._expected.append((functions[0] if category.rule == "one" else documents[name], values))

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """The verdict on one answer, whatever the answer is.

        Args:
            result: The text of a prompted model, or a list of `{name: json}` from a function-calling interface.
            function_calling: Which of the two it is; None decides by type.
            dots_as_underscores: The model had to write `_` for every dot of a name.

        Raises:
            ConfigError: the grammar of Java or JavaScript is needed and not installed.
        """
        rule, language = self.category.rule, self.category.language
        try:
            calls = decode(result, language=language, function_calling=function_calling)
        except Undecodable as error:
            if self._expected:
                return refused(error.error_type, f"not readable as calls: {error}")
            calls = []
        if rule == "irrelevance":
            wrong = refused("irrelevance_error:decoder_success", "a call is made, expected none")
            return wrong if calls else Verdict(None, "no call is made, as expected")
        if rule == "relevance":
            wrong = refused("relevance_error:decoder_failed", "no call is made, expected one")
            return Verdict(None, "a call is made, as expected") if calls else wrong
        if len(calls) != len(self._expected):
            return refused(_COUNT[rule], f"{len(calls)} calls made, {len(self._expected)} expected")
        if rule == "parallel":
            fault = self._any_order(calls, dots_as_underscores)
        else:
            fault = self._fault(calls[0], 0, dots_as_underscores)
        return fault or Verdict(None, "the calls are accepted")

    def _fault(self, call: Call, number: int, dots: bool) -> Verdict | None:
        return check_call(call, *self._expected[number], self.category.language, dots_as_underscores=dots)

    def _any_order(self, calls: list[Call], dots: bool) -> Verdict | None:
        unused = list(calls)
        for number, (function, _) in enumerate(self._expected):
            faults = [self._fault(call, number, dots) for call in unused]
            if None in faults:
                del unused[faults.index(None)]
                continue
            # The nearest call came furthest in the checks; a call that fits another expected one is not it.
            others = range(len(self._expected))
            free = [all(self._fault(call, other, dots) for other in others) for call in unused]
            found = [fault for fault, alone in zip(faults, free, strict=True) if fault and (alone or not any(free))]
            near = max(found, key=lambda fault: _ORDER.index(fault.six_error))
            sentence = f"no unused call fits expected call {number + 1}, {show(function['name'])}; the nearest: "
            return Verdict(_CANNOT_FIND, sentence + near.explanation, near.six_error)
        return None


def tool_of(function: Mapping[str, Any], language: Language = "python") -> ToolSpec:
    """A function document as a tool with a JSON Schema.

    In Java and JavaScript every value is asked for as text, which is what the checker reads.
    """
    parameters = function.get("parameters") or {}
    if language != "python":
        kind = {"java": "Java", "javascript": "JavaScript"}[language]
        texts = {
            name: {
                "type": "string",
                "description": f"{one.get('description', '')} ({kind} source, {one.get('type', 'any')})".strip(),
            }
            for name, one in (parameters.get("properties") or {}).items()
        }
        parameters = {**parameters, "properties": texts}
    schema = {"type": "object", "properties": {}, **normalise_schema(parameters)}
    return ToolSpec(name=function["name"], description=function.get("description", ""), parameters=schema)


def judged_row(
    sample: Sample, category: Category, verdict: Verdict, result: Any, answers: Sequence[Candidate]
) -> dict[str, Any]:
    """The row of `eval=bfcl` for a question: its verdict, the result in the official form, and the policy's answers."""
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": "",
        "tags": [],
        "finish": next((one.finish for one in answers if one.finish != "stop"), "stop"),
        "tokens": sum(len(one.token_ids) for one in answers),
        "text": "\n".join(one.text for one in answers),
        "category": category.name,
        "exact": verdict.valid,
        "errors": [verdict.six_error] if verdict.six_error else [],
        "error_type": verdict.error_type,
        "explanation": verdict.explanation,
        "result": result,
    }


def _is_schema(schema: Any) -> bool:
    """Whether what the checker looks at is of the published form."""
    properties = schema.get("properties") or {} if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or not isinstance(schema.get("required"), list | None):
        return False
    outer = [one for one in properties.values() if isinstance(one, Mapping)]
    inner = [one["items"] for one in outer if isinstance(one.get("items"), Mapping)]
    names = all(isinstance(name, str) for name in schema.get("required") or ())
    return names and all(isinstance(one.get("type"), str | None) for one in (*outer, *inner))
