"""`sampler=tps`: token-level preference sampling (TTPA, 2505.20016).

The paper's text: at each token of the tool call where the top tokens are about equally probable, draw at random among
them; otherwise take the best. It gives no numbers: `k`, `delta` and `draw` are our reconstruction. The authors' code
draws ordinary samples (`mode=ancestral`). The engine applies the rule, token by token (`ttpa.policy.draw`).
"""

from typing import Literal

from ttpa.explore.sampler import OneRequest
from ttpa.options import Count, Fraction, option
from ttpa.policy.engine import Sampling, TokenRule


@option
class TPS(OneRequest):
    """Token-level preference sampling."""

    n: Count
    max_new_tokens: Count
    k: Count
    delta: Fraction
    draw: Literal["uniform", "renormalised"]
    span: Literal["call", "everywhere"]
    mode: Literal["token", "ancestral"]

    @property
    def policy_temperature(self) -> float | None:
        return 1.0 if self.mode == "ancestral" else None

    def sampling(self) -> Sampling:
        rule = TokenRule(k=self.k, delta=self.delta, draw=self.draw, span=self.span) if self.mode == "token" else None
        return Sampling(max_new_tokens=self.max_new_tokens, rule=rule)
