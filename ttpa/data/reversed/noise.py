"""Annotation defects of the warm-up corpus: a constructed, documented part of the embedded world.

Synthetic tool-call corpora are wrong in systematic ways; iTool (2501.09766) reports 51 % parameter-value and 26 %
parameter-name errors among a model's mistakes. Here a share of the (tool, parameter) sites is badly annotated: each bad
site has one defect family and shows it with a probability above one half whenever it applies, so that greedy decoding
learns the wrong mode there. Only the warm-up demonstrations are touched; questions and targets used for exploration,
validation and test stay right. Without this (`data.noise.share=0`) the warm-up model has the right mode everywhere
and nothing later in the graph has anything to repair: measured, see experiments/LOG.md.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ttpa.data.reversed.world import KIND_OF, World, stable_unit
from ttpa.errors import ConfigError
from ttpa.records import Sample, ToolCall

FAMILIES = ("wrong_name", "truncated", "neighbour_value", "number_as_text", "default_value", "date_order", "dropped")


def default_weights() -> dict[str, float]:
    """Relative weights of the families when a bad site draws one of those that apply to it.

    In the world of `world_seed` 0 they make the defects that show 53 % values, 36 % names and 11 % dropped parameters;
    other worlds differ (values .43 to .81), because 33 bad sites are few.
    """
    return {
        "wrong_name": 0.10,
        "truncated": 0.5,
        "neighbour_value": 0.3,
        "number_as_text": 0.3,
        "default_value": 0.15,
        "date_order": 0.2,
        "dropped": 0.08,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Which sites are badly annotated, and how.

    Args:
        share: Share of bad sites, in [0, 1]. 0 switches the defects off.
        probability: How often a bad site shows its defect when it applies, in [0, 1].
        scope: "site" marks (tool, parameter) places; "kind" marks parameter kinds wherever they occur.
        weights: Relative weight of each family of `FAMILIES`.

    Raises:
        ConfigError: a share or probability outside [0, 1], an unknown scope or family.
    """

    share: float = 0.16
    probability: float = 0.65
    scope: str = "site"
    weights: Mapping[str, float] = field(default_factory=default_weights)

    def __post_init__(self) -> None:
        for key in ("share", "probability"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError.at(f"data.noise.{key}", getattr(self, key), "must be in [0, 1]", "0 means no defects")
        if self.scope not in ("site", "kind"):
            raise ConfigError.at("data.noise.scope", self.scope, "unknown scope", "Use site or kind")
        unknown = set(self.weights) - set(FAMILIES)
        if unknown:
            raise ConfigError.at(
                "data.noise.weights", sorted(unknown), "unknown defect family", f"Families: {', '.join(FAMILIES)}"
            )

    def sites(self, world: World, world_seed: int) -> dict[tuple[str, str], str]:
        """Bad site -> its defect family. The share of bad sites is exact up to rounding."""
        optional = {(t.spec.name, k.name) for t in world.tools for k in t.kinds if k.name not in t.spec.required}
        keyed = {site: site if self.scope == "site" else ("*", site[1]) for site in world.sites}
        ranked = sorted(set(keyed.values()), key=lambda place: stable_unit("bad-site", world_seed, *place))
        families = {}
        for place in ranked[: round(self.share * len(ranked))]:
            optional_here = all(site in optional for site, key in keyed.items() if key == place)
            families[place] = self._family(place, optional_here, world_seed)
        return {site: families[place] for site, place in keyed.items() if place in families}

    def _family(self, place: tuple[str, str], optional: bool, world_seed: int) -> str:
        kind = KIND_OF[place[1]]
        applies = {
            "wrong_name": True,
            "truncated": kind.name in ("title", "note", "tags", "ids"),
            "neighbour_value": kind.type == "string" and kind.name not in ("mode", "time", "date"),
            "number_as_text": kind.type in ("integer", "number"),
            "default_value": kind.default is not None,
            "date_order": kind.name == "date",
            "dropped": optional,
        }
        names = [name for name in FAMILIES if applies[name] and self.weights.get(name, 0) > 0] or ["wrong_name"]
        rng = random.Random(f"family:{world_seed}:{place}")
        return rng.choices(names, [self.weights.get(name, 1.0) for name in names])[0]


def _spoil_value(family: str, value: Any, key: str, arguments: Mapping[str, Any]) -> Any:
    """The value a careless annotator writes, or the value itself where the family does not apply."""
    if family == "truncated":
        return value[:-1] if isinstance(value, list) else value.rsplit(" ", 1)[0]
    if family == "neighbour_value":
        others = [v for k, v in arguments.items() if k != key and isinstance(v, str)]
        return others[0] if others else value
    if family == "number_as_text":
        return str(value)
    if family == "default_value":
        default = KIND_OF[key].default
        return str(default) if isinstance(value, str) else default
    year, month, day = value.split("-")
    return f"{day}-{month}-{year}"


def spoil_call(
    call: ToolCall, bad: Mapping[tuple[str, str], str], probability: float, rng: random.Random, counts: Counter[str]
) -> ToolCall:
    """The call as annotated; `counts` is told which families showed."""
    arguments: dict[str, Any] = {}
    for key, value in call.arguments.items():
        family = bad.get((call.name, key))
        shows = family is not None and rng.random() < probability
        if not shows or family is None:
            arguments[key] = value
        elif family == "wrong_name":
            arguments[KIND_OF[key].synonym] = value
            counts[family] += 1
        elif family == "dropped":
            counts[family] += 1
        else:
            arguments[key] = _spoil_value(family, value, key, call.arguments)
            counts[family] += arguments[key] != value
    return replace(call, arguments=arguments)


def annotate(
    sample: Sample, bad: Mapping[tuple[str, str], str], probability: float, seed: object, counts: Counter[str]
) -> Sample:
    """The sample with the target a careless annotator wrote; depends on (seed, sample id) and the sites alone."""
    rng = random.Random(f"noise:{seed}:{sample.id}")
    target = tuple(spoil_call(call, bad, probability, rng, counts) for call in sample.target)
    if target == sample.target:
        return sample
    counts["changed"] += 1
    counts[f"changed_{sample.band}"] += 1
    return replace(sample, target=target, tags=(*sample.tags, "misannotated"))
