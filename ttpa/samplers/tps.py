"""`sampler=tps`: token-level preference sampling (TTPA, 2505.20016).

The paper's text: at each token of the tool call, where the probability differences among the top tokens are small,
draw at random among them, otherwise take the best. The numbers (k, the gap, how to draw) are not in any text we could
read: `k`, `delta` and `draw` below are a reconstruction, labelled so in conf/sampler/tps.yaml; n = 5 is from the
released code, which itself draws ordinary samples (use `sampler=group` with n = 5 for that). In this version the rule
acts on every token of the answer; outside a call it is inert wherever the policy is sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttpa.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ttpa.policy.decode import Chooser


def candidate_mask(probs_RK: Tensor, delta: float) -> Tensor:
    """Which of the top-k tokens lie within `delta` of the best: C = {v in top k : p_1 - p_v <= delta}.

    Args:
        probs_RK: Probabilities of the top k tokens, descending, shape (R, K).
        delta: Largest absolute gap in probability.

    Returns:
        Boolean mask (R, K); the first column is always True.
    """
    return probs_RK[:, :1] - probs_RK <= delta


@dataclass(frozen=True, slots=True, kw_only=True)
class TPS:
    """Token-level preference sampling.

    Args:
        n: Candidates a sample.
        max_new_tokens: Longest answer, in tokens.
        k: Size of the top set.
        delta: Largest gap to the best token's probability, absolute, in [0, 1].
        draw: "uniform" among the candidates, or "renormalised" by their probabilities.

    Raises:
        ConfigError: a value out of range.
    """

    n: int
    max_new_tokens: int
    k: int
    delta: float
    draw: str = "uniform"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError.at(
                "sampler.max_new_tokens", self.max_new_tokens, "must be at least 1", "Use what an answer needs"
            )
        if self.n < 1:
            raise ConfigError.at("sampler.n", self.n, "must be at least 1", "Pairs need at least 2")
        if self.k < 1:
            raise ConfigError.at("sampler.k", self.k, "must be at least 1", "k=1 is greedy decoding")
        if not 0 <= self.delta <= 1:
            raise ConfigError.at(
                "sampler.delta", self.delta, "is a difference of probabilities", "Use a number in [0, 1]"
            )
        if self.draw not in ("uniform", "renormalised"):
            raise ConfigError.at("sampler.draw", self.draw, "unknown", "Use uniform or renormalised")

    def chooser(self) -> Chooser:
        """The rule above; reports the options wherever there was more than one."""
        import torch

        def choose(logps_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, list[list[tuple[int, float]] | None]]:
            top_RK, ids_RK = logps_RV.double().topk(min(self.k, logps_RV.shape[-1]), -1)
            probs_RK = top_RK.exp()
            mask_RK = candidate_mask(probs_RK, self.delta)
            weights_RK = torch.where(
                mask_RK, probs_RK if self.draw == "renormalised" else torch.ones_like(probs_RK), 0.0
            )
            mass_RK = weights_RK.cumsum(-1)
            at_R1 = torch.searchsorted(mass_RK, uniform_R[:, None] * mass_RK[:, -1:], right=True)
            at_R1 = torch.minimum(at_R1, mask_RK.sum(-1, keepdim=True) - 1)
            options: list[list[tuple[int, float]] | None] = [None] * len(logps_RV)
            for row in (mask_RK.sum(-1) > 1).nonzero()[:, 0].tolist():
                count = int(mask_RK[row].sum())
                options[row] = list(
                    zip(
                        ids_RK[row, :count].tolist(), [round(p, 6) for p in probs_RK[row, :count].tolist()], strict=True
                    )
                )
            return ids_RK.gather(-1, at_R1)[:, 0], options

        return choose
