"""Log-probs of given answers with the training forward: padded rows, logits only at the positions that are asked for.

Rows are padded on the right, so a causal model never sees the padding and no attention mask is needed. The LM head runs
on the selected hidden states alone; tool prompts are long and answers short, so this saves most of the head's work.
Shapes: B rows, T tokens, H hidden size, V vocabulary, N selected tokens over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttpa.policy.batching import bucket_by_tokens


@dataclass(frozen=True, slots=True)
class Row:
    """Prompt ids and answer ids (end-of-turn included) of one sequence."""

    prompt: Sequence[int]
    answer: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Natural-log probabilities of selected tokens, flat over rows.

    `row_N` is the row of each token, `is_answer_N` tells answer tokens from prompt tokens.
    """

    logps_N: Tensor
    row_N: Tensor
    is_answer_N: Tensor
    rows: int

    def sums(self) -> Tensor:
        """Summed log-prob of each row's answer, shape (B,)."""
        zeros = self.logps_N.new_zeros(self.rows)
        return zeros.index_add(0, self.row_N[self.is_answer_N], self.logps_N[self.is_answer_N])


def _decoder_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module, object]:
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
    decoder, head, config = _decoder_and_head(model)
    ids_BT = torch.arange(4, device=next(model.parameters()).device)[None] + 1
    own_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    hidden_TH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
    return bool(torch.allclose(head_logits(head, config, hidden_TH), own_TV, rtol=1e-2, atol=1e-2))


def token_logps(model: torch.nn.Module, rows: Sequence[Row], *, pad_id: int, with_prompt: bool = False) -> TokenLogps:
    """Log-probs of every answer token given what stands before it, in one forward of a padded batch.

    Args:
        model: Causal LM, plain or PEFT-wrapped.
        rows: Sequences; a row with an empty answer selects nothing.
        pad_id: Fills the right side.
        with_prompt: Also select the prompt tokens (all but the first).

    Returns:
        Tokens in row order, then position order.
    """
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id)
    wanted_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    answer_BT = torch.zeros_like(wanted_BT)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor([*row.prompt, *row.answer])
        answer_BT[number, len(row.prompt) : len(row)] = True
        wanted_BT[number, 1 if with_prompt else len(row.prompt) : len(row)] = True
    wanted_BT[:, 0] = False
    where = wanted_BT.nonzero(as_tuple=True)
    ids_BT = ids_BT.to(device)
    decoder, head, config = _decoder_and_head(model)
    hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
    row_N, at_N = (index.to(device) for index in where)
    logits_NV = head_logits(head, config, hidden_BTH[row_N, at_N - 1])
    logps_N = -F.cross_entropy(logits_NV, ids_BT[row_N, at_N], reduction="none")
    return TokenLogps(logps_N, row_N, answer_BT[where].to(device), len(rows))


@torch.no_grad()
def answer_sums(model: torch.nn.Module, rows: Sequence[Row], *, pad_id: int, budget: int) -> list[float]:
    """Summed answer log-prob of each row with the training forward, in batches of `budget` padded tokens."""
    training = model.training
    model.eval()
    sums = [0.0] * len(rows)
    for batch in bucket_by_tokens(range(len(rows)), [len(row) for row in rows], budget):
        values = token_logps(model, [rows[i] for i in batch], pad_id=pad_id).sums().tolist()
        for index, value in zip(batch, values, strict=True):
            sums[index] = value
    model.train(training)
    return sums
