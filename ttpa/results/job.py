"""One run as Hydra's launchers call it: checks, the graph, the screen, and errors that can travel.

`ttpa.cli` runs it for one configuration or a product of them, `ttpa.results.sweep` for the cells of a table.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ttpa.errors import Interrupted, TtpaError, of_disk
from ttpa.run import cluster, config

log = logging.getLogger("ttpa")


# At import: launchers pickle the task function and run it where no command was started.
OmegaConf.register_new_resolver("run_id", lambda *, _root_: config.run_id(_root_), replace=True)


def use_own_launchers() -> None:
    """Gives Hydra our launcher for SLURM, where its plugin is installed."""
    with suppress(ImportError):
        from ttpa.run import slurm

        slurm.register()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM frees locks and ends the process with status 143, also under submitit, which ignores it."""

    def end(signum: int, frame: Any) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def job(cfg: DictConfig) -> None:
    """Runs one configuration. A single run exits with status 2 on a user's mistake; a cell of a sweep raises it, as it
    raises every error, in a form that can be pickled.
    """
    hydra_cfg = HydraConfig.get()
    choices, single = hydra_cfg.runtime.choices, hydra_cfg.mode == RunMode.RUN
    try:
        cluster.check_launch(
            choice=choices["cluster"],
            sweep=not single,
            launcher=hydra_cfg.launcher._target_,
            devices=cfg.trainer.devices,
            processes=cluster.place().size,
        )
        if not single and "gpus" in cfg.cluster:
            cluster.take_gpu(cfg.cluster.gpus)
        config.complete(cfg, choices, single=single)
        if single:  # the cells of a sweep share overrides that one of them may not read
            config.check_recipe(cfg, [word.lstrip("+").partition("=")[0] for word in hydra_cfg.overrides.task])
        folder = Path(hydra_cfg.runtime.output_dir)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        from ttpa.results.view import ScreenView
        from ttpa.run import pipeline

        # The screen belongs to the first process.
        with open(os.devnull, "w") as nowhere:
            screen = sys.stdout if cluster.place().rank == 0 else nowhere
            if not hydra_cfg.launcher._target_.endswith(".BasicLauncher"):
                screen = cast(TextIO, cluster.Lines(screen))
            with _ended_by_sigterm(), ScreenView(screen, str(cfg.name)) as view:
                outcome = pipeline.run(cfg, view)
            view.summary(outcome, str(folder))
    except Exception as error:
        known = error if isinstance(error, TtpaError) else of_disk(error)
        if known is None:
            if single:
                raise
            log.exception("failed")
            raise cluster.portable(error) from None
        log.error("%s", known)
        print(f"ttpa: error: {known}", file=sys.stderr)
        if single:
            sys.exit(2)
        raise cluster.portable(known) from None
    except (KeyboardInterrupt, Interrupted) as stop:
        told = stop if isinstance(stop, Interrupted) else Interrupted()
        if cluster.place().rank == 0:
            print(f"ttpa: {told}", file=sys.stderr)
        sys.exit(told.status)
