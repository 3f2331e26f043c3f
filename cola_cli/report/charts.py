"""Line charts as inline SVG: linear or logarithmic axes, markers, intervals, reference lines, a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cola_cli.report.markup import Markup, element, joined, shortened, table
from cola_cli.report.quantities import linear_ticks, log_ticks, number, percent, tick_labels

COLOURS = 6  # of the palette in style.css; later series repeat them with dashes
MOST_POINTS = 700  # drawn of one series
MOST_ROWS = 24  # of the table of numbers
MOST_MARKERS = 60
FONT = 11.5
CHARACTER = 6.4  # width of one at that size, pixels
ROW = 18  # of a legend, pixels

Pair = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis; `low` and `high` bound it where the data should not."""

    label: str
    log: bool = False
    percent: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one thing in the order of x. `faint` lines are without markers, `joined` draws the line.

    intervals: (low, high) of y for every point, or nothing.
    """

    name: str
    points: list[Pair]
    colour: int = 0
    faint: bool = False
    dashed: bool = False
    joined: bool = True
    marked: bool = True
    intervals: list[Pair | None] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """A level to hold the curves against."""

    name: str
    value: float
    colour: int | None = None  # neutral if None


@dataclass(frozen=True)
class Chart:
    """A chart; it is drawn only if it has points."""

    title: str
    note: str
    x: Axis
    y: Axis
    series: list[Series]
    references: list[Reference] = field(default_factory=list)


def framed(chart: Chart, large: bool = False) -> Markup | None:
    """The chart as an element of the page, its numbers below as a table; None when there is no data.

    A large one is drawn twice, for a wide page and for a phone; style.css shows one of them.
    """
    chart = drawable(chart)
    if not chart.series:
        return None
    if large:
        drawings = [svg(chart, 720, 330, class_="wide"), svg(chart, 350, 260, class_="narrow")]
    else:
        drawings = [svg(chart, 350, 230)]
    return element(
        "figure",
        element(
            "figcaption",
            element("h4", chart.title),
            element("p", chart.note, class_="note") if chart.note else None,
        ),
        drawings,
        _numbers(chart),
        class_="chart large" if large else "chart",
    )


def grid(charts: Sequence[Markup | None]) -> Markup | None:
    """Charts side by side as the page has room; None without any."""
    present = [one for one in charts if one is not None]
    return element("div", present, class_="charts") if present else None


def drawable(chart: Chart) -> Chart:
    """The chart without what an axis cannot hold, thinned out where nobody could see all of it."""

    def fits(point: Pair) -> bool:
        x, y = point
        finite = math.isfinite(x) and math.isfinite(y)
        return finite and (x > 0 or not chart.x.log) and (y > 0 or not chart.y.log)

    def kept_of(series: Series) -> Series:
        kept = [index for index, point in enumerate(series.points) if fits(point)]
        if len(kept) > MOST_POINTS:
            kept = _spread(kept, MOST_POINTS)
        return replace(
            series,
            points=[series.points[index] for index in kept],
            intervals=[series.intervals[index] for index in kept] if series.intervals else [],
        )

    return replace(chart, series=[one for one in map(kept_of, chart.series) if one.points])


def _spread(items: list[int], wanted: int) -> list[int]:
    """`wanted` of the items at even distances, first and last among them."""
    last = len(items) - 1
    return [items[round(place * last / (wanted - 1))] for place in range(wanted)]


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def svg(
    chart: Chart, width: int, height: int, class_: str | None = None, fixed: bool = False
) -> Markup:
    """A chart with points; its legend adds to `height`. `fixed`: with a size of its own."""
    legend, head = _legend(chart, width)
    height += head
    xs = [x for series in chart.series for x, _ in series.points]
    ys = [y for series in chart.series for _, y in series.points]
    ys += [reference.value for reference in chart.references]
    ys += [bound for s in chart.series for pair in s.intervals if pair for bound in pair]
    if chart.y.log:
        ys = [y for y in ys if y > 0]
    x_low, x_high = _bounds(xs, chart.x, 0.0)
    y_low, y_high = _bounds(ys, chart.y, 0.06)
    y_ticks, y_labels = _ticks(chart.y, y_low, y_high, 5)
    x_ticks, x_labels = _ticks(chart.x, x_low, x_high, 8 if width > 500 else 4)
    left = 12 + max((len(label) for label in y_labels), default=1) * CHARACTER
    right, top, bottom = 14, 26 + head, 42
    across = _Scale(x_low, x_high, left, width - right, chart.x.log)
    up = _Scale(y_low, y_high, height - bottom, top, chart.y.log)
    frame = [
        element("text", chart.y.label, x=0, y=12 + head, class_="axis"),
        element("text", chart.x.label, x=width - right, y=height - 6, class_="axis end"),
        [
            [
                element("line", x1=left, x2=width - right, y1=up(y), y2=up(y), class_="gridline"),
                element("text", label, x=left - 7, y=up(y) + 4, class_="tick end"),
            ]
            for y, label in zip(y_ticks, y_labels, strict=True)
        ],
        [
            [
                element(
                    "line", x1=across(x), x2=across(x), y1=height - bottom, y2=height - bottom + 4,
                    class_="tickmark",
                ),
                element("text", label, x=across(x), y=height - bottom + 17, class_="tick middle"),
            ]
            for x, label in zip(x_ticks, x_labels, strict=True)
        ],
        element(
            "line", x1=left, x2=width - right, y1=height - bottom, y2=height - bottom,
            class_="baseline",
        ),
    ]  # fmt: skip
    return element(
        "svg",
        frame,
        _references(chart.references, up, left, width - right),
        # faint lines first, so that they lie below
        [_series(s, across, up, chart) for s in sorted(chart.series, key=lambda s: not s.faint)],
        legend,
        viewBox=f"0 0 {width} {height}",
        width=width if fixed else None,
        height=height if fixed else None,
        class_=class_,
        role="img",
        aria_label=f"{chart.title}: {chart.y.label} against {chart.x.label}",
    )


def _ticks(axis: Axis, low: float, high: float, wanted: int) -> tuple[list[float], list[str]]:
    """About `wanted` ticks of an axis, and their labels."""
    ticks = (log_ticks if axis.log else linear_ticks)(low, high, wanted)
    return ticks, tick_labels(ticks, axis.percent, axis.log)


def _bounds(values: list[float], axis: Axis, margin: float) -> Pair:
    """The ends of an axis: those of the data with a margin, never equal."""
    low, high = min(values), max(values)
    if axis.log:
        if high < low * 1.5:
            low, high = low / 1.25, high * 1.25
        spread = (high / low) ** (margin or 0.02)
        return low / spread, high * spread
    if high - low < 1e-9 * max(1.0, abs(high)):
        around = 0.1 * abs(high) or 1.0
        low, high = low - around, high + around
    room = (high - low) * margin
    if margin and low >= 0 and low < 0.35 * high:
        low = room = 0.0  # close enough to zero to show it
    low_end = low - room if axis.low is None else axis.low
    high_end = high + (high - low) * margin if axis.high is None else axis.high
    return low_end, high_end


def _references(
    references: Sequence[Reference], up: _Scale, left: float, right: float
) -> list[Markup]:
    """Dotted levels, each named at the right; names of levels too close to tell apart share a line."""
    drawn: list[Markup] = []
    named: list[tuple[float, list[str]]] = []
    for reference in sorted(references, key=lambda one: one.value):
        y = up(reference.value)
        tone = "" if reference.colour is None else f" c{reference.colour % COLOURS}"
        drawn.append(element("line", x1=left, x2=right, y1=y, y2=y, class_=f"reference{tone}"))
        if named and named[-1][0] - y < FONT + 2:
            names = list(dict.fromkeys([*named[-1][1], reference.name]))
            named[-1] = (y, names)
        else:
            named.append((y, [reference.name]))
    return drawn + [
        element("text", " · ".join(names), x=right, y=y - 4, class_="tick end halo")
        for y, names in named
    ]


def _series(series: Series, across: _Scale, up: _Scale, chart: Chart) -> Markup:
    places = [(across(x), up(y)) for x, y in series.points]
    pieces: list[Markup | None] = []
    if series.joined and len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = "6 4" if series.dashed or series.colour >= COLOURS else None
        pieces.append(element("polyline", points=line, stroke_dasharray=dashes))
    for (x, _), pair in zip(places, series.intervals, strict=False):
        if pair is not None:
            low, high = (up(max(bound, up.low)) for bound in pair)
            pieces.append(element("line", x1=x, x2=x, y1=low, y2=high, class_="interval"))
    if series.marked and not series.faint:
        every = range(len(places))
        chosen = every if len(every) <= MOST_MARKERS else _spread(list(every), MOST_MARKERS)
        pieces += [
            element(
                "g",
                element("title", _said(series, index, chart)),
                marker(series.colour, *places[index]),
            )
            for index in chosen
        ]
    faint = " faint" if series.faint else ""
    return element("g", pieces, class_=f"series c{series.colour % COLOURS}{faint}")


def _said(series: Series, index: int, chart: Chart) -> str:
    x, y = series.points[index]
    pair = series.intervals[index] if series.intervals else None
    between = f" ({_value(pair[0], chart.y)} to {_value(pair[1], chart.y)})" if pair else ""
    return f"{series.name}: {_value(y, chart.y)}{between} at {chart.x.label} {_value(x, chart.x)}"


def _value(value: float, axis: Axis) -> str:
    return percent(value) if axis.percent else number(value, 6 if value == round(value) else 4)


def marker(colour: int, x: float, y: float, radius: float = 3.2) -> Markup:
    """The mark of a colour: each has its own shape, so that colour alone never tells."""
    r = radius
    corners = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -1.35 * r), (1.25 * r, r), (-1.25 * r, r)],
        3: [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
        4: [(-1.25 * r, -r), (1.25 * r, -r), (0, 1.35 * r)],
        5: [(-1.5 * r, -0.6 * r), (1.5 * r, -0.6 * r), (1.5 * r, 0.6 * r), (-1.5 * r, 0.6 * r)],
    }.get(colour % COLOURS)
    if corners is None:
        return element("circle", cx=x, cy=y, r=r, class_="mark")
    path = "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"
    return element("path", d=path, class_="mark")


def swatch(colour: int) -> Markup:
    """The line and mark of a colour, for headings and tables."""
    return element("svg", _sample(colour), viewBox="0 0 24 14", class_="swatch", aria_hidden="true")


def _sample(colour: int) -> Markup:
    """The line and mark of a colour, 24 by 14 pixels."""
    dashes = "6 4" if colour >= COLOURS else None
    line = element("polyline", points="1,7 23,7", stroke_dasharray=dashes)
    return element("g", line, marker(colour, 12, 7), class_=f"series c{colour % COLOURS}")


def _legend(chart: Chart, width: int) -> tuple[Markup | None, int]:
    """The names of the series behind their colours, in rows, and the height of these in pixels."""
    names = {series.name: series.colour for series in chart.series}
    if len(names) < 2:
        return None, 0  # the heading says what it is
    entries, x, y = [], 0.0, 0
    for name, colour in names.items():
        shown = shortened(name, int((width - 30) / CHARACTER))
        needed = 44 + len(shown) * CHARACTER
        if x and x + needed > width:
            x, y = 0.0, y + ROW
        text = element("text", shown, x=30, y=11)
        entries.append(element("g", _sample(colour), text, transform=f"translate({x:.0f} {y})"))
        x += needed
    return element("g", entries, class_="legend"), y + ROW + 6


def legend_height(chart: Chart, width: int) -> int:
    """What the legend of a chart that wide adds to its height, in pixels."""
    return _legend(chart, width)[1]


def _numbers(chart: Chart) -> Markup:
    """The numbers of the chart as a table, thinned out but with the last."""
    columns = [(_heading(series, chart), dict(series.points)) for series in chart.series]
    strong = [dict(s.points) for s in chart.series if not s.faint] or [c for _, c in columns]
    xs = sorted({x for column in strong for x in column})
    shown = xs if len(xs) <= MOST_ROWS else [xs[i] for i in _spread([*range(len(xs))], MOST_ROWS)]
    rows = [
        [
            _value(x, chart.x),
            *(_value(column[x], chart.y) if x in column else None for _, column in columns),
        ]
        for x in shown
    ]
    left_out = f"{len(shown)} of {len(xs)} rows" if len(shown) < len(xs) else None
    return element(
        "details",
        element("summary", "Numbers"),
        table([chart.x.label, *(heading for heading, _ in columns)], rows),
        element("p", left_out, class_="note") if left_out else None,
    )


def _heading(series: Series, chart: Chart) -> Markup:
    twins = [other for other in chart.series if other.name == series.name]
    if len(twins) < 2:
        return joined([series.name])
    which = ", training" if series.faint else ", dashed" if series.dashed else ""
    return joined([series.name, which])
