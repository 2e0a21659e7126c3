"""Annotation defects of the warm-up corpus: a constructed, documented part of the embedded world.

Synthetic corpora are wrong in systematic ways (iTool, 2501.09766). Here a share of the (tool, parameter) sites is badly
annotated, each in one way, so that greedy decoding learns the wrong mode there and exploration can repair it.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from ttpa.data.reversed.world import KIND_OF, Kind, World
from ttpa.data.source import stable_unit
from ttpa.errors import ConfigError
from ttpa.options import Fraction, option
from ttpa.records import Sample, ToolCall

Site = tuple[str, str]
Family = tuple[float, Callable[[Kind], bool], Callable[[Kind, Any, Sequence[str]], Mapping[str, Any]]]
"""Of a family of defects: its weight when a bad site draws one, the kinds of parameters at which it can show, and what
stands in the place of an argument, given the call's other text values.
"""
FAMILIES: dict[str, Family] = {
    "wrong_name": (0.10, lambda kind: True, lambda kind, value, others: {kind.synonym: value}),
    "truncated": (
        0.5, lambda kind: kind.name in ("title", "note", "tags", "ids"), lambda kind, value, others:
        {kind.name: value[:-1] if isinstance(value, list) else value.rsplit(" ", 1)[0]}),
    "neighbour_value": (
        0.3, lambda kind: kind.type == "string" and kind.name not in ("mode", "time", "date"),
        lambda kind, value, others: {kind.name: others[0] if others else value}),
    "number_as_text": (
        0.3, lambda kind: kind.type in ("integer", "number"), lambda kind, value, others: {kind.name: str(value)}),
    "default_value": (
        0.15, lambda kind: kind.default is not None,
        lambda kind, value, others: {kind.name: str(kind.default) if isinstance(value, str) else kind.default}),
    "date_order": (
        0.2, lambda kind: kind.name == "date",
        lambda kind, value, others: {kind.name: "-".join(reversed(value.split("-")))}),
    "dropped": (0.08, lambda kind: True, lambda kind, value, others: {}),
}  # fmt: skip
"""In world 0, 53 % of the defects that show are values, 36 % names and 11 % dropped parameters; other worlds differ
(values .43 to .81), because 33 bad sites are few.
"""


@option
class Noise:
    """Which sites are badly annotated, and how. `weights` are those of the families; see conf/data/reversed.yaml."""

    share: Fraction
    probability: Fraction
    scope: Literal["site", "kind"]
    weights: dict[str, float] = Field(default_factory=lambda: {name: weight for name, (weight, *_) in FAMILIES.items()})

    def __post_init__(self) -> None:
        if unknown := sorted(self.weights.keys() - FAMILIES.keys()):
            raise ConfigError.at("weights", unknown, "unknown defect family", f"Families: {', '.join(FAMILIES)}")

    def sites(self, world: World, world_seed: int) -> dict[Site, str]:
        """Bad site -> its defect family. The share of bad sites is exact up to rounding."""
        keyed = {site: site if self.scope == "site" else ("*", site[1]) for site in world.sites}
        ranked = sorted(set(keyed.values()), key=lambda place: stable_unit("bad-site", world_seed, *place))
        families = {}
        for place in ranked[: round(self.share * len(ranked))]:
            required = any(needed for site, needed in world.sites.items() if keyed[site] == place)
            families[place] = self._family(place, required, world_seed)
        return {site: families[place] for site, place in keyed.items() if place in families}

    def _family(self, place: Site, required: bool, world_seed: int) -> str:
        fitting = [name for name, (_, fits, _) in FAMILIES.items() if fits(KIND_OF[place[1]])]
        names = [name for name in fitting if self.weights.get(name, 0) > 0 and not (name == "dropped" and required)]
        rng, names = random.Random(f"family:{world_seed}:{place}"), names or ["wrong_name"]
        return rng.choices(names, [self.weights.get(name, 1.0) for name in names])[0]


def spoil_call(
    call: ToolCall, bad: Mapping[Site, str], probability: float, rng: random.Random, counts: Counter[str]
) -> ToolCall:
    """The call as annotated; `counts` is told which families showed."""
    arguments: dict[str, Any] = {}
    for key, value in call.arguments.items():
        made: Mapping[str, Any] = {key: value}
        family = bad.get((call.name, key))
        if family is not None and rng.random() < probability:
            others = [one for name, one in call.arguments.items() if name != key and isinstance(one, str)]
            made = FAMILIES[family][2](KIND_OF[key], value, others)
            counts[family] += made != {key: value}
        arguments |= made
    return replace(call, arguments=arguments)


def annotate(sample: Sample, bad: Mapping[Site, str], probability: float, seed: object, counts: Counter[str]) -> Sample:
    """The sample with the target a careless annotator wrote; depends on (seed, sample id) and the sites alone."""
    rng = random.Random(f"noise:{seed}:{sample.id}")
    target = tuple(spoil_call(call, bad, probability, rng, counts) for call in sample.target)
    if target == sample.target:
        return sample
    counts["changed"] += 1
    counts[f"changed_{sample.band}"] += 1
    return replace(sample, target=target, tags=(*sample.tags, "misannotated"))
