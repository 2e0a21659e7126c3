"""Trees packed into rows: nothing lost, budgets kept, and a mask that keeps trees and padding apart."""

from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.policy import tree
from ttpa.policy.tree import pack

sizes_of_trees = st.lists(st.integers(0, 60), max_size=25)


# --- packing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "budget", "rows"),
    [
        ([], 10, []),
        ([3], 10, [[0]]),
        ([30, 70, 60, 40], 100, [[1, 0], [2, 3]]),
        ([5, 11, 5], 10, [[1], [0, 2]]),  # one tree is over the budget
        ([6, 6, 4, 4], 10, [[0, 2], [1, 3]]),
        ([7, 5, 3, 2], 10, [[0, 2], [1, 3]]),
        ([8, 7, 3, 2], 10, [[0, 3], [1, 2]]),  # the 3 fits only the 7; then both are full but for the 2
        ([6, 7, 3], 10, [[1, 2], [0]]),  # best fit: the 3 fills the 7, though the 6 has room
    ],
)
def test_packing_worked_by_hand(sizes: list[int], budget: int, rows: list[list[int]]) -> None:
    assert pack(sizes, budget) == rows


@settings(deadline=None, max_examples=200)
@given(sizes=sizes_of_trees, budget=st.integers(1, 80))
@example(sizes=[50, 0, 0], budget=10)
def test_every_tree_is_in_one_row_and_rows_keep_the_budget(sizes: list[int], budget: int) -> None:
    """A tree over the budget is alone."""
    rows = pack(sizes, budget)
    assert sorted(k for row in rows for k in row) == list(range(len(sizes)))
    for row in rows:
        assert row and (sum(sizes[k] for k in row) <= budget or len(row) == 1)


@settings(deadline=None, max_examples=200)
@given(sizes=sizes_of_trees, budget=st.integers(1, 80))
def test_no_two_rows_would_fit_into_one(sizes: list[int], budget: int) -> None:
    filled = [sum(sizes[k] for k in row) for row in pack(sizes, budget)]
    assert all(left + right > budget for left, right in combinations(filled, 2))


@settings(deadline=None, max_examples=100)
@given(sizes=sizes_of_trees, budget=st.integers(1, 80))
def test_largest_first_into_the_fullest_row_that_has_room(sizes: list[int], budget: int) -> None:
    """Best fit decreasing, as plain bookkeeping over the rows' fillings."""
    fillings: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [filled for filled in fillings if filled + size <= budget]
        if fitting:
            fillings.remove(max(fitting))
        fillings.append(max(fitting, default=0) + size)
    assert sorted(fillings) == sorted(sum(sizes[k] for k in row) for row in pack(sizes, budget))


def test_trees_of_equal_size_are_taken_in_order() -> None:
    assert pack([4] * 5, 8) == [[0, 1], [2, 3], [4]]
    assert pack(np.array([4] * 5), 8) == pack([4] * 5, 8)


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(tree).failed == 0
