"""GRPO: rounds of answers that the policy draws in training, compared within their group (2402.03300), as token trees.

What is drawn follows from the seed, the place in an endless shuffled stream of prompts, and the policy. Rounds are kept
on disk and in resume points, so that any step can be done again. Who draws and scores, the stage brings.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ttpa.calls.six_errors import LABELS
from ttpa.errors import DataError
from ttpa.io import csv_row, dumps, write_lines, write_text
from ttpa.policy.logprobs import evaluating
from ttpa.policy.policy import snapshot
from ttpa.policy.tree import TokenRow
from ttpa.train.module import PolicyModule, StepData
from ttpa.train.plan import Example, Step, cut_step
from ttpa.train.policy_gradient import GRPO, decoupled_advantages, group_advantages

TABLE = ("step", "sample_id", "answer", "reward", "score", "advantage", "exact", "errors", "finish", "text")


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer of a group."""

    token_ids: Sequence[int]
    logps: Sequence[float]  # the engine's
    text: str
    finish: str
    score: float
    reward: float  # the score and what length costs
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)  # parts of the score
    errors: Sequence[str] = ()
    advantage: float = 0.0
    old_logps: Sequence[float] | None = None  # of the training forward under the policy that drew it, where asked for
    ref_logps: Sequence[float] | None = None  # the same under the reference


@dataclass(slots=True, kw_only=True)
class Group:
    """The answers to one prompt."""

    place: int  # of the prompt in the stream; it names the random numbers
    sample_id: str
    prompt: Sequence[int]
    answers: list[Answer]


@dataclass(slots=True, kw_only=True)
class Round:
    """What is drawn and learned from at once."""

    number: int
    groups: list[Group]
    drawn: int = 0  # groups, those thrown away for want of a difference too
    generated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        return [answer for group in self.groups for answer in group.answers]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Round:
        groups = [Group(**{**group, "answers": [Answer(**one) for one in group["answers"]]}) for group in row["groups"]]
        return cls(**{**row, "groups": groups})


@dataclass(frozen=True, slots=True)
class AnswerExample(Example):
    """An answer behind its prompt; it weighs its tokens."""

    answer: Answer


Draw = Callable[[Sequence[int], Sequence[int], int], tuple[list[Group], dict[str, float]]]
"""(prompt numbers, places in the stream, optimiser step) -> scored groups, seconds by what they were spent on."""


@dataclass(kw_only=True, eq=False)
class RolloutData(StepData):
    """Draws answers as training asks for them; its batches are numbers of steps, because Lightning fetches ahead."""

    prompts: int  # how many there are
    draw: Draw
    loss: GRPO
    batch_size: int  # prompts an optimiser step
    total_steps: int
    seed: int
    micro_tokens: int  # of one training forward
    trees: bool  # whether training computes shared prefixes once
    max_new_tokens: int
    temperature: float = 1.0  # answers are drawn at it; log-probs are of the distribution divided by it
    own_engine: bool = True  # the engine runs the trainer's own model: its log-probs need no correction
    score_weights: dict[str, float] | None = None  # of a score's parts where each is normalised by itself
    file: Path | None = None  # where rounds are kept, one JSON line a round
    table: tuple[Path, int] | None = None  # a file of sampled answers, and optimiser steps between its entries
    kept: Sequence[Round] | None = None  # rounds to be served instead of drawing answers
    place: int = field(default=0, init=False)
    round: Round | None = field(default=None, init=False)

    __post_init__ = StepData.__init__  # type: ignore[misc]

    def prompt_at(self, place: int) -> int:
        """Number of the prompt at a place of the stream: one shuffled pass after the other."""
        order = list(range(self.prompts))
        random.Random(f"grpo:{self.seed}:{place // self.prompts}").shuffle(order)
        return order[place % self.prompts]

    def round_at(self, step: int, finish: Callable[[Round], None]) -> Round:
        """The round of an optimiser step: drawn at its first step, completed by `finish` and written down; or a kept
        one, where a missing round is a `DataError`.
        """
        number = step // self.loss.steps_a_round
        if self.kept is not None:
            if number >= len(self.kept):
                raise DataError(f"rollouts: round {number} of step {step} was not kept. Do fewer steps again.")
            return self.kept[number]
        if self.round is None or self.round.number != number:
            found, place = self._drawn(number, step)
            finish(found)
            if self.file is not None:
                with self.file.open("a" if number else "w", encoding="utf-8") as out:
                    out.write(dumps(asdict(found)) + "\n")
            self.place, self.round = place, found  # at the end: a resume point may be written where this is cut off
        return self.round

    def _drawn(self, number: int, step: int) -> tuple[Round, int]:
        """A new round, and the place in the stream behind it."""
        wanted = self.batch_size * self.loss.minibatches
        found, flat, place = Round(number=number, groups=[]), list[Group](), self.place
        for _ in range(1 + self.loss.refills):
            places = range(place, place + wanted - len(found.groups))
            if not places:
                break
            place = places.stop
            groups, seconds = self.draw([self.prompt_at(at) for at in places], places, step)
            found.seconds |= {name: found.seconds.get(name, 0.0) + spent for name, spent in seconds.items()}
            found.drawn += len(groups)
            found.generated += sum(len(answer.token_ids) for group in groups for answer in group.answers)
            for group in groups:
                differs = len({answer.reward for answer in group.answers}) > 1
                (found.groups if differs or not self.loss.refills else flat).append(group)
        # A batch stays whole: where too few prompts made a difference, flat groups fill it and add nothing.
        found.groups += flat[: wanted - len(found.groups)]
        return found, place

    def examples(self, found: Round) -> list[list[AnswerExample]]:
        """The answers of a round, group by group; one that was cut off weighs nothing where the loss masks it."""
        cut = "length" if self.loss.mask_truncated else None
        groups = [[(TokenRow(group.prompt, one.token_ids), one) for one in group.answers] for group in found.groups]
        return [
            [AnswerExample((row,), len(row.answer) * (one.finish != cut), k, one) for row, one in group]
            for k, group in enumerate(groups)
        ]

    def step(self, found: Round, step: int) -> Step:
        """The micro-batches of an optimiser step on a round; each pass takes the groups in another order."""
        groups = self.examples(found)
        turn = step % self.loss.steps_a_round // self.loss.minibatches
        random.Random(f"grpo:{self.seed}:{found.number}:{turn}").shuffle(groups)
        mine = groups[step % self.loss.minibatches :: self.loss.minibatches]
        return cut_step([one for group in mine for one in group], self.micro_tokens, self.trees)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "round": None if self.round is None else asdict(self.round)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place, found = state_dict["place"], state_dict["round"]
        self.round = None if found is None else Round.from_json(found)
        if self.file is not None and self.file.exists():
            # Line n holds round n. Not `splitlines`: JSON leaves Unicode's line breaks, which a model may write.
            lines = self.file.read_text(encoding="utf-8").split("\n")
            write_lines(self.file, lines[: 0 if self.round is None else self.round.number + 1])


def read_rounds(file: Path) -> list[Round]:
    """The rounds of a finished or running stage."""
    return [Round.from_json(json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


class GRPOModule(PolicyModule):
    """Clipped policy gradients on groups of answers; the reference is the policy the stage starts from.

    Log-probs of the policy that drew a round are those of the step itself, or, in a round of several steps, computed
    before the first.
    """

    round: Round

    def __init__(self, *settings: Any, rollouts: RolloutData, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.rollouts, self.loss = rollouts, rollouts.loss
        self.began = self.waited = 0.0
        self._gaps: list[Tensor] = []
        self._reference = snapshot(self.model) if self.loss.beta else None

    def step_of(self, batch: Any) -> Step:
        """Draws the answers where a round begins; the step's share of them."""
        self.began = perf_counter()
        self.round = self.rollouts.round_at(batch, self._finish)
        step = self.rollouts.step(self.round, batch)
        self.waited = perf_counter() - self.began
        self._gaps.clear()
        if self.rollouts.table is not None and batch % self.rollouts.table[1] == 0:
            self._tabulate(batch, self.rollouts.table[0])
        return step

    def _finish(self, found: Round) -> None:
        """Advantages, the log-probs that the loss compares with, and the round's metrics."""
        advantages_BG, metrics = self._advantages(found)
        for answer, advantage in zip(found.answers, advantages_BG.flatten().tolist(), strict=True):
            answer.advantage = advantage
        began = perf_counter()
        if self.loss.steps_a_round > 1:
            self._measure(found, "old_logps")
        if self._reference is not None:
            with self._reference():
                self._measure(found, "ref_logps")
        found.seconds["measure"] = perf_counter() - began
        found.metrics = {name: float(value) for name, value in metrics.items()} | _answer_metrics(found)

    def _advantages(self, found: Round) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self.rollouts.score_weights
        if weights is None:
            rewards_BG = torch.tensor([[one.reward for one in group.answers] for group in found.groups])
            return group_advantages(rewards_BG.double(), scale=self.loss.scale, eps=self.loss.eps)
        # What length adds to the reward is a part of its own, of weight 1.
        weights_K = torch.tensor([*weights.values(), 1.0], dtype=torch.float64)
        rewards = [[*map(one.detail.__getitem__, weights), one.reward - one.score] for one in found.answers]
        rewards_BGK = torch.tensor(rewards, dtype=torch.float64).view(len(found.groups), -1, len(weights_K))
        return decoupled_advantages(rewards_BGK, weights_K, eps=self.loss.eps)

    def _measure(self, found: Round, name: str) -> None:
        """Puts log-probs of every answer's tokens with the training forward into the answers' field `name`."""
        examples = [example for group in self.rollouts.examples(found) for example in group]
        options: Any = {"pad_id": self.policy.renderer.pad_id, "temperature": self.rollouts.temperature}
        with evaluating(self.model):
            for micro in cut_step(examples, self.rollouts.micro_tokens, trees=True).micros:
                logps_GT, _ = self.token_logps(self.model, [one.rows[0] for one in micro], **options).padded()
                for example, logps in zip(micro, logps_GT.tolist(), strict=True):
                    setattr(example.answer, name, logps[: len(example.answer.token_ids)])  # type: ignore[attr-defined]

    def micro_loss(self, examples: Sequence[AnswerExample], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        answers, rows = [example.answer for example in examples], [example.rows[0] for example in examples]
        found = self.logps_of(rows, temperature=self.rollouts.temperature, entropy=True)
        logps_GT, written_GT = found.padded()
        counted_G1 = torch.tensor([[example.weight > 0] for example in examples], device=logps_GT.device)
        mask_GT = written_GT & counted_G1
        old_GT = _padded([one.old_logps for one in answers], logps_GT)
        loss, metrics = self.loss(
            logps_GT, torch.tensor([one.advantage for one in answers], device=logps_GT.device), mask_GT,
            max_length=self.rollouts.max_new_tokens, old_logps_GT=old_GT, answers=step.examples, tokens=step.weight,
            ref_logps_GT=_padded([one.ref_logps for one in answers], logps_GT),
            weights_GT=self._corrections(answers, logps_GT.detach() if old_GT is None else old_GT, mask_GT),
        )  # fmt: skip
        assert found.entropy_N is not None
        tokens = mask_GT.sum()
        entropy_A = found.entropy_N[found.is_answer_N]
        metrics["entropy"] = (entropy_A * mask_GT[written_GT]).sum() / tokens.clamp(min=1)
        # Means over tokens, handed on so that their mean over examples is the mean over the step's tokens.
        share = tokens * (step.examples / len(examples)) / max(1.0, step.weight)
        return loss, {name: value * share for name, value in metrics.items()}

    def _corrections(self, answers: Sequence[Answer], logps_GT: Tensor, mask_GT: Tensor) -> Tensor | None:
        """Truncated importance weights for an engine with log-probs of its own; the gap to it is noted."""
        if self.rollouts.temperature != 1.0:  # the engine's log-probs are those before the temperature
            return None
        engine_GT = _padded([one.logps for one in answers], logps_GT)
        gap_GT = (logps_GT - engine_GT).masked_fill(~mask_GT, 0)
        self._gaps.append(gap_GT.abs()[mask_GT])
        if self.rollouts.own_engine or self.loss.truncated_importance is None:
            return None
        return gap_GT.clamp(max=math.log(self.loss.truncated_importance)).exp()

    def step_metrics(self) -> dict[str, float]:
        found = dict(self.round.metrics)
        if self._gaps and len(gaps := torch.cat(self._gaps)):
            found["sampling/sampling_logp_difference/mean"] = float(gaps.mean())
            found["sampling/sampling_logp_difference/max"] = float(gaps.max())
        found |= {f"time/{name}": spent / self.loss.steps_a_round for name, spent in self.round.seconds.items()}
        spent = perf_counter() - self.began
        return found | {"step_time": spent, "time/train": spent - self.waited}

    def _tabulate(self, step: int, path: Path) -> None:
        """Adds the answers of the round's first two groups to the table, and to loggers that take tables."""
        new = [
            [step, group.sample_id, k, one.reward, one.score, one.advantage, one.exact, " ".join(one.errors),
             one.finish, one.text]
            for group in self.round.groups[:2]
            for k, one in enumerate(group.answers)
        ]  # fmt: skip
        rows: list[Any] = [TABLE]
        if step and path.exists():  # what a run that was killed had written beyond its resume point goes
            with path.open(newline="", encoding="utf-8") as file:
                rows += [row for row in list(csv.reader(file))[1:] if int(row[0]) < step]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([*rows, *map(csv_row, new)])
        write_text(path, text.getvalue())
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("answers", columns=list(TABLE), data=new, step=step)


def _padded(rows: Sequence[Sequence[float] | None], like_GT: Tensor) -> Any:
    """Numbers of each row in the shape of `like_GT`, zero where a row ends; None if a row has none."""
    padded = [[*row, *[0.0] * (like_GT.shape[1] - len(row))] for row in rows if row is not None]
    if len(padded) < len(rows):
        return None
    return torch.tensor(padded, device=like_GT.device, dtype=torch.float32).view(like_GT.shape)


def _answer_metrics(found: Round) -> dict[str, float]:
    """Metrics of a round's answers, by TRL's names where it has one."""
    answers = found.answers
    lengths = [len(one.token_ids) for one in answers]
    ended = [len(one.token_ids) for one in answers if one.finish != "length"]
    metrics = {"completions/clipped_ratio": 1 - len(ended) / len(lengths)}
    for kind, values in (("", lengths), ("terminated_", ended)):
        for name, of in (("mean", statistics.fmean), ("min", min), ("max", max)):
            metrics[f"completions/{name}_{kind}length"] = float(of(values)) if values else 0.0
    metrics["exact"] = sum(one.exact for one in answers) / len(answers)
    metrics["groups/kept"] = len(found.groups) / found.drawn
    metrics["generated"] = float(found.generated)
    metrics |= {f"errors/{error}": sum(error in one.errors for one in answers) / len(answers) for error in LABELS}
    for name in answers[0].detail:
        parts = [one.detail.get(name, 0.0) for one in answers]
        metrics[f"rewards/{name}/mean"] = statistics.fmean(parts)
        metrics[f"rewards/{name}/std"] = statistics.stdev(parts) if len(parts) > 1 else 0.0
    return metrics
