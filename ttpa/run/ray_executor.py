"""`executor=ray`: waves spread over the actors of a Ray cluster, which restarts what dies (extra `ray`)."""

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ttpa.errors import ConfigError, TtpaError
from ttpa.options import Count, Index, NonNegative, Positive, option
from ttpa.run.waves import Rows, Wave, WaveLost, Work

CONNECT_S = 10.0
"""Seconds within which a cluster must answer."""
POLL_S = 0.5


@option
class RayExecutor:
    """Spreads waves over Ray actors; whoever is free gets the next wave. Ray gives a wave whose process or node died
    again.

    `make_work` travels to the workers by cloudpickle, so it must hold no model, file or lock: it is given a folder and
    loads the model there. Workers need this package and the folder under the same path (a shared file system).
    """

    workers: Count
    cpus_per_worker: NonNegative
    gpus_per_worker: NonNegative
    resources_per_worker: Mapping[str, float]
    address: str | None
    retries: Index
    start_timeout_s: Positive

    def check(self) -> None:
        """Looks for the package without importing it, and knocks at `address`. Raises ConfigError."""
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

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Generator[tuple[int, Rows], None, None]:
        """See `ttpa.run.waves.Executor`. Errors of the work have the worker's traceback in their notes.

        Raises:
            ConfigError: the cluster does not answer, or no worker fits into it.
            TtpaError: workers die as they start.
        """
        if not waves:
            return
        self.check()
        import ray

        ours = not ray.is_initialized()
        if ours:
            # A cluster that is started here would report its use over the network.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        actors: list[Any] = []
        try:
            yield from self._answers(ray, actors, make_work, waves)
        finally:
            for actor in actors:
                ray.kill(actor)
            if ours:
                ray.shutdown()

    def _answers(
        self, ray: Any, actors: list[Any], make_work: Callable[[], Work], waves: Sequence[Wave]
    ) -> Generator[tuple[int, Rows], None, None]:
        actor_class = ray.remote(_Worker).options(
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker,
            resources=dict(self.resources_per_worker),
            max_restarts=-1,
            max_task_retries=self.retries,
        )
        work = ray.put(make_work)
        actors += [actor_class.remote(work) for _ in range(min(self.workers, len(waves)))]
        calls: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
        # Call under way -> actor and number of its wave, None while it starts.
        began, waiting, left = time.monotonic(), deque(enumerate(waves)), len(waves)
        while left:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S)
            for call in done:
                actor, number = calls.pop(call)
                try:
                    rows = ray.get(call)
                except (ray.exceptions.RayTaskError, ray.exceptions.UnserializableException) as error:
                    raise _raised_by_work(error) from None
                except ray.exceptions.RayError as error:  # the actor or its node is gone, and trying again did not help
                    raise self._lost(number, error) from None
                if waiting:
                    following, wave = waiting.popleft()
                    calls[actor.answer.remote(wave)] = (actor, following)
                else:  # its GPU may serve others
                    ray.kill(actor)
                    actors.remove(actor)
                if number is not None:
                    left -= 1
                    yield number, rows
            if all(number is None for _, number in calls.values()) and left == len(waves):
                self._check_room(ray, began)

    def _lost(self, number: int | None, error: Exception) -> TtpaError:
        reason = f"{type(error).__name__}: {error}".strip()
        if number is None:
            return TtpaError(f"executor=ray: workers die as they start. Is ttpa installed on every node? {reason}")
        return WaveLost(
            number,
            f"the process that computed it died {self.retries + 1} times (executor.retries={self.retries}). If memory "
            "ran out, use smaller waves (engine.rows); Ray's logs are in /tmp/ray/session_latest/logs of the node. The "
            f"last time: {reason}",
        )

    def _check_room(self, ray: Any, began: float) -> None:
        if time.monotonic() - began < self.start_timeout_s:
            return
        want = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.resources_per_worker}
        raise ConfigError(
            f"executor=ray: no worker could be started in {self.start_timeout_s} s. Each needs {_amounts(want)}; the "
            f"cluster has {_amounts(ray.cluster_resources())}, of which free: {_amounts(ray.available_resources())}. "
            "Lower executor.cpus_per_worker or gpus_per_worker, or wait for the cluster."
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


def _amounts(resources: Mapping[str, float]) -> str:
    """Example: {"CPU": 2.0, "GPU": 0.0} -> "CPU 2"; Ray's own entries for nodes are left out."""
    internal = ("node:", "memory", "object_store_memory", "accelerator_type:")
    named = [
        f"{name} {amount:g}" for name, amount in sorted(resources.items()) if amount and not name.startswith(internal)
    ]
    return ", ".join(named) or "nothing"


def _raised_by_work(error: Exception) -> Exception:
    """The exception as the work raised it, so that it is caught and shown as in one process; Ray's text as a note."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, Exception):
        return error  # it cannot travel; Ray's has its text
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Ray colours it, for a terminal
    cause.add_note(f"Raised in a Ray worker:\n{plain}")
    return cause
