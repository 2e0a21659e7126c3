"""The training loop: what a step computes, whatever micro-batches, trees and ranks; how a killed run goes on."""

import errno
import io
import os
import pickle
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    plain_logps,
    run_training,
    small_policy,
    weights_of,
)
from ttpa.errors import DataError, Interrupted, of_disk
from ttpa.policy.forward import Forward, answer_sums, tree_token_logps
from ttpa.policy.logprobs import token_logps
from ttpa.policy.tree import TokenRow, TokenTree
from ttpa.train import module as training
from ttpa.train.losses import DPO, PreferenceLoss, SimPO
from ttpa.train.module import PairExample, PlanData, PolicyModule, PreferenceModule, SFTModule, sft_example
from ttpa.train.plan import Example, Plan, Step, cut_step, plan_warmup, trained_rows
from ttpa.train.settings import Optimisation

PROMPT_WEIGHT = 0.3
STEPS = ((0, 1, 2, 3, 4), (8, 5, 6, 7), (7, 8, 0, 3, 2), (4, 5, 6, 0), (1, 7, 8, 3))
FORWARDS: dict[str, Forward] = {"padded": token_logps, "tree": tree_token_logps}
Made = tuple[PolicyModule, PlanData]


def drawn_ids(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(2, VOCAB) for _ in range(rng.randint(low, high))]


def demonstrations(dialogues: int, turns: int, seed: int, prompt_weight: float = PROMPT_WEIGHT) -> list[Example]:
    """Of dialogues: a turn's prompt is the last one's with its answer and a question."""
    rng, found = random.Random(seed), []
    for number in range(dialogues):
        prompt = drawn_ids(rng, 6, 14)
        for _ in range(turns):
            row = TokenRow(prompt, [*drawn_ids(rng, 1, 6), 1])
            found.append(sft_example([row], prompt_weight, number))
            prompt = [*prompt, *row.answer, *drawn_ids(rng, 1, 4)]
    return found


def pairs_of(count: int, prompts: int, seed: int) -> list[tuple[TokenRow, TokenRow]]:
    """Pairs on a few prompts, answers alike in front; the last one's rejected answer is a prefix of the chosen one."""
    rng, pairs = random.Random(seed), []
    openings = [drawn_ids(rng, 8, 20) for _ in range(prompts)]
    for number in range(count):
        prompt, front = openings[number % prompts], drawn_ids(rng, 0, 3)
        pairs.append(tuple(TokenRow(prompt, [*front, *drawn_ids(rng, 1, 4), 1]) for _ in range(2)))
    chosen, _ = pairs[-1]
    return [*pairs[:-1], (chosen, TokenRow(chosen.prompt, chosen.answer[:-1]))]


PAIRS = pairs_of(9, 3, 1)


def adamw(**fields: Any) -> Optimisation:
    return plain.align_recipe(**{"lr": 3e-3, "weight_decay": 0.1, "warmup_steps": 2, **fields})


def references(forward: Forward = token_logps, name: str = "qwen2") -> list[tuple[float, float]]:
    """Not the policy's own, so that DPO does not start from equal log-ratios."""
    sums = answer_sums(forward, small_policy(1, name).model, PAIRS, pad_id=PAD, budget=100)
    return [(c + 0.5, r - 0.25 * i) for i, (c, r) in enumerate(sums)]


def made(
    kind: str | Plan, settings: Optimisation, micro_tokens: int = 40, forward: str = "padded", name: str = "qwen2",
    steps: Sequence[Sequence[int]] = STEPS, boundaries: Sequence[int] | None = None, layers: int = 1,
) -> Made:  # fmt: skip
    """A module and its data: "sft", "sft with prompt weight", a preference, or SFT on a plan."""
    loss = LOSSES.get(kind) if isinstance(kind, str) else None
    weight = PROMPT_WEIGHT if kind != "sft" else 0.0
    examples = demonstrations(3, 3, 0, weight)
    if loss is not None:
        known = references(FORWARDS[forward], name) if loss.needs_reference else [None] * len(PAIRS)
        examples = [PairExample(pair, len(pair[0].answer), k, known[k]) for k, pair in enumerate(PAIRS)]
    plan = Plan(tuple(tuple(examples[k] for k in step) for step in steps), tuple(boundaries or (len(steps),)))
    plan = kind if isinstance(kind, Plan) else plan
    given = (small_policy(layers, name), settings, plan.boundaries, FORWARDS[forward])
    module = SFTModule(*given, prompt_weight=weight) if loss is None else PreferenceModule(*given, loss=loss)
    return module, PlanData(plan, micro_tokens, trees=forward == "tree")


LOSSES: dict[str, PreferenceLoss] = {
    "dpo with anchor": plain.loss(DPO, beta=0.5, label_smoothing=0.1, sft_weight=0.3),
    "simpo with anchor": plain.loss(SimPO, beta=2.0, gamma_beta_ratio=0.4, sft_weight=0.3),
}
KINDS = ("sft", "sft with prompt weight", *LOSSES)


def backward(module: PolicyModule, steps: Sequence[Step]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the ranks' shares of a step."""
    total = 0.0
    for step in steps:
        for examples in filter(None, step.micros):
            loss, _ = module.micro_loss(examples, step)
            loss.backward()
            total += float(loss.detach())
    return total, gradients(module)


def plain_loss(module: PolicyModule, examples: Sequence[Example]) -> Tensor:
    """The loss of a step from full logits: mean NLL over tokens; or mean over pairs, plus 0.3 times the chosen NLL."""
    nll, weight, losses = torch.zeros(()), 0.0, []
    for example in examples:
        row = example.rows[0]
        if isinstance(module, SFTModule):
            weights = torch.ones(len(row) - 1)
            weights[: len(row.prompt) - 1] = module.prompt_weight
            nll, weight = nll - (weights * plain_logps(module.model, row)).sum(), weight + float(weights.sum())
            continue
        assert isinstance(module, PreferenceModule) and isinstance(example, PairExample)
        chosen, rejected = (plain_logps(module.model, one)[-len(one.answer) :].sum() for one in example.rows)
        nll, weight = nll - chosen, weight + len(row.answer)
        if example.reference is not None:
            margin = 0.5 * (chosen - example.reference[0] - rejected + example.reference[1])
            losses.append(-0.9 * torch.log(torch.sigmoid(margin)) - 0.1 * torch.log(torch.sigmoid(-margin)))
        else:
            means = chosen / len(row.answer) - rejected / len(example.rows[1].answer)
            losses.append(-torch.log(torch.sigmoid(2.0 * means - 0.8)))
    return torch.stack(losses).mean() + 0.3 * nll / weight if losses else nll / weight


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("forward", "micro_tokens"), [("padded", 1), ("padded", HUGE), ("tree", 1), ("tree", HUGE)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_step_is_that_of_the_plain_formula_over_full_logits(
    kind: str, forward: str, micro_tokens: int, world: int
) -> None:
    """The ranks' shares add up to it."""
    module, data = made(kind, adamw(), micro_tokens, forward, "llama" if world == 3 else "qwen2")
    examples, trees = data.plan.steps[0], forward == "tree"
    steps = [cut_step(examples, micro_tokens, trees, rank, world) for rank in range(world)]
    assert world > 1 or (len(steps[0].micros) == 1) == (micro_tokens == HUGE)
    total, found = backward(module, steps)
    expected = plain_loss(module, examples)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    grads = gradients(module)
    assert furthest(found, grads) < 1e-5 < max(float(grad.abs().max()) for grad in grads.values())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_training_is_the_plain_loop(kind: str, tmp_path: Path) -> None:
    """Clip, AdamW at the scheduled rate: three steps in two phases."""
    module, data = made(kind, adamw(clip=0.5), steps=STEPS[:3], boundaries=(2, 3))
    start = weights_of(module)
    metrics = run_training((module, data), tmp_path)
    other, _ = made(kind, adamw())
    matrices = [p for name, p in other.model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in other.model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    loss, norms = torch.zeros(()), []
    for number, examples in enumerate(data.plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5, 1.0, 0.5)[number]  # warm-up of 2 steps in phases of 2 and 1
        optimizer.zero_grad()
        loss = plain_loss(other, examples)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)))
        optimizer.step()
    assert furthest(weights_of(module), weights_of(other)) < 5e-6 < 1e-3 < furthest(weights_of(module), start)
    assert max(norms) > 0.5, "clipping was not put to the test"
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(norms[-1], rel=1e-3)
    assert metrics["lr"] == pytest.approx(1.5e-3) and metrics["steps"] == 3
    assert metrics["tokens"] == sum(len(row) for step in data.plan.steps for one in step for row in one.rows)


@pytest.mark.parametrize(("kind", "name"), list(zip(KINDS, ("qwen2", "llama") * 2, strict=True)))
def test_neither_micro_batches_nor_trees_change_three_steps(kind: str, name: str, tmp_path: Path) -> None:
    """Nor what is told of them, but for the token means of a micro-batch."""
    weights, metrics = {}, {}
    for forward, micro_tokens in (("padded", HUGE), ("padded", 1), ("tree", HUGE), ("tree", 1)):
        key = f"{forward}{micro_tokens}"
        both = made(kind, adamw(lr=1e-3), micro_tokens, forward, name, STEPS[:3])
        before = weights_of(both[0])
        metrics[key], weights[key] = run_training(both, tmp_path / key), weights_of(both[0])
    first, *others = weights.values()
    assert all(furthest(one, first) < 1e-5 for one in others) and furthest(first, before) > 1e-3
    computed = {key: one.pop("tokens_computed") for key, one in metrics.items()}
    expected, *found = ({k: v for k, v in one.items() if not k.startswith("nll")} for one in metrics.values())
    assert all(one == pytest.approx(expected, rel=1e-3, abs=1e-5) for one in found)
    assert computed[f"tree{HUGE}"] < 0.75 * expected["tokens"] < 0.75 * computed[f"padded{HUGE}"]


@st.composite
def steps_of_units(draw: st.DrawFn) -> list[Example]:
    """Rows of up to six units."""
    units = draw(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    sizes = [(draw(st.integers(1, 40)), draw(st.integers(0, 10))) for _ in units]
    return [Example((TokenRow([2] * p, [3] * a),), 1.0, unit) for unit, (p, a) in zip(units, sizes, strict=True)]


@settings(deadline=None, max_examples=60)
@given(examples=steps_of_units(), micro_tokens=st.integers(1, 200), world=st.integers(1, 3), trees=st.booleans())
def test_ranks_share_a_step_and_units_stay_in_one_micro_batch(
    examples: list[Example], micro_tokens: int, world: int, trees: bool
) -> None:
    """Every row once; all ranks have as many micro-batches; several units keep the budget together."""
    steps = [cut_step(examples, micro_tokens, trees, rank, world) for rank in range(world)]
    micros = [micro for step in steps for micro in step.micros if micro]
    assert sorted(id(one) for micro in micros for one in micro) == sorted(map(id, examples))
    assert len({len(step.micros) for step in steps}) == 1
    assert {(step.weight, step.examples) for step in steps} == {(float(len(examples)), len(examples))}
    assert sum(step.tokens for step in steps) == sum(len(one.rows[0]) for one in examples)
    if trees:
        assert sum(len({one.unit for one in micro}) for micro in micros) == len({one.unit for one in examples})
    for micro in micros:
        homes = [[one.rows[0] for one in micro if one.unit == unit] for unit in {one.unit for one in micro}]
        costs = []
        for home in homes:
            longest = max(home, key=len)
            costs.append(len(longest) + sum(len(row.answer) for row in home if row is not longest))
        cost = sum(costs) if trees else len(micro) * max(len(one.rows[0]) for one in micro)
        assert (len(homes) if trees else len(micro)) == 1 or cost <= micro_tokens


@pytest.mark.parametrize(("trees", "expected"), [(True, [[3, 0, 1, 2]]), (False, [[1, 2, 0], [3]])])
def test_trees_are_packed_by_their_sum_and_padded_rows_by_their_longest(trees: bool, expected: list[list[int]]) -> None:
    examples = [Example((TokenRow([2] * (size - 1), [3]),), 1.0, k) for k, size in enumerate((30, 10, 10, 50))]
    assert [[one.unit for one in micro] for micro in cut_step(examples, 100, trees).micros] == expected


@pytest.mark.parametrize("micro_tokens", [1, 100, HUGE])
def test_the_planned_cost_of_a_dialogue_bounds_its_tree(micro_tokens: int) -> None:
    """The longest row and the others' answers are at least the nodes, because each history is a prefix of the next."""
    examples = demonstrations(8, 4, 3)
    recipe = plain.warmup_recipe(batch_tokens=300, epochs=1.0)
    plan = plan_warmup(examples, [""] * len(examples), plain.warmup(), recipe, 0)
    homes: list[Any] = []
    for micro in (micro for step in plan.steps for micro in cut_step(step, micro_tokens, trees=True).micros):
        nodes = len(TokenTree.build([[*one.rows[0].prompt, *one.rows[0].answer] for one in micro]))
        homes.append({one.unit for one in micro})
        assert nodes <= micro_tokens or len(homes[-1]) == 1
    assert sorted(unit for home in homes for unit in home) == list(range(8)), "no dialogue is in two micro-batches"


BANDS = plan_warmup(
    demonstrations(3, 4, 0), ["easy"] * 4 + ["medium"] * 5 + ["hard"] * 3, plain.warmup(order="bands", replay=0.5),
    plain.warmup_recipe(batch_tokens=40, epochs=2.0), 0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "stops", "every"),
    [
        (partial(made, "sft with prompt weight", adamw(optimizer="muon_adamw"), layers=2), (4,), 2),
        (partial(made, "dpo with anchor", adamw(), 60, "tree"), (3,), 1),
        (partial(made, BANDS, adamw(optimizer="muon_adamw"), 20), [at + 2 for at in BANDS.boundaries[:2]], 1),
        (partial(made, "sft", adamw()), (2,), 1000),
    ],
    ids=["muon, every 2", "dpo", "curriculum", "before the first resume point"],
)
def test_a_killed_run_continues_to_the_same_bits(
    make: Callable[[], Made], stops: Sequence[int], every: int, tmp_path: Path
) -> None:
    """A curriculum is killed in its second and in its third band."""
    whole, again = make(), make()
    metrics = run_training(whole, tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Killed):
            run_training(make(), tmp_path / "cut", KillAfter(stop), every=every)
        if every > stop:
            assert not list((tmp_path / "cut").iterdir())
        else:
            saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
            assert saved["global_step"] == (stop - 1) // every * every
    assert run_training(again, tmp_path / "cut", every=every) == metrics
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


def test_a_run_killed_while_it_saves_its_policy_keeps_the_weights(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        raise Killed

    first, second = (made("sft", adamw(), steps=STEPS[:3]) for _ in range(2))
    first[0].policy.save = killed
    with pytest.raises(Killed):
        run_training(first, tmp_path, every=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    metrics = run_training(second, tmp_path, every=1)
    assert metrics["steps"] == 3 and metrics["loss"] > 0 and not list(tmp_path.iterdir())
    assert furthest(weights_of(first[0]), weights_of(second[0])) == 0.0


class Command:
    """A pickle of it makes a folder where it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "torn": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a flipped bit": flipped,
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Command())),
    "a pickle inside": lambda file: torch.save({"progress": Command()}, file),
    "something else": lambda file: torch.save({"a": 1}, file),
}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_resume_point_that_cannot_be_read_is_named_and_the_one_before_is_used(
    damage: str, both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or none, where both are damaged; nothing in them is executed."""
    monkeypatch.chdir(tmp_path)
    whole, again = (made("sft", adamw(), steps=STEPS[:4]) for _ in range(2))
    metrics = run_training(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(made("sft", adamw(), steps=STEPS[:4]), tmp_path / "cut", KillAfter(4), every=1)
    files = [tmp_path / "cut" / name for name in ("last.ckpt", "before.ckpt")]
    assert [torch.load(file, weights_only=True)["global_step"] for file in files] == [3, 2]
    for file in files[: 1 + both]:
        DAMAGES[damage](file)
    assert run_training(again, tmp_path / "cut") == metrics
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": this resume point cannot be read (")[0] for line in lines] == [
        f"ttpa: warning: {file}" for file in files[: 1 + both]
    ]
    assert not Path("ran").exists() and not list((tmp_path / "cut").iterdir())


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_kill_while_a_resume_point_is_written_leaves_the_one_before(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = (made("sft", adamw(), steps=STEPS[:4]) for _ in range(2))
    metrics, save, replace = run_training(whole, tmp_path / "whole"), torch.save, Path.replace

    def torn(content: Any, file: Any) -> None:
        save(content, file)
        if step == "write" and content["global_step"] == 3:
            file.truncate(file.tell() // 2)
            raise Killed

    def killed(self: Path, target: Path) -> Path:
        if step == "rename" and self.suffix == ".part" and (self.parent / "before.ckpt").exists():
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch, "save", torn)
        patch.setattr(Path, "replace", killed)
        run_training(made("sft", adamw(), steps=STEPS[:4]), tmp_path / "cut", every=1)
    assert run_training(again, tmp_path / "cut", every=1) == metrics and not list((tmp_path / "cut").iterdir())
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


def test_a_full_disk_leaves_the_resume_point_before_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = (made("sft", adamw(), steps=STEPS[:4]) for _ in range(2))
    metrics, opened, points = run_training(whole, tmp_path / "whole"), Path.open, list[Path]()

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    def open_full(self: Path, *how: Any, **more: Any) -> Any:
        points.extend([self] * (self.suffix == ".part"))
        return Full(self, "wb") if len(points) == 3 else opened(self, *how, **more)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device") as caught:
        patch.setattr(Path, "open", open_full)
        run_training(made("sft", adamw(), steps=STEPS[:4]), tmp_path / "cut", every=1)
    assert re.fullmatch(r"\S*/cut/last.ckpt: No space left on device. Free some space, .*", str(of_disk(caught.value)))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["before.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert run_training(again, tmp_path / "cut", every=1) == metrics
    assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0


class SignalAt(pl.Callback):
    """Sends this process a signal as a step begins; with `hang`, the step does not end by itself."""

    def __init__(self, step: int, kind: signal.Signals, hang: bool) -> None:
        self.step, self.kind, self.hang = step, kind, hang

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.kind)
            if self.hang:
                loss = pl_module.micro_loss
                pl_module.micro_loss = lambda *given: (loss(*given), time.sleep(30))


@pytest.mark.parametrize("hang", [False, True])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_ends_training_after_a_resume_point(
    kind: signal.Signals, hang: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR2, which submitit listens to, is handed on after that. A step that takes too long is given up."""
    monkeypatch.setattr(training, "PATIENCE_S", 0.2)
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    try:
        whole, again = (made("dpo with anchor", adamw()) for _ in range(2))
        metrics = run_training(whole, tmp_path / "whole")
        handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
        with pytest.raises(Interrupted) as stop:
            run_training(made("dpo with anchor", adamw()), tmp_path / "cut", SignalAt(2, kind, hang))
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == handlers
        assert str(stop.value) == f"interrupted at step {2 if hang else 3}; the same command goes on from there"
        assert stop.value.status == 128 + kind and heard == [kind] * (kind == signal.SIGUSR2)
        assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == 3 - hang
        assert run_training(again, tmp_path / "cut") == metrics
        assert furthest(weights_of(whole[0]), weights_of(again[0])) == 0.0
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_resume_points_hold_trained_weights_only(tmp_path: Path) -> None:
    def half_frozen() -> Made:
        both = made("sft", adamw(), steps=STEPS[:3])
        for name, p in both[0].model.named_parameters():
            p.requires_grad_("mlp" in name)
        return both

    before = weights_of(half_frozen()[0])
    with pytest.raises(Killed):
        run_training(half_frozen(), tmp_path, KillAfter(2), every=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = {name for name in before if "mlp" in name}
    assert {name.removeprefix("model.") for name in saved} == trained
    again = half_frozen()
    run_training(again, tmp_path)
    after = weights_of(again[0])
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained


def test_a_plan_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the training plan has no steps"):
        run_training(made(Plan((), (0,)), adamw()), tmp_path)


@pytest.mark.parametrize("forward", ["padded", "tree"])
@pytest.mark.parametrize("weight", [0.0, PROMPT_WEIGHT])
@pytest.mark.parametrize(
    "train_on", [["calls"], ["thoughts"], ["thoughts", "calls"], ["text"], ["calls", "text", "thoughts"]]
)
def test_a_masked_part_of_an_answer_is_read_and_has_no_loss(train_on: list[str], weight: float, forward: str) -> None:
    """The gradient is that of the whole sequence with weight 0 on the masked tokens."""
    rng = random.Random(0)
    parts = [(kind, drawn_ids(rng, 2, 5)) for kind in ("thoughts", "text", "calls")]
    row = TokenRow(drawn_ids(rng, 6, 9), [token for _, ids in parts for token in ids])
    example = sft_example(trained_rows(row, parts, train_on, weight > 0), weight, 0)
    module = SFTModule(small_policy(1), adamw(), (1,), FORWARDS[forward], prompt_weight=weight)
    total, found = backward(module, [cut_step([example], HUGE, forward == "tree")])
    answer = [float(kind in train_on) for kind, ids in parts for _ in ids]
    weights = torch.tensor([weight] * (len(row.prompt) - 1) + answer)
    expected = -(weights * plain_logps(module.model, row)).sum() / weights.sum()
    expected.backward()
    assert example.weight == pytest.approx(float(weights.sum()))
    assert total == pytest.approx(float(expected.detach()), rel=1e-5) and furthest(found, gradients(module)) < 1e-5
    assert trained_rows(row, [("text", row.answer)], ["calls"], weight > 0) == ()
