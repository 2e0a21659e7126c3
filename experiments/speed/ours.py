"""The model, and ttpa's two contenders: the token tree and the padded path.

A contender runs one optimiser step in two halves, `backward(step)` and `update()`, so that their peaks can be told
apart. The padded path takes real samples in micro-batches of similar length, which is its best; fixed lengths in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import EOS, PAD, Case, Work
from omegaconf import OmegaConf
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from ttpa.policy.forward import tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow, TokenTree, bucket_by_tokens
from ttpa.train.losses import DPO, PairLogps, SimPO, weighted_nll
from ttpa.train.policy_gradient import GRPO

CONF = Path(__file__).parents[2] / "conf"
LEARNING_RATE = 1e-5
DPO_BETA, SIMPO_BETA, CLIP = 0.1, 2.0, 0.2
MICRO_TOKENS = 8_192
"""Padded tokens of a micro-batch of the padded path on real samples."""


def loss_fields(**changed: Any) -> dict[str, Any]:
    """Fields of GRPO as conf/objective/grpo.yaml has them, with the benchmark's clipping and other changes."""
    fields = OmegaConf.load(CONF / "objective" / "grpo.yaml")
    fields.update(clip_low=CLIP, clip_high=CLIP, num_iterations=1, **changed)
    return {key: value for key, value in fields.items() if key != "_target_"}


def fresh_model(vocab: int, device: str, noise: float = 0.0) -> Qwen2ForCausalLM:
    """4 layers, 256 wide, tied embeddings, float32, the same random weights on every call; `noise` is added to them."""
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.06,  # logits that differ, so that a wrong loss is seen
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    if noise:
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
    return model.to(device).train()


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


@torch.no_grad()
def reference_sums(work: Work, device: str) -> Tensor | None:
    """Summed answer log-probs of the rows under the reference: the model with noise on its weights. None unless dpo."""
    if work.kind != "dpo":
        return None
    reference = fresh_model(work.vocab, device, noise=0.01)
    return torch.cat([token_logps(reference, [row], pad_id=PAD).sums() for row in work.steps[0]])


@torch.no_grad()
def old_logps(work: Work, device: str) -> Tensor | None:
    """Given log-probs of the sampling policy, (rows, longest answer): the model's with noise, some beyond the clip."""
    if work.kind != "grpo":
        return None
    model, rows = fresh_model(work.vocab, device), work.steps[0]
    own = torch.zeros(len(rows), max(len(row.answer) for row in rows), device=device)
    for number, row in enumerate(rows):
        own[number, : len(row.answer)] = token_logps(model, [row], pad_id=PAD).logps_N
    return own + 0.2 * torch.randn(own.shape, generator=torch.Generator().manual_seed(3)).to(device)


def step_loss(work: Work, step: int, known: Tensor | None, rows: Sequence[int], logps: Any, device: str) -> Tensor:
    """Share of a step's loss that `rows` (numbers within the step) have, from their token log-probs.

    Args:
        work: What is learned.
        step: Which step.
        known: Reference sums (dpo) or old token log-probs (grpo) of the step's rows.
        rows: All rows of the step, or those of a micro-batch (sft and grpo only).
        logps: `TokenLogps` of these rows.
        device: Where the tensors are.
    """
    every = work.steps[step]
    if work.kind == "sft":
        return weighted_nll(logps.logps_N, torch.ones_like(logps.logps_N)) / sum(len(row.answer) for row in every)
    if work.kind == "grpo":
        lengths = torch.tensor([len(every[k].answer) for k in rows], device=device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        own = torch.zeros(mask.shape, device=device).masked_scatter(mask, logps.logps_N)
        numbers = torch.tensor(rows, device=device)
        advantages = torch.tensor(work.advantages, device=device)[numbers]
        old = None if known is None else known[numbers, : mask.shape[1]]
        grpo = GRPO(**loss_fields(aggregation="grpo"))
        return grpo(own, advantages, mask, max_length=mask.shape[1], old_logps_GT=old, answers=len(every))[0]
    pairs, sums = len(every) // 2, logps.sums()
    lengths = torch.tensor([len(row.answer) for row in every], device=device)
    given = PairLogps(sums[:pairs], sums[pairs:], lengths[:pairs], lengths[pairs:])
    if work.kind == "dpo":
        assert known is not None
        given = replace(given, ref_chosen_B=known[:pairs], ref_rejected_B=known[pairs:])
        return DPO(beta=DPO_BETA, label_smoothing=0.0, sft_weight=0.0, over="answer")(given)[0].mean()
    simpo = SimPO(beta=SIMPO_BETA, gamma_beta_ratio=work.ratio, sft_weight=0.0, over="answer")
    return simpo(given)[0].mean()


class Ours:
    """`tree` or `padded`. `tokens` counts what the forward passes of all steps compute."""

    def __init__(self, name: str, case: Case, work: Work, known: Tensor | None, device: str) -> None:
        self.name, self.work, self.known, self.device = name, work, known, device
        self.model = fresh_model(work.vocab, device)
        self.optimizer = optimizer_of(self.model)
        self.forward = partial(tree_token_logps, worth=2.0) if name == "tree" else token_logps
        self.parts = [[list(range(len(rows)))] for rows in work.steps]
        if name == "padded" and case.data:
            self.parts = [bucket_by_tokens(range(len(rows)), list(map(len, rows)), MICRO_TOKENS) for rows in work.steps]
        count = tree_tokens if name == "tree" else padded_tokens
        self.tokens = sum(
            count([work.steps[step][k] for k in part]) for step, parts in enumerate(self.parts) for part in parts
        )

    @property
    def steps(self) -> int:
        return len(self.work.steps)

    def rows(self, step: int) -> list[TokenRow]:
        return self.work.steps[step]

    def backward(self, step: int) -> float:
        """Loss of a step, with its gradients left in the model."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in self.parts[step]:
            logps = self.forward(self.model, [self.work.steps[step][k] for k in part], pad_id=PAD)
            loss = step_loss(self.work, step, self.known, part, logps, self.device)
            loss.backward()
            total += float(loss.detach())
        return total

    def update(self) -> None:
        self.optimizer.step()


def tree_tokens(rows: Sequence[TokenRow]) -> int:
    return len(TokenTree.build([[*row.prompt, *row.answer] for row in rows]))


def padded_tokens(rows: Sequence[TokenRow]) -> int:
    return len(rows) * max(map(len, rows))


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(value) for value in np.percentile(values, [25, 50, 75])]
