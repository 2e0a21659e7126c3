"""Option classes (what an option file of conf/ names with `_target_`) and the words of a command. pydantic checks both.

A field's annotation is its check (`Annotated[int, Field(ge=1)]`). A check of several fields together goes into
`__post_init__` and raises `ConfigError.at` with the bare name of the field; `ttpa.run.config` puts the group before it.
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from ttpa.errors import ConfigError, nearest

C = TypeVar("C", bound=type)
F = TypeVar("F")

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]

CONFIG = pydantic.ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def option(cls: C) -> C:
    """Makes a frozen, keyword-only dataclass that refuses wrong, unknown and missing values by ConfigError."""
    made: Any = dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except pydantic.ValidationError as error:
            raise explain(error, type(self).__name__, list(type(self).__dataclass_fields__)) from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def explain(error: pydantic.ValidationError, name: str, fields: list[str]) -> ConfigError:
    """The first problem that pydantic found in the values of `name`, as an error in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or name
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return ConfigError.at(key, first["input"], f"{name} has no such option", nearest(key, fields))
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        if name.startswith("ttpa "):
            return ConfigError(f"{name} needs {key}.")
        return ConfigError.at(key, None, f"is missing, and {name} needs it")
    value = repr(first["input"]) if isinstance(first["input"], str) else first["input"]
    problem = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return ConfigError.at(key, value, problem[0].lower() + problem[1:])


def _commas(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], pydantic.BeforeValidator(_commas)]
"""Several words of the command line, joined by commas."""


def arguments(words: Sequence[str], form: type[F], command: str) -> F:
    """The words behind `ttpa COMMAND` as an object of `form`, a pydantic dataclass whose fields are the keys.

    A field `target` takes the one word without `=`; a field `overrides` takes every other KEY=VALUE, for Hydra. Without
    these fields such words are errors.
    """
    fields = getattr(form, "__dataclass_fields__")  # noqa: B009
    keys = [key for key in fields if key not in ("target", "overrides")]
    found: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign and not word.startswith(("-", "~")) and "target" in fields:
            key, value = "target", word
        elif key not in keys:
            if "overrides" not in fields or word.startswith("-") or not (sign or word.startswith("~")):
                raise ConfigError(f"{word}: ttpa {command} has no such option. {nearest(key, keys)}")
            overrides.append(word)
            continue
        if key in found:
            raise ConfigError.at(key, value, "given twice", "Give it once")
        if not value:
            raise ConfigError.at(key, value, "is empty", "Give a value, or leave the key out")
        found[key] = value
    if overrides:
        found["overrides"] = tuple(overrides)
    try:
        return form(**found)
    except pydantic.ValidationError as error:
        problem = explain(error, f"ttpa {command}", keys)
        raise ConfigError(f"{problem} `ttpa {command} --help` says what it means.") from None
