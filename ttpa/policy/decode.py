"""The `hf` engine: batched decoding with a KV cache that is prefilled once per prompt and compacted as answers end.

First version: one wave at a time, eager attention masks of transformers, no static cache. Random numbers come from
(seed, sample id, candidate) and are drawn before decoding starts, so a candidate's draws do not depend on its batch.
Which token follows is a `Chooser`'s decision; samplers bring theirs (`ttpa.samplers`). Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ttpa.policy.policy import Policy


class Chooser(Protocol):
    """Picks one token a row.

    Called with float32 log-probs (R, V) and one uniform number in [0, 1) a row (R,), float64; returns token ids (R,)
    and for each row the options it chose among as [(token id, probability), ...], or None where there was no choice.
    """

    def __call__(
        self, logps_RV: Tensor, uniform_R: Tensor
    ) -> tuple[Tensor, list[list[tuple[int, float]] | None] | None]: ...


@dataclass(slots=True)
class Generated:
    """One decoded answer: ids with the stop token if it was reached, their log-probs, and where there was a choice."""

    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = "length"
    branches: list[tuple[int, tuple[tuple[int, float], ...]]] = field(default_factory=list)


def greedy(logps_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, None]:
    """The most probable token; ties go to the lowest id."""
    return logps_RV.argmax(-1), None


def uniforms(seed: object, sample_id: str, candidate: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend on (seed, sample id, candidate) alone; float64, shape (count,)."""
    digest = hashlib.sha256(f"{seed}\x1f{sample_id}\x1f{candidate}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big"))).random(count)


@dataclass(kw_only=True)
class HFEngine:
    """Decodes with a transformers model in this process.

    Args:
        policy: Model, tokenizer and stop tokens.
        rows: Answers decoded side by side; memory grows with it, results do not depend on it beyond float rounding.
        max_new_tokens: Longest answer, in tokens.
    """

    policy: Policy
    rows: int
    max_new_tokens: int

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[str], n: int, chooser: Chooser, seed: object
    ) -> list[list[Generated]]:
        """`n` answers to each prompt.

        Args:
            prompts: Token ids.
            ids: The sample id of each prompt, for its random numbers.
            n: Answers a prompt.
            chooser: Picks tokens.
            seed: Enters every random number.
        """
        model = self.policy.model
        training = model.training
        model.eval()
        answers: list[list[Generated]] = [[Generated() for _ in range(n)] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        step = max(1, self.rows // n)
        for start in range(0, len(order), step):
            self._decode(order[start : start + step], prompts, ids, n, chooser, seed, answers)
        model.train(training)
        return answers

    def _prefill(self, batch: Sequence[Sequence[int]], n: int) -> tuple[DynamicCache, Tensor, Tensor]:
        """Runs the prompts once: the cache for n rows a prompt, the attention mask (R, T), the next logits (R, V)."""
        device = self.policy.model.device
        width = max(len(ids) for ids in batch)
        pad = self.policy.renderer.pad_id
        ids_BT = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in batch], device=device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=device)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        out = self.policy.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=True,
            past_key_values=DynamicCache(config=self.policy.model.config),
            logits_to_keep=1,
        )
        cache = out.past_key_values
        if n > 1:
            cache.batch_repeat_interleave(n)
        return cache, mask_BT.repeat_interleave(n, 0), out.logits[:, -1].repeat_interleave(n, 0)

    def _decode(
        self,
        chosen: Sequence[int],
        prompts: Sequence[Sequence[int]],
        ids: Sequence[str],
        n: int,
        chooser: Chooser,
        seed: object,
        answers: list[list[Generated]],
    ) -> None:
        device = self.policy.model.device
        rows = [answers[i][c] for i in chosen for c in range(n)]
        draws = torch.from_numpy(
            np.stack([uniforms(seed, ids[i], c, self.max_new_tokens) for i in chosen for c in range(n)])
        )
        draws = draws.to(device)
        stop = set(self.policy.renderer.stop_ids)
        cache, mask_RT, logits_RV = self._prefill([prompts[i] for i in chosen], n)
        alive = torch.arange(len(rows), device=device)
        for step in range(self.max_new_tokens):
            logps_RV = torch.log_softmax(logits_RV.float(), -1)
            tokens_R, options = chooser(logps_RV, draws[alive, step])
            picked = logps_RV.gather(-1, tokens_R[:, None])[:, 0].tolist()
            keep: list[int] = []
            for at, (row, token, logp) in enumerate(zip(alive.tolist(), tokens_R.tolist(), picked, strict=True)):
                answer = rows[row]
                answer.token_ids.append(token)
                answer.logps.append(logp)
                if options is not None and (here := options[at]) is not None:
                    answer.branches.append((step, tuple(here)))
                if token in stop:
                    answer.finish = "stop"
                else:
                    keep.append(at)
            if not keep or step + 1 == self.max_new_tokens:
                return
            if len(keep) < len(alive):
                kept = torch.tensor(keep, device=device)
                cache.batch_select_indices(kept)
                alive, mask_RT, tokens_R = alive[kept], mask_RT[kept], tokens_R[kept]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(alive), 1)], 1)
            positions = (mask_RT.sum(-1) - 1)[:, None]
            logits_RV = self.policy.model(
                input_ids=tokens_R[:, None],
                attention_mask=mask_RT,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
