"""Results as a Markdown page: a table a section, medians with quartiles, ratios over the tree, how it was made."""

from __future__ import annotations

from typing import Any

TITLES = {
    "sft": "SFT: steps of 8 rows on the real length distribution",
    "pairs": "DPO and SimPO, prompt/answer tokens",
    "grpo": "GRPO's training step, 2 prompts (1 where they would be over 18,000 padded tokens)",
    "dialogues": "Whole dialogues: every call turn a target, n candidates a turn",
    "vocabulary": "A vocabulary of 50,000",
    "memory": "Peak memory",
}
OWN = ("tree", "padded")

NOTES = """
How to read it:

* One step is forward, backward and AdamW (lr 1e-5, no clipping); the model is a 4-layer, 256-wide Qwen2 in float32 with
  tied embeddings and random weights. Contenders take turns; a case runs in a process of its own.
* tree: `ttpa.policy.forward`. padded: `ttpa.policy.logprobs`, logits at answers only, on real samples in
  micro-batches of similar length. TRL: `compute_loss` of its trainer on the batch of its own collator.
* limit: tokens of one padded rectangle a step over the tokens of the tree. "padded" computes fewer than the rectangle
  where it has micro-batches, so its ratio may stay below the limit for that reason too.
* TRL at its defaults but for these, each in its favour: gradient checkpointing off, reference log-probs precomputed
  (DPO), no truncation; float32 on both sides.
* TRL fast is the fastest of: `padding-free` for SFT; `scored only` (for SFT with padding-free), the fused LM head on
  scored positions alone, which is what it does on CUDA, whereas on the CPU it scores all positions and offers no
  option, so that one is a patch; `DPOTrainer` for SimPO: its `sigmoid_norm` with reference 0, which is SimPO with gamma
  0, through the fused LM head (patched as well), because CPOTrainer keeps full logits and has no faster setting.
* TRL also computes metrics that the tree does not (entropy, accuracy, mean logits); it has no option to leave them out.
* loss: the largest difference of a contender's first loss to that of the padded path; above 1e-4 there is no row.
* Memory: the first step of a fresh process, peak over what was held before; forward and backward, then with AdamW.
""".strip()


def page(results: dict[str, Any]) -> str:
    """The whole of RESULTS.md."""
    lines = ["# Speed: ttpa's token tree, its padded path, TRL", ""]
    for section, title in TITLES.items():
        part = results["sections"].get(section)
        if not part:
            continue
        about = part["about"]
        lines += [f"## {title}", "", *(memory_table if section == "memory" else time_table)(part["rows"]), ""]
        lines += [
            f"{about['date']}, {about['hardware']}, {about['device']}, {about['threads']} threads, "
            f"{about['repeats']} repeats (fewer for slow contenders, see n), load at the start {about['load']}, "
            f"{about['versions']}. `{about['command']}`",
            "",
        ]
    return "\n".join([*lines, NOTES, ""])


def time_table(rows: list[dict[str, Any]]) -> list[str]:
    """Medians and quartiles in ms."""
    head = ["case", "tokens tree", "tokens padded", "limit", "tree ms", "padded ms", "TRL ms", "TRL fast ms"]
    head += ["padded/tree", "TRL/tree", "TRL fast/tree", "n", "loss"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        quartiles, fast = row["quartiles_ms"], fastest(row)
        times = [_ms(quartiles.get(name)) for name in ("tree", "padded", row["default"], fast)]
        if fast:
            times[-1] += f" {fast}"
        ratios = [_ratio(quartiles, name) for name in ("padded", row["default"], fast)]
        tokens = [f"{row['tokens'][name]:,}" for name in OWN]
        loss = f"{max(row['loss_difference'].values()):.0e}"
        counts = sorted({len(values) for values in row["times_ms"].values()})
        n = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        cells = [row["name"], *tokens, f"{row['limit']:.2f}", *times, *ratios, n, loss]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def fastest(row: dict[str, Any]) -> str | None:
    """TRL's fastest contender beside the default."""
    medians = {k: v[1] for k, v in row["quartiles_ms"].items() if k not in (*OWN, row["default"])}
    return min(medians, key=lambda name: medians[name]) if medians else None


def _ms(quartiles: list[float] | None) -> str:
    return "-" if quartiles is None else f"{quartiles[1]:.0f} ({quartiles[0]:.0f}-{quartiles[2]:.0f})"


def _ratio(quartiles: dict[str, list[float]], name: str | None) -> str:
    return f"{quartiles[name][1] / quartiles['tree'][1]:.2f}" if name in quartiles else "-"


def memory_table(rows: list[dict[str, Any]]) -> list[str]:
    """Peaks in MB."""
    head = [
        "case",
        "contender",
        "forward, backward MB",
        "of the tree's",
        "whole step MB",
        "of the tree's",
        "held before MB",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for row in rows:
        base = row["peaks"]["tree"]
        for name, peak in row["peaks"].items():
            cells = [f"{peak['backward']:.0f}", f"{peak['backward'] / max(base['backward'], 1):.2f}"]
            cells += [f"{peak['step']:.0f}", f"{peak['step'] / max(base['step'], 1):.2f}", f"{peak['before']:.0f}"]
            lines.append("| " + " | ".join([row["name"], name, *cells]) + " |")
    return lines
