"""ToolRL's reward: the released code's numbers, every option worked by hand, schedules, and what cannot be read.

The target is A(x=1, y="b") unless said otherwise, so S_max = 1 + 1 + 2 = 4 and correctness is 1.5 S - 3.
"""

import json
from typing import Any

import pytest

from tests.options import made as option
from tests.toolcalls import call, parsed, sample
from ttpa.calls.syntaxes import get_syntax
from ttpa.explore.scorers.toolrl import ToolRL
from ttpa.records import Candidate, Sample, ToolCall


def toolrl(**changes: Any) -> ToolRL:
    """The released run, unless changed."""
    return option("scorer", "toolrl_as_released", **{"syntax": "any", **changes})


def lines(*calls: ToolCall) -> str:
    return "\n".join(json.dumps({"name": made.name, "parameters": made.arguments}) for made in calls)


def block(body: str) -> str:
    return f"<think>Let me see.</think>\n<tool_call>\n{body}\n</tool_call>"


def answer(text: str) -> Candidate:
    return Candidate(sample_id="s", index=0, text=text)


def made(*calls: ToolCall) -> Candidate:
    return answer(block(lines(*calls)))


GOLD = call("A", x=1, y="b")
ONE, TWO = call("A", x=1), call("A", x=2)
RIGHT = block(lines(GOLD))
REPLY = "<think>Let me see.</think>\n<response>It is done.</response>"


@pytest.mark.parametrize(("target", "text", "total", "well_formed", "correct"), [
    (sample(GOLD), RIGHT, 4.0, 1, 3.0),
    (sample(GOLD), block(lines(call("A", x="1", y="b"))), 2.5, 1, 1.5),
    (sample(GOLD), block(lines(call("A", x=1.0, y="b"))), 4.0, 1, 3.0),
    (sample(GOLD), block(lines(call("A", x=1, y="b", z=0))), 3.5, 1, 2.5),
    (sample(GOLD), block(lines(call("A", x=1))), 1.75, 1, 0.75),
    (sample(GOLD), block(lines(call("B", x=1, y="b"))), -2.0, 1, -3.0),
    (sample(GOLD), block(lines(GOLD, GOLD, GOLD)), 3.0, 1, 2.0),
    (sample(GOLD), RIGHT.replace("parameters", "arguments"), -2.0, 1, -3.0),
    (sample(GOLD), REPLY, -3.0, 0, -3.0),
    (sample(GOLD), RIGHT.replace("</think>", "</think> "), 3.0, 0, 3.0),
    (sample(call("A"), call("B")), block(lines(call("B"), call("A"))), 4.0, 1, 3.0),
    (sample(text="Done."), RIGHT, 0.0, 0, 0),
    (sample(text="Done."), REPLY, 1.0, 1, 0),
])  # fmt: skip
def test_the_numbers_of_the_released_code(
    target: Sample, text: str, total: float, well_formed: float, correct: float
) -> None:
    score = toolrl()(target, answer(text))
    assert (score.value, score.detail["format"], score.detail["correct"]) == (total, well_formed, correct)


@pytest.mark.parametrize(("target", "text", "well_formed"), [
    (sample(GOLD), f"  {RIGHT}\n", True),  # the release strips the answer
    (sample(GOLD), f"{RIGHT} So there.", False),
    (sample(GOLD), RIGHT.replace("<think>Let me see.</think>\n", ""), False),
    (sample(GOLD), RIGHT.replace("<tool_call>\n", "<tool_call>"), False),
    (sample(GOLD), RIGHT + "\n</tool_call>", False),
    (sample(GOLD), RIGHT.replace("Let", "<tool_call> Let"), False),
    (sample(GOLD), RIGHT.replace("Let me see.", "a\nb"), True),
    (sample(GOLD), RIGHT.replace("Let", "<think> Let"), True),  # the release counts only the tags of calls, replies
    (sample(GOLD), RIGHT + REPLY.split("</think>")[1], False),
    (sample(GOLD, text="Done."), RIGHT + REPLY.split("</think>")[1], True),
    (sample(GOLD, text="Done."), RIGHT, False),
    (sample(GOLD, text="Done."), REPLY, False),
    (sample(text="Done."), REPLY + REPLY, False),
    (sample(text="Done."), "Done.", False),
    (sample(), "<think>Nothing to do.</think>", True),
    (sample(), REPLY, False),
])  # fmt: skip
def test_the_form_of_the_text_is_that_of_the_target(target: Sample, text: str, well_formed: bool) -> None:
    assert toolrl()(target, answer(text)).detail["format"] == well_formed


@pytest.mark.parametrize("body", [
    "", "null", "[" + lines(GOLD) + "]", lines(GOLD) + "\n\n" + lines(GOLD), lines(GOLD) + "\nand",
    '{"name": ["A"], "parameters": {}}', '{"name": null, "parameters": {}}', '{"parameters": {"x": 1, "y": "b"}}',
    '{"name": "A", "parameters": [1, "b"]}', '{"name": "A", "parameters": "{}"}',
    '{"name": "A", "parameters": {[]: 1}}',
    '{"name": "A", "parameters": {"x": NaN, "y": "b"}}', '{"name": "A", "parameters": {"x": -Infinity, "y": "b"}}',
    '{"name": "A", "parameters": {"x": 1e999, "y": "b"}}',
    '{"name": "A", "parameters": {"x": 1' + "0" * 5000 + ', "y": "b"}}',
    '{"name": "A", "parameters": {"x": ' + "[" * 100_000 + "}}",
    '{"name": "B", "arguments": {}}\n' + lines(GOLD),  # the release does not come to look at the first
], ids=lambda body: repr(body)[:40])  # fmt: skip
@pytest.mark.parametrize("similarity", ["finegrained", "coarse"])
def test_calls_that_cannot_be_read_are_at_the_floor(body: str, similarity: Any) -> None:
    score = toolrl(similarity=similarity)(sample(GOLD), answer(block(body)))
    assert (score.detail["correct"], score.exact) == (-3, False)
    assert not any(score.detail[key] for key in ("name", "param", "value", "call") if key in score.detail)


@pytest.mark.parametrize("matching", ["greedy", "optimal"])
@pytest.mark.parametrize(("similarity", "target", "candidate", "correct"), [
    # Order counts where lists must be equal; calls in another order still have their parameters and values.
    ("refined", (GOLD,), made(call("A", y="b", x=2)), 6 * 2 / 4 - 3),
    ("refined", (GOLD,), made(call("A", x=1, y="b", z=0)), 6 * 3 / 4 - 3),
    ("refined", (GOLD,), made(GOLD, call("C")), 6 * 3 / 4 - 3),
    ("refined", (call("A"), call("B")), made(call("B"), call("A")), 6 * 2 / 3 - 3),
    # S_max is 1 for the names and 1 for each call.
    ("intermediate", (GOLD,), made(call("A", x=2, y="b")), 6 * 1 / 2 - 3),
    ("intermediate", (GOLD,), made(GOLD, call("C")), 6 * 1.5 / 2 - 3),
    ("intermediate", (ONE, TWO), made(TWO, ONE), 3),
    ("intermediate", (ONE, TWO), made(ONE), 6 * 1.5 / 3 - 3),
    ("intermediate", (ONE, ONE), made(ONE, TWO), 6 * 2 / 3 - 3),
    ("coarse", (GOLD,), made(call("A", y="b", x=1.0)), 3),
    ("coarse", (GOLD,), made(call("A", x=2, y="b")), -3),
    ("coarse", (ONE, TWO), made(TWO, ONE), -3),
])  # fmt: skip
def test_similarity(
    similarity: Any, target: tuple[ToolCall, ...], candidate: Candidate, correct: float, matching: Any
) -> None:
    score = toolrl(similarity=similarity, matching=matching)(sample(*target), candidate)
    assert score.detail["correct"] == pytest.approx(correct, abs=1e-12)


def test_greedy_matching_can_miss_the_best_one() -> None:
    """Target A(x=1), A(x=1, y=2); answer A(x=1, y=2), A(x=9); S_max = 1 + 2 + 3.

    The first target call is worth 1/2 + 1 with the first call made and 1 + 0 with the second; the second one 1 + 2 and
    1/2 + 0. Greedy: S = 1 + 3/2 + 1/2 = 3; optimal: S = 1 + 1 + 3 = 5.
    """
    target, candidate = sample(ONE, call("A", x=1, y=2)), made(call("A", x=1, y=2), call("A", x=9))
    assert toolrl()(target, candidate).detail["correct"] == pytest.approx(0)
    assert toolrl(matching="optimal")(target, candidate).detail["correct"] == pytest.approx(2)


@pytest.mark.parametrize(("equality", "correct"), [("released", 3), ("strict", 6 * 2 / 3 - 3)])
def test_value_equality(equality: Any, correct: float) -> None:
    """One parameter, so S_max = 3, and S = 2 with its value wrong."""
    scorer = toolrl(value_equality=equality)
    for gold, value in ((ONE, True), (call("A", x={"k": [1]}), {"k": [True]})):
        score = scorer(sample(gold), made(call("A", x=value)))
        assert (score.detail["correct"], score.exact) == (correct, False)
    assert scorer(sample(ONE), made(call("A", x=1.0))).detail["correct"] == 3


STEPS = (0, 29, 30, 75, 150, 1000)


LINEAR = [(-2, 2), (-2 + 58 / 150, 2 - 29 / 150), (-1.6, 1.8), (-1, 1.5), (-1, 1), (-1, 1)]


@pytest.mark.parametrize(("options", "formats", "corrects"), [
    ({"correct_max": 1}, [(0, 1)] * 6, [1] * 6),
    ({"schedule": "max1step30max3"}, [(0, 1)] * 2 + [(0, 0.5)] * 4, [1, 1, 3, 3, 3, 3]),
    ({"schedule": "max1step30max3", "correct_max": 1}, [(0, 1)] * 2 + [(0, 0.5)] * 4, [1 / 3] * 2 + [1] * 4),
    ({"schedule": "linear"}, LINEAR, [2, 2 + 29 / 150, 2.2, 2.5, 3, 3]),
    ({"schedule": "linear", "correct_max": 1}, LINEAR, [2, 2 - 29 / 150, 1.8, 1.5, 1, 1]),
])  # fmt: skip
def test_schedules(options: dict[str, Any], formats: list[tuple[float, float]], corrects: list[float]) -> None:
    scorer = toolrl(**options)
    low, high = scorer.bounds
    reached = []
    for step, (wrong, right), best in zip(STEPS, formats, corrects, strict=True):
        good, bad = (scorer(sample(GOLD), answer(text), step=step) for text in (RIGHT, REPLY))
        assert (good.detail["format"], good.detail["correct"]) == pytest.approx((right, best))
        assert (bad.detail["format"], bad.detail["correct"]) == pytest.approx((wrong, -best))
        assert scorer(sample(text="Done."), answer(REPLY), step=step).value == pytest.approx(right)
        reached += [good.value, bad.value]
    assert (min(reached), max(reached)) == pytest.approx((low, high))


@pytest.mark.parametrize(("length", "words", "step", "value"), [
    ("fixed", 256, 1000, 0.5), ("fixed", 100, 0, 0.2), ("fixed", 900, 0, 1), ("fixed", 0, 0, 0),  # 0.195 is rounded
    ("scheduled", 192, 0, 0.5), ("scheduled", 320, 105, 0.5), ("scheduled", 320, 1000, 0.5),
    ("scheduled", 256, 105 // 2, 0.5),  # 256 / 510.8
])  # fmt: skip
def test_length(length: Any, words: int, step: int, value: float) -> None:
    score = toolrl(length=length)(sample(GOLD), answer(RIGHT.replace("Let me see.", "word " * words)), step=step)
    assert score.detail["length"] == value
    assert score.value == 4 + value


# ---- plain answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["python", "json", "hermes", "llama3_json"])
@pytest.mark.parametrize("form", ["its own", "any"])
def test_plain_answers_have_the_same_correctness(syntax: str, form: str) -> None:
    scorer = toolrl(format="plain", syntax=syntax if form == "its own" else "any")
    for calls in ([GOLD], [call("A", x=2, y="b")], [GOLD, GOLD], [call("B")], [call("A", x=1, z=2)]):
        score = scorer(sample(GOLD), parsed(get_syntax(syntax).print(calls), syntax))
        assert score.value == toolrl()(sample(GOLD), made(*calls)).value
        assert score.exact == (calls == [GOLD])


def test_plain_format() -> None:
    scorer = toolrl(format="plain", syntax="hermes")
    text = get_syntax("hermes").print([GOLD])

    def of(target: Sample, text: str) -> tuple[float, float]:
        score = scorer(target, parsed(text, "hermes"))
        return score.detail["format"], score.detail["correct"]

    assert of(sample(GOLD), text) == (1, 3)
    assert of(sample(GOLD), f"Sure. {text}") == (0, 3)
    assert of(sample(GOLD), "Sure.") == (0, -3)
    assert of(sample(GOLD), text[:-1]) == (0, -3)
    assert of(sample(text="Done."), "Done.") == (1, 0)
    assert of(sample(text="Done."), text) == (0, 0)
    assert of(sample(text="Done."), text[:-1]) == (0, 0)
    said = scorer(sample(GOLD), parsed(f"Sure. {text}", "hermes")).explanation
    assert said == "the text is not calls alone; calls equal the target"
