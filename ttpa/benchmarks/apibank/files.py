"""The published files of API-Bank as samples; every file may be gzipped, and a row of another form is an error.

Dialogues (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/lv1-lv2-samples/`): every API turn is a sample. They are
`level-1-given-desc.jsonl` and `level-2-toolsearcher.jsonl` (a dialogue a row: `file`, `turns`), or folders of those
names (a dialogue a file, a turn a row), beside `api_specs.jsonl`. Level 2 lists ToolSearcher and what it has found.

Instances (by way of GitHub `qiancheng0/ToolRL`): `level-{1,2,3}-instances.jsonl`, a call a row. Tools and history are
read back out of the prompts `system` and `user`. A recorded call of an API that is not among the tools stays a sample,
tagged `tool_not_listed`, as in published numbers.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ttpa.benchmarks.apibank.values import literal, parameters_schema, typed
from ttpa.data.rows import DECODER
from ttpa.errors import ConfigError, DataError
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.records import Message, Sample, ToolCall, ToolSpec

Format = Literal["auto", "dialogues", "instances"]
Row = Mapping[str, Any]

DIALOGUES = {1: "level-1-given-desc", 2: "level-2-toolsearcher"}
SEARCHER = "ToolSearcher"

_TOOLS = re.compile(r"use the following tools:\n(.*?)\n\n\*\*Steps", re.DOTALL)
_TOOL = re.compile(
    r"^\d+\. (?:Name: (?P<name>.*)\nDescription: |(?P<title>[^:\n]*): )(?P<text>.*)\nParameters: (?P<of>.*)$", re.M
)
_HEAD = re.compile(r"(\*{2,3}Dialogue Records History\*\*\s*)?")
_BLOCK = re.compile(r"<(user|response|tool_call|obs)>(.*?)</\1>\s*", re.DOTALL)
_ROLES = {"User": "user", "AI": "assistant", "user": "user", "response": "assistant", "obs": "tool"}


class LevelFiles(NamedTuple):
    """The files of one level: the form and files of its samples, and its API documents (none or one)."""

    level: int
    format: str
    samples: list[Path]
    specs: list[Path]


def level_files(folder: Path, level: int, wanted: Format) -> LevelFiles:
    """The files of a level in the wanted format; a ConfigError says what is missing."""
    if not folder.is_dir():
        raise ConfigError.at("eval.path", folder, "no such folder", "Give the folder of the API-Bank files")
    specs = _file(folder, "api_specs_level3" if level == 3 else "api_specs")
    found = {"instances": _file(folder, f"level-{level}-instances"), "dialogues": []}
    if name := DIALOGUES.get(level):
        published = (sorted((parent / name).glob("*.jsonl")) for parent in (folder, folder / "lv1-lv2-samples"))
        found["dialogues"] = _file(folder, name) or next(filter(None, published), [])
    form = next((form for form, paths in found.items() if paths and wanted in ("auto", form)), None)
    if form is None:
        remedy = f"Put level-{level}-instances.jsonl or the dialogues there, or leave the level out of eval.levels"
        raise ConfigError.at("eval.path", folder, f"no files of level {level} for eval.format={wanted}", remedy)
    if form == "dialogues" and not specs:
        problem = f"dialogues of level {level} need api_specs.jsonl beside them"
        raise ConfigError.at("eval.path", folder, problem, "Put it there: name, description, input_parameters")
    return LevelFiles(level, form, found[form], specs)


def _file(folder: Path, stem: str) -> list[Path]:
    return [path for end in ("", ".gz") if (path := folder / f"{stem}.jsonl{end}").is_file()][:1]


def read_samples(files: LevelFiles) -> list[Sample]:
    """All samples of a level, in the order of its files; a DataError names the file and line that cannot be read."""
    specs = {spec.name: spec for spec in _read(files.specs, lambda row: [_spec(row)])}
    reader = _instance if files.format == "instances" else _dialogue
    samples = []
    for name, number, tools, messages, target in _read(files.samples, partial(reader, level=files.level, specs=specs)):
        dialogue, tags = f"apibank-{files.level}-{name}", [f"level-{files.level}"]
        if all(tool.name != target.name for tool in tools):
            tags.append("tool_not_listed")
        one = {"tools": tools, "messages": messages, "target": (target,), "tags": tuple(tags), "source": "apibank"}
        samples.append(Sample(id=f"{dialogue}-{number}", dialogue_id=dialogue, **one))
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated or not samples:
        problem = f"{repeated[0]} is there twice" if repeated else f"no calls of level {files.level} in it"
        raise DataError(f"{files.samples[0]}: {problem}. Take the file as published.")
    if files.level == 3:  # a tag says how many calls the task of a sample has
        sizes = Counter(sample.dialogue_id for sample in samples)
        samples = [replace(one, tags=(*one.tags, f"calls-{sizes[one.dialogue_id]}")) for one in samples]
    return samples


def _read(paths: Iterable[Path], reader: Callable[[Row], list[Any]]) -> list[Any]:
    """What a reader makes of the rows of files."""
    made = []
    for path in paths:
        lines = list(read_lines(path, DECODER.decode))
        if path.parent.name in DIALOGUES.values():  # a published folder: a file a dialogue, a turn a row
            lines = [JsonLine(str(path), 1, {"file": path.name, "turns": [line.row for line in lines]})]
        for line in lines:
            try:
                made += reader(line.row)
            except (LookupError, TypeError, AttributeError, ValueError) as problem:
                reason = f"{type(problem).__name__}: {problem}"
                raise DataError(f"{line}: not an API-Bank row ({reason}). Take the file as published.") from None
    return made


def _spec(row: Row) -> ToolSpec:
    parameters = parameters_schema(row["input_parameters"])
    return ToolSpec(name=str(row["name"]), description=str(row["description"]), parameters=parameters)


def _call(name: Any, arguments: Any, tools: Mapping[str, ToolSpec]) -> ToolCall:
    """A recorded call with typed arguments."""
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"{name!r} is no name, or its arguments are no object")
    schemas = tools[name].properties if name in tools else {}
    return ToolCall(name=name, arguments={key: typed(value, schemas.get(key, {})) for key, value in arguments.items()})


Parts = tuple[str, object, tuple[ToolSpec, ...], tuple[Message, ...], ToolCall]
"""Of a sample: dialogue, number, tools, messages and target."""


def _dialogue(row: Row, level: int, specs: Mapping[str, ToolSpec]) -> list[Parts]:
    turns = row["turns"]
    documented = {name: specs[name] for name in (turn["api_name"] for turn in turns if turn["role"] == "API")}
    tools = documented if level == 1 else {SEARCHER: specs[SEARCHER]}
    messages: list[Message] = []
    samples: list[Parts] = []
    for number, turn in enumerate(turns):
        if turn["role"] != "API":
            messages.append(Message(role=_ROLES[turn["role"]], content="" + turn["text"]))  # a TypeError without words
            continue
        call = _call(turn["api_name"], turn["param_dict"], specs)
        samples.append((row["file"].removesuffix(".jsonl"), number, tuple(tools.values()), tuple(messages), call))
        output = turn["result"]["output"] if turn["result"]["exception"] is None else turn["result"]
        messages.append(Message(role="assistant", calls=(call,)))
        messages.append(Message(role="tool", content=output if isinstance(output, str) else dumps(output)))
        if level == 2 and call.name == SEARCHER:
            documents = [one for one in (output if isinstance(output, list) else [output]) if isinstance(one, Mapping)]
            tools |= {one["name"]: specs.get(one["name"]) or _spec(one) for one in documents}
    return samples


def _instance(row: Row, level: int, specs: Mapping[str, ToolSpec]) -> list[Parts]:
    section = _TOOLS.search(row["system"])
    if section is None:
        raise ValueError("'system' lists no tools")
    tools = []
    for match in _TOOL.finditer(section[1]):  # two layouts are in use
        texts = {"name": match["name"] or match["title"], "description": match["text"]}
        tools.append(_spec({**texts, "input_parameters": literal(match["of"])}))
    if len(tools) != section[1].count("\nParameters: "):
        raise ValueError("a tool of 'system' cannot be read")
    known = {**specs, **{tool.name: tool for tool in tools}}
    (answer,) = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    target, other = _call(answer["name"], answer["parameters"], known), row["other"]
    name, number = (str(other["sample_id"]), other["api_id"]) if level == 3 else (other["file"], other["id"])
    return [(name.removesuffix(".jsonl"), number, tuple(tools), tuple(_history(row["user"], known)), target)]


def _history(user: str, tools: Mapping[str, ToolSpec]) -> Iterator[Message]:
    """The messages in an instance's user text."""
    at = _HEAD.match(user).end()  # type: ignore[union-attr]  # matches the empty string too
    while at < len(user):
        block = _BLOCK.match(user, at)
        if block is None:
            raise ValueError(f"'user' cannot be read from character {at}")
        at, text = block.end(), block[2].strip()
        if block[1] == "tool_call":
            rows = [DECODER.decode(line) for line in text.splitlines() if line.strip()]
            yield Message(role="assistant", calls=tuple(_call(row["name"], row["parameters"], tools) for row in rows))
        else:
            yield Message(role=_ROLES[block[1]], content=text)
