"""Losses as pure functions over log-probs; no model, no device, no logging. B is the number of pairs, N of tokens.

Inputs may be bfloat16; the arithmetic is float32 or better. Metric names are TRL's where TRL has one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, Tensor]


def _wide(values: Tensor) -> Tensor:
    """Float32 where the input is narrower; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _reward_metrics(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor) -> Metrics:
    chosen_B, rejected_B = chosen_rewards_B.detach(), rejected_rewards_B.detach()
    return {
        "rewards/chosen": chosen_B.mean(),
        "rewards/rejected": rejected_B.mean(),
        "rewards/margins": (chosen_B - rejected_B).mean(),
        "rewards/accuracies": (chosen_B > rejected_B).float().mean(),
    }


def dpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """DPO (2305.18290, Eq. 7) with cDPO's label smoothing, one loss a pair.

    `-(1-e) logsigmoid(beta D) - e logsigmoid(-beta D)`, `D = (pi_w - ref_w) - (pi_l - ref_l)` in summed log-probs.

    Args:
        chosen_logps_B, rejected_logps_B: Summed log-probs under the policy, shape (B,).
        ref_chosen_logps_B, ref_rejected_logps_B: The same under the reference policy.
        beta: KL strength.
        label_smoothing: e above.

    Returns:
        Losses (B,) and TRL's `rewards/*` metrics (reward = beta times the log-ratio).
    """
    chosen_B = beta * (_wide(chosen_logps_B) - _wide(ref_chosen_logps_B))
    rejected_B = beta * (_wide(rejected_logps_B) - _wide(ref_rejected_logps_B))
    margin_B = chosen_B - rejected_B
    losses_B = -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)
    return losses_B, _reward_metrics(chosen_B, rejected_B)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Mean of `dpo_losses`. Policy equal to reference gives log 2."""
    losses_B, metrics = dpo_losses(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta, label_smoothing=label_smoothing
    )
    return losses_B.mean(), metrics


def simpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> tuple[Tensor, Metrics]:
    """SimPO (2405.14734, Eq. 6), one loss a pair: `-logsigmoid(beta (pi_w/|w| - pi_l/|l| - ratio))`.

    Args:
        chosen_logps_B, rejected_logps_B: Summed log-probs, shape (B,).
        chosen_lengths_B, rejected_lengths_B: Answer tokens, end-of-turn included.
        beta: Scale; gamma_beta_ratio: target margin / beta.

    Returns:
        Losses (B,) and `rewards/*` metrics (reward = beta times the mean log-prob).
    """
    chosen_B = beta * _wide(chosen_logps_B) / chosen_lengths_B
    rejected_B = beta * _wide(rejected_logps_B) / rejected_lengths_B
    losses_B = -F.logsigmoid(chosen_B - rejected_B - beta * gamma_beta_ratio)
    return losses_B, _reward_metrics(chosen_B, rejected_B)


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
    sft_weight: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Mean of `simpo_losses` plus `sft_weight` times the chosen answers' token-mean NLL."""
    losses_B, metrics = simpo_losses(
        chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta=beta, gamma_beta_ratio=gamma_beta_ratio
    )
    nll = -_wide(chosen_logps).sum() / chosen_lengths.sum()
    return losses_B.mean() + sft_weight * nll, {**metrics, "nll_loss": nll.detach()}


def weighted_nll(logps_N: Tensor, weights_N: Tensor) -> Tensor:
    """`-sum w log p`, a sum: the caller divides by the weight of the whole accumulation window. Scalar."""
    return -(_wide(logps_N) * weights_N).sum()
