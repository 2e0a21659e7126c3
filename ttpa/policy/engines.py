"""The option classes of the group `engine`; a stage calls one with its policy to get the engine. Imports no torch."""

from dataclasses import asdict
from typing import Any, ClassVar

from ttpa.options import Count, Index, Share, option
from ttpa.policy.engine import Engine


@option
class HFOptions:
    """Decodes with a transformers model in this process, `rows` answers side by side. Of `kept_tokens` prompt tokens,
    keys and values are kept for the next call of a search.
    """

    name: ClassVar[str] = "HFEngine"
    rows: Count
    kept_tokens: Index = 65_536

    def __call__(self, policy: Any) -> Engine:
        from ttpa.policy.decode import HFEngine

        return HFEngine(policy=policy, **asdict(self))


@option
class VLLMOptions:
    """Answers with vLLM in this process; it decides how many of the `rows` asked for at once are decoded together."""

    name: ClassVar[str] = "VLLMEngine"
    rows: Count
    gpu_memory_utilization: Share
    tensor_parallel_size: Count
    max_model_len: Count | None
    rules: bool

    def __call__(self, policy: Any) -> Engine:
        from ttpa.policy.vllm import VLLMEngine

        return VLLMEngine(policy, self)
