"""What the judge is asked, from `templates/`: is it solved, can it be solved, which answer is better.

The criteria are those of ToolEval (GitHub `OpenBMB/ToolBench`) in words of our own; final answer and calls are shown
at once, so numbers are not exactly comparable with published ones.
"""

import re
from importlib import resources
from typing import Any, NamedTuple

from ttpa.benchmarks.toolbench.answers import ToolBenchAnswer
from ttpa.io import dumps

MAX_CHARS = {"query": 6000, "final": 6000, "step": 800, "tools": 12_000}  # a model wrote most of it
MAX_STEPS = 30
CHOICES = {
    "status": ("solved", "unsure", "unsolved"),
    "task": ("solvable", "unsure", "unsolvable"),
    "better": ("a", "b", "tie"),
}

_MARKER = re.compile(r"<\s*(/?)\s*data\s*>", re.IGNORECASE)


class Question(NamedTuple):
    """What the judge is asked: a prompt, the field of its JSON reply that counts, and the values it may have."""

    prompt: str
    field: str
    choices: tuple[str, ...]


def question(field: str, *answers: ToolBenchAnswer) -> Question:
    """The question for the `status` of an answer, for whether its `task` can be solved, or for the `better` of two."""
    template = (resources.files("ttpa.benchmarks.toolbench") / "templates" / f"{field}.txt").read_text("utf-8")
    tools = "\n".join(_json(tool.to_json()) for tool in answers[0].tools) or "none listed"
    parts = {"query": quoted(answers[0].query, "query"), "tools": quoted(tools, "tools")}
    for name, answer in zip("ab", answers, strict=False):
        parts |= {f"steps_{name}": _steps(answer), f"final_{name}": quoted(answer.final_answer, "final")}
    return Question(template.removesuffix("\n").format(**parts), field, CHOICES[field])


def quoted(text: str, kind: str) -> str:
    """The text as it may stand between the markers <data> and </data>: without any of its own, cut at `MAX_CHARS`."""
    # UTF-8 has no half of a surrogate pair, which a model may write.
    text = _MARKER.sub(r"<\1data_>", text).encode("utf-8", "replace").decode()
    longest = MAX_CHARS[kind]
    return text if len(text) <= longest else f"{text[:longest]} [{len(text) - longest} characters cut]"


def _steps(answer: ToolBenchAnswer) -> str:
    lines = [
        quoted(f"{number}. {call.name}({_json(call.arguments)}) -> {response}", "step")
        for number, (call, response) in enumerate(answer.steps[:MAX_STEPS], 1)
    ]
    if (more := len(answer.steps) - MAX_STEPS) > 0:
        lines.append(f"[{more} more calls]")
    return "\n".join(lines) or "none"


def _json(value: Any) -> str:
    try:
        return value if isinstance(value, str) else dumps(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
