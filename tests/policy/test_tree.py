"""Token trees against the definitions: a node is a distinct prefix, its ancestors are the prefixes of that prefix."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.policy import tree
from ttpa.policy.tree import TokenTree

Sequences = Sequence[Sequence[int]]

few_tokens = st.lists(st.integers(0, 2), max_size=7)
"""Three tokens, so that prefixes, duplicates and whole sequences inside others come by themselves."""
sequence_sets = st.lists(few_tokens, max_size=8)


def prefixes(sequences: Sequences) -> set[tuple[int, ...]]:
    """All distinct prefixes but the empty one."""
    return {tuple(sequence[:size]) for sequence in sequences for size in range(1, len(sequence) + 1)}


def prefix_of(built: TokenTree, node: int) -> tuple[int, ...]:
    """The tokens from the root to a node, following `parent`."""
    found = [int(built.token[node])]
    while (node := int(built.parent[node])) >= 0:
        found.append(int(built.token[node]))
    return tuple(found[::-1])


# --- worked by hand ----------------------------------------------------------------------------------------------


def test_two_answers_to_one_prompt() -> None:
    """
    7 8 - 1 2        nodes 7 8 1 2 3 4
        - 3 4
    """
    built = TokenTree.build([[7, 8, 3, 4], [7, 8, 1, 2]])
    assert built.token.tolist() == [7, 8, 1, 2, 3, 4]
    assert built.parent.tolist() == [-1, 0, 1, 2, 1, 4]
    assert built.depth.tolist() == [0, 1, 2, 3, 2, 3]
    assert built.end.tolist() == [6, 6, 4, 4, 6, 6]
    assert [path.tolist() for path in built.paths] == [[0, 1, 4, 5], [0, 1, 2, 3]]


def test_branches_at_three_depths() -> None:
    """
    1 - 2 - 3 - 4    nodes 1 2 3 4 5 6 9 9
              - 5
          - 6
      - 9 9
    """
    built = TokenTree.build([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [1, 9, 9]])
    assert built.token.tolist() == [1, 2, 3, 4, 5, 6, 9, 9]
    assert built.parent.tolist() == [-1, 0, 1, 2, 2, 1, 0, 6]
    assert built.end.tolist() == [8, 6, 5, 4, 5, 6, 8, 8]


def test_several_roots() -> None:
    """Nothing is shared where first tokens differ: 5 5 | 6."""
    built = TokenTree.build([[6], [5, 5]])
    assert built.token.tolist() == [5, 5, 6] and built.parent.tolist() == [-1, 0, -1]
    assert built.depth.tolist() == [0, 1, 0] and built.end.tolist() == [2, 2, 3]
    assert [path.tolist() for path in built.paths] == [[2], [0, 1]]


def test_equal_sequences_and_prefixes_add_no_nodes() -> None:
    built = TokenTree.build([[4, 5], [4, 5, 6], [], [4, 5]])
    assert built.token.tolist() == [4, 5, 6] and built.end.tolist() == [3, 3, 3]
    assert [path.tolist() for path in built.paths] == [[0, 1], [0, 1, 2], [], [0, 1]]


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_no_tokens_make_an_empty_tree(sequences: Sequences) -> None:
    built = TokenTree.build(sequences)
    assert len(built) == 0 and [len(path) for path in built.paths] == [0] * len(sequences)
    for array in (built.token, built.parent, built.depth, built.end, *built.paths):
        assert array.shape == (0,) and array.dtype == np.int64


def test_turns_of_a_dialogue_share_their_history() -> None:
    """Three turns, each prompt the last one's prompt, answer and a question more: as many nodes as the last row."""
    prompt, rows = [1, 2, 3], []
    for turn in range(3):
        answer = [10 + turn, 20 + turn]
        rows.append([*prompt, *answer])
        prompt = [*prompt, *answer, 30 + turn]
    built = TokenTree.build(rows)
    assert len(built) == len(rows[-1]) == 11 and sum(map(len, rows)) == 24
    assert set(built.end.tolist()) == {11} and built.depth.tolist() == list(range(11))
    # Two candidates more at the first turn hang on the first prompt.
    built = TokenTree.build([*rows, [1, 2, 3, 50], [1, 2, 3, 60, 61]])
    assert len(built) == 14 and built.depth[built.paths[4]].tolist() == [0, 1, 2, 3, 4]


def test_token_ids_are_kept_whatever_their_size() -> None:
    built = TokenTree.build([[2**40, 0], [2**40, 151_935]])
    assert built.token.tolist() == [2**40, 0, 151_935]


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(tree).failed == 0


@pytest.mark.parametrize(
    ("left", "right", "shared"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 3], 1), ([2], [1, 2], 0)]
)
def test_shared_prefix_worked_by_hand(left: list[int], right: list[int], shared: int) -> None:
    arrays = np.array(left, np.int64), np.array(right, np.int64)
    assert tree.shared_prefix(*arrays) == tree.shared_prefix(*arrays[::-1]) == shared


# --- against the definitions -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
@example(sequences=[[0], [0, 0], [0, 0, 0], [1], []])
def test_nodes_are_the_distinct_prefixes(sequences: Sequences) -> None:
    built = TokenTree.build(sequences)
    found = [prefix_of(built, node) for node in range(len(built))]
    assert len(found) == len(set(found)) and set(found) == prefixes(sequences)
    assert built.depth.tolist() == [len(prefix) - 1 for prefix in found]


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
def test_paths_give_the_sequences_back(sequences: Sequences) -> None:
    built = TokenTree.build(sequences)
    assert len(built.paths) == len(sequences)
    for sequence, path in zip(sequences, built.paths, strict=True):
        assert built.token[path].tolist() == list(sequence)
        assert built.depth[path].tolist() == list(range(len(sequence)))
        assert built.parent[path].tolist() == [-1, *path.tolist()][: len(sequence)]


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
def test_the_rule_is_the_ancestor_relation(sequences: Sequences) -> None:
    """`j <= i < end[j]` says that j's prefix is a prefix of i's, the node itself included."""
    built = TokenTree.build(sequences)
    found = [prefix_of(built, node) for node in range(len(built))]
    for i, inner in enumerate(found):
        for j, outer in enumerate(found):
            assert (j <= i < built.end[j]) == (inner[: len(outer)] == outer)


@settings(deadline=None, max_examples=200)
@given(sequences=sequence_sets)
def test_nodes_stand_in_preorder(sequences: Sequences) -> None:
    """A node's first child stands right behind it; a subtree is an interval; siblings ascend by token."""
    built = TokenTree.build(sequences)
    for node in range(len(built)):
        children = np.flatnonzero(built.parent == node).tolist()
        assert children[:1] == [node + 1][: len(children)]
        assert built.end[node] == (built.end[children[-1]] if children else node + 1)
        assert all(built.end[left] == right for left, right in pairwise(children))
        assert built.token[children].tolist() == sorted(set(built.token[children].tolist()))
    roots = np.flatnonzero(built.parent == -1).tolist()
    assert roots == [0, *built.end[roots].tolist()][: len(roots)] and len(set(built.token[roots].tolist())) == len(
        roots
    )


@settings(deadline=None, max_examples=100)
@given(data=st.data(), sequences=sequence_sets)
def test_order_of_the_sequences_only_permutes_the_paths(data: st.DataObject, sequences: Sequences) -> None:
    order = data.draw(st.permutations(range(len(sequences))))
    built, mixed = TokenTree.build(sequences), TokenTree.build([sequences[k] for k in order])
    for name in ("token", "parent", "depth", "end"):
        assert np.array_equal(getattr(built, name), getattr(mixed, name))
    assert [path.tolist() for path in mixed.paths] == [built.paths[k].tolist() for k in order]


def test_a_sequence_of_ten_thousand_tokens_and_a_thousand_branches_is_no_trouble() -> None:
    """Every tenth token has a second answer: a tree that is deep and branches everywhere."""
    trunk = [1] * 10_000
    built = TokenTree.build([trunk, *([*trunk[:size], 2] for size in range(0, 10_000, 10))])
    assert len(built) == 11_000 and built.end[0] == 10_999 and built.end[-1] == 11_000
    assert built.depth.max() == 9_999
