"""The training loop that every objective shares: micro-batches, exact normalisation, clipping, schedule, metrics.

A batch here is one whole optimiser step. It is cut into micro-batches of at most `micro_tokens` padded tokens, and
every micro-batch's loss is a *sum* divided by the weight of the whole step over all ranks, so that neither the
micro-batch size nor the number of devices changes the step (the mistake of averaging micro-batch means is
transformers issue 34191). Manual optimisation, because Lightning's accumulation divides by the number of
micro-batches.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import TokenLogps, token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow, bucket_by_tokens, bundle, pack
from ttpa.train.optim import build_optimizer
from ttpa.train.plan import Plan
from ttpa.train.settings import Optimisation

CLOCK = ("time/", "step_time")
"""Beginnings of the names of metrics that a clock gave: they are logged, and are no result."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step on one rank.

    `micros` are lists of row numbers; `weight` is what sums are divided by, over the whole step and all ranks (tokens
    for NLL losses), `rows` the number of rows over all ranks; `tokens` counts real tokens on this rank.
    """

    micros: tuple[tuple[int, ...], ...]
    weight: float
    rows: int
    tokens: int


class StepStream(IterableDataset[Step]):
    """The steps of a plan from `start` on. It has no length, so a resumed run continues where it stopped."""

    def __init__(self, steps: Sequence[Step], start: int) -> None:
        self.steps, self.start = steps, start

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps[self.start :])


class PlanData(pl.LightningDataModule):
    """Serves a plan's steps, cut into micro-batches and divided among ranks by row.

    Args:
        plan: Which rows make up which step.
        costs: Places a row takes in a padded batch.
        weights: What each row adds to the step's weight.
        micro_tokens: Padded tokens of one micro-batch.
        tokens: Real tokens of each row; the costs where a row is one sequence.
        units: Unit of each row. Rows of one unit stay in one micro-batch, because a token tree computes once what they
            share, and all but the longest cost only their own tokens; bundles are packed, best fit first. None: rows
            are padded side by side.
        own: Tokens of each row that no other row of its unit has.
    """

    def __init__(
        self,
        plan: Plan,
        costs: Sequence[int],
        weights: Sequence[float],
        micro_tokens: int,
        tokens: Sequence[int] | None = None,
        units: Sequence[int] | None = None,
        own: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.trees = units is not None
        self.units = range(len(costs)) if units is None else units
        self.own = costs if own is None else own
        self.plan, self.costs, self.weights, self.micro_tokens = plan, costs, weights, micro_tokens
        self.tokens = costs if tokens is None else tokens

    def step(self, rows: Sequence[int], rank: int, world: int) -> Step:
        """The share of a step that belongs to one rank. Every rank gets the same number of micro-batches."""
        bundles, costs = bundle(rows, self.units, self.costs, self.own)
        shares = [range(start, len(bundles), world) for start in range(world)]
        if self.trees:
            cut = [
                [[share[k] for k in row] for row in pack([costs[i] for i in share], self.micro_tokens)]
                for share in shares
            ]
        else:
            cut = [bucket_by_tokens(share, costs, self.micro_tokens) for share in shares]
        most = max(len(micros) for micros in cut)
        micros = [[row for number in batch for row in bundles[number]] for batch in cut[rank]]
        micros += [[]] * (most - len(micros))
        weight = sum(self.weights[row] for row in rows)
        tokens = sum(self.tokens[row] for micro in micros for row in micro)
        return Step(tuple(map(tuple, micros)), weight, len(rows), tokens)

    def train_dataloader(self) -> DataLoader[Step]:
        trainer = self.trainer
        assert trainer is not None
        steps = [self.step(rows, trainer.global_rank, trainer.world_size) for rows in self.plan.steps]
        return DataLoader(StepStream(steps, trainer.global_step), batch_size=None)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        return batch


class PolicyModule(pl.LightningModule):
    """Trains a policy. Subclasses say what a micro-batch's loss is.

    Args:
        policy: The policy; its trainable weights are set before.
        settings: Optimiser and schedule.
        boundaries: Steps at which a learning-rate schedule ends.
        forward: How token log-probs are computed: `token_logps` or `tree_token_logps`.
    """

    def __init__(
        self, policy: Policy, settings: Optimisation, boundaries: Sequence[int], forward: Forward = token_logps
    ) -> None:
        super().__init__()
        self.token_logps = forward
        self.automatic_optimization = False
        self.strict_loading = False
        self.policy, self.settings, self.boundaries = policy, settings, tuple(boundaries)
        self.model = policy.model
        self.tokens_seen = 0
        self.tokens_computed = 0
        self.last_metrics: dict[str, float] = {}

    @abstractmethod
    def micro_loss(self, rows: Sequence[int], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and metrics averaged over its rows."""

    def step_of(self, batch: Any) -> Step:
        """The step that a batch of the data module stands for."""
        assert isinstance(batch, Step)
        return batch

    def step_metrics(self) -> dict[str, float]:
        """What is logged of a step beside the means over its micro-batches."""
        return {}

    def logps_of(self, rows: Sequence[TokenRow], **options: Any) -> TokenLogps:
        """Token log-probs of sequences, counted; options as `token_logps` takes them."""
        found = self.token_logps(self.model, rows, pad_id=self.policy.renderer.pad_id, **options)
        self.tokens_computed += found.computed
        return found

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model.named_parameters(), self.settings)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.settings.factor(step, self.boundaries)
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        began = time.perf_counter()
        step = self.step_of(batch)
        total = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = {}
        for rows in step.micros:
            if not rows:  # keeps the ranks' collective calls in step
                self.manual_backward(sum(p.sum() for p in self.model.parameters() if p.requires_grad) * 0.0)
                continue
            loss, metrics = self.micro_loss(rows, step)
            # DDP averages gradients over ranks; the loss is already a share of the whole step, so undo the average.
            self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * len(rows)
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.settings.clip
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        self.tokens_seen += step.tokens
        rows_here = max(1, sum(map(len, step.micros)))
        speed = step.tokens / max(1e-9, time.perf_counter() - began)
        means = {name: value / rows_here for name, value in sums.items()}
        measured = {"loss": total, "grad_norm": norm, "lr": rate, **means, **self.step_metrics()}
        if self.trainer.global_step == self.boundaries[-1]:
            kept = {name: value for name, value in measured.items() if not name.startswith(CLOCK)}
            self.last_metrics = {name: float(value) for name, value in kept.items()}
        self.log_dict({**measured, "tokens_per_s": speed})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Frozen weights are the base model's: they are loaded from where they came from, not from the resume point.
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["progress"] = (self.tokens_seen, self.tokens_computed, self.last_metrics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen, self.tokens_computed, self.last_metrics = checkpoint["progress"]
