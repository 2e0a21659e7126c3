"""The embedded world: the same tools everywhere, calls that run or are refused, values that split by their text."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from ttpa.calls.schema import check_call, type_ok
from ttpa.data.reversed.world import (
    KIND_OF,
    KINDS,
    NOUNS,
    VERBS,
    ExecutionError,
    Kind,
    Tool,
    draw_value,
    execute,
    make_world,
    split_of_value,
)
from ttpa.records import ToolCall, ToolSpec

WORLD = make_world(world_seed=0, train_tools=64, unseen_tools=6)
PYTHON_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}

ROOM = Tool(
    ToolSpec(
        name="book_room",
        description="Book a room.",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string"}, "count": {"type": "integer"},
                           "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["city"],
        },
    ),
    (KIND_OF["city"], KIND_OF["count"], KIND_OF["tags"]),
)  # fmt: skip


def run(**arguments: object) -> dict[str, object]:
    return execute(ToolCall(name="book_room", arguments=arguments), {"book_room": ROOM})


def test_a_world_has_the_tools_it_was_asked_for_each_once() -> None:
    assert (len(WORLD.tools), len(WORLD.unseen)) == (64, 6)
    names = [tool.spec.name for tool in (*WORLD.tools, *WORLD.unseen)]
    assert len(set(names)) == 70
    assert set(WORLD.by_name()) == set(names)
    assert {tuple(name.split("_")) for name in names} <= {(verb, noun) for verb in VERBS for noun in NOUNS}


def test_holding_tools_out_changes_no_training_tool() -> None:
    assert make_world(world_seed=0, train_tools=64, unseen_tools=0).tools == WORLD.tools


def test_tools_have_two_to_four_typed_parameters_of_which_one_or_two_are_required() -> None:
    declared = Counter[bool]()
    for tool in (*WORLD.tools, *WORLD.unseen):
        assert 2 <= len(tool.kinds) <= 4 and 1 <= len(tool.spec.required) <= 2
        assert list(tool.spec.properties) == [kind.name for kind in tool.kinds]
        assert set(tool.spec.required) <= set(tool.spec.properties)
        for kind in tool.kinds:
            schema = tool.spec.properties[kind.name]
            as_text = kind.type in ("integer", "number") and schema == {"type": "string"}
            assert as_text or schema["type"] == kind.type
            assert schema.get("items") == ({"type": kind.items} if kind.items else None)
            if kind.type in ("integer", "number"):
                declared[as_text] += 1
    assert 0.05 < declared[True] / declared.total() < 0.3  # some numbers are declared as text


def test_sites_are_the_parameters_of_the_training_tools() -> None:
    assert len(WORLD.sites) == len(set(WORLD.sites)) == sum(len(tool.kinds) for tool in WORLD.tools)
    assert not {tool.spec.name for tool in WORLD.unseen} & {name for name, _ in WORLD.sites}


def test_a_valid_call_runs_and_its_reply_depends_on_the_call_alone() -> None:
    reply = run(city="Bana", count=3, tags=["red"])
    assert reply["status"] == "ok"
    assert reply == run(tags=["red"], count=3, city="Bana")
    assert reply != run(city="Bana", count=4, tags=["red"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 3}, "book_room needs city"),
        ({"city": "Bana", "count": "3"}, "count"),
        ({"city": "Bana", "tags": [1]}, "tags"),
        ({"city": "Bana", "town": "Kizo"}, "no parameter .*town"),
    ],
)
def test_a_call_that_does_not_fit_the_schema_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ExecutionError, match=said):
        run(**arguments)


def test_an_unknown_tool_is_refused_and_every_problem_named() -> None:
    with pytest.raises(ExecutionError, match="'book_moon'"):
        execute(ToolCall(name="book_moon"), {"book_room": ROOM})
    with pytest.raises(ExecutionError, match=r"city.*; .*count"):
        run(count="3")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_drawn_values_have_the_declared_type_and_are_said_with_their_text(kind: Kind) -> None:
    rng = random.Random(1)
    for _ in range(200):
        value = kind.draw(rng)
        assert type(value) is PYTHON_TYPES[kind.type]
        assert type_ok(value, kind.schema(as_text=False))
        said = kind.say(value)
        parts = value if isinstance(value, list) else [value]
        assert all(str(part) in said for part in parts) or kind.type == "boolean"
    assert kind.schema(as_text=True)["type"] == ("array" if kind.items else "string")


def test_no_wrong_name_is_the_right_name_of_another_kind() -> None:
    assert len(KIND_OF) == len(KINDS) == 15
    assert len({kind.synonym for kind in KINDS}) == len(KINDS)
    assert not {kind.synonym for kind in KINDS} & set(KIND_OF)


def test_values_are_split_eighty_ten_ten_by_their_text() -> None:
    counts = Counter(split_of_value(number) for number in range(20000))
    for split, share in {"train": 0.8, "validation": 0.1, "test": 0.1}.items():
        assert counts[split] / 20000 == pytest.approx(share, abs=0.01)
    assert all(split_of_value(number) == split_of_value(str(number)) for number in range(100))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_drawn_value_belongs_to_its_split_where_the_kind_has_enough_values(split: str) -> None:
    rng = random.Random(2)
    for kind in KINDS:
        drawn = {split_of_value(draw_value(rng, kind, split)) for _ in range(60)}
        assert drawn == {split} or not kind.splittable


def test_a_kind_without_a_value_of_the_split_is_reported() -> None:
    value = next(number for number in range(100) if split_of_value(number) == "train")
    kind = replace(KIND_OF["amount"], draw=lambda _: value)
    with pytest.raises(RuntimeError, match="no test value of kind 'amount'"):
        draw_value(random.Random(0), kind, "test")


def test_a_world_call_that_follows_the_schema_always_runs() -> None:
    rng = random.Random(3)
    for tool in WORLD.tools:
        arguments = {kind.name: kind.draw(rng) for kind in tool.kinds}
        arguments = {key: str(value) if tool.spec.properties[key] == {"type": "string"} else value
                     for key, value in arguments.items()}  # fmt: skip
        call = ToolCall(name=tool.spec.name, arguments=arguments)
        assert not check_call(call, (tool.spec,))
        assert execute(call, WORLD.by_name())["status"] == "ok"
