"""Losses: worked values, formulas written again in plain Python, gradients by differences, settings refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.objectives import DPO, RFT, Gold, SimPO
from ttpa.objectives.functional import dpo_loss, dpo_losses, simpo_loss, simpo_losses, weighted_nll

PAIRS = 9


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))) in double precision, without torch."""
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def drawn(seed: int, low: float = -30.0) -> list[list[float]]:
    """Four lists of summed log-probs between `low` and 0: chosen, rejected and the same under a reference."""
    rows = torch.rand(4, PAIRS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * low
    return [[float(value) for value in row] for row in rows]


def tensors(rows: list[list[float]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(row, dtype=dtype) for row in rows]


# --- DPO ---------------------------------------------------------------------------------------------------------


def test_dpo_is_log_2_where_the_policy_is_the_reference() -> None:
    """Both log-ratios are 0, so the margin is 0 and -log sigma(0) = log 2 = 0.6931, at any beta and smoothing."""
    chosen, rejected, _, _ = tensors(drawn(0))
    for beta, smoothing in ((0.1, 0.0), (5.0, 0.0), (0.1, 0.3)):
        losses_B, metrics = dpo_losses(chosen, rejected, chosen, rejected, beta=beta, label_smoothing=smoothing)
        assert losses_B.tolist() == pytest.approx([math.log(2)] * PAIRS)
        assert {name: float(value) for name, value in metrics.items()} == {
            "rewards/chosen": 0.0,
            "rewards/rejected": 0.0,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.0,
        }


def test_dpo_worked_by_hand() -> None:
    """Policy -3 / -9, reference -5 / -7, beta 0.5.

    Log-ratios: -3 + 5 = 2 and -9 + 7 = -2; rewards 0.5 * 2 = 1 and 0.5 * -2 = -1; margin 2.
    Loss: -log sigma(2) = log(1 + exp(-2)) = log 1.135335 = 0.126928.
    Smoothing 0.1: 0.9 * 0.126928 + 0.1 * (-log sigma(-2)) = 0.114235 + 0.1 * 2.126928 = 0.326928.
    """
    logps = tensors([[-3.0], [-9.0], [-5.0], [-7.0]])
    losses_B, metrics = dpo_losses(*logps, beta=0.5)
    assert losses_B.tolist() == pytest.approx([0.126928], abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -1.0,
        "rewards/margins": 2.0,
        "rewards/accuracies": 1.0,
    }
    smoothed_B, _ = dpo_losses(*logps, beta=0.5, label_smoothing=0.1)
    assert smoothed_B.tolist() == pytest.approx([0.326928], abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_dpo_is_the_papers_equation(seed: int, smoothing: float) -> None:
    rows, beta = drawn(seed), 0.3
    margins = [beta * ((w - rw) - (lose - rl)) for w, lose, rw, rl in zip(*rows, strict=True)]
    expected = [-(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m) for m in margins]
    losses_B, metrics = dpo_losses(*tensors(rows), beta=beta, label_smoothing=smoothing)
    assert losses_B.tolist() == pytest.approx(expected, rel=1e-5)
    mean, _ = dpo_loss(*tensors(rows), beta=beta, label_smoothing=smoothing)
    assert float(mean) == pytest.approx(sum(expected) / PAIRS, rel=1e-5)
    assert float(metrics["rewards/margins"]) == pytest.approx(sum(margins) / PAIRS, rel=1e-4, abs=1e-5)
    assert float(metrics["rewards/accuracies"]) == pytest.approx(sum(m > 0 for m in margins) / PAIRS)
    assert float(metrics["rewards/chosen"]) == pytest.approx(
        sum(beta * (w - rw) for w, _, rw, _ in zip(*rows, strict=True)) / PAIRS, rel=1e-4, abs=1e-5
    )


def test_dpo_stays_finite_and_linear_far_from_the_reference() -> None:
    """Margin -2000: the loss is 2000 and its slope in the chosen log-prob is -beta, where exp would overflow."""
    chosen = torch.tensor([-2000.0], requires_grad=True)
    losses_B, _ = dpo_losses(chosen, torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([0.0]), beta=1.0)
    losses_B.sum().backward()
    assert losses_B.item() == pytest.approx(2000)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-1)


# --- SimPO -------------------------------------------------------------------------------------------------------


def test_simpo_worked_by_hand() -> None:
    """Mean log-probs -0.2 and -0.4, beta 2.5, gamma 0.5 (ratio 0.2).

    Sums: 5 tokens * -0.2 = -1 and 10 * -0.4 = -4. Rewards 2.5 * -0.2 = -0.5 and 2.5 * -0.4 = -1; the argument is
    -0.5 + 1 - 0.5 = 0, the loss log 2. Without the target margin the argument is 0.5: log(1 + exp(-0.5)) = 0.474077.
    """
    inputs = torch.tensor([-1.0]), torch.tensor([-4.0]), torch.tensor([5]), torch.tensor([10])
    losses_B, metrics = simpo_losses(*inputs, beta=2.5, gamma_beta_ratio=0.2)
    assert losses_B.tolist() == pytest.approx([math.log(2)], abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"rewards/chosen": -0.5, "rewards/rejected": -1.0, "rewards/margins": 0.5, "rewards/accuracies": 1.0}
    )
    assert simpo_losses(*inputs, beta=2.5, gamma_beta_ratio=0.0)[0].tolist() == pytest.approx([0.474077], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_simpo_is_the_papers_equation(seed: int) -> None:
    chosen, rejected, *_ = drawn(seed)
    rng = random.Random(seed)
    lengths = [[rng.randrange(1, 40) for _ in range(PAIRS)] for _ in range(2)]
    beta, ratio = 2.5, 0.4
    rows = zip(chosen, rejected, *lengths, strict=True)
    args = [beta / m * w - beta / n * lose - beta * ratio for w, lose, m, n in rows]
    losses_B, metrics = simpo_losses(
        *tensors([chosen, rejected]), *map(torch.tensor, lengths), beta=beta, gamma_beta_ratio=ratio
    )
    assert losses_B.tolist() == pytest.approx([-log_sigmoid(arg) for arg in args], rel=1e-5)
    assert float(metrics["rewards/accuracies"]) == pytest.approx(sum(arg + beta * ratio > 0 for arg in args) / PAIRS)
    assert float(metrics["rewards/margins"]) == pytest.approx(sum(args) / PAIRS + beta * ratio, rel=1e-4)


def test_simpo_sees_mean_log_probs_only() -> None:
    """Three times the tokens at the same mean change nothing; three times the sum at the same length does."""
    chosen, rejected, *_ = tensors(drawn(3))
    lengths = torch.arange(1, PAIRS + 1)
    settings = {"beta": 2.0, "gamma_beta_ratio": 0.25}
    plain_B = simpo_losses(chosen, rejected, lengths, lengths + 2, **settings)[0]
    longer_B = simpo_losses(3 * chosen, rejected, 3 * lengths, lengths + 2, **settings)[0]
    assert longer_B.tolist() == pytest.approx(plain_B.tolist(), rel=1e-5)
    other_B = simpo_losses(3 * chosen, rejected, lengths, lengths + 2, **settings)[0]
    assert other_B.tolist() != pytest.approx(plain_B.tolist())


def test_simpo_anchor_is_the_token_mean_nll_of_the_chosen_answers() -> None:
    """Chosen sums -1 (5 tokens) and -6 (3 tokens): NLL (1 + 6) / 8 = 0.875 a token, not the mean of 0.2 and 2."""
    inputs = torch.tensor([-1.0, -6.0]), torch.tensor([-4.0, -2.0]), torch.tensor([5, 3]), torch.tensor([10, 4])
    plain, metrics = simpo_loss(*inputs, beta=2.0, gamma_beta_ratio=0.5)
    anchored, anchored_metrics = simpo_loss(*inputs, beta=2.0, gamma_beta_ratio=0.5, sft_weight=0.4)
    losses_B, _ = simpo_losses(*inputs, beta=2.0, gamma_beta_ratio=0.5)
    assert float(plain) == pytest.approx(sum(losses_B.tolist()) / 2)
    assert float(anchored) - float(plain) == pytest.approx(0.4 * 0.875)
    assert float(metrics["nll_loss"]) == float(anchored_metrics["nll_loss"]) == pytest.approx(0.875)
    assert set(metrics) == {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "nll_loss"}


def test_weighted_nll_is_a_weighted_sum() -> None:
    """-(1 * -2 + 0.5 * -4 + 0 * -8) = 4; a sum, so twice the tokens give twice the loss."""
    logps, weights = torch.tensor([-2.0, -4.0, -8.0]), torch.tensor([1.0, 0.5, 0.0])
    assert float(weighted_nll(logps, weights)) == 4.0
    assert float(weighted_nll(logps.repeat(2), weights.repeat(2))) == 8.0


# --- all of them -------------------------------------------------------------------------------------------------


def test_bfloat16_inputs_give_float32_losses() -> None:
    """-100 and -101 differ by one bfloat16 step at that size; 0.1 times the difference survives only in float32."""
    logps = tensors([[-100.0], [-101.0], [-100.0], [-100.0]], torch.bfloat16)
    lengths = torch.tensor([3])
    losses_B, metrics = dpo_losses(*logps, beta=0.1)
    assert losses_B.dtype == torch.float32 and all(value.dtype == torch.float32 for value in metrics.values())
    assert losses_B.item() == pytest.approx(-log_sigmoid(0.1), abs=1e-6)
    simpo_B, _ = simpo_losses(logps[0], logps[1], lengths, lengths, beta=0.3, gamma_beta_ratio=0.0)
    assert simpo_B.dtype == torch.float32 and simpo_B.item() == pytest.approx(-log_sigmoid(0.1), abs=1e-6)
    nll = weighted_nll(logps[0].repeat(3), torch.ones(3))
    assert nll.dtype == torch.float32 and nll.item() == 300.0


def dpo_at(values: Tensor) -> Tensor:
    reference = torch.tensor([-2.0, -3.0])
    return dpo_loss(values[:2], values[2:], reference, reference - 1, beta=0.7, label_smoothing=0.1)[0]


def simpo_at(values: Tensor) -> Tensor:
    lengths = torch.tensor([2, 5]), torch.tensor([3, 4])
    return simpo_loss(values[:2], values[2:], *lengths, beta=2.0, gamma_beta_ratio=0.3, sft_weight=0.2)[0]


def nll_at(values: Tensor) -> Tensor:
    return weighted_nll(values, torch.tensor([1.0, 0.3, 0.0, 2.0]))


@pytest.mark.parametrize("loss", [dpo_at, simpo_at, nll_at])
def test_gradient_agrees_with_central_differences(loss: Any) -> None:
    point = torch.tensor([-1.5, -4.0, -2.5, -3.0], requires_grad=True)
    loss(point).backward()
    slopes = []
    for axis in range(4):
        shift = 0.02 * torch.eye(4)[axis]
        with torch.no_grad():
            slopes.append(float((loss(point + shift) - loss(point - shift)) / 0.04))
    assert point.grad is not None
    assert point.grad.tolist() == pytest.approx(slopes, abs=2e-4)
    assert max(map(abs, slopes)) > 0.05


def test_metrics_carry_no_gradient() -> None:
    values = torch.tensor([-1.0], requires_grad=True)
    one = torch.tensor([1])
    _, dpo = dpo_losses(values, values - 1, values.detach(), values.detach(), beta=1.0)
    _, simpo = simpo_loss(values, values - 1, one, one, beta=1.0, gamma_beta_ratio=0.0, sft_weight=1.0)
    assert not any(value.requires_grad for value in [*dpo.values(), *simpo.values()])


def test_a_tie_is_not_counted_as_right() -> None:
    """Rewards 1 > 0, 0 = 0, 0 < 1: one of three pairs is in order."""
    logps = tensors([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3])
    assert float(dpo_losses(*logps, beta=1.0)[1]["rewards/accuracies"]) == pytest.approx(1 / 3)


# --- settings ----------------------------------------------------------------------------------------------------


def test_settings_pass_their_values_on() -> None:
    rows, lengths = tensors(drawn(8)), torch.arange(2, PAIRS + 2)
    dpo = DPO(beta=0.2, label_smoothing=0.1, sft_weight=9.0)
    dpo_B, _ = dpo.losses(rows[0], rows[1], lengths, lengths, rows[2], rows[3])
    assert torch.equal(dpo_B, dpo_losses(*rows, beta=0.2, label_smoothing=0.1)[0])
    simpo = SimPO(beta=2.0, gamma_beta_ratio=0.3, sft_weight=9.0)
    answers = rows[0], rows[1], lengths, lengths + 1
    simpo_B, _ = simpo.losses(*answers, None, None)
    assert torch.equal(simpo_B, simpo_losses(*answers, beta=2.0, gamma_beta_ratio=0.3)[0])


def test_settings_say_what_they_need() -> None:
    """(learns from, contrasts answers, needs a reference policy)"""
    assert [(kind.consumes, kind.contrasts, kind.needs_reference) for kind in (DPO, SimPO, RFT, Gold)] == [
        ("pair", True, True),
        ("pair", True, False),
        ("pair", False, False),
        ("sample", False, False),
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        (DPO, {"beta": 0.0}, "beta"),
        (DPO, {"beta": -1.0}, "beta"),
        (DPO, {"beta": math.nan}, "beta"),
        (DPO, {"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing"),
        (DPO, {"beta": 0.1, "label_smoothing": -0.1}, "label_smoothing"),
        (DPO, {"beta": 0.1, "sft_weight": -0.1}, "sft_weight"),
        (SimPO, {"beta": 0.0, "gamma_beta_ratio": 0.2}, "beta"),
        (SimPO, {"beta": 2.5, "gamma_beta_ratio": -0.2}, "gamma_beta_ratio"),
        (SimPO, {"beta": 2.5, "gamma_beta_ratio": 0.2, "sft_weight": -1.0}, "sft_weight"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(kind: Any, fields: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^objective\.loss\.{key}={fields[key]}: "):
        kind(**fields)
