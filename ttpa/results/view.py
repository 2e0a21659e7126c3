"""What a person sees of a run: the stages with live progress in a terminal, one line an event elsewhere, tables at the end.

Reads results and computes nothing but differences. The tables carry the controls of the run, so that no gain is shown
without what plain fine-tuning on the same answers (rft) or on the targets (gold) gives.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ttpa.calls.six_errors import LABELS
from ttpa.results.stats import exact_by_id, paired_difference
from ttpa.run.pipeline import Outcome
from ttpa.run.store import StageResult

log = logging.getLogger("ttpa")

EVERY_S = 10.0
"""Seconds between progress lines where the screen cannot be redrawn."""
COLOURS = {"waiting": "none", "running": "yellow", "done": "green", "cached": "cyan"}


def clock(seconds: float) -> str:
    """Minutes and seconds. Example: 75 -> "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(slots=True)
class StageLine:
    """What the screen shows of one stage. `first_done` and `paced` say how much was done when this process began."""

    label: str
    state: str = "waiting"
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    tokens_per_s: float = 0.0
    note: str = ""
    seconds: float = 0.0
    first_done: int | None = None
    paced: float = 0.0

    def status(self) -> str:
        """Count, speed, estimated time left (from the pace of this process), and the note."""
        fresh, left = self.done - (self.first_done or 0), ""
        if fresh > 0 and self.total:
            left = f"{clock((time.monotonic() - self.paced) / fresh * (self.total - self.done))} left"
        count = f"{self.done}/{self.total}" if self.total else ""
        speed = f"{self.tokens_per_s:,.0f} tokens/s" if self.tokens_per_s else ""
        return ", ".join(part for part in (count, speed, left, self.note) if part)


class ScreenView:
    """Redraws the stages in a terminal; prints a line an event when the output is a file or a pipe."""

    def __init__(self, stream: IO[str] = sys.stdout, title: str = "run") -> None:
        # A file has no width of its own; the tables need about 120 columns.
        self.console = Console(file=stream, highlight=False, width=None if stream.isatty() else 120)
        self.title = title
        self.lines: dict[str, StageLine] = {}
        self.live: Live | None = None
        if stream.isatty():
            self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._stages)
        self.printed = 0.0

    def __enter__(self) -> ScreenView:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    # --- what the pipeline tells ---------------------------------------------------------------------------------

    def expect(self, labels: Sequence[str]) -> None:
        self.lines = {label: StageLine(label) for label in labels}

    def begin(self, label: str) -> None:
        line = self.lines.setdefault(label, StageLine(label))
        line.state, line.began = "running", time.monotonic()
        self._say(f"{label}: started")

    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None:
        line = self.lines[label]
        if line.first_done is None:
            line.first_done, line.paced = done, time.monotonic()
        line.done, line.total, line.tokens_per_s, line.note = done, total, tokens_per_s, note
        if time.monotonic() - self.printed > EVERY_S:
            self.printed = time.monotonic()
            self._say(f"{label}: {line.status()}")

    def end(self, label: str, result: StageResult) -> None:
        line = self.lines.setdefault(label, StageLine(label))
        if line.state in ("done", "cached"):
            return  # a control came by a stage that the run itself has shown
        line.state = "cached" if result.cached else "done"
        line.seconds = result.seconds
        line.note = f"{result.name}-{result.fingerprint}{glance(result)}"
        self._say(f"{label}: {line.state}, {clock(line.seconds)}, {line.note}")

    def note(self, message: str) -> None:
        self.console.print(message, markup=False)

    def _say(self, text: str) -> None:
        log.info("%s", text)
        if not self.live:
            self.console.print(text, markup=False, soft_wrap=True)

    def _stages(self) -> Table:
        table = Table(title=f"ttpa {self.title}", title_justify="left", box=None, pad_edge=False)
        for name in ("stage", "state", "time", ""):
            table.add_column(name, justify="right" if name == "time" else "left")
        for line in self.lines.values():
            running = line.state == "running"
            spent = clock(time.monotonic() - line.began if running else line.seconds) if line.state != "waiting" else ""
            state = f"[{COLOURS[line.state]}]{line.state}[/]"
            table.add_row(line.label, state, spent, line.status() if running else line.note)
        return table

    # --- the end -------------------------------------------------------------------------------------------------

    def summary(self, outcome: Outcome, run_folder: str) -> None:
        """The tables of a run."""
        if outcome.branches and "evaluation" in outcome.branches[0].stages:
            for title, table in (accuracy_table(outcome), category_table(outcome), error_table(outcome)):
                if table.rows:
                    self.console.print("", title, table, sep="\n", markup=False)
            for text in differences(outcome):
                self.console.print(text, markup=False)
        built = "nothing built: all from the store"
        if outcome.built:
            built = f"{len(outcome.built)} stages built ({', '.join(outcome.built)})"
        self.console.print(f"\n{built}\nresolved configuration and log: {run_folder}", markup=False, soft_wrap=True)


def glance(result: StageResult) -> str:
    """The numbers of a stage that are worth a glance."""
    metrics = result.metrics
    failed = f", {metrics['failed']} samples FAILED (errors.jsonl says why)" if metrics.get("failed") else ""
    if result.name == "explore":
        return f", {metrics['pairs']} pairs from {metrics['samples']} samples{failed}"
    if result.name == "evaluate" and metrics["accuracy"]["value"] is not None:
        long = f", {metrics['too_long']} prompts TOO LONG, counted as wrong" if metrics["too_long"] else ""
        return f", accuracy {metrics['accuracy']['value']:.3f}{long}{failed}"
    if result.name == "data":
        sizes = ", ".join(f"{name} {count}" for name, count in metrics["samples"].items())
        split, counts = next(iter(metrics["bands"].items()))
        bands = ", ".join(f"{band} {n}" for band, n in counts.items())
        rejected = metrics.get("rows_rejected")
        bad = f", {rejected} rows rejected (rejected.jsonl says why)" if rejected else ""
        return f": {sizes}; bands of {split} {bands}{bad}"
    return f", {metrics['too_long']} samples too long, left out" if metrics.get("too_long") else ""


def policies(outcome: Outcome) -> dict[str, tuple[StageResult, StageResult]]:
    """Name -> (the stage that made the policy, its evaluation); the warm-up first, if it was evaluated."""
    rows = {"warm-up": (outcome.shared["warmup"], outcome.shared["baseline"])} if "baseline" in outcome.shared else {}
    for cell in outcome.branches:
        last = [stage for role, stage in cell.stages.items() if role.startswith("align")][-1]
        rows[cell.objective] = (last, cell.stages["evaluation"])
    return rows


def share_text(entry: Mapping[str, Any] | None, *, interval: bool = False) -> str:
    """A share `{value, low, high}` as text, a dash where there was nothing to measure."""
    if not entry or entry["value"] is None:
        return "-"
    spread = f" [{entry['low']:.3f}, {entry['high']:.3f}]" if interval and entry["low"] is not None else ""
    return f"{entry['value']:.3f}{spread}"


def _table(columns: Sequence[str], left: int = 1) -> Table:
    """A table without rows; its first `left` columns are aligned to the left."""
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at < left else "right", no_wrap=at > 0)
    return table


def accuracy_table(outcome: Outcome) -> tuple[str, Table]:
    """Title and table of exact-call accuracy by band and of what each policy cost."""
    first = outcome.branches[0].stages["evaluation"].metrics
    title = f"Exact-call accuracy, {first['split']} split ({first['accuracy']['n']} samples), 95 % interval"
    unseen = ["unseen tool"] if first["unseen_tool"] else []
    table = _table(["policy", "all", *first["bands"], *unseen, "seconds", "tokens"], left=2)
    for name, (stage, evaluation) in policies(outcome).items():
        metrics, tokens = evaluation.metrics, stage.metrics.get("tokens")
        shares = [metrics["bands"].get(band) for band in first["bands"]] + [metrics["unseen_tool"] for _ in unseen]
        costs = (f"{stage.seconds:.0f}", f"{tokens:,}" if tokens else "-")
        table.add_row(name, share_text(metrics["accuracy"], interval=True), *map(share_text, shares), *costs)
    for role, stage in outcome.branches[0].stages.items():
        if role.startswith("explore"):
            blank = [""] * (len(table.columns) - 3)
            table.add_row("(exploration)", *blank, f"{stage.seconds:.0f}", f"{stage.metrics['tokens']:,}")
    return title, table


def category_table(outcome: Outcome) -> tuple[str, Table]:
    """Title and table of accuracy by category of a benchmark, and its totals; no rows for data without categories.

    A total that was not run is a dash.
    """
    names, found = list(policies(outcome)), [evaluation.metrics for _, evaluation in policies(outcome).values()]
    table, first = _table(["category", *names]), found[0]
    for category in first.get("categories", ()):
        table.add_row(category, *(share_text(one["categories"][category], interval=True) for one in found))
    if "bounds" in first:  # of a benchmark that cannot tell about every answer
        table.add_row("share that can be judged", *(share_text(one["decidable"]) for one in found))
        for bound, about in (("low", "the rest wrong"), ("high", "the rest right")):
            table.add_row(f"all answers, {about}", *(share_text(one["bounds"][bound]) for one in found))
    for version, totals in first.get("totals", {}).items():
        for name, total in totals.items():
            covered = "" if total["covered"] == 1 else f", {total['covered']:.0%} covered"
            title = f"{version}{'  ' * total['depth']} {name.replace('_', ' ')}{covered}"
            table.add_row(title, *(share_text(one["totals"][version][name]) for one in found))
    return "Accuracy by category, 95 % interval", table


def error_table(outcome: Outcome) -> tuple[str, Table]:
    """Title and table of the share of answers that show each of the six errors, and calls too many or too few."""
    table = _table(["policy", *(label.replace("_", " ") for label in LABELS)])
    for name, (_, evaluation) in policies(outcome).items():
        table.add_row(name, *(share_text(evaluation.metrics["errors"][label]) for label in LABELS))
    return "Share of answers with each error", table


def differences(outcome: Outcome) -> list[str]:
    """Paired differences of the run's objective against the warm-up and against the controls, in words."""
    exact = {name: exact_by_id(evaluation.path) for name, (_, evaluation) in policies(outcome).items()}
    main, lines = outcome.branches[0].objective, [""]
    for other in (name for name in exact if name != main):
        mean, low, high = paired_difference(exact[main][0], exact[other][0], exact[main][1])
        verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        lines.append(f"{main} - {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}")
    return lines if len(lines) > 1 else []
