"""Answers drawn while training: rounds of groups, kept on disk and in resume points, so that a step can be done again.

A round takes the next prompts of an endless shuffled stream, has `n` answers drawn to each by the current policy, and
serves its optimiser steps. What is drawn depends on the seed, the position in the stream and the policy alone, so a run
that continues from a resume point draws what it would have drawn. Who draws and scores is a function the stage brings.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ttpa.errors import DataError
from ttpa.io import dumps, write_lines
from ttpa.policy.tree import TokenRow
from ttpa.train.module import StepStream
from ttpa.train.plan import Example, Step, cut_step
from ttpa.train.policy_gradient import GRPO


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer of a group.

    `logps` are the engine's; `old_logps` and `ref_logps` those of the training forward under the policy that drew it
    and under the reference, where the loss asks for them. `reward` counts; `score` is what the scorer gave before the
    punishment of length, with its parts in `detail`.
    """

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    finish: str
    score: float
    reward: float
    exact: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    advantage: float = 0.0
    old_logps: tuple[float, ...] | None = None
    ref_logps: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class AnswerExample(Example):
    """An answer behind its prompt; it weighs its tokens, or nothing where it does not count."""

    answer: Answer


@dataclass(slots=True, kw_only=True)
class Group:
    """The answers to one prompt. `place` is the prompt's position in the stream; it names the random numbers."""

    place: int
    sample_id: str
    prompt: tuple[int, ...]
    answers: list[Answer]

    @property
    def flat(self) -> bool:
        """Whether all rewards are equal: such a group teaches nothing."""
        return len({answer.reward for answer in self.answers}) < 2


@dataclass(slots=True, kw_only=True)
class Round:
    """What is drawn and learned from at once. `seconds` by what they were spent on; `metrics` of rewards and lengths.

    `drawn` counts groups, those thrown away for want of a difference included.
    """

    number: int
    groups: list[Group]
    drawn: int
    generated: int
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        """All answers, group after group."""
        return [answer for group in self.groups for answer in group.answers]

    def examples(self, loss: GRPO) -> list[list[AnswerExample]]:
        """The answers as examples, group by group."""

        def example(number: int, group: Group, answer: Answer) -> AnswerExample:
            counts = not (loss.mask_truncated and answer.finish == "length")
            row = TokenRow(group.prompt, answer.token_ids)
            return AnswerExample((row,), len(row.answer) * counts, number, answer)

        return [[example(number, group, one) for one in group.answers] for number, group in enumerate(self.groups)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Round:
        def tuples(one: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in one.items()}

        groups = [
            Group(**{**tuples(group), "answers": [Answer(**tuples(one)) for one in group["answers"]]})
            for group in row["groups"]
        ]
        return cls(**{**row, "groups": groups})


Draw = Callable[[Sequence[int], Sequence[int], int], tuple[list[Group], dict[str, float]]]
"""(prompt numbers, places in the stream, optimiser step) -> scored groups, seconds by what they were spent on."""
Finish = Callable[[Round], None]
"""Fills in advantages, metrics and what log-probs the loss needs."""


class RolloutData(pl.LightningDataModule):
    """Draws answers as training asks for them. The DataLoader ships numbers of steps: it runs ahead of training.

    Args:
        prompts: Number of prompts.
        draw: Draws and scores.
        loss: Rounds, passes and refills.
        batch_size: Prompts an optimiser step.
        steps: Optimiser steps in all.
        seed: Order of the prompts.
        micro_tokens: Tokens of one training forward.
        trees: Whether training computes shared prefixes once.
        file: Where rounds are kept, one JSON line a round; None keeps none.
        kept: Rounds that were kept, to be served instead of drawing answers.
    """

    def __init__(
        self,
        *,
        prompts: int,
        draw: Draw,
        loss: GRPO,
        batch_size: int,
        steps: int,
        seed: int,
        micro_tokens: int,
        trees: bool,
        file: Path | None,
        kept: Sequence[Round] | None = None,
    ) -> None:
        super().__init__()
        self.prompts, self.draw, self.loss, self.batch_size, self.seed = prompts, draw, loss, batch_size, seed
        self.total_steps, self.micro_tokens, self.trees, self.file = steps, micro_tokens, trees, file
        self.kept = None if kept is None else {one.number: one for one in kept}
        self.place = 0
        self.round: Round | None = None

    def prompt_at(self, place: int) -> int:
        """Number of the prompt at a position of the stream: one shuffled pass after the other."""
        order = list(range(self.prompts))
        random.Random(f"grpo:{self.seed}:{place // self.prompts}").shuffle(order)
        return order[place % self.prompts]

    def round_at(self, step: int, finish: Finish) -> Round:
        """The round that an optimiser step belongs to; drawn at its first step, or one that was kept.

        Raises:
            DataError: rounds are served from a file, which does not hold this one.
        """
        number = step // self.loss.steps_a_round
        if self.kept is not None:
            if number not in self.kept:
                raise DataError(f"rollouts: round {number} of step {step} was not kept. Do fewer steps again.")
            return self.kept[number]
        if self.round is None or self.round.number != number:
            self.round = self._drawn(number, step)
            finish(self.round)
            if self.file is not None:
                with self.file.open("a" if number else "w", encoding="utf-8") as out:
                    out.write(dumps(self.round.to_json()) + "\n")
        return self.round

    def _drawn(self, number: int, step: int) -> Round:
        wanted = self.batch_size * self.loss.minibatches
        spare: list[Group] = []
        found = Round(number=number, groups=[], drawn=0, generated=0)
        for _ in range(1 + self.loss.refills):
            places = list(range(self.place, self.place + wanted - len(found.groups)))
            if not places:
                break
            self.place += len(places)
            groups, seconds = self.draw([self.prompt_at(place) for place in places], places, step)
            for name, spent in seconds.items():
                found.seconds[name] = found.seconds.get(name, 0.0) + spent
            found.drawn += len(groups)
            found.generated += sum(len(answer.token_ids) for group in groups for answer in group.answers)
            for group in groups:
                (spare if self.loss.refills and group.flat else found.groups).append(group)
        # A batch stays whole: where too few prompts made a difference, flat groups fill it and add nothing.
        found.groups += spare[: wanted - len(found.groups)]
        return found

    def step(self, found: Round, step: int) -> Step:
        """The micro-batches of an optimiser step on a round."""
        groups = found.examples(self.loss)
        order = list(range(len(groups)))
        # Passes after the first take the groups in another order.
        turn = step % self.loss.steps_a_round // self.loss.minibatches
        random.Random(f"grpo:{self.seed}:{found.number}:{turn}").shuffle(order)
        numbers = order[step % self.loss.minibatches :: self.loss.minibatches]
        return cut_step([one for number in numbers for one in groups[number]], self.micro_tokens, self.trees)

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        return DataLoader(StepStream(range(self.total_steps), self.trainer.global_step), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "round": None if self.round is None else self.round.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place = state_dict["place"]
        self.round = None if state_dict["round"] is None else Round.from_json(state_dict["round"])
        if self.file is not None and self.file.exists():
            # Rounds drawn after the resume point are drawn again.
            last = -1 if self.round is None else self.round.number
            # Not `splitlines`: what a model wrote may hold line breaks of Unicode, which JSON leaves as they are.
            lines = self.file.read_text(encoding="utf-8").split("\n")
            write_lines(self.file, [line for line in lines if _number(line) <= last])


def read_rounds(file: Path) -> list[Round]:
    """The rounds of a finished or running stage, to look at or to do a step again."""
    with file.open(encoding="utf-8") as lines:
        return [Round.from_json(json.loads(line)) for line in lines if line.endswith("\n")]


def _number(line: str) -> float:
    try:
        return int(json.loads(line)["number"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the line that was being written
