"""Finished ToolBench and StableToolBench answers, as their pipelines write them.

What is accepted: a folder with, per subset, one file `SUBSET.json` of many queries, or a folder `SUBSET/` of such
files, one or many queries each. A file is an object `{query_id: record}`, or one record, whose id is then the name of
its file up to the first `_`. A record is

    {"query": text, "available_tools": [...], "answer": {"method", "total_steps", "final_answer", "answer_details"}}

`available_tools` are objects with `name`, `description` and JSON Schema `parameters`, bare or below "function".
`answer_details` is a list of nodes `{"role", "message", "next": [nodes]}`; a node of the role "tool" is a call, its
message `{"name", "arguments", "response"}`, as an object or as its text. As ToolEval does, only the first node and the
first one below each are looked at. Subsets may also be named as their files are in the official repositories
(`G1_instruction` is I1-Inst).

What this module does not do: run tools or make answers; both need the ToolBench tool server.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import ToolCall, ToolSpec

SUBSETS = {
    "I1-Inst": "G1_instruction",
    "I1-Tool": "G1_tool",
    "I1-Cat": "G1_category",
    "I2-Inst": "G2_instruction",
    "I2-Cat": "G2_category",
    "I3-Inst": "G3_instruction",
}
"""Subset -> the name of its files in the official repositories."""

FINISH = "Finish"
GIVEN_UP = "give_up_and_restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One executed call: what was called with what, and the text that came back."""

    call: ToolCall
    response: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished answer. `finished` says whether its last call is Finish; `tools` are those with a schema."""

    subset: str
    query_id: str
    query: str
    tools: tuple[ToolSpec, ...]
    final_answer: str
    steps: tuple[Step, ...]
    finished: bool
    method: str = ""

    @property
    def hopeless(self) -> bool:
        """Whether ToolEval calls it unsolved without asking anybody: not finished, empty, or given up."""
        return not self.finished or not self.final_answer or GIVEN_UP in self.final_answer


def read_answers(folder: Path, subset: str) -> dict[str, Answer]:
    """The answers to a subset by query id, sorted by it; empty where there are no files.

    Raises:
        DataError: a file or record of another form, or a query twice; names file and query.
    """
    found: dict[str, Answer] = {}
    for path in answer_files(folder, subset):
        for query_id, record in _records(path):
            if query_id in found:
                raise DataError(f"{path}: query {query_id} is there twice. Keep one answer a query.")
            try:
                found[query_id] = _answer(subset, query_id, record)
            except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as problem:
                reason = f"{type(problem).__name__} {problem}"
                raise DataError(
                    f"{path}: query {query_id} is no ToolBench answer ({reason}). Needed are query, available_tools "
                    "and answer with final_answer and answer_details; convert the answers as ToolEval does."
                ) from None
    return dict(sorted(found.items()))


def answer_files(folder: Path, subset: str) -> list[Path]:
    """The files of a subset, sorted."""
    files = []
    for name in (subset, SUBSETS[subset]):
        if (single := folder / f"{name}.json").is_file():
            files.append(single)
        if (folder / name).is_dir():
            files += sorted(path for path in (folder / name).glob("*.json") if path.is_file())
    return files


def read_ids(path: Path) -> dict[str, frozenset[str]]:
    """Subset -> ids of the queries that count: StableToolBench's 765 solvable ones, for instance.

    Args:
        path: a folder with a file a subset, `SUBSET.json`, or one file `{subset: ids}`. Ids are a list, or the keys of
            an object as in StableToolBench.

    Raises:
        ConfigError: no such file or folder, or none of the subsets in it.
    """
    found: dict[str, frozenset[str]] = {}
    for subset, official in SUBSETS.items():
        for name in (subset, official):
            if path.is_dir() and (path / f"{name}.json").is_file():
                found[subset] = _ids(_load(path / f"{name}.json"))
    if path.is_file():
        content = _load(path)
        for subset, official in SUBSETS.items():
            ids = content.get(subset, content.get(official)) if isinstance(content, Mapping) else None
            if ids is not None:
                found[subset] = _ids(ids)
    if not found:
        problem = "holds the ids of no subset"
        raise ConfigError.at("solvable", path, problem, "Give a folder with G1_instruction.json, ..., or null")
    return found


def _ids(value: Any) -> frozenset[str]:
    if not isinstance(value, Mapping | list):
        raise DataError(f"solvable: ids are a {type(value).__name__}. Give a list or an object with ids as keys.")
    return frozenset(str(one) for one in value)


def _load(path: Path) -> Any:
    twice: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        # The outermost object is made last. Further inside is what a model wrote, where a key twice is no error.
        twice[:] = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=made)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}). Write it again.") from None
    if twice and isinstance(content, Mapping):
        raise DataError(f"{path}: {twice[0]} is there twice. Keep one.")
    return content


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    content = _load(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: a {type(content).__name__} where an object of answers belongs.")
    if "answer" in content:
        yield path.stem.split("_")[0], content
        return
    for query_id, record in content.items():
        yield str(query_id), record


def _answer(subset: str, query_id: str, record: Mapping[str, Any]) -> Answer:
    answer = record["answer"]
    final = answer.get("final_answer")
    steps = [step for node in _chain(answer["answer_details"]) if (step := _step(node)) is not None]
    return Answer(
        subset=subset,
        query_id=query_id,
        query=str(record["query"]),
        tools=tuple(tool for item in record.get("available_tools") or () if (tool := _tool(item)) is not None),
        final_answer=_text(final),
        steps=tuple(step for step in steps if step.call.name != FINISH),
        finished=bool(steps) and steps[-1].call.name == FINISH,
        method=str(answer.get("method", "")),
    )


def _chain(below: Any) -> Iterator[Mapping[str, Any]]:
    """The first node, the first one below it, and so on."""
    while below:
        node = below if isinstance(below, Mapping) else below[0]
        yield node
        below = node.get("next")


def _step(node: Mapping[str, Any]) -> Step | None:
    """The call of a node; None for other roles. A call that cannot be read is a step of a nameless tool."""
    if node.get("role") != "tool":
        return None
    message = node.get("message")
    if isinstance(message, str):
        message = _object(message)
    if not isinstance(message, Mapping):
        return Step(call=ToolCall(name=""), response=str(message or ""))
    arguments = message.get("arguments")
    response = message.get("response")
    return Step(
        call=ToolCall(name=str(message.get("name", "")), arguments={} if arguments in ("", None) else arguments),
        response=_text(response),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else dumps(value)


def _object(text: str) -> Any:
    """The object a text stands for, as JSON or as a Python literal; other text stays text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _tool(item: Any) -> ToolSpec | None:
    """The tool of an entry, where it has a schema that calls can be held against."""
    spec = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        return None
    parameters = spec.get("parameters")
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties", {}), Mapping):
        return None
    required = parameters.get("required")
    if not isinstance(required, list | None) or not all(isinstance(name, str) for name in required or ()):
        return None
    return ToolSpec(name=spec["name"], description=str(spec.get("description") or ""), parameters=parameters)
