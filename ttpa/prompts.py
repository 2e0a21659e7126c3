"""Samples to token ids, token ids to text and candidates; the only user of chat templates. No prompt is ever cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from jinja2 import TemplateError

from ttpa.calls.syntaxes import OpenCall, ParseError, Syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec

COMPACT_TOKENS = ("<pad>", "<eos>", "<tools>", "<system>", "<user>", "<assistant>", "<tool>")
# What the policy is asked when it judges its own answers; the criteria and grades are iTool's, the words are ours.
JUDGE = (
    "Grade the reply above against the reference reply. Look at the function names, the number of arguments, their "
    "names, their types and values, and whether both mean the same. A part of the reference is as good as the whole.\n"
    "Reference: {target}\nReply: {answer}\nA: excellent. B: acceptable. C: fair. D: poor. Answer with one letter."
)
_TYPE_NAMES = {"integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict"}


def signature(tool: ToolSpec) -> str:
    """One line for a tool: names, and types where they are not text, as in `f(a,n:int)`."""
    kinds = {name: str(schema.get("type")) for name, schema in tool.properties.items() if isinstance(schema, dict)}
    short = {name: f"{name}:{_TYPE_NAMES[kind]}" for name, kind in kinds.items() if kind in _TYPE_NAMES}
    return f"{tool.name}({','.join(short.get(name, name) for name in tool.properties)})"


def _said(message: Message, syntax: Syntax) -> str:
    """The text of a turn, its calls in the syntax the model is taught to write, whatever the template would give."""
    return syntax.print(message.calls) if message.calls else message.content


def compact_segments(sample: Sample, syntax: Syntax) -> list[tuple[str, str]]:
    """(special token, text after it) in prompt order; the last one opens the answer."""
    turns = [(f"<{m.role}>", _said(m, syntax) + "<eos>" * (m.role == "assistant")) for m in sample.messages]
    return [("<tools>", "\n".join(map(signature, sample.tools))), *turns, ("<assistant>", "")]


class TextStream:
    """Decodes one answer token by token: a window from the last token whose text was given out, which grows while its
    end may still become a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=False)
        self._window: list[int] = []
        self._given = 0  # characters of the window that have been given out

    def push(self, token: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        self._window.append(token)
        text: str = self._decode(self._window)
        whole = text.rstrip("\ufffd")  # what bytes decode to that are no character, or none yet
        added = whole[self._given :]
        self._given = max(self._given, len(whole))
        if added and whole == text:
            self._window = [token]
            self._given = len(self._decode(self._window))
        return added


class CallWatch:
    """Whether the next token of an answer, which begins with `given`, lies inside a call; see `OpenCall`."""

    def __init__(self, tokenizer: Any, syntax: Syntax, given: Sequence[int] = ()) -> None:
        self._text, self._call, self.inside = TextStream(tokenizer), OpenCall(syntax), False
        for token in given:
            self.push(token)

    def push(self, token: int) -> None:
        self._call.push(self._text.push(token))
        self.inside = self._call.inside


@dataclass(kw_only=True)
class Renderer:
    """Turns samples into token ids and token ids into candidates. The template "chat" is the model's own, given the
    tools through `tools=` where it takes them, else as JSON in the system message; "compact" is ours for the small
    model, one signature a line, and needs a tokenizer with `COMPACT_TOKENS`.
    """

    tokenizer: Any
    template: str
    syntax: Syntax

    def __post_init__(self) -> None:
        if self.template == "chat" and not self.tokenizer.chat_template:
            problem = f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template"
            remedy = "Use an instruction-tuned model or model.template=compact"
            raise ConfigError.at("model.template", "chat", problem, remedy)
        tokenizer, pad, eos = self.tokenizer, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        end = eos
        if self.template == "chat":  # an assistant turn ends with the first special token behind the reply
            turns = [Message(role="user", content="hi"), Message(role="assistant", content="ttpa-reply")]
            tail = self._chat_text(turns, (), False).rpartition("ttpa-reply")[2]
            special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
            ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
            end = next((token for token in ids if token in special | set(tokenizer.all_special_ids)), eos)
        if end is None:
            problem, remedy = "the tokenizer has no end-of-turn token", "Use a tokenizer with an eos_token"
            raise ConfigError.at("model.name", tokenizer.name_or_path, problem, remedy)
        self.end_of_turn, self.stop_ids = end, tuple(dict.fromkeys(token for token in (end, eos) if token is not None))
        self.pad_id = end if pad is None else pad  # never attended to and never in a loss

    def prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Prompt ids of each sample, with what opens the answer. DataError: the template refuses it or drops a tool."""
        if self.template == "chat":
            return self._encode([self._checked_chat_text(sample) for sample in samples], special=True)
        plans = [
            [(special, text.removesuffix("<eos>") if special == "<assistant>" else text) for special, text in segments]
            for segments in (compact_segments(sample, self.syntax) for sample in samples)
        ]
        bodies = list(dict.fromkeys(text for plan in plans for _, text in plan))
        encoded = dict(zip(bodies, self._encode(bodies), strict=True))
        ids = dict(zip(COMPACT_TOKENS, self.tokenizer.convert_tokens_to_ids(list(COMPACT_TOKENS)), strict=True))
        ends = {"<assistant>": [ids["<eos>"]]}
        turns = [[[ids[role], *encoded[text], *ends.get(role, ())] for role, text in plan] for plan in plans]
        return [[*chain(*turn)][:-1] for turn in turns]  # the last turn is open

    def _encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of texts; without `special`, what looks like a special token stays text."""
        if not texts:
            return []
        how = {} if special else {"split_special_tokens": True}
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, **how)["input_ids"]]

    def _chat_text(self, messages: Sequence[Message], tools: Sequence[ToolSpec], open_answer: bool) -> str:
        rows = [{"role": message.role, "content": _said(message, self.syntax)} for message in messages]
        listed = "tools" in str(self.tokenizer.chat_template)
        specs = [{"type": "function", "function": tool.to_json()} for tool in tools if listed] or None
        if tools and not listed:
            listing = "\n".join(["You can call these tools:", *(dumps(tool.to_json()) for tool in tools)])
            if rows and rows[0]["role"] == "system":
                listing = f"{rows.pop(0)['content']}\n\n{listing}"
            rows.insert(0, {"role": "system", "content": listing})
        apply = self.tokenizer.apply_chat_template
        return str(apply(rows, tools=specs, tokenize=False, add_generation_prompt=open_answer))

    def _checked_chat_text(self, sample: Sample) -> str:
        try:
            text = self._chat_text(sample.messages, sample.tools, True)
        except TemplateError as error:
            problem = f"sample {sample.id}: the chat template refuses the dialogue ({error})"
            raise DataError(f"{problem}. Use another model, or model.template=compact.") from None
        said = "\0".join(_said(message, self.syntax) for message in sample.messages)
        # A name must stand there beyond where the dialogue says it, or as JSON escapes it.
        absent = [tool.name for tool in sample.tools if text.count(tool.name) <= said.count(tool.name)]
        if missing := [name for name in absent if (written := dumps(name)[1:-1]) == name or written not in text]:
            problem = f"sample {sample.id}: the chat template dropped the tools {missing}"
            raise DataError(f"{problem}. Use a model whose template takes tools, or model.template=compact.")
        return text

    def answer_texts(self, samples: Sequence[Sample]) -> list[str]:
        """The target of each sample as the model should write it."""
        return [self.syntax.print(s.target) if s.target else s.target_text or "" for s in samples]

    def answers(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Target ids of each sample, end-of-turn included."""
        return [[*ids, self.end_of_turn] for ids in self._encode(self.answer_texts(samples))]

    def gold(self, samples: Sequence[Sample]) -> list[Candidate]:
        """The targets as candidates (index -1)."""
        return [
            Candidate(sample_id=sample.id, index=-1, text=text, token_ids=tuple(ids), calls=sample.target)
            for sample, text, ids in zip(samples, self.answer_texts(samples), self.answers(samples), strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        """Sampled tokens as text, without what ends the turn."""
        kept = [token for token in token_ids if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; what ends the turn adds nothing."""
        stream = TextStream(self.tokenizer)
        return ["" if token in self.stop_ids else stream.push(token) for token in token_ids]

    def read(self, text: str) -> tuple[tuple[ToolCall, ...] | None, str | None]:
        """(calls, None), or (None, reason) when the text does not parse."""
        parsed = self.syntax.parse(text)
        return (None, parsed.reason) if isinstance(parsed, ParseError) else (parsed, None)

    def candidate(self, sample: Sample, index: int, token_ids: Sequence[int], **fields: Any) -> Candidate:
        """A sampled answer as a record. `fields` are passed on: logps, finish, branches."""
        text = self.text(token_ids)
        calls, error = self.read(text)
        fields |= {"sample_id": sample.id, "index": index, "text": text, "token_ids": tuple(token_ids)}
        return Candidate(calls=calls, error=error, **fields)

    def judge_prompt(self, sample: Sample, answer: str) -> list[int]:
        """Prompt ids that ask the model to grade an answer with one letter, A (best) to D; see `letters`."""
        question = JUDGE.format(answer=answer, target=self.answer_texts([sample])[0])
        asked = (*sample.messages, Message(role="assistant", content=answer), Message(role="user", content=question))
        return self.prompts([replace(sample, messages=asked, target=(), target_text="A")])[0]

    def letters(self) -> tuple[int, ...] | None:
        """Token ids of A, B, C, D; None where one of them is no token of its own."""
        ids = self._encode(list("ABCD"))
        return tuple(token for (token,) in ids) if all(len(each) == 1 for each in ids) else None
