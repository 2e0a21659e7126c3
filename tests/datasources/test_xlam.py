"""xLAM: rows as published become samples, or are rejected with a reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.sources import xlam
from ttpa.data.rows import BadRow
from ttpa.data.xlam import XLAM, parameters_schema
from ttpa.io import read_jsonl
from ttpa.records import Sample

REAL = Path(__file__).resolve().parents[1] / "data" / "xlam.jsonl.gz"
TOOLS = [{"name": "now", "description": "Time", "parameters": {"zone": {"description": "Zone", "type": "str"}}}]


def row(answers: Any, tools: Any = TOOLS, query: str = "What time is it?", **more: Any) -> dict[str, Any]:
    return {"id": None, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools), **more}


def source(**more: Any) -> XLAM:
    return xlam(REAL, **more)


def real_rows() -> list[dict[str, Any]]:
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def written(out: Path) -> list[Sample]:
    files = [out / f"{name}.jsonl" for name in ("train", "validation", "test")]
    return [Sample.from_json(entry) for file in files for entry in read_jsonl(file)]


def test_real_rows_all_arrive(tmp_path: Path) -> None:
    metrics = source().build(tmp_path)
    rows = real_rows()
    samples = written(tmp_path)
    rejected = list(read_jsonl(tmp_path / "rejected.jsonl"))
    assert metrics["rows_read"] == len(rows) == 60
    assert len(samples) + len(rejected) == 60
    # One published row lists two different tools under one name.
    assert [(entry["line"], entry["reason"]) for entry in rejected] == [
        (59, "ambiguous tool name: two different tools are named 'search'")
    ]
    assert len({sample.id for sample in samples}) == 59
    by_query = {sample.messages[0].content: sample for sample in samples}
    for line, original in enumerate(rows, 1):
        if line == 59:
            continue
        sample = by_query[original["query"]]
        assert [call.to_json() for call in sample.target] == json.loads(original["answers"])
        tools = json.loads(original["tools"])
        assert [tool.name for tool in sample.tools] == [tool["name"] for tool in tools]
        for spec, tool in zip(sample.tools, tools, strict=True):
            assert list(spec.properties) == list(tool["parameters"])
            for name, parameter in tool["parameters"].items():
                assert spec.properties[name]["description"] == parameter["description"]
                assert ("default" in parameter) == ("default" in spec.properties[name])
                assert spec.properties[name].get("default") == parameter.get("default")
                assert (name in spec.required) == ("optional" not in parameter["type"] and "default" not in parameter)
    assert metrics["kinds"] == {"call": 59, "text": 0}
    assert sum(sum(bands.values()) for bands in metrics["bands"].values()) == 59


def test_required_rule_and_kept_fields() -> None:
    schema = parameters_schema(
        {
            "a": {"description": "A", "type": "str"},
            "b": {"description": "B", "type": "int, optional"},
            "c": {"description": "C", "type": "float", "default": 1.5},
            "d": {"description": "D", "type": "Optional[str]"},
            "e": {"description": "E", "type": "str", "default": ""},
            "f": {"description": "optional in words only", "type": "List[int]"},
            "g": {},
        }
    )
    assert schema["required"] == ["a", "f", "g"]
    assert schema["properties"]["a"] == {"type": "string", "description": "A"}
    assert schema["properties"]["c"] == {"type": "number", "description": "C", "default": 1.5}
    assert schema["properties"]["e"]["default"] == ""
    assert schema["properties"]["f"]["type"] == "array"
    assert schema["properties"]["f"]["items"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row([{"name": "then", "arguments": {}}]), "tool not in list: calls 'then'; the row lists 'now'"),
        (row([{"name": "now", "arguments": "zone"}]), "arguments not an object: the call of 'now' has a str"),
        (row([{"name": "now"}]), "arguments not an object"),
        (row([{"arguments": {}}]), "missing name: an element of 'answers' has no name"),
        (row([], tools=[{"description": "x"}]), "missing name: an element of 'tools'"),
        (row([], tools=[{"name": "f", "parameters": [1]}]), "parameters not an object: tool 'f' has a list"),
        (row([], tools=[{"name": "f", "parameters": {"a": "str"}}]), "parameter not an object: parameter 'a' is a str"),
        (row([], tools=[TOOLS[0], {"name": "now"}]), "ambiguous tool name"),
        ({**row([]), "answers": "[{]"}, "field not JSON: 'answers'"),
        (row([{"name": "now", "arguments": {"zone": float("nan")}}]), "field not JSON: 'answers' is not JSON .NaN"),
        (row({}), "field not a list: 'answers'"),
        ({"query": "x", "tools": "[]"}, "missing key: 'answers'"),
        ({"tools": "[]", "answers": "[]"}, "missing key: 'query'"),
    ],
)
def test_bad_rows_say_why(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=f"^{reason}"):
        source().convert(bad)


def test_empty_answer() -> None:
    assert source().convert(row([])).samples == ()
    (sample,) = source(text_turns=True).convert(row([])).samples
    assert (sample.kind, sample.target, sample.target_text) == ("text", (), "")


def test_id_is_content_only() -> None:
    call = [{"name": "now", "arguments": {"zone": "UTC"}}]
    first = source().convert(row(call))
    spaced = {**row(call), "id": 7, "answers": json.dumps(call, indent=2)}
    assert source().convert(spaced) == first
    assert source().convert({**row(call), "answers": call, "tools": TOOLS}) == first
    assert source().convert(row(call, query="And now?")).key != first.key
