"""Token trees against the definitions: a node is a distinct prefix, its ancestors are the prefixes of that prefix.
Batches keep their budgets and lose nothing.
"""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.policy import tree
from ttpa.policy.tree import TokenTree, bucket_by_tokens, bundle, pack

Sequences = Sequence[Sequence[int]]

sequence_sets = st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=8)
"""Three tokens, so that prefixes, duplicates and whole sequences inside others come by themselves."""
sizes_of_trees = st.lists(st.integers(0, 60), max_size=25)


def prefix_of(built: TokenTree, node: int) -> tuple[int, ...]:
    """The tokens from the root to a node, following `parent`."""
    found = [int(built.token[node])]
    while (node := int(built.parent[node])) >= 0:
        found.append(int(built.token[node]))
    return tuple(found[::-1])


# --- worked by hand --------------------------------------------------------------------------------------------------


def test_branches_at_three_depths() -> None:
    """
    1 - 2 - 3 - 4    nodes 1 2 3 4 5 6 9 9
              - 5
          - 6
      - 9 9
    """
    built = TokenTree.build([[1, 2, 3, 4], [1, 9, 9], [1, 2, 6], [1, 2, 3, 5]])
    assert built.token.tolist() == [1, 2, 3, 4, 5, 6, 9, 9]
    assert built.parent.tolist() == [-1, 0, 1, 2, 2, 1, 0, 6]
    assert built.depth.tolist() == [0, 1, 2, 3, 3, 2, 1, 2]
    assert built.end.tolist() == [8, 6, 5, 4, 5, 6, 8, 8]
    assert [path.tolist() for path in built.paths] == [[0, 1, 2, 3], [0, 6, 7], [0, 1, 5], [0, 1, 2, 4]]


def test_sequences_without_a_common_first_token_get_several_roots() -> None:
    built = TokenTree.build([[6], [5, 5]])
    assert built.token.tolist() == [5, 5, 6] and built.parent.tolist() == [-1, 0, -1]
    assert built.depth.tolist() == [0, 1, 0] and built.end.tolist() == [2, 2, 3]


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_no_tokens_make_an_empty_tree(sequences: Sequences) -> None:
    built = TokenTree.build(sequences)
    assert len(built) == 0 and [len(path) for path in built.paths] == [0] * len(sequences)
    assert all(array.shape == (0,) for array in (built.token, built.parent, built.depth, built.end, *built.paths))


def test_turns_of_a_dialogue_share_their_history() -> None:
    """Three turns, each prompt the last one's prompt, answer and a question more: as many nodes as the last row."""
    prompt, rows = [1, 2, 3], []
    for turn in range(3):
        answer = [10 + turn, 20 + turn]
        rows.append([*prompt, *answer])
        prompt = [*prompt, *answer, 30 + turn]
    built = TokenTree.build(rows)
    assert len(built) == len(rows[-1]) == 11 and sum(map(len, rows)) == 24


def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(tree).failed == 0


# --- trees against the definitions -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
@example(sequences=[[0], [0, 0], [0, 0, 0], [1], []])
def test_nodes_are_the_distinct_prefixes_and_paths_give_the_sequences_back(sequences: Sequences) -> None:
    built = TokenTree.build(sequences)
    found = [prefix_of(built, node) for node in range(len(built))]
    wanted = {tuple(sequence[:size]) for sequence in sequences for size in range(1, len(sequence) + 1)}
    assert len(found) == len(wanted) and set(found) == wanted
    assert built.depth.tolist() == [len(prefix) - 1 for prefix in found]
    assert [built.token[path].tolist() for path in built.paths] == [list(sequence) for sequence in sequences]


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
def test_the_rule_is_the_ancestor_relation_in_preorder(sequences: Sequences) -> None:
    """`j <= i < end[j]` says that j's prefix is a prefix of i's, the node itself included; siblings ascend by token."""
    built = TokenTree.build(sequences)
    found = [prefix_of(built, node) for node in range(len(built))]
    for i, inner in enumerate(found):
        for j, outer in enumerate(found):
            assert (j <= i < built.end[j]) == (inner[: len(outer)] == outer)
    assert found == sorted(found)


def test_a_deep_tree_that_branches_everywhere_is_no_trouble() -> None:
    """Ten thousand tokens; every tenth has a second answer."""
    trunk = [1] * 10_000
    built = TokenTree.build([trunk, *([*trunk[:size], 2] for size in range(0, 10_000, 10))])
    assert len(built) == 11_000 and built.end[0] == 10_999 and built.end[-1] == 11_000


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "budget", "batches"),
    [
        ([], 10, []),
        ([30, 70, 60, 40], 100, [[1, 0], [2, 3]]),
        ([5, 11, 5], 10, [[1], [0, 2]]),  # one tree is over the budget
        ([8, 7, 3, 2], 10, [[0, 3], [1, 2]]),  # the 3 fits only the 7; then both are full but for the 2
        ([6, 7, 3], 10, [[1, 2], [0]]),  # best fit: the 3 fills the 7, though the 6 has room
        (np.array([4] * 5), 8, [[0, 1], [2, 3], [4]]),  # equal sizes in order
    ],
)
def test_packing_worked_by_hand(sizes: list[int], budget: int, batches: list[list[int]]) -> None:
    assert pack(sizes, budget) == batches


@settings(deadline=None, max_examples=200)
@given(sizes=sizes_of_trees, budget=st.integers(1, 80))
@example(sizes=[50, 0, 0], budget=10)
def test_every_tree_is_in_one_batch_and_no_two_batches_would_fit_into_one(sizes: list[int], budget: int) -> None:
    """A tree over the budget is alone."""
    batches = pack(sizes, budget)
    assert sorted(k for batch in batches for k in batch) == list(range(len(sizes)))
    filled = [sum(sizes[k] for k in batch) for batch in batches]
    assert all(fill <= budget or len(batch) == 1 for fill, batch in zip(filled, batches, strict=True))
    assert all(left + right > budget for left, right in combinations(filled, 2))


# --- buckets and bundles ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200), data=st.data())
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(lengths)))) if lengths else []
    batches = bucket_by_tokens(rows, lengths, budget)
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat)
    for batch in batches:
        assert batch and (len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= budget)
    for batch, after in pairwise(batches):
        assert lengths[after[0]] * (len(batch) + 1) > budget, "the batch could have taken one more"


def test_only_the_rows_asked_for_are_bucketed_and_equal_ones_keep_their_order() -> None:
    """Lengths 9 and 4 of rows 1 and 3; 2 * 9 is over the budget of 17."""
    assert bucket_by_tokens([1, 3], [100, 9, 100, 4], 17) == [[3], [1]]
    assert bucket_by_tokens([3, 1, 2, 0], [7, 7, 7, 7], 14) == [[3, 1], [2, 0]]
    assert bucket_by_tokens([], [1, 2], 10) == []


def test_bundles_worked_by_hand() -> None:
    """Unit 7 has rows of 10, 30 and 20 tokens, own 1, 2 and 4: 30 + 1 + 4. Unit 8 is one row of 15."""
    lengths, own, units = [10, 15, 30, 20], [1, 9, 2, 4], [7, 8, 7, 7]
    assert bundle([0, 1, 2, 3], units, lengths, own) == ([[0, 2, 3], [1]], [35, 15])
    assert bundle([3, 1], units, lengths, own) == ([[3], [1]], [20, 15])
    assert bundle([], units, lengths, own) == ([], [])
