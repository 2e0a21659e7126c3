"""What the align stage minimises offline: one frozen class a loss, its formula in `__call__`; no model, no torch at import.

Notation: `pi_w, pi_l` are the summed log-probs of the chosen and the rejected answer under the policy, `ref_w, ref_l`
the same under the reference, `|w|, |l|` the answers' tokens, and `D = (pi_w - ref_w) - (pi_l - ref_l)`. B is the number
of pairs. `consumes` says what a loss learns from: "pair" needs the explore stage, "sample" learns from targets, "prompt"
draws answers while it trains; `recipe` names the block of numbers that its stage reads. GRPO and its relatives are in `ttpa.train.policy_gradient`. Metric names are TRL's where TRL has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ttpa.options import NonNegative, Positive, option

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]

FlipShare = Annotated[float, Field(ge=0, lt=0.5)]
"""Share of pairs whose labels are assumed to be flipped, in [0, 0.5)."""


def wide(values: Tensor) -> Tensor:
    """Float32 where the input is narrower; float64 stays."""
    return values if values.itemsize == 8 else values.float()


def weighted_nll(logps_N: Tensor, weights_N: Tensor) -> Tensor:
    """The SFT loss `-sum w log p`, a sum: the caller divides by the weight of the whole optimiser step. Scalar."""
    return -(wide(logps_N) * weights_N).sum()


def log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What a preference loss reads of B pairs; every field has shape (B,).

    `chosen_B, rejected_B` are summed log-probs of the answers, `chosen_tokens_B, rejected_tokens_B` their lengths with
    the end of turn, `ref_chosen_B, ref_rejected_B` the reference's log-probs (None for a loss without a reference).
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    ref_chosen_B: Tensor | None = None
    ref_rejected_B: Tensor | None = None

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """`pi - ref` of the chosen and of the rejected answers."""
        assert self.ref_chosen_B is not None and self.ref_rejected_B is not None
        return wide(self.chosen_B) - wide(self.ref_chosen_B), wide(self.rejected_B) - wide(self.ref_rejected_B)

    def token_means(self) -> tuple[Tensor, Tensor]:
        """`pi / |answer|` of the chosen and of the rejected answers."""
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
class PreferenceLoss(ABC):
    """A loss that contrasts the two answers of a pair.

    Args:
        beta: Inverse temperature or weight; each subclass says which. Must be > 0.
        sft_weight: Weight of the NLL anchor, the chosen answers' token-mean NLL, which the module adds.
        over: Tokens of a pair that count: "answer", all of them; "span", from where the two answers part to where the
            search cut the span (to the end without a search), as MCTS-DPO (2405.00451) does.
    """

    beta: Positive
    sft_weight: NonNegative
    over: Literal["answer", "span"]
    consumes: ClassVar[str] = "pair"
    recipe: ClassVar[str] = "recipe.align"
    contrasts: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        """Loss of each pair (B,) without the anchor, and metrics (means over the pairs)."""


@option
class DPO(PreferenceLoss):
    """Direct preference optimisation (2305.18290, Eq. 7): `-(1-e) logsigmoid(beta D) - e logsigmoid(-beta D)`.

    Args:
        beta: Strength of the KL constraint; the paper uses 0.1.
        label_smoothing: e above (cDPO), the assumed share of flipped pairs. TRL's DPOTrainer ignores it, its
            CPOTrainer has this form.
    """

    label_smoothing: FlipShare

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = (self.beta * ratios_B for ratios_B in pairs.log_ratios())
        margins_B, flipped = chosen_B - rejected_B, self.label_smoothing
        losses_B = -(1 - flipped) * log_sigmoid(margins_B) - flipped * log_sigmoid(-margins_B)
        return losses_B, reward_metrics(chosen_B, rejected_B)


@option
class RobustDPO(PreferenceLoss):
    """Robust DPO (2403.00409): `(-(1-e) logsigmoid(beta D) + e logsigmoid(-beta D)) / (1-2e)`.

    Where a share e of the pairs is flipped at random, its expectation is DPO's loss on the unflipped pairs. It is below
    zero for pairs far in the right order.

    Args:
        beta: Strength of the KL constraint.
        label_smoothing: e above; 0 is DPO.
    """

    label_smoothing: FlipShare

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = (self.beta * ratios_B for ratios_B in pairs.log_ratios())
        margins_B, flipped = chosen_B - rejected_B, self.label_smoothing
        losses_B = (-(1 - flipped) * log_sigmoid(margins_B) + flipped * log_sigmoid(-margins_B)) / (1 - 2 * flipped)
        return losses_B, reward_metrics(chosen_B, rejected_B)


@option
class Hinge(PreferenceLoss):
    """The hinge of SLiC-HF (2305.10425) on log-ratios, as RSO has it (2309.06657): `relu(1 - beta D)`.

    Args:
        beta: One over the margin, in nats, beyond which a pair has no gradient.
    """

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = (self.beta * ratios_B for ratios_B in pairs.log_ratios())
        return (1 - (chosen_B - rejected_B)).relu(), reward_metrics(chosen_B, rejected_B)


@option
class IPO(PreferenceLoss):
    """Identity preference optimisation (2310.12036, Eq. 17): `(D - 1 / (2 beta))^2`.

    Args:
        beta: The paper's tau; the margin aimed at is 1 / (2 beta).
        length_normalised: Each log-ratio is divided by its answer's tokens, so that the margin is in nats a token
            (TRL's form, which has it from the authors) instead of nats an answer (as printed).
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
    """Simple preference optimisation (2405.14734, Eq. 6): `-logsigmoid(beta (pi_w/|w| - pi_l/|l| - ratio))`.

    Args:
        beta: Scale of the length-averaged log-probs; the paper uses 2.0 to 10.
        gamma_beta_ratio: The target margin divided by beta (gamma = ratio * beta).
    """

    gamma_beta_ratio: NonNegative
    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = (self.beta * means_B for means_B in pairs.token_means())
        losses_B = -log_sigmoid(chosen_B - rejected_B - self.beta * self.gamma_beta_ratio)
        return losses_B, reward_metrics(chosen_B, rejected_B)


@option
class ORPO(PreferenceLoss):
    """Odds-ratio preference optimisation (2403.07691, Eq. 7): `-beta logsigmoid(log odds(w) - log odds(l))`.

    `odds = p / (1 - p)`, p the geometric mean of an answer's token probabilities. With `sft_weight=1` the loss is the
    paper's Eq. 6. TRL's ORPOTrainer takes the NLL over the prompt as well.

    Args:
        beta: Weight of the odds ratio, the paper's lambda.
    """

    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        chosen_B, rejected_B = pairs.token_means()
        log_odds_B = _log_odds(chosen_B) - _log_odds(rejected_B)
        log_ratios_B = log_sigmoid(log_odds_B)
        metrics = {
            **reward_metrics(self.beta * chosen_B, self.beta * rejected_B),
            "log_odds_ratio": log_ratios_B.detach().mean(),
            "log_odds_chosen": log_odds_B.detach().mean(),
        }
        return -self.beta * log_ratios_B, metrics


def _log_odds(mean_logps_B: Tensor) -> Tensor:
    """`log(p / (1 - p))` of `log p`. An answer that is certain to rounding counts as one float step below certain.

    Without that step its odds are infinite and the gradient is 0 times infinity. The step passes the gradient on.
    """
    from torch import finfo

    least = -finfo(mean_logps_B.dtype).eps
    logps_B = mean_logps_B + (mean_logps_B.clamp(max=least) - mean_logps_B).detach()
    return logps_B - (-logps_B.expm1()).log()


@option
class RFT:
    """Rejection-sampling fine-tuning: NLL of the pairs' chosen answers. The control of every preference loss."""

    consumes: ClassVar[str] = "pair"
    recipe: ClassVar[str] = "recipe.align"
    contrasts: ClassVar[bool] = False


@option
class Gold:
    """NLL of the targets of the same prompts. The control of every exploration."""

    consumes: ClassVar[str] = "sample"
    recipe: ClassVar[str] = "recipe.align"
    contrasts: ClassVar[bool] = False
