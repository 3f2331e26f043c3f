"""Random numbers that are a pure function of (seed, stream, step, row).

Every row of every step has its own counter-based generator, so a resumed run, another number of processes
and another micro-batch size all see the same noise, timesteps and masks, and no generator state is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TRAINING = 0
VALIDATION = 1

Floats = NDArray[np.float32]


def generators(seed: int, stream: int, step: int, rows: Sequence[int]) -> list[np.random.Generator]:
    """One generator a row of global batch `step`; `rows` are positions in that batch."""
    return [
        np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, step, row]))
        for row in rows
    ]


def normal(randoms: Sequence[np.random.Generator], *shape: int) -> Floats:
    """Standard normal numbers, (rows, *shape)."""
    out = np.empty((len(randoms), *shape), np.float32)
    for row, random in zip(out, randoms, strict=True):
        random.standard_normal(out=row, dtype=np.float32)
    return out


def uniform(randoms: Sequence[np.random.Generator], *shape: int) -> Floats:
    """Uniform numbers in [0, 1), (rows, *shape)."""
    out = np.empty((len(randoms), *shape), np.float32)
    for row, random in zip(out, randoms, strict=True):
        random.random(out=row, dtype=np.float32)
    return out
