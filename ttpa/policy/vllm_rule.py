"""Token-level preference sampling inside vLLM: a logits processor that leaves only the tokens a rule may draw.

vLLM's workers import this module by name (`ttpa.policy.vllm` gives it to them); nothing else does, and it needs vllm.
vLLM draws from what is left, at temperature 1. Contract-tested against a stand-in, not yet run on a real vLLM.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ttpa.calls.syntaxes import get_syntax
from ttpa.policy.draw import by_rule
from ttpa.policy.engine import TokenRule
from ttpa.policy.vllm import RULE
from ttpa.prompts import CallWatch


@lru_cache(maxsize=2)
def _tokenizer(name: str, revision: str | None) -> Any:
    return AutoTokenizer.from_pretrained(name, revision=revision)


class RuleProcessor(AdapterLogitsProcessor):
    """Applies the rule of each request that carries one."""

    def is_argmax_invariant(self) -> bool:
        """False: outside a call the rule is greedy at any temperature, so the processor must never be skipped."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        args = (params.extra_args or {}).get(RULE)
        return None if args is None else rule_request(args)


def rule_request(args: Mapping[str, Any]) -> Callable[[list[int], Tensor], Tensor]:
    """(the answer so far, without the prefix; logits) -> logits whose softmax is what the rule draws from. vLLM makes a
    new one when it takes up a request that it had put aside.
    """
    rule, read = TokenRule(**args["rule"]), 0
    watch = None
    if rule.span == "call":
        watch = CallWatch(_tokenizer(*args["tokenizer"]), get_syntax(args["syntax"]), args["prefix"])

    def apply(output_ids: list[int], logits_V: Tensor) -> Tensor:
        nonlocal read
        inside_1 = None
        if watch is not None:
            for token in output_ids[read:]:
                if token < 0:  # what its asynchronous scheduler writes for a token that it does not know yet
                    raise RuntimeError("vLLM gave a placeholder for a drawn token: start it with async_scheduling off")
                watch.push(token)
            read = len(output_ids)
            inside_1 = torch.tensor([watch.inside], device=logits_V.device)
        weights_1V, _ = by_rule(torch.log_softmax(logits_V.float(), -1)[None], rule, inside_1)
        return weights_1V[0].to(logits_V.dtype)

    return apply
