"""`ttpa report`: one page of HTML for a run, a sweep or a table. Imports no torch and writes nothing but the page.

What is missing in the store is said on the page and is no mistake: result rows outlive the stages they came from.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from ttpa.errors import ConfigError
from ttpa.io import write_text
from ttpa.options import CommaList, Index, arguments
from ttpa.results import render, table
from ttpa.results.report import numbers, page, samples, stages
from ttpa.results.report.study import Study, records_of, study_of

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

    @property
    def of_table(self) -> bool:
        """Whether the target is the folder of a table, or the file in it."""
        return Path(self.target).is_dir() or self.target.endswith(".yaml")

    @property
    def page(self) -> Path:
        """Where the page is written."""
        path = Path(self.target)
        name = (path.parent if path.suffix == ".yaml" else path).name.removesuffix(".jsonl").replace(",", "+")
        return self.out or Path(f"{name or 'report'}.html")


def parse(words: Sequence[str]) -> Form:
    """The form from the words behind the command; a ConfigError for a key or value that cannot work."""
    form = arguments(words, Form, "report")
    if not form.of_table and (form.overrides or form.preset):
        word = [*form.overrides, f"preset={form.preset}"][0]
        raise ConfigError(f"{word}: for tables only. Leave it out, or give a table's folder as TARGET.")
    if form.axes and (len(form.axes) != 2 or len({*form.axes, ""}) != 3):
        axes = ",".join(form.axes)
        raise ConfigError.at("axes", axes, "must be two names that differ", "For example axes=sampler,objective")
    if form.page.is_dir() or not form.page.parent.is_dir():
        raise ConfigError.at("out", form.page, "is a folder, or lies in none", "Give a file in a folder that exists")
    return form


def main(words: Sequence[str]) -> int:
    """Writes the page that the words ask for and prints its name and size. A mistake of the user is a TtpaError."""
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(HELP, end="")
        return 0
    form = parse(words)
    shown, warnings = page_of(form)
    for warning in warnings:
        print(f"ttpa report: warning: {' '.join(warning.split())}", file=sys.stderr)
    try:
        write_text(form.page, page.render(**shown))
    except OSError as error:
        raise ConfigError.at("out", form.page, f"cannot be written ({error.strerror})", "Give a file") from None
    print(f"{form.page} ({form.page.stat().st_size / 1e6:.2f} MB)")
    return 0


def page_of(form: Form) -> tuple[dict[str, Any], list[str]]:
    """The values of page.html, and warnings. A TtpaError where there is nothing to report on."""
    target, warnings = Path(form.target), list[str]()
    if form.of_table:
        folder = target.parent if target.suffix == ".yaml" else target
        made = table.from_folder(folder, form.preset or None, form.overrides, results=form.results, store=form.store)
        full, empty = sum(len(row.records) for row in made.rows), sum(len(row.missing) for row in made.rows)
        title, subtitle = made.spec.title, f"Table {made.spec.name}, preset {made.preset.name}: {full} of "
        subtitle += f"{page.plural(full + empty, 'cell')} have a result. Claim: {made.spec.claim}"
    else:
        records, warnings = records_of(form.target, form.results or Path("results"))
        made = table.from_records(records, form.store or Path("store"))
        title = f"{records[0].name} {records[0].run}" if target.is_file() else form.target
        names = ", ".join(dict.fromkeys(one.name for one in records))
        subtitle = f"{page.plural(len(records), 'result row')} of {names}."
    study = study_of(made.rows, made.store)
    warnings = list(dict.fromkeys([*warnings, *made.warnings]))
    sources = [f"Source {at}: {footnote}" for footnote, at in render.sources(made).items()]
    notes = page.folded("How to read these numbers", [page.text(note) for note in (*made.notes, *sources)])
    said = [page.text(one, warning=True) for one in warnings]
    shown = [*said, *numbers.accuracy(made, study), *numbers.differences(made, study), notes]
    sections = {
        "errors": numbers.errors(study),
        "answers": samples.browser(study, form.answers),
        "heat": numbers.heat_map(made, study, form.axes),
        "decay": numbers.gain_decay(study),
        "curves": stages.curves(study),
        "pairs": samples.explorations(study, form.samples, samples.pairs_of),
        "trees": samples.explorations(study, form.samples, samples.trees_of),
        "drawn": samples.groups_of(study, form.samples),
        "stages": stages.stage_table(study),
        "settings": stages.configurations(study),
        "provenance": stages.provenance(study),
    } if study.arms else {}  # fmt: skip
    head = _head(study) if study.arms else {}
    return {"title": title, "subtitle": subtitle, "head": head, "sections": {"accuracy": shown, **sections}}, warnings


def _head(study: Study) -> dict[str, Any]:
    """What stands below the title: options that differ and that are the same, seeds, when and on what it was built."""
    firsts = [arm.first.choices for arm in study.aligned or study.arms]
    options = {group: list(dict.fromkeys(str(one.get(group)) for one in firsts)) for one in firsts for group in one}
    made = [stage.provenance for stage in study.stages.values() if stage.provenance]
    machines = [f"{one.get('gpu') or 'no GPU'}, {one.get('cpu')}, {one.get('cpu_count')} CPUs" for one in made]
    times = sorted(str(one[key])[:16].replace("T", " ") for one in made for key in ("started", "ended") if one.get(key))
    seeds = sorted({record.seed for record in study.records})
    return {"options": options, "seeds": seeds, "times": times, "machines": list(dict.fromkeys(machines))}
