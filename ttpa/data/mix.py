"""`data=mix`: several sources in one, with weights."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ttpa.data.published import FileSource, content_key
from ttpa.data.source import ComputeWaves, compute_here, limited, stable_unit, write_splits
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.options import Count, Positive, option

SPLITS = ("warmup", "explore", "validation", "test")
_SHARED = ("split_seed", "validation_fraction", "test_fraction")


class _Place(NamedTuple):
    """Where a sample stands: its turn in the mix, its source, and the byte at which its line begins."""

    turn: float
    source: str
    file: str
    start: int
    band: str
    kind: str


@option
class Mix:
    """A mix. `weights` (source -> number) are how many train samples of each it has, relative to the others: as many as
    there can be without repeating one. Without weights it has all. Validation and test samples are all kept.
    """

    sources: dict[str, Any]
    weights: dict[str, Positive]
    seed: int
    limit: Count | None

    def __post_init__(self) -> None:
        if not self.sources:
            problem, remedy = "names no source", "For example data@data.sources.first=xlam"
            raise ConfigError.at("sources", self.sources, problem, remedy)
        if self.weights and self.weights.keys() != self.sources.keys():
            problem = f"must name exactly {', '.join(self.sources)}"
            raise ConfigError.at("weights", self.weights, problem, "Give each source a weight, or none")
        files = [one for one in self.sources.values() if isinstance(one, FileSource)]
        for key in _SHARED:
            found = {getattr(one, key) for one in files}
            if len(found) > 1:
                problem = "differ, so a question could be in train here and in test there"
                raise ConfigError.at(f"sources.*.{key}", sorted(found), problem, "Give all sources the same")

    def check(self) -> None:
        """See `DataSource.check`."""
        for name, source in self.sources.items():
            try:
                source.check()
            except ConfigError as error:
                text = str(error).replace("data.", f"data.sources.{name}.", 1)
                raise ConfigError(text) from None

    def identity(self) -> dict[str, Any]:
        """The content of the local files of each source in place of their paths."""
        return {"sources": {name: source.identity() for name, source in self.sources.items()}}

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """See `DataSource.build`. Ids get the name of the source in front; a sample that an earlier source has, too, is
        left out and counted.
        """
        made = dict[str, dict[str, Any]]()
        for name, source in self.sources.items():
            folder = out / "sources" / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                made[name] = source.build(folder, compute)
            except DataError as error:
                raise DataError(f"data.sources.{name}: {error}") from None
        listed = {name: json.loads((out / "sources" / name / "splits.json").read_text()) for name in self.sources}
        together = all(one["warmup"] == one["explore"] for one in listed.values())
        wanted = [split for split in SPLITS if not (together and split == "explore")]
        counts, kept, lines = Counter[str](), dict[str, list[_Place]](), dict[str, Iterator[str]]()
        names = {split: f"{split}.jsonl" for split in wanted} | ({"explore": "warmup.jsonl"} if together else {})
        for split in wanted:
            kept[split] = self._places(out, listed, split, counts)
            lines[names[split]] = _lines(kept[split])
        if not kept["warmup"]:
            raise DataError("data.sources: no train sample is left. Give more data.")
        digest = write_splits(out, lines, names)
        return {
            "rows_rejected": sum(one.get("rows_rejected", 0) for one in made.values()),
            "samples": {split: len(kept[split]) for split in wanted},
            "samples_of": {split: dict(Counter(place.source for place in kept[split])) for split in wanted},
            "bands": {split: dict(Counter(place.band for place in kept[split])) for split in wanted},
            "kinds": {
                kind: sum(place.kind == kind for some in kept.values() for place in some) for kind in ("call", "text")
            },
            "duplicates_between_sources": counts["duplicate"],
            "sources": made,
            "content_sha256": digest,
        }

    def _places(
        self, out: Path, listed: Mapping[str, Mapping[str, str]], split: str, counts: Counter[str]
    ) -> list[_Place]:
        seen, by_source = set[str](), dict[str, list[_Place]]()
        for name in self.sources:
            file, mine, start = out / "sources" / name / listed[name][split], list[_Place](), 0
            with file.open("rb") as stream:
                for line in stream:
                    row = json.loads(line)
                    key = content_key(*(row.get(part) for part in ("tools", "messages", "target", "target_text")))
                    if key in seen:
                        counts["duplicate"] += 1
                    else:
                        kind = "text" if row["target"] == "[]" else "call"
                        turn = stable_unit(self.seed, name, row["id"])
                        mine.append(_Place(turn, name, str(file), start, row["band"], kind))
                    seen.add(key)
                    start += len(line)
            by_source[name] = sorted(mine)
        if self.weights and split in ("warmup", "explore"):
            most = min(len(by_source[name]) / weight for name, weight in self.weights.items())
            by_source = {name: mine[: round(most * self.weights[name])] for name, mine in by_source.items()}
        return limited(sorted(place for mine in by_source.values() for place in mine), self.limit)


def _lines(places: list[_Place]) -> Iterator[str]:
    """The samples of some places, in their order, with the name of the source before their ids."""
    with ExitStack() as opened:
        files = {file: opened.enter_context(open(file, "rb")) for file in {place.file for place in places}}
        for place in places:
            files[place.file].seek(place.start)
            row = json.loads(files[place.file].readline())
            row["id"] = f"{place.source}.{row['id']}"
            row["dialogue_id"] = f"{place.source}.{row['dialogue_id']}" if row.get("dialogue_id") else ""
            yield dumps(row)
