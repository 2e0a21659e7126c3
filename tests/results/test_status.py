"""`ttpa-status`: the plan of a cell is what a run would build, and every state is told with what comes next."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.results.tables.conftest import row_of
from tests.run.test_pipeline import SMALL, built, run_here
from ttpa.results import status
from ttpa.results.tables import cells, spec
from ttpa.run.locks import StageLock
from ttpa.run.store import StageResult

SAMPLERS = {
    "group": [],
    "hot": ["sampler.temperature=0.7"],
    "tps": ["sampler=tps"],
    "cold": ["sampler.temperature=0.5"],
}
ROWS = [{"key": name, "label": name, "overrides": words} for name, words in SAMPLERS.items()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "experiments" / "four"
    made.mkdir(parents=True)
    preset = {"overrides": [*SMALL], "seeds": [0], "waves": ["warmup", "explore", None]}
    content = {"title": "four", "claim": "four states.", "rows": ROWS, "presets": {"embedded": preset},
               "columns": [{"key": "all", "label": "all", "metric": "accuracy"}]}  # fmt: skip
    (made / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return made


def with_plans(folder: Path, *extra: str) -> list[tuple[cells.Cell, dict[str, StageResult]]]:
    wanted = spec.load(folder)
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, wanted.preset(None), extra)
        return [(cell, status.plan(cell.cfg())) for cell in every]


def finish(stage: StageResult) -> None:
    stage.path.mkdir(parents=True, exist_ok=True)
    (stage.path / "done.json").write_text("{}")


def write_record(cell: cells.Cell, stages: dict[str, StageResult], **changes: Any) -> None:
    Path("results").mkdir(exist_ok=True)
    names = {role: stage.path.name for role, stage in stages.items()}
    (Path("results") / f"{cell.row.key}-{cell.seed}.jsonl").write_text(
        json.dumps(row_of(cell, stages=names, **changes)) + "\n"
    )


def test_the_plan_names_the_stages_that_a_run_builds(folder: Path) -> None:
    words = ("select=perplexity", "select.keep_fraction=0.5", "objective=dpo", "experiment=demo")
    with cells.Composer() as composer:
        cfg = composer.whole([*SMALL, *words]).copy()
        planned = status.plan(cfg)
    assert not Path("store").exists() and not any(stage.cached for stage in planned.values())
    assert list(planned) == ["data", "warmup", "baseline", "select1", "explore1", "align1", "evaluation"]
    run_here(*words)
    there = {path.name for path in Path("store").iterdir() if (path / "done.json").exists()}
    assert {stage.path.name for stage in planned.values()} <= there
    assert len(there) == len(built(Path())) == len(planned) + 2 * 2  # the controls' alignments and evaluations
    with cells.Composer():
        assert all(stage.cached for stage in status.plan(cfg).values())


def test_the_four_states(folder: Path) -> None:
    plans = with_plans(folder)
    for role in ("data", "warmup", "baseline"):
        finish(plans[0][1][role])
    write_record(*plans[0])
    failed = plans[1][1]["explore1"].path.with_suffix(".part")
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback ...")
    running = plans[2][1]["explore1"].path
    lock = StageLock(running.with_name(f"{running.name}.lock"), 5.0)
    assert lock.acquire() is None
    try:
        lines, done = status.report(folder, None, [])
    finally:
        lock.release()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["group", "seed=0", "done"],
        ["hot", "seed=0", "failed"],
        ["tps", "seed=0", "running"],
        ["cold", "seed=0", "missing"],
    ]
    assert lines[0].endswith("done")
    assert f"explore1 ({failed.stem}), 2 of 5 stages done: " in lines[1] and str(Path(*failed.parts[-2:])) in lines[1]
    assert (
        f"pid {os.getpid()} on " in lines[2] and re.search(r"heartbeat \d s ago", lines[2]) and running.name in lines[2]
    )
    assert lines[3].endswith("2 of 5 stages done")
    assert lines[4] == "4 cells of four, preset embedded: 1 done, 1 running, 1 failed, 1 missing" and not done


def test_a_lock_whose_holder_is_gone_is_no_running_cell(folder: Path) -> None:
    plans = with_plans(folder)
    path = plans[0][1]["data"].path
    path.parent.mkdir()
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text("{}")  # what a killed builder leaves
    before = lock.stat().st_mtime_ns
    lines, _ = status.report(folder, None, [])
    assert "missing" in lines[0] and "interrupted, its holder is gone" in lines[0]
    assert lock.stat().st_mtime_ns == before and not (path.parent / f"{path.name}.part").exists()


def test_a_cell_that_cannot_run_says_why(folder: Path) -> None:
    lines, done = status.report(folder, None, ["pairs=siblings"])
    assert "failed" in lines[0] and "Use sampler=mcts" in lines[0] and not done


def test_a_value_of_another_type_is_said_as_a_run_says_it(folder: Path) -> None:
    lines, done = status.report(folder, None, ["sampler.n=abc"])
    said = "sampler.n=abc: must be a whole number (the default is 6), not text. See conf/sampler/ for what it means."
    assert lines[0] == f"group seed=0  failed   {said}" and not done


@pytest.mark.parametrize(
    ("changed", "said"), [({"versions": {"align": 0}}, "built by align 0"), ({}, "built by other files")]
)
def test_an_outdated_record_is_done_and_said(changed: dict[str, Any], said: str, folder: Path) -> None:
    plans = with_plans(folder)
    for cell, stages in plans:
        if cell.row.key == "tps":
            write_record(cell, {**stages, "evaluation": stages["baseline"]}, **changed)
        else:
            write_record(cell, stages)
    lines, done = status.report(folder, None, [])
    assert done and lines[-1].endswith("4 done (1 of them outdated)")
    assert f"outdated: {said}, see results/tps-0.jsonl" in lines[2]


@pytest.mark.parametrize(("words", "code"), [(["preset=gpu"], 2), (["sampler.x=1"], 2), ([], 1)])
def test_the_exit_status(
    words: list[str], code: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ttpa-status", "experiments/four", *words])
    with pytest.raises(SystemExit) as caught:
        status.main()
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err == "" if code == 1 else err.startswith("ttpa-status: error: ") and err.count("\n") == 1


def test_warnings_about_records_are_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, stages = with_plans(folder)[0]
    write_record(cell, stages, seed=[0])
    monkeypatch.setattr(sys, "argv", ["ttpa-status", "experiments/four"])
    with pytest.raises(SystemExit):
        status.main()
    shown = capsys.readouterr()
    assert shown.err == (
        "ttpa-status: warning: results/group-0.jsonl:1: no run record (seed is no whole number), left out.\n"
    )
    assert "4 missing" in shown.out
