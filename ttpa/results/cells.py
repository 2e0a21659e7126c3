"""The cells of a table (a row with a seed), composed by Hydra as the command line composes them, and their records.

A record is a cell's own when the resolved identity configuration, the seed and the rounds are equal (`Key`); names play
no part, so tables share runs.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from ttpa.errors import ConfigError
from ttpa.results.records import Key, Record, files_in, key_of, read_records
from ttpa.results.spec import SET_BY_THE_TABLE, Preset, RowSpec, TableSpec
from ttpa.run import config
from ttpa.run.overrides import COMPLAINTS, explained

_SEED = 8_400_000_000_000_017
"""Stands for the seed while a row is resolved once for all its seeds; no other number of a configuration is this one.
"""


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
        """The cell's own configuration, as the pipeline takes it; a sweep evaluates the warm-up where a row
        shows it.
        """
        own = self.composed.copy()
        own.seed, own.baseline = self.seed, self.row.warmup_only
        return own


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


class Composer:
    """`compose_run` for many rows. Hydra takes 0.1 s, so rows never cost more than one composition and share what they
    can.

    Values (`sampler.n=3`) are applied to a copy, by Hydra's own code. An option that changed nothing but its own group
    in one row is put in its place in later rows that choose options of the same groups.
    """

    def __init__(self) -> None:
        self._compose = functools.cache(lambda *words: compose_run(words))
        self._firsts: dict[Any, dict[str, str]] = {}
        self._parts: dict[Any, DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        """The configuration of a row, its own copy; raises what `compose_run` raises."""
        if any("searchpath" in word for word in words):  # options of a user's own may depend on each other
            return compose_run(words)
        shared, options, values = list[str](), dict[str, str](), list[str]()
        for word in words:
            key, _, value = word.partition("=")
            if key in config.IDENTITY and re.fullmatch(r"[\w.-]+", value):
                options[key] = value
            else:
                (values if "." in key or key in config.SCALARS else shared).append(word)
        cfg = self._with_options(tuple(shared), options)
        ConfigLoaderImpl._apply_overrides_to_config([_parsed(word) for word in values], cfg)
        return cfg

    def _with_options(self, shared: tuple[str, ...], options: dict[str, str]) -> DictConfig:
        alike = (shared, tuple(options))
        first = self._firsts.setdefault(alike, options)
        start = self._compose(*shared, *_words(first))
        changed = [group for group in options if options[group] != first[group]]
        keys = {group: (alike, group, options[group]) for group in changed}
        if all(key in self._parts for key in keys.values()):
            cfg = start.copy()
            for group in changed:
                cfg[group], cfg.choices[group] = self._parts[keys[group]], options[group]
            return cfg
        cfg = self._compose(*shared, *_words(options))
        if len(changed) == 1 and _others(start, *changed) == _others(cfg, *changed):
            self._parts[keys[changed[0]]] = cfg[changed[0]]
        return cfg.copy()


def _words(options: Mapping[str, str]) -> list[str]:
    return [f"{group}={option}" for group, option in options.items()]


@functools.cache
def _parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)


def _others(cfg: DictConfig, group: str) -> Any:
    """A configuration without a group and its choice."""
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    del values[group], values["choices"][group]
    return values


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
    """The cells of a preset, rows in order, seeds in order, with further overrides `extra`; Hydra must be open.

    Raises:
        ConfigError: a preset without rows, or a row that cannot be composed; names file, row and reason.
    """
    cells, composer = [], Composer()
    for row in spec.rows_of(preset.name):
        words = (*preset.overrides, *row.overrides, *extra)
        try:
            cfg = composer([word for word in words if _decides(word)])
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


def _decides(word: str) -> bool:
    """False for what only says where cells run: tables are made where no launcher is installed, too."""
    head = re.split(r"[.=/]", word.lstrip("+~"))[0]
    return head != "cluster" and (head != "hydra" or "searchpath" in word)


class Records:
    """The result rows that belong to some cells. `warnings` say what was left out or is odd.

    Args:
        cells: The cells of a table.
        folder: Where to look; None takes the folder of the cells, which all share.
    """

    def __init__(self, cells: Sequence[TableCell], folder: Path | None = None) -> None:
        self.folder = folder or Path(cells[0].composed.paths.results)
        self.warnings: list[str] = []
        if not self.folder.is_dir():
            self.warnings.append(f"{self.folder}: no such folder, so every cell is a hole. Set results=DIR.")
        self._found: dict[str, list[Record]] = {text: [] for cell in cells for text in cell.key}
        for record in read_records(files_in(self.folder), self.warnings):
            for text, has in zip(record.key, (True, bool(record.baseline)), strict=True):
                if has and text in self._found:
                    self._found[text].append(record)

    def find(self, cell: TableCell) -> Record | None:
        """The record of a cell, built by today's stages if there is one.

        Records of one configuration are equal unless something outside of it has changed, such as a file; then a
        warning says so.
        """
        warmup_only = cell.row.warmup_only
        found = self._found[cell.key.warmup if warmup_only else cell.key.whole]
        if not found:
            return None
        first, *others = [record for record in found if not record.outdated()] or found
        odd = next((one for one in others if one.measured(warmup_only) != first.measured(warmup_only)), None)
        if odd is not None:
            self.warnings.append(
                f"{cell.label}: {first.path} and {odd.path} have the same configuration and other numbers; the "
                "first is used. "
                "A file that they read may have changed in between: remove the record that is not meant."
            )
        return first
