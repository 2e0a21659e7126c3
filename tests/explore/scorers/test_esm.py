"""ESM: hand-worked values, the released formula written a second time as an oracle, and properties.

The tool has two required strings unless said otherwise, so one of two arguments weighs a half:

    one value wrong                  (3 + 3 + 1 + 2 + 2 * 1/2) / 11 = 10/11   = 0.9091
    wrong tool name only             (0 + 3 + 1 + 2 + 2) / 11       = 8/11    = 0.7273
    one of two missing, mended       (3 + 3/2 + 1/2 + 2/2 + 2/2) / 11 = 7/11   = 0.6364
    one of two missing, as released  (3 + 3 + 1/2 + 2/2 + 2/2) / 11 = 8.5/11  = 0.7727
    one of two differs by case       (3 + 3 + 1 + 2 + 2 * (1 + 1/2)/2) / 11 = 10.5/11 = 0.9545
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.options import made as option
from ttpa.explore.scorers.esm import ESM, PARTS
from ttpa.records import Candidate, Sample, Score, ToolCall, ToolSpec


def spec(name: str, required: tuple[str, ...] = ("a", "b"), **types: str) -> ToolSpec:
    properties = {key: {"type": kind} for key, kind in (types or {"a": "string", "b": "string"}).items()}
    return ToolSpec(name=name, parameters={"type": "object", "properties": properties, "required": list(required)})


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


TOOLS = (spec("f"), spec("g"), spec("none", (), x="integer"), spec("mix", ("n",), n="integer", r="number", t="string"))


def sample(*target: ToolCall, tools: tuple[ToolSpec, ...] = TOOLS) -> Sample:
    return Sample(id="s", tools=tools, messages=(), target=target, source="test")


def answer(*calls: Any, parsed: bool = True) -> Candidate:
    return Candidate(sample_id="s", index=0, text="", calls=calls if parsed else None)


MENDED: ESM = option("scorer", "esm")
RELEASED: ESM = option("scorer", "esm_as_released")


def value(gold: ToolCall, made: ToolCall, scorer: ESM = MENDED) -> float:
    return scorer(sample(gold), answer(made)).value


GOLD = call("f", a="Rome", b="Oslo")


@pytest.mark.parametrize(
    ("made", "mended", "as_released"),
    [
        (GOLD, 1, 1),
        (call("f", a="Rome", b="Bonn"), 10 / 11, 10 / 11),
        (call("g", a="Rome", b="Oslo"), 8 / 11, 8 / 11),
        (call("f", a="Rome"), 7 / 11, 8.5 / 11),
        (call("f", a="Rome", b="OSLO"), 10.5 / 11, 10.5 / 11),
        (call("f", a="Rome", b="Os"), 10.5 / 11, 10.5 / 11),
        (call("f", a="Rome", b="os"), 10 / 11, 10 / 11),  # contained only but for case: nothing
        (call("f"), 0, 0),
        (call("nowhere", a="Rome", b="Oslo"), 0, 0),
    ],
)
def test_hand_worked(made: ToolCall, mended: float, as_released: float) -> None:
    assert value(GOLD, made) == pytest.approx(mended)
    assert value(GOLD, made, RELEASED) == pytest.approx(as_released)


def test_empty_arguments() -> None:
    """Both empty: 1 with the right name, 0 with another. Target empty, one argument given: (3 + 3 + 1 + 2 + 0) / 11."""
    tools = (spec("p", (), x="integer"), spec("q", (), x="integer"))
    gold = sample(call("p"), tools=tools)
    for scorer in (MENDED, RELEASED):
        assert scorer(gold, answer(call("p"))).value == 1
        assert scorer(gold, answer(call("q"))).value == 0
        assert scorer(gold, answer(call("p", x=1))).value == pytest.approx(9 / 11)


def test_a_boolean_is_no_integer() -> None:
    """n is the only argument: mended (3 + 3 + 1 + 0 + 0) / 11; released 1, as True is an int and equals 1 in Python."""
    gold, made = call("mix", n=1), call("mix", n=True)
    assert value(gold, made) == pytest.approx(7 / 11)
    assert value(gold, made, RELEASED) == 1
    assert not RELEASED(sample(gold), answer(made)).exact


def test_arguments_as_json_text_are_parsed_once_more() -> None:
    text: Any = json.dumps(dict(GOLD.arguments))
    score = MENDED(sample(GOLD), answer(ToolCall(name="f", arguments=text)))
    assert (score.value, score.exact) == (1, True)
    assert value(GOLD, ToolCall(name="f", arguments=text), RELEASED) == 1
    twice: Any = json.dumps(text)
    assert value(GOLD, ToolCall(name="f", arguments=twice)) == 0


def test_several_calls() -> None:
    """Order is free; of two target calls one is made: 1/2; a third, surplus call: 2/3; the second half right: 21/22."""
    one, two = call("f", a="Rome", b="Oslo"), call("f", a="Bonn", b="Bern")
    gold = sample(one, two)
    assert MENDED(gold, answer(two, one)).value == 1
    assert MENDED(gold, answer(two)).value == pytest.approx(1 / 2)
    assert MENDED(gold, answer(one, two, call("f", a="x", b="y"))).value == pytest.approx(2 / 3)
    assert MENDED(gold, answer(call("f", a="Bonn", b="?"), one)).value == pytest.approx((1 + 10 / 11) / 2)


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
    kinds: dict[str, Any] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
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


VALUES = st.one_of(
    st.sampled_from(["Rome", "ROME", "Rom", "", "1"]),
    st.integers(-1, 2),
    st.booleans(),
    st.none(),
    st.just([1]),
    st.floats(),
)
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
    score = (RELEASED if released else MENDED)(sample(*gold), answer(*made))
    assert 0 <= score.value <= 1
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    if not released:
        assert all(0 <= part <= 1 for part in score.detail.values())
        assert not score.exact or score.value == 1
        shuffled = data.draw(st.permutations(made))
        assert MENDED(sample(*gold), answer(*shuffled)).value == pytest.approx(score.value, abs=1e-12)


@given(gold=st.lists(CALLS, max_size=3), weights=st.tuples(*[st.floats(0.01, 9)] * 5))
@settings(max_examples=100, deadline=None)
def test_identity_scores_one(gold: list[ToolCall], weights: tuple[float, ...]) -> None:
    scorer = option("scorer", "esm", weights=dict(zip(PARTS, weights, strict=True)))
    copies = [
        ToolCall(name=item.name, arguments=dict(reversed(list(item.arguments.items())))) for item in reversed(gold)
    ]
    if any(item != item for one in gold for item in one.arguments.values()):
        return  # NaN is not equal to itself
    score = scorer(sample(*gold), answer(*copies))
    assert (score.value, score.exact) == (1, True)


def nested(depth: int) -> Any:
    item: Any = 1
    for _ in range(depth):
        item = {"k": [item]}
    return item


@pytest.mark.parametrize(
    "candidate",
    [
        answer(parsed=False),
        answer(),
        answer(ToolCall(name="f", arguments={"a": nested(5000), "b": 10**5000})),
        answer(ToolCall(name="f", arguments={"a": float("nan"), "b": "x" * 10**6})),
        answer(ToolCall(name="", arguments={"\ud800": None, "": []})),
        answer(ToolCall(name=None, arguments=None)),  # type: ignore[arg-type]
        answer(ToolCall(name="f", arguments="[" * 10**5)),  # type: ignore[arg-type]
        answer(ToolCall(name="f", arguments={"a": "Rome", "b": nested(5001)})),
        answer(*[call("f", a=str(at)) for at in range(300)]),
    ],
    ids=["none", "no call", "deep", "nan", "surrogate", "null", "brackets", "deeper", "many"],
)
@pytest.mark.parametrize(
    "target", [(), (GOLD,), (call("f", a="Rome", b=nested(5000)), GOLD)], ids=["text", "one", "deep"]
)
def test_hostile_candidates_never_raise(candidate: Candidate, target: tuple[ToolCall, ...]) -> None:
    for scorer in (MENDED, RELEASED):
        score = scorer(sample(*target), candidate)
        assert 0 <= score.value <= 1 and len(score.explanation) < 600
