"""Data sources with the values of their option files; any value can be replaced."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ttpa.data.augment import Augment
from ttpa.data.bands import Bands
from ttpa.data.dialogues import Messages, ShareGPT
from ttpa.data.reversed.dialogues import Dialogues
from ttpa.data.reversed.noise import Noise
from ttpa.data.reversed.scenario import Script
from ttpa.data.reversed.source import Reversed
from ttpa.data.toolace import ToolACE
from ttpa.data.xlam import XLAM
from ttpa.records import Sample

D = TypeVar("D", bound=Dialogues)
CONF = Path(__file__).resolve().parents[1] / "conf"


def _values(file: str) -> dict[str, Any]:
    values = yaml.safe_load((CONF / file).read_text(encoding="utf-8"))
    values.pop("defaults", None)
    for part in (values, values.get("noise", {}), values.get("bands", {}), values.get("augment", {})):
        part.pop("_target_", None)
    return dict(values)


def bands(**more: Any) -> Bands:
    return Bands(**(_values("published_data.yaml")["bands"] | more))


def augment(**more: Any) -> Augment:
    return Augment(**(_values("published_data.yaml")["augment"] | more))


def _shared() -> dict[str, Any]:
    return _values("published_data.yaml") | {"bands": bands(), "augment": augment()}


def messages(path: Path | str, **more: Any) -> Messages:
    return Messages(**(_shared() | {"text_turns": True} | more), path=str(path))


def sharegpt(path: Path | str, **more: Any) -> ShareGPT:
    return ShareGPT(**(_shared() | {"text_turns": True} | more), path=str(path))


def toolace(path: Path | str, **more: Any) -> ToolACE:
    values = _shared() | {"repair_split_arguments": True}
    return ToolACE(**(values | more), path=str(path))


def xlam(path: Path | str, **more: Any) -> XLAM:
    return XLAM(**(_shared() | more), path=str(path))


def noise(**more: Any) -> Noise:
    return Noise(**(_values("data/reversed.yaml")["noise"] | more))


def reversed_source(**more: Any) -> Reversed:
    """The default world and defects, with fewer questions."""
    few = {"seed": 0, "warmup_samples": 300, "explore_samples": 100, "validation_per_band": 20, "test_per_band": 30,
           "test_unseen": 20, "noise": noise()}  # fmt: skip
    return Reversed(**(_values("data/reversed.yaml") | few | more))


def dialogues(kind: type[D], name: str, **more: Any) -> D:
    """A generator of dialogues with the values of its option file, by default few of them over the embedded world."""
    values = _values("reversed_dialogues.yaml")
    script = Script(**(_without_target(values["script"]) | more.pop("script", {})))
    few = {"tools": ["world"], "samples": 6, "validation_samples": 2, "test_samples": 2, "bands": bands()}
    own = _values(f"data/{name}.yaml")
    return kind(**(values | {key: own[key] for key in own if key != "defaults"} | few | {"script": script} | more))


def _without_target(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_target_"}


def drawn(source: Reversed, split: str) -> list[Sample]:
    """The samples of a split, without a file."""
    return [Sample.from_json(json.loads(row["line"])) for row in source.work()(source.items(split))]
