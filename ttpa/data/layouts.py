"""Names the layout of a row, and the option that reads it."""

from collections.abc import Mapping
from typing import Any

_TOOLACE = ("ToolACE rows (system, conversations from user and assistant)", "data=toolace")
_SHAREGPT = ("ShareGPT dialogues (conversations from human and gpt)", "data=sharegpt")
_MESSAGES = ("OpenAI messages (a list `messages` of role and content)", "data=messages")
_BY_KEYS = {  # the keys of a row -> its layout, and what reads it
    ("chosen", "rejected"): ("preference pairs (chosen, rejected)", "pairs=given"),
    ("chosen_response", "rejected_response"): ("preference pairs of When2Call", "pairs=given"),
    ("query", "tools", "answers"): ("xLAM rows (query, tools, answers)", "data=xlam"),
    ("question", "function"): ("BFCL questions (question, function)", "eval=bfcl"),
    ("system", "chat"): ("glaive's dialogues (system, chat as one text)", "data=sharegpt"),
    ("messages",): _MESSAGES,
    ("prompt", "completion"): ("TRL's rows (prompt, completion)", "data=messages"),
}


def layout_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the row looks like, and the option that reads that; two empty texts where nothing is recognised."""
    if found := next((found for keys, found in _BY_KEYS.items() if all(key in row for key in keys)), None):
        return found
    turns, system = row.get("conversations"), row.get("system")
    if isinstance(turns, str):
        return _SHAREGPT
    if isinstance(turns, list) and turns:
        senders = {str(turn.get("from", turn.get("role"))) for turn in turns if isinstance(turn, dict)}
        plain = isinstance(system, str) and "<tools>" not in system and not row.get("tools")
        named = all("from" in turn for turn in turns if isinstance(turn, dict))
        toolace = plain and named and senders <= {"user", "assistant", "tool"}
        return _TOOLACE if toolace else _SHAREGPT
    if "instruction" in row and "output" in row:
        if "**Available Tools**" in str(row["instruction"]):
            return "ToolRL's rlla rows (instruction, input, output)", "data=sharegpt"
        return "Alpaca rows (instruction, output)", "no option, since they hold no tools"
    return "", ""
