"""A policy in memory: transformers model, tokenizer, renderer. Creates, loads, saves; attaches adapters.

Who trains it: `ttpa.train`. Who samples from it: `ttpa.policy.decode`. File format: `ttpa.policy.models`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.policy.logprobs import head_agrees
from ttpa.policy.models import HFModel, TinyModel, model_from_json
from ttpa.prompts import COMPACT_TOKENS, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PRE_SPLIT = r" ?[a-z]+|_[a-z]+|[A-Z][a-z]*|\d{1,2}|[^\sA-Za-z0-9]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; any text can be encoded afterwards (byte level), special tokens in a text stay text.

    Args:
        texts: Training texts.
        vocab_size: Number of tokens, special tokens and the 256 bytes included.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(COMPACT_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


transformers_logging.disable_progress_bar()
# Notices to the library's own developers, repeated at every load.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@dataclass(kw_only=True)
class Policy:
    """Base model with its adapters, tokenizer and call syntax.

    `weights` is the model, or a function that loads it when `model` is first asked for: who only renders prompts, or
    decodes with another engine, never pays for it. `adapters` are the PEFT folders merged into the model, oldest first;
    `folder` is where the policy was loaded from.
    """

    spec: TinyModel | HFModel
    weights: PreTrainedModel | Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    adapters: tuple[Path, ...] = ()
    folder: Path | None = None
    renderer: Renderer = field(init=False)

    def __post_init__(self) -> None:
        syntax = get_syntax(self.spec.syntax)
        self.renderer = Renderer(tokenizer=self.tokenizer, template=self.spec.template, syntax=syntax)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, loaded at the first use."""
        if not isinstance(self.weights, torch.nn.Module):
            self.weights = self.weights()
        return self.weights

    @model.setter
    def model(self, model: PreTrainedModel) -> None:
        self.weights = model

    @property
    def max_tokens(self) -> int:
        """Longest prompt plus answer."""
        return self.spec.max_tokens

    def start_training(self, seed: int) -> None:
        """Makes the weights that will be trained trainable: a fresh adapter, or everything."""
        lora = self.spec.lora if isinstance(self.spec, HFModel) else None
        self.model.train()
        if lora is None:
            self.model.requires_grad_(True)
            return
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        torch.manual_seed(seed)
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules=targets, use_dora=lora.dora
        )
        if isinstance(self.spec, HFModel) and self.spec.quantization:
            self.model = prepare_model_for_kbit_training(self.model)
        self.model = get_peft_model(self.model, config)

    def save(self, folder: Path) -> None:
        """Writes the policy. A trained adapter is written alone, beside copies of the earlier ones."""
        import shutil

        folder.mkdir(parents=True, exist_ok=True)
        adapters: list[str] = []
        for number, earlier in enumerate(self.adapters):
            adapters.append(f"adapter-{number}")
            if earlier != folder / adapters[-1]:
                shutil.copytree(earlier, folder / adapters[-1], dirs_exist_ok=True)
        if hasattr(self.model, "peft_config"):
            adapters.append(f"adapter-{len(adapters)}")
            self.model.save_pretrained(folder / adapters[-1])
        elif not (isinstance(self.spec, HFModel) and self.spec.lora is not None):
            self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        full = (folder / "model").exists()
        (folder / "policy.json").write_text(dumps({"spec": self.spec.to_json(), "adapters": adapters, "full": full}))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def create_policy(spec: TinyModel | HFModel, texts: Iterable[str], seed: int) -> Policy:
    """The policy a run starts from. `texts` train the small model's tokenizer and `seed` draws its weights; a pretrained
    model uses neither.
    """
    return _create_tiny(spec, texts, seed) if isinstance(spec, TinyModel) else load_base(spec, ())


def _create_tiny(spec: TinyModel, texts: Iterable[str], seed: int) -> Policy:
    """The embedded model with fresh weights: 1/sqrt(fan_in), residual outputs halved, embeddings 0.02.

    This initialisation and the sizes of `conf/model/tiny.yaml` are the measured recipe; see experiments/LOG.md.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = train_tokenizer(texts, spec.vocab)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        intermediate_size=spec.feed_forward,
        max_position_embeddings=spec.max_tokens,
        tie_word_embeddings=True,
        use_sliding_window=False,
        attn_implementation="sdpa",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype=spec.dtype,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if "embed" in name:
            torch.nn.init.normal_(weight, std=0.02)
        elif weight.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(weight, std=(0.5 if residual else 1.0) / math.sqrt(weight.shape[1]))
    return Policy(spec=spec, weights=model.to(_dtype(spec.dtype)), tokenizer=tokenizer)


def load_base(spec: HFModel, adapters: Sequence[Path], folder: Path | None = None) -> Policy:
    """The policy of a pretrained model with `adapters` merged onto it in order; the weights come later.

    Raises:
        ConfigError: the name is neither a folder nor a model that can be fetched.
    """
    with _known(spec):
        tokenizer = AutoTokenizer.from_pretrained(spec.name, revision=spec.revision)
    weights = partial(_merged, spec, adapters)
    return Policy(spec=spec, weights=weights, tokenizer=tokenizer, adapters=tuple(adapters), folder=folder)


@contextmanager
def _known(spec: HFModel) -> Iterator[None]:
    """Turns what transformers raises for a model that is not there into a `ConfigError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError.at(
            "model.name",
            spec.name,
            f"cannot be loaded ({str(error).splitlines()[0]})",
            "Give a folder that holds a transformers model, or a hub id while online",
        ) from error


def _merged(spec: HFModel, adapters: Sequence[Path]) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": _dtype(spec.dtype), "revision": spec.revision}
    if spec.quantization:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=_dtype(spec.dtype),
            bnb_4bit_quant_storage=_dtype(spec.dtype),
        )
    with _known(spec):
        model = AutoModelForCausalLM.from_pretrained(spec.name, **options)
    for folder in adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    if not head_agrees(model):
        raise ConfigError.at(
            "model.name",
            spec.name,
            f"the architecture {type(model).__name__} changes its logits in a way that is not known here",
            "Extend ttpa.policy.logprobs.head_logits",
        )
    return model


def load_policy(folder: Path) -> Policy:
    """The policy that `Policy.save` wrote; the weights come later.

    Raises:
        DataError: the folder holds no policy.
    """
    try:
        row = json.loads((folder / "policy.json").read_text())
    except OSError as error:
        raise DataError(f"{folder}: no policy.json ({error}). Give the folder of a trained stage.") from None
    spec = model_from_json(row["spec"])
    if not row["full"]:
        assert isinstance(spec, HFModel)
        return load_base(spec, [folder / name for name in row["adapters"]], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    weights = partial(AutoModelForCausalLM.from_pretrained, folder / "model", dtype=_dtype(spec.dtype))
    return Policy(spec=spec, weights=weights, tokenizer=tokenizer, folder=folder)
