"""The screen of a run: lines of a stage, the tables at the end, and differences in words."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ttpa.calls.six_errors import LABELS
from ttpa.results.view import ScreenView
from ttpa.run.pipeline import Branch, Outcome
from ttpa.run.store import StageResult


def shares(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 4}


def stage(folder: Path, name: str, right: int = 0, **metrics: Any) -> StageResult:
    """A stage's result; of an evaluation, with that many right answers of four."""
    path = folder / f"{name}-{right}"
    path.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(at), "cluster": str(at), "exact": at < right, "tags": []} for at in range(4)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StageResult(name=name, fingerprint=f"f{right}", path=path, metrics=metrics, cached=False, seconds=75.0)


def evaluated(folder: Path, right: int) -> StageResult:
    metrics = {
        "accuracy": shares(right / 4), "errors": {label: shares(0.25) for label in LABELS},
        "bands": {"easy": shares(0.5)}, "unseen_tool": None, "split": "test", "too_long": 0,
        "categories": {"a": shares(0.5)}, "bounds": {"low": shares(0.3), "high": shares(0.7)}, "decidable": shares(0.6),
        "totals": {"v4": {"non_live": {"value": None, "covered": 0.5, "depth": 1}}},
    }  # fmt: skip
    return stage(folder, "evaluate", right, **metrics)


def test_the_tables_of_a_run(tmp_path: Path) -> None:
    """The warm-up answers none right and the policy all: better by one, in words."""
    warmup, align = stage(tmp_path, "warmup", tokens=1234), stage(tmp_path, "align", tokens=None)
    explore = stage(tmp_path, "explore", tokens=99, samples=8, pairs=3, fallbacks=["one", "two"])
    stages = {"explore1": explore, "align1": align, "evaluation": evaluated(tmp_path, 4)}
    shown = io.StringIO()
    with ScreenView(shown, "x") as view:
        view.end("explore", explore)
        shared = {"warmup": warmup, "baseline": evaluated(tmp_path, 0)}
        branch = Branch("dpo", stages, OmegaConf.create())
        view.summary(Outcome(shared, (branch,), ("warmup", "align"), ("curves: here",)), "runs/x")
    text = shown.getvalue()
    words = [line.split() for line in text.splitlines()]
    assert "explore: done, 1:15, explore-f0, 3 pairs from 8 samples; FALLBACK: one; FALLBACK: two\n" in text
    assert ["warm-up", "0.000", "[-0.100,", "0.100]", "0.500", "75", "1,234"] in words
    assert ["dpo", "1.000", "[0.900,", "1.100]", "0.500", "75", "-"] in words
    assert ["(exploration)", "75", "99"] in words
    assert ["all", "answers,", "the", "rest", "right", "0.700", "0.700"] in words
    assert ["v4", "non", "live,", "50%", "covered", "-", "-"] in words
    assert ["dpo", *["0.250"] * len(LABELS)] in words
    assert "dpo - warm-up: +1.000 [+1.000, +1.000], better" in text
    assert "2 stages built (warmup, align)\nresolved configuration and log: runs/x\ncurves: here\n" in text


def test_a_text_is_only_text() -> None:
    with ScreenView(shown := io.StringIO(), "x") as view:
        view.expect(["[/] \x1b[2J"])
        view.note("[bold]x[/b] :smile: \x1b]0;title\x07\r")
        view.console.print(view._stages())
    assert "[bold]x[/b] :smile: \\x1b]0;title\\x07\\r" in shown.getvalue()
    assert "[/] \\x1b[2J" in shown.getvalue() and "\x1b" not in shown.getvalue()


def test_a_terminal_shows_states_and_time_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """3 of 10 done when this process begins and 5 after 10 seconds: the other 5 take 25."""
    now = [100.0]
    monkeypatch.setattr("ttpa.results.view.time.monotonic", lambda: now[0])
    monkeypatch.setattr(screen := io.StringIO(), "isatty", lambda: True)
    view = ScreenView(screen, "x")
    view.expect(["warm-up", "explore"])
    view.begin("warm-up")
    view.progress("warm-up", 3, 10, 0.0, "")
    assert view.lines["warm-up"].note == "3/10"
    now[0] += 10
    view.progress("warm-up", 5, 10, 1234.5, "loss 1")
    view.console.print(view._stages())
    shown = screen.getvalue()
    assert "running" in shown and "0:10" in shown and "waiting" in shown
    assert "5/10, 1,234 tokens/s, 0:25 left, loss 1" in " ".join(shown.split())
