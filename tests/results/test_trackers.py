"""Trackers: offline W&B runs read back from disk, closed whatever happens; curves of the other loggers."""

import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import yaml

from tests.results.conftest import without_key
from tests.run.test_pipeline import composed_here
from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.results.wandb import Wandb, flat, has_key, mode_of
from ttpa.run import pipeline
from ttpa.run.tracking import TRACKED, StageFacts, Tracking
from ttpa.train.module import SFTModule

TINY = (
    "data.warmup_samples=80", "data.explore_samples=8", "data.test_per_band=2", "data.test_unseen=1",
    "data.validation_per_band=1", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=4", "recipe.align.steps=2", "recipe.max_new_tokens=8", "sampler.n=3",
    "pairs=released", "trainer.threads=1", "trainer.log_every_n_steps=1",
)  # fmt: skip


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: protocol buffers in LevelDB's log format, after 7 bytes that name it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block, header, at, whole = path.read_bytes(), 32768, 7, 7, b""
    assert data[:4] == b":W&B" and len(data) < 50e6
    while at + header <= len(data):
        if (room := block - at % block) < header:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items(updates: Any) -> dict[str, Any]:
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}


class Run:
    """One offline run as it would be uploaded."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        kinds = defaultdict[str, list[Any]](list)
        for record in records(path):
            kind = record.WhichOneof("record_type")
            kinds[kind].append(getattr(record, kind))
        (self.run,) = kinds["run"]
        self.config = items(self.run.config.update)
        self.exits = [one.exit_code for one in kinds["exit"]]
        self.history = [items(one.item) for one in kinds["history"]]
        self.steps = [row["trainer/global_step"] for row in self.history if "loss" in row]
        self.artifacts = [one for one in kinds["artifact"] if one.type != "run_table"]  # wandb's own, one a table
        self.summary = {key: value for one in kinds["summary"] for key, value in items(one.update).items()}

    def table(self, name: str) -> list[list[Any]]:
        (path,) = [row[f"{name}/path"] for row in self.history if f"{name}/path" in row]
        return json.loads((self.folder / "files" / path).read_text())["data"]


Runs, Folders = dict[str, Run], dict[str, Path]


def runs_below(folder: Path) -> dict[str, Run]:
    """Run id -> run; fails when an id was opened twice."""
    import wandb

    wandb.teardown()  # a run of this process is finished before its last records are in the file
    found = [Run(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
    assert len({one.run.run_id for one in found}) == len(found)
    return {one.run.run_id: one for one in found}


def sweep(folder: Path) -> int:
    """Two cells one after the other in one process, followed by W&B without a key; how often it says where they lie."""
    with pytest.MonkeyPatch.context() as patch:
        without_key(folder, patch)
        words = ["-m", "logger=wandb", "experiment=ttpa", "objective=dpo,simpo", *TINY]
        done = subprocess.run([sys.executable, "-m", "ttpa.cli", *words], capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "wandb:" not in said, f"the screen belongs to the view: {said}"
    where = f"W&B runs are on this machine only: wandb sync {folder.resolve() / 'runs' / 'wandb' / 'offline-run-*'}"
    return said.splitlines().count(where)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    assert sweep(folder) == 2
    return folder


@pytest.fixture(scope="module")
def runs(swept: Path) -> Runs:
    return runs_below(swept / "runs")


@pytest.fixture(scope="module")
def stages(swept: Path) -> Folders:
    return {path.parent.name: path.parent for path in swept.glob("store/*/done.json")}


def kind(name: str) -> str:
    return name.rsplit("-", 1)[0]


def test_every_trained_explored_or_evaluated_stage_is_one_run(swept: Path, runs: Runs, stages: Folders) -> None:
    assert set(runs) == {name for name in stages if kind(name) in TRACKED}
    assert len(runs) == 6, "warm-up and exploration are shared; align and evaluation are each cell's"
    for key, one in runs.items():
        assert (one.run.job_type, one.run.run_group, one.run.project, one.exits) == (kind(key), "ttpa", "ttpa", [0])
        assert one.run.display_name.endswith(", ttpa, seed 0")
        assert len(one.steps) == {"warmup": 4, "align": 2}.get(kind(key), 0) and one.steps == sorted(set(one.steps))
    before = sorted((swept / "runs" / "wandb").iterdir())
    assert sweep(swept) == 0
    assert sorted((swept / "runs" / "wandb").iterdir()) == before, "the same command again opens no run"


def test_tags_and_configuration_are_those_that_decided_the_stage(runs: Runs, stages: Folders) -> None:
    (warmup,) = [one for one in runs.values() if one.run.job_type == "warmup"]
    assert set(warmup.run.tags) == {"experiment=ttpa", "data=reversed", "model=tiny", "recipe=tiny", "warmup=plain"}
    aligned = [one for one in runs.values() if one.run.job_type == "align"]
    assert {one.config["objective_option"] for one in aligned} == {"dpo", "simpo"}
    for one in aligned:
        assert {"sampler=tps", "scorer=esm", "pairs=released", "select=all"} < set(one.run.tags)
        assert f"objective={one.config['objective_option']}" in one.run.tags
        kept = yaml.safe_load((stages[one.run.run_id] / "config.yaml").read_text())["config"]
        assert one.config["objective"] == kept["objective"] and one.config["seed"] == 0
        assert not any(tag.startswith("eval=") for tag in one.run.tags) and "eval" not in one.config


def test_pairs_errors_and_answers_are_tables(runs: Runs, stages: Folders) -> None:
    for key, one in runs.items():
        metrics = json.loads((stages[key] / "metrics.json").read_text())
        assert one.summary["stage"] == key
        if kind(key) == "explore":
            pairs = list(read_jsonl(stages[key] / "pairs.jsonl"))
            parts = ("chosen", "text"), ("rejected", "text"), ("chosen_score", "value"), ("rejected_score", "value")
            columns = [[pair[part][value] for pair in pairs] for part, value in parts]
            assert list(map(list, zip(*one.table("tables/pairs"), strict=True)))[3:] == columns
        if kind(key) == "evaluate":
            assert one.summary["accuracy/value"] == metrics["accuracy"]["value"]
            shares = {row[0].removesuffix(" (none of the six)"): row[1] for row in one.table("tables/six_errors")}
            assert shares == {label: found["value"] for label, found in metrics["errors"].items()} and len(shares) == 7
            written = {row["id"] for row in read_jsonl(stages[key] / "rows.jsonl")}
            assert {row[0] for row in one.table("tables/answers")} == written


def test_policies_and_pairs_are_artifacts_with_their_inputs(runs: Runs, stages: Folders) -> None:
    logged = {a.name: (a.type, a.digest) for one in runs.values() for a in one.artifacts if not a.use_after_commit}
    assert set(logged) == {key for key in runs if not key.startswith("evaluate")}
    assert {kind for kind, _ in logged.values()} == {"policy", "pairs"}
    for key, one in runs.items():
        used = {a.name: (a.type, a.digest) for a in one.artifacts if a.use_after_commit}
        made = json.loads((stages[key] / "provenance.json").read_text())["inputs"]
        assert {name.rsplit("-", 1)[1] for name in used} == {fp for role, fp in made.items() if role != "data"}
        assert all(logged[name] == contents for name, contents in used.items()), "the very same contents"


def run_here(*overrides: str) -> pipeline.Outcome:
    return pipeline.run(composed_here(*overrides, base=TINY), MagicMock())


def test_a_run_ends_as_failed_and_the_next_one_is_another(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    step = SFTModule.training_step

    def fail(self: SFTModule, *words: Any) -> None:
        step(self, *words)
        if self.trainer.global_step == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(SFTModule, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_here("logger=wandb", "until=warmup")
    assert wandb.run is None
    (failed,) = runs_below(alone / "runs").values()
    assert failed.exits == [1] and len(failed.steps) == 1
    monkeypatch.setattr(SFTModule, "training_step", step)
    run_here("logger=wandb", "until=warmup", "seed=1", "paths.runs=again", "logger.max_artifact_mb=0.001")
    (other,) = runs_below(alone / "again").values()
    assert other.exits == [0] and other.run.run_id != failed.run.run_id and len(other.steps) == 4
    large = other.summary[f"not_uploaded/{other.run.run_id}"]
    assert other.artifacts == [] and large.endswith("/policy"), "a large artifact is named and not uploaded"
    assert "WANDB_MODE" not in os.environ, "the mode of one run must not decide the next one's"


@pytest.mark.parametrize(("option", "pattern"), [("tensorboard", "logs/events.out.*"), ("csv", "logs/*/metrics.csv")])
def test_other_loggers_keep_the_curves_in_the_stage(option: str, pattern: str, alone: Path) -> None:
    places = run_here(f"logger={option}", "until=warmup").places
    assert places == ("TensorBoard: tensorboard --logdir store",) * (option == "tensorboard")
    (found,) = alone.glob(f"store/warmup-*/{pattern}")
    text = found.read_bytes()
    assert b"loss" in text and b"grad_norm" in text


def facts(stage: str = "align") -> StageFacts:
    name = f"{stage}-0123456789ab"
    return StageFacts(id=name, stage=stage, name=stage, run="demo", choices={}, config={}, inputs={})


@pytest.mark.parametrize(("stage", "fails"), [("align", ""), ("align", "publish"), ("align", "close"), ("data", "")])
def test_a_tracker_is_opened_told_and_closed_and_its_failures_cost_nothing(stage: str, fails: str) -> None:
    tracker, shown = MagicMock(lightning="curves", place="here"), list[str]()
    if fails:
        getattr(tracker, fails).side_effect = OSError("no network")
    tracking = Tracking(None, lambda _: tracker)
    tracking.begin(facts(stage), Path())
    assert tracking.logger == ("curves" if stage == "align" else False)
    tracking.publish(Path(stage), {}, shown.append)
    tracking.end(failed=False)
    tracking.end(failed=False)
    assert tracker.method_calls == ([call.publish(Path("align"), {}), call.close(False)] if stage == "align" else [])
    assert tracking.logger is False and list(tracking.places) == ["here"] * (stage == "align")
    assert shown == ["logger: align was not published: OSError: no network"] * (fails == "publish")


def test_a_run_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", MagicMock(side_effect=wandb.errors.AuthenticationError("API key is wrong")))
    (tmp_path / "file").touch()
    usual = {"project": "p", "entity": None, "offline": False, "table_rows": 1, "max_artifact_mb": 1.0}
    with pytest.raises(ConfigError, match="align-0123456789ab in project p: API key is wrong. .*logger=csv"):
        Wandb(save_dir=str(tmp_path), **usual).follow(facts())
    with pytest.raises(ConfigError, match=r"save_dir=.*file: cannot be made a folder \(File exists\)"):
        Wandb(save_dir=str(tmp_path / "file"), **usual).follow(facts())


@pytest.mark.parametrize(
    ("words", "said"), [("wandb table_rows=-1", "table_rows=-1: "), ("csv save_dir=5", "save_dir=5: must be a folder")]
)
def test_a_value_that_a_logger_cannot_have_stops_the_run(words: str, said: str, alone: Path) -> None:
    option, value = words.split()
    with pytest.raises(ConfigError, match=said):
        run_here(f"logger={option}", f"logger.{value}")
    assert not list(alone.iterdir()), "before any stage"


def test_a_key_decides_whether_runs_are_uploaded(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_key() and mode_of(None) == "offline" and mode_of(False) == "online"
    (alone / "no-netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_key() and mode_of(None) == "online" and mode_of(True) == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_key()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode_of(True) is None, "the variable is wandb's own to read"


def test_nested_metrics_get_one_name_each() -> None:
    nested = {"a": {"b": 1, "c": {"d": "x"}}, "e": None, "f": [1], "g": True}
    assert dict(flat(nested)) == {"a/b": 1, "a/c/d": "x", "g": True}
