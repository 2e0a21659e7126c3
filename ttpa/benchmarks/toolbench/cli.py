"""`ttpa-score benchmark=toolbench outputs=FOLDER`: words of the command line to a table, and a row a query.

Every verdict of the judge is on disk as soon as it is there (`cache`), so an error or a kill loses nothing that was
asked, and the same command goes on. `out` is written at the end, at once: it is whole or as it was before.

What this module does not do: read the command line or end the process (`ttpa.benchmarks.score`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttpa.benchmarks.scored import Shares, compared, read_shares
from ttpa.benchmarks.toolbench import Endpoint, Judge, ToolBench, score_folder
from ttpa.benchmarks.toolbench.answers import SUBSETS
from ttpa.benchmarks.toolbench.scoring import COMPARING, MEASURES
from ttpa.calls.six_errors import SIX
from ttpa.errors import ConfigError
from ttpa.io import write_jsonl

HELP = """\
  ttpa-score benchmark=toolbench outputs=FOLDER base_url=URL model=NAME [KEY=VALUE ...]

  outputs    folder with SUBSET.json (G1_instruction.json, ..., or I1-Inst.json), as ToolEval's converter writes them
  base_url   OpenAI-style endpoint of the judge, up to and without /chat/completions (http://localhost:8000/v1)
  model      its model; api_key_env names the environment variable with its key, where it needs one
  measures   of pass_rate, sopr, win_rate, sowr, separated by commas (pass_rate,sopr)
  votes      how often each question is asked (3); temperature of the judge (0.2); workers: questions at a time (4)
  solvable   ids of the queries that count (StableToolBench's solvable_queries/test_query_ids)
  reference  folder with the answers that win_rate and sowr compare with
  subsets    some of the six, separated by commas (all that are there); limit: the first so many queries of each
  cache      file of verdicts (toolbench_verdicts.jsonl)
  out        one row a query, JSON lines
  against    rows written by out= for another policy: the paired difference of passes
"""

_ENDPOINT = ("base_url", "model", "api_key_env", "temperature")
_REST = (
    "benchmark",
    "outputs",
    "measures",
    "votes",
    "solvable",
    "reference",
    "subsets",
    "limit",
    "workers",
    "cache",
    "out",
    "against",
)
KEYS = (*_REST, *_ENDPOINT)
"""Keys of the command line."""


def score(options: dict[str, str]) -> None:
    """Scores the answers of a folder, prints a table and writes the rows.

    Args:
        options: see `HELP`; `outputs`, `base_url` and `model` are needed.

    Raises:
        ConfigError: an unknown key, a value that cannot be used, no such folder, a file that cannot be written.
        DataError: a file of another form, or the judge cannot be asked; verdicts so far are kept.
    """
    wanted = _read(options)
    out = Path(options["out"]).expanduser() if options.get("out") else None
    if out is not None and (out.is_dir() or not os.access(out.parent, os.W_OK)):
        raise ConfigError.at("out", out, "cannot be written", "Give a file in a folder that exists")
    cache = Path(options.get("cache") or "toolbench_verdicts.jsonl").expanduser()
    if out is not None and out.resolve() == cache.resolve():
        raise ConfigError.at("out", out, "is the file of verdicts", "Write to another file")
    if out is not None and options.get("against") and out.resolve() == Path(options["against"]).resolve():
        raise ConfigError.at("out", out, "is also read", "Write to another file")
    theirs = read_shares(options["against"]) if options.get("against") else None
    judge = Judge(wanted.endpoint, cache)
    rows, summary = score_folder(wanted, judge)
    if out is not None:
        write_jsonl(out, rows)
    print(table(summary, wanted.measures))
    if theirs is not None:
        ours = Shares()
        for row in rows:
            ours.add(row["id"], row["exact"])
        print(compared(ours, theirs))
    print(f"{judge.requests:,} requests; verdicts are in {cache}")


def _read(options: Mapping[str, str]) -> ToolBench:
    """The options as values."""
    for key, value in options.items():
        if key not in KEYS:
            raise ConfigError.at(key, value, "unknown key", f"Known are {', '.join(KEYS)}")
    for key in ("outputs", "base_url", "model"):
        if not options.get(key):
            raise ConfigError.at(key, "", "is missing", "Needed are outputs, base_url and model")
    lists = {key: tuple(options[key].split(",")) for key in ("measures", "subsets") if options.get(key)}
    numbers = {key: _number(key, options[key], int) for key in ("votes", "workers", "limit") if options.get(key)}
    about: dict[str, Any] = {key: options[key] for key in _ENDPOINT if options.get(key) and key != "temperature"}
    if options.get("temperature"):
        about["temperature"] = _number("temperature", options["temperature"], float)
    others = {key: options[key] for key in ("solvable", "reference") if options.get(key)}
    chosen: dict[str, Any] = {**lists, **numbers, **others}
    try:
        return ToolBench(path=options["outputs"], endpoint=Endpoint(**about), **chosen)
    except ConfigError as error:  # says which key of the option file it is
        raise ConfigError(re.sub(r"^eval\.(endpoint\.)?", "", str(error))) from None


def _number(key: str, value: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ConfigError.at(key, value, "is no number", f"Give {key}=1, for instance") from None


def table(summary: Mapping[str, Any], measures: Sequence[str] = MEASURES) -> str:
    """The numbers for a person: a line a subset, the mean over subsets, all queries, and what to know about them."""
    shown = [name for name in MEASURES if name in measures]
    lines = ["Share of queries, 95 % interval", f"{'':<10}{'queries':>8}" + "".join(f"{name:>26}" for name in shown)]
    found = {name: {one: summary[one]["subsets"][name] for one in shown} for name in SUBSETS}
    parts = {name: part for name, part in found.items() if any(part.values())}
    parts["all"] = {one: summary[one]["all"] for one in shown}
    for name, part in parts.items():
        count = max((entry["n"] for entry in part.values() if entry), default=0)
        lines.append(f"{name:<10}{count:>8,}" + "".join(f"{_share(part[one]):>26}" for one in shown))
    means = [summary[one]["average"] for one in shown]
    lines.append(f"{'mean of 6':<18}" + "".join(f"{'-' if mean is None else f'{mean:.4f}':>26}" for mean in means))
    lines += ["", "Share of answers with a call that shows the error"]
    lines += [f"{label.replace('_', ' '):<18}{_share(summary['errors'][label]):>26}" for label in SIX]
    missing = summary["missing"]
    notes: dict[str, Any] = {
        "votes": summary["votes"],
        "judge": summary["judge"],
        "answers without a Finish call": summary["no_finish_call"],
        "queries with as many passes as fails": summary["ties"],
        **{f"{name}, ties": part["ties"] for name, part in parts["all"].items() if part and name in COMPARING},
        "verdicts that could not be read": summary["malformed"],
        "queries without an answer, in no number": None if missing is None else sum(missing.values()),
        "answers without a reference": summary["unreferenced"],
    }
    return "\n".join([*lines, "", *(f"{key}: {value}" for key, value in notes.items() if value is not None)])


def _share(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["value"] is None:
        return "-"
    spread = "" if entry["low"] is None else f" [{entry['low']:.4f}, {entry['high']:.4f}]"
    return f"{entry['value']:.4f}{spread}"
