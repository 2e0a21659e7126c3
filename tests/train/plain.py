"""Options for tests of training (every field has a plain value, a test names those that matter) and a small model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ttpa.policy.tree import TokenRow
from ttpa.train.losses import DPO, IPO, ORPO, Hinge, PreferenceLoss, RobustDPO, SimPO
from ttpa.train.module import fit
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import AlignRecipe, TrainerOptions, Warmup, WarmupRecipe

OPTIMISATION: dict[str, Any] = {
    "steps": None, "epochs": None, "optimizer": "adamw", "lr": 1e-3, "muon_lr": 1e-2, "betas": [0.9, 0.95],
    "weight_decay": 0.0, "schedule": "linear", "restarts": 1, "warmup_steps": 0, "final_fraction": 0.0, "clip": 1.0,
}  # fmt: skip
PARTS = ["calls", "text", "thoughts"]
LOSS: dict[type, dict[str, Any]] = {
    DPO: {"label_smoothing": 0.0}, RobustDPO: {"label_smoothing": 0.1}, Hinge: {}, SimPO: {"gamma_beta_ratio": 0.2},
    IPO: {"length_normalised": True}, ORPO: {},
}  # fmt: skip


def _length(fields: dict[str, Any]) -> dict[str, Any]:
    """One step where a test names neither steps nor epochs."""
    return {**OPTIMISATION, **({} if {"steps", "epochs"} & fields.keys() else {"steps": 1}), **fields}


def warmup_recipe(**fields: Any) -> WarmupRecipe:
    return WarmupRecipe(**{"train_on": PARTS, "batch_tokens": 64, "prompt_weight": 0.0, **_length(fields)})


def align_recipe(**fields: Any) -> AlignRecipe:
    return AlignRecipe(**{"train_on": PARTS, "batch_size": 4, **_length(fields)})


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
    logps_GT: Tensor, old_GT: Tensor | None, ref_GT: Tensor | None, advantages_G: Tensor, mask_GT: Tensor, *,
    max_length: int | None = None, tokens: float | None = None, answers: int | None = None,
    weights: Tensor | None = None, **fields: Any,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss of one call; the longest answer is the longest allowed unless the test says otherwise."""
    most = max_length or logps_GT.shape[1]
    more: Any = {"max_length": most, "weights_GT": weights, "answers": answers, "tokens": tokens}
    return grpo(**fields)(logps_GT, advantages_G, mask_GT, old_logps_GT=old_GT, ref_logps_GT=ref_GT, **more)


VOCAB, PAD, HUGE = 50, 0, 1_000_000
MODELS: dict[str, Any] = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "llama": (LlamaForCausalLM, LlamaConfig)}


def small_policy(layers: int = 1, name: str = "qwen2") -> Any:
    torch.manual_seed(5)
    kind, config = MODELS[name]
    model = kind(
        config(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=128, tie_word_embeddings=name == "qwen2", pad_token_id=PAD,
            eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return SimpleNamespace(model=model, renderer=SimpleNamespace(pad_id=PAD), save=lambda folder: None)


def weights_of(module: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.model.named_parameters()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def plain_logps(model: torch.nn.Module, row: TokenRow) -> Tensor:
    """Log-probs (T - 1,) of all tokens but the first, from the full logits of one row without padding."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    return -F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")


def gradients(module: Any) -> dict[str, Tensor]:
    """Takes them: zero where a weight has none."""
    trained = [(name, p) for name, p in module.model.named_parameters() if p.requires_grad]
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained}
    module.zero_grad()
    return found


class Killed(Exception):
    pass


class KillAfter(pl.Callback):
    """Raises once so many optimiser steps are done, before the resume point of the last one is written."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise Killed


def run_training(
    made: tuple[Any, Any], folder: Path, *extra: pl.Callback, every: int = 1000, logger: Any = False
) -> dict[str, Any]:
    """Trains to the end, in what is there of the folder."""
    folder.mkdir(exist_ok=True)
    seen: list[tuple[int, int]] = []
    options: Any = {"trainer": trainer(checkpoint_every_steps=every), "logger": logger, "callbacks": extra}
    metrics = fit(*made, folder, progress=lambda done, total, *_: seen.append((done, total)), **options)
    assert not seen or seen[-1] == (made[1].total_steps, made[1].total_steps)
    return metrics
