"""The explore stage on a small policy that has half learned its task: what it writes, always the same."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import open_dict

from ttpa.calls.syntaxes import get_syntax
from ttpa.explore.pairs import make_pairs, pair_siblings
from ttpa.explore.scorers import ESM
from ttpa.io import dumps, read_jsonl, write_jsonl
from ttpa.policy.logprobs import token_logps
from ttpa.policy.models import TinyModel
from ttpa.policy.policy import Policy, create_policy, load_policy
from ttpa.policy.tree import TokenRow
from ttpa.prompts import compact_segments
from ttpa.records import Candidate, Message, Pair, Sample, Score
from ttpa.run import config, pipeline
from ttpa.run.stages import exploring
from ttpa.run.stages.exploring import build_explore
from ttpa.run.stages.parts import Parts

ROOM = 18
"""Enough for all targets but the longest."""
SMALL = (f"recipe.max_new_tokens={ROOM}", "trainer.threads=1", "logger=none", "sampler.n=4")
CASES = {
    "group, released": ("sampler=group", "pairs=released", *SMALL),
    "tps, released": ("sampler=tps", "sampler.delta=0.6", "pairs=released", *SMALL),
    "tps renormalised, verified": (
        "sampler=tps", "sampler.draw=renormalised", "sampler.delta=0.9", "pairs=verified", "pairs.rejected=all", *SMALL,
    ),
    "group, verified": ("sampler=group", "sampler.top_p=0.9", "pairs=verified", *SMALL),
    "mcts, siblings": ("sampler=mcts", "sampler.width=4", "sampler.rounds=3", "pairs=siblings", *SMALL[:-1]),
}  # fmt: skip


def parts_of(*overrides: str) -> Parts:
    """As a run has them, from the real configuration."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.choices = {g: name for g, name in cfg.hydra.runtime.choices.items() if g in (*config.IDENTITY, "engine")}
        del cfg.hydra
    return pipeline.build_parts(cfg)


@dataclass(frozen=True)
class World:
    """A policy's folder, a data folder, and the samples in it by id."""

    policy: Path
    data: Path
    samples: Mapping[str, Sample]
    prompts: Mapping[str, list[int]]


def taught(samples: Sequence[Sample]) -> Policy:
    """Fifty steps: most answers are calls, some are right."""
    spec = TinyModel(hidden=32, layers=1, heads=4, feed_forward=64, vocab=340, max_tokens=256)
    syntax = get_syntax(spec.syntax)
    targets = [syntax.print(sample.target) if sample.target else sample.target_text or "" for sample in samples]
    policy = create_policy(
        spec, [*(text for s in samples for _, text in compact_segments(s, syntax)), *targets], seed=0
    )
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
    samples = [
        *toy_samples,
        *(replace(sample, id=f"again-{sample.id}") for sample in toy_samples[1:2]),
        *(replace(s, id=f"brief-{s.id}", messages=(polite, *s.messages)) for s in (toy_samples[0], toy_samples[5])),
    ]
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


def refuse(*given: object) -> Any:
    raise AssertionError("nothing was to be computed")


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


def without_rounding(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of candidates without what a clock or the batch decides."""
    kept = {key: value for key, value in row.items() if key not in ("seconds", "tree")}
    tokens = [{**c, "logps": len(c["logps"]), "branches": _tokens(c["branches"])} for c in row["candidates"]]
    return {**kept, "candidates": tokens}


def _tokens(branches: Sequence[Any]) -> list[Any]:
    return [[at, sorted(token for token, _ in options)] for at, options in branches]


# --- always the same -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 32])
def test_pairs_are_the_same_to_the_byte_whatever_the_number_of_rows(
    case: str, rows: int, world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    other = explore(world, tmp_path, parts_of(*CASES[case], f"engine.rows={rows}"))
    assert other.pairs == explored(case).pairs and len(other.pairs) > 0
    assert other.metrics == explored(case).metrics
    by_id = {row["id"]: without_rounding(row) for row in explored(case).rows()}
    assert {row["id"]: without_rounding(row) for row in other.rows()} == by_id


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


@pytest.mark.parametrize(
    ("workers", "case"),
    [
        (2, "mcts, siblings"),
        # Every process that Ray starts loads torch anew.
        pytest.param(1, "mcts, siblings", marks=pytest.mark.slow),
        pytest.param(1, "tps, released", marks=pytest.mark.slow),
        pytest.param(2, "tps, released", marks=pytest.mark.slow),
    ],
)
def test_pairs_are_the_same_to_the_byte_on_a_ray_cluster(
    workers: int, case: str, cluster: None, world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    """Each worker loads the policy and takes waves of two samples; lines come in another order, pairs do not."""
    spread = ("executor=ray", f"executor.workers={workers}", "engine.rows=8")
    other = explore(world, tmp_path, parts_of(*CASES[case], *spread))
    assert other.pairs == explored(case).pairs and len(other.pairs) > 0
    by_id = {row["id"]: without_rounding(row) for row in explored(case).rows()}
    assert {row["id"]: without_rounding(row) for row in other.rows()} == by_id


@pytest.mark.parametrize("case", ["tps, released", "mcts, siblings"])
def test_a_stage_that_was_stopped_goes_on_where_it_was(
    case: str, world: World, explored: Callable[[str], Explored], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines missing in the middle and a torn last one: these samples alone are computed again."""
    whole = explored(case)
    lines = (whole.folder / "candidates.jsonl").read_text().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if number % 4 != 1]
    (tmp_path / "candidates.jsonl").write_text("".join(kept[:-1]) + kept[-1][:40])
    again = explore(world, tmp_path, parts_of(*CASES[case], "engine.rows=8"))
    assert again.pairs == whole.pairs and again.metrics == whole.metrics
    assert (tmp_path / "candidates.jsonl").read_text().startswith("".join(kept[:-1]))
    monkeypatch.setattr(exploring, "_Explorer", refuse)  # nothing is left to do: nothing is loaded
    assert explore(world, tmp_path, parts_of(*CASES[case], "engine.rows=8")).pairs == whole.pairs


def test_seed_and_round_change_what_is_drawn(world: World, explored: Callable[[str], Explored], tmp_path: Path) -> None:
    texts = {tuple(c["text"] for row in explored("group, released").rows() for c in row["candidates"])}
    for name, overrides, number in (("seed", ("seed=1",), 1), ("round", (), 2)):
        parts = parts_of(*CASES["group, released"], "engine.rows=32", *overrides)
        found = explore(world, tmp_path / name, parts, round_number=number)
        texts.add(tuple(c["text"] for row in found.rows() for c in row["candidates"]))
    assert len(texts) == 3


def test_two_samples_with_one_prompt_draw_for_themselves(explored: Callable[[str], Explored]) -> None:
    by_id = {row["id"]: [c["text"] for c in row["candidates"]] for row in explored("group, released").rows()}
    assert by_id["toy-1"] != by_id["again-toy-1"]
    assert len({row["seed"] for row in explored("group, released").rows()}) == len(by_id)


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_rows_hold_the_answers_as_they_score_and_pair(
    case: str, world: World, explored: Callable[[str], Explored]
) -> None:
    parts, renderer = parts_of(*CASES[case]), load_policy(world.policy).renderer
    found = explored(case)
    assert {row["id"] for row in found.rows()} == world.samples.keys()
    for row in found.rows():
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
            numbers = [(pair.chosen.index, pair.rejected.index, {}) for pair in pairs]
            expected = pair_siblings(sample, list(zip(candidates, scores, strict=True)), numbers, parts.pairs)
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


class Probabilities:
    """Of tokens under the policy, each answer in a padded forward by itself."""

    def __init__(self, world: World) -> None:
        self.policy = load_policy(world.policy)
        self.world = world

    def logps(self, sample_id: str, ids: Sequence[int]) -> list[float]:
        row = TokenRow(self.world.prompts[sample_id], ids)
        with torch.no_grad():
            return token_logps(self.policy.model, [row], pad_id=self.policy.renderer.pad_id).logps_N.tolist()


@pytest.mark.parametrize("case", CASES)
def test_every_pair_says_where_it_parts_and_how_probable_the_two_tokens_are(
    case: str, world: World, explored: Callable[[str], Explored]
) -> None:
    policy, met = Probabilities(world), 0
    for row in read_jsonl(explored(case).folder / "pairs.jsonl"):
        pair = Pair.from_json(row)
        parting, shared = pair.provenance["parting"], 0
        while pair.chosen.token_ids[shared : shared + 1] == pair.rejected.token_ids[shared : shared + 1] != ():
            shared += 1
        assert parting["position"] == pair.branch == shared
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            logps = policy.logps(pair.sample_id, side.token_ids)
            assert side.logps == pytest.approx(logps, abs=2e-5)
            if shared == len(side.token_ids):
                assert parting[name] is None
                continue
            end = pair.provenance.get("spans", {}).get(name, len(logps))
            assert shared < end <= len(logps)
            assert parting[name] == {
                "token": side.token_ids[shared],
                "probability": pytest.approx(math.exp(logps[shared]), abs=1e-5),
                "mean_span_logp": pytest.approx(sum(logps[shared:end]) / (end - shared), abs=2e-5),
            }
            met += 1
    assert met >= 4


@pytest.mark.parametrize("case", ["tps, released", "tps renormalised, verified"])
def test_the_choices_on_the_way_have_the_policys_probabilities(
    case: str, world: World, explored: Callable[[str], Explored]
) -> None:
    """In pairs, from a forward of the sample alone; in candidates, from the batch, up to its rounding."""
    policy, met = Probabilities(world), 0
    by_id = {row["id"]: row for row in explored(case).rows()}
    for row in read_jsonl(explored(case).folder / "pairs.jsonl"):
        pair = Pair.from_json(row)
        for side in (pair.chosen, pair.rejected):
            if side.index < 0:  # the target: nobody chose
                assert side.branches == ()
                continue
            recorded = Candidate.from_json(by_id[pair.sample_id]["candidates"][side.index])
            assert _tokens(side.branches) == _tokens(recorded.branches)
            for (at, options), (_, before) in zip(side.branches, recorded.branches, strict=True):
                assert side.token_ids[at] in dict(options)
                assert dict(options) == pytest.approx(dict(before), abs=1e-5)
                for token, probability in options:
                    logp = policy.logps(pair.sample_id, (*side.token_ids[:at], token))[at]
                    assert probability == pytest.approx(math.exp(logp), abs=1e-5)
                    met += 1
    assert met > 20


def test_the_order_in_which_an_engine_lists_nearly_equal_options_is_not_kept(
    world: World, explored: Callable[[str], Explored]
) -> None:
    policy = load_policy(world.policy)
    engine = parts_of(*CASES["tps, released"]).engine(policy=policy)
    pairs = [Pair.from_json(row) for row in read_jsonl(explored("tps, released").folder / "pairs.jsonl")]
    pair = next(pair for pair in pairs if pair.rejected.branches)
    turned = tuple((at, tuple(reversed(options))) for at, options in pair.rejected.branches)
    other = replace(pair, rejected=replace(pair.rejected, branches=turned))
    prompt = world.prompts[pair.sample_id]
    one, two = (exploring._with_probabilities(engine, prompt, [given])[0] for given in (pair, other))
    assert one == two


def test_an_engine_that_knows_no_probabilities_leaves_pairs_as_they_are(world: World) -> None:
    class Silent:
        def answer_logps(self, prompt: object, answers: object) -> None:
            return None

    sides = [Candidate(sample_id="s", index=i, text="", token_ids=(3, 4 + i)) for i in range(2)]
    score = Score(value=0.0, exact=False)
    pair = Pair(sample_id="s", chosen=sides[0], rejected=sides[1], chosen_score=score, rejected_score=score)
    assert exploring._with_probabilities(Silent(), [5], [pair]) == [pair]  # type: ignore[arg-type]
    assert exploring._with_probabilities(Silent(), [5], []) == []  # type: ignore[arg-type]


def test_an_answer_that_is_the_beginning_of_the_other_has_no_token_where_they_part(world: World) -> None:
    engine = parts_of(*CASES["group, released"]).engine(policy=load_policy(world.policy))
    long, short = (Candidate(sample_id="s", index=i, text="", token_ids=(30, 40, 50)[: 3 - i]) for i in range(2))
    score = Score(value=0.0, exact=False)
    for chosen, rejected in ((long, short), (short, long)):
        pair = Pair(sample_id="s", chosen=chosen, rejected=rejected, chosen_score=score, rejected_score=score)
        (made,) = exploring._with_probabilities(engine, world.prompts["toy-0"], [pair])
        parting = made.provenance["parting"]
        assert parting["position"] == 2
        assert parting["chosen" if chosen is short else "rejected"] is None
        assert parting["rejected" if chosen is short else "chosen"]["token"] == 50


# --- failures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fails:
    """Scores like ESM, but not the samples of some dialogue."""

    dialogue: str

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        if sample.id == self.dialogue:
            raise ZeroDivisionError(f"no score for {sample.id}")
        return ESM()(sample, candidate)


def test_a_sample_that_cannot_be_scored_stops_no_other(
    world: World, explored: Callable[[str], Explored], tmp_path: Path
) -> None:
    parts = replace(parts_of(*CASES["tps, released"], "engine.rows=32"), scorer=Fails("again-toy-1"))
    found = explore(world, tmp_path, parts)
    assert found.metrics["failed"] == 1 and found.metrics["samples"] == 8
    (error,) = read_jsonl(tmp_path / "errors.jsonl")
    assert error["id"] == "again-toy-1" and error["error"] == "ZeroDivisionError: no score for again-toy-1"
    assert "Fails" not in error["error"] and "__call__" in error["traceback"] and error["attempts"] == 1
    expected = [line for line in explored("tps, released").pairs.splitlines() if b'"again-toy-1"' not in line]
    assert found.pairs.splitlines() == expected
    # Tried again, and now it works.
    healed = explore(world, tmp_path, parts_of(*CASES["tps, released"], "engine.rows=32"))
    assert healed.metrics == explored("tps, released").metrics and healed.pairs == explored("tps, released").pairs
    assert not (tmp_path / "errors.jsonl").exists()


def test_samples_that_do_not_fit_are_left_out_and_counted(world: World, tmp_path: Path) -> None:
    longest = max(map(len, world.prompts.values()))
    room = 256 - longest + 1
    parts = parts_of(*CASES["group, released"], "sampler.n=1", f"sampler.max_new_tokens={room}", "engine.rows=32")
    found = explore(world, tmp_path, parts)
    left = [name for name, prompt in world.prompts.items() if len(prompt) + room <= 256]
    assert found.metrics["too_long"] == len(world.prompts) - len(left) > 0
    assert {row["id"] for row in found.rows()} == set(left)
