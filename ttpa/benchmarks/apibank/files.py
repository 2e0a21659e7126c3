"""The published files of API-Bank as samples; every file may be gzipped, and a row of another form is an error.

Dialogues (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/lv1-lv2-samples/`): every API turn is a sample. Read from
`level-1-given-desc.jsonl` and `level-2-toolsearcher.jsonl` (one dialogue a row: `file`, `turns`), or from folders of
those names with the published files (one turn a line), with `api_specs.jsonl` (`name`, `description`,
`input_parameters`) beside them. Level 1 has the tools its dialogue calls, level 2 ToolSearcher and what it has found.

Instances (by way of GitHub `qiancheng0/ToolRL`): `level-{1,2,3}-instances.jsonl`, one call a row. Tools and history are
read back out of the prompts `system` and `user`, without ToolRL's instructions. Level 3 exists in this form only.

A recorded call of an API that is not among the tools stays a sample, tagged `tool_not_listed`, as in published numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ttpa.benchmarks.apibank.values import literal, parameters_schema, typed
from ttpa.data.rows import DECODER, read_rows
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Message, Sample, ToolCall, ToolSpec

Format = Literal["auto", "dialogues", "instances"]

DIALOGUES = {1: "level-1-given-desc", 2: "level-2-toolsearcher"}
SPECS = {1: "api_specs", 2: "api_specs", 3: "api_specs_level3"}
SEARCHER = "ToolSearcher"

_TOOLS = re.compile(r"use the following tools:\n(.*?)\n\n\*\*Steps", re.DOTALL)
_TOOL = re.compile(
    r"^\d+\. (?:Name: (?P<name>.*)\nDescription: |(?P<title>[^:\n]*): )(?P<text>.*)\nParameters: (?P<of>.*)$", re.M
)
_HEAD = re.compile(r"\*{2,3}Dialogue Records History\*\*\s*")
_BLOCK = re.compile(r"<(user|response|tool_call|obs)>(.*?)</\1>\s*", re.DOTALL)
_ROLES = {"user": "user", "response": "assistant", "obs": "tool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFiles:
    """The files of one level, with samples in `format`, and its API documents (None without)."""

    level: int
    format: Literal["dialogues", "instances"]
    samples: tuple[Path, ...]
    specs: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return (*self.samples, *((self.specs,) if self.specs else ()))


class _BadRow(Exception):
    """Why a row is not of the published form."""


def level_files(folder: Path, level: int, wanted: Format) -> LevelFiles:
    """The files of a level in the wanted format.

    Raises:
        ConfigError: no such folder, or no files of this level; says what belongs there.
    """
    if not folder.is_dir():
        raise ConfigError.at("eval.path", folder, "no such folder", "Give the folder of the API-Bank files")
    instances, dialogues, specs = _file(folder, f"level-{level}-instances"), [], _file(folder, SPECS[level])
    if level in DIALOGUES:
        packed, name = _file(folder, DIALOGUES[level]), DIALOGUES[level]
        dialogues = [packed] if packed else sorted((folder / name).glob("*.jsonl"))
        dialogues = dialogues or sorted((folder / "lv1-lv2-samples" / name).glob("*.jsonl"))
    if instances is not None and wanted in ("auto", "instances"):
        return LevelFiles(level=level, format="instances", samples=(instances,), specs=specs)
    if dialogues and wanted in ("auto", "dialogues"):
        if specs is None:
            problem = f"dialogues of level {level} need api_specs.jsonl beside them"
            raise ConfigError.at("eval.path", folder, problem, "Put it there: name, description, input_parameters")
        return LevelFiles(level=level, format="dialogues", samples=tuple(dialogues), specs=specs)
    names = [f"level-{level}-instances.jsonl"] if wanted != "dialogues" else []
    names += [f"{DIALOGUES[level]}.jsonl"] if wanted != "instances" and level in DIALOGUES else []
    problem = f"no {' or '.join(names) or 'dialogues'} for level {level}"
    raise ConfigError.at("eval.path", folder, problem, "Put the files there, or leave the level out of eval.levels")


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for end in ("", ".gz") if (path := folder / f"{stem}.jsonl{end}").is_file()), None)


def read_samples(files: LevelFiles) -> list[Sample]:
    """All samples of a level, in the order of its files.

    Raises:
        DataError: a row that is not of the published form; names file and line.
    """
    specs = {}
    for place, row in _rows(files.specs) if files.specs else ():
        with_name = _read(place, lambda row: _spec(row["name"], row["description"], row["input_parameters"]), row)
        specs[with_name.name] = with_name
    if files.format == "instances":
        samples = [_read(place, _instance, row, files.level, specs) for place, row in _rows(files.samples[0])]
        if files.level == 3:  # a tag says how many calls the task of a sample has
            sizes = Counter(sample.dialogue_id for sample in samples)
            samples = [replace(one, tags=(*one.tags, f"calls-{sizes[one.dialogue_id]}")) for one in samples]
    else:
        samples = [
            sample
            for place, row in _dialogue_rows(files.samples)
            for sample in _read(place, _dialogue, row, files.level, specs)
        ]
    first = files.samples[0]
    if not samples:
        raise DataError(f"{first}: no calls of level {files.level} in it. Take the file as published.")
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        raise DataError(f"{first}: {repeated[0]} is there twice. Take the file as published.")
    return samples


def _read(place: str, reader: Any, *given: Any) -> Any:
    """What a reader makes of a row; a row of another form is an error that names its place."""
    try:
        return reader(*given)
    except (_BadRow, LookupError, TypeError, AttributeError, ValueError) as problem:
        reason = problem if isinstance(problem, _BadRow) else f"{type(problem).__name__} {problem}"
        raise DataError(f"{place}: not an API-Bank row ({reason}). Take the file as published.") from None


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a file of JSON lines."""
    for row in read_rows(str(path)):
        place = f"{path}:{row.line}"
        if row.value is None:
            raise DataError(f"{place}: {row.problem}. Take the file as published.")
        yield place, row.value


def _spec(name: Any, description: Any, parameters: Mapping[str, Mapping[str, Any]]) -> ToolSpec:
    return ToolSpec(name=str(name), description=str(description), parameters=parameters_schema(parameters))


def _call(name: Any, arguments: Any, tools: Mapping[str, ToolSpec]) -> ToolCall:
    """A recorded call with typed arguments."""
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise _BadRow(f"{name!r} is no name, or its arguments are no object")
    schemas = tools[name].properties if name in tools else {}
    return ToolCall(name=name, arguments={key: typed(value, schemas.get(key)) for key, value in arguments.items()})


def _sample(
    level: int, dialogue: str, number: object, tools: Sequence[ToolSpec], messages: Sequence[Message], target: ToolCall
) -> Sample:
    listed = any(tool.name == target.name for tool in tools)
    return Sample(
        id=f"apibank-{level}-{dialogue}-{number}",
        dialogue_id=f"apibank-{level}-{dialogue}",
        source="apibank",
        tags=(f"level-{level}",) if listed else (f"level-{level}", "tool_not_listed"),
        tools=tuple(tools),
        messages=tuple(messages),
        target=(target,),
    )


# --- dialogues -------------------------------------------------------------------------------------------------------


def _dialogue_rows(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, {file, turns}) of every dialogue."""
    for path in paths:
        if path.parent.name in DIALOGUES.values():  # a file a dialogue, a turn a line
            yield str(path), {"file": path.name, "turns": [turn for _, turn in _rows(path)]}
        else:
            yield from _rows(path)


def _dialogue(row: Mapping[str, Any], level: int, specs: Mapping[str, ToolSpec]) -> list[Sample]:
    file, turns = row.get("file"), row.get("turns")
    if not isinstance(file, str) or not isinstance(turns, list):
        raise _BadRow("'file' and 'turns' belong in it")
    for number, turn in enumerate(turns, 1):
        words = turn.get("text") if isinstance(turn, Mapping) and turn.get("role") in ("User", "AI") else None
        if not isinstance(words, str) and (not isinstance(turn, Mapping) or turn.get("role") != "API"):
            raise _BadRow(f"turn {number} is neither words of User or AI nor a call of API")
    called = dict.fromkeys(turn["api_name"] for turn in turns if turn["role"] == "API")
    unknown = [name for name in called if name not in specs]
    if unknown:
        raise _BadRow(f"calls {unknown[0]!r}, which the API documents do not have")
    tools = {name: specs[name] for name in (called if level == 1 else [SEARCHER])}
    messages: list[Message] = []
    samples = []
    for number, turn in enumerate(turns):
        if turn["role"] != "API":
            messages.append(Message(role="user" if turn["role"] == "User" else "assistant", content=turn["text"]))
            continue
        call = _call(turn["api_name"], turn["param_dict"], specs)
        samples.append(_sample(level, file.removesuffix(".jsonl"), number, list(tools.values()), messages, call))
        output = turn["result"]["output"] if turn["result"]["exception"] is None else turn["result"]
        messages.append(Message(role="assistant", calls=(call,)))
        messages.append(Message(role="tool", content=output if isinstance(output, str) else dumps(output)))
        if level == 2 and call.name == SEARCHER:
            documents = output if isinstance(output, list) else [output]
            for one in documents:
                if isinstance(one, Mapping):
                    own = specs.get(one["name"])
                    tools[one["name"]] = own or _spec(one["name"], one["description"], one["input_parameters"])
    return samples


# --- instances -------------------------------------------------------------------------------------------------------


def _instance(row: Mapping[str, Any], level: int, specs: Mapping[str, ToolSpec]) -> Sample:
    tools = _listed(row["system"])
    known = {**specs, **{tool.name: tool for tool in tools}}
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if len(answers) != 1:
        raise _BadRow(f"{len(answers)} answers, expected 1")
    target = _call(answers[0]["name"], answers[0]["parameters"], known)
    other = row["other"]
    if level == 3:
        dialogue, number = str(other["sample_id"]), other["api_id"]
    else:
        dialogue, number = other["file"].removesuffix(".jsonl"), other["id"]
    return _sample(level, dialogue, number, tools, list(_history(row["user"], known)), target)


def _listed(system: str) -> list[ToolSpec]:
    """The tools in an instance's system text, in both of the layouts in use."""
    section = _TOOLS.search(system)
    if section is None:
        raise _BadRow("'system' lists no tools")
    tools = []
    for match in _TOOL.finditer(section[1]):
        parameters = literal(match["of"])
        if not isinstance(parameters, dict):
            raise _BadRow(f"the parameters of {match['name'] or match['title']} cannot be read")
        tools.append(_spec(match["name"] or match["title"], match["text"], parameters))
    if len(tools) != section[1].count("\nParameters: "):
        raise _BadRow("a tool of 'system' cannot be read")
    return tools


def _history(user: str, tools: Mapping[str, ToolSpec]) -> Iterator[Message]:
    """The messages in an instance's user text."""
    head = _HEAD.match(user)
    at = head.end() if head else 0
    while at < len(user):
        block = _BLOCK.match(user, at)
        if block is None:
            raise _BadRow(f"'user' cannot be read from character {at}")
        at, text = block.end(), block[2].strip()
        if block[1] == "tool_call":
            rows = [DECODER.decode(line) for line in text.splitlines() if line.strip()]
            yield Message(role="assistant", calls=tuple(_call(row["name"], row["parameters"], tools) for row in rows))
        else:
            yield Message(role=_ROLES[block[1]], content=text)
