"""What file sources share: reading, splitting, rejecting, writing. Run over xLAM rows, the simplest layout."""

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.sources import bands, toolace, xlam
from ttpa.data.published import SPLITS, split_of_opening
from ttpa.data.rows import MAX_BYTES, is_hub_id, read_rows
from ttpa.data.source import read_split
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl
from ttpa.records import Sample, ToolCall, ToolSpec, tools_to_text
from ttpa.results.view import glance
from ttpa.run.store import StageResult

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = ("train", "validation", "test")


def row(number: int, *, query: str | None = None, call: str = "now", tool: str = "now") -> dict[str, Any]:
    tools = [{"name": tool, "description": "", "parameters": {"n": {"description": "", "type": "int"}}}]
    answers = [{"name": call, "arguments": {"n": number}}]
    query = f"question {number}" if query is None else query
    return {"id": number, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools)}


def file_of(folder: Path, rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
    """Writes rows (objects, or raw lines) as JSON lines, gzipped if the name says so."""
    texts = ((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    data = "".join(texts).encode(errors="surrogateescape")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def built(path: Path | str, out: Path, **more: Any) -> tuple[dict[str, Any], dict[str, list[Sample]]]:
    out.mkdir(exist_ok=True)
    metrics = xlam(path, **more).build(out)
    return metrics, {name: [Sample.from_json(entry) for entry in read_jsonl(out / f"{name}.jsonl")] for name in FILES}


def queries(samples: Iterable[Sample]) -> set[str]:
    return {sample.messages[0].content for sample in samples}


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
def test_json_lines_and_lists(name: str, tmp_path: Path) -> None:
    rows = [row(1), row(2), 3]
    found = list(read_rows(str(file_of(tmp_path, [rows[0], "", *rows[1:]], name))))
    assert [(entry.file, entry.line, entry.value) for entry in found[:2]] == [(name, 1, rows[0]), (name, 3, rows[1])]
    assert str(found[2].value) == "not an object: a int where a row is expected"
    for before, indent in (("\ufeff", None), ("", 2), ("\n", 2), ("\ufeff \r\n\t", None)):  # a list of rows
        file_of(tmp_path, [before + json.dumps(rows, indent=indent)], name)
        found = list(read_rows(str(tmp_path / name)))
        assert [(entry.line, entry.value) for entry in found[:2]] == [(1, rows[0]), (2, rows[1])] and len(found) == 3
    file_of(tmp_path, [[row(1)], row(2)], name)  # rows behind a list are not lost in silence
    assert str(list(read_rows(str(tmp_path / name)))[1].value) == "file cut or damaged: text behind the JSON list"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.json", "a.parquet"])
def test_longest_row(name: str, tmp_path: Path) -> None:
    size = MAX_BYTES - len(json.dumps({**row(1), "x": ""}))
    rows = [{**row(1), "x": "y" * size}, {**row(1), "x": "y" * (size + 1)}, row(3)]
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows[:2], {**rows[2], "x": ""}]), tmp_path / name)
    else:
        file_of(tmp_path, [rows] if name == "a.json" else rows, name)
    fits, long, after = read_rows(str(tmp_path / name))
    assert isinstance(fits.value, dict) and isinstance(after.value, dict) and (long.file, long.line) == (name, 2)
    assert str(long.value).startswith(f"row too long: {MAX_BYTES + 1}")


def test_columnar_readers_leave_no_nulls_behind(tmp_path: Path) -> None:
    tools = {"f": {"city": {"type": "str"}, "at": {"type": "dict, optional"}}, "g": {"days": {"type": "int"}}}
    calls = [("f", {"city": "Rome"}), ("g", {"days": 2}), ("f", {"city": "Oslo", "at": {"hour": 1}}),
             ("f", {"city": "Bonn", "at": {"minute": 2}})]  # fmt: skip
    listed = [{"name": name, "description": "", "parameters": parameters} for name, parameters in tools.items()]
    rows = [{"query": f"q{number}", "tools": listed, "answers": [{"name": name, "arguments": arguments}]}
            for number, (name, arguments) in enumerate(calls)]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    held_out = {"validation_fraction": 0, "test_fraction": 0}
    _, splits = built(tmp_path / "a.parquet", tmp_path / "arrow", **held_out)
    assert [(call.name, call.arguments) for sample in splits["train"] for call in sample.target] == calls
    assert {tool.name: list(tool.properties) for tool in splits["train"][0].tools} == {
        "f": ["city", "at"],
        "g": ["days"],
    }
    # The same in a JSON file that was written from such a table: nulls of other tools' parameters go.
    _, again = built(file_of(tmp_path, [{**one, "answers": json.dumps(one["answers"])} for one in table.to_pylist()]),
                     tmp_path / "text", **held_out)  # fmt: skip
    assert again["train"][1].target == splits["train"][1].target


def test_parquet(tmp_path: Path) -> None:
    rows = [row(1), row(2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    good1, good2, bad = read_rows(str(tmp_path))
    assert ([good1.value, good2.value], bad.file) == (rows, "b.parquet")
    assert str(bad.value).startswith("file cut or damaged")


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load(name: str) -> Any:
        if name != source.path:
            raise OSError("offline")
        parts = {"test": [row(3)], "train": [row(1), row(2)]}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in parts.items()})

    source = xlam("Salesforce/xlam-function-calling-60k")
    source.check()  # asks nobody
    monkeypatch.setattr(datasets, "load_dataset", load)
    places = [(entry.file.rsplit("/", 1)[1], entry.line) for entry in read_rows(source.path)]
    assert places == [("test", 1), ("train", 1), ("train", 2)]
    assert source.build(tmp_path)["rows_read"] == 3
    with pytest.raises(DataError, match=r"^data\.path=org/gone: .*\(offline\).*`hf auth login`"):
        xlam("org/gone").build(tmp_path)


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    yes, no = ["Team-ACE/ToolACE", "org/name.v2"], ["data/missing", "org/file.jsonl", "name", "/org/name", "a/b/c"]
    assert [path for path in yes + no if is_hub_id(path)] == yes


def test_held_out_fractions_leave_train_rows() -> None:
    with pytest.raises(ConfigError, match=r"^validation_fraction=0.96: leaves no train rows beside test_fraction=0.05"):
        xlam("x.jsonl", validation_fraction=0.96)


@pytest.mark.parametrize(("name", "problem"), [
    ("gone.jsonl", "no such file"), ("empty.jsonl", "the file is empty"), ("notes.txt", "its name ends in none of"),
    ("folder", "holds no file with data"),
])  # fmt: skip
def test_check_finds_missing_and_empty_paths(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    for act in (xlam(tmp_path / name).check, lambda: xlam(tmp_path / name).build(tmp_path)):
        with pytest.raises(ConfigError, match=rf"^data\.path={tmp_path / name}: .*{problem}.*Set data\.path"):
            act()
    assert not (tmp_path / "rejected.jsonl").exists()


def test_splits_are_disjoint_and_stable(tmp_path: Path) -> None:
    rows = [row(number) for number in range(400)]
    share = {"validation_fraction": 0.2, "test_fraction": 0.1}
    metrics, splits = built(file_of(tmp_path, rows), tmp_path / "a", **share)
    train, validation, test = (len(splits[name]) for name in FILES)
    assert train + validation + test == len(set.union(*map(queries, splits.values()))) == 400
    assert 50 < validation < 110 and 20 < test < 65
    assert metrics["samples"] == {"warmup": train, "explore": train, "validation": validation, "test": test}
    # The split of a row depends on nothing but the row: not on its place, nor on the others.
    _, fewer = built(file_of(tmp_path, reversed(rows[::3]), "b.jsonl"), tmp_path / "b", **share)
    for name in FILES:
        assert queries(fewer[name]) == queries(splits[name]) & {entry["query"] for entry in rows[::3]}
    _, other = built(tmp_path / "rows.jsonl", tmp_path / "c", **share, split_seed=1)
    assert queries(other["test"]) != queries(splits["test"])


def test_only_max_rows_are_read_and_limit_thins_out_what_was_read(tmp_path: Path) -> None:
    path, no_held_out = file_of(tmp_path, map(row, range(20))), {"validation_fraction": 0, "test_fraction": 0}
    metrics, splits = built(path, tmp_path / "a", max_rows=10, limit=5, **no_held_out)
    assert metrics["rows_read"] == 10
    assert [sample.messages[0].content for sample in splits["train"]] == [f"question {n}" for n in (0, 2, 4, 6, 8)]


def test_split_is_the_documented_hash() -> None:
    cluster = hashlib.sha256(b"what time is it?").hexdigest()
    place = int(hashlib.sha256(f"7:{cluster}".encode()).hexdigest()[:16], 16) / 16**16
    assert split_of_opening(" What  time is it?\n", 7, 0.0, place + 1e-9) == "test"
    assert split_of_opening("What time is it?", 7, 1e-9, place) == "validation"
    assert split_of_opening("What time is it?", 7, 0.0, place - 1e-9) == "train"


def test_same_input_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        metrics = toolace(DATA / "toolace_dialogues.jsonl.gz").build(tmp_path / name)
        made.append((metrics, {entry.name: entry.read_bytes() for entry in (tmp_path / name).iterdir()}))
    (one, contents), again = made
    assert (one, contents) == again and json.loads(contents["splits.json"]) == SPLITS
    assert set(contents) == {*(f"{name}.jsonl" for name in (*FILES, "rejected", "off_schema")), "splits.json"}
    written = b"".join(contents[f"{name}.jsonl"] for name in FILES)
    assert one["content_sha256"] == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize(("source", "name"), [(xlam, "xlam"), (toolace, "toolace_dialogues")])
def test_schemas_survive_the_disk_and_a_columnar_reader(source: Any, name: str, tmp_path: Path) -> None:
    import datasets

    source(DATA / f"{name}.jsonl.gz", validation_fraction=0.0, test_fraction=0.0).build(tmp_path)
    rows = list(read_jsonl(tmp_path / "train.jsonl"))
    assert [Sample.from_json(entry).to_json() for entry in rows] == rows
    files, cache = str(tmp_path / "train.jsonl"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
    assert [tools_to_text(Sample.from_json(entry).tools) for entry in loaded] == [entry["tools"] for entry in rows]


BAD = {
    "{garbage": "not JSON: ",
    "\udcff": "not JSON: 'utf-8' codec",  # a byte that is no UTF-8
    '"text"': "not an object: a str where a row is expected",
    json.dumps({"query": "x", "tools": "[]"}): "missing key: 'answers' must hold a list",
    json.dumps(row(0, call="then")): "tool not in list: calls 'then'",
    json.dumps(row(0, query="half \ud83d")): "not text: holds half of a surrogate pair",
    '{"query": NaN}': "not JSON: NaN is not JSON",
    '{"query": 1e999}': "not JSON: 1e999 is not JSON",  # infinite as a Python number
    '{"query": ' + "[" * 70 + "]" * 70 + "}": "not JSON: nested deeper than 64",
    "[" * 100_000: "not JSON: ",  # deeper than can be read
}


@pytest.mark.parametrize(("line", "reason"), BAD.items(), ids=range(len(BAD)))
def test_bad_row_is_counted_and_kept(line: str, reason: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, [*map(row, range(60)), line, *map(row, range(60, 99))])
    metrics, splits = built(path, tmp_path / "out")
    assert (metrics["rows_read"], metrics["rows_rejected"]) == (100, 1) and sum(map(len, splits.values())) == 99
    assert metrics["rejected"] == {reason.split(":")[0]: 1}
    (entry,) = read_jsonl(tmp_path / "out" / "rejected.jsonl")
    assert (entry["file"], entry["line"]) == ("rows.jsonl", 61) and entry["reason"].startswith(reason)
    with_row = line.startswith("{") and not reason.startswith("not JSON") and "ud83d" not in line
    assert entry.get("row") == (json.loads(line) if with_row else None)


def test_too_many_bad_rows_stop_the_build(tmp_path: Path) -> None:
    path, out = file_of(tmp_path, [*map(row, range(96)), *list(BAD)[2:6]]), tmp_path / "out"
    with pytest.raises(DataError, match=r": 4 of 100 rows rejected, more than data.max_bad_fraction=0.02") as caught:
        built(path, out)
    message = str(caught.value)
    assert all(f"{reason.split(':')[0]} 1" in message for reason in list(BAD.values())[2:6])
    assert "rows.jsonl:97: not an object" in message and "rows.jsonl:100" not in message  # three places are enough
    assert [entry.name for entry in out.iterdir()] == ["rejected.jsonl"]
    assert built(path, out, max_bad_fraction=0.04)[0]["rows_rejected"] == 4


SHAREGPT = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "tools": "[]"}
TOOLACE = {"system": "x", "conversations": [{"from": "user", "value": "x"}]}
OTHER = [  # rows, which source reads them, what they look like, what reads that
    ({"messages": [{"role": "user", "content": "x"}], "tools": []}, xlam, "OpenAI messages", "data=messages"),
    ({"conversations": [{"role": "user", "content": "x"}]}, toolace, "ShareGPT", "data=sharegpt"),
    (SHAREGPT, toolace, "ShareGPT", "data=sharegpt"), ({"system": "", **SHAREGPT}, xlam, "ShareGPT", ""),
    (TOOLACE, xlam, "ToolACE rows", "read by data=toolace."), (row(1), toolace, "xLAM rows", "read by data=xlam."),
    ({"chosen": "a", "rejected": "b"}, xlam, "preference pairs", "pairs=given"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "source", "name", "reader"), OTHER)
def test_another_layout_is_named(other: Any, source: Any, name: str, reader: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, [other] * 40)
    with pytest.raises(DataError, match=rf"^data.path={path}: this looks like .*{name}.*{reader}.* 40 of 40 rows are"):
        source(path).build(tmp_path)


def test_rows_of_the_right_layout_are_not_called_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"40 of 40 rows rejected, more than .* First: rows.jsonl:1: tool not in list"):
        built(file_of(tmp_path, [row(number, call="then") for number in range(40)]), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", b"\n \n"), ("a.json", b"[]"), ("a.jsonl.gz", gzip.compress(b"", mtime=0))]
)
def test_a_file_without_rows_is_named(name: str, text: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=rf"^data\.path=.*{name}: no row is in it"):
        xlam(tmp_path / name).build(tmp_path)


def test_an_emptied_split_is_named(tmp_path: Path) -> None:
    built(file_of(tmp_path, map(row, range(9))), tmp_path / "data", validation_fraction=0, test_fraction=0)
    (tmp_path / "data" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=rf"train.jsonl: .* emptied by hand. Delete the folder {tmp_path / 'data'}"):
        read_split(tmp_path / "data", "warmup")


def test_targets_that_break_their_schema_are_counted_and_listed(tmp_path: Path) -> None:
    def off(number: int, **arguments: Any) -> dict[str, Any]:
        return {**row(number), "answers": json.dumps([{"name": "now", "arguments": arguments}])}

    rows = [*map(row, range(7)), off(7), off(8, n="8"), off(9, n=1.5), off(10, n=1, m=2, k=3)]
    held_out = {"validation_fraction": 0, "test_fraction": 0}
    metrics, splits = built(file_of(tmp_path, rows), tmp_path / "out", **held_out)
    assert (metrics["rows_rejected"], len(splits["train"]), metrics["targets_off_schema"]) == (0, 11, 4)
    assert metrics["off_schema"] == {"wrong_type": 2, "missing_required": 1, "unknown_parameter": 1}
    listed = list(read_jsonl(tmp_path / "out" / "off_schema.jsonl"))
    assert [entry["line"] for entry in listed] == [8, 9, 10, 11] and listed[1]["file"] == "rows.jsonl"
    assert [entry["id"] for entry in listed] == [sample.id for sample in splits["train"][7:]]
    assert listed[1]["problem"] == 'n="8" is not of the type {"type": "integer"}.'
    said = glance(StageResult("data", "", tmp_path, metrics, cached=False, seconds=0.0))
    assert "4 targets break the schema of their tool (off_schema.jsonl says how)" in said


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json"])
def test_cut_file_stops_whatever_the_fraction(name: str, tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    whole = file_of(tmp_path, [json.dumps(rows)] if name == "rows.json" else rows, name)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"1 of \d+ rows rejected, and a file is cut short.*{name}:\d+: file cut"):
        built(whole, tmp_path / "out", max_bad_fraction=0.5)
    metrics, _ = built(whole, tmp_path / "out", max_bad_fraction=1)  # what could be read is used
    assert metrics["rejected"] == {"file cut or damaged": 1} and metrics["rows_read"] > 100


def test_duplicates_are_dropped_not_rejected(tmp_path: Path) -> None:
    copies = [{**row(number), "id": None} for number in range(10)]  # the same content under another id
    metrics, splits = built(file_of(tmp_path, [*map(row, range(50)), *copies]), tmp_path / "out")
    assert (metrics["rows_read"], metrics["rows_duplicate"], metrics["rows_rejected"]) == (60, 10, 0)
    assert len({sample.id for samples in splits.values() for sample in samples}) == 50


def test_no_train_sample_is_an_error(tmp_path: Path) -> None:
    empty = {**row(1), "answers": "[]"}
    with pytest.raises(DataError, match=r"1 rows gave no train sample \(1 have no call turn\).*data\.text_turns=true"):
        built(file_of(tmp_path, [empty]), tmp_path / "out", validation_fraction=0, test_fraction=0)


BAND_TABLE = [  # tools, length, calls, band
    (0, 2, 0, "easy"), (1, 999, 1, "easy"), (1, 1000, 1, "medium"),  # easy is strictly below 1000
    (2, 10, 1, "medium"), (1, 10, 2, "medium"),  # each condition of easy is needed
    (3, 1999, 3, "medium"), (3, 2000, 3, "medium"),  # 2000 is in no band of the paper
    (1, 2001, 1, "hard"), (4, 10, 1, "hard"), (1, 10, 4, "hard"),  # each condition of hard is enough
]  # fmt: skip


@pytest.mark.parametrize(("tools", "length", "calls", "band"), BAND_TABLE)
def test_the_papers_table_by_the_stored_tool_list(tools: int, length: int, calls: int, band: str) -> None:
    specs = [ToolSpec(name="f")] * tools
    if specs:  # length counts characters, not bytes
        specs[0] = ToolSpec(name="f", description="\u6f22" * max(0, length - len(tools_to_text(specs))))
        assert len(tools_to_text(specs)) == max(length, len(tools_to_text([ToolSpec(name="f")] * tools)))
    assert bands().band(specs, [ToolCall(name="f")] * calls) == band


@pytest.mark.parametrize(("key", "value"), [("hard_tools", 1), ("hard_length", 999), ("hard_calls", 1)])
def test_overlapping_bands_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{key}={value}: must be at least"):
        bands(**{key: value})
