"""Rows of verdicts, one a judged answer: written as they come, read back, compared between two policies, and shown."""

import gzip
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, cast

from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, read_lines
from ttpa.results.stats import paired_difference, share


def output_path(out: str, inputs: Iterable[str]) -> Path:
    """The file `out`; a ConfigError where it cannot be written, or is one of the `inputs`."""
    path = Path(out).expanduser()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError.at("out", out, "cannot be written", "Give a file in a folder that exists")
    if any(name and path.resolve() == Path(name).expanduser().resolve() for name in inputs):
        raise ConfigError.at("out", out, "is also read", "Write to another file")
    return path


@contextmanager
def writer(out: str, inputs: Iterable[str]) -> Iterator[Callable[[Mapping[str, Any]], object]]:
    """A function that writes a row to `output_path`, gzipped where it ends in .gz; nowhere without `out`."""
    path = output_path(out, inputs) if out else Path(os.devnull)
    opener = gzip.open if path.suffix == ".gz" else open
    with cast("IO[str]", opener(path, "wt", encoding="utf-8", newline="\n")) as file:
        yield lambda row: file.write(dumps(row) + "\n")


class Shares:
    """Share of right answers by id, in memory that grows with the questions and not with the answers."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])  # id -> [wrong answers, right ones]
        self.clusters: dict[str, str] = {}

    def add(self, case_id: str, valid: bool, cluster: str = "") -> None:
        """Takes one verdict; intervals resample clusters, by default the id."""
        self.counts[case_id][valid] += 1
        self.clusters[case_id] = cluster or case_id

    def mean(self) -> dict[str, float]:
        return {case_id: right / (wrong + right) for case_id, (wrong, right) in self.counts.items()}

    def share(self, ids: Iterable[str]) -> dict[str, Any]:
        """`stats.share` of the answers to some questions."""
        rows = [
            {"cluster": self.clusters[case_id], "right": right}
            for case_id in ids
            for right in (False, True)
            for _ in range(self.counts[case_id][right])
        ]
        return share(rows, itemgetter("right"))


def read_shares(path: str | Path) -> Shares:
    """The verdicts of a file that `ttpa score` wrote with out=; a DataError names the line of a row of another form."""
    shares = Shares()
    for line in read_lines(path):
        case_id, valid = line.row.get("id"), line.row.get("valid", line.row.get("exact"))
        if not isinstance(case_id, str) or not isinstance(valid, bool):
            raise DataError(f"{line}: no id and valid. Give a file that `ttpa score` wrote with out=.")
        shares.add(case_id, valid)
    return shares


def compared(ours: Shares, theirs: Shares) -> str:
    """The paired difference over the ids that both have, in words."""
    a, b = ours.mean(), theirs.mean()
    both = a.keys() & b.keys()
    if not both:
        return "no question is in both files: nothing to compare"
    mean, low, high = paired_difference({one: a[one] for one in both}, {one: b[one] for one in both}, ours.clusters)
    if math.isnan(low):
        return f"outputs - against: {mean:+.4f} ({len(both):,} question, too few for an interval)"
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    rest = len(a.keys() ^ b.keys())
    left = f"; {rest:,} in one file only" if rest else ""
    return f"outputs - against: {mean:+.4f} [{low:+.4f}, {high:+.4f}], {verdict} ({len(both):,} questions{left})"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table whose first column is text and whose others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 or not name else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(title, table, "", sep="\n", soft_wrap=True)
