"""Diagonal normal distributions: draws, densities, divergences. Shapes (..., d), sums over channels."""

from __future__ import annotations

import math

from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)


def sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """mean + sigma * noise: a draw that gradients pass through (reparametrisation)."""
    return mean + (0.5 * logvar).exp() * noise


def standard_normal_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I), nats (...)."""
    return -0.5 * (z.square() + LOG_2_PI).sum(-1)


def normal_log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)), nats (...)."""
    squared = (z - mean).square() * (-logvar).exp()
    return -0.5 * (squared + logvar + LOG_2_PI).sum(-1)


def negative_entropy(logvar: Tensor) -> Tensor:
    """E_q log q of q = N(., exp(logvar)), nats (...)."""
    return -0.5 * (logvar + 1 + LOG_2_PI).sum(-1)


def standard_normal_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)), nats (...)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)


def normal_kl(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(other_mean, exp(other_logvar))), nats (...)."""
    ratio = (logvar.exp() + (mean - other_mean).square()) * (-other_logvar).exp()
    return 0.5 * (other_logvar - logvar + ratio - 1).sum(-1)
