"""The align stage: preference pairs, their chosen answers (RFT), or the targets of the same prompts (gold).

Objectives that draw their answers while they train are `ttpa.run.stages.online`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.errors import DataError
from ttpa.io import read_jsonl, write_jsonl
from ttpa.records import Pair
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.run.stages.online import align_online
from ttpa.run.stages.training import fit, fit_sft
from ttpa.train.losses import PreferenceLoss

if TYPE_CHECKING:
    from ttpa.policy.forward import Forward
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow


def build_align(
    parts: Parts,
    policy_dir: Path,
    data: Path,
    select: Path | None,
    explore: Path | None,
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The policy after the objective.

    Args:
        parts: The run's parts.
        policy_dir, data, select, explore: What the stage builds on; `explore` is None where the objective needs no pairs.
        workdir: The stage's working directory.
        progress: Told about every few steps.

    Raises:
        DataError: exploration gave no pairs.
    """
    if parts.objective.consumes == "prompt":
        return align_online(parts, policy_dir, data, select, workdir, progress)
    from ttpa.policy.policy import load_policy
    from ttpa.policy.tree import TokenRow
    from ttpa.train.module import sft_example
    from ttpa.train.plan import plan_alignment

    set_threads(parts)
    policy, loss, recipe = load_policy(policy_dir), parts.objective, parts.recipe.align
    metrics: dict[str, Any] = {}
    if loss.consumes == "sample":
        _, rows, metrics["too_long"] = fitting(policy, selected_samples(parts, data, select), None, "align")
    else:
        assert explore is not None
        pairs = [Pair.from_json(row) for row in read_jsonl(explore / "pairs.jsonl")]
        if not pairs:
            raise DataError(
                f"{explore / 'pairs.jsonl'}: exploration gave no pairs, so there is nothing to align on. Use "
                "pairs=released (the target stands in where no candidate is right), more candidates or a longer warm-up."
            )
        samples = read_split(data, "explore")
        prompts = dict(zip((sample.id for sample in samples), policy.renderer.prompts(samples), strict=True))
        if isinstance(loss, PreferenceLoss):
            return _align_pairs(parts, policy, loss, pairs, prompts, workdir, progress)
        answers = {(pair.sample_id, pair.chosen.token_ids): None for pair in pairs}
        rows = [TokenRow(prompts[sample_id], ids) for sample_id, ids in answers]
    examples = [sft_example(row, 0.0, number) for number, row in enumerate(rows)]
    plan = plan_alignment(examples, recipe, parts.seed)
    return {"answers": len(rows), **metrics, **fit_sft(parts, policy, plan, recipe, 0.0, workdir, progress)}


def _align_pairs(
    parts: Parts,
    policy: Policy,
    loss: PreferenceLoss,
    pairs: Sequence[Pair],
    prompts: dict[str, list[int]],
    workdir: Path,
    progress: Progress,
) -> dict[str, Any]:
    from ttpa.policy.forward import choose_forward
    from ttpa.train.module import PairExample, PreferenceModule
    from ttpa.train.plan import plan_alignment

    forward = choose_forward(policy.model, parts.trainer.forward)
    rows = [
        (
            pair_row(prompts[pair.sample_id], pair, "chosen", loss.over),
            pair_row(prompts[pair.sample_id], pair, "rejected", loss.over),
        )
        for pair in pairs
    ]
    references = _references(parts, policy, forward, rows, workdir) if loss.needs_reference else [None] * len(rows)
    policy.start_training(parts.seed)
    examples = [
        PairExample((chosen, rejected), len(chosen.answer), number, reference)
        for number, ((chosen, rejected), reference) in enumerate(zip(rows, references, strict=True))
    ]
    plan = plan_alignment(examples, parts.recipe.align, parts.seed)
    module = PreferenceModule(policy, parts.recipe.align, plan.boundaries, forward, loss=loss)
    return {"pairs": len(pairs), **fit(parts, module, plan, workdir, progress)}


def pair_row(prompt: Sequence[int], pair: Pair, side: str, over: str) -> TokenRow:
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
