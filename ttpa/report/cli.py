"""The command line `ttpa-report`: one page of HTML for a run, a sweep or a table. Imports no torch.

A mistake is answered in one line on standard error with exit status 2. What is missing in the store is said on the
page and is no mistake: result rows outlive the stages they came from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttpa.errors import ConfigError, TtpaError

HELP = """\
ttpa-report: one self-contained HTML page, opened without a network.

  ttpa-report TARGET [out=FILE] [results=DIR] [store=DIR] [samples=20] [axes=A,B] [preset=NAME]

  TARGET   a result file; a run name (all its rows: a sweep; several names are joined by commas);
           or the folder of a table, experiments/NAME
  out      where the page is written; default: TARGET's name with .html, in the current folder
  results  folder of the result rows (default: results)
  store    folder of the stages (default: store); what is gone from it is left out, and said
  samples  pairs and groups of answers shown of each exploration, drawn at random with a fixed seed; 0 shows none
  axes     the two axes of the heat map: option groups or settings, such as sampler,objective or sampler.n,scorer;
           default: the two groups that differ most
  preset   of a table: which of the presets in its table.yaml (default: the first)
"""
KEYS = {"out": "", "results": "results", "store": "store", "samples": "20", "axes": "", "preset": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    target: str
    out: Path
    results: Path
    store: Path
    samples: int
    axes: tuple[str, ...]
    preset: str


def parse(words: Sequence[str]) -> Options:
    """Options from the words behind the command.

    Raises:
        ConfigError: no target or several, an unknown key, a key twice, a value that cannot work.

    Example:
        >>> parse(["results/demo-0123456789ab.jsonl", "samples=3"]).out.name
        'demo-0123456789ab.html'
    """
    targets, given = [], dict[str, str]()
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or "/" in key:
            targets.append(word)
        elif key not in KEYS:
            raise ConfigError.at(key, value, "unknown key", f"Known are {', '.join(KEYS)}")
        elif key in given:
            raise ConfigError.at(key, value, "given twice", "Give it once")
        else:
            given[key] = value
    if len(targets) != 1:
        raise ConfigError.at(
            "TARGET", " ".join(targets), "there must be one", "Give a result file, a run name or a table's folder"
        )
    chosen = {**KEYS, **given}
    if not chosen["samples"].isascii() or not chosen["samples"].isdigit():
        raise ConfigError.at("samples", chosen["samples"], "must be a whole number", "20 is the default, 0 shows none")
    axes = tuple(axis for axis in chosen["axes"].split(",") if axis)
    if len(axes) not in (0, 2):
        raise ConfigError.at("axes", chosen["axes"], "must be two names", "For example axes=sampler,objective")
    for key in ("results", "store"):
        if not chosen[key]:
            raise ConfigError.at(key, "", "must be a folder", f"The default is {KEYS[key]}")
    name = Path(targets[0]).name.removesuffix(".jsonl").replace(",", "+") or "report"
    return Options(
        target=targets[0],
        out=Path(chosen["out"] or f"{name}.html"),
        results=Path(chosen["results"]),
        store=Path(chosen["store"]),
        samples=int(chosen["samples"]),
        axes=axes,
        preset=chosen["preset"],
    )


def report(options: Options) -> int:
    """Writes the page; gives its size in bytes. What was left out is said on standard error too.

    Raises:
        ConfigError, DataError: nothing to report on, a damaged result row, a place that cannot be written.
    """
    if options.out.is_dir():
        raise ConfigError.at("out", options.out, "is a folder", "Give a file")
    if not options.out.parent.is_dir():
        why = f"cannot be written, {options.out.parent} is no folder"
        raise ConfigError.at("out", options.out, why, "Make the folder first, or give a file in another")
    from ttpa.report import compose, page

    made: Callable[..., page.Page] = compose.table if Path(options.target).is_dir() else compose.runs
    shown = made(options)
    for warning in dict.fromkeys(shown.warnings):
        print(f"ttpa-report: warning: {' '.join(warning.split())}", file=sys.stderr)
    return page.write(page.render(shown), options.out)


def main() -> None:
    """Entry point of the `ttpa-report` script."""
    words = sys.argv[1:]
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(HELP, end="")
        return
    try:
        options = parse(words)
        size = report(options)
    except TtpaError as error:
        print(f"ttpa-report: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        print(f"ttpa-report: error: {error.name} is not installed. pip install 'ttpa[report]'.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ttpa-report: interrupted. Nothing was written.", file=sys.stderr)
        sys.exit(130)
    print(f"{options.out} ({size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
