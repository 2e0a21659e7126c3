"""Applying scorers, and what holds of every scorer: its bounds, the target scores best, each of the six errors costs,
and no text a model can write makes it raise.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.options import made
from tests.toolcalls import call, parsed, spec
from tests.toolcalls import sample as bare_sample
from ttpa.calls.six_errors import SIX, is_exact, six_errors
from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import DataError
from ttpa.explore.scorers.score import Reward, Scorer, bounds_of, score_answer, takes_step, unit_score
from ttpa.explore.scorers.toolrl import ToolRL
from ttpa.explore.scorers.weighted import Weighted
from ttpa.records import Candidate, Sample, Score, ToolCall

TOOLS = (
    spec("f", ("city", "days"), city="string", days="integer", unit="string"),
    spec("g", ("city",), city="string", days="integer"),
    spec("now", ()),
)
GOLD, OTHER = call("f", city="Rome", days=3), call("g", city="Oslo")


def sample(*target: ToolCall, text: str | None = None) -> Sample:
    return bare_sample(*target, text=text, tools=TOOLS)


def toolrl(**changes: Any) -> ToolRL:
    return made("scorer", "toolrl_as_released", **{"syntax": "any", **changes})


ESM, AST, SLM = made("scorer", "esm"), made("scorer", "ast"), made("scorer", "slm_json", syntax="json")
SCORERS: dict[str, Scorer] = {
    "esm": ESM,
    "esm as released": made("scorer", "esm_as_released"),
    "ast": AST,
    "ast partial": made("scorer", "ast_partial"),
    "slm_json": SLM,
    "slm_json any, no scale": made("scorer", "slm_json", syntax="any", scale_extra=False),
    "toolrl released": toolrl(),
    "toolrl": made("scorer", "toolrl", syntax="json"),
    "toolrl refined": toolrl(similarity="refined"),
    "toolrl intermediate, optimal": toolrl(similarity="intermediate", matching="optimal"),
    "toolrl coarse": toolrl(similarity="coarse"),
    "toolrl steps": toolrl(schedule="max1step30max3"),
    "toolrl linear, length": toolrl(schedule="linear", correct_max=1, length="scheduled", value_equality="strict"),
    "weighted": Weighted(
        parts={"esm": ESM, "tool": toolrl(format="plain", schedule="linear"), "slm": SLM},
        weights={"esm": 0.5, "tool": 2, "slm": 1},
        normalise="sum_then_normalise",
    ),
}
EVERY = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
STEPS = (0, 29, 30, 75, 150, 1000)


def in_tags(scorer: Scorer) -> bool:
    return isinstance(scorer, ToolRL) and scorer.format == "rlla"


def written(scorer: Scorer, calls: Sequence[ToolCall], reply: str = "Done.") -> Candidate:
    """An answer that makes these calls, as the scorer reads them; without any, a reply."""
    if not in_tags(scorer):
        return parsed(get_syntax("json").print(calls) if calls else reply)
    lines = "\n".join(json.dumps({"name": made.name, "parameters": made.arguments}) for made in calls)
    body = f"<tool_call>\n{lines}\n</tool_call>" if calls else f"<response>{reply}</response>"
    return Candidate(sample_id="s", index=0, text=f"<think>So.</think>\n{body}", calls=tuple(calls))


def score(scorer: Scorer, target: Sample, candidate: Candidate, step: int = 0) -> Score:
    """Scored and checked to be within bounds."""
    found = score_answer(scorer, target, candidate, step=step)
    assert all(math.isfinite(part) for part in found.detail.values())
    return found


# ---- applying a scorer ----------------------------------------------------------------------------------------------


def test_only_who_takes_the_step_is_told() -> None:
    assert {name for name, scorer in SCORERS.items() if takes_step(scorer)} == {
        name for name in SCORERS if name.startswith(("toolrl", "weighted"))
    }
    scorer, gold = toolrl(schedule="linear"), sample(GOLD)
    values = [score_answer(scorer, gold, written(scorer, [GOLD]), step=step).detail["format"] for step in STEPS]
    assert values == pytest.approx([2, 2 - 29 / 150, 1.8, 1.5, 1, 1])
    assert score_answer(ESM, gold, written(ESM, [GOLD]), step=5).value == 1


def test_a_function_is_a_scorer_too() -> None:
    assert score_answer(lambda sample, candidate: Score(value=0.5, exact=False), sample(), parsed("")).value == 0.5


@pytest.mark.parametrize(("value", "problem"), [
    (math.nan, "which is no finite number"), (-math.inf, "which is no finite number"),
    (1 + 1e-6, r"outside its bounds \[0, 1\]"), (-1e-6, r"outside its bounds \[0, 1\]"),
])  # fmt: skip
def test_a_value_out_of_bounds_is_a_mistake_of_the_scorer(value: float, problem: str) -> None:
    with pytest.raises(DataError, match=f"^sample s: function gives .* at step 0, {problem}"):
        score_answer(lambda sample, candidate: Score(value=value, exact=False), sample(GOLD), parsed(""))
    score_answer(lambda sample, candidate: Score(value=1 + 1e-10, exact=False), sample(GOLD), parsed(""))


def test_rewards_are_moved_to_0_and_1_for_pair_rules_and_searches() -> None:
    """ToolRL lies between -3 and 4: the target's 4 is 1, and a wrong tool's -2 is 1/7."""
    scorer = toolrl()
    assert unit_score(scorer, sample(GOLD), written(scorer, [GOLD])).value == 1
    wrong = unit_score(scorer, sample(GOLD), written(scorer, [call("now")]))
    assert wrong.value == pytest.approx(1 / 7) and wrong.detail["correct"] == -3
    assert unit_score(AST, sample(GOLD), written(AST, [OTHER])) == AST(sample(GOLD), written(AST, [OTHER]))


# ---- every scorer ---------------------------------------------------------------------------------------------------


@EVERY
def test_bounds(scorer: Scorer) -> None:
    assert isinstance(scorer, Scorer)
    low, high = bounds_of(scorer)
    assert low < high
    assert isinstance(scorer, Reward) == takes_step(scorer) == hasattr(scorer, "bounds")
    if not isinstance(scorer, Reward):
        assert (low, high) == (0, 1)


def best(scorer: Scorer, target: Sample, step: int = 0) -> Score:
    return score(scorer, target, written(scorer, target.target, target.target_text or ""), step)


@EVERY
def test_the_target_reaches_the_upper_bound(scorer: Scorer) -> None:
    """Where no schedule lowers it, and no words of thought are counted; at some step otherwise."""
    top = max(best(scorer, sample(GOLD, OTHER), step).value for step in STEPS)
    missing = 1 if isinstance(scorer, ToolRL) and scorer.length != "none" else 0
    assert top == pytest.approx(bounds_of(scorer)[1] - missing, abs=0.01)


ERRORS: dict[str, Sequence[ToolCall]] = {
    "tool_name": [call("g", city="Rome", days=3)],
    "missing_required": [call("f", city="Rome")],
    "parameter_name": [call("f", city="Rome", days=3, town="Rome")],
    "parameter_type": [call("f", city="Rome", days="3")],
    "parameter_value": [call("f", city="Rome", days=4)],
}


@EVERY
def test_each_of_the_six_errors_costs(scorer: Scorer) -> None:
    target = sample(GOLD)
    whole = written(scorer, [GOLD])
    wrong = {"format": Candidate(sample_id="s", index=0, text=whole.text.replace('"name"', '"name'), error="broken")}
    for error, calls in ERRORS.items():
        assert six_errors(target, calls) == (error,)
        wrong[error] = written(scorer, calls)
    assert set(wrong) == set(SIX)
    for error, candidate in wrong.items():
        for step in (0, 75, 1000):
            found = score(scorer, target, candidate, step)
            assert found.value < best(scorer, target, step).value - 1e-6, (error, step)
            assert not found.exact and found.explanation


@EVERY
def test_an_unwanted_call_is_never_better_than_a_reply(scorer: Scorer) -> None:
    target = sample(text="Done.")
    assert score(scorer, target, written(scorer, [GOLD])).value < best(scorer, target).value


# The release does not give its best score to a target that breaks its own schema, as some of these do.
HONEST = {name: scorer for name, scorer in SCORERS.items() if name != "esm as released"}
VALUES = st.one_of(st.sampled_from(["Rome", "Oslo", "3"]), st.integers(0, 3), st.booleans(), st.just([1]))
CALLS = st.lists(
    st.builds(
        lambda name, arguments: ToolCall(name=name, arguments=arguments),
        st.sampled_from(["f", "g", "now"]),
        st.dictionaries(st.sampled_from(["city", "days", "unit", "zz"]), VALUES, max_size=3),
    ),
    max_size=3,
)


@pytest.mark.parametrize("scorer", HONEST.values(), ids=HONEST)
@given(gold=CALLS, made=CALLS, step=st.sampled_from(STEPS))
@settings(max_examples=30, deadline=None)
def test_nothing_scores_above_the_target(scorer: Scorer, gold: list[ToolCall], made: list[ToolCall], step: int) -> None:
    target = sample(*gold, text=None if gold else "Done.")
    found = score(scorer, target, written(scorer, made), step)
    assert found.value <= best(scorer, target, step).value + 1e-9
    assert found.exact == is_exact(target, made)


# ---- hostile texts --------------------------------------------------------------------------------------------------

HOSTILE = {
    "nothing": "",
    "deep": "[" * 100_000,
    "megabytes": "[{" * 1_000_000,
    "deep arguments": '{"name": "f", "parameters": ' + '{"a": ' * 20_000 + "1" + "}" * 20_001,
    "deep, but readable": '{"name": "f", "parameters": ' + '{"a": ' * 60 + "1" + "}" * 61,
    "a huge whole number": '{"name": "f", "parameters": {"city": "Rome", "days": ' + "9" * 6000 + "}}",
    "a huge number": '{"name": "f", "parameters": {"city": "Rome", "days": 1e999}}',
    "nan": '{"name": "f", "parameters": {"city": NaN, "days": -Infinity}}',
    "controls": "".join(map(chr, range(32))) + "\x7f\u2028\ufeff",
    "surrogates": '\ud800\udfff{"name": "f", "parameters": {"city": "\udc00"}}\ud800',
    "escaped surrogates": r'{"name": "f", "parameters": {"city": "\ud800", "days": 3}}',
    "a call of code": '[__import__(name="os")]',
    "no object": '["name", "parameters"]\nnull\n1',
    "no names": '{"name": ["f"], "parameters": [1]}',
    "keys twice": '{"name": "f", "name": "g", "parameters": {}, "arguments": {}}',
    "many": "[" + ", ".join(['{"name": "f", "parameters": {"city": "Rome"}}'] * 1000) + "]",
    "many tags": "<think></think>\n<tool_call>\n" * 3000,
    "many closing tags": "<think>" + "</think>\n" * 30_000 + "</tool_call>" * 3000,
    "a block that ends early": "<tool_call></tool_call><tool_call>",
    "tags the wrong way round": "</tool_call>\n{}\n<tool_call>",
}


@EVERY
def test_hostile_texts(scorer: Scorer) -> None:
    targets = [(target, best(scorer, target).value) for target in (sample(GOLD, OTHER), sample(text="Done."))]
    for name, text in HOSTILE.items():
        for said in (text, f"<think></think>\n<tool_call>\n{text}\n</tool_call>") if in_tags(scorer) else (text,):
            for target, top in targets:
                assert score(scorer, target, parsed(said)).value <= top + 1e-9, name
