"""Tensors (N, d) in a column of a part, a blob a row: halves, or fewer bytes that decode to halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]
Blobs = NDArray[np.uint8]
LEVELS = 255  # of 8 bits, above the lowest


@dataclass(frozen=True)
class Form:
    """How a column holds its tensors.

    described: as a type. width: bytes of a row, of N and d. encode: finite (B, N, d) -> (B, bytes). decode:
    (B, bytes), N and d -> (B, N, d), of each channel no lower and no higher than what was encoded.
    """

    described: str
    width: Callable[[int, int], int]
    encode: Callable[[Halves], Blobs]
    decode: Callable[[Blobs, int, int], Halves]

    def tensor(self, blob: bytes, shape: tuple[int, int]) -> Halves:
        """(N, d) of one row. Raises ValueError for a blob of another size."""
        if len(blob) != self.width(*shape):
            raise ValueError(f"a tensor has {len(blob)} bytes instead of {self.width(*shape)}")
        return self.decode(np.frombuffer(blob, np.uint8)[None], *shape)[0]


def _bytes_of(values: Halves) -> Blobs:
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)


def _halves(blobs: Blobs, positions: int, channels: int) -> Halves:
    return np.ascontiguousarray(blobs).view(np.float16).reshape(-1, positions, channels)


def _quantized(values: Halves) -> Blobs:
    wide = values.astype(np.float32)
    lowest = wide.min(1, keepdims=True)
    span = wide.max(1, keepdims=True) - lowest
    step = (span / LEVELS).astype(np.float16)
    # a step that was rounded up would lead beyond the highest value, perhaps to infinity
    above = LEVELS * step.astype(np.float32) > span
    step = np.where(above, np.nextafter(step, np.float16(0)), step)
    levels = np.rint((wide - lowest) / np.where(step > 0, step, 1)).clip(0, LEVELS)
    scale = _bytes_of(np.concatenate([lowest.astype(np.float16), step], 1))
    return np.concatenate([scale, levels.astype(np.uint8).reshape(len(values), -1)], 1)


def _dequantized(blobs: Blobs, positions: int, channels: int) -> Halves:
    scale = _halves(blobs[:, : 4 * channels], 2, channels).astype(np.float32)
    levels = blobs[:, 4 * channels :].reshape(-1, positions, channels)
    # of a damaged scale: the reader names the row
    with np.errstate(over="ignore", invalid="ignore"):
        return (scale[:, :1] + scale[:, 1:] * levels).astype(np.float16)


def _averaged(values: Halves) -> Blobs:
    return _bytes_of(np.log(np.exp(values.astype(np.float64)).mean(1)).astype(np.float16))


HALVES = Form("HALF[{d}][{N}]", lambda N, d: 2 * N * d, _bytes_of, _halves)
# (d,) halves: lowest values; (d,) halves: steps; (N, d) bytes: steps above the lowest
BYTES = Form("BYTE[{d}][{N}] and scale", lambda N, d: (N + 4) * d, _quantized, _dequantized)
# (d,) halves: of log-variances, the logarithm of each channel's mean variance
CHANNELS = Form(
    "HALF[{d}]",
    lambda N, d: 2 * d,
    _averaged,
    lambda blobs, N, d: _halves(blobs, 1, d).repeat(N, 1),
)
FORMS = {
    "float16": {"mean": HALVES, "logvar": HALVES},
    "int8": {"mean": BYTES, "logvar": BYTES},
    "mean": {"mean": BYTES, "logvar": CHANNELS},
}
