"""BFCL's totals by the weights of its versions. A category that was not run makes a total None (officially 0)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ttpa.benchmarks.bfcl.categories import CATEGORIES


class Term(NamedTuple):
    name: str
    parts: "tuple[Term | str, ...]"  # further totals, and names of categories
    weights: tuple[float, ...] | None = None  # None: all parts count the same, and those of `live` by published rows


class Aggregate(NamedTuple):
    name: str
    depth: int  # 0 for the overall score, 1 for its terms, and so on
    value: float | None  # in [0, 1]; None when something it is made of was not run
    covered: float  # share of its weight that was run, in [0, 1]
    counts: bool  # whether it enters the overall score; the others are shown only


_CALLS = (Term("simple", ("simple_python", "simple_java", "simple_javascript")),
          "multiple", "parallel", "parallel_multiple")  # fmt: skip
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_ALL_LIVE = Term("live", (*_LIVE, "live_irrelevance", "live_relevance"))
_TURNS = Term("multi_turn", tuple(name for name in CATEGORIES if name.startswith("multi_turn")))
_AGENTIC = (Term("web_search", ("web_search_base", "web_search_no_snippet")),
            Term("memory", ("memory_kv", "memory_vector", "memory_rec_sum")))  # fmt: skip
_IRRELEVANCE = Term("irrelevance", ("irrelevance", "live_irrelevance"))
_V4 = (Term("non_live", _CALLS), Term("live", _LIVE), _IRRELEVANCE, _TURNS, Term("agentic", _AGENTIC))

# The overall score of each version.
VERSIONS: Mapping[str, Term] = {
    "v4": Term("overall", _V4, (0.1, 0.1, 0.1, 0.3, 0.4)),
    "v3": Term("overall", (Term("non_live", (*_CALLS, "irrelevance")), _ALL_LIVE, _TURNS)),
}


def aggregates(
    scores: Mapping[str, float], *, cases: Mapping[str, int] | None = None, version: str = "v4"
) -> list[Aggregate]:
    """The overall score of a version, its terms in depth-first order, and the totals that are only shown.

    `scores` are category -> accuracy in [0, 1], without what was not run; `cases` category -> number of different
    questions that were scored, for `covered` (None: all of them).
    """
    rows = {name: one.rows if version == "v4" else one.old_rows for name, one in CATEGORIES.items()}
    done = rows if cases is None else cases

    def total(term: Term, depth: int, counts: bool) -> list[Aggregate]:
        """The total, and those that it is made of."""
        below: list[Aggregate] = []
        parts: list[tuple[float | None, float]] = []  # value and covered share
        for part in term.parts:
            if isinstance(part, str):
                parts.append((scores[part], min(1.0, done[part] / rows[part])) if part in scores else (None, 0.0))
            else:
                inner = total(part, depth + 1, counts)
                parts.append((inner[0].value, inner[0].covered))
                below += inner
        weights = term.weights or [rows[str(part)] if term.name == "live" else 1 for part in term.parts]
        values, shares = zip(*parts, strict=True)
        value = None if None in values else float(np.average(values, weights=weights))
        return [Aggregate(term.name, depth, value, float(np.average(shares, weights=weights)), counts), *below]

    shown = () if version == "v4" else total(_IRRELEVANCE, 0, False)
    return [*total(VERSIONS[version], 0, True), *shown, *total(Term("relevance", ("live_relevance",)), 0, False)]
