"""Answers drawn while training: rounds of groups, kept on disk and in checkpoints, so that a step can be done again.

A round takes the next prompts of an endless shuffled stream, has `n` answers drawn to each by the current policy, and
serves its optimiser steps. What is drawn depends on the seed, the position in the stream and the policy alone, so a run
that continues from a checkpoint draws what it would have drawn. Who draws and scores is a function the stage brings.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from ttpa.errors import DataError
from ttpa.io import dumps
from ttpa.policy.tree import TokenRow
from ttpa.train.module import PlanData, Step
from ttpa.train.plan import Plan
from ttpa.train.policy_gradient import GRPO


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer of a group.

    `logps` are the engine's; `old_logps` and `ref_logps` those of the training forward under the policy that drew it
    and under the reference, where the loss asks for them. `reward` counts, `score` is what the scorer gave before the
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

    def to_json(self) -> dict[str, Any]:
        answers = [{name: getattr(one, name) for name in Answer.__slots__} for one in self.answers]
        return {"place": self.place, "sample_id": self.sample_id, "prompt": list(self.prompt), "answers": answers}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Group:
        def ready(name: str, value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        answers = [Answer(**{name: ready(name, value) for name, value in one.items()}) for one in row["answers"]]
        return cls(place=row["place"], sample_id=row["sample_id"], prompt=tuple(row["prompt"]), answers=answers)


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

    @property
    def rows(self) -> list[TokenRow]:
        """Their sequences."""
        return [TokenRow(group.prompt, answer.token_ids) for group in self.groups for answer in group.answers]

    def to_json(self) -> dict[str, Any]:
        rest = {name: getattr(self, name) for name in ("number", "drawn", "generated", "seconds", "metrics")}
        return {**rest, "groups": [group.to_json() for group in self.groups]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Round:
        return cls(**{**row, "groups": [Group.from_json(group) for group in row["groups"]]})


Draw = Callable[[Sequence[int], Sequence[int], int], tuple[list[Group], dict[str, float]]]
"""(prompt numbers, places in the stream, optimiser step) -> scored groups, seconds by what they were spent on."""
Finish = Callable[[Round], None]
"""Fills in advantages, metrics and what log-probs the loss needs."""


class _Tickets(IterableDataset[int]):
    """Numbers of steps. The loader may run ahead of training; answers are drawn when a step is asked for."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))


class RolloutData(pl.LightningDataModule):
    """Draws answers as training asks for them.

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
    """

    def __init__(
        self,
        prompts: int,
        draw: Draw,
        loss: GRPO,
        batch_size: int,
        steps: int,
        seed: int,
        micro_tokens: int,
        trees: bool,
        file: Path | None,
    ) -> None:
        super().__init__()
        self.prompts, self.draw, self.loss, self.batch_size, self.seed = prompts, draw, loss, batch_size, seed
        self.plan = Plan(tuple(() for _ in range(steps)), (steps,))
        self.micro_tokens, self.trees, self.file = micro_tokens, trees, file
        self.place = 0
        self.round: Round | None = None

    # --- the stream of prompts ---------------------------------------------------------------------------------------

    def prompt_at(self, place: int) -> int:
        """Number of the prompt at a position of the stream: one shuffled pass after the other."""
        order = list(range(self.prompts))
        random.Random(f"grpo:{self.seed}:{place // self.prompts}").shuffle(order)
        return order[place % self.prompts]

    def round_at(self, step: int, finish: Finish) -> Round:
        """The round that an optimiser step belongs to; drawn at its first step."""
        number = step // self.loss.steps_a_round
        if self.round is None or self.round.number != number:
            self.round = self._drawn(number, step)
            finish(self.round)
            self._keep(self.round)
        return self.round

    def _drawn(self, number: int, step: int) -> Round:
        wanted = self.batch_size * self.loss.minibatches
        kept: list[Group] = []
        spare: list[Group] = []
        found = Round(number=number, groups=kept, drawn=0, generated=0)
        for _ in range(1 + self.loss.refills):
            missing = wanted - len(kept)
            if not missing:
                break
            places = list(range(self.place, self.place + missing))
            self.place += missing
            groups, seconds = self.draw([self.prompt_at(place) for place in places], places, step)
            for name, spent in seconds.items():
                found.seconds[name] = found.seconds.get(name, 0.0) + spent
            found.drawn += len(groups)
            found.generated += sum(len(answer.token_ids) for group in groups for answer in group.answers)
            for group in groups:
                (spare if self.loss.refills and group.flat else kept).append(group)
        # A batch stays whole: where too few prompts made a difference, flat groups fill it and add nothing.
        kept += spare[: wanted - len(kept)]
        return found

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(self, found: Round, step: int) -> Step:
        """The micro-batches of an optimiser step; rows are numbers of answers within the round."""
        group_size = len(found.groups[0].answers)
        part = step % self.loss.minibatches
        order = list(range(len(found.groups)))
        # Passes after the first take the groups in another order.
        random.Random(
            f"grpo:{self.seed}:{found.number}:{step % self.loss.steps_a_round // self.loss.minibatches}"
        ).shuffle(order)
        numbers = order[part :: self.loss.minibatches]
        rows = [number * group_size + k for number in numbers for k in range(group_size)]
        every = found.rows
        lengths, answers = [len(row) for row in every], [len(row.answer) for row in every]
        counted = [
            len(row.answer) if counts(one, self.loss) else 0 for row, one in zip(every, found.answers, strict=True)
        ]
        units = [number for number, group in enumerate(found.groups) for _ in group.answers] if self.trees else None
        data = PlanData(Plan((tuple(rows),), (1,)), lengths, counted, self.micro_tokens, units=units, own=answers)
        return data.step(rows, 0, 1)

    def train_dataloader(self) -> DataLoader[int]:
        assert self.trainer is not None
        return DataLoader(_Tickets(self.trainer.global_step, len(self.plan.steps)), batch_size=None)

    def transfer_batch_to_device(self, batch: int, device: torch.device, dataloader_idx: int) -> int:
        return batch

    # --- what is kept ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "round": None if self.round is None else self.round.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place = state_dict["place"]
        self.round = None if state_dict["round"] is None else Round.from_json(state_dict["round"])
        if self.file is not None and self.file.exists():
            # Rounds drawn after the checkpoint are drawn again.
            last = -1 if self.round is None else self.round.number
            # Not `splitlines`: what a model wrote may hold line breaks of Unicode, which JSON leaves as they are.
            lines = [line for line in self.file.read_text(encoding="utf-8").split("\n") if _number(line) <= last]
            part = self.file.with_name(f".{self.file.name}.part")
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            part.replace(self.file)

    def _keep(self, found: Round) -> None:
        if self.file is None:
            return
        with self.file.open("a" if found.number else "w", encoding="utf-8") as out:
            out.write(dumps(found.to_json()) + "\n")


class Replayed(RolloutData):
    """Serves rounds that were kept instead of drawing answers; everything else as in the run that drew them."""

    def __init__(self, rounds: Sequence[Round], *settings: Any) -> None:
        super().__init__(*settings)
        self.rounds = {one.number: one for one in rounds}

    def round_at(self, step: int, finish: Finish) -> Round:
        """The kept round that an optimiser step belongs to, with the advantages and log-probs of that time."""
        number = step // self.loss.steps_a_round
        if number not in self.rounds:
            raise DataError(f"rollouts: round {number} of step {step} was not kept. Do fewer steps again.")
        return self.rounds[number]


def counts(answer: Answer, loss: GRPO) -> bool:
    """Whether an answer's tokens count in the loss."""
    return not (loss.mask_truncated and answer.finish == "length")


def read_rounds(file: Path) -> list[Round]:
    """The rounds of a finished or running stage, to look at or to do a step again."""
    with file.open(encoding="utf-8") as lines:
        return [Round.from_json(json.loads(line)) for line in lines if line.endswith("\n")]


def _number(line: str) -> int:
    try:
        return int(json.loads(line)["number"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # the line that was being written


def now() -> float:
    """Seconds on a clock that only goes forward."""
    return time.perf_counter()
