"""Samples to token ids, token ids to text and candidates; the only user of chat templates. No prompt is ever cut."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain, islice, product
from typing import Any

from ttpa.calls.syntaxes import OpenCall, ParseError, Syntax
from ttpa.errors import ConfigError, DataError, tell_once
from ttpa.io import dumps
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec

COMPACT_TOKENS = ("<pad>", "<eos>", "<tools>", "<system>", "<user>", "<assistant>", "<tool>")
# What the policy is asked when it judges its own answers; the criteria and grades are iTool's, the words are ours.
JUDGE = (
    "Grade the reply above against the reference reply. Look at the function names, the number of arguments, their "
    "names, their types and values, and whether both mean the same. A part of the reference is as good as the whole.\n"
    "Reference: {target}\nReply: {answer}\nA: excellent. B: acceptable. C: fair. D: poor. Answer with one letter."
)
# What stands around the tools in the system's text where a template has no place for them; the words are ours.
TOOLS = (
    "You can call these tools:\n{tools}\nTo call tools, answer with the calls alone, written like these two:\n{calls}"
)
TOOLS += "\nIf no tool fits, or if something is missing that a tool needs, answer in words."
SHOWN = (ToolCall(name="tool", arguments={"text": "abc"}), ToolCall(name="other", arguments={"count": 2}))
DATE = "26 Jul 2024"  # the day that templates are told, as in Llama's own, so that prompts do not change overnight
DATE_FORMAT = "%d %b %Y"
_CUT = "\ufdd0"  # stands within text of the data that looks like a control token; texts are encoded in parts around it
_TYPE_NAMES = {"integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict"}


def signature(tool: ToolSpec) -> str:
    """One line for a tool: names, and types where they are not text, as in `f(a,n:int)`."""
    kinds = {name: str(schema.get("type")) for name, schema in tool.properties.items() if isinstance(schema, dict)}
    short = {name: f"{name}:{_TYPE_NAMES[kind]}" for name, kind in kinds.items() if kind in _TYPE_NAMES}
    return f"{tool.name}({','.join(short.get(name, name) for name in tool.properties)})"


def _said(message: Message, syntax: Syntax) -> str:
    """The text of a turn, then its calls in the syntax the model is taught to write; thoughts stay out of prompts."""
    calls = syntax.print(message.calls) if message.calls else ""
    return f"{message.content}\n{calls}" if message.content and calls else calls or message.content


def target_parts(sample: Sample, syntax: Syntax) -> list[tuple[str, str]]:
    """(part, text) of the target, of the parts "thoughts", "text" and "calls" those that it has, as the model should
    write them one after the other. A syntax that allows no text around calls leaves the text beside calls out.
    """
    calls, text = sample.target, sample.target_text or ""
    parts = [("thoughts", f"<think>\n{sample.target_thought}\n</think>\n\n")] if sample.target_thought else []
    if not calls:
        return [*parts, ("text", text)]
    parts += [("text", f"{text}\n")] if text and syntax.prose else []
    return [*parts, ("calls", syntax.print(calls))]


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


def _told_date(date: str) -> str:
    """What goes before a template that asks for today's date, so that it is told this one."""
    day = datetime.strptime(date, DATE_FORMAT)
    codes = "".join(f"|replace('%{code}', '{day:%{code}}')" for code in [*"aAbBdeHIjmMpSyY", "-d", "-m"])
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{codes} }}}}{{%- endmacro %}}\n"


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _own(text: str) -> str:
    """The assistant's text, whose thoughts stand between tokens."""
    return text.replace(f"<{_CUT}think>", "<think>").replace(f"<{_CUT}/think>", "</think>")


@dataclass(kw_only=True)
class Renderer:
    """Turns samples into token ids and token ids into candidates. The template "chat" is the model's own, given the
    tools through `tools=` where it takes them, else as JSON in the system message; "compact" is ours for the small
    model, one signature a line, and needs a tokenizer with `COMPACT_TOKENS`. `variables` are for the chat template;
    `ends` are tokens that end an answer besides the tokenizer's own. Text of a sample gives no control token.
    """

    tokenizer: Any
    template: str
    syntax: Syntax
    variables: Mapping[str, Any] = field(default_factory=dict)
    ends: Sequence[int] = ()
    _opening: str = field(default="", init=False)  # what the chat template writes between a question and its answer

    def __post_init__(self) -> None:
        tokenizer, pad, eos = self.tokenizer, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if self.template == "chat" and not tokenizer.chat_template:
            problem = f"the tokenizer of {tokenizer.name_or_path!r} has no chat template"
            remedy = "Use an instruction-tuned model or model.template=compact"
            raise ConfigError.at("model.template", "chat", problem, remedy)
        end = self._prepare_chat() if self.template == "chat" else None
        end = eos if end is None else end
        if end is None:
            problem, remedy = "the tokenizer has no end-of-turn token", "Use a tokenizer with an eos_token"
            raise ConfigError.at("model.name", tokenizer.name_or_path, problem, remedy)
        if self.template == "compact" and (absent := set(COMPACT_TOKENS[1:]) - set(tokenizer.added_tokens_encoder)):
            problem = f"the tokenizer of {tokenizer.name_or_path!r} lacks {' '.join(sorted(absent))}"
            raise ConfigError.at("model.template", "compact", problem, "Use model.template=chat")
        stops = (end, eos, *self.ends)
        self.end_of_turn, self.stop_ids = end, tuple(dict.fromkeys(token for token in stops if token is not None))
        self.pad_id = end if pad is None else pad  # never attended to and never in a loss

    def _prepare_chat(self) -> int | None:
        """Learns how the template writes calls, and which texts are control tokens: special ones, and added ones that
        the template or the syntax writes. Returns the token that closes an assistant turn.
        """
        tokenizer, marks = self.tokenizer, {*self.syntax.markers, *self.syntax.markers.values()}
        added, source = tokenizer.added_tokens_decoder.items(), str(tokenizer.chat_template)
        special = {token for token, entry in added if entry.special} | set(tokenizer.all_special_ids)
        used = {token for token, entry in added if entry.content in source or entry.content in marks}
        texts = sorted(tokenizer.convert_ids_to_tokens([*special | used]), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(text) for text in texts if len(text.strip()) > 1) or "(?!)")
        self._variables = {"date_string": DATE, **self.variables}
        self._today, self._native = _told_date(self._variables["date_string"]), True
        self._thoughts = next((key for key in ("reasoning_content", "thinking") if key in source), "")
        self._takes_tools = True
        user, reply = Message(role="user", content="hi"), Message(role="assistant", content="ttpa-reply")
        try:
            tail = self._chat_text([user, reply], ()).rpartition("ttpa-reply")[2]
            self._opening = self._chat_text([replace(user, content="ttpa-asks")], (), True).rpartition("ttpa-asks")[2]
            before, kept, after = self._chat_text([user, reply, user], ()).partition("ttpa-reply")
            if not kept:
                raise ValueError("it drops the reply")
        except Exception as error:  # a template is somebody's program
            problem, remedy = f"the template cannot render a greeting ({_reason(error)})", "Check model.template_kwargs"
            raise ConfigError.at("model.template", "chat", problem, remedy) from None
        with suppress(Exception):  # what it refuses is told with the sample
            self._takes_tools = self._chat_text([user], [ToolSpec(name="f")]) != self._chat_text([user], ())
        calls = (ToolCall(name="f", arguments={"a": "x"}), ToolCall(name="g", arguments={"n": [1]}))
        try:
            text = self._chat_text([user, Message(role="assistant", calls=calls), user], ())
        except Exception:
            text = ""
        written = text.removeprefix(before).removesuffix(after)
        self._native = text == before + written + after and self.syntax.parse(written) == calls
        return next((token for token in self._encode([tail], special=True)[0] if token in special), None)

    def prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Prompt ids of each sample, with what opens the answer. DataError: the template refuses it or drops a part."""
        found = self.try_prompts(samples)
        for refused in found:
            if isinstance(refused, DataError):
                raise refused
        return [ids for ids in found if not isinstance(ids, DataError)]

    def try_prompts(self, samples: Sequence[Sample]) -> list[list[int] | DataError]:
        """As `prompts`, with the error in the place of a sample's ids."""
        if self.template == "chat":
            texts = [self._checked_chat_text(self._guarded(sample)) for sample in samples]
            taken = iter(self._encode([text for text in texts if isinstance(text, str)], special=True))
            return [next(taken) if isinstance(text, str) else text for text in texts]
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
        parts = [text.split(_CUT) if special else [text] for text in texts]
        how = {"add_special_tokens": False, "split_special_tokens": not special}
        ids = iter(self.tokenizer([*chain(*parts)], **how)["input_ids"])
        return [[*chain(*islice(ids, len(each)))] for each in parts]

    def _guarded(self, sample: Sample) -> Sample:
        """The sample with `_CUT` within what would become a control token."""
        row = dumps(sample.to_json())
        cut = self._control.sub(lambda hit: hit[0][0] + _CUT + hit[0][1:], row)
        if cut == row:
            return sample
        made = Sample.from_json(json.loads(cut))
        turns = [replace(one, content=_own(one.content)) if one.role == "assistant" else one for one in made.messages]
        return replace(made, messages=tuple(turns), target_text=made.target_text and _own(made.target_text))

    def _chat_text(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], open_answer: bool = False,
        folded: bool = False, as_user: bool = False, as_text: bool = False,
    ) -> str:  # fmt: skip
        """What the template makes of a dialogue. `folded`: the system's text opens the first turn of the user;
        `as_user`: results of calls are turns of the user; `as_text`: calls are text, whatever the template could write.
        """
        template = self.tokenizer.get_chat_template(tools=tools or None)
        rows = self._rows(messages, as_user, as_text)
        given = self._takes_tools
        specs = [{"type": "function", "function": tool.to_json()} for tool in tools if given] or None
        if tools and not given:
            tell_once("the chat template has no place for tools: they stand in the system's text, with the call syntax")
            listing = "\n".join(dumps(tool.to_json()) for tool in tools)
            listing = TOOLS.format(tools=listing, calls=self.syntax.print(SHOWN))
            if rows and rows[0]["role"] == "system":
                listing = f"{rows.pop(0)['content']}\n\n{listing}"
            rows.insert(0, {"role": "system", "content": listing})
        if folded and rows[0]["role"] == "system":
            first = [rows.pop(0)["content"]]
            first += [rows.pop(0)["content"]] if rows and rows[0]["role"] == "user" else []
            rows.insert(0, {"role": "user", "content": "\n\n".join(first)})
        if "strftime_now" in template:
            template = self._today + template
        # SmolLM3 knows them by another name.
        how = {
            "tools": specs,
            "xml_tools": specs,
            "tokenize": False,
            "add_generation_prompt": open_answer,
            "chat_template": template,
        }
        return str(self.tokenizer.apply_chat_template(rows, **how, **self._variables))

    def _rows(self, messages: Sequence[Message], as_user: bool, as_text: bool) -> list[dict[str, Any]]:
        """Messages as templates take them. A result has the name and the id of its call; a thought goes to templates
        that ask for it, which show it where their model should see it.
        """
        rows, asked = list[dict[str, Any]](), list[dict[str, Any]]()
        for at, message in enumerate(messages):
            row: dict[str, Any] = {"role": message.role, "content": _said(message, self.syntax)}
            row |= {self._thoughts: message.thought} if message.thought and self._thoughts else {}
            if message.calls:
                made = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.calls]
                ids = [f"call{at:03}{number:02}" for number in range(len(made))]  # nine letters, as Mistral's have
                asked = [{"id": one, "type": "function", "function": call} for one, call in zip(ids, made, strict=True)]
                row |= {"content": message.content, "tool_calls": list(asked)} if self._native and not as_text else {}
            elif message.role == "tool" and as_user:
                row = {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
                if at and messages[at - 1].role == "tool":
                    row["content"] = f"{rows.pop()['content']}\n{row['content']}"
            elif message.role == "tool" and asked:
                call = asked.pop(0) if len(asked) > 1 else asked[0]
                row |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
            rows.append(row)
        return rows

    def _checked_chat_text(self, sample: Sample) -> str | DataError:
        """The text of the first way to render a dialogue in which nothing is lost."""
        problems, either = [], (False, True)
        mixed = self._native and any(message.calls and message.content for message in sample.messages)
        for as_text, folded, as_user in product(either if mixed else (False,), either, either):
            try:
                text = self._chat_text(sample.messages, sample.tools, True, folded, as_user, as_text)
            except Exception as error:  # a template is somebody's program
                problems.append(f"refuses the dialogue ({_reason(error)})")
                continue
            if not (lost := self._lost(sample, text, as_text)):
                return text
            problems.append(lost)
        problem = f"sample {sample.id}: the chat template {problems[0]}".replace(_CUT, "")
        return DataError(f"{problem}. Use another model, or model.template=compact with a tokenizer for it.")

    def _lost(self, sample: Sample, text: str, as_text: bool) -> str:
        """Which turn or which tools do not stand in a rendered text; a turn may be trimmed, escaped as JSON, and freed
        of its thoughts. What other turns say does not count.
        """

        def count(words: str, where: str) -> int:
            escaped = dumps(words)[1:-1]
            return where.count(words) + (where.count(escaped) if escaped != words else 0)

        said = [_said(message, self.syntax).rpartition("</think>")[2].strip() for message in sample.messages]
        turns = [words for words, message in zip(said, sample.messages, strict=True) if message.role != "system"]
        begun = max(0, text.find(turns[0])) if turns else 0
        for number, (message, words) in enumerate(zip(sample.messages, said, strict=True), 1):
            where, others = (text, said) if message.role == "system" else (text[begun:], turns)
            if message.calls and self._native and not as_text:  # calls are in the template's writing
                words = message.content.rpartition("</think>")[2].strip()
            if words and count(words, where) < sum(other.count(words) for other in others):
                return f"dropped turn {number} ({message.role}: {words[:60]!r})"
        listed = "\0".join(said)
        missing = [tool.name for tool in sample.tools if count(tool.name, text) <= listed.count(tool.name)]
        return f"dropped the tools {missing}" if missing else ""

    def _target_parts(self, sample: Sample) -> list[tuple[str, str]]:
        """`target_parts` behind the end of the prompt, in which a template may have opened a thought, or closed it."""
        parts, (_, begun, after) = target_parts(sample, self.syntax), self._opening.rpartition("<think>")
        thought = parts.pop(0)[1].removeprefix("<think>\n") if parts[0][0] == "thoughts" else ""
        if begun and "</think>" in after:  # no thought is wanted
            return parts
        if begun:
            return [("thoughts", "\n" * ("\n" not in after) + (thought or "\n</think>\n\n")), *parts]
        return [("thoughts", f"<think>\n{thought}"), *parts] if thought else parts

    def answer_texts(self, samples: Sequence[Sample]) -> list[str]:
        """The target of each sample as the model should write it."""
        return ["".join(text for _, text in self._target_parts(sample)) for sample in samples]

    def answer_parts(self, samples: Sequence[Sample]) -> list[list[tuple[str, list[int]]]]:
        """Target ids of each sample by part (see `target_parts`), end-of-turn in the last one."""
        chat = self.template == "chat"  # where tags around calls may be tokens
        found = [self._target_parts(self._guarded(sample) if chat else sample) for sample in samples]
        ids = iter(self._encode([text for parts in found for _, text in parts], special=chat))
        made = [[(part, next(ids)) for part, _ in parts] for parts in found]
        for parts in made:
            parts[-1][1].append(self.end_of_turn)
        return made

    def answers(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Target ids of each sample, end-of-turn included."""
        return [[*chain(*(ids for _, ids in parts))] for parts in self.answer_parts(samples)]

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
        calls = self.read(answer)[0] or ()
        whole = bool(calls) and self.syntax.print(calls) == answer
        reply = Message(role="assistant", content="" if whole else answer, calls=calls if whole else ())
        asked = (*sample.messages, reply, Message(role="user", content=question))
        return self.prompts([replace(sample, messages=asked, target=(), target_text="A")])[0]

    def said(self, message: Message) -> str:
        """The text of a turn, its calls in the syntax of the model."""
        return _said(message, self.syntax)

    def whole_template(self) -> str:
        """A chat template with which transformers alone writes these prompts from `messages` and `tools`, and answers
        up to their end. Text of a sample may give control tokens; results of calls are written alike in every dialogue.
        """
        from ttpa.calls.templates import closed, compact_template, in_front

        if self.template == "compact":
            return compact_template(self.syntax.name, dumps(_TYPE_NAMES))
        template = self.tokenizer.get_chat_template(tools=[{}])
        known = {name: value for name, value in self._variables.items() if name in template}
        given = "".join(
            f"{{%- set {name} = {name} if {name} is defined else {dumps(value)} %}}\n" for name, value in known.items()
        )
        given += "{%- set xml_tools = tools %}\n" if "xml_tools" in template else ""
        today = self._today if "strftime_now" in template else ""
        folded, as_user = self._way(self._takes_tools)
        behind = TOOLS.partition("{tools}")[2].format(calls=self.syntax.print(SHOWN))
        how: dict[str, Any] = {
            "tools": "" if self._takes_tools else behind,
            "calls": not self._native,
            "folded": folded,
            "as_user": as_user,
        }
        said = [Message(role="user", content="hi"), Message(role="assistant", content="ttpa-reply")]
        tail = self._chat_text(said, ()).rpartition("ttpa-reply")[2]
        end = str(self.tokenizer.convert_ids_to_tokens(self.end_of_turn))
        return closed(f"{given}{today}{in_front(self.syntax.name, **how)}{template}", len(tail.partition(end)[2]))

    def _way(self, listed: bool) -> tuple[bool, bool]:
        """How the template takes a system's text and results of calls; see `_chat_text`."""
        told, asked = Message(role="system", content="ttpa-system"), Message(role="user", content="ttpa-asks")
        called = Message(role="assistant", calls=(ToolCall(name="f", arguments={"a": "x"}),))
        turns = (
            asked,
            called,
            Message(role="tool", content="ttpa-result"),
            Message(role="assistant", content="so"),
            asked,
        )
        found = [False, False]
        for at, said in enumerate(((told, asked), turns if listed else (told, *turns))):
            for found[at] in (False, True):
                sample = Sample(id="", source="", tools=(ToolSpec(name="f"),), messages=said, target=())
                with suppress(Exception):  # a template is somebody's program
                    if not self._lost(sample, self._chat_text(said, sample.tools, True, *found), False):
                        break
            else:
                found[at] = False
        return found[0], found[1]

    def letters(self) -> tuple[int, ...] | None:
        """Token ids of A, B, C, D; None where one of them is no token of its own."""
        ids = self._encode(list("ABCD"))
        return tuple(token for (token,) in ids) if all(len(each) == 1 for each in ids) else None
