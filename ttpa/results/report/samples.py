"""Single samples to look at: answers of evaluations for the page's browser, preference pairs, trees, and the answers
that an online objective drew while it trained. The page's script filters the answers and builds the trees.

Which ones is drawn at random with a fixed seed. What is damaged or gone gives a sentence instead.
"""

import csv
import io
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.io import dumps
from ttpa.records import Candidate, Pair, Sample, Score
from ttpa.results.report.page import Block, folded, grid, plural, short, some, text
from ttpa.results.report.study import DAMAGED, StageFolder, Study, as_mapping, lines_of, objects, read_json

UNSEEN = "unseen tools"
"""The band of samples whose tools were not in the training data; the six-error table leaves them out."""
MESSAGES, STAGES, TREES = 4, 4, 6
"""Last messages of a question; explorations, and policies that drew answers, of a page; trees of an exploration."""
Pieces = Callable[[Sequence[int]], list[str]]  # token ids -> what each token adds to the text


def browser(study: Study, limit: int) -> list[Block]:
    """The browser of at most `limit` samples, each with the answers of all policies and seeds."""
    judged: dict[tuple[str, str, str], list[tuple[int, int, dict[str, Any]]]] = {}
    gone = []
    for number, arm in enumerate(study.arms if limit else ()):
        for seed, record in arm.records.items():
            rows = list(objects(lines_of(study.stages[record.evaluation(arm.warmup)].path / "rows.jsonl")))
            gone += [] if rows else [f"{arm.label}, seed {seed}"]
            data, split = record.stages.get("data", ""), str(record.measured(arm.warmup).get("split") or "test")
            for row in rows:
                judged.setdefault((data, split, str(row.get("id"))), []).append((number, seed, row))
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


def pieces_of(policy: StageFolder | None) -> Pieces | None:
    """The tokenizer that a policy was saved with, as a function; None where it is gone or cannot be read."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    try:
        tokenizer = Tokenizer.from_file(f"{policy and policy.path}/policy/tokenizer/tokenizer.json")
    except Exception:  # the library raises bare Exception for a file that is damaged or gone
        return None

    def pieces(ids: Sequence[int]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer, token) or "" for token in ids]

    return pieces


def explorations(
    study: Study, limit: int, show: Callable[[StageFolder, int, Pieces | None], list[Block]]
) -> list[Block]:
    """What `show` makes of each exploration: of the least seed of each policy, of every round."""
    used: dict[str, list[str]] = {}
    for arm in study.aligned:
        for name in arm.stages("explore", min(arm.records)):
            used.setdefault(name, []).append(arm.label)
    blocks: list[Block] = []
    for name, labels in list(used.items())[:STAGES] if limit else ():
        stage, users = study.stages[name], short("; ".join(labels), 120)
        if not stage.exists:
            blocks.append(text(f"{name} ({users}) is not in the store (cleaned up?).", warning=True))
        elif shown := show(stage, limit, pieces_of(stage.input("policy"))):
            blocks += [folded(f"Exploration {name}, used by {users}", shown)] if len(used) > 1 else shown
    more = [text(f"The first {STAGES} of {len(used)} explorations.")] if blocks and len(used) > STAGES else []
    return [*blocks, *more]


def drawn(stage: StageFolder, file: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Rows of a stage's file drawn at random, in the file's order, and how many lines it has."""
    lines = lines_of(stage.path / file)
    kept = sorted(random.Random(stage.id).sample(range(len(lines)), min(limit, len(lines))))
    return list(objects(lines[at] for at in kept)), len(lines)


def _samples(stage: StageFolder, rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, Sample]:
    """The samples that were explored, by id."""
    data = stage.input("data")
    return samples_of(data.path, "explore", {str(row.get(key)) for row in rows}) if data else {}


def pairs_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Block]:
    """Preference pairs of an exploration."""
    rows, total = drawn(stage, "pairs.jsonl", limit)
    samples, shown = _samples(stage, rows, "sample_id"), list[Block]()
    for row in rows:
        with suppress(*DAMAGED):
            shown.append(pair_block(Pair.from_json(row), samples, pieces))
    said = f"{len(shown)} of {plural(total, 'pair')}, drawn at random with a fixed seed."
    more = "" if pieces else " The tokenizer is not in the store: answers are parted by characters."
    return [text(said + more), *shown] if total else [text(f"{stage.id} gave no pairs.")]


def pair_block(pair: Pair, samples: Mapping[str, Sample], pieces: Pieces | None) -> Block:
    """A pair. Each side has the text that both share, the token where they part, the rest of its span, what follows."""
    same = takewhile(lambda two: two[0] == two[1], zip(pair.chosen.text, pair.rejected.text, strict=False))
    shared, sides = len(list(same)), []
    how = {key: as_mapping(pair.provenance.get(key)) for key in ("spans", "parting", "search")}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        cut, at, end = list(answer.text), shared, shared + 1
        if pieces is not None and answer.token_ids:
            cut, at = pieces(answer.token_ids), pair.branch
            end = max(at + 1, int(how["spans"].get(name, 0)))  # of a search
        parts = ["".join(part) for part in (cut[:at], cut[at : at + 1], cut[at + 1 : end], cut[end:])]
        logp = answer.logps[pair.branch] if pair.branch < len(answer.logps) else None
        chance = as_mapping(how["parting"].get(name)).get("probability", None if logp is None else math.exp(logp))
        score = pair.chosen_score if name == "chosen" else pair.rejected_score
        sides.append({"name": name, "parts": parts, "probability": chance, "score": score})
    asked = question(samples.get(pair.sample_id))
    return {"kind": "pair", "pair": pair, "sides": sides, "search": how["search"], **asked}


def trees_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Block]:
    """Nodes of search trees, or answers to be merged by their tokens, of samples that have pairs (if any has)."""
    ids = {str(row.get("sample_id")) for row in drawn(stage, "pairs.jsonl", min(TREES, limit))[0]}
    rows = [row for row in objects(lines_of(stage.path / "candidates.jsonl")) if str(row.get("id")) in ids]
    rows = rows or drawn(stage, "candidates.jsonl", min(TREES, limit))[0]
    samples, shown = _samples(stage, rows, "id"), list[Block]()
    for row in rows:
        name, nodes = str(row.get("id")), row.get("tree")
        try:
            pairs = zip(map(Candidate.from_json, row["candidates"]), map(Score.from_json, row["scores"]), strict=True)
            answers = [{**_answer(one, None if nodes else pieces), **score.to_json()} for one, score in pairs]
        except DAMAGED:
            shown.append(text(f"The row of sample {name} is damaged.", warning=True))
            continue
        if nodes or any(one["pieces"] for one in answers):
            facts = [plural(len(answers), "answer"), *(f"{k}: {v}" for k, v in as_mapping(row.get("counts")).items())]
            data = {"nodes": nodes, "answers": answers}
            asked = question(samples.get(name))["messages"]
            shown.append({"kind": "tree", "sample": name, "facts": facts, "messages": asked, "data": data})
    kind = "search trees" if any(row.get("tree") for row in rows) else "token paths"
    return [text(f"{len(shown)} {kind}, drawn at random with a fixed seed."), *shown] if shown else []


def _answer(answer: Candidate, pieces: Pieces | None) -> dict[str, Any]:
    """An answer with the text of each token, and of those that the sampler could have chosen at a position."""
    cut = pieces or (lambda ids: [])
    choices = [(at, [("".join(cut([one])), chance) for one, chance in options]) for at, options in answer.branches]
    return {**answer.to_json(), "pieces": cut(answer.token_ids), "choices": choices}


def groups_of(study: Study, limit: int) -> list[Block]:
    """Answers that online objectives drew while they trained, with rewards: whole groups, drawn at random."""
    blocks: list[Block] = []
    for number, arm in enumerate(study.arms):
        for name in arm.stages("align", min(arm.records))[-1:] if limit and not arm.warmup else ():
            groups: dict[tuple[str, str], list[dict[str, str]]] = {}
            table = csv.DictReader(io.StringIO("\n".join(lines_of(study.stages[name].path / "answers.csv"))))
            for row in table:
                groups.setdefault((str(row.get("step")), str(row.get("sample_id"))), []).append(row)
            kept = set(random.Random(name).sample(list(groups), min(limit, len(groups))))
            columns = [key for key in table.fieldnames or () if key not in ("step", "sample_id")]
            rows = [
                [f"step {key[0]}, {key[1]}", *(_number(row.get(column)) for column in columns)]
                for key, rows in groups.items() if key in kept for row in rows
            ]  # fmt: skip
            if rows:
                said = f"{len(kept)} of {plural(len(groups), 'group')}, drawn at random with a fixed seed."
                shown = grid(f"Answers that {arm.label} drew", ["prompt", *columns], rows)
                blocks.append(folded(f"{arm.label}: {said}", [shown], arm=number))
    more = [text(f"The first {STAGES} policies that drew answers while they trained.")] if blocks[STAGES:] else []
    return blocks[:STAGES] + more


def _number(said: str | None) -> str | float | None:
    with suppress(TypeError, ValueError):
        return float(said or "") if math.isfinite(float(said or "")) else said
    return said
