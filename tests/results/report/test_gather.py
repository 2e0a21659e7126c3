"""Who belongs to whom: arms, labels, warm-ups, controls, the stage graph; and which samples are drawn."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.results.report.conftest import Lab
from ttpa.records import Candidate, Score
from ttpa.results.report import browse, charts, lineage, numbers, trends
from ttpa.results.report.blocks import Chart, Graph, Grid, Span, Text
from ttpa.results.report.gather import Gathered, gather
from ttpa.results.report.rows import Record, find_rows, read_rows
from ttpa.results.report.trees import token_tree


def gathered(lab: Lab, name: str = "made") -> Gathered:
    records, left_out = read_rows(find_rows(name, lab.results))
    return gather(records, lab.store, name, left_out)


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


def test_steps_of_a_chain_stand_in_one_row_and_a_chain_may_be_shorter(lab: Lab) -> None:
    """The policy that needs no exploration trains in the column of those that do, wherever its row comes."""
    for objective in ("aaa", "dpo", "gold"):
        lab.row(objective=objective, sampler="mcts" if objective == "aaa" else "tps")
    file = lab.row(objective="zzz", sampler="gold")
    file.write_text(re.sub(r'"explore1":"[^"]*",', "", file.read_text()))
    shown = picture(gathered(lab))
    at = {box.title: box for box in shown.boxes}
    assert len({at[f"align {name}"].x for name in ("mcts + aaa", "tps + dpo", "tps + gold", "gold + zzz")}) == 1
    for left, right in (("explore mcts + aaa", "align mcts + aaa"), ("explore tps", "align tps + dpo")):
        assert at[left].x < at[right].x and at[left].y == at[right].y
    for _, _, end, height in shown.arrows:  # what passes a column meets no box there
        start = next(x1 for x1, _, x2, y2 in shown.arrows if (x2, y2) == (end, height))
        assert not [b for b in shown.boxes if start < b.x < end and b.y < height < b.y + shown.box_height]


def test_no_setting_is_a_python_word(lab: Lab) -> None:
    lab.row(config={"select.limit": 10, "select.whole": True})
    lab.row(config={"select.limit": None, "select.whole": False})
    lab.row(config={"select.limit": None})
    assert labels(gathered(lab))[1:] == [
        "dpo + limit=10 + whole=true",
        "dpo + no limit + whole=false",
        "dpo + no limit",
    ]
    assert trends.axis_values(gathered(lab), "select.limit") == ["10", "null"]


def test_a_chart_of_many_policies_has_each_objective(lab: Lab) -> None:
    for sampler in ("a", "b", "c", "d", "e", "f"):
        for objective in ("dpo", "rft") if sampler != "f" else ("simpo",):
            lab.row(sampler=sampler, objective=objective)
    found = gathered(lab)
    shown, said = numbers.drawn(found, found.policies)
    assert [arm.label for arm in shown] == [
        "warm-up", "a + dpo", "b + dpo", "d + dpo", "a + rft", "b + rft", "d + rft", "f + simpo",
    ]  # fmt: skip
    assert "8 of 12 policies, of each objective some" in said
    chart, grid = numbers.errors(found)
    assert isinstance(chart, Chart) and isinstance(grid, Grid)
    assert len(chart.data.columns) == 13 and len(grid.rows) == 12  # the numbers hold all
    assert "8 of 12" in chart.note and "Whiskers: 95 % interval of a single seed" in chart.note


def test_fewer_seeds_are_marked_and_means_of_policies_said(lab: Lab) -> None:
    for sampler in ("tps", "mcts"):
        for objective in ("dpo", "rft"):
            for seed in (0, 1) if (sampler, objective) != ("mcts", "rft") else (0,):
                lab.row(seed, sampler=sampler, objective=objective)
    lab.row(0, sampler="tps", objective="dpo", pairs="siblings")
    lab.row(1, sampler="tps", objective="dpo", pairs="siblings")
    (chart,) = trends.heat_map(gathered(lab), ("sampler", "objective"))
    assert isinstance(chart, Chart)
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in chart.data.rows}
    assert [texts["mcts"], texts["tps"]] == [["0.500", "0.500*"], ["0.500", "0.500"]]
    assert chart.svg.count("0.500*") == 1
    assert chart.note.endswith(
        "up to 2 policies that differ in other settings. * fewer than the 2 seeds of other cells."
    )


def test_means_of_curves_are_taken_at_the_same_steps(lab: Lab) -> None:
    """An attempt that went on logged steps again; a seed logged fewer of them."""
    for seed, text in ((0, "step,loss\n0,1\n1,1\n2,9\n"), (1, "step,loss\n0,3\n2,3\n")):
        lab.row(seed)
        logs = lab.store / gathered(lab).arms[0].records[seed].stages["align1"] / "logs"
        (logs / "version_0" / "metrics.csv").write_text(text)
        if seed == 0:
            (logs / "version_1").mkdir()
            (logs / "version_1" / "metrics.csv").write_text("step,loss\n2,1\n3,1\n")
    chart = next(one for one in trends.curves(gathered(lab)) if isinstance(one, Chart))
    assert [[cell.text for cell in row] for row in chart.data.rows] == [["1", "2"], ["3", "2"]]
    assert chart.note == "Thin lines are seeds, thick ones their means."


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("", "no curves for this page: logger=csv writes them; with logger=wandb see the stage's W&B run"),
        ("logs/events.out.tfevents.1.h", "tensorboard --logdir"),
        ("logs/version_0/metrics.csv", "fewer than two logged points"),
    ],
)
def test_why_there_are_no_curves(lab: Lab, file: str, why: str) -> None:
    lab.row()
    align = lab.store / gathered(lab).arms[0].first.stages["align1"]
    shutil.rmtree(align / "logs")
    if file:
        (align / file).parent.mkdir(parents=True)
        (align / file).write_text("step,loss\n9,1\n")
    said = [block.text for block in trends.curves(gathered(lab)) if isinstance(block, Text)]
    assert not any("logger=none" in one for one in said)
    assert sum("(dpo" in one or "; dpo" in one for one in said) == 1
    assert any(why in one and "dpo" in one for one in said)


def test_words_of_a_chart_are_no_smaller_than_eleven_pixels() -> None:
    line = charts.Line(label="a", x=[1, 2], y=[3, 4])
    for chart in (charts.lines("l", "t", "d", [line], x="x", y="y"), charts.heat("h", "t", "d", ["a"], ["b"], [[0.1]])):
        (units,) = map(float, re.findall(r'viewBox="0 0 ([\d.]+)', chart.svg))
        smallest = min(map(float, re.findall(r"font-size: ([\d.]+)px", chart.svg)))
        assert smallest * chart.width / units == pytest.approx(11, abs=0.1)


def test_labels_are_cut_in_the_middle() -> None:
    names = [f"mcts, released numbers, 3 rounds: {name}" for name in ("RFT", "SimPO", "DPO")]
    chart = charts.heat("h", "t", "d", names, ["a"], [[0.1], [0.2], [0.3]])
    shown = re.findall(r">([^<]*\u2026[^<]*)<", chart.svg)
    assert len(set(shown)) == 3 and {one.rpartition(" ")[2] for one in shown} == {"RFT", "SimPO", "DPO"}


def test_built_and_found_are_told_by_the_process(lab: Lab) -> None:
    lab.row()  # warm-up and data are of process 1, the rest of process 2
    found = gathered(lab)
    states = {stage.name: lineage.state(stage, found)[0] for stage in found.stages.values() if stage.name != "evaluate"}
    assert states == {"data": "found", "warmup": "found", "explore": "built", "align": "built"}


def test_two_rounds_are_a_chain() -> None:
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
    assert isinstance(chart, Chart)
    assert [[cell.text for cell in row] for row in chart.data.rows] == [["0", "0.25"], ["0.25", "0.5"], ["1", "0.75"]]
    assert chart.data.columns[1:] == ["dpo"]
    assert chart.note == "Bars: 95 % interval of a single seed, standard deviation of several."


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
