"""Rows of a stage, computed in waves (lists of samples computed together) and appended to a file that survives kills.

A sample whose work raises goes to `errors.jsonl` beside the file and does not stop the others. This module does not
lock: the stage's lock admits one writer. The Ray executor is `ttpa.run.ray_executor`.
"""

import json
import os
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import dumps
from ttpa.options import option

Item = TypeVar("Item")
Wave = Sequence[Any]
Rows = Sequence[Mapping[str, Any]]
Work = Callable[[Wave], Rows]
"""Gives the rows of one wave. A function of the wave alone; it brings loaded things (model, engine) with it."""

HOPELESS = 32
"""After so many failures and no success, the other samples are not tried: it is a bug or a wrong setting."""


class WaveLost(TtpaError):
    """The processes that computed one wave died too often. `number` counts from 0 in the waves handed over."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"wave {number}: {reason}")
        self.number, self.reason = number, reason


class Executor(Protocol):
    """Computes waves somewhere."""

    def check(self) -> None:
        """Raises ConfigError where this executor cannot run; says what is missing."""

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Generator[tuple[int, Rows], None, None]:
        """Yields (number of the wave, its rows), each wave once, in any order. Closed early, it stops.

        `make_work` is called once in each process that computes, and not at all without waves.

        Raises:
            WaveLost: processes died, and trying again did not help.
            Exception: whatever the work raises. Rows yielded before stay valid.
        """


@option
class LocalExecutor:
    """Computes in this process, in order."""

    def check(self) -> None:
        """Nothing can be missing."""

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Generator[tuple[int, Rows], None, None]:
        """See `Executor`."""
        work = make_work() if waves else None
        for number, wave in enumerate(waves):
            assert work is not None
            yield number, work(wave)


class Shard:
    """One append-only file of JSON objects, told apart by the text under `key`. One writer at a time.

    Reading never changes the file. A torn last line (without its newline, or not JSON: the mark of a kill while
    writing) is no row, and the next `append` cuts it off first. Other damage raises DataError with file and line.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path, self.key = Path(path), key
        self._ids: set[str] = set()
        self._size = -1
        """Bytes of whole rows when the file was last read or written here; another size means: read it again."""

    def done_ids(self) -> set[str]:
        """Ids of the rows in the file."""
        self._look()
        return set(self._ids)

    def append(self, rows: Rows) -> int:
        """Adds the rows whose id is new, with one write, and returns their number when they are on disk."""
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
        """Yields the rows in file order."""
        return (row for row, _ in self._scan())

    def replace(self, rows: Rows) -> None:
        """Makes these rows the whole content of the file at once. Without rows there is no file."""
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
    """The same work, but a sample that raises gives a row `{field: id, "error": ..., "traceback": ...}` instead.

    When a wave raises, its samples are computed again one by one, to find the one at fault. MemoryError and ConfigError
    are no sample's fault and are raised.
    """

    def safe(wave: Wave) -> Rows:
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


class _Errors:
    """`errors.jsonl` beside a shard: a line for each sample that was tried and has no row."""

    def __init__(self, shard: Shard) -> None:
        self.shard = Shard(shard.path.with_name("errors.jsonl"), shard.key)
        self.before = {row[shard.key]: row.get("attempts", 0) for row in self.shard.rows()}
        self.rows: dict[str, dict[str, Any]] = {}  # of this attempt, by id

    def add(self, rows: Rows) -> None:
        for row in rows:
            name = row[self.shard.key]
            self.rows[name] = {**row, "attempts": self.before.get(name, 0) + 1}
        self.shard.append([self.rows[row[self.shard.key]] for row in rows])

    def settle(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Leaves the failures of this attempt alone in the file and gives their ids in the order of `ids`."""
        failed = tuple(name for name in ids if name in self.rows)
        self.shard.replace([self.rows[name] for name in failed])
        return failed


def run_waves(
    items: Sequence[Item],
    key: Callable[[Item], str],
    waves: Sequence[Sequence[Item]],
    make_work: Callable[[], Work],
    executor: Executor,
    shard: Shard,
    on_wave: Callable[[int, int, Rows], None] = lambda *_: None,
) -> tuple[str, ...]:
    """Computes every item once over any number of restarts.

    Batched floating-point work depends on what is in the batch, so the waves are cut from all items and a wave is
    computed whole or not at all: same waves, same rows, locally, on Ray and after a restart. A restart tries samples
    that failed again.

    Args:
        items: What to compute; each stands in exactly one of `waves`.
        key: Id of an item; its row carries it under `shard.key`. Rows must not use the key "error".
        make_work: Loads and gives the work, picklable for an executor in other processes.
        on_wave: Called at the start and after each wave with the number of items done, of all items, and the new rows.

    Returns:
        Ids of the samples that failed; `errors.jsonl` beside the shard says why.

    Raises:
        ValueError: two items share an id, the waves are no partition of the items, or the work gave other ids.
        DataError: the shard is damaged (names file and line), or no sample at all could be computed.
        TtpaError: the processes that computed a wave died too often; names its samples.
    """
    ids = [key(item) for item in items]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{shard.path}: {len(ids) - len(set(ids))} items repeat an id; ids must be unique.")
    if sorted(key(item) for wave in waves for item in wave) != sorted(ids):
        raise ValueError(f"{shard.path}: the waves must hold each of {len(ids)} items once.")
    done = shard.done_ids()
    todo = [wave for wave in waves if not done.issuperset(map(key, wave))]
    behind = len(items) - sum(map(len, todo))
    on_wave(behind, len(items), ())
    errors = _Errors(shard)
    with closing(executor.run(partial(_make_guarded, make_work, key, shard.key), todo)) as answers:
        try:
            for number, rows in answers:
                wanted = [key(item) for item in todo[number]]
                good = _append(rows, wanted, shard, errors)
                behind += len(wanted)
                on_wave(behind, len(items), good)
                if len(errors.rows) >= HOPELESS and not shard.done_ids():
                    break
        except WaveLost as error:
            names = [key(item) for item in todo[error.number]]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise TtpaError(f"{shard.path}: samples {', '.join(names[:8])}{more}: {error.reason}") from error
    failed = errors.settle(ids)
    if failed and not shard.done_ids():
        first = errors.rows[failed[0]]
        raise DataError(
            f"{errors.shard.path}: all {len(failed)} samples tried failed, of {len(items)}: a bug or a wrong setting, "
            f"not bad samples. The first, {failed[0]}:\n{first['traceback']}"
        )
    if behind != len(items):
        raise ValueError(f"{shard.path}: {executor} left out the waves of {len(items) - behind} items.")
    return failed


def _append(rows: Rows, wanted: Sequence[str], shard: Shard, errors: _Errors) -> Rows:
    """Puts the rows of one wave where they belong; returns those that are no failures."""
    by_id = {row.get(shard.key): row for row in rows}
    if by_id.keys() != set(wanted):
        odd = sorted(map(str, by_id.keys() ^ set(wanted)))[:3]
        raise ValueError(f"{shard.path}: the wave of {wanted[0]} must give one row an item; missing or unasked: {odd}.")
    good = [by_id[name] for name in wanted if "error" not in by_id[name]]
    shard.append(good)
    # A wave computed again may fail for a sample that has its row from an earlier attempt.
    done = shard.done_ids()
    errors.add([by_id[name] for name in wanted if "error" in by_id[name] and name not in done])
    return good
