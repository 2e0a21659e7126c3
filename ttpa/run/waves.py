"""Rows of a stage, computed in waves (lists of samples computed together) and appended to a file that survives kills.

A sample whose work raises goes to `errors.jsonl` beside the file. The stage's lock admits one writer.
"""

import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import Shard, write_jsonl
from ttpa.options import option

Wave = Sequence[Any]
Rows = Sequence[Mapping[str, Any]]
Work = Callable[[Wave], Rows]
"""Gives the rows of one wave. A function of the wave alone; it brings loaded things (model, engine) with it, which its
method `close`, if it has one, gives back."""

HOPELESS = 32  # after so many failures and no success the others are not tried: it is a bug or a wrong setting


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
        """Yields (number of the wave, its rows), each wave once, in any order. Closed early, it stops. `make_work` is
        called once in each process that computes, and not without waves, and what it gives is closed in the end. A
        wave whose processes died is a `WaveLost`.
        """


def close(work: Any) -> None:
    """Has a `Work` give back what it has loaded."""
    getattr(work, "close", lambda: None)()


@option
class LocalExecutor:
    """Computes in this process, in order."""

    def check(self) -> None: ...
    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Generator[tuple[int, Rows], None, None]:
        """See `Executor`."""
        if waves:
            work = make_work()
            try:
                yield from enumerate(map(work, waves))
            finally:
                close(work)


class Guarded:
    """The same work, but a sample that raises gives a row `{"id": ..., "error": ..., "traceback": ...}` instead. When a
    wave raises, its samples are computed again one by one. MemoryError and ConfigError are no sample's fault.
    """

    def __init__(self, make_work: Callable[[], Work], key: Callable[[Any], str]) -> None:
        self.work, self.key = make_work(), key

    def __call__(self, wave: Wave) -> Rows:
        try:
            return list(self.work(wave))
        except (MemoryError, ConfigError):
            raise
        except Exception as error:
            if len(wave) == 1:
                reason = f"{type(error).__name__}: {error}"
                return [{"id": self.key(wave[0]), "error": reason, "traceback": traceback.format_exc()}]
        # Only here is the exception gone, and with it what its frames held in a GPU's memory.
        return [row for item in wave for row in self([item])]

    def close(self) -> None:
        close(self.work)


def run_waves(
    waves: Sequence[Wave],
    make_work: Callable[[], Work],
    executor: Executor,
    shard: Shard,
    on_wave: Callable[[int, int, Rows], None] = lambda *_: None,
    key: Callable[[Any], str] = attrgetter("id"),
) -> tuple[str, ...]:
    """Computes every item of the waves once over any number of restarts, into a row with the item's `key` as its id.

    Batched floating-point work depends on what is in the batch, so the waves are cut from all items and a wave is
    computed whole or not at all: same waves, same rows, locally, on Ray and after a restart. A restart tries samples
    that failed again. `on_wave` is called at the start and after each wave with the number of items done, of all items,
    and the new rows. Returns the ids of the samples that failed; `errors.jsonl` says why. No sample at all that could
    be computed is a DataError, a wave whose processes died too often a TtpaError that names its samples.
    """
    ids = [key(item) for wave in waves for item in wave]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{shard.path}: {len(ids) - len(set(ids))} items repeat an id; ids must be unique.")
    todo = [wave for wave in waves if not shard.done_ids().issuperset(map(key, wave))]
    behind = len(ids) - sum(map(len, todo))
    on_wave(behind, len(ids), ())
    errors = Shard(shard.path.with_name("errors.jsonl"))  # a line for each sample that was tried and has no row
    before = {row["id"]: row.get("attempts", 0) for row in errors.rows()}
    failed: dict[str, dict[str, Any]] = {}
    with closing(executor.run(partial(Guarded, make_work, key), todo)) as answers:
        try:
            for number, rows in answers:
                wanted = [key(item) for item in todo[number]]
                by_id = {row.get("id"): row for row in rows}
                if odd := by_id.keys() ^ set(wanted):
                    raise ValueError(f"{shard.path}: the wave of {wanted[0]} must give one row an item, not {odd}.")
                good = [by_id[name] for name in wanted if "error" not in by_id[name]]
                shard.append(good)
                # A wave computed again may fail for a sample that has its row from an earlier attempt.
                bad = [name for name in wanted if "error" in by_id[name] and name not in shard.done_ids()]
                failed |= {name: {**by_id[name], "attempts": before.get(name, 0) + 1} for name in bad}
                errors.append([failed[name] for name in bad])
                behind += len(wanted)
                on_wave(behind, len(ids), good)
                if len(failed) >= HOPELESS and not shard.done_ids():
                    break
        except WaveLost as error:
            names = [key(item) for item in todo[error.number]]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise TtpaError(f"{shard.path}: samples {', '.join(names[:8])}{more}: {error.reason}") from error
    names = [name for name in ids if name in failed]
    if names:
        write_jsonl(errors.path, [failed[name] for name in names])  # those of earlier attempts are settled
    else:
        errors.path.unlink(missing_ok=True)
    if names and not shard.done_ids():
        said = f"all {len(names)} samples tried failed, of {len(ids)}: a bug or a wrong setting, not bad samples"
        raise DataError(f"{errors.path}: {said}. The first, {names[0]}:\n{failed[names[0]]['traceback']}")
    if behind != len(ids):
        raise ValueError(f"{shard.path}: {executor} left out the waves of {len(ids) - behind} items.")
    return tuple(names)
