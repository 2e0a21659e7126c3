"""Answers of evaluations for the browser of the page: what was asked, what was right, what each policy said and which
errors it made. They are embedded once as compact JSON; the page's script filters and draws them.

They come from `rows.jsonl` of evaluation stages and from the samples of data stages. A file that is gone leaves a hole,
and a sentence says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.results.report.page import Text, View, plural, short
from ttpa.results.report.study import Study, as_mapping, json_lines, read_json

UNSEEN = "unseen tools"
"""The band of samples whose tools were not in the training data; the six-error table leaves them out."""
MESSAGES = 4
"""Messages of a question that are shown, from its end."""


class _Table:
    """Distinct values with their numbers, so that a text that occurs often is embedded once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, value: str) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def browser(study: Study, limit: int) -> list[Any]:
    """The browser and what must be said of it; nothing for `limit` 0.

    Args:
        study: The policies.
        limit: Samples shown. Where there are more, they are drawn at random with a fixed seed; a sample comes with the
            answers of all policies and seeds.
    """
    if not limit:
        return []
    texts, tools, errors, bands = _Table(), _Table(), _Table(), _Table()
    judged: dict[tuple[str, str, str], list[tuple[int, int, Mapping[str, Any]]]] = {}
    gone = []
    for label in LABELS:
        errors(label)
    for number, arm in enumerate(study.arms):
        for seed, record in arm.records.items():
            stage = study.stages[record.evaluation(arm.warmup)]
            split = str(arm.metrics(seed).get("split") or "test")
            found = list(json_lines(stage.path / "rows.jsonl"))
            gone += [] if found else [f"{arm.label}, seed {seed}"]
            for answer in found:
                judged.setdefault((record.stages.get("data", ""), split, str(answer.get("id"))), []).append(
                    (number, seed, answer)
                )
    blocks: list[Any] = []
    if judged:
        keys = list(judged)
        if len(keys) > limit:
            kept = set(random.Random("answers").sample(keys, limit))
            keys = [key for key in keys if key in kept]
        questions = _questions(study, keys)
        samples, answers = [], []
        for key in keys:
            first = judged[key][0][2]
            band = UNSEEN if "unseen_tool" in (first.get("tags") or ()) else str(first.get("band") or "")
            samples.append([key[2], bands(band), *_question(questions.get(key), texts, tools)])
            for number, seed, answer in judged[key]:
                shown = [errors(str(one)) for one in answer.get("errors") or ()]
                said, finish = texts(short(str(answer.get("text", "")))), texts(str(answer.get("finish", "")))
                answers.append([len(samples) - 1, number, seed, int(bool(answer.get("exact"))), shown, said, finish])
        if len(keys) < len(judged):
            said = f"{len(keys):,} of {plural(len(judged), 'sample')}, drawn at random with a fixed seed"
            blocks.append(Text(f"The browser holds {said} (answers={limit}), so its counts are those of a part."))
        if not questions:
            blocks.append(Text("The questions are not in the data stage of these runs: only the answers are shown."))
        data = {
            "policies": [arm.label for arm in study.arms],
            "errors": list(errors.numbers),
            "bands": list(bands.numbers),
            "unseen": UNSEEN,
            "samples": samples,
            "answers": answers,
            "tools": list(tools.numbers),
            "texts": list(texts.numbers),
        }
        blocks.append(View(kind="browser", data=data))
    if gone:
        names = "; ".join(gone[:6]) + ("; ..." if len(gone) > 6 else "")
        said = f"The answers of {plural(len(gone), 'evaluation')} are not in the store (cleaned up?): {names}."
        blocks.append(Text(said, True))
    return blocks


def _questions(study: Study, keys: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """The samples behind some keys (data stage, split, sample id), where they are in the store."""
    wanted, found = set(keys), dict[tuple[str, str, str], Mapping[str, Any]]()
    for data, split in dict.fromkeys(key[:2] for key in keys):
        if data in study.stages:
            for sample in split_rows(study.stages[data].path, split):
                key = (data, split, str(sample.get("id")))
                if key in wanted:
                    found[key] = sample
    return found


def split_rows(data: Any, split: str) -> Any:
    """The samples of a split of a data stage's folder, none where it is gone."""
    files = as_mapping(read_json(data / "splits.json"))
    return json_lines(data / str(files.get(split, f"{split}.jsonl")).rpartition("/")[2])


def _question(sample: Mapping[str, Any] | None, texts: _Table, tools: _Table) -> list[Any]:
    """The numbers of a sample's messages (role and text), of its tools and of its target."""
    if sample is None:
        return [[], [], -1]
    said = [[role, texts(words)] for role, words in messages(sample)[-MESSAGES:]]
    offered = [tools(short(json.dumps(tool, ensure_ascii=False))) for tool in tools_of(sample)]
    return [said, offered, texts(target(sample))]


def messages(sample: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The messages of a sample as (role, text); of a long one its end, which the answer follows."""
    found = (sample or {}).get("messages")
    shown = []
    for message in filter(None, map(as_mapping, found if isinstance(found, list) else [])):
        said = str(message.get("content") or "") or json.dumps(message.get("calls", ""), ensure_ascii=False)
        shown.append((str(message.get("role")), said if len(said) <= 2000 else "\u2026" + said[-2000:]))
    return shown


def tools_of(sample: Mapping[str, Any] | None) -> list[Any]:
    """The tools of a sample, none where they cannot be read."""
    try:
        found = json.loads((sample or {})["tools"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def tool_names(sample: Mapping[str, Any] | None) -> list[str]:
    """The names of a sample's tools."""
    return [str(as_mapping(tool).get("name")) for tool in tools_of(sample)]


def target(sample: Mapping[str, Any] | None) -> str:
    """What a right answer says: calls as `name(key=value)`, a line each, or a text."""
    raw = str((sample or {}).get("target_text") or (sample or {}).get("target") or "")
    try:
        calls = [(str(call["name"]), dict(call["arguments"])) for call in json.loads(raw)]
    except (KeyError, TypeError, ValueError, RecursionError):
        return short(raw)
    lines = [
        f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"
        for name, arguments in calls
    ]
    return short("\n".join(lines) or "(no call)")
