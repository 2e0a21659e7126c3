"""Log-probs of given tokens: the LM head in tiles, and the padded forward, which is the reference for token trees.

A tile's logits are computed again in the backward pass, so nothing of size tokens x vocabulary is kept.
Shapes: B rows, T tokens, N positions or selected tokens, M targets, H hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ttpa.errors import fall_back
from ttpa.policy.tree import TokenRow

TILE_ELEMENTS = 1 << 22  # logits held at a time: 16 MiB in float32
HALF = (torch.bfloat16, torch.float16)
SCALINGS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping")
"""Configuration keys of what an architecture does to its logits: times, divided by, times, soft cap."""


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within it, the model is in evaluation mode and records no gradients."""
    with ExitStack() as after, torch.inference_mode():
        after.callback(model.train, model.training)
        model.eval()
        yield


def decoder_and_head(model: Any) -> tuple[Any, Any, Any]:
    """The transformer without its head, the head, the configuration. Adapters are injected layers: they stay active."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, base.base_model_prefix), base.get_output_embeddings(), base.config


def head_logits(head: torch.nn.Module, config: object, hidden_NH: Tensor) -> Tensor:
    """Float32 logits (N, V), with the scalings of Cohere, Granite, Falcon-H1 and Gemma where the config has them."""
    scale, divisor, multiplier, cap = (getattr(config, name, None) for name in SCALINGS)
    logits = head(hidden_NH).float()
    if (factor := (scale or 1) * (multiplier or 1) / (divisor or 1)) != 1:
        logits = logits * factor
    return torch.tanh(logits / cap) * cap if cap else logits


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within it, the model computes in float32. A layer's weights are converted only while it runs, and quantised ones
    not at all.
    """
    layers = list(getattr(decoder_and_head(model)[0], "layers", ()))
    inside, kept = {part for layer in layers for part in layer.modules()}, list[tuple[dict[str, Any], str, Any]]()

    def widen(parts: Iterable[torch.nn.Module]) -> None:
        for part in parts:
            weights: dict[str, Any] = part._parameters
            for name, weight in weights.items():
                if weight is not None and weight.dtype in HALF and not hasattr(weight, "quant_state"):
                    kept.append((weights, name, weight))
                    weights[name] = weight.float()

    def narrow(count: int) -> None:
        while len(kept) > count:
            weights, name, weight = kept.pop()
            weights[name] = weight

    with ExitStack() as after:
        after.callback(narrow, 0)
        widen(part for part in model.modules() if part not in inside)
        outside = len(kept)
        for layer in layers:
            after.enter_context(layer.register_forward_pre_hook(lambda part, _: widen(part.modules())))
            after.enter_context(layer.register_forward_hook(lambda *_: narrow(outside)))
        yield


@torch.no_grad()
def head_agrees(model: Any) -> bool:
    """Whether `head_logits` gives the model's own logits, on four tokens: an unknown scaling would be silent."""
    decoder, head, config = decoder_and_head(model)
    ids_BT = torch.arange(4, device=next(model.parameters()).device)[None] + 1
    with in_float32(model):
        own_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
        hidden_TH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
        return bool(torch.allclose(head_logits(head, config, hidden_TH), own_TV, rtol=1e-2, atol=1e-2))


class _LinearHead(torch.autograd.Function):
    """`target_logps` for logits that are hidden times weight, divided by the temperature. The backward pass walks over
    the logits three times, where autograd does a dozen times.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        hidden_NH, weight_VH, position_M, token_M, temperature, entropy = given
        total_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        logps_M = hidden_NH.new_empty(len(position_M), dtype=torch.float32)
        entropy_N = torch.empty_like(total_N) if entropy else hidden_NH.new_empty(0)
        for rows, here in _tiles(len(hidden_NH), position_M, len(weight_VH)):
            logits = _divided(hidden_NH[rows] @ weight_VH.T, temperature)
            total_N[rows] = logits.logsumexp(-1)
            logps_M[here] = logits[position_M[here] - rows.start, token_M[here]] - total_N[position_M[here]]
            if entropy:
                entropy_N[rows] = total_N[rows] - ((logits - total_N[rows, None]).exp_() * logits).sum(-1)
        ctx.mark_non_differentiable(entropy_N)
        ctx.save_for_backward(hidden_NH, weight_VH, position_M, token_M, total_N)
        ctx.temperature = temperature
        return logps_M, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        """d log p(t) / d logits = onehot(t) - softmax; several targets at one position add up."""
        grad_M = gradients[0] / ctx.temperature
        hidden_NH, weight_VH, position_M, token_M, total_N = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden_NH)
        of_weight = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        mass_N = torch.zeros_like(total_N).index_add_(0, position_M, grad_M)
        for rows, here in _tiles(len(hidden_NH), position_M, len(weight_VH)):
            slope = _divided(hidden_NH[rows] @ weight_VH.T, ctx.temperature)
            slope.sub_(total_N[rows, None]).exp_().mul_(-mass_N[rows, None])
            slope.index_put_((position_M[here] - rows.start, token_M[here]), grad_M[here], accumulate=True)
            slope = slope.to(hidden_NH.dtype)
            of_hidden[rows] = slope @ weight_VH
            if of_weight is not None:
                of_weight.addmm_(slope.T, hidden_NH[rows])
        return of_hidden, of_weight, None, None, None, None


def _divided(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _tiles(count: int, position_M: Tensor, vocab: int) -> Iterator[tuple[slice, slice]]:
    """The positions of each tile, and the targets that ask there (`position_M` is ascending)."""
    tile = max(1, TILE_ELEMENTS // vocab)
    edges = torch.searchsorted(position_M, torch.arange(0, count + tile, tile, device=position_M.device)).tolist()
    for number, start in enumerate(range(0, count, tile)):
        yield slice(start, start + tile), slice(edges[number], edges[number + 1])


def target_logps(
    model: Any, hidden_NH: Tensor, position_M: Tensor, token_M: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Float32 log-probs (M,) of target tokens; if asked for, the entropies (N,) of all positions, without a gradient.
    Target m is predicted from `hidden_NH[position_M[m]]`. Positions ascend; targets that share one share its logits.
    """
    _, head, config = decoder_and_head(model)
    scaled = any(getattr(config, name, None) for name in SCALINGS)
    if type(head) is torch.nn.Linear and head.bias is None and not scaled:
        logps, surprises = _LinearHead.apply(hidden_NH, head.weight, position_M, token_M, temperature, entropy)
        return logps, surprises if entropy else None

    # Through the head itself, each tile checkpointed.
    fall_back(
        "LM head: it has an adapter, a bias or scaled logits, so its log-probs take transformers' head in place of the "
        "faster one"
    )

    def one(hidden: Tensor, position: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(head, config, hidden) / temperature
        total = logits.logsumexp(-1)
        with torch.no_grad():
            surprise = total - ((logits - total[:, None]).exp() * logits).sum(-1) if entropy else total[:0]
        return logits[position, token] - total[position], surprise

    parts = [
        checkpoint(one, hidden_NH[rows], position_M[here] - rows.start, token_M[here], use_reentrant=False)
        for rows, here in _tiles(len(hidden_NH), position_M, getattr(config, "vocab_size", 1))
    ]
    parts = parts or [one(hidden_NH, position_M, token_M)]
    logps, surprises = (torch.cat(part) for part in zip(*parts, strict=True))
    return logps, surprises if entropy else None


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Natural-log probabilities of selected tokens, flat over rows, and which tokens these are. `computed` counts the
    tokens that the model was run on; `entropy_N`, in nats, has no gradient.
    """

    logps_N: Tensor
    row_N: Tensor
    is_answer_N: Tensor
    rows: int
    computed: int
    entropy_N: Tensor | None = None

    def padded(self) -> tuple[Tensor, Tensor]:
        """Answer log-probs by row and their mask, both (B, T), T the longest answer; zero where there is no token."""
        counts_B = torch.bincount(self.row_N[self.is_answer_N], minlength=self.rows)
        logps_BT = pad_sequence(self.logps_N[self.is_answer_N].split(counts_B.tolist()), True)
        return logps_BT, torch.arange(logps_BT.shape[1], device=logps_BT.device) < counts_B[:, None]

    def sums(self) -> Tensor:
        """Summed log-prob of each row's answer, shape (B,)."""
        zeros = self.logps_N.new_zeros(self.rows)
        return zeros.index_add(0, self.row_N[self.is_answer_N], self.logps_N[self.is_answer_N])


def token_logps(
    model: Any, rows: Sequence[TokenRow], *, pad_id: int, with_prompt: bool = False, **kw: Any
) -> TokenLogps:
    """Log-probs of every answer token given what stands before it, in row order, then position order, in one forward of
    a batch that is padded on the right. `with_prompt` also selects the prompt tokens (all but the first). `kw`:
    `temperature` and `entropy` of `target_logps`.
    """
    device = next(model.parameters()).device
    ids_BT = pad_sequence([torch.tensor([*row.prompt, *row.answer]) for row in rows], True, pad_id).to(device)
    prompt_B1, length_B1 = torch.tensor([[len(row.prompt), len(row)] for row in rows], device=device).T[:, :, None]
    at_T = torch.arange(ids_BT.shape[1], device=device)
    wanted_BT = (at_T >= (1 if with_prompt else prompt_B1.clamp(min=1))) & (at_T < length_B1)
    row_N, at_N = wanted_BT.nonzero(as_tuple=True)
    answer_N = at_N >= prompt_B1[row_N, 0]
    hidden_BTH = decoder_and_head(model)[0](input_ids=ids_BT, use_cache=False).last_hidden_state
    hidden_NH, position_N = hidden_BTH[row_N, at_N - 1], torch.arange(len(row_N), device=device)
    logps_N, entropy_N = target_logps(model, hidden_NH, position_N, ids_BT[row_N, at_N], **kw)
    return TokenLogps(logps_N, row_N, answer_N, len(rows), ids_BT.numel(), entropy_N)
