"""Multi-turn categories: published answers, the official checker and loops on the same conversations, hostile calls."""

from __future__ import annotations

import ast
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.official_package import conversation, package, verdict
from ttpa.benchmarks.bfcl import backends as runner
from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.backends import compare, execute, read_step
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.benchmarks.bfcl.evaluation import BFCL
from ttpa.benchmarks.bfcl.multi_turn import Conversation, MultiTurnCase, read_multi_turn
from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, DataError
from ttpa.records import Candidate, ToolCall

NAMES = [name for name in CATEGORIES if name.startswith("multi_turn")]
Call = tuple[str, dict[str, Any]]


def cases(name: str) -> dict[str, MultiTurnCase]:
    package()  # skips where the package is not installed
    return dict(read_multi_turn(official.data_folder(), CATEGORIES[name]))


def truth(case: MultiTurnCase) -> list[list[Call]]:
    """The expected calls with every argument named, by the order in the function's document."""
    documents = case.documents
    names = {one["name"]: list(one["parameters"]["properties"]) for one in documents}

    def named(text: str) -> Call:
        node = ast.parse(text, mode="eval").body
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        given = dict(zip(names[node.func.id], map(ast.literal_eval, node.args), strict=False))
        return node.func.id, given | {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}

    return [[named(text) for text in turn] for turn in case.truth]


def written(calls: Sequence[Call]) -> str:
    return (
        "[" + ", ".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" for name, given in calls) + "]"
    )


def called(calls: Sequence[Call]) -> list[dict[str, str]]:
    return [{name: json.dumps(given)} for name, given in calls]


def judged(case: MultiTurnCase, result: Any) -> str | None:
    return case.judge(result).error_type


# --- published answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_published_answers_are_valid(name: str) -> None:
    """As they are, as a prompted model writes them, and as a function-calling one that makes one call a step."""
    for case in list(cases(name).values())[::40]:
        assert compare(case.backends, [[turn] if turn else [] for turn in case.truth], case.truth) == {
            "error_type": None, "turn": len(case.truth) - 1, "what": [],
        }  # fmt: skip
        calls = truth(case)
        assert case.judge([[written(turn)] if turn else [] for turn in calls]).valid, case.case_id
        assert case.judge([[called([call]) for call in turn] for turn in calls]).valid, case.case_id


# --- agreement with the official checker -----------------------------------------------------------------------------

Turns = list[list[list[Call]]]


def flat(turns: Turns) -> list[Call]:
    return [call for steps in turns for step in steps for call in step]


def drop(turns: Turns, random_: random.Random) -> None:
    step = random_.choice([step for steps in turns for step in steps if step])
    step.pop(random_.randrange(len(step)))


def change(turns: Turns, random_: random.Random) -> None:
    if calls := [call for call in flat(turns) if call[1]]:
        given = random_.choice(calls)[1]
        key = random_.choice(list(given))
        value, text = given[key], str(given[key])
        others: list[Any] = ["other", None, [], {"a": {"b": 1}}, {"a": 1}, {}, -1, float("inf"), ("a", 1), text]
        given[key] = random_.choice([*others, f"{text} (x)", f"ls ({text})", f"{text}\n", text.upper(), [value]])


def rename(turns: Turns, random_: random.Random) -> None:
    given = random_.choice(flat(turns))[1]
    if given:
        key = random_.choice(list(given))
        given[f"{key}_"] = given.pop(key)


def unnamed(turns: Turns, random_: random.Random) -> None:
    random_.choice(flat(turns))[1].clear()


def swap(turns: Turns, random_: random.Random) -> None:
    one, other = random_.randrange(len(turns)), random_.randrange(len(turns))
    turns[one], turns[other] = turns[other], turns[one]


def extra(turns: Turns, random_: random.Random) -> None:
    calls: list[Call] = [("ls", {}), ("no_such_function", {"a": 1}), ("pwd", {}), ("a.b", {}), ("run", {"x": 1}),
                         ("touch", {"file_name": "new"}), ("post_tweet", {"content": "x"}), ("_load_scenario", {}),
                         ("ls", {"a": True}), ("add", {"a": 1, "b": {"ls": {}}}), ("mkdir", {"dir_name": "cd (x)"}),
                         *flat(turns)]  # fmt: skip
    steps = turns[random_.randrange(len(turns))]
    steps.insert(random_.randrange(len(steps) + 1), [random_.choice(calls)])


def empty(turns: Turns, random_: random.Random) -> None:
    turns[random_.choice([at for at, steps in enumerate(turns) if any(steps)])] = random_.choice([[], [[]]])


def shorter(turns: Turns, random_: random.Random) -> None:
    turns.pop()


MUTATIONS: tuple[Callable[[Turns, random.Random], None], ...] = (
    drop, change, change, rename, unnamed, swap, extra, extra, empty, shorter,
)  # fmt: skip
GARBAGE = ("Done.", "", "[", "I cannot (really) do that: f(", "[ls(a=True), 3]", "x = ls()", "```json\n{}\n```", "[[]]")


def mutated(case: MultiTurnCase, random_: random.Random) -> tuple[list[list[Any]], bool]:
    """A result with one or two things changed, and whether it is a function-calling one."""
    turns = [[list(turn)] if random_.random() < 0.5 else [[call] for call in turn] for turn in truth(case)]
    for _ in range(random_.choice((1, 1, 2))):
        if flat(turns):
            random_.choice(MUTATIONS)(turns, random_)
    calling = random_.random() < 0.4
    result: list[list[Any]] = [[(called if calling else written)(step) for step in steps] for steps in turns]
    if result and random_.random() < 0.3:
        steps = random_.choice(result)
        steps.insert(random_.randrange(len(steps) + 1), random_.choice(GARBAGE))
    return result, calling


def check_agreement(count: int, seed: int) -> Counter[str | None]:
    """Compares verdicts on results changed at random; returns how often each error type came."""
    random_ = random.Random(seed)
    every = [case for name in NAMES for case in cases(name).values()]
    found: Counter[str | None] = Counter()
    for _ in range(count):
        case = random_.choice(every)
        result, calling = mutated(case, random_)
        expected = verdict(case.case_id, result, function_calling=calling)
        ours = case.judge(result, function_calling=calling)
        assert (ours.valid, ours.error_type) == (expected is None, expected), (case.case_id, calling, result)
        assert ours.explanation and ((ours.six_error == "") if ours.valid else ours.six_error in LABELS)
        found[expected] += 1
    return found


def test_verdicts_agree_with_the_official_checker() -> None:
    assert len(check_agreement(40, seed=1)) >= 4


def test_results_that_are_none() -> None:
    case = cases("multi_turn_base")["multi_turn_base_0"]
    assert judged(case, None) == judged(case, "[]") == "multi_turn:inference_error"
    assert judged(case, []) == judged(case, [[]] * 9) == "multi_turn:force_terminated"
    assert judged(case, [[], None, 3, "x"]) == "multi_turn:empty_turn_model_response"
    assert judged(case, [[None], [3], [{}], [[[]]]]) == "multi_turn:empty_turn_model_response"


# --- calls -----------------------------------------------------------------------------------------------------------

STEPS = [
    "[cd(folder='a')]", "cd(folder='a')", "```[ls()]```", "[ls('x', a=True)]", "[echo(content=grep(pattern='a'))]",
    "[echo(content={'a': {'b': 1}})]", "[echo(content={'a': {}})]", "[echo(content={})]", "[f(a=[{}])]", "[a.b(c=1)]",
    "[f(**{'a': 1})]", "[f(a=1j, b=b'x', c=-1.5)]", "[f(a=2 ** 0.5)]", "[f(a=x)]", "[f(a=g())]", "[f(a=x[0])]", "[]",
    "no call", "[1]", "[f(a={'it\\'s': 1})]", "[f(a={1: {'b': 2}})]", "[f()(a=1)]", "[f(a=1e999)]",
]  # fmt: skip


def test_steps_are_read() -> None:
    """By hand, since the official decoder may not be installed."""
    assert read_step("[cd(folder='a'), g(x=[1, {'k': None}])]") == ["cd(folder='a')", "g(x=[1, {'k': None}])"]
    assert read_step("f(a=g(b=1), c={'d': 2})") == ["f(a=g(b=1), c={'d': 2})"]
    assert read_step([{"f": '{"a": 1, "b": "x"}'}, {"g": "{}"}]) == ["f(a=1,b='x')", "g()"]
    for none in ("Done.", "[]", "f(a={})", None, 3, [], [{}], ["f"], [{"f": "{"}], [{"f": "[1]"}], "9" * 5000):
        assert read_step(none) == []
    assert read_step("f()", function_calling=True) == read_step([{"f": "{}"}], function_calling=False) == []


def test_steps_are_read_as_officially() -> None:
    """The text of the calls, and no call where the official decoder fails."""
    models = package().models
    for text in STEPS:
        try:
            expected = models.default_decode_execute_prompting(text)
        except Exception:
            expected = []
        assert read_step(text) == expected, text
    for answer in ([{"f": '{"a": [1, "x"]}'}, {"g": "{}"}], {"f": {"a": 1}}, [{"f": "[]"}], [{"f": "{"}], ["f"], "f()"):
        try:
            expected = models.convert_to_function_call(answer)
        except Exception:
            expected = []
        assert read_step(answer, function_calling=True) == expected, answer


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_results_are_those_of_the_official_executor() -> None:
    """Values, errors, and strings with a name before a parenthesis, on one case after the other."""
    backends = package().backends
    calls = [
        "ls()", "ls(a=True)", "pwd()", "cd(folder='document')", "cd('nowhere')", "touch(file_name='a')", "ls(b=1)",
        "echo(content='see cd (x) and  (y) or f (z)')", "echo(content=ls(a=True))", "echo(content=[1, {'a': (2,)}])",
        "nothing(a=1)", "GorillaFileSystem.ls()", "exit()", "os.kill(pid=1)", "echo(content=inf)", "f(", "", "  ls()",
        "echo(content=-1.5)", "echo(content=1j)", "echo(content='\\ud800')", "echo(None='x')", "3(a=1)",
        "echo(content=undefined(a=ls()))", "echo(content=ls)", "tail(file_name='final_report.pdf', lines='x')",
        "echo(content=-inf)", "add(a=1, b=2)", "mkdir(dir_name='sub')", "cp(source='final_report.pdf')",
    ]  # fmt: skip
    case = cases("multi_turn_base")["multi_turn_base_0"]
    expected, _ = backends.execute_multi_turn_func_call(
        calls, dict(case.initial_config), list(case.involved_classes), "ttpa", case.case_id
    )
    found = execute(case.backends, [calls])
    assert found is not None
    assert list(zip(calls, found, strict=True)) == list(zip(calls, expected, strict=True))


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


def test_hostile_answers_run_nothing(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    case = cases("multi_turn_base")["multi_turn_base_0"]
    began = time.monotonic()
    for answer in HOSTILE:
        answer = answer.replace("{0}", str(sentinel))
        assert not case.judge([[answer]] * len(case.truth)).valid
        dialogue = Conversation(case, prompt="official")
        for _ in range(2):
            dialogue.take(Candidate(sample_id=case.case_id, index=0, text=answer))
    for answer in INTERFACE:
        answer = json.loads(json.dumps(answer).replace("{0}", str(sentinel)))
        assert not case.judge([[answer]] * len(case.truth)).valid
    assert not sentinel.exists()
    assert time.monotonic() - began < 60


def test_private_methods_are_not_called() -> None:
    case = cases("multi_turn_base")["multi_turn_base_0"]
    private = "ttpa_multi_turn_base_0_GorillaFileSystem_instance._load_scenario({'root': {'x': {'contents': {}}}})"
    results, untouched = execute(case.backends, [[private, "ls()"]]), execute(case.backends, [["ls()"]])
    assert results is not None and untouched is not None
    assert "has no attribute '_load_scenario'" in results[0] and results[1:] == untouched


def test_calls_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """For time, for memory, and the next case is judged as ever."""
    monkeypatch.setattr(runner, "SECONDS", 0.5)
    case = next(case for case in cases("multi_turn_base").values() if "MathAPI" in case.involved_classes)
    right = [[written(turn)] if turn else [] for turn in truth(case)]
    for call in ("power(base=7, exponent=99999999999)", "square_root(number=2, precision=99999999)"):
        began = time.monotonic()
        ended = case.judge([[f"[{call}]"], *right[1:]])
        assert ended.error_type == "multi_turn:execution_limit" and ended.six_error == "parameter_value"
        assert time.monotonic() - began < 10
        assert execute(case.backends, [[call]]) is None
        dialogue = Conversation(case, prompt="official")
        dialogue.take(Candidate(sample_id=case.case_id, index=0, text=f"[{call}]"))
        assert dialogue.sample() is None and dialogue.row()["error_type"] == "multi_turn:execution_limit"
        assert case.judge(right).valid


def test_results_that_are_too_long_are_not_handed_back() -> None:
    case = cases("multi_turn_base")["multi_turn_base_0"]
    text = f"echo(content='{'a' * 1_000_000}')"
    assert execute(case.backends, [[text]]) and execute(case.backends, [[text] * 11]) is None


def test_question_that_cannot_be_loaded() -> None:
    """The data's fault is an error, unlike the model's."""
    case = cases("multi_turn_base")["multi_turn_base_0"].model_copy(
        update={"initial_config": {"GorillaFileSystem": {"root": {}}}}
    )
    with pytest.raises(DataError, match="multi_turn_base_0: BFCL's backends cannot be run .IndexError"):
        case.judge([[] for _ in case.truth])


def test_folder_in_itself_is_not_the_expected_state() -> None:
    """The official checker stops with an exception: what it compares never ends."""
    case = cases("multi_turn_base")["multi_turn_base_0"]
    right = [[written(turn)] if turn else [] for turn in truth(case)]
    right[0].append("[mkdir(dir_name='x'), cp(source='x', destination='x')]")
    assert judged(case, right) == "multi_turn:instance_state_mismatch"


def test_process_that_was_ended_is_started_again() -> None:
    case = cases("multi_turn_base")["multi_turn_base_0"]
    assert execute(case.backends, [["ls()"]])
    for process in runner._PROCESSES.values():
        process.kill()
        process.wait()
    assert execute(case.backends, [["ls()"]])


# --- conversations ---------------------------------------------------------------------------------------------------


def plain(result: Any) -> Any:
    """A result with the arguments of calls as objects: JSON has several texts for one."""
    if isinstance(result, list):
        return [plain(one) for one in result]
    return {name: json.loads(text) for name, text in result.items()} if isinstance(result, dict) else result


def check_same_conversation(case: MultiTurnCase, script: list[list[Call] | str], calling: bool) -> dict[str, Any]:
    """The official loop and ours ask for the same, with the same messages and tools, and end with the same result."""
    at = iter(range(10_000))

    def answer(number: int) -> list[Call] | str:
        return script[number] if number < len(script) else "Done."

    def policy(messages: Any) -> Any:
        said = answer(next(at))
        return said if isinstance(said, str) else called(said) if calling else written(said)

    theirs, result = conversation(case.case_id, policy, function_calling=calling)
    ours, number = Conversation(case, prompt="training" if calling else "official"), 0
    while (sample := ours.sample()) is not None:
        messages, tools = theirs[number]
        shown = [
            {"role": one.role, "content": called([(c.name, dict(c.arguments)) for c in one.calls]) or one.content}
            for one in sample.messages
        ]
        assert shown == [{"role": one["role"], "content": one["content"]} for one in messages], case.case_id
        assert [tool.name for tool in sample.tools] == tools
        said = answer(number)
        calls = () if isinstance(said, str) else tuple(ToolCall(name=name, arguments=given) for name, given in said)
        text = said if isinstance(said, str) else written(said)
        ours.take(Candidate(sample_id=case.case_id, index=0, text=text, token_ids=(1, 2), calls=calls))
        number += 1
    row = ours.row()
    assert number == len(theirs) and row["tokens"] == 2 * number
    assert plain(row["result"]) == plain(result)
    assert row["error_type"] == verdict(case.case_id, result, function_calling=calling)
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


def test_too_many_steps_break_a_conversation_off() -> None:
    """The limit is looked at when a step has been run: officially, too."""
    case = cases("multi_turn_base")["multi_turn_base_0"]
    row = check_same_conversation(case, [[("ls", {})]] * 100, True)
    assert row["error_type"] == "multi_turn:force_terminated"
    assert len(row["result"][0]) == official.texts().MAXIMUM_STEP_LIMIT + 1


# --- files and the evaluation ----------------------------------------------------------------------------------------


def copied(folder: Path, name: str, rows: int, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The first questions of a category with their answers, the last of them changed."""
    source = official.data_folder()
    (folder / "possible_answer").mkdir(parents=True)

    def read(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:rows]]

    file = f"BFCL_v4_{name}.json"
    questions, answers = read(source / file), read(source / "possible_answer" / file)
    change(questions[-1], answers[-1])
    for path, some in ((folder / file, questions), (folder / "possible_answer" / file, answers)):
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return folder


WRONG: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "no id": (lambda row, answer: row.pop("id"), ":2: None is no id"),
    "classes": (lambda row, answer: row.update(involved_classes=["WebSearchAPI"]), ":2: involved_classes.0="),
    "no answer": (lambda row, answer: answer.update(id="x"), ":2: no accepted answers for multi_turn_miss_func_1"),
    "truth": (lambda row, answer: answer.update(ground_truth=["ls()"]), "miss_func.json:2: ground_truth"),
    "turns": (lambda row, answer: row["question"].pop(), ":2: ground_truth="),
    "message": (lambda row, answer: row["question"][0].append("x"), ":2: question.0.1="),
    "missed": (lambda row, answer: row.update(missed_function={"1": ["nothing"]}), ":2: missed_function="),
    "twice": (lambda row, answer: row.update(id="multi_turn_miss_func_0"), ":2: multi_turn_miss_func_0 is no id, or is"),
    "answer twice": (lambda row, answer: answer.update(id="multi_turn_miss_func_0"), "miss_func.json:2: multi_turn_"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows(tmp_path: Path, name: str) -> None:
    package()
    change, message = WRONG[name]
    folder = copied(tmp_path / "data", "multi_turn_miss_func", 2, change)
    with pytest.raises(DataError) as told:
        read_multi_turn(folder, CATEGORIES["multi_turn_miss_func"])
    assert message in str(told.value)


def test_an_answer_without_a_question(tmp_path: Path) -> None:
    package()
    folder = copied(tmp_path / "data", "multi_turn_miss_func", 2, lambda row, answer: None)
    questions = folder / "BFCL_v4_multi_turn_miss_func.json"
    questions.write_text(questions.read_text(encoding="utf-8").splitlines()[0])
    with pytest.raises(DataError, match="json: no question multi_turn_miss_func_1,"):
        read_multi_turn(folder, CATEGORIES["multi_turn_miss_func"])


def test_function_documents_of_the_data_folder_come_first(tmp_path: Path) -> None:
    package()
    folder = copied(tmp_path / "data", "multi_turn_base", 1, lambda row, answer: None)
    (folder / "multi_turn_func_doc").mkdir()
    document = {"name": "only", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
    (folder / "multi_turn_func_doc" / "gorilla_file_system.json").write_text(json.dumps(document))
    (case,) = read_multi_turn(folder, CATEGORIES["multi_turn_base"]).values()
    names = [one["name"] for one in case.documents]
    assert "only" in names and "post_tweet" in names and "ls" not in names


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    with pytest.raises(ConfigError, match="pip install --no-deps bfcl-eval"):
        read_multi_turn(tmp_path, CATEGORIES["multi_turn_base"])


@pytest.mark.parametrize("prompt", ["training", "official"])
def test_evaluation(tmp_path: Path, prompt: str) -> None:
    """The option `eval=bfcl` on two questions: what is asked first, the row, the summary, and the official layout."""
    package()
    folder = copied(tmp_path / "data", "multi_turn_miss_param", 2, lambda row, answer: None)
    categories = ["multi_turn_miss_param"]
    evaluation = BFCL(path=str(folder), max_new_tokens=9, categories=categories, prompt=prompt, limit=None, model=None)
    evaluation.check()
    assert evaluation.identity()["path"]
    samples = evaluation.samples(tmp_path)
    assert [sample.id for sample in samples] == ["multi_turn_miss_param_0", "multi_turn_miss_param_1"]
    assert all(sample.messages for sample in samples)
    rows = []
    for sample in samples:
        dialogue = evaluation.dialogue(sample)
        assert dialogue is not None and dialogue.sample() == sample
        while dialogue.sample() is not None:
            dialogue.take(Candidate(sample_id=sample.id, index=0, text="No."))
        rows.append(dialogue.row())
    summary = evaluation.summarise(rows)
    assert summary["accuracy"]["value"] == 0 and summary["categories"]["multi_turn_miss_param"]["n"] == 2
    evaluation.write(tmp_path, rows)
    (written_file,) = tmp_path.glob("result/*/multi_turn/BFCL_v4_multi_turn_miss_param_result.json")
    result = [json.loads(line)["result"] for line in written_file.read_text(encoding="utf-8").splitlines()]
    assert result == [row["result"] for row in rows]
