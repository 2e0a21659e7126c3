"""Attention over shared prompts and own tokens: against ordinary attention, row by row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ttpa.policy.decode as decode_attention_module
from ttpa.policy.decode import BLOCK, NAME, Prompts, Rows, decode_attention, decoding, side_by_side

LAYERS = 2


def reference(query_HLD: Tensor, key_JSD: Tensor, value_JSE: Tensor, scale: float) -> Tensor:
    """Queries are the last of the keys: (L, H, E), written out."""
    H, L, _ = query_HLD.shape
    S, groups = key_JSD.shape[1], H // key_JSD.shape[0]
    scores = query_HLD.double() @ key_JSD.double().repeat_interleave(groups, 0).mT * scale
    future = torch.arange(S) > torch.arange(S - L, S)[:, None]
    weights = torch.softmax(scores.masked_fill(future, float("-inf")), -1)
    return (weights @ value_JSE.double().repeat_interleave(groups, 0)).transpose(0, 1).float()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("lengths", "groups", "sizes"), [([3, 150, 64], 3, (8, 6)), ([65], 1, (4, 4)), ([1], 2, (6, 8))]
)
def test_prompts_in_half_precision(
    fast: bool,
    dtype: torch.dtype,
    lengths: list[int],
    groups: int,
    sizes: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In strips or not; nothing of the padding behind a prompt comes through."""
    monkeypatch.setattr(decode_attention_module, "FAST_BFLOAT16", fast)
    generator, (B, P, J) = torch.Generator().manual_seed(5), (len(lengths), max(lengths), 2)
    query, key, value = (
        torch.randn(B, P, heads, size, generator=generator).to(dtype).transpose(1, 2)
        for heads, size in ((J * groups, sizes[0]), (J, sizes[0]), (J, sizes[1]))
    )
    state = Prompts(length_B=torch.tensor(lengths))
    with decoding(SimpleNamespace(_attn_implementation="sdpa"), state):
        out, _ = decode_attention(SimpleNamespace(layer_idx=0), query, key, value, None, scaling=0.4)
    assert out.dtype == dtype and out.is_contiguous()
    for b, length in enumerate(lengths):
        expected = reference(query[b, :, :length], key[b, :, :length], value[b, :, :length], 0.4)
        assert torch.allclose(out[b, :length].float(), expected, atol=0.03)


class Made:
    """Prompts of given lengths and rows behind them, with everything a row has seen kept aside."""

    def __init__(self, lengths: list[int], per_prompt: int, heads: int, groups: int, sizes: tuple[int, int]) -> None:
        self.lengths, self.per_prompt, self.heads, self.groups, self.sizes = lengths, per_prompt, heads, groups, sizes
        self.generator = torch.Generator().manual_seed(len(lengths) * 7 + per_prompt)
        self.scale = 0.7
        self.modules = [SimpleNamespace(layer_idx=layer) for layer in range(LAYERS)]
        self.seen: list[list[tuple[Tensor, Tensor]]] = []

    def random(self, *shape: int) -> Tensor:
        """As a model gives it: computed as (rows, tokens, heads, size), shown as (rows, heads, tokens, size)."""
        rows, heads, tokens, size = shape
        return torch.randn(rows, tokens, heads, size, generator=self.generator).transpose(1, 2)

    def inputs(self, rows: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        J, (D, E) = self.heads, self.sizes
        return (
            self.random(rows, J * self.groups, tokens, D),
            self.random(rows, J, tokens, D),
            self.random(rows, J, tokens, E),
        )

    def read(self) -> Prompts:
        """Reads the prompts and compares what comes out."""
        state = Prompts(length_B=torch.tensor(self.lengths), logits_BV=torch.arange(len(self.lengths) * 3).view(-1, 3))
        self.seen = [[] for _ in self.lengths]
        for module in self.modules:
            query, key, value = self.inputs(len(self.lengths), max(self.lengths))
            with decoding(SimpleNamespace(_attn_implementation="sdpa"), state):
                out, _ = decode_attention(module, query, key, value, None, scaling=self.scale)
            for b, length in enumerate(self.lengths):
                k, v = key[b, :, :length], value[b, :, :length]
                assert torch.allclose(out[b, :length], reference(query[b, :, :length], k, v, self.scale), atol=1e-5)
                self.seen[b].append((k, v))
        return state

    def begin(self, prompts: Prompts, given: list[int], room: int) -> Rows:
        self.seen = [self.seen[at // self.per_prompt][:] for at in range(len(given))]
        longest = max(given)
        open_RT = torch.ones(len(given), longest + room, dtype=torch.bool)
        for at, size in enumerate(given):
            open_RT[at, : longest - size] = False
        return Rows(prompts, self.per_prompt, open_RT)

    def step(self, state: Rows, tokens: int, real: list[int]) -> None:
        """Adds tokens to every row, of which the last `real` count, and compares what comes out for those."""
        for layer, module in enumerate(self.modules):
            query, key, value = self.inputs(len(real), tokens)
            with decoding(SimpleNamespace(_attn_implementation="sdpa"), state):
                out, _ = decode_attention(module, query, key, value, None, scaling=self.scale)
            assert out.is_contiguous() and torch.isfinite(out).all()
            for at, size in enumerate(real):
                if not size:
                    continue
                before_k, before_v = self.seen[at][layer]
                k = torch.cat([before_k, key[at, :, tokens - size :]], 1)
                v = torch.cat([before_v, value[at, :, tokens - size :]], 1)
                expected = reference(query[at, :, tokens - size :], k, v, self.scale)
                assert torch.allclose(out[at, tokens - size :], expected, atol=1e-5)
                self.seen[at][layer] = (k, v)
        state.used += tokens


SHAPES = {
    "lengths": st.lists(st.integers(1, 6), min_size=1, max_size=3),
    "per_prompt": st.integers(1, 3),
    "heads": st.integers(1, 2),
    "groups": st.integers(1, 3),
    "size": st.sampled_from([2, 4]),
    "data": st.data(),
}


@given(**SHAPES)
@settings(max_examples=60, deadline=None)
def test_rows_attend_to_their_prompt_and_to_themselves(
    lengths: list[int], per_prompt: int, heads: int, groups: int, size: int, data: st.DataObject
) -> None:
    """Prompts of several lengths, beginnings of several lengths (also none), steps, and rows that leave in between."""
    made = Made(sorted(lengths), per_prompt, heads, groups, (size, size))
    prompts = made.read()
    rows = len(lengths) * per_prompt
    given = data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows), label="given")
    state = made.begin(prompts, given, 4)
    if max(given):
        made.step(state, max(given), given)
    made.step(state, 1, [1] * rows)
    kept = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True).map(sorted), label="kept")
    width = data.draw(st.integers(1, per_prompt), label="width")
    at = [prompt * per_prompt + row for prompt in kept for row in range(width)]
    state = state.pick(None if len(kept) == len(lengths) else torch.tensor(kept), torch.tensor(at), width)
    made.seen = [made.seen[row] for row in at]
    for _ in range(2):
        made.step(state, 1, [1] * len(at))


def test_values_may_have_another_size_than_keys() -> None:
    made = Made([3, 5], 2, 1, 2, (4, 2))
    state = made.begin(made.read(), [2, 0, 1, 2], 3)
    made.step(state, 2, [2, 0, 1, 2])
    made.step(state, 1, [1] * 4)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
@example(lengths=[3, 3], data=None)
@settings(max_examples=30, deadline=None)
def test_kept_prompts_are_taken_apart_and_put_together(lengths: list[int], data: st.DataObject | None) -> None:
    made = Made(sorted(lengths), 1, 1, 1, (2, 2))
    whole = made.read()
    parts = [whole.one(number) for number in range(len(lengths))]
    for number, part in enumerate(parts):
        assert part.keys[0].shape[2] == part.values[1].shape[2] == int(part.length_B) == sorted(lengths)[number]
        assert part.keys[0].untyped_storage().data_ptr() != whole.keys[0].untyped_storage().data_ptr()
    order = list(range(len(lengths))) if data is None else data.draw(st.permutations(range(len(lengths))))
    joined = side_by_side([parts[number] for number in order])
    assert joined.length_B.tolist() == [sorted(lengths)[number] for number in order]
    assert torch.equal(joined.logits_BV, whole.logits_BV[order])
    some = whole.pick(torch.tensor(order[:2]))
    for layer in range(LAYERS):
        for place, number in enumerate(order):
            size = sorted(lengths)[number]
            for ours, theirs in ((joined.keys, whole.keys), (joined.values, whole.values)):
                assert torch.equal(ours[layer][place, :, :size], theirs[layer][number, :, :size])
                assert not ours[layer][place, :, size:].any()
        assert torch.equal(some.values[layer], whole.values[layer][order[:2]])


def test_the_configuration_is_as_it_was_afterwards_and_after_a_failure() -> None:
    config = SimpleNamespace(_attn_implementation="eager")
    with decoding(config, Prompts()):
        assert config._attn_implementation == NAME
        with pytest.raises(KeyError), decoding(config, Prompts()):
            raise KeyError
        assert config._attn_implementation == NAME
    assert config._attn_implementation == "eager"
    query = torch.zeros(1, 1, 1, 2)
    with pytest.raises(AssertionError, match="decoding"):
        decode_attention(SimpleNamespace(layer_idx=0), query, query, query, None)


def test_half_precision_keeps_its_number_format() -> None:
    """Within its rounding, also where scores are large; the softmax is computed in float32."""
    made = Made([4, 7], 2, 1, 2, (8, 8))
    for dtype, within in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        prompts = made.read()
        half = Prompts([k.to(dtype) for k in prompts.keys], [v.to(dtype) for v in prompts.values], prompts.length_B)
        query, key, value = (4 * part for part in made.inputs(4, 1))
        state, exact = (Rows(p, 2, torch.ones(4, 1, dtype=torch.bool)) for p in (half, prompts))
        outs = []
        for rows, kind in ((state, dtype), (exact, torch.float32)):
            with decoding(SimpleNamespace(_attn_implementation="sdpa"), rows):
                q, k, v = query.to(kind), key.to(kind), value.to(kind)
                outs.append(decode_attention(made.modules[0], q, k, v, None, scaling=0.25)[0])
        assert outs[0].dtype == dtype
        assert float((outs[0].float() - outs[1]).abs().max()) < within * float(outs[1].abs().max())


def test_memory_grows_with_the_answers() -> None:
    """A row with room for a hundred tokens holds the blocks it has used, across several of them."""
    made = Made([4, 7], 2, 1, 2, (8, 8))
    state = made.begin(made.read(), [0, 1, 0, 2], room=100)
    made.step(state, 2, [0, 1, 0, 2])
    for used in range(3, 2 * BLOCK + 2):
        made.step(state, 1, [1] * 4)
        assert {part.shape[2] for part in (*state.keys, *state.values)} == {-(-used // BLOCK) * BLOCK}
        assert all(part.is_contiguous() for part in (*state.keys, *state.values))
