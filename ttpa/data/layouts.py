"""Names the layout of a row that a source could not use, and what reads it."""

from collections.abc import Mapping
from typing import Any

_SHAREGPT = {"human", "gpt", "function_call", "observation"}
_NOBODY = "no option; data=xlam reads a question a row and data=toolace a dialogue a row, see docs/own_data.md"
_BY_KEYS = {  # the keys of a row -> its layout, and what reads it
    ("system", "conversations"): ("ToolACE rows (system, conversations from user and assistant)", "data=toolace"),
    ("query", "tools", "answers"): ("xLAM rows (query, tools, answers)", "data=xlam"),
    ("question", "function"): ("BFCL questions (question, function)", "eval=bfcl"),
    ("chosen", "rejected"): ("preference pairs (chosen, rejected)", "pairs=given"),
    ("chosen_response", "rejected_response"): ("preference pairs of When2Call", "pairs=given"),
    ("messages",): ("OpenAI messages (a list `messages` of role and content)", _NOBODY),
    ("conversations",): ("ShareGPT dialogues (conversations from human and gpt)", _NOBODY),
    ("instruction", "output"): ("Alpaca rows (instruction, output)", _NOBODY),
}


def layout_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the row looks like, and the option that reads that; two empty texts where nothing is recognised."""
    if "chosen" in row and "rejected" in row:
        return _BY_KEYS["chosen", "rejected"]
    turns = row.get("conversations")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and "role" in turn:
            return _BY_KEYS["messages",]
        if isinstance(turn, dict) and str(turn.get("from")) in _SHAREGPT:
            return _BY_KEYS["conversations",]
    return next((found for keys, found in _BY_KEYS.items() if all(key in row for key in keys)), ("", ""))
