"""The explore stage: what the sampler draws from the policy, scored and paired, one line a sample.

A line of `candidates.jsonl` holds a sample's answers, scores, pairs, search tree, counts, seed and time; `pairs.jsonl`
collects the pairs. Waves are cut from all samples, so the same waves give the same bytes in one process, on Ray and
after a restart; with other waves, log-probs are equal up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.explore.pairs import make_pairs, pair_siblings, with_parting
from ttpa.explore.sampler import Drawn, Task
from ttpa.explore.scorers.score import unit_score
from ttpa.io import write_jsonl
from ttpa.records import Candidate, Pair, Score
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.stages.decoding import Prompted, decode_in_waves
from ttpa.run.waves import Shard, Work

if TYPE_CHECKING:
    from ttpa.policy.engine import Engine, Generated
    from ttpa.policy.policy import Policy


class _Explorer:
    """The policy, the engine and the rules, in the process that works."""

    def __init__(self, parts: Parts, policy_dir: Path, round_number: int) -> None:
        from ttpa.policy.policy import load_policy

        set_threads(parts)
        self.parts = parts
        self.policy: Policy = load_policy(policy_dir, merged=True)
        self.engine: Engine = parts.engine(policy=self.policy)
        self.seed = f"explore:{parts.seed}:{round_number}"

    def __call__(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        began = time.monotonic()
        self.engine.reset()  # prompts kept from earlier waves would make rows depend on them
        renderer, score = self.policy.renderer, partial(unit_score, self.parts.scorer)
        tasks = [Task(name=i.id, sample=i.sample, prompt=i.prompt, renderer=renderer, score=score) for i in wave]
        drawn = self.parts.sampler.explore(self.engine, tasks, self.seed)
        rows = [self._row(task, one) for task, one in zip(tasks, drawn, strict=True)]
        seconds = round((time.monotonic() - began) / len(wave), 4)
        return [{**row, "seconds": seconds} for row in rows]

    def _row(self, task: Task, drawn: Drawn) -> dict[str, Any]:
        answers = [task.read(generated.token_ids) for generated in drawn.answers]
        scored = [
            (_recorded(answer.candidate, index, generated), answer.score)
            for index, (answer, generated) in enumerate(zip(answers, drawn.answers, strict=True))
        ]
        return {
            "id": task.sample.id,
            "candidates": [candidate.to_json() for candidate, _ in scored],
            "scores": [score.to_json() for _, score in scored],
            "pairs": [pair.to_json() for pair in self._pairs(task, scored, drawn)],
            "tree": drawn.tree,
            "counts": {"generated": sum(len(one.token_ids) for one in drawn.answers), **drawn.counts},
            "seed": f"{self.seed}/{task.sample.id}",
        }

    def _pairs(self, task: Task, scored: Sequence[tuple[Candidate, Score]], drawn: Drawn) -> list[Pair]:
        rule = self.parts.pairs
        if rule.between == "siblings":
            return [with_parting(pair) for pair in pair_siblings(task.sample, scored, drawn.siblings, rule)]
        (gold,) = self.policy.renderer.gold([task.sample])
        pairs = make_pairs(task.sample, scored, gold, rule)
        if any(pair.chosen is gold for pair in pairs):
            # Nobody drew the target, so its log-probs are computed here, where the engine can.
            for logps in self.engine.answer_logps(task.prompt, [gold.token_ids]) or ():
                known = replace(gold, logps=tuple(round(logp, 6) for logp in logps))
                pairs = [replace(pair, chosen=known) for pair in pairs]
        return [with_parting(pair) for pair in pairs]


def _recorded(candidate: Candidate, index: int, generated: Generated) -> Candidate:
    """A decoded answer with what the engine knows about it."""
    return replace(
        candidate,
        index=index,
        finish=generated.finish,
        logps=tuple(round(logp, 6) for logp in generated.logps),
        branches=tuple((at, tuple((t, round(p, 6)) for t, p in options)) for at, options in generated.branches),
    )


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
    from ttpa.policy.policy import load_policy

    samples, prompts, too_long = fitting(
        load_policy(policy_dir), selected_samples(parts, data, select), parts.sampler.max_new_tokens, "explore"
    )
    shard = Shard(workdir / "candidates.jsonl")
    make_work: Callable[[], Work] = partial(_Explorer, parts, policy_dir, round_number)

    def tally(row: Mapping[str, Any]) -> tuple[int, bool]:
        return row["counts"]["generated"], bool(row["pairs"])

    wave_size = max(1, parts.wave_rows // parts.sampler.wave_share)
    failed = decode_in_waves(parts, make_work, samples, prompts, shard, wave_size, tally, progress)
    return {**_collect_pairs(workdir, shard), "too_long": too_long, "failed": len(failed), "engine": parts.engine_name}


def _collect_pairs(workdir: Path, shard: Shard) -> dict[str, Any]:
    """Writes `pairs.jsonl` in order of sample ids and counts what exploration found."""
    rows = sorted(shard.rows(), key=lambda row: str(row["id"]))
    write_jsonl(workdir / "pairs.jsonl", (pair for row in rows for pair in row["pairs"]))
    exact = [[score["exact"] for score in row["scores"]] for row in rows]

    def share(count: int) -> float:
        return round(count / max(1, len(rows)), 4)

    return {
        "samples": len(rows),
        "candidates": sum(map(len, exact)),
        "tokens": sum(row["counts"]["generated"] for row in rows),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "pairable_share": share(sum(bool(row["pairs"]) for row in rows)),
        "any_right_share": share(sum(map(any, exact))),
        "right_and_wrong_share": share(sum(any(found) and not all(found) for found in exact)),
        "mean_distinct": share(sum(len({one["text"] for one in row["candidates"]}) for row in rows)),
    }
