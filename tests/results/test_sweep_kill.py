"""Sweeps (`ttpa -m`) that share a store while one loses a worker: same records, each stage built once, nothing left."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.results.table_cases import write_table
from tests.run.test_pipeline import SMALL
from ttpa.results.render import markdown
from ttpa.results.table import from_folder

TINY = (
    "data.warmup_samples=80", "data.explore_samples=8", "data.test_per_band=2", "data.test_unseen=1",
    "data.validation_per_band=1", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=30", "recipe.align.steps=4", "recipe.max_new_tokens=8", "sampler.n=3",
    "trainer.checkpoint_every_steps=2", "trainer.threads=1", "logger=none", "engine.rows=6",
)  # fmt: skip
CELLS = ("objective=dpo,simpo", "pairs=released", "seed=0,1")
STALE_S = 30.0
"""After how much silence a lock may be taken from another host; a dead holder on this host loses it at once."""


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A sweep in a process group of its own, which writes to a file: a killed child must not hold a pipe open."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ttpa.cli", *words]
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said, start_new_session=True)


def kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(30)


def finish(folder: Path, child: subprocess.Popen[bytes], timeout_s: float = 300) -> None:
    try:
        child.wait(timeout_s)
    finally:
        kill(child)
    assert child.returncode == 0, (folder / "said.txt").read_text(errors="replace")[-4000:]


def records(folder: Path) -> dict[str, bytes]:
    """Result file -> its bytes without what a clock gave."""
    found = {}
    for path in sorted((folder / "results").iterdir()):
        (line,) = path.read_text(encoding="utf-8").splitlines()
        row = {key: value for key, value in json.loads(line).items() if key != "cost"}
        found[path.name] = json.dumps(row, ensure_ascii=False).encode()
    return found


def built(store: Path) -> Counter[str]:
    lines = (store / "executions.jsonl").read_text().splitlines()
    return Counter("{stage}-{fingerprint}".format(**json.loads(line)) for line in lines)


def finished(store: Path) -> set[str]:
    """The stages there are. A kill right after `done.json` costs a stage its line in the log of builds, and no more."""
    return {path.parent.name for path in store.glob("*/done.json")}


def leftovers(store: Path) -> list[str]:
    return [path.name for path in store.iterdir() if path.suffix in (".lock", ".part", ".tmp")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, start(folder, "-m", *CELLS, *TINY))
    return folder


def holders(store: Path) -> dict[str, dict[str, Any]]:
    """Stage -> who builds it."""
    found = {}
    for path in store.glob("*.lock"):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text())
    return found


def children_of(group: int) -> set[int]:
    """Processes of a process group, by /proc; workers of joblib stay in the group of their sweep."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[2]) == group:
                found.add(int(path.parent.name))
    return found


@pytest.mark.slow
def test_two_sweeps_on_one_store_build_each_stage_once_and_wait_for_no_dead_holder(
    tmp_path: Path, undisturbed: Path
) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are found by /proc")
    words = ("-m", "cluster=joblib", "cluster.jobs=4", *CELLS, *TINY)
    sweeps = [start(tmp_path, *words) for _ in range(2)]
    store, dead = tmp_path / "store", {}
    try:
        deadline = time.monotonic() + 200
        while not dead and time.monotonic() < deadline:
            for stage, holder in holders(store).items() if store.exists() else ():
                part = store / f"{stage}.part"
                if stage.startswith("warmup") and (part / "last.ckpt").exists():
                    (mine,) = [sweep for sweep in sweeps if holder["pid"] in children_of(sweep.pid)]
                    os.kill(holder["pid"], signal.SIGKILL)
                    dead = {"stage": stage, "sweep": mine, "at": time.time()}
                    break
            time.sleep(0.01)
        assert dead, "no warm-up was caught at work"
        other = next(sweep for sweep in sweeps if sweep is not dead["sweep"])
        finish(tmp_path, other)
        dead["sweep"].wait(120)
        assert dead["sweep"].returncode != 0, "it lost a worker"
    finally:
        for sweep in sweeps:
            kill(sweep)
    assert records(tmp_path) == records(undisturbed)
    assert set(built(store).values()) == {1} and finished(store) == finished(undisturbed / "store")
    attempts = json.loads((store / dead["stage"] / "attempts.json").read_text())
    assert attempts[0]["pid"] != attempts[1]["pid"]
    taken = datetime.fromisoformat(attempts[1]["started"]).timestamp() - dead["at"]
    assert taken < STALE_S / 3, f"the stage of a dead holder was taken up after {taken:.0f} s"
    finish(tmp_path, start(tmp_path, *words))
    assert set(built(store).values()) == {1} and leftovers(store) == []
    assert records(tmp_path) == records(undisturbed)


@pytest.mark.slow
def test_a_table_killed_ten_times_ends_with_the_same_records_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"key": "warm", "label": "warm-up", "policy": "warm-up"},
            {"product": {"sampler": ["group", "tps"], "objective": ["dpo", "simpo"]}}]  # fmt: skip
    preset = {"overrides": [*SMALL], "seeds": [0], "waves": ["warmup", "explore", None]}
    columns = [{"key": "all", "label": "all", "metric": "accuracy"}]
    content = {"title": "t", "claim": "c.", "rows": rows, "columns": columns, "presets": {"embedded": preset}}
    rng, killed, shown = random.Random(0), 0, []
    for kills in (0, 10):
        folder = tmp_path / f"{kills}" / "same_name"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        write_table(folder, content)
        for _ in range(kills):
            child = start(folder, "sweep", "table.yaml")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(rng.uniform(1, 8))
            killed += child.poll() is None
            kill(child)
        finish(folder, start(folder, "sweep", "table.yaml"))
        store = folder / "store"
        shown.append((records(folder), markdown(from_folder(Path("table.yaml"))), built(store), leftovers(store)))
    assert killed >= 3 and shown[0] == shown[1] and shown[1][3] == []
