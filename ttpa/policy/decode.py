"""The `hf` engine: batched decoding with a transformers model in this process.

A prompt is computed once however many answers continue it (`ttpa.policy.decode_attention`), prompts of similar length
go together, rows leave the batch as their answers end. Prompts that are asked again with a prefix (a tree search does)
are kept between calls. Answers depend on (seed, candidate, position) and the model alone: where rounding could decide,
the row is computed once more by itself, so batch size and order change nothing in float32.

An architecture with other than plain causal attention runs through transformers' own `generate`, with the same draws.
Shapes: B prompts, P prompt tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.policy.decode_attention import Prompts, decoding, side_by_side
from ttpa.policy.decode_batch import Batch, Plain, Slot
from ttpa.policy.engine import Generated, Ids, Sampling, key_of
from ttpa.policy.head import decoder_and_head, head_logits
from ttpa.policy.logprobs import Row, token_logps
from ttpa.policy.tree_logprobs import tree_problem, tree_token_logps

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy

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
            rows = [Row(prompt, answer) for answer in answers]
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
