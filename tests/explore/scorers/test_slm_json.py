"""SLM-GRPO's reward: vectors worked by hand, the rule about text, and options.

One call expected, with two arguments, unless said otherwise: 1/8 for JSON, 3/8 for the name, 1/4 for each argument.
"""

from typing import Any

import pytest

from tests.options import made as option
from ttpa.calls.syntaxes import SYNTAXES, ParseError, get_syntax
from ttpa.explore.scorers.slm_json import SLMJson
from ttpa.records import Candidate, Sample, ToolCall


def scorer(**changes: Any) -> SLMJson:
    return option("scorer", "slm_json", **{"syntax": "json", **changes})


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def sample(*target: ToolCall, text: str | None = None) -> Sample:
    return Sample(id="s", tools=(), messages=(), target=target, target_text=text, source="test")


def answer(text: str, syntax: str = "json") -> Candidate:
    calls = get_syntax(syntax).parse(text)
    return Candidate(sample_id="s", index=0, text=text, calls=None if isinstance(calls, ParseError) else calls)


def written(*calls: ToolCall, syntax: str = "json") -> str:
    return get_syntax(syntax).print(calls)


ONE, TWO, BARE = call("f", a=1, b="x"), call("g", c=[1, 2], d=None), call("now")


@pytest.mark.parametrize(
    ("target", "made", "value"),
    [
        ((ONE,), (ONE,), 1),
        ((ONE,), (call("f", b="x", a=1.0),), 1),  # neither the order of arguments nor 1.0 for 1 matters
        ((ONE,), (call("f", a=2, b="x"),), 0.75),
        ((ONE,), (call("f", a="1", b="x"),), 0.75),
        ((ONE,), (call("f", a=True, b="x"),), 0.75),
        ((ONE,), (call("f", a=1, b="x", z=0),), 0.5 + 0.5 * 2 / 3),
        ((ONE,), (call("f", a=1),), 0.75),
        ((ONE,), (call("f", a=1, z="x"),), 0.75),
        ((ONE,), (call("f"),), 0.5),
        ((ONE,), (call("h", a=1, b="x"),), 0.125),  # arguments count only under the right name
        ((ONE,), (ONE, TWO), 0.125 + 0.875 / 2),
        ((ONE,), (ONE, ONE, ONE), 0.125 + 0.875 / 3),
        ((ONE,), (call("f", a=2, b="y"), ONE), 0.125 + 0.875 / 2),  # the better of two is the one that counts
        ((ONE, TWO), (ONE, TWO), 1),
        ((ONE, TWO), (TWO, ONE), 1),
        ((ONE, TWO), (TWO,), 0.125 + 0.875 / 2),
        ((ONE, TWO), (ONE, ONE), 0.125 + 0.875 / 2),  # as many as expected: no scale, but counted once
        ((ONE, ONE), (ONE, call("f", a=1, b="y")), 0.125 + 0.375 + 0.5 * 3 / 4),
        ((BARE,), (BARE,), 1),
        ((BARE,), (call("now", zone="UTC"),), 0.5),
        ((BARE,), (call("then"),), 0.125),
        ((call("f", a=1), call("f", a=2)), (call("f", a=2), call("f", a=3)), 0.125 + 0.375 + 0.25),
    ],
)
def test_hand_worked(target: tuple[ToolCall, ...], made: tuple[ToolCall, ...], value: float) -> None:
    score = scorer()(sample(*target), answer(written(*made)))
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.exact == (value == 1)


GOOD = written(ONE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1),
        (f" \n{GOOD}\t\r\n", 1),
        (written(ONE)[1:-1], 1),  # an object in place of a list of one
        (f"Sure: {GOOD}", 0),
        (f"{GOOD} I hope this helps.", 0),
        (f"```json\n{GOOD}\n```", 0),
        (f"{GOOD}{GOOD}", 0),
        (f"<tool_call>{GOOD[1:-1]}</tool_call>", 0),
        ("", 0),
        (" \n", 0),
        ("[]", 0),
        ("{}", 0),
        ("null", 0),
        ("I cannot do that.", 0),
        (GOOD[:-1], 0),
        (GOOD.replace('"', "'"), 0),
        (GOOD.replace('"f"', '"f",'), 0),
        ('[{"name": "f", "arguments": {"a": NaN, "b": "x"}}]', 0),
        ('[{"name": "f"}]', 0),
        ('[{"name": "f", "arguments": [1, "x"]}]', 0),
        ("[" * 100_000, 0),
    ],
    ids=lambda text: str(text)[:20],
)
def test_text_outside_the_json_is_worth_nothing(text: str, value: float) -> None:
    assert scorer()(sample(ONE), answer(text)).value == value


@pytest.mark.parametrize(
    ("target_text", "text", "value"),
    [
        ("You are welcome.", "You are welcome.", 1),
        ("You are welcome.", "Any other words.", 1),
        ("You are welcome.", "[]", 1),
        ("You are welcome.", GOOD, 0.125),
        ("You are welcome.", f"Sure: {GOOD}", 0),
        ("You are welcome.", "[{", 0),
        ("You are welcome.", "", 0),
        (None, "", 1),  # the target itself is without a character
        (None, "You are welcome.", 1),
    ],
)
def test_a_target_without_a_call(target_text: str | None, text: str, value: float) -> None:
    score = scorer()(sample(text=target_text), answer(text))
    assert score.value == value
    assert score.exact == (value == 1 or text == "")


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("form", ["its own", "any"])
def test_every_syntax_is_held_to_the_same_rule(name: str, form: str) -> None:
    read = scorer(syntax=name if form == "its own" else "any")
    gold, text = sample(ONE, TWO), written(ONE, TWO, syntax=name)
    assert read(gold, answer(text, name)).value == 1
    assert read(gold, answer(f"\n{text} ", name)).value == 1
    for spoilt in (f"Sure: {text}", f"{text} There.", f"```\n{text}\n```", f"{text}{text[:-1]}"):
        assert read(gold, answer(spoilt, name)).value == 0, spoilt


def test_any_reads_what_was_parsed_when_the_candidate_was_made() -> None:
    text = written(ONE, syntax="python")
    assert scorer(syntax="any")(sample(ONE), answer(text, "python")).value == 1
    assert scorer()(sample(ONE), answer(text, "python")).value == 0
    unread = Candidate(sample_id="s", index=0, text=text)
    assert scorer(syntax="any")(sample(ONE), unread).value == 0


def test_weights_and_scale() -> None:
    score = scorer(scale_extra=False)(sample(ONE), answer(written(ONE, ONE, TWO)))
    assert (score.value, score.exact) == (1, False)
    flat = scorer(w_json=1, w_name=0, w_args=0)
    assert flat(sample(ONE), answer(written(TWO))).value == 1
    assert flat(sample(ONE), answer("words")).value == 0
    odd = scorer(w_json=0.1, w_name=0.2, w_args=0.7)
    assert odd(sample(ONE), answer(GOOD)).value == pytest.approx(1)
    assert odd(sample(ONE), answer(GOOD)).value <= 1
