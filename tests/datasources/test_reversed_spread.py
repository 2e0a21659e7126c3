"""The reversed source over an executor: the same files wherever waves are drawn, in any order, over restarts."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ttpa.data.reversed import source as module
from ttpa.data.reversed.noise import Noise, annotate
from ttpa.data.reversed.simulator import draw_sample
from ttpa.data.reversed.source import Reversed
from ttpa.data.source import DataSource
from ttpa.errors import DataError
from ttpa.io import dumps
from ttpa.run import config, stages
from ttpa.run.waves import LocalExecutor, Rows, Wave, Work

ROOT = Path(__file__).resolve().parents[2]
FILES = {"warmup.jsonl", "explore.jsonl", "validation.jsonl", "test.jsonl", "splits.json"}
TOTAL, WAVE = 222, 25

WORKER = """
import pickle, sys
make_work, waves = pickle.load(sys.stdin.buffer)
work = make_work()
pickle.dump([work(wave) for wave in waves], sys.stdout.buffer)
"""


class TwoProcesses:
    """Every second wave in each of two other processes; given back from the last to the first."""

    def check(self) -> None:
        pass

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Iterator[tuple[int, Rows]]:
        asked = [pickle.dumps((make_work, waves[start::2])) for start in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(self._elsewhere, asked))
        for number in reversed(range(len(waves))):
            yield number, answers[number % 2][number // 2]

    def _elsewhere(self, asked: bytes) -> Any:
        done = subprocess.run([sys.executable, "-c", WORKER], input=asked, capture_output=True, check=True, cwd=ROOT)
        return pickle.loads(done.stdout)


class Killed(BaseException):
    pass


class Dies:
    """Computes here, and is gone after some waves."""

    def __init__(self, after: int) -> None:
        self.after = after

    def check(self) -> None:
        pass

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Iterator[tuple[int, Rows]]:
        yield from LocalExecutor().run(make_work, waves[: self.after])
        raise Killed


@pytest.fixture(autouse=True)
def small_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAVE", WAVE)


def source(**more: Any) -> Reversed:
    settings: dict[str, Any] = {
        "generator": "simulator", "seed": 0, "world_seed": 0, "train_tools": 64, "unseen_tools": 6,
        "warmup_samples": 110, "warmup_mix": {"easy": 0.65, "medium": 0.21, "hard": 0.14},
        "explore_samples": 50, "explore_mix": {"easy": 0.4, "medium": 0.35, "hard": 0.25},
        "validation_per_band": 7, "test_per_band": 11, "test_unseen": 8,
    }  # fmt: skip
    return Reversed(**(settings | more))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def plain(tmp_path: Path, small_waves: None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metrics and files of a build in one go, in one process."""
    (tmp_path / "plain").mkdir()
    metrics = source().build(tmp_path / "plain")
    return metrics, files(tmp_path / "plain")


# ---- where and in which order ---------------------------------------------------------------------------------------


def test_two_processes_that_answer_backwards_write_the_same_files(tmp_path: Path, plain: Any) -> None:
    (tmp_path / "spread").mkdir()
    metrics = source().build(tmp_path / "spread", TwoProcesses())
    assert (metrics, files(tmp_path / "spread")) == plain
    assert set(plain[1]) == FILES


def test_the_size_of_waves_changes_no_file(tmp_path: Path, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAVE", 10_000)
    (tmp_path / "whole").mkdir()
    assert (source().build(tmp_path / "whole"), files(tmp_path / "whole")) == plain


def test_ids_of_items_are_unique_and_splits_are_drawn_in_order_of_items() -> None:
    items = [item for split in module.SPLITS for item in source().items(split)]
    assert len({item.id for item in items}) == len(items) == TOTAL
    for split in module.SPLITS:
        found = [(sample.band, bool(sample.tags)) for sample in source(noise=Noise(share=0.0)).samples(split)]
        assert found == [(item.band, item.unseen) for item in source().items(split)]


def test_defects_are_counted_as_in_one_loop_with_those_that_never_show(tmp_path: Path) -> None:
    """A family that was met and changed nothing is counted as 0."""
    noise, few = Noise(share=0.5, probability=1.0), {"seed": 4, "warmup_samples": 4}
    made, counts = source(noise=noise, **few), Counter[str]()
    bad = noise.sites(made.world(), 0)
    for sample in source(noise=Noise(share=0.0), **few).samples("warmup"):
        annotate(sample, bad, 1.0, made.seed, counts)
    assert 0 in counts.values()
    metrics = made.build(tmp_path)
    assert metrics["misannotated_share"] == counts.pop("changed") / 4
    assert metrics["defects"] == dict(counts)


# ---- restarts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"", b'{"id":"warmup-ea', b'{"id": "x"}'])
@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_restart_goes_on_and_ends_with_the_same_files(tmp_path: Path, plain: Any, after: int, torn: bytes) -> None:
    out, told = tmp_path / "out", list[tuple[int, int]]()
    out.mkdir()
    with pytest.raises(Killed):
        source().build(out, Dies(after))
    with (out / "drawn.jsonl").open("ab") as shard:
        shard.write(torn)
    metrics = source().build(out, LocalExecutor(), lambda *news: told.append(news))
    assert (metrics, files(out)) == plain
    behind = min(TOTAL, after * WAVE)
    assert told == [(done, TOTAL) for done in sorted({*range(behind, TOTAL, WAVE), TOTAL})]


def test_a_row_cut_in_the_middle_is_drawn_again_with_its_wave(tmp_path: Path, plain: Any) -> None:
    out, told = tmp_path / "out", list[int]()
    out.mkdir()
    with pytest.raises(Killed):
        source().build(out, Dies(3))
    os.truncate(out / "drawn.jsonl", (out / "drawn.jsonl").stat().st_size - 10)
    assert (source().build(out, TwoProcesses(), lambda done, _: told.append(done)), files(out)) == plain
    assert told[0] == 2 * WAVE


def test_a_kill_while_the_splits_are_written_draws_nothing_again(
    tmp_path: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(value: Any) -> str:
        raise Killed

    out.mkdir()
    monkeypatch.setattr(module, "dumps", killed)  # in this process: when all is drawn, for splits.json
    with pytest.raises(Killed):
        source().build(out, TwoProcesses())
    assert {path.name for path in out.iterdir()} == FILES - {"splits.json"} | {"drawn.jsonl"}
    monkeypatch.setattr(module, "dumps", dumps)
    monkeypatch.setattr(module, "draw_sample", None)
    assert (source().build(out), files(out)) == plain


def test_a_sample_that_cannot_be_drawn_stops_the_build_and_is_drawn_by_the_next(
    tmp_path: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def breaks(*world: Any, **item: Any) -> Any:
        if item["split"] == "test" and item["number"] == 5:
            raise RuntimeError("no test value")
        return draw_sample(*world, **item)

    out.mkdir()
    monkeypatch.setattr(module, "draw_sample", breaks)
    with pytest.raises(DataError, match=r"4 samples cannot be drawn, first test-easy-5\. See errors\.jsonl"):
        source().build(out)
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [row["id"] for row in errors] == ["test-easy-5", "test-medium-5", "test-hard-5", "test-easy-unseen-5"]
    assert not (out / "splits.json").exists()
    monkeypatch.setattr(module, "draw_sample", draw_sample)
    assert (source().build(out), files(out)) == plain


# ---- what travels, and who calls ------------------------------------------------------------------------------------


def test_what_travels_is_the_settings_as_configured() -> None:
    """The option file's object, with its mixes and its noise; the world is made where waves are drawn."""
    option = yaml.safe_load((ROOT / "conf" / "data" / "reversed.yaml").read_text(encoding="utf-8"))
    made = config.instantiate(OmegaConf.create({**option, "seed": 3}), "data")
    assert isinstance(made, Reversed) and isinstance(made, DataSource)
    sent: list[bytes] = []

    class Keeps(LocalExecutor):
        def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Iterator[tuple[int, Rows]]:
            sent.extend((pickle.dumps(make_work), pickle.dumps(waves[0])))
            raise Killed

    with pytest.raises(Killed):
        made.build(Path("nowhere"), Keeps())
    make_work, wave = map(pickle.loads, sent)
    assert len(sent[0]) < 2000
    rows = make_work()(wave)
    drawn = islice(made.samples("warmup"), WAVE)
    assert [row["line"] for row in rows] == [dumps(sample.to_json()) for sample in drawn]


def test_the_data_stage_hands_over_the_executor_and_progress(tmp_path: Path, plain: Any) -> None:
    told: list[tuple[int, int, float, str]] = []
    parts: Any = SimpleNamespace(data=source(), executor=TwoProcesses())
    (tmp_path / "out").mkdir()
    metrics = stages.build_data(parts, tmp_path / "out", lambda *news: told.append(news))
    assert (metrics, files(tmp_path / "out")) == plain
    assert told[0] == (0, TOTAL, 0.0, "") and told[-1] == (TOTAL, TOTAL, 0.0, "")
    assert [news[0] for news in told][:2] == [0, TOTAL % WAVE]
