"""The `vllm` engine: answers through vLLM's offline interface, in this process, on a GPU.

Contract-tested against a stand-in. Written for `vllm>=0.24,<0.33`: from 0.24 on it works with transformers 5, returns
log-probs of named tokens and takes logits processors by name; 0.32 is the last whose documentation was read. Draws have
the distribution of the `hf` engine but other random numbers.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError
from ttpa.policy.engine import Generated, Ids, Sampling, TokenRule, key_of
from ttpa.policy.models import Embedded
from ttpa.prompts import CallWatch

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as `max_lora_rank`
MAX_LOGPROBS = 128  # log-probs of one position that a request may ask for
RULE_PROCESSOR = "ttpa.policy.vllm_rule:RuleProcessor"
RULE = "ttpa_rule"  # under this name a request carries its rule, as plain data: it crosses to another process


class VLLMEngine:
    """Implements `ttpa.policy.engine.Engine` with vLLM, which serves what is in the policy's folder. A missing or
    unsupported vllm, a policy that it cannot serve and a prompt without room for an answer are `ConfigError`s.
    """

    def __init__(self, policy: Any, options: Any) -> None:
        self.policy, self.options = policy, options
        self.counts, self._lora = {"prefilled": 0, "generated": 0}, None
        self._vllm = _import_vllm(options.rules)
        spec, folder, lora = policy.spec, policy.folder, policy.spec.lora
        self._limit = options.max_model_len or spec.max_tokens
        if folder is None and isinstance(spec, Embedded):
            raise ConfigError("engine=vllm: the small model is not saved yet, and vLLM loads files. Use engine=hf.")
        model = [spec.name, spec.revision] if folder is None or lora else [str(folder / "model"), None]
        self._tokenizer = [spec.name, spec.revision] if folder is None else [str(folder / "tokenizer"), None]
        more: dict[str, Any] = {"quantization": "bitsandbytes"} if spec.quantization else {}
        if lora is not None:
            if lora.dora or lora.r > LORA_RANKS[-1]:
                problem = f"vLLM serves plain adapters up to rank {LORA_RANKS[-1]}"
                raise ConfigError.at("model.lora", lora, problem, "Use engine=hf, or another adapter")
            room = next(rank for rank in LORA_RANKS if rank >= lora.r)
            more |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
        if options.rules:
            more |= {"logits_processors": [RULE_PROCESSOR], "async_scheduling": False}
        # Not the model's own generation_config: the sampler's options say it all.
        self._llm = self._vllm.LLM(
            **more, model=model[0], revision=model[1], tokenizer=self._tokenizer[0],
            tokenizer_revision=self._tokenizer[1], dtype=spec.dtype, seed=0, max_model_len=self._limit,
            enable_prefix_caching=True,
            tensor_parallel_size=options.tensor_parallel_size, gpu_memory_utilization=options.gpu_memory_utilization,
            generation_config="vllm", logprobs_mode="raw_logprobs", max_logprobs=MAX_LOGPROBS,
        )  # fmt: skip
        if folder is not None and (folder / "adapter").is_dir():
            self.use_adapter(folder / "adapter")

    def generate(
        self, prompts: Sequence[Ids], n: int, sampling: Sampling, seeds: Sequence[str], prefixes: Sequence[Ids] = ()
    ) -> list[list[Generated]]:
        if sampling.rule is not None and not self.options.rules:
            problem = "the sampler needs a rule for each token"
            raise ConfigError.at("engine.rules", self.options.rules, problem, "Set engine.rules=true")
        starts = prefixes or [()] * len(prompts)
        asked = [(i, c) for i in range(len(prompts)) for c in range(n)]
        params = [self._params(sampling, key_of(seeds[i], c), starts[i]) for i, c in asked]
        outputs = self._ask([[*prompts[i], *starts[i]] for i, _ in asked], params)
        answers = [self._answer(out, sampling.rule, starts[i]) for out, (i, _) in zip(outputs, asked, strict=True)]
        self.counts["generated"] += sum(len(answer.token_ids) for answer in answers)
        return [answers[i * n : i * n + n] for i in range(len(prompts))]

    def next_logps(self, prompts: Sequence[Ids], tokens: Ids) -> list[list[float]]:
        """128 different tokens at most."""
        named = list(dict.fromkeys(tokens))
        # Greedy, so that nothing changes the logits. Older releases read only `logprobs`. These requests go by
        # themselves: vLLM's first model runner mixes them up with others (vllm 51789).
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=len(named), logprob_token_ids=named, detokenize=False
        )
        outputs = self._ask([list(prompt) for prompt in prompts], [params] * len(prompts))
        return [[float(out.outputs[0].logprobs[0][token].logprob) for token in tokens] for out in outputs]

    def answer_logps(self, prompt: Ids, answers: Sequence[Ids]) -> None:
        """None: vLLM takes such log-probs from whole prompts, past its prefix cache (vllm 13409)."""

    def reset(self) -> None:
        """Nothing: vLLM keeps its own cache, which knows the adapter."""

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()  # its processes, which hold the GPU
            self._llm = None

    def use_adapter(self, folder: Path) -> None:
        """Answers from now on with the adapter of a PEFT folder; a new number tells vLLM that the weights are new."""
        from vllm.lora.request import LoRARequest

        number = self._lora.lora_int_id + 1 if self._lora else 1
        self._lora = LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder))

    def _params(self, sampling: Sampling, seed: int, prefix: Ids) -> Any:
        names = ("temperature", "top_p", "repetition_penalty")
        how: dict[str, Any] = {"logprobs": 0, **{name: getattr(sampling, name) for name in names}}  # of the token alone
        if (rule := sampling.rule) is not None:
            given = {"prefix": list(prefix), "syntax": self.policy.spec.syntax, "tokenizer": self._tokenizer}
            # The processor leaves what the rule draws from, so vLLM itself only draws.
            how = {"temperature": 1.0, "logprobs": rule.k, "extra_args": {RULE: {"rule": asdict(rule), **given}}}
        return self._vllm.SamplingParams(
            **how,
            seed=seed,
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
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = list(self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._lora))
        cached = sum(max(0, out.num_cached_tokens or 0) for out in outputs)
        self.counts["prefilled"] += sum(map(len, prompts)) - cached
        return outputs

    def _answer(self, output: Any, rule: TokenRule | None, prefix: Ids) -> Generated:
        """An answer; where the rule had a choice, and among what, is read off the k most probable tokens."""
        (made,) = output.outputs
        answer = Generated(token_ids=list(made.token_ids), finish="stop" if made.finish_reason == "stop" else "length")
        watch = CallWatch(self.policy.renderer.tokenizer, self.policy.renderer.syntax, prefix if rule else ())
        for position, (token, at) in enumerate(zip(answer.token_ids, made.logprobs, strict=False)):
            answer.logps.append(float(at[token].logprob))
            if rule is not None:
                if rule.span != "call" or watch.inside:
                    top = sorted(((math.exp(found.logprob), -option) for option, found in at.items()), reverse=True)
                    options = tuple((-option, round(p, 6)) for p, option in top if top[0][0] - p <= rule.delta)
                    if len(options) > 1:
                        answer.branches.append((position, options))
                watch.push(token)
        return answer


def _import_vllm(rules: bool) -> Any:
    """The package, in a supported version and told which model runner to use."""
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"engine=vllm needs the package vllm ({error}): pip install 'ttpa[vllm]'.") from None
    found = re.match(r"(\d+)\.(\d+)", vllm.__version__)
    if not found or not (0, 24) <= (int(found[1]), int(found[2])) < (0, 33):
        raise ConfigError(f"engine=vllm: vllm {vllm.__version__} is not >=0.24,<0.33. Run pip install 'ttpa[vllm]'.")
    if rules and (set_to := os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")) != "0":
        problem = "token rules need vLLM's first model runner"
        remedy = "Unset the variable, or set engine.rules=false where no sampler=tps is used"
        raise ConfigError.at("VLLM_USE_V2_MODEL_RUNNER", set_to, problem, remedy)
    return vllm
