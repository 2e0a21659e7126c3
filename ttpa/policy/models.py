"""Which model a run starts from, and how a policy is kept on disk. Importing this module imports no torch.

A policy folder holds `policy.json` and either `model/` (full weights, `save_pretrained`) or `adapter-0/`,
`adapter-1/` ... (PEFT folders, one per training stage, to be merged onto the base in that order). Adapter folders
load in PEFT as they are. A stage trains a fresh adapter on the merged earlier ones, so "adapter off" is exactly the
policy the stage started from, which makes it the reference model without a second copy. Full and adapter training
share every other line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.calls.syntaxes import SYNTAXES
from ttpa.errors import ConfigError

if TYPE_CHECKING:
    pass

DTYPES = ("float32", "bfloat16", "float16")


def _check_common(dtype: str, syntax: str, max_tokens: int) -> None:
    if dtype not in DTYPES:
        raise ConfigError.at("model.dtype", dtype, "unknown dtype", f"Use one of {', '.join(DTYPES)}")
    if syntax not in SYNTAXES:
        raise ConfigError.at("model.syntax", syntax, "no such call syntax", f"Use one of {', '.join(SYNTAXES)}")
    if max_tokens < 16:
        raise ConfigError.at(
            "model.max_tokens", max_tokens, "must be at least 16", "It counts prompt and answer together"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters (2106.09685). `target_modules` is a list of names or "all-linear"; `dora` as in 2402.09353.

    Raises:
        ConfigError: a rank below 1.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | Sequence[str] = "all-linear"
    dora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError.at(
                "model.lora.r", self.r, "must be at least 1", "Set model.lora=null to train all weights"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """The embedded model: Qwen2 architecture from random weights, byte-level BPE trained on the warm-up texts.

    Args:
        hidden, layers, heads, feed_forward: Sizes; head dimension is hidden / heads.
        vocab: Tokens of the tokenizer.
        max_tokens: Longest prompt plus answer; longer samples are left out and counted.
        dtype, syntax, template: Number format, how calls are written, how prompts are written.

    Raises:
        ConfigError: sizes that do not divide, or unknown names.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocab: int
    max_tokens: int
    dtype: str = "float32"
    syntax: str = "python_compact"
    template: str = "compact"

    def __post_init__(self) -> None:
        _check_common(self.dtype, self.syntax, self.max_tokens)
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ConfigError.at(
                "model.heads",
                self.heads,
                f"must divide model.hidden={self.hidden} into even head sizes",
                "For example hidden 128 with heads 8",
            )
        if self.vocab < 300:
            raise ConfigError.at(
                "model.vocab", self.vocab, "must hold 256 bytes and the special tokens", "Use at least 300"
            )
        if self.template != "compact":
            raise ConfigError.at("model.template", self.template, "the small model has no chat template", "Use compact")

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the settings: nothing."""
        return {}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tiny", **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HFModel:
    """Any causal language model of the transformers library: hub id or folder.

    Args:
        name: Hub id or local folder.
        max_tokens: Longest prompt plus answer; longer samples are left out and counted.
        lora: Adapter settings, or None to train all weights.
        quantization: None, or "nf4" for QLoRA (needs the extra `qlora`).
        revision: Hub revision, for reproducible runs.
        dtype, syntax, template: Number format, how calls are written, how prompts are written.

    Raises:
        ConfigError: no name, unknown names, or quantization without an adapter.
    """

    name: str
    max_tokens: int
    lora: Lora | None = None
    quantization: str | None = None
    revision: str | None = None
    dtype: str = "bfloat16"
    syntax: str = "hermes"
    template: str = "chat"

    def __post_init__(self) -> None:
        _check_common(self.dtype, self.syntax, self.max_tokens)
        if not self.name:
            raise ConfigError.at(
                "model.name",
                self.name,
                "is empty",
                "Give a hub id or a folder, for example model.name=Qwen/Qwen2.5-0.5B-Instruct",
            )
        if self.template not in ("chat", "compact"):
            raise ConfigError.at("model.template", self.template, "unknown template", "Use chat or compact")
        if self.quantization not in (None, "nf4"):
            raise ConfigError.at("model.quantization", self.quantization, "unknown", "Use nf4 or null")
        if self.quantization and self.lora is None:
            raise ConfigError.at(
                "model.quantization",
                self.quantization,
                "4-bit weights cannot be trained themselves",
                "Add model.lora, or set model.quantization=null",
            )

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the settings: the files of a local folder, their sizes and ages."""
        folder = Path(self.name)
        if not folder.is_dir():
            return {}
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
        return {"files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "hf", **asdict(self)}


def model_from_json(row: Mapping[str, Any]) -> TinyModel | HFModel:
    """Inverse of `to_json`."""
    fields = {key: value for key, value in row.items() if key != "kind"}
    if row["kind"] == "tiny":
        return TinyModel(**fields)
    lora = fields.pop("lora")
    return HFModel(**fields, lora=Lora(**lora) if lora else None)
