"""Rotary position embeddings: one table of cosines and sines a call, shared by all layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, float32, (n, pairs) or (B, 1, n, pairs)."""

    cos: Tensor
    sin: Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32 at least: float64 stays, half precisions are widened."""
    return x if x.dtype == torch.float64 else x.float()


def rotary_frequencies(channels: int, theta: float) -> Tensor:
    """theta^(-2i/channels) for the channels/2 pairs, float32."""
    return 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)


def rotation(positions: Tensor, frequencies: Tensor) -> Rotation:
    """The table for positions (n,) or (B, n); a batch of positions broadcasts over the heads."""
    angles = positions.unsqueeze(-1) * wide(frequencies)
    if angles.dim() == 3:
        angles = angles.unsqueeze(1)  # (B, 1, n, pairs)
    return Rotation(angles.cos(), angles.sin())


def rotate_interleaved(x: Tensor, table: Rotation) -> Tensor:
    """Rotate the first 2 x pairs channels of x (B, H, n, head_dim) as pairs (0, 1), (2, 3), ..."""
    rotated = 2 * table.cos.shape[-1]
    pairs = wide(x[..., :rotated]).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # real operations are fused, complex ones are not
        even, odd = pairs.unbind(-1)
        turned = torch.stack(
            (even * table.cos - odd * table.sin, odd * table.cos + even * table.sin), -1
        )
    else:  # one complex product instead of ten real operations
        product = torch.view_as_complex(pairs) * torch.complex(table.cos, table.sin)
        turned = torch.view_as_real(product)
    turned = turned.flatten(-2).to(x.dtype)
    return turned if rotated == x.shape[-1] else torch.cat((turned, x[..., rotated:]), dim=-1)


def rotate_halves(x: Tensor, table: Rotation) -> Tensor:
    """Rotate all channels of x (B, H, n, head_dim) as pairs (i, i + head_dim / 2)."""
    first, second = wide(x).chunk(2, dim=-1)
    turned = (first * table.cos - second * table.sin, second * table.cos + first * table.sin)
    return torch.cat(turned, dim=-1).to(x.dtype)
