"""Nodes of a search tree over token spans, how one is selected, and small functions that value a span or an answer.

Pure: no engine, no task, no randomness. iTool (2501.09766) selects, from the root down, the child that maximises

    puct:      Q(s, a) + c * p(a|s) * sqrt(N(s)) / (1 + N(s, a))                      the paper
    released:  W(s, a) / (N(s, a) + 1) + c * p(a|s) * sqrt(ln N(s) / (N(s, a) + 1))   its code

with visits N, sum of values W, Q = W / N and prior p = exp(mean log-prob of the span's tokens).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

SEPARATORS = re.compile(r"\. |, |=|\(")
"""The released code cuts an answer's text behind these."""
LETTER_WORTH = (1.0, 0.1, -1.0, -2.0)
"""What the grades A, B, C and D are worth, before the division by 4."""


@dataclass(slots=True, eq=False, kw_only=True)
class SearchNode:
    """A span of tokens of an answer, with what simulations through it have shown.

    Args:
        parent: None at the root, whose span is empty.
        index: Number among its siblings.
        ids: Tokens of the answer from its beginning to the end of this span.
        logps: Their log-probs.
        terminal: Whether the answer ends here.
        visits, total: Simulations that went through this node, and the sum of their values.
        pending: Simulations whose values are not known yet. They count as visits of value 0 (virtual loss).
        answers: Numbers of the answers that simulations through this node gave.
    """

    parent: SearchNode | None = None
    index: int = 0
    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    terminal: bool = False
    visits: int = 0
    total: float = 0.0
    pending: int = 0
    depth: int = field(init=False)
    prior: float = field(init=False)
    children: list[SearchNode] = field(init=False, default_factory=list)
    answers: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.depth = 0 if self.parent is None else self.parent.depth + 1
        span = self.logps[self.start :]
        # Rounded: log-probs may differ in their last bits from batch to batch, and selection must not see that.
        self.prior = round(math.exp(sum(span) / len(span)), 4) if span else 1.0

    @property
    def start(self) -> int:
        """Tokens of the answer before this span."""
        return 0 if self.parent is None else len(self.parent.ids)

    @property
    def name(self) -> str:
        """The way from the root, as numbers of children: "0.2" is the third child of the first."""
        return ".".join(str(node.index) for node in reversed(list(self.upwards())) if node.parent is not None)

    @property
    def tries(self) -> int:
        """Visits, and simulations in flight."""
        return self.visits + self.pending

    @property
    def open(self) -> bool:
        """Whether a leaf that is not being simulated can be reached."""
        return any(child.open for child in self.children) if self.children else not self.pending

    def upwards(self) -> Iterator[SearchNode]:
        """This node, then all above it."""
        node: SearchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def downwards(self) -> Iterator[SearchNode]:
        """This node and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.downwards()

    def hold(self, count: int) -> None:
        """Adds simulations in flight (or takes them away) here and above."""
        for node in self.upwards():
            node.pending += count

    def visit(self, value: float, answer: int) -> None:
        """Counts a simulation that gave this answer, here and above."""
        for node in self.upwards():
            node.visits += 1
            node.total += value
            if answer not in node.answers:
                node.answers.append(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which nodes are good, and which is to be looked at next. Scores are rounded to 9 digits, so ties are ties.

    Args:
        formula: "puct" or "released"; see the module.
        values: "mean" or "sum": whether Q is W / N or W. The released formula uses W itself in either case.
        c: Weight of exploration.
    """

    formula: str
    values: str
    c: float

    def worth(self, node: SearchNode) -> float:
        """Q of a node; 0 before any simulation."""
        return round(node.total if self.values == "sum" else node.total / max(1, node.tries), 9)

    def score(self, child: SearchNode) -> float:
        """What selection maximises over siblings."""
        assert child.parent is not None
        above, here = child.parent.tries, child.tries
        if self.formula == "released":
            # ln N is not defined before the parent's first visit; 0 as at its first.
            exploration = child.prior * math.sqrt(math.log(max(1, above)) / (here + 1))
            return round(child.total / (here + 1) + self.c * exploration, 9)
        return round(self.worth(child) + self.c * child.prior * math.sqrt(above) / (1 + here), 9)

    def best(self, nodes: Sequence[SearchNode]) -> SearchNode:
        """The node of greatest worth, the first of several."""
        return max(nodes, key=self.worth)

    def worst(self, nodes: Sequence[SearchNode]) -> SearchNode:
        """The node of least worth, the first of several."""
        return min(nodes, key=self.worth)

    def leaf(self, root: SearchNode) -> SearchNode | None:
        """The leaf to look at next, ties to the first child; None while all leaves are being simulated."""
        if not root.open:
            return None
        node = root
        while node.children:
            node = max((child for child in node.children if child.open), key=self.score)
        return node


def text_cuts(pieces: Sequence[str]) -> Iterator[int]:
    """Where the released code would cut an answer, moved to the ends of tokens.

    Args:
        pieces: The text that each token adds.

    Yields:
        Ascending counts of tokens, each once: the fewest tokens that hold a separator to its end.
    """
    ends, last = list(accumulate(map(len, pieces))), 0
    for match in SEPARATORS.finditer("".join(pieces)):
        cut = bisect_left(ends, match.end()) + 1
        if last < cut < len(pieces):
            yield cut
            last = cut


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
    """What a policy's grade is worth: `(1.0 P(A) + 0.1 P(B) - 1.0 P(C) - 2.0 P(D)) / 4`, in [-0.5, 0.25].

    Args:
        letter_logps: Log-probs of the tokens A, B, C and D; their probabilities are renormalised to 1.
    """
    top = max(letter_logps)
    weights = [math.exp(logp - top) for logp in letter_logps]
    grade = sum(p * worth for p, worth in zip(weights, LETTER_WORTH, strict=True)) / sum(weights) / 4
    return round(grade, 4)  # for the reason why priors are rounded
