"""Nodes of a search tree over token spans, and functions that cut or value a text. Pure: no engine, no randomness."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ttpa.calls.syntaxes import cuts_behind

SEPARATORS = re.compile(r"\. |, |=|\(")
"""The released code cuts an answer's text behind these."""
LETTER_WORTH = (1.0, 0.1, -1.0, -2.0)
"""What the grades A, B, C and D are worth, before the division by 4."""


@dataclass(slots=True, eq=False, kw_only=True)
class SearchNode:
    """A span of tokens of an answer, with what simulations through it have shown; the root's is empty.

    A child puts itself behind its parent's other children. `name` is the way from the root: "0.2" is the third child
    of the first.
    """

    parent: SearchNode | None = None
    ids: tuple[int, ...] = ()  # of the answer, from its beginning to the end of this span
    logps: tuple[float, ...] = ()
    text: str = ""  # of this span
    terminal: bool = False  # whether the answer ends here
    visits: int = 0  # simulations through this node; those in flight count as of value 0 (virtual loss)
    total: float = 0.0  # the sum of their values
    pending: bool = False  # whether this leaf is being simulated
    answers: list[int] = field(default_factory=list)  # the numbers of what simulations through this node gave
    children: list[SearchNode] = field(default_factory=list)
    start: int = field(init=False)  # tokens of the answer before this span
    depth: int = field(init=False)
    name: str = field(init=False)
    prior: float = field(init=False)

    def __post_init__(self) -> None:
        self.start, self.depth, self.name = 0, 0, ""
        if above := self.parent:
            self.start, self.depth = len(above.ids), above.depth + 1
            self.name = f"{above.name}.{len(above.children)}".removeprefix(".")
            above.children.append(self)
        span = self.logps[self.start :]
        # Rounded: log-probs may differ in their last bits from batch to batch, and selection must not see that.
        self.prior = round(math.exp(sum(span) / len(span)), 4) if span else 1.0

    @property
    def open(self) -> bool:
        """Whether a leaf that is not being simulated can be reached."""
        return any(child.open for child in self.children) if self.children else not self.pending

    def upwards(self) -> Iterator[SearchNode]:
        node: SearchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def downwards(self) -> Iterator[SearchNode]:
        """This node and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.downwards()

    def hold(self, pending: bool) -> None:
        """Begins a simulation from this leaf, or ends it."""
        self.pending = pending
        for node in self.upwards():
            node.visits += 1 if pending else -1

    def visit(self, value: float, answer: int) -> None:
        """Counts a simulation that gave this answer, here and above."""
        for node in self.upwards():
            node.visits += 1
            node.total += value
            if answer not in node.answers:
                node.answers.append(answer)


def text_cuts(pieces: Sequence[str]) -> list[int]:
    """Where the released code would cut an answer, moved to the ends of tokens, whose texts `pieces` are."""
    return cuts_behind(pieces, [match.end() for match in SEPARATORS.finditer("".join(pieces))])


def overlap(left: str, right: str) -> float:
    """Words that two texts share, as a part of the words of the poorer one; 0 where either has none."""
    a, b = set(left.split()), set(right.split())
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def shaped_reward(span: str, target: str) -> float:
    """The released code's reward of a new span: overlap of words with the target less 0.5, and 0.1 more or less for
    having `)]` where the target has it.
    """
    agrees = (")]" in span) == (")]" in target)
    return overlap(span, target) - 0.5 + (0.1 if agrees else -0.1)


def self_evaluation(letter_logps: Sequence[float]) -> float:
    """What a policy's grade is worth: `(1.0 P(A) + 0.1 P(B) - 1.0 P(C) - 2.0 P(D)) / 4`, in [-0.5, 0.25], where the
    probabilities of the four letters are renormalised to 1.
    """
    top = max(letter_logps)
    weights = [math.exp(logp - top) for logp in letter_logps]
    grade = sum(p * worth for p, worth in zip(weights, LETTER_WORTH, strict=True)) / sum(weights) / 4
    return round(grade, 4)  # for the reason why priors are rounded
