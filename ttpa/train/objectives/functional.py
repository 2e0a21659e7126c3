"""Losses as pure functions over log-probs; no model, no device, no logging.

Pairs are in `ttpa.train.objectives.preference`, GRPO and its relatives in `ttpa.train.objectives.policy_gradient`; all are named
here. Inputs may be bfloat16; the arithmetic is float32 or better. Metric names are TRL's where TRL has one. N is the
number of tokens.
"""

from __future__ import annotations

from torch import Tensor

from ttpa.train.objectives.policy_gradient import (
    AGGREGATIONS,
    SCALES,
    SURROGATES,
    decoupled_advantages,
    group_advantages,
    grpo_loss,
)
from ttpa.train.objectives.preference import (
    Metrics,
    dpo_loss,
    dpo_losses,
    hinge_losses,
    ipo_losses,
    orpo_loss,
    orpo_losses,
    robust_dpo_losses,
    simpo_loss,
    simpo_losses,
    wide,
)

__all__ = [
    "AGGREGATIONS",
    "SCALES",
    "SURROGATES",
    "Metrics",
    "decoupled_advantages",
    "dpo_loss",
    "dpo_losses",
    "group_advantages",
    "grpo_loss",
    "hinge_losses",
    "ipo_losses",
    "orpo_loss",
    "orpo_losses",
    "robust_dpo_losses",
    "simpo_loss",
    "simpo_losses",
    "weighted_nll",
]


def weighted_nll(logps_N: Tensor, weights_N: Tensor) -> Tensor:
    """`-sum w log p`, a sum: the caller divides by the weight of the whole accumulation window. Scalar."""
    return -(wide(logps_N) * weights_N).sum()
