"""Annotation defects of the warm-up corpus: a constructed, documented part of the embedded world.

Synthetic tool-call corpora are wrong in systematic ways (iTool, 2501.09766: 51 % wrong parameter values, 26 % wrong
parameter names). Here a share of the (tool, parameter) sites is badly annotated: each bad site has one defect family
and mostly shows it whenever it applies, so that greedy decoding learns the wrong mode there. Without defects
exploration has nothing to repair (experiments/LOG.md). Only warm-up demonstrations are touched.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from ttpa.data.reversed.world import KIND_OF, World, stable_unit
from ttpa.errors import ConfigError
from ttpa.options import Fraction, option
from ttpa.records import Sample, ToolCall

WEIGHTS = {"wrong_name": 0.10, "truncated": 0.5, "neighbour_value": 0.3, "number_as_text": 0.3, "default_value": 0.15,
           "date_order": 0.2, "dropped": 0.08}  # fmt: skip
"""Defect family -> weight when a bad site draws one. In world 0, 53 % of the defects that show are values, 36 % names
and 11 % dropped parameters; other worlds differ (values .43 to .81), because 33 bad sites are few.
"""


@option
class Noise:
    """Which sites are badly annotated, and how.

    Args:
        share: Share of bad sites. 0 switches the defects off.
        probability: How often a bad site shows its defect when it applies.
        scope: "site" marks (tool, parameter) places; "kind" marks parameter kinds wherever they occur.
        weights: Relative weight of each defect family.
    """

    share: Fraction
    probability: Fraction
    scope: Literal["site", "kind"]
    weights: dict[str, float] = Field(default_factory=lambda: dict(WEIGHTS))

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(WEIGHTS))
        if unknown:
            raise ConfigError.at("weights", unknown, "unknown defect family", f"Families: {', '.join(WEIGHTS)}")

    def sites(self, world: World, world_seed: int) -> dict[tuple[str, str], str]:
        """Bad site -> its defect family. The share of bad sites is exact up to rounding."""
        optional = {(t.spec.name, k.name) for t in world.tools for k in t.kinds if k.name not in t.spec.required}
        keyed = {site: site if self.scope == "site" else ("*", site[1]) for site in world.sites}
        ranked = sorted(set(keyed.values()), key=lambda place: stable_unit("bad-site", world_seed, *place))
        families = {}
        for place in ranked[: round(self.share * len(ranked))]:
            dropped = all(site in optional for site, key in keyed.items() if key == place)
            families[place] = self._family(place, dropped, world_seed)
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
        names = [name for name in WEIGHTS if applies[name] and self.weights.get(name, 0) > 0] or ["wrong_name"]
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
        if family is None or rng.random() >= probability:
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
