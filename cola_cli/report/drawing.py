"""Charts as an SVG file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cola_cli.report.charts import Chart, drawable, legend_height, svg
from cola_cli.report.markup import Markup, element

MARK = "<svg"  # with which a chart begins
MARGIN = 20  # around all charts
COLUMNS, GAP = 2, 24  # charts side by side, and between two
WIDTH, HEIGHT, HEAD = 420, 246, 40  # of one chart without its legend, and of its title and note
# Rules that a file of its own needs beyond the page's style sheet.
FILE_STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg .page { fill: var(--page); } svg .title { font-size: 14px; font-weight: 600; }
"""


def drawing(charts: Sequence[Chart]) -> str:
    """Charts side by side as one SVG file that stands alone; a chart without points is left out."""
    style = (Path(__file__).parent / "style.css").read_text("utf-8") + FILE_STYLE
    made = [one for one in map(drawable, charts) if one.series]
    across = min(COLUMNS, max(1, len(made)))
    row = HEAD + HEIGHT + GAP + max((legend_height(one, WIDTH) for one in made), default=0)
    panels = []
    for index, chart in enumerate(made):
        x, y = index % across * (WIDTH + GAP), index // across * row
        panels.append(
            element(
                "g",
                element("text", chart.title, x=0, y=16, class_="title"),
                element("text", chart.note, x=0, y=32, class_="tick") if chart.note else None,
                element(
                    "g", svg(chart, WIDTH, HEIGHT, fixed=True), transform=f"translate(0 {HEAD})"
                ),
                transform=f"translate({x} {y})",
            )
        )
    width = across * (WIDTH + GAP) - GAP + 2 * MARGIN
    height = -(-len(made) // across) * row + 2 * MARGIN
    return str(
        element(
            "svg",
            element("style", Markup(style)),
            element("rect", x=0, y=0, width=width, height=height, class_="page"),
            element("g", panels, transform=f"translate({MARGIN} {MARGIN})"),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
        )
    )
