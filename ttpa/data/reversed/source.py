"""`data=reversed`: questions written from calls of the embedded world, the default data.

Writes four splits: `warmup` (demonstrations with the defects of `ttpa.data.reversed.noise`), `explore` (fresh questions
with right targets), `validation` and `test` (unseen text values; `test` also unseen tools). Tools, defect sites and
held-out questions depend on `world_seed` alone, so that runs of different seeds are judged on the same questions.
Samples are computed in waves and gathered in `drawn.jsonl`, from which a killed build goes on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ttpa.data.reversed.noise import Noise, annotate
from ttpa.data.reversed.world import BANDS, NOUNS, VERBS, World, band_at, draw_sample, make_world
from ttpa.data.source import ComputeWaves, compute_here, limited, write_splits
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, read_jsonl
from ttpa.options import Count, Index, option
from ttpa.records import Sample

SPLITS = ("warmup", "explore", "validation", "test")
WAVE = 500  # samples: some tenths of a second of work. No result depends on it.


class Item(NamedTuple):
    """What a sample is drawn from, beside the settings of the source."""

    split: str
    number: int
    band: str
    unseen: bool = False

    @property
    def id(self) -> str:
        return f"{self.split}-{self.band}{'-unseen' if self.unseen else ''}-{self.number}"


@option
class Reversed:
    """The reversed-synthetic data source over the embedded world.

    Args:
        generator: Who plays the roles; "simulator" needs no model.
        seed: Draws warm-up and exploration questions and the places where defects show.
        world_seed: Draws tools, bad sites, validation and test questions.
        train_tools, unseen_tools: Number of tools; at most 96 together.
        warmup_mix, explore_mix: Share of easy, medium and hard questions; each must sum to 1.
        noise: Annotation defects of the warm-up split.
        limit: Most samples of each split, evenly spaced; None keeps all.
    """

    generator: Literal["simulator"]
    seed: int
    world_seed: int
    train_tools: Annotated[int, Field(ge=4)]  # a prompt offers up to 4
    unseen_tools: Index
    warmup_samples: Count
    explore_samples: Count
    warmup_mix: dict[str, float]
    explore_mix: dict[str, float]
    validation_per_band: Count
    test_per_band: Count
    test_unseen: Index
    noise: Noise
    limit: Count | None

    def __post_init__(self) -> None:
        most = len(VERBS) * len(NOUNS)
        if self.train_tools + self.unseen_tools > most:
            problem = f"more than {most} tools with unseen_tools={self.unseen_tools}"
            raise ConfigError.at("train_tools", self.train_tools, problem, f"Keep the sum at or below {most}")
        if self.test_unseen and not self.unseen_tools:
            raise ConfigError.at("test_unseen", self.test_unseen, "needs unseen tools", "Set data.unseen_tools")
        for key, mix in {"warmup_mix": self.warmup_mix, "explore_mix": self.explore_mix}.items():
            if set(mix) != set(BANDS) or not min(mix.values()) >= 0 or not abs(sum(mix.values()) - 1) < 1e-6:
                problem, remedy = "must be shares of easy, medium and hard that sum to 1", "See conf/data/reversed.yaml"
                raise ConfigError.at(key, mix, problem, remedy)

    def check(self) -> None:
        """There is nothing to look for on disk."""

    def identity(self) -> dict[str, Any]:
        return {}

    def world(self) -> World:
        """The tools of this configuration."""
        return make_world(world_seed=self.world_seed, train_tools=self.train_tools, unseen_tools=self.unseen_tools)

    def samples(self, split: str) -> Iterator[Sample]:
        """Draws a split: warmup, explore, validation or test."""
        draw = _Draw(self)
        return (draw.sample(item)[0] for item in self.items(split))

    def items(self, split: str) -> Iterator[Item]:
        """The items of a split, in the order of its file."""
        if split in ("warmup", "explore"):
            mix = dict(self.warmup_mix if split == "warmup" else self.explore_mix)
            for number in range(self.warmup_samples if split == "warmup" else self.explore_samples):
                yield Item(split, number, band_at(f"{split}{self.seed}", number, mix))
            return
        numbers = range(self.validation_per_band if split == "validation" else self.test_per_band)
        yield from (Item(split, number, band) for band in BANDS for number in numbers)
        yield from (Item(split, number, "easy", True) for number in range(self.test_unseen if split == "test" else 0))

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """See `DataSource.build`; the same settings write the same bytes."""
        items = {name: limited(list(self.items(name)), self.limit) for name in SPLITS}
        drawn = out / "drawn.jsonl"
        every = [item for name in SPLITS for item in items[name]]
        failed = compute(drawn, [every[at : at + WAVE] for at in range(0, len(every), WAVE)], partial(_Draw, self))
        if failed:
            raise DataError(f"{out}: {len(failed)} samples cannot be drawn, first {failed[0]}. See errors.jsonl there.")
        rows = {row["id"]: row for row in read_jsonl(drawn)}
        counts = sum((Counter(row["defects"]) for row in rows.values()), Counter[str]())
        files = {name: f"{name}.jsonl" for name in SPLITS}
        lines = {files[name]: [rows[item.id]["line"] for item in items[name]] for name in SPLITS}
        digest = write_splits(out, lines, files)
        drawn.unlink()
        changed = counts.pop("changed", 0)
        bands = {name: Counter(item.band for item in items[name]) for name in SPLITS}
        return {
            "samples": {name: len(items[name]) for name in SPLITS},
            "bands": {name: {band: number[band] for band in BANDS} for name, number in bands.items()},
            "content_sha256": digest,
            "misannotated_share": round(changed / len(items["warmup"]), 4),
            "defects": dict(sorted(counts.items())),
        }


class _Draw:
    """Draws the samples of one source, in any order; it makes the world and its bad sites once."""

    def __init__(self, source: Reversed) -> None:
        self.source, self.world = source, source.world()
        self.bad = source.noise.sites(self.world, source.world_seed)

    def __call__(self, wave: Sequence[Item]) -> list[dict[str, Any]]:
        """Rows that hold the finished line of the split's file, and how often each defect showed."""
        made = [(item, *self.sample(item)) for item in wave]
        return [{"id": item.id, "line": dumps(sample.to_json()), "defects": defects} for item, sample, defects in made]

    def sample(self, item: Item) -> tuple[Sample, Counter[str]]:
        source, counts = self.source, Counter[str]()
        training = item.split in ("warmup", "explore")
        seed = f"{item.split}{source.seed}" if training else f"world{source.world_seed}"
        split = "train" if training else item.split
        sample = draw_sample(self.world, seed=seed, split=split, number=item.number, band=item.band, unseen=item.unseen)
        if item.split == "warmup":
            sample = annotate(sample, self.bad, source.noise.probability, source.seed, counts)
        return sample, counts
