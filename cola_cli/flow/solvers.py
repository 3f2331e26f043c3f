"""Solvers of dz/dt = v(z, t) from noise (t = 1) to latents (t = 0)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_Time = TypeVar("_Time", float, "Tensor")
Method = Literal["euler", "heun", "midpoint"]
# velocity(z, evaluation): `evaluation` numbers the calls, in the order of `evaluation_times`
Velocity = Callable[["Tensor", int], "Tensor"]


def uniform_grid(steps: int) -> list[float]:
    """steps + 1 times from 1 to 0, evenly spaced."""
    return [1 - index / steps for index in range(steps)] + [0.0]


def chosen_grid(steps: int, grid: Sequence[float] | None) -> list[float]:
    """The times of `grid`, or evenly spaced ones where none is given."""
    return list(grid) if grid else uniform_grid(steps)


def evaluation_times(grid: Sequence[_Time], method: Method) -> list[_Time]:
    """The times at which a solver asks for the velocity, in order; also of positions, as tensors."""
    times: list[_Time] = []
    for t, end in itertools.pairwise(grid):
        times.append(t)
        if method == "heun":
            times.append(end)
        elif method == "midpoint":
            times.append((t + end) / 2)
    return times


def step(
    velocity: Velocity,
    z: Tensor,
    t: float | Tensor,
    end: float | Tensor,
    evaluation: int,
    method: Method,
) -> Tensor:
    """z at `end` from z at `t`; `evaluation` is the number of the step's first velocity.

    Positions with times of their own have t and end that broadcast against z.
    """
    h = end - t
    first = velocity(z, evaluation)
    if method == "euler":
        return z + h * first
    if method == "heun":
        return z + h / 2 * (first + velocity(z + h * first, evaluation + 1))
    return z + h * velocity(z + h / 2 * first, evaluation + 1)


def evaluations_per_step(method: Method) -> int:
    """Velocities that one step takes."""
    return 1 if method == "euler" else 2
