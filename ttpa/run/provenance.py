"""What a result was made with and how long that took, and the small durable JSON files that say so.

`Attempts` keeps the wall time of a build over kills; `code_state` and `made_with` give commit, packages and hardware.

What this module does not do: decide what enters a result's identity. Nothing here does, so that the same configuration
on another machine is the same stage (`ttpa.run.store`). It imports nothing heavy: torch is asked for the GPU only where it
is loaded already.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttpa import __version__
from ttpa.errors import DataError

PACKAGES = ("ttpa", "torch", "transformers", "pytorch-lightning", "peft", "hydra-core")


def utc_now() -> str:
    """The time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_durably(path: Path, text: str) -> None:
    """Replaces a file whole and makes it durable."""
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def pretty(value: Any) -> str:
    """JSON for people: indented, non-ASCII characters as they are."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, doomed: Path) -> Any:
    """Reads a file that was written here.

    Raises:
        DataError: it is damaged; advises to delete `doomed`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Delete {doomed} and run the same command again.") from None


class Attempts:
    """Wall time over all attempts at a stage, kept in its working directory: a kill loses at most a heartbeat of it."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "attempts.json"
        self.rows: list[dict[str, Any]] = read_json(self.path, self.path) if self.path.exists() else []
        self.rows.append({"started": utc_now(), "seconds": 0.0, "pid": os.getpid(), "host": socket.gethostname()})
        self._start = time.monotonic()
        self._mutex = threading.Lock()
        self._open = True
        self.save()

    def save(self) -> None:
        """Writes the time spent so far; nothing after `close`."""
        with self._mutex:
            if self._open:
                self.rows[-1]["seconds"] = round(time.monotonic() - self._start, 3)
                write_durably(self.path, pretty(self.rows))

    def close(self) -> None:
        """Writes for the last time: the heartbeat must not write into a directory that is being renamed."""
        try:
            self.save()
        finally:
            with self._mutex:
                self._open = False

    @property
    def seconds(self) -> float:
        """Wall time over all attempts."""
        return round(sum(float(row["seconds"]) for row in self.rows), 3)


@lru_cache(maxsize=1)
def code_state() -> dict[str, Any]:
    """Commit of the checkout this package is tracked in, and whether the package differs from it; else Nones."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=quiet).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", here.name)  # an environment inside somebody's checkout is not our commit
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    return {"commit": None, "dirty": None}


def _package(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return __version__ if name == "ttpa" else None


def _hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = None
    torch = sys.modules.get("torch")
    if torch is not None:  # never imported for this alone
        with contextlib.suppress(RuntimeError, AttributeError):
            gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"host": socket.gethostname(), "cpu": cpu, "cpu_count": count, "gpu": gpu}


def made_with() -> dict[str, Any]:
    """Versions of `PACKAGES` and Python (None where one is not installed), platform, host, processor and GPU."""
    packages = {name: _package(name) for name in PACKAGES}
    return {"packages": packages, "python": platform.python_version(), "platform": platform.platform(), **_hardware()}
