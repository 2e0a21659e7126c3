"""The folder of a small table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.results.table_cases import TABLE, write_table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `TABLE`, `experiments/demo` below an empty working directory."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "experiments" / "demo"
    made.mkdir(parents=True)
    write_table(made, TABLE)
    return made
