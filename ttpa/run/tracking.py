"""Loggers of stages: Lightning loggers, made when a Trainer asks for one, and *trackers*, which follow whole stages.

A tracker is opened when a stage begins, told of the result once that is in the store, and closed before the next stage.
One that fails costs nothing but its own pages.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ttpa.errors import masked

log = logging.getLogger("ttpa")

TRACKED = ("warmup", "explore", "align", "evaluate")  # these get a run of their own


def option_key(group: str) -> str:
    """The key of a run's configuration that holds the name of the group's option: charts group by it."""
    return f"{group}_option"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What a tracker knows of a stage before it is built."""

    id: str  # name of the stage's folder, `<stage>-<fingerprint>`: the same stage is the same run, also after a kill
    stage: str  # one of the stages' names
    name: str  # for people
    run: str  # `name=`, which groups the stages of a sweep
    choices: Mapping[str, str]  # group -> option, of the groups that decided this stage, and the experiment
    config: Mapping[str, Any]  # resolved values of these groups, and scalars
    inputs: Mapping[str, Path]  # role -> folder of the finished stage


class Tracker(Protocol):
    """The open run of one stage: curves go to the Lightning logger `lightning`, `publish` takes in the finished stage,
    `close` is told whether it failed. `place` says where on this machine the run lies, "" where it does not.
    """

    lightning: Any
    place: str

    def publish(self, folder: Path, metrics: Mapping[str, Any]) -> None: ...
    def close(self, failed: bool) -> None: ...


@dataclass(slots=True)
class Tracking:
    """The logger of one stage at a time, from `make`, or its tracker, from `follow`, whose ConfigError ends the run."""

    make: Callable[[Path, StageFacts], Any] | None
    follow: Callable[[StageFacts], Tracker] | None
    lineage: dict[str, frozenset[str]] = field(default_factory=dict)  # stage folder -> groups that decided it
    places: dict[str, None] = field(default_factory=dict)  # where curves lie, a sentence for people each
    _stage: tuple[Path, StageFacts] | None = None
    _tracker: Tracker | None = None
    _logger: Any = None

    def __reduce__(self) -> tuple[Any, ...]:  # travels to other processes without what is open
        return Tracking, (self.make, self.follow)

    def begin(self, facts: StageFacts, workdir: Path) -> None:
        self._stage = (workdir, facts)
        if self.follow is not None and facts.stage in TRACKED:
            self._tracker = self.follow(facts)

    @property
    def logger(self) -> Any:
        """The Lightning logger of the stage being built, made when it is first asked for; False where there is none."""
        if self._tracker is not None:
            return self._tracker.lightning
        if self._logger is None and self._stage is not None and self.make is not None:
            self._logger = self.make(*self._stage)
        return self._logger or False

    def publish(self, folder: Path, metrics: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """The stage is in the store: tells its tracker, if it was built here. `note` shows that this failed."""
        if any(folder.rglob("events.out.tfevents.*")):
            self.places[f"TensorBoard: tensorboard --logdir {folder.parent}"] = None
        if self._tracker is None:
            return
        self.places |= dict.fromkeys(filter(None, [self._tracker.place]))
        try:
            self._tracker.publish(folder, metrics)
        except Exception as error:
            message = masked(f"logger: {folder.name} was not published: {type(error).__name__}: {error}")
            log.warning(message)
            note(message)

    def end(self, failed: bool) -> None:
        """Closes what is open."""
        tracker, logger = self._tracker, self._logger
        self._tracker = self._logger = self._stage = None
        try:
            if tracker is not None:
                tracker.close(failed)
            elif logger and hasattr(logger.experiment, "finish"):  # WandbLogger, from an option file of the user's own
                logger.experiment.finish(exit_code=int(failed))
        except Exception as error:
            log.warning("logger: %s could not be closed: %s", type(tracker or logger).__name__, masked(str(error)))
