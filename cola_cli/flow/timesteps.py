"""The laws of the timesteps of training, as functions of standard draws. t = 0 is clean, t = 1 is noise."""

from __future__ import annotations

import math

import numpy as np


def location(latent_dim: int) -> float:
    """1 + 0.5 ln(d / 16), the location of the logit-normal law that fits the paper's best runs."""
    return 1 + 0.5 * math.log(latent_dim / 16)


def logit_normal(normal: np.ndarray, loc: float, scale: float) -> np.ndarray:
    """The logistic function of loc + scale * n, n standard normal."""
    return 1 / (1 + np.exp(-(loc + scale * normal)))


def shifted(uniform: np.ndarray, shift: float) -> np.ndarray:
    """s u / (1 + (s - 1) u) of a uniform u: s > 1 moves the times towards noise."""
    return shift * uniform / (1 + (shift - 1) * uniform)


EVEN = 0.1  # share of the decided law that is uniform, so that no time is left out
LEVELS, DRAWS = 64, 256  # of the times and of the tokens that the entropy is estimated with


def decided(codes: np.ndarray, variance: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Where noise hides which token a latent stands for: the times at LEVELS + 1 even quantiles of the law.

    codes (V, d), about which latents have the variance (d,), of tokens of these frequencies (V,). The share
    of times below t is H(token | z_t) / H(token | z_1) of the tokens by themselves, without a history.
    """
    random = np.random.default_rng(0)
    shares = frequencies / frequencies.sum()
    known = np.flatnonzero(shares)
    codes, shares = codes[known], shares[known]
    tokens = np.searchsorted(shares.cumsum(), (np.arange(DRAWS) + 0.5) / DRAWS)
    spread, noise = random.standard_normal((2, DRAWS, codes.shape[1]))
    grid = np.linspace(0, 1, LEVELS + 1)
    entropy = np.zeros(LEVELS + 1)
    for level, t in enumerate(grid[1:], start=1):
        z = (1 - t) * (codes[tokens] + np.sqrt(variance) * spread) + t * noise
        scale = np.sqrt((1 - t) ** 2 * variance + t**2)
        seen, means = z / scale, (1 - t) * codes / scale
        logits = np.log(shares) + seen @ means.T - (means**2).sum(1) / 2
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        entropy[level] = -(p * np.log(p + 1e-30)).sum(1).mean()
    rising = np.maximum.accumulate(entropy)
    below = (1 - EVEN) * rising / max(rising[-1], 1e-30) + EVEN * grid
    return np.interp(grid, below / below[-1], grid)


def from_quantiles(uniform: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Draws of a law given by its even quantiles, of a uniform u."""
    return np.interp(uniform, np.linspace(0, 1, len(quantiles)), quantiles)
