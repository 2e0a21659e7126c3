"""Log-probs of given answers over token trees: what sequences share is computed once.

All sequences of a call become one tree in one row without padding. Values and gradients are those of the padded
reference (`ttpa.policy.logprobs`); `choose_forward` checks that at run time. A node attends to its ancestors: on CUDA
by a FlexAttention block mask, on a CPU in a few attention calls (`plan_blocks`).
Shapes: H heads, T nodes, D head size, P nodes that the head reads, N selected tokens.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ttpa.policy.logprobs import TokenLogps, decoder_and_head, evaluating, target_logps, token_logps
from ttpa.policy.tree import Ints, TokenRow, TokenTree, bucket_by_tokens

log = logging.getLogger("ttpa")

ATTENTION = "ttpa_tree"
CALL_COST = 10_000
"""What one more attention call costs, in query-key pairs; subtrees that cost less share a masked call."""
BY_TOKEN = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
"""Parts of a layer that map each token by itself, by the names most architectures give them."""
MOST_READ = 0.7  # share of the nodes above which the last layer is computed whole
WORTH = 0.9  # share of the padded tokens below which a tree is used

Forward = Callable[..., TokenLogps]
"""(model, rows, *, pad_id, with_prompt, temperature, entropy) -> TokenLogps: `token_logps` or `tree_token_logps`."""


def choose_forward(model: Any, wanted: str) -> Forward:
    """`tree_token_logps`, or `token_logps` where "padded" is wanted or, with a warning, the model leaves no choice."""
    if wanted == "tree":
        problem = tree_problem(model)
        if problem is None:
            return tree_token_logps
        log.warning("%s: %s; padded batches are used, a prompt for each answer", type(model).__name__, problem)
    return token_logps


def tree_problem(model: Any) -> str | None:
    """Why a model cannot be run over trees, or None: by its configuration, then by both ways on a few tokens."""
    config = decoder_and_head(model)[2]
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends in a sliding window"
    if getattr(config, "attention_dropout", 0.0):
        return "it drops attention weights in training"
    if not getattr(getattr(model, "get_base_model", lambda: model)(), "_supports_attention_backend", False):
        return "its attention function cannot be replaced"
    # Second branches of several tokens: they would feel whatever leaks from the first.
    answers = ((4, 5, 6, 5), (6, 4, 2, 1), (6, 4, 3))
    rows = [*(TokenRow((1, 2, 3), answer) for answer in answers), TokenRow((2,), (3, 1, 5))]
    with evaluating(model):
        ours, theirs = tree_token_logps(model, rows, worth=2.0).logps_N, token_logps(model, rows, pad_id=0).logps_N
    close = 5e-3 if next(model.parameters()).dtype == torch.float32 else 2e-2
    if not torch.allclose(ours, theirs, rtol=close, atol=close):
        return "its log-probs over a tree differ from the padded ones"
    return None


def answer_sums(
    forward: Forward, model: torch.nn.Module, groups: Sequence[Sequence[TokenRow]], *, pad_id: int, budget: int
) -> list[list[float]]:
    """Summed answer log-prob of each row, in evaluation mode. A group stays in one batch of at most `budget` tokens."""
    sums: list[list[float]] = [[] for _ in groups]
    for batch in bucket_by_tokens(range(len(groups)), [sum(map(len, group)) for group in groups], budget):
        with evaluating(model):
            values = forward(model, [row for number in batch for row in groups[number]], pad_id=pad_id).sums().tolist()
        for number in batch:
            sums[number], values = values[: len(groups[number])], values[len(groups[number]) :]
    return sums


def tree_token_logps(
    model: Any,
    rows: Sequence[TokenRow],
    *,
    pad_id: int = 0,
    with_prompt: bool = False,
    temperature: float = 1.0,
    entropy: bool = False,
    worth: float = WORTH,
) -> TokenLogps:
    """What `token_logps` gives, in one forward over the tree of all rows, for a model without a `tree_problem`.

    `worth` is the largest share of the padded tokens that the tree may have: a batch that shares less is padded.
    """
    tree = TokenTree.build([[*row.prompt, *row.answer] for row in rows])
    if len(tree) > worth * len(rows) * max(map(len, rows)):
        return token_logps(
            model, rows, pad_id=pad_id, with_prompt=with_prompt, temperature=temperature, entropy=entropy
        )
    decoder, _, config = decoder_and_head(model)
    device = next(model.parameters()).device
    first = [1 if with_prompt else max(1, len(row.prompt)) for row in rows]
    nodes = [path[start:] for path, start in zip(tree.paths, first, strict=True)]
    node_N, row_N = np.concatenate(nodes), np.repeat(np.arange(len(rows)), [len(path) for path in nodes])
    answer_N = tree.depth[node_N] >= np.array([len(row.prompt) for row in rows])[row_N]
    parents_P, position_N = np.unique(tree.parent[node_N], return_inverse=True)
    order_N = np.argsort(position_N, kind="stable")  # the head walks over positions in tiles

    def there(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    with _over_tree(decoder, config, Layout.of(tree, decoder, there(parents_P))):
        out = decoder(input_ids=there(tree.token)[None], position_ids=there(tree.depth)[None], use_cache=False)
    logps_N, entropy_P = target_logps(
        model,
        out.last_hidden_state[0, there(parents_P)],
        there(position_N[order_N]),
        there(tree.token[node_N[order_N]]),
        temperature=temperature,
        entropy=entropy,
    )
    entropy_N = None if entropy_P is None else entropy_P[there(position_N)]
    logps_N = logps_N[there(np.argsort(order_N))]
    return TokenLogps(logps_N, there(row_N), there(answer_N), len(rows), len(tree), entropy_N)


class Block(NamedTuple):
    """One attention call: nodes [start, stop) look at `keys` (their common ancestors, if any) and at themselves. `mask`
    says who sees whom inside; None means causal. The first `skip` nodes are keys only: nobody reads their results.
    """

    start: int
    stop: int
    keys: slice | Tensor | None
    mask: Tensor | None
    skip: int = 0


class Layout(NamedTuple):
    """How a row of `size` nodes is attended to: in blocks, or by a FlexAttention block mask. `last_layer` computes only
    the nodes `read_P`, which the head reads, and has blocks of its own; None where that saves nothing.
    """

    blocks: list[Block]
    flex: Any
    size: int
    read_P: Tensor
    last_layer: Any = None
    last_blocks: Sequence[Block] = ()

    @classmethod
    def of(cls, tree: TokenTree, decoder: Any, read_P: Tensor) -> Layout:
        flex = flex_mask(tree, read_P.device) if read_P.device.type == "cuda" else None
        layout = cls([] if flex is not None else plan_blocks(tree), flex, len(tree), read_P)
        if not hasattr(decoder, "layers") or len(read_P) > MOST_READ * len(tree):
            return layout
        read = read_P.tolist()
        skips = [bisect_left(read, block.start) for block in layout.blocks]
        last = [
            block._replace(skip=min([*read[at : at + 1], block.stop]) - block.start)
            for block, at in zip(layout.blocks, skips, strict=True)
        ]
        return layout._replace(last_layer=decoder.layers[-1], last_blocks=last)


_LAYOUT: ContextVar[Layout | None] = ContextVar("tree_layout", default=None)


@contextmanager
def _over_tree(decoder: Any, config: Any, layout: Layout) -> Iterator[None]:
    """Within it, the model attends over the row; so do its layers when gradient checkpointing runs them again later."""

    @contextmanager
    def attending() -> Iterator[None]:
        if _LAYOUT.get() is layout:
            yield
            return
        before, token = config._attn_implementation, _LAYOUT.set(layout)
        config._attn_implementation = ATTENTION
        hooks = _thin_last_layer(layout)
        try:
            yield
        finally:
            config._attn_implementation = before
            _LAYOUT.reset(token)
            for hook in hooks:
                hook.remove()

    def again(function: Callable[..., Any], *args: Any) -> Any:
        with attending():
            return function(*args)

    saving: list[Any] = [m for m in decoder.modules() if getattr(m, "gradient_checkpointing", False)]
    plain = [m._gradient_checkpointing_func for m in saving]
    for m, run in zip(saving, plain, strict=True):
        m._gradient_checkpointing_func = lambda function, *args, run=run: run(partial(again, function), *args)
    try:
        with attending():
            yield
    finally:
        for m, run in zip(saving, plain, strict=True):
            m._gradient_checkpointing_func = run


def _thin_last_layer(layout: Layout) -> list[Any]:
    """Hooks with which the last layer does for `read_P` alone what it does token by token. Keys and values are still
    computed for all. A prompt is most of a row, so this saves most of a layer.
    """

    def pick(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][:, layout.read_P], *given[1:])

    def spread(_: Any, given: Any, out: Tensor) -> Tensor:
        return out.new_zeros(1, layout.size, out.shape[-1]).index_copy(1, layout.read_P, out)

    modules = {} if layout.last_layer is None else dict(layout.last_layer.named_modules())
    parts = [modules[name] for name in BY_TOKEN if name in modules]
    return [*(x.register_forward_pre_hook(pick) for x in parts), *(x.register_forward_hook(spread) for x in parts)]


def flex_mask(tree: TokenTree, device: torch.device) -> Any:
    """The ancestor rule as a FlexAttention block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    # The kernel reads whole blocks of 128: what lies behind the last node is seen by nobody.
    end_N = torch.from_numpy(np.pad(tree.end, (0, -len(tree) % 128))).to(device)

    def sees(batch: Any, head: Any, i: Any, j: Any) -> Any:
        return (j <= i) & (i < end_N[j])

    return create_block_mask(sees, None, None, len(tree), len(tree), device=str(device))


def plan_blocks(tree: TokenTree) -> list[Block]:
    """Cuts a tree into attention calls, in row order, the cheapest way by the number of query-key pairs."""
    if not len(tree):
        return []
    nodes = np.arange(len(tree))
    # A run ends behind a leaf or a node with several children.
    branches = np.bincount(tree.parent[tree.parent >= 0], minlength=len(tree)) > 1
    starts = np.flatnonzero((tree.parent != nodes - 1) | (nodes == 0) | branches[np.maximum(tree.parent, 0)])
    stops = np.append(starts[1:], len(tree))
    stop_of = dict(zip(starts.tolist(), stops.tolist(), strict=True))
    sizes = stops - starts
    costs = np.concatenate([[0], np.cumsum(sizes * (tree.depth[starts] + sizes / 2) + CALL_COST)])
    blocks: list[Block] = []

    def visit(first: int, last: int, above: Ints) -> None:
        # Nodes [first, last) are whole subtrees that hang on the path `above`.
        size, at = last - first, first
        by_runs = costs[np.searchsorted(starts, last)] - costs[np.searchsorted(starts, first)]
        if stop_of[first] != last and size * (len(above) + size) <= by_runs:
            inside = np.arange(size)
            mask = (inside <= inside[:, None]) & (inside[:, None] < tree.end[first:last] - first)
            blocks.append(Block(first, last, _keys(above), torch.from_numpy(mask)))
            return
        while at < last:
            stop, end = stop_of[at], int(tree.end[at])
            blocks.append(Block(at, stop, _keys(above), None))
            if stop < end:
                visit(stop, end, np.concatenate([above, np.arange(at, stop)]))
            at = end

    visit(0, len(tree), np.empty(0, np.int64))
    return blocks


def _keys(above: Ints) -> slice | Tensor | None:
    if not len(above):
        return None
    first, last = int(above[0]), int(above[-1])
    return slice(first, last + 1) if last - first + 1 == len(above) else torch.from_numpy(above)


@lru_cache(maxsize=16)
def _lower_right(queries: int, keys: int) -> Tensor:
    """Causal mask of queries that are the last of the keys, (queries, keys)."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention of one packed row, (1, H, T, D) to (1, T, H, D); the signature is transformers'."""
    layout = _LAYOUT.get()
    assert layout is not None, "a forward pass over trees needs a layout"
    if layout.flex is not None:
        from transformers.integrations.flex_attention import flex_attention_forward

        # It compiles the kernel once and keeps it, and takes care of grouped keys.
        return flex_attention_forward(module, query, key, value, layout.flex, scaling=scaling)[0], None
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outs = []
    for block in layout.last_blocks if module is getattr(layout.last_layer, "self_attn", None) else layout.blocks:
        start, stop, skip, mask = block.start, block.stop, block.skip, block.mask
        outs.append(query.new_zeros(1, query.shape[1], skip, value.shape[3]))
        if start + skip == stop:
            continue
        k, v = key[:, :, start:stop], value[:, :, start:stop]
        if block.keys is not None:
            k, v = torch.cat([key[:, :, block.keys], k], 2), torch.cat([value[:, :, block.keys], v], 2)
        above = k.shape[2] - (stop - start)
        if mask is not None:
            mask = F.pad(mask, (above, 0), value=True)
        elif above or skip:
            mask = _lower_right(stop - start, k.shape[2])
        mask = None if mask is None else mask[skip:].to(query.device)
        asking = query[:, :, start + skip : stop]
        outs.append(F.scaled_dot_product_attention(asking, k, v, mask, is_causal=mask is None, scale=scaling))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, tree_attention)
# The mask is the layout's business: transformers makes none.
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
