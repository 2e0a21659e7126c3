"""A table as Markdown, LaTeX (booktabs), CSV or HTML, and the command `ttpa table`.

The same records give the same bytes: no date, no machine. Markdown, LaTeX and HTML are templates over one grid of
texts; CSV holds every number in full for a program to read.
"""

import csv
import html
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pydantic.dataclasses

from ttpa.errors import ConfigError
from ttpa.io import write_text
from ttpa.options import arguments
from ttpa.results.differences import Difference
from ttpa.results.spec import TRUST, Column
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
WIDEST = 75
"""Characters of a row, with two between its columns, that fit the text width of LaTeX's article in its small font."""


@dataclass(frozen=True, slots=True)
class GridCell:
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
    every = [value.published.footnote for row in table.rows for value in row.values if value.published is not None]
    return {footnote: at for at, footnote in enumerate(dict.fromkeys(every), 1)}


def main_grid(table: Table, with_cost: bool = False) -> Grid:
    """Rows by columns, with the paper's number and the difference to it beside ours."""
    notes, rows = sources(table), table.rows
    columns = [("", [GridCell(row.spec.label, "†" if row.outdated else "") for row in rows])]
    columns.append(("seeds", [_seeds(row) for row in rows]))
    for at, column in enumerate(table.columns):
        values, best = [row.values[at] for row in rows], _best(table, at)
        published = any(value.published is not None for value in values)
        if column.path(table.preset.name) is None and not published:
            continue  # the notes name it
        columns.append((column.label, [_shown(rows[i], value, column, i == best) for i, value in enumerate(values)]))
        if published:
            paper = table.spec.paper.name if table.spec.paper else "published"
            columns.append((f"{column.label}, {paper}", [_published(value, column, notes) for value in values]))
        if any(value.gap is not None for value in values):
            gaps = ["" if value.gap is None else number(value.gap, column.digits, sign=True) for value in values]
            columns.append(("ours - theirs", [GridCell(gap) for gap in gaps]))
    if with_cost:
        for name in ("seconds", "tokens"):
            costs = [getattr(row, name) for row in rows]
            columns.append((name, [GridCell(DASH if one is None else f"{one:.0f}") for one in costs]))
    cells = zip(*(column for _, column in columns), strict=True)
    return Grid("Results", tuple(name for name, _ in columns), tuple(cells))


def _seeds(row: TableRow) -> GridCell:
    missing = f", no {', '.join(map(str, row.missing))}" if row.missing else ""
    return GridCell(f"{len(row.records)}/{len(row.records) + len(row.missing)}{missing}")


def _shown(row: TableRow, value: TableValue, column: Column, best: bool) -> GridCell:
    found = value.estimate
    if found is None:
        return GridCell(DASH)
    marks = ("*" if found.kind == "bootstrap" else "", f"n={found.n}" if found.n < len(row.records) else "")
    return GridCell(interval(found, column.digits), " ".join(filter(None, marks)), best)


def _best(table: Table, at: int) -> int | None:
    """Index of the row with the best mean of a column; None with fewer than two or a tie."""
    sign = 1 if table.columns[at].better == "high" else -1
    known = [(i, row.values[at].estimate) for i, row in enumerate(table.rows)]
    values = sorted(((sign * one.value, i) for i, one in known if one is not None), reverse=True)
    return values[0][1] if len(values) > 1 and values[0][0] != values[1][0] else None


def _published(value: TableValue, column: Column, notes: dict[str, int]) -> GridCell:
    if (found := value.published) is None:
        return GridCell("")
    return GridCell(number(found.shown, column.digits), f"{TRUST[found.trust]}{notes[found.footnote]}")


def difference_grid(table: Table) -> Grid:
    """The paired differences; no rows where there are none."""
    labels = {row.spec.key: row.spec.label for row in table.rows}
    head = ("difference", "mean", "over the seeds", "p", "by", "verdict")
    rows = [_difference(one, labels, table.columns[0].digits) for one in table.differences]
    return Grid("Paired differences", head, tuple(rows))


def _difference(one: Difference, labels: dict[str, str], digits: int) -> tuple[GridCell, ...]:
    mean = seeds = p = DASH
    by = ""
    if one.mean is not None and one.seeds is not None:
        mean = interval(one.mean, digits, sign=True)
        seeds = interval(one.seeds, digits, sign=True) if one.seeds.n > 1 else DASH
        by = f"{one.mean.n} {'seed' if one.reason else 'sample'}{'' if one.mean.n == 1 else 's'}"
    if one.p is not None:
        p = "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
    texts = (f"{labels[one.ours]} - {labels[one.against]}", mean, seeds, p, by, one.verdict)
    return tuple(GridCell(text) for text in texts)


# --- how it is written -----------------------------------------------------------------------------------------------

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "†": r"\dag{}", "\n": " ",
})  # fmt: skip
_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\|*_`<>[]"})


def _after_break(text: str) -> str:
    """LaTeX's line break would read a star or a bracket as its own."""
    return f"{{}}{text}" if text.lstrip().startswith(("[", "*")) else text


def _markdown_cell(text: str) -> str:
    return text.translate(_MARKDOWN).replace("\\[", "[").replace("\\]", "]")


def _latex_cell(text: str) -> str:
    return "--" if text == DASH else text.translate(_LATEX)


Escape = Callable[[str], str]
_STYLES: dict[str, tuple[Escape, Escape, str, str, Escape]] = {
    "md": (lambda text: text.translate(_MARKDOWN), _markdown_cell, "**{}**", "<sup>{}</sup>", str),
    "tex": (
        lambda text: text.translate(_LATEX),
        _latex_cell,
        r"\textbf{{{}}}",
        r"\textsuperscript{{{}}}",
        _after_break,
    ),
    "html": (html.escape, html.escape, "<strong>{}</strong>", "<sup>{}</sup>", str),
}
"""Format -> how to write a text, a cell of a grid, the best of a column, a mark, and what stands after a line break."""


def _templated(suffix: str, table: Table, with_cost: bool = False) -> str:
    import jinja2

    escape, cell, bold, mark, line = _STYLES[suffix]

    def whole(one: GridCell) -> str:
        text = line(bold.format(cell(one.text)) if one.best and one.text else cell(one.text))
        return text + (mark.format(escape(one.mark)) if one.mark else "")

    def shown(grid: Grid) -> dict[str, Any]:
        plain = [grid.head, *(tuple(one.text + one.mark for one in row) for row in grid.rows)]
        return {
            "caption": grid.caption,
            "head": [escape(text) for text in grid.head],
            "rows": [[whole(one) for one in row] for row in grid.rows],
            "wide": sum(max(map(len, column)) + 2 for column in zip(*plain, strict=True)) > WIDEST,
        }

    spec, paper = table.spec, table.spec.paper
    parts = [paper.name, f"arXiv {paper.arxiv}" if paper.arxiv else "", paper.where or ""] if paper else []
    where = f" Paper: {', '.join(filter(None, parts))}." if parts else ""
    about = [f"Claim: {' '.join(spec.claim.split())}", f"Preset {table.preset.name}.{where}"]
    footnotes = [f"{at}. {footnote}" for footnote, at in sources(table).items()]
    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    template = resources.files("ttpa.results") / "templates" / f"table.{suffix}"
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        title=escape(spec.title),
        name=spec.name,
        about=[line(escape(text)) for text in about],
        grids=[shown(main_grid(table, with_cost)), *([shown(difference_grid(table))] if table.differences else [])],
        notes=[line(escape(text)) for text in table.notes],
        footnotes=[line(escape(text)) for text in footnotes],
    )
    return text.rstrip() + "\n"


CSV_HEAD = (
    "kind", "row", "label", "column", "value", "low", "high", "interval", "n", "seeds", "missing", "outdated",
    "published", "trust", "source", "to_published", "against", "p_adjusted",
    "over_seeds", "over_seeds_low", "over_seeds_high", "samples", "verdict",
)  # fmt: skip


def comma_separated(table: Table, with_cost: bool = False) -> str:
    """One line a row and column (`kind` cell), then one a paired difference (`kind` difference).

    Of a difference, `interval` says what `value`, `low`, `high` and `p_adjusted` are by (samples or seeds), `n` counts
    seeds and `samples` samples; `over_seeds` and its bounds are of the seeds' own differences.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_HEAD, lineterminator="\n", restval="")
    writer.writeheader()
    for row in table.rows:
        same = {"kind": "cell", "row": row.spec.key, "label": row.spec.label, "outdated": row.outdated}
        same |= {"seeds": " ".join(map(str, row.records)), "missing": " ".join(map(str, row.missing))}
        for column, value in zip(table.columns, row.values, strict=True):
            line: dict[str, Any] = {**same, "column": column.key}
            if (found := value.estimate) is not None:
                line |= {"value": found.value, "low": found.low, "high": found.high}
                line |= {"interval": found.kind, "n": found.n}
            if (one := value.published) is not None:
                line |= {"published": one.shown, "trust": one.trust, "source": one.source, "to_published": value.gap}
            writer.writerow(line)
        for name in ("seconds", "tokens") if with_cost else ():
            writer.writerow({**same, "column": name, "value": getattr(row, name)})
    for difference in table.differences:
        line = {"kind": "difference", "row": difference.ours, "against": difference.against, "p_adjusted": difference.p}
        line |= {"column": table.columns[0].key, "verdict": difference.verdict}
        line["interval"] = "seeds" if difference.reason else "samples"
        if (mean := difference.mean) is not None and (seeds := difference.seeds) is not None:
            line |= {"value": mean.value, "low": mean.low, "high": mean.high, "n": seeds.n}
            line["samples"] = "" if difference.reason else mean.n
            if seeds.n > 1:
                line |= {"over_seeds": seeds.value, "over_seeds_low": seeds.low, "over_seeds_high": seeds.high}
        writer.writerow(line)
    return out.getvalue()


markdown, latex, page = (partial(_templated, suffix) for suffix in ("md", "tex", "html"))
FORMATS: dict[str, Callable[..., str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated, "html": page}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class TableForm:
    """The words behind `ttpa table`; see HELP."""

    target: Path
    preset: str | None = None
    format: Literal["markdown", "latex", "csv", "html"] | None = None
    out: Path | None = None
    results: Path | None = None
    store: Path | None = None
    cost: bool = False
    overrides: tuple[str, ...] = ()


def main(words: Sequence[str]) -> int:
    """`ttpa table`: 0, also with holes and warnings, which go to standard error.

    Raises:
        ConfigError: words or a table.yaml that cannot work.
    """
    form = arguments(words, TableForm, "table")
    table = from_folder(form.target, form.preset, form.overrides, results=form.results, store=form.store)
    for warning in table.warnings:
        print(f"ttpa table: warning: {warning}", file=sys.stderr)
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
