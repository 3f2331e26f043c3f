"""The scaling plot: metrics against training compute, a chart a metric, with fitted curves."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cola_cli.report.charts import Axis, Chart, Reference, Series, framed
from cola_cli.report.drawing import drawing
from cola_cli.report.markup import Markup, element
from cola_cli.report.quantities import MINUS, number
from cola_cli.studies.measurements import Curves, Fit, Measurement

FIT_POINTS = 60
OWN_LOSS = "validation_"  # metrics of a trained model itself; each family has another


def scaling_plots(scalings: dict[str, Curves]) -> list[Markup]:
    """A large log-log chart for every metric of every file; empty when there are no points."""
    drawn = (_plot(*labelled) for labelled in _each_metric(scalings))
    return [one for one in drawn if one is not None]


def _each_metric(scalings: dict[str, Curves]) -> Iterator[tuple[str, Curves, str]]:
    """(metric, curves, label): the label tells studies apart where there are several."""
    for label, scaling in scalings.items():
        for metric in dict.fromkeys(point.metric for point in scaling.points):
            yield metric, scaling, label if len(scalings) > 1 else ""


def _plot(metric: str, scaling: Curves, label: str) -> Markup | None:
    drawn = framed(scaling_chart(metric, scaling, label), large=True)
    formulas = [f"{one.family}: {_formula(one)}" for one in scaling.fits if one.metric == metric]
    if drawn is None or not formulas:
        return drawn
    written = element("p", "; ".join(formulas), class_="note formulas")
    return element("div", drawn, written, class_="block")


def scaling_chart(metric: str, scaling: Curves, label: str = "") -> Chart:
    """One metric of a study: a curve a family, its intervals and its fit."""
    log = metric not in scaling.linear
    points = [point for point in scaling.points if point.metric == metric]
    fits = [fit for fit in scaling.fits if fit.metric == metric]
    families = list(dict.fromkeys(point.family for point in scaling.points))
    series: list[Series] = []
    for colour, family in enumerate(families):
        mine = sorted((p for p in points if p.family == family), key=lambda p: p.flops)
        if not mine:
            continue
        for fit in (fit for fit in fits if fit.family == family):
            if curve := fitted(fit, mine[0].flops, mine[-1].flops):
                series.append(Series(family, curve, colour, faint=True, marked=False))
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
    logarithmic = ", logarithmic"
    return Chart(
        f"{metric} ({label})" if label else metric,
        _notes(points, log, any(one.faint for one in series)),
        Axis(scaling.x + logarithmic * scaling.x_log, log=scaling.x_log),
        Axis(metric + logarithmic * log, log=log),
        series,
        [Reference(level.name, level.value) for level in scaling.levels if level.metric == metric],
    )


def scaling_drawing(scalings: dict[str, Curves]) -> str:
    """All charts of a study as one SVG file; the keys stand in the titles where there are several."""
    return drawing([scaling_chart(*labelled) for labelled in _each_metric(scalings)])


def _notes(points: list[Measurement], log: bool, has_fits: bool) -> str:
    notes = ["Bars: the interval given with a point."] if any(map(_interval, points)) else []
    notes += ["Thin: fit."] if has_fits else []
    if any(point.metric.startswith(OWN_LOSS) for point in points):
        notes.append("Each model's own loss: not to be compared between lines.")
    left_out = sum(point.value <= 0 for point in points) if log else 0
    if left_out:
        values = f"{left_out} values that are not positive have"
        if left_out == 1:
            values = "1 value that is not positive has"
        notes.append(f"{values} no place on a logarithmic axis.")
    return " ".join(notes)


def fitted(fit: Fit, low: float, high: float) -> list[tuple[float, float]]:
    """Points of a fitted curve from `low` to `high` FLOPs."""
    if high <= low:
        return []
    ratio = math.log(high / low) / (FIT_POINTS - 1)
    flops = [low * math.exp(ratio * place) for place in range(FIT_POINTS)]
    try:
        return [(x, fit.coefficient * x**fit.exponent) for x in flops]
    except OverflowError:
        return []


def _formula(fit: Fit) -> str:
    exponent = f"{fit.exponent:.3g}".replace("-", MINUS)
    return f"{number(fit.coefficient)} × FLOPs^{exponent}"


def _interval(point: Measurement) -> tuple[float, float] | None:
    if point.low is None and point.high is None:
        return None
    low = point.value if point.low is None else point.low
    return low, point.value if point.high is None else point.high
