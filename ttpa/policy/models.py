"""Which model a run starts from: the option classes of the group `model`. Importing this module imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict
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
    """The embedded model: Qwen2 architecture with random weights, byte-level BPE trained on the warm-up texts.

    Args:
        hidden, layers, heads, feed_forward: Sizes; the head dimension is hidden / heads and must be even.
        vocab: Tokens of the tokenizer, 256 bytes and the special tokens included.
        max_tokens: Longest prompt plus answer.
        dtype, syntax, template: Number format, and how calls and prompts are written.
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

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tiny", **asdict(self)}


@option
class HFModel:
    """Any causal language model of the transformers library.

    Args:
        name: Hub id or local folder.
        revision: Hub revision, for reproducible runs.
        max_tokens: Longest prompt plus answer.
        dtype, syntax, template: Number format, and how calls and prompts are written.
        quantization: None, or "nf4" for QLoRA (2305.14314; needs the extra `qlora`).
        lora: Adapter options, or None to train all weights.
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
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
        return {"files": [[name, s.st_size, s.st_mtime_ns] for name, s in stats]} if folder.is_dir() else {}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "hf", **asdict(self)}


def model_from_json(row: Mapping[str, Any]) -> TinyModel | HFModel:
    """Inverse of `to_json`."""
    fields: dict[str, Any] = {key: value for key, value in row.items() if key != "kind"}
    if fields.get("lora"):
        fields["lora"] = Lora(**fields["lora"])
    return TinyModel(**fields) if row["kind"] == "tiny" else HFModel(**fields)
