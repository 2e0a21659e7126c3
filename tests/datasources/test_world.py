"""The embedded world: typed tools, calls that run or are refused, values that split by their text."""

import random
from collections import Counter

import pytest

from ttpa.calls.schema import type_ok
from ttpa.data.reversed.world import (
    KIND_OF,
    KINDS,
    ExecutionError,
    Kind,
    draw_call,
    execute,
    make_world,
    split_of_value,
)  # fmt: skip
from ttpa.records import ToolCall, ToolSpec

WORLD = make_world(world_seed=0, train_tools=64, unseen_tools=6)
PYTHON_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}
PROPERTIES = {"city": {"type": "string"}, "count": {"type": "integer"},
              "tags": {"type": "array", "items": {"type": "string"}}}  # fmt: skip
ROOM = ToolSpec(name="book_room", parameters={"type": "object", "properties": PROPERTIES, "required": ["city"]})


def run(**arguments: object) -> dict[str, object]:
    return execute(ToolCall(name="book_room", arguments=arguments), [ROOM])


def test_a_world_has_different_tools_and_holding_some_out_changes_no_training_tool() -> None:
    assert (len(WORLD.tools), len({tool.name for tool in (*WORLD.tools, *WORLD.unseen)})) == (64, 70)
    assert make_world(world_seed=0, train_tools=64, unseen_tools=0).tools == WORLD.tools
    assert len(WORLD.sites) == sum(len(tool.properties) for tool in WORLD.tools)


def test_tools_have_two_to_four_typed_parameters_of_which_one_or_two_are_required() -> None:
    declared = Counter[bool]()
    for tool in (*WORLD.tools, *WORLD.unseen):
        assert 2 <= len(tool.properties) <= 4 and 1 <= len(tool.required) <= 2
        assert set(tool.required) <= set(tool.properties)
        for name, schema in tool.properties.items():
            kind = KIND_OF[name]
            as_text = kind.type in ("integer", "number") and schema == {"type": "string"}
            assert as_text or (schema["type"] == kind.type and ("items" in schema) == (kind.type == "array"))
            declared[as_text] += kind.type in ("integer", "number")
    assert 0.05 < declared[True] / declared.total() < 0.3  # some numbers are declared as text


def test_the_reply_of_a_valid_call_depends_on_the_call_alone() -> None:
    reply = run(city="Bana", count=3, tags=["red"])
    assert reply["status"] == "ok"
    assert reply == run(tags=["red"], count=3, city="Bana") != run(city="Bana", count=4, tags=["red"])


@pytest.mark.parametrize(("arguments", "said"), [
    ({"count": "3"}, "book_room needs city.* .*count"), ({"city": "Bana", "tags": [1]}, "tags"),
    ({"city": "Bana", "town": "Kizo"}, "no parameter .*town"),
])  # fmt: skip
def test_a_call_that_does_not_fit_the_schema_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ExecutionError, match=said):
        run(**arguments)
    with pytest.raises(ExecutionError, match="book_moon"):
        execute(ToolCall(name="book_moon"), [ROOM])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_values_have_the_declared_type_are_said_with_their_text_and_belong_to_their_split(kind: Kind) -> None:
    rng, schema = random.Random(1), {"type": kind.type, "items": {"type": kind.items}}
    tool = ToolSpec(name="f", parameters={"properties": {kind.name: schema}, "required": [kind.name]})
    for split in ("train", "validation", "test") * 20:
        value = draw_call(rng, tool, split).arguments[kind.name]
        assert type(value) is PYTHON_TYPES[kind.type] and type_ok(value, schema)
        parts = value if isinstance(value, list) else [value]
        assert all(str(part) in kind.say(value) for part in parts) or kind.type == "boolean"
        assert split_of_value(value) == split or not kind.splittable
    assert kind.synonym not in KIND_OF


def test_values_are_split_eighty_ten_ten() -> None:
    counts = Counter(split_of_value(number) for number in range(20000))
    for split, share in {"train": 0.8, "validation": 0.1, "test": 0.1}.items():
        assert counts[split] / 20000 == pytest.approx(share, abs=0.01)
