"""GRPO: advantages of groups and the clipped loss, worked by hand and by properties. TRL's numbers: test_trl_parity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.plain import grpo, grpo_loss
from ttpa.errors import ConfigError
from ttpa.train.policy_gradient import decoupled_advantages, group_advantages

AGGREGATIONS, SCALES = ("grpo", "bnpo", "dr_grpo", "dapo"), ("group", "batch", "none")
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
NAN = math.nan


def floats(tensor: Tensor) -> list[Any]:
    return [floats(row) for row in tensor] if tensor.ndim > 1 else [pytest.approx(float(x), abs=1e-6) for x in tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return -2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def clipped(metrics: dict[str, Tensor]) -> list[float]:
    return [float(metrics[f"clip_ratio/{which}_mean"]) for which in ("low", "high", "region")]


# --- advantages --------------------------------------------------------------------------------------------------


def test_advantages_worked_by_hand() -> None:
    """Rewards 0, 1, 2 | 4, 4, 7, eps 0.

    First group: mean 1, deviations -1, 0, 1, variance (1 + 0 + 1) / 2 = 1: -1, 0, 1.
    Second: mean 5, deviations -1, -1, 2, variance (1 + 1 + 4) / 2 = 3: over sqrt(3), -0.57735, -0.57735, 1.154701.
    All six: mean 3, squares 9 + 4 + 1 + 1 + 1 + 16 = 32, variance 32 / 5 = 6.4, deviation 2.529822.
    """
    rewards_BG = torch.tensor([[0.0, 1.0, 2.0], [4.0, 4.0, 7.0]])
    grouped_BG, metrics = group_advantages(rewards_BG, scale="group", eps=0.0)
    assert floats(grouped_BG) == [[-1.0, 0.0, 1.0], [-0.57735, -0.57735, 1.154701]]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"reward": 3.0, "reward_std": 2.529822, "frac_reward_zero_std": 0.0}
    )
    plain = [[-1.0, 0.0, 1.0], [-1.0, -1.0, 2.0]]
    assert group_advantages(rewards_BG, scale="none", eps=0.0)[0].tolist() == plain
    whole_BG, _ = group_advantages(rewards_BG, scale="batch", eps=0.0)
    assert floats(whole_BG) == floats(torch.tensor(plain) / 2.529822)


def test_eps_is_added_to_the_deviation() -> None:
    """Rewards 0 and 2: deviation sqrt(2) = 1.414214; with eps 0.5 the advantage is 1 / 1.914214 = 0.522408."""
    advantages_BG, _ = group_advantages(torch.tensor([[0.0, 2.0]]), scale="group", eps=0.5)
    assert floats(advantages_BG) == [[-0.522408, 0.522408]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", [0.1, 1e6])
def test_equal_rewards_give_no_advantage_at_all(scale: str, reward: float) -> None:
    """The float32 mean of seven times 0.1 is not 0.1; over a deviation of rounding noise it would be an advantage."""
    rewards_BG = torch.stack([torch.full((7,), reward), torch.arange(7.0)])
    advantages_BG, metrics = group_advantages(rewards_BG, scale=scale, eps=1e-6)
    assert advantages_BG[0].tolist() == [0.0] * 7 and advantages_BG[1].abs().max() > 0
    assert float(metrics["frac_reward_zero_std"]) == 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_has_no_advantage(scale: str) -> None:
    advantages_BG, metrics = group_advantages(torch.tensor([[3.0], [5.0]]), scale=scale, eps=1e-4)
    assert advantages_BG.tolist() == [[0.0], [0.0]]
    assert float(metrics["frac_reward_zero_std"]) == 1.0 and float(metrics["reward"]) == 4.0


@pytest.mark.parametrize("missing", [NAN, -math.inf])
@pytest.mark.parametrize("scale", SCALES)
def test_answers_without_reward_change_nothing_for_the_others(scale: str, missing: float) -> None:
    """The others are as if the answer were not in the group; the answer itself has advantage 0."""
    known_BG = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.5, 2.0]])
    holed_BG = torch.cat([known_BG[:, :1], torch.full((2, 1), missing), known_BG[:, 1:]], dim=1)
    expected_BG, expected = group_advantages(known_BG, scale=scale, eps=1e-4)
    found_BG, metrics = group_advantages(holed_BG, scale=scale, eps=1e-4)
    assert found_BG[:, 1].tolist() == [0.0, 0.0]
    assert floats(found_BG[:, [0, 2, 3]]) == floats(expected_BG)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )


@pytest.mark.parametrize("scale", SCALES)
def test_groups_with_one_reward_or_none_have_no_advantage(scale: str) -> None:
    rewards_BG = torch.tensor([[NAN, 4.0, NAN], [NAN, NAN, NAN], [0.0, 1.0, NAN]])
    advantages_BG, metrics = group_advantages(rewards_BG, scale=scale, eps=1e-4)
    assert advantages_BG[:2].tolist() == [[0.0] * 3] * 2 and advantages_BG[2].abs().max() > 0
    assert float(metrics["frac_reward_zero_std"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_ignore_what_all_rewards_share(scale: str) -> None:
    """A constant on top changes nothing; a factor only what is not scaled."""
    rewards_BG = drawn(3, 5)
    plain_BG, _ = group_advantages(rewards_BG, scale=scale, eps=0.0)
    moved_BG, _ = group_advantages(4 * rewards_BG + 3, scale=scale, eps=0.0)
    factor = 4 if scale == "none" else 1
    torch.testing.assert_close(moved_BG, factor * plain_BG, rtol=1e-4, atol=1e-4)
    assert plain_BG.sum(1).abs().max() < 1e-5


def test_advantages_of_narrow_rewards_are_float32() -> None:
    advantages_BG, _ = group_advantages(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), scale="group", eps=1e-4)
    assert advantages_BG.dtype == torch.float32


# --- advantages of several rewards -------------------------------------------------------------------------------


def test_decoupled_advantages_worked_by_hand() -> None:
    """Two groups of two, rewards (0, 10), (1, 30) | (2, 5), (2, 7), weights 1 and 2, eps 0.5.

    First reward: group one has mean 0.5 and deviation sqrt(0.5) = 0.707107, so -+0.5 / 1.207107 = -+0.414214; group two
    has no difference: 0. Second: deviations 10 and 1, sqrt(200) = 14.142136, so -+10 / 14.642136 = -+0.682960; and
    sqrt(2), so -+1 / 1.914214 = -+0.522408. Sums: -+(0.414214 + 2 * 0.682960) = -+1.780134 and -+1.044816.
    Their mean is 0, variance 2 (1.780134^2 + 1.044816^2) / 3 = 2.840345, deviation 1.685332, with eps 2.185332:
    -+0.814583 and -+0.478104. Rewards: 20, 61, 12, 16, mean 27.25.
    """
    rewards_BGK = torch.tensor([[[0.0, 10.0], [1.0, 30.0]], [[2.0, 5.0], [2.0, 7.0]]])
    found_BG, metrics = decoupled_advantages(rewards_BGK, torch.tensor([1.0, 2.0]), eps=0.5)
    assert floats(found_BG) == [[-0.814583, 0.814583], [-0.478104, 0.478104]]
    assert float(metrics["reward"]) == 27.25 and float(metrics["frac_reward_zero_std"]) == 0.0


def test_decoupled_advantages_tell_answers_apart_whose_sums_agree() -> None:
    """1 + 0 and 0 + 1 are one reward, but the first part is the rarer one: its normalised value is greater."""
    rewards_BGK = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
    ones = torch.ones(2)
    together_BG, _ = group_advantages(rewards_BGK.sum(-1), scale="group", eps=1e-4)
    apart_BG, _ = decoupled_advantages(rewards_BGK, ones, eps=1e-4)
    assert together_BG[0, 0] == together_BG[0, 1] and apart_BG[0, 0] > apart_BG[0, 1] + 0.1


def test_the_scale_of_a_reward_does_not_matter_where_each_is_normalised() -> None:
    rewards_BGK, weights = drawn(3, 4, 2), torch.tensor([0.3, 0.7])
    plain_BG, _ = decoupled_advantages(rewards_BGK, weights, eps=0.0)
    larger_BG, _ = decoupled_advantages(rewards_BGK * torch.tensor([1000.0, 1.0]) + 5, weights, eps=0.0)
    torch.testing.assert_close(plain_BG, larger_BG, rtol=1e-3, atol=1e-3)
    assert float(plain_BG.mean()) == pytest.approx(0, abs=1e-6) and float(plain_BG.std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("eps", [1e-4, 1e-6])
def test_equal_rewards_give_no_decoupled_advantage(eps: float) -> None:
    """A batch without any difference, and a group without one beside another."""
    flat_BGK = torch.full((1, 7, 2), 0.1)
    assert decoupled_advantages(flat_BGK, torch.ones(2), eps=eps)[0].tolist() == [[0.0] * 7]
    both_BGK = torch.cat([flat_BGK, drawn(1, 7, 2)]).double()
    found_BG, _ = decoupled_advantages(both_BGK, torch.ones(2), eps=eps)
    assert found_BG[0].abs().max() < 1e-12 and found_BG[1].abs().max() > 0.5


def test_an_answer_without_one_of_its_rewards_has_no_decoupled_advantage() -> None:
    rewards_BGK = drawn(2, 4, 2)
    rewards_BGK[0, 1, 0] = NAN
    found_BG, _ = decoupled_advantages(rewards_BGK, torch.ones(2), eps=1e-4)
    assert found_BG.isfinite().all() and found_BG[0, 1] == 0 and (found_BG[1] != 0).all()


# --- loss --------------------------------------------------------------------------------------------------------


def test_loss_worked_by_hand() -> None:
    """Two answers of 2 and 1 tokens, advantages 1 and -1; ratios 1.5 and 0.5, then 0.5; clipped to [0.8, 1.28].

    First answer: -min(1.5, 1.28) = -1.28 (clipped above) and -min(0.5, 0.8) = -0.5; second: -min(-0.5, -0.8) = 0.8
    (clipped below). Means -0.89 and 0.8.
    grpo (-0.89 + 0.8) / 2 = -0.045; bnpo and dapo (-1.78 + 0.8) / 3 = -0.326667; dr_grpo -0.98 / (2 * 2) = -0.245, with
    ten tokens allowed -0.98 / 20 = -0.049; dapo in a step of 7 tokens -0.98 / 7 = -0.14.
    """
    ratios = torch.tensor([[1.5, 0.5], [0.5, 9.0]])
    mask, advantages = torch.tensor([[1, 1], [1, 0]]), torch.tensor([1.0, -1.0])
    old = drawn(2, 2)

    def loss(aggregation: str, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
        given = {**CLIP, "beta": 0.0, "aggregation": aggregation, **more}
        return grpo_loss(old + ratios.log(), old, None, advantages, mask, **given)

    found = {name: float(loss(name)[0]) for name in AGGREGATIONS}
    assert found == pytest.approx({"grpo": -0.045, "bnpo": -0.98 / 3, "dr_grpo": -0.245, "dapo": -0.98 / 3}, abs=1e-6)
    assert float(loss("dr_grpo", max_length=10)[0]) == pytest.approx(-0.049)
    assert float(loss("dapo", tokens=7)[0]) == pytest.approx(-0.14)
    assert clipped(loss("grpo")[1]) == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_kl_worked_by_hand() -> None:
    """ref - logp = log 2: k3 = 2 - log 2 - 1 = 0.306853; at 0 it is 0. Mean 0.153426, times beta 0.4 is 0.061371."""
    logps = torch.tensor([[-1.0, -1.0]])
    ref = logps + torch.tensor([[2.0, 1.0]]).log()
    loss, metrics = grpo_loss(logps, None, ref, torch.zeros(1), torch.ones(1, 2), **CLIP, beta=0.4, aggregation="grpo")
    assert float(metrics["kl"]) == pytest.approx(0.153426, abs=1e-6)
    assert float(loss) == pytest.approx(0.061371, abs=1e-6)


def test_kl_is_zero_and_flat_where_the_policy_is_the_reference_and_positive_elsewhere() -> None:
    logps, mask = drawn(3, 4).requires_grad_(), torch.ones(3, 4)
    loss, metrics = grpo_loss(logps, None, logps.detach(), torch.zeros(3), mask, **CLIP, beta=1.0, aggregation="bnpo")
    loss.backward()
    assert float(metrics["kl"]) == 0.0 and logps.grad is not None and logps.grad.abs().max() == 0
    for seed in range(1, 4):
        _, metrics = grpo_loss(
            logps, None, drawn(3, 4, seed=seed), torch.zeros(3), mask, **CLIP, beta=0.0, aggregation="bnpo"
        )
        assert float(metrics["kl"]) > 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equal_rewards_give_no_gradient(aggregation: str) -> None:
    logps = drawn(4, 5).requires_grad_()
    advantages_BG, _ = group_advantages(torch.full((1, 4), 0.1), scale="group", eps=1e-6)
    loss, _ = grpo_loss(
        logps, drawn(4, 5, seed=1), None, advantages_BG[0], torch.ones(4, 5), **CLIP, beta=0.0, aggregation=aggregation
    )
    loss.backward()
    assert logps.grad is not None and logps.grad.abs().max() == 0


def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_reinforce() -> None:
    """Nothing is clipped; the gradient in each token's log-prob is -A / tokens, with old log-probs or without."""
    mask, advantages = torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.tensor([0.7, -1.4])
    for given in (True, False):
        logps = drawn(2, 3).requires_grad_()
        old = logps.detach().clone() if given else None
        loss, metrics = grpo_loss(logps, old, None, advantages, mask, **CLIP, beta=0.0, aggregation="bnpo")
        loss.backward()
        assert loss.item() == pytest.approx(-(3 * 0.7 - 1.4) / 4)
        assert logps.grad is not None
        assert floats(logps.grad) == floats(torch.tensor([[-0.175] * 3, [0.35, 0.0, 0.0]]))
        assert all(float(value) == 0 for value in metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.27, 1.0, True),
        (1.29, 1.0, False),
        (1.29, -1.0, True),
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (0.79, 1.0, True),
    ],
)
def test_clipping_stops_what_goes_too_far_and_never_the_way_back(ratio: float, advantage: float, moves: bool) -> None:
    old = torch.tensor([[-1.0]])
    logps = (old + math.log(ratio)).requires_grad_()
    loss, metrics = grpo_loss(
        logps, old, None, torch.tensor([advantage]), torch.ones(1, 1), **CLIP, beta=0.0, aggregation="grpo"
    )
    loss.backward()
    assert logps.grad is not None
    assert logps.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)
    assert float(metrics["clip_ratio/low_mean"]) == float(not moves and advantage < 0)
    assert float(metrics["clip_ratio/high_mean"]) == float(not moves and advantage > 0)
    assert float(metrics["clip_ratio/region_mean"]) == float(not moves)


# --- ratios of answers, corrections ------------------------------------------------------------------------------


def test_the_ratio_of_an_answer_worked_by_hand() -> None:
    """GSPO, clipped to [0.8, 1.28]. First answer: ratios 1.5 and 0.96, geometric mean 1.2; advantage 1: loss -1.2 at
    both tokens. Second: ratios 0.5 and (masked) 9, mean 0.5, advantage -1: -min(-0.5, -0.8) = 0.8, clipped below.
    Third: ratios 2 and 2, advantage 0.5: -0.64, clipped above.

    Means of the answers -1.2, 0.8, -0.64; over them -1.04 / 3; over the tokens (-2.4 + 0.8 - 1.28) / 5 = -2.88 / 5.
    The gradient in each token of the first answer is -1.2 / 2 / 3 = -0.2; of the others 0. Of tokens, 1 of 5 is clipped
    below and 2 of 5 above.
    """
    ratios = torch.tensor([[1.5, 0.96], [0.5, 9.0], [2.0, 2.0]])
    mask, advantages, old = torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.tensor([1.0, -1.0, 0.5]), drawn(3, 2)
    logps = (old + ratios.log()).requires_grad_()
    given: dict[str, Any] = {**CLIP, "beta": 0.0, "importance": "sequence"}
    loss, metrics = grpo_loss(logps, old, None, advantages, mask, **given, aggregation="grpo")
    loss.backward()
    assert loss.item() == pytest.approx(-1.04 / 3, abs=1e-6)
    assert logps.grad is not None and floats(logps.grad) == [[-0.2, -0.2], [0.0, 0.0], [0.0, 0.0]]
    assert clipped(metrics) == pytest.approx([0.2, 0.4, 0.6])
    by_token, _ = grpo_loss(logps, old, None, advantages, mask, **given, aggregation="dapo")
    assert by_token.item() == pytest.approx(-2.88 / 5, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_of_answers_of_one_token_both_ratios_are_the_same(aggregation: str) -> None:
    found = []
    for importance in ("token", "sequence"):
        logps = drawn(5, 1).requires_grad_()
        inputs = drawn(5, 1, seed=1), drawn(5, 1, seed=2), torch.linspace(-1, 1, 5), torch.ones(5, 1)
        loss, metrics = grpo_loss(
            logps, *inputs, **CLIP, beta=0.1, aggregation=aggregation, importance=importance, kl_weighted=True
        )
        loss.backward()
        assert logps.grad is not None
        found.append((loss.item(), logps.grad.tolist(), {name: float(value) for name, value in metrics.items()}))
    assert found[0] == found[1]


def test_a_kl_term_times_the_ratio_worked_by_hand() -> None:
    """Ratio w = 2, ref - logp = log 3: k3 = 3 - log 3 - 1 = 0.901388; times w, 1.802775; times beta 0.1.

    In the policy's log-prob, d(w k) = w k + w (1 - 3) = 2 (0.901388 - 2) = -2.197225; the plain term has 1 - 3 = -2.
    The divergence that is told is the plain one.
    """
    for weighted, value, slope in ((True, 1.802775, -2.197225), (False, 0.901388, -2.0)):
        logps = torch.tensor([[-1.5]], requires_grad=True)
        old, ref = logps.detach() - math.log(2), logps.detach() + math.log(3)
        loss, metrics = grpo_loss(
            logps,
            old,
            ref,
            torch.zeros(1),
            torch.ones(1, 1),
            **CLIP,
            beta=0.1,
            aggregation="grpo",
            kl_weighted=weighted,
        )
        loss.backward()
        assert logps.grad is not None
        assert loss.item() == pytest.approx(0.1 * value, abs=1e-6)
        assert logps.grad.item() == pytest.approx(0.1 * slope, abs=1e-6)
        assert float(metrics["kl"]) == pytest.approx(0.901388, abs=1e-6)


def test_on_policy_the_weighted_kl_term_has_the_gradient_of_the_kl_divergence() -> None:
    """Over a whole distribution p, the mean of w k3 in the logits' gradient is that of KL(p | q), which k3's is not.

    Three tokens weighed by their probability; the true divergence is differentiated by torch.
    """
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    own = logits.log_softmax(-1)
    (own.exp() * (own - ref)).sum().backward()
    assert logits.grad is not None
    expected, found = logits.grad.clone(), {}
    for weighted in (True, False):
        logits.grad = None
        own = logits.log_softmax(-1)[:, None]
        terms = torch.stack(
            [
                grpo_loss(
                    own[k : k + 1],
                    None,
                    ref[k, None, None],
                    torch.zeros(1),
                    torch.ones(1, 1),
                    **CLIP,
                    beta=1.0,
                    aggregation="grpo",
                    kl_weighted=weighted,
                )[0]
                for k in range(3)
            ]
        )
        (terms * own.detach()[:, 0].exp()).sum().backward()
        found[weighted] = logits.grad.clone()
    torch.testing.assert_close(found[True], expected)
    assert (found[False] - expected).abs().max() > 0.01


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_scale_the_first_term_of_each_token_and_not_the_divergence(aggregation: str) -> None:
    """Per token or per answer; a weight of 2 everywhere doubles the part without the KL term; they have no gradient."""
    inputs = drawn(3, 4), drawn(3, 4, seed=1), drawn(3, 4, seed=2), torch.tensor([1.0, -2.0, 0.5])
    mask = torch.arange(4) < torch.tensor([[4], [1], [2]])

    def loss(weights: Tensor | None, beta: float = 0.1) -> float:
        given = {**CLIP, "beta": beta, "aggregation": aggregation}
        return float(grpo_loss(*inputs, mask, **given, weights=weights)[0])

    assert loss(torch.ones(3, 1)) == loss(None) == loss(torch.ones(3, 4))
    assert loss(torch.full((3, 1), 2.0)) == pytest.approx(loss(None) + loss(None, beta=0.0), abs=1e-6)
    assert loss(torch.zeros(3, 4)) == pytest.approx(loss(None) - loss(None, beta=0.0), abs=1e-6)
    filled = torch.ones(3, 4).masked_fill(~mask, NAN)
    assert loss(filled) == loss(None)
    weights = torch.ones(3, 4, requires_grad=True)
    logps = inputs[0].clone().requires_grad_()
    found, _ = grpo_loss(logps, *inputs[1:], mask, **CLIP, beta=0.1, aggregation=aggregation, weights=weights)
    found.backward()
    assert weights.grad is None and logps.grad is not None


def test_weights_worked_by_hand() -> None:
    """Ratios 1, advantages 1 and -1, weights 2 and 0.5 on two tokens, 1.5 on one: ((-2 - 0.5) / 2 + 1.5) / 2 = 0.125.

    The gradient in each token's log-prob is weight * -A / tokens of the answer / answers.
    """
    logps = drawn(2, 2).requires_grad_()
    weights, mask = torch.tensor([[2.0, 0.5], [1.5, 1.0]]), torch.tensor([[1, 1], [1, 0]])
    loss, _ = grpo_loss(
        logps, None, None, torch.tensor([1.0, -1.0]), mask, **CLIP, beta=0.0, aggregation="grpo", weights=weights
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.125)
    assert logps.grad is not None and floats(logps.grad) == [[-0.5, -0.125], [0.75, 0.0]]


# --- the loss by its properties ----------------------------------------------------------------------------------


def losses_of(mask: Tensor, **more: Any) -> dict[str, float]:
    shape = tuple(mask.shape)
    inputs = drawn(*shape), drawn(*shape, seed=1), drawn(*shape, seed=2), torch.linspace(-1, 1.5, shape[0]), mask
    return {name: float(grpo_loss(*inputs, **CLIP, beta=0.1, aggregation=name, **more)[0]) for name in AGGREGATIONS}


def test_aggregations_are_one_for_answers_of_one_length_and_differ_otherwise() -> None:
    even = losses_of(torch.ones(4, 6))
    assert list(even.values()) == pytest.approx([even["grpo"]] * 4)
    uneven = losses_of(torch.arange(6) < torch.tensor([[6], [1], [3], [2]]))
    assert uneven["bnpo"] == uneven["dapo"]
    assert len({round(uneven[name], 4) for name in ("grpo", "bnpo", "dr_grpo")}) == 3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_cut_into_parts_adds_up(aggregation: str) -> None:
    """Each part is told the answers and the tokens of the whole step."""
    inputs = drawn(4, 6), drawn(4, 6, seed=1), drawn(4, 6, seed=2), torch.tensor([1.0, -2.0, 0.5, 3.0])
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [2]])
    settings: dict[str, Any] = {**CLIP, "beta": 0.1, "aggregation": aggregation, "max_length": 6}
    whole = float(grpo_loss(*inputs, mask, **settings)[0])
    settings |= {"tokens": 12, "answers": 4}
    parts = [float(grpo_loss(*(t[rows] for t in (*inputs, mask)), **settings)[0]) for rows in ([0], [1, 2, 3])]
    assert sum(parts) == pytest.approx(whole)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("filling", [NAN, 1e30])
def test_what_stands_outside_the_mask_does_not_matter(aggregation: str, filling: float) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])
    found = []
    for value in (0.0, filling):
        inputs = [drawn(2, 4, seed=seed).masked_fill(mask == 0, value) for seed in range(3)]
        inputs[0].requires_grad_()
        loss, metrics = grpo_loss(*inputs, torch.tensor([1.0, -0.5]), mask, **CLIP, beta=0.1, aggregation=aggregation)
        loss.backward()
        assert inputs[0].grad is not None
        found.append((loss.item(), inputs[0].grad.tolist(), {name: float(x) for name, x in metrics.items()}))
    assert found[0] == found[1]


def test_an_answer_without_tokens_counts_as_nothing_to_learn() -> None:
    mask = torch.tensor([[1, 1], [0, 0]])
    found = losses_of(mask)
    assert all(math.isfinite(value) for value in found.values())
    assert found["grpo"] == pytest.approx(found["bnpo"] / 2)


def test_log_ratios_too_large_for_exp_stay_finite() -> None:
    """200 nats above the old and below the reference policy: exp overflows float32 beyond 88."""
    logps = torch.tensor([[-1.0, -201.0]], requires_grad=True)
    old, ref = torch.tensor([[-201.0, -201.0]]), torch.tensor([[-1.0, -1.0]])
    for advantage in (1.0, -1.0, 0.0):
        logps.grad = None
        loss, metrics = grpo_loss(
            logps, old, ref, torch.tensor([advantage]), torch.ones(1, 2), **CLIP, beta=0.1, aggregation="grpo"
        )
        loss.backward()
        assert loss.isfinite() and metrics["kl"].isfinite() and logps.grad is not None and logps.grad.isfinite().all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_agrees_with_central_differences(aggregation: str) -> None:
    mask, advantages = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([1.3, -0.8])
    noise = torch.tensor([[0.4, -0.3, 0.05], [-0.5, 0.1, 0.0]], dtype=torch.float64)
    point = drawn(2, 3).double().requires_grad_()
    old, ref = point.detach() - noise, point.detach() + 0.3

    def loss(at: Tensor) -> Tensor:
        return grpo_loss(at, old, ref, advantages, mask, **CLIP, beta=0.2, aggregation=aggregation, max_length=9)[0]

    loss(point).backward()
    steps = 1e-5 * torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)
    with torch.no_grad():
        slopes = [float((loss(point + step) - loss(point - step)) / 2e-5) for step in steps]
    assert point.grad is not None
    assert point.grad.flatten().tolist() == pytest.approx(slopes, abs=1e-7)


def test_only_the_policys_log_probs_have_a_gradient_and_metrics_none() -> None:
    tensors = [drawn(2, 3, seed=seed).requires_grad_() for seed in range(3)]
    advantages = torch.tensor([1.0, -1.0], requires_grad=True)
    loss, metrics = grpo_loss(*tensors, advantages, torch.ones(2, 3), **CLIP, beta=0.1, aggregation="grpo")
    loss.backward()
    assert [tensor.grad is not None for tensor in (*tensors, advantages)] == [True, False, False, False]
    assert not any(value.requires_grad for value in metrics.values())


def test_bfloat16_inputs_give_float32_losses() -> None:
    narrow = [drawn(2, 3, seed=seed).bfloat16() for seed in range(3)]
    given = {**CLIP, "beta": 0.1, "aggregation": "grpo"}
    loss, metrics = grpo_loss(*narrow, torch.tensor([1.0, -1.0]), torch.ones(2, 3), **given)
    exact, _ = grpo_loss(*(t.double() for t in narrow), torch.tensor([1.0, -1.0]), torch.ones(2, 3), **given)
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in metrics.values())
    assert exact.dtype == torch.float64 and float(loss) == pytest.approx(float(exact), abs=1e-6)


# --- settings ----------------------------------------------------------------------------------------------------


def test_a_kl_term_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta=0\.04 needs log-probs of a reference policy"):
        grpo_loss(torch.zeros(1, 1), None, None, torch.zeros(1), torch.ones(1, 1), beta=0.04)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aggregation", "mean"), ("scale", "std"), ("importance", "answer"), ("surrogate", "ppo"), ("clip_low", 1.5),
        ("clip_low", 0), ("clip_high", NAN), ("eps", math.inf), ("beta", -0.1), ("overlong", 1.1),
        ("num_iterations", 0), ("minibatches", 1.5), ("refills", -1), ("truncated_importance", 0.5),
        ("sapo_temperature_neg", 0.0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        grpo(**{key: value})


def test_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    loss = grpo(clip_low=1, overlong=1, refills=0, truncated_importance=1, num_iterations=3, minibatches=2)
    assert loss.steps_a_round == 6 and not loss.needs_reference and grpo(beta=0.04).needs_reference
    assert grpo(truncated_importance=None).truncated_importance is None


# --- overlong answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "finished", "expected"),
    [
        (0, True, 0.0),
        (16384, True, 0.0),
        (16385, True, -1 / 4096),
        (18432, True, -0.5),
        (20480, True, -1.0),
        (20480, False, -1.0),
        (30000, True, -1.0),
    ],
)
def test_the_punishment_of_length_is_that_of_dapo(length: int, finished: bool, expected: float) -> None:
    """Eq. 13 with the paper's numbers: 20,480 tokens allowed, the last 4,096 of them cost."""
    assert grpo(overlong=0.2).length_penalty(length, 20480, finished) == pytest.approx(expected, abs=1e-9)


def test_without_it_length_costs_nothing_even_if_cut_off() -> None:
    assert grpo().length_penalty(20480, 20480, False) == 0.0
    assert grpo(overlong=1.0).length_penalty(5, 10, True) == -0.5
