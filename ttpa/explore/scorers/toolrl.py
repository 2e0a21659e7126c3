"""The reward of ToolRL (arXiv 2504.13958), after the released `verl/utils/reward_score/rlla.py`.

    R = R_format + R_correct (+ R_length)                          at least -3 and at most 4 by default
    R_format   1 if the whole text has the form that the target has, else 0
    R_correct  0 if the target has no call; -3 if the calls cannot be read; 3 if they equal the target's; else
               6 S / S_max - 3,  S_max = 1 + sum over target calls of (1 + number of its parameters)
    S          = name + sum over target calls of (param + value) of the call matched with it, of the same name
    name       = J(names of the target's calls, names of the calls),  J = |intersection| / |union| of multisets
    param      = J(parameter names of the two calls)
    value      = number of the target call's parameters whose value is equal

Its variants, and what differs from the release: docs/exploration.md.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ttpa.calls.schema import released_equal, values_equal
from ttpa.calls.six_errors import best_matching, explain, is_exact, matched, read_calls
from ttpa.errors import ConfigError
from ttpa.explore.scorers.slm_json import NOT_ALONE, bare_calls, check_syntax
from ttpa.options import option
from ttpa.records import Candidate, Sample, Score, ToolCall

CallRow = Mapping[str, Any]
"""A call as the release has it: {"name", "parameters"}, and whatever else the line holds."""

_PARTS = {"intermediate": ("name", "call"), "coarse": ("call",)}  # the others have name, param and value
_CORNERS = (0, 29, 30, 75, 150)  # steps between which every schedule is a straight line
_CALL_TAGS, _REPLY_TAGS = ("<tool_call>", "</tool_call>"), ("<response>", "</response>")


@option
class ToolRL:
    """The reward; see the module header for the equation."""

    format: Literal["rlla", "plain"]
    syntax: str
    matching: Literal["greedy", "optimal"]
    similarity: Literal["finegrained", "refined", "intermediate", "coarse"]
    correct_max: Literal[3, 1]
    schedule: Literal["none", "max1step30max3", "linear"]
    length: Literal["none", "fixed", "scheduled"]
    value_equality: Literal["released", "strict"]

    def __post_init__(self) -> None:
        check_syntax(self.syntax)
        if self.length != "none" and self.format == "plain":
            problem = "counts words of thought, which format=plain has none of"
            raise ConfigError.at("length", self.length, problem, "Use scorer.length=none or scorer.format=rlla")

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value over all steps."""
        ranges = [self._ranges(step) for step in _CORNERS]
        longest = 0.0 if self.length == "none" else 1.0
        least = min(low + worst for low, _, worst, _ in ranges)
        return least, max(high + best for _, high, _, best in ranges) + longest

    def __call__(self, sample: Sample, candidate: Candidate, *, step: int = 0) -> Score:
        """`detail` holds what is added up (`format`, `correct`, perhaps `length`) and what correctness is made of, in
        [0, 1]: `name`, `param` (mean over the target's calls) and `value` (share of the target's parameters), with
        similarity=intermediate `name` and `call`, with coarse `call`.
        """
        low, high, worst, best = self._ranges(step)
        well_formed, calls, rows = self._read(sample, candidate)
        detail = {"format": high if well_formed else low, "correct": 0.0}
        parts: dict[str, float] = {}
        if sample.target:
            score, most, parts = self._compare([_row(call) for call in sample.target], rows)
            detail["correct"] = (best - worst) * score / most + worst
        if self.length != "none":
            detail["length"] = self._length(candidate.text, step)
        return Score(
            value=sum(detail.values()),
            exact=is_exact(sample, calls),
            detail=detail | parts,
            explanation=self._explain(sample, candidate, calls, well_formed),
        )

    def _ranges(self, step: int) -> tuple[float, float, float, float]:
        """What a wrong and a right format are worth, and the worst and the best calls, at a step."""
        low, high, best = 0.0, 1.0, float(self.correct_max)
        if self.schedule == "max1step30max3":
            return (low, high, -best / 3, best / 3) if step < 30 else (low, high / 2, -best, best)
        if self.schedule == "linear":
            done = min(step, 150)
            best = (best - 2) * done / 150 + 2
            return min(-2 + 2 * done / 150, -1.0), 2 - done / 150, -best, best
        return low, high, -best, best

    def _read(
        self, sample: Sample, candidate: Candidate
    ) -> tuple[bool, tuple[ToolCall, ...] | None, list[CallRow] | None]:
        """Whether the format is right; the calls, None when they cannot be read; and the calls as rows."""
        if self.format == "rlla":
            rows = _block(candidate.text.strip())
            calls = tuple(ToolCall(name=row["name"], arguments=row["parameters"]) for row in rows or ())
            form = _has_form(candidate.text.strip(), bool(sample.target), bool(sample.target_text))
            return form, None if rows is None else calls, rows
        bare, made = bare_calls(candidate, self.syntax), read_calls(candidate.calls)
        well_formed = bare is not None and bool(bare) == bool(sample.target)
        return well_formed, candidate.calls, None if made is None else [_row(call) for call in made]

    def _compare(self, gold: list[CallRow], rows: list[CallRow] | None) -> tuple[float, float, dict[str, float]]:
        """S, S_max, and what S is made of."""
        equal = float(bool(rows) and self._equal(gold, rows))
        if not rows or equal or self.similarity == "coarse":
            return equal, 1.0, dict.fromkeys(_PARTS.get(self.similarity, ("name", "param", "value")), equal)
        name = score = self._overlap([row["name"] for row in gold], [row["name"] for row in rows])
        matching = best_matching if self.matching == "optimal" else _greedy
        found = matched(gold, rows, self._likeness, lambda parts: parts[0] + parts[1], matching)
        for param, value in found:
            score += param + value
        param, value = (sum(parts[at] for parts in found) / len(gold) for at in (0, 1))
        if self.similarity == "intermediate":
            return score, 1.0 + len(gold), {"name": name, "call": value}
        wanted = sum(len(row["parameters"]) for row in gold)
        # Where the target gives no parameter, there is no value to get wrong but by giving one.
        value = sum(value for _, value in found) / wanted if wanted else param
        return score, 1.0 + len(gold) + wanted, {"name": name, "param": param, "value": value}

    def _likeness(self, gold: CallRow, row: CallRow) -> tuple[float, float]:
        """`param` and `value` of two calls, 0 if their names differ; of whole calls 0, and 1 if they are equal."""
        if row["name"] != gold["name"]:
            return 0.0, 0.0
        if self.similarity == "intermediate":
            return 0.0, float(self._equal(gold, row))
        wanted, given = gold["parameters"], row["parameters"]
        equal = sum(key in given and self._equal(wanted[key], given[key]) for key in wanted)
        return self._overlap(list(wanted), list(given)), float(equal)

    def _overlap(self, left: Sequence[str], right: Sequence[str]) -> float:
        """J of two lists of names."""
        if left == right:
            return 1.0
        if self.similarity == "refined":
            return 0.0
        shared = (Counter(left) & Counter(right)).total()
        return shared / (len(left) + len(right) - shared)

    def _equal(self, gold: Any, made: Any) -> bool:
        return (released_equal if self.value_equality == "released" else values_equal)(gold, made)

    def _length(self, text: str, step: int) -> float:
        if "<think>" not in text or "</think>" not in text:
            return 0.0
        words = len(text.split("<think>")[-1].split("</think>")[0].split())
        wanted = 512 if self.length == "fixed" else (640 - 384) * min(step, 105) / 105 + 384
        return min(round(words / wanted, 2), 1.0)

    def _explain(
        self, sample: Sample, candidate: Candidate, calls: tuple[ToolCall, ...] | None, well_formed: bool
    ) -> str:
        wrong = NOT_ALONE if calls and sample.target else ""
        if self.format == "rlla":
            wrong = "the text has not the target's form"
            error = "the <tool_call> block does not hold one call a line" if calls is None else None
            candidate = replace(candidate, calls=calls, error=error)
        said = explain(sample, candidate)
        return said if well_formed or not wrong else f"{wrong}; {said}"


def _row(call: ToolCall) -> CallRow:
    return {"name": call.name, "parameters": dict(call.arguments)}


def _has_form(text: str, calls: bool, reply: bool) -> bool:
    """Whether a text is thought and then calls, a reply, both or nothing, with the tags of these once each."""
    # Counted first: with several tags the pattern would be tried from each of them to the end of the text.
    tags = _CALL_TAGS * calls + _REPLY_TAGS * reply
    form = "<think>.*?</think>" + r"\n<tool_call>\n.*?\n</tool_call>" * calls + r"\n<response>.*?</response>" * reply
    return all(text.count(tag) == 1 for tag in tags) and re.fullmatch(form, text, re.DOTALL) is not None


def _block(text: str) -> list[CallRow] | None:
    """The lines of the first `<tool_call>` block; none without a tag; None when they cannot all be read."""
    if not any(tag in text for tag in _CALL_TAGS):
        return []
    if not all(tag in text for tag in _CALL_TAGS):
        return None
    block = text.split(_CALL_TAGS[0])[1].split(_CALL_TAGS[1])[0].strip()
    try:
        rows = [_LINE.decode(line) for line in block.split("\n")]
    except (ValueError, RecursionError):  # no JSON, a number of too many digits, nested too deeply
        return None
    fields = [row.get(key) if isinstance(row, dict) else None for row in rows for key in ("name", "parameters")]
    return rows if all(map(isinstance, fields, (str, dict) * len(rows))) else None


def _finite(text: str) -> float:
    """A number of a JSON line; NaN, Infinity and 1e999 are none."""
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


_LINE = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _greedy(worth: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Each row in turn takes the best column left, the first of equals; a column worth 0 is left."""
    pairs, free = list[tuple[int, int]](), list(range(len(worth[0])))
    for row, line in enumerate(worth):
        if free and line[best := max(free, key=line.__getitem__)] > 0:
            free.remove(best)
            pairs.append((row, best))
    return pairs
