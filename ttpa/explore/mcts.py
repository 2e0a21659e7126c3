"""`sampler=mcts`: Monte-Carlo tree search over the parts of an answer (iTool, 2501.09766).

A node is a span of tokens that ends where a part of a call ends; the way from the root to it is the beginning of an
answer. A round takes a leaf of each tree, has the policy finish the answer `width` times from there, values the whole
answers and tells the nodes above. The first part of each continuation becomes a child, so expansion and simulation are
one request. All trees of a wave are grown together: a round is one call of the engine, for all of them.

    selection        argmax_a Q(s, a) + c * p(a|s) * sqrt(N(s)) / (1 + N(s, a))       `ttpa.explore.search_tree`
    backpropagation  N += 1, W += value of the answer, from the new child up to the root; Q = W / N
    pairs            at each node, the child of greatest Q against the child of least, as whole answers

`mcts_as_released` sets what the released code has in place of the paper: its selection formula, sums for values, a
shaped reward of spans, self-evaluation, fragments of text for steps, copies of a child kept. The slips of that code
are in neither: requests that repeat, spaces written into answers, pairs cut off in the middle of a call.

It knows no scorer, no tokenizer and no syntax: a `Task` brings functions of token ids. Called by the explore stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ttpa.errors import ConfigError
from ttpa.explore.sampler import Drawn, Sibling, Task
from ttpa.explore.search_tree import Node, Selection, overlap, parting, self_evaluation, shaped_reward, text_cuts
from ttpa.policy.engine import Engine, Generated, Ids, Sampling

EXACT = 1 - 1e-9
"""An answer worth this much is the target. No verdict of self-evaluation is."""
CHOICES = {
    "selection": ("puct", "released"),
    "values": ("mean", "sum"),
    "value": ("target", "self"),
    "cut": ("call", "fragments"),
}
LEAST = {"width": 2, "depth": 1, "rounds": 1, "fragments": 1, "leaves": 1, "max_new_tokens": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MCTS:
    """Monte-Carlo tree search.

    A tree is finished after `rounds` rounds; or when all its leaves are ends of answers; or when it is settled: one of
    its answers is exact, and for `settle` rounds with such an answer the root's best child was the same.

    Args:
        width: Continuations drawn at a leaf; at least 2.
        depth: Levels of nodes; on the last a span reaches to the end of the answer.
        rounds: Times that leaves are taken from a tree.
        fragments: Parts of an answer in a span.
        max_new_tokens: Longest answer, in tokens.
        c: Weight of exploration against exploitation.
        temperature: Of the policy; must be positive.
        repetition_penalty: See `ttpa.policy.engine.Sampling`; below 1 it encourages repetition.
        selection: "puct", or "released".
        values: "mean" or "sum" of the values of simulations, for puct and for pairs.
        value: "target": what the task says an answer is worth; "self": the policy's own verdict, by one letter.
        distinct: Whether continuations that begin with the same span become one child with several simulations, or each
            a child of its own.
        cut: "call": at the ends of names, values and calls; "fragments": as the released code, behind ". ", ", ", "="
            and "(".
        fast_reward: Whether a new child's sum of values begins with the shaped reward of its span.
        leaves: Leaves of a tree simulated at once. A leaf in flight counts as visited, of value 0, and is not taken
            again.
        settle: Rounds without change after which a tree with an exact answer is finished; None: never. With
            value=self no answer is known to be exact.
        min_gap: Least difference of values between the two children of a pair.
        min_chosen: Least value of the better one. The default asks nothing of values in [0, 1]: the mean of a right
            child is low where the policy seldom finishes well, and the pair rule looks at the answers themselves.
        overlap_limit: Largest part of words that the two spans may share; None: any. A limit removes pairs that differ
            in one value.

    Raises:
        ConfigError: a value out of range.
    """

    max_new_tokens: int
    width: int = 3
    depth: int = 3
    rounds: int = 5
    fragments: int = 1
    c: float = 1.0
    temperature: float = 1.5
    repetition_penalty: float = 1.0
    selection: str = "puct"
    values: str = "mean"
    value: str = "target"
    distinct: bool = True
    cut: str = "call"
    fast_reward: bool = False
    leaves: int = 1
    settle: int | None = 2
    min_gap: float = 0.1
    min_chosen: float = 0.0
    overlap_limit: float | None = None

    def __post_init__(self) -> None:
        for key, least in LEAST.items():
            if not getattr(self, key) >= least:
                remedy = "A pair needs two children" if key == "width" else f"Use {least} or more"
                raise ConfigError.at(f"sampler.{key}", getattr(self, key), f"must be at least {least}", remedy)
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ConfigError.at(f"sampler.{key}", getattr(self, key), "unknown", f"Use {' or '.join(known)}")
        for key in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError.at(f"sampler.{key}", getattr(self, key), "must be positive", "1.0 changes nothing")
        for key in ("c", "min_gap"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError.at(f"sampler.{key}", getattr(self, key), "must not be negative", "Use 0 or more")
        if not math.isfinite(self.min_chosen):
            raise ConfigError.at("sampler.min_chosen", self.min_chosen, "must be a number", "Use 0.0")
        if self.settle is not None and not self.settle >= 1:
            raise ConfigError.at("sampler.settle", self.settle, "must be at least 1", "Use null for never")
        if self.overlap_limit is not None and not 0 <= self.overlap_limit <= 1:
            raise ConfigError.at("sampler.overlap_limit", self.overlap_limit, "is a share", "Use null for no limit")

    grows_trees = True
    policy_temperature = None  # what a search keeps is no draw from the policy

    @property
    def n(self) -> int:
        """Answers of a request."""
        return self.width

    @property
    def wave_share(self) -> int:
        """Rows of a wave that a sample takes."""
        return self.width * self.leaves

    def explore(self, engine: Engine, tasks: Sequence[Task], seed: str) -> list[Drawn]:
        """Grows a tree for each task, all together; a tree depends on its own task and the seed alone.

        Raises:
            ConfigError: value=self, and the model cannot name the four letters.
        """
        if self.value == "self" and any(task.judge is None or task.letters is None for task in tasks):
            raise ConfigError.at(
                "sampler.value", self.value, "the model has no single token for each of A, B, C, D", "Use target"
            )
        searches = [_Search(self, task, f"{seed}/{task.sample_id}") for task in tasks]
        for _ in range(self.rounds):
            growing = [search for search in searches if not search.finished]
            taken = [(search, leaf) for search in growing for leaf in search.take()]
            simulated = self._simulate(engine, taken)
            self._value(engine, growing)
            for (search, leaf), numbers in zip(taken, simulated, strict=True):
                search.expand(leaf, numbers)
            for search in growing:
                search.end_round()
        return [search.result() for search in searches]

    def _simulate(self, engine: Engine, taken: Sequence[tuple[_Search, Node]]) -> list[list[int]]:
        """Has the policy finish the answers from the leaves; gives the numbers of the answers, a row a leaf."""
        if not taken:
            return []
        sampling = Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            repetition_penalty=self.repetition_penalty,
        )
        drawn = engine.generate(
            [search.task.prompt for search, _ in taken],
            self.width,
            sampling,
            [search.request(leaf) for search, leaf in taken],
            [leaf.ids for _, leaf in taken],
        )
        return [
            [search.add(leaf, continuation) for continuation in continuations]
            for (search, leaf), continuations in zip(taken, drawn, strict=True)
        ]

    def _value(self, engine: Engine, searches: Sequence[_Search]) -> None:
        """Values the answers that have no value yet; self-evaluation asks for those of all trees at once."""
        fresh = [(search, number) for search in searches for number, worth in enumerate(search.worth) if worth is None]
        if self.value == "target":
            for search, number in fresh:
                search.worth[number] = float(search.task.value(search.answers[number].token_ids))
            return
        prompts = []
        letters: Ids = ()  # the same for all tasks of a model
        for search, number in fresh:
            assert search.task.judge is not None and search.task.letters is not None
            prompts.append(search.task.judge(search.answers[number].token_ids))
            letters = search.task.letters
        verdicts = engine.next_logps(prompts, letters) if prompts else []
        for (search, number), logps in zip(fresh, verdicts, strict=True):
            search.worth[number] = self_evaluation(logps)


class _Search:
    """The tree of one sample while it grows."""

    def __init__(self, options: MCTS, task: Task, seed: str) -> None:
        self.options, self.task, self.seed = options, task, seed
        self.select = Selection(formula=options.selection, values=options.values, c=options.c)
        self.root = Node()
        self.answers: list[Generated] = []
        self.worth: list[float | None] = []  # of the answers; None until it is known
        self.number: dict[tuple[int, ...], int] = {}  # of an answer
        self.best: Node | None = None  # child of the root
        self.steady = 0  # rounds for which it has been the best, with an exact answer at hand
        self.finished = False
        self.counts = dict.fromkeys(("rounds", "requests", "simulations", "nodes", "duplicates", "generated"), 0)

    def take(self) -> list[Node]:
        """The leaves to expand in this round. An end of an answer that is selected is visited once more instead."""
        found = []
        for _ in range(self.options.leaves):
            leaf = self.select.leaf(self.root)
            if leaf is None:
                break
            if leaf.terminal:
                (answer,) = leaf.answers
                leaf.visit(self._worth(answer), answer)
            else:
                leaf.hold(1)
                found.append(leaf)
        return found

    def request(self, leaf: Node) -> str:
        """What names the random numbers of a request: the tree, the node, and how often it was asked."""
        return f"{self.seed}/{leaf.name}/{leaf.expansions}"

    def add(self, leaf: Node, continuation: Generated) -> int:
        """Keeps a whole answer; gives its number, an old one if it is known."""
        key = (*leaf.ids, *continuation.token_ids)
        self.counts["simulations"] += 1
        self.counts["generated"] += len(continuation.token_ids)
        if key in self.number:
            self.counts["duplicates"] += 1
        else:
            self.number[key] = len(self.answers)
            logps = [*leaf.logps, *continuation.logps]
            self.answers.append(Generated(token_ids=list(key), logps=logps, finish=continuation.finish))
            self.worth.append(None)
        return self.number[key]

    def expand(self, leaf: Node, numbers: Sequence[int]) -> None:
        """Gives a leaf its children: the first spans of its continuations, which are answers of these numbers."""
        leaf.hold(-1)
        leaf.expansions += 1
        self.counts["requests"] += 1
        known: dict[tuple[int, ...], Node] = {}
        for number in numbers:
            answer = self.answers[number]
            end = self._end(leaf, answer.token_ids)
            ids = tuple(answer.token_ids[:end])
            child = known.get(ids) if self.options.distinct else None
            if child is None:
                logps, terminal = tuple(answer.logps[:end]), end == len(answer.token_ids)
                child = Node(parent=leaf, index=len(leaf.children), ids=ids, logps=logps, terminal=terminal)
                if self.options.fast_reward:
                    child.total = shaped_reward(self._text(child), self.task.target)
                leaf.children.append(child)
                known[ids] = child
            child.visit(self._worth(number), number)

    def end_round(self) -> None:
        """Finds out whether the tree is finished."""
        self.counts["rounds"] += 1
        best = self.select.best(self.root.children)
        exact = any(worth is not None and worth >= EXACT for worth in self.worth)
        self.steady = self.steady + 1 if exact and best is self.best else 0
        self.best = best
        settled = self.options.settle is not None and self.steady >= self.options.settle
        self.finished = settled or all(node.terminal for node in self.root.below() if not node.children)

    def result(self) -> Drawn:
        """The answers, pairs and tree."""
        nodes = list(self.root.below())
        self.counts["nodes"] = len(nodes)
        siblings = [pair for node in nodes if (pair := self._pair(node)) is not None]
        return Drawn(answers=self.answers, siblings=siblings, tree=self._tree(nodes), counts=self.counts)

    def _worth(self, answer: int) -> float:
        worth = self.worth[answer]
        assert worth is not None, "answers are valued before their nodes are told"
        return worth

    def _end(self, leaf: Node, ids: Sequence[int]) -> int:
        """Where the span of a child ends that begins behind `leaf`, in tokens of the answer."""
        if leaf.depth + 1 >= self.options.depth:
            return len(ids)
        start = len(leaf.ids)
        cuts: Iterator[int]
        if self.options.cut == "call":
            cuts = (cut for cut in self.task.cuts(ids) if cut > start)
        else:
            cuts = text_cuts(ids, self.task.text, start)
        wanted = self.options.fragments - 1
        return next(islice(cuts, wanted, None), len(ids))

    def _text(self, node: Node) -> str:
        """The text of a span, as it stands in the answer."""
        return self.task.text(node.ids)[len(self.task.text(node.ids[: node.start])) :]

    def _pair(self, node: Node) -> Sibling | None:
        """The best answer of a node's best child against the worst answer of its worst, if they are far apart."""
        if len(node.children) < 2:
            return None
        good, bad = self.select.best(node.children), self.select.worst(node.children)
        values = self.select.worth(good), self.select.worth(bad)
        if round(values[0] - values[1], 9) < self.options.min_gap or values[0] < self.options.min_chosen:
            return None
        limit = self.options.overlap_limit
        if good.ids == bad.ids or (limit is not None and overlap(self._text(good), self._text(bad)) > limit):
            return None
        chosen, rejected = max(good.answers, key=self._worth), min(bad.answers, key=self._worth)
        left, right = self.answers[chosen].token_ids, self.answers[rejected].token_ids
        start = parting(left, right)
        if left == right:
            return None
        return Sibling(
            chosen=chosen,
            rejected=rejected,
            start=start,
            # One span may be the beginning of the other; then the token that differs is taken for the end.
            chosen_end=min(max(len(good.ids), start + 1), len(left)),
            rejected_end=min(max(len(bad.ids), start + 1), len(right)),
            info={
                "values": [round(value, 6) for value in values],
                "visits": [good.visits, bad.visits],
                "priors": [good.prior, bad.prior],
                "level": node.depth,
            },
        )

    def _tree(self, nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """The tree as plain data: a node a row, parents before children. `tokens` is how many its span has, `answers`
        the numbers of the answers that simulations through it gave.
        """
        number = {id(node): place for place, node in enumerate(nodes)}
        return [
            {
                "id": number[id(node)],
                "parent": None if node.parent is None else number[id(node.parent)],
                "tokens": len(node.ids) - node.start,
                "text": self._text(node),
                "prior": node.prior,
                "visits": node.visits,
                "value": round(self.select.worth(node), 6),
                "terminal": node.terminal,
                "answers": list(node.answers),
            }
            for node in nodes
        ]
