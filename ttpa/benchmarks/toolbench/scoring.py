"""From votes to the two official forms of each number, and their summary.

Status of an answer, per vote: unsolved without asking where it does not end with a Finish call, is empty or gives up;
otherwise the judge says solved, unsure or unsolved.

Pass rate (ToolEval, GitHub `OpenBMB/ToolBench`), per vote: an answer without a Finish call fails; a solved one passes;
one that is unsolved fails if the query is solvable and passes if it is not; where the status or the solvability is
unsure, a coin decides: here a hash of query id and vote, so that it falls alike in every run. A query passes if its
passes are at least its fails. The official code counts an even vote as a pass in the headline number but writes a
random label for it in its CSV; `pass_rate` is the headline, `pass_rate_csv` the other (with our coin), `ties` says for
how many queries they can differ.

SoPR (StableToolBench): solved 1, unsure 0.5, unsolved 0; mean over queries, then over votes.

Preference over a reference answer to the same query, per vote: a solved answer wins over one that is unsure, that one
over an unsolved one; between equal ones the judge compares. More wins than losses are a win, as many are a tie; ties
are no wins and are reported apart, as the official code does. SoWR (StableToolBench) is this. Win rate (ToolEval) asks
first whether one answer has passed (its CSV label) and the other has not: then that decides. Which answer is shown
first changes with a hash of query id and vote. Queries that lack one of the two answers are in neither number; the
official code gives them to the other side (`missing` and `unreferenced` say how many).

Six errors: there is no gold call here. A call of `answer_details` is held against the schema of its tool in
`available_tools`: `tool_name` no such tool, `missing_required`, `parameter_name`, `parameter_type`, `parameter_value`
only where a schema lists the allowed values, `format` arguments that are no object. `call_count` cannot be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ttpa.benchmarks.toolbench.answers import SUBSETS, Answer
from ttpa.benchmarks.toolbench.judge import Judge
from ttpa.benchmarks.toolbench.prompts import better_question, solvable_question, status_question
from ttpa.calls.schema import check_call
from ttpa.calls.six_errors import LABELS, SIX, read_call
from ttpa.results.stats import share

MEASURES = ("pass_rate", "sopr", "win_rate", "sowr")
COMPARING = frozenset({"win_rate", "sowr"})
"""Measures that need a reference answer."""
POINTS = {"solved": 1.0, "unsure": 0.5, "unsolved": 0.0}
_SIX_OF = {
    "unknown_tool": "tool_name",
    "missing_required": "missing_required",
    "unknown_parameter": "parameter_name",
    "wrong_type": "parameter_type",
    "not_in_enum": "parameter_value",
}

Row = dict[str, Any]


def coin(what: str, query_id: str, vote: int) -> bool:
    """A fair coin that falls alike in every run.

    Example:
        >>> coin("pass", "42", 0) == coin("pass", "42", 0)
        True
    """
    return hashlib.sha256(f"{what}:{query_id}:{vote}".encode("utf-8", "surrogatepass")).digest()[0] < 128


def outcome(results: Sequence[str]) -> str:
    """Win, lose or tie of several votes: ties among them count for nobody.

    Example:
        >>> outcome(["win", "tie", "tie"]), outcome(["win", "lose", "tie"])
        ('win', 'tie')
    """
    wins, losses = results.count("win"), results.count("lose")
    return "win" if wins > losses else "lose" if losses > wins else "tie"


def step_errors(answer: Answer) -> list[str]:
    """Labels that some call of the answer shows, in the order of the six."""
    found = set()
    for step in answer.steps:
        call = read_call(step.call)
        if call is None:
            found.add("format")
        else:
            found |= {_SIX_OF[problem.kind] for problem in check_call(call, answer.tools)}
    return [label for label in SIX if label in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The votes on one answer. `passed` is empty where the pass rate was not wanted.

    Args:
        statuses: Solved, unsure or unsolved, by vote.
        passed: ToolEval's verdict, by vote.
        label: Whether the query has passed in ToolEval's CSV, where a coin decides an even vote.
    """

    statuses: tuple[str, ...]
    passed: tuple[bool, ...] = ()
    label: bool = False

    @property
    def headline(self) -> bool:
        """Whether the query has passed in ToolEval's headline."""
        return 2 * sum(self.passed) >= len(self.passed)


class Panel:
    """Asks a judge for the votes on an answer; counts replies that could not be read.

    Args:
        judge: Who is asked.
        votes: How often.
        known_solvable: The queries are known to be solvable, so that nobody is asked about that.
    """

    def __init__(self, judge: Judge, votes: int, known_solvable: bool) -> None:
        self.judge, self.votes, self.known_solvable, self.malformed = judge, votes, known_solvable, 0

    def verdict(self, answer: Answer, side: str, *, passing: bool) -> Verdict:
        """The votes on an answer; `side` names its coins, `passing` asks for the pass rate too."""
        statuses = tuple(self._status(answer, vote) for vote in range(self.votes))
        if not passing:
            return Verdict(statuses=statuses)
        passed = tuple(self._passed(answer, status, side, vote) for vote, status in enumerate(statuses))
        even = 2 * sum(passed) == len(passed)
        label = coin(f"label {side}", answer.query_id, 0) if even else 2 * sum(passed) > len(passed)
        return Verdict(statuses=statuses, passed=passed, label=label)

    def preferences(self, ours: Answer, mine: Verdict, reference: Answer, theirs: Verdict) -> list[str]:
        """Win, lose or tie by vote."""
        found = []
        for vote, (left, right) in enumerate(zip(mine.statuses, theirs.statuses, strict=True)):
            if left == right:
                found.append(self._compared(ours, reference, vote))
            else:
                found.append("win" if POINTS[left] > POINTS[right] else "lose")
        return found

    def _status(self, answer: Answer, vote: int) -> str:
        if answer.hopeless:
            return "unsolved"
        return self._read(self.judge.ask(status_question(answer), vote), "unsure")

    def _passed(self, answer: Answer, status: str, side: str, vote: int) -> bool:
        if not answer.finished or status == "solved":
            return answer.finished
        task = "solvable"
        if not self.known_solvable:
            task = self._read(self.judge.ask(solvable_question(answer), vote), "unsure")
        if task == "unsolvable":
            return True
        if task == "solvable" and status == "unsolved":
            return False
        return coin(f"pass {side}", answer.query_id, vote)

    def _compared(self, ours: Answer, reference: Answer, vote: int) -> str:
        swapped = coin("order", ours.query_id, vote)
        first, second = (reference, ours) if swapped else (ours, reference)
        better = self._read(self.judge.ask(better_question(first, second), vote), "tie")
        return better if better == "tie" else "win" if (better == "a") != swapped else "lose"

    def _read(self, choice: str | None, otherwise: str) -> str:
        self.malformed += choice is None
        return choice or otherwise


def score_answer(
    answer: Answer, reference: Answer | None, judge: Judge, votes: int, measures: Sequence[str], known_solvable: bool
) -> Row:
    """One row: statuses of all votes and, for each measure that was wanted, what follows; None for the others.

    Args:
        answer: the answer judged.
        reference: the answer it is compared with, for `win_rate` and `sowr`; None leaves both None.
        judge: who is asked.
        votes: how often.
        measures: of `MEASURES`; nothing is asked for the others.
        known_solvable: the query is on a list of solvable ones, so that nobody is asked.
    """
    wanted = set(measures) - (set() if reference is not None else COMPARING)
    panel = Panel(judge, votes, known_solvable)
    passing = bool({"pass_rate", "win_rate"} & wanted)
    mine = panel.verdict(answer, "", passing=passing) if wanted else None
    row: Row = {
        "id": f"{answer.subset}/{answer.query_id}",
        "cluster": answer.query_id,
        "band": "",
        "tags": [answer.subset],
        "exact": mine is not None and (mine.headline if passing else mine.statuses.count("solved") * 2 > votes),
        "errors": step_errors(answer),
        "schemas": bool(answer.tools and answer.steps),
        "finish": "stop" if answer.finished else "no_finish_call",
        "tokens": 0,
        "text": answer.final_answer,
        "subset": answer.subset,
        "method": answer.method,
        "statuses": list(mine.statuses) if mine else None,
        "passes": sum(mine.passed) if mine and passing else None,
        **dict.fromkeys((*MEASURES, "pass_rate_csv")),
    }
    if mine is None:
        return {**row, "malformed": 0}
    if "pass_rate" in wanted:
        row |= {"pass_rate": mine.headline, "pass_rate_csv": mine.label}
    if "sopr" in wanted:
        row["sopr"] = sum(POINTS[status] for status in mine.statuses) / votes
    if reference is not None and COMPARING & wanted:
        row |= _against(reference, answer, mine, panel, wanted)
    return {**row, "malformed": panel.malformed}


def _against(reference: Answer, answer: Answer, mine: Verdict, panel: Panel, wanted: set[str]) -> Row:
    """The measures that compare."""
    found: Row = {}
    theirs = panel.verdict(reference, "reference", passing="win_rate" in wanted)
    decided = "win_rate" in wanted and mine.label != theirs.label
    if decided:
        found["win_rate"] = "win" if mine.label else "lose"
    if "sowr" in wanted or not decided:
        result = outcome(panel.preferences(answer, mine, reference, theirs))
        found |= {name: result for name in COMPARING & wanted if name not in found}
    return found


# --- the summary -----------------------------------------------------------------------------------------------------


def _measure(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """One number of some rows; None where it was not run on any."""
    found = [row for row in rows if row[measure] is not None]
    if not found:
        return None
    if measure in COMPARING:
        ties = sum(row[measure] == "tie" for row in found)
        return {**share(found, lambda row: row[measure] == "win"), "ties": ties}
    return share(found, lambda row: row[measure])  # a mean of points for SoPR


def _by_subset(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    """A measure by subset, its mean over the six (None unless all were run), and over all queries."""
    found = {name: _measure([row for row in rows if row["subset"] == name], measure) for name in SUBSETS}
    values = [entry["value"] for entry in found.values() if entry is not None]
    average = sum(values) / len(SUBSETS) if len(values) == len(SUBSETS) else None
    return {"subsets": found, "average": average, "all": _measure(rows, measure)}


def _shows(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one scoring; what was not run is None and never zero.

    Returns:
        `accuracy`: the pass rate over all queries. For each of `MEASURES` and for `pass_rate_csv`: `subsets` (subset ->
        `{value, low, high, n}`, with `ties` for preferences), `average` (plain mean of the six subsets) and `all`.
        `ties`: queries with as many passes as fails. `malformed`: votes without a readable verdict, counted as unsure
        or tie. `no_finish_call`: answers that do not end with Finish. `errors`: label -> share of the answers that show
        it among those whose calls have schemas; None for `call_count`. `bands`, `unseen_tool` and `split` are empty, as
        tables want them.
    """
    judged = [row for row in rows if row["schemas"]]
    voted = [row for row in rows if row["passes"] is not None]
    return {
        "accuracy": _measure(rows, "pass_rate") or {"value": None, "low": None, "high": None, "n": 0},
        **{measure: _by_subset(rows, measure) for measure in (*MEASURES, "pass_rate_csv")},
        "ties": sum(2 * row["passes"] == len(row["statuses"]) for row in voted) if voted else None,
        "malformed": sum(row["malformed"] for row in rows),
        "no_finish_call": sum(row["finish"] != "stop" for row in rows),
        "errors": {label: None if label == "call_count" else share(judged, partial(_shows, label)) for label in LABELS},
        "bands": {},
        "unseen_tool": None,
        "split": "ToolBench",
    }
