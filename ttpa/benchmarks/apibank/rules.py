"""Whether a call is right by API-Bank's rule, as far as that can be told without running the APIs, or by ToolRL's.

Official (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/`): the predicted call is executed on a fresh database, and
the API compares input, output and exception with the recorded ones. Nothing is executed here. What is computed:

* the first call is judged, further ones are ignored (`call_count` in the six errors shows them where it is wrong);
* no call: NO_API_CALL; text that is no call: FAILED_PARSE_API_CALL; another name: API_NAME_MISMATCH;
* a parameter that neither the document nor the recorded call has, or a value that is no value of its declared type
  (a number without digits, a list that is none): INVALID_INPUT_PARAMETER;
* a required argument of the recorded call that is missing: MISS_INPUT_ARGUMENT;
* a date that does not follow the documented format: HAS_EXCEPTION;
* otherwise the inputs are compared in the form of `ttpa.benchmarks.apibank.values`; free text (agenda, meeting topic,
  reminder content) is equal when the Jaccard index of its words is above 0.5. A difference is INPUT_MISMATCH. Equal
  inputs count as right: the same API on the same fresh database gives the same output;
* `GetToday` is right whatever it returns.

What cannot be computed: OUTPUT_MISMATCH, KEY_ERROR, and exceptions that come from the database. APIs in `OUTPUT_ONLY`
compare the output and not the input, so a call with other words may be right. Their samples are "not decidable" and
counted apart: equal inputs are right, unequal ones neither right nor wrong. So are samples whose recorded call breaks
the document of its own API: TimedSwitch and CancelTimedSwitch were recorded with `device_id` where the API takes
`name`, and some published BookHotel instances hold a mangled number (`adult_count` is "2', child_count="). No sensible
call can pass there.

Where this is milder than the reference: each of its APIs folds differently, some keep the case of a place or of a
subject, some split words at single blanks; here all fold alike. `equal` in a row says that nothing had to be folded.
Where it is stricter: some APIs do not compare every input (ModifyAgenda not the token, DeleteMeeting none but by its
effect). The reference can never accept a successful DeleteMeeting (it looks for an input `time` that there is not);
here equal inputs are right.

ToolRL (GitHub `qiancheng0/ToolRL`): right if any predicted call has the same name and equal arguments. Both sides are
typed first, since published arguments are text and our tools have types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttpa.benchmarks.apibank.values import (
    compared,
    date,
    date_format,
    jaccard,
    kind_of,
    readable,
    typed,
    words,
)
from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import read_call, show, six_errors
from ttpa.records import Candidate, Sample, ToolCall

RULES = ("official", "toolrl")
LABELS = (
    "NO_API_CALL",
    "FAILED_PARSE_API_CALL",
    "API_NAME_MISMATCH",
    "INVALID_INPUT_PARAMETER",
    "MISS_INPUT_ARGUMENT",
    "HAS_EXCEPTION",
    "INPUT_MISMATCH",
)
"""The official labels that can be told apart here, in the order in which they are looked for."""

OUTPUT_ONLY = frozenset(
    {"Dictionary", "EmergencyKnowledge", "PlayMusic", "SearchEngine", "SymptomSearch", "ToolSearcher", "Wiki"}
)
"""APIs that look something up by words: the official check compares what they return."""

_DID = ("Add", "Delete", "Modify", "Query")
FREE_TEXT = {
    f"{did}{thing}": key
    for thing, key in (("Agenda", "content"), ("Reminder", "content"), ("Meeting", "meeting_topic"))
    for did in _DID
}
"""API -> its parameter that need not be met word for word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a rule says of an answer. `right` is None where it cannot be told; `label` is the official error or "".

    Example:
        >>> Verdict(right=False, label="NO_API_CALL", text="no call was made").label
        'NO_API_CALL'
    """

    right: bool | None
    label: str = ""
    text: str = ""


def doubt_of(sample: Sample) -> str:
    """Why the official verdict on this sample cannot be told: "output_only", "recorded_call", or "" where it can."""
    gold = sample.target[0]
    if gold.name in OUTPUT_ONLY:
        return "output_only"
    spec = sample.tool(gold.name)
    if spec is None:
        return ""
    broken = any(
        key not in spec.properties or not readable(value, spec.properties[key]) for key, value in gold.arguments.items()
    )
    return "recorded_call" if broken else ""


def official(sample: Sample, calls: Sequence[ToolCall] | None) -> Verdict:
    """The official verdict as far as it can be told; see the module header.

    Args:
        sample: its target is the recorded call.
        calls: the parsed calls, None when the text did not parse.
    """
    gold = sample.target[0]
    if calls is None:
        return Verdict(right=False, label="FAILED_PARSE_API_CALL", text="the answer does not parse as calls")
    if not calls:
        return Verdict(right=False, label="NO_API_CALL", text="no call is made")
    call = read_call(calls[0])
    if call is None:
        return Verdict(right=False, label="FAILED_PARSE_API_CALL", text="the arguments are no object")
    if call.name != gold.name:
        text = f"calls {show(call.name)}, expected {show(gold.name)}"
        return Verdict(right=False, label="API_NAME_MISMATCH", text=text)
    doubt = doubt_of(sample)
    if doubt == "recorded_call":
        return Verdict(right=None, text="the recorded call does not follow the document of its API")
    faults = sorted(_faults(sample, gold, call), key=lambda fault: LABELS.index(fault[0]))
    if not faults or (gold.name == "GetToday" and faults[0][0] == "INPUT_MISMATCH"):
        return Verdict(right=True)
    label, text = faults[0]
    if doubt == "output_only" and label == "INPUT_MISMATCH":
        return Verdict(right=None, text=f"{text}; only the output would tell")
    return Verdict(right=False, label=label, text=text)


def _faults(sample: Sample, gold: ToolCall, call: ToolCall) -> Iterator[tuple[str, str]]:
    """Yields (official label, sentence) for everything wrong with the arguments of a call of the right name."""
    spec = sample.tool(gold.name)
    for key in gold.arguments:
        if key not in call.arguments:
            needed = spec is None or key in spec.required
            yield "MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH", f"{show(key)} is missing"
    for key, value in call.arguments.items():
        documented = spec is not None and key in spec.properties
        if key not in gold.arguments:
            label = "INPUT_MISMATCH" if documented else "INVALID_INPUT_PARAMETER"
            yield label, f"{show(key)} is given, which the recorded call does not"
            continue
        wanted = gold.arguments[key]
        schema = spec.properties[key] if documented and spec is not None else kind_of(wanted)
        if not readable(value, schema) and readable(wanted, schema):
            yield "INVALID_INPUT_PARAMETER", f"{show(key)}={show(value)} is not of the type {schema['type']}"
        elif FREE_TEXT.get(gold.name) == key:
            if jaccard(words(value), words(wanted)) <= 0.5:
                yield "INPUT_MISMATCH", f"{show(key)}={show(value)} is too far from {show(wanted)}"
        elif not values_equal(compared(key, value, schema), compared(key, wanted, schema)):
            pattern = date_format(schema)
            broken = pattern and date(wanted, pattern) is not None and date(value, pattern) is None
            text = f"{show(key)}={show(value)}, expected {show(wanted)}"
            yield "HAS_EXCEPTION" if broken else "INPUT_MISMATCH", text


def typed_call(sample: Sample, call: ToolCall) -> ToolCall:
    """The call with text turned into the values that it stands for, by its tool's document or the recorded call."""
    spec, gold = sample.tool(call.name), sample.target[0]
    if spec is not None:
        schemas: Mapping[str, Any] = spec.properties
    else:
        schemas = {key: kind_of(value) for key, value in gold.arguments.items()} if call.name == gold.name else {}
    values = {key: typed(value, schemas.get(key)) for key, value in call.arguments.items()}
    return ToolCall(name=call.name, arguments=values)


def toolrl(sample: Sample, calls: Sequence[ToolCall] | None) -> Verdict:
    """ToolRL's verdict: any predicted call with the name and the arguments of the recorded one."""
    gold = typed_call(sample, sample.target[0])
    for made in calls or ():
        call = read_call(made)
        if (
            call is not None
            and call.name == gold.name
            and values_equal(typed_call(sample, call).arguments, gold.arguments)
        ):
            return Verdict(right=True)
    return Verdict(right=False, text="no call equals the recorded one")


def _equal(sample: Sample, calls: Sequence[ToolCall] | None) -> bool:
    """Whether the first call has the name and, typed and otherwise as they are, the arguments of the recorded one."""
    return toolrl(sample, (calls or ())[:1]).right is True


def judge(sample: Sample, candidate: Candidate, rule: str) -> dict[str, Any]:
    """One row. Beside the usual keys:

    `level`, `api` (of the recorded call), `right` (True, False, or None where the rule cannot tell), `equal` (right
    without any folding), `doubt` (why this sample is not decidable, "" where it is), `label` (the official error),
    `why`, and `calls` (how many were made). `exact` is true only where `right` is. A right answer has no `errors`,
    whatever its words.
    """
    calls = candidate.calls
    verdict = official(sample, calls) if rule == "official" else toolrl(sample, calls)
    made = None if calls is None else [_typed_or_raw(sample, call) for call in calls]
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": sample.band,
        "tags": list(sample.tags),
        "exact": verdict.right is True,
        "errors": [] if verdict.right else list(six_errors(sample, made)),
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
        "level": next(int(tag[-1]) for tag in sample.tags if tag.startswith("level-")),
        "api": sample.target[0].name,
        "right": verdict.right,
        "equal": verdict.right is True and (rule != "official" or _equal(sample, calls)),
        "doubt": doubt_of(sample) if rule == "official" else "",
        "label": verdict.label,
        "why": verdict.text,
        "calls": len(calls or ()),
    }


def _typed_or_raw(sample: Sample, call: ToolCall) -> ToolCall:
    """The typed call, or the call as it is where its arguments are no object (a format error)."""
    found = read_call(call)
    return call if found is None else typed_call(sample, found)
