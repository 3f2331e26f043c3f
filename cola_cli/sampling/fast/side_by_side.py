"""Parts of a batch on threads of their own.

On a CPU two halves of a batch side by side, a thread each, are faster than one after the other with two
threads in every operation: nobody waits at the end of each operation, and what lies between operations
is done in parallel too. Where operations are small, one thread does them sooner than several.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

RowT = TypeVar("RowT")
Work = Callable[[list[RowT], Tensor], Tensor]  # (rows, noise (rows, ...)) -> (rows, ...)

# Threads that share an operation must meet at its end. With two of them a layer was faster from about this
# many products, when to fetch a weight counts as FETCH products (blocks of 4 and 16, widths of 128 to 512).
SMALL_LAYER = 1 << 25
FETCH = 12


class SideBySide:
    """Runs work on parts of its rows at once, as many as share torch's threads without rest."""

    def __init__(self, weights: int, positions: int) -> None:
        """weights: of a layer. positions: that a row has in a pass."""
        self._weights, self._positions = weights, positions
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Work[RowT], rows: list[RowT], noise: Tensor) -> Tensor:
        """What `work` makes of all rows. Raises what it raised, after all parts have ended."""
        threads = torch.get_num_threads()
        count = part_count(len(rows), threads)
        share = 1 if self._is_small(-(-len(rows) // count)) else threads // count
        if count == 1:
            torch.set_num_threads(share)
            try:
                return work(rows, noise)
            finally:
                torch.set_num_threads(threads)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, "stream")

        @torch.inference_mode()
        def part(start: int, stop: int) -> Tensor:
            torch.set_num_threads(share)  # of operations begun on this thread
            return work(rows[start:stop], noise[start:stop])

        ends = [len(rows) * index // count for index in range(count + 1)]
        parts = [self._pool.submit(part, *limits) for limits in pairwise(ends)]
        wait(parts)
        torch.set_num_threads(threads)  # also the number that threads yet to come begin with
        return torch.cat([done.result() for done in parts])

    def _is_small(self, rows: int) -> bool:
        """Whether one thread does a layer of so many rows sooner than several."""
        return self._weights * (rows * self._positions + FETCH) < SMALL_LAYER


def part_count(rows: int, threads: int) -> int:
    """The largest number of parts of `rows` that leaves threads idle at most 1/8 of the time."""
    return max(
        count
        for count in range(1, threads + 1)
        if threads % count == 0 and -(-rows // count) * count * 8 <= 9 * rows
    )
