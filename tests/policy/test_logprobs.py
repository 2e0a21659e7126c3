"""Log-probs of given answers against the full logits of the whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ttpa.policy.forward import answer_sums
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow

VOCAB, PAD = 40, 0
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}

ROWS = (
    TokenRow((3, 4, 5, 6, 7), (8, 9, 1)),
    TokenRow((10, 11), (12, 13, 14, 15, 16, 17, 1)),
    TokenRow((20, 21, 22, 23, 24, 25, 26, 27, 28), (1,)),
    TokenRow((30,), (31, 30, 31, 1)),
)


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))


def gemma2() -> PreTrainedModel:
    """Soft caps low enough to bend the logits; a window shorter than the longest row."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            head_dim=8,
            sliding_window=4,
            final_logit_softcapping=0.5,
            attn_logit_softcapping=1.0,
            attn_implementation="eager",
        )
    )


def granite() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0))


def falcon_h1() -> PreTrainedModel:
    return FalconH1ForCausalLM(
        FalconH1Config(
            **SIZES,
            lm_head_multiplier=0.1,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
        )
    )


ARCHITECTURES = [
    qwen2,
    llama,
    gemma2,
    granite,
    falcon_h1,
]


def built(architecture: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(2)
    model = architecture()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.no_grad()
def full(model: PreTrainedModel, row: TokenRow, with_prompt: bool) -> list[float]:
    """log_softmax of all logits of one row alone, gathered at the tokens that follow."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    logps_TV: Tensor = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    first = 1 if with_prompt else len(row.prompt)
    return [float(logps_TV[at - 1, ids[0, at]]) for at in range(first, ids.shape[1])]


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_logps_are_those_of_full_logits(architecture: Callable[[], PreTrainedModel], with_prompt: bool) -> None:
    model = built(architecture)
    with torch.no_grad():
        found = token_logps(model, ROWS, pad_id=PAD, with_prompt=with_prompt)
    assert found.logps_N.dtype == torch.float32 and found.rows == len(ROWS)
    for number, row in enumerate(ROWS):
        of_row = found.row_N == number
        assert found.logps_N[of_row].tolist() == pytest.approx(full(model, row, with_prompt), abs=1e-5)
        asked = len(row.prompt) - 1 if with_prompt else 0
        assert found.is_answer_N[of_row].tolist() == [False] * asked + [True] * len(row.answer)
    expected = [sum(full(model, row, False)) for row in ROWS]
    assert found.sums().tolist() == pytest.approx(expected, abs=1e-4)


def test_the_soft_cap_and_the_scale_of_the_logits_matter_here() -> None:
    """Without them the models above would pass whatever `head_logits` did."""
    for architecture, key, off in ((gemma2, "final_logit_softcapping", None), (granite, "logits_scaling", 1.0)):
        model = built(architecture)
        with torch.no_grad():
            bent = token_logps(model, ROWS, pad_id=PAD).logps_N
            setattr(model.config, key, off)
            plain = token_logps(model, ROWS, pad_id=PAD).logps_N
        assert float((bent - plain).abs().max()) > 0.1


@torch.no_grad()
def test_neither_padding_nor_its_id_nor_the_order_of_rows_matters() -> None:
    model = built(qwen2)
    together = token_logps(model, ROWS, pad_id=PAD).sums().tolist()
    alone = [float(token_logps(model, [row], pad_id=PAD).sums()[0]) for row in ROWS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert token_logps(model, ROWS, pad_id=39).sums().tolist() == pytest.approx(together, abs=1e-5)
    assert token_logps(model, ROWS[::-1], pad_id=PAD).sums().tolist() == pytest.approx(together[::-1], abs=1e-5)
    assert len({round(value, 3) for value in together}) == len(ROWS)


@torch.no_grad()
def test_an_empty_answer_selects_nothing_and_sums_to_zero() -> None:
    model = built(qwen2)
    empty = TokenRow((3, 4, 5), ())
    found = token_logps(model, [empty, ROWS[0], empty], pad_id=PAD)
    assert found.row_N.tolist() == [1, 1, 1] and found.sums().tolist()[::2] == [0.0, 0.0]
    alone = token_logps(model, [empty], pad_id=PAD)
    assert alone.logps_N.numel() == 0 and alone.sums().tolist() == [0.0]
    prompt = token_logps(model, [empty], pad_id=PAD, with_prompt=True)
    assert prompt.logps_N.tolist() == pytest.approx(full(model, empty, True), abs=1e-5)
    assert prompt.sums().tolist() == [0.0]


@torch.no_grad()
def test_padded_answers_stand_in_rows_with_a_mask() -> None:
    """Rows of 3, 7, 0, 1 and 4 answer tokens, prompt tokens left out."""
    model, rows = built(llama), [*ROWS[:2], TokenRow((3, 4), ()), *ROWS[2:]]
    for with_prompt in (False, True):
        found = token_logps(model, rows, pad_id=PAD, with_prompt=with_prompt)
        logps_BT, mask_BT = found.padded()
        assert logps_BT.shape == mask_BT.shape == (5, 7) and mask_BT.sum(1).tolist() == [3, 7, 0, 1, 4]
        for number, row in enumerate(rows):
            size = len(row.answer)
            assert mask_BT[number].tolist() == [True] * size + [False] * (7 - size)
            assert logps_BT[number].tolist() == pytest.approx([*full(model, row, False), *[0.0] * (7 - size)], abs=1e-5)
        assert found.computed == 5 * 10


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_answer_sums_come_in_row_order_whatever_the_budget(budget: int) -> None:
    model = built(llama)
    model.train()
    rows = [*ROWS, TokenRow((3, 4), ()), *ROWS[::-1]]
    found = answer_sums(token_logps, model, [[row] for row in rows], pad_id=PAD, budget=budget)
    assert all(len(sums) == 1 for sums in found)
    assert [sums[0] for sums in found] == pytest.approx([sum(full(model, row, False)) for row in rows], abs=1e-4)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    answer_sums(token_logps, model, [ROWS], pad_id=PAD, budget=budget)
    assert not model.training


def test_answer_sums_switch_dropout_off() -> None:
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    (first,) = answer_sums(token_logps, model, [ROWS], pad_id=PAD, budget=1000)
    assert [first] == answer_sums(token_logps, model, [ROWS], pad_id=PAD, budget=1000)
    with torch.no_grad():
        assert token_logps(model, ROWS, pad_id=PAD).sums().tolist() != pytest.approx(first, abs=1e-6)
