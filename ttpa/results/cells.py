"""The cells of a table (a row with a seed), composed by Hydra as the command line composes them, and their records.

A record is a cell's own when the resolved identity configuration, the seed and the rounds are equal (`Key`); names play
no part, so tables share runs. This module launches nothing and computes no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict

from ttpa.errors import ConfigError
from ttpa.results.records import Key, Record, files_in, key_of, read_records
from ttpa.results.spec import SET_BY_THE_TABLE, Preset, RowSpec, TableSpec
from ttpa.run import config
from ttpa.run.overrides import COMPLAINTS, explained

_SEED = 8_400_000_000_000_017
"""Stands for the seed while a row is resolved once for all its seeds; no other number of a configuration is this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCell:
    """A row of the table with a seed. `overrides` are all of a run's but `until` and `name`."""

    row: RowSpec
    seed: int
    overrides: tuple[str, ...]
    key: Key
    composed: DictConfig

    @property
    def label(self) -> str:
        """The cell in messages."""
        return f"{self.row.key} seed={self.seed}"

    @property
    def cfg(self) -> DictConfig:
        """The cell's own configuration, as the pipeline takes it; a sweep evaluates the warm-up where a row shows it."""
        own = self.composed.copy()
        own.seed, own.baseline = self.seed, self.row.warmup_only
        return own

    @property
    def results(self) -> Path:
        """Folder of the result rows; all cells of a table share it."""
        return Path(self.composed.paths.results)

    @property
    def store(self) -> Path:
        """Folder of the stages; all cells of a table share it."""
        return Path(self.composed.paths.store)


@contextmanager
def open_hydra() -> Iterator[None]:
    """Hydra over the option files of this package."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        yield


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """What the command line would run with these overrides; Hydra must be open.

    Raises:
        HydraException, OmegaConfBaseException: no such option or key, or a value that cannot be read.
    """
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        cfg.choices = {group: name for group, name in choices.items() if group in config.IDENTITY}
        del cfg["hydra"]
    return cfg


def select_seeds(preset: Preset, extra: Sequence[str]) -> tuple[Preset, tuple[str, ...]]:
    """The preset with the seeds of `seed=0,1` among the overrides of a command line, and the other overrides.

    Raises:
        ConfigError: seeds that are no numbers, or an override that the table sets itself.
    """
    words = []
    for word in extra:
        key, _, value = word.partition("=")
        if key == "seed":
            if not all(part.isdecimal() for part in value.split(",")):
                raise ConfigError.at("seed", value, "must be whole numbers", "For example seed=0 or seed=0,1")
            preset = preset.model_copy(update={"seeds": list(dict.fromkeys(map(int, value.split(","))))})
        elif key in SET_BY_THE_TABLE:
            raise ConfigError.at(key, value, "is set by the table itself", "Leave it out")
        else:
            words.append(word)
    return preset, tuple(words)


def cells_of(spec: TableSpec, preset: Preset, extra: Sequence[str] = ()) -> list[TableCell]:
    """The cells of a preset, rows in order, seeds in order; Hydra must be open.

    Args:
        spec: The table.
        preset: One of its presets.
        extra: Further overrides of every cell.

    Raises:
        ConfigError: a preset without rows, or a row that cannot be composed; names file, row and reason.
    """
    cells = []
    for row in spec.rows_of(preset.name):
        words = (*preset.overrides, *row.overrides, *extra)
        try:
            cfg = compose_run(_deciding(words))
            cfg.seed = _SEED
            key = key_of(config.identity(cfg, *config.IDENTITY), _SEED, cfg.rounds)
        except COMPLAINTS as error:
            problem = explained(error, words)
            raise ConfigError(f"{spec.file}: row {row.key}, preset {preset.name}: {problem}") from None
        for seed in preset.seeds:
            own_key = Key(*(text.replace(str(_SEED), str(seed)) for text in key))
            cells.append(TableCell(row=row, seed=seed, overrides=(*words, f"seed={seed}"), key=own_key, composed=cfg))
    if not cells:
        raise ConfigError.at("preset", preset.name, f"no row of {spec.file} is shown in it", "See the presets of rows")
    return cells


class Records:
    """The result rows of a folder that belong to some cells. `warnings` say what was left out or is odd."""

    def __init__(self, folder: Path, cells: Sequence[TableCell]) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        if not folder.is_dir():
            self.warnings.append(f"{folder}: no such folder, so every cell is a hole. Set results=DIR.")
        whole, warmups = {cell.key.whole for cell in cells}, {cell.key.warmup for cell in cells}
        self._by_key: dict[str, list[Record]] = {}
        self._by_warmup: dict[str, list[Record]] = {}
        for record in read_records(files_in(folder), self.warnings):
            key = record.key
            if key.whole in whole:
                self._by_key.setdefault(key.whole, []).append(record)
            if key.warmup in warmups and record.baseline:
                self._by_warmup.setdefault(key.warmup, []).append(record)

    def find(self, cell: TableCell) -> Record | None:
        """The record of a cell, built by today's stages if there is one.

        Records of one configuration are equal unless something outside of it has changed, such as a file; then a
        warning says so.
        """
        key, warmup_only = cell.key, cell.row.warmup_only
        found = self._by_warmup.get(key.warmup, []) if warmup_only else self._by_key.get(key.whole, [])
        if not found:
            return None
        first, *others = [record for record in found if not record.outdated()] or found
        odd = next((one for one in others if one.measured(warmup_only) != first.measured(warmup_only)), None)
        if odd is not None:
            self.warnings.append(
                f"{cell.label}: {first.path} and {odd.path} have the same configuration and other numbers; the first is used. "
                "A file that they read may have changed in between: remove the record that is not meant."
            )
        return first


def _deciding(words: Sequence[str]) -> tuple[str, ...]:
    """The overrides without those that say what runs the cells: tables are made where no launcher is installed, too."""
    heads = [(word, re.split(r"[.=/]", word.lstrip("+~"))[0]) for word in words]
    return tuple(word for word, head in heads if head != "cluster" and (head != "hydra" or "searchpath" in word))
