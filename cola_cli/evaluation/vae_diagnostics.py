"""What a Text VAE's latents are like: reconstruction, logSNR, active channels, robustness to noise."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.errors import InputError
from cola_cli.evaluation.diagnosis import Diagnosis
from cola_cli.flow import timesteps
from cola_cli.flow.path import interpolate, linear_prediction_loss
from cola_cli.models.attention import apart
from cola_cli.models.text_vae import TextVAE

NOISE_LEVELS = tuple(round(0.05 * step, 2) for step in range(15))  # t from 0 to 0.7
QUANTILES = 64  # of the law of t, over which flow losses are averaged
ACTIVE_VARIANCE = 0.01  # of the posterior mean over the data; a channel above it is active


@torch.inference_mode()
def diagnose(vae: TextVAE, batches: Iterable[Rows]) -> Diagnosis:
    """The diagnosis over batches of sequences; padding is not counted.

    Raises InputError when there is no token, FloatingPointError when the posterior is not finite or its means
    are all zero.
    """
    generator = torch.Generator().manual_seed(0)
    patch = vae.config.patch_size
    means: list[Tensor] = []
    variances: list[Tensor] = []
    right = dict.fromkeys(NOISE_LEVELS, 0)
    tokens = 0
    for rows in batches:
        ids, real = torch.from_numpy(rows.tokens), torch.from_numpy(rows.is_text)  # (B, L)
        pieces = rows.position_pieces(patch)
        attend = apart(None if pieces is None else torch.from_numpy(pieces), vae.config.block_size)
        posterior = vae.encode(ids, None, attend)
        noise = torch.randn(posterior.mean.shape, generator=generator)
        for t in NOISE_LEVELS:
            z = interpolate(posterior.mean, noise, torch.tensor(t))
            found = vae.decode(vae.to_prior(z), None, attend).argmax(-1)
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
    if not (mean.isfinite().all() and variance.isfinite().all() and mean.any() and variance.all()):
        raise FloatingPointError
    kl = 0.5 * (mean.square() + variance - 1 - variance.log()).mean(0)
    variance_of_all = (mean.var(0, correction=0) + variance.mean(0))[None]
    scale = vae.config.scaling_factor**2
    return Diagnosis(
        tokens=tokens,
        accuracy=right[0.0] / tokens,
        accuracy_at={t: count / tokens for t, count in right.items()},
        log_snr=math.log(mean.square().mean().item() / variance.mean().item()),
        kl_per_channel=kl.tolist(),
        active_channels=int((mean.var(0) > ACTIVE_VARIANCE).sum()),
        flow_of_noise=_flow_loss(scale * variance),
        flow_of_linear=_flow_loss(scale * variance_of_all),
    )


def _flow_loss(variance: Tensor) -> float:
    """The mean flow loss of predicting latents of these variances (n, d) about what is known of them."""
    normal = torch.special.ndtri((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES)
    law = timesteps.logit_normal(normal.numpy(), timesteps.location(variance.shape[1]), 1.0)
    losses = [linear_prediction_loss(torch.tensor([t]), variance).mean().item() for t in law]
    return sum(losses) / QUANTILES
