"""The benchmark's workloads: which sequences a training step takes. Knows neither TRL nor the timing.

Pairs and groups are random tokens of fixed lengths; SFT and dialogues are the ToolACE and xLAM samples of `tests/data`,
under a byte-level BPE of 2,048 tokens trained on them and a plain ChatML template with the tools as JSON.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ttpa.calls.syntaxes import get_syntax
from ttpa.data.bands import Bands
from ttpa.data.published import FileSource
from ttpa.data.rows import BadRow, read_rows
from ttpa.data.toolace import ToolACE
from ttpa.data.xlam import XLAM
from ttpa.policy.tree import TokenRow
from ttpa.prompts import Renderer
from ttpa.records import Sample, tools_to_text

DATA = Path(__file__).parents[2] / "tests" / "data"
SMALL_VOCAB, LARGE_VOCAB, MEMORY_VOCAB = 2_048, 50_000, 150_000
PAD, EOS, FIRST_WORD = 0, 1, 3  # 2 is the unknown word of TRL's tokenizer
SHAPES = {(256, 32): 8, (512, 64): 8, (1024, 64): 4}
"""(prompt, answer) -> pairs a step, so that a step takes about a second on two cores."""
MOST_TOKENS = 18_000
"""Padded tokens of a GRPO step above which it has one prompt instead of two, to keep the whole grid in minutes."""
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nYou may call these tools, one JSON object a line:\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `kind` is sft, dpo, simpo, grpo or dialogues. `prompt` and `answer` are lengths in tokens, `count` is pairs or
    prompts a step (rows for sft, dialogues), `group` answers a prompt. `data` names samples for the kinds that take
    real ones. `memory` measures peaks instead of times.
    """

    name: str
    section: str
    kind: str
    vocab: int = SMALL_VOCAB
    prompt: int = 0
    answer: int = 0
    count: int = 0
    group: int = 1
    data: str = ""
    memory: bool = False


@dataclass(frozen=True)
class Work:
    """What a contender is timed on: one or more optimiser steps, each over some rows.

    `kind` says the loss: sft, dpo, simpo or grpo. Rows of a step: chosen then rejected for pairs; the answers of a
    prompt side by side for groups. `advantages` has one number a row (grpo), `ratio` is SimPO's gamma over beta.
    """

    kind: str
    vocab: int
    steps: list[list[TokenRow]]
    advantages: list[float] = field(default_factory=list)
    ratio: float = 0.25


def all_cases(quick: bool) -> list[Case]:
    """The grid, in the order of the table."""
    if quick:
        return _quick_cases()
    found = [Case(f"sft {data}", "sft", "sft", count=8, data=data) for data in ("toolace", "xlam", "both")]
    for kind in ("dpo", "simpo"):
        for (prompt, answer), pairs in SHAPES.items():
            found.append(Case(f"{kind} {prompt}/{answer}", "pairs", kind, SMALL_VOCAB, prompt, answer, pairs, 2))
    for prompt, answer in SHAPES:
        for group in (4, 8, 16):
            name = f"grpo {prompt}/{answer} G={group}"
            prompts = 2 if 2 * group * (prompt + answer) <= MOST_TOKENS else 1
            found.append(Case(name, "grpo", "grpo", SMALL_VOCAB, prompt, answer, prompts, group))
    for group in (1, 5):
        found.append(Case(f"dialogues n={group}", "dialogues", "dialogues", group=group, data="dialogues", count=4))
    for prompt, answer in ((512, 64), (1024, 64)):
        pairs = SHAPES[
            prompt, answer
        ]  # the batches of the rows above; one prompt for grpo, whose padded logits are larger
        for kind, count, group in (("dpo", pairs, 2), ("simpo", pairs, 2), ("grpo", 1, 8)):
            name = f"{kind} {prompt}/{answer}" + (f" G={group}" if kind == "grpo" else "")
            found.append(Case(f"{name} V=50k", "vocabulary", kind, LARGE_VOCAB, prompt, answer, count, group))
    for kind in ("dpo", "simpo"):
        name = f"{kind} 512/64 V=150k"
        found.append(Case(name, "memory", kind, MEMORY_VOCAB, 512, 64, 8, 2, memory=True))
    return found


def _quick_cases() -> list[Case]:
    return [
        Case("sft both", "sft", "sft", count=2, data="both"),
        Case("dpo 64/8", "pairs", "dpo", SMALL_VOCAB, 64, 8, 2, 2),
        Case("simpo 64/8", "pairs", "simpo", SMALL_VOCAB, 64, 8, 2, 2),
        Case("grpo 64/8 G=4", "grpo", "grpo", SMALL_VOCAB, 64, 8, 2, 4),
        Case("dialogues n=1", "dialogues", "dialogues", data="dialogues", count=1),
        Case("dialogues n=2", "dialogues", "dialogues", group=2, data="dialogues", count=1),
        Case("dpo 64/8 V=5k", "vocabulary", "dpo", 5_000, 64, 8, 2, 2),
        Case("dpo 64/8 V=5k", "memory", "dpo", 5_000, 64, 8, 2, 2, memory=True),
        Case("simpo 64/8 V=5k", "memory", "simpo", 5_000, 64, 8, 2, 2, memory=True),
    ]


# --- real samples ------------------------------------------------------------------------------------------------


def _source(kind: type[FileSource], name: str) -> FileSource:
    options = yaml.safe_load((Path(__file__).parents[2] / "conf" / "published_data.yaml").read_text(encoding="utf-8"))
    bands = {key: value for key, value in options.pop("bands").items() if key != "_target_"}
    repair = {"repair_split_arguments": True} if kind is ToolACE else {}
    return kind(path=str(DATA / f"{name}.jsonl.gz"), bands=Bands(**bands), **options, **repair)


def _converted(source: FileSource) -> list[Sample]:
    samples: list[Sample] = []
    for row in read_rows(source.path):
        try:
            samples.extend(source.convert(row.value if isinstance(row.value, dict) else {}).samples)
        except BadRow:
            continue
    return samples


@lru_cache
def samples_of(data: str) -> tuple[Sample, ...]:
    """Samples by name: toolace, xlam, both, or dialogues (ToolACE's whole ones)."""
    dialogues = _converted(_source(ToolACE, "toolace_dialogues"))
    if data == "dialogues":
        return tuple(dialogues)
    toolace = dialogues + _converted(_source(ToolACE, "toolace_from_rlla"))
    xlam = _converted(_source(XLAM, "xlam"))
    return tuple({"toolace": toolace, "xlam": xlam, "both": toolace + xlam}[data])


@lru_cache
def renderer() -> Renderer:
    """The tokenizer, trained on all the samples, and the template."""
    syntax = get_syntax("python")
    texts: list[str] = []
    for sample in samples_of("both"):
        texts += [tools_to_text(sample.tools), syntax.print(sample.target)]
        texts += [message.content for message in sample.messages]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_end|>", "<unk>", "<|im_start|>"]  # PAD, EOS, unknown
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=SMALL_VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return Renderer(tokenizer=tokenizer, template="chat", syntax=syntax)


def rows_of(samples: list[Sample]) -> list[TokenRow]:
    """Prompt and target ids; the target ends with EOS."""
    ready = renderer()
    return [TokenRow(p, a) for p, a in zip(ready.prompts(samples), ready.answers(samples), strict=True)]


# --- the work of a case ------------------------------------------------------------------------------------------


def work_of(case: Case, steps: int) -> Work:
    """What is timed for a case; the same on every call. `steps` optimiser steps for sft, one for the other kinds."""
    draw = random.Random(20251120)
    if case.kind == "sft":
        samples = list(samples_of(case.data))
        draw.shuffle(samples)
        rows = rows_of(samples[: steps * case.count])
        return Work("sft", case.vocab, [rows[at : at + case.count] for at in range(0, len(rows), case.count)])
    if case.kind == "dialogues":
        return _dialogues(case, draw)
    prompts = [_tokens(draw, case.vocab, case.prompt) for _ in range(case.count)]
    answers = [[_answer(draw, case) for _ in range(case.group)] for _ in prompts]
    if case.kind == "grpo":
        rows = [TokenRow(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
        return Work("grpo", case.vocab, [rows], [draw.gauss(0, 1) for _ in rows])
    chosen, rejected = ([TokenRow(p, pair[k]) for p, pair in zip(prompts, answers, strict=True)] for k in (0, 1))
    return Work(case.kind, case.vocab, [chosen + rejected])


def _tokens(draw: random.Random, vocab: int, count: int) -> list[int]:
    return [draw.randrange(FIRST_WORD, vocab) for _ in range(count)]


def _answer(draw: random.Random, case: Case) -> list[int]:
    return [*_tokens(draw, case.vocab, case.answer - 1), EOS]


def _dialogues(case: Case, draw: random.Random) -> Work:
    """All call turns of some dialogues of two or more, with `group` candidates each: the target, and changed copies."""
    by_dialogue: dict[str, list[Sample]] = {}
    for sample in samples_of(case.data):
        by_dialogue.setdefault(sample.dialogue_id, []).append(sample)
    several = [turns for turns in by_dialogue.values() if len(turns) > 1]
    draw.shuffle(several)
    targets = rows_of([turn for turns in several[: case.count] for turn in turns])
    if case.group == 1:
        return Work("sft", case.vocab, [targets])
    rows = [
        TokenRow(row.prompt, row.answer if k == 0 else _changed(draw, row.answer, case.vocab))
        for row in targets
        for k in range(case.group)
    ]
    return Work("grpo", case.vocab, [rows], [draw.gauss(0, 1) for _ in rows])


def _changed(draw: random.Random, answer: list[int], vocab: int) -> list[int]:
    """A near miss: one to three tokens are others, the end of turn stays."""
    changed = list(answer)
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(len(changed) - 1)] = draw.randrange(FIRST_WORD + 1, vocab)
    return changed
