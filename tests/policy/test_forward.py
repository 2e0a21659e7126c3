"""Log-probs over token trees equal the padded ones, token for token and gradient for gradient."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import PreTrainedModel

from tests.policy.architectures import IDS, PAD, SIZES, plain_logits, policy_of, random_model
from ttpa.errors import FALLBACKS
from ttpa.policy import forward, logprobs
from ttpa.policy.forward import Block, choose_forward, find_problem, flex_mask, plan_blocks, tree_token_logps
from ttpa.policy.logprobs import TokenLogps, evaluating, head_agrees, in_float32, target_logps, token_logps
from ttpa.policy.tree import TokenRow, TokenTree

VOCAB = 64
HUGE = 10**12
CAUSAL = ("qwen2", "llama", "gemma", "phi")
over_tree = partial(tree_token_logps, worth=2.0)
"""Takes the tree whatever the batch."""


def fresh(kind: str, **fields: Any) -> PreTrainedModel:
    return random_model(kind, fields.pop("vocab_size", VOCAB), fields.pop("std", 0.2), **fields)


@cache
def model_of(kind: str) -> PreTrainedModel:
    """One that no test changes."""
    return fresh(kind)


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
    ours, our_gradients = passed(over_tree, model, rows, **options)
    theirs, their_gradients = passed(token_logps, model, rows, **options)
    assert ours.logps_N.dtype == theirs.logps_N.dtype == torch.float32
    assert torch.equal(ours.row_N, theirs.row_N) and torch.equal(ours.is_answer_N, theirs.is_answer_N)
    assert ours.rows == theirs.rows == len(rows)
    apart = (ours.logps_N - theirs.logps_N).detach().abs()
    return float(apart.max()) if len(apart) else 0.0, furthest(our_gradients, their_gradients)


def assert_exact(model: Any, rows: Sequence[TokenRow], **options: Any) -> None:
    logps, grads = differences(model, rows, **options)
    assert logps < 1e-5 and grads < 1e-5


token_lists = partial(st.lists, st.integers(1, 2))
"""Over two tokens, so that prompts and answers share prefixes, are equal or go on in each other by themselves."""
row_lists = st.lists(
    st.builds(TokenRow, token_lists(min_size=1, max_size=8), token_lists(max_size=6)), min_size=1, max_size=10
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


LONG_PROMPT = [TokenRow(tuple(range(2, 50)), answer) for answer in ((5, 6, 7), (5, 8), (9,), (5, 6, 1, 1))] + [
    TokenRow((*range(2, 50), 5, 6, 7, 30, 31, 32, 33, 34, 35, 36), (4, 1)),  # a later turn
    TokenRow((60, 61, 62, 63, 1, 2, 3, 4, 5, 6), (7, 8)),
]
"""Few nodes have something to predict: what nobody reads of the last layer is left out."""


@pytest.mark.parametrize("kind", CAUSAL)
@settings(deadline=None, max_examples=20)
@given(
    rows=row_lists,
    with_prompt=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    call_cost=st.sampled_from([0, 10, 300, forward.CALL_COST]),
)
@example(rows=long_rows(), with_prompt=True, temperature=1.0, call_cost=forward.CALL_COST)
@example(rows=HARD, with_prompt=False, temperature=1.0, call_cost=0)
@example(rows=HARD, with_prompt=True, temperature=0.7, call_cost=HUGE)
@example(rows=LONG_PROMPT, with_prompt=False, temperature=1.0, call_cost=300)
@example(rows=LONG_PROMPT, with_prompt=False, temperature=1.0, call_cost=HUGE)
@example(rows=[TokenRow((5,), ())], with_prompt=True, temperature=1.0, call_cost=0)
@example(rows=[TokenRow((), (5, 6)), TokenRow((), (5, 7, 8))], with_prompt=False, temperature=1.0, call_cost=0)
def test_log_probs_and_gradients_are_the_padded_ones(
    kind: str, rows: list[TokenRow], with_prompt: bool, temperature: float, call_cost: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "CALL_COST", call_cost)
        assert_exact(model_of(kind), rows, with_prompt=with_prompt, temperature=temperature)


def leaking(tree: TokenTree) -> list[Block]:
    """Every branch sees what stands before it in the row."""
    return [Block(0, len(tree), None, None)]


def test_a_wrong_mask_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "plan_blocks", leaking)
    for rows in (HARD, long_rows()):
        logps, grads = differences(model_of("llama"), rows)
        assert logps > 0.1 and grads > 1e-3
    assert find_problem(model_of("llama"), IDS) == "its log-probs over a tree differ from the padded ones"


@pytest.mark.parametrize(("kind", "std", "seed"), [("llama", 0.4, 3), ("qwen2", 0.6, 2), ("gemma", 0.8, 3)])
def test_rounding_in_bfloat16_is_no_problem_and_a_wrong_mask_is(
    kind: str, std: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On these tokens both ways are 0.1 to 1.3 apart, as those of SmolLM2-135M are."""
    model = fresh(kind, std=std, seed=seed, num_hidden_layers=6).to(torch.bfloat16)
    rows = [TokenRow((1, 2, 3), answer) for answer in ((4, 5, 6, 5), (6, 4, 2, 1), (6, 4, 3))] + [
        TokenRow([2], [3, 1, 5])
    ]
    with torch.no_grad():
        apart = over_tree(model, rows).logps_N - token_logps(model, rows, pad_id=PAD).logps_N
    assert float(apart.abs().max()) > 0.1
    assert find_problem(model, IDS) is None and find_problem(model, IDS[:1]) is None
    monkeypatch.setattr(forward, "plan_blocks", leaking)
    assert find_problem(model, IDS) == "its log-probs over a tree differ from the padded ones"


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "falcon_h1"])
def test_in_float32_a_model_gives_float32_values_and_widens_one_layer_at_a_time(kind: str) -> None:
    model, seen = fresh(kind).to(torch.bfloat16), list[list[torch.dtype]]()
    weights = [next(layer.parameters()) for layer in model.model.layers]
    ids, dtypes = [3, 4, 5, 6], lambda: [next(layer.parameters()).dtype for layer in model.model.layers]
    with evaluating(model), in_float32(model):
        outer = model.model.layers[-1].register_forward_hook(lambda *_: seen.append(dtypes()))
        found = plain_logits(model, ids)
        model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    outer.remove()
    assert seen == [[torch.bfloat16] * 2]
    with pytest.raises(ZeroDivisionError), evaluating(model), in_float32(model):
        plain_logits(model, ids)
    assert [next(layer.parameters()) for layer in model.model.layers] == weights
    assert dtypes() == [torch.bfloat16] * 2 and next(model.parameters()).dtype == torch.bfloat16
    model.model.layers[0]._forward_hooks.clear()
    expected = plain_logits(copy.deepcopy(model).float(), ids)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(
        plain_logits(model, ids), expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["llama", "phi", "cohere", "gemma2", "granite", "falcon_h1"])
def test_what_an_architecture_does_to_its_logits_is_known_or_noticed(kind: str) -> None:
    model = fresh(kind, std=0.6).to(torch.bfloat16)
    assert head_agrees(model)
    model.register_forward_hook(lambda _, given, out: out.__setitem__("logits", out.logits * 1.1))
    assert not head_agrees(model)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
def test_entropies_are_the_padded_ones_and_those_of_the_softmax(kind: str, temperature: float) -> None:
    model, rows = model_of(kind), [*HARD, *long_rows()]
    tree, padded = (f(model, rows, pad_id=PAD, temperature=temperature, entropy=True) for f in (over_tree, token_logps))
    assert tree.computed < padded.computed
    expected = []
    for row in rows:
        own_TV = plain_logits(model, [*row.prompt, *row.answer])[len(row.prompt) - 1 : -1] / temperature
        expected += torch.distributions.Categorical(logits=own_TV).entropy().tolist() if row.answer else []
    assert max(expected) - min(expected) > 0.2
    for found in (tree, padded):
        assert found.entropy_N is not None and not found.entropy_N.requires_grad and found.logps_N.requires_grad
        assert found.entropy_N.tolist() == pytest.approx(expected, abs=1e-4)
    plain = over_tree(model, rows, temperature=temperature)
    assert plain.entropy_N is None and torch.allclose(plain.logps_N, tree.logps_N, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], ["q_proj", "lm_head"]])
def test_adapters_get_the_padded_gradients(targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    base = fresh("llama")
    before = over_tree(base, HARD).logps_N.detach()
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    assert_exact(model, HARD)
    assert_exact(model, long_rows())
    _, found = passed(over_tree, model, long_rows())
    assert found and all("lora" in weight and grad.abs().max() > 1e-4 for weight, grad in found.items())
    assert any("lm_head" in weight for weight in found) == ("lm_head" in targets)
    with model.disable_adapter():
        without = over_tree(model, HARD).logps_N
    assert torch.equal(without, before) and float((over_tree(model, HARD).logps_N - without).detach().abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
def test_bfloat16_agrees_as_far_as_it_goes(kind: str) -> None:
    """Log-probs within 0.1 of the padded ones, and no further from float32 than twice what padded bfloat16 is."""
    rows, narrow = [*HARD, *long_rows()], fresh(kind).to(torch.bfloat16)
    true, _ = passed(token_logps, model_of(kind), rows)
    (ours, our_gradients), (theirs, their_gradients) = (passed(f, narrow, rows) for f in (over_tree, token_logps))
    assert float((ours.logps_N - theirs.logps_N).detach().abs().max()) < 0.1
    off, padded_off = ((found.logps_N - true.logps_N).detach().norm() for found in (ours, theirs))
    assert off < 2 * padded_off
    left, right = (torch.cat([g.flatten().float() for g in of.values()]) for of in (our_gradients, their_gradients))
    assert float((left - right).norm() / right.norm()) < 0.05


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rows", [long_rows(), LONG_PROMPT])
def test_gradient_checkpointing_does_not_change_the_gradients(rows: list[TokenRow], reentrant: bool) -> None:
    model = fresh("qwen2").train()
    _, expected = passed(token_logps, model, rows)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, found = passed(over_tree, model, rows)
    assert furthest(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_only_what_the_head_reads_runs_through_the_last_mlp(kind: str) -> None:
    model, seen = fresh(kind), dict[str, int]()
    layers = model.model.layers
    parts = {"first": layers[0].mlp, "key": layers[-1].self_attn.k_proj, "inner": layers[-1].mlp.down_proj}
    for label, part in parts.items():
        part.register_forward_pre_hook(lambda _, given, label=label: seen.__setitem__(label, given[0].shape[1]))
    tree = TokenTree.build([[*row.prompt, *row.answer] for row in LONG_PROMPT])
    read = {
        path[k - 1] for row, path in zip(LONG_PROMPT, tree.paths, strict=True) for k in range(len(row.prompt), len(row))
    }
    over_tree(model, LONG_PROMPT)
    assert seen == {"first": len(tree), "key": len(tree), "inner": len(read)}
    over_tree(model, LONG_PROMPT, with_prompt=True)
    assert seen["inner"] == len(tree)


def test_a_failed_forward_leaves_the_model_as_it_was() -> None:
    model = fresh("llama")
    before, mlp = plain_logits(model, [1, 2, 3]), model.model.layers[-1].mlp
    broken = mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        over_tree(model, LONG_PROMPT)
    broken.remove()
    assert not mlp._forward_hooks and model.config._attn_implementation == "sdpa"
    assert torch.equal(plain_logits(model, [1, 2, 3]), before)


@contextmanager
def saved_sizes() -> Iterator[list[int]]:
    """Number of elements of every tensor that is kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize("forward", [over_tree, token_logps])
@pytest.mark.parametrize("kind", ["qwen2", "phi"])
def test_tiles_give_the_same_without_keeping_the_logits(
    kind: str, forward: Callable[..., TokenLogps], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = fresh(kind, vocab_size=1000), long_rows()
    whole, whole_gradients = passed(forward, model, rows)
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 5 * 1000 + 1)
    with saved_sizes() as tiled:
        found, found_gradients = passed(forward, model, rows)
    assert len(whole.logps_N) > 60 and max(tiled) < 60 * 1000
    assert torch.allclose(found.logps_N, whole.logps_N, atol=1e-6)
    assert furthest(found_gradients, whole_gradients) < 1e-6


def test_a_frozen_head_gives_the_same_gradients_below_it() -> None:
    model, rows = fresh("llama"), long_rows()
    _, expected = passed(token_logps, model, rows)
    model.get_output_embeddings().weight.requires_grad_(False)
    _, found = passed(over_tree, model, rows)
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert furthest(found, {name: expected[name] for name in found}) < 1e-5


def test_the_head_runs_once_where_answers_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions with something to predict: 3 of the group (behind the prompt, 7, 7 8), whatever the number of rows."""
    read: list[int] = []
    monkeypatch.setattr(forward, "target_logps", lambda *a, **k: read.append(len(a[1])) or target_logps(*a, **k))
    answers = [(7, 8, 9), (7, 8, 10), (7, 8), (7, 11), (12,), (), (7, 8, 9)]
    over_tree(model_of("llama"), [TokenRow((3, 4, 5, 6), answer) for answer in answers])
    assert read == [3]


@pytest.mark.parametrize("kind", ["phi", "llama"])
@pytest.mark.parametrize("tile", [1, 3, 100])
def test_target_log_probs_and_entropies_are_those_of_the_formula(
    kind: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile * VOCAB)
    model = fresh(kind)
    hidden_NH = torch.randn(8, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0)).requires_grad_()
    position_M, token_M = torch.tensor([[0, 0, 0, 2, 3, 3, 6, 6, 6, 6], [5, 5, 9, 1, 0, 63, 2, 3, 4, 5]])
    logps_M, entropy_N = target_logps(model, hidden_NH, position_M, token_M, temperature=0.7, entropy=True)
    plain_NV = torch.log_softmax(model.lm_head(hidden_NH) / 0.7, -1)
    assert torch.allclose(logps_M, plain_NV[position_M, token_M], atol=1e-6)
    assert entropy_N is not None and not entropy_N.requires_grad
    assert torch.allclose(entropy_N, -(plain_NV.exp() * plain_NV).sum(-1), atol=1e-6)
    logps_M.sum().backward()
    found, hidden_NH.grad = hidden_NH.grad, None
    of_weights = gradients(model)
    plain_NV[position_M, token_M].sum().backward()
    assert torch.allclose(found, hidden_NH.grad, atol=1e-6) and furthest(of_weights, gradients(model)) < 1e-5


def test_a_batch_that_shares_little_takes_the_padded_path() -> None:
    """Rows of 10 and 9 tokens without a common one: 19 nodes of 20 padded tokens. With 2 shared of 20, 18 nodes."""
    model, options = model_of("llama"), {"with_prompt": True, "temperature": 0.7, "pad_id": PAD}
    apart = [TokenRow(range(1, 10), (10,)), TokenRow(range(20, 28), (28,))]
    assert [tree_token_logps(model, apart, worth=worth).computed for worth in (0.9, 0.95)] == [20, 19]
    together = [TokenRow(range(1, 10), (10,)), TokenRow((1, 2, *range(20, 27)), (28,))]
    assert [tree_token_logps(model, together, worth=worth).computed for worth in (0.89, 0.9)] == [20, 18]
    assert torch.equal(tree_token_logps(model, apart, **options).logps_N, token_logps(model, apart, **options).logps_N)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that are tried from now on, in a process that knows none yet."""
    tried: list[Any] = []
    monkeypatch.setattr(forward, "_PROBLEMS", {})
    monkeypatch.setattr(forward, "find_problem", lambda *given: tried.append(given) or find_problem(*given))
    return tried


def secretive() -> PreTrainedModel:
    """A recurrence that no configuration speaks of: what stands before in the row is added up."""
    model = fresh("llama")
    model.model.embed_tokens.register_forward_hook(lambda _, given, out: out.cumsum(1))
    return model


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (partial(fresh, "llama", attention_dropout=0.1), "it drops attention weights in training"),
        (partial(fresh, "mistral"), "it attends in a sliding window"),
        (partial(fresh, "gemma2"), "its layers are full_attention, sliding_attention"),
        (
            partial(fresh, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
            "its layers are full_attention, sliding_attention",
        ),
        (partial(fresh, "falcon_h1"), "its layers are hybrid"),
        (secretive, "its log-probs over a tree differ from the padded ones"),
    ],
)
def test_an_architecture_that_cannot_take_trees_is_padded_and_says_so_once(
    build: Callable[[], PreTrainedModel], problem: str, caplog: pytest.LogCaptureFixture, untried: list[Any]
) -> None:
    policy = policy_of(build())
    assert choose_forward(policy, "tree") is token_logps is choose_forward(policy, "tree")
    said = f"token trees: {problem}; padded batches stand in, with the prompt once for each answer"
    assert FALLBACKS == caplog.messages == [said] and len(untried) == 1


@pytest.mark.parametrize("kind", [*CAUSAL, "cohere", "deepseek"])
def test_an_architecture_that_can_takes_trees_unless_told_otherwise(kind: str, untried: list[Any]) -> None:
    policy = policy_of(model_of(kind))
    assert choose_forward(policy, "padded") is token_logps and not untried
    assert choose_forward(policy, "tree") is tree_token_logps
    assert not any(text.startswith("token trees") for text in FALLBACKS)
    assert choose_forward(policy_of(fresh(kind)), "tree") is tree_token_logps and len(untried) == 1
    assert choose_forward(policy_of(fresh(kind).to(torch.bfloat16)), "tree") is tree_token_logps and len(untried) == 2


def allowed_pairs(tree: TokenTree) -> Tensor:
    at = np.arange(len(tree))
    return torch.from_numpy((at[None] <= at[:, None]) & (at[:, None] < tree.end[None]))


def times_computed(blocks: Sequence[Block], nodes: int) -> Tensor:
    """How often each (query, key) pair of the row is computed, (nodes, nodes)."""
    times = torch.zeros(nodes, nodes, dtype=torch.long)
    for block in blocks:
        here, size = torch.arange(block.start, block.stop), block.stop - block.start
        if block.above is not None:
            times[here[:, None], torch.arange(nodes)[block.above][None, :]] += 1
        inside = torch.ones(size, size, dtype=torch.bool).tril() if block.mask is None else block.mask
        times[block.start : block.stop, block.start : block.stop] += inside.long()
    return times


@settings(deadline=None, max_examples=100)
@given(
    sequences=st.lists(st.lists(st.integers(0, 2), max_size=10), min_size=1, max_size=10).filter(any),
    call_cost=st.sampled_from([0, 3, 20, forward.CALL_COST, HUGE]),
)
def test_attention_calls_compute_every_allowed_pair_once_and_no_other(
    sequences: list[list[int]], call_cost: int
) -> None:
    tree = TokenTree.build(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "CALL_COST", call_cost)
        blocks = plan_blocks(tree)
    edges = [0, *(block.stop for block in blocks)]
    assert [block.start for block in blocks] == edges[:-1] and edges[-1] == len(tree), "in row order, no gaps"
    assert torch.equal(times_computed(blocks, len(tree)), allowed_pairs(tree).long())


def test_calls_follow_their_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 50 and four answers of 20: dear calls make one masked block, free ones five causal ones."""
    tree = TokenTree.build([[*range(100, 150), *range(20 * k, 20 * k + 20)] for k in range(4)])
    monkeypatch.setattr(forward, "CALL_COST", HUGE)
    (block,) = plan_blocks(tree)
    assert block[:3] == (0, 130, None) and block.mask is not None
    monkeypatch.setattr(forward, "CALL_COST", 0)
    branches = [Block(at, at + 20, slice(0, 50), None) for at in (50, 70, 90, 110)]
    assert plan_blocks(tree) == [Block(0, 50, None, None), *branches]
    assert plan_blocks(TokenTree.build([range(30), range(12)])) == [Block(0, 30, None, None)]


@pytest.mark.parametrize("size", [1, 40, 127, 300])
def test_the_block_mask_is_the_ancestor_rule(size: int) -> None:
    """Pair by pair; its blocks of 128 are those with a pair in them; and past the last node, where the kernel reads up
    to the next multiple of 128, nothing is seen.
    """
    rng = random.Random(size)
    trunk = [rng.randrange(9) for _ in range(size)]
    cuts = [rng.randrange(size) for _ in range(6)]
    tree = TokenTree.build(
        [trunk, *([*trunk[:cut], *(rng.randrange(9) for _ in range(rng.randrange(20)))] for cut in cuts)]
    )
    built, nodes, allowed = flex_mask(tree, torch.device("cpu")), len(tree), allowed_pairs(tree)
    whole = -(-nodes // 128) * 128
    padded = create_mask(built.mask_mod, 1, 1, whole, whole, device="cpu")[0, 0]
    assert torch.equal(padded[:nodes, :nodes], allowed) and not padded[:nodes, nodes:].any()
    edges = list(pairwise([*range(0, nodes, 128), nodes]))
    present = [[int(allowed[top:bottom, left:right].any()) for left, right in edges] for top, bottom in edges]
    assert built.to_dense()[0, 0].tolist() == present
