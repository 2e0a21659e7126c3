"""The published files of API-Bank as samples.

Dialogues (GitHub `AlibabaResearch/DAMO-ConvAI`, `api-bank/lv1-lv2-samples/`): every API turn is one sample. Read from
`level-1-given-desc.jsonl` and `level-2-toolsearcher.jsonl` (one dialogue a row: `file`, `turns`), or from folders of
those names with the published files (one turn a line). They need `api_specs.jsonl`, one API a row (`name`,
`description`, `input_parameters`). Tools of a level 1 sample: every API that its dialogue calls. Of a level 2 sample:
ToolSearcher and what it has found so far.

Instances (by way of GitHub `qiancheng0/ToolRL`): `level-{1,2,3}-instances.jsonl`, one call a row (`system`, `user`,
`answer`, `other`). Tools and history are read back out of the two prompts; the instructions of ToolRL's prompt (how to
think, its tags) are dropped, since the training renderer writes the prompt. Kept is its last user turn, which asks for
one call only. What an API returned is kept as the instance shows it. Level 3 exists in this form only, and levels 2
and 3 hold no ToolSearcher calls: the tools found are listed instead.

Every file may be gzipped. Arguments are typed (`ttpa.benchmarks.apibank.values`). A recorded call of an API that is not
among the tools (its search did not find it) stays a sample, tagged `tool_not_listed`; the published numbers count it.
A row of another form is an error: a benchmark with rows left out is another benchmark.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttpa.benchmarks.apibank.values import literal, parameters_schema, typed
from ttpa.data.rows import DECODER, RawRow, read_rows
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Message, Sample, ToolCall, ToolSpec

LEVELS = (1, 2, 3)
FORMATS = ("auto", "dialogues", "instances")
DIALOGUES = {1: "level-1-given-desc", 2: "level-2-toolsearcher"}
SPECS = {1: "api_specs", 2: "api_specs", 3: "api_specs_level3"}
SEARCHER = "ToolSearcher"

_TOOLS = re.compile(r"use the following tools:\n(.*?)\n\n\*\*Steps", re.DOTALL)
_TOOL = re.compile(
    r"^\d+\. (?:Name: (?P<name>.*)\nDescription: |(?P<title>[^:\n]*): )(?P<text>.*)\nParameters: (?P<of>.*)$", re.M
)
_HEAD = re.compile(r"\*{2,3}Dialogue Records History\*\*\s*")
_BLOCK = re.compile(r"<(user|response|tool_call|obs)>(.*?)</\1>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the samples of a level come from: `format`, all `files`, and of these the API documents (or None)."""

    level: int
    format: str
    files: tuple[Path, ...]
    specs: Path | None


class _Bad(Exception):
    """Why a row is not of the published form."""


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for end in ("", ".gz") if (path := folder / f"{stem}.jsonl{end}").is_file()), None)


def _dialogue_files(folder: Path, level: int) -> tuple[Path, ...]:
    stem = DIALOGUES.get(level, "")
    packed = _file(folder, stem) if stem else None
    if packed is not None or not stem:
        return (packed,) if packed else ()
    for parent in (folder / stem, folder / "lv1-lv2-samples" / stem):
        if found := tuple(sorted(parent.glob("*.jsonl"))):
            return found
    return ()


def sources_of(folder: Path, levels: Iterable[int], wanted: str) -> dict[int, Source]:
    """The files of each level in the wanted format.

    Raises:
        ConfigError: no such folder, or a level without files; says what belongs there.
    """
    if not folder.is_dir():
        raise ConfigError.at("eval.path", folder, "no such folder", "Give the folder of the API-Bank files")
    return {level: _source(folder, level, wanted) for level in levels}


def _source(folder: Path, level: int, wanted: str) -> Source:
    instances, dialogues = _file(folder, f"level-{level}-instances"), _dialogue_files(folder, level)
    specs = _file(folder, SPECS[level])
    if instances is not None and wanted in ("auto", "instances"):
        files = (instances,) if specs is None else (instances, specs)
        return Source(level=level, format="instances", files=files, specs=specs)
    if dialogues and wanted in ("auto", "dialogues"):
        if specs is None:
            problem = f"dialogues of level {level} need api_specs.jsonl beside them"
            raise ConfigError.at("eval.path", folder, problem, "Put it there: name, description, input_parameters")
        return Source(level=level, format="dialogues", files=(*dialogues, specs), specs=specs)
    names = [f"level-{level}-instances.jsonl"] if wanted != "dialogues" else []
    names += [f"{DIALOGUES[level]}.jsonl"] if wanted != "instances" and level in DIALOGUES else []
    problem = f"no {' or '.join(names) or 'dialogues'} for level {level}"
    raise ConfigError.at("eval.path", folder, problem, "Put the files there, or leave the level out of eval.levels")


def read_samples(source: Source) -> list[Sample]:
    """All samples of a level, in the order of its files.

    Raises:
        DataError: a row that is not of the published form; names file and line.
    """
    specs = _read_specs(source.specs) if source.specs else {}
    found: list[Sample] = list(_instances(source, specs)) if source.format == "instances" else []
    for where, name, turns in _dialogues(source):
        try:
            found += _dialogue(source.level, name, turns, specs)
        except (_Bad, KeyError, TypeError, AttributeError) as problem:
            raise _error(where, problem) from None
    if not found:
        raise DataError(f"{source.files[0]}: no calls of level {source.level} in it. Take the file as published.")
    twice = [name for name, count in Counter(sample.id for sample in found).items() if count > 1]
    if twice:
        raise DataError(f"{source.files[0]}: {twice[0]} is there twice. Take the file as published.")
    return found


def _error(where: str, problem: Exception) -> DataError:
    reason = str(problem) if isinstance(problem, _Bad) else f"{type(problem).__name__} {problem}"
    return DataError(f"{where}: not an API-Bank row ({reason}). Take the file as published.")


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a file of JSON lines."""
    row: RawRow
    for row in read_rows(str(path)):
        where = f"{path}:{row.line}"
        if row.value is None:
            raise DataError(f"{where}: {row.problem}. Take the file as published.")
        yield where, row.value


def _read_specs(path: Path) -> dict[str, ToolSpec]:
    found = {}
    for where, row in _rows(path):
        try:
            spec = _spec(row["name"], row["description"], row["input_parameters"])
        except (KeyError, TypeError, AttributeError) as problem:
            raise _error(where, problem) from None
        found[spec.name] = spec
    return found


def _spec(name: Any, description: Any, parameters: Mapping[str, Mapping[str, Any]]) -> ToolSpec:
    return ToolSpec(name=str(name), description=str(description), parameters=parameters_schema(parameters))


def _call(name: str, arguments: Mapping[str, Any], tools: Mapping[str, ToolSpec]) -> ToolCall:
    """A recorded call with typed arguments."""
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise _Bad(f"{name!r} is no name, or its arguments are no object")
    schemas = tools[name].properties if name in tools else {}
    return ToolCall(name=name, arguments={key: typed(value, schemas.get(key)) for key, value in arguments.items()})


def _sample(
    level: int,
    dialogue: str,
    number: object,
    tools: Sequence[ToolSpec],
    messages: Sequence[Message],
    target: ToolCall,
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


def _dialogues(source: Source) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """(place, published file name, turns); nothing of a source of instances."""
    for path in source.files if source.format == "dialogues" else ():
        if path == source.specs:
            continue
        if path.parent.name in DIALOGUES.values():  # a file a dialogue, a turn a line
            yield str(path), path.name, [row for _, row in _rows(path)]
            continue
        for where, row in _rows(path):
            if not isinstance(row.get("file"), str) or not isinstance(row.get("turns"), list):
                raise _error(where, _Bad("'file' and 'turns' belong in it"))
            yield where, row["file"], row["turns"]


def _check_turn(number: int, turn: Any) -> None:
    """Refuses a turn of another form; `number` is its line in a published file."""
    role = turn.get("role") if isinstance(turn, Mapping) else None
    if role in ("User", "AI"):
        good = isinstance(turn.get("text"), str)
    else:
        result = turn.get("result") if role == "API" else None
        good = isinstance(result, Mapping) and {"output", "exception"} <= result.keys()
        good = good and isinstance(turn.get("api_name"), str) and isinstance(turn.get("param_dict"), Mapping)
    if not good:
        raise _Bad(f"turn {number} is neither words of User or AI nor a call of API with its result")


def _dialogue(
    level: int, file: str, turns: Sequence[Mapping[str, Any]], specs: Mapping[str, ToolSpec]
) -> Iterator[Sample]:
    for number, turn in enumerate(turns, 1):
        _check_turn(number, turn)
    called = dict.fromkeys(turn["api_name"] for turn in turns if turn["role"] == "API")
    unknown = [name for name in called if name not in specs]
    if unknown:
        raise _Bad(f"calls {unknown[0]!r}, which the API documents do not have")
    tools = {name: specs[name] for name in (called if level == 1 else [SEARCHER])}
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        if turn["role"] in ("User", "AI"):
            messages.append(Message(role="user" if turn["role"] == "User" else "assistant", content=turn["text"]))
            continue
        call = _call(turn["api_name"], turn["param_dict"], specs)
        yield _sample(level, file.removesuffix(".jsonl"), number, list(tools.values()), messages, call)
        output = turn["result"]["output"] if turn["result"]["exception"] is None else turn["result"]
        messages.append(Message(role="assistant", calls=(call,)))
        messages.append(Message(role="tool", content=output if isinstance(output, str) else dumps(output)))
        if level == 2 and call.name == SEARCHER:
            tools |= _found(output, specs)


def _found(output: Any, specs: Mapping[str, ToolSpec]) -> dict[str, ToolSpec]:
    """What a search returned: one document or a list; the API's own document where there is one."""
    documents = output if isinstance(output, list) else [output]
    return {
        one["name"]: specs.get(one["name"]) or _spec(one["name"], one["description"], one["input_parameters"])
        for one in documents
        if isinstance(one, Mapping)
    }


# --- instances -------------------------------------------------------------------------------------------------------


def _instances(source: Source, specs: Mapping[str, ToolSpec]) -> Iterator[Sample]:
    """Samples of an instance file. Level 3 samples say in a tag how many calls their task has."""
    found = []
    for where, row in _rows(source.files[0]):
        try:
            found.append(_instance(source.level, row, specs))
        except (_Bad, KeyError, TypeError, AttributeError, ValueError, RecursionError) as problem:
            raise _error(where, problem) from None
    sizes = Counter(sample.dialogue_id for sample in found)
    for sample in found:
        size = (f"calls-{sizes[sample.dialogue_id]}",) if source.level == 3 else ()
        yield replace(sample, tags=(*sample.tags, *size))


def _instance(level: int, row: Mapping[str, Any], specs: Mapping[str, ToolSpec]) -> Sample:
    tools = _listed(row["system"])
    known = {**specs, **{tool.name: tool for tool in tools}}
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if len(answers) != 1:
        raise _Bad(f"{len(answers)} answers, expected 1")
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
        raise _Bad("'system' lists no tools")
    tools = []
    for match in _TOOL.finditer(section[1]):
        parameters = literal(match["of"])
        if not isinstance(parameters, dict):
            raise _Bad(f"the parameters of {match['name'] or match['title']} cannot be read")
        tools.append(_spec(match["name"] or match["title"], match["text"], parameters))
    if len(tools) != section[1].count("\nParameters: "):
        raise _Bad("a tool of 'system' cannot be read")
    return tools


def _history(user: str, tools: Mapping[str, ToolSpec]) -> Iterator[Message]:
    """The messages in an instance's user text."""
    head = _HEAD.match(user)
    at = head.end() if head else 0
    while at < len(user):
        block = _BLOCK.match(user, at)
        if block is None:
            raise _Bad(f"'user' cannot be read from character {at}")
        at, text = block.end(), block[2].strip()
        if block[1] == "tool_call":
            rows = [DECODER.decode(line) for line in text.splitlines() if line.strip()]
            yield Message(role="assistant", calls=tuple(_call(row["name"], row["parameters"], tools) for row in rows))
        else:
            role = {"user": "user", "response": "assistant", "obs": "tool"}[block[1]]
            yield Message(role=role, content=text)
