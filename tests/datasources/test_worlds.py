"""The pretraining data of the embedded base model: what its tools share with the world of runs."""

from collections import Counter

import pytest

from tests.options import made
from tests.sources import drawn, noise
from ttpa.data.reversed.world import KINDS, NOUNS, VERBS, make_world, split_of_value
from ttpa.records import Sample


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return drawn(made("data", "worlds", seed=0, warmup_samples=1500, noise=noise(share=0.0)), "warmup")


def test_no_tool_of_a_run_is_among_them_though_its_words_are(samples: list[Sample]) -> None:
    names = Counter(tool.name for sample in samples for tool in sample.tools)
    runs = {f"{verb}_{noun}" for verb in VERBS for noun in NOUNS}
    assert len(runs) == 96
    assert {tool.name for tool in sum(make_world(world_seed=3, train_tools=90, unseen_tools=6), ())} <= runs
    assert not runs & names.keys()
    assert len(names) > 2500
    words = {word for name in names for word in name.split("_")}
    assert {*VERBS, *NOUNS} <= words


def test_a_question_says_each_argument_in_a_way_of_its_own(samples: list[Sample]) -> None:
    """Two parameters of a tool never share a phrase, so that one answer is right; see `draw_tools`."""
    for sample in samples:
        for tool in sample.tools:
            for kind in KINDS:
                both = {kind.name, kind.synonym} <= tool.properties.keys()
                assert not both or kind.type == "boolean"
        text = sample.messages[0].content
        for call in sample.target:
            for key, value in call.arguments.items():
                said = [key] if isinstance(value, bool) else value if isinstance(value, list) else [value]
                assert all(str(one) in text for one in said), (text, call)


def test_names_come_from_signatures_and_not_from_habit(samples: list[Sample]) -> None:
    """A clause of a known kind stands for its name or its synonym, and a fifth of the names are made up."""
    keys = Counter(key for sample in samples for call in sample.target for key in call.arguments)
    for kind in KINDS:
        assert 0.15 < keys[kind.synonym] / (keys[kind.name] + keys[kind.synonym]) < 0.5
    known = sum(keys[name] for kind in KINDS for name in (kind.name, kind.synonym))
    assert 0.4 < known / keys.total() < 0.75


def test_values_are_those_of_the_training_split(samples: list[Sample]) -> None:
    split = ("city", "person", "title", "code", "date")
    calls = [call for sample in samples for call in sample.target]
    strings = [value for call in calls for key, value in call.arguments.items() if key in split]
    assert len(strings) > 300
    assert {split_of_value(value) for value in strings} == {"train"}


def test_the_same_seed_gives_the_same_samples_and_another_one_others(samples: list[Sample]) -> None:
    again = drawn(made("data", "worlds", seed=0, warmup_samples=20, noise=noise(share=0.0)), "warmup")
    other = drawn(made("data", "worlds", seed=1, warmup_samples=20, noise=noise(share=0.0)), "warmup")
    assert again == samples[:20]
    assert not {str(sample.tools) for sample in other} & {str(sample.tools) for sample in samples}
