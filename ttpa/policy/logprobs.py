"""Log-probs of given answers, the padded way: one row a sequence, logits only at the positions that are asked for.

The reference that `ttpa.policy.tree_logprobs` must equal, and the path for architectures that cannot take trees.

Rows are padded on the right, so a causal model never sees the padding and no attention mask is needed. The LM head runs
on the selected hidden states alone; tool prompts are long and answers short, so this saves most of the head's work.
Shapes: B rows, T tokens, H hidden size, V vocabulary, N selected tokens over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttpa.policy.head import decoder_and_head, target_logps


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

    `row_N` is the row of each token, `is_answer_N` tells answer tokens from prompt tokens, `computed` counts the tokens
    the model was run on (padding included, shared ones once). `entropy_N` is the entropy, in nats, of the distribution
    that each token was drawn from, without a gradient; None unless asked for.
    """

    logps_N: Tensor
    row_N: Tensor
    is_answer_N: Tensor
    rows: int
    computed: int
    entropy_N: Tensor | None = None

    def padded(self) -> tuple[Tensor, Tensor]:
        """Answer log-probs by row and their mask, both (B, T), T the longest answer; zero where there is no token."""
        row_N, logps_N = self.row_N[self.is_answer_N], self.logps_N[self.is_answer_N]
        counts_B = torch.bincount(row_N, minlength=self.rows)
        starts_B = counts_B.cumsum(0) - counts_B
        at_N = torch.arange(len(row_N), device=row_N.device) - starts_B[row_N]
        shape = (self.rows, int(counts_B.max()) if self.rows else 0)
        mask_BT = torch.zeros(shape, dtype=torch.bool, device=row_N.device).index_put((row_N, at_N), row_N >= 0)
        return logps_N.new_zeros(shape).index_put((row_N, at_N), logps_N), mask_BT

    def sums(self) -> Tensor:
        """Summed log-prob of each row's answer, shape (B,)."""
        zeros = self.logps_N.new_zeros(self.rows)
        return zeros.index_add(0, self.row_N[self.is_answer_N], self.logps_N[self.is_answer_N])


def token_logps(
    model: torch.nn.Module,
    rows: Sequence[Row],
    *,
    pad_id: int,
    with_prompt: bool = False,
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenLogps:
    """Log-probs of every answer token given what stands before it, in one forward of a padded batch.

    Args:
        model: Causal LM, plain or PEFT-wrapped.
        rows: Sequences; a row with an empty answer selects nothing.
        pad_id: Fills the right side.
        with_prompt: Also select the prompt tokens (all but the first).
        temperature: Divides the logits.
        entropy: Also give entropies.

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
    decoder, _, _ = decoder_and_head(model)
    hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
    row_N, at_N = (index.to(device) for index in where)
    hidden_NH, position_N = hidden_BTH[row_N, at_N - 1], torch.arange(len(row_N), device=device)
    logps_N, entropy_N = target_logps(
        model, hidden_NH, position_N, ids_BT[row_N, at_N], temperature=temperature, entropy=entropy
    )
    return TokenLogps(logps_N, row_N, answer_BT[where].to(device), len(rows), ids_BT.numel(), entropy_N)
