"""`data=messages` and `data=sharegpt`: each layout by hand, published rows, and what bad rows are answered."""

# ruff: noqa: E501  (a row of data is easier to read in one line)
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasources.test_published import file_of
from tests.sources import messages, sharegpt
from ttpa.data.dialogues import Dialogues
from ttpa.data.rows import BadRow
from ttpa.data.source import read_split
from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.records import Message, Sample, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOL = {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}
WRAPPED = {"type": "function", "function": TOOL}
ROME, OSLO = (ToolCall(name="weather", arguments={"city": city, "days": 2}) for city in ("Rome", "Oslo"))
TEXT = json.dumps({"name": "weather", "arguments": {"city": "Rome", "days": 2}})
OSLO_TEXT = TEXT.replace("Rome", "Oslo")
ASK = {"role": "user", "content": "Rome and Oslo?"}
SYSTEM = {"role": "system", "content": "Be brief."}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    f"You may call one or more functions. Here are the available tools: <tools> {json.dumps([WRAPPED])} </tools> Use "
    "the following schema for each call. <tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>"
)


def call(city: str, id: str | None = None, text: bool = False, wrapped: bool = True) -> dict[str, Any]:
    arguments: Any = {"city": city, "days": 2}
    made: dict[str, Any] = {"name": "weather", "arguments": json.dumps(arguments) if text else arguments}
    return ({"id": id} if id else {}) | ({"type": "function", "function": made} if wrapped else made)


BOTH = [call("Rome", "a"), call("Oslo", "b")]
RESULTS = [
    {"role": "tool", "tool_call_id": "a", "content": "sun"},
    {"role": "tool", "tool_call_id": "b", "content": "snow"},
]
DONE = {"role": "assistant", "content": "Sun and snow."}
THOUGHT = "<think>\nTwo cities.\n</think>\n\n"
OPENAI = [SYSTEM, ASK, {"role": "assistant", "content": "Let me look.", "tool_calls": BOTH}, *RESULTS, DONE]
MESSAGES: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": OPENAI, "tools": [WRAPPED]},
    "JSON text": {"messages": json.dumps(OPENAI), "tools": json.dumps([WRAPPED])},
    "arguments as text": {"messages": [*OPENAI[:2], {**OPENAI[2], "tool_calls": [call("Rome", "a", True), call("Oslo", "b", True)]}, *OPENAI[3:]], "tools": [TOOL]},
    "results in another order": {"messages": [*OPENAI[:3], RESULTS[1], RESULTS[0], DONE], "tools": [TOOL]},
    "contents as lists": {"messages": [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in OPENAI], "tools": [TOOL]},
    "two assistants in a row": {"messages": [*OPENAI[:2], {"role": "assistant", "content": "Let me look."}, {"role": "assistant", "content": None, "tool_calls": BOTH}, *OPENAI[3:]], "tools": [TOOL]},
    "Toucan": {"messages": json.dumps([
        SYSTEM, ASK, {"role": "assistant", "content": "Let me look."},
        {"role": "assistant", "content": "", "function_call": call("Rome", None, True, False)},
        {"role": "assistant", "content": "", "function_call": call("Oslo", None, True, False)},
        {"role": "function", "name": "weather", "content": "sun"}, {"role": "function", "name": "weather", "content": "snow"}, DONE]),
        "available_tools": json.dumps([WRAPPED]), "uuid": "u", "target_tools": "weather", "question": "q"},
    "Toucan, roles of calls": {"messages": [
        SYSTEM, ASK, {"role": "assistant", "content": "Let me look."}, {"role": "tool_call", "content": TEXT},
        {"role": "tool_call", "content": str(json.loads(OSLO_TEXT))}, {"role": "tool_response", "content": "sun"},
        {"role": "tool_response", "content": "snow"}, DONE], "tools": json.dumps([WRAPPED])},
    "When2Call": {"messages": [SYSTEM, ASK, {"role": "assistant", "content": f"Let me look. <TOOLCALL>[{TEXT}, {OSLO_TEXT}]</TOOLCALL>"},
                               {"role": "tool", "content": "sun"}, {"role": "tool", "content": "snow"}, DONE], "tools": [json.dumps(TOOL)]},
}  # fmt: skip
SHAREGPT: dict[str, dict[str, Any]] = {
    "LLaMA-Factory": {"system": "Be brief.", "tools": json.dumps([TOOL]), "conversations": [
        {"from": "human", "value": ASK["content"]}, {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": f"[{TEXT}, {OSLO_TEXT}]"}, {"from": "observation", "value": "sun"},
        {"from": "observation", "value": "snow"}, {"from": "gpt", "value": DONE["content"]}]},
    "Hermes": {"conversations": [
        {"from": "system", "value": f"{HERMES}\nBe brief."}, {"from": "human", "value": ASK["content"]},
        {"from": "gpt", "value": f"Let me look.\n<tool_call>\n{json.loads(TEXT)}\n</tool_call>\n<tool_call>\n{OSLO_TEXT}\n</tool_call>"},
        {"from": "tool", "value": "<tool_response>\nsun\n</tool_response>\n<tool_response>\nsnow\n</tool_response>"},
        {"from": "gpt", "value": DONE["content"]}]},
    "user and assistant": {"system": "Be brief.", "tools": json.dumps([TOOL]), "conversations": [
        {"role": "user", "content": ASK["content"]}, {"role": "assistant", "content": "Let me look."},
        {"role": "function_call", "content": TEXT}, {"role": "function_call", "content": OSLO_TEXT},
        {"role": "observation", "content": "sun"}, {"role": "observation", "content": "snow"}, DONE]},
}  # fmt: skip
ALL = [(messages, row) for row in MESSAGES.values()] + [(sharegpt, row) for row in SHAREGPT.values()]


@pytest.mark.parametrize(("reader", "row"), ALL, ids=[*MESSAGES, *SHAREGPT])
def test_every_layout_gives_the_same_dialogue(reader: Any, row: dict[str, Any]) -> None:
    first, last = reader("x.jsonl").convert(row).samples
    said = (Message(role="system", content="Be brief."), Message(role="user", content="Rome and Oslo?"))
    assert first.messages == said and first.target == (ROME, OSLO) and first.target_text == "Let me look."
    assert first.tools[0].parameters == SCHEMA and [tool.name for tool in first.tools] == ["weather"]
    results = (Message(role="tool", content="sun"), Message(role="tool", content="snow"))
    called = Message(role="assistant", content="Let me look.", calls=(ROME, OSLO))
    assert last.messages == (*said, called, *results)
    assert (last.target, last.target_text, last.kind) == ((), "Sun and snow.", "text")
    assert first.dialogue_id == last.dialogue_id and first.id != last.id
    (only,) = reader("x.jsonl", text_turns=False).convert(row).samples
    assert only == first


def one(reader: Any, row: dict[str, Any]) -> Sample:
    return list(reader("x.jsonl").convert(row).samples)[-1]


@pytest.mark.parametrize("turn", [
    {"role": "assistant", "content": f"{THOUGHT}Look.\n<tool_call>{TEXT}</tool_call>"},
    {"role": "assistant", "content": "Look.", "reasoning_content": "Two cities.", "tool_calls": [call("Rome")]},
])  # fmt: skip
def test_thought_text_and_calls_of_a_turn_are_told_apart(turn: dict[str, Any]) -> None:
    sample = one(messages, {"messages": [ASK, turn], "tools": [TOOL]})
    assert (sample.target_thought, sample.target_text, sample.target) == ("Two cities.", "Look.", (ROME,))


def test_only_the_completion_is_a_target_of_trls_rows() -> None:
    row = {"prompt": OPENAI[:5], "completion": [DONE], "tools": [TOOL]}
    (sample,) = messages("x.jsonl").convert(row).samples
    assert len(sample.messages) == 5 and sample.target_text == "Sun and snow."


def test_glaives_one_text_is_read_with_its_quoted_arguments() -> None:
    functions = f"{json.dumps(TOOL, indent=4)}\n\n{json.dumps({**TOOL, 'name': 'now', 'parameters': {}}, indent=4)}"
    system = f"SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n{functions}\n"
    chat = (
        'USER: It\'s Rome.\n\n\nASSISTANT: <functioncall> {"name": "weather", "arguments": \'{"city": "O\'Brien"}\'} '
        '<|endoftext|>\n\n\nFUNCTION RESPONSE: {"sky": "sun"}\n\n\nASSISTANT: Sun. <|endoftext|>\n\n\nUSER: Thanks\n\n\n'
        "ASSISTANT: You're welcome! <|endoftext|>\n\n\n"
    )
    samples = sharegpt("x.jsonl").convert({"system": system, "chat": chat}).samples
    assert [len(one.messages) for one in samples] == [1, 3, 5]
    assert samples[0].target == (ToolCall(name="weather", arguments={"city": "O'Brien"}),)
    assert [one.target_text for one in samples] == [None, "Sun.", "You're welcome!"]
    assert [tool.name for tool in samples[0].tools] == ["weather", "now"]
    assert samples[1].messages[2] == Message(role="tool", content='{"sky": "sun"}')
    no_tools = "SYSTEM: You are a helpful assistant, with no access to external functions.\n"
    (sample,) = (
        sharegpt("x.jsonl").convert({"system": no_tools, "chat": "USER: Hi\n\nASSISTANT: Hello. <|endoftext|>"}).samples
    )
    assert sample.messages[0].content == no_tools.removeprefix("SYSTEM: ").strip() and sample.tools == ()


BAD: dict[str, tuple[list[Any], str]] = {
    "tool ids that match nothing": ([ASK, {"role": "assistant", "tool_calls": BOTH}, {**RESULTS[0], "tool_call_id": "x"}, DONE],
                                    "unknown call id: turn 2 answers 'x'; the calls before it are a, b"),
    "a call without a result": ([ASK, {"role": "assistant", "tool_calls": BOTH}, RESULTS[0], DONE], "call without a result: turn 1: b has none"),
    "a result without a call": ([ASK, RESULTS[0], DONE], "result without a call: turn 1"),
    "two results of a call": ([ASK, {"role": "assistant", "tool_calls": BOTH}, RESULTS[0], RESULTS[0], DONE], "two results of a call"),
    "a tool that is not listed": ([ASK, {"role": "assistant", "tool_calls": [{"name": "news", "arguments": {}}]}], "tool not in list: turn 1 calls 'news'; the row lists 'weather'"),
    "no role": ([ASK, {"content": "x"}], "unknown role: turn 1 is from 'None'"),
    "no user": ([SYSTEM, DONE], "no user turn"), "no turns": ([], "missing key: 'messages' must hold the turns"),
    "a tag that is not closed": ([ASK, {"role": "assistant", "content": f"<tool_call>{TEXT}"}], "call not parsable: turn 1"),
    "arguments that are no JSON": ([ASK, {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": "{"}]}], "arguments not JSON: turn 1"),
    "a picture": ([{"role": "user", "content": [{"type": "image_url"}]}, DONE], "content not text: turn 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_have_a_reason_with_file_and_line(case: str, tmp_path: Path) -> None:
    turns, reason = BAD[case]
    good = {"messages": [ASK, DONE], "tools": []}
    path = file_of(tmp_path, [good, {"messages": turns, "tools": [TOOL]}])
    messages(path, max_bad_fraction=1, validation_fraction=0, test_fraction=0).build(tmp_path)
    (entry,) = read_jsonl(tmp_path / "rejected.jsonl")
    assert (entry["file"], entry["line"]) == ("rows.jsonl", 2) and entry["reason"].startswith(reason)


def test_rows_of_several_layouts_in_one_file_are_named_each(tmp_path: Path) -> None:
    other, words = SHAREGPT["LLaMA-Factory"], {"messages": [ASK, DONE], "tools": []}
    xlam = {"query": "q", "tools": "[]", "answers": "[]"}
    path = file_of(tmp_path, [words, other, xlam, words | {"tools": [TOOL]}])
    with pytest.raises(DataError, match=r"2 of 4 rows rejected.*other layout 2.*rows.jsonl:2: .*read by data=sharegpt"):
        messages(path).build(tmp_path)
    reasons = [entry["reason"] for entry in read_jsonl(tmp_path / "rejected.jsonl")]
    assert "read by data=xlam" in reasons[1]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:100], lines[3]]))
    messages(path, max_bad_fraction=1, validation_fraction=0, test_fraction=0).build(tmp_path)
    (entry,) = read_jsonl(tmp_path / "rejected.jsonl")
    assert entry["line"] == 2 and entry["reason"].startswith("not JSON")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.csv.gz", "rows.json"])
def test_a_table_holds_the_same_dialogues(name: str, tmp_path: Path) -> None:
    rows, path = [MESSAGES["OpenAI"], {"messages": [ASK, DONE], "tools": []}], tmp_path / name
    if name == "rows.parquet":  # structs: each turn and tool has the keys of all others, with null
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == "rows.json":
        path.write_text(json.dumps(rows))
    else:
        cells = [[json.dumps(row[key]).replace('"', '""') for key in ("messages", "tools")] for row in rows]
        text = "messages,tools\n" + "".join(f'"{a}","{b}"\n' for a, b in cells)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (tmp_path / "out").mkdir()
    messages(path, validation_fraction=0, test_fraction=0).build(tmp_path / "out")
    expected = [sample for row in rows for sample in messages("x").convert(row).samples]
    assert [replace(one, id="", dialogue_id="") for one in read_split(tmp_path / "out", "warmup")] == [
        replace(one, id="", dialogue_id="") for one in expected
    ]


@pytest.mark.parametrize("name", ["glaive_toolcall", "rlla_sft"])
def test_published_rows_are_read(name: str, tmp_path: Path) -> None:
    metrics = sharegpt(DATA / f"{name}.jsonl.gz", validation_fraction=0, test_fraction=0).build(tmp_path)
    assert metrics["rows_rejected"] <= 0.02 * metrics["rows_read"] and min(metrics["kinds"].values()) > 5


def published(name: str, start: str) -> list[Sample]:
    """The samples of the row with these words."""
    lines = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
    row = next(json.loads(line) for line in lines if start in line)
    return list(sharegpt("x").convert(row).samples)


def test_glaives_rows_have_the_values_that_were_read_by_hand() -> None:
    movie = published("glaive_toolcall", "Can you tell me more about the movie with ID 12345?")
    assert [one.target for one in movie] == [
        (ToolCall(name="get_movie_details", arguments={"movie_id": "12345"}),), (),
        (ToolCall(name="get_movie_details", arguments={"movie_id": "67890"}),), (),
    ]  # fmt: skip
    assert movie[3].messages[-1].content.startswith('{"title": "The Shawshank Redemption"')
    loan = published("glaive_toolcall", "Hi, I need help with calculating my loan payment.")
    arguments = {"loan_amount": 200000, "interest_rate": 5, "loan_term": 30}
    assert loan[0].target == (ToolCall(name="calculate_loan_payment", arguments=arguments),)
    assert loan[1].target_text == (
        "Based on the information you provided, your monthly loan payment would be approximately $1073.64."
    )
    bmi = published("glaive_toolcall", "Hi, I need to calculate my BMI.")
    assert [len(one.messages) for one in bmi] == [1, 3, 5]
    assert bmi[0].target == (ToolCall(name="calculate_bmi", arguments={"weight": 70, "height": 1.75}),)
    assert [tool.name for tool in bmi[0].tools] == ["calculate_bmi", "search_recipes"] and bmi[2].kind == "text"


def test_rllas_rows_have_the_values_that_were_read_by_hand() -> None:
    (pets,) = published("rlla_sft", "Retrieve information for pet 55555")
    assert pets.target == (
        ToolCall(name="fBMVO", arguments={"5F6png": 55555}), ToolCall(name="7fmkYYSyuzeby", arguments={"fX9BCS": 55555}),
    )  # fmt: skip
    assert pets.target_thought.startswith("Okay, let's start by looking at the user's request.")
    (far,) = published("rlla_sft", "Compute the Euclidean distance between points (10, 10)")
    assert far.target == (ToolCall(name="euclidean_distance", arguments={"point_a": [10, 10], "point_b": [20, 20]}),)
    assert far.tool("euclidean_distance").required == ("point_a", "point_b")  # type: ignore[union-attr]
    (anime,) = published("rlla_sft", "I'm looking for some anime wallpapers")
    assert anime.target == () and (anime.target_text or "").startswith("The provided functions cannot be used")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>\x00"), max_size=20)
VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | WORDS, lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
CALLS = st.lists(st.dictionaries(st.sampled_from(["city", "days"]), VALUES), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, CALLS, WORDS), min_size=1, max_size=3))
def test_any_dialogue_comes_back_from_openais_layout(turns: list[Any]) -> None:
    """With thoughts and text beside calls, results by id in reverse order."""
    said, rows = list[Message](), list[dict[str, Any]]()
    for at, (question, text, given_calls, thought) in enumerate(turns):
        calls = tuple(ToolCall(name="weather", arguments=arguments) for arguments in given_calls)
        said += [
            Message(role="user", content=question),
            Message(role="assistant", content=text, calls=calls, thought=thought.strip()),
        ]
        said += [Message(role="tool", content=f"result {n}") for n in range(len(calls))]
        made = [call_row(one, f"{at}-{n}", n % 2 == 0) for n, one in enumerate(calls)]
        rows += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": text or None, "tool_calls": made, "reasoning_content": thought},
        ]
        rows += [
            {"role": "tool", "tool_call_id": f"{at}-{n}", "content": f"result {n}"} for n in reversed(range(len(calls)))
        ]
    samples = messages("x").convert({"messages": rows, "tools": [TOOL]}).samples
    at = [place for place, turn in enumerate(said) if turn.role == "assistant"]
    assert [one.messages for one in samples] == [tuple(said[:place]) for place in at]
    for sample, place in zip(samples, at, strict=True):
        turn = said[place]
        assert (sample.target, sample.target_text or "", sample.target_thought) == (
            turn.calls,
            turn.content,
            turn.thought,
        )


def call_row(made: ToolCall, id: str, text: bool) -> dict[str, Any]:
    arguments: Any = dict(made.arguments)
    return {
        "id": id,
        "type": "function",
        "function": {"name": made.name, "arguments": json.dumps(arguments) if text else arguments},
    }


def test_a_row_of_no_dialogue_never_breaks_the_reader() -> None:
    reader: Dialogues
    for reader in (messages("x"), sharegpt("x")):
        for value in (None, 1, "x", [], {}, [1], [{}], [{"role": "user"}], [{"from": "gpt", "value": 3}], {"role": 1}):
            for key in ("messages", "conversations", "chat", "tools", "system", "completion"):
                row = {"messages": [ASK, DONE], "conversations": [ASK, DONE], key: value}
                try:
                    reader.convert(row)
                except BadRow as problem:
                    assert all(isinstance(part, str) and part for part in problem.args)
