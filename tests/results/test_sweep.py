"""`ttpa sweep`: what is launched, in which waves, and what a failure costs; then a sweep of real runs, counted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from tests.run.test_pipeline import SMALL
from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.results import status, sweep
from ttpa.results.cells import compose_run, open_hydra
from ttpa.results.status import error_file, plan
from ttpa.results.table import from_folder
from ttpa.run import config
from ttpa.run.parts import VERSIONS

FOLDER = "experiments/product"
ROWS: list[dict[str, Any]] = [
    {"key": "warm", "label": "warm-up", "policy": "warm-up"},
    {"product": {"sampler": ["group", "tps"], "objective": ["dpo", "simpo"]}},
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the table; rows, seeds and further overrides can be others."""
    monkeypatch.chdir(tmp_path)

    def write(
        rows: Sequence[Any] = ROWS,
        seeds: Sequence[int] = (0, 1),
        more: Sequence[str] = (),
        differences: Sequence[Sequence[str]] = (),
    ) -> None:
        preset = {"overrides": [*SMALL, *more], "seeds": list(seeds), "waves": ["warmup", "explore", None]}
        content = {"title": "t", "claim": "c.", "rows": list(rows), "presets": {"embedded": preset},
                   "columns": [{"key": "all", "label": "all", "metric": "accuracy"}],
                   "differences": differences}  # fmt: skip
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        (Path(FOLDER) / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    write()
    return write


class FakeLaunch:
    """A launcher that marks the stages a job would build, and writes the record of a whole run. `fails`: job -> role of
    the stage that it cannot build, "start" where it is refused before any.
    """

    def __init__(self, fails: Callable[[str], str | None] = lambda job: None) -> None:
        self.fails = fails
        self.waves: list[list[str]] = []
        self.built: list[str] = []

    def measure(self, cfg: DictConfig) -> dict[str, Any]:
        """The metrics of a whole run."""
        return {}

    def make(self, overrides: Sequence[str], submit_only: bool) -> FakeLaunch:
        return self

    def __call__(self, jobs: Sequence[Sequence[str]]) -> list[BaseException | None]:
        self.waves.append([" ".join(word for word in job if word not in SMALL) for job in jobs])
        return [self._run(job) for job in jobs]

    def _run(self, job: Sequence[str]) -> BaseException | None:
        cfg = compose_run(job)
        cfg.baseline = bool(cfg.baseline)  # as in every job of a sweep
        stages, broken = plan(cfg), self.fails(" ".join(job))
        if broken == "start":
            return TtpaError("refused")
        for role, stage in stages.items():
            if role == broken:
                error_file(stage).parent.mkdir(parents=True, exist_ok=True)
                error_file(stage).write_text("Traceback ...")
                return TtpaError(f"{role} broke")
            if not stage.cached:
                stage.path.mkdir(parents=True)
                (stage.path / "done.json").write_text("{}")
                self.built.append(stage.name)
        if cfg.until is None:
            names = {role: stage.path.name for role, stage in stages.items()}
            row: dict[str, Any] = {"row_version": 1, "seed": cfg.seed, "rounds": cfg.rounds, "stages": names}
            row |= {"versions": VERSIONS, "config": config.identity(cfg, *config.IDENTITY)}
            row |= {
                "metrics": self.measure(cfg),
                "baseline": {"stage": names["baseline"]} if cfg.baseline else {},
                "cost": {},
            }
            Path("results").mkdir(exist_ok=True)
            (Path("results") / f"{names['evaluation']}.jsonl").write_text(json.dumps(row) + "\n")
        return None


def run(fake: FakeLaunch, *words: str) -> int:
    return sweep.main([FOLDER, *words], fake.make)


def test_waves_send_one_job_a_stage_and_then_every_cell(table: Callable[..., None]) -> None:
    fake = FakeLaunch()
    assert run(fake) == 0
    group, tps = (f"sampler={name} objective=" for name in ("group", "tps"))
    first, second, third = (["{} seed={} name=product until={}".format(*job) for job in product(*wave)] for wave in (
        ([f"{group}dpo"], (0, 1), ["warmup"]),
        ([f"{group}dpo", f"{tps}dpo"], (0, 1), ["explore"]),
        ([f"{group}dpo", f"{group}simpo", f"{tps}dpo", f"{tps}simpo"], (0, 1), ["null baseline=true"]),
    ))  # fmt: skip
    assert fake.waves == [first, second, third]
    assert Counter(fake.built) == {"data": 2, "warmup": 2, "explore": 4, "align": 8, "evaluate": 8 + 2}
    again = FakeLaunch()
    assert run(again) == 0
    assert again.waves == []


def test_what_is_there_is_not_launched(table: Callable[..., None]) -> None:
    """A record ends a cell, a finished stage ends its wave: also those that another table left."""
    table(rows=[{"key": "a", "label": "a", "overrides": ["sampler=tps", "objective=dpo"]}], seeds=[0])
    run(FakeLaunch())
    table(seeds=[0])
    fake = FakeLaunch()
    assert run(fake) == 0
    assert [len(wave) for wave in fake.waves] == [1, 3]  # no warm-up; one exploration; three cells
    assert "sampler=tps objective=dpo" not in " ".join(fake.waves[1])


TWO = {"product": {"objective": ["gold", "dpo"], "sampler": ["group", "tps"]}}
ROUNDS = {"product": {"objective": ["dpo", "simpo"]}, "overrides": ["rounds=2"]}


@pytest.mark.parametrize(
    ("rows", "waves"),
    [
        ([TWO], [1, 2, 4]),  # gold explores nothing
        ([ROUNDS], [1, 1, 2]),  # the first exploration is shared; later rounds follow from the objective
        ([ROWS[0], {**ROWS[0], "key": "b", "overrides": ["objective=dpo"]}], [1, 1, 1]),  # a warm-up is run once
    ],
)
def test_waves_of_other_tables(rows: list[Any], waves: list[int], table: Callable[..., None]) -> None:
    table(rows=rows, seeds=[0])
    fake = FakeLaunch()
    run(fake)
    assert [len(wave) for wave in fake.waves] == waves
    assert rows != [TWO] or all("objective=dpo" in job for job in fake.waves[1])


def test_a_warm_up_row_of_a_later_table_is_served_by_a_run_that_is_there(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sweeps evaluate the warm-up for a row that shows it only; a run of which all else is there adds it."""
    table(rows=ROWS[1:], seeds=[0])
    fake = FakeLaunch()
    run(fake)
    assert Counter(fake.built) == {"data": 1, "warmup": 1, "explore": 2, "align": 4, "evaluate": 4}
    table(seeds=[0])
    capsys.readouterr()
    assert status.main([FOLDER]) == 1 and "baseline (evaluate-" in capsys.readouterr().out.splitlines()[0]
    fake = FakeLaunch()
    assert run(fake) == 0
    assert fake.waves == [["sampler=group objective=dpo seed=0 name=product until=null baseline=true"]]
    assert fake.built == ["evaluate"]
    fake = FakeLaunch()
    assert run(fake) == 0 and fake.waves == []


def test_seeds_and_overrides_reach_every_job(table: Callable[..., None]) -> None:
    fake = FakeLaunch()
    assert run(fake, "seed=5", "paths.store=elsewhere", "sampler.n=4") == 0
    jobs = [job for wave in fake.waves for job in wave]
    assert all("paths.store=elsewhere sampler.n=4 seed=5 name=product" in job for job in jobs)
    assert [len(wave) for wave in fake.waves] == [1, 2, 4] and not Path("store").exists()


def test_a_failed_cell_stops_itself_alone(table: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeLaunch(lambda job: "align1" if "sampler=tps objective=dpo seed=1" in job else None)
    assert run(fake) == 2
    assert [len(wave) for wave in fake.waves] == [2, 4, 8] and len(list(Path("results").iterdir())) == 7
    assert "failed: tps+dpo seed=1: TtpaError: align1 broke" in capsys.readouterr().err
    again = FakeLaunch()
    assert run(again) == 0
    assert [len(wave) for wave in again.waves] == [1]


def test_cells_that_need_a_failed_stage_are_not_sent_to_fail(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLaunch(lambda job: "warmup" if "seed=1" in job else None)
    assert run(fake) == 2
    assert [len(wave) for wave in fake.waves] == [2, 2, 4]
    err = capsys.readouterr().err
    assert "group+dpo seed=1: TtpaError: warmup broke" in err
    assert err.count("not launched: group+dpo seed=1 failed to build warmup-") == 3


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pairs=siblings", "pairs=siblings takes pairs from a search tree"),
        ("trainer.devices=2", "trainer.devices=2: a sweep with cluster=local starts one process a cell. Use 1"),
    ],
)
def test_a_refused_cell_does_not_stop_those_that_share_its_stages(
    word: str, said: str, table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes first, so it would be sent for all of them."""
    bad = {"key": "bad", "label": "bad", "overrides": ["objective=dpo", "sampler=group", word]}
    table(rows=[bad, ROWS[1]], seeds=[0])
    fake = FakeLaunch()
    assert run(fake) == 2
    assert [len(wave) for wave in fake.waves] == [1, 2, 4] and word not in str(fake.waves)
    assert capsys.readouterr().err.startswith(f"ttpa sweep: failed: bad seed=0: {said}")


def test_a_job_that_builds_nothing_is_followed_by_the_next_cell_that_shares_its_stage(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback that an earlier sweep left is no sign of a build."""
    table(seeds=[0])
    assert run(FakeLaunch(lambda job: "warmup")) == 2
    assert capsys.readouterr().err.count("not launched") == 3
    fake = FakeLaunch(lambda job: "start" if "sampler=group objective=dpo" in job else None)
    assert run(fake) == 2
    assert [job.split(" seed")[0] for wave in fake.waves[:3] for job in wave] == [
        "sampler=group objective=dpo", "sampler=group objective=simpo", "sampler=group objective=simpo",
        "sampler=tps objective=dpo",
    ]  # fmt: skip
    assert [len(wave) for wave in fake.waves] == [1, 1, 2, 3]
    err = capsys.readouterr().err
    assert "failed: group+dpo seed=0: TtpaError: refused\n" in err and "not launched" not in err


def test_one_fault_that_no_user_can_mend_decides_the_status(table: Callable[..., None]) -> None:
    faults = {"objective=dpo": OSError("a bug"), "objective=simpo": DataError("a mistake")}
    for options, code in ((["dpo", "simpo"], 1), (["simpo"], 2), (["dpo"], 1)):
        table(rows=[{"product": {"objective": options}}], seeds=[0])

        def launch(jobs: Sequence[Sequence[str]]) -> list[BaseException]:
            return [next(faults[word] for word in job if word in faults) for job in jobs]

        assert sweep.main([FOLDER], lambda overrides, submit: launch) == code


def test_outdated_records_are_run_again_only_on_request(table: Callable[..., None]) -> None:
    run(FakeLaunch(), "seed=0")
    path = next(Path("results").iterdir())
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "stages": {**row["stages"], "evaluation": "evaluate-0"}}))
    fake = FakeLaunch()
    assert run(fake, "seed=0") == 0 and fake.waves == []
    run(fake, "seed=0", "outdated=true")
    assert [len(wave) for wave in fake.waves] == [1]


def test_what_breaks_the_launcher_is_no_verdict_on_a_cell(table: Callable[..., None]) -> None:
    class Broken:
        def launch(self, jobs: Any, initial_job_idx: int) -> Any:
            raise OSError("no more processes")

    with open_hydra(), pytest.MonkeyPatch.context() as patch:
        launch = sweep.hydra_launcher([*SMALL], False)
        patch.setattr(sweep.Plugins.instance(), "instantiate_launcher", lambda **_: Broken(), raising=False)
        assert launch([["seed=0"], ["seed=1"]]) == [None, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outdated=maybe"], "outdated='maybe': should be a valid boolean"),
        (["cluster=nowhere"], "no option nowhere of the group cluster."),
        (["cluster=joblib", "cluster.jobs=abc"], "cluster=joblib cluster.jobs=abc: "),
        (["sampler.x=1"], "sampler.x"),
    ],
)
def test_a_mistake_is_said_before_any_work(words: list[str], said: str, table: Callable[..., None]) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep.main([FOLDER, *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("store").exists()


def ttpa_sweep() -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ttpa.cli", "sweep", FOLDER], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_a_sweep_of_real_runs_builds_every_stage_once_and_then_nothing(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """2 samplers x 2 scorers x 2 objectives over one data set and one warm-up: 1 data + 1 warm-up + 4 explorations +
    8 alignments + 8 evaluations = 22. Each cell alone would be 8 x 5 = 40.
    """
    axes = {"sampler": ["group", "tps"], "scorer": ["esm", "ast"], "objective": ["dpo", "simpo"]}
    table(rows=[{"product": axes}], seeds=[0])
    assert status.main([FOLDER]) == 1
    done = ttpa_sweep()
    log = Path("store/executions.jsonl")
    stages = Counter(json.loads(line)["stage"] for line in log.read_text().splitlines())
    assert stages == {"data": 1, "warmup": 1, "explore": 4, "align": 8, "evaluate": 8}
    assert [line for line in done.stdout.splitlines() if line.startswith("ttpa sweep: wave")] == [
        "ttpa sweep: wave warmup: 1 jobs for 8 cells",
        "ttpa sweep: wave explore: 4 jobs for 8 cells",
        "ttpa sweep: wave whole run: 8 jobs for 8 cells",
    ]
    assert "0 of 8 cells to run" in ttpa_sweep().stdout
    assert len(log.read_text().splitlines()) == 22
    assert not list(Path("store").glob("*.lock")) and not list(Path("store").glob("*.part"))
    assert status.main([FOLDER]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "8 cells of product, preset embedded: 8 done"
    shown = from_folder(Path(FOLDER))
    assert [list(row.records) for row in shown.rows] == [[0]] * 8 and shown.warnings == ()


PAIR = [{"key": key, "label": key, "overrides": [f"objective={key}"]} for key in ("dpo", "gold")]
GAPS = (0.01, 0.03, 0.02)  # dpo - gold by seed: deviation 1 point
BROAD = math.ceil((2 * 4.302653) ** 2)  # seeds for an interval 1 point wide, by its spread


class Measured(FakeLaunch):
    """A launcher whose runs differ by `GAPS`, later ones by as much as the listed ones together."""

    def measure(self, cfg: DictConfig) -> dict[str, Any]:
        gap = GAPS[cfg.seed] if cfg.seed < 3 else 0.02
        return {"accuracy": {"value": 0.5 + gap * (cfg.choices.objective == "dpo"), "low": 0, "high": 1, "n": 9}}


def test_ci_adds_seeds_until_the_intervals_are_narrow(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Deviation 1 point of 3 seeds: 2 * 4.303 / sqrt(n) is at most 3 for n = 9. Nothing is launched twice, and all
    commands count what was added.
    """
    table(rows=PAIR, seeds=[0, 1, 2], differences=[["dpo", "gold"]])
    fake = Measured()
    assert run(fake, "ci=3") == 0
    assert [len(wave) for wave in fake.waves] == [3, 3, 6, 6, 6, 12]  # warm-ups, explorations of dpo, runs; twice
    said = "6 seeds added to 3, 9 in all; the widest paired interval is 2.87 points wide (dpo - gold)"
    assert f"ttpa sweep: ci=3: {said}\n" in capsys.readouterr().out
    again = Measured()
    assert run(again, "ci=3") == run(again) == run(again, "ci=5") == 0 and again.waves == []
    assert capsys.readouterr().out.count(said) == 2 and status.main([FOLDER]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "18 cells of product, preset embedded: 18 done"
    shown = from_folder(Path(FOLDER))
    assert [list(row.records) for row in shown.rows] == [[*range(9)]] * 2 and shown.warnings == ()
    (one,) = shown.differences
    assert one.seeds and one.seeds.high and one.seeds.high - 0.02 == pytest.approx(0.01 * 4.302653 / 3)


def test_ci_stops_at_its_limit_and_says_what_is_needed(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    table(rows=PAIR, seeds=[0, 1, 2], differences=[["dpo", "gold"]])
    assert run(Measured(), "ci=1", "max_seeds=4") == 0
    limit = f"stopped at max_seeds=4, because dpo - gold needs {BROAD}; the widest paired interval is 4.30 points wide"
    assert f"ci=1: 1 seeds added to 3, 4 in all; {limit}" in capsys.readouterr().out
    assert len(from_folder(Path(FOLDER)).preset.seeds) == 4


def test_an_addition_that_was_interrupted_goes_on(
    table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 4 of one row fails: the table leaves that seed out, the status names its cell, the same command mends it."""
    table(rows=PAIR, seeds=[0, 1, 2], differences=[["dpo", "gold"]])
    broken = Measured(lambda job: "align1" if "objective=gold seed=4" in job else None)
    assert run(broken, "ci=3") == 2 and "failed: gold seed=4: " in capsys.readouterr().err
    assert from_folder(Path(FOLDER)).preset.added == [3, 5, 6, 7, 8]
    assert status.main([FOLDER, "ci=3"]) == 1 and "gold seed=4  failed" in capsys.readouterr().out
    fake = Measured()
    assert run(fake, "ci=3") == 0 and [len(wave) for wave in fake.waves] == [1]
    assert from_folder(Path(FOLDER)).preset.added == [*range(3, 9)]


def test_nothing_is_added_before_the_listed_seeds_are_there(table: Callable[..., None]) -> None:
    table(rows=PAIR, seeds=[0, 1, 2], differences=[["dpo", "gold"]])
    broken = Measured(lambda job: "warmup" if "seed=1" in job else None)
    assert run(broken, "ci=1") == 2 and "seed=3" not in str(broken.waves)


@pytest.mark.parametrize(
    ("words", "seeds", "pairs", "said"),
    [
        (["ci=2"], [0, 1], [["dpo", "gold"]], "List 3 seeds or more in experiments/product/table.yaml"),
        (["ci=2"], [0, 1, 2], [], "takes no differences"),
        (["ci=2", "seed=0,1,2"], [0, 1, 2], [["dpo", "gold"]], "Leave seed= out"),
        (["ci=2", "max_seeds=2"], [0, 1, 2], [["dpo", "gold"]], "max_seeds=2: experiments/product/table.yaml lists 3"),
        (["ci=0"], [0, 1, 2], [["dpo", "gold"]], "ci='0'"),
    ],
)
def test_widths_that_cannot_be_are_refused(
    words: list[str], seeds: list[int], pairs: list[list[str]], said: str, table: Callable[..., None]
) -> None:
    table(rows=PAIR, seeds=seeds, differences=pairs)
    for command in (sweep.main, status.main):
        with pytest.raises(ConfigError) as caught:
            command([FOLDER, *words])
        assert said in str(caught.value)
