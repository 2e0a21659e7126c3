"""Several processes: what Hydra's launchers need around them, and the ranks of one run.

Every process of a run (SLURM tasks, torchrun) walks the same graph; only the first locks, builds and publishes stages,
and announces it by empty files in a folder of the run. Nothing here notices that a process died; what started it does.
"""

import io
import itertools
import os
import pickle
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from ttpa.errors import ConfigError, TtpaError
from ttpa.run.store import Build, StageResult, Store

PLUGINS = {"joblib": "joblib", "slurm": "submitit", "slurm_preemptible": "submitit"}
POLL_S = 0.5
TRAINS = ("warmup", "align")
_kept: list[BaseFileLock] = []


def check_plugins(words: Sequence[str], launches: bool = True) -> None:
    """Raises ConfigError where the launcher that the overrides choose is not installed or cannot submit from here."""
    for option in (one.strip() for one in _choice(words).split(",")):
        plugin = f"hydra_plugins.hydra_{PLUGINS.get(option)}_launcher"
        if option in PLUGINS and (find_spec("hydra_plugins") is None or find_spec(plugin) is None):
            raise ConfigError(f"cluster={option}: its launcher is not installed: pip install 'ttpa[cluster]'.")
        if launches and option.startswith("slurm") and shutil.which("srun") is None:
            remedy = "Start it on a login node, or use cluster=joblib."
            raise ConfigError(f"cluster={option}: no srun on this machine. {remedy}")


def _choice(words: Sequence[str]) -> str:
    """The option of the group `cluster` that overrides choose."""
    return ["local", *(word.partition("=")[2] for word in words if word.startswith("cluster="))][-1]


def check_launch(*, choice: str, sweep: bool, launcher: str, devices: Any, processes: int) -> None:
    """Raises ConfigError for what would run elsewhere than asked for, or wait for processes that nobody starts."""
    slurm = launcher.endswith("SlurmLauncher")
    if slurm and not sweep:
        remedy = "Add -m (a sweep may have one cell), or use cluster=local."
        raise ConfigError(f"cluster={choice} submits the cells of a sweep, and this is a single run. {remedy}")
    many = len(devices) > 1 if isinstance(devices, Sequence) and not isinstance(devices, str) else devices != 1
    if sweep and many and not slurm:
        problem = f"a sweep with cluster={choice} starts one process a cell"
        remedy = "Use 1, or cluster=slurm, which starts a task a device, or torchrun for a single run"
        raise ConfigError.at("trainer.devices", devices, problem, remedy)
    if many and processes == 1:
        problem = "training needs a process a device, and this run is a single process"
        remedy = "Start it with `torchrun --nproc-per-node N -m ttpa.cli ...`, or with `-m cluster=slurm`"
        raise ConfigError.at("trainer.devices", devices, problem, remedy)


def check_cell(words: Sequence[str], devices: Any) -> None:
    """`check_launch` for a cell that a sweep is about to launch with these overrides."""
    choice = _choice(words)
    if choice in ("local", "joblib") and not any(word.startswith("hydra/launcher=") for word in words):
        check_launch(choice=choice, sweep=True, launcher="", devices=devices, processes=0)


def take_gpu(count: int) -> None:
    """Gives this process one of `count` GPUs for its life (CUDA looks only once), by CUDA_VISIBLE_DEVICES; waits until
    one is free. Those that the variable names are shared out, if it is set; 0 leaves everything as it is.
    """
    if count < 1 or _kept:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = named.split(",")[:count] if named else [str(number) for number in range(count)]
    folder = Path(tempfile.gettempdir()) / f"ttpa-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for number in itertools.cycle(numbers):
        lock = FileLock(folder / number)
        with suppress(Timeout):
            lock.acquire(blocking=False)  # the kernel frees it with the process
            _kept.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = number
            return
        time.sleep(POLL_S / count)


class Lines(io.TextIOBase):
    """A stream that is no terminal: cells that run side by side must not redraw one screen."""

    def __init__(self, stream: IO[str]) -> None:
        self.write, self.flush = stream.write, stream.flush  # type: ignore[method-assign]


def portable(error: Exception) -> Exception:
    """The error, or its text where it cannot travel from a worker to the command that waits for it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TtpaError(f"{type(error).__name__}: {error}")
    return error


class Place(NamedTuple):
    """Which process of a run this is. `job` names the start of the run: a restarted job is another one."""

    rank: int
    size: int
    job: str


def place(env: Mapping[str, str] = os.environ) -> Place:
    """Read off what torchrun or SLURM say; alone where they say nothing."""
    if "TORCHELASTIC_RUN_ID" in env:
        rank, size, kind = env["RANK"], env["WORLD_SIZE"], "torchrun"
        keys = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
        more = [str(os.getppid())] if env["LOCAL_WORLD_SIZE"] == size else []  # one node: the agent is every parent
    elif int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env and env.get("SLURM_STEP_ID") != "4294967290":
        rank, size, kind = env["SLURM_PROCID"], env["SLURM_NTASKS"], "slurm"
        keys, more = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"), []
    else:
        return Place(0, 1, "")
    words = [kind, *(env.get(key, "") for key in keys), *more]
    return Place(int(rank), int(size), re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(words)))


def joined(root: Path, runs: Path, **options: Any) -> Store:
    """The store of this process; where the run has several, it shares news with the others below `runs`."""
    here = place()
    if here.size == 1:
        return Store(root, **options)
    return (Leader if here.rank == 0 else Follower)(root, news=runs / ".ranks" / here.job, **options)


class _Shared(Store):
    def __init__(self, root: Path, *, news: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.news, self.count = news, 0
        news.mkdir(parents=True, exist_ok=True)

    def _file(self, event: str) -> Path:
        return self.news / f"{self.count}-{event}"


class Leader(_Shared):
    """The first process: builds, and says so."""

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        self.count += 1

        def told(workdir: Path) -> Mapping[str, Any]:
            self._file("build").touch()
            return build(workdir)

        try:
            result = super().stage(name, build=told, label=label, **key)
        except BaseException:
            self._file("failed").touch()
            raise
        self._file("done").touch()
        return result


class Follower(_Shared):
    """Every other process: trains along, and reads what the first one published."""

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        """See `Store.stage`. That the first process failed is a TtpaError."""
        self.count += 1
        _, final = self.key(name, **key)
        if self._wait("done", "build") == "build":
            if name in TRAINS:
                with tempfile.TemporaryDirectory(prefix="ttpa-rank-") as scratch:
                    # The first process does not pass this point before all train, so what lies there stays as it is.
                    for point in final.with_name(final.name + ".part").glob("*.ckpt"):
                        (Path(scratch) / point.name).symlink_to(point.resolve())
                    build(Path(scratch))
            self._wait("done")
        if result := self.find(name, **key):
            return result
        raise TtpaError(f"{final}: the first process published this stage, and it is gone. Run the same command again.")

    def _wait(self, *events: str) -> str:
        """The first of the events that has happened."""
        while not (found := [event for event in (*events, "failed") if self._file(event).exists()]):
            time.sleep(POLL_S)
        if found[0] == "failed":
            raise TtpaError("the first process of this run failed; its message says why. This one stops with it.")
        return found[0]
