"""Runs the demo under several kernel settings of this machine, crossed with seeds, each in a process and a store of its
own, and says how much of the spread is rounding and how much is the seed.

python experiments/rounding/run.py [--seeds 0,1,2] [--only NAME,NAME] [--jobs 1] [--work DIR]   # runs what is missing
python experiments/rounding/run.py --table    # from records/: the table of README.md and ttpa/results/demo_range.json
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ttpa.io import write_jsonl, write_text
from ttpa.results.cells import compose_run, open_hydra
from ttpa.results.records import key_of
from ttpa.results.view import run_key
from ttpa.run import config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS, README, RANGE = HERE / "records", HERE / "README.md", ROOT / "ttpa/results/demo_range.json"
DEMO = ("experiment=demo",)
LEVEL = 0.95
MARKS = ("<!-- table -->\n", "<!-- end of table -->\n")


class Setting(NamedTuple):
    """Environment and overrides of a run, and the flags that the CPU needs for it."""

    env: dict[str, str] = {}
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
REFERENCE = "float64"
SETTINGS = {
    "threads-1": Setting(),
    "aten-avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2"}, needs=("avx2",)),
    "mkl-compatible": Setting({"MKL_CBWR": "COMPATIBLE"}),
    "onednn-avx2": Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}, needs=("avx2",)),
    "aten-default": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "mkl-avx2": Setting({"MKL_CBWR": "AVX2"}, needs=("avx2",)),
    REFERENCE: Setting(words=("model.dtype=float64",)),
    "threads-2": Setting(words=("trainer.threads=2",)),
    "onednn-avx512": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, needs=AVX512),
    "onednn-avx512-bf16": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, needs=(*AVX512, "avx512_bf16")),
    "onednn-amx": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, needs=(*AVX512, "amx_bf16")),
    "aten-avx512": Setting({"ATEN_CPU_CAPABILITY": "avx512"}, needs=AVX512),
    "mkl-avx512": Setting({"MKL_CBWR": "AVX512"}, needs=AVX512),
}


def cpu() -> dict[str, Any]:
    """Make, family, model and vector flags of this machine's CPU."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    found: dict[str, str] = {}
    for key, _, value in lines:
        found.setdefault(key.strip(), value.strip())
    flags = [flag for flag in found.get("flags", "").split() if flag.startswith(("avx", "amx", "fma", "sse4"))]
    names = {"make": "vendor_id", "family": "cpu family", "model": "model", "name": "model name"}
    return {**{name: found.get(key, "") for name, key in names.items()}, "flags": sorted(flags)}


def words_of(setting: Setting, seed: int) -> list[str]:
    """The overrides that decide the numbers of a run and how many threads it has."""
    threads = [] if any(word.startswith("trainer.threads") for word in setting.words) else ["trainer.threads=1"]
    return [*DEMO, f"seed={seed}", *threads, *setting.words]


def demo_key(setting: Setting, seed: int) -> str:
    """The key of a result row of today's demo; Hydra must be open."""
    return _key(*words_of(setting, seed))


@functools.cache
def _key(*words: str) -> str:
    cfg = compose_run(words)
    return key_of(config.identity(cfg, *config.IDENTITY), cfg.seed, cfg.rounds).whole


def rows_of(file: Path, setting: Setting) -> list[dict[str, Any]]:
    """The rows of a record, the demo's own objective first; none where it is of another demo than today's."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    keys = [key_of(row["config"], row["seed"], row["rounds"]).whole for row in rows]
    return rows if keys and keys[0] == demo_key(setting, rows[0]["seed"]) else []


def run_one(name: str, seed: int, work: Path, machine: dict[str, Any], file: Path) -> str:
    """Runs the demo once; the log stays in `work`."""
    setting, folder = SETTINGS[name], (work / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    paths = [f"paths.{key}={folder / key}" for key in ("store", "runs")] + [f"paths.results={folder}/results-{seed}"]
    command = [sys.executable, "-m", "ttpa.cli", *words_of(setting, seed), *paths, "logger=none"]
    with (folder / f"log-{seed}.txt").open("w") as log:
        status = subprocess.run(command, env=env | setting.env, cwd=folder, stdout=log, stderr=log).returncode
    if status:
        return f"status {status}, see {log.name}"
    import torch

    kernel = {"setting": name, "env": setting.env, "overrides": setting.words, "cpu": machine}
    kernel |= {"torch": torch.__version__}
    rows = [json.loads(path.read_text()) for path in (folder / f"results-{seed}").glob("*.jsonl")]
    rows.sort(key=lambda row: (row["choices"]["objective"] != "simpo", row["choices"]["objective"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, [{**row, "kernel": kernel} for row in rows])
    return "done"


def run(seeds: Sequence[int], names: Sequence[str], jobs: int, work: Path, records: Path = RECORDS) -> int:
    """Runs what has no record of today's demo, seed by seed."""
    machine, able = cpu(), list[str]()
    for name in names:
        if missing := sorted(set(SETTINGS[name].needs) - set(machine["flags"])):
            print(f"{name}: skipped, this machine lacks {', '.join(missing)}", flush=True)
        else:
            able.append(name)
    folder, failed = records / "-".join(machine[key] for key in ("make", "family", "model")), 0
    todo = [(name, seed, folder / f"{name}-seed{seed}.jsonl") for seed in seeds for name in able]
    with open_hydra():
        todo = [one for one in todo if not rows_of(one[2], SETTINGS[one[0]])]
    print(f"{len(todo)} runs to make", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        sent = [(one, pool.submit(run_one, *one[:2], work, machine, one[2])) for one in todo]
        for (name, seed, _), job in sent:
            said = job.result()
            failed += said != "done"
            print(f"{name} seed={seed}: {said}", flush=True)
    return int(failed > 0)


# --- what the records say --------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Variance components of one policy, as standard deviations, each with a 95 % interval (None: not known), and the
    range in which the result of another machine and seed lies with probability 0.95.
    """

    mean: float
    rounding: tuple[float, float, float] | None
    seed: tuple[float, float, float] | None
    low: float
    high: float


def spread(values: Sequence[Sequence[float]]) -> Spread:
    """Random effects of settings (rows) and seeds (columns), crossed, one value a cell.

    Rounding is what settings do to one seed, their main effect and their interaction with the seed; with the usual mean
    squares its variance is MS(settings) / S + MS(rest) (S - 1) / S, with Satterthwaite's degrees of freedom. The
    interval of the seed's variance is that of Williams and Tukey (1962). The range is a prediction interval for a new
    setting with a new seed, also by Satterthwaite; with one seed it is for a new setting with that seed.
    """
    import numpy as np
    from scipy.stats import chi2, f, t

    table = np.asarray(values, dtype=float)
    settings, seeds = table.shape
    mean, tail = float(table.mean()), (1 - LEVEL) / 2

    def deviation(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
        """A variance that is a sum of mean squares with these degrees of freedom, and its own."""
        total = sum(part for part, _ in parts)
        return total, total**2 / sum(part**2 / freedom for part, freedom in parts) if total else 1.0

    def interval(variance: float, freedom: float) -> tuple[float, float, float]:
        ends = [freedom * variance / chi2.ppf(at, freedom) for at in (1 - tail, tail)]
        return tuple(float(np.sqrt(one)) for one in (variance, *ends))  # type: ignore[return-value]

    if settings < 2:
        return Spread(mean, None, None, mean, mean)
    if seeds < 2:
        variance, freedom = float(table.var(ddof=1)), settings - 1
        reach = float(t.ppf(1 - tail, freedom) * np.sqrt(variance * (1 + 1 / settings)))
        return Spread(mean, interval(variance, freedom), None, mean - reach, mean + reach)
    of_setting, of_seed = table.mean(1) - mean, table.mean(0) - mean
    rest = table - mean - of_setting[:, None] - of_seed[None]
    free_k, free_s = settings - 1, seeds - 1
    free_e = free_k * free_s
    ms_k, ms_s = seeds * (of_setting**2).sum() / free_k, settings * (of_seed**2).sum() / free_s
    ms_e = (rest**2).sum() / free_e
    rounding = interval(*deviation([(ms_k / seeds, free_k), (ms_e * (seeds - 1) / seeds, free_e)]))
    bounds = []
    for at in (1 - tail, tail):
        ratio = 1 - ms_e * f.ppf(at, free_s, free_e) / ms_s if ms_s else 0.0
        bounds.append(max(0.0, free_s * ms_s / (settings * chi2.ppf(at, free_s)) * ratio))
    seed = tuple(float(np.sqrt(one)) for one in (max(0.0, (ms_s - ms_e) / settings), *bounds))
    # A new cell differs from the mean by variances (1 + 1/S) seed, (1 + 1/K) setting and (1 + 1/(K S)) rest; a variance
    # component below 0 is 0, and its mean square is then another measure of the rest.
    parts = [(ms_s, free_s, seeds, settings), (ms_k, free_k, settings, seeds)]
    noise = [one for one in parts if one[0] < ms_e]
    free_e += sum(one[1] for one in noise)
    ms_e = (ms_e * free_k * free_s + sum(one[0] * one[1] for one in noise)) / free_e
    large = [one for one in parts if one not in noise]
    factor = 1 + 1 / (settings * seeds) - sum((1 + 1 / levels) / width for _, _, levels, width in large)
    found = [(ms * (1 + 1 / levels) / width, free) for ms, free, levels, width in large] + [(ms_e * factor, free_e)]
    variance, freedom = deviation(found)
    reach = float(t.ppf(1 - tail, freedom) * np.sqrt(variance))
    return Spread(mean, rounding, seed, mean - reach, mean + reach)  # type: ignore[arg-type]


Measured = dict[str, dict[int, dict[str, dict[str, Any]]]]
"""Setting (with its machine where there are several) -> seed -> policy -> metrics."""


def measured(records: Path) -> tuple[Measured, list[str], list[dict[str, Any]]]:
    """What the records of today's demo hold, files that are of another demo, and the CPUs."""
    found: Measured = {}
    stale, cpus = [], list[dict[str, Any]]()
    folders = sorted(path for path in records.glob("*") if path.is_dir())
    with open_hydra():
        for file in sorted(records.glob("*/*.jsonl")):
            name, _, seed = file.stem.rpartition("-seed")
            rows = rows_of(file, SETTINGS[name])
            if not rows:
                stale.append(str(file.relative_to(records)))
                continue
            policies = {"warm-up": rows[0]["baseline"]} | {row["choices"]["objective"]: row["metrics"] for row in rows}
            where = f"{name}, {file.parent.name}" if len(folders) > 1 else name
            found.setdefault(where, {})[int(seed)] = policies
            cpus += [rows[0]["kernel"]["cpu"]] if rows[0]["kernel"]["cpu"] not in cpus else []
    order = {name: at for at, name in enumerate(SETTINGS)}
    return dict(sorted(found.items(), key=lambda one: order[one[0].partition(",")[0]])), stale, cpus


def block(found: Measured) -> tuple[list[str], list[int]]:
    """The settings and seeds that are crossed completely: as many cells as can be. The reference is none of them."""
    known = {name: one for name, one in found.items() if not name.startswith(REFERENCE)}
    seeds = sorted(
        {seed for one in known.values() for seed in one}, key=lambda s: (-sum(s in o for o in known.values()), s)
    )
    choices = []
    for count in range(1, len(seeds) + 1):
        names = [name for name, one in known.items() if one.keys() >= {*seeds[:count]}]
        choices.append((len(names) * count, names, sorted(seeds[:count])))
    return max(choices, key=lambda one: one[0])[1:] if choices else ([], [])


def alike(found: Measured, names: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
    """Settings grouped by whether every number of every policy is the same: the same kernels under two names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(json.dumps([found[name][seed] for seed in seeds], sort_keys=True), []).append(name)
    return list(groups.values())


def shown(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"


def lines(found: Measured, stale: Sequence[str], cpus: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The lines of the table, each with the policy and the range that it holds or None."""
    names, seeds = block(found)
    groups = alike(found, names, seeds)
    policies = list(found[names[0]][seeds[0]])
    yield "| policy | mean | rounding | seed | share of rounding | range |", None
    yield "|---|---:|---:|---:|---:|---:|", None
    for policy in policies:
        values = [[found[group[0]][seed][policy]["accuracy"]["value"] for seed in seeds] for group in groups]
        one = spread(values)
        share = "-"
        if one.rounding and one.seed and (total := one.rounding[0] ** 2 + one.seed[0] ** 2):
            share = f"{one.rounding[0] ** 2 / total:.0%}"
        low, high = max(0.0, one.low), min(1.0, one.high)
        text = f"| {policy} | {100 * one.mean:.1f} | {shown(one.rounding)} | {shown(one.seed)} | {share} | "
        yield f"{text}{100 * low:.1f} to {100 * high:.1f} |", (policy, [round(x, 4) for x in (one.mean, low, high)])
    yield "", None
    yield "| kernel setting | " + " | ".join(policies) + " |", None
    yield "|---|" + "---:|" * len(policies), None
    for name, one in found.items():
        texts = [
            " ".join(f"{100 * one[seed][policy]['accuracy']['value']:.1f}" for seed in sorted(one))
            for policy in policies
        ]
        mark = " (reference)" if name.startswith(REFERENCE) else ""
        yield f"| {name}{mark}, seed {' '.join(map(str, sorted(one)))} | " + " | ".join(texts) + " |", None
    yield "", None
    yield f"- {len(names)} settings by {len(seeds)} seeds ({', '.join(map(str, seeds))}) are crossed.", None
    same = "; ".join(", ".join(group) for group in groups if len(group) > 1)
    yield f"- Settings with the same answers to the last number count once: {same or 'there are none'}.", None
    for one in cpus:
        yield f"- Machine: {one['make']} family {one['family']} model {one['model']} ({one['name']}).", None
        lacking = [name for name, setting in SETTINGS.items() if not set(one["flags"]).issuperset(setting.needs)]
        yield f"- Settings that it lacks: {', '.join(lacking) or 'none'}.", None
    if stale:
        yield f"- Left out, because the demo has changed since: {', '.join(stale)}.", None


def table(records: Path = RECORDS, readme: Path = README, file: Path = RANGE) -> int:
    """Writes the table into the README and the range into the package."""
    found, stale, cpus = measured(records)
    if len(block(found)[0]) < 2:
        print(f"{records}: fewer than two settings of today's demo. Run them first.", file=sys.stderr)
        return 1
    made = list(lines(found, stale, cpus))
    text = "\n".join(line for line, _ in made) + "\n"
    before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    write_text(readme, before + MARKS[0] + text + MARKS[1] + rest.partition(MARKS[1])[2])
    with open_hydra():
        cfg = compose_run(DEMO)
    ranges = {"run": run_key(cfg), "policies": dict(policy for _, policy in made if policy)}
    write_text(file, json.dumps(ranges, indent=1) + "\n")
    print(text, end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--table", action="store_true", help="no run: table and range from the records")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(SETTINGS), help="settings, by name")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("rounding"), help="folder of stores and logs")
    args = parser.parse_args()
    if args.table:
        return table()
    names, seeds = args.only.split(","), args.seeds.split(",")
    if odd := [name for name in names if name not in SETTINGS]:
        parser.error(f"--only {odd[0]}: no such setting. There are {', '.join(SETTINGS)}")
    if odd := [seed for seed in seeds if not seed.isdecimal()]:
        parser.error(f"--seeds {odd[0]}: no whole number")
    return run([int(seed) for seed in seeds], names, args.jobs, args.work)


if __name__ == "__main__":
    sys.exit(main())
