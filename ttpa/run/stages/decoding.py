"""The stages that read or sample from a fixed policy: select and evaluate; explore is `ttpa.run.stages.exploring`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.io import dumps, write_jsonl
from ttpa.policy.engine import Sampling
from ttpa.records import Candidate, Sample
from ttpa.run.stages.parts import Parts, Progress, fitting, set_threads
from ttpa.run.waves import Rows, Shard, Work, run_waves

if TYPE_CHECKING:
    from ttpa.policy.engine import Ids
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow
    from ttpa.run.evaluation import Dialogue


def build_select(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The ids of the samples worth exploring, by the perplexity of their targets under the policy."""
    from ttpa.policy.forward import answer_sums, choose_forward
    from ttpa.policy.policy import load_policy

    set_threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = fitting(policy, read_split(data, "explore"), None, "select")
    forward, size = choose_forward(policy.model, parts.trainer.forward), 256
    nlls: dict[str, tuple[float, int]] = {}
    for start in range(0, len(rows), size):
        groups = [[row] for row in rows[start : start + size]]
        sums = answer_sums(
            forward, policy.model, groups, pad_id=policy.renderer.pad_id, budget=parts.trainer.micro_tokens
        )
        for offset, (value,) in enumerate(sums):
            nlls[samples[start + offset].id] = (-value, len(rows[start + offset].answer))
        progress(min(start + size, len(rows)), len(rows), 0.0, "")
    chosen = parts.select.select(samples, nlls)
    kept = {sample.id for sample in chosen}
    write_jsonl(
        workdir / "selected.jsonl",
        ({"id": i, "nll_sum": n, "tokens": t, "selected": i in kept} for i, (n, t) in nlls.items()),
    )
    return {"samples": len(samples), "too_long": too_long, "selected": len(chosen)}


@dataclass(frozen=True, slots=True)
class Prompted:
    """A sample with its prompt's token ids: what a wave holds."""

    sample: Sample
    prompt: tuple[int, ...]

    @property
    def id(self) -> str:
        return self.sample.id


def decoded(
    parts: Parts,
    make_work: Callable[[], Work],
    samples: Sequence[Sample],
    rows: Sequence[TokenRow],
    shard: Shard,
    wave_size: int,
    tally: Callable[[Mapping[str, Any]], tuple[int, bool | None]],
    progress: Progress,
) -> tuple[str, ...]:
    """Has samples computed in waves, prompts of similar length together, and their rows appended to the shard.

    Args:
        parts: The executor.
        make_work: See `run_waves`; waves hold `Prompted`.
        samples, rows: What to compute, and their tokens.
        shard: Where rows go.
        wave_size: Samples of a wave.
        tally: Generated tokens of a row, and whether it gave a pair (None where none is wanted).
        progress: Told samples and tokens a second, and the share that gave a pair.

    Returns:
        The ids of samples that failed; `errors.jsonl` beside the shard says why.
    """
    items = [Prompted(sample, tuple(row.prompt)) for sample, row in zip(samples, rows, strict=True)]
    order = sorted(items, key=lambda item: (len(item.prompt), item.id))
    began, tokens, given = time.monotonic(), 0, list[bool | None]()

    waves = [order[start : start + wave_size] for start in range(0, len(order), wave_size)]

    def on_wave(done: int, total: int, found: Rows) -> None:
        nonlocal tokens
        for row in found:
            more, good = tally(row)
            tokens += more
            given.append(good)
        spent = max(1e-9, time.monotonic() - began)
        note = f"{len(given) / spent:.1f} samples/s" if given else ""
        if given and given[0] is not None:
            note += f", {sum(map(bool, given)) / len(given):.0%} gave pairs"
        progress(done, total, tokens / spent, note)

    return run_waves(order, attrgetter("id"), waves, make_work, parts.executor, shard, on_wave)


def _judging(parts: Parts, policy_dir: Path) -> Work:
    """Greedy answers of a wave and whether they are right."""
    from ttpa.policy.policy import load_policy

    set_threads(parts)
    policy = load_policy(policy_dir)
    engine = parts.engine(policy=policy)
    evaluation = parts.evaluation
    sampling = Sampling(max_new_tokens=evaluation.max_new_tokens, temperature=0.0)

    def answer(samples: Sequence[Sample], prompts: Sequence[Ids]) -> list[Candidate]:
        answers = engine.generate(prompts, 1, sampling, [sample.id for sample in samples])
        return [
            policy.renderer.candidate(sample, 0, one.token_ids, finish=one.finish)
            for sample, (one,) in zip(samples, answers, strict=True)
        ]

    def work(wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        dialogues = [evaluation.dialogue(item.sample) for item in wave]
        single = [item for item, dialogue in zip(wave, dialogues, strict=True) if dialogue is None]
        found = answer([item.sample for item in single], [item.prompt for item in single])
        rows = iter([evaluation.judge(item.sample, one) for item, one in zip(single, found, strict=True)])
        _converse(
            [dialogue for dialogue in dialogues if dialogue is not None], policy, answer, evaluation.max_new_tokens
        )
        return [next(rows) if dialogue is None else dialogue.row() for dialogue in dialogues]

    return work


def _converse(
    dialogues: Sequence[Dialogue],
    policy: Policy,
    answer: Callable[[Sequence[Sample], Sequence[Ids]], list[Candidate]],
    reserve: int,
) -> None:
    """Goes on with all dialogues side by side until the last one is over. A prompt that has grown too long for the
    model is answered by nothing.
    """
    going = [(dialogue, sample) for dialogue in dialogues if (sample := dialogue.sample()) is not None]
    while going:
        samples = [sample for _, sample in going]
        prompts = policy.renderer.prompts(samples)
        fits = [len(prompt) + reserve <= policy.max_tokens for prompt in prompts]
        asked = [k for k, fit in enumerate(fits) if fit]
        found = iter(answer([samples[k] for k in asked], [prompts[k] for k in asked]))
        for (dialogue, sample), fit in zip(going, fits, strict=True):
            too_long = Candidate(sample_id=sample.id, index=0, text="", calls=(), finish="length", error="too long")
            dialogue.take(next(found) if fit else too_long)
        going = [(dialogue, sample) for dialogue, _ in going if (sample := dialogue.sample()) is not None]


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to a benchmark's samples, one row a sample, and their summary."""
    from ttpa.policy.policy import load_policy

    policy, evaluation = load_policy(policy_dir), parts.evaluation
    every = evaluation.samples(data)
    samples, rows, too_long = fitting(policy, every, evaluation.max_new_tokens, "evaluate")
    shard = Shard(workdir / "rows.jsonl")
    failed = decoded(
        parts,
        partial(_judging, parts, policy_dir),
        samples,
        rows,
        shard,
        parts.wave_rows,
        lambda row: (row["tokens"], None),
        progress,
    )
    found = {row["id"]: row for row in shard.rows()}
    # An answer that could not be had is a wrong answer, also where the prompt is too long for the model.
    judged = [
        found.get(s.id) or evaluation.judge(s, Candidate(sample_id=s.id, index=0, text="", error="failed"))
        for s in every
    ]
    write_jsonl(workdir / "rows.jsonl", judged)  # all of them, in the order of the benchmark
    evaluation.write(workdir, judged)
    summary = evaluation.summarise(judged)
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    return {**summary, "too_long": too_long, "failed": len(failed), "engine": parts.engine_name}
