"""Multi-turn categories: published answers, the official checker and loop on the same conversations, hostile calls."""

import ast
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.official_package import conversation, package
from ttpa.benchmarks.bfcl import backends, official
from ttpa.benchmarks.bfcl.backends import read_step, run
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.benchmarks.bfcl.evaluation import BFCL
from ttpa.benchmarks.bfcl.multi_turn import Conversation, MultiTurnCase, read_multi_turn
from ttpa.calls.six_errors import LABELS
from ttpa.errors import DataError
from ttpa.io import read_jsonl, write_jsonl
from ttpa.records import Candidate, ToolCall

NAMES = [name for name in CATEGORIES if name.startswith("multi_turn")]
Call = tuple[str, dict[str, Any]]


def cases(name: str) -> dict[str, MultiTurnCase]:
    package()  # skips where the package is not installed
    return dict(read_multi_turn(official.data_folder(), CATEGORIES[name]))


@pytest.fixture
def case() -> MultiTurnCase:
    return cases("multi_turn_base")["multi_turn_base_0"]


def truth(case: MultiTurnCase) -> list[list[Call]]:
    """The expected calls with every argument named, by the order in the function's document."""
    names = {one["name"]: list(one["parameters"]["properties"]) for one in case.documents}

    def named(text: str) -> Call:
        node: Any = ast.parse(text, mode="eval").body
        given = dict(zip(names[node.func.id], map(ast.literal_eval, node.args), strict=False))
        return node.func.id, given | {one.arg: ast.literal_eval(one.value) for one in node.keywords}

    return [[named(text) for text in turn] for turn in case.truth]


def written(calls: Sequence[Call]) -> str:
    texts = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls)
    return f"[{', '.join(texts)}]"


def called(calls: Sequence[Call]) -> list[dict[str, str]]:
    return [{name: json.dumps(given)} for name, given in calls]


def candidate(case: MultiTurnCase, text: str, calls: tuple[ToolCall, ...] = ()) -> Candidate:
    return Candidate(sample_id=case.case_id, index=0, text=text, token_ids=(1, 2), calls=calls)


@pytest.mark.parametrize("name", NAMES)
def test_published_answers_are_valid(name: str) -> None:
    """As they are, as a prompted model writes them, and as a function-calling one that makes one call a step."""
    for case in list(cases(name).values())[::60]:
        found = run(case.backends, turns=[[turn] if turn else [] for turn in case.truth], truth=case.truth)
        assert found == {"error_type": None, "turn": len(case.truth) - 1, "what": []}
        assert case.judge([[written(turn)] if turn else [] for turn in truth(case)]).valid, case.case_id
        assert case.judge([[called([call]) for call in turn] for turn in truth(case)]).valid, case.case_id


def test_verdicts_are_the_official_ones() -> None:
    every = {case_id: case for name in NAMES for case_id, case in cases(name).items()}
    for row in read_jsonl(Path(__file__).resolve().parents[1] / "data" / "bfcl" / "multi_turn.jsonl.gz"):
        found = every[row["id"]].judge(row["result"], function_calling=row["fc"])
        assert found.error_type == row["error_type"], row
        assert found.explanation and found.six_error in (("",) if found.valid else LABELS)


def test_results_that_are_none(case: MultiTurnCase) -> None:
    """In the last, a folder is copied into itself: the official checker stops with an exception."""
    itself = "[mkdir(dir_name='x'), cp(source='x', destination='x')]"
    for error, results in {
        "inference_error": [None, "[]"],
        "force_terminated": [[], [[]] * 9],
        "empty_turn_model_response": [[[], None, 3, "x"], [[None], [3], [{}], [[[]]]]],
        "instance_state_mismatch": [[[itself], [], [], []]],
    }.items():
        assert {case.judge(result).error_type for result in results} == {f"multi_turn:{error}"}


STEPS = [
    "[cd(folder='a')]", "cd(folder='a')", "```[ls()]```", "[ls('x', a=True)]", "[echo(content=grep(pattern='a'))]",
    "[echo(content={'a': {'b': 1}})]", "[echo(content={'a': {}})]", "[echo(content={})]", "[a.b(c=1)]",
    "[f(**{'a': 1})]", "[f(a=1j, b=b'x', c=-1.5)]", "[f(a=2 ** 0.5)]", "[f(a=x)]", "[f(a=g())]", "[f(a=x[0])]", "[]",
    "no call", "[1]", "[f(a={'it\\'s': 1})]", "[f(a={1: {'b': 2}})]", "[f()(a=1)]", "[f(a=1e999)]",
]  # fmt: skip


def test_steps_are_read() -> None:
    """By hand, since the official decoder may not be installed."""
    assert read_step("[cd(folder='a'), sort('dropped')]") == ["cd(folder='a')", "sort()"]
    assert read_step("f(a=g(b=1), c={'d': 2})") == ["f(a=g(b=1), c={'d': 2})"]
    assert read_step([{"f": '{"a": 1, "b": "x"}'}, {"g": "{}"}]) == ["f(a=1,b='x')", "g()"]
    for none in ("Done.", "[]", "f(a={})", None, 3, [], [{}], ["f"], [{"f": "{"}], [{"f": "[1]"}], "9" * 5000):
        assert read_step(none) == []
    assert read_step("f()", function_calling=True) == read_step([{"f": "{}"}], function_calling=False) == []


def test_steps_are_read_as_officially() -> None:
    """The text of the calls, and no call where the official decoder fails."""
    models = package().models
    lists = ([{"f": '{"a": [1, "x"]}'}, {"g": "{}"}], {"f": {"a": 1}}, [{"f": "[]"}], [{"f": "{"}], ["f"], "f()")
    for answer in (*STEPS, *lists):
        calling = answer not in STEPS
        try:
            read = models.convert_to_function_call if calling else models.default_decode_execute_prompting
            expected = read(answer)
        except Exception:
            expected = []
        assert read_step(answer, function_calling=calling) == expected, answer


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_results_are_those_of_the_official_executor(case: MultiTurnCase) -> None:
    """Values, errors, and strings with a name before a parenthesis, on one case after the other."""
    calls = [
        "ls()", "ls(a=True)", "pwd()", "cd(folder='document')", "cd('nowhere')", "touch(file_name='a')", "ls(b=1)",
        "echo(content='see cd (x) and  (y) or f (z)')", "echo(content=ls(a=True))", "echo(content=[1, {'a': (2,)}])",
        "nothing(a=1)", "GorillaFileSystem.ls()", "exit()", "os.kill(pid=1)", "echo(content=inf)", "f(", "", "  ls()",
        "echo(content=-1.5)", "echo(content=1j)", "echo(content='\\ud800')", "echo(None='x')", "3(a=1)",
        "echo(content=undefined(a=mkdir('sub')))", "echo(content=ls)", "tail(file_name='final_report.pdf', lines='x')",
        "echo(content=-inf)", "add(a=1, b=2)", "undefined(a=mkdir('sub'))", "ls()", "cp(source='final_report.pdf')",
    ]  # fmt: skip
    expected, _ = package().backends.execute_multi_turn_func_call(
        calls, dict(case.initial_config), list(case.involved_classes), "ttpa", case.case_id
    )
    assert run(case.backends, steps=[calls]) == expected


HOSTILE = [
    "[__import__('os').system(command='touch {0}')]", "[ls(a=__import__('os').system(command='touch {0}'))]",
    "[ls(a={'__import__(\"os\").system(\"touch {0}\")': {'x': 1}})]", "[open(file='{0}', mode='w')]",
    "[echo(content={'open': {'file': '{0}', 'mode': 'w'}})]", "[ls(a={'ls() or open(\"{0}\", \"w\")': {'x': 1}})]",
    "[eval(source='open(\"{0}\", \"w\")')]", "[ls.__globals__(a=1)]", "[_load_scenario(scenario={'root': 1})]",
    "[echo(content={'lambda: open(\"{0}\", \"w\")': {'x': 1}})]",
    "[ttpa_eval_multi_turn_base_0_GorillaFileSystem_instance._load_directory(current={{'a': 1}})]",
    "[ttpa_eval_multi_turn_base_0_GorillaFileSystem_instance.root(a=1)]", "[ls(a={'x := 3': {'b': 1}})]",
    "[ls(a=" + "[" * 300 + "]" * 300 + ")]", "[echo(content='" + "a" * 150_000 + "')]", "[ls(a=9**9**9**9)]",
    "[ls(a='%999999999d' % 1)]", "\0", "[ls(a=\ud800)]",
]  # fmt: skip
INTERFACE: list[Any] = [
    [{"ls() or open('{0}', 'w').close() or ls": "{}"}], [{"ls": '{"a=open(\'{0}\', \'w\'), b": 1}'}],
    [{"ls": '{"a": "\\ud800"}'}], [{"ls": "[" * 5000 + "]" * 5000}], [{1: "{}"}], [{"ls": "1" * 5000}], [{"": "{}"}],
    [{"ls": '{"a": NaN}'}], [{"ls": None}], [None], 3, {"ls": {"a": [{}]}},
]  # fmt: skip


def test_hostile_answers_run_nothing(tmp_path: Path, case: MultiTurnCase) -> None:
    sentinel, began = tmp_path / "sentinel", time.monotonic()
    for answer in (*HOSTILE, *INTERFACE):
        answer = json.loads(json.dumps(answer).replace("{0}", str(sentinel)))
        assert not case.judge([[answer]] * len(case.truth)).valid
        if isinstance(answer, str):
            Conversation(case, prompt="official").take(candidate(case, answer))
    assert not sentinel.exists()
    assert time.monotonic() - began < 60


def test_private_methods_are_not_called(case: MultiTurnCase) -> None:
    private = "ttpa_multi_turn_base_0_GorillaFileSystem_instance._load_scenario({'root': {'x': {'contents': {}}}})"
    results = run(case.backends, steps=[[private, "ls()"]])
    assert "has no attribute '_load_scenario'" in results[0] and results[1:] == run(case.backends, steps=[["ls()"]])


@pytest.mark.parametrize("call", ["power(base=7, exponent=99999999999)", "square_root(number=2, precision=99999999)"])
def test_calls_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """For time, for memory, and the next case is judged as ever."""
    monkeypatch.setattr(backends, "SECONDS", 0.5)
    case = next(case for case in cases("multi_turn_base").values() if "MathAPI" in case.involved_classes)
    right, began = [[written(turn)] if turn else [] for turn in truth(case)], time.monotonic()
    ended = case.judge([[f"[{call}]"], *right[1:]])
    assert (ended.error_type, ended.six_error) == ("multi_turn:execution_limit", "parameter_value")
    dialogue = Conversation(case, prompt="official")
    dialogue.take(candidate(case, f"[{call}]"))
    assert dialogue.sample() is None and dialogue.row()["error_type"] == "multi_turn:execution_limit"
    assert case.judge(right).valid
    assert time.monotonic() - began < 15


def test_what_cannot_be_run(case: MultiTurnCase) -> None:
    """Long results are not handed back, a process that was ended is started again, and the data's fault is an error."""
    text = f"echo(content='{'a' * 1_000_000}')"
    assert run(case.backends, steps=[[text]]) and run(case.backends, steps=[[text] * 11]) is None
    process = backends._process(os.getpid())
    process.kill()
    process.wait()
    assert run(case.backends, steps=[["ls()"]])
    broken = case.model_copy(update={"initial_config": {"GorillaFileSystem": {"root": {}}}})
    with pytest.raises(DataError, match="multi_turn_base_0: BFCL's backends cannot be run .IndexError"):
        broken.judge([[] for _ in case.truth])


def plain(result: Any) -> Any:
    """A result with the arguments of calls as objects: JSON has several texts for one."""
    if isinstance(result, list):
        return [plain(one) for one in result]
    return {name: json.loads(text) for name, text in result.items()} if isinstance(result, dict) else result


def check_same_conversation(case: MultiTurnCase, script: list[list[Call] | str], calling: bool) -> dict[str, Any]:
    """The official loop and ours ask for the same, with the same messages and tools, and end with the same result."""
    answers = iter([*script, *["Done."] * 100])

    def policy(messages: Any) -> Any:
        said = next(answers)
        return said if isinstance(said, str) else called(said) if calling else written(said)

    theirs, result = conversation(case.case_id, policy, function_calling=calling)
    ours, number = Conversation(case, prompt="training" if calling else "official"), 0
    while (sample := ours.sample()) is not None:
        shown = [
            {"role": one.role, "content": called([(c.name, dict(c.arguments)) for c in one.calls]) or one.content}
            for one in sample.messages
        ]
        messages, tools = theirs[number]
        assert shown == [{"role": one["role"], "content": one["content"]} for one in messages], case.case_id
        assert [tool.name for tool in sample.tools] == tools
        said = script[number] if number < len(script) else "Done."
        calls = () if isinstance(said, str) else tuple(ToolCall(name=name, arguments=given) for name, given in said)
        ours.take(candidate(case, said if isinstance(said, str) else written(said), calls))
        number += 1
    row = ours.row()
    assert number == len(theirs) and row["tokens"] == 2 * number
    assert plain(row["result"]) == plain(result)
    assert case.judge(json.loads(json.dumps(row["result"])), function_calling=calling).error_type == row["error_type"]
    return row


@pytest.mark.parametrize("calling", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_the_official_ones(name: str, calling: bool) -> None:
    """One call a step and words when the turn's calls are made: right. One call less, or words only: wrong."""
    case = list(cases(name).values())[3]
    steps = [step for turn in truth(case) for step in (*([call] for call in turn), "That is all.")]
    assert check_same_conversation(case, steps, calling)["exact"]
    assert not check_same_conversation(case, steps[1:], calling)["exact"]
    assert check_same_conversation(case, [], calling)["errors"] == ["call_count"]


def test_too_many_steps_break_a_conversation_off(case: MultiTurnCase) -> None:
    """The limit is looked at when a step has been run: officially, too."""
    row = check_same_conversation(case, [[("ls", {})]] * 100, True)
    assert row["error_type"] == "multi_turn:force_terminated"
    assert len(row["result"][0]) == package().prompts.MAXIMUM_STEP_LIMIT + 1


def copied(folder: Path, name: str, change: Callable[[dict[str, Any], dict[str, Any]], Any] | None = None) -> Path:
    """The first two questions of a category with their answers, the last of them changed."""
    package()
    (folder / "possible_answer").mkdir(parents=True)
    file = f"BFCL_v4_{name}.json"
    questions, answers = (
        list(read_jsonl(official.data_folder() / part / file))[:2] for part in ("", "possible_answer")
    )
    if change:
        change(questions[-1], answers[-1])
    write_jsonl(folder / file, [row for row in questions if row])
    write_jsonl(folder / "possible_answer" / file, answers)
    return folder


@pytest.mark.parametrize(("change", "message"), [
    (lambda row, answer: row.update(involved_classes=["WebSearchAPI"]), ":2: involved_classes.0="),
    (lambda row, answer: answer.update(ground_truth=["ls()"]), "miss_func.json:2: ground_truth"),
    (lambda row, answer: row["question"].pop(), ":2: Value error, ground_truth"),
    (lambda row, answer: row.update(missed_function={"1": ["nothing"]}), ":2: Value error, missed_function"),
])  # fmt: skip
def test_wrong_rows(tmp_path: Path, change: Any, message: str) -> None:
    folder = copied(tmp_path / "data", "multi_turn_miss_func", change)
    with pytest.raises(DataError) as told:
        read_multi_turn(folder, CATEGORIES["multi_turn_miss_func"])
    assert message in str(told.value)


def test_function_documents_of_the_data_folder_come_first(tmp_path: Path) -> None:
    folder = copied(tmp_path / "data", "multi_turn_base")
    (folder / "multi_turn_func_doc").mkdir()
    document = {"name": "only", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
    write_jsonl(folder / "multi_turn_func_doc" / "gorilla_file_system.json", [document])
    names = {
        one["name"] for one in read_multi_turn(folder, CATEGORIES["multi_turn_base"])["multi_turn_base_0"].documents
    }
    assert {"only", "post_tweet"} <= names and "ls" not in names


@pytest.mark.parametrize("prompt", ["training", "official"])
def test_evaluation(tmp_path: Path, prompt: str) -> None:
    """The option `eval=bfcl` on two questions: what is asked first, the row, the summary, and the official layout."""
    name = "multi_turn_miss_param"
    folder = copied(tmp_path / "data", name)
    evaluation = BFCL(path=str(folder), max_new_tokens=9, categories=[name], prompt=prompt, limit=None, model=None)
    evaluation.check()
    assert evaluation.identity()["path"]
    samples, rows = evaluation.samples(tmp_path), []
    assert [sample.id for sample in samples] == ["multi_turn_miss_param_0", "multi_turn_miss_param_1"]
    for sample in samples:
        dialogue = evaluation.dialogue(sample)
        assert sample.messages and dialogue is not None and dialogue.sample() == sample
        while dialogue.sample() is not None:
            dialogue.take(Candidate(sample_id=sample.id, index=0, text="No."))
        rows.append(dialogue.row())
    summary = evaluation.summarise(rows)
    assert summary["accuracy"]["value"] == 0 and summary["categories"][name]["n"] == 2
    evaluation.write(tmp_path, rows)
    (path,) = tmp_path.glob(f"result/*/multi_turn/BFCL_v4_{name}_result.json")
    assert [row["result"] for row in read_jsonl(path)] == [row["result"] for row in rows]
