"""The numbers of a run from its verdicts, in memory that grows with the questions and not with the answers.

Answers to one question are not independent, so intervals resample questions (`ttpa.results.stats`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from ttpa.benchmarks.bfcl.aggregate import Aggregate, aggregates
from ttpa.benchmarks.bfcl.categories import CATEGORIES, Category
from ttpa.benchmarks.bfcl.verdict import Verdict
from ttpa.results.stats import bootstrap_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy of one category with its 95 % interval, None where there is nothing to tell one from.

    `answers` counts rows, `cases` different questions, of `published` ones.
    """

    category: str
    value: float
    low: float | None
    high: float | None
    answers: int
    cases: int
    published: int


@dataclass(slots=True)
class Summary:
    """Collects verdicts.

    Example:
        >>> from ttpa.benchmarks.bfcl.verdict import accepted
        >>> summary = Summary()
        >>> summary.add("irrelevance_0", CATEGORIES["irrelevance"], accepted("fine"))
        >>> [(found.category, found.value, found.answers) for found in summary.accuracies()]
        [('irrelevance', 1.0, 1)]
    """

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Category -> id -> [answers, valid ones]."""
    errors: Counter[str] = field(default_factory=Counter)
    answers: int = 0

    def add(self, case_id: str, category: Category, verdict: Verdict) -> None:
        """Takes the verdict of one answer."""
        self.answers += 1
        count = self.counts.setdefault(category.name, {}).setdefault(case_id, [0, 0])
        count[0] += 1
        count[1] += verdict.valid
        if verdict.six_error:
            self.errors[verdict.six_error] += 1

    def accuracies(self) -> list[Accuracy]:
        """Every category that was run, in the usual order."""
        found = []
        for name in CATEGORIES:
            if name in self.counts:
                counts = self.counts[name]
                value, low, high = interval(list(counts.values()))
                found.append(
                    Accuracy(
                        category=name,
                        value=value,
                        low=low,
                        high=high,
                        answers=sum(count[0] for count in counts.values()),
                        cases=len(counts),
                        published=CATEGORIES[name].rows,
                    )
                )
        return found

    def aggregates(self, version: str) -> tuple[Aggregate, ...]:
        """The totals of a version; None where something was not run."""
        found = self.accuracies()
        scores = {accuracy.category: accuracy.value for accuracy in found}
        return aggregates(scores, cases={accuracy.category: accuracy.cases for accuracy in found}, version=version)


def interval(counts: list[list[int]]) -> tuple[float, float | None, float | None]:
    """Mean and interval of [answers, valid ones] per question, questions resampled; None for a missing bound."""
    if len({answers for answers, _ in counts}) == 1:  # as many answers each: means do, and stay few
        values, clusters = [valid / answers for answers, valid in counts], list(range(len(counts)))
    else:
        values = [float(at < valid) for answers, valid in counts for at in range(answers)]
        clusters = [at for at, (answers, _) in enumerate(counts) for _ in range(answers)]
    mean, low, high = bootstrap_interval(values, clusters)
    return mean, None if math.isnan(low) else low, None if math.isnan(high) else high
