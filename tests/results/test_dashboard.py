"""`ttpa dashboard` without a key: the pages as JSON, read back; and what it says when it cannot."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, TtpaError
from ttpa.results import dashboard
from ttpa.results.dashboard import PAGES
from ttpa.run.tracking import option_key

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")  # its own, of pydantic


@pytest.fixture
def pages(alone: Path) -> dict[str, Any]:
    assert dashboard.main(["demo", "entity=team", "project=tools", "out=pages/demo.json"]) == 0
    return json.loads((alone / "pages" / "demo.json").read_text())


def test_the_workspace_shows_the_sweep_by_option_error_curve_and_run(pages: dict[str, Any]) -> None:
    workspace = pages["workspace"]
    assert (workspace["entity"], workspace["project"], workspace["displayName"]) == ("team", "tools", "demo ablation")
    sections = {one["name"]: one["panels"] for one in workspace["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Accuracy by option", "Six errors and call count", "Training curves", "Runs"]
    bars = [one["config"] for one in sections["Accuracy by option"]]
    assert [bar["groupBy"] for bar in bars] == [f"{option_key(group)}.value" for group in PAGES["groups"]]
    assert all(bar["metrics"] == ["accuracy/value"] and bar["groupArea"] == "stderr" for bar in bars)
    assert [one["config"]["metrics"] for one in sections["Six errors and call count"]] == [
        [f"errors/{x}/value"] for x in LABELS
    ]
    assert [one["config"]["metrics"] for one in sections["Training curves"]] == [[name] for name in PAGES["curves"]]
    assert all(name in json.dumps(sections["Runs"]) for name in (*PAGES["tables"], "Run Comparer"))
    (runset,) = workspace["spec"]["section"]["runSets"]
    (found,) = runset["filters"]["filters"]
    assert (found["key"], found["op"], found["value"]) == ({"section": "run", "name": "group"}, "=", "demo")
    assert runset["grouping"] == [{"section": "run", "name": "jobType"}]
    assert {"summary:accuracy/value", "config:objective_option.value"} <= set(runset["runFeed"]["columnPinned"])


def test_the_report_has_each_section_over_its_stages_and_no_panel_over_another(pages: dict[str, Any]) -> None:
    blocks = pages["report"]["spec"]["blocks"]
    assert all(section in json.dumps(blocks) for section in PAGES["texts"])
    stages, panels = [], 0
    for grid in (block["metadata"] for block in blocks if block["type"] == "panel-grid"):
        filters = {one["key"]["name"]: one["value"] for one in grid["runSets"][0]["filters"]["filters"]}
        assert filters["group"] == "demo"
        stages.append(filters.get("jobType"))
        boxes = [one["layout"] for one in grid["panelBankSectionConfig"]["panels"]]
        panels += len(boxes)
        assert all(0 <= box["x"] <= 24 - box["w"] for box in boxes), "the grid is 24 wide"
        for two in itertools.combinations(boxes, 2):
            assert any(a[at] + a[size] <= b[at] for a, b in (two, two[::-1]) for at, size in ("xw", "yh"))
        assert len({box["x"] for box in boxes}) == 24 // boxes[0]["w"], "rows are filled"
    assert stages == [["evaluate"], ["evaluate"], ["warmup", "align"], None]
    assert panels == len(PAGES["groups"]) + len(LABELS) + len(PAGES["curves"]) + len(PAGES["tables"]) + 1


def test_charts_ask_for_what_the_tracker_and_the_training_loops_log() -> None:
    """Names that nothing writes would give empty charts without a word."""
    root = Path(__file__).resolve().parents[2] / "ttpa"
    code = "".join(path.read_text() for path in (root / "train").rglob("*.py"))
    assert [name for name in PAGES["curves"] if f'"{name}"' not in code] == []
    tracker = (root / "results" / "wandb.py").read_text()
    assert [name for name in PAGES["tables"] if f'"{name}"' not in tracker] == []


def test_with_a_key_both_pages_are_saved_and_a_refusal_is_one_line(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.main(["demo"]) == 0 and capsys.readouterr().out == "demo-dashboard.json\n"
    saved: list[Any] = []

    def save(page: Any) -> Any:
        saved.append(page)
        if page.entity == "nobody":
            raise ValueError("no such entity")
        return SimpleNamespace(url=f"https://wandb.example.org/{len(saved)}")

    wr, ws = dashboard.packages()
    monkeypatch.setattr(ws.Workspace, "save", save)
    monkeypatch.setattr(wr.Report, "save", save)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert dashboard.main(["demo", "entity=team"]) == 0
    assert capsys.readouterr().out.split() == ["https://wandb.example.org/1", "https://wandb.example.org/2"]
    assert [type(page).__name__ for page in saved] == ["Workspace", "Report"]
    grid = next(block for block in saved[1].blocks if isinstance(block, wr.PanelGrid))
    assert (grid.runsets[0].entity, grid.runsets[0].project) == ("team", "ttpa")
    with pytest.raises(TtpaError, match="no such entity.*out=FILE"):
        dashboard.main(["demo", "entity=nobody"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a/b"], "target='a/b'"),
        (["demo", "projct=x"], r"projct=x: .*Did you mean project\?"),
        (["project=x"], "needs target"),
        (["demo", "out=folder"], r"out=folder: cannot be written \(Is a directory\)\. Give a file"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(words: list[str], said: str, alone: Path) -> None:
    (alone / "folder").mkdir()
    with pytest.raises(ConfigError, match=said):
        dashboard.main(words)


def test_the_missing_package_is_named_with_the_extra(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigError, match=r"pip install 'ttpa\[dashboard\]'"):
        dashboard.main(["demo", "out=x.json"])
    assert not list(alone.iterdir())
