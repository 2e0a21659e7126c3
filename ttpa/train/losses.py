"""What the align stage minimises offline: one frozen class a loss, with its formula; no torch at import.

B pairs; `w`, `l` are the chosen and the rejected answer, `pi`, `ref` their summed log-probs under the policy and the
reference, `D = (pi_w - ref_w) - (pi_l - ref_l)`. Metrics have TRL's names.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ttpa.options import NonNegative, Positive, option

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]

FlipShare = Annotated[float, Field(ge=0, lt=0.5)]


def wide(values: Tensor) -> Tensor:
    """Float32 where the input is narrower; float64 stays."""
    return values if values.itemsize == 8 else values.float()


def weighted_nll(logps_N: Tensor, weights_N: Tensor) -> Tensor:
    """The SFT loss `-sum w log p`, a sum: the caller divides by the weight of the whole optimiser step."""
    return -(wide(logps_N) * weights_N).sum()


def log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probs and token counts of B pairs, each of shape (B,); a loss without a reference needs no `ref_*`."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    ref_chosen_B: Tensor | None = None
    ref_rejected_B: Tensor | None = None

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """`pi_w - ref_w` and `pi_l - ref_l`."""
        assert self.ref_chosen_B is not None and self.ref_rejected_B is not None
        return wide(self.chosen_B) - wide(self.ref_chosen_B), wide(self.rejected_B) - wide(self.ref_rejected_B)

    def token_means(self) -> tuple[Tensor, Tensor]:
        """`pi_w / |w|` and `pi_l / |l|`."""
        return wide(self.chosen_B) / self.chosen_tokens_B, wide(self.rejected_B) / self.rejected_tokens_B


def reward_metrics(chosen_B: Tensor, rejected_B: Tensor) -> Metrics:
    """TRL's `rewards/*` from the implicit rewards of both answers."""
    chosen_B, rejected_B = chosen_B.detach(), rejected_B.detach()
    return {
        "rewards/chosen": chosen_B.mean(),
        "rewards/rejected": rejected_B.mean(),
        "rewards/margins": (chosen_B - rejected_B).mean(),
        "rewards/accuracies": (chosen_B > rejected_B).float().mean(),
    }


@option
class PreferenceLoss:
    """A loss that contrasts the two answers of a pair."""

    beta: Positive
    sft_weight: NonNegative  # of the chosen answers' token-mean NLL, which the module adds
    over: Literal["answer", "span"]  # from where the answers part to the end of the search's span (2405.00451), if any
    consumes: ClassVar[str] = "pair"  # of the explore stage; else "sample" (targets) or "prompt" (answers drawn online)
    recipe: ClassVar[str] = "recipe.align"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        """Loss of each pair (B,) without the NLL, and metrics (means over the pairs)."""

    def margins(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        """`beta D` (B,), or without a reference `beta (pi_w/|w| - pi_l/|l|)`, and the metrics."""
        compared = pairs.log_ratios() if self.needs_reference else pairs.token_means()
        chosen_B, rejected_B = (self.beta * values_B for values_B in compared)
        return chosen_B - rejected_B, reward_metrics(chosen_B, rejected_B)


@option
class DPO(PreferenceLoss):
    """Direct preference optimisation (2305.18290, Eq. 7): `-(1-e) logsigmoid(beta D) - e logsigmoid(-beta D)`.

    e is the assumed share of flipped pairs (cDPO); TRL's CPOTrainer has it, its DPOTrainer ignores it.
    """

    label_smoothing: FlipShare

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        (margins_B, metrics), flipped = self.margins(pairs), self.label_smoothing
        return -(1 - flipped) * log_sigmoid(margins_B) - flipped * log_sigmoid(-margins_B), metrics


@option
class RobustDPO(PreferenceLoss):
    """Robust DPO (2403.00409): `(-(1-e) logsigmoid(beta D) + e logsigmoid(-beta D)) / (1-2e)`; e = 0 is DPO.

    Where a share e of the pairs is flipped at random, its expectation is DPO's loss on the unflipped pairs.
    """

    label_smoothing: FlipShare

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        (margins_B, metrics), flipped = self.margins(pairs), self.label_smoothing
        losses_B = -(1 - flipped) * log_sigmoid(margins_B) + flipped * log_sigmoid(-margins_B)
        return losses_B / (1 - 2 * flipped), metrics


@option
class Hinge(PreferenceLoss):
    """The hinge of SLiC-HF (2305.10425) on log-ratios, as RSO has it (2309.06657): `relu(1 - beta D)`."""

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        margins_B, metrics = self.margins(pairs)
        return (1 - margins_B).relu(), metrics


@option
class IPO(PreferenceLoss):
    """Identity preference optimisation (2310.12036, Eq. 17; beta is its tau): `(D - 1 / (2 beta))^2`.

    `length_normalised` divides each log-ratio by its answer's tokens, as TRL does.
    """

    length_normalised: bool

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = pairs.log_ratios()
        metrics = reward_metrics(self.beta * chosen_B, self.beta * rejected_B)
        if self.length_normalised:
            chosen_B, rejected_B = chosen_B / pairs.chosen_tokens_B, rejected_B / pairs.rejected_tokens_B
        return (chosen_B - rejected_B - 1 / (2 * self.beta)).square(), metrics


@option
class SimPO(PreferenceLoss):
    """Simple preference optimisation (2405.14734, Eq. 6): `-logsigmoid(beta (pi_w/|w| - pi_l/|l| - ratio))`."""

    gamma_beta_ratio: NonNegative  # the target margin divided by beta
    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        margins_B, metrics = self.margins(pairs)
        return -log_sigmoid(margins_B - self.beta * self.gamma_beta_ratio), metrics


@option
class ORPO(PreferenceLoss):
    """Odds-ratio preference optimisation (2403.07691, Eq. 7): `-beta logsigmoid(log odds(w) - log odds(l))`.

    `odds = p / (1 - p)`, p the geometric mean of an answer's token probabilities; with `sft_weight=1` it is Eq. 6.
    TRL's ORPOTrainer takes the NLL over the prompt as well.
    """

    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = pairs.token_means()
        log_odds_B = _log_odds(chosen_B) - _log_odds(rejected_B)
        log_ratios_B = log_sigmoid(log_odds_B)
        metrics = reward_metrics(self.beta * chosen_B, self.beta * rejected_B)
        metrics["log_odds_ratio"] = log_ratios_B.detach().mean()
        metrics["log_odds_chosen"] = log_odds_B.detach().mean()
        return -self.beta * log_ratios_B, metrics


def _log_odds(mean_logps_B: Tensor) -> Tensor:
    """`log(p / (1 - p))` of `log p`; a certain answer counts as a float step below certain (else 0 times infinity)."""
    import torch

    least = -torch.finfo(mean_logps_B.dtype).eps
    logps_B = mean_logps_B + (mean_logps_B.clamp(max=least) - mean_logps_B).detach()  # the gradient passes the step
    return logps_B - (-logps_B.expm1()).log()


@option
class RFT:
    """Rejection-sampling fine-tuning: NLL of the pairs' chosen answers. The control of every preference loss."""

    consumes: ClassVar[str] = "pair"
    recipe: ClassVar[str] = "recipe.align"
    contrasts: ClassVar[bool] = False


@option
class Gold(RFT):
    """NLL of the targets of the same prompts. The control of every exploration."""

    consumes: ClassVar[str] = "sample"
