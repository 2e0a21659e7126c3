"""Speed and memory of a training step: ttpa's token tree and padded path against TRL's trainers.

python experiments/speed/run.py                      the whole grid, into RESULTS.md and results.json beside this file
python experiments/speed/run.py --only pairs,grpo    some groups; results of the others are kept
python experiments/speed/run.py --quick              tiny sizes, to see that it runs; writes nothing without --out

Workloads are in cases.py, the contenders in ours.py and trl_side.py, the measuring in measure.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not start CUDA before the fork

import torch  # noqa: E402
from cases import Case, all_cases  # noqa: E402
from measure import TOLERANCE, apart, contenders_of, peak, timed  # noqa: E402
from report import TITLES, fastest, page  # noqa: E402

SFT_STEPS = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, 2 repeats, writes nothing without --out")
    parser.add_argument("--only", default="", help=f"groups, by commas: {', '.join(TITLES)}")
    parser.add_argument("--cases", default="", help="only cases whose name begins so, by commas; other rows are kept")
    parser.add_argument("--repeats", type=int, help="timed rounds a case (5; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--budget", type=float, default=4.0, help="seconds after which a contender is timed thrice only"
    )
    parser.add_argument("--out", type=Path, help="folder of RESULTS.md and results.json (that of this script)")
    found = parser.parse_args()
    found.groups = [name for name in found.only.split(",") if name] or list(TITLES)
    unknown = sorted(set(found.groups) - set(TITLES))
    if unknown:
        parser.error(f"--only {','.join(unknown)}: unknown group; use {', '.join(TITLES)}")
    if found.threads < 1 or (found.repeats is not None and found.repeats < 1):
        parser.error("--threads and --repeats must be at least 1")
    found.repeats = found.repeats or (2 if found.quick else 5)
    if found.out is None and not found.quick:
        found.out = HERE
    return found


def in_process(context: Any, task: Any, *task_arguments: Any) -> Any:
    """Runs a task in a process of its own.

    Raises:
        SystemExit: the task failed, with its reason.
    """
    queue = context.Queue()
    process = context.Process(target=apart, args=(task, queue, *task_arguments))
    process.start()
    while True:
        try:
            result, problem = queue.get(timeout=1)
            break
        except Exception:
            if not process.is_alive():
                raise SystemExit(f"{task.__name__} ended with exit code {process.exitcode}") from None
    process.join()
    if problem:
        raise SystemExit(problem)
    return result


def hardware(device: str) -> str:
    """Name of the processor and its count, or of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} x {os.cpu_count()}"


def measured(case: Case, options: argparse.Namespace, context: Any, device: str) -> dict[str, Any]:
    if case.memory:
        names = contenders_of(case, device)
        peaks = {name: in_process(context, peak, case, name, options.threads, device) for name in names}
        # DPOTrainer computes SimPO with gamma 0: another number, of the same cost.
        losses = [found["loss"] for name, found in peaks.items() if name != "DPOTrainer"]
        if not max(losses) - min(losses) <= TOLERANCE:
            raise SystemExit(f"{case.name}: the losses of the contenders differ: {losses}")
        return {"name": case.name, "section": case.section, "peaks": peaks}
    steps = 1 if options.quick else SFT_STEPS
    return in_process(context, timed, case, steps, options.repeats, options.budget, options.threads, device)


def line_of(row: dict[str, Any]) -> str:
    if "peaks" in row:
        peaks = ", ".join(f"{name} {p['backward']:.0f}/{p['step']:.0f}" for name, p in row["peaks"].items())
        return f"MB to backward/step: {peaks}"
    medians = {name: values[1] for name, values in row["quartiles_ms"].items()}
    times = ", ".join(f"{name} {ms:.0f} ({ms / medians['tree']:.2f})" for name, ms in medians.items())
    return f"ms (over tree): {times}; limit {row['limit']:.2f}; TRL fast is {fastest(row) or '-'}"


def main() -> None:
    options = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn" if device == "cuda" else "fork")
    results: dict[str, Any] = {"sections": {}}
    if options.out and (options.only or options.cases) and (options.out / "results.json").exists():
        results = json.loads((options.out / "results.json").read_text(encoding="utf-8"))
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "threads": options.threads,
        "repeats": options.repeats,
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")),
        "command": " ".join(["python experiments/speed/run.py", *sys.argv[1:]]),
    }
    about["hardware"] = in_process(context, hardware, device)
    if float(about["load"]) > 0.5:
        print(f"the machine is busy (load {about['load']}): times will not be worth much", file=sys.stderr)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # of the children, which leave their caches behind
        for section in options.groups:
            kept = {row["name"]: row for row in results["sections"].get(section, {}).get("rows", [])}
            rows = []
            for case in (case for case in all_cases(options.quick) if case.section == section):
                if not case.name.startswith(tuple(options.cases.split(","))):
                    rows += [kept[case.name]] if case.name in kept else []
                    continue
                rows.append(measured(case, options, context, device))
                print(f"{time.perf_counter() - start:5.0f} s  {case.name}: {line_of(rows[-1])}", flush=True)
            results["sections"][section] = {"about": about, "rows": rows}
            if options.out:  # after each group: the whole grid takes long
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                (options.out / "RESULTS.md").write_text(page(results), encoding="utf-8")
                print(f"written: {options.out / 'RESULTS.md'}")
        tempfile.tempdir = None
    if not options.out:
        print(page(results))


if __name__ == "__main__":
    main()
