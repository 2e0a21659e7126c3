"""Trees packed into rows: nothing lost, budgets kept, and a mask that keeps trees and padding apart."""

from __future__ import annotations

import doctest
import random
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.policy import forest
from ttpa.policy.forest import Forest, TokenTree, ancestor_mask, pack

sizes_of_trees = st.lists(st.integers(0, 60), max_size=25)


def random_trees(seed: int, count: int) -> list[TokenTree]:
    rng = random.Random(seed)

    def sequence() -> list[int]:
        return [rng.randrange(1, 4) for _ in range(rng.randint(0, 6))]

    return [TokenTree.build([sequence() for _ in range(rng.randint(0, 5))]) for _ in range(count)]


def ancestors(tree: TokenTree, node: int) -> set[int]:
    """The node and those above it, following `parent`."""
    found = {node}
    while (node := int(tree.parent[node])) >= 0:
        found.add(node)
    return found


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
    assert doctest.testmod(forest).failed == 0


# --- layout ------------------------------------------------------------------------------------------------------


def test_layout_worked_by_hand() -> None:
    """Rows of 3 + 1 and 2 nodes; two places of the second row are free."""
    trees = [TokenTree.build(rows) for rows in ([[5, 6], [5, 7]], [[8, 9]], [[4]])]
    laid = Forest.of(trees, [[0, 2], [1]], pad_id=99)
    assert laid.token.tolist() == [[5, 6, 7, 4], [8, 9, 99, 99]]
    assert laid.depth.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert laid.end.tolist() == [[3, 2, 3, 4], [2, 2, 3, 4]]
    assert laid.offset.tolist() == [0, 4, 3] and laid.tokens == 6


def test_no_trees_make_an_empty_forest() -> None:
    laid = Forest.of([], [])
    assert laid.token.shape == laid.depth.shape == laid.end.shape == (0, 0)
    assert laid.offset.shape == (0,) and laid.tokens == 0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 7), budget=st.integers(1, 40))
def test_every_tree_is_found_at_its_offset(seed: int, count: int, budget: int) -> None:
    trees = random_trees(seed, count)
    laid = Forest.of(trees, pack([len(tree) for tree in trees], budget), pad_id=77)
    assert laid.tokens == sum(map(len, trees))
    free = np.ones(laid.token.size, bool)
    for tree, offset in zip(trees, laid.offset, strict=True):
        here = np.arange(len(tree)) + offset
        assert free[here].all()
        free[here] = False
        column = offset % laid.token.shape[1] if laid.token.size else 0
        assert np.array_equal(laid.token.ravel()[here], tree.token)
        assert np.array_equal(laid.depth.ravel()[here], tree.depth)
        assert np.array_equal(laid.end.ravel()[here], tree.end + column)
    assert (laid.token.ravel()[free] == 77).all() and (laid.depth.ravel()[free] == 0).all()


# --- mask --------------------------------------------------------------------------------------------------------


def test_mask_worked_by_hand() -> None:
    """1 - 2, 1 - 3 beside the tree 4: nodes 2 and 3 see 1 and themselves, 4 sees itself."""
    laid = Forest.of([TokenTree.build([[1, 2], [1, 3]]), TokenTree.build([[4]])], [[0, 1]])
    assert ancestor_mask(torch.from_numpy(laid.end)).int().tolist() == [
        [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]]
    ]


def expected_mask(trees: Sequence[TokenTree], rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        at = 0
        for k in row:
            for node in range(len(trees[k])):
                for above in ancestors(trees[k], node):
                    mask[number, at + node, at + above] = True
            at += len(trees[k])
    return mask[:, None]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 7), budget=st.integers(1, 40))
def test_nodes_see_their_ancestors_and_padding_sees_itself(seed: int, count: int, budget: int) -> None:
    """In rows of several trees: nobody sees another tree, or what fills the row, and that sees nobody."""
    trees = random_trees(seed, count)
    rows = pack([len(tree) for tree in trees], budget)
    laid = Forest.of(trees, rows)
    mask = ancestor_mask(torch.from_numpy(laid.end))
    assert mask.dtype == torch.bool and mask.shape == (len(rows), 1, laid.end.shape[1], laid.end.shape[1])
    assert torch.equal(mask, expected_mask(trees, rows, laid.end.shape[1]))
    assert bool(mask.diagonal(dim1=2, dim2=3).all()), "a row of the softmax would be empty"


def test_order_of_the_trees_in_a_row_moves_nodes_and_nothing_else() -> None:
    trees = random_trees(3, 4)
    first, second = Forest.of(trees, [[0, 1, 2, 3]]), Forest.of(trees, [[2, 0, 3, 1]])
    masks = [ancestor_mask(torch.from_numpy(laid.end))[0, 0] for laid in (first, second)]
    places = [
        torch.cat([torch.arange(len(tree)) + int(offset) for tree, offset in zip(trees, laid.offset, strict=True)])
        for laid in (first, second)
    ]
    blocks = [mask[place][:, place] for mask, place in zip(masks, places, strict=True)]
    assert torch.equal(*blocks)
