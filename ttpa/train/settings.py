"""Settings of the training stages, instantiated by Hydra. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttpa.errors import ConfigError
from ttpa.train.objectives import GRPO, RFT, Gold, PreferenceLoss

OPTIMIZERS = ("adamw", "adamw_8bit", "muon_adamw")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Optimiser and learning-rate schedule.

    Args:
        name: "adamw"; "adamw_8bit", with bitsandbytes' states of 8 bits where that is installed and there is a GPU
            (else AdamW, and a line in the log says so); or "muon_adamw": Muon (Jordan 2024) on matrices, AdamW on
            embeddings, norms and biases.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon.
        betas: AdamW's.
        weight_decay: Decoupled, on matrices only.
        schedule: "linear", "cosine", "cosine_with_restarts" or "constant" after the warm-up.
        restarts: Cosines of "cosine_with_restarts", all of one length.
        warmup_steps: Linear rise from zero.
        final_fraction: Share of the peak that the schedule would reach one step after the last.
        clip: Largest gradient norm.

    Raises:
        ConfigError: a value out of range or an unknown name.
    """

    name: str
    lr: float
    muon_lr: float = 0.01
    betas: Sequence[float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: str = "linear"
    restarts: int = 1
    warmup_steps: int = 0
    final_fraction: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for key, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise ConfigError.at(f"optimizer.{key}", getattr(self, key), "unknown", f"Use {', '.join(known)}")
        if self.restarts < 1:
            raise ConfigError.at("optimizer.restarts", self.restarts, "must be at least 1", "1 is a single cosine")
        for key in ("lr", "muon_lr", "clip"):
            if not getattr(self, key) > 0:
                raise ConfigError.at(
                    f"optimizer.{key}", getattr(self, key), "must be positive", "See conf/model for defaults"
                )
        for key in ("weight_decay", "warmup_steps", "final_fraction"):
            if not getattr(self, key) >= 0:
                raise ConfigError.at(f"optimizer.{key}", getattr(self, key), "must not be negative", "Use 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError.at(
                "optimizer.betas", list(self.betas), "must be two numbers in [0, 1)", "For example [0.9, 0.95]"
            )

    def factor(self, step: int, boundaries: Sequence[int]) -> float:
        """Share of the peak learning rate at a step. Each phase ending at a boundary has a schedule of its own.

        Example:
            >>> OptimizerSettings(name="adamw", lr=1.0, warmup_steps=2).factor(1, [10])
            1.0
            >>> OptimizerSettings(name="adamw", lr=1.0, warmup_steps=2).factor(6, [10])
            0.5
        """
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


def _check_length(where: str, steps: int | None, epochs: float | None) -> None:
    if (steps is None) == (epochs is None):
        raise ConfigError.at(
            f"{where}.steps",
            steps,
            f"exactly one of steps and {where}.epochs={epochs} must be given",
            f"Set the other to null, for example {where}.steps=100 {where}.epochs=null",
        )
    for key, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and not value > 0:
            raise ConfigError.at(f"{where}.{key}", value, "must be positive", "Use warmup=none to skip the warm-up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """Supervised fine-tuning on demonstrations.

    Args:
        order: "shuffled", or "bands": easy, then medium, then hard, one learning-rate schedule each (iTool).
        replay: With bands: samples of earlier bands mixed into a later one, as a share of that band's samples.
        steps, epochs: Length, exactly one of them. With bands, steps are divided by the bands' tokens.
        batch_tokens: Padded tokens an optimiser step.
        prompt_weight: Loss weight of prompt tokens; answer tokens weigh 1.
        optimizer: See `OptimizerSettings`.

    Raises:
        ConfigError: a value out of range.
    """

    order: str
    batch_tokens: int
    optimizer: OptimizerSettings
    steps: int | None = None
    epochs: float | None = None
    replay: float = 0.0
    prompt_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in ("shuffled", "bands"):
            raise ConfigError.at("warmup.order", self.order, "unknown order", "Use shuffled or bands")
        _check_length("warmup", self.steps, self.epochs)
        if self.batch_tokens < 1:
            raise ConfigError.at(
                "warmup.batch_tokens", self.batch_tokens, "must be positive", "It counts padded tokens"
            )
        if not self.replay >= 0 or not 0 <= self.prompt_weight <= 1:
            raise ConfigError.at(
                "warmup.replay, warmup.prompt_weight",
                (self.replay, self.prompt_weight),
                "replay must not be negative and prompt_weight must be in [0, 1]",
                "0 switches either off",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWarmup:
    """`warmup=none`: the run starts from the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """What the align stage does: a loss, and how long and how fast it is minimised.

    Args:
        loss: The objective.
        batch_size: Pairs, answers or (GRPO) prompts an optimiser step, over all devices.
        steps, epochs: Length, exactly one of them.
        optimizer: See `OptimizerSettings`.
        over: Which tokens of a pair count: "answer", all of them; "span", from where the two answers part to where the
            search cut the span (to the end without a search), as MCTS-DPO (2405.00451) does.

    Raises:
        ConfigError: a value out of range.
    """

    loss: PreferenceLoss | RFT | Gold | GRPO
    batch_size: int
    optimizer: OptimizerSettings
    steps: int | None = None
    epochs: float | None = None
    over: str = "answer"

    def __post_init__(self) -> None:
        if self.over not in ("answer", "span"):
            raise ConfigError.at("objective.over", self.over, "unknown", "Use answer or span")
        if not isinstance(self.loss, PreferenceLoss | RFT | Gold | GRPO):
            raise ConfigError.at("objective.loss", self.loss, "is no objective", "Use an option of conf/objective/")
        _check_length("objective", self.steps, self.epochs)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError.at("objective.batch_size", self.batch_size, "must be positive", "The DPO paper uses 64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How fast, never what: limits that do not change a number beyond float rounding.

    Args:
        forward: "tree" computes what sequences share once (`ttpa.policy.forward`); "padded" is the reference way.
        threads: CPU threads of torch; 0 leaves torch's choice.
        micro_tokens: Padded tokens of one forward in training; an optimiser step is cut into as many as it needs.
        checkpoint_every_steps: Optimiser steps between resume points.
        answers_every_steps: GRPO: optimiser steps between entries of the table of sampled answers.

    Raises:
        ConfigError: a value out of range.
    """

    forward: str
    threads: int
    micro_tokens: int
    checkpoint_every_steps: int
    answers_every_steps: int = 10

    def __post_init__(self) -> None:
        if self.forward not in ("tree", "padded"):
            raise ConfigError.at("trainer.execution.forward", self.forward, "unknown way", "Use tree or padded")
        for key in ("threads", "micro_tokens", "checkpoint_every_steps", "answers_every_steps"):
            least = 0 if key == "threads" else 1
            if getattr(self, key) < least:
                raise ConfigError.at(
                    f"trainer.execution.{key}", getattr(self, key), f"must be at least {least}", "See conf/trainer"
                )
