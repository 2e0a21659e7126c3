"""Which model a run starts from: the option classes of the group `model`. Importing this module imports no torch."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError
from ttpa.options import Count, option

Dtype = Literal["float32", "bfloat16", "float16"]
MaxTokens = Annotated[int, Field(ge=16)]


@option
class Lora:
    """Low-rank adapters (2106.09685) of rank `r`, scaled by alpha / r, on modules by name or on "all-linear"; `dora`
    makes them weight-decomposed (2402.09353).
    """

    r: Count
    alpha: Count
    target_modules: str | list[str]
    dora: bool


@option
class TinyModel:
    """The embedded model: Qwen2 architecture with random weights, byte-level BPE trained on the warm-up texts. `vocab`
    counts 256 bytes and the special tokens; `max_tokens` is the longest prompt plus answer.
    """

    lora: ClassVar[None] = None
    quantization: ClassVar[None] = None
    hidden: Count
    layers: Count
    heads: Count
    feed_forward: Count
    vocab: Annotated[int, Field(ge=300)]
    max_tokens: MaxTokens
    dtype: Dtype
    syntax: str
    template: Literal["compact"]

    def __post_init__(self) -> None:
        get_syntax(self.syntax)
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            problem = f"must divide model.hidden={self.hidden} into even head sizes"
            raise ConfigError.at("heads", self.heads, problem, "For example hidden 128 with heads 8")

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the options."""
        return {}


@option
class HFModel:
    """Any causal language model of the transformers library, by hub id or local folder. `quantization="nf4"` is QLoRA
    (2305.14314; needs the extra `qlora`); without `lora`, all weights are trained.
    """

    name: Annotated[str, Field(min_length=1)]
    revision: str | None
    max_tokens: MaxTokens
    dtype: Dtype
    quantization: Literal["nf4"] | None
    syntax: str
    template: Literal["chat", "compact"]
    lora: Lora | None

    def __post_init__(self) -> None:
        get_syntax(self.syntax)
        if self.quantization and self.lora is None:
            problem, remedy = "4-bit weights cannot be trained themselves", "Add model.lora, or set quantization=null"
            raise ConfigError.at("quantization", self.quantization, problem, remedy)

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the options: the files of a local folder, their sizes and ages."""
        folder = Path(self.name)
        files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
        rows = [[path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in files]
        return {"files": rows} if folder.is_dir() else {}
