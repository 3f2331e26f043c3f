"""What the latents are like: spectrum of the channels, logSNR, effective rank, robustness to noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cola_cli.evaluation.diagnosis import Diagnosis
from cola_cli.report.charts import Axis, Chart, Pair, Series, framed, grid
from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element, table
from cola_cli.report.quantities import DASH, number, percent

COLUMNS = (
    "artifact", "channels", "active", "effective rank", "logSNR, nats", "reconstructed", "under noise",
)  # fmt: skip


def latent_statistics(collected: Collected) -> list[Markup]:
    """A table of metrics and the charts for which there are data; empty when there is nothing."""
    encoded = [one for one in collected.of("latents") if _spectrum(one.statistics)]
    networks = [
        one for one in collected.of("vae", "prior") if "validation_log_snr" in one.statistics
    ]
    blocks: list[Markup | None] = []
    if encoded or networks:
        blocks.append(_metrics([*networks, *encoded]))
    charts = (
        _signal_and_noise(encoded), robustness_chart(collected.diagnoses), _kl(collected.diagnoses)
    )  # fmt: skip
    blocks.append(grid([framed(chart) for chart in charts]))
    return [block for block in blocks if block is not None]


def _metrics(artifacts: Sequence[Shown]) -> Markup:
    about = (
        "Effective rank: the exponential of the entropy of the covariance's eigenvalues; an upper bound for"
        " latents, whose manifest has variances alone. logSNR: ln(E μ² / E σ²). Active: channels whose mean"
        " varies by more than 0.01."
    )
    rows = [_metrics_row(one, one.statistics) for one in artifacts]
    return element("div", table(COLUMNS, rows), element("p", about, class_="note"))


def _metrics_row(one: Shown, found: dict[str, Any]) -> list[str]:
    rank = number(found.get("validation_effective_rank"), 3)
    if rank == DASH and (spectrum := _spectrum(found)):
        rank = f"at most {number(entropy_rank(spectrum), 3)}"
    match found.get("latent_shape"):
        case [_, channels]:
            pass
        case _:
            channels = one.settings.get("model.latent_dim")
    noise = one.settings.get("validation_noise")
    noisy = found.get("validation_accuracy_noisy")
    return [
        one.named,
        DASH if channels is None else str(channels),
        number(found.get("validation_active_channels")),
        rank,
        number(found.get("validation_log_snr", found.get("log_snr")), 3),
        percent(found.get("validation_accuracy")),
        percent(noisy) + (f" at σ {noise}" if noisy is not None and noise else ""),
    ]


def entropy_rank(variances: Sequence[float]) -> float:
    """exp of the entropy of the normalised variances: at least the covariance's effective rank."""
    total = sum(variances)
    shares = [variance / total for variance in variances if variance > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def _spectrum(statistics: dict[str, Any]) -> list[float]:
    found = statistics.get("channel_variance")
    usable = isinstance(found, list) and all(isinstance(value, int | float) for value in found)
    return list(found) if usable and found and sum(found) > 0 else []


def _signal_and_noise(encoded: Sequence[Shown]) -> Chart:
    series = []
    several = len(encoded) > 1
    for one in encoded:
        signal = _spectrum(one.statistics)
        noise = one.statistics.get("posterior_variance", [])
        order = sorted(range(len(signal)), key=lambda channel: -signal[channel])
        name, colour = (one.named, one.colour) if several else ("variance of the means", 0)
        series.append(Series(name, _ranked([signal[channel] for channel in order]), colour))
        if len(noise) == len(signal):
            name, colour = (one.named, one.colour) if several else ("posterior variance", 1)
            points = _ranked([noise[channel] for channel in order])
            series.append(Series(name, points, colour, dashed=True, marked=not several))
    return Chart(
        "Variance spectrum of the channels",
        "Marked: variance of the means. Dashed: posterior variance."
        if several
        else "Signal and noise of every channel, sorted by signal.",
        Axis("channel, by signal"),
        Axis("variance, logarithmic", log=True),
        series,
    )


def _ranked(values: Sequence[float]) -> list[Pair]:
    """The values against their numbers, from 1."""
    return [(float(rank), value) for rank, value in enumerate(values, 1)]


def robustness_chart(diagnoses: Mapping[str, Diagnosis]) -> Chart:
    """Reconstruction against latent noise: a curve for each diagnosis, by its label."""
    series = [
        Series(label, sorted(found.accuracy_at.items()), place)
        for place, (label, found) in enumerate(diagnoses.items())
    ]
    return Chart(
        "Robustness to latent noise",
        f"Decoded from (1 − t) mean + t noise. {_of(diagnoses)}".strip(),
        Axis("noise t"),
        Axis("tokens reconstructed", percent=True, low=0.0, high=1.0),
        series,
    )


def _of(diagnoses: Mapping[str, Diagnosis]) -> str:
    """Where the only diagnosis comes from; several stand in the legend."""
    return f"From {next(iter(diagnoses))}." if len(diagnoses) == 1 else ""


def _kl(diagnoses: Mapping[str, Diagnosis]) -> Chart:
    series = [
        Series(label, _ranked(sorted(found.kl_per_channel, reverse=True)), place)
        for place, (label, found) in enumerate(diagnoses.items())
    ]
    return Chart(
        "KL of the channels",
        f"To N(0, I), sorted. {_of(diagnoses)}".strip(),
        Axis("channel, by KL"),
        Axis("nats"),
        series,
    )
