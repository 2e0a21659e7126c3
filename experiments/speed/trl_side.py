"""TRL's contenders: its trainers on the same sequences, at their defaults and at their faster settings.

A trainer is built as a user would build it, tokenises and collates the data itself, and its `compute_loss` is what is
timed; the batches are read back and must be our rows. Not at the defaults anywhere: gradient checkpointing and bf16 are
off (their default on would make TRL slower, or not comparable), nothing is truncated, DPO's reference is precomputed.

Faster settings (`variants`):
* `padding-free`: SFT's rows in one row without padding (`padding_free=True`; DPO's is disabled in 1.16).
* `scored only`: the fused LM head on scored positions alone. On CUDA that is what it does; on the CPU it scores all
  positions and there is no option, so the switch in `trl.trainer.utils` is patched. For SFT on top of `padding-free`.
* `DPOTrainer`: CPOTrainer, which has SimPO, has no fused LM head; DPOTrainer's `sigmoid_norm` with reference 0 is SimPO
  with gamma 0, and has it (scored positions only, as above).
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import datasets
import torch
import trl.trainer.utils as trl_utils
from cases import EOS, PAD, Case, Work
from datasets import Dataset
from ours import CLIP, DPO_BETA, SIMPO_BETA, fresh_model, optimizer_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from ttpa.policy.tree import TokenRow

DEFAULT = "trl"
LONGEST = 8192


def variants(case: Case, device: str) -> list[str]:
    """TRL's contenders for a case, the default first; none for whole dialogues, which TRL cannot share or mask."""
    patched = ["scored only"] if device == "cpu" else []
    return {
        "sft": [DEFAULT, "padding-free", *patched],
        "dpo": [DEFAULT, *patched],
        "simpo": [DEFAULT, "DPOTrainer"],
        "grpo": [DEFAULT, *patched],
        "dialogues": [],
    }[case.kind]


@lru_cache
def tokenizer_of(vocab: int) -> PreTrainedTokenizerFast:
    """Word n is `w<n>`: text and token ids are the same thing."""
    names = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, vocab))]
    raw = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _text(vocab: int, ids: Any) -> str:
    return " ".join(tokenizer_of(vocab).convert_ids_to_tokens(list(ids)))


def _dataset(work: Work) -> Dataset:
    """Prompts end in a blank, because CPO tokenises prompt and answer in one piece; the trainers append EOS."""
    rows = [row for step in work.steps for row in step]
    assert all(row.answer[-1] == EOS for row in rows)
    prompts = [_text(work.vocab, row.prompt) + " " for row in rows]
    answers = [_text(work.vocab, row.answer[:-1]) for row in rows]
    if work.kind == "sft":
        return Dataset.from_dict({"prompt": prompts, "completion": answers})
    half = len(rows) // 2
    return Dataset.from_dict({"prompt": prompts[:half], "chosen": answers[:half], "rejected": answers[half:]})


def _trainer(variant: str, work: Work, folder: str, device: str) -> Any:
    count = len(work.steps[0]) // (1 if work.kind in ("sft", "grpo") else 2)
    fields: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": count,
    }
    model, words = fresh_model(work.vocab, device), tokenizer_of(work.vocab)
    if work.kind == "sft":
        args: Any = SFTConfig(**fields, max_length=None, padding_free=variant != DEFAULT)
        return SFTTrainer(model, args=args, train_dataset=_dataset(work), processing_class=words)
    if work.kind == "grpo":
        args = GRPOConfig(
            **fields, num_generations=count, loss_type="grpo", beta=0.0, epsilon=CLIP, max_completion_length=LONGEST
        )
        prompts = Dataset.from_dict({"prompt": ["w3 w4"] * count})
        return GRPOTrainer(
            model, lambda completions, **_: [0.0] * len(completions), args=args, train_dataset=prompts,
            processing_class=words,
        )  # fmt: skip
    if work.kind == "simpo" and variant == DEFAULT:
        args = CPOConfig(
            **fields,
            loss_type="simpo",
            beta=SIMPO_BETA,
            simpo_gamma=SIMPO_BETA * work.ratio,
            cpo_alpha=0.0,
            max_length=LONGEST,
            remove_unused_columns=False,
        )
        return CPOTrainer(model, args=args, train_dataset=_dataset(work), processing_class=words)
    beta, kind = (DPO_BETA, "sigmoid") if work.kind == "dpo" else (SIMPO_BETA, "sigmoid_norm")
    args = DPOConfig(
        **fields, beta=beta, loss_type=[kind], max_length=LONGEST, precompute_ref_log_probs=work.kind == "dpo"
    )
    reference = fresh_model(work.vocab, device, noise=0.01)
    trainer = DPOTrainer(model, reference, args=args, train_dataset=_dataset(work), processing_class=words)
    trainer.ref_model, trainer.precompute_ref_logps = None, True
    return trainer


@contextmanager
def _scored_only(wanted: bool) -> Iterator[None]:
    """TRL's choice of positions as it is on CUDA; the kernels stay torch's."""
    before = trl_utils._use_triton
    if wanted:
        trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = before


class Trl:
    """A trainer of TRL with its batches. The interface is that of `ours.Ours`."""

    def __init__(self, variant: str, work: Work, known: Tensor | None, device: str) -> None:
        datasets.disable_progress_bars()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore")
        self.name, self.work, self.device = variant, work, device
        self.patched = variant in ("scored only", "DPOTrainer") and device == "cpu"
        self.folder = tempfile.TemporaryDirectory()
        with _scored_only(self.patched):
            self.trainer = _trainer(variant, work, self.folder.name, device)
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        self.optimizer = optimizer_of(self.trainer.model)
        self.batches = self._batches(known)
        self.tokens = sum(_size(batch) for batch in self.batches)

    @property
    def steps(self) -> int:
        return len(self.batches)

    def _batches(self, known: Tensor | None) -> list[dict[str, Any]]:
        trainer, rows = self.trainer, self.work.steps[0]
        if self.work.kind == "grpo":
            return [_grpo_inputs(rows, self.work.advantages, known, self.device)]
        data, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
        every = [data[number] for number in range(len(data))]
        batches = [dict(trainer.data_collator(every[at : at + size])) for at in range(0, len(every), size)]
        batches = [{key: _moved(value, self.device) for key, value in batch.items()} for batch in batches]
        if self.name == "DPOTrainer":
            zeros = torch.zeros(len(rows) // 2, device=self.device)
            batches[0] |= {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros}
        return batches

    def rows(self, step: int) -> list[TokenRow]:
        """The rows of TRL's batch, in the order of `Work`."""
        if self.work.kind == "grpo":
            return self.work.steps[0]
        return _rows_of(self.batches[step])

    def backward(self, step: int) -> float:
        """Loss of a step, with its gradients left in the model."""
        self.optimizer.zero_grad(set_to_none=True)
        with _scored_only(self.patched):
            loss = self.trainer.compute_loss(self.trainer.model, dict(self.batches[step]))
            loss.backward()
        return float(loss.detach())

    def update(self) -> None:
        self.optimizer.step()


def _moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _size(batch: dict[str, Any]) -> int:
    keys = ("input_ids", "chosen_input_ids", "rejected_input_ids", "prompt_ids", "completion_ids")
    if "chosen_input_ids" in batch:  # CPO pads both halves to the longer one
        both = [batch["chosen_input_ids"], batch["rejected_input_ids"]]
        return 2 * len(both[0]) * max(ids.shape[1] for ids in both)
    return sum(batch[key].numel() for key in keys if key in batch)


def _rows_of(batch: dict[str, Any]) -> list[TokenRow]:
    if "chosen_input_ids" in batch:
        return [
            row
            for kind in ("chosen", "rejected")
            for row in _rows(*(batch[f"{kind}_{key}"] for key in ("input_ids", "attention_mask", "labels")))
        ]
    if "completion_mask" in batch:
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return _rows(batch["input_ids"], batch["attention_mask"], labels)
    if "attention_mask" in batch:
        return _rows(batch["input_ids"], batch["attention_mask"], batch["labels"])
    edges = batch["cu_seq_lens_q"].tolist()
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    return [
        row for part in parts for row in _rows(ids[None, part], torch.ones_like(ids[None, part]), labels[None, part])
    ]


def _rows(ids_BT: Tensor, real_BT: Tensor, labels_BT: Tensor) -> list[TokenRow]:
    real_BT, answer_BT = real_BT.bool(), labels_BT != -100
    return [
        TokenRow(ids[real & ~answer].tolist(), ids[answer].tolist())
        for ids, real, answer in zip(ids_BT, real_BT, answer_BT, strict=True)
    ]


def _grpo_inputs(rows: list[TokenRow], advantages: list[float], old: Tensor | None, device: str) -> dict[str, Any]:
    """What TRL's generation would hand to its loss. Prompts are of one length here, so there is no left padding."""
    longest = max(len(row.answer) for row in rows)
    answers = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(answers)
    for number, row in enumerate(rows):
        answers[number, : len(row.answer)] = torch.tensor(row.answer)
        mask[number, : len(row.answer)] = 1
    prompts = torch.tensor([list(row.prompt) for row in rows])
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": answers,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
    }
    return {key: _moved(value, device) for key, value in inputs.items()}
