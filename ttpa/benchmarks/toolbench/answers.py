"""Finished ToolBench and StableToolBench answers (see docs/evaluation.md). Nothing here runs a tool."""

import ast
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import ToolCall, ToolSpec

SUBSETS = {
    "I1-Inst": "G1_instruction", "I1-Tool": "G1_tool", "I1-Cat": "G1_category", "I2-Inst": "G2_instruction",
    "I2-Cat": "G2_category", "I3-Inst": "G3_instruction",
}  # fmt: skip
"""Subset -> the name of its files in the official repositories."""
FINISH = "Finish"


class ToolBenchAnswer(NamedTuple):
    """One finished answer."""

    subset: str
    query_id: str
    query: str
    tools: tuple[ToolSpec, ...]  # those that have a schema
    final_answer: str
    steps: tuple[tuple[ToolCall, str], ...]  # every call but Finish, with the text that came back
    finished: bool  # whether the last call is Finish
    method: str  # the pipeline that made the answer

    @property
    def hopeless(self) -> bool:
        """Whether ToolEval calls it unsolved without asking anybody: not finished, empty, or given up."""
        return not self.finished or not self.final_answer or "give_up_and_restart" in self.final_answer


def read_answers(folder: Path, subset: str) -> dict[str, ToolBenchAnswer]:
    """The answers to a subset by query id, sorted by it; empty where there are no files."""
    answers: dict[str, ToolBenchAnswer] = {}
    names = (subset, SUBSETS[subset])
    paths = [path for name in names for path in (folder / f"{name}.json", *sorted((folder / name).glob("*.json")))]
    for path in filter(Path.is_file, paths):
        content = _load(path)
        if not isinstance(content, Mapping):
            raise DataError(f"{path}: a {type(content).__name__} where an object of answers belongs.")
        records = {path.stem.split("_")[0]: content} if "answer" in content else content
        for query_id, record in records.items():
            if query_id in answers:
                raise DataError(f"{path}: query {query_id} is there twice. Keep one answer a query.")
            try:
                answers[query_id] = _answer(subset, query_id, record)
            except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as problem:
                reason = f"query {query_id} is no ToolBench answer ({type(problem).__name__} {problem})"
                raise DataError(f"{path}: {reason}. Convert the answers as ToolEval does.") from None
    return dict(sorted(answers.items()))


def read_ids(path: Path) -> set[tuple[str, str]]:
    """(subset, query id) of the queries that count, from a folder with `SUBSET.json` or one file `{subset: ids}`."""
    content = {file.stem: _load(file) for file in sorted(path.glob("*.json"))} if path.is_dir() else _load(path)
    lists = {names[0]: content[name] for names in SUBSETS.items() for name in reversed(names) if name in content}
    # StableToolBench's ids are the keys of an object.
    found = [(subset, str(one)) for subset, ids in lists.items() if isinstance(ids, Mapping | list) for one in ids]
    if not found:
        problem, remedy = "holds no list of ids of a subset", "Give a folder with G1_instruction.json, or leave it out"
        raise ConfigError.at("solvable", path, problem, remedy)
    return set(found)


def _load(path: Path) -> Any:
    repeated: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # The outermost object is made last. Further inside is what a model wrote, where a repeated key is no error.
        repeated[:] = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=made)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}). Write it again.") from None
    if repeated and isinstance(content, Mapping):
        raise DataError(f"{path}: {repeated[0]} is there twice. Keep one.")
    return content


def _answer(subset: str, query_id: str, record: Mapping[str, Any]) -> ToolBenchAnswer:
    answer, nodes, steps = record["answer"], record["answer"]["answer_details"], []
    while nodes:  # the first node, the first one below it, and so on
        node = nodes if isinstance(nodes, Mapping) else nodes[0]
        steps += [_step(node.get("message"))] if node.get("role") == "tool" else []
        nodes = node.get("next")
    return ToolBenchAnswer(
        subset=subset,
        query_id=query_id,
        query=str(record["query"]),
        tools=tuple(tool for item in record.get("available_tools") or () if (tool := _tool(item)) is not None),
        final_answer=_text(answer.get("final_answer")),
        steps=tuple(step for step in steps if step[0].name != FINISH),
        finished=bool(steps) and steps[-1][0].name == FINISH,
        method=str(answer.get("method", "")),
    )


def _step(message: Any) -> tuple[ToolCall, str]:
    """The call of a node and what came back. A call that cannot be read is one of a nameless tool."""
    for read in (json.loads, ast.literal_eval) if isinstance(message, str) else ():
        try:
            message = read(message)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a model wrote it
            continue
    if not isinstance(message, Mapping):
        return ToolCall(name=""), str(message or "")
    arguments = message.get("arguments")
    call = ToolCall(name=str(message.get("name", "")), arguments={} if arguments in ("", None) else arguments)
    return call, _text(message.get("response"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else dumps(value)


def _tool(item: Any) -> ToolSpec | None:
    """The tool of an entry; None where it has no schema that calls can be held against."""
    match item.get("function", item) if isinstance(item, Mapping) else None:
        case {"name": str(name), "parameters": Mapping() as parameters, **more}:
            properties, required = parameters.get("properties", {}), parameters.get("required") or []
            names = isinstance(required, list) and all(isinstance(one, str) for one in required)
            if isinstance(properties, Mapping) and names:
                return ToolSpec(name=name, description=str(more.get("description") or ""), parameters=parameters)
    return None
