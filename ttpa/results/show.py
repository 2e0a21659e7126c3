"""`ttpa data show data.path=FILE`: what a file holds, how its samples look in a prompt, what is rejected and why."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_module
from omegaconf import DictConfig

from ttpa.data.layouts import layout_of
from ttpa.data.published import FileSource
from ttpa.data.rows import SUFFIXES, BadRow, is_hub_id, read_rows
from ttpa.errors import ConfigError, DataError, visible
from ttpa.records import Sample
from ttpa.results.cells import compose_run
from ttpa.run import config

HELP = """ttpa data show data.path=FILE [data=messages] [model=hf model.name=...] [KEY=VALUE ...]

Prints what a file, a folder or a hub id holds: the layout that was recognised and the option that reads it (data=
chooses another), how many rows and samples there are, three samples as they will be rendered for the model, the lengths
of all in tokens, and what was rejected and why. Nothing is written. Without model= it is the embedded model, whose
tokenizer is trained on the samples; with model=hf the chat template and the tokenizer of model.name. Keys of data= work
as in a run: data.max_rows=1000 reads the first 1,000 rows.
"""
LOOKED_AT = 50  # rows by which the layout is recognised
MEASURED = 5000  # samples of which the tokens are counted at most
OPTIONS = {"pairs=given": "pairs"}  # what reads a layout -> the option of data=, where these are not the same word


def recognised(path: str) -> tuple[str, str]:
    """The layout of most of the first rows, and the option of `data=` for it. DataError: nothing is recognised."""
    rows = list(islice(read_rows(path), LOOKED_AT))
    found = Counter(layout_of(row.value) for row in rows if not isinstance(row.value, BadRow))
    (layout, reader), _ = found.most_common(1)[0] if found else (("", ""), 0)
    option = OPTIONS.get(reader, reader.removeprefix("data="))
    if not layout or (not reader.startswith("data=") and reader not in OPTIONS):
        told = f"this looks like {layout}, read by {reader}" if layout else "no layout is recognised"
        why = next((f". {row.file}:{row.line}: {row.value}" for row in rows if isinstance(row.value, BadRow)), "")
        raise DataError(
            f"data.path={path}: {told}{why}. docs/own_data.md lists the layouts; data= chooses one of them."
        )
    return layout, option


def composed(words: Sequence[str]) -> tuple[str, DictConfig]:
    """The layout ("" where `data=` was given) and the configuration of a run over the file."""
    given = dict(word.partition("=")[::2] for word in words)
    if "data.path" not in given:
        raise ConfigError("ttpa data show needs data.path. For example data.path=mine.jsonl")
    layout, words = "", list(words)
    if "data" not in given:
        path = given["data.path"].strip("'\"")
        local = Path(path).expanduser()
        if not is_hub_id(path) and (not local.exists() or not (local.is_dir() or local.name.endswith(SUFFIXES))):
            problem = f"its name ends in none of {', '.join(SUFFIXES)}" if local.exists() else "no such file or folder"
            raise ConfigError.at("data.path", path, problem, "Give a file or folder that is there, or a hub id")
        layout, option = recognised(path)
        words.insert(0, f"data={option}")
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        return layout, compose_run(words)


def renderer_of(spec: Any, samples: Sequence[Sample], seed: int) -> Any:
    """The renderer of the model, without its weights."""
    from ttpa.policy.policy import create_policy
    from ttpa.run.stages.training import TOKENIZER_TEXTS, _tokenizer_texts

    return create_policy(spec, _tokenizer_texts(spec, samples[:TOKENIZER_TEXTS]), seed).renderer


def main(words: Sequence[str]) -> int:
    """`ttpa data show`; 0 where the rows could be used, 1 where too many are rejected for a run."""
    if words[0] != "show":
        raise ConfigError(f"no command data {words[0]}. Write ttpa data show data.path=FILE.")
    layout, cfg = composed(words[1:])
    source, model = config.instantiate(cfg.data, "data"), config.instantiate(cfg.model, "model")
    if not isinstance(source, FileSource):
        raise ConfigError.at("data", cfg.choices.data, "reads no file of rows", "Leave data= out, or name a reader")
    source.check()
    counts, reasons, first = Counter[str](), Counter[str](), dict[str, str]()
    samples, seen = list[Sample](), set[str]()
    for row in islice(read_rows(source.path), source.max_rows):
        counts["read"] += 1
        try:
            found = source.samples_of(row)
        except BadRow as problem:
            reasons[problem.args[0]] += 1
            first.setdefault(problem.args[0], f"{row.file}:{row.line}: {problem}")
            continue
        if found.key in seen:
            counts["duplicate"] += 1
            continue
        seen.add(found.key)
        counts.update(one.kind for one in found.samples)
        counts.update(found.split for _ in found.samples)
        samples += found.samples[: max(0, MEASURED - len(samples))]
    option = cfg.choices.data
    said = [f"{source.path}: {layout or 'as chosen'}, read by data={option}"]
    rejected = reasons.total()
    said.append(f"rows: {counts['read']} read, {rejected} rejected, {counts['duplicate']} there twice")
    total = counts["call"] + counts["text"]
    splits = ", ".join(f"{counts[name]} {name}" for name in ("train", "validation", "test"))
    said.append(f"samples: {total} ({counts['call']} with calls, {counts['text']} without), {splits}")
    if samples:
        said += _rendered(samples, model, cfg.seed)
    too_many = rejected > source.max_bad_fraction * counts["read"]
    for reason, count in reasons.most_common():
        said.append(f"rejected, {reason}: {count}, first {first[reason]}")
    if too_many:
        said.append(f"A run would stop: more than data.max_bad_fraction={source.max_bad_fraction} of the rows.")
    print("\n".join(visible(line) for text in said for line in text.split("\n")))
    return 1 if too_many or not samples else 0


def _rendered(samples: Sequence[Sample], model: Any, seed: int) -> list[str]:
    """Three samples, of both kinds where there are both, and the lengths of all."""
    renderer = renderer_of(model, samples, seed)
    prompts, answers = renderer.try_prompts(samples), renderer.answers(samples)
    kept = [at for at, ids in enumerate(prompts) if not isinstance(ids, DataError)]
    firsts = [next((at for at in kept if samples[at].kind == kind), None) for kind in ("call", "text")]
    chosen = sorted(list(dict.fromkeys(at for at in (*firsts, *kept) if at is not None))[:3])
    said = list[str]()
    for at in chosen:
        said.append(f"--- sample {samples[at].id}: {len(prompts[at])} + {len(answers[at])} tokens")
        said.append(renderer.tokenizer.decode(prompts[at]) + "  >>>  " + renderer.tokenizer.decode(answers[at]))
    said.append("---")
    sizes = {"prompts": [len(prompts[at]) for at in kept], "answers": [len(answers[at]) for at in kept]}
    for name, lengths in sizes.items() if kept else ():
        low, middle, high, most = np.percentile(lengths, [5, 50, 95, 100]).round().astype(int)
        said.append(f"tokens of {len(lengths)} {name}: 5 % {low}, median {middle}, 95 % {high}, longest {most}")
    beyond = sum(len(prompts[at]) + len(answers[at]) > model.max_tokens for at in kept)
    said.append(f"longer than model.max_tokens={model.max_tokens}: {beyond}")
    refused = [str(found) for found in prompts if isinstance(found, DataError)]
    said += [f"refused by the template: {len(refused)}, first {refused[0]}"] if refused else []
    return said
