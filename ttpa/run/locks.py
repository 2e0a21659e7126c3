"""One holder at a time across processes and hosts: a lock file with a heartbeat, taken over when its holder is gone.

The file is created with O_EXCL and says who holds it; a thread refreshes its mtime. "Look, judge it stale, remove it,
create mine" is four steps: without more, a slow taker could remove the fresh lock of a fast one, and renaming instead
of removing only narrows that gap. So every change of a lock happens under `flock` on the one file `.guard` in the same
folder, which the kernel drops when its holder dies and which is held for microseconds. Where the file system has no
flock nothing is ever taken over (O_EXCL alone decides), and the caller's message says which file to delete. Ages are
read off the file system's clock (the guard's mtime, touched at that moment), so skew between hosts does not matter. A
holder that is provably alive on this host is never stale, however old its heartbeat: a suspended or stopped process
wakes up and goes on writing. A holder that lost its lock all the same finds out with `Lock.held` before it publishes.

What this module does not do: wait (`Lock.acquire` is one attempt), or know what the lock is for (`ttpa.run.store` does).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttpa.run.provenance import utc_now

_THREADS = threading.Lock()  # flock over NFS excludes processes, not the threads of one process


@lru_cache(maxsize=1)
def _machine() -> str:
    """Boot and pid namespace: containers may share a host name and yet not see each other's processes."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    return ""


def _process(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process as the kernel reports them; None where it does not."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    return None


def _alive(pid: int, process_start: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it exists and belongs to somebody else
    process = _process(pid)
    if process is None:
        return True
    return process[0] not in "ZX" and process_start in (None, process[1])  # another start time: the pid was reused


class Lock:
    """One lock file; see the module header for the protocol."""

    def __init__(self, path: Path, heartbeat_s: float, stale_after_s: float) -> None:
        """Touches nothing yet.

        Args:
            path: the lock file; its folder must exist, and holds the guard file too.
            heartbeat_s: how often `beat` refreshes the mtime.
            stale_after_s: a lock whose holder was silent for longer is taken over.
        """
        self.path = path
        self.heartbeat_s = heartbeat_s
        self.stale_after_s = stale_after_s
        self.token = uuid.uuid4().hex
        self._fd = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def _guard(self) -> Iterator[float | None]:
        """Excludes every other change of locks in this store; yields the file system's time, None without flock."""
        with _THREADS, (self.path.parent / ".guard").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                yield None
                return
            try:
                os.utime(file.fileno())
                yield os.fstat(file.fileno()).st_mtime
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # said aloud: a child forked at this moment shares the open file

    def _read(self) -> tuple[dict[str, Any], float] | None:
        """Holder and mtime; None without a lock. Opens the file, since NFS may answer a bare stat from its cache."""
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                mtime = os.fstat(file.fileno()).st_mtime
                text = file.read()
        except FileNotFoundError:
            return None
        with contextlib.suppress(ValueError):
            holder = json.loads(text)
            if isinstance(holder, dict):
                return holder, mtime
        return {}, mtime  # its maker was killed between creating and filling it: only the age can tell

    def _stale(self, holder: Mapping[str, Any], age_s: float) -> bool:
        pid = holder.get("pid")
        here = holder.get("host") == socket.gethostname() and holder.get("machine", _machine()) == _machine()
        if here and isinstance(pid, int) and pid > 0:
            if not _alive(pid, holder.get("process_start")):
                return True
            if holder.get("process_start"):
                return False
        return age_s > self.stale_after_s

    def acquire(self) -> dict[str, Any] | None:
        """One attempt: None when the lock is ours now, else who holds it."""
        with self._guard() as now:
            found = self._read()
            if found is not None:
                holder, mtime = found
                if now is None or not self._stale(holder, now - mtime):
                    return holder
                self.path.unlink()
            try:
                self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:  # only where flock does not work
                return (self._read() or ({}, 0.0))[0]
            process = _process(os.getpid())
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": utc_now(), "machine": _machine()}
            mine |= {"process_start": process[1] if process else None, "token": self.token}
            os.write(self._fd, json.dumps(mine).encode())
            return None

    def look(self) -> tuple[dict[str, Any], float, bool] | None:
        """Holder, seconds since it last said that it lives (by this host's clock), and whether it counts as gone.

        None without a lock. Changes nothing, not even the guard's time: for those who only watch.
        """
        found = self._read()
        if found is None:
            return None
        holder, mtime = found
        age_s = max(0.0, time.time() - mtime)
        return holder, age_s, self._stale(holder, age_s)

    def beat(self, also: Callable[[], None]) -> None:
        """Starts the thread that refreshes the mtime and calls `also` every `heartbeat_s`."""

        def run() -> None:
            while not self._stop.wait(self.heartbeat_s):
                with contextlib.suppress(OSError):  # a hiccup of the file system must not end the heartbeat
                    os.utime(self._fd)  # by descriptor: never refreshes the lock of somebody who took over
                with contextlib.suppress(OSError):
                    also()

        self._thread = threading.Thread(target=run, name=f"heartbeat {self.path.name}", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Whether the lock file is still the one made here."""
        found = self._read()
        return found is not None and found[0].get("token") == self.token

    def release(self) -> None:
        """Stops the heartbeat and removes the lock file if it is still ours; nothing when it never was."""
        if self._fd < 0:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._guard():
            if self.held():
                self.path.unlink()
        os.close(self._fd)
