"""Data sources: where rows come from, and what becomes of them.

`DataSource` is the protocol every `data=` option fulfils. `FileSource` is what the sources over published sets share:
read rows, turn each into samples or say why not, split, write. A subclass supplies one method, `convert`.

What this module does not do: read files (`ttpa.data.rows`), know the layout of any set (`ttpa.data.toolace`,
`ttpa.data.xlam`), pick samples (`ttpa.explore.select`) or render prompts (`ttpa.prompts`). The data stage of the pipeline
calls it.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ttpa.data.bands import BANDS, PAPER, Bands
from ttpa.data.rows import CUT, SUFFIXES, BadRow, Row, data_files, file_digest, is_hub_id, read_rows
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, write_jsonl
from ttpa.records import Sample, ToolSpec
from ttpa.run.waves import Executor, LocalExecutor

SPLITS = {"warmup": "train.jsonl", "explore": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: valid in JSON escapes, but UTF-8 cannot write it

Progress = Callable[[int, int], None]
"""Told how many samples are behind, and of how many."""

HERE = LocalExecutor()


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@runtime_checkable
class DataSource(Protocol):
    """A `data=` option. Instances are frozen and hold nothing but their configuration."""

    def check(self) -> None:
        """Finds out cheaply whether `build` can start.

        Raises:
            ConfigError: it cannot; names the key, its value and the remedy.
        """

    def identity(self) -> dict[str, Any]:
        """What decides the samples beyond the settings, as keys that replace settings of the same name."""

    def build(self, out: Path, executor: Executor = HERE, progress: Progress = silent) -> dict[str, Any]:
        """Writes the splits below `out` and returns counts as plain JSON values.

        The files are JSON lines of `Sample`; `splits.json` maps warmup, explore, validation and test to file names.

        Args:
            out: An existing folder, empty or with what a killed attempt of the same source left.
            executor: Where samples are made, if that is more than reading; it changes no byte of what is written.
            progress: Told about samples that are made.

        Raises:
            DataError: the data cannot be read or made.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a row became: a `key` equal for rows of equal content, its first user message, and its samples.

    `repaired` says that damage in the published text was undone to read it.
    """

    key: str
    opening: str
    samples: tuple[Sample, ...]
    repaired: bool = False


def content_key(*parts: Any) -> str:
    """Sixteen hexadecimal digits naming a content; equal for equal content wherever the row stands."""
    return hashlib.sha256(dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def unique_tools(tools: Iterable[ToolSpec]) -> tuple[ToolSpec, ...]:
    """The tools in order, equal repetitions dropped.

    Raises:
        BadRow: two different tools share a name, so that a call of that name means neither.
    """
    seen: dict[str, ToolSpec] = {}
    for tool in tools:
        if seen.setdefault(tool.name, tool) != tool:
            raise BadRow("ambiguous tool name", f"two different tools are named {tool.name!r}")
    return tuple(seen.values())


def split_of(opening: str, split_seed: int, validation_fraction: float, test_fraction: float) -> str:
    """The split ("train", "validation" or "test") of a dialogue, from its first user message alone.

    A hash, not a shuffle: a row keeps its split when rows are added, removed or reordered. Dialogues that open alike
    (case and spacing aside) go the same way: published sets repeat questions over different tool lists, and near-copies
    on both sides of a split would make held-out numbers too good.

    Example:
        >>> split_of("Weather in  Paris?", 0, 0.3, 0.3) == split_of("weather in paris?", 0, 0.3, 0.3)
        True
    """
    cluster = hashlib.sha256(" ".join(opening.split()).casefold().encode("utf-8", "surrogatepass")).hexdigest()
    place = int.from_bytes(hashlib.sha256(f"{split_seed}:{cluster}".encode()).digest()[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def _writable(value: Any) -> bool:
    try:
        return not _HALF_PAIR.search(json.dumps(value, ensure_ascii=False))  # `dumps` would escape it
    except TypeError:  # a column of dates or bytes
        return False


class _Tally:
    """Counts of one build, and the rejected rows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []

    def reject(self, row: Row, problem: BadRow) -> None:
        self.reasons[problem.kind] += 1
        entry: dict[str, Any] = {"file": row.file, "line": row.line, "reason": str(problem)}
        if row.value is not None and _writable(row.value):
            entry["row"] = dict(row.value)
        self.rejected.append(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource(ABC):
    """A source over a published set, in files or on the hub.

    Args:
        path: A file, a folder of data files, or a hub id "organisation/name".
        split_seed: Seed of the hash that splits dialogues.
        validation_fraction, test_fraction: Expected shares of the held-out splits; may be 0.
        max_bad_fraction: Share of rejected rows above which the build stops.
        max_rows: Read only that many rows; None reads all.
        text_turns: Also make samples of replies without a call.
        bands: Thresholds of the difficulty bands.

    Raises:
        ConfigError: a value that cannot be used; names key, value and remedy.
    """

    path: str
    split_seed: int = 20251120
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    max_bad_fraction: float = 0.02
    max_rows: int | None = None
    text_turns: bool = False
    bands: Bands = PAPER

    def __post_init__(self) -> None:
        def need(key: str, holds: bool, problem: str, remedy: str) -> None:
            if not holds:
                raise ConfigError.at(f"data.{key}", getattr(self, key), problem, remedy)

        need("path", isinstance(self.path, str) and bool(self.path), "must be text", "Give a file, folder or hub id")
        need("split_seed", type(self.split_seed) is int, "must be a whole number", "Use for example 20251120")
        for key in ("validation_fraction", "test_fraction", "max_bad_fraction"):
            share = getattr(self, key)
            need(key, type(share) in (int, float) and 0 <= share <= 1, "must be from 0 to 1", "Use for example 0.05")
        problem = f"leaves no train rows beside data.test_fraction={self.test_fraction}"
        need("validation_fraction", self.validation_fraction + self.test_fraction < 1, problem, "Keep the sum below 1")
        rows = self.max_rows
        need("max_rows", rows is None or (type(rows) is int and rows > 0), "must be null or at least 1", "Use null")
        need("text_turns", isinstance(self.text_turns, bool), "must be true or false", "Use false")
        remedy = "Leave it out, or give it _target_: ttpa.data.bands.Bands"
        need("bands", isinstance(self.bands, Bands), "must be thresholds of the bands", remedy)

    @abstractmethod
    def convert(self, row: Mapping[str, Any]) -> Converted:
        """Turns a row into samples.

        Raises:
            BadRow: the row does not follow the published layout, or its calls do not fit its tools.
        """

    def check(self) -> None:
        """See `DataSource.check`. A hub id is only looked at by `build`: asking the hub is not cheap."""
        if is_hub_id(self.path):
            return
        path, kinds = Path(self.path).expanduser(), ", ".join(SUFFIXES)
        problem = "" if path.exists() else "no such file or folder"
        if not problem and not path.is_dir() and not path.name.endswith(SUFFIXES):
            problem = f"its name ends in none of {kinds}"
        if not problem and not any(file.stat().st_size for file in data_files(path)):
            problem = f"the folder holds no file with data ({kinds})" if path.is_dir() else "the file is empty"
        if problem:
            remedy = "Set data.path to a downloaded file or folder, or to a hub id such as Team-ACE/ToolACE"
            raise ConfigError.at("data.path", self.path, problem, remedy)

    def identity(self) -> dict[str, Any]:
        """The content of local files instead of their path: an edited file is other data, a moved one is not."""
        if is_hub_id(self.path):
            return {}
        files = data_files(Path(self.path).expanduser())
        return {"path": [[file.name, file_digest(file)] for file in files]}

    def build(self, out: Path, executor: Executor = HERE, progress: Progress = silent) -> dict[str, Any]:
        """See `DataSource.build`; reads in this process and reports no progress.

        Also writes `rejected.jsonl`: file, line, reason and, where there is one, the row.

        Returns:
            rows_read, rows_duplicate (equal content, dropped), rows_without_call_turn (good, but gave no sample),
            rows_repaired (of those kept), rows_rejected with `rejected` by reason, `samples` by split (warmup and
            explore are the same train rows), `bands` by file, `kinds` over all, and `content_sha256` over the written
            samples.

        Raises:
            ConfigError: as `check`.
            DataError: more than `max_bad_fraction` of the rows are rejected, a file is cut (which hides an unknown
                number of rows; accepted only with max_bad_fraction=1), or no train sample is left. `rejected.jsonl`
                is written first, the splits are not.
        """
        self.check()
        tally = _Tally()
        splits = self._read(tally)
        write_jsonl(out / "rejected.jsonl", tally.rejected)
        self._judge(tally, splits, out / "rejected.jsonl")
        digest = hashlib.sha256()
        for name, samples in splits.items():
            write_jsonl(out / f"{name}.jsonl", samples)
            digest.update((out / f"{name}.jsonl").read_bytes())
        (out / "splits.json").write_text(dumps(SPLITS) + "\n", encoding="utf-8")
        return self._metrics(tally, splits) | {"content_sha256": digest.hexdigest()}

    def _metrics(self, tally: _Tally, splits: Mapping[str, list[Sample]]) -> dict[str, Any]:
        bands = {name: Counter(sample.band for sample in samples) for name, samples in splits.items()}
        kinds = Counter(sample.kind for samples in splits.values() for sample in samples)
        return {
            "rows_read": tally.counts["rows"],
            "rows_duplicate": tally.counts["duplicate"],
            "rows_without_call_turn": tally.counts["without_call_turn"],
            "rows_repaired": tally.counts["repaired"],
            "rows_rejected": len(tally.rejected),
            "rejected": dict(tally.reasons.most_common()),
            "samples": {name: len(splits[file.removesuffix(".jsonl")]) for name, file in SPLITS.items()},
            "bands": {name: {band: count[band] for band in BANDS} for name, count in bands.items()},
            "kinds": {kind: kinds[kind] for kind in ("call", "text")},
        }

    def _read(self, tally: _Tally) -> dict[str, list[Sample]]:
        splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
        seen: set[str] = set()
        for row in read_rows(self.path):
            if tally.counts["rows"] == self.max_rows:
                break
            tally.counts["rows"] += 1
            try:
                if row.problem is not None or row.value is None:
                    raise row.problem or BadRow("not an object", "the row is empty")
                converted = self.convert(row.value)
                if not all(_writable(sample.to_json()) for sample in converted.samples):
                    raise BadRow("not text", "holds half of a surrogate pair")
            except BadRow as problem:
                tally.reject(row, problem)
                continue
            if converted.key in seen:
                tally.counts["duplicate"] += 1
                continue
            seen.add(converted.key)
            tally.counts["without_call_turn"] += not converted.samples
            tally.counts["repaired"] += converted.repaired
            name = split_of(converted.opening, self.split_seed, self.validation_fraction, self.test_fraction)
            splits[name].extend(converted.samples)
        return splits

    def _judge(self, tally: _Tally, splits: Mapping[str, list[Sample]], rejected: Path) -> None:
        rows, bad = tally.counts["rows"], len(tally.rejected)
        too_many = bad > self.max_bad_fraction * rows
        if too_many or (tally.reasons[CUT] and self.max_bad_fraction < 1):
            reasons = ", ".join(f"{kind} {count}" for kind, count in tally.reasons.most_common())
            first = "; ".join(f"{entry['file']}:{entry['line']}: {entry['reason']}" for entry in tally.rejected[:3])
            why = f"more than data.max_bad_fraction={self.max_bad_fraction}" if too_many else "and a file is cut short"
            raise DataError(
                f"data.path={self.path}: {bad} of {rows} rows rejected, {why}. By reason: {reasons}. First: {first}. "
                f"All are in {rejected}. Repair or remove them, fetch cut files again, or raise data.max_bad_fraction."
            )
        if not splits["train"]:
            raise DataError(
                f"data.path={self.path}: {rows} rows gave no train sample ({tally.counts['without_call_turn']} "
                "have no call turn). Raise data.max_rows, lower the held-out fractions, or set data.text_turns=true."
            )
