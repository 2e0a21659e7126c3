"""BFCL's files: questions and accepted answers of a data folder, and answers of models.

All are JSON lines, also those named `.json`, and may be gzipped. A data folder is laid out as published:
`BFCL_v4_<category>.json` (or `BFCL_v3_`, with that version's names), and below `possible_answer/` files of the same
names. Multi-turn questions are read by `multi_turn`, since they need more files; agentic ones are not scored here.
Reading is a row at a time.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from ttpa.benchmarks.bfcl.cases import Case
from ttpa.benchmarks.bfcl.categories import SINGLE_TURN, Category, category_of_id, find_category
from ttpa.errors import DataError
from ttpa.io import dumps

_NAME = re.compile(r"BFCL_v(\d+)_(\w+?)\.jsonl?(?:\.gz)?")
_TOKEN = re.compile(r'"(?:[^"\\]+|\\.?)*"?|[\[\]{}]', re.DOTALL)
"""A text, also one that is cut off, or a bracket."""
_DEEP = 500
"""Python reads JSON of about 1,000 levels, less what its own calls take."""
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of a file and where it stands; `str(line)` is `file:number`."""

    file: str
    number: int
    row: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a model.

    Args:
        case_id: the question's id.
        result: a text, or a list of `{name: json}`.
        function_calling: whether it came through a function-calling interface; None when the row does not say.
        dots_as_underscores: whether names were sent with `_` for every dot; None when the row does not say.
    """

    case_id: str
    result: Any
    function_calling: bool | None = None
    dots_as_underscores: bool | None = None


def read_lines(path: str | Path, *, answers: bool = False) -> Iterator[Line]:
    """The rows of a JSON-lines file, gzipped or not; "-" is standard input. Empty lines are passed over.

    Args:
        path: The file.
        answers: Whether models wrote what is in the rows: then numbers without end and brackets without bottom in them
            are no error of the file, but None.

    Raises:
        DataError: the file cannot be read, is cut, or has a line that is no JSON object in UTF-8; names file and line.
    """
    name = "standard input" if str(path) == "-" else str(path)
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = _answer_row(line.decode("utf-8")) if answers else json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{name}:{number}: not UTF-8 ({error}). Save the file as UTF-8.") from None
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{name}:{number}: not JSON ({error}). Write the line again.") from None
                if not isinstance(row, dict):
                    raise DataError(f"{name}:{number}: a {type(row).__name__} where a row, a JSON object, belongs.")
                yield Line(file=name, number=number, row=row)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}:{number + 1}: file cut or damaged ({error}). Write it again.") from None


def _answer_row(text: str) -> Any:
    """The row of an answer; what JSON's rules allow and Python does not read in it is None.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return json.loads(_shallow(text), parse_int=_int)


def _int(digits: str) -> int | None:
    try:
        return int(digits)
    except ValueError:
        return None  # too long


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


@contextmanager
def _open(path: str | Path) -> Iterator[Iterable[bytes]]:
    """The lines of a file or of standard input, unzipped; whether they are gzipped shows in the first two bytes."""
    with ExitStack() as stack:
        raw = cast("BufferedReader", sys.stdin.buffer) if str(path) == "-" else stack.enter_context(open(path, "rb"))
        zipped = raw.peek(2)[:2] == _GZIP
        yield stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw


def read_answer(line: Line) -> Answer:
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
        result, calling = _calls_of(row["calls"], line) or result, True
    return Answer(case_id=case_id, result=result, function_calling=calling, dots_as_underscores=dots)


def _calls_of(calls: Any, line: Line) -> list[dict[str, str]]:
    """The parsed calls of a candidate in the form of a function-calling interface; none where it made none."""
    try:
        found = json.loads(calls) if isinstance(calls, str) else calls or []
        return [{one["name"]: dumps(one["arguments"])} for one in found]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise DataError(
            f"{line}: calls are no list of names and arguments. Take candidates.jsonl as written."
        ) from None


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
    files = question_files(folder)
    for path, category in files:
        if category.rule not in SINGLE_TURN:
            continue
        answers = read_answers(folder, path) if category.has_answers else {}
        for line in read_lines(path):
            case = _case(line, category, answers)
            if case.case_id in cases:
                raise DataError(f"{line}: {case.case_id} is there twice. Keep one version of a category in a folder.")
            cases[case.case_id] = case
        check_used(answers, cases, path)
    if not cases and not any(category.rule == "multi_turn" for _, category in files):
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


def read_answers(folder: Path, questions: Path) -> dict[str, Line]:
    """The rows of accepted answers that belong to a file of questions, by id.

    Raises:
        DataError: no such file, an id twice, or a row that is not of the published form; names file and line.
    """
    stem = questions.name.removesuffix(".gz")
    names = (stem, f"{stem}.gz")
    path = next(
        (folder / "possible_answer" / name for name in names if (folder / "possible_answer" / name).is_file()), None
    )
    if path is None:
        raise DataError(f"{folder / 'possible_answer' / stem}: no such file. Answers belong beside the questions.")
    answers: dict[str, Line] = {}
    for line in read_lines(path):
        case_id = line.row.get("id")
        if not isinstance(case_id, str) or not isinstance(line.row.get("ground_truth"), list):
            raise DataError(f"{line}: no id and ground_truth. Take the file as published.")
        if case_id in answers:
            raise DataError(f"{line}: {case_id} is there twice. Take the file as published.")
        answers[case_id] = line
    return answers


def check_used(answers: Mapping[str, Line], cases: Collection[str], questions: Path) -> None:
    """Refuses accepted answers to a question that is not there.

    Raises:
        DataError: there is one; names its file and line.
    """
    for case_id, line in answers.items():
        if case_id not in cases:
            raise DataError(f"{line}: no question {case_id} in {questions}. Take both from one release.")


def _case(line: Line, category: Category, answers: Mapping[str, Line]) -> Case:
    case_id, functions = line.row.get("id"), line.row.get("function")
    known = isinstance(functions, list) and all(isinstance(one, dict) and "name" in one for one in functions)
    if not isinstance(case_id, str) or not isinstance(functions, list) or not known:
        raise DataError(f"{line}: no id and function documents. Take the file as published.")
    if not category.has_answers:
        return Case(case_id, category, functions)
    answer = answers.get(case_id)
    if answer is None:
        raise DataError(f"{line}: no accepted answers for {case_id}. Take questions and answers from one release.")
    try:
        return Case(case_id, category, functions, answer.row["ground_truth"])
    except DataError as error:
        raise DataError(f"{line} and {answer}: {error}") from None


def unknown_id(line: Line, case_id: str) -> DataError:
    """The error for an answer to a question that the data folder does not have."""
    category = category_of_id(case_id)
    if category is not None and category.rule not in (*SINGLE_TURN, "multi_turn"):
        return DataError(f"{line}: {case_id} is of {category.name}, which is not scored here. Leave such rows out.")
    where = f"category {category.name}" if category else "no category of BFCL"
    return DataError(f"{line}: unknown id {case_id} ({where}). data= must hold the question.")
