"""The command `ttpa-table`, from records to each format: values, holes, flags, published numbers."""

from __future__ import annotations

import copy
import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.tables.conftest import TABLE, found, metrics, write_table
from ttpa.errors import ConfigError
from ttpa.results.tables import render
from ttpa.results.tables.cli import split, table
from ttpa.run.stages import VERSIONS

FOLDER = "experiments/demo"


def grid(text: str) -> dict[str, dict[str, str]]:
    """Row label -> heading -> cell of the main table in Markdown."""
    lines = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines() if line.startswith("|")]
    rows: dict[str, dict[str, str]] = {}
    for line in lines[2:]:
        if line[0] == "difference":
            break
        rows[line[0]] = dict(zip(lines[0], line, strict=True))
    return rows


@pytest.fixture
def filled(folder: Path, write: Callable[..., Path]) -> Path:
    """SFT at 0.50, 0.53, 0.56; ours at 0.60 with one seed; warm-up at 0.2 with all seeds."""
    every = found(folder)
    for cell, value in zip(every[3:6], (0.50, 0.53, 0.56), strict=True):
        write(cell, metrics=metrics(value))
    write(every[6], metrics=metrics(0.60))
    return folder


def test_mean_interval_holes_and_one_seed(filled: Path) -> None:
    """SFT: 53.0 +- 4.30265 * 3 / sqrt(3) = 7.45; ours: the evaluation's own interval, 0.5 to 1."""
    text, warnings = table([FOLDER])
    rows = grid(text)
    assert rows["SFT"]["all"] == "53.0 [45.5, 60.5]" and rows["SFT"]["seeds"] == "3/3"
    assert rows["ours"]["all"] == "**60.0 [50.0, 100.0]**<sup>\\*</sup>" and rows["ours"]["seeds"] == "1/3, no 1, 2"
    assert rows["warm-up"]["all"] == "20.0 [20.0, 20.0]"
    assert rows["SFT"]["value errors"] == "0.250 [0.250, 0.250]"
    assert "one seed: the evaluation's own 95 % bootstrap" in text and warnings == []


def test_an_empty_table_is_all_holes(folder: Path) -> None:
    text, warnings = table([FOLDER])
    assert {row["all"] for row in grid(text).values()} == {"-"}
    assert grid(text)["SFT"]["seeds"] == "0/3, no 0, 1, 2" and "A dash is a hole" in text
    assert warnings == ["results: no such folder, so every cell is a hole. Set results=DIR."]


def test_a_column_that_a_preset_does_not_measure(folder: Path, write: Callable[..., Path]) -> None:
    for cell in found(folder, preset="cluster"):
        write(cell)
    text, warnings = table([FOLDER, "preset=cluster"])
    assert "value errors" not in grid(text)["ours"] and warnings == []
    assert "Columns that preset cluster does not measure: value errors." in text
    content = copy.deepcopy(TABLE)
    content["published"].append({"row": "sft", "column": "value", "value": 3.0, "source": "s", "trust": "secondary"})
    write_table(folder, content)
    text, _ = table([FOLDER, "preset=cluster"])
    assert grid(text)["SFT"]["value errors"] == "-" and grid(text)["SFT"]["value errors, Paper"] == "3.000<sup>s1</sup>"


def test_a_path_that_leads_nowhere_is_named(filled: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["columns"][0]["metric"] = "acuracy"
    write_table(filled, content)
    text, warnings = table([FOLDER])
    assert grid(text)["SFT"]["all"] == "-"
    assert any("x-sft-1.jsonl: no number at acuracy (column all, row sft)" in warning for warning in warnings)


def test_what_was_nothing_to_measure_is_a_dash(folder: Path, write: Callable[..., Path]) -> None:
    write(found(folder)[6], metrics=metrics(0.6, errors=None))
    text, warnings = table([FOLDER])
    assert grid(text)["ours"]["value errors"] == "-" and warnings == []


def test_rows_of_other_stage_versions_are_flagged(filled: Path, write: Callable[..., Path]) -> None:
    write(found(filled)[3], versions={**VERSIONS, "explore": 1, "select": 0})
    text, _ = table([FOLDER])
    assert "SFT<sup>†</sup>" in grid(text) and "ours" in grid(text)
    # The run had no select stage: its version plays no part.
    assert f"† SFT: built by other stage versions: explore 1 (now {VERSIONS['explore']})." in text


def test_published_numbers_are_shown_and_compared_only_with_the_same_thing(
    folder: Path, write: Callable[..., Path]
) -> None:
    for preset in ("embedded", "cluster"):
        for cell in found(folder, preset=preset):
            write(cell, name=f"{preset}{cell.label}", metrics=metrics(0.6))
    embedded, cluster = table([FOLDER])[0], table([FOLDER, "preset=cluster"])[0]
    assert grid(embedded)["ours"]["all, Paper"] == "58.1<sup>p1</sup>" == grid(cluster)["ours"]["all, Paper"]
    assert "ours - theirs" not in grid(embedded)["ours"] and "preset embedded runs something else" in embedded
    assert grid(cluster)["ours"]["ours - theirs"] == "+1.9" and grid(cluster)["SFT"]["ours - theirs"] == ""
    assert "1. v5, Table 2 (7B)." in cluster and "p printed in the paper" in cluster
    content = copy.deepcopy(TABLE)
    content["published"][0]["trust"] = "unclear"
    write_table(folder, content)
    unclear = table([FOLDER, "preset=cluster"])[0]
    assert grid(unclear)["ours"]["all, Paper"] == "58.1<sup>?1</sup>" and "ours - theirs" not in grid(unclear)["ours"]


def test_a_hole_inside_a_row_is_marked(folder: Path, write: Callable[..., Path]) -> None:
    for cell, errors in zip(found(folder)[3:6], (0.2, None, 0.4), strict=True):
        write(cell, metrics=metrics(0.5, errors=errors))
    text, _ = table([FOLDER])
    row = grid(text)["SFT"]
    assert row["seeds"] == "3/3" and row["all"] == "**50.0 [50.0, 50.0]**"
    assert row["value errors"].endswith("<sup>n=2</sup>") and "n=: of the row's seeds so many measured" in text
    rows = [row for row in csv.DictReader(io.StringIO(table([FOLDER, "format=csv"])[0])) if row["row"] == "sft"]
    assert [row["n"] for row in rows if row["kind"] == "cell"] == ["3", "2"]


def test_intervals_of_shares_end_where_shares_end(folder: Path, write: Callable[..., Path]) -> None:
    """0.90, 0.95, 1.00: 95 +- 12.4; errors 0.00, 0.02, 0.04: 0.02 +- 0.0497."""
    every = found(folder)
    for cell, value, errors in zip(every[3:6], (0.90, 0.95, 1.0), (0.0, 0.02, 0.04), strict=True):
        write(cell, metrics=metrics(value, errors=errors))
    text, _ = table([FOLDER])
    assert grid(text)["SFT"]["all"] == "**95.0 [82.6, 100.0]**"
    assert "[0.000, 0.070]" in grid(text)["SFT"]["value errors"]
    assert "Student-t interval, cut off where a share ends (0 and 100 %)." in text


def test_what_is_no_share_keeps_its_interval(folder: Path, write: Callable[..., Path]) -> None:
    content = copy.deepcopy(TABLE)
    content["columns"][0]["metric"] = "reward"
    write_table(folder, content)
    for cell, value in zip(found(folder)[3:6], (0.90, 0.95, 1.0), strict=True):
        write(cell, metrics={**metrics(0.5), "reward": value})
    text, _ = table([FOLDER])
    assert "[82.6, 107.4]" in grid(text)["SFT"]["all"] and "cut off" not in text


def test_cost_is_what_a_row_would_need_alone(filled: Path) -> None:
    """Six stages of 2 s; the evaluation of the warm-up is not ours; the warm-up row needs data, warm-up, evaluation."""
    rows = grid(table([FOLDER, "cost=true"])[0])
    assert (rows["SFT"]["seconds"], rows["SFT"]["tokens"]) == ("10", "40")
    assert (rows["warm-up"]["seconds"], rows["warm-up"]["tokens"]) == ("6", "20")


# ---- formats --------------------------------------------------------------------------------------------------------


def test_latex_escapes_what_it_must(filled: Path) -> None:
    text, _ = table([FOLDER, "format=latex"])
    assert r"SimPO \& friends: 100 \% of \#1\_a" in text and r"\usepackage{booktabs}" in text
    body = re.sub(r"(?m)^%.*$", "", text)
    assert text.startswith("% Needs \\usepackage{booktabs} and \\usepackage{graphicx} (for \\resizebox).")
    assert body.count(r"\resizebox{\textwidth}{!}{\begin{tabular}") == 2 == body.count(r"\end{tabular}}")
    for char in "%#_":
        assert not re.search(rf"(?<!\\){char}", body), char
    opened = re.findall(r"\\begin\{(\w+)\}", body)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", body)) == ["table", "tabular", "tabular"]
    assert body.count("{") == body.count("}") and body.count(r"\toprule") == body.count(r"\bottomrule") == 2
    for block in re.findall(r"(?s)\\begin\{tabular\}\{(\w+)\}(.*?)\\end", body):
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(block[0])}
    assert r"\textbf{60.0 [50.0, 100.0]}\textsuperscript{*}" in body


def test_a_star_after_a_line_break_of_latex_stays_a_star(filled: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"][1]["label"], content["rows"][2]["label"] = "*starred", "[b]"
    write_table(filled, content)
    text, _ = table([FOLDER, "format=latex"])
    assert "{}* one seed" in text and "{}*starred" in text and "{}[b]" in text
    assert not re.search(r"(\\\\|rule)\s*[*\[]", text)


def test_a_narrow_table_of_latex_is_not_scaled(folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["published"], content["differences"] = [], []
    write_table(folder, content)
    text, _ = table([FOLDER, "format=latex"])
    assert text.startswith("% Needs \\usepackage{booktabs}.\n") and "resizebox" not in text


def test_csv_holds_every_number_to_the_last_digit(filled: Path) -> None:
    text, _ = table([FOLDER, "format=csv"])
    rows = list(csv.DictReader(io.StringIO(text)))
    (sft,) = [row for row in rows if (row["row"], row["column"], row["kind"]) == ("sft", "all", "cell")]
    assert float(sft["value"]) == pytest.approx(53.0, abs=1e-12) and sft["interval"] == "t"
    assert float(sft["high"]) - float(sft["value"]) == pytest.approx(100 * 4.302653 * 0.03 / 3**0.5, abs=1e-4)
    (ours,) = [row for row in rows if (row["row"], row["column"], row["kind"]) == ("ours", "all", "cell")]
    assert (ours["seeds"], ours["missing"], ours["published"], ours["trust"]) == ("0", "1 2", "58.1", "printed")
    (difference,) = [row for row in rows if row["kind"] == "difference"]
    assert (difference["row"], difference["against"]) == ("ours", "sft")
    assert float(difference["value"]) == pytest.approx(10.0)
    assert difference["over_seeds"] == difference["samples"] == "" and difference["verdict"].startswith("no interval")
    assert len(rows) == 3 * 2 + 1 and set(rows[0]) == set(render.CSV_HEAD)


def test_html_is_well_formed_and_escaped(folder: Path) -> None:
    content: dict[str, Any] = copy.deepcopy(TABLE)
    content["rows"][2]["label"] = "<script>alert('&')</script>"
    content["published"][0]["source"] = '<b>"'
    write_table(folder, content)
    text, _ = table([FOLDER, "format=html"])
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert root.tag == "html" and root.find(".//h1").text == TABLE["title"]
    assert "<script" not in text and "<b>" not in text
    labels = ["".join(cell.itertext()) for cell in root.find(".//tbody").findall("tr/th")]
    assert labels == ["warm-up", "SFT", "<script>alert('&')</script>"]


def test_markdown_cells_cannot_break_the_table(folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"][2]["label"] = "a | b *c*"
    write_table(folder, content)
    text, _ = table([FOLDER])
    assert "| a \\| b \\*c\\* |" in text


@pytest.mark.parametrize(("value", "said"), [(-0.0001, "0.00"), (0.005, "0.01"), (-1.5, "-1.50")])
def test_numbers_have_fixed_digits_and_no_negative_zero(value: float, said: str) -> None:
    assert render.number(value + 1e-9, 2) == said
    assert render.number(0.0, 1, sign=True) == "+0.0"


# ---- the command ----------------------------------------------------------------------------------------------------


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ttpa.results.tables.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_file_is_the_standard_output(filled: Path) -> None:
    shown, written = run(FOLDER, "format=latex"), run(FOLDER, "out=table.tex", "results=results", "store=store")
    assert (shown.returncode, written.returncode, written.stdout) == (0, 0, "")
    assert Path("table.tex").read_text() == shown.stdout and shown.stdout.startswith("%")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FOLDER, "preset=gpu"], "preset=gpu: not in .*Use one of embedded, cluster"),
        ([FOLDER, "format=pdf"], "format=pdf: unknown. Use one of markdown, latex, csv, html"),
        ([FOLDER, "fromat=csv"], "fromat"),
        ([FOLDER, "cost=yes"], "cost=yes: must be true or false"),
        ([FOLDER, "--verbose"], "--verbose: not of the form key=value"),
        ([FOLDER, "results="], "results=: is empty. Give a value, or leave it out"),
        ([FOLDER, "store="], "store=: is empty"),
        ([FOLDER, "out="], "out=: is empty"),
        ([], "Give one folder"),
        (["a", "b"], "Give one folder of experiments/, not a, b"),
        (["nowhere"], "nowhere/table.yaml: no such file"),
        ([FOLDER, "seed=0", "out=none/t.md"], "out=none/t.md: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ttpa.results.tables import cli

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["ttpa-table", *(words or ["seed=0"])])
        cli.main()
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("ttpa-table: warning")]
    assert re.match(f"ttpa-table: error: .*{said}", line)


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset=b: given twice"):
        split(["x", "preset=a", "preset=b"], ("preset",), "ttpa-table")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['ttpa-table', '--help']; from ttpa.results.tables.cli import main; main(); "
    code += "print(*{'torch', 'hydra', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("ttpa-table: from run records") and done.stdout.endswith("\n\n") and not done.stderr
