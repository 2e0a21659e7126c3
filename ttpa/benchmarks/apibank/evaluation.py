"""`eval=apibank`: given what was said before, write the next recorded call; and the numbers made from judged answers.

Nothing here runs APIs on API-Bank's database, scores the replies in words (ROUGE-L), or plans a level 3 task freely:
each of its calls is predicted from the true history.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ttpa.benchmarks.apibank.files import Format, LevelFiles, level_files, read_samples
from ttpa.benchmarks.apibank.rules import LABELS as OFFICIAL
from ttpa.benchmarks.apibank.rules import Rule, judge
from ttpa.calls.six_errors import LABELS
from ttpa.data.rows import file_digest
from ttpa.errors import ConfigError
from ttpa.options import Count, option
from ttpa.records import Candidate, Sample
from ttpa.results.stats import share
from ttpa.run.parts import Evaluation

Judged = Sequence[Mapping[str, Any]]  # rows of `rules.judge`


def _has_error(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]


@option
class APIBank(Evaluation):
    """Evaluation on API-Bank; `conf/eval/apibank.yaml` says what each value means."""

    path: Annotated[str, Field(min_length=1)]
    max_new_tokens: Count
    levels: Annotated[list[Literal[1, 2, 3]], Field(min_length=1)]
    format: Format
    rule: Rule
    limit: Count | None

    def __post_init__(self) -> None:
        if len(set(self.levels)) < len(self.levels):
            raise ConfigError.at("levels", self.levels, "names a level twice", "Use [1,2,3]")

    def check(self) -> None:
        self._files()

    def identity(self) -> Mapping[str, Any]:
        paths = [path for files in self._files().values() for path in (*files.samples, *files.specs)]
        return {"path": [[path.name, file_digest(path)] for path in dict.fromkeys(paths)]}

    def samples(self, data: Path) -> list[Sample]:
        return [sample for files in self._files().values() for sample in read_samples(files)[: self.limit]]

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        return judge(sample, candidate, self.rule)

    def summarise(self, rows: Judged) -> dict[str, Any]:
        """See the function `summarise`; also which rule and which format of each level were used."""
        try:
            formats = {str(level): files.format for level, files in self._files().items()}
        except ConfigError:  # the files were moved away after the answers were judged
            formats = {}
        return {**summarise(rows), "rule": self.rule, "format": formats}

    def _files(self) -> dict[int, LevelFiles]:
        folder = Path(self.path).expanduser()
        return {level: level_files(folder, level, self.format) for level in self.levels}


def _decidable(row: Mapping[str, Any]) -> bool:
    return not row["doubt"]


def _accuracy(rows: Judged) -> dict[str, Any]:
    return share([row for row in rows if _decidable(row)], itemgetter("exact"))


def _numbers(rows: Judged) -> dict[str, Any]:
    """Accuracy, its bounds and the decidable share."""
    bounds = {"low": share(rows, itemgetter("equal")), "high": share(rows, lambda row: row["right"] is not False)}
    return {"accuracy": _accuracy(rows), "bounds": bounds, "decidable": share(rows, _decidable)}


def _grouped(rows: Judged, key: str) -> dict[Any, Judged]:
    return {name: list(some) for name, some in groupby(sorted(rows, key=itemgetter(key)), itemgetter(key))}


def whole_tasks(rows: Judged) -> dict[str, Any] | None:
    """Share of level 3 tasks with no wrong call; None without level 3. `left_out` counts tasks with a call that was not
    answered or is not decidable.
    """
    tasks = _grouped([row for row in rows if row["level"] == 3], "cluster").values()
    counted = [calls for calls in tasks if f"calls-{len(calls)}" in calls[0]["tags"] and all(map(_decidable, calls))]
    wholes = [{"cluster": calls[0]["cluster"], "exact": all(call["exact"] for call in calls)} for calls in counted]
    return {**share(wholes, itemgetter("exact")), "left_out": len(tasks) - len(counted)} if tasks else None


def summarise(rows: Judged) -> dict[str, Any]:
    """Numbers of one evaluation; what was not run is None and never zero. `accuracy` and `errors` are over decidable
    samples. `bounds` are over all: `low` counts calls that equal the recorded one, `high` all that are not known to be
    wrong; the official number lies between.
    """
    decidable = [row for row in rows if _decidable(row)]
    levels = {level: _numbers(some) for level, some in _grouped(rows, "level").items()}
    first = Counter(row["label"] for row in rows)
    return {
        **_numbers(rows),
        "levels": {str(level): levels.get(level) for level in (1, 2, 3)},
        "categories": {f"level {level}": numbers["accuracy"] for level, numbers in levels.items()},
        "apis": {api: _accuracy(some) for api, some in _grouped(decidable, "api").items()},
        "level3_samples": whole_tasks(rows),
        "undecided": dict(Counter(row["doubt"] for row in rows if row["doubt"])),
        "labels": {label: first[label] for label in OFFICIAL},
        "errors": {label: share(decidable, partial(_has_error, label)) for label in LABELS},
        "tool_not_listed": sum("tool_not_listed" in row["tags"] for row in rows),
        "not_computed": ["OUTPUT_MISMATCH", "KEY_ERROR", "exceptions of the database", "replies (ROUGE-L)"],
        "bands": {},
        "unseen_tool": None,
        "split": "API-Bank",
    }
