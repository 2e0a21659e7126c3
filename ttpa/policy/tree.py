"""Token sequences that share prefixes, as a tree in depth-first preorder; and rows of tokens cut into batches.

In preorder the descendants of a node stand right behind it. So with `end[j]`, one past the last descendant of node j,
who attends to whom is one comparison: j is an ancestor of i, or i itself  <=>  j <= i < end[j].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

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
    """A tree of N tokens: arrays (N,), with parent -1 and depth 0 for a root (depth is the position id). `paths[k]` are
    the nodes of sequence k from its root on.
    """

    token: Ints
    parent: Ints
    depth: Ints
    end: Ints
    paths: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.token)

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Merges sequences by their shared prefixes: in lexicographic order, each adds, in preorder, the tokens behind
        the prefix that it shares with the one before. Empty sequences and duplicates are allowed.
        """
        arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        paths = [np.empty(0, np.int64)] * len(arrays)
        token, parent, depth, end = np.empty((4, sum(map(len, arrays))), np.int64)
        size, before, path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
        for k in sorted(range(len(arrays)), key=lambda k: arrays[k].tolist()):
            common = min(len(before), len(arrays[k]))
            shared = int(np.argmin(np.append(before[:common] == arrays[k][:common], False)))
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


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Trees of given sizes into batches of at most `budget` nodes: best fit, largest first. A larger tree gets a batch
    of its own.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        _, best = min([(left, b) for b, left in enumerate(room) if left >= sizes[k]], default=(0, len(room)))
        if best == len(room):
            batches.append([])
            room.append(budget)
        batches[best].append(k)
        room[best] -= sizes[k]
    return batches


def bucket_by_tokens(rows: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers into batches whose padded size (longest row times count) stays within the budget, shortest first.
    `lengths` is indexed by row number. A longer row gets a batch of its own; rows of equal length keep their order.
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: lengths[i]):
        # Lengths ascend, so the newest member is the longest.
        if not batches or lengths[row] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches
