"""BFCL's multi-turn categories: questions, the conversation with a policy, and the judgement of a finished one.

All of it needs the extra `bfcl`, whose backends are version 4's, also for questions of version 3.
"""

from collections.abc import Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.backends import Backend, read_step, run
from ttpa.benchmarks.bfcl.cases import Form, Function, checked, judged_row, packed, question_rows, tool_of
from ttpa.benchmarks.bfcl.categories import Category
from ttpa.benchmarks.bfcl.check import Verdict, refused
from ttpa.calls.six_errors import show
from ttpa.io import dumps, read_lines
from ttpa.records import Candidate, Message, Sample

DOCUMENTS = "multi_turn_func_doc"

# No official error: the official checker would hang.
_LIMIT = refused("multi_turn:execution_limit", "the calls take too long, or too much memory, to be run")


class Said(Form):
    role: str
    content: str


class MultiTurnCase(Form):
    """A question of several turns, as its row has it, with the expected calls of every turn."""

    case_id: str = Field(alias="id")
    category: Category
    documents: list[dict[str, Any]]  # of all functions, those that are withheld at first included
    involved_classes: Annotated[list[Backend], Field(min_length=1)]
    initial_config: dict[str, Any] = {}  # class -> what its instance begins with
    question: list[list[Said]]  # nothing in a turn at which functions are added
    missed_function: dict[str, list[str]] = {}  # turn, counted from 0 -> names of the functions withheld until then
    truth: list[list[str]] = Field(alias="ground_truth")  # none in a turn in which nothing can be done yet

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        known = {document["name"] for document in self.documents}
        if not all(turn.isdecimal() and known.issuperset(names) for turn, names in self.missed_function.items()):
            raise ValueError("missed_function has not turns with names of the question's functions")
        if len(self.truth) != len(self.question):
            raise ValueError("ground_truth has other turns than the question")
        return self

    @property
    def backends(self) -> dict[str, Any]:
        return {"id": self.case_id, "classes": self.involved_classes, "initial_config": self.initial_config}

    def added(self, turn: int) -> list[dict[str, Any]]:
        """Documents of the functions that come with a turn; -1: that are there from the beginning."""
        at = {name: int(when) for when, names in self.missed_function.items() for name in names}
        return [document for document in self.documents if at.get(document["name"], -1) == turn]

    def judge(self, result: Any, *, function_calling: bool | None = None, dots_as_underscores: bool = False) -> Verdict:
        """The verdict on a finished conversation, a list of turns, each a list of steps; no name has a dot."""
        if not isinstance(result, list):
            return refused("multi_turn:inference_error", "the result is no list of turns")
        if len(result) != len(self.truth):
            sentence = f"{len(result)} turns, expected {len(self.truth)}: the conversation was broken off"
            return refused("multi_turn:force_terminated", sentence)
        read = partial(read_step, function_calling=function_calling)
        turns = [[*filter(None, map(read, turn if isinstance(turn, list) else ()))] for turn in result]
        found = run(self.backends, turns=turns, truth=self.truth)
        if found is None:
            return _LIMIT
        error, at, what = found["error_type"], found["turn"] + 1, show(found["what"])
        told = {
            None: "states and results are as after the expected calls",
            "multi_turn:empty_turn_model_response": f"no call in turn {at}, {len(self.truth[at - 1])} expected",
            "multi_turn:instance_state_mismatch": f"after turn {at} the state differs in {what}",
        }.get(error, f"after turn {at} an expected result is missing: {what}")
        return refused(error, told) if error else Verdict(None, told)


@lru_cache(maxsize=8)
def read_multi_turn(folder: Path, category: Category) -> Mapping[str, MultiTurnCase]:
    """The questions of a multi-turn category in a data folder, by id; none where the folder has no file of it.

    Function documents that the folder does not have are the installed package's.
    """
    package = official.data_folder()
    from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING as FILES

    @cache
    def documents(name: str) -> list[Mapping[str, Any]]:
        path = packed(folder / DOCUMENTS / FILES[name])
        lines = read_lines(path if path.is_file() else package / DOCUMENTS / FILES[name])
        return [line.row for line in lines if checked(Function, line.row, line)]

    cases = {}
    for line, truth in question_rows(folder, category, set()):
        classes = line.row.get("involved_classes")
        known = [name for name in classes if name in FILES] if isinstance(classes, list) else []
        more = {"documents": [one for name in known for one in documents(name)], "category": category}
        cases[line.row["id"]] = checked(MultiTurnCase, {**line.row, **more, "ground_truth": truth}, line)
    return cases


class Conversation:
    """A conversation on a question, a `Dialogue`.

    With `prompt="training"`, functions are tools, and each result is a message of the role tool. With "official" there
    is BFCL's system prompt, texts are read as calls, and all results of a step are in one message of the user.
    """

    def __init__(self, case: MultiTurnCase, prompt: str = "training") -> None:
        self._case = case
        self._official = prompt == "official"
        self._texts = official.texts()
        self._messages: list[Message] = []
        self._tools = [] if self._official else [tool_of(function) for function in case.added(-1)]
        self._result: list[list[Any]] = []
        self._steps: list[list[str]] = []
        self._answers: list[Candidate] = []
        self._over = self._ended = False
        self._begin_turn()

    def sample(self) -> Sample | None:
        """What is to be answered next; None when the conversation is over."""
        if self._over:
            return None
        case, tools, messages = self._case, tuple(self._tools), tuple(self._messages)
        return Sample(id=case.case_id, tools=tools, messages=messages, target=(), source=case.category.name)

    def take(self, candidate: Candidate) -> None:
        """Runs the answer's calls; without any, or without end, the turn is over."""
        self._answers.append(candidate)
        given = () if self._official else candidate.calls or ()
        text = official.reply(candidate.text) if self._official else candidate.text
        answer: Any = [{call.name: dumps(call.arguments)} for call in given] or text
        self._result[-1].append(answer)
        self._messages.append(Message(role="assistant", content="" if given else text, calls=given))
        calls = read_step(answer, function_calling=not self._official)
        if not calls:
            self._begin_turn()
            return
        self._steps.append(calls)
        results = run(self._case.backends, steps=self._steps)
        self._ended = results is None
        if self._official:
            told = zip(calls, results or (), strict=False)
            text = repr([{"role": "tool", "name": call, "content": result} for call, result in told])
            self._messages.append(Message(role="user", content=text))
        else:
            self._messages += [Message(role="tool", content=result) for result in results or ()]
        # The limit is looked at after a step, so that one more is run: officially, too.
        self._over = self._ended or len(self._result[-1]) > self._texts.MAXIMUM_STEP_LIMIT

    def row(self) -> dict[str, Any]:
        """The judgement of the conversation, when it is over."""
        case = self._case
        verdict = _LIMIT if self._ended else case.judge(self._result, function_calling=not self._official)
        return judged_row(case.case_id, case.category, verdict, self._result, self._answers)

    def _begin_turn(self) -> None:
        case, turn = self._case, len(self._result)
        self._over = turn == len(case.question)
        if self._over:
            return
        self._result.append([])
        rows = [one.model_dump() for one in case.question[turn]]
        if str(turn) in case.missed_function:
            added, text = case.added(turn), self._texts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
            if self._official:
                text = self._texts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING.format(functions=added)
            else:
                self._tools += [tool_of(function) for function in added]
            rows = [{"role": "user", "content": text}]
        if turn == 0 and self._official:
            rows = official.official_messages(rows, case.added(-1), case.category)
        self._messages += [Message(**row) for row in rows]
