"""The `hf` engine: batched decoding with a transformers model in this process.

Every distinct beginning (prompt and prefix) is computed once, and its answers attend to one copy of its keys and
values. Answers leave the batch as they end. Prompts asked with prefixes (by a tree search) are kept between calls.
Shapes: C beginnings (padded on the right), M answers a beginning, R = C * M rows (beginning-major), H heads, J heads of
keys and values, G = H / J, D head size, S slots of a beginning, L new tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, chain, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessorList

from ttpa.errors import fall_back
from ttpa.policy.draw import draw
from ttpa.policy.engine import Generated, Ids, Sampling, key_of
from ttpa.policy.forward import Attend, attending, masked_attention, tree_problem, tree_token_logps
from ttpa.policy.logprobs import decoder_and_head, evaluating, head_logits, token_logps
from ttpa.policy.policy import Policy
from ttpa.policy.tree import TokenRow, bucket_by_tokens
from ttpa.prompts import CallWatch

PREFILL_TOKENS = 8_192  # padded prompt tokens of one forward
COMPACT_BELOW = 0.75  # share of rows still needed below which the others leave the batch; moving costs about a step

Beginning = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and prefix


class Cached(NamedTuple):
    """What is kept of C token sequences: keys and values of each layer in turn (C, J, S, D), and the next logits."""

    cache: list[Tensor]
    length_C: Tensor
    logits_CV: Tensor


@dataclass(slots=True, eq=False)
class Slot:
    """One answer in the making, of at most `room` tokens. `seen_V`, for a repetition penalty: which tokens prompt,
    prefix and answer hold.
    """

    beginning: Beginning
    room: int
    key: int
    answer: Generated = field(default_factory=Generated)
    watch: CallWatch | None = None
    seen_V: Tensor | None = None
    ended: bool = False


@dataclass(kw_only=True)
class HFEngine:
    """Implements `ttpa.policy.engine.Engine` with a transformers model; see `ttpa.policy.engines.HFOptions`."""

    policy: Policy
    rows: int
    kept_tokens: int = 65_536
    counts: dict[str, int] = field(default_factory=lambda: {"prefilled": 0, "generated": 0})
    _kept: dict[Ids, Cached] = field(default_factory=dict)

    @cached_property
    def plain(self) -> bool:
        """Whether the architecture has no plain causal attention, which is a fallback."""
        if problem := tree_problem(self.policy):
            fall_back(f"engine=hf: {problem}; transformers' generate stands in, with the prompt once for each answer")
        return problem is not None

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        slots = [
            Slot((tuple(prompt), tuple(prefix)), sampling.max_new_tokens - len(prefix), key_of(seed, candidate))
            for prompt, prefix, seed in zip(prompts, prefixes or [()] * len(prompts), seeds, strict=True)
            for candidate in range(n)
        ]
        if sampling.rule is not None and sampling.rule.span == "call":
            for slot in slots:
                slot.watch = CallWatch(self.policy.renderer.tokenizer, self.policy.renderer.syntax, slot.beginning[1])
        run = self._plainly if self.plain else partial(self._side_by_side, keep=bool(prefixes))
        with evaluating(self.policy.model):
            for batch in self._batches([slot for slot in slots if slot.room > 0]):
                run(batch, sampling)
        self.counts["generated"] += sum(len(slot.answer.token_ids) for slot in slots)
        return [[slot.answer for slot in slots[i * n : i * n + n]] for i in range(len(prompts))]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        self.counts["prefilled"] += sum(map(len, prompts))
        return [[logp for (logp,) in self.answer_logps(prompt, [(t,) for t in tokens])] for prompt in prompts]

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]]:
        """One forward over the tree that prompt and answers are."""
        rows = [TokenRow(prompt, answer) for answer in answers]
        forward = token_logps if self.plain else partial(tree_token_logps, worth=2.0)
        with evaluating(self.policy.model):
            found = forward(self.policy.model, rows, pad_id=self.policy.renderer.pad_id)
        flat, ends = found.logps_N.tolist(), accumulate(map(len, answers), initial=0)
        return [flat[start:stop] for start, stop in pairwise(ends)]

    def reset(self) -> None:
        self._kept.clear()

    def close(self) -> None:
        self._kept.clear()

    def _batches(self, slots: Sequence[Slot]) -> list[list[Slot]]:
        """At most `rows` places a batch, where each beginning takes as many places as the one with the most slots."""
        batches: list[list[list[Slot]]] = [[]]
        slots = sorted(slots, key=lambda slot: (sum(map(len, slot.beginning)), slot.beginning))
        for group in (list(same) for _, same in groupby(slots, key=lambda slot: slot.beginning)):
            for part in (group[at : at + self.rows] for at in range(0, len(group), self.rows)):
                if max(map(len, [*batches[-1], part])) * (len(batches[-1]) + 1) > self.rows:
                    batches.append([])
                batches[-1].append(part)
        return [[slot for part in batch for slot in part] for batch in batches if batch]

    def _read(self, beginnings: Sequence[Beginning], keep: bool) -> Cached:
        """The beginnings, computed or found, as one batch. `keep` remembers the prompts."""
        prompts = dict.fromkeys(prompt for prompt, _ in beginnings)
        found, missing = dict(self._kept), [ids for ids in prompts if ids not in self._kept]
        for batch in bucket_by_tokens(range(len(missing)), [len(ids) for ids in missing], PREFILL_TOKENS):
            some = [missing[k] for k in batch]
            empty = torch.zeros(len(some), dtype=torch.long, device=self.policy.model.device)
            cache, length_C, logits_CV = self._extended(Cached([], empty, empty), some)
            for c, ids in enumerate(some):  # copies without padding, so that none holds the others in memory
                own = [x[c : c + 1, :, : len(ids)].clone() for x in cache]
                found[ids] = Cached(own, length_C[c : c + 1], logits_CV[c : c + 1].clone())
        if keep:
            for ids in prompts:
                self._kept[ids] = self._kept.pop(ids, found[ids])  # the last one used is the last one to go
            while sum(map(len, self._kept)) > self.kept_tokens and len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
        caches, lengths, logits = zip(*(found[prompt] for prompt, _ in beginnings), strict=True)
        width, layers = max(map(len, prompts)), zip(*caches, strict=True)
        padded = [torch.cat([F.pad(x, (0, 0, 0, width - x.shape[2])) for x in layer]) for layer in layers]
        whole, prefixes = Cached(padded, torch.cat(lengths), torch.cat(logits)), [prefix for _, prefix in beginnings]
        return self._extended(whole, prefixes) if any(prefixes) else whole

    def _extended(self, before: Cached, ids: Sequence[Ids]) -> Cached:
        """Sequences (empty for the first tokens of all) with more tokens behind each; some may get none."""
        cache, device, width = before.cache, before.length_C.device, max(map(len, ids))
        size_C, pad = torch.tensor([len(part) for part in ids], device=device), self.policy.renderer.pad_id
        ids_CL = torch.tensor([[*part, *[pad] * (width - len(part))] for part in ids], device=device)
        place_CL = before.length_C[:, None] + torch.arange(width, device=device)

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            # Of the new tokens, (C, H, L, D), to what stands before them; padding stands behind.
            at, mask = 2 * module.layer_idx, None
            if at == len(cache):  # the first tokens of all
                cache.extend((key, value))
            else:
                row_C1 = torch.arange(len(place_CL), device=device)[:, None]
                for number, new in ((at, key), (at + 1, value)):
                    cache[number] = F.pad(cache[number], (0, 0, 0, width))
                    cache[number][row_C1, :, place_CL] = new.transpose(1, 2)
                key, value = cache[at : at + 2]
                mask = (torch.arange(key.shape[2], device=device) <= place_CL[:, :, None])[:, None]
            return masked_attention(query, key, value, mask, scale)

        some = size_C.nonzero()[:, 0]
        logits_SV = _next_logits(self.policy.model, attend, ids_CL, place_CL, (some, size_C[some] - 1))
        self.counts["prefilled"] += sum(map(len, ids))
        if len(some) < len(ids):
            logits_SV = before.logits_CV.index_copy(0, some, logits_SV)
        return Cached(cache, before.length_C + size_C, logits_SV)

    def _side_by_side(self, slots: Sequence[Slot], sampling: Sampling, keep: bool) -> None:
        """Behind shared beginnings."""
        places, width = _places(slots)
        before, cache = self._read(list(dict.fromkeys(slot.beginning for slot in slots)), keep), list[Tensor]()
        attend, logits_RV = _behind(before, width, cache), before.logits_CV.repeat_interleave(width, 0)
        for step in range(sampling.max_new_tokens):
            token_R = self._draw(logits_RV, places, step, sampling)
            alive = [slot for slot in slots if not slot.ended]
            if not alive:
                return
            if len(alive) <= COMPACT_BELOW * len(places):
                wanted, most = _places(alive)
                if len(wanted) <= COMPACT_BELOW * len(places):
                    at = torch.tensor([places.index(slot) for slot in wanted], device=token_R.device)
                    if len(few := at[::most] // width) < len(before.length_C):
                        before = Cached([x[few] for x in before.cache], before.length_C[few], before.logits_CV[few])
                    token_R, places, width, cache = token_R[at], wanted, most, [x[at] for x in cache]
                    attend = _behind(before, width, cache)
            place_R1 = (before.length_C + step).repeat_interleave(width)[:, None]
            logits_RV = _next_logits(self.policy.model, attend, token_R[:, None], place_R1, (slice(None), 0))

    def _plainly(self, slots: Sequence[Slot], sampling: Sampling) -> None:
        """By transformers' own `generate`, with our draws: for architectures with a cache of their own."""
        model: Any = self.policy.model
        ids, pad = [list(chain(*slot.beginning)) for slot in slots], self.policy.renderer.pad_id
        width, room, stops = max(map(len, ids)), max(slot.room for slot in slots), sorted(self.policy.renderer.stop_ids)
        ids_RT = torch.tensor([[pad] * (width - len(i)) + i for i in ids], device=model.device)
        mask_RT = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=model.device)
        self.counts["prefilled"] += sum(map(len, ids))

        def only_drawn(input_ids: Tensor, scores: Tensor) -> Tensor:
            token_R = self._draw(scores.float(), slots, input_ids.shape[1] - width, sampling)
            return torch.full_like(scores, float("-inf")).scatter(-1, token_R[:, None], 0.0)

        config = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=stops, pad_token_id=pad)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        # What the model's own settings ask for (many have a repetition penalty) would be added to ours.
        with ExitStack() as after:
            after.callback(setattr, model, "generation_config", model.generation_config)
            model.generation_config, processors = GenerationConfig(), LogitsProcessorList([only_drawn])
            model.generate(ids_RT, attention_mask=mask_RT, generation_config=config, logits_processor=processors)

    def _draw(self, logits_RV: Tensor, slots: Sequence[Slot], step: int, sampling: Sampling) -> Tensor:
        """Draws a token for each slot and writes it to its answer, once if the slot stands several times."""
        device, seen_RV, inside = logits_RV.device, None, [slot.watch.inside for slot in slots if slot.watch]
        if sampling.repetition_penalty != 1.0:
            for slot in slots:
                if slot.seen_V is None:
                    slot.seen_V = torch.zeros(logits_RV.shape[1], dtype=torch.bool)
                    slot.seen_V[list(chain(*slot.beginning))] = True
            seen_RV = torch.stack([slot.seen_V for slot in slots if slot.seen_V is not None]).to(device)
        key_R = torch.tensor([slot.key for slot in slots], device=device)
        inside_R = torch.tensor(inside, device=device) if inside else None
        drawn = draw(logits_RV, key_R, step, sampling, inside_R, seen_RV)
        tokens, logps = drawn.token_R.tolist(), drawn.logp_R.tolist()
        options = [part.tolist() for part in drawn.options or ()]
        for at, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            answer = slot.answer
            if slot.ended or len(answer.token_ids) > step:
                continue
            chances = zip(*(part[at] for part in options), strict=True)
            choice = tuple((option, round(p, 6)) for option, p, kept in chances if kept)
            if len(choice) > 1:
                answer.branches.append((step, choice))
            answer.token_ids.append(token)
            answer.logps.append(logps[at])
            if slot.seen_V is not None:
                slot.seen_V[token] = True
            if slot.watch is not None:
                slot.watch.push(token)
            stopped = token in self.policy.renderer.stop_ids
            answer.finish = "stop" if stopped else "length"
            slot.ended = stopped or len(answer.token_ids) == slot.room
        return drawn.token_R


def _places(slots: Sequence[Slot]) -> tuple[list[Slot], int]:
    """The slots, sorted by beginning, repeated until each beginning has as many; and how many these are."""
    groups = [list(group) for _, group in groupby(slots, key=lambda slot: slot.beginning)]
    width = max(map(len, groups))
    return [slot for group in groups for slot in group + group[:1] * (width - len(group))], width


def _next_logits(model: Any, attend: Attend, ids: Tensor, places: Tensor, where: Any) -> Tensor:
    """Logits behind the tokens `where` of a forward pass that attends by `attend`."""
    decoder, head, config = decoder_and_head(model)
    with attending(config, attend):
        hidden = decoder(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
    return head_logits(head, config, hidden[where])


def _behind(before: Cached, M: int, cache: list[Tensor]) -> Attend:
    """Attention of one new token a row, (R, H, 1, D), to the M rows' beginning, whose keys are read once and not for
    each row, and to the rows' own tokens: `cache`, which grows, has their keys and values.
    """
    length_C = before.length_C
    closed_CS = torch.arange(before.cache[0].shape[2], device=length_C.device) >= length_C[:, None]
    closed = closed_CS[:, None, None] if bool(closed_CS.any()) else None

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        R, H, _, D = query.shape
        C, J, at = R // M, key.shape[1], 2 * module.layer_idx
        G = H // J
        if at == len(cache):
            cache.extend((key, value))
        else:
            cache[at : at + 2] = [torch.cat(x, 2) for x in zip(cache[at : at + 2], (key, value), strict=True)]
        own_key, own_value = cache[at : at + 2]

        def by_beginning(x_RJGE: Tensor) -> Tensor:
            return x_RJGE.reshape(C, M, J, G, -1).transpose(1, 2).reshape(C, J, M * G, -1)

        def by_row(x_CJE: Tensor) -> Tensor:
            return x_CJE.reshape(C, J, M, G, -1).transpose(1, 2).reshape(R, J, G, -1)

        query = (query * scale).reshape(R, J, G, D)
        far = by_beginning(query) @ before.cache[at].mT
        if closed is not None:
            far = far.masked_fill_(closed, float("-inf"))
        near = by_beginning(query @ own_key.mT)
        weights = torch.softmax(torch.cat([far, near], -1), -1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
        out = by_row(far @ before.cache[at + 1]) + by_row(near) @ own_value
        return out.reshape(R, H, 1, -1)

    return attend
