"""Euler steps that draw noise afresh, on a flow whose velocity is known in closed form."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cola_cli.sampling.denoise import Trajectory
from cola_cli.sampling.requests import Generating, Request
from cola_cli.settings.sample import SamplingOptions
from tests.small_networks import small_networks

MEAN, DEVIATION = 1.5, 0.4  # of the latents, a normal distribution
STEPS, ROWS = 200, 600


def sampled(eta: float, stagger: float) -> tuple[Tensor, Tensor]:
    """Noise (rows, block, d), and the latents that the exact velocity of the normal distribution leads to."""
    _, prior = small_networks(4, 60, stagger=stagger)
    options = SamplingOptions(steps=STEPS, guidance=1.0, eta=eta)
    trajectory = Trajectory(options, prior.config)
    times = trajectory.network_times(torch.device("cpu")).double()

    def velocity(z: Tensor, evaluation: int) -> Tensor:
        t = times[evaluation].view(1, -1, 1)
        variance = (1 - t) ** 2 * DEVIATION**2 + t**2
        gain = (t - (1 - t) * DEVIATION**2) / variance
        return (gain * (z - (1 - t) * MEAN) - MEAN).to(z)

    none = torch.zeros(0, prior.config.latent_dim)
    rows = [
        Generating(Request(item, [1]), item, none, none, 0, 0, 1, options, True)
        for item in range(ROWS)
    ]
    shape = (ROWS, prior.config.block_size, prior.config.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return noise, trajectory.follow(
        rows, noise, None, velocity, fresh=trajectory.fresh_noise(rows, noise.device)
    )


@pytest.mark.parametrize("stagger", [0.0, 1.5])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_any_share_of_fresh_noise_leads_to_the_same_distribution(
    eta: float, stagger: float
) -> None:
    noise, found = sampled(eta, stagger)
    assert found.mean(0).sub(MEAN).abs().max() < 0.08
    assert found.std(0).sub(DEVIATION).abs().max() < 0.06
    followed = torch.corrcoef(torch.stack([noise.flatten(), found.flatten()]))[0, 1]
    assert (
        followed > 0.99 if eta == 0 else followed < (0.95 if eta < 1 else 0.2)
    )  # how much of the first noise is left


def test_eta_needs_euler_steps_without_partial_repaint() -> None:
    for others in ({"solver": "heun"}, {"first_block": "partial-repaint"}):
        with pytest.raises(ValidationError, match="eta needs the Euler solver"):
            SamplingOptions(eta=0.5, **others)
