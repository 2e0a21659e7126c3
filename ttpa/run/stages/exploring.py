"""The explore stage: what the sampler draws from the policy, scored and paired, one line a sample.

A line of `candidates.jsonl` holds a sample's answers, scores, pairs, search tree, counts, seed and time. What rounding
could change (log-probs of the engine) stays there; numbers that enter `pairs.jsonl` are computed for the sample by
itself, so that file is the same whatever the batch size, the number of workers or the machine's load.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.calls.syntaxes import token_cuts
from ttpa.explore.pairs import make_pairs, pair_siblings
from ttpa.explore.sampler import Drawn, Sibling, Task
from ttpa.explore.scorers.rewards import in_unit
from ttpa.io import write_jsonl
from ttpa.policy.engine import Engine, Ids
from ttpa.records import Candidate, Pair, Sample, Score
from ttpa.run.stages.decoding import Prompted, decoded
from ttpa.run.stages.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.waves import Shard, Work

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy

Scored = list[tuple[Candidate, Score]]


class _Explorer:
    """The policy, the engine and the rules, in the process that works."""

    def __init__(self, parts: Parts, policy_dir: Path, round_number: int) -> None:
        from ttpa.policy.policy import load_policy

        set_threads(parts)
        self.parts = parts
        self.policy: Policy = load_policy(policy_dir)
        self.engine: Engine = parts.engine(policy=self.policy)
        self.letters = self.policy.renderer.letters()
        self.seed = f"explore:{parts.seed}:{round_number}"

    def __call__(self, wave: Sequence[Prompted]) -> list[dict[str, Any]]:
        began = time.monotonic()
        judged: dict[str, _Judge] = {item.id: _Judge(self.parts, self.policy, item.sample) for item in wave}
        tasks = [self._task(item, judged[item.id]) for item in wave]
        drawn = self.parts.sampler.explore(self.engine, tasks, self.seed)
        rows = [self._row(item, judged[item.id], found) for item, found in zip(wave, drawn, strict=True)]
        seconds = round((time.monotonic() - began) / len(wave), 4)
        return [{**row, "seconds": seconds} for row in rows]

    def _task(self, item: Prompted, judge: _Judge) -> Task:
        renderer = self.policy.renderer
        return Task(
            sample_id=item.id,
            prompt=item.prompt,
            value=lambda ids: judge(ids)[1].value,
            cuts=lambda ids: token_cuts(renderer.pieces(ids), renderer.syntax),
            judge=lambda ids: renderer.judge_prompt(item.sample, renderer.text(ids)),
            letters=self.letters,
            text=renderer.text,
            target=renderer.answer_texts([item.sample])[0],
        )

    def _row(self, item: Prompted, judge: _Judge, drawn: Drawn) -> dict[str, Any]:
        scored = [
            (replace(candidate, index=index, finish=one.finish, branches=tuple(one.branches)), score)
            for index, one in enumerate(drawn.answers)
            for candidate, score in [judge(one.token_ids)]
        ]
        (gold,) = self.policy.renderer.gold([item.sample])
        if self.parts.pairs.between == "siblings":
            siblings = [(one.chosen, one.rejected, _search(one)) for one in drawn.siblings]
            pairs = pair_siblings(item.sample, scored, siblings, self.parts.pairs)
        else:
            pairs = make_pairs(item.sample, scored, gold, self.parts.pairs)
        return {
            "id": item.id,
            "candidates": [
                replace(candidate, logps=tuple(round(p, 6) for p in one.logps)).to_json()
                for (candidate, _), one in zip(scored, drawn.answers, strict=True)
            ],
            "scores": [score.to_json() for _, score in scored],
            "pairs": [pair.to_json() for pair in _with_probabilities(self.engine, item.prompt, pairs)],
            "tree": drawn.tree,
            "counts": {"generated": sum(len(one.token_ids) for one in drawn.answers), **drawn.counts},
            "seed": f"{self.seed}/{item.id}",
        }


def _search(sibling: Sibling) -> dict[str, Any]:
    """What a pair keeps of the search; priors are the engine's and are computed anew with the other probabilities."""
    found = {key: value for key, value in sibling.info.items() if key != "priors"}
    return {"search": found, "spans": {"chosen": sibling.chosen_end, "rejected": sibling.rejected_end}}


class _Judge:
    """Answers of one sample as candidates with scores, each computed once."""

    def __init__(self, parts: Parts, policy: Policy, sample: Sample) -> None:
        self.parts, self.policy, self.sample = parts, policy, sample
        self.known: dict[tuple[int, ...], tuple[Candidate, Score]] = {}

    def __call__(self, ids: Ids) -> tuple[Candidate, Score]:
        key = tuple(ids)
        if key not in self.known:
            candidate = self.policy.renderer.candidate(self.sample, 0, key)
            # Gates, margins and searches ask for [0, 1].
            self.known[key] = (candidate, in_unit(self.parts.scorer, self.parts.scorer(self.sample, candidate)))
        return self.known[key]


def _with_probabilities(engine: Engine, prompt: Ids, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs with what they part by: the position, the two tokens and their probabilities under the policy; the options
    that a sampler had on the way get theirs too. One forward over the tree of the sample's answers.
    """
    sides = {side.token_ids: side for pair in pairs for side in (pair.chosen, pair.rejected)}
    asked: dict[tuple[int, ...], None] = dict.fromkeys(sides)
    for ids, side in sides.items():
        asked.update(dict.fromkeys((*ids[:at], token) for at, options in side.branches for token, _ in options))
    found = engine.answer_logps(prompt, list(asked)) if asked else []
    if found is None:
        return list(pairs)
    logps = dict(zip(asked, found, strict=True))

    def known(side: Candidate) -> Candidate:
        ids = side.token_ids
        branches = []
        for at, options in side.branches:
            found = [(token, _probability(logps[(*ids[:at], token)][at])) for token, _ in options]
            branches.append((at, tuple(sorted(found, key=lambda option: (-option[1], option[0])))))
        return replace(side, logps=tuple(round(p, 6) for p in logps[ids]), branches=tuple(branches))

    made = []
    for pair in pairs:
        at, parting = pair.branch, dict[str, Any](position=pair.branch)
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            ids = side.token_ids
            if at >= len(ids):
                parting[name] = None  # the other answer goes on where this one was cut off
                continue
            span = logps[ids][at : pair.provenance.get("spans", {}).get(name, len(ids))]
            parting[name] = {
                "token": ids[at],
                "probability": _probability(logps[ids][at]),
                "mean_span_logp": round(math.fsum(span) / max(1, len(span)), 6),
            }
        provenance = {**pair.provenance, "parting": parting}
        made.append(replace(pair, chosen=known(pair.chosen), rejected=known(pair.rejected), provenance=provenance))
    return made


def _probability(logp: float) -> float:
    return round(math.exp(logp), 6)


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

    policy = load_policy(policy_dir)
    samples, rows, too_long = fitting(
        policy, selected_samples(parts, data, select), parts.sampler.max_new_tokens, "explore"
    )
    shard = Shard(workdir / "candidates.jsonl")
    make_work: Callable[[], Work] = partial(_Explorer, parts, policy_dir, round_number)

    def tally(row: Mapping[str, Any]) -> tuple[int, bool]:
        return row["counts"]["generated"], bool(row["pairs"])

    wave = max(1, parts.wave_rows // parts.sampler.wave_share)
    failed = decoded(parts, make_work, samples, rows, shard, wave, tally, progress)
    return {**_collect_pairs(workdir, shard), "too_long": too_long, "failed": len(failed), "engine": parts.engine_name}


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
        "tokens": sum(row["counts"]["generated"] for row in rows),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "pairable_share": round(sum(bool(row["pairs"]) for row in rows) / count, 4),
        "any_right_share": round(sum(r > 0 for r in right) / count, 4),
        "right_and_wrong_share": round(sum(0 < r < n for r, n in zip(right, sizes, strict=True)) / count, 4),
        "mean_distinct": round(sum(len({c["text"] for c in row["candidates"]}) for row in rows) / count, 4),
    }
