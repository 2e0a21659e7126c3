"""What sources over published sets share: read rows, turn each into samples or say why not, split, write."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated, Any, NamedTuple

from pydantic import Field

from ttpa.calls.schema import Steps, call_problems
from ttpa.data.augment import Augment
from ttpa.data.bands import BANDS, Bands
from ttpa.data.layouts import layout_of
from ttpa.data.rows import CUT, SUFFIXES, BadRow, RawRow, data_files, file_digest, is_hub_id, need, read_rows
from ttpa.data.source import ComputeWaves, compute_here, limited_places, stable_unit, write_splits
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, write_lines
from ttpa.options import Count, Fraction, option
from ttpa.records import Message, Record, Sample, ToolCall, ToolSpec

SPLITS = {"warmup": "train.jsonl", "explore": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}


class Converted(NamedTuple):
    """What a row became: a `key` equal for rows of equal content, its first user message, its samples, and whether
    damage in the published text was undone to read it. `pairs` are records about the samples, for `pairs.jsonl`.
    """

    key: str
    opening: str
    samples: tuple[Sample, ...]
    repaired: bool = False
    split: str = ""
    pairs: tuple[Record, ...] = ()


def content_key(*parts: Any) -> str:
    """Sixteen hexadecimal digits, equal for equal content wherever the row stands."""
    return hashlib.sha256(dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_facts(row: Mapping[str, Any], samples: Sequence[Sample]) -> tuple[Sample, ...] | None:
    """Of the samples of a row that `ttpa export` wrote the last turn alone, with what it was called and its tags; None
    for other rows.
    """
    known = row.get("ttpa")
    if not isinstance(known, dict):
        return None
    texts: dict[str, Any] = {key: known.get(key) for key in ("id", "dialogue_id", "source", "band")}
    tags = known.get("tags") or []
    whole = all(isinstance(one, str) for one in (*texts.values(), *tags))
    need(whole, "column ttpa", "holds something else than `ttpa export` writes; leave the column out")
    last = [one for one in samples[-1:] if one.kind == known.get("kind")]
    return tuple(replace(one, **texts, tags=tuple(tags)) for one in last)


def unique_tools(tools: Iterable[ToolSpec]) -> dict[str, ToolSpec]:
    """The tools by name, in order, equal repetitions dropped; BadRow where two different tools share a name."""
    seen: dict[str, ToolSpec] = {}
    for tool in tools:
        same = seen.setdefault(tool.name, tool) == tool
        need(same, "ambiguous tool name", f"two different tools are named {tool.name!r}")
    return seen


def split_of_opening(opening: str, split_seed: int, validation_fraction: float, test_fraction: float) -> str:
    """The split (train, validation or test) of a dialogue, by a hash of its first user message: a row keeps its split
    when others are added or removed. Dialogues that open alike (case and spacing aside) share one, since near-copies on
    both sides would make held-out numbers too good.
    """
    cluster = hashlib.sha256(" ".join(opening.split()).casefold().encode("utf-8", "surrogatepass")).hexdigest()
    unit = stable_unit(f"{split_seed}:{cluster}")
    if unit < test_fraction:
        return "test"
    return "validation" if unit < test_fraction + validation_fraction else "train"


def _writable(value: Any) -> bool:
    try:
        json.dumps(value.to_json() if isinstance(value, Record) else value, ensure_ascii=False).encode()
    except (TypeError, ValueError):  # half of a surrogate pair, or no JSON
        return False
    return True


def _line(sample: Record) -> str:
    """The record as a line; BadRow where half of a surrogate pair, which has no UTF-8, or no JSON is in it."""
    try:
        line = json.dumps(sample.to_json(), ensure_ascii=False, separators=(",", ":"))
        line.encode()
    except (TypeError, ValueError):
        raise BadRow("not text", "holds half of a surrogate pair") from None
    return line


def _off_schema(samples: Iterable[Sample], steps: Steps) -> Iterator[dict[str, Any]]:
    """The first problem of each target that breaks the schema of its own tools."""
    for sample in samples:
        tools = {tool.name: tool for tool in sample.tools}
        problems = chain.from_iterable(call_problems(call, tools[call.name], steps) for call in sample.target)
        for problem in islice(problems, 1):
            yield {"id": sample.id, "kind": problem.kind, "problem": problem.explanation}


SPOOLS = ("train", "validation", "test", "rejected", "off_schema", "pairs")


@dataclass
class _Found:
    """What is counted while rows are read; the rows themselves go to disk. `kinds` are band and kind of each sample."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    layouts: Counter[tuple[str, str]] = field(default_factory=Counter)
    off_schema: Counter[str] = field(default_factory=Counter)
    augmented: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)
    first: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {name: [] for name in SPOOLS[:3]})
    known: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)


def _spooled(spool: IO[str], places: Sequence[int] | None = None) -> Iterator[str]:
    """The lines of a spool, all or those at ascending places."""
    spool.seek(0)
    wanted = iter(range(1 << 62) if places is None else places)
    place = next(wanted, -1)
    for number, line in enumerate(spool):
        if number == place:
            yield line[:-1]
            place = next(wanted, -1)


@option
class FileSource(ABC):
    """A source over a published set, in files or on the hub; conf/published_data.yaml says what each value means."""

    path: Annotated[str, Field(min_length=1)]
    split_seed: int
    validation_fraction: Fraction
    test_fraction: Fraction
    max_bad_fraction: Fraction
    max_rows: Count | None
    text_turns: bool
    bands: Bands
    augment: Augment
    limit: Count | None

    def __post_init__(self) -> None:
        if self.validation_fraction + self.test_fraction >= 1:
            problem = f"leaves no train rows beside test_fraction={self.test_fraction}"
            raise ConfigError.at("validation_fraction", self.validation_fraction, problem, "Keep the sum below 1")

    @abstractmethod
    def convert(self, row: Mapping[str, Any]) -> Converted:
        """Turns a row into samples; BadRow where it breaks the published layout or its calls do not fit its tools."""

    def sample(
        self, id: str, tools: Mapping[str, ToolSpec], said: Iterable[Message], calls: tuple[ToolCall, ...], text: str
    ) -> Sample:
        """The sample `source-key` or `source-key-turn`; `text` is the right reply where no call is."""
        source, key = id.split("-")[:2]
        return Sample(
            id=id,
            dialogue_id=f"{source}-{key}",
            source=source,
            band=self.bands.band(tuple(tools.values()), calls),
            tools=tuple(tools.values()),
            messages=tuple(said),
            target=calls,
            target_text=None if calls else text,
        )

    def check(self) -> None:
        """See `DataSource.check`. A hub id is only looked at by `build`: asking the hub is not cheap."""
        if is_hub_id(self.path):
            return
        path, kinds = Path(self.path).expanduser(), ", ".join(SUFFIXES)
        if not path.exists():
            problem = "no such file or folder"
        elif not path.is_dir() and not path.name.endswith(SUFFIXES):
            problem = f"its name ends in none of {kinds}"
        elif not any(file.stat().st_size for file in data_files(path)):
            problem = f"the folder holds no file with data ({kinds})" if path.is_dir() else "the file is empty"
        else:
            return
        remedy = "Set data.path to a downloaded file or folder, or to a hub id such as Team-ACE/ToolACE"
        raise ConfigError.at("data.path", self.path, problem, remedy)

    def identity(self) -> dict[str, Any]:
        """The content of local files instead of their path: an edited file is other data, a moved one is not."""
        if is_hub_id(self.path):
            return {}
        files = data_files(Path(self.path).expanduser())
        return {"path": [[file.name, file_digest(file)] for file in files]}

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """See `DataSource.build`; writes `rejected.jsonl` first. DataError: more than `max_bad_fraction` of the rows
        are rejected, a file is cut (which hides an unknown number of rows; accepted only with max_bad_fraction=1), or
        no train sample is left.
        """
        self.check()
        found = _Found()
        with ExitStack() as spools:
            opened = {name: spools.enter_context(TemporaryFile("w+", dir=out, encoding="utf-8")) for name in SPOOLS}
            for row in islice(read_rows(self.path), self.max_rows):
                self._take(row, found, opened)
            write_lines(out / "rejected.jsonl", _spooled(opened["rejected"]))
            self._judge(found, out / "rejected.jsonl")
            write_lines(out / "off_schema.jsonl", _spooled(opened["off_schema"]))
            counts, kinds = found.counts, found.kinds
            if not counts["read"]:
                raise DataError(f"data.path={self.path}: no row is in it. Set data.path to a file or folder with rows.")
            if not kinds["train"]:
                raise DataError(
                    f"data.path={self.path}: {counts['read']} rows gave no train sample ({counts['without_call_turn']} "
                    "have no call turn). Raise data.max_rows, lower the held-out fractions, or set "
                    "data.text_turns=true."
                )
            places = {name: list(limited_places(len(kinds[name]), self.limit)) for name in kinds}
            lines = {f"{name}.jsonl": _spooled(opened[name], places[name]) for name in kinds}
            if opened["pairs"].tell():
                write_lines(out / "pairs.jsonl", _spooled(opened["pairs"]))
            digest = write_splits(out, lines, SPLITS)
        kept = {name: [kinds[name][place] for place in places[name]] for name in kinds}
        bands = {name: Counter(band for band, _ in some) for name, some in kept.items()}
        calls = Counter(kind for some in kept.values() for _, kind in some)
        return {
            **{f"rows_{what}": counts[what] for what in ("read", "duplicate", "without_call_turn", "repaired")},
            "rows_rejected": found.reasons.total(),
            "rejected": dict(found.reasons.most_common()),
            "targets_off_schema": found.off_schema.total(),
            "off_schema": dict(found.off_schema.most_common()),
            "samples": {name: len(kept[file.removesuffix(".jsonl")]) for name, file in SPLITS.items()},
            "bands": {name: {band: number[band] for band in BANDS} for name, number in bands.items()},
            "kinds": {kind: calls[kind] for kind in ("call", "text")},
            **({"augmented": dict(found.augmented)} if found.augmented else {}),
            "content_sha256": digest,
        }

    def samples_of(self, row: RawRow) -> Converted:
        """The samples of a row, augmented; BadRow where it cannot be used, which names the layout that it has."""
        if isinstance(row.value, BadRow):
            raise row.value
        value: Mapping[str, Any] = row.value
        try:
            converted = self.convert(value)
        except BadRow as problem:
            layout, reader = layout_of(value)
            if not layout or reader == self.option_name:
                raise
            raise BadRow("other layout", f"this looks like {layout}, read by {reader} ({problem})") from None
        if (exported := read_facts(value, converted.samples)) is not None:
            converted = converted._replace(key=exported[0].id if exported else converted.key, samples=exported)
        split = split_of_opening(converted.opening, self.split_seed, self.validation_fraction, self.test_fraction)
        if not converted.pairs:  # which name their samples
            made = (self.augment.apply(sample, split == "train") for sample in converted.samples)
            converted = converted._replace(samples=tuple(chain.from_iterable(made)))
        return converted._replace(split=split)

    def _take(self, row: RawRow, found: "_Found", opened: Mapping[str, IO[str]]) -> None:
        """Puts the samples of one row behind those before it, or its reason to the rejected ones."""
        counts = found.counts
        counts["read"] += 1
        try:
            converted = self.samples_of(row)
            lines = list(map(_line, converted.samples))
            pairs = list(map(_line, converted.pairs))
        except BadRow as problem:
            kept = {"row": dict(row.value)} if isinstance(row.value, Mapping) and _writable(row.value) else {}
            entry = {"file": row.file, "line": row.line, "reason": str(problem)}
            found.reasons[problem.args[0]] += 1
            found.layouts[layout_of(kept["row"]) if kept else ("", "")] += 1
            found.first += [entry] if len(found.first) < 3 else []
            opened["rejected"].write(dumps(entry | kept) + "\n")
            return
        if converted.key in found.seen:
            counts["duplicate"] += 1
            return
        found.seen.add(converted.key)
        counts["without_call_turn"] += not converted.samples
        counts["repaired"] += converted.repaired
        for sample, line in zip(converted.samples, lines, strict=True):
            opened[converted.split].write(line + "\n")
            found.kinds[converted.split].append(found.known.setdefault(kind := (sample.band, sample.kind), kind))
            found.augmented.update(set(sample.tags) & {"masked", "irrelevance"})
        opened["pairs"].writelines(f"{pair}\n" for pair in pairs)
        for broken in _off_schema(converted.samples, Steps()):
            found.off_schema[broken["kind"]] += 1
            opened["off_schema"].write(dumps({"file": row.file, "line": row.line} | broken) + "\n")

    @property
    def option_name(self) -> str:
        """The option that makes this source, as `data=xlam`."""
        return "pairs=given" if getattr(self, "holds_pairs", False) else f"data={type(self).__name__.lower()}"

    def _judge(self, found: "_Found", file: Path) -> None:
        read, rejected, first = found.counts["read"], found.reasons.total(), found.first
        too_many = rejected > self.max_bad_fraction * read
        (layout, reader), seen = next(iter(found.layouts.most_common(1)), (("", ""), 0))
        if too_many and layout and seen > read / 2 and reader != self.option_name:
            raise DataError(
                f"data.path={self.path}: this looks like {layout}. That is read by {reader}. {rejected} of {read} "
                f"rows are rejected, first {first[0]['file']}:{first[0]['line']}: {first[0]['reason']}."
            )
        if too_many or (found.reasons[CUT] and self.max_bad_fraction < 1):
            kinds = ", ".join(f"{kind} {count}" for kind, count in found.reasons.most_common())
            told = "; ".join(f"{entry['file']}:{entry['line']}: {entry['reason']}" for entry in first)
            why = f"more than data.max_bad_fraction={self.max_bad_fraction}" if too_many else "and a file is cut short"
            raise DataError(
                f"data.path={self.path}: {rejected} of {read} rows rejected, {why}. By reason: {kinds}. "
                f"First: {told}. All are in {file}. Repair or remove them, fetch cut files again, or raise "
                "data.max_bad_fraction."
            )
