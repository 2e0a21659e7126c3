"""Samples to token ids, token ids to text and candidates. The only user of chat templates.

Training, sampling and evaluation share one `Renderer` and so see the same ids: a prompt, and an answer that ends with
the end-of-turn token. Prompts are never cut, since a cut prompt loses tools: the caller leaves out too long samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ttpa.calls.syntaxes import OpenCall, ParseError, Syntax
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    parts = []
    for name, schema in tool.properties.items():
        kind = schema.get("type") if isinstance(schema, dict) else None
        short = _TYPE_NAMES.get(kind) if isinstance(kind, str) else None
        parts.append(f"{name}:{short}" if short else name)
    return f"{tool.name}({','.join(parts)})"


def _said(message: Message, syntax: Syntax) -> str:
    """The text of a turn, its calls in the syntax the model is taught to write, whatever the template would give."""
    return syntax.print(message.calls) if message.calls else message.content


def compact_segments(sample: Sample, syntax: Syntax) -> list[tuple[str, str]]:
    """(special token, text after it) in prompt order; the last one opens the answer."""
    segments = [("<tools>", "\n".join(map(signature, sample.tools)))]
    for message in sample.messages:
        segments.append((f"<{message.role}>", _said(message, syntax) + "<eos>" * (message.role == "assistant")))
    return [*segments, ("<assistant>", "")]


class TextStream:
    """Decodes one answer token by token: a window from the last token whose text was given out, which grows while its
    end may still become a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # characters of the window that have been given out

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self._window, skip_special_tokens=False))

    def push(self, token: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        self._window.append(token)
        text = self._decoded()
        whole = text.rstrip("\ufffd")  # what bytes decode to that are no character, or none yet
        added = whole[self._given :]
        self._given = max(self._given, len(whole))
        if added and whole == text:
            self._window = [token]
            self._given = len(self._decoded())
        return added


class CallWatch:
    """Whether the next token of an answer lies inside a call, token by token; see `ttpa.calls.syntaxes.OpenCall`."""

    def __init__(self, tokenizer: Any, syntax: Syntax) -> None:
        self._text, self._call = TextStream(tokenizer), OpenCall(syntax)

    def push(self, token: int) -> None:
        self._call.push(self._text.push(token))

    @property
    def inside(self) -> bool:
        return self._call.inside


@dataclass(kw_only=True)
class Renderer:
    """Turns samples into token ids and token ids into candidates.

    Args:
        tokenizer: A transformers tokenizer. For `compact` it must hold `COMPACT_TOKENS`.
        template: "chat" is the model's own, given the tools through `tools=` where it takes them, else as JSON in the
            system message; "compact" is ours for the small model, one signature a line.
        syntax: How calls are written.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    syntax: Syntax

    def __post_init__(self) -> None:
        if self.template not in ("chat", "compact"):
            raise ConfigError.at("model.template", self.template, "unknown template", "Use chat or compact")
        if self.template == "chat" and not self.tokenizer.chat_template:
            problem = f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template"
            remedy = "Use an instruction-tuned model or model.template=compact"
            raise ConfigError.at("model.template", "chat", problem, remedy)
        self.end_of_turn = self._end_of_turn()
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.stop_ids = tuple(dict.fromkeys(token for token in (self.end_of_turn, eos) if token is not None))
        self.pad_id = self.end_of_turn if pad is None else int(pad)  # never attended to and never in a loss

    def _end_of_turn(self) -> int:
        """The token that closes an assistant turn: the first special token that the template puts after the reply."""
        if self.template == "chat":
            turns = [Message(role="user", content="hi"), Message(role="assistant", content="ttpa-reply")]
            tail = self._chat_text(turns, (), False).rpartition("ttpa-reply")[2]
            added = self.tokenizer.added_tokens_decoder.items()
            special = {token for token, entry in added if entry.special} | set(self.tokenizer.all_special_ids)
            for token in self.tokenizer(tail, add_special_tokens=False)["input_ids"]:
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            problem, remedy = "the tokenizer has no end-of-turn token", "Use a tokenizer with an eos_token"
            raise ConfigError.at("model.name", self.tokenizer.name_or_path, problem, remedy)
        return int(self.tokenizer.eos_token_id)

    def prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Prompt ids of each sample, with what opens the answer. DataError: the template refuses it or drops a tool."""
        if self.template == "compact":
            return self._compact(samples)
        return self._encode([self._checked_chat_text(sample) for sample in samples], special=True)

    def _compact(self, samples: Sequence[Sample]) -> list[list[int]]:
        def body(special: str, text: str) -> str:
            return text.removesuffix("<eos>") if special == "<assistant>" else text

        plans = [compact_segments(sample, self.syntax) for sample in samples]
        bodies = list(dict.fromkeys(body(*segment) for plan in plans for segment in plan))
        encoded = dict(zip(bodies, self._encode(bodies), strict=True))
        ids = dict(zip(COMPACT_TOKENS, self.tokenizer.convert_tokens_to_ids(list(COMPACT_TOKENS)), strict=True))
        prompts: list[list[int]] = [[] for _ in plans]
        for plan, prompt in zip(plans, prompts, strict=True):
            for special, text in plan:
                prompt += [ids[special], *encoded[body(special, text)]]
                prompt += [ids["<eos>"]] * bool(special == "<assistant>" and text)
        return prompts

    def _encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of texts; without `special`, what looks like a special token stays text."""
        if not texts:
            return []
        how = {} if special else {"split_special_tokens": True}
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, **how)["input_ids"]]

    def _chat_text(self, messages: Sequence[Message], tools: Sequence[ToolSpec], open_answer: bool) -> str:
        rows = [{"role": message.role, "content": _said(message, self.syntax)} for message in messages]
        specs = [{"type": "function", "function": tool.to_json()} for tool in tools] or None
        if specs and "tools" not in str(self.tokenizer.chat_template):
            listing = "\n".join(["You can call these tools:", *(dumps(tool.to_json()) for tool in tools)])
            if rows and rows[0]["role"] == "system":
                listing = f"{rows.pop(0)['content']}\n\n{listing}"
            rows.insert(0, {"role": "system", "content": listing})
            specs = None
        apply = self.tokenizer.apply_chat_template
        return str(apply(rows, tools=specs, tokenize=False, add_generation_prompt=open_answer))

    def _checked_chat_text(self, sample: Sample) -> str:
        from jinja2 import TemplateError

        try:
            text = self._chat_text(sample.messages, sample.tools, True)
        except TemplateError as error:
            problem = f"sample {sample.id}: the chat template refuses the dialogue ({error})"
            raise DataError(f"{problem}. Use another model, or model.template=compact.") from None
        missing = []
        for name in (tool.name for tool in sample.tools):  # it must stand there beyond where the dialogue says it
            spoken = sum(_said(message, self.syntax).count(name) for message in sample.messages)
            escaped = dumps(name)[1:-1]
            if text.count(name) <= spoken and (escaped == name or escaped not in text):
                missing.append(name)
        if missing:
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
        made = zip(samples, self.answer_texts(samples), self.answers(samples), strict=True)
        return [
            Candidate(sample_id=sample.id, index=-1, text=text, token_ids=tuple(ids), calls=sample.target)
            for sample, text, ids in made
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
