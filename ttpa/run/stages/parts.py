"""What every stage works with: the instantiated parts of a run, and the samples that fit the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import Work, read_split
from ttpa.errors import DataError
from ttpa.explore.pairs import PairRule
from ttpa.explore.sampler import Sampler
from ttpa.explore.scorers.score import Scorer
from ttpa.explore.select import SelectAll, SelectPerplexity
from ttpa.io import read_jsonl
from ttpa.policy.models import HFModel, TinyModel
from ttpa.records import Sample
from ttpa.run.evaluation import Evaluation
from ttpa.run.tracking import Tracking
from ttpa.run.waves import Executor, Shard, run_waves
from ttpa.train.losses import RFT, Gold, PreferenceLoss
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import NoWarmup, Recipe, TrainerOptions, Warmup

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow

Progress = Callable[[int, int, float, str], None]

VERSIONS = {"data": 1, "warmup": 1, "select": 1, "explore": 2, "align": 1, "evaluate": 2}
"""Bump a stage's number in the commit that changes what its result means; older results are then built again."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a run is made of, instantiated and checked; see conf/. `wave_rows` are the answers of a wave.
    `on_disk` says what lies on disk and decides the numbers of a group: contents of data files, model folders.
    """

    data: Any
    model: TinyModel | HFModel
    recipe: Recipe
    warmup: Warmup | NoWarmup
    select: SelectAll | SelectPerplexity
    sampler: Sampler
    scorer: Scorer
    pairs: PairRule
    objective: PreferenceLoss | RFT | Gold | GRPO
    evaluation: Evaluation
    seed: int
    executor: Executor
    engine: Callable[..., Any]
    engine_name: str
    wave_rows: int
    trainer: TrainerOptions
    tracking: Tracking
    on_disk: Mapping[str, Mapping[str, Any]]


def set_threads(parts: Parts) -> None:
    """CPU threads of torch, as configured."""
    import torch

    if parts.trainer.threads:
        torch.set_num_threads(parts.trainer.threads)


def fitting(
    policy: Policy, samples: Sequence[Sample], reserve: int | None, where: str
) -> tuple[list[Sample], list[TokenRow], int]:
    """Samples short enough for the model, with prompt and target ids, and how many were left out.

    A prompt is never cut: it would lose tools. `reserve` is room kept for an answer; None means the target itself.
    """
    from ttpa.policy.tree import TokenRow

    rows = [
        TokenRow(p, a) for p, a in zip(policy.renderer.prompts(samples), policy.renderer.answers(samples), strict=True)
    ]
    fits = [len(row.prompt) + (len(row.answer) if reserve is None else reserve) <= policy.max_tokens for row in rows]
    kept = [sample for sample, fit in zip(samples, fits, strict=True) if fit]
    if not kept:
        shortest = min((len(row.prompt) for row in rows), default=0)
        raise DataError(
            f"{where}: none of {len(samples)} samples fits model.max_tokens={policy.max_tokens} (shortest prompt: "
            f"{shortest} tokens). Raise model.max_tokens."
        )
    return kept, [row for row, fit in zip(rows, fits, strict=True) if fit], len(samples) - len(kept)


def build_data(parts: Parts, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Reads or makes the samples and writes the splits."""

    def compute(path: Path, waves: Sequence[Sequence[Any]], make_work: Callable[[], Work]) -> Sequence[str]:
        """`ttpa.data.source.ComputeWaves` on the executor, with resume and progress."""

        def tell(done: int, total: int, _: object) -> None:
            progress(done, total, 0.0, "")

        items = [item for wave in waves for item in wave]
        return run_waves(items, attrgetter("id"), waves, make_work, parts.executor, Shard(path), tell)

    metrics: dict[str, Any] = parts.data.build(workdir, compute)
    return metrics


def selected_samples(parts: Parts, data: Path, select: Path | None) -> list[Sample]:
    """The exploration prompts: by the select stage where there is one, else by a selection that needs no policy."""
    samples = read_split(data, "explore")
    if select is None:
        return parts.select.select(samples, None)
    kept = {row["id"] for row in read_jsonl(select / "selected.jsonl") if row["selected"]}
    return [sample for sample in samples if sample.id in kept]
