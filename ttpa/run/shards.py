"""Append-only JSON-lines files inside a stage's working directory: what is done stays done when the process is killed.

A `Shard` is one file, one JSON object a line, each with an id. `run_waves` has samples computed in waves (by an
executor, `ttpa.run.executor`) and appends each wave whole, so a kill loses at most the waves in progress; a restart reads
the ids and goes on. A sample whose work raises goes to `errors.jsonl` beside the shard and does not stop the others.

What this module does not do: lock (the stage's lock in `ttpa.run.store` admits one writer, the process that calls
`run_waves`), start processes, or know what a row means. Called by `ttpa.run.stages`.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import dumps
from ttpa.run.executor import Executor, Rows, WaveLost, Work

Item = TypeVar("Item")

HOPELESS = 32
"""So many failures and not one success: a bug or a wrong setting. The other samples are not tried."""


class Shard:
    """One append-only file of JSON objects, told apart by the text under `key`.

    Reading never changes the file. A torn last line (a row without its newline, or not JSON: the mark of a kill in the
    middle of a write) does not count as a row, and the next `append` cuts it off first. One writer at a time.

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
            DataError: a line is neither a row nor torn; names file and line.
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
            DataError: a line is neither a row nor torn; names file and line.
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
            DataError: a line is neither a row nor torn; names file and line.
        """
        for row, _ in self._scan():
            yield row

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Makes these rows the content of the file, at once: a kill leaves the old or the new. No rows: no file."""
        self._ids, self._size = set(), -1
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        part = Shard(self.path.with_name(f".{self.path.name}.part"), self.key)
        part.path.unlink(missing_ok=True)
        part.append(rows)
        part.path.replace(self.path)

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
        torn: tuple[int, bytes] | None = None
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if torn is not None:
                    raise self._damaged(*torn)
                try:
                    row = json.loads(line)
                except ValueError:
                    if not line.startswith((b"{", b"\0")):  # zeros are what a crash of the machine may leave
                        raise self._damaged(number, line) from None
                    torn = number, line  # forgiven if it turns out to be the last line
                    continue
                if not isinstance(row, dict) or not isinstance(row.get(self.key), str):
                    raise self._damaged(number, line)
                if line.endswith(b"\n"):
                    end += len(line)
                    yield row, end

    def _damaged(self, number: int, line: bytes) -> DataError:
        where = f"{self.path}:{number}: not a JSON object with text under {self.key!r}: {line[:80]!r}"
        return DataError(f"{where}. Remove the line; its sample is computed again.")


def guarded(work: Work, key: Callable[[Any], str], field: str = "id") -> Work:
    """The same work, except that a sample that cannot be computed gives a row that says so, and stops no other.

    When a wave raises, its samples are computed again one by one, to find the one at fault. Their rows are then those
    of waves of one, which for batched floating-point work differ by rounding.

    Args:
        work: rows of one wave.
        key: id of an item.
        field: under which name rows carry the id.

    Returns:
        Work that raises nothing but what is no sample's fault: MemoryError, ConfigError and what is no Exception. The
        row of a failure is `{"id": ..., "error": "TypeName: message", "traceback": ...}`.

    Example:
        >>> work = guarded(lambda wave: [{"id": name, "x": 1 / int(name)} for name in wave], str)
        >>> [row.get("x", row.get("error")) for row in work(["1", "0", "2"])]
        [1.0, 'ZeroDivisionError: division by zero', 0.5]
    """

    def safe(wave: Sequence[Any]) -> Rows:
        try:
            return list(work(wave))
        except (MemoryError, ConfigError):
            raise
        except Exception as error:
            if len(wave) == 1:
                reason = f"{type(error).__name__}: {error}"
                return [{field: key(wave[0]), "error": reason, "traceback": traceback.format_exc()}]
        # Only here is the exception gone, and with it what its frames held in a GPU's memory.
        return [row for item in wave for row in safe([item])]

    return safe


def _make_guarded(make_work: Callable[[], Work], key: Callable[[Any], str], field: str) -> Work:
    return guarded(make_work(), key, field)


@dataclass(frozen=True, slots=True)
class Computed:
    """What `run_waves` did.

    Args:
        waves: Waves computed now.
        failed: Ids that have no row because their work raised, in the order of the items; `errors.jsonl` says why.
    """

    waves: int
    failed: tuple[str, ...]


class _Errors:
    """`errors.jsonl` beside a shard: a line for each sample that was tried and has no row.

    It is a report. What is done is decided by the shard alone, so that no kill can make the two disagree.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = Shard(shard.path.with_name("errors.jsonl"), shard.key)
        self.before = {row[shard.key]: row.get("attempts", 0) for row in self.shard.rows()}
        self.rows: dict[str, dict[str, Any]] = {}
        """Id -> row of each failure of this attempt."""

    def add(self, rows: Rows) -> None:
        """Notes failures. The line of an earlier attempt at the same sample stays until `settle`."""
        for row in rows:
            name = row[self.shard.key]
            self.rows[name] = {**row, "attempts": self.before.get(name, 0) + 1}
        self.shard.append([self.rows[row[self.shard.key]] for row in rows])

    def settle(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Leaves the failures of this attempt, in the order of `ids`: all without a row were tried in it."""
        failed = tuple(name for name in ids if name in self.rows)
        self.shard.replace([self.rows[name] for name in failed])
        return failed

    def of_all(self, count: int) -> DataError:
        """The error to raise when nothing succeeded, of `count` samples."""
        first = next(self.shard.rows())
        return DataError(
            f"{self.shard.path}: all {len(self.rows)} samples tried failed, of {count}: a bug or a wrong setting, not "
            f"bad samples. The first, {first[self.shard.key]}:\n{first['traceback']}"
        )


def run_waves(
    items: Sequence[Item],
    key: Callable[[Item], str],
    waves_of: Callable[[Sequence[Item]], Sequence[Sequence[Item]]],
    make_work: Callable[[], Work],
    executor: Executor,
    shard: Shard,
    on_wave: Callable[[int, int, Rows], None] | None = None,
) -> Computed:
    """Computes every item once over any number of restarts.

    Batched floating-point work depends on what is in the batch. So the waves are cut from all items, never from those
    left over; a wave is skipped when all its rows are there and computed whole otherwise, and of a wave computed again
    only the missing rows are appended, in the order of its items. A restarted run thus ends with the lines of one that
    was never stopped, provided that the work is a function of its wave; with the same bytes, where the executor also
    gives waves back in order (`LocalExecutor`).

    A sample whose work raises (see `guarded`) has a line in `errors.jsonl` instead, with its traceback and the number
    of attempts, and is tried again by each restart.

    Args:
        items: what to compute.
        key: id of an item, the one its row carries under `shard.key`. Rows must not use the key "error".
        waves_of: cuts all items into waves; each item in exactly one. Must not look at what is done.
        make_work: loads and gives the work: rows of one wave, one for each item, in any order. Not called when nothing
            is left to do.
        executor: where waves are computed; `make_work`, `key` and the waves must be picklable if it is elsewhere.
        shard: where rows go.
        on_wave: called at the start and after each wave with the number of items behind, of all items, and the rows
            that were computed (none at the start).

    Returns:
        How many waves were computed, and which samples failed.

    Raises:
        ValueError: two items share an id, the waves are not a partition of the items, or the work gave other ids than
            it was asked for. Rows of earlier waves stay.
        DataError: the shard is damaged (names file and line), or no sample at all could be computed.
        TtpaError: the processes that computed a wave died too often; names its samples.
    """
    waves = _checked_waves(items, key, waves_of, shard)
    done = shard.done_ids()
    todo = [wave for wave in waves if not done.issuperset(map(key, wave))]
    tell = on_wave if on_wave is not None else lambda *_: None
    behind = len(items) - sum(map(len, todo))
    tell(behind, len(items), ())
    errors, computed = _Errors(shard), 0
    with closing(executor.run(partial(_make_guarded, make_work, key, shard.key), todo)) as answers:
        try:
            for number, rows in answers:
                wanted = [key(item) for item in todo[number]]
                good = _append(rows, wanted, shard, errors)
                computed += 1
                behind += len(wanted)
                tell(behind, len(items), good)
                if len(errors.rows) >= HOPELESS and not shard.done_ids():
                    break
        except WaveLost as error:
            names = [key(item) for item in todo[error.number]]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise TtpaError(f"{shard.path}: samples {', '.join(names[:8])}{more}: {error.reason}") from error
    failed = errors.settle([key(item) for item in items])
    if failed and not shard.done_ids():
        raise errors.of_all(len(items))
    if computed != len(todo):
        raise ValueError(f"{shard.path}: {executor} gave {computed} of {len(todo)} waves.")
    return Computed(computed, failed)


def _checked_waves(
    items: Sequence[Item],
    key: Callable[[Item], str],
    waves_of: Callable[[Sequence[Item]], Sequence[Sequence[Item]]],
    shard: Shard,
) -> Sequence[Sequence[Item]]:
    """The waves, which hold each item once."""
    ids = [key(item) for item in items]
    waves = waves_of(items)
    cut = [key(item) for wave in waves for item in wave]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{shard.path}: {len(ids) - len(set(ids))} items repeat an id; ids must be unique.")
    if sorted(cut) != sorted(ids):
        odd = sorted(set(cut) ^ set(ids))[:3]
        raise ValueError(f"{shard.path}: waves hold {len(cut)} items, not the {len(ids)} given once each; e.g. {odd}.")
    return waves


def _append(rows: Rows, wanted: Sequence[str], shard: Shard, errors: _Errors) -> Rows:
    """Puts the rows of one wave where they belong; returns those that are no failures."""
    found = {row.get(shard.key): row for row in rows}
    if found.keys() != set(wanted):
        odd = sorted(map(str, found.keys() ^ set(wanted)))[:3]
        raise ValueError(f"{shard.path}: the wave of {wanted[0]} must give one row an item; missing or unasked: {odd}.")
    good = [found[name] for name in wanted if "error" not in found[name]]
    shard.append(good)
    # A wave computed again may fail for a sample that has its row from an earlier attempt.
    done = shard.done_ids()
    errors.add([found[name] for name in wanted if "error" in found[name] and name not in done])
    return good
