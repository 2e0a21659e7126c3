"""Shards: torn lines, repeated ids, kills between and inside writes, waves that restart to the same bytes, failures."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.run.waves import HOPELESS, LocalExecutor, Rows, Shard, WaveLost, guarded, run_waves

ROOT = Path(__file__).resolve().parents[2]
A, B = b'{"id":"a","x":1}\n', b'{"id":"b","x":2}\n'


def waves_of_three(items: Sequence[str]) -> list[list[str]]:
    return [list(items[at : at + 3]) for at in range(0, len(items), 3)]


class Work:
    """A wave's rows depend on the whole wave, as batched arithmetic does; stops before wave `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.waves: list[list[str]] = []
        self.stop = stop

    def __call__(self, wave: Sequence[str]) -> list[dict[str, Any]]:
        if self.stop is not None and len(self.waves) == self.stop:
            raise KeyboardInterrupt
        self.waves.append(list(wave))
        return [{"id": name, "wave": "".join(wave)} for name in reversed(wave)]


def run(path: Path, items: Sequence[str], work: Work, seen: list[tuple[int, int, int]] | None = None) -> int:
    notes = seen if seen is not None else []
    run_waves(
        items,
        str,
        waves_of_three(items),
        lambda: work,
        LocalExecutor(),
        Shard(path),
        lambda behind, count, rows: notes.append((behind, count, len(rows))),
    )
    return len(work.waves)


def test_rows_come_back_in_file_order_and_repeated_ids_are_ignored(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    assert shard.done_ids() == set() and list(shard.rows()) == []
    assert shard.append([{"id": "b", "x": 1}, {"id": "a", "x": 2}]) == 2
    assert shard.append([{"id": "a", "x": 3}, {"id": "c", "x": 4}, {"id": "c", "x": 5}]) == 1
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


def test_a_file_torn_behind_our_back_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shard = Shard(path)
    shard.append([{"id": "a", "x": 1}])
    path.write_bytes(A + B[:4])
    shard.append([{"id": "b", "x": 2}])
    assert path.read_bytes() == A + B
    path.unlink()
    assert shard.done_ids() == set()


def test_replacing_the_rows_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shard = Shard(path)
    shard.append([{"id": "a", "x": 1}])
    (tmp_path / ".s.part").write_bytes(A)  # what a kill in the middle leaves
    assert list(shard.rows()) == [{"id": "a", "x": 1}]
    shard.replace([{"id": "b", "x": 2}])
    assert path.read_bytes() == B and shard.done_ids() == {"b"}, "of the same size as before"
    assert shard.append([{"id": "a", "x": 1}]) == 1
    shard.replace([])
    assert list(tmp_path.iterdir()) == [] and shard.done_ids() == set()


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


@pytest.mark.parametrize("bad", [{"x": 1}, {"id": 3}, {"id": None}])
def test_a_row_without_text_id_writes_nothing(tmp_path: Path, bad: Mapping[str, Any]) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(ValueError, match="id="):
        shard.append([{"id": "a"}, bad])
    assert shard.done_ids() == set()


def test_any_cut_of_the_file_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    items = list("abcdefgh")
    run(tmp_path / "whole", items, Work())
    data = (tmp_path / "whole").read_bytes()
    for size in range(len(data) + 1):
        (tmp_path / "cut").write_bytes(data[:size])
        work = Work()
        run(tmp_path / "cut", items, work)
        assert (tmp_path / "cut").read_bytes() == data, size
        assert all(wave in waves_of_three(items) for wave in work.waves), "a wave must be computed whole"


@pytest.mark.parametrize(
    ("items", "waves", "message"),
    [
        ("aab", [["a", "a", "b"]], "repeat an id"),
        ("abc", [["a", "b"]], "each of 3 items once"),
        ("abc", [["a", "b"], ["b", "c"]], "each of 3 items once"),
        ("ab", [["a", "b", "z"]], "each of 2 items once"),
    ],
)
def test_waves_must_hold_each_item_once(tmp_path: Path, items: str, waves: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_waves(list(items), str, waves, Work, LocalExecutor(), Shard(tmp_path / "s"))


@pytest.mark.parametrize("given", ["a", "abz", ""])
def test_work_that_answers_other_ids_is_an_error_and_writes_nothing(tmp_path: Path, given: str) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(ValueError, match="the wave of a must give"):
        compute(["a", "b"], lambda _: [{"id": name} for name in given], shard)
    assert shard.done_ids() == set()


# ---- samples that fail ----------------------------------------------------------------------------------------------


def compute(items: Sequence[str], work: Callable[[Sequence[str]], Rows], shard: Shard) -> tuple[str, ...]:
    return run_waves(items, str, waves_of_three(items), lambda: work, LocalExecutor(), shard)


class Fragile:
    """Raises for a wave that holds one of `bad`; notes the waves it was asked for."""

    def __init__(self, bad: str, error: type[BaseException] = ValueError) -> None:
        self.bad, self.error = set(bad), error
        self.asked: list[str] = []

    def __call__(self, wave: Sequence[str]) -> list[dict[str, Any]]:
        self.asked.append("".join(wave))
        if broken := sorted(self.bad & set(wave)):
            raise self.error(f"cannot do {broken[0]}")
        return [{"id": name, "wave": "".join(wave)} for name in wave]


def errors_of(shard: Shard) -> list[dict[str, Any]]:
    return list(Shard(shard.path.with_name("errors.jsonl")).rows())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ConfigError])
def test_what_is_no_samples_fault_is_not_caught(error: type[BaseException]) -> None:
    work = Fragile("a", error)
    with pytest.raises(error):
        guarded(work, str)(["a", "b"])
    assert work.asked == ["ab"]


def test_a_sample_that_fails_goes_to_the_errors_and_stops_no_other(tmp_path: Path) -> None:
    shard, work = Shard(tmp_path / "rows.jsonl"), Fragile("eh")
    assert compute("abcdefgh", work, shard) == ("e", "h")
    assert work.asked == ["abc", "def", "d", "e", "f", "gh", "g", "h"]
    assert [row["id"] for row in shard.rows()] == list("abcdfg")
    assert not any("error" in row for row in shard.rows())
    assert [(row["id"], row["error"], row["attempts"]) for row in errors_of(shard)] == [
        ("e", "ValueError: cannot do e", 1),
        ("h", "ValueError: cannot do h", 1),
    ]
    assert all("cannot do" in row["traceback"] for row in errors_of(shard))


def test_a_restart_tries_failed_samples_again_in_their_whole_wave(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    compute("abcdefgh", Fragile("eh"), shard)
    again = Fragile("h", TypeError)
    assert compute("abcdefgh", again, shard) == ("h",)
    assert again.asked == ["def", "gh", "g", "h"], "a wave without failures is not computed again"
    assert [row["id"] for row in shard.rows()] == list("abcdfge")
    (row,) = errors_of(shard)
    assert (row["id"], row["error"], row["attempts"]) == ("h", "TypeError: cannot do h", 2)
    assert compute("abcdefgh", Fragile(""), shard) == ()
    assert shard.done_ids() == set("abcdefgh")
    assert not (tmp_path / "errors.jsonl").exists()
    assert compute("abcdefgh", Fragile("abcdefgh"), shard) == ()


def test_a_stop_in_the_middle_keeps_the_failures_and_counts_the_attempt(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")

    def stopped(wave: Sequence[str]) -> Rows:
        if "g" in wave:
            raise KeyboardInterrupt
        return Fragile("b")(wave)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compute("abcdefgh", stopped, shard)
        assert [row["id"] for row in errors_of(shard)] == ["b"]
    with (tmp_path / "errors.jsonl").open("ab") as file:
        file.write(b'{"id":"e","err')  # the mark of a kill
    assert compute("abcdefgh", Fragile("bg"), shard) == ("b", "g")
    assert [(row["id"], row["attempts"]) for row in errors_of(shard)] == [("b", 2), ("g", 1)]


def test_when_nothing_succeeds_it_is_an_error_with_the_first_traceback(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "rows.jsonl")
    with pytest.raises(
        DataError, match=r"errors.jsonl: all 4 samples tried failed, of 4: (.|\n)*cannot do a"
    ) as caught:
        compute("abcd", Fragile("abcd"), shard)
    assert "Traceback" in str(caught.value) and "in __call__" in str(caught.value)
    assert [row["id"] for row in errors_of(shard)] == list("abcd"), "the file tells more than the message"
    assert compute("abcd", Fragile("abc"), shard) == ("a", "b", "c")
    assert compute("", Fragile(""), Shard(tmp_path / "none" / "rows.jsonl")) == ()


def test_a_hopeless_run_ends_early_but_not_once_anything_has_succeeded(tmp_path: Path) -> None:
    items = [f"{number:03d}" for number in range(3 * HOPELESS)]
    never = Fragile("")
    never.bad = set(items)
    with pytest.raises(DataError, match=f"all {HOPELESS + 1} samples tried failed, of {3 * HOPELESS}"):
        compute(items, never, Shard(tmp_path / "never" / "rows.jsonl"))
    rarely = Fragile("")
    rarely.bad = set(items[1:])
    assert compute(items, rarely, Shard(tmp_path / "rarely" / "rows.jsonl")) == tuple(items[1:])


# ---- executors ------------------------------------------------------------------------------------------------------


class Backwards:
    """Gives waves in reverse order, then stops early or raises."""

    def __init__(self, drop: int = 0, lose: int | None = None) -> None:
        self.drop, self.lose = drop, lose
        self.closed = False

    def check(self) -> None:
        pass

    def run(self, make_work: Any, waves: Sequence[Any]) -> Any:
        try:
            work = make_work()
            for number in reversed(range(self.drop, len(waves))):
                if number == self.lose:
                    raise WaveLost(number, "the lights went out")
                yield number, work(waves[number])
        finally:
            self.closed = True


def test_another_order_of_waves_gives_the_same_lines(tmp_path: Path) -> None:
    items = list("abcdefgh")
    run(tmp_path / "forth", items, Work())
    assert run_waves(items, str, waves_of_three(items), Work, Backwards(), Shard(tmp_path / "back")) == ()
    forth, back = (tmp_path / "forth").read_bytes(), (tmp_path / "back").read_bytes()
    assert forth != back and sorted(forth.splitlines()) == sorted(back.splitlines())


def test_nothing_to_do_loads_nothing(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "s")
    shard.append([{"id": "a"}])

    def make_work() -> Any:
        raise AssertionError("loaded")

    assert run_waves(["a"], str, waves_of_three(["a"]), make_work, LocalExecutor(), shard) == ()


def test_a_lost_wave_is_an_error_that_names_its_samples(tmp_path: Path) -> None:
    executor, shard = Backwards(lose=1), Shard(tmp_path / "s")
    with pytest.raises(TtpaError, match="samples d, e, f: the lights went out"):
        run_waves(list("abcdefgh"), str, waves_of_three(list("abcdefgh")), Work, executor, shard)
    assert shard.done_ids() == {"g", "h"}
    items = [f"{number:02d}" for number in range(11)]
    with pytest.raises(TtpaError, match=r"samples 00, (\d\d, ){6}07 and 3 more: the lights"):
        run_waves(items, str, [items], Work, Backwards(lose=0), Shard(tmp_path / "t"))


def test_waves_that_never_come_back_are_no_success(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="left out the waves of"):
        run_waves(
            list("abcdefgh"), str, waves_of_three(list("abcdefgh")), Work, Backwards(drop=1), Shard(tmp_path / "s")
        )


# ---- kills ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from ttpa.run.waves import LocalExecutor, Shard, run_waves
items = [f"{n:03d}" for n in range(120)]
cut = lambda items: [items[at : at + 4] for at in range(0, len(items), 4)]
def work(wave):
    print("wave", wave[0], flush=True)
    return [{"id": name, "wave": wave[0], "fill": "x" * 20000} for name in wave]
run_waves(items, str, cut(items), lambda: work, LocalExecutor(), Shard(Path(sys.argv[1])))
"""


def test_kills_in_the_middle_of_appends_lose_at_most_a_wave_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", CHILD, str(path)]
    draw = random.Random(0)
    announced: list[str] = []
    for _ in range(6):
        before = len(list(Shard(path).rows()))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            announced = []
            for _ in range(draw.randint(1, 5)):
                announced.append(child.stdout.readline())
            time.sleep(draw.random() * 0.003)
            os.kill(child.pid, signal.SIGKILL)
            announced += child.stdout.readlines()
        rows = list(Shard(path).rows())
        waves = len([line for line in announced if line.startswith("wave")])
        assert len(rows) >= min(120, before // 4 * 4 + 4 * (waves - 1)), "more than the wave in progress was lost"
        assert [row["id"] for row in rows] == [f"{n:03d}" for n in range(len(rows))]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=60)
    rows = list(Shard(path).rows())
    assert [row["id"] for row in rows] == [f"{n:03d}" for n in range(120)]
    assert all(row["wave"] == f"{int(row['id']) // 4 * 4:03d}" for row in rows)
