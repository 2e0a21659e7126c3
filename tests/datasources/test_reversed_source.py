"""The reversed source: what its splits hold, what keeps them apart, and that calls and questions say the same."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ttpa.calls.schema import check_call
from ttpa.data.reversed.noise import Noise
from ttpa.data.reversed.simulator import band_at, draw_sample
from ttpa.data.reversed.source import Reversed
from ttpa.data.reversed.world import KIND_OF, execute
from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.records import Sample
from ttpa.run import stages

SPLITS = ("warmup", "explore", "validation", "test")
CLEAN = Noise(share=0.0)


def source(**more: Any) -> Reversed:
    """The default world, with fewer questions."""
    settings: dict[str, Any] = {
        "generator": "simulator", "seed": 0, "world_seed": 0, "train_tools": 64, "unseen_tools": 6,
        "warmup_samples": 400, "warmup_mix": {"easy": 0.65, "medium": 0.21, "hard": 0.14},
        "explore_samples": 200, "explore_mix": {"easy": 0.4, "medium": 0.35, "hard": 0.25},
        "validation_per_band": 40, "test_per_band": 60, "test_unseen": 40,
    }  # fmt: skip
    return Reversed(**(settings | more))


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sample]]:
    """Every split, with right targets in the warm-up too."""
    made = source(warmup_samples=2500, noise=CLEAN)
    return {split: list(made.samples(split)) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(splits: dict[str, list[Sample]]) -> list[Sample]:
    return [sample for samples in splits.values() for sample in samples]


def question(sample: Sample) -> str:
    (message,) = sample.messages
    assert message.role == "user"
    return message.content


def held_values(samples: list[Sample]) -> set[tuple[str, str]]:
    """(parameter kind, value as text) of every argument whose values are split."""
    arguments = [item for sample in samples for call in sample.target for item in call.arguments.items()]
    return {(kind, str(value)) for kind, value in arguments if KIND_OF[kind].splittable}


def words(samples: list[Sample]) -> set[str]:
    """What questions say of kinds that are split, found without the targets."""
    said = r'\b[A-Z][a-z]+\b|"[^"]+"|\b[A-Z]{2}\d\d\b|\b20\d\d-\d\d-\d\d\b|worth \d+|under [\d.]+|ids \d+(?: and \d+)*'
    return {found for sample in samples for found in re.findall(said, question(sample))}


# ---- the same arguments, the same bytes -----------------------------------------------------------------------------


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    metrics = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        metrics.append(source().build(tmp_path / name))
    assert metrics[0] == metrics[1]
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two")}
    assert files["one"] == files["two"]


def test_the_bytes_are_those_of_the_data_stage_version(tmp_path: Path) -> None:
    """Changed questions under an unchanged version would be mixed with stages built from the old ones."""
    pinned = {1: "d63b537a9db963da"}
    assert source().build(tmp_path)["content_sha256"][:16] == pinned[stages.VERSIONS["data"]]


def test_another_seed_draws_other_training_questions_and_the_same_held_out_ones(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        source(seed=seed).build(tmp_path / str(seed))
    for split in SPLITS:
        first, second = ((tmp_path / seed / f"{split}.jsonl").read_bytes() for seed in ("0", "1"))
        assert (first == second) == (split in ("validation", "test"))


def test_another_world_seed_draws_other_held_out_questions() -> None:
    assert list(source().samples("test")) != list(source(world_seed=1).samples("test"))


@pytest.mark.parametrize("split", ["warmup", "explore"])
def test_a_sample_depends_on_seed_split_and_number_and_on_no_other_sample(split: str) -> None:
    few, many = source(**{f"{split}_samples": 20}), source(**{f"{split}_samples": 60})
    assert list(few.samples(split)) == list(many.samples(split))[:20]
    world = few.world()
    forward = [draw_sample(world, seed="s", split="train", number=n, band="easy") for n in range(5)]
    backward = [draw_sample(world, seed="s", split="train", number=n, band="easy") for n in reversed(range(5))]
    assert forward == backward[::-1]
    assert len({question(sample) for sample in forward}) == 5


def test_more_held_out_questions_keep_the_first_ones() -> None:
    few = {sample.id: sample for sample in source(test_per_band=5, test_unseen=3).samples("test")}
    many = {sample.id: sample for sample in source().samples("test")}
    assert few.items() <= many.items()


def test_the_splits_on_disk_are_those_drawn(tmp_path: Path) -> None:
    made = source()
    metrics = made.build(tmp_path)
    files = json.loads((tmp_path / "splits.json").read_text())
    assert tuple(files) == SPLITS
    for split, file in files.items():
        on_disk = [Sample.from_json(row) for row in read_jsonl(tmp_path / file)]
        assert on_disk == list(made.samples(split))
        assert metrics["samples"][split] == len(on_disk)


# ---- what a sample holds --------------------------------------------------------------------------------------------


def test_sizes_are_those_asked_for(splits: dict[str, list[Sample]]) -> None:
    assert {split: len(samples) for split, samples in splits.items()} == {
        "warmup": 2500, "explore": 200, "validation": 120, "test": 220}  # fmt: skip
    assert Counter(sample.band for sample in splits["validation"]) == {"easy": 40, "medium": 40, "hard": 40}
    assert sum("unseen_tool" in sample.tags for sample in splits["test"]) == 40


def test_bands_are_numbers_of_calls(everything: list[Sample]) -> None:
    assert {(sample.band, len(sample.target)) for sample in everything} == {("easy", 1), ("medium", 2), ("hard", 3)}


def test_bands_are_drawn_with_the_shares_asked_for(splits: dict[str, list[Sample]]) -> None:
    counts = Counter(sample.band for sample in splits["warmup"])
    for band, share in {"easy": 0.65, "medium": 0.21, "hard": 0.14}.items():
        assert counts[band] / 2500 == pytest.approx(share, abs=0.03)
    assert {band_at("s", number, {"easy": 0.0, "medium": 1.0, "hard": 0.0}) for number in range(100)} == {"medium"}


def test_ids_are_unique_over_all_splits(everything: list[Sample]) -> None:
    assert len({sample.id for sample in everything}) == len(everything)


def test_questions_of_training_splits_are_not_those_of_each_other(splits: dict[str, list[Sample]]) -> None:
    asked = {split: {question(sample) for sample in samples} for split, samples in splits.items()}
    for split in ("explore", "validation", "test"):
        assert len(asked["warmup"] & asked[split]) <= 2


def test_two_to_four_tools_are_offered_and_the_target_uses_different_ones(everything: list[Sample]) -> None:
    for sample in everything:
        names = [tool.name for tool in sample.tools]
        assert 2 <= len(names) <= 4
        assert len(set(names)) == len(names)
        used = [call.name for call in sample.target]
        assert len(set(used)) == len(used)
        assert set(used) <= set(names)


def test_used_tools_stand_anywhere_among_the_offered(splits: dict[str, list[Sample]]) -> None:
    easy = [sample for sample in splits["warmup"] if sample.band == "easy" and len(sample.tools) == 4]
    places = Counter([tool.name for tool in sample.tools].index(sample.target[0].name) for sample in easy)
    assert all(0.15 < places[place] / len(easy) < 0.35 for place in range(4))


def test_every_target_runs_in_the_world_and_fits_the_offered_tools(everything: list[Sample]) -> None:
    tools = source().world().by_name()
    for sample in everything:
        for call in sample.target:
            assert not check_call(call, sample.tools)
            assert execute(call, tools)["status"] == "ok"


def test_every_argument_is_said_in_the_question_and_nothing_else_is(everything: list[Sample]) -> None:
    for sample in everything:
        parts = question(sample).split(", then ")
        assert len(parts) == len(sample.target)
        for part, call in zip(parts, sample.target, strict=True):
            verb, noun = call.name.split("_")
            rest = re.sub(rf"^{verb} {noun}\b", "", part)
            assert rest != part
            for key, value in call.arguments.items():
                shown = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
                if isinstance(value, bool):
                    shown = "urgent" if value else "not urgent"
                lead = " (?:in|for|by|called|saying|code|on|at|worth|under|tagged|ids)"
                clause = rf'(?:{lead})? "?{re.escape(shown)}"?(?: times| mode)?'
                clauses = rf"(?<!not){clause}(?= |$)" if value is True else rf"{clause}(?= |$)"
                assert re.search(clauses, rest), f"{key}={value!r} is not said in {part!r}"
                rest = re.sub(clauses, "", rest, count=1)
            assert not rest.strip(), f"{part!r} says more than its call"


def test_tool_names_never_stand_in_a_question(everything: list[Sample]) -> None:
    names = set(source().world().by_name())
    assert not [sample.id for sample in everything if any(name in question(sample) for name in names)]
    assert not [sample.id for sample in everything if "_" in question(sample)]


# ---- what keeps the splits apart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_held_out_values_never_occur_in_training_targets(splits: dict[str, list[Sample]], held_out: str) -> None:
    values = held_values(splits[held_out])
    assert len({kind for kind, _ in values}) == sum(kind.splittable for kind in KIND_OF.values())
    assert not values & held_values([*splits["warmup"], *splits["explore"]])
    other = "test" if held_out == "validation" else "validation"
    assert not values & held_values(splits[other])


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_held_out_words_never_occur_in_training_questions(splits: dict[str, list[Sample]], held_out: str) -> None:
    said = words(splits[held_out])
    assert len(said) > 100
    assert not said & words([*splits["warmup"], *splits["explore"]])


def test_unseen_tools_occur_in_unseen_test_questions_alone(splits: dict[str, list[Sample]]) -> None:
    unseen = {tool.spec.name for tool in source().world().unseen}
    assert len(unseen) == 6
    for split, samples in splits.items():
        for sample in samples:
            offered = {tool.name for tool in sample.tools}
            if "unseen_tool" in sample.tags:
                assert split == "test"
                assert {call.name for call in sample.target} <= unseen
                assert not (offered - {call.name for call in sample.target}) & unseen
            else:
                assert not offered & unseen


def test_every_unseen_tool_is_asked_for(splits: dict[str, list[Sample]]) -> None:
    asked = {call.name for sample in splits["test"] if "unseen_tool" in sample.tags for call in sample.target}
    assert asked == {tool.spec.name for tool in source().world().unseen}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generator", "gpt", r"data\.generator=gpt: .*Use simulator"),
        ("warmup_samples", 0, r"data\.warmup_samples=0: .*at least 1"),
        ("explore_samples", -1, r"data\.explore_samples=-1: .*at least 1"),
        ("validation_per_band", 0, r"data\.validation_per_band=0: .*at least 1"),
        ("test_per_band", 0, r"data\.test_per_band=0: .*at least 1"),
        ("train_tools", 3, r"data\.train_tools=3: .*at least 4"),
        ("train_tools", 91, r"data\.train_tools=91: more than 96 tools"),
        ("unseen_tools", 0, r"data\.test_unseen=40: .*Set data\.unseen_tools"),
        ("warmup_mix", {"easy": 0.5, "medium": 0.2, "hard": 0.2}, r"data\.warmup_mix=.*sum to 1"),
        ("explore_mix", {"easy": 0.5, "medium": 0.5}, r"data\.explore_mix=.*easy, medium and hard"),
        ("warmup_mix", {"easy": 1.5, "medium": -0.5, "hard": 0.0}, r"data\.warmup_mix=.*sum to 1"),
        ("warmup_mix", {"easy": float("nan"), "medium": 0.5, "hard": 0.5}, r"data\.warmup_mix=.*sum to 1"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_by_name(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        source(**{key: value})


def test_a_world_without_unseen_tools_has_no_unseen_questions() -> None:
    samples = list(source(unseen_tools=0, test_unseen=0).samples("test"))
    assert len(samples) == 180
    assert not any(sample.tags for sample in samples)


def test_the_smallest_world_can_be_drawn() -> None:
    samples = list(source(train_tools=4, unseen_tools=1).samples("explore"))
    assert all(2 <= len(sample.tools) <= 4 for sample in samples)
