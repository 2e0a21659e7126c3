"""`eval=toolbench`: scores finished ToolBench and StableToolBench answers with a language model as judge.

Answers to ToolBench queries are made by the ToolBench pipeline, which calls a server of thousands of live or simulated
APIs; that server is not part of this project. What is here takes the finished answers and gives the pass rate and win
rate of ToolEval (Qin et al. 2023, arXiv 2307.16789) and the SoPR and SoWR of StableToolBench (Guo et al. 2024, arXiv
2403.07714). `answers` reads the files, `prompts` asks, `judge` sends and remembers, `scoring` counts.

What this package does not do: decode answers (`samples` says so), or reproduce published numbers exactly: judge model
and judge prompt are other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ttpa.benchmarks.toolbench.answers import SUBSETS, Answer, read_answers, read_ids
from ttpa.benchmarks.toolbench.judge import Endpoint, Judge, Transport
from ttpa.benchmarks.toolbench.scoring import COMPARING, MEASURES, Row, score_answer, summarise
from ttpa.errors import ConfigError
from ttpa.records import Candidate, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolBench:
    """What is scored and how.

    Args:
        path: Folder with the answers; see `ttpa.benchmarks.toolbench.answers`.
        endpoint: The judge.
        subsets: Which of the six.
        measures: Which numbers; nothing is asked for the others.
        votes: How often each question is asked: 4 in ToolEval's documents, 3 in StableToolBench.
        solvable: File or folder with the ids of the queries that count, known to be solvable; None: all, and the judge
            says which can be solved.
        reference: Folder with the answers to compare with, for win_rate and sowr.
        workers: Questions asked at a time; they change no number.
        limit: The first queries of every subset only, by id; None scores all.

    Raises:
        ConfigError: a value that cannot be used.
    """

    path: str
    endpoint: Endpoint
    subsets: Sequence[str] = tuple(SUBSETS)
    measures: Sequence[str] = ("pass_rate", "sopr")
    votes: int = 3
    solvable: str | None = None
    reference: str | None = None
    workers: int = 4
    limit: int | None = None

    def __post_init__(self) -> None:
        def need(key: str, holds: bool, problem: str, remedy: str) -> None:
            if not holds:
                raise ConfigError.at(f"eval.{key}", getattr(self, key), problem, remedy)

        need("path", isinstance(self.path, str) and bool(self.path), "must be text", "Give the folder of the answers")
        remedy = "Use base_url, model and api_key_env below eval.endpoint"
        need("endpoint", isinstance(self.endpoint, Endpoint), "must be an endpoint", remedy)
        for key, known in (("subsets", tuple(SUBSETS)), ("measures", MEASURES)):
            value = getattr(self, key)
            listed = isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
            good = listed and all(one in known for one in value) and len(set(value)) == len(value)
            need(key, good, f"must be some of {', '.join(known)}", "List them, each once")
        for key in ("votes", "workers", "limit"):
            value = getattr(self, key)
            none = key == "limit" and value is None
            need(key, none or (type(value) is int and value > 0), "must be at least 1", "Use 3")
        named = bool(self.reference) or not COMPARING & set(self.measures)
        need("reference", named, "win_rate and sowr compare with something", "Give the folder of other answers")

    @property
    def max_new_tokens(self) -> int:
        """Nothing is decoded."""
        return 0

    def check(self) -> NoReturn:
        """Refuses before any work: a policy cannot answer these queries here.

        Raises:
            ConfigError: always; says what to do instead.
        """
        raise ConfigError.at(
            "eval",
            "toolbench",
            "ToolBench answers come from the ToolBench pipeline, which needs its tool server",
            "Score finished answers with `ttpa-score benchmark=toolbench outputs=FOLDER`",
        )

    def identity(self) -> Mapping[str, Any]:
        """Nothing is evaluated in a run."""
        return {}

    def samples(self, data: Path) -> list[Sample]:
        """There are none; raises as `check`."""
        self.check()

    def dialogue(self, sample: Sample) -> None:
        """There is none; raises as `check`."""
        self.check()

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """There is nothing to judge one by one; raises as `check`."""
        self.check()

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `ttpa.benchmarks.toolbench.scoring.summarise`."""
        return summarise(rows)

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """There is no other layout."""


def score_folder(options: ToolBench, judge: Judge) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scores the answers of a folder. The same call again asks only for the verdicts that are missing.

    Args:
        options: what is scored and how.
        judge: the judge with its cache, `Judge(options.endpoint, cache=FILE)`.

    Returns:
        Rows, subset by subset and sorted by query id, and their summary with, besides what `scoring.summarise` gives,
        `missing` (subset -> queries on the list of `solvable` without an answer; they are in no number),
        `unreferenced` (answers without a reference answer), `votes` and `judge` (the judge's model).

    Raises:
        ConfigError: no such folder, no answers to any of the subsets, no key in the environment.
        DataError: a file of another form, or the judge cannot be asked; verdicts so far are kept.
    """
    wanted = read_ids(Path(options.solvable).expanduser()) if options.solvable is not None else None
    answers = _read(options.path, "outputs", options.subsets)
    references = _read(options.reference, "reference", options.subsets) if options.reference else {}
    missing: dict[str, int] | None = None
    if wanted is not None:
        missing = {name: len(wanted.get(name, frozenset()) - answers[name].keys()) for name in options.subsets}
        for name in options.subsets:
            chosen = wanted.get(name, frozenset())
            answers[name] = {key: one for key, one in answers[name].items() if key in chosen}
    todo = [one for found in answers.values() for one in list(found.values())[: options.limit]]

    def work(answer: Answer) -> dict[str, Any]:
        reference = references.get(answer.subset, {}).get(answer.query_id)
        return score_answer(answer, reference, judge, options.votes, options.measures, wanted is not None)

    rows = _all(work, todo, options.workers, judge)
    without = sum(one.query_id not in references.get(one.subset, {}) for one in todo) if references else None
    extra = {"missing": missing, "unreferenced": without, "votes": options.votes, "judge": options.endpoint.model}
    return rows, {**summarise(rows), **extra}


def _read(path: str, key: str, subsets: Sequence[str]) -> dict[str, dict[str, Answer]]:
    folder = Path(path).expanduser()
    remedy = "Give the folder with SUBSET.json, or SUBSET/ with a file a query"
    if not folder.is_dir():
        raise ConfigError.at(key, path, "no such folder", remedy)
    found = {subset: read_answers(folder, subset) for subset in subsets}
    if not any(found.values()):
        raise ConfigError.at(key, path, f"no answers to {', '.join(subsets)}", remedy)
    return found


def _all(work: Callable[[Answer], Row], todo: Sequence[Answer], workers: int, judge: Judge) -> list[Row]:
    """Rows in the order of the answers; after an error nothing more is asked."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(work, answer) for answer in todo]
        try:
            return [future.result() for future in futures]
        except BaseException:
            judge.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


__all__ = ["Endpoint", "Judge", "ToolBench", "Transport", "score_folder"]
