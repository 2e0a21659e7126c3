"""`eval=heldout`: exact-call accuracy on a data source's own held-out split, by band and for unseen tools, in six
errors.

Greedy decoding with the training renderer. An answer is right when its calls equal the target's (order free), or, for
a target without a call, when it makes none. Accuracy is the share of right answers over the samples whose tools were
seen in training; samples tagged `unseen_tool` are reported apart. Intervals are 95 % bootstrap intervals that
resample dialogues. This module turns rows into numbers; decoding is the evaluate stage's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ttpa.calls.schema import calls_equal
from ttpa.calls.six_errors import SIX, six_errors
from ttpa.data.source import read_split
from ttpa.errors import ConfigError
from ttpa.records import Candidate, Sample
from ttpa.results.stats import share

LABELS = (*SIX, "call_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heldout:
    """Evaluation on a split of the run's own data.

    Args:
        split: "test", or "validation" for choosing settings.
        max_new_tokens: Longest answer, in tokens.
        limit: Evaluate the first samples of the split only; None evaluates all.

    Raises:
        ConfigError: an unknown split or a value below 1.
    """

    split: str
    max_new_tokens: int
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise ConfigError.at(
                "eval.split", self.split, "unknown split", "Use test, or validation to choose settings"
            )
        if self.max_new_tokens < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError.at(
                "eval.max_new_tokens, eval.limit",
                (self.max_new_tokens, self.limit),
                "must be at least 1",
                "eval.limit=null evaluates everything",
            )

    def check(self) -> None:
        """Nothing can be missing."""

    def identity(self) -> Mapping[str, Any]:
        """The data stage is the input that decides."""
        return {}

    def samples(self, data: Path) -> list[Sample]:
        """The split, or its beginning."""
        return read_split(data, self.split)[: self.limit]

    def dialogue(self, sample: Sample) -> None:
        """Every sample is answered once."""

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """See `judge`."""
        return judge(sample, candidate)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `summarise`."""
        return {**summarise(rows), "split": self.split}

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """There is no other layout."""


def judge(sample: Sample, candidate: Candidate) -> dict[str, Any]:
    """One row: was the answer right, and in which of the six ways was it wrong.

    Example row: `{"id", "cluster", "band", "tags", "exact": False, "errors": ["parameter_value"], "text"}`.
    """
    calls = candidate.calls
    exact = calls is not None and calls_equal(sample.target, calls)
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": sample.band,
        "tags": list(sample.tags),
        "exact": exact,
        "errors": list(six_errors(sample, calls)),
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
    }


def _shows(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return share(rows, lambda row: bool(row["exact"]))


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one evaluation.

    Returns:
        `accuracy` (all samples with seen tools), `bands` (each band), `unseen_tool` (None without such samples): each
        `{value, low, high, n}` with None where there is nothing to tell a value or an interval from; `errors`: label
        -> the same for the share of answers that show it.
    """
    seen = [row for row in rows if "unseen_tool" not in row["tags"]]
    unseen = [row for row in rows if "unseen_tool" in row["tags"]]
    bands = [band for band in ("easy", "medium", "hard") if any(row["band"] == band for row in seen)]
    return {
        "accuracy": _accuracy(seen),
        "bands": {band: _accuracy([row for row in seen if row["band"] == band]) for band in bands},
        "unseen_tool": _accuracy(unseen) if unseen else None,
        "errors": {label: share(seen, partial(_shows, label)) for label in LABELS},
    }
