"""The six stages: data, warmup, select, explore, align, evaluate. Each is `(parts, inputs, workdir, progress) -> metrics`.

A stage reads finished folders, writes into its working directory and can be killed at any moment: training continues from
`last.ckpt`, row files from their last whole line. Nothing here knows the order of stages (`ttpa.pipeline`) or where they
are kept (`ttpa.store`). Heavy imports are inside the functions, so that a run served from the store starts in no time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.errors import DataError
from ttpa.evals.heldout import Heldout, judge, summarise
from ttpa.modules.settings import Alignment, Execution, NoWarmup, Warmup
from ttpa.objectives import DPO, RFT, Gold, SimPO
from ttpa.pairs import PairRule, make_pairs
from ttpa.policy.specs import HFModel, TinyModel, load_policy
from ttpa.records import Candidate, Pair, Sample, dumps, read_jsonl, write_jsonl
from ttpa.samplers.group import GroupSampler
from ttpa.samplers.tps import TPS
from ttpa.scorers import Scorer
from ttpa.selection import SelectAll, SelectPerplexity
from ttpa.shards import Shard, run_waves

if TYPE_CHECKING:
    from ttpa.policy.logprobs import Row
    from ttpa.policy.policy import Policy

Progress = Callable[[int, int, float, str], None]

VERSIONS = {"data": 1, "warmup": 1, "select": 1, "explore": 1, "align": 1, "evaluate": 1}
"""Bump a stage's number in the commit that changes what its result means: every result built by older code is rebuilt."""

TOKENIZER_TEXTS = 3000


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a run is made of, instantiated and checked; see conf/."""

    data: Any
    model: TinyModel | HFModel
    warmup: Warmup | NoWarmup
    select: SelectAll | SelectPerplexity
    sampler: GroupSampler | TPS
    scorer: Scorer
    pairs: PairRule
    objective: Alignment
    evaluation: Heldout
    seed: int
    execution: Execution
    engine: Callable[..., Any]
    trainer: Callable[..., Any]
    logger: Callable[[Path, str], Any]


def _split(data: Path, name: str) -> list[Sample]:
    file = json.loads((data / "splits.json").read_text(encoding="utf-8"))[name]
    return [Sample.from_json(row) for row in read_jsonl(data / file)]


def _threads(parts: Parts) -> None:
    import torch

    if parts.execution.threads:
        torch.set_num_threads(parts.execution.threads)


def _fitting(policy: Policy, samples: Sequence[Sample], reserve: int | None, where: str) -> tuple[list[Sample], list[Row], int]:
    """Samples short enough for the model, with prompt and target ids, and how many were left out.

    A prompt is never cut: it would lose tools. `reserve` is room kept for an answer; None means the target itself.
    """
    from ttpa.policy.logprobs import Row

    rows = [Row(p, a) for p, a in zip(policy.renderer.prompts(samples), policy.renderer.answers(samples), strict=True)]
    fits = [len(row.prompt) + (len(row.answer) if reserve is None else reserve) <= policy.max_tokens for row in rows]
    kept = [sample for sample, fit in zip(samples, fits, strict=True) if fit]
    if not kept:
        shortest = min((len(row.prompt) for row in rows), default=0)
        raise DataError(f"{where}: none of {len(samples)} samples fits model.max_tokens={policy.max_tokens} (shortest prompt: "
                        f"{shortest} tokens). Raise model.max_tokens.")
    return kept, [row for row, fit in zip(rows, fits, strict=True) if fit], len(samples) - len(kept)


def build_data(parts: Parts, workdir: Path) -> dict[str, Any]:
    """Reads or makes the samples and writes the splits."""
    metrics: dict[str, Any] = parts.data.build(workdir)
    return metrics


def build_warmup(parts: Parts, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The starting policy, fine-tuned on the demonstrations unless `warmup=none`."""
    _threads(parts)
    demonstrations = _split(data, "warmup")
    policy = parts.model.create(_tokenizer_texts(parts.model, demonstrations[:TOKENIZER_TEXTS]), parts.seed)
    if isinstance(parts.warmup, NoWarmup):
        policy.save(workdir / "policy")
        return {"steps": 0, "tokens": 0, "parameters": policy.model.num_parameters()}
    from ttpa.modules.plan import plan_warmup

    samples, rows, too_long = _fitting(policy, demonstrations, None, "warm-up")
    plan = plan_warmup([len(row) for row in rows], [sample.band for sample in samples], parts.warmup, parts.seed)
    metrics = _fit_sft(parts, policy, rows, plan, parts.warmup.optimizer, parts.warmup.prompt_weight, workdir, progress)
    return {"samples": len(samples), "too_long": too_long, "parameters": policy.model.num_parameters(), **metrics}


def _tokenizer_texts(model: TinyModel | HFModel, samples: Sequence[Sample]) -> Iterator[str]:
    from ttpa.prompts import compact_segments
    from ttpa.toolcall import get_syntax

    syntax = get_syntax(model.syntax)
    for sample in samples:
        yield from (text for _, text in compact_segments(sample, syntax))
        yield syntax.print(sample.target) if sample.target else sample.target_text or ""


def _fit_sft(parts: Parts, policy: Policy, rows: Sequence[Row], plan: Any, optimizer: Any, prompt_weight: float, workdir: Path,
             progress: Progress) -> dict[str, Any]:
    from ttpa.modules.base import PlanData
    from ttpa.modules.sft import SFTModule, row_weight

    policy.start_training(parts.seed)
    module = SFTModule(policy, optimizer, plan.boundaries, rows, prompt_weight)
    weights = [row_weight(row, prompt_weight) for row in rows]
    return _fit(parts, module, PlanData(plan, [len(row) for row in rows], weights, parts.execution.micro_tokens), workdir, progress)


def _fit(parts: Parts, module: Any, data: Any, workdir: Path, progress: Progress) -> dict[str, Any]:
    from ttpa.modules.train import train

    metrics = train(module, data, workdir, trainer=parts.trainer, logger=parts.logger(workdir, workdir.name.removesuffix(".part")),
                    checkpoint_every=parts.execution.checkpoint_every_steps, progress=progress)
    module.policy.model = module.model
    module.policy.save(workdir / "policy")
    return metrics


def build_select(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The ids of the samples worth exploring, by the perplexity of their targets under the policy."""
    from ttpa.policy.logprobs import answer_sums

    _threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = _fitting(policy, _split(data, "explore"), None, "select")
    size = 256
    nlls: dict[str, tuple[float, int]] = {}
    for start in range(0, len(rows), size):
        sums = answer_sums(policy.model, rows[start : start + size], pad_id=policy.renderer.pad_id,
                           budget=parts.execution.micro_tokens)
        for offset, value in enumerate(sums):
            nlls[samples[start + offset].id] = (-value, len(rows[start + offset].answer))
        progress(min(start + size, len(rows)), len(rows), 0.0, "")
    chosen = parts.select.select(samples, nlls)
    kept = {sample.id for sample in chosen}
    write_jsonl(workdir / "selected.jsonl", ({"id": i, "nll_sum": n, "tokens": t, "selected": i in kept} for i, (n, t) in nlls.items()))
    return {"samples": len(samples), "too_long": too_long, "selected": len(chosen)}


def selected_samples(parts: Parts, data: Path, select: Path | None) -> list[Sample]:
    """The exploration prompts: by the select stage where there is one, else by a selection that needs no policy."""
    samples = _split(data, "explore")
    if select is None:
        return parts.select.select(samples, None)
    kept = {row["id"] for row in read_jsonl(select / "selected.jsonl") if row["selected"]}
    return [sample for sample in samples if sample.id in kept]


def _decoded(parts: Parts, policy: Policy, samples: Sequence[Sample], rows: Sequence[Row], shard: Shard, n: int, chooser: Any,
             seed: object, max_new_tokens: int, to_row: Callable[[Sample, list[Candidate]], dict[str, Any]],
             progress: Progress) -> None:
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
                policy.renderer.candidate(sample, index, answer.token_ids, logps=tuple(round(p, 6) for p in answer.logps),
                                          finish=answer.finish, branches=tuple(answer.branches))
                for index, answer in enumerate(answers)
            ]
            made.append(to_row(sample, candidates))
        return made

    def on_wave(done: int, total: int) -> None:
        progress(min(done * wave_size, len(order)), len(order), tokens / max(1e-9, time.monotonic() - began), "")

    run_waves(order, lambda sample: sample.id, waves_of, work, shard, on_wave)


def build_explore(parts: Parts, policy_dir: Path, data: Path, select: Path | None, round_number: int,
                  workdir: Path, progress: Progress) -> dict[str, Any]:
    """Candidates of the policy, scored and paired, one line a sample; `pairs.jsonl` at the end."""
    _threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = _fitting(policy, selected_samples(parts, data, select), parts.sampler.max_new_tokens, "explore")
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

    _decoded(parts, policy, samples, rows, shard, parts.sampler.n, parts.sampler.chooser(),
             f"explore:{parts.seed}:{round_number}", parts.sampler.max_new_tokens, to_row, progress)
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


def build_align(parts: Parts, policy_dir: Path, data: Path, select: Path | None, explore: Path | None, workdir: Path,
                progress: Progress) -> dict[str, Any]:
    """The policy after the objective: preference pairs, their chosen answers (RFT), or the targets (gold)."""
    from ttpa.modules.plan import plan_alignment
    from ttpa.policy.logprobs import Row

    _threads(parts)
    policy = load_policy(policy_dir)
    settings, loss = parts.objective, parts.objective.loss
    if isinstance(loss, Gold):
        samples, rows, too_long = _fitting(policy, selected_samples(parts, data, select), None, "align")
        plan = plan_alignment(len(rows), settings, parts.seed)
        return {"answers": len(samples), "too_long": too_long,
                **_fit_sft(parts, policy, rows, plan, settings.optimizer, 0.0, workdir, progress)}
    assert explore is not None
    pairs = [Pair.from_json(row) for row in read_jsonl(explore / "pairs.jsonl")]
    if not pairs:
        raise DataError(f"{explore / 'pairs.jsonl'}: exploration gave no pairs, so there is nothing to align on. Use "
                        "pairs=released (the target stands in where no candidate is right), more candidates or a longer warm-up.")
    by_id = {sample.id: sample for sample in _split(data, "explore")}
    prompts = dict(zip(by_id, policy.renderer.prompts(list(by_id.values())), strict=True))
    if isinstance(loss, RFT):
        answers = {(pair.sample_id, pair.chosen.token_ids): None for pair in pairs}
        rows = [Row(prompts[sample_id], ids) for sample_id, ids in answers]
        plan = plan_alignment(len(rows), settings, parts.seed)
        return {"answers": len(rows), **_fit_sft(parts, policy, rows, plan, settings.optimizer, 0.0, workdir, progress)}
    return _align_pairs(parts, policy, pairs, prompts, loss, workdir, progress)


def _align_pairs(parts: Parts, policy: Policy, pairs: list[Pair], prompts: dict[str, list[int]], loss: DPO | SimPO, workdir: Path,
                 progress: Progress) -> dict[str, Any]:
    from ttpa.modules.base import PlanData
    from ttpa.modules.plan import plan_alignment
    from ttpa.modules.preference import PreferenceModule
    from ttpa.policy.logprobs import Row

    chosen = [Row(prompts[pair.sample_id], pair.chosen.token_ids) for pair in pairs]
    rejected = [Row(prompts[pair.sample_id], pair.rejected.token_ids) for pair in pairs]
    references = _references(parts, policy, chosen, rejected, workdir) if loss.needs_reference else None
    policy.start_training(parts.seed)
    plan = plan_alignment(len(pairs), parts.objective, parts.seed)
    module = PreferenceModule(policy, parts.objective.optimizer, plan.boundaries, loss, chosen, rejected, references)
    lengths = [len(c) + len(r) for c, r in zip(chosen, rejected, strict=True)]
    data = PlanData(plan, lengths, [len(row.answer) for row in chosen], parts.execution.micro_tokens)
    return {"pairs": len(pairs), **_fit(parts, module, data, workdir, progress)}


def _references(parts: Parts, policy: Policy, chosen: Sequence[Row], rejected: Sequence[Row], workdir: Path) -> list[tuple[float, float]]:
    """Summed log-probs of each pair under the policy the stage starts from: once, with the training forward, kept on disk."""
    from ttpa.policy.logprobs import answer_sums

    file = workdir / "reference_logps.jsonl"
    if not file.exists():
        sums = answer_sums(policy.model, [*chosen, *rejected], pad_id=policy.renderer.pad_id, budget=parts.execution.micro_tokens)
        write_jsonl(file, ({"chosen": c, "rejected": r} for c, r in zip(sums[: len(chosen)], sums[len(chosen) :], strict=True)))
    return [(row["chosen"], row["rejected"]) for row in read_jsonl(file)]


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to the held-out split, one row a sample, and their summary."""
    from ttpa.policy.decode import greedy

    _threads(parts)
    policy = load_policy(policy_dir)
    held_out = _split(data, parts.evaluation.split)
    samples, rows, too_long = _fitting(policy, held_out[: parts.evaluation.limit], parts.evaluation.max_new_tokens, "evaluate")
    shard = Shard(workdir / "rows.jsonl")
    _decoded(parts, policy, samples, rows, shard, 1, greedy, "evaluate", parts.evaluation.max_new_tokens,
             lambda sample, candidates: judge(sample, candidates[0]), progress)
    found = {row["id"]: row for row in shard.rows()}
    summary = summarise([found[sample.id] for sample in samples])
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    return {**summary, "too_long": too_long, "split": parts.evaluation.split}
