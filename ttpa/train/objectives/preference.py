"""Preference losses as pure functions over the summed log-probs of pairs. B is the number of pairs.

Names ending in `_losses` give one loss a pair, `_loss` their mean with what belongs to the objective. Everywhere
`pi_w, pi_l` are the chosen and the rejected answer's summed log-probs under the policy, `ref_w, ref_l` the same under
the reference, `|w|, |l|` the answers' tokens with the end of turn, and `D = (pi_w - ref_w) - (pi_l - ref_l)`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, Tensor]


def wide(values: Tensor) -> Tensor:
    """Float32 where the input is narrower; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _reward_metrics(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor) -> Metrics:
    chosen_B, rejected_B = chosen_rewards_B.detach(), rejected_rewards_B.detach()
    return {
        "rewards/chosen": chosen_B.mean(),
        "rewards/rejected": rejected_B.mean(),
        "rewards/margins": (chosen_B - rejected_B).mean(),
        "rewards/accuracies": (chosen_B > rejected_B).float().mean(),
    }


def _scaled_ratios(logps_B: Tensor, ref_logps_B: Tensor, beta: float) -> Tensor:
    """The implicit reward `beta (pi - ref)`."""
    return beta * (wide(logps_B) - wide(ref_logps_B))


def dpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """DPO (2305.18290, Eq. 7) with cDPO's label smoothing: `-(1-e) logsigmoid(beta D) - e logsigmoid(-beta D)`.

    TRL's DPOTrainer ignores `label_smoothing` here; its CPOTrainer has this form.

    Args:
        chosen_logps_B, rejected_logps_B: Summed log-probs under the policy, shape (B,).
        ref_chosen_logps_B, ref_rejected_logps_B: The same under the reference policy.
        beta: KL strength.
        label_smoothing: e above.

    Returns:
        Losses (B,) and TRL's `rewards/*` metrics (reward = beta times the log-ratio).
    """
    chosen_B = _scaled_ratios(chosen_logps_B, ref_chosen_logps_B, beta)
    rejected_B = _scaled_ratios(rejected_logps_B, ref_rejected_logps_B, beta)
    margin_B = chosen_B - rejected_B
    losses_B = -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)
    return losses_B, _reward_metrics(chosen_B, rejected_B)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Mean of `dpo_losses`. Policy equal to reference gives log 2."""
    losses_B, metrics = dpo_losses(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta, label_smoothing=label_smoothing
    )
    return losses_B.mean(), metrics


def robust_dpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> tuple[Tensor, Metrics]:
    """Robust DPO (2403.00409): `(-(1-e) logsigmoid(beta D) + e logsigmoid(-beta D)) / (1-2e)`.

    Where a share e of the pairs is flipped at random, its expectation is DPO's loss on the unflipped pairs. It is
    below zero for pairs far in the right order.

    Args:
        chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B, beta: See `dpo_losses`.
        label_smoothing: e above, below one half.

    Returns:
        Losses (B,) and `rewards/*` metrics.
    """
    chosen_B = _scaled_ratios(chosen_logps_B, ref_chosen_logps_B, beta)
    rejected_B = _scaled_ratios(rejected_logps_B, ref_rejected_logps_B, beta)
    margin_B = chosen_B - rejected_B
    kept_B = -(1 - label_smoothing) * F.logsigmoid(margin_B)
    flipped_B = -label_smoothing * F.logsigmoid(-margin_B)
    return (kept_B - flipped_B) / (1 - 2 * label_smoothing), _reward_metrics(chosen_B, rejected_B)


def hinge_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Metrics]:
    """The hinge of SLiC-HF (2305.10425) on log-ratios to the reference, as RSO has it (2309.06657): `relu(1 - beta D)`.

    Args:
        chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B: See `dpo_losses`.
        beta: One over the margin, in nats, beyond which a pair has no gradient.

    Returns:
        Losses (B,) and `rewards/*` metrics.
    """
    chosen_B = _scaled_ratios(chosen_logps_B, ref_chosen_logps_B, beta)
    rejected_B = _scaled_ratios(rejected_logps_B, ref_rejected_logps_B, beta)
    return torch.relu(1 - (chosen_B - rejected_B)), _reward_metrics(chosen_B, rejected_B)


def ipo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    *,
    beta: float,
    length_normalised: bool = True,
) -> tuple[Tensor, Metrics]:
    """IPO (2310.12036, Eq. 17; beta is the paper's tau), in two forms.

    As printed: `(D - 1 / (2 beta))^2` in summed log-probs. Length-normalised, as in TRL, which has it from the
    authors: `((pi_w - ref_w) / |w| - (pi_l - ref_l) / |l| - 1 / (2 beta))^2`, so the same beta asks for a margin in
    nats a token instead of nats a sequence.

    Args:
        chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B: See `dpo_losses`.
        chosen_lengths_B, rejected_lengths_B: Answer tokens, end-of-turn included.
        beta: Regularisation; the margin aimed at is 1 / (2 beta).
        length_normalised: Which form.

    Returns:
        Losses (B,) and `rewards/*` metrics (beta times the summed log-ratio in both forms, as in TRL).
    """
    chosen_B = wide(chosen_logps_B) - wide(ref_chosen_logps_B)
    rejected_B = wide(rejected_logps_B) - wide(ref_rejected_logps_B)
    metrics = _reward_metrics(beta * chosen_B, beta * rejected_B)
    if length_normalised:
        chosen_B, rejected_B = chosen_B / chosen_lengths_B, rejected_B / rejected_lengths_B
    return (chosen_B - rejected_B - 1 / (2 * beta)).square(), metrics


def simpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> tuple[Tensor, Metrics]:
    """SimPO (2405.14734, Eq. 6), one loss a pair: `-logsigmoid(beta (pi_w/|w| - pi_l/|l| - ratio))`.

    Args:
        chosen_logps_B, rejected_logps_B: Summed log-probs, shape (B,).
        chosen_lengths_B, rejected_lengths_B: Answer tokens, end-of-turn included.
        beta: Scale; gamma_beta_ratio: target margin / beta.

    Returns:
        Losses (B,) and `rewards/*` metrics (reward = beta times the mean log-prob).
    """
    chosen_B = beta * wide(chosen_logps_B) / chosen_lengths_B
    rejected_B = beta * wide(rejected_logps_B) / rejected_lengths_B
    losses_B = -F.logsigmoid(chosen_B - rejected_B - beta * gamma_beta_ratio)
    return losses_B, _reward_metrics(chosen_B, rejected_B)


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
    sft_weight: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Mean of `simpo_losses` plus `sft_weight` times the chosen answers' token-mean NLL."""
    losses_B, metrics = simpo_losses(
        chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta=beta, gamma_beta_ratio=gamma_beta_ratio
    )
    nll = -wide(chosen_logps).sum() / chosen_lengths.sum()
    return losses_B.mean() + sft_weight * nll, {**metrics, "nll_loss": nll.detach()}


def _log_odds(mean_logps_B: Tensor) -> Tensor:
    """`log(p / (1 - p))` of `log p`. An answer that is certain to rounding counts as one float step below certain.

    Without that step its odds are infinite and the gradient is 0 times infinity. The step passes the gradient on.
    """
    least = -torch.finfo(mean_logps_B.dtype).eps
    logps_B = mean_logps_B + (mean_logps_B.clamp(max=least) - mean_logps_B).detach()
    return logps_B - torch.log(-torch.expm1(logps_B))


def orpo_losses(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Metrics]:
    """The odds-ratio part of ORPO (2403.07691, Eq. 7): `-beta logsigmoid(log odds(w) - log odds(l))`.

    `odds = p / (1 - p)` with `p` the geometric mean of an answer's token probabilities.

    Args:
        chosen_logps_B, rejected_logps_B: Summed log-probs, shape (B,).
        chosen_lengths_B, rejected_lengths_B: Answer tokens, end-of-turn included.
        beta: Weight of this part; the paper's lambda.

    Returns:
        Losses (B,), `rewards/*` (beta times the mean log-prob) and TRL's `log_odds_ratio` and `log_odds_chosen`: the
        means of the log-sigmoid and of its argument.
    """
    chosen_B = wide(chosen_logps_B) / chosen_lengths_B
    rejected_B = wide(rejected_logps_B) / rejected_lengths_B
    log_odds_B = _log_odds(chosen_B) - _log_odds(rejected_B)
    ratio_B = F.logsigmoid(log_odds_B)
    metrics = {
        **_reward_metrics(beta * chosen_B, beta * rejected_B),
        "log_odds_ratio": ratio_B.detach().mean(),
        "log_odds_chosen": log_odds_B.detach().mean(),
    }
    return -beta * ratio_B, metrics


def orpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    sft_weight: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """ORPO (2403.07691, Eq. 6): mean of `orpo_losses` plus the chosen answers' token-mean NLL.

    TRL's ORPOTrainer takes the NLL over the prompt as well, which these inputs cannot say.
    """
    losses_B, metrics = orpo_losses(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta=beta)
    nll = -wide(chosen_logps).sum() / chosen_lengths.sum()
    return losses_B.mean() + sft_weight * nll, {**metrics, "nll_loss": nll.detach()}
