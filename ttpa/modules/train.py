"""Runs a Lightning module over a plan inside a stage's working directory, resuming from its last checkpoint."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from ttpa.errors import DataError
from ttpa.modules.base import PlanData, PolicyModule
from ttpa.modules.rollouts import RolloutData

Progress = Callable[[int, int, float, str], None]
"""(steps done, steps in all, tokens per second, note)."""


class _Reporter(pl.Callback):
    """Tells the view how far the stage is, a few times a second."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.last = progress, total, 0.0
        self.mark = (time.monotonic(), 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.mark = (time.monotonic(), pl_module.tokens_seen)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if now - self.last < 0.3 and trainer.global_step < self.total:
            return
        self.last = now
        assert isinstance(pl_module, PolicyModule)
        speed = (pl_module.tokens_seen - self.mark[1]) / max(1e-9, now - self.mark[0])
        loss = trainer.callback_metrics.get("loss")
        self.progress(trainer.global_step, self.total, speed, "" if loss is None else f"loss {float(loss):.3f}")


def close(logger: Any) -> None:
    """Ends a run that is kept open by its library (W&B): the next stage of this process must not log into it."""
    finish = getattr(logger.experiment, "finish", None) if logger else None
    if finish is not None:
        finish()


def train(
    module: PolicyModule,
    data: PlanData | RolloutData,
    workdir: Path,
    *,
    trainer: Callable[..., pl.Trainer],
    logger: Any,
    checkpoint_every: int,
    progress: Progress,
) -> dict[str, Any]:
    """Trains to the end of the plan; a second call in the same folder continues from `last.ckpt`.

    Args:
        module, data: What to train on what.
        workdir: The stage's working directory.
        trainer: Builds the Lightning Trainer from keyword arguments (accelerator, devices, strategy are set in it).
        logger: A Lightning logger, or False.
        checkpoint_every: Optimiser steps between resume points.
        progress: Told about every few steps.

    Returns:
        Final metrics as plain numbers, with `steps` and `tokens`. The resume point stays: the caller removes it when it
        has saved what it wants.
    """
    total = len(data.plan.steps)
    # Lightning's advice about workers, cards and loggers is for other loops than this one.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    keeper = ModelCheckpoint(
        dirpath=workdir,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=checkpoint_every,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    # Beside drawing answers, writing down a step costs nothing.
    often = {"log_every_n_steps": 1} if isinstance(data, RolloutData) else {}
    runner = trainer(
        **often,
        max_steps=total,
        max_epochs=-1,
        logger=logger,
        callbacks=[keeper, _Reporter(progress, total)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = workdir / "last.ckpt"
    if total == 0:
        raise DataError(f"{workdir}: the training plan has no steps. Give more data, or a longer plan.")
    try:
        runner.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    finally:
        close(logger)
    # Tokens of all sequences, and those the model was run on: what shared prefixes saved, or padding cost.
    return {
        "steps": total,
        "tokens": module.tokens_seen,
        "tokens_computed": module.tokens_computed,
        **module.last_metrics,
    }
