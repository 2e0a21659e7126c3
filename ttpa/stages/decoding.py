"""The stages that read or sample from a fixed policy: select, explore, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.evals.heldout import judge, summarise
from ttpa.pairs import make_pairs
from ttpa.policy.specs import load_policy
from ttpa.records import Candidate, Sample, dumps, write_jsonl
from ttpa.shards import Shard, run_waves
from ttpa.stages.parts import Parts, Progress, fitting, read_split, selected_samples, set_threads

if TYPE_CHECKING:
    from ttpa.policy.logprobs import Row
    from ttpa.policy.policy import Policy


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


def _decoded(
    parts: Parts,
    policy: Policy,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    shard: Shard,
    n: int,
    chooser: Any,
    seed: object,
    max_new_tokens: int,
    to_row: Callable[[Sample, list[Candidate]], dict[str, Any]],
    progress: Progress,
) -> None:
    """Decodes wave by wave, prompts of similar length together, and appends `to_row` of each sample to the shard."""
    engine = parts.engine(policy=policy, max_new_tokens=max_new_tokens)
    prompt_of = {sample.id: list(row.prompt) for sample, row in zip(samples, rows, strict=True)}
    wave_size = max(1, engine.rows // n)
    order = sorted(samples, key=lambda sample: (len(prompt_of[sample.id]), sample.id))
    began, tokens, found = time.monotonic(), 0, 0

    def waves_of(items: Sequence[Sample]) -> list[Sequence[Sample]]:
        return [items[start : start + wave_size] for start in range(0, len(items), wave_size)]

    def work(wave: Sequence[Sample]) -> list[dict[str, Any]]:
        nonlocal tokens, found
        drawn = engine.generate([prompt_of[s.id] for s in wave], [s.id for s in wave], n, chooser, seed)
        made = []
        for sample, answers in zip(wave, drawn, strict=True):
            tokens += sum(len(answer.token_ids) for answer in answers)
            candidates = [
                policy.renderer.candidate(
                    sample,
                    index,
                    answer.token_ids,
                    logps=tuple(round(p, 6) for p in answer.logps),
                    finish=answer.finish,
                    branches=tuple(answer.branches),
                )
                for index, answer in enumerate(answers)
            ]
            made.append(to_row(sample, candidates))
        return made

    def on_wave(done: int, total: int) -> None:
        progress(min(done * wave_size, len(order)), len(order), tokens / max(1e-9, time.monotonic() - began), "")

    run_waves(order, lambda sample: sample.id, waves_of, work, shard, on_wave)


def build_explore(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    select: Path | None,
    round_number: int,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Candidates of the policy, scored and paired, one line a sample; `pairs.jsonl` at the end."""
    set_threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = fitting(
        policy, selected_samples(parts, data, select), parts.sampler.max_new_tokens, "explore"
    )
    golds = {gold.sample_id: gold for gold in policy.renderer.gold(samples)}
    shard = Shard(workdir / "candidates.jsonl")

    def to_row(sample: Sample, candidates: list[Candidate]) -> dict[str, Any]:
        scored = [(candidate, parts.scorer(sample, candidate)) for candidate in candidates]
        pairs = make_pairs(sample, scored, golds[sample.id], parts.pairs)
        return {
            "id": sample.id,
            "candidates": [candidate.to_json() for candidate in candidates],
            "scores": [score.to_json() for _, score in scored],
            "pairs": [pair.to_json() for pair in pairs],
        }

    _decoded(
        parts,
        policy,
        samples,
        rows,
        shard,
        parts.sampler.n,
        parts.sampler.chooser(),
        f"explore:{parts.seed}:{round_number}",
        parts.sampler.max_new_tokens,
        to_row,
        progress,
    )
    return {**_collect_pairs(workdir, shard), "too_long": too_long}


def _collect_pairs(workdir: Path, shard: Shard) -> dict[str, Any]:
    """Writes `pairs.jsonl` in order of sample ids and counts what exploration found."""
    rows = sorted(shard.rows(), key=lambda row: str(row["id"]))
    write_jsonl(workdir / "pairs.jsonl", (pair for row in rows for pair in row["pairs"]))
    count = max(1, len(rows))
    right = [sum(score["exact"] for score in row["scores"]) for row in rows]
    sizes = [len(row["scores"]) for row in rows]
    return {
        "samples": len(rows),
        "candidates": sum(sizes),
        "tokens": sum(len(c["token_ids"]) for row in rows for c in row["candidates"]),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "pairable_share": round(sum(bool(row["pairs"]) for row in rows) / count, 4),
        "any_right_share": round(sum(r > 0 for r in right) / count, 4),
        "right_and_wrong_share": round(sum(0 < r < n for r, n in zip(right, sizes, strict=True)) / count, 4),
        "mean_distinct": round(sum(len({c["text"] for c in row["candidates"]}) for row in rows) / count, 4),
    }


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to the held-out split, one row a sample, and their summary."""
    from ttpa.policy.decode import greedy

    set_threads(parts)
    policy = load_policy(policy_dir)
    held_out = read_split(data, parts.evaluation.split)
    samples, rows, too_long = fitting(
        policy, held_out[: parts.evaluation.limit], parts.evaluation.max_new_tokens, "evaluate"
    )
    shard = Shard(workdir / "rows.jsonl")
    _decoded(
        parts,
        policy,
        samples,
        rows,
        shard,
        1,
        greedy,
        "evaluate",
        parts.evaluation.max_new_tokens,
        lambda sample, candidates: judge(sample, candidates[0]),
        progress,
    )
    found = {row["id"]: row for row in shard.rows()}
    summary = summarise([found[sample.id] for sample in samples])
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    return {**summary, "too_long": too_long, "split": parts.evaluation.split}
