"""`data=pairs`: ready preference pairs of TRL, LLaMA-Factory, When2Call and ToolPref (docs/own_data.md).

A row is a prompt and two answers. The prompt with the chosen answer is a sample, the rejected answer a `GivenPair`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ttpa.calls.syntaxes import ParseError, get_syntax
from ttpa.data.published import Converted, FileSource, content_key, unique_tools
from ttpa.data.rows import BadRow, decode, need, need_object
from ttpa.data.tools import name_of, read_tool, unwrapped
from ttpa.options import option
from ttpa.records import Message, Record, ToolCall, ToolSpec, shared_tokens

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
    "system": "system",
}
_SIDES = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
_NVIDIA = re.compile(r"<TOOLCALL>(.*?)(?:</TOOLCALL>|\Z)", re.DOTALL)  # as When2Call writes calls: a list of objects
_TOOLS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_HERMES = get_syntax("hermes")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPair(Record):
    """The rejected answer to a sample, whose target is the chosen one, and both scores where the row has them."""

    READ = {"rejected": Message.from_json}
    sample_id: str
    rejected: Message
    chosen_score: float | None = None
    rejected_score: float | None = None


def _calls(listed: Any) -> tuple[ToolCall, ...]:
    """The calls of a list of objects, plain or as OpenAI wraps them; arguments are an object or the text of one."""
    if isinstance(listed, str):
        try:
            listed = decode(listed)
        except ValueError as error:
            raise BadRow("call not parsable", str(error)) from None
    found = []
    for item in map(unwrapped, listed if isinstance(listed, list) else [listed]):
        name, arguments = name_of(item, "calls"), item.get("arguments") or item.get("parameters") or {}
        if isinstance(arguments, str):
            try:
                arguments = decode(arguments)
            except ValueError as error:
                raise BadRow("call not parsable", f"the arguments of {name!r} are not JSON ({error})") from None
        found.append(ToolCall(name=name, arguments=need_object(arguments, "arguments", f"the call of {name!r} has")))
    return tuple(found)


def _spoken(text: str) -> Message:
    """A turn of the assistant whose calls, if there are some, stand in tags; BadRow where they do not parse."""
    if tagged := _NVIDIA.search(text):
        return Message(role="assistant", content=_NVIDIA.sub("", text).strip(), calls=_calls(tagged[1]))
    if "<tool_call>" in text:
        parsed = _HERMES.parse(text)
        if isinstance(parsed, ParseError):
            raise BadRow("call not parsable", str(parsed))
        return Message(role="assistant", content=text.partition("<tool_call>")[0].strip(), calls=parsed)
    return Message(role="assistant", content=text)


def _turn(item: Any) -> Message:
    """A turn as `role` and `content` or as `from` and `value`."""
    item = need_object(item, "turn", "a turn is")
    said, role = str(item.get("role", item.get("from"))), item.get("content", item.get("value"))
    need(said in _ROLES, "unknown role", f"a turn is from {said!r}, not {', '.join(_ROLES)}")
    if isinstance(role, list):  # parts, of which the text counts
        role = "".join(str(part.get("text", "")) for part in role if isinstance(part, dict))
    need(role is None or isinstance(role, str), "missing key", f"a turn of {said} holds no text")
    text = str(role or "")
    if _ROLES[said] != "assistant":
        return Message(role=_ROLES[said], content=text)
    thought = next((item[key] for key in ("reasoning_content", "thinking") if isinstance(item.get(key), str)), "")
    if not thought and (begun := _THOUGHT.match(text)):
        thought, text = begun[1], text[begun.end() :]
    if item.get("tool_calls"):
        turn = Message(role="assistant", content=text, calls=_calls(item["tool_calls"]))
    else:
        turn = Message(role="assistant", calls=_calls(text)) if said == "function_call" else _spoken(text)
    return replace(turn, thought=thought.strip("\n"))


def _lenient(item: Any) -> Message:
    """A turn in which calls that do not parse are text: what is rejected may be wrong in any way."""
    try:
        return _turn(item)
    except BadRow as problem:
        text = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if not isinstance(text, str) or problem.args[0] == "unknown role":
            raise
        return Message(role="assistant", content=text)


def _as_turns(value: Any, role: str) -> list[Any]:
    """A text is one turn."""
    return value if isinstance(value, list) else [{"role": role, "content": value} if isinstance(value, str) else value]


def _parts(row: Mapping[str, Any]) -> tuple[list[Any], Any, Any]:
    """Turns of the prompt, chosen turn, rejected turn."""
    names = next((both for both in _SIDES if all(key in row for key in both)), None)
    if names is None:
        raise BadRow("missing key", f"a row holds {' and '.join(_SIDES[0])}, or {' and '.join(_SIDES[1])}")
    good, bad = (row[name] for name in names)
    before = next((row[key] for key in ("prompt", "messages", "conversations", "instruction") if row.get(key)), None)
    if before is None and isinstance(good, str) and isinstance(bad, str):
        # Words are kept whole, as in TRL.
        shared = shared_tokens(list(map(ord, good)), list(map(ord, bad)))
        cut = good.rfind(" ", 0, shared) + 1
        need(cut, "no prompt", "both answers differ from their first word on")
        before, good, bad = good[:cut].strip(), good[cut:], bad[cut:]
    turns, good, bad = _as_turns(before or [], "user"), _as_turns(good, "assistant"), _as_turns(bad, "assistant")
    if not turns:
        while good[1:] and bad[1:] and good[0] == bad[0]:
            turns, good, bad = [*turns, good[0]], good[1:], bad[1:]
    else:  # some sets repeat the prompt in front of both answers
        cut = len(turns)
        good = good[cut:] if good[:cut] == turns else good
        bad = bad[cut:] if bad[:cut] == turns else bad
    need(len(good) == 1 and len(bad) == 1, "answer of several turns", f"{len(good)} chosen, {len(bad)} rejected turns")
    if "instruction" in row and isinstance(before, str):  # LLaMA-Factory's other layout
        said = "\n".join(filter(None, (before, row.get("input"))))
        past = [turn for asked, told in row.get("history") or () for turn in _history(asked, told)]
        turns = [*past, {"role": "user", "content": said}]
    if isinstance(row.get("system"), str) and row["system"]:
        turns = [{"role": "system", "content": row["system"]}, *turns]
    return turns, good[0], bad[0]


def _history(asked: str, told: str) -> Iterator[dict[str, str]]:
    yield from ({"role": "user", "content": asked}, {"role": "assistant", "content": told})


def _tools(row: Mapping[str, Any], messages: list[Message]) -> dict[str, ToolSpec]:
    """The tools of a row: a list, the text of one, or in the text of the system, from where they are taken out."""
    listed: Any = row.get("tools")
    if not listed and messages and messages[0].role == "system" and (block := _TOOLS.search(messages[0].content)):
        text = messages[0].content
        listed = block[1] if block[1].startswith("[") else f"[{','.join(filter(str.strip, block[1].splitlines()))}]"
        begun = text.rfind("# Tools", 0, block.start())  # as Qwen's template writes the tools, to the end of the text
        rest = (text[:begun] if begun >= 0 else text[: block.start()] + text[block.end() :]).strip()
        messages[:1] = [replace(messages[0], content=rest)] if rest else []
    if isinstance(listed, str):
        try:
            listed = decode(listed)
        except ValueError as error:
            raise BadRow("field not JSON", f"'tools' is not JSON ({error})") from None
    need(isinstance(listed or [], list), "field not a list", "'tools' must hold a list")
    return unique_tools(read_tool(_parsed(item)) for item in listed or ())


def _parsed(item: Any) -> Any:
    """A tool; When2Call has the JSON text of each one."""
    try:
        return json.loads(item) if isinstance(item, str) else item
    except ValueError as error:
        raise BadRow("field not JSON", f"a tool is not JSON ({error})") from None


def _score(row: Mapping[str, Any], key: str) -> float | None:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


@option
class Preferences(FileSource):
    """Rows of a prompt, a chosen and a rejected answer; `pairs=given` learns from them."""

    holds_pairs: ClassVar[bool] = True

    def convert(self, row: Mapping[str, Any]) -> Converted:
        """See `FileSource.convert`. A chosen answer must call tools of the row; a rejected one may be wrong."""
        turns, good, bad = _parts(row)
        messages = list(map(_lenient, turns))
        tools, chosen, rejected = _tools(row, messages), _turn(good), _lenient(bad)
        need(
            messages and messages[-1].role in ("user", "tool"), "no user turn", "no question stands before the answers"
        )
        for side, name in ((chosen, "chosen"), (rejected, "rejected")):
            need(side.role == "assistant", "unknown role", f"the {name} answer is from {side.role}")
        need(chosen.calls or chosen.content.strip(), "empty answer", "the chosen answer says nothing")
        need(chosen != rejected, "equal answers", "the rejected answer is the chosen one")
        unlisted = [call.name for call in chosen.calls if call.name not in tools]
        need(not unlisted, "tool not in list", f"the chosen answer calls {unlisted[:1]}, none of {len(tools)} tools")
        opening = next((one.content for one in messages if one.role == "user"), messages[0].content)
        said = [one.to_json() for one in messages]
        prompt = content_key(said, [tool.to_json() for tool in tools.values()])
        key = content_key(prompt, chosen.to_json(), rejected.to_json())
        if not chosen.calls and not self.text_turns:
            return Converted(key, opening, ())
        made = self.sample(f"pairs-{key}", tools, messages, chosen.calls, chosen.content)
        # Pairs of one prompt are no independent samples.
        made = replace(made, dialogue_id=f"pairs-{prompt}", target_thought=chosen.thought)
        if chosen.calls and chosen.content:
            made = replace(made, target_text=chosen.content)
        scores = {name: _score(row, name) for name in ("chosen_score", "rejected_score")}
        return Converted(key, opening, (made,), pairs=(GivenPair(sample_id=made.id, rejected=rejected, **scores),))
