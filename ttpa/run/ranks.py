"""Several processes of one run: the first works as if it were alone, the others join it where it trains.

Training over several devices needs a process for each, started from outside (SLURM tasks, torchrun). Every process walks
the same graph; only the first locks, builds and publishes stages. It announces what it does by empty files in a folder of
the run. The others wait for them, train along in a throw-away folder, or read what was built. What this module does not
do: start processes or notice that one died; torchrun and SLURM_KILL_BAD_EXIT do.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ttpa.errors import TtpaError
from ttpa.run.store import Build, StageResult, Store

POLL_S = 0.1
TRAINS = ("warmup", "align")


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of a run this is. `job` names the start of the run: a restarted job is another one."""

    rank: int
    size: int
    job: str


def place(env: Mapping[str, str] = os.environ) -> Place:
    """Read off what torchrun or SLURM say; alone where they say nothing.

    Example:
        >>> place({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"})
        Place(rank=1, size=2, job='slurm-7--')
    """
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

    Args:
        alone: What a single process uses.
        runs: Folder below which the first process announces what it does.
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
