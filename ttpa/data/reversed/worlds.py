"""`data=worlds`: each sample has tools of its own. The embedded base model learns from them to read signatures.

A tool's name joins a verb and a noun; the tools of the embedded world, which runs train on, never occur. Parameters are
those of that world, more of the same make, their synonyms (as legitimate names) and made-up words.
"""

from random import Random
from typing import Any

from ttpa.data.reversed.source import Reversed
from ttpa.data.reversed.world import (
    COLOURS,
    DRAW,
    KINDS,
    NOUNS,
    VERBS,
    Kind,
    World,
    draw_sample,
    several,
    tool_of,
    word,
)
from ttpa.options import option
from ttpa.records import Sample, ToolSpec

OTHER_VERBS = """
add archive ask bake build buy call carry charge clean close copy count deliver draw drop fetch fix give hire hold
import join keep lend list load lock make mark merge move name open order pack paint pay plan play post print pull
push read repair rent reserve return review run save scan sell serve set ship show sign sort start stop store swap tag
take teach test track trade visit wash watch weigh write
""".split()  # noqa: SIM905
OTHER_NOUNS = """
account address album animal apple bag ball band bank bed bike bill boat book box bread bridge budget bus cake camera
car card cat chair city class clock coat coin concert contract cup desk dog door dress email engine event farm file
film fish floor game glass guest guitar hat horse hotel house idea image job key kitchen lake lamp letter library
lunch machine map market medal menu message model museum note office order paper park party path phone piano picture
plan plane plant plate poem pool post price prize project ring river road rule sale school seat ship shirt shoe shop
station stone store story street table task taxi team tent test tool tour toy train tree trip truck video visit voice
wall watch wine
""".split()  # noqa: SIM905
MORE_KINDS = (
    Kind("author", "writer", "string", DRAW["name"], "written by {}"),
    Kind("street", "road", "string", DRAW["name"], "along {}"),
    Kind("team", "club", "string", DRAW["name"], "with {}"),
    Kind("country", "nation", "string", DRAW["name"], "across {}"),
    Kind("topic", "subject", "string", DRAW["phrase"], 'about "{}"'),
    Kind("reason", "cause", "string", DRAW["phrase"], 'because "{}"'),
    Kind("shade", "tint", "string", lambda rng: rng.choice(COLOURS), "painted {}", splittable=False),
    Kind("weight", "mass", "integer", lambda rng: rng.randint(10, 999), "weighing {}"),
    Kind("distance", "range", "integer", lambda rng: rng.randint(10, 999), "within {} miles"),
    Kind("seats", "places", "integer", lambda rng: rng.randint(2, 60), "with {} seats", splittable=False),
    Kind("level", "grade", "integer", lambda rng: rng.randint(2, 60), "level {}", splittable=False),
    Kind("start", "begin", "string", DRAW["clock"], "from {}", splittable=False),
    Kind("deadline", "due", "string", DRAW["date"], "until {}"),
    Kind("discount", "rebate", "number", DRAW["price"], "less {}"),
    Kind("private", "hidden", "boolean", lambda rng: rng.random() < 0.5, "", splittable=False),
    Kind("express", "direct", "boolean", lambda rng: rng.random() < 0.5, "", splittable=False),
    Kind("sizes", "widths", "array", DRAW["numbers"], "sizes {}", items="integer"),
    Kind("guests", "people", "array", lambda rng: several(rng, lambda: DRAW["name"](rng)), "guests {}",
         splittable=False, items="string"),
)  # fmt: skip
"""Kinds of parameters that the embedded world does not have."""


def draw_kind(rng: Random) -> Kind:
    """A kind of the embedded world (6 of 10), one of `MORE_KINDS` (2) or one with a made-up name (2) that questions say
    before the value. Three of ten of the known ones have their synonym as name.
    """
    unit = rng.random()
    if unit >= 0.8:
        kind, name = rng.choice(KINDS), word(rng)
        return kind._replace(name=name, phrase=f"{name} {{}}")
    kind = rng.choice(KINDS if unit < 0.6 else MORE_KINDS)
    return kind._replace(name=kind.synonym) if rng.random() < 0.3 else kind


def draw_tools(rng: Random, count: int) -> tuple[tuple[ToolSpec, ...], dict[str, Kind]]:
    """Tools that share verbs and nouns, and the kinds of their parameters by name."""

    def words(ours: tuple[str, ...], others: list[str]) -> list[str]:
        return [word(rng) if rng.random() < 0.3 else rng.choice([*ours, *others]) for _ in range(3)]

    known: dict[str, Kind] = {}
    tools: dict[str, ToolSpec] = {}
    verbs, nouns = words(VERBS, OTHER_VERBS), words(NOUNS, OTHER_NOUNS)
    while len(tools) < count:
        if rng.random() < 0.2:
            verbs, nouns = words(VERBS, OTHER_VERBS), words(NOUNS, OTHER_NOUNS)
        verb, noun = rng.choice(verbs), rng.choice(nouns)
        if (verb in VERBS and noun in NOUNS) or f"{verb}_{noun}" in tools:
            continue
        kinds: dict[str, Kind] = {}  # by phrase: a question has to tell two parameters apart
        while len(kinds) < 4:
            kind = draw_kind(rng)
            kind = known.setdefault(kind.name, kind)
            kinds[kind.phrase or kind.name] = kind
        tools[f"{verb}_{noun}"] = tool_of(rng, verb, noun, list(kinds.values())[: rng.choice((2, 3, 3, 4))])
    return tuple(tools.values()), known


@option
class Worlds(Reversed):
    """Reversed construction with fresh tools for each sample; `world_seed` draws validation and test."""

    def draw(self, world: World, **place: Any) -> Sample:
        """The sample at a place, over six tools of its own; `world` is not read."""
        rng = Random(f"worlds:{sorted(place.items())}")
        tools, kinds = draw_tools(rng, 6)
        return draw_sample(World(tools, ()), **place | {"unseen": False}, kinds=kinds, source="worlds")
