"""The categories of the Berkeley Function Calling Leaderboard (BFCL): names, sizes, and which rule scores which.

Sizes and names are those of the data files, version 3 (before 2025-07) and version 4. What this module does not do:
turn scores into totals (`aggregate`) or read files (`files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Language = Literal["python", "java", "javascript"]
Rule = Literal["one", "multiple", "parallel", "irrelevance", "relevance", "multi_turn", "agentic", "execution"]

SINGLE_TURN: frozenset[Rule] = frozenset({"one", "multiple", "parallel", "irrelevance", "relevance"})
"""Rules that look at one answer. Beside these, multi-turn conversations are scored, with the extra `bfcl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One category, under its version 4 name.

    Args:
        name: as in the file name and in ids; `old_name` is what version 3 called it.
        rule: how answers are scored: exactly one call; one call, whose function is among several; several calls in any
            order; no call wanted; some call wanted; or one of the rules this package does not hold.
        rows: published rows in version 4, 0 where it was retired; `old_rows` the same for version 3.
        language: whose syntax values are written in.

    Example:
        >>> CATEGORIES["simple_java"].old_name, CATEGORIES["simple_java"].language
        ('java', 'java')
    """

    name: str
    rule: Rule
    rows: int
    old_rows: int
    old_name: str
    language: Language = "python"

    @property
    def live(self) -> bool:
        """Whether its questions came from users."""
        return self.name.startswith("live_")

    @property
    def has_answers(self) -> bool:
        """Whether there is a file of accepted answers."""
        return self.rule not in ("irrelevance", "relevance")


def _rule(name: str) -> Rule:
    """The rule by the words in a name; the order decides, as `parallel_multiple` shows."""
    if name.startswith("multi_turn"):
        return "multi_turn"
    if name.startswith(("web_search", "memory")):
        return "agentic"
    if name.startswith("exec_") or name == "rest":
        return "execution"
    if "irrelevance" in name:
        return "irrelevance"
    if "relevance" in name:
        return "relevance"
    if "parallel" in name:
        return "parallel"
    return "multiple" if "multiple" in name else "one"


def _table() -> dict[str, Category]:
    both = {
        "simple_python": 400, "simple_java": 100, "simple_javascript": 50, "multiple": 200, "parallel": 200,
        "parallel_multiple": 200, "irrelevance": 240, "live_simple": 258, "live_multiple": 1053, "live_parallel": 16,
        "live_parallel_multiple": 24, "multi_turn_base": 200, "multi_turn_miss_func": 200,
        "multi_turn_miss_param": 200, "multi_turn_long_context": 200,
    }  # fmt: skip
    rows = {name: (count, count) for name, count in both.items()}
    rows |= {"live_irrelevance": (884, 882), "live_relevance": (16, 18)}
    rows |= {name: (100, 0) for name in ("web_search_base", "web_search_no_snippet")}
    rows |= {name: (155, 0) for name in ("memory_kv", "memory_vector", "memory_rec_sum")}
    retired = {"exec_simple": 100, "exec_multiple": 50, "exec_parallel": 50, "exec_parallel_multiple": 40, "rest": 70}
    rows |= {name: (0, count) for name, count in retired.items()}
    old = {"simple_python": "simple", "simple_java": "java", "simple_javascript": "javascript"}
    languages: dict[str, Language] = {"simple_java": "java", "simple_javascript": "javascript"}
    return {
        name: Category(
            name=name,
            rule=_rule(name),
            rows=now,
            old_rows=then,
            old_name=old.get(name, name),
            language=languages.get(name, "python"),
        )
        for name, (now, then) in rows.items()
    }


CATEGORIES: Mapping[str, Category] = MappingProxyType(_table())
"""Every category by its version 4 name, in the order in which tables show them."""

_BY_OLD_NAME = {category.old_name: category for category in CATEGORIES.values()}


def find_category(name: str) -> Category | None:
    """The category of a version 4 or version 3 name, None when there is no such one.

    Example:
        >>> find_category("javascript").name, find_category("chess")
        ('simple_javascript', None)
    """
    return CATEGORIES.get(name) or _BY_OLD_NAME.get(name)


def category_of_id(case_id: str) -> Category | None:
    """The category that an id names: `live_multiple_59-22-6` is of `live_multiple`; None when it names none."""
    return find_category(case_id.split(":")[0].rsplit("_", 1)[0])
