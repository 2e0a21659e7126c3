"""The training loop: what a step computes, whatever the micro-batches and ranks; how a killed run goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.train import plain
from ttpa.errors import DataError
from ttpa.policy.forward import answer_sums
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import DPO, SimPO
from ttpa.train.module import PairExample, PlanData, PolicyModule, PreferenceModule, SFTModule, sft_example
from ttpa.train.plan import Example, Plan, cut_step, plan_warmup
from ttpa.train.settings import Optimisation
from ttpa.train.train import train

VOCAB, PAD = 50, 0
PROMPT_WEIGHT = 0.3
HUGE = 1_000_000
STEPS = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11, 2, 3, 9), (4, 5, 6, 0, 10), (1, 7, 8, 11, 3))


@dataclass
class FakePolicy:
    """What a module asks of a policy: a model and the id that fills batches."""

    model: torch.nn.Module
    renderer: SimpleNamespace


def small_policy(layers: int = 1) -> FakePolicy:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return FakePolicy(model, SimpleNamespace(pad_id=PAD))


def rows_of(count: int, seed: int) -> list[TokenRow]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(rng.randint(low, high))]

    return [TokenRow(ids(3, 14), [*ids(1, 9), 1]) for _ in range(count)]


CHOSEN = rows_of(12, 0)
REJECTED = [TokenRow(row.prompt, other.answer) for row, other in zip(CHOSEN, rows_of(12, 1), strict=True)]


def adamw(**fields: Any) -> Optimisation:
    return plain.align_recipe(**{"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.1, "warmup_steps": 2, **fields})


def references(policy: FakePolicy) -> list[tuple[float, float]]:
    """Not the policy's own, so that DPO does not start from equal log-ratios."""
    pairs = list(zip(CHOSEN, REJECTED, strict=True))
    sums = answer_sums(token_logps, policy.model, pairs, pad_id=PAD, budget=HUGE)
    return [(c + 0.5, r - 0.25 * i) for i, (c, r) in enumerate(sums)]


SFT = [sft_example(row, PROMPT_WEIGHT, number) for number, row in enumerate(CHOSEN)]
Steps = Sequence[Sequence[int]]


def plan_of(examples: Sequence[Example], steps: Steps, boundaries: Sequence[int] | None = None) -> Plan:
    return Plan(tuple(tuple(examples[k] for k in step) for step in steps), tuple(boundaries or (len(steps),)))


def sft(
    steps: Steps | Plan, micro_tokens: int, settings: Optimisation, boundaries: Any = None, layers: int = 1
) -> tuple[SFTModule, PlanData]:
    plan = steps if isinstance(steps, Plan) else plan_of(SFT, steps, boundaries)
    policy: Any = small_policy(layers)
    module = SFTModule(policy, settings, plan.boundaries, prompt_weight=PROMPT_WEIGHT)
    return module, PlanData(plan, micro_tokens, trees=False)


def preference(
    loss: DPO | SimPO, steps: Steps, micro_tokens: int, settings: Optimisation, boundaries: Any = None
) -> tuple[PreferenceModule, PlanData]:
    policy: Any = small_policy()
    known = references(policy) if loss.needs_reference else [None] * len(CHOSEN)
    pairs = zip(CHOSEN, REJECTED, known, strict=True)
    examples = [PairExample((c, r), len(c.answer), number, ref) for number, (c, r, ref) in enumerate(pairs)]
    plan = plan_of(examples, steps, boundaries)
    return PreferenceModule(policy, settings, plan.boundaries, loss=loss), PlanData(plan, micro_tokens, trees=False)


Made = tuple[PolicyModule, PlanData]
KINDS: dict[str, Callable[..., Made]] = {
    "sft with prompt weight": sft,
    "dpo with anchor": lambda *given: preference(
        plain.loss(DPO, beta=0.5, label_smoothing=0.1, sft_weight=0.3), *given
    ),
    "simpo with anchor": lambda *given: preference(
        plain.loss(SimPO, beta=2.0, gamma_beta_ratio=0.4, sft_weight=0.3), *given
    ),
}


class Killed(Exception):
    pass


class KillAfter(pl.Callback):
    """Raises once so many optimiser steps are done, before the resume point of the last one is written."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise Killed


class KillAtEnd(pl.Callback):
    def on_train_end(self, *_: Any) -> None:
        raise Killed


def run_training(made: Made, folder: Path, *extra: pl.Callback, every: int = 1000) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    seen: list[tuple[int, int]] = []
    metrics = train(
        *made,
        folder,
        trainer=plain.trainer(checkpoint_every_steps=every, log_every_n_steps=50),
        logger=False,
        progress=lambda done, total, speed, note: seen.append((done, total)),
        callbacks=extra,
    )
    assert not seen or seen[-1] == (made[1].total_steps, made[1].total_steps)
    return metrics


def weights_of(module: PolicyModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.model.named_parameters()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


# --- what a step computes ----------------------------------------------------------------------------------------


def plain_logps(model: torch.nn.Module, row: TokenRow) -> Tensor:
    """Log-probs of all tokens but the first, from the full logits of one row without padding, shape (T - 1,)."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    return -F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")


def plain_sft(module: PolicyModule, rows: Sequence[int]) -> Tensor:
    """Weighted mean NLL over all tokens of the step: prompt tokens weigh PROMPT_WEIGHT, answer tokens 1."""
    nll, weight = torch.zeros(()), 0.0
    for i in rows:
        weights = torch.ones(len(CHOSEN[i]) - 1)
        weights[: len(CHOSEN[i].prompt) - 1] = PROMPT_WEIGHT
        nll, weight = nll - (weights * plain_logps(module.model, CHOSEN[i])).sum(), weight + float(weights.sum())
    return nll / weight


def plain_preference(module: PolicyModule, rows: Sequence[int]) -> Tensor:
    """Mean over the pairs of the step, plus 0.3 times the chosen answers' NLL by token."""
    assert isinstance(module, PreferenceModule)
    losses, nll = [], torch.zeros(())
    known = references(FakePolicy(small_policy().model, SimpleNamespace(pad_id=PAD)))
    for i in rows:
        both = (CHOSEN[i], REJECTED[i])
        chosen, rejected = (plain_logps(module.model, row)[-len(row.answer) :].sum() for row in both)
        if module.loss.needs_reference:
            margin = 0.5 * (chosen - known[i][0] - rejected + known[i][1])
            losses.append(-0.9 * torch.log(torch.sigmoid(margin)) - 0.1 * torch.log(torch.sigmoid(-margin)))
        else:
            means = chosen / len(CHOSEN[i].answer) - rejected / len(REJECTED[i].answer)
            losses.append(-torch.log(torch.sigmoid(2.0 * means - 0.8)))
        nll = nll - chosen
    return torch.stack(losses).mean() + 0.3 * nll / sum(len(CHOSEN[i].answer) for i in rows)


def plain_loss(kind: str) -> Callable[[PolicyModule, Sequence[int]], Tensor]:
    return plain_sft if kind.startswith("sft") else plain_preference


@pytest.mark.parametrize("micro_tokens", [1, 40, HUGE])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_step_is_that_of_the_plain_formula_over_full_logits(kind: str, micro_tokens: int) -> None:
    module, data = KINDS[kind](STEPS, micro_tokens, adamw())
    step = cut_step(data.plan.steps[0], micro_tokens, trees=False)
    assert {1: 5, 40: 2 if kind.startswith("sft") else 3, HUGE: 1}[micro_tokens] <= len(step.micros)
    total = torch.zeros(())
    for rows in step.micros:
        loss, _ = module.micro_loss(rows, step)
        loss.backward()
        total += loss.detach()
    found = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()
    expected = plain_loss(kind)(module, STEPS[0])
    expected.backward()
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-5)
    grads = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    assert furthest(found, grads) < 1e-5 < max(float(grad.abs().max()) for grad in grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_plain_loop(kind: str, tmp_path: Path) -> None:
    """Gradient of the plain loss, clip, AdamW at the scheduled rate, written out: three steps in two phases."""
    settings, steps = adamw(clip=0.5), STEPS[:3]
    module, data = KINDS[kind](steps, 40, settings, (2, 3))
    metrics = run_training((module, data), tmp_path)
    other, _ = KINDS[kind](steps, 40, settings, (2, 3))
    matrices = [p for name, p in other.model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in other.model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    loss, norms = torch.zeros(()), []
    for number, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5, 1.0, 0.5)[number]  # warm-up of 2 steps in phases of 2 and 1
        optimizer.zero_grad()
        loss = plain_loss(kind)(other, rows)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)))
        optimizer.step()
    assert furthest(weights_of(module), weights_of(other)) < 5e-6
    assert furthest(weights_of(module), weights_of(KINDS[kind](steps, 40, settings, (2, 3))[0])) > 1e-3
    assert max(norms) > 0.5, "clipping was not put to the test"
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(norms[-1], rel=1e-3)
    assert metrics["lr"] == pytest.approx(1.5e-3)
    assert metrics["steps"] == 3 and metrics["tokens"] == sum(
        len(row) for examples in data.plan.steps for example in examples for row in example.rows
    )


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batch_size_does_not_change_three_steps(kind: str, tmp_path: Path) -> None:
    results = []
    for micro_tokens in (1, HUGE):
        made = KINDS[kind](STEPS[:3], micro_tokens, adamw(lr=1e-3))
        before = weights_of(made[0])
        assert len(cut_step(made[1].plan.steps[0], micro_tokens, trees=False).micros) == (5 if micro_tokens == 1 else 1)
        metrics = run_training(made, tmp_path / str(micro_tokens))
        results.append((weights_of(made[0]), metrics))
    (tiny, tiny_metrics), (huge, huge_metrics) = results
    assert furthest(tiny, huge) < 1e-6 < 1e-3 < furthest(tiny, before)
    assert tiny_metrics["loss"] == pytest.approx(huge_metrics["loss"], rel=1e-5)
    assert tiny_metrics["tokens"] == huge_metrics["tokens"]


def test_preference_metrics_do_not_depend_on_the_micro_batch_size(tmp_path: Path) -> None:
    names = {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    }
    found = []
    for micro_tokens in (1, HUGE):
        metrics = run_training(KINDS["dpo with anchor"](STEPS[:1], micro_tokens, adamw()), tmp_path / str(micro_tokens))
        assert names | {"nll_loss"} <= metrics.keys()
        found.append({name: metrics[name] for name in names})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# --- ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_share_a_step(world: int) -> None:
    """All rows once, the same number of micro-batches on every rank, the weight and row count of the whole step."""
    examples = [Example((CHOSEN[k],), k + 1.0, k) for k in STEPS[0]]
    steps = [cut_step(examples, 30, False, rank, world) for rank in range(world)]
    assert sorted(one.unit for step in steps for micro in step.micros for one in micro) == sorted(STEPS[0])
    assert len({len(step.micros) for step in steps}) == 1
    assert {(step.weight, step.examples) for step in steps} == {(15.0, 5)}
    for step in steps:
        assert step.tokens == sum(len(one.rows[0]) for micro in step.micros for one in micro)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_ranks_add_up_to_that_of_one_rank(kind: str) -> None:
    module, data = KINDS[kind](STEPS, 60, adamw())
    gradients = []
    for world in (1, 3):
        module.zero_grad()
        for rank in range(world):
            step = cut_step(data.plan.steps[1], 60, False, rank, world)
            for rows in filter(None, step.micros):
                module.micro_loss(rows, step)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None})
    assert furthest(*gradients) < 1e-5


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["adamw", "muon_adamw"])
def test_a_killed_run_continues_to_the_same_bits(name: str, every: int, tmp_path: Path) -> None:
    """Killed after 4 of 5 steps, before that one's resume point: goes on from step 3 (every 1) or 2 (every 2)."""
    settings, plan = adamw(optimizer=name), plan_of(SFT, STEPS)
    whole = sft(plan, 40, settings, layers=2)
    metrics = run_training(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(sft(plan, 40, settings, layers=2), tmp_path / "cut", KillAfter(4), every=every)
    saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == {1: 3, 2: 2}[every]
    again = sft(plan, 40, settings, layers=2)
    again_metrics = run_training(again, tmp_path / "cut", every=every)
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0
    assert again_metrics == metrics


@pytest.mark.parametrize("name", ["adamw", "muon_adamw"])
def test_a_killed_curriculum_continues_in_its_phase(name: str, tmp_path: Path) -> None:
    """Killed in the second of three bands, then in the third: three runs in one folder end where one run ends."""
    bands = ["easy"] * 4 + ["medium"] * 5 + ["hard"] * 3
    recipe = plain.warmup_recipe(batch_tokens=40, epochs=2.0, optimizer=name, lr=3e-3, weight_decay=0.1, warmup_steps=1)
    plan = plan_warmup(SFT, bands, plain.warmup(order="bands", replay=0.5), recipe, 0)
    first, second, last = plan.boundaries
    assert first + 1 < second and second + 2 < last
    whole = sft(plan, 20, recipe)
    metrics = run_training(whole, tmp_path / "whole")
    for stop in (first + 2, second + 2):
        with pytest.raises(Killed):
            run_training(sft(plan, 20, recipe), tmp_path / "cut", KillAfter(stop), every=1)
    again = sft(plan, 20, recipe)
    assert run_training(again, tmp_path / "cut", every=1) == metrics
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


def test_a_killed_preference_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    made = KINDS["dpo with anchor"]
    whole, again = made(STEPS, 60, adamw()), made(STEPS, 60, adamw())
    run_training(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(made(STEPS, 60, adamw()), tmp_path / "cut", KillAfter(3), every=1)
    run_training(again, tmp_path / "cut", every=1)
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


def test_a_run_killed_before_its_first_resume_point_starts_over(tmp_path: Path) -> None:
    plan = plan_of(SFT, STEPS[:3])
    whole, again = sft(plan, 40, adamw()), sft(plan, 40, adamw())
    run_training(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(sft(plan, 40, adamw()), tmp_path / "cut", KillAfter(2))
    assert not list((tmp_path / "cut").iterdir())
    run_training(again, tmp_path / "cut")
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


def test_a_run_killed_after_its_last_step_keeps_the_weights(tmp_path: Path) -> None:
    plan = plan_of(SFT, STEPS[:3])
    whole, again = sft(plan, 40, adamw()), sft(plan, 40, adamw())
    run_training(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(sft(plan, 40, adamw()), tmp_path / "cut", KillAtEnd(), every=1)
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=False)["global_step"] == 3
    metrics = run_training(again, tmp_path / "cut", every=1)
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0
    assert metrics["steps"] == 3 and metrics["tokens"] == sum(len(one.rows[0]) for step in plan.steps for one in step)


def test_the_last_resume_point_stays_until_the_caller_has_saved(tmp_path: Path) -> None:
    """A second call in the folder, as after a kill while the policy was written, ends with the same weights."""
    plan = plan_of(SFT, STEPS[:3])
    first, again = sft(plan, 40, adamw()), sft(plan, 40, adamw())
    run_training(first, tmp_path, every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    run_training(again, tmp_path, every=2)
    assert furthest(weights_of(first[0]), weights_of(again[0])) == 0.0


def test_resume_points_hold_trained_weights_only(tmp_path: Path) -> None:
    """The frozen weights come from where the policy came from."""
    plan = plan_of(SFT, STEPS[:3])

    def half_frozen() -> Made:
        made = sft(plan, 40, adamw())
        for name, p in made[0].model.named_parameters():
            p.requires_grad_("mlp" in name)
        return made

    before = weights_of(half_frozen()[0])
    with pytest.raises(Killed):
        run_training(half_frozen(), tmp_path, KillAfter(2), every=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert {name.removeprefix("model.") for name in saved} == {name for name in before if "mlp" in name}
    again = half_frozen()
    run_training(again, tmp_path)
    after = weights_of(again[0])
    assert {name for name in before if not torch.equal(before[name], after[name])} == {n for n in before if "mlp" in n}


def test_a_plan_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the training plan has no steps"):
        run_training(sft(Plan((), (0,)), 40, adamw()), tmp_path)
