"""Tree search on a scripted engine: trees solved by hand, waves, pairs, and each defect of the released code by name.

Tokens are characters (`tests.fakes`), and every character is a part, so a span of one part is one character. The
defects are those found in iTool's released code; the numbers it gives for them are in the tests' names and docstrings.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import STOP, ScriptedEngine, decode, encode
from tests.options import made
from ttpa.errors import ConfigError
from ttpa.explore.mcts import MCTS
from ttpa.explore.sampler import Drawn, Task
from ttpa.explore.search_tree import SearchNode, self_evaluation, shaped_reward, text_cuts
from ttpa.policy.engine import Generated, Ids

PRESETS = ("mcts", "mcts_as_released")


def preset(name: str = "mcts", **changes: Any) -> MCTS:
    return made("sampler", name, **{"max_new_tokens": 40, **changes})


class ScriptedTask(Task):
    """A sample whose answers are worth what `worth` says of their text."""

    worth: Callable[[str], float]
    cuts: Callable[[Ids], Sequence[int]]

    def read(self, ids: Ids) -> Any:
        text = decode(ids)
        return SimpleNamespace(
            candidate=SimpleNamespace(text=text),
            score=SimpleNamespace(value=self.worth(text)),
            pieces=["" if token == STOP else chr(token) for token in ids],
            cuts=self.cuts(ids),
        )


def task(
    values: Mapping[str, float] | Callable[[str], float] = lambda answer: 0.0,
    *,
    name: str = "t",
    prompt: str = "?",
    cuts: Callable[[Ids], Sequence[int]] = lambda ids: range(1, len(ids)),
    target: str = "",
    letters: str | None = "ABCD",
) -> Task:
    """The judge is shown "prompt!answer"."""
    renderer: Any = SimpleNamespace(
        letters=lambda: letters and encode(letters),
        judge_prompt=lambda sample, text: encode(f"{prompt}!{text}"),
        answer_texts=lambda samples: [target],
    )
    nothing: Any = None
    one = ScriptedTask(name=name, sample=nothing, prompt=encode(prompt), renderer=renderer, score=nothing)
    one.worth = values if callable(values) else values.__getitem__
    one.cuts = cuts
    return one


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


def pairs(drawn: Drawn) -> list[tuple[str, str, int, int]]:
    said = texts(drawn)
    spans = [pair.provenance["spans"] for pair in drawn.siblings]
    return [
        (said[p.chosen], said[p.rejected], span["chosen"], span["rejected"])
        for p, span in zip(drawn.siblings, spans, strict=True)
    ]


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
    assert [call.seeds for call in engine.calls] == [["s/t//0"], ["s/t/0/0"], ["s/t/1/0"], ["s/t/1.0/0"], ["s/t/0.1/0"]]
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
    counts = {"requests": 5, "simulations": 10, "nodes": 10, "duplicates": 4, "generated": 8 + 6 + 6 + 4 + 4}
    assert drawn.counts == {"rounds": 6, **counts}
    assert [row["parent"] for row in drawn.tree] == [None, 0, 1, 1, 3, 0, 5, 6, 6, 5]
    assert [row["tokens"] for row in drawn.tree] == [0, 1, 1, 1, 2, 1, 1, 2, 2, 1], "the stop token is one of them"


def test_pairs_on_paper() -> None:
    """After round 6. Root: b 0.56 against a 0.3, the best answer of b against the worst of a. a: r 0.4 against p 0.
    b: s 1 against q 0.4, whose worst is bqt. bq: y 0.6 against t 0, ends with the stop token. ar has one child.
    """
    drawn, _ = by_hand(6)
    assert pairs(drawn) == [
        ("bsv$", "apz$", 1, 1),
        ("arw$", "apz$", 2, 2),
        ("bsv$", "bqt$", 2, 2),
        ("bqy$", "bqt$", 4, 4),
    ]
    assert [pair.provenance["search"] for pair in drawn.siblings] == [
        {"values": [0.56, 0.3], "visits": [5, 6], "level": 0},
        {"values": [0.4, 0.0], "visits": [4, 1], "level": 1},
        {"values": [1.0, 0.4], "visits": [1, 3], "level": 1},
        {"values": [0.6, 0.0], "visits": [1, 1], "level": 2},
    ]


@pytest.mark.parametrize(("changes", "kept"), [
    ({"min_gap": 0.26}, [0, 1, 2, 3]), ({"min_gap": 0.27}, [1, 2, 3]), ({"min_chosen": 0.56}, [0, 2, 3]),
    ({"min_chosen": 0.57}, [2, 3]),
])  # fmt: skip
def test_a_pair_needs_a_gap_and_a_good_side(changes: dict[str, float], kept: list[int]) -> None:
    """Limits may be met exactly: 0.56 - 0.3 is a little less than 0.26 in floating point."""
    everything = pairs(by_hand(6)[0])
    assert pairs(by_hand(6, **changes)[0]) == [everything[at] for at in kept]


def grown(*shape: tuple[str, float, int, float]) -> SearchNode:
    """A tree from (name of a node, prior, visits, W); names as in `SearchNode.name`, parents first, "" for the root."""
    made: dict[str, SearchNode] = {}
    for name, prior, visits, total in shape:
        node = SearchNode(visits=visits, total=total)
        if name:
            above = made[name[:-2]]
            ids, logps = (*above.ids, len(above.children)), (*above.logps, math.log(prior))
            node = SearchNode(parent=above, ids=ids, logps=logps, visits=visits, total=total)
        assert node.name == name
        made[name] = node
    return made[""]


@pytest.mark.parametrize(("options", "scores"), [
    # N = 9; Q + c * p * 3 / (1 + n)
    ({}, [1.2 / 4 + 0.5 * 3 / 5, 0.5 / 2 + 0.8 * 3 / 3]),
    ({"values": "sum"}, [1.2 + 0.3, 0.5 + 0.8]),
    # W / (n + 1) + c * p * sqrt(ln 9 / (n + 1)), ln 9 = 2.197225; the mean or sum of `values` has no say
    ({"selection": "released", "c": 2.0}, [0.24 + 0.662906, 0.166667 + 1.369294]),
])  # fmt: skip
def test_scores_on_paper(options: dict[str, Any], scores: list[float]) -> None:
    root = grown(("", 1.0, 9, 2.0), ("0", 0.5, 4, 1.2), ("1", 0.8, 2, 0.5))
    assert [preset(**options).score(child) for child in root.children] == pytest.approx(scores, abs=2e-6)


def test_virtual_loss_sends_a_wave_to_other_leaves_and_then_is_gone() -> None:
    """c = 1. Two branches, N = 6: 0.0 and 0.1 in the first (Q 0.8, n 4), 1 alone (Q 0.7, n 2); all priors 0.1.

    First 0 (0.8 + 0.1 * 2.449/5 = 0.849 against 0.7 + 0.0816 = 0.782) and in it 0.0 (0.9 against 0.7). In flight it
    counts as a visit of value 0: Q of 0 is 3.2 / 5 = 0.64, N = 7, so 0.64 + 0.1 * 2.646/6 = 0.684 against 0.788:
    1, though 0.1 could be had. Then 0 is the only way, and 0.1 the only leaf.
    """
    shape = [("", 1.0, 6, 4.6), ("0", 0.1, 4, 3.2), ("0.0", 0.1, 2, 1.8), ("0.1", 0.1, 2, 1.4), ("1", 0.1, 2, 1.4)]
    root, rule = grown(*shape), preset()
    taken = []
    while (leaf := rule.leaf(root)) is not None:
        leaf.hold(True)
        taken.append(leaf)
        if leaf.name == "0.0":
            assert rule.worth(root.children[0]) == 0.64 and rule.worth(leaf) == 0.6
    assert [leaf.name for leaf in taken] == ["0.0", "1", "0.1"]
    assert root.visits == 9 and not root.open
    for leaf in taken:
        leaf.hold(False)
    assert root.visits == 6 and rule.leaf(root) is taken[0]


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
    preset(max_new_tokens=5, leaves=2, depth=5, width=4, settle=None),
    preset("mcts_as_released", max_new_tokens=12, leaves=2, rounds=9),
]


@pytest.mark.parametrize("sampler", MANY)
def test_a_wave_gives_each_tree_what_it_gives_alone_in_any_order(sampler: MCTS) -> None:
    tasks = three_tasks()
    together = sampler.explore(language(), tasks, "s")
    assert together == [sampler.explore(language(), [one], "s")[0] for one in tasks]
    assert together == sampler.explore(language(), tasks[::-1], "s")[::-1]
    assert len({str(drawn.tree) for drawn in together}) == 3
    assert all(a != b for a, b in zip(together, sampler.explore(language(), tasks, "t"), strict=True))


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


def settling(found: float, **changes: Any) -> int:
    """Rounds of a tree (c = 0, depth 4) whose best child stays a; round 2 finds an answer of this value."""
    script = {("?", ""): ["aaaa$", "bbbb$"], ("?", "a"): ["xxx$", "aaa$"]}
    script |= {("?", "ax"): ["xx$", "xx$"], ("?", "axx"): ["x$", "x$"]}
    sampler = preset(width=2, depth=4, c=0.0, rounds=7, **changes)
    (drawn,) = sampler.explore(ScriptedEngine(script=script), [task({"aaaa": 0.5, "bbbb": 0.4, "axxx": found})], "s")
    return drawn.counts["rounds"]


def test_an_exact_answer_and_an_unchanged_best_child_end_the_search() -> None:
    """It is there after round 2, when the best child has not changed: 1 round of calm, 2 after round 3."""
    assert [settling(1.0, settle=calm) for calm in (1, 2)] == [2, 3]
    assert settling(1.0, settle=None) == settling(0.999, settle=1) == 7


@pytest.mark.parametrize(("fragments", "depth", "spans"), [
    (1, 2, ["ab", "abcdefg"]), (1, 3, ["ab", "abc"]), (2, 3, ["abc", "abcdef"]), (4, 3, ["abcdef", "abcdefg"]),
    (5, 3, ["abcdefg"]),
])  # fmt: skip
def test_a_span_is_so_many_parts_and_on_the_last_level_the_rest(fragments: int, depth: int, spans: list[str]) -> None:
    """Cuts 2, 3, 5, 6 of "abcdefg$"; from a beginning of 3 tokens those behind it count."""
    script = {("?", "abcdefg$"[:at]): ["abcdefg$"[at:]] * 2 for at in range(7)}
    sampler = preset(width=2, rounds=2, depth=depth, fragments=fragments)
    (drawn,) = sampler.explore(ScriptedEngine(script=script), [task(cuts=lambda ids: [2, 3, 5, 6])], "s")
    assert list(nodes(drawn))[1:] == spans


def test_equal_spans_are_one_child_whose_value_is_the_mean() -> None:
    engine = ScriptedEngine(script={("?", ""): ["a0$", "b5$", "a9$"]}, chances={"a": 0.7})
    one = task({"a0": 0.0, "b5": 0.5, "a9": 0.9})
    (drawn,) = preset(rounds=1).explore(engine, [one], "s")
    assert nodes(drawn)["a"] == (0.7, 2, 0.45, False, [0, 2]) and nodes(drawn)["b"] == (0.5, 1, 0.5, False, [1])
    assert drawn.siblings == [], "0.5 and 0.45 are no 0.1 apart"
    (drawn,) = preset(rounds=1, min_gap=0.05).explore(engine, [one], "s")
    assert pairs(drawn) == [("b5$", "a0$", 1, 1)]
    # Copies of a child are kept on request; they are no pair of each other.
    (drawn,) = preset(rounds=1, distinct=False).explore(engine, [one], "s")
    assert [(row["text"], row["visits"], row["value"]) for row in drawn.tree[1:]] == [
        ("a", 1, 0.0), ("b", 1, 0.5), ("a", 1, 0.9),
    ]  # fmt: skip
    assert drawn.siblings == []


def test_a_span_that_begins_another_gets_the_token_that_differs() -> None:
    """Children "a" and "abb": the answers part at the third token, behind the end of the first span."""
    engine = ScriptedEngine(script={("?", ""): ["abx$", "abb$"]})

    def found(x: float, b: float) -> list[tuple[str, str, int, int]]:
        one = task({"abx": x, "abb": b}, cuts=lambda ids: [1] if decode(ids) == "abx" else [])
        (drawn,) = preset(rounds=1, width=2).explore(engine, [one], "s")
        assert [row["text"] for row in drawn.tree[1:]] == ["a", "abb"]
        return pairs(drawn)

    assert found(1.0, 0.2) == [("abx$", "abb$", 3, 4)]
    assert found(0.2, 1.0) == [("abb$", "abx$", 4, 3)]


@pytest.mark.parametrize(("tokens", "cuts"), [
    # behind "(" 3, "=" 5, ", " 8 (inside a token: at its end), "=" 10
    (("[f(", "a=", "1,", " b", "=2)", "]"), [1, 2, 4, 5]),
    (("(=(", "x"), [1]),  # three ends in one token
    (("a, ", "b. "), [1]),  # an end at the end is no cut
    (("Yes. ", "No.", "3.5,", "x"), [1]),  # a point or a comma alone is none
])  # fmt: skip
def test_fragments_end_where_the_release_cuts(tokens: tuple[str, ...], cuts: list[int]) -> None:
    assert text_cuts(tokens) == cuts


def test_the_grade_of_a_judge() -> None:
    """The released parser gives 0.5, 0.275, 0.5 and -0.25 for A, B, C and D: "Fair" like "Excellent"."""
    certain = [[0.0 if place == letter else -math.inf for place in range(4)] for letter in range(4)]
    assert [self_evaluation(row) for row in certain] == [0.25, 0.025, -0.25, -0.5]
    # 0.2, 0.1, 0.1 and 0.1 are 0.4, 0.2, 0.2 and 0.2: (0.4 + 0.02 - 0.2 - 0.4) / 4 = -0.045. Nothing underflows.
    assert self_evaluation([math.log(p) - 900 for p in (0.2, 0.1, 0.1, 0.1)]) == -0.045


def test_all_new_answers_of_all_trees_are_judged_in_one_call_and_each_once() -> None:
    """Two equal answers in one round, and one again in the next, are one question."""
    script = {("x", ""): ["a1$", "a1$"], ("y", ""): ["b1$", "b2$"], ("x", "a"): ["1$", "2$"], ("y", "b"): ["1$", "3$"]}
    letter = {"x!a1": 0, "y!b1": 1, "y!b2": 2, "x!a2": 3, "y!b3": 0}
    engine = ScriptedEngine(script=script, verdicts=lambda prompt: [float(letter[prompt] == at) for at in range(4)])
    tasks = [task(lambda answer: 1.0, name=name, prompt=name) for name in "xy"]  # the target has no say
    x, y = preset(width=2, rounds=2, value="self").explore(engine, tasks, "s")
    assert engine.judged == [["x!a1", "y!b1", "y!b2"], ["x!a2", "y!b3"]]
    assert engine.judged_tokens == ["ABCD", "ABCD"]
    assert nodes(x)["a"] == (0.5, 4, pytest.approx((0.25 * 3 - 0.5) / 4), False, [0, 1])
    assert nodes(y)["b"] == (0.5, 4, pytest.approx((0.025 * 2 - 0.25 + 0.25) / 4, abs=1e-6), False, [0, 1, 2])


def test_a_model_without_the_letters_cannot_judge() -> None:
    with pytest.raises(ConfigError, match=r"^value=self: .*token for each of A, B, C, D\. Use target"):
        preset(value="self").explore(language(), [task(letters=None)], "s")
    assert preset(depth=1, max_new_tokens=12).explore(language(), [task(letters=None)], "s")


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
        ("[f(a=1, b=2)]$", "[g(a=1, b=2)]$", 5, 5),
        ("[f(a=1, b=2)]$", "[f(a=2, b=2)]$", 14, 14),
    ]
    assert drawn.siblings[0].provenance["search"]["values"] == [-0.1, -1.1]
    assert engine.calls[0].sampling.repetition_penalty == 0.75 and engine.calls[0].sampling.temperature == 1.5


def test_shaped_reward_on_paper() -> None:
    """No word shared and no `)]`, all shared, one of two shared."""
    assert shaped_reward("x", "f)]") == shaped_reward(")]", "f") == -0.6
    assert shaped_reward("f", "f") == pytest.approx(0.6) and shaped_reward("f a", "f b c)]") == pytest.approx(-0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_no_request_repeats_and_every_completion_is_an_answer_that_the_policy_wrote_whole(name: str) -> None:
    """The release expands roots twice, drops 5 of 6 completions, joins spans with spaces, and ends pairs in
    mid-call.
    """
    engine, requests = language(), []

    def noted(ask: Any, *asked: Any) -> list[list[Generated]]:
        made = ask(*asked)
        requests.extend(zip(engine.calls[-1].prompts, engine.calls[-1].prefixes, made, strict=True))
        return made

    engine.generate = partial(noted, engine.generate)
    explored = preset(name, max_new_tokens=12, settle=None).explore(engine, three_tasks(), "s")
    seeds = [seed for call in engine.calls for seed in call.seeds]
    assert len(set(seeds)) == len(seeds) == sum(drawn.counts["requests"] for drawn in explored)
    for prompt, drawn in zip("xyz", explored, strict=True):
        written: list[tuple[int, ...]] = [()]
        for _, prefix, answers in (request for request in requests if request[0] == prompt):
            assert any(answer[: len(prefix)] == encode(prefix) for answer in written)
            written += [(*encode(prefix), *one.token_ids) for one in answers]
        assert len(written) - 1 == drawn.counts["simulations"]
        assert [tuple(answer.token_ids) for answer in drawn.answers] == list(dict.fromkeys(written[1:]))
        for answer in drawn.answers:
            assert (answer.token_ids[-1] == STOP) == (answer.finish == "stop")
            assert answer.finish == "stop" or len(answer.token_ids) == 12
