"""The numbers of API-Bank from judged answers. Intervals are 95 % bootstrap intervals that resample dialogues.

Accuracy is over decidable samples, which the recorded calls alone decide and no answer can change. `bounds` are over
all samples: `low` takes only first calls that equal the recorded one value by value, `high` all that are not known to
be wrong. The official number, were the APIs run, would lie between the two as far as `ttpa.benchmarks.apibank.rules` says.
What was not run is None and never zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ttpa.benchmarks.apibank.rules import LABELS as OFFICIAL
from ttpa.calls.six_errors import LABELS
from ttpa.results.stats import share

Rows = Sequence[Mapping[str, Any]]

NOT_COMPUTED = ("OUTPUT_MISMATCH", "KEY_ERROR", "exceptions of the database", "replies (ROUGE-L)")
"""Parts of the official numbers that need the APIs, or are not about calls."""


def _right(row: Mapping[str, Any]) -> bool:
    return row["right"] is True


def _not_wrong(row: Mapping[str, Any]) -> bool:
    return row["right"] is not False


def _equal(row: Mapping[str, Any]) -> bool:
    return bool(row["equal"])


def _decidable(row: Mapping[str, Any]) -> bool:
    return not row["doubt"]


def _shows(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]


def _numbers(rows: Rows) -> dict[str, Any]:
    """What is told of a level, and of all levels together."""
    return {
        "accuracy": share([row for row in rows if _decidable(row)], _right),
        "bounds": {"low": share(rows, _equal), "high": share(rows, _not_wrong)},
        "decidable": share(rows, _decidable),
    }


def whole_samples(rows: Rows) -> dict[str, Any] | None:
    """Share of level 3 tasks with no wrong call; None without level 3.

    A task counts when all of its calls were answered and are decidable; `left_out` is how many do not.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["level"] == 3:
            tasks.setdefault(row["cluster"], []).append(row)
    if not tasks:
        return None
    counted = [calls for calls in tasks.values() if _complete(calls) and all(map(_decidable, calls))]
    wholes = [{"cluster": calls[0]["cluster"], "right": all(map(_right, calls))} for calls in counted]
    return {**share(wholes, _right), "left_out": len(tasks) - len(counted)}


def _complete(calls: Rows) -> bool:
    size = next((int(tag.removeprefix("calls-")) for tag in calls[0]["tags"] if tag.startswith("calls-")), 0)
    return len(calls) == size


def summarise(rows: Rows) -> dict[str, Any]:
    """Numbers of one evaluation.

    Returns:
        `accuracy`, `bounds` and `decidable` over all levels run (see the module header); `levels`: the same by level,
        None for a level that was not run; `categories`: accuracy by level that was run; `apis`: accuracy by the API of
        the recorded call; `level3_samples`: share of whole tasks; `undecided`: reason -> samples; `labels`: official
        label -> wrong answers that show it first, over all rows; `errors`: label of the six and `call_count` -> share
        of decidable answers that show it; `tool_not_listed`: samples whose API was not among the tools; `not_computed`:
        what is in no number here. `bands`, `unseen_tool` and `split` are what tables of held-out data hold, and empty.
        A paired difference of two policies compares `exact` over all rows, where what cannot be told counts as wrong
        for both.
    """
    decidable = [row for row in rows if _decidable(row)]
    by_level = {level: [row for row in rows if row["level"] == level] for level in (1, 2, 3)}
    by_api = {api: [row for row in decidable if row["api"] == api] for api in sorted({row["api"] for row in decidable})}
    first = Counter(row["label"] for row in rows)
    return {
        **_numbers(rows),
        "levels": {str(level): _numbers(found) if found else None for level, found in by_level.items()},
        "categories": {f"level {level}": _numbers(found)["accuracy"] for level, found in by_level.items() if found},
        "apis": {api: share(found, _right) for api, found in by_api.items()},
        "level3_samples": whole_samples(rows),
        "undecided": dict(Counter(row["doubt"] for row in rows if row["doubt"])),
        "labels": {label: first[label] for label in OFFICIAL},
        "errors": {label: share(decidable, partial(_shows, label)) for label in LABELS},
        "tool_not_listed": sum("tool_not_listed" in row["tags"] for row in rows),
        "not_computed": list(NOT_COMPUTED),
        "bands": {},
        "unseen_tool": None,
        "split": "API-Bank",
    }
