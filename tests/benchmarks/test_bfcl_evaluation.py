"""`eval=bfcl`, single turn: prompts, verdicts of parsed answers, the summary and the official layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.bfcl.cases import read_answer, read_cases
from ttpa.benchmarks.bfcl.evaluation import BFCL
from ttpa.benchmarks.bfcl.totals import aggregates
from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_lines
from ttpa.records import Candidate, Sample, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"
PYTHON = ["simple_python", "multiple", "parallel", "parallel_multiple"]


def evaluation(**options: Any) -> BFCL:
    usual = {
        "path": str(DATA),
        "max_new_tokens": 64,
        "limit": 4,
        "categories": None,
        "prompt": "training",
        "model": None,
    }
    return BFCL(**{**usual, **options})


def answers_of(category: str) -> dict[str, list[ToolCall]]:
    """The first accepted value of everything."""
    found = {}
    with gzip.open(DATA / "possible_answer" / f"BFCL_v4_{category}.json.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            calls = [(name, values) for call in row["ground_truth"] for name, values in call.items()]
            found[row["id"]] = [
                ToolCall(
                    name=name, arguments={key: plain(options[0]) for key, options in values.items() if options[0] != ""}
                )
                for name, values in calls
            ]
    return found


def plain(value: Any) -> Any:
    """A dict of accepted values as a dict of values."""
    if isinstance(value, dict):
        return {key: options[0] for key, options in value.items() if options[0] != ""}
    return [plain(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def answer(sample: Sample, calls: list[ToolCall] | None, text: str = "") -> Candidate:
    made = None if calls is None else tuple(calls)
    return Candidate(sample_id=sample.id, index=0, text=text, calls=made, error=None if made is not None else "no call")


@pytest.mark.parametrize("category", PYTHON)
def test_accepted_answers_are_right_and_others_wrong(category: str) -> None:
    made = evaluation(categories=[category], limit=None)
    gold, right = answers_of(category), []
    for sample in made.samples(Path()):
        assert {call.name for call in gold[sample.id]} <= {tool.name for tool in sample.tools}
        assert sample.messages and sample.target == ()
        right.append(made.judge(sample, answer(sample, gold[sample.id]))["exact"])
        wrong = made.judge(sample, answer(sample, [ToolCall(name="no_such_tool", arguments={})] * len(gold[sample.id])))
        assert not wrong["exact"] and wrong["errors"] == ["tool_name"]
        assert made.judge(sample, answer(sample, None, "It rains."))["errors"] == ["format"]
    assert sum(right) >= len(right) - 2  # two published answers break their own documents (parallel_88 is one)


def test_silence_is_right_where_no_tool_fits() -> None:
    made = evaluation(categories=["irrelevance", "live_relevance"])
    rows = [made.judge(sample, answer(sample, None, "I cannot.")) for sample in made.samples(Path())]
    assert {(row["category"], row["exact"]) for row in rows} == {("irrelevance", True), ("live_relevance", False)}
    lost = [made.judge(s, Candidate(sample_id=s.id, index=0, text="", error="failed")) for s in made.samples(Path())]
    assert not any(row["exact"] for row in lost)  # an answer that could not be had is never right


def test_summary_and_layout(tmp_path: Path) -> None:
    """Totals equal those of the accuracies; what was not run is None. `ttpa score` reads what is written alike."""
    made = evaluation(categories=["simple_python", "irrelevance"], model="mine")
    gold = answers_of("simple_python")
    samples = made.samples(Path())
    rows = [
        made.judge(sample, answer(sample, gold.get(sample.id) if number % 2 else None, "no"))
        for number, sample in enumerate(samples)
    ]
    summary = made.summarise(rows)
    assert summary["prompt"] == "training" and list(summary["categories"]) == ["simple_python", "irrelevance"]
    by_name = {name: share["value"] for name, share in summary["categories"].items()}
    assert by_name == {"simple_python": 0.5, "irrelevance": 1.0}
    totals = {one.name: one.value for one in aggregates(by_name, cases={name: 4 for name in by_name}, version="v4")}
    assert {name: total["value"] for name, total in summary["totals"]["v4"].items()} == totals
    assert (
        summary["totals"]["v4"]["overall"]["value"] is None and summary["totals"]["v3"]["multi_turn"]["value"] is None
    )
    made.write(tmp_path, rows)
    cases, seen = read_cases(DATA), 0
    for row in rows:
        path = tmp_path / "result" / "mine" / "non_live" / f"BFCL_v4_{row['category']}_result.json"
        for line in read_lines(path):
            read = read_answer(line)
            if read.case_id == row["id"]:
                seen += 1
                assert cases[read.case_id].judge(read.result).valid == row["exact"]
    assert seen == len(rows)


def test_content_names_the_result() -> None:
    one, two = evaluation(categories=["multiple"]), evaluation(categories=["parallel"])
    assert one.identity() == evaluation(categories=["multiple"]).identity() != two.identity()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"prompt": "mine"}, ["prompt=", "mine", "'training' or 'official'"]),
        ({"limit": 0}, ["limit=0", "greater than or equal to 1"]),
        ({"categories": ["simple", "chess"]}, ["categories=chess", "simple_python"]),
        ({"categories": ["web_search_base"]}, ["web_search_base", "not evaluated"]),
        ({"categories": "everything"}, ["categories=everything", "all"]),
        *(({"model": name}, ["is no name of a model"]) for name in ("", "/etc", "..", "a/../b", "a/b/c")),
    ],
)
def test_wrong_options(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluation(**options)
    assert all(part in str(raised.value) for part in parts)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        evaluation(path=str(tmp_path / "gone")).check()
    with pytest.raises(DataError, match="no questions"):
        evaluation(path=str(tmp_path)).samples(Path())
    with pytest.raises(DataError, match="no file of multi_turn_base"):
        evaluation(categories=["multi_turn_base"]).samples(Path())
    every = {sample.source for sample in evaluation(categories="all", limit=1).samples(Path())}
    assert every == {sample.source for sample in evaluation(limit=1).samples(Path())}  # no multi-turn file is there


def test_the_verdicts_are_those_of_a_function_calling_model() -> None:
    """Where the policy made no call, its text is a reply in words, as the official tool takes it."""
    made = evaluation(categories=["simple_python", "irrelevance"])
    gold = answers_of("simple_python")
    for sample in made.samples(Path()):
        text = get_syntax("python").print(gold.get(sample.id, []))
        row = made.judge(sample, answer(sample, [], text))
        assert row["exact"] == (sample.source == "irrelevance") and row["result"] == text


@pytest.mark.parametrize("category", ["simple_java", "simple_javascript"])
def test_java_and_javascript_are_asked_for_as_text(category: str) -> None:
    for sample in evaluation(categories=[category], limit=None).samples(Path()):
        for tool in sample.tools:
            assert {schema["type"] for schema in tool.properties.values()} <= {"string"}
            assert all("source" in schema["description"] for schema in tool.properties.values())


def test_a_slash_in_the_name_is_written_as_the_official_tool_does(tmp_path: Path) -> None:
    made = evaluation(categories=["irrelevance"], model="Qwen/Qwen3-0.6B-FC")
    made.write(tmp_path, [made.judge(sample, answer(sample, None)) for sample in made.samples(Path())])
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["Qwen_Qwen3-0.6B-FC"]
