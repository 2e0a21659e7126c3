"""What is minimised: frozen hyper-parameters around the pure functions of `ttpa.objectives.functional`.

`consumes` says what an objective learns from: "pair" needs the explore stage, "sample" learns from targets. None of
these classes ever sees a model. Importing this package imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ttpa.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def _check_weight(sft_weight: float) -> None:
    if not sft_weight >= 0:
        raise ConfigError.at(
            "objective.loss.sft_weight", sft_weight, "must not be negative", "0 switches the anchor off"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """Direct preference optimisation (2305.18290, Eq. 7); see `functional.dpo_losses`.

    Args:
        beta: Strength of the KL constraint; positive.
        label_smoothing: Share of flipped labels assumed (cDPO), in [0, 0.5).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's DPO.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError.at("objective.loss.beta", self.beta, "must be positive", "The DPO paper uses 0.1")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError.at(
                "objective.loss.label_smoothing", self.label_smoothing, "must be in [0, 0.5)", "0 is DPO"
            )
        _check_weight(self.sft_weight)

    def losses(
        self,
        chosen_B: Tensor,
        rejected_B: Tensor,
        chosen_lengths_B: Tensor,
        rejected_lengths_B: Tensor,
        ref_chosen_B: Tensor,
        ref_rejected_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each pair (B,) and metrics, without the anchor."""
        from ttpa.objectives import functional

        return functional.dpo_losses(
            chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=self.beta, label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPO:
    """Simple preference optimisation (2405.14734, Eq. 6); see `functional.simpo_losses`. Reference-free.

    Args:
        beta: Scale of the length-averaged log-probs; positive.
        gamma_beta_ratio: Target margin divided by beta (gamma = ratio * beta).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's SimPO.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    gamma_beta_ratio: float
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError.at("objective.loss.beta", self.beta, "must be positive", "The SimPO paper uses 2.0 to 10")
        if not self.gamma_beta_ratio >= 0:
            raise ConfigError.at(
                "objective.loss.gamma_beta_ratio",
                self.gamma_beta_ratio,
                "must not be negative",
                "It is gamma divided by beta; iTool's 2.5 / 0.5 is 0.2",
            )
        _check_weight(self.sft_weight)

    def losses(
        self,
        chosen_B: Tensor,
        rejected_B: Tensor,
        chosen_lengths_B: Tensor,
        rejected_lengths_B: Tensor,
        ref_chosen_B: Tensor | None,
        ref_rejected_B: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each pair (B,) and metrics, without the anchor."""
        from ttpa.objectives import functional

        return functional.simpo_losses(
            chosen_B,
            rejected_B,
            chosen_lengths_B,
            rejected_lengths_B,
            beta=self.beta,
            gamma_beta_ratio=self.gamma_beta_ratio,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RFT:
    """Rejection-sampling fine-tuning: NLL of the chosen answers of the pairs. The control of every preference loss."""

    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """NLL of the targets of the same prompts. The control of every exploration."""

    consumes: ClassVar[str] = "sample"
    contrasts: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
