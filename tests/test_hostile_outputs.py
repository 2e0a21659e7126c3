"""Random and mutated outputs through every syntax, scorer, schema check and reading of BFCL: nothing raises, takes over
a second or is evaluated.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explore.scorers.test_score import GOLD, OTHER, SCORERS, TOOLS, sample, score
from ttpa.benchmarks.bfcl.cases import Case, read_cases
from ttpa.benchmarks.bfcl.multi_turn import read_step
from ttpa.benchmarks.bfcl.official import reply
from ttpa.benchmarks.toolbench.judge import CHOICES, Question, read_verdict
from ttpa.calls.schema import check_call
from ttpa.calls.six_errors import explain
from ttpa.calls.syntaxes import SYNTAXES, OpenCall, ParseError, Syntax, token_cuts
from ttpa.data.toolace import parse_split
from ttpa.records import Candidate, ToolCall

DATA = Path(__file__).resolve().parent / "data" / "bfcl"
RULES = ("simple_python", "parallel_multiple", "irrelevance", "simple_java", "simple_javascript")
CODE = [
    "__import__('os').system('touch evaluated')", "open('evaluated', 'w')", "(lambda: open('evaluated', 'w'))()",
    "f'{open(\"evaluated\", \"w\")}'", "[open(x, 'w') for x in ['evaluated']]", "a[open('evaluated', 'w')]", "9**9**9",
    "'x' * 10**9", "1 << 10**9", "new Date()", "() => open('evaluated')", "new ArrayList<>(Arrays.asList(1, 2))",
]  # fmt: skip
PIECES = [
    *CODE, *"[](){}<>\"'\\,:;=*%`#@\n\0 -+.", "'''", '"""', "```json\n", "f(", "days=", "**{", '{"name": ', '"city": ',
    '"arguments": ', '"parameters": ', '"function": ', "3", "1e999", "NaN", "-Infinity", "9" * 5000, "0x", "yield ",
    "True", "\\u", "\\ud800", "\ud800", "\u2028", "\ufeff", "\U0001f600", "e\u0301", "\u212a\u0661", "%s" * 9, "\\N{",
    "<think>", "</think>", "<THINK>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<|python_tag|>",
    "<|eom_id|>", "${x}", "/*", "//",
]  # fmt: skip
VALUES: list[Any] = [
    "Rome",
    "Rome",
    3,
    None,
    True,
    -0.5,
    "a\"b'\n",
    [],
    {},
    [[1, {"city": "x"}]],
    {"": {"days": 10**30}},
]


def outputs(count: int, seed: int) -> Iterator[str]:
    """Calls as they should be written, then cut, repeated, turned and sprinkled with pieces; or pieces alone."""
    draw = random.Random(seed)
    for _ in range(count):
        calls = []
        for _ in range(draw.randrange(4)):
            keys = draw.sample(["city", "days", "unit", "", "a b"], draw.randrange(4))
            name = draw.choice(["f", "g", "now", "f.g", "x"])
            calls.append(ToolCall(name=name, arguments={key: draw.choice(VALUES) for key in keys}))
        text = draw.choice([*SYNTAXES.values(), SYNTAXES["python"]]).print(calls)
        if draw.random() < 0.2:
            rows = "\n".join(json.dumps({"name": call.name, "parameters": call.arguments}) for call in calls)
            text = f"<think>{text}</think>\n<tool_call>\n{rows}\n</tool_call>"
        text = text.replace('"Rome"', draw.choice(CODE if draw.random() < 0.5 else PIECES))
        for _ in range(draw.choice([0, 1, 2, 4, 20])):
            start, end = sorted(draw.randrange(len(text) + 1) for _ in "ab")
            part, piece, many = text[start:end], draw.choice(PIECES), draw.choice([2, 2, 70, 70, 70, 3000])
            new = draw.choice([piece, piece, part + piece, part[::-1], "", part * 2, piece * many])
            text = (text[:start] + new + text[end:])[:50_000]
        yield text


def watch(syntax: Syntax, text: str) -> None:
    call, size = OpenCall(syntax), len(text) // 20 + 1
    for at in range(0, len(text), size):
        call.push(text[at : at + size])


def use(text: str, cases: list[Case]) -> Iterator[None]:
    """Does all that is done with an output, and stops after each thing."""
    gold = sample(GOLD, OTHER)
    for name, syntax in SYNTAXES.items():
        yield watch(syntax, text)
        token_cuts([text[:9], text[9:]], syntax)
        calls = syntax.parse(text)
        yield
        made = Candidate(sample_id="s", index=0, text=text, calls=None if isinstance(calls, ParseError) else calls)
        assert explain(gold, made) and explain(sample(text="Done."), made)
        for call in made.calls or ():
            check_call(call, TOOLS)
        for scorer in SCORERS.values() if name != "python_compact" else ():
            yield
            score(scorer, gold, made, step=30)
    yield
    parse_split(text)
    read_verdict(text, Question("?", "status", CHOICES["status"]))
    for case in cases:
        yield
        case.judge(text)
    for result in (reply(text), [{"f": text}], [{text: text}], [text], {"f": text}):
        yield
        cases[0].judge(result)
        read_step(result, function_calling=None)


@pytest.mark.parametrize(("count", "seed"), [(500, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)])
def test_hostile_outputs(count: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tree_sitter")
    monkeypatch.chdir(tmp_path)
    cases = [next(case for case in read_cases(DATA).values() if case.category.name == name) for name in RULES]
    list(use("[f()]", cases))  # imports what it needs
    done, slow, watching = list[str](), list[tuple[float, str]](), True
    watched = {"exec", "import", "open", "os.system", "subprocess.Popen", "socket.connect"}
    sys.addaudithook(lambda event, given: done.append(f"{event} {given}") if watching and event in watched else None)
    for text in outputs(count, seed):
        started = time.process_time()
        for _ in use(text, cases):
            if (took := time.process_time() - started) > 1:
                slow.append((took, text))
            started = time.process_time()
    watching = False
    assert not done and not slow and not list(tmp_path.iterdir())
