"""Runs the calls of the multi-turn categories on BFCL's backends, in a process of its own with limits.

Executor, backends and comparison are the package's. Its executor calls `eval` on what a model writes; that name is
replaced there by a function that reads a call as a syntax tree and makes it only where it is a public method of the
question's classes. The process forks for each request, so that nothing one run leaves behind reaches the next.
"""

import ast
import atexit
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TextIO, get_args

from ttpa.benchmarks.bfcl.decode_python import Undecodable, evaluate, read_python
from ttpa.errors import DataError

SECONDS = 10.0
"""Longest run of one case. Its calls take milliseconds; those meant to go on for ever are ended."""
MEMORY = 2**30
"""Most memory of such a run, in bytes, where the system can limit it."""
MAX_CHARS_OF_RESULTS = 10_000_000
"""Results of one step that are longer count as too much memory: they would have to be handed back."""

Backend = Literal["GorillaFileSystem", "MathAPI", "MessageAPI", "TicketAPI", "TradingBot", "TravelAPI", "TwitterAPI",
                  "VehicleControlAPI"]  # fmt: skip
"""Those of the multi-turn categories; the package has others, which use the network or files."""


def read_step(result: Any, function_calling: bool | None = None) -> list[str]:
    """The calls of one step, a text or a list of `{name: json}`, in the official text form; none ends a turn.

    Example:
        >>> read_step("[cd(folder='a'), sort('dropped')]"), read_step([{"cd": '{"folder": "a"}'}]), read_step("Done.")
        (["cd(folder='a')", 'sort()'], ["cd(folder='a')"], [])
    """
    try:
        if not function_calling and (function_calling is not None or isinstance(result, str)):
            return [f"{name}({_given(given)})" for name, given in read_python(result)]
        items = [result] if isinstance(result, dict) else result if isinstance(result, list) else ()
        calls = [(name, json.loads(given) if isinstance(given, str) else given)
                 for item in items for name, given in item.items()]  # fmt: skip
        return [f"{name}({','.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]
    except (Undecodable, AttributeError, ValueError, RecursionError):  # also a number too long to be written
        return []


def _given(given: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}={_source(value)}" for key, value in given.items())


def _source(value: Any) -> str:
    """A value as the official decoder writes it: a dict of dicts counts as a call, an empty one cannot be written."""
    if not isinstance(value, dict):
        return repr(value)
    if not all(isinstance(inner, dict) for inner in value.values()):
        return "{" + ", ".join(f"'{key}': {_source(inner)}" for key, inner in value.items()) + "}"
    if not value:
        raise ValueError("an empty dict is taken for a call without a name")
    name, given = next(iter(value.items()))
    return f"{name}({_given(given)})"


# --- asking the process ----------------------------------------------------------------------------------------------

_PROCESSES: dict[int, subprocess.Popen[str]] = {}
"""Process id of the asking process -> the process it asks: a fork must not use its parent's."""


def execute(case: Mapping[str, Any], steps: Sequence[Sequence[str]]) -> list[str] | None:
    """Results of the last of several steps, all run in order on fresh backends; None where the run had to be ended."""
    results: list[str] | None = _ask({"case": case, "steps": steps}).get("results")
    return results


def compare(
    case: Mapping[str, Any], turns: Sequence[Sequence[Sequence[str]]], truth: Sequence[Sequence[str]]
) -> dict[str, Any] | None:
    """The official checks of a whole conversation against the expected calls of every turn; None where it was ended.

    Gives `error_type` (None when valid), the `turn`, counted from 0, and `what` differs or is missing.
    """
    return _ask({"case": case, "turns": turns, "truth": truth}) or None


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    line, case_id, answer = json.dumps({**request, "seconds": SECONDS}), request["case"]["id"], ""
    for _ in range(2):  # a process that something else has ended is started again
        try:
            process = _PROCESSES.get(os.getpid()) or _start()
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError):
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
                answer = process.stdout.readline()
        finally:
            if not answer:  # interrupted, its answer would be taken for that to the next request
                _stop()
        if answer:
            break
    reply: dict[str, Any] = json.loads(answer or '{"failed": "the process ended twice"}')
    if "failed" in reply:
        raise DataError(f"{case_id}: BFCL's backends cannot be run ({reply['failed']}). Take the file as published.")
    return reply


def _start() -> subprocess.Popen[str]:
    # The path is handed on: this package need not be installed, and what runs it may have added to the path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command, pipe = [sys.executable, "-c", f"from {__name__} import serve; serve({MEMORY})"], subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, encoding="utf-8")
    if not _PROCESSES:
        atexit.register(_stop)
    _PROCESSES[os.getpid()] = process
    return process


def _stop() -> None:
    process = _PROCESSES.pop(os.getpid(), None)
    if process is not None:
        with suppress(OSError), process:
            process.kill()


# --- the process -----------------------------------------------------------------------------------------------------


def serve(memory: int) -> None:
    """Answers requests, one JSON line each, until the input ends; `{}` where a limit was reached."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a backend might print is no answer
    warnings.simplefilter("ignore")  # of the model's odd escapes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks is interrupted, and ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(ImportError, ValueError, OSError):  # a system without this limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils  # noqa: F401

    for name in get_args(Backend):  # before the fork, so that no run has to
        importlib.import_module(CLASS_FILE_PATH_MAPPING[name])
    multi_turn_utils.eval = partial(_call_method, vars(multi_turn_utils))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(json.loads(line), out)
        if os.waitpid(child, 0)[1]:
            print("{}", file=out, flush=True)


def _answer(request: Mapping[str, Any], out: TextIO) -> None:
    """Writes the reply to one request and ends the process; it ends without one when a limit is reached."""
    try:
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])  # a process that takes no notice of the signal ends
        try:
            reply = json.dumps(_run(request))
        except MemoryError:
            raise
        except Exception as error:
            reply = json.dumps({"failed": f"{type(error).__name__}: {error}"})
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=out, flush=True)
        os._exit(0)
    finally:
        os._exit(1)


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as official

    case, execute_calls, turns = request["case"], official.execute_multi_turn_func_call, 0
    config, names, category = case["initial_config"], case["classes"], case["id"].rsplit("_", 1)[0]
    results: list[str] = []
    for step in ((), *request.get("steps", ())):  # the empty one: a question that cannot be loaded shows at once
        results, _ = execute_calls(list(step), config, names, "ttpa", case["id"], "long_context" in category)
    if "steps" in request:
        if sum(map(len, results)) > MAX_CHARS_OF_RESULTS:
            raise MemoryError
        return {"results": results}

    def counted(**options: Any) -> Any:
        nonlocal turns
        turns += options["model_name"].endswith("_ground_truth")
        return execute_calls(**options)

    official.execute_multi_turn_func_call = counted
    entry = {"id": case["id"], "initial_config": config, "involved_classes": names}
    try:
        found = official.multi_turn_checker(request["turns"], request["truth"], entry, category, "ttpa")
    except MemoryError:
        raise
    except Exception:  # such as a folder that was copied into itself: what cannot be compared is not equal
        found = {"valid": False, "error_type": "multi_turn:instance_state_mismatch"}
    details = found.get("details", {})
    what = [str(one)[:200] for one in (*details.get("differences", ()), *details.get("missing_items", ()))]
    return {"error_type": found.get("error_type"), "turn": turns - 1, "what": what[:3]}


def _call_method(instances: Mapping[str, Any], text: str) -> Any:
    """Stands in for `eval` in the package's executor: the value of a call, or the exception that `eval` would raise.

    Only public methods of the `instances`, by the names that the executor gives them, and literals have a meaning.
    """

    def method(function: ast.expr) -> Callable[..., Any]:
        match function:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner.endswith("_instance"):
                found = None if name.startswith("_") else getattr(instances.get(owner), name, None)
                if not inspect.ismethod(found):
                    raise AttributeError(f"'{type(instances.get(owner)).__name__}' object has no attribute '{name}'")
                return found
            case ast.Attribute(value=owner, attr=name):
                method(owner)  # of a dotted name, the first part is unknown
                raise AttributeError(f"a method has no attribute '{name}'")
            case ast.Name(id=name):
                raise NameError(f"name '{name}' is not defined")
            case ast.Constant(value=value):
                raise TypeError(f"'{type(value).__name__}' object is not callable")
        raise Undecodable("a call of something that is no name")

    def call(node: ast.Call, value: Callable[[ast.expr], Any]) -> Any:
        called, given = method(node.func), list(map(value, node.args))
        return called(*given, **{str(one.arg): value(one.value) for one in node.keywords})

    return evaluate(ast.parse(text.lstrip(" \t"), "<string>", "eval").body, call)
