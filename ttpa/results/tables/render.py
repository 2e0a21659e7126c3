"""A table as Markdown, LaTeX (booktabs), CSV or HTML. The same bytes for the same records: no date, no machine.

Markdown, LaTeX and HTML show one grid of (text, mark) cells; each only escapes and joins. CSV holds one line a row and
column with full precision, and one a difference, for a program to read. What this module does not do: decide what is
shown (`ttpa.results.tables.build`).
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ttpa.results.tables.build import Entry, Line, Table
from ttpa.results.tables.numbers import Estimate, Paired
from ttpa.results.tables.paired import Difference
from ttpa.results.tables.spec import TRUST, Column, Published

DASH = "-"


@dataclass(frozen=True, slots=True)
class Text:
    """A cell: its text, a raised mark, and whether it is the best of its column."""

    text: str
    mark: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the first column is aligned left, the others right."""

    head: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


# --- what is shown ---------------------------------------------------------------------------------------------------


def number(value: float, digits: int, sign: bool = False) -> str:
    """Fixed digits, with a true minus sign kept as ASCII. Example: number(0.5, 2, sign=True) -> "+0.50"."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "", 1) if float(text) == 0 and text.startswith("-") else text


def shown(entry: Entry, column: Column, line: Line, best: bool) -> Text:
    """Our number with its interval; where only some of the row's seeds measured it, how many."""
    if entry.estimate is None:
        return Text(DASH)
    found, digits = entry.estimate, column.digits
    text = number(found.value, digits)
    if found.low is not None and found.high is not None:
        text += f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    marks = ("*" if found.kind == "bootstrap" else "", f"n={found.n}" if found.n < len(line.found) else "")
    return Text(text, " ".join(filter(None, marks)), best)


def sources(table: Table) -> dict[tuple[str, str], int]:
    """(source, note) of the published numbers shown -> number of the footnote, in order of appearance."""
    found: dict[tuple[str, str], int] = {}
    for line in table.lines:
        for entry in line.entries:
            if entry.published is not None:
                found.setdefault((entry.published.source, entry.published.note), len(found) + 1)
    return found


def _best(table: Table, at: int) -> int | None:
    """Row number of the best mean of a column; None with fewer than two or a tie."""
    sign = 1 if table.columns[at].better == "high" else -1
    known = [(i, line.entries[at].estimate) for i, line in enumerate(table.lines)]
    values = sorted(((sign * one.value, i) for i, one in known if one is not None), reverse=True)
    return values[0][1] if len(values) > 1 and values[0][0] != values[1][0] else None


def _seeds(line: Line) -> Text:
    text = f"{len(line.found)}/{len(line.found) + len(line.missing)}"
    if line.missing:
        text += f", no {', '.join(map(str, line.missing))}"
    return Text(text)


def main_grid(table: Table) -> Grid:
    """Rows by columns, the paper's number and the difference to it beside ours."""
    notes = sources(table)
    head = ["", "seeds"]
    parts = [[Text(line.row.label, "†" if line.outdated else ""), _seeds(line)] for line in table.lines]
    for at, column in enumerate(table.columns):
        entries, best = [line.entries[at] for line in table.lines], _best(table, at)
        if column.path(table.preset.name) is None and all(entry.published is None for entry in entries):
            continue  # the notes name it
        head.append(column.label)
        for i, entry in enumerate(entries):
            parts[i].append(shown(entry, column, table.lines[i], i == best))
        if any(entry.published is not None for entry in entries):
            head.append(f"{column.label}, {(table.spec.paper or {}).get('name', 'published')}")
            for part, entry in zip(parts, entries, strict=True):
                part.append(_published(entry.published, column, notes))
        if any(entry.difference is not None for entry in entries):
            head.append("ours - theirs")
            for part, entry in zip(parts, entries, strict=True):
                gap = entry.difference
                part.append(Text("" if gap is None else number(gap, column.digits, sign=True)))
    if table.with_cost:
        head += ["seconds", "tokens"]
        for part, line in zip(parts, table.lines, strict=True):
            part.append(Text(DASH if line.seconds is None else f"{line.seconds:.0f}"))
            part.append(Text(DASH if line.tokens is None else f"{line.tokens:.0f}"))
    return Grid(tuple(head), tuple(map(tuple, parts)))


def _published(found: Published | None, column: Column, notes: Mapping[tuple[str, str], int]) -> Text:
    if found is None:
        return Text("")
    return Text(number(found.value, column.digits), f"{TRUST[found.trust]}{notes[found.source, found.note]}")


def difference_grid(table: Table) -> Grid:
    """The paired differences; no rows where there are none."""
    column = table.columns[0]
    labels = {line.row.key: line.row.label for line in table.lines}
    head = ("difference", "mean", "over the seeds", "p", "by", "verdict")
    return Grid(head, tuple(_difference(one, column, labels) for one in table.differences))


def _difference(one: Difference, column: Column, labels: Mapping[str, str]) -> tuple[Text, ...]:
    name = Text(f"{labels[one.ours]} - {labels[one.against]}")
    if one.paired is None:
        return name, Text(DASH), Text(DASH), Text(DASH), Text(""), Text(one.verdict)

    def interval(found: Paired | Estimate) -> str:
        text, *bounds = (number(part, column.digits, sign=True) for part in _scaled(found, column.scale))
        return f"{text} [{', '.join(bounds)}]" if bounds else text

    seeds = one.paired.seeds
    return (
        name,
        Text(interval(one.paired)),
        Text(interval(seeds) if seeds.n > 1 else DASH),
        Text(DASH if one.p_adjusted is None else _p(one.p_adjusted)),
        Text(_count(one.paired.samples, "sample") if one.method == "samples" else _count(seeds.n, "seed")),
        Text(one.verdict),
    )


def _scaled(found: Paired | Estimate, scale: float) -> list[float]:
    """Value, low and high in the unit shown; the value alone without an interval."""
    bounds = () if found.low is None or found.high is None else sorted((found.low * scale, found.high * scale))
    return [found.value * scale, *bounds]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _footnotes(table: Table) -> list[str]:
    return [f"{at}. {source}{f' ({note})' if note else ''}." for (source, note), at in sources(table).items()]


def _about(table: Table) -> list[str]:
    paper = table.spec.paper
    parts = [f"arXiv {text}" if key == "arxiv" else text for key, text in (paper or {}).items()]
    where = ", ".join(parts)
    preset = f"Preset {table.preset.name}." + (f" Paper: {where}." if where else "")
    return [f"Claim: {table.spec.claim}", preset]


# --- how it is written -----------------------------------------------------------------------------------------------


def _escape_markdown(text: str) -> str:
    for char in "\\|*_`<>[]":
        text = text.replace(char, f"\\{char}")
    return text


def markdown(table: Table) -> str:
    """GitHub's dialect."""

    def cell(one: Text) -> str:
        text = _escape_markdown(one.text).replace("\\[", "[").replace("\\]", "]")
        text = f"**{text}**" if one.best and text else text
        return f"{text}<sup>{_escape_markdown(one.mark)}</sup>" if one.mark else text

    def block(grid: Grid) -> list[str]:
        lines = ["| " + " | ".join(_escape_markdown(name) for name in grid.head) + " |"]
        lines.append("|---|" + "---:|" * (len(grid.head) - 1))
        return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in grid.rows]

    lines = [f"### {_escape_markdown(table.spec.title)}", ""]
    for text in _about(table):
        lines += [_escape_markdown(text), ""]
    lines += [*block(main_grid(table)), ""]
    if table.differences:
        lines += [*block(difference_grid(table)), ""]
    notes = [*table.notes, *_footnotes(table)]
    lines += [f"- {_escape_markdown(note)}" if not note[0].isdigit() else _escape_markdown(note) for note in notes]
    return "\n".join(lines).rstrip() + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "†": r"\dag{}", "\n": " ",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _after_break(text: str) -> str:
    """A text that may follow a line break, which would read a star or a bracket at its beginning as its own."""
    return f"{{}}{text}" if text.lstrip().startswith(("[", "*")) else text


WIDEST = 75
"""Characters of a row, with two between its columns, that fit the text width of LaTeX's article in its small font."""


def _is_wide(grid: Grid) -> bool:
    rows = [grid.head, *(tuple(one.text + one.mark for one in row) for row in grid.rows)]
    return sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) > WIDEST


def latex(table: Table) -> str:
    """A table environment for \\usepackage{booktabs}, scaled to the text's width if it is wider; the notes below."""

    def cell(one: Text) -> str:
        text = "--" if one.text == DASH else _escape_latex(one.text)
        text = rf"\textbf{{{text}}}" if one.best and text else text
        text = _after_break(text)
        return rf"{text}\textsuperscript{{{_escape_latex(one.mark)}}}" if one.mark else text

    def block(grid: Grid) -> list[str]:
        columns = "l" + "r" * (len(grid.head) - 1)
        head = " & ".join(_escape_latex(name) for name in grid.head)
        body = [" & ".join(map(cell, row)) + r" \\" for row in grid.rows]
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{head} \\", r"\midrule", *body, r"\bottomrule",
                 r"\end{tabular}"]  # fmt: skip
        if _is_wide(grid):
            lines[0] = r"\resizebox{\textwidth}{!}{" + lines[0]
            lines = ["% Wider than the text, so scaled down to it.", *lines[:-1], lines[-1] + "}"]
        return lines

    wide = any(map(_is_wide, [main_grid(table), *([difference_grid(table)] if table.differences else [])]))
    needs = r"\usepackage{booktabs}" + (r" and \usepackage{graphicx} (for \resizebox)" if wide else "")
    lines = [f"% Needs {needs}.", r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\caption{{{_escape_latex(table.spec.title)}}}", rf"\label{{tab:{table.spec.name}}}"]
    lines += block(main_grid(table))
    if table.differences:
        lines += ["", r"\medskip", *block(difference_grid(table))]
    lines += ["", r"\medskip", r"\raggedright\footnotesize"]
    lines += [_after_break(_escape_latex(note)) + r"\\" for note in [*_about(table), *table.notes, *_footnotes(table)]]
    lines[-1] = lines[-1].removesuffix(r"\\")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .75rem;text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid}div{overflow-x:auto}"
)


def page(table: Table) -> str:
    """One page that needs nothing else."""

    def cell(one: Text, first: bool) -> str:
        text = html.escape(one.text)
        text = f"<strong>{text}</strong>" if one.best and text else text
        text += f"<sup>{html.escape(one.mark)}</sup>" if one.mark else ""
        return f'<th scope="row">{text}</th>' if first else f"<td>{text}</td>"

    def block(grid: Grid, caption: str) -> list[str]:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in grid.head)
        body = ["<tr>" + "".join(cell(one, at == 0) for at, one in enumerate(row)) + "</tr>" for row in grid.rows]
        title = f"<caption>{html.escape(caption)}</caption>"
        return [f"<div><table>{title}<thead><tr>{head}</tr></thead><tbody>", *body, "</tbody></table></div>"]

    title = html.escape(table.spec.title)
    lines = ["<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8"/>']
    lines += ['<meta name="viewport" content="width=device-width, initial-scale=1"/>', f"<title>{title}</title>"]
    lines += [f"<style>{_STYLE}</style></head><body>", f"<h1>{title}</h1>"]
    lines += [f"<p>{html.escape(text)}</p>" for text in _about(table)]
    lines += block(main_grid(table), "Results")
    if table.differences:
        lines += block(difference_grid(table), "Paired differences")
    lines += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in (*table.notes, *_footnotes(table))), "</ul>"]
    return "\n".join([*lines, "</body></html>"]) + "\n"


CSV_HEAD = (
    "kind", "row", "label", "column", "value", "low", "high", "interval", "n", "seeds", "missing", "outdated",
    "published", "trust", "source", "to_published", "against", "p_adjusted",
    "over_seeds", "over_seeds_low", "over_seeds_high", "samples", "verdict",
)  # fmt: skip


def comma_separated(table: Table) -> str:
    """One line a row and column (`kind` cell), then one a paired difference (`kind` difference).

    Of a difference, `interval` says what `value`, `low`, `high` and `p_adjusted` are by (samples or seeds), `n` counts
    seeds and `samples` samples (empty by seeds); `over_seeds` and its bounds are of the seeds' own differences.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_HEAD, lineterminator="\n", restval="")
    writer.writeheader()
    for line in table.lines:
        same = {"kind": "cell", "row": line.row.key, "label": line.row.label, "outdated": line.outdated}
        same |= {"seeds": " ".join(map(str, line.found)), "missing": " ".join(map(str, line.missing))}
        for column, entry in zip(table.columns, line.entries, strict=True):
            row: dict[str, object] = {**same, "column": column.key}
            if entry.estimate is not None:
                found = entry.estimate
                row |= {"value": found.value, "low": _plain(found.low), "high": _plain(found.high)}
                row |= {"interval": found.kind, "n": found.n}
            if entry.published is not None:
                one = entry.published
                row |= {"published": one.value, "trust": one.trust, "source": one.source}
                row["to_published"] = _plain(entry.difference)
            writer.writerow(row)
        if table.with_cost:
            for name, value in (("seconds", line.seconds), ("tokens", line.tokens)):
                writer.writerow({**same, "column": name, "value": _plain(value)})
    scale = table.columns[0].scale
    for difference in table.differences:
        row = {"kind": "difference", "row": difference.ours, "against": difference.against}
        row |= {"column": table.columns[0].key, "interval": difference.method}
        row |= {"p_adjusted": _plain(difference.p_adjusted), "verdict": difference.verdict}
        if (paired := difference.paired) is not None:
            row |= zip(("value", "low", "high"), _scaled(paired, scale), strict=False)
            row |= {"n": paired.seeds.n, "samples": paired.samples or ""}
            if paired.seeds.n > 1:
                names = ("over_seeds", "over_seeds_low", "over_seeds_high")
                row |= zip(names, _scaled(paired.seeds, scale), strict=False)
        writer.writerow(row)
    return out.getvalue()


def _plain(value: float | None) -> object:
    return "" if value is None else value


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "html": page,
}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}
