"""The command line: `ttpa`, a Hydra application. Importing it imports neither torch nor transformers nor Lightning.

`ttpa` without arguments is `ttpa experiment=demo`. A user's mistake is answered in one line on standard error with exit
status 2, before any work; in a sweep (`-m`) the other cells still run and the exit status says that one failed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ttpa.errors import TtpaError
from ttpa.run import cluster, config, ranks

log = logging.getLogger("ttpa")


def _run_id(*, _root_: DictConfig) -> str:
    return config.run_id(_root_)


# At import and not in `main`: launchers pickle the task function and run it where `main` never was called.
OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def chosen_and_set(overrides: Iterable[str], is_group: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The overrides that choose options, and the keys that the others set: what `config.check_types` compares."""
    chosen, keys = [], []
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if is_group(key.split("@")[0]) or override.startswith("~"):
            chosen.append(override)
        elif not override.startswith("+") or override.startswith("++"):
            keys.append(key)
    return chosen, keys


def _check_overrides(cfg: DictConfig) -> None:
    """Types of overridden values, against the same options without them."""
    groups = set(HydraConfig.get().runtime.choices)
    chosen, keys = chosen_and_set(HydraConfig.get().overrides.task, groups.__contains__)
    if keys:
        config.check_types(cfg, hydra.compose("config", overrides=chosen), keys)


def _prepare(cfg: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    with open_dict(cfg):
        cfg.choices = {group: name for group, name in choices.items() if group in config.IDENTITY}
        if choices["experiment"]:
            cfg.choices.experiment = choices["experiment"]
        if cfg.baseline is None:
            cfg.baseline = HydraConfig.get().mode == RunMode.RUN


def job(cfg: DictConfig) -> None:
    """One run, as Hydra's launchers call it (also those of `ttpa-sweep`)."""
    hydra_cfg = HydraConfig.get()
    single = hydra_cfg.mode == RunMode.RUN
    try:
        _check_overrides(cfg)
        cluster.check_launch(
            choice=hydra_cfg.runtime.choices["cluster"],
            sweep=not single,
            launcher=hydra_cfg.launcher._target_,
            devices=cfg.trainer.lightning.devices,
            processes=ranks.place().size,
        )
        if not single and "gpus" in cfg.cluster:
            cluster.take_gpu(cfg.cluster.gpus)
        _prepare(cfg)
        folder = Path(hydra_cfg.runtime.output_dir)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        from ttpa.results.view import make_view
        from ttpa.run import pipeline

        # The screen belongs to the first process.
        with open(os.devnull, "w") as nowhere:
            screen = sys.stdout if ranks.place().rank == 0 else nowhere
            if not hydra_cfg.launcher._target_.endswith(".BasicLauncher"):
                screen = cast(TextIO, cluster.Lines(screen))
            with make_view(screen, str(cfg.name)) as view:
                outcome = pipeline.run(cfg, view)
            view.summary(outcome, str(folder))
    except TtpaError as error:
        log.error("%s", error)
        print(f"ttpa: error: {error}", file=sys.stderr)
        if single:
            sys.exit(2)
        raise cluster.portable(error) from None
    except Exception as error:
        if single:
            raise
        log.exception("failed")
        raise cluster.portable(error) from None
    except KeyboardInterrupt:
        print("ttpa: interrupted. The same command again continues from here.", file=sys.stderr)
        sys.exit(130)


@hydra.main(version_base="1.3", config_path="pkg://ttpa.conf", config_name="config")
def _main(cfg: DictConfig) -> None:
    job(cfg)


def main() -> None:
    """Entry point of the `ttpa` script."""
    if len(sys.argv) == 1:
        sys.argv.append("experiment=demo")
    try:
        cluster.check_plugins(sys.argv[1:], launches=not {"-m", "--multirun"}.isdisjoint(sys.argv[1:]))
    except TtpaError as error:
        print(f"ttpa: error: {error}", file=sys.stderr)
        sys.exit(2)
    _main()


if __name__ == "__main__":
    main()
