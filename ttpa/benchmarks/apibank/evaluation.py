"""`eval=apibank`: given what was said before, write the next recorded call. Files and rules: docs/evaluation.md."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ttpa.benchmarks.apibank.files import TYPES, Format, LevelFiles, level_files, read_samples, typed
from ttpa.calls.schema import type_ok, values_equal
from ttpa.calls.six_errors import LABELS, read_call, show, six_errors
from ttpa.data.rows import file_digest
from ttpa.errors import ConfigError
from ttpa.io import dumps
from ttpa.options import Count, option
from ttpa.records import Candidate, Sample, ToolCall
from ttpa.results.heldout import answer_row
from ttpa.results.stats import share
from ttpa.run.parts import Evaluation

# The official errors that can be told apart here, in the order in which they are looked for.
OFFICIAL = (
    "NO_API_CALL", "FAILED_PARSE_API_CALL", "API_NAME_MISMATCH", "INVALID_INPUT_PARAMETER", "MISS_INPUT_ARGUMENT",
    "HAS_EXCEPTION", "INPUT_MISMATCH",
)  # fmt: skip
# APIs that look something up by words: the official check compares what they return.
OUTPUT_ONLY = {"Dictionary", "EmergencyKnowledge", "PlayMusic", "SearchEngine", "SymptomSearch", "ToolSearcher", "Wiki"}
# What AddAgenda, DeleteAgenda, ... are about -> the parameter that need not be met word for word.
FREE_TEXT = {"Agenda": "content", "Reminder": "content", "Meeting": "meeting_topic"}
CASE_KEPT = {"username", "password", "old_password", "new_password", "token"}  # name a record of the database

_VERB = re.compile("^(Add|Delete|Modify|Query)")
_FORMAT = re.compile(r"%[YmdHMS](?:[-/: ]%[YmdHMS])*")
Judged = Sequence[Mapping[str, Any]]  # rows of `APIBank.judge`


@option
class APIBank(Evaluation):
    """Evaluation on API-Bank; `conf/eval/apibank.yaml` says what each value means."""

    path: Annotated[str, Field(min_length=1)]
    max_new_tokens: Count
    levels: Annotated[list[Literal[1, 2, 3]], Field(min_length=1)]
    format: Format
    rule: Literal["official", "toolrl"]
    limit: Count | None

    def __post_init__(self) -> None:
        if len(set(self.levels)) < len(self.levels):
            raise ConfigError.at("levels", self.levels, "names a level twice", "Use [1,2,3]")

    def check(self) -> None:
        self._files()

    def _files(self) -> dict[int, LevelFiles]:
        return {level: level_files(Path(self.path).expanduser(), level, self.format) for level in self.levels}

    def identity(self) -> Mapping[str, Any]:
        paths = [path for _, samples, specs in self._files().values() for path in (*samples, *specs)]
        return {"path": [[path.name, file_digest(path)] for path in dict.fromkeys(paths)]}

    def samples(self, data: Path) -> list[Sample]:
        return [sample for level, files in self._files().items() for sample in read_samples(level, files)[: self.limit]]

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """A row. Besides the usual keys: `right` (None: cannot be told), `equal` (right with nothing folded), `doubt`
        ("output_only", "recorded_call" or ""), `label` (official error), `why`, `level`, `api`, `calls` (their number).
        """
        calls, gold = candidate.calls, sample.target[0]
        read = [_typed(sample, one) if (one := read_call(call)) else call for call in calls or ()]
        same = [call.name == gold.name and values_equal(call.arguments, gold.arguments) for call in read]
        right: bool | None = any(same)
        doubt, label, why = "", "", "" if right else "no call equals the recorded one"
        if self.rule == "official":
            doubt, same = _doubt(sample), same[:1]
            label, why = min(_faults(sample, calls), key=lambda fault: OFFICIAL.index(fault[0]), default=("", ""))
            right = not label
            if doubt == "recorded_call" and label not in OFFICIAL[:3]:
                right, label, why = None, "", "the recorded call does not follow the document of its API"
            elif doubt and label == "INPUT_MISMATCH":
                right, label, why = None, "", f"{why}; only the output would tell"
        return {
            **answer_row(sample, candidate, right is True, () if right else six_errors(sample, calls and read)),
            "level": int(sample.tags[0].removeprefix("level-")),
            "api": gold.name,
            "right": right,
            "equal": right is True and any(same),
            "doubt": doubt,
            "label": label,
            "why": why,
            "calls": len(calls or ()),
        }

    def summarise(self, rows: Judged) -> dict[str, Any]:
        """Numbers of one evaluation; what was not run is None and never zero. `accuracy` and `errors` are over samples
        without doubt. `bounds` are over all: `low` counts calls that equal the recorded one, `high` all that are not
        known to be wrong; the official number lies between.
        """
        formats: dict[str, str] = {}
        with suppress(ConfigError):  # the files were moved away after the answers were judged
            formats = {str(level): form for level, (form, *_) in self._files().items()}
        decidable = [row for row in rows if not row["doubt"]]
        levels = {level: _numbers(some) for level, some in _grouped(rows, "level").items()}
        labels, shows = Counter(row["label"] for row in rows), lambda label, row: label in row["errors"]
        return {
            **_numbers(rows),
            "levels": {str(level): levels.get(level) for level in (1, 2, 3)},
            "categories": {f"level {level}": numbers["accuracy"] for level, numbers in levels.items()},
            "apis": {api: share(some, itemgetter("exact")) for api, some in _grouped(decidable, "api").items()},
            "level3_samples": _whole_tasks([row for row in rows if row["level"] == 3]),
            "undecided": dict(Counter(row["doubt"] for row in rows if row["doubt"])),
            "labels": {label: labels[label] for label in OFFICIAL},
            "errors": {label: share(decidable, partial(shows, label)) for label in LABELS},
            "tool_not_listed": sum("tool_not_listed" in row["tags"] for row in rows),
            "not_computed": ["OUTPUT_MISMATCH", "KEY_ERROR", "exceptions of the database", "replies (ROUGE-L)"],
            "bands": {},
            "unseen_tool": None,
            "split": "API-Bank",
            "rule": self.rule,
            "format": formats,
        }


def _numbers(rows: Judged) -> dict[str, Any]:
    """Accuracy, its bounds and the decidable share."""
    bounds = {"low": share(rows, itemgetter("equal")), "high": share(rows, lambda row: row["right"] is not False)}
    accuracy = share([row for row in rows if not row["doubt"]], itemgetter("exact"))
    return {"accuracy": accuracy, "bounds": bounds, "decidable": share(rows, lambda row: not row["doubt"])}


def _grouped(rows: Judged, key: str) -> dict[Any, Judged]:
    return {name: list(some) for name, some in groupby(sorted(rows, key=itemgetter(key)), itemgetter(key))}


def _whole_tasks(rows: Judged) -> dict[str, Any] | None:
    """Share of level 3 tasks with no wrong call; `left_out` counts those with a call in doubt or without an answer."""
    tasks = list(_grouped(rows, "cluster").values())
    counted = [
        {"cluster": calls[0]["cluster"], "exact": all(call["exact"] for call in calls)}
        for calls in tasks
        if f"calls-{len(calls)}" in calls[0]["tags"] and not any(call["doubt"] for call in calls)
    ]
    return {**share(counted, itemgetter("exact")), "left_out": len(tasks) - len(counted)} if tasks else None


def _doubt(sample: Sample) -> str:
    """Why the official verdict on an answer to a sample may be out of reach."""
    gold, spec = sample.target[0], sample.tool(sample.target[0].name)
    known = spec.properties if spec else {key: {} for key in gold.arguments}
    broken = any(key not in known or not _fits(value, known[key]) for key, value in gold.arguments.items())
    return "output_only" if gold.name in OUTPUT_ONLY else "recorded_call" if broken else ""


def _schemas(sample: Sample, name: str) -> dict[str, Any]:
    """Schemas of a tool's parameters, by its document, else by the values of the recorded call."""
    gold, spec = sample.target[0], sample.tool(name)
    recorded = gold.arguments if name == gold.name else {}
    schemas = {key: {"type": TYPES.get(type(value).__name__, "string")} for key, value in recorded.items()}
    return {**schemas, **(spec.properties if spec else {})}


def _typed(sample: Sample, call: ToolCall) -> ToolCall:
    """The call with text turned into the values it stands for."""
    schemas = _schemas(sample, call.name)
    return replace(call, arguments={key: typed(value, schemas.get(key, {})) for key, value in call.arguments.items()})


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a parameter of this type takes the value: digits for numbers, a list for lists, anything for text."""
    kind, value = schema.get("type"), typed(value, schema)
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return kind in (None, "string", "boolean") or whole or type_ok(value, {"type": kind})


def _faults(sample: Sample, calls: Sequence[ToolCall] | None) -> Iterator[tuple[str, str]]:
    """Yields (official label, sentence) for everything wrong with the first call of an answer."""
    gold, spec = sample.target[0], sample.tool(sample.target[0].name)
    call = read_call(calls[0]) if calls else None
    if calls is not None and not calls:
        yield "NO_API_CALL", "no call is made"
    elif call is None:
        why = "the answer does not parse as calls" if calls is None else "the arguments are no object"
        yield "FAILED_PARSE_API_CALL", why
    elif call.name != gold.name:
        yield "API_NAME_MISMATCH", f"calls {show(call.name)}, expected {show(gold.name)}"
    else:
        for key in (key for key in gold.arguments if key not in call.arguments):
            needed = spec is None or key in spec.required
            yield "MISS_INPUT_ARGUMENT" if needed else "INPUT_MISMATCH", f"{show(key)} is missing"
        for key, value in call.arguments.items():
            if key in gold.arguments:
                yield from _differences(gold, key, value, _schemas(sample, gold.name)[key])
            else:
                label = "INPUT_MISMATCH" if spec and key in spec.properties else "INVALID_INPUT_PARAMETER"
                yield label, f"{show(key)} is given, which the recorded call does not"


def _differences(gold: ToolCall, key: str, value: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wanted, said = gold.arguments[key], f"{show(key)}={show(value)}"
    given, expected = _compared(key, value, schema), _compared(key, wanted, schema)
    if not _fits(value, schema) and _fits(wanted, schema):
        yield "INVALID_INPUT_PARAMETER", f"{said} is not of the type {schema['type']}"
    elif FREE_TEXT.get(_VERB.sub("", gold.name)) == key:
        a, b = (set(_text(text).lower().split()) for text in (value, wanted))
        if a | b and 2 * len(a & b) <= len(a | b):
            yield "INPUT_MISMATCH", f"{said} is too far from {show(wanted)}"
    elif not values_equal(given, expected):
        undated = isinstance(expected, datetime) and not isinstance(given, datetime)
        yield "HAS_EXCEPTION" if undated else "INPUT_MISMATCH", f"{said}, expected {show(wanted)}"


def _compared(key: str, value: Any, schema: Mapping[str, Any]) -> Any:
    """The form in which two values of a parameter are compared, as the official APIs do: text trimmed and lower-cased
    (except `CASE_KEPT`; in lists and objects as deep as the documented ones), dates read by the documented format.
    """
    kind, text = schema.get("type"), _text(value).strip()
    if kind == "boolean":
        return text == "True"
    if kind != "string" and _fits(value, schema):
        value = typed(value, schema)
        folded = list(map(_folded, value)) if kind == "array" else _folded(value)
        return sorted(folded, key=_text) if key == "health_data" else folded
    dated = _FORMAT.search(schema.get("description", ""))
    with suppress(ValueError, OverflowError):
        if dated and dated[0] == "%m-%d":  # a year before month and day is dropped
            return datetime.strptime(text if text.count("-") == 2 else f"1904-{text}", "%Y-%m-%d").replace(year=1904)
        if dated:
            return datetime.strptime(text, dated[0])
    text = text.replace(" ", "") if key == "formula" else text
    return text if key in CASE_KEPT else text.lower()


def _folded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: one.strip().lower() if isinstance(one, str) else one for key, one in value.items()}
    return value.strip().lower() if isinstance(value, str) else value


def _text(value: Any) -> str:
    """A value as it would stand in the text of a call."""
    try:
        return str(value) if isinstance(value, str | int | float | None) else dumps(value)
    except (ValueError, TypeError, RecursionError):  # a number of 5,000 digits, a list of 5,000 lists
        return f"a {type(value).__name__}"
