"""The stages that read or sample from a fixed policy: select and evaluate; explore is `ttpa.stages.exploring`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.evals.heldout import judge, summarise
from ttpa.executor import Rows, Work
from ttpa.policy.engine import Sampling
from ttpa.policy.specs import load_policy
from ttpa.records import Candidate, Sample, dumps, write_jsonl
from ttpa.shards import Shard, run_waves
from ttpa.stages.parts import Parts, Progress, fitting, read_split, set_threads

if TYPE_CHECKING:
    from ttpa.policy.logprobs import Row


def build_select(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The ids of the samples worth exploring, by the perplexity of their targets under the policy."""
    from ttpa.policy.tree_logprobs import answer_sums, choose_forward

    set_threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = fitting(policy, read_split(data, "explore"), None, "select")
    forward, size = choose_forward(policy.model, parts.execution.forward), 256
    nlls: dict[str, tuple[float, int]] = {}
    for start in range(0, len(rows), size):
        groups = [[row] for row in rows[start : start + size]]
        sums = answer_sums(
            forward, policy.model, groups, pad_id=policy.renderer.pad_id, budget=parts.execution.micro_tokens
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
    rows: Sequence[Row],
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

    def waves_of(all_items: Sequence[Prompted]) -> list[Sequence[Prompted]]:
        return [all_items[start : start + wave_size] for start in range(0, len(all_items), wave_size)]

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

    return run_waves(order, attrgetter("id"), waves_of, make_work, parts.executor, shard, on_wave).failed


def _judging(parts: Parts, policy_dir: Path) -> Work:
    """Greedy answers of a wave and whether they are right."""
    set_threads(parts)
    policy = load_policy(policy_dir)
    engine = parts.engine(policy=policy)
    sampling = Sampling(max_new_tokens=parts.evaluation.max_new_tokens, temperature=0.0)

    def work(wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        answers = engine.generate([item.prompt for item in wave], 1, sampling, [item.id for item in wave])
        return [
            judge(item.sample, policy.renderer.candidate(item.sample, 0, one.token_ids, finish=one.finish))
            for item, (one,) in zip(wave, answers, strict=True)
        ]

    return work


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to the held-out split, one row a sample, and their summary."""
    policy = load_policy(policy_dir)
    held_out = read_split(data, parts.evaluation.split)
    samples, rows, too_long = fitting(
        policy, held_out[: parts.evaluation.limit], parts.evaluation.max_new_tokens, "evaluate"
    )
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
    # An answer that could not be had is no answer.
    lost = {
        s.id: judge(s, Candidate(sample_id=s.id, index=0, text="", error="failed")) for s in samples if s.id in failed
    }
    summary = summarise([found.get(sample.id) or lost[sample.id] for sample in samples])
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    about = {"too_long": too_long, "failed": len(failed), "engine": parts.engine_name}
    return {**summary, **about, "split": parts.evaluation.split}
