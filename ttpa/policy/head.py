"""Log-probs over a large vocabulary without keeping the logits: the LM head in tiles of tokens.

A tile's logits live only while the tile is computed; the backward pass computes them again (activation checkpointing of
one tile), so nothing of size tokens x vocabulary is kept between forward and backward. Works through the head module
itself, so with tied embeddings, LoRA on the head, half precision, and the logit scalings some architectures have.
Shapes: N positions, M targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_ELEMENTS = 1 << 22
"""Logits held at a time: 16 MiB in float32. One tile is not checkpointed."""


def decoder_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module, object]:
    """The transformer without its head, the head, the configuration. Adapters are injected layers: they stay active."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, base.base_model_prefix), base.get_output_embeddings(), base.config


def head_logits(head: torch.nn.Module, config: object, hidden_NH: Tensor) -> Tensor:
    """Float32 logits (N, V), with the scalings of Cohere, Granite, Falcon-H1 and Gemma where the config has them."""
    logits = head(hidden_NH).float()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if multiplier := getattr(config, "lm_head_multiplier", None):
        logits = logits * multiplier
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def head_agrees(model: Any) -> bool:
    """Whether `head_logits` gives the model's own logits, on four tokens: an unknown scaling would be silent."""
    decoder, head, config = decoder_and_head(model)
    ids_BT = torch.arange(4, device=next(model.parameters()).device)[None] + 1
    own_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    hidden_TH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
    return bool(torch.allclose(head_logits(head, config, hidden_TH), own_TV, rtol=1e-2, atol=1e-2))


def target_logps(
    model: Any,
    hidden_NH: Tensor,
    position_M: Tensor,
    token_M: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target token at its position.

    Several targets may ask at one position (the branches behind a node): its logits are computed once.

    Args:
        model: Causal LM, plain or PEFT-wrapped.
        hidden_NH: Last hidden states of the positions.
        position_M: Row of `hidden_NH` each target is predicted from, ascending.
        token_M: Target token ids.
        temperature: Divides the logits.
        entropy: Also give the entropy at each position, without a gradient.

    Returns:
        Float32 log-probs (M,), and entropies (N,) or None.
    """
    _, head, config = decoder_and_head(model)
    tile = max(1, TILE_ELEMENTS // int(getattr(config, "vocab_size", 1)))

    def one(hidden: Tensor, position: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(head, config, hidden) / temperature
        total = logits.logsumexp(-1)
        logps = logits[position, token] - total[position]
        if not entropy:
            return logps, logps.new_empty(0)
        with torch.no_grad():
            surprise = total - (torch.exp(logits - total[:, None]) * logits).sum(-1)
        return logps, surprise

    count = len(hidden_NH)
    if count <= tile:
        logps, surprise = one(hidden_NH, position_M, token_M)
        return logps, surprise if entropy else None
    edges = torch.searchsorted(position_M, torch.arange(0, count + tile, tile, device=position_M.device)).tolist()
    parts = []
    for number, start in enumerate(range(0, count, tile)):
        here = slice(edges[number], edges[number + 1])
        arguments = (hidden_NH[start : start + tile], position_M[here] - start, token_M[here])
        parts.append(checkpoint(one, *arguments, use_reentrant=False) if torch.is_grad_enabled() else one(*arguments))
    logps = torch.cat([part[0] for part in parts])
    return logps, torch.cat([part[1] for part in parts]) if entropy else None
