"""The categories of the Berkeley Function Calling Leaderboard (BFCL): names, sizes, and which rule scores which.

Names and sizes are those of the data files of version 4, and of version 3 (before 2025-07).
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
        name: As in the file name and in ids; version 3 called it `old_name`.
        rule: How answers are scored: exactly one call; one call, whose function is among several; several calls in any
            order; no call wanted; some call wanted; conversations; or a rule that is not scored here.
        rows: Published rows in version 4, 0 where it was retired; `old_rows` the same for version 3.
        language: Of the values in calls.
    """

    name: str
    old_name: str
    rule: Rule
    rows: int
    old_rows: int
    language: Language = "python"

    @property
    def live(self) -> bool:
        """Whether its questions came from users."""
        return self.name.startswith("live_")

    @property
    def has_answers(self) -> bool:
        """Whether there is a file of accepted answers."""
        return self.rule not in ("irrelevance", "relevance")


# Name in version 4: its rows, and those of version 3 where these are others. The order is that of tables.
_ROWS: dict[str, tuple[int, ...]] = {
    "simple_python": (400,), "simple_java": (100,), "simple_javascript": (50,), "multiple": (200,), "parallel": (200,),
    "parallel_multiple": (200,), "irrelevance": (240,), "live_simple": (258,), "live_multiple": (1053,),
    "live_parallel": (16,), "live_parallel_multiple": (24,), "multi_turn_base": (200,), "multi_turn_miss_func": (200,),
    "multi_turn_miss_param": (200,), "multi_turn_long_context": (200,), "live_irrelevance": (884, 882),
    "live_relevance": (16, 18), "web_search_base": (100, 0), "web_search_no_snippet": (100, 0), "memory_kv": (155, 0),
    "memory_vector": (155, 0), "memory_rec_sum": (155, 0), "exec_simple": (0, 100), "exec_multiple": (0, 50),
    "exec_parallel": (0, 50), "exec_parallel_multiple": (0, 40), "rest": (0, 70),
}  # fmt: skip
_OLD = {"simple_python": "simple", "simple_java": "java", "simple_javascript": "javascript"}
_LANGUAGES: dict[str, Language] = {"simple_java": "java", "simple_javascript": "javascript"}
# The first of these words that is in a name says the rule.
_RULES: dict[str, Rule] = {
    "multi_turn": "multi_turn", "web_search": "agentic", "memory": "agentic", "exec_": "execution", "rest": "execution",
    "irrelevance": "irrelevance", "relevance": "relevance", "parallel": "parallel", "multiple": "multiple", "": "one",
}  # fmt: skip

CATEGORIES: Mapping[str, Category] = MappingProxyType(
    {
        name: Category(
            name=name,
            old_name=_OLD.get(name, name),
            rule=next(rule for word, rule in _RULES.items() if word in name),
            rows=rows[0],
            old_rows=rows[-1],
            language=_LANGUAGES.get(name, "python"),
        )
        for name, rows in _ROWS.items()
    }
)
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
