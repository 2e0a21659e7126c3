"""A table as Markdown, LaTeX (booktabs), CSV or HTML, and the command `ttpa table`.

The same records give the same bytes: no date, no machine. Markdown, LaTeX and HTML are templates over one grid of
texts; CSV holds every number in full for a program to read.
"""

import csv
import html
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic.dataclasses

from ttpa.errors import ConfigError, visible
from ttpa.io import csv_row, write_text
from ttpa.options import arguments
from ttpa.results.cells import CellsForm
from ttpa.results.differences import POINTS
from ttpa.results.spec import TRUST
from ttpa.results.stats import Estimate
from ttpa.results.table import Table, TableRow, TableValue, from_folder

HELP = """\
ttpa table: from result rows to the table of a paper.

  ttpa table experiments/NAME [preset=NAME] [format=markdown|latex|csv|html] [out=FILE]
             [results=DIR] [store=DIR] [cost=true] [seed=0,1] [any override of the cells ...]

  preset   which of the presets in experiments/NAME/table.yaml; the first without it
  format   of what is written; the suffix of out= says it too (.md, .tex, .csv, .html)
  out      file, replaced whole; without it standard output
  results  folder of the result rows; without it paths.results of the cells
  store    folder of the stages, for paired differences by samples; without it paths.store of the cells
  cost     true adds seconds and tokens of each row, as if it had run alone
  Overrides that a sweep was started with are given here too: they decide which result rows are meant.
"""
DASH = "-"
WIDEST = 75  # characters of a row that fit the text of LaTeX's article in its small font


class GridCell(NamedTuple):
    """A text, a raised mark, and whether it is the best of its column."""

    text: str
    mark: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the first column is aligned left, the others right."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[GridCell, ...], ...]

    @property
    def wide(self) -> bool:
        """Whether it is wider than the text of LaTeX, with two characters between columns."""
        plain = [self.head, *(tuple(one.text + one.mark for one in row) for row in self.rows)]
        return sum(max(map(len, column)) + 2 for column in zip(*plain, strict=True)) > WIDEST


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with fixed digits and no negative zero."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "", 1) if float(text) == 0 and text.startswith("-") else text


def interval(found: Estimate, digits: int, sign: bool = False) -> str:
    """A number with its interval in brackets, where it has one."""
    ends = [number(end, digits, sign) for end in (found.low, found.high) if end is not None]
    return number(found.value, digits, sign) + (f" [{', '.join(ends)}]" if ends else "")


def sources(table: Table) -> dict[str, int]:
    """Source and note of the published numbers shown -> number of the footnote, in order of appearance."""
    every = [value.published.footnote for row in table.rows for value in row.values if value.published]
    return {footnote: at for at, footnote in enumerate(dict.fromkeys(every), 1)}


def main_grid(table: Table, with_cost: bool = False) -> Grid:
    """Rows by columns, with the paper's number and the difference to it beside ours."""
    notes, rows = sources(table), table.rows
    columns = [("", [GridCell(row.spec.label, "†" if row.outdated else "") for row in rows])]
    columns.append(("seeds", [GridCell(_seeds(row)) for row in rows]))
    for at, column in enumerate(table.columns):
        values, digits = [row.values[at] for row in rows], column.digits
        published = [value.published for value in values]
        if column.path(table.preset.name) is None and not any(published):
            continue  # the notes name it
        best = _best(values, column.better)
        columns.append((column.label, [_shown(rows[i], one, digits, i == best) for i, one in enumerate(values)]))
        if any(published):
            texts = [(number(one.shown, digits), TRUST[one.trust] + str(notes[one.footnote])) if one else ("",)
                     for one in published]  # fmt: skip
            paper = table.spec.paper.name if table.spec.paper else "published"
            columns.append((f"{column.label}, {paper}", [GridCell(*text) for text in texts]))
        if any(value.gap is not None for value in values):
            gaps = ["" if value.gap is None else number(value.gap, digits, sign=True) for value in values]
            columns.append(("ours - theirs", [GridCell(gap) for gap in gaps]))
    for name in ("seconds", "tokens") if with_cost else ():
        costs = [getattr(row, name) for row in rows]
        columns.append((name, [GridCell(DASH if one is None else f"{one:.0f}") for one in costs]))
    cells = zip(*(column for _, column in columns), strict=True)
    return Grid("Results", tuple(name for name, _ in columns), tuple(cells))


def _seeds(row: TableRow) -> str:
    missing = f", no {', '.join(map(str, row.missing))}" if row.missing else ""
    return f"{len(row.records)}/{len(row.records) + len(row.missing)}{missing}"


def _shown(row: TableRow, value: TableValue, digits: int, best: bool) -> GridCell:
    found = value.estimate
    if found is None:
        return GridCell(DASH)
    marks = ("*" if found.kind in ("bootstrap", "wilson") else "", f"n={found.n}" if found.n < len(row.records) else "")
    return GridCell(interval(found, digits), " ".join(filter(None, marks)), best)


def _best(values: Sequence[TableValue], better: str) -> int | None:
    """Index of the best mean; None with fewer than two or a tie."""
    sign = 1 if better == "high" else -1
    known = sorted(((sign * one.estimate.value, at) for at, one in enumerate(values) if one.estimate), reverse=True)
    return known[0][1] if len(known) > 1 and known[0][0] != known[1][0] else None


def difference_grid(table: Table) -> Grid:
    """The paired differences; no rows where there are none."""
    labels, digits, rows = {row.spec.key: row.spec.label for row in table.rows}, table.columns[0].digits, []
    for one in table.differences:
        mean = seeds = by = ""
        if one.mean and one.seeds:
            mean = interval(one.mean, digits, sign=True)
            seeds = interval(one.seeds, digits, sign=True) if one.seeds.n > 1 else ""
            by = f"{one.mean.n} {'seed' if one.reason else 'sample'}{'' if one.mean.n == 1 else 's'}"
        p = DASH if one.p is None else "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
        name = f"{labels[one.ours]} - {labels[one.against]}"
        needed = DASH if one.needed is None else str(one.needed)
        rows.append(tuple(map(GridCell, (name, mean or DASH, seeds or DASH, p, by, needed, one.verdict))))
    head = ("difference", "mean", "over the seeds", "p", "by", f"seeds for {POINTS} points", "verdict")
    return Grid("Paired differences", head, tuple(rows))


# --- how it is written -----------------------------------------------------------------------------------------------

_LATEX: dict[str, Any] = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "†": r"\dag{}", "\n": " ", **{char: f"\\{char}" for char in "&%$#_{}"},
}  # fmt: skip
_ESCAPES: dict[str, Callable[[str], str]] = {
    "md": partial(re.sub, r"([\\|*_`<>\[\]])", r"\\\1"),
    "tex": lambda text: text.translate(str.maketrans(_LATEX)),
    "html": html.escape,
    "txt": str,
}


def _rendered(file: str, **values: Any) -> str:
    """A template of this package, in which the filter `escaped` is that of its format."""
    import jinja2

    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False, loader=jinja2.PackageLoader("ttpa.results"),
    )  # fmt: skip
    escape = _ESCAPES[file.rpartition(".")[2]]
    environment.filters["escaped"] = lambda text: escape(visible(text))
    return environment.get_template(file).render(values)


def notes(table: Table) -> list[str]:
    """What a reader must know of the numbers shown, a line each."""
    values = [(value, len(row.records)) for row in table.rows for value in row.values]
    found = [(value.estimate, records) for value, records in values if value.estimate]
    text = _rendered(
        "notes.txt",
        kinds={one.kind for one, _ in found},
        cut=any(one.cut for one, _ in found),
        alike=any(one.n > 1 and one.kind in ("bootstrap", "wilson") for one, _ in found),
        partly=any(one.n < records for one, records in found),
        holes=len(found) < len(values),
        unmeasured=[column.label for column in table.columns if column.path(table.preset.name) is None],
        trusts={value.published.trust for value, _ in values if value.published},
        label=table.columns[0].label,
        preset=table.preset,
        rows=table.rows,
        differences=table.differences,
        points=POINTS,
    )
    return text.splitlines()


def _templated(suffix: str, table: Table, with_cost: bool = False) -> str:
    paper = table.spec.paper
    parts = [paper.name, f"arXiv {paper.arxiv}" if paper.arxiv else "", paper.where or ""] if paper else []
    where = f" Paper: {', '.join(filter(None, parts))}." if parts else ""
    text = _rendered(
        f"table.{suffix}",
        title=table.spec.title,
        name=table.spec.name,
        about=[f"Claim: {' '.join(table.spec.claim.split())}", f"Preset {table.preset.name}.{where}"],
        grids=[main_grid(table, with_cost), *([difference_grid(table)] if table.differences else [])],
        notes=notes(table),
        footnotes=[f"{at}. {footnote}" for footnote, at in sources(table).items()],
    )
    return text.rstrip() + "\n"


CSV_HEAD = (
    "kind", "row", "label", "column", "value", "low", "high", "interval", "n", "seeds", "missing", "outdated",
    "published", "trust", "source", "to_published", "against", "p_adjusted",
    "over_seeds", "over_seeds_low", "over_seeds_high", "samples", "seeds_for_2_points", "verdict",
)  # fmt: skip


def comma_separated(table: Table, with_cost: bool = False) -> str:
    """One line a row and column (`kind` cell), then one a paired difference (`kind` difference).

    Of a difference, `interval` says what `value`, `low`, `high` and `p_adjusted` are by (samples or seeds), `n` counts
    seeds and `samples` samples; `over_seeds` and its bounds are of the seeds' own differences.
    """
    lines: list[dict[str, Any]] = []
    for row in table.rows:
        same = {"kind": "cell", "row": row.spec.key, "label": row.spec.label, "outdated": row.outdated}
        same |= {"seeds": " ".join(map(str, row.records)), "missing": " ".join(map(str, row.missing))}
        for column, (found, one, gap) in zip(table.columns, row.values, strict=True):
            line: dict[str, Any] = {**same, "column": column.key}
            line |= {**asdict(found), "interval": found.kind} if found else {}
            line |= {"published": one.shown, "trust": one.trust, "source": one.source} if one else {}
            lines.append({**line, "kind": "cell", "to_published": gap})
        lines += [{**same, "column": name, "value": getattr(row, name)} for name in ("seconds", "tokens") if with_cost]
    for ours, against, mean, seeds, p, reason, verdict, needed in table.differences:
        line = {"row": ours, "against": against, "p_adjusted": p, "column": table.columns[0].key, "verdict": verdict}
        line["seeds_for_2_points"] = needed
        if mean and seeds:
            line |= {**asdict(mean), "n": seeds.n, "samples": "" if reason else mean.n}
            if seeds.n > 1:
                line |= {"over_seeds": seeds.value, "over_seeds_low": seeds.low, "over_seeds_high": seeds.high}
        lines.append({**line, "kind": "difference", "interval": "seeds" if reason else "samples"})
    writer = csv.writer(out := io.StringIO(), lineterminator="\n")
    writer.writerows([CSV_HEAD, *(csv_row([line.get(key) for key in CSV_HEAD]) for line in lines)])
    return out.getvalue()


markdown, latex, page = (partial(_templated, suffix) for suffix in ("md", "tex", "html"))
FORMATS: dict[str, Callable[..., str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated, "html": page}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class TableForm(CellsForm):
    """The words behind `ttpa table`; see HELP."""

    format: Literal["markdown", "latex", "csv", "html"] | None = None
    out: Path | None = None
    results: Path | None = None
    store: Path | None = None
    cost: bool = False


def main(words: Sequence[str]) -> int:
    """`ttpa table`: 0, also with holes and warnings, which go to standard error."""
    form = arguments(words, TableForm, "table")
    table = from_folder(form.target, form.preset, form.overrides, results=form.results, store=form.store)
    for warning in table.warnings:
        print(visible(f"ttpa table: warning: {warning}"), file=sys.stderr)
    style = form.format or SUFFIXES.get(form.out.suffix if form.out else "", "markdown")
    text = FORMATS[style](table, form.cost)
    try:
        if form.out is None:
            sys.stdout.write(text)
        else:
            write_text(form.out, text)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise ConfigError.at("out", form.out, problem, "Give a file in a folder") from None
    return 0
