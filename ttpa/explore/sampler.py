"""What a sampler receives and gives: tasks in, answers (and for a search, its tree) out.

A sampler knows neither scorers nor tokenizers: a task brings functions over token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ttpa.policy.engine import Engine, Generated, Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One sample to explore.

    Args:
        sample_id: Names its random numbers.
        prompt: Token ids.
        value: What a whole answer is worth, in [0, 1]; 1 is the target itself.
        cuts: Where a whole or partial answer may be cut, as ascending counts of tokens (the parts of a call end there).
        judge: Prompt that asks the policy to judge an answer by one letter; None where nothing asks.
        letters: Token ids of the four letters, best first.
        text: The answer as text.
        target: The target as text.
    """

    sample_id: str
    prompt: Ids
    value: Callable[[Ids], float]
    cuts: Callable[[Ids], Sequence[int]]
    judge: Callable[[Ids], Ids] | None = None
    letters: tuple[int, int, int, int] | None = None
    text: Callable[[Ids], str] = lambda ids: ""
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """Two answers that part at a node of a search tree.

    `chosen` and `rejected` are numbers of answers; `start` is the token at which they part, `chosen_end` and
    `rejected_end` where the two spans end; `info` has values, visits and priors.
    """

    chosen: int
    rejected: int
    start: int
    chosen_end: int
    rejected_end: int
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Drawn:
    """What exploring one sample gave: whole answers, pairs of siblings, the search tree as JSON, and counts."""

    answers: list[Generated]
    siblings: list[Sibling] = field(default_factory=list)
    tree: Any = None
    counts: dict[str, int] = field(default_factory=dict)


class Sampler(Protocol):
    """Draws answers. `n`: answers a sample (a request, for a search); `wave_share`: rows of a wave a sample takes;
    `policy_temperature`: at which answers are independent draws from the policy, None where they are not.
    """

    @property
    def n(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def wave_share(self) -> int: ...
    @property
    def grows_trees(self) -> bool: ...
    @property
    def policy_temperature(self) -> float | None: ...

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """Explores a wave of samples; one result a task, in order, independent of the wave's other tasks."""
