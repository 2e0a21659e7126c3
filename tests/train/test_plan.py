"""Plans: which rows make up which step, decided before training; learning-rate schedules; optimisers; settings
refused.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

from tests.train import plain
from ttpa.errors import ConfigError
from ttpa.policy.tree import TokenRow
from ttpa.train import plan as plans
from ttpa.train.module import build_optimizer
from ttpa.train.plan import Example, Plan

BANDS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Demonstrations:
    """Tokens of each row and of its answer, band and unit."""

    lengths: Sequence[int]
    answers: Sequence[int]
    bands: Sequence[str]
    units: Sequence[int]


def numbered(plan: Plan) -> Plan:
    """The same plan of row numbers (the first token of each row)."""
    steps = tuple(tuple(example.rows[0].prompt[0] for example in step) for step in plan.steps)
    return Plan(steps, plan.boundaries)  # type: ignore[arg-type]


def plan_demonstrations(
    data: Demonstrations, seed: int = 0, order: str = "shuffled", replay: float = 0.0, **fields: Any
) -> Plan:
    recipe = plain.warmup_recipe(**{"batch_tokens": 100, "epochs": None if "steps" in fields else 1.0, **fields})
    examples = [
        Example((TokenRow([number] + [0] * (length - answer - 1), [1] * answer),), 1.0, unit)
        for number, (length, answer, unit) in enumerate(zip(data.lengths, data.answers, data.units, strict=True))
    ]
    return numbered(plans.plan_warmup(examples, data.bands, plain.warmup(order=order, replay=replay), recipe, seed))


def plan_warmup(lengths: Sequence[int], bands: Sequence[str] | None = None, seed: int = 0, **how: Any) -> Plan:
    """Of rows that share nothing: each is a unit of its own."""
    answers, count = [min(3, length - 1) for length in lengths], len(lengths)
    return plan_demonstrations(Demonstrations(lengths, answers, bands or [""] * count, range(count)), seed, **how)


def plan_alignment(count: int, seed: int = 0, **fields: Any) -> Plan:
    examples = [Example((TokenRow([number], [1]),), 1.0, number) for number in range(count)]
    recipe = plain.align_recipe(**{"epochs": None if "steps" in fields else 1.0, **fields})
    return numbered(plans.plan_alignment(examples, recipe, seed))


def uses(plan: Plan, first: int = 0, last: int | None = None) -> Counter[int]:
    return Counter(row for step in plan.steps[first:last] for row in step)


LENGTHS = [random.Random(0).randint(5, 60) + i % 3 for i in range(60)]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: plan_warmup(LENGTHS, seed=seed),
        lambda seed: plan_warmup(LENGTHS, [BANDS[i % 3] for i in range(60)], seed, order="bands", replay=0.2),
        lambda seed: plan_alignment(30, seed),
    ],
    ids=["shuffled", "bands", "alignment"],
)
def test_a_plan_is_decided_by_its_seed(make: Callable[[int], Plan]) -> None:
    assert make(1) == make(1) != make(2)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), budget=st.integers(1, 300), seed=st.integers(0, 9)
)
def test_warmup_keeps_the_token_budget_and_has_each_row_once_a_pass(lengths: list[int], budget: int, seed: int) -> None:
    """A row longer than the budget is a step of its own."""
    plan = plan_warmup(lengths, seed=seed, batch_tokens=budget)
    assert uses(plan) == Counter(range(len(lengths))) and plan.boundaries == (len(plan.steps),)
    assert all(len(step) == 1 or max(lengths[row] for row in step) * len(step) <= budget for step in plan.steps)


def test_warmup_counts_epochs_in_passes() -> None:
    """Another pass has another order, and batches do not come in order of length."""
    one, half, two = (plan_warmup(LENGTHS, epochs=epochs) for epochs in (1.0, 0.5, 2.0))
    assert len(half.steps) == math.ceil(len(one.steps) / 2) and set(uses(half).values()) == {1}
    middle = len(two.steps) // 2
    assert uses(two, 0, middle) == uses(two, middle) == Counter(range(60)) and two.steps[:middle] != two.steps[middle:]
    longest = [max(LENGTHS[row] for row in step) for step in one.steps]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.parametrize("steps", [1, 100])
def test_warmup_of_so_many_steps_has_so_many(steps: int) -> None:
    plan = plan_warmup(LENGTHS, steps=steps)
    assert len(plan.steps) == steps and plan.boundaries == (steps,)
    counts = [uses(plan)[row] for row in range(60)]
    assert max(counts) - min(counts) <= 1


def test_bands_come_in_order_with_a_share_of_earlier_rows() -> None:
    bands = [BANDS[i // 20] for i in range(60)]
    plan = plan_warmup([10] * 60, bands, order="bands", replay=0.25)
    first, second, third = plan.boundaries
    assert third == len(plan.steps)
    easy, medium, hard = (uses(plan, 0, first), uses(plan, first, second), uses(plan, second, third))
    assert easy == Counter(range(20)) and set(medium.values()) == set(hard.values()) == {1}
    assert Counter(bands[row] for row in medium) == {"easy": 5, "medium": 20}
    assert Counter("earlier" if bands[row] != "hard" else "hard" for row in hard) == {"earlier": 5, "hard": 20}
    everything = plan_warmup([10] * 60, bands, order="bands", replay=5.0)
    assert uses(everything, everything.boundaries[1]) == Counter(range(60)), "no more than there is"


def test_an_empty_band_has_no_phase_and_an_unknown_one_is_hard() -> None:
    plan = plan_warmup([10] * 5, ["hard", "easy", "", "other", "easy"], order="bands")
    assert len(plan.boundaries) == 2
    assert set(uses(plan, 0, plan.boundaries[0])) == {1, 4} and set(uses(plan, plan.boundaries[0])) == {0, 2, 3}


@pytest.mark.parametrize(
    ("lengths", "steps", "boundaries"),
    [
        # Tokens 300, 100 and 100 of 500; thirds of 10 and of 11 steps.
        (([30] * 10, [10] * 10, [20] * 5), 20, (12, 16, 20)),
        (([10] * 10,) * 3, 10, (3, 7, 10)),
        (([10] * 10,) * 3, 11, (4, 7, 11)),
    ],
)
def test_steps_are_divided_by_the_tokens_of_the_bands(
    lengths: tuple[list[int], ...], steps: int, boundaries: tuple[int, ...]
) -> None:
    bands = [band for band, rows in zip(BANDS, lengths, strict=True) for _ in rows]
    assert (
        plan_warmup([n for rows in lengths for n in rows], bands, order="bands", steps=steps).boundaries == boundaries
    )


@st.composite
def dialogues(draw: st.DrawFn) -> Demonstrations:
    """Rows of a few units, in any order."""
    units = draw(st.lists(st.integers(0, 6), min_size=1, max_size=30))
    lengths = [draw(st.integers(1, 60)) for _ in units]
    answers = [draw(st.integers(0, length - 1)) for length in lengths]
    return Demonstrations(lengths, answers, [draw(st.sampled_from(BANDS)) for _ in units], units)


@settings(deadline=None, max_examples=50)
@given(data=dialogues(), budget=st.integers(1, 300), seed=st.integers(0, 9))
def test_turns_of_a_dialogue_stay_in_one_step(data: Demonstrations, budget: int, seed: int) -> None:
    plan = plan_demonstrations(data, seed, batch_tokens=budget)
    assert uses(plan) == Counter(range(len(data.units)))
    homes = [{data.units[row] for row in step} for step in plan.steps]
    assert sum(map(len, homes)) == len(set(data.units))

    def least(rows: Sequence[int]) -> int:
        """Tokens when the longest row is whole and the others add their answers; of equally long ones the best."""
        longest = max(data.lengths[row] for row in rows)
        own = max(data.answers[row] for row in rows if data.lengths[row] == longest)
        return longest + sum(data.answers[row] for row in rows) - own

    for step, home in zip(plan.steps, homes, strict=True):
        costs = [least([row for row in step if data.units[row] == unit]) for unit in home]
        assert len(home) == 1 or max(costs) * len(home) <= budget


def test_shared_history_is_not_counted_twice() -> None:
    """Four turns of 70, 80, 90 and 100 tokens with answers of 5 cost 100 + 3 * 5: two dialogues fit in 230."""
    data = Demonstrations([70, 80, 90, 100] * 2, [5] * 8, [""] * 8, [0] * 4 + [1] * 4)
    assert [len(plan_demonstrations(data, batch_tokens=budget).steps) for budget in (230, 229)] == [1, 2]


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 30), size=st.integers(1, 12), steps=st.integers(1, 40), seed=st.integers(0, 5))
def test_alignment_steps_are_full_and_rows_come_equally_often(count: int, size: int, steps: int, seed: int) -> None:
    plan = plan_alignment(count, seed, batch_size=size, steps=steps)
    assert len(plan.steps) == steps and plan.boundaries == (steps,)
    for step in plan.steps:
        assert len(step) == len(set(step)) == min(size, count) and set(step) <= set(range(count))
    drawn = [row for step in plan.steps for row in step]
    for start in range(0, len(drawn) - count + 1, count):
        assert Counter(drawn[start : start + count]) == Counter(range(count))


@pytest.mark.parametrize(
    ("count", "size", "epochs", "steps"),
    [(12, 4, 1.0, 3), (12, 4, 2.5, 8), (5, 3, 2.0, 4), (2, 8, 3.0, 3), (100, 64, 0.1, 1)],
)
def test_alignment_epochs_in_steps(count: int, size: int, epochs: float, steps: int) -> None:
    """ceil(rows * epochs / batch), batch no larger than the rows: 12 * 2.5 / 4 = 7.5 is 8 steps."""
    assert len(plan_alignment(count, batch_size=size, epochs=epochs).steps) == steps


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Warm-up 1/2, 1, then (8 - i) / 8 for i = 0 .. 7.
        ({"warmup_steps": 2}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447]),  # (1 + cos(pi i / 4)) / 2
        ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"final_fraction": 0.2}, [1, 0.8, 0.6, 0.4]),  # 0.2 + 0.8 (1 - i/4)
        ({"warmup_steps": 4}, [0.25, 0.5]),  # shorter than its warm-up
    ],
    ids=str,
)
def test_schedules_worked_by_hand(fields: dict[str, Any], expected: list[float]) -> None:
    """Each of several phases has a schedule of its own; the last one goes on."""
    schedule, end = plain.align_recipe(**fields), len(expected)
    assert [schedule.factor(step, [end]) for step in range(end)] == pytest.approx(expected, abs=1e-6)
    later = [schedule.factor(step, [3, 3 + end, 7 + end]) for step in range(3, 3 + end)]
    assert later == pytest.approx(expected, abs=1e-6)
    assert schedule.factor(7 + end, [3, 3 + end, 7 + end]) == schedule.factor(4, [4])


@pytest.mark.parametrize(("restarts", "warmup"), [(1, 0), (3, 4)])
def test_cosine_with_restarts_is_that_of_transformers(restarts: int, warmup: int) -> None:
    """After the warm-up, whose first step is above zero here."""
    settings = plain.align_recipe(schedule="cosine_with_restarts", restarts=restarts, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, warmup, 25, num_cycles=restarts)
    expected = [theirs.lr_lambdas[0](step) for step in range(warmup, 26)]
    assert [settings.factor(step, [25]) for step in range(warmup, 26)] == pytest.approx(expected, abs=1e-12)


def test_eight_bit_adamw_without_a_gpu_is_adamw_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    named = list(plain.small_policy().model.named_parameters())
    with caplog.at_level(logging.WARNING, logger="ttpa"):
        found = build_optimizer(named, plain.align_recipe(optimizer="adamw_8bit"))
    expected = build_optimizer(named, plain.align_recipe())
    assert type(found) is torch.optim.AdamW and found.state_dict() == expected.state_dict()
    (line,) = caplog.messages
    assert line.startswith("optimizer=adamw_8bit: ")


@pytest.mark.parametrize(
    ("make", "fields", "problem"),
    [
        (plain.align_recipe, {"optimizer": "adam"}, "optimizer='adam'"), (plain.align_recipe, {"lr": 0.0}, "lr=0.0"),
        (plain.align_recipe, {"schedule": "step"}, "schedule='step'"), (plain.align_recipe, {"epochs": -1.0}, "epochs"),
        (plain.align_recipe, {"batch_size": 0}, "batch_size=0"), (plain.align_recipe, {"betas": [0.9]}, "betas="),
        (plain.align_recipe, {"betas": [0.9, 1.0]}, "betas.1=1.0"),
        (plain.align_recipe, {"steps": 5, "epochs": 1.0}, "steps=5: exactly one of steps and epochs"),
        (plain.align_recipe, {"steps": None, "epochs": None}, "steps=None: exactly one of steps and epochs"),
        (plain.warmup_recipe, {"prompt_weight": 1.5}, "prompt_weight"), (plain.warmup, {"replay": -0.1}, "replay=-0.1"),
        (plain.warmup, {"order": "random"}, "order='random'"), (plain.trainer, {"threads": -1}, "threads=-1"),
        (plain.trainer, {"forward": "flat"}, "forward='flat'"),
        (plain.trainer, {"answers_every_steps": 0}, "answers_every_steps=0"),
        (plain.trainer, {"options": {"precision": 3}}, r"options\.precision=3: decides numbers"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(make: Callable[..., Any], fields: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{problem}"):
        make(**fields)


def test_the_trainer_gets_its_options() -> None:
    found = plain.trainer(options={"benchmark": False}, log_every_n_steps=7).lightning(max_steps=2, logger=False)
    assert (found.max_steps, found.log_every_n_steps, found.num_devices) == (2, 7, 1)
