"""`eval=apibank`: API-Bank (Li et al. 2023, arXiv 2304.08244), levels 1 to 3, call accuracy without its database.

Every recorded call of a dialogue is one sample: given what was said before, write this call. Answers are decoded
greedily with the training renderer. `files` reads the published layouts, `values` types and normalises arguments,
`rules` judges (and says which part of the official rule cannot be computed here), `summary` makes the numbers.

What this package does not do: run APIs on API-Bank's database, score the replies in words (ROUGE-L), or plan a level 3
task freely; each of its calls is predicted from the true history, as in the published instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.benchmarks.apibank.files import FORMATS, LEVELS, read_samples, sources_of
from ttpa.benchmarks.apibank.rules import RULES, judge
from ttpa.benchmarks.apibank.summary import summarise
from ttpa.data.rows import file_digest
from ttpa.errors import ConfigError
from ttpa.records import Candidate, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class APIBank:
    """Evaluation on API-Bank.

    Args:
        path: Folder with the files that `ttpa.benchmarks.apibank.files` lists.
        max_new_tokens: Longest answer, in tokens.
        levels: Which of 1 (call), 2 (search, then call) and 3 (plan, search, call).
        format: "dialogues", "instances", or "auto": per level instances where they lie, otherwise dialogues.
        rule: "official", as far as it can be computed, or "toolrl": same name and equal arguments.
        limit: Evaluate the first samples of every level only; None evaluates all.

    Raises:
        ConfigError: an unknown level, format or rule, or a value below 1.
    """

    path: str
    max_new_tokens: int
    levels: Sequence[int] = LEVELS
    format: str = "auto"
    rule: str = "official"
    limit: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError.at("eval.path", self.path, "must be text", "Give the folder of the API-Bank files")
        levels = self.levels if isinstance(self.levels, Sequence) and not isinstance(self.levels, str) else ()
        wrong = [level for level in levels if type(level) is not int or level not in LEVELS]
        if not levels or wrong or len(set(levels)) < len(levels):
            raise ConfigError.at("eval.levels", self.levels, "must be different levels of 1, 2, 3", "Use [1,2,3]")
        for key, allowed in (("format", FORMATS), ("rule", RULES)):
            if getattr(self, key) not in allowed:
                raise ConfigError.at(f"eval.{key}", getattr(self, key), "unknown", f"Use {' or '.join(allowed)}")
        for key in ("max_new_tokens", "limit"):
            value = getattr(self, key)
            if not (type(value) is int and value > 0) and not (key == "limit" and value is None):
                raise ConfigError.at(f"eval.{key}", value, "must be at least 1", "eval.limit=null evaluates all")

    def check(self) -> None:
        """Refuses a folder without the files of a level.

        Raises:
            ConfigError: names the folder and what belongs there.
        """
        self._sources()

    def identity(self) -> Mapping[str, Any]:
        """The content of the files that are read, instead of their folder."""
        files = [file for source in self._sources().values() for file in source.files]
        return {"path": [[file.name, file_digest(file)] for file in dict.fromkeys(files)]}

    def samples(self, data: Path) -> list[Sample]:
        """One sample a recorded call, levels in the order of the option; the run's own data is not used.

        Raises:
            ConfigError: as `check`.
            DataError: a row that is not of the published form; names file and line.
        """
        found = []
        for source in self._sources().values():
            found += read_samples(source)[: self.limit]
        return found

    def dialogue(self, sample: Sample) -> None:
        """Every recorded call is predicted once, from the true history."""

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """See `ttpa.benchmarks.apibank.rules.judge`."""
        return judge(sample, candidate, self.rule)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `ttpa.benchmarks.apibank.summary.summarise`."""
        return {**summarise(rows), "rule": self.rule, "format": self._formats()}

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """There is no other layout."""

    def _sources(self) -> dict[int, Any]:
        return sources_of(Path(self.path).expanduser(), self.levels, self.format)

    def _formats(self) -> dict[str, str]:
        try:
            return {str(level): source.format for level, source in self._sources().items()}
        except ConfigError:  # the files were moved away after the answers were judged
            return {}


__all__ = ["APIBank"]
