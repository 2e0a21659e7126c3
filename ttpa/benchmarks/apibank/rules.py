"""Whether a call is right by API-Bank's rule, as far as that can be told without running the APIs, or by ToolRL's.

Official (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/`): the first predicted call runs on a fresh database, and the
API compares input, output and exception with the recorded ones. Nothing runs here: inputs are compared
(`values.compared`; free text by its words), and equal inputs are right, since the same API on the same database gives
the same output. `GetToday` is right whatever its arguments. `LABELS` are the official errors told apart here; a date of
another format is HAS_EXCEPTION.

What cannot be computed: OUTPUT_MISMATCH, KEY_ERROR, and exceptions of the database. Not decidable are samples of the
APIs in `OUTPUT_ONLY`, where other words may find the same (unequal inputs are neither right nor wrong), and samples
whose recorded call breaks the document of its own API (TimedSwitch and CancelTimedSwitch were recorded with `device_id`
where the API takes `name`; some published BookHotel instances hold a mangled number).

Milder than the reference: its APIs fold text in different ways, here all fold alike (`equal` in a row says that nothing
was folded). Stricter: some APIs do not compare every input. The reference never accepts a successful DeleteMeeting (it
looks for an input `time` that there is not); here equal inputs are right.

ToolRL (GitHub `qiancheng0/ToolRL`): right if any predicted call has the same name and equal arguments, both typed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ttpa.benchmarks.apibank.values import compared, fits, moment, schema_of, similarity, typed
from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import read_call, show, six_errors
from ttpa.records import Candidate, Sample, ToolCall

Rule = Literal["official", "toolrl"]

LABELS = (
    "NO_API_CALL", "FAILED_PARSE_API_CALL", "API_NAME_MISMATCH", "INVALID_INPUT_PARAMETER", "MISS_INPUT_ARGUMENT",
    "HAS_EXCEPTION", "INPUT_MISMATCH",
)  # fmt: skip
"""The official labels that can be told apart here, in the order in which they are looked for."""

OUTPUT_ONLY = frozenset(
    {"Dictionary", "EmergencyKnowledge", "PlayMusic", "SearchEngine", "SymptomSearch", "ToolSearcher", "Wiki"}
)
"""APIs that look something up by words: the official check compares what they return."""

FREE_TEXT = {
    f"{verb}{thing}": key
    for thing, key in (("Agenda", "content"), ("Reminder", "content"), ("Meeting", "meeting_topic"))
    for verb in ("Add", "Delete", "Modify", "Query")
}
"""API -> its parameter that need not be met word for word."""


class Ruling(NamedTuple):
    """What a rule says of an answer: `right` is None where it cannot be told; `label` is the official error or ""."""

    right: bool | None
    label: str = ""
    why: str = ""


def doubt_of(sample: Sample) -> str:
    """Why the official verdict on a sample cannot be told: "output_only", "recorded_call", or "" where it can."""
    gold = sample.target[0]
    if gold.name in OUTPUT_ONLY:
        return "output_only"
    spec = sample.tool(gold.name)
    if spec is None:
        return ""
    known = spec.properties
    broken = any(key not in known or not fits(value, known[key]) for key, value in gold.arguments.items())
    return "recorded_call" if broken else ""


def official(sample: Sample, calls: Sequence[ToolCall] | None) -> Ruling:
    """The official verdict on the parsed calls of an answer (None: the text did not parse)."""
    gold = sample.target[0]
    if calls is None:
        return Ruling(False, "FAILED_PARSE_API_CALL", "the answer does not parse as calls")
    if not calls:
        return Ruling(False, "NO_API_CALL", "no call is made")
    call = read_call(calls[0])
    if call is None:
        return Ruling(False, "FAILED_PARSE_API_CALL", "the arguments are no object")
    if call.name != gold.name:
        return Ruling(False, "API_NAME_MISMATCH", f"calls {show(call.name)}, expected {show(gold.name)}")
    doubt = doubt_of(sample)
    if doubt == "recorded_call":
        return Ruling(None, why="the recorded call does not follow the document of its API")
    label, why = min(_faults(sample, gold, call), key=lambda fault: LABELS.index(fault[0]), default=("", ""))
    if not label or (gold.name == "GetToday" and label == "INPUT_MISMATCH"):
        return Ruling(True)
    if doubt == "output_only" and label == "INPUT_MISMATCH":
        return Ruling(None, why=f"{why}; only the output would tell")
    return Ruling(False, label, why)


def _faults(sample: Sample, gold: ToolCall, call: ToolCall) -> Iterator[tuple[str, str]]:
    """Yields (official label, sentence) for everything wrong with the arguments of a call of the right name."""
    spec = sample.tool(gold.name)
    documented = spec.properties if spec is not None else {}
    for key in gold.arguments:
        if key not in call.arguments:
            needed = spec is None or key in spec.required
            yield "MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH", f"{show(key)} is missing"
    for key, value in call.arguments.items():
        if key not in gold.arguments:
            label = "INPUT_MISMATCH" if key in documented else "INVALID_INPUT_PARAMETER"
            yield label, f"{show(key)} is given, which the recorded call does not"
            continue
        wanted = gold.arguments[key]
        schema = documented[key] if key in documented else schema_of(wanted)
        if not fits(value, schema) and fits(wanted, schema):
            yield "INVALID_INPUT_PARAMETER", f"{show(key)}={show(value)} is not of the type {schema['type']}"
        elif FREE_TEXT.get(gold.name) == key:
            if similarity(value, wanted) <= 0.5:
                yield "INPUT_MISMATCH", f"{show(key)}={show(value)} is too far from {show(wanted)}"
        elif not values_equal(compared(key, value, schema), compared(key, wanted, schema)):
            broken = moment(wanted, schema) is not None and moment(value, schema) is None
            label = "HAS_EXCEPTION" if broken else "INPUT_MISMATCH"
            yield label, f"{show(key)}={show(value)}, expected {show(wanted)}"


def typed_call(sample: Sample, call: ToolCall) -> ToolCall:
    """The call with text turned into the values it stands for, by its tool's document or the recorded call."""
    spec, gold = sample.tool(call.name), sample.target[0]
    schemas: Mapping[str, Any] = {}
    if spec is not None:
        schemas = spec.properties
    elif call.name == gold.name:
        schemas = {key: schema_of(value) for key, value in gold.arguments.items()}
    arguments = {key: typed(value, schemas.get(key)) for key, value in call.arguments.items()}
    return ToolCall(name=call.name, arguments=arguments)


def _same(sample: Sample, call: ToolCall) -> bool:
    """Whether a call equals the recorded one, name and typed arguments, with nothing folded."""
    gold = typed_call(sample, sample.target[0])
    read = read_call(call)
    if read is None or read.name != gold.name:
        return False
    return values_equal(typed_call(sample, read).arguments, gold.arguments)


def toolrl(sample: Sample, calls: Sequence[ToolCall] | None) -> Ruling:
    """ToolRL's verdict: some call has the recorded name and equal arguments."""
    if any(_same(sample, call) for call in calls or ()):
        return Ruling(True)
    return Ruling(False, why="no call equals the recorded one")


def judge(sample: Sample, candidate: Candidate, rule: Rule) -> dict[str, Any]:
    """One row. Besides the usual keys: `right` (None: cannot be told), `equal` (right with nothing folded), `doubt` (see
    `doubt_of`), `label` (official error, "" where right), and `level`, `api`, `why`, `calls` (their number).
    """
    calls = candidate.calls
    ruling = official(sample, calls) if rule == "official" else toolrl(sample, calls)
    typed_calls = [typed_call(sample, read) if (read := read_call(call)) else call for call in calls or ()]
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": sample.band,
        "tags": list(sample.tags),
        "exact": ruling.right is True,
        "errors": [] if ruling.right else list(six_errors(sample, None if calls is None else typed_calls)),
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
        "level": next(int(tag[-1]) for tag in sample.tags if tag.startswith("level-")),
        "api": sample.target[0].name,
        "right": ruling.right,
        "equal": ruling.right is True and (rule != "official" or _same(sample, (calls or ())[0])),
        "doubt": doubt_of(sample) if rule == "official" else "",
        "label": ruling.label,
        "why": ruling.why,
        "calls": len(calls or ()),
    }
