"""Wrong overrides, answered in one line with the nearest right word, which is found among what can be composed."""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ttpa.errors import ConfigError, nearest

COMPLAINTS = (HydraException, OmegaConfBaseException)

# Last part of ttpa's key -> what other trainers call it.
NAMES = {
    "lr": "learning_rate", "steps": "max_steps num_steps", "epochs": "max_epochs num_train_epochs num_epochs",
    "batch_size": "per_device_train_batch_size bs train_batch_size", "clip": "gradient_clip_val max_grad_norm",
    "n": "num_generations", "max_new_tokens": "max_completion_length", "max_tokens": "max_length", "dtype": "precision",
    "optimizer": "optim", "r": "lora_r", "alpha": "lora_alpha", "schedule": "lr_scheduler_type",
    "gamma_beta_ratio": "gamma",
}  # fmt: skip
ALIASES = {alias: key for key, aliases in NAMES.items() for alias in aliases.split()}


def explained(error: Exception, words: Sequence[str]) -> ConfigError:
    """What is wrong with the command line that Hydra refused; its `error` where the words show no mistake."""
    with _loader(words) as loader:
        for problem in _problems(_overrides(words), loader):
            return problem
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in f"{error}\n{cause}".splitlines() if line.strip()]
    reason = "; ".join(dict.fromkeys(lines)).rstrip(".")
    return ConfigError(f"{' '.join(words)}: {reason}. `ttpa --cfg job` shows every key and its value.")


@contextmanager
def _loader(words: Sequence[str]) -> Iterator[ConfigLoader]:
    """Hydra's loader: of the Hydra that is there, else of a new one with the folders that `--config-dir` names."""
    fresh = not GlobalHydra.instance().is_initialized()
    if fresh:
        search = create_config_search_path("pkg://ttpa.conf")
        for flag, folder in itertools.pairwise(words):
            if flag in ("--config-dir", "-cd"):
                search.prepend("command-line", f"file://{Path(folder).resolve()}")
        Hydra.create_main_hydra2(task_name="ttpa", config_search_path=search)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        if fresh:
            GlobalHydra.instance().clear()


def _overrides(words: Sequence[str]) -> list[str]:
    """The words without flags and their values."""
    valued = re.compile("--(config-(dir|name|path)|cfg|info|package)|-(cd|cn|cp|c|i|p)")
    pairs = itertools.pairwise(["", *words])
    return [word for before, word in pairs if not word.startswith("-") and not valued.fullmatch(before)]


def _problems(words: Sequence[str], loader: ConfigLoader) -> Iterator[ConfigError]:
    """Mistakes in the words, in their order; options first, since keys depend on them."""
    good, keyed = [], []
    for word in words:
        key, sign, value = word.partition("=")
        name = key.lstrip("+~")
        if not sign and not word.startswith("~"):
            yield ConfigError(f"{word}: not of the form key=value. `ttpa --help` shows groups and options.")
            continue
        options = loader.get_group_options(name.partition("@")[0])
        if not options:
            keyed.append(word)
            continue
        chosen = [one.strip() for one in value.strip("[]").split(",") if one.strip() not in ("", "null")]
        for option in chosen:
            if option not in options:
                yield ConfigError(f"no option {option} of the group {name}. {nearest(option, options)}")
        if not word.startswith("~") and len(chosen) == 1:
            good.append(word)
    try:
        cfg = compose("config", overrides=good, return_hydra_config=True)
    except COMPLAINTS:
        cfg = compose("config", return_hydra_config=True)
    keys = dict.fromkeys(_keys(OmegaConf.to_container(cfg, resolve=False)))
    for word in keyed:
        name = word.partition("=")[0].lstrip("~")
        if name not in keys and not name.startswith("+"):
            yield ConfigError(f"no key {name}; {nearest_key(name, list(keys), cfg)}")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def nearest_key(name: str, keys: Sequence[str], cfg: DictConfig) -> str:
    """A question with the known keys most like `name`: those with the same last part first."""
    group, _, leaf = name.rpartition(".")
    leaf = ALIASES.get(leaf, leaf)
    own = [key for key in keys if key.startswith("hydra") == name.startswith("hydra")]
    by_leaf = {key.rpartition(".")[2]: key for key in own}
    align = "recipe.online." if "clip_low" in cfg.objective else "recipe.align."
    related = {"objective": align, "align": align, "warmup": "recipe.warmup."}.get(group.rpartition(".")[2])
    found = [key for key in own if key.rpartition(".")[2] == leaf]
    found = [key for key in found if related and key.startswith(related)] or found
    found = found or difflib.get_close_matches(name, own, n=1, cutoff=0.75)
    found = found or [by_leaf[close] for close in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)]
    if not found:
        return "`ttpa --cfg job` lists the keys there are."
    *others, last = sorted(found, key=lambda key: -difflib.SequenceMatcher(None, name, key).ratio())[:3]
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
