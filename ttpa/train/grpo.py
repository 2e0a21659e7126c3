"""GRPO: answers drawn by the policy in training, compared within their group (2402.03300), over token trees.

A prompt and its answers are one tree, so the prompt is computed once. Log-probs of the policy that drew the answers come
from the training forward: in the first step of a round they are those of the step itself; where a round has several
steps they are computed once before the first. The reference is the policy the stage starts from.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ttpa.calls.six_errors import LABELS
from ttpa.io import write_text
from ttpa.policy.policy import snapshot
from ttpa.train.module import PolicyModule
from ttpa.train.plan import Step, cut_step
from ttpa.train.policy_gradient import GRPO, decoupled_advantages, group_advantages
from ttpa.train.rollouts import Answer, AnswerExample, RolloutData, Round

TABLE = ("step", "sample_id", "answer", "reward", "score", "advantage", "exact", "errors", "finish", "text")


class GRPOModule(PolicyModule):
    """Clipped policy gradients on groups of answers.

    Args:
        settings, options: See `PolicyModule`.
        loss: The objective.
        rollouts: Draws the answers.
        max_new_tokens: Longest answer, in tokens.
        temperature: Answers were drawn at it; log-probs are of the distribution divided by it.
        own_engine: Whether the engine runs the trainer's own model, so that its log-probs need no correction.
        score_weights: Weights of a score's parts where each is normalised by itself (`Weighted`), or None.
        table: File of sampled answers, and optimiser steps between its entries; None keeps no table.
    """

    def __init__(
        self,
        *settings: Any,
        loss: GRPO,
        rollouts: RolloutData,
        max_new_tokens: int,
        temperature: float = 1.0,
        own_engine: bool = True,
        score_weights: dict[str, float] | None = None,
        table: tuple[Path, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*settings, **options)
        self.loss, self.rollouts, self.score_weights, self.table = loss, rollouts, score_weights, table
        self.max_new_tokens, self.temperature, self.own_engine = max_new_tokens, temperature, own_engine
        self.round: Round | None = None
        self.began = self.waited = 0.0
        self._gaps: list[Tensor] = []
        self._reference = snapshot(self.model) if loss.needs_reference else None

    def step_of(self, batch: Any) -> Step:
        """Draws the answers where a round begins; the step's share of them."""
        number = int(batch)
        self.began = perf_counter()
        self.round = self.rollouts.round_at(number, self._finish)
        step = self.rollouts.step(self.round, number)
        self.waited = perf_counter() - self.began
        self._gaps.clear()
        if self.table is not None and number % self.table[1] == 0:
            self._tabulate(self.round, number, self.table[0])
        return step

    def _finish(self, found: Round) -> None:
        """Advantages, the log-probs that the loss compares with, and the round's metrics."""
        advantages_BG, metrics = self._advantages(found)
        for answer, advantage in zip(found.answers, advantages_BG.flatten().tolist(), strict=True):
            answer.advantage = advantage
        began = perf_counter()
        if self.loss.steps_a_round > 1:
            self._measure(found, self.model, "old_logps")
        if self._reference is not None:
            with self._reference():
                self._measure(found, self.model, "ref_logps")
        found.seconds["measure"] = perf_counter() - began
        found.metrics = {name: float(value) for name, value in metrics.items()} | _answer_metrics(found)

    def _advantages(self, found: Round) -> tuple[Tensor, dict[str, Tensor]]:
        if self.score_weights is None:
            rewards_BG = torch.tensor([[one.reward for one in group.answers] for group in found.groups])
            return group_advantages(rewards_BG.double(), scale=self.loss.scale, eps=self.loss.eps)
        # What length adds to the reward is a part of its own, of weight 1.
        weights_K = torch.tensor([*self.score_weights.values(), 1.0], dtype=torch.float64)
        rewards = [[*map(one.detail.__getitem__, self.score_weights), one.reward - one.score] for one in found.answers]
        rewards_BGK = torch.tensor(rewards, dtype=torch.float64).view(len(found.groups), -1, len(weights_K))
        return decoupled_advantages(rewards_BGK, weights_K, eps=self.loss.eps)

    @torch.no_grad()
    def _measure(self, found: Round, model: torch.nn.Module, name: str) -> None:
        """Log-probs of every answer's tokens with the training forward, kept in the answers' field `name`."""
        examples = [example for group in found.examples(self.loss) for example in group]
        training = model.training
        model.eval()
        for micro in cut_step(examples, self.rollouts.micro_tokens, trees=True).micros:
            rows, pad_id = [example.rows[0] for example in micro], self.policy.renderer.pad_id
            logps_GT, _ = self.token_logps(model, rows, pad_id=pad_id, temperature=self.temperature).padded()
            for example, row, logps in zip(micro, rows, logps_GT.tolist(), strict=True):
                assert isinstance(example, AnswerExample)
                setattr(example.answer, name, tuple(logps[: len(row.answer)]))
        model.train(training)

    def micro_loss(self, examples: Sequence[AnswerExample], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        answers = [example.answer for example in examples]
        rows = [example.rows[0] for example in examples]
        found = self.logps_of(rows, temperature=self.temperature, entropy=True)
        logps_GT, written_GT = found.padded()
        counted_G1 = torch.tensor([[example.weight > 0] for example in examples], device=logps_GT.device)
        mask_GT = written_GT & counted_G1
        old_GT = _padded([one.old_logps for one in answers], logps_GT)
        loss, metrics = self.loss(
            logps_GT,
            torch.tensor([one.advantage for one in answers], device=logps_GT.device),
            mask_GT,
            max_length=self.max_new_tokens,
            old_logps_GT=old_GT,
            ref_logps_GT=_padded([one.ref_logps for one in answers], logps_GT),
            weights_GT=self._corrections(answers, logps_GT.detach() if old_GT is None else old_GT, mask_GT),
            answers=step.examples,
            tokens=step.weight,
        )
        assert found.entropy_N is not None
        entropy_GT = found.entropy_N.new_zeros(mask_GT.shape)
        entropy_GT = entropy_GT.masked_scatter(written_GT, found.entropy_N[found.is_answer_N])
        tokens = mask_GT.sum()
        metrics["entropy"] = (entropy_GT * mask_GT).sum() / tokens.clamp(min=1)
        # Means over tokens, handed on so that their mean over examples is the mean over the step's tokens.
        share = tokens * (step.examples / len(examples)) / max(1.0, step.weight)
        return loss, {name: value * share for name, value in metrics.items()}

    def _corrections(self, answers: Sequence[Answer], logps_GT: Tensor, mask_GT: Tensor) -> Tensor | None:
        """Truncated importance weights for an engine with log-probs of its own; the gap to it is noted."""
        if self.temperature != 1.0:  # the engine's log-probs are those before the temperature
            return None
        engine_GT = _padded([one.logps for one in answers], logps_GT)
        assert engine_GT is not None
        gap_GT = (logps_GT - engine_GT).masked_fill(~mask_GT, 0)
        self._gaps.append(gap_GT.abs()[mask_GT])
        if self.own_engine or self.loss.truncated_importance is None:
            return None
        return gap_GT.clamp(max=math.log(self.loss.truncated_importance)).exp()

    def step_metrics(self) -> dict[str, float]:
        assert self.round is not None
        found = dict(self.round.metrics)
        gaps = torch.cat(self._gaps) if self._gaps else torch.empty(0)
        if len(gaps):
            found["sampling/sampling_logp_difference/mean"] = float(gaps.mean())
            found["sampling/sampling_logp_difference/max"] = float(gaps.max())
        for name, seconds in self.round.seconds.items():
            found[f"time/{name}"] = seconds / self.loss.steps_a_round
        found["step_time"] = perf_counter() - self.began
        found["time/train"] = found["step_time"] - self.waited
        return found

    def _tabulate(self, found: Round, step: int, path: Path) -> None:
        """Adds the answers of the round's first two groups to the table, and to loggers that take tables."""
        rows = [
            [step, group.sample_id, k, one.reward, one.score, one.advantage, one.exact, " ".join(one.errors), one.finish,
             one.text]
            for group in found.groups[:2]
            for k, one in enumerate(group.answers)
        ]  # fmt: skip
        kept = []
        if step and path.exists():  # what a run that was killed had written beyond its resume point goes
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) < step]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([TABLE, *kept, *rows])
        write_text(path, text.getvalue())
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("answers", columns=list(TABLE), data=rows, step=step)


def _padded(rows: Sequence[Sequence[float] | None], like_GT: Tensor) -> Tensor | None:
    """Numbers of each row in the shape of `like_GT`, zero where a row ends; None if a row has none."""
    if any(row is None for row in rows):
        return None
    padded = [[*row, *[0.0] * (like_GT.shape[1] - len(row))] for row in rows if row is not None]
    return torch.tensor(padded, device=like_GT.device, dtype=torch.float32).view(like_GT.shape)


def _answer_metrics(found: Round) -> dict[str, float]:
    """Metrics of a round's answers, by TRL's names where it has one."""
    answers = found.answers
    lengths = [len(one.token_ids) for one in answers]
    ended = [len(one.token_ids) for one in answers if one.finish != "length"]
    metrics = {"completions/clipped_ratio": 1 - len(ended) / len(lengths)}
    for kind, values in (("", lengths), ("terminated_", ended)):
        metrics[f"completions/mean_{kind}length"] = statistics.fmean(values) if values else 0.0
        metrics[f"completions/min_{kind}length"] = float(min(values, default=0))
        metrics[f"completions/max_{kind}length"] = float(max(values, default=0))
    metrics["exact"] = sum(one.exact for one in answers) / len(answers)
    metrics["groups/kept"] = len(found.groups) / found.drawn
    metrics["generated"] = float(found.generated)
    for error in LABELS:
        metrics[f"errors/{error}"] = sum(error in one.errors for one in answers) / len(answers)
    for name in answers[0].detail:
        values = [one.detail.get(name, 0.0) for one in answers]
        metrics[f"rewards/{name}/mean"] = statistics.fmean(values)
        metrics[f"rewards/{name}/std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return metrics
