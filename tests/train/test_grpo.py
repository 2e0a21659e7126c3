"""GRPO's training loop on answers from a script: what a step computes, what a round keeps, how a killed run goes on."""

from __future__ import annotations

import csv
import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

from tests.train import plain
from tests.train.plain import grpo_loss
from tests.train.test_training import (
    HUGE,
    PAD,
    VOCAB,
    FakePolicy,
    KillAfter,
    Killed,
    adamw,
    furthest,
    plain_logps,
    run_training,
    small_policy,
    weights_of,
)
from ttpa.calls.six_errors import LABELS
from ttpa.policy.forward import Forward, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow
from ttpa.train.grpo import TABLE, GRPOModule
from ttpa.train.optim import build_optimizer
from ttpa.train.plan import Step
from ttpa.train.policy_gradient import GRPO
from ttpa.train.rollouts import Answer, Group, RolloutData, Round, read_rounds
from ttpa.train.settings import Optimisation
from ttpa.train.train import train

ANSWERS, LONGEST, SEED = 4, 6, 3
PROMPTS = tuple(
    tuple(random.Random(f"prompt {number}").randrange(2, VOCAB) for _ in range(5 + 3 * number)) for number in range(5)
)
FORWARDS: dict[str, Forward] = {"tree": tree_token_logps, "padded": token_logps}
Made = tuple[GRPOModule, RolloutData]


def group_of(number: int, place: int, flat: bool = False) -> Group:
    """Answers of 1 to 6 tokens, the last one cut off, of which the first is the beginning of the second."""
    rng = random.Random(f"answers {number} {place}")
    ids = [tuple(rng.randrange(2, VOCAB) for _ in range(rng.randint(1, LONGEST - 1))) for _ in range(ANSWERS - 1)]
    ids[1] = (*ids[0], *ids[1])[:LONGEST]
    ids.append(tuple(rng.randrange(2, VOCAB) for _ in range(LONGEST)))
    answers = []
    for k, tokens in enumerate(ids):
        score = 0.1 if flat else k / 4 + rng.random() / 5
        answers.append(
            Answer(
                token_ids=tokens,
                logps=tuple(-4 * rng.random() for _ in tokens),
                text=f'f(a={place})\n{k},"',
                finish="length" if k == ANSWERS - 1 else "stop",
                score=score,
                reward=score,
                exact=k == 1,
                detail={"name": score / 2, "args": rng.random()},
                errors=LABELS[:k],
            )
        )
    return Group(place=place, sample_id=f"s{number}", prompt=PROMPTS[number], answers=answers)


class Script:
    """Draws what a table says: the answers at a place of the stream are always the same. Notes what it is asked.

    Args:
        flat: Whether all answers at a place are worth the same.
        edit: Changes an answer.
    """

    def __init__(
        self, flat: Callable[[int], bool] = lambda place: False, edit: Callable[[Answer], Any] = lambda answer: None
    ) -> None:
        self.flat, self.edit = flat, edit
        self.asked: list[tuple[list[int], list[int], int]] = []

    def __call__(
        self, numbers: Sequence[int], places: Sequence[int], step: int
    ) -> tuple[list[Group], dict[str, float]]:
        self.asked.append((list(numbers), list(places), step))
        groups = [group_of(number, place, self.flat(place)) for number, place in zip(numbers, places, strict=True)]
        for answer in (answer for group in groups for answer in group.answers):
            self.edit(answer)
        return groups, {"generate": 0.25, "score": 0.5}


def grpo(**fields: Any) -> GRPO:
    return plain.grpo(**fields)


def made(
    loss: GRPO,
    *,
    script: Script | None = None,
    steps: int = 3,
    batch_size: int = 2,
    micro_tokens: int = 40,
    forward: str = "tree",
    file: Path | None = None,
    settings: Optimisation | None = None,
    policy: FakePolicy | None = None,
    **options: Any,
) -> Made:
    """A module over five prompts and its data; `options` are those of the module."""
    data = RolloutData(
        prompts=len(PROMPTS),
        draw=script or Script(),
        loss=loss,
        batch_size=batch_size,
        steps=steps,
        seed=SEED,
        micro_tokens=micro_tokens,
        trees=forward == "tree",
        file=file,
    )
    given: Any = policy or small_policy()
    chosen = settings or adamw(lr=1e-3)
    options = {"max_new_tokens": LONGEST, **options}
    return GRPOModule(given, chosen, (steps,), FORWARDS[forward], loss=loss, rollouts=data, **options), data


class Notes(pl.Callback):
    """What is logged of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def answers_of(data: RolloutData, step: Step) -> tuple[int, ...]:
    """Numbers within the round of the answers of a step."""
    assert data.round is not None
    places = {id(answer): k for k, answer in enumerate(data.round.answers)}
    return tuple(places[id(example.answer)] for micro in step.micros for example in micro)  # type: ignore[attr-defined]


def rows_of_round(found: Round) -> list[TokenRow]:
    return [TokenRow(group.prompt, answer.token_ids) for group in found.groups for answer in group.answers]


def gradients(module: GRPOModule) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.model.named_parameters()
        if p.requires_grad
    }
    module.zero_grad()
    return found


def begun(both: Made, number: int = 0) -> Round:
    """The round of a step, drawn and measured as training does."""
    module, data = both
    module.round = data.round_at(number, module._finish)
    return module.round


def step_by_hand(both: Made, number: int = 0) -> tuple[float, dict[str, Tensor], dict[str, float], tuple[int, ...]]:
    """Loss, gradients, metrics (means over rows, as the loop takes them) and rows of one step, without updating."""
    module, data = both
    step = data.step(begun(both, number), number)
    total, sums = 0.0, Counter[str]()
    for rows in step.micros:
        loss, metrics = module.micro_loss(rows, step)
        loss.backward()
        total += float(loss.detach())
        for name, value in metrics.items():
            sums[name] += float(value) * len(rows) / step.examples
    return total, gradients(module), dict(sums), answers_of(data, step)


def moved(module: GRPOModule, by: float = 0.05) -> None:
    """Other weights than those that drew the round."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.model.parameters():
            p += by * torch.randn(p.shape, generator=generator)


AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo")


# --- what a step computes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"aggregation": name} for name in AGGREGATIONS] + [{"importance": "sequence", "kl_weighted": True}],
    ids=[*AGGREGATIONS, "sequence"],
)
def test_neither_micro_batches_nor_trees_change_the_steps(fields: dict[str, str], tmp_path: Path) -> None:
    """A group or an answer a micro-batch, or the step in one; five steps: a round of four and one of the next.

    Nor do they change what is logged: token means are means over the step's tokens.
    """
    loss = grpo(num_iterations=2, minibatches=2, beta=0.04, clip_low=0.02, clip_high=0.03, **fields)
    weights, metrics = {}, {}
    for forward in FORWARDS:
        for micro_tokens in (1, HUGE):
            both = made(loss, steps=5, micro_tokens=micro_tokens, forward=forward)
            before = weights_of(both[0])
            key = f"{forward}{micro_tokens}"
            metrics[key] = run_training(both, tmp_path / key)
            weights[key] = weights_of(both[0])
            most = 2 if forward == "tree" else 8
            step = both[1].step(both[1].round or pytest.fail("no round"), 4)
            assert len(step.micros) == (most if micro_tokens == 1 else 1)
    plain = weights.pop(f"padded{HUGE}")
    assert all(furthest(found, plain) < 1e-6 for found in weights.values()) and furthest(plain, before) > 1e-3
    expected = metrics.pop(f"padded{HUGE}")
    assert expected["kl"] > 1e-4 and expected["entropy"] > 1
    for found in metrics.values():
        same = found.keys() - {"tokens_computed"}
        assert same == expected.keys() - {"tokens_computed"}
        assert {name: found[name] for name in same} == pytest.approx({n: expected[n] for n in same}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "without truncated"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_is_normalised_over_all_its_answers(aggregation: str, masked: bool) -> None:
    """The third step of a round, after the weights have moved, an answer a micro-batch: the loss of one big batch."""
    loss = grpo(aggregation=aggregation, num_iterations=2, minibatches=2, beta=0.04, mask_truncated=masked)
    both = made(loss, micro_tokens=1, forward="padded")
    module, data = both
    begun(both)
    moved(module)
    total, found, metrics, rows = step_by_hand(both, 2)
    assert len(rows) == 8 and len(data.step(begun(both), 2).micros) == 8
    answers, every = begun(both).answers, rows_of_round(begun(both))
    logps, mask = token_logps(module.model, [every[k] for k in rows], pad_id=PAD).padded()
    width = logps.shape[1]

    def table(name: str) -> Tensor:
        return torch.tensor([[*getattr(answers[k], name), *[0.0] * width][:width] for k in rows])

    if masked:
        mask = mask & torch.tensor([[answers[k].finish != "length"] for k in rows])
        assert 0 < mask.any(1).sum() < 8
    expected, of_batch = grpo_loss(
        logps,
        table("old_logps"),
        table("ref_logps"),
        torch.tensor([answers[k].advantage for k in rows]),
        mask,
        clip_low=0.2,
        clip_high=0.2,
        beta=0.04,
        aggregation=aggregation,
        max_length=LONGEST,
    )
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), abs=1e-6)
    grads = gradients(module)
    assert furthest(found, grads) < 1e-6 < 1e-3 < max(float(grad.abs().max()) for grad in grads.values())
    assert {name: metrics[name] for name in of_batch} == pytest.approx(
        {name: float(value) for name, value in of_batch.items()}, rel=1e-5, abs=1e-6
    )
    assert metrics["clip_ratio/region_mean"] > 0.05 and metrics["kl"] > 1e-3, "clipping was not put to the test"


@pytest.mark.parametrize("passes", [1, 2])
def test_the_first_step_of_a_round_is_the_plain_policy_gradient(passes: int) -> None:
    """Ratios are 1: the loss is minus the mean of A, its gradient that of -sum over answers of A mean log p / answers.

    Advantages are worked out here: (r - mean) / (std + 1e-4) of each group's four rewards.
    """
    both = made(grpo(num_iterations=passes))
    module, _ = both
    total, found, metrics, rows = step_by_hand(both)
    expected, advantages = torch.zeros(()), []
    for group in begun(both).groups:
        rewards = torch.tensor([answer.reward for answer in group.answers])
        for answer, reward in zip(group.answers, rewards, strict=True):
            advantages.append(float((reward - rewards.mean()) / (rewards.std() + 1e-4)))
            logps = plain_logps(module.model, TokenRow(group.prompt, answer.token_ids))[-len(answer.token_ids) :]
            expected = expected - advantages[-1] * logps.mean() / len(rows)
    expected.backward()
    grads = gradients(module)
    assert furthest(found, grads) < 1e-5 < 1e-2 < max(float(grad.abs().max()) for grad in grads.values())
    assert total == pytest.approx(-sum(advantages) / len(rows), abs=1e-6)
    assert [answer.advantage for answer in begun(both).answers] == pytest.approx(advantages, abs=1e-5)
    assert [metrics[f"clip_ratio/{kind}_mean"] for kind in ("low", "high", "region")] == [0.0, 0.0, 0.0]


def test_every_answer_is_learned_from_in_each_pass_of_a_round() -> None:
    """2 minibatches, 3 passes: each of the 4 groups once a pass, whole, in another order in the next pass."""
    both = made(grpo(num_iterations=3, minibatches=2), micro_tokens=1)
    found = begun(both)
    steps = [list(answers_of(both[1], both[1].step(found, number))) for number in range(6)]
    assert Counter(row for rows in steps for row in rows) == dict.fromkeys(range(16), 3)
    passes = [steps[0] + steps[1], steps[2] + steps[3], steps[4] + steps[5]]
    assert all(sorted(rows) == list(range(16)) for rows in passes)
    assert len({tuple(rows[:8]) for rows in passes}) > 1
    for rows in steps:
        assert sorted(rows) == [4 * group + k for group in sorted({row // 4 for row in rows}) for k in range(4)]
    assert len(both[1].draw.asked) == 1


def test_old_log_probs_are_those_of_the_weights_that_drew_the_round(tmp_path: Path) -> None:
    """Of round 0 the start's, of round 1 those after two steps; none are kept where a round is a step."""
    loss, file = grpo(num_iterations=2), tmp_path / "rollouts.jsonl"
    start, early, whole = made(loss), made(loss, steps=2), made(loss, steps=4, file=file)
    flat = adamw(lr=1e-3, schedule="constant")
    early[0].settings = whole[0].settings = flat
    run_training(early, tmp_path / "early")
    run_training(whole, tmp_path / "whole")
    assert furthest(weights_of(start[0]), weights_of(early[0])) > 1e-3
    for module, found in zip((start[0], early[0]), read_rounds(file), strict=True):
        with torch.no_grad():
            expected = [plain_logps(module.model, row)[-len(row.answer) :].tolist() for row in rows_of_round(found)]
        for answer, logps in zip(found.answers, expected, strict=True):
            assert answer.old_logps == pytest.approx(logps, abs=1e-5)
    assert {answer.old_logps for answer in begun(made(grpo())).answers} == {None}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forward", FORWARDS)
def test_entropy_is_the_mean_over_tokens_from_full_logits(forward: str, temperature: float) -> None:
    both = made(grpo(), forward=forward, micro_tokens=1, temperature=temperature)
    entropies, logps = [], []
    for row in rows_of_round(begun(both)):
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad():
            every = (both[0].model(input_ids=ids).logits[0, -len(row.answer) - 1 : -1] / temperature).log_softmax(-1)
        entropies += (-(every.exp() * every).sum(-1)).tolist()
        logps += every.gather(1, torch.tensor(row.answer)[:, None])[:, 0].tolist()
    _, _, metrics, _ = step_by_hand(both)
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    both[0]._measure(begun(both), both[0].model, "old_logps")
    found = [value for answer in begun(both).answers for value in answer.old_logps or ()]
    assert found == pytest.approx(logps, abs=1e-5)


# --- answers that teach nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_leave_the_weights_alone(scale: str, aggregation: str, tmp_path: Path) -> None:
    """Rewards of 0.1, whose float mean is not 0.1: loss and gradient are 0 and not NaN, and no weight moves."""
    both = made(
        grpo(scale=scale, aggregation=aggregation),
        script=Script(flat=lambda place: True),
        steps=2,
        settings=adamw(weight_decay=0.0),
    )
    before = weights_of(both[0])
    metrics = run_training(both, tmp_path)
    assert (metrics["loss"], metrics["grad_norm"], metrics["frac_reward_zero_std"]) == (0.0, 0.0, 1.0)
    assert furthest(weights_of(both[0]), before) == 0.0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_answers_that_were_cut_off_can_be_left_out(aggregation: str, tmp_path: Path) -> None:
    """Then their tokens do not matter; where all are cut off, nothing happens and nothing is NaN."""
    loss = grpo(aggregation=aggregation, mask_truncated=True)

    def other_tokens(answer: Answer) -> None:
        if answer.finish == "length":
            answer.token_ids = tuple(2 + (token + 7) % (VOCAB - 2) for token in answer.token_ids)

    steps = [step_by_hand(made(loss, script=script)) for script in (Script(), Script(edit=other_tokens))]
    assert steps[0][0] == pytest.approx(steps[1][0], abs=1e-6)
    assert furthest(steps[0][1], steps[1][1]) < 1e-6 < max(float(grad.abs().max()) for grad in steps[0][1].values())
    kept = grpo(aggregation=aggregation)
    kept_steps = [step_by_hand(made(kept, script=script)) for script in (Script(), Script(edit=other_tokens))]
    assert furthest(kept_steps[0][1], kept_steps[1][1]) > 1e-3

    def cut_off(answer: Answer) -> None:
        answer.finish = "length"

    both = made(loss, script=Script(edit=cut_off), steps=2, settings=adamw(weight_decay=0.0))
    before = weights_of(both[0])
    metrics = run_training(both, tmp_path)
    assert metrics["completions/clipped_ratio"] == 1.0 and metrics["completions/mean_terminated_length"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0) and furthest(weights_of(both[0]), before) == 0.0


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_answer_without_tokens_adds_nothing_and_counts_as_an_answer(aggregation: str, forward: str) -> None:
    """Its reward is in the group's mean; of the loss, 7 answers are left, over 8 where answers are counted.

    The others are of one token, so a token's share of its answer is all of it.
    """

    def shortened(answer: Answer) -> None:
        length = 0 if answer.exact else 1
        answer.token_ids, answer.logps = answer.token_ids[:length], answer.logps[:length]

    both = made(grpo(aggregation=aggregation), script=Script(edit=shortened), forward=forward, micro_tokens=1)
    _, found, metrics, _ = step_by_hand(both)
    answers, rows = begun(both).answers, rows_of_round(begun(both))
    assert sorted(len(row.answer) for row in rows) == [0, 0, 1, 1, 1, 1, 1, 1]
    over = {"grpo": 8, "bnpo": 6, "dapo": 6, "dr_grpo": 8 * LONGEST}[aggregation]
    expected = sum(
        -answer.advantage * plain_logps(both[0].model, row)[-1] / over
        for answer, row in zip(answers, rows, strict=True)
        if row.answer
    )
    assert isinstance(expected, Tensor)
    expected.backward()
    assert furthest(found, gradients(both[0])) < 1e-6 < 1e-3 < max(float(grad.abs().max()) for grad in found.values())
    assert math.isfinite(metrics["entropy"]) and metrics["entropy"] > 0


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_step_of_nothing_but_empty_answers_is_no_step(forward: str, tmp_path: Path) -> None:
    def emptied(answer: Answer) -> None:
        answer.token_ids = answer.logps = ()

    both = made(
        grpo(num_iterations=2), script=Script(edit=emptied), steps=2, forward=forward, settings=adamw(weight_decay=0.0)
    )
    before = weights_of(both[0])
    metrics = run_training(both, tmp_path)
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["generated"] == 0
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0) and furthest(weights_of(both[0]), before) == 0.0


# --- the stream of prompts and dynamic sampling ------------------------------------------------------------------


def test_the_stream_is_one_permutation_after_the_other() -> None:
    _, data = made(grpo())
    order = [data.prompt_at(place) for place in range(4 * len(PROMPTS))]
    passes = [tuple(order[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(numbers) == [0, 1, 2, 3, 4] for numbers in passes) and len(set(passes)) > 1
    assert order == [made(grpo())[1].prompt_at(place) for place in range(20)]
    data.seed += 1
    assert order != [data.prompt_at(place) for place in range(20)]


def test_groups_without_a_difference_are_replaced_by_the_next_prompts() -> None:
    """A round of 4 prompts, of places 0 to 9 the odd ones flat: 0-3 keep 0, 2; 4-5 keep 4; 6 keeps 6."""
    script = Script(flat=lambda place: place % 2 == 1)
    both = made(grpo(refills=4, minibatches=2), script=script)
    found = begun(both)
    assert [places for _, places, _ in script.asked] == [[0, 1, 2, 3], [4, 5], [6]]
    assert [numbers for numbers, _, _ in script.asked] == [
        [both[1].prompt_at(place) for place in places] for _, places, _ in script.asked
    ]
    assert [group.place for group in found.groups] == [0, 2, 4, 6] and both[1].place == 7
    assert found.drawn == 7 and found.metrics["groups/kept"] == pytest.approx(4 / 7)
    assert found.metrics["frac_reward_zero_std"] == 0.0
    assert found.seconds["generate"] == 0.75 and found.seconds["score"] == 1.5
    begun(both, 2)
    assert script.asked[3] == ([both[1].prompt_at(place) for place in (7, 8, 9, 10)], [7, 8, 9, 10], 2)


def test_after_the_last_refill_flat_groups_fill_the_round_and_teach_nothing() -> None:
    """Only place 4 differs. Two refills: 0-3, 4-7, 8-10; the first three flat groups fill up."""
    script = Script(flat=lambda place: place != 4)
    both = made(grpo(refills=2), script=script, batch_size=4)
    total, found, _, rows = step_by_hand(both)
    assert [places for _, places, _ in script.asked] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    groups = begun(both).groups
    assert [group.place for group in groups] == [4, 0, 1, 2] and both[1].place == 11
    assert begun(both).drawn == 11 and begun(both).metrics["groups/kept"] == pytest.approx(4 / 11)
    assert {answer.advantage for group in groups[1:] for answer in group.answers} == {0.0}
    assert begun(both).generated == sum(
        len(answer.token_ids) for place in range(11) for answer in group_of(both[1].prompt_at(place), place).answers
    )
    assert len(rows) == 16
    alone = made(grpo(), script=Script(flat=lambda place: place != 4), batch_size=1)
    alone[1].place = 4
    once = step_by_hand(alone)
    assert total == pytest.approx(once[0] / 4, abs=1e-6)
    assert furthest(found, {name: grad / 4 for name, grad in once[1].items()}) < 1e-6


def test_without_refills_flat_groups_stay_where_they_are() -> None:
    script = Script(flat=lambda place: place == 0)
    both = made(grpo(), script=script)
    found = begun(both)
    assert [group.place for group in found.groups] == [0, 1] and len(script.asked) == 1
    assert found.metrics["groups/kept"] == 1.0 and found.metrics["frac_reward_zero_std"] == 0.5


# --- the reference -----------------------------------------------------------------------------------------------


def test_the_reference_of_a_full_model_is_its_start(tmp_path: Path) -> None:
    """No divergence at the first step, some later; the copy is no part of what is trained or saved."""
    notes = Notes()
    both = made(grpo(beta=0.04), steps=4, file=tmp_path / "rollouts.jsonl")
    module, _ = both
    assert module._reference is not None
    start, copy = weights_of(module), deepcopy(module.model)
    assert {name for name in module.state_dict() if not name.startswith("model.")} == set()
    run_training(both, tmp_path / "run", notes)
    kls = [step["kl"] for step in notes.steps]
    assert kls[0] < 1e-8 < 1e-5 < kls[1] < kls[3]
    trained = weights_of(module)
    assert furthest(trained, start) > 0
    with module._reference():
        assert furthest(weights_of(module), start) == 0.0
    assert furthest(weights_of(module), trained) == 0.0
    with torch.no_grad():
        for found in read_rounds(tmp_path / "rollouts.jsonl"):
            for answer, row in zip(found.answers, rows_of_round(found), strict=True):
                expected = plain_logps(copy, row)[-len(row.answer) :].tolist()
                assert answer.ref_logps == pytest.approx(expected, abs=1e-5)
    assert {answer.ref_logps for answer in begun(made(grpo())).answers} == {None}


def with_adapter() -> FakePolicy:
    policy = small_policy()
    torch.manual_seed(4)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return FakePolicy(get_peft_model(policy.model, config), policy.renderer)  # type: ignore[arg-type]


@pytest.mark.parametrize("earlier", [False, True])
def test_the_reference_of_an_adapter_is_its_start(tmp_path: Path, earlier: bool) -> None:
    """No second model; no divergence at the first step, some later; also where an earlier stage trained the adapter."""
    notes, policy = Notes(), with_adapter()
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if earlier and "lora_B" in name:
                weight += 0.1
    base = deepcopy(policy.model)
    count = sum(1 for _ in policy.model.parameters())
    both = made(
        grpo(beta=0.04),
        steps=4,
        file=tmp_path / "rollouts.jsonl",
        policy=policy,
        settings=adamw(lr=3e-2),
        micro_tokens=HUGE,
    )
    module, _ = both
    assert sum(1 for _ in module.parameters()) == count
    run_training(both, tmp_path / "run", notes)
    kls = [step["kl"] for step in notes.steps]
    assert kls[0] < 1e-10 < 1e-6 < kls[1] < kls[3]
    last = read_rounds(tmp_path / "rollouts.jsonl")[-1]
    with torch.no_grad():
        for answer, row in zip(last.answers, rows_of_round(last), strict=True):
            assert answer.ref_logps == pytest.approx(plain_logps(base, row)[-len(row.answer) :].tolist(), abs=1e-5)


# --- an engine with log-probs of its own -------------------------------------------------------------------------

GAPS = {0: math.log(3.0), 1: math.log(1.5), 2: math.log(0.5), 3: 0.0}
"""Log-prob of a token under the trainer minus that under the engine, by the answer's number in its group."""


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("own_engine", "most", "weights"),
    [
        (False, 2.0, (2.0, 1.5, 0.5, 1.0)),
        (False, 10.0, (3.0, 1.5, 0.5, 1.0)),
        (False, None, (1.0, 1.0, 1.0, 1.0)),
        (True, 2.0, (1.0, 1.0, 1.0, 1.0)),
    ],
    ids=["cut at 2", "not cut", "off", "own engine"],
)
def test_tokens_of_another_engine_weigh_by_the_truncated_ratio(
    own_engine: bool, most: float | None, weights: tuple[float, ...], passes: int
) -> None:
    """min(exp(gap), C) times each token's loss; the gap is told whoever drew, its mean over the step's tokens."""
    policy = small_policy()
    loss = grpo(truncated_importance=most, num_iterations=passes)
    both = made(loss, policy=policy, own_engine=own_engine, micro_tokens=1, batch_size=2)
    for group in begun(both).groups:
        for k, answer in enumerate(group.answers):
            with torch.no_grad():
                logps = plain_logps(policy.model, TokenRow(group.prompt, answer.token_ids))[-len(answer.token_ids) :]
            answer.logps = tuple(value - GAPS[k] for value in logps.tolist())
    total, found, _, _ = step_by_hand(both)
    expected, gaps = torch.zeros(()), []
    for k, (answer, row) in enumerate(zip(begun(both).answers, rows_of_round(begun(both)), strict=True)):
        mean = plain_logps(policy.model, row)[-len(row.answer) :].mean()
        expected = expected - weights[k % 4] * answer.advantage * mean / 8
        gaps += [abs(GAPS[k % 4])] * len(row.answer)
    expected.backward()
    assert furthest(found, gradients(both[0])) < 1e-5 < 1e-2 < max(float(grad.abs().max()) for grad in found.values())
    advantages = [answer.advantage for answer in begun(both).answers]
    assert total == pytest.approx(-sum(weights[k % 4] * a for k, a in enumerate(advantages)) / 8, abs=1e-5)
    told = both[0].step_metrics()
    assert told["sampling/sampling_logp_difference/mean"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert told["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(3.0), abs=1e-5)


# --- what is told ------------------------------------------------------------------------------------------------


def test_metrics_have_trls_names_and_are_those_of_the_answers(tmp_path: Path) -> None:
    notes = Notes()
    both = made(grpo(beta=0.04), steps=1)
    run_training(both, tmp_path, notes)
    (told,) = notes.steps
    names = {
        *("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "loss", "grad_norm", "lr", "step_time"),
        *(f"completions/{kind}_length" for kind in ("mean", "min", "max")),
        *(f"completions/{kind}_terminated_length" for kind in ("mean", "min", "max")),
        *("completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
        *("clip_ratio/low_min", "clip_ratio/high_max"),
        *(f"rewards/{part}/{kind}" for part in ("name", "args") for kind in ("mean", "std")),
        *(f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max")),
        *(f"errors/{label}" for label in LABELS),
        *("exact", "groups/kept", "generated", "time/generate", "time/score", "time/measure", "time/train"),
    }
    assert names == told.keys() - {"tokens_per_s"}
    answers = begun(both).answers
    lengths = torch.tensor([float(len(answer.token_ids)) for answer in answers])
    ended = torch.tensor([float(len(answer.token_ids)) for answer in answers if answer.finish == "stop"])
    rewards = torch.tensor([answer.reward for answer in answers])
    parts = torch.tensor([answer.detail["args"] for answer in answers])
    expected = {
        "reward": rewards.mean(), "reward_std": rewards.std(), "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(), "completions/max_length": 6.0, "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": ended.mean(), "completions/min_terminated_length": ended.min(),
        "completions/max_terminated_length": ended.max(), "exact": 0.25, "generated": lengths.sum(),
        "rewards/args/mean": parts.mean(), "rewards/args/std": parts.std(), "time/generate": 0.25, "time/score": 0.5,
        # The second answer of a group has the first label, the third two, the fourth three.
        **{f"errors/{label}": share for label, share in zip(LABELS, (0.75, 0.5, 0.25), strict=False)},
        f"errors/{LABELS[-1]}": 0.0,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )


def test_the_share_of_time_of_a_step_is_that_of_its_round(tmp_path: Path) -> None:
    """What a round of four steps spent on drawing is spread over them."""
    notes = Notes()
    run_training(made(grpo(num_iterations=2, minibatches=2), steps=4), tmp_path, notes)
    assert [step["time/generate"] for step in notes.steps] == [0.0625] * 4


def test_the_table_shows_two_groups_of_every_so_many_steps(tmp_path: Path) -> None:
    both = made(grpo(), steps=5, batch_size=3, table=(tmp_path / "answers.csv", 2))
    run_training(both, tmp_path / "run")
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    assert tuple(head) == TABLE and [line[0] for line in lines] == ["0"] * 8 + ["2"] * 8 + ["4"] * 8
    last = [dict(zip(TABLE, line, strict=True)) for line in lines[-8:]]
    shown = [(group, k) for group in begun(both, 4).groups[:2] for k in range(ANSWERS)]
    for row, (group, k) in zip(last, shown, strict=True):
        answer = group.answers[k]
        assert (row["sample_id"], int(row["answer"]), row["text"]) == (group.sample_id, k, answer.text)
        assert (float(row["reward"]), float(row["advantage"])) == (answer.reward, answer.advantage)
        assert row["errors"].split() == list(LABELS[:k]) and row["exact"] == str(k == 1)


def test_a_logger_of_tables_is_given_the_same_rows(tmp_path: Path) -> None:
    class Tables(CSVLogger):
        def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
            given.append((key, columns, data, step))

    given: list[tuple[str, list[str], list[list[Any]], int]] = []
    both = made(grpo(), table=(tmp_path / "answers.csv", 2))
    train(
        *both,
        tmp_path,
        trainer=plain.trainer(),
        logger=Tables(tmp_path),
        progress=lambda *_: None,
    )
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        kept = list(csv.reader(file))[1:]
    assert [(key, columns, step) for key, columns, _, step in given] == [("answers", list(TABLE), n) for n in (0, 2)]
    assert [[str(value) for value in row] for _, _, data, _ in given for row in data] == kept


# --- what is kept ------------------------------------------------------------------------------------------------


def test_rounds_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    """A JSON object a line, a line a round; floats to the last bit."""
    file = tmp_path / "rollouts.jsonl"
    both = made(grpo(num_iterations=2, beta=0.04), steps=5, file=file)
    kept: list[dict[str, Any]] = []
    finish = both[0]._finish

    def noted(found: Round) -> None:
        finish(found)
        kept.append(found.to_json())

    both[0]._finish = noted  # type: ignore[method-assign]
    run_training(both, tmp_path / "run")
    lines = file.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and [json.loads(line)["number"] for line in lines] == [0, 1, 2]
    rounds = read_rounds(file)
    assert [found.to_json() for found in rounds] == kept
    assert rounds[-1] == both[1].round
    assert rounds == [Round.from_json(json.loads(json.dumps(found.to_json()))) for found in rounds]
    assert all(isinstance(answer.old_logps, tuple) and len(answer.detail) == 2 for answer in rounds[0].answers)


ROUNDS = {"a step a round": (grpo(beta=0.04), 5), "four steps a round": (grpo(num_iterations=2, minibatches=2), 7)}
SECONDS = re.compile(r'"seconds":\{[^}]*\}')


def whole_run(kind: str, folder: Path, *extra: pl.Callback, script: Script | None = None) -> tuple[Made, Any, Script]:
    """Trains in a folder, from its resume point where it has one."""
    loss, steps = ROUNDS[kind]
    script = script or Script(flat=lambda place: place % 7 == 2)
    folder.mkdir(exist_ok=True)
    both = made(
        loss,
        steps=steps,
        script=script,
        file=folder / "rollouts.jsonl",
        table=(folder / "answers.csv", 2),
    )
    return both, run_training(both, folder, *extra, every=1), script


@pytest.mark.parametrize("kind", ROUNDS)
def test_killed_after_any_step_a_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    """The resume point of the last step is not written: it is done again, where it began a round with its answers."""
    whole, metrics, script = whole_run(kind, tmp_path / "whole")
    steps, a_round = ROUNDS[kind][1], ROUNDS[kind][0].steps_a_round
    for stop in range(1, steps + 1):
        folder, first = tmp_path / str(stop), Script(flat=script.flat)
        with pytest.raises(Killed):
            whole_run(kind, folder, KillAfter(stop), script=first)
        again, found, second = whole_run(kind, folder)
        assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0, stop
        assert found == metrics, stop
        assert first.asked == script.asked[: len(first.asked)], stop
        # The round that the resume point lies in is in it.
        inside = math.ceil((stop - 1) / a_round)
        assert second.asked == script.asked[inside:], stop
        for name in ("rollouts.jsonl", "answers.csv"):
            ours, theirs = ((place / name).read_text("utf-8") for place in (folder, tmp_path / "whole"))
            assert SECONDS.sub("", ours) == SECONDS.sub("", theirs), (stop, name)


def test_line_breaks_of_unicode_in_an_answer_survive_a_kill(tmp_path: Path) -> None:
    """JSON leaves U+2028, U+2029 and U+0085 as they are; they end no line of the file."""

    def broken(answer: Answer) -> None:
        answer.text = "a\u2028b\u2029c\u0085d"

    with pytest.raises(Killed):
        whole_run("a step a round", tmp_path / "cut", KillAfter(3), script=Script(edit=broken))
    whole_run("a step a round", tmp_path / "cut", script=Script(edit=broken))
    assert [found.number for found in read_rounds(tmp_path / "cut" / "rollouts.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("kind", "stop"), [("a step a round", 3), ("four steps a round", 3)])
def test_a_step_is_done_again_from_its_weights_and_the_round_on_disk(kind: str, stop: int, tmp_path: Path) -> None:
    """From the resume point on, nobody draws: the rounds of the whole run's file give the same weights."""
    whole, _, _ = whole_run(kind, tmp_path / "whole")
    with pytest.raises(Killed):
        whole_run(kind, tmp_path / "cut", KillAfter(stop))
    loss, steps = ROUNDS[kind]
    rounds = read_rounds(tmp_path / "whole" / "rollouts.jsonl")

    def nobody(*_: Any) -> Any:
        raise AssertionError("answers were drawn")

    module, data = made(loss, steps=steps, script=nobody)  # type: ignore[arg-type]
    data.round_at = lambda step, finish: rounds[step // loss.steps_a_round]  # type: ignore[method-assign]
    run_training((module, data), tmp_path / "cut", every=1)
    assert furthest(weights_of(whole[0]), weights_of(module)) == 0.0


# --- optimiser and schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_with_restarts_is_that_of_transformers(restarts: int, warmup: int) -> None:
    """After the warm-up, whose first step is above zero here."""
    settings = plain.align_recipe(
        optimizer="adamw", lr=1.0, schedule="cosine_with_restarts", restarts=restarts, warmup_steps=warmup
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, warmup, 25, num_cycles=restarts)
    (factor,) = theirs.lr_lambdas
    ours = [settings.factor(step, [25]) for step in range(26)]
    assert ours[warmup:] == pytest.approx([factor(step) for step in range(warmup, 26)], abs=1e-12)
    assert ours[:warmup] == [(step + 1) / 4 for step in range(warmup)]
    assert sum(later > earlier for earlier, later in zip(ours[warmup:], ours[warmup + 1 :], strict=False)) == (
        restarts - 1
    )


def test_eight_bit_adamw_without_a_gpu_is_adamw_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    named = list(small_policy().model.named_parameters())
    with caplog.at_level(logging.WARNING, logger="ttpa"):
        optimizer = build_optimizer(named, adamw(optimizer="adamw_8bit"))
    plain = build_optimizer(named, adamw())
    assert type(optimizer) is torch.optim.AdamW
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == [
        {k: v for k, v in group.items() if k != "params"} for group in plain.param_groups
    ]
    (line,) = caplog.messages
    assert line.startswith("optimizer=adamw_8bit: ") and "AdamW with states of full size" in line
