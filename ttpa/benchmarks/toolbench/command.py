"""`ttpa score benchmark=toolbench`: a folder of answers to a table, and a row a query.

Answers are made by the ToolBench pipeline, which calls a server of thousands of APIs that is not part of this project.
Their scores are the pass rate and win rate of ToolEval (Qin et al. 2023, arXiv 2307.16789) and the SoPR and SoWR of
StableToolBench (Guo et al. 2024, arXiv 2403.07714), not comparable to the last digit: judge model and prompt differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from ttpa.benchmarks.scored import Shares, compared, print_table, read_shares, share_text
from ttpa.benchmarks.toolbench.answers import SUBSETS, ToolBenchAnswer, read_answers, read_ids
from ttpa.benchmarks.toolbench.judge import Judge, JudgeKeys
from ttpa.benchmarks.toolbench.scoring import COMPARING, MEASURES, score_answer, summarise
from ttpa.calls.six_errors import SIX
from ttpa.errors import ConfigError
from ttpa.io import write_jsonl
from ttpa.options import CommaList, Count

HELP = """\
  outputs      folder with SUBSET.json (G1_instruction.json, ..., or I1-Inst.json), as ToolEval's converter writes them
  base_url     OpenAI-style endpoint of the judge, up to and without /chat/completions (http://localhost:8000/v1)
  model        its model
  api_key_env  environment variable that holds its key, where it needs one
  temperature  of the judge (0.2); votes of a model without chance would be one vote
  max_tokens   longest reply of the judge (512)
  measures     of pass_rate, sopr, win_rate, sowr, separated by commas (pass_rate,sopr)
  votes        how often each question is asked (3, as StableToolBench; ToolEval's documents use 4)
  solvable     ids of the queries that count (StableToolBench's solvable_queries/test_query_ids); all without it
  reference    folder with the answers that win_rate and sowr compare with
  subsets      some of the six, separated by commas (all that are there)
  limit        the first so many queries of each subset
  workers      questions asked at a time (4); changes no number
  timeout_s    seconds after which a request has failed (60)
  retries      how often a failed request is sent again (4), with growing pauses
  reasks       how often a reply that cannot be read is asked again (2); then it counts as unsure
  cache        file of verdicts (toolbench_verdicts.jsonl); the same command again asks only what is missing
  out          one row a query, JSON lines
  against      rows written by out= for another policy: the paired difference of passes
"""


@dataclass(frozen=True, kw_only=True)
class ToolBenchKeys(JudgeKeys):
    """The keys of the command; `HELP` says what each means."""

    benchmark: Literal["toolbench"]
    outputs: str
    measures: CommaList = ("pass_rate", "sopr")
    votes: Count = 3
    solvable: str | None = None
    reference: str | None = None
    subsets: CommaList = tuple(SUBSETS)
    limit: Count | None = None
    workers: Count = 4
    out: Path | None = None
    against: Path | None = None

    def __post_init__(self) -> None:
        for key, known in (("subsets", tuple(SUBSETS)), ("measures", MEASURES)):
            words = getattr(self, key)
            if not set(words) <= set(known) or len(set(words)) < len(words):
                raise ConfigError.at(
                    key, ",".join(words), f"must be some of {', '.join(known)}", "List them, each once"
                )
        if COMPARING & set(self.measures) and not self.reference:
            raise ConfigError("win_rate and sowr compare with something. Give reference=, a folder of other answers.")
        if self.out is None:
            return
        out = self.out.expanduser()
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            raise ConfigError.at("out", out, "cannot be written", "Give a file in a folder that exists")
        for other in (self.cache, self.against):
            if other is not None and out.resolve() == Path(other).expanduser().resolve():
                raise ConfigError.at("out", out, "is also read", "Write to another file")


def main(keys: ToolBenchKeys) -> None:
    """Scores the answers of a folder, prints a table and writes the rows."""
    theirs = read_shares(keys.against) if keys.against else None
    judge = Judge(keys)
    rows, summary = score_folder(keys, judge)
    if keys.out is not None:
        write_jsonl(keys.out.expanduser(), rows)
    show(summary, keys.measures)
    if theirs is not None:
        ours = Shares()
        for row in rows:
            ours.add(row["id"], row["exact"])
        print(compared(ours, theirs))
    print(f"{judge.requests:,} requests; verdicts are in {keys.cache}")


def score_folder(keys: ToolBenchKeys, judge: Judge) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, subset by subset and sorted by query id, and their summary (`scoring.summarise`) with `missing` (subset ->
    queries on the list of `solvable` without an answer), `unreferenced`, `votes` and `judge`.
    """
    wanted = read_ids(Path(keys.solvable).expanduser()) if keys.solvable else None
    answers = _read(keys.outputs, "outputs", keys.subsets)
    references = _read(keys.reference, "reference", keys.subsets) if keys.reference else {}
    missing: dict[str, int] | None = None
    if wanted is not None:
        missing = {name: len(wanted.get(name, frozenset()) - answers[name].keys()) for name in keys.subsets}
        answers = {
            name: {key: one for key, one in some.items() if key in wanted.get(name, ())}
            for name, some in answers.items()
        }
    todo = [one for some in answers.values() for one in list(some.values())[: keys.limit]]
    pairs = [(one, references.get(one.subset, {}).get(one.query_id)) for one in todo]
    with ThreadPoolExecutor(max_workers=keys.workers) as pool:
        futures = [
            pool.submit(score_answer, *pair, judge, keys.votes, keys.measures, wanted is not None) for pair in pairs
        ]
        try:
            rows = [future.result() for future in futures]
        except BaseException:
            judge.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    without = sum(reference is None for _, reference in pairs) if references else None
    extra = {"missing": missing, "unreferenced": without, "votes": keys.votes, "judge": keys.model}
    return rows, {**summarise(rows), **extra}


def _read(path: str, key: str, subsets: Sequence[str]) -> dict[str, dict[str, ToolBenchAnswer]]:
    folder = Path(path).expanduser()
    remedy = "Give the folder with SUBSET.json, or SUBSET/ with a file a query"
    if not folder.is_dir():
        raise ConfigError.at(key, path, "no such folder", remedy)
    answers = {subset: read_answers(folder, subset) for subset in subsets}
    if not any(answers.values()):
        raise ConfigError.at(key, path, f"no answers to {', '.join(subsets)}", remedy)
    return answers


def show(summary: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Prints a line a subset, the mean over subsets, all queries, the six errors, and what to know about them."""
    shown = [name for name in MEASURES if name in measures]
    parts = {name: [summary[one]["subsets"][name] for one in shown] for name in SUBSETS}
    parts = {name: part for name, part in parts.items() if any(part)}
    parts["all"] = [summary[one]["all"] for one in shown]
    rows = [
        (name, f"{max((entry['n'] for entry in part if entry), default=0):,}", *map(share_text, part))
        for name, part in parts.items()
    ]
    means = [summary[one]["average"] for one in shown]
    rows.append(("mean of 6", "", *("-" if mean is None else f"{mean:.4f}" for mean in means)))
    print_table("Share of queries, 95 % interval", ("", "queries", *shown), rows)
    errors = [(label.replace("_", " "), share_text(summary["errors"][label])) for label in SIX]
    print_table("Answers with a call that shows the error", ("error", "share"), errors)
    missing = summary["missing"]
    notes: dict[str, Any] = {
        "votes": summary["votes"],
        "judge": summary["judge"],
        "answers without a Finish call": summary["no_finish_call"],
        "queries with as many passes as fails": summary["ties"],
        **{f"{name}, ties": (summary[name]["all"] or {}).get("ties") for name in shown if name in COMPARING},
        "verdicts that could not be read": summary["malformed"],
        "queries without an answer, in no number": None if missing is None else sum(missing.values()),
        "answers without a reference": summary["unreferenced"],
    }
    print("\n".join(f"{key}: {value}" for key, value in notes.items() if value is not None))
