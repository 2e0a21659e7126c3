"""The graph end to end on a model of a few thousand weights: what is shared, what is rebuilt, what survives a kill."""

import contextlib
import gzip
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict

from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.policy import forward
from ttpa.policy.decode import HFEngine
from ttpa.records import Sample
from ttpa.results.view import ScreenView
from ttpa.run import config, pipeline

SMALL = (
    "data.warmup_samples=80", "data.explore_samples=12", "data.test_per_band=4", "data.test_unseen=2",
    "data.validation_per_band=2", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=6", "recipe.align.steps=2", "recipe.max_new_tokens=12", "sampler.n=3",
    "pairs=released", "logger=none", "trainer.threads=1",
)  # fmt: skip
DATA = Path(__file__).resolve().parents[1] / "data"
TOOLACE = f"data.path={DATA}/toolace_dialogues.jsonl.gz"
READ = [word for word in SMALL if not word.startswith("data.")]  # for data that is read
SMALLEST = ("debug=smoke", *(word for word in SMALL if word.startswith(("model.", "trainer."))))


def command(*overrides: str) -> list[str]:
    flags = [word for word in overrides if word.startswith("-")]
    return [sys.executable, "-m", "ttpa.cli", *flags, *SMALL, *(word for word in overrides if word not in flags)]


def ttpa(folder: Path, *overrides: str) -> str:
    done = subprocess.run(command(*overrides), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def composed_here(*overrides: str, base: Sequence[str] = SMALL) -> DictConfig:
    """The configuration of a command line."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        cfg = compose("config", overrides=[*base, *overrides], return_hydra_config=True)
    with open_dict(cfg):
        cfg.choices = {group: name for group, name in cfg.hydra.runtime.choices.items() if group in config.IDENTITY}
        del cfg.hydra
    return cfg


def run_here(*overrides: str, base: Sequence[str] = SMALL) -> str:
    """The same without the command line: one process, the current folder. Returns what a person would read."""
    cfg = composed_here(*overrides, base=base)
    shown = io.StringIO()
    with ScreenView(shown) as view:
        outcome = pipeline.run(cfg, view)
    view.summary(outcome, "run folder")
    return shown.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(folder: Path) -> list[str]:
    """Stages built in the store so far, in order, over all processes."""
    log = folder / "store" / "executions.jsonl"
    return [json.loads(line)["stage"] for line in log.read_text().splitlines()] if log.exists() else []


def rows(folder: Path) -> dict[str, dict]:
    """Result rows by file name, without what a clock measured."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.jsonl"))}
    return {name: {key: value for key, value in row.items() if key != "cost"} for name, row in found.items()}


@pytest.mark.slow
def test_a_product_shares_warmup_and_exploration_and_a_second_run_builds_nothing(tmp_path: Path) -> None:
    """2 samplers x 2 scorers x 3 objectives: 1 data, 1 warm-up, 4 explorations, 12 alignments, 12 evaluations; every
    cell alone would be 12 x 5 = 60."""
    product = ("-m", "sampler=tps,group", "scorer=esm,ast", "objective=dpo,simpo,rft")
    ttpa(tmp_path, *product)
    assert Counter(built(tmp_path)) == {"data": 1, "warmup": 1, "explore": 4, "align": 12, "evaluate": 12}
    first = rows(tmp_path)
    cells = {(r["choices"]["sampler"], r["choices"]["scorer"], r["choices"]["objective"]) for r in first.values()}
    assert len(first) == len(cells) == 12
    ttpa(tmp_path, *product)
    assert len(built(tmp_path)) == 30
    assert rows(tmp_path) == first
    assert not list((tmp_path / "store").glob("*.lock"))


def test_the_warm_up_is_evaluated_on_request_and_shown_where_it_is_in_the_store(folder: Path) -> None:
    assert "warm-up  " not in run_here("objective=dpo", "baseline=false")
    assert all(row["baseline"] == {} and "baseline" not in row["stages"] for row in rows(folder).values())
    assert not any("fallbacks" in row for row in rows(folder).values())
    assert "dpo - warm-up: " in run_here("objective=dpo")
    assert Counter(built(folder))["evaluate"] == 2
    # A sweep asks for none, but shows what the store has, and loses nothing from the row that held it.
    assert "simpo - warm-up: " in run_here("objective=simpo", "baseline=false")
    assert Counter(built(folder))["evaluate"] == 3
    assert all(row["baseline"]["accuracy"] and row["stages"]["baseline"] for row in rows(folder).values())


def test_what_stands_in_for_something_else_is_told_everywhere_and_engines_are_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot take trees, and an optimiser that needs a GPU. One engine lives at a time."""
    alive, seen = list[Any](), list[int]()
    monkeypatch.setattr(forward, "_PROBLEMS", {})
    monkeypatch.setattr(forward, "find_problem", lambda *_: "it is round")
    start = HFEngine.__init__
    monkeypatch.setattr(
        HFEngine, "__init__", lambda self, **given: start(self, **given) or alive.append(seen.append(len(alive)))
    )
    monkeypatch.setattr(HFEngine, "close", lambda self: alive.pop())
    words = ("objective=dpo", "recipe.warmup.optimizer=adamw_8bit", "controls={}")
    shown, again = run_here(*words), run_here(*words)
    (row,) = rows(folder).values()
    told = row["fallbacks"]
    assert set(told) == {"warmup", "explore1", "align1", "baseline", "evaluation"} and not alive and seen == [0, 0, 0]
    eight, tree, decoding = told["warmup"][1], told["warmup"][0], told["evaluation"][0]
    assert eight.startswith("optimizer=adamw_8bit: ") and tree.startswith("token trees: it is round; padded")
    assert told["align1"] == [tree] and told["explore1"] == told["baseline"] == [decoding]
    assert decoding.startswith("engine=hf: it is round; transformers' generate")
    for text, stages in ((eight, 1), (tree, 2), (decoding, 3)):
        assert shown.count(f"FALLBACK: {text}") == again.count(f"FALLBACK: {text}") == stages
    (metrics,) = (folder / "store").glob("explore-*/metrics.json")
    assert json.loads(metrics.read_text())["fallbacks"] == [decoding]


def test_until_stops_early_and_the_waves_are_reused(folder: Path) -> None:
    stages = ["data", "warmup", "explore", "align", "evaluate", "evaluate"]
    for until, count in (("warmup", 2), ("explore", 3), ("align", 4), ("null", 6)):
        run_here(f"until={until}")
        assert built(folder) == stages[:count]


def test_rounds_share_their_prefix(folder: Path) -> None:
    for rounds in (1, 2):
        run_here(f"rounds={rounds}")
    assert Counter(built(folder)) == {"data": 1, "warmup": 1, "explore": 2, "align": 2, "evaluate": 3}


def test_controls_run_over_the_same_pairs_and_prompts(folder: Path) -> None:
    out = run_here("experiment=demo", "select=perplexity", "select.keep_fraction=0.5")
    assert Counter(built(folder)) == {"data": 1, "warmup": 1, "select": 1, "explore": 1, "align": 4, "evaluate": 5}
    objectives = {row["choices"]["objective"] for row in rows(folder).values()}
    assert objectives == {"simpo", "dpo", "rft", "gold"}
    assert "simpo - gold" in out and "unseen tool" in out
    explored = next(row for row in rows(folder).values() if row["choices"]["objective"] == "simpo")["explored"]
    assert explored["explore1"]["samples"] == 6


def test_execution_groups_do_not_rebuild_anything(folder: Path) -> None:
    run_here()
    count = len(built(folder))
    run_here("engine.rows=7", "trainer.micro_tokens=64", "logger=csv", "trainer.checkpoint_every_steps=1")
    assert len(built(folder)) == count


def test_curriculum_rounds_and_an_early_start_without_warmup(folder: Path) -> None:
    run_here("warmup=curriculum", "warmup.replay=0.2")
    run_here("warmup=none", "objective=gold")
    assert len(rows(folder)) == 2


LONG = (
    "recipe.warmup.steps=120", "recipe.align.steps=60", "data.warmup_samples=3000",
    "data.explore_samples=72", "data.test_per_band=16", "engine.rows=3", "objective=dpo",
    "trainer.checkpoint_every_steps=5",
)  # fmt: skip

# Stage -> the file that shows that it is half way.
HALF_WAY = {"data": "drawn.jsonl", "warmup": "last.ckpt", "explore": "candidates.jsonl", "align": "last.ckpt",
            "evaluate": "rows.jsonl"}  # fmt: skip


QUIET = subprocess.DEVNULL
SECONDS = re.compile(rb',"seconds":([0-9.e-]+|{[^}]*})')


def kill_in(folder: Path, stage: str, kind: signal.Signals) -> str:
    """Runs the command and sends it a signal once the stage has left something behind; what it said."""
    deadline = time.monotonic() + 120
    with subprocess.Popen(command(*LONG), cwd=folder, stdout=QUIET, stderr=subprocess.PIPE, text=True) as process:
        while not list((folder / "store").glob(f"{stage}-*.part/{HALF_WAY[stage]}")):
            if time.monotonic() > deadline or process.poll() is not None:
                break
            time.sleep(0.005)
        process.send_signal(kind)
        said = process.communicate(timeout=20)[1]
    expected = -kind if kind == signal.SIGKILL else 128 + kind
    assert process.returncode == expected, f"{stage} was over before it could be killed: {said[-2000:]}"
    assert list((folder / "store").glob(f"{stage}-*.part")), f"nothing of {stage} was left by the kill"
    return said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ttpa(folder, *LONG)
    return folder


def artefacts(folder: Path) -> dict[str, bytes]:
    """File -> its bytes, of every finished stage, but for what a clock measured."""
    found = {}
    for done in folder.glob("store/*/done.json"):
        for name in json.loads(done.read_text())["files"].keys() - {"attempts.json", "provenance.json"}:
            file = done.parent / name
            found[f"{done.parent.name}/{name}"] = SECONDS.sub(b"", file.read_bytes())
    return found


def test_stopped_in_every_stage_the_same_command_ends_with_the_same_row(tmp_path: Path, uninterrupted: Path) -> None:
    """By SIGKILL; by SIGTERM and Ctrl-C, which are answered within seconds, with a resume point and free locks."""
    steps = {"warmup": " at step [0-9]+", "align": " at step [0-9]+"}
    kinds = {"data": signal.SIGKILL, "warmup": signal.SIGINT, "evaluate": signal.SIGTERM, "explore": signal.SIGINT,
             "align": signal.SIGTERM}  # fmt: skip
    for stage, kind in kinds.items():
        said = kill_in(tmp_path, stage, kind)
        expected = f"ttpa: interrupted{steps.get(stage, '')}; the same command goes on from there\n"
        assert kind == signal.SIGKILL or re.fullmatch(expected, said), said
        assert kind == signal.SIGKILL or not list(tmp_path.glob("store/*.lock"))
    ttpa(tmp_path, *LONG)
    assert rows(tmp_path) == rows(uninterrupted)
    assert Counter(built(tmp_path)) == Counter(built(uninterrupted))
    assert artefacts(tmp_path) == artefacts(uninterrupted)
    assert not [path for path in (tmp_path / "store").iterdir() if path.suffix in (".lock", ".part")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (("objective=dpo", "sampler=tps", "select=perplexity"), "data warmup select explore align evaluate"),
        (("-m", "objective=grpo", "recipe.online.steps=40"), "data warmup align evaluate"),
    ],
    ids=["pairs", "online"],
)
def test_killed_five_times_in_each_stage_a_store_is_that_of_an_undisturbed_run(
    words: Sequence[str], stages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random moments, with a resume point a step and TMPDIR on another file system. A finished stage is deleted
    first, which is the remedy for a damaged one.
    """
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    shorter = ("recipe.warmup.steps=30", "recipe.align.steps=30", "data.warmup_samples=1000")
    words = (*LONG[:-2], *shorter, "trainer.checkpoint_every_steps=1", *words)
    rng, killed, longest = random.Random(0), Counter[str](), dict.fromkeys(stages.split(), 2.0)

    def begun(stage: str, since: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_mtime > since for path in folder.glob(f"store/{stage}-*.lock"))
        return False

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for one in (whole, folder):
        one.mkdir()
    ttpa(whole, *words)
    while missing := [stage for stage in longest if killed[stage] < 5]:
        stage, began = rng.choice(missing), time.time()
        if not list(folder.glob(f"store/{stage}-*.part")):
            for path in folder.glob(f"store/{stage}-*"):
                shutil.rmtree(path, ignore_errors=True)  # a lock is a file
        with subprocess.Popen(command(*words), cwd=folder, stdout=QUIET, stderr=QUIET) as process:
            while process.poll() is None and not begun(stage, began):
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(longest[stage] * rng.random())
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        hit = process.returncode != 0 and bool(list(folder.glob(f"store/{stage}-*.part")))
        killed[stage] += hit
        longest[stage] *= 1.2 if hit else 0.6
    ttpa(folder, *words)
    print(dict(killed))
    assert rows(folder) == rows(whole) and artefacts(folder) == artefacts(whole)


def test_an_edited_file_is_other_data_and_a_moved_one_is_not(folder: Path) -> None:
    lines = gzip.decompress((DATA / "xlam.jsonl.gz").read_bytes()).splitlines(keepends=True)
    for name, count, times in (("a", 40, 1), ("b", 40, 1), ("b", 41, 2)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "rows.jsonl").write_bytes(b"".join(lines[:count]))
        run_here("data=xlam", "until=warmup", f"data.path={folder / name}/rows.jsonl", base=READ)
        assert built(folder) == ["data", "warmup"] * times


@pytest.mark.parametrize(("source", "sampler"), [("toolace", "group"), ("xlam", "tps")])
def test_real_rows_go_through_the_whole_graph(folder: Path, source: str, sampler: str) -> None:
    """Read or rejected with a reason, rendered, trained on, sampled, scored, paired, aligned and evaluated."""
    path = DATA / {"toolace": "toolace_dialogues.jsonl.gz", "xlam": "xlam.jsonl.gz"}[source]
    fractions = ("data.test_fraction=0.2", "select.limit=4", "eval.limit=4", "objective=dpo")
    run_here(f"data={source}", f"data.path={path}", f"sampler={sampler}", *fractions, base=READ)
    assert built(folder) == ["data", "warmup", "evaluate", "explore", "align", "evaluate"]
    (row,) = rows(folder).values()
    assert row["metrics"]["accuracy"]["n"] > 0 and row["explored"]["explore1"]["pairs"] > 0
    counts = json.loads(next(folder.glob("store/data-*/metrics.json")).read_text())
    read = len(gzip.decompress(path.read_bytes()).splitlines())
    rejected = next(folder.glob("store/data-*/rejected.jsonl")).read_text().splitlines()
    assert counts["rows_read"] == read and len(rejected) == counts["rows_rejected"] <= 0.02 * read


@pytest.mark.parametrize("cause", [["data.test_fraction=0"], ["eval.split=validation", "data.max_rows=1"]])
def test_an_empty_split_stops_before_training(folder: Path, cause: list[str]) -> None:
    split = "test" if len(cause) == 1 else "validation"
    with pytest.raises(DataError, match=rf"^eval.split={split}: .* Raise data.{split}_fraction or data.max_rows"):
        run_here("data=toolace", TOOLACE, *cause, base=READ)
    assert not list(folder.glob("**/warmup-*"))


def test_every_tool_name_is_in_the_token_ids_of_every_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each stage feeds its model is written down at the model's door and searched for the tools of its samples."""
    from ttpa.prompts import Renderer

    seen, stage, render = list[tuple[str, str, bool]](), "", Renderer.try_prompts

    def watched(self: Renderer, samples: Sequence[Sample]) -> list[list[int] | DataError]:
        prompts = render(self, samples)
        for sample, ids in zip(samples, prompts, strict=True):
            assert isinstance(ids, list)
            text = self.tokenizer.decode(ids)
            seen.extend((stage, tool.name, tool.name in text) for tool in sample.tools)
        return prompts

    monkeypatch.setattr(Renderer, "try_prompts", watched)
    stages = ("build_warmup", "build_select", "build_explore", "build_align", "build_evaluate")
    for name in stages:
        build = getattr(pipeline, name)

        def named(*args: Any, build: Any = build, name: str = name) -> Any:
            nonlocal stage
            stage = name
            return build(*args)

        monkeypatch.setattr(pipeline, name, named)
    run_here("data=toolace", TOOLACE, "data.test_fraction=0.2", "select=perplexity", "objective=simpo", base=READ)
    assert {name for name, _, _ in seen} == set(stages)
    assert [tool for _, tool, found in seen if not found] == []


def test_questions_too_long_for_the_model_are_wrong_and_told(folder: Path) -> None:
    """A benchmark's questions do not fit the small model's context: none is left out of the numbers."""
    shown = run_here("eval=bfcl", f"eval.path={DATA}/bfcl", "eval.limit=2", "model.max_tokens=400", "objective=rft")
    for stage in (folder / "store").glob("evaluate-*"):
        metrics = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["accuracy"]["n"] == 26 and 0 < metrics["too_long"] < 26
        results = [line for path in stage.glob("result/*/*/*.json") for line in path.read_text("utf-8").splitlines()]
        assert len(results) == len(list(read_jsonl(stage / "rows.jsonl"))) == 26
        assert f"{metrics['too_long']} prompts TOO LONG, counted as wrong" in shown


@pytest.mark.parametrize(
    ("overlay", "more", "branches"),
    [
        ("experiment=demo", (), ["dpo", "gold", "rft", "simpo"]),
        ("experiment=ttpa", (), ["dpo"]),
        ("experiment=itool", (TOOLACE, "data.test_fraction=0.2"), ["simpo"]),
        ("experiment=slm_grpo", ("sampler.n=3",), ["grpo", "rft"]),
    ],
)
def test_every_experiment_runs_to_its_end(
    folder: Path, overlay: str, more: tuple[str, ...], branches: list[str]
) -> None:
    run_here(overlay, *more, base=SMALLEST)
    found = [json.loads(path.read_text()) for path in (folder / "debug" / "results").glob("*.jsonl")]
    assert sorted(row["choices"]["objective"] for row in found) == branches
    assert all(row["metrics"]["accuracy"]["n"] > 0 for row in found)


ENTERED = """
import sys, threading
entered = set()
def note(frame, event, arg):
    name = frame.f_code.co_filename
    if event == "call" and "/ttpa/" in name and frame.f_code.co_name != "<module>":
        entered.add(name)
threading.setprofile(note)
sys.setprofile(note)
sys.argv = ["ttpa", "debug=smoke"]
from ttpa import cli
try:
    cli.main()
finally:
    sys.setprofile(None)
    print("\\n".join(["entered:", *sorted(entered)]))
"""


def test_the_smoke_run_needs_nothing_and_enters_at_most_45_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENTERED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    entered = done.stdout.partition("entered:\n")[2].splitlines()
    assert 20 < len(entered) <= 45, "\n".join(entered)
    assert {path.name for path in tmp_path.iterdir()} == {"debug"}


def test_the_smoke_run_of_a_sweep_trains_on_pairs_and_online(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ttpa.cli", "-m", "objective=dpo,simpo,grpo", *SMALLEST]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "debug" / "results").glob("*.jsonl"))) == 3
