"""The command `ttpa table`, from records to each format: values, holes, flags, published numbers."""

import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.results.table_cases import TABLE, changed, found, metrics, write, write_table
from ttpa.errors import ConfigError
from ttpa.io import csv_row
from ttpa.results import render
from ttpa.results.records import read_records
from ttpa.results.table import Table, from_folder, from_records
from ttpa.run.parts import VERSIONS

FOLDER = "experiments/demo"


def made(preset: str | None = None) -> Table:
    return from_folder(Path(FOLDER), preset)


def grid(table: Table, with_cost: bool = False) -> dict[str, dict[str, str]]:
    """Row label with its mark -> heading -> text with its mark, the best in stars."""
    shown = render.main_grid(table, with_cost)
    rows = [
        [(f"*{one.text}*" if one.best else one.text) + (f"^{one.mark}" if one.mark else "") for one in row]
        for row in shown.rows
    ]
    return {row[0]: dict(zip(shown.head, row, strict=True)) for row in rows}


def lines_of(text: str, kind: str = "cell") -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text)) if row["kind"] == kind]


@pytest.fixture
def filled(folder: Path) -> Path:
    """SFT at 0.50, 0.53, 0.56; ours at 0.60 with one seed; warm-up at 0.2 with all seeds."""
    cells = found(folder)
    for cell, value in zip(cells[3:6], (0.50, 0.53, 0.56), strict=True):
        write(cell, metrics=metrics(value))
    write(cells[6], metrics=metrics(0.60))
    return folder


def test_mean_interval_holes_and_one_seed(filled: Path) -> None:
    """SFT: 53.0 +- 4.30265 * 3 / sqrt(3) = 7.45; ours: the evaluation's own interval, 0.5 to 1."""
    table = made()
    rows = grid(table)
    assert rows["SFT"]["all"] == "53.0 [45.5, 60.5]" and rows["SFT"]["seeds"] == "3/3"
    assert rows["ours"]["all"] == "*60.0 [50.0, 100.0]*^*" and rows["ours"]["seeds"] == "1/3, no 1, 2"
    assert rows["warm-up"]["all"] == "20.0 [10.0, 100.0]^*"  # all seeds alike: that of one evaluation
    assert rows["SFT"]["value errors"] == "0.250 [0.150, 1.000]^*"
    assert any("the evaluation's own 95 % bootstrap" in note for note in render.notes(table))
    assert table.warnings == () and table.rows[2].missing == (1, 2)
    assert render.number(-0.0001, 2) == "0.00" and render.number(0.0, 1, sign=True) == "+0.0"


def test_a_column_that_a_preset_does_not_measure(folder: Path) -> None:
    for cell in found(folder, preset="cluster"):
        write(cell)
    table = made("cluster")
    assert "value errors" not in grid(table)["ours"] and table.warnings == ()
    assert "Columns that preset cluster does not measure: value errors." in render.notes(table)
    published = {"row": "sft", "column": "value", "value": 3.0, "source": "s", "trust": "secondary"}
    write_table(folder, changed("published", value=[*TABLE["published"], published]))
    row = grid(made("cluster"))["SFT"]
    assert row["value errors"] == "-" and row["value errors, Paper"] == "3.000^s1"


def test_a_path_that_leads_nowhere_is_named(filled: Path) -> None:
    write_table(filled, changed("columns", 0, "metric", value="acuracy"))
    table = made()
    assert grid(table)["SFT"]["all"] == "-"
    assert any("x-sft-1.jsonl: no number at acuracy (column all, row sft)" in warning for warning in table.warnings)


def test_rows_of_other_stage_versions_are_flagged(filled: Path) -> None:
    write(found(filled)[3], versions={**VERSIONS, "explore": 1, "select": 0})
    table = made()
    assert "SFT^†" in grid(table) and "ours" in grid(table)
    # The run had no select stage: its version plays no part.
    assert f"† SFT: built by other stage versions: explore 1 (now {VERSIONS['explore']})." in render.notes(table)


def test_published_numbers_are_shown_and_compared_only_with_the_same_thing(folder: Path) -> None:
    for preset in ("embedded", "cluster"):
        for cell in found(folder, preset=preset):
            write(cell, name=f"{preset}{cell.label}", metrics=metrics(0.6))
    embedded, cluster = made(), made("cluster")
    assert grid(embedded)["ours"]["all, Paper"] == "58.1^p1" == grid(cluster)["ours"]["all, Paper"]
    assert "ours - theirs" not in grid(embedded)["ours"]
    assert any("preset embedded runs something else" in note for note in render.notes(embedded))
    assert grid(cluster)["ours"]["ours - theirs"] == "+1.9" and grid(cluster)["SFT"]["ours - theirs"] == ""
    assert "1. v5, Table 2 (7B)." in render.markdown(cluster) and "p printed in the paper" in str(render.notes(cluster))
    write_table(folder, changed("published", 0, "trust", value="unclear"))
    unclear = grid(made("cluster"))["ours"]
    assert unclear["all, Paper"] == "58.1^?1" and "ours - theirs" not in unclear


def test_a_hole_inside_a_row_is_marked(folder: Path) -> None:
    for cell, errors in zip(found(folder)[3:6], (0.2, None, 0.4), strict=True):
        write(cell, metrics=metrics(0.5, errors=errors))
    table = made()
    row = grid(table)["SFT"]
    assert row["seeds"] == "3/3" and row["all"] == "*50.0 [40.0, 100.0]*^*" and row["value errors"].endswith("^n=2")
    assert any("n=: of the row's seeds so many measured" in note for note in render.notes(table))
    assert [line["n"] for line in lines_of(render.comma_separated(table)) if line["row"] == "sft"] == ["3", "2"]


def test_intervals_of_shares_end_where_shares_end(folder: Path) -> None:
    """0.90, 0.95, 1.00: 95 +- 12.4; errors 0.00, 0.02, 0.04: 0.02 +- 0.0497. What is no share is not cut."""
    for cell, value, errors in zip(found(folder)[3:6], (0.90, 0.95, 1.0), (0.0, 0.02, 0.04), strict=True):
        write(cell, metrics={**metrics(value, errors=errors), "reward": value})
    table = made()
    row = grid(table)["SFT"]
    assert row["all"] == "*95.0 [82.6, 100.0]*" and "[0.000, 0.070]" in row["value errors"]
    assert "its 95 % Student-t interval, cut off where a share ends" in render.notes(table)[0]
    write_table(folder, changed("columns", value=[{**TABLE["columns"][0], "metric": "reward"}]))
    assert "[82.6, 107.4]" in grid(made())["SFT"]["all"] and "cut off" not in render.notes(made())[0]


def test_rows_from_before_have_an_interval_at_the_ends(folder: Path) -> None:
    """Such a row says [0, 0] of 200; [0, 0] without a count of answers stays."""
    none = {"value": 0.0, "low": 0.0, "high": 0.0}
    for cell in found(folder)[3:6]:
        write(cell, metrics={**metrics(0.5, errors=None), "accuracy": {**none, "n": 200}, "errors": {"value": none}})
    table = made()
    assert grid(table)["SFT"]["all"] == "0.0 [0.0, 1.9]^*"
    assert any("or the same share with every seed" in note and "Wilson" in note for note in render.notes(table))
    line = next(line for line in lines_of(render.comma_separated(table)) if line["row"] == "sft")
    assert line["interval"] == "wilson" and float(line["high"]) == pytest.approx(1.8845, abs=1e-4)


def test_cost_is_what_a_row_would_need_alone(filled: Path) -> None:
    """Six stages of 2 s; the evaluation of the warm-up is not ours; the warm-up row needs data, warm-up, evaluation."""
    rows = grid(made(), with_cost=True)
    assert (rows["SFT"]["seconds"], rows["SFT"]["tokens"]) == ("10", "40")
    assert (rows["warm-up"]["seconds"], rows["warm-up"]["tokens"]) == ("6", "20")
    assert (rows["ours"]["seconds"], "seconds" in grid(made())["ours"]) == ("10", False)


def test_result_rows_without_a_table_name_what_differs(folder: Path) -> None:
    """The choices that vary and, where they are equal, the settings; the warm-up first, controls compared with."""
    cells = found(folder)
    for cell, value in zip(cells[3:6], (0.50, 0.53, 0.56), strict=True):
        write(cell, metrics=metrics(value), choices={"objective": "gold", "sampler": "group", "eval": "heldout"})
    for words, name in (((), "a"), (("sampler.n=3",), "b")):
        for cell in found(folder, "objective=dpo", *words)[3:6]:
            choices = {"objective": "dpo", "sampler": "group", "eval": "heldout"}
            write(cell, name=f"{name}{cell.seed}", metrics=metrics(0.6), choices=choices)
    records = list(read_records(sorted(Path("results").iterdir()), warnings := []))
    table = from_records(records, Path("store"), "mine")
    assert warnings == [] and [row.spec.label for row in table.rows] == ["warm-up", "dpo + n=6", "dpo + n=3", "gold"]
    assert [list(row.records) for row in table.rows] == [[0, 1, 2]] * 4
    assert [column.key for column in table.columns] == ["accuracy", "errors.parameter_value"]
    rows = grid(table)
    assert rows["gold"]["accuracy"] == "53.0 [45.5, 60.5]" and rows["warm-up"]["accuracy"].startswith("20")
    pairs = [f"{one.ours} - {one.against}" for one in table.differences]
    assert pairs == ["dpo + n=6 - warm-up", "dpo + n=6 - gold", "dpo + n=3 - warm-up", "gold - warm-up"]


def test_markdown_escapes_what_it_must(filled: Path) -> None:
    write_table(filled, changed("rows", 2, "label", value="a | b *c*"))
    text = render.markdown(made())
    assert text.startswith("### SimPO & friends: 100 % of #1\\_a\n") and "| a \\| b \\*c\\* | 1/3, no 1, 2 |" in text
    assert "**60.0 [50.0, 100.0]**<sup>\\*</sup>" in text and "\n- Mean over seeds" in text
    (head, rule) = re.search(r"(?m)^(\| +\|.*)\n(\|---.*)$", text).groups()  # type: ignore[union-attr]
    assert head.count("|") == rule.count("|")


def test_latex_escapes_what_it_must(filled: Path) -> None:
    content = changed("rows", 1, "label", value="*starred")
    content["rows"][2]["label"] = "[b]"
    write_table(filled, content)
    text = render.latex(made())
    assert r"SimPO \& friends: 100 \% of \#1\_a" in text
    body = re.sub(r"(?m)^%.*$", "", text)
    assert text.startswith("% Needs \\usepackage{booktabs} and \\usepackage{graphicx} (for \\resizebox).")
    assert body.count(r"\resizebox{\textwidth}{!}{\begin{tabular}") == 2 == body.count(r"\end{tabular}}")
    for char in "%#_":
        assert not re.search(rf"(?<!\\){char}", body), char
    assert sorted(re.findall(r"\\begin\{(\w+)\}", body)) == sorted(re.findall(r"\\end\{(\w+)\}", body))
    assert body.count("{") == body.count("}") and body.count(r"\toprule") == body.count(r"\bottomrule") == 2
    for block in re.findall(r"(?s)\\begin\{tabular\}\{(\w+)\}(.*?)\\end", body):
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(block[0])}
    assert r"\textbf{60.0 [50.0, 100.0]}\textsuperscript{*}" in body
    # A star or bracket after a line break is no argument of it.
    assert "{}* one seed" in text and "{}*starred" in text and not re.search(r"(\\\\|rule)\s*[*\[]", text)
    write_table(filled, {**TABLE, "published": [], "differences": []})
    assert render.latex(made()).startswith("% Needs \\usepackage{booktabs}.\n\\begin{table}")


def test_csv_holds_every_number_to_the_last_digit(filled: Path) -> None:
    text = render.comma_separated(made(), True)
    by_key = {(line["row"], line["column"]): line for line in lines_of(text)}
    sft, ours = by_key["sft", "all"], by_key["ours", "all"]
    assert float(sft["value"]) == pytest.approx(53.0, abs=1e-12) and sft["interval"] == "t"
    assert float(sft["high"]) - float(sft["value"]) == pytest.approx(100 * 4.302653 * 0.03 / 3**0.5, abs=1e-4)
    assert (ours["seeds"], ours["missing"], ours["published"], ours["trust"]) == ("0", "1 2", "58.1", "printed")
    assert by_key["sft", "seconds"]["value"] == "10.0" and len(by_key) == 3 * (2 + 2)
    (difference,) = lines_of(text, "difference")
    assert (difference["row"], difference["against"]) == ("ours", "sft")
    assert float(difference["value"]) == pytest.approx(10.0)
    assert difference["over_seeds"] == difference["samples"] == "" and difference["verdict"].startswith("no interval")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+A1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "-", "1 + 1", "'a"],
)
def test_no_text_of_a_csv_is_a_formula(text: str, filled: Path) -> None:
    write_table(filled, changed("rows", 1, "label", value=text + " SFT"))
    line = next(line for line in lines_of(render.comma_separated(made())) if line["row"] == "sft")
    safe = "" if text in ("1 + 1", "'a") else "'"
    assert line["label"].startswith(safe) and float(line["value"]) > 0
    assert csv_row([text, -1.5, "-1.5", "+2e-3", None]) == [safe + text, -1.5, "-1.5", "+2e-3", None]


def test_html_is_well_formed_and_escaped(folder: Path) -> None:
    content: dict[str, Any] = changed("rows", 2, "label", value="<script>alert('&')</script>")
    content["published"][0]["source"] = '<b>"'
    write_table(folder, content)
    text = render.page(made())
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert root.tag == "html" and root.findtext(".//h1") == TABLE["title"]
    assert "<script" not in text and "<b>" not in text
    labels = ["".join(cell.itertext()) for cell in root.findall(".//table[1]/tbody/tr/th")][:3]
    assert labels == ["warm-up", "SFT", "<script>alert('&')</script>"]


def test_the_file_is_the_standard_output(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "ttpa.cli", "table", FOLDER, "format=latex"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (shown.returncode, shown.stderr) == (0, "") and shown.stdout.startswith("%")
    assert render.main([FOLDER, "out=table.tex", "results=results", "store=store"]) == 0
    assert Path("table.tex").read_text() == shown.stdout and capsys.readouterr().out == ""
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    assert render.main([FOLDER, "cost=true", "seed=0", "results=none"]) == 0
    said = capsys.readouterr()
    assert said.err == "ttpa table: warning: none: no such folder, so every cell is a hole. Set results=DIR.\n"
    assert "| seconds | tokens |" in said.out and "A dash is a hole: no record, or nothing to measure." in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FOLDER, "preset=gpu"], "preset=gpu: not in .*Use one of embedded, cluster"),
        ([FOLDER, "format=pdf"], "format='pdf': should be 'markdown', 'latex', 'csv' or 'html'"),
        (["nowhere"], "nowhere/table.yaml: no such file"),
        ([FOLDER, "seed=0", "out=none/t.md"], "out=none/t.md: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        render.main(words)
    assert "\n" not in str(caught.value)
