"""The parts of a run: made from the configuration and checked against each other, before any work."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from ttpa.errors import ConfigError
from ttpa.run import config
from ttpa.run.stages.parts import Parts


def build_parts(cfg: DictConfig) -> Parts:
    """Makes every part. Cheap: imports neither torch nor transformers.

    Raises:
        ConfigError: a value that a part refuses, or parts that cannot work together.
        DataError: a file that the configuration names cannot be read.
    """
    config.check_scalars(cfg)
    make = config.instantiate
    data, model, evaluation = make(cfg.data, "data"), make(cfg.model, "model"), make(cfg.eval, "eval")
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
        engine=lambda **extra: make(cfg.engine, "engine", **extra),
        engine_name=str(cfg.engine._target_).rsplit(".", 1)[-1],
        wave_rows=cfg.engine.rows,
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
            f"{chosen['objective']} needs a chosen and a rejected answer, but sampler.n={parts.sampler.n} draws one and "
            "pairs never take the target. Use sampler.n=5 or pairs=released."
        )
    if loss.consumes == "sample" and cfg.rounds > 1:
        raise ConfigError(
            f"{chosen['objective']} learns from the targets, which are the same in each of rounds={cfg.rounds}. Use "
            "rounds=1, or objective=dpo or another that learns from pairs."
        )
    if loss.consumes == "prompt" and cfg.rounds > 1:
        raise ConfigError(
            f"{chosen['objective']} draws its own answers inside the align stage, so rounds={cfg.rounds} must be 1. Use "
            "rounds=1, or objective=dpo or another that learns from pairs."
        )
    if parts.pairs.between == "siblings" and not parts.sampler.grows_trees:
        raise ConfigError(
            f"{chosen['pairs']} takes pairs from a search tree, but {chosen['sampler']} grows none. Use sampler=mcts, or "
            "pairs=verified."
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
