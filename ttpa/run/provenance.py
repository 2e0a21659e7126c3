"""What a stage was built with (commit, packages, hardware) and how long that took over all attempts.

Nothing here enters a result's identity. The module imports nothing heavy: it asks torch for the GPU only where torch is
loaded already.
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

from ttpa.errors import DataError
from ttpa.io import write_text

PACKAGES = ("ttpa", "torch", "transformers", "pytorch-lightning", "peft", "hydra-core")


def utc_now() -> str:
    """The time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def pretty(value: Any) -> str:
    """JSON for people: indented, non-ASCII characters as they are."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, doomed: Path) -> Any:
    """Reads a JSON file of the store.

    Raises:
        DataError: the file is damaged; the message advises to delete `doomed`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Delete {doomed} and run the same command again.") from None


class Attempts:
    """Wall time over all attempts at a stage, kept in its working directory. A kill loses at most one heartbeat."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "attempts.json"
        self.rows: list[dict[str, Any]] = read_json(self.path, self.path) if self.path.exists() else []
        self.rows.append({"started": utc_now(), "seconds": 0.0, "pid": os.getpid(), "host": socket.gethostname()})
        self._start = time.monotonic()
        self._mutex = threading.Lock()
        self._open = True
        self.save()

    def save(self, last: bool = False) -> None:
        """Writes the time spent so far. After the last time nothing is written: the directory may be renamed."""
        with self._mutex:
            if self._open:
                self._open = not last
                self.rows[-1]["seconds"] = round(time.monotonic() - self._start, 3)
                write_text(self.path, pretty(self.rows))

    @property
    def seconds(self) -> float:
        """Wall time over all attempts."""
        return round(sum(float(row["seconds"]) for row in self.rows), 3)


@lru_cache(maxsize=1)
def code_state() -> dict[str, Any]:
    """Commit of the checkout this package is tracked in, and whether the package differs from it; else Nones."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parents[1]), *words]
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=quiet).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", str(here))  # an environment inside somebody's checkout is not our commit
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    return {"commit": None, "dirty": None}


def made_with() -> dict[str, Any]:
    """Versions of `PACKAGES` (None where one is not installed) and Python, platform, host, processor and GPU."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
        packages.setdefault(name, None)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu, torch = None, sys.modules.get("torch")
    if torch is not None:
        with contextlib.suppress(RuntimeError, AttributeError):
            gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"host": socket.gethostname(), "cpu": cpu, "cpu_count": count, "gpu": gpu}
    return {"packages": packages, "python": platform.python_version(), "platform": platform.platform(), **machine}
