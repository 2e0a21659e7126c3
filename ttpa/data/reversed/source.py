"""`data=reversed`: questions written from calls. The `simulator` generator is the embedded world, the default data.

Writes four splits: `warmup` (demonstrations with the annotation defects of `ttpa.data.reversed.noise`), `explore`
(fresh questions with right targets), `validation` and `test` (unseen text values; `test` also unseen tools). Tools,
defect sites, validation and test questions depend on `world_seed` alone, so that runs of different seeds are judged on
the same questions; warm-up and exploration questions are drawn anew for each `seed`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttpa.data.reversed.noise import Noise, annotate
from ttpa.data.reversed.simulator import BANDS, band_at, draw_sample
from ttpa.data.reversed.world import NOUNS, VERBS, World, make_world
from ttpa.errors import ConfigError
from ttpa.records import Sample, dumps, write_jsonl


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
        world = self.world()
        if split in ("warmup", "explore"):
            size, mix = (
                (self.warmup_samples, self.warmup_mix)
                if split == "warmup"
                else (self.explore_samples, self.explore_mix)
            )
            bad = self.noise.sites(world, self.world_seed)
            for number in range(size):
                seed = f"{split}{self.seed}"
                sample = draw_sample(
                    world, seed=seed, split="train", number=number, band=band_at(seed, number, dict(mix))
                )
                if split == "warmup":
                    sample = annotate(
                        sample, bad, self.noise.probability, self.seed, counts if counts is not None else Counter()
                    )
                yield sample
            return
        per_band = self.validation_per_band if split == "validation" else self.test_per_band
        for band in BANDS:
            for number in range(per_band):
                yield draw_sample(world, seed=f"world{self.world_seed}", split=split, number=number, band=band)
        if split == "test":
            for number in range(self.test_unseen):
                yield draw_sample(
                    world, seed=f"world{self.world_seed}", split=split, number=number, band="easy", unseen=True
                )

    def build(self, out: Path) -> dict[str, Any]:
        """Writes the splits below `out` and returns counts; the same arguments write the same bytes."""
        counts: Counter[str] = Counter()
        names = ("warmup", "explore", "validation", "test")
        bands: dict[str, Counter[str]] = {name: Counter() for name in names}

        def counted(name: str) -> Iterator[Sample]:
            for sample in self.samples(name, counts):
                bands[name][sample.band] += 1
                yield sample

        sizes = {name: write_jsonl(out / f"{name}.jsonl", counted(name)) for name in names}
        (out / "splits.json").write_text(dumps({name: f"{name}.jsonl" for name in names}), encoding="utf-8")
        digest = hashlib.sha256()
        for name in names:
            digest.update((out / f"{name}.jsonl").read_bytes())
        changed = counts.pop("changed", 0)
        return {
            "samples": sizes,
            "bands": {name: {band: found[band] for band in BANDS} for name, found in bands.items()},
            "content_sha256": digest.hexdigest(),
            "misannotated_share": round(changed / sizes["warmup"], 4),
            "defects": dict(sorted(counts.items())),
        }
