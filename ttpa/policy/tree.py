"""Sequences that share prefixes, merged into one tree in depth-first preorder.

Every sequence is a path from a root. In preorder a node's descendants stand right behind it, so with `end[i]` (one past
the last descendant of i) the whole attention mask is one comparison:

    j is an ancestor of i, or i itself  <=>  j <= i < end[j]

Any sequences may share a tree: the answers to one prompt, the turns of one dialogue (a turn's history is the next one's
prefix), samples with the same tool block. Sequences without a common first token give several roots, which the same
rule keeps apart. This module knows neither models nor losses; `ttpa.policy.tree` packs trees into rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Prompt ids and answer ids (end-of-turn included) of one sequence."""

    prompt: Sequence[int]
    answer: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def shared_prefix(left: Ints, right: Ints) -> int:
    """Number of leading tokens two sequences have in common."""
    size = min(len(left), len(right))
    differs = np.flatnonzero(left[:size] != right[:size])
    return int(differs[0]) if len(differs) else size


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """A tree of tokens in preorder.

    Arrays of shape (N,), N nodes: `token`, `parent` (-1 for a root), `depth` (0 for a root; it is the position id) and
    `end` (one past the last descendant). `paths[k]` holds the nodes of sequence k from its root on, in the order in
    which the sequences were given; equal sequences have equal paths, and a sequence that is a prefix of another ends
    at an inner node.

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
        """Merges sequences by their shared prefixes.

        In lexicographic order a sequence adds to the tree exactly the tokens behind what it shares with the sequence
        before it, and adds them in preorder; so one sort and one comparison a neighbour build the tree.

        Args:
            sequences: Token ids. Empty sequences and duplicates are allowed.
        """
        arrays = [np.asarray(sequence, dtype=np.int64).reshape(-1) for sequence in sequences]
        order = sorted(range(len(arrays)), key=lambda k: arrays[k].tolist())
        paths: list[Ints] = [np.empty(0, np.int64)] * len(arrays)
        tokens, parents, depths, branches = [], [], [], []
        size, before, path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
        for k in order:
            shared = shared_prefix(before, arrays[k])
            added = len(arrays[k]) - shared
            fresh = np.arange(size, size + added)
            path = np.concatenate([path[:shared], fresh])
            if added:
                tokens.append(arrays[k][shared:])
                depths.append(np.arange(shared, shared + added))
                parents.append(np.concatenate([[path[shared - 1] if shared else -1], fresh[:-1]]))
                branches.append((size, shared))
                size += added
            paths[k], before = path, arrays[k]
        if not size:
            empty = np.empty(0, np.int64)
            return cls(empty, empty, empty, empty, tuple(paths))
        depth = np.concatenate(depths)
        return cls(np.concatenate(tokens), np.concatenate(parents), depth, _ends(depth, branches), tuple(paths))


def _ends(depth: Ints, branches: Sequence[tuple[int, int]]) -> Ints:
    """One past the last descendant of each node.

    A node's subtree is closed by the next branch that starts at its depth or above. `branches` are (first node, depth)
    of the runs of fresh nodes; open runs are kept on a stack, deepest last, each node written once.
    """
    end = np.full(len(depth), len(depth), np.int64)
    open_runs: list[tuple[int, int, int]] = []  # (first node, depth of the first node, depth of the last open node + 1)
    starts = [*(start for start, _ in branches), len(depth)]
    for number, (start, branch_depth) in enumerate(branches):
        while open_runs and open_runs[-1][2] > branch_depth:
            first, top, bottom = open_runs.pop()
            cut = max(top, branch_depth)
            end[first + cut - top : first + bottom - top] = start
            if cut > top:
                open_runs.append((first, top, cut))
                break
        open_runs.append((start, branch_depth, branch_depth + starts[number + 1] - start))
    return end


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Trees into rows of at most `budget` nodes: best fit, largest first.

    Args:
        sizes: Nodes of each tree. A tree larger than the budget gets a row of its own.
        budget: Nodes a row.

    Returns:
        Tree numbers of each row.

    Example:
        >>> pack([30, 70, 60, 40], budget=100)
        [[1, 0], [2, 3]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        fitting = [(room[r], r) for r in range(len(rows)) if room[r] >= sizes[k]]
        if fitting:
            _, best = min(fitting)
            rows[best].append(k)
            room[best] -= sizes[k]
        else:
            rows.append([k])
            room.append(budget - sizes[k])
    return rows


Bundles = tuple[list[list[int]], list[int]]


def bundle(rows: Sequence[int], units: Sequence[int], lengths: Sequence[int], own: Sequence[int]) -> Bundles:
    """Rows that share prefixes, kept together: the turns of one dialogue.

    Args:
        rows: Row numbers.
        units: Unit of each row, indexed by row number; rows of one unit make one bundle.
        lengths: Tokens of each row.
        own: Tokens of each row that no other row of its unit has (its answer).

    Returns:
        The bundles in order of their first rows, and the tokens of each when shared ones count once: the longest row
        and what the others add, which is an upper bound.
    """
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(units[row], []).append(row)
    bundles = list(members.values())
    costs = []
    for group in bundles:
        longest = max(group, key=lambda row: lengths[row])
        costs.append(lengths[longest] + sum(own[row] for row in group if row != longest))
    return bundles, costs


def bucket_by_tokens(rows: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in batches whose padded size (longest times count) stays within the budget, shortest first.

    Args:
        rows: Row numbers; rows of equal length keep their order.
        lengths: Tokens of each row, indexed by row number.
        budget: Padded tokens a batch. A row longer than that gets a batch of its own.

    Example:
        >>> bucket_by_tokens(range(4), [5, 100, 6, 5], budget=20)
        [[0, 3, 2], [1]]
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: lengths[i]):
        # Ascending order: the newest member is the longest.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
