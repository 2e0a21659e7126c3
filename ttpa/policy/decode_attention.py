"""Attention while decoding: every prompt is kept once, however many answers continue it.

Keys and values live in two parts. A prompt's are computed once and shared by its rows, so attending to them is one
matrix product a prompt and not one a row. A row's own tokens have a buffer: on CUDA of fixed size, elsewhere growing by
whole blocks and attended to as a whole, closed slots and all, since a part of it would be copied for every product in
bfloat16. A softmax over both parts side by side makes the result that of ordinary attention. The attention function
fills and reads the buffers itself, through a context variable, so the model runs as in training, without a cache object
of transformers.

Shapes: B prompts, M rows a prompt, R = B * M rows (prompt-major), H heads, J key-value heads, G = H / J, D head size,
P prompt tokens (padded on the right), T slots of a row, L new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "ttpa_decode"
BLOCK = 16
"""Slots by which the part of a buffer grows that is attended to."""
FAST_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether the CPU has products in bfloat16; float16 has none here (5 times slower in strips)."""
STRIP = 64
"""Tokens of a prompt whose attention is one matrix product on such a CPU."""


@dataclass(slots=True)
class Prompts:
    """What is kept of B prompts: keys and values by layer, each (B, J, P, D), lengths (B,), next logits (B, V)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length_B: Tensor = field(default_factory=lambda: torch.empty(0))
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))

    def pick(self, which: Tensor) -> Prompts:
        """Some of the prompts."""
        return Prompts(
            [k[which] for k in self.keys], [v[which] for v in self.values], self.length_B[which], self.logits_BV[which]
        )

    def one(self, number: int) -> Prompts:
        """One of them without its padding; a copy, so that it does not hold the others in memory."""
        size = int(self.length_B[number])
        here = slice(number, number + 1)
        return Prompts(
            [k[here, :, :size].clone() for k in self.keys],
            [v[here, :, :size].clone() for v in self.values],
            self.length_B[here],
            self.logits_BV[here].clone(),
        )


def side_by_side(prompts: list[Prompts]) -> Prompts:
    """Several kept prompts as one batch, padded on the right."""
    if len(prompts) == 1:
        return prompts[0]
    width = max(p.keys[0].shape[2] for p in prompts)

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[2])) for part in parts])

    layers = range(len(prompts[0].keys))
    return Prompts(
        [stacked([p.keys[layer] for p in prompts]) for layer in layers],
        [stacked([p.values[layer] for p in prompts]) for layer in layers],
        torch.cat([p.length_B for p in prompts]),
        torch.cat([p.logits_BV for p in prompts]),
    )


@dataclass(slots=True)
class Rows:
    """The rows that continue the prompts.

    `keys` and `values` by layer are (R, J, slots, D); `open_RT` says which slots hold a token once they are taken (what
    stands before an answer's given beginning is empty), `used` how many are.
    """

    prompts: Prompts
    per_prompt: int
    open_RT: Tensor
    used: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    _closed: tuple[tuple[int, int], tuple[Tensor | None, Tensor]] | None = None

    def pick(self, prompts: Tensor | None, rows: Tensor, per_prompt: int) -> Rows:
        """Some of the rows, by prompt again `per_prompt` each; `prompts` None keeps all prompts."""
        kept = self.prompts if prompts is None else self.prompts.pick(prompts)
        return Rows(
            kept,
            per_prompt,
            self.open_RT[rows],
            self.used,
            [k[rows] for k in self.keys],
            [v[rows] for v in self.values],
        )

    def put(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values behind the used slots; returns the blocks in use."""
        stop = self.used + key.shape[2]
        room = -(-stop // BLOCK) * BLOCK
        wanted = max(room, self.open_RT.shape[1]) if key.is_cuda else room
        for kept, new in ((self.keys, key), (self.values, value)):
            if len(kept) <= layer:
                kept.append(new[:, :, :0])
            if kept[layer].shape[2] < wanted:
                # Zeros, since what is closed still takes part in a product, with weight 0.
                kept[layer] = F.pad(kept[layer], (0, 0, 0, wanted - kept[layer].shape[2]))
            kept[layer][:, :, self.used : stop] = new
        return self.keys[layer][:, :, :room], self.values[layer][:, :, :room]

    def closed(self, new: int, room: int) -> tuple[Tensor | None, Tensor]:
        """What `new` tokens of a row do not see: (B, 1, 1, P) of the prompts, None if they see all of them, and
        (R, 1, 1, L, room) of the rows' slots. The same in every layer.
        """
        if self._closed is None or self._closed[0] != (self.used, new):
            device = self.open_RT.device
            places = torch.arange(self.prompts.keys[0].shape[2], device=device)
            far_BP = places >= self.prompts.length_B[:, None]
            later_LT = torch.arange(room, device=device) > self.used + torch.arange(new, device=device)[:, None]
            open_RT = F.pad(self.open_RT, (0, max(0, room - self.open_RT.shape[1])))[:, :room]
            near_RLT = ~open_RT[:, None] | later_LT
            # To look would make the host wait for a GPU.
            padded = device.type != "cpu" or bool(far_BP.any())
            self._closed = (self.used, new), (far_BP[:, None, None] if padded else None, near_RLT[:, None, None])
        return self._closed[1]


_STATE: ContextVar[Prompts | Rows | None] = ContextVar("decoding", default=None)


@contextmanager
def decoding(config: Any, state: Prompts | Rows) -> Iterator[None]:
    """Within it, the model fills `state`: prompts that are read for the first time, or rows that go on."""
    before, token = config._attn_implementation, _STATE.set(state)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _STATE.reset(token)


def decode_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens; the signature is transformers'.

    Args:
        query: (B or R, H, L, D). key, value: (B or R, J, L, D).

    Returns:
        (B or R, L, H, D) and None.
    """
    state = _STATE.get()
    assert state is not None, "a decoding forward pass needs `decoding`"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(state, Prompts):
        state.keys.append(key)
        state.values.append(value)
        return _causal(query, key, value, scale).transpose(1, 2).contiguous(), None
    return _attend(state, module.layer_idx, query, key, value, scale), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of prompts to themselves, (B, H, P, E). Padding is on the right: no token of a prompt sees it."""
    (B, H, P, D), (J, E) = query.shape, value.shape[1::2]
    G = H // J
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not FAST_BFLOAT16:
        if G > 1:
            key, value = key.repeat_interleave(G, 1), value.repeat_interleave(G, 1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    # Torch's kernel is no faster in bfloat16 than in float32; matrix products of strips are (1.7 to 3 times).
    query = (query * scale).view(B, J, G, P, D)
    out, later = query.new_empty(B, J, G, P, E), torch.ones(STRIP, STRIP, dtype=torch.bool).triu(1)
    for start in range(0, P, STRIP):
        stop = min(start + STRIP, P)
        size = stop - start
        scores = query[:, :, :, start:stop].reshape(B, J, G * size, D) @ key[:, :, :stop].mT
        scores.view(B, J, G, size, stop)[..., start:].masked_fill_(later[:size, :size], float("-inf"))
        part = torch.softmax(scores, -1) @ value[:, :, :stop]
        out[:, :, :, start:stop] = part.view(B, J, G, size, E)
    return out.view(B, H, P, E)


def _attend(rows: Rows, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Prompt part and own part under one softmax."""
    R, H, L, D = query.shape
    J, M = key.shape[1], rows.per_prompt
    B, G = R // M, H // J
    prompt_k, prompt_v = rows.prompts.keys[layer], rows.prompts.values[layer]
    own_k, own_v = rows.put(layer, key, value)
    query = query * scale
    far = query.view(B, M, J, G, L, D).transpose(1, 2).reshape(B, J, M * G * L, D) @ prompt_k.mT
    far_closed, near_closed = rows.closed(L, own_k.shape[2])
    if far_closed is not None:
        far = far.masked_fill_(far_closed, float("-inf"))
    near = query.reshape(R, J, G * L, D) @ own_k.mT
    near = near.view(R, J, G, L, -1).masked_fill_(near_closed, float("-inf"))
    near = near.view(B, M, J, G * L, -1).transpose(1, 2).reshape(B, J, M * G * L, -1)
    weights = torch.softmax(torch.cat([far, near], -1), -1)  # sums in float32 whatever the scores are
    near_w = weights[..., far.shape[-1] :].view(B, J, M, G * L, -1).transpose(1, 2).reshape(R, J, G * L, -1)
    out = (weights[..., : far.shape[-1]] @ prompt_v).view(B, J, M, G * L, -1).transpose(1, 2).reshape(R, J, G * L, -1)
    return (out + near_w @ own_v).reshape(R, H, L, -1).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, decode_attention)
# Who sees whom is this module's business: transformers makes no mask.
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
