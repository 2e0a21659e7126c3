"""Runs the calls of the multi-turn categories on BFCL's backends, in a process of its own with limits.

The package's executor calls `eval` on what a model writes; here only calls of public methods are made. The process
forks for each request, so that nothing is left behind.
"""

import ast
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Literal, TextIO, get_args

from ttpa.benchmarks.bfcl.decode_python import Undecodable, read_python
from ttpa.errors import DataError

SECONDS = 10.0  # longest run of one case, whose calls take milliseconds; those meant to go on for ever are ended
MEMORY = 2**30  # most bytes of such a run, where the system can limit them
MAX_CHARS_OF_RESULTS = 10_000_000  # more in one step count as too much memory: they would have to be handed back

Backend = Literal["GorillaFileSystem", "MathAPI", "MessageAPI", "TicketAPI", "TradingBot", "TravelAPI", "TwitterAPI",
                  "VehicleControlAPI"]  # fmt: skip
"""Those of the multi-turn categories; the package has others, which use the network or files."""


def read_step(result: Any, function_calling: bool | None = None) -> list[str]:
    """The calls of one step, a text or a list of `{name: json}`, in the official text form; none ends a turn."""
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


def run(case: Mapping[str, Any], **request: Any) -> Any:
    """Runs calls on fresh backends; None where that had to be ended.

    With `steps`, a list of lists of calls, the results of the last step. With `turns`, a list of steps each, and
    `truth`, the expected calls of every turn: the official checks of the conversation as `error_type` (None when
    valid), the `turn`, counted from 0, and `what` differs or is missing.
    """
    line, answer = json.dumps({**request, "case": case, "seconds": SECONDS}), ""
    for _ in range(2):  # a process that something else has ended is started again
        process = _process(os.getpid())
        try:
            with suppress(OSError):
                print(line, file=process.stdin, flush=True)
                answer = process.stdout.readline() if process.stdout else ""
        finally:
            if not answer:  # interrupted, its answer would be taken for that to the next request
                process.kill()
                _process.cache_clear()
        if answer:
            break
    reply = json.loads(answer or '{"failed": "the process ended twice"}')
    if "failed" in reply:
        problem = f"BFCL's backends cannot be run ({reply['failed']})"
        raise DataError(f"{case['id']}: {problem}. Take the file as published.")
    return reply.get("found")


@cache
def _process(asking: int) -> subprocess.Popen[str]:
    """The process that a process, by its id, asks: a fork must not use its parent's. It ends with its input."""
    # The path is handed on: this package need not be installed, and what runs it may have added to the path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command, pipe = [sys.executable, "-c", f"from {__name__} import serve; serve()"], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, encoding="utf-8")


def serve() -> None:
    """Answers requests, one JSON line each, until the input ends; `{}` where a limit was reached."""
    import resource

    from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils  # noqa: F401

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a backend might print is no answer
    warnings.simplefilter("ignore")  # of the model's odd escapes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks is interrupted, and ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(ValueError, OSError):  # a system without this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Before the fork: the imports, and the names of methods. The executor asks for no more, but in every step.
    classes = [getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name) for name in get_args(Backend)]
    names = {backend: inspect.getmembers(backend, inspect.isfunction) for backend in classes}
    multi_turn_utils.inspect = SimpleNamespace(
        getmembers=lambda backend, predicate: names[type(backend)], ismethod=None
    )
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
            reply = json.dumps({"found": _found(request)})
        except Exception as error:
            failed = {} if isinstance(error, MemoryError) else {"failed": f"{type(error).__name__}: {error}"}
            reply = json.dumps(failed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=out, flush=True)
        os._exit(0)
    finally:
        os._exit(1)


def _found(request: Mapping[str, Any]) -> Any:
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as official

    case, execute_calls, turns = request["case"], official.execute_multi_turn_func_call, 0
    config, names, category = case["initial_config"], case["classes"], case["id"].rsplit("_", 1)[0]
    run = partial(execute_calls, initial_config=config, involved_classes=names, model_name="ttpa",
                  test_entry_id=case["id"], long_context="long_context" in category)  # fmt: skip
    if "steps" in request:
        results = [run(step)[0] for step in request["steps"]][-1]
        if sum(map(len, results)) > MAX_CHARS_OF_RESULTS:
            raise MemoryError
        return results

    def counted(**options: Any) -> Any:
        nonlocal turns
        turns += options["model_name"].endswith("_ground_truth")
        return execute_calls(**options)

    official.execute_multi_turn_func_call = counted
    entry = {"id": case["id"], "initial_config": config, "involved_classes": names}
    try:
        found = official.multi_turn_checker(request["turns"], request["truth"], entry, category, "ttpa")
    except Exception as error:  # such as a folder that was copied into itself: what cannot be compared is not equal
        if isinstance(error, MemoryError):
            raise
        run([])  # a question that cannot be loaded is an error
        found = {"valid": False, "error_type": "multi_turn:instance_state_mismatch"}
    details = found.get("details", {})
    what = [str(one)[:200] for one in (*details.get("differences", ()), *details.get("missing_items", ()))]
    return {"error_type": found.get("error_type"), "turn": turns - 1, "what": what[:3]}


class _Calls(ast.NodeTransformer):
    """Makes the calls in an expression and puts their results in their place. Only literals have a meaning, and public
    methods of the `instances`, by the names that the executor gives them.
    """

    def __init__(self, instances: Mapping[str, Any]) -> None:
        self.instances = instances

    def value(self, node: ast.expr) -> Any:
        return ast.literal_eval(self.visit(node))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        called, given = self.value(node.func), [self.value(one) for one in node.args]
        return ast.Constant(called(*given, **{str(one.arg): self.value(one.value) for one in node.keywords}))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        owner = self.instances.get(getattr(node.value, "id", ""))
        method = None if node.attr.startswith("_") else getattr(owner, node.attr, None)
        if inspect.ismethod(method):
            return ast.Constant(method)  # type: ignore[arg-type]
        if owner is None:
            self.visit(node.value)  # of a dotted name, the first part is unknown
        raise AttributeError(f"'{type(owner).__name__}' object has no attribute '{node.attr}'")

    def visit_Name(self, node: ast.Name) -> ast.expr:
        raise NameError(f"name '{node.id}' is not defined")


def _call_method(names: Mapping[str, Any], text: str) -> Any:
    """Stands in for `eval` in the package's executor: the value of a call, or the exception that `eval` would raise."""
    instances = {name: value for name, value in names.items() if name.endswith("_instance")}
    return _Calls(instances).value(ast.parse(text.lstrip(" \t"), "<string>", "eval").body)
