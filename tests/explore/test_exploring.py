"""The explore stage on a small policy that has half learned its task: what it writes, always the same."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import open_dict

from tests.options import made
from ttpa.calls.syntaxes import get_syntax
from ttpa.explore.pairs import make_pairs, pair_siblings
from ttpa.explore.sampler import SiblingPair
from ttpa.io import dumps, read_jsonl, write_jsonl
from ttpa.policy.logprobs import token_logps
from ttpa.policy.models import TinyModel
from ttpa.policy.policy import Policy, create_policy, load_policy
from ttpa.policy.tree import TokenRow
from ttpa.prompts import compact_segments
from ttpa.records import Candidate, Message, Pair, Sample, Score
from ttpa.run import config
from ttpa.run.parts import Parts, build_parts
from ttpa.run.stages import decoding
from ttpa.run.stages.decoding import build_explore

ROOM = 18
"""Enough for all targets but the longest."""
ESM = made("scorer", "esm")
SMALL = (f"recipe.max_new_tokens={ROOM}", "trainer.threads=1", "logger=none", "sampler.n=4")
CASES = {
    "group, verified": ("sampler=group", "sampler.top_p=0.9", "pairs=verified", *SMALL),
    "tps, released": ("sampler=tps", "sampler.delta=0.6", "pairs=released", *SMALL),
    "mcts, siblings": ("sampler=mcts", "sampler.width=4", "sampler.rounds=3", "pairs=siblings", *SMALL[:-1]),
}


def parts_of(*overrides: str) -> Parts:
    """As a run has them, from the real configuration."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.choices = {g: name for g, name in cfg.hydra.runtime.choices.items() if g in (*config.IDENTITY, "engine")}
        del cfg.hydra
    return build_parts(cfg)


@dataclass(frozen=True)
class World:
    """A policy's folder, a data folder, and the samples in it by id."""

    policy: Path
    data: Path
    samples: Mapping[str, Sample]
    prompts: Mapping[str, list[int]]


def taught(samples: Sequence[Sample]) -> Policy:
    """Fifty steps: most answers are calls, some are right."""
    spec = TinyModel(hidden=32, layers=1, heads=4, feed_forward=64, vocab=340, max_tokens=256, dtype="float32",
                     syntax="python_compact", template="compact")  # fmt: skip
    syntax = get_syntax(spec.syntax)
    targets = [syntax.print(sample.target) if sample.target else sample.target_text or "" for sample in samples]
    texts = [text for sample in samples for _, text in compact_segments(sample, syntax)]
    policy = create_policy(spec, [*texts, *targets], seed=0)
    renderer = policy.renderer
    rows = [TokenRow(p, a) for p, a in zip(renderer.prompts(samples), renderer.answers(samples), strict=True)]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for _ in range(45):
        optimizer.zero_grad()
        (-token_logps(policy.model, rows, pad_id=renderer.pad_id).logps_N.mean()).backward()
        optimizer.step()
    return policy


@pytest.fixture(scope="module")
def world(toy_samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory) -> World:
    """The toy samples, each also under another id with the same prompt, and once more with other words before it."""
    folder = tmp_path_factory.mktemp("world")
    policy = taught(toy_samples)
    policy.save(folder / "policy")
    polite = Message(role="system", content="Be brief.")
    samples = [*toy_samples, replace(toy_samples[1], id=f"again-{toy_samples[1].id}")]
    samples += [replace(s, id=f"brief-{s.id}", messages=(polite, *s.messages)) for s in toy_samples[:6:5]]
    data = folder / "data"
    data.mkdir()
    write_jsonl(data / "explore.jsonl", samples)
    (data / "splits.json").write_text(dumps({"explore": "explore.jsonl"}))
    prompts = dict(zip((s.id for s in samples), policy.renderer.prompts(samples), strict=True))
    return World(folder / "policy", data, {sample.id: sample for sample in samples}, prompts)


@dataclass
class Explored:
    folder: Path
    metrics: dict[str, Any]

    @property
    def pairs(self) -> bytes:
        return (self.folder / "pairs.jsonl").read_bytes()

    def rows(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.folder / "candidates.jsonl"))


def quiet(*news: object) -> None:
    pass


def explore(world: World, folder: Path, parts: Parts, **named: Any) -> Explored:
    folder.mkdir(exist_ok=True)
    given = {"select": None, "round_number": 1, "progress": quiet, **named}
    return Explored(folder, build_explore(parts, world.policy, world.data, workdir=folder, **given))


@pytest.fixture(scope="module")
def explored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Explored]:
    """What eight rows at a time give, computed once a case."""

    @cache
    def of(case: str) -> Explored:
        return explore(world, tmp_path_factory.mktemp("explored"), parts_of(*CASES[case], "engine.rows=8"))

    return of


def untimed(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: {key: value for key, value in row.items() if key != "seconds"} for row in rows}


# --- always the same -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray = pytest.importorskip("ray")
        quietly = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, **quietly)
        yield
        ray.shutdown()


@pytest.mark.slow  # every process that Ray starts loads torch anew
def test_the_same_waves_give_the_same_bytes_on_a_ray_cluster(
    cluster: None, world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    """Each of two workers loads the policy and takes waves of two samples; lines come in another order."""
    spread = ("executor=ray", "executor.workers=2", "engine.rows=8")
    other = explore(world, tmp_path, parts_of(*CASES["mcts, siblings"], *spread))
    assert other.pairs == explored("mcts, siblings").pairs and len(other.pairs) > 0
    assert untimed(other.rows()) == untimed(explored("mcts, siblings").rows())


@pytest.mark.parametrize("case", ["tps, released", "mcts, siblings"])
def test_a_stage_that_was_stopped_goes_on_where_it_was_and_ends_with_the_same_bytes(
    case: str, world: World, explored: Callable[[str], Explored], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines missing in the middle and a torn last one: the waves of these samples are computed again."""
    whole = explored(case)
    lines = (whole.folder / "candidates.jsonl").read_text().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if number % 4 != 1]
    (tmp_path / "candidates.jsonl").write_text("".join(kept[:-1]) + kept[-1][:40])
    again = explore(world, tmp_path, parts_of(*CASES[case], "engine.rows=8"))
    assert again.pairs == whole.pairs and again.metrics == whole.metrics
    assert untimed(again.rows()) == untimed(whole.rows())
    assert (tmp_path / "candidates.jsonl").read_text().startswith("".join(kept[:-1]))
    monkeypatch.setattr(
        decoding, "_Explorer", lambda *given: pytest.fail("computed")
    )  # nothing is left to do: nothing is loaded
    assert explore(world, tmp_path, parts_of(*CASES[case], "engine.rows=8")).pairs == whole.pairs


def test_other_waves_give_the_same_answers_up_to_rounding(
    world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    other = explore(world, tmp_path, parts_of(*CASES["tps, released"], "engine.rows=32"))
    before = {row["id"]: row for row in explored("tps, released").rows()}
    answers = [
        (one, two)
        for row in other.rows()
        for one, two in zip(row["candidates"], before[row["id"]]["candidates"], strict=True)
    ]
    same = [(one["logps"], two["logps"]) for one, two in answers if one["token_ids"] == two["token_ids"]]
    assert len(same) >= 0.9 * len(answers)
    assert all(one == pytest.approx(two, abs=2e-5) for one, two in same)


def test_seed_and_round_change_what_is_drawn(world: World, explored: Callable[[str], Explored], tmp_path: Path) -> None:
    drawn = [explored("group, verified")]
    for name, overrides, number in (("seed", ("seed=1",), 1), ("round", (), 2)):
        parts = parts_of(*CASES["group, verified"], "engine.rows=32", *overrides)
        drawn.append(explore(world, tmp_path / name, parts, round_number=number))
    assert len({tuple(c["text"] for row in found.rows() for c in row["candidates"]) for found in drawn}) == 3


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_rows_hold_the_answers_as_they_score_and_pair(
    case: str, world: World, explored: Callable[[str], Explored]
) -> None:
    parts, renderer = parts_of(*CASES[case]), load_policy(world.policy).renderer
    rows = explored(case).rows()
    assert {row["id"] for row in rows} == world.samples.keys()
    for row in rows:
        sample = world.samples[row["id"]]
        candidates = [Candidate.from_json(one) for one in row["candidates"]]
        scores = [Score.from_json(one) for one in row["scores"]]
        assert [one.index for one in candidates] == list(range(len(candidates)))
        if "mcts" not in case:
            assert len(candidates) == 4 and row["tree"] is None
        for one, score in zip(candidates, scores, strict=True):
            fresh = renderer.candidate(sample, one.index, one.token_ids)
            assert (one.text, one.calls, one.error) == (fresh.text, fresh.calls, fresh.error)
            assert score == parts.scorer(sample, one) and len(one.logps) == len(one.token_ids) <= ROOM
            assert one.finish == ("stop" if one.token_ids[-1] in renderer.stop_ids else "length")
        drawn = sum(len(one.token_ids) for one in candidates)
        assert row["counts"]["generated"] == drawn or "mcts" in case  # a search continues answers, and meets some again
        (gold,) = renderer.gold([sample])
        pairs = [Pair.from_json(one) for one in row["pairs"]]
        if parts.pairs.between == "answers":
            expected = make_pairs(sample, list(zip(candidates, scores, strict=True)), gold, parts.pairs)
        else:
            found = [SiblingPair(chosen=p.chosen.index, rejected=p.rejected.index, provenance={}) for p in pairs]
            expected = pair_siblings(sample, list(zip(candidates, scores, strict=True)), found, parts.pairs)
        assert [(p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in pairs] == [
            (p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in expected
        ]


@pytest.mark.parametrize("case", CASES)
def test_metrics_count_what_was_found(case: str, explored: Callable[[str], Explored]) -> None:
    rows, metrics = explored(case).rows(), explored(case).metrics
    right = [[score["exact"] for score in row["scores"]] for row in rows]
    pairs = [json.loads(line) for line in explored(case).pairs.splitlines()]
    assert pairs == [pair for row in sorted(rows, key=lambda row: row["id"]) for pair in row["pairs"]]
    assert metrics["samples"] == len(rows) == 9 and metrics["pairs"] == len(pairs) > 0
    assert metrics["candidates"] == sum(map(len, right))
    assert metrics["pairable_share"] == round(sum(bool(row["pairs"]) for row in rows) / 9, 4) > 0
    assert metrics["any_right_share"] == round(sum(map(any, right)) / 9, 4)
    assert metrics["right_and_wrong_share"] == round(sum(any(r) and not all(r) for r in right) / 9, 4)
    assert metrics["right_and_wrong_share"] > 0 or "mcts" in case
    assert metrics["tokens"] == sum(row["counts"]["generated"] for row in rows)
    assert metrics["too_long"] == metrics["failed"] == 0


@pytest.mark.parametrize("case", CASES)
def test_recorded_probabilities_are_the_policys(case: str, world: World, explored: Callable[[str], Explored]) -> None:
    """Of the target too, which nobody drew. Each answer is computed again in a padded forward by itself."""
    policy, met = load_policy(world.policy), 0
    for row in read_jsonl(explored(case).folder / "pairs.jsonl"):
        pair = Pair.from_json(row)
        parting = pair.provenance["parting"]
        assert parting["position"] == pair.branch
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            padded = TokenRow(world.prompts[pair.sample_id], side.token_ids)
            with torch.no_grad():
                logps = token_logps(policy.model, [padded], pad_id=policy.renderer.pad_id).logps_N.tolist()
            assert side.logps == pytest.approx(logps, abs=2e-5)
            if parting[name] is not None:
                assert parting[name]["probability"] == pytest.approx(math.exp(logps[pair.branch]), abs=2e-5)
            for at, options in side.branches:
                assert dict(options)[side.token_ids[at]] == pytest.approx(math.exp(logps[at]), abs=2e-5)
                met += 1
    assert met > 20 or "tps" not in case


# --- failures ----------------------------------------------------------------------------------------------------


def fails(sample: Sample, candidate: Candidate) -> Score:
    """A scorer that cannot score one of the samples."""
    if sample.id == "again-toy-1":
        raise ZeroDivisionError(f"no score for {sample.id}")
    return ESM(sample, candidate)


def test_a_sample_that_cannot_be_scored_stops_no_other(
    world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    """The others of its wave are computed one by one, so up to rounding."""
    whole = explored("tps, released")
    found = explore(world, tmp_path, replace(parts_of(*CASES["tps, released"], "engine.rows=8"), scorer=fails))
    assert found.metrics["failed"] == 1 and found.metrics["samples"] == 8
    (error,) = read_jsonl(tmp_path / "errors.jsonl")
    assert error["id"] == "again-toy-1" and error["error"] == "ZeroDivisionError: no score for again-toy-1"
    assert "fails" in error["traceback"] and error["attempts"] == 1
    assert {row["id"] for row in found.rows()} == {row["id"] for row in whole.rows()} - {"again-toy-1"}
    # Tried again, and now it works.
    healed = explore(world, tmp_path, parts_of(*CASES["tps, released"], "engine.rows=8"))
    assert healed.metrics["samples"] == 9 and healed.metrics["failed"] == 0
    assert not (tmp_path / "errors.jsonl").exists()


def test_samples_that_do_not_fit_are_left_out_and_counted(world: World, tmp_path: Path) -> None:
    longest = max(map(len, world.prompts.values()))
    room = 256 - longest + 1
    parts = parts_of(*CASES["group, verified"], "sampler.n=2", f"sampler.max_new_tokens={room}", "engine.rows=32")
    found = explore(world, tmp_path, parts)
    left = [name for name, prompt in world.prompts.items() if len(prompt) + room <= 256]
    assert found.metrics["too_long"] == len(world.prompts) - len(left) > 0
    assert {row["id"] for row in found.rows()} == set(left)
