"""The scaling plot: figures against training compute, a chart a metric, with fitted curves."""

from __future__ import annotations

import math

from cola_cli.evaluation.report.charts import Axis, Chart, Series, figure
from cola_cli.evaluation.report.markup import Markup, element
from cola_cli.evaluation.report.measurements import Fit, Point, Scaling
from cola_cli.evaluation.report.quantities import MINUS, number

FIT_POINTS = 60


def scaling_plots(scalings: dict[str, Scaling]) -> list[Markup]:
    """A large log-log chart for every metric of every file; empty when there are no points."""
    blocks = []
    for label, scaling in scalings.items():
        metrics = dict.fromkeys(point.metric for point in scaling.points)
        for metric in metrics:
            drawn = _plot(metric, scaling, label if len(scalings) > 1 else "")
            if drawn is not None:
                blocks.append(drawn)
    return blocks


def _plot(metric: str, scaling: Scaling, label: str) -> Markup | None:
    points = [point for point in scaling.points if point.metric == metric]
    fits = [fit for fit in scaling.fits if fit.metric == metric]
    families = list(dict.fromkeys(point.family for point in points))
    series: list[Series] = []
    formulas: list[str] = []
    for colour, family in enumerate(families):
        mine = sorted((p for p in points if p.family == family), key=lambda p: p.flops)
        for fit in fits:
            if fit.family != family:
                continue
            curve = fitted(fit, mine[0].flops, mine[-1].flops)
            if curve:
                series.append(Series(family, curve, colour, faint=True, marked=False))
            if formula := _formula(fit):
                formulas.append(f"{family}: {formula}")
        fitted_here = any(one.name == family for one in series)
        series.append(
            Series(
                family,
                [(p.flops, p.value) for p in mine],
                colour,
                joined=not fitted_here,
                intervals=[_interval(p) for p in mine],
            )
        )
    left_out = sum(point.value <= 0 for point in points)
    notes = ["Bars: the interval given with a point."] if any(map(_interval, points)) else []
    notes += ["Thin: fit."] if formulas or any(one.faint for one in series) else []
    if left_out:
        values = f"{left_out} values that are not positive have"
        if left_out == 1:
            values = "1 value that is not positive has"
        notes.append(f"{values} no place on a logarithmic axis.")
    drawn = figure(
        Chart(
            f"{metric} ({label})" if label else metric,
            " ".join(notes),
            Axis("training compute, FLOPs, logarithmic", log=True),
            Axis(f"{metric}, logarithmic", log=True),
            series,
        ),
        large=True,
    )
    if drawn is None or not formulas:
        return drawn
    return element(
        "div", drawn, element("p", "; ".join(formulas), class_="note formulas"), class_="block"
    )


def fitted(fit: Fit, low: float, high: float) -> list[tuple[float, float]]:
    """Points of a fitted curve from `low` to `high` FLOPs; none when the fit says neither way."""
    if fit.curve:
        return sorted(fit.curve)
    if fit.coefficient is None or fit.exponent is None or high <= low:
        return []
    ratio = math.log(high / low) / (FIT_POINTS - 1)
    flops = [low * math.exp(ratio * place) for place in range(FIT_POINTS)]
    try:
        return [(x, fit.offset + fit.coefficient * x**fit.exponent) for x in flops]
    except OverflowError:
        return []


def _formula(fit: Fit) -> str:
    if fit.coefficient is None or fit.exponent is None:
        return ""
    offset = f"{number(fit.offset)} + " if fit.offset else ""
    exponent = f"{fit.exponent:.3g}".replace("-", MINUS)
    return f"{offset}{number(fit.coefficient)} × FLOPs^{exponent}"


def _interval(point: Point) -> tuple[float, float] | None:
    if point.low is None and point.high is None:
        return None
    low = point.value if point.low is None else point.low
    return low, point.value if point.high is None else point.high
