"""One builder of a stage at a time, across processes and hosts: a file lock that says who holds it.

`filelock` (flock) excludes; the kernel, or the file server, frees the lock when its holder dies, so nothing is ever judged
stale. The file holds the holder's process and host, and a thread refreshes its time, for people and for `ttpa status`.
What this module does not do: wait (`StageLock.acquire` is one attempt), or know what the lock is for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ttpa.run.provenance import utc_now


class StageLock:
    """The lock of one stage.

    Args:
        path: The lock file; it is removed on release.
        heartbeat_s: Seconds between two refreshes of its time.
    """

    def __init__(self, path: Path, heartbeat_s: float) -> None:
        self.path, self.heartbeat_s = path, heartbeat_s
        self._lock = FileLock(path)
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> dict[str, Any] | None:
        """One attempt: None when the lock is ours now, else who holds it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return holder_of(self.path)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": utc_now(), "token": self._token}
        self.path.write_text(json.dumps(mine), encoding="utf-8")
        return None

    def beat(self, also: Callable[[], None]) -> None:
        """Starts the thread that refreshes the file's time and calls `also` every `heartbeat_s`."""

        def run() -> None:
            while not self._stop.wait(self.heartbeat_s):
                with contextlib.suppress(OSError):  # a hiccup of the file system must not end the heartbeat
                    os.utime(self.path)
                    also()

        self._thread = threading.Thread(target=run, name=f"heartbeat {self.path.name}", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Whether the file is still the one made here, and nobody deleted it to let another builder in."""
        return holder_of(self.path).get("token") == self._token

    def release(self) -> None:
        """Stops the heartbeat and frees the lock; nothing when it was never ours."""
        if not self._lock.is_locked:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # While it is held: whoever waits with the file open notices that it is gone and makes a new one.
        if self.held():
            self.path.unlink()
        self._lock.release()


def holder_of(path: Path) -> dict[str, Any]:
    """What the lock file says of its holder; empty where it says nothing."""
    with contextlib.suppress(OSError, ValueError):
        said = json.loads(path.read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    return {}


def look(path: Path) -> tuple[dict[str, Any], float] | None:
    """Holder of a lock and seconds since its last heartbeat; None where nobody holds it. For those who only watch."""
    try:
        age_s = max(0.0, time.time() - path.stat().st_mtime)
        with FileLock(path, timeout=0):
            return None  # free: a killed process left the file
    except FileNotFoundError:
        return None
    except (Timeout, OSError):
        return holder_of(path), age_s
