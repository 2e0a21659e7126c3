"""`ttpa status`: the plan of a cell is what a run would build, and every state is told with what comes next."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.results.table_cases import row_of
from tests.run.test_pipeline import SMALL, built, run_here
from ttpa.results import status
from ttpa.results.cells import TableCell, compose_run, open_hydra, read_cells
from ttpa.run.store import StageLock, StageResult

WORDS = {"group": "rounds=1", "hot": "sampler.temperature=0.7", "tps": "sampler=tps", "cold": "sampler.temperature=0.5"}
ROWS = [{"key": name, "label": name, "overrides": [word]} for name, word in WORDS.items()]


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


def with_plans(folder: Path) -> list[tuple[TableCell, dict[str, StageResult]]]:
    """Every cell with its plan, the evaluation of the warm-up included."""
    cells = read_cells(folder)[2]
    return [(cell, status.plan(OmegaConf.merge(cell.cfg, {"baseline": True}))) for cell in cells]


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], int]:
    """The lines of the command, and its exit status."""
    code = status.main(["experiments/four", *words])
    return capsys.readouterr().out.splitlines(), code


def finish(stage: StageResult) -> None:
    stage.path.mkdir(parents=True, exist_ok=True)
    (stage.path / "done.json").write_text("{}")


def write_record(cell: TableCell, stages: dict[str, StageResult], **changes: Any) -> None:
    Path("results").mkdir(exist_ok=True)
    names = {role: stage.path.name for role, stage in stages.items()}
    file = Path("results") / f"{cell.row.key}-{cell.seed}.jsonl"
    file.write_text(json.dumps(row_of(cell, stages=names, **changes)) + "\n")


def test_the_plan_names_the_stages_that_a_run_builds(folder: Path) -> None:
    words = ("select=perplexity", "select.keep_fraction=0.5", "objective=dpo", "experiment=demo")
    with open_hydra():
        cfg = compose_run([*SMALL, *words])
    planned = status.plan(cfg)
    assert not Path("store").exists() and not any(stage.cached for stage in planned.values())
    assert list(planned) == ["data", "warmup", "baseline", "select1", "explore1", "align1", "evaluation"]
    run_here(*words)
    there = {path.name for path in Path("store").iterdir() if (path / "done.json").exists()}
    assert {stage.path.name for stage in planned.values()} <= there
    assert len(there) == len(built(Path())) == len(planned) + 2 * 2  # the controls' alignments and evaluations
    assert all(stage.cached for stage in status.plan(cfg).values())


def test_the_four_states(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = with_plans(folder)
    for role in ("data", "warmup", "baseline"):
        finish(plans[0][1][role])
    write_record(*plans[0])
    failed = plans[1][1]["explore1"].path.with_suffix(".part")
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback ...")
    running = plans[2][1]["explore1"].path
    lock = StageLock(running.with_name(f"{running.name}.lock"))
    assert lock.acquire() is None
    try:
        lines, code = report(capsys)
    finally:
        lock.release()
    states = zip(WORDS, ("done", "failed", "running", "missing"), strict=True)
    assert [line.split()[:3] for line in lines[:4]] == [[key, "seed=0", state] for key, state in states]
    assert lines[0].endswith("done")
    assert f"explore1 ({failed.stem}), 2 of 5 stages done: " in lines[1] and str(Path(*failed.parts[-2:])) in lines[1]
    assert f"pid {os.getpid()} on " in lines[2] and running.name in lines[2]
    assert re.search(r"heartbeat \d s ago", lines[2])
    assert lines[3].endswith("2 of 5 stages done")
    assert lines[4] == "4 cells of four, preset embedded: 1 done, 1 running, 1 failed, 1 missing" and code == 1


def test_a_lock_whose_holder_is_gone_is_no_running_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = with_plans(folder)
    path = plans[0][1]["data"].path
    path.parent.mkdir()
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text("{}")  # what a killed builder leaves
    before = lock.stat().st_mtime_ns
    lines, _ = report(capsys)
    assert "missing" in lines[0] and "interrupted, its holder is gone" in lines[0]
    assert lock.stat().st_mtime_ns == before and not (path.parent / f"{path.name}.part").exists()


def test_check_compares_the_hashes_of_finished_stages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here("rounds=1", "until=warmup")
    capsys.readouterr()
    assert report(capsys, "check=true")[0][4:] == report(capsys)[0][4:]
    (weights,) = folder.parents[1].glob("store/warmup-*/policy/model/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    lines, code = report(capsys, "check=true")
    stage = f"store/{weights.parents[2].name}"
    said = "policy/model/model.safetensors holds other bytes than were written (SHA-256)"
    assert code == 1 and lines[5:] == [f"{stage}: {said}. Delete {stage} and run the same command again."]
    assert len(report(capsys)[0]) == 5


def test_a_cell_that_cannot_run_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, code = report(capsys, "pairs=siblings")
    assert "failed" in lines[0] and "Use sampler=mcts" in lines[0] and code == 1


def test_a_fallback_is_said_and_steers_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(*with_plans(folder)[0], fallbacks={"align1": ["no token tree\x1b[2J"], "explore1": []})
    lines, _ = report(capsys)
    assert lines[0].endswith(r"done     FALLBACK in align1: no token tree\x1b[2J")


@pytest.mark.parametrize(
    ("changed", "said"), [({"versions": {"align": 0}}, "built by align 0"), ({}, "built by other files")]
)
def test_an_outdated_record_is_done_and_said(
    changed: dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = with_plans(folder)
    for cell, stages in plans:
        if cell.row.key == "tps":
            write_record(cell, {**stages, "evaluation": stages["baseline"]}, **changed)
        else:
            write_record(cell, stages)
    Path("results/odd.jsonl").write_text("{")
    code = status.main(["experiments/four"])
    shown = capsys.readouterr()
    assert shown.err.startswith("ttpa status: warning: results/odd.jsonl:1: no result row (")
    lines = shown.out.splitlines()
    assert code == 0 and lines[-1].endswith("4 done (1 of them outdated)")
    assert f"outdated: {said}, see results/tps-0.jsonl" in lines[2]
