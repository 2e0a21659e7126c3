"""Stand-ins that several test files share: an engine that answers from a script, and its one-character tokens."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ttpa.policy.engine import Generated, Ids, Sampling

STOP = ord("$")
"""Ends an answer."""


def encode(text: str) -> tuple[int, ...]:
    """One token a character; "$" is the stop token."""
    return tuple(map(ord, text))


def decode(ids: Ids) -> str:
    """The text of tokens; the stop token adds nothing."""
    return "".join(chr(token) for token in ids if token != STOP)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One call of `generate`, as texts."""

    prompts: list[str]
    n: int
    sampling: Sampling
    seeds: list[str]
    prefixes: list[str]


@dataclass(kw_only=True)
class ScriptedEngine:
    """Implements `ttpa.policy.engine.Engine` without a model, and notes what it is asked.

    Args:
        script: (prompt, prefix) -> the continuations, one a candidate; "$" at the end stops, else the limit does.
        table: What it answers where the script says nothing: (prompt, answer so far) -> probability of each next
            character. Drawn by the seed's own numbers and the temperature; nothing else of `Sampling` is applied.
        chances: Probability of a character under the script, wherever it stands; 0.5 for those not named.
        verdicts: Prompt -> probability of each token that `next_logps` is asked for.

    A question that neither script nor table answers fails the test.
    """

    script: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    table: Callable[[str, str], Mapping[str, float]] | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    verdicts: Callable[[str], Sequence[float]] | None = None
    calls: list[Asked] = field(default_factory=list)
    judged: list[list[str]] = field(default_factory=list)
    """Prompts of each call of `next_logps`; and its tokens:"""
    judged_tokens: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"prefilled": 0, "generated": 0})

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        assert len(prompts) == len(seeds) and len(prefixes) in (0, len(prompts)), "one seed and one prefix a prompt"
        assert prompts and sampling.max_new_tokens >= 1, "a call that asks nothing"
        before = [_written(ids) for ids in prefixes or [()] * len(prompts)]
        asked = [_written(ids) for ids in prompts]
        self.calls.append(Asked(prompts=asked, n=n, sampling=sampling, seeds=list(seeds), prefixes=before))
        self.counts["prefilled"] += sum(map(len, asked)) + sum(map(len, before))
        return [
            [self._answer(prompt, prefix, seed, candidate, n, sampling) for candidate in range(n)]
            for prompt, prefix, seed in zip(asked, before, seeds, strict=True)
        ]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        assert self.verdicts is not None, "nobody was to ask for verdicts"
        assert prompts, "a call that asks nothing"
        self.judged.append([_written(prompt) for prompt in prompts])
        self.judged_tokens.append(_written(tokens))
        rows = [self.verdicts(prompt) for prompt in self.judged[-1]]
        assert all(len(row) == len(tokens) for row in rows)
        return [[math.log(p) if p else -math.inf for p in row] for row in rows]

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]]:
        return [self._logps(_written(prompt), "", _written(answer)) for answer in answers]

    def reset(self) -> None:
        pass

    def _answer(self, prompt: str, prefix: str, seed: str, candidate: int, n: int, sampling: Sampling) -> Generated:
        if (prompt, prefix) in self.script:
            lines = self.script[prompt, prefix]
            assert len(lines) == n, f"the script has {len(lines)} continuations of {prompt!r} + {prefix!r}, not {n}"
            text = lines[candidate][: sampling.max_new_tokens - len(prefix)]
            logps = self._scripted(text)
        else:
            assert self.table is not None, f"the script has no continuation of {prompt!r} + {prefix!r}"
            text = self._drawn(prompt, prefix, random.Random(f"{seed}|{candidate}"), sampling)
            logps = self._logps(prompt, prefix, text)
        self.counts["generated"] += len(text)
        return Generated(token_ids=list(encode(text)), logps=logps, finish="stop" if text[-1:] == "$" else "length")

    def _drawn(self, prompt: str, prefix: str, numbers: random.Random, sampling: Sampling) -> str:
        text = ""
        while len(prefix + text) < sampling.max_new_tokens and not text.endswith("$"):
            chances = self.table(prompt, prefix + text)
            if sampling.temperature == 0:
                text += max(chances, key=chances.__getitem__)
            else:
                shares = list(accumulate(p ** (1 / sampling.temperature) for p in chances.values()))
                text += list(chances)[bisect_right(shares[:-1], numbers.random() * shares[-1])]
        return text

    def _logps(self, prompt: str, prefix: str, text: str) -> list[float]:
        if self.table is None:
            return self._scripted(text)
        return [math.log(self.table(prompt, prefix + text[:at])[char]) for at, char in enumerate(text)]

    def _scripted(self, text: str) -> list[float]:
        return [math.log(self.chances.get(char, 0.5)) for char in text]


def _written(ids: Ids) -> str:
    """The text of tokens, the stop token too."""
    return "".join(map(chr, ids))
