"""Launchers: options that compose; sweeps through joblib and submitit; failures. SLURM has its own file."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from ttpa.errors import ConfigError, TtpaError
from ttpa.run import cluster
from ttpa.train import module as train_module

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "cluster").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
TINY = (
    "data.warmup_samples=80", "data.explore_samples=8", "data.test_per_band=2", "data.test_unseen=1",
    "data.validation_per_band=1", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=4", "recipe.align.steps=2", "recipe.max_new_tokens=8", "pairs=released",
    "logger=none", "trainer.threads=1",
)  # fmt: skip


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "ttpa.cli", "-m", *words]
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)


def sweep(folder: Path, *words: str, **env: str) -> tuple[int, str]:
    child = start(folder, *words, **env)
    try:
        said, _ = child.communicate(timeout=300)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, said


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.jsonl"))]


def built(folder: Path) -> list[str]:
    lines = (folder / "store" / "executions.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["stage"] for line in lines)


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "store").iterdir() if path.suffix in (".lock", ".part")]


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hydra_of_the_package() -> Iterator[None]:
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        yield


@pytest.mark.usefixtures("hydra_of_the_package")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_with_every_experiment(option: str, experiment: str) -> None:
    cfg = compose("config", overrides=[f"experiment={experiment}", f"cluster={option}"], return_hydra_config=True)
    launchers = {"local": "Basic", "joblib": "Joblib", "slurm": "Slurm", "slurm_preemptible": "Slurm"}
    assert cfg.hydra.launcher._target_.endswith(f".{launchers[option]}Launcher")
    for key in cfg.hydra.launcher:
        _ = cfg.hydra.launcher[key]  # every reference resolves
    assert cfg.name == experiment


@pytest.mark.usefixtures("hydra_of_the_package")
def test_slurm_starts_a_task_and_takes_a_gpu_for_each_device() -> None:
    one, two = (
        compose("config", overrides=["cluster=slurm", *more], return_hydra_config=True).hydra.launcher
        for more in ([], ["trainer.devices=2", "cluster.partition=a100", "cluster.time_min=90"])
    )
    assert (one.tasks_per_node, one.gpus_per_node, one.partition, one.timeout_min) == (1, 1, None, 1440)
    assert (two.tasks_per_node, two.gpus_per_node, two.partition, two.timeout_min) == (2, 2, "a100", 90)
    # With a GPU bound to each task, Lightning's second process would look for a second one in vain.
    assert two.gpus_per_task is None


SLURM, BASIC = "hydra_plugins.x.SlurmLauncher", "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize(
    ("choice", "sweep", "launcher", "devices", "said"),
    [
        ("slurm", False, SLURM, 1, "cluster=slurm .*Add -m"),
        ("local", True, BASIC, 2, "devices=2: .*cluster=local .*torchrun"),
        ("joblib", True, "x.JoblibLauncher", [0, 1], r"devices=\[0, 1\]"),
        ("local", True, "x.LocalLauncher", "auto", "devices=auto"),
        ("local", False, BASIC, -1, "devices=-1: .*single process. .*torchrun --nproc-per"),
    ],
)
def test_what_would_wait_for_processes_that_nobody_starts_is_refused(
    choice: str, sweep: bool, launcher: str, devices: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cluster.check_launch(choice=choice, sweep=sweep, launcher=launcher, devices=devices, processes=1)


@pytest.mark.parametrize("word", ["cluster=slurm", "cluster=local,joblib"])
def test_a_launcher_that_is_not_installed_is_named_with_the_extra(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda program: f"/bin/{program}")
    cluster.check_plugins([word, "seed=0,1"])
    monkeypatch.setattr(cluster, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"pip install 'ttpa\[cluster\]'"):
        cluster.check_plugins([word, "seed=0,1"])
    cluster.check_plugins(["cluster=local", "seed=0,1"])


def test_slurm_needs_a_machine_that_can_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda program: None)
    with pytest.raises(ConfigError, match="cluster=slurm_preemptible: no srun on this machine. .*cluster=joblib"):
        cluster.check_plugins(["cluster=slurm_preemptible"])
    cluster.check_plugins(["cluster=slurm"], launches=False)  # --cfg job shows it anywhere
    cluster.check_plugins(["cluster=slurm", "cluster=local"])  # the last one counts


HOLD = """
import os, sys
from ttpa.run import cluster
cluster.take_gpu(2)
cluster.take_gpu(2)
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.readline()
"""


def test_processes_share_out_the_gpus_and_the_next_one_waits(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "5,7,9"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = []
    try:
        for number in ("5", "7", None):
            children.append(subprocess.Popen([sys.executable, "-c", HOLD], env=env, cwd=ROOT, **pipes))
            assert number is None or children[-1].stdout.readline().strip() == number
        assert not select.select([children[2].stdout], [], [], 2)[0], "both are taken"
        children[0].kill()
        assert children[2].stdout.readline().strip() == "5"
    finally:
        for child in children:
            child.kill()
            child.communicate()


# ---- signals --------------------------------------------------------------------------------------------------------


def test_lightning_leaves_requeueing_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_module.environment_plugins() == []
    for key, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "ttpa", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    (found,) = train_module.environment_plugins()
    assert not found.auto_requeue
    for key in ("RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(key, "0")
    assert train_module.environment_plugins() == [], "torchrun inside a SLURM job knows its processes itself"


# ---- several processes of one run ------------------------------------------------------------------------------------


def test_several_processes_build_the_same_stages_as_one(tmp_path: Path) -> None:
    """torchrun, two processes: the first builds, the second trains along; the numbers are those of one process."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    words = ("-m", "ttpa.cli", "sampler.n=3", "trainer.checkpoint_every_steps=1", *TINY)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for folder, command in ((once, words), (twice, (*torchrun, *words, "trainer.devices=2"))):
        folder.mkdir()
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert done.stdout.decode().count("data: started") == 1, "the screen belongs to the first process"
    assert built(once) == built(twice) and left(twice) == []
    assert {path.name for path in once.glob("results/*")} == {path.name for path in twice.glob("results/*")}
    for path in once.glob("store/*/policy/model/model.safetensors"):
        mine, other = load_file(path), load_file(twice / path.relative_to(once))
        assert all(torch.allclose(mine[name], other[name], atol=1e-3) for name in mine)
        one, two = (
            json.loads((folder / "store" / path.parts[-4] / "metrics.json").read_text()) for folder in (once, twice)
        )
        assert (one["steps"], one["tokens"]) == (two["steps"], two["tokens"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_damaged_resume_point_of_several_processes_is_told_once_and_the_one_before_is_used(tmp_path: Path) -> None:
    """After SIGTERM, which writes one. The numbers are those of one process that nothing stopped."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    words = ["-m", "ttpa.cli", *TINY, "recipe.warmup.steps=150", "trainer.checkpoint_every_steps=1", "until=warmup"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words, "trainer.devices=2"]
    for folder in (once, twice):
        folder.mkdir()

    def started(folder: Path, command: list[str]) -> subprocess.Popen[str]:
        pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": (folder / "said.txt").open("w")}
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, text=True, **pipes)

    assert started(once, words).wait(120) == 0
    child, deadline = started(twice, torchrun), time.monotonic() + 120
    while not (found := list(twice.glob("store/warmup-*.part/before.ckpt"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) != 0 and (twice / "said.txt").read_text().count("ttpa: interrupted at step ") == 1
    last = found[0].with_name("last.ckpt")
    before, stopped = (torch.load(point, weights_only=True)["global_step"] for point in (found[0], last))
    assert 0 < before < stopped < 150
    os.truncate(last, last.stat().st_size // 2)
    assert started(twice, torchrun).wait(120) == 0
    said = [line for line in (twice / "said.txt").read_text().splitlines() if line.startswith("ttpa: ")]
    assert len(said) == 1 and said[0].startswith(f"ttpa: warning: {last.relative_to(twice)}: this resume point cannot")
    one, two = (json.loads(next(place.glob("store/warmup-*/metrics.json")).read_text()) for place in (once, twice))
    assert (one["steps"], one["tokens"]) == (two["steps"], two["tokens"])
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-2) and left(twice) == []


def test_the_first_process_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    leader, follower = (kind(tmp_path / "store", news=tmp_path / "news") for kind in (cluster.Leader, cluster.Follower))
    asked, seen = {"version": 1, "config": {}, "inputs": {}}, list[str]()

    def build(workdir: Path) -> dict[str, Any]:
        seen.append(workdir.name)
        if workdir.name.startswith("align"):
            raise RuntimeError("out of memory")
        return {}

    for name in ("data", "warmup"):
        first = leader.stage(name, build=build, **asked)
        assert follower.stage(name, build=build, **asked).path == first.path
        assert seen[-1] == f"{first.path.name}.part"
    assert len(seen) == 2, "built once, by the first process; what was over when it was looked for is only read"
    with pytest.raises(RuntimeError):
        leader.stage("align", build=build, **asked)
    with pytest.raises(TtpaError, match="the first process of this run failed"):
        follower.stage("evaluate", build=build, **asked)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (3, 4)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, (0, 1)),  # salloc without srun
    ],
)
def test_the_place_of_a_process_is_read_off_what_started_it(env: dict[str, str], expected: tuple[int, int]) -> None:
    found = cluster.place(env)
    assert (found.rank, found.size) == expected


# ---- sweeps ---------------------------------------------------------------------------------------------------------


def test_joblib_runs_the_good_cells_when_one_fails_and_the_same_command_runs_nothing_again(tmp_path: Path) -> None:
    words = ("cluster=joblib", "cluster.jobs=2", "sampler.n=0,3", *TINY)
    status, said = sweep(tmp_path, *words)
    assert status != 0 and "sampler.n=0: " in said
    assert [row["config"]["sampler"]["n"] for row in rows(tmp_path)] == [3]
    assert built(tmp_path) == ["align", "data", "evaluate", "explore", "warmup"] and left(tmp_path) == []
    sweep(tmp_path, *words)
    assert len(built(tmp_path)) == 5


@pytest.mark.slow
def test_submitit_runs_the_good_cells_when_one_fails(tmp_path: Path) -> None:
    status, said = sweep(tmp_path, "hydra/launcher=submitit_local", "sampler.n=0,3", *TINY)
    assert status != 0 and "sampler.n=0: " in said
    assert [row["config"]["sampler"]["n"] for row in rows(tmp_path)] == [3]
    assert left(tmp_path) == []
