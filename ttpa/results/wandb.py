"""`logger=wandb`: one Weights & Biases run a stage that is trained, explored or evaluated.

The run's id is the stage's `<stage>-<fingerprint>`: a stage that goes on after a kill goes on with its curve. Runs are
grouped by `name=`, typed by stage, tagged `group=option`. At the end come the summary, tables and artifacts, with the
inputs they were made from. Without a key the run is written to a folder that `wandb sync` uploads later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.options import Index, NonNegative, option
from ttpa.run.tracking import StageFacts, log, option_key

ARTIFACTS = {"warmup": ("policy", "policy"), "align": ("policy", "policy"), "explore": ("pairs.jsonl", "pairs")}
"""Stage -> what of its folder is an artifact, and of which type."""


def has_key() -> bool:
    """Whether this user can upload to W&B: a key or token file in the environment, or a login in netrc."""
    from requests.utils import get_netrc_auth

    named = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return bool(named or get_netrc_auth(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"))


def mode_of(offline: bool | None) -> str | None:
    """The mode to ask wandb for: WANDB_MODE decides, then the option, then whether there is a key."""
    if os.environ.get("WANDB_MODE"):
        return None
    return "offline" if offline or (offline is None and not has_key()) else "online"


@option
class Wandb:
    """Follows the stages of a run; `conf/logger/wandb.yaml` says what each value means."""

    save_dir: str
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    offline: bool | None
    table_rows: Index
    max_artifact_mb: NonNegative

    def follow(self, facts: StageFacts) -> WandbRun:
        """Opens the run of a stage, in the first process only. A ConfigError says why there is none."""
        import wandb
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        folder = Path(self.save_dir).resolve()  # its service keeps the working directory that it was started in
        try:
            folder.mkdir(parents=True, exist_ok=True)  # wandb would go to a temporary one instead
        except OSError as error:
            problem = f"cannot be made a folder ({error.strerror})"
            raise ConfigError.at("logger.save_dir", self.save_dir, problem, "Give another folder") from None
        logger = WandbLogger(
            project=self.project,
            entity=self.entity,
            save_dir=str(folder),
            id=facts.id,
            name=facts.name,
            group=facts.run,
            job_type=facts.stage,
            tags=[f"{group}={name}" for group, name in facts.choices.items()],
            config={**facts.config, **{option_key(group): name for group, name in facts.choices.items()}},
            mode=mode_of(self.offline),  # Lightning's own `offline` sets WANDB_MODE for every later job of this process
            settings={"silent": True, "console": "off", "symlink": False},  # the screen belongs to the view
        )
        logger._wandb_init.pop("anonymous", None)  # Lightning passes it on; wandb would warn on the screen
        if getattr(rank_zero_only, "rank", 0):
            return WandbRun(self, facts, logger, None)
        try:
            if wandb.run is not None:  # left open by somebody else: Lightning would log into it
                wandb.run.finish()
            return WandbRun(self, facts, logger, logger.experiment)
        except Exception as error:
            remedy = "Check the key and logger.entity, or use logger.offline=true or logger=csv"
            why = " ".join(str(error).split())  # pydantic's take several lines
            raise ConfigError(f"logger=wandb: no run {facts.id} in project {self.project}: {why}. {remedy}.") from None


class WandbRun:
    """The open run of one stage; a `ttpa.run.tracking.Tracker`. `run` is None in other processes than the first."""

    def __init__(self, options: Wandb, facts: StageFacts, lightning: Any, run: Any) -> None:
        self.options, self.facts, self.lightning, self.run = options, facts, lightning, run

    def publish(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Summary, tables and artifacts of the finished stage."""
        if self.run is None:
            return
        self.run.summary.update({"stage": self.facts.id, **dict(flat(metrics))})
        for key, columns, rows in tables(self.facts.stage, folder, metrics, self.options.table_rows):
            self.lightning.log_table(key, columns=list(columns), data=rows)
        for used in filter(None, map(self._artifact, self.facts.inputs.values())):
            if self.run.offline:  # `use_artifact` refuses, as it could not wait for the server; it begins with this
                self.run._log_artifact(used, is_user_created=True, use_after_commit=True)
            else:
                self.run.use_artifact(used)
        if (made := self._artifact(folder)) is not None:
            self.run.log_artifact(made)

    def close(self, failed: bool) -> None:
        """Closes the run; the server shows whether the stage failed."""
        if self.run is not None:
            self.run.finish(exit_code=int(failed))

    def _artifact(self, folder: Path) -> Any:
        """The artifact that a stage's folder holds; None without one, or when it is too large."""
        import wandb

        inside, kind = ARTIFACTS.get(folder.name.rsplit("-", 1)[0], ("", ""))
        path = folder / inside
        if not inside or not path.exists():
            return None
        files = sorted(file for file in (path, *path.rglob("*")) if file.is_file())
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        if size_mb > self.options.max_artifact_mb:
            log.warning("logger=wandb: %s has %.0f MB, over logger.max_artifact_mb; not uploaded", path, size_mb)
            self.run.summary.update({f"not_uploaded/{folder.name}": str(path)})
            return None
        made = wandb.Artifact(folder.name, type=kind, metadata={"stage": folder.name, "run": self.facts.run})
        for file in files:  # not `add_dir`, which writes to the screen
            made.add_file(str(file), name=file.name if path.is_file() else file.relative_to(path).as_posix())
        return made


def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of nested metrics under one name each: {"accuracy": {"n": 4}} gives "accuracy/n"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{start}{key}/")
        elif isinstance(value, int | float | str):
            yield f"{start}{key}", value


def tables(
    stage: str, folder: Path, metrics: Mapping[str, Any], limit: int
) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """(name, columns, rows) of a finished stage's tables, at most `limit` rows each."""
    if stage == "explore":
        rows = [
            [*itemgetter("sample_id", "margin", "branch")(pair), pair["chosen"]["text"], pair["rejected"]["text"],
             pair["chosen_score"]["value"], pair["rejected_score"]["value"]]
            for pair in islice(read_jsonl(folder / "pairs.jsonl"), limit)
        ]  # fmt: skip
        columns = ("sample", "margin", "branch", "chosen", "rejected", "chosen score", "rejected score")
        yield "tables/pairs", columns, rows
    if stage == "evaluate":
        shares = {label: one for label, one in metrics.get("errors", {}).items() if isinstance(one, Mapping)}
        rows = [[label, *(one.get(key) for key in ("value", "low", "high", "n"))] for label, one in shares.items()]
        yield "tables/six_errors", ("error", "share", "low", "high", "answers"), rows
        answers = list(read_jsonl(folder / "rows.jsonl"))
        if len(answers) > limit:  # spread over the file, which is in order of length
            answers = [answers[k * len(answers) // limit] for k in range(limit)]
        some = [[row["id"], bool(row["exact"]), " ".join(row["errors"]), row["finish"], row["text"]] for row in answers]
        yield "tables/answers", ("sample", "exact", "errors", "finish", "text"), some
