"""The page as text: well-formed, escaped, without requests; its numbers are those of the rows; what is gone is said."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.report.conftest import NASTY, Html, Lab
from ttpa.records import Candidate, Pair, Score
from ttpa.results.report import numbers
from ttpa.results.report.samples import pair_block
from ttpa.results.report.study import StageFolder
from ttpa.results.stats import Estimate

Report = Callable[..., str]
SECTIONS = {"accuracy", "errors", "answers", "heat", "decay", "curves", "pairs", "trees", "drawn", "stages", "settings",
            "provenance"}  # fmt: skip


def test_the_page_is_whole_the_same_each_time_and_asks_for_nothing(lab: Lab, report: Report) -> None:
    lab.sweep()
    page = only_text(text := report("made"))
    assert page.sections == SECTIONS and report("made") == text
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))
    links = {given["href"] for tag, given in page.tags if tag == "a" and "answers:" not in given["href"]}
    assert links <= {f"#{one}" for one in ids}
    assert all(given.get("aria-labelledby", ids[0]) in ids for _, given in page.tags)
    assert "url(" not in page.css and "@import" not in page.css
    policy = next(given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def only_text(text: str) -> Html:
    """The page, on which no script, link or picture is of the store."""
    page = Html(text)
    assert text.count("<script") == 2 == text.count("</script>")
    assert not {"\x00", "\x1b", "\u2028", "\u202e", "\ud800"} & set(text)
    assert not {"img", "svg", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith(("#", "data:,"))
        assert re.fullmatch(r"|color:var\(--c\d\)|--share:[\d.]+%", attributes.get("style", ""))
    return page


def test_hostile_text_is_only_text(lab: Lab, report: Report) -> None:
    lab.text = NASTY
    lab.sweep()
    page = only_text(report("made"))
    assert "<img src=x onerror=alert(2)>" in page.text and "{{7*7}}" in page.text  # it is shown, as text
    assert r"\x00" in page.text and r"\ud800" in page.text
    assert any(NASTY in one for one in page.answers["texts"])  # the browser gets what the model wrote


def replaced(value: Any, text: str) -> Any:
    """A JSON value with all its texts replaced, but those that name a stage; and with a further key in each object."""
    if isinstance(value, dict):
        return {**{key: replaced(one, text) for key, one in value.items()}, text: text}
    if isinstance(value, list):
        return [replaced(one, text) for one in value]
    return text if isinstance(value, str) and not re.fullmatch(r"[a-z]*-?[0-9a-f]{12}|[qs]\d+", value) else value


def test_every_text_of_store_and_rows_may_be_hostile(
    lab: Lab, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of runs, options, settings, metrics, roles, files and packages too."""
    lab.sweep()
    name, text = "<img src>\x1b[31m\u2028<script>", NASTY.replace("\ud800", "")
    for file in [*lab.store.glob("*/*.json*"), *lab.results.iterdir()]:
        rows = [replaced(json.loads(line), text) for line in file.read_text().splitlines()]
        if file.parent == lab.results:
            rows = [{**row, "versions": {text: 1}, "stages": json.loads(file.read_text())["stages"]} for row in rows]
            file = file.rename(lab.results / f"{name}-{file.name[-18:]}")
            rows[0]["cost"] = {role: {"seconds": 1.0} for role in rows[0]["stages"]}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (failed := lab.store / f"{name}.part").mkdir()
    (failed / "error.txt").write_text(text)
    page = only_text(report(name))
    assert page.sections >= {"accuracy", "errors", "answers", "pairs", "trees", "stages", "settings", "provenance"}
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("value", ["NaN", '"x"', "null", "[]", "[" * 700 + "]" * 700])
def test_values_of_another_kind_are_no_crash(value: str, lab: Lab, report: Report) -> None:
    """In the place of every number, of every text or list, and of scores alone, in one kind of file."""
    lab.row()
    for pattern in (r"(?<=[:\[,])-?[\d.]+(?=[,}\]])", r'(?<=":)("[^"]*"|\[[^\[]*\])', r'(?<="value":)[\d.]+'):
        for kind in ("rows.jsonl", "pairs.jsonl", "candidates.jsonl", "test.jsonl", "explore.jsonl", "*.json"):
            before = {file: file.read_text() for file in lab.store.glob(f"*/{kind}")}
            for file, text in before.items():
                file.write_text(re.sub(pattern, lambda found: value, text.replace('": ', '":')))
            page = report("made")
            assert not re.search("NaN|Infinity", "".join(re.findall('data-(?:tree|chart)="(.*?)"', page)))
            Html(page)
            for file, text in before.items():
                file.write_text(text)


def test_an_answer_may_be_longer_than_a_field_of_csv(lab: Lab, report: Report) -> None:
    lab.text = "x" * 140_000
    lab.row()
    assert "drawn" in Html(report("made")).sections


def test_damaged_stages_are_no_crash(lab: Lab, report: Report) -> None:
    lab.sweep()
    files = {file: file.read_bytes() for file in sorted(lab.store.rglob("*")) if file.is_file()}
    for shift in range(5):
        for number, (file, text) in enumerate(files.items(), shift):
            damaged = (text[: len(text) // 2], b"[1, 2", b"\xff\xfe{}", b'"text"\n', b"{}\n[]\nnull\n")
            file.write_bytes(damaged[number % 5])
        page = Html(report("made"))
        assert page.tables["All numbers"][1][2].startswith("25.0")  # the rows know their numbers


def test_what_is_gone_is_named(lab: Lab, report: Report) -> None:
    lab.sweep()
    for seed in (0, 1):
        (lab.folder(f"data/{seed}") / "test.jsonl").unlink()
    (lab.folder("evaluate/1") / "rows.jsonl").unlink()
    text = report("made")
    assert "The questions are not in the data stage" in text
    assert re.search(r"The answers of 1 evaluation are not in the store.*warm-up, seed 1", text)
    shutil.rmtree(lab.store)
    page = Html(report("made"))
    assert "No curve of warm-up; " in page.text and "the stage is not in the store" in page.text
    assert page.tables["All numbers"][1][2].startswith("25.0")  # the rows know their numbers


# --- numbers and answers ---------------------------------------------------------------------------------------------


def test_numbers_and_answers_agree_with_the_rows(lab: Lab, report: Report) -> None:
    for seed in (0, 1):
        lab.row(seed, right=2 + seed)
    page = Html(text := report("made"))
    assert page.tables["All numbers"][2][2].startswith("62.5 [")  # of 50 and 75 %
    assert [(row["label"], row["arm"], row["value"], row["seeds"]) for row in page.charts[0]["rows"]] == [
        ("warm-up", 0, 25, [25, 25]), ("dpo", 1, 62.5, [50, 75]),
    ]  # fmt: skip
    difference = page.tables["Paired differences"][1]
    assert difference[0].endswith("dpo - warm-up") and difference[1].startswith("+37.5 [")  # against 25 %
    assert "0.819" in page.text and "0.223" in page.text  # probabilities of the tokens where the pair parts
    data, checked = page.answers, 0
    seen = [one for one in data["answers"] if data["samples"][one[0]][1] != data["unseen"]]
    for policy, error, said in re.findall(r'<a href="#answers:(\d+):(\w+)">([\d.]+)</a>', text):
        own = [one for one in seen if one[1] == int(policy)]
        hits = [one for one in own if error in one[4]]
        assert said == f"{100 * len(hits) / len(own):.1f}"
        checked += bool(hits)
    assert checked == 4  # parameter_value and tool_name, of the warm-up and of dpo
    name, band, ((role, question),), tools, target = data["samples"][2]
    texts = [data["texts"][at] for at in (question, target)]
    assert (name, band, role, *texts) == ("q2", "hard", "user", "please q2 plain", 'f(a="plain")')
    assert ["tool plain" in data["texts"][at] for at in tools] == [True, False]
    assert {data["texts"][one[5]] for one in data["answers"] if one[0] == 2} == {"[f(a=plain)]"}


def test_samples_are_limited_and_it_is_said(lab: Lab, report: Report) -> None:
    lab.sweep()
    page = Html(report("made", answers=3, samples=2))
    assert len(page.answers["samples"]) == 3 and "3 of 10 samples, drawn at random" in page.text
    for sample in range(3):  # a sample keeps the answers of all policies
        assert {one[1] for one in page.answers["answers"] if one[0] == sample} == set(range(6))
    assert "2 of 6 pairs" in page.text and "2 search trees" in page.text and "2 of 2 groups" in page.text
    assert not {"answers", "pairs", "trees", "drawn"} & Html(report("made", answers=0, samples=0)).sections
    lab.text = "word " * 20_000  # no page that no phone can open
    lab.row(objective="gold")
    assert len(report("made")) < 1_500_000


def test_lines_are_drawn_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    counts, stage = Counter[int](), StageFolder(tmp_path)
    (tmp_path / "rows").write_text("".join(f'{{"at":{k}}}\n' for k in range(50)))
    for number in range(400):
        stage.id = f"explore-{number:012x}"
        rows = stage.rows("rows", 5)
        counts.update(ats := [row["at"] for row in rows])
        assert ats == sorted(ats) and rows == stage.rows("rows", 5)
    assert min(counts.values()) > 15 and max(counts.values()) < 70  # 40 expected, deviation 6


SEARCH = {"spans": {"chosen": 4}, "parting": {"chosen": {"probability": 0.00012}}}


@pytest.mark.parametrize(
    ("texts", "how", "parts", "chances"),
    [
        ("f(ab) f(xyz", {}, ["f(|a||b)", "f(|x||yz"], [math.exp(-0.5)] * 2),
        ("f(abcd f", SEARCH, ["f|(|ab|cd", "f|||"], [0.00012, None]),
    ],
)
def test_a_pair_is_cut_where_it_parts(texts: str, how: dict, parts: list, chances: list) -> None:
    given = [{"text": one, "token_ids": tuple(map(ord, one)), "logps": (-0.5,) * len(one)} for one in texts.split()]
    good, bad = (Candidate(sample_id="a", index=0, **one) for one in given)
    high, low = Score(value=1.0, exact=True), Score(value=0.5, exact=False)
    pair = Pair(sample_id="a", chosen=good, rejected=bad, chosen_score=high, rejected_score=low, provenance=how)
    sides = pair_block(pair, {}, lambda ids: list(map(chr, ids)))["sides"]
    assert ["|".join(side["parts"]) for side in sides] == parts
    assert [side["probability"] for side in sides] == chances
    without = pair_block(pair, {}, None)["sides"]  # no tokenizer: by characters
    assert [side["parts"][:2] for side in without] == [side["parts"][:2] for side in sides]


# --- colours ---------------------------------------------------------------------------------------------------------


def test_a_policy_has_one_colour_and_mark_everywhere(lab: Lab, report: Report) -> None:
    for number in range(9):
        lab.row(settings={"select.limit": number}, objective="dpo")
    page = Html(text := report("made"))
    arms = {row["label"]: row["arm"] for chart in page.charts for row in chart.get("rows", [])}
    lines = [line for chart in page.charts for line in chart.get("lines", []) if line["label"] in arms]
    assert lines and all(line["arms"] == [arms[line["label"]]] for line in lines)
    assert sorted(arms.values()) == list(range(10)) and page.answers["policies"] == list(arms)
    marks = re.findall(r'var\(--c(\d)\)" aria-hidden="true">(.)</span> (?:<a[^>]*>)?([^<:]*)', text)
    assert len(marks) > 40
    for colour, mark, said in marks:
        (label,) = [one for one in arms if said == one or said.startswith(f"{one} - ")]
        assert (int(colour), mark) == (arms[label] % 8 + 1, "●■"[arms[label] // 8])


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1])
def test_contrast(mode: int) -> None:
    """WCAG 2: text at least 4.5 to 1 on its ground, lines at least 3 to 1, in the light and in the dark mode."""
    style = (Path(numbers.__file__).parent / "templates" / "style.css").read_text()
    css = re.findall(r":root\{(.*?)\}", style, re.DOTALL)[mode]
    light = {name: luminance(colour) for name, colour in re.findall(r"--(\w+):(#[0-9a-f]{6})", css)}
    least = {"ink": 4.5, "soft": 4.5, "link": 4.5, "edge": 3, **{f"c{number}": 3 for number in range(1, 9)}}
    pairs = {(front, ground): ratio for front, ratio in least.items() for ground in ("paper", "panel")}
    pairs |= {("ink", ground): 4.5 for ground in light if re.match("up|down|same|good|bad|warn", ground)}
    for (front, ground), ratio in pairs.items():
        low, high = sorted((light[front], light[ground]))
        assert (high + 0.05) / (low + 0.05) >= ratio, (front, ground)


def test_tones_know_the_interval() -> None:
    ends = [(9, -1, 19), (3, 1, 5), (-1, -2, -0.5), (2, None, None), (1, 0.0, 2), (0.5, 1e-18, 1)]
    gaps = [Estimate(value=value, low=low, high=high) for value, low, high in ends]
    assert numbers._tones([*gaps, None]) == [0, 3, -1, None, 0, 0, None]
    assert numbers._tones(gaps, "low")[:3] == [0, -3, 1]
    assert numbers._tones([Estimate(value=0, low=0, high=0)]) == [0]


def test_the_heat_map_colours_clear_differences_and_says_what_its_cells_are(lab: Lab, report: Report) -> None:
    lab.samples = 60
    for sampler, objective, right in (("tps", "dpo", 50), ("tps", "rft", 1), ("mcts", "dpo", 2), ("mcts", "rft", 30)):
        lab.row(right=right, sampler=sampler, objective=objective)
    caption = "Accuracy in %, sampler (rows) by objective (columns)"
    text = report("made", axes="sampler,objective")
    table = text[text.index(f'<table class="sortable" aria-label="{caption}"') :].partition("</table>")[0]
    cells = [(row[0], objective) for row in Html(text).tables[caption][1:] for objective in ("dpo", "rft")]
    tones = dict(zip(cells, re.findall(r'<td class="k t(-?\d)"', table), strict=True))
    assert tones == {("tps", "dpo"): "3", ("tps", "rft"): "0", ("mcts", "dpo"): "0", ("mcts", "rft"): "2"}
    assert "paired difference to the warm-up" in text
    lab.row(1, right=50, sampler="tps", objective="dpo")
    lab.row(1, right=50, sampler="tps", objective="dpo", pairs="siblings")
    page = Html(report("made", axes="sampler,objective"))
    assert "up to 2 policies that differ in other settings" in page.text
    (row,) = [row for row in page.tables[caption] if row[0] == "tps"]
    assert row[1] == "83.3" and "difference to the mean of all cells" in page.text


# --- stages ----------------------------------------------------------------------------------------------------------


def test_lines_of_data_and_of_training(lab: Lab, report: Report) -> None:
    """No limit is all the data there was. Curves are means at the same steps: an attempt that went on logged some steps
    again, and another seed logged fewer of them.
    """
    for seed in (0, 1):
        lab.row(seed, right=2, settings={"select.limit": 10})
        lab.row(seed, right=3, settings={"select.limit": None})
    for seed, texts in enumerate((["step,loss\n0,1\n1,1\n2,9\n", "step,loss\n2,1\n3,1\n"], ["step,loss\n0,3\n2,4\n"])):
        for version, text in enumerate(texts):
            lab.curve(lab.folder(f"align/{seed}/"), text, version)
    assert numbers.logged(StageFolder(lab.folder("align/0/"))) == {"loss": {1: 1, 2: 1, 3: 1, 4: 1}}
    charts = Html(report("made")).charts
    lines = [(chart["title"], line["points"]) for chart in charts for line in chart.get("lines", [])]
    assert ("loss", [[1, 2], [3, 2.5]]) in lines
    assert ("Accuracy by select.limit, %", [[0, 25], [10, 50], [40, 75]]) in lines  # begins with the warm-up


def test_why_there_is_no_curve(lab: Lab, report: Report) -> None:
    lab.row()
    logs = lab.folder("align/") / "logs"
    (logs / "version_0" / "metrics.csv").write_text("step,loss\n9,1\n")
    assert "No curve of dpo: fewer than two logged points" in report("made")
    (logs / "version_0" / "events.out.tfevents.1.h").touch()
    assert "No curve of dpo: TensorBoard has it" in report("made")
    shutil.rmtree(logs)
    assert "No curve of dpo: logger=csv writes one for this page" in report("made")


def test_stages_say_who_built_them_how_large_they_are_and_what_failed(lab: Lab, report: Report) -> None:
    """Warm-up and data are of process 1, the rest of process 2."""
    lab.row(objective="dpo", settings={"objective.beta": 0.1})
    lab.row(objective="rft")
    (lab.folder("data/0") / "large").write_bytes(bytes(2_330_000))
    (lab.folder("warmup/0") / "metrics.json").write_text('{"fallbacks": ["no token tree", 5]}')
    gone = lab.folder("align/").name
    shutil.rmtree(lab.store / gone)
    for name, error in ((gone, "OutOfMemoryError: 3 GiB"), ("warmup-0000000000ff", "ValueError: no steps")):
        (lab.store / f"{name}.part").mkdir()
        (lab.store / f"{name}.part" / "error.txt").write_text(f"Traceback\n  a line\n{error}\n")
    tables = Html(report("made")).tables
    found = {row[0]: dict(zip(tables["Stages"][0], row, strict=True)) for row in tables["Stages"]}
    states = [found[lab.stages[name]]["state"] for name in ("data/0", "warmup/0", "explore/0/tps")]
    assert states == ["cached", "cached", "built"]
    assert (found[gone]["state"], found[gone]["error"]) == ("failed", "OutOfMemoryError: 3 GiB")
    assert found["warmup-0000000000ff"]["error"] == "ValueError: no steps"
    assert [found[lab.stages[name]]["fallback"] for name in ("warmup/0", "data/0")] == ["no token tree; 5", ""]
    data = found[lab.stages["data/0"]]
    numbers = [data[head] for head in ("size, MB", "seconds", "tokens/s", "policies")]
    assert numbers == ["2.34", "2", "15", "all policies"]
    (split,) = [rows for caption, rows in tables.items() if caption.startswith("Settings that differ")]
    assert split == [["setting", "dpo", "rft"], ["objective.beta", "0.1", ""], ["objective.name", "dpo", "rft"]]
