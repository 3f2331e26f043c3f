"""Path, solvers and guidance against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cola_cli.flow.guidance import guided, is_guided
from cola_cli.flow.path import interpolate, renoise, target_velocity
from cola_cli.flow.solvers import (
    Method,
    evaluation_times,
    evaluations_per_step,
    step,
    uniform_grid,
)


def solve(velocity: Any, z: Tensor, grid: list[float], method: Method) -> Tensor:
    stride = evaluations_per_step(method)
    times = evaluation_times(grid, method)
    for index in range(len(grid) - 1):
        z = step(
            lambda z, evaluation: velocity(z, times[evaluation]),
            z, grid[index], grid[index + 1], index * stride, method,
        )  # fmt: skip
    return z


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_solvers_have_their_order_on_a_linear_field(method: Method, order: int) -> None:
    """dz/dt = t z from t = 1 has z(0) = exp(-1/2) z(1)."""
    z = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = math.exp(-0.5) * z
    errors = [
        (solve(lambda z, t: t * z, z, uniform_grid(steps), method) - exact).norm().item()
        for steps in (64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("method", ["euler", "heun", "midpoint"])
def test_the_straight_path_is_solved_exactly_on_any_grid(method: Method) -> None:
    z0, z1 = torch.randn(2, 5, dtype=torch.float64)
    found = solve(lambda z, t: target_velocity(z0, z1), z1, [1.0, 0.9, 0.2, 0.0], method)
    torch.testing.assert_close(found, z0)


def test_every_evaluation_has_its_time() -> None:
    assert evaluation_times([1.0, 0.5, 0.0], "euler") == [1.0, 0.5]
    assert evaluation_times([1.0, 0.5, 0.0], "heun") == [1.0, 0.5, 0.5, 0.0]
    assert evaluation_times([1.0, 0.5, 0.0], "midpoint") == [1.0, 0.75, 0.5, 0.25]
    assert uniform_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_path_runs_from_latents_to_noise() -> None:
    z0, z1 = torch.randn(2, 3)
    assert torch.equal(interpolate(z0, z1, torch.tensor(0.0)), z0)
    assert torch.equal(interpolate(z0, z1, torch.tensor(1.0)), z1)


def test_renoising_restores_the_share_of_the_latents_and_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    z0 = torch.full((200_000,), 2.0)
    first, second = torch.randn(2, 200_000, generator=generator)
    source, target = 0.3, 0.7
    z = renoise(interpolate(z0, first, torch.tensor(source)), source, target, second)
    assert z.mean().item() == pytest.approx((1 - target) * 2.0, abs=0.01)
    assert z.std().item() == pytest.approx(target, abs=0.01)


def test_guidance_extrapolates_from_unconditional_to_conditional_in_float32() -> None:
    c, u = torch.tensor([3.0]), torch.tensor([1.0])
    assert [guided(c, u, s).item() for s in (0.0, 1.0, 7.0)] == [1.0, 3.0, 15.0]
    big = torch.tensor([30_000.0], dtype=torch.float16)
    assert math.isfinite(guided(big, -big, 60.0).item())


def test_guidance_acts_inside_its_closed_interval_only() -> None:
    assert is_guided(0.5, 7.0, (0.5, 1.0))
    assert not is_guided(0.4, 7.0, (0.5, 1.0))
    assert not is_guided(0.5, 1.0, (0.0, 1.0))
