"""The embedded world and its simulator: executable tools, and questions written from calls of them (TTPA, 2505.20016).

Eight verbs times twelve nouns give 96 possible tools; a world keeps some unseen in training. Text values are
pseudo-words, split by a hash of their text. As in the paper, a scenario comes first, then calls, which are executed,
and last the question that they answer; a few lines of code stand in for the paper's language models.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from ttpa.calls.schema import check_call
from ttpa.data.source import stable_unit
from ttpa.records import Message, Sample, ToolCall, ToolSpec

VERBS = ("book", "find", "send", "check", "cancel", "update", "rate", "share")
NOUNS = ("room", "flight", "parcel", "ticket", "song", "meal", "report", "invoice", "course", "photo", "garden",
         "meeting")  # fmt: skip
MODES = ("fast", "slow", "normal", "eco", "quiet")
COLOURS = ("red", "blue", "green", "black", "white", "amber", "violet", "teal")
LETTERS = "ABCDEFGHKLMNPRSTVXZ"
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
BANDS = {"easy": 1, "medium": 2, "hard": 3}
"""Band -> number of calls. Every prompt offers 2 to 4 tools: the paper's tool-count thresholds would not separate."""


def split_of_value(value: object) -> str:
    """train, validation or test (80 / 10 / 10 %), by the text of the value."""
    unit = stable_unit("value-split", value)
    return "test" if unit >= 0.9 else "validation" if unit >= 0.8 else "train"


class Kind(NamedTuple):
    """A kind of parameter."""

    name: str
    synonym: str  # a wrong name
    type: str  # in JSON
    draw: Callable[[Random], Any]
    phrase: str  # how a question says a value
    splittable: bool = True  # whether there are enough values to hold some out of training
    default: Any = None  # what an annotator fills in who did not read the question, where there is such a habit
    items: str = ""  # JSON type of the elements

    def say(self, value: Any) -> str:
        """The value as a clause of a question."""
        if isinstance(value, bool):
            return self.name if value else f"not {self.name}"
        return self.phrase.format(" and ".join(map(str, value)) if isinstance(value, list) else value)


def word(rng: Random) -> str:
    """A pseudo-word."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def several(rng: Random, draw: Callable[[], Any]) -> list[Any]:
    """Two or three different values."""
    values: list[Any] = []
    while len(values) < 2 + (rng.random() < 0.4):
        value = draw()
        values += [value] * (value not in values)
    return values


DRAW: dict[str, Callable[[Random], Any]] = {
    "name": lambda rng: word(rng).capitalize(),
    "phrase": lambda rng: " ".join(word(rng) for _ in range(rng.choice((2, 2, 3)))),
    "code": lambda rng: f"{rng.choice(LETTERS)}{rng.choice(LETTERS)}{rng.randint(10, 99)}",
    "date": lambda rng: f"20{rng.randint(25, 49)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
    "clock": lambda rng: f"{rng.randint(6, 22):02d}:{rng.choice((0, 15, 30, 45)):02d}",
    "price": lambda rng: round(rng.randint(1, 99) + rng.randint(1, 99) / 100, 2),
    "colours": lambda rng: several(rng, lambda: rng.choice(COLOURS)),
    "numbers": lambda rng: several(rng, lambda: rng.randint(10, 999)),
}
KINDS = (
    Kind("city", "town", "string", DRAW["name"], "in {}"),
    Kind("person", "name", "string", DRAW["name"], "for {}"),
    Kind("company", "firm", "string", DRAW["name"], "by {}"),
    Kind("title", "label", "string", DRAW["phrase"], 'called "{}"'),
    Kind("note", "comment", "string", DRAW["phrase"], 'saying "{}"'),
    Kind("code", "key", "string", DRAW["code"], "code {}"),
    Kind("date", "day", "string", DRAW["date"], "on {}"),
    Kind("time", "hour", "string", DRAW["clock"], "at {}", splittable=False),
    Kind("count", "number", "integer", lambda rng: rng.randint(2, 60), "{} times", splittable=False, default=1),
    Kind("amount", "sum", "integer", lambda rng: rng.randint(100, 999), "worth {}", default=100),
    Kind("price", "cost", "number", DRAW["price"], "under {}", default=1.0),
    Kind("urgent", "priority", "boolean", lambda rng: rng.random() < 0.5, "", splittable=False, default=True),
    Kind("mode", "style", "string", lambda rng: rng.choice(MODES), "{} mode", splittable=False, default="normal"),
    Kind("tags", "labels", "array", DRAW["colours"], "tagged {}", splittable=False, items="string"),
    Kind("ids", "items", "array", DRAW["numbers"], "ids {}", items="integer"),
)
KIND_OF = {kind.name: kind for kind in KINDS}


class World(NamedTuple):
    """The tools of one world. `unseen` tools appear in test prompts only."""

    tools: tuple[ToolSpec, ...]
    unseen: tuple[ToolSpec, ...]

    @property
    def sites(self) -> dict[tuple[str, str], bool]:
        """(tool name, parameter name) of the training tools -> whether the parameter is required."""
        return {(tool.name, key): key in tool.required for tool in self.tools for key in tool.properties}


def make_tool(verb: str, noun: str, world_seed: int) -> ToolSpec:
    """The tool `verb_noun` of a world: two to four parameters."""
    rng = Random(f"{world_seed}:{verb}_{noun}")
    return tool_of(rng, verb, noun, rng.sample(KINDS, rng.choice((2, 3, 3, 4))))


def tool_of(rng: Random, verb: str, noun: str, kinds: Sequence[Kind]) -> ToolSpec:
    """The tool `verb_noun` with these parameters, one or two of them required, 15 % of the numbers declared as text."""
    required = [kind.name for kind in kinds[: rng.choice((1, 2))]]
    properties: dict[str, Any] = {}
    for kind in kinds:
        as_text = kind.type in ("integer", "number") and rng.random() < 0.15
        items = {"items": {"type": kind.items}} if kind.items else {}
        properties[kind.name] = {"type": "string" if as_text else kind.type, **items}
    schema = {"type": "object", "properties": properties, "required": required}
    return ToolSpec(name=f"{verb}_{noun}", description=f"{verb.capitalize()} a {noun}.", parameters=schema)


def make_world(*, world_seed: int, train_tools: int, unseen_tools: int) -> World:
    """Draws the tools of a world."""
    names = [(verb, noun) for verb in VERBS for noun in NOUNS]
    Random(f"{world_seed}:tools").shuffle(names)
    tools = tuple(make_tool(verb, noun, world_seed) for verb, noun in names[: train_tools + unseen_tools])
    return World(tools[:train_tools], tools[train_tools:])


class ExecutionError(Exception):
    """The world refused a call; the message is what a caller would be shown."""


def execute(call: ToolCall, tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """Runs a call; the reply depends on nothing but the call. ExecutionError where it does not fit a tool's schema."""
    if problems := check_call(call, tools):
        raise ExecutionError(" ".join(problem.explanation for problem in problems))
    receipt = int(stable_unit("receipt", call.name, sorted(call.arguments.items(), key=str)) * 9000) + 1000
    return {"status": "ok", "receipt": receipt}


def draw_scenario(rng: Random, world: World, calls: int, unseen: bool) -> tuple[list[ToolSpec], list[ToolSpec]]:
    """Role 1: the tools on offer, in prompt order, and those the calls use, in call order. 70 % of the others share the
    verb or the noun of a used one.
    """
    used = rng.sample(world.unseen if unseen else world.tools, calls)
    offered = list(used)
    total = max(rng.choice((2, 3, 4)), calls + (calls < 4))
    while len(offered) < total:
        anchor = rng.choice(used).name.split("_")
        related = [tool for tool in world.tools if set(tool.name.split("_")) & set(anchor)]
        tool = rng.choice(related if related and rng.random() < 0.7 else world.tools)
        offered += [tool] * (tool not in offered)
    rng.shuffle(offered)
    return offered, used


def draw_call(rng: Random, tool: ToolSpec, split: str, kinds: Mapping[str, Kind] = KIND_OF) -> ToolCall:
    """Role 2, one call: the required parameters, each optional one with probability 0.6, in schema order. Values belong
    to the split where their kind has enough of them to be split.
    """
    arguments: dict[str, object] = {}
    for name, schema in tool.properties.items():
        if name in tool.required or rng.random() < 0.6:
            kind = kinds[name]
            value = kind.draw(rng)
            while kind.splittable and split_of_value(value) != split:
                value = kind.draw(rng)
            arguments[name] = str(value) if schema["type"] == "string" else value
    return ToolCall(name=tool.name, arguments=arguments)


def write_question(rng: Random, calls: Sequence[ToolCall], kinds: Mapping[str, Kind] = KIND_OF) -> str:
    """Role 3, the question: every argument is said once, in an order of its own; calls are joined by "then"."""
    sentences = []
    for call in calls:
        clauses = [kinds[key].say(value) for key, value in call.arguments.items()]
        rng.shuffle(clauses)
        sentences.append(" ".join([call.name.replace("_", " "), *clauses]))
    return ", then ".join(sentences)


def draw_sample(
    world: World, *, seed: object, split: str, number: int, band: str, unseen: bool = False,
    kinds: Mapping[str, Kind] = KIND_OF, source: str = "reversed",
) -> Sample:  # fmt: skip
    """One sample; it depends on the arguments alone. `split` (train, validation, test) says which text values may be
    used, `number` is the position in the split, `unseen` takes tools that training never shows, `kinds` are those of
    the world's parameters by name.
    """
    rng = Random(f"{seed}:{split}:{number}:{band}:{unseen}")
    offered, used = draw_scenario(rng, world, BANDS[band], unseen)
    calls = tuple(draw_call(rng, tool, split, kinds) for tool in used)
    for call in calls:
        execute(call, offered)
    return Sample(
        id=f"{split}-{seed}-{band}{'-unseen' if unseen else ''}-{number}",
        source=source,
        band=band,
        tags=("unseen_tool",) if unseen else (),
        tools=tuple(offered),
        messages=(Message(role="user", content=write_question(rng, calls, kinds)),),
        target=calls,
    )


def band_at(seed: object, number: int, mix: Mapping[str, float]) -> str:
    """The band of the sample at a position: drawn with the given shares, which must sum to 1."""
    unit = stable_unit("band", seed, number)
    for band in mix:
        unit -= mix[band]
        if unit < 0:
            break
    return band
