"""BFCL's multi-turn categories: the questions, the conversation with a policy, and the judgement of a finished one.

A question has several turns, and a turn as many steps as the model makes calls in: its calls are run on the question's
backends (`multi_turn_run`), the results are handed back, and a step without a call ends the turn. A turn of too many
steps breaks the conversation off. Withheld functions are added at their turn. Judged is, turn by turn, whether the
backends are in the state that the expected calls bring them to and whether the results of these calls were seen. The
error types do not say which call is wrong: several ways lead to a state. `multi_turn:execution_limit`, a call that does
not end, is not an official one; the official checker would hang.

Everything here needs the extra `bfcl` (`official`). Function documents are read from `multi_turn_func_doc/` in the data
folder and, where there is none, from the installed package. The backends are version 4's, also for questions of version
3. What this module does not do: the categories on memory and web search, or the few functions a row names as excluded,
which the official tool shows, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.cases import judged_row, tool_of
from ttpa.benchmarks.bfcl.categories import Category
from ttpa.benchmarks.bfcl.check import Verdict, refused
from ttpa.benchmarks.bfcl.files import read_category
from ttpa.benchmarks.bfcl.multi_turn_run import CLASSES, compare, execute, read_step
from ttpa.calls.six_errors import show
from ttpa.errors import DataError
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.records import Candidate, Message, Sample

DOCUMENTS = "multi_turn_func_doc"

_LIMIT = refused("multi_turn:execution_limit", "the calls take too long, or too much memory, to be run")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurnCase:
    """A question of several turns."""

    case_id: str
    category: Category
    turns: tuple[tuple[Message, ...], ...]
    """Messages of the user, turn by turn; none in a turn at which functions are added."""
    functions: tuple[Document, ...]
    """Documents of the functions that may be called."""
    added: Mapping[int, tuple[Document, ...]]
    """Turn, counted from 0 -> documents of the functions that are withheld until then."""
    classes: tuple[str, ...]
    """Names of the backends."""
    initial_config: Mapping[str, Any]
    """Class -> what its instance begins with."""
    truth: tuple[tuple[str, ...], ...]
    """Expected calls of every turn, as text; none where nothing can be done yet."""

    @property
    def backends(self) -> dict[str, Any]:
        """What the process that runs calls is told."""
        return {"id": self.case_id, "classes": self.classes, "initial_config": self.initial_config}

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """The verdict on a finished conversation, whatever it holds.

        Args:
            result: A list of turns, each a list of steps: texts, or lists of `{name: json}`.
            function_calling: Whether it came through a function-calling interface; None decides step by step, by type.
            dots_as_underscores: Plays no part: no function of these categories has a dot in its name.
        """
        if not isinstance(result, list):
            return refused("multi_turn:inference_error", "the result is no list of turns")
        if len(result) != len(self.truth):
            sentence = f"{len(result)} turns, expected {len(self.truth)}: the conversation was broken off"
            return refused("multi_turn:force_terminated", sentence)
        turns = []
        for turn in result:
            steps = (read_step(step, function_calling) for step in (turn if isinstance(turn, list) else ()))
            turns.append([calls for calls in steps if calls])
        found = compare(self.backends, turns, self.truth)
        if found is None:
            return _LIMIT
        at, error_type = found["turn"], found["error_type"]
        if error_type is None:
            return Verdict(None, "states and results are as after the expected calls")
        sentence = {
            "multi_turn:empty_turn_model_response": f"no call in turn {at + 1}, {len(self.truth[at])} expected",
            "multi_turn:instance_state_mismatch": f"the state after turn {at + 1} differs in {show(found['what'])}",
        }.get(error_type, f"after turn {at + 1} an expected result is missing: {show(found['what'])}")
        return refused(error_type, sentence)


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
    return read_category(folder, category, lambda line, found, answer: _case(line, found, answer, folder))


def _case(line: JsonLine, category: Category, answer: JsonLine | None, folder: Path) -> MultiTurnCase:
    row = line.row
    classes, config = row.get("involved_classes"), row.get("initial_config", {})
    if not isinstance(config, dict) or answer is None:
        raise DataError(f"{line}: initial_config is no object. Take the file as published.")
    if not isinstance(classes, list) or not classes or not all(name in CLASSES for name in map(str, classes)):
        raise DataError(f"{line}: involved_classes={classes}: known are {', '.join(sorted(CLASSES))}.")
    truth = answer.row["ground_truth"]
    if not all(isinstance(calls, list) and all(isinstance(call, str) for call in calls) for calls in truth):
        raise DataError(f"{answer}: ground_truth is no list of turns of calls. Take the file as published.")
    turns = row.get("question")
    if not isinstance(turns, list) or len(turns) != len(truth) or not all(_messages(turn) for turn in turns):
        raise DataError(f"{line}: question is no list of {len(truth)} turns of messages, one for each in {answer}.")
    functions = [one for name in classes for one in _documents_of(folder, name)]
    added = _withheld(line, row.get("missed_function", {}), functions, len(turns))
    return MultiTurnCase(
        case_id=row["id"],
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


def _withheld(line: JsonLine, missed: Any, functions: list[Document], turns: int) -> dict[int, tuple[Document, ...]]:
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


class Conversation:
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
        self._tools = [] if self._official else [tool_of(function) for function in case.functions]
        self._result: list[list[Any]] = [[]]
        self._steps: list[list[str]] = []
        self._answers: list[Candidate] = []
        self._over = self._ended = False
        self._begin_turn()

    def sample(self) -> Sample | None:
        """What is to be answered next; None when the conversation is over."""
        return None if self._over else self._sample()

    def _sample(self) -> Sample:
        return Sample(
            id=self._case.case_id,
            tools=tuple(self._tools),
            messages=tuple(self._messages),
            target=(),
            source=self._case.category.name,
        )

    def take(self, candidate: Candidate) -> None:
        """Runs the answer's calls; without any, or without end, the turn is over."""
        self._answers.append(candidate)
        given = () if self._official else candidate.calls or ()
        answer: Any = [{call.name: dumps(call.arguments)} for call in given] or candidate.text
        self._result[-1].append(answer)
        self._messages.append(Message(role="assistant", content=candidate.text, calls=given))
        calls = read_step(answer, function_calling=not self._official)
        if not calls:
            self._over = len(self._result) == len(self._case.turns)
            if not self._over:
                self._result.append([])
                self._begin_turn()
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

    def row(self) -> dict[str, Any]:
        """The judgement of the conversation, when it is over."""
        case = self._case
        verdict = _LIMIT if self._ended else case.judge(self._result, function_calling=not self._official)
        return judged_row(self._sample(), case.category, verdict, self._result, self._answers)

    def _begin_turn(self) -> None:
        turn = len(self._result) - 1
        messages: Iterable[Message] = self._case.turns[turn]
        added = self._case.added.get(turn)
        if added is not None:
            if not self._official:
                self._tools += [tool_of(function) for function in added]
            messages = [Message(role="user", content=official.added_functions_text(added, listed=self._official))]
        if turn == 0 and self._official:
            rows = [{"role": message.role, "content": message.content} for message in messages]
            rows = official.official_messages(rows, self._case.functions, self._case.category)
            messages = [Message(role=row["role"], content=row["content"]) for row in rows]
        self._messages += messages
