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
