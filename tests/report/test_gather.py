"""Who belongs to whom: arms, labels, warm-ups, controls, the stage graph; and which samples are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.report.conftest import Lab
from ttpa.records import Candidate, Score
from ttpa.report import browse, lineage, trends
from ttpa.report.blocks import Graph, Span
from ttpa.report.gather import Gathered, find_rows, gather, read_rows
from ttpa.report.trees import token_tree


def gathered(lab: Lab, name: str = "made") -> Gathered:
    return gather(read_rows(find_rows(name, lab.results)), lab.store, name)


def labels(found: Gathered) -> list[str]:
    return [arm.label for arm in found.policies]


def test_rows_of_equal_settings_are_one_arm_over_seeds(lab: Lab) -> None:
    for seed in (0, 1, 2):
        lab.row(seed, objective="dpo")
        lab.row(seed, objective="rft")
    found = gathered(lab)
    assert labels(found) == ["warm-up", "dpo", "rft"]
    assert [sorted(arm.records) for arm in found.policies] == [[0, 1, 2]] * 3


def test_arms_are_named_by_what_tells_them_apart(lab: Lab) -> None:
    lab.row(sampler="tps", config={"sampler.delta": 0.2})
    lab.row(sampler="tps", config={"sampler.delta": 0.6})
    lab.row(sampler="mcts")
    lab.row(sampler="mcts", objective="rft")
    assert set(labels(gathered(lab))[1:]) == {
        "tps + dpo + delta=0.2",
        "tps + dpo + delta=0.6",
        "mcts + dpo",
        "mcts + rft",
    }


def test_two_warm_ups_are_two_starting_policies(lab: Lab) -> None:
    lab.row(warmup="plain")
    lab.row(warmup="bands")
    found = gathered(lab)
    assert labels(found)[:2] == ["warm-up (bands)", "warm-up (plain)"]
    for arm in found.arms:
        start = found.start_of(arm)
        assert start is not None and start.label == f"warm-up ({arm.label})"


def test_controls_differ_in_the_objective_alone(lab: Lab) -> None:
    lab.row(sampler="tps", objective="dpo")
    lab.row(sampler="tps", objective="rft")
    lab.row(sampler="mcts", objective="rft")
    found = gathered(lab)
    arm = next(one for one in found.arms if one.label == "tps + dpo")
    assert [one.label for one in found.controls_of(arm)] == ["tps + rft"]


def test_a_name_finds_its_own_rows_only(lab: Lab) -> None:
    lab.row()
    (lab.results / "made-too-0123456789ab.jsonl").write_text("not read")
    assert len(find_rows("made", lab.results)) == 1


def picture(found: Gathered) -> Graph:
    (one,) = [block for block in lineage.graph(found) if isinstance(block, Graph)]
    return one


def test_the_graph_merges_seeds_and_shows_what_is_shared(lab: Lab) -> None:
    for seed in (0, 1):
        for objective in ("dpo", "rft"):
            lab.row(seed, objective=objective)
    shown = picture(gathered(lab))
    assert [box.title for box in shown.boxes] == [
        "data \u00d72", "warmup \u00d72", "evaluate warm-up \u00d72", "explore \u00d72",
        "align dpo \u00d72", "align rft \u00d72", "evaluate dpo \u00d72", "evaluate rft \u00d72",
    ]  # fmt: skip
    assert len(shown.arrows) == 7
    for number, one in enumerate(shown.boxes):  # nothing lies on anything
        for other in shown.boxes[:number]:
            apart = abs(one.x - other.x) >= min(one.width, other.width) or abs(one.y - other.y) >= shown.box_height
            assert apart, (one.title, other.title)


def test_built_and_found_are_told_by_the_process(lab: Lab) -> None:
    lab.row()  # warm-up and data are of process 1, the rest of process 2
    found = gathered(lab)
    states = {stage.name: lineage.state(stage, found)[0] for stage in found.stages.values() if stage.name != "evaluate"}
    assert states == {"data": "found", "warmup": "found", "explore": "built", "align": "built"}


def test_two_rounds_are_a_chain() -> None:
    from ttpa.report.gather import Record

    roles = ("data", "warmup", "baseline", "select1", "explore1", "align1", "explore2", "align2", "evaluation")
    record = Record(file=Path(), run="", name="", seed=0, rounds=2, choices={}, config={}, baseline={}, metrics={},
                    stages=dict.fromkeys(roles, "x"), versions={}, cost={})  # fmt: skip
    assert lineage.parents(record) == {
        "warmup": "data", "baseline": "warmup", "select1": "warmup", "explore1": "select1", "align1": "explore1",
        "explore2": "align1", "align2": "explore2", "evaluation": "align2",
    }  # fmt: skip


def test_no_limit_is_all_the_data_there_was(lab: Lab) -> None:
    lab.row(accuracy=0.5, config={"select.limit": 10})
    lab.row(accuracy=0.75, config={"select.limit": None})
    (chart,) = trends.gain_decay(gathered(lab))
    assert [[cell.text for cell in row] for row in chart.data.rows] == [["0", "0.25"], ["0.25", "0.5"], ["1", "0.75"]]


def test_lines_are_drawn_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("".join(f"{k}\n" for k in range(50)))
    drawn = [tuple(browse.drawn_lines(file, 5, str(seed))[0]) for seed in range(400)]
    counts = [sum(f"{k}\n" in one for one in drawn) for k in range(50)]
    assert sum(counts) == 2000 and min(counts) > 15 and max(counts) < 70  # 40 expected, deviation 6
    assert drawn[0] == tuple(browse.drawn_lines(file, 5, "0")[0])
    assert browse.drawn_lines(file, 99, "0") == ([f"{k}\n" for k in range(50)], 50)


def letters(ids: Sequence[int]) -> list[str]:
    return [chr(token) for token in ids]


def answer(number: int, text: str, **fields: object) -> Candidate:
    ids = tuple(map(ord, text))
    return Candidate(sample_id="a", index=number, text=text, token_ids=ids, logps=(0.0,) * len(ids), **fields)  # type: ignore[arg-type]


def shape(span: Span) -> object:
    """Texts along the chain, then what parts behind it."""
    return [span.text, *(one.text for one in span.chain), *(shape(child) for child in span.children)]


def test_answers_are_merged_by_their_tokens_and_cut_at_choices() -> None:
    scores = [Score(value=value, exact=False) for value in (1.0, 0.5, 0.0)]
    answers = [
        answer(0, "fabc"),
        answer(1, "fabd"),
        answer(2, "fx", branches=((1, ((ord("a"), 0.5), (ord("x"), 0.4))),)),
    ]
    root = token_tree(answers, scores, letters)
    assert shape(root) == ["f", ["ab", ["c"], ["d"]], ["x"]]
    assert root.good == pytest.approx(0.5)
    assert "choice here: \u201ca\u201d 0.500, \u201cx\u201d 0.400" in root.note
    alone = token_tree([answer(0, "abc", branches=((1, ((ord("b"), 0.6),)),))], scores, letters)
    assert shape(alone) == ["a", "bc"]


def test_answers_without_a_common_beginning_and_empty_ones() -> None:
    scores = [Score(value=0.0, exact=False)] * 3
    root = token_tree([answer(0, "ab"), answer(1, "c"), answer(2, "")], scores, letters)
    assert shape(root) == ["(start of the answer)", ["ab"], ["c"]]


def test_a_path_of_many_choices_is_no_deep_nest() -> None:
    text = "ab" * 400
    options = tuple((at, ((ord("a"), 0.5), (ord("b"), 0.5))) for at in range(1, len(text)))
    root = token_tree([answer(0, text, branches=options)], [Score(value=0.0, exact=False)], letters)
    assert len(root.chain) <= 41 and not root.children
    assert "".join(one.text for one in (root, *root.chain))[:40] == text[:40]
