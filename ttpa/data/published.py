"""What sources over published sets share: read rows, turn each into samples or say why not, split, write."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ttpa.calls.schema import Steps, call_problems
from ttpa.data.bands import BANDS, Bands
from ttpa.data.layouts import layout_of
from ttpa.data.rows import CUT, SUFFIXES, BadRow, data_files, file_digest, is_hub_id, need, read_rows
from ttpa.data.source import ComputeWaves, compute_here, limited, stable_unit, write_splits
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, write_jsonl
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


def _off_schema(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """The first problem of each target that breaks the schema of its own tools."""
    steps = Steps()
    for sample in samples:
        tools = {tool.name: tool for tool in sample.tools}
        problems = chain.from_iterable(call_problems(call, tools[call.name], steps) for call in sample.target)
        for problem in islice(problems, 1):
            yield {"id": sample.id, "kind": problem.kind, "problem": problem.explanation}


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
        counts, reasons, seen = Counter[str](), Counter[str](), set[str]()
        splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
        rejected, off_schema, pairs = list[dict[str, Any]](), list[dict[str, Any]](), list[Record]()
        for row in islice(read_rows(self.path), self.max_rows):
            counts["read"] += 1
            try:
                if isinstance(row.value, BadRow):
                    raise row.value
                converted = self.convert(row.value)
                if (exported := read_facts(row.value, converted.samples)) is not None:
                    key = exported[0].id if exported else converted.key
                    converted = converted._replace(key=key, samples=exported)
                parts = (*converted.samples, *converted.pairs)
                need(all(map(_writable, parts)), "not text", "holds half of a surrogate pair")
            except BadRow as problem:
                reasons[problem.args[0]] += 1
                kept = {"row": dict(row.value)} if isinstance(row.value, Mapping) and _writable(row.value) else {}
                rejected.append({"file": row.file, "line": row.line, "reason": str(problem)} | kept)
                continue
            if converted.key in seen:
                counts["duplicate"] += 1
                continue
            seen.add(converted.key)
            counts["without_call_turn"] += not converted.samples
            counts["repaired"] += converted.repaired
            name = split_of_opening(converted.opening, self.split_seed, self.validation_fraction, self.test_fraction)
            splits[name] += converted.samples
            pairs += converted.pairs
            place = {"file": row.file, "line": row.line}
            off_schema += (place | problem for problem in _off_schema(converted.samples))
        write_jsonl(out / "rejected.jsonl", rejected)
        self._judge(counts["read"], reasons, rejected, out / "rejected.jsonl")
        write_jsonl(out / "off_schema.jsonl", off_schema)
        if not counts["read"]:
            raise DataError(f"data.path={self.path}: no row is in it. Set data.path to a file or folder with rows.")
        if not splits["train"]:
            raise DataError(
                f"data.path={self.path}: {counts['read']} rows gave no train sample ({counts['without_call_turn']} "
                "have no call turn). Raise data.max_rows, lower the held-out fractions, or set data.text_turns=true."
            )
        if pairs:
            write_jsonl(out / "pairs.jsonl", pairs)
        splits = {name: limited(samples, self.limit) for name, samples in splits.items()}
        lines = {f"{name}.jsonl": [dumps(one.to_json()) for one in samples] for name, samples in splits.items()}
        bands = {name: Counter(sample.band for sample in samples) for name, samples in splits.items()}
        kinds = Counter(sample.kind for samples in splits.values() for sample in samples)
        return {
            **{f"rows_{what}": counts[what] for what in ("read", "duplicate", "without_call_turn", "repaired")},
            "rows_rejected": len(rejected),
            "rejected": dict(reasons.most_common()),
            "targets_off_schema": len(off_schema),
            "off_schema": dict(Counter(one["kind"] for one in off_schema).most_common()),
            "samples": {name: len(lines[file]) for name, file in SPLITS.items()},
            "bands": {name: {band: number[band] for band in BANDS} for name, number in bands.items()},
            "kinds": {kind: kinds[kind] for kind in ("call", "text")},
            "content_sha256": write_splits(out, lines, SPLITS),
        }

    def _judge(self, read: int, reasons: Counter[str], rejected: list[dict[str, Any]], file: Path) -> None:
        too_many = len(rejected) > self.max_bad_fraction * read
        layouts = Counter(layout_of(entry["row"]) for entry in rejected if "row" in entry)
        (layout, reader), seen = next(iter(layouts.most_common(1)), (("", ""), 0))
        if too_many and layout and seen > read / 2 and reader != f"data={type(self).__name__.lower()}":
            raise DataError(
                f"data.path={self.path}: this looks like {layout}. That is read by {reader}. {len(rejected)} of {read} "
                f"rows are rejected, first {rejected[0]['file']}:{rejected[0]['line']}: {rejected[0]['reason']}."
            )
        if too_many or (reasons[CUT] and self.max_bad_fraction < 1):
            kinds = ", ".join(f"{kind} {count}" for kind, count in reasons.most_common())
            first = "; ".join(f"{entry['file']}:{entry['line']}: {entry['reason']}" for entry in rejected[:3])
            why = f"more than data.max_bad_fraction={self.max_bad_fraction}" if too_many else "and a file is cut short"
            raise DataError(
                f"data.path={self.path}: {len(rejected)} of {read} rows rejected, {why}. By reason: {kinds}. "
                f"First: {first}. All are in {file}. Repair or remove them, fetch cut files again, or raise "
                "data.max_bad_fraction."
            )
