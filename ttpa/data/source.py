"""What a `data=` option is, and the splits that it writes for the stages that follow."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ttpa.errors import DataError
from ttpa.io import dumps, read_jsonl, write_jsonl, write_lines, write_text
from ttpa.records import Sample

Work = Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]]
"""Turns a wave of items into rows `{"id": ..., ...}`, one an item."""

ComputeWaves = Callable[[Path, Sequence[Sequence[Any]], Callable[[], Work]], Sequence[str]]
"""Appends to a JSON-lines file the rows of waves of items that are not in it yet, in any order, and gives the ids of
the items whose work raised. The third argument makes the work where waves are computed: it and the items, which have an
`id` each, can be pickled.
"""


def compute_here(path: Path, waves: Sequence[Sequence[Any]], make_work: Callable[[], Work]) -> Sequence[str]:
    """Computes in this process, from the beginning; an error is raised."""
    work = make_work()
    try:
        write_jsonl(path, (row for wave in waves for row in work(wave)))
    finally:
        getattr(work, "close", lambda: None)()
    return ()


class DataSource(Protocol):
    """A `data=` option: frozen, and nothing but its configuration."""

    def check(self) -> None:
        """Finds out cheaply whether `build` can start; a ConfigError names the key, its value and the remedy."""

    def identity(self) -> dict[str, Any]:
        """What decides the samples beyond the settings, as keys that replace settings of the same name."""

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """Writes the splits below `out`, and `splits.json` last (see `write_splits`); gives counts.

        `out` exists, empty or with what a killed attempt left. `compute` computes samples, where that is more than
        reading, and changes no byte of what is written. DataError: data cannot be read or made.
        """


def stable_unit(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but the text of `parts`."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


T = TypeVar("T")


def limited(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced (a, c, e of abcdef); None keeps all."""
    return [items[place] for place in limited_places(len(items), limit)]


def limited_places(total: int, limit: int | None) -> Iterable[int]:
    """The ascending places of at most `limit` of so many items, evenly spaced."""
    count = total if limit is None else min(limit, total)
    return (number * total // count for number in range(count))


def write_splits(out: Path, files: Mapping[str, Iterable[str]], splits: Mapping[str, str]) -> str:
    """Writes files (name -> lines, each the JSON of a `Sample`) and `splits.json` (split -> file name); returns the
    SHA-256 of the files one after the other, in hex.
    """
    digest = hashlib.sha256()
    for name, lines in files.items():
        write_lines(out / name, lines)
        with (out / name).open("rb") as file:
            for piece in iter(partial(file.read, 1 << 20), b""):
                digest.update(piece)
    write_text(out / "splits.json", dumps(splits))
    return digest.hexdigest()


def read_split(data: Path, name: str) -> list[Sample]:
    """The samples of a split of a finished data stage."""
    file = data / json.loads((data / "splits.json").read_text(encoding="utf-8"))[name]
    if samples := [Sample.from_json(row) for row in read_jsonl(file)]:
        return samples
    raise DataError(f"{file}: no sample is in it; it was emptied by hand. Delete the folder {data} and run again.")
