"""Single samples to look at: answers of evaluations for the page's browser, preference pairs, trees, and the answers
that an online objective drew while it trained. The page's script filters the answers and builds the trees.

Which ones is drawn at random with a fixed seed. What is damaged or gone gives a sentence instead.
"""

import csv
import io
import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from os.path import commonprefix
from typing import Any

from pydantic import BaseModel, ValidationError

from ttpa.calls.six_errors import LABELS
from ttpa.io import csv_row, dumps
from ttpa.records import Candidate, Pair, Sample, Score
from ttpa.results.report.page import Block, folded, grid, plural, short
from ttpa.results.report.study import DAMAGED, StageFolder, Study, as_mapping, folders

DRAWN = "drawn at random with a fixed seed"
UNSEEN = "unseen tools"
"""The band of samples whose tools were not in the training data; the six-error table leaves them out."""
MESSAGES, STAGES, TREES = 4, 4, 6
"""Last messages of a question; explorations, and policies that drew answers, of a page; trees of an exploration."""
NO_QUESTION: dict[str, Any] = {"messages": [], "tools": [], "target": ""}
Pieces = Callable[[Sequence[int]], list[str]]  # token ids -> what each token adds to the text


class AnswerRow(BaseModel):
    """What the browser shows of a row of an evaluation."""

    id: str
    tags: list[str] = []
    band: str = ""
    exact: bool = False
    errors: list[str] = []
    text: str = ""
    finish: str = ""


def browser(study: Study, limit: int) -> list[Block]:
    """The browser of at most `limit` samples, each with the answers of all policies and seeds."""
    judged = defaultdict[tuple[str, str, str], list[tuple[int, int, AnswerRow]]](list)
    gone = []
    for number, arm in enumerate(study.arms if limit else ()):
        for seed, record in arm.records.items():
            rows = study.stages[record.evaluation(arm.warmup)].rows("rows.jsonl")
            gone += [] if rows else [f"{arm.label}, seed {seed}"]
            source = record.stages.get("data", ""), str(record.measured(arm.warmup).get("split") or "test")
            for row in rows:
                with suppress(ValidationError):
                    answer = AnswerRow.model_validate(row)
                    judged[*source, answer.id].append((number, seed, answer))
    kept = set(random.Random("answers").sample(list(judged), min(limit, len(judged))))
    questions: dict[tuple[str, str, str], dict[str, Any]] = {}
    for at in {key[:2] for key in kept}:
        found = questions_of(study.stages.get(at[0]), at[1], {key[2] for key in kept if key[:2] == at})
        questions |= {(*at, name): asked for name, asked in found.items()}
    texts: dict[str, int] = {}  # a text that occurs often is embedded once

    def number_of(said: str) -> int:
        return texts.setdefault(short(said), len(texts))

    samples, answers = list[Any](), list[Any]()
    for key in filter(kept.__contains__, judged):
        first, asked = judged[key][0][2], questions.get(key, NO_QUESTION)
        band = UNSEEN if "unseen_tool" in first.tags else first.band
        messages = [[role, number_of(said)] for role, said in asked["messages"]]
        right = number_of(asked["target"]) if key in questions else None
        samples.append([key[2], band, messages, [number_of(dumps(tool)) for tool in asked["tools"]], right])
        for policy, seed, one in judged[key]:
            answers.append([len(samples) - 1, policy, seed, one.exact, one.errors, number_of(one.text), one.finish])
    shown = {"policies": [arm.label for arm in study.arms], "errors": LABELS, "unseen": UNSEEN}
    shown |= {"samples": samples, "answers": answers, "texts": list(texts)}
    part = (
        f"The browser holds {len(kept):,} of {plural(len(judged), 'sample')}, {DRAWN} (answers={limit}), so its counts "
    )
    blank = "The questions are not in the data stage of these runs: only the answers are shown."
    lost = f"The answers of {plural(len(gone), 'evaluation')} are not in the store (cleaned up?): "
    return [
        ("said", f"{part}are those of a part." * (len(kept) < len(judged))),
        ("said", blank * bool(judged and not questions)),
        ("browser", judged and shown),
        ("warning", (lost + short("; ".join(gone), 200) + ".") * bool(gone)),
    ]


def questions_of(data: StageFolder | None, split: str, ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the samples with these ids in a split of a data stage ask, as far as they can be read."""
    found: dict[str, dict[str, Any]] = {}
    file = str(as_mapping(data and data.json("splits.json")).get(split, f"{split}.jsonl")).rpartition("/")[2]
    for row in data.rows(file) if data else ():
        with suppress(*DAMAGED):
            found |= {row["id"]: question(Sample.from_json(row))} if row["id"] in ids else {}
    return found


def question(sample: Sample) -> dict[str, Any]:
    """What a sample asks: its last messages as (role, text), its tools, and its target as `name(key=value)` lines."""
    said = [
        (str(one.role), str(one.content or dumps([call.to_json() for call in one.calls]))) for one in sample.messages
    ]
    calls = [f"{c.name}({', '.join(f'{k}={dumps(v)}' for k, v in c.arguments.items())})" for c in sample.target]
    # The answer follows the end of a long message.
    ends = [(role, words if len(words) <= 2000 else f"\u2026{words[-2000:]}") for role, words in said[-MESSAGES:]]
    target = short(str(sample.target_text or "\n".join(calls) or "(no call)"))
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


def explorations(study: Study, limit: int, show: Callable[..., list[Block]]) -> list[Block]:
    """What `show` makes of each exploration: of the least seed of each policy, of every round."""
    used = defaultdict[str, list[str]](list)
    for arm in study.aligned if limit else ():
        for name in folders(arm.first, "explore"):
            used[name].append(arm.label)
    blocks: list[Block] = []
    for name, labels in list(used.items())[:STAGES]:
        stage, users = study.stages[name], short("; ".join(labels), 120)
        if not stage.exists:
            blocks.append(("warning", f"{name} ({users}) is not in the store (cleaned up?)."))
        elif shown := show(stage, limit, pieces_of(stage.input("policy"))):
            blocks += [folded(f"Exploration {name}, used by {users}", shown)] if len(used) > 1 else shown
    more = f"The first {STAGES} of {len(used)} explorations."
    return [*blocks, ("said", more * bool(blocks and len(used) > STAGES))]


def pairs_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Block]:
    """Preference pairs of an exploration."""
    total, rows = len(stage.lines("pairs.jsonl")), stage.rows("pairs.jsonl", limit)
    if not total:
        return [("said", f"{stage.id} gave no pairs.")]
    asked = questions_of(stage.input("data"), "explore", {str(row.get("sample_id")) for row in rows})
    shown = list[Block]()
    for row in rows:
        with suppress(*DAMAGED):
            shown.append(("pair", pair_block(Pair.from_json(row), asked, pieces)))
    said = f"{len(shown)} of {plural(total, 'pair')}, {DRAWN}."
    more = "" if pieces else " The tokenizer is not in the store: answers are parted by characters."
    return [("said", said + more), *shown]


def pair_block(pair: Pair, asked: Mapping[str, dict[str, Any]], pieces: Pieces | None) -> dict[str, Any]:
    """A pair. Each side has the text that both share, the token where they part, the rest of its span, what follows."""
    shared, sides = len(commonprefix([pair.chosen.text, pair.rejected.text])), []  # noqa: RUF071 (by characters)
    how = {key: as_mapping(pair.provenance.get(key)) for key in ("spans", "parting", "search")}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        cut, at, end = list(answer.text), shared, shared + 1
        if pieces is not None and answer.token_ids:
            cut, at = pieces(answer.token_ids), pair.branch
            end = max(at + 1, int(how["spans"].get(name, 0)))  # of a search
        parts = ["".join(part) for part in (cut[:at], cut[at : at + 1], cut[at + 1 : end], cut[end:])]
        chance = math.exp(answer.logps[pair.branch]) if pair.branch < len(answer.logps) else None
        chance = as_mapping(how["parting"].get(name)).get("probability", chance)
        sides.append({"name": name, "parts": parts, "probability": chance, "score": getattr(pair, f"{name}_score")})
    return {"pair": pair, "sides": sides, "search": how["search"], **asked.get(pair.sample_id, NO_QUESTION)}


def trees_of(stage: StageFolder, limit: int, pieces: Pieces | None) -> list[Block]:
    """Nodes of search trees, or answers to be merged by their tokens, of samples that have pairs (if any has)."""
    ids = {str(row.get("sample_id")) for row in stage.rows("pairs.jsonl", min(TREES, limit))}
    rows = [row for row in stage.rows("candidates.jsonl") if str(row.get("id")) in ids]
    rows = rows or stage.rows("candidates.jsonl", min(TREES, limit))
    questions = questions_of(stage.input("data"), "explore", {str(row.get("id")) for row in rows})
    shown = list[Block]()
    for row in rows:
        name, nodes = str(row.get("id")), row.get("tree")
        cut = pieces if pieces and not nodes else lambda ids: []
        answers = []
        try:
            for one, score in zip(map(Candidate.from_json, row["candidates"]), row["scores"], strict=True):
                # The text of each token, and of those that the sampler could have chosen at a position.
                choices = [(at, [("".join(cut([k])), chance) for k, chance in some]) for at, some in one.branches]
                known = {"pieces": cut(one.token_ids), "choices": choices, **Score.from_json(score).to_json()}
                answers.append({**one.to_json(), **known})
        except DAMAGED:
            shown.append(("warning", f"The row of sample {name} is damaged."))
            continue
        if nodes or any(one["pieces"] for one in answers):
            facts = [plural(len(answers), "answer"), *(f"{k}: {v}" for k, v in as_mapping(row.get("counts")).items())]
            data, asked = {"nodes": nodes, "answers": answers}, questions.get(name, NO_QUESTION)["messages"]
            shown.append(("tree", {"sample": name, "facts": facts, "messages": asked, "data": data}))
    kind = "search trees" if any(row.get("tree") for row in rows) else "token paths"
    return [("said", f"{len(shown)} {kind}, {DRAWN}."), *shown] if shown else []


def groups_of(study: Study, limit: int) -> list[Block]:
    """Answers that online objectives drew while they trained, with rewards: whole groups, drawn at random."""
    blocks: list[Block] = []
    for number, arm in enumerate(study.arms):
        for name in folders(arm.first, "align")[-1:] if limit else ():
            groups = defaultdict[tuple[str, str], list[list[str | float | None]]](list)
            table = csv.DictReader(io.StringIO("\n".join(study.stages[name].lines("answers.csv"))))
            columns = [key for key in table.fieldnames or () if key not in ("step", "sample_id")]
            for row in table:
                values = [_number(row.get(column)) for column in columns]
                groups[str(row.get("step")), str(row.get("sample_id"))].append(values)
            kept = set(random.Random(name).sample(list(groups), min(limit, len(groups))))
            rows = [[f"step {at[0]}, {at[1]}", *row] for at, rows in groups.items() if at in kept for row in rows]
            if rows:
                said = f"{len(kept)} of {plural(len(groups), 'group')}, {DRAWN}."
                shown = grid(f"Answers that {arm.label} drew", ["prompt", *columns], rows)
                blocks.append(folded(f"{arm.label}: {said}", [shown], arm=number))
    more = f"The first {STAGES} policies that drew answers while they trained."
    return [*blocks[:STAGES], ("said", more * (len(blocks) > STAGES))]


def _number(said: str | None) -> str | float | None:
    said = said[1:] if said and csv_row([said[1:]]) == [said] else said  # what guards a spreadsheet is not the model's
    with suppress(TypeError, ValueError):
        return float(said or "") if math.isfinite(float(said or "")) else said
    return said
