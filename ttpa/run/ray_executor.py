"""`executor=ray`: waves spread over the actors of a Ray cluster, which restarts what dies (extra `ray`)."""

import functools
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ttpa.errors import ConfigError, TtpaError
from ttpa.options import Count, Index, NonNegative, Positive, option
from ttpa.run.waves import Rows, Wave, WaveLost, Work, close

CONNECT_S, POLL_S, CLOSE_S = 10.0, 0.5, 10.0


@option
class RayExecutor:
    """Spreads waves over Ray actors; whoever is free gets the next one, and a wave whose process died is tried again.
    Workers need this package and the store under the same path; `make_work` travels by cloudpickle, without a model.
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
        """See `ttpa.run.waves.Executor`. Errors of the work have the worker's traceback in their notes."""
        if not waves:
            return
        self.check()
        import ray

        ours = not ray.is_initialized()
        if ours:
            # A cluster that is started here would report its use over the network.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            theirs = signal.getsignal(signal.SIGTERM)
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, theirs)  # Ray's leaves with status 1
        actors, working = list[Any](), list[Any]()
        try:
            actor_class = ray.remote(_Worker).options(
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker,
                resources=dict(self.resources_per_worker),
                max_restarts=-1,
                max_task_retries=self.retries,
            )
            work = ray.put(make_work)
            actors += [actor_class.remote(work) for _ in range(min(self.workers, len(waves)))]
            yield from self._answers(ray, actors, working, waves)
        finally:
            _close(ray, working)
            for actor in actors:
                ray.kill(actor)
            if ours:
                ray.shutdown()

    def _answers(
        self, ray: Any, actors: list[Any], working: list[Any], waves: Sequence[Wave]
    ) -> Generator[tuple[int, Rows], None, None]:
        # Call under way -> actor and number of its wave, None while it starts.
        calls: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
        began, waiting, left = time.monotonic(), iter(enumerate(waves)), len(waves)
        while left:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S)
            for call in done:
                actor, number = calls.pop(call)
                try:
                    rows = ray.get(call)
                except (ray.exceptions.RayTaskError, ray.exceptions.UnserializableException) as error:
                    raise _raised_by_work(error) from None
                except ray.exceptions.RayError as error:  # the actor or its node is gone, and trying again did not help
                    reason = f"{type(error).__name__}: {error}".strip()
                    if number is None:
                        said = "executor=ray: workers die as they start. Is ttpa installed on every node?"
                        raise TtpaError(f"{said} {reason}") from None
                    times = f"{self.retries + 1} times (executor.retries={self.retries})"
                    remedy = "If memory ran out, lower engine.rows; logs: /tmp/ray/session_latest/logs of the node"
                    said = f"the process that computed it died {times}. {remedy}. The last time: {reason}"
                    raise WaveLost(number, said) from None
                if following := next(waiting, None):
                    calls[actor.answer.remote(following[1])] = (actor, following[0])
                    working += [actor] if number is None else []
                else:  # its GPU may serve others
                    _close(ray, [actor] if number is not None else [])
                    ray.kill(actor)
                    actors.remove(actor)
                    working[:] = [one for one in working if one is not actor]
                if number is not None:
                    left -= 1
                    yield number, rows
            started = left < len(waves) or any(number is not None for _, number in calls.values())
            if not started and time.monotonic() - began >= self.start_timeout_s:
                want = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.resources_per_worker}
                has, free = _amounts(ray.cluster_resources()), _amounts(ray.available_resources())
                raise ConfigError(
                    f"executor=ray: no worker could be started in {self.start_timeout_s} s. Each needs {_amounts(want)}"
                    f"; the cluster has {has}, of which free: {free}. Lower executor.cpus_per_worker or "
                    "gpus_per_worker, or wait for the cluster."
                )


def _close(ray: Any, actors: Sequence[Any]) -> None:
    """Has actors give back what they loaded: killing them would leave the processes that vLLM has started."""
    closed = [actor.close.options(max_task_retries=0).remote() for actor in actors]
    ray.wait(closed, num_returns=max(1, len(closed)), timeout=CLOSE_S) if closed else None


class _Worker:
    """What runs inside a Ray actor: loads once, then answers one wave after the other."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self.make_work = functools.cache(make_work)

    def close(self) -> None:
        if self.make_work.cache_info().currsize:
            close(self.make_work())

    def ready(self) -> None:
        """Returns when the process lives; loading comes later, so that a slow load is not taken for a full cluster."""

    def answer(self, wave: Wave) -> Rows:
        return list(self.make_work()(wave))


def _amounts(resources: Mapping[str, float]) -> str:
    """Such as "CPU 2, GPU 1"; Ray's own entries for nodes are left out."""
    own = re.compile("node:|memory|object_store_memory|accelerator_type:")
    named = [f"{name} {amount:g}" for name, amount in sorted(resources.items()) if amount and not own.match(name)]
    return ", ".join(named) or "nothing"


def _raised_by_work(error: Exception) -> Exception:
    """The exception as the work raised it, so that it is caught and shown as in one process; Ray's text as a note."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, Exception):
        return error  # it cannot travel; Ray's has its text
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Ray colours it, for a terminal
    cause.add_note(f"Raised in a Ray worker:\n{plain}")
    return cause
