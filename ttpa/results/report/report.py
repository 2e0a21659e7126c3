"""`ttpa report`: one page of HTML for a run, a sweep or a table. What the store lacks is said on the page and is
no mistake: result rows outlive the stages they came from.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from ttpa.errors import ConfigError, visible
from ttpa.io import write_text
from ttpa.options import CommaList, Index, arguments
from ttpa.results import render, table
from ttpa.results.report import numbers, page, samples
from ttpa.results.report.study import records_of, study_of

HELP = """\
ttpa report: one self-contained HTML page, opened without a network.

  ttpa report TARGET [out=FILE] [results=DIR] [store=DIR] [samples=20] [answers=1500] [axes=A,B]
              [preset=NAME] [seed=0,1] [any override of a table's cells ...]

  TARGET   a result file; a run name (all its rows: a sweep; several names are joined by commas);
           or the folder of a table, experiments/NAME
  out      where the page is written; default: TARGET's name with .html, in the current folder
  results  folder of the result rows (default: results; of a table, paths.results of its cells)
  store    folder of the stages (default: store; of a table, paths.store of its cells)
  samples  pairs and groups of answers shown of each exploration, drawn at random with a fixed seed; 0 shows none
  answers  questions in the browser of evaluation answers, each with the answers of all policies and seeds; drawn at
           random with a fixed seed where there are more; 0 leaves the browser out
  axes     the two axes of the heat map: option groups or settings, such as sampler,objective or sampler.n,scorer;
           default: the two groups that differ most
  preset   of a table: which of the presets in its table.yaml (default: the first)
  Overrides that a table's sweep was started with are given here too: they decide which result rows are meant.
"""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The words behind the command. `out`, `results`, `store`: None for the default."""

    target: str
    out: Path | None = None
    results: Path | None = None
    store: Path | None = None
    samples: Index = 20
    answers: Index = 1500
    axes: CommaList = ()
    preset: str = ""
    overrides: tuple[str, ...] = ()


def main(words: Sequence[str]) -> int:
    """Writes the page that the words ask for and prints its name and size. A mistake of the user is a TtpaError."""
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(HELP, end="")
        return 0
    form = arguments(words, Form, "report")
    target = Path(form.target)
    folder = target if target.is_dir() else target.parent if target.suffix == ".yaml" else None
    name = (folder or target).name.removesuffix(".jsonl").replace(",", "+")
    out = form.out or Path(f"{name or 'report'}.html")
    if folder is None and (form.overrides or form.preset):
        word = [*form.overrides, f"preset={form.preset}"][0]
        raise ConfigError(f"{word}: for tables only. Leave it out, or give a table's folder as TARGET.")
    if form.axes and (len(form.axes) != 2 or len({*form.axes, ""}) != 3):
        problem = "must be two names that differ"
        raise ConfigError.at("axes", ",".join(form.axes), problem, "For example axes=sampler,objective")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError.at("out", out, "is a folder, or lies in none", "Give a file in a folder that exists")
    shown, warnings = page_of(form, folder)
    for warning in warnings:
        print(visible(f"ttpa report: warning: {' '.join(warning.split())}"), file=sys.stderr)
    try:
        write_text(out, page.render(**shown))
    except OSError as error:
        raise ConfigError.at("out", out, f"cannot be written ({error.strerror})", "Give a file") from None
    print(visible(f"{out}") + f" ({out.stat().st_size / 1e6:.2f} MB)")
    return 0


def page_of(form: Form, folder: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The values of page.html, for a table's folder or for result rows, and warnings."""
    warnings = list[str]()
    if folder is not None:
        made = table.from_folder(folder, form.preset or None, form.overrides, results=form.results, store=form.store)
        full, empty = sum(len(row.records) for row in made.rows), sum(len(row.missing) for row in made.rows)
        title, subtitle = made.spec.title, f"Table {made.spec.name}, preset {made.preset.name}: {full} of "
        subtitle += f"{page.plural(full + empty, 'cell')} have a result. Claim: {made.spec.claim}"
    else:
        records, warnings = records_of(form.target, form.results or Path("results"))
        made = table.from_records(records, form.store or Path("store"))
        title = f"{records[0].name} {records[0].run}" if Path(form.target).is_file() else form.target
        names = ", ".join(dict.fromkeys(one.name for one in records))
        subtitle = f"{page.plural(len(records), 'result row')} of {names}."
    study, warnings = study_of(made.rows, made.store), list(dict.fromkeys([*warnings, *made.warnings]))
    sources = [f"Source {at}: {footnote}" for footnote, at in render.sources(made).items()]
    notes = page.folded("How to read these numbers", [("said", note) for note in (*render.notes(made), *sources)])
    said = [("warning", one) for one in warnings]
    sections = {"accuracy": [*said, *numbers.accuracy(made, study), *numbers.differences(made, study), notes]}
    values = {"title": title, "subtitle": subtitle, "head": {}, "sections": sections}
    if not study.arms:
        return values, warnings
    sections |= {
        "errors": numbers.errors(study),
        "answers": samples.browser(study, form.answers),
        "heat": numbers.heat_map(made, study, form.axes),
        "decay": numbers.gain_decay(study),
        "curves": numbers.curves(study),
        "pairs": samples.explorations(study, form.samples, samples.pairs_of),
        "trees": samples.explorations(study, form.samples, samples.trees_of),
        "drawn": samples.groups_of(study, form.samples),
        "stages": numbers.stage_table(study),
        "settings": numbers.configurations(study),
        "provenance": numbers.provenance(study),
    }
    built = [stage.provenance for stage in study.stages.values() if stage.provenance]
    machines = [f"{one.get('gpu') or 'no GPU'}, {one.get('cpu')}, {one.get('cpu_count')} CPUs" for one in built]
    times = [str(one[key])[:16].replace("T", " ") for one in built for key in ("started", "ended") if one.get(key)]
    seeds = sorted({record.seed for record in study.records})
    head = {"options": study.options, "seeds": seeds, "times": sorted(times), "machines": dict.fromkeys(machines)}
    return {**values, "head": head}, warnings
