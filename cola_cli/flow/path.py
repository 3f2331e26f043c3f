"""The linear path of flow matching: t = 0 is clean, t = 1 is noise."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

T_MIN = 1 / 64  # divisions by t go no lower


def interpolate(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) z_0 + t z_1; t broadcasts against the latents."""
    return (1 - t) * z0 + t * z1


def target_velocity(z0: Tensor, z1: Tensor) -> Tensor:
    """dz_t/dt = z_1 - z_0, what the network learns to predict."""
    return z1 - z0


def linear_prediction_loss(t: Any, variance: Any) -> Any:
    """The loss of the best linear prediction of z_1 - z_0 from z_t, per position; t (...) -> (...).

    A channel of variance s has s / ((1 - t)^2 s + t^2); `variance` (d,) is averaged over. With the variance
    of a posterior whose mean is known, it is what no prior can predict.
    """
    t = t[..., None]
    return (variance / ((1 - t) ** 2 * variance + t**2)).mean(-1)


def to_velocity(clean: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
    """v = (z_t - z_0) / t of the clean estimate z_0 = E[z_0 | z_t]; at t below T_MIN as at T_MIN."""
    if isinstance(t, Tensor):
        return (z - clean) / t.clamp(min=T_MIN)
    return (z - clean) / max(t, T_MIN)


def position_times(time: Any, stagger: float, block_size: int) -> Any:
    """The times of the positions of a block, (..., block_size), from the block's own time (...) in [0, 1].

    Each position takes 1 / (1 + S) of the block's time from noise to clean, the first one at once, the last
    one S such durations later: t_i = clip((1 + S) time - S (1 - i / (b - 1)), 0, 1). With S = 0 all share the
    block's time, with S = b - 1 one position moves after another. `time` is an array or a tensor.
    """
    last = max(block_size - 1, 1)
    like = time.new_tensor if isinstance(time, Tensor) else partial(np.asarray, dtype=time.dtype)
    offset = like([1 - place / last for place in range(block_size)])
    return ((1 + stagger) * time[..., None] - stagger * offset).clip(0, 1)


def position_speeds(time: Tensor, stagger: float, block_size: int) -> Tensor:
    """dt_i / dtime of the positions of a block, (..., block_size): 1 + S while a position moves, else 0."""
    times = position_times(time, stagger, block_size)
    later = position_times(time + 1e-6, stagger, block_size)  # the speed from here on towards noise
    return torch.where((later > 0) & (times < 1), 1 + stagger, 0.0)


def clean_estimate(z: Tensor, t: Tensor | float, velocity: Tensor) -> Tensor:
    """E[z_0 | z_t] = z_t - t v of the velocity at (z_t, t)."""
    return z - t * velocity


def renoise(z: Tensor, source: float | Tensor, target: float | Tensor, noise: Tensor) -> Tensor:
    """Carry z from the marginal at t = source < 1 back to the noisier t = target >= source.

    z_source = (1 - source) z_0 + source e. Scaling by (1 - target) / (1 - source) restores the share of z_0,
    and fresh `noise` adds the variance that is missing.
    """
    scale = (1 - target) / (1 - source)
    missing = torch.as_tensor(target**2 - (scale * source) ** 2)
    return scale * z + missing.clamp(min=0).sqrt().to(z) * noise


def further_time(source: Tensor, target: Tensor, eta: float) -> Tensor:
    """The time f <= target from which `renoise` to target completes a stochastic step from source.

    The step then adds noise of the variance eta^2 target^2 (1 - r^2), r = (1 - source) target / ((1 - target)
    source): with eta = 1 that of z_target given z_source and z_0 (Song et al., 2021, equation 16). Where the
    time does not move f is target.
    """
    moves = source > target
    ratio = (1 - source) * target / torch.where(moves, (1 - target) * source, 1.0)
    kept = target * (1 - eta**2 * (1 - ratio**2)).clamp(min=0).sqrt()
    return torch.where(moves, kept / (kept + 1 - target), target)
