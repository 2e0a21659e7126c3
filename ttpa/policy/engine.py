"""What every engine offers: prompts in, answers out. Plain data, no torch; engines are in `decode` and `vllm`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Ids = Sequence[int]
Branch = tuple[int, tuple[tuple[int, float], ...]]  # position, and (token id, probability) of each candidate there


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """Token-level preference sampling as an engine applies it; see `ttpa.explore.tps`. Of the `k` most probable tokens,
    those within `delta` of the best one's probability are candidates. `draw` is "uniform" or "renormalised"; `span` is
    "call" (greedy where no call is being written) or "everywhere".
    """

    k: int
    delta: float
    draw: str
    span: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn. `max_new_tokens` counts a given prefix; a rule replaces temperature, top_p and penalty."""

    max_new_tokens: int
    temperature: float = 1.0  # divides the logits; 0 takes the most probable token (ties: the lowest id)
    top_p: float = 1.0  # keeps the fewest most probable tokens whose mass reaches it (1904.09751)
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens seen before (1909.05858)
    rule: TokenRule | None = None


@dataclass(slots=True)
class Generated:
    """One answer: token ids (with the stop token if it was reached), their log-probs under the model, "stop" or
    "length", and where a rule had a choice.
    """

    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = "length"
    branches: list[Branch] = field(default_factory=list)


@runtime_checkable
class Engine(Protocol):
    """Answers prompts. Equal calls give equal answers; the same request in other company gives the same answer up to
    rounding. `counts` are tokens since it was made: `prefilled` (prompts and prefixes computed) and `generated`.
    """

    counts: dict[str, int]

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        """`n` answers to each prompt. Candidate c's random numbers at position t depend on (seed, c, t) alone.
        `prefixes` are beginnings of the answers, already given (none if empty); results hold what comes after.
        """

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """Natural-log probability of each of a few tokens as the next one, a row a prompt."""

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]] | None:
        """Log-probs of every token of given answers; None where the engine cannot tell."""

    def reset(self) -> None:
        """Forgets what is kept between calls: another wave begins, or the weights have changed."""

    def close(self) -> None:
        """Frees memory and ends processes of its own. Nothing is asked afterwards; a second call does nothing."""


def key_of(seed: str, candidate: int) -> int:
    """The 63-bit number from which all random numbers of one answer are made."""
    digest = hashlib.sha256(f"{seed}\x1f{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
