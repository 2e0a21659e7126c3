"""Optimisers: AdamW, or Muon on the matrices with AdamW on the rest, as one object that Lightning can checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ttpa.train.settings import Optimisation

log = logging.getLogger("ttpa")


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan 2024) and AdamW stepping together; `param_groups` are theirs, so a scheduler reaches both.

    One optimiser instead of two keeps Lightning's step count equal to the number of optimiser steps.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts = (muon, adamw)
        super().__init__(
            [{"params": p} for part in self.parts for group in part.param_groups for p in group["params"]], {}
        )
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaces the group dictionaries: point at the new ones, so that schedules go on reaching them.
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: Optimisation) -> torch.optim.Optimizer:
    """An optimiser over the parameters that require gradients. Weight decay is for matrices only.

    Args:
        named: (name, parameter) pairs; embeddings are told by "embed" or "lm_head" in the name.
        settings: See `Optimisation`.
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    ids = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in ids]
    betas = (settings.betas[0], settings.betas[1])
    if settings.optimizer == "muon_adamw":
        muon = torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=settings.weight_decay)
        if not rest:  # an adapter is matrices only
            return muon
        return MuonAdamW(muon, torch.optim.AdamW(rest, lr=settings.lr, betas=betas, weight_decay=0.0))
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    kind: Any = torch.optim.AdamW
    if settings.optimizer == "adamw_8bit":
        kind = _eight_bit(trained[0][1].device.type if trained else "cpu") or kind
    optimizer: torch.optim.Optimizer = kind([g for g in groups if g["params"]], lr=settings.lr, betas=betas)
    return optimizer


def _eight_bit(device: str) -> Any:
    """bitsandbytes' AdamW with states of 8 bits (2110.02861), or None, which the log tells."""
    problem = "it runs on GPUs alone"
    if device == "cuda":
        try:
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit
        except ImportError as error:
            problem = f"bitsandbytes is missing ({error}): pip install 'ttpa[qlora]'"
    log.warning("optimizer=adamw_8bit: %s; using AdamW with states of full size", problem)
    return None
