"""`data=reversed`: questions written from calls. The `simulator` generator is the embedded world, the default data.

Writes four splits: `warmup` (demonstrations with the annotation defects of `ttpa.data.reversed.noise`), `explore`
(fresh questions with right targets), `validation` and `test` (unseen text values; `test` also unseen tools). Tools,
defect sites, validation and test questions depend on `world_seed` alone, so that runs of different seeds are judged on
the same questions; warm-up and exploration questions are drawn anew for each `seed`.

Samples are made in waves (`ttpa.run.waves.run_waves`), wherever the executor computes, and gathered in `drawn.jsonl`, from
which a killed build goes on; the splits are written from it at the end, in their own order, and it is removed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from ttpa.data.reversed.noise import Noise, annotate
from ttpa.data.reversed.simulator import BANDS, band_at, draw_sample
from ttpa.data.reversed.world import NOUNS, VERBS, World, make_world
from ttpa.data.source import HERE, Progress, silent
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Sample
from ttpa.run.waves import Executor, Shard, run_waves

SPLITS = ("warmup", "explore", "validation", "test")
WAVE = 500
"""Samples of a wave: some tenths of a second of work. No result depends on it."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a sample is drawn from, beside the settings of the source."""

    split: str
    number: int
    band: str
    unseen: bool = False

    @property
    def id(self) -> str:
        return f"{self.split}-{self.band}{'-unseen' if self.unseen else ''}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversed:
    """The reversed-synthetic data source over the embedded world.

    Args:
        generator: Who plays the roles; "simulator" needs no model.
        seed: Draws warm-up and exploration questions and the places where defects show.
        world_seed: Draws tools, bad sites, validation and test questions.
        train_tools, unseen_tools: Number of tools; at most 96 together.
        warmup_samples, explore_samples: Questions of the two training splits.
        warmup_mix, explore_mix: Share of easy, medium and hard questions; each must sum to 1.
        validation_per_band, test_per_band, test_unseen: Held-out questions.
        noise: Annotation defects of the warm-up split.

    Raises:
        ConfigError: an unknown generator, a count below 1, too many tools, or shares that do not sum to 1.
    """

    generator: str
    seed: int
    world_seed: int
    train_tools: int
    unseen_tools: int
    warmup_samples: int
    explore_samples: int
    warmup_mix: Mapping[str, float]
    explore_mix: Mapping[str, float]
    validation_per_band: int
    test_per_band: int
    test_unseen: int
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        if self.generator != "simulator":
            raise ConfigError.at("data.generator", self.generator, "unknown generator", "Use simulator")
        for key in ("warmup_samples", "explore_samples", "validation_per_band", "test_per_band"):
            if getattr(self, key) < 1:
                raise ConfigError.at(f"data.{key}", getattr(self, key), "must be at least 1", "Give a positive number")
        if self.train_tools < 4:
            raise ConfigError.at(
                "data.train_tools", self.train_tools, "a prompt offers up to 4 tools", "Use at least 4"
            )
        most = len(VERBS) * len(NOUNS)
        if self.train_tools + self.unseen_tools > most:
            raise ConfigError.at(
                "data.train_tools",
                self.train_tools,
                f"more than {most} tools with data.unseen_tools={self.unseen_tools}",
                f"Keep the sum at or below {most}",
            )
        if self.test_unseen and self.unseen_tools < 1:
            raise ConfigError.at("data.test_unseen", self.test_unseen, "needs unseen tools", "Set data.unseen_tools")
        for key in ("warmup_mix", "explore_mix"):
            mix = getattr(self, key)
            if set(mix) != set(BANDS) or not min(mix.values()) >= 0 or not abs(sum(mix.values()) - 1) < 1e-6:
                raise ConfigError.at(
                    f"data.{key}",
                    dict(mix),
                    "must be shares of easy, medium and hard that sum to 1",
                    "For example {easy: 0.5, medium: 0.3, hard: 0.2}",
                )

    def check(self) -> None:
        """Nothing to look for on disk."""

    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know beyond the settings: nothing."""
        return {}

    def world(self) -> World:
        """The tools of this configuration."""
        return make_world(world_seed=self.world_seed, train_tools=self.train_tools, unseen_tools=self.unseen_tools)

    def samples(self, split: str, counts: Counter[str] | None = None) -> Iterator[Sample]:
        """Draws a split: warmup, explore, validation or test. `counts` collects what the defects did."""
        drawing = _Drawing(self)
        for item in self.items(split):
            sample, defects = drawing.sample(item)
            if counts is not None:
                counts.update(defects)
            yield sample

    def items(self, split: str) -> Iterator[Item]:
        """The items of a split, in the order of its file."""
        if split in ("warmup", "explore"):
            mix = dict(self.warmup_mix if split == "warmup" else self.explore_mix)
            for number in range(self.warmup_samples if split == "warmup" else self.explore_samples):
                yield Item(split, number, band_at(f"{split}{self.seed}", number, mix))
            return
        for band in BANDS:
            for number in range(self.validation_per_band if split == "validation" else self.test_per_band):
                yield Item(split, number, band)
        for number in range(self.test_unseen if split == "test" else 0):
            yield Item(split, number, "easy", unseen=True)

    def build(self, out: Path, executor: Executor = HERE, progress: Progress = silent) -> dict[str, Any]:
        """See `DataSource.build`; the same arguments write the same bytes.

        Raises:
            DataError: a sample cannot be drawn: a bug, since nothing outside this package enters.
        """
        items = {name: list(self.items(name)) for name in SPLITS}
        everything = [item for name in SPLITS for item in items[name]]
        shard = Shard(out / "drawn.jsonl")
        failed = run_waves(
            everything,
            attrgetter("id"),
            [everything[start : start + WAVE] for start in range(0, len(everything), WAVE)],
            partial(_Drawing, self),
            executor,
            shard,
            lambda done, total, _: progress(done, total),
        )
        if failed:
            raise DataError(f"{out}: {len(failed)} samples cannot be drawn, first {failed[0]}. See errors.jsonl there.")
        lines, counts = dict[str, str](), Counter[str]()
        for row in shard.rows():
            lines[row["id"]] = row["line"]
            counts.update(row["defects"])
        digest = hashlib.sha256()
        for name in SPLITS:
            with (out / f"{name}.jsonl").open("wb") as file:
                for item in items[name]:
                    line = f"{lines[item.id]}\n".encode()
                    file.write(line)
                    digest.update(line)
        (out / "splits.json").write_text(dumps({name: f"{name}.jsonl" for name in SPLITS}), encoding="utf-8")
        shard.path.unlink()
        changed = counts.pop("changed", 0)
        bands = {name: Counter(item.band for item in items[name]) for name in SPLITS}
        return {
            "samples": {name: len(items[name]) for name in SPLITS},
            "bands": {name: {band: found[band] for band in BANDS} for name, found in bands.items()},
            "content_sha256": digest.hexdigest(),
            "misannotated_share": round(changed / self.warmup_samples, 4),
            "defects": dict(sorted(counts.items())),
        }


class _Drawing:
    """Draws the samples of one source, in any order; the world and its bad sites are made once."""

    def __init__(self, source: Reversed) -> None:
        self.source, self.world = source, source.world()
        self.bad = source.noise.sites(self.world, source.world_seed)

    def __call__(self, wave: Sequence[Item]) -> list[dict[str, Any]]:
        """Rows with the line of the split's file ready: as an object it would be parsed and written once more."""
        made = [(item, *self.sample(item)) for item in wave]
        return [{"id": item.id, "line": dumps(sample.to_json()), "defects": defects} for item, sample, defects in made]

    def sample(self, item: Item) -> tuple[Sample, Counter[str]]:
        """The sample, and how often each defect showed in it."""
        source, counts = self.source, Counter[str]()
        training = item.split in ("warmup", "explore")
        sample = draw_sample(
            self.world,
            seed=f"{item.split}{source.seed}" if training else f"world{source.world_seed}",
            split="train" if training else item.split,
            number=item.number,
            band=item.band,
            unseen=item.unseen,
        )
        if item.split == "warmup":
            sample = annotate(sample, self.bad, source.noise.probability, source.seed, counts)
        return sample, counts
