"""What is minimised: frozen hyper-parameters around the pure functions of `ttpa.objectives.functional`.

`consumes` says what an objective learns from: "pair" needs the explore stage, "sample" learns from targets, "prompt"
draws answers while it trains. Objectives that contrast answers share one signature, `losses`; `PreferenceLoss` is any
of them. None of these classes ever sees a model. Importing this package imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from ttpa.errors import ConfigError
from ttpa.objectives.online import GRPO

if TYPE_CHECKING:
    from torch import Tensor


def _check_weight(sft_weight: float) -> None:
    if not sft_weight >= 0:
        raise ConfigError.at(
            "objective.loss.sft_weight", sft_weight, "must not be negative", "0 switches the anchor off"
        )


def _check_beta(beta: float, remedy: str) -> None:
    if not beta > 0:
        raise ConfigError.at("objective.loss.beta", beta, "must be positive", remedy)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError.at("objective.loss.label_smoothing", label_smoothing, "must be in [0, 0.5)", "0 is DPO")


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
        _check_beta(self.beta, "The DPO paper uses 0.1")
        _check_smoothing(self.label_smoothing)
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
        _check_beta(self.beta, "The SimPO paper uses 2.0 to 10")
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
class RobustDPO:
    """DPO that is unbiased under flipped pairs (2403.00409); see `functional.robust_dpo_losses`.

    Args:
        beta: Strength of the KL constraint; positive.
        label_smoothing: Share of the pairs assumed to be flipped, in [0, 0.5); 0 is DPO.
        sft_weight: Weight of the chosen answers' token-mean NLL.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    label_smoothing: float
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_beta(self.beta, "TRL's default is 0.1")
        _check_smoothing(self.label_smoothing)
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

        return functional.robust_dpo_losses(
            chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=self.beta, label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge:
    """The hinge of SLiC-HF (2305.10425) on log-ratios to the reference; see `functional.hinge_losses`.

    Args:
        beta: One over the margin, in nats, beyond which a pair is left alone; positive.
        sft_weight: Weight of the chosen answers' token-mean NLL.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_beta(self.beta, "TRL's default is 0.1, a margin of 10 nats")
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

        return functional.hinge_losses(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO:
    """Identity preference optimisation (2310.12036, Eq. 17); see `functional.ipo_losses`.

    Args:
        beta: The paper's tau; the margin aimed at is 1 / (2 beta). Positive.
        length_normalised: The margin is in nats a token (TRL, from the authors) instead of nats an answer (Eq. 17).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's IPO.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    length_normalised: bool = True
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_beta(self.beta, "TRL's default is 0.1, a margin of 5 nats")
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

        return functional.ipo_losses(
            chosen_B,
            rejected_B,
            ref_chosen_B,
            ref_rejected_B,
            chosen_lengths_B,
            rejected_lengths_B,
            beta=self.beta,
            length_normalised=self.length_normalised,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO:
    """Odds-ratio preference optimisation (2403.07691, Eq. 6); see `functional.orpo_loss`. Reference-free.

    Args:
        beta: Weight of the odds-ratio part, the paper's lambda; positive.
        sft_weight: Weight of the chosen answers' token-mean NLL; 1 is the paper's ORPO.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    sft_weight: float = 1.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_beta(self.beta, "TRL's default is 0.1")
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
        """Odds-ratio loss of each pair (B,) and metrics, without the NLL."""
        from ttpa.objectives import functional

        return functional.orpo_losses(chosen_B, rejected_B, chosen_lengths_B, rejected_lengths_B, beta=self.beta)


__all__ = ["DPO", "GRPO", "IPO", "ORPO", "RFT", "Gold", "Hinge", "PreferenceLoss", "RobustDPO", "SimPO"]

PreferenceLoss: TypeAlias = DPO | SimPO | RobustDPO | Hinge | IPO | ORPO
"""Objectives that contrast the two answers of a pair."""


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
