"""Supervised fine-tuning: warm-up on demonstrations, RFT on chosen answers, gold on targets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import weighted_nll
from ttpa.train.module import PolicyModule, Step
from ttpa.train.settings import Optimisation


class SFTModule(PolicyModule):
    """Weighted token NLL: answer tokens weigh 1, prompt tokens `prompt_weight`.

    Args:
        policy, settings, boundaries, forward: See `PolicyModule`.
        rows: All demonstrations; a step refers to them by number.
        prompt_weight: 0 leaves the prompt out of the loss and out of the LM head.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Optimisation,
        boundaries: Sequence[int],
        rows: Sequence[TokenRow],
        prompt_weight: float,
        forward: Forward = token_logps,
    ) -> None:
        super().__init__(policy, settings, boundaries, forward)
        self.rows, self.prompt_weight = rows, prompt_weight

    def micro_loss(self, rows: Sequence[int], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.logps_of([self.rows[i] for i in rows], with_prompt=self.prompt_weight > 0)
        weights_N = found.is_answer_N.float()
        if self.prompt_weight > 0:
            weights_N = weights_N + self.prompt_weight * (~found.is_answer_N).float()
        answer_nll = -found.logps_N.detach()[found.is_answer_N].mean()
        return weighted_nll(found.logps_N, weights_N) / step.weight, {"nll": answer_nll}


def row_weight(row: TokenRow, prompt_weight: float) -> float:
    """What a row adds to the weight of its step: answer tokens plus weighted prompt tokens (all but the first)."""
    return len(row.answer) + prompt_weight * max(0, len(row.prompt) - 1)
