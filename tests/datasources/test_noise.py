"""Annotation defects: where they show, in which proportions, and that nothing but the warm-up targets is touched."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sources import drawn, noise, reversed_source
from ttpa.data.reversed.noise import FAMILIES, annotate, spoil_call
from ttpa.data.reversed.world import KIND_OF, make_world
from ttpa.errors import ConfigError
from ttpa.records import Sample, ToolCall

WORLD = make_world(world_seed=0, train_tools=64, unseen_tools=6)
CLEAN = reversed_source(noise=noise(share=0.0))
ALL_BAD = reversed_source(noise=noise(share=1.0, probability=1.0))


def spoil(family: str, key: str, arguments: dict[str, Any], probability: float = 1.0) -> dict[str, Any]:
    """What a bad site of one family does to a call; a defect is counted where it changes something."""
    call, counts = ToolCall(name="f", arguments=arguments), Counter[str]()
    made = dict(spoil_call(call, {("f", key): family}, probability, random.Random(0), counts).arguments)
    assert counts[family] == (made != arguments)
    return made


def test_only_targets_and_tags_of_the_warmup_split_are_touched_and_counted(tmp_path: Path) -> None:
    for split in ("explore", "validation", "test"):
        assert drawn(ALL_BAD, split) == drawn(CLEAN, split)
    source = reversed_source()
    pairs = list(zip(drawn(CLEAN, "warmup"), drawn(source, "warmup"), strict=True))
    assert all(replace(after, target=before.target, tags=before.tags) == before for before, after in pairs)
    changed = [after for before, after in pairs if before.target != after.target]
    assert changed and changed == [after for _, after in pairs if "misannotated" in after.tags]
    metrics = source.build(tmp_path)
    assert metrics["misannotated_share"] == round(len(changed) / 300, 4)
    bands = Counter(sample.band for sample in changed)
    assert {band: metrics["defects"][f"changed_{band}"] for band in bands} == bands
    assert drawn(reversed_source(noise=noise(probability=0.0)), "warmup") == drawn(CLEAN, "warmup")


def test_no_good_site_is_touched_and_every_family_shows() -> None:
    always, shown = noise(probability=1.0), set()
    bad = always.sites(WORLD, 0)
    for before, after in zip(drawn(CLEAN, "warmup"), drawn(reversed_source(noise=always), "warmup"), strict=True):
        for right, wrong in zip(before.target, after.target, strict=True):
            for key, value in right.arguments.items():
                if wrong.arguments.get(key) != value:
                    shown.add(bad[right.name, key])
    assert shown == set(FAMILIES)


def test_defects_depend_on_seed_and_sample_and_bad_sites_on_the_world_alone() -> None:
    call = ToolCall(name="f", arguments={"date": "2031-02-03"})
    sample = Sample(id="a", tools=(), messages=(), source="toy", target=(call,) * 30)
    one, again, two = (annotate(sample, {("f", "date"): "date_order"}, 0.5, seed, Counter()) for seed in (0, 0, 1))
    assert one == again != two and len({call.arguments["date"] for call in one.target}) == 2
    assert annotate(replace(sample, id="b"), {("f", "date"): "date_order"}, 0.5, 0, Counter()).target != one.target
    assert noise().sites(WORLD, 0) == noise(probability=0.1).sites(WORLD, 0) != noise().sites(WORLD, 1)


def test_three_in_ten_demonstrations_are_changed_mostly_in_values_then_names_then_dropped(tmp_path: Path) -> None:
    metrics = reversed_source(warmup_samples=3000).build(tmp_path)
    assert 0.27 < metrics["misannotated_share"] < 0.33
    shown = {family: metrics["defects"][family] for family in FAMILIES}
    total = sum(shown.values())
    names, dropped = shown["wrong_name"] / total, shown["dropped"] / total
    assert 0.2 < names < 0.4 and 0.05 < dropped < 0.2 and 0.5 < 1 - names - dropped < 0.65 and all(shown.values())


def test_the_share_of_bad_sites_is_exact_and_a_larger_share_keeps_those_of_a_smaller_one() -> None:
    before: dict[tuple[str, str], str] = {}
    for share in (0.0, 0.16, 0.5, 1.0):
        bad = noise(share=share).sites(WORLD, 0)
        assert len(bad) == round(share * len(WORLD.sites)) and before.items() <= bad.items()
        before = bad


def test_scope_kind_marks_a_kind_wherever_it_occurs() -> None:
    bad = noise(share=0.2, scope="kind").sites(WORLD, 0)
    kinds = {key for _, key in bad}
    assert len(kinds) == 3 and bad.keys() == {site for site in WORLD.sites if site[1] in kinds}
    assert len({(key, family) for (_, key), family in bad.items()}) == 3  # one family a kind


def test_a_site_has_a_family_that_can_show_there_and_a_weight() -> None:
    sites = WORLD.sites
    for site, family in noise(share=1.0).sites(WORLD, 0).items():
        kind = KIND_OF[site[1]]
        can = {
            "wrong_name": True, "truncated": kind.name in ("title", "note", "tags", "ids"),
            "neighbour_value": kind.type == "string", "number_as_text": kind.type in ("integer", "number"),
            "default_value": kind.default is not None, "date_order": kind.name == "date",
            "dropped": not sites[site],
        }  # fmt: skip
        assert can[family], f"{site}: {family}"
    only = noise(share=1.0, weights={"dropped": 1.0}).sites(WORLD, 0)
    assert set(only.values()) == {"dropped", "wrong_name"}  # a required parameter cannot be dropped


@pytest.mark.parametrize(("family", "key", "arguments", "expected"), [
    ("wrong_name", "city", {"city": "Bana", "count": 3}, {"town": "Bana", "count": 3}),
    ("truncated", "title", {"title": "ba do ki"}, {"title": "ba do"}),
    ("truncated", "ids", {"ids": [1, 2, 3]}, {"ids": [1, 2]}),
    ("neighbour_value", "city", {"city": "Bana", "n": 3, "person": "Kizo"}, {"city": "Kizo", "n": 3, "person": "Kizo"}),
    ("neighbour_value", "city", {"city": "Bana", "count": 3}, {"city": "Bana", "count": 3}),
    ("number_as_text", "count", {"count": 3}, {"count": "3"}),
    ("default_value", "amount", {"amount": 512}, {"amount": 100}),
    ("default_value", "amount", {"amount": "512"}, {"amount": "100"}),
    ("date_order", "date", {"date": "2031-02-03"}, {"date": "03-02-2031"}),
    ("dropped", "count", {"city": "Bana", "count": 3}, {"city": "Bana"}),
])  # fmt: skip
def test_families_by_example(family: str, key: str, arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    made = spoil(family, key, arguments)
    assert made == expected
    assert {key: type(value) for key, value in made.items()} == {key: type(value) for key, value in expected.items()}
    assert list(made) == list(expected)
    assert spoil(family, key, arguments, probability=0.0) == arguments


@pytest.mark.parametrize(("settings", "said"), [
    ({"probability": float("nan")}, "^probability=nan: "), ({"scope": "tool"}, "^scope='tool': .*'site' or 'kind'"),
    ({"weights": {"typo": 1.0}}, r"^weights=\['typo'\]: .*wrong_name"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        noise(**settings)
