"""API-Bank: published files to samples, text to values, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.apibank import APIBank
from ttpa.benchmarks.apibank.values import compared, date, literal, parameters_schema, typed
from ttpa.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[1] / "data" / "apibank"
NOWHERE = Path("of no use")


def bank(path: Path = DATA, **options: Any) -> APIBank:
    return APIBank(path=str(path), max_new_tokens=8, **options)


def published(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_recorded_call_of_a_dialogue_is_a_sample_with_what_was_said_before() -> None:
    turns = {
        f"apibank-{level}-{row['file'].removesuffix('.jsonl')}": row["turns"]
        for level, name in ((1, "level-1-given-desc"), (2, "level-2-toolsearcher"))
        for row in published(name)
    }
    samples = bank(format="dialogues", levels=[1, 2]).samples(NOWHERE)
    assert len(samples) == sum(turn["role"] == "API" for row in turns.values() for turn in row) == 116
    for sample in samples:
        number = int(sample.id.rsplit("-", 1)[1])
        before = turns[sample.dialogue_id][:number]
        spoken = [(one.role, one.content) for one in sample.messages if one.role != "tool" and not one.calls]
        names = {"User": "user", "AI": "assistant"}
        assert spoken == [(names[turn["role"]], turn["text"]) for turn in before if turn["role"] != "API"]
        called = [call for message in sample.messages for call in message.calls]
        assert [call.name for call in called] == [turn["api_name"] for turn in before if turn["role"] == "API"]
        # A call is two messages: the call, and what came back of it.
        assert len(sample.messages) == len(before) + len(called)
        assert sample.target[0].name == turns[sample.dialogue_id][number]["api_name"]
        assert sample.target[0].arguments.keys() == turns[sample.dialogue_id][number]["param_dict"].keys()


def test_tools_of_level_1_are_those_of_the_dialogue_and_of_level_2_those_found_so_far() -> None:
    turns = {row["file"]: row["turns"] for row in published("level-1-given-desc") + published("level-2-toolsearcher")}
    listed = Counter[bool]()
    for sample in bank(format="dialogues", levels=[1, 2]).samples(NOWHERE):
        level, file, number = int(sample.id[8]), f"{sample.dialogue_id[10:]}.jsonl", int(sample.id.rsplit("-", 1)[1])
        if level == 1:
            expected = {turn["api_name"] for turn in turns[file] if turn["role"] == "API"}
        else:
            searches = [turn for turn in turns[file][:number] if turn.get("api_name") == "ToolSearcher"]
            outputs = [turn["result"]["output"] for turn in searches]
            documents = [one for found in outputs for one in (found if isinstance(found, list) else [found])]
            expected = {"ToolSearcher", *(one["name"] for one in documents)}
        assert {tool.name for tool in sample.tools} == expected and len(sample.tools) == len(expected)
        listed[sample.target[0].name in expected] += 1
        assert ("tool_not_listed" in sample.tags) == (sample.target[0].name not in expected)
    assert listed[True] > 100


def test_instances_keep_all_words_of_their_two_prompts_that_are_not_toolrls() -> None:
    rows = [row for level in (1, 2, 3) for row in published(f"level-{level}-instances")]
    samples = bank(format="instances").samples(NOWHERE)
    assert len(samples) == len(rows) == 186
    for sample, row in zip(samples, rows, strict=True):
        recorded = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
        assert sample.target[0].name == recorded["name"]
        assert sample.target[0].arguments.keys() == recorded["parameters"].keys()
        assert len(sample.tools) == row["system"].count("\nParameters: ")
        assert len(sample.messages) == sum(
            row["user"].count(f"<{tag}>") for tag in ("user", "response", "tool_call", "obs")
        )
        assert all(message.content in row["user"] for message in sample.messages)
    sizes = Counter(row["other"]["sample_id"] for row in published("level-3-instances"))
    assert {f"calls-{size}" for size in sizes.values()} == {
        tag for sample in samples for tag in sample.tags if tag.startswith("calls-")
    }


def test_published_folders_give_the_samples_of_the_packed_file(tmp_path: Path) -> None:
    folder = tmp_path / "lv1-lv2-samples" / "level-1-given-desc"
    folder.mkdir(parents=True)
    for row in published("level-1-given-desc"):
        (folder / row["file"]).write_text("".join(json.dumps(turn) + "\n" for turn in row["turns"]), encoding="utf-8")
    shutil.copy(DATA / "api_specs.jsonl.gz", tmp_path)
    found = bank(tmp_path, levels=[1]).samples(NOWHERE)
    packed = bank(levels=[1], format="dialogues").samples(NOWHERE)
    assert sorted(found, key=lambda sample: sample.id) == sorted(packed, key=lambda sample: sample.id)


def test_identity_is_what_the_files_hold_and_not_where_they_lie(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(DATA, copy)
    assert bank(copy).identity() == bank().identity()
    (copy / "level-3-instances.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in published("level-3-instances")[:-1]))
    )
    assert bank(copy).identity() != bank().identity()
    assert bank(copy, levels=[1]).identity() == bank(levels=[1]).identity()


def test_limit_and_levels_choose() -> None:
    samples = bank(levels=[3, 1], limit=4).samples(NOWHERE)
    assert [sample.tags[0] for sample in samples] == ["level-3"] * 4 + ["level-1"] * 4
    assert bank().dialogue(samples[0]) is None  # type: ignore[func-returns-value]


# --- values ----------------------------------------------------------------------------------------------------------

STRING, WHEN, DAY = {"type": "string"}, {"description": "Format: %Y-%m-%d %H:%M:%S"}, {"description": "Format: %m-%d"}


@pytest.mark.parametrize(
    ("key", "left", "right", "schema", "same"),
    [
        ("location", " Room 1", "room 1", STRING, True),
        ("location", "Room 1", "Room 2", STRING, False),
        ("token", "A1", "a1", STRING, False),
        ("time", "2023-3-5 9:00:00", "2023-03-05 09:00:00", WHEN, True),
        ("time", "tomorrow", "2023-03-05 09:00:00", WHEN, False),
        ("date", "2024-02-29", "02-29", DAY, True),
        ("date", "2023-02-29", "02-29", DAY, False),
        ("formula", "(5+6) * 3", "(5 + 6)*3", STRING, True),
        ("formula", "5+6*3", "(5+6)*3", STRING, False),
        ("content", "a b", "ab", STRING, False),
        ("n", "2", 2, {"type": "integer"}, True),
        ("n", 2.0, 2, {"type": "integer"}, True),
        ("n", "two", 2, {"type": "integer"}, False),
        ("on", "True", True, {"type": "boolean"}, True),
        ("on", "true", True, {"type": "boolean"}, False),
        ("attendees", "['John', 'Jane']", ["john", "jane"], {"type": "array"}, True),
        ("attendees", ["Jane", "John"], ["John", "Jane"], {"type": "array"}, False),
        ("health_data", [{"name": "a"}, {"name": "b"}], "[{'name': 'b'}, {'name': 'a'}]", {"type": "array"}, True),
    ],
)
def test_values_are_compared_in_one_form(key: str, left: Any, right: Any, schema: dict[str, Any], same: bool) -> None:
    assert (compared(key, left, schema) == compared(key, right, schema)) is same


def test_text_that_stands_for_values() -> None:
    assert typed("['a']", {"type": "array"}) == ["a"] and typed("a", {"type": "array"}) == "a"
    assert typed("007", {"type": "integer"}) == 7 and typed("1e9", {"type": "integer"}) == "1e9"
    assert typed("2.50", {"type": "number"}) == 2.5 and typed("False", {"type": "boolean"}) is False
    assert literal("[" * 5000) is None and literal("{'a': ['b']}") == {"a": ["b"]}
    assert date("03-05", "%m-%d") == date("1999-03-05", "%m-%d") and date(5, "%Y-%m-%d") is None
    optional = {
        "a": {"type": "str", "description": "[Optional] words"},
        "b": {"type": "int", "description": "a number"},
    }
    assert parameters_schema(optional)["required"] == ["b"]


# --- what is refused -------------------------------------------------------------------------------------------------

TURNS = published("level-1-given-desc")[0]
INSTANCE = published("level-3-instances")[0]


def changed(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**row, **more}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("level-1-given-desc", [TURNS, {"file": "x.jsonl"}], r"desc\.jsonl:2: .*'file' and 'turns'.*as published"),
        ("level-1-given-desc", [changed(TURNS, turns=[{"role": "Bot"}])], r":1: .*turn 1 is neither"),
        ("level-1-given-desc", [changed(TURNS, turns=[5])], r":1: .*turn 1 is neither"),
        ("level-1-given-desc", [changed(TURNS, turns=[{"role": "User"}])], r":1: .*turn 1"),
        ("level-1-given-desc", [changed(TURNS, turns=[{**TURNS["turns"][3], "api_name": "Fly"}])], r":1: .* 'Fly'"),
        ("level-1-given-desc", [TURNS, TURNS], r"apibank-1-\S+ is there twice"),
        ("level-1-given-desc", [], r"no calls of level 1"),
        ("level-1-given-desc", ["{"], r"given-desc\.jsonl:1: .*JSON"),
        ("level-3-instances", [INSTANCE, changed(INSTANCE, system="none")], r"instances\.jsonl:2: .*lists no tools"),
        ("level-3-instances", [changed(INSTANCE, user="hello")], r":1: .*cannot be read from character 0"),
        ("level-3-instances", [changed(INSTANCE, answer=[])], r":1: .*0 answers, expected 1"),
        ("level-3-instances", [changed(INSTANCE, answer={"name": 5, "parameters": {}})], r":1: .*5 is no name"),
        ("level-3-instances", [changed(INSTANCE, answer={"name": "f", "parameters": "x"})], r":1: .*no object"),
        ("level-3-instances", [{key: INSTANCE[key] for key in ("system", "user", "answer")}], r":1: .*'other'"),
    ],
)  # fmt: skip
def test_rows_of_another_form_are_refused_by_file_and_line(
    name: str, rows: list[Any], message: str, tmp_path: Path
) -> None:
    shutil.copy(DATA / "api_specs.jsonl.gz", tmp_path)
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    evaluation = bank(tmp_path, levels=[int(name[6])])
    evaluation.check()
    with pytest.raises(DataError, match=message):
        evaluation.samples(NOWHERE)


def test_missing_files_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.path=.*no such folder"):
        bank(tmp_path / "none").check()
    with pytest.raises(ConfigError, match=r"no level-3-instances\.jsonl for level 3\. .*eval\.levels"):
        bank(tmp_path, levels=[3]).check()
    (tmp_path / "level-2-toolsearcher.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"level 2 need api_specs\.jsonl"):
        bank(tmp_path, levels=[2]).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [4]}, r"eval\.levels=\[4\]"),
        ({"levels": []}, r"eval\.levels"),
        ({"levels": [1, 1]}, r"eval\.levels"),
        ({"format": "csv"}, r"eval\.format=csv.*auto or dialogues or instances"),
        ({"rule": "mine"}, r"eval\.rule=mine.*official or toolrl"),
        ({"limit": 0}, r"eval\.limit=0"),
    ],
)
def test_values_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bank(**options)
