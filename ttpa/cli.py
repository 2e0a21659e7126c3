"""The command line: `ttpa`, a Hydra application. Importing it imports neither torch nor transformers nor Lightning.

`ttpa` without arguments is `ttpa experiment=demo`. A user's mistake is answered in one line on standard error with exit
status 2, before any work; in a sweep (`-m`) the other cells still run and the exit status says that one failed.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ttpa import config
from ttpa.errors import TtpaError

log = logging.getLogger("ttpa")


def _run_id(*, _root_: DictConfig) -> str:
    return config.run_id(_root_)


# At import and not in `main`: launchers pickle the task function and run it where `main` never was called.
OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _check_overrides(cfg: DictConfig) -> None:
    """Types of overridden values, against the same options without them."""
    groups = set(HydraConfig.get().runtime.choices)
    chosen, keys = [], []
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key.split("@")[0] in groups or override.startswith("~"):
            chosen.append(override)
        elif not override.startswith("+") or override.startswith("++"):
            keys.append(key)
    if keys:
        config.check_types(cfg, hydra.compose("config", overrides=chosen), keys)


def _prepare(cfg: DictConfig) -> None:
    choices = {group: name for group, name in HydraConfig.get().runtime.choices.items() if group in config.IDENTITY}
    with open_dict(cfg):
        cfg.choices = choices


@hydra.main(version_base="1.3", config_path="pkg://ttpa.conf", config_name="config")
def _main(cfg: DictConfig) -> None:
    single = HydraConfig.get().mode == RunMode.RUN
    try:
        _check_overrides(cfg)
        _prepare(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        from ttpa import pipeline
        from ttpa.view import make_view

        with make_view(sys.stdout, str(cfg.name)) as view:
            outcome = pipeline.run(cfg, view)
        view.summary(outcome, str(folder))
    except TtpaError as error:
        log.error("%s", error)
        print(f"ttpa: error: {error}", file=sys.stderr)
        if single:
            sys.exit(2)
        raise
    except KeyboardInterrupt:
        print("ttpa: interrupted. The same command again continues from here.", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point of the `ttpa` script."""
    if len(sys.argv) == 1:
        sys.argv.append("experiment=demo")
    _main()


if __name__ == "__main__":
    main()
