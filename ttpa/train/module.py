"""The training loop that every objective shares, what SFT and preference learning put into it, and what runs it.

A batch of the DataLoader is one whole optimiser step. Every micro-batch's loss is a *sum* divided by the weight of the
whole step over all ranks, so that neither the micro-batch size nor the number of devices changes the step. Manual
optimisation, because Lightning's accumulation divides by the number of micro-batches (transformers issue 34191).
"""

import logging
import signal
import threading
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ttpa.errors import DataError
from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import TokenLogps, token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import PairLogps, PreferenceLoss, weighted_nll
from ttpa.train.plan import Example, Plan, Step, cut_step
from ttpa.train.settings import Optimisation, TrainerOptions

log = logging.getLogger("ttpa")

CLOCK = ("time/", "step_time")
"""Prefixes of timing metrics: logged, but left out of results."""
Progress = Callable[[int, int, float, str], None]
"""(steps done, steps in all, tokens per second, note)."""


class StepStream(IterableDataset[Any]):
    """Steps from `start` on. It has no length, so a resumed run continues where it stopped."""

    def __init__(self, steps: Sequence[Any], start: int) -> None:
        self.steps, self.start = steps, start

    def __iter__(self) -> Iterator[Any]:
        return iter(self.steps[self.start :])


class StepData(pl.LightningDataModule):
    """Serves optimiser steps, one a batch."""

    total_steps: int
    trainer: Any

    def steps(self, rank: int, world: int) -> Sequence[Any]:
        """What each step of one rank of `world` ranks is told; here its number."""
        return range(self.total_steps)

    def train_dataloader(self) -> DataLoader[Any]:
        steps = self.steps(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(StepStream(steps, self.trainer.global_step), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


class PlanData(StepData):
    """The steps of a plan, cut into micro-batches of `micro_tokens` and divided among ranks; `trees` as in
    `cut_step`.
    """

    def __init__(self, plan: Plan, micro_tokens: int, trees: bool) -> None:
        super().__init__()
        self.plan, self.micro_tokens, self.trees = plan, micro_tokens, trees
        self.total_steps = len(plan.steps)

    def steps(self, rank: int, world: int) -> Sequence[Any]:
        return [cut_step(examples, self.micro_tokens, self.trees, rank, world) for examples in self.plan.steps]


class PolicyModule(pl.LightningModule):
    """Trains a policy whose trainable weights are set; subclasses say what a micro-batch's loss is.

    A learning-rate schedule ends at each of the steps `boundaries`; `forward` is `token_logps` or `tree_token_logps`.
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
        self.tokens_seen = self.tokens_computed = 0
        self.last_metrics: dict[str, float] = {}

    @abstractmethod
    def micro_loss(self, examples: Sequence[Any], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and metrics averaged over its examples."""

    def step_of(self, batch: Any) -> Step:
        """The step that a batch of the DataLoader stands for."""
        return batch  # type: ignore[no-any-return]

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
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: self.settings.factor(n, self.boundaries))
        return {"optimizer": optimizer, "lr_scheduler": factor}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        began = time.perf_counter()
        step = self.step_of(batch)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        total = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = {}
        for examples in step.micros:
            if not examples:  # keeps the ranks' collective calls in step
                self.manual_backward(sum(p.sum() for p in trained) * 0.0)
                continue
            loss, metrics = self.micro_loss(examples, step)
            # DDP averages gradients over ranks; the loss is already a share of the whole step, so undo the average.
            self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * len(examples)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        self.tokens_seen += step.tokens
        here = max(1, sum(map(len, step.micros)))
        means = {name: value / here for name, value in sums.items()}
        measured = {"loss": total, "grad_norm": norm, "lr": rate, **means, **self.step_metrics()}
        if self.trainer.global_step == self.boundaries[-1]:
            self.last_metrics = {name: float(value) for name, value in measured.items() if not name.startswith(CLOCK)}
        self.log_dict({**measured, "tokens_per_s": step.tokens / max(1e-9, time.perf_counter() - began)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Frozen weights are the base model's: they are loaded from where they came from, not from the resume point.
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["progress"] = (self.tokens_seen, self.tokens_computed, self.last_metrics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen, self.tokens_computed, self.last_metrics = checkpoint["progress"]


def sft_example(row: TokenRow, prompt_weight: float, unit: Any) -> Example:
    """A demonstration; it weighs its answer tokens and, by `prompt_weight`, its prompt tokens (all but the first)."""
    return Example((row,), len(row.answer) + prompt_weight * max(0, len(row.prompt) - 1), unit)


class SFTModule(PolicyModule):
    """Weighted token NLL: answer tokens weigh 1, prompt tokens `prompt_weight`; with 0 they stay out of the LM head."""

    def __init__(self, *settings: Any, prompt_weight: float, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.prompt_weight = prompt_weight

    def micro_loss(self, examples: Sequence[Example], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.logps_of([example.rows[0] for example in examples], with_prompt=self.prompt_weight > 0)
        weights_N = found.is_answer_N.float()
        if self.prompt_weight > 0:
            weights_N = weights_N + self.prompt_weight * (~found.is_answer_N).float()
        answer_nll = -found.logps_N.detach()[found.is_answer_N].mean()
        return weighted_nll(found.logps_N, weights_N) / step.weight, {"nll": answer_nll}


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """A chosen and a rejected row, and their summed log-probs under the reference, where a loss asks for them.

    Its weight is the number of tokens of the chosen answer.
    """

    reference: tuple[float, float] | None = None


class PreferenceModule(PolicyModule):
    """Pairs through the policy, chosen and rejected in one forward: the loss and its NLL anchor on the chosen
    answers.
    """

    def __init__(self, *settings: Any, loss: PreferenceLoss, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.loss = loss

    def micro_loss(self, examples: Sequence[PairExample], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [example.rows[side] for side in (0, 1) for example in examples]
        sums_2B = self.logps_of(rows).sums()
        chosen_B, rejected_B = sums_2B.chunk(2)
        tokens_B, rejected_tokens_B = torch.tensor([len(row.answer) for row in rows], device=sums_2B.device).chunk(2)
        known: tuple[Tensor, ...] = ()
        if self.loss.needs_reference:
            known = torch.tensor([example.reference for example in examples], device=sums_2B.device).unbind(1)
        losses_B, metrics = self.loss(PairLogps(chosen_B, rejected_B, tokens_B, rejected_tokens_B, *known))
        nll = -chosen_B.float().sum()
        metrics["nll_loss"] = (nll / tokens_B.sum()).detach()
        metrics["logps/chosen"], metrics["logps/rejected"] = chosen_B.detach().mean(), rejected_B.detach().mean()
        return losses_B.sum() / step.examples + self.loss.sft_weight * nll / step.weight, metrics


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan 2024) and AdamW stepping together; `param_groups` are theirs, so a scheduler reaches both.

    One optimiser instead of two keeps Lightning's step count equal to the number of optimiser steps.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._join()

    def _join(self) -> None:
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
        self._join()  # loading replaced the groups: schedules must reach the new ones


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: Optimisation) -> torch.optim.Optimizer:
    """An optimiser over the parameters that require gradients. Weight decay is for matrices only.

    Embeddings are told by "embed" or "lm_head" in a parameter's name; they are no matrices here.
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    inner = [p.ndim == 2 and "embed" not in name and "lm_head" not in name for name, p in trained]
    matrices = [p for (_, p), matrix in zip(trained, inner, strict=True) if matrix]
    rest = [p for (_, p), matrix in zip(trained, inner, strict=True) if not matrix]
    betas, decay = (settings.betas[0], settings.betas[1]), settings.weight_decay
    if settings.optimizer == "muon_adamw":
        muon = torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=decay)
        if not rest:  # an adapter is matrices only
            return muon
        return MuonAdamW(muon, torch.optim.AdamW(rest, lr=settings.lr, betas=betas, weight_decay=0.0))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    kind: Any = torch.optim.AdamW
    if settings.optimizer == "adamw_8bit":
        kind = _eight_bit(trained[0][1].device.type) or kind
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

    Lightning would leave after the batch with exit status 0: submitit would not queue the job again, and elsewhere
    nobody would see that the run was stopped.
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
    module.policy.weights = module.model
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

    Returns final metrics as plain numbers, with `steps` and `tokens`. The caller closes the `logger`, if it is not
    False.

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
