"""The command from outside: what it prints, what it refuses, what it leaves behind; and the words it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.results.report.conftest import Lab
from ttpa.errors import ConfigError
from ttpa.results.report import cli


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ttpa.results.report import cli; cli.main(); assert 'torch' not in sys.modules"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_page_is_written_and_named_with_its_size(lab: Lab) -> None:
    lab.row()
    done = command(lab.root, "made")
    assert done.returncode == 0, done.stderr
    size = (lab.root / "made.html").stat().st_size
    assert done.stdout == f"made.html ({size / 1e6:.2f} MB)\n"
    assert {path.name for path in lab.root.iterdir()} == {"made.html", "results", "store"}


def test_help() -> None:
    done = command(Path.cwd())
    assert done.returncode == 0
    for key in cli.KEYS:
        assert f"{key}=" in done.stdout


MISTAKES = {
    "no such run": (["nobody"], ["TARGET=nobody", "nothing of that name in results", "there are made"]),
    "one of two names": (["made,nobody"], ["TARGET=nobody"]),
    "no folder of results": (["made", "results=elsewhere"], ["elsewhere", "holds no results"]),
    "two targets": (["made", "made"], ["TARGET", "there must be one"]),
    "no target": (["samples=3"], ["TARGET", "there must be one"]),
    "unknown key": (["made", "sample=3"], ["sample=3", "unknown key", "samples"]),
    "an override of a run": (["made", "~logger"], ["~logger: unknown key", "with a table's folder overrides"]),
    "a preset of a run": (["made", "preset=foo"], ["preset=foo: of tables only"]),
    "no results": (["made", "results="], ["results=: is empty. Give a value, or leave it out."]),
    "an axis twice": (["made", "axes=sampler,sampler"], ["axes=sampler,sampler", "two names that differ"]),
    "a key twice": (["made", "out=a", "out=b"], ["out=b", "given twice"]),
    "not a count": (["made", "samples=many"], ["samples=many", "a whole number"]),
    "negative": (["made", "samples=-1"], ["samples=-1", "a whole number"]),
    "one axis": (["made", "axes=sampler"], ["axes=sampler", "two names"]),
    "unknown axis": (["made", "axes=sampler,color"], ["axes=color", "no option group"]),
    "a folder without a table": (["results"], ["table.yaml"]),
    "no file of a table": (["none/table.yaml"], ["none/table.yaml: no such file"]),
    "out is a folder": (["made", "out=results"], ["out=results", "is a folder"]),
    "out below a file": (["made", "out=results/x.jsonl/page.html"], ["out=", "cannot be written"]),
    "out in no folder": (["made", "out=no/such/page.html"], ["out=no/such/page.html", "is no folder"]),
    "damaged row": (["results/x.jsonl"], ["x.jsonl:1", "not a JSON line"]),
    "no row": (["results/y.jsonl"], ["y.jsonl:1", "no result row", "metrics"]),
    "empty": (["results/z.jsonl"], ["z.jsonl", "no result rows"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = MISTAKES[mistake]
    lab.row()
    for name, text in (("x", '{"run": '), ("y", '{"run": "a"}\n'), ("z", "\n")):
        (lab.results / f"{name}.jsonl").write_text(text)
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}
    monkeypatch.chdir(lab.root)
    monkeypatch.setattr(sys, "argv", ["ttpa-report", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("ttpa-report: error: ")
    for words_said in said:
        assert words_said in printed.err
    assert {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()} == before


def test_a_cut_row_of_a_sweep_is_left_out_and_said(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        lab.row(seed)
    cut = lab.row(2)
    cut.write_text(cut.read_text()[:100])
    monkeypatch.chdir(lab.root)
    monkeypatch.setattr(sys, "argv", ["ttpa-report", "made"])
    cli.main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("ttpa-report: warning: Left out: ") and f"{cut.name}:1" in said
    page = (lab.root / "made.html").read_text()
    assert "1 cell over 2 seeds" in page and f"{cut.name}:1: not a JSON line" in page


def test_no_folder_is_made_for_a_page(lab: Lab) -> None:
    lab.row()
    done = command(lab.root, "made", "out=no/such/page.html")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not (lab.root / "no").exists()


def test_a_page_is_replaced_whole_or_not_at_all(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttpa.results.report import page

    out = lab.root / "page.html"
    page.write("old", out)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        page.write("new", out)
    assert out.read_text() == "old"
    assert [path.name for path in lab.root.iterdir()] == ["page.html"]


def test_a_stage_name_cannot_lead_out_of_the_store(lab: Lab) -> None:
    from ttpa.errors import DataError
    from ttpa.results.report.rows import read_rows

    file = lab.row()
    file.write_text(file.read_text().replace(lab.stages["data/0"], "../../secret"))
    with pytest.raises(DataError, match=r"stages.data='../../secret' names no stage"):
        read_rows([file])


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["demo"], "demo.html"),
        (["a,b"], "a+b.html"),
        (["experiments/itool_main"], "itool_main.html"),
        (["experiments/itool_main/"], "itool_main.html"),
        (["experiments/itool_main/table.yaml"], "itool_main.html"),
        (["results/demo-0123456789ab.jsonl"], "demo-0123456789ab.html"),
        (["demo", "out=x/y.html"], "x/y.html"),
    ],
)
def test_where_a_page_goes(words: list[str], out: str) -> None:
    assert str(cli.parse(words).out) == out


def test_a_target_may_hold_an_equals_sign_in_its_folder() -> None:
    assert cli.parse(["results/lr=3/x.jsonl"]).target == "results/lr=3/x.jsonl"
    with pytest.raises(ConfigError, match="unknown key"):
        cli.parse(["lr=3"])
