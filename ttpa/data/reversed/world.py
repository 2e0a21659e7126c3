"""The embedded world: executable tools with typed parameters and the values that fill them.

Eight verbs times twelve nouns give 96 possible tools `verb_noun`; a world draws some of them for training and keeps
others unseen. A parameter is of one of fifteen kinds; a kind has a JSON type, a way to say a value in a question and a
way to draw one. Text values are pseudo-words, hash-split by string, so a test question holds words that no training
question ever held. Deliberately absent: an ontology (any verb meets any noun) and state (calls do not interact).
Called by `ttpa.data.reversed.simulator`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ttpa.calls.schema import check_call
from ttpa.records import ToolCall, ToolSpec

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
SYLLABLES = tuple(
    c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z") for v in "aeiou"
)


def stable_unit(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but the text of `parts`."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(value: object) -> str:
    """train, validation or test (80 / 10 / 10 %), by the text of the value."""
    unit = stable_unit("value-split", value)
    return "test" if unit >= 0.9 else "validation" if unit >= 0.8 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of parameter: its usual name, a wrong synonym for it, its JSON type, and how to draw and to say a value.

    `splittable` kinds have enough values to hold some out of training. `default` is what an annotator fills in who did
    not read the question (None: there is no such habit for this kind).
    """

    name: str
    synonym: str
    type: str
    draw: Callable[[random.Random], Any]
    say: Callable[[Any], str]
    splittable: bool = True
    default: Any = None
    items: str | None = None

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


KINDS = (
    Kind(name="city", synonym="town", type="string", draw=_name, say=lambda v: f"in {v}"),
    Kind(name="person", synonym="name", type="string", draw=_name, say=lambda v: f"for {v}"),
    Kind(name="company", synonym="firm", type="string", draw=_name, say=lambda v: f"by {v}"),
    Kind(name="title", synonym="label", type="string", draw=_phrase, say=lambda v: f'called "{v}"'),
    Kind(name="note", synonym="comment", type="string", draw=_phrase, say=lambda v: f'saying "{v}"'),
    Kind(name="code", synonym="key", type="string", draw=_code, say=lambda v: f"code {v}"),
    Kind(name="date", synonym="day", type="string", draw=_date, say=lambda v: f"on {v}"),
    Kind(name="time", synonym="hour", type="string", draw=_clock, say=lambda v: f"at {v}", splittable=False),
    Kind(
        name="count",
        synonym="number",
        type="integer",
        draw=lambda r: r.randint(2, 60),
        say=lambda v: f"{v} times",
        splittable=False,
        default=1,
    ),
    Kind(
        name="amount",
        synonym="sum",
        type="integer",
        draw=lambda r: r.randint(100, 999),
        say=lambda v: f"worth {v}",
        default=100,
    ),
    Kind(
        name="price",
        synonym="cost",
        type="number",
        draw=lambda r: round(r.randint(1, 99) + r.randint(1, 99) / 100, 2),
        say=lambda v: f"under {v}",
        default=1.0,
    ),
    Kind(
        name="urgent",
        synonym="priority",
        type="boolean",
        draw=lambda r: r.random() < 0.5,
        say=lambda v: "urgent" if v else "not urgent",
        splittable=False,
        default=True,
    ),
    Kind(
        name="mode",
        synonym="style",
        type="string",
        draw=lambda r: r.choice(MODES),
        say=lambda v: f"{v} mode",
        splittable=False,
        default="normal",
    ),
    Kind(
        name="tags",
        synonym="labels",
        type="array",
        items="string",
        draw=lambda r: _several(r, lambda q: q.choice(COLOURS)),
        say=lambda v: "tagged " + " and ".join(v),
        splittable=False,
    ),
    Kind(
        name="ids",
        synonym="items",
        type="array",
        items="integer",
        draw=lambda r: _several(r, lambda q: q.randint(10, 999)),
        say=lambda v: "ids " + " and ".join(map(str, v)),
    ),
)
KIND_OF = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of the world: its schema and the kinds of its parameters, in schema order."""

    spec: ToolSpec
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class World:
    """The tools of one world. `unseen` tools appear in test prompts only, neither as target nor as distractor."""

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
    """Runs a call in the world: arguments are checked against the schema, the reply depends on nothing but the call.

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
