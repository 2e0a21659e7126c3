"""Independent samples: what the sampler asks of the engine, and what it makes of the answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import ScriptedEngine, encode
from ttpa.errors import ConfigError
from ttpa.explore.group import GroupSampler
from ttpa.explore.sampler import Drawn, Sampler, Task
from ttpa.policy.engine import Sampling


def group(**fields: Any) -> GroupSampler:
    return GroupSampler(**{"n": 3, "max_new_tokens": 8, **fields})


def refuse(ids: object) -> Any:
    raise AssertionError("independent samples look at nothing but the prompt")


def task(name: str, prompt: str) -> Task:
    return Task(sample_id=name, prompt=encode(prompt), value=refuse, cuts=refuse, judge=refuse, text=refuse)


TASKS = [task("a", "what"), task("b", "when"), task("c", "what")]


def engine() -> ScriptedEngine:
    return ScriptedEngine(table=lambda prompt, answer: {"x": 0.5, "y": 0.3, "$": 0.2})


def test_a_wave_is_one_request() -> None:
    asked = engine()
    found = group(temperature=0.7, top_p=0.9).explore(asked, TASKS, "explore:0:1")
    (call,) = asked.calls
    assert call.sampling == Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9)
    assert (call.prompts, call.n, call.prefixes) == (["what", "when", "what"], 3, ["", "", ""])
    assert asked.judged == []
    assert found == [Drawn(answers=drawn.answers) for drawn in found] and [len(d.answers) for d in found] == [3] * 3


def test_unless_told_otherwise_it_samples_from_the_policy_itself() -> None:
    asked = engine()
    group(n=1, max_new_tokens=5).explore(asked, TASKS[:1], "s")
    assert asked.calls[0].sampling == Sampling(max_new_tokens=5) == Sampling(max_new_tokens=5, temperature=1, top_p=1)


def test_random_numbers_are_named_by_seed_and_sample_alone() -> None:
    """Whatever the wave; two samples with one prompt do not share them, nor do seed and id run together."""
    whole = group().explore(engine(), TASKS, "explore:0:1")
    for number, one in enumerate(TASKS):
        assert group().explore(engine(), [one], "explore:0:1") == [whole[number]]
    assert group().explore(engine(), TASKS[::-1], "explore:0:1") == whole[::-1]
    assert group().explore(engine(), TASKS, "explore:0:2") != whole
    names = engine()
    for seed, name in (("s", "ab"), ("sa", "b"), ("s", "a"), ("", "sab"), ("s/a", "b"), ("s", "a/b")):
        group().explore(names, [replace(TASKS[0], sample_id=name)], seed)
    assert len({call.seeds[0] for call in names.calls}) == 6


def test_what_the_stage_needs_to_know() -> None:
    sampler: Sampler = group(n=4)
    assert (sampler.n, sampler.max_new_tokens, sampler.wave_share, sampler.grows_trees) == (4, 8, 4, False)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sampler\.{key}={fields[key]}: "):
        group(**fields)


def test_an_infinite_temperature_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^sampler\.temperature=inf: "):
        group(temperature=math.inf)
