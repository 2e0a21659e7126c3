"""The decoding engine: against transformers' own greedy search, against the training forward, and against itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ttpa.policy.decode import Generated, HFEngine, greedy, uniforms
from ttpa.policy.logprobs import Row, token_logps
from ttpa.samplers.group import GroupSampler
from ttpa.samplers.tps import TPS

VOCAB, PAD, STOPS = 24, 0, (1, 2)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": list(STOPS),
    "bos_token_id": None,
}
LENGTHS = (9, 3, 14, 3, 1, 7, 11, 5, 20, 3)
ROOM = 16


@dataclass
class FakePolicy:
    """What the engine asks of a policy."""

    model: PreTrainedModel
    renderer: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pad_id=PAD, stop_ids=STOPS))


def random_model(kind: str = "qwen2", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**SIZES))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.35)
    return model.eval()


def random_prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]


def engine(model: PreTrainedModel, rows: int = 4, room: int = ROOM) -> HFEngine:
    return HFEngine(policy=FakePolicy(model), rows=rows, max_new_tokens=room)  # type: ignore[arg-type]


def names(prompts: Sequence[object]) -> list[str]:
    return [f"sample-{number}" for number in range(len(prompts))]


def tokens(answers: list[list[Generated]]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in group] for group in answers]


SAMPLED = GroupSampler(n=3, max_new_tokens=ROOM, temperature=0.9, top_p=0.95).chooser()


# --- greedy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_greedy_is_that_of_transformers_token_for_token(kind: str, rows: int) -> None:
    model, prompts = random_model(kind), random_prompts()
    config = GenerationConfig(do_sample=False, max_new_tokens=ROOM, eos_token_id=list(STOPS), pad_token_id=PAD)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        expected.append([out[0, len(prompt) :].tolist()])
    found = engine(model, rows).generate(prompts, names(prompts), 1, greedy, "seed")
    assert tokens(found) == expected
    assert {answer.finish for group in found for answer in group} == {"stop", "length"}
    assert len({tuple(group[0]) for group in expected}) > 3


def test_greedy_does_not_look_at_the_seed() -> None:
    model, prompts = random_model(), random_prompts()
    first = engine(model).generate(prompts, names(prompts), 2, greedy, "a")
    assert tokens(first) == tokens(engine(model).generate(prompts, names(prompts), 2, greedy, "b"))
    assert all(one.token_ids == two.token_ids for one, two in first)


# --- sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chooser", [SAMPLED, TPS(n=3, max_new_tokens=ROOM, k=5, delta=0.2).chooser()])
def test_sampled_answers_depend_neither_on_the_batch_nor_on_the_order_of_prompts(chooser: Any) -> None:
    model, prompts = random_model(), random_prompts()
    ids = names(prompts)
    alone = engine(model, rows=1).generate(prompts, ids, 3, chooser, 7)
    for rows in (4, 64):
        together = engine(model, rows).generate(prompts, ids, 3, chooser, 7)
        assert tokens(together) == tokens(alone)
        for left, right in zip(together, alone, strict=True):
            for one, two in zip(left, right, strict=True):
                assert one.logps == pytest.approx(two.logps, abs=1e-4) and one.finish == two.finish
                assert [(at, [token for token, _ in options]) for at, options in one.branches] == [
                    (at, [token for token, _ in options]) for at, options in two.branches
                ]
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    shuffled = engine(model, 6).generate([prompts[i] for i in order], [ids[i] for i in order], 3, chooser, 7)
    assert [tokens(shuffled)[order.index(i)] for i in range(len(prompts))] == tokens(alone)
    part = engine(model, 64).generate(prompts[3:5], ids[3:5], 3, chooser, 7)
    assert tokens(part) == tokens(alone)[3:5]


def test_more_candidates_leave_the_first_ones_as_they_are() -> None:
    model, prompts = random_model(), random_prompts()
    two = tokens(engine(model).generate(prompts, names(prompts), 2, SAMPLED, 0))
    five = tokens(engine(model).generate(prompts, names(prompts), 5, SAMPLED, 0))
    assert [group[:2] for group in five] == two


def test_seed_sample_and_candidate_each_change_the_answers() -> None:
    model, prompts = random_model(), random_prompts()
    ids = names(prompts)
    first = tokens(engine(model).generate(prompts, ids, 3, SAMPLED, "explore:0:1"))
    assert first == tokens(engine(model).generate(prompts, ids, 3, SAMPLED, "explore:0:1"))
    assert first != tokens(engine(model).generate(prompts, ids, 3, SAMPLED, "explore:0:2"))
    other = tokens(engine(model).generate(prompts, [f"other-{i}" for i in ids], 3, SAMPLED, "explore:0:1"))
    assert sum(left != right for left, right in zip(first, other, strict=True)) > len(prompts) / 2
    assert sum(len({tuple(answer) for answer in group}) > 1 for group in first) > len(prompts) / 2


def test_uniforms_depend_on_the_triple_alone() -> None:
    """Every part counts, the parts do not run together, and a longer draw starts with the shorter one."""
    draws = uniforms("seed", "a", 0, 1000)
    assert draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.05 and abs(draws.std() - 12**-0.5) < 0.03
    assert np.array_equal(draws[:10], uniforms("seed", "a", 0, 10))
    others = [
        ("other", "a", 0),
        ("seed", "b", 0),
        ("seed", "a", 1),
        ("see", "da", 0),
        ("seed", "a", 10),
        ("seed", "a1", 0),
    ]
    assert len({uniforms(*triple, 1)[0] for triple in [("seed", "a", 0), *others]}) == 7


# --- every answer ------------------------------------------------------------------------------------------------


def test_log_probs_are_those_of_the_training_forward() -> None:
    """At temperature 1 or not, the log-probs recorded are the policy's own."""
    model, prompts = random_model(), random_prompts()
    found = engine(model, 64).generate(prompts, names(prompts), 3, SAMPLED, 0)
    for prompt, group in zip(prompts, found, strict=True):
        for answer in group:
            with torch.no_grad():
                forced = token_logps(model, [Row(prompt, answer.token_ids)], pad_id=PAD).logps_N.tolist()
            assert answer.logps == pytest.approx(forced, abs=1e-4)


def test_an_answer_ends_with_its_first_stop_token_or_at_its_full_length() -> None:
    model, prompts = random_model(), random_prompts()
    answers = [a for group in engine(model).generate(prompts, names(prompts), 3, SAMPLED, 0) for a in group]
    for answer in answers:
        assert len(answer.logps) == len(answer.token_ids) <= ROOM
        assert not set(STOPS) & set(answer.token_ids[:-1])
        if answer.finish == "stop":
            assert answer.token_ids[-1] in STOPS
        else:
            assert answer.finish == "length" and len(answer.token_ids) == ROOM and answer.token_ids[-1] not in STOPS
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert {answer.token_ids[-1] for answer in answers if answer.finish == "stop"} == set(STOPS)


@dataclass
class Script:
    """A chooser that spells out a list of tokens, the same for every row."""

    spelled: Sequence[int]
    at: int = 0

    def __call__(self, logps_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, list[Any]]:
        token = self.spelled[self.at]
        self.at += 1
        options = [(token, 0.5), (token + 1, 0.25)] if self.at % 2 else None
        return torch.full((len(logps_RV),), token), [options] * len(logps_RV)


def test_scripted_answers_are_recorded_as_they_were_chosen() -> None:
    """Tokens 5, 6, 7 and a stop, choices reported at the first and third; a stop that just fits is a stop."""
    model = random_model()
    ((answer,),) = engine(model, room=9).generate([[3, 4]], ["a"], 1, Script((5, 6, 7, 2)), 0)
    assert answer.token_ids == [5, 6, 7, 2] and answer.finish == "stop"
    assert answer.branches == [(0, ((5, 0.5), (6, 0.25))), (2, ((7, 0.5), (8, 0.25)))]
    ((fits,),) = engine(model, room=4).generate([[3, 4]], ["a"], 1, Script((5, 6, 7, 2)), 0)
    assert (fits.token_ids, fits.finish) == ([5, 6, 7, 2], "stop")
    ((cut,),) = engine(model, room=3).generate([[3, 4]], ["a"], 1, Script((5, 6, 7, 2)), 0)
    assert (cut.token_ids, cut.finish) == ([5, 6, 7], "length")


def test_engine_leaves_the_training_mode_as_it_was_and_uses_no_dropout() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    prompts = random_prompts()
    first = engine(model).generate(prompts, names(prompts), 1, greedy, 0)
    assert model.training
    again = engine(model.eval()).generate(prompts, names(prompts), 1, greedy, 0)
    assert not model.training and first == again


def test_no_prompts_no_answers() -> None:
    assert engine(random_model()).generate([], [], 3, greedy, 0) == []
