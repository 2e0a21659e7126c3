"""The embedded world and its simulator: executable tools, and questions written from calls of them (TTPA, 2505.20016).

Eight verbs times twelve nouns give 96 possible tools `verb_noun`; a world draws some of them for training and keeps
others unseen. A parameter is of one of fifteen kinds, each with a JSON type and a way to draw and to say a value. Text
values are pseudo-words, split by a hash of their text, so a test question holds words that no training question held.

In the paper ("Reversed Dataset Construction") a language model plays the roles; here each is a few lines of code, in
the same order: a scenario (the tools on offer), the calls, which are executed, and last the question, which these calls
can therefore always answer. Tool names never stand in the question: `book_room` is asked for as "book room". There is
no ontology (any verb meets any noun), no state (calls do not interact) and no written final answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ttpa.calls.schema import check_call
from ttpa.records import Message, Sample, ToolCall, ToolSpec

VERBS = ("book", "find", "send", "check", "cancel", "update", "rate", "share")
NOUNS = (
    "room",
    "flight",
    "parcel",
    "ticket",
    "song",
    "meal",
    "report",
    "invoice",
    "course",
    "photo",
    "garden",
    "meeting",
)
MODES = ("fast", "slow", "normal", "eco", "quiet")
COLOURS = ("red", "blue", "green", "black", "white", "amber", "violet", "teal")
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
BANDS = {"easy": 1, "medium": 2, "hard": 3}
"""Band -> number of calls. Every prompt offers 2 to 4 tools: the paper's tool-count thresholds would not separate."""

OPTIONAL_MENTIONED = 0.6
DISTRACTOR_RELATED = 0.7


def stable_unit(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but the text of `parts`."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of_value(value: object) -> str:
    """train, validation or test (80 / 10 / 10 %), by the text of the value."""
    unit = stable_unit("value-split", value)
    return "test" if unit >= 0.9 else "validation" if unit >= 0.8 else "train"


# --- kinds of parameters ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of parameter.

    Attributes:
        name: The usual name of the parameter.
        synonym: A wrong name for it.
        type: Its JSON type.
        draw: Draws a value.
        phrase: How a question says a value.
        splittable: Whether there are enough values to hold some out of training.
        default: What an annotator fills in who did not read the question; None where there is no such habit.
        items: JSON type of the elements, for an array.
    """

    name: str
    synonym: str
    type: str
    draw: Callable[[random.Random], Any]
    phrase: str
    splittable: bool = True
    default: Any = None
    items: str | None = None

    def say(self, value: Any) -> str:
        """The value as a clause of a question."""
        if isinstance(value, bool):
            return self.name if value else f"not {self.name}"
        return self.phrase.format(" and ".join(map(str, value)) if isinstance(value, list) else value)

    def schema(self, *, as_text: bool) -> dict[str, Any]:
        """JSON Schema of a parameter of this kind; `as_text` declares a number as a string."""
        if self.items:
            return {"type": "array", "items": {"type": self.items}}
        return {"type": "string" if as_text else self.type}


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def _name(rng: random.Random) -> str:
    return _word(rng).capitalize()


def _phrase(rng: random.Random) -> str:
    return " ".join(_word(rng) for _ in range(rng.choice((2, 2, 3))))


def _code(rng: random.Random) -> str:
    return rng.choice("ABCDEFGHKLMNPRSTVXZ") + rng.choice("ABCDEFGHKLMNPRSTVXZ") + str(rng.randint(10, 99))


def _date(rng: random.Random) -> str:
    return f"20{rng.randint(25, 49)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(6, 22):02d}:{rng.choice((0, 15, 30, 45)):02d}"


def _several(rng: random.Random, draw: Callable[[random.Random], Any]) -> list[Any]:
    values: list[Any] = []
    while len(values) < 2 + (rng.random() < 0.4):
        value = draw(rng)
        if value not in values:
            values.append(value)
    return values


def _price(rng: random.Random) -> float:
    return round(rng.randint(1, 99) + rng.randint(1, 99) / 100, 2)


def _colours(rng: random.Random) -> list[Any]:
    return _several(rng, lambda rng: rng.choice(COLOURS))


def _numbers(rng: random.Random) -> list[Any]:
    return _several(rng, lambda rng: rng.randint(10, 999))


KINDS = (
    Kind("city", "town", "string", _name, "in {}"),
    Kind("person", "name", "string", _name, "for {}"),
    Kind("company", "firm", "string", _name, "by {}"),
    Kind("title", "label", "string", _phrase, 'called "{}"'),
    Kind("note", "comment", "string", _phrase, 'saying "{}"'),
    Kind("code", "key", "string", _code, "code {}"),
    Kind("date", "day", "string", _date, "on {}"),
    Kind("time", "hour", "string", _clock, "at {}", splittable=False),
    Kind("count", "number", "integer", lambda rng: rng.randint(2, 60), "{} times", splittable=False, default=1),
    Kind("amount", "sum", "integer", lambda rng: rng.randint(100, 999), "worth {}", default=100),
    Kind("price", "cost", "number", _price, "under {}", default=1.0),
    Kind("urgent", "priority", "boolean", lambda rng: rng.random() < 0.5, "", splittable=False, default=True),
    Kind("mode", "style", "string", lambda rng: rng.choice(MODES), "{} mode", splittable=False, default="normal"),
    Kind("tags", "labels", "array", _colours, "tagged {}", splittable=False, items="string"),
    Kind("ids", "items", "array", _numbers, "ids {}", items="integer"),
)
KIND_OF = {kind.name: kind for kind in KINDS}


# --- tools, and running them ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of the world: its schema and the kinds of its parameters, in schema order."""

    spec: ToolSpec
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class World:
    """The tools of one world. `unseen` tools appear in test prompts only."""

    tools: tuple[Tool, ...]
    unseen: tuple[Tool, ...]

    def by_name(self) -> Mapping[str, Tool]:
        return {tool.spec.name: tool for tool in (*self.tools, *self.unseen)}

    @property
    def sites(self) -> tuple[tuple[str, str], ...]:
        """All (tool name, parameter name) places of the training tools."""
        return tuple((tool.spec.name, kind.name) for tool in self.tools for kind in tool.kinds)


def make_tool(verb: str, noun: str, world_seed: int) -> Tool:
    """The tool `verb_noun`: two to four parameters, one or two required, 15 % of the numbers declared as text."""
    rng = random.Random(f"{world_seed}:{verb}_{noun}")
    kinds = tuple(rng.sample(KINDS, rng.choice((2, 3, 3, 4))))
    required = [kind.name for kind in kinds[: rng.choice((1, 2))]]
    properties = {
        kind.name: kind.schema(as_text=kind.type in ("integer", "number") and rng.random() < 0.15) for kind in kinds
    }
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(ToolSpec(name=f"{verb}_{noun}", description=f"{verb.capitalize()} a {noun}.", parameters=schema), kinds)


def make_world(*, world_seed: int, train_tools: int, unseen_tools: int) -> World:
    """Draws the tools of a world. The same arguments give the same world on any machine."""
    names = [(verb, noun) for verb in VERBS for noun in NOUNS]
    random.Random(f"{world_seed}:tools").shuffle(names)
    tools = [make_tool(verb, noun, world_seed) for verb, noun in names[: train_tools + unseen_tools]]
    return World(tuple(tools[:train_tools]), tuple(tools[train_tools:]))


class ExecutionError(Exception):
    """The world refused a call; the message is what a caller would be shown."""


def execute(call: ToolCall, tools: Mapping[str, Tool]) -> dict[str, Any]:
    """Runs a call: arguments are checked against the schema, and the reply depends on nothing but the call.

    Raises:
        ExecutionError: unknown tool, missing or unknown parameter, or wrong type.
    """
    tool = tools.get(call.name)
    if tool is None:
        raise ExecutionError(f"there is no tool {call.name!r}")
    problems = check_call(call, (tool.spec,))
    if problems:
        raise ExecutionError("; ".join(problem.explanation for problem in problems))
    receipt = int(stable_unit("receipt", call.name, sorted(call.arguments.items(), key=str)) * 9000) + 1000
    return {"status": "ok", "receipt": receipt}


# --- the simulator ---------------------------------------------------------------------------------------------------


def draw_scenario(
    rng: random.Random, world: World, calls: int, unseen: bool
) -> tuple[tuple[Tool, ...], tuple[Tool, ...]]:
    """Role 1: the tools on offer, in prompt order, and those the calls use, in call order.

    70 % of the tools beside the used ones share the verb or the noun of a used one.
    """
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
    return tuple(offered), tuple(used)


def draw_value(rng: random.Random, kind: Kind, split: str) -> object:
    """A value of the kind that belongs to the split, if the kind has enough values to be split."""
    value = kind.draw(rng)
    tries = 0
    while kind.splittable and split_of_value(value) != split:
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
    """One sample; it depends on the arguments alone, never on the samples drawn before it.

    Args:
        world: The tools.
        seed: Any value; samples of different seeds are independent.
        split: train, validation or test: which text values may be used.
        number: Position in the split.
        band: easy, medium or hard: one, two or three calls.
        unseen: Use tools that training never shows.
    """
    rng = random.Random(f"{seed}:{split}:{number}:{band}:{unseen}")
    offered, used = draw_scenario(rng, world, BANDS[band], unseen)
    calls = tuple(draw_call(rng, tool, split) for tool in used)
    for call in calls:
        execute(call, world.by_name())
    question = write_question(rng, calls)
    return Sample(
        id=f"{split}-{seed}-{band}{'-unseen' if unseen else ''}-{number}",
        dialogue_id="",
        source="reversed",
        band=band,
        tags=("unseen_tool",) if unseen else (),
        tools=tuple(tool.spec for tool in offered),
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
