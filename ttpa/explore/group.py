"""`sampler=group`: n independent samples, by temperature and nucleus (1904.09751): the baseline of all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttpa.errors import ConfigError
from ttpa.explore.sampler import Drawn, Task
from ttpa.policy.engine import Engine, Sampling


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
        if not 0 < self.temperature < math.inf:
            raise ConfigError.at(
                "sampler.temperature", self.temperature, "must be positive", "1.0 samples from the policy"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError.at("sampler.top_p", self.top_p, "must be in (0, 1]", "1.0 keeps every token")

    grows_trees = False

    @property
    def wave_share(self) -> int:
        """Rows of a wave that a sample takes."""
        return self.n

    @property
    def policy_temperature(self) -> float | None:
        """The temperature; None with a nucleus, whose draws are from another distribution."""
        return self.temperature if self.top_p == 1 else None

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """n answers a task."""
        return ordinary(
            engine,
            tasks,
            self.n,
            seed,
            Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p),
        )


def ordinary(engine: Engine, tasks: Sequence[Task], n: int, seed: str, sampling: Sampling) -> list[Drawn]:
    """n answers a task in one call of the engine."""
    seeds = [f"{seed}\x1f{task.sample_id}" for task in tasks]
    answers = engine.generate([task.prompt for task in tasks], n, sampling, seeds)
    return [Drawn(answers=found) for found in answers]
