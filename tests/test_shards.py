"""Shards: torn lines, repeated ids, kills between and inside writes, and waves that restart to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ttpa.errors import DataError
from ttpa.shards import Shard, run_waves

ROOT = Path(__file__).resolve().parents[1]
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


def run(path: Path, items: Sequence[str], work: Work, seen: list[tuple[int, int]] | None = None) -> int:
    note = None if seen is None else lambda number, count: seen.append((number, count))
    return run_waves(items, str, waves_of_three, work, Shard(path), note)


def test_rows_come_back_in_file_order_and_repeated_ids_are_ignored(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "deep" / "rows.jsonl")
    assert shard.done_ids() == set() and list(shard.rows()) == []
    assert shard.append([{"id": "b", "x": 1}, {"id": "a", "x": 2}]) == 2
    assert shard.append([{"id": "a", "x": 3}, {"id": "c", "x": 4}, {"id": "c", "x": 5}]) == 1
    assert Shard(shard.path).append([{"id": "b", "x": 6}]) == 0
    assert [(row["id"], row["x"]) for row in shard.rows()] == [("b", 1), ("a", 2), ("c", 4)]
    assert shard.done_ids() == Shard(shard.path).done_ids() == {"a", "b", "c"}


def test_text_survives_whatever_it_holds(tmp_path: Path) -> None:
    rows = [{"id": "\u2028\n", "text": 'caf\u00e9 "\\ \x85 \u2029'}, {"id": "e\u0301", "text": "\r\n"}]
    Shard(tmp_path / "s").append(rows)
    assert list(Shard(tmp_path / "s").rows()) == rows


def test_ids_under_another_key(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "s", key="sample_id")
    shard.append([{"sample_id": "a", "id": 1}])
    assert Shard(tmp_path / "s", key="sample_id").done_ids() == {"a"}


@pytest.mark.parametrize("tail", [B[:-1], b'{"id":"b","x"', b"\0\0\0", b'{"id":"b",\n', b"[1]\n", b'{"x":1}\n'])
def test_a_torn_last_line_is_no_row_and_is_cut_off_by_the_next_append(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(A + tail)
    shard = Shard(path)
    assert shard.done_ids() == {"a"} and [row["id"] for row in shard.rows()] == ["a"]
    assert path.read_bytes() == A + tail, "reading must not write: another process may be appending"
    assert shard.append([{"id": "b", "x": 2}]) == 1
    assert path.read_bytes() == A + B


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(A[:5])
    assert Shard(path).append([{"id": "a", "x": 1}]) == 1
    assert path.read_bytes() == A


def test_a_file_torn_behind_our_back_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shard = Shard(path)
    shard.append([{"id": "a", "x": 1}])
    path.write_bytes(A + B[:4])
    shard.append([{"id": "b", "x": 2}])
    assert path.read_bytes() == A + B
    path.unlink()
    assert shard.done_ids() == set()


def test_rows_added_through_another_object_are_seen(tmp_path: Path) -> None:
    one, two = Shard(tmp_path / "s"), Shard(tmp_path / "s")
    one.append([{"id": "a"}])
    two.append([{"id": "b"}])
    assert one.append([{"id": "b"}, {"id": "c"}]) == 1
    assert [row["id"] for row in two.rows()] == ["a", "b", "c"] and two.done_ids() == {"a", "b", "c"}


def test_a_damaged_line_before_the_last_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(A + b"oops\n" + B)
    with pytest.raises(DataError, match=r"s:2: .*oops"):
        Shard(path).done_ids()
    with pytest.raises(DataError, match=r"s:2: "):
        Shard(path).append([{"id": "c"}])
    assert path.read_bytes() == A + b"oops\n" + B


@pytest.mark.parametrize("bad", [{"x": 1}, {"id": 3}, {"id": None}])
def test_a_row_without_text_id_writes_nothing(tmp_path: Path, bad: Mapping[str, Any]) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(ValueError, match="id="):
        shard.append([{"id": "a"}, bad])
    assert shard.done_ids() == set()


def test_an_interrupted_run_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    items = list("abcdefgh")
    whole = Work()
    assert run(tmp_path / "whole", items, whole) == 3
    rows = list(Shard(tmp_path / "whole").rows())
    assert [row["id"] for row in rows] == items
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", items, Work(stop=1))
    assert [row["id"] for row in Shard(tmp_path / "cut").rows()] == list("abc")
    rest, seen = Work(), list[tuple[int, int]]()
    assert run(tmp_path / "cut", items, rest, seen) == 2
    assert rest.waves == [list("def"), list("gh")]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert run(tmp_path / "cut", items, Work(stop=0)) == 0


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
        ("abc", [["a", "b"]], "'c'"),
        ("abc", [["a", "b"], ["b", "c"]], "4 items"),
        ("ab", [["a", "b", "z"]], "'z'"),
    ],
)
def test_waves_must_hold_each_item_once(tmp_path: Path, items: str, waves: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_waves(list(items), str, lambda _: waves, Work(stop=0), Shard(tmp_path / "s"))


@pytest.mark.parametrize("given", ["a", "abz", ""])
def test_work_that_answers_other_ids_is_an_error_and_writes_nothing(tmp_path: Path, given: str) -> None:
    shard = Shard(tmp_path / "s")
    with pytest.raises(ValueError, match="wave 1"):
        run_waves(["a", "b"], str, waves_of_three, lambda _: [{"id": name} for name in given], shard)
    assert shard.done_ids() == set()


CHILD = """
import sys
from pathlib import Path
from ttpa.shards import Shard, run_waves
items = [f"{n:03d}" for n in range(120)]
cut = lambda items: [items[at : at + 4] for at in range(0, len(items), 4)]
def work(wave):
    print("wave", wave[0], flush=True)
    return [{"id": name, "wave": wave[0], "fill": "x" * 20000} for name in wave]
run_waves(items, str, cut, work, Shard(Path(sys.argv[1])))
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
