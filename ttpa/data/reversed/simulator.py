"""The simulator generator: TTPA's reversed construction (2505.20016, section "Reversed Dataset Construction") without
a model.

The paper lets a language model play the roles; here each is a few lines of code over the embedded world, in the same
order: a scenario (which tools are on offer), the tool calls, which are executed, and last the question, which is
written from calls that are known to work and so can always be answered by them. Tool names never stand in the
question as such: `book_room` is asked for as "book room". The paper's written final answer is left out: nothing here
reads it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ttpa.data.reversed.world import KIND_OF, Kind, Tool, World, execute, split_of, stable_unit
from ttpa.records import Message, Sample, ToolCall

BANDS = {"easy": 1, "medium": 2, "hard": 3}
"""Band -> number of calls. Every prompt offers 2 to 4 tools: the paper's tool-count thresholds would not separate."""

OPTIONAL_MENTIONED = 0.6
DISTRACTOR_RELATED = 0.7


@dataclass(frozen=True, slots=True)
class Scenario:
    """The tools on offer, in prompt order, and those that the calls will use, in call order."""

    offered: tuple[Tool, ...]
    used: tuple[Tool, ...]


def draw_scenario(rng: random.Random, world: World, calls: int, unseen: bool) -> Scenario:
    """Role 1, the scenario: which tools will be used and which stand beside them (70 % share the verb or the noun)."""
    pool = world.unseen if unseen else world.tools
    used = rng.sample(pool, calls)
    offered = list(used)
    total = max(rng.choice((2, 3, 4)), calls + (calls < 4))
    while len(offered) < total:
        anchor = rng.choice(used).spec.name.split("_")
        related = [t for t in world.tools if set(t.spec.name.split("_")) & set(anchor)]
        tool = rng.choice(related if related and rng.random() < DISTRACTOR_RELATED else world.tools)
        if tool not in offered:
            offered.append(tool)
    rng.shuffle(offered)
    return Scenario(tuple(offered), tuple(used))


def draw_value(rng: random.Random, kind: Kind, split: str) -> object:
    """A value of the kind that belongs to the split, if the kind has enough values to be split."""
    value = kind.draw(rng)
    tries = 0
    while kind.splittable and split_of(value) != split:
        value = kind.draw(rng)
        tries += 1
        if tries > 200:
            raise RuntimeError(f"no {split} value of kind {kind.name!r} in {tries} draws")
    return value


def draw_call(rng: random.Random, tool: Tool, split: str) -> ToolCall:
    """Role 2, one call: the required parameters, each optional one with probability 0.6, in schema order."""
    arguments: dict[str, object] = {}
    for kind in tool.kinds:
        if kind.name not in tool.spec.required and rng.random() >= OPTIONAL_MENTIONED:
            continue
        value = draw_value(rng, kind, split)
        declared = tool.spec.properties[kind.name]["type"]
        arguments[kind.name] = str(value) if declared == "string" and not isinstance(value, str) else value
    return ToolCall(name=tool.spec.name, arguments=arguments)


def write_question(rng: random.Random, calls: tuple[ToolCall, ...]) -> str:
    """Role 3, the question: every argument is said once, in an order of its own; calls are joined by "then"."""
    sentences = []
    for call in calls:
        clauses = [KIND_OF[key].say(value) for key, value in call.arguments.items()]
        rng.shuffle(clauses)
        sentences.append(" ".join([call.name.replace("_", " "), *clauses]))
    return ", then ".join(sentences)


def draw_sample(world: World, *, seed: object, split: str, number: int, band: str, unseen: bool = False) -> Sample:
    """One sample; it depends on (seed, split, number, band, unseen) alone, never on the samples drawn before it.

    Args:
        world: The tools.
        seed: Any value; samples of different seeds are independent.
        split: train, validation or test: which text values may be used.
        number: Position in the split.
        band: easy, medium or hard, that is one, two or three calls.
        unseen: Use tools that training never shows.
    """
    rng = random.Random(f"{seed}:{split}:{number}:{band}:{unseen}")
    scenario = draw_scenario(rng, world, BANDS[band], unseen)
    calls = tuple(draw_call(rng, tool, split) for tool in scenario.used)
    for call in calls:
        execute(call, world.by_name())
    question = write_question(rng, calls)
    return Sample(
        id=f"{split}-{seed}-{band}{'-unseen' if unseen else ''}-{number}",
        dialogue_id="",
        source="reversed",
        band=band,
        tags=("unseen_tool",) if unseen else (),
        tools=tuple(tool.spec for tool in scenario.offered),
        messages=(Message(role="user", content=question),),
        target=calls,
    )


def band_at(seed: object, number: int, mix: dict[str, float]) -> str:
    """The band of the sample at a position: drawn with the given shares, which must sum to 1."""
    unit = stable_unit("band", seed, number)
    for band, share in mix.items():
        unit -= share
        if unit < 0:
            return band
    return list(mix)[-1]
