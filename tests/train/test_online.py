"""Objectives that draw answers while they train, through the whole graph on a model of a few thousand weights."""

import csv
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.run.test_pipeline import SMALL, built, composed_here, rows, run_here
from tests.train import plain
from tests.train.plain import furthest
from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, DataError
from ttpa.explore.scorers.esm import ESM
from ttpa.policy.decode import HFEngine
from ttpa.records import Score
from ttpa.run import pipeline
from ttpa.run.parts import build_parts
from ttpa.run.stages import online
from ttpa.run.stages.online import _refresh, _steps, replay
from ttpa.train.grpo import TABLE, Answer, Group, Round, read_rounds

# A model that ends some of its answers by itself, though none is right: what length costs tells them apart.
TRAINED = (
    "recipe.warmup.steps=150", "model.hidden=32", "model.feed_forward=64", "data.warmup_samples=400",
    "recipe.max_new_tokens=48", "recipe.online.steps=3", "recipe.online.batch_size=4", "sampler.n=4",
    "recipe.num_iterations=1", "trainer.answers_every_steps=2",
)  # fmt: skip
BY_LENGTH = "objective.overlong=1.0"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with data and warm-up, of which every test gets a copy."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_here(*TRAINED, "until=warmup")
    assert built(folder) == ["data", "warmup"]
    return folder


@pytest.fixture
def folder(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(warm / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def aligned(folder: Path, *overrides: str) -> Path:
    """Trains to the end of the align stage, which is the last that was built, over the warm-up that is there."""
    run_here(*TRAINED, "until=align", *overrides)
    assert built(folder)[:2] == ["data", "warmup"] and built(folder)[-1] == "align"
    return max((folder / "store").glob("align-*"), key=lambda path: (path / "done.json").stat().st_mtime_ns)


def weights(policy: Path) -> dict[str, Tensor]:
    (file,) = policy.rglob("*.safetensors")
    return load_file(file)


def start(folder: Path) -> dict[str, Tensor]:
    (warmup,) = (folder / "store").glob("warmup-*")
    return weights(warmup / "policy")


def test_slm_grpo_runs_beside_its_control_and_a_second_run_builds_nothing(folder: Path) -> None:
    out = run_here(*TRAINED, "experiment=slm_grpo")
    assert Counter(built(folder)) == {"data": 1, "warmup": 1, "explore": 1, "align": 2, "evaluate": 3}
    first = rows(folder)
    assert {row["choices"]["objective"] for row in first.values()} == {"grpo", "rft"}
    assert {row["choices"]["scorer"] for row in first.values()} == {"slm_json"} and "grpo - rft" in out
    explored = {row["choices"]["objective"]: set(row["explored"]) for row in first.values()}
    assert explored == {"grpo": set(), "rft": {"explore1"}}
    run_here(*TRAINED, "experiment=slm_grpo")
    assert len(built(folder)) == 8 and rows(folder) == first


@pytest.mark.parametrize(
    ("objective", "scorer", "bounds", "rounds"),
    [
        ("grpo", "esm", (0, 1), 3), ("dr_grpo", "ast", (0, 1), 3), ("dapo", "slm_json", (0, 1), 3),
        ("cispo", "toolrl", (-3, 4), 3), ("sapo", "weighted", (0, 1), 3), ("gspo", "gdpo", (0, 1), 1),
    ],
)  # fmt: skip
def test_every_objective_and_scorer_learns_from_what_is_drawn(
    folder: Path, objective: str, scorer: str, bounds: tuple[float, float], rounds: int
) -> None:
    """Three steps of four prompts; GSPO draws for four steps at once. What was drawn and learned from is on disk."""
    gdpo = ("scorer=weighted", "scorer.normalise=normalise_then_sum")
    stage = aligned(folder, f"objective={objective}", BY_LENGTH, *(gdpo if scorer == "gdpo" else [f"scorer={scorer}"]))
    assert furthest(weights(stage / "policy"), start(folder)) > 1e-4
    lines = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["number"] for line in lines] == list(range(rounds))
    groups = [group for line in lines for group in line["groups"]]
    assert all(set(group) == set(Group.__slots__) and len(group["answers"]) == 4 for group in groups)
    assert all(set(answer) == set(Answer.__slots__) for group in groups for answer in group["answers"])
    assert all(set(line) == set(Round.__slots__) and len(line["groups"]) * rounds in (12, 16) for line in lines)
    kept = read_rounds(stage / "rollouts.jsonl")
    answers = [answer for found in kept for answer in found.answers]
    assert {answer.finish for answer in answers} == {"stop", "length"} and any(one.advantage for one in answers)
    for answer in answers:
        assert (answer.old_logps is not None) == (objective == "gspo") and answer.ref_logps is None
        assert len(answer.logps) == len(answer.token_ids)
        assert bounds[0] <= answer.score <= bounds[1] and not answer.exact and set(answer.errors) <= set(LABELS)
        length = -1.0 if answer.finish == "length" else -len(answer.token_ids) / 48
        assert answer.reward == pytest.approx(answer.score + length)
    with (stage / "answers.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == TABLE and Counter(row["step"] for row in table) == {"0": 8, "2": 8}
    metrics = json.loads((stage / "metrics.json").read_text())
    assert metrics["steps"] == 3 and {f"errors/{label}" for label in LABELS} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values()) and not any("time" in name for name in metrics)
    if scorer in ("weighted", "gdpo"):
        advantages = [answer.advantage for answer in kept[0].answers]
        deviation = math.sqrt(sum(value**2 for value in advantages) / (len(advantages) - 1))
        assert (deviation == pytest.approx(1, abs=1e-3)) == (scorer == "gdpo"), "only GDPO normalises over the batch"
    assert not {"last.ckpt", "served"} & {path.name for path in stage.iterdir()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_engine_is_closed_when_training_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(HFEngine, "close", lambda self: closed.append(self))
    if fails:
        monkeypatch.setattr(online, "fit", lambda *given, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        aligned(folder, "objective=grpo", BY_LENGTH)
    assert len(closed) == 1


def test_a_prompt_that_comes_again_is_answered_anew(folder: Path) -> None:
    """Two passes over twelve prompts with weights that stand still."""
    stage = aligned(folder, "objective=grpo", BY_LENGTH, "recipe.online.steps=6", "recipe.online.lr=1e-12")
    groups = [group for found in read_rounds(stage / "rollouts.jsonl") for group in found.groups]
    assert [group.place for group in groups] == list(range(24))
    first, second = ({group.sample_id: group for group in groups[start : start + 12]} for start in (0, 12))
    assert len(first) == len(second) == 12 and first.keys() == second.keys() and list(first) != list(second)
    for name, group in first.items():
        assert group.prompt == second[name].prompt
        assert [one.token_ids for one in group.answers] != [one.token_ids for one in second[name].answers]


def test_a_finished_stage_is_done_again_from_its_rollouts_alone(folder: Path) -> None:
    """With an engine and a scorer that may not be asked; fewer steps, other weights.

    The engine drew with the weights of each step: its log-probs are those of the training forward.
    """
    words = (
        "objective=grpo", BY_LENGTH, "objective.beta=0.04", "recipe.online.steps=4", "recipe.online.lr=1e-2",
        "objective.num_iterations=2",
    )  # fmt: skip
    stage = aligned(folder, *words)
    (warmup,), (data,) = (folder / "store").glob("warmup-*"), (folder / "store").glob("data-*")
    parts = replace(build_parts(composed_here(*TRAINED, *words, "until=align")), engine=pytest.fail, scorer=pytest.fail)
    given = partial(replay, parts, warmup / "policy", data, rollouts=stage / "rollouts.jsonl")
    done = {steps: given(folder / f"again{steps}", steps=steps) for steps in (4, 2)}
    metrics = json.loads((stage / "metrics.json").read_text())
    assert done[4]["loss"] == pytest.approx(metrics["loss"], abs=1e-7) and done[4]["steps"] == 4
    assert furthest(weights(folder / "again4" / "policy"), weights(stage / "policy")) < 1e-6
    assert furthest(weights(folder / "again2" / "policy"), weights(stage / "policy")) > 1e-4
    for found in read_rounds(stage / "rollouts.jsonl"):
        for answer in found.answers:
            assert answer.logps == pytest.approx(answer.old_logps, abs=1e-4)
    with pytest.raises(DataError, match="round 2 of step 4 was not kept"):
        given(folder / "more", steps=6)


@pytest.mark.parametrize(
    ("steps", "epochs", "loss", "expected"),
    [
        (None, 1.0, {}, 3), (None, 1.0, {"minibatches": 4}, 4), (None, 1.0, {"num_iterations": 2}, 6),
        (None, 0.5, {}, 2), (None, 0.01, {}, 1), (7, None, {}, 7),
    ],
)  # fmt: skip
def test_epochs_are_passes_over_the_prompts(steps: Any, epochs: Any, loss: dict[str, int], expected: int) -> None:
    """Of 12 prompts, 4 a step; with four minibatches a round takes 16. A started round is finished."""
    assert _steps(plain.align_recipe(steps=steps, epochs=epochs), plain.grpo(**loss), 12) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.top_p=0.9"], r"objective=grpo .* sampler\.top_p=0\.9 gives others\. Use .*sampler\.top_p=1\."),
        (["sampler.n=1"], r"objective=grpo compares the answers of a group, and sampler\.n=1\. Use sampler\.n=8\."),
        (["rounds=2"], r"objective=grpo draws its own answers in .* rounds=2 must be 1\. Use rounds=1, or obj"),
        (["engine=vllm", "sampler.temperature=0.7"], r"sampler\.temperature=0\.7: .* Use sampler\.temperature=1 or en"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_in_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(pipeline, "Store", lambda *_, **__: pytest.fail("work began"))
    base = [word for word in SMALL if not word.startswith(("sampler", "pairs"))]
    with pytest.raises(ConfigError, match=rf"^{message}") as refused:
        run_here("objective=grpo", *overrides, base=base)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_another_engine_without_an_adapter_to_hand_over_is_refused(folder: Path) -> None:
    engine, policy = SimpleNamespace(use_adapter=pytest.fail), SimpleNamespace(model=object())
    with pytest.raises(ConfigError, match=r"model\.lora is null\. Set model\.lora, or use engine=hf\.$"):
        _refresh(engine, policy, folder)  # type: ignore[arg-type]


def test_a_scorer_that_gives_no_number_is_named_with_the_sample(folder: Path) -> None:
    """The stage is left half-built; with the scorer mended the same command ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ESM, "__call__", lambda *_: Score(value=math.nan, exact=False))
        with pytest.raises(DataError, match=r"^sample \S+: ESM gives nan at step 0, which is no finite") as refused:
            aligned(folder, "objective=grpo", BY_LENGTH)
    message = str(refused.value)
    assert "\n" not in message and message.endswith("Mend the scorer, or its bounds.")
    (split,) = (folder / "store").glob("data-*/explore.jsonl")
    known = {json.loads(line)["id"] for line in split.read_text(encoding="utf-8").splitlines()}
    assert message.split(":")[0].removeprefix("sample ") in known
    assert built(folder) == ["data", "warmup"]
    stage = aligned(folder, "objective=grpo", BY_LENGTH)
    assert len(read_rounds(stage / "rollouts.jsonl")) == 3


LONG = (
    *TRAINED, "objective=grpo", BY_LENGTH, "recipe.online.steps=8", "objective.num_iterations=2", "until=align",
    "trainer.checkpoint_every_steps=1",
)  # fmt: skip
BASE = [word for word in SMALL if not word.startswith("recipe.align")]  # the command line refuses what nobody reads


def stopped(folder: Path, least: int, kind: signal.Signals) -> None:
    """Runs the command and sends it a signal once that many rounds are on disk, and a moment later. But for SIGKILL the
    only resume point is that of the signal.
    """
    often = [] if kind == signal.SIGKILL else ["trainer.checkpoint_every_steps=1000"]
    command = [sys.executable, "-m", "ttpa.cli", *BASE, *LONG, *often]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            files = list((folder / "store").glob("align-*.part/rollouts.jsonl"))
            if files and files[0].read_bytes().count(b"\n") >= least:
                time.sleep(random.random() / 20)
                break
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            process.send_signal(kind)
        _, said = process.communicate(timeout=20)
    expected = -kind if kind == signal.SIGKILL else 128 + kind
    assert process.returncode == expected, f"over before it could be stopped: {said[-2000:]}"
    (part,) = (folder / "store").glob("align-*.part")
    assert (part / "rollouts.jsonl").exists()
    if kind != signal.SIGKILL:
        (step,) = re.findall(r"^ttpa: interrupted at step (\d+); the same command goes on from there\n$", said)
        assert torch.load(part / "last.ckpt", weights_only=True)["global_step"] == int(step) > 0


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_stopped_while_it_aligns_the_same_command_ends_with_the_same_numbers(
    kind: signal.Signals, folder: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At a random moment of the first rounds of four; compared with a run that nothing interrupted."""
    least, other = random.randint(1, 3), tmp_path_factory.mktemp("uninterrupted")
    stopped(folder, least, kind)
    run_here(*LONG, base=BASE)
    shutil.copytree(warm / "store", other / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(other)
        run_here(*LONG, base=BASE)
    assert Counter(built(folder)) == Counter(built(other)) == dict.fromkeys(("data", "warmup", "align"), 1)
    for name in ("rollouts.jsonl", "metrics.json", "answers.csv", "policy/**/*.safetensors"):
        (mine,), (whole,) = (list(place.glob(f"store/align-*/{name}")) for place in (folder, other))
        found, expected = (re.sub(rb'"seconds":{[^}]*}', b"", file.read_bytes()) for file in (mine, whole))
        assert found == expected, (mine, least)
        assert name != "rollouts.jsonl" or found.count(b"\n") == 4
    assert [path.name for path in (folder / "store").iterdir() if path.suffix in (".lock", ".part")] == []
