"""`sampler=group`: n independent samples, by temperature and nucleus (1904.09751): the baseline of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttpa.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ttpa.policy.decode import Chooser


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSampler:
    """Independent samples.

    Args:
        n: Candidates a sample.
        max_new_tokens: Longest answer, in tokens.
        temperature: Divides the logits; must be positive.
        top_p: Smallest set of most probable tokens whose mass reaches top_p, in (0, 1].

    Raises:
        ConfigError: a value out of range.
    """

    n: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError.at(
                "sampler.max_new_tokens", self.max_new_tokens, "must be at least 1", "Use what an answer needs"
            )
        if self.n < 1:
            raise ConfigError.at("sampler.n", self.n, "must be at least 1", "Pairs need at least 2")
        if not self.temperature > 0:
            raise ConfigError.at(
                "sampler.temperature", self.temperature, "must be positive", "1.0 samples from the policy"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError.at("sampler.top_p", self.top_p, "must be in (0, 1]", "1.0 keeps every token")

    def chooser(self) -> Chooser:
        """Inverse-CDF sampling over the vocabulary, most probable token first."""
        import torch

        def choose(logps_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, None]:
            probs_RV, order_RV = torch.softmax(logps_RV.double() / self.temperature, -1).sort(
                stable=True, dim=-1, descending=True
            )
            mass_RV = probs_RV.cumsum(-1)
            # A token is kept while the mass before it is below top_p, so at least one always is.
            probs_RV = probs_RV.masked_fill(mass_RV - probs_RV >= self.top_p, 0.0)
            mass_RV = probs_RV.cumsum(-1)
            target_R1 = uniform_R[:, None] * mass_RV[:, -1:]
            at_R1 = torch.searchsorted(mass_RV, target_R1, right=True).clamp(max=mass_RV.shape[-1] - 1)
            return order_RV.gather(-1, at_R1)[:, 0], None

        return choose
