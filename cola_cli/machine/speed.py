"""How fast this machine multiplies matrices: the yardstick of a training run's speed."""

from __future__ import annotations

import functools
import time


@functools.cache  # a study trains many models in one process
def matrix_rate(device: str, bf16: bool, dim: int, rows: int) -> float:
    """Measured operations a second of (rows, dim) x (dim, 4 dim) products on the device; takes 0.3 s."""
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    left = torch.randn(rows, dim, device=device, dtype=dtype)
    right = torch.randn(dim, 4 * dim, device=device, dtype=dtype)
    out = torch.empty(rows, 4 * dim, device=device, dtype=dtype)

    def wait() -> None:
        if left.is_cuda:
            torch.cuda.synchronize()

    best = 0.0
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right, out=out)
        wait()
        rate = 4 * 2.0 * rows * dim * 4 * dim / (time.perf_counter() - begin)
        best = max(best, rate)
    return best
