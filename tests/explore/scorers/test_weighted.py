"""The weighted sum: values, what it remembers, bounds, steps, and its option file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError
from ttpa.explore.scorers import ESM, ASTMatch, Reward, Scorer, SLMJson, ToolRL, Weighted, bounds_of
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


def test_it_is_a_reward() -> None:
    scorer = Weighted(parts={"a": Fixed(1)}, weights={"a": 1})
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Reward)


def test_sum_and_what_is_remembered() -> None:
    parts = {"a": Fixed(0.5, {"name": 0.25}), "b": Fixed(1.0, {"name": 0.75, "x/y": 0.125})}
    score = Weighted(parts=parts, weights={"b": -0.5, "a": 2})(SAMPLE, ANSWER)
    assert score.value == 0.5 * 2 - 0.5
    assert score.detail == {"a": 0.5, "a/name": 0.25, "b": 1.0, "b/name": 0.75, "b/x/y": 0.125}
    assert (score.exact, score.explanation) == (True, "0.5")


def test_the_order_of_the_weights_does_not_matter() -> None:
    parts = {"a": Fixed(0.5), "b": Fixed(1.0)}
    one, two = (Weighted(parts=parts, weights=dict(items)) for items in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert one == two
    assert list(one.weights) == list(two.weights) == ["a", "b"]


def test_how_to_normalise_is_told_and_not_done() -> None:
    parts, weights = {"a": Fixed(0.5), "b": Fixed(1.0)}, {"a": 1.0, "b": 2.0}
    late, early = (
        Weighted(parts=parts, weights=weights),
        Weighted(parts=parts, weights=weights, normalise="normalise_then_sum"),
    )
    assert (late.normalise, early.normalise) == ("sum_then_normalise", "normalise_then_sum")
    assert late(SAMPLE, ANSWER) == early(SAMPLE, ANSWER)
    detail = early(SAMPLE, ANSWER).detail
    assert sum(early.weights[name] * detail[name] for name in early.parts) == 2.5


def test_bounds_are_those_of_the_parts() -> None:
    parts: dict[str, Scorer] = {"esm": ESM(), "tool": ToolRL(), "step": Step()}
    assert bounds_of(Weighted(parts=parts, weights={"esm": 1, "tool": 1, "step": 1})) == (-4, 15)
    assert bounds_of(Weighted(parts=parts, weights={"esm": -1, "tool": 0.5, "step": 0})) == (-2.5, 2)
    inner = Weighted(parts=parts, weights={"esm": 1, "tool": 1, "step": 1})
    assert bounds_of(Weighted(parts={"inner": inner}, weights={"inner": 2})) == (-8, 30)


def test_the_step_reaches_the_parts_that_take_it() -> None:
    inner = Weighted(parts={"step": Step()}, weights={"step": 1})
    scorer = Weighted(parts={"a": Fixed(1), "step": Step(), "inner": inner}, weights={"a": 1, "step": 1, "inner": 10})
    assert scorer(SAMPLE, ANSWER, step=7).value == 1 + 7 + 70
    assert scorer(SAMPLE, ANSWER, step=7).detail == {"a": 1, "step": 7, "inner": 7, "inner/step": 7}
    assert scorer(SAMPLE, ANSWER).value == 1 + 0 + 0
    scheduled = Weighted(parts={"tool": ToolRL(schedule="linear")}, weights={"tool": 1})
    assert [scheduled(SAMPLE, ANSWER, step=step).value for step in (0, 75, 150)] == [-4, -3.5, -4]


@pytest.mark.parametrize(
    ("parts", "weights", "normalise", "message"),
    [
        ({}, {}, "sum_then_normalise", "scorer.parts={}: must map names"),
        (None, {}, "sum_then_normalise", "scorer.parts=None"),
        ({"a": 1}, {"a": 1}, "sum_then_normalise", "scorer.parts.a=1: is no scorer"),
        ({"a/b": Fixed(1)}, {"a/b": 1}, "sum_then_normalise", "scorer.parts=a/b: .* without a slash"),
        ({"": Fixed(1)}, {"": 1}, "sum_then_normalise", "Use another name"),
        ({"a": Fixed(1)}, {"b": 1}, "sum_then_normalise", "The parts are a"),
        ({"a": Fixed(1)}, {"a": 1, "b": 1}, "sum_then_normalise", "must give each part a weight"),
        ({"a": Fixed(1)}, None, "sum_then_normalise", "scorer.weights=None"),
        ({"a": Fixed(1)}, {"a": math.nan}, "sum_then_normalise", "scorer.weights.a=nan"),
        ({"a": Fixed(1)}, {"a": -math.inf}, "sum_then_normalise", "scorer.weights.a=-inf"),
        ({"a": Fixed(1)}, {"a": True}, "sum_then_normalise", "scorer.weights.a=True"),
        ({"a": Fixed(1)}, {"a": "1"}, "sum_then_normalise", "scorer.weights.a=1: must be a finite number"),
        ({"a": Fixed(1)}, {"a": 0}, "sum_then_normalise", "are all 0"),
        ({"a": Fixed(1)}, {"a": 1}, "mean", "scorer.normalise=mean"),
    ],
)
def test_bad_configuration(parts: Any, weights: Any, normalise: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Weighted(parts=parts, weights=weights, normalise=normalise)


@pytest.mark.parametrize(
    ("option", "scorer"),
    [
        ("slm_json", SLMJson(syntax="json")),
        ("toolrl", ToolRL(format="plain", syntax="json", matching="optimal", value_equality="strict")),
        ("toolrl_as_released", ToolRL(syntax="json")),
        ("toolrl_refined", ToolRL(
            format="plain", syntax="json", matching="optimal", value_equality="strict", similarity="refined")),
        ("toolrl_intermediate", ToolRL(
            format="plain", syntax="json", matching="optimal", value_equality="strict", similarity="intermediate")),
        ("toolrl_coarse", ToolRL(
            format="plain", syntax="json", matching="optimal", value_equality="strict", similarity="coarse")),
        ("weighted", Weighted(
            parts={"format": SLMJson(w_json=1.0, w_name=0.0, w_args=0.0, syntax="json"), "call": ESM()},
            weights={"format": 0.25, "call": 0.75})),
    ],
)  # fmt: skip
def test_the_options_make_these(option: str, scorer: Scorer) -> None:
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        cfg = compose("config", overrides=[f"scorer={option}", "model.syntax=json"])
    assert config.instantiate(cfg.scorer, "scorer") == scorer


def test_the_option_of_this_name_stays_in_0_and_1() -> None:
    """So pair rules that take the target can use it; half right ESM, and calls alone or not."""
    scorer = Weighted(
        parts={"format": SLMJson(w_json=1.0, w_name=0.0, w_args=0.0), "call": ASTMatch(partial=True)},
        weights={"format": 0.25, "call": 0.75},
    )
    assert scorer.bounds == (0, 1)
    call = ToolCall(name="f", arguments={"a": 2})
    text = get_syntax("json").print([call])
    alone, beside = (
        scorer(SAMPLE, Candidate(sample_id="s", index=0, text=said, calls=(call,))) for said in (text, f"So: {text}")
    )
    assert alone.value == pytest.approx(0.25 + 0.75 * 0.3)
    assert beside.value == pytest.approx(0.75 * 0.3)
