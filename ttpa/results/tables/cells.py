"""The cells of a table, matched with the run records that fill them by what was run and never by a name.

A cell is a row with a seed. It is composed as the command line composes it, and a record is its own when the resolved
identity configuration, the seed and the rounds are equal: the test is equality of canonical JSON, as in a fingerprint
(`ttpa.results.tables.records`).

Hydra takes about 0.1 s for one configuration. Rows of a table differ from the preset in a few top-level keys, so the
overrides of each key are composed once and the values put together before anything is resolved. That is the same
configuration as long as the overrides of a key change nothing but that key, which is looked at for each; else, and for
overlays (`experiment=`, `+key=`), the row is composed whole. One call of Hydra composes the overrides of several keys
where each is known to stay inside its key: values of a key, and option files that neither name a package nor other
groups. A run itself is always composed whole. What this module does not do: launch, or compute a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ttpa.errors import ConfigError
from ttpa.results.tables.records import Key, Record, Records, read_records, text
from ttpa.results.tables.spec import SET_BY_THE_TABLE, Preset, Row, Spec
from ttpa.run import config

__all__ = ["Cell", "Composer", "Key", "Record", "Records", "cells_of", "paths", "read_records"]

_SEED = 8_400_000_000_000_017
"""Stands for the seed while a row is resolved once for all of them; no other number of a configuration is this one."""


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
    folders: Callable[[], Mapping[str, str]]
    """Where the row keeps things; an open composer is needed."""
    check: Callable[[], None]
    """Refuses overridden values of another type than their defaults, as a run does; an open composer is needed."""

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
        self._joined: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
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
        heads = _heads(own)
        if len(heads) == 1 and (tuple(shared), tuple(own)) not in self._joined:
            return self.plain([*shared, *own])
        try:
            base = self.plain(shared)
            if not heads.keys() <= base.keys():
                return self.plain([*shared, *own])
            parts = {}
            for head, words in heads.items():
                if (tuple(shared), words) not in self._joined:
                    part = self.plain([*shared, *words])
                    if not _only(part, base, (head,)):
                        return self.plain([*shared, *own])
                    self._joined[tuple(shared), words] = part[head]
                parts[head] = self._joined[tuple(shared), words]
        except (HydraException, OmegaConfBaseException):  # the preset may set a key of the row's option
            return self.plain([*shared, *own])
        return {**base, **parts}

    def join(self, shared: Sequence[str], every: Sequence[Sequence[str]]) -> None:
        """Composes the overrides of several rows, those of different keys in one call, as a first step of `parts`.

        What cannot be joined, or cannot be composed, is left to `parts`.
        """
        try:
            base = self.plain(shared)
        except (HydraException, OmegaConfBaseException):
            return
        variants: dict[str, list[tuple[str, ...]]] = {}
        for own in every:
            heads = _heads(own)
            for head, words in heads.items() if heads.keys() <= base.keys() else ():
                if words not in variants.setdefault(head, []) and all(map(self._stays_inside, words)):
                    variants[head].append(words)
        for at in range(max(map(len, variants.values()), default=0)):
            chosen = {head: several[at] for head, several in variants.items() if at < len(several)}
            try:
                made = self.plain([*shared, *(word for words in chosen.values() for word in words)])
            except (HydraException, OmegaConfBaseException):
                continue
            if _only(made, base, tuple(chosen)):
                self._joined |= {(tuple(shared), words): made[head] for head, words in chosen.items()}

    def _stays_inside(self, word: str) -> bool:
        """Whether an override can change nothing outside its own key, whatever else is overridden."""
        head, _, value = word.partition("=")
        if "." in head:
            return True
        repository = _repository()
        return not repository.group_exists(head) or _is_plain(repository, f"{head}/{value}")

    def identity(self, shared: Sequence[str], own: Sequence[str]) -> tuple[Plain, int]:
        """`config.identity` of every identity group with `_SEED` for a seed, and the number of rounds.

        Raises:
            HydraException, OmegaConfBaseException: see `whole`.
        """
        plain = {**self.parts(shared, own), "seed": _SEED}
        try:
            found = {group: _resolved(plain[group], plain) for group in config.IDENTITY}
        except (KeyError, TypeError):  # OmegaConf knows more than references, and says what is wrong with one
            cfg = self.whole([*shared, *own]).copy()
            cfg.seed = _SEED
            found = config.identity(cfg, *config.IDENTITY)
        return found, plain["rounds"]

    def folders(self, shared: Sequence[str], own: Sequence[str]) -> Mapping[str, str]:
        """The folders of a row; the values stand where Hydra puts them, whatever keys the row changes beside them."""
        found: Mapping[str, str] = OmegaConf.create(self.parts(shared, own)).paths
        return found

    def check(self, shared: Sequence[str], own: Sequence[str]) -> None:
        """Composes the cell.

        Raises:
            ConfigError: an override that cannot be composed.
        """

        self.whole([*shared, *own])


def _repository() -> Any:
    """Where Hydra finds option files."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader.repository  # type: ignore[attr-defined]


def _heads(own: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Top-level key -> its overrides, in order."""
    heads: dict[str, tuple[str, ...]] = {}
    for word in own:
        head = re.split("[.=]", word)[0]
        heads[head] = (*heads.get(head, ()), word)
    return heads


def _is_plain(repository: Any, option: str) -> bool:
    """Whether an option file, and those it builds on, stay inside the key of their group."""
    found = repository.load_config(option)
    if found is None or found.header.get("package") is not None:
        return False
    for one in found.defaults_list or ():
        if one.is_self():
            continue
        # A file below the same folder is named by its path, which is relative; "" is the package of the file itself.
        path = getattr(one, "path", None)
        if not isinstance(path, str) or path.startswith("/") or ".." in path or one.package not in (None, ""):
            return False
        if not _is_plain(repository, f"{option.rpartition('/')[0]}/{path}"):
            return False
    return True


def _only(made: Plain, base: Plain, heads: Sequence[str]) -> bool:
    """Whether a configuration differs from another one in these keys alone."""
    return all(made.get(key) == value for key, value in base.items() if key not in (*heads, "choices"))


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
    composer.join(shared, [_deciding(row.of(preset.name)) for row in spec.rows_of(preset.name)])
    for row in spec.rows_of(preset.name):
        given = row.of(preset.name)
        own = _deciding(given)
        try:
            groups, rounds = composer.identity(shared, own)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(
                f"{spec.file}: row {row.key}, preset {preset.name}: {why(error)}. Correct the preset's overrides, or "
                f"{' '.join((*own, *_deciding(words))) or 'those of the command line'}."
            ) from None
        texts = [text(groups[group]) for group in config.IDENTITY]
        for seed in seeds:
            key = Key(tuple(one.replace(str(_SEED), str(seed)) for one in texts), seed, rounds)
            cells.append(
                Cell(
                    row=row,
                    seed=seed,
                    overrides=(*preset.overrides, *given, *words, f"seed={seed}"),
                    key=key,
                    compose=partial(composer.whole, (*shared, *own)),
                    folders=partial(composer.folders, shared, own),
                    check=partial(composer.check, shared, own),
                )
            )
    return cells


def why(error: Exception) -> str:
    """What Hydra says of overrides that it cannot compose, in one line and without the places it looked at."""
    said = re.split(r"\n(?:Config search|Search) path:", str(error.__cause__ or error))[0]
    return " ".join(said.split()).rstrip(".")


def paths(cells: Sequence[Cell], spec: Spec, preset: Preset) -> Mapping[str, str]:
    """The folders of a table's cells (they share them); the composer must be open.

    Raises:
        ConfigError: the preset has no row.
    """
    if not cells:
        raise ConfigError.at("preset", preset.name, f"no row of {spec.file} is shown in it", "See the presets of rows")
    return cells[0].folders()


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
        if head not in SET_BY_THE_TABLE:
            words.append(word)
            continue
        if head != "seed":
            raise ConfigError.at(head, value, "is set by the table itself", "Leave it out")
        if not all(part.isdecimal() for part in value.split(",")):
            raise ConfigError.at("seed", value, "must be whole numbers", "For example seed=0 or seed=0,1")
        seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    return seeds, tuple(words)
