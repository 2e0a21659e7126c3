"""`sampler=tps`: token-level preference sampling (TTPA, 2505.20016).

The paper's text: at each token of the tool call where the top tokens are about equally probable, draw at random among
them; otherwise take the best. It gives no numbers: `k`, `delta` and `draw` are our reconstruction. The authors' code
draws ordinary samples (`mode=ancestral`). The engine applies the rule, token by token (`ttpa.policy.draw`).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from ttpa.explore.sampler import Drawn, Task, draw_independently
from ttpa.options import Count, Fraction, option
from ttpa.policy.engine import Engine, Sampling, TokenRule


@option
class TPS:
    """Token-level preference sampling."""

    grows_trees: ClassVar[bool] = False

    n: Count
    max_new_tokens: Count
    k: Count
    delta: Fraction
    draw: Literal["uniform", "renormalised"]
    span: Literal["call", "everywhere"]
    mode: Literal["token", "ancestral"]

    @property
    def wave_share(self) -> int:
        return self.n

    @property
    def policy_temperature(self) -> float | None:
        return 1.0 if self.mode == "ancestral" else None

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """See `ttpa.explore.sampler.Sampler.explore`."""
        rule = TokenRule(k=self.k, delta=self.delta, draw=self.draw, span=self.span) if self.mode == "token" else None
        return draw_independently(engine, tasks, self.n, seed, Sampling(max_new_tokens=self.max_new_tokens, rule=rule))
