"""What draws answers: the option classes of the group `engine`. Importing this module imports no torch.

An option is made and checked when a run starts; a stage calls it with its policy to get the engine.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from ttpa.options import Count, Index, Share, option

if TYPE_CHECKING:
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
    """Answers with vLLM in this process; it decides how many of the `rows` asked for at once are decoded together.

    Args:
        max_model_len: Longest prompt plus answer, in tokens; an answer ends there. None: `model.max_tokens`.
        rules: Whether `sampling.rule` may be used; that needs vLLM's first model runner and synchronous scheduling.
    """

    name: ClassVar[str] = "VLLMEngine"
    rows: Count
    gpu_memory_utilization: Share
    tensor_parallel_size: Count
    max_model_len: Count | None
    rules: bool

    def __call__(self, policy: Any) -> Engine:
        from ttpa.policy.vllm import VLLMEngine

        return VLLMEngine(policy=policy, **{key: value for key, value in asdict(self).items() if key != "rows"})
