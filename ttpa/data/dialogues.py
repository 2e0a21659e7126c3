"""`data=messages` and `data=sharegpt`: dialogues in the layouts of OpenAI, TRL, LLaMA-Factory and published sets.

Both read a row into turns; what turns mean together is the same for both (docs/own_data.md).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ttpa.data.published import Converted, FileSource, content_key, unique_tools
from ttpa.data.rows import BadRow, decode, need
from ttpa.data.text_calls import json_values, read_call, split_results, split_system, split_turn, tool_list
from ttpa.data.tools import read_tools
from ttpa.options import option
from ttpa.records import Message, Sample, ToolCall, ToolSpec

MAX_WRITTEN = 5_000_000  # characters that the samples of a row may come to, each with all turns before it
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "function_response", "ipython"), "tool"),
}
"""Role in a row -> role of a turn."""


@dataclass(slots=True)
class Turn:
    """A turn as a row has it: the message, the ids of its calls, and the id that a result names."""

    message: Message
    ids: list[str | None] = field(default_factory=list)
    answers: str | None = None
    number: int = 0


def _text(content: Any, number: int) -> str:
    """The text of a content: text, nothing, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [one if isinstance(one, str) else one.get("text") if isinstance(one, dict) else None for one in content]
        need(all(isinstance(part, str) for part in parts), "content not text", f"turn {number} has parts without text")
        return "\n".join(map(str, parts))
    raise BadRow("content not text", f"turn {number} has a {type(content).__name__} as content")


def _listed(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError as error:
            raise BadRow("field not JSON", f"{key!r} is not JSON ({error})") from None
    need(isinstance(value, list) and value, "missing key", f"{key!r} must hold the turns")
    return list(value)


def read_turns(rows: Sequence[Any]) -> Iterator[Turn]:
    """Turns of objects with `role` and `content`, or `from` and `value`."""
    for number, row in enumerate(rows):
        need(isinstance(row, dict), "turn not an object", f"turn {number} is a {type(row).__name__}")
        named = str(row.get("role", row.get("from")))
        need(named in ROLES, "unknown role", f"turn {number} is from {named!r}, not {', '.join(ROLES)}")
        role, text = ROLES[named], _text(row.get("content", row.get("value")), number)
        if role == "tool":
            results = split_results(text)
            answers = row.get("tool_call_id") if len(results) == 1 else None
            yield from (Turn(Message(role=role, content=one), [], answers, number) for one in results)
        elif role == "assistant":
            yield _assistant(row, named, text, number)
        else:
            yield Turn(Message(role=role, content=text), number=number)


def _assistant(row: Mapping[str, Any], named: str, text: str, number: int) -> Turn:
    items = row.get("tool_calls") or ([row["function_call"]] if row.get("function_call") else [])
    items = json_values(items, "call") if isinstance(items, str) else items
    need(isinstance(items, list), "calls not a list", f"turn {number}: its calls are a {type(items).__name__}")
    ids = [str(item["id"]) if isinstance(item, dict) and item.get("id") else None for item in items]
    calls = tuple(read_call(item, number) for item in items)
    thought, said, written = split_turn("" if named in ("function_call", "tool_call") else text, number)
    if named in ("function_call", "tool_call"):  # the whole text is the call, perhaps behind a thought
        thought, said, written = split_turn(text, number)
        if not written:
            written, said = tuple(read_call(item, number) for item in json_values(said.strip(), "call")), ""
    given = next((row[key] for key in ("reasoning_content", "reasoning", "thinking") if row.get(key)), "")
    need(isinstance(given, str), "thought not text", f"turn {number} has a {type(given).__name__} as thought")
    made = Message(role="assistant", content=said, calls=(*calls, *written), thought=(given or thought).strip())
    return Turn(made, [*ids, *[None] * len(written)], None, number)


def joined(turns: Iterable[Turn]) -> list[Message]:
    """The dialogue: turns of the assistant that follow each other are one, and results stand in the order of their
    calls. BadRow: a result without a call, an id that no call has, a call of several that alone has no result.
    """
    merged, results, done = list[Turn](), list[Turn](), list[Message]()
    for turn in turns:
        before = merged[-1] if merged else None
        if before and before.message.role == turn.message.role == "assistant":
            old, new = before.message, turn.message
            content = "\n".join(filter(None, (old.content, new.content)))
            thought = "\n".join(filter(None, (old.thought, new.thought)))
            both = replace(old, content=content, calls=(*old.calls, *new.calls), thought=thought)
            merged[-1] = Turn(both, [*before.ids, *turn.ids], None, turn.number)
        else:
            merged.append(turn)
    caller: Turn | None = None
    for at, turn in enumerate(merged):
        if turn.message.role == "tool":
            need(caller, "result without a call", f"turn {turn.number} is a result, and no call stands before it")
            results.append(turn)
            if at + 1 == len(merged) or merged[at + 1].message.role != "tool":
                assert caller is not None
                done += _ordered(results, caller)
                results = []
            continue
        caller = turn if turn.message.calls else caller
        done.append(turn.message)
    return done


def _ordered(results: list[Turn], caller: Turn) -> list[Message]:
    named = [turn.answers for turn in results if turn.answers is not None]
    if not named or not any(caller.ids):
        return [turn.message for turn in results]
    known = [one for one in caller.ids if one is not None]
    for turn in results:
        need(turn.answers is None or turn.answers in known, "unknown call id",
             f"turn {turn.number} answers {turn.answers!r}; the calls before it are {', '.join(known)}")  # fmt: skip
    need(len({*named}) == len(named), "two results of a call", f"turn {results[-1].number}: an id is answered twice")
    missing = [one for one in known if one not in named] if len(named) == len(results) else []
    need(not missing, "call without a result", f"turn {caller.number}: {', '.join(missing)} has none, others have")
    places = {one: at for at, one in enumerate(caller.ids)}
    order = sorted(results, key=lambda turn: places.get(turn.answers, len(places)))
    return [turn.message for turn in order]


@option
class Dialogues(FileSource):
    """What both readers share: each wanted turn of the assistant is a sample, with the turns before it."""

    layout: ClassVar[str]

    def read(self, row: Mapping[str, Any]) -> tuple[list[Any], list[Message], int]:
        """Tools, the dialogue, and the number of its first message that may be a target."""
        raise NotImplementedError

    def convert(self, row: Mapping[str, Any]) -> Converted:
        """See `FileSource.convert`. Turns in reasons count from 0 as the row has them, in ids as they are joined."""
        listed, said, first = self.read(row)
        size = len(str(listed)) + sum(len(one.content) + len(one.thought) + 50 for one in said)
        size *= 1 + sum(one.role == "assistant" for one in said)
        need(size <= MAX_WRITTEN, "row too long", f"its samples come to {size} characters, {MAX_WRITTEN} are the most")
        asked = next((at for at, one in enumerate(said) if one.role == "user"), None)
        need(asked is not None, "no user turn", "no turn is the user's")
        tools = unique_tools(read_tools(listed))
        said = [one if one.role != "assistant" else self._known(one, at, tools) for at, one in enumerate(said)]
        key = content_key([tool.to_json() for tool in tools.values()], [one.to_json() for one in said])
        made = [
            self._sample(f"{self.layout}-{key}-{at}", tools, said[:at], one)
            for at, one in enumerate(said)
            if one.role == "assistant" and at > (asked or 0) and at >= first and (one.calls or self.text_turns)
        ]
        return Converted(key, said[asked or 0].content, tuple(made))

    def _known(self, turn: Message, at: int, tools: Mapping[str, ToolSpec]) -> Message:
        """The turn without nulls that a columnar reader left behind. BadRow: it calls a tool that is not listed."""
        calls = list[ToolCall]()
        for call in turn.calls:
            if call.name not in tools:
                listed = ", ".join(map(repr, tools)) or "no tool"
                raise BadRow("tool not in list", f"turn {at} calls {call.name!r}; the row lists {listed}")
            known = tools[call.name].properties
            arguments = {key: one for key, one in call.arguments.items() if one is not None or key in known}
            calls.append(ToolCall(name=call.name, arguments=arguments))
        return replace(turn, calls=tuple(calls))

    def _sample(self, id: str, tools: Mapping[str, ToolSpec], before: Sequence[Message], turn: Message) -> Sample:
        made = self.sample(id, tools, before, turn.calls, turn.content)
        text = turn.content if turn.content or not turn.calls else None
        return replace(made, target_text=text, target_thought=turn.thought)


def _opened(row: Mapping[str, Any], rows: Sequence[Any], listed: Any) -> tuple[list[Any], list[Message]]:
    """Tools and dialogue; tools that stand in the system's text are taken out of it."""
    tools, turns = tool_list(listed), list(read_turns(rows))
    if (system := row.get("system")) and isinstance(system, str):
        turns.insert(0, Turn(Message(role="system", content=system)))
    if turns and turns[0].message.role == "system":
        written, rest = split_system(turns[0].message.content)
        turns[:1] = [Turn(Message(role="system", content=rest))] if rest else []
        tools = tools or written
    return tools, joined(turns)


@option
class Messages(Dialogues):
    """OpenAI's and TRL's rows: `messages` and `tools` (Toucan: `available_tools`), or TRL's `prompt`, `completion`."""

    layout: ClassVar[str] = "messages"

    def read(self, row: Mapping[str, Any]) -> tuple[list[Any], list[Message], int]:
        listed = next((row[key] for key in ("tools", "available_tools", "functions") if row.get(key)), None)
        if "messages" not in row and "completion" in row:
            prompt, answer = (_listed(row.get(key), key) for key in ("prompt", "completion"))
            tools, before = _opened(row, prompt, listed)
            tools, said = _opened(row, [*prompt, *answer], listed)
            return tools, said, len(before)
        return (*_opened(row, _listed(row.get("messages"), "messages"), listed), 0)


_GLAIVE_TURN = re.compile(r"^\s*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_RLLA_TOOL = re.compile(r"^\d+\. Name: (.*)\nDescription: (.*?)\nParameters: (\{.*\})\s*$", re.MULTILINE)
_RLLA_TURN = re.compile(r"<(user|think|tool_call|response|obs)>(.*?)</\1>", re.DOTALL)


def _glaive(row: Mapping[str, Any]) -> tuple[list[Any], list[Message]]:
    """One text a dialogue; `<|endoftext|>` ends turns of the assistant."""
    need(isinstance(row["chat"], str), "missing key", "'chat' must hold the dialogue as text")
    parts = _GLAIVE_TURN.split(row["chat"])
    need(len(parts) > 1, "no user turn", "'chat' holds no USER:")
    names = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    rows = [{"role": names[who], "content": said.replace("<|endoftext|>", "").strip()} for who, said in pairs]
    return _opened(row, rows, None)


def _rlla(row: Mapping[str, Any]) -> tuple[list[Any], list[Message]]:
    """ToolRL's instruction with the tools, dialogue so far, and answer. An empty default stands for none."""
    texts = [row.get(key) for key in ("instruction", "input", "output")]
    need(all(isinstance(one, str) for one in texts), "missing key", "'instruction', 'input', 'output' must be text")
    instruction, before, answer = map(str, texts)
    tools = []
    for name, description, parameters in _RLLA_TOOL.findall(instruction):
        (given,) = json_values(parameters, "tools")
        flat = {key: {k: v for k, v in one.items() if (k, v) != ("default", "")} for key, one in given.items()}
        tools.append({"name": name, "description": description, "parameters": flat})
    turns = list[Turn]()
    for number, hit in enumerate(_RLLA_TURN.finditer(f"{before}\n{answer}")):
        kind, text = hit[1], hit[2].strip()
        if kind in ("user", "obs"):
            turns.append(Turn(Message(role="user" if kind == "user" else "tool", content=text), number=number))
        elif kind == "think":
            turns.append(Turn(Message(role="assistant", thought=text), number=number))
        elif kind == "response":
            turns.append(Turn(Message(role="assistant", content=text), number=number))
        else:
            calls = tuple(read_call(item, number) for item in json_values(text, "call"))
            turns.append(Turn(Message(role="assistant", calls=calls), number=number))
    cut = {name.partition("(")[0].strip(): name for name in (tool["name"] for tool in tools) if "(" in name}
    for turn in turns:  # the set's writer cut names of calls at their first parenthesis
        calls = tuple(replace(call, name=cut.get(call.name.strip(), call.name)) for call in turn.message.calls)
        turn.message = replace(turn.message, calls=calls)
    return tools, joined(turns)


@option
class ShareGPT(Dialogues):
    """LLaMA-Factory's `conversations`, `tools`, `system`; APIGen-MT, Hermes, glaive's `chat`, ToolRL's rlla."""

    layout: ClassVar[str] = "sharegpt"

    def read(self, row: Mapping[str, Any]) -> tuple[list[Any], list[Message], int]:
        if "chat" in row:
            return (*_glaive(row), 0)
        if "instruction" in row and "conversations" not in row:
            tools, said = _rlla(row)
            return tools, said, len(said) - 1
        return (*_opened(row, _listed(row.get("conversations"), "conversations"), row.get("tools")), 0)
