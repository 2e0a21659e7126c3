"""Losses of pairs: worked values, limits, settings refused. TRL's numbers and gradients: test_trl_parity."""

import math
from typing import Any

import pytest
import torch

from tests.train.plain import LOSS, loss
from ttpa.errors import ConfigError
from ttpa.train.losses import DPO, IPO, ORPO, Hinge, PairLogps, PreferenceLoss, RobustDPO, SimPO, weighted_nll


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))) in double precision, without torch."""
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def pairs(*sides: Any, tokens: Any = None, **options: Any) -> PairLogps:
    """Of chosen, rejected and, where a loss needs them, reference log-probs."""
    chosen, rejected, *known = (torch.tensor(one, **options) if isinstance(one, list) else one for one in sides)
    return PairLogps(chosen, rejected, *map(torch.tensor, tokens or [[1] * len(chosen)] * 2), *known)


REFERENCED = pairs([-3.0], [-9.0], [-5.0], [-7.0], tokens=[[2], [4]], dtype=torch.float64)
"""Log-ratios -3 + 5 = 2 and -9 + 7 = -2, so D = 4."""
MEANS = pairs([-1.0], [-4.0], tokens=[[5], [10]])
"""Means of -0.2 and -0.4: with beta 2.5, rewards -0.5 and -1."""
ODDS = pairs([2 * math.log(0.5)], [3 * math.log(0.2)], tokens=[[2], [3]])
"""Token probabilities 0.5 and 0.2: odds 1 and 0.25, log odds ratio log 4."""


@pytest.mark.parametrize(
    ("objective", "given", "expected", "rewards"),
    [
        # beta D = 2: -log sigma(2) = log(1 + exp(-2)) = 0.126928; smoothed 0.9 * 0.126928 + 0.1 * 2.126928.
        (loss(DPO, beta=0.5), REFERENCED, 0.126928, (1, -1)),
        (loss(DPO, beta=0.5, label_smoothing=0.1), REFERENCED, 0.326928, (1, -1)),
        # Where the policy is the reference; a tie is not counted as right.
        (loss(DPO, beta=5.0, label_smoothing=0.3), pairs([-3.0], [-9.0], [-3.0], [-9.0]), math.log(2), (0, 0)),
        # (0.9 * 0.126928 - 0.1 * 2.126928) / 0.8
        (loss(RobustDPO, beta=0.5, label_smoothing=0.1), REFERENCED, -0.123072, (1, -1)),
        # relu(1 - beta D): beyond the margin, before it, and the swapped pair, 1 + 0.5 * 4.
        (loss(Hinge, beta=0.5), REFERENCED, 0.0, (1, -1)),
        (loss(Hinge, beta=0.125), REFERENCED, 0.5, (0.25, -0.25)),
        (loss(Hinge, beta=0.5), pairs([-9.0], [-3.0], [-7.0], [-5.0]), 3.0, (-1, 1)),
        # The margin aimed at is 1. Over 2 and 4 tokens (2/2 + 2/4 - 1)^2; as printed (4 - 1)^2.
        (loss(IPO, beta=0.5), REFERENCED, 0.25, (1, -1)),
        (loss(IPO, beta=0.5, length_normalised=False), REFERENCED, 9.0, (1, -1)),
        # gamma 2.5 * 0.2 = 0.5: -0.5 + 1 - 0.5 = 0, log 2; without it log(1 + exp(-0.5)).
        (loss(SimPO, beta=2.5, gamma_beta_ratio=0.2), MEANS, math.log(2), (-0.5, -1)),
        (loss(SimPO, beta=2.5, gamma_beta_ratio=0.0), MEANS, 0.474077, (-0.5, -1)),
        # -log sigma(log 4) = log(1 + 1/4) = 0.223144, times beta 0.5.
        (loss(ORPO, beta=0.5), ODDS, 0.111572, (0.5 * math.log(0.5), 0.5 * math.log(0.2))),
    ],
)
def test_losses_worked_by_hand(
    objective: PreferenceLoss, given: PairLogps, expected: float, rewards: tuple[float, float]
) -> None:
    losses_B, metrics = objective(given)
    assert losses_B.tolist() == pytest.approx([expected], abs=1e-6)
    told = {"chosen": rewards[0], "rejected": rewards[1], "margins": rewards[0] - rewards[1]}
    told["accuracies"] = float(rewards[0] > rewards[1])
    own = {"log_odds_ratio": -0.2231436, "log_odds_chosen": math.log(4)} if isinstance(objective, ORPO) else {}
    assert metrics == pytest.approx({f"rewards/{name}": value for name, value in told.items()} | own)


def test_weighted_nll_is_a_weighted_sum() -> None:
    """-(1 * -2 + 0.5 * -4 + 0 * -8) = 4; a sum, so twice the tokens give twice the loss."""
    logps_N, weights_N = torch.tensor([-2.0, -4.0, -8.0]), torch.tensor([1.0, 0.5, 0.0])
    assert float(weighted_nll(logps_N, weights_N)) == 4.0
    assert float(weighted_nll(logps_N.repeat(2), weights_N.repeat(2))) == 8.0


def test_dpo_stays_finite_and_linear_far_from_the_reference() -> None:
    """Margin -2000: the loss is 2000 and its slope in the chosen log-prob is -beta, where exp would overflow."""
    chosen = torch.tensor([-2000.0], requires_grad=True)
    losses_B, metrics = loss(DPO, beta=1.0)(pairs(chosen, [0.0], [0.0], [0.0]))
    losses_B.sum().backward()
    assert not any(value.requires_grad for value in metrics.values())
    assert losses_B.item() == pytest.approx(2000)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-1)


def test_orpo_of_certain_and_of_impossible_answers_is_finite() -> None:
    """Log-probs 0, of answers certain to rounding, have infinite odds; -1000 has odds too small for any exponent."""
    chosen, rejected = (
        torch.tensor(x, requires_grad=True) for x in ([0.0, -2.0, 0.0, -1000.0], [-2.0, 0.0, 0.0, -3.0])
    )
    losses_B, metrics = loss(ORPO, beta=1.0)(pairs(chosen, rejected))
    losses_B.sum().backward()
    assert not any(value.requires_grad for value in metrics.values())
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


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, "beta", 0.0) for kind in LOSS),
        (DPO, "label_smoothing", 0.5), (RobustDPO, "label_smoothing", -0.1), (ORPO, "sft_weight", math.nan),
        (SimPO, "gamma_beta_ratio", -0.2), (SimPO, "over", "tokens"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_key_and_value(kind: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        loss(kind, **{key: value})
