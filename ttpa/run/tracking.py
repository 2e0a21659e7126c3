"""Which logger the stage under construction has, and when it is opened, told of the result, and closed.

Every logger is a Lightning logger, chosen by `conf/logger`. One that follows whole stages and not only training steps
(a *tracker*: its class lies in this package) is opened when a stage is begun and told of its folder and metrics when it
is in the store, so that slow uploads never stand between a trained policy and the disk. Whatever happens, it is closed
before the next stage: a run that stays open would take in the numbers of the next job of the process.

What this package does not do: decide a number, or serve one to a table. A tracker that fails costs nothing but its own
pages. Called by `ttpa.run.pipeline`; importing it imports neither Lightning nor wandb.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ttpa.errors import ConfigError

log = logging.getLogger("ttpa")

TRACKED = ("warmup", "explore", "align", "evaluate")
"""Stages that get a run of their own; data and select are inputs of these."""


WANDB_SERVER = "https://api.wandb.ai"


def has_key() -> bool:
    """Whether this user can upload to W&B: a key or token file in the environment, or a login in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or WANDB_SERVER).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).hosts.get(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


OPTIONS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "project": (lambda value: isinstance(value, str) and value != "", "must be a name"),
    "entity": (lambda value: value is None or isinstance(value, str), "must be a user, a team or null"),
    "offline": (lambda value: value is None or isinstance(value, bool), "must be true, false or null"),
    "table_rows": (lambda value: type(value) is int and value >= 0, "must be a whole number, 0 or more"),
    "max_artifact_mb": (lambda value: type(value) in (int, float) and value >= 0, "must be a number, 0 or more"),
}
"""Key of `conf/logger/wandb.yaml` -> which values it takes."""


def check_options(options: Mapping[str, Any]) -> None:
    """Checks a tracker's options before any work: the tracker itself is only made when the first stage is begun.

    Raises:
        ConfigError: the first value that it cannot have; names it.
    """
    for key, (fits, rule) in OPTIONS.items():
        if key in options and not fits(options[key]):
            raise ConfigError.at(f"logger.{key}", options[key], rule, "See conf/logger/wandb.yaml for what it means")


def option_key(group: str) -> str:
    """The key of a run's configuration that holds the name of the group's option; flat, so that charts group by it."""
    return f"{group}_option"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What a tracker knows of a stage before it is built.

    Args:
        id: Name of the stage's folder, `<stage>-<fingerprint>`: the same stage is the same run, also after a kill.
        stage: One of the stages' names.
        label: What the screen calls it.
        run: Name of the run (`name=`), which groups the stages of a sweep.
        seed: Seed of the run.
        choices: Group -> option, of the groups that decided this stage or its inputs, and the experiment.
        config: Resolved values of these groups, and scalars.
        inputs: Role -> folder of the finished stage.

    Example:
        >>> facts = StageFacts(id="align-0123456789ab", stage="align", label="align dpo", run="ttpa", seed=0,
        ...                    choices={"objective": "dpo"}, config={}, inputs={})
        >>> facts.name, facts.tags
        ('align dpo, ttpa, seed 0', ['objective=dpo'])
    """

    id: str
    stage: str
    label: str
    run: str
    seed: int
    choices: Mapping[str, str]
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, {self.run}, seed {self.seed}"

    @property
    def tags(self) -> list[str]:
        """`group=option`, to filter by."""
        return [f"{group}={option}" for group, option in self.choices.items()]


class Tracking:
    """The logger of one stage at a time."""

    def __init__(self, make: Callable[[Path, StageFacts], Any], tracks: bool) -> None:
        """Makes nothing yet.

        Args:
            make: Gives the logger of a stage from its working directory, or False.
            tracks: Whether that logger is a tracker.
        """
        self.make, self.tracks = make, tracks
        self.lineage: dict[str, frozenset[str]] = {}
        """Stage folder -> the groups that decided it or its inputs."""
        self._stage: tuple[Path, StageFacts] | None = None
        self._logger: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to other processes without the open logger."""
        return Tracking, (self.make, self.tracks)

    def begin(self, facts: StageFacts, workdir: Path) -> None:
        """A stage is being built.

        Raises:
            ConfigError: the tracker cannot be opened.
        """
        self._stage = (workdir, facts)
        if self.tracks and facts.stage in TRACKED:
            self.logger.begin()

    @property
    def logger(self) -> Any:
        """The logger of the stage being built, made when it is first asked for; False where there is none."""
        if self._stage is None:
            return False
        if self._logger is None:
            self._logger = self.make(*self._stage)
        return self._logger

    def publish(self, folder: Path, metrics: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """The stage is in the store: tells its tracker, if it was built here. A tracker's failure is only
        noted, on the screen too.
        """
        if not self.tracks or not self._logger:
            return
        try:
            self._logger.publish(folder, metrics)
        except Exception as error:
            message = f"logger: {folder.name} was not published: {type(error).__name__}: {error}"
            log.warning("%s", message)
            note(message)

    def end(self, failed: bool) -> None:
        """Closes what is open; nothing otherwise."""
        logger, self._logger, self._stage = self._logger, None, None
        if not logger:
            return
        try:
            if self.tracks:
                logger.end(failed)
            elif hasattr(logger.experiment, "finish"):  # a plain WandbLogger from an option file of the user's own
                logger.experiment.finish(exit_code=int(failed))
        except Exception as error:
            log.warning("logger: %s could not be closed: %s", type(logger).__name__, error)
