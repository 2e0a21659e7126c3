"""What a generated data set is: counts, gates, tokens and money, and the card that people read."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import ttpa
from ttpa.data.reversed.gates import NearDuplicates


@dataclass
class Made:
    """What was drafted: kept rows by split, rejected ones, and counts of gates, of replies asked for again, of tokens
    (model -> replies, prompt tokens, reply tokens).
    """

    kept: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"train": [], "validation": [], "test": []})
    rejected: list[dict[str, Any]] = field(default_factory=list)
    gates: Counter[str] = field(default_factory=Counter)
    reasked: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    drafts: int = 0

    def take(self, split: str, row: dict[str, Any], wanted: int, near: NearDuplicates) -> None:
        """Keeps a draft that is no near-copy of an earlier one, while more are wanted; those beyond are dropped."""
        self.drafts += 1
        self.reasked.update(row["reasked"])
        for model, *used in row["used"]:
            known = self.tokens.setdefault(model, [0, 0, 0])
            self.tokens[model] = [a + b for a, b in zip(known, (1, *used), strict=True)]
        if "gate" not in row and (copy := near.near(row["id"], row["question"])):
            row |= {"gate": "duplicate", "problem": f"nearly the question of {copy}"}
        if "gate" in row:
            self.gates[row["gate"]] += 1
            self.rejected.append(row)
        elif len(self.kept[split]) < wanted:
            self.kept[split].append(row)


def money(tokens: Mapping[str, Sequence[int]], prices: Mapping[str, Sequence[float]]) -> float | None:
    """Dollars for the tokens, None where a model has no price."""
    if not tokens or not tokens.keys() <= prices.keys():
        return None
    return round(sum((a * prices[m][0] + b * prices[m][1]) / 1e6 for m, (_, a, b) in tokens.items()), 4)


def totals(made: Made, prices: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Tools used, turns, and what was used of each model, over all dialogues."""
    rows = [row for kept in made.kept.values() for row in kept]
    used = Counter(call["name"] for row in rows for call in row["calls"])
    cost = money(made.tokens, prices)
    return {
        "tools_used": len(used),
        "calls": {"mean": round(mean(len(row["calls"]) for row in rows), 2) if rows else 0,
                  "counts": dict(sorted(Counter(len(row["calls"]) for row in rows).items()))},
        "written_results": sum(result["written"] for row in rows for result in row["results"]),
        "usage": {m: dict(zip(("replies", "prompt", "reply"), n, strict=True)) for m, n in made.tokens.items()},
        **({"dollars": cost} if cost is not None else {}),
    }  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [" | ".join(map(str, row)) for row in (head, ["---"] * len(head), *rows)]
    return [f"| {line} |".replace("\n", " ") for line in lines]


def card(told: Mapping[str, Any], metrics: Mapping[str, Any], made: Made) -> str:
    """The data set card, in Markdown."""
    used = Counter(call["name"] for kept in made.kept.values() for row in kept for call in row["calls"])
    kept = sum(metrics["dialogues"].values())
    generator = ", ".join(f"{key}: {value}" for key, value in told["generator"].items())
    tokens = [[model, *counts.values()] for model, counts in metrics["usage"].items()]
    steps = [[calls, count] for calls, count in metrics["calls"]["counts"].items()]
    parts = [
        "# Data set card",
        "",
        "Dialogues by reversed construction (TTPA, arXiv 2505.20016): a situation first, then calls that are run, then "
        "the answer, and last the question. Each sample is one call, with the question, earlier calls and results "
        "before it.",
        "",
        f"Generator: {generator}. Made by ttpa {ttpa.__version__} on Python {platform.python_version()}.",
        "",
        "## Counts",
        "",
        *_table(
            ["split", "dialogues", "asked for", "samples", "tools"],
            [
                [split, count, metrics["wanted"][split], metrics["samples"]["warmup" if split == "train" else split],
                 len(told["by_split"][split])]
                for split, count in metrics["dialogues"].items()
            ],
        ),
        "",
        "No tool is in two splits." + (" Samples tagged `written_results` hold results that the generator wrote, since "
        f"the tool cannot run: {metrics['written_results']} results." if metrics["written_results"] else ""),
        "",
        "## Tools",
        "",
        *_table(["source", "tools", "content"], [[name, count, digest[:16]] for name, digest, count in told["tools"]]),
        "",
        f"{metrics['tools_used']} tools are called. Most often: "
        + ", ".join(f"{name} ({count})" for name, count in used.most_common(20)) + ".",
        "",
        "## Calls of a dialogue",
        "",
        *_table(["calls", "dialogues"], steps),
        "",
        "## Gates",
        "",
        f"{metrics['drafts']} drafts, {kept} kept. Rejected ones are in `rejected.jsonl`, each with its reason.",
        "",
        *_table(
            ["gate", "rejected drafts", "replies asked for again"],
            [[gate, metrics["rejected"].get(gate, 0), metrics["reasked"].get(gate, 0)]
             for gate in dict.fromkeys([*metrics["rejected"], *metrics["reasked"]])],
        ),
        "",
        "## Tokens",
        "",
        *(_table(["model", "replies", "prompt tokens", "reply tokens"], tokens) if tokens else ["No model was asked."]),
        *(["", f"At the prices given: {metrics['dollars']} dollars."] if "dollars" in metrics else []),
    ]  # fmt: skip
    return "\n".join(parts)
