"""The gates: what counts as said, which questions name a tool, which answers fit, what is a near-copy."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttpa.data.reversed.gates import NearDuplicates, Said, named_tool, ungrounded, unsupported
from ttpa.data.reversed.scenario import Refused, read_object


@pytest.mark.parametrize(("value", "text"), [
    ("New York", "fly me to NEW YORK, please"), ("New York", "york is new"), (1500, "about $1,500.00"),
    (0.05, "at 5 %"),
    (2500000, "2.5 million people"), (20, "twenty of them"), (-5, "minus 5 degrees"), (-5, "at -5"), (3.0, "3 rooms"),
    ("2025-03-05", "on March 5th, 2025"), ("2025-03-05", "5 Mar 2025"), ("2025-03-05", "05/03/2025"),
    ("14:30", "at 2:30 pm"), ("09:00", "by 9 am"), ("12:00", "at noon"),
    ("2025-03-05T14:30:00", "March 5, 2025, 2:30 pm"),
    (True, "x"), (None, "x"), ("", "x"), ([], "x"), ({"a": ["red", 7]}, "seven red ones"),
    ("the cat of Rome", "Rome's cat"),
    ("order-12", "order number 12"), ("***", "with *** stars"), ("7", "seven"),
])  # fmt: skip
def test_a_value_is_said(value: Any, text: str) -> None:
    assert Said(text).holds(value)


@pytest.mark.parametrize(("value", "text"), [
    ("New York", "York"), (1500, "15 00"), (5, "15 or 50"), (20, "2 and 0"), ("2025-03-05", "March 5th"),
    (0.05, "5 dogs"),
    ("2025-03-05", "March 6th, 2025"), ("14:30", "at 2:30 am"), ("09:00", "by 9 pm"), ({"a": ["red", 7]}, "red ones"),
    (False, None), ("***", "no stars"), ("red", "reduce"), (12.5, "12"),
])  # fmt: skip
def test_a_value_is_not_said(value: Any, text: str | None) -> None:
    assert text is None or not Said(text).holds(value)


LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@given(st.dictionaries(st.text(), JSON), st.text())
def test_whatever_a_model_writes_raises_nothing(arguments: dict[str, Any], text: str) -> None:
    ungrounded(arguments, Said(text))
    unsupported(text, Said(text), Said(""))
    named_tool(text, list(arguments))


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_said_in_figures(number: int) -> None:
    assert Said(f"It is {number}, or so").holds(number) and Said(f"It is {number:,}.").holds(number)


@pytest.mark.parametrize(("text", "name"), [
    ("use get_user now", "get_user"), ("Get user 5", "get_user"), ("the getUser thing", "getUser"),
    ("get-USER", "getUser"),
    ("set HTTP proxy", "setHTTPProxy"), ("find it", "find"), ("call a.b.c", "a.b.c"), ("wetter holen", "wetter_holen"),
])  # fmt: skip
def test_a_tool_name_in_any_spelling_is_found(text: str, name: str) -> None:
    assert named_tool(text, ["other_thing", name]) == name


@pytest.mark.parametrize(
    ("text", "name"), [("finding it", "find"), ("get the user", "get_user"), ("users get", "get_user")]
)
def test_other_words_are_no_tool_name(text: str, name: str) -> None:
    assert named_tool(text, [name]) is None


@pytest.mark.parametrize(("answer", "problem"), [
    ("The room costs 120.5 euros.", None), ("It is about 121 euros.", None),
    ("Room B77 costs 3 things.", "b77 is in no"),
    ("The price is 130.", "130 is in no result"), ("All is done, friend!", "it says nothing of the calls"),
    ("A price for Lena: 120.50", None), ("The 2 of them are in the room", None), ("The price on 31 May", "31 is in no"),
])  # fmt: skip
def test_an_answer_fits_its_results(answer: str, problem: str | None) -> None:
    found = unsupported(answer, Said('{"price": 120.5, "room": "A1"}'), Said("Lena asks"))
    assert found is None if problem is None else found is not None and found.startswith(problem)


def test_near_copies_are_found_and_others_are_not() -> None:
    pytest.importorskip("datasketch")
    near = NearDuplicates(0.7)
    words = "please book the red room for Lena on Monday at nine and tell Omar about it by mail today thanks".split()  # noqa: SIM905
    assert near.near("a", " ".join(words)) is None
    assert near.near("b", " ".join([*words[:-1], "much"])) == "a"
    assert (
        near.near("c", " ".join(reversed(words))) is None
        and near.near("d", "hi") is None
        and near.near("e", "hi") == "d"
    )


@pytest.mark.parametrize(("text", "found"), [
    ('{"a": 1}', {"a": 1}), ('Sure: ```json\n{"a": {"b": 2}}\n```', {"a": {"b": 2}}),
    ('<think>{"a": 0}</think>{"a": 1}', {"a": 1}),
    ('{bad} {"a": 1}', {"a": 1}),
])  # fmt: skip
def test_an_object_is_read_out_of_a_reply(text: str, found: Any) -> None:
    assert read_object(text) == found


@pytest.mark.parametrize("text", ["", "no", '{"a": ', "[1]", '{"a": NaN}', "{" * 5000])
def test_a_reply_without_an_object_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_object(text)
    assert refused.value.gate == "format"
