"""Paired differences of a table: by samples or by seeds, and what a verdict says."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.tables.conftest import TABLE, found, metrics, write_table
from tests.results.tables.test_table import FOLDER, filled, grid
from ttpa.results.tables.cli import table

__all__ = ["filled"]


def write_rows(folder: Path, stage: str, right: int, total: int = 100, unseen: int = 10) -> None:
    """`right` of `total` answers are right, in dialogues of two; unseen tools are all wrong."""
    path = folder.parents[1] / "store" / stage
    path.mkdir(parents=True)
    rows = [{"id": str(i), "cluster": str(i // 2), "tags": [], "exact": i < right} for i in range(total)]
    rows += [{"id": f"u{i}", "cluster": f"u{i}", "tags": ["unseen_tool"], "exact": False} for i in range(unseen)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def difference_in(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("| ours - SFT")]
    return [cell.strip() for cell in line[1:-1].split(" | ")]


def test_differences_are_taken_by_samples_where_they_are(folder: Path, write: Callable[..., Path]) -> None:
    """60 against 50 of 100, the first 50 in common: five dialogues of two differ, all to the better, p = 2 / 2^5."""
    every = found(folder)
    for cell, right in ((every[3], 50), (every[6], 60)):
        write(cell, metrics=metrics(right / 100))
        write_rows(folder, f"evaluate-{cell.row.key}0", right)
    name, mean, seeds, p, by, verdict = difference_in(table([FOLDER])[0])
    assert (name, seeds, by, verdict) == ("ours - SFT", "-", "100 samples", "no clear difference on one seed")
    assert mean.startswith("+10.0 [+") and float(p) == pytest.approx(0.0625, abs=0.01)


def test_samples_that_are_not_the_columns_are_not_used(folder: Path, write: Callable[..., Path]) -> None:
    """Seeds' numbers 50, 53, 56 against 60, 62, 67: +10, +9, +11, so 10 +- 2.484; t = 17.3, p = 0.0033."""
    every = found(folder)
    for cell, value in zip(every[3:9], (0.50, 0.53, 0.56, 0.60, 0.62, 0.67), strict=True):
        write(cell, metrics=metrics(value))
        write_rows(folder, f"evaluate-{cell.row.key}{cell.seed}", 1)
    text, _ = table([FOLDER])
    _, mean, seeds, p, by, verdict = difference_in(text)
    assert mean == seeds == "+10.0 [+7.5, +12.5]"
    assert (p, by, verdict) == ("0.003", "3 seeds", "better") and "this column is no mean over samples" in text
    assert "no samples of both" not in text and "questions with the seeds fixed" not in text


def fill_by_seed(folder: Path, write: Callable[..., Path], ours: tuple[int, ...], sft: tuple[int, ...]) -> None:
    """Right answers of 100 by seed, with the samples in the store."""
    every = found(folder)
    for cells, rights in ((every[3:6], sft), (every[6:9], ours)):
        for cell, right in zip(cells, rights, strict=False):
            write(cell, metrics=metrics(right / 100))
            write_rows(folder, f"evaluate-{cell.row.key}{cell.seed}", right)


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
    ours: tuple[int, ...], sft: tuple[int, ...], said: str, folder: Path, write: Callable[..., Path]
) -> None:
    fill_by_seed(folder, write, ours, sft)
    text, _ = table([FOLDER])
    assert difference_in(text)[-1] == said and difference_in(text)[4].endswith(" samples")
    assert text.count("p by samples is over questions with the seeds fixed; the t interval over the seeds") == 1
    assert ("have no width" in text or "has no width" in text) == (ours == (80, 80, 80))


def test_csv_holds_what_is_shown_of_a_difference(folder: Path, write: Callable[..., Path]) -> None:
    """40, 42 and 38: 40 +- 4.30265 * 2 / sqrt(3) over the seeds."""
    fill_by_seed(folder, write, (80, 82, 78), (40, 40, 40))
    (row,) = [row for row in csv.DictReader(io.StringIO(table([FOLDER, "format=csv"])[0])) if row["against"]]
    assert (row["interval"], row["n"], row["samples"], row["verdict"]) == ("samples", "3", "300", "better")
    numbers = [float(row[key]) for key in ("value", "over_seeds", "over_seeds_low", "over_seeds_high")]
    assert numbers == pytest.approx([40, 40, 40 - 4.96828, 40 + 4.96828], abs=1e-4)


def test_seeds_that_all_differ_by_the_same_have_no_p(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    for cell, value in zip((*every[3:5], *every[6:8]), (0.5, 0.6, 0.7, 0.8), strict=True):
        write(cell, metrics=metrics(value))
    text, _ = table([FOLDER])
    assert difference_in(text)[3:] == ["-", "2 seeds", "no p: the same difference in all seeds"]
    assert "their interval has no width: nothing follows from it" in text and "Holm" not in text


def test_the_correction_counts_the_differences_that_have_a_p(folder: Path, write: Callable[..., Path]) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"].append({"key": "not", "label": "never run", "overrides": ["objective=ipo"]})
    content["differences"] = [["ours", "sft"], ["ours", "warm"], ["not", "sft"]]
    write_table(folder, content)
    every = found(folder)
    for cell, value in zip(every[3:9], (0.50, 0.53, 0.56, 0.60, 0.62, 0.67), strict=True):
        write(cell, metrics=metrics(value))
    assert "Holm's correction over the 2 that have one." in table([FOLDER])[0]


@pytest.mark.parametrize("odd", [{"exact": None}, {"cluster": ["a"]}, {"id": [0]}, {"tags": 3}])
def test_odd_samples_in_the_store_are_no_samples(odd: dict[str, Any], folder: Path, write: Callable[..., Path]) -> None:
    fill_by_seed(folder, write, (80, 82, 78), (40, 40, 40))
    path = folder.parents[1] / "store" / "evaluate-ours0" / "rows.jsonl"
    path.write_text(path.read_text() + json.dumps({"id": "x", "cluster": "x", "tags": [], "exact": 1} | odd) + "\n")
    text, _ = table([FOLDER])
    assert difference_in(text)[4] == "3 seeds" and "no samples of both in the store" in text


def test_lower_is_better_where_the_column_says_so(folder: Path, write: Callable[..., Path]) -> None:
    content = copy.deepcopy(TABLE)
    content["columns"] = [content["columns"][1]]
    content["published"] = []
    write_table(folder, content)
    every = found(folder)
    for cell, value in zip(every[3:9], (0.5, 0.5, 0.5, 0.1, 0.1, 0.11), strict=True):
        write(cell, metrics=metrics(0.5, errors=value))
    text, _ = table([FOLDER])
    assert difference_in(text)[-1] == "better" and grid(text)["ours"]["value errors"].startswith("**0.103")


def test_a_difference_with_one_seed_and_no_samples_says_so(filled: Path) -> None:
    assert difference_in(table([FOLDER])[0])[1:] == [
        "+10.0", "-", "-", "1 seed", "no interval: one seed, and no samples of both in the store",
    ]  # fmt: skip
