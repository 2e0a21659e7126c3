"""The parts of a run, made from the configuration and checked against each other, and what every stage does
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, OmegaConf

from ttpa.data.source import Work, read_split
from ttpa.errors import ConfigError, DataError
from ttpa.explore.pairs import PairRule
from ttpa.explore.sampler import Sampler
from ttpa.explore.scorers.score import Scorer
from ttpa.explore.select import SelectAll, SelectPerplexity
from ttpa.io import read_jsonl
from ttpa.policy.models import HFModel, TinyModel
from ttpa.records import Candidate, Sample
from ttpa.run import config
from ttpa.run.tracking import Tracking
from ttpa.run.waves import Executor, Shard, run_waves
from ttpa.train.losses import RFT, Gold, PreferenceLoss
from ttpa.train.settings import NoWarmup, Recipe, TrainerOptions, Warmup

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow
    from ttpa.train.policy_gradient import GRPO

Progress = Callable[[int, int, float, str], None]

VERSIONS = {"data": 1, "warmup": 1, "select": 1, "explore": 2, "align": 1, "evaluate": 2}
"""Bump a stage's number in the commit that changes what its result means; older results are then built again."""


JudgedRow = dict[str, Any]
"""One judged answer. Every benchmark writes `id`, `cluster` (what intervals resample), `tags`, `exact`, `errors`,
`finish`, `tokens` and `text`, and what else its summary needs."""


class Dialogue(Protocol):
    """A conversation in which the policy speaks several times."""

    def sample(self) -> Sample | None:
        """What is to be answered next; None when the conversation is over."""

    def take(self, candidate: Candidate) -> None:
        """The answer to it."""

    def row(self) -> JudgedRow:
        """The judgement of the conversation, when it is over."""


class Evaluation(Protocol):
    """A benchmark. Who derives from it inherits the methods that have a body here."""

    max_new_tokens: int

    def check(self) -> None:
        """Raises ConfigError or DataError, before any work, where a file or a package is missing."""

    def identity(self) -> Mapping[str, Any]:
        """What lies on disk and decides the numbers, for the fingerprint."""
        return {}

    def samples(self, data: Path) -> list[Sample]:
        """What is answered; `data` is the folder of the run's data stage, for benchmarks on its own splits."""

    def dialogue(self, sample: Sample) -> Dialogue | None:
        """The conversation that a sample begins; None where one answer is looked at by `judge`."""
        return None

    def judge(self, sample: Sample, candidate: Candidate) -> JudgedRow:
        """Whether an answer is right. A candidate with `error="failed"` could not be had and is wrong."""

    def summarise(self, rows: Sequence[JudgedRow]) -> dict[str, Any]:
        """Numbers of the benchmark: at least `accuracy` and, by label, `errors`, each `{value, low, high, n}`."""

    def write(self, folder: Path, rows: Sequence[JudgedRow]) -> None:
        """Writes further files for the stage's folder, such as the layout of the official tool."""


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


def build_parts(cfg: DictConfig) -> Parts:
    """Makes every part. Cheap: imports neither torch nor transformers.

    Raises:
        ConfigError: a value that a part refuses, or parts that cannot work together.
        DataError: a file that the configuration names cannot be read.
    """
    config.check_scalars(cfg)
    make = config.instantiate
    data, model, evaluation = make(cfg.data, "data"), make(cfg.model, "model"), make(cfg.eval, "eval")
    engine = make(cfg.engine, "engine")
    parts = Parts(
        data=data,
        model=model,
        recipe=make(cfg.recipe, "recipe"),
        warmup=make(cfg.warmup, "warmup"),
        select=make(cfg.select, "select"),
        sampler=make(cfg.sampler, "sampler"),
        scorer=make(cfg.scorer, "scorer"),
        pairs=make(cfg.pairs, "pairs"),
        objective=make(cfg.objective, "objective"),
        evaluation=evaluation,
        seed=cfg.seed,
        executor=make(cfg.executor, "executor"),
        engine=engine,
        engine_name=engine.name,
        wave_rows=engine.rows,
        trainer=make(cfg.trainer, "trainer"),
        tracking=config.tracking(cfg),
        on_disk={},
    )
    check_compatible(parts, cfg)
    for group, part in (("executor", parts.executor), ("data", data), ("eval", evaluation)):
        try:
            part.check()
        except ConfigError as error:
            raise error.within(group) from None
    found = {"data": data.identity(), "model": model.identity(), "eval": evaluation.identity()}
    return replace(parts, on_disk=found)


def check_compatible(parts: Parts, cfg: DictConfig) -> None:
    """Refuses combinations that cannot work and says what to choose instead.

    Raises:
        ConfigError: the first problem.
    """
    loss, chosen = parts.objective, {group: f"{group}={name}" for group, name in cfg.choices.items()}
    if loss.contrasts and parts.sampler.n < 2 and parts.pairs.gold_below == 0:
        raise ConfigError(
            f"{chosen['objective']} needs a chosen and a rejected answer, but sampler.n={parts.sampler.n} draws one "
            "and pairs never take the target. Use sampler.n=5 or pairs=released."
        )
    if loss.consumes == "sample" and cfg.rounds > 1:
        raise ConfigError(
            f"{chosen['objective']} learns from the targets, which are the same in each of rounds={cfg.rounds}. Use "
            "rounds=1, or objective=dpo or another that learns from pairs."
        )
    if loss.consumes == "prompt" and cfg.rounds > 1:
        raise ConfigError(
            f"{chosen['objective']} draws its own answers inside the align stage, so rounds={cfg.rounds} must be 1. "
            "Use rounds=1, or objective=dpo or another that learns from pairs."
        )
    if parts.pairs.between == "siblings" and not parts.sampler.grows_trees:
        raise ConfigError(
            f"{chosen['pairs']} takes pairs from a search tree, but {chosen['sampler']} grows none. Use "
            "sampler=mcts, or pairs=verified."
        )
    if loss.consumes == "prompt":
        _check_online(parts, cfg)


def _check_online(parts: Parts, cfg: DictConfig) -> None:
    """What an objective that draws its own answers asks of sampler, engine and trainer."""
    objective = cfg.choices.objective
    if parts.sampler.policy_temperature is None:
        top_p = getattr(parts.sampler, "top_p", 1)
        which = f"sampler={cfg.choices.sampler}" if top_p == 1 else f"sampler.top_p={top_p}"
        raise ConfigError(
            f"objective={objective} compares independent draws from the policy, and {which} gives others. Use "
            "sampler=group8 with sampler.top_p=1."
        )
    devices = cfg.trainer.devices
    if (len(devices) if OmegaConf.is_list(devices) else devices) != 1:
        raise ConfigError.at(
            "trainer.devices",
            devices,
            f"objective={objective} draws and trains in one process on one device",
            "Use 1, or engine=vllm with engine.tensor_parallel_size for drawing",
        )
    if parts.sampler.n < 2:
        raise ConfigError(
            f"objective={objective} compares the answers of a group, and sampler.n={parts.sampler.n}. Use sampler.n=8."
        )
    if parts.engine_name != "HFEngine" and parts.sampler.policy_temperature != 1:
        raise ConfigError.at(
            "sampler.temperature",
            parts.sampler.policy_temperature,
            f"{parts.engine_name} gives log-probs at temperature 1, which do not correct for another temperature",
            "Use sampler.temperature=1 or engine=hf",
        )


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
    fits = [
        len(row.prompt) + (len(row.answer) if reserve is None else reserve) <= policy.spec.max_tokens for row in rows
    ]
    kept = [sample for sample, fit in zip(samples, fits, strict=True) if fit]
    if not kept:
        shortest = min((len(row.prompt) for row in rows), default=0)
        raise DataError(
            f"{where}: none of {len(samples)} samples fits model.max_tokens={policy.spec.max_tokens} (shortest prompt: "
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
