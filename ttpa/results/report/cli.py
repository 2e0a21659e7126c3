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

  ttpa-report TARGET [out=FILE] [results=DIR] [store=DIR] [samples=20] [axes=A,B]
              [preset=NAME] [seed=0,1] [any override of a table's cells ...]

  TARGET   a result file; a run name (all its rows: a sweep; several names are joined by commas);
           or the folder of a table, experiments/NAME
  out      where the page is written; default: TARGET's name with .html, in the current folder
  results  folder of the result rows (default: results; of a table, paths.results of its cells)
  store    folder of the stages (default: store; of a table, paths.store of its cells); what is gone from it is
           left out, and said
  samples  pairs and groups of answers shown of each exploration, drawn at random with a fixed seed; 0 shows none
  axes     the two axes of the heat map: option groups or settings, such as sampler,objective or sampler.n,scorer;
           default: the two groups that differ most
  preset   of a table: which of the presets in its table.yaml (default: the first)
  Overrides that a table's sweep was started with are given here too: they decide which result rows are meant.
"""
KEYS = ("out", "results", "store", "samples", "axes", "preset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for. `results`, `store`: None for the default; `overrides`: of a table's cells."""

    target: str
    out: Path
    results: Path | None
    store: Path | None
    samples: int
    axes: tuple[str, ...]
    preset: str
    overrides: tuple[str, ...]


def of_table(target: str) -> bool:
    """Whether a target is the folder of a table, or the file in it."""
    return Path(target).is_dir() or target.endswith(".yaml")


def parse(words: Sequence[str]) -> Options:
    """Options from the words behind the command.

    Raises:
        ConfigError: no target or several, an unknown key, a key twice or empty, a value that cannot work.

    Example:
        >>> parse(["results/demo-0123456789ab.jsonl", "samples=3"]).out.name
        'demo-0123456789ab.html'
    """
    targets, overrides, given = [], [], dict[str, str]()
    for word in words:
        key, sign, value = word.partition("=")
        if "/" in key or not (sign or word.startswith("~")):
            targets.append(word)
        elif key not in KEYS:
            overrides.append(word)
        elif key in given:
            raise ConfigError.at(key, value, "given twice", "Give it once")
        elif not value:
            raise ConfigError.at(key, value, "is empty", "Give a value, or leave it out")
        else:
            given[key] = value
    if not any(map(of_table, targets)):
        if overrides:
            known = f"Known are {', '.join(KEYS)}; with a table's folder overrides, too"
            raise ConfigError(f"{overrides[0]}: unknown key. {known}.")
        if "preset" in given:
            raise ConfigError.at("preset", given["preset"], "of tables only", "Leave it out, or give a table's folder")
    if len(targets) != 1:
        raise ConfigError.at(
            "TARGET", " ".join(targets), "there must be one", "Give a result file, a run name or a table's folder"
        )
    samples = given.get("samples", "20")
    if not samples.isascii() or not samples.isdigit():
        raise ConfigError.at("samples", samples, "must be a whole number", "20 is the default, 0 shows none")
    axes = tuple(given["axes"].split(",")) if "axes" in given else ()
    if axes and (len(axes) != 2 or axes[0] == axes[1] or "" in axes):
        raise ConfigError.at(
            "axes", given["axes"], "must be two names that differ", "For example axes=sampler,objective"
        )
    place = Path(targets[0])
    place = place.parent if place.suffix == ".yaml" else place
    name = place.name.removesuffix(".jsonl").replace(",", "+") or "report"
    return Options(
        target=targets[0],
        out=Path(given.get("out", f"{name}.html")),
        results=Path(given["results"]) if "results" in given else None,
        store=Path(given["store"]) if "store" in given else None,
        samples=int(samples),
        axes=axes,
        preset=given.get("preset", ""),
        overrides=tuple(overrides),
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
    from ttpa.results.report import compose, page

    made: Callable[..., page.Page] = compose.table if of_table(options.target) else compose.runs
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
