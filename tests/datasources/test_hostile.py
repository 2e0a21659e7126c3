"""Rows that somebody wrote to break the reader: they are read or counted, in time, whatever is in them."""

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sources import toolace, xlam
from ttpa.data.rows import MAX_BYTES
from ttpa.io import read_jsonl
from ttpa.records import Sample

DATA = Path(__file__).resolve().parents[1] / "data"
PIECES = [
    "[" * 80, "{" * 2000, '"', "\\", "\\u0000", "\ud800", "\U0010ffff", "\x00", "1e999", "NaN", "-Infinity", "9" * 5000,
    "0x" + "f" * 9000, "__import__('os').system('touch evaluated')", "**{", "[f(", '="[1", ', "),", ']"', "null",
    '{"$ref":"#"}', "List[" * 300, "$defs", "required", "True", "\r\n", " " * 999,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 1e308, "", [], {}, [[]], {"$ref": "#"}, [None, {"a": [{}]}], "x" * 999, {"name": {"name": []}},
    {"type": ["int", {}, []], "required": True, "properties": [{}], "enum": 1, "anyOf": {}, "$ref": 1}, {"name": "f"},
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """The value with one part replaced, dropped, doubled or, in a text, overwritten; JSON in a text is entered."""
    if isinstance(value, str) and draw.random() < 0.9:
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict | list) and draw.random() < 0.7:
            return json.dumps(mutated(inner, draw))
        start, size = draw.randrange(len(value) + 1), draw.choice([0, 0, 1, 5, 500])
        return value[:start] + draw.choice(PIECES) + value[start + size :]
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, changed = draw.choice(keys), value.copy()
        if draw.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutated(value[key], draw)
        return changed
    return draw.choice(VALUES)


@pytest.mark.parametrize(
    ("source", "file"), [(toolace, "toolace_from_rlla"), (toolace, "toolace_dialogues"), (xlam, "xlam")]
)
def test_mutated_rows_raise_nothing(source: Any, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(file)
    rows = [json.loads(line) for line in gzip.decompress((DATA / f"{file}.jsonl.gz").read_bytes()).splitlines()]
    lines = []
    for number in range(400):
        row = rows[number % len(rows)]
        for _ in range(draw.randint(1, 4)):
            row = mutated(row, draw)
        line = json.dumps(row)
        lines.append(line if draw.random() < 0.8 else str(mutated(line, draw)).replace("\n", " "))
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    began = time.process_time()
    metrics = source(tmp_path / "rows.jsonl", max_bad_fraction=1, text_turns=True).build(tmp_path)
    assert time.process_time() - began < 10 and not (tmp_path / "evaluated").exists()
    assert metrics["rows_read"] <= 400 and 40 < metrics["rows_rejected"] < 360
    for name in ("train", "validation", "test"):
        written = list(read_jsonl(tmp_path / f"{name}.jsonl"))
        assert [Sample.from_json(entry).to_json() for entry in written] == written
        json.dumps(written, allow_nan=False)


def filled(before: str, unit: str, after: str = "") -> str:
    """A text as long as a row may be, or somewhat shorter."""
    return before + unit * ((MAX_BYTES - 500 - len(before + after)) // len(json.dumps(unit)[1:-1])) + after


def parameter(schema: str) -> dict[str, str]:
    answer = '[{"name": "f", "arguments": {"a": 1}}]'
    return {"query": "q", "tools": f'[{{"name": "f", "parameters": {{"a": {schema}}}}}]', "answers": answer}


A = '{"$ref": "#/$defs/A%d"}'
DOUBLED = ",".join(f'"A{n}": {{"anyOf": [{A % (n + 1)}, {A % (n + 1)}]}}' for n in range(60))
SPLIT = ", ".join(f'a{number}="[1", 2]' for number in range(9999))
SLOW = {
    "nested lists, no marker": {"system": filled("", '[{"name":"f"},')},
    "lists, no marker": {"system": filled("", '[{"a":1}]')},
    "spaces": {"system": filled("You [", " ", ".")},
    "dense call": {"turn": filled("[f(a=[", "1,", "])]")}, "many calls": {"turn": filled("[", "f(),", "]")},
    "parentheses": {"turn": filled("[f", "(")}, "escapes": {"turn": filled('[f(a="', "\\n", '")]')},
    "split arguments": {"turn": f"[f({SPLIT})]"},
    "half of split arguments": {"turn": filled("[f(", 'a="[1", ', "2])]")},
    "many turns": {"turns": [{"from": "assistant", "value": "[f()]"}] * 2000},
    "deep type": parameter(f'{{"type": "{"List[" * 20000}"}}'),
    "wide type": parameter(f'{{"type": "{"List[" * 60}{"int," * 20000}{"]" * 60}"}}'),
    "wide union": parameter(f'{{"type": "{"int|" * 20000}"}}'),
    "circular reference": parameter('{"$ref": "#/properties/a", "anyOf": [{"$ref": "#"}, {"$ref": "#/properties/a"}]}'),
    "references that double": parameter(f'{{"$defs": {{{DOUBLED}}}, "$ref": "#/properties/a/$defs/A0"}}'),
    "an endless line": {"system": "x" * 5_000_000},
}  # fmt: skip


@pytest.mark.parametrize("case", SLOW)
def test_a_row_is_quick_whatever_is_in_it(case: str, tmp_path: Path) -> None:
    given = SLOW[case]
    turns = given.get("turns") or [{"from": "assistant", "value": given.get("turn", "[f()]")}]
    row = {"system": 'functions in JSON format that you can invoke: [{"name": "f"}]', **given}
    row |= {"conversations": [{"from": "user", "value": "q"}, *turns]}
    source = xlam if "query" in given else toolace
    (tmp_path / "rows.jsonl").write_text(json.dumps(row if source is toolace else given) + "\n" + "{}\n" * 3)
    began = time.process_time()
    try:
        source(tmp_path / "rows.jsonl", max_bad_fraction=1, validation_fraction=0, test_fraction=0).build(tmp_path)
    except Exception as problem:
        assert "no train sample" in str(problem)
    assert time.process_time() - began < 1
    rejected = list(read_jsonl(tmp_path / "rejected.jsonl"))
    assert [entry["line"] for entry in rejected][-3:] == [2, 3, 4]
    if case == "an endless line":
        assert rejected[0]["reason"].startswith("row too long: 50") and rejected[0]["line"] == 1
