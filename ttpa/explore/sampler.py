"""What a sampler is given and what it returns, and `sampler=group`: n independent samples, the baseline of the others.

A sampler knows neither scorers nor tokenizers: its tasks read answers. The explore stage and online objectives call it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ttpa.calls.syntaxes import token_cuts
from ttpa.options import Count, Positive, Share, option
from ttpa.policy.engine import Engine, Generated, Ids, Sampling
from ttpa.records import Candidate, Sample, Score

if TYPE_CHECKING:
    from ttpa.prompts import Renderer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One distinct answer to a sample: decoded once, scored once."""

    candidate: Candidate
    score: Score
    renderer: Renderer

    @cached_property
    def pieces(self) -> Sequence[str]:
        """The text that each token adds."""
        return self.renderer.pieces(self.candidate.token_ids)

    @cached_property
    def cuts(self) -> Sequence[int]:
        """Where a part of a call ends: ascending counts of tokens."""
        return token_cuts(self.pieces, self.renderer.syntax)


@dataclass(kw_only=True)
class Task:
    """One sample to explore, and how answers to it are read. `name` names its random numbers."""

    name: str
    sample: Sample
    prompt: Ids
    renderer: Renderer
    score: Callable[[Sample, Candidate], Score]
    _answers: dict[tuple[int, ...], Answer] = field(default_factory=dict, init=False, repr=False)

    def read(self, ids: Ids) -> Answer:
        """The answer of these tokens. Equal tokens give the same object."""
        key = tuple(ids)
        if key not in self._answers:
            candidate = self.renderer.candidate(self.sample, 0, key)
            score = self.score(self.sample, candidate)
            self._answers[key] = Answer(candidate=candidate, score=score, renderer=self.renderer)
        return self._answers[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiblingPair:
    """Two answers (by number) that part at a node of a search tree, and what a pair of them keeps in its provenance:
    `search` (values, visits, level) and `spans` (the token at which each side's span ends).
    """

    chosen: int
    rejected: int
    provenance: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Drawn:
    """What exploring one sample gave: whole answers, pairs of siblings, the search tree as JSON, and counts."""

    answers: list[Generated]
    siblings: list[SiblingPair] = field(default_factory=list)
    tree: Any = None
    counts: dict[str, int] = field(default_factory=dict)


class Sampler(Protocol):
    """Draws answers: `n` a request. `wave_share` is how many rows of a wave a sample takes; `policy_temperature` the
    temperature at which answers are independent draws from the policy, None where they are not.
    """

    grows_trees: ClassVar[bool]

    @property
    def n(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def wave_share(self) -> int: ...
    @property
    def policy_temperature(self) -> float | None: ...

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """Explores a wave of samples; one result a task, in order."""


class OneRequest:
    """A sampler that asks for n answers a task, all in one request."""

    grows_trees: ClassVar[bool] = False
    n: Count

    @property
    def wave_share(self) -> int:
        return self.n

    def sampling(self) -> Sampling:
        raise NotImplementedError

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        seeds = [f"{seed}\x1f{task.name}" for task in tasks]
        answers = engine.generate([task.prompt for task in tasks], self.n, self.sampling(), seeds)
        return [Drawn(answers=drawn) for drawn in answers]


@option
class GroupSampler(OneRequest):
    """n independent samples by temperature and nucleus (1904.09751)."""

    n: Count
    max_new_tokens: Count
    temperature: Positive
    top_p: Share

    @property
    def policy_temperature(self) -> float | None:
        return self.temperature if self.top_p == 1 else None

    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)
