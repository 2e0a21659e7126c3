"""One batch of answers in the making: rows behind shared prompts, or rows in transformers' own `generate`.

Used by `ttpa.policy.decode` alone, which forms the batches and keeps prompts.
Shapes: R rows, V vocabulary, T positions, L given tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ttpa.calls.text_stream import CallWatch
from ttpa.policy.decode_attention import Rows, decoding
from ttpa.policy.draw import Drawn, draw
from ttpa.policy.engine import Generated, Ids, Sampling
from ttpa.policy.head import decoder_and_head, head_logits

if TYPE_CHECKING:
    from ttpa.policy.decode import HFEngine

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
