"""`logger=wandb`: one Weights & Biases run a stage that is trained, explored or evaluated.

The run's id is the stage's `<stage>-<fingerprint>`, so that a stage that goes on after a kill goes on with its curve
and a stage found in the store makes no second run. Runs are grouped by `name=`, typed by stage, tagged `group=option`.
At the end come the summary, tables (pairs, six errors, some answers) and artifacts: policies and pair sets, each named
like its stage, with the inputs they were made from. Without a key nothing is uploaded: the run is written to a folder
that `wandb sync` uploads later. The only module that imports wandb.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.run.tracking import StageFacts, has_key, log, option_key

ARTIFACTS = {"warmup": ("policy", "policy"), "align": ("policy", "policy"), "explore": ("pairs.jsonl", "pairs")}
"""Stage -> what of its folder is an artifact, and of which type."""
PAIR_COLUMNS = ("sample", "margin", "branch", "chosen", "rejected", "chosen score", "rejected score")
ERROR_COLUMNS = ("error", "share", "low", "high", "answers")
ANSWER_COLUMNS = ("sample", "exact", "errors", "finish", "text")


def mode_of(offline: bool | None) -> str | None:
    """The mode to ask wandb for: WANDB_MODE decides, then the option, then whether there is a key."""
    if os.environ.get("WANDB_MODE"):
        return None
    return "offline" if offline or (offline is None and not has_key()) else "online"


class WandbTracker(WandbLogger):
    """A run of one stage.

    Args:
        facts: The stage.
        save_dir: Below it, in `wandb/`, lie the run's files.
        project, entity: Where the runs go; None leaves the choice of the entity to the server.
        offline: True writes to disk only, False uploads, None uploads where there is a key.
        table_rows: Most rows of a table.
        max_artifact_mb: Larger artifacts are only named in the summary.
    """

    def __init__(
        self,
        *,
        facts: StageFacts,
        save_dir: str,
        project: str,
        entity: str | None,
        offline: bool | None,
        table_rows: int,
        max_artifact_mb: float,
    ) -> None:
        folder = Path(save_dir).resolve()  # its service keeps the working directory that it was started in
        try:
            folder.mkdir(parents=True, exist_ok=True)  # wandb would go to a temporary one instead
        except OSError as error:
            problem = f"cannot be made a folder ({error.strerror})"
            raise ConfigError.at("logger.save_dir", save_dir, problem, "Give another folder") from None
        # Lightning's own `offline` would set WANDB_MODE for every later job of this process.
        super().__init__(
            project=project,
            entity=entity,
            save_dir=str(folder),
            id=facts.id,
            name=facts.name,
            group=facts.run,
            job_type=facts.stage,
            tags=facts.tags,
            config={**facts.config, **{option_key(group): name for group, name in facts.choices.items()}},
            mode=mode_of(offline),
            settings={"silent": True, "console": "off", "symlink": False},  # the screen belongs to the view
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on; wandb would warn on the screen
        self.facts, self.table_rows, self.max_artifact_mb = facts, table_rows, max_artifact_mb

    @rank_zero_only
    def begin(self) -> None:
        """Opens the run.

        Raises:
            ConfigError: wandb refuses; says how to go on without it.
        """
        import wandb

        try:
            if wandb.run is not None:  # left open by somebody else: Lightning would log into it
                wandb.run.finish()
            _ = self.experiment
        except Exception as error:
            remedy = "Check the key and logger.entity, or use logger.offline=true or logger=csv"
            why = " ".join(str(error).split())  # pydantic's take several lines
            raise ConfigError(
                f"logger=wandb: no run {self.facts.id} in project {self.name}: {why}. {remedy}."
            ) from None

    @rank_zero_only
    def publish(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Summary, tables and artifacts of the finished stage."""
        self.experiment.summary.update({"stage": self.facts.id, **dict(flat(metrics))})
        for key, columns, rows in tables(self.facts.stage, folder, metrics, self.table_rows):
            self.log_table(key, columns=list(columns), data=rows)
        for path in self.facts.inputs.values():
            if (found := self._artifact(path)) is not None:
                self._use(found)
        if (made := self._artifact(folder)) is not None:
            self.experiment.log_artifact(made)

    @rank_zero_only
    def end(self, failed: bool) -> None:
        """Closes the run; the server shows whether the stage failed."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    def _artifact(self, folder: Path) -> Any:
        """The artifact that a stage's folder holds; None without one, or when it is too large."""
        import wandb

        inside, kind = ARTIFACTS.get(folder.name.rsplit("-", 1)[0], ("", ""))
        path = folder / inside
        if not inside or not path.exists():
            return None
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        if size_mb > self.max_artifact_mb:
            log.warning("logger=wandb: %s has %.0f MB, over logger.max_artifact_mb; not uploaded", path, size_mb)
            self.experiment.summary.update({f"not_uploaded/{folder.name}": str(path)})
            return None
        made = wandb.Artifact(folder.name, type=kind, metadata={"stage": folder.name, "run": self.facts.run})
        for file in sorted(files):  # not `add_dir`, which writes to the screen
            made.add_file(str(file), name=file.name if path.is_file() else file.relative_to(path).as_posix())
        return made

    def _use(self, artifact: Any) -> None:
        """Says that the run was made from it. The server knows equal contents again, wherever they come from."""
        run: Any = self.experiment
        if not run.offline:
            run.use_artifact(artifact)
            return
        # The public method refuses offline, where it could not wait for the server. This is what it does before that.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of nested metrics under one name each.

    Example:
        >>> dict(flat({"accuracy": {"value": 0.5, "n": 4}, "unseen_tool": None}))
        {'accuracy/value': 0.5, 'accuracy/n': 4}
    """
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
        yield "tables/pairs", PAIR_COLUMNS, [_pair(row) for row in islice(read_jsonl(folder / "pairs.jsonl"), limit)]
    if stage == "evaluate":
        found = {label: one for label, one in metrics.get("errors", {}).items() if isinstance(one, Mapping)}
        shares = [[label, *(one.get(key) for key in ("value", "low", "high", "n"))] for label, one in found.items()]
        yield "tables/six_errors", ERROR_COLUMNS, shares
        rows = list(read_jsonl(folder / "rows.jsonl"))
        # Spread over the file, which is in order of length.
        some = [rows[k * len(rows) // limit] for k in range(limit)] if len(rows) > limit else rows
        yield "tables/answers", ANSWER_COLUMNS, [_answer(row) for row in some]


def _pair(row: Mapping[str, Any]) -> list[Any]:
    texts = [row[side]["text"] for side in ("chosen", "rejected")]
    scores = [row[f"{side}_score"]["value"] for side in ("chosen", "rejected")]
    return [row["sample_id"], row["margin"], row["branch"], *texts, *scores]


def _answer(row: Mapping[str, Any]) -> list[Any]:
    return [row["id"], bool(row["exact"]), " ".join(row["errors"]), row["finish"], row["text"]]
