"""Samples and turns in the layouts of other tools, or why a layout cannot hold them; `ttpa export` writes them.

A row has a column `ttpa` with what a layout has no place for (id, band, tags), which our readers give back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ttpa.calls.syntaxes import get_syntax
from ttpa.data.augment import Augment
from ttpa.data.bands import Bands
from ttpa.data.published import FileSource, read_facts
from ttpa.data.rows import BadRow, need
from ttpa.data.toolace import MARKER_SENTENCE, ToolACE, looks_like_call
from ttpa.data.xlam import XLAM
from ttpa.io import dumps
from ttpa.records import Message, Sample, ToolCall, ToolSpec

Row = dict[str, Any]
_FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}


def target_turn(sample: Sample) -> Message:
    """The target as the last turn of the dialogue."""
    text, thought = sample.target_text or "", sample.target_thought
    return Message(role="assistant", content=text, calls=sample.target, thought=thought)


def facts(sample: Sample) -> Row:
    """What layouts have no place for; `kind` says whether the last turn is a call or text."""
    named = {"id": sample.id, "dialogue_id": sample.dialogue_id, "source": sample.source, "band": sample.band}
    return {**named, "tags": list(sample.tags), "kind": sample.kind}


def openai_turns(messages: Sequence[Message]) -> list[Row]:
    """Turns as OpenAI and chat templates take them; arguments are objects. Results have the ids of their calls."""
    rows, asked = list[Row](), list[Row]()
    for at, message in enumerate(messages):
        row: Row = {"role": message.role, "content": message.content}
        row |= {"reasoning_content": message.thought} if message.thought else {}
        if message.calls:
            asked = [
                {"id": f"call{at:03}{number:02}", "type": "function",
                 "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for number, call in enumerate(message.calls)
            ]  # fmt: skip
            row["tool_calls"] = list(asked)
        elif message.role == "tool" and asked:
            call = asked.pop(0) if len(asked) > 1 else asked[0]
            row |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
        rows.append(row)
    return rows


def openai_tools(tools: Sequence[ToolSpec]) -> str:
    """Tools as JSON text, so that no reader mixes the parameters of different tools."""
    return dumps([{"type": "function", "function": tool.to_json()} for tool in tools])


def _objects(calls: Sequence[ToolCall]) -> list[Row]:
    return [call.to_json() for call in calls]


def sharegpt_turn(message: Message) -> Row:
    """A turn of LLaMA-Factory; BadRow where it has no place for a part."""
    thought = f"<think>\n{message.thought}\n</think>\n\n" if message.thought else ""
    if not message.calls:
        return {"from": _FROM[message.role], "value": thought + message.content}
    need(not message.content, "text beside calls", "a turn of the layout is text or calls")
    return {"from": "function_call", "value": thought + dumps(_objects(message.calls))}


def sharegpt_row(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Row:
    """Dialogue and tools of a row in LLaMA-Factory's ShareGPT layout."""
    system = messages[0].content if messages and messages[0].role == "system" else ""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    sides = [message.role == "assistant" for message in turns]
    need("system" not in {one.role for one in turns}, "system in the middle", "the layout has one system text")
    alternate = all(side == bool(at % 2) for at, side in enumerate(sides))
    need(alternate, "turns of one side in a row", "the layout alternates between both sides, the user's first")
    conversations = [sharegpt_turn(message) for message in turns]
    return {"conversations": conversations, "system": system, "tools": dumps([tool.to_json() for tool in tools])}


def _messages(sample: Sample) -> Row:
    turns = [*sample.messages, target_turn(sample)]
    return {"messages": openai_turns(turns), "tools": openai_tools(sample.tools)}


def _sharegpt(sample: Sample) -> Row:
    return sharegpt_row([*sample.messages, target_turn(sample)], sample.tools)


def _xlam(sample: Sample) -> Row:
    roles = [message.role for message in sample.messages]
    need(roles == ["user"], "more than a question", "a row is one question")
    need(not (sample.target_text or sample.target_thought), "text", "an answer is calls")
    tools = dumps([tool.to_json() for tool in sample.tools])
    return {"query": sample.messages[0].content, "tools": tools, "answers": dumps(_objects(sample.target))}


def _toolace(sample: Sample) -> Row:
    turns = [*sample.messages, target_turn(sample)]
    system = turns.pop(0).content if turns[0].role == "system" else ""
    said = []
    for turn in turns:
        need(turn.role in ("user", "assistant", "tool"), "system in the middle", "the layout has one system text")
        need(not turn.thought, "thoughts", "the layout has no place for thoughts")
        need(not (turn.calls and turn.content), "text beside calls", "a turn of the layout is text or calls")
        odd = turn.role == "assistant" and not turn.calls and looks_like_call(turn.content)
        need(not odd, "text like a call", "a reply that looks like calls would be read as calls")
        said.append(
            {"from": turn.role, "value": get_syntax("python").print(turn.calls) if turn.calls else turn.content}
        )
    listed = dumps([tool.to_json() for tool in sample.tools])
    return {"system": f"{system}\n{MARKER_SENTENCE}\n{listed}", "conversations": said}


READ_BACK = ("xlam", "toolace")
LAYOUTS: Mapping[str, Callable[[Sample], Row]] = {
    "messages": _messages, "sharegpt": _sharegpt, "xlam": _xlam, "toolace": _toolace,
}  # fmt: skip


@cache
def _reader(layout: str) -> FileSource:
    """What reads a layout, to see whether a row gives the sample back."""
    bands = Bands(easy_tools=0, easy_length=0, easy_calls=0, hard_tools=1, hard_length=1, hard_calls=1)
    how: dict[str, Any] = {
        "path": "-",
        "split_seed": 0,
        "validation_fraction": 0.0,
        "test_fraction": 0.0,
        "limit": None,
    }
    how |= {"max_bad_fraction": 0.0, "max_rows": None, "text_turns": True, "bands": bands}
    how["augment"] = Augment(seed=0, irrelevance=0.0, irrelevance_text="-", mask_names=0.0)
    return XLAM(**how) if layout == "xlam" else ToolACE(**how, repair_split_arguments=False)


def sample_row(layout: str, sample: Sample) -> Row | BadRow:
    """The sample as a row of the layout, or what the layout has no place for."""
    try:
        row = {**LAYOUTS[layout](sample), "ttpa": facts(sample)}
        if layout in READ_BACK:
            back = read_facts(row, _reader(layout).convert(row).samples) or ()
            need(bool(back), "read differently", "its last turn would be read as no sample")
            one, other = back[-1].to_json(), sample.to_json()
            parts = [key for key in other if dumps(one.get(key)) != dumps(other[key])]
            need(not parts, "read differently", f"its {', '.join(parts)} would be read as something else")
        return row
    except BadRow as problem:
        return problem
