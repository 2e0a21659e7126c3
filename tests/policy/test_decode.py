"""The decoding engine: against transformers' own greedy search, against the training forward, and against itself."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ttpa.calls.syntaxes import OpenCall, get_syntax
from ttpa.errors import ConfigError
from ttpa.policy import decode
from ttpa.policy.decode import HFEngine
from ttpa.policy.draw import candidates_of
from ttpa.policy.engine import Engine, Generated, Sampling, TokenRule
from ttpa.policy.forward import tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow

VOCAB, PAD, STOPS = 24, 0, (1, 2)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": list(STOPS),
    "bos_token_id": None,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 1}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
    "phi": (PhiForCausalLM, PhiConfig, {"num_key_value_heads": 4}),
    "cohere": (CohereForCausalLM, CohereConfig, {"eos_token_id": 1}),
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 4,
    "first_k_dense_replace": 2,
}
LENGTHS = (9, 3, 14, 3, 1, 7, 11, 5, 20, 3, 1)
ROOM = 14


@dataclass
class FakePolicy:
    """What the engine asks of a policy."""

    model: PreTrainedModel
    renderer: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pad_id=PAD, stop_ids=STOPS))


def random_model(kind: str = "qwen2", seed: int = 0, **fields: Any) -> PreTrainedModel:
    model_class, config_class, own = {**KINDS, "deepseek": (DeepseekV3ForCausalLM, DeepseekV3Config, MLA)}[kind]
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config_class(**{**SIZES, **own, **fields}))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.35)
    return model.eval()


@cache
def model_of(kind: str = "qwen2") -> PreTrainedModel:
    """One that no test changes."""
    return random_model(kind)


def random_prompts(seed: int = 0) -> list[list[int]]:
    """Also some of one token, and one prompt that is there twice."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]
    return [*prompts, prompts[2]]


PROMPTS = random_prompts()
SEEDS = [f"sample-{number}" for number in range(len(PROMPTS))]


def engine(model: PreTrainedModel, rows: int = 8, **fields: Any) -> HFEngine:
    return HFEngine(policy=FakePolicy(model), rows=rows, **fields)  # type: ignore[arg-type]


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
    "greedy, no repetition": sampling(temperature=0.0, repetition_penalty=1.5),
    "rule": rule(),
    "rule, renormalised": rule(4, 0.4, "renormalised"),
}


def tokens(answers: list[list[Generated]]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in group] for group in answers]


def same(one: list[list[Generated]], two: list[list[Generated]], within: float = 1e-4) -> None:
    """Tokens, ends and what a rule chose among are equal; log-probs and probabilities up to rounding."""
    assert tokens(one) == tokens(two)
    for left, right in zip((a for g in one for a in g), (a for g in two for a in g), strict=True):
        assert left.finish == right.finish
        assert left.logps == pytest.approx(right.logps, abs=within)
        assert [at for at, _ in left.branches] == [at for at, _ in right.branches]
        for (_, these), (_, those) in zip(left.branches, right.branches, strict=True):
            assert dict(these) == pytest.approx(dict(those), abs=within)


def forced_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits behind every token of a sequence, (T, V), without any of our code."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def theirs(model: PreTrainedModel, prompt: Sequence[int], room: int = ROOM) -> list[int]:
    """What transformers' greedy search answers."""
    ids = torch.tensor([list(prompt)])
    config = GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=list(STOPS), pad_token_id=PAD)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


# --- greedy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_that_of_transformers_token_for_token(kind: str) -> None:
    model = model_of(kind)
    expected = [[theirs(model, prompt)] for prompt in PROMPTS]
    for rows in (1, 5, 64):
        made = engine(model, rows)
        found = made.generate(PROMPTS, 1, GREEDY, SEEDS)
        assert tokens(found) == expected
        assert not made._generates_plainly()
    assert {answer.finish for group in found for answer in group} == {"stop", "length"}
    assert len({tuple(group[0]) for group in expected}) > 3


def test_an_architecture_whose_values_are_smaller_than_its_keys_decodes_too() -> None:
    model = random_model("deepseek")
    made = engine(model, 16)
    assert tokens(made.generate(PROMPTS, 1, GREEDY, SEEDS)) == [[theirs(model, prompt)] for prompt in PROMPTS]
    whole = [[*p, *q] for p, q in zip(PROMPTS, PREFIXES, strict=True)]
    found = made.generate(PROMPTS, 1, GREEDY, SEEDS, PREFIXES)
    for prompt, prefix, (answer,) in zip(whole, PREFIXES, found, strict=True):
        assert answer.token_ids == theirs(model, prompt, ROOM - len(prefix))


# --- answers do not depend on what else is asked -------------------------------------------------------------------


@cache
def one_by_one(kind: str, way: str) -> list[list[Generated]]:
    return engine(model_of(kind), 1).generate(PROMPTS, 3, WAYS[way], SEEDS)


@pytest.mark.parametrize(("kind", "way"), [*(("qwen2", way) for way in WAYS), ("gemma", "nucleus"), ("phi", "rule")])
def test_answers_do_not_depend_on_the_number_of_rows(kind: str, way: str) -> None:
    for rows in (2, 5, 8, 32, 128) if way in ("nucleus", "rule") and kind == "qwen2" else (5, 128):
        same(engine(model_of(kind), rows).generate(PROMPTS, 3, WAYS[way], SEEDS), one_by_one(kind, way))
    if WAYS[way].rule is not None:
        assert sum(len(answer.branches) for group in one_by_one(kind, way) for answer in group) > 50


@pytest.mark.parametrize("way", ["nucleus", "rule"])
def test_answers_do_not_depend_on_order_and_company(way: str) -> None:
    expected, how = one_by_one("qwen2", way), WAYS[way]
    for seed, rows in ((1, 6), (2, 128)):
        order = random.Random(seed).sample(range(len(PROMPTS)), len(PROMPTS))
        shuffled = engine(model_of(), rows).generate([PROMPTS[i] for i in order], 3, how, [SEEDS[i] for i in order])
        same(shuffled, [expected[i] for i in order])
    part = [8, 2, 11]
    same(
        engine(model_of(), 64).generate([PROMPTS[i] for i in part], 3, how, [SEEDS[i] for i in part]),
        [expected[i] for i in part],
    )
    for n in (1, 5):
        more = engine(model_of(), 16).generate(PROMPTS, n, how, SEEDS)
        same([group[: min(n, 3)] for group in more], [group[: min(n, 3)] for group in expected])


def test_a_prompt_asked_under_several_seeds_is_answered_for_each() -> None:
    prompts, seeds = [PROMPTS[0]] * 4 + [PROMPTS[1]], ["a", "b", "a", "c", "a"]
    together = engine(model_of(), 64).generate(prompts, 2, SAMPLED, seeds)
    apart = [engine(model_of()).generate([p], 2, SAMPLED, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    same(together, apart)
    assert tokens(together)[0] == tokens(together)[2]
    assert len({tuple(answer.token_ids) for group in together for answer in group}) > 4


def test_seed_and_candidate_each_change_the_answers() -> None:
    first, again = (tokens(engine(model_of()).generate(PROMPTS, 3, SAMPLED, SEEDS)) for _ in range(2))
    assert first == again
    other = tokens(engine(model_of()).generate(PROMPTS, 3, SAMPLED, [f"other-{seed}" for seed in SEEDS]))
    assert sum(left != right for left, right in zip(first, other, strict=True)) > len(PROMPTS) / 2
    assert sum(len({tuple(answer) for answer in group}) > 1 for group in first) > len(PROMPTS) / 2


def test_a_longer_answer_begins_with_the_shorter_one() -> None:
    short, long = (engine(model_of()).generate(PROMPTS, 2, sampling(room), SEEDS) for room in (1, ROOM))
    for group, whole in zip(short, long, strict=True):
        for left, right in zip(group, whole, strict=True):
            assert left.token_ids == right.token_ids[:1]
            assert left.finish == ("stop" if left.token_ids[0] in STOPS else "length")
    assert {answer.finish for group in short for answer in group} == {"stop", "length"}


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
    """At most `rows` answers side by side, however they fall on prompts; padded prompts within their budget."""
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 30)
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 1] + [PROMPTS[1]] * 5  # one token wide are steps alone
    for rows in (1, 7, 40):
        with Shapes(model_of()) as shapes:
            engine(model_of(), rows).generate(prompts, 3, SAMPLED, [f"s{i}" for i in range(len(prompts))])
        most = max(count for count, width in shapes.seen if width == 1)
        assert rows / 2 <= most <= rows
        assert all(count * width <= 30 for count, width in shapes.seen if width > 1)
        assert rows < 7 or any(count > 1 for count, width in shapes.seen if width > 1)


def test_answers_that_have_ended_leave_the_batch() -> None:
    with Shapes(model_of()) as shapes:
        found = engine(model_of(), 128).generate(PROMPTS, 4, sampling(40), SEEDS)
    steps = [count for count, width in shapes.seen if width == 1][1:]
    lengths = [len(answer.token_ids) for group in found for answer in group]
    needed = sum(lengths) - len(lengths)
    assert steps[0] > steps[-1] and sum(steps) < 0.75 * steps[0] * len(steps)
    assert needed <= sum(steps) < 2.5 * needed


# --- beginnings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_continuing_a_beginning_gives_the_rest_of_the_answer(kind: str) -> None:
    """Cut anywhere, also before the first token; beginnings of all lengths in one call."""
    model = model_of(kind)
    whole = [group[0] for group in engine(model).generate(PROMPTS, 1, GREEDY, SEEDS)]
    cuts = [(i, at) for i, answer in enumerate(whole) for at in range(0, len(answer.token_ids), 3)]
    prompts, prefixes = [PROMPTS[i] for i, _ in cuts], [whole[i].token_ids[:at] for i, at in cuts]
    for rows in (6, 200):
        found = engine(model, rows).generate(prompts, 1, GREEDY, ["s"] * len(cuts), prefixes)
        for (i, at), (rest,) in zip(cuts, found, strict=True):
            assert rest.token_ids == whole[i].token_ids[at:] and rest.finish == whole[i].finish
            assert rest.logps == pytest.approx(whole[i].logps[at:], abs=1e-4)


PREFIXES = [[3 + (i * j) % 20 for j in range(i % 5)] for i in range(len(PROMPTS))]


@pytest.mark.parametrize("way", WAYS)
def test_continued_answers_do_not_depend_on_the_number_of_rows(way: str) -> None:
    alone = [
        engine(model_of(), 1).generate([p], 2, WAYS[way], [s], [q])[0]
        for p, s, q in zip(PROMPTS, SEEDS, PREFIXES, strict=True)
    ]
    for rows in (5, 64):
        same(engine(model_of(), rows).generate(PROMPTS, 2, WAYS[way], SEEDS, PREFIXES), alone)
    # A beginning takes nothing of the random numbers: behind it stands what a longer prompt is answered, and it counts.
    longer = [[*p, *q] for p, q in zip(PROMPTS, PREFIXES, strict=True)]
    for prefix, group, answered in zip(
        PREFIXES, alone, engine(model_of()).generate(longer, 2, WAYS[way], SEEDS), strict=True
    ):
        for rest, answer in zip(group, answered, strict=True):
            assert rest.token_ids == answer.token_ids[: ROOM - len(prefix)]
            assert (rest.finish == "stop") == (rest.token_ids[-1] in STOPS)


@pytest.mark.parametrize("plain", [False, True])
def test_a_beginning_as_long_as_an_answer_may_be_leaves_nothing_to_draw(plain: bool) -> None:
    made = engine(model_of(), 8, _plain=plain)
    prefixes = [[5] * size for size in (4, 0, 6, 3, 5)]
    found = made.generate(PROMPTS[:5], 2, sampling(4), SEEDS[:5], prefixes)
    same(
        [found[1], found[3]],
        engine(model_of()).generate([PROMPTS[1]], 2, sampling(4), [SEEDS[1]])
        + engine(model_of()).generate([[*PROMPTS[3], 5, 5, 5]], 2, sampling(1), [SEEDS[3]]),
    )
    for number in (0, 2, 4):
        assert [(answer.token_ids, answer.finish) for answer in found[number]] == [([], "length")] * 2
    assert made.generate(PROMPTS[:1], 1, sampling(3), SEEDS[:1], [[5] * 3])[0][0].token_ids == []


# --- prompts that are kept ---------------------------------------------------------------------------------------

DISTINCT = PROMPTS[:-1]
ALL_OF_THEM = sum(map(len, DISTINCT))


def test_counts_are_those_of_what_was_computed() -> None:
    """A prompt once for all its answers, if they fit into a batch; then each token that was drawn."""
    made = engine(model_of(), 128)
    found = made.generate(PROMPTS, 3, SAMPLED, SEEDS)
    drawn = sum(len(answer.token_ids) for group in found for answer in group)
    assert made.counts == {"prefilled": ALL_OF_THEM, "generated": drawn}
    one = engine(model_of(), 1)
    one.generate(PROMPTS, 3, SAMPLED, SEEDS)
    assert one.counts == {"prefilled": 3 * (ALL_OF_THEM + len(PROMPTS[2])), "generated": drawn}


def test_a_prompt_with_a_beginning_is_kept_for_the_next_call() -> None:
    expected = tokens(engine(model_of()).generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES))
    # Rows that begin alike share the beginning; the last prompt is there twice, with beginnings of its own.
    for rows, given in ((1, 2 * sum(map(len, PREFIXES))), (128, sum(map(len, PREFIXES)))):
        made = engine(model_of(), rows)
        made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
        assert made.counts["prefilled"] == ALL_OF_THEM + given
        with Shapes(made.policy.model) as shapes:
            assert tokens(made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)) == expected
        assert made.counts["prefilled"] == ALL_OF_THEM + 2 * given
        assert max(width for _, width in shapes.seen) <= max(map(len, PREFIXES))
        made.generate(PROMPTS, 2, SAMPLED, SEEDS)
        assert made.counts["prefilled"] == ALL_OF_THEM + 2 * given
        made.reset()
        made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
        assert made.counts["prefilled"] == 2 * ALL_OF_THEM + 3 * given


def test_beginnings_of_several_rows_are_computed_once() -> None:
    """Some alike and some not, behind one prompt and behind others: the answers are those of each row by itself."""
    asked = [(0, (5, 6)), (0, (5, 6)), (0, (7,)), (0, ()), (1, (5, 6)), (1, (5, 6)), (2, (8, 9, 5))]
    prompts, prefixes = [PROMPTS[at] for at, _ in asked], [prefix for _, prefix in asked]
    seeds = [f"row-{number}" for number in range(len(asked))]
    together, alone = engine(model_of(), 64), engine(model_of(), 1)
    found = together.generate(prompts, 2, SAMPLED, seeds, prefixes)
    same(found, alone.generate(prompts, 2, SAMPLED, seeds, prefixes))
    assert len({tuple(answer.token_ids) for group in found for answer in group}) > len(asked)
    read = sum(len(PROMPTS[at]) for at in range(3))
    assert together.counts["prefilled"] == read + sum(len(prefix) for _, prefix in set(asked))
    assert alone.counts["prefilled"] == read + 2 * sum(map(len, prefixes))


def test_prompts_without_beginnings_are_not_kept() -> None:
    made = engine(model_of(), 128)
    for _ in range(2):
        made.generate(PROMPTS, 1, GREEDY, SEEDS)
    assert made.counts["prefilled"] == 2 * ALL_OF_THEM


def test_the_prompts_used_last_are_kept_within_their_number_of_tokens() -> None:
    prompts = [[3] * 6, [4] * 7, [5] * 8]
    made = engine(model_of(), 8, kept_tokens=15)

    def computed(*numbers: int) -> int:
        before = made.counts["prefilled"]
        made.generate([prompts[i] for i in numbers], 1, GREEDY, ["s"] * len(numbers), [()] * len(numbers))
        return made.counts["prefilled"] - before

    assert computed(0) == 6 and computed(1) == 7 and computed(0, 1) == 0
    assert computed(0) == 0  # now the one used last
    assert computed(2) == 8  # 21 tokens: the second one goes, 14 are left
    assert computed(0, 2) == 0
    assert computed(1) == 7 and computed(1) == 0  # whatever went for it
    small = engine(model_of(), 8, kept_tokens=1)
    small.generate(prompts, 1, GREEDY, SEEDS[:3], [()] * 3)
    assert sum(map(len, small._kept)) == 8  # one is kept however long it is


# --- every answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "way"), [("qwen2", "hot, no repetition"), ("qwen2", "nucleus"), ("gemma", "nucleus"), ("phi", "rule")]
)
def test_log_probs_are_those_of_the_training_forward(kind: str, way: str) -> None:
    """Whatever the temperature or the rule, the log-probs recorded are the policy's own."""
    model = model_of(kind)
    found = engine(model, 64).generate(PROMPTS, 3, WAYS[way], SEEDS, PREFIXES)
    rows = [TokenRow([*p, *q], a.token_ids) for p, q, g in zip(PROMPTS, PREFIXES, found, strict=True) for a in g]
    with torch.no_grad():
        forced = token_logps(model, rows, pad_id=PAD).logps_N
    ours = torch.tensor([logp for group in found for answer in group for logp in answer.logps])
    assert float((ours - forced).abs().max()) < 1e-5


def test_an_answer_ends_with_its_first_stop_token_or_at_its_full_length() -> None:
    answers = [a for group in engine(model_of()).generate(PROMPTS, 3, SAMPLED, SEEDS) for a in group]
    for answer in answers:
        assert len(answer.logps) == len(answer.token_ids) <= ROOM
        assert not set(STOPS) & set(answer.token_ids[:-1])
        if answer.finish == "stop":
            assert answer.token_ids[-1] in STOPS
        else:
            assert answer.finish == "length" and len(answer.token_ids) == ROOM and answer.token_ids[-1] not in STOPS
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert {answer.token_ids[-1] for answer in answers if answer.finish == "stop"} == set(STOPS)
    assert min(len(answer.token_ids) for answer in answers) == 1


def test_a_stop_token_that_just_fits_is_a_stop() -> None:
    prompt, whole = next(
        (p, answer) for p in PROMPTS if (answer := theirs(model_of(), p))[-1] in STOPS and len(answer) > 1
    )
    for room, finish in ((len(whole), "stop"), (len(whole) - 1, "length"), (len(whole) + 1, "stop")):
        ((answer,),) = engine(model_of()).generate([prompt], 1, sampling(room, temperature=0.0), ["s"])
        assert (answer.token_ids, answer.finish) == (whole[:room], finish)


@pytest.mark.parametrize("how", ["uniform", "renormalised"])
def test_a_rule_reports_where_it_had_a_choice_and_among_what(how: str) -> None:
    """Every position from the logits of a plain forward: the token is a candidate, several are reported, one is not."""
    drawn = rule(4, 0.3, how)
    assert drawn.rule is not None
    found = engine(model_of(), 64).generate(PROMPTS, 2, drawn, SEEDS, PREFIXES)
    choices = 0
    for prompt, prefix, group in zip(PROMPTS, PREFIXES, found, strict=True):
        for answer in group:
            logits = forced_logits(model_of(), [*prompt, *prefix, *answer.token_ids])[len(prompt) + len(prefix) - 1 :]
            branches = dict(answer.branches)
            assert len(branches) == len(answer.branches)
            for at, token in enumerate(answer.token_ids):
                ids, probs, mask = (
                    part[0] for part in candidates_of(torch.log_softmax(logits[at][None], -1), drawn.rule)
                )
                kept = {int(i): float(p) for i, p in zip(ids[mask], probs[mask], strict=True)}
                assert token in kept
                assert (at in branches) == (len(kept) > 1)
                if at in branches:
                    assert dict(branches[at]) == pytest.approx(kept, abs=1e-5)
                    assert [p for _, p in branches[at]] == sorted((p for _, p in branches[at]), reverse=True)
                    choices += 1
    assert choices > 40


def test_nothing_asked_nothing_answered() -> None:
    made = engine(model_of())
    assert isinstance(made, Engine)
    assert made.generate([], 3, GREEDY, []) == [] and made.generate(PROMPTS[:2], 0, GREEDY, SEEDS[:2]) == [[], []]
    assert made.next_logps([], [3]) == [] and made.counts == {"prefilled": 0, "generated": 0}


# --- the rule inside of calls --------------------------------------------------------------------------------------

CALL_PIECES = {
    "python": ("", "$", "$", "[f(x='", "[g(n=1, y='", "[", ")]", "')]", "', z='", " ", "\\", "é"),
    "hermes": (
        "", "$", "$", '<tool_call>{"name":"f","arguments":{"x":"', "<tool_call>{", "<", '"}}</tool_call>', '"}}',
        '","z":"', " ", "\\", "é",
    ),
}  # fmt: skip


@dataclass
class PieceTokenizer:
    """Each id is a piece of text."""

    pieces: Sequence[str]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.pieces[token] for token in ids)


def calling_policy(syntax: str, model: PreTrainedModel) -> FakePolicy:
    """Half of its tokens are letters, the others open calls, close them or leave them open."""
    pieces = [*CALL_PIECES[syntax], *"abcdefghijkl"]
    assert len(pieces) == VOCAB
    tokenizer = PieceTokenizer(pieces)
    return FakePolicy(
        model, SimpleNamespace(pad_id=PAD, stop_ids=STOPS, syntax=get_syntax(syntax), tokenizer=tokenizer)
    )


@pytest.mark.parametrize("syntax", CALL_PIECES)
@pytest.mark.parametrize("plain", [False, True])
def test_inside_of_calls_the_rule_draws_and_outside_it_is_greedy(syntax: str, plain: bool) -> None:
    """Every position by itself: whether a call is open there, and what a plain forward says of the next token."""
    model, how = random_model("llama", 3), rule(5, 0.4, span="call")
    assert how.rule is not None
    policy = calling_policy(syntax, model)
    opening = [3, 12, 13]
    prompts, seeds = [*PROMPTS, *PROMPTS], [*SEEDS, *(f"{seed}, begun" for seed in SEEDS)]
    prefixes = [[]] * len(PROMPTS) + [opening[: i % 4] for i in range(len(PROMPTS))]
    made = HFEngine(policy=policy, rows=32, _plain=plain)  # type: ignore[arg-type]
    found = made.generate(prompts, 2, how, seeds, prefixes)
    seen: Counter[tuple[bool, bool]] = Counter()
    for prompt, prefix, group in zip(prompts, prefixes, found, strict=True):
        for answer in group:
            logits = forced_logits(model, [*prompt, *prefix, *answer.token_ids])[len(prompt) + len(prefix) - 1 :]
            stream = OpenCall(policy.renderer.syntax)
            stream.push(policy.renderer.tokenizer.decode(prefix))
            branches = dict(answer.branches)
            for at, token in enumerate(answer.token_ids):
                inside, best = stream.inside, int(logits[at].argmax())
                ids, _, mask = (part[0] for part in candidates_of(torch.log_softmax(logits[at][None], -1), how.rule))
                kept = set(ids[mask].tolist()) if inside else {best}
                assert token in kept
                assert {t for t, _ in branches.get(at, ())} == (kept if len(kept) > 1 else set())
                seen[inside, token != best] += 1
                stream.push(policy.renderer.tokenizer.pieces[token])
    assert seen[False, False] > 20 and seen[True, False] > 20 and seen[True, True] > 20 and not seen[False, True]
    for rows in () if plain else (1, 5):
        made = HFEngine(policy=policy, rows=rows)  # type: ignore[arg-type]
        same(made.generate(prompts, 2, how, seeds, prefixes), found)


# --- through transformers' generate ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_way_through_transformers_gives_the_same_answers(way: str) -> None:
    for prefixes in ((), PREFIXES):
        expected = engine(model_of(), 64).generate(PROMPTS, 2, WAYS[way], SEEDS, prefixes)
        for rows in (7, 64):
            made = engine(model_of(), rows, _plain=True)
            same(made.generate(PROMPTS, 2, WAYS[way], SEEDS, prefixes), expected)
            drawn = sum(len(answer.token_ids) for group in expected for answer in group)
            read = 2 * (sum(map(len, PROMPTS)) + sum(map(len, prefixes)))
            assert made.counts == {"prefilled": read, "generated": drawn}


def test_an_architecture_with_other_attention_takes_the_way_through_transformers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.35)
    made = engine(model, 8)
    with caplog.at_level(logging.WARNING, "ttpa"):
        found = made.generate(PROMPTS, 1, GREEDY, SEEDS)
        made.generate(PROMPTS[:1], 1, GREEDY, SEEDS[:1])
    assert "MistralForCausalLM" in caplog.text and len(caplog.records) == 1
    assert tokens(found) == [[theirs(model, prompt)] for prompt in PROMPTS]
    answers = [group[0].token_ids for group in found[:3]]
    flat = made.answer_logps(PROMPTS[2], answers)
    for answer, logps in zip(answers, flat, strict=True):
        expected = torch.log_softmax(forced_logits(model, [*PROMPTS[2], *answer]), -1)[len(PROMPTS[2]) - 1 : -1]
        assert logps == pytest.approx(expected.gather(-1, torch.tensor(answer)[:, None])[:, 0].tolist(), abs=1e-5)


def test_what_a_published_model_asks_of_generate_is_not_applied() -> None:
    """Many come with a repetition penalty of their own: it would change probabilities and log-probs silently."""
    model = random_model()
    expected = engine(model).generate(PROMPTS, 2, SAMPLED, SEEDS)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.no_repeat_ngram_size = 2
    own = model.generation_config.to_dict()
    same(engine(model, _plain=True).generate(PROMPTS, 2, SAMPLED, SEEDS), expected)
    assert model.generation_config.to_dict() == own


# --- probabilities of given tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_answer_log_probs_are_those_of_the_padded_forward_whatever_else_is_asked(plain: bool) -> None:
    rng = random.Random(4)
    stem = [rng.randrange(3, VOCAB) for _ in range(5)]
    answers = [
        [*stem[: rng.randrange(6)], *(rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, 9)))] for _ in range(9)
    ]
    answers += [answers[0], answers[3][:2]]
    for prompt in (PROMPTS[2], PROMPTS[4]):
        found = engine(model_of(), _plain=plain).answer_logps(prompt, answers)
        assert found is not None
        for answer, logps in zip(answers, found, strict=True):
            with torch.no_grad():
                expected = token_logps(model_of(), [TokenRow(prompt, answer)], pad_id=PAD).logps_N.tolist()
            assert logps == pytest.approx(expected, abs=1e-5)
        if not plain:  # a function of the set of answers: their order changes no bit
            order = rng.sample(range(len(answers)), len(answers))
            assert engine(model_of()).answer_logps(prompt, [answers[i] for i in order]) == [found[i] for i in order]


def test_next_log_probs_are_those_of_a_plain_forward() -> None:
    made, asked = engine(model_of()), (3, 17, 1, 4)
    found = made.next_logps(PROMPTS, asked)
    for prompt, row in zip(PROMPTS, found, strict=True):
        expected = torch.log_softmax(forced_logits(model_of(), prompt)[-1], -1)
        assert row == pytest.approx([float(expected[token]) for token in asked], abs=1e-5)
    assert found[::-1] == made.next_logps(PROMPTS[::-1], asked) and found[2] == found[-1]
    assert made.counts["prefilled"] == 2 * sum(map(len, PROMPTS))


# --- what the engine leaves behind -------------------------------------------------------------------------------


def everything(made: HFEngine) -> None:
    made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    made.generate(PROMPTS, 1, rule(), SEEDS)
    made.next_logps(PROMPTS[:2], [3])
    made.answer_logps(PROMPTS[0], [[3, 4], [3, 5]])


@pytest.mark.parametrize("plain", [False, True])
def test_mode_settings_and_gradients_are_as_they_were(plain: bool) -> None:
    model = random_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        everything(engine(model, _plain=plain))
        assert model.training == training and all(module.training == training for module in model.modules())
        assert model.config._attn_implementation == "sdpa" and not torch.is_inference_mode_enabled()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name]) and not weight.is_inference()
    rows = [TokenRow(PROMPTS[2], [5, 6, 1]), TokenRow(PROMPTS[2], [5, 7, 8, 1])]
    for forward in (token_logps, tree_token_logps):
        forward(model, rows, pad_id=PAD).logps_N.sum().backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_long_trees_can_be_trained_on_after_the_engine_has_computed_them() -> None:
    """Masks are kept between forwards: one made while exploring must not be in the way of training."""
    rng = random.Random(0)
    model = random_model(max_position_embeddings=1024)
    prompt = [rng.randrange(3, VOCAB) for _ in range(300)]
    answers = [[3 + i, *(rng.randrange(3, VOCAB) for _ in range(150))] for i in range(3)]
    engine(model).answer_logps(prompt, answers)
    tree_token_logps(model.train(), [TokenRow(prompt, a) for a in answers], worth=2.0).logps_N.sum().backward()
    assert model.lm_head.weight.grad is not None


class Broken(Exception):
    pass


def fails_after(calls: int) -> Callable[..., None]:
    left = iter(range(calls))

    def hook(*_: object) -> None:
        if next(left, None) is None:
            raise Broken

    return hook


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_failure_leaves_the_model_usable(plain: bool, calls: int) -> None:
    model = random_model().train()
    made = engine(model, _plain=plain)
    hook = model.model.layers[1].register_forward_pre_hook(fails_after(calls))
    with pytest.raises(Broken):
        made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    hook.remove()
    assert model.training and model.config._attn_implementation == "sdpa" and not torch.is_inference_mode_enabled()
    token_logps(model, [TokenRow(PROMPTS[0], [5, 6])], pad_id=PAD).logps_N.sum().backward()
    expected = engine(random_model(), _plain=plain).generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    same(made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES), expected)


# --- other devices and number formats ----------------------------------------------------------------------------


def test_a_row_that_fills_up_a_batch_does_not_speak_for_the_row_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision two places of one row may draw differently. The tokens written must be those that were read."""
    exact = decode.draw

    def by_place(logits_RV: Tensor, *given: Any, **named: Any) -> Any:
        noise = torch.randn(logits_RV.shape, generator=torch.Generator().manual_seed(len(logits_RV)))
        found = exact(logits_RV + noise, *given, **named)
        found.logp_R = torch.log_softmax(logits_RV, -1).gather(-1, found.token_R[:, None])[:, 0]
        return found

    monkeypatch.setattr(decode, "draw", by_place)
    prompts = [PROMPTS[0]] * 6 + PROMPTS[1:5]
    found = engine(model_of(), 64).generate(prompts, 1, sampling(30), [f"s{i}" for i in range(10)])
    for prompt, (answer,) in zip(prompts, found, strict=True):
        with torch.no_grad():
            forced = token_logps(model_of(), [TokenRow(prompt, answer.token_ids)], pad_id=PAD).logps_N.tolist()
        assert answer.logps == pytest.approx(forced, abs=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_half_precision_answers_are_those_of_its_own_forward(plain: bool) -> None:
    """Up to its rounding."""
    model = random_model("llama").to(torch.bfloat16)
    made = engine(model, 16, _plain=plain)
    found = made.generate(PROMPTS, 2, SAMPLED, SEEDS, PREFIXES)
    rows = [TokenRow([*p, *q], a.token_ids) for p, q, g in zip(PROMPTS, PREFIXES, found, strict=True) for a in g]
    with torch.no_grad():
        forced = token_logps(model, rows, pad_id=PAD).logps_N
    ours = torch.tensor([logp for group in found for answer in group for logp in answer.logps])
    assert torch.isfinite(ours).all() and float((ours - forced).abs().max()) < 0.15
    assert {answer.finish for group in found for answer in group} == {"stop", "length"}


@pytest.mark.parametrize("rows", [0, -1])
def test_an_engine_without_rows_is_refused(rows: int) -> None:
    with pytest.raises(ConfigError, match=rf"^engine\.rows={rows}: "):
        engine(model_of(), rows)
