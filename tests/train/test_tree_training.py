"""Training through token trees takes the same steps as the padded way, whatever the micro-batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.train import plain
from ttpa.policy.forward import Forward, answer_sums, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow, TokenTree
from ttpa.train.losses import DPO, SimPO
from ttpa.train.module import PairExample, PlanData, PolicyModule, PreferenceModule, SFTModule, sft_example
from ttpa.train.plan import Example, Plan, cut_step, plan_warmup
from ttpa.train.train import train

VOCAB, PAD, HUGE = 50, 0, 1_000_000
OPTIMIZER = plain.align_recipe(optimizer="adamw", lr=1e-3, weight_decay=0.1, warmup_steps=1)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
}


@dataclass
class FakePolicy:
    """What a module asks of a policy: a model and the id that fills batches."""

    model: torch.nn.Module
    renderer: SimpleNamespace


def small_policy(name: str) -> Any:
    torch.manual_seed(5)
    model = MODELS[name]()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return FakePolicy(model, SimpleNamespace(pad_id=PAD))


def drawn_ids(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(2, VOCAB) for _ in range(rng.randint(low, high))]


def dialogue_rows(dialogues: int, turns: int, seed: int) -> tuple[list[TokenRow], list[int]]:
    """Rows and the dialogue of each: a turn's prompt is the last one's with its answer and a question."""
    rng, rows, units = random.Random(seed), [], []
    for number in range(dialogues):
        prompt = drawn_ids(rng, 6, 14)
        for _ in range(turns):
            rows.append(TokenRow(prompt, [*drawn_ids(rng, 1, 6), 1]))
            units.append(number)
            prompt = [*prompt, *rows[-1].answer, *drawn_ids(rng, 1, 4)]
    return rows, units


def pairs_of(count: int, prompts: int, seed: int) -> list[tuple[TokenRow, TokenRow]]:
    """Pairs on a few prompts, answers alike in front; the last one's rejected answer is a prefix of the chosen one."""
    rng = random.Random(seed)
    openings = [drawn_ids(rng, 8, 20) for _ in range(prompts)]
    pairs = []
    for number in range(count):
        prompt, front = openings[number % prompts], drawn_ids(rng, 0, 3)
        pairs.append(tuple(TokenRow(prompt, [*front, *drawn_ids(rng, 1, 4), 1]) for _ in range(2)))
    chosen, _ = pairs[-1]
    return [*pairs[:-1], (chosen, TokenRow(chosen.prompt, chosen.answer[:-1]))]


ROWS, UNITS = dialogue_rows(4, 3, 0)
SFT_STEPS = ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11), (3, 4, 5, 0, 1, 2))
PAIRS = pairs_of(9, 3, 1)
PAIR_STEPS = ((0, 1, 2, 3), (8, 4, 5, 6), (7, 8, 0, 3))
FORWARDS: dict[str, Forward] = {"tree": tree_token_logps, "padded": token_logps}
Made = tuple[PolicyModule, PlanData]


def plan_of(examples: Sequence[Example], steps: Sequence[Sequence[int]]) -> Plan:
    return Plan(tuple(tuple(examples[k] for k in step) for step in steps), (len(steps),))


def sft(model: str, forward: Forward, micro_tokens: int, prompt_weight: float = 0.3) -> Made:
    examples = [sft_example(row, prompt_weight, unit) for row, unit in zip(ROWS, UNITS, strict=True)]
    plan = plan_of(examples, SFT_STEPS)
    module = SFTModule(small_policy(model), OPTIMIZER, plan.boundaries, forward, prompt_weight=prompt_weight)
    return module, PlanData(plan, micro_tokens, trees=forward is not token_logps)


def preference(loss: DPO | SimPO, model: str, forward: Forward, micro_tokens: int) -> Made:
    policy, known = small_policy(model), [None] * len(PAIRS)
    if loss.needs_reference:
        sums = answer_sums(forward, policy.model, PAIRS, pad_id=PAD, budget=200)
        known = [(c + 0.5, r - 0.25 * i) for i, (c, r) in enumerate(sums)]
    examples = [PairExample(pair, len(pair[0].answer), k, known[k]) for k, pair in enumerate(PAIRS)]
    plan = plan_of(examples, PAIR_STEPS)
    module = PreferenceModule(policy, OPTIMIZER, plan.boundaries, forward, loss=loss)
    return module, PlanData(plan, micro_tokens, trees=forward is not token_logps)


KINDS: dict[str, Any] = {
    "sft": partial(sft, prompt_weight=0.0),
    "sft with prompt weight": sft,
    "dpo with anchor": partial(preference, plain.loss(DPO, beta=0.5, label_smoothing=0.1, sft_weight=0.3)),
    "simpo": partial(preference, plain.loss(SimPO, beta=2.0, gamma_beta_ratio=0.4)),
}


def trained(made: Made, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder.mkdir()
    metrics = train(*made, folder, trainer=plain.trainer(), logger=False, progress=lambda *_: None)
    return weights_of(made[0]), metrics


def weights_of(module: PolicyModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.model.named_parameters()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


# --- the same steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_through_trees_are_three_padded_steps(kind: str, model: str, tmp_path: Path) -> None:
    made = {name: KINDS[kind](model, forward, HUGE) for name, forward in FORWARDS.items()}
    before = weights_of(made["tree"][0])
    tree, tree_metrics = trained(made["tree"], tmp_path / "tree")
    padded, padded_metrics = trained(made["padded"], tmp_path / "padded")
    assert furthest(tree, padded) < 1e-5 < 1e-3 < furthest(tree, before)
    assert tree_metrics["tokens"] == padded_metrics["tokens"]
    assert tree_metrics["tokens_computed"] < 0.7 * tree_metrics["tokens"] < padded_metrics["tokens_computed"]
    same = {name for name in tree_metrics if name not in ("tokens_computed", "tokens_per_s")}
    for name in same:
        assert tree_metrics[name] == pytest.approx(padded_metrics[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_do_not_change_three_steps_through_trees(kind: str, tmp_path: Path) -> None:
    """A unit a micro-batch, or a step a micro-batch."""
    results, counts = [], []
    for micro_tokens in (1, HUGE):
        made = KINDS[kind]("qwen2", tree_token_logps, micro_tokens)
        counts.append(len(cut_step(made[1].plan.steps[0], micro_tokens, trees=True).micros))
        results.append(trained(made, tmp_path / str(micro_tokens)))
    (tiny, tiny_metrics), (huge, huge_metrics) = results
    assert counts == [2 if kind.startswith("sft") else 4, 1]
    assert furthest(tiny, huge) < 1e-5
    assert tiny_metrics["loss"] == pytest.approx(huge_metrics["loss"], rel=1e-4)
    assert tiny_metrics["grad_norm"] == pytest.approx(huge_metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_ranks_add_up_through_trees(kind: str) -> None:
    made: Made = KINDS[kind]("llama", tree_token_logps, 40)
    module, data = made
    gradients = []
    for world in (1, 3):
        module.zero_grad()
        for rank in range(world):
            step = cut_step(data.plan.steps[1], 40, True, rank, world)
            for rows in filter(None, step.micros):
                module.micro_loss(rows, step)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None})
    assert furthest(*gradients) < 1e-5 < max(float(grad.abs().max()) for grad in gradients[0].values())


def test_references_by_the_tree_are_those_by_padding() -> None:
    model = small_policy("llama").model
    tree, padded = (answer_sums(forward, model, PAIRS, pad_id=PAD, budget=100) for forward in FORWARDS.values())
    for ours, theirs in zip(tree, padded, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5) and len(ours) == 2


# --- what stays together -----------------------------------------------------------------------------------------


@st.composite
def steps_of_units(draw: st.DrawFn) -> list[Example]:
    """Rows of up to six units."""
    units = draw(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    sizes = [(draw(st.integers(1, 40)), draw(st.integers(0, 10))) for _ in units]
    return [Example((TokenRow([2] * p, [3] * a),), 1.0, unit) for unit, (p, a) in zip(units, sizes, strict=True)]


@settings(deadline=None, max_examples=100)
@given(examples=steps_of_units(), micro_tokens=st.integers(1, 200), world=st.integers(1, 3))
def test_rows_of_a_unit_stay_in_one_micro_batch(examples: list[Example], micro_tokens: int, world: int) -> None:
    """On one rank; every row once; all ranks have as many micro-batches; several units keep the budget together."""
    steps = [cut_step(examples, micro_tokens, True, rank, world) for rank in range(world)]
    micros = [micro for step in steps for micro in step.micros if micro]
    assert sorted(id(one) for micro in micros for one in micro) == sorted(map(id, examples))
    assert sum(len({one.unit for one in micro}) for micro in micros) == len({one.unit for one in examples})
    assert len({len(step.micros) for step in steps}) == 1
    assert {(step.weight, step.examples) for step in steps} == {(float(len(examples)), len(examples))}
    assert sum(step.tokens for step in steps) == sum(len(one.rows[0]) for one in examples)
    for micro in micros:
        homes = [[one.rows[0] for one in micro if one.unit == unit] for unit in {one.unit for one in micro}]
        costs = []
        for home in homes:
            longest = max(home, key=len)
            costs.append(len(longest) + sum(len(row.answer) for row in home if row is not longest))
        assert len(homes) == 1 or sum(costs) <= micro_tokens


def test_trees_are_packed_by_their_sum_and_padded_rows_by_their_longest() -> None:
    """Rows of 30, 10, 10 and 50 tokens: a forest of 100 takes all four, a rectangle of 100 only the short ones."""
    examples = [Example((TokenRow([2] * (size - 1), [3]),), 1.0, k) for k, size in enumerate((30, 10, 10, 50))]
    found = [
        [[one.unit for one in micro] for micro in cut_step(examples, 100, trees).micros] for trees in (True, False)
    ]
    assert found == [[[3, 0, 1, 2]], [[1, 2, 0], [3]]]


@pytest.mark.parametrize("micro_tokens", [1, 60, 100, HUGE])
def test_the_planned_cost_of_a_dialogue_bounds_its_tree(micro_tokens: int) -> None:
    """The longest row and the others' answers are at least the nodes, because each history is a prefix of the next."""
    examples = [sft_example(row, 0.0, unit) for row, unit in zip(*dialogue_rows(8, 4, 3), strict=True)]
    recipe = plain.warmup_recipe(batch_tokens=300, epochs=1.0)
    plan = plan_warmup(examples, [""] * len(examples), plain.warmup(), recipe, 0)
    homes: list[Sequence[int]] = []
    for step in plan.steps:
        for micro in cut_step(step, micro_tokens, trees=True).micros:
            nodes = len(TokenTree.build([[*one.rows[0].prompt, *one.rows[0].answer] for one in micro]))
            homes.append(sorted({one.unit for one in micro}))
            assert nodes <= micro_tokens or len(homes[-1]) == 1
    assert sorted(unit for home in homes for unit in home) == list(range(8)), "no dialogue is in two micro-batches"
