"""The store: identity, hits, resume inside a stage, and locks under kills, races and takeovers."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from ttpa.errors import DataError, StageLocked
from ttpa.run.store import StageLock, StageResult, Store, fingerprint, look, verify

ROOT = Path(__file__).resolve().parents[2]


def put(store: Store, name: str = "data", config: Mapping[str, Any] | None = None, **more: Any) -> StageResult:
    more = {"version": 1, "inputs": {}, "build": lambda workdir: {}, **more}
    return store.stage(name, config=config or {}, **more)


def executions(root: Path) -> Counter[str]:
    rows = [json.loads(line) for line in (root / "executions.jsonl").read_text().splitlines()]
    assert all(set(row) == {"stage", "fingerprint", "time", "pid"} for row in rows)
    return Counter(f"{row['stage']}-{row['fingerprint']}" for row in rows)


def lock_of(root: Path, name: str = "data") -> Path:
    return root / f"{name}-{fingerprint(name, 1, {}, {})}.lock"


@contextlib.contextmanager
def held_lock(root: Path) -> Iterator[Path]:
    """The lock of the stage that `put` builds, held by somebody else."""
    lock = StageLock(lock_of(root))
    assert lock.acquire() is None
    yield lock.path
    lock.release()


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.suffix in {".lock", ".part", ".tmp"})


@pytest.fixture
def eager(tmp_path: Path) -> Store:
    """A store that raises instead of waiting."""
    return Store(tmp_path, wait=False)


# ---- identity -------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_documented_hash() -> None:
    text = '{"config":{"a":[1,2.5],"b":null},"inputs":{},"stage":"data","version":2}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert fingerprint("data", 2, {"b": None, "a": (1, 2.5)}, {}) == expected


def test_order_of_keys_is_irrelevant_and_everything_else_is_not() -> None:
    base = {"stage": "s", "version": 1, "config": {"a": {"x": 1, "y": 2}, "b": [1, 2]}, "inputs": {"p": "0", "q": "1"}}
    turned = {**base, "config": {"b": [1, 2], "a": {"y": 2, "x": 1}}, "inputs": {"q": "1", "p": "0"}}
    assert fingerprint(**base) == fingerprint(**turned)
    configs = [{"a": {"x": 1, "y": y}, "b": b} for y, b in ((2, [2, 1]), (True, [1, 2]), ("2", [1, 2]))]
    changes = [{"stage": "t"}, {"version": 2}, {"inputs": {"p": "1", "q": "0"}}, *({"config": c} for c in configs)]
    assert len({fingerprint(**{**base, **change}) for change in [{}, *changes]}) == 1 + len(changes)


def test_floats_paths_tuples_and_text_enums() -> None:
    class Kind(str, Enum):  # noqa: UP042 - the older spelling is the one to guard against
        CALL = "call"

    def of(value: Any) -> str:
        return fingerprint("s", 1, {"k": value}, {})

    assert len({of(1), of(1.0), of(True), of("1")}) == 4
    assert of(0.1) != of(0.1 + 2**-56) and of(1e-5) == of(0.00001)
    assert of(Path("a") / "b") == of("a/b") and of((1, (2,))) == of([1, [2]]) and of(Kind.CALL) == of("call")


def test_what_is_not_json_is_refused_with_its_value() -> None:
    with pytest.raises(TypeError, match="set cannot enter a fingerprint"):
        fingerprint("s", 1, {"outer": [0, {"inner": {1}}]}, {})


# ---- build, hit, resume ---------------------------------------------------------------------------------------------


def test_stages_run_in_order_and_are_found_again(tmp_path: Path) -> None:
    def pipeline(store: Store, lr: float) -> list[StageResult]:
        data = put(store, "data", {"n": 3}, build=lambda workdir: {"rows": 3})
        warm = put(store, "warmup", {"lr": lr}, inputs={"data": data})
        return [data, warm, put(store, "align", inputs={"policy": warm, "data": data})]

    store, again = Store(tmp_path), Store(tmp_path)
    first, second = pipeline(store, 0.1), pipeline(again, 0.1)
    assert store.executions == ["data", "warmup", "align"] and again.executions == []
    assert not any(result.cached for result in first)
    assert second == [replace(result, cached=True) for result in first]
    third = pipeline(again, 0.2)
    assert again.executions == ["warmup", "align"], "what depends on the change is built, what does not is shared"
    assert third[0].path == first[0].path and third[2].path != first[2].path
    assert sum(executions(tmp_path).values()) == 5 and leftovers(tmp_path) == []


def test_the_files_of_a_finished_stage(tmp_path: Path, eager: Store) -> None:
    data = put(eager)
    config = {"path": Path("a/b"), "betas": (0.9, 0.999), "lr": 1e-05, "name": None, "text": "\u00e9t\u00e9: #1"}
    result = put(eager, "warmup", config, inputs={"data": data}, build=lambda workdir: {"n": (1, 2)}, label="SFT")
    names = {path.name for path in result.path.iterdir()}
    assert names == {"attempts.json", "config.yaml", "metrics.json", "provenance.json", "done.json"}
    assert result.metrics == {"n": [1, 2]} == put(eager, "warmup", config, inputs={"data": data}).metrics
    identity = yaml.safe_load((result.path / "config.yaml").read_text(encoding="utf-8"))
    assert identity["inputs"] == {"data": data.fingerprint}
    assert identity["config"] == {**config, "path": "a/b", "betas": [0.9, 0.999]}
    rebuilt = fingerprint(identity["stage"], identity["version"], identity["config"], identity["inputs"])
    assert rebuilt == result.fingerprint
    made = json.loads((result.path / "provenance.json").read_text())
    assert made["attempts"] == 1 and made["label"] == "SFT" and made["inputs"] == {"data": data.fingerprint}
    assert set(made["packages"]) == {"ttpa", "torch", "transformers", "pytorch-lightning", "peft", "hydra-core"}
    assert made["packages"]["ttpa"] and made["python"] and made["cpu"] and made["cpu_count"] >= 1
    assert {"commit", "dirty", "gpu", "platform", "host", "started", "ended", "seconds"} <= made.keys()
    assert made["started"].endswith("+00:00") and made["started"] <= made["ended"]


def test_a_failed_build_leaves_its_work_and_the_next_attempt_goes_on_in_it(tmp_path: Path, eager: Store) -> None:
    def build(workdir: Path) -> dict[str, Any]:
        with (workdir / "steps.txt").open("a+") as steps:
            steps.write("x")
            if steps.tell() < 3:
                raise RuntimeError(f"out of memory at {steps.tell()}")
        return {"steps": 3}

    for count in (1, 2):
        with pytest.raises(RuntimeError, match=f"out of memory at {count}"):
            put(eager, build=build)
        (part,) = tmp_path.glob("*.part")
        assert f"out of memory at {count}" in (part / "error.txt").read_text() and leftovers(tmp_path) == [part.name]
    assert eager.executions == [] and not (tmp_path / "executions.jsonl").exists()
    (part / ".steps.txt.123.part").touch()  # as a kill leaves it
    result = put(eager, build=build)
    assert not {"error.txt", ".steps.txt.123.part"} & {path.name for path in result.path.iterdir()}
    assert leftovers(tmp_path) == []
    assert json.loads((result.path / "provenance.json").read_text())["attempts"] == 3


def test_an_interrupt_releases_the_lock_and_is_no_error(tmp_path: Path, eager: Store) -> None:
    def build(workdir: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(eager, build=build)
    assert leftovers(tmp_path) == [f"{lock_of(tmp_path).stem}.part"]
    assert not list(tmp_path.glob("*/error.txt"))
    assert not put(eager).cached


@pytest.mark.parametrize("metrics", [None, {"loss": object()}])
def test_metrics_that_are_not_json_are_an_error_of_the_build(tmp_path: Path, eager: Store, metrics: Any) -> None:
    with pytest.raises(TypeError):
        put(eager, build=lambda workdir: metrics)
    assert list(tmp_path.glob("*.part/error.txt")) and not list(tmp_path.glob("*/done.json"))
    assert not put(eager).cached


def test_a_kill_between_done_and_rename_is_healed_without_a_build(tmp_path: Path, eager: Store) -> None:
    final = put(eager, build=lambda workdir: {"n": 1}).path
    final.rename(final.with_name(final.name + ".part"))
    again = put(eager)
    assert again.cached and again.metrics == {"n": 1} and again.path.exists() and leftovers(tmp_path) == []


def test_a_final_directory_without_done_beside_work_is_moved_aside(tmp_path: Path, eager: Store) -> None:
    final = tmp_path / lock_of(tmp_path).stem
    for path, text in ((final, "copied"), (final.with_name(final.name + ".part"), "own work")):
        path.mkdir()
        (path / "x").write_text(text)
    assert put(eager, build=lambda workdir: {"x": (workdir / "x").read_text()}).metrics == {"x": "own work"}
    assert [(path / "x").read_text() for path in tmp_path.glob("*.unfinished-*")] == ["copied"]


def flip(file: Path) -> None:
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("metrics.json", lambda file: file.write_text("{"), "metrics.json has 1 bytes where 13 were written"),
        ("pairs.jsonl", lambda file: file.write_bytes(file.read_bytes()[:3]), "has 3 bytes where 6 were"),
        ("deep/summary.json", lambda file: file.write_text(""), "deep/summary.json has 0 bytes where 2 were written"),
        ("deep/summary.json", Path.unlink, "deep/summary.json is missing"),
        ("done.json", lambda file: file.write_text(""), "done.json: not JSON"),
        ("done.json", lambda file: file.write_text("[]"), "done.json is not what was written"),
        ("pairs.jsonl", flip, "pairs.jsonl holds other bytes than were written"),
        ("logs/curve.csv", Path.unlink, ""),
    ],
)
def test_damaged_files_of_a_finished_stage_are_told_with_the_remedy(
    name: str, harm: Callable[[Path], Any], said: str, eager: Store
) -> None:
    """Sizes on each use, hashes when asked for; loggers may go on writing."""

    def build(workdir: Path) -> dict[str, Any]:
        for file, text in (("pairs.jsonl", "[]\n[]\n"), ("deep/summary.json", "{}"), ("logs/curve.csv", "1")):
            (workdir / file).parent.mkdir(exist_ok=True)
            (workdir / file).write_text(text)
        return {"n": 1}

    def use() -> None:
        verify(put(eager, build=build).path, hashes=harm is flip)

    folder = put(eager, build=build).path
    verify(folder, hashes=True)
    harm(folder / name)
    if said:
        with pytest.raises(DataError) as told:
            use()
        assert said in str(told.value) and str(told.value).endswith(f"Delete {folder} and run the same command again.")
        shutil.rmtree(folder)
    use()


def test_a_stage_of_an_older_version_lists_no_files(eager: Store) -> None:
    done = put(eager).path / "done.json"
    done.write_text(json.dumps({key: value for key, value in json.loads(done.read_text()).items() if key != "files"}))
    (done.parent / "provenance.json").unlink()
    assert put(eager).cached


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_a_live_lock_raises_and_the_message_says_who_where_since_when_and_what_to_do(tmp_path: Path) -> None:
    with held_lock(tmp_path) as path:
        holder, age_s = look(path) or ({}, -1.0)
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname()) and 0 <= age_s < 60
        with pytest.raises(StageLocked) as caught:
            put(Store(tmp_path, wait=False))
        said = (
            f"pid {os.getpid()} on {holder['host']} since {holder['started']}",
            str(path),
            "Run the same command again",
        )
        assert all(part in str(caught.value) for part in said)
        assert leftovers(tmp_path) == [path.name]
    assert look(path) is None and leftovers(tmp_path) == []


@pytest.mark.parametrize("text", ["{", '{"pid": 1, "host": "elsewhere"}'])
def test_a_file_that_nobody_holds_is_no_lock(tmp_path: Path, text: str) -> None:
    """A killed builder leaves its file; the kernel has freed the lock."""
    lock_of(tmp_path).write_text(text)
    assert look(lock_of(tmp_path)) is None
    assert not put(Store(tmp_path, wait=False)).cached and leftovers(tmp_path) == []


def test_a_result_that_appears_while_asking_for_the_lock_is_taken(
    tmp_path: Path, eager: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = StageLock.acquire
    for config in ({"released": False}, {"released": True}):

        def acquire(lock: StageLock, config: Mapping[str, bool] = config) -> dict[str, Any] | None:
            monkeypatch.setattr(StageLock, "acquire", ask)
            put(Store(tmp_path), config=config)
            return ask(lock) if config["released"] else {"pid": 4242}

        monkeypatch.setattr(StageLock, "acquire", acquire)
        assert put(eager, config=config).cached
    assert eager.executions == [] and leftovers(tmp_path) == []


def test_the_heartbeat_refreshes_the_lock_and_the_time_spent(tmp_path: Path) -> None:
    def build(workdir: Path) -> dict[str, Any]:
        os.utime(lock_of(tmp_path), (0, 0))
        deadline, spent = time.monotonic() + 10, 0.0
        while (not lock_of(tmp_path).stat().st_mtime or spent < 0.05) and time.monotonic() < deadline:
            spent = json.loads((workdir / "attempts.json").read_text())[-1]["seconds"]
            time.sleep(0.01)
        return {"beaten": time.monotonic() < deadline}

    store = Store(tmp_path)
    store.heartbeat_s = 0.02
    assert put(store, build=build).metrics == {"beaten": True}
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_builder_whose_lock_was_deleted_does_not_publish_and_leaves_the_new_lock(tmp_path: Path) -> None:
    def build(workdir: Path) -> dict[str, Any]:
        lock_of(tmp_path).unlink()
        assert StageLock(lock_of(tmp_path)).acquire() is None
        return {}

    store = Store(tmp_path)
    with pytest.raises(StageLocked, match="not published"):
        put(store, build=build)
    assert lock_of(tmp_path).exists()
    assert store.executions == [] and not list(tmp_path.glob("*/done.json"))


def test_a_waiter_takes_the_result_and_says_once_for_whom_it_waits(tmp_path: Path) -> None:
    started, enough, told = threading.Event(), threading.Event(), list[str]()

    def slow(workdir: Path) -> dict[str, Any]:
        started.set()
        return {"waited": enough.wait(20)}

    first = threading.Thread(target=lambda: put(Store(tmp_path), build=slow))
    first.start()
    assert started.wait(20)

    def on_wait(message: str) -> None:
        told.append(message)
        threading.Timer(0.5, enough.set).start()  # two more polls: they must not say it again

    result = put(Store(tmp_path, on_wait=on_wait), label="explore tps")
    first.join(20)
    assert result.cached and result.metrics == {"waited": True}
    assert len(told) == 1 and str(os.getpid()) in told[0] and "explore tps" in told[0]
    assert leftovers(tmp_path) == []


# ---- several processes ----------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from ttpa.run.store import Store
def build(workdir):
    (workdir / "half").write_text("half")
    print("building", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).stage("data", version=1, config={}, inputs={}, build=build)
"""

RACER = """
import sys, time
from pathlib import Path
from ttpa.run.store import Store
root, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = Store(root, on_wait=lambda message: None)
store.poll_s = 0.02
def build_of(index):
    def build(workdir):
        (workdir / "builder").open("x").close()  # a second builder in the same directory fails here
        time.sleep(0.01)
        return {"index": index}
    return build
print("ready", flush=True)
sys.stdin.readline()
order = range(count) if seed % 2 == 0 else reversed(range(count))
for index in order:
    result = store.stage("s", version=1, config={"index": index}, inputs={}, build=build_of(index))
    assert result.metrics == {"index": index}, result
"""


def test_a_killed_holder_is_taken_over_at_once_and_its_work_is_resumed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None and child.stdout.readline() == b"building\n"
        eager = Store(tmp_path, wait=False)
        with pytest.raises(StageLocked, match=f"pid {child.pid} "):
            put(eager)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped: a zombie holds no lock either
        result = put(eager, build=lambda workdir: {"found": (workdir / "half").read_text()})
    assert result.metrics == {"found": "half"} and leftovers(tmp_path) == []
    assert json.loads((result.path / "provenance.json").read_text())["attempts"] == 2
    assert executions(tmp_path) == {result.path.name: 1}


def test_many_processes_and_stages_build_each_stage_once(tmp_path: Path) -> None:
    for index in range(0, 12, 2):  # every other stage starts with a stale lock that all want to take over
        stale = {"pid": 1, "host": "elsewhere"}
        (tmp_path / f"s-{fingerprint('s', 1, {'index': index}, {})}.lock").write_text(json.dumps(stale))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [[sys.executable, "-c", RACER, str(tmp_path), "12", str(seed)] for seed in range(4)]
    children = [subprocess.Popen(command, cwd=ROOT, **pipes) for command in words]
    try:
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        assert [child.wait(60) for child in children] == [0] * 4
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert sorted(executions(tmp_path).values()) == [1] * 12 and leftovers(tmp_path) == []
