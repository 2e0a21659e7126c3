"""xLAM: rows as published become samples, or are rejected with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.sources import xlam
from ttpa.data.published import Converted
from ttpa.data.rows import BadRow
from ttpa.data.tools import read_tool
from ttpa.io import read_jsonl
from ttpa.records import Sample

REAL = Path(__file__).resolve().parents[1] / "data" / "xlam.jsonl.gz"
TOOLS = [{"name": "now", "description": "Time", "parameters": {"zone": {"description": "Zone", "type": "str"}}}]


def row(answers: Any, tools: Any = TOOLS, query: str = "What time is it?", **more: Any) -> dict[str, Any]:
    return {"id": None, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools), **more}


def convert(given: dict[str, Any], **more: Any) -> Converted:
    return xlam(REAL, **more).convert(given)


def test_real_rows_all_arrive(tmp_path: Path) -> None:
    metrics = xlam(REAL).build(tmp_path)
    rows = list(read_jsonl(REAL))
    files = [tmp_path / f"{name}.jsonl" for name in ("train", "validation", "test")]
    samples = [Sample.from_json(entry) for file in files for entry in read_jsonl(file)]
    # One published row lists two different tools under one name.
    assert [(entry["line"], entry["reason"]) for entry in read_jsonl(tmp_path / "rejected.jsonl")] == [
        (59, "ambiguous tool name: two different tools are named 'search'")
    ]
    assert metrics["rows_read"] == len(rows) == len({sample.id for sample in samples}) + 1 == 60
    by_query = {sample.messages[0].content: sample for sample in samples}
    for original in rows[:58] + rows[59:]:
        sample = by_query[original["query"]]
        assert [call.to_json() for call in sample.target] == json.loads(original["answers"])
        for spec, tool in zip(sample.tools, json.loads(original["tools"]), strict=True):
            assert (spec.name, list(spec.properties)) == (tool["name"], list(tool["parameters"]))
            for name, parameter in tool["parameters"].items():
                kept = {key: spec.properties[name].get(key) for key in ("description", "default")}
                assert kept == {key: parameter.get(key) for key in ("description", "default")}
                assert (name in spec.required) == ("optional" not in parameter["type"] and "default" not in parameter)
    assert metrics["kinds"] == {"call": 59, "text": 0}
    assert sum(sum(bands.values()) for bands in metrics["bands"].values()) == 59


@pytest.mark.parametrize(("parameter", "schema", "required"), [
    ({"description": "A", "type": "str"}, {"type": "string", "description": "A"}, True),
    ({"type": "int, optional"}, {"type": "integer"}, False), ({"type": "str", "default": ""}, {"type": "string",
     "default": ""}, False), ({"type": "Optional[str]"}, {"type": ["string", "null"]}, False), ({}, {}, True),
    ({"description": "optional in words only", "type": "List[int]"},
     {"type": "array", "items": {"type": "integer"}, "description": "optional in words only"}, True),
])  # fmt: skip
def test_required_rule_and_kept_fields(parameter: dict[str, Any], schema: dict[str, Any], required: bool) -> None:
    assert read_tool({"name": "f", "parameters": {"x": parameter}}).parameters == {
        "type": "object", "properties": {"x": schema}, "required": ["x"] * required}  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), [
    (row([{"name": "then", "arguments": {}}]), "tool not in list: calls 'then'; the row lists 'now'"),
    (row([{"name": "now", "arguments": "zone"}]), "arguments not an object: the call of 'now' has a str"),
    (row([{"arguments": {}}]), "missing name: an element of 'answers' has no name"),
    (row([], tools=[{"description": "x"}]), "missing name: an element of 'tools'"),
    (row([], tools=[{"name": "f", "parameters": [1]}]), "parameters not an object: tool 'f' has a list"),
    (row([], tools=[{"name": "f", "parameters": {"a": "str"}}]), "parameter not an object: parameter 'a' is a str"),
    (row([], tools=[TOOLS[0], {"name": "now"}]), "ambiguous tool name"),
    ({**row([]), "answers": "[{]"}, "field not JSON: 'answers'"), (row({}), "field not a list: 'answers'"),
    (row([{"name": "now", "arguments": {"zone": float("nan")}}]), "field not JSON: 'answers' is not JSON .NaN"),
    ({"query": "x", "tools": "[]"}, "missing key: 'answers'"), ({"tools": "[]"}, "missing key: 'query'"),
])  # fmt: skip
def test_bad_rows_say_why(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=f"^{reason}"):
        convert(bad)


def test_empty_answer() -> None:
    assert convert(row([])).samples == ()
    (sample,) = convert(row([]), text_turns=True).samples
    assert (sample.kind, sample.target, sample.target_text) == ("text", (), "")


def test_id_is_content_only() -> None:
    call = [{"name": "now", "arguments": {"zone": "UTC"}}]
    first = convert(row(call))
    assert convert({**row(call), "id": 7, "answers": json.dumps(call, indent=2)}) == first
    assert convert({**row(call), "answers": call, "tools": TOOLS}) == first
    assert convert(row(call, query="And now?")).key != first.key
