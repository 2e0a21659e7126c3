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

Beta = Annotated[float, Field(ge=0, lt=1)]


@option
class Optimisation:
    """How long and how fast something is minimised.

    Args:
        steps, epochs: Length; exactly one of them is given.
        optimizer: "adamw"; "adamw_8bit", with bitsandbytes' states of 8 bits where that is installed and there is a GPU
            (else AdamW, and a line in the log says so); or "muon_adamw": Muon (Jordan 2024) on matrices, AdamW on
            embeddings, norms and biases.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon.
        betas: AdamW's two.
        weight_decay: Decoupled, on matrices only.
        schedule: What follows the linear rise over `warmup_steps`.
        restarts: Cosines of "cosine_with_restarts", all of one length.
        warmup_steps: Linear rise from zero.
        final_fraction: Share of the peak that the schedule would reach one step after the last.
        clip: Largest gradient norm.
    """

    steps: Count | None
    epochs: Positive | None
    optimizer: Literal["adamw", "adamw_8bit", "muon_adamw"]
    lr: Positive
    muon_lr: Positive
    betas: Annotated[Sequence[Beta], Field(min_length=2, max_length=2)]
    weight_decay: NonNegative
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "constant"]
    restarts: Count
    warmup_steps: Index
    final_fraction: NonNegative
    clip: Positive

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError.at(
                "steps",
                self.steps,
                f"exactly one of steps and epochs={self.epochs} must be given",
                "Set the other to null, for example steps=100 epochs=null",
            )

    def factor(self, step: int, boundaries: Sequence[int]) -> float:
        """Share of the peak learning rate at a step. Each phase that ends at a boundary has a schedule of its own."""
        start = 0
        for end in boundaries:
            if step < end:
                break
            start = end
        else:
            start, end = (boundaries[-2] if len(boundaries) > 1 else 0), boundaries[-1]
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


@option
class WarmupRecipe(Optimisation):
    """Supervised fine-tuning.

    Args:
        batch_tokens: Padded tokens an optimiser step.
        prompt_weight: Loss weight of prompt tokens; answer tokens weigh 1.
    """

    batch_tokens: Count
    prompt_weight: Fraction


@option
class AlignRecipe(Optimisation):
    """The align stage.

    Args:
        batch_size: Pairs, answers or (online) prompts an optimiser step, over all devices.
    """

    batch_size: Count


@option
class Recipe:
    """Numbers that suit a model's size. Stages read their own block; options of other groups refer to the rest.

    Args:
        max_new_tokens: Longest answer.
        sft_weight: NLL anchor of preference objectives.
        num_iterations: Passes over a round's answers, of online objectives.
        warmup, align, online: What warm-up, objectives that learn from pairs or targets, and objectives that draw their
            answers read.
    """

    max_new_tokens: Count
    sft_weight: NonNegative
    num_iterations: Count
    warmup: WarmupRecipe
    align: AlignRecipe
    online: AlignRecipe


@option
class Warmup:
    """Supervised fine-tuning on the demonstrations, by `recipe.warmup`.

    Args:
        order: "shuffled", or "bands": easy, then medium, then hard, one learning-rate schedule each (iTool). Steps are
            divided by the bands' tokens.
        replay: With bands: samples of earlier bands mixed into a later one, as a share of that band's samples.
    """

    order: Literal["shuffled", "bands"]
    replay: NonNegative
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
    """Where and how fast, never what: nothing here changes a number beyond float rounding.

    Args:
        accelerator, devices, num_nodes, strategy, log_every_n_steps: Arguments of Lightning's Trainer.
        options: Further arguments of it.
        forward: "tree" computes what sequences share once (`ttpa.policy.forward`); "padded" is the reference way.
        threads: CPU threads of torch; 0 leaves torch's choice.
        micro_tokens: Padded tokens of one forward in training; an optimiser step is cut into as many as it needs.
        checkpoint_every_steps: Optimiser steps between resume points.
        answers_every_steps: GRPO: optimiser steps between entries of the table of sampled answers.
    """

    accelerator: str
    devices: int | str | list[int]
    num_nodes: Count
    strategy: str
    log_every_n_steps: Count
    options: dict[str, Any]
    forward: Literal["tree", "padded"]
    threads: Index
    micro_tokens: Count
    checkpoint_every_steps: Count
    answers_every_steps: Count

    def __post_init__(self) -> None:
        for key in NOT_EXECUTION:
            if key in self.options:
                raise ConfigError.at(
                    f"options.{key}",
                    self.options[key],
                    "decides numbers or is set by the training loop",
                    "Use model.dtype, the steps and batch sizes of recipe, or the logger group",
                )

    def lightning(self, **arguments: Any) -> Trainer:
        """Lightning's Trainer with these options and what the training loop sets."""
        from pytorch_lightning import Trainer

        flat = ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps")
        return Trainer(**{**{key: getattr(self, key) for key in flat}, **self.options, **arguments})
