"""Draws lines, bars and heat maps with matplotlib and gives them as SVG that fits into the page.

What leaves this module has no width of its own, text as text in the page's font, colours as the page's variables (so
that dark mode needs no second picture), ids of its own, and its numbers as a table. Colour is never alone: lines
differ in dashes, bars stand beside their names, cells hold their numbers. No file is read or written.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ttpa.results.report.blocks import Cell, Chart, Grid, dash, middle, visible
from ttpa.results.report.palette import HEAT, LIGHT, SERIES, contrast

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "osD^vPX*"
POINTS = 160
"""Points of a line; longer ones are thinned out for the picture."""
ROWS = 40
"""Rows of the table under a chart of lines."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ttpa",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "xtick.color": LIGHT["edge"],
    "ytick.color": LIGHT["edge"],
    "axes.edgecolor": LIGHT["edge"],
    "grid.color": LIGHT["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "path.simplify": True,
    "text.parse_math": False,  # a label with two dollars is no formula
}


VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a chart. `thin` are the single runs behind a mean; `low` and `high` an interval at each point."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    thin: Sequence[tuple[Sequence[float], Sequence[float]]] = field(default_factory=tuple)
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A set of bars, one a label of the chart, None where there is none; `low` and `high` ends of whiskers."""

    label: str
    values: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


def _name(label: str) -> str:
    """A label as it is drawn."""
    return middle(visible(label).replace("\n", " "), 36)


def _colour(number: int) -> str:
    return LIGHT[f"c{number % SERIES + 1}"]


def lines(
    name: str,
    title: str,
    description: str,
    series: Sequence[Line],
    *,
    x: str,
    y: str,
    marks: bool = False,
    note: str = "",
    every: Sequence[Line] = (),
) -> Chart:
    """Lines over a common axis.

    Args:
        name: Unique on the page; letters, digits and `-`.
        title, description: What is seen, for all; what there is to see in it, for who does not see it.
        series: The lines.
        x, y: Names of the axes.
        marks: Whether points are marked, for few of them.
        note: What must be known to read it, for all.
        every: The lines of the table of numbers, where it holds more than the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.6 + 0.17 * _legend_rows(series)), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(series):
            colour, style = _colour(number), DASHES[number // 2 % len(DASHES)] if len(series) > 2 else "-"
            for xs, ys in line.thin:
                axes.plot(*_thinned(xs, ys), color=colour, alpha=0.35, linewidth=0.8)
            marker = MARKERS[number % len(MARKERS)] if marks or len(line.x) < 6 else None
            look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8, "marker": marker}
            axes.plot(*_thinned(line.x, line.y), label=_name(line.label), **look)
            if line.low is not None and line.high is not None:
                for at, value, low, high in zip(line.x, line.y, line.low, line.high, strict=True):
                    if low is not None and high is not None:
                        axes.errorbar([at], [value], [[max(0, value - low)], [max(0, high - value)]], color=colour)
        axes.set(xlabel=x, ylabel=y)
        if min((value for line in series for value in line.y), default=1.0) == 0:
            axes.set_ylim(bottom=0)  # what is never below nothing has no room there
        axes.grid(alpha=0.6, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=not marks))
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=_legend_columns(series))
        svg = _svg(figure, name, title, description)
    data = _points(every or series, x, y)
    return Chart(title=title, description=description, svg=svg, width=_width(figure), data=data, note=note)


def _legend_columns(series: Sequence[Line]) -> int:
    longest = max(len(_name(line.label)) for line in series)
    return max(1, min(4, len(series), 52 // (longest + 6)))


def _legend_rows(series: Sequence[Line]) -> int:
    return -(-len(series) // _legend_columns(series)) if len(series) > 1 else 0


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Every k-th point, and the last."""
    step = -(-len(x) // POINTS) or 1
    keep = sorted({*range(0, len(x), step), len(x) - 1} if len(x) else ())
    return [x[k] for k in keep], [y[k] for k in keep]


def _points(series: Sequence[Line], x: str, y: str) -> Grid:
    """Where lines were drawn, as numbers; of long ones some."""
    places = sorted({at for line in series for at in line.x})
    step = -(-len(places) // ROWS) or 1
    known = [dict(zip(line.x, line.y, strict=True)) for line in series]
    rows = [
        [Cell(f"{at:g}", at), *(_number(found.get(at)) for found in known)]
        for k, at in enumerate(places)
        if k % step == 0 or k == len(places) - 1
    ]
    part = f", {len(rows)} of {len(places)} points" if len(rows) < len(places) else ""
    return Grid(caption=f"{y} by {x}{part}", columns=[x, *(line.label for line in series)], rows=rows)


def _number(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:.4g}", value)


def bars(
    name: str,
    title: str,
    description: str,
    labels: Sequence[str],
    series: Sequence[Bars],
    *,
    x: str,
    note: str = "",
    every: Sequence[Bars] = (),
) -> Chart:
    """Groups of horizontal bars, one a label, with whiskers; see `lines` for the arguments."""
    with matplotlib.rc_context(STYLE):
        size = max(0.16, 0.55 / max(1, len(series)))
        figure = Figure(figsize=(4.4, 0.9 + len(labels) * (size * len(series) + 0.16)), layout="constrained")
        axes = figure.add_subplot()
        pitch = 1 / (len(series) + 1)
        for number, one in enumerate(series):
            places = [k + (number + 0.5) * pitch for k, value in enumerate(one.values) if value is not None]
            values = [value for value in one.values if value is not None]
            axes.barh(places, values, height=0.86 * pitch, color=_colour(number), label=_name(one.label))
            for k, (value, low, high) in enumerate(zip(one.values, one.low, one.high, strict=True)):
                if value is not None and low is not None and high is not None:
                    reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
                    axes.errorbar([value], [k + (number + 0.5) * pitch], xerr=reach, color=LIGHT["ink"], linewidth=0.9)
        axes.set_yticks([k + len(series) * pitch / 2 for k in range(len(labels))], [_name(one) for one in labels])
        axes.set(xlabel=x, ylim=(len(labels) - pitch / 2, -pitch / 2))
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.6, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(series) > 1:
            longest = max(len(_name(one.label)) for one in series)
            figure.legend(loc="outside lower center", ncols=max(1, min(4, 52 // (longest + 6))))
        svg = _svg(figure, name, title, description)
    rows = [[Cell(label), *(dash(one.values[k]) for one in every or series)] for k, label in enumerate(labels)]
    data = Grid(caption=title, columns=["", *(one.label for one in every or series)], rows=rows)
    return Chart(title=title, description=description, svg=svg, width=_width(figure), data=data, note=note)


def heat(
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    digits: Sequence[int] = (),
    marked: Sequence[Sequence[bool]] = (),
    note: str = "",
) -> Chart:
    """A table as colours, each cell with its number; None is a hole. With `digits`, one a column, each column has a
    scale of its own. Cells that are `marked` have a star. See `lines` for the other arguments.
    """
    stars = [["*" * flag for flag in row] for row in marked] or [[""] * len(columns) for _ in rows]
    places = list(digits) or [3] * len(columns)
    scale = LinearSegmentedColormap.from_list("heat", HEAT)
    columns_of = list(zip(*values, strict=True))
    known = [[v for column in ([own] if digits else columns_of) for v in column if v is not None] for own in columns_of]
    ends = [(min(one, default=0.0), max(one, default=0.0)) for one in known]
    longest, widest = (max(len(_name(one)) for one in names) for names in (rows, columns))
    tilted = widest > 9  # such names stand aslant above their columns, and the last one reaches beyond the map
    wide = 0.3 + 0.075 * longest + 0.72 * len(columns) + (0.06 * widest if tilted else 0.0)
    high = 0.5 + 0.36 * len(rows) + (0.055 * widest if tilted else 0.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(wide, high), layout="constrained")
        axes = figure.add_subplot()
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value is None:
                    axes.add_patch(_cell(j, i, "none", hatch="////"))
                    axes.text(j, i, "-", ha="center", va="center")
                    continue
                low, high = ends[j]
                colour = matplotlib.colors.to_hex(scale((value - low) / ((high - low) or 1.0)))
                ink = max(("#000000", "#fefefe"), key=lambda one: contrast(one, colour))
                axes.add_patch(_cell(j, i, colour))
                axes.text(j, i, f"{value:.{places[j]}f}{stars[i][j]}", ha="center", va="center", color=_kept(ink))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), [_name(one) for one in columns])
        axes.set_yticks(range(len(rows)), [_name(one) for one in rows])
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        if tilted:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="left", va="bottom", rotation_mode="anchor")
        for spine in axes.spines.values():
            spine.set_visible(False)
        svg = _svg(figure, name, title, description)
    cells = [
        [Cell(row), *(_starred(*each) for each in zip(found, places, more, strict=True))]
        for row, found, more in zip(rows, values, stars, strict=True)
    ]
    data = Grid(caption=title, columns=["", *columns], rows=cells)
    return Chart(title=title, description=description, svg=svg, width=_width(figure), data=data, note=note)


def _starred(value: float | None, digits: int, star: str) -> Cell:
    return dash(value, digits) if value is None else Cell(f"{value:.{digits}f}{star}", value)


def fewer(seeds: Sequence[Sequence[int | None]]) -> tuple[list[list[bool]], str]:
    """Which cells of a heat map stand for fewer seeds than others, and what is said of them.

    Example:
        >>> fewer([[3, 1], [None, 3]])
        ([[False, True], [False, False]], ' * fewer than the 3 seeds of other cells.')
    """
    most = max((one for row in seeds for one in row if one is not None), default=0)
    marked = [[one is not None and one < most for one in row] for row in seeds]
    return marked, f" * fewer than the {most} seeds of other cells." if any(map(any, marked)) else ""


def _cell(column: int, row: int, colour: str, hatch: str | None = None) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=LIGHT["rule"], linewidth=0.8, hatch=hatch
    )


def _kept(ink: str) -> str:
    """Black as a colour that matplotlib writes down: it leaves out the default."""
    return "#010101" if ink == "#000000" else ink


def _width(figure: Figure) -> int:
    """CSS pixels at which the figure's words are as small as they may be: 11."""
    return round(11 / STYLE["font.size"] * 72 * figure.get_figwidth())


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an element of the page; see the module."""
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None, "matplotlib writes a viewBox"
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), svg)
    head = (
        f'<svg viewBox="{view[1]}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(visible(title))}</title>'
        f'<desc id="{name}-desc">{escape(visible(description))}</desc>'
    )
    return re.sub(r"\n\s*", "\n", head + svg).strip()


def _tag(tag: str, name: str) -> str:
    """An element of the picture as the page needs it; text between elements is never touched."""
    # Ids count from one in every picture, and a page must not hold one twice.
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)
