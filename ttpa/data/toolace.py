"""`data=toolace`: ToolACE (arXiv 2409.00920, Team-ACE/ToolACE, Apache-2.0) and sets of its layout (docs/own_data.md).

Every call turn `[Market Trends API(type="X", n=1)]` becomes a sample whose messages are the turns before it. The
published instruction and functions are taken out of the system text, since prompts render tools themselves.
"""

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ttpa.calls.literals import Malformed, Scanner
from ttpa.calls.syntaxes import ParseError, Reader, get_syntax
from ttpa.data.published import Converted, FileSource, content_key, unique_tools
from ttpa.data.rows import BadRow, decode, need
from ttpa.data.tools import read_tools, unwrapped
from ttpa.options import option
from ttpa.records import Message, Sample, ToolCall, ToolSpec

MAX_REPAIRS = 32  # arguments mended in one turn at most: each costs a copy of what is behind it
MAX_STARTS = 8  # places in a system text without the marker where a list of functions is looked for
MAX_WRITTEN = 5_000_000  # characters that the samples of a row may come to, each with all turns before it
_SYNTAX = get_syntax("python")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ROLES = ("user", "assistant", "tool")
MARKER_SENTENCE = "Here is a list of functions in JSON format that you can invoke:"
_MARKER = re.compile(r"functions? in JSON format that you can invoke:?", re.IGNORECASE)
_LIST_START = re.compile(r"\[\s*[{\]]")
# A Markdown link or picture at the start of a reply: "[text](address)". A call list closes its bracket last.
_LINK = re.compile(r"\[[^\[\]]*\]\(")

# The published instruction, sentence by sentence: a row that lacks some of them or adds others is cleaned all the same.
_BOILERPLATE = [
    re.compile(r"\s+".join(map(re.escape, sentence.split())), re.IGNORECASE)
    for sentence in """You are an expert in composing functions.
You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out.
If none of the functions can be used, point it out.
If the given question lacks the parameters required by the function, also point it out.
You should only return the function call in tools call sections.
Here is a list of functions in JSON format that you can invoke:
Should you decide to return the function call(s).
Put it in the format of [func1(params_name=params_value, params_name2=params_value2...), func2(params)]
NO other text MUST be included.""".splitlines()
]


def split_system(text: str) -> tuple[list[Any], str]:
    """The function list of a system text (the JSON array behind the published marker or, without a marker, the first
    array of named objects), and what is left of the text without it and the published instruction. BadRow: there is no
    list.
    """
    marker = _MARKER.search(text)
    problem = "the system text holds no JSON list of functions"
    for start in islice(_LIST_START.finditer(text, marker.end() if marker else 0), MAX_STARTS):
        try:
            # Decoding matches the brackets, those inside strings included.
            listed, end = decode(text, start.start())
        except ValueError as error:
            listed, problem = None, f"the list of functions is not JSON ({error})"
        names = [item.get("name") if isinstance(item, dict) else None for item in map(unwrapped, listed or ())]
        if listed is not None and (listed or marker) and all(name and isinstance(name, str) for name in names):
            return listed, _custom_text(text[: start.start()], text[end:])
        if marker:  # a later array would be a part of this broken one, not the list of functions
            break
    raise BadRow("no tool list", problem)


def _custom_text(before: str, after: str) -> str:
    text = before + "\n" + re.sub(r"^\s*\.", "", after)  # the published text goes on with ". \n" after the list
    for sentence in _BOILERPLATE:
        text = sentence.sub("", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def looks_like_call(text: str) -> bool:
    """Whether an assistant turn is meant as calls: a bracket opens it, it has a parenthesis and is no Markdown link."""
    text = text.strip()
    return text.startswith("[") and "(" in text and not _LINK.match(text)


def _calls(text: str, number: int, tools: Mapping[str, ToolSpec], repair: bool) -> tuple[tuple[ToolCall, ...], bool]:
    """The calls of a turn, none when the turn is text; and whether they had to be repaired."""
    if not looks_like_call(text):
        return (), False
    parsed = _SYNTAX.parse(text)
    mended = parse_split(text) if repair and isinstance(parsed, ParseError) else None
    calls = mended or parsed
    if isinstance(calls, ParseError) or not calls:
        fault = f": {calls}" if calls else " opens like a call list and holds no call"
        raise BadRow("call not parsable", f"turn {number}{fault}")
    for name in (call.name for call in calls):
        need(name in tools, "tool not in list", f"turn {number} calls {name!r}, none of the row's {len(tools)} tools")
    return calls, mended is not None


def parse_split(text: str) -> tuple[ToolCall, ...] | None:
    r"""The calls of a turn whose nested arguments a conversion of the published text split at commas. An argument that
    is a JSON container was cut at its first comma, and what stood before the cut was quoted like text:

        published  [plan(details={"id": "P1", "drugs": ["A", "B"]}, season="Winter")]
        damaged    [plan(details="{\"id\": \"P1\"", "drugs": ["A", "B"]}, season="Winter")]

    Quoted text and rest must read as one JSON value, which replaces both. Nothing is guessed: no bracket, quote or
    comma is added. None when something else is wrong. The last argument of a call has lost its rest and is left.
    """
    reader = _Mending(text, python=True)
    try:
        _SYNTAX.read(reader)
    except Malformed:
        return None
    return tuple(reader.calls)


class _Mending(Reader):
    """Reads on behind a split argument, once through the text."""

    repairs = 0

    def positional(self, arguments: dict[str, Any]) -> None:
        """Joins what stands where a key should with the argument before it, if that is a split one."""
        start, end = next(((one.start, one.end) for one in self.spans[-1:] if one.kind == "value"), (0, 0))
        split = self.text.startswith(('"{', '"['), start) and self.text.startswith(", ", end) and self.pos == end + 2
        if split and self.repairs < MAX_REPAIRS:
            self.repairs += 1
            head = Scanner(self.text[start:end]).string().text
            whole = Scanner(head + self.text[end:])
            value = whole.value()
            # The cut must be between values: neither behind the container nor inside a string.
            if whole.pos > len(head) and '"' not in _STRING.sub("", head):
                arguments[next(reversed(arguments))] = value
                self.pos = end + whole.pos - len(head)
                return
        super().positional(arguments)


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of every turn; the first one must be the user's."""
    listed = row.get("conversations")
    need(isinstance(row.get("system"), str), "missing key", "'system' must hold the instruction and the function list")
    need(listed and isinstance(listed, list), "missing key", "'conversations' must hold the turns")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(listed or ()):
        whole = isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("from", "value"))
        need(whole, "missing key", f"turn {number} must hold 'from' and 'value' as text")
        detail = f"turn {number} is from {turn['from']!r}, not {', '.join(_ROLES)}"
        need(turn["from"] in _ROLES, "unknown role", detail)
        turns.append((turn["from"], turn["value"]))
    need(turns[0][0] == "user", "no user turn", f"the dialogue opens with a turn from {turns[0][0]!r}")
    return turns


@option
class ToolACE(FileSource):
    """The ToolACE set: dialogues of one or more call turns, over tools whose names may hold spaces, slashes and dots.
    Rows mended by `parse_split` count as rows_repaired; without `repair_split_arguments` they are rejected.
    """

    repair_split_arguments: bool

    def convert(self, row: Mapping[str, Any]) -> Converted:
        """See `FileSource.convert`. Turn numbers in reasons and sample ids count from 0 over `conversations`."""
        turns = _turns(row)
        size = len(row["system"]) + sum(len(text) + 50 for _, text in turns)  # 50: what a turn costs beside its text
        size *= sum(role == "assistant" for role, _ in turns)
        need(size <= MAX_WRITTEN, "row too long", f"its samples come to {size} characters, {MAX_WRITTEN} are the most")
        listed, custom = split_system(row["system"])
        tools = unique_tools(read_tools(listed))
        key = content_key(row["system"], turns)
        messages = [Message(role="system", content=custom)] if custom else []
        samples, repaired = list[Sample](), False
        for number, (role, text) in enumerate(turns):
            calls: tuple[ToolCall, ...] = ()
            if role == "assistant":
                calls, mended = _calls(text, number, tools, self.repair_split_arguments)
                repaired |= mended
                if calls or self.text_turns:
                    samples.append(self.sample(f"toolace-{key}-{number}", tools, messages, calls, text))
            messages.append(Message(role=role, content="" if calls else text, calls=calls))
        return Converted(key, turns[0][1], tuple(samples), repaired)
