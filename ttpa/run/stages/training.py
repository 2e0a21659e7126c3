"""The stages that train: warm-up and align."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.errors import DataError
from ttpa.io import read_jsonl, write_jsonl
from ttpa.policy.models import HFModel, TinyModel
from ttpa.records import Pair, Sample
from ttpa.run.stages.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.train.losses import RFT, Gold, PreferenceLoss
from ttpa.train.settings import NoWarmup

if TYPE_CHECKING:
    from ttpa.policy.forward import Forward
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow

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
    from ttpa.train.plan import Demonstrations, plan_warmup

    samples, rows, too_long = fitting(policy, demonstrations, None, "warm-up")
    numbers: dict[str, int] = {}
    found = Demonstrations(
        lengths=[len(row) for row in rows],
        answers=[len(row.answer) for row in rows],
        bands=[sample.band for sample in samples],
        units=[numbers.setdefault(sample.cluster, len(numbers)) for sample in samples],
    )
    plan = plan_warmup(found, parts.warmup, parts.recipe.warmup, parts.seed)
    recipe = parts.recipe.warmup
    metrics = _fit_sft(parts, policy, rows, plan, recipe, recipe.prompt_weight, found.units, workdir, progress)
    return {"samples": len(samples), "too_long": too_long, "parameters": policy.model.num_parameters(), **metrics}


def _tokenizer_texts(model: TinyModel | HFModel, samples: Sequence[Sample]) -> Iterator[str]:
    from ttpa.calls.syntaxes import get_syntax
    from ttpa.prompts import compact_segments

    syntax = get_syntax(model.syntax)
    for sample in samples:
        yield from (text for _, text in compact_segments(sample, syntax))
        yield syntax.print(sample.target) if sample.target else sample.target_text or ""


def _fit_sft(
    parts: Parts,
    policy: Policy,
    rows: Sequence[TokenRow],
    plan: Any,
    optimizer: Any,
    prompt_weight: float,
    units: Sequence[int] | None,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    from ttpa.policy.forward import choose_forward, tree_token_logps
    from ttpa.train.module import PlanData
    from ttpa.train.sft import SFTModule, row_weight

    forward = choose_forward(policy.model, parts.trainer.forward)
    policy.start_training(parts.seed)
    module = SFTModule(policy, optimizer, plan.boundaries, rows, prompt_weight, forward)
    data = PlanData(
        plan,
        [len(row) for row in rows],
        [row_weight(row, prompt_weight) for row in rows],
        parts.trainer.micro_tokens,
        units=(units or range(len(rows))) if forward is tree_token_logps else None,
        own=[len(row.answer) for row in rows],
    )
    return fit(parts, module, data, workdir, progress)


def fit(parts: Parts, module: Any, data: Any, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Trains a module on a data module, from the last resume point if there is one, and saves the policy."""
    from ttpa.train.train import train

    metrics = train(
        module,
        data,
        workdir,
        trainer=parts.trainer.lightning,
        logger=parts.tracking.logger,
        checkpoint_every=parts.trainer.checkpoint_every_steps,
        progress=progress,
    )
    module.policy.model = module.model
    module.policy.save(workdir / "policy")
    (workdir / "last.ckpt").unlink(missing_ok=True)
    return metrics


def build_align(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    select: Path | None,
    explore: Path | None,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The policy after the objective: preference pairs, their chosen answers (RFT), the targets (gold), or answers
    drawn on the way (GRPO).
    """
    from ttpa.policy.policy import load_policy

    if parts.objective.consumes == "prompt":
        from ttpa.run.stages.online import align_online

        return align_online(parts, policy_dir, data, select, workdir, progress)
    from ttpa.policy.tree import TokenRow
    from ttpa.train.plan import plan_alignment

    set_threads(parts)
    policy = load_policy(policy_dir)
    settings, loss = parts.recipe.align, parts.objective
    if isinstance(loss, Gold):
        samples, rows, too_long = fitting(policy, selected_samples(parts, data, select), None, "align")
        plan = plan_alignment(len(rows), settings, parts.seed)
        return {
            "answers": len(samples),
            "too_long": too_long,
            **_fit_sft(parts, policy, rows, plan, settings, 0.0, None, workdir, progress),
        }
    assert explore is not None
    pairs = [Pair.from_json(row) for row in read_jsonl(explore / "pairs.jsonl")]
    if not pairs:
        raise DataError(
            f"{explore / 'pairs.jsonl'}: exploration gave no pairs, so there is nothing to align on. Use "
            "pairs=released (the target stands in where no candidate is right), more candidates or a longer warm-up."
        )
    by_id = {sample.id: sample for sample in read_split(data, "explore")}
    prompts = dict(zip(by_id, policy.renderer.prompts(list(by_id.values())), strict=True))
    if isinstance(loss, RFT):
        answers = {(pair.sample_id, pair.chosen.token_ids): None for pair in pairs}
        rows = [TokenRow(prompts[sample_id], ids) for sample_id, ids in answers]
        plan = plan_alignment(len(rows), settings, parts.seed)
        return {
            "answers": len(rows),
            **_fit_sft(parts, policy, rows, plan, settings, 0.0, None, workdir, progress),
        }
    assert isinstance(loss, PreferenceLoss)
    return _align_pairs(parts, policy, pairs, prompts, loss, workdir, progress)


def _align_pairs(
    parts: Parts,
    policy: Policy,
    pairs: list[Pair],
    prompts: dict[str, list[int]],
    loss: PreferenceLoss,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    from ttpa.policy.forward import choose_forward, tree_token_logps
    from ttpa.train.module import PlanData
    from ttpa.train.plan import plan_alignment
    from ttpa.train.preference import PreferenceModule

    chosen, rejected = (
        [_row(prompts[pair.sample_id], pair, side, loss.over) for pair in pairs] for side in ("chosen", "rejected")
    )
    forward = choose_forward(policy.model, parts.trainer.forward)
    both = list(zip(chosen, rejected, strict=True))
    references = _references(parts, policy, forward, both, workdir) if loss.needs_reference else None
    policy.start_training(parts.seed)
    plan = plan_alignment(len(pairs), parts.recipe.align, parts.seed)
    module = PreferenceModule(policy, parts.recipe.align, plan.boundaries, loss, chosen, rejected, references, forward)
    shares = forward is tree_token_logps
    data = PlanData(
        plan,
        [len(c) + len(r.answer) if shares else 2 * max(len(c), len(r)) for c, r in both],
        [len(c.answer) for c, _ in both],
        parts.trainer.micro_tokens,
        tokens=[len(c) + len(r) for c, r in both],
        units=range(len(both)) if shares else None,
    )
    return {"pairs": len(pairs), **fit(parts, module, data, workdir, progress)}


def _row(prompt: Sequence[int], pair: Pair, side: str, over: str) -> TokenRow:
    """One side of a pair: the whole answer, or only the span in which it parts from the other side."""
    from ttpa.policy.tree import TokenRow

    ids: tuple[int, ...] = getattr(pair, side).token_ids
    if over == "answer":
        return TokenRow(prompt, ids)
    # Two answers of which one is the beginning of the other part behind its end: their last token tells them apart.
    start = min(pair.branch, len(ids) - 1)
    stop = pair.provenance.get("spans", {}).get(side, len(ids))
    return TokenRow((*prompt, *ids[:start]), ids[start : max(stop, start + 1)])


def _references(
    parts: Parts, policy: Policy, forward: Forward, pairs: Sequence[tuple[TokenRow, TokenRow]], workdir: Path
) -> list[tuple[float, float]]:
    """Summed log-probs of each pair under the policy the stage starts from; computed once, kept on disk."""
    from ttpa.policy.forward import answer_sums

    file = workdir / "reference_logps.jsonl"
    if not file.exists():
        pad, budget = policy.renderer.pad_id, parts.trainer.micro_tokens
        sums = answer_sums(forward, policy.model, pairs, pad_id=pad, budget=budget)
        write_jsonl(file, ({"chosen": chosen, "rejected": rejected} for chosen, rejected in sums))
    return [(row["chosen"], row["rejected"]) for row in read_jsonl(file)]
