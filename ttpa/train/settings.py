"""Settings of the training stages, as conf/recipe, conf/warmup and conf/trainer give them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ttpa.errors import ConfigError
from ttpa.options import Count, Fraction, Index, NonNegative, Positive, option

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


@option
class Optimisation:
    """How long and how fast something is minimised; exactly one of `steps` and `epochs` is given."""

    steps: Count | None
    epochs: Positive | None
    optimizer: Literal["adamw", "adamw_8bit", "muon_adamw"]
    lr: Positive  # the peak, of AdamW
    muon_lr: Positive
    betas: Annotated[Sequence[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: NonNegative  # decoupled, on matrices only
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "constant"]  # after the linear rise
    restarts: Count  # cosines of one length
    warmup_steps: Index
    final_fraction: NonNegative  # share of the peak that the schedule would reach one step after the last
    clip: Positive  # largest gradient norm

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            problem = f"exactly one of steps and epochs={self.epochs} must be given"
            raise ConfigError.at("steps", self.steps, problem, "Set the other to null, as in steps=100 epochs=null")

    def factor(self, step: int, boundaries: Sequence[int]) -> float:
        """Share of the peak learning rate at a step. Each phase that ends at a boundary has a schedule of its own."""
        phases = list(zip((0, *boundaries), boundaries, strict=False))
        start, end = next((phase for phase in phases if step < phase[1]), phases[-1])
        here, total = step - start, max(1, end - start)
        if here < self.warmup_steps:
            return (here + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (here - self.warmup_steps) / max(1, total - self.warmup_steps))
        if self.schedule == "cosine_with_restarts" and done < 1:
            done = done * self.restarts % 1.0
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.final_fraction + (1 - self.final_fraction) * left


Parts = Annotated[Sequence[Literal["calls", "text", "thoughts"]], Field(min_length=1)]
"""Parts of a target that are trained; the others are read as if they stood in the prompt, without a loss."""


@option
class WarmupRecipe(Optimisation):
    """Supervised fine-tuning."""

    train_on: Parts
    batch_tokens: Count  # padded, an optimiser step
    prompt_weight: Fraction  # loss weight of prompt tokens; answer tokens weigh 1


@option
class OnlineRecipe(Optimisation):
    """Objectives that draw their answers while they train."""

    batch_size: Count  # pairs, answers or (online) prompts an optimiser step, over all devices


@option
class AlignRecipe(OnlineRecipe):
    """The align stage. `train_on` is for objectives that learn from targets: sampled answers are trained on whole."""

    train_on: Parts


@option
class Recipe:
    """Numbers that suit a model's size."""

    max_new_tokens: Count
    train_on: Parts
    sft_weight: NonNegative
    num_iterations: Count
    warmup: WarmupRecipe
    align: AlignRecipe
    online: OnlineRecipe


@option
class Warmup:
    """Supervised fine-tuning on the demonstrations, by `recipe.warmup`."""

    order: Literal[
        "shuffled", "bands"
    ]  # bands: easy, medium, hard, a schedule each (iTool), with steps by their tokens
    replay: NonNegative  # samples of earlier bands mixed into a later one, as a share of that band's samples
    recipe: ClassVar[str | None] = "recipe.warmup"


@option
class NoWarmup:
    """`warmup=none`: the run starts from the model as it is."""

    recipe: ClassVar[str | None] = None


# What these Trainer arguments would change belongs to an identity group, or to the training loop itself.
NOT_EXECUTION = (
    "precision", "max_steps", "max_epochs", "max_time", "gradient_clip_val", "accumulate_grad_batches", "callbacks",
    "logger", "limit_train_batches", "default_root_dir", "overfit_batches", "fast_dev_run", "plugins",
)  # fmt: skip


@option
class TrainerOptions:
    """Where and how fast, never what: nothing here changes a number beyond float rounding."""

    accelerator: str
    devices: int | str | list[int]
    num_nodes: Count
    strategy: str
    log_every_n_steps: Count
    options: dict[str, Any]
    forward: Literal["tree", "padded"]
    threads: Index  # of torch on the CPU; 0 leaves torch's choice
    micro_tokens: Count  # padded tokens of one forward in training; a step is cut into as many as it needs
    checkpoint_every_steps: Count
    answers_every_steps: Count  # between entries of GRPO's table of sampled answers

    def __post_init__(self) -> None:
        for key in NOT_EXECUTION:
            if key in self.options:
                remedy = "Use model.dtype, the steps and batch sizes of recipe, or the logger group"
                problem = "decides numbers or is set by the training loop"
                raise ConfigError.at(f"options.{key}", self.options[key], problem, remedy)

    def lightning(self, **arguments: Any) -> Trainer:
        """Lightning's Trainer with these options and what the training loop sets."""
        from pytorch_lightning import Trainer

        flat = ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps")
        return Trainer(**{**{key: getattr(self, key) for key in flat}, **self.options, **arguments})
