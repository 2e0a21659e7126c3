"""The `hf` engine: batched decoding with a transformers model in this process.

A prompt is computed once however many answers continue it (`ttpa.policy.decode`), prompts of similar length
go together, rows leave the batch as their answers end. Prompts that are asked again with a prefix (a tree search does)
are kept between calls. Answers depend on (seed, candidate, position) and the model alone: where rounding could decide,
the row is computed once more by itself, so batch size and order change nothing in float32.

An architecture with other than plain causal attention runs through transformers' own `generate`, with the same draws.
Shapes: B prompts, P prompt tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import AttentionMaskInterface

from ttpa.errors import ConfigError
from ttpa.policy.draw import Drawn, draw
from ttpa.policy.engine import Generated, Ids, Sampling, key_of
from ttpa.policy.forward import tree_problem, tree_token_logps
from ttpa.policy.logprobs import decoder_and_head, head_logits, token_logps
from ttpa.policy.tree import TokenRow
from ttpa.prompts import CallWatch

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy


NAME = "ttpa_decode"
BLOCK = 16
"""Slots by which the part of a buffer grows that is attended to."""
FAST_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether the CPU has products in bfloat16; float16 has none here (5 times slower in strips)."""
STRIP = 64
"""Tokens of a prompt whose attention is one matrix product on such a CPU."""


@dataclass(slots=True)
class Prompts:
    """What is kept of B prompts: keys and values by layer, each (B, J, P, D), lengths (B,), next logits (B, V)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length_B: Tensor = field(default_factory=lambda: torch.empty(0))
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))

    def pick(self, which: Tensor) -> Prompts:
        """Some of the prompts."""
        return Prompts(
            [k[which] for k in self.keys], [v[which] for v in self.values], self.length_B[which], self.logits_BV[which]
        )

    def one(self, number: int) -> Prompts:
        """One of them without its padding; a copy, so that it does not hold the others in memory."""
        size = int(self.length_B[number])
        here = slice(number, number + 1)
        return Prompts(
            [k[here, :, :size].clone() for k in self.keys],
            [v[here, :, :size].clone() for v in self.values],
            self.length_B[here],
            self.logits_BV[here].clone(),
        )


def side_by_side(prompts: list[Prompts]) -> Prompts:
    """Several kept prompts as one batch, padded on the right."""
    if len(prompts) == 1:
        return prompts[0]
    width = max(p.keys[0].shape[2] for p in prompts)

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[2])) for part in parts])

    layers = range(len(prompts[0].keys))
    return Prompts(
        [stacked([p.keys[layer] for p in prompts]) for layer in layers],
        [stacked([p.values[layer] for p in prompts]) for layer in layers],
        torch.cat([p.length_B for p in prompts]),
        torch.cat([p.logits_BV for p in prompts]),
    )


@dataclass(slots=True)
class Rows:
    """The rows that continue the prompts.

    `keys` and `values` by layer are (R, J, slots, D); `open_RT` says which slots hold a token once they are taken (what
    stands before an answer's given beginning is empty), `used` how many are.
    """

    prompts: Prompts
    per_prompt: int
    open_RT: Tensor
    used: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    _closed: tuple[tuple[int, int], tuple[Tensor | None, Tensor]] | None = None

    def pick(self, prompts: Tensor | None, rows: Tensor, per_prompt: int) -> Rows:
        """Some of the rows, by prompt again `per_prompt` each; `prompts` None keeps all prompts."""
        kept = self.prompts if prompts is None else self.prompts.pick(prompts)
        return Rows(
            kept,
            per_prompt,
            self.open_RT[rows],
            self.used,
            [k[rows] for k in self.keys],
            [v[rows] for v in self.values],
        )

    def put(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values behind the used slots; returns the blocks in use."""
        stop = self.used + key.shape[2]
        room = -(-stop // BLOCK) * BLOCK
        wanted = max(room, self.open_RT.shape[1]) if key.is_cuda else room
        for kept, new in ((self.keys, key), (self.values, value)):
            if len(kept) <= layer:
                kept.append(new[:, :, :0])
            if kept[layer].shape[2] < wanted:
                # Zeros, since what is closed still takes part in a product, with weight 0.
                kept[layer] = F.pad(kept[layer], (0, 0, 0, wanted - kept[layer].shape[2]))
            kept[layer][:, :, self.used : stop] = new
        return self.keys[layer][:, :, :room], self.values[layer][:, :, :room]

    def closed(self, new: int, room: int) -> tuple[Tensor | None, Tensor]:
        """What `new` tokens of a row do not see: (B, 1, 1, P) of the prompts, None if they see all of them, and
        (R, 1, 1, L, room) of the rows' slots. The same in every layer.
        """
        if self._closed is None or self._closed[0] != (self.used, new):
            device = self.open_RT.device
            places = torch.arange(self.prompts.keys[0].shape[2], device=device)
            far_BP = places >= self.prompts.length_B[:, None]
            later_LT = torch.arange(room, device=device) > self.used + torch.arange(new, device=device)[:, None]
            open_RT = F.pad(self.open_RT, (0, max(0, room - self.open_RT.shape[1])))[:, :room]
            near_RLT = ~open_RT[:, None] | later_LT
            # To look would make the host wait for a GPU.
            padded = device.type != "cpu" or bool(far_BP.any())
            self._closed = (self.used, new), (far_BP[:, None, None] if padded else None, near_RLT[:, None, None])
        return self._closed[1]


_STATE: ContextVar[Prompts | Rows | None] = ContextVar("decoding", default=None)


@contextmanager
def decoding(config: Any, state: Prompts | Rows) -> Iterator[None]:
    """Within it, the model fills `state`: prompts that are read for the first time, or rows that go on."""
    before, token = config._attn_implementation, _STATE.set(state)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _STATE.reset(token)


def decode_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens; the signature is transformers'.

    Args:
        query: (B or R, H, L, D). key, value: (B or R, J, L, D).

    Returns:
        (B or R, L, H, D) and None.
    """
    state = _STATE.get()
    assert state is not None, "a decoding forward pass needs `decoding`"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(state, Prompts):
        state.keys.append(key)
        state.values.append(value)
        return _causal(query, key, value, scale).transpose(1, 2).contiguous(), None
    return _attend(state, module.layer_idx, query, key, value, scale), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of prompts to themselves, (B, H, P, E). Padding is on the right: no token of a prompt sees it."""
    (B, H, P, D), (J, E) = query.shape, value.shape[1::2]
    G = H // J
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not FAST_BFLOAT16:
        if G > 1:
            key, value = key.repeat_interleave(G, 1), value.repeat_interleave(G, 1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    # Torch's kernel is no faster in bfloat16 than in float32; matrix products of strips are (1.7 to 3 times).
    query = (query * scale).view(B, J, G, P, D)
    out, later = query.new_empty(B, J, G, P, E), torch.ones(STRIP, STRIP, dtype=torch.bool).triu(1)
    for start in range(0, P, STRIP):
        stop = min(start + STRIP, P)
        size = stop - start
        scores = query[:, :, :, start:stop].reshape(B, J, G * size, D) @ key[:, :, :stop].mT
        scores.view(B, J, G, size, stop)[..., start:].masked_fill_(later[:size, :size], float("-inf"))
        part = torch.softmax(scores, -1) @ value[:, :, :stop]
        out[:, :, :, start:stop] = part.view(B, J, G, size, E)
    return out.view(B, H, P, E)


def _attend(rows: Rows, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Prompt part and own part under one softmax."""
    R, H, L, D = query.shape
    J, M = key.shape[1], rows.per_prompt
    B, G = R // M, H // J
    prompt_k, prompt_v = rows.prompts.keys[layer], rows.prompts.values[layer]
    own_k, own_v = rows.put(layer, key, value)
    query = query * scale
    far = query.view(B, M, J, G, L, D).transpose(1, 2).reshape(B, J, M * G * L, D) @ prompt_k.mT
    far_closed, near_closed = rows.closed(L, own_k.shape[2])
    if far_closed is not None:
        far = far.masked_fill_(far_closed, float("-inf"))
    near = query.reshape(R, J, G * L, D) @ own_k.mT
    near = near.view(R, J, G, L, -1).masked_fill_(near_closed, float("-inf"))
    near = near.view(B, M, J, G * L, -1).transpose(1, 2).reshape(B, J, M * G * L, -1)
    weights = torch.softmax(torch.cat([far, near], -1), -1)  # sums in float32 whatever the scores are
    near_w = weights[..., far.shape[-1] :].view(B, J, M, G * L, -1).transpose(1, 2).reshape(R, J, G * L, -1)
    out = (weights[..., : far.shape[-1]] @ prompt_v).view(B, J, M, G * L, -1).transpose(1, 2).reshape(R, J, G * L, -1)
    return (out + near_w @ own_v).reshape(R, H, L, -1).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, decode_attention)
# Who sees whom is this module's business: transformers makes no mask.
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


COMPACT_BELOW = 0.75
"""Share of rows still needed below which the others leave the batch; moving the cache costs about a step."""
LOOK_EVERY = 16
"""On CUDA, steps between looks at which answers have ended: a look waits for the device."""


@dataclass(slots=True)
class Slot:
    """One answer in the making. `prompt` is a number within the call."""

    prompt: int
    prefix: Ids
    key: int
    answer: Generated = field(default_factory=Generated)
    watch: CallWatch | None = None
    ended: bool = False


class _Decoder:
    """What both ways of decoding share: drawing tokens and writing answers."""

    def __init__(self, engine: HFEngine, prompts: Sequence[Ids], rows: list[Slot], sampling: Sampling) -> None:
        self.engine, self.prompts, self.rows, self.sampling = engine, prompts, rows, sampling
        self.device = engine.policy.model.device
        self.stop = set(engine.policy.renderer.stop_ids)
        self.longest = sampling.max_new_tokens - min(len(row.prefix) for row in rows)
        """Tokens that at least one row may still draw."""
        self.shown: list[int] = []
        self.shown_R = torch.empty(0)
        rule = sampling.rule
        self.gated = rule is not None and rule.span == "call"
        if self.gated:
            for row in rows:
                row.watch = CallWatch(engine.policy.renderer.tokenizer, engine.policy.renderer.syntax)
                for token in row.prefix:
                    row.watch.push(token)
        # Rounding is this small in float32 alone; elsewhere results may depend on the batch.
        self.checks = engine.policy.model.dtype == torch.float32 and self.device.type == "cpu"

    def choose(self, logits_RV: Tensor, alive: list[int], step: int, seen_RV: Tensor | None) -> Drawn:
        """Draws a token for each alive row (numbers of rows)."""
        if alive is not self.shown:  # the places change seldom, and telling a device takes time
            self.shown, self.shown_R = alive, torch.tensor([self.rows[k].key for k in alive], device=self.device)
        inside_R = None
        if self.gated:
            inside = [(watch := self.rows[k].watch) is not None and watch.inside for k in alive]
            inside_R = torch.tensor(inside, device=self.device)
        drawn = draw(logits_RV, self.shown_R, step, self.sampling, inside_R=inside_R, seen_RV=seen_RV)
        if self.checks:
            for at in drawn.close_R.nonzero()[:, 0].tolist():
                row = self.rows[alive[at]]
                if row.ended:
                    continue
                ids = [*self.prompts[row.prompt], *row.prefix, *row.answer.token_ids]
                again = draw(
                    self.engine.alone(ids)[None],
                    self.shown_R[at : at + 1],
                    step,
                    self.sampling,
                    inside_R=None if inside_R is None else inside_R[at : at + 1],
                    seen_RV=None if seen_RV is None else seen_RV[at : at + 1],
                )
                drawn.token_R[at], drawn.logp_R[at] = again.token_R[0], again.logp_R[0]
                if drawn.options is not None and again.options is not None:
                    for whole, part in zip(drawn.options, again.options, strict=True):
                        whole[at] = part[0]
        return drawn

    def write(self, drawn: Drawn, alive: Sequence[int]) -> None:
        """Adds the drawn tokens to the answers that have not ended; a row that stands twice is written once."""
        tokens, logps = drawn.token_R.tolist(), drawn.logp_R.tolist()
        options = _listed(drawn.options)
        for number, at in _first_places(alive).items():
            row = self.rows[number]
            if row.ended:
                continue
            answer = row.answer
            if options is not None and len(options[at]) > 1:
                answer.branches.append((len(answer.token_ids), options[at]))
            answer.token_ids.append(tokens[at])
            answer.logps.append(logps[at])
            if tokens[at] in self.stop:
                row.ended, answer.finish = True, "stop"
            elif len(row.prefix) + len(answer.token_ids) == self.sampling.max_new_tokens:
                row.ended = True
            elif row.watch is not None:
                row.watch.push(tokens[at])

    def seen(self, ids_of: Sequence[Ids], vocab: int) -> Tensor | None:
        """Which tokens each row's prompt and prefix hold; None without a repetition penalty."""
        if self.sampling.repetition_penalty == 1.0:
            return None
        seen_RV = torch.zeros(len(ids_of), vocab, dtype=torch.bool)
        for at, ids in enumerate(ids_of):
            seen_RV[at, torch.tensor(list(ids))] = True
        return seen_RV.to(self.device)


def _first_places(numbers: Sequence[int]) -> dict[int, int]:
    """Number of a row -> the first place where it stands; a row that fills up a batch stands several times."""
    found: dict[int, int] = {}
    for at, number in enumerate(numbers):
        found.setdefault(number, at)
    return found


def _listed(options: tuple[Tensor, Tensor, Tensor] | None) -> list[tuple[tuple[int, float], ...]] | None:
    """The candidates of each row with their probabilities, most probable first."""
    if options is None:
        return None
    ids, probs, masks = (part.tolist() for part in options)
    return [
        tuple((token, round(p, 6)) for token, p, kept in zip(*row, strict=True) if kept)
        for row in zip(ids, probs, masks, strict=True)
    ]


class Batch(_Decoder):
    """Rows decoded side by side behind shared prompts."""

    def __init__(
        self, engine: HFEngine, prompts: Sequence[Ids], rows: list[Slot], sampling: Sampling, keep: bool
    ) -> None:
        super().__init__(engine, prompts, rows, sampling)
        self.keep = keep
        self.decoder, self.head, self.config = decoder_and_head(engine.policy.model)

    def run(self) -> None:
        """Decodes until every answer has ended."""
        every, last = LOOK_EVERY if self.device.type == "cuda" and not self.gated else 1, self.longest
        places, state, logits_RV = self._begin()
        seen_RV = self.seen([self._ids(k) for k in places], logits_RV.shape[-1])
        waiting: list[Drawn] = []
        for step in range(last):
            drawn = self.choose(logits_RV, places, step, seen_RV)
            if seen_RV is not None:
                seen_RV[torch.arange(len(places), device=self.device), drawn.token_R] = True
            waiting.append(drawn)
            if (step + 1) % every == 0 or step + 1 == last:
                for one in waiting:
                    self.write(one, places)
                waiting.clear()
                if step + 1 == last or all(row.ended for row in self.rows):
                    return
                kept = self._compacted(state, places)
                if kept is not None:
                    state, at, places = kept
                    drawn.token_R = drawn.token_R[at]
                    seen_RV = None if seen_RV is None else seen_RV[at]
            logits_RV = self._step(state, drawn.token_R[:, None])

    def _ids(self, number: int) -> list[int]:
        row = self.rows[number]
        return [*self.prompts[row.prompt], *row.prefix]

    def _places(self, numbers: Sequence[int]) -> tuple[list[tuple[int, ...]], list[int], int]:
        """Distinct prompts of some rows, the rows in prompt-major order (repeated to fill up), rows a prompt."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            groups.setdefault(tuple(self.prompts[self.rows[number].prompt]), []).append(number)
        width = max(map(len, groups.values()))
        return list(groups), [n for group in groups.values() for n in group + group[:1] * (width - len(group))], width

    def _begin(self) -> tuple[list[int], Rows, Tensor]:
        """Reads prompts and prefixes, each once; the places of the batch, its state, the next logits."""
        keys, places, width = self._places(range(len(self.rows)))
        prompts = self.engine.read(keys, self.keep)
        first: dict[tuple[Ids, ...], int] = {}
        for number in places:
            first.setdefault(self._given(number), number)
        _, few, share = self._places(list(first.values()))
        prefixes = [self.rows[k].prefix for k in few]
        longest = max(map(len, prefixes))
        open_RT = torch.ones(len(few), longest + self.longest, dtype=torch.bool)
        for at, prefix in enumerate(prefixes):
            open_RT[at, : longest - len(prefix)] = False
        state = Rows(prompts, share, open_RT.to(self.device))
        logits_RV = prompts.logits_BV.repeat_interleave(share, 0)
        if longest:
            pad = self.engine.policy.renderer.pad_id
            ids_RL = torch.tensor([[*[pad] * (longest - len(p)), *p] for p in prefixes], device=self.device)
            self.engine.counts["prefilled"] += sum(len(self.rows[k].prefix) for k in set(few))
            given = torch.tensor([bool(p) for p in prefixes], device=self.device)
            logits_RV = torch.where(given[:, None], self._step(state, ids_RL), logits_RV)
        place_of = _first_places(few)
        which = torch.tensor([place_of[first[self._given(number)]] for number in places], device=self.device)
        return places, state.pick(None, which, width), logits_RV[which]

    def _given(self, number: int) -> tuple[Ids, ...]:
        """What a row begins with: rows with the same prompt and prefix share it."""
        row = self.rows[number]
        return tuple(self.prompts[row.prompt]), tuple(row.prefix)

    def _step(self, state: Rows, ids_RL: Tensor) -> Tensor:
        """Runs the model on the next tokens of every row; logits behind the last one (R, V)."""
        size = ids_RL.shape[1]
        taken_RL = state.open_RT[:, : state.used + size].cumsum(-1)[:, state.used :]
        starts_R1 = state.prompts.length_B.repeat_interleave(state.per_prompt)[:, None]
        positions_RL = starts_R1 + (taken_RL - 1).clamp(min=0)
        with decoding(self.config, state):
            out = self.decoder(input_ids=ids_RL, position_ids=positions_RL, use_cache=False)
        state.used += size
        return head_logits(self.head, self.config, out.last_hidden_state[:, -1])

    def _compacted(self, state: Rows, places: list[int]) -> tuple[Rows, Tensor, list[int]] | None:
        """The batch without ended rows, where that is worth it; which places stay, and their rows."""
        alive = [k for k in dict.fromkeys(places) if not self.rows[k].ended]
        if len(alive) > COMPACT_BELOW * len(places):
            return None
        keys, wanted, width = self._places(alive)
        if len(wanted) > COMPACT_BELOW * len(places):
            return None
        at_of = _first_places(places)
        at = torch.tensor([at_of[number] for number in wanted], device=self.device)
        whole = len(keys) * state.per_prompt == len(places)
        prompts = None if whole else at[::width] // state.per_prompt
        return state.pick(prompts, at, width), at, wanted


class Plain(_Decoder):
    """Rows decoded by transformers' own `generate`, with our draws: for architectures with a cache of their own."""

    def run(self) -> None:
        ids = [[*self.prompts[row.prompt], *row.prefix] for row in self.rows]
        width, pad = max(map(len, ids)), self.engine.policy.renderer.pad_id
        ids_RT = torch.tensor([[*[pad] * (width - len(i)), *i] for i in ids], device=self.device)
        mask_RT = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=self.device)
        self.engine.counts["prefilled"] += sum(map(len, ids))
        config = GenerationConfig(
            max_new_tokens=self.longest,
            do_sample=False,
            eos_token_id=sorted(self.stop),
            pad_token_id=pad,
        )
        model = self.engine.policy.model
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        # What the model's own settings ask for (many have a repetition penalty) would be added to ours.
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            model.generate(
                input_ids=ids_RT,
                attention_mask=mask_RT,
                generation_config=config,
                logits_processor=LogitsProcessorList([_Draws(self, ids, width)]),
            )
        finally:
            model.generation_config = own


class _Draws(LogitsProcessor):
    """Leaves only the drawn token of each row."""

    def __init__(self, decoder: Plain, ids: Sequence[Ids], width: int) -> None:
        self.decoder, self.ids, self.width = decoder, ids, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, every = input_ids.shape[1] - self.width, list(range(len(self.decoder.rows)))
        seen_RV = None
        if self.decoder.sampling.repetition_penalty != 1.0:
            so_far = [[*i, *row.answer.token_ids] for i, row in zip(self.ids, self.decoder.rows, strict=True)]
            seen_RV = self.decoder.seen(so_far, scores.shape[-1])
        drawn = self.decoder.choose(scores.float(), every, step, seen_RV)
        self.decoder.write(drawn, every)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(-1, drawn.token_R[:, None], 0.0)


log = logging.getLogger("ttpa")

PREFILL_TOKENS = 8_192
"""Padded prompt tokens of one forward."""


@dataclass(kw_only=True)
class HFEngine:
    """Decodes with a transformers model in this process.

    Args:
        policy: Model, tokenizer and stop tokens.
        rows: Answers decoded side by side; memory grows with it, results do not depend on it.
        kept_tokens: Prompt tokens whose keys and values are kept for the next call, for searches.

    Raises:
        ConfigError: a value out of range.
    """

    policy: Policy
    rows: int
    kept_tokens: int = 65_536
    counts: dict[str, int] = field(default_factory=lambda: {"prefilled": 0, "generated": 0})
    _kept: OrderedDict[tuple[int, ...], Prompts] = field(default_factory=OrderedDict)
    _plain: bool | None = None

    def __post_init__(self) -> None:
        for key, least in (("rows", 1), ("kept_tokens", 0)):
            if getattr(self, key) < least:
                raise ConfigError.at(
                    f"engine.{key}", getattr(self, key), f"must be at least {least}", "See conf/engine"
                )

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        """See `ttpa.policy.engine.Engine.generate`."""
        rows = [
            Slot(i, prefixes[i] if prefixes else (), key_of(seeds[i], c)) for i in range(len(prompts)) for c in range(n)
        ]
        with _Evaluating(self.policy.model):
            for batch in self._batches(prompts, [row for row in rows if len(row.prefix) < sampling.max_new_tokens]):
                if self._generates_plainly():
                    Plain(self, prompts, batch, sampling).run()
                else:
                    Batch(self, prompts, batch, sampling, bool(prefixes)).run()
        self.counts["generated"] += sum(len(row.answer.token_ids) for row in rows)
        return [[row.answer for row in rows[i * n : i * n + n]] for i in range(len(prompts))]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """See `ttpa.policy.engine.Engine.next_logps`."""
        found: list[list[float]] = [[] for _ in prompts]
        with _Evaluating(self.policy.model):
            for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
                logps_V = torch.log_softmax(self.alone(prompts[i]), -1)
                found[i] = [float(logps_V[token]) for token in tokens]
                self.counts["prefilled"] += len(prompts[i])
        return found

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> list[list[float]]:
        """See `ttpa.policy.engine.Engine.answer_logps`; one forward of the tree that prompt and answers are."""
        forward = token_logps if self._generates_plainly() else partial(tree_token_logps, worth=2.0)
        with _Evaluating(self.policy.model):
            rows = [TokenRow(prompt, answer) for answer in answers]
            flat = forward(self.policy.model, rows, pad_id=self.policy.renderer.pad_id).logps_N.tolist()
        ends = list(accumulate(map(len, answers), initial=0))
        return [flat[start:stop] for start, stop in pairwise(ends)]

    def reset(self) -> None:
        """Forgets kept prompts; the weights have changed."""
        self._kept.clear()

    def alone(self, ids: Ids) -> Tensor:
        """Float32 logits (V,) behind a sequence, computed by itself: the same whatever else is asked."""
        decoder, head, config = decoder_and_head(self.policy.model)
        ids_1T = torch.tensor([list(ids)], device=self.policy.model.device)
        hidden_H = decoder(input_ids=ids_1T, use_cache=False).last_hidden_state[0, -1:]
        return head_logits(head, config, hidden_H)[0]

    def _generates_plainly(self) -> bool:
        if self._plain is None:
            problem = tree_problem(self.policy.model)
            self._plain = problem is not None
            if problem is not None:
                name = type(self.policy.model).__name__
                log.warning("%s: %s; decoding uses transformers' generate, a prompt for each answer", name, problem)
        return self._plain

    def _batches(self, prompts: Sequence[Ids], rows: list[Slot]) -> list[list[Slot]]:
        """Rows in batches of at most `rows`, all rows of a prompt together where they fit, similar lengths together."""
        groups: dict[tuple[int, ...], list[Slot]] = {}
        for row in rows:
            groups.setdefault(tuple(prompts[row.prompt]), []).append(row)
        batches: list[list[Slot]] = []
        prompts_in, widest = 0, 0
        for key in sorted(groups, key=lambda key: (len(key), key)):
            for at in range(0, len(groups[key]), self.rows):
                part = groups[key][at : at + self.rows]
                # Every prompt of a batch has as many places as the one with the most rows.
                if batches and max(widest, len(part)) * (prompts_in + 1) <= self.rows:
                    batches[-1].extend(part)
                    prompts_in, widest = prompts_in + 1, max(widest, len(part))
                else:
                    batches.append(part)
                    prompts_in, widest = 1, len(part)
        return batches

    # --- prompts -------------------------------------------------------------------------------------------------

    def read(self, prompts: Sequence[tuple[int, ...]], keep: bool) -> Prompts:
        """The prompts, ascending in length, computed or found; `keep` remembers them."""
        missing = [ids for ids in prompts if ids not in self._kept]
        if not keep and len(missing) == len(prompts):
            return side_by_side(self._forward(missing))
        fresh: dict[tuple[int, ...], Prompts] = {}
        at = 0
        for part in self._forward(missing):
            for number in range(len(part.length_B)):
                fresh[missing[at]] = part.one(number)
                at += 1
        found = [fresh[ids] if ids in fresh else self._kept[ids] for ids in prompts]
        if keep:
            for ids, state in zip(prompts, found, strict=True):
                self._kept[ids] = state
                self._kept.move_to_end(ids)
            while sum(map(len, self._kept)) > self.kept_tokens and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return side_by_side(found)

    def _forward(self, prompts: Sequence[tuple[int, ...]]) -> list[Prompts]:
        """Computes prompts in batches of similar length."""
        decoder, head, config = decoder_and_head(self.policy.model)
        device, pad = self.policy.model.device, self.policy.renderer.pad_id
        parts, at = [], 0
        while at < len(prompts):
            stop = at + 1
            while stop < len(prompts) and (stop + 1 - at) * len(prompts[stop]) <= PREFILL_TOKENS:
                stop += 1
            batch = prompts[at:stop]
            width = max(map(len, batch))
            ids_BP = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in batch], device=device)
            state = Prompts(length_B=torch.tensor([len(ids) for ids in batch], device=device))
            positions_BP = torch.arange(width, device=device).expand(len(batch), -1)
            with decoding(config, state):
                hidden = decoder(input_ids=ids_BP, position_ids=positions_BP, use_cache=False).last_hidden_state
            last_BH = hidden[torch.arange(len(batch), device=device), state.length_B - 1]
            state.logits_BV = head_logits(head, config, last_BH)
            parts.append(state)
            self.counts["prefilled"] += sum(map(len, batch))
            at = stop
        return parts


class _Evaluating:
    """Within it, the model is in evaluation mode and records no gradients."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.mode = model, torch.inference_mode()

    def __enter__(self) -> None:
        self.training = self.model.training
        self.model.eval()
        self.mode.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self.mode.__exit__(*problem)
        self.model.train(self.training)
