"""The page as text: well-formed, escaped, without requests; what is gone is said; colours that can be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.results.report.conftest import NASTY, Html, Lab
from ttpa.results.report.palette import DARK, GRAPHIC_ON, LIGHT, TEXT_ON, contrast

Report = Callable[..., str]
SECTIONS = ("what", "graph", "accuracy", "errors", "heat", "decay", "curves", "pairs", "trees", "answers",
            "settings", "provenance")  # fmt: skip


def sweep(lab: Lab) -> None:
    """Two samplers, two objectives, two seeds, two amounts of data."""
    for seed in (0, 1):
        for sampler in ("tps", "mcts"):
            for number, objective in enumerate(("dpo", "rft")):
                lab.row(seed, 0.5 + 0.25 * number, sampler=sampler, objective=objective, config={"select.limit": 20})
        lab.row(seed, 0.75, sampler="tps", objective="rft", config={"select.limit": None})


def anchors(text: str) -> set[str]:
    return {attributes["id"] for tag, attributes in Html(text).tags if tag == "section"}


def test_a_sweep_has_every_section(lab: Lab, report: Report) -> None:
    sweep(lab)
    text = report("made")
    assert anchors(text) == set(SECTIONS)
    assert "A sweep of 5 cells over 2 seeds: 10 result rows of made." in Html(text).text


def without_baseline(file: Path) -> Path:
    """The row as a sweep leaves it that evaluated no warm-up."""
    row = json.loads(file.read_text())
    row["baseline"] = {}
    del row["stages"]["baseline"], row["cost"]["baseline"]
    file.write_text(json.dumps(row) + "\n")
    return file


def test_a_sweep_without_an_evaluation_of_the_warm_up_has_every_section(lab: Lab, report: Report) -> None:
    for seed in (0, 1):
        for sampler in ("tps", "mcts"):
            without_baseline(lab.row(seed, sampler=sampler))
    said = "No row holds an evaluation of the warm-up, and none is a control"
    text = report("made")
    assert anchors(text) == set(SECTIONS) - {"heat", "decay"}
    assert said in Html(text).text and "evaluate warm-up" not in Html(text).text
    assert said in report(str(without_baseline(lab.row(7))))
    lab.row(2, sampler="tps")  # one seed has it: the differences are those of that seed
    page = Html(report("made")).text
    assert said not in page and "evaluate warm-up" in page


def test_a_run_has_what_one_row_can_tell(lab: Lab, report: Report) -> None:
    text = report(str(lab.row()))
    assert anchors(text) == set(SECTIONS) - {"heat", "decay"}


def test_ids_are_unique_and_labels_point_somewhere(lab: Lab, report: Report) -> None:
    sweep(lab)
    tags = Html(report("made")).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed = [name for _, attributes in tags for name in attributes.get("aria-labelledby", "").split()]
    pointed += [attributes["href"][1:] for _, attributes in tags if attributes.get("href", "").startswith("#")]
    assert pointed and set(pointed) <= set(ids)
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-labelledby"]


def test_nothing_leaves_the_page(lab: Lab, report: Report) -> None:
    lab.text = NASTY + " http://example.org/x.png url(http://example.org) @import"
    sweep(lab)
    page = Html(report("made"))
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "action", "formaction", "data", "poster", "ping", "background"):
            assert name not in attributes, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
        found = re.findall(r"url\(([^)]*)\)", " ".join(v for k, v in attributes.items() if k in ("style", "clip-path")))
        assert all(one.startswith("#") for one in found), attributes
        assert tag not in ("iframe", "object", "embed", "form", "base", "img")
    assert "url(" not in page.css and "@import" not in page.css
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_hostile_text_is_only_text(lab: Lab, report: Report) -> None:
    lab.text = NASTY
    sweep(lab)
    text = report("made")
    page = Html(text)
    assert text.count("<script>") == 1 and text.count("</script>") == 1
    assert "<img" not in text
    assert "<img src=x onerror=alert(2)>" in page.text  # it is shown, as text
    assert "{{7*7}}" in page.text  # no template of ours
    for hidden in ("\x00", "\x1b", "\u202e"):
        assert hidden not in text
    assert r"\x00" in text and r"\u202e" in text and r"\ud800" in text


def test_the_page_is_the_same_every_time(lab: Lab, report: Report) -> None:
    sweep(lab)
    assert report("made") == report("made")


def test_numbers_agree_with_the_rows(lab: Lab, report: Report) -> None:
    lab.row(0, 0.5)
    lab.row(1, 0.75)
    text = Html(report("made")).text
    assert "0.625 \u00b1 0.177" in text  # of 0.5 and 0.75
    assert "+0.375 \u00b1 0.177" in text  # against 0.25, paired by sample
    assert "0.819" in text and "0.223" in text  # where the pair parts


def test_a_chosen_pair_of_axes(lab: Lab, report: Report) -> None:
    sweep(lab)
    assert "Accuracy by objective and select.limit" in report("made", axes="objective,select.limit")


def test_what_must_be_known_of_a_picture_can_be_seen(lab: Lab, report: Report) -> None:
    sweep(lab)
    seen = " ".join(re.findall(r'<p class="about">([^<]*)</p>', report("made")))
    for words in ("mean over up to", "Whiskers: 95 %", "Bars: 95 %", "Thin lines are seeds"):
        assert words in seen, words


def test_long_names_without_spaces_have_places_to_break(lab: Lab, report: Report) -> None:
    lab.row(config={"objective.loss_weight_of_all<b>": 1, "objective.a_b": 2})
    text = report("made")
    assert ">objective.<wbr>loss_<wbr>weight_<wbr>of_<wbr>all&lt;b&gt;</th>" in text
    assert ">objective.a_b</th>" in text


def test_samples_are_limited_and_none_are_shown_for_zero(lab: Lab, report: Report) -> None:
    lab.row()
    assert "2 of 6 pairs" in report("made", samples=2)
    assert {"pairs", "trees", "answers"} & anchors(report("made", samples=0)) == set()


def damage(store: Path) -> None:
    """Every file half there, or of another kind."""
    for number, file in enumerate(sorted(one for one in store.rglob("*") if one.is_file())):
        content = file.read_bytes()
        file.write_bytes(
            (content[: len(content) // 2], b"[1, 2", b"\xff\xfe{}", b'"text"\n', b"{}\n[]\nnull\n")[number % 5]
        )


@pytest.mark.parametrize("shift", range(5))
def test_damaged_stages_are_no_crash(lab: Lab, report: Report, shift: int) -> None:
    for number in range(shift):
        lab.stage("extra", str(number))  # each file meets every kind of damage
        (lab.store / f"a{number}").write_text("x")
    sweep(lab)
    damage(lab.store)
    Html(report("made"))


def test_stages_that_are_gone_are_named(lab: Lab, report: Report) -> None:
    sweep(lab)
    shutil.rmtree(lab.store)
    text = Html(report("made")).text
    assert "are not in the store" in text
    assert "0.500 \u00b1 0.000" in text  # the rows know their numbers


def test_size(lab: Lab, report: Report) -> None:
    """Long texts and many samples do not make a page that no phone can open."""
    lab.text = "word " * 20_000
    sweep(lab)
    assert len(report("made")) < 1_500_000


@pytest.mark.parametrize("mode", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(mode: dict[str, str]) -> None:
    assert LIGHT.keys() == DARK.keys()
    for text, ground in TEXT_ON:
        assert contrast(mode[text], mode[ground]) >= 4.5, (text, ground)
    for line, ground in GRAPHIC_ON:
        assert contrast(mode[line], mode[ground]) >= 3, (line, ground)


def test_charts_use_the_palette_only(lab: Lab, report: Report) -> None:
    """Every colour of a picture is a variable, but the cells of the heat map, which hold their own ground and ink."""
    sweep(lab)
    text = report("made")
    for picture in re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL):
        if "heat-title" not in picture:
            assert not re.findall(r"#[0-9a-f]{6}\b", picture)


def test_a_page_without_the_script_is_whole(lab: Lab, report: Report) -> None:
    """Trees are `details` and tables are tables before any script runs."""
    lab.row()
    tags = Html(report("made")).tags
    assert sum(tag == "details" for tag, _ in tags) > 3
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")


def test_rounds_are_read_without_what_was_drawn(lab: Lab) -> None:
    from ttpa.results.report.trends import _rounds

    file = lab.root / "rollouts.jsonl"
    whole = {"number": 0, "metrics": {"reward": 0.5}, "groups": [{"answers": [1]}]}
    file.write_text(json.dumps(whole, separators=(",", ":")) + "\n" + json.dumps({**whole, "number": 1}) + "\n")
    assert list(_rounds(file)) == [(0, {"reward": 0.5}), (1, {"reward": 0.5})]
