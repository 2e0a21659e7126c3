"""Small random models of several architectures, and their log-probs without any of our code."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ttpa.policy.tree import TokenRow

PAD = 0
IDS = range(2, 22)  # stand for the ids of a text
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 128, "pad_token_id": PAD, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "phi": ("Phi", {"num_key_value_heads": 4}),  # its head has a bias
    "cohere": ("Cohere", {}),  # its logits are scaled
    "deepseek": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
            "v_head_dim": 4, "first_k_dense_replace": 2,
        },
    ),  # its values are smaller than its keys
    "mistral": ("Mistral", {"sliding_window": 6}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.5}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "falcon_h1": (
        "FalconH1",
        {
            "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
            "mamba_chunk_size": 8, "lm_head_multiplier": 0.1,
        },
    ),
}  # fmt: skip


def random_model(kind: str, vocab: int, std: float, seed: int = 2, **fields: Any) -> PreTrainedModel:
    """Weights large enough for attention to look somewhere; biases and norms off their neutral values."""
    name, own = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(vocab_size=vocab, **{**SIZES, **own, **fields})
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=std)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


def policy_of(model: PreTrainedModel, **fields: Any) -> Any:
    """A policy with this model and a tokenizer that reads `IDS` from any text."""
    return SimpleNamespace(model=model, tokenizer=lambda text: {"input_ids": list(IDS)}, **fields)


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits behind every token of one sequence, (T, V)."""
    return model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def plain_logps(model: PreTrainedModel, row: TokenRow, with_prompt: bool = False) -> list[float]:
    """log_softmax of all logits of one row alone, gathered at the tokens that follow."""
    ids = [*row.prompt, *row.answer]
    logps_TV = torch.log_softmax(plain_logits(model, ids), -1)
    return [float(logps_TV[at - 1, ids[at]]) for at in range(1 if with_prompt else len(row.prompt), len(ids))]
