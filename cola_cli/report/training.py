"""Training curves: one chart a metric, all runs of a kind in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cola_cli.families import FAMILIES
from cola_cli.report.charts import Axis, Chart, Reference, Series, framed, grid
from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element, table
from cola_cli.report.quantities import DASH, number, percent

STEP = "optimiser step"
LOG_FROM = 25.0  # ratio of largest to smallest above which a loss is drawn on a logarithmic axis


@dataclass(frozen=True)
class Metric:
    """How one column of metrics is called; `of` its axis."""

    title: str
    unit: str
    share: bool = False  # of one, shown in percent
    logarithmic: bool = True  # allowed
    from_zero: bool = False


METRICS = {
    "loss": Metric("Loss", "nats"),
    "flow": Metric("Flow matching loss", "mean squared error"),
    "cross_entropy": Metric("Cross-entropy of the token head", "nats a token"),
    "reconstruction": Metric("Reconstruction loss", "nats a token"),
    "kl": Metric("KL to N(0, I)", "nats a latent"),
    "mask": Metric("Loss at masked tokens", "nats a token"),
    "accuracy": Metric("Tokens reconstructed", "share of tokens", share=True),
    "accuracy_noisy": Metric("Reconstructed under latent noise", "share of tokens", share=True),
    "accuracy_masked": Metric("Masked tokens predicted", "share of tokens", share=True),
    "log_snr": Metric("logSNR of the posterior", "nats", logarithmic=False),
    "effective_rank": Metric(
        "Effective rank of the latents", "directions", logarithmic=False, from_zero=True
    ),
    "active_channels": Metric("Active channels", "channels", logarithmic=False, from_zero=True),
    "drift": Metric("Drift of the latents", "mean squared"),
    "perplexity": Metric("Perplexity", "a token"),
    "gradient_norm": Metric("Gradient norm", "norm before clipping"),
    "learning_rate": Metric("Learning rate", "learning rate", logarithmic=False),
    "tokens_per_second": Metric("Speed", "tokens a second", logarithmic=False),
}
STILL = 1e-6  # relative change below which a metric stayed the same
MACHINERY = ("gradient_norm", "learning_rate", "tokens_per_second")
MAIN = (
    "flow",
    "cross_entropy",
    "loss",
    "reconstruction",
    "perplexity",
)  # the first that a kind has is drawn large
# Counters and metrics of the machine, and the levels that become reference lines.
NOT_DRAWN = {"tokens", "seconds", "flops_use", "memory_bytes", "reader_share", "skipped"}
LEVELS = {
    "flow_of_zero": "predicting zero",
    "flow_of_mean": "predicting the mean",
    "flow_of_linear": "best linear",
}
PREFIX = "validation_"


def training_curves(collected: Collected) -> list[Markup]:
    """A block of charts for every kind of which some run has metrics."""
    blocks = []
    for family in FAMILIES.values():
        runs = [run for run in collected.of(family.kind) if any(run.metrics.values())]
        if runs:
            blocks.append(_block(family.title, runs))
    return blocks


def _block(name: str, runs: Sequence[Shown]) -> Markup:
    columns = {column.removeprefix(PREFIX) for run in runs for column in run.metrics}
    columns -= NOT_DRAWN | set(LEVELS)
    for term in ("flow", "cross_entropy"):
        if term in columns and all(_same(run, "loss", term) for run in runs):
            columns.discard("loss")  # a frozen prior has this one alone
    known = [column for column in METRICS if column in columns]
    order = known + sorted(columns - set(known))
    moving = [column for column in order if _moves(column, runs)]
    main = [column for column in MAIN if column in moving][:1]
    small = [column for column in moving if column not in main and column in METRICS]
    folded = [column for column in moving if column in MACHINERY or column not in METRICS]
    small = [column for column in small if column not in folded]
    heading = f"{name}: {runs[0].named}" if len(runs) == 1 else f"{name}, {len(runs)} runs"
    return element(
        "div",
        element("h3", heading),
        [framed(_chart(column, runs), large=True) for column in main],
        grid([framed(_chart(column, runs)) for column in small]),
        _still([column for column in order if column not in moving], runs),
        _folded(folded, runs),
        class_="block",
    )


def _moves(column: str, runs: Sequence[Shown]) -> bool:
    """Whether some run has two different values of it, so that there is a curve to draw."""
    curves = [run.metrics.get(name, []) for run in runs for name in (column, PREFIX + column)]
    return any(
        max(values) - min(values) > STILL * max(map(abs, values))
        for values in ([value for _, value in curve] for curve in curves)
        if values
    )


def _still(columns: Sequence[str], runs: Sequence[Shown]) -> Markup | None:
    """The metrics that stayed the same, or were taken once, as a table."""
    rows = []
    for column in columns:
        about = _about(column, runs[0].kind)
        values = [run.metrics.get(PREFIX + column) or run.metrics.get(column) for run in runs]
        say = percent if about.share else number
        cells = [say(curve[-1][1]) if curve else DASH for curve in values]
        if any(values):
            unit = "" if about.unit in about.title.lower() else f", {about.unit}"
            rows.append([f"{about.title}{unit}", *cells])
    if not rows:
        return None
    heads = ["unchanged, or measured once", *(run.named for run in runs)]
    return table(heads, rows)


def _folded(columns: Sequence[str], runs: Sequence[Shown]) -> Markup | None:
    if not columns:
        return None
    titles = ", ".join(_about(column, runs[0].kind).title.lower() for column in columns)
    return element(
        "details",
        element("summary", "More", element("span", f" {titles}")),
        grid([framed(_chart(column, runs)) for column in columns]),
    )


def _about(column: str, kind: str) -> Metric:
    about = METRICS.get(column, Metric(column.replace("_", " ").capitalize(), column))
    title, unit = FAMILIES[kind].titles.get(column, (about.title, about.unit))
    return replace(about, title=title, unit=unit)


def _same(run: Shown, first: str, second: str) -> bool:
    return all(
        run.metrics.get(prefix + first, []) == run.metrics.get(prefix + second, [])
        for prefix in ("", PREFIX)
    )


def _chart(column: str, runs: Sequence[Shown]) -> Chart:
    about = _about(column, runs[0].kind)
    series, values = [], []
    trained = checked = False
    for run in runs:
        during = run.metrics.get(column, [])
        after = run.metrics.get(PREFIX + column, [])
        trained, checked = trained or bool(during), checked or bool(after)
        # Metrics of training that are alone on a chart are not drawn faint.
        lone = not any(other.metrics.get(PREFIX + column) for other in runs)
        if during:
            series.append(Series(run.named, during, run.colour, faint=not lone, marked=False))
        if after:
            series.append(Series(run.named, after, run.colour))
        values += [value for _, value in during + after]
    log = about.logarithmic and not about.share and min(values, default=0) > 0
    log = log and max(values) > LOG_FROM * min(values)
    levels = _levels(runs) if column == "flow" else []
    unit = f"{about.unit}, logarithmic" if log else about.unit
    note = "thin: training · marked: validation" if trained and checked else ""
    if checked and not trained:
        note = "validation"
    if any(level.colour is not None for level in levels):
        note += (
            ". Losses on different latents cannot be compared; the dotted levels of some latents have the"
            " colour of the first run on them"
        )
    return Chart(
        title=about.title,
        note=note,
        x=Axis(STEP),
        y=Axis(
            unit,
            log=log,
            percent=about.share,
            low=0.0 if about.from_zero else None,
            high=_ceiling(about, values),
        ),
        series=series,
        references=levels,
    )


def _ceiling(about: Metric, values: Sequence[float]) -> float | None:
    """Shares end at 100 %, rounding aside."""
    return max(1.0, *values) if about.share and max(values, default=0) > 0.9 else None


def _levels(runs: Sequence[Shown]) -> list[Reference]:
    """What simple predictors reach: once for all runs on the same latents, in the first one's colour.

    Neutral where all runs are on the same latents.
    """
    first = {run.inputs.get("latents", run.label): run for run in reversed(runs)}
    return [
        Reference(name, curve[-1][1], run.colour if len(first) > 1 else None)
        for column, name in LEVELS.items()
        for run in first.values()
        if (curve := run.metrics.get(PREFIX + column))
    ]
