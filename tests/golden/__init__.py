"""The golden tensors, loaded once."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cola_cli.api import Cola, load
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import Rotation

HERE = Path(__file__).parent
# What the released code's rotary table held when golden.safetensors was made; see README.md.
STALE_POSITIONS = torch.cat([torch.arange(n) for n in (16, 16, 8, 8)])


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    """golden.safetensors"""
    return load_file(HERE / "golden.safetensors")


@functools.cache
def document() -> dict[str, Any]:
    """golden.json"""
    return json.loads((HERE / "golden.json").read_text())


@functools.cache
def detail() -> dict[str, torch.Tensor]:
    """detail/golden.safetensors"""
    return load_file(HERE / "detail/golden.safetensors")


@functools.cache
def detail_document() -> dict[str, Any]:
    """detail/golden.json"""
    return json.loads((HERE / "detail/golden.json").read_text())


def model(dtype: torch.dtype | None = None) -> Cola:
    """The checkpoint that golden.safetensors was computed with."""
    return load(HERE, dtype=dtype)


def detail_model() -> Cola:
    """The checkpoint of the finer fixture."""
    return load(HERE / "detail")


def lay_stale_rotary_table(patch: pytest.MonkeyPatch) -> None:
    """Give every prior the positions that the first fixture's generations were made with."""
    correct = Prior.rotation

    def stale(prior: Prior, positions: torch.Tensor) -> Rotation:
        return correct(prior, STALE_POSITIONS[positions])

    patch.setattr(Prior, "rotation", stale)


def clean_and_noisy_velocity(
    prior: Prior, z0: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor, block_size: int
) -> torch.Tensor:
    """The velocities of all blocks at once: z0, z_t (B, N, d), t (B, N / b) or (B, N) -> (B, N, d).

    Block b of z_t sees z0 of earlier blocks and itself.
    """
    return prior.velocity(z_t, t, prior.teacher_forced(z0, block_size))
