"""What every engine offers: prompts in, answers out. Plain data, no torch; engines are in `decode` and `vllm`.

The caller says how to draw (`Sampling`) and names the random numbers (`seeds`). The engine decides batching, caches and
devices. Equal calls give equal answers; the same request in other company gives the same answer up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Ids = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """Token-level preference sampling as an engine applies it; see `ttpa.explore.tps`.

    Args:
        k: Size of the top set.
        delta: Largest gap to the best token's probability.
        draw: "uniform" among the candidates, or "renormalised" by their probabilities.
        span: "call": only where a call is being written, greedy elsewhere; "everywhere".
    """

    k: int
    delta: float
    draw: str
    span: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: Longest answer, in tokens; a given prefix counts.
        temperature: Divides the logits; 0 takes the most probable token (ties: the lowest id).
        top_p: Keeps the smallest set of most probable tokens whose mass reaches top_p, in (0, 1] (1904.09751).
        repetition_penalty: Divides positive and multiplies negative logits of tokens that the prompt or the answer
            holds (1909.05858); 1 leaves them.
        rule: Token-level preference sampling instead of temperature and nucleus.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    rule: TokenRule | None = None


@dataclass(slots=True)
class Generated:
    """One answer.

    Attributes:
        token_ids: Ids, with the stop token if it was reached.
        logps: Log-probs of the ids under the model, before temperature and nucleus.
        finish: "stop" or "length".
        branches: (position, [(token id, probability), ...]) where a rule had a choice.
    """

    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = "length"
    branches: list[tuple[int, tuple[tuple[int, float], ...]]] = field(default_factory=list)


@runtime_checkable
class Engine(Protocol):
    """Answers prompts."""

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        """`n` answers to each prompt.

        Args:
            prompts: Token ids.
            n: Answers a prompt.
            sampling: How to draw.
            seeds: One text a prompt; candidate c's random numbers at position t depend on (seed, c, t) alone.
            prefixes: The beginning of each answer, already given (none if empty). Results hold what comes after.
        """

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """Natural-log probability of each of a few tokens as the next one, a row a prompt. An engine may renormalise
        over the tokens asked for.
        """

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]] | None:
        """Log-probs of every token of given answers. They depend on this prompt and these answers alone. None where the
        engine cannot tell.
        """

    def reset(self) -> None:
        """Forgets what is kept between calls: another wave begins, or the weights have changed."""

    @property
    def counts(self) -> dict[str, int]:
        """Tokens since the engine was made: `prefilled` (prompts and prefixes computed) and `generated`."""


def key_of(seed: str, candidate: int) -> int:
    """The 63-bit number from which all random numbers of one answer are made."""
    digest = hashlib.sha256(f"{seed}\x1f{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
