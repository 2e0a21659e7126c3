"""ToolACE: every call turn of a dialogue becomes a sample with its history, or the row is rejected with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.sources import toolace
from ttpa.data.published import Converted
from ttpa.data.rows import BadRow
from ttpa.data.toolace import MAX_REPAIRS, looks_like_call, parse_split, split_system
from ttpa.io import read_jsonl, write_jsonl
from ttpa.records import Message, Sample, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data"
REAL = {"dialogues": DATA / "toolace_dialogues.jsonl.gz", "from_rlla": DATA / "toolace_from_rlla.jsonl.gz"}
BEFORE = (
    "You are an expert in composing functions. You are given a question and a set of possible functions. \n"
    "Here is a list of functions in JSON format that you can invoke:\n"
)
AFTER = ". \nShould you decide to return the function call(s). \nNO other text MUST be included."
FUNCTIONS = [
    {"name": "Get Zip (US)", "description": "[zip]", "required": None,
     "parameters": {"type": "dict", "properties": {"n": {"type": "int"}}}},
    {"name": "tags/list", "parameters": {"type": "dict", "properties": {"x": {"type": "str"}}}, "required": ["x"]},
]  # fmt: skip
ZIP, TAGS = ToolCall(name="Get Zip (US)", arguments={"n": 1}), ToolCall(name="tags/list")


def row(*turns: str, system: str | None = None, functions: Any = FUNCTIONS) -> dict[str, Any]:
    """A row whose turns are written "user: text"."""
    conversations = [dict(zip(("from", "value"), turn.split(": ", 1), strict=True)) for turn in turns]
    system = BEFORE + json.dumps(functions) + AFTER if system is None else system
    return {"system": system, "conversations": conversations}


def converted(*turns: str, functions: Any = FUNCTIONS, **more: Any) -> Converted:
    return toolace(REAL["dialogues"], **more).convert(row(*turns, functions=functions))


def built(name: str, out: Path, **more: Any) -> tuple[dict[str, Any], list[Sample], list[dict[str, Any]]]:
    """Counts, samples and published rows."""
    metrics = toolace(REAL[name], **more).build(out)
    files = [out / f"{file}.jsonl" for file in ("train", "validation", "test")]
    samples = [Sample.from_json(entry) for file in files for entry in read_jsonl(file)]
    return metrics, samples, list(read_jsonl(REAL[name]))


@pytest.mark.parametrize("name", REAL)
def test_every_call_turn_of_real_rows_is_a_sample_with_its_history(name: str, tmp_path: Path) -> None:
    metrics, samples, published = built(name, tmp_path)
    rows = {entry["conversations"][0]["value"]: entry["conversations"] for entry in published}
    assert (metrics["rows_read"], metrics["rows_rejected"]) == (len(rows), 0)
    # Counted without the reader: in these rows a turn that opens with a bracket is a call, and no other is.
    call_turns = [
        (opening, at) for opening, turns in rows.items() for at, turn in enumerate(turns)
        if turn["from"] == "assistant" and turn["value"].startswith("[")
    ]  # fmt: skip
    found = [(sample.messages[0].content, int(sample.id.rsplit("-", 1)[1])) for sample in samples]
    assert sorted(found) == sorted(call_turns) and len(call_turns) > len(rows) / 2
    assert metrics["kinds"] == {"call": len(call_turns), "text": 0}
    assert metrics["rows_without_call_turn"] == len(rows) - len({opening for opening, _ in call_turns})
    for sample in samples:
        turns = rows[sample.messages[0].content][: len(sample.messages)]
        assert [message.role for message in sample.messages] == [turn["from"] for turn in turns]
        for message, turn in zip(sample.messages, turns, strict=True):
            # The published text starts with the first call's name, whatever the quoting.
            called = f"[{message.calls[0].name}(" if message.calls else ""
            assert turn["value"].startswith(called) if called else message.content == turn["value"]
        assert all(sample.tool(call.name) for call in sample.target)


def test_text_turns(tmp_path: Path) -> None:
    metrics, samples, rows = built("from_rlla", tmp_path, text_turns=True)
    replies = sum(turn["from"] == "assistant" for entry in rows for turn in entry["conversations"])
    assert (len(samples), metrics["rows_without_call_turn"]) == (replies, 0)
    assert {sample.kind: sample.target_text is None for sample in samples} == {"call": True, "text": False}


def test_dialogue() -> None:
    turns = ("user: zip?", "assistant: [Get Zip (US)(n=1), tags/list()]", 'tool: [{"a": 1}]', "assistant: Done.",
             "user: tags?", "assistant: [tags/list()]")  # fmt: skip
    made = converted(*turns)
    first, second = made.samples
    assert (made.opening, first.target, second.target) == ("zip?", (ZIP, TAGS), (TAGS,))
    assert first.messages == second.messages[:1] == (Message(role="user", content="zip?"),)
    assert second.messages[1:] == (
        Message(role="assistant", calls=(ZIP, TAGS)), Message(role="tool", content='[{"a": 1}]'),
        Message(role="assistant", content="Done."), Message(role="user", content="tags?"),
    )  # fmt: skip
    assert (first.dialogue_id, first.tools) == (second.dialogue_id, second.tools)
    zip_tool, tags = first.tools
    assert zip_tool.parameters == {"type": "object", "properties": {"n": {"type": "integer"}}, "required": []}
    assert tags.required == ("x",)  # a list beside the parameters is their own
    replies = converted(*turns, text_turns=True).samples
    assert [(one.kind, one.target_text) for one in replies] == [("call", None), ("text", "Done."), ("call", None)]


@pytest.mark.parametrize(("text", "custom"), [
    (BEFORE + json.dumps(FUNCTIONS, indent=2) + AFTER, ""),
    ("Today is 2024-05-01.\n" + BEFORE + json.dumps(FUNCTIONS) + AFTER + "\nAnswer in [French].",
     "Today is 2024-05-01.\nAnswer in [French]."),
    ("Use the tools [1]: " + json.dumps(FUNCTIONS), "Use the tools [1]:"),  # no marker: the first list of functions
])  # fmt: skip
def test_system_text(text: str, custom: str) -> None:
    assert split_system(text) == (FUNCTIONS, custom)


@pytest.mark.parametrize(("text", "call"), [
    ("[f(x=1)]", True), (" [f x/y.z()]\n", True), ("[a](http://x) is a link (see it)", False), ("[1] says so", False),
    ("I would call [f(x=1)]", False), ("[f(x=[1](2))]", True),
])  # fmt: skip
def test_looks_like_call(text: str, call: bool) -> None:
    assert looks_like_call(text) is call


@pytest.mark.parametrize(("bad", "reason"), [
    (row("user: q", "assistant: [Other(n=1)]"), "tool not in list: turn 1 calls 'Other'"),
    (row("user: q", "assistant: ok", "user: r", "assistant: [tags/list(1)]"), "call not parsable: turn 3: "),
    (row("user: q", f"assistant: [tags/list(x=0x{'f' * 9000})]"), "call not parsable: turn 1: number out of range"),
    (row("user: q", system="no functions here"), "no tool list: the system text holds no"),
    (row("user: q", system=BEFORE + '[{"name": "f", "x": [{"name": "g"}]' + AFTER), "no tool list: .*is not JSON"),
    (row("user: q", functions=[{"description": "nameless"}]), "no tool list"),
    (row("user: q", functions=[FUNCTIONS[1], {"name": "tags/list", "description": "x"}]), "ambiguous tool name"),
    (row("user: q", functions=[{"name": "f", "parameters": "no"}]), "parameters not an object: tool 'f'"),
    (row("assistant: hi"), "no user turn"), (row("user: q", "robot: hi"), "unknown role: turn 1 is from 'robot'"),
    (row(), "missing key: 'conversations'"), ({"conversations": []}, "missing key: 'system'"),
    ({"system": BEFORE + "[]", "conversations": [{"from": "user"}]}, "missing key: turn 0"),
])  # fmt: skip
def test_bad_rows_say_why(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=f"^{reason}"):
        toolace(REAL["dialogues"]).convert(bad)


# What the conversion made of `f(<original>)`, and the original arguments.
SPLIT = {
    r'a="[\"North\"", "South"], b=1': {"a": ["North", "South"], "b": 1},
    r'a="{\"from\": 2017", "to": 2021}': {"a": {"from": 2017, "to": 2021}},
    r'a="{\"id\": \"P1\"", "past": [{"c": "x"}, {"c": "y"}], "now": ["A", "B"]}, b="z"': {
        "a": {"id": "P1", "past": [{"c": "x"}, {"c": "y"}], "now": ["A", "B"]}, "b": "z"},
    r'a="[{\"n\": \"$10,000, at most\"", "t": "2 h"}, {"n": "[", "t": "} \"]\""}]': {
        "a": [{"n": "$10,000, at most", "t": "2 h"}, {"n": "[", "t": '} "]"'}]},
    r'a="[1", 2], b="[true", null], c="x"': {"a": [1, 2], "b": [True, None], "c": "x"},
    r'a="[\"\u00e9t\u00e9\\n\"", "\ud83d\ude00"]': {"a": ["\u00e9t\u00e9\n", "\U0001f600"]},
    # The last argument lost its rest: the text that is left is kept, as where nothing is repaired.
    r'a="[1", 2], b="[\"sales\""': {"a": [1, 2], "b": '["sales"'},
}  # fmt: skip
NOT_SPLIT = {
    "positional": "[f(1)]", "no quoted value": "[f(a=[1, 2], 3)]", "no container": r'[f(a="x", "y"])]',
    "the container is whole": r'[f(a="[1]", 2])]', "nothing closes it": r'[f(a="[1", 2)]',
    "another bracket closes it": r'[f(a="[1", 2})]', "no space": r'[f(a="[1",2])]', "no JSON": r'[f(a="[1", x])]',
    "cut inside a string": r'[f(a="{\"x\": \"one", two"})]', "a key twice": r'[f(a="{\"x\": 1", "x": 2})]',
    "another fault behind it": r'[f(a="[1", 2], "y")]', "too deep": '[f(a="[1", ' + "[" * 99 + "]" * 100 + ")]",
    "published, cut inside strings": (
        r'[f(payload="{\\", name\": \"Bob\", \"email\": \"b@example.com\"}", details="{\"algorithm\": \"AES\"", '
        r'"key": "dGhpc2lz="=\"", "iv": "c2Vj="}, timestamp=")]'
    ),
    "published, text cut at a comma":
        r'[f(html="<img src=\\", https://example.com/image.jpg\" alt=\"\\\"Example\\\"></body></html>\"")]',
}  # fmt: skip


@pytest.mark.parametrize(("damaged", "arguments"), SPLIT.items())
def test_split_arguments_are_joined(damaged: str, arguments: dict[str, Any]) -> None:
    name = "Strong's [1] (beta)"
    turns, functions = ("user: q", f"assistant: [{name}({damaged}), g()]"), [{"name": name}, {"name": "g"}]
    made = converted(*turns, functions=functions)
    assert made.repaired and made.samples[0].target == (ToolCall(name=name, arguments=arguments), ToolCall(name="g"))
    with pytest.raises(BadRow, match=r"^call not parsable: turn 1: arguments must be key=value"):
        converted(*turns, functions=functions, repair_split_arguments=False)


@pytest.mark.parametrize("text", NOT_SPLIT.values(), ids=NOT_SPLIT)
def test_other_damage_stays_rejected(text: str) -> None:
    with pytest.raises(BadRow, match=r"^call not parsable: turn 1: "):
        converted("user: q", f"assistant: {text}", functions=[{"name": "f"}])


@pytest.mark.parametrize("text", ['[f(a="[1", b=2)]', "[f(a='x=\"[1\", 2]')]", r'[f(a="[\"x\"")]'])
def test_a_turn_that_parses_is_not_touched(text: str) -> None:
    made = converted("user: q", f"assistant: {text}", functions=[{"name": "f"}])
    assert not made.repaired and isinstance(made.samples[0].target[0].arguments["a"], str)


def test_repair_is_bounded() -> None:
    def turn(count: int) -> str:
        return "[f(" + ", ".join(f'a{index}="[1", 2]' for index in range(count)) + ', z="")]'

    (call,) = parse_split(turn(MAX_REPAIRS)) or ()
    assert [call.arguments[f"a{index}"] for index in range(MAX_REPAIRS)] == [[1, 2]] * MAX_REPAIRS
    assert parse_split(turn(MAX_REPAIRS + 1)) is None


def test_repaired_rows_are_counted(tmp_path: Path) -> None:
    split = row(
        "user: q", 'assistant: [f(a="[1", 2])]', "user: r", 'assistant: [f(a="[3", 4])]', functions=[{"name": "f"}]
    )
    write_jsonl(tmp_path / "rows.jsonl", [split, split])
    metrics = toolace(tmp_path / "rows.jsonl", validation_fraction=0, test_fraction=0).build(tmp_path)
    assert [metrics[f"rows_{what}"] for what in ("read", "duplicate", "repaired", "rejected")] == [2, 1, 1, 0]
