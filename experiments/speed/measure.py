"""One case in one process: contenders built, losses compared, steps timed by turns; or one peak of memory."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from cases import PAD, Case, Work, work_of
from ours import Ours, fresh_model, old_logps, padded_tokens, quartiles, reference_sums, step_loss, tree_tokens
from trl_side import DEFAULT, Trl, variants

from ttpa.policy.logprobs import token_logps

TOLERANCE = 1e-4
MIN_REPEATS = 3
MEGA = 1 << 20


def contenders_of(case: Case, device: str) -> list[str]:
    return ["tree", "padded", *variants(case, device)]


def build(name: str, case: Case, work: Work, device: str) -> Ours | Trl:
    """A contender with a model of its own, all of the same weights."""
    known = reference_sums(work, device) if work.kind == "dpo" else None
    if work.kind == "grpo" and case.kind == "grpo":
        known = old_logps(work, device)
    return Ours(name, case, work, known, device) if name in ("tree", "padded") else Trl(name, work, known, device)


def loss_difference(contender: Ours | Trl, expected: float, case: Case, work: Work) -> float:
    """How far a contender's loss of its first step is from `expected`; the step is its warm-up.

    Raises:
        SystemExit: the contender's batches do not hold our rows, or the losses differ: nothing would be compared.
    """
    batches = [contender.rows(step) for step in range(contender.steps)]
    if [list(map(_ids, rows)) for rows in batches] != [list(map(_ids, rows)) for rows in work.steps]:
        raise SystemExit(f"{case.name}: the batches of {contender.name} do not hold the case's rows")
    difference = abs(contender.backward(0) - expected)
    contender.update()
    if not difference <= TOLERANCE:
        raise SystemExit(f"{case.name}: the loss of {contender.name} differs from ours by {difference:.2e}")
    return difference


def _ids(row: Any) -> tuple[list[int], list[int]]:
    return list(row.prompt), list(row.answer)


@torch.no_grad()
def _without_margin(case: Case, work: Work, device: str) -> float:
    """SimPO's loss with gamma 0, which is what one contender computes."""
    plain = replace(work, ratio=0.0)
    rows = list(range(len(work.steps[0])))
    logps = token_logps(fresh_model(case.vocab, device), work.steps[0], pad_id=PAD)
    return float(step_loss(plain, 0, None, rows, logps, device))


def timed(case: Case, steps: int, repeats: int, budget_s: float, threads: int, device: str) -> dict[str, Any]:
    """Times a case's contenders by turns, the first of a round changing from round to round.

    Args:
        case: The case.
        steps: Optimiser steps a measurement, for sft.
        repeats: Rounds.
        budget_s: A contender that has run for that long, three times or more, takes part in no further round.
        threads: Of torch.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    work = work_of(case, steps)
    contenders = [build(name, case, work, device) for name in contenders_of(case, device)]
    expected = {"padded": next(c for c in contenders if c.name == "padded").backward(0)}
    if any(c.name == "DPOTrainer" for c in contenders):
        expected["DPOTrainer"] = _without_margin(case, work, device)
    differences = {c.name: loss_difference(c, expected.get(c.name, expected["padded"]), case, work) for c in contenders}
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for number in range(repeats):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            found = times[contender.name]
            if len(found) < MIN_REPEATS or sum(found) < budget_s * 1000:
                found.append(_seconds(contender, device) * 1000)
    every = [row for rows in work.steps for row in rows]
    return {
        "name": case.name,
        "section": case.section,
        "steps": len(work.steps),
        "rows": len(every),
        "device": device,
        "tokens": {c.name: c.tokens for c in contenders},
        # One rectangle a step, whatever micro-batches a contender takes.
        "limit": sum(map(padded_tokens, work.steps)) / sum(map(tree_tokens, work.steps)),
        "quartiles_ms": {name: quartiles(values) for name, values in times.items()},
        "times_ms": times,
        "loss_difference": differences,
        "default": DEFAULT,
    }


def _seconds(contender: Ours | Trl, device: str) -> float:
    gc.collect()
    _wait(device)
    start = time.perf_counter()
    for step in range(contender.steps):
        contender.backward(step)
        contender.update()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(case: Case, name: str, threads: int, device: str) -> dict[str, Any]:
    """Peak memory of the first step of a contender in this process, in MB over what was held before it.

    Returns:
        `backward` up to the gradients, `step` with the optimiser, `before` what the process held, `total` its peak.
    """
    torch.set_num_threads(threads)
    contender = build(name, case, work_of(case, 1), device)
    gc.collect()
    before = _held(device)
    _reset(device)
    loss = contender.backward(0)
    after_backward = _peak(device)
    contender.update()
    after_step = _peak(device)
    return {
        "backward": after_backward - before,
        "step": after_step - before,
        "before": before,
        "total": after_step,
        "tokens": contender.tokens,
        "loss": loss,
    }


def _reset(device: str) -> None:
    """Starts the peak anew. On Linux by `clear_refs`; elsewhere the peak of building the contender counts as well."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def _held(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() / MEGA
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what building left behind would hide the step's use
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / MEGA
    except OSError:
        return _peak(device)


def _peak(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MEGA
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGA


def apart(task: Callable[..., Any], queue: Any, *arguments: Any) -> None:
    """What a child process runs: the result, or the reason why there is none, goes into the queue."""
    try:
        queue.put((task(*arguments), None))
    except SystemExit as error:
        queue.put((None, str(error)))
    except Exception as error:
        queue.put((None, f"{type(error).__name__}: {error}"))
        raise
