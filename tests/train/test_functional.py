"""Losses: worked values, formulas written again in plain Python, gradients by differences, settings refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ttpa.errors import ConfigError
from ttpa.train.objectives import DPO, IPO, ORPO, RFT, Gold, Hinge, PreferenceLoss, RobustDPO, SimPO
from ttpa.train.objectives.functional import (
    dpo_loss,
    dpo_losses,
    hinge_losses,
    ipo_losses,
    orpo_loss,
    orpo_losses,
    robust_dpo_losses,
    simpo_loss,
    simpo_losses,
    weighted_nll,
)

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


# --- other losses against a reference ----------------------------------------------------------------------------


def by_hand() -> list[Tensor]:
    """Policy -3 / -9, reference -5 / -7: log-ratios 2 and -2, D = 4."""
    return tensors([[-3.0], [-9.0], [-5.0], [-7.0]])


def test_robust_dpo_worked_by_hand() -> None:
    """beta D = 2, e = 0.1: (0.9 * 0.126928 - 0.1 * 2.126928) / 0.8 = (0.114235 - 0.212693) / 0.8 = -0.123072."""
    losses_B, metrics = robust_dpo_losses(*by_hand(), beta=0.5, label_smoothing=0.1)
    assert losses_B.tolist() == pytest.approx([-0.123072], abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -1.0,
        "rewards/margins": 2.0,
        "rewards/accuracies": 1.0,
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_robust_dpo_is_dpo_on_average_over_flips(share: float) -> None:
    """Flipping each pair with probability e gives (1-e) L(w, l) + e L(l, w), which is DPO's loss of (w, l)."""
    chosen, rejected, ref_chosen, ref_rejected = tensors(drawn(4))
    settings = {"beta": 0.3, "label_smoothing": share}
    kept_B, _ = robust_dpo_losses(chosen, rejected, ref_chosen, ref_rejected, **settings)
    flipped_B, _ = robust_dpo_losses(rejected, chosen, ref_rejected, ref_chosen, **settings)
    expected_B, _ = dpo_losses(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    assert ((1 - share) * kept_B + share * flipped_B).tolist() == pytest.approx(expected_B.tolist())


def test_hinge_worked_by_hand() -> None:
    """D = 4: relu(1 - 0.125 * 4) = 0.5; 0.25 * 4 = 1 reaches the margin exactly; beyond it loss and slope are 0."""
    assert hinge_losses(*by_hand(), beta=0.125)[0].tolist() == [0.5]
    assert hinge_losses(*by_hand(), beta=0.25)[0].tolist() == [0.0]
    chosen, *others = by_hand()
    chosen.requires_grad_()
    losses_B, metrics = hinge_losses(chosen, *others, beta=0.5)
    losses_B.sum().backward()
    assert losses_B.tolist() == [0.0] and chosen.grad is not None and chosen.grad.tolist() == [0.0]
    assert float(metrics["rewards/margins"]) == 2.0
    swapped = [by_hand()[index] for index in (1, 0, 3, 2)]
    assert hinge_losses(*swapped, beta=0.5)[0].tolist() == [3.0]


def test_ipo_worked_by_hand() -> None:
    """beta 0.5 aims at 1 / (2 * 0.5) = 1. As printed (4 - 1)^2 = 9; over 2 and 4 tokens (2/2 + 2/4 - 1)^2 = 0.25."""
    lengths = torch.tensor([2]), torch.tensor([4])
    printed_B, printed = ipo_losses(*by_hand(), *lengths, beta=0.5, length_normalised=False)
    losses_B, metrics = ipo_losses(*by_hand(), *lengths, beta=0.5)
    assert (printed_B.tolist(), losses_B.tolist()) == ([9.0], [0.25])
    assert {name: float(value) for name, value in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -1.0,
        "rewards/margins": 2.0,
        "rewards/accuracies": 1.0,
    }
    assert printed == metrics


def test_ipo_forms_are_one_for_answers_of_one_token_and_least_at_the_margin() -> None:
    rows, one = tensors(drawn(6)), torch.ones(PAIRS)
    normalised_B, _ = ipo_losses(*rows, one, one, beta=0.2)
    printed_B, _ = ipo_losses(*rows, one, one, beta=0.2, length_normalised=False)
    assert torch.equal(normalised_B, printed_B)
    _, rejected, ref_chosen, ref_rejected = rows
    at_margin = rejected - ref_rejected + ref_chosen + 1 / (2 * 0.2)
    least_B, _ = ipo_losses(at_margin, rejected, ref_chosen, ref_rejected, one, one, beta=0.2)
    assert least_B.tolist() == pytest.approx([0.0] * PAIRS, abs=1e-20)


# --- ORPO --------------------------------------------------------------------------------------------------------


def test_orpo_worked_by_hand() -> None:
    """Token probabilities 0.5 (2 tokens) and 0.2 (3 tokens): odds 1 and 0.25, log odds ratio log 4.

    -log sigma(log 4) = log(1 + 1/4) = 0.223144, times beta 0.5 is 0.111572. The NLL adds log 2 = 0.693147 a token.
    """
    lengths = torch.tensor([2]), torch.tensor([3])
    inputs = tensors([[2 * math.log(0.5)], [3 * math.log(0.2)]])
    losses_B, metrics = orpo_losses(*inputs, *lengths, beta=0.5)
    assert losses_B.tolist() == pytest.approx([0.111572], abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 0.5 * math.log(0.5),
            "rewards/rejected": 0.5 * math.log(0.2),
            "rewards/margins": 0.5 * math.log(2.5),
            "rewards/accuracies": 1.0,
            "log_odds_ratio": -0.2231436,
            "log_odds_chosen": math.log(4),
        }
    )
    loss, anchored = orpo_loss(*inputs, *lengths, beta=0.5)
    assert float(loss) == pytest.approx(0.111572 + 0.693147, abs=1e-6)
    assert float(anchored["nll_loss"]) == pytest.approx(math.log(2))
    assert float(orpo_loss(*inputs, *lengths, beta=0.5, sft_weight=0.0)[0]) == pytest.approx(0.111572, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_orpo_is_the_papers_equation(seed: int) -> None:
    chosen, rejected, *_ = drawn(seed)
    rng = random.Random(seed)
    lengths = [[rng.randrange(1, 40) for _ in range(PAIRS)] for _ in range(2)]

    def odds(logp: float, length: int) -> float:
        p = math.exp(logp / length)
        return p / (1 - p)

    ratios = [odds(w, m) / odds(r, n) for w, r, m, n in zip(chosen, rejected, *lengths, strict=True)]
    losses_B, _ = orpo_losses(*tensors([chosen, rejected]), *map(torch.tensor, lengths), beta=0.7)
    assert losses_B.tolist() == pytest.approx([-0.7 * log_sigmoid(math.log(ratio)) for ratio in ratios], rel=1e-6)


def test_orpo_of_certain_and_of_impossible_answers_is_finite() -> None:
    """Log-probs 0, of answers certain to rounding, have infinite odds; -1000 has odds too small for any exponent."""
    points = [torch.tensor(row, requires_grad=True) for row in ([0.0, -2.0, 0.0, -1000.0], [-2.0, 0.0, 0.0, -3.0])]
    one = torch.ones(4)
    losses_B, _ = orpo_losses(*points, one, one, beta=1.0)
    losses_B.sum().backward()
    assert losses_B.isfinite().all() and all(point.grad is not None and point.grad.isfinite().all() for point in points)
    assert losses_B[0] < 1e-6 and losses_B[1] > 10 and losses_B[2].item() == pytest.approx(math.log(2))
    certain_and_rejected = points[1].grad[1].item()
    assert certain_and_rejected > 1e3


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


def robust_at(values: Tensor) -> Tensor:
    reference = torch.tensor([-2.0, -3.0])
    return robust_dpo_losses(values[:2], values[2:], reference, reference - 1, beta=0.7, label_smoothing=0.2)[0].mean()


def hinge_at(values: Tensor) -> Tensor:
    reference = torch.tensor([-2.0, -3.0])
    return hinge_losses(values[:2], values[2:], reference, reference - 1, beta=0.7)[0].mean()


def ipo_at(values: Tensor) -> Tensor:
    reference, lengths = torch.tensor([-2.0, -3.0]), (torch.tensor([2, 5]), torch.tensor([3, 4]))
    return ipo_losses(values[:2], values[2:], reference, reference - 1, *lengths, beta=0.7)[0].mean()


def orpo_at(values: Tensor) -> Tensor:
    lengths = torch.tensor([2, 5]), torch.tensor([3, 4])
    return orpo_loss(values[:2], values[2:], *lengths, beta=0.6, sft_weight=0.2)[0]


def nll_at(values: Tensor) -> Tensor:
    return weighted_nll(values, torch.tensor([1.0, 0.3, 0.0, 2.0]))


@pytest.mark.parametrize("loss", [dpo_at, robust_at, hinge_at, ipo_at, simpo_at, orpo_at, nll_at])
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
    _, ipo = ipo_losses(values, values - 1, values.detach(), values.detach(), one, one, beta=1.0)
    _, orpo = orpo_loss(values, values - 1, one, one, beta=1.0)
    assert not any(value.requires_grad for found in (dpo, simpo, ipo, orpo) for value in found.values())


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
    orpo_B, _ = ORPO(beta=0.3, sft_weight=9.0).losses(*answers, None, None)
    assert torch.equal(orpo_B, orpo_losses(*answers, beta=0.3)[0])

    given = *answers, rows[2], rows[3]
    robust_B, _ = RobustDPO(beta=0.2, label_smoothing=0.1, sft_weight=9.0).losses(*given)
    assert torch.equal(robust_B, robust_dpo_losses(*rows, beta=0.2, label_smoothing=0.1)[0])
    hinge_B, _ = Hinge(beta=0.02, sft_weight=9.0).losses(*given)
    assert torch.equal(hinge_B, hinge_losses(*rows, beta=0.02)[0]) and hinge_B.max() > 0
    for normalised in (True, False):
        ipo_B, _ = IPO(beta=0.2, length_normalised=normalised, sft_weight=9.0).losses(*given)
        expected_B, _ = ipo_losses(*rows, lengths, lengths + 1, beta=0.2, length_normalised=normalised)
        assert torch.equal(ipo_B, expected_B)


def test_settings_say_what_they_need() -> None:
    """(learns from, contrasts answers, needs a reference policy)"""
    kinds = (DPO, RobustDPO, Hinge, IPO, SimPO, ORPO, RFT, Gold)
    assert [(kind.consumes, kind.contrasts, kind.needs_reference) for kind in kinds] == [
        ("pair", True, True),
        ("pair", True, True),
        ("pair", True, True),
        ("pair", True, True),
        ("pair", True, False),
        ("pair", True, False),
        ("pair", False, False),
        ("sample", False, False),
    ]
    assert [issubclass(kind, PreferenceLoss) for kind in kinds] == [kind.contrasts for kind in kinds]


def test_orpo_has_its_nll_unless_told_otherwise() -> None:
    assert (ORPO(beta=0.1).sft_weight, DPO(beta=0.1).sft_weight) == (1.0, 0.0)


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
        (RobustDPO, {"beta": 0.0, "label_smoothing": 0.1}, "beta"),
        (RobustDPO, {"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing"),
        (RobustDPO, {"beta": 0.1, "label_smoothing": 0.1, "sft_weight": -1.0}, "sft_weight"),
        (Hinge, {"beta": math.nan}, "beta"),
        (Hinge, {"beta": 0.1, "sft_weight": -1.0}, "sft_weight"),
        (IPO, {"beta": -0.1}, "beta"),
        (IPO, {"beta": 0.1, "sft_weight": -1.0}, "sft_weight"),
        (ORPO, {"beta": 0.0}, "beta"),
        (ORPO, {"beta": 0.1, "sft_weight": -1.0}, "sft_weight"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(kind: Any, fields: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^objective\.loss\.{key}={fields[key]}: "):
        kind(**fields)
