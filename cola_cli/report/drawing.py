"""Charts as an SVG file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

from cola_cli.report.charts import CHARACTER, COLOURS, Chart, drawable, marker, svg
from cola_cli.report.markup import Markup, element

MARK = "<svg"  # with which a chart begins
MARGIN = 20  # around all charts
# Rules that a file of its own needs beyond the page's style sheet.
FILE_STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg .page { fill: var(--page); } svg .title { font-size: 14px; font-weight: 600; }
svg text.legend { font-size: 12.5px; fill: var(--ink); }
"""


def drawing(charts: Sequence[Chart], columns: int = 2) -> str:
    """Charts side by side as one SVG file that stands alone; a chart without points is left out."""
    style = (resources.files("cola_cli.report") / "style.css").read_text("utf-8") + FILE_STYLE
    made = [
        replace(one, series=[s for s in map(drawable(one), one.series) if s.points])
        for one in charts
    ]
    made = [one for one in made if one.series]
    width, height, head = 420, 270, 64  # of one chart, and of its title, note and legend
    across = min(columns, max(1, len(made)))
    down = -(-len(made) // across)
    panels = []
    for index, chart in enumerate(made):
        x, y = index % across * (width + 24), index // across * (height + head)
        panels.append(
            element(
                "g",
                element("text", chart.title, x=0, y=16, class_="title"),
                element("text", chart.note, x=0, y=32, class_="tick") if chart.note else None,
                _legend(chart),
                element(
                    "g",
                    svg(chart, width, height - 24, None, height - 24),
                    transform=f"translate(0 {head})",
                ),
                transform=f"translate({x} {y})",
            )
        )
    size = across * (width + 24) - 24 + 2 * MARGIN, down * (height + head) + 2 * MARGIN
    return str(
        element(
            "svg",
            element("style", Markup(style)),
            element("rect", x=0, y=0, width=size[0], height=size[1], class_="page"),
            element("g", panels, transform=f"translate({MARGIN} {MARGIN})"),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {size[0]} {size[1]}",
            width=size[0],
            height=size[1],
        )
    )


def _legend(chart: Chart) -> Markup | None:
    names = {series.name: series.colour for series in chart.series}
    if len(names) < 2:
        return None
    entries, x = [], 0.0
    for name, colour in names.items():
        place = element("g", marker(colour, 6, 0), class_=f"series c{colour % COLOURS}")
        said = element("text", name, x=16, y=4, class_="legend")
        entries.append(element("g", place, said, transform=f"translate({x:.0f} 48)"))
        x += 34 + len(name) * CHARACTER
    return element("g", entries)
