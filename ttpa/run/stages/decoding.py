"""The stages that read or sample from a fixed policy: select, explore and evaluate.

Waves are cut from all samples, so the same waves give the same bytes in one process, on Ray and after a restart; with
other waves, log-probs are equal up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ttpa.calls.six_errors import is_exact
from ttpa.data.source import read_split
from ttpa.errors import FALLBACKS, DataError, fall_back
from ttpa.explore.pairs import GOLD_SCORE, PairRule, make_pairs, pair_siblings, with_parting
from ttpa.explore.sampler import Drawn, Task
from ttpa.explore.scorers.score import unit_score
from ttpa.io import Shard, dumps, read_jsonl, write_jsonl
from ttpa.policy.engine import Sampling
from ttpa.records import Candidate, Pair, Sample, Score
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.waves import Rows, Work, run_waves

if TYPE_CHECKING:
    from ttpa.policy.engine import Engine, Generated, Ids
    from ttpa.policy.policy import Policy
    from ttpa.run.parts import Dialogue


def build_select(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The ids of the samples worth exploring, by the perplexity of their targets under the policy."""
    from ttpa.policy.forward import answer_sums, choose_forward
    from ttpa.policy.policy import load_policy

    set_threads(parts)
    policy = load_policy(policy_dir)
    samples, rows, left_out = fitting(policy, read_split(data, "explore"), None, "select")
    forward, size = choose_forward(policy, parts.trainer.forward), 256
    pad_id, budget = policy.renderer.pad_id, parts.trainer.micro_tokens
    sums = list[float]()
    for start in range(0, len(rows), size):
        part = [[row] for row in rows[start : start + size]]
        sums += [logp for (logp,) in answer_sums(forward, policy.model, part, pad_id=pad_id, budget=budget)]
        progress(len(sums), len(rows), 0.0, "")
    nlls = {one.id: (-logp, len(row.answer)) for one, row, logp in zip(samples, rows, sums, strict=True)}
    selected = {sample.id for sample in parts.select.select(samples, nlls)}
    told = ({"id": i, "nll_sum": nll, "tokens": t, "selected": i in selected} for i, (nll, t) in nlls.items())
    write_jsonl(workdir / "selected.jsonl", told)
    return {"samples": len(samples), **left_out, "selected": len(selected)}


class Prompted(NamedTuple):
    """A sample with its prompt's token ids: what a wave holds."""

    sample: Sample
    prompt: tuple[int, ...]


def _decode(
    make_work: Callable[[Parts, Path], Work], stage: str, parts: Parts, policy_dir: Path, samples: Sequence[Sample],
    reserve: int, shard: Shard, wave_size: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Has the samples that fit computed in waves, prompts of similar length together, and their rows appended.

    Returns how many were left out, how many failed (`errors.jsonl` beside the shard says why), and the engine's name.
    """
    from ttpa.policy.policy import load_policy

    samples, rows, left_out = fitting(load_policy(policy_dir), samples, reserve, stage)
    items = [Prompted(sample, tuple(row.prompt)) for sample, row in zip(samples, rows, strict=True)]
    items.sort(key=lambda item: (len(item.prompt), item.sample.id))
    waves = [items[start : start + wave_size] for start in range(0, len(items), wave_size)]
    began, tokens, paired = time.monotonic(), 0, list[bool]()

    def on_wave(done: int, total: int, made: Rows) -> None:
        nonlocal tokens
        tokens += sum(row["counts"]["generated"] if stage == "explore" else row["tokens"] for row in made)
        paired.extend(bool(row.get("pairs")) for row in made)
        seconds = max(1e-9, time.monotonic() - began)
        note = f"{len(paired) / seconds:.1f} samples/s" if paired else ""
        if paired and stage == "explore":
            note += f", {sum(paired) / len(paired):.0%} gave pairs"
        progress(done, total, tokens / seconds, note)

    work = partial(make_work, parts, policy_dir)
    failed = run_waves(waves, work, parts.executor, shard, on_wave, attrgetter("sample.id"))
    for text in dict.fromkeys(text for row in shard.rows() for text in row.get("fallbacks", ())):
        fall_back(text)
    return {**left_out, "failed": len(failed), "engine": parts.engine_name}


class _Worker:
    """The policy and the engine, in the process that works."""

    rows: Callable[[Sequence[Prompted]], list[dict[str, Any]]]

    def __init__(self, parts: Parts, policy_dir: Path) -> None:
        from ttpa.policy.policy import load_policy

        set_threads(parts)
        self.parts = parts
        self.policy: Policy = load_policy(policy_dir, merged=True)
        self.engine: Engine = parts.engine(policy=self.policy)

    def __call__(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        rows = self.rows(wave)
        # With the rows they come from other processes and survive a restart.
        return [{**row, "fallbacks": list(FALLBACKS)} for row in rows] if FALLBACKS else rows

    def close(self) -> None:
        self.engine.close()


class _Explorer(_Worker):
    """Draws answers to the samples of a wave, scores and pairs them."""

    def __init__(self, round_number: int, parts: Parts, policy_dir: Path) -> None:
        super().__init__(parts, policy_dir)
        self.seed = f"explore:{parts.seed}:{round_number}"

    def rows(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        began = time.monotonic()
        self.engine.reset()  # prompts kept from earlier waves would make rows depend on them
        renderer, score = self.policy.renderer, partial(unit_score, self.parts.scorer)
        tasks = [Task(name=one.id, sample=one, prompt=ids, renderer=renderer, score=score) for one, ids in wave]
        drawn = self.parts.sampler.explore(self.engine, tasks, self.seed)
        rows = [self._row(task, one) for task, one in zip(tasks, drawn, strict=True)]
        seconds = round((time.monotonic() - began) / len(wave), 4)
        return [{**row, "seconds": seconds} for row in rows]

    def _row(self, task: Task, drawn: Drawn) -> dict[str, Any]:
        scored = [self._scored(task, *one) for one in enumerate(drawn.answers)]
        return {
            "id": task.sample.id,
            "candidates": [candidate.to_json() for candidate, _ in scored],
            "scores": [score.to_json() for _, score in scored],
            "pairs": [with_parting(pair).to_json() for pair in self._pairs(task, scored, drawn)],
            "tree": drawn.tree,
            "counts": {"generated": sum(len(one.token_ids) for one in drawn.answers), **drawn.counts},
            "seed": f"{self.seed}/{task.sample.id}",
        }

    def _scored(self, task: Task, index: int, generated: Generated) -> tuple[Candidate, Score]:
        answer, logps = task.read(generated.token_ids), _rounded(generated.logps)
        branches = tuple((at, tuple((t, round(p, 6)) for t, p in options)) for at, options in generated.branches)
        known = replace(answer.candidate, index=index, finish=generated.finish, logps=logps, branches=branches)
        return known, answer.score

    def _pairs(self, task: Task, scored: Sequence[tuple[Candidate, Score]], drawn: Drawn) -> list[Pair]:
        rule = self.parts.pairs
        assert isinstance(rule, PairRule), "pairs that are given need no answers"
        if rule.between == "siblings":
            return pair_siblings(task.sample, scored, drawn.siblings, rule)
        (gold,) = self.policy.renderer.gold([task.sample])
        pairs = make_pairs(task.sample, scored, gold, rule)
        if any(pair.chosen is gold for pair in pairs):
            # Nobody drew the target, so its log-probs are computed here, where the engine can.
            for logps in self.engine.answer_logps(task.prompt, [gold.token_ids]) or ():
                pairs = [replace(pair, chosen=replace(gold, logps=_rounded(logps))) for pair in pairs]
        return pairs


def _rounded(logps: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(logp, 6) for logp in logps)


def build_explore(
    parts: Parts, policy_dir: Path, data: Path, select: Path | None, round_number: int, workdir: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Candidates of the policy, scored and paired, one line a sample, and `pairs.jsonl` by sample ids at the end."""
    samples, shard = selected_samples(parts, data, select), Shard(workdir / "candidates.jsonl")
    sampler, work = parts.sampler, partial(_Explorer, round_number)
    wave_size = max(1, parts.wave_rows // sampler.wave_share)
    told = _decode(work, "explore", parts, policy_dir, samples, sampler.max_new_tokens, shard, wave_size, progress)
    return _explored(workdir, shard, told)


def _explored(workdir: Path, shard: Shard, told: dict[str, Any]) -> dict[str, Any]:
    """Writes `pairs.jsonl` and gives the metrics of an explore stage."""
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
        **told,
    }


def build_given(
    parts: Parts, policy_dir: Path, data: Path, select: Path | None, workdir: Path, progress: Progress
) -> dict[str, Any]:
    """The pairs that the data holds, as token ids of this policy; pairs with an answer that is too long are left out
    and counted. The files are those of `build_explore`.
    """
    from ttpa.data.pairs import GivenPair
    from ttpa.policy.policy import load_policy

    policy = load_policy(policy_dir)
    samples, rows, left_out = fitting(policy, selected_samples(parts, data, select), None, "explore")
    given = {row["sample_id"]: GivenPair.from_json(row) for row in read_jsonl(data / "pairs.jsonl")}
    pairs, lines = [given[sample.id] for sample in samples], list[dict[str, Any]]()
    turned = [
        replace(sample, target=said.calls, target_text=said.content or None, target_thought=said.thought)
        for sample, said in zip(samples, (pair.rejected for pair in pairs), strict=True)
    ]
    both = zip(samples, policy.renderer.gold(samples), policy.renderer.gold(turned), pairs, rows, strict=True)
    for sample, chosen, other, pair, row in both:
        if len(row.prompt) + len(other.token_ids) > policy.spec.max_tokens:
            left_out["too_long"] += 1
            continue
        calls, error = policy.renderer.read(other.text)
        rejected = replace(other, index=0, calls=calls, error=error)
        low = Score(value=0.0, exact=is_exact(sample, calls), explanation="rejected in the data")
        high = replace(GOLD_SCORE, explanation="chosen in the data")
        if pair.chosen_score is not None and pair.rejected_score is not None:
            high, low = replace(high, value=pair.chosen_score), replace(low, value=pair.rejected_score)
        made = Pair(
            sample_id=sample.id,
            chosen=chosen,
            rejected=rejected,
            chosen_score=high,
            rejected_score=low,
            provenance={"rule": "given"},
        )
        lines.append(
            {"id": sample.id, "candidates": [chosen.to_json(), rejected.to_json()], "pairs": [made.to_json()],
             "scores": [high.to_json(), low.to_json()], "tree": None, "counts": {"generated": 0}, "seed": ""}
        )  # fmt: skip
    write_jsonl(workdir / "candidates.jsonl", lines)
    progress(len(lines), len(lines), 0.0, "")
    return _explored(workdir, Shard(workdir / "candidates.jsonl"), {**left_out, "failed": 0, "engine": "none"})


class _Judge(_Worker):
    """Answers the samples of a wave greedily and judges the answers."""

    def rows(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        evaluation = self.parts.evaluation
        dialogues = {one.id: dialogue for one, _ in wave if (dialogue := evaluation.dialogue(one)) is not None}
        single = [item for item in wave if item.sample.id not in dialogues]
        samples = [sample for sample, _ in single]
        answers = self._answer(samples, [ids for _, ids in single])
        rows = {one.id: evaluation.judge(one, answer) for one, answer in zip(samples, answers, strict=True)}
        self._converse(list(dialogues.values()))
        rows |= {name: dialogue.row() for name, dialogue in dialogues.items()}
        return [rows[sample.id] for sample, _ in wave]

    def _answer(self, samples: Sequence[Sample], prompts: Sequence[Ids]) -> list[Candidate]:
        sampling = Sampling(max_new_tokens=self.parts.evaluation.max_new_tokens, temperature=0.0)
        drawn = self.engine.generate(prompts, 1, sampling, [sample.id for sample in samples])
        return [
            self.policy.renderer.candidate(sample, 0, one.token_ids, finish=one.finish)
            for sample, (one,) in zip(samples, drawn, strict=True)
        ]

    def _converse(self, dialogues: Sequence[Dialogue]) -> None:
        """All dialogues side by side; a prompt that has grown too long, or is refused, is answered by nothing."""
        while going := [(one, sample) for one in dialogues if (sample := one.sample()) is not None]:
            prompts = self.policy.renderer.try_prompts([sample for _, sample in going])
            room = self.policy.spec.max_tokens - self.parts.evaluation.max_new_tokens
            kept = [ids if not isinstance(ids, DataError) and len(ids) <= room else None for ids in prompts]
            asked = [(sample, ids) for (_, sample), ids in zip(going, kept, strict=True) if ids is not None]
            answers = iter(self._answer([sample for sample, _ in asked], [ids for _, ids in asked]))
            for (dialogue, sample), ids, found in zip(going, kept, prompts, strict=True):
                why = "refused" if isinstance(found, DataError) else "too long"
                nothing = Candidate(sample_id=sample.id, index=0, text="", calls=(), finish="length", error=why)
                dialogue.take(nothing if ids is None else next(answers))


def build_evaluate(parts: Parts, policy_dir: Path, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Greedy answers to a benchmark's samples, one row a sample, and their summary."""
    evaluation, shard = parts.evaluation, Shard(workdir / "rows.jsonl")
    wanted, reserve = evaluation.samples(data), evaluation.max_new_tokens
    told = _decode(_Judge, "evaluate", parts, policy_dir, wanted, reserve, shard, parts.wave_rows, progress)
    rows = {row["id"]: row for row in shard.rows()}
    # An answer that could not be had is a wrong answer, also where the prompt is too long for the model.
    lost = partial(Candidate, index=0, text="", error="failed")
    judged = [rows.get(one.id) or evaluation.judge(one, lost(sample_id=one.id)) for one in wanted]
    write_jsonl(workdir / "rows.jsonl", judged)  # all of them, in the order of the benchmark
    evaluation.write(workdir, judged)
    summary = evaluation.summarise(judged)
    (workdir / "summary.json").write_text(dumps(summary), encoding="utf-8")
    return summary | told
