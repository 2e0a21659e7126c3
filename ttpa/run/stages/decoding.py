"""The stages that read or sample from a fixed policy: select, explore and evaluate.

Waves are cut from all samples, so the same waves give the same bytes in one process, on Ray and after a restart; with
other waves, log-probs are equal up to rounding. `candidates.jsonl` holds a line a sample (answers, scores, pairs,
search tree, counts, seed, time); `pairs.jsonl` collects the pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.explore.pairs import make_pairs, pair_siblings, with_parting
from ttpa.explore.sampler import Drawn, Task
from ttpa.explore.scorers.score import unit_score
from ttpa.io import dumps, write_jsonl
from ttpa.policy.engine import Sampling
from ttpa.records import Candidate, Pair, Sample, Score
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.waves import Rows, Shard, Work, run_waves

if TYPE_CHECKING:
    from ttpa.policy.engine import Engine, Generated, Ids
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow
    from ttpa.run.parts import Dialogue


def build_select(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The ids of the samples worth exploring, by the perplexity of their targets under the policy."""
    from ttpa.policy.forward import answer_sums, choose_forward
    from ttpa.policy.policy import load_policy

    set_threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, too_long = fitting(policy, read_split(data, "explore"), None, "select")
    forward, size = choose_forward(policy.model, parts.trainer.forward), 256
    nlls: dict[str, tuple[float, int]] = {}
    pad_id, budget = policy.renderer.pad_id, parts.trainer.micro_tokens
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        sums = answer_sums(forward, policy.model, [[row] for row in part], pad_id=pad_id, budget=budget)
        for sample, row, (logp,) in zip(samples[start : start + size], part, sums, strict=True):
            nlls[sample.id] = (-logp, len(row.answer))
        progress(start + len(part), len(rows), 0.0, "")
    selected = {sample.id for sample in parts.select.select(samples, nlls)}
    write_jsonl(
        workdir / "selected.jsonl",
        ({"id": i, "nll_sum": nll, "tokens": t, "selected": i in selected} for i, (nll, t) in nlls.items()),
    )
    return {"samples": len(samples), "too_long": too_long, "selected": len(selected)}


@dataclass(frozen=True, slots=True)
class Prompted:
    """A sample with its prompt's token ids: what a wave holds."""

    sample: Sample
    prompt: tuple[int, ...]

    @property
    def id(self) -> str:
        return self.sample.id


def decode_in_waves(
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

    `tally` gives the generated tokens of a row, and whether it gave a pair (None where none is wanted). Returns the
    ids of samples that failed; `errors.jsonl` beside the shard says why.
    """
    items = [Prompted(sample, tuple(row.prompt)) for sample, row in zip(samples, rows, strict=True)]
    items.sort(key=lambda item: (len(item.prompt), item.id))
    began, tokens, paired = time.monotonic(), 0, list[bool | None]()
    waves = [items[start : start + wave_size] for start in range(0, len(items), wave_size)]

    def on_wave(done: int, total: int, made: Rows) -> None:
        nonlocal tokens
        for row in made:
            count, has_pair = tally(row)
            tokens += count
            paired.append(has_pair)
        seconds = max(1e-9, time.monotonic() - began)
        note = f"{len(paired) / seconds:.1f} samples/s" if paired else ""
        if paired and paired[0] is not None:
            note += f", {sum(map(bool, paired)) / len(paired):.0%} gave pairs"
        progress(done, total, tokens / seconds, note)

    return run_waves(items, attrgetter("id"), waves, make_work, parts.executor, shard, on_wave)


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


class _Judge:
    """Answers the samples of a wave greedily and judges the answers, in the process that works."""

    def __init__(self, parts: Parts, policy_dir: Path) -> None:
        from ttpa.policy.policy import load_policy

        set_threads(parts)
        self.evaluation = parts.evaluation
        self.policy: Policy = load_policy(policy_dir, merged=True)
        self.engine: Engine = parts.engine(policy=self.policy)

    def __call__(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        dialogues = {
            item.id: dialogue for item in wave if (dialogue := self.evaluation.dialogue(item.sample)) is not None
        }
        single = [item for item in wave if item.id not in dialogues]
        answers = self._answer([item.sample for item in single], [item.prompt for item in single])
        rows = {item.id: self.evaluation.judge(item.sample, one) for item, one in zip(single, answers, strict=True)}
        self._converse(list(dialogues.values()))
        rows |= {name: dialogue.row() for name, dialogue in dialogues.items()}
        return [rows[item.id] for item in wave]

    def _answer(self, samples: Sequence[Sample], prompts: Sequence[Ids]) -> list[Candidate]:
        sampling = Sampling(max_new_tokens=self.evaluation.max_new_tokens, temperature=0.0)
        drawn = self.engine.generate(prompts, 1, sampling, [sample.id for sample in samples])
        return [
            self.policy.renderer.candidate(sample, 0, one.token_ids, finish=one.finish)
            for sample, (one,) in zip(samples, drawn, strict=True)
        ]

    def _converse(self, dialogues: Sequence[Dialogue]) -> None:
        """Goes on with all dialogues side by side until the last one is over. A prompt that has grown too long for the
        model is answered by nothing.
        """
        while going := [(one, sample) for one in dialogues if (sample := one.sample()) is not None]:
            prompts = self.policy.renderer.prompts([sample for _, sample in going])
            room = self.policy.spec.max_tokens - self.evaluation.max_new_tokens
            asked = [(sample, ids) for (_, sample), ids in zip(going, prompts, strict=True) if len(ids) <= room]
            answers = iter(self._answer([sample for sample, _ in asked], [ids for _, ids in asked]))
            for (dialogue, sample), ids in zip(going, prompts, strict=True):
                too_long = Candidate(sample_id=sample.id, index=0, text="", calls=(), finish="length", error="too long")
                dialogue.take(next(answers) if len(ids) <= room else too_long)


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to a benchmark's samples, one row a sample, and their summary."""
    from ttpa.policy.policy import load_policy

    evaluation = parts.evaluation
    wanted = evaluation.samples(data)
    samples, prompts, too_long = fitting(load_policy(policy_dir), wanted, evaluation.max_new_tokens, "evaluate")
    shard = Shard(workdir / "rows.jsonl")
    make_work: Callable[[], Work] = partial(_Judge, parts, policy_dir)
    failed = decode_in_waves(
        parts, make_work, samples, prompts, shard, parts.wave_rows, lambda row: (row["tokens"], None), progress
    )
    rows = {row["id"]: row for row in shard.rows()}
    # An answer that could not be had is a wrong answer, also where the prompt is too long for the model.
    judged = [
        rows.get(sample.id)
        or evaluation.judge(sample, Candidate(sample_id=sample.id, index=0, text="", error="failed"))
        for sample in wanted
    ]
    write_jsonl(workdir / "rows.jsonl", judged)  # all of them, in the order of the benchmark
    evaluation.write(workdir, judged)
    summary = evaluation.summarise(judged)
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    return {**summary, "too_long": too_long, "failed": len(failed), "engine": parts.engine_name}
