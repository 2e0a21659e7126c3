"""BFCL's multi-turn categories: the questions, the conversation with a policy, and the judgement of a finished one.

A question has several turns, and a turn as many steps as the model makes calls in: its calls are run on the question's
backends (`multi_turn_run`), the results are handed back, and a step without a call ends the turn. A turn of too many
steps breaks the conversation off. Withheld functions are added at their turn. Judged is, turn by turn, whether the
backends are in the state that the expected calls bring them to and whether the results of these calls were seen.

    official error type                           | of the six
    multi_turn:inference_error                    | format: the result is no list of turns
    multi_turn:force_terminated                   | call_count: too many steps, so there are not all turns
    multi_turn:empty_turn_model_response          | call_count: calls are expected in the turn, none is made
    multi_turn:instance_state_mismatch            | parameter_value: calls with another effect
    multi_turn:execution_response_mismatch        | parameter_value: calls with another result
    multi_turn:execution_limit (not an official one, which would hang) | parameter_value: a call that does not end

The last three do not say which call it is: several ways lead to a state, so calls are not compared one with another.

Everything here needs the extra `bfcl` (`official`). Function documents are read from `multi_turn_func_doc/` in the data
folder and, where there is none, from the installed package. The backends are version 4's, also for questions of
version 3. What this module does not do: the categories on memory and
web search, or the few functions a row names as excluded, which the official tool shows, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.categories import Category
from ttpa.benchmarks.bfcl.files import Line, check_used, question_files, read_answers, read_lines
from ttpa.benchmarks.bfcl.multi_turn_run import CLASSES, compare, execute, read_step
from ttpa.benchmarks.bfcl.verdict import Fault, Verdict, accepted, refused
from ttpa.errors import DataError
from ttpa.io import dumps
from ttpa.records import Candidate, Message, Sample, ToolSpec
from ttpa.run.evaluation import Row

DOCUMENTS = "multi_turn_func_doc"

_RIGHT = accepted("states and results are as after the expected calls")
_LIMIT = refused(Fault("multi_turn:execution_limit", "the calls take too long, or too much memory, to be run"))

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurnCase:
    """A question of several turns.

    Args:
        case_id: as in the files.
        category: of the question.
        turns: messages of the user, turn by turn; none in a turn at which functions are added.
        functions: documents of the functions that may be called.
        added: turn, counted from 0 -> documents of the functions that are withheld until then.
        classes: names of the backends.
        initial_config: class -> what its instance begins with.
        truth: expected calls of every turn, as text; none where nothing can be done yet.
    """

    case_id: str
    category: Category
    turns: tuple[tuple[Message, ...], ...]
    functions: tuple[Document, ...]
    added: Mapping[int, tuple[Document, ...]]
    classes: tuple[str, ...]
    initial_config: Mapping[str, Any]
    truth: tuple[tuple[str, ...], ...]

    @property
    def backends(self) -> dict[str, Any]:
        """What the process that runs calls is told."""
        return {"id": self.case_id, "classes": self.classes, "initial_config": self.initial_config}

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """See `judge_result`; no function of these categories has a dot in its name."""
        return judge_result(self, result, function_calling)


def judge_result(case: MultiTurnCase, result: Any, function_calling: bool | None = None) -> Verdict:
    """The verdict on a finished conversation, whatever it holds.

    Args:
        case: The question.
        result: A list of turns, each a list of steps: texts, or lists of `{name: json}`.
        function_calling: Whether it came through a function-calling interface; None decides step by step, by type.
    """
    if not isinstance(result, list):
        return refused(Fault("multi_turn:inference_error", "the result is no list of turns"))
    if len(result) != len(case.truth):
        sentence = "{} turns, expected {}: the conversation was broken off"
        return refused(Fault("multi_turn:force_terminated", sentence, (len(result), len(case.truth))))
    turns = []
    for turn in result:
        steps = (read_step(step, function_calling) for step in (turn if isinstance(turn, list) else ()))
        turns.append([calls for calls in steps if calls])
    found = compare(case.backends, turns, case.truth)
    if found is None:
        return _LIMIT
    if found["error_type"] is None:
        return _RIGHT
    sentence = {
        "multi_turn:empty_turn_model_response": "no call in turn {}, {} expected",
        "multi_turn:instance_state_mismatch": "after turn {} the state is not the expected one in {}",
        "multi_turn:execution_response_mismatch": "after turn {} an expected result is missing: {}",
    }[found["error_type"]]
    turn = found["turn"]
    about = len(case.truth[turn]) if found["error_type"].endswith("empty_turn_model_response") else found["what"]
    return refused(Fault(found["error_type"], sentence, (turn + 1, about)))


# --- files -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def read_multi_turn(folder: Path, category: Category) -> Mapping[str, MultiTurnCase]:
    """The questions of a multi-turn category in a data folder, by id; none where the folder has no file of it.

    Raises:
        ConfigError: the extra `bfcl` is missing.
        DataError: a question without answers or answers without a question, an id twice, or a row that is not of the
            published form; names file and line.
    """
    official.require()
    cases: dict[str, MultiTurnCase] = {}
    for path, found in question_files(folder):
        if found != category:
            continue
        answers = read_answers(folder, path)
        for line in read_lines(path):
            case = _case(line, category, answers, folder)
            if case.case_id in cases:
                raise DataError(f"{line}: {case.case_id} is there twice. Keep one version of a category in a folder.")
            cases[case.case_id] = case
        check_used(answers, cases, path)
    return cases


def _case(line: Line, category: Category, answers: Mapping[str, Line], folder: Path) -> MultiTurnCase:
    row = line.row
    case_id, classes, config = row.get("id"), row.get("involved_classes"), row.get("initial_config", {})
    if not isinstance(case_id, str) or not isinstance(config, dict):
        raise DataError(f"{line}: no id and initial_config. Take the file as published.")
    if not isinstance(classes, list) or not classes or not all(name in CLASSES for name in map(str, classes)):
        raise DataError(f"{line}: involved_classes={classes}: known are {', '.join(sorted(CLASSES))}.")
    answer = answers.get(case_id)
    if answer is None:
        raise DataError(f"{line}: no accepted answers for {case_id}. Take questions and answers from one release.")
    truth = answer.row["ground_truth"]
    if not all(isinstance(calls, list) and all(isinstance(call, str) for call in calls) for calls in truth):
        raise DataError(f"{answer}: ground_truth is no list of turns of calls. Take the file as published.")
    turns = row.get("question")
    if not isinstance(turns, list) or len(turns) != len(truth) or not all(_messages(turn) for turn in turns):
        raise DataError(f"{line}: question is no list of {len(truth)} turns of messages, one for each in {answer}.")
    functions = [one for name in classes for one in _documents_of(folder, name)]
    added = _withheld(line, row.get("missed_function", {}), functions, len(turns))
    return MultiTurnCase(
        case_id=case_id,
        category=category,
        turns=tuple(tuple(Message(role=one["role"], content=one["content"]) for one in turn) for turn in turns),
        functions=tuple(functions),
        added=added,
        classes=tuple(classes),
        initial_config=config,
        truth=tuple(tuple(calls) for calls in truth),
    )


def _messages(turn: Any) -> bool:
    return isinstance(turn, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in turn
    )


def _withheld(line: Line, missed: Any, functions: list[Document], turns: int) -> dict[int, tuple[Document, ...]]:
    """Takes the documents of withheld functions out of the list."""
    added: dict[int, tuple[Document, ...]] = {}
    for turn, names in missed.items() if isinstance(missed, dict) else [("missed_function", missed)]:
        known = {function["name"]: function for function in functions}
        if not str(turn).isdecimal() or int(turn) >= turns or not isinstance(names, list) or not set(names) <= {*known}:
            raise DataError(f"{line}: missed_function={missed}: not turns with names of the question's functions.")
        added[int(turn)] = tuple(known[name] for name in names)
        functions[:] = [function for function in functions if function["name"] not in names]
    return added


def _documents_of(folder: Path, class_name: str) -> tuple[Document, ...]:
    from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING

    name = MULTI_TURN_FUNC_DOC_FILE_MAPPING[class_name]
    places = [folder / DOCUMENTS / name, folder / DOCUMENTS / f"{name}.gz", official.data_folder() / DOCUMENTS / name]
    return _documents(next((place for place in places if place.is_file()), places[0]))


@lru_cache(maxsize=32)
def _documents(path: Path) -> tuple[Document, ...]:
    found = []
    for line in read_lines(path):
        if not isinstance(line.row.get("name"), str) or not isinstance(line.row.get("description"), str):
            raise DataError(f"{line}: no name and description of a function. Take the file as published.")
        found.append(line.row)
    return tuple(found)


# --- conversations ---------------------------------------------------------------------------------------------------


class Dialogue:
    """A conversation on a question, as `ttpa.run.evaluation.Dialogue` describes it.

    Args:
        case: The question.
        prompt: "training": functions as tools, calls as the policy was trained to write them, each result a message of
            the role tool. "official": BFCL's system prompt, answers read as those of a prompted model, and all results
            of a step in one message of the user, as for models behind an interface.
    """

    def __init__(self, case: MultiTurnCase, prompt: str = "training") -> None:
        self._case = case
        self._official = prompt == "official"
        self._limit = official.step_limit()
        self._messages: list[Message] = []
        self._tools: list[ToolSpec] = []
        if not self._official:
            self._add_tools(case.functions)
        self._result: list[list[Any]] = [[]]
        self._steps: list[list[str]] = []
        self._over = self._ended = False
        self._tokens, self._texts, self._finish = 0, list[str](), "stop"
        self._begin_turn()

    def sample(self) -> Sample | None:
        """What is to be answered next; None when the conversation is over."""
        if self._over:
            return None
        return Sample(
            id=self._case.case_id,
            tools=tuple(self._tools),
            messages=tuple(self._messages),
            target=(),
            source=self._case.category.name,
        )

    def take(self, candidate: Candidate) -> None:
        """Runs the answer's calls; without any, or without end, the turn is over."""
        self._tokens += len(candidate.token_ids)
        self._texts.append(candidate.text)
        self._finish = candidate.finish if self._finish == "stop" else self._finish
        answer: Any = candidate.text
        given = () if self._official else candidate.calls or ()
        if given:
            answer = [{call.name: dumps(call.arguments)} for call in given]
        self._result[-1].append(answer)
        self._messages.append(Message(role="assistant", content=candidate.text, calls=given))
        calls = read_step(answer, function_calling=not self._official)
        if not calls:
            self._next_turn()
            return
        self._steps.append(calls)
        results = execute(self._case.backends, self._steps)
        if results is None:
            self._over = self._ended = True
            return
        if self._official:
            self._messages.append(Message(role="user", content=official.results_text(calls, results)))
        else:
            self._messages += [Message(role="tool", content=result) for result in results]
        # The limit is looked at after a step, so that one more is run: officially, too.
        self._over = len(self._result[-1]) > self._limit

    def row(self) -> Row:
        """The judgement of the conversation, when it is over."""
        case = self._case
        verdict = _LIMIT if self._ended else judge_result(case, self._result, function_calling=not self._official)
        return {
            "id": case.case_id,
            "cluster": case.case_id,
            "band": "",
            "tags": [],
            "finish": self._finish,
            "tokens": self._tokens,
            "text": "\n".join(self._texts),
            "category": case.category.name,
            "exact": verdict.valid,
            "errors": [verdict.six_error] if verdict.six_error else [],
            "error_type": verdict.error_type,
            "explanation": verdict.explanation,
            "result": self._result,
        }

    def _next_turn(self) -> None:
        if len(self._result) == len(self._case.turns):
            self._over = True
            return
        self._result.append([])
        self._begin_turn()

    def _begin_turn(self) -> None:
        turn = len(self._result) - 1
        messages: Iterable[Message] = self._case.turns[turn]
        added = self._case.added.get(turn)
        if added is not None:
            if not self._official:
                self._add_tools(added)
            messages = [Message(role="user", content=official.added_functions_text(added, listed=self._official))]
        if turn == 0 and self._official:
            rows = [{"role": message.role, "content": message.content} for message in messages]
            rows = official.official_messages(rows, self._case.functions, self._case.category)
            messages = [Message(role=row["role"], content=row["content"]) for row in rows]
        self._messages += messages

    def _add_tools(self, functions: Iterable[Document]) -> None:
        from ttpa.benchmarks.bfcl.evaluation import tool_of

        self._tools += [tool_of(function) for function in functions]
