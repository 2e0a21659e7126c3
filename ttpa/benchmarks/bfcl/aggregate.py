"""Totals of BFCL from scores per category, by the weights of its versions, without zeros for what was not run.

The leaderboard counts a category that was not run as 0. Here a total that lacks a category is None, and every total
says which share of its weight was run: a partial run is mistaken neither for a bad one nor for a whole one.

    v4       10 % non-live + 10 % live + 10 % irrelevance + 30 % multi-turn + 40 % agentic
    v3       a third each: non-live (irrelevance inside), live (irrelevance and relevance inside), multi-turn
    v3_exec  as v3, non-live with the five executable categories: until 2025-04, the columns of papers of that time

`live` is weighted by published rows, everything else is a plain mean. What this module does not do: score answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ttpa.benchmarks.bfcl.categories import CATEGORIES, find_category
from ttpa.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A total: categories and further totals, each with its weight; without weights all count the same.

    Args:
        name: what tables call it.
        parts: names of categories, or totals.
        weights: as many numbers as parts, or None.
        by_rows: weigh the parts, all of them categories, by their published rows.
    """

    name: str
    parts: tuple[Term | str, ...]
    weights: tuple[float, ...] | None = None
    by_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One total of a run.

    Args:
        name: of the total.
        depth: 0 for the overall score, 1 for its terms, and so on.
        value: in [0, 1]; None when something it is made of was not run.
        covered: share of its weight that was run, in [0, 1].
        counts: whether it enters the overall score; the others are shown only.
    """

    name: str
    depth: int
    value: float | None
    covered: float
    counts: bool = True


def _overall(version: str) -> Term:
    simple = Term(name="simple", parts=("simple_python", "simple_java", "simple_javascript"))
    calls: tuple[Term | str, ...] = (simple, "multiple", "parallel", "parallel_multiple")
    live = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
    turns = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
    multi_turn = Term(name="multi_turn", parts=turns)
    if version == "v4":
        web = Term(name="web_search", parts=("web_search_base", "web_search_no_snippet"))
        memory = Term(name="memory", parts=("memory_kv", "memory_vector", "memory_rec_sum"))
        terms = (
            Term(name="non_live", parts=calls),
            Term(name="live", parts=live, by_rows=True),
            Term(name="irrelevance", parts=("irrelevance", "live_irrelevance")),
            multi_turn,
            Term(name="agentic", parts=(web, memory)),
        )
        return Term(name="overall", parts=terms, weights=(0.1, 0.1, 0.1, 0.3, 0.4))
    if version == "v3_exec":
        run = Term(name="simple_exec", parts=("exec_simple", "rest"))
        calls = (*calls, run, "exec_multiple", "exec_parallel", "exec_parallel_multiple")
    everything = Term(name="live", parts=(*live, "live_irrelevance", "live_relevance"), by_rows=True)
    non_live = Term(name="non_live", parts=(*calls, "irrelevance"))
    return Term(name="overall", parts=(non_live, everything, multi_turn))


VERSIONS: Mapping[str, Term] = MappingProxyType({version: _overall(version) for version in ("v4", "v3", "v3_exec")})
"""The overall score of each version."""

_SHOWN = {
    "v4": (Term(name="relevance", parts=("live_relevance",)),),
    "v3": (
        Term(name="irrelevance", parts=("irrelevance", "live_irrelevance")),
        Term(name="relevance", parts=("live_relevance",)),
    ),
}


def aggregates(
    scores: Mapping[str, float], *, cases: Mapping[str, int] | None = None, version: str = "v4"
) -> tuple[Aggregate, ...]:
    """The totals of one version.

    Args:
        scores: category (by either name) -> accuracy in [0, 1]; a category that was not run is left out.
        cases: category -> number of different questions that were scored; without it every given category counts as
            run in full. It changes `covered` only, never a value.
        version: a key of `VERSIONS`.

    Returns:
        The overall score, its terms in depth-first order, and the totals that are only shown.

    Raises:
        ConfigError: an unknown version.
        DataError: an unknown category, or a score outside [0, 1].

    Example:
        >>> half = {name: 0.5 for name in CATEGORIES if not name.startswith(("web", "memory"))}
        >>> [(a.name, a.value, round(a.covered, 2)) for a in aggregates(half) if a.depth == 0]
        [('overall', None, 0.6), ('relevance', 0.5, 1.0)]
    """
    if version not in VERSIONS:
        raise ConfigError.at("version", version, "unknown version", f"Use one of {', '.join(VERSIONS)}")
    known: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name, score in scores.items():
        category = find_category(name)
        if category is None:
            raise DataError(f"{name}: no category of BFCL. Known are {', '.join(CATEGORIES)}.")
        if not 0 <= score <= 1:
            raise DataError(f"{name}: a score of {score}. Scores lie between 0 and 1; divide per cents by 100.")
        published = _rows(category.name, version)
        known[category.name] = score
        done = published if cases is None else cases.get(name, 0)
        shares[category.name] = min(1.0, done / published) if published else 0.0
    found = list(_walk(VERSIONS[version], known, shares, version, 0))
    for term in _SHOWN.get(version, _SHOWN["v3"]):
        value, covered = _compute(term, known, shares, version)
        found.append(Aggregate(name=term.name, depth=0, value=value, covered=covered, counts=False))
    return tuple(found)


def _rows(name: str, version: str) -> int:
    category = CATEGORIES[name]
    return category.rows if version == "v4" else category.old_rows


def _walk(
    term: Term, scores: Mapping[str, float], shares: Mapping[str, float], version: str, depth: int
) -> Iterator[Aggregate]:
    value, covered = _compute(term, scores, shares, version)
    yield Aggregate(name=term.name, depth=depth, value=value, covered=covered)
    for part in term.parts:
        if isinstance(part, Term):
            yield from _walk(part, scores, shares, version, depth + 1)


def _compute(
    part: Term | str, scores: Mapping[str, float], shares: Mapping[str, float], version: str
) -> tuple[float | None, float]:
    """Value and covered share of a total or a category."""
    if isinstance(part, str):
        return scores.get(part), shares.get(part, 0.0)
    weights: tuple[float, ...] = part.weights or (1.0,) * len(part.parts)
    if part.by_rows:
        weights = tuple(float(_rows(name, version)) for name in part.parts if isinstance(name, str))
    parts = [_compute(inner, scores, shares, version) for inner in part.parts]
    total = sum(weights)
    covered = sum(weight * share for weight, (_, share) in zip(weights, parts, strict=True)) / total
    values = [value for value, _ in parts if value is not None]
    if len(values) < len(parts):
        return None, covered
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / total, covered
