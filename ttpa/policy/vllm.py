"""The `vllm` engine: answers through vLLM's offline interface, in this process, on a GPU.

Contract-tested against a stand-in. Written for `vllm>=0.24,<0.33`: from 0.24 on it works with transformers 5, returns
log-probs of named tokens and takes logits processors by name; 0.32 is the last whose documentation was read. Draws have
the distribution of the `hf` engine but other random numbers. Every candidate is a request with a seed of its own; the
prefix cache computes their prompt once. Log-probs are the model's own (`raw_logprobs`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.errors import ConfigError
from ttpa.policy.engine import Branch, Generated, Ids, Sampling, TokenRule, key_of
from ttpa.policy.models import TinyModel
from ttpa.prompts import CallWatch

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as `max_lora_rank`
MAX_LOGPROBS = 128  # log-probs of one position that a request may ask for
RULE_PROCESSOR = "ttpa.policy.vllm_rule:RuleProcessor"


@dataclass(kw_only=True)
class VLLMEngine:
    """Answers prompts with vLLM; see `ttpa.policy.engines.VLLMOptions` for the options. It serves what is in the folder
    of the policy and never looks at its weights. A missing or unsupported vllm, or policy, is a `ConfigError`.
    """

    policy: Policy
    gpu_memory_utilization: float
    tensor_parallel_size: int
    max_model_len: int | None
    rules: bool
    counts: dict[str, int] = field(init=False, default_factory=lambda: {"prefilled": 0, "generated": 0})
    _lora: Any = field(init=False, repr=False, default=None)
    _adapters: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        self._vllm = _import_vllm(self.rules)
        spec, lora = self.policy.spec, self.policy.spec.lora
        self._limit = self.max_model_len or spec.max_tokens
        source, adapter = _weights(self.policy)
        self._tokenizer: tuple[Any, Any] = (source["tokenizer"], source.get("tokenizer_revision"))
        options: dict[str, Any] = {}
        if lora is not None:
            room = next((rank for rank in LORA_RANKS if rank >= lora.r), None)
            if room is None or lora.dora:
                problem = f"vLLM serves plain adapters up to rank {LORA_RANKS[-1]}"
                raise ConfigError.at("model.lora", lora, problem, "Use engine=hf, or another adapter")
            options |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
        if spec.quantization:
            options["quantization"] = "bitsandbytes"
        if self.rules:
            options |= {"logits_processors": [RULE_PROCESSOR], "async_scheduling": False}
        self._llm = self._vllm.LLM(
            **source,
            **options,
            dtype=spec.dtype,
            seed=0,
            max_model_len=self._limit,
            tensor_parallel_size=self.tensor_parallel_size,
            gpu_memory_utilization=self.gpu_memory_utilization,
            enable_prefix_caching=True,
            generation_config="vllm",  # not the model's own: the sampler's options say it all
            logprobs_mode="raw_logprobs",
            max_logprobs=MAX_LOGPROBS,
        )
        if adapter is not None:
            self.use_adapter(adapter)

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        """See `ttpa.policy.engine.Engine.generate`. A prompt that leaves no room for an answer is a `ConfigError`."""
        if sampling.rule is not None and not self.rules:
            problem = "the sampler needs a rule for each token"
            raise ConfigError.at("engine.rules", self.rules, problem, "Set engine.rules=true")
        starts = prefixes or [()] * len(prompts)
        asked = [(i, c) for i in range(len(prompts)) for c in range(n)]
        params = [self._params(sampling, seeds[i], c, starts[i]) for i, c in asked]
        outputs = self._ask([[*prompts[i], *starts[i]] for i, _ in asked], params)
        answers = [self._answer(out, sampling.rule, starts[i]) for out, (i, _) in zip(outputs, asked, strict=True)]
        self.counts["generated"] += sum(len(answer.token_ids) for answer in answers)
        return [answers[i * n : i * n + n] for i in range(len(prompts))]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """See `ttpa.policy.engine.Engine.next_logps`; 128 different tokens at most."""
        named = list(dict.fromkeys(tokens))
        # Greedy, so that nothing changes the logits. Older releases read only `logprobs`. These requests go by
        # themselves: vLLM's first model runner mixes them up with others (vllm 51789).
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=len(named), logprob_token_ids=named, detokenize=False
        )
        outputs = self._ask([list(prompt) for prompt in prompts], [params] * len(prompts))
        firsts = [out.outputs[0].logprobs[0] for out in outputs]
        return [[float(first[token].logprob) for token in tokens] for first in firsts]

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> None:
        """None: vLLM takes such log-probs from whole prompts, past its prefix cache (vllm 13409)."""

    def reset(self) -> None:
        """Nothing: vLLM keeps its own cache, which knows the adapter."""

    def use_adapter(self, folder: Path) -> None:
        """Answers from now on with the adapter of a PEFT folder; a new number tells vLLM that the weights are new."""
        from vllm.lora.request import LoRARequest

        self._adapters += 1
        name = f"adapter-{self._adapters}"
        self._lora = LoRARequest(lora_name=name, lora_int_id=self._adapters, lora_path=str(folder))

    def _params(self, sampling: Sampling, seed: str, candidate: int, prefix: Ids) -> Any:
        names = ("temperature", "top_p", "repetition_penalty")
        how: dict[str, Any] = {"logprobs": 0, **{name: getattr(sampling, name) for name in names}}  # of the token alone
        if sampling.rule is not None:
            from ttpa.policy.vllm_rule import rule_args

            args = rule_args(sampling.rule, prefix, self.policy.spec.syntax, *self._tokenizer)
            # The processor leaves what the rule draws from, so vLLM itself only draws.
            how = {"temperature": 1.0, "logprobs": sampling.rule.k, "extra_args": args}
        return self._vllm.SamplingParams(
            **how,
            n=1,
            seed=key_of(seed, candidate),
            max_tokens=sampling.max_new_tokens - len(prefix),
            stop_token_ids=list(self.policy.renderer.stop_ids),
            ignore_eos=True,  # other ends of the model's own configuration; ours are the ones above
            detokenize=False,
        )

    def _ask(self, prompts: list[list[int]], params: list[Any]) -> list[Any]:
        if not prompts:
            return []
        if (longest := max(map(len, prompts))) >= self._limit:
            problem = f"a prompt has {longest} tokens, which leaves no room for an answer"
            remedy = "Raise it as far as the model goes, or lower model.max_tokens to leave such samples out"
            raise ConfigError.at("engine.max_model_len", self._limit, problem, remedy)
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False, lora_request=self._lora
        )
        cached = sum(max(0, out.num_cached_tokens or 0) for out in outputs)
        self.counts["prefilled"] += sum(map(len, prompts)) - cached
        return list(outputs)

    def _answer(self, output: Any, rule: TokenRule | None, prefix: Ids) -> Generated:
        (made,) = output.outputs
        answer = Generated(token_ids=list(made.token_ids), finish="stop" if made.finish_reason == "stop" else "length")
        answer.logps = [float(at[token].logprob) for token, at in zip(answer.token_ids, made.logprobs, strict=False)]
        if rule is not None:
            answer.branches = list(self._branches(answer.token_ids, made.logprobs, rule, prefix))
        return answer

    def _branches(self, token_ids: Ids, logprobs: Sequence[Any], rule: TokenRule, prefix: Ids) -> Iterator[Branch]:
        """Where the rule had a choice, and among what: read off the k most probable tokens of each position."""
        watch = CallWatch(self.policy.renderer.tokenizer, self.policy.renderer.syntax)
        for token in prefix:
            watch.push(token)
        for position, (token, at) in enumerate(zip(token_ids, logprobs, strict=False)):
            if rule.span != "call" or watch.inside:
                top = sorted(((math.exp(found.logprob), -option) for option, found in at.items()), reverse=True)
                options = tuple((-option, round(p, 6)) for p, option in top if top[0][0] - p <= rule.delta)
                if len(options) > 1:
                    yield position, options
            watch.push(token)


def _import_vllm(rules: bool) -> Any:
    """The package, in a supported version and told which model runner to use."""
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"engine=vllm needs the package vllm ({error}): pip install 'ttpa[vllm]'.") from None
    found = re.match(r"(\d+)\.(\d+)", vllm.__version__)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (0, 24) <= version < (0, 33):
        raise ConfigError(f"engine=vllm: vllm {vllm.__version__} is not >=0.24,<0.33. Run pip install 'ttpa[vllm]'.")
    if rules and (set_to := os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")) != "0":
        problem = "token rules need vLLM's first model runner"
        remedy = "Unset the variable, or set engine.rules=false where no sampler=tps is used"
        raise ConfigError.at("VLLM_USE_V2_MODEL_RUNNER", set_to, problem, remedy)
    return vllm


def _weights(policy: Policy) -> tuple[dict[str, str | None], Path | None]:
    """Where vLLM finds model and tokenizer, and the adapter."""
    spec, folder = policy.spec, policy.folder
    if folder is not None and spec.lora is None:
        return {"model": str(folder / "model"), "tokenizer": str(folder / "tokenizer")}, None
    if isinstance(spec, TinyModel):
        raise ConfigError("engine=vllm: the small model is not saved yet, and vLLM loads files. Use engine=hf.")
    source = {"model": spec.name, "revision": spec.revision}
    if folder is None:
        return {**source, "tokenizer": spec.name, "tokenizer_revision": spec.revision}, None
    adapter = folder / "adapter"
    return {**source, "tokenizer": str(folder / "tokenizer")}, adapter if adapter.is_dir() else None
