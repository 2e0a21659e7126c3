"""The page as text: well-formed, escaped, without requests; its numbers are those of the rows; what is gone is said."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.results.report.conftest import NASTY, Html, Lab
from ttpa.results.report import stages
from ttpa.results.report.numbers import _tones
from ttpa.results.report.study import StageFolder
from ttpa.results.stats import Estimate

Report = Callable[..., str]
SECTIONS = {"accuracy", "errors", "answers", "heat", "decay", "curves", "pairs", "trees", "drawn", "stages", "settings",
            "provenance"}  # fmt: skip
TEMPLATES = Path(stages.__file__).parent / "templates"


def sweep(lab: Lab) -> None:
    """Two samplers, two objectives, two seeds, two amounts of data."""
    for seed in (0, 1):
        for sampler in ("tps", "mcts"):
            for number, objective in enumerate(("dpo", "rft")):
                lab.row(seed, 2 + number, sampler=sampler, objective=objective, settings={"select.limit": 20})
        lab.row(seed, 4, sampler="tps", objective="dpo", settings={"select.limit": None})


def sections(page: Html) -> set[str]:
    return {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def test_every_section_is_there_and_every_link_leads_somewhere(lab: Lab, report: Report) -> None:
    sweep(lab)
    page = Html(report("made"))
    assert sections(page) == SECTIONS
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert {link for link in links if not link.startswith("answers:")} <= set(ids)
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "clip-path"):
            for one in re.findall(r"[\w.-]+", attributes.get(name, "").removeprefix("url(#").removesuffix(")")):
                assert one in ids
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_the_page_asks_for_nothing_and_runs_one_script(lab: Lab, report: Report) -> None:
    sweep(lab)
    page = Html(report("made"))
    for tag, attributes in page.tags:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "img")
    assert [a.get("type", "") for tag, a in page.tags if tag == "script"] == ["application/json", ""]
    assert "url(" not in page.css and "@import" not in page.css
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_hostile_text_is_only_text(lab: Lab, report: Report) -> None:
    lab.text = NASTY
    sweep(lab)
    text = report("made")
    page = Html(text)
    assert text.count("<script") == 2 == text.count("</script>") and "<img" not in text
    assert "<img src=x onerror=alert(2)>" in page.text and "{{7*7}}" in page.text  # it is shown, as text
    assert not {"\x00", "\x1b", "\u202e", "\ud800"} & set(text)
    assert r"\x00" in page.text and r"\u202e" in page.text and r"\ud800" in page.text
    assert any(NASTY in one for one in page.answers["texts"])  # the browser gets what the model wrote


def test_the_page_is_the_same_every_time(lab: Lab, report: Report) -> None:
    sweep(lab)
    assert report("made") == report("made")


# --- numbers and answers ---------------------------------------------------------------------------------------------


def test_numbers_agree_with_the_rows(lab: Lab, report: Report) -> None:
    lab.row(0, right=2)
    lab.row(1, right=3)
    page = Html(report("made"))
    assert page.tables["All numbers"][2][2].startswith("62.5 [")  # of 50 and 75 %
    difference = page.tables["Paired differences"][1]
    assert difference[0].endswith("dpo - warm-up") and difference[1].startswith("+37.5 [")  # against 25 %
    assert "0.819" in page.text and "0.223" in page.text  # probabilities of the tokens where the pair parts


def test_each_error_number_leads_to_its_answers(lab: Lab, report: Report) -> None:
    for seed in (0, 1):
        lab.row(seed, right=2 + seed)
    page = Html(report("made"))
    names, found = page.answers["errors"], page.answers["answers"]
    bands = {
        number
        for number, (_, band, *_) in enumerate(page.answers["samples"])
        if page.answers["bands"][band] != "unseen tools"
    }
    checked = 0
    for href, said in page.links["Answers with each error, %"]:
        policy, error = href.removeprefix("#answers:").split(":")
        own = [one for one in found if one[1] == int(policy) and one[0] in bands]
        if error == "wrong":
            assert said == page.answers["policies"][int(policy)]
            continue
        hits = [one for one in own if names.index(error) in one[4]]
        assert said == f"{100 * len(hits) / len(own):.1f}"
        checked += bool(hits)
    assert checked == 4  # parameter_value and tool_name, of the warm-up and of dpo
    assert {page.answers["bands"][band] for _, band, *_ in page.answers["samples"]} == {"easy", "hard", "unseen tools"}


def test_an_answer_comes_with_question_tools_and_target(lab: Lab, report: Report) -> None:
    lab.row()
    data = Html(report("made")).answers
    name, _, question, tools, target = data["samples"][2]
    assert name == "q2" and [[role, data["texts"][at]] for role, at in question] == [["user", "please q2 plain"]]
    assert [data["tools"][at] for at in tools] == ['{"name": "tool plain"}', '{"name": "second"}']
    assert data["texts"][target] == 'f(a="plain")'
    assert [data["texts"][one[5]] for one in data["answers"] if one[0] == 2] == ["[f(a=plain)]"] * 2


def test_answers_are_limited_and_it_is_said(lab: Lab, report: Report) -> None:
    sweep(lab)
    page = Html(report("made", answers=3))
    assert len(page.answers["samples"]) == 3 and "3 of 10 samples, drawn at random" in page.text
    assert page.answers == Html(report("made", answers=3)).answers
    for sample in range(3):  # a sample keeps the answers of all policies
        assert {one[1] for one in page.answers["answers"] if one[0] == sample} == set(range(6))
    assert "answers" not in sections(Html(report("made", answers=0)))


def test_answers_without_their_files(lab: Lab, report: Report) -> None:
    sweep(lab)
    (lab.store / lab.stages["data/0"] / "test.jsonl").unlink()
    (lab.store / lab.stages["data/1"] / "test.jsonl").unlink()
    page = Html(report("made"))
    assert "The questions are not in the data stage" in page.text and len(page.answers["samples"]) == 10
    (lab.store / lab.stages["evaluate/1/plain"] / "rows.jsonl").unlink()
    text = Html(report("made")).text
    assert "The answers of 1 evaluation are not in the store" in text and "warm-up, seed 1" in text


def test_pairs_are_limited_and_none_are_shown_for_zero(lab: Lab, report: Report) -> None:
    lab.row()
    assert "2 of 6 pairs" in report("made", samples=2)
    assert not {"pairs", "trees", "drawn"} & sections(Html(report("made", samples=0)))


# --- colours ---------------------------------------------------------------------------------------------------------


def test_a_policy_has_one_colour_everywhere(lab: Lab, report: Report) -> None:
    sweep(lab)
    text = report("made")
    page = Html(text)
    policies = page.answers["policies"]
    assert set(page.marks) == set(policies)
    colours = {label: f"var(--c{number + 1})" for number, label in enumerate(policies)}
    assert page.marks == {label: {colour} for label, colour in colours.items()}
    pictures = re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL)
    curves = [one for one in pictures if '<title id="curve-' in one]
    assert len(curves) == 11  # the loss of the warm-up, loss and reward of five policies
    for number, one in enumerate(re.findall(r'<title id="curve-(\d+)-', "".join(curves))):
        assert set(re.findall(r"var\(--c\d\)", curves[number])) == {f"var(--c{int(one) + 1})"}
    (first,) = [one for one in pictures if '<title id="accuracy-0"' in one]
    order = re.findall(r"stroke: (var\(--c\d\)); stroke-width: 2.4", first)
    assert order == [colours[label] for label in policies]
    assert not re.findall(r"#[0-9a-f]{6}\b", "".join(pictures))  # dark mode changes every colour of a picture


def test_policies_that_share_a_colour_differ_in_their_mark(lab: Lab, report: Report) -> None:
    for number in range(9):
        lab.row(settings={"select.limit": number}, objective="dpo")
    cells = [row[0] for row in Html(report("made")).tables["All numbers"][1:]]
    assert [cell[0] for cell in cells] == ["\u25cf"] * 8 + ["\u25a0"] * 2


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(mode: str) -> None:
    """WCAG 2: text at least 4.5 to 1 on its ground, lines at least 3 to 1."""
    light, dark = re.findall(r":root\{(.*?)\}", (TEMPLATES / "style.css").read_text(), re.DOTALL)
    known = dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", light if mode == "light" else dark))
    grounds = [name for name in known if name.startswith(("up", "down"))] + ["same", "good", "bad", "warn"]
    pairs = [("ink", ground, 4.5) for ground in (*grounds, "paper", "panel")]
    pairs += [(text, ground, 4.5) for text in ("soft", "link") for ground in ("paper", "panel")]
    lines = ["edge", *(f"c{number}" for number in range(1, 9))]
    pairs += [(line, ground, 3.0) for line in lines for ground in ("paper", "panel")]
    for front, ground, least in pairs:
        low, high = sorted((luminance(known[front]), luminance(known[ground])))
        assert (high + 0.05) / (low + 0.05) >= least, (front, ground)


# --- heat map --------------------------------------------------------------------------------------------------------


def gap(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def test_tones_know_the_interval() -> None:
    gaps = [
        gap(9, -1, 19),
        gap(3, 1, 5),
        gap(-1, -2, -0.5),
        gap(2, None, None),
        None,
        gap(1, 0.0, 2),
        gap(0.5, 1e-18, 1),
    ]
    assert _tones(gaps) == [0, 3, -1, None, None, 0, 0]
    assert _tones(gaps, "low")[:3] == [0, -3, 1]
    assert _tones([gap(0, 0, 0)]) == [0]


def test_only_a_clear_difference_has_a_colour_in_the_heat_map(lab: Lab, report: Report) -> None:
    lab.samples = 60
    for sampler, objective, right in (("tps", "dpo", 50), ("tps", "rft", 1), ("mcts", "dpo", 2), ("mcts", "rft", 30)):
        lab.row(right=right, sampler=sampler, objective=objective)
    page = Html(report("made", axes="sampler,objective"))
    caption = "Accuracy in %, sampler (rows) by objective (columns)"
    tones = {
        (row[0], head): re.findall(r"\bt(-?\d)", kind)
        for row, kinds in zip(page.tables[caption][1:], page.classes[caption][1:], strict=True)
        for head, kind in zip(("", "dpo", "rft"), kinds, strict=True)
        if head
    }
    assert tones == {("tps", "dpo"): ["3"], ("tps", "rft"): ["0"], ("mcts", "dpo"): ["0"], ("mcts", "rft"): ["2"]}
    assert "paired difference to the warm-up" in page.text


def test_cells_of_several_policies_and_of_fewer_seeds_are_said(lab: Lab, report: Report) -> None:
    for sampler in ("tps", "mcts"):
        for objective in ("dpo", "rft"):
            for seed in (0, 1) if (sampler, objective) != ("mcts", "rft") else (0,):
                lab.row(seed, sampler=sampler, objective=objective)
    lab.row(0, sampler="tps", objective="dpo", pairs="siblings")
    page = Html(report("made", axes="sampler,objective"))
    assert "up to 2 policies that differ in other settings" in page.text and "* fewer than the 2 seeds" in page.text
    rows = {row[0]: row[1:] for row in page.tables["Accuracy in %, sampler (rows) by objective (columns)"][1:]}
    assert rows["mcts"][1].endswith("*") and rows["tps"][0].startswith("50.0")


def test_no_limit_is_all_the_data_there_was(lab: Lab, report: Report) -> None:
    lab.row(right=2, settings={"select.limit": 10})
    lab.row(right=3, settings={"select.limit": None})
    text = report("made")
    assert "Accuracy by select.limit:  from 25 to 75" in text or "from 25 to 75" in text  # begins with the warm-up
    assert ">40</text>" in text  # samples to explore, of the data stage


# --- stages ----------------------------------------------------------------------------------------------------------


def test_curves_are_means_at_the_same_steps(lab: Lab, report: Report) -> None:
    """An attempt that went on logged some steps again, and another seed logged fewer of them."""
    for seed in (0, 1):
        lab.row(seed)
    folders = [lab.store / name for key, name in lab.stages.items() if key.startswith("align/")]
    lab.curve(folders[0], "step,loss\n0,1\n1,1\n2,9\n")
    lab.curve(folders[0], "step,loss\n2,1\n3,1\n", version=1)
    lab.curve(folders[1], "step,loss\n0,3\n2,4\n")
    assert stages.logged(StageFolder(folders[0])) == {"loss": {1: 1, 2: 1, 3: 1, 4: 1}}
    assert "Loss: dpo from 2 to 2.5" in report("made")


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("", "logger=csv writes one for this page; with logger=wandb see the stage's W&B run"),
        ("logs/events.out.tfevents.1.h", "tensorboard --logdir"),
        ("logs/version_0/metrics.csv", "fewer than two logged points"),
    ],
)
def test_why_there_is_no_curve(lab: Lab, report: Report, file: str, why: str) -> None:
    lab.row()
    (align,) = [lab.store / name for key, name in lab.stages.items() if key.startswith("align/")]
    shutil.rmtree(align / "logs")
    if file:
        (align / file).parent.mkdir(parents=True)
        (align / file).write_text("step,loss\n9,1\n")
    assert re.search(rf"No curve of dpo: [^.]*{re.escape(why)}", Html(report("made")).text)


def test_stages_say_who_built_them_how_large_they_are_and_what_failed(lab: Lab, report: Report) -> None:
    lab.row(objective="dpo")  # warm-up and data are of process 1, the rest of process 2
    lab.row(objective="rft")
    gone = next(name for key, name in lab.stages.items() if key.startswith("align/"))
    shutil.rmtree(lab.store / gone)
    for name, error in ((gone, "OutOfMemoryError: 3 GiB"), ("warmup-0000000000ff", "ValueError: no steps")):
        part = lab.store / f"{name}.part"
        part.mkdir()
        (part / "error.txt").write_text(f"Traceback\n  a line\n{error}\n")
    head, *rows = Html(report("made")).tables["Stages"]
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert found[lab.stages["data/0"]]["state"] == found[lab.stages["warmup/0/plain"]]["state"] == "cached"
    assert found[lab.stages["explore/0/tps"]]["state"] == "built"
    assert (found[gone]["state"], found[gone]["error"]) == ("failed", "OutOfMemoryError: 3 GiB")
    assert found["warmup-0000000000ff"]["error"] == "ValueError: no steps"
    data = lab.store / lab.stages["data/0"]
    size = sum(file.stat().st_size for file in data.iterdir()) / 1e6
    assert found[data.name]["size, MB"] == f"{size:.2f}" and found[data.name]["seconds"] == "2.0"
    assert found[data.name]["policies"] == "all policies"


def test_configurations_stand_side_by_side(lab: Lab, report: Report) -> None:
    lab.row(objective="dpo", settings={"objective.beta": 0.1})
    lab.row(objective="rft")
    tables = Html(report("made")).tables
    (split,) = [rows for caption, rows in tables.items() if caption.startswith("Settings that differ")]
    assert split == [["setting", "dpo", "rft"], ["objective.beta", "0.1", ""], ["objective.name", "dpo", "rft"]]


@pytest.mark.parametrize("shift", range(5))
def test_damaged_stages_are_no_crash(lab: Lab, report: Report, shift: int) -> None:
    sweep(lab)
    for number, file in enumerate(sorted(one for one in lab.store.rglob("*") if one.is_file()), shift):
        half = file.read_bytes()[: file.stat().st_size // 2]
        file.write_bytes((half, b"[1, 2", b"\xff\xfe{}", b'"text"\n', b"{}\n[]\nnull\n")[number % 5])
    Html(report("made"))


def test_stages_that_are_gone_are_named(lab: Lab, report: Report) -> None:
    sweep(lab)
    shutil.rmtree(lab.store)
    page = Html(report("made"))
    assert "are not in the store" in page.text and "answers" in sections(page)
    assert page.tables["All numbers"][1][2].startswith("25.0")  # the rows know their numbers


def test_long_texts_do_not_make_a_page_that_no_phone_can_open(lab: Lab, report: Report) -> None:
    lab.text = "word " * 20_000
    sweep(lab)
    assert len(report("made")) < 1_500_000
