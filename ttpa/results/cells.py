"""The cells of a table (a row with a seed), composed by Hydra as the command line composes them, and their records.

A record is a cell's own when the resolved identity configuration, the seed and the rounds are equal (`Key`); names play
no part, so tables share runs.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic.dataclasses
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from ttpa.errors import ConfigError
from ttpa.results.records import Key, Record, key_of, read_records
from ttpa.results.spec import SET_BY_THE_TABLE, Preset, RowSpec, TableSpec, load
from ttpa.run import config
from ttpa.run.overrides import COMPLAINTS, explained

_SEED = 8_400_000_000_000_017  # stands for the seed where a row is resolved once for all seeds; no setting is this


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class CellsForm:
    """The words behind a command that name the cells of a table."""

    target: Path
    preset: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A row of the table with a seed. `overrides` are all of a run's but `until` and `name`; `any_seed` is the key with
    a number in place of the seed.
    """

    row: RowSpec
    seed: int
    overrides: tuple[str, ...]
    any_seed: Key
    composed: DictConfig

    @functools.cached_property
    def key(self) -> Key:
        """What a record of this cell has as its key."""
        return Key(*(text.replace(str(_SEED), str(self.seed)) for text in self.any_seed))

    def at(self, seed: int) -> "TableCell":
        """The cell of the same row with another seed."""
        return replace(self, seed=seed, overrides=(*self.overrides[:-1], f"seed={seed}"))

    @property
    def label(self) -> str:
        """The cell in messages."""
        return f"{self.row.key} seed={self.seed}"

    @property
    def cfg(self) -> DictConfig:
        """The configuration that the pipeline takes; the warm-up is evaluated where a row shows it."""
        own = self.composed.copy()
        own.seed, own.baseline = self.seed, self.row.warmup_only
        return own


@contextmanager
def open_hydra() -> Iterator[None]:
    """Hydra over the option files of this package."""
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        yield


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """What the command line would run with these overrides, with Hydra's errors; Hydra must be open."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        cfg.choices = {group: name for group, name in choices.items() if group in config.IDENTITY}
        del cfg["hydra"]
    return cfg


class Composer:
    """`compose_run` for many rows, which share what they can, as Hydra takes 0.1 s.

    Values (`sampler.n=3`) are applied to a copy, by Hydra's own code. An option is put in the place of the first row's
    where it changes nothing but its own group.
    """

    def __init__(self) -> None:
        self._compose = functools.cache(_with_plain)
        self._firsts: dict[Any, dict[str, str]] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        if any("searchpath" in word for word in words):  # options of a user's own may depend on each other
            return compose_run(words)
        shared, options, values = list[str](), dict[str, str](), list[str]()
        for word in words:
            key, _, value = word.partition("=")
            if key in config.IDENTITY and re.fullmatch(r"[\w.-]+", value):
                options[key] = value
            else:
                (values if "." in key or key in config.SCALARS else shared).append(word)
        cfg = self._with_options(shared, options)
        ConfigLoaderImpl._apply_overrides_to_config([_parsed(word) for word in values], cfg)
        return cfg

    def _with_options(self, shared: Sequence[str], options: Mapping[str, str]) -> DictConfig:
        def composed(chosen: Mapping[str, str]) -> tuple[DictConfig, dict[Any, Any]]:
            return self._compose(*shared, *(f"{group}={option}" for group, option in chosen.items()))

        first = self._firsts.setdefault((*shared, *options), dict(options))
        start, plain = composed(first)
        cfg = start.copy()
        for group in [group for group in options if options[group] != first[group]]:
            other, found = composed({**first, group: options[group]})
            expected = {**plain, group: found[group], "choices": {**plain["choices"], group: options[group]}}
            if found != expected:
                return composed(options)[0].copy()
            cfg[group], cfg.choices[group] = other[group], options[group]
        return cfg


def _with_plain(*words: str) -> tuple[DictConfig, dict[Any, Any]]:
    cfg = compose_run(words)
    return cfg, OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]


@functools.cache
def _parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)


def read_cells(
    folder: Path, preset: str | None = None, overrides: Sequence[str] = ()
) -> tuple[TableSpec, Preset, list[TableCell]]:
    """A table.yaml, one of its presets (None: the first) and the cells: rows in order, seeds in order.

    `overrides` come after those of preset and row; `seed=0,1` among them replaces the seeds of the preset. What cannot
    be composed is a ConfigError with file, row and reason.
    """
    spec = load(folder)
    chosen, extra = spec.preset(preset), list[str]()
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "seed":
            if not all(part.isdecimal() for part in value.split(",")):
                raise ConfigError.at("seed", value, "must be whole numbers", "For example seed=0 or seed=0,1")
            chosen = chosen.model_copy(update={"seeds": list(dict.fromkeys(map(int, value.split(","))))})
        elif key in SET_BY_THE_TABLE:
            raise ConfigError.at(key, value, "is set by the table itself", "Leave it out")
        else:
            extra.append(word)
    cells, composer = [], Composer()
    with open_hydra():
        for row in spec.rows_of(chosen.name):
            words = (*chosen.overrides, *row.overrides, *extra)
            try:
                cfg = composer([word for word in words if _decides(word)])
                for group, node in OmegaConf.to_container(cfg, resolve=False).items():  # type: ignore[union-attr]
                    config.check_targets(node, str(group))
                cfg.seed = _SEED
                key_of_row = key_of(config.identity(cfg, *config.IDENTITY), _SEED, cfg.rounds)
            except (*COMPLAINTS, ConfigError) as error:
                problem = error if isinstance(error, ConfigError) else explained(error, words)
                raise ConfigError(f"{spec.file}: row {row.key}, preset {chosen.name}: {problem}") from None
            for seed in chosen.seeds:
                own = (*words, f"seed={seed}")
                cells.append(TableCell(row=row, seed=seed, overrides=own, any_seed=key_of_row, composed=cfg))
    if not cells:
        raise ConfigError.at("preset", chosen.name, f"no row of {spec.file} is shown in it", "See the presets of rows")
    return spec, chosen, cells


def _decides(word: str) -> bool:
    """False for what only says where cells run: tables are made where no launcher is installed, too."""
    head = re.split(r"[.=/]", word.lstrip("+~"))[0]
    return head != "cluster" and (head != "hydra" or "searchpath" in word)


class Records:
    """The result rows that belong to some cells, of a folder (None: the one that the cells name). `warnings` say what
    was left out or is odd.
    """

    def __init__(self, cells: Sequence[TableCell], folder: Path | None = None) -> None:
        self.folder = folder or Path(cells[0].composed.paths.results)
        self.warnings: list[str] = []
        if not self.folder.is_dir():
            self.warnings.append(f"{self.folder}: no such folder, so every cell is a hole. Set results=DIR.")
        self._found: dict[str, list[Record]] = {text: [] for cell in cells for text in cell.key}
        listed, self.later = {cell.seed for cell in cells}, set[int]()
        for record in read_records(sorted(self.folder.glob("[!.]*.jsonl")), self.warnings):
            later = record.seed > max(listed)
            for text, has in zip(record.key, (True, bool(record.baseline)), strict=True):
                if has and (later or text in self._found):
                    self._found.setdefault(text, []).append(record)
                    self.later |= {record.seed} if later else set()

    def find(self, cell: TableCell) -> Record | None:
        """The record of a cell, built by today's stages if there is one. Records of one configuration with other
        numbers, as a changed file may give, are named in a warning.
        """
        warmup_only = cell.row.warmup_only
        found = self._found.get(cell.key.warmup if warmup_only else cell.key.whole)
        if not found:
            return None
        first, *others = [record for record in found if not record.outdated()] or found
        odd = next((one for one in others if one.measured(warmup_only) != first.measured(warmup_only)), None)
        if odd is not None:
            self.warnings.append(
                f"{cell.label}: {first.path} and {odd.path} have the same configuration and other numbers; the first "
                "is used. A file that they read may have changed in between: remove the record that is not meant."
            )
        return first


def recorded_cells(
    folder: Path,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    *,
    results: Path | None = None,
    upto: int = 0,
) -> tuple[TableSpec, Preset, list[TableCell], Records]:
    """`read_cells` with their records. The seeds behind the listed ones that the table has by now are among the cells:
    those of which every row has a record, and, for a sweep that wants `upto` seeds in all, the next ones. `seed=` among
    the overrides leaves only its own.
    """
    spec, chosen, cells = read_cells(folder, preset, overrides)
    records = Records(cells, results)
    if not any(word.startswith("seed=") for word in overrides):
        chosen, cells = _with_added(chosen, cells, records, upto)
    return spec, chosen, cells, records


def _with_added(
    preset: Preset, cells: Sequence[TableCell], records: Records, upto: int
) -> tuple[Preset, list[TableCell]]:
    rows, end = [cell for cell in cells if cell.seed == preset.seeds[0]], max(preset.seeds) + 1
    wanted = range(end, end + upto - len(preset.seeds))
    complete = {seed for seed in records.later if all(records.find(row.at(seed)) for row in rows)}
    added = sorted(complete.union(wanted))
    more = [cell for row in rows for cell in (*(one for one in cells if one.row is row.row), *map(row.at, added))]
    return preset.model_copy(update={"seeds": [*preset.seeds, *added], "added": added}), more
