"""The warm-up and align stages: training on demonstrations, pairs, their chosen answers (RFT) or targets (gold)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.data.source import read_split
from ttpa.errors import DataError
from ttpa.io import read_jsonl, write_jsonl
from ttpa.policy.models import HFModel, TinyBase, TinyModel
from ttpa.records import Pair, Sample
from ttpa.run.parts import Parts, Progress, fitting, selected_samples, set_threads
from ttpa.train.losses import PreferenceLoss
from ttpa.train.settings import NoWarmup

if TYPE_CHECKING:
    from ttpa.policy.forward import Forward
    from ttpa.policy.policy import Policy
    from ttpa.policy.tree import TokenRow
    from ttpa.train.module import PairExample, PolicyModule
    from ttpa.train.plan import Example, Plan

TOKENIZER_TEXTS = 3000  # demonstrations that the small model's tokenizer is trained on


def build_warmup(parts: Parts, data: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
    """The starting policy, fine-tuned on the demonstrations unless `warmup=none`."""
    from ttpa.policy.forward import choose_forward
    from ttpa.policy.policy import create_policy
    from ttpa.train.module import SFTModule
    from ttpa.train.plan import plan_warmup

    set_threads(parts)
    samples = read_split(data, "warmup")
    policy = create_policy(parts.model, _tokenizer_texts(parts.model, samples[:TOKENIZER_TEXTS]), parts.seed)
    if isinstance(parts.warmup, NoWarmup):
        policy.save(workdir / "policy")
        return {"steps": 0, "tokens": 0, "parameters": policy.model.num_parameters()}
    samples, rows, left_out = fitting(policy, samples, None, "warm-up")
    recipe, forward = parts.recipe.warmup, choose_forward(policy, parts.trainer.forward)
    units = [sample.cluster for sample in samples]
    found = demonstrations(policy, samples, rows, recipe.train_on, recipe.prompt_weight, units)
    bands = [samples[at].band for at in found]
    plan = plan_warmup(list(found.values()), bands, parts.warmup, recipe, parts.seed)
    policy.start_training(parts.seed)
    module = SFTModule(policy, recipe, plan.boundaries, forward, prompt_weight=recipe.prompt_weight)
    counts = {"samples": len(found), **left_out, **_masked(samples, found), "parameters": policy.model.num_parameters()}
    return counts | _fit(parts, module, plan, workdir, progress)


def demonstrations(
    policy: Policy, samples: Sequence[Sample], rows: Sequence[TokenRow], train_on: Sequence[str], prompt_weight: float,
    units: Sequence[Any],
) -> dict[int, Example]:  # fmt: skip
    """Place of a sample -> its target with the parts that are trained; samples of which no part is are left out."""
    from ttpa.train.module import sft_example
    from ttpa.train.plan import trained_rows

    if len({*train_on}) == 3:  # all there are
        return {at: sft_example([row], prompt_weight, units[at]) for at, row in enumerate(rows)}
    answers = policy.renderer.answer_parts(samples)
    cut = (trained_rows(row, ids, train_on, prompt_weight > 0) for row, ids in zip(rows, answers, strict=True))
    found = {at: sft_example(made, prompt_weight, units[at]) for at, made in enumerate(cut) if made}
    if not found:
        raise DataError(f"recipe.train_on={list(train_on)}: no target has such a part. Name other parts, or give data.")
    return found


def _masked(samples: Sequence[Sample], found: Mapping[int, Example]) -> dict[str, int]:
    """How many samples were left out because no part of them is trained, where there are some."""
    return {"masked": len(samples) - len(found)} if len(found) < len(samples) else {}


def _tokenizer_texts(model: TinyBase | TinyModel | HFModel, samples: Sequence[Sample]) -> Iterator[str]:
    from ttpa.calls.syntaxes import get_syntax
    from ttpa.prompts import compact_segments, target_parts

    syntax = get_syntax(model.syntax)
    for sample in samples:
        yield from (text for _, text in compact_segments(sample, syntax))
        yield "".join(text for _, text in target_parts(sample, syntax))


def _fit(parts: Parts, module: PolicyModule, plan: Plan, workdir: Path, progress: Progress) -> dict[str, Any]:
    from ttpa.policy.logprobs import token_logps
    from ttpa.train.module import PlanData, fit

    served = PlanData(plan, parts.trainer.micro_tokens, trees=module.token_logps is not token_logps)
    return fit(module, served, workdir, trainer=parts.trainer, logger=parts.tracking.logger, progress=progress)


def build_align(
    parts: Parts, policy_dir: Path, data: Path, select: Path | None, explore: Path | None, workdir: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The policy after the objective. `explore`, the folder of that stage, is read by objectives that learn from pairs;
    without a pair it is a `DataError`.
    """
    if parts.objective.consumes == "prompt":
        from ttpa.run.stages.online import align_online

        return align_online(parts, policy_dir, data, select, workdir, progress)
    from ttpa.policy.forward import choose_forward
    from ttpa.policy.policy import load_policy
    from ttpa.policy.tree import TokenRow
    from ttpa.train.module import PreferenceModule, SFTModule, sft_example
    from ttpa.train.plan import plan_alignment

    set_threads(parts)
    policy, loss, recipe = load_policy(policy_dir), parts.objective, parts.recipe.align
    forward = choose_forward(policy, parts.trainer.forward)
    examples: Sequence[Example]
    if explore is None:
        samples, rows, left_out = fitting(policy, selected_samples(parts, data, select), None, "align")
        found = demonstrations(policy, samples, rows, parts.recipe.align.train_on, 0.0, range(len(rows)))
        examples = list(found.values())
        counts = {"answers": len(examples), **left_out, **_masked(samples, found)}
    else:
        pairs = [Pair.from_json(row) for row in read_jsonl(explore / "pairs.jsonl")]
        if not pairs:
            raise DataError(
                f"{explore / 'pairs.jsonl'}: exploration gave no pairs, so there is nothing to align on. Use "
                "pairs=released (the target stands in where no answer is right), more candidates or a longer warm-up."
            )
        paired = {pair.sample_id for pair in pairs}
        samples = [sample for sample in read_split(data, "explore") if sample.id in paired]
        prompts = dict(zip((sample.id for sample in samples), policy.renderer.prompts(samples), strict=True))
        answers = dict.fromkeys((pair.sample_id, pair.chosen.token_ids) for pair in pairs)
        rows = [TokenRow(prompts[sample_id], ids) for sample_id, ids in answers]
        counts = {"pairs": len(pairs)} if loss.contrasts else {"answers": len(rows)}
        examples = [sft_example([row], 0.0, number) for number, row in enumerate(rows)]
    make: Callable[..., PolicyModule] = partial(SFTModule, prompt_weight=0.0)
    if isinstance(loss, PreferenceLoss):
        examples = pair_examples(parts, policy, loss, pairs, prompts, forward, workdir)
        make = partial(PreferenceModule, loss=loss)
    plan = plan_alignment(examples, recipe, parts.seed)
    policy.start_training(parts.seed)
    return counts | _fit(parts, make(policy, recipe, plan.boundaries, forward), plan, workdir, progress)


def pair_examples(
    parts: Parts, policy: Policy, loss: PreferenceLoss, pairs: Sequence[Pair], prompts: Mapping[str, Sequence[int]],
    forward: Forward, workdir: Path,
) -> list[PairExample]:  # fmt: skip
    """Pairs as the loss asks for them. Log-probs under the policy the stage starts from are kept in `workdir`."""
    from ttpa.policy.forward import answer_sums
    from ttpa.train.module import PairExample

    sides = ("chosen", "rejected")
    rows = [tuple(pair_row(prompts[pair.sample_id], pair, side, loss.over) for side in sides) for pair in pairs]
    file, known = workdir / "reference_logps.jsonl", list[Any]([None] * len(rows))
    if loss.needs_reference:
        if not file.exists():
            pad_id, budget = policy.renderer.pad_id, parts.trainer.micro_tokens
            sums = answer_sums(forward, policy.model, rows, pad_id=pad_id, budget=budget)
            write_jsonl(file, (dict(zip(sides, both, strict=True)) for both in sums))
        known = [(row["chosen"], row["rejected"]) for row in read_jsonl(file)]
    both = zip(rows, known, strict=True)
    return [PairExample(row, len(row[0].answer), number, reference) for number, (row, reference) in enumerate(both)]


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
