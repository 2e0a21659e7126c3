"""The weighted sum: values, what it remembers, bounds, steps, and its option file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from tests.options import made
from ttpa.calls.syntaxes import get_syntax
from ttpa.explore.scorers.score import Scorer
from ttpa.explore.scorers.weighted import Weighted
from ttpa.records import Candidate, Sample, Score, ToolCall
from ttpa.run import config

SAMPLE = Sample(id="s", tools=(), messages=(), target=(ToolCall(name="f", arguments={"a": 1}),), source="test")
ANSWER = Candidate(sample_id="s", index=0, text="")


@dataclass(frozen=True)
class Fixed:
    """Always the same."""

    value: float
    detail: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        return Score(value=self.value, exact=True, detail=self.detail, explanation=f"{self.value}")


@dataclass(frozen=True)
class Step:
    """The step, out of 10."""

    bounds: tuple[float, float] = (-1.0, 10.0)

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = -1) -> Score:
        return Score(value=float(step), exact=False)


def weighted(parts: Any, weights: Any, normalise: Any = "sum_then_normalise") -> Weighted:
    return Weighted(parts=parts, weights=weights, normalise=normalise)


ESM = made("scorer", "esm")
TOOLRL = made("scorer", "toolrl_as_released", syntax="any")


def test_sum_and_what_is_remembered() -> None:
    parts = {"a": Fixed(0.5, {"name": 0.25}), "b": Fixed(1.0, {"name": 0.75, "x/y": 0.125})}
    score = weighted(parts=parts, weights={"b": -0.5, "a": 2})(SAMPLE, ANSWER)
    assert score.value == 0.5 * 2 - 0.5
    assert score.detail == {"a": 0.5, "a/name": 0.25, "b": 1.0, "b/name": 0.75, "b/x/y": 0.125}
    assert (score.exact, score.explanation) == (True, "0.5")


def test_bounds_are_those_of_the_parts() -> None:
    parts: dict[str, Scorer] = {"esm": ESM, "tool": TOOLRL, "step": Step()}
    assert weighted(parts, {"esm": 1, "tool": 1, "step": 1}).bounds == (-4, 15)
    assert weighted(parts, {"esm": -1, "tool": 0.5, "step": 0}).bounds == (-2.5, 2)
    inner = weighted(parts=parts, weights={"esm": 1, "tool": 1, "step": 1})
    assert weighted({"inner": inner}, {"inner": 2}).bounds == (-8, 30)


def test_the_step_reaches_the_parts_that_take_it() -> None:
    inner = weighted(parts={"step": Step()}, weights={"step": 1})
    scorer = weighted(parts={"a": Fixed(1), "step": Step(), "inner": inner}, weights={"a": 1, "step": 1, "inner": 10})
    assert scorer(SAMPLE, ANSWER, step=7).value == 1 + 7 + 70
    assert scorer(SAMPLE, ANSWER, step=7).detail == {"a": 1, "step": 7, "inner": 7, "inner/step": 7}
    assert scorer(SAMPLE, ANSWER).value == 1 + 0 + 0
    linear = made("scorer", "toolrl_as_released", syntax="any", schedule="linear")
    scheduled = weighted(parts={"tool": linear}, weights={"tool": 1})
    assert [scheduled(SAMPLE, ANSWER, step=step).value for step in (0, 75, 150)] == [-4, -3.5, -4]


def test_the_option_of_this_name_stays_in_0_and_1() -> None:
    """So pair rules and searches can use it: half right ESM, and calls alone or not."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        cfg = compose("config", overrides=["scorer=weighted", "model.syntax=json"])
    scorer = config.instantiate(cfg.scorer, "scorer")
    assert scorer.bounds == (0, 1)
    call = ToolCall(name="f", arguments={"a": 2})
    text = get_syntax("json").print([call])
    alone, beside = (
        scorer(SAMPLE, Candidate(sample_id="s", index=0, text=said, calls=(call,))) for said in (text, f"So: {text}")
    )
    esm = ESM(SAMPLE, Candidate(sample_id="s", index=0, text=text, calls=(call,)))
    assert alone.value == pytest.approx(0.25 + 0.75 * esm.value)
    assert beside.value == pytest.approx(0.75 * esm.value)
