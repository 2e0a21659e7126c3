"""Content-addressed stages: build once, find again, resume after a kill, one builder at a time across processes.

`Store.stage` maps (name, version, config, inputs) to the directory `root/<name>-<fingerprint>/`. A directory with
`done.json` is finished and never written again. Anything else is built in `<name>-<fingerprint>.part/`, which survives
kills, so that `build` resumes from what it left there, and is renamed when whole. `ttpa.run.pipeline` is the caller. Who
builds is decided by the lock file `root/<name>-<fingerprint>.lock` (`ttpa.run.locks`), what it was built with is noted by
`ttpa.run.provenance`.

What this module does not do: decide which keys are identity (the caller passes only those), order stages, delete old
results, or know what is inside a stage (`ttpa.run.shards` holds the resumable row files). It imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ttpa.errors import StageLocked
from ttpa.run.locks import Lock
from ttpa.run.provenance import Attempts, code_state, made_with, pretty, read_json, utc_now, write_durably

POLL_S, POLL_MAX_S = 0.2, 2.0


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


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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
        lock = Lock(self.root / f"{name}-{fp}.lock", self.heartbeat_s, self.stale_after_s)
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

    def find(
        self, name: str, *, version: int, config: Mapping[str, Any], inputs: Mapping[str, StageResult]
    ) -> StageResult | None:
        """The stage if it is finished; nothing is built or waited for. Arguments as for `stage`."""
        fp = fingerprint(name, version, config, {role: result.fingerprint for role, result in inputs.items()})
        final = self.root / f"{name}-{fp}"
        return _result(name, fp, final, cached=True) if _finished(final) else None

    def _acquire(self, lock: Lock, final: Path, what: str) -> bool:
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
        lock: Lock,
        workdir: Path,
        identity: Mapping[str, Any],
        fp: str,
        build: Callable[[Path], Mapping[str, Any]],
        label: str,
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
                write_durably(workdir / "error.txt", traceback.format_exc())
            raise
        finally:
            with contextlib.suppress(OSError):
                attempts.close()
        if not lock.held():
            raise StageLocked(
                f"stage {workdir.name}: lock {lock.path} was taken over while this process was suspended or silent for "
                f"{lock.stale_after_s} s; the result is not published. Run the same command again later."
            )
        write_durably(workdir / "metrics.json", metrics_text)
        import yaml  # type: ignore[import-untyped,unused-ignore]

        write_durably(workdir / "config.yaml", yaml.safe_dump(dict(identity), sort_keys=False, allow_unicode=True))
        summary = {"stage": identity["stage"], "fingerprint": fp, "seconds": attempts.seconds, "ended": utc_now()}
        more = {"label": label, "version": identity["version"], "inputs": identity["inputs"], **code, **made_with()}
        first = {"started": attempts.rows[0]["started"], "attempts": len(attempts.rows)}
        write_durably(workdir / "provenance.json", pretty({**summary, **first, **more}))
        (workdir / "error.txt").unlink(missing_ok=True)
        write_durably(workdir / "done.json", pretty(summary))
        _sync_directory(workdir)
        line = json.dumps({"stage": identity["stage"], "fingerprint": fp, "time": utc_now(), "pid": os.getpid()})
        fd = os.open(self.root / "executions.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        try:
            os.write(fd, f"{line}\n".encode())  # one write: lines of several processes do not mix
        finally:
            os.close(fd)


def _finished(final: Path) -> bool:
    return (final / "done.json").exists()


def _result(name: str, fp: str, final: Path, *, cached: bool) -> StageResult:
    done, metrics = (read_json(final / file, doomed=final) for file in ("done.json", "metrics.json"))
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
