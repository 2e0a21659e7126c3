"""Log-probs of given answers over token trees: what sequences share is computed once.

All sequences of a call are merged into one forest (`ttpa.policy.tree`) and packed into one row without padding; the model runs
once, the LM head only behind the nodes that have a token to predict. Results are those of `ttpa.policy.logprobs`,
token for token, and so are the gradients. An architecture whose attention is not the plain causal one (sliding
windows, linear attention) keeps the padded path and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ttpa.policy.logprobs import TokenLogps, decoder_and_head, target_logps, token_logps
from ttpa.policy.tree import Ints, TokenRow, TokenTree, bucket_by_tokens

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


log = logging.getLogger("ttpa")

AttentionInterface.register(NAME, tree_attention)
# The mask is the layout's business: transformers makes none.
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)

BY_TOKEN = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
"""Parts of a layer that map each token by itself, by the names most architectures give them."""

MOST_READ = 0.7
"""Share of the nodes above which the last layer is computed whole."""

WORTH = 0.9
"""Share of the padded tokens below which a tree is used: it gains nothing where rows share little and fit together."""

Forward = Callable[..., TokenLogps]
"""(model, rows, *, pad_id, with_prompt, temperature, entropy) -> TokenLogps: `token_logps` or `tree_token_logps`."""


def flex_mask(tree: TokenTree, device: torch.device) -> Any:
    """The ancestor rule as a FlexAttention block mask over one packed row."""
    from torch.nn.attention.flex_attention import create_block_mask

    # The kernel reads whole blocks: what lies behind the last node closes at once and is seen by nobody.
    end_N = torch.from_numpy(np.pad(tree.end, (0, -len(tree) % 128))).to(device)

    def sees(batch: Any, head: Any, i: Any, j: Any) -> Any:
        return (j <= i) & (i < end_N[j])

    return create_block_mask(sees, None, None, len(tree), len(tree), device=str(device))


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
    """Log-probs of every answer token given what stands before it, in one forward of the packed forest.

    Args:
        model: Causal LM, plain or PEFT-wrapped, whose attention `tree_problem` does not object to.
        rows: Sequences; their prefixes are shared wherever they are equal.
        pad_id: Used where the batch is not worth a tree.
        with_prompt: Also select the prompt tokens (all but the first).
        temperature: Divides the logits.
        entropy: Also give entropies.
        worth: Largest share of the padded tokens that a tree may have; 2.0 always uses the tree.

    Returns:
        Tokens in row order, then position order, as `token_logps` gives them.
    """
    decoder, _, config = decoder_and_head(model)
    device = next(model.parameters()).device
    tree = TokenTree.build([[*row.prompt, *row.answer] for row in rows])
    if len(tree) > worth * len(rows) * max(map(len, rows)):
        return token_logps(
            model, rows, pad_id=pad_id, with_prompt=with_prompt, temperature=temperature, entropy=entropy
        )
    first = [max(1, 1 if with_prompt else len(row.prompt)) for row in rows]
    nodes = [path[start:] for path, start in zip(tree.paths, first, strict=True)]
    row_N = np.repeat(np.arange(len(rows)), [len(path) for path in nodes])
    answer_N = np.concatenate(
        [np.arange(s, s + len(path)) >= len(row.prompt) for row, path, s in zip(rows, nodes, first, strict=True)]
    )
    node_M, token_of_N = np.unique(np.concatenate(nodes), return_inverse=True)
    parent_M = tree.parent[node_M]
    order = np.argsort(parent_M, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    parents, position_M = np.unique(parent_M[order], return_inverse=True)

    def there(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    read = _read_by_head(decoder, parents, len(tree))
    layout = _layout_of(tree, device, read, len(getattr(decoder, "layers", ())) - 1)
    with _over_trees(decoder, config, layout, there(parents) if read is not None else None):
        out = decoder(input_ids=there(tree.token)[None], position_ids=there(tree.depth)[None], use_cache=False)
    hidden_NH = out.last_hidden_state[0, there(parents)]
    tokens = there(tree.token[node_M[order]])
    at_M, which_N = there(position_M), there(place[token_of_N])
    logps_M, spread_N = target_logps(model, hidden_NH, at_M, tokens, temperature=temperature, entropy=entropy)
    entropy_N = None if spread_N is None else spread_N[at_M[which_N]]
    return TokenLogps(logps_M[which_N], there(row_N), there(answer_N), len(rows), len(tree), entropy_N)


def _read_by_head(decoder: torch.nn.Module, parents: Ints, nodes: int) -> Any:
    """Which nodes the head reads (booleans, by node); None where thinning the last layer saves nothing."""
    if not hasattr(decoder, "layers") or len(parents) > MOST_READ * nodes:
        return None
    read = np.zeros(nodes, bool)
    read[parents] = True
    return read


def _layout_of(tree: TokenTree, device: torch.device, read: Any, last_layer: int) -> Layout:
    if device.type == "cuda":
        return Layout((), flex_mask(tree, device))
    blocks = tuple(plan_blocks(tree, 0))
    return Layout(blocks, None, None if read is None else thinned(blocks, read), last_layer)


@contextmanager
def _only(layer: torch.nn.Module, nodes: Tensor) -> Iterator[None]:
    """Within it, what a layer does token by token is done for some nodes of the row and is zero for the others.

    In the last layer, only what the head reads matters of the others' queries and of their MLP; their keys and values
    are still computed. A prompt is most of a row, so this is most of a layer.
    """
    parts = dict(layer.named_modules())
    found = [parts[name] for name in BY_TOKEN if name in parts]
    before = [part.__dict__.get("forward") for part in found]

    def thin(whole: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = whole(hidden[:, nodes], *args, **kwargs)
        return out.new_zeros(1, hidden.shape[1], out.shape[-1]).index_copy(1, nodes, out)

    for part in found:
        part.forward = partial(thin, part.forward)
    try:
        yield
    finally:
        for part, own in zip(found, before, strict=True):
            if own is None:
                del part.forward
            else:
                part.forward = own


@contextmanager
def _over_trees(decoder: Any, config: Any, layout: Layout, read: Tensor | None) -> Iterator[None]:
    """Within it, the model attends over the row; so do its layers when gradient checkpointing runs them again later."""

    @contextmanager
    def attending() -> Iterator[None]:
        if layout_now() is layout:
            yield
            return
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            with laid_out(layout), nullcontext() if read is None else _only(decoder.layers[-1], read):
                yield
        finally:
            config._attn_implementation = before

    def again(function: Callable[..., Any], *args: Any) -> Any:
        with attending():
            return function(*args)

    saving: list[Any] = [m for m in decoder.modules() if getattr(m, "gradient_checkpointing", False)]
    plain = [m._gradient_checkpointing_func for m in saving]
    for m, checkpointed in zip(saving, plain, strict=True):
        m._gradient_checkpointing_func = lambda function, *args, run=checkpointed: run(partial(again, function), *args)
    try:
        with attending():
            yield
    finally:
        for m, checkpointed in zip(saving, plain, strict=True):
            m._gradient_checkpointing_func = checkpointed


def tree_problem(model: Any) -> str | None:
    """Why a model cannot be run over trees, or None: by its configuration, then by both paths on a few tokens."""
    config = decoder_and_head(model)[2]
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends in a sliding window"
    if getattr(config, "attention_dropout", 0.0):
        return "it drops attention weights in training"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(base, "_supports_attention_backend", False):
        return "its attention function cannot be replaced"
    # Second branches of several tokens: what follows there feels whatever leaks from the first.
    rows = [
        TokenRow((1, 2, 3), (4, 5, 6, 5)),
        TokenRow((1, 2, 3), (6, 4, 2, 1)),
        TokenRow((1, 2, 3), (6, 4, 3)),
        TokenRow((2,), (3, 1, 5)),
    ]
    training = model.training
    model.eval()
    with torch.no_grad():
        ours, theirs = tree_token_logps(model, rows, worth=2.0).logps_N, token_logps(model, rows, pad_id=0).logps_N
    model.train(training)
    close = 5e-3 if next(model.parameters()).dtype == torch.float32 else 2e-2
    if not torch.allclose(ours, theirs, rtol=close, atol=close):
        return "its log-probs over a tree differ from the padded ones"
    return None


@torch.no_grad()
def answer_sums(
    forward: Forward, model: torch.nn.Module, groups: Sequence[Sequence[TokenRow]], *, pad_id: int, budget: int
) -> list[list[float]]:
    """Summed answer log-prob of each row with the training forward.

    Args:
        forward: `tree_token_logps` or `token_logps`.
        model: Causal LM.
        groups: Rows; those of one group share a prompt and stay in one batch.
        pad_id: Fills padded batches.
        budget: Tokens of a batch, groups of similar length together.
    """
    training = model.training
    model.eval()
    sums: list[list[float]] = [[] for _ in groups]
    for batch in bucket_by_tokens(range(len(groups)), [sum(map(len, group)) for group in groups], budget):
        values = forward(model, [row for number in batch for row in groups[number]], pad_id=pad_id).sums().tolist()
        for number in batch:
            sums[number], values = values[: len(groups[number])], values[len(groups[number]) :]
    model.train(training)
    return sums


def choose_forward(model: Any, wanted: str) -> Forward:
    """`tree_token_logps`, or `token_logps` where that is wanted or the model leaves no choice (said in the log)."""
    if wanted == "tree":
        problem = tree_problem(model)
        if problem is None:
            return tree_token_logps
        log.warning("%s: %s; training uses padded batches", type(model).__name__, problem)
    return token_logps
