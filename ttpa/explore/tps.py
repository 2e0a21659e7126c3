"""`sampler=tps`: token-level preference sampling (TTPA, 2505.20016).

The paper's text: at each token of the tool call, where the probability differences among the top tokens are small,
draw at random among them, otherwise take the best. The numbers (k, the gap, how to draw) are not in any text we could
read: `k`, `delta` and `draw` below are a reconstruction, labelled so in conf/sampler/tps.yaml; n = 5 is from the
released code, which itself draws ordinary samples (`mode: ancestral`). Outside the call the most probable token is
taken. The rule itself is applied by the engine, token by token (`ttpa.policy.draw`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttpa.errors import ConfigError
from ttpa.explore.group import ordinary
from ttpa.explore.sampler import Drawn, Task
from ttpa.policy.engine import Engine, Sampling, TokenRule


@dataclass(frozen=True, slots=True, kw_only=True)
class TPS:
    """Token-level preference sampling.

    Args:
        n: Candidates a sample.
        max_new_tokens: Longest answer, in tokens.
        k: Size of the top set.
        delta: Largest gap to the best token's probability, absolute, in [0, 1].
        draw: "uniform" among the candidates, or "renormalised" by their probabilities.
        span: "call": the rule acts from the call's opening to its closing; "everywhere".
        mode: "token": the rule; "ancestral": n ordinary samples at temperature 1, what the authors' code released.

    Raises:
        ConfigError: a value out of range.
    """

    n: int
    max_new_tokens: int
    k: int
    delta: float
    draw: str = "uniform"
    span: str = "call"
    mode: str = "token"

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
        for key, known in (
            ("draw", ("uniform", "renormalised")),
            ("span", ("call", "everywhere")),
            ("mode", ("token", "ancestral")),
        ):
            if getattr(self, key) not in known:
                raise ConfigError.at(f"sampler.{key}", getattr(self, key), "unknown", f"Use {' or '.join(known)}")

    grows_trees = False

    @property
    def wave_share(self) -> int:
        """Rows of a wave that a sample takes."""
        return self.n

    @property
    def policy_temperature(self) -> float | None:
        """1 in mode `ancestral`; the rule draws from a distribution of its own."""
        return 1.0 if self.mode == "ancestral" else None

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """n answers a task."""
        if self.mode == "ancestral":
            return ordinary(engine, tasks, self.n, seed, Sampling(max_new_tokens=self.max_new_tokens))
        rule = TokenRule(k=self.k, delta=self.delta, draw=self.draw, span=self.span)
        return ordinary(engine, tasks, self.n, seed, Sampling(max_new_tokens=self.max_new_tokens, rule=rule))
