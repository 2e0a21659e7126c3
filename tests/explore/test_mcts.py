"""Tree search on a scripted engine: trees solved by hand, waves, pairs, and each defect of the released code by name.

Tokens are characters (`tests.fakes`), and every character is a part, so a span of one part is one character. The
defects are those found in iTool's released code; the numbers it gives for them are in the tests' names and docstrings.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import STOP, ScriptedEngine, decode, encode
from ttpa.errors import ConfigError
from ttpa.explore.mcts import MCTS
from ttpa.explore.sampler import Drawn, Sampler, Task
from ttpa.explore.search_tree import Node, Selection, overlap, parting, self_evaluation, shaped_reward, text_cuts
from ttpa.policy.engine import Engine, Generated, Ids

CONF = Path(__file__).resolve().parents[2] / "conf" / "sampler"
PRESETS = ("mcts", "mcts_as_released")


def options(name: str) -> dict[str, Any]:
    """The values of an option file, with those of the one it builds on."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    for parent in content.pop("defaults", ()):
        if parent != "_self_":
            content = options(parent) | content
    return content


def preset(name: str = "mcts", **changes: Any) -> MCTS:
    values = options(name)
    del values["_target_"]
    return MCTS(**{**values, "max_new_tokens": 40, **changes})


def task(
    values: Mapping[str, float] | Callable[[str], float] = lambda answer: 0.0,
    *,
    name: str = "t",
    prompt: str = "?",
    cuts: Callable[[Ids], Sequence[int]] = lambda ids: range(1, len(ids)),
    target: str = "",
) -> Task:
    """A sample whose answers are worth what `values` says of their text; its judge is shown "prompt!answer"."""
    worth = values if callable(values) else values.__getitem__
    return Task(
        sample_id=name,
        prompt=encode(prompt),
        value=lambda ids: worth(decode(ids)),
        cuts=cuts,
        judge=lambda ids: encode(f"{prompt}!{decode(ids)}"),
        letters=(65, 66, 67, 68),
        text=decode,
        target=target,
    )


def nodes(drawn: Drawn) -> dict[str, tuple[float, int, float, bool, list[int]]]:
    """Text from the root to a node -> (prior, visits, value, terminal, answers), in the tree's order."""
    path: dict[int | None, str] = {None: ""}
    found = {}
    for row in drawn.tree:
        path[row["id"]] = path[row["parent"]] + row["text"]
        assert path[row["id"]] not in found or row["parent"] is None, "two nodes say the same"
        found[path[row["id"]]] = (row["prior"], row["visits"], row["value"], row["terminal"], row["answers"])
    return found


def texts(drawn: Drawn) -> list[str]:
    return ["".join(map(chr, answer.token_ids)) for answer in drawn.answers]


def pairs(drawn: Drawn) -> list[tuple[str, str, int, int, int]]:
    said = texts(drawn)
    return [(said[p.chosen], said[p.rejected], p.start, p.chosen_end, p.rejected_end) for p in drawn.siblings]


# ---- a tree solved by hand ------------------------------------------------------------------------------------------

SCRIPT = {
    ("?", ""): ["apx$", "bqy$"],
    ("?", "a"): ["pz$", "rw$"],
    ("?", "b"): ["qy$", "sv$"],
    ("?", "bq"): ["y$", "t$"],
    ("?", "ar"): ["w$", "w$"],
}
CHANCES = {"a": 0.9, "b": 0.1, "p": 0.5, "r": 0.3, "q": 0.8, "s": 0.2, "y": 0.25, "t": 0.0625, "w": 0.36, "$": 1.0}
VALUES = {"apx": 0.2, "bqy": 0.6, "apz": 0.0, "arw": 0.4, "bsv": 1.0, "bqt": 0.0}


def by_hand(rounds: int, **changes: Any) -> tuple[Drawn, ScriptedEngine]:
    engine = ScriptedEngine(script=SCRIPT, chances=CHANCES)
    sampler = preset(width=2, depth=3, rounds=rounds, settle=None, **changes)
    (drawn,) = sampler.explore(engine, [task(VALUES)], "s")
    return drawn, engine


def test_puct_on_paper() -> None:
    """c = 1, width 2, depth 3, spans of one character; a score is Q + p sqrt(N of the parent) / (1 + n).

    1. The root: apx 0.2, bqy 0.6. N = 2; a: n 1, W 0.2; b: n 1, W 0.6.
    2. a 0.2 + 0.9 * 1.4142/2 = 0.836, b 0.6 + 0.1 * 0.7071 = 0.671: a. apz 0, arw 0.4. a: n 3, W 0.6.
    3. N = 4: a 0.2 + 0.9 * 2/4 = 0.65, b 0.6 + 0.1 * 2/2 = 0.7: b. bqy 0.6 again, bsv 1. b: n 3, W 2.2.
    4. N = 6: a 0.2 + 0.9 * 2.449/4 = 0.751, b 0.733 + 0.1 * 0.612 = 0.795: b; in it (N = 3) q 0.6 + 0.8 * 1.732/2 =
       1.293, s 1 + 0.2 * 0.866 = 1.173: bq. Level 3, the rest: bqy 0.6 again, bqt 0. q: n 3, W 1.2; b: n 5, W 2.8.
    5. N = 8: a 0.2 + 0.9 * 2.828/4 = 0.836, b 0.56 + 0.1 * 2.828/6 = 0.607: a; in it (N = 3) p 0.5 * 0.866 = 0.433,
       r 0.4 + 0.3 * 0.866 = 0.660: ar. arw 0.4 twice: one child, n 2. r: n 3, W 1.2; a: n 5, W 1.4.
    6. N = 10: a 0.28 + 0.9 * 3.162/6 = 0.754, b 0.56 + 0.1 * 3.162/6 = 0.613: a; in it (N = 5) p 0.5 * 2.236/2 =
       0.559, r 0.4 + 0.3 * 2.236/4 = 0.568: ar, arw, which is an end: one visit more, and no request.
    """
    drawn, engine = by_hand(6)
    assert [call.prefixes for call in engine.calls] == [[""], ["a"], ["b"], ["bq"], ["ar"]]
    assert texts(drawn) == ["apx$", "bqy$", "apz$", "arw$", "bsv$", "bqt$"]
    assert nodes(drawn) == {
        "": (1.0, 11, 0.418182, False, [0, 1, 2, 3, 4, 5]),
        "a": (0.9, 6, 0.3, False, [0, 2, 3]),
        "ap": (0.5, 1, 0.0, False, [2]),
        "ar": (0.3, 4, 0.4, False, [3]),
        "arw": (0.6, 3, 0.4, True, [3]),
        "b": (0.1, 5, 0.56, False, [1, 4, 5]),
        "bq": (0.8, 3, 0.4, False, [1, 5]),
        "bqy": (0.5, 1, 0.6, True, [1]),
        "bqt": (0.25, 1, 0.0, True, [5]),
        "bs": (0.2, 1, 1.0, False, [4]),
    }
    counts = {
        "rounds": 6,
        "requests": 5,
        "simulations": 10,
        "nodes": 10,
        "duplicates": 4,
        "generated": 8 + 6 + 6 + 4 + 4,
    }
    assert drawn.counts == counts
    assert [row["parent"] for row in drawn.tree] == [None, 0, 1, 1, 3, 0, 5, 6, 6, 5]
    assert [row["tokens"] for row in drawn.tree] == [0, 1, 1, 1, 2, 1, 1, 2, 2, 1], "the stop token is one of them"


@pytest.mark.parametrize(
    ("rounds", "visits"),
    [
        (1, {"": 2, "a": 1, "b": 1}),
        (2, {"": 4, "a": 3, "ap": 1, "ar": 1, "b": 1}),
        (3, {"": 6, "a": 3, "ap": 1, "ar": 1, "b": 3, "bq": 1, "bs": 1}),
        (5, {"": 10, "a": 5, "ap": 1, "ar": 3, "arw": 2, "b": 5, "bq": 3, "bqy": 1, "bqt": 1, "bs": 1}),
    ],
)
def test_visits_after_each_round_on_paper(rounds: int, visits: dict[str, int]) -> None:
    assert {path: row[1] for path, row in nodes(by_hand(rounds)[0]).items()} == visits


def test_pairs_on_paper() -> None:
    """After round 6. Root: b 0.56 against a 0.3, the best answer of b against the worst of a. a: r 0.4 against p 0.
    b: s 1 against q 0.4, whose worst is bqt. bq: y 0.6 against t 0, ends with the stop token. ar has one child.
    """
    drawn, _ = by_hand(6)
    assert pairs(drawn) == [
        ("bsv$", "apz$", 0, 1, 1),
        ("arw$", "apz$", 1, 2, 2),
        ("bsv$", "bqt$", 1, 2, 2),
        ("bqy$", "bqt$", 2, 4, 4),
    ]
    assert [pair.info for pair in drawn.siblings] == [
        {"values": [0.56, 0.3], "visits": [5, 6], "priors": [0.1, 0.9], "level": 0},
        {"values": [0.4, 0.0], "visits": [4, 1], "priors": [0.3, 0.5], "level": 1},
        {"values": [1.0, 0.4], "visits": [1, 3], "priors": [0.2, 0.8], "level": 1},
        {"values": [0.6, 0.0], "visits": [1, 1], "priors": [0.5, 0.25], "level": 2},
    ]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"min_gap": 0.26}, [0, 1, 2, 3]),
        ({"min_gap": 0.27}, [1, 2, 3]),
        ({"min_gap": 0.4}, [1, 2, 3]),
        ({"min_gap": 0.61}, []),
        ({"min_chosen": 0.4}, [0, 1, 2, 3]),
        ({"min_chosen": 0.56}, [0, 2, 3]),
        ({"min_chosen": 0.6}, [2, 3]),
        ({"min_chosen": 1.01}, []),
    ],
)
def test_a_pair_needs_a_gap_and_a_good_side(changes: dict[str, float], kept: list[int]) -> None:
    """Limits may be met exactly: 0.56 - 0.3 is a little less than 0.26 in floating point."""
    everything = pairs(by_hand(6)[0])
    assert pairs(by_hand(6, **changes)[0]) == [everything[at] for at in kept]


def test_answers_carry_their_tokens_log_probs_and_ends() -> None:
    """bsv came as "b" + "sv$": log-probs of the span on the way, then of the continuation."""
    answer = by_hand(6)[0].answers[4]
    assert answer.token_ids == [*encode("bsv"), STOP] and answer.finish == "stop"
    assert answer.logps == pytest.approx([math.log(p) for p in (0.1, 0.2, 0.5, 1.0)])
    assert answer.branches == []


def test_priors_are_the_geometric_mean_of_the_span_to_four_digits() -> None:
    """Spans of two characters: sqrt(0.9 * 0.5) = 0.67082 and sqrt(0.1 * 0.8) = 0.28284."""
    drawn, _ = by_hand(1, fragments=2)
    assert {path: row[0] for path, row in nodes(drawn).items()} == {"": 1.0, "ap": 0.6708, "bq": 0.2828}


# ---- selection ------------------------------------------------------------------------------------------------------


def grown(*shape: tuple[str, float, int, float]) -> Node:
    """A tree from (name of a node, prior, visits, W); names as in `Node.name`, parents first, "" for the root."""
    made: dict[str, Node] = {}
    for name, prior, visits, total in shape:
        above = made[name[:-2] if "." in name else ""] if name else None
        node = Node(
            parent=above,
            index=len(above.children) if above else 0,
            ids=(*above.ids, len(above.children)) if above else (),
            logps=(*above.logps, math.log(prior)) if above else (),
            visits=visits,
            total=total,
        )
        if above:
            above.children.append(node)
        made[name] = node
        assert node.name == name
    return made[""]


def selection(formula: str = "puct", values: str = "mean", c: float = 1.0) -> Selection:
    return Selection(formula=formula, values=values, c=c)


@pytest.mark.parametrize(
    ("rule", "scores"),
    [
        # N = 9; Q + c * p * 3 / (1 + n)
        (selection(), [1.2 / 4 + 0.5 * 3 / 5, 0.5 / 2 + 0.8 * 3 / 3]),
        (selection(c=0.1), [0.3 + 0.1 * 0.3, 0.25 + 0.1 * 0.8]),
        (selection(values="sum"), [1.2 + 0.3, 0.5 + 0.8]),
        # W / (n + 1) + c * p * sqrt(ln 9 / (n + 1)), ln 9 = 2.197225; the mean or sum of `values` has no say
        (selection("released"), [1.2 / 5 + 0.5 * math.sqrt(2.197225 / 5), 0.5 / 3 + 0.8 * math.sqrt(2.197225 / 3)]),
        (selection("released", "sum"), [0.24 + 0.331453, 0.166667 + 0.684647]),
        (selection("released", c=2.0), [0.24 + 0.662906, 0.166667 + 1.369294]),
    ],
)
def test_scores_on_paper(rule: Selection, scores: list[float]) -> None:
    root = grown(("", 1.0, 9, 2.0), ("0", 0.5, 4, 1.2), ("1", 0.8, 2, 0.5))
    assert [rule.score(child) for child in root.children] == pytest.approx(scores, abs=2e-6)


@pytest.mark.parametrize(
    ("rule", "scores"),
    [
        # as above with N = 10, and n = 5 for the first
        (selection(), [1.2 / 5 + 0.5 * 3.162278 / 6, 0.5 / 2 + 0.8 * 3.162278 / 3]),
        (selection("released"), [1.2 / 6 + 0.5 * math.sqrt(2.302585 / 6), 0.5 / 3 + 0.8 * math.sqrt(2.302585 / 3)]),
    ],
)
def test_scores_of_nodes_with_a_simulation_in_flight_on_paper(rule: Selection, scores: list[float]) -> None:
    root = grown(("", 1.0, 9, 2.0), ("0", 0.5, 4, 1.2), ("1", 0.8, 2, 0.5))
    root.children[0].hold(1)
    assert [rule.score(child) for child in root.children] == pytest.approx(scores, abs=2e-6)


def test_the_released_formula_takes_no_logarithm_of_nothing() -> None:
    root = grown(("", 1.0, 0, 0.0), ("0", 0.5, 0, -0.6))
    assert selection("released").score(root.children[0]) == -0.6
    root = grown(("", 1.0, 1, 0.0), ("0", 0.5, 0, -0.6))
    assert selection("released").score(root.children[0]) == -0.6


@pytest.mark.parametrize("formula", ["puct", "released"])
def test_ties_go_to_the_first_child_also_when_rounding_says_otherwise(formula: str) -> None:
    """0.1 + 0.2 is a little more than 0.3 in floating point."""
    assert 0.1 + 0.2 > 0.3
    root = grown(("", 1.0, 3, 1.0), ("0", 0.5, 1, 0.3), ("1", 0.5, 1, 0.1 + 0.2), ("2", 0.5, 1, 0.3))
    rule = selection(formula, c=0.0)
    assert rule.leaf(root) is rule.best(root.children) is rule.worst(root.children) is root.children[0]


def test_a_tie_of_value_and_exploration_goes_to_the_first_child() -> None:
    """0.3 with a prior that rounds to 0, and 0.1 + 0.2 * sqrt(4) / (1 + 1)."""
    root = grown(("", 1.0, 4, 1.0), ("0", 1e-9, 1, 0.3), ("1", 0.2, 1, 0.1))
    assert root.children[0].prior == 0.0 and selection().leaf(root) is root.children[0]


def test_best_and_worst_go_by_value_and_not_by_score_or_visits() -> None:
    """The first child has the sum (6 visits of 0.3), the second the mean (one of 0.8)."""
    root = grown(("", 1.0, 8, 2.7), ("0", 0.9, 6, 1.8), ("1", 0.1, 1, 0.8), ("2", 0.1, 1, 0.1))
    assert selection().best(root.children).index == 1 and selection().worst(root.children).index == 2
    assert selection(values="sum").best(root.children).index == 0


def test_virtual_loss_sends_a_wave_to_other_leaves_and_then_is_gone() -> None:
    """c = 1. Two branches, N = 6: 0.0 and 0.1 in the first (Q 0.8, n 4), 1 alone (Q 0.7, n 2); all priors 0.1.

    First 0 (0.8 + 0.1 * 2.449/5 = 0.849 against 0.7 + 0.0816 = 0.782) and in it 0.0 (0.9 against 0.7). In flight it
    counts as a visit of value 0: Q of 0 is 3.2 / 5 = 0.64, N = 7, so 0.64 + 0.1 * 2.646/6 = 0.684 against 0.788:
    1, though 0.1 could be had. Then 0 is the only way, and 0.1 the only leaf.
    """
    shape = [("", 1.0, 6, 4.6), ("0", 0.1, 4, 3.2), ("0.0", 0.1, 2, 1.8), ("0.1", 0.1, 2, 1.4), ("1", 0.1, 2, 1.4)]
    root, rule = grown(*shape), selection()
    taken = []
    while (leaf := rule.leaf(root)) is not None:
        leaf.hold(1)
        taken.append(leaf)
        if leaf.name == "0.0":
            assert rule.worth(root.children[0]) == 0.64 and rule.worth(leaf) == 0.6
    assert [leaf.name for leaf in taken] == ["0.0", "1", "0.1"]
    assert (root.tries, root.visits) == (9, 6) and not root.open
    for leaf in taken:
        leaf.hold(-1)
    assert all(node.pending == 0 for node in root.below()) and rule.leaf(root) is taken[0]


def test_a_leaf_in_flight_is_not_taken_again_however_good() -> None:
    root = grown(("", 1.0, 2, 1.0), ("0", 0.9, 1, 1.0), ("1", 0.1, 1, 0.0))
    root.children[0].hold(1)
    assert selection().leaf(root) is root.children[1]


# ---- waves ----------------------------------------------------------------------------------------------------------


def table(prompt: str, text: str) -> dict[str, float]:
    """A small language: what may follow depends on everything before it."""
    numbers = random.Random(f"{prompt}|{text}")
    weights = {char: numbers.random() + 0.05 for char in "ab=(" + ("$" if len(text) > 2 else "")}
    return {char: weight / sum(weights.values()) for char, weight in weights.items()}


def verdicts(prompt: str) -> list[float]:
    numbers = random.Random(prompt)
    return [numbers.random() / 4 for _ in range(4)]


def three_tasks() -> list[Task]:
    def worth(answer: str) -> float:
        return random.Random(answer).choice([0.0, 0.25, 0.5, 0.75])

    return [task(worth, name=name, prompt=name, target="a=b(") for name in "xyz"]


def language() -> ScriptedEngine:
    return ScriptedEngine(table=table, verdicts=verdicts)


MANY = [
    preset(max_new_tokens=12),
    preset(max_new_tokens=12, leaves=3, settle=None),
    preset(max_new_tokens=5, leaves=2, depth=5, width=4, settle=None),
    preset(max_new_tokens=12, value="self", c=0.3),
    preset(max_new_tokens=12, cut="fragments", fragments=2, distinct=False),
    preset("mcts_as_released", max_new_tokens=12),
    preset("mcts_as_released", max_new_tokens=12, leaves=2, rounds=9),
]


@pytest.mark.parametrize("sampler", MANY)
def test_a_wave_gives_each_tree_what_it_gives_alone_in_any_order(sampler: MCTS) -> None:
    tasks = three_tasks()
    together = sampler.explore(language(), tasks, "s")
    assert together == [sampler.explore(language(), [one], "s")[0] for one in tasks]
    assert together == sampler.explore(language(), tasks[::-1], "s")[::-1]
    assert len({str(drawn.tree) for drawn in together}) == 3


@pytest.mark.parametrize("sampler", MANY)
def test_equal_seeds_give_equal_trees_and_others_other_trees(sampler: MCTS) -> None:
    first, again, other = (sampler.explore(language(), three_tasks(), seed) for seed in ("s", "s", "t"))
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("sampler", MANY)
def test_every_node_has_what_its_own_simulations_and_its_children_bring(sampler: MCTS) -> None:
    """Visits: of an inner node, those of its children and of the simulation (or several) that made it."""
    for drawn in sampler.explore(language(), three_tasks(), "s"):
        rows = drawn.tree
        below: dict[int, list[dict[str, Any]]] = {row["id"]: [] for row in rows}
        for row in rows[1:]:
            assert row["parent"] < row["id"]
            below[row["parent"]].append(row)
        for row in rows:
            children = below[row["id"]]
            assert not (row["terminal"] and children)
            made = row["visits"] - sum(child["visits"] for child in children)
            assert made == 0 if row is rows[0] else made >= 1
            assert set(row["answers"]) >= {number for child in children for number in child["answers"]}
            assert (len(row["answers"]) == 1) or not row["terminal"]
        assert sum(child["visits"] for child in below[0]) == rows[0]["visits"] >= drawn.counts["simulations"]
        assert drawn.counts["simulations"] == sampler.width * drawn.counts["requests"]
        assert drawn.counts["simulations"] - drawn.counts["duplicates"] == len(drawn.answers)
        assert drawn.counts["nodes"] == len(rows)
        assert rows[0]["answers"] == list(range(len(drawn.answers)))


@pytest.mark.parametrize("sampler", MANY)
def test_pairs_part_at_the_first_token_that_differs_and_spans_are_not_empty(sampler: MCTS) -> None:
    found = 0
    for drawn in sampler.explore(language(), three_tasks(), "s"):
        for pair in drawn.siblings:
            left, right = (drawn.answers[number].token_ids for number in (pair.chosen, pair.rejected))
            assert left[: pair.start] == right[: pair.start] and left[pair.start] != right[pair.start]
            assert pair.start < pair.chosen_end <= len(left) and pair.start < pair.rejected_end <= len(right)
            assert pair.info["values"][0] - pair.info["values"][1] >= sampler.min_gap - 1e-9
            assert 0 <= pair.info["level"] < sampler.depth
            found += 1
    assert found


def test_one_call_of_the_engine_a_round_for_all_trees() -> None:
    """Three trees, five rounds: five calls, not fifteen; the first asks for the three roots."""
    engine = language()
    sampler = preset(max_new_tokens=12, settle=None, temperature=1.25, repetition_penalty=0.9)
    found = sampler.explore(engine, three_tasks(), "s")
    assert len(engine.calls) == 5 and engine.judged == []
    first = engine.calls[0]
    assert (first.prompts, first.prefixes, first.n) == (["x", "y", "z"], ["", "", ""], 3)
    assert sum(len(call.prompts) for call in engine.calls) == sum(drawn.counts["requests"] for drawn in found)
    for call in engine.calls:
        assert (call.sampling.temperature, call.sampling.repetition_penalty) == (1.25, 0.9)
        assert (call.sampling.top_p, call.sampling.rule) == (1.0, None)


def test_a_wave_asks_for_several_leaves_of_a_tree_and_for_each_once() -> None:
    """The root alone in the first round; then up to 3 of its leaves at once, all different."""
    engine = language()
    sampler = preset(max_new_tokens=12, settle=None, leaves=3)
    sampler.explore(engine, three_tasks()[:1], "s")
    assert [len(call.prefixes) for call in engine.calls][:3] == [1, 3, 3]
    assert all(len(set(call.prefixes)) == len(call.prefixes) for call in engine.calls)
    assert (sampler.n, sampler.wave_share, sampler.grows_trees) == (3, 9, True)


def test_seeds_name_tree_node_and_expansion_and_nothing_else() -> None:
    engine = ScriptedEngine(script=SCRIPT, chances=CHANCES)
    preset(width=2, rounds=6, settle=None).explore(engine, [task(VALUES, name="id-7")], "explore:0:1")
    assert [call.seeds for call in engine.calls] == [
        ["explore:0:1/id-7//0"],
        ["explore:0:1/id-7/0/0"],
        ["explore:0:1/id-7/1/0"],
        ["explore:0:1/id-7/1.0/0"],
        ["explore:0:1/id-7/0.1/0"],
    ]


def test_no_tasks_no_call() -> None:
    engine = language()
    assert preset().explore(engine, [], "s") == [] and engine.calls == []


def test_the_fake_and_the_sampler_are_what_they_stand_for() -> None:
    assert isinstance(language(), Engine)
    sampler: Sampler = preset()
    assert sampler.max_new_tokens == 40


# ---- ends of a search -----------------------------------------------------------------------------------------------


def settling(found: float, **changes: Any) -> int:
    """Rounds of a tree (c = 0, depth 4) whose best child stays a; round 2 finds an answer of this value."""
    script = {("?", ""): ["aaaa$", "bbbb$"], ("?", "a"): ["xxx$", "aaa$"]}
    script |= {("?", "ax"): ["xx$", "xx$"], ("?", "axx"): ["x$", "x$"]}
    engine = ScriptedEngine(script=script)
    sampler = preset(width=2, depth=4, c=0.0, **{"rounds": 7, **changes})
    (drawn,) = sampler.explore(engine, [task({"aaaa": 0.5, "bbbb": 0.4, "axxx": found})], "s")
    return drawn.counts["rounds"]


def test_an_exact_answer_and_an_unchanged_best_child_end_the_search() -> None:
    """It is there after round 2, when the best child has not changed: 1 round of calm, 2 after round 3."""
    assert settling(1.0, settle=1) == 2
    assert settling(1.0) == settling(1.0, settle=2) == 3
    assert settling(1.0, settle=3) == 4
    assert settling(1.0, settle=None) == 7


def test_no_exact_answer_no_early_end() -> None:
    assert settling(0.999, settle=1) == settling(0.999) == 7


def test_a_first_round_settles_nothing_since_there_was_no_best_child_before() -> None:
    engine = ScriptedEngine(script={("?", ""): ["aa$", "bb$"], ("?", "a"): ["a$", "b$"]})
    (drawn,) = preset(width=2, settle=1).explore(engine, [task(lambda answer: 1.0)], "s")
    assert drawn.counts["rounds"] == 2


def test_a_change_of_the_best_child_starts_the_count_again() -> None:
    """c = 0, depth 4. Means after each round:

    1. a 1.0, b 0.5: a is best, for the first time.
    2. a is looked into: 0 and 0.2, its mean 0.4. b (0.5) is best: changed.
    3. b: 0 and 0, its mean 0.167. a (0.4) is best: changed.
    4. a, of which ac 0 and ad 0.2, so ad: 0.4 and 0.4. a: 2.0 / 5 = 0.4 still: unchanged, 1 round.
    5. a again, ad (1.0 / 3): its two children 0.4 each, the first: 0.4, 0.4; a stays at 0.4: unchanged, 2 rounds.
    """
    script = {
        ("?", ""): ["aaaa$", "bbbb$"],
        ("?", "a"): ["c0$", "d2$"],
        ("?", "b"): ["c0$", "d0$"],
        ("?", "ad"): ["x4$", "y4$"],
        ("?", "adx"): ["4$", "4$"],
    }
    values = {"aaaa": 1.0, "bbbb": 0.5, "ac0": 0.0, "ad2": 0.2, "bc0": 0.0, "bd0": 0.0, "adx4": 0.4, "ady4": 0.4}
    engine = ScriptedEngine(script=script)
    (drawn,) = preset(width=2, depth=4, c=0.0, rounds=9).explore(engine, [task(values)], "s")
    assert [call.prefixes[0] for call in engine.calls] == ["", "a", "b", "ad", "adx"]
    assert drawn.counts["rounds"] == 5


def test_a_tree_of_ends_alone_is_finished_and_the_others_go_on() -> None:
    """Depth 1: whole answers, one round. A tree without cuts is finished too, while its neighbour is not."""
    engine = language()
    found = preset(depth=1, settle=None, max_new_tokens=12).explore(engine, three_tasks(), "s")
    assert len(engine.calls) == 1 and {drawn.counts["rounds"] for drawn in found} == {1}
    assert all(row["terminal"] for drawn in found for row in drawn.tree[1:])

    engine = language()
    whole = task(name="w", prompt="w", cuts=lambda ids: [])
    found = preset(settle=None, max_new_tokens=12).explore(engine, [whole, *three_tasks()[:1]], "s")
    assert [drawn.counts["rounds"] for drawn in found] == [1, 5]
    assert [call.prompts for call in engine.calls] == [["w", "x"], ["x"], ["x"], ["x"], ["x"]]


def test_an_end_that_is_selected_is_visited_again_without_a_request() -> None:
    """c = 0: the end (0.9) is selected in rounds 2 to 5; the other child (0.1) keeps the tree unfinished."""
    engine = ScriptedEngine(script={("?", ""): ["a$", "bb$"]})
    end_of_a = task({"a": 0.9, "bb": 0.1}, cuts=lambda ids: [1] if ids[0] == ord("b") else [])
    (drawn,) = preset(width=2, c=0.0, settle=None).explore(engine, [end_of_a], "s")
    assert len(engine.calls) == 1
    assert nodes(drawn) == {
        "": (1.0, 6, pytest.approx((5 * 0.9 + 0.1) / 6, abs=1e-6), False, [0, 1]),
        "a": (0.5, 5, 0.9, True, [0]),
        "b": (0.5, 1, 0.1, False, [1]),
    }
    assert (drawn.counts["rounds"], drawn.counts["requests"]) == (5, 1)


def test_answers_never_pass_the_limit_and_say_that_they_were_cut() -> None:
    """What a node gives of an answer counts."""
    endless = ScriptedEngine(table=lambda prompt, text: {"a": 0.5, "b": 0.5})
    sampler = preset(max_new_tokens=6, settle=None, leaves=2, depth=9)
    whole = task(name="w", prompt="w", cuts=lambda ids: [4])
    for drawn in sampler.explore(endless, [*three_tasks(), whole], "s"):
        assert {(len(answer.token_ids), len(answer.logps), answer.finish) for answer in drawn.answers} == {
            (6, 6, "length")
        }
    assert {call.sampling.max_new_tokens for call in endless.calls} == {6}


def test_a_stop_at_the_limit_is_a_stop_and_one_behind_it_is_not() -> None:
    """Limit 5. "w" begins again at its root's child of 1 token, which leaves 4; "v" at one of 3, which leaves 2."""
    script = {
        ("w", ""): ["abcde", "fbcd$"],
        ("v", ""): ["abcde", "abcd$"],
        ("w", "a"): ["1234$", "123$"],
        ("v", "abc"): ["12$", "1$"],
    }
    tasks = [task(name="w", prompt="w", cuts=lambda ids: [1]), task(name="v", prompt="v", cuts=lambda ids: [3])]
    sampler = preset(width=2, rounds=2, max_new_tokens=5)
    engine = ScriptedEngine(script=script)
    w, v = sampler.explore(engine, tasks, "s")
    assert [(text, one.finish) for text, one in zip(texts(w), w.answers, strict=True)] == [
        ("abcde", "length"), ("fbcd$", "stop"), ("a1234", "length"), ("a123$", "stop"),
    ]  # fmt: skip
    assert [(text, one.finish) for text, one in zip(texts(v), v.answers, strict=True)] == [
        ("abcde", "length"), ("abcd$", "stop"), ("abc12", "length"), ("abc1$", "stop"),
    ]  # fmt: skip


# ---- spans and pairs ------------------------------------------------------------------------------------------------


def test_a_span_is_so_many_parts_and_on_the_last_level_the_rest() -> None:
    """Cuts 2, 3, 5, 6 of "abcdefg$"; from a beginning of 3 tokens those behind it count."""
    spans = {}
    for fragments in (1, 2, 3, 4, 5):
        for depth in (1, 2):
            script = {
                ("?", ""): ["abcdefg$", "abcdefg$"],
                ("?", "abc"): ["defg$", "defg$"],
                ("?", "ab"): ["cdefg$"] * 2,
            }
            script |= {("?", path): ["g$"] * 2 for path in ("abcdef",)} | {("?", "abcde"): ["fg$", "fg$"]}
            sampler = preset(width=2, rounds=2, depth=depth + 1, fragments=fragments)
            one = task(cuts=lambda ids: [2, 3, 5, 6])
            (drawn,) = sampler.explore(ScriptedEngine(script=script), [one], "s")
            spans[fragments, depth + 1] = list(nodes(drawn))[1:]
    assert spans[1, 2] == ["ab", "abcdefg"] and spans[1, 3] == ["ab", "abc"]
    assert spans[2, 2] == ["abc", "abcdefg"] and spans[2, 3] == ["abc", "abcdef"]
    assert spans[3, 3] == ["abcde", "abcdefg"] and spans[4, 3] == ["abcdef", "abcdefg"]
    assert spans[5, 2] == spans[5, 3] == ["abcdefg"]


def test_equal_spans_are_one_child_whose_value_is_the_mean() -> None:
    engine = ScriptedEngine(script={("?", ""): ["a0$", "b5$", "a9$"]}, chances={"a": 0.7})
    one = task({"a0": 0.0, "b5": 0.5, "a9": 0.9})
    (drawn,) = preset(rounds=1).explore(engine, [one], "s")
    assert nodes(drawn) == {
        "": (1.0, 3, pytest.approx(1.4 / 3, abs=1e-6), False, [0, 1, 2]),
        "a": (0.7, 2, 0.45, False, [0, 2]),
        "b": (0.5, 1, 0.5, False, [1]),
    }
    assert drawn.siblings == [], "0.5 and 0.45 are no 0.1 apart"
    third = task({"a0": 0.0, "b5": 0.0, "a9": 1 / 3})
    (drawn,) = preset(rounds=1).explore(engine, [third], "s")
    assert drawn.siblings[0].info["values"] == [0.166667, 0.0]
    (drawn,) = preset(rounds=1, min_gap=0.05).explore(engine, [one], "s")
    assert pairs(drawn) == [("b5$", "a0$", 0, 1, 1)]
    (drawn,) = preset(rounds=1, distinct=False).explore(engine, [one], "s")
    assert [(row["text"], row["visits"], row["value"]) for row in drawn.tree[1:]] == [
        ("a", 1, 0.0), ("b", 1, 0.5), ("a", 1, 0.9),
    ]  # fmt: skip


def test_copies_of_a_span_are_no_pair_of_each_other() -> None:
    """As the release keeps them; their values differ by the luck of what came later."""
    engine = ScriptedEngine(script={("?", ""): ["a0$", "a9$"]})
    (drawn,) = preset(rounds=1, width=2, distinct=False).explore(engine, [task({"a0": 0.0, "a9": 0.9})], "s")
    assert len(drawn.tree) == 3 and drawn.siblings == []


def test_spans_that_share_tokens_part_where_their_answers_do() -> None:
    """Children "ab" and "ac": the first token is the same in both. The ends are those of the spans."""
    engine = ScriptedEngine(script={("?", ""): ["abx$", "acx$"]})
    (drawn,) = preset(rounds=1, width=2, fragments=2).explore(engine, [task({"abx": 0.2, "acx": 1.0})], "s")
    assert pairs(drawn) == [("acx$", "abx$", 1, 2, 2)]


def test_a_span_that_begins_another_gets_the_token_that_differs() -> None:
    """Children "a" and "abb": the answers part at the third token, behind the end of the first span."""
    engine = ScriptedEngine(script={("?", ""): ["abx$", "abb$"]})

    def found(x: float, b: float) -> list[tuple[str, str, int, int, int]]:
        one = task({"abx": x, "abb": b}, cuts=lambda ids: [1] if decode(ids) == "abx" else [])
        (drawn,) = preset(rounds=1, width=2).explore(engine, [one], "s")
        assert [row["text"] for row in drawn.tree[1:]] == ["a", "abb"]
        return pairs(drawn)

    assert found(1.0, 0.2) == [("abx$", "abb$", 2, 3, 4)]
    assert found(0.2, 1.0) == [("abb$", "abx$", 2, 4, 3)]


def test_an_answer_is_no_pair_of_itself() -> None:
    """Of "a" and "abx", "a" leads to abx as well. Sums: a 0.4 + 0.5 + 0.5, abx 0.5."""
    script = {("?", ""): ["acx$", "abx$"], ("?", "a"): ["bx$", "bx$"]}
    one = task({"acx": 0.4, "abx": 0.5}, cuts=lambda ids: [1] if decode(ids) == "acx" else [])
    sampler = preset(width=2, rounds=2, values="sum")
    (drawn,) = sampler.explore(ScriptedEngine(script=script, chances={"a": 0.9, "b": 0.01, "x": 0.01}), [one], "s")
    found = [(row["text"], row["value"], row["answers"]) for row in drawn.tree[1:]]
    assert found == [("a", 1.4, [0, 1]), ("bx", 1.0, [1]), ("abx", 0.5, [1])]
    assert drawn.siblings == []


def test_the_text_of_a_span_is_what_it_adds_to_the_answer() -> None:
    """Here a text loses its leading spaces, as those of some tokenizers do: " b" alone would read "b"."""
    script = {("?", ""): ["a b c$", "a d e$"], ("?", "a"): [" b c$", " d e$"]}
    one = task(cuts=lambda ids: [1, 3])
    spaced = Task(
        sample_id="t", prompt=one.prompt, value=one.value, cuts=one.cuts, text=lambda ids: decode(ids).lstrip()
    )
    (drawn,) = preset(width=2, rounds=2).explore(ScriptedEngine(script=script), [spaced], "s")
    assert [row["text"] for row in drawn.tree] == ["", "a", " b", " d"]


@pytest.mark.parametrize(
    ("left", "right", "shared"), [("abc", "aby", 2), ("abc", "xbc", 0), ("ab", "abc", 2), ("", "a", 0), ("ab", "ab", 2)]
)
def test_parting(left: str, right: str, shared: int) -> None:
    assert parting(encode(left), encode(right)) == parting(encode(right), encode(left)) == shared


def test_the_best_answer_of_a_side_is_the_first_of_equals() -> None:
    engine = ScriptedEngine(script={("?", ""): ["a1$", "a2$", "b1$", "b2$"]})
    one = task({"a1": 0.9, "a2": 0.9, "b1": 0.1, "b2": 0.1})
    (drawn,) = preset(rounds=1, width=4).explore(engine, [one], "s")
    assert pairs(drawn) == [("a1$", "b1$", 0, 1, 1)]


# ---- fragments of text ----------------------------------------------------------------------------------------------


def pieces(*tokens: str) -> tuple[range, Callable[[Ids], str]]:
    """Token ids 0, 1, ... and the function that says their text."""
    return range(len(tokens)), lambda ids: "".join(tokens[token] for token in ids)


@pytest.mark.parametrize(
    ("tokens", "cuts"),
    [
        # behind "(" 3, "=" 5, ", " 8 (inside a token: at its end), "=" 10
        (("[f(", "a=", "1,", " b", "=2)", "]"), [1, 2, 4, 5]),
        (("f", "(", "a", "=", "1", ", ", "b", "=", "2", ")"), [2, 4, 6, 8]),
        (("(=(", "x"), [1]),  # three ends in one token
        (("f(a=1)",), []),  # the whole is no cut
        (("a, ", "b. "), [1]),  # nor is an end at the end, without a stop token
        (("a, ", "b. ", ""), [1, 2]),
        (("Yes. ", "No.", "3.5,", "x"), [1]),  # a point or a comma alone is none
        (("", "", "(", "", "x"), [3]),
        ((), []),
        (("", ""), []),
    ],
)
def test_fragments_end_where_the_release_cuts_moved_to_the_ends_of_tokens(
    tokens: tuple[str, ...], cuts: list[int]
) -> None:
    ids, text = pieces(*tokens)
    assert list(text_cuts(ids, text)) == cuts
    for start in range(len(tokens)):
        assert list(text_cuts(ids, text, start)) == [cut for cut in cuts if cut > start]


def test_fragments_agree_with_a_plain_search_and_read_few_texts() -> None:
    numbers = random.Random(3)
    for _ in range(200):
        tokens = ["".join(numbers.choices("ab.,=( ", k=numbers.randint(0, 3))) for _ in range(numbers.randint(0, 12))]
        ids, text = pieces(*tokens)
        whole = "".join(tokens)
        ends = [
            at + len(mark) for at in range(len(whole)) for mark in (". ", ", ", "=", "(") if whole.startswith(mark, at)
        ]
        places = {next(count for count in range(len(ids) + 1) if len(text(ids[:count])) >= end) for end in ends}
        assert list(text_cuts(ids, text)) == sorted(place for place in places if place < len(ids))
    calls = 0

    def counted(ids: Ids) -> str:
        nonlocal calls
        calls += 1
        return "a=" * len(ids)

    assert next(text_cuts(range(1000), counted, 500)) == 501
    assert calls < 20


def test_cut_fragments_looks_at_the_text_and_not_at_calls() -> None:
    def never(ids: Ids) -> Sequence[int]:
        raise AssertionError("asked for the parts of a call")

    engine = ScriptedEngine(script={("?", ""): ["f(a=1)$", "g(a=1)$"]})
    (drawn,) = preset(rounds=1, width=2, cut="fragments").explore(engine, [task(cuts=never)], "s")
    assert list(nodes(drawn)) == ["", "f(", "g("]
    (drawn,) = preset(rounds=1, width=2, cut="fragments", fragments=2).explore(engine, [task(cuts=never)], "s")
    assert list(nodes(drawn)) == ["", "f(a=", "g(a="]


def test_fragments_are_counted_from_the_leaf() -> None:
    """c = 0: the root gives "f(" and "g(", and f( "a=" and "b="; then the rest, of the last level."""
    script = {("?", ""): ["f(a=1, b=2)$", "g(a=1)$"], ("?", "f("): ["a=1)$", "b=2)$"], ("?", "f(a="): ["1)$", "2)$"]}
    values = {"f(a=1, b=2)": 0.6, "g(a=1)": 0.5, "f(a=1)": 0.8, "f(b=2)": 0.7, "f(a=2)": 0.4}
    sampler = preset(width=2, rounds=3, cut="fragments", c=0.0)
    (drawn,) = sampler.explore(ScriptedEngine(script=script), [task(values)], "s")
    assert list(nodes(drawn)) == ["", "f(", "f(a=", "f(a=1)", "f(a=2)", "f(b=", "g("]


# ---- self-evaluation ------------------------------------------------------------------------------------------------


def test_judge_parser_each_letter_has_its_own_worth() -> None:
    """The released parser gives 0.5, 0.275, 0.5 and -0.25 for A, B, C and D: "Fair" like "Excellent"."""
    certain = [[0.0 if place == letter else -math.inf for place in range(4)] for letter in range(4)]
    assert [self_evaluation(row) for row in certain] == [0.25, 0.025, -0.25, -0.5]


def test_the_four_letters_share_out_what_other_tokens_got() -> None:
    """0.2, 0.1, 0.1 and 0.1 are 0.4, 0.2, 0.2 and 0.2: (0.4 + 0.02 - 0.2 - 0.4) / 4 = -0.045."""
    assert self_evaluation([math.log(p) for p in (0.2, 0.1, 0.1, 0.1)]) == -0.045
    assert self_evaluation([math.log(p) - 900 for p in (0.2, 0.1, 0.1, 0.1)]) == -0.045, "nothing underflows"
    assert self_evaluation([math.log(p) for p in (0.5, 0.3, 0.1, 0.1)]) == round((0.5 + 0.03 - 0.1 - 0.2) / 4, 4)


def test_all_new_answers_of_all_trees_are_judged_in_one_call_and_each_once() -> None:
    """Two equal answers in one round, and one again in the next, are one question."""
    script = {("x", ""): ["a1$", "a1$"], ("y", ""): ["b1$", "b2$"], ("x", "a"): ["1$", "2$"], ("y", "b"): ["1$", "3$"]}
    worth = {
        "x!a1": [1, 0, 0, 0],
        "y!b1": [0, 1, 0, 0],
        "y!b2": [0, 0, 1, 0],
        "x!a2": [0, 0, 0, 1],
        "y!b3": [1, 0, 0, 0],
    }
    engine = ScriptedEngine(script=script, verdicts=worth.__getitem__)

    def refuse(answer: str) -> float:
        raise AssertionError("the target was asked")

    tasks = [task(refuse, name=name, prompt=name) for name in "xy"]
    x, y = preset(width=2, rounds=2, value="self").explore(engine, tasks, "s")
    assert engine.judged == [["x!a1", "y!b1", "y!b2"], ["x!a2", "y!b3"]]
    assert engine.judged_tokens == ["ABCD", "ABCD"]
    assert nodes(x)["a"] == (0.5, 4, pytest.approx((0.25 * 3 - 0.5) / 4), False, [0, 1])
    assert nodes(y)["b"] == (0.5, 4, pytest.approx((0.025 * 2 - 0.25 + 0.25) / 4, abs=1e-6), False, [0, 1, 2])


def test_self_evaluation_settles_nothing_since_no_answer_is_known_to_be_exact() -> None:
    engine = ScriptedEngine(table=table, verdicts=lambda prompt: [1.0, 0.0, 0.0, 0.0])
    (drawn,) = preset(value="self", max_new_tokens=12, settle=1).explore(engine, three_tasks()[:1], "s")
    assert drawn.counts["rounds"] == 5


def test_a_model_without_the_letters_cannot_judge() -> None:
    one = task()
    mute = Task(sample_id="t", prompt=one.prompt, value=one.value, cuts=one.cuts, judge=one.judge, letters=None)
    unasked = Task(sample_id="t", prompt=one.prompt, value=one.value, cuts=one.cuts, judge=None, letters=one.letters)
    for other in (mute, unasked):
        with pytest.raises(ConfigError, match=r"^sampler\.value=self: .*token for each of A, B, C, D\. Use target"):
            preset(value="self").explore(language(), [one, other], "s")
    assert preset(depth=1, max_new_tokens=12).explore(language(), [mute], "s")


# ---- the released preset --------------------------------------------------------------------------------------------


def test_the_released_preset_on_paper() -> None:
    """Width 2, depth 2, spans of two fragments, all priors 0.5; W begins with the shaped reward of the span.

    1. The root: f(a=1, b=2) judged A, 0.25; g(a=1, b=2) judged D, -0.5. Spans "[f(a=" and "[g(a=": no word of the
       target, no ")]" where it has one: -0.5 - 0.1 = -0.6. W: f -0.35, g -1.1.
    2. N = 2: f -0.35/2 + 0.5 sqrt(ln 2 / 2) = 0.119, g -0.55 + 0.294 = -0.256: f. Judged A and C: 0.25, -0.25. The
       rests "1, b=2)]" and "2, b=2)]" share one of two words with the target and have ")]": 0.5 - 0.5 + 0.1.
       W: 0.35 and -0.15; f -0.35 + 0.25 - 0.25 = -0.35, n 3.
    3. N = 4: f -0.35/4 + 0.5 sqrt(ln 4 / 4) = 0.207, g -0.55 + 0.5 sqrt(ln 4 / 2) = -0.134: f; in it (N = 3) 0.35/2 +
       0.371 against -0.15/2 + 0.371: the first, an end. W: 0.6, f -0.1, n 4, root 0 (no shaped reward goes up), n 5.
    """
    script = {("?", ""): ["[f(a=1, b=2)]$", "[g(a=1, b=2)]$"], ("?", "[f(a="): ["1, b=2)]$", "2, b=2)]$"]}
    letters = {"?![f(a=1, b=2)]": 0, "?![g(a=1, b=2)]": 3, "?![f(a=2, b=2)]": 2}
    engine = ScriptedEngine(script=script, verdicts=lambda prompt: [float(letters[prompt] == at) for at in range(4)])
    sampler = preset("mcts_as_released", width=2, depth=2, rounds=3)
    (drawn,) = sampler.explore(engine, [task(target="[f(a=1, b=2)]")], "s")
    assert nodes(drawn) == {
        "": (1.0, 5, 0.0, False, [0, 1, 2]),
        "[f(a=": (0.5, 4, -0.1, False, [0, 2]),
        "[f(a=1, b=2)]": (0.5, 2, 0.6, True, [0]),
        "[f(a=2, b=2)]": (0.5, 1, -0.15, True, [2]),
        "[g(a=": (0.5, 1, -1.1, False, [1]),
    }
    assert pairs(drawn) == [
        ("[f(a=1, b=2)]$", "[g(a=1, b=2)]$", 1, 5, 5),
        ("[f(a=1, b=2)]$", "[f(a=2, b=2)]$", 5, 14, 14),
    ]
    assert drawn.siblings[0].info["values"] == [-0.1, -1.1]
    assert engine.calls[0].sampling.repetition_penalty == 0.75 and engine.calls[0].sampling.temperature == 1.5


def test_the_two_formulas_look_into_different_children() -> None:
    """a 0.4 with prior 0.9, b 1.0 with 0.1, N = 2, n = 1. puct: 0.4 + 0.9 * 0.707 = 1.036 and 1.071: b; released:
    0.4/2 + 0.9 sqrt(ln 2 / 2) = 0.730 and 0.5 + 0.1 * 0.589 = 0.559: a.
    """

    def looked_into(formula: str) -> list[str]:
        script = {("?", ""): ["ax$", "bx$"], ("?", "a"): ["x$", "x$"], ("?", "b"): ["x$", "x$"]}
        engine = ScriptedEngine(script=script, chances={"a": 0.9, "b": 0.1})
        preset(width=2, rounds=2, selection=formula).explore(engine, [task({"ax": 0.4, "bx": 1.0})], "s")
        return [prefix for call in engine.calls for prefix in call.prefixes]

    assert (looked_into("puct"), looked_into("released")) == (["", "b"], ["", "a"])


def test_the_released_preset_accepts_chosen_spans_worth_a_little_less_than_nothing() -> None:
    def found(a: float, b: float, **changes: Any) -> int:
        engine = ScriptedEngine(script={("?", ""): ["a$", "b$"]})
        values = {"value": "target", "fast_reward": False, "width": 2, "depth": 1, **changes}
        (drawn,) = preset("mcts_as_released", **values).explore(engine, [task({"a": a, "b": b})], "s")
        return len(drawn.siblings)

    assert [found(-0.3, -0.5), found(-0.31, -0.5), found(-0.3, -0.39)] == [1, 0, 0]
    assert found(-0.3, -0.5, min_chosen=0.0) == 0


TARGET = '[GetWeather(city="Paris", unit="C"), GetTime(zone="CET")]'
WRONG_VALUE = '[GetWeather(city="Rome", unit="C"), GetTime(zone="CET")]'
WRONG_ORDER = '[GetTime(zone="CET"), GetWeather(city="Paris", unit="C")]'
DELETES = "[DeleteAll(x=1)]"


def test_shaped_reward_carries_no_information_and_mcts_has_none() -> None:
    """In the release -0.6 for every span of the right call, a wrong value, a wrong order and another call alike, and
    -0.4 for the last. So in the released preset; in mcts the spans of exact and wrong answers are worth their answers.
    """
    for answer in (TARGET, WRONG_VALUE, WRONG_ORDER, DELETES):
        # Two fragments a span; the words of the release's spans hold spaces that the policy did not write.
        rewards = [shaped_reward(span, TARGET) for span in (answer.replace("=", "= ").replace("(", "( ")).split()]
        assert rewards[0] == pytest.approx(-0.6)
        assert rewards[-1] == pytest.approx(-0.4)
    assert shaped_reward("[GetWeather(city=", TARGET) == shaped_reward("[DeleteAll(x=", TARGET) == -0.6
    assert shaped_reward(")]", "f") == shaped_reward("x", "f)]") == -0.6
    assert shaped_reward("f", "f") == shaped_reward("f a", "f b c)]") + 0.2 + 0.5 == pytest.approx(0.6)

    def first_level(name: str) -> list[float]:
        script = {("?", ""): [f"{answer}$" for answer in (TARGET, WRONG_VALUE, WRONG_ORDER, DELETES)]}
        changes = {"value": "target", "width": 4, "rounds": 1, "distinct": False, "max_new_tokens": 99}
        one = task(lambda answer: float(answer == TARGET), target=TARGET)
        (drawn,) = preset(name, **changes).explore(ScriptedEngine(script=script), [one], "s")
        return [row["value"] for row in drawn.tree[1:]]

    assert first_level("mcts") == [1.0, 0.0, 0.0, 0.0]
    assert first_level("mcts_as_released") == pytest.approx([1.0 - 0.6, -0.6, -0.6, -0.6])


# ---- the defects of the released code, one by one -------------------------------------------------------------------


class Noted(ScriptedEngine):
    """Keeps what it drew: (prompt, prefix, seed, whole answers of at most 12 tokens)."""

    def generate(self, *asked: Any, **named: Any) -> list[list[Generated]]:
        found = super().generate(*asked, **named)
        self.drawn = getattr(self, "drawn", [])
        call = self.calls[-1]
        for prompt, prefix, seed, answers in zip(call.prompts, call.prefixes, call.seeds, found, strict=True):
            whole = [(*encode(prefix), *one.token_ids)[:12] for one in answers]
            self.drawn.append((prompt, prefix, seed, whole))
        return found


def noted(name: str) -> Iterator[tuple[Noted, list[Drawn]]]:
    for seed in range(5):
        engine = Noted(table=table, verdicts=verdicts)
        yield engine, preset(name, max_new_tokens=12, settle=None).explore(engine, three_tasks(), str(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_duplicate_root_expansion_no_node_is_expanded_twice_and_no_seed_is_used_twice(name: str) -> None:
    """The release expands every root twice with one seed: a quarter of its requests."""
    for engine, found in noted(name):
        seeds = [seed for _, _, seed, _ in engine.drawn]
        assert len(set(seeds)) == len(seeds) == sum(drawn.counts["requests"] for drawn in found)
        for prompt in "xyz":
            asked = [prefix for one, prefix, _, _ in engine.drawn if one == prompt]
            assert asked.count("") == 1
            if name == "mcts":
                assert len(set(asked)) == len(asked), "without copies of children, no question is asked twice"


@pytest.mark.parametrize("name", PRESETS)
def test_simulate_repeating_itself_every_completion_drawn_is_a_simulation_and_an_answer(name: str) -> None:
    """In the release a simulation asks the same twice, joins the two, and drops 5 of 6 completions."""
    for engine, found in noted(name):
        for prompt, drawn in zip("xyz", found, strict=True):
            made = [answer for one, _, _, answers in engine.drawn if one == prompt for answer in answers]
            assert len(made) == drawn.counts["simulations"]
            assert [tuple(answer.token_ids) for answer in drawn.answers] == list(dict.fromkeys(made))
            assert drawn.counts["duplicates"] == len(made) - len(set(made))


@pytest.mark.parametrize("name", PRESETS)
def test_truncated_targets_both_sides_of_a_pair_are_whole_answers(name: str) -> None:
    """In the release each side ends behind a span, and the trainer adds the end of the turn there."""
    for _, found in noted(name):
        for drawn in found:
            for answer in drawn.answers:
                assert (answer.token_ids[-1] == STOP) == (answer.finish == "stop")
                assert answer.finish == "stop" or len(answer.token_ids) == 12
                assert STOP not in answer.token_ids[:-1]
            assert {number for pair in drawn.siblings for number in (pair.chosen, pair.rejected)} <= set(
                range(len(drawn.answers))
            )


@pytest.mark.parametrize("name", PRESETS)
def test_inserted_spaces_every_prefix_is_the_beginning_of_an_answer_the_policy_wrote(name: str) -> None:
    """In the release spans are joined with spaces, and children continue a text that the policy never wrote."""
    for engine, _ in noted(name):
        written: dict[str, list[tuple[int, ...]]] = {prompt: [()] for prompt in "xyz"}
        for prompt, prefix, _, answers in engine.drawn:
            assert any(answer[: len(prefix)] == encode(prefix) for answer in written[prompt])
            written[prompt] += answers


def test_sum_instead_of_mean_many_visits_do_not_make_a_child_better() -> None:
    """c = 0. a 0.5; b 0.6 is looked into and gives 0.1 twice: a mean of 0.267, and a sum of 0.8."""
    script = {("?", ""): ["ax$", "bx$"], ("?", "b"): ["y$", "z$"]}
    values = {"ax": 0.5, "bx": 0.6, "by": 0.1, "bz": 0.1}

    def root_pair(**changes: Any) -> tuple[str, str, int, int, int]:
        sampler = preset(width=2, rounds=2, c=0.0, **changes)
        return pairs(sampler.explore(ScriptedEngine(script=script), [task(values)], "s")[0])[0]

    assert root_pair() == ("ax$", "by$", 0, 1, 1)
    assert root_pair(values="sum") == ("bx$", "ax$", 0, 1, 1)


def test_spans_end_with_their_answers_even_with_an_empty_one() -> None:
    """Which no engine gives: it draws one token at least."""
    engine = ScriptedEngine(script={("?", ""): ["", "ab$"]})
    (drawn,) = preset(width=2, rounds=1).explore(engine, [task({"": 1.0, "ab": 0.0})], "s")
    assert pairs(drawn) == [("", "ab$", 0, 0, 1)]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("answer", ["$", " $", "  ", ""])
def test_empty_text_is_no_division_by_zero(name: str, answer: str) -> None:
    """In the release one span without a word loses all pairs of its tree."""
    assert overlap("", "a b") == overlap("a", "") == overlap(" ", "a") == 0.0
    assert shaped_reward("", TARGET) == pytest.approx(-0.6)
    script = {("?", ""): [answer, "a(b=c$"]}
    engine = ScriptedEngine(script=script, verdicts=lambda prompt: [float(prompt == "?!a(b=c"), 0, 0, 1e-6])
    one = task(lambda said: float(said == "a(b=c"), target=TARGET)
    (drawn,) = preset(name, width=2, rounds=1, min_chosen=-1.0).explore(engine, [one], "s")
    ((chosen, rejected, start, chosen_end, rejected_end),) = pairs(drawn)
    assert (chosen, rejected, start) == ("a(b=c$", answer, 0)
    assert chosen_end <= len(chosen) and rejected_end <= len(answer)


def test_overlap_limit_removing_fine_grained_pairs_mcts_keeps_them() -> None:
    """22 words that differ in one: 21 / 22 = 0.9545 are shared, over 0.95. With 20, 19 / 20 = 0.95 is not over it."""

    def found(name: str, words: int, **changes: Any) -> int:
        right = " ".join(f"k{at}=1" for at in range(words))
        wrong = right.removesuffix("1") + "2"
        script = {("?", ""): [f"{right}$", f"{wrong}$"]}
        sampler = preset(name, width=2, depth=1, max_new_tokens=999, value="target", **changes)
        one = task({right: 1.0, wrong: 0.0}, target=right)
        return len(sampler.explore(ScriptedEngine(script=script), [one], "s")[0].siblings)

    assert [found("mcts", words) for words in (20, 22)] == [1, 1]
    assert [found("mcts_as_released", words) for words in (20, 22)] == [1, 0]
    assert found("mcts_as_released", 22, overlap_limit=None) == found("mcts", 20, overlap_limit=0.95) == 1
    assert found("mcts", 22, overlap_limit=0.95) == 0


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [("a b c", "c d", 0.5), ("c d", "a b c", 0.5), ("a a a", "a b", 1.0), ("a", "b", 0.0), ("x= 1, y=", "x= 2,", 0.5)],
)
def test_overlap_is_a_share_of_the_words_of_the_poorer_side(left: str, right: str, share: float) -> None:
    assert overlap(left, right) == share


def test_overlap_of_a_pair_is_that_of_its_spans_and_not_of_the_whole_answers() -> None:
    """ "a " and "b " share no word; what comes after them is the same."""
    script = {("?", ""): ["a  q w e r t$", "b  q w e r t$"]}
    one = task({"a  q w e r t": 1.0, "b  q w e r t": 0.0}, cuts=lambda ids: [2])
    sampler = preset(width=2, rounds=1, overlap_limit=0.0)
    assert len(sampler.explore(ScriptedEngine(script=script), [one], "s")[0].siblings) == 1
    script = {("?", ""): ["q w a$", "q w a$"], ("?", "q w "): ["a$", "b$"]}
    one = task({"q w a": 1.0, "q w b": 0.0}, cuts=lambda ids: [4])
    sampler = preset(width=2, rounds=2, overlap_limit=0.0)
    assert len(sampler.explore(ScriptedEngine(script=script), [one], "s")[0].siblings) == 1, "nor of what comes before"


def test_no_dedup_copies_of_a_child_are_kept_by_the_released_preset_alone() -> None:
    script = {("?", ""): ["f(a=1$", "f(a=1$", "f(a=2$"]}
    trees = []
    for name in PRESETS:
        sampler = preset(name, rounds=1, value="target", fast_reward=False, cut="fragments", fragments=2)
        (drawn,) = sampler.explore(ScriptedEngine(script=script), [task(lambda answer: 0.5)], "s")
        assert (len(drawn.answers), drawn.counts["duplicates"]) == (2, 1)
        trees.append([(row["text"], row["visits"]) for row in drawn.tree])
    assert trees == [[("", 3), ("f(a=", 3)], [("", 3), ("f(a=", 1), ("f(a=", 1), ("f(a=", 1)]]


def test_words_for_tokens_the_length_of_an_answer_is_counted_in_tokens() -> None:
    """The release takes a fourth of the words for the count of tokens, and never stops in time."""
    engine = ScriptedEngine(table=lambda prompt, text: {"a": 1.0})
    (drawn,) = preset(max_new_tokens=7, depth=9, settle=None).explore(engine, [task()], "s")
    assert texts(drawn) == ["aaaaaaa"]


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_an_option_file_names_every_field(name: str) -> None:
    assert set(options(name)) == {"_target_", *(field.name for field in fields(MCTS))}
    assert options(name)["_target_"] == f"{MCTS.__module__}.{MCTS.__name__}"


def test_the_class_has_the_values_of_the_option_file() -> None:
    assert preset() == MCTS(max_new_tokens=40)


def test_the_values_of_the_released_script() -> None:
    for name in PRESETS:
        sampler = preset(name)
        assert (sampler.width, sampler.depth, sampler.rounds, sampler.c, sampler.temperature) == (3, 3, 5, 1.0, 1.5)
        assert sampler.min_gap == 0.1
    released = preset("mcts_as_released")
    assert (released.fragments, released.repetition_penalty, released.min_chosen) == (2, 0.75, -0.3)
    assert (released.overlap_limit, released.settle, released.distinct, released.fast_reward) == (
        0.95,
        None,
        False,
        True,
    )
    assert (released.selection, released.values, released.value, released.cut) == (
        "released",
        "sum",
        "self",
        "fragments",
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"width": 1}, "width"),
        ({"depth": 0}, "depth"),
        ({"rounds": 0}, "rounds"),
        ({"fragments": 0}, "fragments"),
        ({"leaves": 0}, "leaves"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"c": -0.1}, "c"),
        ({"c": math.nan}, "c"),
        ({"c": math.inf}, "c"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"selection": "ucb"}, "selection"),
        ({"values": "max"}, "values"),
        ({"value": "judge"}, "value"),
        ({"cut": "words"}, "cut"),
        ({"settle": 0}, "settle"),
        ({"min_gap": -0.1}, "min_gap"),
        ({"min_gap": math.nan}, "min_gap"),
        ({"min_chosen": math.nan}, "min_chosen"),
        ({"overlap_limit": -0.1}, "overlap_limit"),
        ({"overlap_limit": 1.1}, "overlap_limit"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sampler\.{key}={changes[key]}: "):
        preset(**changes)


def test_values_at_the_ends_of_their_ranges_are_accepted() -> None:
    edges = {"width": 2, "depth": 1, "rounds": 1, "fragments": 1, "leaves": 1, "max_new_tokens": 1, "settle": 1}
    preset(**edges, c=0.0, min_gap=0.0, min_chosen=-5.0, overlap_limit=0.0)
    preset(overlap_limit=1.0, settle=None)
