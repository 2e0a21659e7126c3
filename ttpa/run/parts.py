"""The parts of a run, made from the configuration and checked against each other, and what stages share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, OmegaConf

from ttpa.data.source import Work, read_split
from ttpa.errors import ConfigError, DataError
from ttpa.explore.pairs import GivenPairs, PairRule
from ttpa.explore.sampler import Sampler
from ttpa.explore.scorers.score import Scorer
from ttpa.explore.select import SelectAll, SelectPerplexity
from ttpa.io import Shard, read_jsonl
from ttpa.policy.models import HFModel, TinyBase, TinyModel
from ttpa.records import Candidate, Sample
from ttpa.run import config
from ttpa.run.tracking import Tracking
from ttpa.run.waves import Executor, LocalExecutor, run_waves
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
    """A conversation in which the policy speaks several times: `sample` is what is to be answered next, None when it is
    over; `take` is given the answer; `row` is the judgement at the end.
    """

    def sample(self) -> Sample | None: ...
    def take(self, candidate: Candidate) -> None: ...
    def row(self) -> JudgedRow: ...


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
    """Everything a run is made of, instantiated and checked; see conf/. `wave_rows` are the answers of a wave,
    `on_disk` says what lies on disk and decides the numbers of a group: contents of data files, model folders.
    """

    data: Any
    model: TinyBase | TinyModel | HFModel
    recipe: Recipe
    warmup: Warmup | NoWarmup
    select: SelectAll | SelectPerplexity
    sampler: Sampler
    scorer: Scorer
    pairs: PairRule | GivenPairs
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
    """Makes and checks every part; imports neither torch nor transformers. What cannot be run is a ConfigError, a file
    that the configuration names and that cannot be read a DataError.
    """
    config.check_scalars(cfg)
    groups = (*config.IDENTITY, "executor", "engine", "trainer")
    made = {group: config.instantiate(cfg[group], group) for group in groups}
    engine, evaluation = made["engine"], made.pop("eval")
    more = {"engine_name": engine.name, "wave_rows": engine.rows, "tracking": config.tracking(cfg), "on_disk": {}}
    parts = Parts(**made, evaluation=evaluation, seed=cfg.seed, **more)
    check_compatible(parts, cfg)
    for group, part in (("executor", parts.executor), ("data", parts.data), ("eval", evaluation)):
        try:
            part.check()
        except ConfigError as error:
            raise error.within(group) from None
    found = {"data": parts.data.identity(), "model": parts.model.identity(), "eval": evaluation.identity()}
    return replace(parts, on_disk=found)


def check_compatible(parts: Parts, cfg: DictConfig) -> None:
    """Raises ConfigError for the first combination that cannot work and says what to choose instead."""
    loss, sampler, devices = parts.objective, parts.sampler, cfg.trainer.devices
    chosen = {group: f"{group}={cfg.choices.get(group)}" for group in config.IDENTITY}
    objective, temperature, online = chosen["objective"], sampler.policy_temperature, loss.consumes == "prompt"
    top_p = getattr(sampler, "top_p", 1)
    other = "Use rounds=1, or objective=dpo or another that learns from pairs."
    problem = ""
    if loss.contrasts and sampler.n < 2 and parts.pairs.gold_below == 0:
        problem = (
            f"{objective} needs a chosen and a rejected answer, but sampler.n={sampler.n} draws one and pairs never "
            "take the target. Use sampler.n=5 or pairs=released."
        )
    elif loss.consumes == "sample" and cfg.rounds > 1:
        problem = f"{objective} learns from the targets, which are the same in each of rounds={cfg.rounds}. {other}"
    elif online and cfg.rounds > 1:
        problem = f"{objective} draws its own answers in the align stage, so rounds={cfg.rounds} must be 1. {other}"
    elif parts.pairs.given and not getattr(parts.data, "holds_pairs", False):
        problem = (
            f"{chosen['pairs']} reads pairs, and {chosen['data']} holds none. Use data=pairs with data.path=FILE, or "
            "pairs=verified."
        )
    elif parts.pairs.given and cfg.rounds > 1:
        problem = f"{chosen['pairs']} gives the same pairs in each of rounds={cfg.rounds}. Use rounds=1, or draw pairs."
    elif parts.pairs.between == "siblings" and not sampler.grows_trees:
        problem = (
            f"{chosen['pairs']} takes pairs from a search tree, but {chosen['sampler']} grows none. Use sampler=mcts, "
            "or pairs=verified."
        )
    elif online and temperature is None:
        which = chosen["sampler"] if top_p == 1 else f"sampler.top_p={top_p}"
        problem = (
            f"{objective} compares independent draws from the policy, and {which} gives others. Use sampler=group8 "
            "with sampler.top_p=1."
        )
    elif online and (len(devices) if OmegaConf.is_list(devices) else devices) != 1:
        problem = (
            f"trainer.devices={devices}: {objective} draws and trains in one process on one device. Use 1, or "
            "engine=vllm with engine.tensor_parallel_size for drawing."
        )
    elif online and sampler.n < 2:
        problem = f"{objective} compares the answers of a group, and sampler.n={sampler.n}. Use sampler.n=8."
    elif online and parts.engine_name != "HFEngine" and temperature != 1:
        problem = (
            f"sampler.temperature={temperature}: {parts.engine_name} gives log-probs at temperature 1, which do not "
            "correct for another temperature. Use sampler.temperature=1 or engine=hf."
        )
    if problem:
        raise ConfigError(problem)


def set_threads(parts: Parts) -> None:
    import torch

    if parts.trainer.threads:
        torch.set_num_threads(parts.trainer.threads)


def fitting(
    policy: Policy, samples: Sequence[Sample], reserve: int | None, where: str
) -> tuple[list[Sample], list[TokenRow], dict[str, int]]:
    """Samples that the chat template takes and that are short enough for the model, with prompt and target ids, and how
    many were left out: `refused` and `too_long` (a prompt that is cut would lose tools). `reserve` is room kept for an
    answer; None means the target itself.
    """
    from ttpa.policy.tree import TokenRow

    if not samples:
        raise DataError(
            f"{where}: no samples. Ask for more data or a weaker selection; if a file of the data or select stage was "
            "edited by hand, delete that stage's folder and run the same command again."
        )
    prompts, room = policy.renderer.try_prompts(samples), policy.spec.max_tokens
    refusals = [found for found in prompts if isinstance(found, DataError)]
    pairs = [(one, ids) for one, ids in zip(samples, prompts, strict=True) if not isinstance(ids, DataError)]
    if refusals and not pairs:
        raise DataError(f"{where}: all {len(samples)} samples are refused, the first one because: {refusals[0]}")
    taken = [sample for sample, _ in pairs]
    rows = [TokenRow(ids, answer) for (_, ids), answer in zip(pairs, policy.renderer.answers(taken), strict=True)]
    fits = [len(row.prompt) + (len(row.answer) if reserve is None else reserve) <= room for row in rows]
    kept = list(itertools.compress(taken, fits))
    if not kept:
        shortest = min((len(row.prompt) for row in rows), default=0)
        raise DataError(
            f"{where}: none of {len(samples)} samples fits model.max_tokens={room} (shortest prompt: {shortest} "
            "tokens). Raise model.max_tokens, as far as the model goes."
        )
    left_out = {"too_long": len(taken) - len(kept), "refused": len(refusals)}
    return kept, list(itertools.compress(rows, fits)), left_out


def build_data(parts: Parts, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Reads or makes the samples and writes the splits."""

    def compute(path: Path, waves: Sequence[Sequence[Any]], make_work: Callable[[], Work]) -> Sequence[str]:
        """`ttpa.data.source.ComputeWaves` on the executor, with resume and progress."""
        executor = LocalExecutor() if getattr(parts.data, "in_process", False) else parts.executor
        return run_waves(waves, make_work, executor, Shard(path), lambda *at: progress(at[0], at[1], 0.0, ""))

    return dict(parts.data.build(workdir, compute))


def selected_samples(parts: Parts, data: Path, select: Path | None) -> list[Sample]:
    """The exploration prompts: by the select stage where there is one, else by a selection that needs no policy."""
    samples = read_split(data, "explore")
    if select is None:
        return parts.select.select(samples, None)
    kept = {row["id"] for row in read_jsonl(select / "selected.jsonl") if row["selected"]}
    return [sample for sample in samples if sample.id in kept]
