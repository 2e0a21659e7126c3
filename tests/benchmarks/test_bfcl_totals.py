"""Totals against published tables, and what happens to them when categories are missing."""

import pytest

from ttpa.benchmarks.bfcl.categories import CATEGORIES, category_of_id, find_category
from ttpa.benchmarks.bfcl.totals import Aggregate, aggregates

# Published rows, in per cent with two decimals: so totals agree to 0.01. The first is a score table that its authors
# sent to GitHub ShishirPatil/gorilla (pull request 1308, score/data_*.csv); the second is of GitHub
# maxkochanoff/function-calling (data_overall.csv, Llama-3.1-8B-Instruct prompted).
V4 = {
    "simple_python": 94.50, "simple_java": 76.00, "simple_javascript": 72.00, "multiple": 94.50, "parallel": 91.50,
    "parallel_multiple": 88.00, "irrelevance": 85.42, "live_simple": 84.11, "live_multiple": 71.89,
    "live_parallel": 75.00, "live_parallel_multiple": 75.00, "live_irrelevance": 89.71, "multi_turn_base": 60.50,
    "multi_turn_miss_func": 51.00, "multi_turn_miss_param": 47.50, "multi_turn_long_context": 56.00,
    "web_search_base": 77.00, "web_search_no_snippet": 82.00, "memory_kv": 87.10, "memory_vector": 87.10,
    "memory_rec_sum": 87.10,
}  # fmt: skip
# That table gives only the mean of the three simple categories (72.92) and of the two irrelevance ones (48.59). 129 of
# 240 and 383 of 882 is what fits that mean and both totals; the simple parts need not be told apart.
V3 = {
    "simple_python": 72.92, "simple_java": 72.92, "simple_javascript": 72.92, "multiple": 93.00, "parallel": 87.50,
    "parallel_multiple": 84.00, "irrelevance": 100 * 129 / 240, "live_simple": 74.03, "live_multiple": 73.03,
    "live_parallel": 50.00, "live_parallel_multiple": 54.17, "live_irrelevance": 100 * 383 / 882,
    "live_relevance": 77.78, "multi_turn_base": 10.00, "multi_turn_miss_func": 8.50, "multi_turn_miss_param": 7.00,
    "multi_turn_long_context": 9.00,
}  # fmt: skip


def totals(table: dict[str, float], version: str) -> dict[str, Aggregate]:
    scores = {name: value / 100 for name, value in table.items()}
    return {total.name: total for total in aggregates(scores, version=version)}


@pytest.mark.parametrize(
    ("table", "version", "published"),
    [
        (V4, "v4", {"overall": 74.50, "non_live": 88.71, "simple": 80.83, "live": 74.32, "irrelevance": 87.56,
                    "multi_turn": 53.75, "web_search": 79.50, "memory": 87.10}),
        (V3, "v3", {"overall": 49.36, "live": 61.22, "multi_turn": 8.62, "irrelevance": 48.59, "relevance": 77.78}),
    ],
)  # fmt: skip
def test_published_tables(table: dict[str, float], version: str, published: dict[str, float]) -> None:
    found = totals(table, version)
    for name, value in published.items():
        assert found[name].value == pytest.approx(value / 100, abs=0.00011), name
        assert found[name].covered == pytest.approx(1)


def test_weights_by_hand() -> None:
    """v4: one category right, all others wrong, gives that category's weight; without any of them there is no score."""
    weights = {
        "simple_java": 0.1 / 4 / 3, "multiple": 0.1 / 4, "live_multiple": 0.1 * 1053 / 1351,
        "live_parallel": 0.1 * 16 / 1351, "irrelevance": 0.05, "multi_turn_base": 0.3 / 4, "web_search_base": 0.4 / 4,
        "memory_kv": 0.4 / 6,
    }  # fmt: skip
    for name, weight in weights.items():
        assert aggregates({other: float(other == name) for other in V4})[0].value == pytest.approx(weight)
    assert all(aggregates({other: 1.0 for other in V4 if other != missing})[0].value is None for missing in V4)


def test_what_was_not_run_is_none_and_not_zero() -> None:
    """The leaderboard's own table gives 0.82 % for a run of which simple_python alone, at 98 %, was done."""
    found = totals({"simple_python": 98.0}, "v4")
    assert found["overall"].value is None and found["simple"].value is None
    assert found["overall"].covered == pytest.approx(0.1 / 12)
    assert all(total.value is None and total.covered == 0 for total in aggregates({}))


def test_partly_done() -> None:
    """Without multi-turn and agentic there are totals below the overall score; covered shares count questions."""
    scores = {name: 0.5 for name, category in CATEGORIES.items() if category.rule not in ("multi_turn", "agentic")}
    found = {total.name: total for total in aggregates(scores)}
    assert found["overall"].value is None and found["overall"].covered == pytest.approx(0.3)
    assert found["live"].value == found["non_live"].value == 0.5
    cases = {name: CATEGORIES[name].rows // 2 for name in scores}
    half = {total.name: total for total in aggregates(scores, cases=cases)}
    assert half["live"].value == 0.5 and half["live"].covered == pytest.approx(0.5, abs=0.001)
    assert not half["relevance"].counts and half["relevance"].depth == 0


def test_categories() -> None:
    assert sum(category.rows for category in CATEGORIES.values()) == 1390 + 2251 + 800 + 665
    assert find_category("java") is find_category("simple_java") and find_category("") is None
    assert category_of_id("live_parallel_multiple_3-2-1") is CATEGORIES["live_parallel_multiple"]
    assert category_of_id("simple_7") is CATEGORIES["simple_python"]
    assert category_of_id("toy-1") is None
