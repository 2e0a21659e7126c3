"""What a `data=` option is, and the splits that it writes for the stages that follow."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from ttpa.io import dumps, read_jsonl, write_jsonl, write_lines, write_text
from ttpa.records import Sample

Work = Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]]
"""Turns a wave of items into rows `{"id": ..., ...}`, one an item."""


class ComputeWaves(Protocol):
    """Computes a row for each item into a JSON-lines file; the data stage of a run passes one that resumes."""

    def __call__(self, path: Path, waves: Sequence[Sequence[Any]], make_work: Callable[[], Work]) -> Sequence[str]:
        """Appends the rows that are not in the file yet, in any order; gives the ids of the items whose work raised.

        Each item has a unique `id`. `make_work` is called where waves are computed: it and the items can be pickled.
        """


def compute_here(path: Path, waves: Sequence[Sequence[Any]], make_work: Callable[[], Work]) -> Sequence[str]:
    """The simplest `ComputeWaves`: in this process, from the beginning; an error is raised."""
    work = make_work()
    write_jsonl(path, (row for wave in waves for row in work(wave)))
    return ()


@runtime_checkable
class DataSource(Protocol):
    """A `data=` option. Instances are frozen and hold nothing but their configuration."""

    def check(self) -> None:
        """Finds out cheaply whether `build` can start; a ConfigError names the key, its value and the remedy."""

    def identity(self) -> dict[str, Any]:
        """What decides the samples beyond the settings, as keys that replace settings of the same name."""

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """Writes the splits below `out`, and `splits.json` last (see `write_splits`); gives counts.

        `out` exists, empty or with what a killed attempt of the same source left. `compute` computes samples, where
        that is more than reading; it changes no byte of what is written. DataError: data cannot be read or made.
        """


T = TypeVar("T")


def limited(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced (a, c, e of abcdef); None keeps all."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def write_splits(out: Path, files: Mapping[str, Iterable[str]], splits: Mapping[str, str]) -> str:
    """Writes files (name -> lines, each the JSON of a `Sample`) and `splits.json`, which maps splits to file names.

    Returns the SHA-256 of the files one after the other, in hex.
    """
    digest = hashlib.sha256()
    for name, lines in files.items():
        write_lines(out / name, lines)
        digest.update((out / name).read_bytes())
    write_text(out / "splits.json", dumps(splits))
    return digest.hexdigest()


def read_split(data: Path, name: str) -> list[Sample]:
    """The samples of a split of a finished data stage."""
    file = json.loads((data / "splits.json").read_text(encoding="utf-8"))[name]
    return [Sample.from_json(row) for row in read_jsonl(data / file)]
