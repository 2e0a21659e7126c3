"""`ttpa score benchmark=toolbench`: answers made by the ToolBench pipeline to a table, and a row a query."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from ttpa.benchmarks.scored import Shares, compared, output_path, print_table, read_shares
from ttpa.benchmarks.toolbench.answers import SUBSETS, ToolBenchAnswer, read_answers, read_ids
from ttpa.benchmarks.toolbench.judge import Judge, JudgeKeys
from ttpa.benchmarks.toolbench.scoring import COMPARING, MEASURES, Panel, summarise
from ttpa.calls.six_errors import SIX
from ttpa.endpoint import address
from ttpa.errors import ConfigError
from ttpa.io import write_jsonl
from ttpa.options import CommaList, Count
from ttpa.results.stats import share_text


@dataclass(frozen=True, kw_only=True)
class ToolBenchKeys(JudgeKeys):
    """The keys of the command; `ttpa score --help` says what each means."""

    benchmark: Literal["toolbench"]
    outputs: str
    measures: CommaList = ("pass_rate", "sopr")
    votes: Count = 3
    solvable: str | None = None
    reference: str | None = None
    subsets: CommaList = tuple(SUBSETS)
    limit: Count | None = None
    workers: Count = 4
    out: str = ""
    against: str = ""

    def __post_init__(self) -> None:
        address(self.base_url)
        for key, known in (("subsets", tuple(SUBSETS)), ("measures", MEASURES)):
            words = getattr(self, key)
            if not set(words) <= set(known) or len(set(words)) < len(words):
                problem = f"must be some of {', '.join(known)}"
                raise ConfigError.at(key, ",".join(words), problem, "List them, each once")
        if COMPARING & set(self.measures) and not self.reference:
            raise ConfigError("win_rate and sowr compare with something. Give reference=, a folder of other answers.")
        if self.out:
            output_path(self.out, (self.cache, self.against))


def main(keys: ToolBenchKeys) -> None:
    """Scores the answers of a folder, prints a table and writes the rows: by subset, then by query id."""
    theirs = read_shares(keys.against) if keys.against else None
    judge, answers = Judge(keys), _read(keys.outputs, "outputs", keys.subsets)
    references = _read(keys.reference, "reference", keys.subsets) if keys.reference else {}
    more: dict[str, Any] = {"missing": None, "unreferenced": None, "votes": keys.votes, "judge": keys.model}
    if keys.solvable:
        listed = {pair for pair in read_ids(Path(keys.solvable).expanduser()) if pair[0] in keys.subsets}
        more["missing"] = len(listed - answers.keys())
        answers = {pair: answers[pair] for pair in answers if pair in listed}
    pairs = [pair for name in keys.subsets for pair in [one for one in answers if one[0] == name][: keys.limit]]
    if references:
        more["unreferenced"] = len(set(pairs) - references.keys())
    with ThreadPoolExecutor(max_workers=keys.workers) as pool:
        judged = [Panel(judge, keys.votes, bool(keys.solvable), answers[pair], references.get(pair)) for pair in pairs]
        futures = [pool.submit(panel.score, keys.measures) for panel in judged]
        try:
            rows = [future.result() for future in futures]
        except BaseException:
            judge.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if keys.out:
        write_jsonl(Path(keys.out).expanduser(), rows)
    show({**summarise(rows), **more}, keys.measures)
    if theirs is not None:
        ours = Shares()
        for row in rows:
            ours.add(row["id"], row["exact"])
        print(compared(ours, theirs))
    print(f"{judge.requests:,} requests; verdicts are in {keys.cache}")


def _read(path: str, key: str, subsets: Sequence[str]) -> dict[tuple[str, str], ToolBenchAnswer]:
    """(subset, query id) -> answer."""
    folder = Path(path).expanduser()
    answers = {(name, one): answer for name in subsets for one, answer in read_answers(folder, name).items()}
    if not answers:
        remedy = "Give the folder with SUBSET.json, or SUBSET/ with a file a query"
        raise ConfigError.at(key, path, f"no answers to {', '.join(subsets)} there", remedy)
    return answers


def show(summary: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Prints a line a subset, the mean over subsets, all queries, the six errors, and what to know about them."""
    shown = [name for name in MEASURES if name in measures]
    parts = {name: [summary[one]["subsets"][name] for one in shown] for name in SUBSETS}
    parts = {name: part for name, part in parts.items() if any(part)}
    parts["all"] = [summary[one]["all"] for one in shown]
    rows = [
        (name, f"{max((entry['n'] for entry in part if entry), default=0):,}", *(share_text(one, 4) for one in part))
        for name, part in parts.items()
    ]
    means = [summary[one]["average"] for one in shown]
    rows.append(("mean of 6", "", *("-" if mean is None else f"{mean:.4f}" for mean in means)))
    print_table("Share of queries, 95 % interval", ("", "queries", *shown), rows)
    errors = [(label.replace("_", " "), share_text(summary["errors"][label], 4)) for label in SIX]
    print_table("Answers with a call that shows the error", ("error", "share"), errors)
    notes: dict[str, Any] = {
        "votes": summary["votes"],
        "judge": summary["judge"],
        "answers without a Finish call": summary["no_finish_call"],
        "queries with as many passes as fails": summary["ties"],
        **{f"{name}, ties": (summary[name]["all"] or {}).get("ties") for name in shown if name in COMPARING},
        "verdicts that could not be read": summary["malformed"],
        "queries without an answer, in no number": summary["missing"],
        "answers without a reference": summary["unreferenced"],
    }
    print("\n".join(f"{key}: {value}" for key, value in notes.items() if value is not None))
