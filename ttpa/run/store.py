"""Content-addressed stages: built once, found again, resumed after a kill, one builder at a time.

A stage is built in `root/<name>-<fingerprint>.part/`, which survives kills, and renamed when whole; with `done.json` it
is never written again. A file lock admits one builder; the kernel, or the file server, frees it when its holder dies.
"""

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from filelock import FileLock, Timeout

from ttpa.errors import DataError, StageLocked
from ttpa.io import write_text

Build = Callable[[Path], Mapping[str, Any]]
"""Fills a working directory, which holds what an interrupted attempt left, and returns metrics."""


LOGS = ("logs", "lightning_logs", "wandb")  # folders of loggers, which may write to them later


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r}: {type(value).__name__} cannot enter a fingerprint. Use JSON values.")


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Twelve hex digits that name a stage by its code's version, its identity configuration (key order does not matter;
    1 and 1.0 differ) and the fingerprints of its inputs. A value that is not JSON is a TypeError.
    """
    whole = {"stage": stage, "version": version, "config": config, "inputs": inputs}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage. `seconds` is the recorded wall time of its build over all attempts, for cache hits too."""

    name: str
    fingerprint: str
    path: Path
    metrics: dict[str, Any]
    cached: bool
    seconds: float


Inputs = Mapping[str, StageResult]


def is_finished(folder: Path) -> bool:
    return (folder / "done.json").exists()


def verify(folder: Path, hashes: bool = False) -> dict[str, Any]:
    """What `done.json` says. A file that is not as it was when the stage was finished, by its size (and its hash), is a
    DataError with the remedy. Stages of older versions list no files.
    """
    done = _read_json(folder / "done.json", doomed=folder)
    problem = "" if isinstance(done, dict) and "seconds" in done else "done.json is not what was written"
    for name, (size, digest) in done.get("files", {}).items() if not problem else ():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            problem = f"{name} is missing"
        elif found != size:
            problem = f"{name} has {found} bytes where {size} were written"
        elif hashes and _sha256(file) != digest:
            problem = f"{name} holds other bytes than were written (SHA-256)"
        if problem:
            break
    if problem:
        raise DataError(f"{folder}: {problem}. Delete {folder} and run the same command again.")
    return done  # type: ignore[no-any-return]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _read_json(path: Path, doomed: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Delete {doomed} and run the same command again.") from None


@cache
def code_state() -> dict[str, Any]:
    """Commit of the checkout this package is tracked in, and whether the package differs from it; else Nones."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command, env = ["git", "-C", str(here.parents[1]), *words], {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=env).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", str(here))  # an environment inside somebody's checkout is not our commit
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    return {"commit": None, "dirty": None}


def made_with() -> dict[str, Any]:
    """Versions of packages (None where one is not installed) and Python, platform, host, processor and GPU."""
    names = ("ttpa", "torch", "transformers", "pytorch-lightning", "peft", "hydra-core")
    packages: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    cpu, gpu, torch = platform.processor() or platform.machine(), None, sys.modules.get("torch")
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
        cpu = found[1] if found else cpu
    with suppress(RuntimeError):
        gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"host": socket.gethostname(), "cpu": cpu, "cpu_count": count, "gpu": gpu}
    return {"packages": packages, "python": platform.python_version(), "platform": platform.platform(), **machine}


class StageLock:
    """The lock of one stage. Its file names the holder, for people and `ttpa status`, and is removed on release."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, FileLock(path)
        self._mine = {"pid": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}

    def acquire(self) -> dict[str, Any] | None:
        """One attempt: None when the lock is ours now, else who holds it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return holder_of(self.path)
        self._mine["started"] = _utc_now()
        self.path.write_text(json.dumps(self._mine), encoding="utf-8")
        return None

    def held(self) -> bool:
        """Whether the file is still the one made here, and nobody deleted it to let another builder in."""
        return holder_of(self.path) == self._mine

    def release(self) -> None:
        """Frees the lock; nothing when it was never ours."""
        # While it is held: whoever waits with the file open notices that it is gone and makes a new one.
        if self._lock.is_locked and self.held():
            self.path.unlink()
        self._lock.release()


def holder_of(path: Path) -> dict[str, Any]:
    """What the lock file says of its holder; empty where it says nothing."""
    with suppress(OSError, ValueError):
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


@contextmanager
def _heartbeat(every_s: float, beat: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            with suppress(OSError):  # a hiccup of the file system must not end the heartbeat
                beat()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Store:
    """A directory of finished stages, shared by any number of processes and hosts; `executions` names those built here.
    `wait` says whether to wait for another builder, or to raise; `on_wait` is told once per stage for whom.
    """

    heartbeat_s, poll_s = 5.0, 0.2

    def __init__(self, root: Path, *, wait: bool = True, on_wait: Callable[[str], None] = print) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.wait, self.on_wait, self.executions = root, wait, on_wait, list[str]()

    def key(self, name: str, *, version: int, config: Mapping[str, Any], inputs: Inputs) -> tuple[str, Path]:
        digest = fingerprint(name, version, config, {role: one.fingerprint for role, one in inputs.items()})
        return digest, self.root / f"{name}-{digest}"

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        """Finds the stage that `key` names (see `key`), or builds it under its lock; `label` names it for people. The
        traceback of a failed build goes to `error.txt`. `StageLocked`: somebody else builds it, or deleted the lock.
        """
        digest, final = self.key(name, **key)
        lock, workdir = StageLock(self.root / f"{final.name}.lock"), None
        try:
            if not is_finished(final) and self._acquire(lock, final, label or name):
                workdir = _workdir(final)
            if workdir is not None:
                ids = {role: one.fingerprint for role, one in key["inputs"].items()}
                identity = {"stage": name, "version": key["version"], "inputs": ids, "config": key["config"]}
                self._build(lock, workdir, identity, digest, build, label)
                workdir.rename(final)
                _sync(self.root)
                self.executions.append(name)
            return _result(name, digest, final, cached=workdir is None)
        finally:
            lock.release()

    def find(self, name: str, **key: Any) -> StageResult | None:
        """The stage if it is finished; nothing is built or waited for."""
        digest, final = self.key(name, **key)
        return _result(name, digest, final, cached=True) if is_finished(final) else None

    def _acquire(self, lock: StageLock, final: Path, what: str) -> bool:
        """True with the lock held, False when somebody else has finished the stage."""
        told, pause_s = False, self.poll_s
        while (holder := lock.acquire()) is not None:
            if is_finished(final):
                return False
            who = f"pid {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
            message = f"{what}: stage {final.name} is being built by {who} (lock {lock.path})."
            if not self.wait:
                raise StageLocked(f"{message} Run the same command again later, or end that process.")
            if not told:
                self.on_wait(f"{message} Waiting.")
                told = True
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, 10 * self.poll_s)  # a training takes hours: spare a shared file system
        return True

    def _build(
        self, lock: StageLock, workdir: Path, identity: dict[str, Any], digest: str, build: Build, label: str
    ) -> None:
        """Runs one attempt and completes the working directory up to `done.json`."""
        file, began = workdir / "attempts.json", time.monotonic()
        attempts: list[dict[str, Any]] = _read_json(file, file) if file.exists() else []
        attempts.append({"started": _utc_now(), "seconds": 0.0, "pid": os.getpid(), "host": socket.gethostname()})

        def beat() -> None:
            os.utime(lock.path)
            attempts[-1]["seconds"] = round(time.monotonic() - began, 3)
            write_text(file, _pretty(attempts))

        beat()
        code = code_state()  # before the build: the checkout may move on while it runs
        try:
            with _heartbeat(self.heartbeat_s, beat):
                metrics = _pretty(dict(build(workdir)))
        except Exception:
            with suppress(OSError):  # a full disk must not hide the error itself
                write_text(workdir / "error.txt", traceback.format_exc())
            raise
        finally:
            with suppress(OSError):
                beat()  # a kill loses at most the time since the last one
        if not lock.held():
            raise StageLocked(
                f"stage {workdir.name}: its lock {lock.path} was deleted and another process may build it now; the "
                "result is not published. Run the same command again later."
            )
        write_text(workdir / "metrics.json", metrics)
        plain = json.loads(json.dumps(identity, default=_plain))
        write_text(workdir / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        stage, ended = {"stage": identity["stage"], "fingerprint": digest}, _utc_now()
        summary = {**stage, "seconds": round(sum(row["seconds"] for row in attempts), 3), "ended": ended}
        first = {"started": attempts[0]["started"], "attempts": len(attempts)}
        more = {"label": label, "version": identity["version"], "inputs": identity["inputs"], **code, **made_with()}
        write_text(workdir / "provenance.json", _pretty({**summary, **first, **more}))
        (workdir / "error.txt").unlink(missing_ok=True)
        for half in workdir.rglob(".*.part"):  # what a kill left of a file being written
            half.unlink()
        found = {path.relative_to(workdir): path for path in sorted(workdir.rglob("*")) if path.is_file()}
        kept = {name.as_posix(): path for name, path in found.items() if name.parts[0] not in LOGS}
        files = {name: (path.stat().st_size, _sha256(path)) for name, path in kept.items()}
        write_text(workdir / "done.json", _pretty({**summary, "files": files}))
        _sync(workdir)
        with open(self.root / "executions.jsonl", "ab", buffering=0) as log:
            line = json.dumps({**stage, "time": ended, "pid": os.getpid()})
            log.write(f"{line}\n".encode())  # one write: lines of several processes do not mix


class Planner(Store):
    """Stands in for the store: names every stage, notes its label, builds none and makes no folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.executions, self.labels = root, [], list[str]()

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        """The stage as `Store.stage` would give it, without metrics; `cached` says whether it is finished."""
        digest, final = self.key(name, **key)
        self.labels.append(label)
        return StageResult(name, digest, final, {}, cached=is_finished(final), seconds=0.0)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _result(name: str, digest: str, final: Path, *, cached: bool) -> StageResult:
    done, metrics = verify(final), _read_json(final / "metrics.json", doomed=final)
    return StageResult(name, digest, final, metrics, cached, done["seconds"])


def _workdir(final: Path) -> Path | None:
    """The directory to build in; None when the stage is finished after all. Called under the lock. Mends one that is
    whole but not renamed (a kill at the end); a final one that is not whole (edited by hand) is resumed or moved aside.
    """
    workdir = final.with_name(final.name + ".part")
    if final.exists() and not is_finished(final):
        aside = final.with_name(f"{final.name}.unfinished-{uuid.uuid4().hex[:8]}")
        final.rename(aside if workdir.exists() else workdir)
    if is_finished(workdir) and not final.exists():
        workdir.rename(final)
    if is_finished(final):
        return None
    workdir.mkdir(exist_ok=True)
    return workdir
