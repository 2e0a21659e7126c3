"""`experiments/NAME/table.yaml`: what a table holds, read and checked by pydantic before anything else happens.

A file has columns (paths into a result row's metrics), rows (Hydra overrides), published numbers, and presets: the same
table on the embedded world and on real models. A mistake is one line with file, key, value and remedy. This module does
not compose a configuration and does not know which metrics exist.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from yaml import YAMLError

from ttpa.errors import ConfigError, nearest

TRUST = {"printed": "p", "secondary": "s", "unclear": "?"}
"""How far a published number can be trusted -> its mark: read in the paper, from another source, not clear."""
WAVES = ("warmup", "explore", "align", None)
SET_BY_THE_TABLE = ("seed", "name", "until", "baseline")
SHARED_BY_ROWS = {"paths": "folders", "cluster": "launcher", "hydra": "launcher"}


def _one_line(text: str) -> str:
    if len(text.strip().splitlines()) != 1:
        raise ValueError("must be one line of text. Quote it")
    return text.strip()


def _not_zero(value: float) -> float:
    if not value:
        raise ValueError("makes every number 0. Use 1, or 100 for per cent")
    return value


def _by_preset(value: Any) -> Any:
    return value if isinstance(value, dict) else {"": value}


def _option(value: Any) -> Any:
    """An option of a product as an override writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int | float) else value


def _override(word: str) -> str:
    key, sign, _ = word.partition("=")
    if not sign and not key.startswith("~"):
        raise ValueError("is no Hydra override. Write key=value")
    if key.lstrip("+~") in SET_BY_THE_TABLE:
        raise ValueError(f"{key} is set by the table itself. Use seeds and waves of the preset, or policy of a row")
    return word.strip()


def _row_override(word: str) -> str:
    key = _override(word).lstrip("+~").partition("=")[0]
    shared = SHARED_BY_ROWS.get(re.split("[./@]", key)[0])
    if shared:
        raise ValueError(f"all rows share the {shared}. Give {key}= to the preset or on the command line")
    return word.strip()


def _axis(key: str) -> str:
    _row_override(f"{key}=")
    return key


OneLine = Annotated[str, AfterValidator(_one_line)]
Override = Annotated[str, AfterValidator(_override)]
RowOverride = Annotated[str, AfterValidator(_row_override)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scale = Annotated[Finite, AfterValidator(_not_zero)]
Axis = Annotated[str, AfterValidator(_axis)]
Option = Annotated[str, BeforeValidator(_option)]
Seed = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Column(_Part):
    """One measured number. `metric` maps a preset to a dotted path; the key "" serves every preset."""

    key: OneLine
    label: OneLine
    metric: Annotated[dict[str, OneLine], BeforeValidator(_by_preset)]
    scale: Scale = 1.0
    digits: Annotated[int, Field(ge=0, le=17)] = 3
    better: Literal["high", "low"] = "high"

    def path(self, preset: str) -> str | None:
        """Where a result row holds the number; None where this preset does not measure it."""
        return self.metric.get(preset, self.metric.get(""))


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One row of a table in a preset. `warmup_only`: it shows the warm-up policy of its run, not the last one."""

    key: str
    label: str
    overrides: tuple[str, ...] = ()
    warmup_only: bool = False


class RowEntry(_Part):
    """An entry of `rows`: one row with key and label, or a product of options, which makes many."""

    key: OneLine | None = None
    label: OneLine | None = None
    product: Annotated[dict[Axis, Annotated[list[Option], Field(min_length=1)]], Field(min_length=1)] | None = None
    skip: list[dict[str, Option]] = []
    overrides: Annotated[dict[str, list[RowOverride]], BeforeValidator(_by_preset)] = {"": []}
    policy: Literal["aligned", "warm-up"] = "aligned"
    presets: Annotated[list[str], Field(min_length=1)] | None = None

    def rows(self, preset: str = "") -> Iterator[RowSpec]:
        """The rows that the entry makes in a preset."""
        more = self.overrides.get(preset, self.overrides.get("", []))
        for chosen in self._products() if self.product else [{}]:
            words = [f"{group}={option}" for group, option in chosen.items()]
            yield RowSpec(
                key=self.key or "+".join(chosen.values()),
                label=self.label or " + ".join(chosen.values()),
                overrides=(*words, *more),
                warmup_only=self.policy == "warm-up",
            )

    def _products(self) -> Iterator[dict[str, str]]:
        axes = self.product or {}
        for options in itertools.product(*axes.values()):
            chosen = dict(zip(axes, options, strict=True))
            if not any(skip.items() <= chosen.items() for skip in self.skip):
                yield chosen


class Published(_Part):
    """A number of the paper; `unit_scale` turns it into the unit that the column shows."""

    row: str
    column: str
    value: Finite
    unit_scale: Scale = 1.0
    source: OneLine
    trust: Literal["printed", "secondary", "unclear"]
    note: str | None = None

    @property
    def shown(self) -> float:
        """The value in the unit of its column."""
        return self.value * self.unit_scale

    @property
    def footnote(self) -> str:
        """Source and note."""
        note = " ".join((self.note or "").split())
        return f"{self.source} ({note})." if note else f"{self.source}."


class Preset(_Part):
    """One way to run the table. `comparable`: whether the published numbers were measured on the same thing."""

    name: str = ""
    overrides: list[Override]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    waves: list[Literal["warmup", "explore", "align"] | None] = [None]
    cost: str = ""
    comparable: bool | None = None

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is there twice. Give each once")
        return seeds

    @field_validator("waves")
    @classmethod
    def _in_order(cls, waves: list[str | None]) -> list[str | None]:
        if [wave for wave in WAVES if wave in waves] != waves or None not in waves:
            raise ValueError(
                "must be in the order of a run and end with the whole run. Order: warmup, explore, align, null"
            )
        return waves


class Paper(_Part):
    """Where the published numbers come from."""

    name: OneLine
    arxiv: OneLine | None = None
    where: OneLine | None = None


class TableSpec(_Part):
    """A whole table.yaml. `name` is that of its folder."""

    name: str
    file: Path
    title: OneLine
    claim: str
    paper: Paper | None = None
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[RowEntry], Field(min_length=1)]
    differences: list[list[str]] = []
    published: list[Published] = []
    presets: Annotated[dict[str, Preset], Field(min_length=1)]

    def preset(self, name: str | None) -> Preset:
        """The preset of that name; without a name, the first of the file.

        Raises:
            ConfigError: there is none of that name; lists those there are.
        """
        chosen = next(iter(self.presets)) if name is None else name
        if chosen not in self.presets:
            raise ConfigError.at("preset", chosen, f"not in {self.file}", nearest(chosen, self.presets))
        found = self.presets[chosen]
        comparable = chosen != "embedded" if found.comparable is None else found.comparable
        return found.model_copy(update={"name": chosen, "comparable": comparable})

    def rows_of(self, preset: str) -> list[RowSpec]:
        """The rows that a preset shows."""
        shown = [entry for entry in self.rows if entry.presets is None or preset in entry.presets]
        return [row for entry in shown for row in entry.rows(preset)]


MODELS: dict[Any, type[BaseModel]] = {
    "columns": Column,
    "rows": RowEntry,
    "published": Published,
    "presets": Preset,
    "paper": Paper,
}


def load(folder: Path) -> TableSpec:
    """Reads and checks `folder/table.yaml`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or the first thing in it that cannot work.
    """
    file = folder / "table.yaml" if folder.suffix != ".yaml" else folder
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Give a folder of experiments/ that holds a table.yaml.")
    name = file.parent.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # it becomes the `name=` of runs
        remedy = "Name it with letters, digits, '.', '_' and '-'"
        raise ConfigError.at(f"{file}: the folder", repr(name), "names runs and files", remedy)
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply. Close the brackets.") from None
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())}). Correct that line.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must be a mapping. Keys: title, claim, columns, rows, presets.")
    try:
        spec = TableSpec.model_validate({**content, "name": name, "file": file})
    except pydantic.ValidationError as error:
        raise _explain(error, file) from None
    _check(spec)
    return spec


def _explain(error: pydantic.ValidationError, file: Path) -> ConfigError:
    first = error.errors(include_url=False)[0]
    loc = [part for part in first["loc"] if part != "[key]"]
    key = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, loc))).replace(".[", "[") or "the file"
    if first["type"] == "missing":
        return ConfigError(f"{file}: {key} is missing. Add it.")
    if first["type"] == "extra_forbidden":
        model = MODELS.get(loc[0], TableSpec) if len(loc) > 1 else TableSpec
        known = [name for name in model.model_fields if name not in ("name", "file") or model is Paper]
        return ConfigError.at(f"{file}: {key}", f"{first['input']!r:.80}", "unknown key", nearest(str(loc[-1]), known))
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    problem, _, remedy = said.partition(". ")
    return ConfigError.at(f"{file}: {key}", f"{first['input']!r:.80}", problem, remedy or "Change the value")


def _check(spec: TableSpec) -> None:
    """What no single value shows: keys that name other parts of the file.

    Raises:
        ConfigError: the first one that names nothing, or the same thing twice.
    """

    def known(where: str, name: str, names: Sequence[str]) -> None:
        if name not in names:
            raise ConfigError.at(f"{spec.file}: {where}", repr(name), "unknown", nearest(name, names))

    def once(where: str, names: Sequence[Any]) -> None:
        for at, name in enumerate(names):
            if name in names[:at]:
                shown = " and ".join(sorted(name)) if isinstance(name, frozenset | tuple) else name
                raise ConfigError(f"{spec.file}: {where}: {shown} is there twice. Keep one of them.")

    presets, columns = list(spec.presets), [column.key for column in spec.columns]
    for at, column in enumerate(spec.columns):
        for preset in column.metric.keys() - {""}:
            known(f"columns[{at}].metric", preset, presets)
    for at, entry in enumerate(spec.rows):
        where = f"rows[{at}]"
        if (entry.product is None) != (entry.key is not None and entry.label is not None):
            raise ConfigError(f"{spec.file}: {where}: a row needs key and label, or product. Add them.")
        for key, option in (one for skip in entry.skip for one in skip.items()):
            if option not in (entry.product or {}).get(key, []):
                raise ConfigError.at(
                    f"{spec.file}: {where}.skip", option, f"{key}={option} is not in the product", "Correct it"
                )
        if not list(entry.rows()):
            raise ConfigError.at(f"{spec.file}: {where}.skip", entry.skip, "leaves nothing of the product", "Skip less")
        for preset in (*(entry.presets or ()), *(entry.overrides.keys() - {""})):
            known(f"{where}.presets", preset, presets)
        for preset in entry.presets or presets:
            if "" not in entry.overrides and preset not in entry.overrides:
                raise ConfigError(f"{spec.file}: {where}.overrides: none for preset {preset}. Add {preset}: [].")
    rows = [row.key for entry in spec.rows for row in entry.rows()]
    once("columns", columns)
    once("rows", rows)
    for at, pair in enumerate(spec.differences):
        where = f"differences[{at}]"
        if len(set(pair)) != 2 or len(pair) != 2:
            raise ConfigError.at(f"{spec.file}: {where}", pair, "must name two rows", "Write [ours, baseline]")
        for name in pair:
            known(where, name, rows)
    once("differences", [frozenset(pair) for pair in spec.differences])
    for at, one in enumerate(spec.published):
        known(f"published[{at}].row", one.row, rows)
        known(f"published[{at}].column", one.column, columns)
    once("published", [(one.row, one.column) for one in spec.published])
