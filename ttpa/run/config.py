"""From a composed configuration to instantiated parts: the only place that calls `hydra.utils.instantiate`.

*Identity* groups decide the numbers and enter fingerprints; *execution* groups decide where and how fast and never do.
A stage's fingerprint holds the block of `recipe` that it reads (`recipe.warmup`); other options refer to the rest.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from ttpa.errors import ConfigError, TtpaError
from ttpa.options import Count, option
from ttpa.run.store import fingerprint
from ttpa.run.tracking import StageFacts, Tracking

# Hydra copies this singleton for each composition and for each group that `--help` lists, which takes most of the time.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]

IDENTITY = ("data", "model", "recipe", "warmup", "select", "sampler", "scorer", "pairs", "objective", "eval")
SCALARS = ("name", "seed", "rounds", "until", "baseline", "controls", "choices", "stage")
EXECUTION = ("trainer", "engine", "executor", "logger", "cluster", "paths")
ALLOWED_TARGETS = ("ttpa.", "torch.", "pytorch_lightning.")


def identity(cfg: DictConfig, *groups: str) -> dict[str, Any]:
    """The resolved values of identity groups, or of blocks of them (`recipe.warmup`), as they enter a fingerprint."""
    found = {group: OmegaConf.select(cfg, group) for group in groups}
    plain = partial(OmegaConf.to_container, resolve=True)
    return {group: plain(value) if OmegaConf.is_config(value) else value for group, value in found.items()}


def complete(cfg: DictConfig, choices: Mapping[str, str], *, single: bool) -> None:
    """Fills in what only Hydra knows, the options that were chosen, and takes its own settings out. A sweep does not
    evaluate the warm-up in each of its cells.
    """
    with open_dict(cfg):
        groups = [*IDENTITY, "experiment"] if choices["experiment"] else IDENTITY
        cfg.choices = {group: name for group, name in choices.items() if group in groups}
        cfg.baseline = single if cfg.baseline is None else cfg.baseline
        cfg.pop("hydra", None)


def run_id(cfg: DictConfig) -> str:
    """Twelve hex digits that name a run: everything that decides its numbers, and how far it goes."""
    return fingerprint("run", 1, identity(cfg, *IDENTITY, "controls", "name", "seed", "rounds", "until"), {})


def _targets(node: Any) -> Iterable[str]:
    if isinstance(node, Mapping) and "_target_" in node:
        yield str(node["_target_"])
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _targets(value)


def instantiate(cfg: DictConfig, group: str) -> Any:
    """The object an option describes; a refused value, or a class outside `ALLOWED_TARGETS`, is a ConfigError."""
    node = OmegaConf.to_container(cfg, resolve=True)
    for target in _targets(node):
        if not target.startswith(ALLOWED_TARGETS):
            problem = f"only {', '.join(ALLOWED_TARGETS)}* may be instantiated"
            remedy = "Put your class in a package of ttpa, or extend ttpa.run.config.ALLOWED_TARGETS"
            raise ConfigError.at(f"{group}._target_", target, problem, remedy)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, TtpaError):
            cause = cause.__cause__
        inner = re.search(r"full_key: (\S+)", str(error))
        where = f"{group}.{inner[1]}" if inner else group
        if isinstance(cause, TtpaError):
            raise cause.within(where) if isinstance(cause, ConfigError) else cause from None
        reason = str(cause).splitlines()[0]
        raise ConfigError(f"{where}: {reason}. See conf/{group.split('.')[0]}/ for the options.") from None


@option
class _Scalars:
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # names files and folders
    seed: int
    rounds: Count
    until: Literal["warmup", "explore", "align"] | None
    baseline: bool | None


@option
class _Paths:
    store: Annotated[str, Field(min_length=1)]
    results: Annotated[str, Field(min_length=1)]
    runs: Annotated[str, Field(min_length=1)]
    wait_for_locks: bool


def check_scalars(cfg: DictConfig) -> None:
    """Raises ConfigError for what no class checks: the keys that exist whatever options are chosen."""
    for key in cfg:
        if key not in (*IDENTITY, *EXECUTION, *SCALARS):
            raise ConfigError.at(str(key), cfg[key], "is read by nothing", "`ttpa --cfg job` lists the keys there are")
    _Scalars(**{key: cfg[key] for key in _Scalars.__dataclass_fields__})
    if not isinstance(cfg.controls, DictConfig):
        raise ConfigError.at("controls", cfg.controls, "must map names to objectives", "See conf/experiment/demo.yaml")
    try:
        _Paths(**cfg.paths)
    except ConfigError as error:
        raise error.within("paths") from None
    # Null is the stage's folder, which is not known yet.
    if "save_dir" in cfg.logger and not isinstance(cfg.logger.save_dir, str | None):
        raise ConfigError.at("logger.save_dir", cfg.logger.save_dir, "must be a folder", "See conf/logger/")


def check_recipe(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Raises ConfigError where one of the dotted keys is a number of a recipe that nothing in this single run reads."""
    blocks = {key: ".".join(key.split(".")[:2]) for key in keys if key.startswith("recipe.") and key.count(".") > 1}
    if not blocks:
        return
    losses = [cfg.objective, *cfg.controls.values()]
    read = [instantiate(cfg.warmup, "warmup").recipe, *(instantiate(loss, "objective").recipe for loss in losses)]
    for key, block in blocks.items():
        if block not in read:
            names = " and ".join(dict.fromkeys(name for name in read if name))
            right = key.replace(block, read[1])
            problem = f"warmup={cfg.choices.warmup} and objective={cfg.choices.objective} read {names} and not {block}"
            raise ConfigError.at(key, OmegaConf.select(cfg, key), problem, f"Set {right}, or leave it out")


def tracking(cfg: DictConfig) -> Tracking:
    """What follows the stages of a run: a tracker, which is checked here, a Lightning logger, or nothing."""
    target = str(cfg.logger.get("_target_", ""))
    if target.startswith("ttpa."):
        return Tracking(None, instantiate(cfg.logger, "logger").follow)
    return Tracking(partial(_stage_logger, cfg) if target else None, None)


def _stage_logger(cfg: DictConfig, workdir: Path, facts: StageFacts) -> Any:
    whole = OmegaConf.merge(cfg, {"stage": {"dir": str(workdir), "id": facts.id}})
    return instantiate(whole.logger, "logger")
