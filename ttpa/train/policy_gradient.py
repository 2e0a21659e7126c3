"""GRPO and its relatives: advantages of groups of answers, and the loss over token log-probs; no torch at import.

`conf/objective/{grpo,dr_grpo,dapo,gspo,cispo,sapo}.yaml` name the published settings of the one class. B groups; G
answers of a group or, for the loss, of a micro-batch; T tokens of the longest answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ttpa.options import Count, Fraction, Index, NonNegative, Positive, option
from ttpa.train.losses import wide

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]

MOST_NATS = 20.0  # where log-ratios are cut, as in verl: one token cannot make a loss infinite


@option
class GRPO:
    """Group relative policy optimisation (2402.03300, Eq. 3 and 4) with the choices of its successors.

    `aggregation`: "grpo", the mean over answers of an answer's mean; "dr_grpo", the sum / (answers * longest answer
    allowed) (2503.20783); "dapo", the sum / tokens (2503.14476). All count over the whole optimiser step, so "bnpo",
    TRL's name for the tokens of a micro-batch, is "dapo" here.
    `surrogate`, of ratio w and advantage A: "clip", `-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`; "cispo",
    `-min(w, clip_high) A logp` without gradient through w (2506.13585); "sapo", `-(4 / t) sigmoid(t (w - 1)) A`
    (2511.20347), t `sapo_temperature_pos` where A is positive, else `sapo_temperature_neg`.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)]
    clip_high: Positive
    beta: NonNegative  # of the KL divergence (k3 estimate) from the policy the stage starts from; 0 needs no reference
    aggregation: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    scale: Literal["group", "batch", "none"]  # see `group_advantages`
    eps: Positive
    importance: Literal["token", "sequence"]  # the ratio of a token, or of the sequence (GSPO, 2507.18071, Eq. 6 and 7)
    kl_weighted: bool  # the KL term times the ratio, TRL 1.16's `use_bias_correction_kl`
    num_iterations: Count  # passes over a round's answers
    minibatches: Count  # optimiser steps a pass
    refills: Index  # times that groups without any difference in reward are replaced (DAPO's dynamic sampling)
    overlong: Fraction  # last share of the longest answer in which length costs (DAPO, Eq. 13)
    mask_truncated: bool  # answers that were cut off do not count in the loss
    truncated_importance: Annotated[float, Field(ge=1)] | None  # largest correction of a token of another engine (vLLM)
    surrogate: Literal["clip", "cispo", "sapo"]
    sapo_temperature_pos: Positive
    sapo_temperature_neg: Positive
    consumes: ClassVar[str] = "prompt"
    recipe: ClassVar[str] = "recipe.online"
    contrasts: ClassVar[bool] = False

    @property
    def steps_a_round(self) -> int:
        return self.minibatches * self.num_iterations

    def length_penalty(self, length: int, limit: int, finished: bool) -> float:
        """What an answer of `length` tokens, of at most `limit`, adds to its reward, in [-1, 0]."""
        room = self.overlong * limit
        if not room or not finished:
            return -1.0 if room else 0.0
        return -min(1.0, max(0.0, length - (limit - room)) / room)

    def __call__(
        self, logps_GT: Tensor, advantages_G: Tensor, mask_GT: Tensor, *, max_length: int,
        old_logps_GT: Tensor | None = None, ref_logps_GT: Tensor | None = None, weights_GT: Tensor | None = None,
        answers: int | None = None, tokens: float | None = None,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """This call's share of the step's loss: of each token `surrogate + beta (exp(q) - q - 1)`, `q = ref - logp`,
        aggregated; and `clip_ratio/*` and `kl`, means over the tokens of this call.

        Inputs may hold NaN where `mask_GT` is False. Without old log-probs every ratio is 1. `weights_GT`, (G, T) or
        (G, 1), multiply the surrogate. `answers` and `tokens` are those of the whole optimiser step (None: of this
        call).
        """
        own_GT, mask_GT, advantages_G1 = wide(logps_GT), mask_GT.bool(), wide(advantages_G).detach()[:, None]
        old_GT = own_GT.detach() if old_logps_GT is None else wide(old_logps_GT).detach()
        moved_GT = _log_ratio(own_GT, old_GT, mask_GT)
        if self.importance == "sequence":
            means_G1 = moved_GT.sum(1, keepdim=True) / mask_GT.sum(1, keepdim=True).clamp(min=1)
            moved_GT = means_G1.expand_as(moved_GT)
        ratio_GT = moved_GT.exp()
        loss_GT, clipped = self._surrogate(own_GT, ratio_GT, advantages_G1)
        count = mask_GT.sum().clamp(min=1)
        metrics = {name: (which_GT & mask_GT).sum() / count for name, which_GT in clipped.items()}
        if weights_GT is not None:
            loss_GT = loss_GT * wide(weights_GT).detach()
        if self.beta or ref_logps_GT is not None:
            assert ref_logps_GT is not None, "a divergence needs a reference"
            q_GT = _log_ratio(wide(ref_logps_GT).detach(), own_GT, mask_GT)
            kl_GT = q_GT.expm1() - q_GT
            metrics["kl"] = kl_GT.detach().sum() / count
            if self.beta:
                loss_GT = loss_GT + self.beta * kl_GT * (ratio_GT if self.kl_weighted else 1.0)
        loss_GT = loss_GT.masked_fill(~mask_GT, 0)
        answers = answers or len(loss_GT)
        if self.aggregation == "grpo":
            return (loss_GT.sum(1) / mask_GT.sum(1).clamp(min=1)).sum() / answers, metrics
        if self.aggregation == "dr_grpo":
            return loss_GT.sum() / (answers * max_length), metrics
        return loss_GT.sum() / (count if tokens is None else max(tokens, 1)), metrics

    def _surrogate(self, own_GT: Tensor, ratio_GT: Tensor, advantages_G1: Tensor) -> tuple[Tensor, Metrics]:
        """The term of the advantages, and the tokens whose gradient clipping stopped, by metric name."""
        rises_G1, falls_G1 = advantages_G1 > 0, advantages_G1 < 0
        if self.surrogate == "cispo":
            weights_GT = ratio_GT.clamp(max=self.clip_high).detach()
            return -weights_GT * advantages_G1 * own_GT, {"cispo_clip_ratio": (ratio_GT > self.clip_high) & rises_G1}
        if self.surrogate == "sapo":
            t_G1 = rises_G1 * self.sapo_temperature_pos + ~rises_G1 * self.sapo_temperature_neg
            return -(t_G1 * (ratio_GT - 1)).sigmoid() * 4 / t_G1 * advantages_G1, {}
        low_GT = (ratio_GT < 1 - self.clip_low) & falls_G1
        high_GT = (ratio_GT > 1 + self.clip_high) & rises_G1
        # The least and the greatest over processes, by TRL's names; there is one process.
        stopped = {"low_mean": low_GT, "low_min": low_GT, "high_mean": high_GT, "high_max": high_GT}
        stopped |= {"region_mean": low_GT | high_GT}
        clipped_GT = ratio_GT.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_GT = -(ratio_GT * advantages_G1).minimum(clipped_GT * advantages_G1)
        return loss_GT, {f"clip_ratio/{name}": which_GT for name, which_GT in stopped.items()}


def _log_ratio(over_GT: Tensor, under_GT: Tensor, mask_GT: Tensor) -> Tensor:
    return (over_GT - under_GT).masked_fill(~mask_GT, 0).clamp(-MOST_NATS, MOST_NATS)


def _moments(rewards: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the known values of the last axis, 0 for want of values."""
    count = known.sum(-1, keepdim=True)
    mean = rewards.masked_fill(~known, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = (rewards - mean).masked_fill(~known, 0).square().sum(-1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def group_advantages(rewards_BG: Tensor, *, scale: str, eps: float) -> tuple[Tensor, Metrics]:
    """Advantages (B, G) of answers over their group, `(r - mean) / (std + eps)` (2402.03300, Sec. 4.1.2), and metrics.

    The unbiased deviation is that of the "group" or of the "batch" (2508.08221); `scale="none"` does not divide
    (2503.20783). A reward that is NaN or infinite is no reward: its advantage is 0, as in a group whose rewards are all
    equal, where subtracting a rounded mean would leave noise. `frac_reward_zero_std` is the share of such groups.
    """
    rewards_BG = wide(rewards_BG).detach()
    known_BG = rewards_BG.isfinite()
    lowest_B1 = rewards_BG.masked_fill(~known_BG, float("inf")).amin(1, keepdim=True)
    highest_B1 = rewards_BG.masked_fill(~known_BG, -float("inf")).amax(1, keepdim=True)
    flat_B1 = highest_B1 <= lowest_B1
    mean_B1, std_B1 = _moments(rewards_BG, known_BG)
    _, batch_std_1 = _moments(rewards_BG.flatten(), known_BG.flatten())
    advantages_BG = (rewards_BG - mean_B1).masked_fill(~known_BG | flat_B1, 0)
    if scale != "none":
        advantages_BG = advantages_BG / ((std_B1 if scale == "group" else batch_std_1) + eps)
    metrics = {"reward": rewards_BG[known_BG].mean(), "reward_std": batch_std_1[0]}
    return advantages_BG, metrics | {"frac_reward_zero_std": flat_B1.float().mean()}


def decoupled_advantages(rewards_BGK: Tensor, weights_K: Tensor, *, eps: float) -> tuple[Tensor, Metrics]:
    """Advantages (B, G) where each of K rewards is normalised before they are added (GDPO, 2601.05242).

    It is the weighted sum of each reward's group advantages, of which mean and deviation over all answers are taken
    out. Metrics are those of the weighted sums of the raw rewards.
    """
    rewards_BGK, weights_K = wide(rewards_BGK).detach(), wide(weights_K)
    parts = [group_advantages(rewards_BG, scale="group", eps=eps)[0] for rewards_BG in rewards_BGK.unbind(-1)]
    sums_BG = sum(weight * part_BG for weight, part_BG in zip(weights_K, parts, strict=True))
    known_BG = rewards_BGK.isfinite().all(-1)
    mean_1, std_1 = _moments(sums_BG.flatten(), known_BG.flatten())
    advantages_BG = ((sums_BG - mean_1) / (std_1 + eps)).masked_fill(~known_BG, 0)
    return advantages_BG, group_advantages((rewards_BGK * weights_K).sum(-1), scale="group", eps=eps)[1]
