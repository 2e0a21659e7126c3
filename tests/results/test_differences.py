"""Paired differences of a table: by samples or by seeds, and what a verdict says."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.results.table_cases import TABLE, changed, found, metrics, write, write_table
from ttpa.results import render
from ttpa.results.table import Table, from_folder

POWER = "seeds for 2 points"


def made() -> Table:
    return from_folder(Path("experiments/demo"))


def shown(table: Table | None = None) -> list[str]:
    """The texts of the first difference: name, mean, over the seeds, p, by, verdict."""
    grid = render.difference_grid(table or made())
    return [one.text for head, one in zip(grid.head, grid.rows[0], strict=True) if head != POWER]


def write_samples(stage: str, right: int, total: int = 100, unseen: int = 10) -> None:
    """`right` of `total` answers are right, in dialogues of two; unseen tools are all wrong."""
    path = Path("store") / stage
    path.mkdir(parents=True)
    rows = [{"id": str(i), "cluster": str(i // 2), "tags": [], "exact": i < right} for i in range(total)]
    rows += [{"id": f"u{i}", "cluster": f"u{i}", "tags": ["unseen_tool"], "exact": False} for i in range(unseen)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill(folder: Path, ours: tuple[int, ...], sft: tuple[int, ...], samples: bool = True) -> None:
    """Right answers of 100 by seed; with samples they are in the store."""
    cells = found(folder)
    for row, rights in ((cells[3:6], sft), (cells[6:9], ours)):
        for cell, right in zip(row, rights, strict=False):
            write(cell, metrics=metrics(right / 100))
            if samples:
                write_samples(f"evaluate-{cell.row.key}{cell.seed}", right)


def test_differences_are_taken_by_samples_where_they_are(folder: Path) -> None:
    """60 against 50 of 100, the first 50 in common: five dialogues of two differ, all to the better, p = 2 / 2^5."""
    fill(folder, (60,), (50,))
    name, mean, seeds, p, by, verdict = shown()
    assert (name, seeds, by, verdict) == ("ours - SFT", "-", "100 samples", "no clear difference on one seed")
    assert mean.startswith("+10.0 [+") and float(p) == pytest.approx(0.0625, abs=0.01)


def test_samples_that_are_not_the_columns_are_not_used(folder: Path) -> None:
    """Seeds' numbers 50, 53, 56 against 60, 62, 67: +10, +9, +11, so 10 +- 2.484; t = 17.3, p = 0.0033."""
    fill(folder, (60, 62, 67), (50, 53, 56), samples=False)
    for cell in found(folder)[3:]:
        write_samples(f"evaluate-{cell.row.key}{cell.seed}", 1)
    table = made()
    _, mean, seeds, p, by, verdict = shown(table)
    assert mean == seeds == "+10.0 [+7.5, +12.5]" and (p, by, verdict) == ("0.003", "3 seeds", "better")
    notes = " ".join(render.notes(table))
    assert "this column is no mean over samples" in notes and "no samples of both" not in notes
    assert "questions with the seeds fixed" not in notes


def test_different_samples_are_not_compared(folder: Path) -> None:
    fill(folder, (80, 82, 78), (40, 40, 40))
    path = Path("store/evaluate-ours0/rows.jsonl")
    path.write_text(path.read_text().replace('"id": "0"', '"id": "other"'))
    assert shown()[4] == "3 seeds" and "the samples of the two are not the same" in str(render.notes(made()))


@pytest.mark.parametrize(
    ("ours", "sft", "said"),
    [
        ((80, 82, 78), (40, 40, 40), "better"),
        ((40, 40, 40), (80, 82, 78), "worse"),
        ((95, 45, 90), (40, 40, 40), "better on these seeds"),  # 55, 5 and 50: the interval over seeds holds 0
        ((40, 40, 40), (95, 45, 90), "worse on these seeds"),
        ((80, 80, 80), (40, 40, 40), "better on these seeds"),  # equal differences are no spread
        ((80,), (40,), "better on one seed"),
        ((42, 38, 41), (40, 40, 40), "no clear difference"),
    ],
)
def test_better_needs_the_questions_and_the_seeds(
    ours: tuple[int, ...], sft: tuple[int, ...], said: str, folder: Path
) -> None:
    fill(folder, ours, sft)
    table = made()
    assert shown(table)[-1] == said and shown(table)[4].endswith(" samples")
    notes = " ".join(render.notes(table))
    assert notes.count("p by samples is over questions with the seeds fixed; the t interval over the seeds") == 1
    assert ("their interval has no width" in notes) == (ours == (80, 80, 80))


def test_csv_holds_what_is_shown_of_a_difference(folder: Path) -> None:
    """40, 42 and 38: 40 +- 4.30265 * 2 / sqrt(3) over the seeds."""
    fill(folder, (80, 82, 78), (40, 40, 40))
    (row,) = [row for row in csv.DictReader(io.StringIO(render.comma_separated(made()))) if row["against"]]
    assert (row["interval"], row["n"], row["samples"], row["verdict"]) == ("samples", "3", "300", "better")
    numbers = [float(row[key]) for key in ("value", "over_seeds", "over_seeds_low", "over_seeds_high")]
    assert numbers == pytest.approx([40, 40, 40 - 4.96828, 40 + 4.96828], abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "sft", "needed"),
    [
        ((60, 62, 67), (50, 53, 56), "5"),  # +10, +9, +11: deviation 1, effect 2
        ((80, 82, 78), (40, 40, 40), "10"),  # deviation 2, effect 1: the printed tables have 10
        ((80, 82), (40, 40), "-"),
        ((80, 80, 80), (40, 40, 40), "-"),
    ],
)
@pytest.mark.parametrize("samples", [False, True])
def test_the_table_says_how_many_seeds_two_points_need(
    ours: tuple[int, ...], sft: tuple[int, ...], needed: str, samples: bool, folder: Path
) -> None:
    fill(folder, ours, sft, samples)
    table = made()
    grid = render.difference_grid(table)
    assert grid.rows[0][grid.head.index(POWER)].text == needed
    assert "A dash: fewer than 3 seeds, or no spread." in str(render.notes(table))
    (row,) = [row for row in csv.DictReader(io.StringIO(render.comma_separated(table))) if row["against"]]
    assert row["seeds_for_2_points"] == needed.replace("-", "")


def test_a_point_is_a_hundredth_of_what_is_measured(folder: Path) -> None:
    """In a column that is no per cent, such as the errors from 0 to 1, two points are 0.02."""
    write_table(folder, {**TABLE, "columns": TABLE["columns"][1:], "published": []})
    for cell, value in zip(found(folder)[3:9], (0.5, 0.5, 0.5, 0.3, 0.32, 0.28), strict=True):
        write(cell, metrics=metrics(0.5, errors=value))
    assert made().differences[0].needed == 10


def test_added_seeds_leave_the_spread_to_the_listed_ones(folder: Path) -> None:
    """Listed +10, +9, +11: deviation 1; with +30 added the mean is 15 and the interval 4.30265 * 1 / sqrt(4) wide."""
    fill(folder, (60, 62, 67), (50, 53, 56), samples=False)
    cells = found(folder)
    write(cells[3].at(3), metrics=metrics(0.5))
    assert made().preset.added == []  # the other row has none
    write(cells[6].at(3), metrics=metrics(0.8))
    (one,) = (table := made()).differences
    assert one.seeds and table.preset.seeds == [0, 1, 2, 3] and table.preset.added == [3]
    width = 4.302653 / 2
    assert (one.seeds.value, one.seeds.low, one.seeds.high) == pytest.approx((15, 15 - width, 15 + width), abs=1e-5)
    assert one.p == pytest.approx(2 * (0.5 - 30 / (2 * math.sqrt(902))), abs=1e-9)  # t of 2 degrees in closed form
    assert "Seeds 3 are not listed" in str(render.notes(table)) and one.needed == 5
    row = table.rows[2].values[0].estimate
    assert row and (row.n, row.freedom, row.value) == (4, 2, pytest.approx(67.25))
    assert from_folder(Path("experiments/demo"), "embedded", ["seed=0,1,2"]).preset.seeds == [0, 1, 2]


def test_seeds_that_all_differ_by_the_same_have_no_p(folder: Path) -> None:
    fill(folder, (70, 80), (50, 60), samples=False)
    table = made()
    assert shown(table)[3:] == ["-", "2 seeds", "no p: the same difference in all seeds"]
    assert "nothing follows from it" in render.notes(table)[-2] and "Holm" not in str(render.notes(table))


def test_the_correction_counts_the_differences_that_have_a_p(folder: Path) -> None:
    """t = 17.3 and 20.7: p = 0.0033 and 0.00233; the smaller is doubled and is then the larger's too."""
    content = changed("differences", value=[["ours", "sft"], ["ours", "warm"], ["not", "sft"]])
    content["rows"].append({"key": "not", "label": "never run", "overrides": ["objective=ipo"]})
    write_table(folder, content)
    fill(folder, (60, 62, 67), (50, 53, 56), samples=False)
    table = made()
    first, second, third = table.differences
    assert first.p == second.p == pytest.approx(2 * 0.00234, abs=2e-5)
    assert third.mean is None and third.verdict == "not measured"
    assert "over the 2 that have one." in str(render.notes(table))


def test_odd_samples_in_the_store_are_no_samples(folder: Path) -> None:
    fill(folder, (80,), (40,))
    path, plain = Path("store/evaluate-ours0/rows.jsonl"), {"id": "x", "cluster": "x", "tags": [], "exact": 1}
    rows = path.read_text()
    odd: list[dict[str, Any]] = [{"exact": None}, {"cluster": ["a"]}, {"id": [0]}, {"tags": 3}, {"id": "1"}]
    for change in odd:
        path.write_text(rows + json.dumps(plain | change) + "\n")
        reason = "no interval: one seed, and no samples of both in the store"
        assert shown()[1:] == ["+40.0", "-", "-", "1 seed", reason], change


def test_lower_is_better_where_the_column_says_so(folder: Path) -> None:
    write_table(folder, {**TABLE, "columns": TABLE["columns"][1:], "published": []})
    for cell, value in zip(found(folder)[3:9], (0.5, 0.5, 0.5, 0.1, 0.1, 0.11), strict=True):
        write(cell, metrics=metrics(0.5, errors=value))
    assert shown()[-1] == "better" and render.main_grid(made()).rows[2][2].best
