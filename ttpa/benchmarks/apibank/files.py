"""The published files of API-Bank (see docs/evaluation.md) as samples; a row of another form is an error."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ttpa.calls.literals import Malformed, Scanner
from ttpa.data.rows import DECODER
from ttpa.errors import ConfigError, DataError
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.records import Message, Sample, ToolCall, ToolSpec

Format = Literal["auto", "dialogues", "instances"]
Row = Mapping[str, Any]
Tools = Mapping[str, ToolSpec]
LevelFiles = tuple[str, list[Path], list[Path]]
"""Of a level: the form of its samples, their files, and the file of its API documents, if any."""

DIALOGUES = {1: "level-1-given-desc", 2: "level-2-toolsearcher"}
SEARCHER = "ToolSearcher"
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}

_OPTIONAL = re.compile(r"\[optional\]|only needed for", re.IGNORECASE)
_TOOLS = re.compile(r"use the following tools:\n(.*?)\n\n\*\*Steps", re.DOTALL)
_TOOL = re.compile(r"^\d+\. (?:Name: (.*)\nDescription: |([^:\n]*): )(.*)\nParameters: (.*)$", re.MULTILINE)
_HEAD = re.compile(r"\s*(\*{2,3}Dialogue Records History\*\*\s*)?")
_BLOCK = re.compile(r"<(user|response|tool_call|obs)>(.*?)</\1>\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?")
_ROLES = {"User": "user", "AI": "assistant", "user": "user", "response": "assistant", "tool_call": "assistant",
          "obs": "tool"}  # fmt: skip


def typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value that text stands for in a parameter of this schema, in JSON or Python: 2 for "2". Other text stays."""
    if not isinstance(value, str):
        return value
    kind, text = schema.get("type"), value.strip()
    if kind in ("integer", "number") and (found := _NUMBER.fullmatch(text)) and (kind == "number" or not found[1]):
        return float(text) if found[1] else int(text)
    if kind == "boolean" and text in ("True", "False"):
        return text == "True"
    for python in (False, True) if kind in ("array", "object") else ():
        scan = Scanner(text, python=python)
        with suppress(Malformed):
            read = scan.value()
            scan.finish()
            return read if isinstance(read, list if kind == "array" else dict) else value
    return value


def level_files(folder: Path, level: int, wanted: Format) -> LevelFiles:
    """The files of a level in the wanted format; a ConfigError says what is missing."""

    def packed(stem: str) -> list[Path]:
        return [path for end in ("", ".gz") if (path := folder / f"{stem}.jsonl{end}").is_file()][:1]

    if not folder.is_dir():
        raise ConfigError.at("eval.path", folder, "no such folder", "Give the folder of the API-Bank files")
    name, specs = DIALOGUES.get(level, "no dialogues"), packed("api_specs_level3" if level == 3 else "api_specs")
    loose = (sorted(parent.glob(f"{name}/*.jsonl")) for parent in (folder, folder / "lv1-lv2-samples"))
    dialogues = packed(name) or next(filter(None, loose), [])
    found = {"instances": packed(f"level-{level}-instances"), "dialogues": dialogues}
    form = next((form for form, paths in found.items() if paths and wanted in ("auto", form)), None)
    if form is None:
        remedy = f"Put level-{level}-instances.jsonl or the dialogues there, or leave the level out of eval.levels"
        raise ConfigError.at("eval.path", folder, f"no files of level {level} for eval.format={wanted}", remedy)
    if form == "dialogues" and not specs:
        problem = f"dialogues of level {level} need api_specs.jsonl beside them"
        raise ConfigError.at("eval.path", folder, problem, "Put it there: name, description, input_parameters")
    return form, found[form], specs


def read_samples(level: int, files: LevelFiles) -> list[Sample]:
    """All samples of a level, in the order of its files; a DataError names the file and line that cannot be read."""
    form, paths, documents = files
    specs = {spec.name: spec for spec in _read(documents, lambda row: [tool_of(row)])}
    reader = partial(_instance if form == "instances" else _dialogue, level=level, specs=specs)
    samples: list[Sample] = list(_read(paths, reader))
    sizes = Counter(sample.dialogue_id for sample in samples)
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated or not samples:
        problem = f"{repeated[0]} is there twice" if repeated else f"no calls of level {level} in it"
        raise DataError(f"{paths[0]}: {problem}. Take the file as published.")
    if level == 3:  # a tag says how many calls the task of a sample has
        samples = [replace(one, tags=(*one.tags, f"calls-{sizes[one.dialogue_id]}")) for one in samples]
    return samples


def _read(paths: Iterable[Path], reader: Callable[[Row], list[Any]]) -> Iterator[Any]:
    """What a reader makes of the rows of files."""
    for path in paths:
        lines = list(read_lines(path, DECODER.decode))
        if path.parent.name in DIALOGUES.values():  # a published folder: a file a dialogue, a turn a row
            lines = [JsonLine(str(path), 1, {"file": path.name, "turns": [line.row for line in lines]})]
        for line in lines:
            try:
                yield from reader(line.row)
            except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as problem:
                reason = f"{type(problem).__name__}: {problem}"
                raise DataError(f"{line}: not an API-Bank row ({reason}). Take the file as published.") from None


def tool_of(row: Row) -> ToolSpec:
    """An API as documented. What is required is not said: all is, unless the description says "[Optional]" or "Only
    needed for", as the recorded calls confirm.
    """
    properties: dict[str, Any] = {}
    for name, spec in row["input_parameters"].items():
        kind, _, inner = spec["type"].partition("(")
        items = {"items": {"type": TYPES[inner.removesuffix(")")]}} if inner else {}
        properties[name] = {"type": TYPES[kind], **items, "description": str(spec.get("description", ""))}
    required = [name for name, schema in properties.items() if not _OPTIONAL.search(schema["description"])]
    schema = {"type": "object", "properties": properties, "required": required}
    return ToolSpec(name=str(row["name"]), description=str(row["description"]), parameters=schema)


def _call(name: Any, arguments: Any, tools: Tools) -> ToolCall:
    """A recorded call with typed arguments."""
    schemas = tools[name].properties if name in tools else {}
    typed_ones = {key: typed(value, schemas.get(key, {})) for key, value in arguments.items()}
    return ToolCall(name="" + name, arguments=typed_ones)  # a TypeError where the name is no text


def _sample(
    level: int, name: str, number: int, tools: Iterable[ToolSpec], messages: Iterable[Message], target: ToolCall
) -> Sample:
    dialogue, tags = f"apibank-{level}-{name.removesuffix('.jsonl')}", [f"level-{level}"]
    tags += ["tool_not_listed"] * all(tool.name != target.name for tool in tools)
    return Sample(
        id=f"{dialogue}-{number}", dialogue_id=dialogue, source="apibank", tags=tuple(tags),
        tools=tuple(tools), messages=tuple(messages), target=(target,),
    )  # fmt: skip


def _dialogue(row: Row, level: int, specs: Tools) -> list[Sample]:
    turns, samples, messages = row["turns"], list[Sample](), list[Message]()
    documented = {name: specs[name] for name in (turn["api_name"] for turn in turns if turn["role"] == "API")}
    tools = documented if level == 1 else {SEARCHER: specs[SEARCHER]}
    for number, turn in enumerate(turns):
        if turn["role"] != "API":
            messages.append(Message(role=_ROLES[turn["role"]], content="" + turn["text"]))  # a TypeError without words
            continue
        call = _call(turn["api_name"], turn["param_dict"], specs)
        samples.append(_sample(level, row["file"], number, tools.values(), messages, call))
        output = turn["result"]["output"] if turn["result"]["exception"] is None else turn["result"]
        messages.append(Message(role="assistant", calls=(call,)))
        messages.append(Message(role="tool", content=output if isinstance(output, str) else dumps(output)))
        if level == 2 and call.name == SEARCHER:
            documents = [one for one in (output if isinstance(output, list) else [output]) if isinstance(one, Mapping)]
            tools |= {one["name"]: specs.get(one["name"]) or tool_of(one) for one in documents}
    return samples


def _instance(row: Row, level: int, specs: Tools) -> list[Sample]:
    section, user, messages = _TOOLS.search(row["system"]), row["user"], list[Message]()
    if section is None:
        raise ValueError("'system' lists no tools")
    tools = [
        tool_of({"name": name or title, "description": text, "input_parameters": typed(of, {"type": "object"})})
        for name, title, text, of in _TOOL.findall(section[1])
    ]
    if len(tools) != section[1].count("\nParameters: "):
        raise ValueError("a tool of 'system' cannot be read")
    known = {**specs, **{tool.name: tool for tool in tools}}
    if not _HEAD.fullmatch(left := _BLOCK.sub("", user)):
        raise ValueError(f"'user' cannot be read: {left.strip()[:40]!r}")
    for tag, text in _BLOCK.findall(user):
        lines = [DECODER.decode(line) for line in text.splitlines() if line.strip()] if tag == "tool_call" else []
        calls = tuple(_call(line["name"], line["parameters"], known) for line in lines)
        messages.append(Message(role=_ROLES[tag], content="" if calls else text.strip(), calls=calls))
    (answer,) = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    target, other = _call(answer["name"], answer["parameters"], known), row["other"]
    name, number = (str(other["sample_id"]), other["api_id"]) if level == 3 else (other["file"], other["id"])
    return [_sample(level, name, number, tools, messages, target)]
