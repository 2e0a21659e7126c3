"""BFCL's files: questions and accepted answers of a data folder, and answers of models.

All are JSON lines, also those named `.json`, and may be gzipped. A data folder is laid out as published:
`BFCL_v4_<category>.json` (or `BFCL_v3_`, with that version's names), and below `possible_answer/` files of the same
names. Multi-turn questions are read by `multi_turn`, since they need more files; agentic ones are not scored here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ttpa.benchmarks.bfcl.cases import Case
from ttpa.benchmarks.bfcl.categories import SINGLE_TURN, Category, category_of_id, find_category
from ttpa.errors import DataError
from ttpa.io import JsonLine, dumps, read_lines

_NAME = re.compile(r"BFCL_v(\d+)_(\w+?)\.jsonl?(?:\.gz)?")
_TOKEN = re.compile(r'"(?:[^"\\]+|\\.?)*"?|[\[\]{}]', re.DOTALL)
"""A text, also one that is cut off, or a bracket."""
_DEEP = 500
"""Python reads JSON of about 1,000 levels, less what its own calls take."""


C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """One answer of a model.

    Args:
        case_id: The question's id.
        result: A text, or a list of `{name: json}`.
        function_calling: Whether it came through a function-calling interface; None when the row does not say.
        dots_as_underscores: Whether names were sent with `_` for every dot; None when the row does not say.
    """

    case_id: str
    result: Any
    function_calling: bool | None = None
    dots_as_underscores: bool | None = None


def answer_row(text: str) -> Any:
    """The row of a model's answer; what JSON's rules allow and Python does not read in it is None.

    A model decides what stands in such a row, so a number without end or brackets without bottom are no error of the
    file. For `read_lines`.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return json.loads(_shallow(text), parse_int=lambda digits: int(digits) if len(digits) < 4000 else None)


def _shallow(text: str) -> str:
    """A JSON text with null for each member that nests too deeply."""
    kept: list[str] = []
    end = start = depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == 2:
                start, deepest = token.start(), 0
            deepest = max(deepest, depth)
        elif token[0] in ("]", "}"):
            depth -= 1
            if depth == 1 and deepest > _DEEP:
                kept += [text[end:start], "null"]
                end = token.end()
    return "".join([*kept, text[end:]])


def read_answer(line: JsonLine) -> ModelAnswer:
    """One row of a result file: `{id, result}` as BFCL writes it, or this project's `{sample_id, text}`.

    Raises:
        DataError: the row has no id or no answer; names file and line.
    """
    row = line.row
    case_id = row.get("id", row.get("sample_id"))
    if not isinstance(case_id, str):
        raise DataError(f"{line}: no id. A row needs id and result, or sample_id and text.")
    key = next((key for key in ("result", "text") if key in row), None)
    if key is None:
        raise DataError(f"{line}: {case_id} has no result. A row needs id and result, or sample_id and text.")
    mode, dots = row.get("mode"), row.get("dots_as_underscores")
    if mode not in (None, "fc", "prompt") or dots not in (None, True, False):
        raise DataError(f"{line}: mode={mode!r}, dots_as_underscores={dots!r}. Use fc or prompt, and true or false.")
    result, calling = row[key], None if mode is None else mode == "fc"
    if key == "text" and "calls" in row:  # a candidate of this project: its calls were parsed when it was drawn
        try:
            calls = json.loads(row["calls"]) if isinstance(row["calls"], str) else row["calls"] or []
            result, calling = [{one["name"]: dumps(one["arguments"])} for one in calls] or result, True
        except (ValueError, RecursionError, KeyError, TypeError):
            problem = "calls are no list of names and arguments"
            raise DataError(f"{line}: {problem}. Take candidates.jsonl as written.") from None
    return ModelAnswer(case_id=case_id, result=result, function_calling=calling, dots_as_underscores=dots)


def read_cases(folder: str | Path) -> dict[str, Case]:
    """The single-turn questions of a data folder with their answers, by id, in the order of the files' names.

    A folder that holds multi-turn questions only gives none.

    Raises:
        DataError: no questions, a question without answers or answers without a question, an id twice, or a row that is
            not of the published form; names file and line, or the id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data={folder}: no such folder. Give the folder with the BFCL_v4_*.json files.")
    cases: dict[str, Case] = {}
    for category in dict.fromkeys(category for _, category in question_files(folder)):
        if category.rule in SINGLE_TURN:
            cases |= read_category(folder, category, _case, seen=cases)
    if not cases and not any(category.rule == "multi_turn" for _, category in question_files(folder)):
        raise DataError(f"data={folder}: no questions. BFCL_v4_<category>.json files belong there, as published.")
    return cases


def question_files(folder: Path) -> list[tuple[Path, Category]]:
    """The files of questions in a data folder, with their categories, by name; none where there is no folder."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        named = _NAME.fullmatch(path.name)
        category = find_category(named[2]) if named and path.is_file() else None
        if category is not None:
            found.append((path, category))
    return found


def read_category(
    folder: Path,
    category: Category,
    make: Callable[[JsonLine, Category, JsonLine | None], C],
    seen: Collection[str] = (),
) -> dict[str, C]:
    """The questions of a category in a data folder, by id; none where the folder has no file of it.

    Args:
        folder: The data folder.
        category: Of the questions.
        make: Turns the row of a question and that of its answers (None in a category without) into a case.
        seen: Ids of other categories.

    Raises:
        DataError: as in `read_cases`.
    """
    cases: dict[str, C] = {}
    for path in (path for path, found in question_files(folder) if found == category):
        answers = _read_answers(folder, path) if category.has_answers else {}
        for line in read_lines(path):
            case_id = line.row.get("id")
            if not isinstance(case_id, str):
                raise DataError(f"{line}: no id. Take the file as published.")
            if category.has_answers and case_id not in answers:
                remedy = "Take questions and answers from one release."
                raise DataError(f"{line}: no accepted answers for {case_id}. {remedy}")
            if case_id in cases or case_id in seen:
                raise DataError(f"{line}: {case_id} is there twice. Keep one version of a category in a folder.")
            cases[case_id] = make(line, category, answers.get(case_id))
        for case_id, answer in answers.items():
            if case_id not in cases:
                raise DataError(f"{answer}: no question {case_id} in {path}. Take both from one release.")
    return cases


def _read_answers(folder: Path, questions: Path) -> dict[str, JsonLine]:
    """The rows of accepted answers that belong to a file of questions, by id."""
    stem = questions.name.removesuffix(".gz")
    places = [folder / "possible_answer" / name for name in (stem, f"{stem}.gz")]
    answers: dict[str, JsonLine] = {}
    for line in read_lines(next((place for place in places if place.is_file()), places[0])):
        case_id = line.row.get("id")
        if not isinstance(case_id, str) or not isinstance(line.row.get("ground_truth"), list):
            raise DataError(f"{line}: no id and ground_truth. Take the file as published.")
        if case_id in answers:
            raise DataError(f"{line}: {case_id} is there twice. Take the file as published.")
        answers[case_id] = line
    return answers


def _case(line: JsonLine, category: Category, answer: JsonLine | None) -> Case:
    functions = line.row.get("function")
    if not isinstance(functions, list) or not all(isinstance(one, dict) and "name" in one for one in functions):
        raise DataError(f"{line}: no id and function documents. Take the file as published.")
    try:
        accepted = answer.row["ground_truth"] if answer else ()
        return Case(line.row["id"], category, functions, accepted, line.row.get("question"))
    except DataError as error:
        raise DataError(f"{line} and {answer}: {error}") from None


def unknown_id(line: JsonLine, case_id: str) -> DataError:
    """The error for an answer to a question that the data folder does not have."""
    category = category_of_id(case_id)
    if category is not None and category.rule not in (*SINGLE_TURN, "multi_turn"):
        return DataError(f"{line}: {case_id} is of {category.name}, which is not scored here. Leave such rows out.")
    where = f"category {category.name}" if category else "no category of BFCL"
    return DataError(f"{line}: unknown id {case_id} ({where}). data= must hold the question.")
