"""Several processes: what Hydra's launchers need around them, and the ranks of one run.

The options of `conf/cluster` are option files; Hydra's launchers start the jobs. Training over several devices needs a
process for each, started from outside (SLURM tasks, torchrun). Every process walks the same graph; only the first
locks, builds and publishes stages. It announces what it does by empty files in a folder of the run. The others wait
for them, train along in a throw-away folder, or read what was built. Nothing here enters a fingerprint or notices that
a process died; torchrun and SLURM_KILL_BAD_EXIT do.
"""

import fcntl
import io
import os
import pickle
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from ttpa.errors import ConfigError, TtpaError
from ttpa.run.store import Build, StageResult, Store

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "slurm_preemptible": "hydra_plugins.hydra_submitit_launcher",
}
"""Option -> package of its launcher."""
POLL_S = 0.5

_kept: list[IO[str]] = []


def check_plugins(words: Sequence[str], launches: bool = True) -> None:
    """Raises ConfigError where the launcher that the overrides choose is not installed or cannot submit from here."""
    for option in (one.strip() for one in _choice(words).split(",")):
        package, _, plugin = PLUGINS.get(option, "").partition(".")
        if plugin and (find_spec(package) is None or find_spec(PLUGINS[option]) is None):
            raise ConfigError(f"cluster={option}: its launcher is not installed: pip install 'ttpa[cluster]'.")
        if launches and option.startswith("slurm") and shutil.which("srun") is None:
            raise ConfigError(
                f"cluster={option}: no srun on this machine. Start it on a login node, or use cluster=joblib."
            )


def _choice(words: Sequence[str]) -> str:
    """The option of the group `cluster` that overrides choose."""
    return ["local", *(word.partition("=")[2] for word in words if word.startswith("cluster="))][-1]


def check_launch(*, choice: str, sweep: bool, launcher: str, devices: Any, processes: int) -> None:
    """Refuses what would run elsewhere than asked for, or would wait for processes that nobody starts.

    `choice` is the option of the group `cluster`, `launcher` Hydra's launcher class, `devices` is `trainer.devices`,
    and `processes` says how many processes of this run were started.

    Raises:
        ConfigError: says what to use instead.
    """
    slurm = launcher.endswith("SlurmLauncher")
    if slurm and not sweep:
        raise ConfigError(
            f"cluster={choice} submits the cells of a sweep, and this is a single run. Add -m (a sweep may have one "
            "cell), or use cluster=local."
        )
    many = len(devices) > 1 if isinstance(devices, Sequence) and not isinstance(devices, str) else devices != 1
    if sweep and many and not slurm:
        raise ConfigError.at(
            "trainer.devices",
            devices,
            f"a sweep with cluster={choice} starts one process a cell",
            "Use 1, or cluster=slurm, which starts a task a device, or torchrun for a single run",
        )
    if many and processes == 1:
        raise ConfigError.at(
            "trainer.devices",
            devices,
            "training needs a process a device, and this run is a single process",
            "Start it with `torchrun --nproc-per-node N -m ttpa.cli ...`, or with `-m cluster=slurm`",
        )


def check_cell(words: Sequence[str], devices: Any) -> None:
    """`check_launch` for a cell that a sweep is about to launch with these overrides."""
    choice = _choice(words)
    if choice in ("local", "joblib") and not any(word.startswith("hydra/launcher=") for word in words):
        check_launch(choice=choice, sweep=True, launcher="", devices=devices, processes=0)


def take_gpu(count: int) -> None:
    """Gives this process one of the machine's GPUs for its life, by CUDA_VISIBLE_DEVICES; waits until one is free.

    By process and not by job, because workers live on from job to job and CUDA looks at the variable only once. `count`
    GPUs are shared out, of those that CUDA_VISIBLE_DEVICES names if it is set; 0 leaves everything as it is.
    """
    if count < 1 or _kept:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = named.split(",")[:count] if named else [str(number) for number in range(count)]
    folder = Path(tempfile.gettempdir()) / f"ttpa-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for number in numbers:
            file = (folder / number).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # dropped by the kernel with the process
            except OSError:
                file.close()
                continue
            _kept.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = number
            return
        time.sleep(POLL_S)


class Lines(io.TextIOBase):
    """A stream that is no terminal: cells that run side by side must not redraw one screen."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def portable(error: Exception) -> Exception:
    """The error, or its text where it cannot travel from a worker to the command that waits for it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TtpaError(f"{type(error).__name__}: {error}")
    return error


TRAINS = ("warmup", "align")


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of a run this is. `job` names the start of the run: a restarted job is another one."""

    rank: int
    size: int
    job: str


def place(env: Mapping[str, str] = os.environ) -> Place:
    """Read off what torchrun or SLURM say; alone where they say nothing."""
    if "TORCHELASTIC_RUN_ID" in env:
        words = [env.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")]
        if env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]:  # one node: the agent is the parent of all
            words.append(str(os.getppid()))
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), _name("torchrun", *words))
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env and env.get("SLURM_STEP_ID") != "4294967290":
        words = [env.get(key, "") for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), _name("slurm", *words))
    return Place(0, 1, "")


def _never(workdir: Path) -> Mapping[str, Any]:
    raise TtpaError(f"{workdir}: the first process published this stage, and it is gone. Run the same command again.")


def _name(*words: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(words))


def joined(alone: type[Store], runs: Path) -> Any:
    """The kind of store that this process may use: `alone`, or one that knows of the run's other processes.

    The first process announces what it does below the folder `runs`.
    """
    here = place()
    if here.size == 1:
        return alone
    return partial(Leader if here.rank == 0 else Follower, news=runs / ".ranks" / here.job)


class _Shared(Store):
    def __init__(self, root: Path, *, news: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.news, self.count = news, 0
        news.mkdir(parents=True, exist_ok=True)

    def _file(self, event: str) -> Path:
        return self.news / f"{self.count}-{event}"


class Leader(_Shared):
    """The first process: builds, and says so."""

    def stage(self, name: str, *, build: Build, **key: Any) -> StageResult:
        """See `Store.stage`."""
        self.count += 1

        def told(workdir: Path) -> Mapping[str, Any]:
            self._file("build").touch()
            return build(workdir)

        try:
            result = super().stage(name, build=told, **key)
        except BaseException:
            self._file("failed").touch()
            raise
        self._file("done").touch()
        return result


class Follower(_Shared):
    """Every other process: trains along, and reads what the first one published."""

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        """See `Store.stage`.

        Raises:
            TtpaError: the first process failed.
        """
        self.count += 1
        _, final = self.key(name, **key)
        if self._wait("build", "done") == "build":
            if name in TRAINS:
                with tempfile.TemporaryDirectory(prefix="ttpa-rank-") as scratch:
                    # The first process does not pass this point before all train, so what lies there stays as it is.
                    resume = final.with_name(final.name + ".part") / "last.ckpt"
                    if resume.exists():
                        (Path(scratch) / "last.ckpt").symlink_to(resume.resolve())
                    build(Path(scratch))
            self._wait("done")
        return super().stage(name, build=_never, label=label, **key)

    def _wait(self, *events: str) -> str:
        """The first of the events that has happened; a build that is over counts as done."""
        while True:
            for event in reversed(events):
                if self._file(event).exists():
                    return event
            if self._file("failed").exists():
                raise TtpaError("the first process of this run failed; its message says why. This one stops with it.")
            time.sleep(POLL_S)
