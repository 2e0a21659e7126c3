"""From votes to the two official forms of each number, and their summary; rules in docs/evaluation.md."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ttpa.benchmarks.toolbench.answers import SUBSETS, ToolBenchAnswer
from ttpa.benchmarks.toolbench.judge import Judge, question
from ttpa.calls.schema import check_call
from ttpa.calls.six_errors import LABELS, SIX, read_call
from ttpa.results.stats import share

MEASURES = ("pass_rate", "sopr", "win_rate", "sowr")
COMPARING = frozenset({"win_rate", "sowr"})  # these need a reference answer
POINTS = {"solved": 1.0, "unsure": 0.5, "unsolved": 0.0}
_KINDS = ("unknown_tool", "missing_required", "unknown_parameter", "wrong_type", "not_in_enum")
_SIX_OF = dict(zip(_KINDS, SIX[1:], strict=True))


def coin(what: str, query_id: str, vote: int) -> bool:
    """A fair coin that falls alike in every run."""
    return hashlib.sha256(f"{what}:{query_id}:{vote}".encode("utf-8", "surrogatepass")).digest()[0] < 128


def step_errors(answer: ToolBenchAnswer) -> list[str]:
    """Labels that some call of the answer shows, in the order of the six."""
    shown = set()
    for step, _ in answer.steps:
        call = read_call(step)
        shown |= {_SIX_OF[problem.kind] for problem in check_call(call, answer.tools)} if call else {"format"}
    return [label for label in SIX if label in shown]


@dataclass
class Panel:
    """A judge that votes on one answer, also on whether its query is solvable unless that is known."""

    judge: Judge
    votes: int
    known_solvable: bool
    answer: ToolBenchAnswer
    reference: ToolBenchAnswer | None = None
    malformed: int = 0

    def score(self, measures: Sequence[str]) -> dict[str, Any]:
        """One row: statuses of all votes, and the measures that are wanted and can be had; None for the others."""
        answer, reference = self.answer, self.reference
        wanted = set(measures) - (set() if reference is not None else COMPARING)
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
            **dict.fromkeys(("statuses", "passes", *MEASURES, "pass_rate_csv")),
            "malformed": 0,
        }
        if not wanted:
            return row
        row["statuses"] = statuses = self._statuses(answer)
        row["exact"], label = statuses.count("solved") * 2 > self.votes, False
        if {"pass_rate", "win_rate"} & wanted:
            row["passes"], label = self._passes(answer, statuses, "")
            row["exact"] = 2 * row["passes"] >= self.votes
        if "pass_rate" in wanted:
            row |= {"pass_rate": row["exact"], "pass_rate_csv": label}
        if "sopr" in wanted:
            row["sopr"] = sum(POINTS[status] for status in statuses) / self.votes
        if reference is not None and COMPARING & wanted:
            theirs = self._statuses(reference)
            decided = "win_rate" in wanted and self._passes(reference, theirs, "reference")[1] != label
            if "sowr" in wanted or not decided:
                row |= dict.fromkeys(COMPARING & wanted, self._preference(reference, statuses, theirs))
            if decided:
                row["win_rate"] = "win" if label else "lose"
        return row | {"malformed": self.malformed}

    def _statuses(self, answer: ToolBenchAnswer) -> list[str]:
        """The status of an answer in each vote."""
        if answer.hopeless:
            return ["unsolved"] * self.votes
        return [self._ask(vote, "unsure", "status", answer) for vote in range(self.votes)]

    def _passes(self, answer: ToolBenchAnswer, statuses: Sequence[str], side: str) -> tuple[int, bool]:
        """The votes in which an answer passes by ToolEval's rule, and its label in the CSV; `side` names the coins."""
        count = sum(self._passed(answer, *vote, side) for vote in enumerate(statuses))
        return count, coin(f"label {side}", answer.query_id, 0) if 2 * count == self.votes else 2 * count > self.votes

    def _passed(self, answer: ToolBenchAnswer, vote: int, status: str, side: str) -> bool:
        if not answer.finished or status == "solved":
            return answer.finished
        task = "solvable" if self.known_solvable else self._ask(vote, "unsure", "task", answer)
        if task == "unsolvable" or (task == "solvable" and status == "unsolved"):
            return task == "unsolvable"
        return coin(f"pass {side}", answer.query_id, vote)

    def _preference(self, reference: ToolBenchAnswer, left: Sequence[str], right: Sequence[str]) -> str:
        """Win, lose or tie against a reference answer, from the statuses of both and what the judge prefers."""
        balance = 0
        for vote, (ours, theirs) in enumerate(zip(left, right, strict=True)):
            if ours != theirs:
                balance += 1 if POINTS[ours] > POINTS[theirs] else -1
                continue
            swapped = coin("order", self.answer.query_id, vote)
            shown = (reference, self.answer) if swapped else (self.answer, reference)
            better = self._ask(vote, "tie", "better", *shown)
            balance += 0 if better == "tie" else 1 if (better == "a") != swapped else -1
        return "win" if balance > 0 else "lose" if balance < 0 else "tie"

    def _ask(self, vote: int, otherwise: str, field: str, *answers: ToolBenchAnswer) -> str:
        choice = self.judge.ask(question(field, *answers), vote)
        self.malformed += choice is None
        return choice or otherwise


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


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one scoring; what was not run is None and never zero. `accuracy` is the pass rate over all queries,
    `malformed` counts votes without a readable verdict, and `errors` are shares of the answers whose calls have
    schemas.
    """
    judged = [row for row in rows if row["schemas"]]
    voted = [row for row in rows if row["passes"] is not None]
    errors = {label: share(judged, partial(lambda one, row: one in row["errors"], label)) for label in SIX}
    return {
        "accuracy": _measure(rows, "pass_rate") or {"value": None, "low": None, "high": None, "n": 0},
        **{measure: _by_subset(rows, measure) for measure in (*MEASURES, "pass_rate_csv")},
        "ties": sum(2 * row["passes"] == len(row["statuses"]) for row in voted) if voted else None,
        "malformed": sum(row["malformed"] for row in rows),
        "no_finish_call": sum(row["finish"] != "stop" for row in rows),
        "errors": {label: errors.get(label) for label in LABELS},
        "bands": {},
        "unseen_tool": None,
        "split": "ToolBench",
    }
