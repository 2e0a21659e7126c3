"""A policy: a base model with at most one adapter, its tokenizer, and the renderer of its prompts. Its folder holds
`policy.json`, `tokenizer/`, and the weights that were trained: `model/` (all) or `adapter/` (a PEFT folder).
"""

import hashlib
import json
import math
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError, DataError, fall_back
from ttpa.io import dumps, write_text
from ttpa.policy.logprobs import head_agrees
from ttpa.policy.models import HFModel, Lora, TinyBase, TinyModel
from ttpa.prompts import COMPACT_TOKENS, Renderer

transformers_logging.disable_progress_bar()
# Notices to the library's own developers, repeated at every load.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

BASE = Path(__file__).parent / "base"
KINDS = {"base": TinyBase, "tiny": TinyModel, "hf": HFModel}
PRE_SPLIT = r" ?[a-z]+|_[a-z]+|[A-Z][a-z]*|\d{1,2}|[^\sA-Za-z0-9]|\s"
"""Keeps words apart from a leading space, so that a name or a value has the same tokens in prompt and answer."""


@dataclass(kw_only=True)
class Policy:
    """Model, tokenizer and call syntax. `folder` is where the policy was loaded from; None for a base model. `weights`
    is the model, or a function that loads it when `model` is first asked for. `ends` are tokens that end an answer
    besides the tokenizer's own.
    """

    spec: TinyBase | TinyModel | HFModel
    weights: Any
    tokenizer: Any
    folder: Path | None = None
    ends: Sequence[int] = ()
    renderer: Renderer = field(init=False)

    def __post_init__(self) -> None:
        syntax = get_syntax(self.spec.syntax)
        how: dict[str, Any] = {"variables": self.spec.template_kwargs, "ends": self.ends}
        self.renderer = Renderer(tokenizer=self.tokenizer, template=self.spec.template, syntax=syntax, **how)

    @property
    def model(self) -> Any:
        """The transformers model (PEFT-wrapped with an adapter), loaded at the first use."""
        if not isinstance(self.weights, torch.nn.Module):
            self.weights = self.weights()
        return self.weights

    def start_training(self, seed: int) -> None:
        """Makes the trained weights trainable: all, or the adapter, which `seed` draws if there is none yet."""
        self.model.train()
        if (lora := self.spec.lora) is not None:
            from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

            fresh = not hasattr(self.model, "peft_config")
            if self.spec.quantization:
                prepare_model_for_kbit_training(self.model if fresh else self.model.get_base_model())
            if fresh:
                torch.manual_seed(seed)
                names = {"lora_alpha": lora.alpha, "target_modules": lora.target_modules, "use_dora": lora.dora}
                try:
                    self.weights = get_peft_model(self.model, LoraConfig(task_type="CAUSAL_LM", r=lora.r, **names))
                except (ValueError, re.error) as error:
                    parts = self.model.named_modules()
                    known = {path.rpartition(".")[2] for path, part in parts if isinstance(part, torch.nn.Linear)}
                    remedy = f"Use names among {', '.join(sorted(known))}, an expression for whole paths, or all-linear"
                    problem = str(error).splitlines()[0].rstrip(".")
                    raise ConfigError.at("model.lora.target_modules", lora.target_modules, problem, remedy) from None
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(lora is None or "lora_" in name)

    def save(self, folder: Path) -> None:
        """Writes the policy into a folder, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.spec.lora is None:
            self.model.save_pretrained(folder / "model")
        elif hasattr(self.weights, "peft_config"):
            self.weights.save_pretrained(folder / "adapter")
        elif self.folder is not None and (self.folder / "adapter").is_dir():  # as it was loaded
            shutil.copytree(self.folder / "adapter", folder / "adapter", dirs_exist_ok=True)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        spec = {"kind": next(kind for kind, made in KINDS.items() if type(self.spec) is made), **asdict(self.spec)}
        write_text(folder / "policy.json", dumps({"spec": spec, "full": self.spec.lora is None}))


def snapshot(model: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Remembers the trainable weights as they are now. Within what it returns, the model has them again."""
    kept = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]

    @contextmanager
    def within() -> Iterator[None]:
        with ExitStack() as after:
            for weight, then in kept:
                after.callback(setattr, weight, "data", weight.data)
                weight.data = then.to(weight.device)
            yield

    return within


def create_policy(spec: TinyBase | TinyModel | HFModel, texts: Iterable[str], seed: int) -> Policy:
    """The policy a run starts from. `texts` train the tokenizer of a random model and `seed` draws its weights: 1 /
    sqrt(fan_in), halved into the residual stream, embeddings 0.02, as measured in experiments/LOG.md.
    """
    if isinstance(spec, HFModel):
        return pretrained(spec)
    if isinstance(spec, TinyBase):
        found = hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()
        if found != spec.sha256:
            raise ConfigError.at("model.sha256", spec.sha256, f"{BASE} has {found}", "Install ttpa again")
        # AutoTokenizer would take the tokenizer of the architecture.
        return _in_full(spec, BASE, PreTrainedTokenizerFast.from_pretrained(BASE, split_special_tokens=True))
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = train_tokenizer(texts, spec.vocab)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=spec.hidden, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.heads, intermediate_size=spec.feed_forward,
        max_position_embeddings=spec.max_tokens, tie_word_embeddings=True, attn_implementation="sdpa", dtype=spec.dtype,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            gain = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            torch.nn.init.normal_(weight, std=0.02 if "embed" in name else gain / math.sqrt(weight.shape[1]))
    return Policy(spec=spec, weights=model.to(getattr(torch, spec.dtype)), tokenizer=tokenizer)


def load_policy(folder: Path, *, merged: bool = False) -> Policy:
    """The policy that `Policy.save` wrote. `merged` adds the adapter to the weights, for a policy that is not trained;
    it stays beside them on a quantised base, where adding would round it off, and on tied embeddings, where adding to
    one use would change the other. No policy there is a `DataError`.
    """
    try:
        row = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: no policy.json ({error}). Give the folder of a trained stage.") from None
    if row.get("adapters"):
        raise DataError(f"{folder}: adapters of an older version of ttpa. Delete the stage; it is built again.")
    values = {**row["spec"], **({"lora": Lora(**row["spec"]["lora"])} if row["spec"].get("lora") else {})}
    spec: Any = KINDS[values.pop("kind")](**values)
    if not row["full"]:
        return pretrained(spec, folder, merged)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return replace(_in_full(spec, folder / "model", tokenizer), folder=folder)


def _in_full(spec: Any, model: Path, tokenizer: Any) -> Policy:
    weights = partial(AutoModelForCausalLM.from_pretrained, model, dtype=getattr(torch, spec.dtype))
    return Policy(spec=spec, weights=weights, tokenizer=tokenizer, ends=_ends(model))


def _ends(name: Path | str, revision: str | None = None) -> tuple[int, ...]:
    """The tokens that end an answer by a model's generation_config.json."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    except OSError:
        return ()
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def _context(config: Any) -> float:
    """The positions a model knows, with a scaling of its rotary embeddings; infinite where it does not say."""
    text = config.get_text_config()
    known, rope = (
        getattr(text, "max_position_embeddings", None) or math.inf,
        getattr(text, "rope_parameters", None) or {},
    )
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return known
    return max(known, (rope.get("original_max_position_embeddings") or known) * (rope.get("factor") or 1))


def pretrained(spec: HFModel, folder: Path | None = None, merged: bool = False) -> Policy:
    """A policy over published weights, with the adapter of a folder if it has one."""
    dtype, place = getattr(torch, spec.dtype), spec.place
    if spec.gguf and Path(place).is_dir() and not (Path(place) / spec.gguf).is_file():
        there = ", ".join(sorted(path.name for path in Path(place).glob("*.gguf"))) or "none"
        raise ConfigError.at("model.gguf", spec.gguf, f"no such file in {place}", f"Files there: {there}")

    def fetched(kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(place, revision=spec.revision, gguf_file=spec.gguf, **options)
        except (OSError, ValueError, ImportError) as error:
            problem = f"cannot be loaded ({str(error).strip().splitlines()[0]})"
            remedy = "Give a folder that holds a transformers model, or a hub id while online"
            if isinstance(error, ImportError):
                remedy = "Install what is missing: extra `gguf` for GGUF files, `qlora` for quantization=nf4"
            elif not spec.gguf and (files := sorted(path.name for path in Path(place).glob("*.gguf"))):
                remedy = f"For its GGUF file add model.gguf={files[0]}"
            raise ConfigError.at("model.name", spec.name, problem, remedy) from error

    context = _context(fetched(AutoConfig))
    if context < spec.max_tokens:
        fall_back(f"model.max_tokens={spec.max_tokens}: {spec.name} knows {context} positions, which stand in")
        spec = replace(spec, max_tokens=int(context))

    def weights() -> Any:
        options: dict[str, Any] = {"dtype": dtype}
        if spec.quantization:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=dtype
            )
        elif spec.gguf:
            options["quantization_config"] = GgufConfig(dequantize=True)
        model = fetched(AutoModelForCausalLM, **options)
        if not head_agrees(model):
            problem = f"the architecture {type(model).__name__} changes its logits in a way that is not known here"
            raise ConfigError.at("model.name", spec.name, problem, "Extend ttpa.policy.logprobs.head_logits")
        if folder is None or not (folder / "adapter").is_dir():
            return model
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, folder / "adapter")
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160].rstrip(".")
            remedy = f"Give the base model that it was trained on, or delete {folder.parent} to train it again."
            raise DataError(
                f"{folder / 'adapter'}: the adapter does not fit {spec.name} ({reason}). {remedy}"
            ) from None
        beside = spec.quantization or adapts_shared_weights(model)
        return model.merge_and_unload() if merged and not beside else model

    ends = _ends(place, spec.revision)
    return Policy(spec=spec, weights=weights, tokenizer=fetched(AutoTokenizer), folder=folder, ends=ends)


def adapts_shared_weights(model: Any) -> bool:
    """Whether an adapter lies on a weight that another module uses too (embeddings tied to the head)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(weight) for part in model.modules() for weight in part.parameters(recurse=False))
    adapted = [part.get_base_layer() for part in model.modules() if isinstance(part, BaseTunerLayer)]
    return any(uses[id(weight)] > 1 for part in adapted for weight in part.parameters(recurse=False))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens, special ones and bytes included. Special tokens in a text stay text."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PRE_SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = list(COMPACT_TOKENS), sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    as_is = {"split_special_tokens": True, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", **as_is)
