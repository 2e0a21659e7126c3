"""GRPO and its relatives as pure functions: advantages of groups, and the clipped loss over token log-probs.

B is the number of groups; G answers are in a group or, for the loss, in the batch; T is the number of token places of
the longest answer. Log-ratios are cut at 20 nats, as in verl, so that one token cannot make a loss infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.train.objectives.preference import Metrics, wide

AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo")
SURROGATES = ("clip", "cispo", "sapo")
SCALES = ("group", "batch", "none")
IMPORTANCE = ("token", "sequence")
MOST_NATS = 20.0


def _moments(rewards: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the known values along the last axis, 0 for want of values."""
    count = known.sum(-1, keepdim=True)
    mean = rewards.masked_fill(~known, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = (rewards - mean).masked_fill(~known, 0).square().sum(-1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def group_advantages(rewards: Tensor, *, scale: str, eps: float) -> tuple[Tensor, Metrics]:
    """Advantages of answers over their group: `(r - mean) / (std + eps)` (GRPO, 2402.03300, Sec. 4.1.2).

    The standard deviation is unbiased. A reward that is NaN or infinite is no reward: it is left out of mean and
    deviation and its advantage is 0. So is every advantage in a group whose rewards are all equal, a group of one
    among them: exactly 0, where subtracting a rounded mean would leave noise of the order of 1e-8 / eps.

    Args:
        rewards: Shape (B, G); row by row the answers to one prompt.
        scale: "group" divides by the group's deviation, "batch" by that of all rewards (2508.08221), "none" by
            nothing (Dr. GRPO, 2503.20783).
        eps: Added to the deviation; 1e-4 in TRL, 1e-6 in verl.

    Returns:
        Advantages (B, G) and metrics: `reward` and `reward_std` over all rewards, `frac_reward_zero_std`, the share of
        groups without any difference (in TRL with "batch": 1 if the batch has none, else 0).

    Raises:
        ConfigError: unknown scale.
    """
    if scale not in SCALES:
        raise ConfigError.at("objective.loss.scale", scale, "unknown scale", f"Use {', '.join(SCALES)}")
    rewards_BG = wide(rewards)
    known_BG = rewards_BG.isfinite()
    lowest_B1 = rewards_BG.masked_fill(~known_BG, torch.inf).amin(1, keepdim=True)
    highest_B1 = rewards_BG.masked_fill(~known_BG, -torch.inf).amax(1, keepdim=True)
    flat_B1 = highest_B1 <= lowest_B1
    mean_B1, std_B1 = _moments(rewards_BG, known_BG)
    _, batch_std_1 = _moments(rewards_BG.flatten(), known_BG.flatten())
    advantages_BG = (rewards_BG - mean_B1).masked_fill(~known_BG | flat_B1, 0)
    if scale == "group":
        advantages_BG = advantages_BG / (std_B1 + eps)
    elif scale == "batch":
        advantages_BG = advantages_BG / (batch_std_1 + eps)
    return advantages_BG, {
        "reward": rewards_BG[known_BG].mean(),
        "reward_std": batch_std_1[0],
        "frac_reward_zero_std": flat_B1.float().mean(),
    }


@torch.no_grad()
def decoupled_advantages(rewards: Tensor, weights: Tensor, *, eps: float) -> tuple[Tensor, Metrics]:
    """Advantages where each reward is normalised before they are added (GDPO, 2601.05242; TRL's `normalize_then_sum`).

    Each reward's group advantages as in `group_advantages(scale="group")`, their weighted sum, and of that the mean and
    deviation over all answers taken out. Rewards on different scales then weigh what their weights say.

    Args:
        rewards: Shape (B, G, K), K rewards an answer.
        weights: Shape (K,).
        eps: Added to each deviation.

    Returns:
        Advantages (B, G); metrics as `group_advantages`, of the weighted sums of the raw rewards.
    """
    parts = [group_advantages(rewards[..., k], scale="group", eps=eps)[0] for k in range(rewards.shape[-1])]
    sums_BG = (torch.stack(parts, -1) * wide(weights)).sum(-1)
    known_BG = rewards.isfinite().all(-1)
    mean_1, std_1 = _moments(sums_BG.flatten(), known_BG.flatten())
    advantages_BG = ((sums_BG - mean_1) / (std_1 + eps)).masked_fill(~known_BG, 0)
    _, metrics = group_advantages((wide(rewards) * wide(weights)).sum(-1), scale="group", eps=eps)
    return advantages_BG, metrics


def _log_ratio(over_GT: Tensor, under_GT: Tensor, mask_GT: Tensor) -> Tensor:
    """Difference of log-probs, 0 outside the mask whatever stands there."""
    return (over_GT - under_GT).masked_fill(~mask_GT, 0).clamp(-MOST_NATS, MOST_NATS)


def _check(importance: str, aggregation: str, surrogate: str, beta: float, ref_logps: Tensor | None) -> None:
    for name, value, known in (
        ("importance", importance, IMPORTANCE),
        ("aggregation", aggregation, AGGREGATIONS),
        ("surrogate", surrogate, SURROGATES),
    ):
        if value not in known:
            raise ConfigError.at(f"objective.loss.{name}", value, "unknown", f"Use {', '.join(known)}")
    if beta and ref_logps is None:
        raise ConfigError.at("objective.loss.beta", beta, "needs log-probs of a reference policy", "Use 0 without one")


def _first_term(
    surrogate: str,
    own_GT: Tensor,
    ratio_GT: Tensor,
    advantages_G1: Tensor,
    mask_GT: Tensor,
    clip: tuple[float, float],
    temperatures: tuple[float, float],
) -> tuple[Tensor, Metrics]:
    """The term of the advantages, and how many tokens clipping concerned; see `grpo_loss`."""
    tokens = mask_GT.sum().clamp(min=1)
    low, high = clip
    if surrogate == "cispo":
        loss_GT = -ratio_GT.clamp(max=high).detach() * advantages_G1 * own_GT.masked_fill(~mask_GT, 0)
        over_GT = (ratio_GT > high) & (advantages_G1 > 0) & mask_GT
        return loss_GT, {"cispo_clip_ratio": over_GT.sum() / tokens}
    if surrogate == "sapo":
        t_G1 = torch.where(advantages_G1 > 0, *temperatures)
        return -torch.sigmoid(t_G1 * (ratio_GT - 1)) * 4 / t_G1 * advantages_G1, {}
    clipped_GT = ratio_GT.clamp(1 - low, 1 + high)
    low_GT = (ratio_GT < 1 - low) & (advantages_G1 < 0) & mask_GT
    high_GT = (ratio_GT > 1 + high) & (advantages_G1 > 0) & mask_GT
    stopped = zip(("low", "high", "region"), (low_GT, high_GT, low_GT | high_GT), strict=True)
    metrics = {f"clip_ratio/{name}_mean": where_GT.sum() / tokens for name, where_GT in stopped}
    return -torch.min(ratio_GT * advantages_G1, clipped_GT * advantages_G1), metrics


def _ratio(own_GT: Tensor, old_GT: Tensor, mask_GT: Tensor, importance: str) -> Tensor:
    """How much more probable the policy makes each token, or the answer it belongs to, than the one that drew it."""
    moved_GT = _log_ratio(own_GT, old_GT, mask_GT)
    if importance == "sequence":
        moved_GT = (moved_GT.sum(1, keepdim=True) / mask_GT.sum(1, keepdim=True).clamp(min=1)).expand_as(moved_GT)
    return moved_GT.exp()


def _aggregate(
    loss_GT: Tensor, mask_GT: Tensor, aggregation: str, max_length: int | None, total_tokens: float | None
) -> Tensor:
    """One number from token losses that are 0 outside the mask."""
    if aggregation == "grpo":
        return (loss_GT.sum(1) / mask_GT.sum(1).clamp(min=1)).mean()
    if aggregation == "dr_grpo":
        return loss_GT.sum() / (loss_GT.shape[0] * (max_length or loss_GT.shape[1]))
    if aggregation == "dapo" and total_tokens is not None:
        return loss_GT.sum() / max(total_tokens, 1)
    return loss_GT.sum() / mask_GT.sum().clamp(min=1)


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    beta: float,
    aggregation: str,
    max_length: int | None = None,
    total_tokens: float | None = None,
    importance: str = "token",
    kl_weighted: bool = False,
    weights: Tensor | None = None,
    surrogate: str = "clip",
    sapo_temperatures: tuple[float, float] = (1.0, 1.05),
) -> tuple[Tensor, Metrics]:
    """GRPO (2402.03300, Eq. 3 and 4) with the clipping range and the aggregations of its successors.

    Of each token, with `w = exp(logp - old)`, `q = ref - logp` and the k3 estimate of the KL divergence:
    `-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) + beta (exp(q) - q - 1)`. In GSPO (2507.18071, Eq. 6 and 7) `w`
    is one ratio an answer, `exp(mean over its tokens of logp - old)`. The aggregation makes one number of them:
    "grpo" the mean over answers of an answer's mean (2402.03300), "bnpo" the mean over the tokens of this call (TRL's
    name), "dr_grpo" the sum / (answers * max_length) (2503.20783), "dapo" the sum / tokens of the whole optimiser step
    (2503.14476), which is "bnpo" where one call is a step.

    Args:
        logps: Log-probs of the answers' tokens under the policy, shape (G, T).
        old_logps: Under the policy that sampled; None stands for `logps` without gradient: w is 1.
        ref_logps: Under the reference policy; None only where beta is 0. With beta 0 it is only measured.
        advantages: One for each answer, shape (G,).
        mask: 1 for tokens the policy wrote, shape (G, T). Elsewhere (padding, tools' results) inputs may hold NaN.
        clip_low, clip_high: How far w may fall and rise before the gradient stops.
        beta: Weight of the KL term.
        aggregation: See above.
        max_length: Longest answer allowed, for "dr_grpo"; None is T.
        total_tokens: Tokens of the step, for "dapo"; None is those of this call.
        importance: Ratio of a "token" or of the "sequence".
        kl_weighted: The second term is multiplied by `w` (TRL 1.16's `use_bias_correction_kl`).
        weights: Factor of each token's first term, shape (G, T) or (G, 1), for answers that another policy drew.
        surrogate: The first term: "clip" as above; "cispo" `-min(w, clip_high) A logp` without gradient through `w`
            (2506.13585, `clip_high` is the largest weight itself); "sapo" `-(4 / t) sigmoid(t (w - 1)) A`
            (2511.20347).
        sapo_temperatures: `t` where A is positive, and elsewhere.

    Returns:
        Loss (scalar); `clip_ratio/{low,high,region}_mean`, shares of tokens whose gradient clipping stopped; `kl`.

    Raises:
        ConfigError: unknown aggregation or importance, or beta without reference log-probs.
    """
    _check(importance, aggregation, surrogate, beta, ref_logps)
    own_GT, mask_GT, advantages_G1 = wide(logps), mask.bool(), wide(advantages).detach()[:, None]
    tokens = mask_GT.sum().clamp(min=1)
    ratio_GT = _ratio(own_GT, own_GT.detach() if old_logps is None else wide(old_logps).detach(), mask_GT, importance)
    bounds = (clip_low, clip_high)
    loss_GT, metrics = _first_term(surrogate, own_GT, ratio_GT, advantages_G1, mask_GT, bounds, sapo_temperatures)
    loss_GT = loss_GT if weights is None else loss_GT * wide(weights).detach()
    if ref_logps is not None:
        q_GT = _log_ratio(wide(ref_logps).detach(), own_GT, mask_GT)
        kl_GT = torch.expm1(q_GT) - q_GT
        metrics["kl"] = kl_GT.detach().sum() / tokens
        if beta:
            loss_GT = loss_GT + beta * kl_GT * (ratio_GT if kl_weighted else 1.0)
    loss_GT = loss_GT.masked_fill(~mask_GT, 0)
    return _aggregate(loss_GT, mask_GT, aggregation, max_length, total_tokens), metrics
