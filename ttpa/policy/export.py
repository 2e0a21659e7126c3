"""A policy as plain transformers and PEFT load it: one adapter on its base, or full weights with the adapter merged."""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from ttpa.errors import ConfigError
from ttpa.io import write_text
from ttpa.policy.models import Dtype, HFModel
from ttpa.policy.policy import Policy, adapts_shared_weights, load_policy, pretrained

PROBE = f"{string.printable} at 20:30, 1234567 of XD43's Vevos\n\n  under_score camelCase \u00e9\u4f60\U0001f600"
"""What two tokenizers would split differently."""


def write_adapter(folder: Path, out: Path) -> list[str]:
    """Writes the adapter of the policy in `folder`, its tokenizer and generation config into the folder `out`; returns
    what its user must know. ConfigError: the policy has none.
    """
    policy = load_policy(folder)
    if not isinstance(policy.spec, HFModel) or not (folder / "adapter").is_dir():
        problem = "is full weights" if policy.spec.lora is None else "has no adapter yet, it is the base as it is"
        raise ConfigError.at("as", "adapter", f"the policy in {folder} {problem}", "Use as=merged")
    for file in sorted((folder / "adapter").glob("adapter_*")):
        (out / file.name).write_bytes(file.read_bytes())
    named = {"base_model_name_or_path": policy.spec.name, "revision": policy.spec.revision}
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8")) | named
    write_text(out / "adapter_config.json", json.dumps(settings, indent=2))
    try:
        generation = GenerationConfig.from_pretrained(policy.spec.place, revision=policy.spec.revision)
    except OSError:
        generation = GenerationConfig()
    notes = [f"The base is the folder {policy.spec.name}: hand it on, too."] if Path(policy.spec.name).is_dir() else []
    return notes + _write_rest(policy, generation, out)


def write_merged(folder: Path, out: Path, dtype: Dtype | None) -> list[str]:
    """Writes full weights into the folder `out`, the adapter merged in float32 and the sum rounded to `dtype` (None:
    the policy's own), with tokenizer and generation config; returns what its user must know.
    """
    policy, notes = load_policy(folder), list[str]()
    if isinstance(policy.spec, HFModel) and policy.spec.quantization:
        notes.append("In training the base had 4 bits; here it has the published weights, so logits differ a little.")
    if isinstance(policy.spec, HFModel) and policy.spec.lora is not None:
        spec = replace(policy.spec, dtype="float32", quantization=None)
        model = pretrained(spec, folder).model
        if hasattr(model, "peft_config"):
            if adapts_shared_weights(model):
                model = _untied(pretrained(spec).model, folder / "adapter")
                notes.append("The adapter changes the embeddings and not the head, so the two are no longer tied.")
            model = model.merge_and_unload()
    else:
        model = policy.model
    model.to(getattr(torch, dtype or policy.spec.dtype)).save_pretrained(out)
    return notes + _write_rest(policy, model.generation_config or GenerationConfig(), out)


def _untied(model: Any, adapter: Path) -> Any:
    """The base with a head of its own, and the adapter."""
    from peft import PeftModel

    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return PeftModel.from_pretrained(model, adapter)


def _write_rest(policy: Policy, generation: GenerationConfig, out: Path) -> list[str]:
    """Tokenizer with the chat template that gives the prompts of training, and where answers end; returns a note where
    transformers' AutoTokenizer reads the tokenizer as another one, as it does for the embedded models.
    """
    tokenizer, renderer = policy.tokenizer, policy.renderer
    tokenizer.chat_template = renderer.whole_template()
    tokenizer.split_special_tokens = False  # the template writes them
    tokenizer.save_pretrained(out)
    generation.eos_token_id, generation.pad_token_id = list(renderer.stop_ids), renderer.pad_id
    generation.save_pretrained(out)
    read, given = AutoTokenizer.from_pretrained(out), tokenizer(PROBE).input_ids
    if read(PROBE).input_ids == given:
        return []
    return [
        "AutoTokenizer splits texts in another way than training: it takes the class of the architecture. Load the "
        "tokenizer with PreTrainedTokenizerFast.from_pretrained."
    ]
