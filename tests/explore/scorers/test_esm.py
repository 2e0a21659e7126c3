"""ESM: hand-worked values, the released formula written a second time as an oracle, and properties.

The tool has two required strings unless said otherwise, so one of two arguments weighs a half:

    one value wrong                  (3 + 3 + 1 + 2 + 2 * 1/2) / 11 = 10/11   = 0.9091
    wrong tool name only             (0 + 3 + 1 + 2 + 2) / 11       = 8/11    = 0.7273
    one of two missing, mended       (3 + 3/2 + 1/2 + 2/2 + 2/2) / 11 = 7/11   = 0.6364
    one of two missing, as released  (3 + 3 + 1/2 + 2/2 + 2/2) / 11 = 8.5/11  = 0.7727
    one of two differs by case       (3 + 3 + 1 + 2 + 2 * (1 + 1/2)/2) / 11 = 10.5/11 = 0.9545
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.options import made as option
from tests.toolcalls import answer, call, sample, spec
from ttpa.explore.scorers.esm import ESM, PARTS
from ttpa.records import Candidate, Score, ToolCall, ToolSpec

AB = {"a": "string", "b": "string"}
TOOLS = (
    spec("f", ("a", "b"), **AB),
    spec("g", ("a", "b"), **AB),
    spec("none", (), x="integer"),
    spec("mix", ("n",), n="integer", r="number", t="string"),
)
MENDED: ESM = option("scorer", "esm")
RELEASED: ESM = option("scorer", "esm_as_released")


def score(gold: Sequence[ToolCall], made: Candidate, scorer: ESM = MENDED) -> Score:
    return scorer(sample(*gold, tools=TOOLS), made)


def value(gold: ToolCall, made: ToolCall, scorer: ESM = MENDED) -> float:
    return score([gold], answer(made), scorer).value


GOLD = call("f", a="Rome", b="Oslo")


@pytest.mark.parametrize(("made", "mended", "as_released"), [
    (GOLD, 1, 1),
    (call("f", a="Rome", b="Bonn"), 10 / 11, 10 / 11),
    (call("g", a="Rome", b="Oslo"), 8 / 11, 8 / 11),
    (call("f", a="Rome"), 7 / 11, 8.5 / 11),
    (call("f", a="Rome", b="OSLO"), 10.5 / 11, 10.5 / 11),
    (call("f", a="Rome", b="Os"), 10.5 / 11, 10.5 / 11),
    (call("f", a="Rome", b="os"), 10 / 11, 10 / 11),  # contained only but for case: nothing
    (call("f"), 0, 0),
    (call("nowhere", a="Rome", b="Oslo"), 0, 0),
])  # fmt: skip
def test_hand_worked(made: ToolCall, mended: float, as_released: float) -> None:
    assert value(GOLD, made) == pytest.approx(mended)
    assert value(GOLD, made, RELEASED) == pytest.approx(as_released)


def test_empty_arguments() -> None:
    """Both empty: 1 with the right name, 0 with another. Target empty, one argument given: (3 + 3 + 1 + 2 + 0) / 11."""
    gold = sample(call("p"), tools=(spec("p", (), x="integer"), spec("q", (), x="integer")))
    for scorer in (MENDED, RELEASED):
        found = [scorer(gold, answer(made)).value for made in (call("p"), call("q"), call("p", x=1))]
        assert found == pytest.approx([1, 0, 9 / 11])


def test_a_boolean_is_no_integer() -> None:
    """n is the only argument: mended (3 + 3 + 1 + 0 + 0) / 11; released 1, as True is an int and equals 1 in Python."""
    gold, made = call("mix", n=1), call("mix", n=True)
    assert value(gold, made) == pytest.approx(7 / 11)
    assert value(gold, made, RELEASED) == 1
    assert not score([gold], answer(made), RELEASED).exact


def test_arguments_as_json_text_are_parsed_once_more() -> None:
    text: Any = json.dumps(GOLD.arguments)
    assert score([GOLD], answer(ToolCall(name="f", arguments=text))).exact
    assert value(GOLD, ToolCall(name="f", arguments=text), RELEASED) == 1
    twice: Any = json.dumps(text)
    assert value(GOLD, ToolCall(name="f", arguments=twice)) == 0


def test_several_calls() -> None:
    """Order is free; of two target calls one is made: 1/2; a third, surplus call: 2/3; the second half right: 21/22."""
    one, two = call("f", a="Rome", b="Oslo"), call("f", a="Bonn", b="Bern")
    wrong = call("f", a="Bonn", b="?")
    found = [score([one, two], answer(*made)).value for made in ((two, one), (two,), (one, two, wrong), (wrong, one))]
    assert found == pytest.approx([1, 1 / 2, 2 / 3, (1 + 10 / 11) / 2])


def test_a_target_that_breaks_its_schema_scores_one_against_itself() -> None:
    odd = call("mix", n="three", unheard_of=1)
    assert value(odd, odd) == 1
    assert value(odd, odd, RELEASED) == pytest.approx((3 + 3 + 0.5 + 0 + 2) / 11)


def released_formula(gold: ToolCall, made: ToolCall, tools: tuple[ToolSpec, ...]) -> float:
    """The released scoring of one call, written from its description and not from the scorer."""
    found = [tool for tool in tools if tool.name == made.name]
    if not found:
        return 0.0  # the release raises an IndexError
    if not made.arguments:
        return float(made.name == gold.name and not gold.arguments)
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float)}
    size = len(gold.arguments) if len(made.arguments) < len(gold.arguments) else len(made.arguments)
    keys = types = values = 0.0
    for key, item in made.arguments.items():
        if key in found[0].properties:
            keys += 1
            types += isinstance(item, kinds[found[0].properties[key]["type"]])
        if key in gold.arguments:
            other = gold.arguments[key]
            if item == other:
                values += 1
            elif isinstance(item, str) and isinstance(other, str):
                values += 0.5 if item.lower() == other.lower() else 0
                values += 0.5 if item in other or other in item else 0
    needed = found[0].required
    present = [key for key in needed if key in gold.arguments]
    required = len(present) / len(needed) if needed else 1
    return (3 * (gold.name == made.name) + 3 * required + keys / size + 2 * (types / size) + 2 * (values / size)) / 11


VALUES = st.sampled_from(["Rome", "ROME", "Rom", "", "1", True, False, None, [1]]) | st.integers(-1, 2) | st.floats()
CALLS = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=arguments),
    st.sampled_from(["f", "g", "none", "mix", "nowhere"]),
    st.dictionaries(st.sampled_from(["a", "b", "n", "r", "t", "x", "zz"]), VALUES, max_size=4),
)


@given(gold=CALLS, made=CALLS)
@settings(max_examples=300, deadline=None)
def test_as_released_is_the_released_formula_to_the_bit(gold: ToolCall, made: ToolCall) -> None:
    assert value(gold, made, RELEASED) == released_formula(gold, made, TOOLS)


@given(gold=st.lists(CALLS, max_size=3), made=st.lists(CALLS, max_size=4), released=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_range_and_order(gold: list[ToolCall], made: list[ToolCall], released: bool, data: st.DataObject) -> None:
    found = score(gold, answer(*made), RELEASED if released else MENDED)
    assert 0 <= found.value <= 1
    assert Score.from_json(json.loads(json.dumps(found.to_json()))) == found
    if not released:
        assert all(0 <= part <= 1 for part in found.detail.values())
        assert not found.exact or found.value == 1
        shuffled = data.draw(st.permutations(made))
        assert score(gold, answer(*shuffled)).value == pytest.approx(found.value, abs=1e-12)


@given(gold=st.lists(CALLS, max_size=3), weights=st.tuples(*[st.floats(0.01, 9)] * 5))
@settings(max_examples=100, deadline=None)
def test_identity_scores_one(gold: list[ToolCall], weights: tuple[float, ...]) -> None:
    scorer = option("scorer", "esm", weights=dict(zip(PARTS, weights, strict=True)))
    copies = [call(item.name, **dict(reversed(list(item.arguments.items())))) for item in reversed(gold)]
    if any(item != item for one in gold for item in one.arguments.values()):
        return  # NaN is not equal to itself
    found = score(gold, answer(*copies), scorer)
    assert (found.value, found.exact) == (1, True)


def nested(depth: int) -> Any:
    item: Any = 1
    for _ in range(depth):
        item = {"k": [item]}
    return item


HOSTILE: dict[str, Any] = {
    "none": None,
    "no call": (),
    "deep": [call("f", a=nested(5000), b=10**5000)],
    "nan": [call("f", a=float("nan"), b="x" * 10**6)],
    "surrogate": [call("", **{"\ud800": None, "": []})],
    "null": [ToolCall(name=None, arguments=None)],  # type: ignore[arg-type]
    "brackets": [ToolCall(name="f", arguments="[" * 10**5)],  # type: ignore[arg-type]
    "deeper": [call("f", a="Rome", b=nested(5001))],
    "many": [call("f", a=str(at)) for at in range(300)],
}


@pytest.mark.parametrize("calls", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("target", [(), (call("f", a="Rome", b=nested(5000)), GOLD)], ids=["text", "deep"])
def test_hostile_candidates_never_raise(calls: Sequence[ToolCall] | None, target: tuple[ToolCall, ...]) -> None:
    for scorer in (MENDED, RELEASED):
        found = score(target, answer(*calls or (), parsed=calls is not None), scorer)
        assert 0 <= found.value <= 1 and len(found.explanation) < 600
