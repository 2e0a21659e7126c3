"""GRPO: answers drawn by the policy in training, compared within their group (2402.03300), over token trees.

A prompt and its G answers are one tree, so the prompt is computed once. Log-probs of the policy that drew the answers
come from the training forward: of the first step of a round they are those of that step itself; where a round has
several steps they are computed once before the first. The reference is the policy the stage starts from.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttpa.calls.six_errors import LABELS
from ttpa.policy.forward import Forward
from ttpa.policy.logprobs import token_logps
from ttpa.policy.policy import Policy, snapshot
from ttpa.policy.tree import TokenRow, pack
from ttpa.train.module import PolicyModule, Step
from ttpa.train.policy_gradient import GRPO, decoupled_advantages, group_advantages
from ttpa.train.rollouts import Answer, RolloutData, Round, counts, now
from ttpa.train.settings import Optimisation

TABLE = ("step", "sample_id", "answer", "reward", "score", "advantage", "exact", "errors", "finish", "text")


class GRPOModule(PolicyModule):
    """Clipped policy gradients on groups of answers.

    Args:
        policy, settings, boundaries, forward: See `PolicyModule`.
        loss: The objective.
        rollouts: Draws the answers.
        max_new_tokens: Longest answer, in tokens.
        temperature: Answers were drawn at it; log-probs are of the distribution divided by it.
        own_engine: Whether the engine runs the trainer's own model, so that its log-probs need no correction.
        parts: Weights of a score's parts where each is normalised by itself (`Weighted`), or None.
        table: File of sampled answers, and optimiser steps between its entries; None keeps no table.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Optimisation,
        boundaries: Sequence[int],
        loss: GRPO,
        rollouts: RolloutData,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        own_engine: bool = True,
        parts: dict[str, float] | None = None,
        table: tuple[Path, int] | None = None,
        forward: Forward = token_logps,
    ) -> None:
        super().__init__(policy, settings, boundaries, forward)
        self.loss, self.rollouts, self.parts, self.table = loss, rollouts, parts, table
        self.max_new_tokens, self.temperature, self.own_engine = max_new_tokens, temperature, own_engine
        self.round: Round | None = None
        self.began = 0.0
        self.waited = 0.0
        self._gaps: list[Tensor] = []
        self._reference = snapshot(policy.model) if loss.needs_reference else None

    # --- rounds ------------------------------------------------------------------------------------------------------

    def step_of(self, batch: Any) -> Step:
        """Draws the answers where a round begins; the step's share of them."""
        number = int(batch)
        self.began = now()
        self.round = self.rollouts.round_at(number, self._finish)
        step = self.rollouts.step(self.round, number)
        self.waited = now() - self.began
        self._gaps.clear()
        if self.table is not None and number % self.table[1] == 0:
            self._tabulate(number)
        return step

    def _finish(self, found: Round) -> None:
        """Advantages, the log-probs that the loss compares with, and the round's metrics."""
        answers, size = found.answers, len(found.groups[0].answers)
        advantages, metrics = self._advantages(found, size)
        for answer, advantage in zip(answers, advantages.flatten().tolist(), strict=True):
            answer.advantage = advantage
        began = now()
        if self.loss.steps_a_round > 1:
            for answer, logps in zip(answers, self._logps(self.model, found.rows), strict=True):
                answer.old_logps = logps
        if self._reference is not None:
            with self._reference():
                for answer, logps in zip(answers, self._logps(self.model, found.rows), strict=True):
                    answer.ref_logps = logps
        found.seconds["measure"] = now() - began
        found.metrics = {name: float(value) for name, value in metrics.items()} | _of_answers(found)

    def _advantages(self, found: Round, size: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.parts is None:
            rewards_BG = torch.tensor([[one.reward for one in group.answers] for group in found.groups])
            return group_advantages(rewards_BG.double(), scale=self.loss.scale, eps=self.loss.eps)
        names = list(self.parts)
        # What length adds to the reward is a part of its own, of weight 1.
        rewards = [[*(one.detail[name] for name in names), one.reward - one.score] for one in found.answers]
        weights = torch.tensor([*self.parts.values(), 1.0], dtype=torch.float64)
        rewards_BGK = torch.tensor(rewards, dtype=torch.float64).view(len(found.groups), size, -1)
        return decoupled_advantages(rewards_BGK, weights, eps=self.loss.eps)

    @torch.no_grad()
    def _logps(self, model: torch.nn.Module, rows: Sequence[TokenRow]) -> list[tuple[float, ...]]:
        """Log-probs of every answer's tokens with the training forward."""
        found: list[tuple[float, ...]] = [()] * len(rows)
        prompts: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(rows):
            prompts.setdefault(tuple(row.prompt), []).append(number)
        groups = list(prompts.values())
        costs = [len(rows[group[0]].prompt) + sum(len(rows[k].answer) for k in group) for group in groups]
        training = model.training
        model.eval()
        for batch in pack(costs, self.rollouts.micro_tokens):
            numbers = [k for at in batch for k in groups[at]]
            logps_BT, mask_BT = self.token_logps(
                model, [rows[k] for k in numbers], pad_id=self.policy.renderer.pad_id, temperature=self.temperature
            ).padded()
            for k, logps, mask in zip(numbers, logps_BT.tolist(), mask_BT.sum(1).tolist(), strict=True):
                found[k] = tuple(logps[:mask])
        model.train(training)
        return found

    # --- the loss ----------------------------------------------------------------------------------------------------

    def micro_loss(self, rows: Sequence[int], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.round is not None
        every, answers = self.round.rows, self.round.answers
        some = [answers[k] for k in rows]
        found = self.logps_of([every[k] for k in rows], temperature=self.temperature, entropy=True)
        logps_GT, mask_GT = found.padded()
        counted_G1 = torch.tensor([[counts(one, self.loss)] for one in some], device=logps_GT.device)
        mask_GT = mask_GT & counted_G1
        old_GT = _table([one.old_logps for one in some], logps_GT)
        weights_GT = self._corrections(some, logps_GT.detach() if old_GT is None else old_GT, mask_GT)
        loss, metrics = self.loss(
            logps_GT,
            torch.tensor([one.advantage for one in some], device=logps_GT.device),
            mask_GT,
            max_length=self.max_new_tokens,
            old_logps_GT=old_GT,
            ref_logps_GT=_table([one.ref_logps for one in some], logps_GT),
            weights_GT=weights_GT,
            # step.weight is the answers' tokens over the whole step, step.rows its answers.
            answers=step.rows,
            tokens=step.weight,
        )
        assert found.entropy_N is not None
        spread_GT = found.entropy_N.new_zeros(mask_GT.shape).masked_scatter(
            found.padded()[1], found.entropy_N[found.is_answer_N]
        )
        tokens = mask_GT.sum()
        metrics["entropy"] = (spread_GT * mask_GT).sum() / tokens.clamp(min=1)
        # Means over tokens, handed on so that their mean over rows is the mean over the step's tokens.
        share = tokens * (sum(map(len, step.micros)) / len(rows)) / max(1.0, step.weight)
        return loss, {name: value * share for name, value in metrics.items()}

    def _corrections(self, answers: Sequence[Answer], logps_GT: Tensor, mask_GT: Tensor) -> Tensor | None:
        """Truncated importance weights for an engine with log-probs of its own; the gap to it is noted."""
        if self.temperature != 1.0:  # the engine's log-probs are those before the temperature
            return None
        engine_GT = _table([one.logps for one in answers], logps_GT)
        if engine_GT is None:
            return None
        gap_GT = (logps_GT - engine_GT).masked_fill(~mask_GT, 0)
        self._gaps.append(gap_GT.abs()[mask_GT])
        if self.own_engine or self.loss.truncated_importance is None:
            return None
        return gap_GT.clamp(max=math.log(self.loss.truncated_importance)).exp()

    # --- what is told ------------------------------------------------------------------------------------------------

    def step_metrics(self) -> dict[str, float]:
        assert self.round is not None
        found = dict(self.round.metrics)
        if self._gaps:
            gaps = torch.cat(self._gaps)
            if len(gaps):
                found["sampling/sampling_logp_difference/mean"] = float(gaps.mean())
                found["sampling/sampling_logp_difference/max"] = float(gaps.max())
        for name, seconds in self.round.seconds.items():
            found[f"time/{name}"] = seconds / self.loss.steps_a_round
        found["time/train"] = now() - self.began - self.waited
        found["step_time"] = now() - self.began
        return found

    def _tabulate(self, step: int) -> None:
        assert self.table is not None and self.round is not None
        rows = [
            (
                step,
                group.sample_id,
                k,
                one.reward,
                one.score,
                one.advantage,
                one.exact,
                " ".join(one.errors),
                one.finish,
                one.text,
            )
            for group in self.round.groups[:2]
            for k, one in enumerate(group.answers)
        ]
        path = self.table[0]
        kept = []
        if step and path.exists():  # what a run that was killed had written beyond its checkpoint goes
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) < step]
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([TABLE, *kept, *rows])
        part.replace(path)
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("answers", columns=list(TABLE), data=[list(row) for row in rows], step=step)


def _table(rows: Sequence[Sequence[float] | None], like: Tensor) -> Tensor | None:
    """Numbers of each row as a tensor of the shape of `like` (G, T), zero where a row ends; None if a row has none."""
    if any(row is None for row in rows):
        return None
    width = like.shape[1]
    padded = [[*row, *[0.0] * (width - len(row))] for row in rows if row is not None]
    return torch.tensor(padded, device=like.device, dtype=torch.float32).view(len(rows), width)


def _of_answers(found: Round) -> dict[str, float]:
    """Metrics of a round's answers, by TRL's names where it has one."""
    answers = found.answers
    lengths = [len(one.token_ids) for one in answers]
    ended = [len(one.token_ids) for one in answers if one.finish != "length"]
    metrics = {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": sum(ended) / len(ended) if ended else 0.0,
        "completions/min_terminated_length": float(min(ended, default=0)),
        "completions/max_terminated_length": float(max(ended, default=0)),
        "exact": sum(one.exact for one in answers) / len(answers),
        "groups/kept": len(found.groups) / found.drawn,
        "generated": float(found.generated),
    }
    for error in LABELS:
        metrics[f"errors/{error}"] = sum(error in one.errors for one in answers) / len(answers)
    for name in answers[0].detail:
        values = torch.tensor([one.detail.get(name, 0.0) for one in answers], dtype=torch.float64)
        metrics[f"rewards/{name}/mean"] = float(values.mean())
        metrics[f"rewards/{name}/std"] = float(values.std()) if len(values) > 1 else 0.0
    return metrics
