"""What data sets write as text inside a turn: thoughts, calls in tags, results in tags, tools in the system's text."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ttpa.calls.literals import Malformed, Scanner
from ttpa.data.rows import BadRow, decode, need, need_object
from ttpa.data.tools import name_of
from ttpa.records import ToolCall

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL | re.IGNORECASE)
_CALLS = re.compile(
    r"<(tool_call|TOOLCALL)>(.*?)</\1>|<functioncall>(.*?)(?:<\|endoftext\|>|\Z)", re.DOTALL
)  # Hermes, rlla; When2Call; glaive
_RESPONSE = re.compile(r"<response>(.*?)</response>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_QUOTED = re.compile(r"""["']arguments["']\s*:\s*'(.*)'\s*\}\s*\Z""", re.DOTALL)  # glaive quotes an object like text
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL | re.IGNORECASE)
_HERMES = re.compile(
    r"(?:You are a function calling AI model\.\s*)?(?:# Tools\s*)?You (?:are provided with|may call|have access to)"
    r".{0,500}?<tools>.*</tools>(?:.*</tool_call>)?",
    re.DOTALL | re.IGNORECASE,
)
_GLAIVE = re.compile(r".*with access to the following functions\. Use them if required -\s*")


def json_values(text: str, what: str) -> list[Any]:
    """The JSON values (or Python's, with single quotes) that a text holds one after the other, lists opened."""
    found, at = list[Any](), 0
    while at < len(text):
        if text[at].isspace() or text[at] == ",":
            at += 1
            continue
        try:
            value, at = decode(text, at)
        except ValueError as error:
            scan = Scanner(text, python=True)
            scan.pos = at
            try:
                value, at = scan.value(), scan.pos
            except Malformed:
                raise BadRow(f"{what} not JSON", f"{text[at : at + 60]!r} is not JSON ({error})") from None
        found += value if isinstance(value, list) else [value]
    return found


def read_call(item: Any, number: int) -> ToolCall:
    """A call as an object with a name and arguments: an object, JSON text of one, or nothing."""
    inner = item.get("function") if isinstance(item, dict) else None
    item = inner if isinstance(inner, dict) else item
    name = name_of(item, f"calls of turn {number}")
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = decode(arguments)
        except ValueError as error:
            raise BadRow("arguments not JSON", f"turn {number}, call of {name!r}: {error}") from None
    return ToolCall(name=name, arguments=need_object(arguments or {}, "arguments", f"turn {number}: {name!r} has"))


def _read_glaive(text: str, number: int) -> list[ToolCall]:
    quoted = _QUOTED.search(text)
    if quoted:
        text = f'{text[: quoted.start()]}"arguments": {json.dumps(quoted[1].replace(chr(92) + chr(39), chr(39)))}}}'
    return [read_call(item, number) for item in json_values(text, "call")]


def split_thought(text: str) -> tuple[str, str]:
    """The thought that opens a text, and what follows it."""
    found = _THOUGHT.match(text)
    return (found[1].strip(), text[found.end() :]) if found else ("", text)


def split_turn(text: str, number: int) -> tuple[str, str, tuple[ToolCall, ...]]:
    """Thought, text and calls of an assistant's text; text before, between and behind calls is joined. BadRow: what
    stands in the tags of a call is no call.
    """
    thought, rest = split_thought(text)
    calls, said, at = list[ToolCall](), list[str](), 0
    for hit in _CALLS.finditer(rest):
        said.append(rest[at : hit.start()])
        if hit[3] is not None:
            calls += _read_glaive(hit[3].strip(), number)
        else:
            calls += [read_call(item, number) for item in json_values(hit[2].strip(), "call")]
        at = hit.end()
    if not calls:
        need("<tool_call>" not in rest, "call not parsable", f"turn {number}: <tool_call> is opened and not closed")
        return thought, _replied(rest), ()
    said.append(rest[at:])
    return thought, _replied("\n".join(filter(None, (part.strip() for part in said)))), tuple(calls)


def _replied(text: str) -> str:
    found = _RESPONSE.fullmatch(text.strip())
    return found[1].strip() if found else text


def split_results(text: str) -> list[str]:
    """The results in a turn of the tool, one in each pair of tags; without tags the text is one."""
    return [one.strip() for one in _RESULT.findall(text)] or [text]


def tool_list(value: Any) -> list[Any]:
    """Tools as a list, JSON text of one, or a list of JSON texts; nothing is no tool."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return json_values(value, "tools")
    if isinstance(value, Mapping):
        return [value]
    need(isinstance(value, list), "tools not a list", f"the tools are a {type(value).__name__}")
    return [tool for item in value for tool in (json_values(item, "tools") if isinstance(item, str) else [item])]


def split_system(text: str) -> tuple[list[Any], str]:
    """Tools that a system text lists between <tools> tags (Hermes) or behind glaive's sentence, and what is left of it
    without them and without the instruction to write calls, which prompts give themselves.
    """
    text = text.removeprefix("SYSTEM:").strip()
    bodies = [body for body in _TOOLS.findall(text) if body.strip()]
    if bodies:
        rest = _HERMES.sub("", text)
        rest = rest if "<tools>" not in rest else re.sub(r"<tools>.*</tools>", "", rest, flags=re.DOTALL)
        return [tool for body in bodies for tool in json_values(body, "tools")], rest.strip()
    if found := _GLAIVE.match(text):
        return json_values(text[found.end() :], "tools"), ""
    return [], text
