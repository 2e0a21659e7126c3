"""Option objects for tests of training: every field has a plain value, the test names those that matter to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ttpa.train.losses import DPO, IPO, ORPO, Hinge, PreferenceLoss, RobustDPO, SimPO
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import AlignRecipe, TrainerOptions, Warmup, WarmupRecipe

OPTIMISATION: dict[str, Any] = {
    "steps": None, "epochs": None, "optimizer": "adamw", "lr": 1e-3, "muon_lr": 1e-2, "betas": [0.9, 0.95],
    "weight_decay": 0.0, "schedule": "linear", "restarts": 1, "warmup_steps": 0, "final_fraction": 0.0, "clip": 1.0,
}  # fmt: skip
LOSS: dict[type, dict[str, Any]] = {
    DPO: {"label_smoothing": 0.0}, RobustDPO: {"label_smoothing": 0.1}, Hinge: {}, SimPO: {"gamma_beta_ratio": 0.2},
    IPO: {"length_normalised": True}, ORPO: {},
}  # fmt: skip


def _length(fields: dict[str, Any]) -> dict[str, Any]:
    """One step where a test names neither steps nor epochs."""
    return {**OPTIMISATION, **({} if {"steps", "epochs"} & fields.keys() else {"steps": 1}), **fields}


def warmup_recipe(**fields: Any) -> WarmupRecipe:
    return WarmupRecipe(**{"batch_tokens": 64, "prompt_weight": 0.0, **_length(fields)})


def align_recipe(**fields: Any) -> AlignRecipe:
    return AlignRecipe(**{"batch_size": 4, **_length(fields)})


def warmup(**fields: Any) -> Warmup:
    return Warmup(**{"order": "shuffled", "replay": 0.0, **fields})


def trainer(**fields: Any) -> TrainerOptions:
    plain = {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "log_every_n_steps": 1, "options": {},
        "forward": "tree", "threads": 0, "micro_tokens": 64, "checkpoint_every_steps": 100, "answers_every_steps": 10,
    }  # fmt: skip
    return TrainerOptions(**{**plain, **fields})


def loss(kind: type[PreferenceLoss], **fields: Any) -> Any:
    return kind(**{"beta": 0.1, "sft_weight": 0.0, "over": "answer", **LOSS[kind], **fields})


def grpo(**fields: Any) -> GRPO:
    plain = {
        "clip_low": 0.2, "clip_high": 0.2, "beta": 0.0, "aggregation": "grpo", "scale": "group", "eps": 1e-4,
        "importance": "token", "kl_weighted": False, "num_iterations": 1, "minibatches": 1, "refills": 0,
        "overlong": 0.0, "mask_truncated": False, "truncated_importance": 2.0, "surrogate": "clip",
        "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
    }  # fmt: skip
    return GRPO(**{**plain, **fields})


def grpo_loss(
    logps_GT: Tensor,
    old_GT: Tensor | None,
    ref_GT: Tensor | None,
    advantages_G: Tensor,
    mask_GT: Tensor,
    *,
    max_length: int | None = None,
    tokens: float | None = None,
    answers: int | None = None,
    weights: Tensor | None = None,
    **fields: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one call; the longest answer is the longest allowed unless the test says otherwise."""
    return grpo(**fields)(
        logps_GT,
        advantages_G,
        mask_GT,
        max_length=max_length or logps_GT.shape[1],
        old_logps_GT=old_GT,
        ref_logps_GT=ref_GT,
        weights_GT=weights,
        answers=answers,
        tokens=tokens,
    )
