"""Log-probs of given answers over token trees: what sequences share is computed once, in one row without padding.

Values and gradients are those of the padded reference (`ttpa.policy.logprobs`). A node attends to its ancestors: on
CUDA by a FlexAttention block mask, on a CPU in a few attention calls.
Shapes: H heads, T nodes, D head size, P nodes that the head reads, N selected tokens.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ttpa.errors import fall_back
from ttpa.policy.logprobs import TokenLogps, decoder_and_head, evaluating, in_float32, target_logps, token_logps
from ttpa.policy.tree import Ints, TokenRow, TokenTree, bucket_by_tokens

ATTENTION = "ttpa"
CALL_COST = 10_000  # of one more attention call, in query-key pairs; subtrees that cost less share a masked call
BY_TOKEN = ("mlp", "self_attn.q_proj", "self_attn.o_proj")  # parts of a layer that map each token by itself
MOST_READ = 0.7  # share of the nodes above which the last layer is computed whole
TEXT = "Book a table for two in Paris at 19:30, then send the menu to Anna and remind me on Monday to pay."
TIMES, CLOSE = (
    3.0,
    2e-3,
)  # how much further from float32 a tree may be than padded rows; and of float32 itself, relative
WORTH = 0.9  # share of the padded tokens below which a tree is used
_PROBLEMS: dict[Any, str | None] = {}

Forward = Callable[..., TokenLogps]
"""(model, rows, *, pad_id, with_prompt, temperature, entropy) -> TokenLogps: `token_logps` or `tree_token_logps`."""
Attend = Callable[[Any, Tensor, Tensor, Tensor, float], Tensor]
"""(attention module, query, key, value, scale of the scores) -> result; all (batch, heads, tokens, size of a head)."""


def choose_forward(policy: Any, wanted: str) -> Forward:
    """`tree_token_logps`, or `token_logps` where "padded" is wanted or, as a fallback, the model leaves no choice."""
    if wanted == "tree":
        problem = tree_problem(policy)
        if problem is None:
            return tree_token_logps
        fall_back(f"token trees: {problem}; padded batches stand in, with the prompt once for each answer")
    return token_logps


def tree_problem(policy: Any) -> str | None:
    """Why a policy's model cannot be run over trees, or None. It is tried once in a process for each configuration."""
    model = policy.model
    weight, config = next(model.parameters()), decoder_and_head(model)[2]
    kind = (type(model), config.to_json_string(use_diff=False), weight.dtype, weight.device.type)
    if kind not in _PROBLEMS:
        _PROBLEMS[kind] = find_problem(model, policy.tokenizer(TEXT)["input_ids"])
    return _PROBLEMS[kind]


def find_problem(model: Any, ids: Sequence[int]) -> str | None:
    """Why a model cannot be run over trees, or None: by its configuration, then by both ways on the ids of a text."""
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
    ids = (list(ids) * 20)[:20]
    answers = (ids[8:14], [*ids[15:18], *ids[11:14]], [*ids[15:18], ids[9]])
    rows = [*(TokenRow(ids[:8], answer) for answer in answers), TokenRow(ids[1:4], ids[-4:])]
    padded = partial(token_logps, model, rows, pad_id=0)
    with evaluating(model):
        ours, theirs = tree_token_logps(model, rows, worth=2.0).logps_N, padded().logps_N
        with in_float32(model):
            true = padded().logps_N
    # In bfloat16 both ways are off by rounding, by how much depends on the model and the text.
    apart = float((ours - true).norm())
    if not apart <= TIMES * float((theirs - true).norm()) + CLOSE * float((1 + true.abs()).norm()):
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
    model: Any, rows: Sequence[TokenRow], *, pad_id: int = 0, with_prompt: bool = False, worth: float = WORTH, **kw: Any
) -> TokenLogps:
    """What `token_logps` gives, in one forward over the tree of all rows, for a model without a `tree_problem`. `worth`
    is the largest share of the padded tokens that the tree may have: a batch that shares less is padded.
    """
    tree = TokenTree.build([[*row.prompt, *row.answer] for row in rows])
    if len(tree) > worth * len(rows) * max(map(len, rows)):
        return token_logps(model, rows, pad_id=pad_id, with_prompt=with_prompt, **kw)
    device = next(model.parameters()).device
    first = [1 if with_prompt else max(1, len(row.prompt)) for row in rows]
    nodes = [path[start:] for path, start in zip(tree.paths, first, strict=True)]
    node_N, row_N = np.concatenate(nodes), np.repeat(np.arange(len(rows)), [len(path) for path in nodes])
    answer_N = tree.depth[node_N] >= np.array([len(row.prompt) for row in rows])[row_N]
    parents_P, position_N = np.unique(tree.parent[node_N], return_inverse=True)
    order_N = np.argsort(position_N, kind="stable")  # the head walks over positions in tiles

    def there(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    read_P = there(parents_P)
    with _over_tree(model, tree, read_P) as decoder:
        out = decoder(input_ids=there(tree.token)[None], position_ids=there(tree.depth)[None], use_cache=False)
    asked, tokens = there(position_N[order_N]), there(tree.token[node_N[order_N]])
    logps_N, entropy_P = target_logps(model, out.last_hidden_state[0, read_P], asked, tokens, **kw)
    entropy_N = None if entropy_P is None else entropy_P[there(position_N)]
    logps_N = logps_N[there(np.argsort(order_N))]
    return TokenLogps(logps_N, there(row_N), there(answer_N), len(rows), len(tree), entropy_N)


_ATTEND: ContextVar[Attend] = ContextVar("attend")


@contextmanager
def attending(config: Any, attend: Attend, hooks: Callable[[], Iterable[Any]] = tuple) -> Iterator[None]:
    """Within it, the layers of a model with this configuration attend by `attend`, transformers makes no mask, and the
    hooks that `hooks` registers are on. Within itself it changes nothing.
    """
    with ExitStack() as after:
        if _ATTEND.get(None) is not attend:
            after.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            after.callback(_ATTEND.reset, _ATTEND.set(attend))
            config._attn_implementation = ATTENTION
            for hook in hooks():
                after.enter_context(hook)
        yield


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    out = _ATTEND.get()(module, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention, causal without a mask; several query heads may share one of keys and values."""
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)


@contextmanager
def _over_tree(model: Any, tree: TokenTree, read_P: Tensor) -> Iterator[Any]:
    """The decoder, which within this attends over the tree; so do its layers when gradient checkpointing runs them
    again later. Where the head reads few nodes, the last layer does for these alone what it does token by token: keys
    and values are still computed for all. A prompt is most of a row, so this saves most of a layer.
    """
    decoder, _, config = decoder_and_head(model)
    thin: Any = decoder.layers[-1] if hasattr(decoder, "layers") and len(read_P) <= MOST_READ * len(tree) else None
    modules = {} if thin is None else dict(thin.named_modules())
    parts = [modules[name] for name in BY_TOKEN if name in modules]

    def pick(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][:, read_P], *given[1:])

    def spread(_: Any, given: Any, out: Tensor) -> Tensor:
        return out.new_zeros(1, len(tree), out.shape[-1]).index_copy(1, read_P, out)

    def hooks() -> Iterator[Any]:
        yield from (part.register_forward_pre_hook(pick) for part in parts)
        yield from (part.register_forward_hook(spread) for part in parts)

    on = partial(attending, config, tree_attention(tree, read_P, modules.get("self_attn")), hooks)
    with on(), ExitStack() as after:
        for m in decoder.modules():
            if getattr(m, "gradient_checkpointing", False):
                run: Any = m._gradient_checkpointing_func
                after.callback(setattr, m, "_gradient_checkpointing_func", run)
                m._gradient_checkpointing_func = lambda function, *args, run=run: run(on()(function), *args)
        yield decoder


def tree_attention(tree: TokenTree, read_P: Tensor, thin: Any) -> Attend:
    """Attention of one packed row, (1, H, T, D). Of the module `thin`, only results of the nodes `read_P` are used."""
    if read_P.is_cuda:
        from transformers.integrations.flex_attention import flex_attention_forward

        mask = flex_mask(tree, read_P.device)
        # It compiles the kernel once and keeps it, and takes care of grouped keys.
        return lambda *given: flex_attention_forward(*given[:4], mask, scaling=given[4])[0].transpose(1, 2)
    blocks, read = plan_blocks(tree), [*read_P.tolist(), len(tree)]
    thin_blocks = [b._replace(skip=min(read[bisect_left(read, b.start)], b.stop) - b.start) for b in blocks]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        outs = []
        for start, stop, above, mask, skip in thin_blocks if module is thin else blocks:
            outs.append(query.new_zeros(1, query.shape[1], skip, value.shape[3]))
            if start + skip == stop:
                continue
            k, v = key[:, :, start:stop], value[:, :, start:stop]
            if above is not None:
                k, v = torch.cat([key[:, :, above], k], 2), torch.cat([value[:, :, above], v], 2)
            before = k.shape[2] - (stop - start)
            if mask is not None:
                mask = F.pad(mask, (before, 0), value=True)
            elif before or skip:
                mask = torch.ones(stop - start, k.shape[2], dtype=torch.bool).tril(before)
            mask = None if mask is None else mask[skip:].to(query.device)
            outs.append(masked_attention(query[:, :, start + skip : stop], k, v, mask, scale))
        return torch.cat(outs, 2)

    return attend


class Block(NamedTuple):
    """One attention call: nodes [start, stop) look at their common ancestors `above`, if any, and at themselves. `mask`
    says who sees whom inside; None means causal. The first `skip` nodes are keys only: nobody reads their results.
    """

    start: int
    stop: int
    above: slice | Tensor | None
    mask: Tensor | None
    skip: int = 0


def flex_mask(tree: TokenTree, device: torch.device) -> Any:
    """The ancestor rule as a FlexAttention block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    # The kernel reads whole blocks of 128: what lies behind the last node is seen by nobody.
    end_N = torch.from_numpy(np.pad(tree.end, (0, -len(tree) % 128))).to(device)
    sees = lambda batch, head, i, j: (j <= i) & (i < end_N[j])  # noqa: E731
    return create_block_mask(sees, None, None, len(tree), len(tree), device=str(device))


def plan_blocks(tree: TokenTree) -> list[Block]:
    """Cuts a tree into attention calls, in row order, the cheapest way by the number of query-key pairs."""
    nodes, children = np.arange(len(tree)), np.bincount(tree.parent + 1)
    # A run ends behind a leaf or a node with several children.
    starts = np.flatnonzero((tree.parent != nodes - 1) | (children[tree.parent + 1] > 1) | (nodes == 0))
    edges = np.append(starts, len(tree))
    sizes = np.diff(edges)
    prices = np.cumsum(np.append(0, sizes * (tree.depth[starts] + sizes / 2) + CALL_COST))
    price, stop_of = dict(zip(edges.tolist(), prices, strict=True)), dict(pairwise(edges.tolist()))
    blocks: list[Block] = []

    def visit(first: int, last: int, path: Ints) -> None:
        # Nodes [first, last) are whole subtrees that hang on a path.
        size, at = last - first, first
        whole = len(path) and path[-1] - path[0] + 1 == len(path)
        above = slice(int(path[0]), int(path[-1]) + 1) if whole else torch.from_numpy(path) if len(path) else None
        if stop_of[first] != last and size * (len(path) + size) <= price[last] - price[first]:
            inside = np.arange(size)
            mask = (inside <= inside[:, None]) & (inside[:, None] < tree.end[first:last] - first)
            blocks.append(Block(first, last, above, torch.from_numpy(mask)))
            return
        while at < last:
            stop, end = stop_of[at], int(tree.end[at])
            blocks.append(Block(at, stop, above, None))
            if stop < end:
                visit(stop, end, np.append(path, np.arange(at, stop)))
            at = end

    visit(0, len(tree), np.empty(0, np.int64))
    return blocks
