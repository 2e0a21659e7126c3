"""Token-level preference sampling: the rule it hands to the engine. What the rule does: tests/policy/test_draw.py."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.fakes import ScriptedEngine, encode
from ttpa.errors import ConfigError
from ttpa.explore.group import GroupSampler
from ttpa.explore.sampler import Sampler, Task
from ttpa.explore.tps import TPS
from ttpa.policy.engine import Sampling, TokenRule


def tps(**fields: Any) -> TPS:
    return TPS(**{"n": 3, "max_new_tokens": 8, "k": 5, "delta": 0.2, **fields})


def refuse(ids: object) -> Any:
    raise AssertionError("the rule looks at nothing but the prompt")


TASKS = [
    Task(sample_id=name, prompt=encode(prompt), value=refuse, cuts=refuse, judge=refuse, text=refuse)
    for name, prompt in (("a", "what"), ("b", "when"))
]


def engine() -> ScriptedEngine:
    return ScriptedEngine(table=lambda prompt, answer: {"x": 0.5, "y": 0.3, "$": 0.2})


@pytest.mark.parametrize("draw", ["uniform", "renormalised"])
@pytest.mark.parametrize("span", ["call", "everywhere"])
def test_the_engine_is_given_the_rule(draw: str, span: str) -> None:
    asked = engine()
    found = tps(k=4, delta=0.1, draw=draw, span=span).explore(asked, TASKS, "explore:0:1")
    (call,) = asked.calls
    rule = TokenRule(k=4, delta=0.1, draw=draw, span=span)
    assert call.sampling == Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0, repetition_penalty=1.0, rule=rule)
    assert (call.prompts, call.n, call.prefixes) == (["what", "when"], 3, ["", ""])
    assert [len(drawn.answers) for drawn in found] == [3, 3]
    assert all((drawn.siblings, drawn.tree, drawn.counts) == ([], None, {}) for drawn in found)


def test_unless_told_otherwise_it_draws_uniformly_inside_of_calls() -> None:
    asked = engine()
    tps().explore(asked, TASKS, "s")
    assert asked.calls[0].sampling.rule == TokenRule(k=5, delta=0.2, draw="uniform", span="call")


def test_ancestral_samples_are_those_of_the_group_sampler_at_temperature_1() -> None:
    """What the authors' code released: the rule is not applied at all."""
    ours, theirs = engine(), engine()
    found = tps(mode="ancestral", k=1, delta=0.0).explore(ours, TASKS, "explore:0:1")
    assert found == GroupSampler(n=3, max_new_tokens=8).explore(theirs, TASKS, "explore:0:1")
    assert ours.calls == theirs.calls and ours.calls[0].sampling == Sampling(max_new_tokens=8)


def test_random_numbers_are_named_by_seed_and_sample_alone() -> None:
    asked = engine()
    for tasks, seed in ((TASKS, "s"), (TASKS[1:], "s"), (TASKS, "t")):
        tps().explore(asked, tasks, seed)
    first, part, other = (call.seeds for call in asked.calls)
    assert part == first[1:] and len({*first, *other}) == 4


def test_what_the_stage_needs_to_know() -> None:
    sampler: Sampler = tps(n=4)
    assert (sampler.n, sampler.max_new_tokens, sampler.wave_share, sampler.grows_trees) == (4, 8, 4, False)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"k": 0}, "k"),
        ({"delta": -0.1}, "delta"),
        ({"delta": 1.1}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"draw": "normal"}, "draw"),
        ({"span": "tool"}, "span"),
        ({"mode": "beam"}, "mode"),
    ],
)
def test_a_value_out_of_range_names_its_key_and_value(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sampler\.{key}={fields[key]}: "):
        tps(**fields)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    for fields in ({"k": 1}, {"delta": 0.0}, {"delta": 1.0}, {"n": 1}, {"max_new_tokens": 1}):
        tps(**fields)
