"""`experiments/NAME/table.yaml`, checked by pydantic: columns (paths into a result row's metrics), rows (Hydra
overrides), published numbers, and presets: the same table on the embedded world and on real models.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from yaml import YAMLError

from ttpa.errors import ConfigError, nearest
from ttpa.options import Finite, Index

TRUST = {"printed": "p", "secondary": "s", "unclear": "?"}
"""How far a published number can be trusted -> its mark: read in the paper, from another source, not clear."""
WAVES = ("warmup", "explore", "align", None)
SET_BY_THE_TABLE = ("seed", "name", "until", "baseline")
SHARED_BY_ROWS = {"paths": "folders", "cluster": "launcher", "hydra": "launcher"}


def _must(holds: Callable[[Any], bool], problem: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(problem)
        return value

    return AfterValidator(check)


def _override(word: str, *, of_row: bool = False) -> str:
    key, sign, _ = word.partition("=")
    if not sign and not key.startswith("~"):
        raise ValueError("is no Hydra override. Write key=value")
    if key.lstrip("+~") in SET_BY_THE_TABLE:
        raise ValueError(f"{key} is set by the table itself. Use seeds and waves of the preset, or policy of a row")
    if re.match(r"[+~]*(hydra\.(?!searchpath)|cluster\.(setup|extra))", key):
        raise ValueError(f"{key} may run commands, which a table must not. Give it on the command line")
    shared = SHARED_BY_ROWS.get(re.split("[./@]", key.lstrip("+~"))[0])
    if of_row and shared:
        raise ValueError(f"all rows share the {shared}. Give {key}= to the preset or on the command line")
    return word


OneLine = Annotated[str, _must(lambda text: len(text.splitlines()) == 1, "must be one line of text. Quote it")]
RowOverride = Annotated[str, AfterValidator(partial(_override, of_row=True))]
Scale = Annotated[Finite, _must(bool, "makes every number 0. Use 1, or 100 for per cent")]
ByPreset = BeforeValidator(lambda value: value if isinstance(value, dict) else {"": value})
Option = Annotated[str, BeforeValidator(lambda one: one if isinstance(one, str | list | dict) else json.dumps(one))]
Axis = Annotated[str, AfterValidator(lambda key: _override(f"{key}=", of_row=True)[:-1])]
Product = Annotated[dict[Axis, Annotated[list[Option], Field(min_length=1)]], Field(min_length=1)]
Pair = Annotated[list[str], _must(lambda two: len(two) == 2 == len({*two}), "must name two rows. Write [ours, other]")]
Once = _must(lambda seeds: len({*seeds}) == len(seeds), "a seed is there twice. Give each once")
InOrder = _must(
    lambda waves: [wave for wave in WAVES if wave in waves] == waves and None in waves,
    "must be in order and end with the whole run. Order: warmup, explore, align, null",
)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, str_strip_whitespace=True)


class Column(_Part):
    """One measured number. `metric` maps a preset to a dotted path; the key "" serves every preset."""

    key: OneLine
    label: OneLine
    metric: Annotated[dict[str, OneLine], ByPreset]
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
    """One row with key and label, or a product of options, which makes many."""

    key: OneLine | None = None
    label: OneLine | None = None
    product: Product | None = None
    skip: list[dict[str, Option]] = []
    overrides: Annotated[dict[str, list[RowOverride]], ByPreset] = {"": []}
    policy: Literal["aligned", "warm-up"] = "aligned"
    presets: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _makes_rows(self) -> Self:
        if (self.product is None) != (self.key is not None and self.label is not None):
            raise ValueError("a row needs key and label, or product. Add them")
        for key, option in (one for skip in self.skip for one in skip.items()):
            if option not in (self.product or {}).get(key, []):
                raise ValueError(f"skip: {key}={option} is not in the product. Correct it")
        if not list(self.rows()):
            raise ValueError("skip leaves nothing of the product. Skip less")
        return self

    def rows(self, preset: str = "") -> Iterator[RowSpec]:
        """The rows that the entry makes in a preset."""
        axes = self.product or {}
        for options in itertools.product(*axes.values()):
            chosen = dict(zip(axes, options, strict=True))
            words = [f"{group}={option}" for group, option in chosen.items()]
            words += self.overrides.get(preset, self.overrides.get("", []))
            key, label = self.key or "+".join(options), self.label or " + ".join(options)
            if not any(skip.items() <= chosen.items() for skip in self.skip):
                yield RowSpec(key, label, tuple(words), warmup_only=self.policy == "warm-up")


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
    """One way to run the table. `comparable`: whether the published numbers were measured on the same thing. `added`:
    those of `seeds` that stand in no file, because the spread of the listed ones decided their number.
    """

    name: str = Field(default="", validation_alias="(name)")  # no key of a preset in the file
    added: list[int] = Field(default=[], validation_alias="(added)")
    overrides: list[Annotated[str, AfterValidator(_override)]]
    seeds: Annotated[list[Index], Field(min_length=1), Once]
    waves: Annotated[list[Literal["warmup", "explore", "align"] | None], InOrder] = [None]
    cost: str = ""
    comparable: bool | None = None


class Paper(_Part):
    """Where the published numbers come from."""

    name: OneLine
    arxiv: OneLine | None = None
    where: OneLine | None = None


class TableSpec(_Part):
    """A whole table.yaml. `name` is that of its folder."""

    name: str = Field(default="", validation_alias="(name)")  # name and file are no keys of the file
    file: Path = Field(default=Path(), validation_alias="(file)")
    title: OneLine
    claim: str
    paper: Paper | None = None
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[RowEntry], Field(min_length=1)]
    differences: list[Pair] = []
    published: list[Published] = []
    presets: Annotated[dict[str, Preset], Field(min_length=1)]

    def preset(self, name: str | None) -> Preset:
        """The preset of that name, a ConfigError where there is none; without a name, the first of the file."""
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


def load(folder: Path) -> TableSpec:
    """Reads `folder/table.yaml`. The first mistake is a ConfigError in one line with file, key, value and remedy."""
    file = folder if folder.suffix == ".yaml" else folder / "table.yaml"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Give a folder of experiments/ that holds a table.yaml.")
    name = file.parent.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # it becomes the `name=` of runs
        remedy = "Name it with letters, digits, '.', '_' and '-'"
        raise ConfigError.at(f"{file}: the folder", repr(name), "names runs and files", remedy)
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        spec = TableSpec.model_validate(content).model_copy(update={"name": name, "file": file})
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply. Close the brackets.") from None
    except pydantic.ValidationError as error:
        raise _explain(error, file) from None
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())}). Correct that line.") from None
    _check(spec)
    return spec


def _explain(error: pydantic.ValidationError, file: Path) -> ConfigError:
    first = error.errors(include_url=False)[0]
    loc = [part for part in first["loc"] if part not in ("", "[key]")]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)[1:] or "the file"
    if first["type"] == "missing":
        return ConfigError(f"{file}: {key} is missing. Add it.")
    shown = f"{first['input']!r:.80}"
    if first["type"] == "extra_forbidden":
        parts = {"columns": Column, "rows": RowEntry, "published": Published, "presets": Preset, "paper": Paper}
        model: Any = parts.get(str(loc[0]), TableSpec) if len(loc) > 1 else TableSpec
        known = [name for name, field in model.model_fields.items() if field.validation_alias is None]
        return ConfigError.at(f"{file}: {key}", shown, "unknown key", nearest(str(loc[-1]), known))
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    problem, _, remedy = said.partition(". ")
    return ConfigError.at(f"{file}: {key}", shown, problem, remedy or "Change the value")


def _check(spec: TableSpec) -> None:
    """Refuses keys that name the same thing twice, or parts of the file that there are not."""
    rows, columns = [row.key for entry in spec.rows for row in entry.rows()], [column.key for column in spec.columns]
    pairs = [" and ".join(sorted(pair)) for pair in spec.differences]
    published = [f"{one.column} and {one.row}" for one in spec.published]
    once = {"columns": columns, "rows": rows, "differences": pairs, "published": published}
    for where, names in once.items():
        for name, count in Counter(names).items():
            if count > 1:
                raise ConfigError(f"{spec.file}: {where}: {name} is there twice. Keep one of them.")

    def known(where: str, names: Iterable[str], allowed: Iterable[str]) -> None:
        for name in names:
            if name not in allowed:
                raise ConfigError.at(f"{spec.file}: {where}", repr(name), "unknown", nearest(name, allowed))

    for at, column in enumerate(spec.columns):
        known(f"columns[{at}].metric", column.metric.keys() - {""}, spec.presets)
    for at, entry in enumerate(spec.rows):
        known(f"rows[{at}].presets", (*(entry.presets or ()), *(entry.overrides.keys() - {""})), spec.presets)
        for preset in entry.presets or spec.presets:
            if not entry.overrides.keys() & {"", preset}:
                raise ConfigError(f"{spec.file}: rows[{at}].overrides: none for preset {preset}. Add {preset}: [].")
    for at, pair in enumerate(spec.differences):
        known(f"differences[{at}]", pair, rows)
    for at, one in enumerate(spec.published):
        known(f"published[{at}].row", [one.row], rows)
        known(f"published[{at}].column", [one.column], columns)
