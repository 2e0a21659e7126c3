"""The decoding engine: against transformers' own greedy search, against the training forward, and against itself."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tests.policy.architectures import PAD, plain_logits, plain_logps, policy_of, random_model
from ttpa.calls.syntaxes import OpenCall, get_syntax
from ttpa.errors import FALLBACKS
from ttpa.policy import decode
from ttpa.policy.decode import HFEngine
from ttpa.policy.draw import by_rule
from ttpa.policy.engine import Engine, Generated, Sampling, TokenRule
from ttpa.policy.forward import tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow

VOCAB, STOPS, ROOM = 24, (1, 2), 14


def fresh(kind: str = "qwen2", seed: int = 0, **fields: Any) -> PreTrainedModel:
    return random_model(kind, VOCAB, 0.35, seed, **{"eos_token_id": 1 if kind == "cohere" else list(STOPS), **fields})


@cache
def model_of(kind: str = "qwen2") -> PreTrainedModel:
    """One that no test changes."""
    return fresh(kind)


def random_prompts() -> list[list[int]]:
    """Also some of one token, and one prompt that is there twice."""
    rng = random.Random(0)
    lengths = (9, 3, 14, 3, 1, 7, 11, 5, 20, 3, 1)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
    return [*prompts, prompts[2]]


PROMPTS = random_prompts()
DISTINCT = sum(map(len, PROMPTS[:-1]))
SEEDS = [f"sample-{number}" for number in range(len(PROMPTS))]
PREFIXES = [[3 + (i * j) % 20 for j in range(i % 5)] for i in range(len(PROMPTS))]
GIVEN = sum(map(len, PREFIXES))


def engine(model: PreTrainedModel | None = None, rows: int = 8, plain: bool = False, **fields: Any) -> HFEngine:
    renderer = SimpleNamespace(pad_id=PAD, stop_ids=STOPS, **fields.pop("renderer", {}))
    made = HFEngine(policy=policy_of(model or model_of(), renderer=renderer), rows=rows, **fields)
    if plain:
        made.plain = True
    return made


def sampling(max_new_tokens: int = ROOM, **fields: Any) -> Sampling:
    return Sampling(max_new_tokens=max_new_tokens, **fields)


def rule(k: int = 5, delta: float = 0.2, draw: str = "uniform", span: str = "everywhere") -> Sampling:
    return sampling(rule=TokenRule(k=k, delta=delta, draw=draw, span=span))


GREEDY = sampling(temperature=0.0)
SAMPLED = sampling(temperature=0.9, top_p=0.95)
WAYS = {
    "greedy": GREEDY,
    "ancestral": sampling(),
    "nucleus": SAMPLED,
    "hot, no repetition": sampling(temperature=1.5, repetition_penalty=1.3),
    "rule": rule(),
    "rule, renormalised": rule(4, 0.4, "renormalised"),
}


def tokens(answers: list[list[Generated]]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in group] for group in answers]


def flat(answers: list[list[Generated]]) -> list[Generated]:
    return [answer for group in answers for answer in group]


def same(one: list[list[Generated]], two: list[list[Generated]]) -> None:
    """Tokens, ends and what a rule chose among are equal; log-probs and probabilities up to rounding."""
    assert tokens(one) == tokens(two)
    for left, right in zip(flat(one), flat(two), strict=True):
        assert left.finish == right.finish
        assert left.logps == pytest.approx(right.logps, abs=1e-4)
        assert [at for at, _ in left.branches] == [at for at, _ in right.branches]
        for (_, these), (_, those) in zip(left.branches, right.branches, strict=True):
            assert dict(these) == pytest.approx(dict(those), abs=1e-4)


def theirs(model: PreTrainedModel, prompt: Sequence[int], room: int = ROOM) -> list[int]:
    """What transformers' greedy search answers."""
    ids = torch.tensor([list(prompt)])
    config = GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=list(STOPS), pad_token_id=PAD)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma", "phi", "cohere", "deepseek"])
def test_greedy_is_that_of_transformers_token_for_token(kind: str) -> None:
    model = model_of(kind)
    whole = [theirs(model, prompt) for prompt in PROMPTS]
    longer = [[*prompt, *prefix] for prompt, prefix in zip(PROMPTS, PREFIXES, strict=True)]
    rest = [theirs(model, ids, ROOM - len(prefix)) for ids, prefix in zip(longer, PREFIXES, strict=True)]
    for rows in (1, 5, 64):
        made = engine(model, rows)
        found = made.generate(PROMPTS, 1, GREEDY, SEEDS)
        assert tokens(found) == [[ids] for ids in whole] and not made.plain
        assert tokens(made.generate(PROMPTS, 1, GREEDY, SEEDS, PREFIXES)) == [[ids] for ids in rest]
    assert len(set(map(tuple, whole))) > 3 and (
        kind != "llama" or {a.finish for a in flat(found)} == {"stop", "length"}
    )


@pytest.mark.parametrize(("kind", "way"), [*(("qwen2", way) for way in WAYS), ("gemma", "nucleus"), ("phi", "rule")])
def test_answers_depend_neither_on_company_nor_on_order_nor_on_the_way(kind: str, way: str) -> None:
    model, how = model_of(kind), WAYS[way]
    asked = list(zip(PROMPTS, SEEDS, PREFIXES, strict=True))
    alone = [engine(model, 1).generate([p], 3, how, [s], [q])[0] for p, s, q in asked]
    for rows, plain in ((5, False), (128, False), (7, True)):
        order = random.Random(rows).sample(range(len(asked)), len(asked))
        prompts, seeds, prefixes = zip(*(asked[i] for i in order), strict=True)
        made = engine(model, rows, plain)
        same(made.generate(prompts, 3, how, seeds, prefixes), [alone[i] for i in order])
        assert made.counts["generated"] == sum(len(answer.token_ids) for answer in flat(alone))
        assert not plain or made.counts["prefilled"] == 3 * (sum(map(len, PROMPTS)) + GIVEN)
    assert how.rule is None or sum(len(answer.branches) for answer in flat(alone)) > 40
    # A prefix takes nothing of the random numbers: a longer prompt is answered the same.
    longer = engine(model).generate([[*p, *q] for p, _, q in asked], 3, how, SEEDS)
    for (_, _, prefix), group, answered in zip(asked, alone, longer, strict=True):
        assert [a.token_ids for a in group] == [a.token_ids[: ROOM - len(prefix)] for a in answered]


@dataclass
class Shapes:
    """Notes the shape of every forward pass of a model."""

    model: PreTrainedModel
    seen: list[tuple[int, int]] = field(default_factory=list)

    def __enter__(self) -> Shapes:
        decoder = getattr(self.model, self.model.base_model_prefix)
        self.hook = decoder.register_forward_pre_hook(
            lambda _, args, given: self.seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        return self

    def __exit__(self, *problem: object) -> None:
        self.hook.remove()


def test_batches_are_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 30)
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 1] + [PROMPTS[1]] * 5  # one token wide are steps alone
    for rows in (1, 7, 40):
        with Shapes(model_of()) as shapes:
            engine(rows=rows).generate(prompts, 3, SAMPLED, [f"s{i}" for i in range(len(prompts))])
        most = max(count for count, width in shapes.seen if width == 1)
        assert rows / 2 <= most <= rows
        assert all(count * width <= 30 for count, width in shapes.seen if width > 1)
        assert rows < 7 or any(count > 1 for count, width in shapes.seen if width > 1)


def test_answers_that_have_ended_leave_the_batch() -> None:
    with Shapes(model_of()) as shapes:
        found = engine(rows=128).generate(PROMPTS, 4, sampling(40), SEEDS)
    steps = [count for count, width in shapes.seen if width == 1][1:]
    needed = sum(len(answer.token_ids) - 1 for answer in flat(found))
    assert steps[0] > steps[-1] and sum(steps) < 0.75 * steps[0] * len(steps)
    assert needed <= sum(steps) < 2.5 * needed


@pytest.mark.parametrize("plain", [False, True])
def test_a_prefix_as_long_as_an_answer_may_be_leaves_nothing_to_draw(plain: bool) -> None:
    prefixes = [[5] * size for size in (4, 0, 6, 3, 5)]
    found = engine(plain=plain).generate(PROMPTS[:5], 2, sampling(4), SEEDS[:5], prefixes)
    (whole,) = engine().generate([PROMPTS[1]], 2, sampling(4), [SEEDS[1]])
    (last,) = engine().generate([[*PROMPTS[3], 5, 5, 5]], 2, sampling(1), [SEEDS[3]])
    same([found[1], found[3]], [whole, last])
    for number in (0, 2, 4):
        assert [(answer.token_ids, answer.finish) for answer in found[number]] == [([], "length")] * 2


@pytest.mark.parametrize(("rows", "times"), [(1, 2), (128, 1)])
def test_a_prompt_with_a_prefix_is_kept_for_the_next_call(rows: int, times: int) -> None:
    made = engine(rows=rows)
    expected = tokens(made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES))
    assert made.counts["prefilled"] == DISTINCT + times * GIVEN
    with Shapes(model_of()) as shapes:
        assert tokens(made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)) == expected
    assert made.counts["prefilled"] == DISTINCT + 2 * times * GIVEN
    assert max(width for _, width in shapes.seen) <= max(map(len, PREFIXES))
    for number, forget in enumerate((made.reset, made.close), 2):
        forget()
        made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
        assert made.counts["prefilled"] == number * DISTINCT + (number + 1) * times * GIVEN


def test_a_prompt_without_a_prefix_is_computed_once_for_all_its_answers_and_not_kept() -> None:
    made = engine(rows=128)
    for calls in (1, 2):
        made.generate(PROMPTS, 3, SAMPLED, SEEDS)
        assert made.counts["prefilled"] == calls * DISTINCT


def test_the_prompts_used_last_are_kept_within_their_number_of_tokens() -> None:
    """Three prompts of 6, 7 and 8 tokens, room for 15; one is kept however long it is."""
    made, small = engine(kept_tokens=15), engine(kept_tokens=1)

    def computed(made: HFEngine, *numbers: int) -> int:
        before = made.counts["prefilled"]
        made.generate([[3 + i] * (6 + i) for i in numbers], 1, GREEDY, ["s"] * len(numbers), [()] * len(numbers))
        return made.counts["prefilled"] - before

    calls = [(0,), (1,), (0, 1), (0,), (2,), (0, 2), (1,)]  # 0 is used after 1, so 1 goes for 2
    assert [computed(made, *numbers) for numbers in calls] == [6, 7, 0, 0, 8, 0, 7]
    assert [computed(small, *numbers) for numbers in ((0, 1, 2), (2,))] == [21, 0]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("kind", "way"), [("qwen2", "hot, no repetition"), ("llama", "nucleus"), ("gemma", "nucleus"), ("phi", "rule")]
)
def test_log_probs_are_those_of_the_training_forward(kind: str, way: str, plain: bool) -> None:
    for model, within in ((model_of(kind), 1e-5), (fresh(kind).to(torch.bfloat16), 0.15)):
        found = engine(model, 64, plain).generate(PROMPTS, 3, WAYS[way], SEEDS, PREFIXES)
        rows = [TokenRow([*p, *q], a.token_ids) for p, q, g in zip(PROMPTS, PREFIXES, found, strict=True) for a in g]
        with torch.no_grad():
            forced = token_logps(model, rows, pad_id=PAD).logps_N
        ours = torch.tensor([logp for answer in flat(found) for logp in answer.logps])
        assert torch.isfinite(ours).all() and float((ours - forced).abs().max()) < within


def test_an_answer_ends_with_its_first_stop_token_or_at_its_full_length() -> None:
    short, whole = (flat(engine().generate(PROMPTS, 3, sampling(room), SEEDS)) for room in (3, ROOM))
    assert [answer.token_ids for answer in short] == [answer.token_ids[:3] for answer in whole]
    for room, answers in ((3, short), (ROOM, whole)):
        for answer in answers:
            assert len(answer.logps) == len(answer.token_ids) and not set(STOPS) & set(answer.token_ids[:-1])
            assert answer.finish == ("stop" if answer.token_ids[-1] in STOPS else "length")
            assert answer.finish == "stop" or len(answer.token_ids) == room
        assert any(len(answer.token_ids) == 3 and answer.finish == "stop" for answer in answers)
    assert {answer.token_ids[-1] for answer in whole if answer.finish == "stop"} == set(STOPS)


PIECES = ["", "$", "$", "[f(x='", "[g(n=1, y='", "[", ")]", "')]", "', z='", " ", "\\", "é", *"abcdefghijkl"]
"""Half of the tokens are letters, the others open calls, close them or leave them open."""


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("span", "draw"), [("call", "uniform"), ("call", "renormalised"), ("everywhere", "uniform")])
def test_inside_of_calls_the_rule_draws_and_outside_it_is_greedy(plain: bool, span: str, draw: str) -> None:
    model, how, syntax = model_of("llama"), rule(5, 0.4, draw, span), get_syntax("python")
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens=False: "".join(PIECES[token] for token in ids))
    renderer = {"tokenizer": tokenizer, "syntax": syntax}
    prompts, seeds = [*PROMPTS, *PROMPTS], [*SEEDS, *(f"{seed}, begun" for seed in SEEDS)]
    prefixes = [[]] * len(PROMPTS) + [[3, 12, 13][: i % 4] for i in range(len(PROMPTS))]
    found = engine(model, 32, plain, renderer=renderer).generate(prompts, 2, how, seeds, prefixes)
    seen: Counter[tuple[bool, bool]] = Counter()
    for prompt, prefix, group in zip(prompts, prefixes, found, strict=True):
        for answer in group:
            logits = plain_logits(model, [*prompt, *prefix, *answer.token_ids])[len(prompt) + len(prefix) - 1 :]
            stream = OpenCall(syntax)
            stream.push(tokenizer.decode(prefix))
            branches = dict(answer.branches)
            for at, token in enumerate(answer.token_ids):
                inside, best = span == "everywhere" or stream.inside, int(logits[at].argmax())
                ids, probs, mask = (x[0] for x in by_rule(torch.log_softmax(logits[at][None], -1), how.rule)[1])
                kept = dict(zip(ids[mask].tolist(), probs[mask].tolist(), strict=True)) if inside else {best: 1.0}
                assert token in kept
                assert dict(branches.get(at, ())) == pytest.approx(kept if len(kept) > 1 else {}, abs=1e-5)
                seen[inside, token != best] += 1
                stream.push(PIECES[token])
    assert seen[True, False] > 20 and seen[True, True] > 20 and not seen[False, True]
    assert span == "everywhere" or seen[False, False] > 20


def test_an_architecture_with_other_attention_takes_the_way_through_transformers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = fresh("mistral")
    made = engine(model)
    found = made.generate(PROMPTS, 1, GREEDY, SEEDS)
    made.generate(PROMPTS[:1], 1, GREEDY, SEEDS[:1])
    assert caplog.messages == FALLBACKS
    assert FALLBACKS[0].startswith("engine=hf: it attends in a sliding window; transformers' generate stands in")
    assert tokens(found) == [[theirs(model, prompt)] for prompt in PROMPTS]
    answers = [group[0].token_ids for group in found[:3]]
    for answer, logps in zip(answers, made.answer_logps(PROMPTS[2], answers), strict=True):
        assert logps == pytest.approx(plain_logps(model, TokenRow(PROMPTS[2], answer)), abs=1e-5)


def test_what_a_published_model_asks_of_generate_is_not_applied() -> None:
    model = fresh()
    expected = engine(model).generate(PROMPTS, 2, SAMPLED, SEEDS)
    model.generation_config.repetition_penalty = 3.0
    own = model.generation_config.to_dict()
    same(engine(model, plain=True).generate(PROMPTS, 2, SAMPLED, SEEDS), expected)
    assert model.generation_config.to_dict() == own


@pytest.mark.parametrize("plain", [False, True])
def test_log_probs_of_given_tokens_are_those_of_a_plain_forward_whatever_else_is_asked(plain: bool) -> None:
    rng = random.Random(4)
    stem = [rng.randrange(3, VOCAB) for _ in range(5)]
    answers = [[*stem[: rng.randrange(6)], *(rng.randrange(1, VOCAB) for _ in range(8))] for _ in range(9)]
    answers += [answers[0], answers[3][:2]]
    made = engine(plain=plain)
    for prompt in (PROMPTS[2], PROMPTS[4]):
        found = made.answer_logps(prompt, answers)
        for answer, logps in zip(answers, found, strict=True):
            assert logps == pytest.approx(plain_logps(model_of(), TokenRow(prompt, answer)), abs=1e-5)
        if not plain:  # a function of the set of answers: their order changes no bit
            assert made.answer_logps(prompt, answers[::-1]) == found[::-1]
    for prompt, row in zip(PROMPTS, made.next_logps(PROMPTS, (3, 17, 1)), strict=True):
        expected = torch.log_softmax(plain_logits(model_of(), prompt)[-1], -1)[[3, 17, 1]]
        assert row == pytest.approx(expected.tolist(), abs=1e-5)
    assert made.counts == {"prefilled": sum(map(len, PROMPTS)), "generated": 0}


def test_nothing_asked_nothing_answered() -> None:
    made = engine()
    assert isinstance(made, Engine)
    assert made.generate([], 3, GREEDY, []) == [] and made.generate(PROMPTS[:2], 0, GREEDY, SEEDS[:2]) == [[], []]
    assert made.next_logps([], [3]) == [] and made.counts == {"prefilled": 0, "generated": 0}


def assert_trainable(model: PreTrainedModel) -> None:
    assert model.config._attn_implementation == "sdpa" and not torch.is_inference_mode_enabled()
    rows = [TokenRow(PROMPTS[2], [5, 6, 1]), TokenRow(PROMPTS[2], [5, 7, 8, 1])]
    for forward in (token_logps, tree_token_logps):
        model.zero_grad()
        forward(model, rows, pad_id=PAD).logps_N.sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_failure_leaves_the_model_usable(plain: bool, calls: int) -> None:
    model = fresh().train()
    made, left = engine(model, plain=plain), iter([None] * calls)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: next(left))
    with pytest.raises(StopIteration):
        made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    hook.remove()
    assert model.training
    assert_trainable(model)
    expected = engine(plain=plain).generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    same(made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES), expected)


def test_a_row_that_fills_up_a_batch_does_not_speak_for_the_row_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = decode.draw

    def by_place(logits_RV: Tensor, *given: Any, **named: Any) -> Any:
        noise = torch.randn(logits_RV.shape, generator=torch.Generator().manual_seed(len(logits_RV)))
        found = exact(logits_RV + noise, *given, **named)
        return found._replace(logp_R=torch.log_softmax(logits_RV, -1).gather(-1, found.token_R[:, None])[:, 0])

    monkeypatch.setattr(decode, "draw", by_place)
    prompts = [PROMPTS[0]] * 6 + PROMPTS[1:5]
    found = engine(rows=64).generate(prompts, 1, sampling(30), [f"s{i}" for i in range(10)])
    for prompt, (answer,) in zip(prompts, found, strict=True):
        assert answer.logps == pytest.approx(plain_logps(model_of(), TokenRow(prompt, answer.token_ids)), abs=1e-4)
