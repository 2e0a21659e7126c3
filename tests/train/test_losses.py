"""Losses of pairs: worked values, formulas written again in plain Python, gradients by differences, settings refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.plain import LOSS, loss
from ttpa.errors import ConfigError
from ttpa.train.losses import (
    DPO,
    IPO,
    ORPO,
    RFT,
    Gold,
    Hinge,
    PairLogps,
    PreferenceLoss,
    RobustDPO,
    SimPO,
    weighted_nll,
)

PAIRS = 9
REWARDS_1 = {"rewards/chosen": 1.0, "rewards/rejected": -1.0, "rewards/margins": 2.0, "rewards/accuracies": 1.0}


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))) in double precision, without torch."""
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def drawn(seed: int) -> list[list[float]]:
    """Summed log-probs of chosen and rejected answers, and the same under a reference."""
    rows = torch.rand(4, PAIRS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * -30
    return [[float(value) for value in row] for row in rows]


def lengths(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, 40) for _ in range(PAIRS)] for _ in range(2)]


def pairs(
    chosen: Any, rejected: Any, ref_chosen: Any = None, ref_rejected: Any = None, *, tokens: Any = None, **options: Any
) -> PairLogps:
    def tensor(values: Any) -> Any:
        return torch.tensor(values, **options) if isinstance(values, list) else values

    sides = tokens or [[1] * len(chosen)] * 2
    return PairLogps(
        tensor(chosen), tensor(rejected), *map(torch.tensor, sides), tensor(ref_chosen), tensor(ref_rejected)
    )


def values(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


BY_HAND = pairs([-3.0], [-9.0], [-5.0], [-7.0], tokens=[[2], [4]], dtype=torch.float64)
"""Log-ratios -3 + 5 = 2 and -9 + 7 = -2, so D = 4."""


# --- worked by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_of", "expected"),
    [
        # beta D = 2: -log sigma(2) = log(1 + exp(-2)) = 0.126928; smoothed 0.9 * 0.126928 + 0.1 * 2.126928.
        (loss(DPO, beta=0.5), 0.126928),
        (loss(DPO, beta=0.5, label_smoothing=0.1), 0.326928),
        # (0.9 * 0.126928 - 0.1 * 2.126928) / 0.8 = (0.114235 - 0.212693) / 0.8
        (loss(RobustDPO, beta=0.5, label_smoothing=0.1), -0.123072),
        (loss(Hinge, beta=0.5), 0.0),
        # The margin aimed at is 1. Over 2 and 4 tokens (2/2 + 2/4 - 1)^2; as printed (4 - 1)^2.
        (loss(IPO, beta=0.5), 0.25),
        (loss(IPO, beta=0.5, length_normalised=False), 9.0),
    ],
)
def test_losses_with_a_reference_worked_by_hand(loss_of: PreferenceLoss, expected: float) -> None:
    losses_B, metrics = loss_of(BY_HAND)
    assert losses_B.tolist() == pytest.approx([expected], abs=1e-6)
    assert values(metrics) == REWARDS_1


def test_simpo_worked_by_hand() -> None:
    """Mean log-probs -1 / 5 = -0.2 and -4 / 10 = -0.4; rewards 2.5 times that, -0.5 and -1; gamma 2.5 * 0.2 = 0.5.

    The argument is -0.5 + 1 - 0.5 = 0, the loss log 2. Without the target margin it is log(1 + exp(-0.5)) = 0.474077.
    """
    given = pairs([-1.0], [-4.0], tokens=[[5], [10]])
    losses_B, metrics = loss(SimPO, beta=2.5, gamma_beta_ratio=0.2)(given)
    assert losses_B.tolist() == pytest.approx([math.log(2)], abs=1e-6)
    assert values(metrics) == pytest.approx(
        {"rewards/chosen": -0.5, "rewards/rejected": -1.0, "rewards/margins": 0.5, "rewards/accuracies": 1.0}
    )
    assert loss(SimPO, beta=2.5, gamma_beta_ratio=0.0)(given)[0].tolist() == pytest.approx([0.474077], abs=1e-6)


def test_orpo_worked_by_hand() -> None:
    """Token probabilities 0.5 (2 tokens) and 0.2 (3 tokens): odds 1 and 0.25, log odds ratio log 4.

    -log sigma(log 4) = log(1 + 1/4) = 0.223144, times beta 0.5 is 0.111572.
    """
    losses_B, metrics = loss(ORPO, beta=0.5)(pairs([2 * math.log(0.5)], [3 * math.log(0.2)], tokens=[[2], [3]]))
    assert losses_B.tolist() == pytest.approx([0.111572], abs=1e-6)
    assert values(metrics) == pytest.approx(
        {
            "rewards/chosen": 0.5 * math.log(0.5),
            "rewards/rejected": 0.5 * math.log(0.2),
            "rewards/margins": 0.5 * math.log(2.5),
            "rewards/accuracies": 1.0,
            "log_odds_ratio": -0.2231436,
            "log_odds_chosen": math.log(4),
        }
    )


def test_hinge_is_flat_beyond_its_margin_and_linear_before() -> None:
    """D = 4: relu(1 - 0.125 * 4) = 0.5; 0.25 * 4 = 1 reaches the margin; the swapped pair has 1 + 0.5 * 4 = 3."""
    assert [loss(Hinge, beta=beta)(BY_HAND)[0].item() for beta in (0.125, 0.25)] == [0.5, 0.0]
    assert loss(Hinge, beta=0.5)(pairs([-9.0], [-3.0], [-7.0], [-5.0]))[0].item() == 3.0
    chosen = torch.tensor([-3.0], requires_grad=True)
    loss(Hinge, beta=0.5)(pairs(chosen, [-9.0], [-5.0], [-7.0]))[0].sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == [0.0]


def test_weighted_nll_is_a_weighted_sum() -> None:
    """-(1 * -2 + 0.5 * -4 + 0 * -8) = 4; a sum, so twice the tokens give twice the loss."""
    logps_N, weights_N = torch.tensor([-2.0, -4.0, -8.0]), torch.tensor([1.0, 0.5, 0.0])
    assert float(weighted_nll(logps_N, weights_N)) == 4.0
    assert float(weighted_nll(logps_N.repeat(2), weights_N.repeat(2))) == 8.0


# --- the papers' equations, written again ------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_the_papers_equation(smoothing: float) -> None:
    rows, beta = drawn(1), 0.3
    margins = [beta * ((w - rw) - (lose - rl)) for w, lose, rw, rl in zip(*rows, strict=True)]
    expected = [-(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m) for m in margins]
    losses_B, metrics = loss(DPO, beta=beta, label_smoothing=smoothing)(pairs(*rows, dtype=torch.float64))
    assert losses_B.tolist() == pytest.approx(expected)
    assert float(metrics["rewards/margins"]) == pytest.approx(sum(margins) / PAIRS)
    assert float(metrics["rewards/accuracies"]) == pytest.approx(sum(m > 0 for m in margins) / PAIRS)


def test_simpo_is_the_papers_equation() -> None:
    (chosen, rejected, *_), tokens, beta, ratio = drawn(2), lengths(2), 2.5, 0.4
    rows = zip(chosen, rejected, *tokens, strict=True)
    args = [beta / m * w - beta / n * lose - beta * ratio for w, lose, m, n in rows]
    given = pairs(chosen, rejected, tokens=tokens, dtype=torch.float64)
    losses_B, metrics = loss(SimPO, beta=beta, gamma_beta_ratio=ratio)(given)
    assert losses_B.tolist() == pytest.approx([-log_sigmoid(arg) for arg in args])
    assert float(metrics["rewards/accuracies"]) == pytest.approx(sum(arg + beta * ratio > 0 for arg in args) / PAIRS)


def test_orpo_is_the_papers_equation() -> None:
    (chosen, rejected, *_), tokens = drawn(3), lengths(3)

    def odds(logp: float, length: int) -> float:
        p = math.exp(logp / length)
        return p / (1 - p)

    ratios = [odds(w, m) / odds(r, n) for w, r, m, n in zip(chosen, rejected, *tokens, strict=True)]
    losses_B, _ = loss(ORPO, beta=0.7)(pairs(chosen, rejected, tokens=tokens, dtype=torch.float64))
    assert losses_B.tolist() == pytest.approx([-0.7 * log_sigmoid(math.log(ratio)) for ratio in ratios])


# --- properties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_dpo_is_log_2_where_the_policy_is_the_reference(smoothing: float) -> None:
    chosen, rejected, *_ = drawn(0)
    losses_B, metrics = loss(DPO, beta=5.0, label_smoothing=smoothing)(pairs(chosen, rejected, chosen, rejected))
    assert losses_B.tolist() == pytest.approx([math.log(2)] * PAIRS)
    assert set(values(metrics).values()) == {0.0}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_robust_dpo_is_dpo_on_average_over_flips(share: float) -> None:
    """Flipping each pair with probability e gives (1-e) L(w, l) + e L(l, w), which is DPO's loss of (w, l)."""
    chosen, rejected, ref_chosen, ref_rejected = drawn(4)
    robust = loss(RobustDPO, beta=0.3, label_smoothing=share)
    kept_B, _ = robust(pairs(chosen, rejected, ref_chosen, ref_rejected))
    flipped_B, _ = robust(pairs(rejected, chosen, ref_rejected, ref_chosen))
    expected_B, _ = loss(DPO, beta=0.3)(pairs(chosen, rejected, ref_chosen, ref_rejected))
    assert ((1 - share) * kept_B + share * flipped_B).tolist() == pytest.approx(expected_B.tolist(), rel=1e-4)


def test_ipo_forms_are_one_for_answers_of_one_token_and_least_at_the_margin() -> None:
    normalised, printed = (loss(IPO, beta=0.2, length_normalised=form) for form in (True, False))
    chosen, rejected, ref_chosen, ref_rejected = drawn(6)
    given = pairs(chosen, rejected, ref_chosen, ref_rejected, dtype=torch.float64)
    assert torch.equal(normalised(given)[0], printed(given)[0])
    at_margin = [r - rr + rc + 1 / (2 * 0.2) for r, rr, rc in zip(rejected, ref_rejected, ref_chosen, strict=True)]
    least_B, _ = normalised(pairs(at_margin, rejected, ref_chosen, ref_rejected, dtype=torch.float64))
    assert least_B.tolist() == pytest.approx([0.0] * PAIRS, abs=1e-20)


def test_simpo_sees_mean_log_probs_only() -> None:
    """Three times the tokens at the same mean change nothing; three times the sum at the same length does."""
    (chosen, rejected, *_), (m, n) = drawn(3), lengths(3)
    tripled, simpo = [3 * x for x in chosen], loss(SimPO, beta=2.0)
    plain_B = simpo(pairs(chosen, rejected, tokens=[m, n]))[0]
    assert simpo(pairs(tripled, rejected, tokens=[[3 * x for x in m], n]))[0].tolist() == pytest.approx(
        plain_B.tolist()
    )
    assert simpo(pairs(tripled, rejected, tokens=[m, n]))[0].tolist() != pytest.approx(plain_B.tolist())


def test_dpo_stays_finite_and_linear_far_from_the_reference() -> None:
    """Margin -2000: the loss is 2000 and its slope in the chosen log-prob is -beta, where exp would overflow."""
    chosen = torch.tensor([-2000.0], requires_grad=True)
    losses_B, _ = loss(DPO, beta=1.0)(pairs(chosen, [0.0], [0.0], [0.0]))
    losses_B.sum().backward()
    assert losses_B.item() == pytest.approx(2000)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-1)


def test_orpo_of_certain_and_of_impossible_answers_is_finite() -> None:
    """Log-probs 0, of answers certain to rounding, have infinite odds; -1000 has odds too small for any exponent."""
    chosen, rejected = (
        torch.tensor(x, requires_grad=True) for x in ([0.0, -2.0, 0.0, -1000.0], [-2.0, 0.0, 0.0, -3.0])
    )
    losses_B, _ = loss(ORPO, beta=1.0)(pairs(chosen, rejected))
    losses_B.sum().backward()
    assert losses_B.isfinite().all() and chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all() and rejected.grad[1].item() > 1e3
    assert losses_B[0] < 1e-6 and losses_B[1] > 10 and losses_B[2].item() == pytest.approx(math.log(2))


def test_bfloat16_inputs_give_float32_losses() -> None:
    """-100 and -101 differ by one bfloat16 step at that size; 0.1 times the difference survives only in float32."""
    given = pairs([-100.0], [-101.0], [-100.0], [-100.0], tokens=[[3], [3]], dtype=torch.bfloat16)
    for objective in (loss(DPO, beta=0.1), loss(SimPO, beta=0.3, gamma_beta_ratio=0.0)):
        losses_B, metrics = objective(given)
        assert losses_B.dtype == torch.float32 and all(value.dtype == torch.float32 for value in metrics.values())
        assert losses_B.item() == pytest.approx(-log_sigmoid(0.1), abs=1e-6)
    assert weighted_nll(given.chosen_B, torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize("kind", LOSS)
def test_gradient_agrees_with_central_differences(kind: type[PreferenceLoss]) -> None:
    """And metrics carry none."""
    reference, tokens = torch.tensor([-2.0, -3.0]), [[2, 5], [3, 4]]
    objective = loss(kind, beta=0.7)

    def total(at: Tensor) -> Tensor:
        losses_B, metrics = objective(pairs(at[:2], at[2:], reference, reference - 1, tokens=tokens))
        assert not any(value.requires_grad for value in metrics.values())
        return losses_B.mean()

    point = torch.tensor([-1.5, -4.0, -2.5, -3.0], requires_grad=True)
    total(point).backward()
    with torch.no_grad():
        slopes = [float((total(point + step) - total(point - step)) / 0.04) for step in 0.02 * torch.eye(4)]
    assert point.grad is not None
    assert point.grad.tolist() == pytest.approx(slopes, abs=2e-4)
    assert max(map(abs, slopes)) > 0.01


def test_a_tie_is_not_counted_as_right() -> None:
    """Rewards 1 > 0, 0 = 0, 0 < 1: one of three pairs is in order."""
    given = pairs([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3)
    assert float(loss(DPO, beta=1.0)(given)[1]["rewards/accuracies"]) == pytest.approx(1 / 3)


# --- settings ----------------------------------------------------------------------------------------------------


def test_losses_say_what_they_need() -> None:
    """(learns from, contrasts answers); the reference-free losses do without reference log-probs."""
    assert {(kind.consumes, kind.contrasts) for kind in LOSS} == {("pair", True)}
    assert [(kind.consumes, kind.contrasts) for kind in (RFT, Gold)] == [("pair", False), ("sample", False)]
    for kind in LOSS:
        if kind.needs_reference:
            with pytest.raises(AssertionError):
                loss(kind)(pairs([-1.0], [-2.0]))
        else:
            loss(kind)(pairs([-1.0], [-2.0]))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, "beta", value) for kind in LOSS for value in (0.0, math.nan)),
        (DPO, "label_smoothing", 0.5),
        (DPO, "label_smoothing", -0.1),
        (RobustDPO, "label_smoothing", 0.5),
        (DPO, "sft_weight", -0.1),
        (ORPO, "sft_weight", math.nan),
        (SimPO, "gamma_beta_ratio", -0.2),
        (SimPO, "over", "tokens"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(kind: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        loss(kind, **{key: value})
