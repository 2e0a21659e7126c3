"""Runs a Lightning module over its data inside a stage's working directory, resuming from its last checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from ttpa.errors import DataError
from ttpa.train.module import PlanData, PolicyModule, StepData
from ttpa.train.settings import TrainerOptions

Progress = Callable[[int, int, float, str], None]
"""(steps done, steps in all, tokens per second, note)."""


class _Reporter(pl.Callback):
    """Tells the view how far the stage is, a few times a second."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.last = progress, total, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mark = (time.monotonic(), pl_module.tokens_seen)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        if now - self.last < 0.3 and trainer.global_step < self.total:
            return
        self.last = now
        speed = (pl_module.tokens_seen - self.mark[1]) / max(1e-9, now - self.mark[0])
        loss = trainer.callback_metrics.get("loss")
        self.progress(trainer.global_step, self.total, speed, "" if loss is None else f"loss {float(loss):.3f}")


class _LeaveSignals(pl.Callback):
    """Gives SIGTERM back to whom it belonged before the Trainer took it; the resume point makes that safe.

    Lightning would leave after the batch with exit status 0: submitit would not queue the job again, and elsewhere nobody
    would see that the run was stopped.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)


def environment_plugins() -> list[SLURMEnvironment]:
    """Inside a SLURM job: its environment without Lightning's requeue, which would resubmit the job a second time and
    save a resume point that the next stage would load.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def fit(module: PolicyModule, data: StepData, workdir: Path, **options: Any) -> dict[str, Any]:
    """Trains as `train` does, from the last resume point if there is one, and saves the policy."""
    metrics = train(module, data, workdir, **options)
    module.policy.model = module.model
    module.policy.save(workdir / "policy")
    (workdir / "last.ckpt").unlink(missing_ok=True)
    return metrics


def train(
    module: PolicyModule,
    data: StepData,
    workdir: Path,
    *,
    trainer: TrainerOptions,
    logger: Any,
    progress: Progress,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, Any]:
    """Trains to the last step; a second call in the same folder continues from `last.ckpt`, which the caller removes.

    Returns final metrics as plain numbers, with `steps` and `tokens`. The caller closes the `logger`, if it is not False.

    Raises:
        DataError: there is no step to do.
    """
    if data.total_steps == 0:
        raise DataError(f"{workdir}: the training plan has no steps. Give more data, or a longer plan.")
    # Lightning's advice about workers, cards and loggers is for other loops than this one.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    keeper = ModelCheckpoint(
        dirpath=workdir,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=trainer.checkpoint_every_steps,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    # Beside drawing answers, writing down a step costs nothing.
    often = {} if isinstance(data, PlanData) else {"log_every_n_steps": 1}
    runner = trainer.lightning(
        **often,
        max_steps=data.total_steps,
        max_epochs=-1,
        logger=logger,
        callbacks=[keeper, _Reporter(progress, data.total_steps), _LeaveSignals(), *callbacks],
        plugins=environment_plugins(),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = workdir / "last.ckpt"
    runner.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)

    def over_ranks(value: float, how: str) -> float:
        here = torch.tensor(value, dtype=torch.float64, device=runner.strategy.root_device)
        return float(runner.strategy.reduce(here, reduce_op=how)) if runner.world_size > 1 else value

    # Tokens of all sequences, and those the model was run on: what shared prefixes saved, or padding cost.
    tokens = {"tokens": module.tokens_seen, "tokens_computed": module.tokens_computed}
    sums = {name: round(over_ranks(value, "sum")) for name, value in tokens.items()}
    # The loss, of which every device has its share, adds up too; means over a device's rows are averaged.
    last_metrics = module.last_metrics.items()
    means = {name: over_ranks(value, "sum" if name == "loss" else "mean") for name, value in last_metrics}
    return {"steps": data.total_steps, **sums, **means}
