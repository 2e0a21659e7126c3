"""`ttpa score` from outside: tables, rows, streams, and what a wrong file or argument is answered with."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ttpa.benchmarks import score
from ttpa.benchmarks.score import main
from ttpa.calls.syntaxes import get_syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, read_jsonl, write_jsonl
from ttpa.records import Candidate, Sample, ToolCall

DATA = Path(__file__).resolve().parents[1] / "data" / "bfcl"
HEAVY = ("torch", "transformers", "pytorch_lightning", "peft", "datasets", "pyarrow", "wandb", "hydra", "openai")
GOOD = {"id": "multiple_0", "result": "f.x(a=1)"}


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
    rows: list[dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs the command in this process; `rows` are what it wrote."""

    def call(*words: str) -> Outcome:
        out, problem = tmp_path / "scored.jsonl", ""
        try:
            status = main([*words, f"out={out}"])
        except ConfigError as error:  # the command line prints it and exits with 2
            status, problem = 2, str(error)
        found = capsys.readouterr()
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
        return Outcome(status, found.out, found.err + problem, rows)

    return call


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def small(folder: Path) -> Path:
    """A data folder of three categories, one gzipped, under version 4 names."""
    (folder / "possible_answer").mkdir(parents=True)
    schema = {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for category, count in (("multiple", 4), ("parallel", 2)):
        name = f"BFCL_v4_{category}.json"
        functions = [{"name": "f.x", "parameters": schema}]
        questions = [{"id": f"{category}_{at}", "question": [], "function": functions} for at in range(count)]
        answers = [{"id": row["id"], "ground_truth": [{"f.x": {"a": [1]}}]} for row in questions]
        lines(folder / name, questions)
        lines(folder / "possible_answer" / name, answers)
    silent = b'{"id": "irrelevance_0", "question": [], "function": []}'
    (folder / "BFCL_v4_irrelevance.json.gz").write_bytes(gzip.compress(silent))
    lines(folder / "BFCL_v4_multi_turn_base.json", [{"id": "multi_turn_base_0"}])
    return folder


@pytest.fixture
def bfcl(run: Any, tmp_path: Path) -> Any:
    """Scores rows against the small data folder."""
    data = small(tmp_path / "data")

    def call(rows: Sequence[Any], *words: str) -> Outcome:
        return run("benchmark=bfcl", f"data={data}", f"outputs={lines(tmp_path / 'outputs', rows)}", *words)

    return call


def test_outputs_of_a_published_run(run: Any) -> None:
    source = DATA / "outputs" / "glyphh-ada-1.1.jsonl.gz"
    published = list(read_jsonl(source))
    answer = run("benchmark=bfcl", f"data={DATA}", f"outputs={source}")
    assert answer.status == 0, answer.err
    assert [(row["id"], row["valid"]) for row in answer.rows] == [(row["id"], row["valid"]) for row in published]
    assert all(set(row) == {"id", "valid", "error_type", "six_error", "score", "explanation"} for row in answer.rows)
    assert all(row["score"] == float(row["valid"]) and row["explanation"] for row in answer.rows)
    python = [row["valid"] for row in published if row["category"] == "simple_python"]
    assert f"simple_python           {sum(python) / len(python):.4f} [" in answer.out
    assert "BFCL v4" in answer.out and "BFCL v3" in answer.out and "parameter value" in answer.out
    overall = next(line for line in answer.out.splitlines() if line.startswith("overall"))
    assert overall.split()[1] == "-"  # multi-turn was not run, so there is no overall score


def test_row_forms(bfcl: Any) -> None:
    """Text, function-calling list, candidates of this project; ids repeat; more keys are allowed."""
    calls = (ToolCall(name="f.x", arguments={"a": 1}),)
    candidates = [  # their calls are judged, whatever the text; without a call it is a reply in words
        Candidate(sample_id="multiple_0", index=0, text=get_syntax("hermes").print(calls), calls=calls),
        Candidate(sample_id="multiple_1", index=0, text="f.x(a=1)", calls=()),
        Candidate(sample_id="irrelevance_0", index=0, text="f.x(a=1)", calls=None, error="no call"),
    ]
    forms: list[tuple[Any, bool, str]] = [
        ({**GOOD, "latency": 3}, True, ""),
        ({"id": "multiple_0", "result": "f.x(a=2)"}, False, "parameter_value"),
        ({"id": "multiple_1", "result": [{"f.x": '{"a": 1}'}]}, True, ""),
        ({"id": "multiple_1", "result": "f.x(a=1)", "mode": "fc"}, False, "format"),
        ({"id": "multiple_2", "result": [{"f_x": '{"a": 1}'}], "dots_as_underscores": True}, True, ""),
        ({"id": "multiple_2", "result": "f_x(a=1)"}, False, "tool_name"),
        ({"sample_id": "multiple_3", "text": "f.x(a=1)", "index": 0}, True, ""),
        ({"id": "irrelevance_0", "result": "No."}, True, ""),
        ({"id": "parallel_0", "result": None}, False, "format"),
        *zip((one.to_json() for one in candidates), (True, False, True), ("", "format", ""), strict=True),
    ]
    answer = bfcl(["", *(row for row, _, _ in forms)])
    assert answer.status == 0, answer.err
    assert [(row["valid"], row["six_error"]) for row in answer.rows] == [(valid, six) for _, valid, six in forms]
    assert "4 of 200" in answer.out and "1 of 240" in answer.out
    rows = [row for row, _, _ in forms[:6]]
    assert [row["valid"] for row in bfcl(rows, "dots_as_underscores=true").rows][::5] == [False, True]
    assert [row["valid"] for row in bfcl(rows, "mode=fc").rows][:3] == [False, False, True]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(("row", "message"), [
    ({"result": "x"}, "no id"), ({"id": "multiple_77", "result": "x"}, "unknown id multiple_77, of multiple"),
    ({"id": "chess_1", "result": "x"}, "of no category of BFCL"), ({**GOOD, "mode": "FC"}, "mode='FC'"),
    ({"sample_id": "multiple_0", "text": "", "calls": "[1]"}, "calls are no list"),
    (f'{{"id": "irrelevance_0", "result": {DEEP[:150_000]}', "not JSON"),
])  # fmt: skip
def test_wrong_rows(bfcl: Any, tmp_path: Path, row: Any, message: str) -> None:
    """File and line are named, the exit status is 1, and what came before is kept and counted."""
    answer = bfcl([GOOD, row, GOOD])
    assert answer.status == 1
    assert f"{tmp_path / 'outputs'}:2: " in answer.err and message in answer.err
    assert len(answer.rows) == 1 and answer.rows[0]["valid"] and "1 of 200" in answer.out


@pytest.mark.parametrize("hostile", ["9" * 6000, DEEP, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_a_hostile_answer_does_not_stop_the_file(bfcl: Any, hostile: str) -> None:
    """Numbers and nesting that Python does not read are wrong answers; beside an answer they change nothing."""
    beside = f'{{"note": [{hostile}], "result": "f.x(a=1)", "id": "multiple_1"}}'
    answer = bfcl([f'{{"id": "multiple_0", "result": {hostile}}}', beside])
    assert answer.status == 0, answer.err
    assert [(row["id"], row["valid"]) for row in answer.rows] == [("multiple_0", False), ("multiple_1", True)]


ANSWERS, QUESTIONS = "possible_answer/BFCL_v4_multiple.json", "BFCL_v4_multiple.json"
ASKED = {"id": "multiple_0", "function": [{"name": "f.x", "parameters": {}}]}
WANTED = {"id": "multiple_0", "ground_truth": [{"f.x": {"a": [1]}}]}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (ANSWERS, None, "no such file"),
        (ANSWERS, [WANTED, {"id": "multiple_1"}], f"{ANSWERS}:2: multiple_1 is there twice, or has no ground_truth"),
        (ANSWERS, [WANTED], "no accepted answers for multiple_1"),
        (QUESTIONS, [ASKED], f"{QUESTIONS}: no question multiple_1"),
        ("BFCL_v3_irrelevance.json", [ASKED], "multiple_0 is no id, or is there twice"),
        (QUESTIONS, [{"id": "multiple_0"}], "multiple_0: function=None"),
    ],
)
def test_data_folders_that_cannot_be_used(run: Any, tmp_path: Path, name: str, rows: Any, message: str) -> None:
    folder = small(tmp_path / "data")
    if rows is None:
        (folder / name).unlink()
    else:
        lines(folder / name, rows)
    answer = run("benchmark=bfcl", f"data={folder}", f"outputs={lines(tmp_path / 'outputs', [GOOD])}")
    assert answer.status == 1 and answer.rows == [] and message in answer.err
    assert "no such folder" in run("benchmark=bfcl", "data=/nowhere", "outputs=-").err


def test_multi_turn(run: Any, tmp_path: Path) -> None:
    """Rows of all categories in one file, their table, and the total of both versions."""
    pytest.importorskip("bfcl_eval")
    pytest.importorskip("mpmath")
    from ttpa.benchmarks.bfcl.official import data_folder

    folder, right = data_folder(), []
    for path in sorted((folder / "possible_answer").glob("BFCL_v4_multi_turn_*.json")):
        case = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
        right.append({"id": case["id"], "result": [[f"[{call}]" for call in turn] for turn in case["ground_truth"]]})
    wrong = {"id": right[0]["id"], "result": [["No."] for _ in right[0]["result"]]}
    single = {"id": "irrelevance_0", "result": "No."}
    outputs = lines(tmp_path / "outputs.jsonl", [single, *right, wrong, {**wrong, "result": None}])
    answer = run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}")
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [True] * 5 + [False] * 2
    table = [line.split() for line in answer.out.splitlines()]
    assert ["multi_turn_miss_func", "1.0000", "1", "1", "of", "200"] in table
    assert [line for line in table if line[:2] == ["multi", "turn"]] == [["multi", "turn", "0.8333", "0.5%"]] * 2
    outputs = lines(tmp_path / "outputs.jsonl", [{**right[0], "id": "multi_turn_base_200"}])
    assert "unknown id multi_turn_base_200" in run("benchmark=bfcl", f"data={folder}", f"outputs={outputs}").err


def test_multi_turn_without_the_package(bfcl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttpa.benchmarks.bfcl.categories.version", lambda name: "0")
    answer = bfcl([GOOD, {"id": "multi_turn_base_0", "result": []}])
    assert answer.status == 1 and len(answer.rows) == 1 and "1 of 200" in answer.out
    assert "outputs:2: multi_turn_base_0 is of multi_turn_base. " in answer.err
    assert "pip install --no-deps bfcl-eval==" in answer.err


@pytest.mark.parametrize(("words", "parts"), [
    ("benchmark=bfcl data=d outputs=o top_k=3", ["top_k=3", "no such option"]),
    ("benchmark=bfcl data=d outputs=o mode=x", ["mode='x'", "'prompt' or 'fc'"]),
    ("benchmark=chess data=d outputs=o", ["benchmark=chess", "bfcl or toolbench"]),
    ("scorer=esm samples=s outputs=o sampels=d", ["sampels=d", "Did you mean samples?"]),
    ("scorer=esn samples=s outputs=o", ["esn", "Did you mean esm?"]),
    ("scorer=esm samples=s outputs=o scorer.as_released=3", ["as_released=3"]),
    ("scorer=esm samples=s outputs=o syntax=basic", ["syntax=basic", "python"]),
    ("outputs=o", ["one of benchmark= and scorer="]), ("benchmark=bfcl scorer=esm", ["one of"]),
])  # fmt: skip
def test_wrong_arguments(run: Any, words: str, parts: list[str]) -> None:
    """Refused with exit status 2 before anything is read or written."""
    answer = run(*words.split())
    assert answer.status == 2 and answer.rows == [] and "\n" not in answer.err
    assert all(part in answer.err for part in parts), answer.err


def test_against_another_policy(bfcl: Any, tmp_path: Path) -> None:
    """Ours answers question 0 twice and 4 not at all: (1/2 + 0 + 1 + 1) / 4 - (1 + 1 + 0 + 0) / 4."""

    def answers(*given: tuple[int, bool]) -> list[dict[str, Any]]:
        return [{"id": f"multiple_{at}", "result": f"f.x(a={1 if right else 2})"} for at, right in given]

    theirs = bfcl(answers((0, True), (1, True), (2, False), (3, False))).rows
    kept = lines(tmp_path / "theirs.jsonl", [*theirs, {"id": "multiple_4", "valid": True}])
    ours = answers((0, True), (0, False), (1, False), (2, True), (3, True))
    answer = bfcl(ours, f"against={kept}")
    assert answer.status == 0, answer.err
    assert "outputs - against: +0.1250 [" in answer.out
    assert "no clear difference (4 questions; 1 in one file only)" in answer.out
    answer = bfcl(ours, f"against={lines(tmp_path / 'no-rows', ours)}")
    assert answer.status == 1 and "no-rows:1: no id and valid" in answer.err
    assert "+0.0000 (1 question, too few for an interval)" in bfcl([GOOD], f"against={kept}").out
    answer = bfcl([GOOD], f"against={tmp_path / 'scored.jsonl'}")
    assert answer.status == 2 and "is also read" in answer.err and len(answer.rows) == 1


def test_standard_input_and_gzip_and_nothing_heavy(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": f"multiple_{at % 4}", "result": f"f.x(a={at % 2})"}) + "\n" for at in range(500))
    words = ("benchmark=bfcl", f"data={small(tmp_path / 'data')}", "outputs=-", "out=scored.jsonl.gz")
    show = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys; from ttpa.benchmarks.score import main; main(sys.argv[1:]); {show}"]
    stdin = gzip.compress(rows.encode())
    done = subprocess.run([*command, *words], cwd=tmp_path, input=stdin, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == b"[]", done.stderr
    assert [row["valid"] for row in read_jsonl(tmp_path / "scored.jsonl.gz")] == [bool(at % 2) for at in range(500)]


def test_a_cut_file_keeps_what_was_scored_and_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Half of 16,000 rows of 1,000 letters, which are never together in memory."""
    row = {"result": "f.x(a=1)", "note": "x" * 1000}
    rows = "".join(json.dumps({**row, "id": f"multiple_{at % 4}"}) + "\n" for at in range(16000))
    packed = gzip.compress(rows.encode())
    (tmp_path / "outputs").write_bytes(packed[: len(packed) // 2])
    words = [f"data={small(tmp_path / 'data')}", f"outputs={tmp_path / 'outputs'}", f"out={tmp_path / 'scored'}"]
    tracemalloc.start()
    assert main(["benchmark=bfcl", *words]) == 1
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert 4000 < (tmp_path / "scored").read_text().count("\n") < 16000


@pytest.fixture
def scorer(run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> Any:
    """Scores rows against the toy samples."""
    write_jsonl(tmp_path / "samples.jsonl", toy_samples)

    def call(name: str, rows: Sequence[Any], *words: str) -> Outcome:
        outputs = lines(tmp_path / "outputs", rows)
        return run(f"scorer={name}", f"samples={tmp_path / 'samples.jsonl'}", f"outputs={outputs}", *words)

    return call


def test_scorer(scorer: Any) -> None:
    """Candidates with calls, texts and function-calling lists; the same scores as the scorer gives."""
    call = ToolCall(name="get_weather", arguments={"city": "Rome"})
    rows = [
        Candidate(sample_id="toy-0", index=0, text="", calls=(call,)).to_json(),
        {"id": "toy-0", "result": '[get_weather(city="Paris")]', "calls": 3},  # a result is no candidate
        {"sample_id": "toy-1", "text": '[book_room(hotel="Ritz")]'},
        {"id": "toy-1", "result": [{"book_room": '{"hotel": "Ritz", "nights": 2}'}]},
        {"id": "toy-2", "result": "[get_weather(city=]"},
        {"id": "toy-5", "result": "You are welcome."},
        {"sample_id": "toy-0", "calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
    ]
    answer = scorer("esm", rows)
    assert answer.status == 0, answer.err
    assert [row["valid"] for row in answer.rows] == [False, True, False, True, False, True, True]
    assert [row["six_error"] for row in answer.rows][:5] == ["parameter_value", "", "missing_required", "", "format"]
    assert [row["score"] for row in answer.rows][1::2] == [1.0, 1.0, 1.0]
    assert 0 < answer.rows[0]["score"] < 1
    assert "mean esm" in answer.out and "exact" in answer.out
    assert 0 < scorer("ast", rows, "scorer.partial=true").rows[0]["score"] < 1


@pytest.mark.parametrize("syntax", ["json", "python", "hermes"])
def test_the_syntax_is_the_scorers_too(scorer: Any, toy_samples: tuple[Sample, ...], syntax: str) -> None:
    """A scorer that reads the text takes the syntax of the command, and calls of an interface are written in it."""
    target = toy_samples[0].target
    rows = [
        {"id": "toy-0", "result": get_syntax(syntax).print(target)},
        {"id": "toy-0", "result": [{call.name: dumps(call.arguments)} for call in target]},
    ]
    answer = scorer("ast" if syntax == "hermes" else "slm_json", rows, f"syntax={syntax}")
    assert [row["score"] for row in answer.rows] == [1.0, 1.0], answer


def test_scorer_wrong_rows(scorer: Any, run: Any, tmp_path: Path, toy_samples: tuple[Sample, ...]) -> None:
    good = {"id": "toy-0", "result": "[]"}
    for row, message in (
        ({"id": "toy-9", "result": "[]"}, "unknown id toy-9"),
        ({"id": "toy-0", "result": 5}, "neither a text nor a list"),
        ({"sample_id": "toy-0", "calls": "[" * 100_000}, "no candidate"),
        ({"sample_id": "toy-0", "calls": [{"name": 5, "arguments": {}}]}, "no candidate"),
    ):
        answer = scorer("ast", [good, row])
        assert answer.status == 1 and "outputs:2: " in answer.err and message in answer.err
        assert len(answer.rows) == 1
    whole = toy_samples[0].to_json()
    for fields in (
        {"id": ["x"]}, {"tools": "[" * 100_000}, {"tools": '[{"name": "f", "parameters": {"required": 5}}]'},
        {"target": '[{"name": ["f"], "arguments": {}}]'},
    ):  # fmt: skip
        with pytest.raises(DataError, match="bad:1: no sample"):
            score._read_samples(str(lines(tmp_path / "bad", [{**whole, **fields}])))
    with pytest.raises(DataError, match="bad:2: toy-0 is there twice"):
        score._read_samples(str(lines(tmp_path / "bad", [whole, whole])))


@pytest.mark.parametrize("name", ["esm", "ast", "slm_json", "toolrl"])
def test_arguments_that_are_no_object(scorer: Any, name: str) -> None:
    """They are the model's mistake, whatever they are, and the next row is scored."""
    broken = ['{"city": "Paris"', "[1]", "5", 5, None, [1]]
    rows: list[Any] = [{"id": "toy-0", "result": [{"get_weather": arguments}]} for arguments in broken]
    answer = scorer(name, [*rows, {"id": "toy-0", "result": [{"get_weather": {"city": "Paris"}}]}])
    assert answer.status == 0, answer.err
    assert [row["six_error"] for row in answer.rows[:-1]] == ["format"] * len(rows)
    assert answer.rows[-1]["score"] > 0


def test_what_is_valid_shows_no_error(scorer: Any) -> None:
    """Also where a scorer takes an unreadable text for the words that are wanted."""
    answer = scorer("slm_json", [{"id": "toy-5", "result": None}, {"id": "toy-0", "result": None}])
    assert [(row["valid"], row["six_error"]) for row in answer.rows] == [(True, ""), (False, "format")]
