"""Shards: torn lines, repeated ids, kills between and inside writes, waves that restart to the same bytes, failures."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import Shard
from ttpa.options import option
from ttpa.run.waves import HOPELESS, Guarded, LocalExecutor, Rows, WaveLost, run_waves

ROOT = Path(__file__).resolve().parents[2]
A, B = b'{"id":"a","x":1}\n', b'{"id":"b","x":2}\n'


def waves_of_three(items: Sequence[str]) -> list[list[str]]:
    return [list(items[at : at + 3]) for at in range(0, len(items), 3)]


def compute(
    items: Sequence[str], work: Callable[[Sequence[str]], Rows], shard: Shard, executor: Any = None
) -> tuple[str, ...]:
    return run_waves(waves_of_three(items), lambda: work, executor or LocalExecutor(), shard, key=str)


class Work:
    """A wave's rows depend on the whole wave, as batched arithmetic does. Raises for a wave that holds one of `bad`."""

    def __init__(self, bad: Sequence[str] = "", error: type[BaseException] = ValueError) -> None:
        self.bad, self.error, self.asked = set(bad), error, list[str]()

    def __call__(self, wave: Sequence[str]) -> list[dict[str, Any]]:
        self.asked.append("".join(wave))
        if broken := sorted(self.bad & set(wave)):
            raise self.error(f"cannot do {broken[0]}")
        return [{"id": name, "wave": "".join(wave)} for name in reversed(wave)]


def test_rows_come_back_in_file_order_and_repeated_ids_are_ignored(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    assert shard.done_ids() == set() and list(shard.rows()) == []
    assert shard.append([{"id": "b", "x": 1}, {"id": "a", "x": 2}]) == 2
    assert shard.append([{"id": "a", "x": 3}, {"id": "c", "x": 4}]) == 1
    assert Shard(shard.path).append([{"id": "b", "x": 6}]) == 0
    assert [(row["id"], row["x"]) for row in shard.rows()] == [("b", 1), ("a", 2), ("c", 4)]
    assert shard.done_ids() == Shard(shard.path).done_ids() == {"a", "b", "c"}


@pytest.mark.parametrize("tail", [B[:-1], b'{"id":"b","x"', b"\0\0\0", b'{"id":"b",\n', b"{"])
def test_a_torn_last_line_is_no_row_and_is_cut_off_by_the_next_append(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(A + tail)
    shard = Shard(path)
    assert shard.done_ids() == {"a"} and [row["id"] for row in shard.rows()] == ["a"]
    assert path.read_bytes() == A + tail, "reading must not write: another process may be appending"
    assert shard.append([{"id": "b", "x": 2}]) == 1
    assert path.read_bytes() == A + B


def test_a_damaged_line_before_the_last_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(A + b"oops\n" + B)
    with pytest.raises(DataError, match=r"s:2: .*oops"):
        Shard(path).done_ids()
    with pytest.raises(DataError, match=r"s:2: "):
        Shard(path).append([{"id": "c"}])
    assert path.read_bytes() == A + b"oops\n" + B


@pytest.mark.parametrize("before", [b"", A])
@pytest.mark.parametrize("tail", [b"[1]\n", b'{"x":1}\n', b'{"x":1}', b'{"id":3}', b"5", b"notes"])
def test_a_last_line_that_no_kill_leaves_is_not_cut_off(tmp_path: Path, before: bytes, tail: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(before + tail)
    with pytest.raises(DataError, match=f"s:{1 + bool(before)}: not a JSON object with text under 'id'"):
        Shard(path).append([{"id": "b", "x": 2}])
    assert path.read_bytes() == before + tail


def test_any_cut_of_the_file_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "whole")
    compute("abcdefgh", Work(), shard)
    data = shard.path.read_bytes()
    for size in range(0, len(data) + 1, 3):
        (tmp_path / "cut").write_bytes(data[:size])
        work = Work()
        compute("abcdefgh", work, Shard(tmp_path / "cut"))
        assert (tmp_path / "cut").read_bytes() == data, size
        assert set(work.asked) <= {"abc", "def", "gh"}, "a wave must be computed whole"


def test_items_that_share_an_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repeat an id"):
        compute("aab", Work(), Shard(tmp_path / "s"))


@pytest.mark.parametrize("given", ["a", "abz"])
def test_work_that_answers_other_ids_is_an_error_and_writes_nothing(tmp_path: Path, given: str) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(ValueError, match="the wave of a must give"):
        compute(["a", "b"], lambda _: [{"id": name} for name in given], shard)
    assert shard.done_ids() == set()


# ---- samples that fail ----------------------------------------------------------------------------------------------


def errors_of(shard: Shard) -> list[dict[str, Any]]:
    return list(Shard(shard.path.with_name("errors.jsonl")).rows())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ConfigError])
def test_what_is_no_samples_fault_is_not_caught(error: type[BaseException]) -> None:
    work = Work("a", error)
    with pytest.raises(error):
        Guarded(lambda: work, str)(["a", "b"])
    assert work.asked == ["ab"]


@pytest.mark.parametrize("problem", [None, "a", "no room", "interrupted"])
def test_what_a_work_has_loaded_is_given_back_at_once(tmp_path: Path, problem: str | None) -> None:
    """However the run ends; and no circle of references keeps it until the collector comes by."""
    closed: list[str] = []
    kinds = {"no room": MemoryError, "interrupted": KeyboardInterrupt}

    class Loaded(Work):
        def close(self) -> None:
            closed.append("closed")

    kept: list[Any] = []

    def make_work() -> Work:
        work = Loaded("abc" if problem else "", kinds.get(problem or "", ValueError))
        kept.append(weakref.ref(work))
        return work

    gc.disable()
    try:
        with suppress(*kinds.values(), DataError):
            run_waves(waves_of_three("abc"), make_work, LocalExecutor(), Shard(tmp_path / "s"), key=str)
        assert closed == ["closed"] and kept[0]() is None
    finally:
        gc.enable()


def test_a_sample_that_fails_goes_to_the_errors_and_stops_no_other(tmp_path: Path) -> None:
    shard, work = Shard(tmp_path / "rows.jsonl"), Work("eh")
    assert compute("abcdefgh", work, shard) == ("e", "h")
    assert work.asked == ["abc", "def", "d", "e", "f", "gh", "g", "h"]
    assert [row["id"] for row in shard.rows()] == list("abcdfg")
    assert not any("error" in row for row in shard.rows())
    told = [(row["id"], row["error"], row["attempts"]) for row in errors_of(shard)]
    assert told == [(name, f"ValueError: cannot do {name}", 1) for name in "eh"]
    assert all("cannot do" in row["traceback"] for row in errors_of(shard))


def test_a_restart_tries_failed_samples_again_in_their_whole_wave(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    compute("abcdefgh", Work("eh"), shard)
    again = Work("h", TypeError)
    assert compute("abcdefgh", again, shard) == ("h",)
    assert again.asked == ["def", "gh", "g", "h"], "a wave without failures is not computed again"
    assert [row["id"] for row in shard.rows()] == list("abcdfge")
    (row,) = errors_of(shard)
    assert (row["id"], row["error"], row["attempts"]) == ("h", "TypeError: cannot do h", 2)
    assert compute("abcdefgh", Work(""), shard) == ()
    assert shard.done_ids() == set("abcdefgh")
    assert not (tmp_path / "errors.jsonl").exists()
    assert compute("abcdefgh", Work("abcdefgh"), shard) == ()


def test_a_stop_in_the_middle_keeps_the_failures_and_counts_the_attempt(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")

    def stopped(wave: Sequence[str]) -> Rows:
        if "g" in wave:
            raise KeyboardInterrupt
        return Work("b")(wave)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compute("abcdefgh", stopped, shard)
        assert [row["id"] for row in errors_of(shard)] == ["b"]
    with (tmp_path / "errors.jsonl").open("ab") as file:
        file.write(b'{"id":"e","err')  # the mark of a kill
    assert compute("abcdefgh", Work("bg"), shard) == ("b", "g")
    assert [(row["id"], row["attempts"]) for row in errors_of(shard)] == [("b", 2), ("g", 1)]


def test_when_nothing_succeeds_it_is_an_error_with_the_first_traceback(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    said = r"errors.jsonl: all 4 samples tried failed, of 4: (.|\n)*cannot do a"
    with pytest.raises(DataError, match=said) as caught:
        compute("abcd", Work("abcd"), shard)
    assert "Traceback" in str(caught.value) and "in __call__" in str(caught.value)
    assert [row["id"] for row in errors_of(shard)] == list("abcd"), "the file tells more than the message"
    assert compute("abcd", Work("abc"), shard) == ("a", "b", "c")
    assert compute("", Work(""), Shard(tmp_path / "none" / "rows.jsonl")) == ()


def test_a_hopeless_run_ends_early_but_not_once_anything_has_succeeded(tmp_path: Path) -> None:
    items = [f"{number:03d}" for number in range(3 * HOPELESS)]
    with pytest.raises(DataError, match=f"all {HOPELESS + 1} samples tried failed, of {3 * HOPELESS}"):
        compute(items, Work(items), Shard(tmp_path / "never" / "rows.jsonl"))
    assert compute(items, Work(items[1:]), Shard(tmp_path / "rarely" / "rows.jsonl")) == tuple(items[1:])


# ---- executors ------------------------------------------------------------------------------------------------------


@option
class Backwards(LocalExecutor):
    """Gives waves in reverse order, without the first `drop`; loses the wave `lose`."""

    drop: int = 0
    lose: int | None = None

    def run(self, make_work: Any, waves: Sequence[Any]) -> Any:
        work = make_work()
        for number in reversed(range(self.drop, len(waves))):
            if number == self.lose:
                raise WaveLost(number, "the lights went out")
            yield number, work(waves[number])


def test_another_order_of_waves_gives_the_same_lines(tmp_path: Path) -> None:
    forth, back = Shard(tmp_path / "forth"), Shard(tmp_path / "back")
    assert compute("abcdefgh", Work(), forth) == compute("abcdefgh", Work(), back, Backwards()) == ()
    lines = [shard.path.read_bytes().splitlines() for shard in (forth, back)]
    assert lines[0] != lines[1] and sorted(lines[0]) == sorted(lines[1])


def test_nothing_to_do_loads_nothing(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "s")
    shard.append([{"id": "a"}])
    assert run_waves(["a"], lambda: pytest.fail("loaded"), LocalExecutor(), shard, key=str) == ()


def test_a_lost_wave_is_an_error_that_names_its_samples(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(TtpaError, match="samples d, e, f: the lights went out"):
        compute("abcdefgh", Work(), shard, Backwards(lose=1))
    assert shard.done_ids() == {"g", "h"}
    items = [f"{number:02d}" for number in range(11)]
    with pytest.raises(TtpaError, match=r"samples 00, (\d\d, ){6}07 and 3 more: the lights"):
        run_waves([items], Work, Backwards(lose=0), Shard(tmp_path / "t"), key=str)


def test_waves_that_never_come_back_are_no_success(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="left out the waves of"):
        compute("abcdefgh", Work(), Shard(tmp_path / "s"), Backwards(drop=1))


# ---- kills ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from ttpa.io import Shard
from ttpa.run.waves import LocalExecutor, run_waves
waves = [[f"{n:03d}" for n in range(at, at + 4)] for at in range(0, 120, 4)]
def work(wave):
    print("wave", wave[0], flush=True)
    return [{"id": name, "wave": wave[0], "fill": "x" * 20000} for name in wave]
run_waves(waves, lambda: work, LocalExecutor(), Shard(Path(sys.argv[1])), key=str)
"""


def test_kills_in_the_middle_of_appends_lose_at_most_a_wave_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", CHILD, str(path)]
    draw = random.Random(0)
    for _ in range(6):
        before = len(list(Shard(path).rows()))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            announced = [child.stdout.readline() for _ in range(draw.randint(1, 5))]
            time.sleep(draw.random() * 0.003)
            os.kill(child.pid, signal.SIGKILL)
            announced += child.stdout.readlines()
        rows = list(Shard(path).rows())
        waves = sum(line.startswith("wave") for line in announced)
        assert len(rows) >= min(120, before // 4 * 4 + 4 * (waves - 1)), "more than the wave in progress was lost"
        assert [row["id"] for row in rows] == [f"{n:03d}" for n in range(len(rows))]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=60)
    rows = list(Shard(path).rows())
    assert [row["id"] for row in rows] == [f"{n:03d}" for n in range(120)]
    assert all(row["wave"] == f"{int(row['id']) // 4 * 4:03d}" for row in rows)
