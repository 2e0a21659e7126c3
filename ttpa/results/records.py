"""Result rows: the lines that runs leave in `paths.results`, read and matched with what was run, never by a name.

A file or line of another form is named in a warning and left out, so that one odd file stops no command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError, model_validator

from ttpa.results.stats import Estimate, wilson_interval
from ttpa.run import config
from ttpa.run.parts import VERSIONS
from ttpa.run.pipeline import ROW_VERSION

WARMUP_GROUPS = ("data", "model", "warmup", "eval")
"""The groups that decide, with `recipe.warmup` and the seed, the evaluation of the warm-up policy."""
WARMUP_ROLES = ("data", "warmup", "baseline")
LARGEST = 1e300  # no number of a row is as large, so that sums do not overflow

Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST, allow_inf_nan=False)]
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Key(NamedTuple):
    """What result rows and cells are compared by, as canonical JSON: the whole run, and its warm-up's evaluation."""

    whole: str
    warmup: str


def warmup_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity configuration that decides the warm-up policy and its evaluation."""
    recipe = identity.get("recipe")
    warmup = recipe.get("warmup") if isinstance(recipe, Mapping) else None
    return {**{group: identity.get(group) for group in WARMUP_GROUPS}, "recipe.warmup": warmup}


def key_of(identity: Mapping[str, Any], seed: int, rounds: int) -> Key:
    """The key of a resolved identity configuration (group -> values)."""
    whole = ",".join(_encode(identity[group]) for group in config.IDENTITY)
    return Key(f"{whole};seed={seed};rounds={rounds}", f"{_encode(warmup_settings(identity))};seed={seed}")


class StageCost(BaseModel, strict=True):
    """What building a stage took."""

    seconds: Number
    tokens: Number | None = None


class Record(BaseModel, strict=True, frozen=True):
    """A result row of the file `path`. `stages` maps roles to stage folders, `versions` stages to their versions,
    `fallbacks` roles to what was computed in another way than wanted.
    """

    row_version: int
    run: str = ""
    name: str = ""
    seed: int
    rounds: int
    choices: dict[str, str] = {}
    config: dict[str, Any]
    stages: dict[str, str]
    versions: dict[str, int]
    baseline: dict[str, Any]
    metrics: dict[str, Any]
    explored: dict[str, Any] = {}
    fallbacks: dict[str, list[str]] = {}
    cost: dict[str, StageCost]
    path: Path = Path()

    @model_validator(mode="after")
    def _complete(self) -> Record:
        if self.row_version != ROW_VERSION:
            raise ValueError(f"row_version {self.row_version}, not {ROW_VERSION}")
        roles = ["evaluation", "baseline"] if self.baseline else ["evaluation"]
        missing = [role for role in roles if role not in self.stages]
        missing += [group for group in config.IDENTITY if group not in self.config]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        return self

    @property
    def key(self) -> Key:
        return key_of(self.config, self.seed, self.rounds)

    def measured(self, warmup_only: bool) -> Mapping[str, Any]:
        """The numbers of the last policy, or of the warm-up policy."""
        return self.baseline if warmup_only else self.metrics

    def evaluation(self, warmup_only: bool) -> str:
        """Folder name of the evaluation of the last policy, or of the warm-up policy."""
        return self.stages["baseline" if warmup_only else "evaluation"]

    def costs(self, warmup_only: bool) -> tuple[float, float]:
        """Seconds and tokens of everything that the policy needed, as if it had run alone."""
        roles = WARMUP_ROLES if warmup_only else self.cost.keys() - {"baseline"}
        parts = [part for role, part in self.cost.items() if role in roles]
        return sum(part.seconds for part in parts), sum(part.tokens or 0 for part in parts)

    def outdated(self, warmup_only: bool = False) -> dict[str, int | None]:
        """Stage -> version that built it (None if unsaid), of stages that have another version, or none, by now."""
        roles = WARMUP_ROLES if warmup_only else self.stages
        names = sorted({folder.rsplit("-", 1)[0] for role, folder in self.stages.items() if role in roles})
        built = {name: self.versions.get(name) for name in names}
        # A version that a known stage's row does not say is taken for today's.
        return {name: old for name, old in built.items() if name not in VERSIONS or old not in (None, VERSIONS[name])}


def read_records(files: Iterable[Path], warnings: list[str]) -> Iterator[Record]:
    """Yields the result rows of some files; what is left out is added to `warnings`."""
    for path in files:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            warnings.append(f"{path}: cannot be read ({error.strerror}), left out.")
            continue
        for number, line in enumerate(lines, 1):
            try:
                yield Record.model_validate_json(line).model_copy(update={"path": path})
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
                why = f"{where}: {message}" if where else message
                warnings.append(f"{path}:{number}: no result row ({why}), left out.")


def number_at(metrics: Mapping[str, Any], path: str) -> Estimate | None:
    """The number at a dotted path, plain or `{value, low, high, n}`; None where there was nothing to measure, a
    KeyError where there is no such path or no number. An interval without width is of a row from before `stats.share`
    gave such shares Wilson's.
    """
    value: Any = metrics
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(path)
        value = value[key]
    whole = value if isinstance(value, Mapping) else {"value": value}
    numbers: dict[str, Any] = {key: whole.get(key) for key in ("value", "low", "high")}
    if "value" not in whole or not all(one is None or is_number(one) for one in numbers.values()):
        raise KeyError(path)
    if None not in numbers.values():
        low, n = numbers["low"], whole.get("n") or 0
        if low == numbers["high"] and 0 <= low <= 1 and is_number(n) and n > 1:
            numbers["low"], numbers["high"] = wilson_interval(low, n)
        return Estimate(**numbers, kind="wilson" if numbers["value"] in (0, 1) else "bootstrap")
    return None if numbers["value"] is None else Estimate(value=numbers["value"])


def is_number(value: Any) -> bool:
    """Whether a table can compute with a value: no bool, no NaN, nothing near infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
