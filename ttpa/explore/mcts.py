"""`sampler=mcts`: Monte-Carlo tree search over the parts of an answer (iTool, 2501.09766).

A node is a span of tokens that ends where a part of a call ends; the way from the root to it is the beginning of an
answer. A round takes a leaf of each tree, has the policy finish the answer `width` times from there, values the whole
answers and tells the nodes above. The first part of each continuation becomes a child, so expansion and simulation are
one request, and a round is one call of the engine for all trees of a wave.

    selection        argmax_a Q(s, a) + c * p(a|s) * sqrt(N(s)) / (1 + N(s, a))                       "puct", the paper
                     W(s, a) / (N(s, a) + 1) + c * p(a|s) * sqrt(ln N(s) / (N(s, a) + 1))             "released"
    backpropagation  N += 1, W += value of the answer, from the new child up to the root; Q = W / N
    prior            p = exp(mean log-prob of the span's tokens)
    pairs            at each node, the child of greatest Q against the child of least, as whole answers

`mcts_as_released` sets what the released code has in place of the paper, but for its slips: requests that repeat,
spaces written into answers, pairs cut off in the middle of a call.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

from ttpa.errors import ConfigError
from ttpa.explore.sampler import Drawn, SiblingPair, Task
from ttpa.explore.search_tree import SearchNode, overlap, self_evaluation, shaped_reward, text_cuts
from ttpa.options import Count, Finite, Fraction, NonNegative, Positive, option
from ttpa.policy.engine import Engine, Generated, Sampling
from ttpa.records import shared_tokens

EXACT = 1 - 1e-9
"""An answer worth this much is the target. No grade of self-evaluation is."""


@option
class MCTS:
    """Monte-Carlo tree search.

    A tree is finished after `rounds` rounds; or when all its leaves are ends of answers; or when it is settled: one of
    its answers is exact, and for `settle` rounds with such an answer the root's best child was the same.
    """

    grows_trees: ClassVar[bool] = True
    policy_temperature: ClassVar[float | None] = None  # what a search keeps is no draw from the policy

    max_new_tokens: Count
    width: Count
    depth: Count
    rounds: Count
    fragments: Count
    c: NonNegative
    temperature: Positive
    repetition_penalty: Positive
    selection: Literal["puct", "released"]
    values: Literal["mean", "sum"]
    value: Literal["target", "self"]
    distinct: bool
    cut: Literal["call", "fragments"]
    fast_reward: bool
    leaves: Count
    settle: Count | None
    min_gap: NonNegative
    min_chosen: Finite
    overlap_limit: Fraction | None

    def __post_init__(self) -> None:
        if self.width < 2:
            raise ConfigError.at("width", self.width, "must be at least 2", "A pair needs two children")

    @property
    def n(self) -> int:
        return self.width

    @property
    def wave_share(self) -> int:
        return self.width * self.leaves

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """Grows a tree for each task, all together; random numbers depend on the task and the seed alone."""
        letters = tasks[0].renderer.letters() if self.value == "self" and tasks else ()
        if letters is None:
            problem = "the model has no single token for each of A, B, C, D"
            raise ConfigError.at("value", self.value, problem, "Use target")
        heat, longest = self.temperature, self.max_new_tokens
        sampling = Sampling(max_new_tokens=longest, temperature=heat, repetition_penalty=self.repetition_penalty)
        searches = [_Search(self, task, f"{seed}/{task.name}") for task in tasks]
        for _ in range(self.rounds):
            growing = [search for search in searches if not search.finished]
            taken = [(search, leaf) for search in growing for leaf in search.take()]
            prompts, prefixes = [search.task.prompt for search, _ in taken], [leaf.ids for _, leaf in taken]
            # The tree and the node name the random numbers; a node is asked once.
            seeds = [f"{search.seed}/{leaf.name}/0" for search, leaf in taken]
            drawn = engine.generate(prompts, self.width, sampling, seeds, prefixes) if taken else []
            numbers = [
                [search.add(leaf, one) for one in found] for (search, leaf), found in zip(taken, drawn, strict=True)
            ]
            self._value(engine, growing, letters)
            for (search, leaf), answers in zip(taken, numbers, strict=True):
                search.expand(leaf, answers)
            for search in growing:
                search.end_round()
        return [search.result() for search in searches]

    def _value(self, engine: Engine, searches: Sequence["_Search"], letters: Sequence[int]) -> None:
        """Values the new answers; self-evaluation asks for those of all trees at once."""
        fresh = [(one, one.task.read(new.token_ids)) for one in searches for new in one.answers[len(one.value) :]]
        values = [float(answer.score.value) for _, answer in fresh]
        if self.value == "self" and fresh:
            prompts = [one.task.renderer.judge_prompt(one.task.sample, answer.candidate.text) for one, answer in fresh]
            values = [self_evaluation(logps) for logps in engine.next_logps(prompts, letters)]
        for (search, _), value in zip(fresh, values, strict=True):
            search.value.append(value)

    def worth(self, node: SearchNode) -> float:
        """Q of a node, 0 before any simulation. Rounded, as scores are, so that ties are ties."""
        return round(node.total if self.values == "sum" else node.total / max(1, node.visits), 9)

    def score(self, child: SearchNode) -> float:
        """What selection maximises over siblings."""
        assert child.parent is not None
        above, here = child.parent.visits, child.visits
        if self.selection == "released":
            # ln N is not defined before the parent's first visit; 0 as at its first.
            exploration = child.prior * math.sqrt(math.log(max(1, above)) / (here + 1))
            return round(child.total / (here + 1) + self.c * exploration, 9)
        return round(self.worth(child) + self.c * child.prior * math.sqrt(above) / (1 + here), 9)

    def leaf(self, node: SearchNode) -> SearchNode | None:
        """The leaf below to look at next, ties to the first child; None while all leaves are being simulated."""
        if not node.open:
            return None
        while node.children:
            node = max((child for child in node.children if child.open), key=self.score)
        return node


class _Search:
    """The tree of one sample while it grows. Answers have numbers; `value` has the value of each."""

    def __init__(self, options: MCTS, task: Task, seed: str) -> None:
        self.options, self.task, self.seed = options, task, seed
        self.root = SearchNode()
        self.answers: list[Generated] = []
        self.value: list[float] = []
        self.numbers: dict[tuple[int, ...], int] = {}
        self.best: SearchNode | None = None  # child of the root
        self.steady = 0  # rounds for which it has been the best, with an exact answer at hand
        self.finished = False
        self.counts = dict.fromkeys(("rounds", "requests", "simulations", "nodes", "duplicates", "generated"), 0)
        self.target = task.renderer.answer_texts([task.sample])[0] if options.fast_reward else ""

    def take(self) -> list[SearchNode]:
        """The leaves to expand in this round. An end of an answer that is selected is visited once more instead."""
        taken: list[SearchNode] = []
        for _ in range(self.options.leaves):
            leaf = self.options.leaf(self.root)
            if leaf is not None and leaf.terminal:
                (answer,) = leaf.answers
                leaf.visit(self.value[answer], answer)
            elif leaf is not None:
                leaf.hold(True)
                taken.append(leaf)
        return taken

    def add(self, leaf: SearchNode, continuation: Generated) -> int:
        """Keeps a whole answer; returns its number, the old one if it is known."""
        key = (*leaf.ids, *continuation.token_ids)
        known = key in self.numbers
        if not known:
            self.numbers[key] = len(self.answers)
            logps = [*leaf.logps, *continuation.logps]
            self.answers.append(Generated(token_ids=list(key), logps=logps, finish=continuation.finish))
        self.counts["simulations"] += 1
        self.counts["duplicates"] += known
        self.counts["generated"] += len(continuation.token_ids)
        return self.numbers[key]

    def expand(self, leaf: SearchNode, numbers: Sequence[int]) -> None:
        """Gives a leaf its children: the first spans of its continuations, which are the answers of these numbers."""
        leaf.hold(False)
        self.counts["requests"] += 1
        for number in numbers:
            answer, pieces = self.answers[number], self.task.read(self.answers[number].token_ids).pieces
            end = self._span_end(leaf, answer)
            ids, logps = tuple(answer.token_ids[:end]), tuple(answer.logps[:end])
            child = next((one for one in leaf.children if one.ids == ids and self.options.distinct), None)
            if child is None:
                text, terminal = "".join(pieces[len(leaf.ids) : end]), end == len(answer.token_ids)
                child = SearchNode(parent=leaf, ids=ids, logps=logps, text=text, terminal=terminal)
                if self.options.fast_reward:
                    child.total = shaped_reward(text, self.target)
            child.visit(self.value[number], number)

    def _span_end(self, leaf: SearchNode, generated: Generated) -> int:
        """Where the span of a child ends that begins behind `leaf`, in tokens of the answer."""
        whole = len(generated.token_ids)
        if leaf.depth + 1 >= self.options.depth:
            return whole
        answer = self.task.read(generated.token_ids)
        cuts = answer.cuts if self.options.cut == "call" else text_cuts(answer.pieces)
        behind = (cut for cut in cuts if cut > len(leaf.ids))
        return next(islice(behind, self.options.fragments - 1, None), whole)

    def end_round(self) -> None:
        """Finds out whether the tree is finished."""
        self.counts["rounds"] += 1
        best = max(self.root.children, key=self.options.worth)
        self.steady = self.steady + 1 if max(self.value) >= EXACT and best is self.best else 0
        self.best = best
        settled = self.options.settle is not None and self.steady >= self.options.settle
        self.finished = settled or all(node.terminal for node in self.root.downwards() if not node.children)

    def result(self) -> Drawn:
        """The answers, the pairs, and the tree as plain data: a node a row, parents before children."""
        numbers = {node: number for number, node in enumerate(self.root.downwards())}
        self.counts["nodes"] = len(numbers)
        tree = [
            {
                "id": number,
                "parent": None if node.parent is None else numbers[node.parent],
                "tokens": len(node.ids) - node.start,
                "text": node.text,
                "prior": node.prior,
                "visits": node.visits,
                "value": round(self.options.worth(node), 6),
                "terminal": node.terminal,
                "answers": list(node.answers),
            }
            for node, number in numbers.items()
        ]
        siblings = [pair for node in numbers if (pair := self._pair(node)) is not None]
        return Drawn(answers=self.answers, siblings=siblings, tree=tree, counts=self.counts)

    def _pair(self, node: SearchNode) -> SiblingPair | None:
        """The best answer of a node's best child against the worst answer of its worst, if they are far apart."""
        if len(node.children) < 2:
            return None
        worth, limit = self.options.worth, self.options.overlap_limit
        good, bad = max(node.children, key=worth), min(node.children, key=worth)
        values: list[Any] = [worth(good), worth(bad)]
        chosen, rejected = max(good.answers, key=self.value.__getitem__), min(bad.answers, key=self.value.__getitem__)
        if (
            round(values[0] - values[1], 9) < self.options.min_gap
            or values[0] < self.options.min_chosen
            or good.ids == bad.ids
            or (limit is not None and overlap(good.text, bad.text) > limit)
            or chosen == rejected
        ):
            return None
        left, right = self.answers[chosen].token_ids, self.answers[rejected].token_ids
        # One span may be the beginning of the other; then the token that differs is taken for the end.
        least = shared_tokens(left, right) + 1
        ends = [min(max(len(side.ids), least), len(ids)) for side, ids in ((good, left), (bad, right))]
        spans = {"chosen": ends[0], "rejected": ends[1]}
        shown, visits = [round(value, 6) for value in values], [good.visits, bad.visits]
        search = {"values": shown, "visits": visits, "level": node.depth}
        return SiblingPair(chosen=chosen, rejected=rejected, provenance={"search": search, "spans": spans})
