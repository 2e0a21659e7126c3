"""`ttpa export`: samples, pairs, policies and judged answers of finished stages, as other tools load them.

Everything goes into one new folder with a card (README.md), which appears when it is whole; `push=` uploads the folder.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

import ttpa
from ttpa.data.rows import BadRow
from ttpa.data.source import read_split
from ttpa.data.write import LAYOUTS, Row, openai_tools, openai_turns, sample_row, sharegpt_row, sharegpt_turn
from ttpa.errors import ConfigError, DataError
from ttpa.io import csv_row, dumps, read_jsonl, write_jsonl, write_text
from ttpa.options import arguments
from ttpa.policy.models import Dtype
from ttpa.prompts import Renderer
from ttpa.records import Candidate, Message, Pair, Sample
from ttpa.results.cards import Stage, data_card, policy_card, read_stage

HELP = """\
ttpa export: samples, pairs, policies and judged answers in the layouts of other tools.

  ttpa export TARGET as=LAYOUT [to=FOLDER] [push=ORG/NAME] [private=true] [dtype=bfloat16] [license=ID] [store=DIR]

  TARGET   a folder of the store (store/align-..., named on the screen and in result rows), or a result file,
           results/NAME-ID.jsonl, whose stage of the right kind is taken (of several rounds the last)
  as       of samples (data-...):            messages (OpenAI, TRL), sharegpt (LLaMA-Factory), xlam, toolace
           of pairs (explore-...):           trl, llamafactory, verl (Parquet)
           of a policy (warmup-, align-...): adapter (one PEFT adapter on its base), merged (full weights)
           of judged answers (evaluate-...): csv, parquet
  to       the new folder; default: export/STAGE-LAYOUT. An existing one is never written to
  push     uploads the folder to the hub (HF_ENDPOINT, HF_TOKEN or `hf auth login`): a model, or else a data set
  private  true makes a new repository of push= private
  dtype    of as=merged: float32, bfloat16 or float16; default: that of the policy
  license  an identifier such as apache-2.0 for the card; the licences of data and base stand in its text
  store    where the stages of a result file are (default: the folder store beside that of the result file's)

  What a layout cannot hold is left out, counted and said. docs/export.md shows how each is loaded.
"""
SAMPLES, PAIRS, POLICIES, ANSWERS = (
    tuple(LAYOUTS),
    ("trl", "llamafactory", "verl"),
    ("adapter", "merged"),
    ("csv", "parquet"),
)
KINDS = {  # stage -> its layouts
    "data": SAMPLES, "explore": PAIRS, "warmup": POLICIES, "align": POLICIES, "evaluate": ANSWERS,
}  # fmt: skip
COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}  # as LLaMA-Factory asks for them
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class Words:
    """The words of the command."""

    target: str
    to: str = ""
    push: str = ""
    private: bool = False
    dtype: Dtype | None = None
    license: str = ""
    store: str = ""


def find_stage(words: Words, layout: str) -> Stage:
    """The stage that TARGET names, checked against the layout."""
    path, wanted = Path(words.target).expanduser(), [kind for kind, all_ in KINDS.items() if layout in all_]
    if path.is_file():
        try:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            known = [name for name in reversed(stages.values()) if name.rpartition("-")[0] in wanted]
        except (ValueError, LookupError, AttributeError):
            raise DataError(f"{path}: no result row of a run. Give results/NAME-ID.jsonl or a stage folder.") from None
        # Of a policy the last align stage, else the warm-up; of answers the run's own, not the warm-up's.
        own = [stages[role] for role in ("evaluation",) if layout in ANSWERS and role in stages]
        names = own or sorted(known, key=lambda name: not name.startswith("align-"))
        if not names:
            raise DataError(f"{path}: the run has no stage for as={layout}.")
        path = (Path(words.store).expanduser() if words.store else path.parent.with_name("store")) / names[0]
    elif path.name == "policy":
        path = path.parent
    stage = read_stage(path)
    if stage.name not in wanted:
        remedy = f"Use as={', '.join(KINDS.get(stage.name, ()))}" if stage.name in KINDS else "Give another stage"
        raise ConfigError.at("as", layout, f"{path} is a stage {stage.name}", remedy)
    return stage


def main(words: Sequence[str]) -> int:
    """Writes the folder, says what is in it and what was left out, and uploads it where asked."""
    layouts = [*dict.fromkeys(layout for all_ in KINDS.values() for layout in all_)]
    asked = [word.removeprefix("as=") for word in words if word.startswith("as=")]
    if len(asked) != 1 or asked[0] not in layouts:
        shown = ",".join(asked) or None
        raise ConfigError.at("as", shown, "is no layout" if asked else "is missing", f"Use one of {', '.join(layouts)}")
    given = arguments([word for word in words if not word.startswith("as=")], Words, "export")
    layout = asked[0]
    if given.dtype and layout != "merged":
        raise ConfigError.at("dtype", given.dtype, f"as={layout} holds no full weights", "Use as=merged")
    if given.push:
        may_push(given.push)
    stage = find_stage(given, layout)
    out = Path(given.to or f"export/{stage.path.name}-{layout}").expanduser()
    if out.exists() or out.is_symlink():
        raise ConfigError.at("to", out, "exists", "Nothing is overwritten: give another folder, or move that one away")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        said = WRITERS[stage.name](stage, given, layout, part)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print("\n".join([f"{out}: {said[0]}", *said[1:]]))
    if given.push:
        print(f"pushed: {push(out, given.push, 'model' if layout in POLICIES else 'dataset', given.private)}")
    return 0


class Left:
    """What a layout could not hold, by reason; the first of each is named."""

    def __init__(self) -> None:
        self.counts, self.first = Counter[str](), dict[str, str]()

    def add(self, problem: BadRow, where: str) -> None:
        self.counts[problem.args[0]] += 1
        self.first.setdefault(problem.args[0], f"{where}: {problem.args[1]}")

    def said(self, layout: str) -> list[str]:
        if not self.counts:
            return []
        parts = (f"{reason} {count} (first {self.first[reason]})" for reason, count in self.counts.most_common())
        return [f"left out, since as={layout} has no place for it: {'; '.join(parts)}"]


def _write_samples(stage: Stage, given: Words, layout: str, out: Path) -> list[str]:
    """One file a split."""
    counts, left = dict[str, int](), Left()

    def rows(file: str) -> Iterator[Row]:
        for sample in map(Sample.from_json, read_jsonl(stage.path / file)):
            row = sample_row(layout, sample)
            if isinstance(row, BadRow):
                left.add(row, sample.id)
            else:
                yield row

    for file in dict.fromkeys(json.loads((stage.path / "splits.json").read_text(encoding="utf-8")).values()):
        counts[file] = write_jsonl(out / file, rows(file))
    kept = {file: count for file, count in counts.items() if count}
    for file in counts.keys() - kept.keys():
        (out / file).unlink()
    if not kept:
        raise DataError(f"{stage.path}: no sample can be written. {' '.join(left.said(layout))}.")
    if layout == "sharegpt":
        info = {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
        }
        write_text(out / "dataset_info.json", _pretty({Path(file).stem: {"file_name": file, **info} for file in kept}))
    said = [f"samples as {layout}: {', '.join(f'{Path(file).stem} {count}' for file, count in kept.items())}"]
    said += left.said(layout)
    write_text(
        out / "README.md", data_card(stage, stage, {Path(file).stem: file for file in kept}, said, given.license)
    )
    return said


def _pair_rows(stage: Stage, layout: str, left: Left, notes: Counter[str]) -> Iterator[Row]:
    """The pairs of an explore stage with their prompts."""
    from ttpa.policy.policy import load_policy

    samples = {sample.id: sample for sample in read_split(stage.input("data").path, "explore")}
    renderer = load_policy(stage.input("policy").path / "policy").renderer
    for number, row in enumerate(read_jsonl(stage.path / "pairs.jsonl")):
        pair = Pair.from_json(row)
        sample = samples[pair.sample_id]
        sides = [_answer_turn(renderer, pair.chosen, layout), _answer_turn(renderer, pair.rejected, layout)]
        again = renderer.answers(
            [
                replace(sample, target=(), target_text=side.text, target_thought="")
                for side in (pair.chosen, pair.rejected)
            ]
        )
        both = zip(again, (pair.chosen.token_ids, pair.rejected.token_ids), strict=True)
        notes["other ids"] += any(tuple(ids) != own for ids, own in both)
        known = {"sample_id": sample.id, "chosen_score": pair.chosen_score.value}
        known |= {"rejected_score": pair.rejected_score.value}
        try:
            yield _pair_row(renderer, layout, sample, sides, number) | known
        except BadRow as problem:
            left.add(problem, sample.id)


def _answer_turn(renderer: Renderer, answer: Candidate, layout: str) -> Message:
    """An answer as a turn: its calls where they are written as the syntax prints them, else its text as it is."""
    canonical = answer.calls and renderer.syntax.print(answer.calls) == answer.text and layout != "verl"
    calls = answer.calls or () if canonical else ()
    return Message(role="assistant", content="" if calls else answer.text, calls=calls)


def _pair_row(renderer: Renderer, layout: str, sample: Sample, sides: Sequence[Message], number: int) -> Row:
    if layout == "trl":
        chosen, rejected = (openai_turns([side]) for side in sides)
        prompt = {"prompt": openai_turns(sample.messages), "chosen": chosen, "rejected": rejected}
        return {**prompt, "tools": openai_tools(sample.tools)}
    if layout == "llamafactory":
        chosen, rejected = (sharegpt_turn(side) for side in sides)  # type: ignore[assignment]
        return {**sharegpt_row(sample.messages, sample.tools), "chosen": chosen, "rejected": rejected}
    turns = [{"role": one.role, "content": renderer.said(one)} for one in sample.messages]
    truth = dumps([call.to_json() for call in sample.target])
    extra = {"index": number, "split": "train", "tools": openai_tools(sample.tools)}
    return {
        "data_source": sample.source, "prompt": turns, "ability": "tool_use", "extra_info": extra,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "chosen": sides[0].content, "rejected": sides[1].content,
    }  # fmt: skip


def _write_pairs(stage: Stage, given: Words, layout: str, out: Path) -> list[str]:
    left, notes = Left(), Counter[str]()
    rows = _pair_rows(stage, layout, left, notes)
    file = "train.parquet" if layout == "verl" else "train.jsonl"
    count = _write_parquet(out / file, list(rows)) if layout == "verl" else write_jsonl(out / file, rows)
    if not count:
        raise DataError(f"{stage.path}: no pair can be written. {' '.join(left.said(layout))}")
    if layout == "llamafactory":
        columns = {**COLUMNS, "chosen": "chosen", "rejected": "rejected"}
        info = {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}
        write_text(out / "dataset_info.json", _pretty({"pairs": info}))
    said = [f"pairs as {layout}: train {count}", *left.said(layout)]
    if notes["other ids"]:
        said.append(
            f"{notes['other ids']} pairs have an answer that its text alone gives other token ids (it was cut off, or "
            "sampled in other pieces), so their loss elsewhere differs from ours"
        )
    write_text(out / "README.md", data_card(stage, stage.input("data"), {"train": file}, said, given.license))
    return said


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return len(rows)


def _write_answers(stage: Stage, given: Words, layout: str, out: Path) -> list[str]:
    """Judged answers, beside question, tools and target where the run's own data has the sample."""
    data, samples = stage.inputs.get("data"), dict[str, Sample]()
    for file in sorted(data.glob("*.jsonl")) if data and (data / "splits.json").exists() else ():
        if file.name in json.loads((data / "splits.json").read_text(encoding="utf-8")).values():  # type: ignore[operator]
            samples |= {one["id"]: Sample.from_json(one) for one in read_jsonl(file)}
    rows = list[Row]()
    for row in read_jsonl(stage.path / "rows.jsonl"):
        if sample := samples.get(str(row["id"])):
            wanted = dumps([call.to_json() for call in sample.target]) if sample.target else sample.target_text or ""
            asked = {"question": sample.messages[-1].content, "target": wanted, "tools": openai_tools(sample.tools)}
            row = {**row, **asked}
        rows.append(row)
    keys = [*dict.fromkeys(key for row in rows for key in row)]
    flat = [{key: _flat(row.get(key)) for key in keys} for row in rows]
    if layout == "parquet":
        _write_parquet(out / "test.parquet", flat)
    else:
        with (out / "test.csv").open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerows([keys, *(csv_row(row.values()) for row in flat)])
    said = [f"{len(rows)} judged answers, {sum(not row.get('exact') for row in rows)} of them wrong"]
    source = stage.input("data") if data else stage
    write_text(out / "README.md", data_card(stage, source, {"test": f"test.{layout}"}, said, given.license))
    return said


def _flat(value: Any) -> Any:
    """A cell: lists of texts are joined, other lists and objects are JSON text."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ";".join(value)
    return dumps(value) if isinstance(value, list | dict) else value


def _write_policy(stage: Stage, given: Words, layout: str, out: Path) -> list[str]:
    from ttpa.policy.export import write_adapter, write_merged

    folder = stage.path / "policy"
    notes = write_adapter(folder, out) if layout == "adapter" else write_merged(folder, out, given.dtype)
    named = "one PEFT adapter" if layout == "adapter" else f"full weights in {given.dtype or 'their own dtype'}"
    said = [f"{named}, tokenizer, chat template and generation config", *notes]
    write_text(out / "README.md", policy_card(stage, said, layout == "adapter", given.license))
    return said


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def may_push(name: str) -> None:
    """Raises ConfigError, before any work, for a name that is none and where nobody is logged in."""
    from huggingface_hub import get_token

    if not _NAME.fullmatch(name):
        raise ConfigError.at("push", name, "is no repository", "Write it as ORG/NAME")
    if not get_token():
        raise ConfigError.at("push", name, "nobody is logged in", "Use `hf auth login`, or set HF_TOKEN in the shell")


def push(folder: Path, name: str, kind: str, private: bool) -> str:
    """Uploads a folder in one commit and returns its address. DataError: the hub refuses it; no token is in it."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        api = HfApi()
        address = api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message=f"ttpa {ttpa.__version__}")
    except Exception as error:  # the library lets errors of its back ends through: network, permissions, quotas
        reason = " ".join(str(error).split()).replace(get_token() or "\0", "***").rstrip(".")
        raise DataError(
            f"push={name}: {reason or type(error).__name__}. The folder {folder} is whole: push it again with "
            f"`hf upload {name} {folder} --repo-type {kind}`."
        ) from None
    return str(address)


WRITERS: Mapping[str, Callable[[Stage, Words, str, Path], list[str]]] = {
    "data": _write_samples, "explore": _write_pairs, "evaluate": _write_answers, "warmup": _write_policy,
    "align": _write_policy,
}  # fmt: skip
