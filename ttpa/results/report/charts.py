"""Draws intervals and lines with matplotlib and gives them as SVG that fits into the page.

A picture has no width of its own, its text is text in the page's font, and its colours are the page's variables, so
that dark mode needs no second picture. Colour is never alone: a policy has a mark, too, and its name beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from ttpa.results.report.page import middle, visible

COLOURS, MARKERS = 8, "os^Dv*"
POINTS = 160
"""Points of a line; longer ones are thinned out."""
VARIABLES = {f"#0a0b{number:02x}": name for number, name in enumerate(["ink", "soft", "edge", "rule"])}
VARIABLES |= {f"#0a0c{number:02x}": f"c{number + 1}" for number in range(COLOURS)}
"""Colours as matplotlib writes them -> variables of the style sheet that replace them."""
INK, SOFT, EDGE, RULE = list(VARIABLES)[:4]
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "ttpa", "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.color": EDGE, "ytick.color": EDGE, "axes.edgecolor": EDGE, "grid.color": RULE, "grid.alpha": 0.6, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "legend.frameon": False,
    "text.parse_math": False,  # a label with two dollars is no formula
}  # fmt: skip


def colour(arm: int) -> str:
    """The colour of a policy, the same in every picture and table."""
    return list(VARIABLES)[4 + arm % COLOURS]


def marker(arm: int) -> str:
    """The mark of a policy, which tells apart those that share a colour."""
    return MARKERS[arm // COLOURS % len(MARKERS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture. `width` is in CSS pixels: below it the words could not be read, so the picture's box scrolls."""

    title: str
    svg: str
    width: int
    kind: str = "chart"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval (None where nothing is known) and the single seeds behind it."""

    label: str
    arm: int
    value: float
    low: float | None = None
    high: float | None = None
    seeds: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line. `arms`: one policy, or that of each point, with the `ends` of its interval; `thin`: runs behind a mean."""

    label: str
    arms: Sequence[int]
    x: Sequence[float]
    y: Sequence[float]
    ends: Sequence[tuple[float, float]] = ()
    thin: Sequence[tuple[Sequence[float], Sequence[float]]] = ()


def intervals(name: str, title: str, rows: Sequence[Interval]) -> Chart:
    """Means with intervals in per cent, a row a policy from top to bottom. `name` is unique on the page."""
    with _drawing(3.7, 0.6 + 0.36 * len(rows)) as (figure, axes):
        for at, row in enumerate(rows):
            shade = colour(row.arm)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [at, at], color=shade, linewidth=2.4, solid_capstyle="butt")
            if len(row.seeds) > 1:
                axes.plot(row.seeds, [at + 0.22] * len(row.seeds), "|", color=shade, markersize=4)
            axes.plot([row.value], [at], marker(row.arm), color=shade, markersize=6.5)
            axes.text(0.01, at - 0.24, _name(row.label), transform=axes.get_yaxis_transform(), va="bottom")
        axes.set(xlabel="right answers, %", ylim=(len(rows) - 0.6, -0.8), yticks=[])
        axes.spines.left.set_visible(False)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, right - 4), max(right, left + 4))  # equal numbers are no picture of hundredths
        axes.grid(axis="x")
        return _chart(figure, name, title, ", ".join(f"{row.label} {row.value:.3g}" for row in rows))


def lines(name: str, title: str, series: Sequence[Line], x: str = "optimiser step", y: str = "") -> Chart:
    """Lines over a common axis. Where the points of a line are different policies each has its mark."""
    legend = len(series) > 1
    with _drawing(3.3, 1.9 + 0.2 * len(series) * legend) as (figure, axes):
        for number, line in enumerate(series):
            shade = EDGE if len(line.arms) > 1 else colour(line.arms[0])
            for xs, ys in line.thin:
                axes.plot(*_thinned(xs, ys), color=shade, alpha=0.4, linewidth=0.8)
            style = ("-", "--", ":", "-.")[number % 4]
            axes.plot(*_thinned(line.x, line.y), style, color=shade, linewidth=1.7, label=_name(line.label))
            for at, arm in enumerate(line.arms if len(line.arms) > 1 else ()):
                axes.plot([line.x[at]] * 2, line.ends[at], color=colour(arm), linewidth=1.5)
                axes.plot([line.x[at]], [line.y[at]], marker(arm), color=colour(arm), markersize=5)
        axes.set(xlabel=x, ylabel=y)
        axes.grid()
        axes.locator_params(nbins=5)
        if legend:
            figure.legend(loc="outside lower left")
        ends = ", ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in series)
        return _chart(figure, name, title, ends)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure (in inches) and its axes, in the style of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _name(label: str) -> str:
    return middle(visible(label).replace("\n", " "), 44)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Every k-th point, and the last."""
    step = -(-len(x) // POINTS) or 1
    keep = sorted({*range(0, len(x), step), len(x) - 1} if len(x) else ())
    return [x[k] for k in keep], [y[k] for k in keep]


def _chart(figure: Any, name: str, title: str, said: str) -> Chart:
    """The figure as an element of the page; see the module. `said` tells what is seen to who does not see it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    view = svg.partition('viewBox="')[2].partition('"')[0]
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), svg)
    head = f'<svg viewBox="{view}" role="img" aria-labelledby="{name}"><title id="{name}">{escape(visible(f"{title}: {said}"))}'
    # At this width the figure's words, 9 points high, are as small as they may be: 11 pixels.
    return Chart(title=title, svg=f"{head}</title>{svg.strip()}", width=round(11 / 9 * 72 * figure.get_figwidth()))


def _tag(tag: str, name: str) -> str:
    """An element of the picture as the page needs it; text between elements is never touched."""
    # Ids count from one in every picture, and a page must not hold one twice.
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"#0a0[bc]\d\d", lambda found: f"var(--{VARIABLES[found[0]]})", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)
