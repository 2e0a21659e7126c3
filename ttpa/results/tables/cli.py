"""The command line `ttpa-table`: run records in, a table out. Imports neither torch nor transformers, asks no network.

Exit status: 0, also with holes and warnings (they are on standard error); 2 for arguments or a table.yaml that cannot
work. What this module does not do: run what is missing (`ttpa-sweep`), or say why it is missing (`ttpa-status`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ttpa.errors import ConfigError, TtpaError

HELP = """\
ttpa-table: from run records to the table of a paper.

  ttpa-table experiments/NAME [preset=NAME] [format=markdown|latex|csv|html] [out=FILE]
             [results=DIR] [store=DIR] [cost=true] [seed=0,1] [any override of the cells ...]

  preset   which of the presets in experiments/NAME/table.yaml; the first without it
  format   of what is written; the suffix of out= says it too (.md, .tex, .csv, .html)
  out      file, replaced whole; without it standard output
  results  folder of the run records; without it paths.results of the cells
  store    folder of the stages, for paired differences by samples; without it paths.store of the cells
  cost     true adds seconds and tokens of each row, as if it had run alone
  Overrides that a sweep was started with are given here too: they decide which records are meant.
"""
OWN = ("preset", "format", "out", "results", "store", "cost")


def split(words: Sequence[str], own: Sequence[str], command: str) -> tuple[Path, dict[str, str], list[str]]:
    """The folder, this command's own keys, and overrides for every cell.

    Raises:
        ConfigError: no folder, two of them, an own key twice or empty, or a word that is neither.

    Example:
        >>> split(["experiments/x", "preset=cluster", "seed=0"], ("preset",), "ttpa-table")[1:]
        ({'preset': 'cluster'}, ['seed=0'])
    """
    folders, found, extra = [], dict[str, str](), []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign and not word.startswith(("~", "-")):
            folders.append(Path(word))
        elif not key or word.startswith("-"):
            raise ConfigError(f"{word}: not of the form key=value. `{command} --help` shows the keys.")
        elif key not in own:
            extra.append(word)
        elif key in found:
            raise ConfigError.at(key, value, "given twice", "Give it once")
        elif not value:
            raise ConfigError.at(key, value, "is empty", "Give a value, or leave it out")
        else:
            found[key] = value
    if len(folders) != 1:
        shown = ", ".join(map(str, folders)) or "none"
        raise ConfigError(f"Give one folder of experiments/, not {shown}. `{command} --help` shows the form.")
    return folders[0], found, extra


def _format(options: dict[str, str]) -> str:
    from ttpa.results.tables.render import FORMATS, SUFFIXES

    suffix = Path(options.get("out", "")).suffix
    found = options.get("format") or SUFFIXES.get(suffix, "markdown")
    if found not in FORMATS:
        raise ConfigError.at("format", found, "unknown", f"Use one of {', '.join(FORMATS)}")
    return found


def table(words: Sequence[str]) -> tuple[str, list[str]]:
    """The text of the table that the words ask for, and warnings.

    Raises:
        ConfigError: arguments or a table.yaml that cannot work.
    """
    folder, options, extra = split(words, OWN, "ttpa-table")
    if options.get("cost", "false") not in ("true", "false"):
        raise ConfigError.at("cost", options["cost"], "must be true or false", "Use cost=true")
    from ttpa.results.tables import build, render

    style = _format(options)
    results, store = (Path(options[key]) if key in options else None for key in ("results", "store"))
    with_cost = options.get("cost") == "true"
    made = build.from_folder(folder, options.get("preset"), extra, results=results, store=store, with_cost=with_cost)
    return render.FORMATS[style](made.table), made.records.warnings


def main() -> None:
    """Entry point of the `ttpa-table` script."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return
    try:
        text, warnings = table(words)
        for warning in dict.fromkeys(warnings):
            print(f"ttpa-table: warning: {warning}", file=sys.stderr)
        out = next((word.partition("=")[2] for word in words if word.startswith("out=")), "")
        if out:
            _write(Path(out), text)
        else:
            sys.stdout.write(text)
    except TtpaError as error:
        print(f"ttpa-table: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        raise ConfigError.at("out", path, f"cannot be written ({error.strerror})", "Give a file in a folder") from None


if __name__ == "__main__":
    main()
