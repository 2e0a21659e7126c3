"""The cells of a table and the run records that fill them, matched by what was run and never by a name.

A cell is a row with a seed. It is composed as the command line composes it, and a record is its own when the resolved
identity configuration, the seed and the rounds are equal: the test is equality of canonical JSON, as in a fingerprint.
Contents of files are no part of it (`ttpa.status` compares fingerprints, which hold them).

Hydra takes about 0.1 s for one configuration. Rows of a product differ from the preset in a few top-level keys, so the
overrides of each key are composed once and the values put together before anything is resolved. That is the same
configuration as long as the overrides of a key change nothing but that key, which is looked at for each; else, and for
overlays (`experiment=`, `+key=`), the row is composed whole. A run itself is always composed whole. What this module
does not do: launch, or compute a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ttpa import config
from ttpa.errors import ConfigError
from ttpa.pipeline import ROW_VERSION
from ttpa.stages import VERSIONS
from ttpa.tables.spec import Preset, Row, Spec

WARMUP_GROUPS = ("data", "model", "warmup", "eval")
"""What decides the evaluation of the warm-up policy, beside the seed."""
_SEED = 8_400_000_000_000_017
"""Stands for the seed while a row is resolved once for all of them; no other number of a configuration is this one."""


class Key(NamedTuple):
    """What a record and a cell are compared by: canonical JSON of each identity group, seed, rounds."""

    groups: tuple[str, ...]
    seed: int
    rounds: int

    def warmup(self) -> tuple[Any, ...]:
        """What the evaluation of the warm-up policy depends on."""
        return (*(self.groups[config.IDENTITY.index(group)] for group in WARMUP_GROUPS), self.seed)


_text = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
Plain = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A row of the table with a seed. `overrides` are all of a run's but `until` and `name`."""

    row: Row
    seed: int
    overrides: tuple[str, ...]
    key: Key
    compose: Callable[[], DictConfig]
    """The row's configuration, with any seed; an open composer is needed the first time."""

    @property
    def label(self) -> str:
        """The cell in messages."""
        return f"{self.row.key} seed={self.seed}"

    def cfg(self) -> DictConfig:
        """The cell's own configuration, as the pipeline takes it."""
        own = self.compose().copy()
        own.seed = self.seed
        return own


class Composer(AbstractContextManager["Composer"]):
    """Composes configurations of this package; Hydra is initialised while it is open."""

    def __init__(self) -> None:
        self._hydra = initialize_config_module("ttpa.conf", version_base="1.3")
        self._seen: dict[tuple[str, ...], DictConfig] = {}
        self._plain: dict[tuple[str, ...], Plain] = {}
        self.composed = 0
        """How often Hydra was asked."""

    def __enter__(self) -> Composer:
        self._hydra.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hydra.__exit__(kind, error, trace)

    def whole(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra makes of the overrides; not to be changed by the caller.

        Raises:
            HydraException, OmegaConfBaseException: no such option or key, or a value that cannot be read.
        """
        key = tuple(overrides)
        if key not in self._seen:
            self.composed += 1
            cfg = compose("config", overrides=list(key), return_hydra_config=True)
            choices = cfg.hydra.runtime.choices
            with open_dict(cfg):
                cfg.choices = {group: name for group, name in choices.items() if group in config.IDENTITY}
                del cfg["hydra"]
            self._seen[key] = cfg
        return self._seen[key]

    def plain(self, overrides: Sequence[str]) -> Plain:
        """The same without interpolations resolved, as plain values; not to be changed by the caller."""
        key = tuple(overrides)
        if key not in self._plain:
            self._plain[key] = OmegaConf.to_container(self.whole(key), resolve=False)  # type: ignore[assignment]
        return self._plain[key]

    def parts(self, shared: Sequence[str], own: Sequence[str]) -> Plain:
        """The same as `plain([*shared, *own])` but for `choices`, from as few calls of Hydra as the table allows.

        Raises:
            HydraException, OmegaConfBaseException: see `whole`.
        """
        heads: dict[str, list[str]] = {}
        for word in own:
            heads.setdefault(re.split("[.=]", word)[0], []).append(word)
        try:
            base = self.plain(shared)
            parts = {head: self.plain([*shared, *words]) for head, words in heads.items() if head in base}
        except (HydraException, OmegaConfBaseException):  # the preset may set a key of the row's option
            return self.plain([*shared, *own])
        alone = all(
            part.get(key) == value
            for head, part in parts.items()
            for key, value in base.items()
            if key not in (head, "choices")
        )
        if len(parts) < len(heads) or len(parts) < 2 or not alone:
            return self.plain([*shared, *own])
        return {**base, **{head: part[head] for head, part in parts.items()}}

    def identity(self, shared: Sequence[str], own: Sequence[str]) -> tuple[Plain, int]:
        """`config.identity` of every identity group with `_SEED` for a seed, and the number of rounds.

        Raises:
            HydraException, OmegaConfBaseException: see `whole`.
        """
        plain = {**self.parts(shared, own), "seed": _SEED}
        try:
            found = {group: _resolved(plain[group], plain) for group in config.IDENTITY}
            found["model"] = {key: value for key, value in found["model"].items() if key != "recipe"}
        except (KeyError, TypeError):  # OmegaConf knows more than references, and says what is wrong with one
            cfg = self.whole([*shared, *own]).copy()
            cfg.seed = _SEED
            found = config.identity(cfg, *config.IDENTITY)
        return found, plain["rounds"]


_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")


def _resolved(value: Any, root: Plain) -> Any:
    """A value with its references followed, which is forty times as fast as OmegaConf and knows nothing else.

    Raises:
        KeyError, TypeError: anything but a reference from the root to a key that exists.
    """
    if isinstance(value, dict):
        return {key: _resolved(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root) for item in value]
    if isinstance(value, str) and "$" in value:
        found: Any = root
        for key in _REFERENCE.fullmatch(value)[1].split("."):  # type: ignore[index]
            found = found[key]
        return _resolved(found, root)
    return value


def cells_of(composer: Composer, spec: Spec, preset: Preset, extra: Sequence[str] = ()) -> list[Cell]:
    """The cells of a preset, rows in order, seeds in order.

    Args:
        composer: An open composer.
        spec: The table.
        preset: One of its presets.
        extra: Further overrides of every cell; `seed=0` or `seed=0,1` chooses seeds instead of the preset's.

    Raises:
        ConfigError: a row that cannot be composed; names file, row and reason.
    """
    seeds, words = _seeds(preset, extra)
    shared, cells = _deciding((*preset.overrides, *words)), []
    for row in spec.rows_of(preset.name):
        given = row.of(preset.name)
        own = _deciding(given)
        try:
            groups, rounds = composer.identity(shared, own)
        except (HydraException, OmegaConfBaseException) as error:
            why = " ".join(str(error.__cause__ or error).split("\nSearch path:")[0].split())
            raise ConfigError(
                f"{spec.file}: row {row.key}, preset {preset.name}: {' '.join((*shared, *own)) or 'no overrides'}: "
                f"{why.rstrip('.')}. `ttpa --cfg job` with these words shows what they make."
            ) from None
        texts = [_text(groups[group]) for group in config.IDENTITY]
        for seed in seeds:
            key = Key(tuple(text.replace(str(_SEED), str(seed)) for text in texts), seed, rounds)
            overrides = (*preset.overrides, *given, *words, f"seed={seed}")
            made = partial(composer.whole, (*shared, *own))
            cells.append(Cell(row=row, seed=seed, overrides=overrides, key=key, compose=made))
    return cells


def paths(cells: Sequence[Cell], spec: Spec, preset: Preset) -> Mapping[str, str]:
    """The folders of a table's cells (they share them); the composer must be open.

    Raises:
        ConfigError: the preset has no row.
    """
    if not cells:
        raise ConfigError.at("preset", preset.name, f"no row of {spec.file} is shown in it", "See the presets of rows")
    found: Mapping[str, str] = cells[0].compose().paths
    return found


def _deciding(words: Sequence[str]) -> tuple[str, ...]:
    """Without those that say what runs the cells: a table is made where no launcher is installed, too."""
    heads = [re.split(r"[.=/]", word.lstrip("+~"))[0] for word in words]
    kept = zip(words, heads, strict=True)
    return tuple(word for word, head in kept if head != "cluster" and (head != "hydra" or "searchpath" in word))


def _seeds(preset: Preset, extra: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The seeds, and the other overrides."""
    seeds, words = preset.seeds, []
    for word in extra:
        head, _, value = word.partition("=")
        if head in ("name", "until"):
            raise ConfigError.at(head, value, "is set by the table itself", "Leave it out")
        if head != "seed":
            words.append(word)
            continue
        if not all(part.isdecimal() for part in value.split(",")):
            raise ConfigError.at("seed", value, "must be whole numbers", "For example seed=0 or seed=0,1")
        seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    return seeds, tuple(words)


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """One line that a run left behind."""

    path: Path
    row: Mapping[str, Any]

    def outdated(self, roles: Iterable[str] | None = None) -> dict[str, int]:
        """Stage -> the version that built it, for stages whose code is another one by now."""
        names = {
            stage.rsplit("-", 1)[0] for role, stage in self.row["stages"].items() if roles is None or role in roles
        }
        built = self.row["versions"]
        return {name: built[name] for name in sorted(names) if name in built and built[name] != VERSIONS[name]}


@dataclass(slots=True)
class Records:
    """The records of a folder that a table can use."""

    by_key: dict[Key, list[Record]] = field(default_factory=dict)
    by_warmup: dict[tuple[Any, ...], list[Record]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of(self, cell: Cell) -> Record | None:
        """The record of a cell: built by today's stages if there is one, else any.

        Records of equal configuration are equal by construction, so which is taken plays no part; where two of them
        differ in what the cell shows, something outside the configuration has changed, and that is said.
        """
        role = "baseline" if cell.row.warmup_only else "metrics"
        found = self.by_warmup.get(cell.key.warmup(), []) if cell.row.warmup_only else self.by_key.get(cell.key, [])
        if not found:
            return None
        fresh = [record for record in found if not record.outdated()] or found
        first = fresh[0]
        other = next((record for record in fresh if record.row[role] != first.row[role]), None)
        if other is not None:
            self.warnings.append(
                f"{cell.label}: {first.path} and {other.path} have the same configuration and other {role}; the first "
                "is used. A file that they read may have changed in between: remove the record that is not meant."
            )
        return first


def read_records(folder: Path, cells: Sequence[Cell]) -> Records:
    """Reads every record of a folder that belongs to one of the cells. A file that holds none is named, not fatal."""
    keys = {cell.key for cell in cells if not cell.row.warmup_only}
    warmups = {cell.key.warmup() for cell in cells if cell.row.warmup_only}
    found = Records()
    for path in sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith(".")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            found.warnings.append(f"{path}: cannot be read ({error.strerror}), left out.")
            continue
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key = _checked(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                found.warnings.append(f"{path}:{number}: no run record ({why}), left out.")
                continue
            if key in keys:
                found.by_key.setdefault(key, []).append(Record(path, row))
            if warmups and key.warmup() in warmups:
                found.by_warmup.setdefault(key.warmup(), []).append(Record(path, row))
    return found


def _checked(row: Any) -> Key:
    """The key of a record.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none; the message says why.
    """
    if row["row_version"] != ROW_VERSION:
        raise ValueError(f"row_version {row['row_version']}, not {ROW_VERSION}")
    for part in ("metrics", "baseline", "stages", "versions", "cost"):
        if not isinstance(row[part], dict):
            raise TypeError(f"{part} is no mapping")
    whole = row["config"]
    return Key(tuple(_text(whole[group]) for group in config.IDENTITY), row["seed"], row["rounds"])
