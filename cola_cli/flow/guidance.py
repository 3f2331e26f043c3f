"""Classifier-free guidance, where "unconditional" means the same block without history."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """u + s (c - u), s one for all rows or (rows, 1, 1), in float32 so that large scales do not overflow."""
    base = unconditional.float()
    return base + scale * (conditional.float() - base)


def is_guided(t: float, scale: float, interval: tuple[float, float]) -> bool:
    """Whether guidance changes anything at t: s is not 1 and t lies in the closed interval."""
    return scale != 1.0 and interval[0] <= t <= interval[1]
