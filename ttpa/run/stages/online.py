"""The align stage of objectives that draw answers while they train (GRPO): what draws and scores them.

The engine and the trainer share the model (`engine=hf`), or the engine (`engine=vllm`) is given the adapter before each
round. `rollouts.jsonl` keeps each round with all that its steps consumed; `answers.csv` shows some answers to people.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from ttpa.calls.six_errors import six_errors
from ttpa.errors import ConfigError
from ttpa.explore.sampler import Task
from ttpa.explore.scorers.score import score_answer
from ttpa.policy.engine import Generated
from ttpa.policy.forward import choose_forward, tree_token_logps
from ttpa.policy.policy import Policy, load_policy
from ttpa.policy.tree import TokenRow
from ttpa.records import Sample
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.train.grpo import Answer, Group, GRPOModule, RolloutData, read_rounds
from ttpa.train.module import fit
from ttpa.train.policy_gradient import GRPO
from ttpa.train.settings import OnlineRecipe


def align_online(
    parts: Parts, policy_dir: Path, data: Path, select: Path | None, workdir: Path, progress: Progress,
    rollouts: Path | None = None, steps: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The policy after rounds of drawing, scoring and learning; `rollouts` and `steps` as in `replay`."""
    set_threads(parts)
    policy, loss, recipe, sampler = load_policy(policy_dir), parts.objective, parts.recipe.online, parts.sampler
    assert isinstance(loss, GRPO) and sampler.policy_temperature is not None, "refused before any work"
    samples, rows, left_out = fitting(policy, selected_samples(parts, data, select), sampler.max_new_tokens, "align")
    forward = choose_forward(policy, parts.trainer.forward)
    policy.start_training(parts.seed)
    engine = parts.engine(policy=policy) if rollouts is None else None
    asked, scorer = list(zip(samples, rows, strict=True)), cast(Any, parts.scorer)
    served = RolloutData(
        prompts=len(samples),
        draw=partial(_draw, parts, policy, engine, asked, _refresh(engine, policy, workdir / "served")),
        loss=loss,
        batch_size=recipe.batch_size,
        total_steps=steps or _steps(recipe, loss, len(samples)),
        seed=parts.seed,
        micro_tokens=parts.trainer.micro_tokens,
        trees=forward is tree_token_logps,
        max_new_tokens=sampler.max_new_tokens,
        temperature=sampler.policy_temperature,
        own_engine=parts.engine_name == "HFEngine" if engine is None else not hasattr(engine, "use_adapter"),
        score_weights=dict(scorer.weights) if getattr(scorer, "normalise", None) == "normalise_then_sum" else None,
        file=None if rollouts else workdir / "rollouts.jsonl",
        table=(workdir / "answers.csv", parts.trainer.answers_every_steps),
        kept=read_rounds(rollouts) if rollouts else None,
    )
    module = GRPOModule(policy, recipe, (served.total_steps,), forward, rollouts=served)
    try:
        metrics = fit(module, served, workdir, trainer=parts.trainer, logger=parts.tracking.logger, progress=progress)
    finally:
        if engine is not None:
            engine.close()
    shutil.rmtree(workdir / "served", ignore_errors=True)
    return {"samples": len(samples), **left_out, **metrics}


def replay(
    parts: Parts, policy_dir: Path, data: Path, workdir: Path, *, rollouts: Path, steps: int | None = None,
    select: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Does the first `steps` optimiser steps (None: all) of a finished stage again from its `rollouts.jsonl`, in the
    empty folder `workdir`; nothing is drawn or scored. Returns the metrics, with the loss of the last step.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return align_online(parts, policy_dir, data, select, workdir, lambda *news: None, rollouts, steps)


def _draw(
    parts: Parts, policy: Policy, engine: Any, asked: Sequence[tuple[Sample, TokenRow]], refresh: Callable[[], None],
    numbers: Sequence[int], places: Sequence[int], step: int,
) -> tuple[list[Group], dict[str, float]]:  # fmt: skip
    """Groups of scored answers to some prompts, by the policy as it is now."""
    began, groups, tasks = perf_counter(), list[Group](), list[Task]()
    refresh()
    how: Any = {"renderer": policy.renderer, "score": partial(score_answer, parts.scorer, step=step)}
    for place, (sample, row) in zip(places, (asked[number] for number in numbers), strict=True):
        # The place names the random numbers: a prompt that comes again is answered anew.
        tasks.append(Task(name=f"{place}:{sample.id}", sample=sample, prompt=row.prompt, **how))
    drawn = parts.sampler.explore(engine, tasks, f"grpo:{parts.seed}")
    generated = perf_counter()
    for place, task, found in zip(places, tasks, drawn, strict=True):
        answers = [_answer(parts, task, one) for one in found.answers]
        groups.append(Group(place=place, sample_id=task.sample.id, prompt=task.prompt, answers=answers))
    return groups, {"generate": generated - began, "score": perf_counter() - generated}


def _answer(parts: Parts, task: Task, one: Generated) -> Answer:
    """A generated answer with its score, and what its length costs."""
    answer, loss, limit = task.read(one.token_ids), parts.objective, parts.sampler.max_new_tokens
    assert isinstance(loss, GRPO)
    return Answer(
        token_ids=one.token_ids, logps=one.logps, text=answer.candidate.text, finish=one.finish,
        reward=answer.score.value + loss.length_penalty(len(one.token_ids), limit, one.finish != "length"),
        score=answer.score.value, exact=answer.score.exact, detail=dict(answer.score.detail),
        errors=six_errors(task.sample, answer.candidate.calls),
    )  # fmt: skip


def _steps(recipe: OnlineRecipe, loss: GRPO, prompts: int) -> int:
    """Optimiser steps: as configured, or as many as so many passes over the prompts need."""
    rounds = math.ceil(prompts * (recipe.epochs or 0) / (recipe.batch_size * loss.minibatches))
    return recipe.steps or max(1, rounds) * loss.steps_a_round


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
