"""The categories of the Berkeley Function Calling Leaderboard (BFCL): names, sizes, and which rule scores which."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

from ttpa.errors import ConfigError

Language = Literal["python", "java", "javascript"]
Rule = Literal["one", "multiple", "parallel", "irrelevance", "relevance", "multi_turn", "agentic"]

# Rules that look at one answer. Beside these, multi-turn conversations are scored, with the extra `bfcl`.
SINGLE_TURN: frozenset[Rule] = frozenset({"one", "multiple", "parallel", "irrelevance", "relevance"})


class Category(NamedTuple):
    name: str  # in version 4
    rule: Rule
    rows: int  # published in version 4
    old_rows: int  # published in version 3 (before 2025-07)
    language: Language = "python"
    old_name: str = ""  # in version 3, where it differs

    @property
    def has_answers(self) -> bool:
        return self.rule not in ("irrelevance", "relevance")


# Every category by its version 4 name, in the order in which tables show them.
CATEGORIES: Mapping[str, Category] = {
    row[0]: Category(*row)
    for row in (
        ("simple_python", "one", 400, 400, "python", "simple"),
        ("simple_java", "one", 100, 100, "java", "java"),
        ("simple_javascript", "one", 50, 50, "javascript", "javascript"),
        ("multiple", "multiple", 200, 200), ("parallel", "parallel", 200, 200),
        ("parallel_multiple", "parallel", 200, 200), ("irrelevance", "irrelevance", 240, 240),
        ("live_simple", "one", 258, 258), ("live_multiple", "multiple", 1053, 1053),
        ("live_parallel", "parallel", 16, 16), ("live_parallel_multiple", "parallel", 24, 24),
        ("multi_turn_base", "multi_turn", 200, 200), ("multi_turn_miss_func", "multi_turn", 200, 200),
        ("multi_turn_miss_param", "multi_turn", 200, 200), ("multi_turn_long_context", "multi_turn", 200, 200),
        ("live_irrelevance", "irrelevance", 884, 882), ("live_relevance", "relevance", 16, 18),
        ("web_search_base", "agentic", 100, 0), ("web_search_no_snippet", "agentic", 100, 0),
        ("memory_kv", "agentic", 155, 0), ("memory_vector", "agentic", 155, 0), ("memory_rec_sum", "agentic", 155, 0),
    )
}  # fmt: skip


def find_category(name: str) -> Category | None:
    """The category of a version 4 or version 3 name, None when there is no such one."""
    return CATEGORIES.get(name) or next((one for one in CATEGORIES.values() if name and one.old_name == name), None)


def category_of_id(case_id: str) -> Category | None:
    """The category that an id names: `live_multiple_59-22-6` is of `live_multiple`; None when it names none."""
    return find_category(case_id.split(":")[0].rsplit("_", 1)[0])


def need(problem: str, releases: Mapping[str, str], install: str) -> None:
    """Refuses, with a ConfigError that says what to install, a missing package or one of another release."""
    for name, wanted in releases.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            raise ConfigError.at(name, "not installed", problem, install) from None
        if wanted not in ("", found):
            raise ConfigError.at(name, found, problem, install)
