"""Packing trees into rows, and the attention mask of a row.

Trees side by side in a row are a forest: positions count from each tree's root, and the ancestor rule separates them. A
batch is a rectangle of rows; what is left free is filled with nodes that nobody sees and that see only themselves.
Shapes: B rows, T nodes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ttpa.policy.tree import Ints, TokenTree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees in rows.

    `token`, `depth`, `end` have shape (B, T); `end` counts within the row. `offset[k]` is the flat index (row * T +
    column) of the first node of tree k, so node i of tree k is flat node `offset[k] + i`. `tokens` counts real nodes.
    """

    token: Ints
    depth: Ints
    end: Ints
    offset: Ints
    tokens: int

    @classmethod
    def of(cls, trees: Sequence[TokenTree], rows: Sequence[Sequence[int]], pad_id: int = 0) -> Forest:
        """Lays trees out.

        Args:
            trees: The trees.
            rows: Numbers of the trees in each row, left to right; each tree in exactly one row.
            pad_id: Token of the free places.
        """
        width = max((sum(len(trees[k]) for k in row) for row in rows), default=0)
        token = np.full((len(rows), width), pad_id, np.int64)
        depth = np.zeros((len(rows), width), np.int64)
        end = np.tile(np.arange(1, width + 1), (len(rows), 1))
        offset = np.zeros(len(trees), np.int64)
        for number, row in enumerate(rows):
            at = 0
            for k in row:
                tree = trees[k]
                stop = at + len(tree)
                token[number, at:stop], depth[number, at:stop] = tree.token, tree.depth
                end[number, at:stop] = tree.end + at
                offset[k] = number * width + at
                at = stop
        return cls(token, depth, end, offset, sum(map(len, trees)))


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


def ancestor_mask(end_BT: Tensor) -> Tensor:
    """Who sees whom: True at (b, 0, i, j) where j is i or an ancestor of i, that is where `j <= i < end[j]`.

    Args:
        end_BT: One past the last descendant of each node, within the row, shape (B, T).

    Returns:
        Boolean mask (B, 1, T, T), queries before keys, as scaled_dot_product_attention takes it.
    """
    import torch

    at = torch.arange(end_BT.shape[1], device=end_BT.device)
    return ((at[None, :] <= at[:, None]) & (at[:, None] < end_BT[:, None, :]))[:, None]
