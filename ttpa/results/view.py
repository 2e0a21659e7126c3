"""What a person sees of a run: the stages with live progress in a terminal, one line an event elsewhere, tables at the
end. These carry the controls of the run, so that no gain is shown without what plain fine-tuning gives.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import IO, Any, Self

from omegaconf import DictConfig
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ttpa.calls.six_errors import LABELS
from ttpa.errors import visible
from ttpa.results.stats import exact_by_id, paired_difference, share_text
from ttpa.run import config
from ttpa.run.pipeline import Outcome
from ttpa.run.store import StageResult, fingerprint

log = logging.getLogger("ttpa")

EVERY_S = 10.0  # between progress lines where the screen cannot be redrawn
Policies = Mapping[str, tuple[StageResult, StageResult]]  # name -> the stage that made the policy, its evaluation
_brief = partial(share_text, digits=3, interval=False)
RANGE = Path(__file__).parent / "demo_range.json"
COLOURS = {"waiting": "none", "running": "yellow", "done": "green", "cached": "cyan"}


def clock(seconds: float) -> str:
    """Minutes and seconds. Example: 75 -> "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(slots=True)
class StageLine:
    """What the screen shows of one stage. `paced`: when its first news came, and how much was done by then."""

    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    note: str = ""
    paced: tuple[float, int] | None = None


class Screen(Console):
    """A console on which every text is only text: no markup, no emoji codes, nothing that steers a terminal."""

    def __init__(self, stream: IO[str]) -> None:
        # A file has no width of its own; the tables need about 120 columns.
        width = None if stream.isatty() else 120
        super().__init__(file=stream, highlight=False, markup=False, emoji=False, width=width)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


class ScreenView:
    """Redraws the stages in a terminal; prints a line an event when the output is a file or a pipe."""

    def __init__(self, stream: IO[str] = sys.stdout, title: str = "run") -> None:
        self.console = Screen(stream)
        self.title, self.printed, self.lines = title, 0.0, dict[str, StageLine]()
        live = partial(Live, console=self.console, refresh_per_second=4, get_renderable=self._stages)
        self.live = live() if stream.isatty() else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def expect(self, labels: Sequence[str]) -> None:
        self.lines = {label: StageLine() for label in labels}

    def begin(self, label: str) -> None:
        self.lines[label] = StageLine("running", began=time.monotonic())
        self._say(f"{label}: started")

    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None:
        line, now = self.lines[label], time.monotonic()
        since, before = line.paced = line.paced or (now, done)
        count = f"{done}/{total}" if total else ""
        speed = f"{tokens_per_s:,.0f} tokens/s" if tokens_per_s else ""
        left = f"{clock((now - since) / (done - before) * (total - done))} left" if total and done > before else ""
        line.note = ", ".join(filter(None, (count, speed, left, note)))
        if now - self.printed > EVERY_S:
            self.printed = now
            self._say(f"{label}: {line.note}")

    def end(self, label: str, result: StageResult) -> None:
        if label in self.lines and self.lines[label].state in ("done", "cached"):
            return  # a control came by a stage that the run itself has shown
        told = glance(result) + "".join(f"; FALLBACK: {text}" for text in result.metrics.get("fallbacks", ()))
        note, state = f"{result.name}-{result.fingerprint}{told}", "cached" if result.cached else "done"
        self.lines[label] = StageLine(state, seconds=result.seconds, note=note)
        self._say(f"{label}: {state}, {clock(result.seconds)}, {note}")

    def note(self, message: str) -> None:
        self.console.print(message)

    def _say(self, text: str) -> None:
        log.info("%s", text)
        if not self.live:
            self.console.print(text, soft_wrap=True)

    def _stages(self) -> Table:
        table = Table("stage", "state", title=f"ttpa {self.title}", title_justify="left", box=None, pad_edge=False)
        table.add_column("time", justify="right")
        table.add_column()
        for label, line in self.lines.items():
            spent = clock(time.monotonic() - line.began if line.state == "running" else line.seconds)
            table.add_row(
                label, Text(line.state, COLOURS[line.state]), "" if line.state == "waiting" else spent, line.note
            )
        return table

    def summary(self, outcome: Outcome, run_folder: str) -> None:
        """The tables of a run, the warm-up first if it was evaluated, and the differences to the run's objective."""
        if outcome.branches and "evaluation" in outcome.branches[0].stages:
            shared = outcome.shared
            found = {"warm-up": (shared["warmup"], shared["baseline"])} if "baseline" in shared else {}
            for cell in outcome.branches:
                last = [stage for role, stage in cell.stages.items() if role.startswith("align")][-1]
                found[cell.objective] = (last, cell.stages["evaluation"])
            explored = [stage for role, stage in outcome.branches[0].stages.items() if role.startswith("explore")]
            for title, columns, rows in tables(found, explored):
                table = Table(box=None, pad_edge=False)
                for at, name in enumerate(columns):
                    table.add_column(name, justify="left" if at == 0 or name == "all" else "right", no_wrap=at > 0)
                for row in rows:
                    table.add_row(*row)
                if rows:
                    self.console.print("", title, table, sep="\n")
            for text in differences(outcome.branches[0].objective, found):
                self.console.print(text)
            for text in against_range(outcome.branches[0].cfg, found):
                self.console.print(text, soft_wrap=True)
        names = f"{len(outcome.built)} stages built ({', '.join(outcome.built)})"
        built = names if outcome.built else "nothing built: all from the store"
        lines = ["", built, f"resolved configuration and log: {run_folder}", *outcome.places]
        self.console.print(*lines, sep="\n", soft_wrap=True)


def glance(result: StageResult) -> str:
    """The numbers of a stage that are worth a glance."""
    metrics = result.metrics
    failed = f", {metrics['failed']} samples FAILED (errors.jsonl says why)" if metrics.get("failed") else ""
    if result.name == "explore":
        return f", {metrics['pairs']} pairs from {metrics['samples']} samples{failed}"
    if result.name == "evaluate" and metrics["accuracy"]["value"] is not None:
        long = f", {metrics['too_long']} prompts TOO LONG, counted as wrong" if metrics["too_long"] else ""
        long += f", {metrics['refused']} prompts REFUSED, counted as wrong" if metrics.get("refused") else ""
        return f", accuracy {metrics['accuracy']['value']:.3f}{long}{failed}"
    if result.name == "data":
        sizes = ", ".join(f"{name} {count}" for name, count in metrics["samples"].items())
        split, counts = next(iter(metrics["bands"].items()))
        bands = ", ".join(f"{band} {n}" for band, n in counts.items())
        rejected = metrics.get("rows_rejected")
        bad = f", {rejected} rows rejected (rejected.jsonl says why)" if rejected else ""
        off = metrics.get("targets_off_schema")
        bad += f", {off} targets break the schema of their tool (off_schema.jsonl says how)" if off else ""
        return f": {sizes}; bands of {split} {bands}{bad}"
    words = {"too_long": "too long", "refused": "refused by the chat template"}
    return "".join(f", {metrics[key]} samples {why}, left out" for key, why in words.items() if metrics.get(key))


def tables(found: Policies, explored: Sequence[StageResult]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of accuracy by band with costs, of accuracy by category, and of the errors."""
    each = {name: evaluation.metrics for name, (_, evaluation) in found.items()}
    first = next(iter(each.values()))
    unseen, rows = ["unseen tool"] if first["unseen_tool"] else [], []
    apart = [key for key in ("calls", "non_calls") if first.get("non_calls")]
    columns = [
        "policy",
        "all",
        *(key.replace("_", "-") for key in apart),
        *first["bands"],
        *unseen,
        "seconds",
        "tokens",
    ]
    for (name, metrics), (stage, _) in zip(each.items(), found.values(), strict=True):
        shares = [*map(metrics.get, apart), *map(metrics["bands"].get, first["bands"])]
        shares += [metrics["unseen_tool"] for _ in unseen]
        tokens = stage.metrics.get("tokens")
        costs = (f"{stage.seconds:.0f}", f"{tokens:,}" if tokens else "-")
        rows.append([name, share_text(metrics["accuracy"], 3), *map(_brief, shares), *costs])
    blank = [""] * (len(columns) - 3)
    rows += [["(exploration)", *blank, f"{one.seconds:.0f}", f"{one.metrics['tokens']:,}"] for one in explored]
    split = f"{first['split']} split ({first['accuracy']['n']} samples)"
    yield f"Exact-call accuracy, {split}, 95 % interval", columns, rows

    def row(title: str, *path: str, interval: bool = False) -> list[str]:
        shares: Any = (reduce(lambda value, key: value[key], path, one) for one in each.values())
        return [title, *(share_text(one, 3, interval=interval) for one in shares)]

    rows = [row(name, "categories", name, interval=True) for name in first.get("categories", ())]
    if "bounds" in first:  # of a benchmark that cannot tell about every answer
        rows.append(row("share that can be judged", "decidable"))
        rows.append(row("all answers, the rest wrong", "bounds", "low"))
        rows.append(row("all answers, the rest right", "bounds", "high"))
    for version, totals in first.get("totals", {}).items():
        for name, total in totals.items():
            covered = "" if total["covered"] == 1 else f", {total['covered']:.0%} covered"
            title = f"{version}{'  ' * total['depth']} {name.replace('_', ' ')}{covered}"
            rows.append(row(title, "totals", version, name))
    yield "Accuracy by category, 95 % interval", ["category", *found], rows
    rows = [[name, *(_brief(one["errors"][label]) for label in LABELS)] for name, one in each.items()]
    title = "Share of answers with each of the six errors, and with calls missing or too many (call count)"
    yield title, ["policy", *(label.replace("_", " ") for label in LABELS)], rows


def differences(main: str, found: Policies) -> Iterator[str]:
    """Paired differences of the run's objective against the warm-up and against the controls, in words."""
    exact = {name: exact_by_id(evaluation.path) for name, (_, evaluation) in found.items()}
    if len(exact) > 1:
        yield ""
    for other in (name for name in exact if name != main):
        mean, low, high = paired_difference(exact[main][0], exact[other][0], exact[main][1])
        verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        yield f"{main} - {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"


def run_key(cfg: DictConfig) -> str:
    """What decides the numbers of a run, in twelve hex digits."""
    return fingerprint("run", 1, config.identity(cfg, *config.IDENTITY, "seed", "rounds"), {})


def against_range(cfg: DictConfig, found: Policies) -> Iterator[str]:
    """Of the demo with nothing changed, whether each policy is where it is on any machine: the range was measured by
    experiments/rounding over kernel settings and seeds.
    """
    try:
        known = json.loads(RANGE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if known["run"] != run_key(cfg):
        return
    yield ""
    for name, (_, low, high) in known["policies"].items():
        if name in found and (value := found[name][1].metrics["accuracy"]["value"]) is not None:
            where = "inside" if low <= value <= high else "outside"
            yield f"{name}: {value:.3f}, {where} the range {low:.3f} to {high:.3f}"
