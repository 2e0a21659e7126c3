"""Option classes: what an option file of conf/ names with `_target_`. pydantic checks their values.

A field's annotation is its check (`Annotated[int, Field(ge=1)]`). A check of several fields together goes into
`__post_init__` and raises `ConfigError.at` with the bare name of the field; `ttpa.run.config` puts the group before it.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from ttpa.errors import ConfigError, nearest

C = TypeVar("C", bound=type)

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
Index = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""

CONFIG = pydantic.ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def option(cls: C) -> C:
    """Makes a frozen, keyword-only dataclass whose values are checked when it is built.

    Raises (when the class is instantiated):
        ConfigError: a value of the wrong type or out of range, or an unknown or missing field; names field and value.
    """
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
        return ConfigError(f"{name} needs {key}. Add it to the option file or the command line.")
    problem = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return ConfigError.at(key, first["input"], problem[0].lower() + problem[1:], "Change the value")
