"""The `hf` engine: batched decoding with a transformers model in this process.

Every distinct beginning (prompt and prefix) is computed once, and its answers attend to one copy of its keys and
values. Answers leave the batch as they end. Prompts asked with prefixes (by a tree search) are kept between calls.
An architecture without plain causal attention runs through transformers' own `generate`, with the same draws.
Shapes: C beginnings (padded on the right), M answers a beginning, R = C * M rows (beginning-major), H heads, J heads of
keys and values, G = H / J, D head size, S slots of a beginning, L new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, GenerationConfig, LogitsProcessorList
from transformers.masking_utils import AttentionMaskInterface

from ttpa.policy.draw import draw
from ttpa.policy.engine import Generated, Ids, Sampling, key_of
from ttpa.policy.forward import choose_forward, tree_token_logps
from ttpa.policy.logprobs import decoder_and_head, evaluating, head_logits, token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow, bucket_by_tokens
from ttpa.prompts import CallWatch

PREFILL_TOKENS = 8_192  # padded prompt tokens of one forward
COMPACT_BELOW = 0.75
"""Share of rows still needed below which the others leave the batch; moving the cache costs about a step."""
ATTENTION = "ttpa_decode"

Beginning = tuple[Ids, Ids]  # prompt and prefix


@dataclass(kw_only=True)
class HFEngine:
    """Decodes with a transformers model; see `ttpa.policy.engines.HFOptions` for the options."""

    policy: Policy
    rows: int
    kept_tokens: int = 65_536
    counts: dict[str, int] = field(default_factory=lambda: {"prefilled": 0, "generated": 0})
    _kept: dict[Ids, Beginnings] = field(default_factory=dict)

    @cached_property
    def plain(self) -> bool:
        """Whether the architecture has no plain causal attention."""
        return choose_forward(self.policy.model, "tree") is token_logps

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        """See `ttpa.policy.engine.Engine.generate`."""
        starts = prefixes or [()] * len(prompts)
        slots = [
            Slot(tuple(prompt), tuple(start), key_of(seed, candidate))
            for prompt, start, seed in zip(prompts, starts, seeds, strict=True)
            for candidate in range(n)
        ]
        plain = self.plain
        with evaluating(self.policy.model):
            for batch in self._batches([slot for slot in slots if len(slot.prefix) < sampling.max_new_tokens]):
                decoding = _Decoding(self, batch, sampling)
                decoding.plainly() if plain else decoding.side_by_side(keep=bool(prefixes))
        self.counts["generated"] += sum(len(slot.answer.token_ids) for slot in slots)
        return [[slot.answer for slot in slots[i * n : i * n + n]] for i in range(len(prompts))]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """See `ttpa.policy.engine.Engine.next_logps`."""
        self.counts["prefilled"] += sum(map(len, prompts))
        return [[logp for (logp,) in self.answer_logps(prompt, [(t,) for t in tokens])] for prompt in prompts]

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]]:
        """See `ttpa.policy.engine.Engine.answer_logps`; one forward over the tree that prompt and answers are."""
        rows = [TokenRow(prompt, answer) for answer in answers]
        forward = token_logps if self.plain else partial(tree_token_logps, worth=2.0)
        with evaluating(self.policy.model):
            found = forward(self.policy.model, rows, pad_id=self.policy.renderer.pad_id)
        flat, ends = found.logps_N.tolist(), accumulate(map(len, answers), initial=0)
        return [flat[start:stop] for start, stop in pairwise(ends)]

    def reset(self) -> None:
        """See `ttpa.policy.engine.Engine.reset`."""
        self._kept.clear()

    def _batches(self, slots: Sequence[Slot]) -> Iterator[list[Slot]]:
        """At most `rows` places a batch, where each beginning takes as many places as the one with the most slots."""
        groups, batch, beginnings, widest = _by_beginning(slots), list[Slot](), 0, 0
        for key in sorted(groups, key=lambda key: (len(key[0]) + len(key[1]), key)):
            for at in range(0, len(groups[key]), self.rows):
                part = groups[key][at : at + self.rows]
                if batch and max(widest, len(part)) * (beginnings + 1) > self.rows:
                    yield batch
                    batch, beginnings, widest = [], 0, 0
                batch += part
                beginnings, widest = beginnings + 1, max(widest, len(part))
        if batch:
            yield batch

    def read(self, keys: Sequence[Beginning], keep: bool) -> Beginnings:
        """The beginnings, computed or found. `keep` remembers the prompts."""
        prompts = dict.fromkeys(prompt for prompt, _ in keys)
        found = {ids: self._kept[ids] for ids in prompts if ids in self._kept}
        missing = [ids for ids in prompts if ids not in found]
        for batch in bucket_by_tokens(range(len(missing)), [len(ids) for ids in missing], PREFILL_TOKENS):
            some = [missing[k] for k in batch]
            empty = torch.zeros(len(some), dtype=torch.long, device=self.policy.model.device)
            found |= zip(some, self._extended(Beginnings([], empty, empty), some).apart(), strict=True)
        if keep:
            for ids in prompts:
                self._kept[ids] = self._kept.pop(ids, found[ids])  # the last one used is the last one to go
            while sum(map(len, self._kept)) > self.kept_tokens and len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
        whole = Beginnings.together([found[prompt] for prompt, _ in keys])
        prefixes = [prefix for _, prefix in keys]
        return self._extended(whole, prefixes) if any(prefixes) else whole

    def _extended(self, state: Beginnings, ids: Sequence[Ids]) -> Beginnings:
        """Beginnings (empty for the first tokens of all) with more tokens behind each; some may get none."""
        model, device = self.policy.model, state.length_C.device
        size_C, width = torch.tensor([len(part) for part in ids], device=device), max(map(len, ids))
        ids_CL = torch.tensor([[*part, *[self.policy.renderer.pad_id] * (width - len(part))] for part in ids])
        state.place_CL = state.length_C[:, None] + torch.arange(width, device=device)
        hidden_CLE = _run(model, state, ids_CL.to(device), state.place_CL)
        self.counts["prefilled"] += sum(map(len, ids))
        _, head, config = decoder_and_head(model)
        some = size_C.nonzero()[:, 0]
        logits_SV = head_logits(head, config, hidden_CLE[some, size_C[some] - 1])
        if len(some) < len(ids):
            logits_SV = state.logits_CV.index_copy(0, some, logits_SV)
        return Beginnings(state.cache, state.length_C + size_C, logits_SV)


@dataclass(slots=True)
class Beginnings:
    """What is kept of C token sequences: keys and values of each layer in turn (C, J, S, D), and the next logits."""

    cache: list[Tensor]
    length_C: Tensor
    logits_CV: Tensor
    place_CL: Tensor = field(init=False)  # of the tokens that are computed

    def apart(self) -> list[Beginnings]:
        """Each by itself, without its padding; copies, so that none holds the others in memory."""
        parts = zip(self.length_C.tolist(), self.length_C.split(1), self.logits_CV.split(1), strict=True)
        return [
            Beginnings([x[c : c + 1, :, :size].clone() for x in self.cache], length, logits.clone())
            for c, (size, length, logits) in enumerate(parts)
        ]

    @classmethod
    def together(cls, parts: Sequence[Beginnings]) -> Beginnings:
        """Several as one batch, padded on the right."""
        width = max(part.cache[0].shape[2] for part in parts)
        layers = zip(*(part.cache for part in parts), strict=True)
        return cls(
            [torch.cat([F.pad(x, (0, 0, 0, width - x.shape[2])) for x in layer]) for layer in layers],
            torch.cat([part.length_C for part in parts]),
            torch.cat([part.logits_CV for part in parts]),
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of the new tokens, (C, H, L, D), to what stands before them; padding stands behind."""
        places, at, mask = self.place_CL, 2 * layer, None
        if at == len(self.cache):  # the first tokens of all
            self.cache += [key, value]
        else:
            row_C1 = torch.arange(len(places), device=key.device)[:, None]
            for number, new in ((at, key), (at + 1, value)):
                self.cache[number] = F.pad(self.cache[number], (0, 0, 0, new.shape[2]))
                self.cache[number][row_C1, :, places] = new.transpose(1, 2)
            key, value = self.cache[at : at + 2]
            mask = (torch.arange(key.shape[2], device=key.device) <= places[:, :, None])[:, None]
        if (groups := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)


@dataclass(slots=True)
class Rows:
    """Answers in the making, M behind each beginning; `cache` holds their own keys and values in the same order."""

    before: Beginnings
    per_beginning: int
    cache: list[Tensor] = field(default_factory=list)
    closed: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        length_C = self.before.length_C
        closed_CS = torch.arange(self.before.cache[0].shape[2], device=length_C.device) >= length_C[:, None]
        self.closed = closed_CS[:, None, None] if bool(closed_CS.any()) else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one new token a row, (R, H, 1, D). The keys of a beginning are read once, not for each row."""
        R, H, _, D = query.shape
        J, M = key.shape[1], self.per_beginning
        C, G, at = R // M, H // J, 2 * layer
        if at == len(self.cache):
            self.cache += [key, value]
        else:
            self.cache[at : at + 2] = [torch.cat(x, 2) for x in zip(self.cache[at : at + 2], (key, value), strict=True)]
        own_key, own_value = self.cache[at : at + 2]

        def by_beginning(x_RJGE: Tensor) -> Tensor:
            return x_RJGE.reshape(C, M, J, G, -1).transpose(1, 2).reshape(C, J, M * G, -1)

        def by_row(x_CJE: Tensor) -> Tensor:
            return x_CJE.reshape(C, J, M, G, -1).transpose(1, 2).reshape(R, J, G, -1)

        query = (query * scale).reshape(R, J, G, D)
        far = by_beginning(query) @ self.before.cache[at].mT
        if self.closed is not None:
            far = far.masked_fill_(self.closed, float("-inf"))
        near = by_beginning(query @ own_key.mT)
        weights = torch.softmax(torch.cat([far, near], -1), -1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
        out = by_row(far @ self.before.cache[at + 1]) + by_row(near) @ own_value
        return out.reshape(R, H, 1, -1)


_STATE: ContextVar[Beginnings | Rows] = ContextVar("decoding")


def _run(model: Any, state: Beginnings | Rows, ids: Tensor, places: Tensor) -> Tensor:
    """Last hidden states of a forward pass whose attention fills and reads `state`."""
    decoder, _, shared = decoder_and_head(model)
    config: Any = shared
    before, token = config._attn_implementation, _STATE.set(state)
    config._attn_implementation = ATTENTION
    try:
        return decoder(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
    finally:
        config._attn_implementation = before
        _STATE.reset(token)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _STATE.get().attend(module.layer_idx, query, key, value, scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
# Who sees whom is decided here: transformers makes no mask.
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


@dataclass(slots=True)
class Slot:
    """One answer in the making. `seen_V`, for a repetition penalty: which tokens prompt, prefix and answer hold."""

    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    key: int
    answer: Generated = field(default_factory=Generated)
    watch: CallWatch | None = None
    seen_V: Tensor | None = None
    ended: bool = False


def _by_beginning(slots: Sequence[Slot]) -> dict[Beginning, list[Slot]]:
    groups: dict[Beginning, list[Slot]] = {}
    for slot in slots:
        groups.setdefault((slot.prompt, slot.prefix), []).append(slot)
    return groups


class _Decoding:
    """A batch of answers in the making."""

    def __init__(self, engine: HFEngine, slots: Sequence[Slot], sampling: Sampling) -> None:
        self.engine, self.slots, self.sampling = engine, slots, sampling
        self.model, renderer = engine.policy.model, engine.policy.renderer
        self.stop, self.pad = set(renderer.stop_ids), renderer.pad_id
        self.longest = sampling.max_new_tokens - min(len(slot.prefix) for slot in slots)
        if sampling.rule is not None and sampling.rule.span == "call":
            for slot in slots:
                slot.watch = CallWatch(renderer.tokenizer, renderer.syntax)
                for token in slot.prefix:
                    slot.watch.push(token)

    def side_by_side(self, keep: bool) -> None:
        """Behind shared beginnings."""
        _, head, config = decoder_and_head(self.model)
        keys, places, width = self._places(self.slots)
        before = self.engine.read(keys, keep)
        state, logits_RV = Rows(before, width), before.logits_CV.repeat_interleave(width, 0)
        for step in range(self.longest):
            token_R = self._draw(logits_RV, places, step)
            alive = [slot for slot in self.slots if not slot.ended]
            if not alive:
                return
            if len(alive) <= COMPACT_BELOW * len(places):
                keys, wanted, most = self._places(alive)
                if len(wanted) <= COMPACT_BELOW * len(places):
                    first = {id(slot): at for at, slot in reversed(list(enumerate(places)))}
                    at = torch.tensor([first[id(slot)] for slot in wanted], device=token_R.device)
                    if len(keys) < len(before.length_C):
                        few = at[::most] // width
                        before = Beginnings([x[few] for x in before.cache], before.length_C[few], before.logits_CV[few])
                    state = Rows(before, most, [x[at] for x in state.cache])
                    token_R, places, width = token_R[at], wanted, most
            places_R1 = (before.length_C + step).repeat_interleave(width)[:, None]
            logits_RV = head_logits(head, config, _run(self.model, state, token_R[:, None], places_R1)[:, -1])

    def _places(self, slots: Sequence[Slot]) -> tuple[list[Beginning], list[Slot], int]:
        """The beginnings of some slots; the slots by beginning, repeated to fill up; the number of slots of each."""
        groups = _by_beginning(slots)
        width = max(map(len, groups.values()))
        return list(groups), [s for group in groups.values() for s in group + group[:1] * (width - len(group))], width

    def plainly(self) -> None:
        """By transformers' own `generate`, with our draws: for architectures with a cache of their own."""
        ids = [[*slot.prompt, *slot.prefix] for slot in self.slots]
        width, device = max(map(len, ids)), self.model.device
        ids_RT = torch.tensor([[*[self.pad] * (width - len(i)), *i] for i in ids], device=device)
        mask_RT = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=device)
        self.engine.counts["prefilled"] += sum(map(len, ids))
        config = GenerationConfig(
            max_new_tokens=self.longest, do_sample=False, eos_token_id=sorted(self.stop), pad_token_id=self.pad
        )

        def only_drawn(input_ids: Tensor, scores: Tensor) -> Tensor:
            token_R = self._draw(scores.float(), self.slots, input_ids.shape[1] - width)
            return torch.full_like(scores, float("-inf")).scatter(-1, token_R[:, None], 0.0)

        model: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        # What the model's own settings ask for (many have a repetition penalty) would be added to ours.
        own, model.generation_config = model.generation_config, GenerationConfig()
        processors = LogitsProcessorList([only_drawn])
        try:
            model.generate(ids_RT, attention_mask=mask_RT, generation_config=config, logits_processor=processors)
        finally:
            model.generation_config = own

    def _draw(self, logits_RV: Tensor, slots: Sequence[Slot], step: int) -> Tensor:
        """Draws a token for each slot and writes it to its answer, once if the slot stands several times."""
        device, inside_R, seen_RV = logits_RV.device, None, None
        if self.slots[0].watch is not None:
            inside_R = torch.tensor([slot.watch is not None and slot.watch.inside for slot in slots], device=device)
        if self.sampling.repetition_penalty != 1.0:
            for slot in slots:
                if slot.seen_V is None:
                    slot.seen_V = torch.zeros(logits_RV.shape[1], dtype=torch.bool)
                    slot.seen_V[[*slot.prompt, *slot.prefix]] = True
            seen_RV = torch.stack([slot.seen_V for slot in slots if slot.seen_V is not None]).to(device)
        key_R = torch.tensor([slot.key for slot in slots], device=device)
        drawn = draw(logits_RV, key_R, step, self.sampling, inside_R=inside_R, seen_RV=seen_RV)
        tokens, logps = drawn.token_R.tolist(), drawn.logp_R.tolist()
        options = None if drawn.options is None else list(zip(*(part.tolist() for part in drawn.options), strict=True))
        for at, slot in {id(slot): (at, slot) for at, slot in reversed(list(enumerate(slots)))}.values():
            if slot.ended:
                continue
            answer, token = slot.answer, tokens[at]
            if options is not None:
                chances = tuple((t, round(p, 6)) for t, p, kept in zip(*options[at], strict=True) if kept)
                if len(chances) > 1:
                    answer.branches.append((len(answer.token_ids), chances))
            answer.token_ids.append(token)
            answer.logps.append(logps[at])
            if slot.seen_V is not None:
                slot.seen_V[token] = True
            if token in self.stop:
                slot.ended, answer.finish = True, "stop"
            elif len(slot.prefix) + len(answer.token_ids) == self.sampling.max_new_tokens:
                slot.ended = True
            elif slot.watch is not None:
                slot.watch.push(token)
        return drawn.token_R
