"""`ttpa dashboard` without a key: the pages as JSON, read back; and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, TtpaError
from ttpa.results import dashboard
from ttpa.run.tracking import option_key

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")  # its own, of pydantic

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pages(alone: Path) -> dict[str, Any]:
    assert dashboard.main(["demo", "entity=team", "project=tools", "out=pages/demo.json"]) == 0
    return json.loads((alone / "pages" / "demo.json").read_text())


def panels(node: Any) -> Iterator[dict[str, Any]]:
    """Every panel below, in order."""
    if isinstance(node, dict):
        if "viewType" in node and "config" in node:
            yield node
            return
        for value in node.values():
            yield from panels(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels(value)


def test_the_workspace_shows_the_sweep_by_option_error_curve_and_run(pages: dict[str, Any]) -> None:
    workspace = pages["workspace"]
    assert (workspace["entity"], workspace["project"], workspace["displayName"]) == ("team", "tools", "demo ablation")
    sections = {one["name"]: one["panels"] for one in workspace["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Accuracy by option", "Six errors", "Training curves", "Runs"]
    bars = [one["config"] for one in sections["Accuracy by option"]]
    assert [bar["groupBy"] for bar in bars] == [f"{option_key(group)}.value" for group in dashboard.GROUPS]
    assert all(bar["metrics"] == ["accuracy/value"] and bar["groupArea"] == "stderr" for bar in bars)
    assert [one["config"]["metrics"] for one in sections["Six errors"]] == [[f"errors/{x}/value"] for x in LABELS]
    assert [one["config"]["metrics"] for one in sections["Training curves"]] == [[name] for name in dashboard.CURVES]
    shown = json.dumps(sections["Runs"])
    assert all(name in shown for name in dashboard.TABLES) and "Run Comparer" in shown


def test_the_workspace_holds_the_runs_of_that_name_only(pages: dict[str, Any]) -> None:
    (runset,) = pages["workspace"]["spec"]["section"]["runSets"]
    (found,) = runset["filters"]["filters"]
    assert (found["key"], found["op"], found["value"]) == ({"section": "run", "name": "group"}, "=", "demo")
    assert runset["grouping"] == [{"section": "run", "name": "jobType"}]
    assert "summary:accuracy/value" in runset["runFeed"]["columnPinned"]
    assert "config:objective_option.value" in runset["runFeed"]["columnPinned"]


def test_the_report_has_text_and_each_section_over_its_stages(pages: dict[str, Any]) -> None:
    blocks = pages["report"]["spec"]["blocks"]
    text = json.dumps(blocks)
    for section, said in dashboard.TEXTS.items():
        assert section in text and said[:60] in text
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    kinds = []
    for grid in grids:
        (runset,) = grid["metadata"]["runSets"]
        filters = {one["key"]["name"]: one["value"] for one in runset["filters"]["filters"]}
        assert filters["group"] == "demo"
        kinds.append(filters.get("jobType"))
    assert kinds == [["evaluate"], ["evaluate"], ["warmup", "align"], None]
    assert len(list(panels(pages["report"]))) == len(list(panels(pages["workspace"])))
    places = [[tuple(panel["layout"].values()) for panel in panels(grid)] for grid in grids]
    assert all(len(set(place)) == len(place) for place in places), "no panel hides another"


def test_charts_ask_for_what_the_tracker_and_the_training_loops_log() -> None:
    """Names that nothing writes would give empty charts without a word."""
    root = Path(__file__).resolve().parents[2] / "ttpa"
    code = "".join(path.read_text() for path in (root / "train").rglob("*.py"))
    assert [name for name in dashboard.CURVES if f'"{name}"' not in code] == []
    tracker = (root / "results" / "wandb.py").read_text()
    assert [name for name in dashboard.TABLES if f'"{name}"' not in tracker] == []


def test_without_a_key_the_file_is_named_after_the_sweep(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["demo"]) == 0
    assert capsys.readouterr().out == "demo-dashboard.json\n"
    assert json.loads((alone / "demo-dashboard.json").read_text())["project"] == "ttpa"


def test_with_a_key_both_pages_are_saved(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[Any] = []

    def save(page: Any) -> Any:
        saved.append(page)
        return type("Saved", (), {"url": f"https://wandb.example.org/{len(saved)}"})

    wr, ws = dashboard._packages()
    monkeypatch.setattr(ws.Workspace, "save", save)
    monkeypatch.setattr(wr.Report, "save", save)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert dashboard.main(["demo", "entity=team"]) == 0
    assert capsys.readouterr().out.split() == ["https://wandb.example.org/1", "https://wandb.example.org/2"]
    assert [type(page).__name__ for page in saved] == ["Workspace", "Report"]
    (grid, *_) = [block for block in saved[1].blocks if isinstance(block, wr.PanelGrid)]
    assert (grid.runsets[0].entity, grid.runsets[0].project) == ("team", "ttpa")
    assert not list(alone.glob("*.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a/b"], "target='a/b'"),
        (["demo", "projct=x"], r"projct=x: .*Did you mean project\?"),
        (["demo", "other"], "target=other: given twice"),
        (["project=x"], "needs target"),
        (["demo", "out=folder"], r"out=folder: cannot be written \(Is a directory\)\. Give a file"),
        (["demo", "out=file/x.json"], r"out=file/x.json: cannot be written \(File exists\)"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(words: list[str], said: str, alone: Path) -> None:
    (alone / "folder").mkdir()
    (alone / "file").touch()
    with pytest.raises(ConfigError, match=said):
        dashboard.main(words)


@pytest.mark.usefixtures("alone")
def test_a_refusal_of_the_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise ValueError("no such entity")

    monkeypatch.setattr(dashboard._packages()[1].Workspace, "save", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    with pytest.raises(TtpaError, match="no such entity.*out=FILE"):
        dashboard.main(["demo", "entity=nobody"])


def test_the_missing_package_is_named_with_the_extra(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigError, match=r"pip install 'ttpa\[dashboard\]'"):
        dashboard.main(["demo", "out=x.json"])
    assert not list(alone.iterdir())


def test_its_module_needs_no_package(tmp_path: Path) -> None:
    code = "import sys; from ttpa.results import dashboard; print(sorted({'wandb', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n" and dashboard.HELP.startswith("ttpa dashboard NAME")
