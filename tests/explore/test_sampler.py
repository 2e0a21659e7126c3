"""Group and token-level sampling: what they ask of the engine; and tasks, which read each answer once.

What the rule of token-level sampling does: tests/policy/test_draw.py.
"""

import math
from typing import Any

import pytest

from tests.fakes import ScriptedEngine, encode
from tests.options import made
from tests.toolcalls import sample
from ttpa.errors import ConfigError
from ttpa.explore.sampler import GroupSampler, Task
from ttpa.explore.tps import TPS
from ttpa.policy.engine import Sampling, TokenRule
from ttpa.records import Candidate, Sample, Score


def group(**changes: Any) -> GroupSampler:
    return made("sampler", "group", **{"n": 3, "max_new_tokens": 8, **changes})


def tps(**changes: Any) -> TPS:
    return made("sampler", "tps", **{"n": 3, "max_new_tokens": 8, **changes})


class Blind(Task):
    """Independent samples look at nothing but the prompt."""

    def read(self, ids: Any) -> Any:
        raise AssertionError("an answer was read")


def task(name: str, prompt: str) -> Task:
    nothing: Any = None
    return Blind(name=name, sample=nothing, prompt=encode(prompt), renderer=nothing, score=nothing)


TASKS = [task("a", "what"), task("b", "when"), task("c", "what")]


def engine() -> ScriptedEngine:
    return ScriptedEngine(table=lambda prompt, answer: {"x": 0.5, "y": 0.3, "$": 0.2})


RULE = TokenRule(k=4, delta=0.1, draw="renormalised", span="everywhere")


@pytest.mark.parametrize(("sampler", "sampling"), [
    (group(temperature=0.7, top_p=0.9), Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9)),
    (tps(mode="ancestral"), Sampling(max_new_tokens=8)),
    (tps(k=4, delta=0.1, draw="renormalised", span="everywhere"), Sampling(max_new_tokens=8, rule=RULE)),
], ids=["group", "ancestral", "tps"])  # fmt: skip
def test_a_wave_is_one_request(sampler: Any, sampling: Sampling) -> None:
    asked = engine()
    drawn = sampler.explore(asked, TASKS, "explore:0:1")
    (call,) = asked.calls
    assert call.sampling == sampling
    assert (call.prompts, call.n, call.prefixes) == (["what", "when", "what"], 3, ["", "", ""])
    assert [len(one.answers) for one in drawn] == [3, 3, 3]
    assert all((one.siblings, one.tree, one.counts) == ([], None, {}) for one in drawn)


def test_random_numbers_are_named_by_seed_and_task_alone() -> None:
    """Whatever the wave; two samples with one prompt do not share them, nor do seed and name run together."""
    whole = group().explore(engine(), TASKS, "explore:0:1")
    for number, one in enumerate(TASKS):
        assert group().explore(engine(), [one], "explore:0:1") == [whole[number]]
    assert group().explore(engine(), TASKS, "explore:0:2") != whole
    names = engine()
    for seed, name in (("s", "ab"), ("sa", "b"), ("s", "a"), ("", "sab"), ("s/a", "b"), ("s", "a/b")):
        group().explore(names, [task(name, "what")], seed)
    assert len({call.seeds[0] for call in names.calls}) == 6


def test_what_the_stages_need_to_know() -> None:
    for sampler in (group(n=4), tps(n=4)):
        assert (sampler.n, sampler.wave_share, sampler.grows_trees) == (4, 4, False)
    # Policy gradients want independent draws from the policy itself.
    assert (group(temperature=0.7).policy_temperature, group(top_p=0.9).policy_temperature) == (0.7, None)
    assert (tps().policy_temperature, tps(mode="ancestral").policy_temperature) == (None, 1.0)


@pytest.mark.parametrize(("build", "key", "value"), [
    (group, "n", 0), (group, "temperature", math.inf), (group, "top_p", 0.0), (tps, "k", 0), (tps, "delta", 1.1),
    (tps, "draw", "normal"), (tps, "span", "tool"), (tps, "mode", "beam"),
])  # fmt: skip
def test_a_value_out_of_range_names_its_key_and_value(build: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}='?{value}'?: "):
        build(**{key: value})


def test_an_answer_is_decoded_and_scored_once() -> None:
    seen: list[tuple[int, ...]] = []

    class Renderer:
        def candidate(self, sample: Sample, index: int, ids: tuple[int, ...]) -> Candidate:
            seen.append(ids)
            return Candidate(sample_id=sample.id, index=index, text="".join(map(chr, ids)), token_ids=ids)

    def score(sample: Sample, candidate: Candidate) -> Score:
        return Score(value=len(candidate.text) / 4, exact=False)

    renderer: Any = Renderer()
    reader = Task(name="s", sample=sample(), prompt=(), renderer=renderer, score=score)
    answer = reader.read([97, 98])
    assert (answer.candidate.text, answer.score.value) == ("ab", 0.5)
    assert reader.read((97, 98)) is answer and reader.read([97]) is not answer
    assert seen == [(97, 98), (97,)]
