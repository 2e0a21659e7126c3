"""Content-addressed stages: build once, find again, resume after a kill, one builder at a time across processes.

`Store.stage` maps (name, version, config, inputs) to the directory `root/<name>-<fingerprint>/`. A directory with
`done.json` is finished and never written again. Anything else is built in `<name>-<fingerprint>.part/`, which survives
kills, so that `build` resumes from what it left there, and is renamed when whole. `ttpa.pipeline` is the caller.

What this module does not do: decide which keys are identity (the caller passes only those), order stages, delete old
results, or know what is inside a stage (`ttpa.shards` holds the resumable row files). It imports nothing heavy.

The lock. `<name>-<fingerprint>.lock` is created with O_EXCL and holds who builds; a thread refreshes its mtime. "Look,
judge it stale, remove it, create mine" is four steps: without more, a slow taker could remove the fresh lock of a fast
one, and renaming instead of removing only narrows that gap. So every change of a lock happens under `flock` on the one
file `root/.guard`, which the kernel drops when its holder dies and which is held for microseconds. Where the file
system has no flock nothing is ever taken over (O_EXCL alone decides), and the message says which file to delete. Ages
are read off the file system's clock (the guard's mtime, touched at that moment), so skew between hosts does not matter.
A holder that is provably alive on this host is never stale, however old its heartbeat: a suspended or stopped process
wakes up and goes on writing. A builder that lost its lock all the same refuses to publish.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from ttpa import __version__
from ttpa.errors import DataError, StageLocked

PACKAGES = ("ttpa", "torch", "transformers", "pytorch-lightning", "peft", "hydra-core")
POLL_S, POLL_MAX_S = 0.2, 2.0
_THREADS = threading.Lock()  # flock over NFS excludes processes, not the threads of one process


def canonical(value: Any, key: str = "config") -> Any:
    """The plain JSON form of a configuration value: tuples become lists, paths become text.

    Raises:
        TypeError: a value that has no canonical form, or a mapping key that is not text; names the key.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum of texts becomes its text, which YAML can print
    for number in (int, float):
        if isinstance(value, number):
            return number(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, (list, tuple)):
        return [canonical(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{key}: mapping key {name!r} is {type(name).__name__}, must be text. Quote it.")
        return {str.__str__(name): canonical(item, f"{key}.{name}") for name, item in value.items()}
    raise TypeError(f"{key}={value!r}: {type(value).__name__} cannot enter a fingerprint. Use JSON values.")


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Twelve hex digits that name a stage's result.

    Args:
        stage: stage name.
        version: number of the stage's code; bump it when the meaning of the code changes.
        config: the resolved identity configuration. Key order does not matter; 1 and 1.0 differ.
        inputs: role -> fingerprint of the stage that fills it.

    Raises:
        TypeError: the configuration holds something other than JSON values, tuples and paths; names the key.

    Example:
        >>> fingerprint("data", 1, {"n": 3, "seed": 0}, {}) == fingerprint("data", 1, {"seed": 0, "n": 3}, {})
        True
    """
    whole = {"stage": stage, "version": version, "config": canonical(config), "inputs": canonical(inputs, "inputs")}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """A finished stage. `seconds` is the recorded wall time of its build over all attempts, for cache hits too."""

    name: str
    fingerprint: str
    path: Path
    metrics: dict[str, Any]
    cached: bool
    seconds: float


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(path: Path, text: str) -> None:
    """Replaces a file whole and makes it durable."""
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_json(path: Path, doomed: Path) -> Any:
    """Reads a file of the store; a damaged one is an error that advises to delete `doomed`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Delete {doomed} and run the same command again.") from None


# ---- who holds a lock -----------------------------------------------------------------------------------------------


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


class _Lock:
    """The lock file of one stage; see the module header for the protocol."""

    def __init__(self, path: Path, heartbeat_s: float, stale_after_s: float) -> None:
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
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now(), "machine": _machine()}
            mine |= {"process_start": process[1] if process else None, "token": self.token}
            os.write(self._fd, json.dumps(mine).encode())
            return None

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


# ---- what a build is made with --------------------------------------------------------------------------------------


class _Attempts:
    """Wall time over all attempts at a stage, kept in its working directory: a kill loses at most a heartbeat of it."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "attempts.json"
        self.rows: list[dict[str, Any]] = _read_json(self.path, self.path) if self.path.exists() else []
        self.rows.append({"started": _now(), "seconds": 0.0, "pid": os.getpid(), "host": socket.gethostname()})
        self._start = time.monotonic()
        self._mutex = threading.Lock()
        self._open = True
        self.save()

    def save(self) -> None:
        with self._mutex:
            if self._open:
                self.rows[-1]["seconds"] = round(time.monotonic() - self._start, 3)
                _write(self.path, _pretty(self.rows))

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
def _code() -> dict[str, Any]:
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


def _made_with() -> dict[str, Any]:
    packages = {name: _package(name) for name in PACKAGES}
    return {"packages": packages, "python": platform.python_version(), "platform": platform.platform(), **_hardware()}


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# ---- the store ------------------------------------------------------------------------------------------------------


class Store:
    """A directory of finished stages, shared by any number of processes and hosts."""

    def __init__(
        self,
        root: Path,
        *,
        heartbeat_s: float = 5.0,
        stale_after_s: float = 30.0,
        wait: bool = True,
        on_wait: Callable[[str], None] = _print_to_stderr,
    ) -> None:
        """Opens or creates a store.

        Args:
            root: directory of the store.
            heartbeat_s: how often a builder says that it lives.
            stale_after_s: a lock whose builder was silent for longer is taken over.
            wait: whether to wait for a live builder, or to raise.
            on_wait: called once per stage that is waited for, with one line saying for whom.

        Raises:
            ValueError: `stale_after_s` leaves no room for a late heartbeat.
        """
        if not 0 < 2 * heartbeat_s <= stale_after_s:
            raise ValueError(f"stale_after_s={stale_after_s}: must be at least twice heartbeat_s={heartbeat_s}.")
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.heartbeat_s = heartbeat_s
        self.stale_after_s = stale_after_s
        self.wait = wait
        self.on_wait = on_wait
        self.executions: list[str] = []
        """Names of the stages built (not found) through this object, in order."""

    def stage(
        self,
        name: str,
        *,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, StageResult],
        build: Callable[[Path], Mapping[str, Any]],
        label: str = "",
    ) -> StageResult:
        """Finds the stage, or builds it under its lock.

        Args:
            name: stage name: letters, digits, `_` and `-`.
            version: see `fingerprint`.
            config: identity configuration of the stage.
            inputs: role -> finished stage it is built from.
            build: called with the working directory, which holds what an interrupted attempt left; returns metrics.
            label: for people only (messages, provenance); not part of the identity.

        Raises:
            ValueError: `name` cannot be a directory name.
            TypeError: the configuration or the metrics are not JSON; names the key or the stage.
            StageLocked: another live process builds it and the store does not wait, or the lock was lost meanwhile.
            Exception: whatever `build` raises, after its traceback was written to `error.txt`.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"stage name {name!r}: must be letters, digits, '_' and '-'.")
        ids = {role: result.fingerprint for role, result in inputs.items()}
        fp = fingerprint(name, version, config, ids)
        final = self.root / f"{name}-{fp}"
        lock = _Lock(self.root / f"{name}-{fp}.lock", self.heartbeat_s, self.stale_after_s)
        try:
            if _finished(final) or not self._acquire(lock, final, label or name):
                return _result(name, fp, final, cached=True)
            workdir = _workdir(final)
            if workdir is None:  # finished between the first look and the lock
                return _result(name, fp, final, cached=True)
            identity = {"stage": name, "version": version, "inputs": ids, "config": canonical(config)}
            self._build(lock, workdir, identity, fp, build, label)
            workdir.rename(final)
            _sync_directory(self.root)
            self.executions.append(name)
            return _result(name, fp, final, cached=False)
        finally:
            lock.release()

    def _acquire(self, lock: _Lock, final: Path, what: str) -> bool:
        """True with the lock held, False when the stage was finished by somebody else."""
        told, pause_s = False, POLL_S
        while (holder := lock.acquire()) is not None:
            if _finished(final):
                return False
            who = f"pid {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
            message = f"{what}: stage {final.name} is being built by {who} (lock {lock.path})."
            if not self.wait:
                remedy = "Run the same command again later; if that process is gone for good, delete the lock file."
                raise StageLocked(f"{message} {remedy}")
            if not told:
                self.on_wait(f"{message} Waiting.")
                told = True
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, POLL_MAX_S)  # a training takes hours: do not stress a shared file system
        return True

    def _build(
        self,
        lock: _Lock,
        workdir: Path,
        identity: Mapping[str, Any],
        fp: str,
        build: Callable[[Path], Mapping[str, Any]],
        label: str,
    ) -> None:
        """Runs one attempt and completes the working directory up to `done.json`."""
        attempts = _Attempts(workdir)
        lock.beat(attempts.save)
        code = _code()  # before the build: the checkout may move on while it runs
        try:
            metrics = build(workdir)
            if not isinstance(metrics, Mapping):
                raise TypeError(f"stage {identity['stage']}: build returned {metrics!r}, must return a dict.")
            metrics_text = _pretty(dict(metrics))
        except Exception:
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                _write(workdir / "error.txt", traceback.format_exc())
            raise
        finally:
            with contextlib.suppress(OSError):
                attempts.close()
        if not lock.held():
            raise StageLocked(
                f"stage {workdir.name}: lock {lock.path} was taken over while this process was suspended or silent for "
                f"{lock.stale_after_s} s; the result is not published. Run the same command again later."
            )
        _write(workdir / "metrics.json", metrics_text)
        import yaml  # type: ignore[import-untyped,unused-ignore]

        _write(workdir / "config.yaml", yaml.safe_dump(dict(identity), sort_keys=False, allow_unicode=True))
        summary = {"stage": identity["stage"], "fingerprint": fp, "seconds": attempts.seconds, "ended": _now()}
        more = {"label": label, "version": identity["version"], "inputs": identity["inputs"], **code, **_made_with()}
        first = {"started": attempts.rows[0]["started"], "attempts": len(attempts.rows)}
        _write(workdir / "provenance.json", _pretty({**summary, **first, **more}))
        (workdir / "error.txt").unlink(missing_ok=True)
        _write(workdir / "done.json", _pretty(summary))
        _sync_directory(workdir)
        line = json.dumps({"stage": identity["stage"], "fingerprint": fp, "time": _now(), "pid": os.getpid()})
        fd = os.open(self.root / "executions.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        try:
            os.write(fd, f"{line}\n".encode())  # one write: lines of several processes do not mix
        finally:
            os.close(fd)


def _finished(final: Path) -> bool:
    return (final / "done.json").exists()


def _result(name: str, fp: str, final: Path, *, cached: bool) -> StageResult:
    done, metrics = (_read_json(final / file, doomed=final) for file in ("done.json", "metrics.json"))
    return StageResult(name=name, fingerprint=fp, path=final, metrics=metrics, cached=cached, seconds=done["seconds"])


def _workdir(final: Path) -> Path | None:
    """The directory to build in; None when the stage is finished after all. Called under the lock.

    Heals what a kill at the end can leave: a working directory that is whole but not renamed, and (copied or edited by
    hand) a final directory that is not whole, which is resumed, or moved aside when there is something to resume.
    """
    workdir = final.with_name(final.name + ".part")
    if _finished(final):
        return None
    if final.exists():
        aside = final.with_name(f"{final.name}.unfinished-{uuid.uuid4().hex[:8]}")
        final.rename(aside if workdir.exists() else workdir)
    if _finished(workdir):
        workdir.rename(final)
        return None
    workdir.mkdir(exist_ok=True)
    return workdir
