"""Several LoRA adapters as one: against PEFT's own merges, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ttpa.errors import ConfigError, DataError
from ttpa.policy.adapters import combine, plain_config

LAYER = "base_model.model.model.layers.0.mlp.up_proj"
ATTENTION = ["q_proj", "v_proj"]


def random_model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
    }
    return Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()


def adapter(folder: Path, seed: int, **options: Any) -> Path:
    """A saved adapter for the random model, with weights that do something."""
    model = get_peft_model(random_model(), LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(12)[None]).logits
    return found


CHAIN = (
    {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 3, "lora_alpha": 2, "target_modules": ATTENTION},
    {"r": 4, "lora_alpha": 6, "target_modules": ["up_proj", "q_proj"], "use_rslora": True},
)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (1, 2), (0, 1, 2)])
def test_the_sum_is_what_merging_one_after_the_other_gives(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """Different ranks, factors, targets, and one that scales by the square root of its rank."""
    folders = [adapter(tmp_path / str(number), number, **CHAIN[number]) for number in numbers]
    merged: Any = random_model()
    for folder in folders:
        merged = PeftModel.from_pretrained(merged, folder).merge_and_unload()
    out = combine(folders, tmp_path / "sum")
    together = PeftModel.from_pretrained(random_model(), out)
    expected, found, plain = logits(merged), logits(together), logits(random_model())
    assert float((expected - plain).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(together.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def by_hand(folder: Path, a: list[list[float]], b: list[list[float]], **fields: Any) -> Path:
    config = {
        "peft_type": "LORA",
        "r": len(a),
        "lora_alpha": 2,
        "bias": "none",
        "target_modules": ["up_proj"],
        **fields,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {f"{LAYER}.lora_A.weight": torch.tensor(a), f"{LAYER}.lora_B.weight": torch.tensor(b)}
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def test_matrices_stand_side_by_side_with_their_factors_in_b(tmp_path: Path) -> None:
    one = by_hand(tmp_path / "one", [[1.0, 2.0]], [[1.0], [0.0], [3.0]])  # factor 2 / 1
    two = by_hand(tmp_path / "two", [[5.0, 6.0], [7.0, 8.0]], [[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], lora_alpha=1)
    out = combine([one, two], tmp_path / "deep" / "sum")
    weights = load_file(out / "adapter_model.safetensors")
    assert weights[f"{LAYER}.lora_A.weight"].tolist() == [[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]]
    assert weights[f"{LAYER}.lora_B.weight"].tolist() == [[2.0, 0.5, 0.5], [0.0, 0.0, 1.0], [6.0, 0.0, 0.0]]
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 3, False)
    assert config["target_modules"] == ["up_proj"]


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"up_proj": 4}},
        {"alpha_pattern": {"up_proj": 4}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_does_not_add_up_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = by_hand(tmp_path / "one", [[1.0]], [[1.0]], **fields)
    ((key, _),) = fields.items()
    with pytest.raises(ConfigError, match=rf"one: {key}=.*not a plain LoRA.* Use engine=hf"):
        plain_config(folder)
    with pytest.raises(ConfigError, match=key):
        combine([by_hand(tmp_path / "two", [[1.0]], [[1.0]]), folder], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "one", [[1.0]], [[1.0]])
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(1, 1)
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"one: holds .*embed_tokens\.lora_embedding_A, .* Use engine=hf"):
        combine([folder, folder], tmp_path / "sum")


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: no adapter_config\.json .*Give the folder of a PEFT adapter"):
        plain_config(tmp_path / "nothing")


def test_peft_writes_configurations_that_count_as_plain(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one", 0, r=2, lora_alpha=4, target_modules="all-linear")
    assert plain_config(folder)["r"] == 2
