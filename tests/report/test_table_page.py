"""The page of a table's folder: its cells with what they are compared with, then the runs behind it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.conftest import Html
from tests.tables.conftest import TABLE, found, row_of, write_table
from ttpa.report.palette import contrast

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "experiments" / "small"
    made.mkdir(parents=True)
    write_table(made, TABLE)
    (tmp_path / "results").mkdir()
    return made


def fill(folder: Path, results: Path) -> None:
    """A row for each cell, with stages that are not in the store."""
    for number, cell in enumerate(found(folder)):
        stages = row_of(cell)["stages"]
        stages = {
            role: f"{name.partition('-')[0]}-{hashlib.sha256(f'{name}{cell.seed}'.encode()).hexdigest()[:12]}"
            for role, name in stages.items()
        }
        row = row_of(cell, stages=stages)
        row["metrics"]["accuracy"]["value"] = 0.5 + number / 100
        (results / f"x-{number:012x}.jsonl").write_text(json.dumps(row) + "\n")


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
