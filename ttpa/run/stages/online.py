"""The align stage of objectives that draw answers while they train (GRPO): what draws and scores them.

The engine and the trainer share the model in this process (`engine=hf`); another engine (`engine=vllm`) is given the
adapter being trained before every round. `rollouts.jsonl` keeps each round with all that its steps consumed, so that a
step can be done again from a policy without an engine; `answers.csv` is a table of some answers for people.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ttpa.calls.six_errors import six_errors
from ttpa.errors import ConfigError
from ttpa.explore.sampler import Task
from ttpa.explore.scorers.score import score_answer
from ttpa.records import Sample
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.stages.training import fit
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import AlignRecipe

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow
    from ttpa.train.rollouts import Group

ROLLOUTS, TABLE, SERVED = "rollouts.jsonl", "answers.csv", "served"


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
    from ttpa.policy.forward import choose_forward, tree_token_logps
    from ttpa.policy.policy import load_policy
    from ttpa.train.grpo import GRPOModule
    from ttpa.train.rollouts import RolloutData, read_rounds

    set_threads(parts)
    policy = load_policy(policy_dir)
    loss, recipe, temperature = parts.objective, parts.recipe.online, parts.sampler.policy_temperature
    assert isinstance(loss, GRPO) and temperature is not None, "refused before any work"
    samples, rows, too_long = fitting(
        policy, selected_samples(parts, data, select), parts.sampler.max_new_tokens, "align"
    )
    forward = choose_forward(policy.model, parts.trainer.forward)
    policy.start_training(parts.seed)
    engine = parts.engine(policy=policy) if rollouts is None else None
    served = RolloutData(
        prompts=len(samples),
        draw=partial(_draw, parts, policy, engine, _refresh(engine, policy, workdir), samples, rows),
        loss=loss,
        batch_size=recipe.batch_size,
        steps=steps or _steps(recipe, loss, len(samples)),
        seed=parts.seed,
        micro_tokens=parts.trainer.micro_tokens,
        trees=forward is tree_token_logps,
        file=None if rollouts else workdir / ROLLOUTS,
        kept=read_rounds(rollouts) if rollouts else None,
    )
    module = GRPOModule(
        policy,
        recipe,
        (served.total_steps,),
        forward,
        loss=loss,
        rollouts=served,
        max_new_tokens=parts.sampler.max_new_tokens,
        temperature=temperature,
        own_engine=parts.engine_name == "HFEngine" if engine is None else not hasattr(engine, "use_adapter"),
        score_weights=_score_weights(parts.scorer),
        table=(workdir / TABLE, parts.trainer.answers_every_steps),
    )
    metrics = fit(parts, module, served, workdir, progress)
    shutil.rmtree(workdir / SERVED, ignore_errors=True)
    return {"samples": len(samples), "too_long": too_long, **metrics}


def replay(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    workdir: Path,
    *,
    rollouts: Path,
    steps: int | None = None,
    select: Path | None = None,
) -> dict[str, Any]:
    """Does the first optimiser steps of a finished stage again from its `rollouts.jsonl`: nothing is drawn or scored.

    Args:
        parts: Those of the run (`parts.build_parts`).
        policy_dir, data, select: What the stage was built from: the folder of the policy, the data and select stages.
        workdir: An empty folder for the policy, and for what the logger writes.
        rollouts: The stage's file.
        steps: How many; None: all.

    Returns:
        What the stage's `metrics.json` holds, the loss of the last step among it.

    Raises:
        DataError: the file does not hold a round that is asked for.

    Example:
        parts = build_parts(OmegaConf.load("runs/slm_grpo-0123456789ab/config.yaml"))
        replay(parts, warmup / "policy", data, Path("again"), rollouts=align / "rollouts.jsonl", steps=1)["loss"]
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return align_online(parts, policy_dir, data, select, workdir, lambda *news: None, rollouts, steps)


def _steps(recipe: AlignRecipe, loss: GRPO, prompts: int) -> int:
    """Optimiser steps: as configured, or as many as so many passes over the prompts need."""
    if recipe.steps is not None:
        return recipe.steps
    rounds = math.ceil(prompts * (recipe.epochs or 0) / (recipe.batch_size * loss.minibatches))
    return max(1, rounds) * loss.steps_a_round


def _score_weights(scorer: Any) -> dict[str, float] | None:
    """Weights of the parts of a score that are normalised one by one, or None."""
    if getattr(scorer, "normalise", None) != "normalise_then_sum":
        return None
    return {name: float(weight) for name, weight in scorer.weights.items()}


def _refresh(engine: Any, policy: Policy, workdir: Path) -> Callable[[], None]:
    """What tells an engine that the weights have changed."""
    if not hasattr(engine, "use_adapter"):
        return lambda: engine.reset()
    if not hasattr(policy.model, "peft_config"):
        raise ConfigError(
            "objective=grpo hands adapters over to an engine with weights of its own (engine=vllm), and model.lora is "
            "null. Set model.lora, or use engine=hf."
        )
    folder = workdir / SERVED

    def hand_over() -> None:
        policy.model.save_pretrained(folder)
        engine.use_adapter(folder)

    return hand_over


def _draw(
    parts: Parts,
    policy: Policy,
    engine: Any,
    refresh: Callable[[], None],
    samples: Sequence[Sample],
    rows: Sequence[TokenRow],
    numbers: Sequence[int],
    places: Sequence[int],
    step: int,
) -> tuple[list[Group], dict[str, float]]:
    """Groups of scored answers to some prompts, by the policy as it is now."""
    from ttpa.train.rollouts import Answer, Group

    loss = parts.objective
    assert isinstance(loss, GRPO)
    began = perf_counter()
    refresh()
    score = partial(score_answer, parts.scorer, step=step)
    # The place names the random numbers: a prompt that comes again is answered anew.
    tasks = [
        Task(
            name=f"{place}:{samples[number].id}",
            sample=samples[number],
            prompt=rows[number].prompt,
            renderer=policy.renderer,
            score=score,
        )
        for number, place in zip(numbers, places, strict=True)
    ]
    drawn = parts.sampler.explore(engine, tasks, f"grpo:{parts.seed}")
    generated = perf_counter()
    groups = []
    for task, place, found in zip(tasks, places, drawn, strict=True):
        answers = []
        for one in found.answers:
            answer = task.read(one.token_ids)
            length = loss.length_penalty(len(one.token_ids), parts.sampler.max_new_tokens, one.finish != "length")
            answers.append(
                Answer(
                    token_ids=tuple(one.token_ids),
                    logps=tuple(one.logps),
                    text=answer.candidate.text,
                    finish=one.finish,
                    score=answer.value,
                    reward=answer.value + length,
                    exact=answer.score.exact,
                    detail=dict(answer.score.detail),
                    errors=tuple(six_errors(task.sample, answer.candidate.calls)),
                )
            )
        groups.append(Group(place=place, sample_id=task.sample.id, prompt=tuple(task.prompt), answers=answers))
    return groups, {"generate": generated - began, "score": perf_counter() - generated}
