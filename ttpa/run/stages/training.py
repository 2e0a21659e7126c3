"""The warm-up stage, and how any stage trains. The align stage is `ttpa.run.stages.aligning` and `.online`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.policy.models import HFModel, TinyModel
from ttpa.records import Sample
from ttpa.run.parts import Parts, Progress, fitting, set_threads
from ttpa.train.settings import NoWarmup, Optimisation

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy
    from ttpa.train.module import PolicyModule
    from ttpa.train.plan import Plan
    from ttpa.train.rollouts import RolloutData

TOKENIZER_TEXTS = 3000
"""Demonstrations that the small model's tokenizer is trained on."""


def build_warmup(parts: Parts, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The starting policy, fine-tuned on the demonstrations unless `warmup=none`."""
    from ttpa.policy.policy import create_policy

    set_threads(parts)
    demonstrations = read_split(data, "warmup")
    policy = create_policy(parts.model, _tokenizer_texts(parts.model, demonstrations[:TOKENIZER_TEXTS]), parts.seed)
    if isinstance(parts.warmup, NoWarmup):
        policy.save(workdir / "policy")
        return {"steps": 0, "tokens": 0, "parameters": policy.model.num_parameters()}
    from ttpa.train.module import sft_example
    from ttpa.train.plan import plan_warmup

    samples, rows, too_long = fitting(policy, demonstrations, None, "warm-up")
    recipe = parts.recipe.warmup
    examples = [sft_example(row, recipe.prompt_weight, one.cluster) for one, row in zip(samples, rows, strict=True)]
    plan = plan_warmup(examples, [sample.band for sample in samples], parts.warmup, recipe, parts.seed)
    metrics = fit_sft(parts, policy, plan, recipe, recipe.prompt_weight, workdir, progress)
    return {"samples": len(samples), "too_long": too_long, "parameters": policy.model.num_parameters(), **metrics}


def _tokenizer_texts(model: TinyModel | HFModel, samples: Sequence[Sample]) -> Iterator[str]:
    from ttpa.calls.syntaxes import get_syntax
    from ttpa.prompts import compact_segments

    syntax = get_syntax(model.syntax)
    for sample in samples:
        yield from (text for _, text in compact_segments(sample, syntax))
        yield syntax.print(sample.target) if sample.target else sample.target_text or ""


def fit_sft(
    parts: Parts,
    policy: Policy,
    plan: Plan,
    recipe: Optimisation,
    prompt_weight: float,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Trains on demonstrations; see `fit`."""
    from ttpa.policy.forward import choose_forward
    from ttpa.train.module import SFTModule

    forward = choose_forward(policy.model, parts.trainer.forward)
    policy.start_training(parts.seed)
    module = SFTModule(policy, recipe, plan.boundaries, forward, prompt_weight=prompt_weight)
    return fit(parts, module, plan, workdir, progress)


def fit(
    parts: Parts, module: PolicyModule, data: Plan | RolloutData, workdir: Path, progress: Progress
) -> dict[str, Any]:
    """Trains a module on a plan or on rollouts, from the last resume point if there is one, and saves the policy."""
    from ttpa.policy.logprobs import token_logps
    from ttpa.train.module import PlanData
    from ttpa.train.plan import Plan
    from ttpa.train.train import train

    if isinstance(data, Plan):
        served: PlanData | RolloutData = PlanData(
            data, parts.trainer.micro_tokens, trees=module.token_logps is not token_logps
        )
    else:
        served = data
    metrics = train(module, served, workdir, trainer=parts.trainer, logger=parts.tracking.logger, progress=progress)
    module.policy.model = module.model
    module.policy.save(workdir / "policy")
    (workdir / "last.ckpt").unlink(missing_ok=True)
    return metrics
