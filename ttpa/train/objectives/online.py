"""Objectives that learn from answers drawn while training: GRPO and its relatives as one set of hyper-parameters.

`conf/objective/{grpo,dr_grpo,dapo,gspo}.yaml` name the published settings. The loss itself is
`ttpa.train.objectives.policy_gradient.grpo_loss`; what draws and scores is `ttpa.train.grpo`. Importing this imports no
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ttpa.errors import ConfigError

_KNOWN = {
    "aggregation": ("grpo", "bnpo", "dr_grpo", "dapo"),
    "scale": ("group", "batch", "none"),
    "importance": ("token", "sequence"),
    "surrogate": ("clip", "cispo", "sapo"),
}
_WHERE = "objective.loss."


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """Group relative policy optimisation (2402.03300) with the choices of its successors.

    A round draws `sampler.n` answers to each of `batch_size * minibatches` prompts with the current policy and makes
    `minibatches * num_iterations` optimiser steps on them.

    Args:
        clip_low, clip_high: How far a probability ratio may fall and rise before its gradient stops (0.2 and 0.2 in
            GRPO, 0.2 and 0.28 in DAPO, 3e-4 and 4e-4 for GSPO's sequence ratios).
        beta: Weight of the KL divergence (k3 estimate) from the policy the stage starts from; 0 needs no reference.
        aggregation: "grpo", "bnpo", "dr_grpo" or "dapo"; see `grpo_loss`. Tokens and answers are counted over the
            whole optimiser step, so "bnpo" and "dapo" are one here.
        scale: What advantages are divided by: the deviation of the "group", of the "batch" (a round), or "none".
        eps: Added to that deviation; 1e-4 in TRL, 1e-6 in verl.
        importance: Probability ratio of a "token", or of the "sequence" (GSPO, 2507.18071).
        kl_weighted: The KL term is multiplied by the ratio, TRL 1.16's `use_bias_correction_kl`.
        num_iterations: Passes over a round's answers.
        minibatches: Optimiser steps a pass.
        refills: Times that groups without any difference in reward are thrown away and other prompts drawn in their
            place (DAPO's dynamic sampling, 2503.14476); 0 keeps such groups, which add nothing.
        overlong: Soft overlong punishment (2503.14476, Eq. 13): within this last share of the longest answer, length
            costs up to 1, and an answer that was cut off costs 1; 0.2 in the paper, 0 switches it off.
        mask_truncated: Answers that were cut off do not count in the loss.
        truncated_importance: Largest weight of a token that corrects for an engine with log-probs of its own (vLLM);
            None does not correct. Engines that run the trainer's model need none.
        surrogate: "clip", "cispo" or "sapo"; see `grpo_loss`. With "cispo" `clip_high` is the largest weight.
        sapo_temperature_pos, sapo_temperature_neg: Of SAPO's soft gate, where advantages are positive and elsewhere.

    Raises:
        ConfigError: a value out of range.
    """

    clip_low: float
    clip_high: float
    beta: float
    aggregation: str
    scale: str = "group"
    eps: float = 1e-4
    importance: str = "token"
    kl_weighted: bool = False
    num_iterations: int = 1
    minibatches: int = 1
    refills: int = 0
    overlong: float = 0.0
    mask_truncated: bool = False
    truncated_importance: float | None = 2.0
    surrogate: str = "clip"
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    consumes: ClassVar[str] = "prompt"
    contrasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key, known in _KNOWN.items():
            if getattr(self, key) not in known:
                raise ConfigError.at(f"{_WHERE}{key}", getattr(self, key), "unknown", f"Use {', '.join(known)}")
        for key in ("clip_low", "clip_high", "eps", "sapo_temperature_pos", "sapo_temperature_neg"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError.at(f"{_WHERE}{key}", getattr(self, key), "must be positive", "See conf/objective")
        if not self.clip_low <= 1:
            raise ConfigError.at(f"{_WHERE}clip_low", self.clip_low, "must be at most 1", "Ratios are positive")
        if not 0 <= self.beta < math.inf:
            raise ConfigError.at(f"{_WHERE}beta", self.beta, "must not be negative", "0 needs no reference policy")
        if not 0 <= self.overlong <= 1:
            raise ConfigError.at(f"{_WHERE}overlong", self.overlong, "is a share", "0.2 is DAPO's")
        for key, least in (("num_iterations", 1), ("minibatches", 1), ("refills", 0)):
            if not isinstance(value := getattr(self, key), int) or value < least:
                raise ConfigError.at(
                    f"{_WHERE}{key}", value, f"must be a whole number from {least}", "See conf/objective"
                )
        if self.truncated_importance is not None and not self.truncated_importance >= 1:
            raise ConfigError.at(
                f"{_WHERE}truncated_importance", self.truncated_importance, "must be at least 1", "null switches it off"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss asks for the policy the stage starts from."""
        return self.beta > 0

    @property
    def steps_a_round(self) -> int:
        """Optimiser steps on the answers of one round."""
        return self.minibatches * self.num_iterations

    def of_length(self, length: int, limit: int, finished: bool) -> float:
        """What an answer's length adds to its reward, in [-1, 0].

        Args:
            length: Tokens of the answer.
            limit: Longest answer.
            finished: Whether it ended by itself.

        Example:
            >>> loss = GRPO(clip_low=0.2, clip_high=0.2, beta=0, aggregation="dapo", overlong=0.4)
            >>> [loss.of_length(length, 10, True) for length in (6, 8, 10)], loss.of_length(10, 10, False)
            ([0.0, -0.5, -1.0], -1.0)
        """
        if not self.overlong:
            return 0.0
        if not finished:
            return -1.0
        cache = self.overlong * limit
        return -min(1.0, max(0.0, length - (limit - cache)) / cache)
