"""SLM-GRPO's reward: vectors worked by hand, the rule about text, and options.

One call expected, with two arguments, unless said otherwise: 1/8 for JSON, 3/8 for the name, 1/4 for each argument.
"""

from typing import Any

import pytest

from tests.options import made as option
from tests.toolcalls import call, parsed, sample
from ttpa.calls.syntaxes import SYNTAXES, get_syntax
from ttpa.explore.scorers.slm_json import SLMJson
from ttpa.records import Candidate, ToolCall


def scorer(**changes: Any) -> SLMJson:
    return option("scorer", "slm_json", **{"syntax": "json", **changes})


def written(*calls: ToolCall, syntax: str = "json") -> str:
    return get_syntax(syntax).print(calls)


ONE, TWO, BARE = call("f", a=1, b="x"), call("g", c=[1, 2], d=None), call("now")


@pytest.mark.parametrize(("target", "made", "value"), [
    ((ONE,), (call("f", b="x", a=1.0),), 1),  # neither the order of arguments nor 1.0 for 1 matters
    ((ONE,), (call("f", a="1", b="x"),), 0.75),
    ((ONE,), (call("f", a=True, b="x"),), 0.75),
    ((ONE,), (call("f", a=1, b="x", z=0),), 0.5 + 0.5 * 2 / 3),
    ((ONE,), (call("f", a=1),), 0.75),
    ((ONE,), (call("f", a=1, z="x"),), 0.75),
    ((ONE,), (call("f"),), 0.5),
    ((ONE,), (call("h", a=1, b="x"),), 0.125),  # arguments count only under the right name
    ((ONE,), (ONE, ONE, ONE), 0.125 + 0.875 / 3),
    ((ONE,), (call("f", a=2, b="y"), ONE), 0.125 + 0.875 / 2),  # the better of two is the one that counts
    ((ONE, TWO), (TWO, ONE), 1),
    ((ONE, TWO), (TWO,), 0.125 + 0.875 / 2),
    ((ONE, TWO), (ONE, ONE), 0.125 + 0.875 / 2),  # as many as expected: no scale, but counted once
    ((ONE, ONE), (ONE, call("f", a=1, b="y")), 0.125 + 0.375 + 0.5 * 3 / 4),
    ((BARE,), (BARE,), 1),
    ((BARE,), (call("now", zone="UTC"),), 0.5),
    ((call("f", a=1), call("f", a=2)), (call("f", a=2), call("f", a=3)), 0.125 + 0.375 + 0.25),
])  # fmt: skip
def test_hand_worked(target: tuple[ToolCall, ...], made: tuple[ToolCall, ...], value: float) -> None:
    score = scorer()(sample(*target), parsed(written(*made)))
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.exact == (value == 1)


GOOD = written(ONE)


@pytest.mark.parametrize("text", [f" \n{GOOD}\t\r\n", GOOD[1:-1]])
def test_white_space_and_a_single_object_are_json_alone(text: str) -> None:
    assert scorer()(sample(ONE), parsed(text)).value == 1


@pytest.mark.parametrize("text", [
    f"Sure: {GOOD}", f"{GOOD} I hope this helps.", f"```json\n{GOOD}\n```", f"{GOOD}{GOOD}", " \n", "[]", "{}", "null",
    f"<tool_call>{GOOD[1:-1]}</tool_call>", "I cannot do that.", GOOD[:-1], '[{"name": "f"}]',
    '[{"name": "f", "arguments": {"a": NaN, "b": "x"}}]', '[{"name": "f", "arguments": [1, "x"]}]',
])  # fmt: skip
def test_text_outside_the_json_is_worth_nothing(text: str) -> None:
    assert scorer()(sample(ONE), parsed(text)).value == 0


@pytest.mark.parametrize(("target_text", "text", "value"), [
    ("You are welcome.", "Any other words.", 1), ("You are welcome.", "[]", 1), ("You are welcome.", GOOD, 0.125),
    ("You are welcome.", f"Sure: {GOOD}", 0), ("You are welcome.", "[{", 0), ("You are welcome.", "", 0),
    (None, "", 1), (None, "You are welcome.", 1),  # the target itself is without a character
])  # fmt: skip
def test_a_target_without_a_call(target_text: str | None, text: str, value: float) -> None:
    score = scorer()(sample(text=target_text), parsed(text))
    assert score.value == value
    assert score.exact == (value == 1 or text == "")


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("form", ["its own", "any"])
def test_every_syntax_is_held_to_the_same_rule(name: str, form: str) -> None:
    read = scorer(syntax=name if form == "its own" else "any")
    gold, text = sample(ONE, TWO), written(ONE, TWO, syntax=name)
    assert read(gold, parsed(f"\n{text} ", name)).value == 1
    for spoilt in (
        f"Sure: {text}",
        f"{text} There.",
        f"```\n{text}\n```",
        f"{text}{text[:-1]}",
        f"<think>A.</think>{text}",
    ):
        assert read(gold, parsed(spoilt, name)).value == 0, spoilt


def test_any_reads_what_was_parsed_when_the_candidate_was_made() -> None:
    text = written(ONE, syntax="python")
    assert scorer()(sample(ONE), parsed(text, "python")).value == 0
    unread = Candidate(sample_id="s", index=0, text=text)
    assert scorer(syntax="any")(sample(ONE), unread).value == 0


def test_weights_and_scale() -> None:
    score = scorer(scale_extra=False)(sample(ONE), parsed(written(ONE, ONE, TWO)))
    assert (score.value, score.exact) == (1, False)
    flat = scorer(w_json=1, w_name=0, w_args=0)
    assert [flat(sample(ONE), parsed(text)).value for text in (written(TWO), "words")] == [1, 0]
    assert 1 - 1e-9 < scorer(w_json=0.1, w_name=0.2, w_args=0.7)(sample(ONE), parsed(GOOD)).value <= 1
