"""Runs a user's Python functions, and methods of classes that keep a state, in a process of its own with limits.

The process forks for each request, so that nothing is left behind: a class is made anew and its earlier calls are
repeated. Arguments are JSON and go to the function as they are; no text is evaluated.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

START_SECONDS = 60.0  # for the import of the module, beside the limit of the calls


class Sandbox:
    """The process, started when it is first asked. `hidden` are environment variables that it does not get."""

    def __init__(self, hidden: tuple[str, ...] = ()) -> None:
        self._hidden = hidden
        self._process: Any = None

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """The reply to one request: `found`, or `limit` (time, memory or output), or `broken` with a reason."""
        if self._process is None:
            env = {key: value for key, value in os.environ.items() if key not in self._hidden}
            env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"], env=env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        reply, deadline = b"", time.monotonic() + seconds + START_SECONDS
        with suppress(OSError):
            self._process.stdin.write(json.dumps({**request, "seconds": seconds}).encode() + b"\n")
            self._process.stdin.flush()
            out = self._process.stdout.fileno()
            while not reply.endswith(b"\n") and select.select([out], [], [], max(0, deadline - time.monotonic()))[0]:
                if not (piece := os.read(out, 1 << 16)):
                    break
                reply += piece
        if reply.endswith(b"\n"):
            return dict(json.loads(reply))
        self.close()
        return {"broken": "the process ended or did not answer"}

    def close(self) -> None:
        """Ends the process and what it started; it starts again when it is asked again."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


def serve() -> None:
    """Answers requests, one JSON line each, until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a function prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            owner = _load(request["runner"])
            reply = _limited(request, owner, out) if "calls" in request else {"found": _described(owner)}
        except Exception as error:  # of the import, which is the user's code
            reply = {"broken": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=out, flush=True)


def _load(runner: str) -> Any:
    """The module, or the class of a module (`package.module:Class`)."""
    module, _, name = runner.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def _limited(request: Mapping[str, Any], owner: Any, out: typing.TextIO) -> dict[str, Any]:
    """The reply of a child process that is ended at a limit, together with what it started."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            out.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _answer(request, owner, write_end)
        finally:
            os._exit(1)
    with suppress(OSError):
        os.setpgid(child, child)
    os.close(write_end)
    data, limit, deadline = b"", "", time.monotonic() + request["seconds"]
    while not limit and not data.endswith(b"\n"):
        if not select.select([read_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            limit = "time"
        elif piece := os.read(read_end, 1 << 16):
            data += piece
            limit = "output" if len(data) > request["bytes"] else ""
        else:
            limit = "memory"  # it ended without a word
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read_end)
    return {"limit": limit} if limit else dict(json.loads(data))


def _answer(request: Mapping[str, Any], owner: Any, write_end: int) -> None:
    """Makes the calls and writes [text, whether it failed] of each from number `first` on."""
    memory, seconds = request["memory"], int(request["seconds"]) + 1
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a system without this limit
            resource.setrlimit(kind, (most, most))
    try:
        keeps_state, found = isinstance(owner, type), []
        target = _instance(owner, request["state"]) if keeps_state else owner
        for number, (name, arguments) in enumerate(request["calls"]):
            if keeps_state or number >= request["first"]:
                found.append(_result(dict(_functions(owner)).get(name), target, name, arguments))
        reply = json.dumps({"found": found[request["first"] if keeps_state else 0 :]})
    except MemoryError:
        reply = json.dumps({"limit": "memory"})
    except Exception as error:
        reply = json.dumps({"broken": f"{type(error).__name__}: {error}"})
    data = reply.encode() + b"\n"
    while data:
        data = data[os.write(write_end, data) :]
    os._exit(0)


def _instance(owner: type, state: Any) -> Any:
    """An object of a class in a state: by its method `_load_scenario`, as BFCL's have it, or as keyword arguments."""
    if hasattr(owner, "_load_scenario"):
        made = owner()
        made._load_scenario(state or {})
        return made
    return owner(**(state or {}))


def _result(function: Any, target: Any, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    if function is None:
        return f"There is no {name}.", True
    try:
        value = getattr(target, name)(**arguments)
    except MemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}", True
    told = value[0] if isinstance(value, list) and len(value) == 1 else value
    failed = isinstance(told, dict) and bool(told.get("error"))
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False), failed


def _functions(owner: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions of a module (those of `__all__`, else those that it defines), public methods of a class."""
    if isinstance(owner, type):
        found = inspect.getmembers(owner, inspect.isfunction)
    else:
        listed = getattr(owner, "__all__", None)
        named = inspect.getmembers(owner, inspect.isfunction)
        found = [(name, one) for name, one in named if (name in listed if listed else one.__module__ == owner.__name__)]
    return ((name, function) for name, function in found if not name.startswith("_"))


def _described(owner: Any) -> dict[str, Any]:
    """The tools of a module or class, and the SHA-256 of its file."""
    file = inspect.getsourcefile(owner)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    return {"sha256": digest, "tools": [_tool(name, function) for name, function in _functions(owner)]}


_PARAMETER = re.compile(r"^\s*(?::param\s+(?:\S+\s+)?)?\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)$")
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Return|Raises|Yields|Example|Examples)\s*:?\s*$|^\s*:")


def _tool(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """A tool from signature and docstring (Google's sections or `:param x:`)."""
    from pydantic import TypeAdapter

    lines = (inspect.getdoc(function) or "").splitlines()
    at = next((number for number, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    said = {hit[1]: hit[2].strip() for line in lines[at:] if (hit := _PARAMETER.match(line))}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        hints = {}
    properties: dict[str, Any] = {}
    required = []
    for key, parameter in inspect.signature(function).parameters.items():
        if key == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            schema = dict(TypeAdapter(hints[key]).json_schema()) if key in hints else {}
        except Exception:  # a type that JSON does not have
            schema = {}
        if parameter.default is parameter.empty:
            required.append(key)
        else:
            with suppress(TypeError, ValueError):
                schema["default"] = json.loads(json.dumps(parameter.default))
        properties[key] = schema | ({"description": said[key]} if key in said else {})
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": " ".join(" ".join(lines[:at]).split()), "parameters": parameters}
