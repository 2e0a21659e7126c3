"""Data sources with the values of their option files; any value can be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ttpa.data.bands import Bands
from ttpa.data.reversed.noise import Noise
from ttpa.data.reversed.source import Reversed
from ttpa.data.toolace import ToolACE
from ttpa.data.xlam import XLAM

CONF = Path(__file__).resolve().parents[1] / "conf"


def _values(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONF / file).read_text(encoding="utf-8")))


def bands(**more: Any) -> Bands:
    values = _values("published_data.yaml")["bands"]
    del values["_target_"]
    return Bands(**(values | more))


def toolace(path: Path | str, **more: Any) -> ToolACE:
    return ToolACE(
        **(_values("published_data.yaml") | {"bands": bands(), "repair_split_arguments": True} | more), path=str(path)
    )


def xlam(path: Path | str, **more: Any) -> XLAM:
    return XLAM(**(_values("published_data.yaml") | {"bands": bands()} | more), path=str(path))


def noise(**more: Any) -> Noise:
    values = _values("data/reversed.yaml")["noise"]
    del values["_target_"]
    return Noise(**(values | more))


def reversed_source(**more: Any) -> Reversed:
    """The default world and defects, with fewer questions."""
    values = _values("data/reversed.yaml")
    del values["_target_"]
    few = {"seed": 0, "warmup_samples": 300, "explore_samples": 100, "validation_per_band": 20, "test_per_band": 30,
           "test_unseen": 20, "noise": noise()}  # fmt: skip
    return Reversed(**(values | few | more))
