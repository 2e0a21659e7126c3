"""API-Bank: published files to samples, text to values, every label by hand, hostile answers, and the numbers."""

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
from ttpa.benchmarks.apibank.evaluation import OFFICIAL, APIBank, _compared
from ttpa.benchmarks.apibank.files import tool_of, typed
from ttpa.calls.six_errors import LABELS as SIX
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl
from ttpa.policy.policy import Policy
from ttpa.records import Candidate, Sample, ToolCall, ToolSpec
from ttpa.run.parts import fitting

DATA = Path(__file__).resolve().parents[1] / "data" / "apibank"
NOWHERE = Path("of no use")
BOTH = [("dialogues", [1, 2]), ("instances", [1, 2, 3])]


def bank(path: Path = DATA, **options: Any) -> APIBank:
    usual = {"max_new_tokens": 8, "levels": [1, 2, 3], "format": "auto", "rule": "official", "limit": None}
    return APIBank(path=str(path), **{**usual, **options})


def answer(sample: Sample, *calls: ToolCall, **more: Any) -> Candidate:
    return Candidate(sample_id=sample.id, index=0, text="said", **{"calls": calls, **more})


def published(name: str) -> list[dict[str, Any]]:
    return list(read_jsonl(DATA / f"{name}.jsonl.gz"))


def test_every_recorded_call_of_a_dialogue_is_a_sample_with_what_was_said_and_found_before() -> None:
    turns = {row["file"]: row["turns"] for row in published("level-1-given-desc") + published("level-2-toolsearcher")}
    samples = bank(format="dialogues", levels=[1, 2]).samples(NOWHERE)
    assert len(samples) == sum(turn["role"] == "API" for row in turns.values() for turn in row) == 116
    for sample in samples:
        number, whole = int(sample.id.rsplit("-", 1)[1]), turns[f"{sample.dialogue_id[10:]}.jsonl"]
        before, gold = whole[:number], sample.target[0]
        spoken = [(one.role, one.content) for one in sample.messages if one.role != "tool" and not one.calls]
        names = {"User": "user", "AI": "assistant"}
        assert spoken == [(names[turn["role"]], turn["text"]) for turn in before if turn["role"] != "API"]
        called = [call.name for message in sample.messages for call in message.calls]
        assert called == [turn["api_name"] for turn in before if turn["role"] == "API"]
        assert len(sample.messages) == len(before) + len(called)  # a call is two messages: itself, and what came back
        assert (gold.name, gold.arguments.keys()) == (whole[number]["api_name"], whole[number]["param_dict"].keys())
        expected = {turn["api_name"] for turn in whole if turn["role"] == "API"}
        if sample.tags[0] == "level-2":
            outputs = [turn["result"]["output"] for turn in before if turn.get("api_name") == "ToolSearcher"]
            documents = [one for found in outputs for one in (found if isinstance(found, list) else [found])]
            expected = {"ToolSearcher", *(one["name"] for one in documents)}
        assert {tool.name for tool in sample.tools} == expected and len(sample.tools) == len(expected)
        assert ("tool_not_listed" in sample.tags) == (gold.name not in expected)


def test_instances_keep_all_words_of_their_two_prompts_that_are_not_toolrls() -> None:
    rows = [row for level in (1, 2, 3) for row in published(f"level-{level}-instances")]
    samples = bank(format="instances").samples(NOWHERE)
    assert len(samples) == 186
    for sample, row in zip(samples, rows, strict=True):
        recorded = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
        assert sample.target[0].name == recorded["name"]
        assert sample.target[0].arguments.keys() == recorded["parameters"].keys()
        assert len(sample.tools) == row["system"].count("\nParameters: ")
        blocks = sum(row["user"].count(f"<{tag}>") for tag in ("user", "response", "tool_call", "obs"))
        assert len(sample.messages) == blocks and all(one.content in row["user"] for one in sample.messages)
    sizes = Counter(row["other"]["sample_id"] for row in published("level-3-instances")).values()
    tags = {tag for sample in samples for tag in sample.tags if tag.startswith("calls-")}
    assert tags == {f"calls-{size}" for size in sizes}


def test_published_folders_give_the_samples_of_the_packed_file(tmp_path: Path) -> None:
    folder = tmp_path / "lv1-lv2-samples" / "level-1-given-desc"
    folder.mkdir(parents=True)
    for row in published("level-1-given-desc"):
        (folder / row["file"]).write_text("".join(json.dumps(turn) + "\n" for turn in row["turns"]), encoding="utf-8")
    shutil.copy(DATA / "api_specs.jsonl.gz", tmp_path)
    found, packed = bank(tmp_path, levels=[1]), bank(levels=[1], format="dialogues")
    by_id = [sorted(one.samples(NOWHERE), key=lambda sample: sample.id) for one in (found, packed)]
    assert by_id[0] == by_id[1]


def test_levels_and_limit_choose_and_identity_is_what_the_files_hold(tmp_path: Path) -> None:
    samples = bank(levels=[3, 1], limit=4).samples(NOWHERE)
    assert [sample.tags[0] for sample in samples] == ["level-3"] * 4 + ["level-1"] * 4
    copy = tmp_path / "elsewhere"
    shutil.copytree(DATA, copy)
    assert bank(copy).identity() == bank().identity()
    with gzip.open(copy / "level-3-instances.jsonl.gz", "at") as file:
        file.write("\n")
    assert bank(copy).identity() != bank().identity()
    assert bank(copy, levels=[1]).identity() == bank(levels=[1]).identity()


TURNS, INSTANCE = published("level-1-given-desc")[0], published("level-3-instances")[0]


@pytest.mark.parametrize(("name", "rows", "message"), [
    ("level-1-given-desc", [TURNS, {"file": "x.jsonl"}], r"desc\.jsonl:2: .*'turns'.*as published"),
    ("level-1-given-desc", [{**TURNS, "turns": [{"role": "Bot", "text": ""}]}], r":1: .*'Bot'"),
    ("level-1-given-desc", [{**TURNS, "turns": [{"role": "User", "text": 5}]}], r":1: .*int"),
    ("level-1-given-desc", [{**TURNS, "turns": [{**TURNS["turns"][3], "api_name": "Fly"}]}], r":1: .*'Fly'"),
    ("level-1-given-desc", [TURNS, TURNS], r"apibank-1-\S+ is there twice"),
    ("level-1-given-desc", [], r"no calls of level 1"),
    ("level-1-given-desc", ["{"], r"given-desc\.jsonl:1: .*JSON"),
    ("level-3-instances", [INSTANCE, {**INSTANCE, "system": "none"}], r"instances\.jsonl:2: .*lists no tools"),
    ("level-3-instances", [{**INSTANCE, "user": "hello"}], r":1: .*cannot be read: .hello"),
    ("level-3-instances", [{**INSTANCE, "answer": []}], r":1: .*expected 1"),
    ("level-3-instances", [{**INSTANCE, "answer": {"name": 5, "parameters": {}}}], r":1: .*str .not .int"),
])  # fmt: skip
def test_rows_of_another_form_are_refused_by_file_and_line(
    name: str, rows: list[Any], message: str, tmp_path: Path
) -> None:
    shutil.copy(DATA / "api_specs.jsonl.gz", tmp_path)
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        bank(tmp_path, levels=[int(name[6])]).samples(NOWHERE)


def test_missing_files_and_bad_levels_are_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "level-2-toolsearcher.jsonl").write_text("")
    for path, levels, message in (
        (tmp_path / "none", [1], r"eval\.path=.*no such folder"),
        (tmp_path, [3], r"no files of level 3 .*level-3-instances\.jsonl.*eval\.levels"),
        (tmp_path, [2], r"level 2 need api_specs\.jsonl"),
        (DATA, [4], r"levels\.0=4"), (DATA, [], "levels="), (DATA, [1, 1], "names a level twice"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            bank(path, levels=levels).check()


STRING, INTEGER, LIST, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "array", "boolean"))
WHEN, DAY = ({**STRING, "description": f"Format: {one}"} for one in ("%Y-%m-%d %H:%M:%S", "%m-%d"))


@pytest.mark.parametrize(("key", "left", "right", "schema", "same"), [
    ("location", " Room 1", "room 1", STRING, True), ("location", "Room 1", "Room 2", STRING, False),
    ("token", "A1", "a1", STRING, False), ("time", "2023-3-5 9:00:00", "2023-03-05 09:00:00", WHEN, True),
    ("date", "2024-02-29", "02-29", DAY, True), ("date", "2023-02-29", "02-29", DAY, False),
    ("formula", "(5+6) * 3", "(5 + 6)*3", STRING, True), ("n", "2", 2.0, INTEGER, True),
    ("n", "two", 2, INTEGER, False), ("on", "True", True, BOOLEAN, True), ("on", "true", True, BOOLEAN, False),
    ("attendees", ["Jane", "John"], ["John", "Jane"], LIST, False),
    ("health_data", [{"name": "a"}, {"name": "b"}], "[{'name': 'b'}, {'name': 'a'}]", LIST, True),
])  # fmt: skip
def test_values_are_compared_in_one_form(key: str, left: Any, right: Any, schema: dict[str, Any], same: bool) -> None:
    assert (_compared(key, left, schema) == _compared(key, right, schema)) is same


def test_text_that_stands_for_values() -> None:
    assert typed("['a']", LIST) == ["a"] and typed("a", LIST) == "a"
    assert typed("007", INTEGER) == 7 and typed("1e9", INTEGER) == "1e9" and typed("2.50", {"type": "number"}) == 2.5
    assert typed("[" * 5000, LIST) == "[" * 5000 and typed("{'a': ['b']}", {"type": "object"}) == {"a": ["b"]}


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
    assert found["accuracy"]["value"] == 1 and found["bounds"]["high"]["value"] == 1
    assert found["bounds"]["low"]["value"] == pytest.approx(1 - len(wrong) / len(rows))
    assert found["rule"] == rule and found["format"] == {str(level): form for level in levels}


def test_every_change_of_a_recorded_call_is_seen() -> None:
    """Another name, a key more, a key less, another value: each has its label, over all decidable samples."""
    seen: Counter[str] = Counter()
    for sample in bank().samples(NOWHERE):
        gold, spec = sample.target[0], sample.tool(sample.target[0].name)
        if doubt := bank().judge(sample, answer(sample, gold))["doubt"]:
            wrong = bank().judge(sample, answer(sample, replace(gold, arguments={"no_such_key": 1})))
            assert wrong["right"] is (None if doubt == "recorded_call" else False)
            continue
        changes = [
            (gold.name + "s", gold.arguments, ["API_NAME_MISMATCH"]),
            (gold.name, {**gold.arguments, "no_such_key": "x"}, ["INVALID_INPUT_PARAMETER"]),
        ]
        for key in gold.arguments:
            rest = {name: value for name, value in gold.arguments.items() if name != key}
            needed = spec is None or key in spec.required
            changes.append((gold.name, rest, ["MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH"]))
            changes.append((gold.name, {**rest, key: "zzz"}, ["INPUT_MISMATCH", *OFFICIAL[3:]]))
        for name, arguments, labels in changes:
            row = bank().judge(sample, answer(sample, ToolCall(name=name, arguments=arguments)))
            assert row["right"] is False and row["errors"] and row["label"] in labels
            seen[row["label"]] += 1
    assert set(seen) == set(OFFICIAL) - {"NO_API_CALL", "FAILED_PARSE_API_CALL"}


def documented(name: str, **parameters: str) -> ToolSpec:
    given = {key: {"type": "int" if key == "seats" else "str", "description": text} for key, text in parameters.items()}
    return tool_of({"name": name, "description": "", "input_parameters": given})


WIKI = documented("Wiki", keyword="Words.")
MEETING = documented("AddMeeting", token="User's token.", meeting_topic="The title.", seats="[Optional] How many.",
                     start_time="in the pattern of %Y-%m-%d %H:%M:%S")  # fmt: skip
GIVEN = {"token": "a1", "meeting_topic": "new project launch plan", "start_time": "2023-11-12 15:00:00", "seats": 4}
GOLD = ToolCall(name="AddMeeting", arguments=GIVEN)
SAMPLE = Sample(id="m", tools=(MEETING, WIKI), messages=(), target=(GOLD,), source="apibank", tags=("level-1",))


@pytest.mark.parametrize(("change", "label", "six"), [
    ({}, "", []), ({"meeting_topic": "New Project launch"}, "", []),  # 3 of 4 words
    ({"meeting_topic": "project launch"}, "INPUT_MISMATCH", ["parameter_value"]),  # 2 of 4 is not above one half
    ({"start_time": "2023-11-12 15:0:0"}, "", []), ({"seats": "4"}, "", []),
    ({"start_time": "12 Nov, 3 pm"}, "HAS_EXCEPTION", ["parameter_value"]),
    ({"start_time": "2023-11-12 16:00:00"}, "INPUT_MISMATCH", ["parameter_value"]),
    ({"token": "A1"}, "INPUT_MISMATCH", ["parameter_value"]), ({"token": None}, "INPUT_MISMATCH", ["parameter_type"]),
    ({"seats": "four"}, "INVALID_INPUT_PARAMETER", ["parameter_type"]),
    ({"seats": True}, "INVALID_INPUT_PARAMETER", ["parameter_type"]),
    ({"room": "1"}, "INVALID_INPUT_PARAMETER", ["parameter_name"]),
])  # fmt: skip
def test_labels_of_arguments(change: dict[str, Any], label: str, six: list[str]) -> None:
    row = bank().judge(SAMPLE, answer(SAMPLE, replace(GOLD, arguments={**GIVEN, **change})))
    assert (row["label"], row["errors"], row["right"]) == (label, six, not label)
    assert row["equal"] is (not label and not change.keys() - {"seats"})  # "4" is 4; another form of a date is folded


@pytest.mark.parametrize(("candidate", "label", "six"), [
    (answer(SAMPLE), "NO_API_CALL", ["call_count"]),
    (answer(SAMPLE, calls=None, error="failed"), "FAILED_PARSE_API_CALL", ["format"]),
    (answer(SAMPLE, replace(GOLD, arguments="[1]")), "FAILED_PARSE_API_CALL", ["format"]),  # type: ignore[arg-type]
    (answer(SAMPLE, replace(GOLD, arguments=json.dumps(GIVEN))), "", []),  # type: ignore[arg-type]
    (answer(SAMPLE, replace(GOLD, name="Wiki")), "API_NAME_MISMATCH", None),
    (answer(SAMPLE, replace(GOLD, arguments={"token": "a1"})), "MISS_INPUT_ARGUMENT", None),
])  # fmt: skip
def test_labels_of_answers_as_a_whole(candidate: Candidate, label: str, six: list[str] | None) -> None:
    row = bank().judge(SAMPLE, candidate)
    assert row["label"] == label and row["exact"] is not bool(label) and (six is None or row["errors"] == six)


def test_the_first_call_counts_officially_and_any_call_for_toolrl() -> None:
    other = ToolCall(name="Wiki", arguments={"keyword": "launch"})
    folded = replace(GOLD, arguments={**GIVEN, "meeting_topic": "New project launch plan", "seats": "4"})
    for calls, first, some, equal in (
        ((GOLD, other), True, True, True), ((other, GOLD), False, True, False), ((other,), False, False, False),
        ((folded,), True, False, False), ((folded, GOLD), True, True, False),  # ToolRL folds nothing
    ):  # fmt: skip
        row = bank().judge(SAMPLE, answer(SAMPLE, *calls))
        assert (row["exact"], row["equal"]) == (first, equal)
        assert bank(rule="toolrl").judge(SAMPLE, answer(SAMPLE, *calls))["exact"] is some


def test_a_search_in_other_words_is_neither_right_nor_wrong() -> None:
    sample = replace(SAMPLE, target=(ToolCall(name="Wiki", arguments={"keyword": "moon"}),))
    given = ({"keyword": "Moon"}, {"keyword": "the moon"}, {"word": "moon"}, {})
    rows = [bank().judge(sample, answer(sample, ToolCall(name="Wiki", arguments=one))) for one in given]
    assert [row["right"] for row in rows] == [True, None, False, False]
    found = bank().summarise(rows)
    assert found["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert (found["bounds"]["low"]["value"], found["bounds"]["high"]["value"]) == (0, 0.5)  # "Moon" is not "moon"
    assert found["undecided"] == {"output_only": 4}


HOSTILE: list[Any] = [
    None, True, 10**5000, -1, 1.5, float("nan"), float("inf"), "", "\ud800", "\x00" * 10, "9" * 5000, "[" * 20_000,
    "{" * 20_000, {"a": [[[]]]}, [], {}, [None], "0000-00-00", "2023-13-45 99:99:99", "a" * 100_000,
]  # fmt: skip
for _ in range(900):
    HOSTILE[0] = [HOSTILE[0]]


@pytest.mark.parametrize("rule", ["official", "toolrl"])
def test_no_answer_of_a_model_raises_and_rows_hold_together(rule: str) -> None:
    rng, evaluation = random.Random(5), bank(rule=rule, format="instances")
    rows = []
    for sample in evaluation.samples(NOWHERE) * 4:
        gold = sample.target[0]
        arguments: Any = {key: rng.choice([value, *HOSTILE]) for key, value in gold.arguments.items()}
        if rng.random() < 0.2:
            arguments = rng.choice([*HOSTILE, {"": 1}, {"\ud800": "x"}])
        calls = [ToolCall(name=rng.choice([gold.name, gold.name, "", "\ud800"]), arguments=arguments)]
        row = evaluation.judge(sample, answer(sample, *calls * rng.randint(1, 3)))
        assert row["exact"] is (row["right"] is True) and row["equal"] <= row["exact"]
        assert bool(row["errors"]) is not row["exact"] and set(row["errors"]) <= set(SIX)
        assert not row["label"] or (row["label"] in OFFICIAL and row["right"] is False)
        assert row["right"] is not None or row["doubt"]
        rows.append(row)
    assert 0 < sum(row["exact"] for row in rows) < len(rows) and json.dumps(evaluation.summarise(rows))


def row(number: int, cluster: str, right: bool | None, level: int = 1, **more: Any) -> dict[str, Any]:
    base = {"id": str(number), "cluster": cluster, "tags": [f"level-{level}"], "right": right, "exact": right is True}
    base |= {"equal": right is True, "doubt": "" if right is not None else "output_only", "level": level, "api": "A"}
    return {**base, "label": "" if right is not False else "INPUT_MISMATCH", "errors": [], **more}


def test_numbers_by_hand() -> None:
    rows = [
        row(1, "a", True), row(2, "a", False, errors=["parameter_value"]), row(3, "b", True, equal=False, api="B"),
        row(4, "b", None), row(5, "c", True, level=2, doubt="output_only"),
    ]  # fmt: skip
    found = bank().summarise(rows)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["bounds"]["low"]["value"] == 0.4 and found["bounds"]["high"]["value"] == 0.8
    assert found["decidable"]["value"] == 0.6
    assert found["levels"]["1"]["accuracy"]["n"] == 3 and found["levels"]["3"] is None
    assert found["levels"]["2"]["accuracy"]["value"] is None and found["levels"]["2"]["bounds"]["low"]["value"] == 1
    assert {api: entry["value"] for api, entry in found["apis"].items()} == {"A": 0.5, "B": 1}
    assert found["errors"]["parameter_value"]["value"] == pytest.approx(1 / 3)
    assert found["labels"]["INPUT_MISMATCH"] == 1 and found["level3_samples"] is None


def test_a_whole_task_counts_when_all_of_its_calls_do() -> None:
    tasks = {"a": (True, True), "b": (True, False), "c": (True,), "d": (True, None)}  # c lacks a call, d is in doubt
    tags = ["level-3", "calls-2"]
    rows = [row(at, name, one, level=3, tags=tags) for name, rights in tasks.items() for at, one in enumerate(rights)]
    found = bank().summarise(rows)["level3_samples"]
    assert (found["value"], found["n"], found["left_out"]) == (0.5, 2, 2)


def test_a_run_evaluates_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_here("eval=apibank", f"eval.path={DATA}", "eval.limit=1")
    assert built(tmp_path).count("evaluate") == 2 and "API-Bank" in shown
    for stage in (tmp_path / "store").glob("evaluate-*"):
        found = json.loads((stage / "summary.json").read_text())
        rows = list(read_jsonl(stage / "rows.jsonl"))
        assert {row["level"] for row in rows} == {1, 2, 3}
        assert found["accuracy"]["n"] == sum(not row["doubt"] for row in rows)


def test_an_evaluation_of_which_nothing_fits_says_so(tiny_policy: Policy, toy_samples: tuple[Sample, ...]) -> None:
    with pytest.raises(DataError, match=r"evaluate: none of 6 samples fits model\.max_tokens=256 .*Raise model"):
        fitting(tiny_policy, toy_samples, 256, "evaluate")
