"""Log-probs over token trees equal the padded ones, token for token and gradient for gradient."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ttpa.policy import forward, logprobs
from ttpa.policy.forward import (
    WORTH,
    Block,
    answer_sums,
    choose_forward,
    flex_mask,
    plan_blocks,
    tree_problem,
    tree_token_logps,
)
from ttpa.policy.logprobs import TokenLogps, target_logps, token_logps
from ttpa.policy.tree import TokenRow, TokenTree

VOCAB, PAD = 64, 0
ALWAYS = 2.0
"""A value of `worth` that takes the tree whatever the batch."""
HUGE = 10**12
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": 1,
}

ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2 tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2 untied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
    "phi": (PhiForCausalLM, PhiConfig, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
}


def fresh(name: str, **fields: Any) -> PreTrainedModel:
    model_class, config_class, own = ARCHITECTURES[name]
    return drawn(model_class, config_class, **own, **fields)


def drawn(model_class: Any, config_class: Any, **fields: Any) -> PreTrainedModel:
    """Weights large enough for attention to look somewhere; biases and norms off their neutral values."""
    torch.manual_seed(2)
    model: PreTrainedModel = model_class(config_class(**{**SIZES, **fields}))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


@cache
def model_of(name: str) -> PreTrainedModel:
    return fresh(name)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Of every trained weight; zero where none arrived."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            found[name] = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
    model.zero_grad(set_to_none=True)
    return found


def passed(forward: Callable[..., TokenLogps], model: Any, rows: Sequence[TokenRow], **options: Any) -> Any:
    """Log-probs, and the gradients of their mean with weights that tell tokens apart."""
    found = forward(model, rows, pad_id=PAD, **options)
    weights_N = 1 + 0.5 * torch.cos(torch.arange(len(found.logps_N)).float())
    (found.logps_N * weights_N).sum().div(max(1, len(weights_N))).backward()
    return found, gradients(model)


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def differences(model: Any, rows: Sequence[TokenRow], **options: Any) -> tuple[float, float]:
    """Largest difference of a log-prob and of a gradient between the tree and the padded path."""
    ours, our_gradients = passed(tree_token_logps, model, rows, worth=ALWAYS, **options)
    theirs, their_gradients = passed(token_logps, model, rows, **options)
    assert ours.logps_N.dtype == theirs.logps_N.dtype == torch.float32
    assert torch.equal(ours.row_N, theirs.row_N) and torch.equal(ours.is_answer_N, theirs.is_answer_N)
    assert ours.rows == theirs.rows == len(rows)
    apart = (ours.logps_N - theirs.logps_N).detach().abs()
    return float(apart.max()) if len(apart) else 0.0, furthest(our_gradients, their_gradients)


# --- rows that share ---------------------------------------------------------------------------------------------


def ids(least: int, most: int, tokens: int = VOCAB - 1) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, tokens), min_size=least, max_size=most)


@st.composite
def groups(draw: st.DrawFn) -> list[TokenRow]:
    """One prompt, perhaps of one token, and answers over two tokens: empty, equal, and prefixes of each other."""
    prompt = draw(ids(1, 12))
    return [TokenRow(prompt, answer) for answer in draw(st.lists(ids(0, 5, 2), min_size=1, max_size=5))]


@st.composite
def dialogues(draw: st.DrawFn) -> list[TokenRow]:
    """Each turn's prompt is the last one's with its answer and a question; candidates may hang on any turn."""
    prompt, rows = draw(ids(1, 6)), []
    for _ in range(draw(st.integers(2, 5))):
        answer = draw(ids(1, 3))
        rows += [TokenRow(prompt, other) for other in (answer, *draw(st.lists(ids(0, 3), max_size=2)))]
        prompt = [*prompt, *answer, *draw(ids(0, 3))]
    return rows


unrelated = st.lists(st.builds(TokenRow, ids(1, 6), ids(0, 4)), min_size=1, max_size=4)
mixed = st.lists(st.one_of(groups(), dialogues(), unrelated), min_size=1, max_size=3).map(
    lambda parts: [row for part in parts for row in part]
)

SHARED = (3, 4, 5, 6, 7, 8, 9)
HARD = [
    TokenRow(SHARED, (10, 11, 12)),
    TokenRow(SHARED, (10, 11)),  # a prefix of the one above
    TokenRow(SHARED, (10, 13, 1)),
    TokenRow(SHARED, ()),
    TokenRow(SHARED, (10, 11, 12)),  # once more
    TokenRow((*SHARED, 10, 11, 12, 20), (21, 22)),  # the next turn
    TokenRow(SHARED[:2], (5, 6, 1)),  # its answer runs along the prompt of the others
    TokenRow((30,), (31, 1)),
    TokenRow((30,), (31,)),
    TokenRow((40, 41), ()),
]


def long_rows(seed: int = 0) -> list[TokenRow]:
    """A dialogue of four turns of 60 tokens, three candidates each, beside a group of answers to another prompt."""
    rng = random.Random(seed)

    def some(count: int) -> list[int]:
        return [rng.randrange(1, VOCAB) for _ in range(count)]

    prompt, rows = some(10), []
    for _ in range(4):
        answers = [some(rng.randrange(3, 9)) for _ in range(3)]
        rows += [TokenRow(prompt, answer) for answer in answers]
        prompt = [*prompt, *answers[0], *some(10)]
    other = some(40)
    return [*rows, *(TokenRow(other, some(6)) for _ in range(4))]


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(deadline=None, max_examples=25)
@given(
    rows=mixed,
    with_prompt=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    call_cost=st.sampled_from([0, 10, 300, forward.CALL_COST]),
)
@example(rows=long_rows(), with_prompt=True, temperature=1.0, call_cost=forward.CALL_COST)
@example(rows=HARD, with_prompt=False, temperature=1.0, call_cost=0)
@example(rows=HARD, with_prompt=True, temperature=0.7, call_cost=HUGE)
@example(rows=[TokenRow((5,), ())], with_prompt=True, temperature=1.0, call_cost=0)
def test_log_probs_and_gradients_are_the_padded_ones(
    name: str, rows: list[TokenRow], with_prompt: bool, temperature: float, call_cost: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "CALL_COST", call_cost)
        logps, grads = differences(model_of(name), rows, with_prompt=with_prompt, temperature=temperature)
    assert logps < 1e-5 and grads < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["qwen2 tied", "gemma"])
def test_entropies_are_the_padded_ones_and_those_of_the_softmax(name: str, temperature: float) -> None:
    """Of the distribution that each token was drawn from; nodes may belong to several rows. Log-probs stay the same."""
    model, rows = model_of(name), [*HARD, *long_rows()]
    options: dict[str, Any] = {"pad_id": PAD, "temperature": temperature}
    tree = tree_token_logps(model, rows, worth=ALWAYS, entropy=True, **options)
    padded = token_logps(model, rows, entropy=True, **options)
    assert tree.computed < padded.computed and torch.equal(tree.row_N, padded.row_N)
    expected = []
    for row in rows:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0].float() / temperature
        own_TV = logits_TV[len(row.prompt) - 1 : len(row) - 1].softmax(-1)
        expected += torch.distributions.Categorical(probs=own_TV).entropy().tolist() if row.answer else []
    assert max(expected) - min(expected) > 0.2
    for found in (tree, padded):
        assert found.entropy_N is not None and not found.entropy_N.requires_grad and found.logps_N.requires_grad
        assert found.entropy_N.tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(tree.entropy_N, padded.entropy_N, atol=1e-5)
    plain = tree_token_logps(model, rows, worth=ALWAYS, **options)
    assert plain.entropy_N is None and torch.allclose(plain.logps_N, tree.logps_N, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2 tied", "llama"])
def test_every_kind_of_attention_call_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked or causal; behind nothing, behind a contiguous path, and behind a path with side branches left out."""
    monkeypatch.setattr(forward, "CALL_COST", 300)
    rows = long_rows()
    blocks = plan_blocks(TokenTree.build([[*row.prompt, *row.answer] for row in rows]))
    kinds = {(type(block.keys).__name__, block.mask is None) for block in blocks}
    assert kinds >= {("NoneType", True), ("slice", True), ("slice", False), ("Tensor", True), ("Tensor", False)}
    logps, grads = differences(model_of(name), rows)
    assert logps < 1e-5 and grads < 1e-5


def test_the_rows_above_would_show_a_wrong_mask() -> None:
    """A plain causal mask over the packed row, where answers see each other, is far off."""
    plain = lambda tree: [Block(0, len(tree), None, None)]  # noqa: E731
    for rows in (HARD, long_rows()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ttpa.policy.forward.plan_blocks", plain)
            logps, grads = differences(model_of("llama"), rows)
        assert logps > 0.1 and grads > 1e-3


def test_equal_rows_get_equal_log_probs_and_a_gradient_each() -> None:
    model, row = model_of("llama"), HARD[0]
    _, once = passed(lambda *given, **options: tree_token_logps(*given, worth=ALWAYS, **options), model, [row])
    found = tree_token_logps(model, [row] * 3, worth=ALWAYS)
    assert torch.equal(found.logps_N[:3], found.logps_N[3:6]) and found.row_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    weights_N = 1 + 0.5 * torch.cos(torch.arange(3).float())
    (found.logps_N * weights_N.repeat(3)).sum().div(3).backward()
    assert furthest(gradients(model), {name: 3 * grad for name, grad in once.items()}) < 1e-5


def test_an_answer_without_a_prompt_has_nothing_before_its_first_token() -> None:
    """As in the padded path, that token has no log-prob."""
    rows = [TokenRow((), (5, 6)), TokenRow((), (5, 7, 8)), TokenRow((5,), (6,))]
    logps, grads = differences(model_of("llama"), rows)
    assert logps < 1e-5 and grads < 1e-5
    assert tree_token_logps(model_of("llama"), rows, worth=ALWAYS).row_N.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("name", ["qwen2 untied", "llama"])
def test_adapters_get_the_padded_gradients(name: str, targets: list[str]) -> None:
    """An adapter on the head runs within the tiles. With it off, the log-probs are those of the base model."""
    from peft import LoraConfig, get_peft_model

    base = fresh(name)
    before = tree_token_logps(base, HARD, worth=ALWAYS).logps_N.detach()
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    for rows in (HARD, long_rows()):
        logps, grads = differences(model, rows)
        assert logps < 1e-5 and grads < 1e-5
    _, found = passed(tree_token_logps, model, long_rows())
    assert found and all("lora" in weight and grad.abs().max() > 1e-4 for weight, grad in found.items())
    assert any("lm_head" in weight for weight in found) == ("lm_head" in targets)
    with_adapter = tree_token_logps(model, HARD, worth=ALWAYS).logps_N
    with model.disable_adapter():
        without = tree_token_logps(model, HARD, worth=ALWAYS).logps_N
    assert torch.equal(without, before) and float((with_adapter - without).detach().abs().max()) > 0.1


@pytest.mark.parametrize("name", ["qwen2 tied", "llama", "gemma"])
def test_bfloat16_agrees_as_far_as_it_goes(name: str) -> None:
    """Log-probs within 0.1 of the padded ones, and no further from float32 than twice what padded bfloat16 is."""
    rows, wide, narrow = [*HARD, *long_rows()], model_of(name), fresh(name).to(torch.bfloat16)
    true, _ = passed(token_logps, wide, rows)
    ours, our_gradients = passed(tree_token_logps, narrow, rows, worth=ALWAYS)
    theirs, their_gradients = passed(token_logps, narrow, rows)
    assert ours.logps_N.dtype == torch.float32
    assert float((ours.logps_N - theirs.logps_N).detach().abs().max()) < 0.1
    off, padded_off = ((found.logps_N - true.logps_N).detach().norm() for found in (ours, theirs))
    assert off < 2 * padded_off
    left, right = (
        torch.cat([grad.flatten().float() for grad in found.values()]) for found in (our_gradients, their_gradients)
    )
    assert float((left - right).norm() / right.norm()) < 0.05


# --- the last layer ----------------------------------------------------------------------------------------------

LONG_PROMPT = [TokenRow(tuple(range(2, 50)), answer) for answer in ((5, 6, 7), (5, 8), (9,), (5, 6, 1, 1))] + [
    TokenRow((*range(2, 50), 5, 6, 7, 30, 31, 32, 33, 34, 35, 36), (4, 1)),  # a later turn
    TokenRow((60, 61, 62, 63, 1, 2, 3, 4, 5, 6), (7, 8)),
]
"""Few nodes have something to predict: what nobody reads of the last layer is left out."""


@pytest.mark.parametrize("call_cost", [0, 300, HUGE])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_last_layer_for_few_nodes_is_exact(name: str, call_cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CALL_COST", call_cost)
    logps, grads = differences(model_of(name), LONG_PROMPT)
    assert logps < 1e-5 and grads < 1e-5


@pytest.mark.parametrize("name", ["qwen2 untied", "llama", "gemma"])
def test_only_what_the_head_reads_runs_through_the_last_mlp(name: str) -> None:
    """Nodes with an answer token behind them; the layers before and the keys of the last one see every node."""
    model, seen = fresh(name), dict[str, int]()
    layers = model.model.layers
    parts = {"first": layers[0].mlp, "key": layers[-1].self_attn.k_proj, "inner": layers[-1].mlp.down_proj}
    for label, part in parts.items():
        part.register_forward_pre_hook(lambda _, given, label=label: seen.__setitem__(label, given[0].shape[1]))
    tree = TokenTree.build([[*row.prompt, *row.answer] for row in LONG_PROMPT])
    read = {
        path[k - 1] for row, path in zip(LONG_PROMPT, tree.paths, strict=True) for k in range(len(row.prompt), len(row))
    }
    tree_token_logps(model, LONG_PROMPT, worth=ALWAYS)
    assert seen == {"first": len(tree), "key": len(tree), "inner": len(read)}
    tree_token_logps(model, LONG_PROMPT, worth=ALWAYS, with_prompt=True)
    assert seen["inner"] == len(tree)


def test_a_failed_forward_leaves_the_layers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("llama")
    mlp = model.model.layers[-1].mlp
    broken = mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        tree_token_logps(model, LONG_PROMPT, worth=ALWAYS)
    broken.remove()
    assert "forward" not in mlp.__dict__ and model.config._attn_implementation != forward.ATTENTION
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


# --- the head in tiles -------------------------------------------------------------------------------------------


@contextmanager
def saved_sizes() -> Iterator[list[int]]:
    """Number of elements of every tensor that is kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@contextmanager
def watched_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(positions, tile) of every walk over the head's positions."""
    walks: list[tuple[int, int]] = []
    plain = logprobs._tiles

    def watched(count: int, position_M: Tensor, tile: int) -> Iterator[tuple[int, slice]]:
        walks.append((count, tile))
        return plain(count, position_M, tile)

    with monkeypatch.context() as patch:
        patch.setattr(logprobs, "_tiles", watched)
        yield walks


@pytest.mark.parametrize("forward", [tree_token_logps, token_logps])
@pytest.mark.parametrize("name", ["qwen2 tied", "phi", "gemma"])
def test_tiles_give_the_same_without_keeping_the_logits(
    name: str, forward: Callable[..., TokenLogps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi's head has a bias: it takes the checkpointed way, the others the backward pass that is written out."""
    vocab, rows = 1000, long_rows()
    model = fresh(name, vocab_size=vocab)
    whole, whole_gradients = passed(forward, model, rows)
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 5 * vocab + 1)
    with saved_sizes() as tiled, watched_tiles(monkeypatch) as walks:
        found = forward(model, rows, pad_id=PAD)
    again, again_gradients = passed(forward, model, rows)
    ((positions, tile),) = walks
    assert tile == 5 and positions > 20
    assert max(tiled) < positions * vocab
    assert torch.allclose(found.logps_N, whole.logps_N, atol=1e-6) and torch.equal(found.logps_N, again.logps_N)
    assert furthest(again_gradients, whole_gradients) < 1e-6


def test_a_frozen_head_gives_the_same_gradients_below_it() -> None:
    model, rows = fresh("llama"), long_rows()
    _, expected = passed(token_logps, model, rows)
    model.get_output_embeddings().weight.requires_grad_(False)
    _, found = passed(tree_token_logps, model, rows, worth=ALWAYS)
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert furthest(found, {name: expected[name] for name in found}) < 1e-5


def test_the_head_runs_once_where_answers_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions with something to predict: 3 of the group (behind the prompt, 7, 7 8), whatever the number of rows."""
    answers = [(7, 8, 9), (7, 8, 10), (7, 8), (7, 11), (12,), (), (7, 8, 9)]
    with watched_tiles(monkeypatch) as walks:
        tree_token_logps(model_of("llama"), [TokenRow((3, 4, 5, 6), answer) for answer in answers], worth=ALWAYS)
    assert [count for count, _ in walks] == [3]


@pytest.mark.parametrize("name", ["phi", "llama"])
@pytest.mark.parametrize("tile", [1, 3, 100])
def test_target_log_probs_and_entropies_are_those_of_the_formula(
    name: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log softmax(z / t) at the target; -sum p log p at every position, even one with no or many targets."""
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile * VOCAB)
    model = fresh(name)
    hidden_NH = torch.randn(8, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0)).requires_grad_()
    position_M = torch.tensor([0, 0, 0, 2, 3, 3, 6, 6, 6, 6])
    token_M = torch.tensor([5, 5, 9, 1, 0, 63, 2, 3, 4, 5])
    logps_M, entropy_N = target_logps(model, hidden_NH, position_M, token_M, temperature=0.7, entropy=True)
    plain_NV = torch.log_softmax(model.lm_head(hidden_NH) / 0.7, -1)
    assert torch.allclose(logps_M, plain_NV[position_M, token_M], atol=1e-6)
    assert entropy_N is not None and not entropy_N.requires_grad and logps_M.requires_grad
    assert torch.allclose(entropy_N, -(plain_NV.exp() * plain_NV).sum(-1), atol=1e-6)
    assert target_logps(model, hidden_NH, position_M, token_M)[1] is None
    logps_M.sum().backward()
    found, hidden_NH.grad = hidden_NH.grad, None
    of_weights = gradients(model)
    plain_NV[position_M, token_M].sum().backward()
    assert torch.allclose(found, hidden_NH.grad, atol=1e-6) and furthest(of_weights, gradients(model)) < 1e-5


# --- which way a batch goes --------------------------------------------------------------------------------------


def test_a_batch_that_shares_little_takes_the_padded_path() -> None:
    """Rows of 10 and 9 tokens without a common one: 19 nodes of 20 padded tokens. With 2 shared of 20, 18 nodes."""
    model = model_of("llama")
    apart = [TokenRow(range(1, 10), (10,)), TokenRow(range(20, 28), (28,))]
    assert tree_token_logps(model, apart).computed == 20
    assert tree_token_logps(model, apart, worth=0.95).computed == 19
    together = [TokenRow(range(1, 10), (10,)), TokenRow((1, 2, *range(20, 27)), (28,))]
    assert WORTH == 0.9 and tree_token_logps(model, together).computed == 18
    assert tree_token_logps(model, together, worth=0.89).computed == 20
    options: dict[str, Any] = {"with_prompt": True, "temperature": 0.7, "pad_id": PAD}
    assert torch.equal(tree_token_logps(model, apart, **options).logps_N, token_logps(model, apart, **options).logps_N)


def test_tokens_computed_are_the_nodes_of_the_tree() -> None:
    """Prompt 7, answers 3 + (10 13 1: 2 more) + 0, next turn 3 more: 15 nodes; padded 5 rows of 13."""
    rows = [HARD[k] for k in (0, 1, 2, 3, 5)]
    assert tree_token_logps(model_of("llama"), rows).computed == 15
    assert token_logps(model_of("llama"), rows, pad_id=PAD).computed == 65


def mistral(**fields: Any) -> PreTrainedModel:
    return drawn(MistralForCausalLM, MistralConfig, **fields)


def gemma2() -> PreTrainedModel:
    return drawn(Gemma2ForCausalLM, Gemma2Config, head_dim=8)


def windowed_qwen2() -> PreTrainedModel:
    return fresh("qwen2 tied", use_sliding_window=True, sliding_window=4, max_window_layers=1)


def falcon_h1() -> PreTrainedModel:
    sizes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    return drawn(FalconH1ForCausalLM, FalconH1Config, **sizes, mamba_chunk_size=8)


def secretive() -> PreTrainedModel:
    """A recurrence that no configuration speaks of: what stands before in the row is added up."""
    model = fresh("llama")
    model.model.embed_tokens.register_forward_hook(lambda _, given, out: out.cumsum(1))
    return model


def forgetful() -> PreTrainedModel:
    return fresh("llama", attention_dropout=0.1)


UNFIT = [
    (forgetful, "it drops attention weights in training"),
    (mistral, "it attends in a sliding window"),
    (gemma2, "its layers are full_attention, sliding_attention"),
    (windowed_qwen2, "its layers are full_attention, sliding_attention"),
    (falcon_h1, "its layers are hybrid"),
    (secretive, "its log-probs over a tree differ from the padded ones"),
]


@pytest.mark.parametrize(("build", "problem"), UNFIT)
def test_an_architecture_that_cannot_take_trees_is_padded_and_says_so_once(
    build: Callable[[], PreTrainedModel], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build()
    assert tree_problem(model) == problem
    with caplog.at_level(logging.INFO, logger="ttpa"):
        assert choose_forward(model, "tree") is token_logps
    assert [record.getMessage() for record in caplog.records] == [
        f"{type(model).__name__}: {problem}; training uses padded batches"
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_can_takes_trees_unless_told_otherwise(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(name)
    with caplog.at_level(logging.INFO, logger="ttpa"):
        assert choose_forward(model, "tree") is tree_token_logps
        assert choose_forward(model, "padded") is token_logps
    assert not caplog.records


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    """Afterwards it is the plain model again, for sampling as for the padded path."""
    model = model_of("llama")
    before = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    implementation = model.config._attn_implementation
    tree_token_logps(model, HARD, worth=ALWAYS)
    with pytest.raises(IndexError):
        tree_token_logps(model, [TokenRow((1, 2), (VOCAB + 7,)), TokenRow((1, 2), (3,))], worth=ALWAYS)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, before)
    with pytest.raises(AssertionError, match="layout"):
        forward.tree_attention(model, *[torch.zeros(1, 1, 1, 2)] * 3, None)


# --- summed answers ----------------------------------------------------------------------------------------------


def test_answer_sums_keep_a_group_in_one_batch() -> None:
    """Pairs of 20 and 10 tokens, budget 40: the two short pairs share a batch, the long ones do not share one."""
    batches: list[list[int]] = []

    def recording(model: Any, rows: Sequence[TokenRow], *, pad_id: int) -> TokenLogps:
        batches.append([row.prompt[0] for row in rows])
        return token_logps(model, rows, pad_id=pad_id)

    groups = [
        [TokenRow([k] + [9] * (size // 2 - 2), (a,)) for a in (5, 6)] for k, size in enumerate((22, 10, 22, 12), 1)
    ]
    answer_sums(recording, model_of("llama"), groups, pad_id=PAD, budget=40)
    assert batches == [[2, 2, 4, 4], [1, 1], [3, 3]]


# --- attention calls ---------------------------------------------------------------------------------------------


def tree_of(sequences: Sequence[Sequence[int]]) -> TokenTree:
    return TokenTree.build(sequences)


def allowed_pairs(tree: TokenTree) -> Tensor:
    at = np.arange(len(tree))
    return torch.from_numpy((at[None] <= at[:, None]) & (at[:, None] < tree.end[None]))


def times_computed(blocks: Sequence[Block], nodes: int) -> Tensor:
    """How often each (query, key) pair of the row is computed, (nodes, nodes)."""
    times = torch.zeros(nodes, nodes, dtype=torch.long)
    for block in blocks:
        here, size = torch.arange(block.start, block.stop), block.stop - block.start
        if block.keys is not None:
            keys = torch.arange(nodes)[block.keys]
            assert len(keys) and keys.tolist() == sorted(set(keys.tolist()))
            times[here[:, None], keys[None, :]] += 1
        inside = torch.ones(size, size, dtype=torch.bool).tril() if block.mask is None else block.mask
        times[block.start : block.stop, block.start : block.stop] += inside.long()
    return times


sequence_sets = st.lists(st.lists(st.integers(0, 2), max_size=10), min_size=1, max_size=10).filter(any)


@settings(deadline=None, max_examples=100)
@given(sequences=sequence_sets, call_cost=st.sampled_from([0, 3, 20, forward.CALL_COST, HUGE]))
@example(sequences=[[]], call_cost=0)
def test_attention_calls_compute_every_allowed_pair_once_and_no_other(
    sequences: list[list[int]], call_cost: int
) -> None:
    tree = tree_of(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "CALL_COST", call_cost)
        blocks = plan_blocks(tree)
    edges = [0, *(block.stop for block in blocks)]
    assert [block.start for block in blocks] == edges[:-1] and edges[-1] == len(tree), "in row order, no gaps"
    assert torch.equal(times_computed(blocks, len(tree)), allowed_pairs(tree).long())


def test_calls_follow_their_price() -> None:
    """A prompt of 50 and four answers of 20: dear calls make one masked block, free ones five causal ones."""
    tree = tree_of([[*range(100, 150), *range(20 * k, 20 * k + 20)] for k in range(4)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "CALL_COST", HUGE)
        (block,) = plan_blocks(tree)
        assert (block.start, block.stop, block.keys) == (0, 130, None) and block.mask is not None
        patch.setattr(forward, "CALL_COST", 0)
        blocks = plan_blocks(tree)
    assert [(block.start, block.stop) for block in blocks] == [(0, 50), (50, 70), (70, 90), (90, 110), (110, 130)]
    assert [block.keys for block in blocks] == [None] + [slice(0, 50)] * 4
    assert all(block.mask is None for block in blocks)


def test_a_single_sequence_is_one_causal_call() -> None:
    assert plan_blocks(tree_of([range(30)])) == [Block(0, 30, None, None)]
    assert plan_blocks(tree_of([range(30), range(12)])) == [Block(0, 30, None, None)]


# --- the block mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [1, 40, 127, 300])
def test_the_block_mask_is_the_ancestor_rule(size: int, seed: int) -> None:
    """Pair by pair; and its blocks of 128 are those with a pair in them, whole ones where all pairs are."""
    rng = random.Random(seed)
    trunk = [rng.randrange(9) for _ in range(size)]
    cuts = [rng.randrange(size) for _ in range(6)]
    tree = tree_of([trunk, *([*trunk[:cut], *(rng.randrange(9) for _ in range(rng.randrange(20)))] for cut in cuts)])
    built, nodes = flex_mask(tree, torch.device("cpu")), len(tree)
    allowed = allowed_pairs(tree)
    assert torch.equal(create_mask(built.mask_mod, 1, 1, nodes, nodes, device="cpu")[0, 0], allowed)
    edges = [*range(0, nodes, 128), nodes]
    present = [
        [int(allowed[top:bottom, left:right].any()) for left, right in pairwise(edges)]
        for top, bottom in pairwise(edges)
    ]
    assert built.to_dense()[0, 0].tolist() == present


def test_whole_kernel_blocks_can_be_read_past_the_last_node() -> None:
    """The kernel asks for pairs up to the next multiple of 128: no node sees what is not there."""
    tree = tree_of([range(100), [*range(50), *range(200, 240)]])
    built = flex_mask(tree, torch.device("cpu"))
    padded = create_mask(built.mask_mod, 1, 1, 256, 256, device="cpu")[0, 0]
    assert not padded[: len(tree), len(tree) :].any() and len(tree) == 140


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_the_gradients(reentrant: bool) -> None:
    model = fresh("qwen2 tied").train()
    _, expected = passed(token_logps, model, long_rows())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, found = passed(tree_token_logps, model, long_rows(), worth=ALWAYS)
    assert furthest(found, expected) < 1e-5


def test_the_probe_notices_answers_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(tree: TokenTree) -> list[Block]:
        return [Block(0, len(tree), None, None)]

    monkeypatch.setattr("ttpa.policy.forward.plan_blocks", plain)
    assert tree_problem(model_of("llama")) == "its log-probs over a tree differ from the padded ones"
