"""Preference learning from pairs: any contrasting objective, with an optional NLL anchor on the chosen answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import PairLogps, PreferenceLoss
from ttpa.train.module import PolicyModule, Step
from ttpa.train.settings import Optimisation


class PreferenceModule(PolicyModule):
    """Pairs through the policy, chosen and rejected in one forward.

    Args:
        policy, settings, boundaries, forward: See `PolicyModule`.
        loss: The objective.
        chosen, rejected: Sequences of each pair; a step refers to pairs by number.
        references: Summed reference log-probs (chosen, rejected) of each pair, or None for reference-free losses.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Optimisation,
        boundaries: Sequence[int],
        loss: PreferenceLoss,
        chosen: Sequence[TokenRow],
        rejected: Sequence[TokenRow],
        references: Sequence[tuple[float, float]] | None,
        forward: Forward = token_logps,
    ) -> None:
        super().__init__(policy, settings, boundaries, forward)
        self.loss, self.chosen, self.rejected, self.references = loss, chosen, rejected, references

    def micro_loss(self, rows: Sequence[int], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        both = [self.chosen[i] for i in rows] + [self.rejected[i] for i in rows]
        sums = self.logps_of(both).sums()
        chosen_B, rejected_B = sums[: len(rows)], sums[len(rows) :]
        lengths = torch.tensor([len(row.answer) for row in both], device=sums.device)
        reference: tuple[Any, Any] = (None, None)
        if self.references is not None:
            pairs = torch.tensor([self.references[i] for i in rows], device=sums.device, dtype=torch.float32)
            reference = (pairs[:, 0], pairs[:, 1])
        losses_B, metrics = self.loss(
            PairLogps(chosen_B, rejected_B, lengths[: len(rows)], lengths[len(rows) :], *reference)
        )
        nll = -chosen_B.float().sum()
        metrics["nll_loss"] = (nll / lengths[: len(rows)].sum()).detach()
        metrics["logps/chosen"], metrics["logps/rejected"] = chosen_B.detach().mean(), rejected_B.detach().mean()
        # step.weight is the chosen answers' tokens over the whole step, step.rows its pairs.
        return losses_B.sum() / step.rows + self.loss.sft_weight * nll / step.weight, metrics
