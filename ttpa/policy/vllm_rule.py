"""Token-level preference sampling inside vLLM: a logits processor that leaves only the tokens a rule may draw.

vLLM's workers import this module by name (`ttpa.policy.vllm` gives it to them); nothing else does, and it needs vllm. A
request carries its rule in `SamplingParams.extra_args`, as plain data, because it crosses to another process. vLLM then
draws from what is left, at temperature 1. Contract-tested against a stand-in, not yet run on a real vLLM.
Shapes: V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ttpa.calls.syntaxes import get_syntax
from ttpa.policy.draw import by_rule
from ttpa.policy.engine import Ids, TokenRule
from ttpa.prompts import CallWatch

KEY = "ttpa_rule"


def rule_args(rule: TokenRule, prefix: Ids, syntax: str, tokenizer: str, revision: str | None) -> dict[str, Any]:
    """What a request says to `RuleProcessor`; `prefix` are the tokens of the answer that its prompt ends with."""
    return {KEY: {"rule": asdict(rule), "prefix": list(prefix), "syntax": syntax, "tokenizer": [tokenizer, revision]}}


@lru_cache(maxsize=2)
def _tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision)


class RuleRequest:
    """One request's rule and how far its answer has been read.

    vLLM makes a new one, and gives it the whole answer so far, when it takes up a request that it had put aside.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        self.rule, self.read = TokenRule(**args["rule"]), 0
        self.watch: CallWatch | None = None
        if self.rule.span == "call":
            self.watch = CallWatch(_tokenizer(*args["tokenizer"]), get_syntax(args["syntax"]))
            for token in args["prefix"]:
                self.watch.push(token)

    def __call__(self, output_ids: list[int], logits_V: Tensor) -> Tensor:
        """Logits whose softmax is what the rule draws from. `output_ids` is the answer so far, without the prefix."""
        if self.watch is not None:
            for token in output_ids[self.read :]:
                if token < 0:  # what its asynchronous scheduler writes for a token that it does not know yet
                    raise RuntimeError("vLLM gave a placeholder for a drawn token: start it with async_scheduling off")
                self.watch.push(token)
            self.read = len(output_ids)
        inside_1 = None if self.watch is None else torch.tensor([self.watch.inside], device=logits_V.device)
        weights_1V, _ = by_rule(torch.log_softmax(logits_V.float(), -1)[None], self.rule, inside_1)
        return weights_1V[0].to(logits_V.dtype)


class RuleProcessor(AdapterLogitsProcessor):
    """Gives vLLM a `RuleRequest` for each request that carries a rule."""

    def is_argmax_invariant(self) -> bool:
        """False: outside a call the rule is greedy at any temperature, so the processor must never be skipped."""
        return False

    def new_req_logits_processor(self, params: Any) -> RuleRequest | None:
        args = (params.extra_args or {}).get(KEY)
        return None if args is None else RuleRequest(args)
