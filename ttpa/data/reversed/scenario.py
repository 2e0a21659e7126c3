"""One dialogue by reversed construction (TTPA, arXiv 2505.20016): a scenario, calls that run, the answer, the question.

`write_draft` asks a writer (a language model or a script) step by step and yields what it asks; nothing here knows how
a writer is reached. Numbers and roles are those of the released code; prompts are ours (folder `prompts`).
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field

from ttpa.calls.schema import check_call
from ttpa.data.reversed.gates import Said, named_tool, ungrounded, unsupported
from ttpa.data.reversed.tools import Result, Session, Tool
from ttpa.data.rows import DECODER, decode
from ttpa.errors import ConfigError
from ttpa.io import dumps
from ttpa.options import Count, Index, option
from ttpa.records import Message, ToolCall

BRACES_TRIED = 32
MAX_TEXT = 6000  # characters of a state or a tool in a prompt
Range = Annotated[list[Index], Field(min_length=2, max_length=2)]
T = TypeVar("T")


@option
class Script:
    """How a dialogue goes; conf/reversed_dialogues.yaml says what each value means."""

    window: Count
    offered: Range
    facts: Range
    turns: Range
    least_tools: Count
    reasks: Index
    show_arguments: bool
    written_results: bool
    judge: bool

    def __post_init__(self) -> None:
        for key in ("offered", "facts", "turns"):
            if (low := getattr(self, key)[0]) > getattr(self, key)[1]:
                raise ConfigError.at(key, getattr(self, key), f"begins above its end with {low}", "Give [least, most]")
        if self.turns[0] - 1 < self.least_tools:
            problem = f"leaves {self.turns[0] - 1} calls where least_tools={self.least_tools} tools are to be used"
            raise ConfigError.at("turns", self.turns, problem, "Raise it: of n turns, the last is the answer")


class Ask(NamedTuple):
    """What a writer is asked: a chat whose reply is a JSON object of `schema`. `role` is scenario, call, answer,
    question, result or judge; `seed` is another one for every ask of a data set; `known` is the same as data.
    """

    role: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    seed: str
    known: Mapping[str, Any]


class Refused(Exception):
    """A gate (see `ttpa.data.reversed.gates.GATES`) and what is wrong, as its writer is told."""

    def __init__(self, gate: str, problem: str) -> None:
        super().__init__(problem)
        self.gate, self.problem = gate, problem


@cache
def prompt(name: str) -> str:
    """The text of a file in `prompts`."""
    return (resources.files("ttpa.data.reversed") / "prompts" / f"{name}.txt").read_text("utf-8").removesuffix("\n")


def prompts_digest() -> str:
    """A hash of all prompts."""
    names = sorted(path.name for path in (resources.files("ttpa.data.reversed") / "prompts").iterdir())
    texts = [prompt(name.removesuffix(".txt")) for name in names if name.endswith(".txt")]
    return hashlib.sha256(dumps(texts).encode()).hexdigest()[:16]


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a reply, behind its thoughts; Refused where there is none."""
    text = re.split(r"(?i:</think>)", text)[-1]
    with suppress(ValueError):
        if isinstance(found := decode(text), dict):
            return found
    for hit in [*re.finditer(r"\{", text)][:BRACES_TRIED]:
        with suppress(ValueError, RecursionError):
            return dict(DECODER.raw_decode(text, hit.start())[0])
    raise Refused("format", "there is no whole JSON object in it" if text.strip() else "it is empty")


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Refused("format", f'"{key}" must be a text')
    return value.strip()


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_STRING = {"type": "string"}


def _listed(tools: Sequence[Tool]) -> str:
    return "\n".join(dumps(tool.spec.to_json())[:MAX_TEXT] for tool in tools)


class Draft:
    """A dialogue in the making; `write` gives its row."""

    def __init__(
        self, script: Script, window: Sequence[Tool], states: Mapping[str, Any], session: Callable[..., Session],
        seed: str,
    ) -> None:  # fmt: skip
        self.script, self.window, self.states, self.session, self.seed = script, window, states, session, seed
        self.rng = random.Random(seed)
        self.asked, self.reasked = 0, Counter[str]()
        self.row: dict[str, Any] = {}  # of what there is, also when the draft is rejected
        self.calls, self.results = list[ToolCall](), list[Result]()
        self.known: dict[str, Any] = {"window": window, "states": states, "seed": seed, "used": []}

    def write(self) -> Generator[Ask, str, dict[str, Any]]:
        """The row of the draft: a dialogue, or with `gate` and `problem` a rejected one."""
        try:
            yield from self._scenario()
            yield from self._make_calls()
            yield from self._question()
            if self.script.judge:
                yield from self._judged()
            if not self.session(self.tools).replays(self.calls, self.results):
                raise Refused("replay", "the calls give other results when they run again")
        except Refused as refused:
            self.row |= {"gate": refused.gate, "problem": refused.problem}
        calls = [call.to_json() for call in self.calls]
        results = [result._asdict() for result in self.results]
        return {
            **self.row,
            "calls": calls,
            "results": results,
            "used": self.known["used"],
            "reasked": dict(+self.reasked),
        }

    def _ask(
        self, role: str, messages: list[Message], schema: Mapping[str, Any], read: Callable[[dict[str, Any]], T]
    ) -> Generator[Ask, str, T]:
        """What `read` makes of a reply; a reply that it refuses is asked for again, with the reason. `messages` goes on
        with the reply that was taken.
        """
        chat = list(messages)
        for left in reversed(range(self.script.reasks + 1)):
            self.asked += 1
            reply = yield Ask(role, tuple(chat), schema, f"{self.seed}/{self.asked}", {**self.known, "row": self.row})
            try:
                found = read(read_object(reply))
                messages.append(Message(role="assistant", content=reply))
                return found
            except Refused as refused:
                if not left or refused.gate == "restart":
                    self.row["reply"] = reply[:MAX_TEXT]
                    raise
                self.reasked[refused.gate] += 1
                chat += [Message(role="assistant", content=reply or "(empty)")]
                chat += [Message(role="user", content=prompt("again").format(problem=refused.problem))]
        raise AssertionError

    def _scenario(self) -> Generator[Ask, str, None]:
        script, names = self.script, [tool.spec.name for tool in self.window]
        low, high = (min(bound, len(names)) for bound in script.offered)
        schema = _object(
            scenario=_STRING,
            facts={"type": "array", "items": _STRING, "minItems": script.facts[0], "maxItems": script.facts[1]},
            tools={"type": "array", "items": {"enum": names}, "minItems": low, "maxItems": high},
        )
        text = prompt("scenario").format(
            tools=_listed(self.window), state=self._state(self.window), least_facts=script.facts[0],
            most_facts=script.facts[1], least_tools=low, most_tools=high, least_used=script.least_tools,
        )  # fmt: skip

        def read(found: dict[str, Any]) -> None:
            scenario, facts, listed = _text(found, "scenario"), found.get("facts"), found.get("tools")
            if named := named_tool(scenario, names):
                raise Refused("scenario", f'"scenario" contains the name of the tool {named}')
            if not isinstance(facts, list) or not all(isinstance(one, str) for one in facts):
                raise Refused("format", '"facts" must be a list of texts')
            chosen = [name for name in names if isinstance(listed, list) and name in listed][:high]
            if not chosen:  # as released
                chosen = self.rng.sample(names, min(5, len(names)))
            self.rng.shuffle(chosen)
            self.row |= {"scenario": scenario, "facts": facts[: max(script.facts[1], 1)], "tools": chosen}

        yield from self._ask("scenario", [Message(role="user", content=text)], schema, read)
        by_name = {tool.spec.name: tool for tool in self.window}
        self.tools = [by_name[name] for name in self.row["tools"]]
        self.facts = "\n".join(f"- {fact}" for fact in self.row["facts"])

    def _state(self, tools: Sequence[Tool]) -> str:
        groups = dict.fromkeys(tool.group for tool in tools)
        found = {group: self.states[group] for group in groups if self.states.get(group)}
        return f"What is there before the first call: {dumps(found)[:MAX_TEXT]}" if found else ""

    def _make_calls(self) -> Generator[Ask, str, None]:
        script, session = self.script, self.session(self.tools)
        most = self.rng.randint(*script.turns) - 1  # as released: of 4 to 7 turns, the last one is the answer
        said = {"scenario": self.row["scenario"], "facts": self.facts, "tools": _listed(self.tools)}
        system = prompt("calls").format(**said, state=self._state(self.tools), least_used=script.least_tools)
        chat = [Message(role="system", content=system), Message(role="user", content=prompt("first"))]
        self.known |= {"calls": self.calls, "results": self.results, "most": most}
        failures, answer = 0, None
        while len(self.calls) < most and failures <= most:
            call, answer = yield from self._ask("call", chat, self._choices(), self._read_call)
            if call is None:
                break
            result = yield from self._run(session, call)
            again = (call, result) in zip(self.calls, self.results, strict=True)
            if again and self.reasked["repeated"] >= script.reasks:
                raise Refused("repeated", f"{call.name} is called again with the same result")
            self.reasked["repeated"] += again
            if not again and not result.failed:
                self.calls.append(call)
                self.results.append(result)
            failures += again or result.failed
            left = most - len(self.calls)
            word = "next" if left > 1 else "last" if left else "result"
            chat.append(Message(role="user", content=prompt(word).format(name=call.name, result=result.text)))
        used = len({call.name for call in self.calls})
        if used < script.least_tools:
            raise Refused("calls", f"{used} different tools gave a result, {script.least_tools} are asked for")
        if answer is None:
            chat[-1] = Message(role="user", content=f"{chat[-1].content}\n{prompt('answer')}")
            yield from self._ask(
                "answer", chat, _object(answer=_STRING), lambda found: self._take(_text(found, "answer"))
            )

    def _choices(self) -> dict[str, Any]:
        names = [*(tool.spec.name for tool in self.tools), "restart"]
        names += ["answer"] * (len({call.name for call in self.calls}) >= self.script.least_tools)
        return _object(tool={"enum": names}, arguments={"type": "object"})

    def _read_call(self, found: dict[str, Any]) -> tuple[ToolCall | None, str | None]:
        name, arguments = found.get("tool"), found.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Refused("format", '"tool" must be a name and "arguments" an object')
        own = {tool.spec.name for tool in self.tools}
        if name == "restart" and name not in own:
            raise Refused("restart", str(arguments.get("reason") or "no reason given")[:500])
        if name == "answer" and name not in own:
            if len({call.name for call in self.calls}) < self.script.least_tools:
                raise Refused("calls", f"call at least {self.script.least_tools} different tools first")
            return None, self._take(_text(arguments, "text"))
        call = ToolCall(name=name, arguments=arguments)
        if problems := check_call(call, [tool.spec for tool in self.tools]):
            raise Refused("schema", " ".join(problem.explanation for problem in problems[:3]))
        return call, None

    def _run(self, session: Session, call: ToolCall) -> Generator[Ask, str, Result]:
        if session.runs(call.name):
            return session.run(call)
        if not self.script.written_results:
            raise Refused("schema", f"{call.name} cannot run, and written_results=false")
        spec = next(tool.spec for tool in self.tools if tool.spec.name == call.name)
        text = prompt("result_of").format(
            tool=dumps(spec.to_json())[:MAX_TEXT], scenario=self.row["scenario"], facts=self.facts, calls=self._steps(),
            call=dumps(call.to_json()),
        )  # fmt: skip

        def read(found: dict[str, Any]) -> Result:
            if found.get("result") in (None, "", {}, []):
                raise Refused("format", '"result" must say what the tool returns')
            value = found["result"]
            return Result((value if isinstance(value, str) else dumps(value))[:MAX_TEXT], written=True)

        schema = {"type": "object", "properties": {"result": {}}, "required": ["result"]}
        self.known["call"] = call
        return (yield from self._ask("result", [Message(role="user", content=text)], schema, read))

    def _steps(self) -> str:
        steps = zip(self.calls, self.results, strict=True)
        lines = (f"{at}. {dumps(call.to_json())} -> {result.text}" for at, (call, result) in enumerate(steps, 1))
        return "\n".join(lines) or "none"

    def _take(self, answer: str) -> str:
        results = Said(*(result.text for result in self.results))
        arguments = (dumps(call.arguments) for call in self.calls)
        if problem := unsupported(answer, results, Said(self.row["scenario"], *self.row["facts"], *arguments)):
            raise Refused("answer", f"the answer does not fit the results: {problem}")
        self.row["answer"] = answer
        return answer

    def _question(self) -> Generator[Ask, str, None]:
        specs = {tool.spec.name: tool.spec for tool in self.tools}
        steps = []
        for call in self.calls:  # the release shows names and descriptions alone
            needed = f" with {dumps(call.arguments)}" if self.script.show_arguments and call.arguments else ""
            steps.append(f"- {call.name} ({specs[call.name].description}){needed}")
        text = prompt("question").format(
            scenario=self.row["scenario"], facts=self.facts, calls="\n".join(steps), answer=self.row["answer"]
        )

        def read(found: dict[str, Any]) -> None:
            question = _text(found, "question")
            if named := named_tool(question, list(specs)):
                raise Refused("tool_name", f"the message contains the name of the tool {named}")
            for at, call in enumerate(self.calls):
                said = Said(question, *(result.text for result in self.results[:at]))
                if missing := ungrounded(call.arguments, said):
                    key, value = missing
                    raise Refused("grounding", f"the message does not say {dumps(value)[:200]} ({key} of {call.name})")
            self.row["question"] = question

        yield from self._ask("question", [Message(role="user", content=text)], _object(question=_STRING), read)

    def _judged(self) -> Generator[Ask, str, None]:
        parts = {"question": self.row["question"], "calls": self._steps(), "answer": self.row["answer"]}
        quoted = {key: re.sub(r"<\s*(/?)\s*data\s*>", r"<\1data_>", text, flags=re.I) for key, text in parts.items()}
        text = prompt("judge").format(**quoted)

        def read(found: dict[str, Any]) -> None:
            if not isinstance(found.get("good"), bool):
                raise Refused("format", '"good" must be true or false')
            self.row["verdict"] = {"good": found["good"], "reason": str(found.get("reason") or "")[:500]}

        schema = _object(good={"type": "boolean"}, reason=_STRING)
        yield from self._ask("judge", [Message(role="user", content=text)], schema, read)
        if not self.row["verdict"]["good"]:
            raise Refused("judge", self.row["verdict"]["reason"] or "not good")
