"""The training loop that every objective shares, what SFT and preference learning put into it, and what runs it.

A batch is one whole optimiser step. Every micro-batch's loss is a *sum* divided by the weight of the step over all
ranks: neither micro-batches nor devices change a step. Optimisation is manual, because Lightning's accumulation divides
by the number of micro-batches (transformers issue 34191).
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from ttpa.errors import DataError, Interrupted, fall_back
from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import TokenLogps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import PairLogps, PreferenceLoss, weighted_nll
from ttpa.train.plan import Example, Plan, Step, cut_step
from ttpa.train.settings import Optimisation, TrainerOptions

log = logging.getLogger("ttpa")

CLOCK = ("time/", "step_time")  # prefixes of timing metrics: logged, but left out of results
Progress = Callable[[int, int, float, str], None]
"""(steps done, steps in all, tokens per second, note)."""


class StepData(pl.LightningDataModule):
    """Serves optimiser steps, one a batch. The stream has no length, so a resumed run goes on where it stopped."""

    total_steps: int
    trainer: Any

    def steps(self, rank: int, world: int) -> Sequence[Any]:
        """What each step of one rank of `world` ranks is told; here its number."""
        return range(self.total_steps)

    def train_dataloader(self) -> Iterator[Any]:
        return iter(self.steps(self.trainer.global_rank, self.trainer.world_size)[self.trainer.global_step :])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


class PlanData(StepData):
    """The steps of a plan, cut by `cut_step`."""

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

    def __init__(self, policy: Policy, settings: Optimisation, boundaries: Sequence[int], forward: Forward) -> None:
        super().__init__()
        self.token_logps = forward
        self.automatic_optimization = self.strict_loading = False
        self.policy, self.settings, self.boundaries = policy, settings, tuple(boundaries)
        self.model = policy.model
        self.tokens_seen = self.tokens_computed = 0
        self.may_be_cut = False  # whether the step under way can be given up
        self.last_metrics: dict[str, float] = {}

    @abstractmethod
    def micro_loss(self, examples: Sequence[Any], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and metrics averaged over its examples."""

    def step_of(self, batch: Any) -> Step:
        """The step that a batch stands for."""
        return batch  # type: ignore[no-any-return]

    def step_metrics(self) -> dict[str, float]:
        """What is logged of a step beside the means over its micro-batches."""
        return {}

    def logps_of(self, rows: Sequence[TokenRow], **options: Any) -> TokenLogps:
        """Token log-probs of sequences, counted; options are those of `token_logps`."""
        found = self.token_logps(self.model, rows, pad_id=self.policy.renderer.pad_id, **options)
        self.tokens_computed += found.computed
        return found

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model.named_parameters(), self.settings)
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: self.settings.factor(n, self.boundaries))
        return {"optimizer": optimizer, "lr_scheduler": factor}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, scheduler = cast(Any, self.optimizers()), cast(Any, self.lr_schedulers())
        began, computed = time.perf_counter(), self.tokens_computed
        trained = [p for p in self.model.parameters() if p.requires_grad]
        try:
            self.may_be_cut = True
            step, total, sums = self._gradient(batch, trained)
        except StepCut:
            optimizer.zero_grad(set_to_none=True)
            self.tokens_computed = computed
            self.trainer.fit_loop.epoch_loop._batches_that_stepped -= 1  # Lightning adds one for the batch
            return
        finally:
            self.may_be_cut = False
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

    def _gradient(self, batch: Any, trained: Sequence[nn.Parameter]) -> tuple[Step, Tensor, dict[str, Tensor]]:
        """This rank's share of a step's gradient; the step, its loss, and sums of metrics over examples."""
        step, total, sums = self.step_of(batch), torch.zeros((), device=self.device), dict[str, Tensor]()
        for examples in step.micros:
            if not examples:  # keeps the ranks' collective calls in step
                self.manual_backward(cast(Tensor, sum(p.sum() for p in trained)) * 0.0)
                continue
            loss, metrics = self.micro_loss(examples, step)
            # DDP averages gradients over ranks; the loss is already a share of the whole step, so undo the average.
            self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * len(examples)
        return step, total, sums

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Frozen weights are the base model's: they are loaded from where they came from, not from the resume point.
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["progress"] = self.over_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen, self.tokens_computed, self.last_metrics = checkpoint["progress"]
        if self.global_rank:  # the first rank has what is summed over ranks
            self.tokens_seen = self.tokens_computed = 0
            self.last_metrics = self.last_metrics | {"loss": 0.0} if self.last_metrics else {}

    def over_ranks(self) -> tuple[int, int, dict[str, float]]:
        """Tokens of all sequences, those the model was run on (what shared prefixes saved, or padding cost) and the
        last metrics, of all ranks. All of them must call it at the same time.
        """

        def reduced(value: float, how: str) -> float:
            if self.trainer.world_size == 1:
                return value
            here = torch.tensor(value, dtype=torch.float64, device=self.trainer.strategy.root_device)
            return float(self.trainer.strategy.reduce(here, reduce_op=how))

        # The loss, of which every device has its share, adds up too; means over a device's rows are averaged.
        pairs = self.last_metrics.items()
        means = {name: reduced(value, "sum" if name == "loss" else "mean") for name, value in pairs}
        return round(reduced(self.tokens_seen, "sum")), round(reduced(self.tokens_computed, "sum")), means


def sft_example(rows: Sequence[TokenRow], prompt_weight: float, unit: Any) -> Example:
    """A demonstration in one row or as `trained_rows` cut it; it weighs its answer tokens and, by `prompt_weight`, the
    prompt tokens of its first row (all but the first).
    """
    answers = sum(len(row.answer) for row in rows)
    return Example(tuple(rows), answers + prompt_weight * max(0, len(rows[0].prompt) - 1), unit)


class SFTModule(PolicyModule):
    """Weighted token NLL: answer tokens weigh 1, prompt tokens `prompt_weight`; with 0 they stay out of the LM head."""

    def __init__(self, *settings: Any, prompt_weight: float, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.prompt_weight = prompt_weight

    def micro_loss(self, examples: Sequence[Example], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [row for example in examples for row in example.rows]
        found = self.logps_of(rows, with_prompt=self.prompt_weight > 0)
        weights_N = found.is_answer_N.float()
        if self.prompt_weight > 0:
            first = [number == 0 for example in examples for number in range(len(example.rows))]
            first_B = torch.tensor(first, device=weights_N.device)
            weights_N = weights_N + self.prompt_weight * (~found.is_answer_N & first_B[found.row_N]).float()
        answer_nll = -found.logps_N.detach()[found.is_answer_N].mean()
        return weighted_nll(found.logps_N, weights_N) / step.weight, {"nll": answer_nll}


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """A chosen and a rejected row; its weight is the number of tokens of the chosen answer."""

    reference: tuple[float, float] | None = None  # summed log-probs of both, where the loss asks for them


class PreferenceModule(PolicyModule):
    """Pairs, chosen and rejected in one forward: the loss, and the chosen answers' NLL."""

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
    """Optimisers stepping together, so that Lightning counts one step; a scheduler reaches the groups of all parts."""

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
    """An optimiser over the parameters that require gradients.

    "muon_adamw" is Muon (Jordan 2024) on matrices and AdamW on the rest; "adamw_8bit" is that of bitsandbytes
    (2110.02861) where it can run, else AdamW as a fallback. Weight decay is for matrices, of which embeddings are none.
    """
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in named:
        if p.requires_grad:
            (matrices if p.ndim == 2 and "embed" not in name and "lm_head" not in name else rest).append(p)
    kind: Any = torch.optim.AdamW
    betas, decay = (settings.betas[0], settings.betas[1]), settings.weight_decay
    if settings.optimizer == "muon_adamw":
        muon = torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=decay)
        # An adapter is matrices only.
        return MuonAdamW(muon, kind(rest, lr=settings.lr, betas=betas, weight_decay=0.0)) if rest else muon
    if settings.optimizer == "adamw_8bit":
        problem = "it runs on GPUs alone"
        try:
            if (*matrices, *rest)[0].device.type == "cuda":
                from bitsandbytes.optim import AdamW8bit

                kind, problem = AdamW8bit, ""
        except ImportError as error:
            problem = f"bitsandbytes is missing ({error}): pip install 'ttpa[qlora]'"
        if problem:
            fall_back(f"optimizer=adamw_8bit: {problem}; AdamW with states of full size stands in")
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = kind([g for g in groups if g["params"]], lr=settings.lr, betas=betas)
    return optimizer


POINTS = ("last.ckpt", "before.ckpt")  # newest first
PATIENCE_S = 8.0  # after which a step is no longer waited for; SLURM and others kill after 30 s


class StepCut(Interrupted):
    """The optimiser step under way is given up."""


class ResumePoints(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own copies from TMPDIR, and a kill leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        last = Path(path)
        part = last.with_name(f"{last.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            part.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError):  # a full disk, over which torch falls with words of its own
                raise OSError(cause.errno, cause.strerror, str(last)) from None
            raise
        if last.exists():
            last.replace(last.with_name(POINTS[1]))
        part.replace(last)


def resume_point(folder: Path, say: bool) -> Path | None:
    """The newest whole resume point. One that cannot be read, or holds more than numbers and text (a pickle may run
    commands), is put aside; `say` puts that on the screen.
    """
    for file in (folder / name for name in POINTS):
        if not file.exists():
            continue
        try:
            with ZipFile(file) as parts:
                torn = parts.testzip()
            if torn or "progress" not in torch.load(file, map_location="cpu", mmap=True, weights_only=True):
                raise ValueError(f"damaged at {torn}" if torn else "it is something else")
            return file
        except MemoryError:
            raise
        except Exception as error:
            aside = file.with_name(f"{file.name}.unreadable")
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            message = f"{file}: this resume point cannot be read ({reason}). It is now {aside.name}; the stage goes on "
            message += "from the point before, or from its start."
            log.warning(message)
            if say:
                print(f"ttpa: warning: {message}", file=sys.stderr)
            file.replace(aside)
    return None


class Keeper(Checkpoint):
    """Writes resume points: every so many optimiser steps, and when a signal asks the process to end."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every
        self.asked = 0  # the signal
        self._trained: tuple[pl.Trainer, Any] | None = None
        self._before: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals end the training within after a resume point. SIGUSR1 and 2 then go to whom they belong: submitit
        queues the job again.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
        self._before = {kind: signal.getsignal(kind) for kind in kinds}
        try:
            self._listen()
            yield
            if self.asked:  # after the last step
                raise Interrupted(self.asked)
        except Interrupted as stop:
            if stop.signum in (signal.SIGUSR1, signal.SIGUSR2):
                self._before[stop.signum](stop.signum, None)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for kind, handler in self._before.items():
                signal.signal(kind, handler)

    def _listen(self) -> None:
        for kind, handler in self._before.items():
            if kind == signal.SIGALRM:
                signal.signal(kind, self._cut)
            elif callable(handler) or (kind == signal.SIGTERM and handler == signal.SIG_DFL):
                signal.signal(kind, self._heard)

    def _heard(self, signum: int, frame: Any) -> None:
        if self._trained is None:
            raise Interrupted(signum)
        if not self.asked:
            self.asked = signum
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def _cut(self, signum: int, frame: Any) -> None:
        """Gives up a step that takes too long; not one of several ranks, which wait for each other."""
        if self._trained and self._trained[0].world_size == 1 and self._trained[1].may_be_cut:
            raise StepCut(self.asked)
        signal.setitimer(signal.ITIMER_REAL, 0.5)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._before:
            self._listen()  # again: Lightning has taken SIGTERM, after which it would leave with status 0
        self._trained = (trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        stop = bool(self.asked)
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.file)
        if stop:
            raise Interrupted(self.asked or signal.SIGTERM, trainer.global_step)


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


def environment_plugins() -> list[SLURMEnvironment]:
    """Inside a SLURM job, its environment without Lightning's requeue: it would submit the job a second time and save a
    resume point that the next stage would load.
    """
    ours = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if ours else []


def fit(
    module: PolicyModule, data: StepData, workdir: Path, *, trainer: TrainerOptions, logger: Any, progress: Progress,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, Any]:  # fmt: skip
    """Trains to the last step, from the resume point in `workdir` if there is one, and saves the policy there.

    Returns final metrics as plain numbers, with `steps` and `tokens`. No step to do is a `DataError`.
    """
    if data.total_steps == 0:
        raise DataError(f"{workdir}: the training plan has no steps. Give more data, or a longer plan.")
    # Lightning's advice about workers, cards and loggers is for other loops than this one.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    keeper = Keeper(workdir / "last.ckpt", trainer.checkpoint_every_steps)
    # Beside drawing answers, writing down a step costs nothing.
    often = {} if isinstance(data, PlanData) else {"log_every_n_steps": 1}
    runner = trainer.lightning(
        **often, max_steps=data.total_steps, max_epochs=-1, logger=logger,
        plugins=[ResumePoints(), *environment_plugins()],
        callbacks=[keeper, _Reporter(progress, data.total_steps), *callbacks],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with keeper.listening():
        runner.fit(module, data, ckpt_path=resume_point(workdir, say=runner.is_global_zero), weights_only=True)

    tokens, computed, means = module.over_ranks()
    module.policy.save(workdir / "policy")
    for point in workdir.glob("*.ckpt*"):
        point.unlink()
    return {"steps": data.total_steps, "tokens": tokens, "tokens_computed": computed, **means}
