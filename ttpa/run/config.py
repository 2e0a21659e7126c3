"""From a composed configuration to instantiated parts: the only place that calls `hydra.utils.instantiate`.

*Identity* groups decide the numbers and enter fingerprints; *execution* groups decide where and how fast and never do.
A stage's fingerprint holds the block of `recipe` that it reads (`recipe.warmup`); other options refer to the rest.
"""

import hashlib
import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import Field
from pydantic.dataclasses import is_pydantic_dataclass

from ttpa.errors import ConfigError, TtpaError
from ttpa.options import Count, option
from ttpa.run.store import fingerprint
from ttpa.run.tracking import StageFacts, Tracking

# Hydra copies this singleton for each composition and for each group that `--help` lists, which takes most of the time.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]

IDENTITY = ("data", "model", "recipe", "warmup", "select", "sampler", "scorer", "pairs", "objective", "eval")
SCALARS = ("name", "seed", "rounds", "until", "baseline", "controls", "choices", "stage")
EXECUTION = ("trainer", "engine", "executor", "logger", "cluster", "paths")
LIGHTNING = {
    *("pytorch_lightning.Trainer", "pytorch_lightning.trainer.Trainer"),
    *(f"pytorch_lightning.strategies.{name}Strategy" for name in ("DDP", "DeepSpeed", "FSDP", "SingleDevice")),
    *(f"pytorch_lightning.loggers.{name}Logger" for name in ("Comet", "CSV", "MLFlow", "Neptune", "TensorBoard")),
    "pytorch_lightning.loggers.WandbLogger",
}
"""The classes that options of the groups `logger` and `trainer` may name besides option classes of ttpa."""
HYDRA = {
    *(f"hydra._internal.core_plugins.basic_{name.lower()}.Basic{name}" for name in ("Launcher", "Sweeper")),
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    *(f"hydra_plugins.hydra_submitit_launcher.submitit_launcher.{name}Launcher" for name in ("Slurm", "Local")),
    *(f"logging.{name}" for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter")),
    *("colorlog.ColoredFormatter", "ext://sys.stdout", "ext://sys.stderr"),
    *("${hydra.runtime.output_dir}/${hydra.job.name}.log",),
}
"""What `hydra.*` may name: launchers, sweepers, and the handlers, streams and file of its logs."""
ALLOW = "TTPA_ALLOW"
_allowed = tuple(
    filter(None, os.environ.get(ALLOW, "").split(","))
)  # read once: `hydra.job.env_set` must not add to it
_oc_env = partial(OmegaConf.register_new_resolver, "oc.env", replace=True)


def allow(words: Sequence[str]) -> list[str]:
    """The words of a command without `allow=[my_pkg]`, which lets options name classes of these packages, here and in
    every process that this one starts.
    """
    global _allowed
    for word in words:
        if word.startswith("allow="):
            names = [name.strip() for name in word.removeprefix("allow=").strip("[]").split(",")]
            if not all(name.isidentifier() for name in names):
                raise ConfigError.at("allow", word[6:], "must name packages", "For example allow=[my_pkg]")
            _allowed = (*_allowed, *names)
            os.environ[ALLOW] = ",".join(_allowed)
    return _with_generator([word for word in words if not word.startswith("allow=")])


def _with_generator(words: list[str]) -> list[str]:
    """`data=reversed data.generator=openai` as the option that it is, `data=reversed_openai`; `policy` likewise."""
    named = {word: f"data=reversed_{name}" for name in ("openai", "policy") for word in [f"data.generator={name}"]}
    other = any(word.startswith("data=") and word != "data=reversed" for word in words)
    if other or named.keys().isdisjoint(words):
        return words
    return [named.get(word, word) for word in words if word != "data=reversed"]


@contextmanager
def _no_environment() -> Iterator[None]:
    """Values of the environment would land in stores and trackers."""
    refused = []

    def refuse(name: str, *_default: object) -> None:
        refused.append(name)
        raise ValueError

    _oc_env(refuse)
    try:
        yield
    except OmegaConfBaseException:
        if not refused:
            raise
        problem = "what decides numbers is stored and shown, so it may not come from the environment"
        raise ConfigError(f"${{oc.env:{refused[0]}}}: {problem}. Write the value itself.") from None
    finally:
        _oc_env(oc.env)


def identity(cfg: DictConfig, *groups: str) -> dict[str, Any]:
    """The resolved values of identity groups, or of blocks of them (`recipe.warmup`), as they enter a fingerprint."""
    plain = partial(OmegaConf.to_container, resolve=True)
    with _no_environment():
        found = {group: OmegaConf.select(cfg, group) for group in groups}
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


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value below a node with its dotted key."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else None
    if pairs is None:
        yield key, node
    for name, value in pairs or ():
        yield from _leaves(value, f"{key}.{name}")


def check_target(key: str, target: Any) -> None:
    """Raises ConfigError where `target` names no option class of ttpa, none of `LIGHTNING` in its groups, and no class
    of a package that `allow=` names. Only modules of ttpa and of these packages are imported.
    """
    module, _, name = str(target).rpartition(".")
    root = module.partition(".")[0]
    if target in LIGHTNING and key.startswith(("logger.", "trainer.")):
        return
    if root in ("ttpa", *_allowed):
        try:
            found = vars(importlib.import_module(module)).get(name)
        except ImportError as error:
            raise ConfigError.at(key, target, f"cannot be imported: {error}", "See docs/own_parts.md") from None
        own = root != "ttpa" or (
            isinstance(found, type) and found.__module__ == module and is_pydantic_dataclass(found)
        )
        if own and isinstance(found, type) and found.__module__.partition(".")[0] == root:
            return
    remedy = (
        "Name an option class, or allow your own package on the command line: allow=[my_pkg], see docs/own_parts.md"
    )
    raise ConfigError.at(key, target, "may not be made from an option", remedy)


@cache
def _source_of(root: str) -> dict[str, str | None]:
    """The version of the distribution that holds a package of the user's, where one is installed, and the SHA-256 of
    the package's Python files.
    """
    module = importlib.import_module(root)
    places = [Path(place) for place in getattr(module, "__path__", ())] or [Path(str(module.__file__))]
    digest, version = hashlib.sha256(), None
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(place).as_posix()} {len(content)}\n".encode() + content)
    with suppress(importlib.metadata.PackageNotFoundError, LookupError):
        version = importlib.metadata.version(importlib.metadata.packages_distributions()[root][0])
    return {"version": version, "sha256": digest.hexdigest()}


def own_code(settings: Any) -> dict[str, Any]:
    """What a fingerprint needs to know of the user's own classes in some settings: package -> version and source."""
    targets = [str(value) for key, value in _leaves(settings, "") if key.endswith("._target_")]
    roots = {target.partition(".")[0] for target in targets if target not in LIGHTNING} - {"ttpa"}
    return {"own_code": {root: _source_of(root) for root in sorted(roots)}} if roots else {}


def check_composed(cfg: DictConfig) -> None:
    """Raises ConfigError for what must be refused before Hydra makes a folder, a logger, a callback or a launcher."""
    if "hydra" in cfg:
        parts = OmegaConf.to_container(cfg.hydra, resolve=False)
        assert isinstance(parts, dict)
        for key, value in _leaves({name: parts.get(name) for name in ("launcher", "sweeper", "callbacks")}, "hydra"):
            if key.endswith("._target_") and value not in HYDRA:
                check_target(key, value)
        for key, value in _leaves({name: parts.get(name) for name in ("hydra_logging", "job_logging")}, "hydra"):
            called = key.endswith((".()", ".class")) or (isinstance(value, str) and re.search(r"\$\{|://", value))
            if called and value not in HYDRA:
                raise ConfigError.at(key, value, "is no handler that is known", "Leave it out")
        if parts.get("job", {}).get("env_set"):
            raise ConfigError("hydra.job.env_set: options set no variables. Set them in the shell.")
    if "name" in cfg:
        for group in (*IDENTITY, "controls", "seed", "rounds", "until", "name"):
            with suppress(OmegaConfBaseException):  # what cannot be resolved yet is seen again by `run_id`
                found = identity(cfg, group)[group]
                if group == "name":
                    _Name(name=found)


def _load_configuration(self: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
    cfg = _load(self, *args, **options)
    check_composed(cfg)
    return cfg


# Hydra composes everything here, and makes loggers and callbacks before it calls the job.
_load = ConfigLoaderImpl.load_configuration
ConfigLoaderImpl.load_configuration = _load_configuration  # type: ignore[method-assign]


def check_targets(node: Any, group: str) -> None:
    """Raises ConfigError for a class below a node that may not be made, and for other words of Hydra."""
    for key, value in _leaves(node, group):
        word = key.rpartition(".")[2]
        if word in ("_partial_", "_recursive_", "_convert_") or "._args_" in key:
            raise ConfigError.at(key, value, "is not for options", "Leave it out")
        if word == "_target_":
            check_target(key, value)


def instantiate(cfg: DictConfig, group: str) -> Any:
    """The object an option describes; a refused value or class (`check_targets`) is a ConfigError."""
    node = OmegaConf.to_container(cfg, resolve=True)
    check_targets(node, group)
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
class _Name:
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # names files and folders


@option
class _Scalars:
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
