"""Token sequences that share prefixes, as a tree in depth-first preorder; and rows of tokens cut into batches.

In preorder the descendants of a node stand right behind it. So with `end[i]`, one past the last descendant of node i,
the attention mask is one comparison:

    j is an ancestor of i, or i itself  <=>  j <= i < end[j]

Any sequences may share a tree: answers to one prompt, turns of one dialogue, samples with the same tools. Sequences
without a common first token get several roots, which the same rule separates. No models and no torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Prompt ids and answer ids (end of turn included) of one sequence."""

    prompt: Sequence[int]
    answer: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """A tree of N tokens in preorder.

    Arrays of shape (N,): `token`, `parent` (-1 for a root), `depth` (0 for a root; it is the position id) and `end` (one
    past the last descendant). `paths[k]` holds the nodes of sequence k from its root on, in the order in which the
    sequences were given. Equal sequences have equal paths.

    Example:
        >>> tree = TokenTree.build([[5, 6, 7], [5, 6, 8, 9], [5, 6]])
        >>> tree.token.tolist(), tree.parent.tolist(), tree.depth.tolist(), tree.end.tolist()
        ([5, 6, 7, 8, 9], [-1, 0, 1, 1, 3], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
        >>> [path.tolist() for path in tree.paths]
        [[0, 1, 2], [0, 1, 3, 4], [0, 1]]
    """

    token: Ints
    parent: Ints
    depth: Ints
    end: Ints
    paths: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.token)

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> TokenTree:
        """Merges sequences by their shared prefixes. Empty sequences and duplicates are allowed.

        In lexicographic order, a sequence adds exactly the tokens behind the prefix that it shares with the sequence
        before it, in preorder. Where it branches off, the subtrees below the last path are complete.
        """
        arrays = [np.asarray(sequence, dtype=np.int64).reshape(-1) for sequence in sequences]
        order = sorted(range(len(arrays)), key=lambda k: arrays[k].tolist())
        paths = [np.empty(0, np.int64)] * len(arrays)
        token, parent, depth, end = np.empty((4, sum(map(len, arrays))), np.int64)
        size, before, path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
        for k in order:
            shared = shared_prefix(before, arrays[k])
            end[path[shared:]] = size
            fresh = np.arange(size, size + len(arrays[k]) - shared)
            path = np.concatenate([path[:shared], fresh])
            token[fresh] = arrays[k][shared:]
            depth[fresh] = np.arange(shared, len(path))
            parent[fresh] = np.concatenate([[-1], path])[shared : len(path)]
            size += len(fresh)
            paths[k], before = path, arrays[k]
        end[path] = size
        return cls(token[:size], parent[:size], depth[:size], end[:size], tuple(paths))


def shared_prefix(left: Ints, right: Ints) -> int:
    """Number of leading tokens that two sequences have in common."""
    size = min(len(left), len(right))
    differs = np.flatnonzero(left[:size] != right[:size])
    return int(differs[0]) if len(differs) else size


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Trees into batches of at most `budget` nodes: best fit, largest first. A larger tree gets a batch of its own.

    Args:
        sizes: Nodes of each tree.
        budget: Nodes a batch.

    Returns:
        Tree numbers of each batch.

    Example:
        >>> pack([30, 70, 60, 40], budget=100)
        [[1, 0], [2, 3]]
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        fitting = [(room[b], b) for b in range(len(batches)) if room[b] >= sizes[k]]
        if fitting:
            _, best = min(fitting)
            batches[best].append(k)
            room[best] -= sizes[k]
        else:
            batches.append([k])
            room.append(budget - sizes[k])
    return batches


def bucket_by_tokens(rows: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows into batches whose padded size (longest row times count) stays within the budget, shortest rows first.

    Args:
        rows: Row numbers; rows of equal length keep their order.
        lengths: Tokens of each row, indexed by row number.
        budget: Padded tokens a batch. A longer row gets a batch of its own.

    Example:
        >>> bucket_by_tokens(range(4), [5, 100, 6, 5], budget=20)
        [[0, 3, 2], [1]]
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: lengths[i]):
        # Lengths ascend, so the newest member is the longest.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def bundle(
    rows: Sequence[int], units: Sequence[int], lengths: Sequence[int], own: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Groups rows that share prefixes, such as the turns of one dialogue.

    Args:
        rows: Row numbers.
        units: Unit of each row, indexed by row number; rows of one unit make one bundle.
        lengths: Tokens of each row.
        own: Tokens of each row that no other row of its unit has (its answer).

    Returns:
        The bundles in order of their first rows; and the tokens of each bundle with shared tokens counted once (an
        upper bound: the longest row, and the own tokens of the others).
    """
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(units[row], []).append(row)
    bundles, costs = list(members.values()), []
    for group in bundles:
        longest = max(group, key=lambda row: lengths[row])
        costs.append(lengths[longest] + sum(own[row] for row in group if row != longest))
    return bundles, costs
