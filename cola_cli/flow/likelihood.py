"""Log-density of a flow-matching prior by the instantaneous change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cola_cli.flow.gaussian import standard_normal_log_density

Divergence = Literal["exact", "hutchinson"]
Velocity = Callable[[Tensor, float], Tensor]


def log_density(
    velocity: Velocity,
    z0: Tensor,
    steps: int,
    divergence: Divergence,
    probe: Tensor | None = None,
    block_size: int | None = None,
) -> Tensor:
    """log p(z_0) of each position, (B, n), summing to that of what depends on one another.

    Solves d/dt [z; l] = [v; div v] from t = 0 to 1 with the midpoint rule and returns
    log N(z_1; 0, I) + l_1 (Cola DLM paper, likelihood estimation). velocity(z (B, n, d), t) -> (B, n, d).
    The divergence is exact, or Hutchinson's e^T (dv/dz) e with one `probe` e (B, n, d), fixed for the whole
    solve; a position's share of it is that of its own channels. Hutchinson's makes an estimate without bias
    of the log-density, whose exponential is biased upwards. block_size: of blocks whose velocities do not
    depend on one another's latents; None where all positions may.
    """
    if divergence == "hutchinson" and probe is None:
        raise ValueError("Hutchinson's estimator needs a probe")
    z, total = z0, z0.new_zeros(z0.shape[:2])
    h = 1 / steps
    for index in range(steps):
        t = index * h
        with torch.no_grad():
            middle = z + h / 2 * velocity(z, t)
        v, change = velocity_and_divergence(
            velocity, middle, t + h / 2, divergence, probe, block_size
        )
        z, total = z + h * v, total + h * change
    return total + standard_normal_log_density(z)


def velocity_and_divergence(
    velocity: Velocity,
    z: Tensor,
    t: float,
    divergence: Divergence,
    probe: Tensor | None,
    block_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """v (B, n, d) and each position's share (B, n) of the divergence."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        v = velocity(z, t)
        if divergence == "hutchinson" and probe is not None:
            (product,) = torch.autograd.grad(v, z, probe)
            return v.detach(), (product * probe).sum(-1)
        share = torch.zeros_like(z)
        stride = block_size or z.shape[1]
        for position in range(min(stride, z.shape[1])):
            for channel in range(z.shape[2]):
                # rows of a batch and blocks do not depend on one another: one product serves them all
                at = (slice(None), slice(position, None, stride), channel)
                (row,) = torch.autograd.grad(v[at].sum(), z, retain_graph=True)
                share[at] = row[at]
        return v.detach(), share.sum(-1)


def diffusion_weight(t: Tensor, variance: Tensor) -> Tensor:
    """The weight of |c - E[c | z_t]|^2 dt in the variational bound of a code c; broadcasts.

    Of z_t = (1 - t) z_0 + t z_1 with z_0 ~ N(c, variance): -1/2 of the derivative of the signal-to-noise
    ratio (1 - t)^2 / ((1 - t)^2 variance + t^2) (Variational Diffusion Models, Kingma et al. 2021, eq. 15).
    """
    return t * (1 - t) / ((1 - t) ** 2 * variance + t**2) ** 2


def elbo(log_weights: Tensor) -> Tensor:
    """mean_k log w_k of (K, ...)."""
    return log_weights.mean(0)


def iwae(log_weights: Tensor) -> Tensor:
    """log mean_k w_k of (K, ...); at least the ELBO."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))
