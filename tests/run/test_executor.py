"""Executors: the same rows wherever waves are computed; dying processes, removed nodes and errors of the work.

The work of the Ray tests is nested functions that import what they use: these travel to the workers by value, whereas
this file is no module there.
"""

import logging
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.options import made
from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import Shard
from ttpa.run import ray_executor
from ttpa.run.ray_executor import RayExecutor
from ttpa.run.waves import LocalExecutor, Rows, WaveLost, Work, run_waves

ROOT = Path(__file__).resolve().parents[2]
WAVES = ["abc", "def", "ghi", "jkl", "mn"]
PATIENCE_S = 60.0


# ---- in this process ------------------------------------------------------------------------------------------------


def test_local_loads_once_when_the_first_wave_is_wanted_and_keeps_the_order() -> None:
    log: list[str] = []

    def make_work() -> Work:
        log.append("load")
        return lambda wave: log.append("".join(wave)) or [{"id": name} for name in wave]

    answers = LocalExecutor().run(make_work, WAVES)
    assert next(answers) == (0, [{"id": "a"}, {"id": "b"}, {"id": "c"}])
    assert log == ["load", "abc"], "a wave is computed when its turn comes: rows are written before the next"
    assert [number for number, _ in answers] == [1, 2, 3, 4] and log == ["load", *WAVES]


# ---- options --------------------------------------------------------------------------------------------------------


option = partial(made, "executor")


def test_the_ray_option_is_made_without_ray() -> None:
    assert isinstance(option("ray"), RayExecutor)
    code = "import sys, ttpa.run.ray_executor; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "set()"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"executor=ray needs the package ray: pip install 'ttpa\[ray\]'"):
        next(option("ray").run(lambda: list, WAVES))


def test_a_cluster_that_does_not_answer_is_found_out_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "find_spec", lambda name: object())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"executor.address={address}: no Ray cluster \(.*refused\)"):
            option("ray", address=address).check()
        free.listen()
        option("ray", address=address).check()
    for elsewhere in (None, "local", "auto", "ray://example.org:10001"):
        option("ray", address=elsewhere).check()


# ---- Ray on this machine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """The package. Whatever a test started is stopped at the end of the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        package = pytest.importorskip("ray")
        yield package
        package.shutdown()


@pytest.fixture
def two_cpus(ray: Any) -> Any:
    """A Ray of two CPUs that is already running, as in a job on a cluster; shared, since starting takes seconds."""
    if not ray.is_initialized():
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, **quiet)
    return ray


def spread(workers: int, **more: Any) -> RayExecutor:
    values = {"workers": workers, "cpus_per_worker": 1, "gpus_per_worker": 0, "resources_per_worker": {}}
    return RayExecutor(**{**values, "address": None, "retries": 3, "start_timeout_s": 120.0, **more})


def naming_the_wave() -> Callable[[], Work]:
    return lambda: lambda wave: [{"id": name, "wave": "".join(wave)} for name in wave]


def ids_by_wave(answers: Iterator[tuple[int, Rows]]) -> dict[int, str]:
    found = [(number, "".join(row["id"] for row in rows)) for number, rows in answers]
    assert len(found) == len(dict(found)), "a wave came twice"
    return dict(found)


@pytest.mark.parametrize("workers", [1, 4])
def test_ray_gives_the_lines_that_local_gives(two_cpus: Any, tmp_path: Path, workers: int) -> None:
    """Four do not fit: two do the work."""

    def lines(one: Any, folder: str) -> list[bytes]:
        shard = Shard(tmp_path / folder / "rows.jsonl")
        assert run_waves(WAVES, naming_the_wave(), one, shard, key=str) == ()
        return sorted(shard.path.read_bytes().splitlines())

    assert lines(spread(workers), "ray") == lines(LocalExecutor(), "local")
    assert two_cpus.is_initialized(), "a Ray that was running before is left alone"


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(two_cpus: Any, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def make_work() -> Work:
        import os
        from pathlib import Path

        def work(wave: Sequence[str]) -> Rows:
            marker = Path(folder) / f"tried-{wave}"
            if wave in ("abc", "ghi") and not marker.exists():
                marker.touch()
                os._exit(1)
            return [{"id": name} for name in wave]

        return work

    assert ids_by_wave(spread(2).run(make_work, WAVES)) == dict(enumerate(WAVES))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tried-abc", "tried-ghi"]


def test_a_wave_that_kills_every_process_is_given_up_with_its_samples(two_cpus: Any, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def make_work() -> Work:
        import os

        def work(wave: Sequence[str]) -> Rows:
            if "e" in wave:
                with open(log, "a") as file:
                    file.write("x")
                os._exit(1)
            return [{"id": name} for name in wave]

        return work

    with pytest.raises(WaveLost, match=r"^wave 1: .*died 3 times \(executor.retries=2\).*Actor\w+Error") as caught:
        list(spread(1, retries=2).run(make_work, WAVES))
    assert caught.value.number == 1 and Path(log).read_text() == "xxx"
    shard = Shard(tmp_path / "rows.jsonl")
    with pytest.raises(TtpaError, match=r"rows.jsonl: samples d, e, f: .*died 1 times"):
        run_waves(WAVES, make_work, spread(1, retries=0), shard, key=str)
    assert shard.done_ids() == set("abc"), "what came before stays"


def test_an_error_of_the_work_arrives_as_itself_with_the_workers_traceback(two_cpus: Any) -> None:
    def make_work() -> Work:
        def function_with_the_slip(wave: Sequence[str]) -> Rows:
            return [{"id": [].index(wave)}]

        return function_with_the_slip

    def broken() -> Any:
        from ttpa.errors import DataError

        raise DataError("no policy there")

    def unpicklable() -> Any:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("odd")

        raise Odd(1, 2)

    with pytest.raises(ValueError) as caught:
        list(spread(1).run(make_work, WAVES))
    assert "function_with_the_slip" in "".join(traceback.format_exception(caught.value))
    assert "\x1b" not in "".join(caught.value.__notes__)
    with pytest.raises(DataError) as refused:
        list(spread(1).run(broken, WAVES))
    assert str(refused.value) == "no policy there", "what the command line prints is the message alone"
    with pytest.raises(Exception, match="odd") as odd:
        list(spread(1).run(unpicklable, WAVES))
    assert not isinstance(odd.value, WaveLost), "an error that cannot travel is no dead process"


def test_a_cluster_without_room_for_one_worker_is_an_error_with_both_amounts(two_cpus: Any) -> None:
    began = time.monotonic()
    big = spread(2, cpus_per_worker=64, resources_per_worker={"blue": 1}, start_timeout_s=2)
    with pytest.raises(ConfigError, match=r"Each needs CPU 64, blue 1; the cluster has CPU 2, of which free: \w"):
        next(big.run(naming_the_wave(), WAVES))
    assert time.monotonic() - began < 20


def test_workers_that_cannot_start_are_an_error_with_the_reason(two_cpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stillborn:
        def __init__(self, make_work: Any) -> None:
            raise ImportError("no ttpa on this node")

        def ready(self) -> None: ...

    monkeypatch.setattr(ray_executor, "_Worker", Stillborn)
    with pytest.raises(TtpaError, match=r"die as they start. Is ttpa installed(.|\n)*no ttpa on this node"):
        next(spread(1).run(naming_the_wave(), WAVES))


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_workers_give_back_what_they_loaded(two_cpus: Any, tmp_path: Path, workers: int) -> None:
    """Also the one that has nothing left to do before the other."""
    log = str(tmp_path / "log")

    def make_work() -> Any:
        def note(what: str) -> None:
            with open(log, "a") as file:
                file.write(f"{what} ")

        def work(wave: Sequence[str]) -> Rows:
            return [{"id": name} for name in wave]

        work.close = partial(note, "closed")  # type: ignore[attr-defined]
        note("loaded")
        return work

    assert ids_by_wave(spread(workers).run(make_work, WAVES)) == dict(enumerate(WAVES))
    said = Path(log).read_text().split()
    assert 1 <= said.count("loaded") == said.count("closed") <= workers


def test_a_run_that_is_closed_stops_its_workers(two_cpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "CLOSE_S", 1.0)  # a worker that is busy hears of it too late
    never = str(tmp_path / "never")

    def make_work() -> Work:
        import os
        import time

        def work(wave: Sequence[str]) -> Rows:
            deadline = time.monotonic() + 60
            while wave != "abc" and not os.path.exists(never) and time.monotonic() < deadline:
                time.sleep(0.05)
            return [{"id": name} for name in wave]

        return work

    answers = spread(2).run(make_work, WAVES)
    assert next(answers)[0] == 0
    answers.close()
    deadline = time.monotonic() + 20
    while two_cpus.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, "the workers still hold their CPUs"
        time.sleep(0.1)


# ---- clusters -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_leaves_in_the_middle_loses_nothing(ray: Any, tmp_path: Path) -> None:
    """The second node never ends its first wave; the first node does all when the second is gone."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "_system_config": soon})
    try:
        doomed = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        folder, leaving = str(tmp_path), doomed.node_id

        def make_work() -> Work:
            import time
            from pathlib import Path

            import ray

            here = ray.get_runtime_context().get_node_id()

            def work(wave: Sequence[str]) -> Rows:
                started = Path(folder) / "started"
                if here == leaving:
                    started.write_text(str(wave))
                deadline = time.monotonic() + 60
                while (here == leaving or not started.exists()) and time.monotonic() < deadline:
                    time.sleep(0.05)
                return [{"id": name, "node": here} for name in wave]

            return work

        found: dict[int, str] = {}
        for number, rows in spread(2, address=cluster.address).run(make_work, WAVES):
            assert number not in found and {row["node"] for row in rows} != {leaving}
            found[number] = "".join(row["id"] for row in rows)
            if len(found) == 1:
                deadline = time.monotonic() + PATIENCE_S
                while not (tmp_path / "started").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                cluster.remove_node(doomed, allow_graceful=False)
        assert found == dict(enumerate(WAVES)), (tmp_path / "started").read_text()
        assert not ray.is_initialized()
    finally:
        ray.shutdown()
        cluster.shutdown()
