"""From votes to the two official forms of each number, and their summary.

Status of an answer, per vote: unsolved without asking where it does not end with a Finish call, is empty or gives up;
otherwise the judge says solved, unsure or unsolved.

Pass rate (ToolEval, GitHub `OpenBMB/ToolBench`), per vote: an answer without a Finish call fails; a solved one passes;
an unsolved one fails if the query is solvable and passes if it is not; where the status or the solvability is unsure, a
coin decides: a hash of query id and vote, so that it falls alike in every run. A query passes if its passes are at
least its fails. The official code counts an even vote as a pass in the headline number (`pass_rate`) but writes a
random label for it in its CSV (`pass_rate_csv`, with our coin).

SoPR (StableToolBench, arXiv 2403.07714): solved 1, unsure 0.5, unsolved 0; mean over queries, then over votes.

Preference over a reference answer, per vote: the better status wins; between equal ones the judge compares. More wins
than losses are a win, as many are a tie, and a tie is no win. SoWR (StableToolBench) is this. Win rate (ToolEval) asks
first whether one answer has passed (its CSV label) and the other has not: then that decides. Which answer is shown
first changes with a hash of query id and vote. Queries that lack one of the two answers are in neither number; the
official code gives them to the other side.

Six errors: there is no gold call, so a call is held against the schema of its tool; `parameter_value` shows only where
a schema lists the allowed values, and `call_count` cannot be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ttpa.benchmarks.toolbench.answers import SUBSETS, ToolBenchAnswer
from ttpa.benchmarks.toolbench.judge import Judge
from ttpa.benchmarks.toolbench.prompts import Question, better_question, solvable_question, status_question
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


def coin(what: str, query_id: str, vote: int) -> bool:
    """A fair coin that falls alike in every run."""
    return hashlib.sha256(f"{what}:{query_id}:{vote}".encode("utf-8", "surrogatepass")).digest()[0] < 128


def outcome(results: Sequence[str]) -> str:
    """Win, lose or tie of several votes: ties among them count for nobody.

    Example:
        >>> outcome(["win", "tie", "tie"]), outcome(["win", "lose", "tie"])
        ('win', 'tie')
    """
    wins, losses = results.count("win"), results.count("lose")
    return "win" if wins > losses else "lose" if losses > wins else "tie"


def step_errors(answer: ToolBenchAnswer) -> list[str]:
    """Labels that some call of the answer shows, in the order of the six."""
    shown = set()
    for step, _ in answer.steps:
        call = read_call(step)
        problems = [] if call is None else check_call(call, answer.tools)
        shown |= {"format"} if call is None else {_SIX_OF[problem.kind] for problem in problems}
    return [label for label in SIX if label in shown]


class Votes(NamedTuple):
    """The votes on one answer: its statuses; whether it passed by ToolEval's rule; and its label in ToolEval's CSV."""

    statuses: list[str]
    passed: list[bool]
    label: bool

    @property
    def headline(self) -> bool:
        """Whether the query has passed in ToolEval's headline."""
        return 2 * sum(self.passed) >= len(self.passed)


class Panel:
    """Asks a judge for several votes on an answer; counts replies that could not be read. `known_solvable`: the query is
    on a list of solvable ones, so that nobody is asked about that.
    """

    def __init__(self, judge: Judge, votes: int, known_solvable: bool) -> None:
        self.judge, self.votes, self.known_solvable, self.malformed = judge, votes, known_solvable, 0

    def votes_on(self, answer: ToolBenchAnswer, side: str, *, passing: bool) -> Votes:
        """The votes on an answer; `side` names its coins, `passing` says whether the pass rate is wanted."""
        statuses = ["unsolved"] * self.votes
        if not answer.hopeless:
            statuses = [self._ask(status_question(answer), vote, "unsure") for vote in range(self.votes)]
        passed = [self._passed(answer, *vote, side) for vote in enumerate(statuses)] if passing else []
        even = passing and 2 * sum(passed) == self.votes
        return Votes(
            statuses, passed, coin(f"label {side}", answer.query_id, 0) if even else 2 * sum(passed) > self.votes
        )

    def _passed(self, answer: ToolBenchAnswer, vote: int, status: str, side: str) -> bool:
        if not answer.finished or status == "solved":
            return answer.finished
        task = "solvable"
        if not self.known_solvable:
            task = self._ask(solvable_question(answer), vote, "unsure")
        if task == "unsolvable":
            return True
        if task == "solvable" and status == "unsolved":
            return False
        return coin(f"pass {side}", answer.query_id, vote)

    def preference(self, answer: ToolBenchAnswer, mine: Votes, reference: ToolBenchAnswer, theirs: Votes) -> str:
        """Win, lose or tie against a reference answer, over all votes."""
        results = []
        for vote, (left, right) in enumerate(zip(mine.statuses, theirs.statuses, strict=True)):
            if left != right:
                results.append("win" if POINTS[left] > POINTS[right] else "lose")
                continue
            swapped = coin("order", answer.query_id, vote)
            first, second = (reference, answer) if swapped else (answer, reference)
            better = self._ask(better_question(first, second), vote, "tie")
            results.append(better if better == "tie" else "win" if (better == "a") != swapped else "lose")
        return outcome(results)

    def _ask(self, question: Question, vote: int, otherwise: str) -> str:
        choice = self.judge.ask(question, vote)
        self.malformed += choice is None
        return choice or otherwise


def score_answer(
    answer: ToolBenchAnswer,
    reference: ToolBenchAnswer | None,
    judge: Judge,
    votes: int,
    measures: Sequence[str],
    known_solvable: bool,
) -> dict[str, Any]:
    """One row: statuses of all votes and, for each measure that was wanted, what follows; None for the others, about
    which nothing is asked. Without a reference answer, `win_rate` and `sowr` are None.
    """
    wanted = set(measures) - (set() if reference is not None else COMPARING)
    panel, passing = Panel(judge, votes, known_solvable), bool({"pass_rate", "win_rate"} & wanted)
    row: dict[str, Any] = {
        "id": f"{answer.subset}/{answer.query_id}",
        "cluster": answer.query_id,
        "band": "",
        "tags": [answer.subset],
        "exact": False,
        "errors": step_errors(answer),
        "schemas": bool(answer.tools and answer.steps),
        "finish": "stop" if answer.finished else "no_finish_call",
        "tokens": 0,
        "text": answer.final_answer,
        "subset": answer.subset,
        "method": answer.method,
        "statuses": None,
        "passes": None,
        **dict.fromkeys((*MEASURES, "pass_rate_csv")),
        "malformed": 0,
    }
    if not wanted:
        return row
    mine = panel.votes_on(answer, "", passing=passing)
    row["statuses"], row["exact"] = mine.statuses, mine.statuses.count("solved") * 2 > votes
    if passing:
        row["passes"], row["exact"] = sum(mine.passed), mine.headline
    if "pass_rate" in wanted:
        row |= {"pass_rate": mine.headline, "pass_rate_csv": mine.label}
    if "sopr" in wanted:
        row["sopr"] = sum(POINTS[status] for status in mine.statuses) / votes
    if reference is not None and COMPARING & wanted:
        theirs = panel.votes_on(reference, "reference", passing="win_rate" in wanted)
        decided = "win_rate" in wanted and mine.label != theirs.label
        if "sowr" in wanted or not decided:
            row |= dict.fromkeys(COMPARING & wanted, panel.preference(answer, mine, reference, theirs))
        if decided:
            row["win_rate"] = "win" if mine.label else "lose"
    row["malformed"] = panel.malformed
    return row


# --- the summary -----------------------------------------------------------------------------------------------------


def _measure(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """One number of some rows; None where it was not run on any."""
    run = [row for row in rows if row[measure] is not None]
    if not run:
        return None
    if measure in COMPARING:
        return {**share(run, lambda row: row[measure] == "win"), "ties": sum(row[measure] == "tie" for row in run)}
    return share(run, lambda row: row[measure])  # a mean of points for SoPR


def _by_subset(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    """A measure by subset, its mean over the six (None unless all were run), and over all queries."""
    entries = {name: _measure([row for row in rows if row["subset"] == name], measure) for name in SUBSETS}
    values = [entry["value"] for entry in entries.values() if entry is not None]
    average = sum(values) / len(SUBSETS) if len(values) == len(SUBSETS) else None
    return {"subsets": entries, "average": average, "all": _measure(rows, measure)}


def _shows(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one scoring; what was not run is None and never zero.

    Returns:
        `accuracy`: the pass rate over all queries. For each of `MEASURES` and for `pass_rate_csv`: `subsets`, `average`
        and `all`, each share as `{value, low, high, n}`. `ties`: queries with as many passes as fails. `malformed`:
        votes without a readable verdict, counted as unsure or tie. `no_finish_call`: answers that do not end with
        Finish. `errors`: label -> share of the answers whose calls have schemas. The rest is there for tables.
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
