"""The page of a table's folder: its cells with what they are compared with, then the runs behind it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.results.report.conftest import Html
from tests.results.table_cases import TABLE, found, row_of, write_table
from ttpa.results.cells import TableCell as Cell
from ttpa.results.report import cli, of_table
from ttpa.results.report.gather import Arm, Gathered, gather_rows
from ttpa.results.report.palette import contrast
from ttpa.results.report.rows import Record

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "experiments" / "small"
    made.mkdir(parents=True)
    write_table(made, TABLE)
    (tmp_path / "results").mkdir()
    return made


def whole_row(cell: Cell) -> dict[str, Any]:
    """A row of a cell, with stages that are not in the store."""
    stages = {
        role: f"{name.partition('-')[0]}-{hashlib.sha256(f'{name}{cell.seed}'.encode()).hexdigest()[:12]}"
        for role, name in row_of(cell)["stages"].items()
    }
    return row_of(cell, stages=stages)


def fill(folder: Path, results: Path, wanted: Callable[[Cell], bool] = lambda cell: True) -> None:
    """A row for each cell."""
    for number, cell in enumerate(found(folder)):
        if wanted(cell):
            row = whole_row(cell)
            row["metrics"]["accuracy"]["value"] = 0.5 + number / 100
            (results / f"x-{number:012x}.jsonl").write_text(json.dumps(row) + "\n")


def foreign(folder: Path, results: Path) -> None:
    """Rows of another experiment that began with the table's warm-up; their files come first."""
    for cell in found(folder):
        if cell.row.warmup_only:
            row = whole_row(cell)
            row["config"] = {**row["config"], "objective": {"stranger": True}}
            row |= {"choices": {"objective": "stranger"}, "run": f"f{cell.seed}"}
            row["stages"] |= {"evaluation": f"evaluate-ffffffffff{cell.seed:02d}", "align1": "align-ffffffffffff"}
            (results / f"a-{cell.seed:012x}.jsonl").write_text(json.dumps(row) + "\n")


def gathered(folder: Path, root: Path) -> Gathered:
    return gather_rows(of_table.read(folder, "", root / "results", root / "store").rows, root / "store", "t")


def ours(cell: Cell) -> bool:
    return not cell.row.warmup_only


def test_policies_are_the_tables_own(folder: Path, tmp_path: Path, report: Callable[..., str]) -> None:
    """A record behind a warm-up row may be of any sweep; its policy is not in the table."""
    foreign(folder, tmp_path / "results")
    fill(folder, tmp_path / "results", ours)
    made = gathered(folder, tmp_path)
    assert [arm.label for arm in made.policies] == [row["label"] for row in TABLE["rows"]]
    assert [sorted(arm.records) for arm in made.policies] == [[0, 1, 2]] * 3
    assert {record.file.name[0] for record in made.records} == {"x"}
    text = report(str(folder))
    for strange in ("stranger", "ffffffffff", "f0"):
        assert strange not in Html(text).text.replace("#", "")


def test_a_warm_up_that_no_row_covers_is_its_baseline_only(
    folder: Path, tmp_path: Path, report: Callable[..., str]
) -> None:
    foreign(folder, tmp_path / "results")
    made = gathered(folder, tmp_path)
    assert [arm.label for arm in made.policies] == ["warm-up"] and not made.arms
    assert {role for record in made.records for role in record.stages} == {"data", "warmup", "baseline"}
    assert "stranger" not in report(str(folder))
    fill(folder, tmp_path / "results", lambda cell: ours(cell) and cell.seed < 2)  # seed 2 has a warm-up alone
    made = gathered(folder, tmp_path)
    assert [sorted(arm.records) for arm in made.policies] == [[0, 1, 2], [0, 1], [0, 1]]
    assert [record.file.name[0] for record in made.starts[0].records.values()] == ["x", "x", "a"]
    text = report(str(folder))
    assert "stranger" not in text and "warmup \u00d73" in text and "evaluate SFT \u00d72" in text


def test_sections_below_the_table_use_its_words(folder: Path, tmp_path: Path, report: Callable[..., str]) -> None:
    fill(folder, tmp_path / "results", ours)
    text = report(str(folder))
    for section in ("accuracy", "errors", "graph", "settings"):
        part = text[text.index(f'<section id="{section}"') :]
        part = part[: part.index("</section>")]
        assert ">SFT<" in part or "evaluate SFT" in part, section
        assert ">ours<" in part or "evaluate ours" in part, section
        assert not re.search(r"\bNone\b", part), section


def test_what_rows_of_a_table_share_is_the_beginning_of_their_words() -> None:
    record = cast(Record, None)

    def common(*labels: str) -> str:
        arms = [Arm(label=label, records={0: record}) for label in labels]
        return Gathered(title="", records=[], arms=arms, starts=[], stages={}, varying=[], named=True).common(arms)

    assert common("SFT, 10 %", "SFT, 30 %") == "SFT"
    assert common("mcts_small: RFT", "mcts_small, siblings: RFT") == "mcts_small"
    assert common("without TPS", "without ESM") == ""  # a word alone says nothing
    assert common("ours", "theirs") == ""


def test_cells_with_fewer_seeds_are_marked(folder: Path, tmp_path: Path, report: Callable[..., str]) -> None:
    fill(folder, tmp_path / "results", lambda cell: ours(cell) and (cell.row.key == "sft" or cell.seed == 0))
    text = report(str(folder))
    part = text[text.index('<section id="table-heat"') :]
    part = part[: part.index("</section>")]
    assert "* fewer than the 3 seeds of other cells." in part
    assert part.count("53.0*</text>") == 0 and part.count("56.0*</text>") == 1


def test_a_row_that_the_report_cannot_read_is_left_out(
    folder: Path, tmp_path: Path, report: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(folder, tmp_path / "results", ours)
    file = sorted((tmp_path / "results").iterdir())[0]
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "choices": None}) + "\n")
    assert "choices missing or of another type" in report(str(folder))
    assert "ttpa-report: warning: Left out below the table: " in capsys.readouterr().err


def test_cells_published_numbers_and_runs(folder: Path, tmp_path: Path, report: Callable[..., str]) -> None:
    fill(folder, tmp_path / "results")
    page = Html(report(str(folder)))
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert {"table", "table-heat", "what", "graph", "accuracy", "errors", "settings", "provenance"} <= sections
    for words in ("SimPO & friends: 100 % of #1_a", "Claim: the claim.", "58.1", "ours - SFT", "preset embedded"):
        assert words in page.text
    assert "are not in the store" in page.text


def test_a_table_that_nobody_ran_is_holes(folder: Path, report: Callable[..., str]) -> None:
    page = Html(report(str(folder), preset="cluster"))
    assert {attributes["id"] for tag, attributes in page.tags if tag == "section"} == {"table", "runs"}
    assert "0 of 3 cells have a result" in page.text


def test_folders_and_overrides_are_those_of_the_other_commands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = copy.deepcopy(TABLE)
    content["presets"]["embedded"]["overrides"] = ["paths.results=there", "paths.store=here"]
    write_table(folder, content)
    monkeypatch.chdir(tmp_path)
    options = cli.parse([str(folder / "table.yaml"), "seed=1", "objective.beta=0.5", "out=page.html"])
    assert options.overrides == ("seed=1", "objective.beta=0.5")
    fill(folder, tmp_path / "results", lambda cell: cell.seed == 1)
    (tmp_path / "results").rename("there")
    made = of_table.read(folder, "", options.results, options.store, ["seed=1"])
    assert (str(made.results), str(made.store)) == ("there", "here")
    assert made.subtitle == "Table small, preset embedded: 3 of 3 cells have a result."


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "experiments").glob("*/table.yaml")))
def test_each_table_of_the_project_is_a_page(name: str, tmp_path: Path, report: Callable[..., str]) -> None:
    (tmp_path / "results").mkdir()
    Html(report(str(ROOT / "experiments" / name)))


def test_numbers_in_the_heat_map_can_be_read(folder: Path, tmp_path: Path, report: Callable[..., str]) -> None:
    fill(folder, tmp_path / "results")
    text = report(str(folder))
    picture = text[text.index("heat-table-title") :]
    picture = picture[: picture.index("</svg>")]
    grounds = re.findall(r'clip-path="[^"]*" style="fill: (#[0-9a-f]{6})', picture)
    inks = re.findall(r"fill: (#[0-9a-f]{6})[^>]*>[\d.]+<", picture)
    assert len(grounds) == len(inks) == 6
    assert all(contrast(ground, ink) >= 4.5 for ground, ink in zip(grounds, inks, strict=True))
