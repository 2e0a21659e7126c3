"""Speed of exploration: the `hf` engine against transformers' generate, and searches in waves against one by one.

python experiments/speed/explore.py                 both tables, into EXPLORE.md and explore.json beside this file
python experiments/speed/explore.py --quick         tiny sizes, to see that it runs; writes nothing without --out

Contenders take turns; the first of a round changes from round to round. Answers never end by themselves (the weights
are random and no stop token is set), so all contenders draw the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from cases import SMALL_VOCAB  # noqa: E402
from ours import fresh_model  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from ttpa.explore.mcts import MCTS  # noqa: E402
from ttpa.explore.sampler import Task  # noqa: E402
from ttpa.policy.decode import HFEngine  # noqa: E402
from ttpa.policy.engine import Sampling  # noqa: E402

N, ANSWER, EMBEDDED_VOCAB = 5, 64, 768
ROWS = 256
"""Answers side by side in our engine: its default is 128."""


class Timed:
    """Contenders by name, each timed once a round."""

    def __init__(self, contenders: dict[str, Callable[[], dict[str, int]]]) -> None:
        self.contenders = contenders
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        self.counts: dict[str, dict[str, int]] = {}

    def run(self, rounds: int) -> None:
        names = list(self.contenders)
        self.contenders[names[0]]()  # warm-up, of the model and of what both use
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                began = time.perf_counter()
                self.counts[name] = self.contenders[name]()
                self.seconds[name].append(time.perf_counter() - began)

    def row(self, name: str, units: int) -> dict[str, Any]:
        low, middle, high = np.percentile(self.seconds[name], [25, 50, 75])
        return {
            "seconds": self.seconds[name],
            "per_s": units / middle,
            "quartiles": [low, middle, high],
            **self.counts[name],
        }


class Forgetful(HFEngine):
    """The engine as the released search uses its server: a request knows nothing of the one before."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.reset()
        return super().generate(*args, **kwargs)


class RandomTask(Task):
    """Reads answers without a tokenizer: a value from the tokens, a cut every six tokens."""

    def read(self, ids: Any) -> Any:
        score = SimpleNamespace(value=(sum(ids) % 97) / 97)
        return SimpleNamespace(score=score, cuts=range(6, len(ids), 6), pieces=[""] * len(ids))


def policy_of(model: Any) -> Any:
    """What the engine needs of a policy, for a model without a tokenizer."""
    return SimpleNamespace(model=model, renderer=SimpleNamespace(pad_id=0, stop_ids=()))


def embedded_model() -> Qwen2ForCausalLM:
    """The shape of the project's embedded model (conf/model/tiny.yaml), random weights."""
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=EMBEDDED_VOCAB, hidden_size=128, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=384, max_position_embeddings=8192, tie_word_embeddings=True, initializer_range=0.06,
        pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def prompts_of(count: int, length: int, seed: int = 0, vocab: int = SMALL_VOCAB) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return draw.integers(3, vocab, (count, length)).tolist()


def plain_sampling(model: Any, count: int, length: int, answer: int, rounds: int) -> dict[str, Any]:
    """n answers a prompt: our engine, and generate with num_return_sequences."""
    prompts = prompts_of(count, length)
    seeds = [str(number) for number in range(count)]

    def ours() -> dict[str, int]:
        engine = HFEngine(policy=policy_of(model), rows=ROWS)
        engine.generate(prompts, N, Sampling(max_new_tokens=answer), seeds)
        return dict(engine.counts)

    def theirs() -> dict[str, int]:
        with torch.inference_mode():
            out = model.eval().generate(
                input_ids=torch.tensor(prompts), attention_mask=torch.ones(count, length, dtype=torch.long),
                do_sample=True, top_k=0, num_return_sequences=N, max_new_tokens=answer, min_new_tokens=answer,
                pad_token_id=0,
            )  # fmt: skip
        return {"prefilled": out.shape[0] * length, "generated": out.shape[0] * (out.shape[1] - length)}

    timed = Timed({"engine": ours, "generate": theirs})
    timed.run(rounds)
    rows = {name: timed.row(name, count) for name in timed.contenders}
    return {"name": f"{count} prompts of {length}, {N} answers of {answer}", "rows": rows}


def searches(model: Any, count: int, length: int, answer: int, rounds: int) -> dict[str, Any]:
    """The same searches on the same engine: all trees in one wave, and a tree after the other as the release does.

    In bfloat16 rounding depends on what is computed side by side, so the trees, and with them the tokens, differ a bit.
    """
    values = yaml.safe_load((HERE.parents[1] / "conf/sampler/mcts.yaml").read_text(encoding="utf-8"))
    del values["_target_"]
    sampler = MCTS(**{**values, "max_new_tokens": answer, "settle": None})
    tasks = [
        RandomTask(name=str(number), sample=None, prompt=prompt, renderer=None, score=None)
        for number, prompt in enumerate(prompts_of(count, length, seed=1, vocab=model.config.vocab_size))
    ]

    def waves() -> dict[str, int]:
        engine = HFEngine(policy=policy_of(model), rows=ROWS)
        sampler.explore(engine, tasks, "speed")
        return dict(engine.counts)

    def one_by_one() -> dict[str, int]:
        engine = Forgetful(policy=policy_of(model), rows=ROWS)
        for task in tasks:
            sampler.explore(engine, [task], "speed")
        return dict(engine.counts)

    timed = Timed({"waves": waves, "one by one": one_by_one})
    timed.run(rounds)
    rows = {name: timed.row(name, count) for name in timed.contenders}
    size = f"{model.config.num_hidden_layers}-layer {model.config.hidden_size}-wide, {str(model.dtype)[6:]}"
    return {"name": f"{size}, {count} trees, prompts of {length}, answers of {answer}", "rows": rows}


def page(found: list[dict[str, Any]], about: str) -> str:
    lines = ["# Exploration speed", "", about, ""]
    for title, unit, key, cases in (
        (
            "The hf engine against transformers.generate",
            "prompts/s",
            "engine",
            [f for f in found if "engine" in f["rows"]],
        ),
        (
            "Tree search in waves against one tree at a time",
            "trees/s",
            "waves",
            [f for f in found if "waves" in f["rows"]],
        ),
    ):
        lines += [
            f"## {title}",
            "",
            f"| case | | {unit} | ratio | prefilled tokens | generated tokens |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for case in cases:
            best = case["rows"][key]["per_s"]
            for name, row in case["rows"].items():
                ratio = f"{best / row['per_s']:.2f}"
                cells = (
                    case["name"],
                    name,
                    f"{row['per_s']:.2f}",
                    ratio,
                    f"{row['prefilled']:,}",
                    f"{row['generated']:,}",
                )
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, writes nothing without --out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = fresh_model(SMALL_VOCAB, "cpu").eval()
    model.generation_config.eos_token_id = None
    narrow = deepcopy(model).to(torch.bfloat16)  # what conf/model loads real models in
    if args.quick:
        found = [plain_sampling(model, 2, 32, 8, 1), searches(model, 3, 32, 16, 1), searches(narrow, 3, 32, 16, 1)]
    else:
        found = [plain_sampling(model, 16, length, ANSWER, args.rounds) for length in (256, 512)]
        few = max(2, args.rounds // 2)
        for case in (narrow, model, embedded_model()):
            trees = 128 if case.config.hidden_size < model.config.hidden_size else 64
            found += [searches(case, trees, length, ANSWER, few) for length in (256, 512)]
    rounds = 1 if args.quick else args.rounds
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {args.threads} threads, torch {torch.__version__}, "
        f"float32, 4-layer 256-wide Qwen2 if not said otherwise, {rounds} rounds, medians. "
        "Ratio: how much faster the first is."
    )
    print(page(found, about))
    out = args.out or (None if args.quick else HERE)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "EXPLORE.md").write_text(page(found, about) + "\n", encoding="utf-8")
        (out / "explore.json").write_text(
            json.dumps({"about": about, "cases": found}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
