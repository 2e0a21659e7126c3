"""The command `ttpa sweep`: launches the cells of a table that have no record, wave by wave, with Hydra's launchers.

A wave (`until=warmup`, `until=explore`, the whole run) is one call of the launcher. Cells that would build the same
stage send one of them. No state is kept but records and store, so a sweep can be killed at any time; how many seeds
`ci=` adds follows from the records, too.
"""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pydantic.dataclasses
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from ttpa.errors import ConfigError, TtpaError, masked, status_of, visible
from ttpa.options import arguments
from ttpa.results.cells import Records, TableCell, open_hydra, recorded_cells
from ttpa.results.job import job, use_own_launchers
from ttpa.results.status import error_file, is_current, plan
from ttpa.results.width import WidthForm, wanted
from ttpa.run import cluster
from ttpa.run.jobs import Submitted, Unfinished
from ttpa.run.overrides import COMPLAINTS, explained
from ttpa.run.store import StageResult

FOR_THE_SAKE_OF = {"warmup": "warmup", "explore": "explore1", "align": "align1"}
Launch = Callable[[Sequence[Sequence[str]]], Sequence[BaseException | None]]
"""Runs one job a list of overrides; returns what each failed with, None where it did not."""

HELP = """\
ttpa sweep: launches the cells of a table that have no record yet.

  ttpa sweep experiments/NAME [preset=NAME] [seed=0,1] [ci=2] [max_seeds=N] [cluster=joblib|slurm] [submit=true]
             [any override ...]

  preset    which of the presets in experiments/NAME/table.yaml; the first without it
  ci        adds seeds until the interval of every paired difference is at most so many points wide, end to end. Their
            number follows from the spread of the seeds in table.yaml (Stein's two stages), at least 3
  max_seeds how many seeds there may be in all with ci=, 32 without it
  outdated  true also launches cells whose record was built by other stage versions or from other files
  submit    true leaves when the jobs of a wave are with SLURM; the same call again says what became of them and submits
            the next wave, and without submit=true it waits for them
  Overrides are given to every cell, such as paths.store=DIR. The same command again runs what is missing, only that;
  `ttpa status` with the same words says what is where, `ttpa table` makes the table of what is there.
  Exit status 0 when every cell has its record (with submit=true: or waits for it), 2 when all that failed can be mended
  in the words, the options or the data, else 1.
"""


class Sweep:
    """The cells to run, each configuration once, with their plans, and why others failed (label -> reason)."""

    def __init__(self, cells: Sequence[TableCell], records: Records, outdated: bool) -> None:
        self.todo: list[TableCell] = []
        self.plans: dict[str, Mapping[str, StageResult]] = {}
        self.failures: dict[str, str] = {}
        self.status = 0  # of the command, by the failures
        self.submitted = 0  # jobs of SLURM that nobody waits for
        self._warmups = {cell.key.warmup for cell in cells if cell.row.warmup_only}
        for cell in sorted(cells, key=lambda cell: cell.row.warmup_only):
            runner, record = cell, records.find(cell)
            if cell.row.warmup_only:
                # Any run over the same warm-up will do: one that is to be run anyway, else another row's, else its own.
                alike = [other for other in cells if other.key.warmup == cell.key.warmup]
                if any(other.key.whole in self.plans for other in alike):
                    continue
                able = [other for other in alike if other.label not in self.failures]
                runner = min(able, key=lambda other: other.row.warmup_only, default=cell)
            if runner.key.whole in self.plans or (record is not None and not outdated):
                continue
            try:
                stages, planned = plan(cell.cfg), plan(runner.cfg)
                cluster.check_cell(runner.overrides, runner.composed.trainer.devices)
            except TtpaError as error:
                self._fail(cell, str(error), error)
                continue
            if record is None or not is_current(record, cell, stages):
                self.plans[runner.key.whole] = planned
                self.todo.append(runner)

    def run(self, waves: Sequence[str | None], name: str, launch: Launch) -> None:
        """Sends the waves (values of `until=`) off, one after the other, as runs of that name."""
        for wave in waves:
            groups: dict[object, list[TableCell]] = {}
            for cell in self.todo:
                # An early wave is for the sake of one stage, the first round's.
                stage = self.plans[cell.key.whole].get(FOR_THE_SAKE_OF[wave]) if wave else None
                if wave is None or (stage and not (stage.path / "done.json").exists()):
                    groups.setdefault(stage.path if stage else cell.key.whole, []).append(cell)
            while groups and not self.submitted:
                said = f"{len(groups)} jobs for {len(self.todo)} cells"
                print(f"ttpa sweep: wave {wave or 'whole run'}: {said}", flush=True)
                groups = self._launch(groups, wave, name, launch)

    def _launch(
        self, groups: Mapping[object, list[TableCell]], wave: str | None, name: str, launch: Launch
    ) -> dict[object, list[TableCell]]:
        """Launches the first cell of each group; returns what is left of the groups whose first cell built nothing."""
        leaders = [group[0] for group in groups.values()]
        before = [self._tracebacks(cell) for cell in leaders]
        jobs = [[*cell.overrides, f"name={name}", f"until={wave or 'null'}"] for cell in leaders]
        for words, cell in zip(jobs, leaders, strict=True):
            words += ["baseline=true"] * (wave is None and cell.key.warmup in self._warmups)
        again: dict[object, list[TableCell]] = {}
        for error, old, (shared, (leader, *others)) in zip(launch(jobs), before, groups.items(), strict=True):
            if isinstance(error, Submitted):
                self.submitted += 1
            if error is None or isinstance(error, Submitted):
                continue
            self._drop(leader, f"{type(error).__name__}: {error}", error)
            if not isinstance(shared, Path) or (shared / "done.json").exists():
                continue
            refused = not isinstance(error, Unfinished) and self._tracebacks(leader) == old
            if others and refused:  # before any build: send the next one
                again[shared] = others
                continue
            for cell in others:
                self._drop(cell, f"not launched: {leader.label} failed to build {shared.name}, which it needs", error)
        return again

    def _fail(self, cell: TableCell, why: str, error: BaseException) -> None:
        self.failures[cell.label] = visible(masked(" ".join(why.split())))
        self.status = status_of([error]) if self.status != 1 else 1

    def _drop(self, cell: TableCell, why: str, error: BaseException) -> None:
        self._fail(cell, why, error)
        self.todo = [other for other in self.todo if other is not cell]

    def _tracebacks(self, cell: TableCell) -> dict[Path, int]:
        """The tracebacks that failed builds of a cell's stages left, and when."""
        files = [error_file(stage) for stage in self.plans[cell.key.whole].values()]
        return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def hydra_launcher(overrides: Sequence[str], submit_only: bool) -> Launch:
    """The launcher that the overrides of a job choose, as Hydra's own sweeper uses it; Hydra must be open."""
    hydra, launched = GlobalHydra.instance().hydra, 0
    assert hydra is not None
    use_own_launchers()
    try:
        cfg = hydra.compose_config("config", [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, True)
        OmegaConf.resolve(cfg.hydra.launcher)
    except COMPLAINTS as error:
        raise explained(error, [word for word in overrides if word.startswith(("cluster", "hydra"))]) from None
    if submit_only and not cfg.hydra.launcher._target_.endswith("SlurmLauncher"):
        raise ConfigError.at(
            "submit", "true", "this launcher has no queue to leave jobs in", "Use it with cluster=slurm"
        )
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))

    def launch(jobs: Sequence[Sequence[str]]) -> list[BaseException | None]:
        nonlocal launched
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=cfg)
        setattr(launcher, "submit_only", submit_only)  # noqa: B010
        first, launched = launched, launched + len(jobs)
        try:
            return [_error(one) for one in launcher.launch([list(words) for words in jobs], initial_job_idx=first)]
        except ConfigError:  # what the scheduler refuses, it refuses for every wave
            raise
        except Exception as error:  # what breaks the launcher (a killed worker) is no cell's failure: later waves go on
            print(f"ttpa sweep: launcher: {type(error).__name__}: {error}", file=sys.stderr)
            return [None] * len(jobs)

    return launch


def _error(returned: JobReturn) -> BaseException | None:
    if returned.status == JobStatus.COMPLETED:
        return None
    error: BaseException = returned._return_value
    if not isinstance(error, TtpaError):
        traceback.print_exception(error)
    return error


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class SweepForm(WidthForm):
    """The words behind `ttpa sweep`; see HELP."""

    outdated: bool = False
    submit: bool = False


def main(words: Sequence[str], launcher: Callable[[Sequence[str], bool], Launch] = hydra_launcher) -> int:
    """`ttpa sweep`: runs what is missing; returns the exit status, see HELP."""
    form = arguments(words, SweepForm, "sweep")
    status, waits = _run(form, 0, launcher)
    if form.ci is None or status or waits:
        return status
    before = wanted(form)
    if before.seeds > before.listed:
        status, waits = _run(form, before.seeds, launcher)
        if status or waits:
            return status
    print(f"ttpa sweep: ci={form.ci:g}: {before.told()}", flush=True)
    return 0


def _run(form: SweepForm, upto: int, launcher: Callable[[Sequence[str], bool], Launch]) -> tuple[int, bool]:
    """Runs what is missing of the table with so many seeds; the exit status, and whether jobs wait."""
    spec, preset, cells, records = recorded_cells(form.target, form.preset, form.overrides, upto=upto)
    if form.ci:
        form.check_table(spec, preset)
    cluster.check_plugins(cells[0].overrides)
    with open_hydra():
        launch = launcher(cells[0].overrides, form.submit)
        sweep = Sweep(cells, records, form.outdated)
        said = f"{len(sweep.todo)} of {len(cells)} cells to run"
        print(f"ttpa sweep: {spec.name}, preset {preset.name}: {said}", flush=True)
        if sweep.todo:
            sweep.run(preset.waves, spec.name, launch)
            records = Records(cells)
    holes = [cell.label for cell in cells if records.find(cell) is None]
    for warning in dict.fromkeys(records.warnings):
        print(visible(f"ttpa sweep: warning: {warning}"), file=sys.stderr)
    for label, why in sweep.failures.items():
        print(f"ttpa sweep: failed: {label}: {why}", file=sys.stderr)
    if sweep.submitted:
        print(f"ttpa sweep: {sweep.submitted} jobs wait or run; the same command again picks them up", flush=True)
        return sweep.status, True
    silent = [label for label in holes if label not in sweep.failures]
    if silent:
        print(f"ttpa sweep: no record of {', '.join(silent)}. `ttpa status` says why.", file=sys.stderr)
    return sweep.status or int(bool(holes)), False
