"""What the evaluate stage asks of a benchmark: which samples are answered, whether an answer is right, and the summary.

An evaluation is an option of `conf/eval`. It never sees a policy: the stage renders, decodes greedily and parses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ttpa.records import Candidate, Sample

JudgedRow = dict[str, Any]
"""One judged answer. Every benchmark writes `id`, `cluster` (what intervals resample), `tags`, `exact`, `errors`,
`finish`, `tokens` and `text`, and what else its summary needs."""


class Dialogue(Protocol):
    """A conversation in which the policy speaks several times."""

    def sample(self) -> Sample | None:
        """What is to be answered next; None when the conversation is over."""

    def take(self, candidate: Candidate) -> None:
        """The answer to it."""

    def row(self) -> JudgedRow:
        """The judgement of the conversation, when it is over."""


class Evaluation(Protocol):
    """A benchmark. Who derives from it inherits the methods that have a body here."""

    max_new_tokens: int

    def check(self) -> None:
        """Raises ConfigError or DataError, before any work, where a file or a package is missing."""

    def identity(self) -> Mapping[str, Any]:
        """What lies on disk and decides the numbers, for the fingerprint."""
        return {}

    def samples(self, data: Path) -> list[Sample]:
        """What is answered; `data` is the folder of the run's data stage, for benchmarks on its own splits."""

    def dialogue(self, sample: Sample) -> Dialogue | None:
        """The conversation that a sample begins; None where one answer is looked at by `judge`."""
        return None

    def judge(self, sample: Sample, candidate: Candidate) -> JudgedRow:
        """Whether an answer is right. A candidate with `error="failed"` could not be had and is wrong."""

    def summarise(self, rows: Sequence[JudgedRow]) -> dict[str, Any]:
        """Numbers of the benchmark: at least `accuracy` and, by label, `errors`, each `{value, low, high, n}`."""

    def write(self, folder: Path, rows: Sequence[JudgedRow]) -> None:
        """Writes further files for the stage's folder, such as the layout of the official tool."""
