"""experiments/rounding: how much of the demo's spread is rounding, the range that holds on other machines, and what
`make demo` says of it.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from tests.results.table_cases import metrics
from tests.run.test_pipeline import SMALL
from ttpa.results import view
from ttpa.results.cells import compose_run, open_hydra
from ttpa.run import config
from ttpa.run.parts import VERSIONS
from ttpa.run.store import StageResult

ROOT: Final = Path(__file__).parents[2]
CPU = {"make": "Maker", "family": "6", "model": "1", "name": "Chip", "flags": ["avx2"]}


@pytest.fixture(scope="module")
def rounding() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rounding", ROOT / "experiments/rounding/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["rounding"] = module
    spec.loader.exec_module(module)
    return module


def test_components_by_hand(rounding: ModuleType) -> None:
    """Settings move every seed by 1, seeds every setting by 2: within a seed the variance is 1/2, between seeds 2."""
    one = rounding.spread([[0, 2], [1, 3]])
    assert (one.mean, one.rounding[0], one.seed[0]) == pytest.approx((1.5, 0.5**0.5, 2**0.5))
    # 1 degree: 0.5 / 5.0239 and 0.5 / 0.00098207 are the ends of the variance
    assert one.rounding[1:] == pytest.approx((0.31548, 22.564), rel=1e-3)
    # only settings and seeds: variance 1.5 * 2 + 1.5 * 0.5 = 3.75 with 3.75^2 / (3^2 + 0.75^2) = 1.4706 degrees
    assert one.high - one.mean == pytest.approx(one.mean - one.low) and one.high - one.mean > 4.303 * 3.75**0.5


def test_one_seed_gives_a_range_over_settings(rounding: ModuleType) -> None:
    """1, 2, 3: 2 +- 4.3027 * 1 * sqrt(1 + 1/3)."""
    one = rounding.spread([[1], [2], [3]])
    assert one.seed is None and (one.low, one.high) == pytest.approx((2 - 4.96828, 2 + 4.96828), abs=1e-4)
    assert one.rounding == pytest.approx((1, 0.52066, 6.2848), abs=1e-3)  # printed: sqrt(2 / 7.378), sqrt(2 / 0.0506)
    alone = rounding.spread([[0.4, 0.6]])
    assert (alone.rounding, alone.low, alone.high) == (None, 0.5, 0.5)
    equal = rounding.spread([[0.5, 0.5]] * 3)
    assert (equal.rounding[0], equal.seed[0], equal.low, equal.high) == (0, 0, 0.5, 0.5)


@pytest.mark.parametrize("true", [(0.5, 2.0, 1.0), (0.0, 1.0, 3.0), (0.3, 0.0, 1.0), (2.0, 0.5, 0.3)])
@pytest.mark.parametrize("shape", [(9, 3), (5, 8)])
def test_intervals_and_range_by_simulation(
    true: tuple[float, float, float], shape: tuple[int, int], rounding: ModuleType
) -> None:
    """Normal effects of settings, seeds and the rest: the range holds the result of another machine and seed in 95 % of
    the studies, the intervals hold what is true; Satterthwaite's degrees of freedom are approximate.
    """
    (kernel, seed, rest), rng, studies = true, np.random.default_rng(5), 600
    inside, rounded, seeded = 0, 0, 0
    for _ in range(studies):
        effects = rng.normal(0, kernel, (shape[0], 1)) + rng.normal(0, seed, (1, shape[1]))
        one = rounding.spread(effects + rng.normal(0, rest, shape) + 50)
        inside += one.low <= 50 + rng.normal(0, (kernel**2 + seed**2 + rest**2) ** 0.5) <= one.high
        rounded += one.rounding[1] <= (kernel**2 + rest**2) ** 0.5 <= one.rounding[2]
        seeded += one.seed[1] <= seed <= one.seed[2]
    assert 0.90 < inside / studies < 0.98 and min(rounded, seeded) / studies > 0.90


def write_record(rounding: ModuleType, folder: Path, name: str, seed: int, accuracy: float, machine: Any = CPU) -> None:
    """A record as `run_one` writes it: SimPO and RFT, and a warm-up 20 points below."""
    rows = []
    for objective, value in (("simpo", accuracy), ("rft", accuracy + 0.05)):
        cfg = compose_run([*rounding.words_of(rounding.SETTINGS[name], seed), f"objective={objective}"])
        rows.append(
            {
                "row_version": 1, "seed": seed, "rounds": 1, "choices": {"objective": objective}, "versions": VERSIONS,
                "config": config.identity(cfg, *config.IDENTITY), "stages": {}, "cost": {},
                "baseline": metrics(accuracy - 0.2), "metrics": metrics(value),
                "kernel": {"setting": name, "cpu": machine},
            }
        )  # fmt: skip
    file = folder / "Maker-6-1" / f"{name}-seed{seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, rounding: ModuleType) -> Path:
    """Three settings by two seeds, two of them the same kernels; float64, and a seed that one setting lacks."""
    folder = tmp_path_factory.mktemp("rounding") / "records"
    with open_hydra():
        for name, values in {
            "threads-1": (0.50, 0.60, 0.7), "threads-2": (0.50, 0.60, 0.7), "mkl-avx2": (0.54, 0.62), "float64": (0.9,),
        }.items():  # fmt: skip
            for seed, value in enumerate(values):
                write_record(rounding, folder, name, seed, value)
    return folder


def test_table_and_range_follow_from_the_records(records: Path, rounding: ModuleType, tmp_path: Path) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "range.json"
    readme.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    assert rounding.table(records, readme, file) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- table -->\n| policy |") and text.endswith("<!-- end of table -->\nafter\n")
    assert "- 3 settings by 2 seeds (0, 1) are crossed." in text and "old" not in text
    assert (
        "count once: threads-1, threads-2." in text and "| float64 (reference), seed 0 | 70.0 | 90.0 | 95.0 |" in text
    )
    one = rounding.spread([[0.5, 0.6], [0.54, 0.62]])
    (line,) = [line for line in text.splitlines() if line.startswith("| simpo |")]
    assert line.split(" | ")[1:3] == ["56.5", rounding.shown(one.rounding)]
    assert "Settings that it lacks: onednn-avx512, onednn-avx512-bf16, onednn-amx, aten-avx512, mkl-avx512." in text
    found = json.loads(file.read_text())
    assert found["policies"]["simpo"] == [round(x, 4) for x in (one.mean, max(0, one.low), min(1, one.high))]
    with open_hydra():
        assert found["run"] == view.run_key(compose_run(["experiment=demo"]))


def test_records_of_another_demo_are_left_out(
    records: Path, rounding: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "DEMO", ("experiment=demo", "sampler.n=3"))
    found, stale, _ = rounding.measured(records)
    assert found == {} and len(stale) == 9 and rounding.block(found) == ([], [])


def test_what_is_recorded_is_not_run_and_what_the_machine_lacks_is_named(
    records: Path, rounding: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(rounding, "cpu", lambda: CPU)

    def run_one(name: str, seed: int, *_: object) -> str:
        ran.append((name, seed))
        return "done"

    monkeypatch.setattr(rounding, "run_one", run_one)
    names = ["threads-1", "mkl-avx2", "onednn-avx512", "mkl-compatible"]
    assert rounding.run([0, 2], names, 1, Path("work"), records) == 0
    assert ran == [("mkl-compatible", 0), ("mkl-avx2", 2), ("mkl-compatible", 2)]
    said = capsys.readouterr().out
    assert "onednn-avx512: skipped, this machine lacks avx512bw, avx512dq, avx512f, avx512vl" in said
    monkeypatch.setattr(rounding, "run_one", lambda *_: "status 1, see log")
    assert rounding.run([2], names, 1, Path("work"), records) == 1


@pytest.mark.slow
def test_settings_reach_processes_with_stores_of_their_own(
    tmp_path: Path, rounding: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [word for word in SMALL if not word.startswith(("trainer.", "logger"))]
    monkeypatch.setattr(rounding, "DEMO", ("experiment=demo", *small))
    names, where = ["mkl-compatible", "float64"], (tmp_path / "work", tmp_path / "records")
    assert rounding.run([0], names, 2, *where) == 0
    found, stale, cpus = rounding.measured(tmp_path / "records")
    assert found.keys() == {*names} and not stale and cpus == [rounding.cpu()]
    assert found["float64"][0].keys() == {"warm-up", "simpo", "dpo", "rft", "gold"}
    (file,) = (tmp_path / "records").glob("*/mkl-compatible-seed0.jsonl")
    kernel = json.loads(file.read_text().splitlines()[0])["kernel"]
    assert kernel["env"] == {"MKL_CBWR": "COMPATIBLE"} and kernel["cpu"]["make"]
    assert all((tmp_path / "work" / name / "store").is_dir() for name in names)
    assert rounding.run([0], names, 2, *where) == 0 and "0 runs to make" in capsys.readouterr().out


def test_the_demo_says_whether_it_is_inside_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that was measured is compared: another seed, option or objective is another run."""
    monkeypatch.setattr(view, "RANGE", tmp_path / "range.json")
    with open_hydra():
        demo = compose_run(["experiment=demo"])
        others = [compose_run(["experiment=demo", word]) for word in ("seed=1", "sampler.n=3", "objective=dpo")]
    results = [StageResult("evaluate", "0" * 12, tmp_path, metrics(value), True, 0.0) for value in (0.5, 0.7)]
    found = {name: (one, one) for name, one in zip(("warm-up", "simpo"), results, strict=True)}
    assert list(view.against_range(demo, found)) == []
    policies = {"warm-up": [0.4, 0.3, 0.5], "simpo": [0.8, 0.71, 0.9], "dpo": [0, 0, 1]}
    (tmp_path / "range.json").write_text(json.dumps({"run": view.run_key(demo), "policies": policies}))
    assert list(view.against_range(demo, found)) == [
        "",
        "warm-up: 0.500, inside the range 0.300 to 0.500",
        "simpo: 0.700, outside the range 0.710 to 0.900",
    ]
    assert [list(view.against_range(other, found)) for other in others] == [[], [], []]


def test_readme_and_package_hold_what_the_records_give(rounding: ModuleType, tmp_path: Path) -> None:
    if len(rounding.block(rounding.measured(rounding.RECORDS)[0])[0]) < 2:
        pytest.skip("the demo has changed since it was measured: run experiments/rounding/run.py")
    (tmp_path / "README.md").write_text(rounding.README.read_text())
    assert rounding.table(rounding.RECORDS, tmp_path / "README.md", tmp_path / "range.json") == 0
    assert (tmp_path / "README.md").read_text() == rounding.README.read_text()
    assert (tmp_path / "range.json").read_text() == view.RANGE.read_text()
    text = (ROOT / "README.md").read_text()
    for name, (mean, low, high) in json.loads(view.RANGE.read_text())["policies"].items():
        assert f"| {name} | {100 * mean:.1f} | {100 * low:.1f} to {100 * high:.1f} |" in text
