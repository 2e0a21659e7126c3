"""`logger=wandb`: one Weights & Biases run a stage, named as the stage is: after a kill it goes on with its curve.
Without a key the run is written to a folder that `wandb sync` uploads later.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ttpa.calls.six_errors import SIX
from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.options import Index, NonNegative, option
from ttpa.records import Pair
from ttpa.run.tracking import StageFacts, log, option_key

ARTIFACTS = {"warmup": "policy", "align": "policy", "explore": "pairs.jsonl"}  # stage -> what of its folder


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
    """Follows the stages of a run."""

    save_dir: str
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    offline: bool | None
    table_rows: Index
    max_artifact_mb: NonNegative

    def follow(self, facts: StageFacts) -> "WandbRun":
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
            project=self.project, entity=self.entity, save_dir=str(folder), id=facts.id, name=facts.name,
            group=facts.run, job_type=facts.stage, tags=[f"{group}={name}" for group, name in facts.choices.items()],
            config={**facts.config, **{option_key(group): name for group, name in facts.choices.items()}},
            mode=mode_of(self.offline),  # Lightning's own `offline` sets WANDB_MODE for every later job of this process
            settings={"silent": True, "console": "off", "symlink": False},  # the screen belongs to the view
        )  # fmt: skip
        logger._wandb_init.pop("anonymous", None)  # Lightning passes it on; wandb would warn on the screen
        try:
            first = not getattr(rank_zero_only, "rank", 0)
            if first and wandb.run is not None:  # left open by somebody else: Lightning would log into it
                wandb.run.finish()
            return WandbRun(self, facts, logger, logger.experiment if first else None)
        except Exception as error:
            remedy = "Check the key and logger.entity, or use logger.offline=true or logger=csv"
            why = " ".join(str(error).split())  # pydantic's take several lines
            raise ConfigError(f"logger=wandb: no run {facts.id} in project {self.project}: {why}. {remedy}.") from None


class WandbRun:
    """The open run of one stage; a `ttpa.run.tracking.Tracker`. `run` is None in other processes than the first."""

    def __init__(self, options: Wandb, facts: StageFacts, lightning: Any, run: Any) -> None:
        self.options, self.facts, self.lightning, self.run = options, facts, lightning, run
        self.place = ""
        if run is not None and run.offline and not run.disabled:
            self.place = f"W&B runs are on this machine only: wandb sync {Path(run.dir).parents[1]}/offline-run-*"

    def publish(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Summary, tables and artifacts of the finished stage."""
        if self.run is None:
            return
        self.run.summary.update({"stage": self.facts.id, **dict(flat(metrics))})
        for key, columns, rows in tables(self.facts.stage, folder, metrics, self.options.table_rows):
            self.lightning.log_table(key, columns=columns.split(", "), data=rows)
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

        inside = ARTIFACTS.get(folder.name.rsplit("-", 1)[0], "")
        path = folder / inside
        files = sorted(file for file in (path, *path.rglob("*")) if file.is_file()) if inside else []
        if not files:
            return None
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        if size_mb > self.options.max_artifact_mb:
            log.warning("logger=wandb: %s has %.0f MB, over logger.max_artifact_mb; not uploaded", path, size_mb)
            self.run.summary.update({f"not_uploaded/{folder.name}": str(path)})
            return None
        meta = {"stage": folder.name, "run": self.facts.run}
        made = wandb.Artifact(folder.name, type=inside.removesuffix(".jsonl"), metadata=meta)
        for file in files:  # not `add_dir`, which writes to the screen
            made.add_file(str(file), name=file.relative_to(path.parent if path.is_file() else path).as_posix())
        return made


def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of nested metrics under one name each: {"accuracy": {"n": 4}} gives "accuracy/n"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{start}{key}/")
        elif isinstance(value, int | float | str):
            yield f"{start}{key}", value


def tables(stage: str, folder: Path, metrics: Mapping[str, Any], limit: int) -> Iterator[tuple[str, str, list[Any]]]:
    """(name, columns joined by commas, rows) of a finished stage's tables, at most `limit` rows each."""
    if stage == "explore":
        found = [Pair.from_json(row) for row in islice(read_jsonl(folder / "pairs.jsonl"), limit)]
        rows = [[one.sample_id, one.margin, one.branch, one.chosen.text, one.rejected.text] for one in found]
        rows = [[*row, one.chosen_score.value, one.rejected_score.value] for row, one in zip(rows, found, strict=True)]
        yield "tables/pairs", "sample, margin, branch, chosen, rejected, chosen score, rejected score", rows
    if stage == "evaluate":
        shares = {label: one for label, one in metrics.get("errors", {}).items() if isinstance(one, Mapping)}
        named = {label: label if label in SIX else f"{label} (none of the six)" for label in shares}
        rows = [[named[label], *map(one.get, ("value", "low", "high", "n"))] for label, one in shares.items()]
        yield "tables/six_errors", "error, share, low, high, answers", rows
        answers = list(read_jsonl(folder / "rows.jsonl"))
        if len(answers) > limit:  # spread over the file, which is in order of length
            answers = [answers[k * len(answers) // limit] for k in range(limit)]
        some = [[row["id"], bool(row["exact"]), " ".join(row["errors"]), row["finish"], row["text"]] for row in answers]
        yield "tables/answers", "sample, exact, errors, finish, text", some
