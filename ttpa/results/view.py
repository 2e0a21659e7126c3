"""What a person sees: the stage graph with live progress in a terminal, one line an event elsewhere, tables at the end.

Reads results, computes nothing but differences. The tables carry the controls of the run, so that no gain is shown
without what plain fine-tuning on the same answers (rft) or on the targets (gold) gives.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
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


def clock(seconds: float) -> str:
    """Minutes and seconds. Example: 75 -> "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(slots=True)
class _Line:
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

    def left(self) -> str:
        """Estimated time left, from the pace since this process began."""
        fresh = self.done - (self.first_done or 0)
        if fresh <= 0 or not self.total:
            return ""
        return clock((time.monotonic() - self.paced) / fresh * (self.total - self.done))


class ScreenView:
    """Redraws the graph in a terminal; prints a line an event when the output is a file or a pipe."""

    def __init__(self, stream: IO[str], title: str) -> None:
        # A file has no width of its own; the tables need about 120 columns.
        self.console = Console(file=stream, highlight=False, width=None if stream.isatty() else 120)
        self.title = title
        self.lines: dict[str, _Line] = {}
        self.live = (
            Live(console=self.console, refresh_per_second=4, get_renderable=self._graph) if stream.isatty() else None
        )
        self.printed = 0.0

    def __enter__(self) -> ScreenView:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    # --- what the pipeline tells ---------------------------------------------------------------------------------

    def expect(self, labels: Sequence[str]) -> None:
        self.lines = {label: _Line(label) for label in labels}

    def begin(self, label: str) -> None:
        line = self.lines.setdefault(label, _Line(label))
        line.state, line.began = "running", time.monotonic()
        self._say(f"{label}: started")

    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None:
        line = self.lines[label]
        if line.first_done is None:
            # What a resumed stage found done says nothing about this process's pace.
            line.first_done, line.paced = done, time.monotonic()
        line.done, line.total, line.tokens_per_s, line.note = done, total, tokens_per_s, note
        if time.monotonic() - self.printed > EVERY_S:
            self.printed = time.monotonic()
            self._say(f"{label}: {self._status(line)}")

    def end(self, label: str, result: StageResult) -> None:
        line = self.lines.setdefault(label, _Line(label))
        if line.state in ("done", "cached"):
            return  # a control came by a stage that the run itself has shown
        line.state = "cached" if result.cached else "done"
        line.seconds = result.seconds
        line.note = f"{result.name}-{result.fingerprint}{found(result)}"
        self._say(f"{label}: {line.state}, {clock(line.seconds)}, {line.note}")

    def note(self, message: str) -> None:
        self.console.print(message, markup=False)

    def _say(self, text: str) -> None:
        log.info("%s", text)
        if not self.live:
            self.console.print(text, markup=False, soft_wrap=True)

    def _status(self, line: _Line) -> str:
        parts = [
            f"{line.done}/{line.total}" if line.total else "",
            f"{line.tokens_per_s:,.0f} tokens/s" if line.tokens_per_s else "",
            f"{line.left()} left" if line.left() else "",
            line.note,
        ]
        return ", ".join(part for part in parts if part)

    def _graph(self) -> Table:
        table = Table(title=f"ttpa {self.title}", title_justify="left", box=None, pad_edge=False)
        for name, justify in (("stage", "left"), ("state", "left"), ("time", "right"), ("", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for line in self.lines.values():
            running = line.state == "running"
            spent = clock(time.monotonic() - line.began if running else line.seconds) if line.state != "waiting" else ""
            colour = {"running": "yellow", "done": "green", "cached": "cyan"}.get(line.state, "")
            table.add_row(
                line.label,
                f"[{colour}]{line.state}[/]" if colour else line.state,
                spent,
                self._status(line) if running else line.note,
            )
        return table

    # --- the end -------------------------------------------------------------------------------------------------

    def summary(self, outcome: Outcome, run_folder: str) -> None:
        """The tables of a run."""
        if outcome.cells and "evaluation" in outcome.cells[0].stages:
            for table in (accuracy_table(outcome), category_table(outcome), error_table(outcome)):
                if table is not None:
                    title, table.title = str(table.title), None  # rich would break it at the width of the table
                    self.console.print("", title, table, sep="\n", markup=False)
            for line in differences(outcome):
                self.console.print(line, markup=False)
        built = (
            f"{len(outcome.built)} stages built ({', '.join(outcome.built)})"
            if outcome.built
            else "nothing built: all from the store"
        )
        self.console.print(f"\n{built}\nresolved configuration and log: {run_folder}", markup=False, soft_wrap=True)


def found(result: StageResult) -> str:
    """The number of a stage that is worth a glance."""
    metrics = result.metrics
    failed = f", {metrics['failed']} samples FAILED (errors.jsonl says why)" if metrics.get("failed") else ""
    if result.name == "explore":
        return f", {metrics['pairs']} pairs from {metrics['samples']} samples{failed}"
    if result.name == "evaluate" and metrics["accuracy"]["value"] is not None:
        long = f", {metrics['too_long']} prompts TOO LONG, counted as wrong" if metrics["too_long"] else ""
        return f", accuracy {metrics['accuracy']['value']:.3f}{long}{failed}"
    if result.name == "data":
        parts = [f"{name} {count}" for name, count in metrics["samples"].items()]
        rejected = (
            f", {metrics['rows_rejected']} rows rejected (rejected.jsonl says why)"
            if metrics.get("rows_rejected")
            else ""
        )
        split, counts = next(iter(metrics["bands"].items()))
        bands = f"; bands of {split} " + ", ".join(f"{band} {n}" for band, n in counts.items())
        return ": " + ", ".join(parts) + bands + rejected
    if metrics.get("too_long"):
        return f", {metrics['too_long']} samples too long, left out"
    return ""


def policies(outcome: Outcome) -> dict[str, tuple[StageResult, StageResult]]:
    """Name -> (the stage that made the policy, its evaluation); the warm-up first, if it was evaluated."""
    rows = {"warm-up": (outcome.shared["warmup"], outcome.shared["baseline"])} if "baseline" in outcome.shared else {}
    for cell in outcome.cells:
        last = [stage for role, stage in cell.stages.items() if role.startswith("align")][-1]
        rows[cell.objective] = (last, cell.stages["evaluation"])
    return rows


def share(entry: Mapping[str, Any] | None, *, interval: bool = False) -> str:
    """A share as text, a dash where there was nothing to measure."""
    if not entry or entry["value"] is None:
        return "-"
    if interval and entry["low"] is not None:
        return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}"


def accuracy_table(outcome: Outcome) -> Table:
    """Exact-call accuracy by band and what each policy cost."""
    metrics = outcome.cells[0].stages["evaluation"].metrics
    table = Table(
        title=f"Exact-call accuracy, {metrics['split']} split ({metrics['accuracy']['n']} samples), 95 % interval",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    bands = list(metrics["bands"])
    for name in ("policy", "all", *bands, *(["unseen tool"] if metrics["unseen_tool"] else []), "seconds", "tokens"):
        table.add_column(name, justify="left" if name in ("policy", "all") else "right", no_wrap=True)
    for name, (stage, evaluation) in policies(outcome).items():
        m = evaluation.metrics
        tokens = stage.metrics.get("tokens")
        table.add_row(
            name,
            share(m["accuracy"], interval=True),
            *(share(m["bands"].get(b)) for b in bands),
            *([share(m["unseen_tool"])] if metrics["unseen_tool"] else []),
            f"{stage.seconds:.0f}",
            f"{tokens:,}" if tokens else "-",
        )
    for cell in outcome.cells[:1]:
        for role, stage in cell.stages.items():
            if role.startswith("explore"):
                blank = [""] * (len(table.columns) - 3)
                table.add_row("(exploration)", *blank, f"{stage.seconds:.0f}", f"{stage.metrics['tokens']:,}")
    return table


def category_table(outcome: Outcome) -> Table | None:
    """Accuracy by category of a benchmark, and its totals with the share covered; None for data without categories.

    A total that was not run is a dash.
    """
    found = {name: evaluation.metrics for name, (_, evaluation) in policies(outcome).items()}
    first = next(iter(found.values()))
    if "categories" not in first:
        return None
    table = Table(title="Accuracy by category, 95 % interval", title_justify="left", box=None, pad_edge=False)
    table.add_column("category")
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)
    for category in first["categories"]:
        table.add_row(category, *(share(metrics["categories"][category], interval=True) for metrics in found.values()))
    if "bounds" in first:  # of a benchmark that cannot tell about every answer
        table.add_row("share that can be judged", *(share(metrics["decidable"]) for metrics in found.values()))
        for bound, about in (("low", "the rest wrong"), ("high", "the rest right")):
            table.add_row(f"all answers, {about}", *(share(metrics["bounds"][bound]) for metrics in found.values()))
    for version, totals in first["totals"].items() if "totals" in first else ():
        for name, total in totals.items():
            values = [metrics["totals"][version][name]["value"] for metrics in found.values()]
            covered = "" if total["covered"] == 1 else f", {total['covered']:.0%} covered"
            table.add_row(
                f"{version}{'  ' * total['depth']} {name.replace('_', ' ')}{covered}",
                *("-" if value is None else f"{value:.3f}" for value in values),
            )
    return table


def error_table(outcome: Outcome) -> Table:
    """Share of answers that show each of the six errors, and calls too many or too few."""
    table = Table(title="Share of answers with each error", title_justify="left", box=None, pad_edge=False)
    table.add_column("policy")
    for label in LABELS:
        table.add_column(label.replace("_", " "), justify="right")
    for name, (_, evaluation) in policies(outcome).items():
        table.add_row(name, *(share(evaluation.metrics["errors"][label]) for label in LABELS))
    return table


def differences(outcome: Outcome) -> list[str]:
    """Paired differences of the run's objective against the warm-up and against the controls, in words."""
    rows = policies(outcome)
    exact = {name: exact_by_id(evaluation.path) for name, (_, evaluation) in rows.items()}
    lines = []
    main = outcome.cells[0].objective
    for other in rows:
        if other == main:
            continue
        mean, low, high = paired_difference(exact[main][0], exact[other][0], exact[main][1])
        verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        lines.append(f"{main} - {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}")
    return ["", *lines] if lines else []


def make_view(stream: IO[str] = sys.stdout, title: str = "run") -> ScreenView:
    """The view for an output stream."""
    return ScreenView(stream, title)
