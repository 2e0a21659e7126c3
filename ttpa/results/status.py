"""The command `ttpa status`: which cells of a table are in which of `STATES`; and the plan of a cell.

Fingerprints of stages follow from the configuration alone, so the plan walks the graph of a run with a store that only
names stages. The rest is read off the disk: a record, a finished stage, a lock with its heartbeat, an `error.txt`.
SLURM is asked where jobs of these cells were submitted. Nothing is written or taken over.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pydantic
from omegaconf import DictConfig

from ttpa.errors import DataError, TtpaError, visible
from ttpa.options import arguments
from ttpa.results.cells import Records, TableCell, recorded_cells
from ttpa.results.records import WARMUP_ROLES, Record
from ttpa.results.width import WidthForm, wanted
from ttpa.run import pipeline
from ttpa.run.jobs import queue
from ttpa.run.store import StageResult, look, verify

STATES = ("done", "running", "queued", "failed", "missing")
HELP = """\
ttpa status: which cells of a table are done, running, queued by SLURM, failed or missing.

  ttpa status experiments/NAME [preset=NAME] [seed=0,1] [ci=2] [max_seeds=N] [check=true] [paths.store=DIR]
              [paths.results=DIR] [any override ...]

  preset   which of the presets in experiments/NAME/table.yaml; the first without it
  ci       with max_seeds as the sweep was started with: the seeds that it adds are counted before they are complete
  check    compares every file of the cells' finished stages with the hash that was taken when the stage was finished
  Overrides that the sweep was started with are given here too: they decide which cells are meant.
  Exit status 0 when all are done (and whole), 1 when one is not.
"""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class StatusForm(WidthForm):
    check: bool = False


def plan(cfg: DictConfig) -> dict[str, StageResult]:
    """Role -> stage of one configuration in the order in which a run asks for them, controls left out. One that cannot
    be run is a TtpaError.
    """
    outcome = pipeline.plan(cfg)
    return {**outcome.shared, **(outcome.branches[0].stages if outcome.branches else {})}


def is_current(record: Record, cell: TableCell, stages: Mapping[str, StageResult]) -> bool:
    """Whether a cell's record comes from the evaluation that a run would make now."""
    role = "baseline" if cell.row.warmup_only else "evaluation"
    return record.evaluation(cell.row.warmup_only) == stages[role].path.name


def error_file(stage: StageResult) -> Path:
    """Where the traceback of a failed build is."""
    return stage.path.with_name(f"{stage.path.name}.part") / "error.txt"


def state_of(cell: TableCell, records: Records, jobs: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """One of `STATES`, by the record, else by the first stage that is not finished; and a note for people. `jobs` are
    those of SLURM, by stage.
    """
    record = records.find(cell)
    try:
        stages = plan(cell.cfg)
    except TtpaError as error:
        return ("done", "") if record else ("failed", str(error))
    if record is not None:
        if is_current(record, cell, stages):
            roles = [role for role in record.fallbacks if role in WARMUP_ROLES or not cell.row.warmup_only]
            told = (f"FALLBACK in {role}: {text}" for role in roles for text in record.fallbacks[role])
            return "done", "; ".join(told)
        old = record.outdated().items()
        built = ", ".join(f"{name} {'of no version' if version is None else version}" for name, version in old)
        return "done", f"outdated: built by {built or 'other files'}, see {record.path}"
    if cell.row.warmup_only:
        stages = {role: stage for role, stage in stages.items() if role in WARMUP_ROLES}
    unfinished = [(role, stage) for role, stage in stages.items() if not stage.cached]
    if not unfinished:
        return "missing", "every stage is there, only the record is not"
    role, stage = unfinished[0]
    done = len(stages) - len(unfinished)
    what = f"{role} ({stage.path.name}), {done} of {len(stages)} stages done"
    lock = stage.path.with_name(f"{stage.path.name}.lock")
    if seen := look(lock):
        who = "pid {pid} on {host} since {started}".format_map(defaultdict(lambda: None, seen[0]))
        return "running", f"{what}: {who}, heartbeat {seen[1]:.0f} s ago"
    if found := [jobs[one.path.name] for _, one in reversed(unfinished) if one.path.name in jobs]:
        return "running" if found[0][0] == "RUNNING" else "queued", f"{what}: {found[0][1]}"
    if error_file(stage).exists():
        return "failed", f"{what}: {error_file(stage)}"
    return "missing", f"{what}: interrupted, its holder is gone" if lock.exists() else what if done else ""


def damages(cells: Sequence[TableCell]) -> list[str]:
    """What is damaged in the finished stages of some cells, by the hashes of their files."""
    found = dict[Path, str]()
    for cell in cells:
        with suppress(TtpaError):  # `state_of` says why a cell cannot run
            for stage in (stage for stage in plan(cell.cfg).values() if stage.cached and stage.path not in found):
                found[stage.path] = ""
                try:
                    verify(stage.path, hashes=True)
                except DataError as error:
                    found[stage.path] = str(error)
    return list(filter(None, found.values()))


def main(words: Sequence[str]) -> int:
    """`ttpa status`: a line a cell, and their number; 0 when every cell is done, else 1."""
    form = arguments(words, StatusForm, "status")
    upto = wanted(form).seeds if form.ci else 0
    spec, preset, cells, records = recorded_cells(form.target, form.preset, form.overrides, upto=upto)
    jobs: Mapping[str, tuple[str, str]] = {}
    try:
        jobs = queue(Path(cells[0].composed.paths.runs))
    except TtpaError as error:
        records.warnings.append(str(error))
    states = {cell.label: state_of(cell, records, jobs) for cell in cells}
    for warning in dict.fromkeys(records.warnings):
        print(visible(f"ttpa status: warning: {warning}"), file=sys.stderr)
    width = max(map(len, states))
    for label, (name, note) in states.items():
        print(visible(f"{label:{width}}  {name:7}  {note}".rstrip()))
    count = Counter(name for name, _ in states.values())
    outdated = sum(note.startswith("outdated") for _, note in states.values())
    parts = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    said = f" ({outdated} of them outdated)" if outdated else ""
    print(f"{len(cells)} cells of {spec.name}, preset {preset.name}: {parts}{said}")
    damaged = damages(cells) if form.check else []
    print(*map(visible, damaged), sep="\n", end="\n" * bool(damaged))
    return 0 if count["done"] == len(cells) and not damaged else 1
