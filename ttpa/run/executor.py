"""Where waves are computed: in this process, or spread over the processes of a Ray cluster. Execution only.

A wave is a few samples that are computed together, and its rows are a function of the wave alone. So where it is
computed changes no row, only the order in which waves come back. Drawing data (reversed), exploring and evaluating
work in waves; training does not, it scales by Lightning's strategies.

What this module does not do: cut waves, write files or catch what the work raises (`ttpa.run.shards`). Called by
`ttpa.run.shards.run_waves`; `conf/executor` names the classes. Ray is an optional extra, imported when it is used.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from ttpa.errors import ConfigError, TtpaError

Wave = Sequence[Any]
Rows = Sequence[Mapping[str, Any]]
Work = Callable[[Wave], Rows]
"""Gives the rows of one wave. A function of the wave alone; loaded things (model, engine) it brings with it."""
Answers = Generator[tuple[int, Rows], None, None]

log = logging.getLogger("ttpa")

POLL_S = 1.0
"""Seconds between two looks at whether any worker lives."""
CONNECT_S = 10.0
"""Seconds within which a cluster must answer."""


class WaveLost(TtpaError):
    """The processes that computed one wave died too often. `number` counts from 0 in the waves handed over."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"wave {number}: {reason}")
        self.number = number
        self.reason = reason


class Executor(Protocol):
    """Computes waves somewhere."""

    def check(self) -> None:
        """Finds out, before any work, whether this executor can run here.

        Raises:
            ConfigError: it cannot; says what is missing.
        """

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Answers:
        """Yields (number of the wave, its rows) as they come: each wave once, in any order. Closed early, it stops.

        Args:
            make_work: called once in each process that computes; loads what the work needs. Nothing to do: not called.
            waves: what to compute.

        Raises:
            WaveLost: processes died, and trying again did not help.
            Exception: whatever the work raises. Rows yielded before stay valid.
        """


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Computes in this process, in order.

    Example:
        >>> list(LocalExecutor().run(lambda: lambda wave: [{"id": name} for name in wave], ["ab", "c"]))
        [(0, [{'id': 'a'}, {'id': 'b'}]), (1, [{'id': 'c'}])]
    """

    def check(self) -> None:
        """Nothing can be missing."""

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Answers:
        """See `Executor`."""
        work: Work | None = None
        for number, wave in enumerate(waves):
            if work is None:
                work = make_work()
            yield number, work(wave)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """Spreads waves over Ray actors; whoever is free gets the next wave, and a wave whose process died is given again.

    `make_work` travels to the workers by cloudpickle, so it must hold no model, file or lock: it is given a folder and
    loads the model there. Workers need this package and the folder under the same path (a shared file system). Each
    sets its own number of torch threads inside `make_work`; Ray suggests one a CPU.

    Args:
        workers: Processes. Where the cluster has room for fewer, those go on alone and others join when they fit.
        cpus_per_worker: CPUs that Ray sets aside for each; may be a fraction.
        gpus_per_worker: GPUs likewise. Ray shows a worker only its own.
        resources_per_worker: Custom Ray resources likewise, name -> amount; to choose nodes.
        address: host:port of a running cluster. None follows the variable RAY_ADDRESS, then a cluster that was started
            on this machine; else a cluster of this machine alone is started and stopped again. "local" starts one.
        retries: How often a wave is given out again after its process or node died.
        start_timeout_s: How long to wait while not one worker could be started.

    Raises:
        ConfigError: a value out of range.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    resources_per_worker: Mapping[str, float] = field(default_factory=dict)
    address: str | None = None
    retries: int = 3
    start_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError.at("executor.workers", self.workers, "must be at least 1", "Use the cluster's GPUs")
        for key in ("cpus_per_worker", "gpus_per_worker", "retries"):
            if not getattr(self, key) >= 0:
                raise ConfigError.at(f"executor.{key}", getattr(self, key), "must not be negative", "Use 0")
        if not self.start_timeout_s > 0:
            raise ConfigError.at("executor.start_timeout_s", self.start_timeout_s, "must be positive", "Use 120")

    def check(self) -> None:
        """Looks for the package without importing it, and knocks at `address`.

        Raises:
            ConfigError: ray is not installed, or nothing answers there.
        """
        if find_spec("ray") is None:
            raise ConfigError("executor=ray needs the package ray: pip install 'ttpa[ray]'.")
        host, _, port = (self.address or "").rpartition(":")
        if not port.isdecimal() or "/" in host:
            return
        try:  # ray.init tries for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            remedy = "Start one with `ray start --head`, or use executor.address=local"
            raise ConfigError.at("executor.address", self.address, f"no Ray cluster ({error})", remedy) from None

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Answers:
        """See `Executor`.

        Raises:
            ConfigError: ray is not installed, the cluster does not answer, or no worker fits into it.
            WaveLost: a wave's process or node died more than `retries` times.
            TtpaError: workers die as they start.
            Exception: whatever the work raises, with the worker's traceback in its notes.
        """
        if not waves:
            return
        self.check()
        import ray

        mine = not ray.is_initialized()
        pool = None
        try:
            if mine:
                self._connect(ray)
            pool = _Pool(self, ray, make_work, waves)
            yield from pool.answers()
        finally:
            if pool is not None:
                pool.close()
            if mine:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        # A cluster that is started here would report its use over the network.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address=self.address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
        )


class _Worker:
    """What runs inside a Ray actor: loads once, then answers one wave after the other."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self.make_work = make_work
        self.work: Work | None = None

    def ready(self) -> None:
        """Returns when the process lives; loading comes later, so that a slow load is not taken for a full cluster."""

    def answer(self, wave: Wave) -> Rows:
        if self.work is None:
            self.work = self.make_work()
        return list(self.work(wave))


class _Pool:
    """The actors of one `RayExecutor.run`, and which wave each of them has.

    Every actor has exactly one call under way: `ready` while it starts, then one `answer` after the other. A free actor
    without a wave is let go, so that its GPU serves others.
    """

    def __init__(self, settings: RayExecutor, ray: Any, make_work: Callable[[], Work], waves: Sequence[Wave]) -> None:
        self.settings, self.ray, self.waves = settings, ray, waves
        self.make_work = ray.put(make_work)
        # Ray's own restarts would run a wave again behind our back; the count of losses is kept here.
        self.actor_class = ray.remote(_Worker).options(
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker,
            resources=dict(settings.resources_per_worker),
            max_restarts=0,
            max_task_retries=0,
        )
        self.calls: dict[Any, tuple[Any, int | None]] = {}
        """Call under way -> (actor, number of its wave, or None while it starts)."""
        self.waiting = deque(range(len(waves)))
        self.losses: Counter[int] = Counter()
        self.failed_starts = 0
        self.alive_at = time.monotonic()

    def answers(self) -> Answers:
        """Yields every wave once."""
        left = len(self.waves)
        while left:
            self._start_missing()
            self._check_alive()
            done, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=POLL_S)
            for call in done:
                actor, number = self.calls[call]  # removed when the actor has been dealt with, so that `close` finds it
                try:
                    rows = self.ray.get(call)
                except (self.ray.exceptions.RayTaskError, self.ray.exceptions.UnserializableException) as error:
                    raise _raised_by_work(error) from None
                except self.ray.exceptions.RayError as error:  # the actor, its node or its answer is gone
                    del self.calls[call]
                    self._lost(actor, number, error)
                    continue
                del self.calls[call]
                self._give(actor)
                if number is None:
                    self.failed_starts = 0
                else:
                    left -= 1
                    yield number, rows

    def close(self) -> None:
        """Stops every actor, whatever it is doing."""
        for actor, _ in self.calls.values():
            self.ray.kill(actor)
        self.calls.clear()

    def _start_missing(self) -> None:
        starting = sum(number is None for _, number in self.calls.values())
        for _ in range(min(self.settings.workers - len(self.calls), len(self.waiting) - starting)):
            actor = self.actor_class.remote(self.make_work)
            self.calls[actor.ready.remote()] = (actor, None)

    def _give(self, actor: Any) -> None:
        if not self.waiting:
            self.ray.kill(actor)
            return
        number = self.waiting.popleft()
        self.calls[actor.answer.remote(self.waves[number])] = (actor, number)

    def _lost(self, actor: Any, number: int | None, error: Exception) -> None:
        self.ray.kill(actor)  # it may be only out of reach, and would keep its GPU
        reason = f"{type(error).__name__}: {error}".strip()
        what = "a worker died as it started" if number is None else f"a worker died with wave {number}"
        log.warning("executor=ray: %s: %s", what, reason)
        if number is None:
            self.failed_starts += 1
            if self.failed_starts > self.settings.retries or getattr(error, "actor_init_failed", False):
                raise TtpaError(f"executor=ray: workers die as they start. Is ttpa installed on every node? {reason}")
            return
        self.losses[number] += 1
        if self.losses[number] > self.settings.retries:
            raise WaveLost(
                number,
                f"the process that computed it died {self.losses[number]} times (executor.retries="
                f"{self.settings.retries}). If memory ran out, use smaller waves (engine.rows); Ray's logs are in "
                f"/tmp/ray/session_latest/logs of the node. The last time: {reason}",
            )
        self.waiting.appendleft(number)

    def _check_alive(self) -> None:
        """Raises when not one worker has lived for too long. A wave that takes long is no reason."""
        if any(number is not None for _, number in self.calls.values()):
            self.alive_at = time.monotonic()
        elif time.monotonic() - self.alive_at > self.settings.start_timeout_s:
            want = {
                "CPU": self.settings.cpus_per_worker,
                "GPU": self.settings.gpus_per_worker,
                **self.settings.resources_per_worker,
            }
            raise ConfigError(
                f"executor=ray: no worker could be started in {self.settings.start_timeout_s} s. Each needs "
                f"{_amounts(want)}; the cluster has {_amounts(self.ray.cluster_resources())}, of which free: "
                f"{_amounts(self.ray.available_resources())}. Lower executor.cpus_per_worker or gpus_per_worker, or "
                "wait for the cluster."
            )


def _amounts(resources: Mapping[str, float]) -> str:
    """Example: {"CPU": 2.0, "GPU": 0.0} -> "CPU 2"; Ray's own entries for nodes are left out."""
    own = ("node:", "memory", "object_store_memory", "accelerator_type:")
    named = [f"{name} {amount:g}" for name, amount in sorted(resources.items()) if amount and not name.startswith(own)]
    return ", ".join(named) or "nothing"


def _raised_by_work(error: Exception) -> Exception:
    """The exception as the work raised it, so that it is caught and shown as in one process; Ray's text as a note."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, Exception):
        return error  # it cannot travel; Ray's has its text
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Ray colours it, for a terminal
    cause.add_note(f"Raised in a Ray worker:\n{plain}")
    return cause
