"""A script as the writer of dialogues: phrases for tools, values from pools and results. It needs no model.

It writes what a book of phrases has (`phrases_bfcl.yaml`), so its questions are plain lists of wishes. It is for tests,
for the embedded tier and for looking at the gates, not in place of a language model.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ttpa.data.reversed.scenario import Ask
from ttpa.data.reversed.tools import read_document
from ttpa.data.reversed.writers import Sandboxes, Start, drive
from ttpa.errors import ConfigError
from ttpa.io import dumps

_SLOT = re.compile(r"\{(\w+)\}")


def read_book(path: Path | None) -> Mapping[str, Any]:
    """The book of phrases in a YAML file: class -> about, states, pools, tools; None: that of ttpa."""
    if path is None:
        return dict(yaml.safe_load((resources.files("ttpa.data.reversed") / "phrases_bfcl.yaml").read_text("utf-8")))
    book = read_document(path)
    whole = isinstance(book, dict) and all(isinstance(one, dict) and one.get("tools") for one in book.values())
    if not whole:
        problem, remedy = "is no book of phrases: every class needs tools", "See ttpa/data/reversed/phrases_bfcl.yaml"
        raise ConfigError.at("data.phrases", path, problem, remedy)
    return dict(book)


class Phrases:
    """Replies to every ask of a draft from a book. What it draws depends on the seed of the ask alone."""

    def __init__(self, book: Mapping[str, Any]) -> None:
        self._book = book
        self._tools = {name: (part, tool) for part in book.values() for name, tool in part["tools"].items()}

    def draft(self, jobs: Sequence[Any], start: Start, sandboxes: Sandboxes) -> list[dict[str, Any]]:
        return [drive(start(job, sandboxes.mine()), self.reply) for job in jobs]

    def close(self) -> None: ...

    def reply(self, ask: Ask) -> str:
        """The reply, JSON text."""
        return dumps(getattr(self, f"_{ask.role}")(ask, random.Random(ask.seed)))

    def _scenario(self, ask: Ask, rng: random.Random) -> dict[str, Any]:
        groups: dict[str, list[str]] = {}
        for tool in ask.known["window"]:
            if tool.spec.name in self._tools:
                groups.setdefault(tool.group, []).append(tool.spec.name)
        if not groups:
            return {"scenario": "", "facts": [], "tools": []}
        group = rng.choice(sorted(groups))
        names = groups[group]
        chosen = set(rng.sample(names, min(len(names), rng.randint(4, 8))))
        for name in names:  # what must come first is offered, too
            chosen |= {one for one in self._tools[name][1].get("first", ()) if name in chosen and one in names}
        return {"scenario": self._tools[names[0]][0]["about"], "facts": [], "tools": sorted(chosen)}

    def _call(self, ask: Ask, rng: random.Random) -> dict[str, Any]:
        known, done = ask.known, [call.name for call in ask.known["calls"]]
        least = 2 if len(set(done)) < 2 else 1
        if len(done) >= 2 and least == 1 and rng.random() < 0.4:
            return {"tool": "answer", "arguments": {"text": self._outcome(known)}}
        offered = [name for name in known["row"]["tools"] if name in self._tools]
        open_ones = [name for name in offered if name not in done] or offered
        name = rng.choice(open_ones)
        for one in self._tools[name][1].get("first", ()):
            if one not in done and one in offered:
                name = one
                break
        return {"tool": name, "arguments": self._arguments(name, known["results"], rng)}

    def _arguments(self, name: str, results: Sequence[Any], rng: random.Random) -> dict[str, Any]:
        part, tool = self._tools[name]
        keys = [*_SLOT.findall(tool["say"]), *tool.get("hidden", ()), *tool.get("with", ())]
        arguments = dict[str, Any]()
        for key in dict.fromkeys(keys):
            told = _values(results, tool["from"][key]) if key in tool.get("from", {}) else []
            pool = (
                part["pools"].get(tool.get("pool", {}).get(key, key), ["unknown"]) if "pools" in part else ["unknown"]
            )
            arguments[key] = (
                tool["with"][key] if key in tool.get("with", {}) else told[-1] if told else rng.choice(pool)
            )
        return arguments

    def _outcome(self, known: Mapping[str, Any]) -> str:
        sentences = []
        for call, result in zip(known["calls"], known["results"], strict=True):
            with suppress(ValueError):
                value = json.loads(result.text)
                fields = {**call.arguments, **(value if isinstance(value, dict) else {}), "all": result.text}
                tell = self._tools[call.name][1]["tell"]
                sentences.append(_filled(tell, fields))
        return " ".join(sentences)

    def _answer(self, ask: Ask, rng: random.Random) -> dict[str, Any]:
        return {"answer": self._outcome(ask.known)}

    def _question(self, ask: Ask, rng: random.Random) -> dict[str, Any]:
        wishes = []
        for at, call in enumerate(ask.known["calls"]):
            tool, earlier = self._tools[call.name][1], ask.known["results"][:at]
            known = {key: _values(earlier, named) for key, named in tool.get("from", {}).items()}
            told = {key: f"that {re.split('[_A-Z]', key)[0]}" for key, found in known.items()
                    if call.arguments.get(key) in found}  # fmt: skip
            wishes.append(_filled(tool["say"], {**call.arguments, **told}))
        opening = rng.choice(
            ["I am {0}. Please {1}", "Hello, this is about {0}. Could you {1}", "{0} again. I would like you to {1}"]
        )
        first = opening.format(ask.known["row"]["scenario"], wishes[0])
        return {"question": ", then ".join([first[0].upper() + first[1:], *wishes[1:]]) + "."}

    def _judge(self, ask: Ask, rng: random.Random) -> dict[str, Any]:
        return {"good": True, "reason": "A script does not judge."}


def _filled(phrase: str, values: Mapping[str, Any]) -> str:
    return _SLOT.sub(lambda hit: _said(values.get(hit[1], "not known")), phrase)


def _said(value: Any) -> str:
    """A value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)).replace("_", " ") or "nothing"
    return (
        {True: "yes", False: "no", None: "nothing"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _values(results: Sequence[Any], key: str) -> list[Any]:
    """The values under a key of earlier results, in order."""
    found = list[Any]()
    for result in results:
        with suppress(ValueError):
            value = json.loads(result.text)
            found += [value[key]] if isinstance(value, dict) and key in value else []
    return found
