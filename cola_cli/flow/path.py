"""The linear path of flow matching: t = 0 is clean, t = 1 is noise."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) z_0 + t z_1; t broadcasts against the latents."""
    return (1 - t) * z0 + t * z1


def target_velocity(z0: Tensor, z1: Tensor) -> Tensor:
    """dz_t/dt = z_1 - z_0, what the network learns to predict."""
    return z1 - z0


def clean_estimate(z: Tensor, t: Tensor | float, velocity: Tensor) -> Tensor:
    """E[z_0 | z_t] = z_t - t v of the velocity at (z_t, t)."""
    return z - t * velocity


def renoise(z: Tensor, source: float, target: float, noise: Tensor) -> Tensor:
    """Carry z from the marginal at t = source back to the noisier t = target >= source.

    z_source = (1 - source) z_0 + source e. Scaling by (1 - target) / (1 - source) restores the share of z_0,
    and fresh `noise` adds the variance that is missing.
    """
    scale = (1 - target) / (1 - source)
    missing = target**2 - (scale * source) ** 2
    return scale * z + torch.tensor(max(missing, 0.0)).sqrt().to(z) * noise
