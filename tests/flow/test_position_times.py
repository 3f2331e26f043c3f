"""The path of blocks whose positions have times of their own, and velocities from clean estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cola_cli.flow.path import (
    T_MIN,
    clean_estimate,
    interpolate,
    position_times,
    target_velocity,
    to_velocity,
)
from cola_cli.models.config import PriorConfig
from cola_cli.models.prior import Prior


@given(st.floats(0, 1), st.floats(0, 20), st.integers(1, 16))
def test_positions_start_as_noise_end_clean_and_earlier_ones_are_ahead(
    time: float, stagger: float, block: int
) -> None:
    times = position_times(np.asarray(time), stagger, block)
    assert times.shape == (block,)
    assert ((times >= 0) & (times <= 1)).all()
    assert (np.diff(times) >= -1e-12).all()
    assert position_times(np.asarray(1.0), stagger, block) == pytest.approx(np.ones(block))
    assert position_times(np.asarray(0.0), stagger, block) == pytest.approx(np.zeros(block))
    tensor = position_times(torch.tensor(time, dtype=torch.float64), stagger, block)
    assert tensor.numpy() == pytest.approx(times)


def test_without_stagger_all_positions_share_the_time() -> None:
    assert position_times(np.asarray([0.3, 0.8]), 0.0, 3).tolist() == [[0.3] * 3, [0.8] * 3]


def test_with_the_largest_stagger_positions_move_one_after_another() -> None:
    found = [position_times(np.asarray(t / 8), 3.0, 4).tolist() for t in (8, 7, 6, 5, 1, 0)]
    assert found == [
        [1, 1, 1, 1],
        [0.5, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0.5, 1, 1],
        [0, 0, 0, 0.5],
        [0, 0, 0, 0],
    ]


@given(st.floats(T_MIN, 1))
def test_the_velocity_of_the_true_clean_latent_is_the_target(t: float) -> None:
    source = torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=source)
    z = interpolate(z0, z1, torch.tensor(t, dtype=torch.float64))
    for time in (t, torch.tensor(t, dtype=torch.float64)):
        velocity = to_velocity(z0, z, time)
        torch.testing.assert_close(velocity, target_velocity(z0, z1), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(clean_estimate(z, time, velocity), z0)


def test_a_token_head_moves_towards_the_mean_code() -> None:
    """x0_hat = sum_k p_k c_k and v = (z_t - x0_hat) / t, against a loop over the vocabulary."""
    torch.manual_seed(0)
    config = PriorConfig(
        latent_dim=3, dim=16, heads=2, head_dim=8, rope_dim=4, layers=1, block_size=2,
        prediction="tokens", vocab_size=5,
    )  # fmt: skip
    prior = Prior(config)
    prior.codes.normal_()
    logits, z, t = torch.randn(1, 2, 5), torch.randn(1, 2, 3), torch.tensor([[[0.5], [0.25]]])
    found = prior.to_velocity(logits, z, t, temperature=2.0)
    for place in range(2):
        weights = [float(torch.exp(logits[0, place, k] / 2)) for k in range(5)]
        mean = sum(w * prior.codes[k] for k, w in enumerate(weights)) / sum(weights)
        expected = (z[0, place] - mean) / t[0, place]
        torch.testing.assert_close(found[0, place], expected)


def test_positions_with_levels_are_modulated_as_by_their_own_times() -> None:
    torch.manual_seed(0)
    config = PriorConfig(
        latent_dim=3, dim=16, heads=2, head_dim=8, rope_dim=4, layers=2, block_size=2
    )
    prior = Prior(config)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    levels = torch.tensor([[0, 3, 4, 1], [2, 2, 0, 4]])
    own = prior.modulation(levels / 4)
    table = prior.level_modulation(torch.arange(5) / 4, levels)
    x = torch.randn(2, 4, 16)
    for layer in range(2):
        one, other = own.layer(layer), table.layer(layer)
        torch.testing.assert_close(other.norm(x, 3), one.norm(x, 3))
        torch.testing.assert_close(other.gate(x, 2), one.gate(x, 2))
    torch.testing.assert_close(table.last().norm(x, 0), own.last().norm(x, 0))
