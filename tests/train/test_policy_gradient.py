"""GRPO: advantages of groups and the clipped loss, worked by hand and by properties. TRL's numbers: test_trl_parity."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.plain import grpo, grpo_loss
from ttpa.errors import ConfigError
from ttpa.train.policy_gradient import decoupled_advantages, group_advantages

AGGREGATIONS, SCALES = ("grpo", "bnpo", "dr_grpo", "dapo"), ("group", "batch", "none")
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
NAN = math.nan


def floats(tensor: Tensor) -> list[Any]:
    return [floats(row) for row in tensor] if tensor.ndim > 1 else [pytest.approx(float(x), abs=1e-6) for x in tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return -2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def clipped(metrics: dict[str, Tensor]) -> list[float]:
    return [float(metrics[f"clip_ratio/{which}_mean"]) for which in ("low", "high", "region")]


def test_advantages_worked_by_hand() -> None:
    """Variances of the groups: (1 + 0 + 1) / 2 = 1 and (1 + 1 + 4) / 2 = 3; of all six, 32 / 5, deviation 2.529822.

    Rewards 0 and 2 with eps 0.5: deviation sqrt(2) = 1.414214; the advantage is 1 / 1.914214 = 0.522408.
    """
    rewards_BG = torch.tensor([[0.0, 1.0, 2.0], [4.0, 4.0, 7.0]])
    grouped_BG, metrics = group_advantages(rewards_BG, scale="group", eps=0.0)
    assert floats(grouped_BG) == [[-1.0, 0.0, 1.0], [-0.57735, -0.57735, 1.154701]]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"reward": 3.0, "reward_std": 2.529822, "frac_reward_zero_std": 0.0}
    )
    plain = [[-1.0, 0.0, 1.0], [-1.0, -1.0, 2.0]]
    assert group_advantages(rewards_BG, scale="none", eps=0.0)[0].tolist() == plain
    assert floats(group_advantages(rewards_BG, scale="batch", eps=0.0)[0]) == floats(torch.tensor(plain) / 2.529822)
    with_eps_BG, _ = group_advantages(torch.tensor([[0.0, 2.0]]).bfloat16(), scale="group", eps=0.5)
    assert floats(with_eps_BG) == [[-0.522408, 0.522408]] and with_eps_BG.dtype == torch.float32


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [[0.1] * 7, [1e6] * 7, [3.0], [NAN, 4.0, NAN], [NAN, NAN]], ids=str)
def test_a_group_without_a_difference_has_no_advantage_at_all(scale: str, group: list[float]) -> None:
    """The float32 mean of seven times 0.1 is not 0.1; over a deviation of rounding noise it would be an advantage."""
    rewards_BG = torch.tensor([group, [float(k) for k in range(len(group))]])
    advantages_BG, metrics = group_advantages(rewards_BG, scale=scale, eps=1e-6)
    assert advantages_BG[0].tolist() == [0.0] * len(group)
    assert (advantages_BG[1].abs().max() > 0) == (len(group) > 1)
    assert float(metrics["frac_reward_zero_std"]) == (0.5 if len(group) > 1 else 1.0)


@pytest.mark.parametrize("missing", [NAN, -math.inf])
@pytest.mark.parametrize("scale", SCALES)
def test_answers_without_reward_change_nothing_for_the_others(scale: str, missing: float) -> None:
    """The others are as if the answer were not in the group; the answer itself has advantage 0."""
    known_BG = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.5, 2.0]])
    holed_BG = torch.cat([known_BG[:, :1], torch.full((2, 1), missing), known_BG[:, 1:]], dim=1)
    expected_BG, expected = group_advantages(known_BG, scale=scale, eps=1e-4)
    found_BG, metrics = group_advantages(holed_BG, scale=scale, eps=1e-4)
    assert found_BG[:, 1].tolist() == [0.0, 0.0] and floats(found_BG[:, [0, 2, 3]]) == floats(expected_BG)
    assert list(map(float, metrics.values())) == pytest.approx(list(map(float, expected.values())))


def test_decoupled_advantages_worked_by_hand() -> None:
    """First reward: 0.5 / (sqrt(0.5) + 0.5) = 0.414214, and no difference: 0. Second: 10 / (sqrt(200) + 0.5) = 0.682960
    and 1 / (sqrt(2) + 0.5) = 0.522408. Sums 0.414214 + 2 * 0.682960 = 1.780134 and 1.044816 on both sides of 0; their
    deviation is sqrt(2 (1.780134^2 + 1.044816^2) / 3) = 1.685332. Rewards: 20, 61, 12, 16.
    """
    rewards_BGK = torch.tensor([[[0.0, 10.0], [1.0, 30.0]], [[2.0, 5.0], [2.0, 7.0]]])
    found_BG, metrics = decoupled_advantages(rewards_BGK, torch.tensor([1.0, 2.0]), eps=0.5)
    assert floats(found_BG) == [[-0.814583, 0.814583], [-0.478104, 0.478104]]
    assert float(metrics["reward"]) == 27.25 and float(metrics["frac_reward_zero_std"]) == 0.0


def test_decoupled_advantages_by_their_properties() -> None:
    """The scale of a reward does not matter; no difference or a missing reward gives 0."""
    rewards_BGK, weights = drawn(3, 4, 2), torch.tensor([0.3, 0.7])
    plain_BG, _ = decoupled_advantages(rewards_BGK, weights, eps=0.0)
    larger_BG, _ = decoupled_advantages(rewards_BGK * torch.tensor([1000.0, 1.0]) + 5, weights, eps=0.0)
    torch.testing.assert_close(plain_BG, larger_BG, rtol=1e-3, atol=1e-3)
    assert decoupled_advantages(torch.full((1, 7, 2), 0.1), weights, eps=1e-6)[0].tolist() == [[0.0] * 7]
    rewards_BGK[0, 1, 0] = NAN
    holed_BG, _ = decoupled_advantages(rewards_BGK, weights, eps=1e-4)
    assert holed_BG.isfinite().all() and holed_BG[0, 1] == 0 and (holed_BG[1] != 0).all()


def test_the_ratio_of_tokens_worked_by_hand() -> None:
    """Clipped to [0.8, 1.28]: first answer -1.28 (clipped above) and -0.5; second -min(-0.5, -0.8) = 0.8 (below).

    grpo (-0.89 + 0.8) / 2 = -0.045; bnpo and dapo (-1.78 + 0.8) / 3; dr_grpo -0.98 / (2 * 2).
    """
    ratios = torch.tensor([[1.5, 0.5], [0.5, 9.0]])
    mask, advantages, old = torch.tensor([[1, 1], [1, 0]]), torch.tensor([1.0, -1.0]), drawn(2, 2)

    def loss(aggregation: str, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return grpo_loss(old + ratios.log(), old, None, advantages, mask, **CLIP, aggregation=aggregation, **more)

    found = {name: float(loss(name)[0]) for name in AGGREGATIONS}
    assert found == pytest.approx({"grpo": -0.045, "bnpo": -0.98 / 3, "dr_grpo": -0.245, "dapo": -0.98 / 3}, abs=1e-6)
    assert float(loss("dr_grpo", max_length=10)[0]) == pytest.approx(-0.049)
    assert float(loss("dapo", tokens=7)[0]) == pytest.approx(-0.14)
    assert clipped(loss("grpo")[1]) == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_the_ratio_of_an_answer_worked_by_hand() -> None:
    """GSPO, clipped to [0.8, 1.28]. First answer: geometric mean 1.2, loss -1.2 at both tokens. Second: 0.8, clipped
    below. Third: -0.64, clipped above. Over the tokens (-2.4 + 0.8 - 1.28) / 5 = -2.88 / 5.

    The gradient in each token of the first answer is -1.2 / 2 / 3 = -0.2.
    """
    ratios = torch.tensor([[1.5, 0.96], [0.5, 9.0], [2.0, 2.0]])
    mask, advantages, old = torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.tensor([1.0, -1.0, 0.5]), drawn(3, 2)
    logps = (old + ratios.log()).requires_grad_()
    loss, metrics = grpo_loss(logps, old, None, advantages, mask, **CLIP, importance="sequence", aggregation="grpo")
    loss.backward()
    assert loss.item() == pytest.approx(-1.04 / 3, abs=1e-6)
    assert logps.grad is not None and floats(logps.grad) == [[-0.2, -0.2], [0.0, 0.0], [0.0, 0.0]]
    assert clipped(metrics) == pytest.approx([0.2, 0.4, 0.6])
    by_token, _ = grpo_loss(logps, old, None, advantages, mask, **CLIP, importance="sequence", aggregation="dapo")
    assert by_token.item() == pytest.approx(-2.88 / 5, abs=1e-6)


@pytest.mark.parametrize(
    ("weighted", "value", "slope"), [(False, 0.901388, -2.0), (True, 1.802775, -2.197225)], ids=["plain", "weighted"]
)
def test_the_kl_term_worked_by_hand(weighted: bool, value: float, slope: float) -> None:
    """Ratio w = 2, ref - logp = log 3: k3 = 3 - log 3 - 1 = 0.901388; times w, 1.802775; times beta 0.1.

    In the policy's log-prob, d(w k) = w k + w (1 - 3) = 2 (0.901388 - 2) = -2.197225; the plain term has 1 - 3 = -2.
    The divergence that is told is the plain one. Where the policy is the reference it is 0 and flat.
    """
    logps = torch.tensor([[-1.5]], requires_grad=True)
    for times, expected in ((3, (value, slope, 0.901388)), (1, (0.0, 0.0, 0.0))):
        old, ref = logps.detach() - math.log(2), logps.detach() + math.log(times)
        given = (logps, old, ref, torch.zeros(1), torch.ones(1, 1))
        loss, metrics = grpo_loss(*given, **CLIP, beta=0.1, kl_weighted=weighted)
        (gradient,) = torch.autograd.grad(loss, logps)
        found = (loss.item() / 0.1, gradient.item() / 0.1, float(metrics["kl"]))
        assert found == pytest.approx(expected, abs=1e-5)


def test_weights_worked_by_hand() -> None:
    """Ratios 1, advantages 1 and -1, weights 2 and 0.5 on two tokens, 1.5 on one: ((-2 - 0.5) / 2 + 1.5) / 2 = 0.125.

    The gradient in each token's log-prob is weight * -A / tokens of the answer / answers. The divergence is not
    weighed: ref - logp = log 2 adds beta (1 - log 2) = 0.306853 beta.
    """
    logps = drawn(2, 2).requires_grad_()
    ref = logps.detach() + math.log(2)
    weights, mask = torch.tensor([[2.0, 0.5], [1.5, NAN]], requires_grad=True), torch.tensor([[1, 1], [1, 0]])
    for beta in (0.0, 0.4):
        logps.grad = None
        loss, _ = grpo_loss(logps, None, ref, torch.tensor([1.0, -1.0]), mask, **CLIP, beta=beta, weights=weights)
        loss.backward()
        assert loss.item() == pytest.approx(0.125 + beta * 0.306853, abs=1e-6)
        assert logps.grad is not None and weights.grad is None
        expected = torch.tensor([[-0.5, -0.125], [0.75, 0.0]]) - beta * torch.tensor([[0.25, 0.25], [0.5, 0.0]])
        assert floats(logps.grad) == floats(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.27, 1.0, True), (1.29, 1.0, False), (1.29, -1.0, True),
        (0.81, -1.0, True), (0.79, -1.0, False), (0.79, 1.0, True),
    ],
)  # fmt: skip
def test_clipping_stops_what_goes_too_far_and_never_the_way_back(ratio: float, advantage: float, moves: bool) -> None:
    old = torch.tensor([[-1.0]])
    logps = (old + math.log(ratio)).requires_grad_()
    loss, metrics = grpo_loss(logps, old, None, torch.tensor([advantage]), torch.ones(1, 1), **CLIP)
    loss.backward()
    assert logps.grad is not None
    assert logps.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)
    assert clipped(metrics) == [not moves and advantage < 0, not moves and advantage > 0, not moves]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_cut_into_parts_adds_up(aggregation: str) -> None:
    """Each part is told the answers and the tokens of the whole step."""
    uneven = torch.arange(6) < torch.tensor([[6], [1], [3], [2]])
    inputs = drawn(4, 6), drawn(4, 6, seed=1), drawn(4, 6, seed=2), torch.tensor([1.0, -2.0, 0.5, 3.0])
    given: dict[str, Any] = {**CLIP, "beta": 0.1, "aggregation": aggregation, "max_length": 6}
    whole = float(grpo_loss(*inputs, uneven, **given)[0])
    given |= {"tokens": 12, "answers": 4}
    parts = [float(grpo_loss(*(t[rows] for t in (*inputs, uneven)), **given)[0]) for rows in ([0], [1, 2, 3])]
    assert sum(parts) == pytest.approx(whole)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("filling", [NAN, 1e30])
def test_what_stands_outside_the_mask_does_not_matter(aggregation: str, filling: float) -> None:
    """An answer without tokens included."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
    found = []
    for value in (0.0, filling):
        inputs = [drawn(3, 4, seed=seed).masked_fill(mask == 0, value) for seed in range(3)]
        inputs[0].requires_grad_()
        given = {**CLIP, "beta": 0.1, "aggregation": aggregation}
        loss, metrics = grpo_loss(*inputs, torch.tensor([1.0, -0.5, 2.0]), mask, **given)
        loss.backward()
        assert inputs[0].grad is not None and loss.isfinite()
        found.append((loss.item(), inputs[0].grad.tolist(), {name: float(x) for name, x in metrics.items()}))
    assert found[0] == found[1]


def test_log_ratios_too_large_for_exp_stay_finite() -> None:
    """200 nats above the old and below the reference policy: exp overflows float32 beyond 88."""
    logps, old, ref = (
        torch.tensor([row], requires_grad=True) for row in ([-1.0, -201.0], [-201.0, -201.0], [-1.0, -1.0])
    )
    for advantage in (1.0, -1.0, 0.0):
        logps.grad = None
        loss, metrics = grpo_loss(logps, old, ref, torch.tensor([advantage]), torch.ones(1, 2), **CLIP, beta=0.1)
        loss.backward()
        assert loss.isfinite() and metrics["kl"].isfinite() and logps.grad is not None and logps.grad.isfinite().all()
        assert old.grad is None and ref.grad is None and not any(value.requires_grad for value in metrics.values())


def test_bfloat16_inputs_give_float32_losses() -> None:
    narrow = [drawn(2, 3, seed=seed).bfloat16() for seed in range(3)]
    loss, metrics = grpo_loss(*narrow, torch.tensor([1.0, -1.0]), torch.ones(2, 3), **CLIP, beta=0.1)
    exact, _ = grpo_loss(*(t.double() for t in narrow), torch.tensor([1.0, -1.0]), torch.ones(2, 3), **CLIP, beta=0.1)
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in metrics.values())
    assert exact.dtype == torch.float64 and float(loss) == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aggregation", "mean"), ("scale", "std"), ("importance", "answer"), ("surrogate", "ppo"), ("clip_low", 1.5),
        ("clip_high", NAN), ("beta", -0.1), ("overlong", 1.1), ("minibatches", 1.5), ("truncated_importance", 0.5),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        grpo(**{key: value})


@pytest.mark.parametrize(
    ("length", "finished", "expected"),
    [(0, True, 0.0), (16384, True, 0.0), (18432, True, -0.5), (20480, True, -1.0), (20480, False, -1.0)],
)
def test_the_punishment_of_length_is_that_of_dapo(length: int, finished: bool, expected: float) -> None:
    """Eq. 13 with the paper's numbers: 20,480 tokens allowed, the last 4,096 of them cost. Off, nothing costs."""
    assert grpo(overlong=0.2).length_penalty(length, 20480, finished) == pytest.approx(expected, abs=1e-9)
    assert grpo().length_penalty(length, 20480, finished) == 0.0
