"""Losses and gradients against the trainers of TRL 1.16, on the same sequences of a small random Qwen2 in float32.

TRL tokenises, pads and runs the model its own way; ours start from the token ids of TRL's batch. Gradients are those of
every parameter. No network and no file outside the temporary folder.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.train.plain import grpo_loss, loss
from ttpa.policy.forward import Forward, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import DPO, IPO, ORPO, Hinge, PairLogps, PreferenceLoss, RobustDPO, SimPO, weighted_nll
from ttpa.train.policy_gradient import decoupled_advantages, group_advantages

VOCAB, PAD, EOS = 40, 0, 1
PAIRS = 4
TOLERANCE = 1e-5
KEEP_COLUMNS = {"remove_unused_columns": False}  # asked for by the collator of CPOTrainer and ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, VOCAB))]
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def loaded(checkpoint: Path, noise: float = 0.0) -> PreTrainedModel:
    """The model; with noise on its weights, a reference that differs from it."""
    model = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return model


def words(seed: int, least: int, most: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(least, most + 1, (1,), generator=generator))
    return " ".join(f"w{number}" for number in torch.randint(3, VOCAB, (count,), generator=generator).tolist())


def text_pairs() -> Dataset:
    """Prompts end in a blank: CPO and ORPO tokenise prompt and answer in one piece."""
    return Dataset.from_list(
        [
            {"prompt": words(i, 3, 9) + " ", "chosen": words(20 + i, 1, 8), "rejected": words(40 + i, 1, 8)}
            for i in range(PAIRS)
        ]
    )


def arguments(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": PAIRS,
        **fields,
    }


def batch_of(trainer: Any) -> dict[str, Tensor]:
    """TRL's own batch, with answers of different lengths in it."""
    trainer.model.train()
    return dict(next(iter(trainer.get_train_dataloader())))


def rows_of(ids_BT: Tensor, real_BT: Tensor, answer_BT: Tensor) -> list[TokenRow]:
    real_BT, answer_BT = real_BT.bool(), answer_BT.bool()
    return [
        TokenRow(ids[real & ~answer].tolist(), ids[answer].tolist())
        for ids, real, answer in zip(ids_BT, real_BT, answer_BT, strict=True)
    ]


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(model: PreTrainedModel, theirs: Tensor, ours: Tensor) -> None:
    """Loss and the gradient of every parameter; the gradient must be there to be compared."""
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)
    expected, found = gradients(model, theirs), gradients(model, ours)
    assert set(found) == set(expected) == {name for name, _ in model.named_parameters()}
    assert max(float(grad.abs().max()) for grad in expected.values()) > 1e-2
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


# --- SFT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["answers", "prompts too"])
@pytest.mark.parametrize("window", [None, 50], ids=["batch", "window"])
def test_sft(
    window: int | None, whole: bool, checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """`window`: TRL divides by the tokens of the accumulation window where it is told them."""
    model = loaded(checkpoint)
    data = text_pairs().rename_column("chosen", "completion").remove_columns("rejected")
    args = SFTConfig(**arguments(tmp_path, completion_only_loss=not whole))
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    batch = batch_of(trainer)
    theirs = trainer.compute_loss(model, dict(batch), num_items_in_batch=window)
    answer_BT = batch["labels"] != -100
    rows = rows_of(batch["input_ids"], batch["attention_mask"], answer_BT)
    assert len({len(row) for row in rows}) > 1
    found = token_logps(model, rows, pad_id=PAD)
    ours = weighted_nll(found.logps_N, torch.ones_like(found.logps_N)) / (window or len(found.logps_N))
    assert_same(model, theirs, ours)


# --- pairs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    chosen: list[TokenRow]
    rejected: list[TokenRow]

    @classmethod
    def stacked(cls, batch: dict[str, Tensor]) -> Pairs:
        """From DPOTrainer's batch: chosen rows, then rejected rows."""
        rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
        return cls(rows[:PAIRS], rows[PAIRS:])

    @classmethod
    def apart(cls, batch: dict[str, Tensor]) -> Pairs:
        """From the batch of CPOTrainer and ORPOTrainer."""
        return cls(
            *(
                rows_of(batch[f"{kind}_input_ids"], batch[f"{kind}_attention_mask"], batch[f"{kind}_labels"] != -100)
                for kind in ("chosen", "rejected")
            )
        )

    def sums(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        both_2B = token_logps(model, self.chosen + self.rejected, pad_id=PAD).sums()
        return both_2B[:PAIRS], both_2B[PAIRS:]

    def lengths(self) -> tuple[Tensor, Tensor]:
        chosen, rejected = (torch.tensor([len(row.answer) for row in rows]) for rows in (self.chosen, self.rejected))
        assert (chosen != rejected).any() and len(set(chosen.tolist())) > 1
        return chosen, rejected

    def loss(
        self, objective: PreferenceLoss, model: PreTrainedModel, reference: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the align stage minimises: mean over the pairs, and the anchor per chosen token."""
        (chosen_B, rejected_B), lengths = self.sums(model), self.lengths()
        known: Any = (None, None) if reference is None else reference
        losses_B, metrics = objective(PairLogps(chosen_B, rejected_B, *lengths, *known))
        return losses_B.mean() - objective.sft_weight * chosen_B.sum() / lengths[0].sum(), metrics


def assert_same_metrics(theirs: dict[str, Any], ours: dict[str, Tensor], names: Sequence[str]) -> None:
    for name in names:
        value = theirs[name][-1] if isinstance(theirs[name], list) else theirs[name]
        assert float(ours[name]) == pytest.approx(value, abs=TOLERANCE), name


REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@pytest.mark.parametrize(
    ("fields", "objective"),
    [
        ({"loss_type": ["sigmoid"], "beta": 0.3}, loss(DPO, beta=0.3)),
        (
            {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
            loss(RobustDPO, beta=0.3, label_smoothing=0.2),
        ),
        ({"loss_type": ["hinge"], "beta": 0.3}, loss(Hinge, beta=0.3)),
        ({"loss_type": ["ipo"], "beta": 0.3}, loss(IPO, beta=0.3)),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3},
            loss(DPO, beta=0.3, sft_weight=0.5),
        ),
    ],
    ids=["sigmoid", "robust", "hinge", "ipo", "sigmoid+sft"],
)
def test_losses_against_a_reference(
    fields: dict[str, Any],
    objective: PreferenceLoss,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model, reference = loaded(checkpoint), loaded(checkpoint, noise=0.1)
    trainer = DPOTrainer(
        model,
        reference,
        args=DPOConfig(**arguments(tmp_path, **fields)),
        train_dataset=text_pairs(),
        processing_class=tokenizer,
    )
    batch = batch_of(trainer)
    theirs = trainer.compute_loss(model, dict(batch))
    pairs = Pairs.stacked(batch)
    with torch.no_grad():
        known = pairs.sums(reference)
    ours, metrics = pairs.loss(objective, model, known)
    assert abs(float(metrics["rewards/margins"])) > 0.05 and 0 < float(metrics["rewards/accuracies"]) < 1
    assert_same_metrics(trainer._metrics["train"], metrics, REWARDS)
    assert_same(model, theirs, ours)


def test_dpo_trainer_ignores_label_smoothing_and_ours_does_not(
    checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """cDPO is CPOTrainer's "sigmoid" with a reference that gives every answer probability 1."""
    model, reference = loaded(checkpoint), loaded(checkpoint, noise=0.1)
    found = {}
    for smoothing in (0.0, 0.2):
        trainer = DPOTrainer(
            model,
            reference,
            args=DPOConfig(**arguments(tmp_path, beta=0.3, label_smoothing=smoothing)),
            train_dataset=text_pairs(),
            processing_class=tokenizer,
        )
        found[smoothing] = trainer.compute_loss(model, batch_of(trainer)).item()
    assert found[0.0] == found[0.2]

    args = CPOConfig(
        **arguments(tmp_path, loss_type="sigmoid", beta=0.1, label_smoothing=0.2, cpo_alpha=0.0, **KEEP_COLUMNS)
    )
    trainer = CPOTrainer(model, args=args, train_dataset=text_pairs(), processing_class=tokenizer)
    batch = batch_of(trainer)
    theirs, _ = trainer.get_batch_loss_metrics(model, dict(batch))
    ours, _ = Pairs.apart(batch).loss(loss(DPO, beta=0.1, label_smoothing=0.2), model, (torch.zeros(PAIRS),) * 2)
    assert_same(model, theirs, ours)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_simpo(anchor: float, checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """TRL's `simpo_gamma` is the whole gamma, beta times our ratio; its defaults are beta 0.1 and an anchor of 1."""
    model = loaded(checkpoint)
    args = CPOConfig(
        **arguments(tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=anchor, **KEEP_COLUMNS)
    )
    trainer = CPOTrainer(model, args=args, train_dataset=text_pairs(), processing_class=tokenizer)
    batch = batch_of(trainer)
    theirs, metrics = trainer.get_batch_loss_metrics(model, dict(batch))
    objective = loss(SimPO, beta=2.0, gamma_beta_ratio=0.25, sft_weight=anchor)
    ours, our_metrics = Pairs.apart(batch).loss(objective, model)
    assert_same_metrics(metrics, our_metrics, REWARDS)
    assert_same(model, theirs, ours)


def test_orpo(checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """TRL's NLL runs over prompt and answer, the paper's and ours over the answer: the odds ratio is what is equal."""
    model = loaded(checkpoint)
    args = ORPOConfig(**arguments(tmp_path, beta=0.4, **KEEP_COLUMNS))
    trainer = ORPOTrainer(model, args=args, train_dataset=text_pairs(), processing_class=tokenizer)
    batch = batch_of(trainer)
    theirs, metrics = trainer.get_batch_loss_metrics(model, dict(batch))
    pairs = Pairs.apart(batch)
    odds_ratio, our_metrics = pairs.loss(loss(ORPO, beta=0.4, sft_weight=0.0), model)
    whole_N = token_logps(model, pairs.chosen, pad_id=PAD, with_prompt=True).logps_N
    nll = weighted_nll(whole_N, torch.ones_like(whole_N)) / len(whole_N)
    assert_same_metrics(metrics, our_metrics, (*REWARDS, "log_odds_ratio", "log_odds_chosen"))
    assert nll.item() == pytest.approx(metrics["nll_loss"], abs=TOLERANCE)
    assert_same(model, theirs, odds_ratio + nll)


def test_orpo_has_a_gradient_where_trl_has_none() -> None:
    """A mean log-prob of -1e-8: exp rounds to 1, and the branch that TRL's `log1mexp` throws away gives NaN."""
    points = [torch.tensor([-1e-8], requires_grad=True) for _ in range(2)]
    stub: Any = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    one, other = torch.tensor([1]), torch.tensor([-2.0])
    ORPOTrainer.odds_ratio_loss(stub, points[0], other)[0].sum().backward()
    loss(ORPO, beta=1.0)(PairLogps(points[1], other, one, one))[0].sum().backward()
    assert points[0].grad is not None and points[0].grad.isnan().all()
    assert points[1].grad is not None and points[1].grad.isfinite().all()


# --- GRPO --------------------------------------------------------------------------------------------------------

ANSWERS, LONGEST, PROMPT_WIDTH, ALLOWED = 6, 7, 5, 12


@dataclass(frozen=True)
class Group:
    """Answers of uneven length with a tool's result inside one, prompts padded on the left as TRL does."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    ids_GT: Tensor
    written_GT: Tensor
    own_GT: Tensor
    advantages_G: Tensor

    @classmethod
    def drawn(cls) -> Group:
        generator = torch.Generator().manual_seed(11)
        prompt_lengths = torch.tensor([5, 5, 3, 3, 4, 2])
        lengths = torch.tensor([7, 1, 4, 6, 3, 5])
        prompt_mask = (torch.arange(PROMPT_WIDTH) >= PROMPT_WIDTH - prompt_lengths[:, None]).long()
        written_GT = (torch.arange(LONGEST) < lengths[:, None]).long()
        own_GT = torch.ones_like(written_GT)
        own_GT[0, 2:4] = 0
        ids = torch.randint(3, VOCAB, (ANSWERS, PROMPT_WIDTH + LONGEST), generator=generator)
        return cls(
            ids[:, :PROMPT_WIDTH].masked_fill(prompt_mask == 0, PAD),
            prompt_mask,
            ids[:, PROMPT_WIDTH:].masked_fill(written_GT == 0, PAD),
            written_GT,
            own_GT,
            torch.tensor([1.2, -0.7, 0.0, -1.5, 0.4, 0.9]),
        )

    @classmethod
    def of_one_prompt(cls) -> Group:
        """The same prompt for all, without padding or tools; some answers begin alike, one is another's beginning."""
        drawn = cls.drawn()
        ids_GT = drawn.ids_GT.clone()
        ids_GT[2, :3], ids_GT[3, :4], ids_GT[5, :5] = ids_GT[0, :3], ids_GT[2, :4], ids_GT[3, :5]
        return replace(
            drawn,
            prompt_ids=drawn.prompt_ids[:1].expand(ANSWERS, -1),
            prompt_mask=torch.ones_like(drawn.prompt_mask),
            ids_GT=ids_GT,
            own_GT=torch.ones_like(drawn.own_GT),
        )

    def rows(self) -> list[TokenRow]:
        prompts = [ids[real].tolist() for ids, real in zip(self.prompt_ids, self.prompt_mask.bool(), strict=True)]
        answers = [ids[real].tolist() for ids, real in zip(self.ids_GT, self.written_GT.bool(), strict=True)]
        return list(map(TokenRow, prompts, answers))

    def logps(self, model: PreTrainedModel) -> Tensor:
        """Log-probs of the answers' tokens, NaN in the padding."""
        found = token_logps(model, self.rows(), pad_id=PAD)
        return torch.full((ANSWERS, LONGEST), torch.nan).masked_scatter(self.written_GT.bool(), found.logps_N)

    def inputs(self, old_GT: Tensor | None, ref_GT: Tensor, tokens_of_the_step: int) -> dict[str, Tensor]:
        """What TRL's loss is given."""
        old = {} if old_GT is None else {"old_per_token_logps": old_GT.nan_to_num()}
        return {
            "prompt_ids": self.prompt_ids,
            "prompt_mask": self.prompt_mask,
            "completion_ids": self.ids_GT,
            "completion_mask": self.written_GT,
            "tool_mask": self.own_GT,
            "advantages": self.advantages_G,
            "ref_per_token_logps": ref_GT.nan_to_num(),
            "num_items_in_batch": torch.tensor(tokens_of_the_step),
            **old,
        }


def grpo_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, reward: Any, **fields: Any
) -> GRPOTrainer:
    """In training, one micro-batch a step, KL without importance weights (TRL 1.16 has them on by default)."""
    prompts = Dataset.from_list([{"prompt": words(i, 3, 5)} for i in range(4)])
    args = GRPOConfig(**arguments(folder, use_bias_correction_kl=False, **fields))
    trainer = GRPOTrainer(model, reward, args=args, train_dataset=prompts, processing_class=tokenizer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize(
    ("kind", "aggregation", "beta", "off_policy", "low", "high"),
    [
        ("grpo", "grpo", 0.0, False, 0.2, 0.2),
        ("grpo", "grpo", 0.04, True, 0.2, 0.2),
        ("bnpo", "bnpo", 0.04, True, 0.1, 0.35),
        ("dr_grpo", "dr_grpo", 0.04, True, 0.1, 0.35),
        ("dapo", "dapo", 0.0, True, 0.1, 0.35),
        ("dapo", "dapo", 0.04, False, 0.2, 0.2),
        ("cispo", "dapo", 0.0, True, 0.2, 1.3),
        ("cispo", "dapo", 0.04, False, 0.2, 1.3),
        ("sapo", "grpo", 0.04, True, 0.2, 1.3),
    ],
)
def test_grpo(
    kind: str,
    aggregation: str,
    beta: float,
    off_policy: bool,
    low: float,
    high: float,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """Old and reference log-probs are the policy's with noise, so that tokens are clipped on both sides.

    Of each case: ratios of tokens and of answers, and with a KL term its product with the ratio, which TRL then also
    reports as the divergence. Of answers TRL counts clipped answers and not tokens.
    """
    model, group = loaded(checkpoint), Group.drawn()
    trainer = grpo_trainer(
        model,
        tokenizer,
        tmp_path,
        lambda completions, **_: [0.0] * len(completions),
        loss_type=kind,
        beta=beta,
        epsilon=low,
        epsilon_high=high,
        num_generations=ANSWERS,
        per_device_train_batch_size=ANSWERS,
        max_completion_length=ALLOWED,
    )
    old_GT, ref_GT = noisy(group.logps(model))
    own_GT = group.written_GT * group.own_GT
    step_tokens = int(own_GT.sum()) + 9
    inputs = group.inputs(old_GT if off_policy else None, ref_GT, step_tokens)
    counted = [f"clip_ratio/{which}_mean" for which in ("low", "high", "region")]
    counted = {"cispo": ["cispo_clip_ratio"], "sapo": []}.get(kind, counted)
    for importance, weighted in product(("token", "sequence"), (False, True) if beta else (False,)):
        # All that the trainer does with these two options is to read them here.
        trainer.importance_sampling_level, trainer.args.use_bias_correction_kl = importance, weighted
        trainer._metrics["train"].clear()
        theirs = trainer.compute_loss(model, dict(inputs))
        ours, metrics = grpo_loss(
            group.logps(model),
            old_GT if off_policy else None,
            ref_GT if beta else None,
            group.advantages_G,
            own_GT,
            clip_low=low,
            clip_high=high,
            beta=beta,
            aggregation=aggregation,
            surrogate=kind if kind in ("cispo", "sapo") else "clip",
            max_length=ALLOWED,
            tokens=None if kind == "bnpo" else step_tokens,
            importance=importance,
            kl_weighted=weighted,
        )
        assert {name for name in metrics if "clip" in name} >= set(counted)
        if importance == "token":
            assert all((metrics[name] > 0) == off_policy for name in counted)
            assert_same_metrics(trainer._metrics["train"], metrics, counted)
        if beta and not weighted:
            assert_same_metrics(trainer._metrics["train"], metrics, ["kl"])
        assert_same(model, theirs, ours)


def noisy(given_GT: Tensor) -> tuple[Tensor, Tensor]:
    """Old and reference log-probs near those of the policy; whole answers too have moved, some up and some down."""
    generator = torch.Generator().manual_seed(5)
    moved_G1 = torch.tensor([-0.8, 0.4, 0.0, 0.5, 0.1, 0.2])[:, None]
    old_GT = given_GT.detach() + moved_G1 + 0.4 * torch.randn(given_GT.shape, generator=generator)
    return old_GT, given_GT.detach() + 0.5 * torch.randn(given_GT.shape, generator=generator)


@pytest.mark.parametrize("forward", [token_logps, tree_token_logps], ids=["padded", "tree"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo_of_a_group_through_the_token_tree(
    temperature: float, forward: Forward, checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """One prompt and its answers, as training computes them; the tree has fewer tokens than TRL's batch."""
    model, group = loaded(checkpoint), Group.of_one_prompt()
    trainer = grpo_trainer(
        model,
        tokenizer,
        tmp_path,
        lambda completions, **_: [0.0] * len(completions),
        loss_type="dapo",
        beta=0.04,
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=temperature,
        num_generations=ANSWERS,
        per_device_train_batch_size=ANSWERS,
        max_completion_length=ALLOWED,
    )
    old_GT, ref_GT = noisy(group.logps(model))
    tokens = int(group.written_GT.sum())
    theirs = trainer.compute_loss(model, group.inputs(old_GT, ref_GT, tokens))
    found = forward(model, group.rows(), pad_id=PAD, temperature=temperature)
    padded = ANSWERS * (PROMPT_WIDTH + LONGEST)
    assert (found.computed == padded) == (forward is token_logps) and found.computed <= padded
    logps_GT, mask_GT = found.padded()
    assert torch.equal(mask_GT, group.written_GT.bool())
    ours, metrics = grpo_loss(
        logps_GT,
        old_GT,
        ref_GT,
        group.advantages_G,
        mask_GT,
        clip_low=0.2,
        clip_high=0.28,
        beta=0.04,
        aggregation="dapo",
        tokens=tokens,
    )
    assert metrics["clip_ratio/region_mean"] > 0
    assert_same_metrics(trainer._metrics["train"], metrics, ["clip_ratio/region_mean", "kl"])
    assert_same(model, theirs, ours)


REWARDS_OF_GROUPS = [
    [[1.0, 0.0, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1], [-2.0, 3.0, 3.0, -1.0]],
    [[1.0, None, 0.5, 0.25], [None, None, None, None], [1.0, 1.0, 0.0, 1.0]],
    [[1.0, None, None, None], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, None, 0.0]],
]


@pytest.mark.parametrize("rewards", REWARDS_OF_GROUPS, ids=["all", "some missing", "one left"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(
    scale: str,
    rewards: list[list[float | None]],
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """A reward function that returns None for an answer gives it no reward, which is NaN here.

    TRL's share of groups without difference counts no group that has one reward left, and in "batch" looks at the
    batch as a whole; ours counts groups that give no gradient.
    """
    groups, size = len(rewards), len(rewards[0])
    flat = [value for row in rewards for value in row]
    trainer = grpo_trainer(
        loaded(checkpoint),
        tokenizer,
        tmp_path,
        lambda completions, **_: flat,
        scale_rewards=scale,
        num_generations=size,
        per_device_train_batch_size=groups * size,
        max_completion_length=2,
    )
    prompts = [{"prompt": words(i, 3, 5)} for i in range(groups) for _ in range(size)]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].view(groups, size)
    known_BG = torch.tensor([[torch.nan if value is None else value for value in row] for row in rewards])
    ours, metrics = group_advantages(known_BG, scale=scale, eps=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    assert ours.abs().max() > 0.5
    assert_same_metrics(trainer._metrics["train"], metrics, ("reward", "reward_std"))
    without = [len({value for value in row if value is not None}) < 2 for row in rewards]
    assert float(metrics["frac_reward_zero_std"]) == pytest.approx(sum(without) / groups)
    if scale != "batch" and rewards is REWARDS_OF_GROUPS[0]:
        assert_same_metrics(trainer._metrics["train"], metrics, ("frac_reward_zero_std",))


def test_decoupled_advantages(checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """GDPO: two rewards of which one is a hundred times the other; a group without a difference in one, or in both.

    Of groups without a difference TRL says whether the whole batch has none; ours counts sums of raw rewards.
    """
    rewards = torch.tensor(
        [
            [[1.0, 0.0, 0.5, 0.25], [0.5, 0.5, 0.5, 0.5], [-2.0, 3.0, 3.0, -1.0], [0.5, 0.5, 0.5, 0.5]],
            [[90.0, 10.0, 40.0, 10.0], [-50.0, 0.0, 0.0, 25.0], [8.0, 8.0, 8.0, 8.0], [25.0, 25.0, 25.0, 25.0]],
        ]
    )
    weights = [0.25, 1.5]
    trainer = grpo_trainer(
        loaded(checkpoint),
        tokenizer,
        tmp_path,
        [lambda completions, values=values, **_: values.flatten().tolist() for values in rewards],
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=weights,
        num_generations=4,
        per_device_train_batch_size=16,
        max_completion_length=2,
    )
    prompts = [{"prompt": words(i, 3, 5)} for i in range(4) for _ in range(4)]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].view(4, 4)
    ours, metrics = decoupled_advantages(rewards.permute(1, 2, 0), torch.tensor(weights), eps=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    assert ours[:3].abs().amax(1).min() > 0.2
    together, _ = group_advantages((rewards.permute(1, 2, 0) * torch.tensor(weights)).sum(-1), scale="group", eps=1e-4)
    assert (ours - together).abs().max() > 0.3
    assert_same_metrics(trainer._metrics["train"], metrics, ("reward", "reward_std"))
    assert float(metrics["frac_reward_zero_std"]) == 0.25
