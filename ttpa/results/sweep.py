"""The command `ttpa-sweep`: launches the cells of a table that have no record, wave by wave, with Hydra's launchers.

A wave (`until=warmup`, `until=explore`, the whole run) is one call of the configured launcher, so one SLURM array. In
the early waves cells that would build the same warm-up or the same exploration send one of them, by fingerprint: no job
only waits for another's lock. A failed cell does not stop the rest; cells that stand on a stage it failed to build are
not sent to fail again. The same command again launches what is missing then, and only that.

Hydra makes sweepers only from its own package and from `hydra_plugins`, a top-level name that this distribution does
not install, and its BasicSweeper knows products, not lists of cells. So this module takes the sweeper's few lines upon
itself: compose the common configuration, instantiate the launcher, call `launch` with a list of overrides a wave. What
it does not do: keep state. Records, the store and its locks are all there is, so it can be killed at any moment; cells
that were handed to SLURM run on, and a second sweep meanwhile finds them locked and waits (`scancel` ends them).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ttpa.errors import ConfigError, TtpaError
from ttpa.results.job import job
from ttpa.results.status import error_of, plan_of
from ttpa.results.tables import cells, spec
from ttpa.results.tables.cells import Cell, Key
from ttpa.results.tables.cli import split
from ttpa.run import cluster
from ttpa.run.store import StageResult

Launch = Callable[[Sequence[Sequence[str]]], Sequence[BaseException | None]]
"""Runs one job a list of overrides; returns what each failed with, None where it did not."""

HELP = """\
ttpa-sweep: launches the cells of a table that have no record yet.

  ttpa-sweep experiments/NAME [preset=NAME] [seed=0,1] [cluster=joblib|slurm] [outdated=true] [any override ...]

  preset    which of the presets in experiments/NAME/table.yaml; the first without it
  outdated  true also launches cells whose record was built by other stage versions or from other files
  Overrides are given to every cell, such as paths.store=DIR. The same command again runs what is missing, only that;
  `ttpa-status` with the same words says what is where, `ttpa-table` makes the table of what is there.
  Exit status 0 when every cell has its record, 1 when one has not, 2 for arguments that cannot work.
"""


@dataclass(slots=True)
class Sweep:
    """What is left of a table, and what went wrong: label -> reason. `starts` are the warm-ups that a row shows."""

    todo: list[Cell]
    starts: frozenset[tuple[object, ...]] = frozenset()
    plans: dict[Key, Mapping[str, StageResult]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ends(self, cell: Cell, wave: str | None) -> list[str]:
        """The overrides that say how far a job goes."""
        if wave is None and cell.key.warmup() in self.starts:
            return ["until=null", "baseline=true"]
        return [f"until={wave or 'null'}"]

    def drop(self, cell: Cell, reason: str) -> None:
        """Takes a cell out of the later waves."""
        self.failures[cell.label] = " ".join(reason.split())
        self.todo = [other for other in self.todo if other is not cell]


def missing(every: Sequence[Cell], records: cells.Records, outdated: bool) -> Sweep:
    """The cells to run, each configuration once, with their plans.

    A row that shows the warm-up policy is served by any other row's run over the same warm-up: one that is to be run
    anyway, else one whose stages are there, and only where no row has that warm-up is it run itself. A cell that is
    refused before any work is a failure here and now.
    """
    shown = [cell for cell in every if cell.row.warmup_only]
    sweep = Sweep([], frozenset(cell.key.warmup() for cell in shown))
    for cell in every:
        if not cell.row.warmup_only:
            _add(sweep, cell, cell, records, outdated)
    for cell in shown:
        alike = [other for other in every if other.key.warmup() == cell.key.warmup()]
        if not any(other.key in sweep.plans for other in alike):
            able = [other for other in alike if other.label not in sweep.failures]
            _add(sweep, cell, min(able, key=lambda other: other.row.warmup_only, default=cell), records, outdated)
    return sweep


def _add(sweep: Sweep, cell: Cell, runner: Cell, records: cells.Records, outdated: bool) -> None:
    """Adds the cell that would run for a cell, where its record is missing or, on request, outdated."""
    record = records.of(cell)
    if runner.key in sweep.plans or (record is not None and not outdated):
        return
    try:
        stages, plan = plan_of(cell), plan_of(runner)
        cluster.check_cell(runner.overrides, runner.cfg().trainer.devices)
    except TtpaError as error:
        sweep.failures[cell.label] = str(error)
        return
    role = "baseline" if cell.row.warmup_only else "evaluation"
    if record is None or record.row["stages"].get(role) != f"{stages[role].name}-{stages[role].fingerprint}":
        sweep.plans[runner.key] = plan
        sweep.todo.append(runner)


def target(stages: Mapping[str, StageResult], wave: str) -> StageResult | None:
    """The stage for whose sake a cell takes part in an early wave; None where it has nothing to do there.

    Exploration is the first one: later rounds' follow from the objective, which no two cells share.
    """
    role = {"warmup": "warmup", "explore": "explore1", "align": "align1"}[wave]
    stage = stages.get(role)
    return None if stage is None or (stage.path / "done.json").exists() else stage


def _errors(stages: Mapping[str, StageResult]) -> dict[Path, int]:
    """The tracebacks that failed builds of a cell's stages left, and when."""
    files = [error_of(stage) for stage in stages.values()]
    return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def run_waves(sweep: Sweep, preset: spec.Preset, common: Sequence[str], launch: Launch) -> int:
    """Sends the waves off, one after the other. Returns how many jobs were launched.

    Args:
        sweep: What is to be run; failures are added to it.
        preset: Says the waves.
        common: Overrides of every job beside the cell's own.
        launch: See `Launch`.
    """
    launched = 0
    for wave in preset.waves:
        groups: dict[object, list[Cell]] = {}
        for cell in sweep.todo:
            stage = None if wave is None else target(sweep.plans[cell.key], wave)
            if wave is None or stage is not None:
                groups.setdefault(cell.key if stage is None else stage.path, []).append(cell)
        while groups:
            first = [group[0] for group in groups.values()]
            print(f"ttpa-sweep: wave {wave or 'whole run'}: {len(first)} jobs for {len(sweep.todo)} cells", flush=True)
            before = [_errors(sweep.plans[cell.key]) for cell in first]
            errors = launch([[*cell.overrides, *common, *sweep.ends(cell, wave)] for cell in first])
            launched += len(first)
            again: dict[object, list[Cell]] = {}
            for error, old, (shared, (leader, *others)) in zip(errors, before, groups.items(), strict=True):
                if error is None:
                    continue
                sweep.drop(leader, f"{type(error).__name__}: {error}")
                if not others or not isinstance(shared, Path) or (shared / "done.json").exists():
                    continue
                if _errors(sweep.plans[leader.key]) == old:  # it was refused before any build: send the next one
                    again[shared] = others
                    continue
                for cell in others:
                    sweep.drop(cell, f"not launched: {leader.label} failed to build {shared.name}, which it needs")
            groups = again
    return launched


class HydraLaunch:
    """The launcher of the composed configuration, as Hydra's own sweeper uses it. A `cells.Composer` must be open."""

    def __init__(self, overrides: Sequence[str]) -> None:
        """Composes the launcher, which all jobs have in common, from the overrides of one of them.

        Raises:
            ConfigError: no such launcher or option.
        """
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            self.config: DictConfig = hydra.compose_config(
                config_name="config",
                overrides=[*overrides, "hydra.mode=MULTIRUN"],
                run_mode=RunMode.MULTIRUN,
                with_log_configuration=True,
            )
            OmegaConf.resolve(self.config.hydra.launcher)
        except (HydraException, OmegaConfBaseException) as error:
            said = [word for word in overrides if word.startswith(("cluster", "hydra"))]
            raise ConfigError(f"{cells.why(error)}. Correct the launcher's overrides: {' '.join(said)}.") from None
        self.context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(self.config))
        self.launched = 0

    def __call__(self, jobs: Sequence[Sequence[str]]) -> list[BaseException | None]:
        """See `Launch`. What breaks the launcher itself (a killed worker) is no cell's verdict: later waves go on."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=job, config=self.config
        )
        try:
            returns = launcher.launch([list(job) for job in jobs], initial_job_idx=self.launched)
        except Exception as error:
            print(f"ttpa-sweep: launcher: {type(error).__name__}: {error}", file=sys.stderr)
            return [None] * len(jobs)
        finally:
            self.launched += len(jobs)
        return [_error(one) for one in returns]


def _error(returned: object) -> BaseException | None:
    try:
        _ = returned.return_value  # type: ignore[attr-defined]
    except TtpaError as error:
        return error
    except Exception as error:
        traceback.print_exception(error)
        return error
    return None


def sweep(words: Sequence[str], launcher: Callable[[Sequence[str]], Launch] = HydraLaunch) -> int:
    """Runs what is missing; returns the exit status.

    Args:
        words: Arguments of the command.
        launcher: Overrides of one cell -> what launches them all; another one in tests.

    Raises:
        ConfigError: arguments, a table.yaml or overrides that cannot work.
    """
    folder, own, extra = split(words, ("preset", "outdated"), "ttpa-sweep")
    if own.get("outdated", "false") not in ("true", "false"):
        raise ConfigError.at("outdated", own["outdated"], "must be true or false", "Use outdated=true")
    wanted = spec.load(folder)
    preset = wanted.preset(own.get("preset"))
    cluster.check_plugins([*preset.overrides, *extra])
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, preset, extra)
        results = Path(cells.paths(every, wanted, preset)["results"])
        # Launcher and folders are the same for all cells; an override of the preset may need the row's option.
        launch = launcher(every[0].overrides)
        records = cells.read_records(results, every)
        left = missing(every, records, own.get("outdated") == "true")
        about = f"{wanted.name}, preset {preset.name}: {len(left.todo)} of {len(every)} cells to run"
        print(f"ttpa-sweep: {about}", flush=True)
        if left.todo:
            run_waves(left, preset, [f"name={wanted.name}"], launch)
            records = cells.read_records(results, every)
    holes = [cell.label for cell in every if records.of(cell) is None]
    for warning in dict.fromkeys(records.warnings):
        print(f"ttpa-sweep: warning: {warning}", file=sys.stderr)
    for label, reason in left.failures.items():
        print(f"ttpa-sweep: failed: {label}: {reason}", file=sys.stderr)
    silent = [label for label in holes if label not in left.failures]
    if silent:
        print(f"ttpa-sweep: no record of {', '.join(silent)}. `ttpa-status` says why.", file=sys.stderr)
    return 1 if holes or left.failures else 0


def main() -> None:
    """Entry point of the `ttpa-sweep` script."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return
    try:
        sys.exit(sweep(words))
    except TtpaError as error:
        print(f"ttpa-sweep: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ttpa-sweep: interrupted. The same command again runs what is missing.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
