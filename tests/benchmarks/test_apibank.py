"""API-Bank: published files to samples, text to values, every label by hand, hostile answers, and the numbers."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_pipeline import built, run_here
from ttpa.benchmarks.apibank.evaluation import APIBank, summarise
from ttpa.benchmarks.apibank.rules import LABELS
from ttpa.benchmarks.apibank.values import compared, literal, moment, parameters_schema, typed
from ttpa.calls.six_errors import LABELS as SIX
from ttpa.errors import ConfigError, DataError
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec

DATA = Path(__file__).resolve().parents[1] / "data" / "apibank"
NOWHERE = Path("of no use")
BOTH = [("dialogues", [1, 2]), ("instances", [1, 2, 3])]


def bank(path: Path = DATA, **options: Any) -> APIBank:
    usual = {"max_new_tokens": 8, "levels": [1, 2, 3], "format": "auto", "rule": "official", "limit": None}
    return APIBank(path=str(path), **{**usual, **options})


def answer(sample: Sample, *calls: ToolCall, **more: Any) -> Candidate:
    return Candidate(sample_id=sample.id, index=0, text="said", **{"calls": calls, **more})


def published(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- files -----------------------------------------------------------------------------------------------------------


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
    assert bank().dialogue(samples[0]) is None


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
        ({"levels": [4]}, r"levels\.0=4: should be 1, 2 or 3"),
        ({"levels": []}, r"levels=\[\]: "),
        ({"levels": [1, 1]}, r"levels=\[1, 1\]: names a level twice"),
        ({"format": "csv"}, r"format='csv': .*'auto', 'dialogues' or 'instances'"),
        ({"rule": "mine"}, r"rule='mine': .*'official' or 'toolrl'"),
        ({"limit": 0}, r"limit=0: "),
    ],
)
def test_values_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bank(**options)


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
    assert literal("[" * 5000) is None and literal("{'a': ['b']}") == {"a": ["b"]} and literal("John") is None
    assert moment("03-05", DAY) == moment("1999-03-05", DAY) and moment(5, WHEN) is moment("5", STRING) is None
    optional = {
        "a": {"type": "str", "description": "[Optional] words"},
        "b": {"type": "int", "description": "a number"},
    }
    assert parameters_schema(optional)["required"] == ["b"]


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["official", "toolrl"])
@pytest.mark.parametrize(("form", "levels"), BOTH)
def test_the_recorded_calls_are_right_wherever_the_rule_can_tell(form: str, levels: list[int], rule: str) -> None:
    evaluation = bank(format=form, levels=levels, rule=rule)
    rows = [evaluation.judge(sample, answer(sample, *sample.target)) for sample in evaluation.samples(NOWHERE)]
    wrong = [row for row in rows if not row["exact"]]
    assert all(row["doubt"] == "recorded_call" and row["right"] is None for row in wrong)
    expected = {"TimedSwitch", "CancelTimedSwitch"} | ({"BookHotel"} if form == "instances" else set())
    assert {row["api"] for row in wrong} == (expected if rule == "official" else set())
    assert not any(row["errors"] for row in rows if row["exact"])
    found = evaluation.summarise(rows)
    assert found["accuracy"]["value"] == 1 and found["rule"] == rule
    assert found["format"] == {str(level): form for level in levels}
    assert sum(found["labels"].values()) == 0 and found["bounds"]["high"]["value"] == 1
    assert found["bounds"]["low"]["value"] == pytest.approx(1 - len(wrong) / len(rows))


def test_every_change_of_a_recorded_call_is_seen() -> None:
    """Another name, a key more, a key less, another value: each has its label, over all decidable samples."""
    seen: Counter[str] = Counter()
    for form, levels in BOTH:
        evaluation = bank(format=form, levels=levels)
        for sample in evaluation.samples(NOWHERE):
            gold = sample.target[0]
            spec = sample.tool(gold.name)
            if evaluation.judge(sample, answer(sample, gold))["doubt"] or gold.name == "GetToday":
                continue

            def label(**arguments: Any) -> str:
                row = evaluation.judge(sample, answer(sample, ToolCall(name=gold.name, arguments=arguments)))  # noqa: B023
                assert row["right"] is False and row["errors"]
                seen[row["label"]] += 1
                return str(row["label"])

            other = evaluation.judge(sample, answer(sample, replace(gold, name=gold.name + "s")))
            assert other["label"] == "API_NAME_MISMATCH" and "tool_name" in other["errors"]
            assert label(**gold.arguments, no_such_key="x") == "INVALID_INPUT_PARAMETER"
            for key in gold.arguments:
                rest = {name: value for name, value in gold.arguments.items() if name != key}
                needed = spec is None or key in spec.required
                assert label(**rest) == ("MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH")
                assert label(**rest, **{key: "zzz"}) in ("INPUT_MISMATCH", "INVALID_INPUT_PARAMETER", "HAS_EXCEPTION")
    assert {"INPUT_MISMATCH", "INVALID_INPUT_PARAMETER", "HAS_EXCEPTION", "MISS_INPUT_ARGUMENT"} == set(seen)


MEETING = ToolSpec(
    name="AddMeeting",
    parameters=parameters_schema(
        {
            "token": {"type": "str", "description": "User's token."},
            "meeting_topic": {"type": "str", "description": "The title."},
            "start_time": {"type": "str", "description": "in the pattern of %Y-%m-%d %H:%M:%S"},
            "seats": {"type": "int", "description": "[Optional] How many."},
        }
    ),
)
WIKI = ToolSpec(name="Wiki", parameters=parameters_schema({"keyword": {"type": "str", "description": "Words."}}))
GIVEN = {"token": "a1", "meeting_topic": "new project launch plan", "start_time": "2023-11-12 15:00:00", "seats": 4}


def meeting(**arguments: Any) -> Sample:
    call = ToolCall(name="AddMeeting", arguments={**GIVEN, **arguments})
    messages = (Message(role="user", content="Please."),)
    return Sample(id="m", tools=(MEETING, WIKI), messages=messages, target=(call,), source="apibank", tags=("level-1",))


def judged(arguments: Any, name: str = "AddMeeting", **more: Any) -> dict[str, Any]:
    sample = meeting()
    return bank().judge(sample, answer(sample, ToolCall(name=name, arguments=arguments), **more))


@pytest.mark.parametrize(
    ("change", "label", "six"),
    [
        ({}, "", []),
        ({"meeting_topic": "New Project launch"}, "", []),  # 3 of 4 words
        ({"meeting_topic": "project launch"}, "INPUT_MISMATCH", ["parameter_value"]),  # 2 of 4 is not above one half
        ({"start_time": "2023-11-12 15:0:0"}, "", []),
        ({"start_time": "12 Nov, 3 pm"}, "HAS_EXCEPTION", ["parameter_value"]),
        ({"start_time": "2023-11-12 16:00:00"}, "INPUT_MISMATCH", ["parameter_value"]),
        ({"token": "A1"}, "INPUT_MISMATCH", ["parameter_value"]),
        ({"token": None}, "INPUT_MISMATCH", ["parameter_type"]),
        ({"seats": "4"}, "", []),
        ({"seats": "four"}, "INVALID_INPUT_PARAMETER", ["parameter_type"]),
        ({"seats": True}, "INVALID_INPUT_PARAMETER", ["parameter_type"]),
        ({"room": "1"}, "INVALID_INPUT_PARAMETER", ["parameter_name"]),
    ],
)
def test_labels_of_arguments(change: dict[str, Any], label: str, six: list[str]) -> None:
    row = judged({**GIVEN, **change})
    assert (row["label"], row["errors"], row["right"]) == (label, six, not label)
    assert row["equal"] is (not label and not change.keys() - {"seats"})  # "4" is 4; another form of a date is folded


def test_labels_of_answers_as_a_whole() -> None:
    sample = meeting()
    evaluation = bank()
    none = evaluation.judge(sample, answer(sample))
    assert (none["label"], none["errors"]) == ("NO_API_CALL", ["call_count"])
    broken = evaluation.judge(sample, answer(sample, calls=None, error="not closed"))
    assert (broken["label"], broken["errors"]) == ("FAILED_PARSE_API_CALL", ["format"])
    lost = evaluation.judge(sample, Candidate(sample_id="m", index=0, text="", error="failed"))
    assert (lost["exact"], lost["errors"]) == (False, ["format"])
    assert judged("[1]")["label"] == "FAILED_PARSE_API_CALL"
    assert judged(json.dumps(GIVEN))["exact"]  # arguments as JSON text
    assert judged(GIVEN, name="Wiki")["label"] == "API_NAME_MISMATCH"
    less = {key: value for key, value in GIVEN.items() if key != "token"}
    assert (judged(less)["label"], judged(less)["errors"]) == ("MISS_INPUT_ARGUMENT", ["missing_required"])


def test_the_first_call_counts_officially_and_any_call_for_toolrl() -> None:
    sample = meeting()
    gold, other = sample.target[0], ToolCall(name="Wiki", arguments={"keyword": "launch"})
    for calls, first, some in (((gold, other), True, True), ((other, gold), False, True), ((other,), False, False)):
        assert bank().judge(sample, answer(sample, *calls))["exact"] is first
        assert bank(rule="toolrl").judge(sample, answer(sample, *calls))["exact"] is some
    # ToolRL folds nothing but text that stands for typed values.
    folded = ToolCall(name="AddMeeting", arguments={**GIVEN, "meeting_topic": "New project launch plan", "seats": "4"})
    assert bank().judge(sample, answer(sample, folded))["exact"]
    assert not bank(rule="toolrl").judge(sample, answer(sample, folded))["exact"]
    rows = [bank().judge(sample, answer(sample, *calls)) for calls in ((folded, gold), (gold, folded))]
    assert [row["equal"] for row in rows] == [False, True] and all(row["exact"] for row in rows)


def test_a_search_in_other_words_is_neither_right_nor_wrong() -> None:
    sample = replace(meeting(), target=(ToolCall(name="Wiki", arguments={"keyword": "moon"}),))
    rows = [
        bank().judge(sample, answer(sample, ToolCall(name="Wiki", arguments=arguments)))
        for arguments in ({"keyword": "Moon"}, {"keyword": "the moon"}, {"word": "moon"}, {})
    ]
    assert [row["right"] for row in rows] == [True, None, False, False]
    assert {row["doubt"] for row in rows} == {"output_only"}
    found = bank().summarise(rows)
    assert found["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert (found["bounds"]["low"]["value"], found["bounds"]["high"]["value"]) == (0, 0.5)  # "Moon" is not "moon"
    assert found["undecided"] == {"output_only": 4}


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


HOSTILE: list[Any] = [
    None, True, 10**5000, -1, 1.5, float("nan"), float("inf"), "", "\ud800", "\x00" * 10, "9" * 5000, "[" * 20_000,
    "{" * 20_000, deep(900), {"a": deep(50)}, [], {}, [None], "0000-00-00", "2023-13-45 99:99:99", "a" * 100_000,
]  # fmt: skip


def test_no_answer_of_a_model_raises_and_rows_hold_together() -> None:
    rng = random.Random(5)
    samples = bank(format="instances").samples(NOWHERE)
    for rule in ("official", "toolrl"):
        evaluation = bank(rule=rule)
        rows = []
        for number in range(1200):
            sample = samples[number % len(samples)]
            gold = sample.target[0]
            arguments: Any = {key: rng.choice([value, *HOSTILE]) for key, value in gold.arguments.items()}
            if rng.random() < 0.2:
                arguments = rng.choice([*HOSTILE, {"": 1}, {"\ud800": "x"}])
            calls = [ToolCall(name=rng.choice([gold.name, gold.name, "", "\ud800"]), arguments=arguments)]
            row = evaluation.judge(sample, answer(sample, *calls * rng.randint(1, 3)))
            assert row["exact"] is (row["right"] is True) and row["equal"] <= row["exact"]
            assert bool(row["errors"]) is not row["exact"] and set(row["errors"]) <= set(SIX)
            assert not row["label"] or (row["label"] in LABELS and row["right"] is False)
            assert row["right"] is not None or row["doubt"]
            json.dumps(row)
            rows.append(row)
        bounds = evaluation.summarise(rows)["bounds"]
        assert 0 < bounds["low"]["value"] < bounds["high"]["value"] < 1 or rule == "toolrl"
        assert 0 < sum(row["exact"] for row in rows) < len(rows)


# --- numbers ---------------------------------------------------------------------------------------------------------


def row(number: int, cluster: str, right: bool | None, level: int = 1, **more: Any) -> dict[str, Any]:
    base = {"id": str(number), "cluster": cluster, "tags": [f"level-{level}"], "right": right, "exact": right is True}
    base |= {"equal": right is True, "doubt": "" if right is not None else "output_only", "level": level, "api": "A"}
    return {**base, "label": "" if right is not False else "INPUT_MISMATCH", "errors": [], **more}


def test_numbers_by_hand() -> None:
    rows = [
        row(1, "a", True), row(2, "a", False, errors=["parameter_value"]), row(3, "b", True, equal=False, api="B"),
        row(4, "b", None), row(5, "c", True, level=2, doubt="output_only"),
    ]  # fmt: skip
    found = summarise(rows)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["bounds"]["low"]["value"] == 0.4 and found["bounds"]["high"]["value"] == 0.8
    assert found["decidable"]["value"] == 0.6
    assert found["levels"]["1"]["accuracy"]["n"] == 3 and found["levels"]["3"] is None
    assert found["levels"]["2"]["accuracy"]["value"] is None and found["levels"]["2"]["bounds"]["low"]["value"] == 1
    assert {api: entry["value"] for api, entry in found["apis"].items()} == {"A": 0.5, "B": 1}
    assert found["errors"]["parameter_value"]["value"] == pytest.approx(1 / 3)
    assert found["labels"]["INPUT_MISMATCH"] == 1 and found["level3_samples"] is None
    assert set(found["errors"]) == set(SIX) and found["not_computed"]


def test_a_whole_task_counts_when_all_of_its_calls_do() -> None:
    def task(name: str, size: int, *rights: bool | None) -> list[dict[str, Any]]:
        tags = ["level-3", f"calls-{size}"]
        return [row(number, name, right, level=3, tags=tags) for number, right in enumerate(rights)]

    rows = [*task("a", 2, True, True), *task("b", 2, True, False), *task("c", 2, True), *task("d", 2, True, None)]
    found = summarise(rows)["level3_samples"]
    assert (found["value"], found["n"], found["left_out"]) == (0.5, 2, 2)


# --- the graph -------------------------------------------------------------------------------------------------------


def test_a_run_evaluates_on_it_and_says_so_where_nothing_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ("eval=apibank", f"eval.path={DATA}", "eval.limit=1")
    shown = run_here(*chosen)
    assert built(tmp_path).count("evaluate") == 2 and "API-Bank" in shown
    for stage in (tmp_path / "store").glob("evaluate-*"):
        found = json.loads((stage / "summary.json").read_text())
        rows = [json.loads(line) for line in (stage / "rows.jsonl").read_text().splitlines()]
        assert [row["level"] for row in sorted(rows, key=lambda one: one["level"])] == [1, 2, 3]
        assert found["accuracy"]["n"] == sum(not row["doubt"] for row in rows)
        assert found["format"] == {"1": "instances", "2": "instances", "3": "instances"}
    with pytest.raises(DataError, match=r"evaluate: none of 1 samples fits model\.max_tokens=300 .*Raise model"):
        run_here(*chosen, "eval.levels=[1]", "model.max_tokens=300")
