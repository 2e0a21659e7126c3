"""Rows of verdicts, one a judged answer: written as they come, read back, and compared between two policies.

Used by `ttpa-score`. What this module does not do: judge.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, read_lines
from ttpa.results.stats import paired_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One row of the output."""

    id: str
    valid: bool
    error_type: str | None
    six_error: str
    score: float
    explanation: str

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "valid": self.valid,
            "error_type": self.error_type,
            "six_error": self.six_error,
            "score": self.score,
            "explanation": self.explanation,
        }


@contextmanager
def writer(out: str, inputs: Iterable[str]) -> Iterator[Callable[[Scored], None]]:
    """A function that writes a row; nothing is written without `out`. What was written survives an error."""
    if not out:
        yield lambda row: None
        return
    path = Path(out)
    if any(name not in ("", "-") and Path(name).exists() and path.exists() and path.samefile(name) for name in inputs):
        raise ConfigError.at("out", out, "is also read", "Write to another file")
    with ExitStack() as stack:
        try:
            if path.name.endswith(".gz"):
                raw: IO[bytes] | gzip.GzipFile = stack.enter_context(gzip.open(path, "wb"))
            else:
                raw = stack.enter_context(path.open("wb"))
        except OSError as error:
            raise ConfigError.at("out", out, f"cannot be written ({error.strerror})", "Give a file") from None
        # A surrogate without its partner, which UTF-8 cannot hold, is written as JSON's escape.
        coded = io.TextIOWrapper(cast("IO[bytes]", raw), "utf-8", errors="backslashreplace", newline="\n")
        file = stack.enter_context(coded)

        def write(row: Scored) -> None:
            file.write(dumps(row.to_json()) + "\n")

        yield write


@dataclass(slots=True)
class Shares:
    """Share of right answers by id, in memory that grows with the questions and not with the answers.

    Example:
        >>> shares = Shares()
        >>> shares.add("a", True), shares.add("a", False)
        (None, None)
        >>> shares.mean()
        {'a': 0.5}
    """

    counts: dict[str, list[int]] = field(default_factory=dict)
    clusters: dict[str, str] = field(default_factory=dict)

    def add(self, case_id: str, valid: bool, cluster: str = "") -> None:
        """Takes one verdict; `cluster` is what intervals resample, the id itself without one."""
        count = self.counts.setdefault(case_id, [0, 0])
        count[0] += 1
        count[1] += valid
        self.clusters[case_id] = cluster or case_id

    def mean(self) -> dict[str, float]:
        return {case_id: right / answers for case_id, (answers, right) in self.counts.items()}


def read_shares(path: str | Path) -> Shares:
    """The verdicts of a file that `writer` wrote.

    Raises:
        DataError: the file cannot be read, or a row is none of ours; names file and line.
    """
    found = Shares()
    for line in read_lines(path):
        case_id, valid = line.row.get("id"), line.row.get("valid", line.row.get("exact"))
        if not isinstance(case_id, str) or not isinstance(valid, bool):
            raise DataError(f"{line}: no id and valid. Give a file that `ttpa-score` wrote with out=.")
        found.add(case_id, valid)
    return found


def compared(ours: Shares, theirs: Shares) -> str:
    """The paired difference over the ids that both have, in words."""
    a, b = ours.mean(), theirs.mean()
    both = a.keys() & b.keys()
    if not both:
        return "no question is in both files: nothing to compare"
    mean, low, high = paired_difference(
        {one: a[one] for one in both}, {one: b[one] for one in both}, {one: ours.clusters[one] for one in both}
    )
    if math.isnan(low):
        return f"outputs - against: {mean:+.4f} ({len(both):,} question, too few for an interval)"
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    rest = len(a.keys() ^ b.keys())
    left = f"; {rest:,} in one file only" if rest else ""
    return f"outputs - against: {mean:+.4f} [{low:+.4f}, {high:+.4f}], {verdict} ({len(both):,} questions{left})"
