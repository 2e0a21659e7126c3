"""Tools for reversed construction: where they are read from, and how they run.

A source is a file (JSON Schema, OpenAPI, an MCP `tools/list` result, tools or samples of ToolACE, xLAM, BFCL, OpenAI),
`python:package.module` or `python:package.module:Class`, `bfcl:Class` or `bfcl:all`, or `world`. What is read from a
file cannot run: its results are written by the generator, where that is allowed.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ttpa.data.reversed.sandbox import Sandbox
from ttpa.data.reversed.world import ExecutionError, execute, make_world
from ttpa.data.rows import BadRow, decode, file_digest, read_rows
from ttpa.data.source import stable_unit
from ttpa.data.toolace import split_system
from ttpa.data.tools import read_tool
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import ToolCall, ToolSpec

MAX_FILE = 64 * 2**20
MAX_REFS = 12  # references inside each other that an OpenAPI document is followed through
BFCL_VERSION = "2026.3.23"
BFCL_CLASSES = {
    "GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
    "TicketAPI": "ticket_api", "TradingBot": "trading_bot", "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api", "VehicleControlAPI": "vehicle_control",
}  # fmt: skip


class Tool(NamedTuple):
    """A tool; those of a group (a class that keeps a state) are in the same split. `runner` says what runs it: a module
    or class for `Sandbox`, "world", or "" where nothing does.
    """

    spec: ToolSpec
    group: str
    runner: str


class Source(NamedTuple):
    """What an entry of `data.tools` gave: tools, a digest of what it was read from, and tools left out by reason."""

    tools: list[Tool]
    digest: str
    left_out: Counter[str]


def read_source(entry: str) -> Source:
    """The tools of one entry. ConfigError: it names nothing that can be read or run; DataError: no tool is in it."""
    kind, _, rest = entry.partition(":")
    if entry == "world":
        tools = make_world(world_seed=0, train_tools=64, unseen_tools=0).tools
        return Source([Tool(tool, tool.name, "world") for tool in tools], "world 0", Counter())
    if kind == "bfcl":
        return _bfcl(rest)
    if kind == "python":
        return _python(rest)
    return _file(Path(entry).expanduser())


def _python(name: str) -> Source:
    root = name.partition(".")[0].partition(":")[0]
    if root not in os.environ.get("TTPA_ALLOW", "").split(","):
        remedy = f"Code is run from packages that the command line allows: allow=[{root}], see docs/own_parts.md"
        raise ConfigError.at("data.tools", f"python:{name}", "this package is not allowed", remedy)
    sandbox = Sandbox()
    reply = sandbox.ask(10.0, runner=name)
    sandbox.close()
    if "found" not in reply:
        raise ConfigError.at(
            "data.tools", f"python:{name}", f"cannot be imported ({reply['broken']})", "Check the name"
        )
    group, found = name.rpartition(":")[2] if ":" in name else "", reply["found"]
    specs = [read_tool(one) for one in found["tools"]]
    if not specs:
        raise DataError(f"data.tools=python:{name}: no public function is in it.")
    return Source([Tool(spec, group or spec.name, name) for spec in specs], found["sha256"], Counter())


def _bfcl(name: str) -> Source:
    wanted = list(BFCL_CLASSES) if name == "all" else [name]
    if not set(wanted) <= BFCL_CLASSES.keys():
        raise ConfigError.at("data.tools", f"bfcl:{name}", "no such backend", f"Use all, {', '.join(BFCL_CLASSES)}")
    package = find_spec("bfcl_eval")
    if package is None or metadata.version("bfcl-eval") != BFCL_VERSION:
        remedy = f"pip install --no-deps bfcl-eval=={BFCL_VERSION} mpmath"
        raise ConfigError.at("data.tools", f"bfcl:{name}", f"needs the package bfcl-eval {BFCL_VERSION}", remedy)
    folder, tools = Path(str(package.origin)).parent / "data" / "multi_turn_func_doc", list[Tool]()
    for one in wanted:
        module = f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{BFCL_CLASSES[one]}"
        for row in read_rows(str(folder / f"{BFCL_CLASSES[one]}.json")):
            tools.append(Tool(read_tool(row.value), one, f"{module}:{one}"))
    return Source(tools, f"bfcl-eval {BFCL_VERSION}", Counter())


def _file(path: Path) -> Source:
    where = f"data.tools={path}"
    if not path.is_file():
        raise ConfigError.at("data.tools", path, "no such file", "Give a file, python:, bfcl:, or world")
    tools, left_out = list[Tool](), Counter[str]()
    for document in _documents(path):
        try:
            if isinstance(document, BadRow):
                raise document
            items = list(_items(document, path))
        except BadRow as problem:
            left_out[problem.args[0]] += 1
            continue
        for item in items:
            try:
                spec = read_tool(item)
                tools.append(Tool(spec, spec.name, ""))
            except BadRow as problem:
                left_out[problem.args[0]] += 1
    if not tools:
        said = ", ".join(f"{kind} {count}" for kind, count in left_out.items()) or "the file is empty"
        raise DataError(f"{where}: no tool is in it ({said}). docs/own_data.md lists the layouts that are read.")
    return Source(tools, file_digest(path), left_out)


def _documents(path: Path) -> Iterator[Any]:
    """The JSON or YAML document of a file, the elements of its list, or its rows."""
    if path.stat().st_size > MAX_FILE:
        raise DataError(f"data.tools={path}: larger than {MAX_FILE} bytes.")
    whole = read_document(path) if path.suffix in (".json", ".yaml", ".yml") else None
    if isinstance(whole, dict | list):
        yield from whole if isinstance(whole, list) else [whole]
    else:
        yield from (row.value for row in read_rows(str(path)))


def read_document(path: Path) -> Any:
    """The value of a JSON or YAML file; None where it is one of JSON lines. DataError: it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix not in (".yaml", ".yml"):
            with suppress(ValueError):
                return decode(text)
            return None
        return json.loads(json.dumps(yaml.safe_load(text), default=str))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}).") from None


def _items(document: Any, path: Path) -> Iterator[Any]:
    """The tools, as they are written, of one document or row; BadRow where it is of no layout that is known."""
    if not isinstance(document, Mapping):
        raise BadRow("not an object", f"a {type(document).__name__}")
    inner = document.get("result")
    if isinstance(inner, Mapping) and "tools" in inner:  # MCP, with the envelope of JSON-RPC
        document = inner
    if "openapi" in document or "swagger" in document:
        yield from _openapi(document)
    elif "tools" in document or isinstance(document.get("function"), list):
        listed = document.get("tools", document.get("function"))
        try:
            listed = decode(listed) if isinstance(listed, str) else listed
        except ValueError as error:
            raise BadRow("tools not JSON", str(error)) from None
        if not isinstance(listed, list):
            raise BadRow("tools not a list", f"a {type(listed).__name__}")
        yield from listed
    elif isinstance(document.get("system"), str) and "conversations" in document:
        yield from split_system(document["system"])[0]
    elif "name" in document or isinstance(document.get("function"), Mapping):
        yield document
    elif isinstance(document.get("properties"), Mapping):
        name = str(document.get("title") or path.name.partition(".")[0])
        yield {"name": name, "description": document.get("description"), "parameters": dict(document)}
    else:
        raise BadRow("no tool", "neither a tool nor a document or row with tools")


def _openapi(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A tool an operation: its parameters and the properties of its JSON body, references put in."""
    paths = document.get("paths")
    for path, operations in paths.items() if isinstance(paths, Mapping) else ():
        shared = operations.get("parameters") or [] if isinstance(operations, Mapping) else []
        for method in ("get", "put", "post", "delete", "patch"):
            operation = operations.get(method) if isinstance(operations, Mapping) else None
            if not isinstance(operation, Mapping):
                continue
            properties, required = dict[str, Any](), list[str]()
            given = [_inlined(one, document) for one in (*shared, *(operation.get("parameters") or []))]
            for one in (one for one in given if isinstance(one, dict) and one.get("name")):
                schema = one.get("schema") or {
                    key: one[key] for key in ("type", "enum", "items", "default") if key in one
                }
                if one.get("in") == "body":
                    _take_body(schema, bool(one.get("required")), properties, required)
                elif one.get("in") in ("path", "query"):
                    said = {"description": one["description"]} if one.get("description") else {}
                    properties[one["name"]] = {**schema, **said}
                    required += [one["name"]] * bool(one.get("required"))
            body = _inlined(operation.get("requestBody"), document)
            if isinstance(body, dict):
                content = body.get("content") or {}
                schema = next((part.get("schema") for kind, part in content.items() if "json" in kind), None)
                _take_body(schema, bool(body.get("required")), properties, required)
            name = operation.get("operationId") or re.sub(r"\W+", "_", f"{method}{path}").strip("_")
            about = operation.get("description") or operation.get("summary") or ""
            parameters = {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}
            yield {"name": name, "description": about, "parameters": parameters}


def _take_body(schema: Any, needed: bool, properties: dict[str, Any], required: list[str]) -> None:
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        properties |= schema["properties"]
        required += [key for key in schema.get("required") or [] if needed and isinstance(key, str)]
    elif isinstance(schema, dict):
        properties["body"] = schema
        required += ["body"] * needed


def _inlined(node: Any, document: Mapping[str, Any], inside: tuple[str, ...] = ()) -> Any:
    """A part of a document with local references replaced by what they lead to; {} where one leads into itself."""
    if isinstance(node, list):
        return [_inlined(one, document, inside) for one in node]
    if not isinstance(node, Mapping):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str):
        found: Any = document
        for key in reference.removeprefix("#/").split("/"):
            found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if found is None or reference in inside or len(inside) >= MAX_REFS:
            return {}
        return _inlined(found, document, (*inside, reference))
    return {key: _inlined(value, document, inside) for key, value in node.items()}


def unique(sources: Sequence[Source]) -> tuple[list[Tool], Counter[str]]:
    """All tools, in order, the first of a name; and how many were left out, by reason."""
    tools, left_out = dict[str, Tool](), sum((source.left_out for source in sources), Counter[str]())
    for tool in (tool for source in sources for tool in source.tools):
        if tools.setdefault(tool.spec.name, tool) is not tool:
            left_out["name taken" if tools[tool.spec.name].spec != tool.spec else "repeated"] += 1
    return list(tools.values()), left_out


def split_tools(tools: Sequence[Tool], seed: int, validation: float, test: float) -> dict[str, list[Tool]]:
    """The tools of each split. Groups are ranked by a hash; a share above 0 takes at least one group."""
    groups = sorted({tool.group for tool in tools}, key=lambda group: stable_unit("tool-split", seed, group))
    counts = [max(1, round(share * len(groups))) if share else 0 for share in (test, validation)]
    place = dict.fromkeys(groups, "train")
    place |= dict.fromkeys(groups[: counts[0]], "test")
    place |= dict.fromkeys(groups[counts[0] : sum(counts)], "validation")
    return {split: [tool for tool in tools if place[tool.group] == split] for split in ("train", "validation", "test")}


class Result(NamedTuple):
    """What a call gave; `written`: by the generator, since the tool cannot run."""

    text: str
    failed: bool = False
    written: bool = False


class Limits(NamedTuple):
    """Of one call: seconds, megabytes of its process, characters of its result."""

    seconds: float
    megabytes: int
    chars: int


class Session:
    """The tools of one dialogue, with their states. Equal calls in equal order give equal results, or `replays` says
    that they do not.
    """

    def __init__(self, tools: Sequence[Tool], states: Mapping[str, Any], limits: Limits, sandbox: Sandbox) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self._specs = [tool.spec for tool in tools]
        self._states, self._limits, self._sandbox = states, limits, sandbox
        self._made: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}

    def runs(self, name: str) -> bool:
        """Whether something runs the tool."""
        return bool(self._tools[name].runner)

    def run(self, call: ToolCall) -> Result:
        """The result of a call of a tool that runs; what it has changed stays."""
        runner = self._tools[call.name].runner
        if runner == "world":
            try:
                return Result(dumps(execute(call, self._specs)))
            except ExecutionError as error:
                return Result(str(error), True)
        made = self._made.setdefault(runner, [])
        made.append((call.name, call.arguments))
        result = self._ask(runner, made, len(made) - 1)[0]
        if result.failed:  # it is told, and does not count
            made.pop()
        return result

    def replays(self, calls: Sequence[ToolCall], results: Sequence[Result]) -> bool:
        """Whether the calls give these results again, from the beginning; those of results that were written count."""
        made: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        recorded: dict[str, list[str]] = {}
        for call, result in zip(calls, results, strict=True):
            runner = self._tools[call.name].runner
            if runner == "world":
                if dumps(execute(call, self._specs)) != result.text:
                    return False
            elif not result.written:
                made.setdefault(runner, []).append((call.name, call.arguments))
                recorded.setdefault(runner, []).append(result.text)
        return all([one.text for one in self._ask(runner, made[runner], 0)] == recorded[runner] for runner in made)

    def _ask(self, runner: str, made: Sequence[Any], first: int) -> list[Result]:
        limits, group = self._limits, runner.rpartition(":")[2]
        reply = self._sandbox.ask(
            limits.seconds * (len(made) - first), runner=runner, state=self._states.get(group), calls=made, first=first,
            memory=limits.megabytes * 2**20, bytes=(limits.chars + 1000) * 40 * len(made),
        )  # fmt: skip
        if "found" in reply:
            return [Result(self._cut(text), failed) for text, failed in reply["found"]]
        said = f"limit of {reply['limit']} reached" if "limit" in reply else f"cannot run: {reply['broken']}"
        return [Result(said, True)] * (len(made) - first)

    def _cut(self, text: str) -> str:
        longest = self._limits.chars
        return text if len(text) <= longest else f"{text[:longest]} [{len(text) - longest} characters cut]"
