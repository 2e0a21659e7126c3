"""Token-level preference sampling inside vLLM: a logits processor that leaves only the tokens a rule may draw.

vLLM's workers import this module by name (`ttpa.policy.vllm` gives it to them); nothing else does, and it needs
vllm. The interface is vLLM's per-request one for its first model runner, `AdapterLogitsProcessor`: a callable that is
given the tokens of the answer so far and a row of logits. A request carries its rule in `SamplingParams.extra_args`,
as plain numbers and texts, because it crosses to another process. vLLM then draws from what is left, with the
request's own seed, at temperature 1. Which tokens those are is `ttpa.policy.draw.candidates_of`, as in the `hf` engine.
Contract-tested against a stand-in, not yet run on a real vLLM. Shapes: V vocabulary, K top tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ttpa.calls.syntaxes import get_syntax
from ttpa.policy.draw import candidates_of
from ttpa.policy.engine import Ids, TokenRule
from ttpa.prompts import CallWatch

KEY = "ttpa_rule"


def rule_args(rule: TokenRule, *, prefix: Ids, syntax: str, tokenizer: str, revision: str | None) -> dict[str, Any]:
    """What a request says to `RuleProcessor`.

    Args:
        rule: The rule.
        prefix: Tokens of the answer that the request gives as part of its prompt.
        syntax: Name of the call syntax.
        tokenizer: Folder or hub id.
        revision: Hub revision.
    """
    where = {"prefix": list(prefix), "syntax": syntax, "tokenizer": tokenizer, "revision": revision}
    return {KEY: {**asdict(rule), **where}}


def only_candidates(logits_V: Tensor, rule: TokenRule, inside: bool) -> Tensor:
    """Logits whose softmax is what the rule draws from: minus infinity for every other token.

    Args:
        logits_V: Logits of the model, temperature 1.
        rule: The rule.
        inside: Whether the token lies where the rule acts; elsewhere only the most probable one is left.
    """
    only_V = torch.full_like(logits_V, float("-inf"))
    if not inside:
        only_V[logits_V.argmax()] = 0.0
        return only_V
    ids_1K, probs_1K, mask_1K = candidates_of(torch.log_softmax(logits_V.float(), -1)[None], rule)
    weights = probs_1K[mask_1K].log() if rule.draw == "renormalised" else torch.zeros_like(probs_1K[mask_1K])
    only_V[ids_1K[mask_1K]] = weights.to(only_V.dtype)
    return only_V


@lru_cache(maxsize=2)
def _tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision)


class RuleRequest:
    """One request's rule and how far its answer has been read.

    vLLM makes a new one, and gives it the whole answer so far, when it takes up a request that it had put aside.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        self.rule = TokenRule(k=args["k"], delta=args["delta"], draw=args["draw"], span=args["span"])
        self.read = 0
        self.watch: CallWatch | None = None
        if self.rule.span == "call":
            self.watch = CallWatch(_tokenizer(args["tokenizer"], args["revision"]), get_syntax(args["syntax"]))
            for token in args["prefix"]:
                self.watch.push(token)

    def __call__(self, output_ids: list[int], logits_V: Tensor) -> Tensor:
        """See `only_candidates`. `output_ids` is the answer so far, without what the prompt held of it."""
        if self.watch is not None:
            for token in output_ids[self.read :]:
                if token < 0:  # what its asynchronous scheduler writes for a token that it does not know yet
                    raise RuntimeError("vLLM gave a placeholder for a drawn token: start it with async_scheduling off")
                self.watch.push(token)
            self.read = len(output_ids)
        return only_candidates(logits_V, self.rule, self.watch is None or self.watch.inside)


class RuleProcessor(AdapterLogitsProcessor):
    """Gives vLLM a `RuleRequest` for each request that carries a rule."""

    def is_argmax_invariant(self) -> bool:
        """False: outside a call the rule is greedy at any temperature, so the processor must never be skipped."""
        return False

    def new_req_logits_processor(self, params: Any) -> RuleRequest | None:
        """The callable of one request, or None where it carries no rule."""
        args = (params.extra_args or {}).get(KEY)
        return None if args is None else RuleRequest(args)
