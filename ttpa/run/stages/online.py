"""The align stage of objectives that draw answers while they train (GRPO): what draws and scores them.

The engine and the trainer share the model in this process (`engine=hf`); another engine (`engine=vllm`) is given the
adapter being trained before every round. `rollouts.jsonl` keeps each round with all that its steps consumed, so that a
step can be done again without an engine; `answers.csv` is a table of some answers for people.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from ttpa.calls.six_errors import six_errors
from ttpa.errors import ConfigError
from ttpa.explore.sampler import Task
from ttpa.explore.scorers.score import score_answer
from ttpa.policy.forward import choose_forward, tree_token_logps
from ttpa.policy.policy import Policy, load_policy
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.train.grpo import Answer, Group, GRPOModule, RolloutData, read_rounds
from ttpa.train.module import fit
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import AlignRecipe


def align_online(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    select: Path | None,
    workdir: Path,
    progress: Progress,
    rollouts: Path | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """The policy after rounds of drawing, scoring and learning; `rollouts` and `steps` as in `replay`."""
    set_threads(parts)
    policy = load_policy(policy_dir)
    loss, recipe, sampler = parts.objective, parts.recipe.online, parts.sampler
    scorer: Any = parts.scorer
    assert isinstance(loss, GRPO) and sampler.policy_temperature is not None, "refused before any work"
    samples, rows, too_long = fitting(policy, selected_samples(parts, data, select), sampler.max_new_tokens, "align")
    forward = choose_forward(policy.model, parts.trainer.forward)
    policy.start_training(parts.seed)
    engine: Any = parts.engine(policy=policy) if rollouts is None else None
    refresh, normalised = _refresh(engine, policy, workdir / "served"), getattr(scorer, "normalise", None)

    def draw(numbers: Sequence[int], places: Sequence[int], step: int) -> tuple[list[Group], dict[str, float]]:
        """Groups of scored answers to some prompts, by the policy as it is now."""
        began = perf_counter()
        refresh()
        # The place names the random numbers: a prompt that comes again is answered anew.
        tasks = [
            Task(
                name=f"{place}:{samples[number].id}",
                sample=samples[number],
                prompt=rows[number].prompt,
                renderer=policy.renderer,
                score=partial(score_answer, parts.scorer, step=step),
            )
            for number, place in zip(numbers, places, strict=True)
        ]
        drawn = sampler.explore(engine, tasks, f"grpo:{parts.seed}")
        generated = perf_counter()
        groups = [
            Group(
                place=place,
                sample_id=task.sample.id,
                prompt=task.prompt,
                answers=[_answer(task, one, loss, sampler.max_new_tokens) for one in found.answers],
            )
            for task, place, found in zip(tasks, places, drawn, strict=True)
        ]
        return groups, {"generate": generated - began, "score": perf_counter() - generated}

    served = RolloutData(
        prompts=len(samples),
        draw=draw,
        loss=loss,
        batch_size=recipe.batch_size,
        total_steps=steps or _steps(recipe, loss, len(samples)),
        seed=parts.seed,
        micro_tokens=parts.trainer.micro_tokens,
        trees=forward is tree_token_logps,
        max_new_tokens=sampler.max_new_tokens,
        temperature=sampler.policy_temperature,
        own_engine=parts.engine_name == "HFEngine" if engine is None else not hasattr(engine, "use_adapter"),
        score_weights=dict(scorer.weights) if normalised == "normalise_then_sum" else None,
        file=None if rollouts else workdir / "rollouts.jsonl",
        table=(workdir / "answers.csv", parts.trainer.answers_every_steps),
        kept=read_rounds(rollouts) if rollouts else None,
    )
    module = GRPOModule(policy, recipe, (served.total_steps,), forward, rollouts=served)
    metrics = fit(module, served, workdir, trainer=parts.trainer, logger=parts.tracking.logger, progress=progress)
    shutil.rmtree(workdir / "served", ignore_errors=True)
    return {"samples": len(samples), "too_long": too_long, **metrics}


def replay(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    workdir: Path,
    *,
    rollouts: Path,
    steps: int | None = None,
    select: Any = None,
) -> dict[str, Any]:
    """Does the first `steps` optimiser steps (None: all) of a finished stage again from its `rollouts.jsonl`.

    Nothing is drawn or scored. `workdir` is an empty folder. Returns what the stage's `metrics.json` holds, with the
    loss of the last step; raises DataError where the file does not hold a round that is asked for.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return align_online(parts, policy_dir, data, select, workdir, lambda *news: None, rollouts, steps)


def _steps(recipe: AlignRecipe, loss: GRPO, prompts: int) -> int:
    """Optimiser steps: as configured, or as many as so many passes over the prompts need."""
    if recipe.steps is not None:
        return recipe.steps
    rounds = math.ceil(prompts * (recipe.epochs or 0) / (recipe.batch_size * loss.minibatches))
    return max(1, rounds) * loss.steps_a_round


def _refresh(engine: Any, policy: Policy, folder: Path) -> Callable[[], None]:
    """What tells an engine that the weights have changed."""
    if not hasattr(engine, "use_adapter"):
        return lambda: engine.reset()
    if not hasattr(policy.model, "peft_config"):
        raise ConfigError(
            "objective=grpo hands adapters over to an engine with weights of its own (engine=vllm), and model.lora is "
            "null. Set model.lora, or use engine=hf."
        )

    def hand_over() -> None:
        policy.model.save_pretrained(folder)
        engine.use_adapter(folder)

    return hand_over


def _answer(task: Task, one: Any, loss: GRPO, longest: int) -> Answer:
    """A generated answer with its score, and what its length costs."""
    answer = task.read(one.token_ids)
    return Answer(
        token_ids=one.token_ids,
        logps=one.logps,
        text=answer.candidate.text,
        finish=one.finish,
        score=answer.value,
        reward=answer.value + loss.length_penalty(len(one.token_ids), longest, one.finish != "length"),
        exact=answer.score.exact,
        detail=dict(answer.score.detail),
        errors=six_errors(task.sample, answer.candidate.calls),
    )
