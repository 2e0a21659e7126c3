"""What is minimised: frozen hyper-parameters around the pure functions of `ttpa.train.objectives.functional`.

`consumes` says what an objective learns from: "pair" needs the explore stage, "sample" learns from targets, "prompt"
draws answers while it trains. Objectives that contrast answers are a `PreferenceLoss` and share its signature. None of
these classes ever sees a model. Importing this package imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ttpa.errors import ConfigError
from ttpa.train.objectives.online import GRPO

if TYPE_CHECKING:
    from torch import Tensor

    Both = tuple[Tensor, Tensor]  # of the chosen and of the rejected answers, each (B,)
    Losses = tuple[Tensor, dict[str, Tensor]]

__all__ = ["DPO", "GRPO", "IPO", "ORPO", "RFT", "Gold", "Hinge", "PreferenceLoss", "RobustDPO", "SimPO"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss(ABC):
    """An objective that contrasts the two answers of a pair.

    Args:
        beta: What the objective makes of it; positive.
        sft_weight: Weight of the chosen answers' token-mean NLL.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float
    sft_weight: float = 0.0
    consumes: ClassVar[str] = "pair"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    usual_beta: ClassVar[str] = "TRL's default is 0.1"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError.at("objective.loss.beta", self.beta, "must be positive", self.usual_beta)
        if not self.sft_weight >= 0:
            raise ConfigError.at(
                "objective.loss.sft_weight", self.sft_weight, "must not be negative", "0 switches the anchor off"
            )
        self._check()

    def losses(
        self,
        chosen_B: Tensor,
        rejected_B: Tensor,
        chosen_lengths_B: Tensor,
        rejected_lengths_B: Tensor,
        ref_chosen_B: Tensor | None,
        ref_rejected_B: Tensor | None,
    ) -> Losses:
        """Loss of each pair (B,) and metrics, without the anchor. Summed log-probs of the answers and their lengths in
        tokens; the reference's are None where `needs_reference` is False.
        """
        from ttpa.train.objectives import functional

        reference: Any = (ref_chosen_B, ref_rejected_B)
        return self._losses(functional, (chosen_B, rejected_B), (chosen_lengths_B, rejected_lengths_B), reference)

    def _check(self) -> None:  # noqa: B027 (most have nothing more to refuse)
        """Refuses what else there is to refuse."""

    @abstractmethod
    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        """`losses` by the functions of `ttpa.train.objectives.functional`."""


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError.at("objective.loss.label_smoothing", label_smoothing, "must be in [0, 0.5)", "0 is DPO")


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(PreferenceLoss):
    """Direct preference optimisation (2305.18290, Eq. 7); see `functional.dpo_losses`.

    Args:
        beta: Strength of the KL constraint; positive.
        label_smoothing: Share of flipped labels assumed (cDPO), in [0, 0.5).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's DPO.

    Raises:
        ConfigError: a value out of range.
    """

    label_smoothing: float = 0.0
    usual_beta: ClassVar[str] = "The DPO paper uses 0.1"

    def _check(self) -> None:
        _check_smoothing(self.label_smoothing)

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.dpo_losses(*answers, *reference, beta=self.beta, label_smoothing=self.label_smoothing)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPO(PreferenceLoss):
    """Simple preference optimisation (2405.14734, Eq. 6); see `functional.simpo_losses`. Reference-free.

    Args:
        beta: Scale of the length-averaged log-probs; positive.
        gamma_beta_ratio: Target margin divided by beta (gamma = ratio * beta).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's SimPO.

    Raises:
        ConfigError: a value out of range.
    """

    gamma_beta_ratio: float
    needs_reference: ClassVar[bool] = False
    usual_beta: ClassVar[str] = "The SimPO paper uses 2.0 to 10"

    def _check(self) -> None:
        if not self.gamma_beta_ratio >= 0:
            raise ConfigError.at(
                "objective.loss.gamma_beta_ratio",
                self.gamma_beta_ratio,
                "must not be negative",
                "It is gamma divided by beta; iTool's 2.5 / 0.5 is 0.2",
            )

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.simpo_losses(*answers, *lengths, beta=self.beta, gamma_beta_ratio=self.gamma_beta_ratio)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustDPO(PreferenceLoss):
    """DPO that is unbiased under flipped pairs (2403.00409); see `functional.robust_dpo_losses`.

    Args:
        beta: Strength of the KL constraint; positive.
        label_smoothing: Share of the pairs assumed to be flipped, in [0, 0.5); 0 is DPO.
        sft_weight: Weight of the chosen answers' token-mean NLL.

    Raises:
        ConfigError: a value out of range.
    """

    label_smoothing: float

    def _check(self) -> None:
        _check_smoothing(self.label_smoothing)

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.robust_dpo_losses(*answers, *reference, beta=self.beta, label_smoothing=self.label_smoothing)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge(PreferenceLoss):
    """The hinge of SLiC-HF (2305.10425) on log-ratios to the reference; see `functional.hinge_losses`.

    Args:
        beta: One over the margin, in nats, beyond which a pair is left alone; positive.
        sft_weight: Weight of the chosen answers' token-mean NLL.

    Raises:
        ConfigError: a value out of range.
    """

    usual_beta: ClassVar[str] = "TRL's default is 0.1, a margin of 10 nats"

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.hinge_losses(*answers, *reference, beta=self.beta)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO(PreferenceLoss):
    """Identity preference optimisation (2310.12036, Eq. 17); see `functional.ipo_losses`.

    Args:
        beta: The paper's tau; the margin aimed at is 1 / (2 beta). Positive.
        length_normalised: The margin is in nats a token (TRL, from the authors) instead of nats an answer (Eq. 17).
        sft_weight: Weight of the chosen answers' token-mean NLL; 0 is the paper's IPO.

    Raises:
        ConfigError: a value out of range.
    """

    length_normalised: bool = True
    usual_beta: ClassVar[str] = "TRL's default is 0.1, a margin of 5 nats"

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.ipo_losses(
            *answers, *reference, *lengths, beta=self.beta, length_normalised=self.length_normalised
        )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO(PreferenceLoss):
    """Odds-ratio preference optimisation (2403.07691, Eq. 6); see `functional.orpo_loss`. Reference-free.

    Args:
        beta: Weight of the odds-ratio part, the paper's lambda; positive.
        sft_weight: Weight of the chosen answers' token-mean NLL; 1 is the paper's ORPO.

    Raises:
        ConfigError: a value out of range.
    """

    sft_weight: float = 1.0
    needs_reference: ClassVar[bool] = False

    def _losses(self, by: Any, answers: Both, lengths: Both, reference: Both) -> Losses:
        found: Losses = by.orpo_losses(*answers, *lengths, beta=self.beta)
        return found


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
