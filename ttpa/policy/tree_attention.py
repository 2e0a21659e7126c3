"""Attention over packed token trees, on any architecture that lets its attention function be replaced.

Two exact ways to apply the ancestor rule `j <= i < end[j]`:

* `blocks` (CPU): a tree is cut into runs of nodes without a branching. A run attends to its ancestors and causally to
  itself, as one call; small subtrees are taken together behind one small mask. What no node may see is left out.
* `flex` (CUDA): the rule as a FlexAttention block mask, which skips blocks that are masked out.

The model runs on rows of shape (1, T): trees side by side, position ids equal to depths. How the rows are laid out
reaches the attention function through a context variable, so models need no changes.

Shapes: H heads, T nodes, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ttpa.policy.forest import TokenTree
from ttpa.policy.tree import Ints

NAME = "ttpa_tree"
CALL_COST = 10_000
"""What one more attention call costs, in query-key pairs: below it, subtrees are computed behind one mask."""


@dataclass(frozen=True, slots=True)
class Block:
    """One attention call: nodes [start, stop) of a row look at `keys` (their common ancestors) and at themselves.

    `keys` is a slice where the ancestors are contiguous. `mask` (stop - start, stop - start) says who sees whom inside;
    None means causal. The first `skip` nodes are keys only: nobody reads what they would look at.
    """

    start: int
    stop: int
    keys: slice | Tensor | None
    mask: Tensor | None
    skip: int = 0


def _runs(tree: TokenTree) -> tuple[Ints, Ints]:
    """First and one-past-last nodes of the runs: a run ends behind a leaf or a node with several children."""
    nodes = np.arange(len(tree))
    has_branch = np.bincount(tree.parent[tree.parent >= 0], minlength=len(tree)) > 1
    starts = np.flatnonzero((tree.parent != nodes - 1) | (nodes == 0) | has_branch[np.maximum(tree.parent, 0)])
    return starts, np.append(starts[1:], len(tree))


def plan_blocks(tree: TokenTree, offset: int) -> list[Block]:
    """Cuts a tree into attention calls, cheapest way by the number of query-key pairs.

    Args:
        tree: The tree.
        offset: Place of its first node in the row.
    """
    if not len(tree):
        return []
    starts, stops = _runs(tree)
    stop_of = dict(zip(starts.tolist(), stops.tolist(), strict=True))
    blocks: list[Block] = []

    def visit(first: int, last: int, above: Ints) -> None:
        """Nodes [first, last) are whole subtrees hanging on the path `above`."""
        size, depth = last - first, len(above)
        run_stop = stop_of[first]
        if run_stop == last:
            blocks.append(Block(first + offset, last + offset, _keys(above, offset), None))
            return
        split = _split_cost(tree, stop_of, first, last, depth)
        if size * (depth + size) <= split:
            closed, place = tree.end[first:last] - first, np.arange(size)
            mask = (place[None, :] <= place[:, None]) & (place[:, None] < closed[None, :])
            blocks.append(Block(first + offset, last + offset, _keys(above, offset), torch.from_numpy(mask)))
            return
        at = first
        while at < last:
            end, run_stop = int(tree.end[at]), stop_of[at]
            blocks.append(Block(at + offset, run_stop + offset, _keys(above, offset), None))
            if run_stop < end:
                visit(run_stop, end, np.concatenate([above, np.arange(at, run_stop)]))
            at = end

    visit(0, len(tree), np.empty(0, np.int64))
    return blocks


def _split_cost(tree: TokenTree, stop_of: dict[int, int], first: int, last: int, depth: int) -> float:
    """Query-key pairs of taking each run of [first, last) by itself, calls included."""
    cost, at = 0.0, first
    while at < last:
        length = stop_of[at] - at
        cost += length * (int(tree.depth[at]) + length / 2) + CALL_COST
        at = stop_of[at]
    return cost


def thinned(blocks: Sequence[Block], wanted_T: Any) -> list[Block]:
    """The blocks of a layer of which only the wanted nodes (booleans, T) are read, the nodes before them skipped."""
    found = []
    for block in blocks:
        inside = np.flatnonzero(wanted_T[block.start : block.stop])
        found.append(replace(block, skip=int(inside[0]) if len(inside) else block.stop - block.start))
    return found


def _keys(above: Ints, offset: int) -> slice | Tensor | None:
    if not len(above):
        return None
    if int(above[-1]) - int(above[0]) + 1 == len(above):
        return slice(int(above[0]) + offset, int(above[-1]) + 1 + offset)
    return torch.from_numpy(above + offset)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the row in the forward pass is laid out: the blocks in row order, or a FlexAttention block mask.

    `last` are the blocks of the last layer, whose number is `last_layer`; None where it is computed as the others.
    """

    blocks: Sequence[Block]
    flex: Any = None
    last: Sequence[Block] | None = None
    last_layer: int = -1


_LAYOUT: ContextVar[Layout | None] = ContextVar("tree_layout", default=None)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Within it, the tree attention knows the row."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def layout_now() -> Layout | None:
    return _LAYOUT.get()


@lru_cache(maxsize=16)
def _lower_right(queries: int, keys: int) -> Tensor:
    """Causal mask of queries that are the last of the keys, (queries, keys)."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row under the ancestor rule; the signature is transformers'.

    Args:
        query: (1, H, T, D). key, value: (1, H or fewer, T, D).

    Returns:
        (1, T, H, D) and None.
    """
    layout = layout_now()
    assert layout is not None, "a forward pass over trees needs `laid_out`"
    grouped = key.shape[1] != query.shape[1]
    if layout.flex is not None:
        from transformers.integrations.flex_attention import flex_attention_forward

        # It compiles the kernel once and keeps it; grouped keys and sizes that do not divide are its business.
        return flex_attention_forward(module, query, key, value, layout.flex, scaling=scaling)[0], None
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outs = []
    thin = layout.last is not None and getattr(module, "layer_idx", None) == layout.last_layer
    for block in (layout.last or ()) if thin else layout.blocks:
        if block.skip:
            outs.append(query.new_zeros(1, query.shape[1], block.skip, value.shape[3]))
        if block.skip == block.stop - block.start:
            continue
        here, asking = slice(block.start, block.stop), slice(block.start + block.skip, block.stop)
        k, v, mask = key[:, :, here], value[:, :, here], block.mask
        size = block.stop - block.start
        if block.keys is not None:
            k = torch.cat([key[:, :, block.keys], k], 2)
            v = torch.cat([value[:, :, block.keys], v], 2)
            above = k.shape[2] - size
            mask = _lower_right(size, above + size) if mask is None else F.pad(mask, (above, 0), value=True)
        if block.skip:
            mask = (_lower_right(size, size) if mask is None else mask)[block.skip :]
        causal = mask is None and size > 1
        if mask is not None:
            mask = mask.to(query.device)
        outs.append(F.scaled_dot_product_attention(query[:, :, asking], k, v, mask, is_causal=causal, scale=scaling))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None
