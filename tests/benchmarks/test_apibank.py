"""API-Bank: every label by hand, changed and hostile answers, numbers, and a run of the graph."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_pipeline import built, run_here
from ttpa.benchmarks.apibank import APIBank
from ttpa.benchmarks.apibank.rules import LABELS
from ttpa.benchmarks.apibank.summary import summarise
from ttpa.benchmarks.apibank.values import parameters_schema
from ttpa.calls.six_errors import LABELS as SIX
from ttpa.errors import DataError
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec
from ttpa.results.stats import paired_difference

DATA = Path(__file__).resolve().parents[1] / "data" / "apibank"
NOWHERE = Path("of no use")


def bank(path: Path = DATA, **options: Any) -> APIBank:
    return APIBank(path=str(path), max_new_tokens=8, **options)


def answer(sample: Sample, *calls: ToolCall, **more: Any) -> Candidate:
    return Candidate(sample_id=sample.id, index=0, text="said", **{"calls": calls, **more})


BOTH = [("dialogues", [1, 2]), ("instances", [1, 2, 3])]


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


def test_two_policies_are_compared_over_the_same_rows() -> None:
    evaluation = bank(format="instances", levels=[3])
    samples = evaluation.samples(NOWHERE)
    good = [evaluation.judge(sample, answer(sample, *sample.target)) for sample in samples]
    bad = [evaluation.judge(sample, answer(sample)) for sample in samples]
    left, right = ({one["id"]: float(one["exact"]) for one in rows} for rows in (good, bad))
    clusters = {one["id"]: one["cluster"] for one in good}
    assert len(clusters) == len(samples) > len(set(clusters.values()))
    assert paired_difference(left, right, clusters) == (1, 1, 1)


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
