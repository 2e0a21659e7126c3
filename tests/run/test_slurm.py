"""Sweeps on SLURM: what becomes of jobs, by a stand-in for sbatch; then the whole on a real one (slow)."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose

from tests.run.test_cluster import TINY, built, left, rows
from ttpa import cli
from ttpa.errors import ConfigError
from ttpa.results.cells import open_hydra
from ttpa.results.sweep import Launch, hydra_launcher
from ttpa.run import cluster, jobs, slurm

HERE = Path(__file__).parent
PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "slurmctld", "slurmd", "munged")
SMALL_JOB = ("cluster=slurm", "cluster.gpus_per_node=null", "cluster.cpus_per_task=4", "cluster.mem_gb=1")
LONG = ("recipe.warmup.steps=20000", "trainer.checkpoint_every_steps=20")

# ---- a stand-in -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the stand-in in the place of SLURM, and says what becomes of the next jobs."""
    for name in ("sbatch", "squeue", "srun"):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{(HERE / 'fake_sbatch.py').read_text()}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setattr(slurm, "GRACE_S", 0.1)
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    return lambda said: monkeypatch.setenv("FATES", said)


def launcher(*words: str, submit: bool = False) -> Launch:
    words = (*SMALL_JOB, *TINY, *words)
    cluster.check_plugins(words)
    made = hydra_launcher(words, submit)
    return lambda cells: made([[*words, *more] for more in cells])


def told(launch: Launch, count: int = 4) -> list[str]:
    """The kind of each cell's error, empty where it has none."""
    return [type(error).__name__ if error else "" for error in launch([[f"seed={seed}"] for seed in range(count)])]


def test_each_job_has_its_own_answer_and_its_log_the_name_of_its_cell(
    fates: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fates("success,no more disk,CANCELLED,OUT_OF_MEMORY")
    with open_hydra():
        assert told(launcher()) == ["", "TtpaError", "Unfinished", "Died"]
        said = capsys.readouterr().out
        assert re.search(r"job 7_1: (run,.*seed=1): (runs/slurm/\1-7_1.log)", said) and "4 of 4 jobs ended" in said
        assert "DataError: no more disk" in said and "7_2, run,pairs=released,seed=2" in said and "mem_gb" in said
        assert os.readlink(next(Path("runs/slurm").glob("*-7_1.log"))) == "../.submitit/7_1/7_1_0_log.out"
        fates("success")
        assert told(launcher(), 1) == [""]


def test_a_sweep_ends_with_a_list_of_its_failed_jobs(
    fates: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on this machine does; status 2 where all of them are mistakes of the user."""
    for said, seeds, status in (("success,no such file,CANCELLED", "0,1,2", 1), ("no such file", "3", 2)):
        fates(said)
        monkeypatch.setattr(sys, "argv", ["ttpa", "-m", *SMALL_JOB, *TINY, f"seed={seeds}"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        err = capsys.readouterr().err
        assert ended.value.code == status and "Traceback" not in err and "Log: None" not in err
        listed = re.findall(
            r"^ttpa: failed: .*seed=(\d).*: (?:job 7_\d|job 7), .*log: runs/slurm[^)]*\): (\w+)", err, re.M
        )
        expected = [("1", "DataError"), ("2", "CANCELLED")] if status == 1 else [("3", "DataError")]
        assert listed == expected and f"{len(expected)} cells of the sweep failed" in err


def test_a_call_that_leaves_is_picked_up_by_the_next(
    fates: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_hydra():
        fates("PENDING,RUNNING,broken,CANCELLED")
        launch = launcher(submit=True)
        assert told(launch) == ["Submitted", "Submitted", "TtpaError", "Unfinished"]
        queued = jobs.queue(Path("runs"))
        assert sorted({state for state, _ in queued.values()}) == ["PENDING", "RUNNING"]
        assert any(
            "job 7_0 PENDING, runs/slurm/run,pairs=released,seed=0-7_0.log" in note for _, note in queued.values()
        )
        fates("no result,RUNNING")
        Path("script").unlink()
        Path("runs/.submitit/7_0/7_0_0_result.pkl").write_bytes(slurm.pickle.dumps(("success", None)))
        capsys.readouterr()
        assert told(launch, 2) == ["", "Submitted"] and not Path("script").exists(), "nothing was submitted again"
        assert "job 7_1 of an earlier call" in capsys.readouterr().out


def test_options_reach_sbatch_and_its_refusal_is_one_line(fates: Callable[[str], None]) -> None:
    with open_hydra():
        fates("success")
        more = (
            'cluster.setup=["module load cuda"]',
            "cluster.extra={mail-type: FAIL, comment: x}",
            "cluster.restarts=1",
        )
        told(launcher(*more), 1)
        script = Path("script").read_text()
        for line in ("--mail-type=FAIL", "--comment=x", "--requeue", "--signal=USR2@120", "--cpus-per-task=4"):
            assert f"#SBATCH {line}\n" in script
        assert "\nmodule load cuda\n" in script and "--kill-on-bad-exit=1" in script and "--gpus" not in script
        fates("refuse")
        with pytest.raises(ConfigError, match="^sbatch refused the jobs: invalid partition .*nowhere; .* no. Correct"):
            told(launcher(), 1)
        with pytest.raises(ConfigError, match="submit=true: .*cluster=slurm"):
            hydra_launcher(("cluster=local",), True)


@pytest.mark.parametrize("option", ["slurm", "slurm_preemptible"])
def test_extra_and_setup_take_what_their_comments_say(option: str) -> None:
    with open_hydra():
        cfg = compose(
            "config", overrides=[f"cluster={option}", "cluster.extra={mail-type: FAIL}", "cluster.setup=[a,b]"]
        )
    assert cfg.cluster.extra == {"mail-type": "FAIL"} and cfg.cluster.setup == ["a", "b"]


# ---- a real one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[dict[str, str]]:
    """The environment of a SLURM that is started for these tests, without accounting, and ended after them."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no real SLURM: {', '.join(missing)} not installed (Debian: slurm-wlm munge)")
    if os.geteuid():
        pytest.skip("a SLURM of its own is started as root only")
    home = Path(tempfile.mkdtemp(prefix="ttpa-slurm-"))  # munge wants folders that everybody can enter
    with (home / "start.log").open("w") as log:  # a pipe would be kept open by the daemons
        command = [
            "timeout",
            "60",
            "bash",
            str(HERE / "slurm/start.sh"),
            str(home),
            str(20000 + 4 * (os.getpid() % 3000)),
        ]
        up = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        if up.returncode:
            pytest.skip(f"SLURM did not come up: {(home / 'start.log').read_text()[-500:]}")
        yield {**os.environ, "SLURM_CONF": str(home / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run(["bash", str(HERE / "slurm/stop.sh"), str(home)], timeout=30)
        shutil.rmtree(home, ignore_errors=True)


class Desk:
    """A folder from which somebody works with the cluster."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": (self.folder / "said.txt").open("w"), "stderr": subprocess.STDOUT}
        command = [sys.executable, "-m", "ttpa.cli", *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.env, text=True, start_new_session=True, **pipes)

    def end(self, child: subprocess.Popen[str], timeout_s: float = 240) -> tuple[int, str]:
        try:
            child.wait(timeout_s)
        finally:
            child.kill()
        return child.returncode, self.said()

    def ttpa(self, *words: str) -> tuple[int, str]:
        return self.end(self.start(*words))

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def until(self, what: Callable[[], Any], timeout_s: float = 120) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        return found

    def slurm(self, *words: str) -> str:
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=30, check=True).stdout

    def states(self) -> dict[str, str]:
        """Of the jobs that were submitted from here."""
        lines = self.slurm("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T").splitlines()
        mine = {job["job"] for job in self.jobs()}
        return {job: state for job, state in (line.strip().split("|") for line in lines) if job in mine}

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "runs/slurm/jobs.jsonl").read_text().splitlines()]

    def resume_point(self) -> Path:
        return self.until(lambda: next(self.folder.glob("store/warmup-*.part/last.ckpt"), None))


@pytest.fixture
def desk(tmp_path: Path, real: dict[str, str]) -> Iterator[Desk]:
    yield Desk(tmp_path, real)
    subprocess.run(["scancel", "--user=root"], env=real, timeout=30)


def write_table(desk: Desk, *rows_of_it: list[str], waves: list[str | None]) -> None:
    preset = {"overrides": [*TINY, "sampler.n=3"], "seeds": [0], "waves": waves}
    content = {"title": "t", "claim": "c.", "presets": {"embedded": preset},
               "rows": [{"key": f"r{n}", "label": f"r{n}", "overrides": words} for n, words in enumerate(rows_of_it)],
               "columns": [{"key": "all", "label": "all", "metric": "accuracy"}]}  # fmt: skip
    (desk.folder / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.slow
def test_a_sweep_with_a_failing_cell_and_its_repeat(desk: Desk) -> None:
    write_table(desk, ["objective=dpo"], ["objective=simpo"], ["model.max_tokens=16"], waves=["warmup", None])
    words = ("sweep", "table.yaml", *SMALL_JOB)
    code, said = desk.ttpa(*words)
    assert code == 2 and "Traceback" not in said and "2 of 2 jobs ended" in said
    assert re.search(
        r"failed: r2 seed=0: TtpaError: job (\d+_1), .*max_tokens=16.* \(log: runs/slurm/.*-\1.log\): ", said
    )
    assert sorted(desk.states().values()) == ["COMPLETED"] * 3 + ["FAILED"]
    assert len(rows(desk.folder)) == 2 and built(desk.folder).count("warmup") == 1
    assert len(list(desk.folder.glob("runs/slurm/*objective=simpo*.log"))) == 1
    code, said = desk.ttpa(*words)
    assert code == 2 and "1 of 1 jobs ended" in said and len(desk.states()) == 5
    code, said = desk.ttpa("-m", *SMALL_JOB, *TINY, "sampler.n=3", "objective=dpo,simpo", f"name={desk.folder.name}")
    assert code == 0 and len(desk.states()) == 5, "the cells of a sweep are cells of -m too, and done"


@pytest.mark.slow
def test_cancelling_one_job_neither_breaks_off_the_wave_nor_starts_the_next(desk: Desk) -> None:
    long, short = ["recipe.warmup.steps=20000"], ["recipe.warmup.steps=300"]
    write_table(desk, long, short, waves=["warmup", None])
    child = desk.start("sweep", "table.yaml", *SMALL_JOB, "cluster.jobs=1", "trainer.checkpoint_every_steps=20")
    try:
        desk.resume_point()
        command = [sys.executable, "-m", "ttpa.cli", "status", "table.yaml", *SMALL_JOB]
        seen = subprocess.run(command, cwd=desk.folder, env=desk.env, capture_output=True, text=True).stdout
        assert re.search(r"r0 seed=0  running .*\nr1 seed=0  queued .*: job \d+_1 PENDING, runs/slurm/", seen), seen
        (victim,) = [job for job, state in desk.states().items() if state == "RUNNING"]
        desk.slurm("scancel", victim)
    finally:
        code, said = desk.end(child)
    assert code == 1 and f"failed: r0 seed=0: Unfinished: job {victim}, " in said and "CANCELLED" in said
    lines = desk.jobs()
    assert [("ended" in line, line["job"].split("_")[0]) for line in lines] == [
        (False, lines[0]["job"][:-2]), (False, lines[0]["job"][:-2]), (True, lines[0]["job"][:-2]),
        (True, lines[0]["job"][:-2]), (False, lines[4]["job"]), (True, lines[4]["job"]),
    ]  # fmt: skip
    assert len(rows(desk.folder)) == 1 and not list(desk.folder.glob("store/*.part/error.txt"))


@pytest.mark.slow
def test_a_preempted_job_comes_back_and_goes_on_from_its_resume_point(desk: Desk) -> None:
    words = ("cluster=slurm_preemptible", "cluster.partition=scavenge", "recipe.warmup.steps=600", "logger=csv")
    child = desk.start("-m", *SMALL_JOB[1:], *TINY, *words, "sampler.n=3", "trainer.checkpoint_every_steps=20")
    try:
        desk.resume_point()
        desk.slurm("sbatch", "-p", "urgent", "-c8", "--mem=1G", "-o", "/dev/null", "--wrap", "sleep 2")
    finally:
        code, said = desk.end(child)
    assert code == 0 and "1 of 1 jobs ended" in said and len(rows(desk.folder)) == 1 and left(desk.folder) == []
    (folder,) = desk.folder.glob("store/warmup-*")
    assert json.loads((folder / "provenance.json").read_text())["attempts"] == 2
    curves = [path.read_text().splitlines() for path in sorted(folder.glob("logs/version_*/metrics.csv"))]
    first = [int(curve[1].split(",")[curve[0].split(",").index("step")]) for curve in curves]
    assert len(first) == 2 and first[1] >= 20, "the second attempt did not begin anew"


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again_and_at_last_called_timed_out(desk: Desk) -> None:
    """Once by itself; then SLURM ends it, which is no failure of the cell, and the same command goes on."""
    words = ("-m", *SMALL_JOB, *TINY, "sampler.n=3", "cluster.time_min=1", "cluster.restarts=1", "cluster.warn_s=30")
    code, said = desk.ttpa(*words, *LONG)
    (job,) = [line["job"] for line in desk.jobs() if "run" in line]
    assert code == 1 and "TIMEOUT. The same command again goes on" in said and desk.states()[job] == "TIMEOUT"
    (part,) = desk.folder.glob("store/warmup-*.part")
    assert len(json.loads((part / "attempts.json").read_text())) == 2 and not (part / "error.txt").exists()
    assert (part / "last.ckpt").exists()


@pytest.mark.slow
def test_two_tasks_give_what_one_gives_and_a_dead_one_ends_the_job(desk: Desk) -> None:
    words = ("-m", *SMALL_JOB, *TINY, "sampler.n=3", "trainer.devices=2", "cluster.cpus_per_task=2")
    steps = ("recipe.warmup.steps=200", "trainer.checkpoint_every_steps=20")
    child = desk.start(*words, *steps)
    try:
        desk.resume_point()
        pids = desk.slurm("pgrep", "-f", f"submitit.core._submit {desk.folder}").split()
        ranks = {Path(f"/proc/{pid}/environ").read_text().split("SLURM_PROCID=")[1][0]: int(pid) for pid in pids[-2:]}
        os.kill(ranks["1"], signal.SIGKILL)
    finally:
        code, said = desk.end(child, 120)
    (job,) = desk.states()
    assert code == 1 and f": job {job}, " in said and desk.states()[job] == "FAILED"
    code, said = desk.ttpa(*words, *steps)
    assert code == 0 and left(desk.folder) == []
    one = Desk(desk.folder / "one", desk.env)
    one.folder.mkdir()
    assert one.ttpa(*TINY, "sampler.n=3", "baseline=false", *steps)[0] == 0
    assert built(one.folder) == built(desk.folder)
    (mine,), (other,) = (sorted(place.glob("store/warmup-*/metrics.json")) for place in (one.folder, desk.folder))
    alone, together = json.loads(mine.read_text()), json.loads(other.read_text())
    assert (alone["steps"], alone["tokens"]) == (together["steps"], together["tokens"]), "resumed by both tasks"
    assert together["loss"] == pytest.approx(alone["loss"], rel=0.05)


@pytest.mark.slow
def test_ctrl_c_cancels_and_submit_leaves_and_the_next_call_picks_up(desk: Desk) -> None:
    write_table(desk, ["recipe.warmup.steps=20000"], waves=[None])
    words = ("sweep", "table.yaml", *SMALL_JOB)
    child = desk.start(*words)
    desk.until(lambda: "1 running" in desk.said())
    child.send_signal(signal.SIGINT)
    code, said = desk.end(child, 60)
    (job,) = desk.states()
    assert code == 130 and f"cancelled: {job}" in said
    desk.until(lambda: desk.states()[job] == "CANCELLED")
    write_table(desk, ["objective=dpo"], waves=["warmup", None])
    code, said = desk.ttpa(*words, "submit=true")
    assert code == 0 and "1 jobs wait or run; the same command again picks them up" in said
    assert desk.ttpa(*words, "submit=true")[0] == 0 and len(desk.states()) == 2
    code, said = desk.ttpa(*words)
    assert code == 0 and "of an earlier call" in said and len(desk.states()) == 3 and len(rows(desk.folder)) == 1
