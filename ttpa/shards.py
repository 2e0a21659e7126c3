"""Append-only JSON-lines files inside a stage's working directory: what is done stays done when the process is killed.

A `Shard` is one file, one JSON object a line, each with an id. `run_waves` computes samples in waves and appends each
wave whole, so a kill loses at most the wave in progress; a restart reads the ids and goes on.

What this module does not do: lock (the stage's lock in `ttpa.store` admits one writer), catch errors of the work (what
becomes of a sample that fails is the caller's business), or know what a row means. Called by `ttpa.pipeline`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ttpa.errors import DataError
from ttpa.records import dumps

Item = TypeVar("Item")


class Shard:
    """One append-only file of JSON objects, told apart by the text under `key`.

    Reading never changes the file. A torn last line (no newline, or not JSON: the mark of a kill in the middle of a
    write) does not count as a row, and the next `append` cuts it off first. One writer at a time.

    Example:
        >>> import tempfile
        >>> shard = Shard(Path(tempfile.mkdtemp()) / "rows.jsonl")
        >>> shard.append([{"id": "a", "x": 1}, {"id": "b", "x": 2}, {"id": "a", "x": 3}])
        2
        >>> [row["x"] for row in shard.rows()]
        [1, 2]
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path = Path(path)
        self.key = key
        self._ids: set[str] = set()
        self._size = -1
        """Bytes of whole rows when the file was last read or written here; another size means: read it again."""

    def done_ids(self) -> set[str]:
        """Ids of the rows in the file.

        Raises:
            DataError: a line before the last is not a row; names file and line.
        """
        self._look()
        return set(self._ids)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Adds the rows whose id is new, with one write, and returns when they are on disk.

        Args:
            rows: JSON objects, each with text under `key`. A repeated id is ignored: the first row stays.

        Returns:
            How many rows were added.

        Raises:
            DataError: a line before the last is not a row; names file and line.
            ValueError: a row without a text id; nothing was written.
        """
        self._look()
        fresh: dict[str, str] = {}
        for row in rows:
            name = row.get(self.key)
            if not isinstance(name, str):
                raise ValueError(f"{self.path}: row with {self.key}={name!r}: must be text. Row: {dict(row)!r:.200}")
            if name not in self._ids and name not in fresh:
                fresh[name] = dumps(dict(row)) + "\n"
        if not fresh:
            return 0
        data = "".join(fresh.values()).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size, self._size = self._size, -1  # a failure from here on makes the next call read the file again
        with self.path.open("ab") as file:
            file.truncate(size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._ids |= fresh.keys()
        self._size = size + len(data)
        return len(fresh)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows in file order.

        Raises:
            DataError: a line before the last is not a row; names file and line.
        """
        for row, _ in self._scan():
            yield row

    def _look(self) -> None:
        if self._size >= 0 and self.path.exists() and self.path.stat().st_size == self._size:
            return
        self._ids, self._size = set(), -1
        size = 0
        for row, end in self._scan():
            self._ids.add(row[self.key])
            size = end
        self._size = size

    def _scan(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields every whole row with the offset of its end."""
        if not self.path.exists():
            return
        end = 0
        bad: tuple[int, bytes] | None = None
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if bad is not None:
                    where = f"{self.path}:{bad[0]}: not a JSON object with text under {self.key!r}: {bad[1][:80]!r}"
                    raise DataError(f"{where}. Remove the line; its sample is computed again.")
                row = self._parse(line)
                if row is None:
                    bad = (number, line)  # forgiven if it turns out to be the last line
                    continue
                end += len(line)
                yield row, end

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return None
        return row if isinstance(row, dict) and isinstance(row.get(self.key), str) else None


def run_waves(
    items: Sequence[Item],
    key: Callable[[Item], str],
    waves_of: Callable[[Sequence[Item]], Sequence[Sequence[Item]]],
    work: Callable[[Sequence[Item]], Sequence[Mapping[str, Any]]],
    shard: Shard,
    on_wave: Callable[[int, int], None] | None = None,
) -> int:
    """Computes every item once over any number of restarts.

    Batched floating-point work depends on what is in the batch. So the waves are cut from all items, never from those
    left over; a wave is skipped when all its rows are there and computed whole otherwise, and of a wave computed again
    only the missing rows are appended, in the order of its items. A restarted run thus ends with the bytes of one that
    was never stopped, provided that `work` is a function of its wave.

    Args:
        items: what to compute.
        key: id of an item, the one its row carries under `shard.key`.
        waves_of: cuts all items into waves; each item in exactly one. Must not look at what is done.
        work: rows of one wave, one for each item, in any order.
        shard: where rows go.
        on_wave: called after each wave (computed or skipped) with the number of waves behind and in all.

    Returns:
        How many waves were computed.

    Raises:
        ValueError: two items share an id, the waves are not a partition of the items, or `work` gave other ids than it
            was asked for. Rows of earlier waves stay.
        DataError: the shard is damaged; names file and line.
    """
    ids = [key(item) for item in items]
    waves = waves_of(items)
    cut = [key(item) for wave in waves for item in wave]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{shard.path}: {len(ids) - len(set(ids))} items repeat an id; ids must be unique.")
    if sorted(cut) != sorted(ids):
        odd = sorted(set(cut) ^ set(ids))[:3]
        raise ValueError(f"{shard.path}: waves hold {len(cut)} items, not the {len(ids)} given once each; e.g. {odd}.")
    computed = 0
    done = shard.done_ids()
    for number, wave in enumerate(waves, 1):
        wanted = [key(item) for item in wave]
        if not done.issuperset(wanted):
            rows = {row.get(shard.key): row for row in work(wave)}
            if rows.keys() != set(wanted):
                odd = sorted(map(str, rows.keys() ^ set(wanted)))[:3]
                raise ValueError(f"{shard.path}: wave {number} must give one row an item; missing or unasked: {odd}.")
            shard.append([rows[name] for name in wanted])
            computed += 1
        if on_wave is not None:
            on_wave(number, len(waves))
    return computed
