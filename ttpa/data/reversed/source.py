"""`data=reversed`: questions written from calls of the embedded world, the default data.

Tools, defect sites and held-out questions depend on `world_seed` alone, so that all seeds are judged on the same
questions. Samples are gathered in `drawn.jsonl`, from which a killed build goes on.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ttpa.data.reversed.noise import Noise, annotate
from ttpa.data.reversed.world import BANDS, NOUNS, VERBS, World, band_at, draw_sample, make_world
from ttpa.data.source import ComputeWaves, Work, compute_here, limited, write_splits
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
    """The data source over the embedded world; conf/data/reversed.yaml says what each value means."""

    generator: Literal["simulator", "openai", "policy"]
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
        if self.generator != "simulator":
            problem = "writes with a language model, which has an option file of its own"
            raise ConfigError.at("generator", self.generator, problem, f"Type data=reversed_{self.generator}")
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

    def check(self) -> None: ...  # nothing lies on disk

    def identity(self) -> dict[str, Any]:
        return {}

    def work(self) -> Work:
        """What makes a wave of items into rows: the line of the split's file, and how often each defect showed."""
        world = make_world(world_seed=self.world_seed, train_tools=self.train_tools, unseen_tools=self.unseen_tools)
        bad = self.noise.sites(world, self.world_seed)

        def draw(item: Item) -> dict[str, Any]:
            split, number, band, unseen = item
            training, counts = split in ("warmup", "explore"), Counter[str]()
            seed, values = (f"{split}{self.seed}", "train") if training else (f"world{self.world_seed}", split)
            sample = self.draw(world, seed=seed, split=values, number=number, band=band, unseen=unseen)
            if split == "warmup":
                sample = annotate(sample, bad, self.noise.probability, self.seed, counts)
            return {"id": item.id, "line": dumps(sample.to_json()), "defects": counts}

        return lambda wave: list(map(draw, wave))

    def draw(self, world: World, **place: Any) -> Sample:
        """The sample at a place; see `draw_sample`."""
        return draw_sample(world, **place)

    def items(self, split: str) -> list[Item]:
        """The items of a split, in the order of its file."""
        if split in ("warmup", "explore"):
            count, mix = getattr(self, f"{split}_samples"), getattr(self, f"{split}_mix")
            return [Item(split, number, band_at(f"{split}{self.seed}", number, mix)) for number in range(count)]
        per_band, unseen = (self.test_per_band, self.test_unseen) if split == "test" else (self.validation_per_band, 0)
        items = [Item(split, number, band) for band in BANDS for number in range(per_band)]
        return items + [Item(split, number, "easy", True) for number in range(unseen)]

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """See `DataSource.build`; the same settings write the same bytes."""
        items = {name: limited(self.items(name), self.limit) for name in SPLITS}
        drawn = out / "drawn.jsonl"
        every = [item for name in SPLITS for item in items[name]]
        failed = compute(drawn, [every[at : at + WAVE] for at in range(0, len(every), WAVE)], self.work)
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
