"""A GRPO step with its generation: ttpa against TRL's GRPOTrainer on the same prompts, and where the time goes.

python experiments/speed/online.py             prompt 512, answer 64, 8 answers: into ONLINE.md and online.json here
python experiments/speed/online.py --quick     tiny sizes, to see that it runs; writes nothing without --out

Each contender trains for a few steps in its own loop (Lightning, transformers' Trainer), by turns, in one process; the
first step of a turn is not counted. Answers are of a fixed length (the stop token is never drawn by the one, suppressed
in the other) and scored by the same function of their token ids. TRL runs at its defaults but for gradient
checkpointing and bf16, which are off, as in run.py, and the reporting of answers, which both leave out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from cases import EOS, FIRST_WORD, PAD, SMALL_VOCAB  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from ours import CLIP, CONF, LEARNING_RATE, fresh_model, loss_fields  # noqa: E402
from trl_side import tokenizer_of  # noqa: E402

from ttpa.policy.decode import HFEngine  # noqa: E402
from ttpa.policy.engine import Sampling  # noqa: E402
from ttpa.policy.forward import tree_token_logps  # noqa: E402
from ttpa.train.grpo import Answer, Group, GRPOModule, RolloutData  # noqa: E402
from ttpa.train.policy_gradient import GRPO  # noqa: E402
from ttpa.train.settings import OnlineRecipe  # noqa: E402

Split = dict[str, float]
PARTS = ("generate", "score", "train")


def reward(ids: Sequence[int]) -> float:
    return sum(ids) % 97 / 97


def draws(engine: HFEngine, prompts: list[list[int]], group: int, answer: int) -> Any:
    """What the data module calls for groups."""

    def draw(numbers: Sequence[int], places: Sequence[int], step: int) -> tuple[list[Group], dict[str, float]]:
        began = perf_counter()
        engine.reset()
        asked = [prompts[k] for k in numbers]
        made = engine.generate(asked, group, Sampling(max_new_tokens=answer), [str(place) for place in places])
        generated = perf_counter()
        groups = []
        for number, place, found in zip(numbers, places, made, strict=True):
            answers = [
                Answer(
                    token_ids=tuple(one.token_ids), logps=tuple(one.logps), text="", finish=one.finish,
                    score=reward(one.token_ids), reward=reward(one.token_ids), exact=False,
                )
                for one in found
            ]  # fmt: skip
            groups.append(Group(place=place, sample_id=str(number), prompt=tuple(prompts[number]), answers=answers))
        return groups, {"generate": generated - began, "score": perf_counter() - generated}

    return draw


class Timed(GRPOModule):
    """Keeps each step's split."""

    splits: list[Split]

    def step_metrics(self) -> dict[str, float]:
        found = super().step_metrics()
        self.splits.append({part: found[f"time/{part}"] for part in PARTS} | {"step": found["step_time"]})
        return found


def ours(prompts: list[list[int]], group: int, answer: int, steps: int) -> list[Split]:
    """Splits of so many steps of ttpa."""
    policy: Any = SimpleNamespace(
        model=fresh_model(SMALL_VOCAB, "cpu"), renderer=SimpleNamespace(pad_id=PAD, stop_ids=())
    )
    recipe = OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / "tiny.yaml").online)
    recipe.pop("_target_")
    loss = GRPO(**loss_fields(aggregation="dapo"))
    draw = draws(HFEngine(policy=policy, rows=256), prompts, group, answer)
    data = RolloutData(
        prompts=len(prompts), draw=draw, loss=loss, batch_size=len(prompts), total_steps=steps, seed=0,
        micro_tokens=8192, trees=True, max_new_tokens=answer,
    )  # fmt: skip
    settings = OnlineRecipe(**{**recipe, "lr": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0})
    module = Timed(policy, settings, (steps,), tree_token_logps, rollouts=data)
    module.splits = []
    pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    return module.splits


def theirs(prompts: list[list[int]], group: int, answer: int, steps: int) -> list[Split]:
    """Splits of so many steps of TRL."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = tokenizer_of(SMALL_VOCAB)
    texts = [" ".join(words.convert_ids_to_tokens(ids)) for ids in prompts]
    splits: list[Split] = []
    clock = {"generate": 0.0, "score": 0.0}

    def scored(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.update(generate=0.0, score=0.0, began=time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = time.perf_counter() - clock["began"]
            train = step - clock["generate"] - clock["score"]
            splits.append({"generate": clock["generate"], "score": clock["score"], "train": train, "step": step})

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_steps=1000, max_steps=steps, learning_rate=LEARNING_RATE,
            per_device_train_batch_size=len(prompts) * group, num_generations=group, max_completion_length=answer,
            epsilon=CLIP, generation_kwargs={"min_new_tokens": answer, "suppress_tokens": [EOS]}, seed=0,
        )  # fmt: skip
        model = fresh_model(SMALL_VOCAB, "cpu")
        data = Dataset.from_dict({"prompt": texts})
        trainer = GRPOTrainer(model, scored, args=args, train_dataset=data, processing_class=words, callbacks=[Clock()])
        for name, part in (("_generate", "generate"), ("_calculate_rewards", "score")):
            setattr(trainer, name, _clocked(getattr(trainer, name), clock, part))
        trainer.train()
    return splits


def _clocked(function: Any, clock: dict[str, float], part: str) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clock[part] += time.perf_counter() - began

    return run


def case(count: int, length: int, answer: int, group: int, turns: int, steps: int) -> dict[str, Any]:
    """Both contenders by turns; the first step of a turn is left out."""
    prompts = np.random.default_rng(0).integers(FIRST_WORD, SMALL_VOCAB, (count, length)).tolist()
    found: dict[str, list[Split]] = {"ttpa": [], "TRL": []}
    contenders = {"ttpa": ours, "TRL": theirs}
    for turn in range(turns):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            found[name] += contenders[name](prompts, group, answer, steps + 1)[1:]
    return {"name": f"{count} prompts of {length}, {group} answers of {answer}", "splits": found}


def page(cases: list[dict[str, Any]], about: str) -> str:
    lines = ["# A GRPO step with its generation", "", about, ""]
    lines += [
        "| case | | step s (quartiles) | generate s | score s | train s | TRL/ttpa |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in cases:
        middle = {name: float(np.median([s["step"] for s in splits])) for name, splits in one["splits"].items()}
        for name, splits in one["splits"].items():
            low, mid, high = np.percentile([s["step"] for s in splits], [25, 50, 75])
            parts = [f"{np.median([s[part] for s in splits]):.3f}" for part in PARTS]
            ratio = f"{middle[name] / middle['ttpa']:.2f}"
            cells = (one["name"], name, f"{mid:.2f} ({low:.2f}-{high:.2f})", *parts, ratio)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, writes nothing without --out")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="counted steps a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    sizes = [(2, 32, 8, 4)] if args.quick else [(2, 256, 64, 8), (2, 512, 64, 8)]
    cases = [case(*size, 1 if args.quick else args.turns, 1 if args.quick else args.steps) for size in sizes]
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {args.threads} threads, torch {torch.__version__}, "
        f"float32, 4-layer 256-wide Qwen2, vocabulary {SMALL_VOCAB}, medians of {args.turns * args.steps} steps."
    )
    print(page(cases, about))
    out = args.out or (None if args.quick else HERE)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "ONLINE.md").write_text(page(cases, about), encoding="utf-8")
        (out / "online.json").write_text(json.dumps({"about": about, "cases": cases}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
