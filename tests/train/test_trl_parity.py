"""Losses and gradients against the trainers of TRL 1.16, on the same sequences of a small random Qwen2 in float32.

TRL tokenises, pads and runs the model its own way; ours start from the token ids of TRL's batch. Gradients are those of
every parameter. No network and no file outside the temporary folder.
"""

import socket
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.train.plain import PAD, VOCAB, grpo_loss, loss, small_policy
from ttpa.policy.forward import Forward, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow
from ttpa.train.losses import DPO, IPO, ORPO, Hinge, PairLogps, PreferenceLoss, RobustDPO, SimPO, weighted_nll
from ttpa.train.policy_gradient import decoupled_advantages, group_advantages

PAIRS, TOLERANCE = 4, 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
        yield


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, VOCAB))]
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_policy(2).model.save_pretrained(folder)
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
    sides = (("chosen", 20), ("rejected", 40))
    return Dataset.from_list(
        [{"prompt": words(i, 3, 9) + " ", **{side: words(at + i, 1, 8) for side, at in sides}} for i in range(PAIRS)]
    )


def arguments(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": PAIRS, **fields,
    }  # fmt: skip


def batch_of(trainer: Any) -> dict[str, Tensor]:
    trainer.model.train()
    return dict(next(iter(trainer.get_train_dataloader())))


def rows_of(ids_BT: Tensor, real_BT: Tensor, answer_BT: Tensor) -> list[TokenRow]:
    both = zip(ids_BT, real_BT.bool(), answer_BT.bool(), strict=True)
    return [TokenRow(ids[real & ~answer].tolist(), ids[answer].tolist()) for ids, real, answer in both]


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(model: PreTrainedModel, theirs: Tensor, ours: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)
    expected, found = gradients(model, theirs), gradients(model, ours)
    assert set(found) == set(expected) == {name for name, _ in model.named_parameters()}
    assert max(float(grad.abs().max()) for grad in expected.values()) > 1e-2
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def assert_same_metrics(theirs: dict[str, Any], ours: dict[str, Tensor], names: Sequence[str]) -> None:
    for name in names:
        value = theirs[name][-1] if isinstance(theirs[name], list) else theirs[name]
        assert float(ours[name]) == pytest.approx(value, abs=TOLERANCE), name


@pytest.mark.parametrize(("window", "whole"), [(None, False), (50, False), (50, True)])
def test_sft(window: int | None, whole: bool, checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    """`window`: TRL divides by the tokens of the accumulation window where it is told them. `whole`: prompts too."""
    model = loaded(checkpoint)
    data = text_pairs().rename_column("chosen", "completion").remove_columns("rejected")
    args = SFTConfig(**arguments(tmp_path, completion_only_loss=not whole))
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    batch = batch_of(trainer)
    theirs = trainer.compute_loss(model, dict(batch), num_items_in_batch=window)
    rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
    assert len({len(row) for row in rows}) > 1
    found = token_logps(model, rows, pad_id=PAD)
    ours = weighted_nll(found.logps_N, torch.ones_like(found.logps_N)) / (window or len(found.logps_N))
    assert_same(model, theirs, ours)


TRAINERS: dict[str, Any] = {
    "dpo": (DPOTrainer, DPOConfig), "cpo": (CPOTrainer, CPOConfig), "orpo": (ORPOTrainer, ORPOConfig)
}  # fmt: skip
SMOOTH, WITH_SFT = {"beta": 0.3, "label_smoothing": 0.2}, {"beta": 0.3, "sft_weight": 0.5}
MARGIN = {"beta": 2.0, "gamma_beta_ratio": 0.25, "sft_weight": 0.7}


@pytest.mark.parametrize(
    ("trainer_of", "fields", "objective"),
    [
        ("dpo", {"loss_type": ["sigmoid"], "beta": 0.3}, loss(DPO, beta=0.3)),
        # DPOTrainer ignores label smoothing; CPOTrainer's "sigmoid" is cDPO with a reference of probability 1.
        ("dpo", {"loss_type": ["sigmoid"], **SMOOTH}, loss(DPO, beta=0.3)),
        ("cpo", {"loss_type": "sigmoid", **SMOOTH, "cpo_alpha": 0.0}, loss(DPO, **SMOOTH)),
        ("dpo", {"loss_type": ["robust"], **SMOOTH}, loss(RobustDPO, **SMOOTH)),
        ("dpo", {"loss_type": ["hinge"], "beta": 0.3}, loss(Hinge, beta=0.3)),
        ("dpo", {"loss_type": ["ipo"], "beta": 0.3}, loss(IPO, beta=0.3)),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5], "beta": 0.3}, loss(DPO, **WITH_SFT)),
        # TRL's `simpo_gamma` is the whole gamma, beta times our ratio.
        ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.7}, loss(SimPO, **MARGIN)),
        # TRL's NLL runs over prompt and answer, the paper's and ours over the answer: the odds ratio is what is equal.
        ("orpo", {"beta": 0.4}, loss(ORPO, beta=0.4, sft_weight=0.0)),
    ],
    ids=["dpo", "dpo smoothed", "cdpo", "robust", "hinge", "ipo", "dpo+sft", "simpo", "orpo"],
)
def test_preference_losses(
    trainer_of: str, fields: dict[str, Any], objective: PreferenceLoss, checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model, reference = loaded(checkpoint), loaded(checkpoint, noise=0.1)
    kind, config = TRAINERS[trainer_of]
    keep = {} if trainer_of == "dpo" else {"remove_unused_columns": False}  # asked for by the collators of the others
    args, given = config(**arguments(tmp_path, **fields, **keep)), [reference] if trainer_of == "dpo" else []
    trainer = kind(model, *given, args=args, train_dataset=text_pairs(), processing_class=tokenizer)
    batch = batch_of(trainer)
    if trainer_of == "dpo":
        theirs, told = trainer.compute_loss(model, dict(batch)), trainer._metrics["train"]
        rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    else:
        theirs, told = trainer.get_batch_loss_metrics(model, dict(batch))
        sides = [{name: batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels")}
                 for side in ("chosen", "rejected")]  # fmt: skip
        rows = [row for one in sides for row in rows_of(one["input_ids"], one["attention_mask"], one["labels"] != -100)]
    chosen_B, rejected_B = token_logps(model, rows, pad_id=PAD).sums().chunk(2)
    lengths = torch.tensor([len(row.answer) for row in rows]).chunk(2)
    assert (lengths[0] != lengths[1]).any()
    known: Any = (torch.zeros(PAIRS),) * 2
    if trainer_of == "dpo":
        with torch.no_grad():
            known = token_logps(reference, rows, pad_id=PAD).sums().chunk(2)
    losses_B, metrics = objective(PairLogps(chosen_B, rejected_B, *lengths, *known))
    ours = losses_B.mean() - objective.sft_weight * chosen_B.sum() / lengths[0].sum()
    names = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    if trainer_of == "orpo":
        names += ["log_odds_ratio", "log_odds_chosen"]
        whole_N = token_logps(model, rows[:PAIRS], pad_id=PAD, with_prompt=True).logps_N
        ours = ours + weighted_nll(whole_N, torch.ones_like(whole_N)) / len(whole_N)
    assert abs(float(metrics["rewards/margins"])) > 0.05
    assert_same_metrics(told, metrics, names)
    assert_same(model, theirs, ours)


ANSWERS, LONGEST, PROMPT_WIDTH, ALLOWED = 6, 7, 5, 12
ADVANTAGES_G = torch.tensor([1.2, -0.7, 0.0, -1.5, 0.4, 0.9])


def group(one_prompt: bool = False) -> dict[str, Tensor]:
    """Answers of uneven length, one with a tool's result inside, prompts padded on the left; or answers to the same
    prompt without tools, some of which begin alike.
    """
    generator = torch.Generator().manual_seed(11)
    prompt_lengths, lengths = torch.tensor([5, 5, 3, 3, 4, 2]), torch.tensor([7, 1, 4, 6, 3, 5])
    prompt_mask = (torch.arange(PROMPT_WIDTH) >= PROMPT_WIDTH - prompt_lengths[:, None]).long()
    written_GT = (torch.arange(LONGEST) < lengths[:, None]).long()
    tool_mask = torch.ones_like(written_GT)
    ids = torch.randint(3, VOCAB, (ANSWERS, PROMPT_WIDTH + LONGEST), generator=generator)
    prompt_ids, ids_GT = ids[:, :PROMPT_WIDTH], ids[:, PROMPT_WIDTH:]
    if one_prompt:
        prompt_ids, prompt_mask = prompt_ids[:1].expand(ANSWERS, -1), torch.ones_like(prompt_mask)
        ids_GT[2, :3], ids_GT[3, :4], ids_GT[5, :5] = ids_GT[0, :3], ids_GT[2, :4], ids_GT[3, :5]
    else:
        tool_mask[0, 2:4] = 0
    return {
        "prompt_ids": prompt_ids.masked_fill(prompt_mask == 0, PAD),
        "prompt_mask": prompt_mask,
        "completion_ids": ids_GT.masked_fill(written_GT == 0, PAD),
        "completion_mask": written_GT,
        "tool_mask": tool_mask,
        "advantages": ADVANTAGES_G,
    }


def rows_in(batch: dict[str, Tensor]) -> list[TokenRow]:
    ids, masks = (
        torch.cat([batch[f"{side}_{what}"] for side in ("prompt", "completion")], 1) for what in ("ids", "mask")
    )
    answers = (torch.arange(ids.shape[1]) >= PROMPT_WIDTH) & masks.bool()
    return rows_of(ids, masks, answers)


def logps_of(model: PreTrainedModel, batch: dict[str, Tensor], forward: Forward = token_logps, **more: Any) -> Tensor:
    found = forward(model, rows_in(batch), pad_id=PAD, **more)
    return torch.full((ANSWERS, LONGEST), torch.nan).masked_scatter(batch["completion_mask"].bool(), found.logps_N)


def noisy(given_GT: Tensor) -> tuple[Tensor, Tensor]:
    """Old and reference log-probs near those of the policy; whole answers too have moved."""
    generator = torch.Generator().manual_seed(5)
    moved_G1 = torch.tensor([-0.8, 0.4, 0.0, 0.5, 0.1, 0.2])[:, None]
    old_GT = given_GT.detach() + moved_G1 + 0.4 * torch.randn(given_GT.shape, generator=generator)
    return old_GT, given_GT.detach() + 0.5 * torch.randn(given_GT.shape, generator=generator)


def grpo_trainer(model: PreTrainedModel, tokenizer: Any, folder: Path, reward: Any = None, **fields: Any) -> Any:
    """One micro-batch a step, KL without importance weights (TRL 1.16 has them on by default)."""
    prompts = Dataset.from_list([{"prompt": words(i, 3, 5)} for i in range(4)])
    size = {"per_device_train_batch_size": fields.get("num_generations"), "max_completion_length": ALLOWED}
    args = GRPOConfig(**arguments(folder, use_bias_correction_kl=False, **{**size, **fields}))
    reward = reward or (lambda completions, **_: [0.0] * len(completions))
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
        ("cispo", "dapo", 0.04, True, 0.2, 1.3),
        ("sapo", "grpo", 0.04, True, 0.2, 1.3),
    ],
)
def test_grpo(
    kind: str, aggregation: str, beta: float, off_policy: bool, low: float, high: float, checkpoint: Path,
    tokenizer: Any, tmp_path: Path,
) -> None:  # fmt: skip
    """Old and reference log-probs are the policy's with noise, so that tokens are clipped on both sides.

    Of answers TRL counts clipped answers and not tokens; a KL term times the ratio it also reports as the divergence.
    """
    model, batch = loaded(checkpoint), group()
    fields = {"loss_type": kind, "beta": beta, "epsilon": low, "epsilon_high": high, "num_generations": ANSWERS}
    trainer = grpo_trainer(model, tokenizer, tmp_path, **fields)
    old_GT, ref_GT = noisy(logps_of(model, batch))
    mask_GT = batch["completion_mask"] * batch["tool_mask"]
    tokens = int(mask_GT.sum()) + 9
    batch |= {"ref_per_token_logps": ref_GT.nan_to_num(), "num_items_in_batch": torch.tensor(tokens)}
    batch |= {"old_per_token_logps": old_GT.nan_to_num()} if off_policy else {}
    counted = [f"clip_ratio/{which}_mean" for which in ("low", "high", "region")]
    counted = {"cispo": ["cispo_clip_ratio"], "sapo": []}.get(kind, counted)
    for importance, weighted in product(("token", "sequence"), (False, True) if beta else (False,)):
        # All that the trainer does with these two options is to read them here.
        trainer.importance_sampling_level, trainer.args.use_bias_correction_kl = importance, weighted
        trainer._metrics["train"].clear()
        theirs = trainer.compute_loss(model, dict(batch))
        old, ref = old_GT if off_policy else None, ref_GT if beta else None
        ours, metrics = grpo_loss(
            logps_of(model, batch), old, ref, ADVANTAGES_G, mask_GT, clip_low=low, clip_high=high, beta=beta,
            aggregation=aggregation, surrogate=kind if kind in ("cispo", "sapo") else "clip", max_length=ALLOWED,
            tokens=None if kind == "bnpo" else tokens, importance=importance, kl_weighted=weighted,
        )  # fmt: skip
        if importance == "token":
            assert all((metrics[name] > 0) == off_policy for name in counted)
            assert_same_metrics(trainer._metrics["train"], metrics, counted)
        if beta and not weighted:
            assert_same_metrics(trainer._metrics["train"], metrics, ["kl"])
        assert_same(model, theirs, ours)


@pytest.mark.parametrize("forward", [token_logps, tree_token_logps], ids=["padded", "tree"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo_of_a_group_through_the_token_tree(
    temperature: float, forward: Forward, checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """One prompt and its answers, as training computes them; the tree has fewer tokens than TRL's batch."""
    model, batch = loaded(checkpoint), group(one_prompt=True)
    fields = {"loss_type": "dapo", "beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.28, "num_generations": ANSWERS}
    trainer = grpo_trainer(model, tokenizer, tmp_path, **fields, temperature=temperature)
    (old_GT, ref_GT), mask_GT = noisy(logps_of(model, batch)), batch["completion_mask"]
    tokens = int(mask_GT.sum())
    batch |= {"ref_per_token_logps": ref_GT.nan_to_num(), "old_per_token_logps": old_GT.nan_to_num()}
    theirs = trainer.compute_loss(model, batch | {"num_items_in_batch": torch.tensor(tokens)})
    computed = forward(model, rows_in(batch), pad_id=PAD).computed
    assert (computed < ANSWERS * (PROMPT_WIDTH + LONGEST)) == (forward is tree_token_logps)
    logps_GT = logps_of(model, batch, forward, temperature=temperature)
    more: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28, "beta": 0.04, "aggregation": "dapo", "tokens": tokens}
    ours, metrics = grpo_loss(logps_GT, old_GT, ref_GT, ADVANTAGES_G, mask_GT, **more)
    assert metrics["clip_ratio/region_mean"] > 0
    assert_same_metrics(trainer._metrics["train"], metrics, ["clip_ratio/region_mean", "kl"])
    assert_same(model, theirs, ours)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(scale: str, checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    """None of a reward function is NaN here. TRL's share of groups without difference counts no group that has one
    reward left, and in "batch" looks at the batch as a whole; ours counts groups that give no gradient.
    """
    rewards = [[1.0, 0.0, 0.5, 0.25], [0.1] * 4, [-2.0, 3.0, 3.0, -1.0]]
    rewards += [[1.0, None, 0.5, 0.25], [None] * 4, [1.0, *[None] * 3]]
    flat = [value for row in rewards for value in row]
    fields = {"scale_rewards": scale, "num_generations": 4, "per_device_train_batch_size": len(flat)}
    trainer = grpo_trainer(
        loaded(checkpoint), tokenizer, tmp_path, lambda completions, **_: flat, **fields, max_completion_length=2
    )
    prompts = [{"prompt": words(i, 3, 5)} for i in range(len(rewards)) for _ in range(4)]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].view(-1, 4)
    known_BG = torch.tensor([[torch.nan if value is None else value for value in row] for row in rewards])
    ours, metrics = group_advantages(known_BG, scale=scale, eps=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    assert ours.abs().max() > 0.5
    assert_same_metrics(trainer._metrics["train"], metrics, ("reward", "reward_std"))
    assert float(metrics["frac_reward_zero_std"]) == pytest.approx(3 / 6)


def test_decoupled_advantages(checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    """GDPO: two rewards of which one is a hundred times the other; a group without a difference in one, or in both."""
    first = [[1.0, 0.0, 0.5, 0.25], [0.5] * 4, [-2.0, 3.0, 3.0, -1.0], [0.5] * 4]
    second = [[90.0, 10.0, 40.0, 10.0], [-50.0, 0.0, 0.0, 25.0], [8.0] * 4, [25.0] * 4]
    rewards, weights = torch.tensor([first, second]), [0.25, 1.5]
    trainer = grpo_trainer(
        loaded(checkpoint), tokenizer, tmp_path,
        [lambda completions, values=values, **_: values.flatten().tolist() for values in rewards],
        multi_objective_aggregation="normalize_then_sum", reward_weights=weights, num_generations=4,
        per_device_train_batch_size=16, max_completion_length=2,
    )  # fmt: skip
    prompts = [{"prompt": words(i, 3, 5)} for i in range(4) for _ in range(4)]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].view(4, 4)
    ours, metrics = decoupled_advantages(rewards.permute(1, 2, 0), torch.tensor(weights), eps=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    together, _ = group_advantages((rewards.permute(1, 2, 0) * torch.tensor(weights)).sum(-1), scale="group", eps=1e-4)
    assert ours[:3].abs().amax(1).min() > 0.2 and (ours - together).abs().max() > 0.3
    assert_same_metrics(trainer._metrics["train"], metrics, ("reward", "reward_std"))
