"""Answers of evaluations for the browser of the page: what was asked, what was right, what each policy said and which
errors it made. They are embedded once as JSON; the page's script filters and draws them.

They come from `rows.jsonl` of evaluation stages and from the samples of data stages. A file that is gone leaves a hole,
and a sentence says so.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.io import dumps
from ttpa.records import Sample
from ttpa.results.report.page import Block, plural, short, some, text
from ttpa.results.report.study import DAMAGED, Study, as_mapping, lines_of, objects, read_json

UNSEEN = "unseen tools"
"""The band of samples whose tools were not in the training data; the six-error table leaves them out."""
MESSAGES = 4
"""Messages of a question that are shown, from its end."""


def browser(study: Study, limit: int) -> list[Block]:
    """The browser of at most `limit` samples, drawn at random with a fixed seed, each with the answers of all policies
    and seeds; and what must be said of it.
    """
    judged: dict[tuple[str, str, str], list[tuple[int, int, dict[str, Any]]]] = {}
    gone = []
    for number, arm in enumerate(study.arms if limit else ()):
        for seed, record in arm.records.items():
            rows = list(objects(lines_of(study.stages[record.evaluation(arm.warmup)].path / "rows.jsonl")))
            gone += [] if rows else [f"{arm.label}, seed {seed}"]
            for row in rows:
                key = (record.stages.get("data", ""), str(arm.metrics(seed).get("split") or "test"), str(row.get("id")))
                judged.setdefault(key, []).append((number, seed, row))
    kept = set(judged) if len(judged) <= limit else set(random.Random("answers").sample(list(judged), limit))
    questions: dict[tuple[str, str, str], Sample] = {}
    for data, split in dict.fromkeys(key[:2] for key in judged if key in kept and key[0] in study.stages):
        found = samples_of(study.stages[data].path, split, {key[2] for key in kept if key[:2] == (data, split)})
        questions |= {(data, split, name): sample for name, sample in found.items()}
    texts: dict[str, int] = {}  # a text that occurs often is embedded once

    def at(said: str) -> int:
        return texts.setdefault(short(said), len(texts))

    samples, answers = list[Any](), list[Any]()
    for key in filter(kept.__contains__, judged):
        first, asked = judged[key][0][2], question(questions.get(key))
        band = UNSEEN if "unseen_tool" in (first.get("tags") or ()) else str(first.get("band") or "")
        messages = [[role, at(said)] for role, said in asked["messages"]]
        right = at(asked["target"]) if key in questions else None
        samples.append([key[2], band, messages, [at(dumps(tool)) for tool in asked["tools"]], right])
        for policy, seed, row in judged[key]:
            errors, finish = list(map(str, row.get("errors") or ())), str(row.get("finish", ""))
            words = at(str(row.get("text", "")))
            answers.append([len(samples) - 1, policy, seed, bool(row.get("exact")), errors, words, finish])
    shown: Block = {"policies": [arm.label for arm in study.arms], "errors": LABELS, "unseen": UNSEEN}
    shown |= {"samples": samples, "answers": answers, "texts": list(texts)}
    blocks = list[Block]()
    if len(kept) < len(judged):
        said = f"{len(kept):,} of {plural(len(judged), 'sample')}, drawn at random with a fixed seed"
        blocks.append(text(f"The browser holds {said} (answers={limit}), so its counts are those of a part."))
    if judged and not questions:
        blocks.append(text("The questions are not in the data stage of these runs: only the answers are shown."))
    blocks += [{"kind": "browser", "data": shown}] if judged else []
    if gone:
        lost = f"The answers of {plural(len(gone), 'evaluation')} are not in the store (cleaned up?): {some(gone)}."
        blocks.append(text(lost, warning=True))
    return blocks


def samples_of(data: Path, split: str, ids: Collection[str]) -> dict[str, Sample]:
    """The samples with these ids in a split of a data stage's folder, as far as they can be read."""
    named = str(as_mapping(read_json(data / "splits.json")).get(split, f"{split}.jsonl"))
    found = {}
    for row in objects(lines_of(data / named.rpartition("/")[2])):
        if str(row.get("id")) in ids:
            with suppress(*DAMAGED):
                found[str(row["id"])] = Sample.from_json(row)
    return found


def question(sample: Sample | None) -> dict[str, Any]:
    """What a sample asks: its last messages as (role, text), its tools, and its target as `name(key=value)` lines."""
    if sample is None:
        return {"messages": [], "tools": [], "target": ""}
    said = [(one.role, one.content or dumps([call.to_json() for call in one.calls])) for one in sample.messages]
    calls = [f"{c.name}({', '.join(f'{k}={dumps(v)}' for k, v in c.arguments.items())})" for c in sample.target]
    # The answer follows the end of a long message.
    ends = [(role, words if len(words) <= 2000 else f"\u2026{words[-2000:]}") for role, words in said[-MESSAGES:]]
    target = short(sample.target_text or "\n".join(calls) or "(no call)")
    return {"messages": ends, "tools": [tool.to_json() for tool in sample.tools], "target": target}
