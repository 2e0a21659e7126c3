"""Whether a call is right by API-Bank's rule, as far as that can be told without running the APIs, or by ToolRL's.

Official (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/`): the first predicted call runs on a fresh database, and the
API compares input, output and exception with the recorded ones. Here only inputs are compared, since equal inputs give
equal outputs; the reference folds their text in each API differently, here all alike. Not decidable are other inputs of
the APIs in `OUTPUT_ONLY`, and samples whose recorded call breaks the document of its own API (TimedSwitch,
CancelTimedSwitch, some BookHotel). The reference never accepts a successful DeleteMeeting; here equal inputs are right.
ToolRL (GitHub `qiancheng0/ToolRL`): some predicted call has the recorded name and equal typed arguments.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ttpa.benchmarks.apibank.values import as_text, compared, fits, moment, schema_of, typed
from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import read_call, show, six_errors
from ttpa.records import Candidate, Sample, ToolCall

Rule = Literal["official", "toolrl"]

# The official errors that can be told apart here, in the order in which they are looked for.
LABELS = (
    "NO_API_CALL", "FAILED_PARSE_API_CALL", "API_NAME_MISMATCH", "INVALID_INPUT_PARAMETER", "MISS_INPUT_ARGUMENT",
    "HAS_EXCEPTION", "INPUT_MISMATCH",
)  # fmt: skip
# APIs that look something up by words: the official check compares what they return.
OUTPUT_ONLY = {"Dictionary", "EmergencyKnowledge", "PlayMusic", "SearchEngine", "SymptomSearch", "ToolSearcher", "Wiki"}
_VERB = re.compile("^(Add|Delete|Modify|Query)")
# What AddAgenda, DeleteAgenda, ... are about -> the parameter that need not be met word for word.
FREE_TEXT = {"Agenda": "content", "Reminder": "content", "Meeting": "meeting_topic"}


def doubt_of(sample: Sample) -> str:
    """Why the official verdict on a sample cannot be told: "output_only", "recorded_call", or "" where it can."""
    gold, spec = sample.target[0], sample.tool(sample.target[0].name)
    if gold.name in OUTPUT_ONLY:
        return "output_only"
    known = spec.properties if spec else {key: {} for key in gold.arguments}
    broken = any(key not in known or not fits(value, known[key]) for key, value in gold.arguments.items())
    return "recorded_call" if broken else ""


def official(sample: Sample, calls: Sequence[ToolCall] | None, doubt: str) -> tuple[bool | None, str, str]:
    """Whether the parsed calls of an answer are right (None: cannot be told), the official error, and why."""
    gold = sample.target[0]
    if calls is None:
        return False, "FAILED_PARSE_API_CALL", "the answer does not parse as calls"
    if not calls:
        return False, "NO_API_CALL", "no call is made"
    call = read_call(calls[0])
    if call is None:
        return False, "FAILED_PARSE_API_CALL", "the arguments are no object"
    if call.name != gold.name:
        return False, "API_NAME_MISMATCH", f"calls {show(call.name)}, expected {show(gold.name)}"
    if doubt == "recorded_call":
        return None, "", "the recorded call does not follow the document of its API"
    label, why = min(_faults(sample, gold, call), key=lambda fault: LABELS.index(fault[0]), default=("", ""))
    if not label or (gold.name == "GetToday" and label == "INPUT_MISMATCH"):
        return True, "", ""
    if doubt == "output_only" and label == "INPUT_MISMATCH":
        return None, "", f"{why}; only the output would tell"
    return False, label, why


def _faults(sample: Sample, gold: ToolCall, call: ToolCall) -> Iterator[tuple[str, str]]:
    """Yields (official label, sentence) for everything wrong with the arguments of a call of the right name."""
    spec = sample.tool(gold.name)
    documented = spec.properties if spec else {}
    for key in (key for key in gold.arguments if key not in call.arguments):
        needed = spec is None or key in spec.required
        yield "MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH", f"{show(key)} is missing"
    for key, value in call.arguments.items():
        if key not in gold.arguments:
            label = "INPUT_MISMATCH" if key in documented else "INVALID_INPUT_PARAMETER"
            yield label, f"{show(key)} is given, which the recorded call does not"
            continue
        wanted = gold.arguments[key]
        schema = documented[key] if key in documented else schema_of(wanted)
        said = f"{show(key)}={show(value)}"
        if not fits(value, schema) and fits(wanted, schema):
            yield "INVALID_INPUT_PARAMETER", f"{said} is not of the type {schema['type']}"
        elif FREE_TEXT.get(_VERB.sub("", gold.name)) == key:
            a, b = (set(as_text(text).lower().split()) for text in (value, wanted))
            if a | b and 2 * len(a & b) <= len(a | b):
                yield "INPUT_MISMATCH", f"{said} is too far from {show(wanted)}"
        elif not values_equal(compared(key, value, schema), compared(key, wanted, schema)):
            broken = moment(wanted, schema) is not None and moment(value, schema) is None
            yield "HAS_EXCEPTION" if broken else "INPUT_MISMATCH", f"{said}, expected {show(wanted)}"


def typed_call(sample: Sample, call: ToolCall) -> ToolCall:
    """The call with text turned into the values it stands for, by its tool's document or the recorded call."""
    spec, gold = sample.tool(call.name), sample.target[0]
    known = gold.arguments if call.name == gold.name else {}
    schemas = spec.properties if spec else {key: schema_of(value) for key, value in known.items()}
    arguments = {key: typed(value, schemas.get(key, {})) for key, value in call.arguments.items()}
    return ToolCall(name=call.name, arguments=arguments)


def judge(sample: Sample, candidate: Candidate, rule: Rule) -> dict[str, Any]:
    """One row. Besides the usual keys: `right` (None: cannot be told), `equal` (right with nothing folded), `doubt`
    (see `doubt_of`), `label` (official error, "" where right), and `level`, `api`, `why`, `calls` (their number).
    """
    calls, gold = candidate.calls, typed_call(sample, sample.target[0])
    read = [typed_call(sample, one) if (one := read_call(call)) else call for call in calls or ()]
    same = [call.name == gold.name and values_equal(call.arguments, gold.arguments) for call in read]
    doubt, label = "", ""
    right: bool | None = any(same)
    why = "" if right else "no call equals the recorded one"
    if rule == "official":
        doubt = doubt_of(sample)
        right, label, why = official(sample, calls, doubt)
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": sample.band,
        "tags": list(sample.tags),
        "exact": right is True,
        "errors": [] if right else list(six_errors(sample, None if calls is None else read)),
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
        "level": next(int(tag[-1]) for tag in sample.tags if tag.startswith("level-")),
        "api": gold.name,
        "right": right,
        "equal": right is True and (rule != "official" or same[0]),
        "doubt": doubt,
        "label": label,
        "why": why,
        "calls": len(calls or ()),
    }
