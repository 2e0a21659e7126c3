"""GRPO's training loop on answers from a script: what a step computes, what a round keeps, how a killed run goes on."""

import csv
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from tests.train import plain
from tests.train.plain import (
    HUGE,
    PAD,
    VOCAB,
    KillAfter,
    Killed,
    furthest,
    gradients,
    grpo,
    grpo_loss,
    plain_logps,
    run_training,
    small_policy,
    weights_of,
)
from ttpa.calls.six_errors import LABELS
from ttpa.io import csv_row
from ttpa.policy.forward import Forward, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow
from ttpa.train.grpo import TABLE, Answer, Group, GRPOModule, RolloutData, Round, read_rounds
from ttpa.train.plan import Step
from ttpa.train.policy_gradient import GRPO

ANSWERS, LONGEST, SEED = 4, 6, 3
PROMPTS = tuple(
    tuple(random.Random(f"prompt {number}").randrange(2, VOCAB) for _ in range(5 + 3 * number)) for number in range(5)
)
FORWARDS: dict[str, Forward] = {"tree": tree_token_logps, "padded": token_logps}
AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo")
Made = tuple[GRPOModule, RolloutData]


def group_of(number: int, place: int, flat: bool = False) -> Group:
    """Answers of 1 to 6 tokens, the last one cut off, of which the first is the beginning of the second."""
    rng = random.Random(f"answers {number} {place}")
    ids = [[rng.randrange(2, VOCAB) for _ in range(rng.randint(1, LONGEST - 1))] for _ in range(ANSWERS - 1)]
    ids[1] = [*ids[0], *ids[1]][:LONGEST]
    ids.append([rng.randrange(2, VOCAB) for _ in range(LONGEST)])
    answers = []
    for k, tokens in enumerate(ids):
        score = 0.1 if flat else k / 4 + rng.random() / 5
        answer = Answer(
            token_ids=tokens, logps=[-4 * rng.random() for _ in tokens], score=score, reward=score, exact=k == 1,
            text=f'f(a={place})\n{k},"\u2028',  # JSON leaves this line break as it is; it ends no line of the file
            finish="length" if k == ANSWERS - 1 else "stop", detail={"name": score / 2, "args": rng.random()},
            errors=list(LABELS[:k]),
        )  # fmt: skip
        answers.append(answer)
    return Group(place=place, sample_id=f"s{number}", prompt=list(PROMPTS[number]), answers=answers)


def cut_off(answer: Answer) -> None:
    answer.finish = "length"


def no_tokens(answer: Answer) -> None:
    answer.token_ids = answer.logps = []


class Script:
    """Draws the same answers at a place of the stream, worth the same where it is `flat`. Notes what it is asked."""

    def __init__(
        self, flat: Callable[[int], bool] = lambda place: False, edit: Callable[[Answer], Any] = lambda answer: None
    ) -> None:
        self.flat, self.edit = flat, edit
        self.asked: list[tuple[list[int], list[int], int]] = []

    def __call__(self, numbers: Sequence[int], places: Sequence[int], step: int) -> Any:
        self.asked.append((list(numbers), list(places), step))
        groups = [group_of(number, place, self.flat(place)) for number, place in zip(numbers, places, strict=True)]
        for answer in (answer for group in groups for answer in group.answers):
            self.edit(answer)
        return groups, {"generate": 0.25, "score": 0.5}


def made(
    loss: GRPO, *, script: Any = None, steps: int = 3, forward: str = "tree", policy: Any = None, **options: Any
) -> Made:
    """A module over five prompts and its data; `options` are those of the data."""
    given = {"batch_size": 2, "micro_tokens": 40, "max_new_tokens": LONGEST, "seed": SEED, **options}
    lr = given.pop("lr", 1e-3)
    data = RolloutData(
        prompts=len(PROMPTS), draw=script or Script(), loss=loss, total_steps=steps, trees=forward == "tree", **given
    )
    settings = plain.align_recipe(lr=lr, schedule="constant")
    return GRPOModule(policy or small_policy(), settings, (steps,), FORWARDS[forward], rollouts=data), data


class Notes(pl.Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def answers_of(data: RolloutData, step: Step) -> tuple[int, ...]:
    """Numbers within the round of the answers of a step."""
    places = {id(answer): k for k, answer in enumerate(data.round.answers)}  # type: ignore[union-attr]
    return tuple(places[id(example.answer)] for micro in step.micros for example in micro)  # type: ignore[attr-defined]


def rows_of_round(found: Round) -> list[TokenRow]:
    return [TokenRow(group.prompt, answer.token_ids) for group in found.groups for answer in group.answers]


def begun(both: Made, number: int = 0) -> Round:
    module, data = both
    module.round = data.round_at(number, module._finish)
    return module.round


def step_by_hand(both: Made, number: int = 0) -> tuple[float, dict[str, Tensor], dict[str, float], tuple[int, ...]]:
    """Loss, gradients, metrics (means over rows) and rows of one step, without updating."""
    module, data = both
    step = data.step(begun(both, number), number)
    total, sums = 0.0, Counter[str]()
    for rows in step.micros:
        loss, metrics = module.micro_loss(rows, step)  # type: ignore[arg-type]
        loss.backward()
        total += float(loss.detach())
        for name, value in metrics.items():
            sums[name] += float(value) * len(rows) / step.examples
    return total, gradients(module), dict(sums), answers_of(data, step)


def answer_logps(model: torch.nn.Module, row: TokenRow) -> Tensor:
    return plain_logps(model, row)[len(row.prompt) - 1 :]


@pytest.mark.parametrize(
    "fields",
    [{"aggregation": "dr_grpo"}, {"aggregation": "dapo", "importance": "sequence", "kl_weighted": True}],
    ids=["dr_grpo", "sequence"],
)
def test_neither_micro_batches_nor_trees_change_the_steps(fields: dict[str, Any], tmp_path: Path) -> None:
    """Five steps: a round of four and one of the next. Nor is anything else logged: means are over a step's tokens."""
    loss = grpo(num_iterations=2, minibatches=2, beta=0.04, clip_low=0.02, clip_high=0.03, **fields)
    weights, metrics = [], []
    for forward, micro_tokens in (("padded", HUGE), ("padded", 1), ("tree", HUGE), ("tree", 1)):
        both = made(loss, steps=5, micro_tokens=micro_tokens, forward=forward)
        before = weights_of(both[0])
        metrics.append(run_training(both, tmp_path / f"{forward}{micro_tokens}"))
        weights.append(weights_of(both[0]))
        step = both[1].step(both[1].round or pytest.fail("no round"), 4)
        assert len(step.micros) == ((2 if forward == "tree" else 8) if micro_tokens == 1 else 1)
        del metrics[-1]["tokens_computed"]
    assert all(furthest(found, weights[0]) < 1e-6 for found in weights[1:]) and furthest(weights[0], before) > 1e-3
    assert metrics[0]["kl"] > 1e-4 and metrics[0]["entropy"] > 1
    assert all(found == pytest.approx(metrics[0], rel=1e-4, abs=1e-6) for found in metrics[1:])


@pytest.mark.parametrize("masked", [False, True], ids=["all", "without truncated"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_is_normalised_over_all_its_answers(aggregation: str, masked: bool) -> None:
    """The third step of a round, after the weights have moved, an answer a micro-batch: the loss of one big batch."""

    def emptied(answer: Answer) -> None:
        if answer.exact:
            no_tokens(answer)

    loss = grpo(aggregation=aggregation, num_iterations=2, minibatches=2, beta=0.04, mask_truncated=masked)
    both = made(loss, micro_tokens=1, forward="padded", script=Script(edit=emptied))
    module, data = both
    begun(both)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    total, found, metrics, rows = step_by_hand(both, 2)
    assert len(rows) == 8 and len(data.step(begun(both), 2).micros) == 8
    answers, every = begun(both).answers, rows_of_round(begun(both))
    logps, mask = token_logps(module.model, [every[k] for k in rows], pad_id=PAD).padded()
    width = logps.shape[1]

    def table(name: str) -> Tensor:
        return torch.tensor([[*getattr(answers[k], name), *[0.0] * width][:width] for k in rows])

    if masked:
        mask = mask & torch.tensor([[answers[k].finish != "length"] for k in rows])
        assert 0 < mask.any(1).sum() < 8
    advantages = torch.tensor([answers[k].advantage for k in rows])
    fields = {"beta": 0.04, "aggregation": aggregation, "max_length": LONGEST}
    expected, of_batch = grpo_loss(logps, table("old_logps"), table("ref_logps"), advantages, mask, **fields)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), abs=1e-6)
    grads = gradients(module)
    assert furthest(found, grads) < 1e-6 < 1e-3 < max(float(grad.abs().max()) for grad in grads.values())
    assert of_batch == pytest.approx({name: metrics[name] for name in of_batch}, rel=1e-5, abs=1e-6)
    assert metrics["clip_ratio/region_mean"] > 0.05 and metrics["kl"] > 1e-3, "clipping was not put to the test"


GAPS = {0: math.log(3.0), 1: math.log(1.5), 2: math.log(0.5), 3: 0.0}
"""Log-prob of a token under the trainer minus that under the engine, by the answer's number in its group."""


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("own_engine", "most", "weights"),
    [(False, 2.0, (2.0, 1.5, 0.5, 1.0)), (False, None, (1.0,) * 4), (True, 2.0, (1.0,) * 4)],
    ids=["cut at 2", "off", "own engine"],
)
def test_the_first_step_of_a_round_is_the_plain_policy_gradient(
    own_engine: bool, most: float | None, weights: tuple[float, ...], passes: int
) -> None:
    """Ratios are 1: the gradient is that of minus the mean over answers of w A mean log p, with w 1 or, for another
    engine, min(exp(gap), C) of each token. The gap is told whoever drew.
    """
    both = made(grpo(truncated_importance=most, num_iterations=passes), own_engine=own_engine, micro_tokens=1)
    module, _ = both
    expected, total, advantages, gaps = torch.zeros(()), 0.0, [], []
    for group in begun(both).groups:
        rewards = torch.tensor([answer.reward for answer in group.answers])
        for k, (answer, reward) in enumerate(zip(group.answers, rewards, strict=True)):
            advantages.append(float((reward - rewards.mean()) / (rewards.std() + 1e-4)))
            logps = answer_logps(module.model, TokenRow(group.prompt, answer.token_ids))
            answer.logps = [value - GAPS[k] for value in logps.tolist()]
            gaps += [abs(GAPS[k])] * len(answer.logps)
            expected = expected - weights[k] * advantages[-1] * logps.mean() / 8
            total -= weights[k] * advantages[-1] / 8
    found_total, found, metrics, _ = step_by_hand(both)
    expected.backward()
    grads = gradients(module)
    assert furthest(found, grads) < 1e-5 < 1e-2 < max(float(grad.abs().max()) for grad in grads.values())
    assert found_total == pytest.approx(total, abs=1e-5)
    assert [answer.advantage for answer in begun(both).answers] == pytest.approx(advantages, abs=1e-5)
    assert [metrics[f"clip_ratio/{kind}_mean"] for kind in ("low", "high", "region")] == [0.0, 0.0, 0.0]
    told = module.step_metrics()
    assert told["sampling/sampling_logp_difference/mean"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert told["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(3.0), abs=1e-5)


def test_every_answer_is_learned_from_in_each_pass_of_a_round() -> None:
    """Each of the 4 groups once a pass, whole, in another order in the next pass."""
    both = made(grpo(num_iterations=3, minibatches=2), micro_tokens=1)
    steps = [list(answers_of(both[1], both[1].step(begun(both), number))) for number in range(6)]
    passes = [steps[0] + steps[1], steps[2] + steps[3], steps[4] + steps[5]]
    assert all(sorted(rows) == list(range(16)) for rows in passes)
    assert len({tuple(rows[:8]) for rows in passes}) > 1
    for rows in steps:
        assert sorted(rows) == [4 * group + k for group in sorted({row // 4 for row in rows}) for k in range(4)]
    assert len(both[1].draw.asked) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("forward", FORWARDS)
def test_entropy_is_the_mean_over_tokens_from_full_logits(forward: str) -> None:
    """And log-probs are measured, at the temperature of the draws."""
    both = made(grpo(num_iterations=2), forward=forward, micro_tokens=1, temperature=0.7)
    entropies, logps = [], []
    for row in rows_of_round(begun(both)):
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad():
            every = (both[0].model(input_ids=ids).logits[0, -len(row.answer) - 1 : -1] / 0.7).log_softmax(-1)
        entropies += (-(every.exp() * every).sum(-1)).tolist()
        logps += every.gather(1, torch.tensor(row.answer)[:, None])[:, 0].tolist()
    _, _, metrics, _ = step_by_hand(both)
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    found = [value for answer in begun(both).answers for value in answer.old_logps or ()]
    assert found == pytest.approx(logps, abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    "script",
    [Script(flat=lambda place: True), Script(edit=cut_off), Script(edit=no_tokens)],
    ids=["equal rewards", "all cut off", "no tokens"],
)
def test_a_step_that_teaches_nothing_leaves_the_weights_alone(script: Script, aggregation: str, tmp_path: Path) -> None:
    """Rewards of 0.1, whose float mean is not 0.1."""
    both = made(grpo(aggregation=aggregation, mask_truncated=True, num_iterations=2), script=script, steps=2)
    before = weights_of(both[0])
    metrics = run_training(both, tmp_path)
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0) and furthest(weights_of(both[0]), before) == 0.0


def test_the_stream_is_one_permutation_after_the_other() -> None:
    _, data = made(grpo())
    order = [data.prompt_at(place) for place in range(20)]
    passes = [tuple(order[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(numbers) == [0, 1, 2, 3, 4] for numbers in passes) and len(set(passes)) > 1
    assert order == [made(grpo())[1].prompt_at(place) for place in range(20)]
    data.seed += 1
    assert order != [data.prompt_at(place) for place in range(20)]


@pytest.mark.parametrize(
    ("refills", "flat", "asked", "kept"),
    [
        # Of places 0 to 9 the odd ones flat: 0-3 keep 0, 2; 4-5 keep 4; 6 keeps 6.
        (4, lambda place: place % 2 == 1, [[0, 1, 2, 3], [4, 5], [6]], [0, 2, 4, 6]),
        # Only place 4 differs, two refills: the first three flat groups fill up.
        (2, lambda place: place != 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]], [4, 0, 1, 2]),
        (0, lambda place: place == 1, [[0, 1, 2, 3]], [0, 1, 2, 3]),
    ],
    ids=["replaced", "filled up", "no refills"],
)
def test_groups_without_a_difference_are_replaced_by_the_next_prompts(
    refills: int, flat: Callable[[int], bool], asked: list[list[int]], kept: list[int]
) -> None:
    script = Script(flat=flat)
    both = made(grpo(refills=refills, minibatches=2), script=script)
    found, data = begun(both), both[1]
    assert [places for _, places, _ in script.asked] == asked
    assert all(numbers == [data.prompt_at(place) for place in places] for numbers, places, _ in script.asked)
    assert [group.place for group in found.groups] == kept and data.place == asked[-1][-1] + 1 == found.drawn
    assert found.metrics["groups/kept"] == pytest.approx(4 / found.drawn)
    assert found.metrics["frac_reward_zero_std"] == sum(map(flat, kept)) / 4
    assert found.seconds["generate"] == 0.25 * len(asked)
    drawn = [group_of(data.prompt_at(place), place) for place in range(data.place)]
    assert found.generated == sum(len(answer.token_ids) for group in drawn for answer in group.answers)
    for group in found.groups:
        assert any(answer.advantage for answer in group.answers) != flat(group.place)
    begun(both, 2)
    assert script.asked[len(asked)][1][0] == found.drawn and script.asked[len(asked)][2] == 2


def with_adapter() -> Any:
    policy = small_policy()
    torch.manual_seed(4)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy.model = get_peft_model(policy.model, config)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    return policy


@pytest.mark.parametrize("policy", [small_policy, with_adapter], ids=["full", "trained adapter"])
def test_the_reference_is_the_start_and_old_log_probs_those_of_the_weights_that_drew(
    policy: Callable[[], Any], tmp_path: Path
) -> None:
    notes, file = Notes(), tmp_path / "rollouts.jsonl"
    options: dict[str, Any] = {"lr": 1e-2, "micro_tokens": HUGE}
    both = made(grpo(beta=0.04, num_iterations=2), steps=4, file=file, policy=policy(), **options)
    early = made(grpo(beta=0.04, num_iterations=2), steps=2, policy=policy(), **options)
    count, start = sum(1 for _ in policy().model.parameters()), deepcopy(both[0].model)
    assert sum(1 for _ in both[0].parameters()) == count
    assert not [name for name in both[0].state_dict() if not name.startswith("model.")]
    run_training(both, tmp_path / "run", notes)
    run_training(early, tmp_path / "early")
    kls = [step["kl"] for step in notes.steps]
    assert kls[0] < 1e-8 < 1e-5 < min(kls[1:])
    for drew, found in zip((start, early[0].model), read_rounds(file), strict=True):
        for answer, row in zip(found.answers, rows_of_round(found), strict=True):
            with torch.no_grad():
                assert answer.ref_logps == pytest.approx(answer_logps(start, row).tolist(), abs=1e-5)
                assert answer.old_logps == pytest.approx(answer_logps(drew, row).tolist(), abs=1e-5)
    assert {(answer.ref_logps, answer.old_logps) for answer in begun(made(grpo())).answers} == {(None, None)}


def test_metrics_have_trls_names_and_are_those_of_the_answers(tmp_path: Path) -> None:
    notes = Notes()
    both = made(grpo(beta=0.04, num_iterations=2), steps=2)
    run_training(both, tmp_path, notes)
    told = notes.steps[1]
    assert told.keys() - {"tokens_per_s"} == {
        *("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "loss", "grad_norm", "lr", "step_time"),
        *(f"completions/{kind}_{of}length" for kind in ("mean", "min", "max") for of in ("", "terminated_")),
        *("completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
        *("clip_ratio/low_min", "clip_ratio/high_max"),
        *(f"rewards/{part}/{kind}" for part in ("name", "args") for kind in ("mean", "std")),
        *(f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max")),
        *(f"errors/{label}" for label in LABELS),
        *("exact", "groups/kept", "generated", "time/generate", "time/score", "time/measure", "time/train"),
    }
    answers = begun(both).answers
    lengths = torch.tensor([float(len(answer.token_ids)) for answer in answers])
    ended = torch.tensor([float(len(answer.token_ids)) for answer in answers if answer.finish == "stop"])
    rewards = torch.tensor([answer.reward for answer in answers])
    parts = torch.tensor([answer.detail["args"] for answer in answers])
    expected = {
        "reward": rewards.mean(), "reward_std": rewards.std(), "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(), "completions/max_length": 6.0, "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": ended.mean(), "completions/min_terminated_length": ended.min(),
        "completions/max_terminated_length": ended.max(), "exact": 0.25, "generated": lengths.sum(),
        "rewards/args/mean": parts.mean(), "rewards/args/std": parts.std(), "time/generate": 0.125,
        # The second answer of a group has the first label, the third two, the fourth three.
        **{f"errors/{label}": share for label, share in zip(LABELS, (0.75, 0.5, 0.25), strict=False)},
        f"errors/{LABELS[-1]}": 0.0,
    }  # fmt: skip
    assert expected == pytest.approx({name: told[name] for name in expected}, rel=1e-5)


def test_the_table_shows_two_groups_of_every_so_many_steps(tmp_path: Path) -> None:
    class Tables(CSVLogger):
        def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
            given.append((key, columns, data, step))

    given: list[tuple[str, list[str], list[list[Any]], int]] = []
    both = made(grpo(), steps=5, batch_size=3, table=(tmp_path / "answers.csv", 2))
    run_training(both, tmp_path / "run", logger=Tables(tmp_path))
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    assert tuple(head) == TABLE and [line[0] for line in lines] == ["0"] * 8 + ["2"] * 8 + ["4"] * 8
    assert [(key, columns, step) for key, columns, _, step in given] == [("answers", list(TABLE), n) for n in (0, 2, 4)]
    assert [[str(value) for value in csv_row(row)] for _, _, data, _ in given for row in data] == lines
    last = [dict(zip(TABLE, line, strict=True)) for line in lines[-8:]]
    shown = [(group, k) for group in begun(both, 4).groups[:2] for k in range(ANSWERS)]
    for row, (group, k) in zip(last, shown, strict=True):
        answer = group.answers[k]
        assert (row["sample_id"], int(row["answer"]), row["text"]) == (group.sample_id, k, answer.text)
        assert (float(row["reward"]), float(row["advantage"])) == (answer.reward, answer.advantage)
        assert row["errors"].split() == list(LABELS[:k]) and row["exact"] == str(k == 1)


ROUNDS = {"a step a round": (grpo(beta=0.04), 3), "four steps a round": (grpo(num_iterations=2, minibatches=2), 6)}
SECONDS = re.compile(r'"seconds":\{[^}]*\}')


def whole_run(kind: str, folder: Path, *extra: pl.Callback, script: Any = None) -> tuple[Made, Any, Script]:
    """Trains in a folder, from its resume point where it has one."""
    loss, steps = ROUNDS[kind]
    script = script or Script(flat=lambda place: place % 7 == 2)
    folder.mkdir(exist_ok=True)
    files: dict[str, Any] = {"file": folder / "rollouts.jsonl", "table": (folder / "answers.csv", 2)}
    both = made(loss, steps=steps, script=script, **files)
    return both, run_training(both, folder, *extra, every=1), script


@pytest.mark.parametrize("kind", ROUNDS)
def test_killed_after_any_step_a_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    """The step of which no resume point is written is done again."""
    whole, metrics, script = whole_run(kind, tmp_path / "whole")
    loss, steps = ROUNDS[kind]
    lines = (tmp_path / "whole" / "rollouts.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and len(lines) == math.ceil(steps / loss.steps_a_round)
    rounds = read_rounds(tmp_path / "whole" / "rollouts.jsonl")
    assert rounds[-1] == whole[1].round and [asdict(one) for one in rounds] == list(map(json.loads, lines))
    for stop in (1, 2, steps) if loss.steps_a_round == 1 else (2, 4, 5):
        folder, first = tmp_path / str(stop), Script(flat=script.flat)
        with pytest.raises(Killed):
            whole_run(kind, folder, KillAfter(stop), script=first)
        again, found, second = whole_run(kind, folder)
        assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0, stop
        assert found == metrics, stop
        assert first.asked == script.asked[: len(first.asked)], stop
        # The round that the resume point lies in is in it.
        inside = math.ceil((stop - 1) / loss.steps_a_round)
        assert second.asked == script.asked[inside:], stop
        for name in ("rollouts.jsonl", "answers.csv"):
            ours, theirs = ((place / name).read_text("utf-8") for place in (folder, tmp_path / "whole"))
            assert SECONDS.sub("", ours) == SECONDS.sub("", theirs), (stop, name)
