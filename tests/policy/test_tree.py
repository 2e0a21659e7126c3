"""Token trees against the definitions: a node is a distinct prefix, its ancestors are the prefixes of that prefix.
Batches keep their budgets and lose nothing.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.policy.tree import TokenTree, bucket_by_tokens, pack


def prefix_of(built: TokenTree, node: int) -> tuple[int, ...]:
    """The tokens from the root to a node, following `parent`."""
    found = [int(built.token[node])]
    while (node := int(built.parent[node])) >= 0:
        found.append(int(built.token[node]))
    return tuple(found[::-1])


@settings(deadline=None, max_examples=200)
@given(sequences=st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=8))
@example(sequences=[[0], [0, 0], [0, 0, 0], [1], []])
@example(sequences=[[]])
def test_nodes_are_the_distinct_prefixes_and_the_rule_is_their_ancestor_relation(
    sequences: Sequence[Sequence[int]],
) -> None:
    built = TokenTree.build(sequences)
    found = [prefix_of(built, node) for node in range(len(built))]
    assert found == sorted({tuple(sequence[: k + 1]) for sequence in sequences for k in range(len(sequence))})
    assert built.depth.tolist() == [len(prefix) - 1 for prefix in found]
    assert [built.token[path].tolist() for path in built.paths] == [list(sequence) for sequence in sequences]
    for i, inner in enumerate(found):
        for j, outer in enumerate(found):
            assert (j <= i < built.end[j]) == (inner[: len(outer)] == outer)


@pytest.mark.parametrize(
    ("sizes", "budget", "batches"),
    [
        ([], 10, []),
        ([5, 11, 5], 10, [[1], [0, 2]]),  # one tree is over the budget
        ([8, 7, 3, 2], 10, [[0, 3], [1, 2]]),  # the 3 fits only the 7; then both are full but for the 2
        ([6, 7, 3], 10, [[1, 2], [0]]),  # best fit: the 3 fills the 7, though the 6 has room
        ([4] * 5, 8, [[0, 1], [2, 3], [4]]),  # equal sizes in order
    ],
)
def test_packing_worked_by_hand(sizes: list[int], budget: int, batches: list[list[int]]) -> None:
    assert pack(sizes, budget) == batches


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 60), max_size=25), budget=st.integers(1, 80))
@example(sizes=[50, 0, 0], budget=10)
def test_every_tree_is_in_one_batch_and_no_two_batches_would_fit_into_one(sizes: list[int], budget: int) -> None:
    batches = pack(sizes, budget)
    assert sorted(k for batch in batches for k in batch) == list(range(len(sizes)))
    filled = [sum(sizes[k] for k in batch) for batch in batches]
    assert all(fill <= budget or len(batch) == 1 for fill, batch in zip(filled, batches, strict=True))
    assert all(left + right > budget for left, right in combinations(filled, 2))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200), data=st.data())
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True)) if lengths else []
    batches = bucket_by_tokens(rows, lengths, budget)
    assert [row for batch in batches for row in batch] == sorted(rows, key=lengths.__getitem__)
    for batch in batches:
        assert batch and (len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= budget)
    for batch, after in pairwise(batches):
        assert lengths[after[0]] * (len(batch) + 1) > budget, "the batch could have taken one more"
