"""`ttpa-score` from outside: tables, rows, streams, and what a wrong file or argument is answered with."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ttpa.benchmarks.score import BENCHMARK_KEYS, SCORER_KEYS, main, parse
from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError
from ttpa.io import dumps, write_jsonl
from ttpa.records import Candidate, Sample, Score, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"
LAUNCH = "import sys; from ttpa.benchmarks.score import main; main()"
HEAVY = ("torch", "transformers", "pytorch_lightning", "peft", "datasets", "pyarrow", "wandb")


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str
    rows: list[dict[str, Any]]


def score(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> Answer:
    """Runs the command in this process; `rows` are what it wrote to `out`."""
    monkeypatch.setattr(sys, "argv", ["ttpa-score", *words, f"out={out}"])
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(str(ended.code or 0))
    found = capsys.readouterr()
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    return Answer(status, found.out, found.err, rows)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def call(*words: str) -> Answer:
        return score(capsys, monkeypatch, tmp_path / "scored.jsonl", *words)

    return call


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def small(folder: Path) -> Path:
    """A data folder of three categories, one gzipped, under version 4 names."""
    (folder / "possible_answer").mkdir(parents=True)
    schema = {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for category, count in (("multiple", 4), ("parallel", 2)):
        name = f"BFCL_v4_{category}.json"
        questions = [
            {"id": f"{category}_{at}", "question": [], "function": [{"name": "f.x", "parameters": schema}]}
            for at in range(count)
        ]
        answers = [{"id": row["id"], "ground_truth": [{"f.x": {"a": [1]}}]} for row in questions]
        lines(folder / name, questions)
        lines(folder / "possible_answer" / name, answers)
    with gzip.open(folder / "BFCL_v4_irrelevance.json.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": "irrelevance_0", "question": [], "function": []}) + "\n")
    lines(folder / "BFCL_v4_multi_turn_base.json", [{"id": "multi_turn_base_0"}])
    (folder / "notes.txt").write_text("not a data file")
    return folder


def test_outputs_of_a_published_run(run: Any, tmp_path: Path) -> None:
    """Rows in the order of the file with the published verdicts, and the table of the run."""
    source = DATA / "outputs" / "glyphh-ada-1.1.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as file:
        published = [json.loads(line) for line in file]
    answer = run("benchmark=bfcl", f"data={DATA}", f"outputs={source}")
    assert answer.status == 0, answer.err
    assert [row["id"] for row in answer.rows] == [row["id"] for row in published]
    assert [(row["valid"], row["error_type"]) for row in answer.rows] == [
        (row["valid"], row["error_type"]) for row in published
    ]
    assert all(set(row) == {"id", "valid", "error_type", "six_error", "score", "explanation"} for row in answer.rows)
    assert all(row["score"] == float(row["valid"]) and row["explanation"] for row in answer.rows)
    right = sum(row["valid"] for row in published if row["category"] == "simple_python")
    total = sum(row["category"] == "simple_python" for row in published)
    assert f"simple_python           {right / total:.4f} [" in answer.out
    assert "BFCL v4" in answer.out and "BFCL v3" in answer.out and "parameter value" in answer.out
    overall = next(line for line in answer.out.splitlines() if line.startswith("overall"))
    assert overall.split()[1] == "-"  # multi-turn was not run, so there is no overall score


def test_row_forms(run: Any, tmp_path: Path) -> None:
    """Text, function-calling list, candidates of this project; ids repeat; more keys are allowed."""
    outputs = lines(
        tmp_path / "outputs.json",
        [
            {"id": "multiple_0", "result": "f.x(a=1)", "latency": 3},
            {"id": "multiple_0", "result": "f.x(a=2)"},
            {"id": "multiple_1", "result": [{"f.x": '{"a": 1}'}]},
            {"id": "multiple_1", "result": "f.x(a=1)", "mode": "fc"},
            {"id": "multiple_2", "result": [{"f_x": '{"a": 1}'}], "dots_as_underscores": True},
            {"id": "multiple_2", "result": "f_x(a=1)"},
            {"sample_id": "multiple_3", "text": "f.x(a=1)", "index": 0},
            "",
            {"id": "irrelevance_0", "result": "No."},
            {"id": "parallel_0", "result": None},
        ],
    )
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [True, False, True, False, True, False, True, True, False]
    assert [row["six_error"] for row in answer.rows if not row["valid"]] == [
        "parameter_value", "format", "tool_name", "format",
    ]  # fmt: skip
    assert "4 of 200" in answer.out and "1 of 240" in answer.out
    with_dots = run("benchmark=bfcl", f"data={tmp_path / 'data'}", f"outputs={outputs}", "dots_as_underscores=true")
    assert with_dots.rows[5]["valid"] and not with_dots.rows[0]["valid"]
    as_interface = run("benchmark=bfcl", f"data={tmp_path / 'data'}", f"outputs={outputs}", "mode=fc")
    assert not as_interface.rows[0]["valid"] and as_interface.rows[2]["valid"]


def test_version_3_names(run: Any, tmp_path: Path) -> None:
    folder = small(tmp_path / "data")
    for path in [*folder.glob("BFCL_v4_*"), *(folder / "possible_answer").glob("BFCL_v4_*")]:
        path.rename(path.with_name(path.name.replace("_v4_multiple", "_v3_java").replace("_v4_", "_v3_")))
    outputs = lines(tmp_path / "o", [{"id": "multiple_0", "result": "Foo.x(a=1)"}])
    answer = run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert "simple_java" in answer.out


WRONG_ROWS = {
    "no id": ({"result": "x"}, "no id"),
    "no result": ({"id": "multiple_1"}, "multiple_1 has no result"),
    "unknown id": ({"id": "multiple_77", "result": "x"}, "unknown id multiple_77 (category multiple)"),
    "unknown category": ({"id": "chess_1", "result": "x"}, "no category of BFCL"),
    "not scored here": ({"id": "web_search_base_0", "result": []}, "web_search_base, which is not scored here"),
    "not JSON": ('{"id": ', "not JSON"),
    "no object": ("[1]", "a list where a row"),
    "deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_rows(run: Any, tmp_path: Path, name: str) -> None:
    """File and line are named, the exit status is 1, and what came before is kept and counted."""
    row, message = WRONG_ROWS[name]
    good = {"id": "multiple_0", "result": "f.x(a=1)"}
    outputs = lines(tmp_path / "outputs.jsonl", [good, row, good])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 1
    assert f"{outputs}:2: " in answer.err and message in answer.err
    assert len(answer.rows) == 1 and answer.rows[0]["valid"]
    assert "1 of 200" in answer.out


def multi_turn_rows() -> tuple[Path, list[dict[str, Any]]]:
    """The data folder of the official package, and a right answer to a question of each multi-turn category."""
    pytest.importorskip("bfcl_eval")
    pytest.importorskip("mpmath")
    from ttpa.benchmarks.bfcl.official import data_folder

    rows = []
    for path in sorted((data_folder() / "possible_answer").glob("BFCL_v4_multi_turn_*.json")):
        answer = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
        rows.append({"id": answer["id"], "result": [[f"[{call}]" for call in turn] for turn in answer["ground_truth"]]})
    return data_folder(), rows


def test_multi_turn(run: Any, tmp_path: Path) -> None:
    """Rows of all categories in one file, their table, and the total of both versions."""
    folder, right = multi_turn_rows()
    wrong = {"id": right[0]["id"], "result": [["No."] for _ in right[0]["result"]]}
    single = {"id": "irrelevance_0", "result": "No."}
    outputs = lines(tmp_path / "outputs.jsonl", [single, *right, wrong, {**wrong, "result": None}])
    answer = run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [True] * 5 + [False] * 2
    assert [row["error_type"] for row in answer.rows[5:]] == [
        "multi_turn:empty_turn_model_response", "multi_turn:inference_error",
    ]  # fmt: skip
    assert [row["six_error"] for row in answer.rows[5:]] == ["call_count", "format"]
    table = [line.split() for line in answer.out.splitlines()]
    assert ["multi_turn_miss_func", "1.0000", "1", "1", "of", "200"] in table
    (first, second) = [line for line in table if line[:2] == ["multi", "turn"]]
    assert first == second == ["multi", "turn", "0.8333", "0.5%"]
    as_words = run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}", "mode=fc")
    assert not any(row["valid"] for row in as_words.rows[1:])


def test_multi_turn_without_the_package(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first such row is told what to install, and what came before is kept."""
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    rows = [{"id": "multiple_0", "result": "f.x(a=1)"}, {"id": "multi_turn_base_0", "result": []}]
    outputs = lines(tmp_path / "outputs.jsonl", rows)
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 1 and len(answer.rows) == 1 and "1 of 200" in answer.out
    assert f"{outputs}:2: multi_turn_base_0 is of multi_turn_base. " in answer.err
    assert "pip install --no-deps bfcl-eval==" in answer.err


def test_multi_turn_questions_that_are_not_there(run: Any, tmp_path: Path) -> None:
    folder, (row, *_) = multi_turn_rows()
    outputs = lines(tmp_path / "outputs.jsonl", [{**row, "id": "multi_turn_base_200"}])
    assert "unknown id multi_turn_base_200" in run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}").err
    outputs = lines(tmp_path / "outputs.jsonl", [{**row, "id": "multi_turn_base_0"}])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 1 and "possible_answer/BFCL_v4_multi_turn_base.json: no such file" in answer.err


def test_cut_gzip(run: Any, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": f"multiple_{at % 4}", "result": f"f.x(a={at})"}) + "\n" for at in range(20_000))
    packed = gzip.compress(rows.encode())
    outputs = tmp_path / "outputs.jsonl.gz"
    outputs.write_bytes(packed[: len(packed) // 2])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 1
    assert "cut or damaged" in answer.err and f"{outputs}:" in answer.err
    assert 1000 < len(answer.rows) < 20_000


def test_data_folders_that_cannot_be_used(run: Any, tmp_path: Path) -> None:
    outputs = lines(tmp_path / "outputs", [{"id": "multiple_0", "result": "f.x(a=1)"}])

    def told(change: Any) -> str:
        folder = small(tmp_path / "data")
        change(folder)
        answer = run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}")
        shutil.rmtree(folder)
        assert answer.status == 1 and answer.rows == []
        return answer.err

    def replace(name: str, rows: Sequence[Any]) -> Any:
        return lambda folder: lines(folder / name, rows)

    question = {"id": "multiple_0", "function": [{"name": "f.x", "parameters": {}}]}
    wanted = {"id": "multiple_0", "ground_truth": [{"f.x": {"a": [1]}}]}
    answers = "possible_answer/BFCL_v4_multiple.json"
    assert "no such folder" in run("benchmark=bfcl", "data=/nowhere", f"outputs={outputs}").err
    assert "no questions" in told(lambda folder: [path.unlink() for path in folder.glob("BFCL_v4_*")])
    assert "no such file" in told(lambda folder: (folder / answers).unlink())
    assert f"{answers}:2: no id and ground_truth" in told(replace(answers, [wanted, {"id": "multiple_1"}]))
    assert "no accepted answers for multiple_1" in told(replace(answers, [wanted]))
    assert f"{answers}:2: no question multiple_1 in " in told(replace("BFCL_v4_multiple.json", [question]))
    assert f"{answers}:2: multiple_0 is there twice" in told(replace(answers, [wanted, wanted]))
    of_text = {"id": "multiple_0", "function": [{"name": "f.x", "parameters": {"required": 5}}]}
    assert "BFCL_v4_multiple.json:1 and " in told(replace("BFCL_v4_multiple.json", [of_text]))
    assert "multiple_0 is there twice" in told(replace("BFCL_v3_irrelevance.json", [question]))
    other = {"id": "multiple_0", "function": [{"name": "g"}]}
    assert "calls 'f.x', which has no document" in told(replace("BFCL_v4_multiple.json", [other]))
    assert "no id and function documents" in told(replace("BFCL_v4_multiple.json", [{"id": "multiple_0"}]))


ARGUMENTS = {
    "unknown key": (["benchmark=bfcl", "data=d", "outputs=o", "top_k=3"], ["top_k=3", "unknown key", *BENCHMARK_KEYS]),
    "key of the other form": (["benchmark=bfcl", "data=d", "outputs=o", "samples=s"], ["samples=s", "unknown key"]),
    "unknown key of a scorer": (["scorer=esm", "samples=s", "outputs=o", "data=d"], ["data=d", *SCORER_KEYS]),
    "missing key": (["benchmark=bfcl", "outputs=o"], ["data", "is missing"]),
    "missing samples": (["scorer=esm", "outputs=o"], ["samples", "is missing"]),
    "neither": (["outputs=o"], ["benchmark=bfcl", "scorer=NAME"]),
    "both": (["benchmark=bfcl", "scorer=esm"], ["one of"]),
    "twice": (["scorer=esm", "scorer=ast"], ["scorer=ast", "given twice"]),
    "no key": (["bfcl"], ["bfcl", "key=value"]),
    "unknown benchmark": (["benchmark=chess", "data=d", "outputs=o"], ["benchmark=chess", "bfcl"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments(name: str) -> None:
    words, parts = ARGUMENTS[name]
    with pytest.raises(ConfigError) as raised:
        parse(words)
    assert all(part in str(raised.value) for part in parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["benchmark=bfcl", "mode=x"], ["mode=x", "prompt or fc"]),
        (["benchmark=bfcl", "dots_as_underscores=1"], ["dots_as_underscores=1", "true or false"]),
        (["scorer=best"], ["scorer=best", "esm"]),
        (["scorer=esm", "scorer.weight=1"], ["scorer.weight"]),
        (["scorer=esm", "scorer.as_released=3"], ["scorer.as_released=3", "true or false"]),
        (["scorer=esm", "syntax=basic"], ["syntax=basic", "python"]),
    ],
)
def test_wrong_values(run: Any, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    """Refused with exit status 2 before anything is read or written."""
    more = ["data=d"] if "benchmark=bfcl" in words else ["samples=s"]
    answer = run(*words, *more, "outputs=o")
    assert answer.status == 2 and answer.rows == []
    assert all(part in answer.err for part in parts), answer.err


def test_out_is_not_what_is_read(run: Any, tmp_path: Path) -> None:
    outputs = lines(tmp_path / "scored.jsonl", [{"id": "multiple_0", "result": "f.x(a=1)"}])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 2 and "is also read" in answer.err
    assert answer.rows == [{"id": "multiple_0", "result": "f.x(a=1)"}]


# --- scorers ---------------------------------------------------------------------------------------------------------


def test_scorer(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> None:
    """Candidates with calls, texts and function-calling lists; the same scores as the scorer gives."""
    write_jsonl(tmp_path / "samples.jsonl", toy_samples)
    call = ToolCall(name="get_weather", arguments={"city": "Rome"})
    rows = [
        Candidate(sample_id="toy-0", index=0, text="", calls=(call,)).to_json(),
        {"id": "toy-0", "result": '[get_weather(city="Paris")]'},
        {"sample_id": "toy-1", "text": '[book_room(hotel="Ritz")]'},
        {"id": "toy-1", "result": [{"book_room": '{"hotel": "Ritz", "nights": 2}'}]},
        {"id": "toy-2", "result": "[get_weather(city=]"},
        {"id": "toy-5", "result": "You are welcome."},
    ]
    words = (f"samples={tmp_path / 'samples.jsonl'}", f"outputs={lines(tmp_path / 'outputs', rows)}")
    answer = run("scorer=esm", *words)
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [False, True, False, True, False, True]
    assert [row["six_error"] for row in answer.rows] == ["parameter_value", "", "missing_required", "", "format", ""]
    assert [row["score"] for row in answer.rows][1::2] == [1.0, 1.0, 1.0]
    assert 0 < answer.rows[0]["score"] < 1
    assert "mean esm" in answer.out and "exact" in answer.out
    strict = run("scorer=ast", *words)
    assert [row["score"] for row in strict.rows] == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    partial = run("scorer=ast", "scorer.partial=true", *words)
    assert 0 < partial.rows[0]["score"] < 1


def test_scorer_with_another_syntax(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> None:
    write_jsonl(tmp_path / "samples.jsonl", toy_samples)
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    outputs = lines(tmp_path / "outputs", [{"id": "toy-0", "result": text}])
    answer = run("scorer=ast", f"samples={tmp_path / 'samples.jsonl'}", f"outputs={outputs}", "syntax=hermes")
    assert answer.status == 0 and answer.rows[0]["valid"]


def test_scorer_wrong_rows(
    run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Score(value=0.0, exact=False)
    monkeypatch.setattr("ttpa.benchmarks.score._make_scorer", lambda options: lambda sample, candidate: wrong)
    write_jsonl(tmp_path / "samples.jsonl", toy_samples)
    samples = f"samples={tmp_path / 'samples.jsonl'}"
    for row, message in (
        ({"id": "toy-9", "result": "[]"}, "unknown id toy-9"),
        ({"id": "toy-0", "result": 5}, "neither a text nor a list"),
        ({"sample_id": "toy-0", "calls": "[{]"}, "no candidate"),
        ({"sample_id": "toy-0", "calls": "[" * 100_000}, "no candidate"),
        ({"sample_id": ["toy-0"], "calls": None}, "no candidate"),
        ({"sample_id": "toy-0", "calls": [{"name": 5, "arguments": {}}]}, "no candidate"),
    ):
        outputs = lines(tmp_path / "outputs", [{"id": "toy-0", "result": "[]"}, row])
        answer = run("scorer=esm", samples, f"outputs={outputs}")
        assert answer.status == 1 and f"{outputs}:2: " in answer.err and message in answer.err
        assert len(answer.rows) == 1
    good = toy_samples[0].to_json()
    wrong_fields = [
        {"id": 5}, {"id": ["x"]}, {"dialogue_id": ["x"]}, {"tools": "[" * 100_000},
        {"tools": '[{"name": "f", "parameters": 5}]'}, {"tools": '[{"name": "f", "parameters": {"required": 5}}]'},
        {"target": '[{"name": "f", "arguments": 5}]'}, {"target": '[{"name": ["f"], "arguments": {}}]'},
    ]  # fmt: skip
    for row in ({"id": "toy-0"}, *({**good, **fields} for fields in wrong_fields)):
        bad = lines(tmp_path / "bad", [row])
        answer = run("scorer=esm", f"samples={bad}", f"outputs={outputs}")
        assert answer.status == 1 and f"{bad}:1: no sample" in answer.err
    answer = run("scorer=esm", f"samples={lines(tmp_path / 'bad', [good, good])}", f"outputs={outputs}")
    assert answer.status == 1 and f"{bad}:2: toy-0 is there twice" in answer.err


@pytest.mark.parametrize("syntax", ["python", "json"])
@pytest.mark.parametrize("scorer", ["esm", "ast", "slm_json", "toolrl"])
def test_arguments_that_are_no_object(
    run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...], scorer: str, syntax: str
) -> None:
    """They are the model's mistake, whatever they are, and the next row is scored."""
    samples = tmp_path / "samples.jsonl"
    write_jsonl(samples, toy_samples)
    broken = ['{"city": "Paris"', "[1]", "5", 5, None, [1]]
    rows: list[Any] = [{"id": "toy-0", "result": [{"get_weather": arguments}]} for arguments in broken]
    rows.append({"id": "toy-4", "result": [{"get_weather": '{"city": "Paris"}'}, {"get_weather": "{"}]})
    right = {"id": "toy-0", "result": [{"get_weather": {"city": "Paris"}}]}
    outputs = lines(tmp_path / "outputs", [*rows, right])
    answer = run(f"scorer={scorer}", f"samples={samples}", f"outputs={outputs}", f"syntax={syntax}")
    assert answer.status == 0, answer.err
    assert [row["six_error"] for row in answer.rows[:-1]] == ["format"] * len(rows)
    assert answer.rows[-1]["score"] > 0


def test_what_is_valid_shows_no_error(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> None:
    """Also where a scorer of its own mind takes an unreadable text for the words that are wanted."""
    samples = tmp_path / "samples.jsonl"
    write_jsonl(samples, toy_samples)
    outputs = lines(tmp_path / "outputs", [{"id": "toy-5", "result": None}, {"id": "toy-0", "result": None}])
    answer = run("scorer=slm_json", f"samples={samples}", f"outputs={outputs}")
    assert [(row["valid"], row["six_error"]) for row in answer.rows] == [(True, ""), (False, "format")]


def test_calls_of_rows_that_are_no_candidates(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> None:
    """Only a row with sample_id and without a result is a candidate; its calls may be a list."""
    samples = tmp_path / "samples.jsonl"
    write_jsonl(samples, toy_samples)
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    rows = [
        {"id": "toy-0", "result": '[get_weather(city="Paris")]', "calls": 3},
        {"sample_id": "toy-0", "calls": [call]},
        {"sample_id": "toy-0", "calls": []},
    ]
    answer = run("scorer=esm", f"samples={samples}", f"outputs={lines(tmp_path / 'outputs', rows)}")
    assert [row["valid"] for row in answer.rows] == [True, True, False], answer.err


# --- as a process ----------------------------------------------------------------------------------------------------


def process(folder: Path, *words: str, stdin: bytes = b"", launch: str = LAUNCH) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", launch, *words]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, timeout=60)


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input(tmp_path: Path, packed: bool) -> None:
    rows = "".join(json.dumps({"id": f"multiple_{at % 4}", "result": f"f.x(a={at % 2})"}) + "\n" for at in range(500))
    stdin = gzip.compress(rows.encode()) if packed else rows.encode()
    folder = small(tmp_path / "data")
    done = process(tmp_path, "benchmark=bfcl", f"data={folder}", "outputs=-", "out=scored.jsonl.gz", stdin=stdin)
    assert done.returncode == 0, done.stderr
    with gzip.open(tmp_path / "scored.jsonl.gz", "rt") as file:
        assert [json.loads(line)["valid"] for line in file] == [bool(at % 2) for at in range(500)]


def test_help_and_nothing_heavy(tmp_path: Path) -> None:
    """The help comes without a file, and a run imports none of the heavy packages, nor Hydra."""
    done = process(tmp_path, "--help")
    assert done.returncode == 0 and b"benchmark=bfcl" in done.stdout and not done.stderr
    told = process(tmp_path, "benchmark=bfcl", "data=/nowhere", "outputs=o")
    assert told.returncode == 1 and b"ttpa-score: error: " in told.stderr and b"Traceback" not in told.stderr
    launch = LAUNCH + f"; print([name for name in {(*HEAVY, 'hydra')!r} if name in sys.modules])"
    lines(tmp_path / "o", [{"id": "multiple_0", "result": "f.x(a=1)"}])
    done = process(tmp_path, "benchmark=bfcl", f"data={small(tmp_path / 'data')}", "outputs=o", launch=launch)
    assert done.stdout.splitlines()[-1] == b"[]", done.stderr


MEASURED = LAUNCH + "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """120,000 rows take hardly more memory than 3,000 (kilobytes; each row has about 400)."""
    folder = small(tmp_path / "data")
    peaks = []
    for count in (3_000, 120_000):
        row = {"id": "multiple_0", "result": "f.x(a=1)", "note": "x" * 300}
        with (tmp_path / "outputs").open("w") as file:
            file.writelines(json.dumps({**row, "id": f"multiple_{at % 4}"}) + "\n" for at in range(count))
        done = process(tmp_path, "benchmark=bfcl", f"data={folder}", "outputs=outputs", "out=scored", launch=MEASURED)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 12_000


def test_against_another_policy(run: Any, tmp_path: Path) -> None:
    """Ours answers question 0 twice and 4 not at all: (1/2 + 0 + 1 + 1) / 4 - (1 + 1 + 0 + 0) / 4."""
    data = small(tmp_path / "data")

    def outputs(name: str, *answers: tuple[int, bool]) -> Path:
        rows = [{"id": f"multiple_{at}", "result": f"f.x(a={1 if right else 2})"} for at, right in answers]
        return lines(tmp_path / name, rows)

    def scored(*words: str) -> Answer:
        return run("benchmark=bfcl", f"data={data}", *words)

    theirs = outputs("b", (0, True), (1, True), (2, False), (3, False))
    kept = lines(tmp_path / "theirs.jsonl", [*scored(f"outputs={theirs}").rows, {"id": "multiple_4", "valid": True}])
    ours = outputs("a", (0, True), (0, False), (1, False), (2, True), (3, True))
    answer = scored(f"outputs={ours}", f"against={kept}")
    assert answer.status == 0, answer.err
    assert "outputs - against: +0.1250 [" in answer.out
    assert "no clear difference (4 questions; 1 in one file only)" in answer.out
    answer = scored(f"outputs={ours}", f"against={ours}")
    assert answer.status == 1 and f"{ours}:1: no id and valid" in answer.err


@pytest.mark.parametrize("syntax", ["python", "hermes", "json"])
def test_candidates_are_judged_by_their_calls(run: Any, tmp_path: Path, syntax: str) -> None:
    """Whatever syntax their text has; without a call, the text is a reply in words."""
    data = small(tmp_path / "data")
    calls = (ToolCall(name="f.x", arguments={"a": 1}),)
    right = Candidate(sample_id="multiple_0", index=0, text=get_syntax(syntax).print(calls), calls=calls)
    words = Candidate(sample_id="multiple_1", index=0, text="f.x(a=1)", calls=())
    silent = Candidate(sample_id="irrelevance_0", index=0, text="f.x(a=1)", calls=None, error="no call")
    rows = [one.to_json() for one in (right, words, silent)]
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={lines(tmp_path / 'outputs', rows)}")
    assert [row["valid"] for row in answer.rows] == [True, False, True]
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={lines(tmp_path / 'o', [{**rows[0], 'calls': '[1]'}])}")
    assert answer.status == 1 and "o:1: calls are no list" in answer.err


def test_options_of_a_row_that_mean_nothing(run: Any, tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    for option in ({"mode": "FC"}, {"mode": 7}, {"dots_as_underscores": "true"}):
        outputs = lines(tmp_path / "o", [{"id": "multiple_0", "result": "f.x(a=1)", **option}])
        answer = run("benchmark=bfcl", f"data={data}", f"outputs={outputs}")
        assert answer.status == 1 and f"{outputs}:1: mode=" in answer.err


@pytest.mark.parametrize("result", ["9" * 6000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_a_hostile_answer_does_not_stop_the_file(run: Any, tmp_path: Path, result: str) -> None:
    """Numbers and nesting that Python does not read are wrong answers; a line that is no JSON still is an error."""
    data, good = small(tmp_path / "data"), {"id": "multiple_1", "result": "f.x(a=1)"}
    outputs = lines(tmp_path / "o", [f'{{"id": "multiple_0", "result": {result}}}', good])
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [False, True]
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={lines(tmp_path / 'o', ['{9' + '9' * 6000, good])}")
    assert answer.status == 1 and "o:1: not JSON" in answer.err


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("other", ["9" * 5000, DEEP, f'[{{"id": "multiple_3"}}, {DEEP}]'])
def test_a_hostile_value_beside_the_answer(run: Any, tmp_path: Path, other: str) -> None:
    """The answer counts, and wherever the id stands it is found."""
    outputs = lines(tmp_path / "o", [f'{{"note": {other}, "result": "f.x(a=1)", "id": "multiple_0"}}'])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert [(row["id"], row["valid"]) for row in answer.rows] == [("multiple_0", True)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f'{{"id": "irrelevance_0", "note": {DEEP}}}', "irrelevance_0 has no result"),
        (f'{{"id": "irrelevance_0", "result": {DEEP}', "not JSON"),
        (f'{{"id": "irrelevance_0", "result": {DEEP[:150_000]}', "not JSON"),
        ('{"id": "irrelevance_0", "result": "' + '\\"' * 100_000, "not JSON"),
        (DEEP, "a list where a row"),
    ],
    ids=["no result", "cut", "cut within", "cut text", "no row"],
)
def test_a_hostile_row_that_is_no_answer(run: Any, tmp_path: Path, row: str, message: str) -> None:
    good = {"id": "irrelevance_0", "result": "No."}
    outputs = lines(tmp_path / "o", [good, row])
    answer = run("benchmark=bfcl", f"data={small(tmp_path / 'data')}", f"outputs={outputs}")
    assert answer.status == 1 and f"{outputs}:2: " in answer.err and message in answer.err
    assert len(answer.rows) == 1


@pytest.mark.parametrize("key", ["outputs", "samples"])
def test_a_file_that_is_not_utf_8(run: Any, tmp_path: Path, key: str) -> None:
    (tmp_path / "o").write_bytes('\n{"id": "irrelevance_0", "result": "\xe9t\xe9"}\n'.encode("latin-1"))
    first = ["scorer=esm", "outputs=-"] if key == "samples" else ["benchmark=bfcl", f"data={small(tmp_path / 'data')}"]
    answer = run(*first, f"{key}={tmp_path / 'o'}")
    assert answer.status == 1 and "o:2: not UTF-8 (" in answer.err and "Save the file as UTF-8." in answer.err


def test_against_itself_and_too_few(run: Any, tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    outputs = lines(tmp_path / "o", [{"id": "multiple_0", "result": "f.x(a=1)"}])
    first = run("benchmark=bfcl", f"data={data}", f"outputs={outputs}")
    kept = lines(tmp_path / "kept.jsonl", first.rows)
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={outputs}", f"against={kept}")
    assert "+0.0000 (1 question, too few for an interval)" in answer.out
    answer = run("benchmark=bfcl", f"data={data}", f"outputs={outputs}", f"against={tmp_path / 'scored.jsonl'}")
    assert answer.status == 2 and "is also read" in answer.err


@pytest.mark.parametrize("syntax", ["json", "python"])
def test_the_syntax_is_the_scorers_too(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...], syntax: str) -> None:
    """A scorer that reads the text takes the syntax of the command, and calls of an interface are written in it."""
    (tmp_path / "samples.jsonl").write_text(dumps(toy_samples[0].to_json()) + "\n", encoding="utf-8")
    target = toy_samples[0].target
    rows = [
        {"id": toy_samples[0].id, "result": get_syntax(syntax).print(target)},
        {"id": toy_samples[0].id, "result": [{call.name: dumps(call.arguments)} for call in target]},
    ]
    outputs, samples = lines(tmp_path / "o", rows), tmp_path / "samples.jsonl"
    answer = run("scorer=slm_json", f"samples={samples}", f"outputs={outputs}", f"syntax={syntax}")
    assert [row["score"] for row in answer.rows] == [1.0, 1.0], answer
