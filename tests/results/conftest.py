"""The folder of a small table, and one without a W&B key."""

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


def without_key(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes an empty folder the current one, with an environment without anybody's W&B key."""
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        patch.delenv(key, raising=False)
    for name in ("DATA", "CACHE", "CONFIG"):
        patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
    patch.setenv("NETRC", str(folder / "no-netrc"))
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.chdir(folder)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without anybody's W&B key."""
    without_key(tmp_path, monkeypatch)
    return tmp_path
