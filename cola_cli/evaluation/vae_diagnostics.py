"""What a Text VAE's latents are like: reconstruction, logSNR, active channels, robustness to noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cola_cli.errors import InputError
from cola_cli.flow.path import interpolate
from cola_cli.models.text_vae import TextVAE

NOISE_LEVELS = tuple(round(0.05 * step, 2) for step in range(15))  # t from 0 to 0.7
ACTIVE_VARIANCE = (
    0.01  # of the posterior mean over the data, above which a channel carries something
)


@dataclass(frozen=True)
class VAEDiagnosis:
    """Figures over some text.

    accuracy: tokens reconstructed from the posterior mean; accuracy_at: the same from
    (1 - t) mean + t noise, by t; log_snr = log(E[mean^2] / E[variance]); kl_per_channel: KL to N(0, I) in
    nats; active_channels: those whose mean varies over the data by more than 0.01.
    """

    tokens: int
    accuracy: float
    accuracy_at: dict[float, float]
    log_snr: float
    kl_per_channel: list[float]
    active_channels: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def diagnose(vae: TextVAE, batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0) -> VAEDiagnosis:
    """The diagnosis over batches of (ids (B, L), lengths (B,)); padding counts nowhere.

    Raises InputError when there is no token.
    """
    generator = torch.Generator().manual_seed(seed)
    patch = vae.config.patch_size
    means: list[Tensor] = []
    variances: list[Tensor] = []
    right = dict.fromkeys(NOISE_LEVELS, 0)
    tokens = 0
    for ids, lengths in batches:
        posterior = vae.encode(ids)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (B, L)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(ids.device)
        for t in NOISE_LEVELS:
            z = interpolate(posterior.mean, noise, torch.tensor(t))
            found = vae.decode(vae.to_prior(z)).argmax(-1)
            right[t] += int(((found == ids) & real).sum())
        tokens += int(real.sum())
        whole = real.unflatten(1, (-1, patch)).any(-1)  # latents of at least one token
        means.append(posterior.mean[whole].double())
        variances.append(posterior.logvar[whole].double().exp())
    if not tokens:
        raise InputError(
            "there are no tokens to diagnose the VAE on.",
            "Name tokens, or a --split, that has some.",
        )
    mean, variance = torch.cat(means), torch.cat(variances)
    kl = 0.5 * (mean.square() + variance - 1 - variance.log()).mean(0)
    return VAEDiagnosis(
        tokens=tokens,
        accuracy=right[0.0] / tokens,
        accuracy_at={t: count / tokens for t, count in right.items()},
        log_snr=math.log(mean.square().mean().item() / variance.mean().item()),
        kl_per_channel=kl.tolist(),
        active_channels=int((mean.var(0) > ACTIVE_VARIANCE).sum()),
    )


def accuracy_plot(found: VAEDiagnosis) -> str:
    """Accuracy against latent noise as a self-contained SVG."""
    width, height, left, right, top, bottom = 560, 320, 56, 24, 32, 44
    span = max(NOISE_LEVELS)

    def place(t: float, accuracy: float) -> str:
        x = left + t / span * (width - left - right)
        y = top + (1 - accuracy) * (height - bottom - top)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(t, accuracy) for t, accuracy in found.accuracy_at.items())
    grid = []
    for tenth in range(0, 11, 2):
        x, y = place(0, tenth / 10).split(",")
        grid.append(f'<line x1="{x}" y1="{y}" x2="{width - right}" y2="{y}" stroke="#8884"/>')
        grid.append(
            f'<text x="{left - 8}" y="{y}" text-anchor="end" dy="4">{tenth / 10:.1f}</text>'
        )
    for t in NOISE_LEVELS[::2]:
        x, y = place(t, 0).split(",")
        grid.append(f'<text x="{x}" y="{float(y) + 18}" text-anchor="middle">{t:.1f}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12" fill="#777">'
        f"{''.join(grid)}"
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">latent noise t</text>'
        f'<text x="{left}" y="14">tokens reconstructed</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/></svg>\n'
    )
