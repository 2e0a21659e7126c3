"""`sampler=mcts`: Monte-Carlo tree search over the parts of an answer (iTool, 2501.09766).

A node is a span of tokens that ends where a part of a call ends; the way from the root to it is the beginning of an
answer. A round takes a leaf of each tree, has the policy finish the answer `width` times from there, values the whole
answers and tells the nodes above. The first part of each continuation becomes a child, so expansion and simulation are
one request, and a round is one call of the engine for all trees of a wave.

    selection        argmax_a Q(s, a) + c * p(a|s) * sqrt(N(s)) / (1 + N(s, a))       `ttpa.explore.search_tree`
    backpropagation  N += 1, W += value of the answer, from the new child up to the root; Q = W / N
    pairs            at each node, the child of greatest Q against the child of least, as whole answers

`mcts_as_released` sets what the released code has in place of the paper: its selection formula, sums for values, a
shaped reward of spans, self-evaluation, fragments of text for steps, copies of a child kept. Its slips are in neither:
requests that repeat, spaces written into answers, pairs cut off in the middle of a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

from ttpa.errors import ConfigError
from ttpa.explore.sampler import Drawn, SiblingPair, Task
from ttpa.explore.search_tree import SearchNode, Selection, overlap, self_evaluation, shaped_reward, text_cuts
from ttpa.options import Count, Finite, Fraction, NonNegative, Positive, option
from ttpa.policy.engine import Engine, Generated, Sampling

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
        """Grows a tree for each task, all together; random numbers depend on the task and the seed alone.

        Raises:
            ConfigError: value=self, and the model has no token for each of the four letters.
        """
        if self.value == "self" and any(task.letters is None for task in tasks):
            problem = "the model has no single token for each of A, B, C, D"
            raise ConfigError.at("value", self.value, problem, "Use target")
        searches = [_Search(self, task, f"{seed}/{task.name}") for task in tasks]
        for _ in range(self.rounds):
            growing = [search for search in searches if not search.finished]
            taken = [(search, leaf) for search in growing for leaf in search.take()]
            numbers = self._simulate(engine, taken)
            self._value(engine, growing)
            for (search, leaf), answers in zip(taken, numbers, strict=True):
                search.expand(leaf, answers)
            for search in growing:
                search.end_round()
        return [search.result() for search in searches]

    def _simulate(self, engine: Engine, taken: Sequence[tuple[_Search, SearchNode]]) -> list[list[int]]:
        """Has the policy finish the answers from the leaves; the numbers of the answers, a list a leaf."""
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
        """Values the new answers; self-evaluation asks for those of all trees at once."""
        fresh = [(search, answer) for search in searches for answer in search.answers[len(search.value) :]]
        if self.value == "target":
            for search, answer in fresh:
                search.value.append(float(search.task.read(answer.token_ids).value))
        elif fresh:
            tasks = [search.task for search, _ in fresh]
            prompts = [search.task.judge_prompt(search.task.read(answer.token_ids)) for search, answer in fresh]
            grades = engine.next_logps(prompts, tasks[0].letters or ())
            for (search, _), logps in zip(fresh, grades, strict=True):
                search.value.append(self_evaluation(logps))


class _Search:
    """The tree of one sample while it grows. Answers have numbers; `value` has the value of each."""

    def __init__(self, options: MCTS, task: Task, seed: str) -> None:
        self.options, self.task, self.seed = options, task, seed
        self.select = Selection(formula=options.selection, values=options.values, c=options.c)
        self.root = SearchNode()
        self.answers: list[Generated] = []
        self.value: list[float] = []
        self.numbers: dict[tuple[int, ...], int] = {}
        self.best: SearchNode | None = None  # child of the root
        self.steady = 0  # rounds for which it has been the best, with an exact answer at hand
        self.finished = False
        self.counts = dict.fromkeys(("rounds", "requests", "simulations", "nodes", "duplicates", "generated"), 0)

    def take(self) -> list[SearchNode]:
        """The leaves to expand in this round. An end of an answer that is selected is visited once more instead."""
        taken: list[SearchNode] = []
        for _ in range(self.options.leaves):
            leaf = self.select.leaf(self.root)
            if leaf is None:
                break
            if leaf.terminal:
                (answer,) = leaf.answers
                leaf.visit(self.value[answer], answer)
            else:
                leaf.hold(1)
                taken.append(leaf)
        return taken

    def request(self, leaf: SearchNode) -> str:
        """The name of a request's random numbers: the tree and the node, which is asked once."""
        return f"{self.seed}/{leaf.name}/0"

    def add(self, leaf: SearchNode, continuation: Generated) -> int:
        """Keeps a whole answer; returns its number, the old one if it is known."""
        key = (*leaf.ids, *continuation.token_ids)
        self.counts["simulations"] += 1
        self.counts["generated"] += len(continuation.token_ids)
        if key in self.numbers:
            self.counts["duplicates"] += 1
        else:
            self.numbers[key] = len(self.answers)
            logps = [*leaf.logps, *continuation.logps]
            self.answers.append(Generated(token_ids=list(key), logps=logps, finish=continuation.finish))
        return self.numbers[key]

    def expand(self, leaf: SearchNode, numbers: Sequence[int]) -> None:
        """Gives a leaf its children: the first spans of its continuations, which are the answers of these numbers."""
        leaf.hold(-1)
        self.counts["requests"] += 1
        by_span: dict[tuple[int, ...], SearchNode] = {}
        for number in numbers:
            answer = self.answers[number]
            end = self._span_end(leaf, answer)
            ids = tuple(answer.token_ids[:end])
            child = by_span.get(ids) if self.options.distinct else None
            if child is None:
                terminal = end == len(answer.token_ids)
                logps = tuple(answer.logps[:end])
                child = SearchNode(parent=leaf, index=len(leaf.children), ids=ids, logps=logps, terminal=terminal)
                if self.options.fast_reward:
                    child.total = shaped_reward(self._text(child, number), self.task.target_text)
                leaf.children.append(child)
                by_span[ids] = child
            child.visit(self.value[number], number)

    def end_round(self) -> None:
        """Finds out whether the tree is finished."""
        self.counts["rounds"] += 1
        best = self.select.best(self.root.children)
        exact = any(value >= EXACT for value in self.value)
        self.steady = self.steady + 1 if exact and best is self.best else 0
        self.best = best
        settled = self.options.settle is not None and self.steady >= self.options.settle
        self.finished = settled or all(node.terminal for node in self.root.downwards() if not node.children)

    def result(self) -> Drawn:
        """The answers, pairs and tree."""
        nodes = list(self.root.downwards())
        self.counts["nodes"] = len(nodes)
        siblings = [pair for node in nodes if (pair := self._pair(node)) is not None]
        return Drawn(answers=self.answers, siblings=siblings, tree=self._tree(nodes), counts=self.counts)

    def _span_end(self, leaf: SearchNode, generated: Generated) -> int:
        """Where the span of a child ends that begins behind `leaf`, in tokens of the answer."""
        whole = len(generated.token_ids)
        if leaf.depth + 1 >= self.options.depth:
            return whole
        answer = self.task.read(generated.token_ids)
        cuts: Iterable[int] = answer.cuts if self.options.cut == "call" else text_cuts(answer.pieces)
        behind = (cut for cut in cuts if cut > len(leaf.ids))
        return next(islice(behind, self.options.fragments - 1, None), whole)

    def _text(self, node: SearchNode, answer: int | None = None) -> str:
        """The text of a node's span as it stands in one of its answers, by default the first."""
        if node.parent is None:
            return ""
        generated = self.answers[node.answers[0] if answer is None else answer]
        return "".join(self.task.read(generated.token_ids).pieces[node.start : len(node.ids)])

    def _pair(self, node: SearchNode) -> SiblingPair | None:
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
        chosen = max(good.answers, key=self.value.__getitem__)
        rejected = min(bad.answers, key=self.value.__getitem__)
        if chosen == rejected:
            return None
        left, right = self.answers[chosen].token_ids, self.answers[rejected].token_ids
        start = next(
            (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
        )
        # One span may be the beginning of the other; then the token that differs is taken for the end.
        ends = [min(max(len(side.ids), start + 1), len(ids)) for side, ids in ((good, left), (bad, right))]
        search = {
            "values": [round(value, 6) for value in values],
            "visits": [good.visits, bad.visits],
            "level": node.depth,
        }
        spans = dict(zip(("chosen", "rejected"), ends, strict=True))
        return SiblingPair(chosen=chosen, rejected=rejected, provenance={"search": search, "spans": spans})

    def _tree(self, nodes: Sequence[SearchNode]) -> list[dict[str, Any]]:
        """The tree as plain data: a node a row, parents before children. `tokens` is how many its span has, `answers`
        the numbers of the answers that simulations through it gave.
        """
        number = {id(node): at for at, node in enumerate(nodes)}
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
