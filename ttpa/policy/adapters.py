"""Several LoRA adapters as one: for engines that can apply only one to the base model.

A policy's adapters are merged in order: W + s1 B1 A1 + s2 B2 A2 ... A sum of low-rank updates is a low-rank update
itself, [s1 B1, s2 B2] [A1; A2], of the summed rank (2106.09685). So nothing is lost, and nothing is rounded to the base
model's format as it is in a merge. It does not hold for DoRA, whose updates depend on the weights they are added to.
Called by `ttpa.policy.vllm`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError

_A, _B = ".lora_A.weight", ".lora_B.weight"
# PEFT's options under which an adapter is more, or other, than B A times one number; each is off when false or empty.
_MORE = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern",
    "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip


def plain_config(folder: Path) -> dict[str, Any]:
    """The PEFT configuration of an adapter that adds B A times one number to each of its modules.

    Raises:
        DataError: the folder holds no adapter.
        ConfigError: the adapter does anything else, DoRA for example.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except OSError as error:
        raise DataError(f"{folder}: no adapter_config.json ({error}). Give the folder of a PEFT adapter.") from None
    assert isinstance(config, dict)
    other = [key for key in _MORE if config.get(key)]
    other += [key for key, plain in (("peft_type", "LORA"), ("bias", "none")) if config[key] != plain]
    if other:
        raise ConfigError(
            f"{folder}: {other[0]}={config[other[0]]}, so it is not a plain LoRA, which this engine needs. Use "
            "engine=hf, or train with model.lora.dora=false."
        )
    return config


def combine(folders: Sequence[Path], out: Path) -> Path:
    """Writes one adapter whose update is the sum of the updates of several.

    A module that only some of them have gets zeros from the others, so that the rank is the same everywhere.

    Args:
        folders: PEFT folders.
        out: Where to write; made if missing.

    Returns:
        `out`.

    Raises:
        ConfigError: an adapter that is not a plain LoRA.
    """
    import torch
    from safetensors.torch import load_file, save_file

    configs = [plain_config(folder) for folder in folders]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    for folder, tensors in zip(folders, weights, strict=True):
        if other := [name for name in tensors if not name.endswith((_A, _B))]:
            raise ConfigError(f"{folder}: holds {other[0]}, which is no LoRA matrix of a linear layer. Use engine=hf.")
    combined: dict[str, torch.Tensor] = {}
    for module in sorted({name.removesuffix(_A) for tensors in weights for name in tensors if name.endswith(_A)}):
        # With R the rank, I and O the layer's inputs and outputs: A (R, I) and B (O, R).
        sizes = next((t[module + _A].shape[1], t[module + _B].shape[0]) for t in weights if module + _A in t)
        parts_A, parts_B = [], []
        for config, tensors in zip(configs, weights, strict=True):
            rank = config["r"]
            scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
            parts_A.append(tensors.get(module + _A, torch.zeros(rank, sizes[0])).float())
            parts_B.append(tensors.get(module + _B, torch.zeros(sizes[1], rank)).float() * scale)
        combined[module + _A], combined[module + _B] = torch.cat(parts_A, 0), torch.cat(parts_B, 1)
    rank = sum(config["r"] for config in configs)
    targets = sorted({name.removesuffix(_A).rpartition(".")[2] for name in combined if name.endswith(_A)})
    # Alpha equal to the rank makes the factor 1: the scales are in B already.
    config = {**configs[0], "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": targets}
    out.mkdir(parents=True, exist_ok=True)
    save_file(combined, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return out
