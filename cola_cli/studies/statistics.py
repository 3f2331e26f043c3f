"""Curves of a study: means over seeds with intervals, and power laws through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
ANGLES = 200_001  # of the integral behind Student's t
FITTED_LEAST = 3  # points: through two there is always a power law


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and, where it exists, its 95 % interval."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class PowerLaw:
    """value = coefficient * x ** exponent. low, high: 95 % interval of the exponent; r_squared: of logs."""

    coefficient: float
    exponent: float
    low: float | None
    high: float | None
    r_squared: float


def intervals(points: Sequence[Sequence[float]], log: bool, share: bool = False) -> list[Interval]:
    """The mean at each point of a curve with its 95 % interval, from the values of that point's seeds.

    With few seeds a point's own spread says little, so the spread is taken to be the same along the curve
    and estimated from all its points (of the logarithms with `log`, where the mean is the geometric one):
    mean +- t(degrees of freedom) * pooled deviation / sqrt(seeds), of a share cut at 0 and 1. Without a
    second seed there is no interval.
    """
    values = [np.log(point) if log else np.asarray(point, np.float64) for point in points]
    freedom = sum(len(own) - 1 for own in values)
    squares = sum(float(((own - own.mean()) ** 2).sum()) for own in values)
    found = []
    for own in values:
        mean, low, high = float(own.mean()), None, None
        if freedom:
            half = student_t(freedom) * math.sqrt(squares / freedom / len(own))
            low, high = mean - half, mean + half
            if share:
                low, high = max(0.0, low), min(1.0, high)
        if log:
            mean = math.exp(mean)
            low, high = (None if end is None else math.exp(end) for end in (low, high))
        found.append(Interval(mean, low, high, len(own)))
    return found


def power_law(x: Sequence[float], values: Sequence[float]) -> PowerLaw | None:
    """The power law through points by least squares of the logarithms.

    None with fewer than three different x, or where anything is not positive.
    """
    if len(set(x)) < FITTED_LEAST or min(*x, *values) <= 0:
        return None
    logs, targets = np.log(x), np.log(values)
    spread = ((logs - logs.mean()) ** 2).sum()
    exponent = float(((logs - logs.mean()) * (targets - targets.mean())).sum() / spread)
    constant = float(targets.mean() - exponent * logs.mean())
    rest = float(((targets - constant - exponent * logs) ** 2).sum())
    total = float(((targets - targets.mean()) ** 2).sum())
    freedom = len(x) - 2
    half = student_t(freedom) * math.sqrt(rest / freedom / spread)
    return PowerLaw(
        coefficient=math.exp(constant),
        exponent=exponent,
        low=exponent - half,
        high=exponent + half,
        r_squared=1 - rest / total if total else 1.0,
    )


@functools.cache
def student_t(freedom: int) -> float:
    """The t with P(|T| < t) = 95 % at these degrees of freedom.

    With t = sqrt(freedom) tan(angle) that probability is an integral of cos(angle) ** (freedom - 1).
    """
    angles = np.linspace(0.0, math.pi / 2, ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    angle = np.interp(CONFIDENCE * mass[-1], mass, angles)
    return math.sqrt(freedom) * math.tan(angle)
