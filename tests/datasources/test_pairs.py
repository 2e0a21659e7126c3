"""Ready preference pairs: each layout gives the same sample and rejected answer; the stages that learn from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_pipeline import SMALLEST, folder, run_here  # noqa: F401
from tests.sources import _values, augment, bands
from ttpa.data.pairs import GivenPair, Preferences
from ttpa.data.rows import BadRow
from ttpa.data.source import read_split
from ttpa.errors import DataError
from ttpa.io import read_jsonl
from ttpa.records import Message, Pair, ToolCall

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}
WRAPPED = {"type": "function", "function": TOOL}
ASK = {"role": "user", "content": "Weather in Rome?"}
GOOD = {"name": "weather", "arguments": {"city": "Rome"}}
BAD = {"name": "weather", "arguments": {"town": "Rome"}}


def openai(call: dict[str, Any], as_text: bool = False) -> dict[str, Any]:
    arguments = json.dumps(call["arguments"]) if as_text else call["arguments"]
    calls = [{"id": "1", "type": "function", "function": {"name": call["name"], "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def hermes(call: dict[str, Any]) -> dict[str, str]:
    return {"role": "assistant", "content": f"<tool_call>\n{json.dumps(call)}\n</tool_call>"}


def nvidia(call: dict[str, Any]) -> dict[str, str]:
    return {"role": "assistant", "content": f"<TOOLCALL>[{json.dumps(call)}]</TOOLCALL>"}


def human(call: dict[str, Any]) -> dict[str, str]:
    return {"from": "function_call", "value": json.dumps(call)}


QWEN = f"# Tools\n\nYou may call.\n\n<tools>\n{json.dumps(WRAPPED)}\n</tools>\n\nFor each call write <tool_call>."
HERMES = {"role": "system", "content": QWEN}
LAYOUTS: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": [ASK], "chosen": [openai(GOOD)], "rejected": [openai(BAD)], "tools": [WRAPPED]},
    "TRL, JSON text": {"prompt": [ASK], "chosen": [openai(GOOD, True)], "rejected": [openai(BAD, True)],
                       "tools": json.dumps([TOOL])},
    "TRL, implicit": {"chosen": [ASK, openai(GOOD)], "rejected": [ASK, openai(BAD)], "tools": [WRAPPED]},
    "TRL, text": {"prompt": ASK["content"], "chosen": hermes(GOOD)["content"], "rejected": hermes(BAD)["content"],
                  "tools": [WRAPPED]},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": ASK["content"]}], "chosen": human(GOOD),
                      "rejected": human(BAD), "tools": json.dumps([TOOL])},
    "Alpaca": {"instruction": "Weather", "input": "in Rome?", "chosen": hermes(GOOD)["content"],
               "rejected": hermes(BAD)["content"], "tools": json.dumps([TOOL])},
    "When2Call": {"messages": [ASK], "tools": [json.dumps(TOOL)], "chosen_response": nvidia(GOOD),
                  "rejected_response": nvidia(BAD)},
    "ToolPref": {"chosen": [HERMES, ASK, hermes(GOOD)], "rejected": [HERMES, ASK, hermes(BAD)],
                 "chosen_score": 1.0, "rejected_score": 0.25},
}  # fmt: skip


def source(path: Path | str = "x.jsonl", **more: Any) -> Preferences:
    values = _values("published_data.yaml") | {"bands": bands(), "augment": augment(), "text_turns": True}
    return Preferences(**(values | more), path=str(path))


def given(row: dict[str, Any]) -> GivenPair:
    (pair,) = source().convert(row).pairs
    assert isinstance(pair, GivenPair)
    return pair


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_sample_and_rejected_answer(layout: str) -> None:
    (sample,) = source().convert(LAYOUTS[layout]).samples
    asked = "Weather\nin Rome?" if layout == "Alpaca" else "Weather in Rome?"
    assert sample.messages == (Message(role="user", content=asked),)
    assert [tool.to_json() for tool in sample.tools] == [TOOL]
    assert sample.target == (ToolCall(name="weather", arguments={"city": "Rome"}),) and sample.target_text is None
    rejected = Message(role="assistant", calls=(ToolCall(name="weather", arguments={"town": "Rome"}),))
    pair = given(LAYOUTS[layout])
    assert (pair.sample_id, pair.rejected) == (sample.id, rejected)
    scores = (1.0, 0.25) if layout == "ToolPref" else (None, None)
    assert (pair.chosen_score, pair.rejected_score) == scores
    assert GivenPair.from_json(json.loads(json.dumps(pair.to_json()))) == pair


def test_a_shared_beginning_of_texts_is_the_prompt_in_whole_words() -> None:
    row = {"chosen": "Is the sky blue? Yes it is", "rejected": "Is the sky blue? Yesterday"}
    (sample,) = source().convert(row).samples
    assert sample.messages == (Message(role="user", content="Is the sky blue?"),)
    assert (sample.target, sample.target_text, given(row).rejected.content) == ((), "Yes it is", "Yesterday")


def test_history_results_and_the_rest_of_a_system_text_are_kept() -> None:
    system = {"role": "system", "content": "Be brief.\n\n" + QWEN}
    turns = [system, ASK, hermes(GOOD), {"role": "tool", "content": "sunny"}]
    row = {"chosen": [*turns, {"role": "assistant", "content": "Sunny."}], "rejected": [*turns, openai(BAD)]}
    (sample,) = source().convert(row).samples
    assert [(one.role, one.content, len(one.calls)) for one in sample.messages] == [
        ("system", "Be brief.", 0), ("user", "Weather in Rome?", 0), ("assistant", "", 1), ("tool", "sunny", 0)
    ]  # fmt: skip
    assert sample.target_text == "Sunny." and given(row).rejected.calls[0].name == "weather"


def test_thoughts_and_text_beside_calls() -> None:
    content = f"<think>\nRome it is.\n</think>\n\nLet me look.\n{hermes(GOOD)['content']}"
    row = LAYOUTS["TRL"] | {"chosen": [{"role": "assistant", "content": content}]}
    row["rejected"] = [{**openai(BAD), "reasoning_content": "Paris?"}]
    (sample,) = source().convert(row).samples
    assert (sample.target_thought, sample.target_text) == ("Rome it is.", "Let me look.") and sample.target
    assert given(row).rejected.thought == "Paris?"


def test_what_is_rejected_may_be_wrong_in_any_way() -> None:
    row = LAYOUTS["ToolPref"] | {"rejected": [HERMES, ASK, {"role": "assistant", "content": "<tool_call>{oops"}]}
    assert given(row).rejected == Message(role="assistant", content="<tool_call>{oops")
    row = LAYOUTS["TRL"] | {"rejected": [openai({"name": "no_such_tool", "arguments": {}})]}
    assert given(row).rejected.calls[0].name == "no_such_tool"


BROKEN = {
    "tool not in list": {"tools": []},
    "equal answers": {"rejected": [openai(GOOD)]},
    "answer of several turns": {"chosen": [openai(GOOD), ASK]},
    "empty answer": {"chosen": [{"role": "assistant", "content": " "}]},
    "call not parsable": {"chosen": [{"role": "assistant", "content": "<tool_call>{oops"}]},
    "unknown role": {"chosen": [{"role": "judge", "content": "fine"}]},
    "no user turn": {"prompt": [{"role": "system", "content": "Be brief."}]},
    "field not JSON": {"tools": "[{"},
    "turn not an object": {"prompt": [3]},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_bad_row_is_rejected_with_its_reason(reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        source().convert(LAYOUTS["TRL"] | BROKEN[reason])
    assert caught.value.args[0] == reason
    with pytest.raises(BadRow, match="a row holds chosen and rejected"):
        source().convert({"prompt": [ASK], "chosen": "yes"})


def rows_of(cities: str) -> list[dict[str, Any]]:
    """Two pairs a city: of calls, and of a text and a call of an unknown tool."""
    found = []
    for city in cities.split():
        ask, right, wrong = f"Weather in {city}?", {"city": city}, {"city": city.lower()}
        call = [openai({"name": "weather", "arguments": arguments}) for arguments in (right, wrong)]
        found.append({"prompt": [{"role": "user", "content": ask}], "chosen": [call[0]], "rejected": [call[1]]})
        thanks = [{"role": "user", "content": f"Thanks for {city}"}]
        found.append({"prompt": thanks, "chosen": "You are welcome.", "rejected": [openai({**GOOD, "name": "x"})]})
    return [{**row, "tools": json.dumps([TOOL])} for row in found]


CITIES = "Rome Paris Oslo Bern Riga Kyiv Lima Baku Doha Cairo Tunis Quito Minsk Turin Milan Genoa"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rejected_rows_are_counted_with_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [*rows_of(CITIES), LAYOUTS["TRL"] | BROKEN["equal answers"], "{"])
    counts = source(file, max_bad_fraction=0.1).build(tmp_path)
    assert (counts["rows_read"], counts["rejected"]) == (34, {"equal answers": 1, "not JSON": 1})
    listed = [(row["file"], row["line"]) for row in read_jsonl(tmp_path / "rejected.jsonl")]
    assert listed == [("p.jsonl", 33), ("p.jsonl", 34)]
    with pytest.raises(DataError, match="By reason: equal answers 1, not JSON 1. First: p.jsonl:33: equal answers"):
        source(file).build(tmp_path)


@pytest.mark.usefixtures("folder")
def test_a_run_on_given_pairs_draws_nothing_and_learns_from_them() -> None:
    write(Path("p.jsonl"), rows_of(CITIES))
    words = ("pairs=given", "data.path=p.jsonl", "data.test_fraction=0.3", "recipe.warmup.steps=1")
    for objective in ("dpo", "rft"):
        run_here(*words, f"objective={objective}", "sampler.n=1", base=SMALLEST)
    (explore,) = Path("debug/store").glob("explore-*")  # one for both, whatever the sampler is
    run_here(*words, "sampler=tps", "until=explore", base=SMALLEST)
    assert [explore] == list(Path("debug/store").glob("explore-*"))
    (data,) = Path("debug/store").glob("data-*")
    samples = {sample.id: sample for sample in read_split(data, "explore")}
    given = {row["sample_id"]: row for row in read_jsonl(data / "pairs.jsonl")}
    pairs = [Pair.from_json(row) for row in read_jsonl(explore / "pairs.jsonl")]
    assert len(pairs) == 8 and {pair.sample_id for pair in pairs} <= samples.keys()
    for pair in pairs:
        sample = samples[pair.sample_id]
        assert pair.chosen.calls == sample.target and (sample.target or pair.chosen.text == "You are welcome.")
        calls = GivenPair.from_json(given[pair.sample_id]).rejected.calls
        assert pair.rejected.calls == calls and (pair.chosen_score.exact, pair.rejected_score.exact) == (True, False)
    long = [*rows_of(CITIES), {**rows_of("Rome")[0], "rejected": "no " * 4000}]
    write(Path("p.jsonl"), long)
    run_here(
        *words, "data.test_fraction=0.0", "select.limit=null", "until=explore", "model.max_tokens=400", base=SMALLEST
    )
    told = [json.loads(file.read_text()) for file in Path("debug/store").glob("explore-*/metrics.json")]
    assert {one["too_long"] for one in told} == {0, 1}
    (row, other) = (next(read_jsonl(file)) for file in Path("debug/results").glob("*.jsonl"))
    assert row["explored"]["explore1"]["pairs"] == 8 and row["metrics"]["accuracy"]["n"] > 3
    assert {row["choices"]["objective"], other["choices"]["objective"]} == {"dpo", "rft"}
