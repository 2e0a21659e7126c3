"""The numbers of a run: accuracy of each category, and BFCL's totals by the weights of its versions.

Unlike on the leaderboard, where it counts as 0, a category that was not run makes a total None.

    v4       10 % non-live + 10 % live + 10 % irrelevance + 30 % multi-turn + 40 % agentic
    v3       a third each: non-live (irrelevance inside), live (irrelevance and relevance inside), multi-turn
    v3_exec  as v3, non-live with the five executable categories: until 2025-04, the columns of papers of that time

Intervals resample questions, since answers to one question are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ttpa.benchmarks.bfcl.categories import CATEGORIES, Category
from ttpa.benchmarks.bfcl.check import Verdict
from ttpa.results.stats import bootstrap_interval


class Term(NamedTuple):
    """A total over categories (by name) and further totals."""

    name: str
    parts: tuple[Term | str, ...]
    weights: tuple[float, ...] | None = None  # None: all parts count the same, and those of `live` by published rows


class Aggregate(NamedTuple):
    """One total of a run."""

    name: str
    depth: int  # 0 for the overall score, 1 for its terms, and so on
    value: float | None  # in [0, 1]; None when something it is made of was not run
    covered: float  # share of its weight that was run, in [0, 1]
    counts: bool  # whether it enters the overall score; the others are shown only


_CALLS = (Term("simple", ("simple_python", "simple_java", "simple_javascript")),
          "multiple", "parallel", "parallel_multiple")  # fmt: skip
_EXECUTED = (Term("simple_exec", ("exec_simple", "rest")), "exec_multiple", "exec_parallel", "exec_parallel_multiple")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_ALL_LIVE = Term("live", (*_LIVE, "live_irrelevance", "live_relevance"))
_TURNS = Term("multi_turn", tuple(name for name in CATEGORIES if name.startswith("multi_turn")))
_AGENTIC = (Term("web_search", ("web_search_base", "web_search_no_snippet")),
            Term("memory", ("memory_kv", "memory_vector", "memory_rec_sum")))  # fmt: skip
_IRRELEVANCE = Term("irrelevance", ("irrelevance", "live_irrelevance"))
_V4 = (Term("non_live", _CALLS), Term("live", _LIVE), _IRRELEVANCE, _TURNS, Term("agentic", _AGENTIC))

VERSIONS: Mapping[str, Term] = {
    "v4": Term("overall", _V4, (0.1, 0.1, 0.1, 0.3, 0.4)),
    "v3": Term("overall", (Term("non_live", (*_CALLS, "irrelevance")), _ALL_LIVE, _TURNS)),
    "v3_exec": Term("overall", (Term("non_live", (*_CALLS, *_EXECUTED, "irrelevance")), _ALL_LIVE, _TURNS)),
}
"""The overall score of each version."""


def aggregates(
    scores: Mapping[str, float], *, cases: Mapping[str, int] | None = None, version: str = "v4"
) -> list[Aggregate]:
    """The overall score of a version, its terms in depth-first order, and the totals that are only shown.

    Args:
        scores: Category -> accuracy in [0, 1]; a category that was not run is left out.
        cases: Category -> number of different questions that were scored, for `covered`; without it, all of them.
        version: A key of `VERSIONS`.
    """
    rows = {name: one.rows if version == "v4" else one.old_rows for name, one in CATEGORIES.items()}
    done = rows if cases is None else cases

    def compute(part: Term | str) -> tuple[float | None, float]:
        """Value and covered share of a total or a category."""
        if isinstance(part, str):
            return (scores[part], min(1.0, done[part] / rows[part])) if part in scores else (None, 0.0)
        weights = part.weights or [rows[str(name)] if part.name == "live" else 1 for name in part.parts]
        parts = [compute(inner) for inner in part.parts]
        covered = sum(weight * share for weight, (_, share) in zip(weights, parts, strict=True)) / sum(weights)
        values = [value for value, _ in parts if value is not None]
        if len(values) < len(parts):
            return None, covered
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights), covered

    def walk(term: Term, depth: int, counts: bool) -> Iterator[Aggregate]:
        yield Aggregate(term.name, depth, *compute(term), counts)
        for part in term.parts:
            if isinstance(part, Term):
                yield from walk(part, depth + 1, counts)

    shown = [] if version == "v4" else list(walk(_IRRELEVANCE, 0, False))
    return [*walk(VERSIONS[version], 0, True), *shown, *walk(Term("relevance", ("live_relevance",)), 0, False)]


class Accuracy(NamedTuple):
    """Accuracy of one category with its 95 % interval, None where there is nothing to tell one from."""

    category: str
    value: float
    low: float | None
    high: float | None
    answers: int  # rows that were scored
    cases: int  # different questions among them
    published: int


@dataclass(slots=True)
class Summary:
    """Collects verdicts, in memory that grows with the questions and not with the answers."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # category -> id -> [answers, valid ones]
    errors: Counter[str] = field(default_factory=Counter)
    answers: int = 0

    def add(self, case_id: str, category: Category, verdict: Verdict) -> None:
        self.answers += 1
        count = self.counts.setdefault(category.name, {}).setdefault(case_id, [0, 0])
        count[0] += 1
        count[1] += verdict.valid
        self.errors.update([verdict.six_error] if verdict.six_error else [])

    def accuracies(self) -> list[Accuracy]:
        """Every category that was run, in the usual order."""
        run = [(one, list(self.counts[name].values())) for name, one in CATEGORIES.items() if name in self.counts]
        return [
            Accuracy(one.name, *interval(counts), sum(answers for answers, _ in counts), len(counts), one.rows)
            for one, counts in run
        ]

    def aggregates(self, version: str) -> list[Aggregate]:
        """The totals of a version; None where something was not run."""
        found = {accuracy.category: accuracy for accuracy in self.accuracies()}
        cases = {name: accuracy.cases for name, accuracy in found.items()}
        return aggregates({name: accuracy.value for name, accuracy in found.items()}, cases=cases, version=version)


def interval(counts: list[list[int]]) -> tuple[float, float | None, float | None]:
    """Mean and interval of [answers, valid ones] per question, questions resampled; None for a missing bound."""
    values = [float(at < valid) for answers, valid in counts for at in range(answers)]
    clusters = [at for at, (answers, _) in enumerate(counts) for _ in range(answers)]
    mean, low, high = bootstrap_interval(values, clusters)
    return mean, None if math.isnan(low) else low, None if math.isnan(high) else high
