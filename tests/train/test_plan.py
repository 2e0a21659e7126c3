"""Plans: which rows make up which step, decided before training; and the learning-rate schedule of each phase."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train import plain
from ttpa.errors import ConfigError
from ttpa.policy.tree import TokenRow
from ttpa.train import plan as plans
from ttpa.train.plan import Example, Plan
from ttpa.train.settings import AlignRecipe, Warmup, WarmupRecipe

BANDS = ("easy", "medium", "hard")


def warmup(order: str = "shuffled", replay: float = 0.0, **fields: Any) -> tuple[Warmup, WarmupRecipe]:
    length = {} if "steps" in fields else {"epochs": 1.0}
    return plain.warmup(order=order, replay=replay), plain.warmup_recipe(**{"batch_tokens": 100, **length, **fields})


def alignment(**fields: Any) -> AlignRecipe:
    return plain.align_recipe(**{**({} if "steps" in fields else {"epochs": 1.0}), **fields})


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


def plan_demonstrations(data: Demonstrations, how: Warmup, recipe: WarmupRecipe, seed: int) -> Plan:
    rows = zip(data.lengths, data.answers, data.units, strict=True)
    examples = [
        Example((TokenRow([number] + [0] * (length - answer - 1), [1] * answer),), 1.0, unit)
        for number, (length, answer, unit) in enumerate(rows)
    ]
    return numbered(plans.plan_warmup(examples, data.bands, how, recipe, seed))


def plan_warmup(lengths: Sequence[int], bands: Sequence[str], how: tuple[Warmup, WarmupRecipe], seed: int) -> Plan:
    """Of rows that share nothing: each is a unit of its own."""
    answers = [min(3, length - 1) for length in lengths]
    return plan_demonstrations(Demonstrations(lengths, answers, bands, range(len(lengths))), *how, seed)


def plan_alignment(count: int, recipe: AlignRecipe, seed: int) -> Plan:
    examples = [Example((TokenRow([number], [1]),), 1.0, number) for number in range(count)]
    return numbered(plans.plan_alignment(examples, recipe, seed))


def lengths_of(count: int, seed: int = 0) -> list[int]:
    return [random.Random(seed).randint(5, 60) + i % 3 for i in range(count)]


def uses(plan: Plan, first: int = 0, last: int | None = None) -> Counter[int]:
    return Counter(row for step in plan.steps[first:last] for row in step)


def padded(step: tuple[int, ...], lengths: list[int]) -> int:
    return max(lengths[row] for row in step) * len(step)


# --- warm-up -----------------------------------------------------------------------------------------------------


def test_warmup_is_decided_by_its_seed() -> None:
    lengths, bands = lengths_of(60), [BANDS[i % 3] for i in range(60)]
    for order in ("shuffled", "bands"):
        first = plan_warmup(lengths, bands, warmup(order=order, replay=0.2), 1)
        assert first == plan_warmup(lengths, bands, warmup(order=order, replay=0.2), 1)
        assert first != plan_warmup(lengths, bands, warmup(order=order, replay=0.2), 2)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), budget=st.integers(1, 300), seed=st.integers(0, 9)
)
def test_warmup_keeps_the_token_budget_and_has_each_row_once_a_pass(lengths: list[int], budget: int, seed: int) -> None:
    """A row longer than the budget is a step of its own."""
    plan = plan_warmup(lengths, [""] * len(lengths), warmup(batch_tokens=budget), seed)
    assert uses(plan) == Counter(range(len(lengths)))
    assert all(len(step) == 1 or padded(step, lengths) <= budget for step in plan.steps)
    assert plan.boundaries == (len(plan.steps),)


def test_warmup_counts_epochs_in_passes() -> None:
    lengths = lengths_of(50)
    one = len(plan_warmup(lengths, [""] * 50, warmup(), 0).steps)
    three = plan_warmup(lengths, [""] * 50, warmup(epochs=3.0), 0)
    assert uses(three) == Counter({row: 3 for row in range(50)})
    half = plan_warmup(lengths, [""] * 50, warmup(epochs=0.5), 0)
    assert len(half.steps) == math.ceil(one / 2) and set(uses(half).values()) == {1}


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_warmup_of_so_many_steps_has_so_many(steps: int) -> None:
    lengths = lengths_of(50)
    plan = plan_warmup(lengths, [""] * 50, warmup(steps=steps, epochs=None), 0)
    assert len(plan.steps) == steps and plan.boundaries == (steps,)
    counts = [uses(plan)[row] for row in range(50)]
    assert max(counts) - min(counts) <= 1


def test_a_second_pass_has_another_order() -> None:
    lengths = [10] * 40
    plan = plan_warmup(lengths, [""] * 40, warmup(epochs=2.0), 0)
    half = len(plan.steps) // 2
    assert plan.steps[:half] != plan.steps[half:]
    assert uses(plan, 0, half) == uses(plan, half) == Counter(range(40))


def test_batches_are_not_trained_in_order_of_length() -> None:
    lengths = list(range(10, 110))
    longest = [max(lengths[row] for row in step) for step in plan_warmup(lengths, [""] * 100, warmup(), 0).steps]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_bands_come_in_order_with_one_boundary_each() -> None:
    lengths, bands = lengths_of(60), [BANDS[i % 3] for i in range(60)]
    plan = plan_warmup(lengths, bands, warmup(order="bands"), 3)
    assert len(plan.boundaries) == 3 and plan.boundaries[-1] == len(plan.steps)
    start = 0
    for band, end in zip(BANDS, plan.boundaries, strict=True):
        assert uses(plan, start, end) == Counter(i for i in range(60) if bands[i] == band)
        start = end


def test_an_empty_band_has_no_phase_and_an_unknown_one_is_hard() -> None:
    bands = ["hard", "easy", "", "other", "easy"]
    plan = plan_warmup([10] * 5, bands, warmup(order="bands"), 0)
    assert len(plan.boundaries) == 2
    assert set(uses(plan, 0, plan.boundaries[0])) == {1, 4} and set(uses(plan, plan.boundaries[0])) == {0, 2, 3}


def test_replay_adds_earlier_rows_as_a_share_of_the_band() -> None:
    """20 rows a band, replay 0.25: the easy band has none before it, the others get 5 earlier rows, once each."""
    bands = [BANDS[i // 20] for i in range(60)]
    plan = plan_warmup([10] * 60, bands, warmup(order="bands", replay=0.25), 0)
    first, second, third = plan.boundaries
    easy, medium, hard = (uses(plan, 0, first), uses(plan, first, second), uses(plan, second, third))
    assert easy == Counter(range(20))
    assert set(medium.values()) == set(hard.values()) == {1}
    assert len([row for row in medium if bands[row] == "easy"]) == 5 and len(medium) == 25
    assert len([row for row in hard if bands[row] != "hard"]) == 5 and len(hard) == 25


def test_replay_draws_from_all_earlier_bands_and_no_more_than_there_is() -> None:
    bands = [BANDS[i // 4] for i in range(12)]
    plan = plan_warmup([10] * 12, bands, warmup(order="bands", replay=5.0), 0)
    assert uses(plan, plan.boundaries[1]) == Counter(range(12))


def test_steps_are_divided_by_the_tokens_of_the_bands() -> None:
    """Tokens 300, 100 and 100 of 500: 20 steps are 12, 4 and 4."""
    lengths = [30] * 10 + [10] * 10 + [20] * 5
    bands = ["easy"] * 10 + ["medium"] * 10 + ["hard"] * 5
    plan = plan_warmup(lengths, bands, warmup(order="bands", steps=20, epochs=None), 0)
    assert plan.boundaries == (12, 16, 20)


@pytest.mark.parametrize("steps", [10, 11])
def test_steps_of_the_bands_add_up_to_the_steps_asked_for(steps: int) -> None:
    """Equal thirds of 10 steps are 4 + 3 + 3, of 11 steps 4 + 4 + 3."""
    plan = plan_warmup([10] * 30, [BANDS[i % 3] for i in range(30)], warmup(order="bands", steps=steps, epochs=None), 0)
    assert len(plan.steps) == steps


@st.composite
def dialogues(draw: st.DrawFn) -> Demonstrations:
    """Rows of a few units, in any order; an answer is at most the whole row."""
    units = draw(st.lists(st.integers(0, 6), min_size=1, max_size=30))
    lengths = [draw(st.integers(1, 60)) for _ in units]
    answers = [draw(st.integers(0, length - 1)) for length in lengths]
    return Demonstrations(lengths, answers, [draw(st.sampled_from(BANDS)) for _ in units], units)


def shared_cost(rows: Sequence[int], data: Demonstrations) -> int:
    """Tokens of one unit's rows when the longest is whole and the others add their answers."""
    longest = max(data.lengths[row] for row in rows)
    return (
        longest
        + sum(data.answers[row] for row in rows)
        - max(data.answers[row] for row in rows if data.lengths[row] == longest)
    )


@settings(deadline=None, max_examples=100)
@given(data=dialogues(), budget=st.integers(1, 300), seed=st.integers(0, 9))
def test_turns_of_a_dialogue_stay_in_one_step(data: Demonstrations, budget: int, seed: int) -> None:
    """Every row once, no unit in two steps; a step of several units keeps the budget by what they cost together."""
    plan = plan_demonstrations(data, *warmup(batch_tokens=budget), seed)
    assert uses(plan) == Counter(range(len(data.units)))
    homes = [{data.units[row] for row in step} for step in plan.steps]
    assert sum(map(len, homes)) == len(set(data.units))
    for step, home in zip(plan.steps, homes, strict=True):
        # Of equally long rows any may count as the longest, so what one unit costs is known up to their answers.
        costs = [shared_cost([row for row in step if data.units[row] == unit], data) for unit in home]
        assert len(home) == 1 or max(costs) * len(home) <= budget


def test_with_bands_a_dialogue_is_together_within_each_band() -> None:
    """Units of 6 rows, of which 4 are easy and 2 hard."""
    bands, units = ["easy", "easy", "hard"] * 20, [row // 6 for row in range(60)]
    data = Demonstrations([20] * 60, [3] * 60, bands, units)
    plan = plan_demonstrations(data, *warmup(order="bands", batch_tokens=90), 4)
    (easy, hard), start = plan.boundaries, 0
    for end, count in ((easy, 4), (hard, 2)):
        homes = [Counter(units[row] for row in step) for step in plan.steps[start:end]]
        assert all(set(home.values()) == {count} for home in homes) and sum(map(len, homes)) == 10
        start = end


def test_shared_history_is_not_counted_twice() -> None:
    """Four turns of 70, 80, 90 and 100 tokens with answers of 5 cost 100 + 3 * 5: two dialogues fit in 230."""
    data = Demonstrations([70, 80, 90, 100] * 2, [5] * 8, [""] * 8, [0] * 4 + [1] * 4)
    assert len(plan_demonstrations(data, *warmup(batch_tokens=230), 0).steps) == 1
    assert len(plan_demonstrations(data, *warmup(batch_tokens=229), 0).steps) == 2


# --- alignment ---------------------------------------------------------------------------------------------------


def test_alignment_is_decided_by_its_seed() -> None:
    assert plan_alignment(30, alignment(), 1) == plan_alignment(30, alignment(), 1)
    assert plan_alignment(30, alignment(), 1) != plan_alignment(30, alignment(), 2)


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 30), size=st.integers(1, 12), steps=st.integers(1, 40), seed=st.integers(0, 5))
def test_alignment_step_is_full_and_has_no_row_twice(count: int, size: int, steps: int, seed: int) -> None:
    """With fewer rows than the batch size, every step is all rows."""
    plan = plan_alignment(count, alignment(batch_size=size, steps=steps, epochs=None), seed)
    assert len(plan.steps) == steps and plan.boundaries == (steps,)
    for step in plan.steps:
        assert len(step) == len(set(step)) == min(size, count) and set(step) <= set(range(count))


@pytest.mark.parametrize(
    ("count", "size", "epochs", "steps"),
    [(12, 4, 1.0, 3), (12, 4, 2.5, 8), (5, 3, 2.0, 4), (2, 8, 3.0, 3), (100, 64, 0.1, 1)],
)
def test_alignment_epochs_in_steps(count: int, size: int, epochs: float, steps: int) -> None:
    """ceil(rows * epochs / batch), batch no larger than the rows: 12 * 2.5 / 4 = 7.5 is 8 steps."""
    assert len(plan_alignment(count, alignment(batch_size=size, epochs=epochs), 0).steps) == steps


def test_alignment_pass_uses_every_row_once_where_the_batch_divides_it() -> None:
    plan = plan_alignment(12, alignment(epochs=3.0), 0)
    for start in (0, 3, 6):
        assert uses(plan, start, start + 3) == Counter(range(12))
    assert plan.steps[:3] != plan.steps[3:6]


@pytest.mark.parametrize(("count", "size"), [(5, 3), (10, 4), (7, 6), (100, 64)])
def test_alignment_uses_rows_equally_often_where_the_batch_does_not_divide_them(count: int, size: int) -> None:
    """Over any number of steps, two rows differ by one use at most: a pass is over before a row comes again."""
    for seed in range(5):
        plan = plan_alignment(count, alignment(batch_size=size, steps=3 * count, epochs=None), seed)
        drawn = [row for step in plan.steps for row in step]
        for start in range(0, len(drawn) - count + 1, count):
            assert Counter(drawn[start : start + count]) == Counter(range(count))


# --- schedule ----------------------------------------------------------------------------------------------------


def test_linear_schedule_worked_by_hand() -> None:
    """10 steps, 2 of them warm-up: 1/2, 1, then (8 - i) / 8 for i = 0 .. 7."""
    schedule = plain.align_recipe(lr=1.0, warmup_steps=2)
    assert [schedule.factor(step, [10]) for step in range(10)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )


def test_cosine_schedule_worked_by_hand() -> None:
    """(1 + cos(pi i / 4)) / 2 for i = 0 .. 3: 1, 0.853553, 0.5, 0.146447."""
    schedule = plain.align_recipe(lr=1.0, schedule="cosine")
    assert [schedule.factor(step, [4]) for step in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_constant_schedule_warms_up_and_stays() -> None:
    schedule = plain.align_recipe(lr=1.0, schedule="constant", warmup_steps=4)
    assert [schedule.factor(step, [8]) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_schedule_falls_towards_the_final_fraction() -> None:
    """0.2 + 0.8 * (1 - i/4): 1, 0.8, 0.6, 0.4; after the end 0.2."""
    schedule = plain.align_recipe(lr=1.0, final_fraction=0.2)
    assert [schedule.factor(step, [4]) for step in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2])


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_each_phase_has_a_schedule_of_its_own(kind: str) -> None:
    """Phases of 6, 3 and 8 steps: in each, the factors of a run of that many steps."""
    schedule = plain.align_recipe(lr=1.0, schedule=kind, warmup_steps=2, final_fraction=0.1)
    start = 0
    for end in (6, 9, 17):
        alone = [schedule.factor(step, [end - start]) for step in range(end - start)]
        assert [schedule.factor(step, [6, 9, 17]) for step in range(start, end)] == alone
        start = end
    assert schedule.factor(17, [6, 9, 17]) == schedule.factor(8, [8])


def test_a_phase_shorter_than_its_warm_up_only_rises() -> None:
    schedule = plain.align_recipe(lr=1.0, warmup_steps=4)
    assert [schedule.factor(step, [2]) for step in range(2)] == [0.25, 0.5]


# --- what a setting refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (plain.align_recipe, "optimizer", "adam"), (plain.align_recipe, "schedule", "step"),
        (plain.align_recipe, "lr", 0.0), (plain.align_recipe, "muon_lr", -1.0), (plain.align_recipe, "clip", 0.0),
        (plain.align_recipe, "restarts", 0), (plain.align_recipe, "batch_size", 0), (plain.align_recipe, "epochs", -1.0),
        (plain.warmup_recipe, "batch_tokens", 0), (plain.warmup_recipe, "prompt_weight", 1.5),
        (plain.warmup_recipe, "steps", -1), (plain.warmup, "order", "random"), (plain.warmup, "replay", -0.1),
        (plain.trainer, "threads", -1), (plain.trainer, "micro_tokens", 0), (plain.trainer, "forward", "flat"),
        (plain.trainer, "checkpoint_every_steps", 0), (plain.trainer, "answers_every_steps", 0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(make: Callable[..., Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        make(**{key: value})


@pytest.mark.parametrize("betas", [[0.9, 1.0], [0.9]])
def test_betas_are_two_numbers_below_one(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"^betas"):
        plain.align_recipe(betas=betas)


@pytest.mark.parametrize("given", [{"steps": 5, "epochs": 1.0}, {"steps": None, "epochs": None}])
def test_exactly_one_of_steps_and_epochs_is_given(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^steps=.*exactly one of steps and epochs=.* must be given"):
        plain.align_recipe(**given)


@pytest.mark.parametrize("key", ["max_steps", "precision", "callbacks"])
def test_trainer_options_that_change_numbers_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^options\.{key}=3: decides numbers"):
        plain.trainer(options={key: 3})


def test_the_trainer_gets_its_options() -> None:
    found = plain.trainer(options={"benchmark": False}, log_every_n_steps=7).lightning(max_steps=2, logger=False)
    assert (found.max_steps, found.log_every_n_steps, found.num_devices) == (2, 7, 1)
