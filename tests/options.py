"""Option classes made from their files in conf/, so that tests have one place for defaults."""

import importlib
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[1] / "conf"


def option_values(group: str, name: str) -> dict[str, Any]:
    """The values of an option file, with those of the one it builds on; interpolations as they are written."""
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    for base in values.pop("defaults", ()):
        if isinstance(base, str) and base != "_self_":
            values = option_values(group, base) | values
    return values


def made(group: str, name: str, **changes: Any) -> Any:
    """The object that an option file describes. Values that the file takes from elsewhere must be given."""
    values = option_values(group, name) | changes
    module, _, kind = values.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), kind)(**values)
