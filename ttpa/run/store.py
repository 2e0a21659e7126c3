"""Content-addressed stages: built once, found again, resumed after a kill, one builder at a time.

`Store.stage` maps (name, version, config, inputs) to the directory `root/<name>-<fingerprint>/`. A directory with
`done.json` is finished and never written again. A stage is built in `<name>-<fingerprint>.part/`, which survives
kills, and is renamed when whole. What this module does not do: decide which keys are identity (the caller passes only
those), order stages, delete old results, or know what is inside a stage. It imports nothing heavy.

A file lock (flock) admits one builder of a stage. The kernel, or the file server, frees it when its holder dies, so no
lock is ever judged stale. The lock file names its holder, and a thread refreshes its time, for people and `ttpa
status`.
"""

import contextlib
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from filelock import FileLock, Timeout

from ttpa.errors import DataError, StageLocked
from ttpa.io import write_text

Build = Callable[[Path], Mapping[str, Any]]
"""Fills a working directory, which holds what an interrupted attempt left, and returns metrics."""


def canonical(value: Any, key: str = "config") -> Any:
    """The plain JSON form of a configuration value: tuples become lists, paths become text; a TypeError names
    the key.
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

    `version` is the number of the stage's code, `config` the resolved identity configuration (key order does not
    matter; 1 and 1.0 differ), `inputs` maps roles to fingerprints.
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


def is_finished(folder: Path) -> bool:
    """Whether a stage's folder is whole."""
    return (folder / "done.json").exists()


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


class StageLock:
    """The lock of one stage. Its file is removed on release, and its time is refreshed every `heartbeat_s` seconds."""

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


class Store:
    """A directory of finished stages, shared by any number of processes and hosts.

    Args:
        root: Directory of the store; it is made.
        heartbeat_s: Seconds between two signs of life of a builder.
        wait: Whether to wait for another builder, or to raise.
        on_wait: Called once per stage that is waited for, with one line that says for whom.
    """

    def __init__(
        self,
        root: Path,
        *,
        heartbeat_s: float = 5.0,
        poll_s: float = 0.2,
        wait: bool = True,
        on_wait: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True),
    ) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.heartbeat_s, self.poll_s, self.wait, self.on_wait = heartbeat_s, poll_s, wait, on_wait
        self.executions: list[str] = []
        """Names of the stages that were built (not found) through this object, in order."""

    def key(
        self, name: str, *, version: int, config: Mapping[str, Any], inputs: Mapping[str, StageResult]
    ) -> tuple[str, Path]:
        """Fingerprint and final folder of a stage. Arguments and errors as for `fingerprint`."""
        digest = fingerprint(name, version, config, {role: one.fingerprint for role, one in inputs.items()})
        return digest, self.root / f"{name}-{digest}"

    def stage(
        self,
        name: str,
        *,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, StageResult],
        build: Build,
        label: str = "",
    ) -> StageResult:
        """Finds the stage, or builds it under its lock.

        `label` names the stage for people and is not part of its identity; see `fingerprint` for the rest.

        Raises:
            TypeError: the configuration or the metrics are not JSON; names the key or the stage.
            StageLocked: another process builds it and the store does not wait, or the lock was deleted meanwhile.
            Exception: whatever `build` raises, after its traceback was written to `error.txt`.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"stage name {name!r}: must be letters, digits, '_' and '-'.")
        digest, final = self.key(name, version=version, config=config, inputs=inputs)
        lock = StageLock(self.root / f"{final.name}.lock", self.heartbeat_s)
        try:
            if is_finished(final) or not self._acquire(lock, final, label or name):
                return _result(name, digest, final, cached=True)
            workdir = _workdir(final)
            if workdir is None:  # finished between the first look and the lock
                return _result(name, digest, final, cached=True)
            ids = {role: one.fingerprint for role, one in inputs.items()}
            identity = {"stage": name, "version": version, "inputs": ids, "config": canonical(config)}
            self._build(lock, workdir, identity, digest, build, label)
            workdir.rename(final)
            _sync(self.root)
            self.executions.append(name)
            return _result(name, digest, final, cached=False)
        finally:
            lock.release()

    def find(self, name: str, **key: Any) -> StageResult | None:
        """The stage if it is finished; nothing is built or waited for. Arguments as for `key`."""
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
        self, lock: StageLock, workdir: Path, identity: Mapping[str, Any], digest: str, build: Build, label: str
    ) -> None:
        """Runs one attempt and completes the working directory up to `done.json`."""
        attempts = Attempts(workdir)
        lock.beat(attempts.save)
        code = code_state()  # before the build: the checkout may move on while it runs
        try:
            metrics = build(workdir)
            if not isinstance(metrics, Mapping):
                raise TypeError(f"stage {identity['stage']}: build returned {metrics!r}, must return a dict.")
            metrics_text = pretty(dict(metrics))
        except Exception:
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                write_text(workdir / "error.txt", traceback.format_exc())
            raise
        finally:
            with contextlib.suppress(OSError):
                attempts.save(last=True)
        if not lock.held():
            raise StageLocked(
                f"stage {workdir.name}: its lock {lock.path} was deleted and another process may build it now; the "
                "result is not published. Run the same command again later."
            )
        write_text(workdir / "metrics.json", metrics_text)
        write_text(workdir / "config.yaml", yaml.safe_dump(dict(identity), sort_keys=False, allow_unicode=True))
        summary = {"stage": identity["stage"], "fingerprint": digest, "seconds": attempts.seconds, "ended": utc_now()}
        more = {"label": label, "version": identity["version"], "inputs": identity["inputs"], **code, **made_with()}
        first = {"started": attempts.rows[0]["started"], "attempts": len(attempts.rows)}
        write_text(workdir / "provenance.json", pretty({**summary, **first, **more}))
        (workdir / "error.txt").unlink(missing_ok=True)
        write_text(workdir / "done.json", pretty(summary))
        _sync(workdir)
        line = json.dumps({"stage": identity["stage"], "fingerprint": digest, "time": utc_now(), "pid": os.getpid()})
        with open(self.root / "executions.jsonl", "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())  # one write: lines of several processes do not mix


class Planner(Store):
    """Stands in for the store: names every stage, builds and finds none, and makes no folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.executions = Path(root), []
        self.labels: list[str] = []
        """What was asked for, in order."""

    def find(self, name: str, **key: Any) -> None:
        """A plan holds what a run must have, not what happens to be there."""

    def stage(self, name: str, *, build: Build, label: str = "", **key: Any) -> StageResult:
        """The stage as `Store.stage` would give it, without metrics; `cached` says whether it is finished."""
        digest, final = self.key(name, **key)
        self.labels.append(label)
        done = is_finished(final)
        return StageResult(name=name, fingerprint=digest, path=final, metrics={}, cached=done, seconds=0.0)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _result(name: str, digest: str, final: Path, *, cached: bool) -> StageResult:
    done, metrics = (read_json(final / file, doomed=final) for file in ("done.json", "metrics.json"))
    return StageResult(
        name=name, fingerprint=digest, path=final, metrics=metrics, cached=cached, seconds=done["seconds"]
    )


def _workdir(final: Path) -> Path | None:
    """The directory to build in; None when the stage is finished after all. Called under the lock.

    Mends what a kill at the end can leave: a working directory that is whole but not renamed, and (copied or edited by
    hand) a final directory that is not whole, which is resumed, or moved aside when there is something to resume.
    """
    workdir = final.with_name(final.name + ".part")
    if is_finished(final):
        return None
    if final.exists():
        aside = final.with_name(f"{final.name}.unfinished-{uuid.uuid4().hex[:8]}")
        final.rename(aside if workdir.exists() else workdir)
    if is_finished(workdir):
        workdir.rename(final)
        return None
    workdir.mkdir(exist_ok=True)
    return workdir
