"""The jobs of this user: what SLURM says of them, and `runs/slurm/jobs.jsonl`, which remembers what they are for."""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttpa.errors import TtpaError

ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split()  # noqa: SIM905


class Unfinished(TtpaError):
    """A job that was ended from outside: no verdict on its cell."""

    by_user = False


class Died(TtpaError):
    """A job that ended by a fault of its own."""

    by_user = False


class Submitted(Unfinished):
    """A job that waits or runs, and nobody waits for it."""


def asked(*command: str) -> list[list[str]]:
    """The fields of each line that a client of SLURM prints; what it complains of is a TtpaError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise TtpaError(f"{command[0]}: {said}. Is SLURM up? Run the same command again when it is.") from None
    return [line.strip().split("|") for line in done.stdout.splitlines()]


def states() -> dict[str, str]:
    """Job -> its state, for all jobs of this user that SLURM has not forgotten."""
    which = (f"--user={os.getuid()}", "--noheader", "--array", "--states=all", "--format=%i|%T")
    return {job: state for job, state in asked("squeue", *which)}


def is_alive(job: Mapping[str, Any], now: Mapping[str, str]) -> bool:
    """Whether a job waits or runs, or will be queued again."""
    return now.get(job["job"], ENDED[0]) not in ENDED


def _file(runs: Path) -> Path:
    return runs / "slurm" / "jobs.jsonl"


def note(runs: Path, **facts: Any) -> None:
    """Remembers facts of a job; later ones of the same job are added."""
    _file(runs).parent.mkdir(parents=True, exist_ok=True)
    with _file(runs).open("ab", buffering=0) as file:  # one write: lines of several processes do not mix
        file.write(f"{json.dumps(facts)}\n".encode())


def open_jobs(runs: Path) -> list[dict[str, Any]]:
    """The jobs whose end no call has seen, oldest first."""
    known: dict[str, dict[str, Any]] = {}
    for line in _file(runs).read_text(encoding="utf-8").splitlines() if _file(runs).exists() else ():
        with suppress(ValueError):  # half a line of a full disk
            facts = json.loads(line)
            known.setdefault(facts["job"], {}).update(facts)
    return [facts for facts in known.values() if "run" in facts and "ended" not in facts]


def queue(runs: Path) -> dict[str, tuple[str, str]]:
    """Stage -> state of the job that will build it, and a note for people."""
    jobs = open_jobs(runs)
    now = states() if jobs else {}
    alive = [job | {"state": now[job["job"]]} for job in jobs if is_alive(job, now)]
    return {
        stage: (job["state"], "job {job} {state}, {log}".format_map(job)) for job in alive for stage in job["stages"]
    }
