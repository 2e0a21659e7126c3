"""`ttpa report` as a command: what it prints, refuses and leaves behind; and the page of a table's folder."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.results.report.conftest import Html, Lab
from tests.results.table_cases import found, row_of
from ttpa.errors import TtpaError
from ttpa.io import write_jsonl
from ttpa.results import table
from ttpa.results.report import report as command
from ttpa.results.report.study import records_of, study_of

ROOT = Path(__file__).resolve().parents[3]


def test_a_page_is_written_and_named_with_its_size(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    row = lab.row()
    words = [sys.executable, "-m", "ttpa.cli", "report", "made"]
    done = subprocess.run(words, cwd=lab.root, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"made.html ({(lab.root / 'made.html').stat().st_size / 1e6:.2f} MB)\n", done.stderr
    monkeypatch.chdir(lab.root)
    assert command.main([str(row)]) == 0
    assert {path.name for path in lab.root.iterdir()} == {"made.html", f"{row.stem}.html", "results", "store"}
    keys = command.Form.__dataclass_fields__.keys() - {"target", "overrides"}
    assert all(f"{key}=" in command.HELP for key in keys)


MISTAKES = {
    "no such run": (["made,nobody"], ["TARGET=nobody", "nothing of that name in results", "there are made"]),
    "unknown key": (["made", "sample=3"], ["sample=3"]),
    "an override of a run": (["made", "~logger"], ["~logger: for tables only"]),
    "not a count": (["made", "samples=many"], ["samples='many'"]),
    "one axis": (["made", "axes=sampler"], ["axes=sampler", "two names"]),
    "unknown axis": (["made", "axes=sampler,color"], ["axes=color", "no option group"]),
    "a folder without a table": (["results"], ["table.yaml"]),
    "out is a folder": (["made", "out=results"], ["out=results", "is a folder"]),
    "out in no folder": (["made", "out=no/such/page.html"], ["out=no/such/page.html"]),
    "damaged row": (["results/x.jsonl"], ["x.jsonl:1", "no result row"]),
    "empty": (["results/z.jsonl"], ["z.jsonl", "no result row"]),
    "a stage elsewhere": (["results/s.jsonl"], ["../../secret", "names no stage"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    words, said = MISTAKES[mistake]
    whole = lab.row().read_text()
    for name, text in {"x": '{"run": ', "z": "\n", "s": whole.replace(lab.stages["data/0"], "../../secret")}.items():
        (lab.results / f"{name}.jsonl").write_text(text)
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}
    monkeypatch.chdir(lab.root)
    with pytest.raises(TtpaError) as caught:
        command.main(words)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in said), caught.value
    assert {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()} == before


def test_a_damaged_row_among_others_is_left_out_and_said(
    lab: Lab, report: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    lab.row()
    (lab.results / "made-00000000ffff.jsonl").write_text('{"run": ')
    assert "made-00000000ffff.jsonl:1: no result row" in Html(report("made")).text
    assert capsys.readouterr().err.startswith("ttpa report: warning: ")


# --- the page of a table's folder ------------------------------------------------------------------------------------


def fill(folder: Path, warmup_only: bool = False, **changes: object) -> None:
    """Records of the cells, whose stages are not in the store."""
    Path("results").mkdir()
    for number, cell in enumerate(found(folder)):
        if cell.row.warmup_only or not warmup_only:
            stages = {role: f"{role[:4]}-{cell.seed:06x}{len(cell.row.key):06x}" for role in row_of(cell)["stages"]}
            row = row_of(cell, stages=stages, run=f"{number}", **changes)
            write_jsonl(Path("results") / f"x-{number:012x}.jsonl", [row])


def test_the_page_of_a_table(folder: Path) -> None:
    assert command.main([str(folder), "preset=cluster"]) == 0
    html = Html(Path("demo.html").read_text())
    assert html.sections == {"accuracy"} and "0 of 3 cells have a result" in html.text
    fill(folder)
    assert command.main([str(folder / "table.yaml")]) == 0
    html = Html(Path("demo.html").read_text())
    for words in ("SimPO & friends", "Claim: the claim.", "58.1", "ours - SFT", "v5, Table 2", "are not in the store"):
        assert words in html.text, words
    assert [row[0][2:].removesuffix(" \u2020") for row in html.tables["All numbers"][1:]] == ["warm-up", "SFT", "ours"]


def test_a_warm_up_row_takes_nothing_of_a_foreign_policy(folder: Path, report: Callable[..., str]) -> None:
    """A record behind a warm-up row may be of any sweep that began with it; its policy is not in the table."""
    fill(folder, warmup_only=True, choices={"objective": "stranger"})
    html = Html(report(str(folder)))
    assert "stranger" not in html.text and "3 of 9 cells" in html.text
    assert {row[1] for row in html.tables["Stages"][1:]} == {"data", "warmup", "baseline"}


def test_a_warm_up_that_no_row_shows_is_a_policy(lab: Lab) -> None:
    for seed in (0, 1):
        lab.row(seed)
    records, _ = records_of("made", lab.results)
    rows = [row for row in table.from_records(records, lab.store).rows if not row.spec.warmup_only]
    study = study_of(rows, lab.store)
    assert next((arm.label, arm.warmup, sorted(arm.records)) for arm in study.arms) == ("warm-up", True, [0, 1])
    assert [one.stages.get("align1") for one in study.records] == [one.stages["align1"] for one in records]


@pytest.mark.parametrize("name", ["demo", "itool_main"])
def test_a_table_of_the_project_is_a_page(name: str, report: Callable[..., str]) -> None:
    page = Html(report(str(ROOT / "experiments" / name)))
    spec = yaml.safe_load((ROOT / "experiments" / name / "table.yaml").read_text(encoding="utf-8"))
    assert spec["title"] in page.text
