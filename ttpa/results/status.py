"""What of a table is done, running, failed or missing: the command `ttpa-status`, and the plan of a cell.

A cell's stages are named by fingerprints that follow from its configuration alone, so the plan walks the same graph as
a run (`ttpa.run.pipeline.walk`) with a store that only names stages. What is there is then read off the disk: a record, a
finished stage, a lock with its heartbeat, an `error.txt`. Nothing is written and nothing is taken over. Exit status: 0
when every cell is done, 1 when one is not, 2 for arguments that cannot work. What this module does not do: launch
(`ttpa.results.sweep`), ask a scheduler (a job that waits in a queue is missing here), or import torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ttpa.errors import TtpaError
from ttpa.results.tables import cells, spec
from ttpa.results.tables.cells import Cell, Records
from ttpa.results.tables.cli import split
from ttpa.run import pipeline
from ttpa.run.locks import look
from ttpa.run.store import StageResult, Store, fingerprint

STATES = ("done", "running", "failed", "missing")
HELP = """\
ttpa-status: which cells of a table are done, running, failed or missing.

  ttpa-status experiments/NAME [preset=NAME] [seed=0,1] [paths.store=DIR] [paths.results=DIR] [any override ...]

  preset   which of the presets in experiments/NAME/table.yaml; the first without it
  Overrides that the sweep was started with are given here too: they decide which cells are meant.
  Exit status 0 when all are done, 1 when one is not.
"""


class Planner(Store):
    """Stands in for the store: names every stage, builds none, and makes no folder."""

    def __init__(self, root: Path, **_: Any) -> None:
        self.root = Path(root)
        self.executions = []

    def find(self, name: str, **_: Any) -> None:
        """A plan holds what a run must have, not what happens to be there."""

    def stage(
        self,
        name: str,
        *,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, StageResult],
        build: Callable[[Path], Mapping[str, Any]],
        label: str = "",
    ) -> StageResult:
        """The stage as `Store.stage` would give it, without metrics; `cached` says whether it is finished."""
        fp = fingerprint(name, version, config, {role: result.fingerprint for role, result in inputs.items()})
        path = self.root / f"{name}-{fp}"
        done = (path / "done.json").exists()
        return StageResult(name=name, fingerprint=fp, path=path, metrics={}, cached=done, seconds=0.0)


class _Silent:
    """A view that shows nothing."""

    def expect(self, labels: Sequence[str]) -> None: ...
    def begin(self, label: str) -> None: ...
    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None: ...
    def end(self, label: str, result: StageResult) -> None: ...
    def note(self, message: str) -> None: ...


def plan(cfg: DictConfig) -> dict[str, StageResult]:
    """Role -> stage of one configuration in the order in which a run asks for them, controls left out.

    Raises:
        ConfigError, DataError: the configuration cannot be run, or a file that it names cannot be read.
    """
    outcome = pipeline.walk(cfg, _Silent(), Planner)
    return {**outcome.shared, **(outcome.cells[0].stages if outcome.cells else {})}


def plan_of(cell: Cell) -> dict[str, StageResult]:
    """The plan of a cell in a sweep, with the types of its overrides checked as a run checks them; the composer must be
    open. The warm-up is evaluated for the rows that show it.

    Raises:
        ConfigError, DataError: as `plan`, or a value of another type than its default.
    """
    cell.check()
    cfg = cell.cfg()
    cfg.baseline = cell.row.warmup_only
    return plan(cfg)


def error_of(stage: StageResult) -> Path:
    """Where the traceback of a stage's last build is, if it failed."""
    return stage.path.with_name(f"{stage.path.name}.part") / "error.txt"


@dataclass(frozen=True, slots=True)
class State:
    """What a cell is at: one of `STATES`, and what a person wants to know about it."""

    name: str
    note: str = ""


def state_of(cell: Cell, records: Records) -> State:
    """Looks at the record, then at the first stage that is not finished."""
    record = records.of(cell)
    try:
        stages = plan_of(cell)
    except TtpaError as error:
        return State("done") if record else State("failed", str(error))
    if record is not None:
        role = "baseline" if cell.row.warmup_only else "evaluation"
        wanted = f"{stages[role].name}-{stages[role].fingerprint}"
        if record.row["stages"].get(role) == wanted:
            return State("done")
        old = record.outdated().items()
        built = ", ".join(f"{name} {'of no version' if version is None else version}" for name, version in old)
        built = built or "other files"
        return State("done", f"outdated: built by {built}, see {record.path}")
    if cell.row.warmup_only:
        stages = {role: stage for role, stage in stages.items() if role in ("data", "warmup", "baseline")}
    unfinished = [(role, stage) for role, stage in stages.items() if not stage.cached]
    if not unfinished:
        return State("missing", "every stage is there, only the record is not")
    return _stage_state(*unfinished[0], len(stages) - len(unfinished), len(stages))


def _stage_state(role: str, stage: StageResult, done: int, total: int) -> State:
    """Running, failed or missing, by what lies beside the stage's folder."""
    what = f"{role} ({stage.path.name}), {done} of {total} stages done"
    lock = stage.path.with_name(f"{stage.path.name}.lock")
    if (seen := look(lock)) is not None:
        holder, age_s = seen
        who = f"pid {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
        return State("running", f"{what}: {who}, heartbeat {age_s:.0f} s ago")
    error = error_of(stage)
    if error.exists():
        return State("failed", f"{what}: {error}")
    return State("missing", f"{what}: interrupted, its holder is gone" if lock.exists() else what if done else "")


def report(folder: Path, preset: str | None, extra: Sequence[str]) -> tuple[list[str], bool]:
    """The lines to show, and whether every cell is done. Warnings about records go to standard error.

    Raises:
        ConfigError: a table.yaml or an override that cannot work.
    """
    wanted = spec.load(folder)
    chosen = wanted.preset(preset)
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, chosen, extra)
        records = cells.read_records(Path(cells.paths(every, wanted, chosen)["results"]), every)
        states = [state_of(cell, records) for cell in every]
    for warning in dict.fromkeys(records.warnings):
        print(f"ttpa-status: warning: {warning}", file=sys.stderr)
    width = max((len(cell.label) for cell in every), default=0)
    labelled = zip((cell.label for cell in every), states, strict=True)
    lines = [f"{label:{width}}  {state.name:7}  {state.note}".rstrip() for label, state in labelled]
    count = Counter(state.name for state in states)
    outdated = sum(state.note.startswith("outdated") for state in states)
    parts = [f"{count[name]} {name}" for name in STATES if count[name]]
    summary = f"{len(every)} cells of {wanted.name}, preset {chosen.name}: {', '.join(parts) or 'none'}"
    return [*lines, summary + (f" ({outdated} of them outdated)" if outdated else "")], count["done"] == len(every)


def main() -> None:
    """Entry point of the `ttpa-status` script."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return
    try:
        folder, own, extra = split(words, ("preset",), "ttpa-status")
        lines, done = report(folder, own.get("preset"), extra)
    except TtpaError as error:
        print(f"ttpa-status: error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
