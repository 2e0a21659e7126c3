"""BFCL's single-turn questions: the files they stand in, their accepted answers, and the judgement of an answer."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from ttpa.benchmarks.bfcl.categories import SINGLE_TURN, Category, Language, find_category
from ttpa.benchmarks.bfcl.check import Verdict, check_call, refused
from ttpa.benchmarks.bfcl.decode_java_js import read_java_js
from ttpa.benchmarks.bfcl.decode_python import Call, Undecodable, read_interface, read_python
from ttpa.calls.schema import normalise_schema
from ttpa.calls.six_errors import show
from ttpa.errors import DataError
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.records import Candidate, ToolSpec


class Form(BaseModel, strict=True):
    """What is read of a row; further keys may be there."""


class _Schema(Form):
    type: str | None = None
    items: Optional["_Schema"] = None
    properties: dict[str, "_Schema"] | None = None
    required: list[str] | None = None


class Function(Form):
    name: str
    parameters: _Schema | None = None


class _Question(Form):
    function: list[Function]
    ground_truth: list[Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]]


F = TypeVar("F", bound=Form)


def checked(form: type[F], row: Any, place: object, remedy: str = "Take the file as published.") -> F:
    """A row in its form; a DataError that names place and key where it is not."""
    try:
        return form.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"{key}={show(first['input'])}: {first['msg']}" if key else first["msg"]
        raise DataError(f"{place}: {f'no {key}' if first['type'] == 'missing' else problem}. {remedy}") from None


_CHECKER = {"one": "simple_function_checker", "multiple": "multiple_function_checker",
            "parallel": "parallel_function_checker_no_order"}  # fmt: skip
_ORDER = ("tool_name", "missing_required", "parameter_name", "parameter_type", "parameter_value")


def decode(result: Any, *, language: Language = "python", function_calling: bool | None = None) -> list[Call]:
    """The calls of one answer; raises Undecodable without. With `function_calling` they are a list of `{name: json}`,
    and a text is a reply in words; None decides by type.
    """
    if function_calling or (function_calling is None and not isinstance(result, str)):
        return read_interface(result)
    return read_python(result) if language == "python" else read_java_js(result, language)


@dataclass
class Case:
    """A question and its answers, or a DataError where they are not of the published form or do not belong together."""

    case_id: str
    category: Category
    functions: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]] = ()  # expected calls, {name: {parameter: [accepted values]}} each
    question: Any = ()  # turns of messages, which only a policy reads

    def __post_init__(self) -> None:
        checked(_Question, {"function": self.functions, "ground_truth": list(self.answers)}, self.case_id)
        self._expected: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []  # document and accepted values
        if not self.category.has_answers:
            return
        if not self.answers or not self.functions or (self.category.rule != "parallel" and len(self.answers) != 1):
            raise DataError(f"{self.case_id}: {len(self.answers)} answers to {len(self.functions)} functions.")
        documents = {function["name"]: function for function in reversed(self.functions)}  # of equal names, the first
        for name, values in (call for answer in self.answers for call in answer.items()):
            if name not in documents:
                raise DataError(f"{self.case_id}: the answer calls {show(name)}, which has no document.")
            self._expected.append((documents[name], values))

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """The verdict on one answer, whatever the answer is; see `decode` and `check_call`."""
        rule, language = self.category.rule, self.category.language
        try:
            calls = decode(result, language=language, function_calling=function_calling)
        except Undecodable as error:
            if self._expected:
                return refused(error.error_type, f"not readable as calls: {error}")
            calls = []
        if rule in ("irrelevance", "relevance"):
            made, kind, wanted = ("a", "success", "none") if calls else ("no", "failed", "one")
            if bool(calls) == (rule == "relevance"):
                return Verdict(None, f"{made} call is made, as expected")
            return refused(f"{rule}_error:decoder_{kind}", f"{made} call is made, expected {wanted}")
        if len(calls) != len(self._expected):
            sentence = f"{len(calls)} calls made, {len(self._expected)} expected"
            return refused(f"{_CHECKER[rule]}:wrong_count", sentence)
        check = partial(check_call, language=language, dots_as_underscores=dots_as_underscores)
        faults = [[check(call, *expected) for call in calls] for expected in self._expected]
        fault = self._any_order(faults) if rule == "parallel" else faults[0][0]
        return fault or Verdict(None, "the calls are accepted")

    def _any_order(self, faults: Sequence[Sequence[Verdict | None]]) -> Verdict | None:
        """Each expected call takes the first unused one that fits, and no choice is taken back, as officially."""
        unused = list(range(len(faults)))
        for number, row in enumerate(faults):
            if fits := [at for at in unused if row[at] is None]:
                unused.remove(fits[0])
                continue
            # The nearest call came furthest in the checks; a call that fits another expected one is not it.
            free = [at for at in unused if all(other[at] for other in faults)] or unused
            _, said, label = max(filter(None, (row[at] for at in free)), key=lambda one: _ORDER.index(one.six_error))
            name = show(self._expected[number][0]["name"])
            sentence = f"no unused call fits expected call {number + 1}, {name}; the nearest: {said}"
            return Verdict(f"{_CHECKER['parallel']}:cannot_find_match", sentence, label)
        return None


def tool_of(function: Mapping[str, Any], language: Language = "python") -> ToolSpec:
    """A function document as a tool with a JSON Schema; in Java and JavaScript every value is asked for as text."""
    parameters = function.get("parameters") or {}
    if language != "python":
        source, properties = "Java source" if language == "java" else "JavaScript source", {}
        for name, one in (parameters.get("properties") or {}).items():
            text = f"{one.get('description', '')} ({source}, {one.get('type', 'any')})".strip()
            properties[name] = {"type": "string", "description": text}
        parameters = {**parameters, "properties": properties}
    schema = {"type": "object", "properties": {}, **normalise_schema(parameters)}
    return ToolSpec(name=function["name"], description=function.get("description", ""), parameters=schema)


def judged_row(
    case_id: str, category: Category, verdict: Verdict, result: Any, answers: Sequence[Candidate]
) -> dict[str, Any]:
    """The row of `eval=bfcl` for a question: its verdict, the result in the official form, and the policy's answers."""
    return {
        "id": case_id,
        "cluster": case_id,
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


_NAME = re.compile(r"BFCL_v\d+_(\w+?)\.jsonl?(?:\.gz)?")


def question_files(folder: Path) -> list[tuple[Path, Category]]:
    """The files of questions in a data folder, with their categories, by name; none where there is no folder."""
    named = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("BFCL_*"))]
    return [(path, category) for path, name in named if name and (category := find_category(name[1]))]


def packed(path: Path) -> Path:
    """The file, or its gzipped form where only that is there."""
    zipped = path.with_name(f"{path.name}.gz")
    return zipped if zipped.is_file() and not path.is_file() else path


def question_rows(folder: Path, category: Category, seen: set[str]) -> Iterator[tuple[JsonLine, list[Any]]]:
    """Each question of a category in a data folder, and its accepted answers (none in a category without); a DataError
    for no id or one that was `seen`.
    """
    for path in (path for path, found in question_files(folder) if found == category):
        answers: dict[Any, list[Any]] = {}
        file = packed(folder / "possible_answer" / path.name.removesuffix(".gz"))
        for line in read_lines(file) if category.has_answers else ():
            case_id, truth = line.row.get("id"), line.row.get("ground_truth")
            if case_id in answers or not isinstance(truth, list):
                raise DataError(f"{line}: {case_id} is there twice, or has no ground_truth. Take the published file.")
            answers[case_id] = truth
        for line in read_lines(path):
            case_id = line.row.get("id")
            if not isinstance(case_id, str) or case_id in seen:
                raise DataError(f"{line}: {case_id} is no id, or is there twice. Take one release, as published.")
            if category.has_answers and case_id not in answers:
                raise DataError(f"{line}: no accepted answers for {case_id}. Take both files from one release.")
            seen.add(case_id)
            yield line, answers.pop(case_id, [])
        for case_id in answers:
            raise DataError(f"{path}: no question {case_id}, which has answers. Take both files from one release.")


def read_cases(folder: str | Path) -> dict[str, Case]:
    """The single-turn questions of a data folder, by id; none where it holds multi-turn questions only."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data={folder}: no such folder. Give the folder with the BFCL_v4_*.json files.")
    cases: dict[str, Case] = {}
    seen: set[str] = set()
    categories = dict.fromkeys(category for _, category in question_files(folder))
    for category in (category for category in categories if category.rule in SINGLE_TURN):
        for line, answers in question_rows(folder, category, seen):
            row: Any = line.row
            try:
                cases[row["id"]] = Case(row["id"], category, row.get("function"), answers, row.get("question"))
            except DataError as error:
                raise DataError(f"{line}: {error}") from None
    if not cases and not any(category.rule == "multi_turn" for category in categories):
        raise DataError(f"data={folder}: no questions. BFCL_v4_<category>.json files belong there, as published.")
    return cases


class ModelAnswer(Form):
    """One answer of a model; None for what the row does not say."""

    case_id: str = Field(validation_alias=AliasChoices("id", "sample_id"))
    result: Any = Field(validation_alias=AliasChoices("result", "text"))
    mode: Literal["prompt", "fc"] | None = None
    dots_as_underscores: bool | None = None


_TOKEN = re.compile(r'"(?:[^"\\]+|\\.?)*"?|[\[\]{}]|[^"\[\]{}]+', re.DOTALL)  # a text, a bracket, what is between
_DEEP = 500  # Python reads JSON of about 1,000 levels, less what its own calls take


def answer_row(text: str) -> Any:
    """The row of a model's answer, for `read_lines`. Long numbers and deep nesting, which JSON allows and Python does
    not read, are left out: they are no error of the file.
    """
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    kept, depth = [], 0
    for token in _TOKEN.findall(text):
        depth -= token in ("]", "}")
        kept += [token] if depth < _DEEP else []
        depth += token in ("[", "{")
    return json.loads("".join(kept), parse_int=lambda digits: int(digits) if len(digits) < 4000 else None)


def read_answer(line: JsonLine) -> ModelAnswer:
    """One row of a result file, `{id, result}` as BFCL writes it or `{sample_id, text}`, or a DataError."""
    answer = checked(ModelAnswer, line.row, line, "A row needs id and result, or sample_id and text.")
    if "calls" not in line.row or "result" in line.row:
        return answer
    try:  # a candidate of this project, parsed when it was drawn
        calls = json.loads(line.row["calls"]) if isinstance(line.row["calls"], str) else line.row["calls"] or []
        result = [{one["name"]: dumps(one["arguments"])} for one in calls] or answer.result
    except (ValueError, RecursionError, KeyError, TypeError):
        raise DataError(f"{line}: calls are no list of names and arguments. Take candidates.jsonl.") from None
    return answer.model_copy(update={"result": result, "mode": "fc"})
