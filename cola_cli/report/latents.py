"""What the latents are like: spectrum of the channels, logSNR, effective rank, robustness to noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cola_cli.evaluation.diagnosis import Diagnosis
from cola_cli.report.charts import Axis, Chart, Series, framed, grid
from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element
from cola_cli.report.quantities import DASH, number, percent
from cola_cli.report.tables import table


def latent_statistics(collected: Collected) -> list[Markup]:
    """A table of metrics and the charts for which there are data; empty when there is nothing."""
    encoded = [one for one in collected.of("latents") if _spectrum(one.statistics)]
    networks = [
        one for one in collected.of("vae", "prior") if "validation_log_snr" in one.statistics
    ]
    blocks: list[Markup | None] = []
    if encoded or networks:
        blocks.append(_metrics([*networks, *encoded]))
    blocks.append(
        grid(
            [
                framed(_signal_and_noise(encoded)),
                framed(robustness_chart(collected.diagnoses)),
                framed(_kl(collected)),
            ]
        )
    )
    return [block for block in blocks if block is not None]


def _metrics(artifacts: Sequence[Shown]) -> Markup:
    rows = []
    for one in artifacts:
        found = one.statistics
        log_snr = found.get("validation_log_snr", found.get("log_snr"))
        rank = found.get("validation_effective_rank")
        if rank is None and (spectrum := _spectrum(found)):
            ranked: Any = f"at most {number(entropy_rank(spectrum), 3)}"
        else:
            ranked = DASH if rank is None else number(rank, 3)
        channels = found.get("latent_shape", [None, one.settings.get("model.latent_dim")])[1]
        active = found.get("validation_active_channels")
        noise = one.settings.get("validation_noise")
        noisy = found.get("validation_accuracy_noisy")
        rows.append(
            [
                one.named,
                DASH if channels is None else channels,
                DASH if active is None else number(active),
                ranked,
                DASH if log_snr is None else number(log_snr, 3),
                percent(found.get("validation_accuracy")),
                percent(noisy) + (f" at σ {noise}" if noisy is not None and noise else ""),
            ]
        )
    return element(
        "div",
        table(
            [
                "artifact",
                "channels",
                "active",
                "effective rank",
                "logSNR, nats",
                "reconstructed",
                "under noise",
            ],
            rows,
        ),
        element(
            "p",
            "Effective rank: the exponential of the entropy of the covariance's eigenvalues; from latents,"
            " whose manifest has variances alone, an upper bound. logSNR: ln(E μ² / E σ²). Active: channels"
            " whose mean varies by more than 0.01.",
            class_="note",
        ),
    )


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
        ranks = list(enumerate(order, 1))
        series.append(
            Series(
                one.named if several else "variance of the means",
                [(float(rank), signal[channel]) for rank, channel in ranks],
                one.colour if several else 0,
            )
        )
        if len(noise) == len(signal):
            series.append(
                Series(
                    one.named if several else "posterior variance",
                    [(float(rank), noise[channel]) for rank, channel in ranks],
                    one.colour if several else 1,
                    dashed=True,
                    marked=not several,
                )
            )
    return Chart(
        "Variance spectrum of the channels",
        "Marked: variance of the means. Dashed: posterior variance."
        if several
        else "Signal and noise of every channel, sorted by signal.",
        Axis("channel, by signal"),
        Axis("variance, logarithmic", log=True),
        series,
    )


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


def _kl(collected: Collected) -> Chart:
    series = [
        Series(
            label,
            [
                (float(rank), kl)
                for rank, kl in enumerate(sorted(found.kl_per_channel, reverse=True), 1)
            ],
            place,
        )
        for place, (label, found) in enumerate(collected.diagnoses.items())
    ]
    return Chart(
        "KL of the channels",
        f"To N(0, I), sorted. {_of(collected.diagnoses)}".strip(),
        Axis("channel, by KL"),
        Axis("nats"),
        series,
    )
