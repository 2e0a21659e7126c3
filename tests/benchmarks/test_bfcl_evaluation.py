"""`eval=bfcl`, single turn: prompts, verdicts of parsed answers, the summary and the official layout."""

from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.bfcl.cases import read_answer, read_cases
from ttpa.benchmarks.bfcl.evaluation import BFCL
from ttpa.benchmarks.bfcl.totals import aggregates
from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl, read_lines
from ttpa.records import Candidate, Sample, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"


def evaluation(*categories: str, **options: Any) -> BFCL:
    usual = {"path": str(DATA), "max_new_tokens": 64, "limit": 4, "prompt": "training", "model": None}
    return BFCL(**{**usual, "categories": list(categories) or None, **options})


def plain(value: Any) -> Any:
    """Accepted values as the first of them."""
    if isinstance(value, dict):
        return {key: options[0] for key, options in value.items() if options[0] != ""}
    return [plain(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def gold(category: str) -> dict[str, list[ToolCall]]:
    """The expected calls of every question, with the first accepted value of everything."""
    found = {}
    for row in read_jsonl(DATA / "possible_answer" / f"BFCL_v4_{category}.json.gz"):
        calls = [(name, plain(values)) for call in row["ground_truth"] for name, values in call.items()]
        found[row["id"]] = [
            ToolCall(name=name, arguments={key: plain(one) for key, one in given.items()}) for name, given in calls
        ]
    return found


def answer(sample: Sample, calls: list[ToolCall] | None, text: str = "") -> Candidate:
    return Candidate(sample_id=sample.id, index=0, text=text, calls=None if calls is None else tuple(calls))


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "parallel_multiple"])
def test_accepted_answers_are_right_and_others_wrong(category: str) -> None:
    made, expected, right = evaluation(category, limit=None), gold(category), []
    official = evaluation(category, prompt="official")
    for sample in made.samples(Path()):
        calls = expected[sample.id]
        assert {call.name for call in calls} <= {tool.name for tool in sample.tools}
        assert sample.messages and sample.target == ()
        right.append(made.judge(sample, answer(sample, calls))["exact"])
        wrong = made.judge(sample, answer(sample, [ToolCall(name="no_such_tool", arguments={})] * len(calls)))
        assert not wrong["exact"] and wrong["errors"] == ["tool_name"]
        text = get_syntax("python").print(calls)  # without a parsed call, a reply in words
        assert made.judge(sample, answer(sample, None, text))["errors"] == ["format"]
        thought = official.judge(sample, answer(sample, None, f"<think>\n[no()] {text}\n</think>\n\n{text}"))
        assert thought["exact"] == right[-1] and thought["result"] == text
    assert sum(right) >= len(right) - 2  # two published answers break their own documents (parallel_88 is one)


def test_silence_is_right_where_no_tool_fits() -> None:
    made = evaluation("irrelevance", "live_relevance")
    rows = [made.judge(sample, answer(sample, None, "I cannot.")) for sample in made.samples(Path())]
    assert {(row["category"], row["exact"]) for row in rows} == {("irrelevance", True), ("live_relevance", False)}
    lost = [made.judge(s, Candidate(sample_id=s.id, index=0, text="", error="failed")) for s in made.samples(Path())]
    assert not any(row["exact"] for row in lost)  # an answer that could not be had is never right


def test_summary_and_layout(tmp_path: Path) -> None:
    """Totals equal those of the accuracies; what was not run is None. `ttpa score` reads what is written alike."""
    made, expected = evaluation("simple_python", "irrelevance", model="Qwen/mine"), gold("simple_python")
    rows = [
        made.judge(sample, answer(sample, expected.get(sample.id) if number % 2 else None, "no"))
        for number, sample in enumerate(made.samples(Path()))
    ]
    summary = made.summarise(rows)
    by_name = {name: share["value"] for name, share in summary["categories"].items()}
    assert list(by_name.items()) == [("simple_python", 0.5), ("irrelevance", 1.0)]
    totals = {one.name: one.value for one in aggregates(by_name, cases=dict.fromkeys(by_name, 4))}
    assert {name: total["value"] for name, total in summary["totals"]["v4"].items()} == totals
    assert summary["totals"]["v3"]["multi_turn"]["value"] is None
    made.write(tmp_path, rows)
    cases, seen = read_cases(DATA), {}
    for path in (tmp_path / "result" / "Qwen_mine" / "non_live").glob("BFCL_v4_*_result.json"):
        for line in read_lines(path):
            read = read_answer(line)
            seen[read.case_id] = cases[read.case_id].judge(read.result).valid
    assert seen == {row["id"]: row["exact"] for row in rows}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"prompt": "mine"}, ["prompt=", "mine", "'training' or 'official'"]),
        ({"categories": ["simple", "chess"]}, ["categories=chess", "simple_python"]),
        ({"categories": "everything"}, ["categories=everything", "all"]),
        *(({"model": name}, ["model="]) for name in ("", "/etc", "a/../b", "a/b/c")),
    ],
)
def test_wrong_options(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluation(**options)
    assert all(part in str(raised.value) for part in parts)


def test_folders(tmp_path: Path) -> None:
    """The content of the files names the result."""
    assert evaluation("multiple").identity() == evaluation("multiple").identity() != evaluation("parallel").identity()
    with pytest.raises(ConfigError, match="no such folder"):
        evaluation(path=str(tmp_path / "gone")).check()
    with pytest.raises(DataError, match="no questions"):
        evaluation(path=str(tmp_path)).samples(Path())
    with pytest.raises(DataError, match="no file of multi_turn_base"):
        evaluation("multi_turn_base").samples(Path())
    every = {sample.source for sample in evaluation(categories="all", limit=1).samples(Path())}
    assert every == {sample.source for sample in evaluation(limit=1).samples(Path())}  # no multi-turn file is there


def test_java_and_javascript_are_asked_for_as_text() -> None:
    for sample in evaluation("simple_java", "simple_javascript", limit=None).samples(Path()):
        for schema in (schema for tool in sample.tools for schema in tool.properties.values()):
            assert schema["type"] == "string" and "source" in schema["description"]
