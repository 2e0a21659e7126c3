"""What the launchers of `conf/cluster` need around them: plugins that are installed, processes that exist, a GPU each.

The options themselves are option files; Hydra's launchers start the jobs. Nothing here enters a fingerprint. Called by
`ttpa.cli`; imports nothing heavy.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from ttpa.errors import ConfigError, TtpaError

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "slurm_preemptible": "hydra_plugins.hydra_submitit_launcher",
}
"""Option -> package of its launcher."""
POLL_S = 0.5

_kept: list[IO[str]] = []


def check_plugins(words: Sequence[str], launches: bool = True) -> None:
    """Looks for the launcher that a command line asks for, before Hydra says only that a file is missing.

    Args:
        words: Overrides; of several for the group `cluster` the last one counts.
        launches: Whether the command hands jobs to the launcher.

    Raises:
        ConfigError: the launcher is not installed, or cannot submit from here; says what to do.
    """
    for option in (one.strip() for one in _choice(words).split(",")):
        if option in PLUGINS and not _installed(PLUGINS[option]):
            raise ConfigError(f"cluster={option}: its launcher is not installed: pip install 'ttpa[cluster]'.")
        if launches and option.startswith("slurm") and shutil.which("srun") is None:
            raise ConfigError(
                f"cluster={option}: no srun on this machine. Start it on a login node, or use cluster=joblib."
            )


def _choice(words: Sequence[str]) -> str:
    """The option of the group `cluster` that overrides choose."""
    return ["local", *(word.partition("=")[2] for word in words if word.startswith("cluster="))][-1]


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def check_launch(*, choice: str, sweep: bool, launcher: str, devices: Any, processes: int) -> None:
    """Refuses what would run somewhere else than asked for, or would wait for processes that nobody starts.

    Args:
        choice: The option of the group `cluster`.
        sweep: Whether the command is a sweep (`-m`).
        launcher: Class of Hydra's launcher.
        devices: `trainer.devices`.
        processes: Processes of this run that were started.

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
    """As `check_launch`, for a cell that a sweep is about to launch on this machine with these overrides.

    Raises:
        ConfigError: says what to use instead.
    """
    choice = _choice(words)
    if choice in ("local", "joblib") and not any(word.startswith("hydra/launcher=") for word in words):
        check_launch(choice=choice, sweep=True, launcher="", devices=devices, processes=0)


def take_gpu(count: int) -> None:
    """Gives this process one of the machine's GPUs for its life, by CUDA_VISIBLE_DEVICES; waits until one is free.

    By process and not by job, because workers live on from job to job and CUDA looks at the variable only once.

    Args:
        count: GPUs to share out, or as many as CUDA_VISIBLE_DEVICES names; 0 leaves everything as it is.
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
